//! Blobs in a region of the front-end's: what it is asked for, what its answers mean, and what goes on meanwhile.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_UNSPEC, OK_MAP_INFO};
use virtio_gpu_uring::testing::{HostPeer, Request};

use crate::front_end::{ALL_PROTOCOL, Asked, SHMEM, request, words};
use crate::machine::{CONTROL, CURSOR, Channel, Host, Machine, PAGE, RAM, USER, memfd, region};

/// A device's deadline: longer than it waits for a front-end that does not tell of its memory, and soon over.
const PATIENCE: Duration = Duration::from_millis(300);

/// A machine with a channel, and a blob of two pages as resource 7.
struct Stage {
    machine: Machine,
    channel: Channel,
    peer: HostPeer,
    file: File,
}

impl Stage {
    #[track_caller]
    fn new() -> Self {
        Self::on(Host::new())
    }

    #[track_caller]
    fn on(host: Host) -> Self {
        Self::of(Machine::boot(host))
    }

    #[track_caller]
    fn of(mut machine: Machine) -> Self {
        let (channel, peer) = machine.open_channel(1, 1);
        let (file, _) = memfd(2 * PAGE);
        machine.blob(7, &channel, &peer, &file, 2 * PAGE);
        Self { machine, channel, peer, file }
    }

    #[track_caller]
    fn blob(&mut self, resource: u32, file: &File) {
        self.machine.blob(resource, &self.channel, &self.peer, file, 2 * PAGE);
    }
}

/// Device and inode.
fn identity(file: &File) -> (u64, u64) {
    let metadata = file.metadata().expect("a file");
    (metadata.dev(), metadata.ino())
}

#[test]
fn a_map_never_states_another_range_file_or_right() {
    let mut stage = Stage::new();
    stage.file.write_all_at(b"from the host", PAGE).expect("written");
    let map = stage.machine.submit(&Request::map(7, 5 * PAGE));
    let mut asked = stage.machine.asks.next();
    assert_eq!((asked.request, asked.needs_reply, asked.files.len()), (Asked::MAP, true, 1));
    assert_eq!(asked.range(), (1, 0, 5 * PAGE, 2 * PAGE, 1), "region, place in the file, place, length, writable");
    let mapped = File::from(asked.files.remove(0));
    assert_eq!(identity(&mapped), identity(&stage.file), "another file");
    stage.machine.settle();
    assert!(!stage.machine.has_answer(&map), "answered before the front-end has mapped it");
    stage.machine.asks.answer(&asked, 0);
    assert_eq!(stage.machine.wait(map).kind(), OK_MAP_INFO);
    let mut bytes = [0; 13];
    mapped.read_exact_at(&mut bytes, PAGE).expect("read");
    assert_eq!(&bytes, b"from the host");
    mapped.write_all_at(b"from guests..", PAGE).expect("written");
    stage.file.read_exact_at(&mut bytes, PAGE).expect("read");
    assert_eq!(&bytes, b"from guests..");

    let unmap = stage.machine.submit(&Request::unmap(7));
    let asked = stage.machine.asks.next();
    assert_eq!((asked.request, asked.needs_reply, asked.files.len()), (Asked::UNMAP, true, 0));
    let (region, _, offset, len, _) = asked.range();
    assert_eq!((region, offset, len), (1, 5 * PAGE, 2 * PAGE));
    stage.machine.settle();
    assert!(!stage.machine.has_answer(&unmap), "answered before the front-end has unmapped it");
    stage.machine.asks.answer(&asked, 0);
    stage.machine.wait(unmap).ok();
    stage.machine.leave();
}

#[test]
fn a_read_only_buffer_is_never_mapped_writable() {
    let mut stage = Stage::new();
    let (file, _) = memfd(2 * PAGE);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("opened anew");
    stage.blob(8, &read_only.into());
    let map = stage.machine.submit(&Request::map(8, 0));
    // Whether a back-end maps it or makes a copy is its own affair; the file itself is never writable.
    let asked = stage.machine.asks.next();
    let shown = File::from(asked.files[0].try_clone().expect("a duplicate"));
    if identity(&shown) == identity(&file) {
        assert_eq!(asked.range(), (1, 0, 0, 2 * PAGE, 0));
    }
    stage.machine.asks.answer(&asked, 0);
    stage.machine.wait(map).ok();
    stage.machine.leave();
}

#[test]
fn a_refused_map_never_keeps_its_range() {
    let mut stage = Stage::new();
    let map = stage.machine.submit(&Request::map(7, 0));
    let asked = stage.machine.asks.next();
    stage.machine.asks.answer(&asked, 1);
    stage.machine.wait(map).expect_error(ERR_UNSPEC);
    assert_eq!(stage.machine.map(7, 0).range(), (1, 0, 0, 2 * PAGE, 1));
    let other = memfd(2 * PAGE).0;
    stage.blob(8, &other);
    stage.machine.map(8, 2 * PAGE);
    stage.machine.leave();
}

#[test]
fn the_main_socket_is_never_deaf_while_an_answer_is_awaited() {
    let mut stage = Stage::new();
    let other = memfd(2 * PAGE).0;
    stage.blob(8, &other);
    stage.machine.map(8, 4 * PAGE);
    let map = stage.machine.submit(&Request::map(7, 0));
    let asked = stage.machine.asks.next();
    let machine = &mut stage.machine;
    machine.config(0, 20);
    // The blob in the region as QEMU tells of it, whatever the back-end thinks of that.
    let blob = region(1 << 40, 2 * PAGE, USER << 1, 0);
    if machine.front.result(request::ADD_MEM_REG, &blob, &[other.as_fd()]) == 0 {
        machine.front.tell(request::REM_MEM_REG, &blob, &[]);
    }
    let table = words(&[2, 0], &[0, RAM, USER, 0, 1 << 40, 2 * PAGE, USER << 1, 0]);
    machine.front.tell(request::SET_MEM_TABLE, &table, &[machine.file.as_fd(), other.as_fd()]);
    machine.settle();
    let cursor = machine.add(CURSOR, &Request::move_cursor(0, (1, 1)));
    machine.kick(CURSOR);
    machine.wait_on(CURSOR, cursor).ok();
    assert!(!machine.has_answer(&map));
    machine.asks.answer(&asked, 0);
    machine.wait(map).ok();
    stage.machine.leave();
}

#[test]
fn a_blob_that_comes_back_as_memory_is_never_memory_for_requests() {
    let mut stage = Stage::new();
    stage.machine.map(7, 0);
    let (place, len) = (1 << 40, 2 * PAGE);
    let table = words(&[2, 0], &[0, RAM, USER, 0, place, len, USER << 1, 0]);
    stage.machine.front.tell(request::SET_MEM_TABLE, &table, &[stage.machine.file.as_fd(), stage.file.as_fd()]);
    stage.machine.settle();
    let commands = stage.machine.command(&Request::guest_blob(9, PAGE, &[(place, PAGE as u32)]));
    assert!((0x1200..0x1300).contains(&commands.kind()), "backing in a blob: {:#x}", commands.kind());
    let blob = region(place, len, USER << 1, 0);
    stage.machine.front.tell(request::REM_MEM_REG, &blob, &[]);
    stage.machine.settle();
    stage.machine.leave();
}

/// The front-end tells of a blob in its memory, as QEMU does when it has placed one there.
fn came_back(stage: &Stage, file: &File) {
    let blob = region(1 << 40, 2 * PAGE, USER << 1, 0);
    stage.machine.front.result(request::ADD_MEM_REG, &blob, &[file.as_fd()]);
}

#[test]
fn a_driver_is_never_told_of_a_map_before_the_front_end_has_made_it() {
    let mut stage = Stage::new();
    let file = stage.file.try_clone().expect("a duplicate");
    // The device has patience for a moment: what took longer here shows nothing.
    loop {
        let map = stage.machine.submit(&Request::map(7, 0));
        let from = Instant::now();
        stage.machine.asks.serve(Asked::MAP);
        stage.machine.settle();
        let early = stage.machine.has_answer(&map);
        let shows = from.elapsed() < Duration::from_millis(25);
        came_back(&stage, &file);
        stage.machine.wait(map).ok();
        assert!(!(shows && early), "told before it was so");
        let unmap = stage.machine.submit(&Request::unmap(7));
        stage.machine.asks.serve(Asked::UNMAP);
        stage.machine.wait(unmap).ok();
        if shows {
            break;
        }
    }
    stage.machine.leave();
}

#[test]
fn a_front_end_without_a_region_is_never_asked_to_map() {
    let mut machine = Machine::powered(Host::new(), ALL_PROTOCOL & !SHMEM);
    machine.start_ring(CONTROL, 0);
    let mut stage = Stage::of(machine);
    stage.machine.command(&Request::map(7, 0)).expect_error(ERR_UNSPEC);
    assert!(!stage.machine.asks.is_ready(), "asked all the same");
    stage.machine.settle();
    stage.machine.leave();
}

#[test]
fn a_late_answer_never_frees_a_range_that_may_be_mapped() {
    let mut stage = Stage::on(Host::impatient(PATIENCE));
    let other = memfd(2 * PAGE).0;
    stage.blob(8, &other);
    let map = stage.machine.submit(&Request::map(7, 0));
    let asked = stage.machine.asks.next();
    stage.machine.wait(map).expect_error(ERR_UNSPEC);
    let again = stage.machine.command(&Request::map(8, 0));
    assert!((0x1200..0x1300).contains(&again.kind()), "a range that may be mapped was given away");
    stage.machine.config(0, 20);
    stage.machine.asks.answer(&asked, 0);
    let taken_back = stage.machine.asks.serve(Asked::UNMAP);
    let (_, _, offset, len, _) = taken_back.range();
    assert_eq!((offset, len), (0, 2 * PAGE));
    // The device hears of it a moment later than the front-end says it.
    let mapped = loop {
        let map = stage.machine.submit(&Request::map(8, 0));
        let answered = loop {
            if stage.machine.asks.is_ready() {
                stage.machine.asks.serve(Asked::MAP);
                break true;
            }
            if stage.machine.has_answer(&map) {
                break false;
            }
        };
        let answer = stage.machine.wait(map);
        if answered {
            break answer;
        }
    };
    assert_eq!(mapped.kind(), OK_MAP_INFO);
    stage.machine.leave();
}

#[test]
fn a_range_is_never_given_away_while_its_unmap_is_not_answered() {
    let mut stage = Stage::on(Host::with(Limits { deadline: PATIENCE, ..Limits::default() }));
    stage.machine.map(7, 0);
    let unmap = stage.machine.submit(&Request::unmap(7));
    let asked = stage.machine.asks.next();
    assert_eq!(asked.request, Asked::UNMAP);
    let late = stage.machine.wait(unmap);
    assert!((0x1200..0x1300).contains(&late.kind()), "said to be unmapped: {:#x}", late.kind());
    let other = memfd(2 * PAGE).0;
    stage.blob(8, &other);
    let map = stage.machine.command(&Request::map(8, 0));
    assert!((0x1200..0x1300).contains(&map.kind()), "a range that is still mapped was given away");
    stage.machine.asks.answer(&asked, 0);
    stage.machine.leave();
}

#[test]
fn sixteen_blobs_at_once_never_get_into_each_others_way() {
    let mut stage = Stage::new();
    let files: Vec<File> = (0..16).map(|_| memfd(2 * PAGE).0).collect();
    for (file, resource) in files.iter().zip(100..) {
        stage.blob(resource, file);
    }
    let place = |index: usize| 2 * PAGE * index as u64;
    let maps: Vec<_> =
        (0..16).map(|index| stage.machine.submit(&Request::map(100 + index as u32, place(index)))).collect();
    let mut shown = Vec::new();
    for _ in 0..16 {
        let asked = stage.machine.asks.serve(Asked::MAP);
        shown.push((asked.range().2, identity(&File::from(asked.files[0].try_clone().expect("a duplicate")))));
    }
    maps.into_iter().for_each(|map| drop(stage.machine.wait(map).ok()));
    shown.sort_unstable();
    let want: Vec<_> = files.iter().enumerate().map(|(index, file)| (place(index), identity(file))).collect();
    assert_eq!(shown, want);
    let unmaps: Vec<_> = (0..16).map(|index| stage.machine.submit(&Request::unmap(100 + index))).collect();
    for _ in 0..16 {
        stage.machine.asks.serve(Asked::UNMAP);
    }
    unmaps.into_iter().for_each(|unmap| drop(stage.machine.wait(unmap).ok()));
    stage.machine.leave();
}
