//! A pipeline that is full: the guest's ring is the buffer then.

use virtio_gpu_uring::protocol::wire::response_type;
use virtio_gpu_uring::testing::{Lane, Request, Token};

use crate::{counters, cursor_lives, until, with_channel};

#[test]
fn a_full_pipeline_never_pops_more_and_never_stays_full() {
    let (mut guest, mut channel, peer) = with_channel(4);
    let polls: Vec<Token> = (0..4).map(|_| channel.poll(&mut guest)).collect();
    until("the polls are popped", || counters(&guest).fenced == 4);
    let before = counters(&guest);
    let waiting: Vec<Token> = (0..8).map(|_| guest.submit(&Request::display_info())).collect();
    cursor_lives(&mut guest);
    until("the device stops popping", || counters(&guest).stalls_full > 0);
    guest.kick(Lane::Control);
    cursor_lives(&mut guest);
    let stalled = counters(&guest);
    assert_eq!(stalled.commands - before.commands, 8, "only the cursor queue's commands may be popped");
    assert!(waiting.iter().all(|token| !guest.has_answer(token)), "answered although the pipeline is full");

    peer.send(b"one", &[]);
    for token in waiting {
        assert_eq!(guest.wait(token).kind(), response_type::OK_DISPLAY_INFO);
    }
    assert_eq!(polls.iter().filter(|poll| guest.has_answer(poll)).count(), 1);
    drop(peer);
    polls.into_iter().for_each(|poll| drop(guest.wait(poll).ok()));
    guest.settle();
    guest.assert_all_answered();
}

#[test]
fn a_stall_is_never_counted_where_nothing_waits_or_once_for_every_turn() {
    let (mut guest, mut channel, _peer) = with_channel(2);
    let polls: Vec<Token> = (0..2).map(|_| channel.poll(&mut guest)).collect();
    until("the polls are popped", || counters(&guest).fenced == 2);
    cursor_lives(&mut guest);
    let idle = counters(&guest).stalls_full;
    let _ = guest.submit(&Request::display_info());
    (0..8).for_each(|_| cursor_lives(&mut guest));
    let stalled = counters(&guest).stalls_full;
    drop(polls);
    assert!(stalled >= 1 && stalled - idle <= 2, "one stall was counted {} times", stalled - idle);
}

#[test]
fn a_reset_of_a_full_pipeline_never_leaves_it_full() {
    let (mut guest, mut channel, _peer) = with_channel(2);
    let polls: Vec<Token> = (0..2).map(|_| channel.poll(&mut guest)).collect();
    let _ = guest.submit(&Request::display_info());
    // A device that stopped popping need not be kicked for what comes then: the cursor queue makes it look.
    cursor_lives(&mut guest);
    until("the device stops popping", || counters(&guest).stalls_full > 0);
    guest.reset();
    drop(polls);
    guest.activate();
    (0..4).for_each(|_| guest.settle());
    guest.assert_all_answered();
}
