//! Rows 8, 12, 22, 23 and 31: requests that ended, wedged or starved the device, or that it answered with a lie.

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY, ERR_UNSPEC, OK_DISPLAY_INFO,
};
use virtio_gpu_uring::protocol::wire::{
    BLOB_FLAG_MAPPABLE, BLOB_MEM_HOST3D, CAPSET_CROSS_DOMAIN, command_type as kind,
};
use virtio_gpu_uring::testing::{DEADLINE, Lane, Layout, Request};

use crate::setup::{CONTEXT, PAGE, PAGES, Setup, memfd};

fn is_error(kind: u32) -> bool {
    (ERR_UNSPEC..=ERR_INVALID_PARAMETER).contains(&kind)
}

/// Row 8: requests of these kinds ended the device's thread, and all of the guest's commands hung for good.
#[test]
fn no_kind_of_request_ends_the_device() {
    let mut setup = Setup::new();
    for request in (0x0ff..0x110).chain(0x1ff..0x20c).chain(0x2ff..0x304).chain([0, 0x1100, 0x1200, u32::MAX]) {
        for body in [vec![], vec![0; 72], vec![0xff; 72], vec![0x01; 600]] {
            for context in [0, 2, u32::MAX] {
                let answer = setup.guest.command(&Request::new(request, &body).context(context).response_len(1056));
                let known = (0x1100..0x1107).contains(&answer.kind()) || is_error(answer.kind());
                assert!(known, "{request:#x} with {} bytes: answered {:#x}", body.len(), answer.kind());
            }
        }
    }
    for request in [kind::TRANSFER_FROM_HOST_3D, kind::SET_SCANOUT_BLOB, kind::UPDATE_CURSOR, kind::MOVE_CURSOR] {
        let answer = setup.guest.command(&Request::new(request, &[0xff; 72]));
        assert!(is_error(answer.kind()), "{request:#x}: answered {:#x}", answer.kind());
    }
    setup.guest.settle();
}

/// Row 8: a flag of another device's (CREATE_GUEST_HANDLE) did so too.
#[test]
fn no_blob_flag_ends_the_device() {
    let mut setup = Setup::new();
    let id = setup.offer(&memfd("row-8", PAGE));
    for flags in [8, 9, 8 | BLOB_FLAG_MAPPABLE, u32::MAX] {
        let create = Request::create_blob(7, BLOB_MEM_HOST3D, flags, id, PAGE, &[]).context(CONTEXT);
        setup.refused(&create, ERR_INVALID_PARAMETER);
    }
}

/// Row 12: the cursor queue was dropped, and a guest with a display waited for ever once it was full.
#[test]
fn the_cursor_queue_is_not_left_alone() {
    let mut setup = Setup::new();
    for _ in 0..500 {
        let token = setup.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
        setup.guest.wait_on(Lane::Cursor, token).ok();
    }
    let tokens: Vec<_> =
        (0..8).map(|_| setup.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)))).collect();
    for token in tokens {
        setup.guest.wait_on(Lane::Cursor, token).ok();
    }
}

/// Row 22: the guest's own numbers sized the device's allocations, up to 64 GiB and the end of the VMM.
#[test]
fn no_number_of_the_guest_s_sizes_an_allocation() {
    let mut setup = Setup::new();
    let entries = |count: u32| {
        let mut body = Request::guest_blob(7, PAGE, &[]).bytes().split_off(24);
        body[12..16].copy_from_slice(&count.to_le_bytes());
        Request::new(kind::RESOURCE_CREATE_BLOB, &body)
    };
    let attach =
        |count: u32| Request::new(kind::RESOURCE_ATTACH_BACKING, &[7u32, count].map(u32::to_le_bytes).concat());
    let stream = |size: u32| Request::new(kind::SUBMIT_3D, &[size, 0].map(u32::to_le_bytes).concat()).context(CONTEXT);
    for count in [u32::MAX, 1 << 31, 1 << 28] {
        for request in [entries(count), attach(count), stream(count)] {
            setup.refused(&request, ERR_OUT_OF_MEMORY);
        }
    }
    for count in [1, 1000] {
        for request in [entries(count), attach(count), stream(count)] {
            setup.refused(&request, ERR_INVALID_PARAMETER);
        }
    }
    let id = setup.offer(&memfd("row-22", PAGE));
    setup.refused(&Request::host_blob(CONTEXT, 7, id, 1 << 62), ERR_INVALID_PARAMETER);
}

/// Row 23: a head that the ring does not have was never consumed, and the ring was wedged without a word.
#[test]
fn a_head_outside_the_ring_does_not_wedge_the_device_in_silence() {
    let mut setup = Setup::new();
    if setup.guest.queue(Lane::Control).publish_raw_head(256) {
        setup.guest.kick(Lane::Control);
    }
    let started = std::time::Instant::now();
    while setup.guest.needs_resets() == 0 {
        assert!(started.elapsed() < DEADLINE, "nobody was told");
        std::thread::yield_now();
    }
    assert_eq!(setup.guest.device().counters().rings_broken, 1);
    let token = setup.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
    setup.guest.wait_on(Lane::Cursor, token).ok();
    setup.guest.reset();
    setup.guest.activate();
    setup.guest.settle();
    assert_eq!(setup.guest.needs_resets(), 1);
}

/// Row 31: the number of capability sets was a constant, and not all of them were there.
#[test]
fn no_capability_set_is_announced_that_is_not_there() {
    let mut setup = Setup::new();
    let mut word = [0; 4];
    setup.guest.device().read_config(12, &mut word);
    let count = u32::from_le_bytes(word);
    let field = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let mut ids = Vec::new();
    for index in 0..count {
        let info = setup.guest.command(&Request::capset_info(index)).ok();
        let (id, version, size) = (field(&info, 0), field(&info, 4), field(&info, 8) as usize);
        let data = setup.guest.command(&Request::capset(id, version, size)).ok();
        assert_eq!(data.len(), size);
        if id == CAPSET_CROSS_DOMAIN {
            assert_eq!((field(&data, 0), field(&data, 8)), (1, 1), "version, and dma-bufs are forwarded");
        }
        ids.push(id);
    }
    assert_eq!(ids, [CAPSET_CROSS_DOMAIN]);
    for index in [count, count + 1, 5, u32::MAX] {
        setup.refused(&Request::capset_info(index), ERR_INVALID_PARAMETER);
    }
    for id in [0, 1, 4, 6, u32::MAX] {
        setup.refused(&Request::capset(id, 1, 64), ERR_INVALID_PARAMETER);
    }
}

/// Every command that is served, well formed.
fn every_command(setup: &Setup) -> Vec<Request> {
    let range = setup.guest.page_range(4096);
    vec![
        Request::display_info(),
        Request::capset_info(0),
        Request::capset(CAPSET_CROSS_DOMAIN, 1, 16),
        Request::guest_blob(20, PAGE, &[range]),
        Request::host_blob(CONTEXT, 21, 1 << 63 | 1, PAGE),
        Request::map(21, 0),
        Request::unmap(21),
        Request::detach_backing(20),
        Request::attach_backing(20, &[range]),
        Request::ctx_create(9, 0),
        Request::ctx_attach(9, 20),
        Request::ctx_detach(9, 20),
        Request::submit(CONTEXT, &[]),
        Request::ctx_destroy(9),
        Request::set_scanout(0, 0, [0, 0, 64, 64]),
        Request::unref(20),
    ]
}

/// Rows 8 and 15, edge case: short requests.
#[test]
fn no_request_that_ends_early_is_carried_out_or_goes_unanswered() {
    let mut setup = Setup::new();
    setup.paint();
    let _ = setup.offer(&memfd("short", PAGE));
    for request in every_command(&setup) {
        let bytes = request.bytes();
        // What stands beyond the header and 24 bytes is the fixed part of the longest.
        for len in (0..bytes.len()).filter(|len| *len < 24 || bytes.len() > 24) {
            let token = setup.guest.queue(Lane::Control).add(&bytes[..len], 408, &Layout::default()).expect("room");
            setup.guest.publish(Lane::Control);
            let answer = setup.guest.wait(token);
            assert!(is_error(answer.kind()), "{:#x} cut to {len}: answered {:#x}", bytes[0], answer.kind());
        }
    }
    setup.refused(&Request::unref(20), ERR_INVALID_RESOURCE_ID);
    setup.refused(&Request::unref(21), ERR_INVALID_RESOURCE_ID);
    setup.assert_gap(0..PAGES);
}

/// Edge case: long requests.
#[test]
fn no_request_is_refused_for_bytes_that_follow_it() {
    let mut setup = Setup::new();
    let id = setup.offer(&memfd("long", PAGE));
    assert_eq!(id, 1 << 63 | 1, "the first offer's id, which the list of commands knows");
    for request in every_command(&setup) {
        let bytes = [request.bytes(), vec![0xff; 5000]].concat();
        let queue = setup.guest.queue(Lane::Control);
        let token = queue.add(&bytes, request.room(), &Layout::default()).expect("room");
        setup.guest.publish(Lane::Control);
        setup.guest.wait(token).ok();
    }
}

/// Edge case: a response buffer that is too small.
#[test]
fn no_command_is_carried_out_whose_answer_has_no_room() {
    let mut setup = Setup::new();
    setup.paint();
    setup.blob(7, &memfd("no-room", PAGE), PAGE);
    for room in [24, 31] {
        let answer = setup.guest.command(&Request::map(7, 0).response_len(room));
        assert!(is_error(answer.kind()), "answered {:#x} into {room} bytes", answer.kind());
        assert_eq!(answer.written, 24);
        setup.assert_gap(0..PAGES);
        setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
    }
    for room in [1, 8, 23] {
        let answer = setup.guest.command(&Request::map(7, 0).response_len(room));
        assert!(answer.written as usize <= room, "{} bytes into {room}", answer.written);
        setup.assert_gap(0..PAGES);
    }
    for room in [24, 407] {
        let answer = setup.guest.command(&Request::display_info().response_len(room));
        assert!(is_error(answer.kind()), "answered {:#x} into {room} bytes", answer.kind());
    }
    setup.guest.map(7, 0);
    assert_eq!(setup.guest.command(&Request::display_info().response_len(5000)).kind(), OK_DISPLAY_INFO);
}
