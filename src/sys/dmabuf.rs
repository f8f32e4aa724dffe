//! Ioctls of a dma-buf (`linux/dma-buf.h`): the brackets around the host's own access to its memory.
//! Without them a CPU that is not coherent with the exporting device reads stale bytes.
#![expect(unsafe_code, reason = "an ioctl's number and argument type are promised to the kernel here")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::ioctl::{Setter, Updater, ioctl, opcode};

/// `struct dma_buf_sync`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sync {
    flags: u64,
}

const SYNC_READ: u64 = 1;
const SYNC_WRITE: u64 = 2;
const SYNC_END: u64 = 1 << 2;

/// `DMA_BUF_IOCTL_SYNC`.
const IOCTL_SYNC: rustix::ioctl::Opcode = opcode::write::<Sync>(b'b', 0);

/// `struct dma_buf_export_sync_file`.
#[repr(C)]
struct ExportSyncFile {
    flags: u32,
    fd: i32,
}

/// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`.
const IOCTL_EXPORT_SYNC_FILE: rustix::ioctl::Opcode = opcode::read_write::<ExportSyncFile>(b'b', 2);

/// The writes that are pending at this moment: a file that becomes readable when they are done. Unlike a look at the dma-buf
/// itself it takes no lock that a driver may hold while it waits.
///
/// # Errors
/// `ENOTTY` before Linux 6.0 and for anything that is no dma-buf.
pub(crate) fn pending_writes(file: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let mut request = ExportSyncFile { flags: SYNC_READ as u32, fd: -1 };
    // SAFETY: the argument of EXPORT_SYNC_FILE is `struct dma_buf_export_sync_file`, which `ExportSyncFile` mirrors.
    let argument = unsafe { Updater::<IOCTL_EXPORT_SYNC_FILE, _>::new(&mut request) };
    // SAFETY: the opcode states the argument's size, and the argument holds no pointer.
    unsafe { ioctl(file, argument)? };
    if request.fd < 0 {
        return Err(rustix::io::Errno::BADF);
    }
    // SAFETY: the call succeeded, so `fd` was installed for it (close-on-exec) and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(request.fd) })
}

/// Opens a span of CPU access; waits for the exporter's pending writes.
///
/// # Errors
/// What the exporter answers; `ENOTTY` for anything that is no dma-buf.
pub(crate) fn begin_cpu_access(file: BorrowedFd<'_>, write: bool) -> rustix::io::Result<()> {
    sync(file, access(write))
}

/// Closes a span of CPU access.
///
/// # Errors
/// As [`begin_cpu_access`].
pub(crate) fn end_cpu_access(file: BorrowedFd<'_>, write: bool) -> rustix::io::Result<()> {
    sync(file, access(write) | SYNC_END)
}

fn access(write: bool) -> u64 {
    if write { SYNC_READ | SYNC_WRITE } else { SYNC_READ }
}

fn sync(file: BorrowedFd<'_>, flags: u64) -> rustix::io::Result<()> {
    loop {
        // SAFETY: DMA_BUF_IOCTL_SYNC reads one `struct dma_buf_sync`, which `Sync` repeats field by field.
        let argument = unsafe { Setter::<IOCTL_SYNC, Sync>::new(Sync { flags }) };
        // SAFETY: the argument lives for the call, and its opcode states its type and direction; a file that is no
        // dma-buf answers ENOTTY.
        match unsafe { ioctl(file, argument) } {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            answer => return answer,
        }
    }
}
