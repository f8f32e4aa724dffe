//! OK_MAP_INFO means live pages, and they are the buffer's own in both directions.

use rustix::fs::ftruncate;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_OUT_OF_MEMORY};
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{Builder, HostWindow, Limits};

use crate::setup::{PAGE, PAGES, Setup, get, memfd, put};

#[test]
fn a_mapped_page_is_never_stale_in_either_direction() {
    let mut setup = Setup::new();
    let file = memfd("live", 3 * PAGE);
    setup.blob(7, &file, 3 * PAGE);
    setup.guest.map(7, 9 * PAGE);
    for round in 1..50u8 {
        for page in 0..3 {
            put(&file, page * PAGE + 17, round);
            assert_eq!(setup.byte((9 + page) * PAGE + 17), round, "a host write is not in the window");
            setup.window.write((9 + page) * PAGE + 18, &[!round]).expect("in the window");
            assert_eq!(get(&file, page * PAGE + 18), !round, "a guest write is not in the buffer");
        }
    }
}

#[test]
fn pages_that_nobody_has_touched_are_never_the_filler_s() {
    let mut setup = Setup::new();
    setup.paint();
    let file = rustix::fs::memfd_create("sparse", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, 4 * PAGE).expect("size");
    setup.blob(7, &file, 4 * PAGE);
    setup.guest.map(7, 0);
    assert_eq!(setup.pages(0..4), [0; 4]);
    put(&file, 3 * PAGE, 0x31);
    setup.window.write(2 * PAGE, &[0x32]).expect("in the window");
    assert_eq!((setup.byte(3 * PAGE), get(&file, 2 * PAGE)), (0x31, 0x32));
}

#[test]
fn a_buffer_mapped_through_two_blobs_is_never_two_buffers() {
    let mut setup = Setup::new();
    let file = memfd("shared", 2 * PAGE);
    setup.blob(7, &file, 2 * PAGE);
    setup.blob(8, &file, PAGE);
    setup.guest.map(7, 0);
    setup.guest.map(8, 10 * PAGE);
    setup.window.write(5, &[0x21]).expect("in the window");
    assert_eq!(setup.byte(10 * PAGE + 5), 0x21);
    setup.ok(&Request::unref(7));
    put(&file, 5, 0x22);
    assert_eq!(setup.byte(10 * PAGE + 5), 0x22, "the other blob's end took this one's pages");
}

#[test]
fn a_buffer_that_its_owner_has_closed_is_never_gone_while_a_blob_has_it() {
    let name = "closed-by-its-owner";
    let mut setup = Setup::new();
    let file = memfd(name, PAGE);
    setup.blob(7, &file, PAGE);
    drop(file);
    for round in 0..3 {
        setup.guest.map(7, round * PAGE);
        assert_eq!(setup.byte(round * PAGE), 1);
        setup.ok(&Request::unmap(7));
    }
    setup.ok(&Request::unref(7));
    assert_eq!((census::fds_named(name), census::maps_named(name)), (0, 0));
}

#[test]
fn a_remapped_blob_never_shows_what_it_showed_before() {
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd("again", PAGE);
    setup.blob(7, &file, PAGE);
    for round in 0..PAGES {
        put(&file, 0, round as u8);
        setup.guest.map(7, round * PAGE);
        assert_eq!(setup.byte(round * PAGE), round as u8);
        setup.ok(&Request::unmap(7));
    }
    setup.assert_gap(0..PAGES);
}

#[test]
fn a_truncated_memfd_is_never_mapped_past_its_end() {
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd("truncated", 4 * PAGE);
    setup.blob(7, &file, 4 * PAGE);
    for len in [3 * PAGE, PAGE, 1, 0] {
        ftruncate(&file, len).expect("size");
        setup.refused(&Request::map(7, 0), ERR_INVALID_PARAMETER);
        setup.assert_gap(0..PAGES);
    }
    ftruncate(&file, 3 * PAGE + 1).expect("size");
    put(&file, 3 * PAGE, 0x51);
    setup.guest.map(7, 0);
    assert_eq!(setup.pages(0..4), [0, 0, 0, 0x51]);
}

#[test]
fn a_memfd_truncated_while_it_is_mapped_never_harms_the_device() {
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd("cut", 4 * PAGE);
    setup.blob(7, &file, 4 * PAGE);
    setup.guest.map(7, 0);
    ftruncate(&file, PAGE).expect("size");
    assert_eq!(setup.byte(0), 1);
    setup.ok(&Request::unmap(7));
    setup.assert_gap(0..PAGES);
    setup.refused(&Request::map(7, 0), ERR_INVALID_PARAMETER);
    setup.ok(&Request::unref(7));
}

#[test]
fn a_populated_window_never_answers_before_the_pages_are_there_nor_shows_others() {
    let len = (PAGES * PAGE) as usize;
    let window = HostWindow::with_scratch(len, len).expect("a window").populated(true);
    let mut setup = Setup::on(window, Builder::new());
    setup.paint();
    let file = memfd("populated", 16 * PAGE);
    setup.blob(7, &file, 16 * PAGE);
    for round in 0..3 {
        setup.guest.map(7, round * PAGE);
        assert_eq!(setup.pages(round..round + 16), (1..=16).collect::<Vec<u8>>());
        setup.window.write(round * PAGE + 1, &[0x61]).expect("in the window");
        assert_eq!(get(&file, 1), 0x61);
        setup.ok(&Request::unmap(7));
        setup.assert_gap(0..PAGES);
    }
}

#[test]
fn a_populated_blob_never_leaves_the_guest_a_page_to_wait_for() {
    let len = (PAGES * PAGE) as usize;
    let window = HostWindow::with_scratch(len, len).expect("a window");
    for (populated, pages) in [(true, 16), (false, 0)] {
        let mut setup = Setup::on(window.clone().populated(populated), Builder::new());
        let file = rustix::fs::memfd_create("sparse-at-first", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, 16 * PAGE).expect("size");
        setup.blob(7, &file, 16 * PAGE);
        setup.guest.map(7, 0);
        // In units of 512 bytes.
        let blocks = rustix::fs::fstat(&file).expect("fstat").st_blocks;
        assert_eq!(blocks as u64 * 512 / PAGE, pages);
    }
}

#[test]
fn more_mapped_bytes_than_the_limit_are_refused_counted_and_free_after_unmap() {
    let limits = Limits { mapped_bytes: 3 * PAGE, ..Limits::default() };
    let mut setup = Setup::with(Builder::new().limits(limits));
    setup.paint();
    let file = memfd("mapped-bytes", 4 * PAGE);
    for (resource, pages) in [(1, 2), (2, 2), (3, 1), (4, 4)] {
        setup.blob(resource, &file, pages * PAGE);
    }
    let before = setup.guest.device().counters();
    setup.guest.map(1, 0);
    setup.refused(&Request::map(2, 10 * PAGE), ERR_OUT_OF_MEMORY);
    setup.refused(&Request::map(4, 20 * PAGE), ERR_OUT_OF_MEMORY);
    setup.assert_gap(2..PAGES);
    setup.guest.map(3, 30 * PAGE);
    setup.ok(&Request::unmap(1));
    setup.guest.map(2, 10 * PAGE);
    setup.refused(&Request::map(1, 0), ERR_OUT_OF_MEMORY);
    setup.ok(&Request::unref(2));
    setup.guest.map(1, 0);
    let after = setup.guest.device().counters();
    assert_eq!(after.limit_refusals - before.limit_refusals, 3);
    assert_eq!(after.maps - before.maps, 4, "a refused map is counted as one that was done");
}
