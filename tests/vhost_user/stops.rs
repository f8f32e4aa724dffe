//! Rings that are stopped and started: by a machine that pauses, by one that is reset, one by one, and by another driver.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use virtio_gpu_uring::protocol::features::{BLOB_ALIGNMENT, RESOURCE_BLOB};
use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_RESOURCE_ID;
use virtio_gpu_uring::testing::census::{fds_named, maps_named};
use virtio_gpu_uring::testing::{HostPeer, Request};

use crate::front_end::{ALL_PROTOCOL, Asked, request, words};
use crate::machine::{CONTROL, CURSOR, Channel, Host, Machine, PAGE, memfd};

/// A machine with a channel, and resource 7, which is mapped at the start of the region.
#[track_caller]
fn with_a_mapped_blob() -> (Machine, Channel, HostPeer) {
    let mut machine = Machine::boot(Host::new());
    let (channel, peer) = machine.open_channel(1, 1);
    machine.blob(7, &channel, &peer, &memfd(2 * PAGE).0, 2 * PAGE);
    machine.map(7, 0);
    (machine, channel, peer)
}

/// Requests that the control ring has seen.
fn commands(machine: &mut Machine) -> u32 {
    machine.settle();
    let [control, _] = machine.stop();
    control
}

#[test]
fn a_stop_never_hands_out_another_position_than_the_rings_have_come_to() {
    let mut machine = Machine::boot(Host::new());
    for _ in 0..5 {
        machine.settle();
    }
    for at in [0, 1] {
        let token = machine.add(CURSOR, &Request::move_cursor(0, (at, at)));
        machine.kick(CURSOR);
        machine.wait_on(CURSOR, token).ok();
    }
    assert_eq!(machine.stop(), [5, 2]);
    machine.leave();
}

#[test]
fn a_stop_and_a_start_never_lose_what_the_guest_has() {
    let (mut machine, channel, peer) = with_a_mapped_blob();
    let outstanding = machine.submit(&channel.poll());
    machine.settle();
    for round in 0..3 {
        let bases = machine.stop();
        assert!(!machine.has_answer(&outstanding), "round {round}");
        machine.go_on(bases);
        machine.settle();
    }
    peer.send(b"after", &[]);
    machine.wait(outstanding).ok();
    assert_eq!(channel.message(&machine).0, b"after");
    // It is still mapped: another blob does not fit there, and nobody has asked for anything.
    assert!(!machine.asks.is_ready(), "the front-end was asked for something");
    machine.blob(8, &channel, &peer, &memfd(2 * PAGE).0, 2 * PAGE);
    let answer = machine.command(&Request::map(8, 0));
    assert!((0x1200..0x1300).contains(&answer.kind()), "the mapping was forgotten");
    let unmap = machine.submit(&Request::unmap(7));
    machine.asks.serve(Asked::UNMAP);
    machine.wait(unmap).ok();
    machine.leave();
}

#[test]
fn nothing_is_answered_between_a_stop_and_a_start() {
    let (mut machine, channel, peer) = with_a_mapped_blob();
    let outstanding = machine.submit(&channel.poll());
    machine.settle();
    let bases = machine.stop();
    let late = machine.submit(&Request::display_info());
    machine.kick(CONTROL);
    peer.send(b"meanwhile", &[]);
    for _ in 0..20 {
        machine.config(64, 4);
        assert!(!machine.has_answer(&outstanding) && !machine.has_answer(&late), "answered by a stopped device");
    }
    machine.go_on(bases);
    machine.wait(late).ok();
    machine.wait(outstanding).ok();
    assert_eq!(channel.message(&machine).0, b"meanwhile");
    machine.leave();
}

#[test]
fn a_stop_never_waits_for_a_front_end_that_does_not_answer() {
    let (mut machine, channel, peer) = with_a_mapped_blob();
    machine.blob(8, &channel, &peer, &memfd(2 * PAGE).0, 2 * PAGE);
    let map = machine.submit(&Request::map(8, 4 * PAGE));
    let asked = machine.asks.next();
    let started = Instant::now();
    let bases = machine.stop();
    assert!(started.elapsed() < Duration::from_secs(2), "a stop took {:?}", started.elapsed());
    assert!(!machine.has_answer(&map));
    machine.asks.answer(&asked, 0);
    machine.go_on(bases);
    machine.wait(map).ok();
    machine.leave();
}

#[test]
fn a_front_end_is_never_asked_for_anything_while_it_has_stopped() {
    let (mut machine, channel, peer) = with_a_mapped_blob();
    for resource in [8, 9] {
        machine.blob(resource, &channel, &peer, &memfd(2 * PAGE).0, 2 * PAGE);
    }
    // Two are wanted before the stop, of which one is asked for, and a third one after it.
    let maps = [(8, 4), (9, 8)].map(|(resource, page)| machine.submit(&Request::map(resource, page * PAGE)));
    let asked = machine.asks.next();
    machine.settle();
    let bases = machine.stop();
    let unmap = machine.submit(&Request::unmap(7));
    machine.asks.answer(&asked, 0);
    // Longer than the device waits for what a front-end tells of its memory after a MAP.
    let from = Instant::now();
    while from.elapsed() < Duration::from_millis(200) {
        machine.config(64, 4);
        assert!(!machine.asks.is_ready(), "asked while it stands still");
    }
    machine.go_on(bases);
    let mut asked = [(); 2].map(|()| {
        let asked = machine.asks.next();
        machine.asks.answer(&asked, 0);
        asked.request
    });
    asked.sort_unstable();
    assert_eq!(asked, [Asked::MAP, Asked::UNMAP]);
    maps.into_iter().chain([unmap]).for_each(|token| drop(machine.wait(token).ok()));
    machine.leave();
}

#[test]
fn a_reset_machine_never_meets_what_its_last_driver_made() {
    for reset_device in [true, false] {
        let (mut machine, channel, _peer) = with_a_mapped_blob();
        let outstanding = machine.submit(&channel.poll());
        machine.settle();
        machine.stop();
        if reset_device {
            machine.front.tell(request::RESET_DEVICE, &[], &[]);
        }
        machine.reset_driver();
        machine.config(0, 16);
        let features = machine.front.ask_long(request::GET_FEATURES);
        machine.front.tell(request::SET_FEATURES, &words(&[], &[features]), &[]);
        machine.go_on([0, 0]);
        assert!(!machine.has_answer(&outstanding));
        machine.command(&Request::unmap(7)).expect_error(ERR_INVALID_RESOURCE_ID);
        let (channel, peer) = machine.open_channel(1, 1);
        machine.blob(7, &channel, &peer, &memfd(2 * PAGE).0, 2 * PAGE);
        machine.map(7, 0);
        assert!(!machine.asks.is_ready(), "a front-end that has forgotten by itself was asked to");
        machine.leave();
    }
}

#[test]
fn a_reset_is_never_put_off_until_the_next_driver() {
    let mut machine = Machine::boot(Host::new());
    let (channel, peer) = machine.open_channel(1, 1);
    let (file, name) = memfd(2 * PAGE);
    machine.blob(7, &channel, &peer, &file, 2 * PAGE);
    machine.map(7, 0);
    drop(file);
    let outstanding = machine.submit(&channel.poll());
    machine.settle();
    // With rings that run, as at a machine's power-on.
    machine.front.tell(request::RESET_DEVICE, &[], &[]);
    assert_eq!((fds_named(&name), maps_named(&name)), (0, 0), "the blob is kept");
    assert!(peer.receive(1).0.is_empty(), "the channel is kept");
    let late = machine.submit(&Request::display_info());
    machine.config(64, 4);
    assert!(!machine.has_answer(&outstanding) && !machine.has_answer(&late), "answered by a device that was reset");
    assert!(!machine.asks.is_ready(), "a front-end that has forgotten by itself was asked to");
    machine.reset_driver();
    machine.go_on([0, 0]);
    machine.settle();
    machine.leave();
}

#[test]
fn a_reset_never_leaves_another_features_to_the_next_driver() {
    let mut machine = Machine::boot(Host::new());
    machine.settle();
    machine.stop();
    machine.front.tell(request::RESET_DEVICE, &[], &[]);
    machine.reset_driver();
    let features = machine.front.ask_long(request::GET_FEATURES) & !(RESOURCE_BLOB | BLOB_ALIGNMENT);
    machine.front.tell(request::SET_FEATURES, &words(&[], &[features]), &[]);
    machine.go_on([0, 0]);
    let address = machine.ram.alloc(PAGE as usize, PAGE as usize).0;
    let blob = machine.command(&Request::guest_blob(1, PAGE, &[(address, PAGE as u32)]));
    assert!((0x1200..0x1300).contains(&blob.kind()), "a blob without the feature: {:#x}", blob.kind());
    machine.leave();
}

#[test]
fn the_cursor_ring_alone_is_never_enough_and_never_in_the_way() {
    let mut machine = Machine::powered(Host::new(), ALL_PROTOCOL);
    machine.start_ring(CURSOR, 0);
    let cursor = machine.add(CURSOR, &Request::move_cursor(0, (1, 1)));
    machine.kick(CURSOR);
    machine.start_ring(CONTROL, 0);
    machine.settle();
    machine.wait_on(CURSOR, cursor).ok();
    machine.leave();
}

#[test]
fn a_driver_without_a_cursor_ring_is_never_refused_and_may_bring_one_later() {
    let mut machine = Machine::powered(Host::new(), ALL_PROTOCOL);
    machine.start_ring(CONTROL, 0);
    machine.command(&Request::create_2d(5, 1, 16, 16)).ok();
    machine.start_ring(CURSOR, 0);
    let cursor = machine.add(CURSOR, &Request::move_cursor(0, (1, 1)));
    machine.kick(CURSOR);
    machine.wait_on(CURSOR, cursor).ok();
    machine.command(&Request::unref(5)).ok();
    machine.leave();
}

#[test]
fn a_stop_of_the_cursor_ring_never_stops_the_other_or_loses_what_it_has() {
    let mut machine = Machine::boot(Host::new());
    machine.command(&Request::create_2d(5, 1, 16, 16)).ok();
    let base = machine.stop_ring(CURSOR);
    machine.settle();
    let cursor = machine.add(CURSOR, &Request::move_cursor(0, (1, 1)));
    machine.start_ring(CURSOR, base);
    machine.wait_on(CURSOR, cursor).ok();
    machine.command(&Request::unref(5)).ok();
    assert_eq!(machine.stop_ring(CURSOR), base + 1);
    machine.leave();
}

#[test]
fn disabling_a_ring_never_makes_it_forget_where_it_is() {
    let mut machine = Machine::boot(Host::new());
    machine.command(&Request::create_2d(5, 1, 16, 16)).ok();
    machine.enable(CONTROL, false);
    let token = machine.submit(&Request::display_info());
    machine.config(64, 4);
    assert!(!machine.has_answer(&token), "a disabled ring was served");
    machine.enable(CONTROL, true);
    machine.wait(token).ok();
    machine.command(&Request::unref(5)).ok();
    assert_eq!(machine.stop_ring(CONTROL), 3);
    machine.leave();
}

#[test]
fn another_kick_while_the_ring_runs_is_never_left_unwatched() {
    let mut machine = Machine::boot(Host::new());
    machine.settle();
    machine.ports[CONTROL].kick = crate::machine::event();
    machine.front.tell(request::SET_VRING_KICK, &words(&[], &[0]), &[machine.ports[CONTROL].kick.as_fd()]);
    machine.settle();
    assert_eq!(commands(&mut machine), 3);
    machine.leave();
}
