//! Items 50 and 51: the cursor, on a queue of its own that nothing holds up.

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_INVALID_SCANOUT_ID, ERR_UNSPEC, OK_NODATA,
};
use virtio_gpu_uring::protocol::wire::{FLAG_FENCE, UpdateCursor, command_type as kind};
use virtio_gpu_uring::testing::{DEADLINE, Guest, Lane, Request, Shown, Viewer};
use virtio_gpu_uring::{Builder, Format, Limits, Monitor};
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

use crate::honest::honest;
use crate::kit::{
    B8G8R8A8, Drawing, PAGE, assert_untouched, cursor, done, memfd, offer, pattern, screens, with_screen, with_screens,
};

/// Succeeds with a bare header.
#[track_caller]
fn moved(guest: &mut Guest, request: &Request) {
    let answer = cursor(guest, request);
    assert_eq!((answer.kind(), answer.written), (OK_NODATA, 24), "the device answered {:#x}", answer.kind());
}

#[track_caller]
fn not_moved(guest: &mut Guest, request: &Request, code: u32) {
    let answer = cursor(guest, request);
    answer.expect_error(code);
    assert_eq!(answer.written, 24, "an error is a header");
}

/// An image of 64x64, filled.
#[track_caller]
fn pointer(guest: &mut Guest, id: u32, format: u32) -> Drawing {
    let drawing = Drawing::untransferred(guest, id, format, 64, 64);
    drawing.transfer(guest, drawing.whole());
    drawing
}

#[test]
fn spec_50_a_cursor_never_loses_its_pixels_place_or_hotspot() {
    let (mut guest, viewer) = with_screen();
    for (id, format) in (1..).zip(Format::ALL) {
        let image = pointer(&mut guest, id, format.wire());
        let (place, hot) = ((id as i32 * 10, 7), (id, 63));
        moved(&mut guest, &Request::update_cursor(0, id, place, hot));
        // Linux gives a cursor's resource the format of a screen, and draws with alpha.
        let shown = Shown::Cursor(place, hot, format.with_alpha(), image.bytes);
        assert!(viewer.take() == [shown], "{format:?}");
    }
    moved(&mut guest, &Request::update_cursor(0, 0, (9, 9), (1, 1)));
    assert_eq!(viewer.take(), [Shown::CursorHidden]);
}

#[test]
fn spec_50_a_cursor_may_always_hang_over_an_edge() {
    let (mut guest, viewer) = with_screen();
    let image = pointer(&mut guest, 1, B8G8R8A8);
    for place in [(-1, -1), (-63, 500), (i32::MIN, i32::MAX), (i32::MAX, i32::MIN), (1023, 767), (5000, 5000)] {
        moved(&mut guest, &Request::update_cursor(0, 1, place, (0, 0)));
        let shown = Shown::Cursor(place, (0, 0), Format::B8G8R8A8, image.bytes.clone());
        assert_eq!(viewer.take(), [shown]);
        moved(&mut guest, &Request::move_cursor(0, place));
        assert_eq!(viewer.take(), [Shown::CursorMoved(place)]);
    }
}

#[test]
fn spec_50_an_image_of_another_size_is_never_a_cursor() {
    let (mut guest, viewer) = with_screen();
    let image = pointer(&mut guest, 1, B8G8R8A8);
    moved(&mut guest, &Request::update_cursor(0, 1, (3, 3), (1, 2)));
    let _ = viewer.take();
    for (id, (width, height)) in (2..).zip([(1, 1), (63, 64), (64, 63), (65, 64), (128, 128), (32, 128), (128, 32)]) {
        done(&mut guest, &Request::create_2d(id, B8G8R8A8, width, height));
        not_moved(&mut guest, &Request::update_cursor(0, id, (5, 5), (0, 0)), ERR_INVALID_PARAMETER);
    }
    for id in [99, u32::MAX] {
        not_moved(&mut guest, &Request::update_cursor(0, id, (5, 5), (0, 0)), ERR_INVALID_RESOURCE_ID);
    }
    for scanout in [1, 16, u32::MAX] {
        for id in [0, 1, 99] {
            let update = Request::update_cursor(scanout, id, (5, 5), (0, 0));
            not_moved(&mut guest, &update, ERR_INVALID_SCANOUT_ID);
        }
        not_moved(&mut guest, &Request::move_cursor(scanout, (5, 5)), ERR_INVALID_SCANOUT_ID);
    }
    // What was refused has changed nothing: a display that comes now is told of the first.
    assert_untouched(&viewer);
    let (screen, late) = virtio_gpu_uring::testing::Screen::new();
    done(&mut guest, &Request::set_scanout(0, 2, [0, 0, 1, 1]));
    guest.device().connect(0, Monitor::new(800, 600), screen).wait().expect("a device").expect("a scanout");
    guest.settle();
    let told = late.take();
    assert!(told.contains(&Shown::Cursor((3, 3), (1, 2), Format::B8G8R8A8, image.bytes)), "the cursor as it was");
}

#[test]
fn spec_50_a_blob_is_a_cursor_if_it_is_large_enough_and_never_otherwise() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 5));
    let bytes = pattern(4 * PAGE as usize, 2);
    let (address, _) = guest.page_range(bytes.len());
    guest.ram().write(GuestAddress(address), &bytes);
    done(&mut guest, &Request::guest_blob(1, 4 * PAGE, &[(address + 8192, 8192), (address, 8192)]));
    let id = offer(&guest, memfd("spec-50", &bytes));
    done(&mut guest, &Request::host_blob(1, 2, id, 4 * PAGE));
    let swapped = [&bytes[8192..], &bytes[..8192]].concat();
    // A blob has no format, and the command names none: what Linux draws cursors in.
    for (id, bytes) in [(1, swapped), (2, bytes.clone())] {
        moved(&mut guest, &Request::update_cursor(0, id, (1, 2), (3, 4)));
        assert_eq!(viewer.take(), [Shown::Cursor((1, 2), (3, 4), Format::B8G8R8A8, bytes)]);
    }
    done(&mut guest, &Request::guest_blob(3, 3 * PAGE, &[(address, 3 * PAGE as u32)]));
    done(&mut guest, &Request::guest_blob(4, 4 * PAGE, &[]));
    let id = offer(&guest, memfd("spec-50", &bytes[..12288]));
    done(&mut guest, &Request::host_blob(1, 5, id, 3 * PAGE));
    for id in [3, 4, 5] {
        not_moved(&mut guest, &Request::update_cursor(0, id, (5, 5), (0, 0)), ERR_INVALID_PARAMETER);
    }
    assert_untouched(&viewer);
}

#[test]
fn spec_50_a_cursor_never_changes_before_the_next_update() {
    let (mut guest, viewer) = with_screen();
    let mut image = pointer(&mut guest, 1, B8G8R8A8);
    moved(&mut guest, &Request::update_cursor(0, 1, (3, 3), (1, 2)));
    let _ = viewer.take();
    image.redraw(&guest, 9);
    image.transfer(&mut guest, image.whole());
    image.flush(&mut guest);
    assert_untouched(&viewer);
    moved(&mut guest, &Request::move_cursor(0, (4, 4)));
    assert_eq!(viewer.take(), [Shown::CursorMoved((4, 4))]);
    moved(&mut guest, &Request::update_cursor(0, 1, (4, 5), (0, 0)));
    assert_eq!(viewer.take(), [Shown::Cursor((4, 5), (0, 0), Format::B8G8R8A8, image.bytes)]);
    // Nor when its resource goes.
    done(&mut guest, &Request::unref(1));
    assert_untouched(&viewer);
}

#[test]
fn spec_50_each_scanout_always_has_a_cursor_of_its_own() {
    let (mut guest, viewers) = with_screens(3);
    let (first, second) = (pointer(&mut guest, 1, B8G8R8A8), pointer(&mut guest, 2, B8G8R8A8));
    moved(&mut guest, &Request::update_cursor(0, 1, (1, 1), (0, 0)));
    moved(&mut guest, &Request::update_cursor(2, 2, (2, 2), (9, 9)));
    moved(&mut guest, &Request::move_cursor(2, (3, 3)));
    moved(&mut guest, &Request::update_cursor(0, 0, (0, 0), (0, 0)));
    let format = Format::B8G8R8A8;
    assert_eq!(viewers[0].take(), [Shown::Cursor((1, 1), (0, 0), format, first.bytes), Shown::CursorHidden]);
    assert_untouched(&viewers[1]);
    let of_third = [Shown::Cursor((2, 2), (9, 9), format, second.bytes), Shown::CursorMoved((3, 3))];
    assert_eq!(viewers[2].take(), of_third);
}

#[test]
fn spec_50_a_move_never_looks_at_anything_but_the_place() {
    let (mut guest, viewer) = with_screen();
    let body = |resource: u32, hot: u32, padding: u32| UpdateCursor {
        scanout_id: 0.into(),
        x: 8.into(),
        y: 9.into(),
        pos_padding: padding.into(),
        resource_id: resource.into(),
        hot_x: hot.into(),
        hot_y: hot.into(),
        padding: padding.into(),
    };
    // No cursor at all, one that is shown, a resource that is none.
    pointer(&mut guest, 1, B8G8R8A8);
    for round in 0..2 {
        for (resource, hot, padding) in [(0, 0, 0), (1, 5, 1), (77, 64, u32::MAX), (u32::MAX, u32::MAX, 7)] {
            moved(&mut guest, &Request::new(kind::MOVE_CURSOR, body(resource, hot, padding).as_bytes()));
            assert_eq!(viewer.take(), [Shown::CursorMoved((8, 9))], "round {round}, resource {resource}");
        }
        moved(&mut guest, &Request::update_cursor(0, 1, (8, 9), (0, 0)));
        let _ = viewer.take();
    }
}

#[test]
fn spec_50_a_reset_never_leaves_a_cursor() {
    let (mut guest, viewer) = with_screen();
    pointer(&mut guest, 1, B8G8R8A8);
    moved(&mut guest, &Request::update_cursor(0, 1, (8, 9), (0, 0)));
    let _ = viewer.take();
    guest.reset();
    assert_eq!(viewer.take(), [Shown::CursorHidden]);
}

#[test]
fn spec_50_a_display_that_comes_to_an_empty_scanout_never_misses_its_cursor() {
    let mut guest = Guest::start(Builder::new().scanouts(1));
    let image = pointer(&mut guest, 1, B8G8R8A8);
    moved(&mut guest, &Request::update_cursor(0, 1, (8, 9), (2, 3)));
    let (screen, viewer) = virtio_gpu_uring::testing::Screen::new();
    guest.device().connect(0, Monitor::new(800, 600), screen).wait().expect("a device").expect("a scanout");
    image.show(&mut guest, 0);
    let told = viewer.take();
    let expected = Shown::Cursor((8, 9), (2, 3), Format::B8G8R8A8, image.bytes);
    assert!(told.contains(&expected), "the display was never told of the cursor");
}

#[test]
fn spec_51_a_command_without_room_for_its_answer_is_always_done() {
    // Linux leaves none: it waits for the chain's return alone.
    let (mut guest, viewer) = with_screen();
    let image = pointer(&mut guest, 1, B8G8R8A8);
    let answer = cursor(&mut guest, &Request::update_cursor(0, 1, (1, 2), (3, 4)).response_len(0));
    assert_eq!((answer.written, answer.payload.len()), (0, 0));
    assert_eq!(viewer.take(), [Shown::Cursor((1, 2), (3, 4), Format::B8G8R8A8, image.bytes)]);
    let answer = cursor(&mut guest, &Request::move_cursor(0, (5, 6)).response_len(0));
    assert_eq!(answer.written, 0);
    assert_eq!(viewer.take(), [Shown::CursorMoved((5, 6))]);
    for bad in [Request::move_cursor(7, (5, 6)), Request::update_cursor(0, 9, (5, 6), (0, 0))] {
        assert_eq!(cursor(&mut guest, &bad.response_len(0)).written, 0);
    }
    assert_untouched(&viewer);
    // Room for less than a header is no room, and a fence is one here, too.
    let answer = cursor(&mut guest, &Request::move_cursor(0, (7, 8)).fenced(12));
    assert_eq!((answer.header.flags.get(), answer.header.fence_id.get()), (FLAG_FENCE, 12));
    guest.assert_all_answered();
}

#[test]
fn spec_51_no_other_command_is_ever_served_on_the_cursor_queue_nor_a_cursor_on_the_other() {
    let (mut guest, viewer) = with_screen();
    pointer(&mut guest, 1, B8G8R8A8);
    // The specification has no code for it.
    for request in [Request::display_info(), Request::create_2d(2, 1, 1, 1), Request::unref(1), Request::get_edid(0)] {
        cursor(&mut guest, &request).expect_error(ERR_UNSPEC);
    }
    for request in [Request::update_cursor(0, 1, (1, 1), (0, 0)), Request::move_cursor(0, (1, 1))] {
        guest.command(&request).expect_error(ERR_UNSPEC);
    }
    assert_untouched(&viewer);
    done(&mut guest, &Request::unref(1));
}

/// Sends cursor commands and says what the display was told.
#[track_caller]
fn pointing(guest: &mut Guest, viewer: &Viewer) -> usize {
    let _ = viewer.take();
    moved(guest, &Request::update_cursor(0, 1, (1, 1), (0, 0)));
    for at in 0..40 {
        moved(guest, &Request::move_cursor(0, (at, at)));
    }
    let of_cursor = |shown: &Shown| matches!(shown, Shown::Cursor(..) | Shown::CursorMoved(_));
    viewer.take().into_iter().filter(of_cursor).count()
}

#[test]
fn spec_51_a_cursor_never_waits_for_a_flush_of_its_own_resource() {
    let (mut guest, viewer) = with_screen();
    let image = pointer(&mut guest, 1, B8G8R8A8);
    image.show(&mut guest, 0);
    viewer.hold_frames(true);
    let held = guest.submit(&Request::flush(1, image.whole()));
    guest.settle();
    assert_eq!(pointing(&mut guest, &viewer), 41);
    assert!(!guest.has_answer(&held), "the flush is done");
    viewer.hold_frames(false);
    guest.wait(held).ok();
}

#[test]
fn spec_51_a_cursor_never_waits_for_a_full_control_queue() {
    let limits = Limits { commands_in_flight: 4, deadline: DEADLINE, ..Limits::default() };
    let (builder, viewers) = screens(Builder::new().limits(limits), 1);
    let (mut guest, viewer) = (Guest::start(builder), &viewers[0]);
    pointer(&mut guest, 1, B8G8R8A8);
    let other = Drawing::new(&mut guest, 2, 8, 8);
    other.show(&mut guest, 0);
    viewer.hold_frames(true);
    // As many as the device takes, and then as many as the ring has room for.
    let mut waiting = Vec::new();
    let flush = Request::flush(2, other.whole());
    for _ in 0..100 {
        waiting.push(guest.submit(&flush));
    }
    assert_eq!(pointing(&mut guest, viewer), 41);
    assert!(!waiting.iter().any(|token| guest.has_answer(token)), "a flush is done");
    viewer.hold_frames(false);
    waiting.into_iter().for_each(|token| drop(guest.wait(token).ok()));
    guest.assert_all_answered();
}

/// A renderer's picture as a cursor that the renderer takes its time to read.
fn with_slow_cursor() -> (Guest, crate::honest::Watch, Viewer) {
    let (renderer, watch) = honest();
    let (builder, mut viewers) = screens(Builder::new().renderer(renderer), 1);
    let mut guest = Guest::start(builder);
    done(&mut guest, &Request::create_3d(1, 2, B8G8R8A8, 64, 64));
    done(&mut guest, &Request::create_3d(2, 2, B8G8R8A8, 64, 65));
    pointer(&mut guest, 3, B8G8R8A8);
    (guest, watch, viewers.remove(0))
}

#[test]
fn spec_50_a_renderers_picture_is_a_cursor_and_never_one_of_another_size() {
    let (mut guest, _watch, viewer) = with_slow_cursor();
    moved(&mut guest, &Request::update_cursor(0, 1, (1, 1), (2, 2)));
    assert_eq!(viewer.take(), [Shown::Cursor((1, 1), (2, 2), Format::B8G8R8A8, vec![0; 16384])]);
    not_moved(&mut guest, &Request::update_cursor(0, 2, (1, 1), (2, 2)), ERR_INVALID_PARAMETER);
    assert_untouched(&viewer);
}

#[test]
fn spec_51_a_cursor_that_takes_its_time_never_undoes_a_later_move() {
    let (mut guest, watch, viewer) = with_slow_cursor();
    watch.shut(true);
    let update = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 1, (1, 1), (2, 2)));
    // The guest has moved it since, and gets its answer: that is where the cursor is.
    moved(&mut guest, &Request::move_cursor(0, (50, 60)));
    watch.shut(false);
    guest.wait_on(Lane::Cursor, update).ok();
    let place = |shown: &Shown| match shown {
        Shown::Cursor(place, ..) | Shown::CursorMoved(place) => Some(*place),
        _ => None,
    };
    assert_eq!(viewer.take().iter().filter_map(place).next_back(), Some((50, 60)));
}

#[test]
fn spec_51_a_cursor_that_takes_its_time_never_replaces_a_later_one() {
    let (mut guest, watch, viewer) = with_slow_cursor();
    for later in [3, 0] {
        let _ = viewer.take();
        watch.shut(true);
        let update = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 1, (1, 1), (2, 2)));
        moved(&mut guest, &Request::update_cursor(0, later, (5, 5), (0, 0)));
        watch.shut(false);
        guest.wait_on(Lane::Cursor, update).ok();
        match (later, viewer.take().pop()) {
            (3, Some(Shown::Cursor((5, 5), ..))) | (0, Some(Shown::CursorHidden)) => {}
            (_, last) => panic!("the last that the display was told is {:.80}", format!("{last:?}")),
        }
    }
}
