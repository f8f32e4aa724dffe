//! Lives of cross-domain channels: images that a guest has laid out for it, every way in which a channel ends, and what
//! hang-ups, pauses and limits leave of its items. Whoever is at the other end of anything sees at once that it is over.
#![cfg(feature = "testing")]

mod ended_services;
mod endings;
mod hang_up;
mod image_blobs;
mod images;
mod limits;
mod lingering;
#[path = "../order/memory.rs"]
mod memory;
mod parked;
mod rings;
mod stuck;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, FIRST_READ_PIPE, id_type};
use virtio_gpu_uring::testing::{
    DEADLINE, Guest, GuestChannel, GuestOptions, HostPeer, HostService, Message, Request, Token,
};

/// The host's page.
const PAGE: u64 = 4096;
/// What guest memory is filled with so that every write to it shows.
const UNTOUCHED: u8 = 0xee;
/// Guest memory that is quick to look through.
const RAM: usize = 512 << 10;

/// A guest with one channel: context 1 with resources 10 and 11.
struct Scene {
    guest: Guest,
    channel: GuestChannel,
    peer: HostPeer,
    service: HostService,
}

impl Scene {
    fn new() -> Self {
        Self::with(Builder::new())
    }

    fn with(builder: Builder) -> Self {
        let service = HostService::listen();
        let builder = builder.host_socket(ChannelType::PIPEWIRE, service.path());
        let guest = Guest::with_options(builder, GuestOptions { ram: RAM, ..GuestOptions::default() });
        Self::on(guest, service)
    }

    #[track_caller]
    fn on(mut guest: Guest, service: HostService) -> Self {
        let channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        Self { guest, channel, peer, service }
    }

    fn poll(&mut self) -> Token {
        self.channel.poll(&mut self.guest)
    }

    #[track_caller]
    fn ok(&mut self, stream: &[u8]) {
        self.channel.submit(&mut self.guest, stream).ok();
    }

    #[track_caller]
    fn refused(&mut self, stream: &[u8], code: u32) {
        self.channel.submit(&mut self.guest, stream).expect_error(code);
    }

    /// Sends descriptors to the guest; what it is told of each: id, type, size.
    #[track_caller]
    fn hand(&mut self, files: &[&OwnedFd]) -> Vec<(u32, u32, u32)> {
        self.peer.send(b"x", &files.iter().map(|file| file.as_fd()).collect::<Vec<_>>());
        let message = self.channel.receive(&mut self.guest);
        assert_eq!(message.data, b"x");
        message.identifiers
    }

    /// An eventfd of the service's that the guest has an id for.
    #[track_caller]
    fn event(&mut self) -> (u32, OwnedFd) {
        let event = event();
        let (id, kind, _) = self.hand(&[&event])[0];
        assert_eq!(kind, id_type::EVENTFD);
        (id, event)
    }

    /// The same, watched.
    #[track_caller]
    fn watched(&mut self) -> (u32, OwnedFd) {
        let (id, event) = self.event();
        self.ok(&Request::stream_watch(id));
        (id, event)
    }

    /// A pipe that the guest can write: its id, and the end that is read.
    #[track_caller]
    fn write_pipe(&mut self) -> (u32, OwnedFd) {
        let (reader, writer) = pipe();
        let (id, kind, _) = self.hand(&[&writer])[0];
        assert_eq!(kind, id_type::WRITE_PIPE);
        (id, reader)
    }

    /// A pipe that the device reads for the guest, which is its `number`th: the end that is written.
    #[track_caller]
    fn read_pipe(&mut self, number: u32) -> OwnedFd {
        let identifier = (FIRST_READ_PIPE + number, id_type::READ_PIPE);
        self.ok(&Request::stream_send_with(b"p", &[identifier]));
        let (data, mut files) = self.peer.receive(1);
        assert_eq!((data.as_slice(), files.len()), (&b"p"[..], 1));
        files.remove(0)
    }

    /// Works in both directions.
    #[track_caller]
    fn assert_lives(&mut self) {
        assert_lives(&mut self.guest, &mut self.channel, &self.peer);
    }

    /// Channels opened and closed.
    fn channels(&self) -> (u64, u64) {
        let counters = self.guest.device().counters();
        (counters.channels_opened, counters.channels_closed)
    }

    /// What was read for the guest, and what it has written, as the device counts them.
    fn items(&self) -> (u64, u64) {
        let counters = self.guest.device().counters();
        (counters.items_read, counters.items_written)
    }
}

#[track_caller]
fn assert_lives(guest: &mut Guest, channel: &mut GuestChannel, peer: &HostPeer) {
    channel.send(guest, b"ping", &[]);
    assert_eq!(peer.receive(4).0, b"ping");
    let poll = channel.poll(guest);
    peer.send(b"pong", &[]);
    assert_eq!(channel.wait(guest, poll).data, b"pong");
}

/// All fences signal, and the ring tells of the end of the file.
#[track_caller]
fn assert_end_of_file(guest: &mut Guest, channel: &GuestChannel, polls: impl IntoIterator<Item = Token>) {
    for poll in polls {
        guest.wait(poll).ok();
    }
    assert_eq!(channel.message(guest), Message { data: Vec::new(), identifiers: Vec::new() }, "no end of the file");
}

/// What the service finds at its end without waiting: 0 where the other side has closed.
fn peek(peer: &HostPeer) -> Result<usize, Errno> {
    recv(peer.stream(), &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::PEEK).map(|(_, len)| len)
}

/// Everything that the device does by itself is done many times over.
fn turns(guest: &Guest) {
    for _ in 0..32 {
        guest.device().hang_up(ChannelType::NONE).wait().expect("a device");
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

fn ring(event: &OwnedFd, count: u64) {
    rustix::io::write(event, &count.to_ne_bytes()).expect("room in the counter");
}

/// A pipe: an end to read without waiting, and one to write.
fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    let flags = fcntl_getfl(&reader).expect("flags");
    fcntl_setfl(&reader, flags | OFlags::NONBLOCK).expect("set");
    (reader, writer)
}

fn memfd(name: &str, len: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    file
}

/// What is in a pipe now, and whether somebody could still write more.
fn drain(reader: &OwnedFd) -> (Vec<u8>, bool) {
    let mut seen = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match rustix::io::read(reader, &mut piece) {
            Ok(0) => return (seen, false),
            Ok(len) => seen.extend_from_slice(&piece[..len]),
            Err(Errno::AGAIN) => return (seen, true),
            Err(error) => panic!("a pipe that cannot be read: {error}"),
        }
    }
}

/// Whether somebody could still read what is written here.
fn has_reader(writer: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(writer, PollFlags::OUT)];
    poll(&mut wanted, Some(&Timespec::default())).expect("a pipe that can be watched");
    !wanted[0].revents().contains(PollFlags::ERR)
}

/// Descriptors of this process that are open on the same file: a memfd, a pipe.
fn holders(file: &OwnedFd) -> usize {
    let wanted = fstat(file).expect("a file");
    let is = |stat: Stat| (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino);
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").flatten();
    entries.filter(|entry| rustix::fs::stat(entry.path()).is_ok_and(is)).count()
}

/// Descriptors of this process that are open on the same eventfd: all share one inode, so their numbers tell.
fn event_holders(event: &OwnedFd) -> usize {
    use std::os::fd::AsRawFd;
    let number = |path: std::path::PathBuf| {
        let info = std::fs::read_to_string(path).ok()?;
        info.lines().find(|line| line.starts_with("eventfd-id:")).map(str::to_owned)
    };
    let wanted = number(format!("/proc/self/fdinfo/{}", event.as_raw_fd()).into()).expect("an eventfd's number");
    let entries = std::fs::read_dir("/proc/self/fdinfo").expect("/proc/self/fdinfo").flatten();
    entries.filter(|entry| number(entry.path()).as_ref() == Some(&wanted)).count()
}

/// Looks again until it is true.
#[track_caller]
fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let started = Instant::now();
    while !true_now() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}
