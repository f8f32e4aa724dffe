//! vgem, a DRM driver without a device: dma-bufs whose implicit fences a test attaches and signals as it likes
//! (`linux/drivers/gpu/drm/vgem`, `drm/vgem_drm.h`).
#![expect(unsafe_code, reason = "a driver's ioctls: their numbers and argument types are promised to the kernel here")]

use std::fs::{File, read_dir};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// `DRM_COMMAND_BASE`: where a driver's own ioctls begin.
const DRIVER: u8 = 0x40;
/// `VGEM_FENCE_WRITE`: readers wait for the fence too.
const FENCE_WRITE: u32 = 1;

/// `struct drm_version`.
#[repr(C)]
struct Version {
    numbers: [i32; 3],
    name_len: usize,
    name: *mut u8,
    date_len: usize,
    date: *mut u8,
    desc_len: usize,
    desc: *mut u8,
}

/// `struct drm_mode_create_dumb`.
#[repr(C)]
#[derive(Default)]
struct CreateDumb {
    height: u32,
    width: u32,
    bpp: u32,
    flags: u32,
    handle: u32,
    pitch: u32,
    size: u64,
}

/// `struct drm_mode_map_dumb`.
#[repr(C)]
struct MapDumb {
    handle: u32,
    pad: u32,
    offset: u64,
}

/// `struct drm_prime_handle`.
#[repr(C)]
struct PrimeHandle {
    handle: u32,
    flags: u32,
    fd: i32,
}

/// `struct drm_gem_close`.
#[repr(C)]
struct GemClose {
    handle: u32,
    pad: u32,
}

/// `struct drm_vgem_fence_attach`.
#[repr(C)]
struct FenceAttach {
    handle: u32,
    flags: u32,
    out_fence: u32,
    pad: u32,
}

/// `struct drm_vgem_fence_signal`.
#[repr(C)]
struct FenceSignal {
    fence: u32,
    flags: u32,
}

const GET_VERSION: Opcode = opcode::read_write::<Version>(b'd', 0x00);
const CLOSE_HANDLE: Opcode = opcode::write::<GemClose>(b'd', 0x09);
const EXPORT: Opcode = opcode::read_write::<PrimeHandle>(b'd', 0x2d);
const CREATE_DUMB: Opcode = opcode::read_write::<CreateDumb>(b'd', 0xb2);
const MAP_DUMB: Opcode = opcode::read_write::<MapDumb>(b'd', 0xb3);
const ATTACH: Opcode = opcode::read_write::<FenceAttach>(b'd', DRIVER + 1);
const SIGNAL: Opcode = opcode::write::<FenceSignal>(b'd', DRIVER + 2);

/// The driver.
#[derive(Clone)]
pub(crate) struct Vgem {
    card: Arc<File>,
}

/// A buffer of the driver's, and its one dma-buf.
pub(crate) struct VgemBuffer {
    card: Arc<File>,
    handle: u32,
    len: usize,
    /// The dma-buf.
    pub(crate) fd: OwnedFd,
}

/// A fence that was attached. The driver signals it by itself after 10 seconds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct VgemFence(u32);

impl Vgem {
    /// Finds the driver among the machine's DRM devices, by the name that it answers.
    pub(crate) fn open() -> Self {
        let nodes = read_dir("/dev/dri").expect("DRM devices").flatten().map(|node| node.path());
        let nodes = nodes.filter(|path| path.to_string_lossy().contains("card"));
        let mut cards = nodes.filter_map(|path| File::options().read(true).write(true).open(path).ok());
        let card = cards.find(|card| driver_name(card).is_ok_and(|name| name == b"vgem")).expect("the driver vgem");
        Self { card: Arc::new(card) }
    }

    /// A buffer of `len` bytes, a multiple of 4096.
    pub(crate) fn buffer(&self, len: usize) -> VgemBuffer {
        self.exported(len, OFlags::RDWR)
    }

    /// The same with a dma-buf that is open for reading only. A driver exports a buffer once, in one mode.
    pub(crate) fn export_read_only(&self, len: usize) -> VgemBuffer {
        self.exported(len, OFlags::RDONLY)
    }

    fn exported(&self, len: usize, mode: OFlags) -> VgemBuffer {
        assert!(len > 0 && len.is_multiple_of(4096), "a buffer of {len} bytes");
        let mut dumb = CreateDumb { width: 1024, height: (len / 4096) as u32, bpp: 32, ..CreateDumb::default() };
        // SAFETY: the opcode is DRM_IOCTL_MODE_CREATE_DUMB, which reads and fills one `struct drm_mode_create_dumb`.
        let create = unsafe { Updater::<CREATE_DUMB, CreateDumb>::new(&mut dumb) };
        // SAFETY: the argument lives for the call.
        unsafe { ioctl(&*self.card, create) }.expect("a dumb buffer");
        assert_eq!(dumb.size, len as u64, "{} lines of {} bytes", dumb.height, dumb.pitch);
        let flags = OFlags::CLOEXEC | mode;
        let mut prime = PrimeHandle { handle: dumb.handle, flags: flags.bits(), fd: -1 };
        // SAFETY: the opcode is DRM_IOCTL_PRIME_HANDLE_TO_FD, which reads and fills one `struct drm_prime_handle`.
        let export = unsafe { Updater::<EXPORT, PrimeHandle>::new(&mut prime) };
        // SAFETY: the argument lives for the call.
        unsafe { ioctl(&*self.card, export) }.expect("exported");
        // SAFETY: the call has succeeded, so the number is a descriptor that was made for us and that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(prime.fd) };
        VgemBuffer { card: Arc::clone(&self.card), handle: dumb.handle, len, fd }
    }
}

fn driver_name(card: &File) -> io::Result<Vec<u8>> {
    let mut name = vec![0; 32];
    let (date, desc) = (null_mut(), null_mut());
    let text = name.as_mut_ptr();
    let name_len = name.len();
    let mut version = Version { numbers: [0; 3], name_len, name: text, date_len: 0, date, desc_len: 0, desc };
    // SAFETY: the opcode is DRM_IOCTL_VERSION, which fills one `struct drm_version` and writes no more bytes of each text
    // than the length beside it says.
    let ask = unsafe { Updater::<GET_VERSION, Version>::new(&mut version) };
    // SAFETY: the argument, and the text that it points to, live for the call.
    unsafe { ioctl(card, ask) }?;
    name.truncate(version.name_len);
    Ok(name)
}

impl VgemBuffer {
    /// Fills the whole buffer, as its exporter would: without asking whether a fence is attached.
    pub(crate) fn fill(&self, byte: u8) {
        let bytes = self.map();
        // SAFETY: the mapping is as long as the buffer and was made for this call; no reference points into it.
        unsafe { bytes.write_bytes(byte, self.len) };
        self.unmap(bytes);
    }

    /// What the buffer holds, without waiting for fences.
    pub(crate) fn contents(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        let bytes = self.map();
        // SAFETY: the mapping and `out` are both as long as the buffer, and apart from each other.
        unsafe { bytes.copy_to_nonoverlapping(out.as_mut_ptr(), self.len) };
        self.unmap(bytes);
        out
    }

    /// Maps it through the driver, and not through the dma-buf, whose mode may forbid it.
    fn map(&self) -> *mut u8 {
        let mut map = MapDumb { handle: self.handle, pad: 0, offset: 0 };
        // SAFETY: the opcode is DRM_IOCTL_MODE_MAP_DUMB, which reads and fills one `struct drm_mode_map_dumb`.
        let argument = unsafe { Updater::<MAP_DUMB, MapDumb>::new(&mut map) };
        // SAFETY: the argument lives for the call.
        unsafe { ioctl(&*self.card, argument) }.expect("an offset to map it at");
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        unsafe { mmap(null_mut(), self.len, access, MapFlags::SHARED, &*self.card, map.offset) }.expect("mapped").cast()
    }

    fn unmap(&self, bytes: *mut u8) {
        // SAFETY: the mapping was made by `map` for its caller, who is done with it.
        unsafe { munmap(bytes.cast(), self.len) }.expect("unmapped");
    }

    /// Attaches a fence that stands for pending writes.
    ///
    /// # Errors
    /// EBUSY where an earlier fence has not signalled.
    pub(crate) fn attach_fence(&self) -> io::Result<VgemFence> {
        let mut attach = FenceAttach { handle: self.handle, flags: FENCE_WRITE, out_fence: 0, pad: 0 };
        // SAFETY: the opcode is DRM_IOCTL_VGEM_FENCE_ATTACH, which reads and fills one `struct drm_vgem_fence_attach`.
        let argument = unsafe { Updater::<ATTACH, FenceAttach>::new(&mut attach) };
        // SAFETY: the argument lives for the call.
        unsafe { ioctl(&*self.card, argument) }?;
        Ok(VgemFence(attach.out_fence))
    }

    /// Signals a fence.
    ///
    /// # Errors
    /// ETIMEDOUT where the driver has done so already, because its 10 seconds were over; the fence has signalled then.
    pub(crate) fn signal(&self, fence: VgemFence) -> io::Result<()> {
        // SAFETY: the opcode is DRM_IOCTL_VGEM_FENCE_SIGNAL, which reads one `struct drm_vgem_fence_signal`.
        let argument = unsafe { Setter::<SIGNAL, FenceSignal>::new(FenceSignal { fence: fence.0, flags: 0 }) };
        // SAFETY: the argument lives for the call.
        unsafe { ioctl(&*self.card, argument) }?;
        Ok(())
    }

    /// Another descriptor of the same dma-buf.
    pub(crate) fn duplicate(&self) -> OwnedFd {
        self.fd.as_fd().try_clone_to_owned().expect("a duplicate")
    }
}

impl Drop for VgemBuffer {
    fn drop(&mut self) {
        // SAFETY: the opcode is DRM_IOCTL_GEM_CLOSE, which reads one `struct drm_gem_close`.
        let argument = unsafe { Setter::<CLOSE_HANDLE, GemClose>::new(GemClose { handle: self.handle, pad: 0 }) };
        // SAFETY: the argument lives for the call; the handle is this buffer's own. The dma-buf keeps the memory.
        let _ = unsafe { ioctl(&*self.card, argument) };
    }
}
