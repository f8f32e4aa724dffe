//! For the tests: a channel that says what it is told to, the client's end of the other side, and PipeWire's messages.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use crate::wire::{CLIENT_NODE, HEADER};
use crate::{Channel, Identifier, Message, serve};

const DEADLINE: Duration = Duration::from_secs(20);

/// What the bridge asked of the channel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Send(Vec<u8>),
    Buffer(u32, u32),
    Watch(u32),
    Write(u32, u64),
    Wakes,
    Forget(u32),
}

struct Script {
    wake: Arc<OwnedFd>,
    messages: Receiver<Message>,
    taken: Arc<AtomicUsize>,
    calls: Sender<Call>,
}

impl Script {
    fn call(&self, call: Call) -> io::Result<()> {
        self.calls.send(call).map_err(io::Error::other)
    }
}

impl Channel for Script {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn next(&mut self) -> io::Result<Option<Message>> {
        // Emptied first: what is put in afterwards wakes up again.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        let message = self.messages.try_recv().ok();
        self.taken.fetch_add(usize::from(message.is_some()), Ordering::SeqCst);
        Ok(message)
    }

    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        self.call(Call::Send(data.to_vec()))
    }

    fn buffer(&mut self, id: u32, size: u32) -> io::Result<OwnedFd> {
        self.call(Call::Buffer(id, size))?;
        let file = memfd_create("item", MemfdFlags::CLOEXEC)?;
        rustix::io::pwrite(&file, &id.to_le_bytes(), 0)?;
        Ok(file)
    }

    fn watch(&mut self, id: u32) -> io::Result<()> {
        self.call(Call::Watch(id))
    }

    fn write(&mut self, id: u32, count: u64) -> io::Result<()> {
        self.call(Call::Write(id, count))
    }

    fn wakes(&mut self) -> io::Result<()> {
        self.call(Call::Wakes)
    }

    fn forget(&mut self, id: u32) -> io::Result<()> {
        self.call(Call::Forget(id))
    }
}

/// A bridge at work, with both of its sides in the test's hands.
pub(crate) struct Stage {
    wake: Arc<OwnedFd>,
    messages: Sender<Message>,
    taken: Arc<AtomicUsize>,
    calls: Receiver<Call>,
    pub(crate) client: UnixStream,
    served: JoinHandle<io::Result<()>>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let (client, theirs) = UnixStream::pair().expect("a pair of sockets");
        client.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        client.set_write_timeout(Some(DEADLINE)).expect("a deadline");
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"));
        let (messages, from_test) = channel();
        let (to_test, calls) = channel();
        let taken = Arc::default();
        let mut script =
            Script { wake: Arc::clone(&wake), messages: from_test, taken: Arc::clone(&taken), calls: to_test };
        let served = std::thread::spawn(move || serve(theirs, &mut script));
        Self { wake, messages, taken, calls, client, served }
    }

    /// One whose client has made client nodes under these ids.
    pub(crate) fn with_nodes(ids: &[u32]) -> Self {
        let mut stage = Self::new();
        for id in ids {
            let create = create_object(CLIENT_NODE, *id);
            stage.client.write_all(&create).expect("sent");
            assert_eq!(stage.call(), Call::Send(create));
        }
        stage
    }

    /// The host says something.
    pub(crate) fn feed(&self, message: Message) {
        // A bridge that has ended takes nothing; the test sees that elsewhere.
        let _ = self.messages.send(message);
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).expect("woken");
    }

    pub(crate) fn receive(&self, data: &[u8], identifiers: &[Identifier]) {
        self.feed(Message::Receive { data: data.to_vec(), identifiers: identifiers.to_vec() });
    }

    /// The next thing that was asked of the channel.
    pub(crate) fn call(&self) -> Call {
        self.calls.recv_timeout(DEADLINE).expect("a call before the deadline")
    }

    /// How many messages of the host's were taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// The next message as the client sees it, with its descriptors.
    pub(crate) fn message(&self) -> (Vec<u8>, Vec<OwnedFd>) {
        let (mut bytes, files) = self.bytes(HEADER);
        assert_eq!(bytes.len(), HEADER, "a message ends early");
        let size = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], 0]) as usize;
        while bytes.len() < HEADER + size {
            let (more, late) = self.bytes(HEADER + size - bytes.len());
            assert!(!more.is_empty() && late.is_empty(), "cut off, or descriptors in the middle of a message");
            bytes.extend(more);
        }
        (bytes, files)
    }

    fn bytes(&self, len: usize) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut data = vec![0; len];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut data)];
        let read = rustix::net::recvmsg(&self.client, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC);
        let read = read.expect("bytes before the deadline").bytes;
        data.truncate(read);
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        (data, files)
    }

    /// Waits for the bridge to end and says how; the client must have seen it, too.
    pub(crate) fn ended(self) -> io::Result<()> {
        let result = self.served.join().expect("no panic");
        let sent = rustix::net::send(&self.client, b"x", SendFlags::NOSIGNAL);
        assert!(sent.is_err(), "the client still has a daemon to talk to");
        result
    }

    /// Sees the bridge end because its client leaves.
    pub(crate) fn client_leaves(self) -> io::Result<()> {
        drop(self.client);
        self.served.join().expect("no panic")
    }
}

/// Waits until an eventfd can be read and reads it.
pub(crate) fn wait(file: &OwnedFd) -> u64 {
    let timeout = Timespec::try_from(DEADLINE).expect("a short time");
    let ready = poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&timeout)).expect("polled");
    assert_eq!(ready, 1, "nobody wrote to the eventfd");
    let mut count = [0; 8];
    rustix::io::read(file, &mut count).expect("read");
    u64::from_ne_bytes(count)
}

pub(crate) fn wake(file: &OwnedFd, count: u64) {
    rustix::io::write(file, &count.to_ne_bytes()).expect("written");
}

/// Which item a descriptor was made for.
pub(crate) fn item_of(file: &OwnedFd) -> u32 {
    let mut id = [0; 4];
    rustix::io::pread(file, &mut id, 0).expect("the memory of an item");
    u32::from_le_bytes(id)
}

pub(crate) fn memory(id: u32, size: u32) -> Identifier {
    Identifier { id, kind: 1, size }
}

pub(crate) fn event(id: u32) -> Identifier {
    Identifier { id, kind: 6, size: 0 }
}

/// A datum: size, type, bytes up to a multiple of 8.
pub(crate) fn datum(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [(body.len() as u32).to_le_bytes(), kind.to_le_bytes()].concat();
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

pub(crate) fn int(value: u32) -> Vec<u8> {
    datum(4, &value.to_le_bytes())
}

pub(crate) fn file(place: i64) -> Vec<u8> {
    datum(18, &place.to_le_bytes())
}

pub(crate) fn text(value: &[u8]) -> Vec<u8> {
    datum(8, &[value, b"\0"].concat())
}

/// A message with a structure of these fields.
pub(crate) fn packet(object: u32, opcode: u8, files: u32, fields: &[Vec<u8>]) -> Vec<u8> {
    raw(object, opcode, files, &datum(14, &fields.concat()))
}

pub(crate) fn raw(object: u32, opcode: u8, files: u32, payload: &[u8]) -> Vec<u8> {
    let words = [object, u32::from(opcode) << 24 | payload.len() as u32, 7, files];
    [&words.map(u32::to_le_bytes).concat(), payload].concat()
}

pub(crate) fn create_object(kind: &[u8], id: u32) -> Vec<u8> {
    let properties = datum(14, &[int(1), text(b"node.name"), text(b"guest")].concat());
    packet(0, 6, 0, &[text(b"client-node"), text(kind), int(5), properties, int(id)])
}

/// A memory that the daemon adds; the footer stands for those of newer daemons.
pub(crate) fn add_mem(id: u32) -> Vec<u8> {
    let fields = [int(id), datum(3, &2u32.to_le_bytes()), file(0), int(3)].concat();
    raw(0, 6, 1, &[datum(14, &fields), datum(14, &int(99))].concat())
}

pub(crate) fn set_activation(object: u32, node: u32, place: i64, files: u32) -> Vec<u8> {
    packet(object, 10, files, &[int(node), file(place), int(3), int(0), int(2312)])
}
