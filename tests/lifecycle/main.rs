//! A device's life as its VMM sees it: activate, reset, stop, drop; on a thread of its own, or on the VMM's runtime; and
//! at any time with work under way.
#![cfg(feature = "testing")]

mod endings;
#[path = "../order/memory.rs"]
mod memory;
mod refusals;
mod resets;
mod runtimes;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use tokio::sync::{mpsc, oneshot};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestOptions, Request};
use virtio_gpu_uring::{Builder, DeviceTask, HostBuffer};
use vm_memory::GuestMemoryMmap;

/// A tokio-uring runtime of the VMM's own on a thread of its own, with devices on it and a task that answers pings.
struct Runtime {
    pings: mpsc::UnboundedSender<oneshot::Sender<()>>,
    thread: JoinHandle<()>,
}

impl Runtime {
    fn start(tasks: Vec<DeviceTask<Arc<GuestMemoryMmap>>>) -> Self {
        let (pings, mut pinged) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let thread = std::thread::spawn(move || {
            tokio_uring::start(async move {
                let devices: Vec<_> = tasks.into_iter().map(|task| tokio_uring::spawn(task.run())).collect();
                let pinger = tokio_uring::spawn(async move {
                    while let Some(reply) = pinged.recv().await {
                        for _ in 0..256 {
                            tokio::task::yield_now().await;
                        }
                        let _ = reply.send(());
                    }
                });
                for device in devices {
                    device.await.expect("no panic on the device's thread").expect("a runtime that watches descriptors");
                }
                pinger.abort();
            });
        });
        Self { pings, thread }
    }

    /// Returns when all that runs there has had its turn, many times over.
    fn turn(&self) {
        let (reply, done) = oneshot::channel();
        self.pings.send(reply).expect("a runtime");
        done.blocking_recv().expect("a runtime");
    }

    /// All devices have ended.
    fn join(self) {
        self.thread.join().expect("no panic on the runtime's thread");
    }
}

/// A guest on a runtime of the test's own.
fn on_runtime(builder: Builder, options: GuestOptions) -> (Guest, Runtime) {
    let (device, task) = builder.build().expect("a device");
    let mut guest = Guest::powered_off(device, options);
    let runtime = Runtime::start(vec![task]);
    guest.activate();
    (guest, runtime)
}

/// The id of a new buffer of `len` bytes that the VMM offers, filled with `fill`.
fn offer(guest: &Guest, name: &str, len: u64, fill: u8) -> u64 {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    rustix::io::pwrite(&file, &vec![fill; len as usize], 0).expect("written");
    let buffer = HostBuffer::from_fd(file).expect("a buffer");
    guest.device().offer(buffer).wait().expect("a device").expect("room").0
}

/// Maps a buffer of the VMM's at `offset` as blob `resource` of context `context`, which is made.
#[track_caller]
fn show(guest: &mut Guest, name: &str, context: u32, resource: u32, (offset, len): (u64, u64)) {
    guest.command(&Request::ctx_create(context, CAPSET_CROSS_DOMAIN)).ok();
    let offered = offer(guest, name, len, 0x5a);
    guest.command(&Request::host_blob(context, resource, offered, len)).ok();
    guest.map(resource, offset);
}

/// Looks again until it is true.
#[track_caller]
fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let started = Instant::now();
    while !true_now() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}
