//! The window's address range: reserved once, never unmapped while anybody holds it, and changed only through
//! offsets that are checked here, beside the call that trusts them.
#![expect(unsafe_code, reason = "the one place that maps memory at fixed addresses")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, MsyncFlags, ProtFlags};
use vm_memory::VolatileSlice;

/// How a buffer is laid into the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Shared, readable and writable: a guest write reaches the buffer.
    ReadWrite,
    /// Private and writable: the guest sees the buffer live; a page it writes to becomes its own copy.
    PrivateCopy,
    /// Shared and readable: a guest's store ends the vCPU's run, with a fault or with the store.
    ReadOnly,
}

/// Why a buffer could not be laid into the window.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The range does not lie in the window on page borders; nothing was touched.
    #[error("range {offset:#x}+{len:#x} does not lie on page borders in a window of {window:#x} bytes")]
    OutOfRange {
        /// Start of the range in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The window's length in bytes.
        window: u64,
    },
    /// The buffer itself refused to be mapped; the window is as it was.
    #[error("the buffer cannot be mapped: {source}")]
    Refused {
        /// Why, as the region's owner says it (`mmap`'s answer for a `HostWindow`).
        source: io::Error,
    },
    /// The buffer can be mapped, but not there; the filler is back in the range.
    #[error("the mapping could not be moved into the window: {source}")]
    Moved {
        /// Why, as the region's owner says it (`mremap`'s answer for a `HostWindow`).
        source: io::Error,
    },
    /// Not even the filler could be put back: the range must never be handed out again.
    #[error("the window's range could not be refilled: {source}")]
    Lost {
        /// Why, as the region's owner says it.
        source: io::Error,
    },
}

/// What fills the parts of the window where no blob is mapped.
#[derive(Debug)]
enum Filler {
    /// One sparse memfd mapped again and again: a guest that touches a gap neither dies nor costs more than it.
    Scratch { file: OwnedFd, len: usize },
    /// No access: the touch ends the vCPU's run.
    Deny,
}

/// An address range that is always fully mapped: by buffers where they were placed, by the filler elsewhere.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<c_void>,
    len: usize,
    filler: Filler,
}

// SAFETY: the range is plain address space that belongs to this value alone; every method works on it by system
// calls that the kernel serialises, or by volatile copies that allow for concurrent writers.
unsafe impl Send for Reservation {}
// SAFETY: as above; no method hands out a reference into the range.
unsafe impl Sync for Reservation {}

type MapResult = rustix::io::Result<*mut c_void>;

/// Memory that is mapped outside of any window, to be moved into one.
#[derive(Debug)]
pub(super) struct Staged {
    start: *mut c_void,
    len: usize,
}

impl Staged {
    /// Address space without access.
    ///
    /// # Errors
    /// What the kernel answers.
    fn reserve(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        Ok(Self { start, len })
    }

    pub(super) fn address(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.start.cast())
    }

    /// A piece of it, in whole pages.
    fn span(&self, offset: u64, len: u64) -> Option<(*mut c_void, usize)> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len as u64)?;
        Some((self.start.wrapping_byte_add(offset as usize), (end - offset) as usize))
    }

    /// The same memory in another place. What has gaps, or is several mappings where the kernel moves but one (before Linux
    /// 6.17), is refused here: a window would learn of that only when it has a hole.
    ///
    /// # Errors
    /// It cannot be moved.
    pub(super) fn moved(self) -> io::Result<Self> {
        // SAFETY: the range is this value's; without MS_INVALIDATE the call changes nothing, and starts no writing either.
        unsafe { rustix::mm::msync(self.start, self.len, MsyncFlags::ASYNC) }?;
        let there = Self::reserve(self.len)?;
        if let Err(errno) = move_mapping(self.start, self.len, there.start) {
            // What is in several pieces the kernel refuses when it has taken the target away: the addresses may be another
            // thread's by now.
            if errno == rustix::io::Errno::FAULT {
                std::mem::forget(there);
            }
            return Err(errno.into());
        }
        std::mem::forget(self);
        Ok(there)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this value, which alone knows its address; whatever was moved into a window has
        // been forgotten. No reference into it is ever handed out.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}

impl Reservation {
    /// Reserves `len` bytes filled by one memfd of `scratch` bytes, mapped again and again.
    ///
    /// # Errors
    /// A length that is zero or no multiple of the page size, or what the kernel answers.
    pub(crate) fn scratch(len: usize, scratch: usize) -> io::Result<Self> {
        let file = memfd_create("virtio-gpu-window", MemfdFlags::CLOEXEC)?;
        let page = rustix::param::page_size();
        let scratch = scratch.min(len);
        if scratch == 0 || !scratch.is_multiple_of(page) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the scratch length must be a multiple of the page",
            ));
        }
        ftruncate(&file, scratch as u64)?;
        Self::reserve(len, Filler::Scratch { file, len: scratch })
    }

    /// Reserves `len` bytes without access.
    ///
    /// # Errors
    /// As [`scratch`](Self::scratch).
    pub(crate) fn deny(len: usize) -> io::Result<Self> {
        Self::reserve(len, Filler::Deny)
    }

    fn reserve(len: usize, filler: Filler) -> io::Result<Self> {
        if len == 0 || !len.is_multiple_of(rustix::param::page_size()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the window's length must be a multiple of the page",
            ));
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        let base = NonNull::new(base).ok_or_else(|| io::Error::other("the kernel mapped the null page"))?;
        let reservation = Self { base, len, filler };
        reservation.fill(0, len as u64).map_err(io::Error::other)?;
        Ok(reservation)
    }

    /// Length in bytes.
    #[must_use]
    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    /// Where the range starts in this process: the address that a VMM gives to its memory slot.
    #[must_use]
    pub(crate) fn host_address(&self) -> *mut u8 {
        self.base.as_ptr().cast()
    }

    /// The checked pointer for a range of whole pages inside the reservation.
    pub(super) fn span(&self, offset: u64, len: u64) -> Result<(*mut c_void, usize), PlaceError> {
        let page = rustix::param::page_size() as u64;
        let end = offset.checked_add(len).filter(|end| *end <= self.len());
        match end {
            Some(_) if len > 0 && offset.is_multiple_of(page) && len.is_multiple_of(page) => {
                Ok((self.base.as_ptr().wrapping_byte_add(offset as usize), len as usize))
            }
            _ => Err(PlaceError::OutOfRange { offset, len, window: self.len() }),
        }
    }

    /// Lays the first `len` bytes of `file` at `offset`.
    ///
    /// The file is first mapped elsewhere, because a `mmap` with `MAP_FIXED` that fails in the file's own code has
    /// by then dropped what was there before; only a mapping that exists is moved into place.
    ///
    /// # Errors
    /// See [`PlaceError`]; after every one of them but [`PlaceError::Lost`] the window shows what it showed before.
    pub(crate) fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        protection: Protection,
    ) -> Result<(), PlaceError> {
        self.place_with(offset, len, file, protection, move_mapping)
    }

    fn place_with(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        protection: Protection,
        move_mapping: impl FnOnce(*mut c_void, usize, *mut c_void) -> MapResult,
    ) -> Result<(), PlaceError> {
        let (_, len_bytes) = self.span(offset, len)?;
        let (prot, share) = match protection {
            Protection::ReadWrite => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            Protection::PrivateCopy => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE),
            Protection::ReadOnly => (ProtFlags::READ, MapFlags::SHARED),
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), len_bytes, prot, share, file, 0) }
            .map_err(|errno| PlaceError::Refused { source: errno.into() })?;
        self.move_in(offset, Staged { start, len: len_bytes }, move_mapping)
    }

    /// Moves what was mapped elsewhere into the window.
    ///
    /// # Errors
    /// As [`place`](Self::place), and a length that is not whole pages of the window.
    pub(super) fn place_staged(&self, offset: u64, staged: Staged) -> Result<(), PlaceError> {
        self.move_in(offset, staged, move_mapping)
    }

    fn move_in(
        &self,
        offset: u64,
        staged: Staged,
        move_mapping: impl FnOnce(*mut c_void, usize, *mut c_void) -> MapResult,
    ) -> Result<(), PlaceError> {
        let len = staged.len as u64;
        let (target, len_bytes) = self.span(offset, len)?;
        let Err(errno) = move_mapping(staged.start, len_bytes, target) else {
            std::mem::forget(staged);
            return Ok(());
        };
        // Should the kernel have run out of memory after it took the old mapping away, another thread's mapping may have
        // come into the gap by now. Filling it breaks that thread; leaving it would show it to the guest.
        drop(staged);
        match self.fill(offset, len) {
            // A process without room for one mapping more gets neither; ENOMEM for that reason comes before the move has
            // taken anything away.
            Err(PlaceError::Lost { .. }) if errno == rustix::io::Errno::NOMEM && self.is_whole(offset, len) => {}
            filled => filled?,
        }
        Err(PlaceError::Moved { source: errno.into() })
    }

    /// Whether every page of a range is mapped, to whatever.
    fn is_whole(&self, offset: u64, len: u64) -> bool {
        self.span(offset, len).is_ok_and(|(target, len)| {
            // SAFETY: the range is ours; without MS_INVALIDATE the call changes nothing, and starts no writing either.
            unsafe { rustix::mm::msync(target, len, MsyncFlags::ASYNC) }.is_ok()
        })
    }

    /// Puts the filler back into a range.
    ///
    /// # Errors
    /// [`PlaceError::OutOfRange`], or [`PlaceError::Lost`] where the kernel refuses: the range may then show anything
    /// that was there before.
    pub(crate) fn fill(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.span(offset, len)?;
        let filled = self.fill_at(offset, len, |at, len| self.span(at, len).ok());
        filled.map_err(|errno| PlaceError::Lost { source: errno.into() })
    }

    /// Memory elsewhere that shows what a gap at `offset` shows, for somebody to map something over it.
    ///
    /// # Errors
    /// [`PlaceError::OutOfRange`], or what the kernel answers.
    pub(super) fn stage(&self, offset: u64, len: u64) -> Result<Staged, PlaceError> {
        let (_, len_bytes) = self.span(offset, len)?;
        let refused = |source| PlaceError::Refused { source };
        let staged = Staged::reserve(len_bytes).map_err(refused)?;
        let filled = self.fill_at(offset, len, |at, len| staged.span(at - offset, len));
        filled.map_err(|errno| refused(errno.into()))?;
        Ok(staged)
    }

    /// Lays the filler of a range to where `target` says that its pieces are.
    fn fill_at(
        &self,
        offset: u64,
        len: u64,
        target: impl Fn(u64, u64) -> Option<(*mut c_void, usize)>,
    ) -> rustix::io::Result<()> {
        let Filler::Scratch { file, len: scratch } = &self.filler else { return fill_piece(target(offset, len), None) };
        let scratch = *scratch as u64;
        let mut at = offset;
        while at < offset + len {
            let piece = (scratch - at % scratch).min(offset + len - at);
            fill_piece(target(at, piece), Some((file.as_fd(), at % scratch)))?;
            at += piece;
        }
        Ok(())
    }

    /// Copies bytes out of the range, as a guest would see them.
    ///
    /// A byte that no page stands behind (a gap of a *deny* window, a file truncated after it was mapped) ends the
    /// process by a signal, as such a load does anywhere.
    ///
    /// # Errors
    /// [`PlaceError::OutOfRange`] where the bytes are not all in the window.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), PlaceError> {
        self.bytes(offset, out.len())?.copy_to(out);
        Ok(())
    }

    /// Copies bytes into the range, as a guest's stores would.
    ///
    /// # Errors
    /// As [`read`](Self::read), whose warning holds here too.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), PlaceError> {
        self.bytes(offset, data.len())?.copy_from(data);
        Ok(())
    }

    fn bytes(&self, offset: u64, len: usize) -> Result<VolatileSlice<'_>, PlaceError> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len());
        end.ok_or(PlaceError::OutOfRange { offset, len: len as u64, window: self.len() })?;
        let start = self.host_address().wrapping_add(offset as usize);
        // SAFETY: the bytes lie in the reservation, which stays mapped for as long as the slice's borrow of `self`
        // lasts; volatile slices allow that others write them meanwhile.
        Ok(unsafe { VolatileSlice::new(start, len) })
    }

    /// Takes all access from a range that could not be refilled, so that whatever is still mapped there cannot be
    /// reached. Best effort: what the kernel answers changes nothing for the caller.
    pub(crate) fn seal(&self, offset: u64, len: u64) {
        if let Ok((target, len)) = self.span(offset, len) {
            // SAFETY: `span` has checked that the range is ours; taking access away breaks no reference, because
            // none is ever handed out.
            let _ = unsafe { rustix::mm::mprotect(target, len, MprotectFlags::empty()) };
        }
    }
}

/// Moves an existing mapping onto `target`, replacing what is there in one step under the address space's lock.
/// One `mmap` of the filler, over a piece of a reservation or of what is staged for one: `span` has just checked that it lies
/// there.
fn fill_piece(target: Option<(*mut c_void, usize)>, file: Option<(BorrowedFd<'_>, u64)>) -> rustix::io::Result<()> {
    let (target, len) = target.ok_or(rustix::io::Errno::RANGE)?;
    let result = match file {
        Some((file, start)) => {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the piece lies in a range that belongs to one value of this module, which nothing but its own methods
            // maps into; replacing what is mapped there is what filling means.
            unsafe { rustix::mm::mmap(target, len, prot, MapFlags::SHARED | MapFlags::FIXED, file, start) }
        }
        None => {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // SAFETY: as above.
            unsafe { rustix::mm::mmap_anonymous(target, len, ProtFlags::empty(), flags) }
        }
    };
    result.map(drop)
}

fn move_mapping(staged: *mut c_void, len: usize, target: *mut c_void) -> MapResult {
    let flags = MremapFlags::MAYMOVE;
    // SAFETY: `staged` is a mapping of `len` bytes that the caller has just made and owns; `target` was checked by
    // `span` to lie in the reservation with the same length.
    unsafe { rustix::mm::mremap_fixed(staged, len, len, flags, target) }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and with `self` goes the last way to reach it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    const PAGE: u64 = 4096;

    fn window() -> Reservation {
        Reservation::scratch(16 * 4096, 4 * 4096).expect("a window")
    }

    fn file(byte: u8, pages: u64) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, pages * PAGE).expect("size");
        rustix::io::pwrite(&file, &vec![byte; (pages * PAGE) as usize], 0).expect("write");
        file
    }

    fn byte(window: &Reservation, offset: u64) -> u8 {
        let mut out = [0];
        window.read(offset, &mut out).expect("in range");
        out[0]
    }

    #[test]
    fn no_range_outside_the_window_reaches_a_fixed_mapping() {
        let window = window();
        let file = file(1, 4);
        let page = PAGE;
        for (offset, len) in [
            (16 * page, page),
            (15 * page, 2 * page),
            (u64::MAX - page + 1, 2 * page),
            (u64::MAX, page),
            (0, !(page - 1)),
            (1, page),
            (0, page + 1),
            (0, 0),
        ] {
            let placed = window.place(offset, len, file.as_fd(), Protection::ReadWrite);
            assert!(matches!(placed, Err(PlaceError::OutOfRange { .. })), "{offset:#x}+{len:#x}: {placed:?}");
            assert!(matches!(window.fill(offset, len), Err(PlaceError::OutOfRange { .. })));
        }
    }

    #[test]
    fn a_placed_file_is_live_and_the_filler_is_back_after_it() {
        let window = window();
        let file = file(7, 2);
        window.write(5 * PAGE, &[0x55]).expect("the filler takes writes");
        window.place(5 * PAGE, 2 * PAGE, file.as_fd(), Protection::ReadWrite).expect("placed");
        assert_eq!((byte(&window, 5 * PAGE), byte(&window, 7 * PAGE - 1)), (7, 7));
        rustix::io::pwrite(&file, &[9], 0).expect("host write");
        assert_eq!(byte(&window, 5 * PAGE), 9);
        window.write(5 * PAGE + 1, &[3]).expect("guest write");
        let mut back = [0; 2];
        rustix::io::pread(&file, &mut back, 0).expect("read");
        assert_eq!(back, [9, 3]);
        window.fill(5 * PAGE, 2 * PAGE).expect("filled");
        assert_eq!(byte(&window, 5 * PAGE), 0x55);
    }

    #[test]
    fn a_file_whose_own_mmap_fails_late_leaves_no_hole() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        // Fails in the file's own code, as a dma-buf that only a GPU can use does.
        let late = match socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None) {
            Ok(socket) => socket,
            Err(errno) => return eprintln!("skipped: a packet socket needs CAP_NET_RAW ({errno})"),
        };
        let window = window();
        window.write(3 * PAGE, &[0x77]).expect("filler");
        let placed = window.place(3 * PAGE, 8 * PAGE, late.as_fd(), Protection::ReadWrite);
        assert!(matches!(placed, Err(PlaceError::Refused { .. })), "{placed:?}");
        assert_eq!(byte(&window, 3 * PAGE), 0x77);
    }

    #[test]
    fn a_file_that_maps_but_does_not_move_leaves_no_hole() {
        use std::os::fd::AsRawFd;
        let window = window();
        window.write(3 * PAGE, &[0x77]).expect("filler");
        let ring = io_uring::IoUring::new(64).expect("a ring: it takes no mapping at a given address");
        // SAFETY: the descriptor belongs to `ring`, which outlives the borrow.
        let file = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let placed = window.place(3 * PAGE, PAGE, file, Protection::ReadWrite);
        assert!(matches!(placed, Err(PlaceError::Moved { .. })), "{placed:?}");
        assert_eq!(byte(&window, 3 * PAGE), 0x77);
    }

    #[test]
    fn a_move_that_fails_after_the_kernel_dropped_the_range_leaves_no_hole() {
        let window = window();
        let file = file(1, 1);
        let placed = window.place_with(2 * PAGE, PAGE, file.as_fd(), Protection::ReadWrite, |_, len, target| {
            // SAFETY: plays a kernel that runs out of memory after it has taken the old mapping away.
            unsafe { rustix::mm::munmap(target, len) }.expect("unmap");
            Err(rustix::io::Errno::NOMEM)
        });
        assert!(matches!(placed, Err(PlaceError::Moved { .. })), "{placed:?}");
        assert_eq!(byte(&window, 2 * PAGE), 0);
    }

    #[test]
    fn a_guest_write_to_a_private_copy_never_reaches_the_file_and_other_pages_stay_live() {
        let window = window();
        let file = file(1, 2);
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::empty()).expect_err("not sealable");
        window.place(0, 2 * PAGE, file.as_fd(), Protection::PrivateCopy).expect("placed");
        window.write(0, &[0xee]).expect("guest write");
        rustix::io::pwrite(&file, &[5; 2 * 4096], 0).expect("host write");
        assert_eq!((byte(&window, 0), byte(&window, PAGE)), (0xee, 5));
        let mut first = [0];
        rustix::io::pread(&file, &mut first, 0).expect("read");
        assert_eq!(first, [5]);
    }

    #[test]
    fn a_window_that_denies_gaps_is_mapped_without_access() {
        let window = Reservation::deny(4 * 4096).expect("a window");
        let start = format!("{:x}-", window.host_address() as usize);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let line = maps.lines().find(|line| line.starts_with(&start)).expect("mapped");
        assert!(line.contains("---p"), "{line}");
    }
}
