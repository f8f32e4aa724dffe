//! The pictures of the guest's GL program (tests/virgl/client/picture.c), computed once more: tiles, each drawn in a way of its
//! own. Colours are 0xRRGGBB; y counts upwards, as GL has it.

const TILE: u32 = 32;

/// A colour for a place.
fn colour(seed: u32, i: u32, j: u32) -> u32 {
    let mixed = i.wrapping_mul(0x9e37_79b1) ^ j.wrapping_mul(0x85eb_ca6b) ^ seed.wrapping_mul(0xc2b2_ae35);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x2c1b_3c6d);
    (mixed ^ mixed >> 13) & 0xff_ffff
}

/// The sum of two colours, channel by channel, where none gets brighter than bright.
fn sum(one: u32, two: u32) -> u32 {
    let channels = one.to_be_bytes().into_iter().zip(two.to_be_bytes());
    channels.fold(0, |word, (one, two)| word << 8 | u32::from(one.saturating_add(two)))
}

/// What a pixel must be.
pub(super) fn pixel(seed: u32, x: u32, y: u32) -> u32 {
    let (i, j) = (x / TILE, y / TILE);
    let (own, background) = (colour(seed, i, j), colour(seed, 999, 999));
    match (i + 3 * j + seed) % 8 {
        // Nothing but the first clear.
        0 => background,
        // A texture, texel by texel.
        3 => colour(seed, x % TILE, y % TILE + 500),
        // Computed from where it is.
        4 => (x & 255) << 16 | (y & 255) << 8 | (x + y) & 255,
        // A triangle, whose long side goes between the pixels' centres.
        5 if x % TILE + y % TILE >= TILE - 1 => background,
        // Added to what is there.
        6 => sum(own, colour(seed, i + 500, j)),
        // A part cleared, a rectangle, the triangle, and a rectangle before another.
        _ => own,
    }
}

/// FNV-1a (64 bit) of a picture, from the lowest row on.
pub(super) fn hash((width, height): (u32, u32), pixel: impl Fn(u32, u32) -> u32) -> u64 {
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let bytes = places.flat_map(|(x, y)| pixel(x, y).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
