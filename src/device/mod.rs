//! What a VMM holds: a handle to a device that lives on a task of its own, and the builder that makes both.
//! Calls that change the device are messages with a reply; configuration space and counters are read in place.

mod builder;
mod control;
mod displays;
mod lifecycle;

use std::fmt;
use std::ops::RangeBounds;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use virtio_queue::Queue;
use vm_memory::GuestAddressSpace;

pub use builder::{BuildError, Builder};
pub use control::{ActivateError, DeviceGone, OfferError, Reply};
pub use displays::Displays;
pub use lifecycle::DeviceTask;

use crate::buffer::read::Span;
use crate::buffer::{HostBuffer, ReadError};
use crate::commands::Exported;
use crate::display::{ConnectError, Monitor};
use crate::observe::{Counters, LiveCounters};
use crate::pipeline::{PauseError, Paused};
use crate::protocol::config::LiveConfig;
use crate::protocol::cross_domain::ChannelType;
use crate::protocol::features::{self, FeatureError};
use crate::seams::{Display, Interrupt};
use control::Control;

/// Largest size of each queue (0 control, 1 cursor), for the transport to state; [`Device::activate`] refuses more.
pub const QUEUE_SIZES: [u16; 2] = [1024, 1024];

/// A queue as the driver has set it up, and the eventfd that the driver's notifications write.
#[derive(Debug)]
pub struct QueueSetup {
    /// rust-vmm's queue, ready, with its addresses set. The device sets EVENT_IDX as it was negotiated.
    pub queue: Queue,
    /// Written for every notification, by an ioeventfd or by the VMM. The device never reads it. From vmm-sys-util's
    /// `EventFd`: `OwnedFd::from_raw_fd(event.into_raw_fd())`.
    pub kick: OwnedFd,
}

/// Everything that comes with DRIVER_OK.
pub struct Activation<M> {
    /// Guest memory: what queues and requests may point into. The window is no part of it.
    pub memory: M,
    /// Queue 0.
    pub control: QueueSetup,
    /// Queue 1. One that is not ready is left alone: a firmware's driver may do without cursors.
    pub cursor: QueueSetup,
    /// How the driver is interrupted.
    pub interrupt: Box<dyn Interrupt>,
}

/// The id of an offered buffer, for a guest to create a blob of; bit 63 is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobId(pub u64);

/// What handle and task share without messages.
#[derive(Debug)]
struct Shared {
    config: Arc<LiveConfig>,
    counters: Arc<LiveCounters>,
    offered: u64,
    features: AtomicU64,
}

/// A VMM's handle to its device.
///
/// Dropping it stops the device. One that was spawned is waited for, as a rule at most twice
/// [`Limits::deadline`](crate::Limits::deadline), but on the device's own thread. Displays are dropped meanwhile: what they
/// wait for then must not wait for this handle. One that was built ends when its task is polled next.
pub struct Device<M: GuestAddressSpace> {
    displays: Displays,
    control: Option<UnboundedSender<Control<M>>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl<M: GuestAddressSpace> Device<M> {
    /// The feature bits to offer to the driver.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.shared.offered
    }

    /// The driver's choice, at FEATURES_OK.
    ///
    /// # Errors
    /// A choice that cannot be served: the transport then leaves FEATURES_OK clear, and an earlier choice is void.
    pub fn acknowledge(&self, features: u64) -> Result<(), FeatureError> {
        let checked = features::check(self.shared.offered, features);
        self.shared.features.store(if checked.is_ok() { features } else { 0 }, Ordering::Release);
        checked
    }

    /// Reads the configuration space. What lies beyond its 20 bytes is zero.
    pub fn read_config(&self, offset: u64, out: &mut [u8]) {
        self.shared.config.read(offset, out);
    }

    /// Writes the configuration space. `events_clear` is the one register that takes writes: the bits that are set in it are
    /// cleared in `events_read`.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        if let (true, Some(control)) = (self.shared.config.write(offset, data), &self.control) {
            // A device that is gone has nothing to tell.
            let _ = control.send(Control::Notify);
        }
    }

    /// A number that is another one after each change of the configuration space, for the transport's register of that name
    /// (virtio 1.4, section 2.5.1), which holds its low bits.
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.shared.config.generation()
    }

    /// The driver has set DRIVER_OK: takes over its queues. Requests that are in them already are found.
    pub fn activate(&self, activation: Activation<M>) -> Reply<Result<(), ActivateError>> {
        let features = self.shared.features.load(Ordering::Acquire);
        self.send(|reply| Control::Activate { activation: Box::new(activation), features, reply })
    }

    /// The driver has written status 0. The reply comes when the device is quiet: no access to the queues any more, nothing
    /// in the window and no descriptor open, but for what did not end within
    /// [`Limits::deadline`](crate::Limits::deadline). That is set aside and counted, and its range is not used again
    /// before it is clear. The device can be activated again then.
    pub fn reset(&self) -> Reply<()> {
        self.shared.features.store(0, Ordering::Release);
        self.send(|reply| Control::Reset { reply })
    }

    /// Hands the device a buffer, for any context to create one blob of. It counts against [`Limits::fds`](crate::Limits).
    ///
    /// Every reset ends all offers, and every driver begins with one: offer after DRIVER_OK. How the guest learns of the
    /// id is the VMM's business.
    pub fn offer(&self, buffer: HostBuffer) -> Reply<Result<BlobId, OfferError>> {
        self.send(|reply| Control::Offer { buffer, reply })
    }

    /// Takes an offer back; the reply says whether it was still there.
    pub fn withdraw(&self, id: BlobId) -> Reply<bool> {
        self.send(|reply| Control::Withdraw { id, reply })
    }

    /// Reads a blob as the host sees it: `read_blob(7, ..)` all of it, `read_blob(7, 0..4096)` its first page. Host memory is
    /// read from the buffer itself and not from the window: what a guest has written to its own copy of a read-only
    /// buffer is not seen. Of a file's last page, what lies behind the file's end is zero.
    ///
    /// A dma-buf is read when the writes that were pending to it at first (its implicit fences) are done; the guest's commands
    /// go on meanwhile, those to the same blob included. The bytes are those of some moment before the reply, and not all
    /// of one moment where somebody is writing. No order holds between a read and commands under way: a resource is
    /// there when its creation is answered, and what becomes of it during a read does not change what is read. A blob is as
    /// long as its guest made it: whoever cannot spare that much memory states a range. An exporter that has lost its
    /// memory (a device that was unplugged) ends the process by a signal, as it does whoever maps it.
    ///
    /// Four reads of host memory copy at a time, each on a thread of its own; others wait. Each takes a descriptor of
    /// [`Limits::fds`](crate::Limits::fds) until it ends, and a dma-buf's two. A reset ends those that wait, and those of guest
    /// memory, with [`ReadError::Reset`], and waits for copies of host memory. One that lasts beyond
    /// [`Limits::deadline`](crate::Limits::deadline) is set aside and counted in [`Counters::quarantined`]: its thread, its
    /// descriptor and its place among the four are free when it ends.
    pub fn read_blob(&self, resource: u32, range: impl RangeBounds<u64>) -> Reply<Result<Vec<u8>, ReadError>> {
        let span = Span::new(&range);
        self.send(|reply| Control::Read { resource, span, reply })
    }

    /// A handle to the device's displays that does not keep the device alive, for threads that show them.
    #[must_use]
    pub fn displays(&self) -> Displays {
        self.displays.clone()
    }

    /// As [`Displays::connect`].
    pub fn connect(&self, scanout: u32, monitor: Monitor, display: impl Display) -> Reply<Result<(), ConnectError>> {
        self.displays.connect(scanout, monitor, display)
    }

    /// As [`Displays::change_monitor`].
    pub fn change_monitor(&self, scanout: u32, monitor: Monitor) -> Reply<Result<(), ConnectError>> {
        self.displays.change_monitor(scanout, monitor)
    }

    /// As [`Displays::resize`].
    pub fn resize(&self, scanout: u32, width: u32, height: u32) -> Reply<Result<(), ConnectError>> {
        self.displays.resize(scanout, width, height)
    }

    /// As [`Displays::redraw`].
    pub fn redraw(&self, scanout: u32) -> Reply<Result<(), ConnectError>> {
        self.displays.redraw(scanout)
    }

    /// As [`Displays::disconnect`].
    pub fn disconnect(&self, scanout: u32) -> Reply<Result<bool, ConnectError>> {
        self.displays.disconnect(scanout)
    }

    /// What the guest has exported under this UUID (RESOURCE_ASSIGN_UUID), for another device of the VMM that was given it.
    ///
    /// The error: the process has no descriptor left for the buffer.
    pub fn exported(&self, uuid: [u8; 16]) -> Reply<std::io::Result<Option<Exported>>> {
        self.send(|reply| Control::Exported { uuid, reply })
    }

    /// Closes the guest's channels to host services of this type, and says how many there were. The services see their clients
    /// gone at once. The guest hears the end of file: at once, or after [`resume`](Self::resume) where the device is paused.
    /// It may connect anew.
    pub fn hang_up(&self, channel_type: ChannelType) -> Reply<usize> {
        self.send(|reply| Control::HangUp { channel_type, reply })
    }

    /// Stops serving: takes no more requests, ends those under way, and hands out the state of the queues. From the reply on
    /// nothing touches the queues or the driver; displays keep what they have. To be called while the guest's processors
    /// stand still.
    ///
    /// Channels are parked: they stay open, nothing of them is read, and no message is lost. A service that waits for its
    /// clients waits for a parked one, too. A PipeWire daemon does, and with it every other client of the same camera:
    /// [hang up](Self::hang_up) such channels, before or while the device is paused.
    ///
    /// Resources, contexts and scanouts stay in the device: a queue's state alone lets another device go on only with a
    /// guest that has none.
    ///
    /// The error: something did not end within [`Limits::deadline`](crate::Limits::deadline), and the device goes on.
    pub fn pause(&self) -> Reply<Result<Paused, PauseError>> {
        self.send(|reply| Control::Pause { reply })
    }

    /// Goes on after a pause. A reset ends a pause, too.
    pub fn resume(&self) -> Reply<()> {
        self.send(|reply| Control::Resume { reply })
    }

    /// As [`pause`](Self::pause), for a VMM that cannot take no for an answer: what does not end within `grace` goes on, and what
    /// it comes to is kept for [`resume`](Self::resume). From the reply on nothing touches the queues or the driver; but commands
    /// that had been taken before go on reading and writing guest memory.
    pub fn halt(&self, grace: Duration) -> Reply<Paused> {
        self.send(|reply| Control::Halt { grace, reply })
    }

    /// Goes on after a pause with queues that are wired anew: other kicks, another way to interrupt, another position; a cursor
    /// queue may come or go. Everything that the guest has made is kept, and so are requests that have not been answered.
    ///
    /// The error: nothing is paused, or a queue is invalid or another one than before. Guest memory is the one of
    /// before; [`Activation::memory`] is what a cursor queue that comes lies in.
    pub fn rewire(&self, activation: Activation<M>) -> Reply<Result<(), ActivateError>> {
        self.send(|reply| Control::Rewire { activation: Box::new(activation), reply })
    }

    /// What the device has counted since it was made.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counters.snapshot()
    }

    /// Stops the device as a reset does, and ends its task. The reply comes when it is quiet.
    pub fn stop(&self) -> Reply<()> {
        self.send(|reply| Control::Stop { reply })
    }

    fn send<T>(&self, message: impl FnOnce(control::Answer<T>) -> Control<M>) -> Reply<T> {
        let (answer, reply) = Reply::new();
        if let Some(control) = &self.control {
            // A device that is gone drops the message, and with it the other end of the reply.
            let _ = control.send(message(answer));
        }
        reply
    }
}

impl<M: GuestAddressSpace> fmt::Debug for Device<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl<M> fmt::Debug for Activation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { control, cursor, .. } = self;
        f.debug_struct("Activation").field("control", control).field("cursor", cursor).finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace> Drop for Device<M> {
    fn drop(&mut self) {
        self.control = None;
        // The last handle may be a display's, which is dropped on the device's own thread.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}
