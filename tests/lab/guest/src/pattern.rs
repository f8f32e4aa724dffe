//! Pictures that tell of each pixel where it belongs. The tests on the host compute the same.

/// A pixel (XRGB) of the picture `seed`: no two pixels of a picture of up to 4096x4096 are alike.
pub(crate) fn pixel(seed: u32, x: u32, y: u32) -> u32 {
    let red = (x + seed * 29) & 0xff;
    let green = (y + seed * 53) & 0xff;
    let blue = ((x >> 8 | y >> 8 << 4) + seed * 101) & 0xff;
    red << 16 | green << 8 | blue
}

/// A pixel (ARGB) of the cursor `seed`: some see through, all others as in a picture.
pub(crate) fn cursor_pixel(seed: u32, x: u32, y: u32) -> u32 {
    if (x + 2 * y + seed).is_multiple_of(7) { 0 } else { 0xff << 24 | pixel(seed, x, y) }
}
