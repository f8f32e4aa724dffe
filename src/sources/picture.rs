//! The moving test picture: a gradient with travelling bars, a bouncing square and a frame counter, made so
//! that a stale, missing or mixed-up page cannot be mistaken for a fresh one.
//!
//! Every pixel is four bytes: blue, green, red (none of them ever 0), and the byte that `XR24` leaves unused.
//! That byte, in each run of eight pixels of a row, spells the frame's number, lowest byte first.

/// Bytes of a pixel.
const PIXEL: usize = 4;
/// The seven segments of a digit as (column, row, width, height) in units, in a cell of 4 by 7 units.
const SEGMENTS: [(usize, usize, usize, usize); 7] =
    [(0, 0, 4, 1), (3, 0, 1, 4), (3, 3, 1, 4), (0, 6, 4, 1), (0, 3, 1, 4), (0, 0, 1, 4), (0, 3, 4, 1)];
/// Which of [`SEGMENTS`] light up for each digit, lowest bit first.
const DIGITS: [u8; 10] = [
    0b011_1111, 0b000_0110, 0b101_1011, 0b100_1111, 0b110_0110, 0b110_1101, 0b111_1101, 0b000_0111, 0b111_1111,
    0b110_1111,
];
/// Digits of the counter.
const COUNTER_DIGITS: usize = 6;

/// A picture's size, within limits that every source can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureSize {
    width: u32,
    height: u32,
}

impl PictureSize {
    /// Smallest width and height.
    pub const MIN: u32 = 16;
    /// Largest width and height.
    pub const MAX: u32 = 4096;

    /// A size in pixels, or nothing unless both are within [`PictureSize::MIN`] and [`PictureSize::MAX`].
    #[must_use]
    pub fn new(width: u32, height: u32) -> Option<PictureSize> {
        let allowed = PictureSize::MIN..=PictureSize::MAX;
        (allowed.contains(&width) && allowed.contains(&height)).then_some(PictureSize { width, height })
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(self) -> u32 {
        self.height
    }

    /// Bytes of a row of four-byte pixels.
    #[must_use]
    pub fn stride(self) -> u32 {
        self.width * 4
    }

    /// Bytes of a picture of four-byte pixels.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.stride()) * u64::from(self.height)
    }
}

impl Default for PictureSize {
    /// 640 by 360.
    fn default() -> PictureSize {
        PictureSize { width: 640, height: 360 }
    }
}

/// Draws the frames of one size.
#[derive(Debug)]
pub struct Picture {
    width: usize,
    height: usize,
    /// Red, blue and the unused byte of each column, as they stand in a pixel's little-endian word.
    columns: Vec<u32>,
}

impl Picture {
    /// A picture of `size`.
    #[must_use]
    pub fn new(size: PictureSize) -> Picture {
        Picture { width: size.width as usize, height: size.height as usize, columns: vec![0; size.width as usize] }
    }

    /// Draws frame `sequence` over all of `out`: rows of `width * 4` bytes, the first `height` of which are the
    /// picture; if `out` is longer, the background goes on to its end.
    pub fn draw(&mut self, sequence: u64, out: &mut [u8]) {
        self.colour_columns(sequence);
        for (y, row) in out.chunks_mut(self.width * PIXEL).enumerate() {
            let green = u32::from(wave((y as u64).wrapping_add(sequence.wrapping_mul(2)))) << 8;
            for (pixel, column) in row.chunks_exact_mut(PIXEL).zip(&self.columns) {
                pixel.copy_from_slice(&(column | green).to_le_bytes());
            }
        }
        self.draw_square(sequence, out);
        self.draw_counter(sequence, out);
    }

    fn colour_columns(&mut self, sequence: u64) {
        let stamp = sequence.to_le_bytes();
        for (x, column) in self.columns.iter_mut().enumerate() {
            let along = x as u64;
            let bar = along.wrapping_add(sequence.wrapping_mul(4)) / 40 % 2;
            let lift = if bar == 0 { 0 } else { 24 };
            let red = wave((along / 2).wrapping_add(sequence.wrapping_mul(3))) + lift;
            let blue = wave((along + 120).wrapping_add(sequence.wrapping_mul(5))) + lift;
            *column = u32::from_le_bytes([blue, 0, red, stamp[x % stamp.len()]]);
        }
    }

    fn draw_square(&self, sequence: u64, out: &mut [u8]) {
        let side = self.width.min(self.height) / 5;
        let x = bounce(sequence.wrapping_mul(5), self.width - side);
        let y = bounce(sequence.wrapping_mul(3), self.height - side);
        let border = (side / 12).max(1);
        let inside = side - 2 * border;
        self.fill(out, (x, y, side, side), [240, 240, 240]);
        let heart = [wave(sequence.wrapping_mul(7)), 80, 220];
        self.fill(out, (x + border, y + border, inside, inside), heart);
    }

    /// The number of the frame, white on a dark plate in the upper left corner.
    fn draw_counter(&self, sequence: u64, out: &mut [u8]) {
        let unit = (self.height / 90).max(1);
        let plate = ((COUNTER_DIGITS * 6 + 2) * unit, 11 * unit);
        self.fill(out, (0, 0, plate.0, plate.1), [40, 24, 24]);
        let mut rest = sequence;
        for place in (0..COUNTER_DIGITS).rev() {
            let lit = DIGITS[(rest % 10) as usize];
            rest /= 10;
            for (bit, (column, row, width, height)) in SEGMENTS.into_iter().enumerate() {
                if lit >> bit & 1 == 1 {
                    let left = (2 + place * 6 + column) * unit;
                    let top = (2 + row) * unit;
                    let area = (left, top, width * unit, height * unit);
                    self.fill(out, area, [255, 255, 255]);
                }
            }
        }
    }

    /// Paints a rectangle (left, top, width, height), cut to the picture, in blue, green and red.
    fn fill(&self, out: &mut [u8], (left, top, width, height): (usize, usize, usize, usize), colour: [u8; 3]) {
        let right = (left + width).min(self.width);
        let bottom = (top + height).min(self.height);
        let rows = out.chunks_exact_mut(self.width * PIXEL);
        for row in rows.take(bottom).skip(top) {
            let pixels = row.chunks_exact_mut(PIXEL).take(right).skip(left);
            for pixel in pixels {
                pixel[..3].copy_from_slice(&colour);
            }
        }
    }
}

/// A triangle wave over 40..=215 with a period of 350.
fn wave(position: u64) -> u8 {
    let place = position % 350;
    40 + place.min(350 - place) as u8
}

/// Runs from 0 to `room` and back, one step at a time.
fn bounce(step: u64, room: usize) -> usize {
    let room = room.max(1) as u64;
    let place = step % (2 * room);
    place.min(2 * room - place) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(size: PictureSize, sequence: u64) -> Vec<u8> {
        let mut out = vec![0; size.bytes() as usize];
        Picture::new(size).draw(sequence, &mut out);
        out
    }

    #[test]
    fn no_page_of_a_frame_equals_that_of_another() {
        let size = PictureSize::default();
        let base = frame(size, 100);
        for later in [101, 102, 103, 104, 108, 116, 132, 275, 450, 356, 65_636] {
            let other = frame(size, later);
            let mut pages = base.chunks(4096).zip(other.chunks(4096));
            assert!(pages.all(|(old, new)| old != new), "frame {later}");
        }
    }

    #[test]
    fn the_colours_of_every_page_move_and_not_only_the_number() {
        let colours = |sequence| {
            let mut drawn = frame(PictureSize::default(), sequence);
            drawn.iter_mut().skip(3).step_by(PIXEL).for_each(|stamp| *stamp = 0);
            drawn
        };
        let base = colours(100);
        for later in 101..=116 {
            let other = colours(later);
            let mut pages = base.chunks(4096).zip(other.chunks(4096));
            assert!(pages.all(|(old, new)| old != new), "frame {later}");
        }
    }

    #[test]
    fn no_pixel_is_black() {
        for size in [PictureSize::default(), PictureSize::new(16, 16).unwrap()] {
            for sequence in [0, 1, 77, u64::MAX] {
                let drawn = frame(size, sequence);
                let dark = drawn.chunks_exact(PIXEL).position(|p| p[..3].contains(&0));
                assert_eq!(dark, None);
            }
        }
    }

    #[test]
    fn every_eight_pixels_spell_the_number_of_the_frame() {
        let sequence = 0x0123_4567_89ab_cdef;
        let drawn = frame(PictureSize::default(), sequence);
        for run in drawn.chunks_exact(8 * PIXEL) {
            let spelled = std::array::from_fn(|i| run[i * PIXEL + 3]);
            assert_eq!(u64::from_le_bytes(spelled), sequence);
        }
    }

    #[test]
    fn drawing_ends_with_the_buffer_whatever_its_length() {
        let size = PictureSize::new(33, 17).unwrap();
        let mut picture = Picture::new(size);
        for length in [0, 1, 131, 132, 133, 2000, 2244, 4096, 12_288] {
            let mut out = vec![0; length];
            picture.draw(5, &mut out);
            let whole = length - length % PIXEL;
            assert!(out[..whole].chunks_exact(PIXEL).all(|p| p[0] != 0));
        }
    }

    #[test]
    fn sizes_that_no_source_can_serve_are_refused() {
        for (width, height) in [(0, 360), (640, 0), (15, 16), (4097, 16), (16, u32::MAX)] {
            assert_eq!(PictureSize::new(width, height), None);
        }
        assert_eq!(PictureSize::default().bytes(), 921_600);
    }
}
