//! What the front-end's displays are, as the guest is told: cached, exact, and changed where they change.

use super::super::wire::{Scanout, Update};
use super::*;
use crate::display::Monitor;
use crate::testing::Screen;

#[test]
fn a_guest_is_told_no_other_edid_than_the_front_ends_and_all_of_that() {
    let mut desk = Desk::silent(4);
    let first = DisplayOne { x: 7, y: 9, ..display(1280, 800) };
    let disabled = DisplayOne { enabled: 0, ..display(1, 1) };
    desk.front_end.greet(1, &[first, disabled, display(640, 480), display(800, 600)]);
    // A front-end need not answer for a scanout that is off: QEMU does not.
    let edids = [(0, edid(2, 5)), (2, edid(8, 6)), (3, edid(1, 7))];
    for (scanout, edid) in &edids {
        desk.front_end.tell_edid(*scanout, edid);
    }
    desk.until("the last is connected", |desk| desk.info(3)[4] == 1);
    assert_eq!(desk.info(0), [7, 9, 1280, 800, 1, 0]);
    assert_eq!(desk.info(1), [0; 6]);
    assert_eq!(desk.info(2), [0, 0, 640, 480, 1, 0]);
    for (scanout, edid) in edids {
        assert!(desk.edid(scanout) == edid, "scanout {scanout}");
    }
    assert_eq!(desk.events(), 1);
}

#[test]
fn an_edid_that_is_none_is_told_to_no_guest_and_costs_no_display() {
    let broken = |at: usize| {
        let mut edid = edid(2, 9);
        edid[at] ^= 1;
        edid
    };
    // Another header with the sum intact; a sum; a number of blocks that are not there; nothing.
    let mut header = edid(2, 9);
    (header[0], header[127]) = (1, header[127].wrapping_sub(1));
    let mut blocks = edid(1, 9);
    (blocks[126], blocks[127]) = (200, blocks[127].wrapping_sub(200));
    let made = Monitor::new(1024, 768);
    for bytes in [header, broken(60), broken(200), blocks, Vec::new()] {
        let mut desk = Desk::silent(1);
        desk.front_end.greet(1, &[display(1024, 768)]);
        desk.front_end.tell_edid(0, &bytes);
        desk.until("it is connected", |desk| desk.info(0)[4] == 1);
        let told = desk.edid(0);
        assert!(!told.is_empty() && told[126] as usize == told.len() / 128 - 1 && told != bytes);
        let (screen, _viewer) = Screen::new();
        drop(desk.displays);
        desk.guest.device().connect(0, made.clone(), screen).wait().expect("a device").expect("a display");
        let answer = desk.guest.command(&Request::get_edid(0)).ok();
        assert!(answer[8..].starts_with(&told), "one that is made of the size");
    }
}

#[test]
fn a_front_end_without_edids_is_never_asked_for_one() {
    for features in [0, 2, !1] {
        let mut desk = Desk::silent(1);
        desk.front_end.greet(features, &[display(1024, 768)]);
        desk.until("it is connected", |desk| desk.info(0)[4] == 1);
        assert_eq!(desk.edid(0)[..2], [0, 255]);
        drop(desk.displays);
        desk.front_end.assert_end();
    }
}

#[test]
fn a_refresh_tells_the_guest_what_has_changed_and_nothing_else() {
    let mut desk = Desk::silent(2);
    desk.front_end.greet(1, &[display(1024, 768)]);
    desk.front_end.tell_edid(0, &edid(1, 1));
    desk.until("it is connected", |desk| desk.info(0)[4] == 1);
    desk.clear_events();

    desk.displays.refresh();
    desk.front_end.tell(&[display(1024, 768)]);
    desk.front_end.tell_edid(0, &edid(1, 1));
    // Asked after it has dealt with the answer before.
    desk.displays.refresh();
    desk.front_end.tell(&[display(1600, 1200)]);
    assert_eq!(desk.events(), 0, "nothing has changed");
    desk.front_end.tell_edid(0, &edid(1, 2));
    desk.until("the guest hears of it", |desk| desk.events() == 1);
    assert_eq!((desk.info(0), desk.edid(0)), ([0, 0, 1600, 1200, 1, 0], edid(1, 2)));
    desk.clear_events();

    // The same size, another monitor.
    desk.displays.refresh();
    desk.front_end.tell(&[display(1600, 1200), display(64, 64)]);
    desk.front_end.tell_edid(0, &edid(2, 3));
    desk.front_end.tell_edid(1, &edid(1, 4));
    desk.until("a second one comes", |desk| desk.info(1)[4] == 1);
    assert_eq!((desk.edid(0), desk.edid(1)), (edid(2, 3), edid(1, 4)));
    desk.clear_events();

    desk.displays.refresh();
    desk.front_end.tell(&[DisplayOne { enabled: 0, ..display(1600, 1200) }, display(64, 64)]);
    desk.front_end.tell_edid(1, &edid(1, 4));
    desk.until("the first is off", |desk| desk.events() == 1);
    assert_eq!((desk.info(0), desk.edid(0).len()), ([0; 6], 0));
    assert_eq!(desk.info(1)[4], 1);
}

#[test]
fn a_display_of_another_size_is_not_told_with_the_edid_that_it_had() {
    let mut desk = Desk::silent(1);
    desk.front_end.greet(1, &[display(1024, 768)]);
    desk.front_end.tell_edid(0, &edid(1, 1));
    desk.until("it is connected", |desk| desk.info(0)[4] == 1);
    desk.guest.device().resize(0, 320, 200).wait().expect("a device").expect("a display");
    assert_eq!(desk.info(0)[2..4], [320, 200]);
    let told = desk.edid(0);
    assert!(!told.is_empty() && told != edid(1, 1));
}

#[test]
fn a_display_that_comes_back_is_shown_what_the_guest_shows() {
    let mut desk = Desk::new(&[display(8, 8)]);
    let pixels = noise(3, 8 * 8 * 4);
    desk.image(5, Format::B8G8R8X8, [8, 8], &pixels);
    desk.show(0, 5, [8, 8]);
    let _: Scanout = desk.front_end.message().is(Asked::Scanout);
    desk.displays.refresh();
    desk.front_end.tell(&[]);
    let off: Scanout = desk.front_end.message().is(Asked::Scanout);
    assert_eq!((off.width, off.height), (0, 0));
    desk.displays.refresh();
    desk.front_end.tell(&[display(8, 8)]);
    let on: Scanout = desk.front_end.message().is(Asked::Scanout);
    assert_eq!((on.width, on.height), (8, 8));
    let message = desk.front_end.message();
    let (_, sent) = message.carries::<Update>(Asked::Update);
    assert!(sent == pixels);
}

#[test]
fn hints_that_come_before_an_answer_are_not_asked_one_by_one() {
    let mut desk = Desk::new(&[display(8, 8)]);
    desk.image(5, Format::B8G8R8X8, [8, 8], &noise(1, 256));
    desk.show(0, 5, [8, 8]);
    let _: Scanout = desk.front_end.message().is(Asked::Scanout);
    for _ in 0..1000 {
        desk.displays.refresh();
    }
    let mut asked = 0;
    for _ in 0..10 {
        let flush = desk.guest.submit(&Request::flush(5, [0, 0, 8, 8]));
        loop {
            let message = desk.front_end.message();
            if message.request == Asked::Update as u32 {
                break;
            }
            assert_eq!(message.request, Asked::GetDisplayInfo as u32);
            let mut info = DisplayInfo::new_zeroed();
            info.displays[0] = display(8, 8);
            desk.front_end.answer(Asked::GetDisplayInfo, info.as_bytes());
            asked += 1;
        }
        desk.guest.wait(flush).ok();
    }
    // One was on its way perhaps, before the others came.
    assert!((1..=2).contains(&asked), "asked {asked} times");
}

#[test]
fn a_guest_that_asks_never_waits_for_a_front_end_that_says_nothing() {
    let mut desk = Desk::silent(1);
    assert_eq!(desk.info(0), [0; 6]);
    assert!(desk.edid(0).is_empty());
    desk.front_end.greet(0, &[display(8, 8)]);
    desk.until("it is connected", |desk| desk.info(0)[4] == 1);
    desk.displays.refresh();
    assert_eq!(desk.info(0)[2], 8);
    // The thread waits for an answer that never comes, and ends all the same.
    assert_eq!(desk.front_end.message().request, Asked::GetDisplayInfo as u32);
    drop(desk.displays);
    desk.front_end.assert_end();
}
