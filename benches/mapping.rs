//! What a mapping costs beside the system calls that it cannot do without, and how long a guest waits for the device, and
//! a VMM for its address space, while a large blob is taken back.

use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{GuestRam, Prepared, Request};
use virtio_gpu_uring::{Builder, HostBuffer, HostWindow};

#[path = "rig/bare.rs"]
mod bare;
mod rig;

use bare::{Bare, map_a_page};
use rig::{Rig, in_full, percentile, pin};

const MIB: usize = 1 << 20;
const SIZES: [(&str, usize); 3] = [("4 KiB", 4096), ("1 MiB", MIB), ("64 MiB", 64 * MIB)];
/// The blob whose end others have to live with.
const LARGE: usize = 256 * MIB;
/// Buffers that are offered in advance, so that no offer is measured.
const OFFERS: u64 = 256;

/// A device with a window, and a context to make blobs in.
struct Stage {
    rig: Rig,
    window: HostWindow,
}

impl Stage {
    fn new(len: usize) -> Self {
        let window = HostWindow::new(len).expect("a window");
        let mut rig = Rig::start(Builder::new().window(window.clone()), &GuestRam::new(16 << 20));
        let create = rig.prepare(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN));
        rig.round_trip(&[create]);
        Self { rig, window }
    }

    fn offer(&self, file: OwnedFd) -> u64 {
        let buffer = HostBuffer::from_fd(file).expect("a buffer");
        self.rig.device.offer(buffer).wait().expect("a device").expect("taken").0
    }

    /// Makes resource 1 of a file.
    fn blob(&mut self, file: &OwnedFd, len: usize) {
        let id = self.offer(file.try_clone().expect("a duplicate"));
        let create = self.rig.prepare(&Request::host_blob(1, 1, id, len as u64));
        self.rig.round_trip(&[create]);
    }

    /// MAP at the window's start, and UNMAP.
    fn map_and_unmap(&mut self) -> [Prepared; 2] {
        [Request::map(1, 0), Request::unmap(1)].map(|request| self.rig.prepare(&request))
    }

    fn touch(&self, len: usize) {
        for page in (0..len).step_by(4096) {
            self.window.read(page as u64, &mut [0]).expect("in the window");
        }
    }
}

/// A memfd of `len` bytes, none of which takes memory yet.
fn memfd(len: u64) -> OwnedFd {
    let file = memfd_create("bench", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, len).expect("a size");
    file
}

/// A memfd whose pages are all there.
fn full_memfd(len: usize) -> OwnedFd {
    let file = memfd(len as u64);
    let some = vec![0x5a; MIB.min(len)];
    for at in (0..len).step_by(some.len()) {
        assert_eq!(rustix::io::pwrite(&file, &some, at as u64), Ok(some.len()));
    }
    file
}

fn elapsed(routine: impl FnOnce()) -> Duration {
    let started = Instant::now();
    routine();
    started.elapsed()
}

/// The two sides of a comparison: a full memfd, a bare reservation, and a device that has made a blob of the memfd.
struct Pair {
    file: OwnedFd,
    len: usize,
    bare: Bare,
    stage: Stage,
    map: [Prepared; 1],
    unmap: [Prepared; 1],
}

impl Pair {
    fn new(len: usize) -> Self {
        let (file, bare, mut stage) = (full_memfd(len), Bare::new(len), Stage::new(len));
        stage.blob(&file, len);
        let [map, unmap] = stage.map_and_unmap().map(|chain| [chain]);
        Self { file, len, bare, stage, map, unmap }
    }

    /// The bare system calls. What a guest does in between is not counted.
    fn bare(&self, touched: bool) -> Duration {
        let placing = elapsed(|| self.bare.place(&self.file, self.len));
        if touched {
            self.bare.touch(self.len);
        }
        placing + elapsed(|| self.bare.fill(self.len))
    }

    /// MAP and UNMAP, one after the other.
    fn device(&mut self, touched: bool) -> Duration {
        let placing = elapsed(|| self.stage.rig.round_trip(&self.map));
        if touched {
            self.stage.touch(self.len);
        }
        placing + elapsed(|| self.stage.rig.round_trip(&self.unmap))
    }
}

/// MAP and UNMAP of a blob that the guest does not touch, or touches in every page.
fn map_unmap(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, len: usize, touched: bool) {
    let mut pair = Pair::new(len);
    group.bench_function(BenchmarkId::new("bare", name), |bencher| {
        bencher.iter_custom(|iterations| (0..iterations).map(|_| pair.bare(touched)).sum());
    });
    group.bench_function(BenchmarkId::new("device", name), |bencher| {
        bencher.iter_custom(|iterations| (0..iterations).map(|_| pair.device(touched)).sum());
    });
    pair.stage.rig.assert_all_ok();
}

/// CREATE, MAP, UNMAP and UNREF of a memfd of a page, one after the other and all in one kick. Nobody touches it.
fn whole_life(group: &mut BenchmarkGroup<'_, WallTime>) {
    let bare = Bare::new(4096);
    group.bench_function("bare", |bencher| {
        bencher.iter_custom(|iterations| {
            let life = |file: OwnedFd| {
                elapsed(|| {
                    bare.place(&file, 4096);
                    bare.fill(4096);
                    drop(file);
                })
            };
            (0..iterations).map(|_| life(memfd(4096))).sum()
        });
    });
    let mut stage = Stage::new(4096);
    let create = |id| Request::host_blob(1, 1, id, 4096);
    let rest = [Request::map(1, 0), Request::unmap(1), Request::unref(1)];
    let [map, unmap, unref] = rest.map(|request| stage.rig.prepare(&request));
    let chains = [stage.rig.prepare(&create(0)), map, unmap, unref];
    for (name, at_once) in [("device, one after the other", 1), ("device, in one kick", 4)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let count = left.min(OFFERS);
                    let ids: Vec<u64> = (0..count).map(|_| stage.offer(memfd(4096))).collect();
                    total += elapsed(|| {
                        for id in ids {
                            stage.rig.queue.rewrite(&chains[0], &create(id).bytes());
                            chains.chunks(at_once).for_each(|some| stage.rig.round_trip(some));
                        }
                    });
                    left -= count;
                }
                total
            });
        });
    }
    stage.rig.assert_all_ok();
}

/// The longest that others waited while a large blob, all of it in use, was taken back, in milliseconds.
struct Waits {
    /// For the whole of it.
    taken_back: f64,
    /// For an answer to a command that does nothing.
    answer: f64,
    /// For a page of memory, on another thread of the process.
    page: f64,
}

/// Runs `routine`, if wanted while another thread maps pages, and answers how long the longest of these took.
fn longest_page(others: bool, routine: impl FnOnce()) -> Duration {
    if !others {
        routine();
        return Duration::ZERO;
    }
    let (busy, over) = (Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            map_a_page();
            busy.wait();
            while !over.load(Ordering::Relaxed) {
                longest = longest.max(elapsed(map_a_page));
                std::thread::yield_now();
            }
            longest
        });
        busy.wait();
        routine();
        over.store(true, Ordering::Relaxed);
        other.join().expect("the other thread")
    })
}

fn bare_waits(file: &OwnedFd, bare: &Bare, others: bool) -> Waits {
    bare.place(file, LARGE);
    bare.touch(LARGE);
    let mut taken_back = Duration::ZERO;
    let page = longest_page(others, || taken_back = elapsed(|| bare.fill(LARGE)));
    let [taken_back, page] = [taken_back, page].map(|wait| wait.as_secs_f64() * 1e3);
    Waits { taken_back, answer: taken_back, page }
}

fn device_waits(stage: &mut Stage, chains: &[Prepared; 2], info: &[Prepared; 1], others: bool) -> Waits {
    let [map, unmap] = chains;
    stage.rig.round_trip(std::slice::from_ref(map));
    stage.touch(LARGE);
    let (mut answer, mut taken_back) = (Duration::ZERO, Duration::ZERO);
    let rig = &mut stage.rig;
    let page = longest_page(others, || {
        let started = Instant::now();
        rig.give(std::slice::from_ref(unmap));
        let (mut going_on, mut asked) = (true, false);
        let mut since = started;
        while going_on || asked {
            if going_on && !asked {
                since = Instant::now();
                rig.give(info);
                asked = true;
            }
            if rig.next().0 == unmap.head() {
                taken_back = started.elapsed();
                going_on = false;
            } else {
                answer = answer.max(since.elapsed());
                asked = false;
            }
        }
    });
    let [taken_back, answer, page] = [taken_back, answer, page].map(|wait| wait.as_secs_f64() * 1e3);
    Waits { taken_back, answer, page }
}

/// Takes a populated blob of 256 MiB back and looks at who has to wait for it.
fn waits(rounds: usize) {
    let file = full_memfd(LARGE);
    let bare = Bare::new(LARGE);
    let mut stage = Stage::new(LARGE);
    stage.blob(&file, LARGE);
    let (chains, info) = (stage.map_and_unmap(), [stage.rig.prepare(&Request::display_info())]);
    let mut idle: Vec<Duration> = (0..1000).map(|_| elapsed(|| stage.rig.round_trip(&info))).collect();
    let idle = percentile(&mut idle, 0.5) / 1e3;
    println!("taking back a populated blob of 256 MiB, longest of {rounds}, ms");
    println!("                                       all of it    an answer   a page elsewhere");
    for others in [false, true] {
        let with = if others { "beside a thread that maps" } else { "nobody else" };
        let worst = |what: &mut dyn FnMut() -> Waits| {
            let all: Vec<Waits> = (0..rounds).map(|_| what()).collect();
            let most = |field: fn(&Waits) -> f64| all.iter().map(field).fold(0.0, f64::max);
            [most(|waits| waits.taken_back), most(|waits| waits.answer), most(|waits| waits.page)]
        };
        for (name, [taken_back, answer, page]) in [
            ("bare", worst(&mut || bare_waits(&file, &bare, others))),
            ("device", worst(&mut || device_waits(&mut stage, &chains, &info, others))),
        ] {
            println!("  {name:7} {with:27}  {taken_back:9.2}    {answer:9.3}    {page:9.3}");
        }
    }
    println!("  an answer at other times: {idle:.4}");
    stage.rig.assert_all_ok();
}

/// Both sides in turns, so that whatever else the machine does hits both alike.
fn summary() {
    println!("MAP and UNMAP, one processor, p50 us       bare    device     ratio");
    for touched in [false, true] {
        for (size, len) in SIZES {
            let mut pair = Pair::new(len);
            let rounds = if len * usize::from(touched) > MIB { 50 } else { 2000 };
            let both: Vec<_> = (0..rounds).map(|_| (pair.bare(touched), pair.device(touched))).collect();
            let (mut bare, mut device): (Vec<_>, Vec<_>) = both.into_iter().unzip();
            let [bare, device] = [&mut bare, &mut device].map(|samples| percentile(samples, 0.5));
            let how = if touched { "every page touched" } else { "untouched" };
            println!("  {size:7} {how:18}               {bare:8.2}  {device:8.2}  {:8.2}", device / bare);
        }
    }
}

fn main() {
    if in_full() {
        waits(5);
    }
    pin();
    let short = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let mut criterion = short.sample_size(20).configure_from_args();
    for (touched, name) in [(false, "map and unmap, untouched"), (true, "map and unmap, every page touched")] {
        let mut group = criterion.benchmark_group(name);
        for (size, len) in SIZES {
            map_unmap(&mut group, size, len, touched);
        }
        group.finish();
    }
    let mut group = criterion.benchmark_group("whole life of 4 KiB");
    whole_life(&mut group);
    group.finish();
    criterion.final_summary();
    if in_full() {
        summary();
    }
}
