//! Writes to pipes. One whose reader has gone raises SIGPIPE, which ends a process that has not said otherwise; a library
//! cannot say so for the whole process, and a pipe's write takes no flag for it before Linux 6.18.
#![expect(unsafe_code, reason = "the signal mask of a thread has no safe interface")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::ptr;

/// SIGPIPE held back from this thread; what it was before comes back with the drop.
struct Held {
    before: libc::sigset_t,
    pipe: libc::sigset_t,
    /// One was waiting already: it is somebody else's.
    waits: bool,
}

impl Held {
    fn new() -> Self {
        let mut pipe = MaybeUninit::<libc::sigset_t>::uninit();
        let mut waiting = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the pointer is to a set of this function's own, which the call initialises.
        unsafe { libc::sigemptyset(pipe.as_mut_ptr()) };
        // SAFETY: the set was initialised above, and SIGPIPE is a signal.
        unsafe { libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE) };
        // SAFETY: initialised above.
        let pipe = unsafe { pipe.assume_init() };
        // SAFETY: the pointer is to a set of this function's own, which the call writes; it fails for bad pointers alone.
        unsafe { libc::sigpending(waiting.as_mut_ptr()) };
        // SAFETY: `sigpending` has written it.
        let waits = unsafe { libc::sigismember(waiting.as_ptr(), libc::SIGPIPE) } == 1;
        // SAFETY: both pointers are to sets of this function's own; the call fails for a bad first argument alone.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const pipe, before.as_mut_ptr()) };
        // SAFETY: the call has written it.
        let before = unsafe { before.assume_init() };
        Self { before, pipe, waits }
    }

    /// Takes away the signal that a write of this thread has raised.
    fn swallow(&self) {
        if !self.waits {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the set and the time are initialised and outlive the call; no information is asked for.
            unsafe { libc::sigtimedwait(&raw const self.pipe, ptr::null_mut(), &raw const now) };
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the set is what the thread's mask was when this was made; where it is not asked for, none is written.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

/// Writes to a pipe, and says so where its reader has gone, without a signal.
///
/// # Errors
/// What `write` answers: `WouldBlock` where the pipe is full and its description does not wait, `BrokenPipe`.
pub(crate) fn write_to_pipe(file: impl AsFd, data: &[u8]) -> io::Result<usize> {
    let held = Held::new();
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, data));
    if written == Err(rustix::io::Errno::PIPE) {
        held.swallow();
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_without_a_reader_never_raises_a_signal() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(write_to_pipe(&writer, b"abc").expect("written"), 3);
        drop(reader);
        // Held back already, a signal that was raised would wait; that programs of Rust ignore it makes no difference then.
        let held = Held::new();
        assert!(!held.waits);
        let outcome = write_to_pipe(&writer, b"abc");
        assert!(!Held::new().waits, "raised and left");
        assert_eq!(outcome.expect_err("nobody reads").kind(), io::ErrorKind::BrokenPipe);
    }
}
