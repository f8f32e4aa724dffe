//! Implicit fences: the VMM's read of a dma-buf whose exporter has writes pending waits for them, for as long as it may, and
//! nobody else waits with it. The exporter is vgem, whose fences a test attaches and signals.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request};
use virtio_gpu_uring::{Builder, DeviceGone, HostBuffer, HostWindow, Limits, ReadError, Reply};

use crate::desk::{dma_bufs, host_buffer};
use crate::exporters::{Export, Exporter, say};
use crate::vgem::{Vgem, VgemBuffer, VgemFence};

const LEN: usize = 1 << 20;
const CONTEXT: u32 = 1;
/// The blob with the fence.
const FENCED: u32 = 7;
/// One of shared memory.
const OTHER: u32 = 8;
/// vgem signals every fence by itself after this long.
const DRIVERS_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Result<Vec<u8>, ReadError>;

/// A guest with a blob of a vgem buffer, and one of shared memory.
struct Fenced {
    guest: Guest,
    window: HostWindow,
    buffer: VgemBuffer,
}

impl Fenced {
    fn new(deadline: Duration) -> Self {
        Self::of(Vgem::open().buffer(LEN), deadline)
    }

    fn of(buffer: VgemBuffer, deadline: Duration) -> Self {
        let window = HostWindow::new(4 << 20).expect("a window");
        let limits = Limits { deadline, ..Limits::default() };
        let builder = Builder::new().limits(limits).window(window.clone());
        let options = GuestOptions { ram: 4 << 20, ..GuestOptions::default() };
        let mut fenced = Self { guest: Guest::with_options(builder, options), window, buffer };
        fenced.start();
        fenced
    }

    /// What a driver does first.
    fn start(&mut self) {
        self.guest.command(&Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN)).ok();
        self.blob(FENCED, host_buffer(&self.buffer.fd));
        let other = memfd_create("fences-other", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&other, 8192).expect("a size");
        self.blob(OTHER, HostBuffer::from_fd(other).expect("a buffer"));
    }

    fn blob(&mut self, resource: u32, buffer: HostBuffer) {
        let len = buffer.len();
        let offer = self.guest.device().offer(buffer).wait().expect("a device").expect("an offer");
        self.guest.command(&Request::host_blob(CONTEXT, resource, offer.0, len)).ok();
    }

    fn attach(&self) -> VgemFence {
        self.buffer.attach_fence().expect("a buffer without a fence")
    }

    fn read(&self) -> Reply<Answer> {
        self.guest.device().read_blob(FENCED, ..)
    }

    /// Reads that take all places of those who copy for about this long, so that the next one looks for fences now and
    /// copies later.
    fn busy_line(&mut self, span: Duration) -> Vec<Reply<Answer>> {
        const LARGE: u32 = 9;
        let large = memfd_create("fences-large", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&large, 8 << 20).expect("a size");
        self.blob(LARGE, HostBuffer::from_fd(large).expect("a buffer"));
        let copy = || self.guest.device().read_blob(LARGE, ..);
        let started = Instant::now();
        copy().wait().expect("a device").expect("read");
        let count = span.as_micros() / started.elapsed().as_micros().max(1);
        // Two processors copy at a time.
        (0..(2 * count).clamp(4, 200)).map(|_| copy()).collect()
    }

    /// Commands that touch both blobs, and another read: how many were answered, and how long the slowest took.
    fn bustle(&mut self, rounds: u32) -> (u32, Duration) {
        let (mut commands, mut slowest) = (0, Duration::ZERO);
        for round in 0..rounds {
            let place = u64::from(round % 2) * (2 << 20);
            for request in [
                Request::map(OTHER, place),
                Request::unmap(OTHER),
                Request::map(FENCED, place),
                Request::ctx_attach(CONTEXT, FENCED),
                Request::ctx_detach(CONTEXT, FENCED),
                Request::unmap(FENCED),
            ] {
                let started = Instant::now();
                self.guest.command(&request).ok();
                slowest = slowest.max(started.elapsed());
                commands += 1;
            }
            let other = self.guest.device().read_blob(OTHER, ..).wait().expect("a device");
            assert_eq!(other.expect("read").len(), 8192);
        }
        (commands, slowest)
    }
}

#[track_caller]
fn assert_pending(reply: &mut Reply<Answer>) {
    assert!(reply.now_or_never().is_none(), "answered while writes were pending");
}

/// All bytes are this one; the length is told.
#[track_caller]
fn whole(answer: Result<Answer, DeviceGone>, byte: u8) -> usize {
    let bytes = answer.expect("a device").expect("read");
    let wrong = bytes.iter().filter(|seen| **seen != byte).count();
    assert_eq!((bytes.len(), wrong), (LEN, 0), "length, bytes that are not {byte:#x}");
    bytes.len()
}

#[track_caller]
fn late(answer: Result<Answer, DeviceGone>) -> &'static str {
    match answer.expect("a device") {
        Err(ReadError::Deadline { waiting_for, .. }) => waiting_for,
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}

/// Runs a scenario, asserts that no descriptor and no mapping of a dma-buf outlives it, and prints its line.
fn scenario(name: &str, run: impl FnOnce() -> String) {
    let (before, started) = (dma_bufs(), Instant::now());
    let figures = run();
    assert_eq!(dma_bufs(), before, "descriptors and mappings of dma-bufs after {name}");
    say(&format!("fences {name} {figures} ms={}", started.elapsed().as_millis()));
}

#[test]
fn a_read_never_ends_before_the_fence_and_never_holds_up_commands() {
    for read_only in [false, true] {
        let mode = if read_only { "read-only" } else { "read-write" };
        scenario(&format!("signalled mode={mode}"), || {
            let vgem = Vgem::open();
            let buffer = if read_only { vgem.export_read_only(LEN) } else { vgem.buffer(LEN) };
            let mut fenced = Fenced::of(buffer, Duration::from_secs(60));
            fenced.buffer.fill(0x11);
            whole(fenced.read().wait(), 0x11);
            let fence = fenced.attach();
            // More of them than copy at a time: whoever waits for a fence takes nobody's place.
            let mut replies: Vec<_> = (0..6).map(|_| fenced.read()).collect();
            let (commands, slowest) = fenced.bustle(20);
            replies.iter_mut().for_each(assert_pending);
            fenced.buffer.fill(0x33);
            fenced.guest.settle();
            replies.iter_mut().for_each(assert_pending);
            fenced.buffer.signal(fence).expect("in time");
            let (reads, signalled) = (replies.len(), Instant::now());
            let bytes: usize = replies.into_iter().map(|reply| whole(reply.wait(), 0x33)).sum();
            let after = signalled.elapsed().as_millis();
            assert_eq!(fenced.guest.device().counters().quarantined, 0);
            let slowest = slowest.as_micros();
            format!("reads={reads} bytes={bytes} wrong=0 commands={commands} slowest_us={slowest} after_ms={after}")
        });
    }
}

#[test]
fn a_fence_that_is_never_signalled_never_holds_a_read_beyond_the_deadline() {
    scenario("deadline", || {
        let limit = Duration::from_millis(500);
        let mut fenced = Fenced::new(limit);
        fenced.buffer.fill(0x11);
        let fence = fenced.attach();
        let (started, held) = (Instant::now(), dma_bufs());
        let reply = fenced.read();
        let (commands, _) = fenced.bustle(5);
        assert_eq!(late(reply.wait()), "writes that are pending");
        let waited = started.elapsed();
        assert!((limit..DRIVERS_TIMEOUT / 2).contains(&waited), "{waited:?}");
        assert_eq!(dma_bufs(), held, "a descriptor is open after the deadline");
        assert_eq!(fenced.guest.device().counters().quarantined, 0, "nothing is stuck");
        fenced.buffer.signal(fence).expect("in time");
        whole(fenced.read().wait(), 0x11);
        format!("limit_ms={} waited_ms={} commands={commands}", limit.as_millis(), waited.as_millis())
    });
}

#[test]
fn a_part_of_a_buffer_is_never_taken_for_another_whoever_exports_it() {
    for exporter in Exporter::ALL {
        for export in [Export::ReadWrite, Export::ReadOnly] {
            // Not everybody knows both modes.
            let Ok(exported) = exporter.export(LEN as u64, export) else { continue };
            scenario(&format!("part exporter={} mode={export:?}", exporter.name()), || {
                let mut fenced = Fenced::new(Duration::from_secs(20));
                exported.paint(3);
                fenced.blob(9, host_buffer(&exported.file));
                let bytes = exported.bytes();
                let end = bytes.len() as u64;
                for range in [0..end, 4096..8192, 4097..12_287, end - 1..end] {
                    let part =
                        fenced.guest.device().read_blob(9, range.clone()).wait().expect("a device").expect("read");
                    assert!(part == bytes[range.start as usize..range.end as usize], "bytes {range:x?}");
                }
                format!("ranges=4 size={end:#x} wrong=0")
            });
        }
    }
}

/// Takes the driver's 10 seconds.
#[test]
fn a_read_goes_on_when_the_driver_gives_the_fence_up() {
    scenario("driver-timeout", || {
        let mut fenced = Fenced::new(Duration::from_secs(60));
        fenced.buffer.fill(0x11);
        let fence = fenced.attach();
        let started = Instant::now();
        let mut reply = fenced.read();
        let (commands, _) = fenced.bustle(5);
        assert_pending(&mut reply);
        fenced.buffer.fill(0x22);
        whole(reply.wait(), 0x22);
        let waited = started.elapsed();
        assert!(waited > DRIVERS_TIMEOUT / 2, "{waited:?}");
        fenced.buffer.signal(fence).expect_err("given up");
        format!("waited_ms={} commands={commands}", waited.as_millis())
    });
}

#[test]
fn a_reset_never_waits_for_a_fence_and_leaves_no_descriptor() {
    scenario("reset", || {
        let before = dma_bufs();
        let mut fenced = Fenced::new(Duration::from_secs(60));
        fenced.buffer.fill(0x44);
        let fence = fenced.attach();
        let mut slowest = Duration::ZERO;
        for _ in 0..5 {
            let mut reply = fenced.read();
            fenced.guest.map(FENCED, 0);
            assert_pending(&mut reply);
            let started = Instant::now();
            fenced.guest.reset();
            slowest = slowest.max(started.elapsed());
            assert!(matches!(reply.wait(), Ok(Err(ReadError::Reset))));
            // The one that is left is the exporter's own.
            assert_eq!(dma_bufs(), (before.0 + 1, before.1), "after a reset");
            fenced.guest.activate();
            fenced.start();
        }
        assert!(slowest < DRIVERS_TIMEOUT / 2, "{slowest:?}");
        let reply = fenced.read();
        fenced.buffer.signal(fence).expect("in time");
        whole(reply.wait(), 0x44);
        assert_eq!(fenced.guest.device().counters().quarantined, 0);
        format!("resets=5 slowest_ms={}", slowest.as_millis())
    });
}

#[test]
fn a_device_that_stops_or_is_dropped_never_waits_for_a_fence_and_leaves_no_descriptor() {
    for end in ["stop", "drop"] {
        scenario(end, || {
            let before = dma_bufs();
            let mut fenced = Fenced::new(Duration::from_secs(60));
            let _fence = fenced.attach();
            let mut reply = fenced.read();
            fenced.guest.map(FENCED, 0);
            assert_pending(&mut reply);
            let Fenced { guest, window, buffer } = fenced;
            let started = Instant::now();
            match end {
                "stop" => guest.device().stop().wait().expect("a device"),
                _ => drop(guest),
            }
            let waited = started.elapsed();
            assert!(waited < DRIVERS_TIMEOUT / 2, "{waited:?}");
            assert_eq!(dma_bufs(), (before.0 + 1, before.1), "after the end");
            assert!(matches!(reply.wait(), Ok(Err(ReadError::Reset))));
            drop((window, buffer));
            format!("waited_ms={}", waited.as_millis())
        });
    }
}

/// Its writes are pending from a moment on when the device has found none: then it waits in the kernel, and the kernel lets
/// nobody call it back. Takes the device's 5 seconds.
#[test]
fn a_read_that_is_stuck_in_the_kernel_never_holds_up_the_device_nor_its_end() {
    scenario("stuck", || {
        let before = dma_bufs();
        let mut fenced = Fenced::new(Duration::from_secs(5));
        fenced.buffer.fill(0x55);
        let copies = fenced.busy_line(Duration::from_millis(500));
        let reply = fenced.read();
        (0..3).for_each(|_| fenced.guest.settle());
        let fence = fenced.attach();
        for copy in copies {
            copy.wait().expect("a device").expect("read");
        }
        let (commands, _) = fenced.bustle(5);
        assert_eq!(late(reply.wait()), "the kernel");
        assert_eq!(fenced.guest.device().counters().quarantined, 1);
        // The blob's, the exporter's, and the one that is stuck with the mapping that it has made.
        assert_eq!(dma_bufs(), (before.0 + 3, before.1 + 1));
        let started = Instant::now();
        fenced.guest.reset();
        let reset = started.elapsed();
        fenced.guest.activate();
        fenced.start();
        let (more, _) = fenced.bustle(5);
        let Fenced { guest, window, buffer } = fenced;
        drop((guest, window));
        let ended = started.elapsed();
        assert!(ended < Duration::from_secs(4), "reset {reset:?}, end {ended:?}");
        assert_eq!(dma_bufs(), (before.0 + 2, before.1 + 1), "the stuck one, and the exporter's");
        buffer.signal(fence).expect("in time");
        while dma_bufs() != (before.0 + 1, before.1) {
            assert!(started.elapsed() < 2 * DRIVERS_TIMEOUT, "still open: {:?}", dma_bufs());
            std::thread::sleep(Duration::from_millis(5));
        }
        format!("quarantined=1 reset_ms={} commands={}", reset.as_millis(), commands + more)
    });
}

#[test]
fn fences_that_come_and_go_never_lose_a_read() {
    scenario("storm", || {
        let fenced = Fenced::new(Duration::from_secs(20));
        let (buffer, guest) = (&fenced.buffer, &fenced.guest);
        let reads = 60;
        let fences = std::thread::scope(|scope| {
            let (done, stop) = std::sync::mpsc::channel::<()>();
            let exporter = scope.spawn(move || {
                let mut fences = 0u32;
                while !matches!(stop.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
                    let fence = buffer.attach_fence().expect("the last one has signalled");
                    fences += 1;
                    buffer.fill(fences as u8);
                    buffer.signal(fence).expect("in time");
                }
                fences
            });
            for _ in 0..reads / 6 {
                let replies = [(); 6].map(|()| guest.device().read_blob(FENCED, 0..4096));
                for reply in replies {
                    assert_eq!(reply.wait().expect("a device").expect("read").len(), 4096);
                }
            }
            drop(done);
            exporter.join().expect("an exporter that ends")
        });
        assert_eq!(guest.device().counters().quarantined, 0);
        format!("reads={reads} fences={fences}")
    });
}
