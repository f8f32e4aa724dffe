//! Items 21 to 24: when queues may be touched, notifications both ways, the order of completions, and failure.

use virtio_gpu_uring::protocol::features::{EVENT_IDX, OFFERED};
use virtio_gpu_uring::testing::{Lane, Misbehaviour, Request, Screen, Token};
use virtio_gpu_uring::{Builder, Monitor};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::driver::{LANES, counted, powered_off, question, start, take, turns, until, used_ring, with_slow_flush};

#[test]
fn spec_21_no_buffer_is_used_and_nothing_is_notified_before_driver_ok() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let mut guest = powered_off(Builder::new(), features);
        let tokens = LANES.map(|lane| guest.submit_on(lane, &question(lane)));
        LANES.into_iter().for_each(|lane| guest.kick(lane));
        turns(&guest);
        guest.device().acknowledge(features).expect("features");
        turns(&guest);
        for lane in LANES {
            assert_eq!(used_ring(&mut guest, lane), (0, 0), "{lane:?} was touched");
        }
        assert_eq!(guest.device().counters().commands, 0);
        let told = start(&guest, features);
        for (lane, token) in LANES.into_iter().zip(tokens) {
            guest.wait_on(lane, token).ok();
            turns(&guest);
            assert_eq!(told.queue(lane), 1);
        }
    }
}

#[test]
fn spec_21_no_queue_is_touched_and_nothing_is_notified_after_a_reset() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let (mut guest, told) = counted(Builder::new(), features);
        let _unanswered = LANES.map(|lane| [(); 10].map(|()| guest.submit_on(lane, &question(lane))));
        guest.device().reset().wait().expect("a device");
        let quiet = (LANES.map(|lane| used_ring(&mut guest, lane)), told.all(), guest.device().counters());
        let _unheard = LANES.map(|lane| [(); 5].map(|()| guest.add(lane, &question(lane))));
        for lane in LANES {
            let _ = guest.queue(lane).publish();
            guest.kick(lane);
        }
        let (screen, _viewer) = Screen::new();
        guest.device().connect(0, Monitor::new(640, 480), screen).wait().expect("a device").expect("a display");
        turns(&guest);
        let after = (LANES.map(|lane| used_ring(&mut guest, lane)), told.all(), guest.device().counters());
        assert_eq!(after, quiet);
        // And again from the start.
        guest.reset();
        guest.activate();
        guest.settle();
        guest.assert_all_answered();
    }
}

#[test]
fn spec_21_a_command_under_way_is_never_answered_after_a_reset() {
    let (mut guest, told, _token, viewer) = with_slow_flush(OFFERED);
    let before = (used_ring(&mut guest, Lane::Control), told.all());
    let reset = guest.device().reset();
    viewer.hold_frames(false);
    reset.wait().expect("a device");
    turns(&guest);
    assert_eq!((used_ring(&mut guest, Lane::Control), told.all()), before);
    assert_eq!(guest.device().counters().requests_lost, 0);
    guest.reset();
    guest.activate();
    guest.settle();
    guest.assert_all_answered();
}

#[test]
fn spec_21_the_reset_of_a_single_queue_is_not_offered() {
    const RING_RESET: u64 = 1 << 40;
    let guest = powered_off(Builder::new(), OFFERED);
    assert_eq!(guest.device().features() & RING_RESET, 0);
    guest.device().acknowledge(OFFERED | RING_RESET).expect_err("not offered");
}

#[test]
fn spec_22_a_driver_is_interrupted_where_it_wants_to_be_and_never_where_not() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let (mut guest, told) = counted(Builder::new(), features);
        for lane in LANES {
            for round in 0..3 {
                let before = told.queue(lane);
                guest.queue(lane).set_interrupts(false);
                for _ in 0..20 {
                    let _ = guest.submit_on(lane, &question(lane));
                    take(&mut guest, lane);
                }
                assert_eq!(told.queue(lane), before, "{lane:?} with {features:#x}, round {round}");
                guest.queue(lane).set_interrupts(true);
                for count in 1..=5 {
                    let _ = guest.submit_on(lane, &question(lane));
                    // Not looked at before: a driver that is awake needs no interrupt.
                    until("the driver is interrupted", || told.queue(lane) > before + count - 1);
                    take(&mut guest, lane);
                    assert_eq!(told.queue(lane), before + count, "{lane:?} with {features:#x}, round {round}");
                }
            }
        }
        let [.., config, resets] = told.all();
        assert_eq!((config, resets), (0, 0));
    }
}

#[test]
fn spec_22_with_event_idx_the_flags_of_neither_ring_mean_anything() {
    let (mut guest, told) = counted(Builder::new(), OFFERED);
    for lane in LANES {
        // VIRTQ_AVAIL_F_NO_INTERRUPT is to be ignored.
        let flags = guest.queue(lane).device_queue().avail_ring();
        guest.ram().write(GuestAddress(flags), &1u16.to_le_bytes());
        for count in 1..=5 {
            let _ = guest.submit_on(lane, &question(lane));
            until("the driver is interrupted", || told.queue(lane) > count - 1);
            take(&mut guest, lane);
            assert_eq!(told.queue(lane), count, "{lane:?}");
            assert_eq!(used_ring(&mut guest, lane).0, 0, "VIRTQ_USED_F_NO_NOTIFY must not be set");
        }
    }
}

#[test]
fn spec_22_a_request_whose_kick_the_device_does_not_want_is_served_all_the_same() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let (mut guest, _) = counted(Builder::new(), features);
        for burst in [1, 2, 7, 40, 1, 1, 64, 3] {
            let tokens: Vec<Token> = (0..burst).map(|_| guest.submit(&Request::display_info())).collect();
            tokens.into_iter().for_each(|token| drop(guest.wait(token).ok()));
        }
        // One that is idle always wants to be kicked.
        for lane in LANES {
            turns(&guest);
            let _ = guest.add(lane, &question(lane));
            assert!(guest.queue(lane).publish(), "an idle device sleeps for ever");
            guest.kick(lane);
            take(&mut guest, lane);
            assert!(used_ring(&mut guest, lane).0 <= 1, "flags of the used ring that do not exist");
        }
    }
}

#[test]
fn spec_22_kicks_for_nothing_do_nothing() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        let (mut guest, told) = counted(Builder::new(), features);
        for _ in 0..500 {
            LANES.into_iter().for_each(|lane| guest.kick(lane));
        }
        turns(&guest);
        assert_eq!((told.all(), guest.device().counters().commands), ([0; 4], 0));
        guest.settle();
    }
}

#[test]
fn spec_23_in_order_use_is_not_offered_and_not_promised() {
    const IN_ORDER: u64 = 1 << 35;
    let (mut guest, _told, slow, viewer) = with_slow_flush(OFFERED);
    assert_eq!(guest.device().features() & IN_ORDER, 0);
    let quick = guest.submit(&Request::display_info());
    assert_eq!(take(&mut guest, Lane::Control).token, quick, "the later request comes back first");
    viewer.hold_frames(false);
    assert_eq!(take(&mut guest, Lane::Control).token, slow);
}

#[test]
fn spec_24_a_broken_queue_asks_for_a_reset_once_and_nothing_else_does() {
    for lane in LANES {
        let (mut guest, told) = counted(Builder::new(), OFFERED);
        // A chain that makes no sense is no reason.
        let request = question(lane);
        for how in Misbehaviour::ALL {
            let _ = guest.queue(lane).add_misbehaving(how, &request.bytes(), 408).expect("room");
            guest.publish(lane);
            take(&mut guest, lane);
        }
        assert_eq!(told.all()[3], 0);
        if guest.queue(lane).publish_raw_head(u16::MAX) {
            guest.kick(lane);
        }
        until("the driver is told", || told.all()[3] == 1);
        let used = used_ring(&mut guest, lane);
        let _ = guest.submit_on(lane, &request);
        guest.kick(lane);
        // The other queue goes on.
        let other = LANES.into_iter().find(|other| *other != lane).expect("there are two");
        let _ = guest.submit_on(other, &question(other));
        take(&mut guest, other);
        assert_eq!(used_ring(&mut guest, lane), used, "a broken queue was served");
        assert_eq!(told.all()[3], 1, "told twice");
        guest.reset();
        guest.activate();
        guest.settle();
        assert_eq!(guest.needs_resets(), 1, "a reset did not mend it");
    }
}
