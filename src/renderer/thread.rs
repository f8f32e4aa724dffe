//! The one thread that calls a renderer, and the device's end of it. Requests wait in a bounded queue; the device task awaits
//! replies and never blocks, and gives up a renderer that does not come back from a call.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BlobRequest, Capset, Fence, RenderedBlob, RenderedPicture, Renderer, RendererError, RendererFactory, Resource3d,
    Transfer3d,
};
use crate::observe::{error_limited, warn_limited};
use crate::protocol::wire::CAPSET_CROSS_DOMAIN;
use crate::resource::GuestBacking;
use crate::seams::{Area, FixedRange, LocalFuture};

enum Request {
    CreateContext { context: u32, capset: u32, name: String, reply: Reply<Created<()>> },
    DestroyContext { context: u32, reply: Reply<()> },
    Attach { context: u32, resource: u32, attached: bool, reply: Reply<()> },
    Submit { context: u32, stream: Vec<u8>, reply: Reply<()> },
    Create(Create),
    MapBlob { resource: u32, range: Arc<FixedRange>, reply: Reply<()> },
    AttachBacking { resource: u32, backing: GuestBacking, reply: Reply<()> },
    DetachBacking { resource: u32, reply: Reply<()> },
    Transfer { transfer: Transfer3d, reply: Reply<()> },
    ReadPixels { resource: u32, area: Area, reply: Reply<Vec<u8>> },
    ExportPicture { resource: u32, reply: Reply<Option<RenderedPicture>> },
    DestroyResource { resource: u32, reply: Reply<()> },
    Fence { context: u32, ring: Option<u8>, fence: Fence },
    Poll { done: blocking::SyncSender<()> },
}

/// What makes a resource.
enum Create {
    Blob { request: BlobRequest, reply: Reply<Created<RenderedBlob>> },
    ShadowedBlob { request: BlobRequest, backing: Option<GuestBacking>, reply: Reply<Created<()>> },
    Resource { request: Resource3d, reply: Reply<Created<()>> },
}

type Reply<T> = oneshot::Sender<Result<T, RendererError>>;

/// Something that the renderer has made, and the descriptors that it keeps for it.
#[derive(Debug)]
pub(crate) struct Created<T> {
    pub(crate) made: T,
    pub(crate) descriptors: u64,
}

/// What both ends know of each other.
struct Link {
    /// Calls that were begun and calls that have ended, together: odd during a call.
    calls: AtomicU64,
    /// Whether the device has given the renderer up.
    lost: watch::Sender<bool>,
}

/// The device's end; clones talk to the same thread. The thread ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct RendererThread {
    requests: mpsc::Sender<Request>,
    link: Arc<Link>,
}

/// A renderer that has started.
pub(crate) struct Running {
    pub(crate) thread: RendererThread,
    pub(crate) capsets: Vec<Capset>,
    end: oneshot::Receiver<()>,
}

impl Running {
    /// Starts the thread and makes the renderer on it. `requests` wait for it at most. `None` where it has nothing to offer.
    ///
    /// # Errors
    /// Where the thread cannot be started, or the renderer cannot be made.
    pub(crate) fn start(factory: RendererFactory, requests: usize) -> io::Result<Option<Self>> {
        let (requests, queue) = mpsc::channel(requests.clamp(1, mpsc_max()));
        let (started, start) = blocking::sync_channel(1);
        let (ended, end) = oneshot::channel::<()>();
        let link = Arc::new(Link { calls: AtomicU64::new(0), lost: watch::Sender::new(false) });
        let device_end = Arc::clone(&link);
        let pump = requests.downgrade();
        std::thread::Builder::new().name("virtio-gpu-renderer".into()).spawn(move || {
            match factory() {
                Ok(mut renderer) => {
                    let _ = started.send(Ok(renderer.capsets()));
                    // Ends with this value.
                    let _pump = renderer.poll_descriptor().map(|file| Pump::start(file, pump));
                    link.serve(&mut *renderer, queue);
                }
                Err(error) => drop(started.send(Err(error))),
            }
            drop(ended);
        })?;
        let mut capsets = start.recv().map_err(|_| io::Error::other("the renderer's thread ended at once"))??;
        capsets.retain(|capset| capset.id != CAPSET_CROSS_DOMAIN);
        if capsets.is_empty() {
            warn_limited!("the renderer has no capability set to offer: the device does without");
            return Ok(None);
        }
        Ok(Some(Self { thread: RendererThread { requests, link: device_end }, capsets, end }))
    }

    /// The thread, its capability sets, and what waits for its end until the deadline, once all clones of it are gone.
    pub(crate) fn into_parts(self, deadline: Duration) -> (RendererThread, Vec<Capset>, LocalFuture<()>) {
        let end = self.end;
        let ended = Box::pin(async move { drop(tokio::time::timeout(deadline, end).await) });
        (self.thread, self.capsets, ended)
    }
}

/// No call is taken for hung before.
const SHORTEST: Duration = Duration::from_millis(1);

/// Most that tokio's channels take.
const fn mpsc_max() -> usize {
    tokio::sync::Semaphore::MAX_PERMITS
}

impl RendererThread {
    /// Puts a request into the queue now, so that the renderer sees requests in the order in which they are made; the
    /// future waits for the reply.
    fn ask<T: 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Replied<T> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply));
        let mut lost = self.link.lost.subscribe();
        Box::pin(async move {
            let lost = pin!(lost.wait_for(|lost| *lost));
            match select(answer, lost).await {
                // A thread that has ended has dropped the request, and with it the other end of the reply.
                Either::Left((answer, _)) => answer.unwrap_or(Err(RendererError::Stopped)),
                Either::Right(_) => Err(RendererError::Stopped),
            }
        })
    }

    /// A request that is not taken is dropped, which answers it. A queue is full only after several resets of a renderer that
    /// does not come back: the guest's limits bound what one driver can ask.
    fn send(&self, request: Request) {
        if *self.link.lost.borrow() {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = self.requests.try_send(request) {
            error_limited!("the renderer has left too many requests unanswered, and is given up");
            self.link.lost.send_replace(true);
        }
    }

    /// Is ready when there is no renderer any more: it has panicked, or was given up because a call lasts longer than
    /// `deadline` (twice as long at most), or the queue was full.
    pub(crate) fn watch(&self, deadline: Duration) -> LocalFuture<()> {
        let Self { requests, link } = self.clone();
        Box::pin(async move {
            let mut lost = link.lost.subscribe();
            let (full, hung) = (pin!(lost.wait_for(|lost| *lost)), pin!(link.hangs(deadline)));
            if let Either::Left(_) = select(pin!(requests.closed()), select(full, hung)).await {
                error_limited!("the renderer has stopped");
            }
            link.lost.send_replace(true);
        })
    }

    pub(crate) fn create_context(&self, context: u32, capset: u32, name: String) -> Replied<Created<()>> {
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

    pub(crate) fn create_blob(&self, request: BlobRequest) -> Replied<Created<RenderedBlob>> {
        self.ask(|reply| Request::Create(Create::Blob { request, reply }))
    }

    pub(crate) fn create_shadowed_blob(
        &self,
        request: BlobRequest,
        backing: Option<GuestBacking>,
    ) -> Replied<Created<()>> {
        self.ask(|reply| Request::Create(Create::ShadowedBlob { request, backing, reply }))
    }

    pub(crate) fn create_resource(&self, request: Resource3d) -> Replied<Created<()>> {
        self.ask(|reply| Request::Create(Create::Resource { request, reply }))
    }

    pub(crate) fn map_blob(&self, resource: u32, range: Arc<FixedRange>) -> Replied<()> {
        self.ask(|reply| Request::MapBlob { resource, range, reply })
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

    pub(crate) fn export_picture(&self, resource: u32) -> Replied<Option<RenderedPicture>> {
        self.ask(|reply| Request::ExportPicture { resource, reply })
    }

    pub(crate) fn destroy_resource(&self, resource: u32) -> Replied<()> {
        self.ask(|reply| Request::DestroyResource { resource, reply })
    }

    /// Asks for a fence. A renderer that is gone has nothing left to do: the fence is dropped, and signals.
    pub(crate) fn fence(&self, context: u32, ring: Option<u8>, fence: Fence) {
        self.send(Request::Fence { context, ring, fence });
    }
}

/// A reply of the renderer on its way.
pub(crate) type Replied<T> = LocalFuture<Result<T, RendererError>>;

impl Link {
    /// Waits until one call has lasted longer than the deadline.
    async fn hangs(&self, deadline: Duration) {
        let mut seen = 0;
        loop {
            tokio::time::sleep(deadline.max(SHORTEST)).await;
            let calls = self.calls.load(Ordering::Relaxed);
            if calls == seen && calls % 2 == 1 {
                error_limited!(?deadline, "a call of the renderer does not end: the renderer is given up");
                return;
            }
            seen = calls;
        }
    }

    fn serve(&self, renderer: &mut dyn Renderer, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.blocking_recv() {
            self.calls.fetch_add(1, Ordering::Relaxed);
            request.serve(renderer);
            self.calls.fetch_add(1, Ordering::Relaxed);
            // Nobody knows any more what it has done since.
            if *self.lost.borrow() {
                return;
            }
        }
    }
}

/// A thread that waits for what a renderer wants to be polled for, and ends with this value.
struct Pump(Option<(std::io::PipeWriter, std::thread::JoinHandle<()>)>);

impl Pump {
    fn start(file: OwnedFd, requests: mpsc::WeakSender<Request>) -> Self {
        let start = || {
            let (end, writer) = std::io::pipe()?;
            let wait = move || while readable(&file, &end) && ask_to_poll(&requests) {};
            let thread = std::thread::Builder::new().name("virtio-gpu-poll".into()).spawn(wait)?;
            io::Result::Ok((writer, thread))
        };
        let started = start();
        if let Err(error) = &started {
            warn_limited!(%error, "nobody waits for what the renderer does by itself");
        }
        Self(started.ok())
    }
}

impl Drop for Pump {
    /// The queue has gone by now: whoever waits for an answer of the renderer's has none.
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

/// Waits until the file is readable; false where it never will be, or the other end of the pipe has gone.
fn readable(file: &OwnedFd, end: &std::io::PipeReader) -> bool {
    let mut both = [PollFd::new(file, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
    loop {
        match poll(&mut both, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => return both[0].revents() == PollFlags::IN && both[1].revents().is_empty(),
        }
    }
}

/// Has the renderer polled, and waits for that; false where there is none any more.
fn ask_to_poll(requests: &mpsc::WeakSender<Request>) -> bool {
    let Some(requests) = requests.upgrade() else { return false };
    let (done, polled) = blocking::sync_channel(1);
    let sent = requests.blocking_send(Request::Poll { done });
    drop(requests);
    sent.is_ok() && polled.recv().is_ok()
}

/// With the descriptors that the renderer keeps for what it has made.
fn created<T>(
    renderer: &mut dyn Renderer,
    resource: u32,
    made: Result<T, RendererError>,
) -> Result<Created<T>, RendererError> {
    made.map(|made| Created { made, descriptors: renderer.descriptors(resource) })
}

impl Request {
    /// A reply that nobody waits for any more belongs to a device that was reset.
    fn serve(self, renderer: &mut dyn Renderer) {
        match self {
            Self::CreateContext { context, capset, name, reply } => {
                let made = renderer.create_context(context, capset, &name);
                let _ =
                    reply.send(made.map(|made| Created { made, descriptors: renderer.context_descriptors(context) }));
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
            Self::MapBlob { resource, range, reply } => {
                let _ = reply.send(map_blob(renderer, resource, &range));
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
            Self::ExportPicture { resource, reply } => {
                let _ = reply.send(Ok(renderer.export_picture(resource)));
            }
            Self::DestroyResource { resource, reply } => {
                renderer.destroy_resource(resource);
                let _ = reply.send(Ok(()));
            }
            Self::Fence { context, ring, fence } => renderer.fence(context, ring, fence),
            Self::Poll { done } => {
                renderer.poll();
                let _ = done.send(());
            }
            Self::Create(create) => create.serve(renderer),
        }
    }
}

impl Create {
    fn serve(self, renderer: &mut dyn Renderer) {
        match self {
            Self::Blob { request, reply } => {
                let made = renderer.create_blob(&request);
                let _ = reply.send(created(renderer, request.resource, made));
            }
            Self::ShadowedBlob { request, backing, reply } => {
                let made = renderer.create_shadowed_blob(&request, backing);
                let _ = reply.send(created(renderer, request.resource, made));
            }
            Self::Resource { request, reply } => {
                let made = renderer.create_resource(&request);
                let _ = reply.send(created(renderer, request.resource, made));
            }
        }
    }
}

fn map_blob(renderer: &mut dyn Renderer, resource: u32, range: &FixedRange) -> Result<(), RendererError> {
    use crate::sys::fixed_range::FixedError;
    range.map(|address, len| renderer.map_blob(resource, address, len)).map_err(|error| match error {
        FixedError::Refused(error) => error,
        error => RendererError::Invalid(error.to_string()),
    })
}
