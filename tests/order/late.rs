//! A region's owner that answers after the deadline, or never: the guest gets an error, and the range is kept until it is
//! known what it shows.

use std::time::Duration;

use virtio_gpu_uring::protocol::wire::response_type as response;
use virtio_gpu_uring::testing::{Guest, Request, census};
use virtio_gpu_uring::{Builder, Limits, PlaceError};

use crate::memory::{Call, SlowMemory, refused};
use crate::{PAGE, guest_with_blobs, offer, until};

fn impatient() -> Builder {
    Builder::new().limits(Limits { deadline: Duration::from_millis(50), ..Limits::default() })
}

/// A MAP of blob 100 at 0 whose deadline has passed.
fn overdue_map() -> (Guest, SlowMemory, Call) {
    let (mut guest, memory) = guest_with_blobs(impatient(), 2);
    memory.places_later(true);
    let map = guest.submit(&Request::map(100, 0));
    let call = memory.next();
    guest.wait(map).expect_error(response::ERR_UNSPEC);
    memory.places_later(false);
    (guest, memory, call)
}

/// An UNMAP of blob 100 at 0 whose deadline has passed.
fn overdue_unmap() -> (Guest, SlowMemory, Call) {
    let (mut guest, memory) = guest_with_blobs(impatient(), 2);
    guest.map(100, 0);
    memory.clears_later(true);
    let unmap = guest.submit(&Request::unmap(100));
    let call = memory.next();
    guest.wait(unmap).expect_error(response::ERR_UNSPEC);
    memory.clears_later(false);
    (guest, memory, call)
}

/// Nobody gets the page at 0.
#[track_caller]
fn assert_kept(guest: &mut Guest, memory: &SlowMemory, blob: u32) {
    let calls = memory.calls();
    guest.command(&Request::map(blob, 0)).expect_error(response::ERR_INVALID_PARAMETER);
    assert_eq!(memory.calls(), calls, "the range was handed out");
    memory.assert_sound();
}

/// Blob 101 gets the page at 0, at the latest a little later.
#[track_caller]
fn assert_freed(guest: &mut Guest, memory: &SlowMemory) {
    until("the range is free", || guest.command(&Request::map(101, 0)).kind() == response::OK_MAP_INFO);
    memory.assert_sound();
}

#[test]
fn a_late_place_never_stays_in_the_window_and_its_range_is_never_handed_out_meanwhile() {
    let (mut guest, memory, call) = overdue_map();
    let counters = guest.device().counters();
    assert_eq!((counters.map_failures, counters.quarantined, counters.maps), (1, 1, 0));
    assert_kept(&mut guest, &memory, 101);
    call.answer(Ok(()));
    until("the late place is cleared", || memory.taken().is_empty());
    assert_freed(&mut guest, &memory);
    guest.assert_all_answered();
}

#[test]
fn a_late_refusal_never_keeps_the_range() {
    let (mut guest, memory, call) = overdue_map();
    assert_kept(&mut guest, &memory, 101);
    call.answer(Err(refused()));
    assert_freed(&mut guest, &memory);
    // Nothing was placed, so that there was nothing to clear.
    assert_eq!(memory.calls().1, 0);
}

#[test]
fn a_blob_whose_place_is_overdue_never_loses_its_chance_elsewhere() {
    let (mut guest, memory, call) = overdue_map();
    guest.map(100, 0x8000);
    call.answer(Ok(()));
    until("the late place is cleared", || memory.taken() == [0x8000]);
    guest.command(&Request::unmap(100)).ok();
    assert_freed(&mut guest, &memory);
}

#[test]
fn an_unref_never_frees_the_range_of_an_overdue_place() {
    let (mut guest, memory, call) = overdue_map();
    guest.command(&Request::unref(100)).ok();
    assert_kept(&mut guest, &memory, 101);
    call.answer(Ok(()));
    assert_freed(&mut guest, &memory);
}

#[test]
fn a_late_clear_never_frees_the_range_before_it_has_ended() {
    let (mut guest, memory, call) = overdue_unmap();
    let counters = guest.device().counters();
    assert_eq!(counters.quarantined, 1);
    assert_kept(&mut guest, &memory, 101);
    // Nobody knows what the guest sees of the blob: it is not mapped anew, and not unmapped twice.
    guest.command(&Request::map(100, 0x4000)).expect_error(response::ERR_INVALID_PARAMETER);
    guest.command(&Request::unmap(100)).expect_error(response::ERR_INVALID_PARAMETER);
    call.answer(Ok(()));
    assert_freed(&mut guest, &memory);
    guest.command(&Request::unref(100)).ok();
    guest.assert_all_answered();
}

#[test]
fn a_clear_that_fails_never_frees_the_range() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 2);
    guest.map(100, 0);
    memory.clears_later(true);
    let unmap = guest.submit(&Request::unmap(100));
    memory.next().answer(Err(refused()));
    guest.wait(unmap).expect_error(response::ERR_UNSPEC);
    assert_eq!(guest.device().counters().quarantined, 1);
    memory.clears_later(false);
    for _ in 0..3 {
        assert_kept(&mut guest, &memory, 101);
    }
    guest.command(&Request::unref(100)).ok();
    assert_kept(&mut guest, &memory, 101);
    guest.reset();
    guest.activate();
    guest.command(&Request::ctx_create(1, 0)).ok();
    let offered = offer(&guest, "order");
    guest.command(&Request::host_blob(1, 7, offered, PAGE)).ok();
    assert_kept(&mut guest, &memory, 7);
}

#[test]
fn a_range_that_was_lost_is_never_handed_out() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 2);
    memory.places_later(true);
    let map = guest.submit(&Request::map(100, 0));
    memory.next().answer(Err(PlaceError::Lost { source: std::io::Error::other("gone") }));
    guest.wait(map).expect_error(response::ERR_UNSPEC);
    memory.places_later(false);
    assert_kept(&mut guest, &memory, 101);
    assert_eq!(guest.device().counters().quarantined, 1, "a range given up is counted");
    guest.map(101, 0x1000);
    guest.map(100, 0x2000);
}

#[test]
fn a_descriptor_never_closes_before_its_pages_are_out_of_the_window() {
    const NAME: &str = "order-overdue-descriptor";
    let (mut guest, memory) = guest_with_blobs(impatient(), 0);
    let offered = offer(&guest, NAME);
    guest.command(&Request::host_blob(1, 100, offered, PAGE)).ok();
    guest.map(100, 0);
    memory.clears_later(true);
    let unref = guest.submit(&Request::unref(100));
    let call = memory.next();
    assert_eq!(census::fds_named(NAME), 1);
    guest.wait(unref).expect_error(response::ERR_UNSPEC);
    assert_eq!(census::fds_named(NAME), 1, "closed while the guest may still see its pages");
    call.answer(Ok(()));
    until("the descriptor is closed", || census::fds_named(NAME) == 0);
    memory.assert_sound();
}

#[test]
fn an_overdue_call_never_holds_up_the_device() {
    let (mut guest, memory, call) = overdue_map();
    for _ in 0..32 {
        guest.map(101, 0x4000);
        guest.command(&Request::unmap(101)).ok();
    }
    guest.command(&Request::display_info().fenced(9)).ok();
    call.answer(Err(refused()));
    assert_freed(&mut guest, &memory);
}
