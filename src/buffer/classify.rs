//! Tells what a descriptor is. A name proves nothing (any file may be called `/dmabuf:x`): the type of the file system
//! that it lives on does, which only the kernel can set.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;

use super::{Access, BufferKind};

/// `DMA_BUF_MAGIC` (`linux/magic.h`).
const DMA_BUF_MAGIC: u64 = 0x444d_4142;
/// `TMPFS_MAGIC`: memfds and files in `/dev/shm`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `HUGETLBFS_MAGIC`: memfds of huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Why a descriptor is not a buffer that could be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The file is of another kind.
    #[error("a {kind} is not a buffer that can be mapped")]
    Kind {
        /// In plain words.
        kind: &'static str,
    },
    /// The descriptor was opened for writing only, which no mapping can be made of.
    #[error("the {kind:?} buffer is open for writing only and cannot be mapped")]
    WriteOnly {
        /// What kind of buffer it is.
        kind: BufferKind,
    },
    /// The file has no bytes.
    #[error("the {kind:?} buffer is empty")]
    Empty {
        /// What kind of buffer it is.
        kind: BufferKind,
    },
    /// The kernel would not tell.
    #[error("the kernel refused to describe the descriptor: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for BufferError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

pub(super) struct Found {
    pub(super) kind: BufferKind,
    pub(super) len: u64,
    pub(super) access: Access,
}

pub(super) fn classify(file: BorrowedFd<'_>) -> Result<Found, BufferError> {
    let kind = kind(file)?;
    let mode = rustix::fs::fcntl_getfl(file)? & OFlags::ACCMODE;
    if mode == OFlags::WRONLY {
        return Err(BufferError::WriteOnly { kind });
    }
    let len = length(file, kind)?;
    if len == 0 {
        return Err(BufferError::Empty { kind });
    }
    let sealed = kind == BufferKind::SharedMemory && sealed_against_writing(file);
    let access = if mode == OFlags::RDONLY || sealed { Access::ReadOnly } else { Access::ReadWrite };
    Ok(Found { kind, len, access })
}

/// Asks at first only what the kernel answers by itself: a file of a FUSE daemon would have the device wait for the daemon.
fn kind(file: BorrowedFd<'_>) -> Result<BufferKind, BufferError> {
    let kernel_memory = rustix::fs::fcntl_get_seals(file).is_ok() || is_named_as_a_dma_buf(file);
    if !kernel_memory {
        return Err(BufferError::Kind { kind: kind_by_link(file) });
    }
    match rustix::fs::fstatfs(file)?.f_type as u64 {
        DMA_BUF_MAGIC => Ok(BufferKind::DmaBuf),
        TMPFS_MAGIC => Ok(BufferKind::SharedMemory),
        HUGETLBFS_MAGIC => Err(BufferError::Kind { kind: "memfd of huge pages" }),
        _ => Err(BufferError::Kind { kind: kind_by_link(file) }),
    }
}

/// Whether it may be a dma-buf: only these say who has exported them (`Documentation/filesystems/proc.rst`). That is asked
/// of what has the name alone, because an epoll's owner can make whoever asks for it wait.
fn is_named_as_a_dma_buf(file: BorrowedFd<'_>) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    name.is_ok_and(|name| name.to_string_lossy().starts_with("/dmabuf:")) && {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()));
        info.is_ok_and(|info| info.lines().any(|line| line.starts_with("exp_name:")))
    }
}

/// For the message alone: what decides is above.
fn kind_by_link(file: BorrowedFd<'_>) -> &'static str {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let link = link.as_deref().map(|link| link.to_string_lossy());
    match link.as_deref().unwrap_or_default().split([':', '/']).next() {
        Some("socket") => "socket",
        Some("pipe") => "pipe",
        Some("anon_inode") => "anonymous kernel file (an eventfd, a sync file or alike)",
        _ => "file of a disk, a device or another file system",
    }
}

/// Size in bytes: a dma-buf tells it by seeking to its end, shared memory by `fstat`.
pub(super) fn length(file: BorrowedFd<'_>, kind: BufferKind) -> io::Result<u64> {
    Ok(match kind {
        BufferKind::DmaBuf => rustix::fs::seek(file, SeekFrom::End(0))?,
        BufferKind::SharedMemory => u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0),
    })
}

/// Files in `/dev/shm` take no seals and answer an error, which means none.
fn sealed_against_writing(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::fs::{MemfdFlags, Mode, ftruncate, memfd_create};

    use super::*;

    fn memfd(len: u64) -> OwnedFd {
        let file = memfd_create("buffer", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memfd");
        ftruncate(&file, len).expect("size");
        file
    }

    fn reopen(file: &OwnedFd, flags: OFlags) -> OwnedFd {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).expect("reopened")
    }

    #[test]
    fn a_memfd_is_shared_memory_of_its_own_size() {
        let found = classify(memfd(2312).as_fd()).expect("a buffer");
        assert_eq!((found.kind, found.len, found.access), (BufferKind::SharedMemory, 2312, Access::ReadWrite));
    }

    #[test]
    fn a_sealed_or_read_only_memfd_is_never_taken_for_writable() {
        for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
            let file = memfd(4096);
            rustix::fs::fcntl_add_seals(&file, seal).expect("sealed");
            assert_eq!(classify(file.as_fd()).expect("a buffer").access, Access::ReadOnly);
        }
        let reader = reopen(&memfd(4096), OFlags::RDONLY);
        assert_eq!(classify(reader.as_fd()).expect("a buffer").access, Access::ReadOnly);
    }

    #[test]
    fn a_write_only_or_empty_memfd_is_refused() {
        let writer = reopen(&memfd(4096), OFlags::WRONLY);
        assert!(matches!(classify(writer.as_fd()), Err(BufferError::WriteOnly { .. })));
        assert!(matches!(classify(memfd(0).as_fd()), Err(BufferError::Empty { .. })));
    }

    #[test]
    fn a_file_named_like_a_dma_buf_is_not_taken_for_one() {
        let file = memfd_create("/dmabuf:x", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, 4096).expect("size");
        assert_eq!(classify(file.as_fd()).expect("a buffer").kind, BufferKind::SharedMemory);
    }

    #[test]
    fn what_is_no_buffer_is_refused_by_the_name_of_its_kind() {
        let refused = |file: OwnedFd, name: &str| {
            let error = classify(file.as_fd()).err().expect("refused").to_string();
            assert!(error.contains(name), "{error}");
        };
        let (left, _right) = std::os::unix::net::UnixStream::pair().expect("sockets");
        refused(left.into(), "socket");
        refused(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd"), "anonymous");
        for path in ["/dev/null", "/proc", "/proc/self/maps"] {
            refused(std::fs::File::open(path).expect("a file").into(), "disk");
        }
    }
}
