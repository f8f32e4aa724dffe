//! Displays that take their time over a frame: a flush waits for them, up to the deadline, and nobody else does.

use std::time::{Duration, Instant};

use virtio_gpu_uring::testing::{DEADLINE, Guest, Lane, Request, Screen, Shown, Token};
use virtio_gpu_uring::{Builder, Limits, Monitor, NullDisplay};

use crate::{area, attached, connect, image, show, soon, with_screen};

const WHOLE: [u32; 4] = [0, 0, 64, 48];

fn impatient() -> Builder {
    Builder::new().limits(Limits { deadline: Duration::from_millis(60), ..Limits::default() })
}

/// A flush that its display holds, and the device has begun.
fn held(guest: &mut Guest, resource: u32) -> Token {
    let frames = guest.device().counters().frames;
    let token = guest.submit(&Request::flush(resource, WHOLE));
    guest.settle();
    assert_eq!(guest.device().counters().frames, frames + 1);
    assert!(!guest.has_answer(&token), "answered while its frame is held");
    token
}

#[test]
fn a_flush_is_never_answered_before_its_frame_is_done_and_holds_up_nobody_else() {
    let (mut guest, viewer) = with_screen(Builder::new().scanouts(2));
    let (screen, other) = Screen::new();
    connect(&guest, 1, Monitor::new(64, 48), screen);
    show(&mut guest, 0, 7, [64, 48]);
    show(&mut guest, 1, 8, [64, 48]);
    image(&mut guest, 9, [64, 64], 9);
    for _ in 0..5 {
        let _ = (viewer.take(), other.take());
        viewer.hold_frames(true);
        let token = held(&mut guest, 7);
        // The other display, what is no picture, and the cursor even of this one.
        guest.command(&Request::flush(8, WHOLE)).ok();
        assert_eq!(other.take().last(), Some(&Shown::Frame(area(64, 48))));
        image(&mut guest, 30, [16, 16], 1);
        guest.command(&Request::unref(30)).ok();
        let update = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 9, (1, 2), (0, 0)));
        guest.wait_on(Lane::Cursor, update).ok();
        let moved = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (3, 4)));
        guest.wait_on(Lane::Cursor, moved).ok();
        assert_eq!(viewer.take().last(), Some(&Shown::CursorMoved((3, 4))));
        guest.settle();
        assert!(!guest.has_answer(&token));
        viewer.hold_frames(false);
        guest.wait(token).ok();
    }
    assert_eq!(guest.device().counters().frames_late, 0);
    guest.assert_all_answered();
}

#[test]
fn a_frame_that_is_never_done_never_keeps_its_flush_for_ever() {
    let (mut guest, viewer) = with_screen(impatient());
    show(&mut guest, 0, 7, [64, 48]);
    let _ = viewer.take();
    viewer.hold_frames(true);
    for late in 1..=3 {
        let started = Instant::now();
        let token = guest.submit(&Request::flush(7, WHOLE));
        let next = guest.submit(&Request::flush(7, [1, 1, 2, 2]));
        guest.wait(token).ok();
        assert!(started.elapsed() >= Duration::from_millis(55), "answered before the deadline");
        guest.wait(next).ok();
        assert!(started.elapsed() < DEADLINE / 4, "it took {:?}", started.elapsed());
        assert_eq!(guest.device().counters().frames_late, 2 * late);
    }
    viewer.hold_frames(false);
    guest.command(&Request::flush(7, WHOLE)).ok();
    assert_eq!(guest.device().counters().frames_late, 6);
    let frames = viewer.take().into_iter().filter(|shown| matches!(shown, Shown::Frame(_))).count();
    assert_eq!((frames, guest.device().counters().frames), (7, 7));
}

#[test]
fn every_display_that_is_late_over_a_frame_is_counted() {
    let (mut guest, first) = with_screen(impatient().scanouts(3));
    let (screen, second) = Screen::new();
    connect(&guest, 1, Monitor::new(64, 48), screen);
    let (screen, quick) = Screen::new();
    connect(&guest, 2, Monitor::new(64, 48), screen);
    show(&mut guest, 0, 7, [64, 48]);
    for scanout in [1, 2] {
        guest.command(&Request::set_scanout(scanout, 7, WHOLE)).ok();
    }
    first.hold_frames(true);
    second.hold_frames(true);
    guest.command(&Request::flush(7, WHOLE)).ok();
    assert_eq!(quick.take().last(), Some(&Shown::Frame(area(64, 48))));
    let counters = guest.device().counters();
    assert_eq!((counters.frames, counters.frames_late), (3, 2), "frames, late ones");
}

#[test]
fn a_display_that_goes_with_a_frame_in_its_hands_never_takes_the_flush_along() {
    for replaced in [false, true] {
        let (mut guest, viewer) = with_screen(impatient());
        show(&mut guest, 0, 7, [64, 48]);
        viewer.hold_frames(true);
        let frame = guest.submit(&Request::flush(7, WHOLE));
        crate::until("the frame has begun", || guest.device().counters().frames == 1);
        let next = if replaced {
            let (screen, next) = Screen::new();
            connect(&guest, 0, Monitor::new(64, 48), screen);
            Some(next)
        } else {
            assert!(soon(guest.device().disconnect(0)).expect("a scanout"));
            None
        };
        assert_eq!(viewer.take().last(), Some(&Shown::Dropped));
        guest.settle();
        guest.wait(frame).ok();
        guest.command(&Request::flush(7, WHOLE)).ok();
        if let Some(next) = next {
            assert_eq!(next.take().last(), Some(&Shown::Frame(area(64, 48))));
        }
        guest.assert_all_answered();
    }
}

#[test]
fn a_picture_that_changes_while_a_frame_is_held_never_waits_for_it() {
    let (mut guest, viewer) = with_screen(Builder::new());
    show(&mut guest, 0, 7, [64, 48]);
    image(&mut guest, 8, [32, 32], 8);
    let _ = viewer.take();
    viewer.hold_frames(true);
    let token = held(&mut guest, 7);
    guest.command(&Request::set_scanout(0, 8, [0, 0, 32, 32])).ok();
    assert_eq!(viewer.take().last(), Some(&attached(32, 32)));
    guest.command(&Request::set_scanout(0, 0, [0; 4])).ok();
    assert_eq!(viewer.take(), [Shown::Detached]);
    assert!(!guest.has_answer(&token), "the frame is still held");
    viewer.hold_frames(false);
    guest.wait(token).ok();
}

#[test]
fn a_reset_never_waits_longer_than_its_deadline_for_a_frame() {
    let (mut guest, viewer) = with_screen(impatient());
    for _ in 0..3 {
        viewer.hold_frames(false);
        show(&mut guest, 0, 7, [64, 48]);
        viewer.hold_frames(true);
        let _never_answered = guest.submit(&Request::flush(7, WHOLE));
        guest.settle();
        let started = Instant::now();
        guest.reset();
        assert!(started.elapsed() < DEADLINE / 4, "the reset took {:?}", started.elapsed());
        assert!(viewer.take().contains(&Shown::Detached));
        guest.activate();
        guest.settle();
        guest.assert_all_answered();
    }
    let started = Instant::now();
    show(&mut guest, 0, 7, [64, 48]);
    let _never_answered = guest.submit(&Request::flush(7, WHOLE));
    guest.settle();
    drop(guest);
    assert!(started.elapsed() < DEADLINE / 4);
    assert_eq!(viewer.take().last(), Some(&Shown::Dropped));
}

#[test]
fn a_long_flush_never_holds_up_a_short_one_elsewhere() {
    const SIDE: u32 = 4096;
    let (mut guest, viewer) = with_screen(Builder::new().display(1, Monitor::new(SIDE, SIDE), NullDisplay));
    show(&mut guest, 0, 7, [64, 48]);
    guest.command(&Request::create_2d(8, 2, SIDE, SIDE)).ok();
    guest.command(&Request::set_scanout(1, 8, [0, 0, SIDE, SIDE])).ok();
    let _ = viewer.take();
    let long = guest.add(Lane::Control, &Request::flush(8, [0, 0, SIDE, SIDE]));
    let short = guest.add(Lane::Control, &Request::flush(7, WHOLE));
    guest.publish(Lane::Control);
    let mut order = Vec::new();
    crate::until("both are answered", || {
        order.extend(guest.queue(Lane::Control).poll_used().map(|used| used.token));
        order.len() == 2
    });
    assert_eq!(order, [short, long], "64 MiB were drawn before 12 KiB");
}
