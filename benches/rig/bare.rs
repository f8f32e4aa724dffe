//! The system calls that a mapping cannot do without, on a reservation of the bench's own: what the device is measured
//! against.
#![expect(unsafe_code, reason = "the bare system calls are what is measured")]

use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

/// A range of addresses that is filled by a memfd where nothing is mapped, as a window is.
pub(crate) struct Bare {
    base: *mut c_void,
    len: usize,
    filler: OwnedFd,
}

impl Bare {
    pub(crate) fn new(len: usize) -> Self {
        let bare = Self { base: map_anywhere(len, None), len, filler: super::memfd(len as u64) };
        bare.fill(len);
        bare
    }

    /// Maps the file elsewhere and moves it to the start of the range: the two steps that never leave a hole.
    pub(crate) fn place(&self, file: &OwnedFd, len: usize) {
        assert!(len <= self.len);
        let staged = map_anywhere(len, Some(file));
        // SAFETY: `staged` was made for `len` bytes just now and belongs to nobody else; the target lies in the range
        // that this value reserves, into which nobody holds a reference.
        let placed = unsafe { rustix::mm::mremap_fixed(staged, len, len, MremapFlags::MAYMOVE, self.base) };
        assert_eq!(placed, Ok(self.base));
    }

    /// Puts the filler back at the start of the range.
    pub(crate) fn fill(&self, len: usize) {
        assert!(len <= self.len);
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: the target lies in the range that this value reserves, into which nobody holds a reference.
        let filled = unsafe { rustix::mm::mmap(self.base, len, prot, flags, &self.filler, 0) };
        assert_eq!(filled, Ok(self.base));
    }

    /// Loads a byte of every page, as a guest that uses them all.
    pub(crate) fn touch(&self, len: usize) {
        assert!(len <= self.len);
        for page in (0..len).step_by(4096) {
            let byte = self.base.cast::<u8>().wrapping_add(page);
            // SAFETY: the page is mapped, by a file of at least `len` bytes or by the filler, and bytes of any value
            // are bytes; volatile, because others may write them.
            std::hint::black_box(unsafe { byte.read_volatile() });
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: the range was reserved by this value, and with it goes the last way to reach it.
        let _ = unsafe { rustix::mm::munmap(self.base, self.len) };
    }
}

/// Maps a page that nobody needs and takes it back: what any thread of a VMM may do at any time.
pub(crate) fn map_a_page() {
    let page = map_anywhere(4096, None);
    // SAFETY: the page was mapped just now, and nobody knows of it.
    unsafe { rustix::mm::munmap(page, 4096) }.expect("unmapped");
}

fn map_anywhere(len: usize, file: Option<&OwnedFd>) -> *mut c_void {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let mapped = match file {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        Some(file) => unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0) },
        // SAFETY: as above.
        None => unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, prot, MapFlags::PRIVATE) },
    };
    mapped.expect("mapped")
}
