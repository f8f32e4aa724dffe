//! What a descriptor of a host service is to the guest: a buffer, an eventfd, a pipe to write, or nothing that it could use.
//! The kernel's own name of an anonymous file tells; no file of a file system can have one like it.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::OFlags;

use crate::buffer::{BufferError, HostBuffer};

/// A descriptor that was recognised.
pub(crate) enum Received {
    Buffer(HostBuffer),
    Event(OwnedFd),
    WritePipe(OwnedFd),
}

/// One that is of no use to a guest, to be closed.
pub(crate) struct Odd {
    pub(crate) error: BufferError,
    pub(crate) file: OwnedFd,
}

impl Received {
    /// Finds out, without ever asking a file system that could take its time.
    pub(crate) fn recognise(file: OwnedFd) -> Result<Self, Odd> {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let name = name.as_deref().map(|name| name.to_string_lossy());
        match name.as_deref() {
            Ok("anon_inode:[eventfd]") => Ok(Self::Event(file)),
            Ok(name) if name.starts_with("pipe:[") && is_for_writing(&file) => Ok(Self::WritePipe(file)),
            _ => HostBuffer::recognise(file).map(Self::Buffer).map_err(|(error, file)| Odd { error, file }),
        }
    }
}

fn is_for_writing(file: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::WRONLY)
}
