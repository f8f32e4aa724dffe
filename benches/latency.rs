//! What the device adds to a round trip: a command that does nothing, from kick to used, beside a bare ping-pong of two
//! eventfds; and thirty-two of them at a time beside rust-vmm's queue alone. Only the ratios travel between machines.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use virtio_gpu_uring::Builder;
use virtio_gpu_uring::testing::{DriverQueue, GuestRam, Layout, Prepared, Request, RingFeatures};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestMemoryMmap};

#[path = "rig/ping_pong.rs"]
mod ping_pong;
mod rig;

use ping_pong::PingPong;
use rig::{Rig, in_full, percentile, pin};

/// Commands at a time where throughput is measured.
const DEPTH: usize = 32;
/// A header, which is all that a GET_DISPLAY_INFO says.
const REQUEST: usize = 24;
/// A header and sixteen scanouts.
const RESPONSE: usize = 408;

/// rust-vmm's queue in the place of the device, on the driver's own thread: no kick, no interrupt, nobody to wake.
struct QueueAlone {
    driver: DriverQueue,
    queue: Queue,
    ram: GuestRam,
    chains: Vec<Prepared>,
    answer: [u8; RESPONSE],
}

impl QueueAlone {
    fn new() -> Self {
        let ram = GuestRam::new(16 << 20);
        let mut driver = DriverQueue::new(ram.clone(), 1024, RingFeatures { event_idx: true, indirect: true });
        let request = Request::display_info();
        let mut prepare =
            || driver.prepare(&request.bytes(), request.room(), &Layout::default()).expect("room in the queue");
        let chains = (0..DEPTH).map(|_| prepare()).collect();
        Self { queue: driver.device_queue(), driver, ram, chains, answer: [7; RESPONSE] }
    }

    fn round_trip(&mut self) {
        for chain in &self.chains {
            let _ = self.driver.add_prepared(chain);
        }
        let _ = black_box(self.driver.publish());
        let memory = self.ram.memory();
        let _ = self.queue.disable_notification(memory);
        while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
            serve(&mut self.queue, memory, chain, &self.answer);
        }
        let _ = black_box(self.queue.enable_notification(memory));
        black_box(self.queue.needs_notification(memory).expect("a ring in memory"));
        for _ in &self.chains {
            self.driver.poll_used_fast().expect("an answer");
        }
    }
}

/// Reads a request, writes the answer, gives the chain back.
fn serve(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    chain: virtio_queue::DescriptorChain<&GuestMemoryMmap>,
    answer: &[u8],
) {
    let (head, mut written) = (chain.head_index(), 0);
    for descriptor in chain {
        if descriptor.is_write_only() {
            memory.write_slice(answer, descriptor.addr()).expect("room in memory");
            written += answer.len() as u32;
        } else {
            let mut request = [0; REQUEST];
            memory.read_slice(&mut request, descriptor.addr()).expect("a request in memory");
            black_box(&request);
        }
    }
    queue.add_used(memory, head, written).expect("a ring in memory");
}

fn display_infos(rig: &mut Rig, count: usize) -> Vec<Prepared> {
    (0..count).map(|_| rig.prepare(&Request::display_info())).collect()
}

fn depth_one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("depth 1");
    let ping_pong = PingPong::start();
    group.bench_function("eventfd ping-pong", |bencher| bencher.iter(|| ping_pong.round_trip()));
    let mut rig = Rig::start(Builder::new(), &GuestRam::new(16 << 20));
    let chain = display_infos(&mut rig, 1);
    group.bench_function("GET_DISPLAY_INFO", |bencher| bencher.iter(|| rig.round_trip(&chain)));
    group.finish();
    rig.assert_all_ok();
}

fn depth_many(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("depth 32");
    group.throughput(Throughput::Elements(DEPTH as u64));
    let mut alone = QueueAlone::new();
    group.bench_function("virtio-queue alone", |bencher| bencher.iter(|| alone.round_trip()));
    let mut rig = Rig::start(Builder::new(), &GuestRam::new(16 << 20));
    let chains = display_infos(&mut rig, DEPTH);
    group.bench_function("GET_DISPLAY_INFO", |bencher| bencher.iter(|| rig.round_trip(&chains)));
    group.finish();
    rig.assert_all_ok();
}

/// Both in turns, so that whatever else the machine does hits both alike.
fn in_turns(mut first: impl FnMut(), mut second: impl FnMut()) -> [Vec<Duration>; 2] {
    let mut samples = [Vec::new(), Vec::new()];
    let mut measure = |which: usize, routine: &mut dyn FnMut()| {
        for _ in 0..500 {
            let started = Instant::now();
            routine();
            samples[which].push(started.elapsed());
        }
    };
    for _ in 0..60 {
        measure(0, &mut first);
        measure(1, &mut second);
    }
    samples
}

fn summary() {
    let (ping_pong, mut rig) = (PingPong::start(), Rig::start(Builder::new(), &GuestRam::new(16 << 20)));
    let chain = display_infos(&mut rig, 1);
    let [mut floor, mut device] = in_turns(|| ping_pong.round_trip(), || rig.round_trip(&chain));
    let [floor_p50, device_p50] = [percentile(&mut floor, 0.5), percentile(&mut device, 0.5)];
    let [floor_p99, device_p99] = [percentile(&mut floor, 0.99), percentile(&mut device, 0.99)];
    println!("depth 1, one processor   p50 us   p99 us");
    println!("  eventfd ping-pong      {floor_p50:6.2}   {floor_p99:6.2}");
    println!("  GET_DISPLAY_INFO       {device_p50:6.2}   {device_p99:6.2}");
    println!("  ratio                  {:6.2}   ({:+.2} us)", device_p50 / floor_p50, device_p50 - floor_p50);

    let (mut alone, chains) = (QueueAlone::new(), display_infos(&mut rig, DEPTH));
    let before = rig.device.counters();
    let [mut floor, mut device] = in_turns(|| alone.round_trip(), || rig.round_trip(&chains));
    let after = rig.device.counters();
    let rate = |samples: &mut [Duration]| DEPTH as f64 / percentile(samples, 0.5);
    let [floor, device] = [rate(&mut floor), rate(&mut device)];
    let batches = (after.commands - before.commands) as f64 / DEPTH as f64;
    println!("depth 32, one processor  million commands/s");
    println!("  virtio-queue alone     {floor:6.2}");
    println!("  GET_DISPLAY_INFO       {device:6.2}");
    println!("  ratio                  {:6.2}", floor / device);
    println!("  kicks a batch          {:6.2}", (after.kicks - before.kicks) as f64 / batches);
    println!("  interrupts a batch     {:6.2}", (after.interrupts - before.interrupts) as f64 / batches);
    rig.assert_all_ok();
}

fn main() {
    pin();
    let short = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut criterion = short.configure_from_args();
    depth_one(&mut criterion);
    depth_many(&mut criterion);
    criterion.final_summary();
    if in_full() {
        summary();
    }
}
