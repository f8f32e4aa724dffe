//! Tells what a descriptor is. A name proves nothing (any file may be called `/dmabuf:x`): the type of the file system
//! that it lives on does, which only the kernel can set.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags, SealFlags, SeekFrom};
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

fn kind(file: BorrowedFd<'_>) -> Result<BufferKind, BufferError> {
    let refused = |kind| Err(BufferError::Kind { kind });
    let file_type = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
    let file_system = rustix::fs::fstatfs(file)?.f_type as u64;
    match file_system {
        DMA_BUF_MAGIC => return Ok(BufferKind::DmaBuf),
        TMPFS_MAGIC if file_type == FileType::RegularFile => return Ok(BufferKind::SharedMemory),
        HUGETLBFS_MAGIC => return refused("memfd of huge pages"),
        _ => {}
    }
    refused(match file_type {
        FileType::RegularFile => "file on a disk",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "anonymous kernel file (an eventfd, a sync file or alike)",
    })
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
        refused(std::fs::File::open("/dev/null").expect("null").into(), "character device");
        refused(std::fs::File::open("/proc").expect("proc").into(), "directory");
        refused(std::fs::File::open("/proc/self/maps").expect("maps").into(), "disk");
    }
}
