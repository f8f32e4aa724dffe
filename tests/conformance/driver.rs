//! A driver that counts what it is told, and looks at the rings behind the device's back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestOptions, Lane, Request, Shown, Token, Used, Viewer};
use virtio_gpu_uring::{BlobId, Builder, Interrupt, Limits};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::kit::{self, Drawing};

/// Both queues.
pub(crate) const LANES: [Lane; 2] = [Lane::Control, Lane::Cursor];

/// What the driver was told, by kind.
#[derive(Default)]
pub(crate) struct Told {
    queues: [AtomicU64; 2],
    config: AtomicU64,
    resets: AtomicU64,
}

impl Told {
    pub(crate) fn queue(&self, lane: Lane) -> u64 {
        self.queues[lane as usize].load(SeqCst)
    }

    /// Of both queues, of the configuration space, of the need of a reset.
    pub(crate) fn all(&self) -> [u64; 4] {
        [self.queue(Lane::Control), self.queue(Lane::Cursor), self.config.load(SeqCst), self.resets.load(SeqCst)]
    }
}

/// Interrupts that are counted on their way.
struct Counting(Box<dyn Interrupt>, Arc<Told>);

impl Interrupt for Counting {
    fn queue(&self, index: u16) {
        self.1.queues[usize::from(index)].fetch_add(1, SeqCst);
        self.0.queue(index);
    }

    fn config_changed(&self) {
        self.1.config.fetch_add(1, SeqCst);
        self.0.config_changed();
    }

    fn needs_reset(&self) {
        self.1.resets.fetch_add(1, SeqCst);
        self.0.needs_reset();
    }
}

/// A guest whose driver has not started.
pub(crate) fn powered_off(builder: Builder, features: u64) -> Guest {
    Guest::powered_off(builder.spawn().expect("a device"), GuestOptions { features, ..GuestOptions::default() })
}

/// DRIVER_OK, with a count of what the driver is told.
pub(crate) fn start(guest: &Guest, features: u64) -> Arc<Told> {
    let told = Arc::<Told>::default();
    let mut activation = guest.activation();
    activation.interrupt = Box::new(Counting(activation.interrupt, Arc::clone(&told)));
    guest.device().acknowledge(features).expect("features that can be served");
    guest.device().activate(activation).wait().expect("a device").expect("queues that can be served");
    told
}

/// A guest whose driver has, and what it was told.
pub(crate) fn counted(builder: Builder, features: u64) -> (Guest, Arc<Told>) {
    let guest = powered_off(builder, features);
    let told = start(&guest, features);
    (guest, told)
}

/// The device has had its turn, and more than one: a message of the VMM's is answered between two turns.
pub(crate) fn turns(guest: &Guest) {
    for _ in 0..8 {
        guest.device().withdraw(BlobId(0)).wait().expect("a device");
    }
}

/// Looks again until it is true.
#[track_caller]
pub(crate) fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let started = Instant::now();
    while !true_now() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}

/// Takes the next chain without sleeping for an interrupt, and lets the turn end that gave it back.
#[track_caller]
pub(crate) fn take(guest: &mut Guest, lane: Lane) -> Used {
    let mut used = None;
    until("a chain comes back", || {
        used = guest.queue(lane).poll_used();
        used.is_some()
    });
    turns(guest);
    used.expect("there is one")
}

/// A request for either queue that changes nothing.
pub(crate) fn question(lane: Lane) -> Request {
    match lane {
        Lane::Control => Request::display_info(),
        Lane::Cursor => Request::move_cursor(0, (1, 1)),
    }
}

/// The used ring's flags and index.
pub(crate) fn used_ring(guest: &mut Guest, lane: Lane) -> (u16, u16) {
    let at = guest.queue(lane).device_queue().used_ring();
    let bytes = guest.ram().read(GuestAddress(at), 4);
    (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]]))
}

/// A guest that shows resource 1 on a screen which does not finish its frames, and a flush of it that waits.
pub(crate) fn with_slow_flush(features: u64) -> (Guest, Arc<Told>, Token, Viewer) {
    let limits = Limits { deadline: 3 * DEADLINE, ..Limits::default() };
    let (builder, mut viewers) = kit::screens(Builder::new().limits(limits), 1);
    let viewer = viewers.remove(0);
    let (mut guest, told) = counted(builder, features);
    let drawing = Drawing::new(&mut guest, 1, 8, 8);
    drawing.show(&mut guest, 0);
    let _ = viewer.take();
    viewer.hold_frames(true);
    let token = guest.submit(&Request::flush(1, drawing.whole()).fenced(1));
    until("the display has the frame", || viewer.take().iter().any(|shown| matches!(shown, Shown::Frame(_))));
    turns(&guest);
    (guest, told, token, viewer)
}
