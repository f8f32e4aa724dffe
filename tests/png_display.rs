//! The display that writes PNG files: what a guest has flushed is in the file when it is told so, a file is always whole,
//! and neither the disk nor a hurry of the guest's harms the device.
#![cfg(all(feature = "png", feature = "testing"))]

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use rustix::fs::inotify;
use virtio_gpu_uring::testing::{DEADLINE, Guest, Lane, Request};
use virtio_gpu_uring::{Area, Builder, Cursor, Display, Format, Monitor, Picture, Pixels, PngDisplay, Work};

const SCANOUT: u32 = 0;
/// A resource that most tests show.
const IMAGE: u32 = 7;

/// A folder of one test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("png-display-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("the folder").flatten();
        entries.map(|entry| entry.file_name().into_string().expect("names of our own")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A decoded file.
#[derive(Debug, PartialEq)]
struct Decoded {
    size: (u32, u32),
    color: png::ColorType,
    pixels: Vec<u8>,
    texts: Vec<(String, String)>,
}

fn decode(path: &Path) -> Result<Decoded, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().map_err(|error| error.to_string())?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("a picture too large")?];
    reader.next_frame(&mut pixels).map_err(|error| error.to_string())?;
    reader.finish().map_err(|error| error.to_string())?;
    let info = reader.info();
    let texts = info.uncompressed_latin1_text.iter().map(|text| (text.keyword.clone(), text.text.clone())).collect();
    Ok(Decoded { size: info.size(), color: info.color_type, pixels, texts })
}

/// Pixels that never repeat soon, alpha among them.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// What a file must hold of a guest's pixels.
fn rgb(format: Format, pixels: &[u8]) -> Vec<u8> {
    pixels.as_chunks::<4>().0.iter().flat_map(|pixel| format.rgba(*pixel)[..3].to_vec()).collect()
}

/// A guest with a PNG display.
struct Desk {
    guest: Guest,
    path: PathBuf,
    fence: u64,
}

impl Desk {
    fn new(folder: &Folder, stem: &str) -> Self {
        let path = folder.file(&format!("{stem}.png"));
        let display = PngDisplay::new(&path).expect("a display");
        let builder = Builder::new().scanouts(1).display(SCANOUT, Monitor::new(640, 480), display);
        Self { guest: Guest::start(builder), path, fence: 0 }
    }

    /// Makes an image whose backing holds these pixels, and transfers them.
    fn image(&mut self, resource: u32, format: Format, [width, height]: [u32; 2], pixels: &[u8]) -> u64 {
        let (address, len) = self.guest.page_range(pixels.len());
        self.guest.command(&Request::create_2d(resource, format.wire(), width, height)).ok();
        self.guest.command(&Request::attach_backing(resource, &[(address, len)])).ok();
        self.paint(resource, [width, height], address, pixels);
        address
    }

    /// Changes the pixels of an image.
    fn paint(&mut self, resource: u32, [width, height]: [u32; 2], address: u64, pixels: &[u8]) {
        self.guest.ram().write(vm_memory::GuestAddress(address), pixels);
        self.guest.command(&Request::transfer_2d(resource, [0, 0, width, height], 0)).ok();
    }

    fn show(&mut self, resource: u32, rect: [u32; 4]) {
        self.guest.command(&Request::set_scanout(SCANOUT, resource, rect)).ok();
    }

    /// Flushes, and waits for the fence.
    fn flush(&mut self, resource: u32, rect: [u32; 4]) {
        self.fence += 1;
        let answer = self.guest.command(&Request::flush(resource, rect).fenced(self.fence));
        assert_eq!(answer.header.fence_id.get(), self.fence);
        answer.ok();
    }

    fn file(&self) -> Decoded {
        decode(&self.path).expect("a whole file")
    }

    fn cursor_path(&self) -> PathBuf {
        let stem = self.path.file_stem().and_then(|stem| stem.to_str()).expect("a name of our own");
        self.path.with_file_name(format!("{stem}-cursor.png"))
    }
}

#[test]
fn a_flush_is_never_answered_before_the_file_shows_it_in_any_format() {
    let folder = Folder::new("formats");
    let [width, height] = [37, 23];
    for (index, format) in Format::ALL.into_iter().enumerate() {
        let mut desk = Desk::new(&folder, &format!("{format:?}"));
        let pixels = noise(index as u32, width * height * 4);
        let (w, h) = (width as u32, height as u32);
        desk.image(IMAGE, format, [w, h], &pixels);
        desk.show(IMAGE, [0, 0, w, h]);
        assert!(!desk.path.exists(), "a picture that nobody has flushed");
        let (all, mut expected) = (rgb(format, &pixels), vec![0; width * height * 3]);
        for [x, y, across, down] in [[0, 0, w, 4], [5, 2, 9, 13], [30, 20, 7, 3], [36, 22, 1, 1], [0, 0, w, h]] {
            desk.flush(IMAGE, [x, y, across, down]);
            for row in y..y + down {
                let range = ((row * w + x) * 3) as usize..((row * w + x + across) * 3) as usize;
                expected[range.clone()].copy_from_slice(&all[range]);
            }
            let file = desk.file();
            assert_eq!((file.size, file.color), ((w, h), png::ColorType::Rgb));
            assert!(file.pixels == expected, "{format:?} after {:?}", [x, y, across, down]);
        }
    }
    assert_eq!(folder.names().len(), Format::ALL.len(), "{:?}", folder.names());
}

#[test]
fn a_reader_never_sees_part_of_a_picture() {
    let folder = Folder::new("reader");
    let mut desk = Desk::new(&folder, "polled");
    let size = [320, 200];
    let picture = |shade: u8| vec![shade; size[0] as usize * size[1] as usize * 4];
    let address = desk.image(IMAGE, Format::B8G8R8X8, size, &picture(0));
    desk.show(IMAGE, [0, 0, size[0], size[1]]);
    desk.flush(IMAGE, [0, 0, size[0], size[1]]);
    let (over, path) = (AtomicBool::new(false), desk.path.clone());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                let file = decode(&path).expect("a whole file at any time");
                let shade = file.pixels[0];
                assert!(file.pixels.iter().all(|byte| *byte == shade), "a picture of two frames");
                assert!(shade >= last, "a frame that was over came back");
                last = shade;
            }
        });
        for shade in 1..80 {
            desk.paint(IMAGE, size, address, &picture(shade));
            desk.flush(IMAGE, [0, 0, size[0], size[1]]);
        }
        over.store(true, Ordering::Relaxed);
        reader.join().expect("no reader that saw half a file");
    });
}

#[test]
fn a_change_of_mode_never_leaves_a_file_of_the_old_size_nor_old_pixels_in_a_new_one() {
    let folder = Folder::new("modes");
    let mut desk = Desk::new(&folder, "modes");
    let (small, large) = (noise(1, 64 * 48 * 4), noise(2, 100 * 80 * 4));
    desk.image(1, Format::B8G8R8X8, [64, 48], &small);
    desk.image(2, Format::R8G8B8A8, [100, 80], &large);
    desk.show(1, [0, 0, 64, 48]);
    desk.flush(1, [0, 0, 64, 48]);
    desk.show(2, [0, 0, 100, 80]);
    assert_eq!(desk.file().size, (64, 48), "the last frame stays until there is another");
    desk.flush(2, [0, 0, 100, 1]);
    let file = desk.file();
    let first_row = rgb(Format::R8G8B8A8, &large[..400]);
    assert_eq!(file.size, (100, 80));
    assert!(file.pixels[..300] == first_row && file.pixels[300..].iter().all(|byte| *byte == 0));

    // Part of a resource is a picture of its own.
    desk.show(2, [10, 20, 30, 40]);
    desk.flush(2, [0, 0, 100, 80]);
    let part: Vec<u8> = (20..60).flat_map(|y| large[(y * 100 + 10) * 4..(y * 100 + 40) * 4].to_vec()).collect();
    let file = desk.file();
    assert!(file.size == (30, 40) && file.pixels == rgb(Format::R8G8B8A8, &part));

    // What was shown last stays when the scanout is switched off, and when the display goes.
    desk.guest.command(&Request::set_scanout(SCANOUT, 0, [0; 4])).ok();
    let path = desk.path.clone();
    drop(desk);
    assert_eq!(decode(&path), Ok(file));
}

#[test]
fn a_page_flip_never_blanks_what_it_does_not_flush() {
    let folder = Folder::new("flips");
    let mut desk = Desk::new(&folder, "flips");
    let pictures = [noise(3, 16 * 16 * 4), noise(4, 16 * 16 * 4)];
    for (resource, pixels) in [1, 2].into_iter().zip(&pictures) {
        desk.image(resource, Format::X8R8G8B8, [16, 16], pixels);
    }
    desk.show(1, [0, 0, 16, 16]);
    desk.flush(1, [0, 0, 16, 16]);
    desk.show(2, [0, 0, 16, 16]);
    desk.flush(2, [0, 0, 16, 8]);
    let both = [&pictures[1][..512], &pictures[0][512..]].concat();
    assert_eq!(desk.file().pixels, rgb(Format::X8R8G8B8, &both));
}

#[test]
fn a_cursor_s_file_never_differs_from_the_cursor() {
    let folder = Folder::new("cursor");
    let mut desk = Desk::new(&folder, "desk");
    let pixels = noise(5, 64 * 64 * 4);
    desk.image(1, Format::B8G8R8X8, [8, 8], &noise(6, 8 * 8 * 4));
    desk.image(2, Format::A8B8G8R8, [64, 64], &pixels);
    desk.show(1, [0, 0, 8, 8]);
    let rgba: Vec<u8> = pixels.as_chunks::<4>().0.iter().flat_map(|pixel| Format::A8B8G8R8.rgba(*pixel)).collect();
    let expected = |position: &str| Decoded {
        size: (64, 64),
        color: png::ColorType::Rgba,
        pixels: rgba.clone(),
        texts: [("Hotspot", "3 5"), ("Position", position)].map(|(key, text)| (key.into(), text.into())).to_vec(),
    };
    let steps = [
        (Request::update_cursor(SCANOUT, 2, (100, 200), (3, 5)), Some("100 200")),
        (Request::move_cursor(SCANOUT, (-7, 9)), Some("-7 9")),
        (Request::update_cursor(SCANOUT, 0, (1, 1), (0, 0)), None),
        (Request::move_cursor(SCANOUT, (4, 4)), None),
        (Request::update_cursor(SCANOUT, 2, (0, 0), (3, 5)), Some("0 0")),
    ];
    for (request, position) in steps {
        let token = desk.guest.submit_on(Lane::Cursor, &request);
        desk.guest.wait_on(Lane::Cursor, token).ok();
        // A cursor is in its file when a later frame is in its own.
        desk.flush(1, [0, 0, 8, 8]);
        match position {
            Some(position) => assert_eq!(decode(&desk.cursor_path()), Ok(expected(position))),
            None => assert!(!desk.cursor_path().exists(), "a cursor that is hidden"),
        }
    }
    // What another display has left is not this one's.
    let (picture, cursor) = (desk.path.clone(), desk.cursor_path());
    drop(desk);
    // The device hides a cursor that nobody moves any more, and leaves the picture.
    expect_no_writer("desk");
    assert!(picture.exists() && !cursor.exists());
    let _display = PngDisplay::new(&picture).expect("a display");
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_folder_that_vanishes_ends_nothing() {
    let folder = Folder::new("vanishes");
    let mut desk = Desk::new(&folder, "gone");
    let pixels = noise(8, 32 * 32 * 4);
    desk.image(IMAGE, Format::B8G8R8X8, [32, 32], &pixels);
    desk.show(IMAGE, [0, 0, 32, 32]);
    desk.flush(IMAGE, [0, 0, 32, 32]);
    fs::remove_dir_all(&folder.0).expect("removed");
    for _ in 0..3 {
        desk.flush(IMAGE, [0, 0, 32, 32]);
        let token = desk.guest.submit_on(Lane::Cursor, &Request::update_cursor(SCANOUT, 0, (0, 0), (0, 0)));
        desk.guest.wait_on(Lane::Cursor, token).ok();
    }
    fs::create_dir(&folder.0).expect("made again");
    desk.flush(IMAGE, [0, 0, 1, 1]);
    assert_eq!(desk.file().pixels, rgb(Format::B8G8R8X8, &pixels));
    assert_eq!(desk.guest.device().counters().frames_late, 0);
}

#[test]
fn a_file_that_cannot_be_written_is_never_a_display() {
    let folder = Folder::new("refused");
    fs::create_dir(folder.file("taken.png")).expect("a folder");
    for bad in ["no/such/folder.png", "taken.png", "..", "nul\0.png"] {
        assert!(PngDisplay::new(folder.file(bad)).is_err(), "{bad:?}");
    }
    assert!(PngDisplay::new("/").is_err());
    assert_eq!(folder.names(), ["taken.png"]);
}

/// A display of whose frames a test decides what becomes; what the guest has drawn it keeps to itself.
struct Tap<F>(PngDisplay, F);

impl<F: FnMut(&mut PngDisplay, Area) -> Work<()> + Send + 'static> Display for Tap<F> {
    fn attach(&mut self, picture: &Picture<'_>) {
        self.0.attach(picture);
    }

    fn draw(&mut self, _area: Area, _pixels: Pixels<'_>) {}

    fn frame(&mut self, damage: Area) -> Work<()> {
        (self.1)(&mut self.0, damage)
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}

    fn move_cursor(&mut self, _position: (i32, i32)) {}

    fn detach(&mut self) {
        self.0.detach();
    }
}

/// Shows an image that is zeros all over, of which no page is touched.
fn show_zeros(guest: &mut Guest, width: u32, height: u32) {
    guest.command(&Request::create_2d(IMAGE, Format::R8G8B8X8.wire(), width, height)).ok();
    guest.command(&Request::set_scanout(SCANOUT, IMAGE, [0, 0, width, height])).ok();
}

#[test]
fn frames_in_a_hurry_are_never_all_written_nor_is_the_last_one_lost() {
    const FRAMES: u32 = 1000;
    let folder = Folder::new("hurry");
    let path = folder.file("hurry.png");
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).expect("a watch");
    let display = PngDisplay::new(&path).expect("a display");
    // Two kinds, because the kernel makes one of two alike that follow each other.
    let kinds = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, &folder.0, kinds).expect("a watch");
    let (width, height) = (256, 1024);
    let burst = move |display: &mut PngDisplay, whole: Area| {
        let frames = (1..=FRAMES).map(|frame| {
            let row = Area { y: frame, height: 1, ..whole };
            display.draw(row, Pixels::new(&vec![frame as u8; width as usize * 4], width as usize * 4, width, 1));
            display.frame(row).result()
        });
        Work::later(join_all(frames.collect::<Vec<_>>()).map(drop))
    };
    let builder = Builder::new().scanouts(1).display(SCANOUT, Monitor::new(640, 480), Tap(display, burst));
    let mut guest = Guest::start(builder);
    show_zeros(&mut guest, width, height);
    guest.command(&Request::flush(IMAGE, [0, 0, width, height])).ok();
    let rows = decode(&path).expect("a whole file").pixels;
    let shades: Vec<u8> = rows.chunks(width as usize * 3).map(|row| row[0]).collect();
    let expected: Vec<u8> = (0..height).map(|y| if y <= FRAMES { y as u8 } else { 0 }).collect();
    assert_eq!(shades, expected);
    let mut room = [std::mem::MaybeUninit::uninit(); 64 << 10];
    let mut events = inotify::Reader::new(&watch, &mut room);
    let moved = |events: &mut inotify::Reader<'_, _>| {
        let event = events.next().ok()?;
        Some(usize::from(event.events().contains(inotify::ReadFlags::MOVED_TO)))
    };
    let written: usize = std::iter::from_fn(|| moved(&mut events)).sum();
    assert!((1..FRAMES as usize / 2).contains(&written), "{written} of {FRAMES} frames written");
}

/// Threads of this process that write a file of this name.
fn writers(stem: &str) -> usize {
    let name = format!("png {stem}");
    let tasks = fs::read_dir("/proc/self/task").expect("/proc/self/task").flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|comm| comm.trim_end() == name).count()
}

/// Waits until a display's thread has its name, which it gives itself.
fn expect_writer(stem: &str) {
    expect_writers(stem, 1);
}

/// Waits until the thread of a display that has gone has ended, too.
fn expect_no_writer(stem: &str) {
    expect_writers(stem, 0);
}

fn expect_writers(stem: &str, count: usize) {
    let deadline = Instant::now() + DEADLINE;
    while writers(stem) != count {
        assert!(Instant::now() < deadline, "{} threads of {stem} in place of {count}", writers(stem));
        std::thread::yield_now();
    }
}

#[test]
fn a_display_that_goes_never_leaves_its_thread() {
    let folder = Folder::new("drop");
    let desk = Desk::new(&folder, "by-device");
    expect_writer("by-device");
    drop(desk);
    expect_no_writer("by-device");
    let desk = Desk::new(&folder, "by-unplug");
    expect_writer("by-unplug");
    desk.guest.device().disconnect(SCANOUT).wait().expect("a device").expect("a display");
    expect_no_writer("by-unplug");
}

#[test]
fn a_display_that_goes_never_waits_for_a_picture_that_is_under_way() {
    let folder = Folder::new("drop-busy");
    let display = PngDisplay::new(folder.file("busy.png")).expect("a display");
    let tap = Tap(display, |display: &mut PngDisplay, damage| display.frame(damage));
    let mut guest = Guest::start(Builder::new().scanouts(1).display(SCANOUT, Monitor::new(640, 480), tap));
    show_zeros(&mut guest, 8192, 8192);
    let flush = guest.submit(&Request::flush(IMAGE, [0, 0, 1, 1]));
    guest.settle();
    assert!(!guest.has_answer(&flush), "64 million pixels in no time");
    guest.device().disconnect(SCANOUT).wait().expect("a device").expect("a display");
    expect_no_writer("busy");
    assert_eq!(folder.names(), [""; 0]);
    // Whoever waits for a frame that will never be written waits no longer.
    guest.wait(flush).ok();
    assert_eq!(guest.device().counters().frames_late, 0);
}

#[test]
fn a_picture_beyond_all_bounds_is_never_kept() {
    let folder = Folder::new("bounds");
    let mut desk = Desk::new(&folder, "large");
    show_zeros(&mut desk.guest, 16_384, 8192);
    desk.flush(IMAGE, [0, 0, 2, 1]);
    assert_eq!(folder.names(), [""; 0]);
}
