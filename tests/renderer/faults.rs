//! Renderers that end, hang, or are ended: the device lives on, every fence signals, and nothing is forgotten.

use std::io;
use std::time::Duration;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_CONTEXT_ID, ERR_UNSPEC};
use virtio_gpu_uring::testing::{GuestChannel, Request, Token};
use virtio_gpu_uring::{BuildError, Builder, Limits};

use super::echo::{Echo, KEPT_RING, object, stream};
use super::{Bench, CREATED};

type Memory = std::sync::Arc<vm_memory::GuestMemoryMmap>;

#[test]
fn a_renderer_that_cannot_be_made_is_never_a_device() {
    let failing = Builder::new().renderer(|| Err::<Echo, _>(io::Error::other("no such card")));
    let error = failing.spawn::<Memory>().expect_err("no device");
    assert!(matches!(error, BuildError::Start(_)), "{error:?}");
    assert!(error.to_string().contains("no such card"), "{error}");
    let panicking = Builder::new().renderer::<Echo>(|| std::panic::resume_unwind(Box::new("told to")));
    let error = panicking.spawn::<Memory>().expect_err("no device");
    assert!(matches!(error, BuildError::Start(_)), "{error:?}");
}

#[test]
fn a_renderer_that_panics_takes_nobody_along() {
    let mut bench = Bench::with_context("panics");
    let (mut channel, peer) = bench.open_channel(2);
    bench.guest.command(&Request::host_blob(1, 20, object::CANVAS, 8192)).ok();
    bench.guest.map(20, 0);
    let kept: Vec<Token> = (1..4).map(|fence| bench.fenced(KEPT_RING, fence)).collect();
    let blocked = bench.guest.submit(&Request::submit(1, stream::BLOCK));
    let panics = bench.guest.submit(&Request::submit(1, stream::PANIC).fenced(7).on_ring(0));
    let behind = bench.guest.submit(&Request::submit(1, b"behind").fenced(8).on_ring(0));
    bench.remote.unblock();
    bench.guest.wait(blocked).ok();
    for (token, fence) in [(panics, 7), (behind, 8)] {
        let answer = bench.guest.wait(token);
        answer.expect_error(ERR_UNSPEC);
        assert_eq!((answer.header.fence_id.get(), answer.header.ring_idx), (fence, 0));
    }
    // Fences that it took along have nothing left to wait for.
    for token in kept {
        bench.guest.wait(token).ok();
    }
    bench.guest.command(&Request::ctx_create(3, 2)).expect_error(ERR_UNSPEC);
    bench.guest.command(&Request::submit(3, b"x")).expect_error(ERR_INVALID_CONTEXT_ID);
    bench.guest.command(&Request::host_blob(1, 21, object::CANVAS, 8192)).expect_error(ERR_UNSPEC);
    bench.assert_others_live(&mut channel, &peer);
    // What it has made goes as always.
    bench.guest.command(&Request::unmap(20)).ok();
    bench.guest.command(&Request::unref(20)).ok();
    bench.guest.command(&Request::ctx_destroy(1));
    bench.guest.command(&Request::ctx_destroy(1)).expect_error(ERR_INVALID_CONTEXT_ID);
    bench.guest.assert_all_answered();
    bench.guest.reset();
    bench.guest.activate();
    let mut channel = GuestChannel::open(&mut bench.guest, 2, 2000, ChannelType::PIPEWIRE);
    let peer = bench.service.accept();
    bench.assert_others_live(&mut channel, &peer);
    bench.guest.command(&Request::ctx_create(1, 2)).expect_error(ERR_UNSPEC);
}

#[test]
fn a_fence_that_the_renderer_sits_on_never_holds_up_the_next_life_of_its_context() {
    let mut bench = Bench::with_context("sits-on-fences");
    let old = bench.fenced(0, 1);
    let sat_on = bench.remote.fence();
    bench.guest.command(&Request::ctx_destroy(1)).ok();
    bench.guest.command(&Request::ctx_create(1, 2)).ok();
    let new = bench.fenced(0, 1);
    bench.remote.fence().signal();
    // Timelines die with their context: the old fence is done, and nothing of it is left.
    bench.guest.wait(old).ok();
    bench.guest.wait(new).ok();
    let next = bench.fenced(0, 2);
    let its_own = bench.remote.fence();
    sat_on.signal();
    bench.settle_fences();
    assert!(!bench.guest.has_answer(&next), "a fence of the life before completed one of this");
    its_own.signal();
    bench.guest.wait(next).ok();
}

#[test]
fn a_reset_never_leaves_the_renderer_with_what_the_guest_had() {
    let mut bench = Bench::with_context("reset");
    bench.guest.command(&Request::host_blob(1, 20, object::CANVAS, 8192)).ok();
    bench.guest.map(20, 0);
    let _waits = bench.fenced(0, 1);
    let of_old = bench.remote.fence();
    bench.guest.reset();
    bench.guest.activate();
    bench.guest.command(&Request::ctx_create(1, 2)).ok();
    let mut calls = Vec::new();
    loop {
        match bench.remote.next() {
            call if call == CREATED => break,
            call => calls.push(call),
        }
    }
    calls.sort();
    assert_eq!(calls, ["destroy 1", "forget 20"]);
    // The same names mean new things now.
    let token = bench.fenced(0, 1);
    let its_own = bench.remote.fence();
    of_old.signal();
    bench.settle_fences();
    assert!(!bench.guest.has_answer(&token), "a fence of before the reset has completed one after it");
    its_own.signal();
    bench.guest.wait(token).ok();
}

#[test]
fn a_reset_never_waits_longer_than_its_deadline_for_a_blocked_renderer() {
    let limits = Limits { deadline: Duration::from_millis(100), ..Limits::default() };
    let mut bench = Bench::start("blocked-reset", limits);
    bench.guest.command(&Request::ctx_create(1, 2)).ok();
    bench.remote.expect(&[CREATED]);
    let _blocked = bench.guest.submit(&Request::submit(1, stream::BLOCK));
    bench.remote.expect(&["submit block to 1"]);
    bench.guest.reset();
    assert!(bench.guest.device().counters().quarantined > 0);
    bench.guest.activate();
    let (mut channel, peer) = bench.open_channel(2);
    bench.assert_others_live(&mut channel, &peer);
    // When it goes on it finds what it has missed, in order.
    let created = bench.guest.submit(&Request::ctx_create(1, 2));
    bench.guest.settle();
    bench.remote.unblock();
    bench.guest.wait(created).ok();
    bench.remote.expect(&["destroy 1", CREATED]);
    bench.guest.assert_all_answered();
}

#[test]
fn a_dropped_device_never_leaves_its_renderer_behind() {
    let Bench { guest, mut remote, .. } = Bench::with_context("left-behind");
    drop(guest);
    remote.expect(&["destroy 1", "gone"]);
}

#[test]
fn a_dropped_device_never_waits_longer_than_its_deadline_for_a_blocked_renderer() {
    let limits = Limits { deadline: Duration::from_millis(100), ..Limits::default() };
    let Bench { mut guest, mut remote, .. } = Bench::start("blocked-drop", limits);
    guest.command(&Request::ctx_create(1, 2)).ok();
    let _blocked = guest.submit(&Request::submit(1, stream::BLOCK));
    remote.expect(&[CREATED, "submit block to 1"]);
    drop(guest);
    remote.unblock();
    while remote.next() != "gone" {}
}
