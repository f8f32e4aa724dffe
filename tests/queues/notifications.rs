//! Kicks and interrupts: none too many, and never one too few.

use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::features::{EVENT_IDX, OFFERED};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Request, Token};

use crate::{counters, cursor_lives, guest_with, take_used, until};

/// Submits one by one with interrupts off or on, and says how many interrupts were sent and how many suppressed.
fn signals(guest: &mut Guest, lane: Lane, wanted: bool, count: u64) -> (u64, u64) {
    guest.queue(lane).set_interrupts(wanted);
    let before = counters(guest);
    for round in 1..=count {
        let request = if lane == Lane::Control { Request::display_info() } else { Request::move_cursor(0, (10, 20)) };
        let _ = guest.submit_on(lane, &request);
        take_used(guest, lane, 1);
        let done = || {
            let now = counters(guest);
            now.interrupts + now.interrupts_suppressed - before.interrupts - before.interrupts_suppressed
        };
        until("the turn has ended", || done() >= round);
    }
    let now = counters(guest);
    (now.interrupts - before.interrupts, now.interrupts_suppressed - before.interrupts_suppressed)
}

#[test]
fn a_driver_that_wants_no_interrupts_is_never_interrupted_and_one_that_does_is_never_forgotten() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        for lane in [Lane::Control, Lane::Cursor] {
            let mut guest = guest_with(features);
            assert_eq!(signals(&mut guest, lane, false, 50), (0, 50), "features {features:#x}");
            let (sent, _) = signals(&mut guest, lane, true, 50);
            assert!(sent > 0, "features {features:#x}: interrupts were not switched on again");
            assert_eq!(signals(&mut guest, lane, false, 50), (0, 50), "features {features:#x}");
            // Sleeps until the interrupt, so it must come.
            guest.queue(lane).set_interrupts(true);
            guest.settle();
            cursor_lives(&mut guest);
        }
    }
}

#[test]
fn a_batch_of_commands_never_raises_more_than_one_interrupt() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let mut guest = guest_with(features);
        let before = counters(&guest);
        let tokens: Vec<Token> = (0..32).map(|_| guest.add(Lane::Control, &Request::display_info())).collect();
        guest.publish(Lane::Control);
        // The used ring is left alone until the device has spoken: so one interrupt is due, not none.
        until("the device interrupts", || counters(&guest).interrupts > before.interrupts);
        until("all are popped", || counters(&guest).commands == before.commands + 32);
        tokens.into_iter().for_each(|token| drop(guest.wait(token).ok()));
        let now = counters(&guest);
        assert_eq!(now.interrupts - before.interrupts, 1, "features {features:#x}");
        assert_eq!(now.interrupts_suppressed, before.interrupts_suppressed);
    }
}

#[test]
fn spurious_kicks_are_never_more_than_a_look_at_the_ring() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let mut guest = guest_with(features);
        guest.settle();
        let before = counters(&guest);
        for _ in 0..1000 {
            guest.kick(Lane::Control);
            guest.kick(Lane::Cursor);
        }
        cursor_lives(&mut guest);
        guest.settle();
        let now = counters(&guest);
        assert_eq!(now.commands - before.commands, 5);
        assert!(now.interrupts - before.interrupts <= 5, "interrupts for nothing");
        assert!(now.kicks > before.kicks);
        guest.assert_all_answered();
    }
}

#[test]
fn requests_that_came_before_activation_are_never_lost() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        for kicked in [true, false] {
            let device = Builder::new().spawn().expect("a device");
            let mut guest = Guest::powered_off(device, GuestOptions { features, ..GuestOptions::default() });
            let control = guest.add(Lane::Control, &Request::display_info());
            let cursor = guest.add(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
            for lane in [Lane::Control, Lane::Cursor] {
                let _ = guest.queue(lane).publish();
                if kicked {
                    guest.kick(lane);
                }
            }
            assert_eq!(counters(&guest).commands, 0, "served before DRIVER_OK");
            guest.activate();
            guest.wait(control).ok();
            guest.wait_on(Lane::Cursor, cursor).ok();
            guest.settle();
            guest.assert_all_answered();
        }
    }
}

#[test]
fn indices_that_wrap_never_lose_a_command_or_a_notification() {
    for (features, batch) in [(OFFERED, 61), (OFFERED & !EVENT_IDX, 64)] {
        let mut guest = guest_with(features);
        let request = Request::set_scanout(0, 0, [0, 0, 64, 64]);
        let (mut left, mut served) = (70_000, 0);
        while left > 0 {
            let count = batch.min(left);
            let tokens: Vec<Token> = (0..count).map(|_| guest.add(Lane::Control, &request)).collect();
            guest.publish(Lane::Control);
            for token in tokens {
                guest.wait(token).ok();
                served += 1;
            }
            left -= count;
        }
        assert_eq!((served, counters(&guest).commands), (70_000, 70_000));
        guest.assert_all_answered();
        assert_eq!(counters(&guest).rings_broken, 0);
    }
}
