//! Gaps hold the one filler: the same before a blob came as after it went, by whichever way it went.

use std::fs;

use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{Builder, HostWindow};

use crate::setup::{CONTEXT, PAGE, PAGES, Setup, memfd};

/// The lines of `/proc/self/maps` that lie in a window, as (first page, pages, access, what is mapped).
fn lines_of(window: &HostWindow) -> Vec<(u64, u64, String, String)> {
    let base = window.host_address() as u64;
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?.max(base);
        let end = u64::from_str_radix(end, 16).ok()?.min(base + window.len());
        let access = words.next()?.to_string();
        let name = words.nth(3).unwrap_or_default().to_string();
        (start < end).then(|| ((start - base) / PAGE, (end - start) / PAGE, access, name))
    };
    maps.lines().filter_map(parse).collect()
}

/// Asserts that the lines cover the whole window: a hole would soon be filled by an allocation of the VMM's.
#[track_caller]
fn assert_no_hole(window: &HostWindow) {
    let lines = lines_of(window);
    let mut next = 0;
    for (first, pages, ..) in &lines {
        assert_eq!(*first, next, "a hole: {lines:?}");
        next = first + pages;
    }
    assert_eq!(next, window.len() / PAGE, "a hole at the end: {lines:?}");
}

#[test]
fn the_filler_is_never_another_one_after_unmap() {
    let mut setup = Setup::new();
    setup.paint();
    let at_the_start = lines_of(&setup.window);
    let file = memfd("then-unmapped", 5 * PAGE);
    setup.blob(7, &file, 5 * PAGE);
    for first in [0, 3, PAGES - 5] {
        setup.guest.map(7, first * PAGE);
        setup.window.write(first * PAGE, &[0xff; 64]).expect("in the window");
        assert_no_hole(&setup.window);
        setup.ok(&Request::unmap(7));
        setup.assert_gap(0..PAGES);
        assert_no_hole(&setup.window);
    }
    setup.paint();
    setup.assert_gap(0..PAGES);
    assert_eq!(lines_of(&setup.window), at_the_start);
}

#[test]
fn an_unref_never_leaves_pages_of_its_blob_in_the_window() {
    let name = "then-unreferenced";
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd(name, 5 * PAGE);
    for first in [0, 3, PAGES - 5] {
        setup.blob(7, &file, 5 * PAGE);
        setup.guest.map(7, first * PAGE);
        setup.ok(&Request::unref(7));
        setup.assert_gap(0..PAGES);
        assert_no_hole(&setup.window);
        assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
    }
}

#[test]
fn a_reset_never_leaves_pages_in_the_window_nor_descriptors_open() {
    let name = "then-reset";
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd(name, 5 * PAGE);
    for _ in 0..10 {
        for resource in 1..=12 {
            setup.blob(resource, &file, 5 * PAGE);
            setup.guest.map(resource, u64::from(resource - 1) * 5 * PAGE);
        }
        setup.guest.reset();
        setup.assert_gap(0..PAGES);
        assert_no_hole(&setup.window);
        assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
        setup.guest.activate();
        setup.ok(&Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN));
    }
}

#[test]
fn a_dropped_device_never_leaves_pages_in_the_window_nor_descriptors_open() {
    let name = "then-dropped";
    let mut setup = Setup::new();
    setup.paint();
    let window = setup.window.clone();
    let file = memfd(name, 5 * PAGE);
    for resource in 1..=3 {
        setup.blob(resource, &file, 5 * PAGE);
    }
    setup.guest.map(1, 0);
    setup.guest.map(2, 20 * PAGE);
    drop(setup);
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
    assert_no_hole(&window);
    for page in 0..PAGES {
        let mut byte = [0];
        window.read(page * PAGE, &mut byte).expect("in the window");
        assert_eq!(byte, [crate::setup::gap(page)], "page {page}");
    }
}

#[test]
fn a_stopped_device_never_leaves_pages_in_the_window() {
    let name = "then-stopped";
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd(name, 5 * PAGE);
    setup.blob(7, &file, 5 * PAGE);
    setup.guest.map(7, 0);
    setup.guest.device().stop().wait().expect("a device");
    setup.assert_gap(0..PAGES);
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
}

#[test]
fn a_scratch_smaller_than_the_window_never_breaks_it_up_wrongly() {
    // Three pages of scratch under 64 pages: a gap starts anywhere in it.
    let window = HostWindow::with_scratch((PAGES * PAGE) as usize, 3 * PAGE as usize).expect("a window");
    let mut setup = Setup::on(window, Builder::new());
    let scratch = |page: u64| 0x40 + (page % 3) as u8;
    for page in 0..PAGES {
        setup.window.write(page * PAGE, &[scratch(page)]).expect("in the window");
    }
    let file = memfd("over-scratch", 7 * PAGE);
    setup.blob(7, &file, 7 * PAGE);
    for first in 0..PAGES - 7 {
        setup.guest.map(7, first * PAGE);
        assert_eq!(setup.pages(first..first + 7), [1, 2, 3, 4, 5, 6, 7]);
        setup.ok(&Request::unmap(7));
        let want: Vec<u8> = (0..PAGES).map(scratch).collect();
        assert_eq!(setup.pages(0..PAGES), want, "after a blob at page {first}");
    }
}

#[test]
fn a_gap_that_denies_access_is_never_open_before_or_after_a_blob() {
    let window = HostWindow::deny_gaps((PAGES * PAGE) as usize).expect("a window");
    let mut setup = Setup::on(window, Builder::new());
    let closed = vec![(0, PAGES, "---p".to_string(), String::new())];
    assert_eq!(lines_of(&setup.window), closed);
    let file = memfd("in-a-closed-window", 3 * PAGE);
    for (resource, end) in [(7, Request::unmap(7)), (8, Request::unref(8))] {
        setup.blob(resource, &file, 3 * PAGE);
        setup.guest.map(resource, 4 * PAGE);
        assert_eq!(setup.pages(4..7), [1, 2, 3]);
        let lines = lines_of(&setup.window);
        let shape: Vec<_> = lines.iter().map(|(first, pages, access, _)| (*first, *pages, access.as_str())).collect();
        assert_eq!(shape, [(0, 4, "---p"), (4, 3, "rw-s"), (7, PAGES - 7, "---p")]);
        setup.ok(&end);
        assert_eq!(lines_of(&setup.window), closed);
    }
    setup.guest.map(7, 0);
    setup.guest.reset();
    assert_eq!(lines_of(&setup.window), closed);
}

#[test]
fn the_scratch_memory_is_never_inherited_by_a_child() {
    let _setup = Setup::new();
    let mut seen = 0;
    for entry in fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten() {
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        if link.to_string_lossy().contains("virtio-gpu-window") {
            let info = format!("/proc/self/fdinfo/{}", entry.file_name().to_string_lossy());
            // Another test may have closed its own meanwhile.
            let Ok(info) = fs::read_to_string(info) else { continue };
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags").trim();
            let flags = u32::from_str_radix(flags, 8).expect("an octal number");
            assert_ne!(flags & 0o2_000_000, 0, "not CLOEXEC: {info}");
            seen += 1;
        }
    }
    assert!(seen > 0, "the scratch memory has another name now");
}
