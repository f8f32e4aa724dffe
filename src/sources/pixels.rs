//! Turns a frame's bytes into plain red, green and blue, so that one can be saved as a picture whatever the
//! camera's format is. Only for looking at: frames are compared as bytes.

use super::Format;

/// Bytes that stand for a pixel which the buffer is too short to hold.
const MISSING: u8 = 0;

/// Red, green and blue of each pixel of a frame, row by row: `width * height * 3` bytes.
///
/// Knows `XR24`, `AR24`, `YUYV`, `RGB3`, `BGR3` and `NV12` (video range, BT.601); of any other format the first
/// bytes are shown as grey. A buffer that is too short gives black.
#[must_use]
pub fn to_rgb(format: &Format, bytes: &[u8]) -> Vec<u8> {
    let (width, height) = (format.width as usize, format.height as usize);
    let mut out = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            out.extend_from_slice(&pixel(format, bytes, x, y));
        }
    }
    out
}

fn pixel(format: &Format, bytes: &[u8], x: usize, y: usize) -> [u8; 3] {
    let at = |offset: usize| bytes.get(offset).copied().unwrap_or(MISSING);
    let row = |bytes_per_pixel: usize| y * stride(format, bytes_per_pixel);
    match &format.fourcc {
        b"XR24" | b"AR24" => {
            let start = row(4) + x * 4;
            [at(start + 2), at(start + 1), at(start)]
        }
        b"RGB3" => {
            let start = row(3) + x * 3;
            [at(start), at(start + 1), at(start + 2)]
        }
        b"BGR3" => {
            let start = row(3) + x * 3;
            [at(start + 2), at(start + 1), at(start)]
        }
        b"YUYV" => {
            let pair = row(2) + (x & !1) * 2;
            from_ycbcr(at(row(2) + x * 2), at(pair + 1), at(pair + 3))
        }
        b"NV12" => {
            let stride = stride(format, 1);
            let chroma = stride * format.height as usize + y / 2 * stride + (x & !1);
            from_ycbcr(at(y * stride + x), at(chroma), at(chroma + 1))
        }
        _ => [at(y * format.width as usize + x); 3],
    }
}

/// The format's stride, or that of rows without a gap where the driver tells none.
fn stride(format: &Format, bytes_per_pixel: usize) -> usize {
    match format.stride {
        0 => format.width as usize * bytes_per_pixel,
        stride => stride as usize,
    }
}

/// BT.601, luma 16..=235, in 8-bit fixed point.
fn from_ycbcr(luma: u8, blue: u8, red: u8) -> [u8; 3] {
    let luma = 298 * (i32::from(luma) - 16);
    let blue = i32::from(blue) - 128;
    let red = i32::from(red) - 128;
    [luma + 409 * red, luma - 100 * blue - 208 * red, luma + 516 * blue]
        .map(|level| ((level + 128) >> 8).clamp(0, 255) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(fourcc: &[u8; 4], width: u32, height: u32, stride: u32) -> Format {
        Format { width, height, stride, fourcc: *fourcc }
    }

    #[test]
    fn colours_do_not_change_places() {
        let xr24 = to_rgb(&format(b"XR24", 1, 2, 8), &[1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7]);
        assert_eq!(xr24, [3, 2, 1, 7, 6, 5]);
        let rgb3 = to_rgb(&format(b"RGB3", 2, 1, 6), &[1, 2, 3, 4, 5, 6]);
        assert_eq!(rgb3, [1, 2, 3, 4, 5, 6]);
        let bgr3 = to_rgb(&format(b"BGR3", 2, 1, 0), &[1, 2, 3, 4, 5, 6]);
        assert_eq!(bgr3, [3, 2, 1, 6, 5, 4]);
    }

    #[test]
    fn video_levels_become_full_levels() {
        let yuyv = to_rgb(&format(b"YUYV", 2, 1, 4), &[16, 128, 235, 128]);
        assert_eq!(yuyv, [0, 0, 0, 255, 255, 255]);
        let red = to_rgb(&format(b"YUYV", 2, 1, 4), &[81, 90, 81, 240]);
        assert!(red[0] > 250 && red[1] < 5 && red[2] < 5, "{red:?}");
        let nv12 = [16, 235, 235, 16, 128, 128];
        let corners = to_rgb(&format(b"NV12", 2, 2, 2), &nv12);
        assert_eq!(corners, [0, 0, 0, 255, 255, 255, 255, 255, 255, 0, 0, 0]);
    }

    #[test]
    fn a_short_or_unknown_frame_still_gives_a_picture() {
        for fourcc in [b"XR24", b"AR24", b"YUYV", b"RGB3", b"BGR3", b"NV12", b"MJPG"] {
            for length in [0, 1, 7, 50] {
                let shown = to_rgb(&format(fourcc, 5, 3, 0), &vec![200; length]);
                assert_eq!(shown.len(), 5 * 3 * 3);
            }
        }
        assert_eq!(to_rgb(&format(b"MJPG", 1, 1, 0), &[9]), [9; 3]);
    }
}
