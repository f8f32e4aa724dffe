//! A guest with screens: what its displays show, pixel by pixel, and the hands that plug them in and out.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use png::{Decoder, Transformations};
use vmm_sys_util::tempdir::TempDir;

use super::vm::{Ended, Vm, figure};
use crate::exporters::say;

/// A picture that has not come by then does not come. An emulated machine takes a second to read one.
const DEADLINE: Duration = Duration::from_secs(60);

/// A PNG file's picture.
#[derive(PartialEq)]
pub(crate) struct Png {
    pub(crate) size: (u32, u32),
    /// Pixels as XRGB, or ARGB where the file has alpha.
    pub(crate) pixels: Vec<u32>,
    texts: Vec<(String, String)>,
}

impl Png {
    /// None where there is no such file now: a display replaces its file as a whole.
    fn read(path: &Path) -> Option<Self> {
        let mut decoder = Decoder::new(BufReader::new(File::open(path).ok()?));
        decoder.set_transformations(Transformations::IDENTITY);
        let mut reader = decoder.read_info().expect("a whole PNG file");
        let mut bytes = vec![0; reader.output_buffer_size().expect("a picture that fits into memory")];
        let info = reader.next_frame(&mut bytes).expect("a whole picture");
        let samples = info.color_type.samples();
        // The alpha of a cursor comes last in the file, and first in a word.
        let pixel = |pixel: &[u8]| pixel.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        let pixels = bytes[..info.buffer_size()].chunks(samples).map(pixel);
        let pixels = pixels.map(|pixel| if samples == 4 { pixel.rotate_right(8) } else { pixel }).collect();
        let texts = &reader.info().uncompressed_latin1_text;
        let texts = texts.iter().map(|text| (text.keyword.clone(), text.text.clone())).collect();
        Some(Self { size: (info.width, info.height), pixels, texts })
    }

    pub(crate) fn text(&self, keyword: &str) -> &str {
        let text = self.texts.iter().find(|(name, _)| name == keyword);
        text.map(|(_, text)| text.as_str()).unwrap_or_else(|| panic!("no {keyword} in the file"))
    }

    /// How many pixels are others than these, all of them where the size is another one.
    pub(crate) fn wrong(&self, size: (u32, u32), pixel: impl Fn(u32, u32) -> u32) -> usize {
        if self.size != size {
            return size.0 as usize * size.1 as usize;
        }
        let places = (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y)));
        self.pixels.iter().zip(places).filter(|(shown, (x, y))| **shown != pixel(*x, *y)).count()
    }

    /// FNV-1a (64 bit) of all pixels' bytes, as the guest computes it of its console's.
    pub(crate) fn hash(&self) -> u64 {
        let bytes = self.pixels.iter().flat_map(|pixel| pixel.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

/// A guest whose displays write files.
pub(crate) struct Desktop {
    pub(crate) vm: Vm,
    folder: TempDir,
    orders: usize,
}

impl Desktop {
    /// Boots a guest that runs `commands`. `options` are the VMM's, the screens among them.
    pub(crate) fn start(options: &[&str], commands: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let name = |path: PathBuf| path.to_str().expect("a name in UTF-8").to_owned();
        let pngs = name(folder.as_path().into());
        let [control, trace] = ["control", "trace"].map(|file| name(folder.as_path().join(file)));
        let options = [&["--png", &pngs, "--control", &control, "--trace", &trace], options].concat();
        Self { vm: Vm::start(&options, commands), folder, orders: 0 }
    }

    /// Has the VMM do something; answers with its answer.
    pub(crate) fn control(&self, command: &str) -> String {
        let socket = UnixStream::connect(self.folder.as_path().join("control")).expect("the VMM's socket");
        writeln!(&socket, "{command}").expect("a VMM that listens");
        let mut answer = String::new();
        BufReader::new(&socket).read_line(&mut answer).expect("an answer");
        answer.trim_end().to_owned()
    }

    /// Waits for the guest's program that draws what it is told.
    pub(crate) fn screens_are_ready(&mut self) {
        self.vm.says("guest: screens ready");
    }

    /// Has that program do something, and waits until it has.
    pub(crate) fn order(&mut self, order: &str) {
        self.orders += 1;
        self.vm.tell(order);
        let done = format!("guest: done {} {order}", self.orders);
        self.vm.says(&done);
    }

    /// Waits for a picture of this size and these pixels on a scanout, and gives its figures.
    #[track_caller]
    pub(crate) fn expect(&self, what: &str, scanout: u32, size: (u32, u32), pixel: impl Fn(u32, u32) -> u32) {
        let (png, comes) = self.wait_for(&format!("scanout-{scanout}"), |png| png.wrong(size, &pixel) == 0);
        let wrong = png.wrong(size, &pixel);
        let (width, height) = png.size;
        let pixels = png.pixels.len();
        say(&format!("{what} scanout={scanout} mode={width}x{height} pixels={pixels} wrong={wrong}"));
        assert!(comes, "{what}: {wrong} pixels are wrong: {:#?}", first_wrong(&png, size, pixel));
    }

    /// Waits for a picture that is as it must be; answers with the last one, and whether it was.
    pub(crate) fn wait_for(&self, name: &str, good: impl Fn(&Png) -> bool) -> (Png, bool) {
        let path = self.file(name);
        let deadline = Instant::now() + DEADLINE;
        let mut last: Option<(Png, (u64, i64))> = None;
        loop {
            let late = Instant::now() > deadline;
            // Each file is another one, however fast they come.
            let written = std::fs::metadata(&path).map(|metadata| (metadata.ino(), metadata.mtime_nsec())).ok();
            match (written, &last) {
                (Some(written), last) if last.as_ref().is_none_or(|(_, before)| *before != written) => {}
                (_, Some(_)) if late => return (last.expect("one that is there").0, false),
                (_, _) if late => panic!("no picture comes to {}", path.display()),
                _ => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
            }
            let Some((png, written)) = Png::read(&path).zip(written) else { continue };
            if good(&png) {
                return (png, true);
            }
            last = Some((png, written));
        }
    }

    /// Waits until a file is there no more.
    #[track_caller]
    pub(crate) fn expect_none(&self, name: &str) {
        let (path, deadline) = (self.file(name), Instant::now() + DEADLINE);
        while path.exists() {
            assert!(Instant::now() < deadline, "{} stays", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.as_path().join(format!("{name}.png"))
    }

    /// Waits for the guest's end. No command may have been answered with an error. Answers with the device's trace, too.
    #[track_caller]
    pub(crate) fn end(self) -> (Ended, String) {
        let ended = self.vm.end();
        ended.expect_success();
        assert_eq!(figure(ended.vmm("vmm: device ")[0], "errors"), 0, "{:#?}", ended.heard);
        let trace = std::fs::read_to_string(self.folder.as_path().join("trace")).expect("a trace");
        (ended, trace)
    }
}

/// The first pixels that are wrong: where, what is shown, and what is to be shown.
fn first_wrong(png: &Png, size: (u32, u32), pixel: impl Fn(u32, u32) -> u32) -> Vec<String> {
    let places = (0..).zip(&png.pixels).map(|(index, shown)| (index % png.size.0, index / png.size.0, *shown));
    let wrong = places.filter(|(x, y, shown)| *x < size.0 && *y < size.1 && *shown != pixel(*x, *y));
    wrong.take(8).map(|(x, y, shown)| format!("{x},{y}: {shown:08x}, not {:08x}", pixel(x, y))).collect()
}
