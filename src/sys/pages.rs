//! Host memory of a resource's own: pages that are zero at first and cost nothing until they are written, and that can be
//! given back without the device task waiting for the kernel to free them.
#![expect(unsafe_code, reason = "mmap and munmap have no safe form")]

use std::ops::{Deref, DerefMut};
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// An anonymous, private mapping that nobody else knows.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// Zeroed memory of `len` bytes, not 0.
    ///
    /// # Errors
    /// Those of `mmap(2)`: `INVAL` for a length of 0, `NOMEM`.
    pub(crate) fn zeroed(len: usize) -> rustix::io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED and with a null hint the kernel picks an unused range, so no memory that
        // somebody else relies on is replaced.
        let start = unsafe { mmap_anonymous(null_mut(), len, access, MapFlags::PRIVATE | MapFlags::NORESERVE)? };
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { start, len })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is the address of a readable mapping of `len` bytes, at most `isize::MAX` as mmap sees to, zeroed by
        // the kernel, that lives until this value is dropped; the mapping is private and its address is known to this value
        // alone, so that nothing writes it while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the mapping is writable, and `&mut self` makes this the only reference into it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `zeroed`, is unmapped only here, and no reference into it outlives this value.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()), "munmap of a range of our own");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_never_anything_but_zero_at_first() {
        let mut pages = Pages::zeroed(10_000).expect("memory");
        assert!(pages.len() == 10_000 && pages.iter().all(|byte| *byte == 0));
        pages[9_999] = 7;
        assert_eq!(pages[9_998..], [0, 7]);
        assert!(Pages::zeroed(0).is_err());
        assert!(Pages::zeroed(isize::MAX as usize).is_err());
    }

    #[test]
    fn pages_that_are_freed_elsewhere_never_stay_mapped() {
        let pages = Pages::zeroed(5 << 20).expect("memory");
        let start = format!("{:x}-", pages.as_ptr() as usize);
        tokio_uring::start(super::super::ring::free(pages)).expect("advice that anonymous memory takes");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        assert!(!maps.lines().any(|line| line.starts_with(&start)));
    }
}
