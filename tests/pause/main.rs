//! Pauses: a device whose VMM has stopped its guest leaves the queues, guest memory and the driver alone, and goes on where
//! it was, here or in another device that takes the queues over.
#![cfg(feature = "testing")]

#[path = "../renderer/echo.rs"]
#[allow(dead_code, reason = "shared with the renderer's tests, which use more of it")]
mod echo;
mod elsewhere;
mod halt;
mod life;
#[path = "../order/memory.rs"]
mod memory;
mod outstanding;
mod random;
mod still;
mod work;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};
use virtio_gpu_uring::protocol::features::{EVENT_IDX, OFFERED};
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestOptions, Lane};
use virtio_gpu_uring::{Builder, DeviceTask, PauseError, Paused, Reply};
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap>;

/// Guest memory that is quick to look through.
const RAM: usize = 512 << 10;

/// A small guest, with EVENT_IDX or without.
fn small(event_idx: bool) -> GuestOptions {
    let features = if event_idx { OFFERED } else { OFFERED & !EVENT_IDX };
    GuestOptions { features, ram: RAM, queue_size: 64, ..GuestOptions::default() }
}

/// A tokio-uring runtime on a thread of its own, with devices on it and a task that answers pings.
struct Runtime {
    pings: mpsc::UnboundedSender<oneshot::Sender<()>>,
    thread: JoinHandle<()>,
    /// The thread's number in `/proc`.
    number: i32,
}

impl Runtime {
    fn start(tasks: Vec<DeviceTask<Memory>>) -> Self {
        let (pings, mut pinged) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let (tell, number) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("a test that listens");
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
        Self { pings, thread, number: number.recv().expect("a thread") }
    }

    /// Time that the thread has spent on a processor.
    fn busy(&self) -> Duration {
        let times = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.number)).expect("/proc");
        let busy = times.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok());
        Duration::from_nanos(busy.expect("a number of nanoseconds"))
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

/// A guest on a runtime of the test's own, which gives its device turns when nobody talks to it.
struct Stage {
    guest: Guest,
    runtime: Runtime,
}

impl Stage {
    fn start(builder: Builder, options: GuestOptions) -> Self {
        let mut stage = Self::powered_off(builder, options);
        stage.guest.activate();
        stage
    }

    fn powered_off(builder: Builder, options: GuestOptions) -> Self {
        let (device, task) = builder.build().expect("a device");
        let guest = Guest::powered_off(device, options);
        Self { guest, runtime: Runtime::start(vec![task]) }
    }

    fn try_pause(&self) -> Result<Paused, PauseError> {
        soon(self.guest.device().pause())
    }

    #[track_caller]
    fn pause(&self) -> Paused {
        self.try_pause().expect("nothing is under way")
    }

    #[track_caller]
    fn resume(&self) {
        soon(self.guest.device().resume());
    }

    /// The device, kicked and given every chance, writes nothing to guest memory and does not interrupt.
    #[track_caller]
    fn assert_still(&mut self) {
        let look = |guest: &Guest| {
            let counters = guest.device().counters();
            let answers = counters.answers_ok + counters.answers_error;
            let interrupts = counters.interrupts + counters.interrupts_suppressed;
            ([counters.commands, answers, interrupts, counters.needs_resets], guest.ram().read(GuestAddress(0), RAM))
        };
        let before = look(&self.guest);
        for _ in 0..8 {
            self.guest.kick(Lane::Control);
            self.guest.kick(Lane::Cursor);
            self.runtime.turn();
        }
        let after = look(&self.guest);
        assert_eq!(before.0, after.0, "commands, answers, interrupts, calls for a reset");
        let touched = before.1.iter().zip(&after.1).position(|(before, after)| before != after);
        assert_eq!(touched, None, "guest memory was written");
    }

    /// The device's end, for which nobody waits for ever.
    fn end(self) {
        drop(self.guest);
        self.runtime.join();
    }
}

/// Waits for a reply, and not for ever.
#[track_caller]
fn soon<T>(mut reply: Reply<T>) -> T {
    let mut answer = None;
    until("the device replies", || {
        answer = (&mut reply).now_or_never();
        answer.is_some()
    });
    answer.expect("a reply").expect("a device")
}

/// Whether a reply has come.
fn is_there<T>(reply: &mut Reply<T>) -> bool {
    reply.now_or_never().is_some()
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
