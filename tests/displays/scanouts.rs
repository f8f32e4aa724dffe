//! Scanouts beside each other: as many as there may be, each with its own place, picture and cursor.

use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_SCANOUT_ID;
use virtio_gpu_uring::testing::{Guest, Lane, Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{BuildError, Builder, ConnectError, Monitor, NullDisplay};

use crate::{area, attached, image, info, pattern, show};

type Memory = std::sync::Arc<vm_memory::GuestMemoryMmap>;

#[test]
fn no_device_has_more_scanouts_than_sixteen_nor_fewer_than_one() {
    for scanouts in [0, 17, u32::MAX] {
        let refused = Builder::new().scanouts(scanouts).spawn::<Memory>().expect_err("no device");
        assert!(matches!(refused, BuildError::Scanouts { scanouts: found } if found == scanouts), "{refused:?}");
    }
    let highest = |scanout| Builder::new().display(scanout, Monitor::new(64, 48), NullDisplay);
    for scanout in [16, u32::MAX - 1, u32::MAX] {
        let refused = highest(scanout).spawn::<Memory>().expect_err("no device");
        assert!(matches!(refused, BuildError::Scanouts { .. }), "{refused:?}");
    }
    let refused = highest(5).scanouts(5).spawn::<Memory>().expect_err("no device");
    let unknown = ConnectError::Scanout { scanout: 5, count: 5 };
    assert!(matches!(refused, BuildError::Display(error) if error == unknown));
    for (builder, count) in [(Builder::new(), 1), (highest(5), 6), (highest(5).scanouts(9), 9), (highest(15), 16)] {
        let mut guest = Guest::start(builder);
        let mut config = [0; 4];
        guest.device().read_config(8, &mut config);
        assert_eq!(u32::from_le_bytes(config), count);
        guest.command(&Request::get_edid(count - 1)).ok();
        guest.command(&Request::get_edid(count)).expect_error(ERR_INVALID_SCANOUT_ID);
        guest.command(&Request::set_scanout(count, 0, [0; 4])).expect_error(ERR_INVALID_SCANOUT_ID);
    }
}

/// A display on each of sixteen scanouts, in two rows of eight.
fn wall() -> (Guest, Vec<Viewer>) {
    let mut builder = Builder::new();
    let mut viewers = Vec::new();
    for scanout in 0..16 {
        let (screen, viewer) = Screen::new();
        let position = (scanout % 8 * 64, scanout / 8 * 48);
        builder = builder.display(scanout, Monitor { position, ..Monitor::new(64, 48) }, screen);
        viewers.push(viewer);
    }
    (Guest::start(builder), viewers)
}

#[test]
fn sixteen_displays_are_never_taken_for_each_other() {
    let (mut guest, viewers) = wall();
    for scanout in 0..16 {
        let (x, y) = (scanout % 8 * 64, scanout / 8 * 48);
        assert_eq!(info(&mut guest, scanout as usize), [x, y, 64, 48, 1, 0]);
        show(&mut guest, scanout, 100 + scanout, [64, 48]);
    }
    image(&mut guest, 8, [64, 64], 8);
    for scanout in (0..16).rev() {
        guest.command(&Request::flush(100 + scanout, [0, 0, 64, 48])).ok();
        let moved = guest.submit_on(Lane::Cursor, &Request::move_cursor(scanout, (scanout as i32, 0)));
        guest.wait_on(Lane::Cursor, moved).ok();
    }
    for (scanout, viewer) in (0..).zip(&viewers) {
        let drawn = Shown::Drawn(area(64, 48), pattern(64, 48, 100 + scanout));
        let moved = Shown::CursorMoved((scanout as i32, 0));
        assert_eq!(viewer.take(), [attached(64, 48), drawn, Shown::Frame(area(64, 48)), moved]);
    }
}

#[test]
fn one_picture_over_many_displays_never_reaches_those_that_it_did_not_touch() {
    let (mut guest, viewers) = wall();
    image(&mut guest, 7, [512, 96], 7);
    for scanout in 0..16 {
        let rect = [scanout % 8 * 64, scanout / 8 * 48, 64, 48];
        guest.command(&Request::set_scanout(scanout, 7, rect)).ok();
    }
    viewers.iter().for_each(|viewer| drop(viewer.take()));
    // Around the corner where four of them meet.
    guest.command(&Request::flush(7, [60, 40, 10, 20])).ok();
    let frame = |x, y, width, height| Shown::Frame(virtio_gpu_uring::Area { x, y, width, height });
    let wanted = [(0, frame(60, 40, 4, 8)), (1, frame(0, 40, 6, 8)), (8, frame(60, 0, 4, 12)), (9, frame(0, 0, 6, 12))];
    for (scanout, viewer) in viewers.iter().enumerate() {
        let frame = wanted.iter().find(|(at, _)| *at == scanout).map(|(_, frame)| frame.clone());
        let shown = viewer.take();
        assert_eq!(shown.last().cloned(), frame, "scanout {scanout}");
        assert_eq!(shown.len(), if frame.is_some() { 2 } else { 0 });
    }
    guest.command(&Request::flush(7, [0, 0, 512, 96])).ok();
    let whole = pattern(512, 96, 7);
    for (scanout, viewer) in viewers.iter().enumerate() {
        let (left, top) = (scanout % 8 * 64, scanout / 8 * 48);
        let rows: Vec<u8> = (top..top + 48).flat_map(|y| whole[(y * 512 + left) * 4..][..256].to_vec()).collect();
        assert!(viewer.picture().2 == rows, "scanout {scanout}");
    }
}
