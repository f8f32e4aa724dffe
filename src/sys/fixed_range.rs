//! A range of a window that a renderer fills with memory that it maps by itself, on its own thread.
//! It maps elsewhere, and what it has mapped is moved into the window whole; a range that was taken back meanwhile stays as it is.

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::reservation::{PlaceError, Reservation};

/// A range of a [`HostWindow`](crate::HostWindow) for a renderer to map a blob into, from its own thread.
#[derive(Debug)]
pub struct FixedRange {
    memory: Arc<Reservation>,
    offset: u64,
    len: u64,
    /// Whether nothing is to come into it any more. Held while something is moved in, which takes microseconds.
    revoked: Mutex<bool>,
}

/// Why nothing was mapped into a range.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FixedError<E> {
    #[error("the range was taken back meanwhile")]
    Revoked,
    #[error(transparent)]
    Refused(E),
    #[error("what was mapped cannot be moved into the window: {0}")]
    Pieces(io::Error),
    #[error(transparent)]
    Place(#[from] PlaceError),
}

impl FixedRange {
    /// # Errors
    /// [`PlaceError::OutOfRange`].
    pub(crate) fn new(memory: Arc<Reservation>, offset: u64, len: u64) -> Result<Self, PlaceError> {
        memory.span(offset, len)?;
        Ok(Self { memory, offset, len, revoked: Mutex::new(false) })
    }

    /// Calls `map` with an address outside of the window and the range's length in bytes, to map something over all of that, and
    /// moves it into the window. What is not mapped over shows the filler. After any error the range is as it was, but for
    /// [`PlaceError::Lost`].
    ///
    /// # Errors
    /// See [`FixedError`].
    pub(crate) fn map<E>(&self, map: impl FnOnce(NonNull<u8>, usize) -> Result<(), E>) -> Result<(), FixedError<E>> {
        let (_, len) = self.memory.span(self.offset, self.len)?;
        let staged = self.memory.stage(self.offset, self.len)?;
        let address = staged.address().ok_or(FixedError::Revoked)?;
        map(address, len).map_err(FixedError::Refused)?;
        let staged = staged.moved().map_err(FixedError::Pieces)?;
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        if *revoked {
            return Err(FixedError::Revoked);
        }
        Ok(self.memory.place_staged(self.offset, staged)?)
    }

    /// Nothing comes into it any more.
    pub(crate) fn revoke(&self) {
        *self.revoked.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

#[cfg(test)]
mod tests {
    #![expect(unsafe_code, reason = "what a renderer's library does: it maps at a fixed address")]

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    const PAGE: u64 = 4096;

    fn window() -> Arc<Reservation> {
        Arc::new(Reservation::scratch(8 * 4096, 4096).expect("a window"))
    }

    fn range(window: &Arc<Reservation>) -> FixedRange {
        FixedRange::new(Arc::clone(window), PAGE, 2 * PAGE).expect("in the window")
    }

    fn bytes(window: &Reservation) -> [u8; 2] {
        [PAGE, 2 * PAGE].map(|offset| {
            let mut out = [0];
            window.read(offset, &mut out).expect("in range");
            out[0]
        })
    }

    /// Maps pages that hold this byte.
    fn show(address: NonNull<u8>, len: usize, byte: u8) -> Result<(), &'static str> {
        let file = memfd_create("fixed", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, len as u64).expect("size");
        rustix::io::pwrite(&file, &vec![byte; len], 0).expect("written");
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range was lent by `FixedRange::map`, which expects to find it mapped over.
        unsafe { mmap(address.as_ptr().cast(), len, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) }
            .expect("mapped");
        Ok(())
    }

    #[test]
    fn the_window_never_shows_what_was_mapped_before_it_is_whole_nor_anything_of_what_was_refused() {
        let window = window();
        let range = range(&window);
        let refused = range.map(|address, len| {
            show(address, len, 7)?;
            assert_eq!(bytes(&window), [0, 0], "not yet");
            Err("no")
        });
        assert!(matches!(refused, Err(FixedError::Refused("no"))), "{refused:?}");
        assert_eq!(bytes(&window), [0, 0]);
        range.map(|address, len| show(address, len, 8)).expect("free again");
        assert_eq!(bytes(&window), [8, 8]);
    }

    #[test]
    fn a_range_that_was_taken_back_meanwhile_never_shows_what_came_late() {
        let window = window();
        let range = range(&window);
        let late = range.map(|address, len| {
            range.revoke();
            show(address, len, 7)
        });
        assert!(matches!(late, Err(FixedError::Revoked)), "{late:?}");
        assert_eq!(bytes(&window), [0, 0]);
    }

    #[test]
    fn what_is_mapped_in_part_or_leaves_a_gap_never_makes_a_hole() {
        let window = window();
        let range = range(&window);
        window.write(2 * PAGE, &[5]).expect("the filler takes writes");
        let before = bytes(&window);
        // Kernels before 6.17 move one mapping at a time.
        match range.map(|address, len| show(address, len / 2, 7)) {
            Ok(()) => assert_eq!(bytes(&window), [7, before[1]]),
            Err(error) => assert!(matches!(error, FixedError::Pieces(_)), "{error:?}"),
        }
        window.fill(PAGE, 2 * PAGE).expect("filled");
        let gap = range.map(|address, len| {
            // SAFETY: as above; nobody else knows of the range.
            unsafe { munmap(address.as_ptr().wrapping_add(len / 2).cast(), len / 2) }.expect("unmapped");
            show(address, len / 2, 7)
        });
        assert!(matches!(gap, Err(FixedError::Pieces(_))), "{gap:?}");
        assert_eq!(bytes(&window), before);
    }

    #[test]
    fn a_renderer_that_panics_never_leaves_the_window_changed() {
        let window = window();
        let range = range(&window);
        let mapping = std::panic::AssertUnwindSafe(|| {
            range.map(|address, len| -> Result<(), ()> {
                let _ = show(address, len, 7);
                std::panic::resume_unwind(Box::new("told to"))
            })
        });
        assert!(std::panic::catch_unwind(mapping).is_err());
        assert_eq!(bytes(&window), [0, 0]);
        range.map(|address, len| show(address, len, 8)).expect("free still");
    }

    #[test]
    fn no_range_outside_the_window_is_handed_out() {
        for (offset, len) in [(8 * PAGE, PAGE), (7 * PAGE, 2 * PAGE), (1, PAGE), (0, 0), (u64::MAX, PAGE)] {
            let range = FixedRange::new(window(), offset, len);
            assert!(matches!(range, Err(PlaceError::OutOfRange { .. })), "{offset:#x}+{len:#x}");
        }
    }
}
