//! A driver that costs next to nothing, so that the benches measure the device: chains are laid out once and given again
//! and again, and the driver sleeps in a blocking read of the interrupt's eventfd as the device sleeps for its kick.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use virtio_gpu_uring::testing::{DriverQueue, GuestRam, Layout, Prepared, Request, RingFeatures};
use virtio_gpu_uring::{Activation, Builder, Device, QueueSetup};
use vm_memory::GuestMemoryMmap;

/// A device that is active, and the driver of its control queue.
pub(crate) struct Rig {
    pub(crate) device: Device<Arc<GuestMemoryMmap>>,
    pub(crate) queue: DriverQueue,
    kick: OwnedFd,
    interrupt: OwnedFd,
    _cursor: DriverQueue,
}

impl Rig {
    /// Starts a device on a thread that runs where the caller's may run, in guest memory that the caller uses too.
    pub(crate) fn start(builder: Builder, ram: &GuestRam) -> Self {
        let device = builder.spawn().expect("a device");
        let features = RingFeatures { event_idx: true, indirect: true };
        let queue = DriverQueue::new(ram.clone(), 1024, features);
        let cursor = DriverQueue::new(ram.clone(), 16, features);
        let (kick, interrupt) = (event(), event());
        let line = interrupt.try_clone().expect("a duplicate");
        device.acknowledge(device.features()).expect("its own features");
        let activation = Activation {
            memory: ram.space(),
            control: QueueSetup { queue: queue.device_queue(), kick: kick.try_clone().expect("a duplicate") },
            cursor: QueueSetup { queue: cursor.device_queue(), kick: event() },
            interrupt: Box::new((move |_| signal(&line), || {}, || {})),
        };
        device.activate(activation).wait().expect("a device").expect("queues that can be served");
        Self { device, queue, kick, interrupt, _cursor: cursor }
    }

    /// Lays a request out as Linux does.
    pub(crate) fn prepare(&mut self, request: &Request) -> Prepared {
        self.queue.prepare(&request.bytes(), request.room(), &Layout::default()).expect("room in the queue")
    }

    /// Makes chains available with one kick at most.
    pub(crate) fn give(&mut self, chains: &[Prepared]) {
        for chain in chains {
            let _ = self.queue.add_prepared(chain);
        }
        if self.queue.publish() {
            signal(&self.kick);
        }
    }

    /// Sleeps until a chain comes back: its head, and how many bytes were written.
    pub(crate) fn next(&mut self) -> (u16, u32) {
        loop {
            if let Some(used) = self.queue.poll_used_fast() {
                return used;
            }
            wait(&self.interrupt);
        }
    }

    /// Gives chains and sleeps until all of them are back.
    pub(crate) fn round_trip(&mut self, chains: &[Prepared]) {
        self.give(chains);
        for _ in chains {
            self.next();
        }
    }

    /// Asserts that the device has refused nothing so far: a fast error would be no figure.
    pub(crate) fn assert_all_ok(&self) {
        let counters = self.device.counters();
        assert_eq!((counters.answers_error, counters.requests_lost), (0, 0), "{counters:?}");
    }
}

/// An eventfd whose reads block.
pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")
}

pub(crate) fn signal(event: &OwnedFd) {
    assert_eq!(rustix::io::write(event, &1_u64.to_ne_bytes()), Ok(8));
}

pub(crate) fn wait(event: &OwnedFd) {
    assert_eq!(rustix::io::read(event, &mut [0; 8]), Ok(8));
}

/// Keeps the calling thread, and all that it starts from now on, on one processor, so that no figure depends on how long
/// another processor takes to wake up.
pub(crate) fn pin() {
    let allowed = sched_getaffinity(None).expect("this thread's processors");
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).expect("a processor");
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).expect("pinned");
}

/// Whether the whole is to be measured: `cargo bench` says so. A test run goes through the motions only.
pub(crate) fn in_full() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    has("--bench") && !has("--test") && !has("--list")
}

/// The sample that this part of all samples does not exceed, in microseconds. Sorts them.
pub(crate) fn percentile(samples: &mut [Duration], part: f64) -> f64 {
    samples.sort_unstable();
    let last = samples.len().checked_sub(1).expect("samples");
    samples[(last as f64 * part) as usize].as_secs_f64() * 1e6
}
