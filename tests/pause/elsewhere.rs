//! The state of queues, out of one device and into another: the guest's rings go on where they were.

use std::time::Instant;

use virtio_gpu_uring::testing::{DEADLINE, Guest, Lane, Layout, Prepared, Request, Token};
use virtio_gpu_uring::{Activation, Builder, Device, Paused};
use virtio_queue::Queue;

use crate::{Memory, Stage, small, soon};

/// What a VMM restores from a saved state: queues that go on, and everything else as ever.
fn activation(guest: &Guest, paused: &Paused) -> Activation<Memory> {
    let mut activation = guest.activation();
    let restored = |state: Option<_>| Queue::try_from(state.expect("a queue")).expect("a valid state");
    activation.control.queue = restored(paused.control);
    activation.cursor.queue = restored(paused.cursor);
    activation
}

/// A new device that goes on with the queues of a paused one.
fn successor(guest: &Guest, features: u64, paused: &Paused) -> Device<Memory> {
    let device = Builder::new().spawn().expect("a device");
    device.acknowledge(features).expect("served");
    soon(device.activate(activation(guest, paused))).expect("queues that can be served");
    device
}

#[test]
fn a_state_never_says_less_than_the_driver_set_up() {
    for event_idx in [true, false] {
        let mut stage = Stage::start(Builder::new(), small(event_idx));
        for _ in 0..3 {
            stage.guest.settle();
        }
        let cursor = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (0, 0)));
        stage.guest.wait_on(Lane::Cursor, cursor).ok();
        let paused = stage.pause();
        let fresh = stage.guest.activation();
        for (state, queue, served) in [(paused.control, fresh.control.queue, 3), (paused.cursor, fresh.cursor.queue, 1)]
        {
            let state = state.expect("a queue");
            let mut wanted = queue.state();
            (wanted.next_avail, wanted.next_used) = (served, served);
            assert_eq!(state, wanted);
            assert_eq!((state.event_idx_enabled, state.ready), (event_idx, true));
        }
        stage.end();
    }
}

#[test]
fn a_device_that_takes_over_never_misses_what_the_first_one_left() {
    for event_idx in [true, false] {
        let options = small(event_idx);
        let mut stage = Stage::start(Builder::new(), options.clone());
        let mut devices: Vec<Device<Memory>> = Vec::new();
        for hop in 0..20 {
            // Some are served before the pause, or not; kicked or not.
            let mut tokens: Vec<Token> = (0..7).map(|_| stage.guest.submit(&Request::display_info())).collect();
            let paused = match devices.last() {
                None => stage.pause(),
                Some(device) => soon(device.pause()).expect("nothing is under way"),
            };
            tokens.extend((0..3).map(|_| stage.guest.add(Lane::Control, &Request::display_info())));
            let cursor = stage.guest.add(Lane::Cursor, &Request::move_cursor(0, (hop, hop)));
            for lane in [Lane::Control, Lane::Cursor] {
                let _never_kicked = stage.guest.queue(lane).publish();
            }
            devices.push(successor(&stage.guest, options.features, &paused));
            for token in tokens {
                stage.guest.wait(token).ok();
            }
            stage.guest.wait_on(Lane::Cursor, cursor).ok();
            // By kicks as usual.
            stage.guest.settle();
        }
        // Those that were left paused have kept out of it; their end is no end of the queues.
        let served: u64 = devices.iter().map(|device| device.counters().commands).sum();
        assert_eq!(served + stage.guest.device().counters().commands, 20 * (7 + 3 + 1 + 1));
        soon(stage.guest.device().stop());
        devices.drain(..19).for_each(drop);
        stage.guest.settle();
        stage.guest.assert_all_answered();
        drop(devices);
        stage.end();
    }
}

/// Has a device serve `count` requests from the prepared ones, all of them at a time.
fn serve(guest: &mut Guest, prepared: &[Prepared], count: usize) {
    let started = Instant::now();
    let mut done = 0;
    while done < count {
        let queue = guest.queue(Lane::Control);
        for request in prepared {
            let _token = queue.add_prepared(request);
        }
        if queue.publish() {
            guest.kick(Lane::Control);
        }
        let mut left = prepared.len();
        while left > 0 {
            assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for {left} answers");
            match guest.queue(Lane::Control).poll_used_fast() {
                Some(_) => left -= 1,
                None => std::thread::yield_now(),
            }
        }
        done += prepared.len();
    }
}

#[test]
fn indices_that_have_wrapped_are_never_taken_for_earlier_ones() {
    for event_idx in [true, false] {
        let options = small(event_idx);
        let mut stage = Stage::start(Builder::new(), options.clone());
        let request = Request::capset_info(99);
        let prepared: Vec<Prepared> = (0..24)
            .map(|_| {
                let queue = stage.guest.queue(Lane::Control);
                queue.prepare(&request.bytes(), request.room(), &Layout::default()).expect("room")
            })
            .collect();
        let mut paused = stage.pause();
        let mut served = 0u32;
        // Past 65,535 once, and the ring's 64 entries at every position.
        for hop in 0..12 {
            let device = successor(&stage.guest, options.features, &paused);
            let count = if hop < 10 { 6600 } else { 24 };
            serve(&mut stage.guest, &prepared, count);
            served += count as u32;
            paused = soon(device.pause()).expect("nothing is under way");
            let control = paused.control.expect("a queue");
            assert_eq!((control.next_avail, control.next_used), (served as u16, served as u16));
        }
        assert!(served > 1 << 16);
        stage.end();
    }
}

#[test]
fn a_successor_that_is_paused_before_it_serves_hands_on_the_same_state() {
    let options = small(true);
    let mut stage = Stage::start(Builder::new(), options.clone());
    (0..5).for_each(|_| stage.guest.settle());
    let paused = stage.pause();
    let token = stage.guest.submit(&Request::display_info());
    // Paused before the queues come, so that nothing is taken from them.
    let second = Builder::new().spawn::<Memory>().expect("a device");
    soon(second.pause()).expect("nothing is under way");
    second.acknowledge(options.features).expect("served");
    soon(second.activate(activation(&stage.guest, &paused))).expect("activated");
    let handed_on = soon(second.pause()).expect("nothing is under way");
    assert_eq!((handed_on.control, handed_on.cursor), (paused.control, paused.cursor));
    assert!(!stage.guest.has_answer(&token));
    let _third = successor(&stage.guest, options.features, &handed_on);
    stage.guest.wait(token).ok();
    stage.guest.settle();
    stage.end();
}
