//! Where a blob may lie: every border of the window, and every offset that arithmetic could get wrong.

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_UNSPEC};
use virtio_gpu_uring::testing::{Guest, Request, census};
use virtio_gpu_uring::{Builder, HostWindow};

use crate::setup::{CONTEXT, PAGE, PAGES, Setup, memfd};

const END: u64 = PAGES * PAGE;

#[test]
fn no_offset_at_the_window_s_borders_is_mistaken() {
    // Pages of the blob, offset, whether it fits.
    let table = [
        (1, 0, true),
        (1, END - PAGE, true),
        (2, END - 2 * PAGE, true),
        (PAGES, 0, true),
        (1, END, false),
        (1, END + PAGE, false),
        (2, END - PAGE, false),
        (PAGES, PAGE, false),
        (PAGES + 1, 0, false),
        (1, 1 << 31, false),
        (1, 1 << 32, false),
        (1, 1 << 32 | END, false),
        (1, i64::MAX as u64 - PAGE + 1, false),
        (1, 1 << 63, false),
    ];
    let name = "borders";
    let file = memfd(name, (PAGES + 1) * PAGE);
    let mut setup = Setup::new();
    setup.paint();
    for (pages, offset, fits) in table {
        setup.blob(7, &file, pages * PAGE);
        if fits {
            setup.guest.map(7, offset);
            let first = offset / PAGE;
            assert_eq!(setup.pages(first..first + pages), (1..=pages as u8).collect::<Vec<u8>>());
            setup.assert_gap(0..first);
            setup.assert_gap(first + pages..PAGES);
        } else {
            setup.refused(&Request::map(7, offset), ERR_INVALID_PARAMETER);
            setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
            assert_eq!(census::maps_named(name), 0, "{pages} pages at {offset:#x}");
        }
        setup.ok(&Request::unref(7));
        setup.assert_gap(0..PAGES);
    }
}

#[test]
fn an_offset_and_size_that_wrap_never_place_anything_anywhere() {
    let name = "wraps";
    let file = memfd(name, 4 * PAGE);
    let mut setup = Setup::new();
    setup.paint();
    for pages in 1..=4 {
        setup.blob(7, &file, pages * PAGE);
        for offset in [pages, pages - 1, 1, pages + 1].map(|before| (0u64).wrapping_sub(before * PAGE)) {
            if offset != 0 {
                setup.refused(&Request::map(7, offset), ERR_INVALID_PARAMETER);
                assert_eq!(census::maps_named(name), 0, "{pages} pages at {offset:#x}");
            }
        }
        setup.ok(&Request::unref(7));
    }
    setup.assert_gap(0..PAGES);
}

#[test]
fn an_offset_off_the_page_is_never_rounded() {
    let mut setup = Setup::new();
    setup.paint();
    setup.blob(7, &memfd("unaligned", PAGE), PAGE);
    for offset in [1, 8, 512, 2048, PAGE - 1, PAGE + 1, 10 * PAGE + 64, END - 1, END + 1, u64::MAX, 1 << 32 | 1] {
        setup.refused(&Request::map(7, offset), ERR_INVALID_PARAMETER);
    }
    setup.assert_gap(0..PAGES);
    setup.guest.map(7, PAGE);
}

#[test]
fn two_blobs_never_overlap() {
    let file = memfd("overlap", 8 * PAGE);
    let mut setup = Setup::new();
    setup.paint();
    setup.blob(7, &file, 4 * PAGE);
    setup.guest.map(7, 10 * PAGE);
    for (pages, first) in [(4, 10), (1, 10), (1, 13), (2, 9), (2, 13), (8, 8), (4, 7), (4, 13), (2, 11)] {
        setup.blob(8, &file, pages * PAGE);
        setup.refused(&Request::map(8, first * PAGE), ERR_INVALID_PARAMETER);
        setup.refused(&Request::unmap(8), ERR_INVALID_PARAMETER);
        setup.ok(&Request::unref(8));
        assert_eq!(setup.pages(10..14), [1, 2, 3, 4], "{pages} pages at page {first}");
        setup.assert_gap(0..10);
        setup.assert_gap(14..PAGES);
    }
    for (resource, first) in [(8, 6), (9, 14)] {
        setup.blob(resource, &file, 4 * PAGE);
        setup.guest.map(resource, first * PAGE);
    }
    setup.ok(&Request::unmap(7));
    assert_eq!(setup.pages(6..18), [1, 2, 3, 4, crate::setup::gap(10), 0x8b, 0x8c, 0x8d, 1, 2, 3, 4]);
}

#[test]
fn a_mapped_blob_is_never_mapped_again() {
    let name = "double";
    let mut setup = Setup::new();
    setup.paint();
    setup.blob(7, &memfd(name, 2 * PAGE), 2 * PAGE);
    setup.guest.map(7, 4 * PAGE);
    for offset in [4 * PAGE, 0, 20 * PAGE, 5 * PAGE] {
        setup.refused(&Request::map(7, offset), ERR_INVALID_PARAMETER);
    }
    assert_eq!(census::maps_named(name), 1);
    assert_eq!(setup.pages(4..6), [1, 2]);
    setup.assert_gap(0..4);
    setup.assert_gap(6..PAGES);
    setup.ok(&Request::unmap(7));
    setup.assert_gap(0..PAGES);
}

/// Linux sends UNMAP after a failed MAP too, so this is ordinary traffic.
#[test]
fn an_unmap_of_what_is_not_mapped_never_has_a_side_effect() {
    let file = memfd("not-mapped", 2 * PAGE);
    let mut setup = Setup::new();
    setup.paint();
    setup.refused(&Request::unmap(7), ERR_INVALID_RESOURCE_ID);
    setup.refused(&Request::map(7, 0), ERR_INVALID_RESOURCE_ID);
    for resource in [7, 8] {
        setup.blob(resource, &file, 2 * PAGE);
    }
    setup.guest.map(8, 0);
    setup.refused(&Request::map(7, PAGE), ERR_INVALID_PARAMETER);
    for _ in 0..3 {
        setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
        setup.refused(&Request::unmap(0), ERR_INVALID_RESOURCE_ID);
        assert_eq!(setup.pages(0..2), [1, 2]);
    }
    setup.ok(&Request::unmap(8));
    setup.refused(&Request::unmap(8), ERR_INVALID_PARAMETER);
    setup.assert_gap(0..PAGES);
    setup.guest.map(7, 0);
}

#[test]
fn a_range_that_was_unmapped_or_unreferenced_is_never_kept_from_the_next_blob() {
    let file = memfd("reuse", 4 * PAGE);
    let mut setup = Setup::new();
    for resource in 1..=40 {
        setup.blob(resource, &file, 4 * PAGE);
        setup.guest.map(resource, u64::from(resource % 3) * PAGE);
        setup.ok(&if resource % 2 == 0 { Request::unmap(resource) } else { Request::unref(resource) });
    }
}

#[test]
fn sixteen_kib_of_alignment_never_hands_out_a_page_beyond_the_buffer() {
    let mut setup = Setup::with(Builder::new().blob_alignment(4 * PAGE));
    setup.paint();
    let file = memfd("sixteen-small", 2312);
    // The guest cannot ask for less than 16 KiB, and the file has one page.
    let offer = setup.offer(&file);
    let answer = setup.guest.command(&Request::host_blob(CONTEXT, 7, offer, 4 * PAGE));
    answer.ok();
    setup.guest.map(7, 4 * PAGE);
    assert_eq!(setup.byte(4 * PAGE), 1);
    setup.assert_gap(5..PAGES);
    setup.blob(8, &memfd("sixteen-next", 4 * PAGE), 4 * PAGE);
    for offset in [4 * PAGE, 5 * PAGE, 6 * PAGE] {
        setup.refused(&Request::map(8, offset), ERR_INVALID_PARAMETER);
    }
    setup.guest.map(8, 8 * PAGE);
    setup.ok(&Request::unref(7));
    setup.ok(&Request::unref(8));
    setup.assert_gap(0..PAGES);
}

#[test]
fn a_device_without_a_window_never_answers_a_map_with_success() {
    let guest = Guest::start(Builder::new());
    let window = HostWindow::new(PAGE as usize).expect("a window that the device does not know");
    let mut setup = Setup { guest, window };
    setup.ok(&Request::ctx_create(CONTEXT, 0));
    setup.blob(7, &memfd("no-window", PAGE), PAGE);
    setup.refused(&Request::map(7, 0), ERR_UNSPEC);
    setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
    setup.ok(&Request::unref(7));
}
