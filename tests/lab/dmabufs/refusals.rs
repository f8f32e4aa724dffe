//! Dma-bufs that cannot be mapped: an error, and a window and books that are as they were.

use std::fs;
use std::time::Instant;

use virtio_gpu_uring::protocol::cross_domain::id_type;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_OUT_OF_MEMORY, ERR_UNSPEC};
use virtio_gpu_uring::testing::{DEADLINE, Request};
use virtio_gpu_uring::{Access, BufferKind, Builder, HostBuffer, ReadOnlyPolicy};

use crate::desk::{CONTEXT, Desk, PAGE, PLACE, WINDOW, Way, dma_bufs, scenario};
use crate::exporters::{Export, Exporter};

const LEN: u64 = 14 * PAGE;

/// Maps a blob at several places, and shows that each refusal leaves the window as it was.
fn refused_everywhere(desk: &mut Desk, resource: u32, size: u64, code: u32) -> u64 {
    let (lines, held) = (desk.lines(), dma_bufs());
    let before = desk.guest.device().counters().map_failures;
    let places = [0, PLACE, WINDOW - size];
    for offset in places {
        desk.guest.command(&Request::map(resource, offset)).expect_error(code);
        assert_eq!((desk.lines(), dma_bufs()), (lines.clone(), held), "the window has changed at {offset:#x}");
    }
    desk.expect_filler(0, WINDOW);
    let refused = desk.guest.device().counters().map_failures - before;
    assert_eq!(refused, places.len() as u64);
    desk.guest.command(&Request::unmap(resource)).expect_error(ERR_INVALID_PARAMETER);
    refused
}

/// Neither the range nor the device is worse for it.
fn another_fits(desk: &mut Desk) {
    let other = Exporter::Udmabuf.writable(LEN);
    other.paint(9);
    let resource = desk.show(&other, Way::Offered, PLACE);
    desk.expect(PLACE, &other.bytes());
    desk.ok(&Request::unref(resource));
    desk.expect_filler(0, WINDOW);
}

#[test]
fn a_dma_buf_that_is_open_for_writing_only_is_never_taken_and_never_costs_the_window_a_page() {
    for exporter in [Exporter::DmaHeap, Exporter::Camera] {
        scenario(&format!("write-only exporter={}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.export(LEN, Export::WriteOnly).expect("exported");
            let error = HostBuffer::from_fd(buffer.file.try_clone().expect("a duplicate")).expect_err("of no use");
            assert!(error.to_string().contains("writing only"), "{error}");
            let held = dma_bufs();
            let (id, kind, _) = desk.send(&buffer.file);
            assert_eq!(kind, id_type::UNSUPPORTED, "a descriptor that nobody can use");
            // It is closed on a thread of its own.
            let end = Instant::now() + DEADLINE;
            while dma_bufs() != held {
                assert!(Instant::now() < end, "{:?} instead of {held:?}", dma_bufs());
                std::thread::yield_now();
            }
            let blob = Request::host_blob(CONTEXT, 7, u64::from(id), buffer.len);
            desk.guest.command(&blob).expect_error(ERR_INVALID_PARAMETER);
            // A device that believed it.
            let mut refused = 0;
            for access in [Access::ReadWrite, Access::ReadOnly] {
                let file = buffer.file.try_clone().expect("a duplicate");
                let id = desk.offer(HostBuffer::stand_in(file, BufferKind::DmaBuf, buffer.len, access));
                let resource = desk.make(id, buffer.len);
                refused += refused_everywhere(&mut desk, resource, buffer.len, ERR_UNSPEC);
            }
            another_fits(&mut desk);
            format!("size={:#x} refused={refused} holes=0", buffer.len)
        });
    }
}

#[test]
fn a_read_only_dma_buf_that_refuses_private_maps_is_never_mapped_where_the_policy_refuses_it() {
    for exporter in [Exporter::DmaHeap, Exporter::Vgem] {
        for way in Way::BOTH {
            scenario(&format!("read-only policy=Refuse exporter={} way={way:?}", exporter.name()), || {
                let mut desk = Desk::with(Builder::new().read_only(ReadOnlyPolicy::Refuse));
                let buffer = exporter.export(LEN, Export::ReadOnly).expect("exported");
                let resource = desk.blob(&buffer, way, buffer.len);
                let refused = refused_everywhere(&mut desk, resource, buffer.len, ERR_UNSPEC);
                another_fits(&mut desk);
                format!("size={:#x} refused={refused} holes=0", buffer.len)
            });
        }
    }
}

/// The kernel's limit of mappings for a process, put back when this is dropped.
struct MapLimit(String);

impl MapLimit {
    const FILE: &str = "/proc/sys/vm/max_map_count";

    /// Leaves room for `room` mappings more than there are.
    fn with_room(room: usize) -> Self {
        let before = fs::read_to_string(Self::FILE).expect("the limit of mappings");
        let lines = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
        // The page of system calls is listed and not counted.
        let count = lines.lines().filter(|line| !line.contains("[vsyscall]")).count();
        let limit = Self(before);
        fs::write(Self::FILE, (count + room).to_string()).expect("the lab belongs to root");
        limit
    }
}

impl Drop for MapLimit {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.0);
    }
}

#[test]
fn a_dma_buf_that_maps_but_cannot_be_moved_into_place_never_leaves_a_hole() {
    for exporter in Exporter::ALL {
        scenario(&format!("no-room-for-mappings exporter={}", exporter.name()), || {
            let mut desk = Desk::new();
            let buffer = exporter.writable(LEN);
            buffer.paint(2);
            let resource = desk.blob(&buffer, Way::Offered, buffer.len);
            let (lines, held) = (desk.lines(), dma_bufs());
            let mut refused = 0;
            for room in 0..10 {
                let limit = MapLimit::with_room(room);
                let answer = desk.guest.command(&Request::map(resource, PLACE));
                drop(limit);
                if (0x1200..0x1206).contains(&answer.kind()) {
                    refused += 1;
                    assert_eq!((desk.lines(), dma_bufs()), (lines.clone(), held), "with room for {room}");
                    desk.expect_filler(0, WINDOW);
                    assert_eq!(desk.guest.device().counters().quarantined, 0, "with room for {room}");
                    assert_eq!(answer.kind(), ERR_OUT_OF_MEMORY, "with room for {room}");
                } else {
                    answer.ok();
                    desk.expect(PLACE, &buffer.bytes());
                    let limit = MapLimit::with_room(0);
                    let answer = desk.guest.command(&Request::unmap(resource));
                    drop(limit);
                    answer.ok();
                    desk.expect_filler(0, WINDOW);
                }
            }
            assert!(refused > 0, "the limit was never reached");
            desk.guest.map(resource, PLACE);
            desk.expect(PLACE, &buffer.bytes());
            format!("refused={refused} holes=0")
        });
    }
}
