//! The device's words in rutabaga_gfx's, and back.

use std::os::fd::{AsFd, OwnedFd};

use rutabaga_gfx::{
    RUTABAGA_HANDLE_TYPE_MEM_DMABUF, ResourceCreate3D, RutabagaError, RutabagaHandle, RutabagaIovec, Transfer3D,
};

use crate::renderer::{RendererError, Resource3d, Transfer3d};
use crate::resource::{NotBacked, PinnedBacking};

/// `MAGMA_GPU_HANDLE_TYPE_MEM_SHM`, which rutabaga does not re-export: shared memory.
const HANDLE_TYPE_MEM_SHM: u32 = 4;

/// `ENOMEM` and `ENOSPC` as virglrenderer returns them, with either sign.
fn is_exhaustion(code: i32) -> bool {
    use rustix::io::Errno;
    [Errno::NOMEM, Errno::NOSPC].iter().any(|errno| errno.raw_os_error() == code.abs())
}

/// Why rutabaga refused.
pub(super) fn failed(error: RutabagaError) -> RendererError {
    match error {
        RutabagaError::ComponentError(code) | RutabagaError::MappingFailed(code) if is_exhaustion(code) => {
            RendererError::OutOfMemory(error.to_string())
        }
        error => RendererError::Invalid(error.to_string()),
    }
}

pub(super) fn not_backed(error: NotBacked) -> RendererError {
    RendererError::Invalid(error.to_string())
}

fn file_of(handle: RutabagaHandle, kinds: &[u32]) -> Option<OwnedFd> {
    let handle = handle.as_mesa_handle().filter(|handle| kinds.contains(&handle.handle_type))?;
    handle.os_handle.as_fd().try_clone_to_owned().ok()
}

/// The file of what a CPU can map.
pub(super) fn buffer_of(handle: RutabagaHandle) -> Option<OwnedFd> {
    file_of(handle, &[RUTABAGA_HANDLE_TYPE_MEM_DMABUF, HANDLE_TYPE_MEM_SHM])
}

/// The file of a dma-buf.
pub(super) fn dma_buf_of(handle: RutabagaHandle) -> Option<OwnedFd> {
    file_of(handle, &[RUTABAGA_HANDLE_TYPE_MEM_DMABUF])
}

/// Guest memory as rutabaga's list. The addresses are good for as long as the memory is pinned.
pub(super) fn iovecs(backing: &PinnedBacking) -> Vec<RutabagaIovec> {
    let pieces = backing.pieces().iter();
    pieces.map(|piece| RutabagaIovec { base: piece.address.as_ptr().cast(), len: piece.len }).collect()
}

pub(super) fn resource_of(request: &Resource3d) -> ResourceCreate3D {
    let Resource3d { target, format, bind, width, height, depth, array_size, last_level, samples, flags, .. } =
        *request;
    let nr_samples = samples;
    ResourceCreate3D { target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags }
}

pub(super) fn transfer_of(transfer: &Transfer3d) -> Transfer3D {
    let Transfer3d { origin: [x, y, z], size: [w, h, d], offset, level, stride, layer_stride, .. } = *transfer;
    Transfer3D { x, y, z, w, h, d, level, stride, layer_stride, offset }
}

/// Whether the end of a transfer in guest memory has more than the 32 bits that virglrenderer reckons it in.
pub(super) fn wraps(transfer: &Transfer3d) -> bool {
    let Transfer3d { size: [_, height, depth], offset, stride, layer_stride, .. } = *transfer;
    let (rows, layers) = (u64::from(height) * u64::from(stride), u64::from(depth) * u64::from(layer_stride));
    rows.saturating_add(layers).saturating_add(offset) > u64::from(u32::MAX)
}
