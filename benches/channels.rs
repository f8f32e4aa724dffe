//! What a wake-up costs through a cross-domain channel, in either direction, as an audio stream has one of each a period: from
//! the guest's kick to the host's eventfd, and from the host's eventfd to the guest's interrupt. Beside a bare ping-pong of two
//! eventfds, which has as many wake-ups; only the ratios travel between machines.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use criterion::Criterion;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use virtio_gpu_uring::testing::{GuestRam, HostPeer, HostService, Prepared, Request};
use virtio_gpu_uring::{Builder, ChannelType};
use vm_memory::GuestAddress;

#[path = "rig/ping_pong.rs"]
mod ping_pong;
mod rig;

use ping_pong::PingPong;
use rig::{Rig, in_full, percentile, pin, signal, wait};

const CONTEXT: u32 = 1;
const PAGE: usize = 4096;
/// Where a message of the channel ring has its first identifier.
const FIRST_ID: u64 = 16;

/// A guest with a channel and two eventfds of a service: one that the guest writes, one that it is woken by.
struct Session {
    rig: Rig,
    write: [Prepared; 1],
    poll: [Prepared; 1],
    /// The service's own descriptors of the two.
    written: OwnedFd,
    wakes: OwnedFd,
    _peer: HostPeer,
    _service: HostService,
}

impl Session {
    fn start() -> Self {
        let (service, ram) = (HostService::listen(), GuestRam::new(16 << 20));
        let mut rig = Rig::start(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()), &ram);
        let command = |rig: &mut Rig, request: Request| {
            let chain = [rig.prepare(&request)];
            rig.round_trip(&chain);
        };
        command(&mut rig, Request::ctx_create(CONTEXT, 5));
        let rings = [10, 11].map(|id| (id, ram.alloc(PAGE, PAGE)));
        for (id, address) in rings {
            command(&mut rig, Request::guest_blob(id, PAGE as u64, &[(address.0, PAGE as u32)]));
            command(&mut rig, Request::ctx_attach(CONTEXT, id));
        }
        let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, Some(1));
        command(&mut rig, Request::submit(CONTEXT, &init));
        let peer = service.accept();
        let poll = [rig.prepare(&Request::submit(CONTEXT, &Request::stream_poll()).fenced(1).on_ring(1))];
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let [written, wakes] = [(); 2].map(|()| eventfd(0, flags).expect("an eventfd"));
        peer.send(b"two", &[std::os::fd::AsFd::as_fd(&written), std::os::fd::AsFd::as_fd(&wakes)]);
        rig.round_trip(&poll);
        let ids = ram.read(GuestAddress(rings[1].1.0 + FIRST_ID), 8);
        let [first, second] =
            [0, 4].map(|at| u32::from_le_bytes(ids[at..at + 4].try_into().expect("four bytes of an id")));
        command(&mut rig, Request::submit(CONTEXT, &Request::stream_watch(second)));
        let stream = Request::stream_write(first, &1u64.to_le_bytes(), false);
        let write = [rig.prepare(&Request::submit(CONTEXT, &stream))];
        Self { rig, write, poll, written, wakes, _peer: peer, _service: service }
    }

    /// The guest wakes the service: how long that took. The answer to its command comes later.
    fn out(&mut self) -> Duration {
        let started = Instant::now();
        self.rig.give(&self.write);
        // As a service waits, whose eventfds do not block.
        assert_eq!(poll(&mut [PollFd::new(&self.written, PollFlags::IN)], None), Ok(1));
        wait(&self.written);
        let took = started.elapsed();
        self.rig.next();
        took
    }

    /// The service wakes the guest, which had asked for it.
    fn back(&mut self) {
        signal(&self.wakes);
        self.rig.round_trip(&self.poll);
    }
}

fn wake_ups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wake-up");
    let ping_pong = PingPong::start();
    group.bench_function("eventfd ping-pong", |bencher| bencher.iter(|| ping_pong.round_trip()));
    let mut session = Session::start();
    group.bench_function("guest to service", |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| session.out()).sum());
    });
    group.bench_function("service to guest", |bencher| bencher.iter(|| session.back()));
    group.finish();
    session.rig.assert_all_ok();
}

/// All in turns, so that whatever else the machine does hits all alike.
fn summary() {
    let (ping_pong, mut session) = (PingPong::start(), Session::start());
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..60 {
        for (which, samples) in samples.iter_mut().enumerate() {
            for _ in 0..500 {
                let started = Instant::now();
                samples.push(match which {
                    0 => {
                        ping_pong.round_trip();
                        started.elapsed()
                    }
                    1 => session.out(),
                    _ => {
                        session.back();
                        started.elapsed()
                    }
                });
            }
        }
    }
    let [floor, out, back] = samples.map(|mut samples| [percentile(&mut samples, 0.5), percentile(&mut samples, 0.99)]);
    println!("a wake-up, one processor p50 us   p99 us   ratio");
    println!("  eventfd ping-pong      {:6.2}   {:6.2}", floor[0], floor[1]);
    println!("  guest to service       {:6.2}   {:6.2}   {:5.2}", out[0], out[1], out[0] / floor[0]);
    println!("  service to guest       {:6.2}   {:6.2}   {:5.2}", back[0], back[1], back[0] / floor[0]);
    session.rig.assert_all_ok();
}

fn main() {
    pin();
    let short = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut criterion = short.configure_from_args();
    wake_ups(&mut criterion);
    criterion.final_summary();
    if in_full() {
        summary();
    }
}
