//! The one thread that calls a renderer, and the device's end of it.
//! Requests wait in a queue, which is bounded by the limits on commands in flight and on resources: each request belongs to
//! one of them. The device task awaits replies and never blocks.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc as blocking;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{BlobRequest, Capset, Fence, Renderer, RendererError, RendererFactory, Resource3d, Transfer3d};
use crate::protocol::wire::CAPSET_CROSS_DOMAIN;
use crate::resource::GuestBacking;
use crate::seams::{Area, LocalFuture};

enum Request {
    CreateContext { context: u32, capset: u32, name: String, reply: Reply<()> },
    DestroyContext { context: u32, reply: Reply<()> },
    Attach { context: u32, resource: u32, attached: bool, reply: Reply<()> },
    Submit { context: u32, stream: Vec<u8>, reply: Reply<()> },
    CreateBlob { request: BlobRequest, reply: Reply<OwnedFd> },
    CreateShadowedBlob { request: BlobRequest, backing: Option<GuestBacking>, reply: Reply<()> },
    CreateResource { request: Resource3d, reply: Reply<()> },
    AttachBacking { resource: u32, backing: GuestBacking, reply: Reply<()> },
    DetachBacking { resource: u32, reply: Reply<()> },
    Transfer { transfer: Transfer3d, reply: Reply<()> },
    ReadPixels { resource: u32, area: Area, reply: Reply<Vec<u8>> },
    DestroyResource { resource: u32, reply: Reply<()> },
    Fence { context: u32, ring: Option<u8>, fence: Fence },
}

type Reply<T> = oneshot::Sender<Result<T, RendererError>>;

/// The device's end; clones talk to the same thread. The thread ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct RendererThread {
    requests: mpsc::UnboundedSender<Request>,
}

/// Waits for the thread's end.
pub(crate) struct RendererEnd(oneshot::Receiver<()>);

impl RendererThread {
    /// Starts the thread and makes the renderer on it.
    ///
    /// # Errors
    /// Where the thread cannot be started, or the renderer cannot be made.
    pub(crate) fn start(factory: RendererFactory) -> io::Result<(Self, Vec<Capset>, RendererEnd)> {
        let (requests, queue) = mpsc::unbounded_channel();
        let (started, start) = blocking::sync_channel(1);
        let (ended, end) = oneshot::channel::<()>();
        std::thread::Builder::new().name("virtio-gpu-renderer".into()).spawn(move || {
            match factory() {
                Ok(mut renderer) => {
                    let _ = started.send(Ok(renderer.capsets()));
                    serve(&mut *renderer, queue);
                }
                Err(error) => drop(started.send(Err(error))),
            }
            drop(ended);
        })?;
        let mut capsets = start.recv().map_err(|_| io::Error::other("the renderer's thread ended at once"))??;
        capsets.retain(|capset| capset.id != CAPSET_CROSS_DOMAIN);
        Ok((Self { requests }, capsets, RendererEnd(end)))
    }

    /// Puts a request into the queue now, so that the renderer sees requests in the order in which they are made; the
    /// future waits for the reply.
    fn ask<T: 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Replied<T> {
        let (reply, answer) = oneshot::channel();
        // A thread that has ended drops the request, and with it the other end of the reply.
        let _ = self.requests.send(request(reply));
        Box::pin(async { answer.await.unwrap_or(Err(RendererError::Stopped)) })
    }

    pub(crate) fn create_context(&self, context: u32, capset: u32, name: String) -> Replied<()> {
        self.ask(|reply| Request::CreateContext { context, capset, name, reply })
    }

    pub(crate) fn destroy_context(&self, context: u32) -> Replied<()> {
        self.ask(|reply| Request::DestroyContext { context, reply })
    }

    pub(crate) fn attach(&self, context: u32, resource: u32, attached: bool) -> Replied<()> {
        self.ask(|reply| Request::Attach { context, resource, attached, reply })
    }

    pub(crate) fn submit(&self, context: u32, stream: Vec<u8>) -> Replied<()> {
        self.ask(|reply| Request::Submit { context, stream, reply })
    }

    pub(crate) fn create_blob(&self, request: BlobRequest) -> Replied<OwnedFd> {
        self.ask(|reply| Request::CreateBlob { request, reply })
    }

    pub(crate) fn create_shadowed_blob(&self, request: BlobRequest, backing: Option<GuestBacking>) -> Replied<()> {
        self.ask(|reply| Request::CreateShadowedBlob { request, backing, reply })
    }

    pub(crate) fn create_resource(&self, request: Resource3d) -> Replied<()> {
        self.ask(|reply| Request::CreateResource { request, reply })
    }

    pub(crate) fn attach_backing(&self, resource: u32, backing: GuestBacking) -> Replied<()> {
        self.ask(|reply| Request::AttachBacking { resource, backing, reply })
    }

    pub(crate) fn detach_backing(&self, resource: u32) -> Replied<()> {
        self.ask(|reply| Request::DetachBacking { resource, reply })
    }

    pub(crate) fn transfer(&self, transfer: Transfer3d) -> Replied<()> {
        self.ask(|reply| Request::Transfer { transfer, reply })
    }

    pub(crate) fn read_pixels(&self, resource: u32, area: Area) -> Replied<Vec<u8>> {
        self.ask(|reply| Request::ReadPixels { resource, area, reply })
    }

    pub(crate) fn destroy_resource(&self, resource: u32) -> Replied<()> {
        self.ask(|reply| Request::DestroyResource { resource, reply })
    }

    /// Asks for a fence. A renderer that is gone has nothing left to do: the fence is dropped, and signals.
    pub(crate) fn fence(&self, context: u32, ring: Option<u8>, fence: Fence) {
        let _ = self.requests.send(Request::Fence { context, ring, fence });
    }
}

/// A reply of the renderer on its way.
pub(crate) type Replied<T> = LocalFuture<Result<T, RendererError>>;

impl RendererEnd {
    /// Waits until the thread has ended, or until the deadline.
    pub(crate) async fn wait(self, deadline: Duration) {
        let _ = tokio::time::timeout(deadline, self.0).await;
    }
}

fn serve(renderer: &mut dyn Renderer, mut queue: mpsc::UnboundedReceiver<Request>) {
    while let Some(request) = queue.blocking_recv() {
        request.serve(renderer);
    }
}

impl Request {
    /// A reply that nobody waits for any more belongs to a device that was reset.
    fn serve(self, renderer: &mut dyn Renderer) {
        match self {
            Self::CreateContext { context, capset, name, reply } => {
                let _ = reply.send(renderer.create_context(context, capset, &name));
            }
            Self::DestroyContext { context, reply } => {
                renderer.destroy_context(context);
                let _ = reply.send(Ok(()));
            }
            Self::Attach { context, resource, attached, reply } => {
                if attached {
                    renderer.attach_resource(context, resource);
                } else {
                    renderer.detach_resource(context, resource);
                }
                let _ = reply.send(Ok(()));
            }
            Self::Submit { context, stream, reply } => {
                let _ = reply.send(renderer.submit(context, &stream));
            }
            Self::CreateBlob { request, reply } => {
                let _ = reply.send(renderer.create_blob(&request));
            }
            Self::CreateShadowedBlob { request, backing, reply } => {
                let _ = reply.send(renderer.create_shadowed_blob(&request, backing));
            }
            Self::CreateResource { request, reply } => {
                let _ = reply.send(renderer.create_resource(&request));
            }
            Self::AttachBacking { resource, backing, reply } => {
                let _ = reply.send(renderer.attach_backing(resource, backing));
            }
            Self::DetachBacking { resource, reply } => {
                renderer.detach_backing(resource);
                let _ = reply.send(Ok(()));
            }
            Self::Transfer { transfer, reply } => {
                let _ = reply.send(renderer.transfer(&transfer));
            }
            Self::ReadPixels { resource, area, reply } => {
                let _ = reply.send(renderer.read_pixels(resource, area));
            }
            Self::DestroyResource { resource, reply } => {
                renderer.destroy_resource(resource);
                let _ = reply.send(Ok(()));
            }
            Self::Fence { context, ring, fence } => renderer.fence(context, ring, fence),
        }
    }
}
