//! Commands on the same thing wait for each other, all others do not.

use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, response_type as response};
use virtio_gpu_uring::testing::{Lane, Request, Token};

use crate::memory::refused;
use crate::{PAGE, assert_waiting, guest_with_blobs, in_order, offer};

#[test]
fn a_slow_map_never_holds_up_a_command_on_anything_else() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 2);
    memory.places_later(true);
    let slow = guest.submit(&Request::map(100, 0));
    let call = memory.next();
    memory.places_later(false);
    guest.map(101, 0x1000);
    guest.command(&Request::unmap(101)).ok();
    guest.command(&Request::unref(101)).ok();
    guest.command(&Request::guest_blob(5, PAGE, &[(0, 4096)])).ok();
    guest.command(&Request::ctx_create(2, 0)).ok();
    guest.command(&Request::ctx_attach(2, 5)).ok();
    guest.command(&Request::ctx_destroy(2)).ok();
    guest.command(&Request::submit(1, &Request::stream_poll())).ok();
    let cursor = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
    guest.wait_on(Lane::Cursor, cursor).ok();
    assert_waiting(&mut guest, std::slice::from_ref(&slow));
    call.answer(Ok(()));
    assert_eq!(guest.wait(slow).kind(), response::OK_MAP_INFO);
    memory.assert_sound();
    guest.assert_all_answered();
}

#[test]
fn a_slow_unmap_never_holds_up_a_command_on_anything_else() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 2);
    guest.map(100, 0);
    memory.clears_later(true);
    let slow = guest.submit(&Request::unmap(100));
    let call = memory.next();
    memory.clears_later(false);
    guest.map(101, 0x1000);
    // The range is taken until its owner has answered.
    guest.command(&Request::unmap(101)).ok();
    guest.command(&Request::map(101, 0)).expect_error(response::ERR_INVALID_PARAMETER);
    assert_waiting(&mut guest, std::slice::from_ref(&slow));
    call.answer(Ok(()));
    guest.wait(slow).ok();
    guest.map(101, 0);
    memory.assert_sound();
}

#[test]
fn no_command_on_a_resource_overtakes_an_earlier_one_on_it() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    let (next, last) = (offer(&guest, "order"), offer(&guest, "order"));
    memory.places_later(true).clears_later(true);
    let mut tokens: Vec<Token> = vec![
        guest.submit(&Request::map(100, 0)),
        guest.submit(&Request::unmap(100)),
        guest.submit(&Request::unref(100)),
        guest.submit(&Request::host_blob(1, 100, next, PAGE)),
        guest.submit(&Request::map(100, 0)),
        guest.submit(&Request::unref(100)),
        guest.submit(&Request::unmap(100)),
        guest.submit(&Request::host_blob(1, 100, last, PAGE)),
    ];
    let map = memory.next();
    assert_waiting(&mut guest, &tokens);
    map.answer(Ok(()));
    let unmap = memory.next();
    assert!(!unmap.is_place);
    let map = tokens.remove(0);
    guest.wait(map).ok();
    assert_waiting(&mut guest, &tokens);
    unmap.answer(Ok(()));
    let again = memory.next();
    assert!(again.is_place);
    for _ in 0..3 {
        let token = tokens.remove(0);
        guest.wait(token).ok();
    }
    assert_waiting(&mut guest, &tokens);
    again.answer(Ok(()));
    let unref = memory.next();
    assert!(!unref.is_place, "UNREF of a mapped blob takes it out of the window first");
    let map = tokens.remove(0);
    guest.wait(map).ok();
    assert_waiting(&mut guest, &tokens);
    unref.answer(Ok(()));
    let kinds: Vec<u32> = tokens.into_iter().map(|token| guest.wait(token).kind()).collect();
    assert_eq!(kinds, [response::OK_NODATA, response::ERR_INVALID_RESOURCE_ID, response::OK_NODATA]);
    memory.assert_sound();
    assert!(memory.taken().is_empty());
    guest.assert_all_answered();
}

#[test]
fn answers_of_commands_on_one_resource_never_change_places() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    memory.places_later(true);
    let sent: Vec<Token> = [Request::map(100, 0), Request::map(100, 0), Request::unmap(100), Request::unmap(100)]
        .iter()
        .map(|request| guest.submit(request))
        .collect();
    memory.next().answer(Ok(()));
    let (tokens, kinds): (Vec<Token>, Vec<u32>) = in_order(&mut guest, 4).into_iter().unzip();
    assert_eq!(tokens, sent);
    let error = response::ERR_INVALID_PARAMETER;
    assert_eq!(kinds, [response::OK_MAP_INFO, error, response::OK_NODATA, error]);
}

#[test]
fn an_attachment_never_waits_for_a_mapping() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    memory.places_later(true);
    let slow = guest.submit(&Request::map(100, 0));
    let call = memory.next();
    guest.command(&Request::ctx_attach(1, 100)).ok();
    guest.command(&Request::ctx_detach(1, 100)).ok();
    assert_waiting(&mut guest, std::slice::from_ref(&slow));
    call.answer(Ok(()));
    guest.wait(slow).ok();
}

#[test]
fn a_context_that_dies_never_takes_a_mapping_with_it() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 2);
    guest.map(100, 0);
    memory.places_later(true);
    let slow = guest.submit(&Request::map(101, 0x1000).context(1));
    let call = memory.next();
    guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(memory.taken(), [0, 0x1000]);
    call.answer(Ok(()));
    guest.wait(slow).ok();
    assert_eq!(memory.taken(), [0, 0x1000]);
    guest.command(&Request::unmap(100)).ok();
    guest.command(&Request::unref(100)).ok();
    guest.command(&Request::unref(101)).ok();
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    memory.assert_sound();
    assert!(memory.taken().is_empty());
}

#[test]
fn a_place_that_fails_late_never_spoils_the_blob_or_the_range() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 2);
    for round in 1..=3 {
        memory.places_later(true);
        let map = guest.submit(&Request::map(100, 0));
        memory.next().answer(Err(refused()));
        guest.wait(map).expect_error(response::ERR_UNSPEC);
        assert_eq!(guest.device().counters().map_failures, round);
        assert!(memory.taken().is_empty());
        memory.places_later(false);
        guest.command(&Request::unmap(100)).expect_error(response::ERR_INVALID_PARAMETER);
        guest.map(100, 0x3000);
        guest.map(101, 0);
        guest.command(&Request::unmap(100)).ok();
        guest.command(&Request::unmap(101)).ok();
    }
    assert_eq!(guest.device().counters().quarantined, 0);
    memory.assert_sound();
}

#[test]
fn a_map_refused_at_once_never_reaches_the_region() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    for offset in [1, 0xfff, 1 << 20, (1 << 20) - 0xfff, u64::MAX, !0xfff] {
        guest.command(&Request::map(100, offset)).expect_error(response::ERR_INVALID_PARAMETER);
    }
    assert_eq!(memory.calls(), (0, 0));
    guest.map(100, (1 << 20) - PAGE);
}
