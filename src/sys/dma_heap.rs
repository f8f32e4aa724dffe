//! `/dev/dma_heap/*`: dma-bufs straight from a kernel allocator (`linux/dma-heap.h`).
#![expect(unsafe_code, reason = "DMA_HEAP_IOCTL_ALLOC has no safe wrapper")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::OFlags;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct dma_heap_allocation_data`
#[repr(C)]
struct Allocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

/// `DMA_HEAP_IOCTL_ALLOC`
const ALLOC: Opcode = opcode::read_write::<Allocation>(b'H', 0);

/// Allocates a zeroed dma-buf (close-on-exec, read-write) of `len` bytes, rounded up to the page.
///
/// # Errors
/// `INVAL` for a length of 0, `NOMEM` if the heap is exhausted, `NOTTY` if `heap` is not a dma-heap.
pub(crate) fn allocate(heap: BorrowedFd<'_>, len: u64) -> rustix::io::Result<OwnedFd> {
    let mut request = Allocation { len, fd: 0, fd_flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(), heap_flags: 0 };
    // SAFETY: the argument of ALLOC is `struct dma_heap_allocation_data`, which `Allocation` mirrors.
    let argument = unsafe { Updater::<ALLOC, _>::new(&mut request) };
    // SAFETY: the opcode states the argument's size, and the kernel reads and writes just that value; on
    // another file the opcode is unknown and answers NOTTY.
    unsafe { ioctl(heap, argument)? };
    let fd = RawFd::try_from(request.fd).map_err(|_| rustix::io::Errno::BADF)?;
    // SAFETY: the call succeeded, so `fd` was installed for it and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_laid_out_as_in_the_kernel_header() {
        assert_eq!(size_of::<Allocation>(), 24);
        assert_eq!(ALLOC, 0xc018_4800);
    }

    #[test]
    fn a_device_of_another_kind_allocates_nothing() {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = allocate(null.as_fd(), 4096).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::NOTTY);
    }
}
