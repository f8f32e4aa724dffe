//! What a reset leaves behind: what is stuck keeps its range, what the renderer still makes is taken back, and a deadline
//! may be for ever.

use std::time::{Duration, Instant};

use virtio_gpu_uring::protocol::wire::response_type as response;
use virtio_gpu_uring::testing::{Guest, Request};
use virtio_gpu_uring::{Builder, HostWindow, Limits};

use crate::echo::{Remote, echo, object, stream};
use crate::memory::{Call, SlowMemory};
use crate::{SHORT, impatient, make_blobs, until};

/// A device that has been reset with a blob at 0, whose clear hangs, and with a MAP under way at 0x4000, which uses up
/// the reset's time: the MAP and the clear are handed out. The guest has blobs 7 and 8 then.
fn reset_over_a_stuck_clear() -> (Guest, SlowMemory, [Call; 2]) {
    let memory = SlowMemory::default();
    let mut guest = Guest::start(impatient().window(memory.clone()));
    make_blobs(&mut guest, [100, 101]);
    guest.map(100, 0);
    memory.places_later(true).clears_later(true);
    let _ = guest.submit(&Request::map(101, 0x4000));
    let place = memory.next();
    guest.reset();
    let clear = memory.next();
    assert!(place.is_place && place.offset == 0x4000 && !clear.is_place && clear.offset == 0);
    memory.places_later(false).clears_later(false);
    guest.activate();
    make_blobs(&mut guest, [7, 8]);
    (guest, memory, [place, clear])
}

#[test]
fn a_clear_that_outlives_its_reset_never_frees_the_range_before_it_has_ended() {
    let (mut guest, memory, [place, clear]) = reset_over_a_stuck_clear();
    // Long enough for every deadline that the device has begun with.
    let started = Instant::now();
    while started.elapsed() < 4 * SHORT {
        let calls = memory.calls();
        guest.command(&Request::map(7, 0)).expect_error(response::ERR_INVALID_PARAMETER);
        guest.command(&Request::map(8, 0x4000)).expect_error(response::ERR_INVALID_PARAMETER);
        assert_eq!(memory.calls(), calls, "a stuck range was handed out, or cleared once more");
        assert_eq!(memory.taken(), [0, 0x4000]);
        std::thread::sleep(Duration::from_millis(1));
    }
    clear.answer(Ok(()));
    until("the late clear frees its range", || guest.command(&Request::map(7, 0)).kind() == response::OK_MAP_INFO);
    guest.command(&Request::map(8, 0x4000)).expect_error(response::ERR_INVALID_PARAMETER);
    place.answer(Ok(()));
    until("the late place is taken back", || guest.command(&Request::map(8, 0x4000)).kind() == response::OK_MAP_INFO);
    memory.assert_sound();
    guest.assert_all_answered();
}

/// A device that waits for ever, with a renderer and everything under way: a MAP, and a stream that blocks.
fn patient() -> (Guest, SlowMemory, Remote) {
    let memory = SlowMemory::default();
    let (factory, mut remote) = echo("regressions-for-ever");
    let limits = Limits { deadline: Duration::MAX, ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits).window(memory.clone()).renderer(factory));
    make_blobs(&mut guest, [100, 101]);
    guest.map(100, 0);
    guest.command(&Request::ctx_create(2, 2)).ok();
    let _ = guest.submit(&Request::submit(2, stream::BLOCK));
    memory.places_later(true);
    let _ = guest.submit(&Request::map(101, 0x4000));
    remote.expect(&["create 2 of 2 named test", "submit block to 2"]);
    guest.settle();
    (guest, memory, remote)
}

#[test]
fn a_deadline_that_no_clock_can_hold_never_breaks_a_reset() {
    let (mut guest, memory, remote) = patient();
    let reset = guest.device().reset();
    memory.next().answer(Ok(()));
    remote.unblock();
    reset.wait().expect("a device that has not panicked");
    assert!(memory.taken().is_empty());
    guest.reset();
    memory.places_later(false);
    guest.activate();
    make_blobs(&mut guest, [100]);
    guest.map(100, 0);
    assert_eq!(guest.device().counters().quarantined, 0);
    guest.assert_all_answered();
}

#[test]
fn a_deadline_that_no_clock_can_hold_never_breaks_a_stop() {
    let (guest, memory, mut remote) = patient();
    let stop = guest.device().stop();
    memory.next().answer(Ok(()));
    remote.unblock();
    stop.wait().expect("a device that has not panicked");
    remote.expect(&["destroy 2", "gone"]);
    assert!(memory.taken().is_empty());
    memory.assert_sound();
}

#[test]
fn a_deadline_that_no_clock_can_hold_never_breaks_a_drop() {
    let (guest, memory, mut remote) = patient();
    // The drop waits for the device's thread, which waits for these.
    let call = memory.next();
    let dropping = std::thread::spawn(move || drop(guest));
    call.answer(Ok(()));
    remote.unblock();
    dropping.join().expect("no panic");
    remote.expect(&["destroy 2", "gone"]);
    assert!(memory.taken().is_empty(), "the device has panicked instead of coming to rest");
    assert_eq!(memory.calls().1, 2, "the ranges were not cleared as a stop clears them");
}

/// A rendered context 1 whose stream blocks, and a reset over `begun`, which waits behind the stream.
fn reset_over_a_blocked_renderer(begun: &Request) -> (Guest, Remote) {
    let (factory, mut remote) = echo("regressions-renderer");
    let window = HostWindow::new(1 << 20).expect("window");
    let mut guest = Guest::start(impatient().renderer(factory).window(window));
    guest.command(&Request::ctx_create(1, 2)).ok();
    guest.command(&Request::ctx_create(3, 2)).ok();
    remote.expect(&["create 1 of 2 named test", "create 3 of 2 named test"]);
    let _ = guest.submit(&Request::submit(1, stream::BLOCK));
    let _ = guest.submit(begun);
    guest.settle();
    remote.expect(&["submit block to 1"]);
    guest.reset();
    guest.activate();
    (guest, remote)
}

/// The calls up to and with `last`.
fn calls_until(remote: &mut Remote, last: &str) -> Vec<String> {
    let mut calls = vec![remote.next()];
    while calls.last().is_some_and(|call| call != last) {
        calls.push(remote.next());
    }
    calls
}

#[test]
fn a_context_that_the_renderer_makes_after_a_reset_is_never_left_behind() {
    let (mut guest, mut remote) = reset_over_a_blocked_renderer(&Request::ctx_create(2, 2));
    remote.unblock();
    let calls = calls_until(&mut remote, "destroy 2");
    assert_eq!(calls.first().map(String::as_str), Some("create 2 of 2 named test"), "{calls:?}");
    guest.command(&Request::ctx_create(2, 2)).ok();
    guest.command(&Request::submit(2, b"lives")).ok();
    guest.assert_all_answered();
}

#[test]
fn a_blob_that_the_renderer_makes_after_a_reset_is_never_left_behind() {
    let (mut guest, mut remote) = reset_over_a_blocked_renderer(&Request::host_blob(3, 20, object::CANVAS, 8192));
    remote.unblock();
    let calls = calls_until(&mut remote, "forget 20");
    assert_eq!(calls.first().map(String::as_str), Some("blob 20 of 3/1, 8192 bytes, flags 3"), "{calls:?}");
    guest.command(&Request::ctx_create(3, 2)).ok();
    guest.command(&Request::host_blob(3, 20, object::CANVAS, 8192)).ok();
    guest.map(20, 0);
    guest.assert_all_answered();
}

#[test]
fn what_is_taken_back_after_a_reset_is_never_the_next_guests() {
    let (mut guest, mut remote) = reset_over_a_blocked_renderer(&Request::ctx_create(2, 2));
    let created = guest.submit(&Request::ctx_create(2, 2));
    guest.settle();
    remote.unblock();
    guest.wait(created).ok();
    // The renderer has been told of everything before this.
    guest.command(&Request::ctx_create(9, 2)).ok();
    let calls = calls_until(&mut remote, "create 9 of 2 named test");
    let last = calls.iter().rev().find(|call| *call == "create 2 of 2 named test" || *call == "destroy 2");
    assert_eq!(last.map(String::as_str), Some("create 2 of 2 named test"), "{calls:?}");
    guest.command(&Request::submit(2, b"lives")).ok();
}
