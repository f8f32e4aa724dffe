//! A renderer that is in the middle of mapping its own memory when somebody else loses patience: what it maps late never stays
//! in the window, and its range is nobody else's meanwhile.

use std::time::Instant;

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC, OK_MAP_INFO};
use virtio_gpu_uring::testing::{DEADLINE, Request, Token, census};
use virtio_gpu_uring::{HostWindow, Limits};

use super::actor::{FILE, Fate, OWN, until};
use super::fixed_map::mapping_at;
use super::stage::{PAGE, Stage, brief, hasty, patient};

const AT: u64 = 0x4000;

/// The renderer is in this part of its `map_blob` for resource 20: before it maps, or behind.
fn in_the_middle(name: &'static str, limits: Limits, part: &'static str) -> (Stage, Token) {
    let mut stage = Stage::with_context(name, limits);
    for resource in [20, 21] {
        stage.guest.command(&Request::host_blob(1, resource, OWN, PAGE)).ok();
        stage.guest.command(&Request::submit(1, &[resource as u8, 7])).ok();
    }
    stage.director.order(part, Fate::Hang);
    let map = stage.guest.submit(&Request::map(20, AT));
    stage.director.reach("map 20 4096");
    if part == "mapped" {
        until("it has mapped it", || census::maps_named(name) == 1);
    }
    (stage, map)
}

/// In the end the window shows the filler, and no hole.
#[track_caller]
fn until_filled(stage: &Stage, name: &str) {
    until("what came late is gone", || census::maps_named(name) == 0);
    assert_eq!(mapping_at(&stage.window, AT), mapping_at(&stage.window, 0));
    assert_eq!(stage.bytes(AT, 4096), [0; 4096]);
}

#[test]
fn a_renderer_that_maps_slowly_holds_up_nobody_else() {
    let (mut stage, map) = in_the_middle("late-slow", patient(), "map");
    stage.assert_others_live();
    let unref = stage.guest.submit(&Request::unref(20));
    // The range is taken, though nothing shows there yet.
    stage.guest.command(&Request::map(21, AT)).expect_error(ERR_INVALID_PARAMETER);
    stage.guest.command(&Request::map(21, AT - PAGE + 8)).expect_error(ERR_INVALID_PARAMETER);
    stage.guest.settle();
    assert!(!stage.guest.has_answer(&map) && !stage.guest.has_answer(&unref));
    stage.director.release();
    assert_eq!(stage.guest.wait(map).kind(), OK_MAP_INFO);
    stage.guest.wait(unref).ok();
    until_filled(&stage, "late-slow");
}

#[test]
fn what_is_mapped_after_a_reset_never_stays() {
    for part in ["map", "mapped"] {
        let (mut stage, _never_answered) = in_the_middle("late-reset", brief(), part);
        let started = Instant::now();
        stage.restart();
        assert!(started.elapsed() < DEADLINE / 4, "the reset took {:?}", started.elapsed());
        assert!(stage.guest.device().counters().quarantined > 0, "it was not set aside");
        stage.assert_others_live();
        // The next driver has another buffer for that range, and does not get it before it is clear.
        let file = super::memfd("late-reset-next", PAGE);
        let buffer = virtio_gpu_uring::HostBuffer::from_fd(file).expect("a buffer");
        let id = stage.guest.device().offer(buffer).wait().expect("a device").expect("room").0;
        stage.guest.command(&Request::host_blob(50, 30, id, PAGE)).ok();
        stage.guest.command(&Request::map(30, AT)).expect_error(ERR_INVALID_PARAMETER);
        stage.director.spare(part);
        stage.director.release();
        until("the range is free", || stage.guest.command(&Request::map(30, AT)).kind() == OK_MAP_INFO);
        assert_eq!(stage.bytes(AT, 4096), [0; 4096]);
        assert!(mapping_at(&stage.window, AT).1.contains("late-reset-next"));
        stage.guest.command(&Request::unref(30)).ok();
        until_filled(&stage, "late-reset");
        // The renderer is none the worse for it.
        stage.guest.command(&Request::ctx_create(1, 1)).ok();
        stage.guest.command(&Request::host_blob(1, 20, OWN, PAGE)).ok();
        stage.guest.map(20, AT);
        assert_eq!(stage.lost(), 0);
    }
}

#[test]
fn what_is_mapped_after_the_devices_end_never_stays() {
    for part in ["map", "mapped"] {
        let (stage, _never_answered) = in_the_middle("late-end", brief(), part);
        let Stage { guest, director, window, .. } = stage;
        let started = Instant::now();
        drop(guest);
        assert!(started.elapsed() < DEADLINE / 2, "the end took {:?}", started.elapsed());
        director.release();
        director.reach("gone");
        until("what came late is gone", || census::maps_named("late-end") == 0);
        assert_eq!(mapping_at(&window, AT), mapping_at(&window, 0));
        until("its memory is let go", || census::fds_named("late-end") == 0);
    }
}

#[test]
fn what_is_mapped_by_a_call_that_was_given_up_never_reaches_the_window() {
    for part in ["map", "mapped"] {
        let (mut stage, map) = in_the_middle("late-hangs", hasty(), part);
        stage.guest.wait(map).expect_error(ERR_UNSPEC);
        stage.until_lost();
        assert_eq!(stage.guest.device().counters().map_failures, 1);
        stage.assert_others_live();
        let file = super::memfd("late-next-hangs", PAGE);
        let buffer = virtio_gpu_uring::HostBuffer::from_fd(file).expect("a buffer");
        let id = stage.guest.device().offer(buffer).wait().expect("a device").expect("room").0;
        stage.guest.command(&Request::host_blob(50, 30, id, PAGE)).ok();
        // Whether the range is free by now is the device's choice, as long as nobody else comes into it.
        let next = stage.guest.command(&Request::map(30, AT)).kind();
        assert!([OK_MAP_INFO, ERR_INVALID_PARAMETER].contains(&next), "{next:#x}");
        stage.director.release();
        stage.director.reach("gone");
        if next == OK_MAP_INFO {
            assert!(mapping_at(&stage.window, AT).1.contains("late-next-hangs"), "mapped over by the lost renderer");
            stage.guest.command(&Request::unref(30)).ok();
        }
        until_filled(&stage, "late-hangs");
        stage.restart();
        stage.assert_others_live();
    }
}

#[test]
fn what_a_renderer_has_mapped_when_it_panics_never_stays() {
    for part in ["map", "mapped"] {
        let mut stage = Stage::with_context("late-panics", patient());
        for object in [OWN, FILE] {
            stage.guest.command(&Request::host_blob(1, 19 + object as u32, object, PAGE)).ok();
        }
        stage.guest.command(&Request::submit(1, &[20, 7])).ok();
        stage.guest.map(21, 0);
        stage.director.order(part, Fate::Panic);
        stage.guest.command(&Request::map(20, AT)).expect_error(ERR_UNSPEC);
        stage.until_lost();
        stage.director.reach("gone");
        // What was mapped before stays what it was, until the guest gives it up.
        assert!(mapping_at(&stage.window, 0).1.contains("late-panics"));
        stage.guest.command(&Request::unref(21)).ok();
        until_filled(&stage, "late-panics");
        stage.restart();
        stage.assert_others_live();
    }
}

#[test]
fn mappings_that_wait_behind_a_lost_renderer_never_take_their_ranges_along() {
    let (mut stage, map) = in_the_middle("late-behind", hasty(), "map");
    let behind = stage.guest.submit(&Request::map(21, 0x8000));
    for token in [map, behind] {
        stage.guest.wait(token).expect_error(ERR_UNSPEC);
    }
    stage.until_lost();
    let file = super::memfd("late-behind-next", PAGE);
    let buffer = virtio_gpu_uring::HostBuffer::from_fd(file).expect("a buffer");
    stage.assert_others_live();
    let id = stage.guest.device().offer(buffer).wait().expect("a device").expect("room").0;
    stage.guest.command(&Request::host_blob(50, 30, id, PAGE)).ok();
    stage.guest.map(30, 0x8000);
    stage.director.release();
    stage.director.reach("gone");
    assert!(mapping_at(&stage.window, 0x8000).1.contains("late-behind-next"), "mapped over by the lost renderer");
}

#[test]
fn what_was_mapped_before_the_renderer_was_lost_never_stays_longer_than_the_guest_wants_it() {
    for fate in [Fate::Panic, Fate::Hang] {
        let mut stage = Stage::with_context("late-before", if fate == Fate::Hang { hasty() } else { patient() });
        for (resource, at) in [(20, AT), (21, 0x8000), (22, 0xc000)] {
            stage.guest.command(&Request::host_blob(1, resource, OWN, PAGE)).ok();
            stage.guest.command(&Request::submit(1, &[resource as u8, 7])).ok();
            stage.guest.map(resource, at);
        }
        stage.director.order("submit", fate);
        stage.guest.command(&Request::submit(1, b"lost")).expect_error(ERR_UNSPEC);
        stage.until_lost();
        assert_eq!(stage.bytes(AT, 4096), [7; 4096]);
        stage.guest.command(&Request::unmap(20)).ok();
        stage.guest.command(&Request::unref(21)).ok();
        assert_eq!(census::maps_named("late-before"), 1);
        stage.guest.reset();
        until_filled(&stage, "late-before");
        assert_eq!(stage.guest.device().counters().quarantined, 0);
    }
}

#[test]
fn a_large_mapping_is_never_left_behind_half_taken_back() {
    const LARGE: u64 = 40 << 20;
    for ending in ["unmap", "unref", "reset", "drop"] {
        let window = HostWindow::with_scratch(64 << 20, 16 << 20).expect("window");
        let mut stage = Stage::on("late-large", Limits::default(), window).in_context();
        stage.guest.command(&Request::host_blob(1, 20, OWN, LARGE)).ok();
        stage.guest.map(20, 1 << 20);
        assert!(mapping_at(&stage.window, LARGE).1.contains("late-large"));
        let Stage { mut guest, window, director, .. } = stage;
        match ending {
            "unmap" => drop(guest.command(&Request::unmap(20)).ok()),
            "unref" => drop(guest.command(&Request::unref(20)).ok()),
            "reset" => guest.reset(),
            _ => {
                guest.submit(&Request::unmap(20));
                drop(guest);
            }
        }
        assert_eq!(census::maps_named("late-large"), 0, "after {ending}");
        for at in (0..64 << 20).step_by(1 << 20) {
            assert_eq!(mapping_at(&window, at).0, "rw-s", "after {ending} at {at:#x}");
        }
        drop(director);
    }
}
