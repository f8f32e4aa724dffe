//! How rutabaga_gfx is started, and what it offers then: what virglrenderer says it has, less what the device cannot keep.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rutabaga_gfx::{
    RUTABAGA_CAPSET_VENUS, RUTABAGA_CAPSET_VIRGL, RUTABAGA_CAPSET_VIRGL2, RUTABAGA_FLAG_INFO_RING_IDX,
    RUTABAGA_PATH_TYPE_GPU, Rutabaga, RutabagaBuilder, RutabagaError, RutabagaFence, RutabagaHandler, RutabagaPath,
};

use super::fences::Fences;
use crate::observe::warn_limited;
use crate::renderer::Capset;

/// What a [`RutabagaRenderer`](super::RutabagaRenderer) is to offer.
#[derive(Debug, Clone, Default)]
#[must_use = "settings do nothing until a renderer is made of them"]
pub struct RutabagaSettings {
    virgl: bool,
    venus: bool,
    gpu: Option<PathBuf>,
}

impl RutabagaSettings {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// OpenGL (capability sets 1 and 2), by EGL without a surface and GLES.
    pub fn virgl(mut self) -> Self {
        self.virgl = true;
        self
    }

    /// Vulkan (capability set 4), by virglrenderer's render server: a process for each context.
    pub fn venus(mut self) -> Self {
        self.venus = true;
        self
    }

    /// The GPU to draw on: a render node such as `/dev/dri/renderD128`. virglrenderer finds one where it is not stated.
    pub fn gpu(mut self, node: impl Into<PathBuf>) -> Self {
        self.gpu = Some(node.into());
        self
    }

    /// Starts it on this thread; its fences go to `fences`.
    ///
    /// # Errors
    /// Nothing is asked for, the crate was built without virglrenderer, or rutabaga does not start.
    pub(super) fn start(self, fences: Fences) -> io::Result<Rutabaga> {
        if self.capsets() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no capability set is asked for"));
        }
        let stderr = KeptStderr::keep();
        let built = self.build(fences);
        stderr.put_back();
        built.map_err(|error| match error {
            RutabagaError::InvalidRutabagaBuild => {
                io::Error::new(io::ErrorKind::Unsupported, "built without virglrenderer: feature virgl")
            }
            error => io::Error::other(error),
        })
    }

    /// Whether virglrenderer may find a GPU.
    pub(super) fn has_gpu(&self) -> bool {
        self.gpu.is_some() || has_render_node()
    }

    /// The capability sets as rutabaga wants them named.
    fn capsets(&self) -> u64 {
        let virgl = [RUTABAGA_CAPSET_VIRGL, RUTABAGA_CAPSET_VIRGL2].into_iter().filter(|_| self.virgl);
        virgl.chain(self.venus.then_some(RUTABAGA_CAPSET_VENUS)).fold(0, |mask, id| mask | 1 << id)
    }

    fn build(self, fences: Fences) -> Result<Rutabaga, RutabagaError> {
        let mask = self.capsets();
        let signal = move |fence: RutabagaFence| {
            let on_ring = fence.flags & RUTABAGA_FLAG_INFO_RING_IDX != 0;
            let timeline = on_ring.then_some((fence.ctx_id, fence.ring_idx));
            fences.signal(timeline, fence.fence_id as u32);
        };
        let gpu = self.gpu.map(|path| vec![RutabagaPath { path, path_type: RUTABAGA_PATH_TYPE_GPU }]);
        RutabagaBuilder::new(mask, RutabagaHandler::new(signal))
            .set_use_egl(true)
            .set_use_gles(true)
            .set_use_surfaceless(true)
            // In the process of its own, where its aborts do no harm; Debian's library has no other.
            .set_use_render_server(self.venus)
            .set_rutabaga_paths(gpu)
            .build()
    }
}

/// What it offers. A set of zeroes is one that virglrenderer has no server or no driver for.
pub(super) fn capsets_of(rutabaga: &Rutabaga) -> Vec<Capset> {
    let mut capsets = Vec::new();
    for index in 0..rutabaga.get_num_capsets() {
        let Ok((id, max_version, _)) = rutabaga.get_capset_info(index) else { continue };
        let mut data = rutabaga.get_capset(id, max_version).unwrap_or_default();
        if id == RUTABAGA_CAPSET_VIRGL2 {
            hide_buffer_storage(&mut data);
        }
        if data.iter().all(|byte| *byte == 0) {
            warn_limited!(capset = id, "virglrenderer has nothing to say of a capability set: it is not offered");
            continue;
        }
        capsets.push(Capset { id, max_version, data });
    }
    capsets
}

/// Whether virglrenderer may find a GPU by itself.
fn has_render_node() -> bool {
    let nodes = std::fs::read_dir("/dev/dri").into_iter().flatten().flatten();
    let mut nodes = nodes.filter(|node| node.file_name().as_encoded_bytes().starts_with(b"renderD"));
    nodes.any(|node| std::fs::File::options().read(true).write(true).open(node.path()).is_ok())
}

/// `capability_bits` in virglrenderer's `union virgl_caps`, by its offset in bytes.
const CAPABILITY_BITS: usize = 392;
/// `VIRGL_CAP_ARB_BUFFER_STORAGE`.
const ARB_BUFFER_STORAGE: u32 = 1 << 31;

/// Buffers that an OpenGL application maps for good have no descriptor, and a library's own memory cannot be shown in a window:
/// an application would get none where it was promised some. Told that there is no such thing, Mesa makes do with transfers.
fn hide_buffer_storage(capset: &mut [u8]) {
    if let Some(bits) = capset.get_mut(CAPABILITY_BITS..).and_then(|rest| rest.first_chunk_mut()) {
        *bits = (u32::from_le_bytes(*bits) & !ARB_BUFFER_STORAGE).to_le_bytes();
    }
}

/// The process's standard error, which rutabaga's debug build puts standard output in place of.
struct KeptStderr(Option<OwnedFd>);

impl KeptStderr {
    fn keep() -> Self {
        Self(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).ok())
    }

    fn put_back(self) {
        if let Some(stderr) = self.0 {
            let _ = rustix::stdio::dup2_stderr(stderr);
        }
    }
}
