//! A process that has no room for another descriptor: what a guest is told then, and that nothing of it stays.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, id_type};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, response_type};
use virtio_gpu_uring::testing::census::fds_named;
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestChannel, HostService, Message, Request};
use virtio_gpu_uring::{Builder, HostWindow, Limits};

use crate::alone::{alone, leaves_nothing};
use crate::{Desk, byte_at, memfd};

/// As long as this lives, the process can open just so many descriptors more.
struct Exhausted {
    before: Rlimit,
    _filling: Vec<OwnedFd>,
}

impl Exhausted {
    fn with_room(room: usize) -> Self {
        let before = getrlimit(Resource::Nofile);
        let open = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
        let number = |name: std::ffi::OsString| name.to_str().and_then(|name| name.parse::<u64>().ok());
        let highest = open.flatten().filter_map(|entry| number(entry.file_name())).max().expect("standard input");
        let null = File::open("/dev/null").expect("/dev/null");
        let current = Some(highest + 2 + room as u64);
        setrlimit(Resource::Nofile, Rlimit { current, maximum: before.maximum }).expect("a lower limit");
        let mut filling: Vec<OwnedFd> = std::iter::from_fn(|| null.as_fd().try_clone_to_owned().ok()).collect();
        filling.push(null.into());
        filling.truncate(filling.len().checked_sub(room).expect("room that can be made"));
        Self { before, _filling: filling }
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        // Nothing to do about a limit that cannot be raised again: the test fails by what it does next.
        let _ = setrlimit(Resource::Nofile, self.before);
    }
}

/// Counts panics of any thread; a device's thread that dies must not pass for an error that it answered.
fn count_panics() -> &'static AtomicU64 {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        usual(info);
    }));
    &PANICS
}

#[test]
fn a_connection_without_room_for_its_socket_is_never_taken_for_a_channel() {
    alone("exhaustion::a_connection_without_room_for_its_socket_is_never_taken_for_a_channel", || {
        let mut desk = Desk::start(1 << 20);
        leaves_nothing(50, |_| {
            let channel = GuestChannel::create(&mut desk.guest, 1, 10);
            let [query, ring] = channel.rings;
            let init = Request::stream_init(query, ring, ChannelType::PIPEWIRE.0, Some(1));
            let exhausted = Exhausted::with_room(0);
            let answer = desk.guest.command(&Request::submit(1, &init).fenced(7));
            desk.guest.settle();
            drop(exhausted);
            answer.expect_error(response_type::ERR_OUT_OF_MEMORY);
            assert_eq!(answer.header.fence_id.get(), 7);
            // The same context connects as soon as there is room.
            desk.guest.command(&Request::submit(1, &init)).ok();
            drop(desk.service.accept());
            desk.guest.command(&Request::ctx_destroy(1)).ok();
            desk.guest.command(&Request::unref(query)).ok();
            desk.guest.command(&Request::unref(ring)).ok();
        });
        desk.guest.assert_all_answered();
    });
}

/// A message of four descriptors for a process with room for `room` of them.
fn receive_with_room(desk: &mut Desk, room: usize) {
    let mut channel = GuestChannel::open(&mut desk.guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = desk.service.accept();
    {
        let files: Vec<OwnedFd> = (1..=4).map(|byte| memfd("leak-exhausted", byte, 1)).collect();
        peer.send(b"four", &files.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    }
    let exhausted = Exhausted::with_room(room);
    let message = channel.receive(&mut desk.guest);
    let mapped = map_all(desk, &message);
    desk.guest.settle();
    drop(exhausted);
    if room >= 4 {
        assert_eq!((message.data.as_slice(), mapped), (&b"four"[..], 4));
    } else if message.data.is_empty() {
        assert_eq!(message.identifiers, [], "the end of a channel brings nothing");
    } else {
        assert_eq!(message.identifiers.len(), 4, "descriptors were lost in silence: {message:?}");
    }
    for resource in 20..20 + mapped {
        desk.guest.command(&Request::unref(resource)).ok();
    }
    desk.guest.command(&Request::ctx_destroy(1)).ok();
    for ring in channel.rings {
        desk.guest.command(&Request::unref(ring)).ok();
    }
    drop(peer);
    // What came without all of its fellows closes beside the device.
    let begun = Instant::now();
    while fds_named("leak-exhausted") > 0 && begun.elapsed() < DEADLINE {
        std::thread::yield_now();
    }
    assert_eq!(fds_named("leak-exhausted"), 0, "with room for {room}");
}

/// Maps what was announced as a buffer, and compares it with what the service wrote. Answers how many there were.
fn map_all(desk: &mut Desk, message: &Message) -> u32 {
    let mut resource = 20;
    for (position, (id, kind, size)) in (1..).zip(&message.identifiers) {
        if *kind == id_type::UNSUPPORTED {
            continue;
        }
        assert_eq!((*kind, *size), (id_type::VIRTGPU_BLOB, 4096));
        desk.guest.command(&Request::host_blob(1, resource, u64::from(*id), 4096)).ok();
        let offset = u64::from(resource) * 4096;
        desk.guest.map(resource, offset);
        assert_eq!(byte_at(&desk.window, offset), position, "answered OK over pages that are not the buffer's");
        resource += 1;
    }
    // An id that was not announced is no buffer.
    desk.guest.command(&Request::host_blob(1, resource, 99, 4096)).expect_error(response_type::ERR_INVALID_PARAMETER);
    resource - 20
}

#[test]
fn descriptors_that_could_not_be_received_are_never_missing_in_silence() {
    alone("exhaustion::descriptors_that_could_not_be_received_are_never_missing_in_silence", || {
        let panics = count_panics();
        let mut desk = Desk::start(1 << 20);
        leaves_nothing(50, |round| receive_with_room(&mut desk, round % 6));
        desk.guest.assert_all_answered();
        assert_eq!(panics.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn buffers_that_are_here_already_never_need_another_descriptor() {
    alone("exhaustion::buffers_that_are_here_already_never_need_another_descriptor", || {
        let mut desk = Desk::start(8 << 20);
        desk.guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
        leaves_nothing(50, |round| {
            let pages = if round % 2 == 0 { 1 } else { 600 };
            let file = memfd("leak-offer", round as u8 + 1, pages);
            let exhausted = Exhausted::with_room(0);
            let resource = desk.offered_blob(file, pages);
            desk.guest.map(resource, 0);
            assert_eq!(byte_at(&desk.window, (pages - 1) * 4096), round as u8 + 1);
            desk.guest.command(&Request::unmap(resource)).ok();
            assert_eq!(byte_at(&desk.window, (pages - 1) * 4096), 0);
            desk.guest.map(resource, 4096);
            desk.guest.command(&Request::unref(resource)).ok();
            drop(exhausted);
            assert_eq!(fds_named("leak-offer"), 0);
        });
    });
}

#[test]
fn a_reset_without_room_for_descriptors_never_leaves_anything() {
    alone("exhaustion::a_reset_without_room_for_descriptors_never_leaves_anything", || {
        let mut desk = Desk::start(8 << 20);
        leaves_nothing(30, |round| {
            desk.guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
            let resource = desk.offered_blob(memfd("leak-offer", 9, 600), 600);
            desk.guest.map(resource, 0);
            let exhausted = Exhausted::with_room(round % 2);
            desk.guest.reset();
            drop(exhausted);
            assert_eq!((fds_named("leak-offer"), byte_at(&desk.window, 4096)), (0, 0));
            let activation = desk.guest.activation();
            let exhausted = Exhausted::with_room(0);
            let features = desk.guest.device().features();
            desk.guest.device().acknowledge(features).expect("its own features");
            desk.guest.device().activate(activation).wait().expect("a device").expect("no descriptor is needed");
            desk.guest.settle();
            drop(exhausted);
        });
    });
}

#[test]
fn a_device_that_finds_no_room_for_its_descriptors_never_panics_or_leaks() {
    alone("exhaustion::a_device_that_finds_no_room_for_its_descriptors_never_panics_or_leaks", || {
        let panics = count_panics();
        drop(Guest::start(Builder::new()));
        let mut outcomes = [0, 0];
        leaves_nothing(60, |round| {
            let exhausted = Exhausted::with_room(round % 20);
            let device = HostWindow::new(1 << 20).map(|window| Builder::new().window(window).spawn());
            let device = device.and_then(|spawned| spawned.map_err(std::io::Error::other));
            outcomes[usize::from(device.is_ok())] += 1;
            drop(device.map(|device: virtio_gpu_uring::Device<std::sync::Arc<vm_memory::GuestMemoryMmap>>| device));
            drop(exhausted);
        });
        assert_eq!(panics.load(Ordering::SeqCst), 0, "a thread of the device panicked");
        assert!(outcomes.iter().all(|count| *count > 0), "refused, made: {outcomes:?}");
    });
}

#[test]
fn an_offer_beyond_the_limit_is_never_kept_open() {
    alone("exhaustion::an_offer_beyond_the_limit_is_never_kept_open", || {
        let service = HostService::listen();
        let window = HostWindow::new(1 << 20).expect("a window");
        let limits = Limits { fds: 3, ..Limits::default() };
        let builder = Builder::new().window(window.clone()).limits(limits);
        let builder = builder.host_socket(ChannelType::PIPEWIRE, service.path());
        let mut desk = Desk { guest: Guest::start(builder), window, service, next_resource: 100 };
        leaves_nothing(50, |_| {
            // One for the channel's socket, two for buffers.
            let mut channel = GuestChannel::open(&mut desk.guest, 1, 10, ChannelType::PIPEWIRE);
            let peer = desk.service.accept();
            let resource = desk.offered_blob(memfd("leak-limit", 5, 1), 1);
            let files = [memfd("leak-limit", 6, 1), memfd("leak-limit", 7, 1)];
            peer.send(b"two", &files.each_ref().map(AsFd::as_fd));
            drop(files);
            let message = channel.receive(&mut desk.guest);
            let kinds: Vec<u32> = message.identifiers.iter().map(|(_, kind, _)| *kind).collect();
            assert_eq!(kinds, [id_type::VIRTGPU_BLOB, id_type::UNSUPPORTED]);
            let refused = desk.guest.device().offer(crate::buffer(memfd("leak-limit", 8, 1)));
            refused.wait().expect("a device").expect_err("one more than the limit");
            assert_eq!(fds_named("leak-limit"), 2);
            desk.guest.map(resource, 0);
            assert_eq!(byte_at(&desk.window, 0), 5);
            desk.guest.command(&Request::unref(resource)).ok();
            desk.guest.command(&Request::ctx_destroy(1)).ok();
            for ring in channel.rings {
                desk.guest.command(&Request::unref(ring)).ok();
            }
            assert_eq!(fds_named("leak-limit"), 0);
        });
    });
}
