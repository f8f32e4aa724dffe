//! The device's task from its start to its end: activate, serve, reset, stop.
//! Control messages come before all other work, and only between turns, so that a reset never meets a command half done.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use tokio::sync::mpsc::UnboundedReceiver;
use vm_memory::GuestAddressSpace;

use super::control::{ActivateError, Control, OfferError};
use super::{Activation, BlobId, QueueSetup};
use crate::commands::{Gpu, Parts};
use crate::cross_domain::HostSockets;
use crate::limits::{Ledger, Limits};
use crate::observe::{Counters, error_limited};
use crate::pipeline::{Active, Pipeline, Source};
use crate::queue::Ring;
use crate::renderer::{Capset, RendererEnd, RendererThread};
use crate::seams::SharedMemory;
use crate::sys::ring::Nudge;
use crate::window::{ReadOnlyPolicy, Window};

/// What the builder has gathered for a task.
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) window: Option<Box<dyn SharedMemory>>,
    pub(super) read_only: ReadOnlyPolicy,
    pub(super) alignment: u64,
    pub(super) hosts: HostSockets,
    pub(super) renderer: Option<(RendererThread, Vec<Capset>, RendererEnd)>,
    pub(super) counters: std::sync::Arc<Counters>,
    /// An eventfd for the task's own use.
    pub(super) nudge: OwnedFd,
}

/// A device that waits to be run. It can be sent to the thread that runs it.
#[must_use = "a device does nothing until its task is run"]
pub struct DeviceTask<M> {
    pub(super) setup: Setup,
    pub(super) control: UnboundedReceiver<Control<M>>,
}

impl<M: GuestAddressSpace + Clone + Send + 'static> DeviceTask<M> {
    /// Runs the device until it is stopped or its handle is dropped. To be awaited in a tokio-uring runtime, where any
    /// number of devices may run beside each other.
    pub async fn run(self) {
        let Self { setup, mut control } = self;
        let deadline = setup.limits.deadline;
        let (mut pipeline, renderer) = match assemble::<M>(setup) {
            Ok(assembled) => assembled,
            Err(error) => return error_limited!(%error, "the runtime cannot watch descriptors; the device is gone"),
        };
        loop {
            // A turn is bounded by the pipeline itself, so the runtime need not count what it does.
            let next = poll_fn(|cx| poll_next(&mut pipeline, &mut control, cx));
            match tokio::task::unconstrained(next).await {
                Some(Control::Activate { activation, features, reply }) => {
                    let _ = reply.send(activate(&mut pipeline, *activation, features));
                }
                Some(Control::Offer { buffer, reply }) => {
                    let offered = pipeline.gpu().offer(buffer);
                    let _ =
                        reply.send(offered.map(BlobId).map_err(|refusal| OfferError { reason: refusal.to_string() }));
                }
                Some(Control::Reset { reply }) => {
                    pipeline.quiesce(deadline).await;
                    pipeline.gpu().counters.resets.bump();
                    let _ = reply.send(());
                }
                Some(Control::Stop { reply }) => {
                    end(pipeline, renderer, deadline).await;
                    let _ = reply.send(());
                    return;
                }
                None => return end(pipeline, renderer, deadline).await,
            }
        }
    }
}

/// The next control message, serving the guest meanwhile; `None` when the handle is gone.
fn poll_next<M: GuestAddressSpace + Clone + 'static>(
    pipeline: &mut Pipeline<M>,
    control: &mut UnboundedReceiver<Control<M>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Control<M>>> {
    if let Poll::Ready(message) = control.poll_recv(cx) {
        return Poll::Ready(message);
    }
    pipeline.poll_turn(cx).map(|never| match never {})
}

fn assemble<M: GuestAddressSpace + Clone + 'static>(setup: Setup) -> io::Result<(Pipeline<M>, Option<RendererEnd>)> {
    let Setup { limits, window, read_only, alignment, hosts, renderer, counters, nudge } = setup;
    let ledger = Ledger::new(&limits);
    let window =
        window.map(|memory| Window::new(memory, alignment, read_only, limits.deadline, std::rc::Rc::clone(&ledger)));
    let (renderer, capsets, end) = match renderer {
        Some((thread, capsets, end)) => (Some(thread), capsets, Some(end)),
        None => (None, Vec::new(), None),
    };
    let parts = Parts { window, hosts, renderer, capsets, alignment, limits, ledger, counters };
    Ok((Pipeline::new(Gpu::new(parts), Nudge::new(nudge)?), end))
}

fn activate<M: GuestAddressSpace + Clone + 'static>(
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
    let control = source(control, memory.clone(), 0)?;
    let cursor = source(cursor, memory.clone(), 1)?;
    pipeline.activate(Active { control, cursor, interrupt }, memory, features);
    Ok(())
}

fn source<M: GuestAddressSpace>(setup: QueueSetup, memory: M, index: u16) -> Result<Source<M>, ActivateError> {
    let ring =
        Ring::new(setup.queue, memory).map_err(|error| ActivateError::Queue { index, reason: error.to_string() })?;
    Source::new(ring, setup.kick).map_err(|error| ActivateError::Queue { index, reason: error.to_string() })
}

/// Ends the device: quiet first, then its renderer's thread.
async fn end<M: GuestAddressSpace + Clone + 'static>(
    mut pipeline: Pipeline<M>,
    renderer: Option<RendererEnd>,
    deadline: std::time::Duration,
) {
    pipeline.quiesce(deadline).await;
    drop(pipeline);
    if let Some(renderer) = renderer {
        renderer.wait(deadline).await;
    }
}
