//! `/dev/udmabuf`: turns pages of a memfd into a dma-buf, so that a machine without a camera or a graphics
//! card can have real ones (`linux/udmabuf.h`).
#![expect(unsafe_code, reason = "UDMABUF_CREATE has no safe wrapper")]

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// `UDMABUF_FLAGS_CLOEXEC`
const CLOEXEC: u32 = 1;

/// `struct udmabuf_create`
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

// SAFETY: UDMABUF_CREATE is `_IOW('u', 0x42, struct udmabuf_create)`: the kernel reads one `Create`, which is
// what `as_ptr` points at, writes nothing, and returns a new descriptor, which is what `output_from_ptr` takes.
unsafe impl Ioctl for Create {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<Create>(b'u', 0x42)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: by the contract of this function `out` is what a successful UDMABUF_CREATE returned: a
        // descriptor that was installed for this call and that nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// Makes a dma-buf (close-on-exec, read-write) of the first `size` bytes of `memfd`; it keeps the pages alive
/// when `memfd` is closed.
///
/// # Errors
/// `INVAL` if `size` is 0, no whole number of pages, more than the file or the module's `size_limit_mb` holds,
/// or if `memfd` lacks `F_SEAL_SHRINK` or carries `F_SEAL_WRITE`; `BADFD` if it is not a memfd; `NOTTY` if
/// `device` is not `/dev/udmabuf`.
pub(crate) fn create(device: BorrowedFd<'_>, memfd: BorrowedFd<'_>, size: u64) -> rustix::io::Result<OwnedFd> {
    let memfd = u32::try_from(memfd.as_raw_fd()).map_err(|_| rustix::io::Errno::BADF)?;
    let request = Create { memfd, flags: CLOEXEC, offset: 0, size };
    // SAFETY: the contract of `Ioctl` is met by the impl above. On a file that is not /dev/udmabuf the opcode is
    // unknown (its group, number and size are in it), so the answer is NOTTY.
    unsafe { ioctl(device, request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_laid_out_as_in_the_kernel_header() {
        assert_eq!(size_of::<Create>(), 24);
        assert_eq!(opcode::write::<Create>(b'u', 0x42), 0x4018_7542);
    }

    #[test]
    fn a_device_of_another_kind_makes_no_dma_buf() {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = create(null.as_fd(), null.as_fd(), 4096).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::NOTTY);
    }
}
