//! Channels to host services when something goes wrong: services that die, do not read or do not accept, contexts and
//! rings that go while a POLL waits. Whatever happens, every fence signals and nothing stays open.
#![cfg(feature = "testing")]

#[path = "channel_faults/backlog.rs"]
mod backlog;
#[path = "channel_faults/streams.rs"]
mod streams;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, recv};
use vm_memory::GuestAddress;

use virtio_gpu_uring::protocol::cross_domain::{ChannelType, id_type};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::protocol::wire::response_type::ERR_UNSPEC;
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestChannel, HostPeer, HostService, Request, Token, census};
use virtio_gpu_uring::{Builder, Limits};

/// What guest memory is filled with so that every write to it shows.
const UNTOUCHED: u8 = 0xee;

fn memfd(name: &str, len: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    file
}

fn start_with(service: &HostService, limits: Limits) -> Guest {
    Guest::start(Builder::new().limits(limits).host_socket(ChannelType::PIPEWIRE, service.path()))
}

/// A channel as context 1 with resources 10 and 11.
fn connected_with(service: &HostService, limits: Limits) -> (Guest, GuestChannel, HostPeer) {
    let mut guest = start_with(service, limits);
    let channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (guest, channel, peer)
}

fn connected(service: &HostService) -> (Guest, GuestChannel, HostPeer) {
    connected_with(service, Limits::default())
}

/// What the service finds at its end without waiting: 0 where the other side has closed.
fn peek(peer: &HostPeer) -> Result<usize, Errno> {
    recv(peer.stream(), &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::PEEK).map(|(_, len)| len)
}

#[track_caller]
fn assert_end_of_file(guest: &mut Guest, channel: &GuestChannel, polls: Vec<Token>) {
    for poll in polls {
        guest.wait(poll).ok();
    }
    let message = channel.message(guest);
    assert_eq!((message.data.len(), message.identifiers.len()), (0, 0), "no end of file in the ring: {message:?}");
}

/// Works as it should, whatever became of the others.
#[track_caller]
fn assert_lives(guest: &mut Guest, channel: &mut GuestChannel, peer: &HostPeer) {
    channel.send(guest, b"ping", &[]);
    assert_eq!(peer.receive(4).0, b"ping");
    let poll = channel.poll(guest);
    peer.send(b"pong", &[]);
    assert_eq!(channel.wait(guest, poll).data, b"pong");
}

#[test]
fn a_dead_service_leaves_no_fence_waiting() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    peer.send(b"before", &[]);
    assert_eq!(channel.receive(&mut guest).data, b"before");
    let polls: Vec<Token> = (0..5).map(|_| channel.poll(&mut guest)).collect();
    drop(peer);
    assert_end_of_file(&mut guest, &channel, polls);
    // Nothing will ever come now: whoever asks again is told at once.
    let again = channel.poll(&mut guest);
    assert_end_of_file(&mut guest, &channel, vec![again]);
    let send = Request::submit(1, &Request::stream_send(b"nobody", &[]));
    let refused = guest.command(&send).kind();
    assert!((0x1200..0x1206).contains(&refused), "a message to nobody was answered {refused:#x}");
    guest.command(&Request::ctx_destroy(1)).ok();
    guest.assert_all_answered();
    let counters = guest.device().counters();
    assert_eq!((counters.channels_opened, counters.channels_closed), (1, 1));
}

#[test]
fn what_a_dying_service_said_is_never_lost() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let file = memfd("last-words", 4096);
    peer.send(b"last words", &[file.as_fd()]);
    drop(peer);
    let message = channel.receive(&mut guest);
    assert_eq!((message.data.as_slice(), message.identifiers.len()), (&b"last words"[..], 1));
    let end = channel.poll(&mut guest);
    assert_end_of_file(&mut guest, &channel, vec![end]);
    // The item outlives the channel that it came through.
    guest.command(&Request::host_blob(1, 20, u64::from(message.identifiers[0].0), 4096)).ok();
}

#[test]
fn a_connection_that_is_reset_is_an_end_of_file_too() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    peer.send(b"before", &[]);
    channel.receive(&mut guest);
    let poll = channel.poll(&mut guest);
    // Dying with something unread makes the other side read ECONNRESET instead of nothing.
    channel.send(&mut guest, b"unread", &[]);
    drop(peer);
    assert_end_of_file(&mut guest, &channel, vec![poll]);
    guest.assert_all_answered();
}

#[test]
fn a_service_that_only_stops_writing_is_an_end_of_file() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    peer.send(b"before", &[]);
    channel.receive(&mut guest);
    let poll = channel.poll(&mut guest);
    peer.stream().shutdown(std::net::Shutdown::Write).expect("shut down");
    assert_end_of_file(&mut guest, &channel, vec![poll]);
}

/// A socket whose queue of connections holds one.
struct Unwilling {
    socket: OwnedFd,
    path: PathBuf,
}

impl Unwilling {
    fn listen() -> Self {
        let path = std::env::temp_dir().join(format!("virtio-gpu-uring-unwilling-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = Self::socket();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("an address")).expect("bound");
        rustix::net::listen(&socket, 0).expect("listens");
        Self { socket, path }
    }

    fn socket() -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket")
    }

    /// Connects until nobody can any more.
    fn fill(&self) -> Vec<OwnedFd> {
        let mut connections = Vec::new();
        loop {
            let socket = Self::socket();
            match rustix::net::connect(&socket, &SocketAddrUnix::new(&self.path).expect("an address")) {
                Ok(()) => connections.push(socket),
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN);
                    return connections;
                }
            }
        }
    }
}

impl Drop for Unwilling {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn a_service_that_does_not_accept_never_blocks_the_device() {
    // Dropped last, so that a device that does wait is let go when the test has failed.
    let mut guest;
    let unwilling = Unwilling::listen();
    let before = unwilling.fill();
    guest = Guest::start(Builder::new().host_socket(ChannelType::PIPEWIRE, &unwilling.path));
    let channel = GuestChannel::create(&mut guest, 1, 10);
    let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, None);
    for fence in 1..=3 {
        let answer = guest.command(&Request::submit(1, &init).fenced(fence).on_ring(1));
        answer.expect_error(ERR_UNSPEC);
        assert_eq!(answer.header.fence_id.get(), fence);
    }
    guest.settle();
    for _ in &before {
        drop(rustix::net::accept(&unwilling.socket).expect("a connection"));
    }
    // The refusals have cost the context nothing.
    channel.init(&mut guest, ChannelType::PIPEWIRE);
    guest.assert_all_answered();
}

#[test]
fn a_service_that_is_not_there_costs_the_context_nothing() {
    let mut guest = Guest::start(Builder::new().host_socket(ChannelType::PIPEWIRE, "/nonexistent/pipewire-0"));
    let mut channel = GuestChannel::create(&mut guest, 1, 10);
    let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, None);
    guest.command(&Request::submit(1, &init)).expect_error(ERR_UNSPEC);
    let poll = channel.poll(&mut guest);
    guest.wait(poll).ok();
    guest.command(&Request::ctx_destroy(1)).ok();
    let counters = guest.device().counters();
    assert_eq!((counters.channels_opened, counters.channels_closed), (0, 0));
    guest.assert_all_answered();
}

#[test]
fn a_destroyed_context_keeps_neither_its_socket_nor_its_fences() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let polls: Vec<Token> = (0..3).map(|_| channel.poll(&mut guest)).collect();
    guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(peek(&peer), Ok(0), "the socket was open after the answer");
    for poll in polls {
        guest.wait(poll).ok();
    }
    guest.assert_all_answered();
}

#[test]
fn a_reset_device_keeps_no_socket_and_never_answers_what_was_before() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let _polls: Vec<Token> = (0..3).map(|_| channel.poll(&mut guest)).collect();
    guest.settle();
    guest.reset();
    assert_eq!(peek(&peer), Ok(0), "the socket was open after the reset");
    guest.activate();
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let poll = channel.poll(&mut guest);
    guest.settle();
    assert!(!guest.has_answer(&poll), "a fence of the life before has signalled");
    peer.send(b"anew", &[]);
    assert_eq!(channel.wait(&mut guest, poll).data, b"anew");
    guest.assert_all_answered();
}

#[test]
fn a_dropped_device_keeps_neither_sockets_nor_items() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let file = memfd("of-a-dropped-device", 4096);
    peer.send(b"two", &[file.as_fd(), file.as_fd()]);
    channel.receive(&mut guest);
    let _poll = channel.poll(&mut guest);
    assert_eq!(census::fds_named("of-a-dropped-device"), 3);
    drop(guest);
    assert_eq!(peek(&peer), Ok(0), "the socket outlives the device");
    assert_eq!(census::fds_named("of-a-dropped-device"), 1);
}

#[test]
fn a_reused_context_id_never_completes_fences_of_its_new_life_early() {
    let service = HostService::listen();
    let mut guest = start_with(&service, Limits::default());
    for life in 0..5u8 {
        // Every life counts its fences from 1 again, as Linux does.
        let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        let first = channel.poll(&mut guest);
        guest.settle();
        assert!(!guest.has_answer(&first), "life {life}: fence 1 was complete at once");
        peer.send(&[life], &[]);
        assert_eq!(channel.wait(&mut guest, first).data, [life]);
        let _waits = channel.poll(&mut guest);
        guest.command(&Request::ctx_destroy(1)).ok();
        for ring in [10, 11] {
            guest.command(&Request::unref(ring)).ok();
        }
        assert_eq!(peek(&peer), Ok(0));
    }
    guest.assert_all_answered();
}

#[test]
fn items_that_nobody_used_never_outlive_their_context_nor_their_quota() {
    let service = HostService::listen();
    let limits = Limits { fds: 6, ..Limits::default() };
    let mut guest = start_with(&service, limits);
    let file = memfd("unused-item", 4096);
    for _ in 0..20 {
        let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        peer.send(b"five", &[file.as_fd(); 5]);
        let message = channel.receive(&mut guest);
        assert!(message.identifiers.iter().all(|(_, kind, _)| *kind == id_type::VIRTGPU_BLOB), "{message:?}");
        assert_eq!(census::fds_named("unused-item"), 6);
        guest.command(&Request::ctx_destroy(1)).ok();
        assert_eq!(census::fds_named("unused-item"), 1);
        for ring in [10, 11] {
            guest.command(&Request::unref(ring)).ok();
        }
    }
}

#[test]
fn no_more_items_than_the_limit_are_kept_and_what_is_over_it_is_closed() {
    let service = HostService::listen();
    let limits = Limits { items_per_context: 3, ..Limits::default() };
    let (mut guest, mut channel, peer) = connected_with(&service, limits);
    let file = memfd("over-the-limit", 4096);
    peer.send(b"five", &[file.as_fd(); 5]);
    let message = channel.receive(&mut guest);
    let kinds: Vec<u32> = message.identifiers.iter().map(|(_, kind, _)| *kind).collect();
    assert_eq!(kinds, [1, 1, 1, 0, 0]);
    assert_eq!(census::fds_named("over-the-limit"), 4);
    assert_eq!(guest.device().counters().limit_refusals, 2);
    // One that is used makes room for another.
    guest.command(&Request::host_blob(1, 20, u64::from(message.identifiers[1].0), 4096)).ok();
    peer.send(b"two", &[file.as_fd(); 2]);
    let kinds: Vec<u32> = channel.receive(&mut guest).identifiers.iter().map(|(_, kind, _)| *kind).collect();
    assert_eq!(kinds, [1, 0]);
}

#[test]
fn a_message_of_too_many_descriptors_loses_none_and_hurts_no_other_channel() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let mut other = GuestChannel::open(&mut guest, 2, 30, ChannelType::PIPEWIRE);
    let other_peer = service.accept();
    let file = memfd("too-many", 4096);
    let files: Vec<BorrowedFd<'_>> = vec![file.as_fd(); 29];
    let poll = channel.poll(&mut guest);
    peer.send(b"29", &files);
    // Which of them is missing nobody could tell: the channel ends.
    assert_end_of_file(&mut guest, &channel, vec![poll]);
    assert_eq!(peek(&peer), Ok(0));
    // What nobody took is closed on a thread of its own.
    let end = Instant::now() + DEADLINE;
    while census::fds_named("too-many") > 1 {
        assert!(Instant::now() < end, "descriptors stay open");
        std::thread::yield_now();
    }
    assert_lives(&mut guest, &mut other, &other_peer);
    guest.assert_all_answered();
}

/// Takes the channel ring, resource 11, away from a waiting context as `take` does, and checks that what the service
/// sends then goes nowhere.
#[track_caller]
fn assert_never_written(take: impl Fn(&mut Guest, (u64, u32))) {
    let service = HostService::listen();
    let mut guest = start_with(&service, Limits::default());
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let range = guest.page_range(4096);
    guest.ram().write(GuestAddress(range.0), &[UNTOUCHED; 4096]);
    for (resource, range) in [(10, guest.page_range(4096)), (11, range)] {
        guest.command(&Request::guest_blob(resource, 4096, &[range])).ok();
        guest.command(&Request::ctx_attach(1, resource)).ok();
    }
    let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, Some(1));
    guest.command(&Request::submit(1, &init)).ok();
    let peer = service.accept();
    let credit = Request::submit(1, &Request::stream_poll()).fenced(1).on_ring(1);
    let polls = vec![guest.submit(&credit), guest.submit(&credit)];
    guest.settle();
    take(&mut guest, range);
    peer.send(b"into freed memory", &[]);
    drop(peer);
    for poll in polls {
        guest.wait(poll).ok();
    }
    let page = guest.ram().read(GuestAddress(range.0), 4096);
    assert!(page.iter().all(|byte| *byte == UNTOUCHED), "the host wrote into memory that the guest had taken back");
    guest.assert_all_answered();
}

#[test]
fn a_ring_that_was_given_up_is_never_written_even_under_its_old_id() {
    assert_never_written(|guest, _| drop(guest.command(&Request::unref(11)).ok()));
    assert_never_written(|guest, range| {
        guest.command(&Request::unref(11)).ok();
        guest.command(&Request::guest_blob(11, 4096, &[range])).ok();
        guest.command(&Request::ctx_attach(1, 11)).ok();
    });
}

#[test]
fn a_ring_whose_backing_was_detached_is_never_written() {
    assert_never_written(|guest, _| drop(guest.command(&Request::detach_backing(11)).ok()));
    assert_never_written(|guest, _| {
        guest.command(&Request::detach_backing(11)).ok();
        let elsewhere = guest.page_range(4096);
        guest.command(&Request::attach_backing(11, &[elsewhere])).ok();
    });
}

#[test]
fn a_ring_that_was_detached_from_its_context_is_never_written() {
    assert_never_written(|guest, _| drop(guest.command(&Request::ctx_detach(1, 11)).ok()));
}
