//! Descriptors that this process was started with: numbers on a command line, which somebody else has opened.
#![expect(unsafe_code, reason = "a number becomes a descriptor that is owned")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes a descriptor that this process has inherited. Each can be taken once.
///
/// # Errors
/// It is one of the three standard ones; it is not open; or it is this process's own already: whatever Rust opens is closed
/// when a program is started, and what was inherited is not.
pub fn inherited_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if number <= 2 {
        return Err(Errno::INVAL.into());
    }
    let _taking = ONE_AT_A_TIME.lock();
    // SAFETY: the number is used for two calls of fcntl alone, which fail for one that is not open.
    let borrowed: BorrowedFd<'_> = unsafe { BorrowedFd::borrow_raw(number) };
    if fcntl_getfd(borrowed.as_fd())?.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::other("was opened by this process, not inherited"));
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open and no value owns it: this process opens none without FD_CLOEXEC, which it had not; it has
    // it from now on, so that nobody takes it a second time.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
