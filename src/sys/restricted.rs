//! A ring that performs the operations of the device alone: seccomp does not see what is asked of an io_uring, and a ring
//! opens files, connects sockets and sends as well as its process does.
#![expect(unsafe_code, reason = "the runtime hands out no handle to its ring, so the kernel is asked by number")]

use std::ffi::c_long;
use std::io;
use std::os::fd::RawFd;
use std::ptr;

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue};

/// The operations of [`ring`](super::ring), and what the runtime needs to end some of them when it is dropped.
pub(crate) const OPERATIONS: [u8; 4] =
    [opcode::Madvise::CODE, opcode::Close::CODE, opcode::Write::CODE, opcode::AsyncCancel::CODE];

/// `IORING_REGISTER_RESTRICTIONS` of `linux/io_uring.h`.
const REGISTER_RESTRICTIONS: c_long = 11;
/// `IORING_REGISTER_ENABLE_RINGS`.
const REGISTER_ENABLE_RINGS: c_long = 12;
/// `IORING_REGISTER_PROBE`.
#[cfg(feature = "vhost-user")]
const REGISTER_PROBE: c_long = 8;

/// Nothing may be registered with the ring, and operations carry no flag but the one for a worker thread.
fn restrictions() -> [Restriction; OPERATIONS.len() + 1] {
    let [advise, close, write, cancel] = OPERATIONS.map(Restriction::sqe_op);
    [advise, close, write, cancel, Restriction::sqe_flags_allowed(squeue::Flags::ASYNC.bits())]
}

/// A ring that is thrown away, and whether it could be restricted: not before Linux 5.10.
///
/// # Errors
/// Where the host has no ring for this process at all.
pub(super) fn try_out(entries: u32) -> io::Result<(IoUring, bool)> {
    if let Ok(ring) = disabled().build(entries)
        && ring.submitter().register_restrictions(&mut restrictions()).is_ok()
        && ring.submitter().register_enable_rings().is_ok()
    {
        return Ok((ring, true));
    }
    Ok((IoUring::new(entries)?, false))
}

/// Makes rings that take no operations until they are enabled.
pub(super) fn disabled() -> io_uring::Builder<squeue::Entry, cqueue::Entry> {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled();
    builder
}

/// Restricts the one ring of this process that is disabled, and enables it. Rings whose number is not below `end` are
/// not seen.
///
/// # Errors
/// There is none, or another one besides: nothing was done then. Or what the kernel answers.
pub(super) fn restrict_the_disabled(end: RawFd) -> io::Result<()> {
    let mut disabled = (0..end).filter(|&number| is_disabled(number));
    let (Some(ring), None) = (disabled.next(), disabled.next()) else {
        return Err(io::Error::other("not one ring alone is disabled"));
    };
    let restrictions = restrictions();
    register(ring, REGISTER_RESTRICTIONS, Some(&restrictions))?;
    register(ring, REGISTER_ENABLE_RINGS, None)
}

/// How many rings of this process there are, and how many of these refuse to have more registered with them. Only
/// numbers below `end` are looked at.
#[cfg(feature = "vhost-user")]
pub(crate) fn rings(end: RawFd) -> (usize, usize) {
    let answers = (0..end).filter_map(|number| register(number, REGISTER_PROBE, None).err()?.raw_os_error());
    answers.fold((0, 0), |(rings, restricted), errno| match errno {
        libc::EINVAL => (rings + 1, restricted),
        libc::EACCES => (rings + 1, restricted + 1),
        _ => (rings, restricted),
    })
}

/// Asks the kernel, which answers `EBADFD` before anything else where a ring is disabled.
fn is_disabled(number: RawFd) -> bool {
    let none: c_long = 0;
    // SAFETY: no entry is submitted and none waited for, no signal mask is given: whatever the number stands for, nothing
    // happens to it, and no memory is read or written.
    let answer = unsafe {
        libc::syscall(libc::SYS_io_uring_enter, c_long::from(number), none, none, none, ptr::null::<u8>(), none)
    };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EBADFD)
}

/// `io_uring_register`, with restrictions or without an argument.
fn register(number: RawFd, what: c_long, restrictions: Option<&[Restriction]>) -> io::Result<()> {
    let (address, count) = restrictions.map_or((ptr::null(), 0), |all| (all.as_ptr(), all.len()));
    // SAFETY: `Restriction` is `struct io_uring_restriction`, of which the kernel reads `count`, and the slice outlives the call.
    // Without one these three operations touch no memory, and a number that is no ring's is refused.
    let answer =
        unsafe { libc::syscall(libc::SYS_io_uring_register, c_long::from(number), what, address, count as c_long) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
