//! Rows 19, 20, 21 and 31: scanouts that were lost or in use by mistake, transfers of the wrong pixels, names that were none.

use std::collections::HashSet;

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_INVALID_SCANOUT_ID,
};
use virtio_gpu_uring::testing::{Guest, Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{Builder, Monitor};

const SIDE: u32 = 16;
const WHOLE: [u32; 4] = [0, 0, SIDE, SIDE];

/// A guest with a screen, and 2D resources with backing of their own.
fn drawing(resources: &[u32]) -> (Guest, Viewer) {
    let (screen, viewer) = Screen::new();
    let mut guest = Guest::start(Builder::new().display(0, Monitor::new(SIDE, SIDE), screen));
    for resource in resources {
        guest.command(&Request::create_2d(*resource, 1, SIDE, SIDE)).ok();
    }
    (guest, viewer)
}

/// Row 19: a resource on a scanout could not be given up, was lost all the same, and left the scanout of no use.
#[test]
fn a_resource_that_is_shown_is_given_up_like_any_other_and_its_scanout_is_free() {
    let (mut guest, viewer) = drawing(&[1, 2]);
    guest.command(&Request::set_scanout(0, 1, WHOLE)).ok();
    guest.command(&Request::unref(1)).ok();
    assert_eq!(viewer.take().last(), Some(&Shown::Detached));
    guest.command(&Request::unref(1)).expect_error(ERR_INVALID_RESOURCE_ID);
    guest.command(&Request::set_scanout(0, 2, WHOLE)).ok();
    guest.command(&Request::flush(2, WHOLE)).ok();
    assert!(viewer.take().iter().any(|shown| matches!(shown, Shown::Frame(_))), "a scanout of no use");
}

/// Row 20: a SET_SCANOUT that was refused took effect in part, and one that switched off toggled.
#[test]
fn a_scanout_is_never_in_use_by_mistake() {
    let (mut guest, viewer) = drawing(&[1]);
    for outside in [[0, 0, SIDE + 1, SIDE], [0, 0, 0, 0], [1, 0, SIDE, SIDE], [u32::MAX, 0, 2, 2]] {
        guest.command(&Request::set_scanout(0, 1, outside)).expect_error(ERR_INVALID_PARAMETER);
    }
    guest.command(&Request::set_scanout(1, 1, WHOLE)).expect_error(ERR_INVALID_SCANOUT_ID);
    for _ in 0..3 {
        guest.command(&Request::set_scanout(0, 0, [0; 4])).ok();
    }
    guest.command(&Request::flush(1, WHOLE)).ok();
    assert_eq!(viewer.take(), [], "something is shown");
    guest.command(&Request::unref(1)).ok();
}

/// Row 21: the place of a transfer's first pixel in the guest's memory was ignored.
#[test]
fn a_transfer_of_a_part_never_takes_the_pixels_of_another() {
    let (mut guest, viewer) = drawing(&[1]);
    let range = guest.page_range((SIDE * SIDE * 4) as usize);
    let pixels: Vec<u8> = (0..SIDE * SIDE).flat_map(|pixel| (pixel | 0xc000_0000).to_le_bytes()).collect();
    guest.ram().write(vm_memory::GuestAddress(range.0), &pixels);
    guest.command(&Request::attach_backing(1, &[range])).ok();
    guest.command(&Request::set_scanout(0, 1, WHOLE)).ok();
    let (x, y, width, height) = (5, 3, 7, 9);
    let offset = u64::from((y * SIDE + x) * 4);
    guest.command(&Request::transfer_2d(1, [x, y, width, height], offset)).ok();
    guest.command(&Request::flush(1, WHOLE)).ok();
    let (_, _, shown) = viewer.picture();
    for at in 0..SIDE * SIDE {
        let inside = (x..x + width).contains(&(at % SIDE)) && (y..y + height).contains(&(at / SIDE));
        let expected = if inside { at | 0xc000_0000 } else { 0 };
        assert_eq!(shown[at as usize * 4..][..4], expected.to_le_bytes(), "pixel {at}");
    }
}

/// Row 31: a resource's UUID was its id, and all displays were at the same place.
#[test]
fn a_uuid_is_never_made_of_an_id_nor_are_displays_on_top_of_each_other() {
    let (mut guest, _viewer) = drawing(&[1, 2, 3]);
    let uuids: HashSet<Vec<u8>> = (1..=3).map(|id| guest.command(&Request::assign_uuid(id)).ok()).collect();
    assert_eq!(uuids.len(), 3);
    assert!(uuids.iter().all(|uuid| uuid[6] >> 4 == 4 && uuid[8] >> 6 == 2), "not version 4");
    let beside = Monitor { position: (SIDE, 0), ..Monitor::new(SIDE, SIDE) };
    let builder = Builder::new().display(0, Monitor::new(SIDE, SIDE), Screen::new().0);
    let mut guest = Guest::start(builder.display(1, beside, Screen::new().0));
    let displays = guest.command(&Request::display_info()).ok();
    assert_eq!((displays[0], displays[24]), (0, SIDE as u8), "left edges");
}
