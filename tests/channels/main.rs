//! What a cross-domain channel carries beside messages: eventfds and pipes of every kind and in any mix, fair to each other,
//! bounded, and gone when their context goes. Whatever one of them does, no other channel and no other command notices.
#![cfg(feature = "testing")]

#[path = "../leaks/alone.rs"]
mod alone;
mod events;
mod fairness;
mod mixed;
mod pipes;

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fstat, ftruncate, memfd_create};
use rustix::io::{ReadWriteFlags, preadv2};

use virtio_gpu_uring::protocol::cross_domain::{ChannelType, id_type};
use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
use virtio_gpu_uring::testing::{
    DEADLINE, Guest, GuestChannel, HostPeer, HostService, Incoming, Message, Read, Request, Token, census,
};
use virtio_gpu_uring::{Builder, Limits};

/// Most bytes of data of a READ in a ring of one page.
const READ_ROOM: usize = 4096 - 24;
/// The first id that a guest states for a pipe of its own.
const FIRST_PIPE: u32 = 0x8000_0001;
/// What an eventfd's counter never reaches.
const FULL: u64 = u64::MAX - 1;

/// Id, type and size of a descriptor.
type Identifier = (u32, u32, u32);

/// A guest with one channel, as context 1 with resources 10 and 11, and the service at its other end.
struct Desk {
    guest: Guest,
    channel: GuestChannel,
    peer: HostPeer,
    service: HostService,
}

impl Desk {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self::speaking(limits, 24)
    }

    /// In the dialect whose INIT has this length.
    #[track_caller]
    fn speaking(limits: Limits, init: u16) -> Self {
        let service = HostService::listen();
        let mut guest = Guest::start(Builder::new().limits(limits).host_socket(ChannelType::PIPEWIRE, service.path()));
        let channel = GuestChannel::create(&mut guest, 1, 10);
        channel.submit(&mut guest, &init_of(init, channel.rings)).ok();
        let peer = service.accept();
        Self { guest, channel, peer, service }
    }

    /// Another channel of the same device.
    #[track_caller]
    fn another(&mut self, context: u32, first_resource: u32) -> (GuestChannel, HostPeer) {
        let channel = GuestChannel::open(&mut self.guest, context, first_resource, ChannelType::PIPEWIRE);
        (channel, self.service.accept())
    }

    #[track_caller]
    fn ok(&mut self, stream: &[u8]) {
        self.channel.submit(&mut self.guest, stream).ok();
    }

    #[track_caller]
    fn refused(&mut self, stream: &[u8], kind: u32) {
        self.channel.submit(&mut self.guest, stream).expect_error(kind);
    }

    /// Refused, as a parameter that is wrong.
    #[track_caller]
    fn invalid(&mut self, stream: &[u8]) {
        self.refused(stream, ERR_INVALID_PARAMETER);
    }

    #[track_caller]
    fn write(&mut self, id: u32, data: &[u8]) {
        self.ok(&Request::stream_write(id, data, false));
    }

    #[track_caller]
    fn add(&mut self, id: u32, count: u64) {
        self.write(id, &count.to_le_bytes());
    }

    fn poll(&mut self) -> Token {
        self.channel.poll(&mut self.guest)
    }

    /// The next thing to come, which must be a message.
    #[track_caller]
    fn receive(&mut self) -> Message {
        let poll = self.poll();
        message(&mut self.guest, &mut self.channel, poll)
    }

    #[track_caller]
    fn read(&mut self) -> Read {
        self.channel.receive_read(&mut self.guest)
    }

    /// The next thing to come, which must be this eventfd's counter.
    #[track_caller]
    fn count(&mut self, id: u32) -> u64 {
        let read = self.read();
        assert_eq!((read.id, read.hang_up), (id, false), "{read:?}");
        u64::from_le_bytes(read.data.try_into().expect("eight bytes of an eventfd"))
    }

    /// Sends descriptors with a byte of data; what the guest is told of each.
    #[track_caller]
    fn forward(&mut self, files: &[BorrowedFd<'_>]) -> Vec<Identifier> {
        self.peer.send(b"x", files);
        let message = self.receive();
        assert_eq!((message.data.as_slice(), message.identifiers.len()), (&b"x"[..], files.len()), "{message:?}");
        message.identifiers
    }

    /// Sends one descriptor and asserts that it is announced as of this type, without a size; its id.
    #[track_caller]
    fn forward_one(&mut self, file: impl AsFd, kind: u32) -> u32 {
        let identifier = self.forward(&[file.as_fd()])[0];
        assert_eq!((identifier.1, identifier.2), (kind, 0), "{identifier:?}");
        assert_eq!(identifier.0 == 0, kind == id_type::UNSUPPORTED, "{identifier:?}");
        identifier.0
    }

    /// An eventfd of the service's, and its id.
    #[track_caller]
    fn event(&mut self, flags: EventfdFlags) -> (OwnedFd, u32) {
        let file = eventfd(0, flags | EventfdFlags::CLOEXEC).expect("an eventfd");
        let id = self.forward_one(&file, id_type::EVENTFD);
        (file, id)
    }

    /// One that the host reads for the guest.
    #[track_caller]
    fn watched(&mut self, flags: EventfdFlags) -> (OwnedFd, u32) {
        let (file, id) = self.event(flags);
        self.ok(&Request::stream_watch(id));
        (file, id)
    }

    /// Works as it should, in both directions.
    #[track_caller]
    fn assert_lives(&mut self) {
        assert_lives(&mut self.guest, &mut self.channel, &self.peer);
    }

    /// Takes messages of its guest's, whatever waits to be read.
    #[track_caller]
    fn assert_lives_beside(&mut self) {
        self.channel.send(&mut self.guest, b"ping", &[]);
        assert_eq!(self.peer.receive(4).0, b"ping");
    }

    /// Asks for a message and asserts that none is there.
    #[track_caller]
    fn assert_nothing_comes(&mut self) {
        let poll = self.poll();
        for _ in 0..3 {
            self.guest.settle();
        }
        let came = self.guest.has_answer(&poll);
        assert!(!came, "came unasked: {:?}", self.channel.incoming(&self.guest));
        self.peer.send(b"something", &[]);
        assert_eq!(message(&mut self.guest, &mut self.channel, poll).data, b"something");
    }
}

/// Works as it should, in both directions.
#[track_caller]
fn assert_lives(guest: &mut Guest, channel: &mut GuestChannel, peer: &HostPeer) {
    channel.send(guest, b"ping", &[]);
    assert_eq!(peer.receive(4).0, b"ping");
    let poll = channel.poll(guest);
    peer.send(b"pong", &[]);
    assert_eq!(message(guest, channel, poll).data, b"pong");
}

/// What comes for this credit, which must be a message.
#[track_caller]
fn message(guest: &mut Guest, channel: &mut GuestChannel, poll: Token) -> Message {
    match channel.wait_any(guest, poll) {
        Incoming::Message(message) => message,
        Incoming::Read(read) => panic!("something read instead of a message: {read:?}"),
    }
}

/// A command of these words, of the length that they have.
fn words(cmd: u8, words: &[u32]) -> Vec<u8> {
    raw(cmd, 8 + 4 * words.len() as u16, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
}

/// A command that states `size` whatever its body's length.
fn raw(cmd: u8, size: u16, body: &[u8]) -> Vec<u8> {
    let [low, high] = size.to_le_bytes();
    [&[cmd, 0, low, high, 0, 0, 0, 0], body].concat()
}

/// INIT of this length, towards the PipeWire channel.
fn init_of(size: u16, [query, channel]: [u32; 2]) -> Vec<u8> {
    let pipewire = ChannelType::PIPEWIRE.0;
    let body = match size {
        16 => vec![channel, pipewire],
        20 => vec![query, channel, pipewire],
        24 => vec![query, channel, pipewire, 1],
        _ => vec![query, channel, pipewire, 0, 0, 0, 0],
    };
    words(1, &body)
}

fn memfd(name: &str, len: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    file
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// What the kernel tells of an eventfd of this process.
fn told_of(file: impl AsFd, what: &str) -> String {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd())).expect("fdinfo");
    let found = info.lines().find_map(|line| line.strip_prefix(what));
    found.unwrap_or_else(|| panic!("no {what} in {info}")).trim().to_owned()
}

/// An eventfd's counter, untouched.
fn counter(file: impl AsFd) -> u64 {
    u64::from_str_radix(&told_of(file, "eventfd-count:"), 16).expect("a counter")
}

/// How many descriptors of this process are of this eventfd.
fn holders(file: impl AsFd) -> usize {
    let id = format!("eventfd-id: {}", told_of(file, "eventfd-id:"));
    let infos = fs::read_dir("/proc/self/fdinfo").expect("/proc/self/fdinfo").flatten();
    let is_it = |info: String| info.lines().any(|line| line == id);
    infos.filter(|entry| fs::read_to_string(entry.path()).is_ok_and(is_it)).count()
}

/// How many descriptors of this process are of this pipe, both ends together.
fn ends(file: impl AsFd) -> usize {
    census::fds_named(&format!("pipe:[{}]", fstat(file).expect("fstat").st_ino))
}

/// Waits for what the device does behind its answer.
#[track_caller]
fn eventually(what: &str, is: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !is() {
        assert!(started.elapsed() < DEADLINE, "not {what} within {DEADLINE:?}");
        std::thread::yield_now();
    }
}

/// The flags of a description, which whoever else has it depends on.
fn flags(file: impl AsFd) -> OFlags {
    fcntl_getfl(file).expect("flags")
}

/// Adds to an eventfd's counter, as its owner.
fn signal(file: impl AsFd, count: u64) {
    rustix::io::write(file, &count.to_ne_bytes()).expect("room in the counter");
}

/// Takes an eventfd's counter, as its owner.
fn take(file: impl AsFd) -> u64 {
    try_take(file).expect("a counter above 0")
}

/// Takes an eventfd's counter, without waiting for one whatever its flags.
fn try_take(file: impl AsFd) -> Option<u64> {
    let mut count = [0; 8];
    let read = preadv2(file, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT);
    read.ok().map(|_| u64::from_ne_bytes(count))
}
