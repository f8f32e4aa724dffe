//! Dma-bufs of every exporter that the lab's machine has, in every mode that each exports, and the owner's own way to
//! their bytes, which goes through no dma-buf where the exporter has another.
#![expect(unsafe_code, reason = "ioctls of four exporters, and mmap, have no safe form")]

use std::cell::Cell;
use std::ffi::c_void;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::VolatileSlice;

use crate::vgem::{Vgem, VgemBuffer};

/// The camera of the lab.
pub(crate) const CAMERA: &str = "/dev/video0";

/// Who makes a dma-buf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exporter {
    Udmabuf,
    DmaHeap,
    Camera,
    Vgem,
}

/// How the dma-buf's descriptor may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Export {
    ReadWrite,
    ReadOnly,
    WriteOnly,
}

impl Export {
    pub(crate) const ALL: [Self; 3] = [Self::ReadWrite, Self::ReadOnly, Self::WriteOnly];

    fn flags(self) -> u32 {
        let mode = match self {
            Self::ReadWrite => OFlags::RDWR,
            Self::ReadOnly => OFlags::RDONLY,
            Self::WriteOnly => OFlags::WRONLY,
        };
        (mode | OFlags::CLOEXEC).bits()
    }
}

/// A dma-buf, and its owner.
pub(crate) struct DmaBuf {
    pub(crate) file: OwnedFd,
    /// As `lseek` tells it.
    pub(crate) len: u64,
    owner: Owner,
    /// What has to stay open for the owner to be one.
    _device: Option<OwnedFd>,
}

/// How the owner reaches the bytes.
enum Owner {
    Mapping(Mapping),
    Vgem(VgemBuffer),
    /// Not at all: it has nothing but a dma-buf that cannot be written, so that all its bytes are zero.
    Nobody,
}

impl Exporter {
    pub(crate) const ALL: [Self; 4] = [Self::Udmabuf, Self::DmaHeap, Self::Camera, Self::Vgem];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Udmabuf => "udmabuf",
            Self::DmaHeap => "dma-heap",
            Self::Camera => "v4l2",
            Self::Vgem => "vgem",
        }
    }

    /// Makes a dma-buf of `len` bytes (a camera's are as large as its frames). Nothing may be missing in the lab.
    ///
    /// # Errors
    /// What the exporter answers to a mode that it does not know.
    pub(crate) fn export(self, len: u64, export: Export) -> Result<DmaBuf> {
        match self {
            Self::Udmabuf => udmabuf(len, export),
            Self::DmaHeap => dma_heap(len, export),
            Self::Camera => Ok(camera(1, export)?.remove(0)),
            Self::Vgem => vgem(len, export),
        }
    }

    /// One that can be written.
    pub(crate) fn writable(self, len: u64) -> DmaBuf {
        self.export(len, Export::ReadWrite).unwrap_or_else(|errno| panic!("{} of {len} bytes: {errno}", self.name()))
    }
}

impl DmaBuf {
    fn new(file: OwnedFd, owner: Owner, device: Option<OwnedFd>) -> Result<Self> {
        let len = seek(&file, SeekFrom::End(0))?;
        Ok(Self { file, len, owner, _device: device })
    }

    /// Writes bytes as the owner that are never zero and differ from page to page and from `turn` to `turn`; none where
    /// there is nobody to write.
    pub(crate) fn paint(&self, turn: u8) {
        match &self.owner {
            Owner::Mapping(mapping) => mapping.write(0, &pattern(self.len, turn)),
            Owner::Vgem(buffer) => buffer.fill(turn | 0x80),
            Owner::Nobody => {}
        }
    }

    /// All bytes, as the owner sees them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match &self.owner {
            Owner::Mapping(mapping) => mapping.read(0, self.len as usize),
            Owner::Vgem(buffer) => buffer.contents(),
            Owner::Nobody => vec![0; self.len as usize],
        }
    }
}

/// Bytes that are never zero, with a different run for each page and turn.
pub(crate) fn pattern(len: u64, turn: u8) -> Vec<u8> {
    let run: Vec<u8> = (1..=251).cycle().take(4096 + 251).collect();
    let page = |page: u64| &run[((page * 13 + u64::from(turn) * 29) % 251) as usize..][..4096];
    let mut bytes: Vec<u8> = Vec::with_capacity(len as usize);
    (0..len / 4096).for_each(|at| bytes.extend_from_slice(page(at)));
    bytes
}

fn open(path: &str) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty()).unwrap_or_else(|errno| panic!("the lab has no {path}: {errno}"))
}

/// `struct udmabuf_create` (`linux/udmabuf.h`).
#[repr(C)]
struct CreateUdmabuf {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

// SAFETY: UDMABUF_CREATE reads one `struct udmabuf_create`, which `as_ptr` points at, writes nothing, and returns a new
// descriptor, which is what `output_from_ptr` takes.
unsafe impl Ioctl for CreateUdmabuf {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<Self>(b'u', 0x42)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<OwnedFd> {
        // SAFETY: by this function's contract `out` is what the call returned: a descriptor that nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// udmabuf exports for reading and writing alone; its owner is the memfd that it was made of.
fn udmabuf(len: u64, export: Export) -> Result<DmaBuf> {
    if export != Export::ReadWrite {
        return Err(Errno::OPNOTSUPP);
    }
    let memfd = memfd_create("lab-udmabuf", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memfd, len)?;
    fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW)?;
    let request = CreateUdmabuf { memfd: memfd.as_raw_fd() as u32, flags: 1, offset: 0, size: len };
    let device = open("/dev/udmabuf");
    // SAFETY: the contract of `Ioctl` is met by the impl above; another file would answer ENOTTY.
    let file = unsafe { ioctl(&device, request) }?;
    let owner = Owner::Mapping(Mapping::new(memfd.as_fd(), 0, len)?);
    DmaBuf::new(file, owner, Some(memfd))
}

/// `struct dma_heap_allocation_data` (`linux/dma-heap.h`).
#[repr(C)]
struct Allocate {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

/// A heap's buffer has no owner but who holds the dma-buf.
fn dma_heap(len: u64, export: Export) -> Result<DmaBuf> {
    const ALLOC: Opcode = opcode::read_write::<Allocate>(b'H', 0);
    let mut request = Allocate { len, fd: 0, fd_flags: export.flags(), heap_flags: 0 };
    // SAFETY: the argument is `struct dma_heap_allocation_data`, which `Allocate` mirrors.
    let argument = unsafe { Updater::<ALLOC, _>::new(&mut request) };
    // SAFETY: the opcode states the argument's size, and the kernel reads and writes just that.
    unsafe { ioctl(open("/dev/dma_heap/system"), argument) }?;
    // SAFETY: the call succeeded, so the descriptor was installed for it and nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(request.fd as i32) };
    let owner = match export {
        Export::ReadWrite => Owner::Mapping(Mapping::new(file.as_fd(), 0, len)?),
        Export::ReadOnly | Export::WriteOnly => Owner::Nobody,
    };
    DmaBuf::new(file, owner, None)
}

/// `struct v4l2_requestbuffers` (`linux/videodev2.h`).
#[repr(C)]
#[derive(Default)]
struct RequestBuffers {
    count: u32,
    kind: u32,
    memory: u32,
    rest: [u32; 2],
}

/// `struct v4l2_buffer`; `place` is the union `m`.
#[repr(C)]
#[derive(Default)]
struct Buffer {
    index: u32,
    kind: u32,
    before: [u32; 3],
    timestamp: [i64; 2],
    timecode: [u32; 5],
    memory: u32,
    place: usize,
    length: u32,
    rest: [u32; 2],
}

/// `struct v4l2_exportbuffer`.
#[repr(C)]
#[derive(Default)]
struct ExportBuffer {
    kind: u32,
    index: u32,
    plane: u32,
    flags: u32,
    fd: i32,
    rest: [u32; 11],
}

const REQBUFS: Opcode = opcode::read_write::<RequestBuffers>(b'V', 8);
const QUERYBUF: Opcode = opcode::read_write::<Buffer>(b'V', 9);
const EXPBUF: Opcode = opcode::read_write::<ExportBuffer>(b'V', 16);
/// `V4L2_BUF_TYPE_VIDEO_CAPTURE` and `V4L2_MEMORY_MMAP` alike.
const CAPTURE: u32 = 1;

/// Buffers of a camera that does not stream: its owner writes them through the camera's own file.
pub(crate) fn camera(count: u32, export: Export) -> Result<Vec<DmaBuf>> {
    let device = open(CAMERA);
    let mut request = RequestBuffers { count, kind: CAPTURE, memory: CAPTURE, ..RequestBuffers::default() };
    update::<REQBUFS, _>(&device, &mut request)?;
    (0..request.count).map(|index| camera_buffer(&device, index, export)).collect()
}

fn camera_buffer(device: &OwnedFd, index: u32, export: Export) -> Result<DmaBuf> {
    let mut query = Buffer { index, kind: CAPTURE, memory: CAPTURE, ..Buffer::default() };
    update::<QUERYBUF, _>(device, &mut query)?;
    let mut request = ExportBuffer { kind: CAPTURE, index, flags: export.flags(), fd: -1, ..ExportBuffer::default() };
    update::<EXPBUF, _>(device, &mut request)?;
    // SAFETY: the call succeeded, so the descriptor was installed for it and nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(request.fd) };
    let len = u64::from(query.length).next_multiple_of(4096);
    let owner = Mapping::new(device.as_fd(), query.place as u64 & 0xffff_ffff, len)?;
    DmaBuf::new(file, Owner::Mapping(owner), Some(device.try_clone().expect("a duplicate")))
}

/// DRM drivers export for reading, or for reading and writing.
fn vgem(len: u64, export: Export) -> Result<DmaBuf> {
    let (driver, len) = (Vgem::open(), len as usize);
    let buffer = match export {
        Export::ReadWrite => driver.buffer(len),
        Export::ReadOnly => driver.export_read_only(len),
        Export::WriteOnly => return Err(Errno::OPNOTSUPP),
    };
    let file = buffer.duplicate();
    match export {
        Export::ReadWrite => {
            let owner = Mapping::new(file.as_fd(), 0, len as u64)?;
            DmaBuf::new(file, Owner::Mapping(owner), None)
        }
        _ => DmaBuf::new(file, Owner::Vgem(buffer), None),
    }
}

fn update<const OPCODE: Opcode, T>(device: &OwnedFd, argument: &mut T) -> Result<()> {
    // SAFETY: every caller names an opcode that was made of its argument's type, which mirrors the kernel's.
    let argument = unsafe { Updater::<OPCODE, _>::new(argument) };
    // SAFETY: the opcode states the argument's size; no field holds an address that the kernel would follow.
    unsafe { ioctl(device, argument) }
}

/// `DMA_BUF_IOCTL_SYNC`: opens a span of reading for the CPU and closes it again.
pub(crate) fn sync_for_reading(file: BorrowedFd<'_>) -> Result<()> {
    const SYNC: Opcode = opcode::write::<u64>(b'b', 0);
    for flags in [1, 1 | 4] {
        // SAFETY: the argument is `struct dma_buf_sync`, one word of flags.
        let argument = unsafe { Setter::<SYNC, u64>::new(flags) };
        // SAFETY: the kernel reads that word alone.
        unsafe { ioctl(file, argument) }?;
    }
    Ok(())
}

/// What the kernel says about a descriptor in `/proc/self/fdinfo`.
pub(crate) fn fdinfo(file: &OwnedFd, key: &str) -> Option<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(|value| value.trim().to_string())
}

/// A mapping of the test's own.
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: a mapping belongs to the process and not to a thread, and is reached by volatile copies alone.
unsafe impl Send for Mapping {}

impl Mapping {
    /// A shared mapping to read and write.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Self> {
        Self::with(file, offset, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
    }

    pub(crate) fn with(file: BorrowedFd<'_>, offset: u64, len: u64, prot: ProtFlags, flags: MapFlags) -> Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap(null_mut(), len, prot, flags, file, offset) }?;
        Ok(Self { start: NonNull::new(start).ok_or(Errno::NOMEM)?, len })
    }

    pub(crate) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.part(at, len).copy_to(&mut bytes);
        bytes
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        self.part(at, bytes.len()).copy_from(bytes);
    }

    fn part(&self, at: usize, len: usize) -> VolatileSlice<'_> {
        // SAFETY: the mapping has `len` bytes and lives for as long as the borrow of `self`.
        let all = unsafe { VolatileSlice::new(self.start.as_ptr().cast(), self.len) };
        all.subslice(at, len).expect("inside of the mapping")
    }

    /// Maps a file over this mapping as `MAP_FIXED` does, and tells whether a failure has left a hole in it.
    pub(crate) fn replaced(&self, file: BorrowedFd<'_>, prot: ProtFlags, flags: MapFlags) -> Option<bool> {
        // SAFETY: the range is this mapping's own, and nobody holds a reference into it.
        let replaced = unsafe { mmap(self.start.as_ptr(), self.len, prot, flags | MapFlags::FIXED, file, 0) };
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
        let start = format!("{:x}-", self.start.as_ptr() as usize);
        replaced.is_err().then(|| !maps.lines().any(|line| line.starts_with(&start)))
    }

    /// `MADV_POPULATE_READ`.
    pub(crate) fn populate(&self) -> Result<()> {
        // SAFETY: populating a mapping of our own changes none of its bytes.
        unsafe { rustix::mm::madvise(self.start.as_ptr(), self.len, rustix::mm::Advice::LinuxPopulateRead) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `with`, and no pointer into it leaves this type.
        let _ = unsafe { munmap(self.start.as_ptr(), self.len) };
    }
}

/// Says something straight to the terminal, on a line of its own: a test's name may stand in the first.
pub(crate) fn say(line: &str) {
    thread_local!(static FIRST: Cell<bool> = const { Cell::new(true) });
    let start = if FIRST.replace(false) { "\n" } else { "" };
    let _ = writeln!(std::io::stderr(), "{start}lab: {line}");
}
