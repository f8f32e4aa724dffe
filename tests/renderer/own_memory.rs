//! Blobs whose memory is the renderer's own: mapped by the renderer itself at the device's word, live while they are mapped, and
//! gone without a trace and without a hole when they are not.

use virtio_gpu_uring::protocol::features::{BLOB_ALIGNMENT, OFFERED};
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY, ERR_UNSPEC, OK_MAP_INFO,
};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_SHAREABLE, BLOB_MEM_HOST3D};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Request, census};
use virtio_gpu_uring::{Builder, Caching, ExportedMemory, HostWindow, Limits, ReadError};

use super::actor::{FILE, Fate, Mapping, OWN, actor, until};
use super::elsewhere::Elsewhere;
use super::fixed_map::mapping_at;
use super::rendered::{FORMAT, HEIGHT, WIDTH};
use super::stage::{PAGE, Stage, patient};

const LEN: u64 = 1 << 20;
const AT: u64 = 0x4000;

/// A blob of the renderer's own memory.
fn own(resource: u32, size: u64) -> Request {
    Request::host_blob(1, resource, OWN, size)
}

fn fill(resource: u8, byte: u8) -> Request {
    Request::submit(1, &[resource, byte])
}

/// Nothing of the renderer's can be seen at any page of the window's first half, nor is there a hole.
#[track_caller]
fn assert_filler(stage: &Stage, name: &str) {
    let (access, _) = mapping_at(&stage.window, LEN / 2);
    for at in (0..LEN / 2).step_by(4096) {
        let (here, file) = mapping_at(&stage.window, at);
        assert_eq!(here, access, "at {at:#x}");
        assert!(!file.contains(name), "{file} at {at:#x}");
    }
    assert_eq!(census::maps_named(name), 0);
}

#[test]
fn a_mapped_blob_never_shows_anything_but_the_renderers_memory_as_it_is() {
    let mut stage = Stage::with_context("own-live", patient());
    stage.guest.command(&own(20, 2 * PAGE)).ok();
    stage.guest.map(20, AT);
    assert_eq!(stage.director.take(), ["blob 20 1", "map 20 8192"]);
    for byte in [1, 2, 0xff] {
        stage.guest.command(&fill(20, byte)).ok();
        assert_eq!(stage.bytes(AT, 8192), vec![byte; 8192]);
    }
    // The guest's stores reach it, too, and its neighbours are the filler.
    stage.window.write(AT + 4, b"guest").expect("in the window");
    assert_eq!(stage.bytes(AT, 10), [&[0xff; 4][..], b"guest", &[0xff]].concat());
    assert_eq!((stage.bytes(AT - 1, 1), stage.bytes(AT + 8192, 1)), (vec![0], vec![0]));
    stage.guest.command(&Request::unmap(20)).ok();
    assert_filler(&stage, "own-live");
    assert_eq!(stage.bytes(AT, 8192), [0; 8192]);
    // It is still there, with what the guest has written, and may be mapped elsewhere.
    stage.guest.map(20, 0);
    assert_eq!(stage.bytes(4, 5), b"guest");
    stage.guest.command(&Request::unref(20)).ok();
    assert_filler(&stage, "own-live");
    until("the renderer has let go", || census::fds_named("own-live") == 0);
    stage.guest.assert_all_answered();
}

#[test]
fn a_renderer_is_never_asked_to_map_parts_of_pages() {
    let ((factory, director), window) = (actor("own-pages"), HostWindow::new(1 << 20).expect("window"));
    let options = GuestOptions { features: OFFERED & !BLOB_ALIGNMENT, ..GuestOptions::default() };
    let mut guest = Guest::with_options(Builder::new().renderer(factory).window(window), options);
    guest.command(&Request::ctx_create(1, 1)).ok();
    for (size, len) in [(1, 4096), (4095, 4096), (4096, 4096), (4097, 8192), (5000, 8192)] {
        guest.command(&own(20, size)).ok();
        guest.map(20, AT);
        director.reach(&format!("map 20 {len}"));
        guest.command(&Request::unref(20)).ok();
    }
    guest.command(&own(20, u64::MAX - 5).context(1)).expect_error(ERR_OUT_OF_MEMORY);
}

#[test]
fn a_mapping_in_pieces_is_never_shown_in_part() {
    for mapping in [Mapping::FirstPage, Mapping::EachPage] {
        let limits = Limits { mapped_bytes: 2 * PAGE, ..patient() };
        let mut stage = Stage::with_context("own-pieces", limits);
        stage.guest.command(&own(20, 2 * PAGE)).ok();
        stage.guest.command(&fill(20, 6)).ok();
        for _ in 0..2 {
            stage.director.script().mapping = mapping;
            let answer = stage.guest.command(&Request::map(20, AT));
            // What kernels before Linux 6.17 cannot move is refused.
            if answer.kind() == OK_MAP_INFO {
                let last = if mapping == Mapping::FirstPage { 0 } else { 6 };
                assert_eq!((stage.bytes(AT, 4096), stage.bytes(AT + PAGE, 4096)), (vec![6; 4096], vec![last; 4096]));
                stage.guest.command(&Request::unmap(20)).ok();
            } else {
                answer.expect_error(ERR_UNSPEC);
            }
            assert_filler(&stage, "own-pieces");
            stage.director.script().mapping = Mapping::Whole;
            stage.guest.map(20, AT);
            assert_eq!(stage.bytes(AT, 8192), [6; 8192]);
            stage.guest.command(&Request::unmap(20)).ok();
        }
        assert_eq!(stage.guest.device().counters().quarantined, 0);
    }
}

#[test]
fn a_window_that_denies_its_gaps_never_has_one_that_does_not() {
    let window = HostWindow::deny_gaps(1 << 20).expect("window");
    let mut stage = Stage::on("own-deny", patient(), window).in_context();
    stage.guest.command(&own(20, PAGE)).ok();
    stage.guest.map(20, AT);
    stage.guest.command(&fill(20, 7)).ok();
    assert_eq!(stage.bytes(AT, 4096), [7; 4096]);
    stage.guest.command(&Request::unmap(20)).ok();
    assert_filler(&stage, "own-deny");
    assert_eq!(mapping_at(&stage.window, AT), ("---p".into(), String::new()));
    stage.director.order("mapped", Fate::OutOfMemory);
    stage.guest.command(&Request::map(20, AT)).expect_error(ERR_OUT_OF_MEMORY);
    assert_filler(&stage, "own-deny");
    stage.director.spare("mapped");
    stage.guest.map(20, AT);
    stage.guest.reset();
    assert_filler(&stage, "own-deny");
}

#[test]
fn a_guest_is_never_told_another_caching_than_the_renderers() {
    let mut stage = Stage::with_context("own-caching", patient());
    for (caching, info) in [(Caching::Cached, 1), (Caching::Uncached, 2), (Caching::WriteCombining, 3)] {
        stage.director.script().caching = caching;
        for object in [OWN, FILE] {
            stage.guest.command(&Request::host_blob(1, 20, object, PAGE)).ok();
            for _ in 0..2 {
                let answer = stage.guest.command(&Request::map(20, AT));
                assert_eq!(answer.kind(), OK_MAP_INFO);
                assert_eq!(answer.ok(), [info, 0, 0, 0, 0, 0, 0, 0], "{caching:?}");
                stage.guest.command(&Request::unmap(20)).ok();
            }
            stage.guest.command(&Request::unref(20)).ok();
        }
    }
}

#[test]
fn a_mapping_that_the_renderer_refuses_never_leaves_a_hole_nor_a_booking() {
    let limits = Limits { mapped_bytes: PAGE, ..patient() };
    let mut stage = Stage::with_context("own-refused", limits);
    stage.guest.command(&own(20, PAGE)).ok();
    stage.guest.command(&fill(20, 9)).ok();
    let refusals = [(Fate::Invalid, ERR_UNSPEC), (Fate::OutOfMemory, ERR_OUT_OF_MEMORY)];
    // Before it has mapped anything, and after it has taken away what was there.
    for (call, (fate, error)) in
        [("map", refusals[0]), ("map", refusals[1]), ("mapped", refusals[0]), ("mapped", refusals[1])]
    {
        stage.director.order(call, fate);
        let answer = stage.guest.command(&Request::map(20, AT).fenced(5));
        assert_eq!(answer.kind(), error, "{call} {fate:?}: {:#x}", answer.kind());
        assert_eq!(answer.header.fence_id.get(), 5);
        assert_filler(&stage, "own-refused");
        assert_eq!(stage.bytes(AT, 4096), [0; 4096]);
        stage.guest.command(&Request::unmap(20)).expect_error(ERR_INVALID_PARAMETER);
        stage.director.spare(call);
        // The same range, and all of the quota.
        stage.guest.map(20, AT);
        assert_eq!(stage.bytes(AT, 1), [9]);
        stage.guest.command(&Request::unmap(20)).ok();
    }
    let counters = stage.guest.device().counters();
    assert_eq!((counters.maps, counters.map_failures, counters.quarantined), (4, 4, 0));
}

#[test]
fn a_region_without_fixed_ranges_never_keeps_a_booking() {
    let (factory, director) = actor("own-elsewhere");
    let region = Elsewhere::default();
    let limits = Limits { mapped_bytes: PAGE, ..patient() };
    let mut guest = Guest::start(Builder::new().limits(limits).renderer(factory).window(region.clone()));
    guest.command(&Request::ctx_create(1, 1)).ok();
    guest.command(&own(20, PAGE)).ok();
    guest.command(&Request::host_blob(1, 21, FILE, PAGE)).ok();
    for _ in 0..3 {
        guest.command(&Request::map(20, AT)).expect_error(ERR_UNSPEC);
        guest.command(&Request::unmap(20)).expect_error(ERR_INVALID_PARAMETER);
    }
    guest.map(21, AT);
    guest.command(&Request::unmap(21)).ok();
    assert_eq!(region.take(), ["place 0x4000+0x1000", "clear 0x4000+0x1000"]);
    assert!(director.take().iter().all(|call| !call.starts_with("map")), "asked to map what it cannot");
    guest.command(&Request::unref(20)).ok();
    guest.assert_all_answered();
}

#[test]
fn no_blob_is_ever_mapped_where_it_does_not_fit() {
    let mut stage = Stage::with_context("own-rules", patient());
    for (resource, size) in [(20, 2 * PAGE), (21, 2 * PAGE), (22, LEN + PAGE)] {
        stage.guest.command(&own(resource, size)).ok();
    }
    stage.guest.command(&Request::host_blob(1, 23, FILE, PAGE)).ok();
    let unmappable = Request::create_blob(24, BLOB_MEM_HOST3D, BLOB_FLAG_SHAREABLE, OWN, PAGE, &[]).context(1);
    stage.guest.command(&unmappable).ok();
    stage.guest.map(20, AT);
    let _ = stage.director.take();
    let wrong = [
        (20, 0x8000),
        (21, AT),
        (21, AT + PAGE),
        (21, AT - PAGE),
        (21, AT + 8),
        (21, LEN - PAGE),
        (21, LEN),
        (21, u64::MAX),
        (21, u64::MAX - 4095),
        (22, 0),
        (23, AT + PAGE),
        (24, 0),
    ];
    for (resource, offset) in wrong {
        let answer = stage.guest.command(&Request::map(resource, offset));
        assert_eq!(answer.kind(), ERR_INVALID_PARAMETER, "{resource} at {offset:#x}: {:#x}", answer.kind());
    }
    stage.guest.command(&Request::map(99, 0)).expect_error(ERR_INVALID_RESOURCE_ID);
    assert_eq!(stage.director.take(), Vec::<String>::new(), "asked to map what does not fit");
    stage.guest.map(21, AT + 2 * PAGE);
    stage.guest.map(23, AT - PAGE);
    assert_eq!(census::maps_named("own-rules"), 3);
    stage.guest.reset();
    assert_filler(&stage, "own-rules");
}

#[test]
fn a_blob_that_nobody_else_can_reach_is_never_taken_for_one_that_they_can() {
    let mut stage = Stage::with_context("own-private", patient());
    stage.guest.command(&own(20, 64 * PAGE)).ok();
    stage.guest.map(20, AT);
    let _ = stage.viewer.take();
    let range = stage.guest.page_range(4096);
    for request in [
        Request::attach_backing(20, &[range]),
        Request::detach_backing(20),
        Request::set_scanout(0, 20, [0, 0, WIDTH, HEIGHT]),
        Request::set_scanout_blob(0, 20, [WIDTH, HEIGHT], FORMAT, WIDTH * 4, 0),
        Request::transfer_2d(20, [0, 0, 1, 1], 0),
    ] {
        stage.guest.command(&request).expect_error(ERR_INVALID_PARAMETER);
    }
    // No scanout shows it: there is nothing to flush, and nothing wrong with that.
    stage.guest.command(&Request::flush(20, [0, 0, WIDTH, HEIGHT])).ok();
    let cursor = stage.guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 20, (0, 0), (0, 0)));
    stage.guest.wait_on(Lane::Cursor, cursor).expect_error(ERR_INVALID_PARAMETER);
    assert_eq!(stage.viewer.take(), []);
    let read = stage.guest.device().read_blob(20, ..).wait().expect("a device");
    assert!(matches!(read, Err(ReadError::NotABlob { resource: 20 })), "{read:?}");
    let uuid = stage.guest.command(&Request::assign_uuid(20)).ok();
    let uuid = <[u8; 16]>::try_from(&uuid[..16]).expect("sixteen bytes");
    let exported = stage.guest.device().exported(uuid).wait().expect("a device").expect("a descriptor");
    let exported = exported.expect("a resource of that name");
    assert!(matches!((exported.resource, exported.memory), (20, ExportedMemory::Private)));
    stage.guest.command(&Request::ctx_attach(1, 20)).ok();
    stage.guest.command(&fill(20, 3)).ok();
    assert_eq!(stage.bytes(AT, 4), [3; 4]);
    stage.guest.assert_all_answered();
}

#[test]
fn a_blob_never_outlives_its_resource_in_the_window_and_lives_on_without_its_context() {
    let mut stage = Stage::with_context("own-unref", patient());
    stage.guest.command(&own(20, PAGE)).ok();
    stage.guest.map(20, AT);
    stage.guest.command(&fill(20, 5)).ok();
    stage.guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(stage.bytes(AT, 1), [5]);
    // The renderer may forget it before the device has taken it out of the window, or after.
    for round in 0..20 {
        let unref = stage.guest.submit(&Request::unref(20));
        stage.guest.wait(unref).ok();
        assert_filler(&stage, "own-unref");
        assert_eq!(stage.bytes(AT, 4096), [0; 4096], "round {round}");
        stage.guest.command(&Request::ctx_create(1, 1)).ok();
        stage.guest.command(&own(20, PAGE)).ok();
        stage.guest.map(20, AT);
        stage.guest.command(&fill(20, 5)).ok();
        stage.guest.command(&Request::ctx_destroy(1)).ok();
    }
    stage.guest.reset();
    assert_filler(&stage, "own-unref");
    let calls = stage.director.take();
    let count = |wanted: &str| calls.iter().filter(|call| call.as_str() == wanted).count();
    assert_eq!((count("blob 20 1"), count("map 20 4096"), count("forget 20")), (21, 21, 21));
}
