//! The conformance suite: what virtio 1.4 demands of a GPU device, clause by clause, asked over real queues and answered in
//! bytes.
//!
//! A test named `spec_NN_…` belongs to item NN of a list of 53 that was drawn from the specification: section 5.7 (GPU
//! device) and what sections 2.1 to 2.8 and 2.10 demand of every device. The names say what is demanded or forbidden.
//!
//! | items | what | file |
//! |---|---|---|
//! | | structures and constants | `wire` |
//! | 1-3 | device id, queues, features | `identity` |
//! | 4-8 | configuration space, events | `configuration` |
//! | 9-12 | shared memory regions | `memory_regions` |
//! | 13, 14, 19 | fences, response headers | `fences` |
//! | 15-18 | fence timelines | `timelines` |
//! | 20 | descriptor chains | `chains` |
//! | 21-24 | reset, notifications, failure | `lifecycle` |
//! | 25 | pause | `pause` |
//! | 26, 27, 29, 30 | what the guest learns of displays, what they show | `displays` |
//! | 28, 32-34 | images and the guest memory behind them | `images` |
//! | 31 | flushes | `frames` |
//! | 35-37 | capability sets, exported objects | `objects` |
//! | 38-44 | blobs | `blobs` |
//! | 45 | blobs on scanouts | `blob_scanouts` |
//! | 46, 47 | mappings | `mappings` |
//! | 48, 49 | contexts and 3D resources | `contexts` |
//! | 50, 51 | the cursor | `cursor` |
//! | 53 | requests that no driver sends | `unknown` |
//!
//! `mmio` asks the parts of items 1, 2, 4, 7, 8, 12, 21 and 24 that a driver finds in a transport's registers, of the example
//! VMM's transport.
//!
//! # What cannot be asked here
//! - 52, VGA compatibility: an option that this device does not offer. A VMM that wants a boot console gives its guest
//!   another device for it.
//! - The PCI half of items 1 (class DISPLAY_OTHER) and 12 (the capability within its BAR): they are a VMM's transport. The
//!   crate's part is the device id, the region's id and the region's length.
//! - The reset of a single queue in item 21, and all of item 25 but its spirit: VIRTIO_F_RING_RESET and VIRTIO_F_SUSPEND
//!   are not offered, and tests say so. Pause and resume of the VMM are held to what item 25 demands of a suspension.
//! - Item 23's other half: VIRTIO_F_IN_ORDER is not offered, so that completions may come in any order.
#![cfg(feature = "testing")]

mod blob_scanouts;
mod blobs;
mod chains;
mod configuration;
mod contexts;
mod cursor;
mod displays;
mod driver;
mod fences;
mod frames;
mod honest;
mod identity;
mod images;
mod kit;
mod lifecycle;
mod mappings;
mod memory_regions;
mod mmio;
mod objects;
mod pause;
mod timelines;
mod unknown;
mod wire;

/// The files with numbered tests.
const FILES: [&str; 19] = [
    include_str!("blob_scanouts.rs"),
    include_str!("blobs.rs"),
    include_str!("chains.rs"),
    include_str!("configuration.rs"),
    include_str!("contexts.rs"),
    include_str!("cursor.rs"),
    include_str!("displays.rs"),
    include_str!("fences.rs"),
    include_str!("frames.rs"),
    include_str!("identity.rs"),
    include_str!("images.rs"),
    include_str!("lifecycle.rs"),
    include_str!("mappings.rs"),
    include_str!("memory_regions.rs"),
    include_str!("mmio.rs"),
    include_str!("objects.rs"),
    include_str!("pause.rs"),
    include_str!("timelines.rs"),
    include_str!("unknown.rs"),
];

#[test]
fn no_item_is_without_a_test() {
    let tested = |item: u32| FILES.iter().any(|file| file.contains(&format!("\nfn spec_{item:02}_")));
    let missing: Vec<u32> = (1..=53).filter(|&item| item != 52 && !tested(item)).collect();
    assert!(missing.is_empty(), "no test for items {missing:?}");
}
