//! A host buffer: one descriptor, what it is, how large, and what may be done with it.
//! The descriptor closes here and nowhere else.

mod classify;
mod closer;
pub(crate) mod read;

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

pub use classify::BufferError;
pub(crate) use closer::{CLOSING, Closer};
pub use read::ReadError;

pub use crate::seams::BufferKind;

use crate::limits::Charge;
use crate::seams::{LocalFuture, Protection};
use crate::sys::ring;

/// What the descriptor's mode and the file's seals allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Shared writable mappings are possible.
    ReadWrite,
    /// Opened read-only, or sealed against writing.
    ReadOnly,
}

/// A host buffer that can be mapped by a CPU.
#[derive(Debug)]
pub struct HostBuffer {
    file: OwnedFd,
    kind: BufferKind,
    len: u64,
    access: Access,
}

/// From this size on the last close of a file is left to the ring's workers: freeing its pages takes the kernel about
/// 0.2 ms a MiB (186 to 236 ms were seen for 1 GiB).
const CLOSE_ELSEWHERE: u64 = 1 << 20;

impl HostBuffer {
    /// Takes a descriptor and finds out what it is, from the kernel and not from a name.
    ///
    /// # Errors
    /// [`BufferError`] names the kind of what cannot be mapped; the descriptor is closed then.
    pub fn from_fd(file: OwnedFd) -> Result<Self, BufferError> {
        let found = classify::classify(file.as_fd())?;
        Ok(Self::new(file, found))
    }

    /// The same for a descriptor that somebody else has sent. One that is refused comes back, to be closed by a [`Closer`].
    pub(crate) fn recognise(file: OwnedFd) -> Result<Self, (BufferError, OwnedFd)> {
        match classify::classify(file.as_fd()) {
            Ok(found) => Ok(Self::new(file, found)),
            Err(error) => Err((error, file)),
        }
    }

    /// New shared memory, whose size nobody can change.
    pub(crate) fn allocate(len: u64) -> std::io::Result<Self> {
        let file = memfd_create("virtio-gpu-image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, len)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, kind: BufferKind::SharedMemory, len, access: Access::ReadWrite })
    }

    fn new(file: OwnedFd, found: classify::Found) -> Self {
        Self { file, kind: found.kind, len: found.len, access: found.access }
    }

    /// The same buffer under a descriptor of its own.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        let Self { file, kind, len, access } = self;
        Ok(Self { file: file.try_clone()?, kind: *kind, len: *len, access: *access })
    }

    /// Closes the descriptor: at once where that is cheap, else on a worker of the ring, which the future waits for.
    pub(crate) fn close(self) -> Option<LocalFuture<()>> {
        // Another owner may have made it larger since.
        let len = self.current_len().map_or(u64::MAX, |len| len.max(self.len));
        (len >= CLOSE_ELSEWHERE).then(|| close_elsewhere(self.file))
    }

    /// A buffer that claims to be something it may not be: the stand-in for files that a test machine lacks.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn stand_in(file: OwnedFd, kind: BufferKind, len: u64, access: Access) -> Self {
        Self { file, kind, len, access }
    }

    /// What kind of file it is.
    #[must_use]
    pub fn kind(&self) -> BufferKind {
        self.kind
    }

    /// Its size in bytes, as the kernel said when the buffer was taken.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty file is no buffer")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What its mode and seals allow.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// How it is laid into the window: a buffer that must not be written is mapped as a private copy.
    pub(crate) fn protection(&self) -> Protection {
        match self.access {
            Access::ReadWrite => Protection::ReadWrite,
            Access::ReadOnly => Protection::PrivateCopy,
        }
    }

    /// Its size at this moment: another owner may have truncated the file.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(crate) fn current_len(&self) -> std::io::Result<u64> {
        classify::length(self.file.as_fd(), self.kind)
    }
}

/// A buffer and its place in the quotas, given back when the descriptor has been closed.
#[derive(Debug)]
pub(crate) struct HeldBuffer {
    buffer: HostBuffer,
    fd: Charge,
    /// Of memory that the device has allocated for it.
    bytes: Option<Charge>,
}

/// Closes a descriptor on a worker of the ring. One that reports an error has been closed all the same.
fn close_elsewhere(file: OwnedFd) -> LocalFuture<()> {
    let closing = ring::close(file);
    Box::pin(async { drop(closing.await) })
}

impl HeldBuffer {
    pub(crate) fn new(buffer: HostBuffer, fd: Charge) -> Self {
        Self { buffer, fd, bytes: None }
    }

    /// Memory that the device has allocated.
    pub(crate) fn allocated(buffer: HostBuffer, fd: Charge, bytes: Charge) -> Self {
        Self { buffer, fd, bytes: Some(bytes) }
    }

    /// As [`HostBuffer::close`].
    pub(crate) fn close(self) -> Option<LocalFuture<()>> {
        let Self { buffer, fd, bytes } = self;
        let closing = buffer.close()?;
        Some(Box::pin(async move {
            closing.await;
            drop((fd, bytes));
        }))
    }
}

impl Deref for HeldBuffer {
    type Target = HostBuffer;

    fn deref(&self) -> &HostBuffer {
        &self.buffer
    }
}

impl AsFd for HostBuffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
