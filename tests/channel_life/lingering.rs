//! What stands still at one end of a channel and must not be felt at another: descriptors that do not close, readers that do not
//! read, counts that are on their way when their eventfd goes.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketType, socket};
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::ERR_OUT_OF_MEMORY;
use virtio_gpu_uring::testing::{Guest, GuestChannel, GuestOptions, HostService, Request};
use virtio_gpu_uring::{Builder, Limits};

use crate::{Scene, until};

/// A socket whose last close waits until the other is dropped.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut stream = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (other, _) = listener.accept().expect("a connection");
    stream.set_nonblocking(true).expect("non-blocking");
    while stream.write(&[0; 1 << 16]).is_ok() {}
    stream.set_nonblocking(false).expect("blocking");
    set_socket_linger(&stream, Some(Duration::from_secs(600))).expect("lingers");
    (stream.into(), other)
}

/// A device with two services, and a descriptor of the first that does not close.
struct Stuck {
    guest: Guest,
    bad: HostService,
    good: HostService,
    _held: TcpStream,
}

impl Stuck {
    fn new() -> Self {
        let [bad, good] = [(); 2].map(|()| HostService::listen());
        let builder = Builder::new().host_socket(ChannelType::PIPEWIRE, bad.path());
        let builder = builder.host_socket(ChannelType::WAYLAND, good.path());
        let mut guest = Guest::with_options(builder, GuestOptions { ram: 16 << 20, ..GuestOptions::default() });
        let mut channel = GuestChannel::open(&mut guest, 3, 30, ChannelType::PIPEWIRE);
        let peer = bad.accept();
        let (file, held) = lingering();
        peer.send(b"lingers", &[file.as_fd()]);
        drop(file);
        channel.receive(&mut guest);
        guest.command(&Request::ctx_destroy(3)).ok();
        Self { guest, bad, good, _held: held }
    }
}

#[test]
fn descriptors_that_never_close_never_end_the_channel_of_another_service() {
    let mut stuck = Stuck::new();
    let mut one = GuestChannel::open(&mut stuck.guest, 1, 10, ChannelType::PIPEWIRE);
    let bad = stuck.bad.accept();
    let mut two = GuestChannel::open(&mut stuck.guest, 2, 20, ChannelType::WAYLAND);
    let good = stuck.good.accept();
    let odd = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    for _ in 0..10 {
        let poll = one.poll(&mut stuck.guest);
        bad.send(b"odd", &[odd.as_fd(); 28]);
        stuck.guest.wait(poll).ok();
    }
    until("the channel of the bad service ends", || crate::peek(&bad) == Ok(0));
    for _ in 0..2 {
        good.send(b"hello", &[]);
        assert_eq!(two.receive(&mut stuck.guest).data, b"hello");
    }
}

#[test]
fn sockets_behind_one_that_never_closes_never_become_more_without_end() {
    let mut stuck = Stuck::new();
    let open = |guest: &mut Guest, service: &HostService, round: u32| {
        let channel = GuestChannel::create(guest, 1, 100 + 2 * round);
        let init = Request::stream_init(channel.rings[0], channel.rings[1], ChannelType::PIPEWIRE.0, Some(1));
        let answer = channel.submit(guest, &init);
        if answer.kind() == ERR_OUT_OF_MEMORY {
            return false;
        }
        answer.ok();
        // It is not read, so that the socket goes to where others are closed.
        service.accept().send(b"unread", &[]);
        guest.command(&Request::ctx_destroy(1)).ok();
        for ring in channel.rings {
            guest.command(&Request::unref(ring)).ok();
        }
        true
    };
    let rounds = (0..400).take_while(|round| open(&mut stuck.guest, &stuck.bad, *round)).count();
    assert!(rounds < 300, "{rounds} sockets wait to be closed, and a new one is opened all the same");
}

#[test]
fn a_count_that_was_taken_never_goes_with_its_eventfd() {
    for destroy in [true, false] {
        let mut scene = Scene::new();
        let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let id = scene.hand(&[&event])[0].0;
        let end = if destroy { Request::stream_unwatch(id) } else { Request::stream_write(id, &[], true) };
        scene.ok(&[Request::stream_write(id, &5u64.to_le_bytes(), false), end].concat());
        until("it is added", || poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&Timespec::default())) == Ok(1));
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).expect("a count");
        assert_eq!(u64::from_ne_bytes(count), 5);
    }
}

#[test]
fn a_pipe_that_nobody_reads_never_takes_the_channel_s_room() {
    let mut scene = Scene::with(Builder::new().limits(Limits { channel_backlog: 1 << 20, ..Limits::default() }));
    let (pipe, _reader) = scene.write_pipe();
    let mut write = || scene.channel.submit(&mut scene.guest, &Request::stream_write(pipe, &[1; 1 << 14], false));
    let refused = (0..200).map(|_| write()).find(|answer| answer.kind() == ERR_OUT_OF_MEMORY);
    assert!(refused.is_some(), "the pipe has room without end");
    // More than a socket takes by itself.
    for _ in 0..200 {
        scene.ok(&Request::stream_send(&[0; 3000], &[]));
    }
}
