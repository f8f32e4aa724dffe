//! A range of a window that somebody on another thread maps into by himself, at its fixed address.
//! It may be taken back meanwhile without waiting: then whoever is in it restores it when he comes out.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::reservation::{PlaceError, Reservation};

/// A range of a [`HostWindow`](crate::HostWindow) for a renderer to map a blob into, from its own thread.
#[derive(Debug)]
pub struct FixedRange {
    memory: Arc<Reservation>,
    offset: u64,
    len: u64,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// Somebody is mapping into it.
    Busy,
    /// Nobody maps into it any more.
    Revoked,
}

/// Why nothing was mapped into a range.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FixedError<E> {
    #[error("the range was taken back meanwhile")]
    Revoked,
    #[error(transparent)]
    Refused(E),
    #[error(transparent)]
    Place(PlaceError),
}

impl FixedRange {
    /// # Errors
    /// [`PlaceError::OutOfRange`].
    pub(crate) fn new(memory: Arc<Reservation>, offset: u64, len: u64) -> Result<Self, PlaceError> {
        memory.span(offset, len)?;
        Ok(Self { memory, offset, len, state: Mutex::new(State::Free) })
    }

    /// Calls `map` with the range's address and length in bytes, to map something over all of it. The range is as it was after
    /// any error.
    ///
    /// # Errors
    /// See [`FixedError`].
    pub(crate) fn map<E>(&self, map: impl FnOnce(NonNull<u8>, usize) -> Result<(), E>) -> Result<(), FixedError<E>> {
        if self.change(|state| if state == State::Free { State::Busy } else { state }) != State::Free {
            return Err(FixedError::Revoked);
        }
        let (address, len) = self.memory.span(self.offset, self.len).map_err(FixedError::Place)?;
        let address = NonNull::new(address.cast()).ok_or(FixedError::Revoked)?;
        // A renderer that panics comes out of it, too.
        let stay = Stay { range: self, mapped: false };
        let mapped = map(address, len);
        stay.end(mapped.is_ok())?;
        mapped.map_err(FixedError::Refused)
    }

    /// Nobody maps into it any more. False where somebody is about to: what the range shows is not known then, and he alone
    /// restores it.
    pub(crate) fn revoke(&self) -> bool {
        self.change(|_| State::Revoked) != State::Busy
    }

    /// Changes the state, and says what it was.
    fn change(&self, change: impl FnOnce(State) -> State) -> State {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *state;
        *state = change(before);
        before
    }
}

/// Somebody is mapping into a range; at its end the range shows what he has mapped, or what it showed before.
struct Stay<'a> {
    range: &'a FixedRange,
    mapped: bool,
}

impl Stay<'_> {
    fn end<E>(mut self, mapped: bool) -> Result<(), FixedError<E>> {
        self.mapped = mapped;
        let ended = self.leave();
        std::mem::forget(self);
        ended
    }

    fn leave<E>(&self) -> Result<(), FixedError<E>> {
        let FixedRange { memory, offset, len, .. } = self.range;
        let before = self.range.change(|state| if state == State::Busy { State::Free } else { state });
        let revoked = before == State::Revoked;
        if !self.mapped || revoked {
            // A mapping at a fixed address that fails may have taken away what was there before.
            let filled = memory.fill(*offset, *len);
            filled.inspect_err(|_| memory.seal(*offset, *len)).map_err(FixedError::Place)?;
        }
        if revoked { Err(FixedError::Revoked) } else { Ok(()) }
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        let _ = self.leave::<std::convert::Infallible>();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::reservation::Protection;
    use super::*;

    const PAGE: u64 = 4096;

    fn window() -> Arc<Reservation> {
        Arc::new(Reservation::scratch(8 * 4096, 4096).expect("a window"))
    }

    fn byte(window: &Reservation, offset: u64) -> u8 {
        let mut out = [0];
        window.read(offset, &mut out).expect("in range");
        out[0]
    }

    /// What a renderer's own mapping does to the range, by the window's own means.
    fn show(window: &Reservation, byte: u8) -> Result<(), &'static str> {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        let file = memfd_create("fixed", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, PAGE).expect("size");
        rustix::io::pwrite(&file, &[byte], 0).expect("written");
        window.place(PAGE, PAGE, file.as_fd(), Protection::ReadWrite).expect("placed");
        Ok(())
    }

    #[test]
    fn a_mapping_that_fails_never_leaves_what_it_has_shown() {
        let window = window();
        let range = FixedRange::new(Arc::clone(&window), PAGE, PAGE).expect("in the window");
        let refused = range.map(|address, len| {
            assert_eq!((address.as_ptr(), len), (window.host_address().wrapping_add(4096), 4096));
            show(&window, 7)?;
            Err("no")
        });
        assert!(matches!(refused, Err(FixedError::Refused("no"))), "{refused:?}");
        assert_eq!(byte(&window, PAGE), 0);
        range.map(|_, _| show(&window, 8)).expect("free again");
        assert_eq!(byte(&window, PAGE), 8);
    }

    #[test]
    fn a_range_that_was_taken_back_meanwhile_never_shows_what_came_late() {
        let window = window();
        let range = FixedRange::new(Arc::clone(&window), PAGE, PAGE).expect("in the window");
        let late = range.map(|_, _| {
            assert!(!range.revoke(), "somebody is in it");
            show(&window, 7)
        });
        assert!(matches!(late, Err(FixedError::Revoked)), "{late:?}");
        assert_eq!(byte(&window, PAGE), 0);
        let after = range.map(|_, _| -> Result<(), ()> { panic!("nobody maps into it any more") });
        assert!(matches!(after, Err(FixedError::Revoked)), "{after:?}");
        assert!(range.revoke());
    }

    #[test]
    fn no_range_outside_the_window_is_handed_out() {
        for (offset, len) in [(8 * PAGE, PAGE), (7 * PAGE, 2 * PAGE), (1, PAGE), (0, 0), (u64::MAX, PAGE)] {
            let range = FixedRange::new(window(), offset, len);
            assert!(matches!(range, Err(PlaceError::OutOfRange { .. })), "{offset:#x}+{len:#x}");
        }
    }
}
