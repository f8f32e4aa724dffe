//! Both ends of a cross-domain channel: the host service behind its socket, and the guest's context with its rings.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use vm_memory::GuestAddress;
use zerocopy::FromBytes;

use super::{Answer, Guest, Request, Token};
use crate::protocol::cross_domain::{ChannelType, ImageRequirements, MAX_IDENTIFIERS, ReadWrite, SendReceive, command};
use crate::protocol::wire::CAPSET_CROSS_DOMAIN;

/// Length of each ring.
const RING: usize = 4096;

/// A service that listens on a socket of its own in the temporary folder, which goes with it.
pub struct HostService {
    listener: UnixListener,
    path: PathBuf,
}

impl HostService {
    /// Listens.
    ///
    /// # Panics
    /// Where it cannot; so does everything below.
    #[must_use]
    pub fn listen() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!("virtio-gpu-uring-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            match UnixListener::bind(&path) {
                Ok(listener) => return Self { listener, path },
                // Left by a process of the same number that was ended.
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => panic!("no socket in the temporary folder: {error}"),
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection.
    #[must_use]
    pub fn accept(&self) -> HostPeer {
        let timeout = Timespec::try_from(super::DEADLINE).expect("a short time");
        let mut wanted = [PollFd::new(&self.listener, PollFlags::IN)];
        let ready = poll(&mut wanted, Some(&timeout)).expect("a socket that can be watched");
        assert_eq!(ready, 1, "nobody connected within {:?}", super::DEADLINE);
        let (stream, _) = self.listener.accept().expect("a connection");
        stream.set_read_timeout(Some(super::DEADLINE)).expect("a deadline");
        HostPeer { stream }
    }
}

impl Drop for HostService {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The service's end of a connection.
pub struct HostPeer {
    stream: UnixStream,
}

impl HostPeer {
    /// Sends data and descriptors in one message.
    pub fn send(&self, data: &[u8], files: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)), "too many descriptors");
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(data)], &mut control, SendFlags::NOSIGNAL).expect("sent");
        assert_eq!(sent, data.len());
    }

    /// Receives up to `len` bytes with their descriptors; no bytes at the end of the file.
    #[must_use]
    pub fn receive(&self, len: usize) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut data = vec![0; len];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_IDENTIFIERS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .expect("a message before the deadline");
        data.truncate(message.bytes);
        let mut files = Vec::new();
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                files.extend(rights);
            }
        }
        (data, files)
    }

    /// The connection itself.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// What stands in a channel ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The data; none at the end of the file.
    pub data: Vec<u8>,
    /// Id, type and size of each descriptor.
    pub identifiers: Vec<(u32, u32, u32)>,
}

/// An eventfd's counter, or what came through a pipe, as it stands in a channel ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The eventfd or pipe.
    pub id: u32,
    /// Eight bytes of an eventfd.
    pub data: Vec<u8>,
    /// Nothing comes after this.
    pub hang_up: bool,
}

/// Whatever stands in a channel ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A message of the service.
    Message(Message),
    /// What was read for the guest.
    Read(Read),
}

/// A guest's cross-domain context with its two rings.
#[derive(Debug)]
pub struct GuestChannel {
    context: u32,
    /// Resource ids of the query ring and of the channel ring.
    pub rings: [u32; 2],
    query_ring: GuestAddress,
    channel_ring: GuestAddress,
    next_fence: u64,
}

impl GuestChannel {
    /// Creates a context and its rings, as resources `first_resource` and the one after it, and attaches them.
    ///
    /// # Panics
    /// Where the device refuses; so does everything below.
    #[track_caller]
    pub fn create(guest: &mut Guest, context: u32, first_resource: u32) -> Self {
        guest.command(&Request::ctx_create(context, CAPSET_CROSS_DOMAIN)).ok();
        let rings = [first_resource, first_resource + 1];
        let [query_ring, channel_ring] = rings.map(|ring| {
            let range = guest.page_range(RING);
            guest.command(&Request::guest_blob(ring, RING as u64, &[range])).ok();
            guest.command(&Request::ctx_attach(context, ring)).ok();
            GuestAddress(range.0)
        });
        Self { context, rings, query_ring, channel_ring, next_fence: 1 }
    }

    /// Connects it to a service, in libkrun's dialect.
    #[track_caller]
    pub fn init(&self, guest: &mut Guest, channel_type: ChannelType) {
        let init = Request::stream_init(self.rings[0], self.rings[1], channel_type.0, Some(1));
        guest.command(&Request::submit(self.context, &init)).ok();
    }

    /// Creates a context and connects it.
    #[track_caller]
    pub fn open(guest: &mut Guest, context: u32, first_resource: u32, channel_type: ChannelType) -> Self {
        let channel = Self::create(guest, context, first_resource);
        channel.init(guest, channel_type);
        channel
    }

    /// Asks for a message; the answer comes with it.
    pub fn poll(&mut self, guest: &mut Guest) -> Token {
        let fence = self.next_fence;
        self.next_fence += 1;
        guest.submit(&Request::submit(self.context, &Request::stream_poll()).fenced(fence).on_ring(1))
    }

    /// Waits for a message that was asked for, and reads it from the ring.
    #[track_caller]
    pub fn wait(&mut self, guest: &mut Guest, poll: Token) -> Message {
        guest.wait(poll).ok();
        self.message(guest)
    }

    /// Asks for a message and waits for it.
    #[track_caller]
    pub fn receive(&mut self, guest: &mut Guest) -> Message {
        let poll = self.poll(guest);
        self.wait(guest, poll)
    }

    /// Waits for whatever comes first, and reads it from the ring.
    #[track_caller]
    pub fn wait_any(&mut self, guest: &mut Guest, poll: Token) -> Incoming {
        guest.wait(poll).ok();
        self.incoming(guest)
    }

    /// Asks for something to be read, and waits for it.
    ///
    /// # Panics
    /// Where it is a message of the service.
    #[track_caller]
    pub fn receive_read(&mut self, guest: &mut Guest) -> Read {
        let poll = self.poll(guest);
        match self.wait_any(guest, poll) {
            Incoming::Read(read) => read,
            Incoming::Message(message) => panic!("a message instead of something read: {message:?}"),
        }
    }

    /// Submits a stream without a fence.
    #[track_caller]
    pub fn submit(&self, guest: &mut Guest, stream: &[u8]) -> Answer {
        guest.command(&Request::submit(self.context, stream))
    }

    /// Asks what an image would be like.
    #[track_caller]
    pub fn image(&self, guest: &mut Guest, width: u32, height: u32, fourcc: [u8; 4]) -> ImageRequirements {
        self.submit(guest, &Request::stream_image(width, height, fourcc, 0)).ok();
        let bytes = guest.ram().read(self.query_ring, size_of::<ImageRequirements>());
        ImageRequirements::read_from_bytes(&bytes).expect("a whole answer")
    }

    /// Sends a message to the service.
    #[track_caller]
    pub fn send(&self, guest: &mut Guest, data: &[u8], blobs: &[u32]) {
        guest.command(&Request::submit(self.context, &Request::stream_send(data, blobs))).ok();
    }

    /// What stands in the channel ring now.
    ///
    /// # Panics
    /// Where it is neither a message nor something read.
    #[must_use]
    pub fn incoming(&self, guest: &Guest) -> Incoming {
        let bytes = guest.ram().read(self.channel_ring, RING);
        match bytes[0] {
            command::RECEIVE => Incoming::Message(self.message(guest)),
            command::READ => {
                let (head, data) = ReadWrite::read_from_prefix(&bytes).expect("a whole ring");
                let data = data[..head.opaque_data_size.get() as usize].to_vec();
                Incoming::Read(Read { id: head.identifier.get(), data, hang_up: head.hang_up.get() != 0 })
            }
            other => panic!("command {other} in the channel ring"),
        }
    }

    /// The message of the service that stands in the channel ring now.
    ///
    /// # Panics
    /// Where it is something else.
    #[must_use]
    pub fn message(&self, guest: &Guest) -> Message {
        let bytes = guest.ram().read(self.channel_ring, RING);
        let (head, data) = SendReceive::read_from_prefix(&bytes).expect("a whole ring");
        let count = head.num_identifiers.get() as usize;
        assert_ne!(head.header.cmd, command::READ, "something that was read, and no message");
        let identifier = |slot: usize| {
            let field = |list: &[zerocopy::little_endian::U32]| list[slot].get();
            (field(&head.identifiers), field(&head.identifier_types), field(&head.identifier_sizes))
        };
        Message {
            data: data[..head.opaque_data_size.get() as usize].to_vec(),
            identifiers: (0..count).map(identifier).collect(),
        }
    }

    /// The context's id.
    #[must_use]
    pub fn context(&self) -> u32 {
        self.context
    }
}
