//! Timings of modes with reduced blanking (VESA CVT 1.2), and the two forms in which an EDID describes them. A virtual
//! display has no beam to wait for, but guests compute refresh rates from these figures and tools check them.

use crate::display::monitor::Mode;

/// Size of a detailed timing descriptor (E-EDID 1.4, section 3.10.2).
pub(super) const DESCRIPTOR: usize = 18;
/// Size of a type I detailed timing (DisplayID 1.3, section 4.4.1).
pub(super) const TYPE_1: usize = 20;

/// The unit of pixel clocks, in Hz.
const UNIT: u64 = 10_000;
/// The slowest pixel clock of a descriptor: tools take a slower one for a mistake.
const MIN_CLOCK: u64 = 1_000;
/// The longest line with its blanking, in pixels: Linux counts them in 16 bits.
const MAX_TOTAL: u64 = 0xffff;
/// The least time between two frames, in µs.
const MIN_BLANK_US: u64 = 460;
/// Lines before and after the sync pulse that even the shortest blanking has.
const MIN_BACK_PORCH: u64 = 6;

/// A mode's timing. Sync is positive horizontally and negative vertically, as in all reduced blanking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    /// Pixel clock in units of 10 kHz.
    clock: u64,
    horizontal: Axis,
    vertical: Axis,
}

/// One direction of a timing, in pixels or lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    active: u64,
    front_porch: u64,
    sync: u64,
    blank: u64,
}

impl Timing {
    /// Reduced blanking version 2: takes every width, and hits the refresh best. The horizontal blanking of small and slow
    /// modes is longer than the standard's, so that their clock is fast enough.
    pub(super) fn reduced_v2(mode: Mode) -> Self {
        let Mode { width, height, refresh } = mode;
        let sync = 8;
        let blank = blank_lines(mode).max(1 + sync + MIN_BACK_PORCH);
        let front_porch = blank - sync - MIN_BACK_PORCH;
        let vertical = Axis { active: height.into(), front_porch, sync, blank };
        let lines_a_second = vertical.total() * u64::from(refresh);
        let active = u64::from(width);
        let total = (MIN_CLOCK * UNIT).div_ceil(lines_a_second).clamp(active + 80, MAX_TOTAL);
        let horizontal = Axis { active, front_porch: 8, sync: 32, blank: total - active };
        // The standard rounds down to 1 kHz, an EDID knows steps of 10 kHz: the nearest.
        Self { clock: (total * lines_a_second + UNIT / 2) / UNIT, horizontal, vertical }
    }

    /// Reduced blanking version 1, for widths of whole cells of 8 pixels. Its front porch is the same at any refresh, so a
    /// descriptor holds fast modes whose version 2 it does not.
    pub(super) fn reduced_v1(mode: Mode) -> Option<Self> {
        let Mode { width, height, refresh } = mode;
        if !width.is_multiple_of(8) {
            return None;
        }
        let horizontal = Axis { active: width.into(), front_porch: 48, sync: 32, blank: 160 };
        let (front_porch, sync) = (3, sync_of_aspect(width, height));
        let blank = blank_lines(mode).max(front_porch + sync + MIN_BACK_PORCH);
        let vertical = Axis { active: height.into(), front_porch, sync, blank };
        // Rounded down to 250 kHz.
        let clock = horizontal.total() * vertical.total() * u64::from(refresh) / 250_000 * (250_000 / UNIT);
        Some(Self { clock, horizontal, vertical })
    }

    /// Pixel clock in kHz.
    pub(super) fn clock_khz(&self) -> u64 {
        self.clock * UNIT / 1000
    }

    /// The 18 bytes of a detailed timing descriptor, where its fields are wide enough. `size_mm` is that of the picture.
    ///
    /// Sizes below 64 stay out as well: Linux passes over descriptors of them.
    pub(super) fn descriptor(&self, (width_mm, height_mm): (u16, u16)) -> Option<[u8; DESCRIPTOR]> {
        let Self { clock, horizontal: h, vertical: v } = self;
        let sizes = 64..1 << 12;
        let narrow = |axis: &Axis| axis.blank < 1 << 12 && sizes.contains(&axis.active);
        let porches = h.front_porch < 1 << 10 && h.sync < 1 << 10 && v.front_porch < 1 << 6 && v.sync < 1 << 6;
        if !(MIN_CLOCK..1 << 16).contains(clock) || !narrow(h) || !narrow(v) || !porches {
            return None;
        }
        let (width_mm, height_mm) = (u64::from(width_mm.min(0xfff)), u64::from(height_mm.min(0xfff)));
        let nibbles = |high: u64, low: u64| ((high >> 8) << 4 | low >> 8) as u8;
        let high_bits = h.front_porch >> 8 << 6 | h.sync >> 8 << 4 | v.front_porch >> 4 << 2 | v.sync >> 4;
        Some([
            *clock as u8,
            (clock >> 8) as u8,
            h.active as u8,
            h.blank as u8,
            nibbles(h.active, h.blank),
            v.active as u8,
            v.blank as u8,
            nibbles(v.active, v.blank),
            h.front_porch as u8,
            h.sync as u8,
            ((v.front_porch & 0xf) << 4 | v.sync & 0xf) as u8,
            high_bits as u8,
            width_mm as u8,
            height_mm as u8,
            nibbles(width_mm, height_mm),
            0,
            0,
            // Not interlaced, no stereo, digital separate sync: vertical negative, horizontal positive.
            0b0001_1010,
        ])
    }

    /// The 20 bytes of a DisplayID type I detailed timing: all values but the clock of 24 bits have 16, less one.
    pub(super) fn type_1(&self, preferred: bool) -> [u8; TYPE_1] {
        const POSITIVE: u16 = 1 << 15;
        let Self { clock, horizontal: h, vertical: v } = self;
        let less_one = |value: u64| (value - 1) as u16;
        let words = [
            less_one(h.active),
            less_one(h.blank),
            less_one(h.front_porch) | POSITIVE,
            less_one(h.sync),
            less_one(v.active),
            less_one(v.blank),
            less_one(v.front_porch),
            less_one(v.sync),
        ];
        let mut bytes = [0; TYPE_1];
        bytes[..3].copy_from_slice(&(clock - 1).to_le_bytes()[..3]);
        bytes[3] = u8::from(preferred) << 7 | aspect_code(h.active, v.active);
        for (place, word) in bytes[4..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl Axis {
    fn total(&self) -> u64 {
        self.active + self.blank
    }
}

/// Lines that the least time between two frames is worth: the next whole one above. A line's time is what that leaves of a
/// frame, by its active lines.
fn blank_lines(mode: Mode) -> u64 {
    let blank = MIN_BLANK_US * u64::from(mode.refresh);
    blank * u64::from(mode.height) / (1_000_000 - blank) + 1
}

/// Lines of the vertical sync pulse, in which version 1 tells a picture's shape.
fn sync_of_aspect(width: u32, height: u32) -> u64 {
    let shapes = [(4, 3, 4), (16, 9, 5), (16, 10, 6), (5, 4, 7), (15, 9, 7)];
    let is_it = |&&(across, down, _): &&(u32, u32, u64)| height * across / down / 8 * 8 == width;
    shapes.iter().find(is_it).map_or(10, |&(.., lines)| lines)
}

/// How a type I timing tells a picture's shape; 8 is any other.
fn aspect_code(width: u64, height: u64) -> u8 {
    let shapes = [(1, 1), (5, 4), (4, 3), (15, 9), (16, 9), (16, 10), (64, 27), (256, 135)];
    shapes.iter().position(|&(across, down)| width * down == height * across).unwrap_or(8) as u8
}
