//! What is left after thousands of cycles: nothing. `/proc/self/fd` and `/proc/self/maps` are as they were before.
#![cfg(feature = "testing")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, id_type};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_SHAREABLE, BLOB_MEM_HOST3D, CAPSET_CROSS_DOMAIN, response_type};
use virtio_gpu_uring::testing::census::{fds_named, maps_named};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Request};
use virtio_gpu_uring::{Access, BufferKind, Builder, Device, DeviceTask, HostBuffer, HostWindow};
use vm_memory::GuestMemoryMmap;

#[path = "leaks/alone.rs"]
mod alone;
#[path = "leaks/exhaustion.rs"]
mod exhaustion;

use alone::{alone, leaves_nothing};

/// A guest with a window, and a service that it can connect to.
struct Desk {
    guest: Guest,
    window: HostWindow,
    service: HostService,
    next_resource: u32,
}

impl Desk {
    fn start(window: usize) -> Self {
        let service = HostService::listen();
        let window = HostWindow::new(window).expect("a window");
        let builder = Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
        Self { guest: Guest::start(builder), window, service, next_resource: 100 }
    }

    /// Offers a file of so many pages, and makes a blob of it under a number that was not used before.
    fn offered_blob(&mut self, file: OwnedFd, pages: u64) -> u32 {
        let offer = self.guest.device().offer(buffer(file)).wait().expect("a device").expect("taken");
        let resource = self.next_resource;
        self.next_resource += 1;
        self.guest.command(&Request::host_blob(1, resource, offer.0, pages * 4096)).ok();
        resource
    }
}

/// A memfd of so many pages, with `byte` at the start of each.
fn memfd(name: &str, byte: u8, pages: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, pages * 4096).expect("a size");
    for page in 0..pages {
        assert_eq!(rustix::io::pwrite(&file, &[byte], page * 4096), Ok(1));
    }
    file
}

fn buffer(file: OwnedFd) -> HostBuffer {
    HostBuffer::from_fd(file).expect("a buffer")
}

fn byte_at(window: &HostWindow, offset: u64) -> u8 {
    let mut byte = [0];
    window.read(offset, &mut byte).expect("in the window");
    byte[0]
}

#[test]
fn an_offered_buffer_never_outlives_its_blob() {
    alone("an_offered_buffer_never_outlives_its_blob", || {
        let mut desk = Desk::start(8 << 20);
        desk.guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
        leaves_nothing(2000, |round| {
            // Large ones are taken back, and closed, on other threads.
            let pages = if round % 40 == 39 { 600 } else { 1 + round as u64 % 7 };
            let (byte, offset) = (round as u8 | 1, (round as u64 % 11) * 4096);
            let resource = desk.offered_blob(memfd("leak-offer", byte, pages), pages);
            if round % 4 != 0 {
                desk.guest.map(resource, offset);
                assert_eq!(byte_at(&desk.window, offset + (pages - 1) * 4096), byte);
            }
            if round % 4 == 1 {
                desk.guest.command(&Request::unmap(resource)).ok();
                desk.guest.map(resource, offset + 4096);
            }
            if round % 4 >= 2 {
                desk.guest.command(&Request::unmap(resource)).ok();
            }
            desk.guest.command(&Request::unref(resource)).ok();
            assert_eq!((fds_named("leak-offer"), maps_named("leak-offer")), (0, 0), "in cycle {round}");
            assert_eq!(byte_at(&desk.window, offset + (pages - 1) * 4096), 0);
        });
        desk.guest.assert_all_answered();
    });
}

/// How a session comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Unmap,
    Unref,
    Destroy,
    Hangup,
}

/// Every order of the four: Linux destroys the context first when a process dies.
fn orders() -> Vec<[End; 4]> {
    let all = [End::Unmap, End::Unref, End::Destroy, End::Hangup];
    let mut orders = Vec::new();
    for number in 0..256_usize {
        let order = [number & 3, number >> 2 & 3, number >> 4 & 3, number >> 6].map(|index| all[index]);
        if all.iter().all(|end| order.contains(end)) {
            orders.push(order);
        }
    }
    orders
}

/// Connects, receives four buffers, makes blobs of some, maps them, and ends in this order.
fn session(desk: &mut Desk, round: usize, order: [End; 4]) {
    let Desk { guest, window, service, .. } = desk;
    let mut channel = GuestChannel::open(guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let files: Vec<OwnedFd> = (1..=4).map(|byte| memfd("leak-session", byte, 1)).collect();
    peer.send(b"buffers", &files.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    drop(files);
    let message = channel.receive(guest);
    assert_eq!(message.identifiers.len(), 4);
    // What is left over is an item that ends with the context.
    let taken = 20..20 + 1 + round as u32 % 4;
    for (resource, (id, kind, size)) in taken.clone().zip(message.identifiers) {
        assert_eq!((kind, size), (id_type::VIRTGPU_BLOB, 4096));
        guest.command(&Request::host_blob(1, resource, u64::from(id), 4096)).ok();
        guest.map(resource, u64::from(resource) * 4096);
        guest.command(&Request::ctx_attach(1, resource)).ok();
        assert_eq!(u32::from(byte_at(window, u64::from(resource) * 4096)), resource - 19);
    }
    // Two sessions in three wait for a message when they end; the third leaves one unread.
    let poll = (!round.is_multiple_of(3)).then(|| channel.poll(guest));
    if poll.is_none() {
        peer.send(b"nobody reads this", &[memfd("leak-session", 9, 1).as_fd()]);
    }
    let (mut peer, mut there) = (Some(peer), true);
    for end in order {
        match end {
            End::Unmap if there => taken.clone().for_each(|blob| drop(guest.command(&Request::unmap(blob)).ok())),
            End::Unmap => taken.clone().for_each(|blob| {
                guest.command(&Request::unmap(blob)).expect_error(response_type::ERR_INVALID_RESOURCE_ID);
            }),
            End::Unref => {
                taken.clone().for_each(|blob| drop(guest.command(&Request::unref(blob)).ok()));
                there = false;
            }
            End::Destroy => drop(guest.command(&Request::ctx_destroy(1)).ok()),
            End::Hangup => drop(peer.take()),
        }
    }
    if let Some(poll) = poll {
        guest.wait(poll).ok();
    }
    channel.rings.into_iter().for_each(|ring| drop(guest.command(&Request::unref(ring)).ok()));
    assert_eq!((fds_named("leak-session"), maps_named("leak-session")), (0, 0), "after {order:?}");
}

#[test]
fn a_session_never_leaves_anything_however_it_ends() {
    alone("a_session_never_leaves_anything_however_it_ends", || {
        let mut desk = Desk::start(1 << 20);
        let orders = orders();
        assert_eq!(orders.len(), 24);
        leaves_nothing(312, |round| session(&mut desk, round, orders[round % 24]));
        desk.guest.assert_all_answered();
    });
}

/// Blobs that cannot be mapped, and where a guest tries it: resource, offset, and what it is told.
fn hopeless_maps(desk: &mut Desk) -> Vec<(u32, u64, u32)> {
    use response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_UNSPEC};
    let len = desk.window.len();
    let good = desk.offered_blob(memfd("leak-map", 1, 2), 2);
    let mapped = desk.offered_blob(memfd("leak-map", 2, 2), 2);
    desk.guest.map(mapped, 4 * 4096);
    let file = memfd("leak-map", 3, 2);
    let twin = file.try_clone().expect("a duplicate");
    let truncated = desk.offered_blob(file, 2);
    ftruncate(&twin, 0).expect("a smaller size");
    // A file in sysfs fails in its own `mmap`, which is late; one that is open read-only fails early.
    let sysfs = File::open("/sys/kernel/profiling").or_else(|_| File::open("/sys/kernel/uevent_seqnum"));
    let late = stand_in(desk, sysfs.expect("a file in sysfs").into(), Access::ReadOnly);
    let early = stand_in(desk, read_only(&memfd("leak-map", 5, 1)), Access::ReadWrite);
    let offer = desk.guest.device().offer(buffer(memfd("leak-map", 4, 1))).wait().expect("a device").expect("taken");
    let secret = Request::create_blob(99, BLOB_MEM_HOST3D, BLOB_FLAG_SHAREABLE, offer.0, 4096, &[]).context(1);
    desk.guest.command(&secret).ok();
    vec![
        (good, len, ERR_INVALID_PARAMETER),
        (good, len - 4096, ERR_INVALID_PARAMETER),
        (good, u64::MAX - 4095, ERR_INVALID_PARAMETER),
        (good, 0x800, ERR_INVALID_PARAMETER),
        (good, 3 * 4096, ERR_INVALID_PARAMETER),
        (good, 5 * 4096, ERR_INVALID_PARAMETER),
        (mapped, 8 * 4096, ERR_INVALID_PARAMETER),
        (truncated, 0, ERR_INVALID_PARAMETER),
        (late, 0, ERR_UNSPEC),
        (early, 0, ERR_UNSPEC),
        (99, 0, ERR_INVALID_PARAMETER),
        (98, 0, ERR_INVALID_RESOURCE_ID),
    ]
}

/// The same file, opened once more and for reading only.
fn read_only(file: &OwnedFd) -> OwnedFd {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("opened once more").into()
}

fn stand_in(desk: &mut Desk, file: OwnedFd, access: Access) -> u32 {
    let buffer = HostBuffer::stand_in(file, BufferKind::SharedMemory, 4096, access);
    let offer = desk.guest.device().offer(buffer).wait().expect("a device").expect("taken");
    let resource = desk.next_resource;
    desk.next_resource += 1;
    desk.guest.command(&Request::host_blob(1, resource, offer.0, 4096)).ok();
    resource
}

#[test]
fn a_map_that_fails_never_leaves_anything() {
    alone("a_map_that_fails_never_leaves_anything", || {
        let mut desk = Desk::start(16 * 4096);
        let pattern: Vec<u8> = (0..16 * 4096).map(|at| (at % 251) as u8).collect();
        desk.window.write(0, &pattern).expect("the filler takes writes");
        desk.guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
        let attempts = hopeless_maps(&mut desk);
        let mut shown = vec![0; pattern.len()];
        desk.window.read(0, &mut shown).expect("in the window");
        leaves_nothing(1000, |round| {
            let (resource, offset, code) = attempts[round % attempts.len()];
            let mapped = attempts[6].0 == resource;
            desk.guest.command(&Request::map(resource, offset)).expect_error(code);
            // Linux sends UNMAP after a MAP that failed.
            if !mapped {
                let answer = desk.guest.command(&Request::unmap(resource));
                assert!((0x1200..0x1300).contains(&answer.kind()), "{resource} was not mapped");
            }
            let mut now = vec![0; pattern.len()];
            desk.window.read(0, &mut now).expect("in the window");
            assert!(now == shown, "the window changed by a MAP at {offset:#x} that failed");
        });
        desk.guest.assert_all_answered();
    });
}

/// A device from its making to its end, in one of five ways.
fn lifetime(round: usize) {
    let service = HostService::listen();
    let window = HostWindow::new(1 << 20).expect("a window");
    let builder = Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
    match round % 5 {
        0 => {
            let _: (Device<Arc<GuestMemoryMmap>>, DeviceTask<_>) = builder.build().expect("a device");
        }
        1 => drop(builder.spawn::<Arc<GuestMemoryMmap>>().expect("a device")),
        way => {
            let mut desk = Desk { guest: Guest::start(builder), window, service, next_resource: 100 };
            let mut channel = GuestChannel::open(&mut desk.guest, 1, 10, ChannelType::PIPEWIRE);
            let peer = desk.service.accept();
            let resource = desk.offered_blob(memfd("leak-device", 1, 9), 9);
            desk.guest.map(resource, 4096);
            channel.poll(&mut desk.guest);
            match way {
                2 => desk.guest.device().stop().wait().expect("a device that stops"),
                3 => {
                    desk.guest.reset();
                    desk.guest.activate();
                }
                _ => {}
            }
            drop(desk);
            assert_eq!(peer.receive(1).0, b"", "the device is gone, and its socket is open");
        }
    }
}

#[test]
fn a_device_never_leaves_anything_however_it_ends() {
    alone("a_device_never_leaves_anything_however_it_ends", || {
        leaves_nothing(100, |round| {
            lifetime(round);
            assert_eq!((fds_named("leak-device"), maps_named("virtio-gpu-window")), (0, 0), "in round {round}");
        });
    });
}

#[test]
fn a_reset_with_everything_mapped_never_leaves_anything() {
    alone("a_reset_with_everything_mapped_never_leaves_anything", || {
        let mut desk = Desk::start(8 << 20);
        let (zeros, mut shown) = (vec![0; 8 << 20], vec![0; 8 << 20]);
        leaves_nothing(200, |round| {
            let mut channel = GuestChannel::open(&mut desk.guest, 1, 10, ChannelType::PIPEWIRE);
            let peer = desk.service.accept();
            let files: Vec<OwnedFd> = (1..=4).map(|byte| memfd("leak-reset", byte, 1)).collect();
            peer.send(b"buffers", &files.iter().map(AsFd::as_fd).collect::<Vec<_>>());
            drop(files);
            let message = channel.receive(&mut desk.guest);
            for (resource, (id, ..)) in (20..22).zip(message.identifiers) {
                desk.guest.command(&Request::host_blob(1, resource, u64::from(id), 4096)).ok();
                desk.guest.map(resource, u64::from(resource) * 4096);
            }
            // A small one, a large one, one that nobody has taken, one whose mapping is going on, and a POLL.
            for (pages, offset) in [(3, 0), (600, 1 << 20)] {
                let resource = desk.offered_blob(memfd("leak-reset", 5, pages), pages);
                desk.guest.map(resource, offset);
            }
            desk.guest.device().offer(buffer(memfd("leak-reset", 6, 1))).wait().expect("a device").expect("taken");
            let resource = desk.offered_blob(memfd("leak-reset", 7, 600), 600);
            desk.guest.map(resource, 4 << 20);
            desk.guest.submit(&Request::unmap(resource));
            channel.poll(&mut desk.guest);
            if round % 2 == 0 {
                desk.guest.command(&Request::ctx_destroy(1)).ok();
            }
            desk.guest.reset();
            assert_eq!((fds_named("leak-reset"), maps_named("leak-reset")), (0, 0), "in round {round}");
            assert_eq!(peer.receive(1).0, b"", "reset has answered, and the socket is open");
            desk.window.read(0, &mut shown).expect("in the window");
            assert!(shown == zeros, "reset has answered, and a buffer is to be seen");
            desk.guest.activate();
        });
    });
}
