//! Read-only buffers: a guest write reaches neither the buffer nor the machine's life, and costs no other page its
//! liveness.

use std::os::fd::OwnedFd;

use rustix::fs::{SealFlags, fcntl_add_seals};
use virtio_gpu_uring::protocol::wire::response_type::ERR_OUT_OF_MEMORY;
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{Builder, HostBuffer, Limits};

use crate::setup::{PAGE, PAGES, Setup, get, memfd, put, read_only};

/// What makes a buffer read-only.
#[derive(Debug, Clone, Copy)]
enum How {
    Opened,
    SealedWrite,
    SealedFutureWrite,
}

impl How {
    const ALL: [Self; 3] = [Self::Opened, Self::SealedWrite, Self::SealedFutureWrite];

    /// A file of `pages` pages, and what the host still writes it through: `None` where nobody can.
    fn file(self, name: &str, pages: u64) -> (OwnedFd, Option<OwnedFd>) {
        let file = memfd(name, pages * PAGE);
        match self {
            Self::Opened => (read_only(&file), Some(file)),
            Self::SealedWrite => {
                fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK).expect("sealed");
                (file, None)
            }
            Self::SealedFutureWrite => {
                fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).expect("sealed");
                (file, None)
            }
        }
    }
}

#[test]
fn a_guest_write_never_reaches_a_read_only_buffer_nor_ends_the_machine() {
    for how in How::ALL {
        let mut setup = Setup::new();
        setup.paint();
        let (file, _) = how.file("read-only", 3);
        setup.blob(7, &file, 3 * PAGE);
        setup.guest.map(7, 2 * PAGE);
        assert_eq!(setup.pages(2..5), [1, 2, 3], "{how:?}");
        for page in 2..5 {
            setup.window.write(page * PAGE, &[0xee; 32]).expect("in the window");
        }
        assert_eq!(setup.pages(2..5), [0xee; 3], "{how:?}: the guest does not see its own write");
        assert_eq!([0, 1, 2].map(|page| get(&file, page * PAGE)), [1, 2, 3], "{how:?}: the buffer was written");
        setup.ok(&Request::unmap(7));
        setup.assert_gap(0..PAGES);
        setup.guest.map(7, 0);
        assert_eq!(setup.pages(0..3), [1, 2, 3], "{how:?}: copies of the last mapping");
        setup.ok(&Request::unref(7));
        setup.assert_gap(0..PAGES);
    }
}

#[test]
fn a_page_that_the_guest_has_not_written_never_stops_being_live() {
    let mut setup = Setup::new();
    let (file, writer) = How::Opened.file("still-live", 4);
    let writer = writer.expect("the host can write it");
    setup.blob(7, &file, 4 * PAGE);
    setup.guest.map(7, 0);
    setup.window.write(PAGE, &[0xee]).expect("in the window");
    for round in 10..20 {
        for page in 0..4 {
            put(&writer, page * PAGE, round);
        }
        assert_eq!(setup.pages(0..4), [round, 0xee, round, round]);
    }
}

#[test]
fn a_buffer_sealed_against_future_writes_never_loses_its_first_writer_s_updates() {
    // Who mapped the file before it was sealed goes on writing: a window into it stands in for that here.
    let mut first = Setup::new();
    let file = memfd("future-write", 2 * PAGE);
    first.blob(7, &file, 2 * PAGE);
    first.guest.map(7, 0);
    fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).expect("sealed");
    let mut setup = Setup::new();
    setup.blob(8, &file, 2 * PAGE);
    setup.guest.map(8, 0);
    setup.window.write(0, &[0xee]).expect("in the window");
    first.window.write(0, &[0x44]).expect("in the window");
    first.window.write(PAGE, &[0x45]).expect("in the window");
    assert_eq!((setup.pages(0..2), first.pages(0..2)), (vec![0xee, 0x45], vec![0x44, 0x45]));
}

#[test]
fn a_buffer_sealed_after_it_was_offered_never_answers_ok_over_pages_that_can_be_written() {
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd("sealed-late", PAGE);
    setup.blob(7, &file, PAGE);
    fcntl_add_seals(&file, SealFlags::WRITE).expect("sealed");
    let answer = setup.guest.command(&Request::map(7, 0));
    if (0x1200..0x1206).contains(&answer.kind()) {
        setup.assert_gap(0..PAGES);
    } else {
        assert_eq!(setup.byte(0), 1);
    }
    setup.window.write(0, &[0xee]).expect("in the window");
    assert_eq!(get(&file, 0), 1);
    setup.ok(&Request::unref(7));
}

#[test]
fn a_buffer_opened_only_for_writing_is_never_offered() {
    let file = crate::setup::reopened(&memfd("write-only", PAGE), rustix::fs::OFlags::WRONLY);
    let error = HostBuffer::from_fd(file).expect_err("no mapping can be made of it");
    assert!(error.to_string().contains("writing only"), "{error}");
}

#[test]
fn copies_beyond_the_limit_of_host_bytes_are_refused_counted_and_free_after_unmap() {
    let limits = Limits { host_bytes: 3 * PAGE, ..Limits::default() };
    let mut setup = Setup::with(Builder::new().limits(limits));
    setup.paint();
    let name = "host-bytes-of-copies";
    let (file, writable) = How::Opened.file(name, 4);
    for (resource, pages) in [(1, 2), (2, 2), (3, 4)] {
        setup.blob(resource, &file, pages * PAGE);
    }
    setup.blob(4, &writable.expect("writable"), 4 * PAGE);
    let before = setup.guest.device().counters().limit_refusals;
    setup.guest.map(1, 0);
    setup.refused(&Request::map(2, 10 * PAGE), ERR_OUT_OF_MEMORY);
    setup.refused(&Request::map(3, 20 * PAGE), ERR_OUT_OF_MEMORY);
    assert_eq!(setup.guest.device().counters().limit_refusals - before, 2);
    assert_eq!(census::maps_named(name), 1);
    setup.assert_gap(2..PAGES);
    // A buffer that can be written copies nothing.
    setup.guest.map(4, 30 * PAGE);
    setup.ok(&Request::unmap(1));
    setup.guest.map(2, 10 * PAGE);
    setup.ok(&Request::unref(2));
    setup.guest.map(1, 0);
}
