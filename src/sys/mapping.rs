//! A shared mapping of a file that other processes, devices and guests may write at any moment: bytes are
//! copied in and out, never borrowed, because no Rust reference may point at memory that changes on its own.
#![expect(unsafe_code, reason = "mmap, munmap and the copies between them have no safe form")]

use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::VolatileSlice;

/// What the holder of a [`SharedMapping`] may do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MappingAccess {
    /// `PROT_READ`: enough for a descriptor opened `O_RDONLY`.
    Read,
    /// `PROT_READ | PROT_WRITE`: needs a descriptor opened `O_RDWR`.
    ReadWrite,
}

/// A copy that would leave the accessible part of a [`SharedMapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes {offset:#x}+{length:#x} are outside of the mapping's {limit:#x} accessible bytes")]
pub(crate) struct OutOfRange {
    /// First byte that was asked for.
    pub(crate) offset: usize,
    /// Number of bytes that were asked for.
    pub(crate) length: usize,
    /// Bytes that are accessible this way: the mapping's length, or 0 for a write to a
    /// [`MappingAccess::Read`] mapping.
    pub(crate) limit: usize,
}

/// The first bytes of a file, mapped `MAP_SHARED`; dropping it unmaps them.
#[derive(Debug)]
pub(crate) struct SharedMapping {
    start: NonNull<u8>,
    len: usize,
    access: MappingAccess,
}

// SAFETY: the mapping belongs to the process, not to a thread, and nothing in it is bound to the thread that
// made it. There is no `Sync`: two threads of this process must not copy from and to the same bytes at once.
unsafe impl Send for SharedMapping {}

impl SharedMapping {
    /// Maps the first `len` bytes of `fd`, shared.
    ///
    /// The kernel checks a dma-buf's size here, but not a memfd's: a touch of a whole page that lies behind
    /// that file's end raises `SIGBUS`. So `len` must come from the file, and a file that someone else may
    /// shorten should carry `F_SEAL_SHRINK`.
    ///
    /// # Errors
    /// Those of `mmap(2)`: `INVAL` for a length of 0 or one beyond a dma-buf's end, `ACCESS` where the
    /// descriptor's mode does not allow `access`, `PERM` where a seal forbids it, `NODEV` where the file cannot
    /// be mapped at all.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, access: MappingAccess) -> rustix::io::Result<SharedMapping> {
        let protection = match access {
            MappingAccess::Read => ProtFlags::READ,
            MappingAccess::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: without MAP_FIXED and with a null hint the kernel picks an unused range, so no memory that
        // somebody else relies on is replaced.
        let start = unsafe { mmap(null_mut(), len, protection, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(SharedMapping { start, len, access })
    }

    /// Length in bytes, as it was given to [`SharedMapping::new`]; never 0.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes `offset..offset + out.len()` of the mapping to `out`.
    ///
    /// # Errors
    /// [`OutOfRange`] if they do not all lie inside the mapping; nothing is copied then.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfRange> {
        self.part(offset, out.len(), self.len)?.copy_to(out);
        Ok(())
    }

    /// Copies `data` to bytes `offset..offset + data.len()` of the mapping.
    ///
    /// # Errors
    /// [`OutOfRange`] if they do not all lie inside the mapping, or if it is not writable; nothing is copied
    /// then.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfRange> {
        let limit = match self.access {
            MappingAccess::Read => 0,
            MappingAccess::ReadWrite => self.len,
        };
        self.part(offset, data.len(), limit)?.copy_from(data);
        Ok(())
    }

    fn part(&self, offset: usize, length: usize, limit: usize) -> Result<VolatileSlice<'_>, OutOfRange> {
        // SAFETY: `start` is the address of a mapping of `len` bytes, `limit` is never more than `len`, and the
        // mapping lives until this value is dropped, which the slice's lifetime, that of `&self`, ends before.
        let all = unsafe { VolatileSlice::new(self.start.as_ptr(), limit) };
        all.subslice(offset, length).map_err(|_| OutOfRange { offset, length, limit })
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, is unmapped only here, and no pointer into it leaves this type.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()), "munmap of a range of our own");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, OFlags, ftruncate, memfd_create, open};
    use rustix::io::Errno;

    use super::*;

    fn file(len: u64) -> rustix::fd::OwnedFd {
        let file = memfd_create("mapping-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file
    }

    #[test]
    fn a_write_through_one_mapping_is_seen_through_another() {
        let file = file(8192);
        let writer = SharedMapping::new(file.as_fd(), 8192, MappingAccess::ReadWrite).unwrap();
        let reader = SharedMapping::new(file.as_fd(), 8192, MappingAccess::Read).unwrap();
        drop(file);
        writer.write(4093, b"camera").unwrap();
        let mut seen = [0; 8];
        reader.read(4092, &mut seen).unwrap();
        assert_eq!(&seen, b"\0camera\0");
        assert_eq!(reader.len(), 8192);
    }

    #[test]
    fn a_copy_outside_of_the_mapping_is_refused_and_copies_nothing() {
        let file = file(4096);
        let mapping = SharedMapping::new(file.as_fd(), 4096, MappingAccess::ReadWrite).unwrap();
        let mut out = [7; 16];
        for offset in [4081, 4096, 4097, usize::MAX - 8, usize::MAX] {
            let refused = OutOfRange { offset, length: 16, limit: 4096 };
            assert_eq!(mapping.read(offset, &mut out), Err(refused));
            assert_eq!(mapping.write(offset, &[9; 16]), Err(refused));
        }
        assert_eq!(out, [7; 16]);
        let mut all = vec![1; 4096];
        mapping.read(0, &mut all).unwrap();
        assert!(all.iter().all(|&byte| byte == 0));
        mapping.read(4096, &mut []).unwrap();
    }

    #[test]
    fn a_write_to_a_read_only_mapping_is_an_error_and_not_a_fault() {
        let file = file(4096);
        let mapping = SharedMapping::new(file.as_fd(), 4096, MappingAccess::Read).unwrap();
        assert_eq!(mapping.write(0, b"x").unwrap_err().limit, 0);
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let file = file(4096);
        let read_write = MappingAccess::ReadWrite;
        let empty = SharedMapping::new(file.as_fd(), 0, read_write);
        assert_eq!(empty.unwrap_err(), Errno::INVAL);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let read_only = open(path, OFlags::RDONLY | OFlags::CLOEXEC, 0.into()).unwrap();
        let refused = SharedMapping::new(read_only.as_fd(), 4096, read_write);
        assert_eq!(refused.unwrap_err(), Errno::ACCESS);
    }
}
