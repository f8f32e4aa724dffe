//! The seam for every context type but cross-domain: a renderer of the VMM's choice, on a thread of its own.
//! The device speaks plain data to it over a channel and awaits its replies, however long they take.

mod thread;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

pub(crate) use thread::{RendererEnd, RendererThread};

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
    /// Its thread has ended.
    #[error("the renderer has stopped")]
    Stopped,
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
/// take as long as it needs: only commands of its contexts wait for it, and a reset no longer than
/// [`Limits::deadline`](crate::Limits::deadline). A renderer that panics has stopped: what is asked of it is answered
/// ERR_UNSPEC from then on. Guest memory behind resources is not passed.
pub trait Renderer {
    /// The capability sets that it serves; asked for once.
    fn capsets(&self) -> Vec<Capset>;

    /// Makes a context; `capset` is one of its own, or 0 where the guest named none.
    ///
    /// # Errors
    /// See [`RendererError`]; so for all calls below.
    fn create_context(&mut self, context: u32, capset: u32, name: &str) -> Result<(), RendererError>;

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

    /// Makes a resource of a host object and exports its memory: a memfd or a dma-buf, which the device maps and closes.
    ///
    /// # Errors
    /// An object that does not exist or has no memory to export.
    fn create_blob(&mut self, request: &BlobRequest) -> Result<OwnedFd, RendererError>;

    /// Forgets a resource that it has made, also one whose descriptor was of no use. Its mapping may outlast it.
    fn destroy_resource(&mut self, resource: u32);

    /// Signals `fence` when everything that was submitted on this timeline is done. A timeline is a context with one of
    /// its rings, or the context's own without.
    fn fence(&mut self, context: u32, ring: Option<u8>, fence: Fence);
}

/// Makes a renderer on the renderer's own thread, so that it need not be `Send`.
pub(crate) type RendererFactory = Box<dyn FnOnce() -> io::Result<Box<dyn Renderer>> + Send>;
