//! Blobs of guest memory: their lists of entries, when they are made and when they are attached later.

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY,
};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_MAPPABLE, BLOB_MEM_GUEST, command_type};
use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{Builder, Limits};

use crate::setup::{PAGE, PAGES, Setup};

/// Lists that no blob of one page may have: each with what is wrong with it.
fn bad_lists(setup: &Setup) -> Vec<(&'static str, Vec<(u64, u32)>)> {
    let (good, _) = setup.guest.page_range(4096);
    let end = setup.guest.ram().end().0;
    let window = setup.window.host_address() as u64;
    vec![
        ("ends outside RAM", vec![(end - 2048, 4096)]),
        ("starts at the end of RAM", vec![(end, 4096)]),
        ("the host's address of the window", vec![(window, 4096)]),
        ("wraps", vec![(u64::MAX - 2047, 4096)]),
        ("wraps at the last byte", vec![(u64::MAX, 4096)]),
        ("longer than RAM", vec![(good, u32::MAX)]),
        ("too short", vec![(good, 4095)]),
        ("an empty entry", vec![(good, 4096), (good, 0)]),
        ("a bad entry after a good one", vec![(good, 4096), (end, 1)]),
    ]
}

#[test]
fn a_list_that_is_not_guest_memory_is_never_taken_at_creation() {
    let mut setup = Setup::new();
    for (what, list) in bad_lists(&setup) {
        let answer = setup.guest.command(&Request::guest_blob(7, PAGE, &list));
        assert_eq!(answer.kind(), ERR_INVALID_PARAMETER, "{what}");
        setup.refused(&Request::unref(7), ERR_INVALID_RESOURCE_ID);
    }
}

#[test]
fn a_list_that_is_not_guest_memory_is_never_attached() {
    let mut setup = Setup::new();
    setup.ok(&Request::guest_blob(7, PAGE, &[]));
    for (what, list) in bad_lists(&setup) {
        let answer = setup.guest.command(&Request::attach_backing(7, &list));
        assert_eq!(answer.kind(), ERR_INVALID_PARAMETER, "{what}");
        setup.refused(&Request::detach_backing(7), ERR_INVALID_PARAMETER);
    }
    let range = setup.guest.page_range(4096);
    setup.ok(&Request::attach_backing(7, &[range]));
}

#[test]
fn backing_is_never_attached_twice_nor_detached_when_there_is_none() {
    let mut setup = Setup::new();
    let (first, second) = (setup.guest.page_range(4096), setup.guest.page_range(4096));
    setup.ok(&Request::guest_blob(7, PAGE, &[first]));
    setup.refused(&Request::attach_backing(7, &[second]), ERR_INVALID_PARAMETER);
    for _ in 0..3 {
        setup.ok(&Request::detach_backing(7));
        setup.refused(&Request::detach_backing(7), ERR_INVALID_PARAMETER);
        setup.ok(&Request::attach_backing(7, &[second]));
    }
    setup.ok(&Request::unref(7));
    for request in [Request::attach_backing(7, &[first]), Request::detach_backing(7), Request::unref(7)] {
        setup.refused(&request, ERR_INVALID_RESOURCE_ID);
    }
}

#[test]
fn entries_in_pieces_are_never_refused_for_their_cut() {
    let mut setup = Setup::new();
    let (start, _) = setup.guest.page_range(8192);
    let pieces: Vec<(u64, u32)> = (0..64).rev().map(|piece| (start + piece * 128, 128)).collect();
    setup.ok(&Request::guest_blob(7, 2 * PAGE, &pieces));
    setup.ok(&Request::guest_blob(8, PAGE, &[(start, 4096), (start, 4096)]));
}

#[test]
fn a_count_of_entries_that_the_request_does_not_hold_is_never_believed() {
    let mut setup = Setup::new();
    let (start, _) = setup.guest.page_range(4096);
    let create = |count: u32, entries: usize| {
        let mut body = Request::guest_blob(7, PAGE, &vec![(start, 4096); entries]).bytes().split_off(24);
        body[12..16].copy_from_slice(&count.to_le_bytes());
        Request::new(command_type::RESOURCE_CREATE_BLOB, &body)
    };
    for (count, entries) in [(2, 1), (1, 0), (1000, 3)] {
        setup.refused(&create(count, entries), ERR_INVALID_PARAMETER);
    }
    // Above the limit it does not matter how many there are.
    for count in [u32::MAX, 0x1000_0000] {
        setup.refused(&create(count, 1), ERR_OUT_OF_MEMORY);
    }
    setup.ok(&create(1, 3));
}

#[test]
fn entries_beyond_the_limit_are_refused_counted_and_leave_room_after_detach() {
    let limits = Limits { backing_entries: 4, ..Limits::default() };
    let mut setup = Setup::with(Builder::new().limits(limits));
    let (start, len) = setup.guest.page_range(4096);
    let list = [(start, len); 5];
    let before = setup.guest.device().counters().limit_refusals;
    setup.refused(&Request::guest_blob(7, PAGE, &list), ERR_OUT_OF_MEMORY);
    setup.ok(&Request::guest_blob(7, PAGE, &list[..3]));
    setup.refused(&Request::guest_blob(8, PAGE, &list[..2]), ERR_OUT_OF_MEMORY);
    setup.ok(&Request::guest_blob(8, PAGE, &[]));
    setup.refused(&Request::attach_backing(8, &list[..2]), ERR_OUT_OF_MEMORY);
    assert_eq!(setup.guest.device().counters().limit_refusals - before, 3);
    setup.ok(&Request::detach_backing(7));
    setup.ok(&Request::attach_backing(8, &list[..4]));
    setup.refused(&Request::attach_backing(7, &list[..1]), ERR_OUT_OF_MEMORY);
    setup.ok(&Request::unref(8));
    setup.ok(&Request::attach_backing(7, &list[..4]));
}

#[test]
fn guest_memory_is_never_mapped_into_the_window() {
    let mut setup = Setup::new();
    setup.paint();
    let range = setup.guest.page_range(4096);
    setup.ok(&Request::create_blob(7, BLOB_MEM_GUEST, BLOB_FLAG_MAPPABLE, 0, PAGE, &[range]));
    setup.refused(&Request::map(7, 0), ERR_INVALID_PARAMETER);
    setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
    setup.assert_gap(0..PAGES);
    setup.ok(&Request::unref(7));
}
