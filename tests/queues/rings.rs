//! Rings that the driver breaks: reported once, parked, and healed by a reset. And rings that it floods.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use virtio_gpu_uring::protocol::features::{EVENT_IDX, OFFERED};
use virtio_gpu_uring::testing::{Guest, GuestOptions, GuestRam, Lane, Request};
use virtio_gpu_uring::{Builder, Reply};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::{counters, cursor_lives, guest_with, take_used, until, with_channel};

/// Breaks the control queue, and asserts what must hold whatever broke it.
#[track_caller]
fn broken_by(features: u64, break_it: impl FnOnce(&mut Guest) -> bool) {
    let mut guest = guest_with(features);
    guest.settle();
    if break_it(&mut guest) {
        guest.kick(Lane::Control);
    }
    until("the broken ring is reported", || counters(&guest).rings_broken > 0);
    until("the driver is told", || guest.needs_resets() > 0);
    // Parked: kicks change nothing, and nothing is popped any more.
    let commands = counters(&guest).commands;
    let _ = guest.submit(&Request::display_info());
    for _ in 0..8 {
        guest.kick(Lane::Control);
        cursor_lives(&mut guest);
    }
    let counted = counters(&guest);
    assert_eq!((counted.rings_broken, guest.needs_resets()), (1, 1), "reported more than once");
    assert_eq!(counted.needs_resets, 1);
    assert_eq!(counted.commands - commands, 32, "a parked queue was served");
    guest.reset();
    guest.activate();
    guest.settle();
    cursor_lives(&mut guest);
    guest.assert_all_answered();
    assert_eq!(counters(&guest).rings_broken, 1, "a reset did not heal the ring");
}

#[test]
fn a_head_out_of_range_is_never_served_nor_reported_twice() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        for head in [256, 257, u16::MAX] {
            broken_by(features, |guest| guest.queue(Lane::Control).publish_raw_head(head));
        }
    }
}

#[test]
fn an_available_index_that_jumps_too_far_or_back_is_never_followed() {
    for features in [OFFERED, OFFERED & !EVENT_IDX] {
        for jump in [257, 0x8000, u16::MAX] {
            broken_by(features, |guest| guest.queue(Lane::Control).break_avail_index(jump));
        }
    }
}

#[test]
fn an_available_index_that_uncovers_stale_heads_never_kills_the_device() {
    for jump in [1, 2, 17, 256] {
        let mut guest = guest_with(OFFERED);
        (0..40).for_each(|_| guest.settle());
        if guest.queue(Lane::Control).break_avail_index(jump) {
            guest.kick(Lane::Control);
        }
        // Nothing else is asked meanwhile: stale chains write to buffers that the driver has freed.
        assert_eq!(take_used(&mut guest, Lane::Control, jump.into()).len(), usize::from(jump));
        guest.reset();
        guest.activate();
        guest.settle();
        guest.assert_all_answered();
    }
}

#[test]
fn a_head_that_is_reused_while_in_flight_is_never_answered_twice() {
    let (mut guest, mut channel, peer) = with_channel(64);
    let poll = channel.poll(&mut guest);
    guest.settle();
    let head = poll.head();
    if guest.queue(Lane::Control).publish_raw_head(head) {
        guest.kick(Lane::Control);
    }
    until("the broken ring is reported", || counters(&guest).rings_broken > 0);
    peer.send(b"late", &[]);
    cursor_lives(&mut guest);
    until("the driver is told", || guest.needs_resets() == 1);
    assert_eq!(counters(&guest).rings_broken, 1);
    guest.reset();
    guest.activate();
    guest.settle();
    cursor_lives(&mut guest);
    guest.assert_all_answered();
}

#[test]
fn a_broken_cursor_queue_never_stops_the_control_queue() {
    let mut guest = guest_with(OFFERED);
    if guest.queue(Lane::Cursor).publish_raw_head(u16::MAX) {
        guest.kick(Lane::Cursor);
    }
    until("the broken ring is reported", || counters(&guest).rings_broken > 0);
    (0..8).for_each(|_| guest.settle());
    until("the driver is told", || guest.needs_resets() == 1);
    assert_eq!(counters(&guest).rings_broken, 1);
    guest.reset();
    guest.activate();
    cursor_lives(&mut guest);
    guest.assert_all_answered();
}

#[test]
fn both_queues_broken_are_never_one_report() {
    let mut guest = guest_with(OFFERED);
    for lane in [Lane::Cursor, Lane::Control] {
        if guest.queue(lane).publish_raw_head(u16::MAX) {
            guest.kick(lane);
        }
    }
    until("both are reported", || counters(&guest).rings_broken == 2 && guest.needs_resets() == 2);
    guest.reset();
    guest.activate();
    guest.settle();
    cursor_lives(&mut guest);
}

/// A control queue that never runs empty, as if a second processor of the guest filled it with malformed chains as fast
/// as the device gives them back: the used ring lies on the available ring, one index ahead, so that each chain that
/// comes back is the next one. Dropping it makes the chains well formed, so that no device is kept for ever.
struct Flood {
    ram: GuestRam,
    head: GuestAddress,
}

impl Flood {
    fn start(guest: &Guest) -> Self {
        const NEXT: u16 = 1;
        let mut activation = guest.activation();
        let queue = &mut activation.control.queue;
        queue.set_used_ring_address(Some(queue.avail_ring() as u32), Some(0));
        queue.set_next_used(1);
        let (ram, head) = (guest.ram().clone(), GuestAddress(queue.desc_table()));
        // A chain that goes on beyond the table.
        let descriptor = [&[0; 12], &NEXT.to_le_bytes()[..], &u16::MAX.to_le_bytes()].concat();
        ram.write(head, &descriptor);
        ram.write(GuestAddress(queue.avail_ring() + 2), &1u16.to_le_bytes());
        guest.device().acknowledge(OFFERED).expect("features");
        guest.device().activate(activation).wait().expect("a device").expect("queues that can be served");
        Self { ram, head }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ram.write(self.head, &[0; 16]);
    }
}

#[test]
fn a_flood_of_malformed_chains_never_starves_the_cursor_queue_or_a_reset() {
    let device = Builder::new().spawn().expect("a device");
    let mut guest = Guest::powered_off(device, GuestOptions::default());
    let flood = Flood::start(&guest);
    (0..50).for_each(|_| cursor_lives(&mut guest));
    let mut reset = guest.device().reset();
    until("the reset is answered", || reset_ended(&mut reset));
    drop(flood);
    guest.reset();
    guest.activate();
    guest.settle();
    guest.assert_all_answered();
}

fn reset_ended(reset: &mut Reply<()>) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    matches!(pin!(reset).poll(&mut context), Poll::Ready(Ok(())))
}
