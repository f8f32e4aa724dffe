//! Extension blocks of an EDID with DisplayID 1.3 sections: timings of any size that a display today has.

use super::timing::{TYPE_1, Timing};
use super::{BLOCK, GAMMA, MODEL_YEAR, PRODUCT, YEAR, checksum, size_mm};
use crate::display::monitor::{Mode, Monitor};

/// Most timings that the extension blocks hold besides the preferred mode's.
pub(crate) const MAX_DESCRIBED: usize = FIRST + (BLOCKS - 1) * FURTHER - 1;
/// The fastest pixel clock: 24 bits of kHz, as DisplayID 2 counts. Those of 10 kHz hold more, which tools refuse.
pub(crate) const MAX_CLOCK_KHZ: u64 = 1 << 24;

/// Extension blocks that `GET_EDID` has room for.
const BLOCKS: usize = 7;
/// What is left for data blocks of a block's 128 bytes after its tag and checksum, and a section's header and checksum.
const ROOM: usize = BLOCK - 2 - 5;
/// Timings of the first block, which also has what a display must say of itself as a product.
const FIRST: usize = (ROOM - PRODUCT_ID_LEN - PARAMETERS_LEN - INTERFACE_LEN - 3) / TYPE_1;
/// Timings of a further block.
const FURTHER: usize = (ROOM - 3) / TYPE_1;

// Sizes of data blocks with their headers of three bytes.
const PRODUCT_ID_LEN: usize = 15;
const PARAMETERS_LEN: usize = 15;
const INTERFACE_LEN: usize = 13;

/// The tag of an extension block that holds DisplayID.
const EXTENSION_TAG: u8 = 0x70;
/// Version 1.3.
const VERSION: u8 = 0x13;
/// A display that stands alone.
const STANDALONE: u8 = 3;
// Tags of data blocks.
const PRODUCT_ID: u8 = 0;
const DISPLAY_PARAMETERS: u8 = 1;
const TYPE_1_TIMINGS: u8 = 3;
const DISPLAY_INTERFACE: u8 = 0x0f;
/// The data block's revision that knows all aspect ratios used.
const TYPE_1_REVISION: u8 = 1;

/// The display's interface: one link of a kind of its own, version 1.0, 8 bits a colour of RGB, no content protection.
const INTERFACE: [u8; INTERFACE_LEN] =
    [DISPLAY_INTERFACE, 0, INTERFACE_LEN as u8 - 3, 0xb1, 0x10, 2, 0, 0, 0, 0, 0, 0, 0];

/// As many blocks as the timings take, of which the first is preferred.
pub(super) fn extensions(monitor: &Monitor, timings: &[Timing]) -> Vec<[u8; BLOCK]> {
    let (first, further) = timings.split_at(timings.len().min(FIRST));
    let further: Vec<_> = further.chunks(FURTHER).take(BLOCKS - 1).collect();
    let Some((preferred, others)) = first.split_first() else { return Vec::new() };
    let mut data = [&product_id(monitor)[..], &parameters(monitor), &INTERFACE].concat();
    data.extend(type_1_header(first.len()));
    data.extend(preferred.type_1(true));
    data.extend(others.iter().flat_map(|timing| timing.type_1(false)));
    // The first section says what the product is and how many follow; the others leave both zero.
    let mut blocks = vec![extension(STANDALONE, further.len(), &data)];
    for timings in further {
        let bytes = timings.iter().flat_map(|timing| timing.type_1(false));
        let data: Vec<u8> = type_1_header(timings.len()).into_iter().chain(bytes).collect();
        blocks.push(extension(0, 0, &data));
    }
    blocks
}

/// An extension block with a section of these data blocks.
fn extension(product: u8, following: usize, data: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..5].copy_from_slice(&[EXTENSION_TAG, VERSION, data.len() as u8, product, following as u8]);
    let end = 5 + data.len();
    block[5..end].copy_from_slice(data);
    block[end] = checksum(&block[1..end]);
    block[BLOCK - 1] = checksum(&block[..BLOCK - 1]);
    block
}

fn type_1_header(timings: usize) -> [u8; 3] {
    [TYPE_1_TIMINGS, TYPE_1_REVISION, (timings * TYPE_1) as u8]
}

/// Product identification: the base block's words again, the year counted from 2000 here. Neither the name again nor the
/// manufacturer, whose place is for numbers that IEEE gives out too.
fn product_id(monitor: &Monitor) -> [u8; PRODUCT_ID_LEN] {
    let mut bytes = [0; PRODUCT_ID_LEN];
    bytes[..3].copy_from_slice(&[PRODUCT_ID, 0, PRODUCT_ID_LEN as u8 - 3]);
    bytes[6..8].copy_from_slice(&PRODUCT.to_le_bytes());
    bytes[8..12].copy_from_slice(&monitor.serial.to_le_bytes());
    bytes[12..14].copy_from_slice(&[MODEL_YEAR, (YEAR - 2000) as u8]);
    bytes
}

/// Display parameters: size in tenths of a millimetre, native pixels, no particular features, gamma 2.2, shape, and 8 bits
/// a colour.
fn parameters(monitor: &Monitor) -> [u8; PARAMETERS_LEN] {
    let (width_mm, height_mm) = size_mm(monitor);
    let Mode { width, height, .. } = monitor.preferred;
    let mut bytes = [0; PARAMETERS_LEN];
    bytes[..3].copy_from_slice(&[DISPLAY_PARAMETERS, 0, PARAMETERS_LEN as u8 - 3]);
    let words = [width_mm * 10, height_mm * 10, width as u16, height as u16];
    for (place, word) in bytes[3..11].chunks_exact_mut(2).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes[12] = GAMMA;
    // Long side by short side, in hundredths above one.
    bytes[13] = (width.max(height) * 100 / width.min(height) - 100).min(0xff) as u8;
    bytes[14] = 0x77;
    bytes
}
