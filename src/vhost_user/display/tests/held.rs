//! Questions of a guest while the front-end is asked: they wait for the answer, alone, and not for ever.

use std::time::{Duration, Instant};

use super::super::wire::Scanout;
use super::*;

/// Longer than a test may take.
const LONG: Duration = DEADLINE.saturating_mul(2);

fn size(answer: &crate::testing::Answer) -> [u8; 8] {
    answer.clone().ok()[8..16].try_into().expect("eight bytes")
}

fn told(width: u8, height: u8) -> [u8; 8] {
    [width, 0, 0, 0, height, 0, 0, 0]
}

#[test]
fn a_guest_that_asks_first_is_not_told_that_there_is_no_display() {
    let mut desk = Desk::patient(Patience { first: LONG, next: Duration::ZERO }, 1);
    let info = desk.guest.submit(&Request::display_info());
    let asked = desk.guest.submit(&Request::get_edid(0));
    // All else goes on meanwhile.
    desk.image(1, Format::B8G8R8X8, [8, 8], &noise(1, 256));
    desk.show(0, 1, [8, 8]);
    desk.guest.command(&Request::flush(1, [0, 0, 8, 8])).ok();
    desk.front_end.greet(1, &[display(99, 77)]);
    assert!(!desk.guest.has_answer(&info) && !desk.guest.has_answer(&asked));
    desk.front_end.tell_edid(0, &edid(1, 1));
    assert_eq!(size(&desk.guest.wait(info)), told(99, 77));
    assert!(desk.guest.wait(asked).ok()[8..].starts_with(&edid(1, 1)));
    assert_eq!(desk.front_end.message().is::<Scanout>(Asked::Scanout).width, 8);
}

#[test]
fn a_guest_that_asks_after_a_hint_is_not_told_what_was_before_it() {
    let mut desk = Desk::patient(Patience { first: LONG, next: LONG }, 1);
    desk.front_end.greet(0, &[display(10, 10)]);
    assert_eq!(desk.info(0)[2], 10);
    for round in 11..30 {
        desk.displays.refresh();
        let info = desk.guest.submit(&Request::display_info());
        desk.guest.command(&Request::capset_info(0)).ok();
        // Another hint, when the front-end has been asked already: that asks it again, and the first question does not wait.
        let asked = desk.front_end.message();
        assert_eq!(asked.request, Asked::GetDisplayInfo as u32);
        desk.displays.refresh();
        let mut answer = DisplayInfo::new_zeroed();
        answer.displays[0] = display(round, 10);
        desk.front_end.answer(Asked::GetDisplayInfo, answer.as_bytes());
        assert_eq!(size(&desk.guest.wait(info))[..1], [round as u8]);
        let info = desk.guest.submit(&Request::display_info());
        desk.front_end.tell(&[display(round + 100, 10)]);
        assert_eq!(size(&desk.guest.wait(info))[..1], [round as u8 + 100]);
    }
}

#[test]
fn a_question_waits_no_longer_than_its_time_for_a_front_end_that_is_stuck() {
    let time = Duration::from_millis(30);
    let mut desk = Desk::patient(Patience { first: time, next: time }, 1);
    assert_eq!(desk.info(0), [0; 6]);
    desk.front_end.greet(0, &[display(8, 8)]);
    desk.until("it is connected", |desk| desk.info(0)[4] == 1);
    desk.displays.refresh();
    desk.front_end.message();
    assert_eq!(desk.info(0)[2], 8);
    // Of many hints that nobody follows the first alone is waited for.
    let started = Instant::now();
    for _ in 0..1000 {
        desk.displays.refresh();
        desk.info(0);
    }
    assert!(started.elapsed() < 1000 * time);
}

#[test]
fn no_question_waits_for_a_front_end_that_has_gone_and_no_reset_for_one_that_has_not() {
    let patience = Patience { first: LONG, next: LONG };
    let started = Instant::now();
    let mut desk = Desk::patient(patience, 1);
    let info = desk.guest.submit(&Request::display_info());
    desk.front_end.0.shutdown(std::net::Shutdown::Both).expect("a socket");
    assert_eq!(desk.guest.wait(info).ok()[8..32], [0; 24]);
    desk.displays.refresh();
    assert_eq!(desk.info(0), [0; 6]);

    let mut desk = Desk::patient(patience, 1);
    let unanswered = desk.guest.submit(&Request::display_info());
    desk.guest.command(&Request::capset_info(0)).ok();
    assert!(!desk.guest.has_answer(&unanswered));
    desk.guest.reset();
    desk.guest.activate();
    // The next driver waits for the same.
    let info = desk.guest.submit(&Request::display_info());
    desk.guest.command(&Request::capset_info(0)).ok();
    assert!(!desk.guest.has_answer(&info));
    drop(desk.displays);
    assert_eq!(desk.guest.wait(info).ok()[8..32], [0; 24]);
    assert!(started.elapsed() < LONG);
}
