//! The device's configuration space (virtio 1.4, section 5.7.4).
//! Five little-endian words; whatever a driver reads beyond them is zero.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct virtio_gpu_config`, 20 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Pending events; bit 0 is `VIRTIO_GPU_EVENT_DISPLAY`.
    pub events_read: U32,
    /// Write-1-to-clear register for `events_read`.
    pub events_clear: U32,
    /// Number of scanouts, 1 to 16.
    pub num_scanouts: U32,
    /// Number of capability sets.
    pub num_capsets: U32,
    /// Alignment of a blob's size and of its offset in the window, in bytes, a power of two.
    pub blob_alignment: U32,
}

impl Config {
    /// Reads `out.len()` bytes at `offset`, zero where the structure ends.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let bytes = self.as_bytes();
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)) else { return };
        let len = rest.len().min(out.len());
        out[..len].copy_from_slice(&rest[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_any_size_and_offset_is_zero_padded_and_never_panics() {
        let config = Config {
            events_read: 0.into(),
            events_clear: 0.into(),
            num_scanouts: 1.into(),
            num_capsets: 2.into(),
            blob_alignment: 4096.into(),
        };
        assert_eq!(size_of::<Config>(), 20);
        let mut out = [0xff; 32];
        config.read(8, &mut out);
        assert_eq!(out[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(out[12..], [0; 20]);
        for offset in [19, 20, 21, 256, u64::MAX] {
            let mut out = [0xff; 256];
            config.read(offset, &mut out);
            assert_eq!(out[1..], [0; 255]);
        }
    }
}
