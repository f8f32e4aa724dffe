//! A host's buffer in the guest: a blob of the host's memory, mapped, and the checksum that both sides compare.

use std::os::fd::AsFd;

use crate::drm::{Blob, Mapping};
use crate::failure::{In, Result};
use crate::gpu::Gpu;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// What the bytes of a buffer come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest {
    /// FNV-1a of 64 bits over all bytes.
    pub(crate) hash: u64,
    /// All bytes are zero.
    pub(crate) zero: bool,
}

impl Digest {
    /// Of bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let word =
            |offset: usize| bytes[offset..].iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Self::of_words(bytes.len(), word)
    }

    /// Of the first `len` bytes of what `word` gives eight bytes a time.
    fn of_words(len: usize, word: impl Fn(usize) -> u64) -> Self {
        let (mut hash, mut bits) = (FNV_OFFSET, 0);
        for offset in (0..len).step_by(8) {
            let bytes = word(offset).to_le_bytes();
            for byte in &bytes[..bytes.len().min(len - offset)] {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
                bits |= byte;
            }
        }
        Self { hash, zero: bits == 0 }
    }
}

/// A mapped buffer of the host.
pub(crate) struct Buffer {
    blob: Blob,
    mapping: Mapping,
    /// As the host announced it, in bytes.
    size: usize,
    /// What VIRTGPU_MAP gave: the blob's place in the DRM file, not in the window.
    pub(crate) offset: u64,
}

impl Buffer {
    /// Makes a blob of the buffer that the channel announced as `id`, and maps it.
    pub(crate) fn map(gpu: &Gpu, id: u32, size: u32) -> Result<Self> {
        let size = size as usize;
        let blob = Blob::host(gpu.as_fd(), id, size).during("RESOURCE_CREATE_BLOB")?;
        let (mapping, offset) = blob.map(gpu.as_fd()).during("map of a buffer")?;
        Ok(Self { blob, mapping, size, offset })
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Reads every byte.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of_words(self.size, |offset| self.mapping.word(offset))
    }

    /// Writes every byte, up to the end of the last page.
    pub(crate) fn fill(&self, byte: u8) {
        let word = u64::from_ne_bytes([byte; 8]);
        (0..self.mapping.len()).step_by(8).for_each(|offset| self.mapping.set_word(offset, word));
    }

    /// Whether every byte is this one.
    pub(crate) fn is_full_of(&self, byte: u8) -> bool {
        let word = u64::from_ne_bytes([byte; 8]);
        (0..self.mapping.len()).step_by(8).all(|offset| self.mapping.word(offset) == word)
    }

    /// Writes the complement of each word; answers with how many were others than `expected`, which is given their offsets.
    pub(crate) fn complement(&self, expected: impl Fn(usize) -> u64) -> usize {
        let rewrite = |offset| {
            let (expected, found) = (expected(offset), self.mapping.word(offset));
            self.mapping.set_word(offset, !expected);
            usize::from(found != expected)
        };
        (0..self.mapping.len()).step_by(8).map(rewrite).sum()
    }

    /// Unmaps it and closes its handle.
    pub(crate) fn close(self, gpu: &Gpu) -> Result<()> {
        drop(self.mapping);
        self.blob.close(gpu.as_fd()).during("GEM_CLOSE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        let padded: Vec<u8> = bytes.iter().copied().chain([0xff; 8]).collect();
        let digest = Digest::of_words(bytes.len(), |offset| {
            u64::from_le_bytes(padded[offset..offset + 8].try_into().expect("eight bytes"))
        });
        assert_eq!(digest, Digest::of(bytes));
        digest
    }

    #[test]
    fn the_checksum_is_fnv_1a_and_stops_at_the_last_byte() {
        assert_eq!(digest(b"").hash, 0xcbf2_9ce4_8422_2325);
        assert_eq!(digest(b"a").hash, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(digest(b"foobar").hash, 0x8594_4171_f739_67e8);
        assert_eq!(digest(b"chongo was here!\n").hash, 0x4681_0940_eff5_f915);
    }

    #[test]
    fn one_byte_that_is_set_makes_a_buffer_no_longer_zero() {
        assert!(digest(&[0; 21]).zero);
        assert!((0..21).all(|place| !digest(&std::array::from_fn::<u8, 21, _>(|at| u8::from(at == place))).zero));
    }
}
