//! Item 31: RESOURCE_FLUSH shows what has changed, on the displays that show it, and holds nobody else up.

use std::time::Instant;

use virtio_gpu_uring::protocol::wire::FLAG_FENCE;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID};
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestOptions, Lane, Layout, Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{Area, Builder, Monitor};

use crate::kit::{
    B8G8R8X8, Drawing, area, assert_untouched, crop, done, frame, pattern, refused, screens, with_screen, with_screens,
};

fn common(a: [u32; 4], b: [u32; 4]) -> Option<[u32; 4]> {
    let start = [a[0].max(b[0]), a[1].max(b[1])];
    let end = [(a[0] + a[2]).min(b[0] + b[2]), (a[1] + a[3]).min(b[1] + b[3])];
    (start[0] < end[0] && start[1] < end[1]).then(|| [start[0], start[1], end[0] - start[0], end[1] - start[1]])
}

#[test]
fn spec_31_damage_never_reaches_a_scanout_that_it_does_not_touch_nor_another_place() {
    let (mut guest, viewers) = with_screens(4);
    let drawing = Drawing::new(&mut guest, 1, 64, 48);
    let other = Drawing::new(&mut guest, 2, 64, 48);
    let shown = [[0, 0, 32, 48], [32, 0, 32, 48], [10, 10, 44, 28]];
    for (scanout, rect) in shown.into_iter().enumerate() {
        done(&mut guest, &Request::set_scanout(scanout as u32, 1, rect));
    }
    other.show(&mut guest, 3);
    viewers.iter().for_each(|viewer| drop(viewer.take()));
    for damage in [
        [0, 0, 64, 48],
        [0, 0, 1, 1],
        [63, 47, 1, 1],
        [31, 9, 2, 2],
        [0, 0, 10, 48],
        [54, 0, 10, 10],
        [9, 9, 46, 30],
        [30, 20, 5, 5],
        [0, 38, 64, 10],
    ] {
        done(&mut guest, &Request::flush(1, damage));
        for (viewer, rect) in viewers.iter().zip(shown) {
            match common(damage, rect) {
                Some(part) => {
                    let place = area(part[0] - rect[0], part[1] - rect[1], part[2], part[3]);
                    assert_eq!(frame(viewer), (place, crop(&drawing.bytes, 64, part)), "{damage:?} on {rect:?}");
                }
                None => assert_untouched(viewer),
            }
        }
        assert_untouched(&viewers[3]);
    }
}

#[test]
fn spec_31_a_rectangle_outside_the_resource_is_never_flushed() {
    let (mut guest, viewer) = with_screen();
    let drawing = Drawing::new(&mut guest, 1, 40, 30);
    for shown in [false, true] {
        if shown {
            drawing.show(&mut guest, 0);
            let _ = viewer.take();
        }
        for rect in [
            [0, 0, 0, 0],
            [0, 0, 41, 30],
            [0, 0, 40, 31],
            [40, 0, 1, 30],
            [0, 30, 40, 1],
            [u32::MAX, 0, 2, 30],
            [0, u32::MAX, 40, 2],
            [1, 0, u32::MAX, 30],
            [0, 1, 40, u32::MAX],
            [u32::MAX; 4],
        ] {
            refused(&mut guest, &Request::flush(1, rect), ERR_INVALID_PARAMETER);
        }
        assert_untouched(&viewer);
    }
    for id in [0, 2, u32::MAX] {
        refused(&mut guest, &Request::flush(id, drawing.whole()), ERR_INVALID_RESOURCE_ID);
    }
}

#[test]
fn spec_31_a_flush_of_what_nobody_shows_is_never_an_error() {
    let (mut guest, viewer) = with_screen();
    let drawing = Drawing::new(&mut guest, 1, 40, 30);
    drawing.flush(&mut guest);
    assert_untouched(&viewer);
    done(&mut guest, &Request::set_scanout(0, 1, [0, 0, 10, 10]));
    let _ = viewer.take();
    done(&mut guest, &Request::flush(1, [10, 0, 30, 30]));
    assert_untouched(&viewer);
}

#[test]
fn spec_31_what_was_drawn_and_not_flushed_is_never_shown() {
    let (mut guest, viewer) = with_screen();
    let mut drawing = Drawing::new(&mut guest, 1, 16, 16);
    drawing.show(&mut guest, 0);
    drawing.flush(&mut guest);
    let before = drawing.bytes.clone();
    drawing.redraw(&guest, 5);
    drawing.transfer(&mut guest, drawing.whole());
    assert_eq!(viewer.picture().2, before);
    done(&mut guest, &Request::flush(1, [4, 4, 8, 8]));
    let mut expected = before;
    crate::kit::paste(&mut expected, 16, [4, 4, 8, 8], &crop(&drawing.bytes, 16, [4, 4, 8, 8]));
    assert_eq!(viewer.picture().2, expected);
}

#[test]
fn spec_31_a_slow_display_never_holds_up_anything_but_its_flush() {
    let (mut guest, viewers) = with_screens(2);
    let slow = Drawing::new(&mut guest, 1, 16, 16);
    let other = Drawing::new(&mut guest, 2, 16, 16);
    slow.show(&mut guest, 0);
    other.show(&mut guest, 1);
    viewers[0].hold_frames(true);
    let held = guest.submit(&Request::flush(1, slow.whole()).fenced(8));
    guest.settle();
    assert!(!guest.has_answer(&held), "a flush was answered while its display was busy with it");
    other.transfer(&mut guest, other.whole());
    let _ = viewers[1].take();
    other.flush(&mut guest);
    assert_eq!(frame(&viewers[1]).1, other.bytes);
    // The next picture on the same scanout, too: a page is flipped.
    done(&mut guest, &Request::set_scanout(0, 2, other.whole()));
    assert!(!guest.has_answer(&held));
    viewers[0].hold_frames(false);
    let answer = guest.wait(held);
    assert_eq!((answer.header.fence_id.get(), answer.header.flags.get()), (8, FLAG_FENCE));
    answer.ok();
}

#[test]
fn spec_31_nothing_ever_waits_behind_a_large_frame() {
    const SIDES: [u32; 2] = [7680, 4320];
    let (builder, viewers) = screens(Builder::new(), 1);
    let mut guest = Guest::with_options(builder, GuestOptions { ram: 48 << 20, ..GuestOptions::default() });
    // 127 MiB of picture in 16 MiB of guest memory: the list names the same pages again and again.
    let bytes = pattern(16 << 20, 3);
    let (address, _) = guest.page_range(bytes.len());
    guest.ram().write(vm_memory::GuestAddress(address), &bytes);
    let list: Vec<_> = (0..128u64).map(|piece| (address + ((piece % 16) << 20), 1 << 20)).collect();
    done(&mut guest, &Request::create_2d(1, B8G8R8X8, SIDES[0], SIDES[1]));
    done(&mut guest, &Request::attach_backing(1, &list));
    done(&mut guest, &Request::set_scanout(0, 1, [0, 0, SIDES[0], SIDES[1]]));
    let _ = viewers[0].take();
    let whole = [0, 0, SIDES[0], SIDES[1]];
    let small = [
        Request::create_2d(2, B8G8R8X8, 4, 4),
        Request::display_info(),
        Request::unref(2),
        Request::get_edid(0),
        Request::display_info().fenced(1),
    ];
    for long in [Request::transfer_2d(1, whole, 0), Request::flush(1, whole)] {
        assert_eq!(order(&mut guest, &long, &small), small.len(), "answers that came before the long one's");
    }
    let (damage, pixels) = frame(&viewers[0]);
    assert_eq!(damage, Area { x: 0, y: 0, width: SIDES[0], height: SIDES[1] });
    // Compared in parts: a message of 127 MiB helps nobody.
    for (at, part) in pixels.chunks(1 << 20).enumerate() {
        assert!(part == &bytes[(at % 16) << 20..][..part.len()], "MiB {at} of the picture");
    }
    guest.assert_all_answered();
}

/// Sends a long command with short ones behind it, in one go: how many were answered before it.
#[track_caller]
pub(crate) fn order(guest: &mut Guest, long: &Request, short: &[Request]) -> usize {
    let queue = guest.queue(Lane::Control);
    let mut add = |request: &Request| queue.add(&request.bytes(), request.room(), &Layout::default()).expect("room");
    let long = add(long);
    for request in short {
        add(request);
    }
    guest.publish(Lane::Control);
    let (started, mut before, mut open, mut seen) = (Instant::now(), 0, short.len() + 1, false);
    while open > 0 {
        assert!(started.elapsed() < DEADLINE, "{open} answers missing");
        let Some(used) = guest.queue(Lane::Control).poll_used() else {
            std::thread::yield_now();
            continue;
        };
        let kind = u32::from_le_bytes(used.response[..4].try_into().expect("a header"));
        assert!((0x1100..0x1200).contains(&kind), "answered {kind:#x}");
        seen |= used.token == long;
        before += usize::from(!seen);
        open -= 1;
    }
    before
}

#[test]
fn spec_31_a_page_flip_during_a_frame_never_shows_the_old_picture_on_the_new_one() {
    let (mut guest, viewers) = with_screens(1);
    let (first, second) = (Drawing::new(&mut guest, 1, 1024, 768), Drawing::new(&mut guest, 2, 1024, 768));
    first.show(&mut guest, 0);
    let _ = viewers[0].take();
    // 3 MiB take several turns, and the flip comes between them.
    let flush = guest.add(Lane::Control, &Request::flush(1, first.whole()));
    let flip = guest.add(Lane::Control, &Request::set_scanout(0, 2, second.whole()));
    guest.publish(Lane::Control);
    guest.wait(flush).ok();
    guest.wait(flip).ok();
    let shown = viewers[0].take();
    let flipped = shown.iter().position(|shown| matches!(shown, Shown::Attached { .. })).expect("a flip");
    assert!(shown[flipped + 1..].is_empty(), "the old picture was drawn on the new one");
    second.flush(&mut guest);
    assert_eq!(viewers[0].picture(), (1024, 768, second.bytes));
}

#[test]
fn spec_31_a_display_that_goes_never_keeps_a_flush_from_its_answer() {
    let (mut guest, viewers) = with_screens(2);
    let drawing = Drawing::new(&mut guest, 1, 1024, 768);
    drawing.show(&mut guest, 0);
    drawing.show(&mut guest, 1);
    viewers[0].hold_frames(true);
    let held = guest.submit(&Request::flush(1, drawing.whole()));
    guest.settle();
    assert!(guest.device().disconnect(0).wait().expect("a device").expect("a scanout"));
    assert_eq!(viewers[0].take().pop(), Some(Shown::Dropped));
    viewers[0].hold_frames(false);
    guest.wait(held).ok();
    assert_eq!(frame_behind_attach(&viewers[1]), drawing.bytes);
    // Gone between two parts of a frame, with nobody left to show them to.
    for scanout in 0..2 {
        let flush = guest.submit(&Request::flush(1, drawing.whole()));
        guest.device().disconnect(scanout).wait().expect("a device").expect("a scanout");
        guest.wait(flush).ok();
    }
    guest.assert_all_answered();
}

#[track_caller]
fn frame_behind_attach(viewer: &Viewer) -> Vec<u8> {
    let pixels = viewer.take().into_iter().filter_map(|shown| match shown {
        Shown::Drawn(_, rows) => Some(rows),
        _ => None,
    });
    pixels.flatten().collect()
}

#[test]
fn spec_31_a_reset_amid_a_long_copy_never_leaves_anything_of_it() {
    let (builder, viewers) = screens(Builder::new(), 1);
    let mut guest = Guest::with_options(builder, GuestOptions { ram: 64 << 20, ..GuestOptions::default() });
    for round in 0..3 {
        let large = Drawing::untransferred(&mut guest, 1, B8G8R8X8, 1999, 1000);
        large.show(&mut guest, 0);
        if round == 2 {
            viewers[0].hold_frames(true);
        }
        guest.submit(&Request::transfer_2d(1, large.whole(), 0));
        let last = guest.submit(&Request::flush(1, large.whole()));
        if round > 0 {
            guest.settle();
        }
        guest.reset();
        assert!(!guest.has_answer(&last));
        viewers[0].hold_frames(false);
        assert_eq!(viewers[0].take().pop(), Some(Shown::Detached));
        guest.activate();
        // Nothing comes after the reset, and the next driver finds nothing.
        guest.settle();
        assert_untouched(&viewers[0]);
        refused(&mut guest, &Request::flush(1, large.whole()), ERR_INVALID_RESOURCE_ID);
        guest.ram().free(vm_memory::GuestAddress(large.address), large.bytes.len());
        let small = Drawing::new(&mut guest, 1, 8, 8);
        assert_eq!(small.look(&mut guest, 0, &viewers[0]), small.bytes);
        done(&mut guest, &Request::unref(1));
        let _ = viewers[0].take();
    }
}

#[test]
fn spec_31_a_display_that_replaces_another_amid_a_frame_never_lacks_a_part() {
    let (mut guest, viewers) = with_screens(1);
    let drawing = Drawing::new(&mut guest, 1, 1024, 768);
    done(&mut guest, &Request::set_scanout(0, 1, [24, 18, 1000, 750]));
    for _ in 0..4 {
        let flush = guest.submit(&Request::flush(1, drawing.whole()));
        let (screen, viewer) = Screen::new();
        guest.device().connect(0, Monitor::new(800, 600), screen).wait().expect("a device").expect("a scanout");
        guest.wait(flush).ok();
        guest.settle();
        // Its own first picture may come a turn or two later.
        let started = Instant::now();
        while viewer.picture().2 != crop(&drawing.bytes, 1024, [24, 18, 1000, 750]) {
            assert!(started.elapsed() < DEADLINE, "a part of the picture never came");
            guest.settle();
        }
    }
    assert_eq!(viewers[0].take().pop(), Some(Shown::Dropped));
    guest.assert_all_answered();
}

#[test]
fn spec_31_no_flush_is_ever_lost_while_a_display_is_busy() {
    let (mut guest, viewer) = with_screen();
    let mut drawing = Drawing::new(&mut guest, 1, 16, 16);
    drawing.show(&mut guest, 0);
    viewer.hold_frames(true);
    let _ = viewer.take();
    let mut flushes = Vec::new();
    for seed in 0..5 {
        drawing.redraw(&guest, seed);
        let transfer = guest.submit(&Request::transfer_2d(1, drawing.whole(), 0));
        flushes.push(guest.submit(&Request::flush(1, drawing.whole()).fenced(u64::from(seed) + 1)));
        guest.wait(transfer).ok();
        guest.settle();
        assert_eq!(viewer.picture().2, drawing.bytes, "frame {seed}");
    }
    assert!(!flushes.iter().any(|token| guest.has_answer(token)), "a flush was answered while its display was busy");
    viewer.hold_frames(false);
    for (fence, flush) in (1..).zip(flushes) {
        assert_eq!(guest.wait(flush).header.fence_id.get(), fence);
    }
}
