//! Buffers in memory whose contents this process draws: sealed memfds, the same pages as dma-bufs (udmabuf),
//! and dma-bufs from the kernel's system heap. They need no hardware, so they are what a test machine has.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, OFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::io::Errno;

use super::picture::{Picture, PictureSize};
use super::{Format, Frame, HandleKind, Refusal, Source, SourceError, open_device, with_cpu_access};
use crate::sys::mapping::{MappingAccess, SharedMapping};
use crate::sys::{dma_heap, udmabuf};

const UDMABUF_DEVICE: &str = "/dev/udmabuf";
const HEAP_DEVICE: &str = "/dev/dma_heap/system";

/// A source that draws the moving test picture into buffers of one memory kind, one after the other.
#[derive(Debug)]
pub struct MemorySource {
    name: &'static str,
    handle: HandleKind,
    format: Format,
    buffers: Vec<MemoryBuffer>,
    picture: Picture,
    /// The frame is drawn here and then copied in one go: shared pages cannot be borrowed.
    canvas: Vec<u8>,
    next_sequence: u64,
}

#[derive(Debug)]
struct MemoryBuffer {
    mapping: SharedMapping,
    fd: OwnedFd,
    len: u64,
}

/// A source of memfds that carry `F_SEAL_SHRINK` and `F_SEAL_GROW`.
///
/// # Errors
/// [`SourceError::Memory`] if the kernel has no memory or no descriptor left.
pub fn memfd(size: PictureSize, buffers: usize) -> Result<MemorySource, SourceError> {
    MemorySource::new("memfd", HandleKind::Memfd, size, buffers, sealed_memfd)
}

/// A source of dma-bufs that `/dev/udmabuf` makes of memfds; the memfds are closed again, since the dma-bufs
/// keep the pages.
///
/// # Errors
/// [`SourceError::CannotOpen`] without that device, [`SourceError::Memory`] if it refuses (it has a limit of
/// 64 MiB a buffer unless its module was told otherwise).
pub fn udmabuf(size: PictureSize, buffers: usize) -> Result<MemorySource, SourceError> {
    let device = open_device(Path::new(UDMABUF_DEVICE), OFlags::empty())?;
    MemorySource::new("udmabuf", HandleKind::DmaBuf, size, buffers, |len| {
        let pages = sealed_memfd(len)?;
        udmabuf::create(device.as_fd(), pages.as_fd(), len).map_err(|errno| ("UDMABUF_CREATE", errno))
    })
}

/// A source of dma-bufs from `/dev/dma_heap/system`.
///
/// # Errors
/// [`SourceError::CannotOpen`] without that device, [`SourceError::Memory`] if the heap is exhausted.
pub fn dma_heap(size: PictureSize, buffers: usize) -> Result<MemorySource, SourceError> {
    let heap = open_device(Path::new(HEAP_DEVICE), OFlags::empty())?;
    MemorySource::new("dma-heap", HandleKind::DmaBuf, size, buffers, |len| {
        dma_heap::allocate(heap.as_fd(), len).map_err(|errno| ("DMA_HEAP_IOCTL_ALLOC", errno))
    })
}

fn sealed_memfd(len: u64) -> Result<OwnedFd, Refusal> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = memfd_create("virtio-gpu-uring-source", flags).map_err(|e| ("memfd_create", e))?;
    ftruncate(&memfd, len).map_err(|e| ("ftruncate", e))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW;
    fcntl_add_seals(&memfd, seals).map_err(|e| ("F_ADD_SEALS", e))?;
    Ok(memfd)
}

impl MemorySource {
    fn new(
        name: &'static str,
        handle: HandleKind,
        size: PictureSize,
        buffers: usize,
        allocate: impl Fn(u64) -> Result<OwnedFd, Refusal>,
    ) -> Result<MemorySource, SourceError> {
        let page = rustix::param::page_size() as u64;
        let len = size.bytes().next_multiple_of(page);
        let refused = |(step, errno)| SourceError::Memory { source_name: name, size: len, step, errno };
        let buffers =
            (0..buffers).map(|_| MemoryBuffer::new(allocate(len)?)).collect::<Result<_, Refusal>>().map_err(refused)?;
        Ok(MemorySource {
            name,
            handle,
            format: Format { width: size.width(), height: size.height(), stride: size.stride(), fourcc: *b"XR24" },
            buffers,
            picture: Picture::new(size),
            canvas: vec![0; len as usize],
            next_sequence: 0,
        })
    }

    fn get(&self, index: usize) -> Result<&MemoryBuffer, SourceError> {
        self.buffers.get(index).ok_or(SourceError::NoSuchBuffer { index, count: self.buffers.len() })
    }

    fn failed(&self, len: u64, (step, errno): Refusal) -> SourceError {
        SourceError::Memory { source_name: self.name, size: len, step, errno }
    }
}

impl MemoryBuffer {
    fn new(fd: OwnedFd) -> Result<MemoryBuffer, Refusal> {
        let len = seek(&fd, SeekFrom::End(0)).map_err(|e| ("lseek", e))?;
        let mapped = usize::try_from(len).map_err(|_| ("mmap", Errno::NOMEM))?;
        let mapping = SharedMapping::new(fd.as_fd(), mapped, MappingAccess::ReadWrite).map_err(|e| ("mmap", e))?;
        Ok(MemoryBuffer { mapping, fd, len })
    }
}

impl Source for MemorySource {
    fn name(&self) -> &'static str {
        self.name
    }

    fn handle(&self) -> HandleKind {
        self.handle
    }

    fn format(&self) -> Format {
        self.format
    }

    fn buffers(&self) -> usize {
        self.buffers.len()
    }

    fn buffer(&self, index: usize) -> BorrowedFd<'_> {
        self.buffers[index].fd.as_fd()
    }

    fn len(&self, index: usize) -> u64 {
        self.buffers[index].len
    }

    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        let sequence = self.next_sequence;
        let index = (sequence % self.buffers.len() as u64) as usize;
        self.picture.draw(sequence, &mut self.canvas);
        let buffer = &self.buffers[index];
        let copy = || buffer.mapping.write(0, &self.canvas);
        with_cpu_access(self.handle, buffer.fd.as_fd(), true, copy)
            .map_err(|refusal| self.failed(buffer.len, refusal))?;
        self.next_sequence += 1;
        Ok(Frame { index, sequence })
    }

    fn read(&self, index: usize, out: &mut Vec<u8>) -> Result<(), SourceError> {
        let buffer = self.get(index)?;
        out.resize(buffer.mapping.len(), 0);
        let copy = || buffer.mapping.read(0, out);
        with_cpu_access(self.handle, buffer.fd.as_fd(), false, copy).map_err(|refusal| self.failed(buffer.len, refusal))
    }

    fn release(&mut self, index: usize) -> Result<(), SourceError> {
        self.get(index).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::linux::fs::MetadataExt;

    use rustix::fs::{fcntl_get_seals, fstat};
    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    type Make = fn(PictureSize, usize) -> Result<MemorySource, SourceError>;

    /// The kinds that this machine has; what it lacks is told, and tested where it is.
    fn sources(size: PictureSize, buffers: usize) -> Vec<MemorySource> {
        let makers: [Make; 3] = [memfd, udmabuf, dma_heap];
        let mut made = Vec::new();
        for make in makers {
            match make(size, buffers) {
                Ok(source) => made.push(source),
                Err(SourceError::CannotOpen { path, errno }) => {
                    eprintln!("skipped: {}: {errno}", path.display());
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(!made.is_empty());
        made
    }

    fn small() -> PictureSize {
        PictureSize::new(100, 33).unwrap()
    }

    #[test]
    fn a_frame_is_drawn_into_its_own_buffer_and_into_no_other() {
        for mut source in sources(small(), 3) {
            let mut contents = [Vec::new(), Vec::new(), Vec::new()];
            for sequence in 0..7 {
                let frame = source.next_frame().unwrap();
                let index = (sequence % 3) as usize;
                assert_eq!(frame, Frame { index, sequence });
                for (other, before) in contents.iter_mut().enumerate() {
                    let mut now = Vec::new();
                    source.read(other, &mut now).unwrap();
                    assert_eq!(now != *before, other == index || sequence == 0);
                    *before = now;
                }
                source.release(index).unwrap();
            }
        }
    }

    #[test]
    fn what_another_mapping_shows_is_what_the_source_reads() {
        for mut source in sources(PictureSize::default(), 1) {
            source.next_frame().unwrap();
            let mut read = Vec::new();
            source.read(0, &mut read).unwrap();
            assert_eq!(read.len() as u64, source.len(0));
            let elsewhere = SharedMapping::new(source.buffer(0), read.len(), MappingAccess::Read).unwrap();
            let mut seen = vec![0; read.len()];
            elsewhere.read(0, &mut seen).unwrap();
            assert!(read == seen);
            assert!(read.chunks_exact(4).all(|pixel| pixel[0] != 0));
            assert_eq!(source.frame_rgb(&read).len(), 640 * 360 * 3);
        }
    }

    #[test]
    fn a_buffer_is_whole_pages_that_nobody_can_take_away() {
        for source in sources(small(), 1) {
            assert_eq!(source.len(0), 16_384);
            assert!(fcntl_getfd(source.buffer(0)).unwrap().contains(FdFlags::CLOEXEC));
            if source.handle() == HandleKind::Memfd {
                let seals = fcntl_get_seals(source.buffer(0)).unwrap();
                assert_eq!(seals, SealFlags::SHRINK | SealFlags::GROW);
            }
        }
    }

    #[test]
    fn a_buffer_that_is_not_there_is_an_error() {
        for mut source in sources(small(), 2) {
            let read = source.read(2, &mut Vec::new()).unwrap_err();
            assert_eq!(read.to_string(), "there is no buffer 2: the source has 2");
            assert!(source.release(usize::MAX).is_err());
        }
    }

    /// Descriptors and mappings of this process that show one file.
    fn traces(device: u64, inode: u64) -> usize {
        let descriptors = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::metadata(entry.ok()?.path()).ok())
            .filter(|file| (file.st_dev(), file.st_ino()) == (device, inode))
            .count();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let inode = inode.to_string();
        let mappings = maps
            .lines()
            .filter(|line| line.contains("virtio-gpu-uring-source") || line.contains("/dmabuf"))
            .filter(|line| line.split_whitespace().nth(4) == Some(&inode))
            .count();
        descriptors + mappings
    }

    #[test]
    fn a_dropped_source_leaves_no_descriptor_and_no_mapping() {
        for source in sources(small(), 1) {
            let file = fstat(source.buffer(0)).unwrap();
            assert_eq!(traces(file.st_dev, file.st_ino), 2);
            drop(source);
            assert_eq!(traces(file.st_dev, file.st_ino), 0);
        }
    }
}
