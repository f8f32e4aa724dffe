//! What everything else waits for while the renderer is at a long stream: nothing. Each kind of command beside a renderer that
//! has nothing to do, and beside one that is at a stream of half a second all the time; only the ratios travel between machines.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostPeer, HostService, Lane, Request, Token};
use virtio_gpu_uring::{
    BlobRequest, Builder, Capset, ChannelType, Fence, HostBuffer, HostWindow, Monitor, NullDisplay, RenderedBlob,
    Renderer, RendererError,
};

#[expect(dead_code, reason = "the driver here has two queues")]
mod rig;

use rig::{in_full, percentile, pin};

/// How long the renderer is at a stream.
const STREAM: Duration = Duration::from_millis(500);
/// Streams that the renderer is given at a time: it never waits for the next.
const QUEUED: usize = 4;
/// Samples between two looks at the streams, which take much less than the streams do.
const BATCH: usize = 500;

const PAGE: usize = 4096;
const CAPSET: u32 = 2;
/// The context whose streams are long, and the one with the channel.
const RENDERED: u32 = 1;
const CHANNEL: u32 = 2;
/// A 2D image on the screen, and a buffer of the VMM's.
const IMAGE: u32 = 30;
const BUFFER: u32 = 31;
const WHOLE: [u32; 4] = [0, 0, 64, 64];

/// A renderer that sleeps over each stream until the bench is over.
struct Slow(Receiver<()>);

impl Renderer for Slow {
    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: CAPSET, max_version: 1, data: vec![0; 4] }]
    }

    fn create_context(&mut self, _context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        Ok(())
    }

    fn destroy_context(&mut self, _context: u32) {}

    fn attach_resource(&mut self, _context: u32, _resource: u32) {}

    fn detach_resource(&mut self, _context: u32, _resource: u32) {}

    fn submit(&mut self, _context: u32, _stream: &[u8]) -> Result<(), RendererError> {
        let _ = self.0.recv_timeout(STREAM);
        Ok(())
    }

    fn create_blob(&mut self, _request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        Err(RendererError::Invalid("none".into()))
    }

    fn destroy_resource(&mut self, _resource: u32) {}

    fn fence(&mut self, _context: u32, _ring: Option<u8>, fence: Fence) {
        fence.signal();
    }
}

/// What is measured.
#[derive(Clone, Copy)]
enum Operation {
    MoveCursor,
    DisplayInfo,
    Flush,
    MapAndUnmap,
    Echo,
}

impl Operation {
    const ALL: [Self; 5] = [Self::MoveCursor, Self::DisplayInfo, Self::Flush, Self::MapAndUnmap, Self::Echo];

    fn name(self) -> &'static str {
        match self {
            Self::MoveCursor => "MOVE_CURSOR",
            Self::DisplayInfo => "GET_DISPLAY_INFO",
            Self::Flush => "flush of an image",
            Self::MapAndUnmap => "map, unmap 4 KiB",
            Self::Echo => "echo of a service",
        }
    }
}

/// A guest that does all of it, and its renderer.
struct Desk {
    // Dropped first, which ends the stream that is under way.
    _over: Sender<()>,
    guest: Guest,
    channel: GuestChannel,
    /// Whether the renderer is to be at a stream.
    busy: bool,
    /// Streams that are under way, oldest first.
    streams: VecDeque<Token>,
    /// How many have ended.
    ended: usize,
    _service: HostService,
    _echo: JoinHandle<()>,
}

impl Desk {
    fn start(busy: bool) -> Self {
        let (over, ends) = channel();
        let service = HostService::listen();
        let builder =
            Builder::new().renderer(move || Ok(Slow(ends))).window(HostWindow::new(1 << 20).expect("a window"));
        let builder = builder.display(0, Monitor::new(64, 64), NullDisplay);
        let mut guest = Guest::start(builder.host_socket(ChannelType::PIPEWIRE, service.path()));
        let channel = GuestChannel::open(&mut guest, CHANNEL, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        let file = memfd_create("head-of-line", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, PAGE as u64).expect("size");
        let offer = guest.device().offer(HostBuffer::from_fd(file).expect("a buffer"));
        let id = offer.wait().expect("a device").expect("an offer").0;
        for request in [
            Request::ctx_create(RENDERED, CAPSET),
            Request::create_2d(IMAGE, 2, 64, 64),
            Request::set_scanout(0, IMAGE, WHOLE),
            Request::host_blob(CHANNEL, BUFFER, id, PAGE as u64),
        ] {
            guest.command(&request).ok();
        }
        let (_over, _service, _echo) = (over, service, std::thread::spawn(move || echo(&peer)));
        Self { _over, guest, channel, busy, streams: VecDeque::new(), ended: 0, _service, _echo }
    }

    /// Sees to it that the renderer of a busy desk is at a stream, and has the next ones.
    fn keep_busy(&mut self) {
        while self.streams.front().is_some_and(|oldest| self.guest.has_answer(oldest)) {
            self.guest.wait(self.streams.pop_front().expect("a stream")).ok();
            self.ended += 1;
        }
        while self.busy && self.streams.len() < QUEUED {
            self.streams.push_back(self.guest.submit(&Request::submit(RENDERED, b"long")));
        }
        self.guest.settle();
    }

    fn act(&mut self, operation: Operation) {
        let Self { guest, channel, .. } = self;
        match operation {
            Operation::MoveCursor => {
                let moved = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (1, 1)));
                guest.wait_on(Lane::Cursor, moved).ok();
            }
            Operation::DisplayInfo => guest.settle(),
            Operation::Flush => drop(guest.command(&Request::flush(IMAGE, WHOLE)).ok()),
            Operation::MapAndUnmap => {
                guest.map(BUFFER, 0);
                guest.command(&Request::unmap(BUFFER)).ok();
            }
            Operation::Echo => {
                let poll = channel.poll(guest);
                channel.send(guest, b"echo", &[]);
                assert_eq!(channel.wait(guest, poll).data, b"echo");
            }
        }
    }

    /// So many samples; the renderer of a busy desk is at its streams all the while.
    fn samples(&mut self, operation: Operation, count: usize) -> Vec<Duration> {
        let mut samples = Vec::with_capacity(count);
        while samples.len() < count {
            self.keep_busy();
            for _ in 0..BATCH.min(count - samples.len()) {
                let started = Instant::now();
                self.act(operation);
                samples.push(started.elapsed());
            }
            let over = self.busy && self.streams.iter().all(|stream| self.guest.has_answer(stream));
            assert!(!over, "the renderer had nothing to do for a part of the samples");
        }
        samples
    }
}

/// A host service that gives back what it gets, until the channel ends.
fn echo(peer: &HostPeer) {
    peer.stream().set_read_timeout(None).expect("no deadline");
    loop {
        match peer.receive(64).0 {
            data if data.is_empty() => break,
            data => peer.send(&data, &[]),
        }
    }
}

fn beside_the_renderer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("beside the renderer");
    for operation in Operation::ALL {
        for (busy, name) in [(false, "idle"), (true, "busy")] {
            let mut desk = Desk::start(busy);
            group.bench_function(BenchmarkId::new(operation.name(), name), |bencher| {
                bencher.iter_custom(|times| desk.samples(operation, times as usize).iter().sum());
            });
        }
    }
    group.finish();
}

/// All in turns, so that whatever else the machine does hits all alike.
fn summary() {
    let mut desks = [Desk::start(false), Desk::start(true)];
    let mut samples = Operation::ALL.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..60 {
        for (operation, samples) in Operation::ALL.into_iter().zip(&mut samples) {
            for (desk, samples) in desks.iter_mut().zip(samples) {
                samples.extend(desk.samples(operation, BATCH));
            }
        }
    }
    let counters = desks[1].guest.device().counters();
    assert_eq!((counters.answers_error, counters.requests_lost), (0, 0), "{counters:?}");
    println!("beside a renderer,     idle                busy                ratio");
    println!("one processor        p50 us    p99 us    p50 us    p99 us      p50     p99");
    for (operation, samples) in Operation::ALL.into_iter().zip(&mut samples) {
        let [idle, busy] = samples.each_mut().map(|samples| [0.5, 0.99].map(|part| percentile(samples, part)));
        let ratio = [busy[0] / idle[0], busy[1] / idle[1]];
        println!(
            "  {:17} {:8.2}  {:8.2}  {:8.2}  {:8.2}  {:7.2} {:7.2}",
            operation.name(),
            idle[0],
            idle[1],
            busy[0],
            busy[1],
            ratio[0],
            ratio[1]
        );
    }
    println!("  {} streams of {} ms have ended meanwhile", desks[1].ended, STREAM.as_millis());
}

fn main() {
    pin();
    let short = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut criterion = short.configure_from_args();
    beside_the_renderer(&mut criterion);
    criterion.final_summary();
    if in_full() {
        summary();
    }
}
