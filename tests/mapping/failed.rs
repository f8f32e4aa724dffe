//! A MAP that fails leaves window and books exactly as they were: buffers that claim to be mappable and are not, as a
//! dma-buf is that only a GPU can use.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC};
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{Access, BufferKind, Builder, HostBuffer, ReadOnlyPolicy};

use crate::setup::{CONTEXT, PAGE, PAGES, Setup, memfd};

/// Files whose own `mmap` fails, after the kernel has dropped what a MAP_FIXED replaces.
fn late_failures() -> Vec<(&'static str, OwnedFd)> {
    let mut files = Vec::new();
    // An attribute of the kernel's: a size of one page, seekable, and an `mmap` of its own that answers ENODEV.
    match File::open("/sys/kernel/mm/transparent_hugepage/enabled") {
        Ok(file) => files.push(("a kernel attribute", file.into())),
        Err(error) => eprintln!("skipped: no kernel attribute to stand in for a GPU-only dma-buf ({error})"),
    }
    match socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None) {
        Ok(socket) => files.push(("a packet socket", socket)),
        Err(errno) => eprintln!("skipped: a packet socket needs CAP_NET_RAW ({errno})"),
    }
    files
}

/// The window's lines of `/proc/self/maps`.
fn lines_of(setup: &Setup) -> Vec<String> {
    let base = setup.window.host_address() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let inside = |line: &&str| {
        let start = line.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
        start.is_some_and(|start| (base..base + setup.window.len()).contains(&start))
    };
    maps.lines().filter(inside).map(str::to_string).collect()
}

#[test]
fn a_buffer_that_cannot_be_mapped_never_leaves_a_hole() {
    for (what, file) in late_failures() {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            let mut setup = Setup::new();
            setup.paint();
            let before = lines_of(&setup);
            let file = file.try_clone().expect("a duplicate");
            setup.blob_of(7, HostBuffer::stand_in(file, BufferKind::DmaBuf, PAGE, access), PAGE);
            for first in [0, 10, PAGES - 1] {
                let answer = setup.guest.command(&Request::map(7, first * PAGE));
                assert!((0x1200..0x1206).contains(&answer.kind()), "{what}: answered {:#x}", answer.kind());
                assert_eq!(lines_of(&setup), before, "{what}, {access:?}: the window has changed");
                setup.assert_gap(0..PAGES);
            }
            setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
            let failures = setup.guest.device().counters().map_failures;
            assert_eq!(failures, 3, "{what}");
            setup.ok(&Request::unref(7));
        }
    }
}

#[test]
fn a_failed_map_never_keeps_its_range_from_the_next_blob_nor_its_blob_from_a_range() {
    for (_, file) in late_failures() {
        let mut setup = Setup::new();
        setup.paint();
        setup.blob_of(7, HostBuffer::stand_in(file, BufferKind::DmaBuf, PAGE, Access::ReadOnly), PAGE);
        setup.blob(8, &memfd("in-the-same-place", 2 * PAGE), 2 * PAGE);
        for _ in 0..3 {
            setup.refused(&Request::map(7, 4 * PAGE), ERR_UNSPEC);
            setup.guest.map(8, 3 * PAGE);
            setup.refused(&Request::map(7, 4 * PAGE), ERR_INVALID_PARAMETER);
            assert_eq!(setup.pages(3..5), [1, 2]);
            setup.ok(&Request::unmap(8));
            setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
        }
        setup.assert_gap(0..PAGES);
    }
}

#[test]
fn a_failed_map_of_a_private_mapping_never_falls_back_into_a_hole() {
    for policy in [ReadOnlyPolicy::Allow, ReadOnlyPolicy::Refuse] {
        for (what, file) in late_failures() {
            let mut setup = Setup::with(Builder::new().read_only(policy));
            setup.paint();
            setup.blob_of(7, HostBuffer::stand_in(file, BufferKind::DmaBuf, PAGE, Access::ReadOnly), PAGE);
            setup.refused(&Request::map(7, 0), ERR_UNSPEC);
            setup.assert_gap(0..PAGES);
            assert_eq!(lines_of(&setup).len(), 1, "{what}");
        }
    }
}

#[test]
fn a_buffer_that_is_smaller_than_it_was_taken_for_is_never_mapped() {
    let name = "smaller-than-taken-for";
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd(name, PAGE);
    let claims =
        HostBuffer::stand_in(file.try_clone().expect("a duplicate"), BufferKind::DmaBuf, 8 * PAGE, Access::ReadWrite);
    setup.blob_of(7, claims, 8 * PAGE);
    setup.refused(&Request::map(7, 0), ERR_INVALID_PARAMETER);
    setup.assert_gap(0..PAGES);
    assert_eq!(census::maps_named(name), 0);
}

#[test]
fn a_failed_map_never_costs_a_descriptor() {
    let name = "failed-map";
    let mut setup = Setup::new();
    let file = memfd(name, 2 * PAGE);
    setup.blob(7, &file, 2 * PAGE);
    for _ in 0..100 {
        setup.refused(&Request::map(7, PAGES * PAGE), ERR_INVALID_PARAMETER);
        let id = setup.offer(&file);
        setup.refused(&Request::host_blob(CONTEXT, 8, id, 3 * PAGE), ERR_INVALID_PARAMETER);
        setup.ok(&Request::host_blob(CONTEXT, 8, id, PAGE));
        setup.refused(&Request::map(8, 1), ERR_INVALID_PARAMETER);
        setup.ok(&Request::unref(8));
    }
    assert_eq!((census::fds_named(name), census::maps_named(name)), (2, 0));
}
