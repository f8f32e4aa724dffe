//! The EDID of a monitor, written from VESA's layouts: E-EDID 1.4 for the base block, DisplayID 1.3 for extension blocks
//! that hold what the base block has no room or no bits for. Every guest reads the former; Linux and other recent ones read both.

mod displayid;
#[cfg(test)]
mod tests;
mod timing;

use std::iter;

use crate::display::monitor::{Mode, Monitor};
use timing::{DESCRIPTOR, Timing};

pub(crate) use displayid::{MAX_CLOCK_KHZ, MAX_DESCRIBED};

/// Size of a block.
const BLOCK: usize = 128;
/// As many as `GET_EDID` takes.
const MOST_BLOCKS: usize = 8;
/// What every EDID begins with.
const HEADER: [u8; 8] = [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];
/// Where the base block says how many others follow it.
const EXTENSIONS: usize = 126;
/// What a monitor is called that has no name.
pub(super) const DEFAULT_NAME: &str = "virtio-gpu";

/// Three letters of VESA's kind for a manufacturer: no one's, chosen for a virtual GPU.
const MANUFACTURER: &[u8; 3] = b"VGU";
/// virtio-gpu's PCI device id.
const PRODUCT: u16 = 0x1050;
/// In the place of the week of manufacture: the year after it is the model's.
const MODEL_YEAR: u8 = 0xff;
/// The model's year.
const YEAR: u16 = 2026;
/// 2.2, in hundredths above one.
const GAMMA: u8 = 120;
/// Chromaticity of red, green, blue and white in sRGB: x and y in 1/1024.
const SRGB: [[u16; 2]; 4] = [[655, 338], [307, 614], [154, 61], [320, 337]];

/// What a guest has that reads no extension blocks, where the monitor has no mode for it: all displays are to have this one.
const FALLBACK: Mode = Mode::new(640, 480);

/// Modes that are one bit each of bytes 35 and 36.
const ESTABLISHED: [(u32, u32, u32, usize, u8); 11] = [
    (640, 480, 60, 0, 5),
    (640, 480, 72, 0, 3),
    (640, 480, 75, 0, 2),
    (800, 600, 56, 0, 1),
    (800, 600, 60, 0, 0),
    (800, 600, 72, 1, 7),
    (800, 600, 75, 1, 6),
    (1024, 768, 60, 1, 3),
    (1024, 768, 70, 1, 2),
    (1024, 768, 75, 1, 1),
    (1280, 1024, 75, 1, 0),
];

/// Sizes that VESA's list of monitor timings has at 60 Hz, and a standard timing's two bytes can name.
const STANDARD: [(u32, u32); 15] = [
    (1280, 720),
    (1280, 800),
    (1280, 960),
    (1280, 1024),
    (1400, 1050),
    (1440, 900),
    (1600, 900),
    (1600, 1200),
    (1680, 1050),
    (1792, 1344),
    (1856, 1392),
    (1920, 1080),
    (1920, 1200),
    (1920, 1440),
    (2048, 1152),
];

/// The EDID of a monitor that passed its check: 1 to 8 blocks of 128 bytes.
pub(crate) fn edid(monitor: &Monitor) -> Vec<u8> {
    if let Some(edid) = &monitor.edid {
        return edid.clone();
    }
    let plan = Plan::new(monitor);
    let extensions = displayid::extensions(monitor, &plan.extension);
    let mut edid = base(monitor, &plan, extensions.len()).to_vec();
    edid.extend(extensions.into_iter().flatten());
    edid
}

/// Whether bytes from elsewhere are an EDID, as far as its frame goes: what its blocks say is for the guest to read.
///
/// # Errors
/// What is wrong with them.
pub(super) fn check(edid: &[u8]) -> Result<(), &'static str> {
    let (blocks, rest) = edid.as_chunks::<BLOCK>();
    if !rest.is_empty() || !(1..=MOST_BLOCKS).contains(&blocks.len()) {
        return Err("is not one to eight blocks of 128");
    }
    if !edid.starts_with(&HEADER) {
        return Err("does not begin as one");
    }
    if usize::from(edid[EXTENSIONS]) + 1 != blocks.len() {
        return Err("says that it has another number of blocks");
    }
    if blocks.iter().any(|block| checksum(block) != 0) {
        return Err("has a block whose sum is not zero");
    }
    Ok(())
}

/// How many modes of the monitor, besides the preferred one, want a description in extension blocks.
pub(super) fn described(monitor: &Monitor) -> usize {
    Plan::new(monitor).extension.len().saturating_sub(1)
}

/// The pixel clock that a mode takes.
pub(super) fn clock_khz(mode: Mode) -> u64 {
    Timing::reduced_v2(mode).clock_khz()
}

/// Which mode goes where.
struct Plan {
    /// The base block's detailed timings: one to three, the first of them the guest's to prefer.
    detailed: Vec<[u8; DESCRIPTOR]>,
    /// Whether the first is the preferred mode.
    native: bool,
    established: [u8; 2],
    /// Up to eight.
    standard: Vec<[u8; 2]>,
    /// The extension blocks' timings: none, or the preferred mode's and those of modes that found no place elsewhere.
    extension: Vec<Timing>,
}

impl Plan {
    fn new(monitor: &Monitor) -> Self {
        let preferred = Timing::reduced_v2(monitor.preferred);
        let v1 = |mode| Timing::reduced_v1(mode)?.descriptor(picture_mm(monitor, mode));
        let native = preferred.descriptor(size_mm(monitor)).or_else(|| v1(monitor.preferred));
        let mut plan = Self {
            native: native.is_some(),
            detailed: native.or_else(|| stand_in(monitor, v1)).or_else(|| v1(FALLBACK)).into_iter().collect(),
            established: [0; 2],
            standard: Vec::new(),
            extension: Vec::new(),
        };
        for (index, &mode) in monitor.modes.iter().enumerate() {
            if mode == monitor.preferred || monitor.modes[..index].contains(&mode) || plan.puts_by_name(mode) {
                continue;
            }
            let timing = Timing::reduced_v2(mode);
            match timing.descriptor(picture_mm(monitor, mode)) {
                Some(bytes) if plan.detailed.len() < 3 => plan.detailed.push(bytes),
                _ => plan.extension.push(timing),
            }
        }
        if !plan.native || !plan.extension.is_empty() {
            plan.extension.insert(0, preferred);
        }
        plan
    }

    /// Puts the mode where a bit or two bytes name it, if there is such a place.
    fn puts_by_name(&mut self, mode: Mode) -> bool {
        let Mode { width, height, refresh } = mode;
        let bit =
            ESTABLISHED.iter().find(|&&(across, down, hertz, ..)| (across, down, hertz) == (width, height, refresh));
        if let Some(&(.., byte, bit)) = bit {
            self.established[byte] |= 1 << bit;
            return true;
        }
        let bytes = standard(mode).filter(|_| self.standard.len() < 8);
        self.standard.extend(bytes);
        bytes.is_some()
    }
}

/// The largest mode that has a descriptor and is no larger than the preferred one either way, for guests that cannot read
/// what the extension blocks say of that.
///
/// It is preferred too, as the first descriptor of an EDID 1.4 always is. Linux's virtio-gpu driver then drops it, because
/// it has not the display's size. So it has a timing of its own here, and the mode stands once more among the others with
/// the usual one, which stays.
fn stand_in(monitor: &Monitor, v1: impl Fn(Mode) -> Option<[u8; DESCRIPTOR]>) -> Option<[u8; DESCRIPTOR]> {
    let Mode { width, height, .. } = monitor.preferred;
    let smaller = monitor.modes.iter().filter(|mode| mode.width <= width && mode.height <= height);
    let described = smaller.filter_map(|&mode| Some((mode, v1(mode)?)));
    described.max_by_key(|(mode, _)| (mode.width * mode.height, mode.refresh)).map(|(_, bytes)| bytes)
}

/// The two bytes of a standard timing: width in cells, and shape with refresh above 60 Hz.
fn standard(mode: Mode) -> Option<[u8; 2]> {
    let Mode { width, height, refresh } = mode;
    if refresh != 60 || !STANDARD.contains(&(width, height)) {
        return None;
    }
    let shapes = [(16, 10), (4, 3), (5, 4), (16, 9)];
    let shape = shapes.iter().position(|&(across, down)| width * down == height * across)?;
    Some([(width / 8 - 31) as u8, (shape as u8) << 6])
}

/// Width and height of the screen in millimetres; zero both where they are not known or do not fit a byte of centimetres,
/// or where they would be guessed below what guests and tools believe.
fn size_mm(monitor: &Monitor) -> (u16, u16) {
    let at_96_dpi = |pixels: u32| (u64::from(pixels) * 254 + 480) / 960;
    let preferred = monitor.preferred;
    let (width, height, least) = match monitor.size_mm {
        Some((width, height)) => (width.into(), height.into(), 5),
        None => (at_96_dpi(preferred.width), at_96_dpi(preferred.height), 100),
    };
    let known = |mm| (least..=2554).contains(&mm);
    if known(width) && known(height) { (width as u16, height as u16) } else { (0, 0) }
}

/// Width and height of a mode's picture in millimetres: as much of the screen as its shape fills.
fn picture_mm(monitor: &Monitor, mode: Mode) -> (u16, u16) {
    let (width_mm, height_mm) = size_mm(monitor);
    if mode == monitor.preferred {
        return (width_mm, height_mm);
    }
    let scaled = |mm: u16, side, by| (u32::from(mm) * side / by) as u16;
    if u32::from(width_mm) * mode.height > u32::from(height_mm) * mode.width {
        (scaled(height_mm, mode.width, mode.height), height_mm)
    } else {
        (width_mm, scaled(width_mm, mode.height, mode.width))
    }
}

fn base(monitor: &Monitor, plan: &Plan, extensions: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(&HEADER);
    let letters = MANUFACTURER.iter().fold(0, |word, letter| word << 5 | u16::from(letter & 0x1f));
    block[8..10].copy_from_slice(&letters.to_be_bytes());
    block[10..12].copy_from_slice(&PRODUCT.to_le_bytes());
    block[12..16].copy_from_slice(&monitor.serial.to_le_bytes());
    block[16..18].copy_from_slice(&[MODEL_YEAR, (YEAR - 1990) as u8]);
    // Version 1.4; digital, 8 bits a colour, no interface in particular.
    block[18..21].copy_from_slice(&[1, 4, 0b1010_0000]);
    let (width_mm, height_mm) = size_mm(monitor);
    block[21] = ((width_mm + 5) / 10) as u8;
    block[22] = ((height_mm + 5) / 10) as u8;
    block[23] = GAMMA;
    // RGB alone, sRGB, whether the first timing is the native one, no continuous frequencies.
    block[24] = 0b0000_0100 | u8::from(plan.native) << 1;
    block[25..35].copy_from_slice(&chromaticity());
    block[35..37].copy_from_slice(&plan.established);
    let unused = iter::repeat(&[1, 1]);
    for (place, bytes) in block[38..54].chunks_exact_mut(2).zip(plan.standard.iter().chain(unused)) {
        place.copy_from_slice(bytes);
    }
    let further = iter::once(name(&monitor.name)).chain(iter::repeat(text_descriptor(0x10, &[0; 13])));
    let descriptors = plan.detailed.iter().copied().chain(further);
    for (place, bytes) in block[54..126].chunks_exact_mut(DESCRIPTOR).zip(descriptors) {
        place.copy_from_slice(&bytes);
    }
    block[EXTENSIONS] = extensions as u8;
    block[127] = checksum(&block[..127]);
    block
}

/// Low bits of all eight values, two each, then the high eight bits of each.
fn chromaticity() -> [u8; 10] {
    let low = |[x, y]: [u16; 2]| (x & 3) << 2 | y & 3;
    let [red, green, blue, white] = SRGB;
    let mut bytes = [0; 10];
    bytes[0] = (low(red) << 4 | low(green)) as u8;
    bytes[1] = (low(blue) << 4 | low(white)) as u8;
    for (byte, value) in bytes[2..].iter_mut().zip(SRGB.as_flattened()) {
        *byte = (value >> 2) as u8;
    }
    bytes
}

/// The display product name: ended by a line feed and filled with blanks where it is shorter than its place.
fn name(name: &str) -> [u8; DESCRIPTOR] {
    let name = Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or(DEFAULT_NAME);
    let shown = name.chars().map(|char| if char == ' ' || char.is_ascii_graphic() { char as u8 } else { b'?' });
    let shown: Vec<u8> = shown.take(13).collect();
    let mut text = [b' '; 13];
    let shown = shown.trim_ascii_end();
    text[..shown.len()].copy_from_slice(shown);
    if let Some(end) = text.get_mut(shown.len()) {
        *end = b'\n';
    }
    text_descriptor(0xfc, &text)
}

/// A display descriptor, which a clock of zero tells from a timing.
fn text_descriptor(tag: u8, text: &[u8; 13]) -> [u8; DESCRIPTOR] {
    let mut bytes = [0; DESCRIPTOR];
    bytes[3] = tag;
    bytes[5..].copy_from_slice(text);
    bytes
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}
