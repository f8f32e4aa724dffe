//! The device's task from its start to its end: activate, serve, reset, stop.
//! Control messages come before all other work, and only between turns, so that a reset never meets a command half done.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc::UnboundedReceiver;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::control::{ActivateError, Control, OfferError};
use super::displays::Request;
use super::{Activation, BlobId, QUEUE_SIZES, QueueSetup};
use crate::buffer::read::Read;
use crate::commands::{Gpu, Parts};
use crate::cross_domain::HostSockets;
use crate::display::Scanouts;
use crate::limits::{Ledger, Limits};
use crate::observe::LiveCounters;
use crate::pipeline::{Active, Pipeline, ReadEnd, Source};
use crate::protocol::config::LiveConfig;
use crate::protocol::features::EVENT_IDX;
use crate::queue::Ring;
use crate::renderer::Running;
use crate::resource::ResourceKey;
use crate::seams::{LocalFuture, SharedMemory};
use crate::sys::ring::Nudge;
use crate::window::{ReadOnlyPolicy, Window};

/// Most requests about displays that are served in a turn.
const REQUESTS_A_TURN: usize = 16;

/// What the builder has gathered for a task.
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) window: Option<Box<dyn SharedMemory>>,
    pub(super) read_only: ReadOnlyPolicy,
    pub(super) alignment: u64,
    pub(super) hosts: HostSockets,
    pub(super) renderer: Option<Running>,
    pub(super) scanouts: Scanouts<ResourceKey>,
    pub(super) config: Arc<LiveConfig>,
    pub(super) counters: Arc<LiveCounters>,
    /// An eventfd for the task's own use.
    pub(super) nudge: OwnedFd,
}

/// A device that waits to be run. It can be sent to the thread that runs it.
#[must_use = "a device does nothing until its task is run"]
pub struct DeviceTask<M> {
    pub(super) setup: Setup,
    pub(super) control: UnboundedReceiver<Control<M>>,
    pub(super) requests: UnboundedReceiver<Request>,
}

impl<M> fmt::Debug for DeviceTask<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTask").field("limits", &self.setup.limits).finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace + Send + 'static> DeviceTask<M> {
    /// Runs the device until it is stopped or its handle is dropped. To be awaited in a tokio-uring runtime, where any
    /// number of devices may run beside each other. Dropping the future takes all mappings back at once, on this thread.
    ///
    /// # Errors
    /// The runtime cannot watch descriptors; nothing has been done then.
    pub async fn run(self) -> io::Result<()> {
        let Self { setup, mut control, mut requests } = self;
        let (deadline, config) = (setup.limits.deadline, Arc::clone(&setup.config));
        let (mut pipeline, renderer) = assemble::<M>(setup)?;
        loop {
            // A turn is bounded by the pipeline itself, so the runtime need not count what it does.
            let next = poll_fn(|cx| poll_next(&mut pipeline, &config, &mut control, &mut requests, cx));
            match tokio::task::unconstrained(next).await {
                Some(Control::Reset { reply }) => {
                    pipeline.quiesce(deadline).await;
                    pipeline.gpu().counters.resets.bump();
                    let _ = reply.send(());
                }
                Some(Control::Pause { reply }) => {
                    let _ = reply.send(pipeline.pause(deadline).await);
                }
                Some(Control::Halt { grace, reply }) => {
                    let _ = reply.send(pipeline.halt(grace).await);
                }
                Some(Control::Stop { reply }) => {
                    end(pipeline, renderer, deadline).await;
                    let _ = reply.send(());
                    return Ok(());
                }
                Some(message) => take(&mut pipeline, message),
                None => {
                    end(pipeline, renderer, deadline).await;
                    return Ok(());
                }
            }
        }
    }
}

/// Does at once what takes no time.
fn take<M: GuestAddressSpace + Send + 'static>(pipeline: &mut Pipeline<M>, message: Control<M>) {
    // A reply that nobody waits for is as good as one that was read.
    match message {
        Control::Activate { activation, features, reply } => {
            let _ = reply.send(activate(pipeline, *activation, features));
        }
        Control::Offer { buffer, reply } => {
            let offered = pipeline.gpu().offer(buffer).map(BlobId);
            let _ = reply.send(offered.map_err(|reached| OfferError::Limit { limit: reached.limit }));
        }
        Control::Withdraw { id, reply } => {
            let _ = reply.send(pipeline.gpu().withdraw(id.0));
            pipeline.take_outbox();
        }
        Control::Read { resource, span, reply } => match pipeline.gpu().read_blob(resource, span) {
            Ok(reading) => pipeline.read(Box::pin(async move {
                let Read { result, rest } = reading.await;
                ReadEnd { rest, tell: Box::new(|| drop(reply.send(result))) }
            })),
            Err(error) => drop(reply.send(Err(error))),
        },
        Control::Exported { uuid, reply } => drop(reply.send(pipeline.gpu().exported(&uuid))),
        Control::HangUp { channel_type, reply } => {
            let _ = reply.send(pipeline.gpu().hang_up(channel_type));
            pipeline.take_outbox();
        }
        Control::Notify => pipeline.config_changed(),
        Control::Resume { reply } => {
            pipeline.resume();
            let _ = reply.send(());
        }
        Control::Rewire { activation, reply } => {
            let _ = reply.send(rewire(pipeline, *activation));
        }
        Control::Reset { .. } | Control::Pause { .. } | Control::Halt { .. } | Control::Stop { .. } => {}
    }
}

/// Does what is asked of a display.
fn serve<M: GuestAddressSpace + Send + 'static>(pipeline: &mut Pipeline<M>, config: &LiveConfig, request: Request) {
    match request {
        Request::Connect { scanout, monitor, display, reply } => {
            let connected = pipeline.gpu().scanouts().connect(scanout, *monitor, display);
            if connected.is_ok() {
                pipeline.redraw(scanout);
                displays_changed(pipeline, config);
            }
            let _ = reply.send(connected);
        }
        Request::Change { scanout, change, reply } => {
            let changed = pipeline.gpu().scanouts().change(scanout, change);
            let _ = reply.send(changed.map(|()| displays_changed(pipeline, config)));
        }
        Request::Redraw { scanout, reply } => {
            let told = pipeline.gpu().scanouts().tell_again(scanout);
            let _ = reply.send(told.map(|()| pipeline.redraw(scanout)));
        }
        Request::Disconnect { scanout, reply } => {
            let disconnected = pipeline.gpu().scanouts().disconnect(scanout);
            if let Ok(true) = disconnected {
                displays_changed(pipeline, config);
            }
            let _ = reply.send(disconnected);
        }
        Request::Release { hold } => drop(hold),
    }
}

/// Tells the driver that it should ask for the displays. One that is not up will do so by itself.
fn displays_changed<M: GuestAddressSpace + Send + 'static>(pipeline: &mut Pipeline<M>, config: &LiveConfig) {
    if pipeline.is_active() {
        config.displays_changed();
        pipeline.config_changed();
    }
}

/// The next control message, serving the guest and the VMM's displays meanwhile; `None` when the handle is gone.
fn poll_next<M: GuestAddressSpace + Send + 'static>(
    pipeline: &mut Pipeline<M>,
    config: &LiveConfig,
    control: &mut UnboundedReceiver<Control<M>>,
    requests: &mut UnboundedReceiver<Request>,
    cx: &mut Context<'_>,
) -> Poll<Option<Control<M>>> {
    if let Poll::Ready(message) = control.poll_recv(cx) {
        return Poll::Ready(message);
    }
    for _ in 0..REQUESTS_A_TURN {
        let Poll::Ready(Some(request)) = requests.poll_recv(cx) else {
            return pipeline.poll_turn(cx).map(|never| match never {});
        };
        serve(pipeline, config, request);
    }
    // A display may ask for as much as it likes, also from its own calls: all others have a turn in between.
    pipeline.poll_again(cx).map(|never| match never {})
}

fn assemble<M>(setup: Setup) -> io::Result<(Pipeline<M>, Option<LocalFuture<()>>)>
where
    M: GuestAddressSpace + Send + 'static,
{
    let Setup { mut limits, window, read_only, alignment, hosts, renderer, scanouts, config, counters, nudge } = setup;
    limits.commands_in_flight = limits.commands_in_flight.max(1);
    let ledger = Ledger::new(&limits);
    let window =
        window.map(|memory| Window::new(memory, alignment, read_only, limits.deadline, std::rc::Rc::clone(&ledger)));
    let (renderer, capsets, end) = match renderer.map(|running| running.into_parts(limits.deadline)) {
        Some((thread, capsets, end)) => (Some(thread), capsets, Some(end)),
        None => (None, Vec::new(), None),
    };
    let parts =
        Parts { window, hosts, renderer, capsets, alignment, scanouts, events: config, limits, ledger, counters };
    Ok((Pipeline::new(Gpu::new(parts), Nudge::new(nudge)?), end))
}

fn activate<M: GuestAddressSpace + Send + 'static>(
    pipeline: &mut Pipeline<M>,
    activation: Activation<M>,
    features: u64,
) -> Result<(), ActivateError> {
    if pipeline.is_active() {
        return Err(ActivateError::Active);
    }
    if features == 0 {
        return Err(ActivateError::NoFeatures);
    }
    let Activation { memory, control, cursor, interrupt } = activation;
    let event_idx = features & EVENT_IDX != 0;
    let control = source(control, memory.clone(), 0, event_idx)?;
    let cursor = if cursor.queue.ready() { Some(source(cursor, memory.clone(), 1, event_idx)?) } else { None };
    pipeline.activate(Active { control, cursor, resting: None, interrupt }, memory, features);
    Ok(())
}

/// Serves a driver whose queues are wired anew.
fn rewire<M: GuestAddressSpace + Send + 'static>(
    pipeline: &mut Pipeline<M>,
    activation: Activation<M>,
) -> Result<(), ActivateError> {
    let Activation { memory, control, cursor, interrupt } = activation;
    let active = pipeline.at_rest().ok_or(ActivateError::NotPaused)?;
    let failed = |index| move |error: Box<dyn Error>| ActivateError::Queue { index, reason: error.to_string() };
    let known = active.cursor.take().or_else(|| active.resting.take());
    (active.cursor, active.resting) = match known {
        known if !cursor.queue.ready() => (None, known),
        Some(mut source) => {
            let rewired = source.rewire(cursor.queue, cursor.kick);
            active.resting = Some(source);
            rewired.map_err(failed(1))?;
            (active.resting.take(), None)
        }
        None => (Some(source(cursor, memory, 1, active.control.state().event_idx_enabled)?), None),
    };
    active.control.rewire(control.queue, control.kick).map_err(failed(0))?;
    active.interrupt = interrupt;
    pipeline.resume();
    Ok(())
}

fn source<M: GuestAddressSpace>(
    setup: QueueSetup,
    memory: M,
    index: u16,
    event_idx: bool,
) -> Result<Source<M>, ActivateError> {
    let QueueSetup { mut queue, kick } = setup;
    let most = QUEUE_SIZES[usize::from(index)];
    if queue.size() > most {
        let reason = format!("{} descriptors where at most {most} are served", queue.size());
        return Err(ActivateError::Queue { index, reason });
    }
    queue.set_event_idx(event_idx);
    let ring = Ring::new(queue, memory).map_err(|error| ActivateError::Queue { index, reason: error.to_string() })?;
    Source::new(ring, kick).map_err(|error| ActivateError::Queue { index, reason: error.to_string() })
}

/// Ends the device: quiet first, then its renderer's thread.
async fn end<M: GuestAddressSpace + Send + 'static>(
    mut pipeline: Pipeline<M>,
    renderer: Option<LocalFuture<()>>,
    deadline: std::time::Duration,
) {
    pipeline.quiesce(deadline).await;
    drop(pipeline);
    if let Some(ended) = renderer {
        ended.await;
    }
}
