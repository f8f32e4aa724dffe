//! A guest's screen as QEMU or the daemon writes it to a file.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::{Duration, Instant};

use png::{Decoder, Transformations};

/// A picture that has not come by then does not come.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for a picture that is as it must be; answers with the last one, and whether it was.
pub(crate) fn wait_for(mut look: impl FnMut() -> Picture, good: impl Fn(&Picture) -> bool) -> (Picture, bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let picture = look();
        match good(&picture) {
            true => return (picture, true),
            false if Instant::now() > deadline => return (picture, false),
            false => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Pixels of a screen, as XRGB with X being 0.
#[derive(PartialEq)]
pub(crate) struct Picture {
    pub(crate) size: (u32, u32),
    pub(crate) pixels: Vec<u32>,
}

impl Picture {
    /// Reads a portable pixmap of three bytes a pixel.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a file that QEMU has written");
        let mut rest = &bytes[..];
        let mut word = || {
            let end = rest.iter().position(u8::is_ascii_whitespace).expect("a header");
            let word = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest = &rest[end + 1..];
            word
        };
        assert_eq!(word(), "P6");
        let [width, height, depth] = [word(), word(), word()].map(|word| word.parse::<u32>().expect("a number"));
        assert_eq!(depth, 255);
        let pixels: Vec<u32> =
            rest.chunks_exact(3).map(|rgb| u32::from_be_bytes([0, rgb[0], rgb[1], rgb[2]])).collect();
        assert_eq!(pixels.len(), width as usize * height as usize, "a whole picture");
        Self { size: (width, height), pixels }
    }

    /// Reads a file of the daemon's, which replaces it as a whole.
    pub(crate) fn read_png(path: &Path) -> Self {
        let none = Self { size: (0, 0), pixels: Vec::new() };
        let Ok(file) = File::open(path) else { return none };
        let mut decoder = Decoder::new(BufReader::new(file));
        decoder.set_transformations(Transformations::IDENTITY);
        let mut reader = decoder.read_info().expect("a whole PNG file");
        let mut bytes = vec![0; reader.output_buffer_size().expect("a picture that fits into memory")];
        let info = reader.next_frame(&mut bytes).expect("a whole picture");
        let samples = info.color_type.samples();
        let pixels = bytes[..info.buffer_size()].chunks(samples);
        let pixels = pixels.map(|rgb| u32::from_be_bytes([0, rgb[0], rgb[1], rgb[2]])).collect();
        Self { size: (info.width, info.height), pixels }
    }

    /// How many pixels are others than these, all of them where the size is another one.
    pub(crate) fn wrong(&self, size: (u32, u32), pixel: impl Fn(u32, u32) -> u32) -> usize {
        if self.size != size {
            return size.0 as usize * size.1 as usize;
        }
        let places = (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y)));
        self.pixels.iter().zip(places).filter(|(shown, (x, y))| **shown != pixel(*x, *y)).count()
    }

    /// How many pixels are not black.
    pub(crate) fn lit(&self) -> usize {
        self.pixels.iter().filter(|pixel| **pixel != 0).count()
    }

    /// FNV-1a (64 bit) of all pixels' bytes, as the guest computes it of its console's.
    pub(crate) fn hash(&self) -> u64 {
        let bytes = self.pixels.iter().flat_map(|pixel| pixel.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}
