//! Rows 1 to 7 and 13, and the edge cases of mapping: what a guest could do to the VMM's memory, or keep of it.

use std::fs::File;

use rustix::fs::{SealFlags, fcntl_add_seals};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_UNSPEC};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_MAPPABLE, BLOB_MEM_HOST3D, CAPSET_CROSS_DOMAIN};
use virtio_gpu_uring::testing::{DEADLINE, Lane, Misbehaviour, Request, census};
use virtio_gpu_uring::{Access, BufferKind, HostBuffer};

use crate::setup::{CONTEXT, PAGE, PAGES, Setup, get, memfd, put};

/// A guest with an unmapped blob of two pages as resource 7, whose file has a name of its own.
fn with_blob(name: &str) -> (Setup, std::os::fd::OwnedFd) {
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd(name, 2 * PAGE);
    setup.blob(7, &file, 2 * PAGE);
    (setup, file)
}

/// Row 1: a range outside the window was logged, and then mapped over the VMM's memory above it.
#[test]
fn no_page_is_mapped_above_the_window() {
    let name = "above-the-window";
    let (mut setup, _file) = with_blob(name);
    for page in [PAGES - 1, PAGES, PAGES + 1, 2 * PAGES, 1 << 30] {
        setup.refused(&Request::map(7, page * PAGE), ERR_INVALID_PARAMETER);
        assert_eq!(census::maps_named(name), 0, "at page {page}");
    }
    setup.assert_gap(0..PAGES);
}

/// Row 2: offset and size were added without a check, so that a sum that wraps passed and mapped below the window.
#[test]
fn no_sum_of_offset_and_size_wraps_to_below_the_window() {
    let name = "below-the-window";
    let (mut setup, _file) = with_blob(name);
    for offset in [u64::MAX - PAGE + 1, u64::MAX - 2 * PAGE + 1, u64::MAX - 3 * PAGE + 1, u64::MAX, 1 << 63] {
        setup.refused(&Request::map(7, offset), ERR_INVALID_PARAMETER);
        assert_eq!(census::maps_named(name), 0, "at {offset:#x}");
    }
    setup.assert_gap(0..PAGES);
}

/// Row 2b: a MAP_FIXED that fails in the file's own code left a hole, which the VMM's next allocations filled.
#[test]
fn a_failed_placement_leaves_no_hole_for_the_vmm_s_allocations() {
    // The attribute's own `mmap` answers ENODEV, as late as a dma-buf's answers EINVAL.
    let file = match File::open("/sys/kernel/mm/transparent_hugepage/enabled") {
        Ok(file) => file,
        Err(error) => return eprintln!("skipped: nothing to stand in for a GPU-only dma-buf ({error})"),
    };
    let mut setup = Setup::new();
    setup.paint();
    setup.blob_of(7, HostBuffer::stand_in(file.into(), BufferKind::DmaBuf, PAGE, Access::ReadOnly), PAGE);
    for page in 0..PAGES {
        setup.refused(&Request::map(7, page * PAGE), ERR_UNSPEC);
    }
    let base = setup.window.host_address() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let whole = format!("{base:08x}-{:08x} rw-s", base + PAGES * PAGE);
    assert!(maps.contains(&whole), "the window is no longer one mapping:\n{maps}");
    setup.assert_gap(0..PAGES);
}

/// Row 3: the window was part of guest memory, so that requests and rings could lie in it and vanish under the VMM.
#[test]
fn nothing_that_the_device_reads_or_writes_may_lie_in_the_window() {
    let mut setup = Setup::new();
    setup.paint();
    let end = setup.guest.ram().end().0;
    // Where a VMM puts the window, and where it really is.
    for address in [end, end + (1 << 30), setup.window.host_address() as u64] {
        setup.refused(&Request::guest_blob(8, PAGE, &[(address, 4096)]), ERR_INVALID_PARAMETER);
    }
    for how in [Misbehaviour::RequestOutsideRam, Misbehaviour::ResponseOutsideRam] {
        let broken = setup.guest.device().counters().rings_broken;
        let request = Request::display_info();
        let queue = setup.guest.queue(Lane::Control);
        let token = queue.add_misbehaving(how, &request.bytes(), request.room()).expect("room in the queue");
        setup.guest.publish(Lane::Control);
        let started = std::time::Instant::now();
        while !setup.guest.has_answer(&token) && setup.guest.device().counters().rings_broken == broken {
            assert!(started.elapsed() < DEADLINE, "{how:?}: neither answered nor reported");
            std::thread::yield_now();
        }
        setup.guest.reset();
        setup.guest.activate();
        setup.guest.settle();
    }
    setup.assert_gap(0..PAGES);
}

/// Row 4: what an UNMAP left was not what had been there: the next touch ended the machine.
#[test]
fn a_gap_is_no_other_after_unmap_than_it_was_before_map() {
    let (mut setup, _file) = with_blob("row-4");
    setup.guest.map(7, PAGE);
    setup.ok(&Request::unmap(7));
    setup.assert_gap(0..PAGES);
    setup.window.write(PAGE, &[1, 2, 3]).expect("the gap takes writes as before");
}

/// Row 5: a guest write to a read-only mapping ended the whole machine.
#[test]
fn a_guest_write_to_a_sealed_buffer_does_not_end_the_machine() {
    let (mut setup, file) = with_blob("row-5");
    fcntl_add_seals(&file, SealFlags::WRITE).expect("sealed");
    setup.blob(8, &file, 2 * PAGE);
    setup.guest.map(8, 0);
    setup.window.write(0, &[0xee]).expect("in the window");
    assert_eq!((setup.byte(0), get(&file, 0), setup.byte(PAGE)), (0xee, 1, 2));
}

/// Row 6: a resource that was given up while it was mapped stayed visible, and pinned, for the machine's life.
#[test]
fn an_unref_while_mapped_leaves_neither_pages_nor_descriptor() {
    let name = "row-6-unref";
    let (mut setup, file) = with_blob(name);
    setup.guest.map(7, 0);
    setup.ok(&Request::unref(7));
    setup.assert_gap(0..PAGES);
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
    setup.blob(8, &file, PAGE);
    setup.guest.map(8, 0);
}

/// Row 6: a second MAP overwrote the books, so that the first range leaked.
#[test]
fn a_second_map_does_not_leak_the_first_range() {
    let name = "row-6-double";
    let (mut setup, _file) = with_blob(name);
    setup.guest.map(7, 0);
    setup.refused(&Request::map(7, 10 * PAGE), ERR_INVALID_PARAMETER);
    assert_eq!(census::maps_named(name), 1);
    setup.ok(&Request::unmap(7));
    assert_eq!(census::maps_named(name), 0);
    setup.assert_gap(0..PAGES);
}

/// Rows 6 and 13: a reset was not supported; maps, descriptors and contexts lived on, and a driver could not come back.
#[test]
fn a_reset_leaves_nothing_and_a_driver_comes_back_any_number_of_times() {
    let name = "reset-and-back";
    let (mut setup, file) = with_blob(name);
    setup.guest.map(7, 0);
    for round in 0..20 {
        setup.guest.reset();
        setup.assert_gap(0..PAGES);
        assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0), "round {round}");
        setup.guest.activate();
        setup.refused(&Request::unref(7), ERR_INVALID_RESOURCE_ID);
        setup.ok(&Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN));
        setup.blob(7, &file, 2 * PAGE);
        setup.guest.map(7, round * PAGE);
        assert_eq!(setup.pages(round..round + 2), [1, 2]);
    }
}

/// Row 7: success was answered over pages that nothing had been mapped into.
#[test]
fn no_success_is_answered_without_the_buffer_s_pages() {
    let (mut setup, file) = with_blob("row-7");
    for resource in 8..16 {
        setup.blob(resource, &file, 2 * PAGE);
        let answer = setup.guest.command(&Request::map(resource, u64::from(resource - 8) * PAGE));
        let first = u64::from(resource - 8);
        put(&file, 0, 0x70 + resource as u8);
        if (0x1100..0x1200).contains(&answer.kind()) {
            assert_eq!(setup.byte(first * PAGE), 0x70 + resource as u8, "OK over other pages");
        } else {
            setup.refused(&Request::unmap(resource), ERR_INVALID_PARAMETER);
        }
    }
}

/// Edge case: an offset off the page reached the kernel, and a size off the page took the neighbour's page.
#[test]
fn neither_offset_nor_size_off_the_page_reaches_a_neighbour() {
    let (mut setup, file) = with_blob("edge-unaligned");
    setup.refused(&Request::map(7, 100), ERR_INVALID_PARAMETER);
    for size in [0, 1, PAGE + 1] {
        let id = setup.offer(&file);
        let create = Request::create_blob(8, BLOB_MEM_HOST3D, BLOB_FLAG_MAPPABLE, id, size, &[]).context(CONTEXT);
        setup.refused(&create, ERR_INVALID_PARAMETER);
    }
    setup.assert_gap(0..PAGES);
}

/// Edge case: a second resource replaced the first one's pages, whose UNMAP then punched a hole into the second.
#[test]
fn an_overlap_replaces_nothing_and_punches_no_hole() {
    let (mut setup, file) = with_blob("edge-overlap");
    setup.blob(8, &file, 2 * PAGE);
    setup.guest.map(7, 0);
    setup.refused(&Request::map(8, PAGE), ERR_INVALID_PARAMETER);
    setup.guest.map(8, 2 * PAGE);
    setup.ok(&Request::unmap(7));
    assert_eq!(setup.pages(2..4), [1, 2]);
    setup.assert_gap(0..2);
}

/// Edge case: a blob larger than its memfd was mapped, and the touch past the end ended the VMM.
#[test]
fn no_blob_reaches_past_the_end_of_its_file() {
    let (mut setup, file) = with_blob("edge-oversize");
    for pages in [3, 100, 1 << 40] {
        let id = setup.offer(&file);
        setup.refused(&Request::host_blob(CONTEXT, 8, id, pages * PAGE), ERR_INVALID_PARAMETER);
    }
    rustix::fs::ftruncate(&file, PAGE).expect("size");
    setup.refused(&Request::map(7, 0), ERR_INVALID_PARAMETER);
    setup.assert_gap(0..PAGES);
}
