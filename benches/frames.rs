//! What a guest's frames cost beside the copies that they cannot do without: transfers beside memcpy of as many bytes,
//! flushes beside a command that does nothing; and how long others wait while the largest picture is copied.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use virtio_gpu_uring::testing::{GuestRam, Prepared, Request};
use virtio_gpu_uring::{Builder, Format, Monitor, NullDisplay};
use vm_memory::GuestAddress;

mod rig;

use rig::{Rig, in_full, percentile, pin};

const PAGE: usize = 4096;
/// A resource of the bench's own.
const IMAGE: u32 = 1;
/// A blob of the same guest memory.
const BLOB: u32 = 2;

/// Width and height in pixels.
#[derive(Clone, Copy)]
struct Size(u32, u32);

const FULL_HD: Size = Size(1920, 1080);
const EIGHT_K: Size = Size(7680, 4320);
/// Part of a picture: x, y, width, height.
const BOX: [u32; 4] = [320, 200, 640, 480];

impl Size {
    fn stride(self) -> usize {
        self.0 as usize * 4
    }

    fn bytes(self) -> usize {
        self.stride() * self.1 as usize
    }

    fn whole(self) -> [u32; 4] {
        [0, 0, self.0, self.1]
    }

    /// Where a rectangle's first pixel lies in a picture of this size.
    fn offset(self, rect: [u32; 4]) -> usize {
        self.stride() * rect[1] as usize + rect[0] as usize * 4
    }

    /// The rows of a rectangle as offsets and lengths; whole rows are one.
    fn rows(self, rect: [u32; 4]) -> Vec<(usize, usize)> {
        let row = rect[2] as usize * 4;
        if row == self.stride() {
            return vec![(self.offset(rect), row * rect[3] as usize)];
        }
        (0..rect[3] as usize).map(|y| (self.offset(rect) + y * self.stride(), row)).collect()
    }
}

/// How a picture lies in guest memory.
#[derive(Clone, Copy, PartialEq)]
enum Memory {
    OnePiece,
    /// In pages, no two of which are neighbours.
    Pages,
}

impl Memory {
    const BOTH: [Self; 2] = [Self::OnePiece, Self::Pages];

    fn name(self) -> &'static str {
        match self {
            Self::OnePiece => "in one piece",
            Self::Pages => "in 4 KiB pages",
        }
    }

    /// Where bytes of a picture of `all` bytes lie: pieces as offsets in memory, offsets in the picture, and lengths.
    fn pieces(self, all: usize, (start, len): (usize, usize)) -> Vec<(usize, usize, usize)> {
        if self == Self::OnePiece {
            return vec![(start, start, len)];
        }
        // Has no factor in common with the number of a picture's pages, so that each page comes once.
        const STEP: usize = 1237;
        let (mut at, mut pieces) = (start, Vec::new());
        while at < start + len {
            let end = (at / PAGE + 1) * PAGE;
            let place = at / PAGE * STEP % (all / PAGE) * PAGE + at % PAGE;
            pieces.push((place, at, end.min(start + len) - at));
            at = end;
        }
        pieces
    }
}

/// Bytes that begin with a page.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new(len: usize, fill: u8) -> Self {
        Self(vec![fill; len + PAGE])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(PAGE);
        &mut self.0[start..]
    }
}

/// The copies alone.
struct Bare {
    from: Aligned,
    to: Aligned,
    pieces: Vec<(usize, usize, usize)>,
}

impl Bare {
    fn new(size: Size, memory: Memory, rect: [u32; 4]) -> Self {
        let pieces = size.rows(rect).into_iter().flat_map(|row| memory.pieces(size.bytes(), row)).collect();
        Self { from: Aligned::new(size.bytes(), 1), to: Aligned::new(size.bytes(), 2), pieces }
    }

    fn copy(&mut self) {
        let (from, to) = (black_box(self.from.bytes()), self.to.bytes());
        for &(place, at, len) in &self.pieces {
            to[at..at + len].copy_from_slice(&from[place..place + len]);
        }
        black_box(to);
    }
}

/// A device with a display, and a guest's picture.
struct Stage {
    rig: Rig,
    size: Size,
    list: Vec<(u64, u32)>,
}

impl Stage {
    fn new(size: Size, memory: Memory) -> Self {
        let ram = GuestRam::new(size.bytes() + (16 << 20));
        let start = ram.alloc(size.bytes(), PAGE);
        ram.write(start, &vec![3; size.bytes()]);
        let pieces = memory.pieces(size.bytes(), (0, size.bytes()));
        let list = pieces.into_iter().map(|(place, _, len)| (start.0 + place as u64, len as u32)).collect();
        let builder = Builder::new().scanouts(1).display(0, Monitor::new(size.0, size.1), NullDisplay);
        Self { rig: Rig::start(builder, &ram), size, list }
    }

    /// With the picture's image on the scanout.
    fn with_image(size: Size, memory: Memory) -> Self {
        let mut stage = Self::new(size, memory);
        let first = [stage.create(), stage.attach(), stage.transfer(size.whole()), stage.show()];
        stage.rig.round_trip(&first);
        stage
    }

    /// With the picture's memory as a blob on the scanout.
    fn with_blob(size: Size, memory: Memory) -> Self {
        let mut stage = Self::new(size, memory);
        let create = Request::guest_blob(BLOB, size.bytes() as u64, &stage.list);
        let (format, stride) = (Format::B8G8R8X8.wire(), size.stride() as u32);
        let show = Request::set_scanout_blob(0, BLOB, [size.0, size.1], format, stride, 0);
        let first = [create, show].map(|request| stage.rig.prepare(&request));
        stage.rig.round_trip(&first);
        stage
    }

    fn create(&mut self) -> Prepared {
        let Size(width, height) = self.size;
        self.rig.prepare(&Request::create_2d(IMAGE, Format::B8G8R8X8.wire(), width, height))
    }

    fn attach(&mut self) -> Prepared {
        self.rig.prepare(&Request::attach_backing(IMAGE, &self.list))
    }

    fn transfer(&mut self, rect: [u32; 4]) -> Prepared {
        self.rig.prepare(&Request::transfer_2d(IMAGE, rect, self.size.offset(rect) as u64))
    }

    fn show(&mut self) -> Prepared {
        self.rig.prepare(&Request::set_scanout(0, IMAGE, self.size.whole()))
    }

    fn flush(&mut self, resource: u32) -> Prepared {
        self.rig.prepare(&Request::flush(resource, self.size.whole()))
    }

    fn unref(&mut self) -> Prepared {
        self.rig.prepare(&Request::unref(IMAGE))
    }
}

/// What is measured: chains that are given in one kick, beside a floor.
struct Case {
    name: String,
    /// Bytes that both copy.
    bytes: usize,
    floor: Box<dyn FnMut()>,
    floor_name: &'static str,
    stage: Stage,
    chains: Vec<Prepared>,
}

impl Case {
    fn beside_copies(name: &str, memory: Memory, rect: [u32; 4], stage: Stage, chains: Vec<Prepared>) -> Self {
        let mut bare = Bare::new(FULL_HD, memory, rect);
        let bytes = rect[2] as usize * rect[3] as usize * 4;
        let name = format!("{name}, {}", memory.name());
        Self { name, bytes, floor: Box::new(move || bare.copy()), floor_name: "memcpy", stage, chains }
    }

    fn transfer(name: &str, memory: Memory, rect: [u32; 4]) -> Self {
        let mut stage = Stage::with_image(FULL_HD, memory);
        let chains = vec![stage.transfer(rect)];
        Self::beside_copies(name, memory, rect, stage, chains)
    }

    /// What a guest does for each frame that it flips to.
    fn cycle(memory: Memory) -> Self {
        let mut stage = Stage::with_image(FULL_HD, memory);
        let chains = vec![stage.transfer(FULL_HD.whole()), stage.show(), stage.flush(IMAGE)];
        Self::beside_copies("transfer, show, flush", memory, FULL_HD.whole(), stage, chains)
    }

    /// A flush of guest memory itself, which has to be gathered where it lies in pieces.
    fn blob(memory: Memory) -> Self {
        let mut stage = Stage::with_blob(FULL_HD, memory);
        let chains = vec![stage.flush(BLOB)];
        Self::beside_copies("FLUSH of a blob", memory, FULL_HD.whole(), stage, chains)
    }

    /// An image's whole life, beside memory that is mapped, written, and unmapped.
    fn life() -> Self {
        let mut stage = Stage::new(FULL_HD, Memory::OnePiece);
        let chains = vec![stage.create(), stage.attach(), stage.transfer(FULL_HD.whole()), stage.unref()];
        let mut from = Aligned::new(FULL_HD.bytes(), 1);
        let floor = Box::new(move || {
            GuestRam::new(FULL_HD.bytes()).write(GuestAddress(0), &black_box(from.bytes())[..FULL_HD.bytes()]);
        });
        let name = "CREATE_2D to UNREF, every page written".to_owned();
        Self { name, bytes: FULL_HD.bytes(), floor, floor_name: "mmap, memcpy, munmap", stage, chains }
    }

    /// A flush of an image to a display that does nothing, beside a command that does nothing.
    fn flush() -> Self {
        let mut stage = Stage::with_image(FULL_HD, Memory::OnePiece);
        let chains = vec![stage.flush(IMAGE)];
        let mut idle = Rig::start(Builder::new(), &GuestRam::new(16 << 20));
        let info = [idle.prepare(&Request::display_info())];
        let floor = Box::new(move || idle.round_trip(&info));
        Self { name: "FLUSH of an image".to_owned(), bytes: 0, floor, floor_name: "GET_DISPLAY_INFO", stage, chains }
    }

    /// Makes all of them, one at a time.
    fn all() -> impl Iterator<Item = Self> {
        let of = |memory| {
            let whole = move || Self::transfer("TRANSFER of 1920x1080", memory, FULL_HD.whole());
            let part = move || Self::transfer("TRANSFER of 640x480 in it", memory, BOX);
            let [cycle, blob] =
                [Self::cycle, Self::blob].map(|case| Box::new(move || case(memory)) as Box<dyn Fn() -> Self>);
            [Box::new(whole) as Box<dyn Fn() -> Self>, Box::new(part), cycle, blob]
        };
        let rest: [Box<dyn Fn() -> Self>; 2] = [Box::new(Self::life), Box::new(Self::flush)];
        Memory::BOTH.into_iter().flat_map(of).chain(rest).map(|make| make())
    }

    fn device(&mut self) {
        self.stage.rig.round_trip(&self.chains);
    }
}

fn elapsed(routine: impl FnOnce()) -> Duration {
    let started = Instant::now();
    routine();
    started.elapsed()
}

/// Both sides in turns, so that whatever else the machine does hits both alike.
fn summary() {
    let mut idle = Rig::start(Builder::new(), &GuestRam::new(16 << 20));
    let info = [idle.prepare(&Request::display_info())];
    let mut empty: Vec<Duration> = (0..20_000).map(|_| elapsed(|| idle.round_trip(&info))).collect();
    let empty = percentile(&mut empty, 0.5);
    println!(
        "frames of 1920x1080, one processor, p50 us       bare    device     ratio   (a command that does nothing: {empty:.2})"
    );
    for mut case in Case::all() {
        let rounds = if case.bytes == 0 { 20_000 } else { 400 };
        let both: Vec<_> = (0..rounds).map(|_| (elapsed(&mut case.floor), elapsed(|| case.device()))).collect();
        let (mut bare, mut device): (Vec<_>, Vec<_>) = both.into_iter().unzip();
        let [bare, device] = [&mut bare, &mut device].map(|samples| percentile(samples, 0.5));
        print!("  {:40}  {bare:9.2} {device:9.2}  {:8.2}", case.name, device / bare);
        match case.bytes {
            0 => println!(),
            // What no device can do without, however little is copied.
            _ => println!("   ({:.2} without that)", (device - empty) / bare),
        }
        case.stage.rig.assert_all_ok();
    }
}

/// The longest that somebody waits for the answer to a command that does nothing while a picture of 8K is copied.
fn waits(rounds: usize) {
    println!("a transfer of 7680x4320, longest of {rounds}, ms          all of it  an answer");
    for memory in Memory::BOTH {
        let mut stage = Stage::with_image(EIGHT_K, memory);
        let (transfer, info) = ([stage.transfer(EIGHT_K.whole())], [stage.rig.prepare(&Request::display_info())]);
        let (mut all, mut longest) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..rounds {
            let (one, wait) = wait_beside(&mut stage.rig, &transfer, &info);
            (all, longest) = (all.max(one), longest.max(wait));
        }
        let mut idle: Vec<Duration> = (0..1000).map(|_| elapsed(|| stage.rig.round_trip(&info))).collect();
        let idle = percentile(&mut idle, 0.5) / 1e3;
        let [all, longest] = [all, longest].map(|wait| wait.as_secs_f64() * 1e3);
        println!("  {:46}  {all:9.2}  {longest:9.3}   (at other times {idle:.4})", memory.name());
        stage.rig.assert_all_ok();
    }
}

/// Asks again and again while a transfer is under way: how long it took, and the longest wait for an answer.
fn wait_beside(rig: &mut Rig, transfer: &[Prepared; 1], info: &[Prepared; 1]) -> (Duration, Duration) {
    let started = Instant::now();
    rig.give(transfer);
    let (mut all, mut longest) = (Duration::ZERO, Duration::ZERO);
    while all.is_zero() {
        let asked = Instant::now();
        rig.give(info);
        while rig.next().0 != info[0].head() {
            all = started.elapsed();
        }
        longest = longest.max(asked.elapsed());
    }
    (all, longest)
}

fn main() {
    if in_full() {
        waits(20);
    }
    pin();
    let short = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let mut criterion = short.sample_size(20).configure_from_args();
    for mut case in Case::all() {
        let mut group = criterion.benchmark_group(&case.name);
        if case.bytes > 0 {
            group.throughput(Throughput::Bytes(case.bytes as u64));
        }
        group.bench_function(case.floor_name, |bencher| bencher.iter(&mut case.floor));
        group.bench_function("device", |bencher| bencher.iter(|| case.device()));
        group.finish();
        case.stage.rig.assert_all_ok();
    }
    criterion.final_summary();
    if in_full() {
        summary();
    }
}
