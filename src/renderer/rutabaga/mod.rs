//! rutabaga_gfx behind the renderer's seam: virgl and Venus by virglrenderer, where the crate is built with it.
//! The device keeps its own books of ids, sizes, descriptors and guest memory, so that nothing reaches rutabaga that it would
//! not survive; cross-domain and 2D are the device's own and never asked of it.

mod convert;
mod fences;
mod guard;
mod settings;

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use rutabaga_gfx::{
    RUTABAGA_BLOB_MEM_HOST3D, RUTABAGA_BLOB_MEM_HOST3D_GUEST, RUTABAGA_CAPSET_VENUS, RUTABAGA_CAPSET_VIRGL,
    RUTABAGA_CAPSET_VIRGL2, RUTABAGA_FLAG_FENCE, RUTABAGA_FLAG_INFO_RING_IDX, RUTABAGA_MAP_CACHE_MASK,
    RUTABAGA_MAP_CACHE_UNCACHED, RUTABAGA_MAP_CACHE_WC, ResourceCreateBlob, Rutabaga, RutabagaBuilder,
    RutabagaComponentType, RutabagaFence, RutabagaHandler,
};
use zerocopy::IntoBytes;

use super::{
    BlobMemory, BlobRequest, Capset, Direction, Fence, RenderedBlob, RenderedPicture, Renderer, RendererError,
    Resource3d, Transfer3d,
};
use crate::observe::warn_limited;
use crate::protocol::format::PIXEL;
use crate::protocol::wire::{BLOB_FLAG_CROSS_DEVICE, BLOB_FLAG_SHAREABLE};
use crate::resource::{GuestBacking, PinnedBacking};
use crate::seams::{Area, Caching, Plane};
use convert::{buffer_of, dma_buf_of, failed, iovecs, resource_of, transfer_of};
use fences::Fences;
use guard::Guard;
pub use settings::RutabagaSettings;
use settings::capsets_of;

/// How long the end of a context waits for its fences: longer than drivers take to give a hung GPU up.
const CONTEXT_END: Duration = Duration::from_secs(20);
/// So many contexts whose ends were put off hold up the next one.
const MOST_LEFT: usize = 64;

/// rutabaga_gfx 0.1.85 as a [`Renderer`], with virglrenderer 1.3 or newer: feature `virgl` of this crate.
///
/// virglrenderer allows for one renderer a process, ever: the second one finds nothing to offer, and so its device does
/// without; one that was given up is gone until the VMM starts again. A HOST3D_GUEST blob takes its guest memory with its
/// creation. What it has to say goes to the `log` crate, as much as a guest likes to cause: a VMM that shows it bounds it.
/// A stream that brings virglrenderer's OpenGL down brings the VMM down; Vulkan runs in processes of its own.
///
/// ```no_run
/// use virtio_gpu_uring::{Builder, RutabagaRenderer, RutabagaSettings};
///
/// let settings = RutabagaSettings::new().virgl().venus();
/// let builder = Builder::new().renderer(|| RutabagaRenderer::new(settings));
/// # let _ = builder;
/// ```
pub struct RutabagaRenderer {
    rutabaga: Rutabaga,
    /// Whether there may be a GPU.
    gpu: bool,
    capsets: Vec<Capset>,
    fences: Fences,
    contexts: HashMap<u32, Kind>,
    /// Contexts of OpenGL that have ended before their fences have signalled.
    left: Vec<u32>,
    /// Whether one of them was waited for long enough.
    late: bool,
    /// Guest memory that it has the addresses of, by resource.
    backings: HashMap<u32, PinnedBacking>,
    /// Descriptors that it keeps, by resource.
    descriptors: HashMap<u32, u64>,
    /// A stream in whole words: what comes from a guest may lie anywhere.
    words: Vec<u32>,
}

/// What virglrenderer has made of a context.
#[derive(Debug, Clone, Copy)]
enum Kind {
    OpenGl(Guard),
    Venus,
}

impl Kind {
    /// What it is after a stream.
    fn after(self, stream: &[u32]) -> Result<Self, RendererError> {
        match self {
            Self::OpenGl(guard) => guard
                .after(stream)
                .map(Self::OpenGl)
                .ok_or_else(|| RendererError::Invalid("a stream that virglrenderer does not survive".into())),
            Self::Venus => Ok(self),
        }
    }
}

impl std::fmt::Debug for RutabagaRenderer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RutabagaRenderer").field("contexts", &self.contexts).finish_non_exhaustive()
    }
}

impl RutabagaRenderer {
    /// Starts it, on the thread that is to call it: for [`Builder::renderer`](crate::Builder::renderer). Where virglrenderer
    /// finds no way to draw, it has no capability sets.
    ///
    /// # Errors
    /// The crate was built without feature `virgl`, or rutabaga does not start.
    pub fn new(settings: RutabagaSettings) -> io::Result<Self> {
        let fences = Fences::default();
        let gpu = settings.has_gpu();
        let rutabaga = settings.start(fences.clone())?;
        let capsets = capsets_of(&rutabaga);
        let (contexts, left, backings, descriptors) = Default::default();
        Ok(Self {
            rutabaga,
            gpu,
            capsets,
            fences,
            contexts,
            left,
            late: false,
            backings,
            descriptors,
            words: Vec::new(),
        })
    }

    /// Whether it draws by OpenGL. Without it virglrenderer must not be asked for textures, nor for context 0.
    fn has_virgl(&self) -> bool {
        self.capsets.iter().any(|capset| [RUTABAGA_CAPSET_VIRGL, RUTABAGA_CAPSET_VIRGL2].contains(&capset.id))
    }

    /// For a call. virglrenderer takes for granted that its callers put its own OpenGL context in place before each one: it
    /// loses track of which is current when one is made or ended, and the next stream of another would be its last.
    fn rutabaga(&mut self) -> &mut Rutabaga {
        if self.has_virgl() {
            self.rutabaga.force_ctx_0();
        }
        &mut self.rutabaga
    }

    /// For a call that OpenGL alone can serve.
    fn virgl(&mut self) -> Result<&mut Rutabaga, RendererError> {
        if self.has_virgl() { Ok(self.rutabaga()) } else { Err(RendererError::Invalid("it has no OpenGL".into())) }
    }

    fn caching(&self, resource: u32) -> Caching {
        match self.rutabaga.map_info(resource).unwrap_or_default() & RUTABAGA_MAP_CACHE_MASK {
            RUTABAGA_MAP_CACHE_UNCACHED => Caching::Uncached,
            RUTABAGA_MAP_CACHE_WC => Caching::WriteCombining,
            _ => Caching::Cached,
        }
    }

    /// A context is there before anything is done with it: virglrenderer is not asked about unknown ones.
    fn known(&self, context: u32) -> Result<Kind, RendererError> {
        let kind = self.contexts.get(&context).copied();
        kind.ok_or_else(|| RendererError::Invalid(format!("there is no context {context}")))
    }

    /// Ends what was left, as far as its fences have signalled. Where one was late already none is waited for.
    fn end_left(&mut self) {
        for context in std::mem::take(&mut self.left) {
            let deadline = if self.late { Duration::ZERO } else { CONTEXT_END };
            let rutabaga = &self.rutabaga;
            let poll = || {
                rutabaga.force_ctx_0();
                rutabaga.event_poll();
            };
            if self.fences.wait_for_context(context, deadline, poll) {
                let _ = self.rutabaga().destroy_context(context);
                continue;
            }
            warn_limited!(context, "fences of a context do not signal: its end is put off");
            self.late = true;
            self.left.push(context);
        }
        self.late &= !self.left.is_empty();
    }
}

impl Renderer for RutabagaRenderer {
    fn capsets(&self) -> Vec<Capset> {
        self.capsets.clone()
    }

    fn poll_descriptor(&self) -> Option<OwnedFd> {
        self.rutabaga.poll_descriptor()?.as_fd().try_clone_to_owned().ok()
    }

    /// Queries of OpenGL that a guest waits for get their results here; virglrenderer's thread signals no fence meanwhile.
    fn poll(&mut self) {
        self.rutabaga().event_poll();
    }

    /// Virglrenderer's end of a Venus context: a socket, shared memory and an eventfd.
    fn context_descriptors(&mut self, context: u32) -> u64 {
        if matches!(self.contexts.get(&context), Some(Kind::Venus)) { 3 } else { 0 }
    }

    fn create_context(&mut self, context: u32, capset: u32, name: &str) -> Result<(), RendererError> {
        if capset == 0 {
            self.virgl()?;
        }
        self.end_left();
        if self.left.len() >= MOST_LEFT {
            return Err(RendererError::OutOfMemory(format!("{MOST_LEFT} contexts have not ended yet")));
        }
        self.rutabaga().create_context(context, capset, Some(name)).map_err(failed)?;
        let kind = if capset == RUTABAGA_CAPSET_VENUS { Kind::Venus } else { Kind::OpenGl(Guard::new(self.gpu)) };
        self.contexts.insert(context, kind);
        Ok(())
    }

    /// virglrenderer 1.3 frees an OpenGL context while its own thread may still be waiting for one of the context's fences,
    /// and uses it then. So its fences are waited for, and where one does not signal in time the context is left for later;
    /// its id is not free before.
    fn destroy_context(&mut self, context: u32) {
        self.fences.end_context(context);
        match self.contexts.remove(&context) {
            Some(Kind::Venus) => {
                let _ = self.rutabaga().destroy_context(context);
                self.fences.forget(context);
            }
            Some(Kind::OpenGl(_)) => {
                self.left.push(context);
                self.end_left();
            }
            None => {}
        }
    }

    /// Resources of the device's own it does not know: contexts cannot use them.
    fn attach_resource(&mut self, context: u32, resource: u32) {
        let _ = self.rutabaga().context_attach_resource(context, resource);
    }

    fn detach_resource(&mut self, context: u32, resource: u32) {
        let _ = self.rutabaga().context_detach_resource(context, resource);
    }

    fn submit(&mut self, context: u32, stream: &[u8]) -> Result<(), RendererError> {
        let kind = self.known(context)?;
        if !stream.len().is_multiple_of(size_of::<u32>()) {
            return Err(RendererError::Invalid("a stream is whole words".into()));
        }
        if stream.is_empty() {
            return Ok(());
        }
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        words.resize(stream.len() / size_of::<u32>(), 0);
        words.as_mut_bytes().copy_from_slice(stream);
        let submitted = kind.after(&words).and_then(|kind| {
            self.contexts.insert(context, kind);
            self.rutabaga().submit_command(context, words.as_mut_bytes(), &[]).map_err(failed)
        });
        self.words = words;
        submitted
    }

    fn create_blob(&mut self, request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        let BlobRequest { context, resource, blob_id, size, flags } = *request;
        self.known(context)?;
        let blob = ResourceCreateBlob { blob_mem: RUTABAGA_BLOB_MEM_HOST3D, blob_flags: flags, blob_id, size };
        self.rutabaga().resource_create_blob(context, resource, blob, None, None).map_err(failed)?;
        // Once, and before any context knows it: rutabaga loses the descriptor of a blob that is exported later.
        let file = self.rutabaga().export_blob(resource).ok().and_then(buffer_of);
        // virglrenderer's own, and rutabaga's copy of what may be shared.
        let shared = flags & (BLOB_FLAG_SHAREABLE | BLOB_FLAG_CROSS_DEVICE) != 0;
        self.descriptors.insert(resource, 1 + u64::from(shared));
        let memory = file.map_or(BlobMemory::Own, BlobMemory::File);
        Ok(RenderedBlob::new(memory, self.caching(resource)))
    }

    fn map_blob(&mut self, resource: u32, address: NonNull<u8>, _len: usize) -> Result<(), RendererError> {
        self.rutabaga().map_placed(resource, address.as_ptr() as u64).map_err(failed)
    }

    fn descriptors(&mut self, resource: u32) -> u64 {
        self.descriptors.get(&resource).copied().unwrap_or(0)
    }

    fn create_shadowed_blob(
        &mut self,
        request: &BlobRequest,
        backing: Option<GuestBacking>,
    ) -> Result<(), RendererError> {
        let BlobRequest { context, resource, blob_id, size, flags } = *request;
        self.known(context)?;
        let pinned = backing.map(|backing| backing.pin()).transpose().map_err(convert::not_backed)?;
        let blob = ResourceCreateBlob { blob_mem: RUTABAGA_BLOB_MEM_HOST3D_GUEST, blob_flags: flags, blob_id, size };
        let pieces = pinned.as_ref().map(iovecs);
        self.rutabaga().resource_create_blob(context, resource, blob, pieces, None).map_err(failed)?;
        self.descriptors.insert(resource, 2);
        self.backings.extend(pinned.map(|pinned| (resource, pinned)));
        Ok(())
    }

    fn create_resource(&mut self, request: &Resource3d) -> Result<(), RendererError> {
        let id = request.resource;
        let rutabaga = self.virgl()?;
        rutabaga.resource_create_3d(id, resource_of(request)).map_err(failed)?;
        // Rutabaga keeps a dma-buf of it, where there is one, and hands out copies.
        if rutabaga.export_blob(id).is_ok() {
            self.descriptors.insert(id, 1);
        }
        Ok(())
    }

    fn attach_backing(&mut self, resource: u32, backing: GuestBacking) -> Result<(), RendererError> {
        let pinned = backing.pin().map_err(convert::not_backed)?;
        self.rutabaga().attach_backing(resource, iovecs(&pinned)).map_err(failed)?;
        self.backings.insert(resource, pinned);
        Ok(())
    }

    fn detach_backing(&mut self, resource: u32) {
        let _ = self.rutabaga().detach_backing(resource);
        self.backings.remove(&resource);
    }

    fn transfer(&mut self, transfer: &Transfer3d) -> Result<(), RendererError> {
        if transfer.context != 0 {
            self.known(transfer.context)?;
        }
        if convert::wraps(transfer) {
            return Err(RendererError::Invalid("a transfer of 4 GiB or more".into()));
        }
        let (context, resource) = (transfer.context, transfer.resource);
        let (region, rutabaga) = (transfer_of(transfer), self.virgl()?);
        match transfer.direction {
            Direction::ToHost => rutabaga.transfer_write(context, resource, region, None),
            Direction::FromHost => rutabaga.transfer_read(context, resource, region, None),
        }
        .map_err(failed)
    }

    fn read_pixels(&mut self, resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        let stride = area.width.saturating_mul(PIXEL);
        let mut pixels = vec![0; stride as usize * area.height as usize];
        let region = rutabaga_gfx::Transfer3D {
            stride,
            ..rutabaga_gfx::Transfer3D::new_2d(area.x, area.y, area.width, area.height, 0)
        };
        let read = self.virgl()?.transfer_read(0, resource, region, Some(IoSliceMut::new(&mut pixels)));
        read.map(|()| pixels).map_err(failed)
    }

    fn export_picture(&mut self, resource: u32) -> Option<RenderedPicture> {
        self.descriptors.get(&resource)?;
        let info = self.rutabaga.resource3d_info(resource).ok()?;
        let file = self.rutabaga().export_blob(resource).ok().and_then(dma_buf_of)?;
        let planes = info.strides.into_iter().zip(info.offsets).map(|(stride, offset)| Plane { offset, stride });
        let planes: Vec<Plane> = planes.take_while(|plane| plane.stride != 0).collect();
        (!planes.is_empty()).then(|| RenderedPicture::new(file, planes, Some(info.modifier)))
    }

    fn destroy_resource(&mut self, resource: u32) {
        let _ = self.rutabaga().detach_backing(resource);
        let _ = self.rutabaga().unref_resource(resource);
        self.backings.remove(&resource);
        self.descriptors.remove(&resource);
    }

    /// A fence that it does not take, such as one on no ring where there is no OpenGL, comes after all calls before it: those
    /// have returned.
    fn fence(&mut self, context: u32, ring: Option<u8>, fence: Fence) {
        let timeline = ring.map(|ring| (context, ring));
        let number = self.fences.add(timeline, fence);
        let flags = RUTABAGA_FLAG_FENCE | if ring.is_some() { RUTABAGA_FLAG_INFO_RING_IDX } else { 0 };
        let asked = RutabagaFence { flags, fence_id: number.into(), ctx_id: context, ring_idx: ring.unwrap_or(0) };
        let takes = ring.is_some() || self.has_virgl();
        if !takes || self.rutabaga().create_fence(asked).is_err() {
            self.fences.signal(timeline, number);
        }
    }
}

impl Drop for RutabagaRenderer {
    /// Guest memory first, then whoever waits, then the contexts. Where one of them cannot be ended, nothing is: its end would be
    /// the VMM's.
    fn drop(&mut self) {
        let backings = std::mem::take(&mut self.backings);
        for resource in backings.keys() {
            let _ = self.rutabaga().detach_backing(*resource);
        }
        drop(backings);
        self.fences.end();
        let contexts: Vec<u32> = self.contexts.keys().copied().collect();
        contexts.into_iter().for_each(|context| self.destroy_context(context));
        let nothing = || RutabagaBuilder::new(0, RutabagaHandler::new(|_| ()));
        if !self.left.is_empty()
            && let Ok(other) = nothing().set_default_component(RutabagaComponentType::Rutabaga2D).build()
        {
            std::mem::forget(std::mem::replace(&mut self.rutabaga, other));
        }
    }
}
