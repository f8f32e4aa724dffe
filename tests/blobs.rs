//! Blobs but for their mapping: which are created and which are refused, what they hold, and how they end.
#![cfg(feature = "testing")]

#[path = "blobs/contexts.rs"]
mod contexts;
#[path = "blobs/guest_memory.rs"]
mod guest_memory;
#[path = "blobs/offers.rs"]
mod offers;
#[path = "blobs/setup.rs"]
mod setup;

use virtio_gpu_uring::protocol::features;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY, ERR_UNSPEC,
};
use virtio_gpu_uring::protocol::wire::{
    BLOB_FLAG_CROSS_DEVICE, BLOB_FLAG_MAPPABLE, BLOB_FLAG_SHAREABLE, BLOB_MEM_GUEST, BLOB_MEM_HOST3D,
    BLOB_MEM_HOST3D_GUEST,
};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request, census};
use virtio_gpu_uring::{Builder, HostBuffer, HostWindow, Limits};

use setup::{CONTEXT, PAGE, PAGES, Setup, memfd};

const ALL_FLAGS: u32 = BLOB_FLAG_MAPPABLE | BLOB_FLAG_SHAREABLE | BLOB_FLAG_CROSS_DEVICE;

/// A blob of host memory with flags of the caller's.
fn host_blob(resource: u32, flags: u32, blob_id: u64, size: u64) -> Request {
    Request::create_blob(resource, BLOB_MEM_HOST3D, flags, blob_id, size, &[]).context(CONTEXT)
}

/// A guest whose driver has acknowledged `features`.
fn driver_with(features: u64) -> Setup {
    let window = HostWindow::new((PAGES * PAGE) as usize).expect("a window");
    let options = GuestOptions { features, ..GuestOptions::default() };
    Setup::with_options(window.clone(), Builder::new().window(window), options)
}

#[test]
fn a_resource_id_of_zero_or_in_use_is_never_created() {
    let mut setup = Setup::new();
    let file = memfd("ids", PAGE);
    setup.blob(7, &file, PAGE);
    let range = setup.guest.page_range(4096);
    for resource in [0, 7] {
        let offer = setup.offer(&file);
        setup.refused(&host_blob(resource, ALL_FLAGS, offer, PAGE), ERR_INVALID_RESOURCE_ID);
        setup.refused(&Request::guest_blob(resource, PAGE, &[range]), ERR_INVALID_RESOURCE_ID);
    }
    setup.guest.map(7, 0);
    assert_eq!(setup.byte(0), 1, "the first owner of the id has lost its blob");
    setup.ok(&Request::guest_blob(u32::MAX, PAGE, &[range]));
}

#[test]
fn no_memory_type_but_guest_and_host3d_is_created() {
    let mut setup = Setup::new();
    let offer = setup.offer(&memfd("types", PAGE));
    let range = setup.guest.page_range(4096);
    for memory in [0, BLOB_MEM_HOST3D_GUEST, 4, 0x100, u32::MAX] {
        for (list, id) in [(&[range][..], 0), (&[][..], offer)] {
            let create = Request::create_blob(7, memory, BLOB_FLAG_MAPPABLE, id, PAGE, list).context(CONTEXT);
            setup.refused(&create, ERR_INVALID_PARAMETER);
            setup.refused(&Request::unref(7), ERR_INVALID_RESOURCE_ID);
        }
    }
    setup.ok(&host_blob(7, ALL_FLAGS, offer, PAGE));
}

#[test]
fn an_unknown_blob_flag_is_never_ignored() {
    let mut setup = Setup::new();
    let file = memfd("flags", PAGE);
    let offer = setup.offer(&file);
    let range = setup.guest.page_range(4096);
    for bit in 3..32 {
        setup.refused(&host_blob(7, 1 << bit | BLOB_FLAG_MAPPABLE, offer, PAGE), ERR_INVALID_PARAMETER);
        let guest = Request::create_blob(7, BLOB_MEM_GUEST, 1 << bit, 0, PAGE, &[range]);
        setup.refused(&guest, ERR_INVALID_PARAMETER);
    }
    for flags in 0..=ALL_FLAGS {
        let offer = setup.offer(&file);
        setup.ok(&host_blob(100 + flags, flags, offer, PAGE));
        setup.ok(&Request::create_blob(200 + flags, BLOB_MEM_GUEST, flags, 0, PAGE, &[range]));
    }
}

#[test]
fn a_blob_that_was_not_created_mappable_is_never_mapped() {
    let mut setup = Setup::new();
    setup.paint();
    for flags in [0, BLOB_FLAG_SHAREABLE, BLOB_FLAG_CROSS_DEVICE, BLOB_FLAG_SHAREABLE | BLOB_FLAG_CROSS_DEVICE] {
        let offer = setup.offer(&memfd("unmappable", PAGE));
        setup.ok(&host_blob(10 + flags, flags, offer, PAGE));
        setup.refused(&Request::map(10 + flags, 0), ERR_INVALID_PARAMETER);
    }
    setup.assert_gap(0..PAGES);
}

#[test]
fn a_blob_of_no_size_is_never_created() {
    let mut setup = Setup::new();
    let offer = setup.offer(&memfd("empty", PAGE));
    let range = setup.guest.page_range(4096);
    setup.refused(&host_blob(7, ALL_FLAGS, offer, 0), ERR_INVALID_PARAMETER);
    setup.refused(&Request::guest_blob(7, 0, &[range]), ERR_INVALID_PARAMETER);
    setup.refused(&Request::guest_blob(7, 0, &[]), ERR_INVALID_PARAMETER);
}

#[test]
fn a_size_off_the_negotiated_alignment_is_never_taken() {
    let mut setup = Setup::new();
    let offer = setup.offer(&memfd("aligned", 4 * PAGE));
    let range = setup.guest.page_range(16384);
    for size in [1, 2312, PAGE - 1, PAGE + 1, 3 * PAGE + 8] {
        setup.refused(&host_blob(7, ALL_FLAGS, offer, size), ERR_INVALID_PARAMETER);
        setup.refused(&Request::guest_blob(7, size, &[range]), ERR_INVALID_PARAMETER);
    }
    setup.ok(&host_blob(7, ALL_FLAGS, offer, 3 * PAGE));
}

#[test]
fn without_blob_alignment_no_size_is_refused_for_its_alignment() {
    let mut setup = driver_with(features::OFFERED & !features::BLOB_ALIGNMENT);
    let file = memfd("odd", 4 * PAGE);
    for (resource, size) in [(7, 1), (8, 2312), (9, PAGE + 1), (10, 4 * PAGE - 1)] {
        setup.blob(resource, &file, size);
        let offset = u64::from(resource) * 4 * PAGE;
        setup.guest.map(resource, offset);
        assert_eq!(setup.byte(offset), 1);
        let last_page = (size - 1) / PAGE;
        assert_eq!(setup.byte(offset + last_page * PAGE), last_page as u8 + 1, "the last page of {size} bytes");
    }
    let range = setup.guest.page_range(4096);
    setup.ok(&Request::guest_blob(20, 100, &[(range.0, 100)]));
}

#[test]
fn sixteen_kib_of_alignment_is_never_relaxed_to_the_page() {
    let mut setup = Setup::with(Builder::new().blob_alignment(4 * PAGE));
    setup.paint();
    let mut word = [0; 4];
    setup.guest.device().read_config(16, &mut word);
    assert_eq!(u32::from_le_bytes(word), 16384);
    let file = memfd("sixteen", 8 * PAGE);
    let offer = setup.offer(&file);
    for size in [PAGE, 2 * PAGE, 5 * PAGE] {
        setup.refused(&host_blob(7, ALL_FLAGS, offer, size), ERR_INVALID_PARAMETER);
    }
    setup.ok(&host_blob(7, ALL_FLAGS, offer, 8 * PAGE));
    for offset in [PAGE, 2 * PAGE, 3 * PAGE, 6 * PAGE] {
        setup.refused(&Request::map(7, offset), ERR_INVALID_PARAMETER);
    }
    setup.assert_gap(0..PAGES);
    setup.guest.map(7, 8 * PAGE);
    assert_eq!(setup.pages(8..16), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_blob_of_a_small_memfd_reaches_no_further_than_its_page() {
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd("small", 2312);
    setup::put(&file, 2311, 0x77);
    for size in [2 * PAGE, 3 * PAGE, 1 << 32, u64::MAX - PAGE + 1] {
        let offer = setup.offer(&file);
        setup.refused(&host_blob(7, ALL_FLAGS, offer, size), ERR_INVALID_PARAMETER);
    }
    setup.blob(7, &file, PAGE);
    setup.guest.map(7, 5 * PAGE);
    assert_eq!((setup.byte(5 * PAGE), setup.byte(5 * PAGE + 2311)), (1, 0x77));
    setup.assert_gap(0..5);
    setup.assert_gap(6..PAGES);
}

#[test]
fn a_blob_smaller_than_its_buffer_shows_no_more_than_its_size() {
    let mut setup = Setup::new();
    setup.paint();
    setup.blob(7, &memfd("large", 8 * PAGE), 2 * PAGE);
    setup.guest.map(7, 10 * PAGE);
    assert_eq!(setup.pages(10..12), [1, 2]);
    setup.assert_gap(12..PAGES);
}

#[test]
fn a_blob_of_host_memory_never_takes_entries() {
    let mut setup = Setup::new();
    let offer = setup.offer(&memfd("entries", PAGE));
    let range = setup.guest.page_range(4096);
    let create = Request::create_blob(7, BLOB_MEM_HOST3D, ALL_FLAGS, offer, PAGE, &[range]).context(CONTEXT);
    setup.refused(&create, ERR_INVALID_PARAMETER);
    setup.ok(&host_blob(7, ALL_FLAGS, offer, PAGE));
    setup.refused(&Request::attach_backing(7, &[range]), ERR_INVALID_PARAMETER);
    setup.refused(&Request::detach_backing(7), ERR_INVALID_PARAMETER);
}

#[test]
fn no_blob_command_is_served_without_resource_blob() {
    let without = features::OFFERED & !features::RESOURCE_BLOB & !features::BLOB_ALIGNMENT;
    let mut setup = driver_with(without);
    let offer = setup.offer(&memfd("unnegotiated", PAGE));
    let range = setup.guest.page_range(4096);
    let refused = [
        host_blob(7, ALL_FLAGS, offer, PAGE),
        Request::guest_blob(7, PAGE, &[range]),
        Request::map(7, 0),
        Request::unmap(7),
    ];
    for request in &refused {
        setup.refused(request, ERR_UNSPEC);
    }
    setup.refused(&Request::unref(7), ERR_INVALID_RESOURCE_ID);
}

#[test]
fn without_virgl_host_memory_and_contexts_are_refused_and_guest_memory_is_not() {
    let window = HostWindow::new((PAGES * PAGE) as usize).expect("a window");
    let features = features::OFFERED & !features::VIRGL & !features::CONTEXT_INIT;
    let options = GuestOptions { features, ..GuestOptions::default() };
    let guest = Guest::with_options(Builder::new().window(window.clone()), options);
    let mut setup = Setup { guest, window };
    let offer = setup.offer(&memfd("virgl", PAGE));
    let range = setup.guest.page_range(4096);
    for request in [
        Request::ctx_create(CONTEXT, 5),
        Request::ctx_destroy(CONTEXT),
        Request::ctx_attach(CONTEXT, 8),
        Request::ctx_detach(CONTEXT, 8),
        Request::submit(CONTEXT, &Request::stream_poll()),
        host_blob(7, ALL_FLAGS, offer, PAGE),
    ] {
        setup.refused(&request, ERR_UNSPEC);
    }
    setup.ok(&Request::guest_blob(7, PAGE, &[range]));
    setup.ok(&Request::unref(7));
}

#[test]
fn more_resources_than_the_limit_are_refused_counted_and_leave_room_after_unref() {
    let limits = Limits { resources: 2, ..Limits::default() };
    let mut setup = Setup::with(Builder::new().limits(limits));
    let file = memfd("resources", PAGE);
    setup.blob(1, &file, PAGE);
    let range = setup.guest.page_range(4096);
    setup.ok(&Request::guest_blob(2, PAGE, &[range]));
    let before = setup.guest.device().counters().limit_refusals;
    let offer = setup.offer(&file);
    setup.refused(&host_blob(3, ALL_FLAGS, offer, PAGE), ERR_OUT_OF_MEMORY);
    setup.refused(&Request::guest_blob(3, PAGE, &[range]), ERR_OUT_OF_MEMORY);
    assert_eq!(setup.guest.device().counters().limit_refusals - before, 2);
    setup.ok(&Request::unref(2));
    setup.ok(&host_blob(3, ALL_FLAGS, offer, PAGE));
}

#[test]
fn an_offer_beyond_the_limit_of_descriptors_is_refused_and_its_file_closed() {
    let name = "limit-of-offers";
    let limits = Limits { fds: 3, ..Limits::default() };
    // One is the context's, for its socket.
    let mut setup = Setup::with(Builder::new().limits(limits));
    let file = memfd(name, PAGE);
    let first = setup.offer(&file);
    let _second = setup.offer(&file);
    let buffer = HostBuffer::from_fd(file.try_clone().expect("a duplicate")).expect("a buffer");
    let third = setup.guest.device().offer(buffer).wait().expect("a device");
    assert!(third.is_err(), "{third:?}");
    assert_eq!(census::fds_named(name), 3);
    setup.ok(&host_blob(7, ALL_FLAGS, first, PAGE));
    setup.ok(&Request::unref(7));
    assert_eq!(census::fds_named(name), 2);
    setup.offer(&file);
}
