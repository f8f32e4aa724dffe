//! The kernel's DRM ioctls for virtio-gpu, and memory mapped through it.
//! Layouts and numbers as in the kernel's `include/uapi/drm/virtgpu_drm.h` and `include/uapi/drm/drm.h`.
#![expect(unsafe_code, reason = "ioctls take pointers, and mapped memory that the host writes to is no Rust slice")]

use std::ffi::{CStr, c_void};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::ioctl::{address, ioctls};

/// `VIRTGPU_PARAM_*`: what GETPARAM can be asked for.
pub(crate) mod param {
    pub(crate) const FEATURES_3D: u64 = 1;
    pub(crate) const RESOURCE_BLOB: u64 = 3;
    pub(crate) const HOST_VISIBLE: u64 = 4;
    pub(crate) const CROSS_DEVICE: u64 = 5;
    pub(crate) const CONTEXT_INIT: u64 = 6;
    pub(crate) const CAPSET_MASK: u64 = 7;
    pub(crate) const DEBUG_NAME: u64 = 8;
}

/// `DRM_EVENT` of type `VIRTGPU_EVENT_FENCE_SIGNALED`.
pub(crate) const EVENT_FENCE_SIGNALED: u32 = 0x9000_0000;
pub(crate) const PAGE: usize = 4096;

const EXECBUF_FENCE_FD_OUT: u32 = 2;
const EXECBUF_RING_IDX: u32 = 4;
const BLOB_MEM_GUEST: u32 = 1;
const BLOB_MEM_HOST3D: u32 = 2;
const BLOB_MAPPABLE: u32 = 1;
const BLOB_SHAREABLE: u32 = 2;
const CONTEXT_CAPSET_ID: u64 = 1;
const CONTEXT_NUM_RINGS: u64 = 2;
const CONTEXT_POLL_RINGS_MASK: u64 = 3;
const CONTEXT_DEBUG_NAME: u64 = 4;

ioctls! {
    8 0x09 write GemClose { handle: u32, pad: u32, }
    12 0x2d read_write PrimeHandleToFd { handle: u32, flags: u32, fd: i32, }
    16 0x41 read_write MapOffset { offset: u64, handle: u32, pad: u32, }
    64 0x42 read_write ExecBuffer {
        flags: u32, size: u32, command: u64, bo_handles: u64, num_bo_handles: u32, fence_fd: i32, ring_idx: u32,
        syncobj_stride: u32, num_in_syncobjs: u32, num_out_syncobjs: u32, in_syncobjs: u64, out_syncobjs: u64,
    }
    16 0x43 read_write GetParam { param: u64, value: u64, }
    24 0x49 read_write GetCaps { cap_set_id: u32, cap_set_ver: u32, addr: u64, size: u32, pad: u32, }
    48 0x4a read_write CreateBlob {
        blob_mem: u32, blob_flags: u32, bo_handle: u32, res_handle: u32, size: u64, pad: u32, cmd_size: u32, cmd: u64,
        blob_id: u64,
    }
    16 0x4b read_write ContextInit { num_params: u32, pad: u32, ctx_set_params: u64, }
}

/// `struct drm_virtgpu_context_set_param`.
#[repr(C)]
struct ContextParam {
    param: u64,
    value: u64,
}

const _: () = assert!(size_of::<ContextParam>() == 16);

/// GETPARAM: one of [`param`].
pub(crate) fn get_param(gpu: BorrowedFd<'_>, param: u64) -> Result<u32> {
    let mut value = 0_u32;
    let mut request = GetParam { param, value: address(&raw mut value) };
    // SAFETY: the kernel writes an `int` to `value`, which outlives the call.
    unsafe { request.call(gpu) }?;
    Ok(value)
}

/// GET_CAPS: the data of a capability set, as much as `data` holds.
pub(crate) fn get_caps(gpu: BorrowedFd<'_>, capset: u32, data: &mut [u8]) -> Result<()> {
    let size = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
    let addr = address(data.as_mut_ptr());
    let mut request = GetCaps { cap_set_id: capset, addr, size, ..GetCaps::default() };
    // SAFETY: the kernel writes at most `size` bytes to `addr`, which is all of `data`.
    unsafe { request.call(gpu) }
}

/// CONTEXT_INIT: binds this open file to a capability set, with rings whose fences may come as events.
pub(crate) fn context_init(
    gpu: BorrowedFd<'_>,
    capset: u32,
    rings: u64,
    polled: u64,
    name: Option<&CStr>,
) -> Result<()> {
    let mut params = vec![
        ContextParam { param: CONTEXT_CAPSET_ID, value: capset.into() },
        ContextParam { param: CONTEXT_NUM_RINGS, value: rings },
        ContextParam { param: CONTEXT_POLL_RINGS_MASK, value: polled },
    ];
    params.extend(name.map(|name| ContextParam { param: CONTEXT_DEBUG_NAME, value: address(name.as_ptr()) }));
    let num_params = params.len() as u32;
    let mut request = ContextInit { num_params, pad: 0, ctx_set_params: address(params.as_ptr()) };
    // SAFETY: the kernel reads `num_params` structures, and the name up to its NUL; both outlive the call.
    unsafe { request.call(gpu) }
}

/// EXECBUFFER: a stream of commands, on a ring of the context or on none, with a fence's file or without.
fn execute(gpu: BorrowedFd<'_>, stream: &[u8], flags: u32, ring_idx: u32) -> Result<i32> {
    let size = u32::try_from(stream.len()).map_err(|_| Errno::INVAL)?;
    let command = address(stream.as_ptr());
    let mut request = ExecBuffer { flags, size, command, fence_fd: -1, ring_idx, ..ExecBuffer::default() };
    // SAFETY: the kernel reads `size` bytes at `command`, which is all of `stream`, and no other address is given.
    unsafe { request.call(gpu) }?;
    Ok(request.fence_fd)
}

/// Submits a stream that nobody waits for.
pub(crate) fn submit(gpu: BorrowedFd<'_>, stream: &[u8]) -> Result<()> {
    execute(gpu, stream, 0, 0).map(drop)
}

/// Submits a stream on a ring; a polled ring's fence comes as an event of the DRM file.
pub(crate) fn submit_on_ring(gpu: BorrowedFd<'_>, stream: &[u8], ring: u32) -> Result<()> {
    execute(gpu, stream, EXECBUF_RING_IDX, ring).map(drop)
}

/// Submits a stream; its fence is a file that becomes readable.
pub(crate) fn submit_fenced(gpu: BorrowedFd<'_>, stream: &[u8]) -> Result<OwnedFd> {
    let fence = execute(gpu, stream, EXECBUF_FENCE_FD_OUT, 0)?;
    if fence < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the kernel has just installed this descriptor for the caller, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fence) })
}

/// A blob resource of this open file.
#[derive(Debug)]
pub(crate) struct Blob {
    handle: u32,
    /// The resource's id, as the host knows it.
    pub(crate) resource: u32,
    /// In bytes, whole pages.
    len: usize,
}

impl Blob {
    /// RESOURCE_CREATE_BLOB of guest memory, for a ring.
    pub(crate) fn guest(gpu: BorrowedFd<'_>, len: usize) -> Result<Self> {
        Self::create(gpu, len, CreateBlob { blob_mem: BLOB_MEM_GUEST, blob_flags: BLOB_MAPPABLE, ..Default::default() })
    }

    /// RESOURCE_CREATE_BLOB of a host's buffer that the context knows as `id`. The driver maps it into the window,
    /// and says only at mmap whether that worked.
    pub(crate) fn host(gpu: BorrowedFd<'_>, id: u32, len: usize) -> Result<Self> {
        let blob_flags = BLOB_MAPPABLE | BLOB_SHAREABLE;
        let blob_id = id.into();
        Self::create(gpu, len, CreateBlob { blob_mem: BLOB_MEM_HOST3D, blob_flags, blob_id, ..Default::default() })
    }

    fn create(gpu: BorrowedFd<'_>, len: usize, request: CreateBlob) -> Result<Self> {
        let mut request = CreateBlob { size: len as u64, ..request };
        // SAFETY: `cmd_size` is 0: no address is given.
        unsafe { request.call(gpu) }?;
        Ok(Self { handle: request.bo_handle, resource: request.res_handle, len: len.next_multiple_of(PAGE) })
    }

    /// VIRTGPU_MAP and mmap of the whole blob; with it the fake offset that stands for the blob in the DRM file.
    pub(crate) fn map(&self, gpu: BorrowedFd<'_>) -> Result<(Mapping, u64)> {
        let mut request = MapOffset { handle: self.handle, ..MapOffset::default() };
        // SAFETY: the structure holds no address.
        unsafe { request.call(gpu) }?;
        Ok((Mapping::new(gpu, request.offset, self.len)?, request.offset))
    }

    /// PRIME_HANDLE_TO_FD: a descriptor for others to map, which keeps the resource alive.
    pub(crate) fn export(&self, gpu: BorrowedFd<'_>) -> Result<OwnedFd> {
        let flags = (OFlags::RDWR | OFlags::CLOEXEC).bits();
        let mut request = PrimeHandleToFd { handle: self.handle, flags, fd: -1 };
        // SAFETY: the structure holds no address.
        unsafe { request.call(gpu) }?;
        // SAFETY: the kernel has just installed this descriptor for the caller, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(request.fd) })
    }

    /// GEM_CLOSE. A mapping keeps the resource alive.
    pub(crate) fn close(self, gpu: BorrowedFd<'_>) -> Result<()> {
        let mut request = GemClose { handle: self.handle, pad: 0 };
        // SAFETY: the structure holds no address.
        unsafe { request.call(gpu) }
    }
}

/// Shared memory, read and write, unmapped when dropped. Others change it at any time: it is copied, never borrowed.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u64>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, a whole number of pages.
    pub(crate) fn new(file: impl AsFd, offset: u64, len: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel picks free addresses, so nothing that this program uses is replaced.
        let start = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, file, offset) }?;
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The eight bytes at `offset`, a multiple of eight.
    pub(crate) fn word(&self, offset: usize) -> u64 {
        // SAFETY: `slot` stays inside the mapping, and any bits are a u64.
        unsafe { self.slot::<u64>(offset).read_volatile() }
    }

    /// Writes eight bytes at `offset`, a multiple of eight.
    pub(crate) fn set_word(&self, offset: usize, word: u64) {
        // SAFETY: `slot` stays inside the mapping, which is writable; what others do to the memory is no data race
        // of this program, where one thread alone has the mapping.
        unsafe { self.slot::<u64>(offset).write_volatile(word) }
    }

    /// Writes four bytes at `offset`, a multiple of four.
    pub(crate) fn set_pixel(&self, offset: usize, pixel: u32) {
        // SAFETY: as for `set_word`.
        unsafe { self.slot::<u32>(offset).write_volatile(pixel) }
    }

    fn slot<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(offset.is_multiple_of(size_of::<T>()) && end.is_some_and(|end| end <= self.len), "out of the mapping");
        // SAFETY: the assertion keeps the sum inside the one mapping, which begins with a page.
        unsafe { self.start.as_ptr().byte_add(offset).cast() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of a mapping that this value alone owns, and nothing is borrowed from it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.len) };
        unmapped.expect("a mapping that was made can be unmapped");
    }
}
