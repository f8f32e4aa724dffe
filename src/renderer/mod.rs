//! The seam for every context type but cross-domain: a renderer of the VMM's choice, on a thread of its own.
//! The device speaks plain data to it over a channel and awaits its replies, however long they take.

mod rutabaga;
mod thread;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

pub use rutabaga::{RutabagaRenderer, RutabagaSettings};
pub(crate) use thread::{Created, RendererThread, Replied, Running};

pub use crate::protocol::command::Direction;
use crate::resource::GuestBacking;
use crate::seams::{Area, Caching, Plane};

/// A capability set that a renderer offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capset {
    /// Its id (virtio 1.4, section 5.7.6.8: 1 virgl, 2 virgl2, 3 gfxstream, 4 venus); not 5, which is the device's own.
    pub id: u32,
    /// Its highest version.
    pub max_version: u32,
    /// Its data.
    pub data: Vec<u8>,
}

/// Why a renderer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendererError {
    /// The guest's request makes no sense to it.
    #[error("the renderer refused: {0}")]
    Invalid(String),
    /// It is out of memory or of another resource.
    #[error("the renderer is out of resources: {0}")]
    OutOfMemory(String),
    /// Its thread has ended, or is taken for hung.
    #[error("the renderer has stopped")]
    Stopped,
}

/// What a renderer has made a blob of.
#[derive(Debug)]
#[non_exhaustive]
pub struct RenderedBlob {
    /// Where its memory is.
    pub memory: BlobMemory,
    /// How a guest is to map it.
    pub caching: Caching,
}

/// Where a blob's memory is.
#[derive(Debug)]
pub enum BlobMemory {
    /// In a memfd or a dma-buf, which the device maps and closes.
    File(OwnedFd),
    /// Where the renderer alone can reach it: the device has it mapped by [`Renderer::map_blob`].
    Own,
}

impl RenderedBlob {
    /// A blob of this memory, mapped by guests as this says.
    #[must_use]
    pub fn new(memory: BlobMemory, caching: Caching) -> Self {
        Self { memory, caching }
    }
}

/// Memory that guests map write-back.
impl From<OwnedFd> for RenderedBlob {
    fn from(file: OwnedFd) -> Self {
        Self::new(BlobMemory::File(file), Caching::Cached)
    }
}

/// The dma-buf that a picture of a renderer's lies in.
#[derive(Debug)]
#[non_exhaustive]
pub struct RenderedPicture {
    /// A descriptor of its own, which the device closes.
    pub file: OwnedFd,
    /// Its planes, one at least and four at most.
    pub planes: Vec<Plane>,
    /// The layout (`DRM_FORMAT_MOD_*`).
    pub modifier: Option<u64>,
}

impl RenderedPicture {
    /// A picture in this dma-buf.
    #[must_use]
    pub fn new(file: OwnedFd, planes: Vec<Plane>, modifier: Option<u64>) -> Self {
        Self { file, planes, modifier }
    }
}

/// A host object that a guest wants as a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobRequest {
    /// The context that owns the object.
    pub context: u32,
    /// The new resource.
    pub resource: u32,
    /// The object's id in the context.
    pub blob_id: u64,
    /// Size in bytes.
    pub size: u64,
    /// `VIRTIO_GPU_BLOB_FLAG_USE_*`.
    pub flags: u32,
}

/// A 3D resource that a guest wants (RESOURCE_CREATE_3D); what the numbers mean is between it and the renderer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resource3d {
    /// The new resource.
    pub resource: u32,
    /// Kind of texture or buffer.
    pub target: u32,
    /// Format of its pixels. Those that a display can show have the wire's numbers.
    pub format: u32,
    /// What it is for.
    pub bind: u32,
    /// Width in pixels, or length in bytes.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Depth in pixels.
    pub depth: u32,
    /// Number of layers.
    pub array_size: u32,
    /// Last level of a mipmap.
    pub last_level: u32,
    /// Samples of a pixel.
    pub samples: u32,
    /// Flags.
    pub flags: u32,
}

/// A copy between a resource and the guest memory behind it (TRANSFER_TO_HOST_3D, TRANSFER_FROM_HOST_3D).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transfer3d {
    /// The context that asks for it, 0 for none.
    pub context: u32,
    /// The resource.
    pub resource: u32,
    /// Which way it goes.
    pub direction: Direction,
    /// First column, row and layer.
    pub origin: [u32; 3],
    /// Columns, rows and layers.
    pub size: [u32; 3],
    /// Where it begins in guest memory, in bytes.
    pub offset: u64,
    /// Level of a mipmap.
    pub level: u32,
    /// Bytes from row to row in guest memory; 0: as the format has it.
    pub stride: u32,
    /// Bytes from layer to layer in guest memory; 0: as the format has it.
    pub layer_stride: u32,
}

/// A promise to a guest; it is kept by [`signal`](Self::signal), from any thread, or by dropping it.
pub struct Fence {
    signal: Option<Box<dyn FnOnce() + Send>>,
}

impl Fence {
    pub(crate) fn new(signal: impl FnOnce() + Send + 'static) -> Self {
        Self { signal: Some(Box::new(signal)) }
    }

    /// The work that came before it is done.
    pub fn signal(self) {}
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fence")
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if let Some(signal) = self.signal.take() {
            signal();
        }
    }
}

/// A renderer. Every call comes from one thread, in the order in which the guest's commands may take effect. A call may
/// take its time: only commands of its contexts wait for it, and a reset no longer than
/// [`Limits::deadline`](crate::Limits::deadline). A renderer that panics has stopped, and so has one whose call lasts longer
/// than [`Limits::renderer_deadline`](crate::Limits::renderer_deadline): every command that waits for it is answered
/// ERR_UNSPEC, and so is whatever asks for it from then on, until the device is built anew
/// ([`Counters::renderers_lost`](crate::Counters)). One that returns from such a call after all is dropped at once.
///
/// A renderer without 3D resources (Venus, native contexts) leaves out what deals with them: it is refused then.
pub trait Renderer {
    /// The capability sets that it serves; asked for once. A renderer without any is not used.
    fn capsets(&self) -> Vec<Capset>;

    /// A descriptor that is readable while the renderer wants to be [polled](Self::poll); asked for once.
    fn poll_descriptor(&self) -> Option<OwnedFd> {
        None
    }

    /// Does what the renderer has left to do by itself, when its descriptor says so: makes it unreadable, too.
    fn poll(&mut self) {}

    /// Makes a context; `capset` is one of its own, or 0 where the guest named none.
    ///
    /// # Errors
    /// See [`RendererError`]; so for all calls below.
    fn create_context(&mut self, context: u32, capset: u32, name: &str) -> Result<(), RendererError>;

    /// How many descriptors it keeps open for a context that it has just made, until that ends: they count for
    /// [`Limits::fds`](crate::Limits::fds).
    fn context_descriptors(&mut self, context: u32) -> u64 {
        let _ = context;
        0
    }

    /// Ends a context. Its fences must signal.
    fn destroy_context(&mut self, context: u32);

    /// Makes a resource known to a context: any resource of the guest, also one that the renderer has not made.
    fn attach_resource(&mut self, context: u32, resource: u32);

    /// Takes a resource from a context. The end of either does so without a call.
    fn detach_resource(&mut self, context: u32, resource: u32);

    /// Carries out a command stream.
    ///
    /// # Errors
    /// A stream that it refuses.
    fn submit(&mut self, context: u32, stream: &[u8]) -> Result<(), RendererError>;

    /// Makes a resource of a host object.
    ///
    /// # Errors
    /// An object that does not exist or has no memory.
    fn create_blob(&mut self, request: &BlobRequest) -> Result<RenderedBlob, RendererError>;

    /// Maps a blob whose memory is its [own](BlobMemory::Own) over the `len` bytes from `address` on, in place of what is mapped
    /// there. `len` is the blob's size in whole pages. The device moves the mapping into the window, and alone takes it away
    /// again, also after an error. The blob may have gone by then: the mapping must outlast it.
    ///
    /// # Errors
    /// Memory that cannot be mapped.
    fn map_blob(&mut self, resource: u32, address: NonNull<u8>, len: usize) -> Result<(), RendererError> {
        let _ = (resource, address, len);
        Err(RendererError::Invalid("its blobs cannot be mapped".into()))
    }

    /// How many descriptors it keeps open for a resource that it has just made, until that is destroyed: they count for
    /// [`Limits::fds`](crate::Limits::fds).
    fn descriptors(&mut self, resource: u32) -> u64 {
        let _ = resource;
        0
    }

    /// Makes a resource of a host object which guest memory shadows: transfers copy between the two. `backing` is that
    /// memory, or it is attached later.
    ///
    /// # Errors
    /// An object that does not exist.
    fn create_shadowed_blob(
        &mut self,
        request: &BlobRequest,
        backing: Option<GuestBacking>,
    ) -> Result<(), RendererError> {
        let _ = (request, backing);
        Err(no_3d_resources())
    }

    /// Makes a 3D resource.
    ///
    /// # Errors
    /// One that makes no sense, or no memory for it.
    fn create_resource(&mut self, request: &Resource3d) -> Result<(), RendererError> {
        let _ = request;
        Err(no_3d_resources())
    }

    /// Puts guest memory behind a resource that it has made, to be copied from and to by transfers.
    ///
    /// # Errors
    /// None that the guest could do anything about.
    fn attach_backing(&mut self, resource: u32, backing: GuestBacking) -> Result<(), RendererError> {
        let _ = (resource, backing);
        Err(no_3d_resources())
    }

    /// Takes the guest memory from behind a resource. The end of the resource does so without a call.
    fn detach_backing(&mut self, resource: u32) {
        let _ = resource;
    }

    /// Copies between a resource and the guest memory behind it.
    ///
    /// # Errors
    /// A part that does not lie in the resource, or memory that is not there.
    fn transfer(&mut self, transfer: &Transfer3d) -> Result<(), RendererError> {
        let _ = transfer;
        Err(no_3d_resources())
    }

    /// Reads pixels of a resource that a display shows: four bytes each in the format that the resource was made with, row
    /// after row. `area` lies in the resource.
    ///
    /// # Errors
    /// A resource that cannot be read.
    fn read_pixels(&mut self, resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        let _ = (resource, area);
        Err(no_3d_resources())
    }

    /// The dma-buf that a resource's picture lies in, for displays that take dma-bufs. Asked for when a scanout first shows the
    /// resource. `None`: its pixels are [read](Self::read_pixels).
    fn export_picture(&mut self, resource: u32) -> Option<RenderedPicture> {
        let _ = resource;
        None
    }

    /// Forgets a resource that it has made, also one whose descriptor was of no use. Its mapping may outlast it.
    fn destroy_resource(&mut self, resource: u32);

    /// Signals `fence` when everything that was submitted on this timeline is done. A timeline is a context with one of
    /// its rings, or the context's own without.
    fn fence(&mut self, context: u32, ring: Option<u8>, fence: Fence);
}

fn no_3d_resources() -> RendererError {
    RendererError::Invalid("it has no 3D resources".into())
}

/// Makes a renderer on the renderer's own thread, so that it need not be `Send`.
pub(crate) type RendererFactory = Box<dyn FnOnce() -> io::Result<Box<dyn Renderer>> + Send>;
