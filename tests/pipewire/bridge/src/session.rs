//! One client's session: bytes and descriptors on their way from one side to the other. It waits in one place, and keeps
//! little for a side that does not take it.

use std::collections::{HashSet, VecDeque};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use crate::descriptors::{Eventfds, node_of, roles};
use crate::wire::{CLIENT_NODE, CORE, Field, MAX_FILES, Packet, Stream, event, method};
use crate::{Channel, Identifier, MAX_DATA, Message};

/// So many messages wait for the client before no more are taken from the host.
const MAX_WAITING: usize = 256;
/// So many messages of the host's are looked at before the client has its turn.
const MAX_AT_ONCE: usize = 64;

/// A message for the client, or the rest of one. Its descriptors go with its first byte.
struct Outgoing {
    data: Vec<u8>,
    sent: usize,
    files: Vec<OwnedFd>,
}

/// How a turn ended.
#[derive(PartialEq, Eq)]
enum Turn {
    GoOn,
    /// One of the two sides has gone.
    End,
}

/// What can be done without waiting.
struct Ready {
    client: bool,
    eventfds: Vec<usize>,
}

pub(crate) struct Session<'a, C> {
    client: UnixStream,
    channel: &'a mut C,
    from_client: Stream,
    from_host: Stream,
    /// Descriptors whose messages are not whole yet.
    identifiers: VecDeque<Identifier>,
    /// The client's objects that are client nodes.
    nodes: HashSet<u32>,
    eventfds: Eventfds,
    outgoing: VecDeque<Outgoing>,
}

impl<'a, C: Channel> Session<'a, C> {
    pub(crate) fn new(client: UnixStream, channel: &'a mut C) -> Self {
        Self {
            client,
            channel,
            from_client: Stream::default(),
            from_host: Stream::default(),
            identifiers: VecDeque::new(),
            nodes: HashSet::new(),
            eventfds: Eventfds::default(),
            outgoing: VecDeque::new(),
        }
    }

    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            // False: the channel has said that there is nothing more, and will be readable when there is.
            let mut more = true;
            for _ in 0..MAX_AT_ONCE {
                if self.is_full() {
                    break;
                }
                let Some(message) = self.channel.next()? else {
                    more = false;
                    break;
                };
                if self.take(message)? == Turn::End {
                    return Ok(());
                }
            }
            if self.flush()? == Turn::End {
                return Ok(());
            }
            let ready = self.wait(more && !self.is_full())?;
            for place in ready.eventfds {
                self.eventfds.wake_host(place, self.channel)?;
            }
            if ready.client && self.read_client()? == Turn::End {
                return Ok(());
            }
        }
    }

    /// The client must take something before the host is asked again.
    fn is_full(&self) -> bool {
        self.outgoing.len() >= MAX_WAITING
    }

    /// Waits until there is something to do; `more`: there is already, so only looks.
    fn wait(&self, more: bool) -> io::Result<Ready> {
        let mut of_client = PollFlags::IN;
        let mut of_channel = PollFlags::IN;
        if !self.outgoing.is_empty() {
            of_client |= PollFlags::OUT;
        }
        if self.is_full() {
            of_channel = PollFlags::empty();
        }
        let mut wanted = vec![
            PollFd::from_borrowed_fd(self.client.as_fd(), of_client),
            PollFd::from_borrowed_fd(self.channel.as_fd(), of_channel),
        ];
        wanted.extend(self.eventfds.to_poll().map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN)));
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut wanted, more.then_some(&at_once)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |wanted: &PollFd<'_>| wanted.revents().intersects(!PollFlags::OUT);
        let eventfds = wanted[2..].iter().enumerate().filter(|(_, wanted)| ready(wanted));
        Ok(Ready { client: ready(&wanted[0]), eventfds: eventfds.map(|(place, _)| place).collect() })
    }

    fn take(&mut self, message: Message) -> io::Result<Turn> {
        match message {
            Message::End => return Ok(Turn::End),
            Message::Read { id, count } => {
                self.channel.wakes()?;
                self.eventfds.wake_client(id, count)?;
            }
            Message::Receive { data, identifiers } => {
                self.identifiers.extend(identifiers);
                self.from_host.push(&data);
                while let Some(packet) = self.from_host.next() {
                    self.pass_on(packet)?;
                }
            }
        }
        Ok(Turn::GoOn)
    }

    /// Makes of the message's descriptors what the client can use.
    fn pass_on(&mut self, packet: Packet) -> io::Result<()> {
        let (object, count) = (packet.object(), packet.files());
        if count > self.identifiers.len().min(MAX_FILES) {
            let there = self.identifiers.len();
            return Err(packet.refused(&format!("it has {count} descriptors, and {there} have come")));
        }
        if let (CORE, event::REMOVE_ID, Some(Field::Int(id))) = (object, packet.opcode(), packet.fields().next()) {
            self.nodes.remove(&id);
            self.eventfds.forget(id, None, self.channel)?;
        }
        let on_node = self.nodes.contains(&object);
        if let (true, event::SET_ACTIVATION, Some(node)) = (on_node, packet.opcode(), node_of(&packet)) {
            // A peer's eventfd takes the place of the one before; without one the peer has gone.
            self.eventfds.forget(object, Some(node), self.channel)?;
        }
        let mut files = Vec::new();
        for (role, identifier) in roles(&packet, on_node)?.into_iter().zip(self.identifiers.drain(..count)) {
            files.push(self.eventfds.pass(&packet, role, identifier, self.channel)?);
        }
        self.outgoing.push_back(Outgoing { data: packet.bytes, sent: 0, files });
        Ok(())
    }

    /// Sends the client what it takes now.
    fn flush(&mut self) -> io::Result<Turn> {
        while let Some(message) = self.outgoing.front_mut() {
            match send(&self.client, message) {
                Ok(sent) => {
                    message.files.clear();
                    message.sent += sent;
                    if message.sent == message.data.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return gone(errno),
            }
        }
        Ok(Turn::GoOn)
    }

    /// Sends the host what the client has said.
    fn read_client(&mut self) -> io::Result<Turn> {
        let mut data = vec![0; 1 << 16];
        match recv(&self.client, data.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(Turn::End),
            Ok((read, _)) => self.from_client.push(&data[..read]),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Turn::GoOn),
            Err(errno) => return gone(errno),
        }
        let mut to_host = Vec::new();
        while let Some(packet) = self.from_client.next() {
            if packet.files() > 0 {
                return Err(packet.refused("the client's own descriptors cannot be passed to the host"));
            }
            if (packet.object(), packet.opcode()) == (CORE, method::CREATE_OBJECT) {
                self.learn(&packet);
            }
            to_host.extend(packet.bytes);
        }
        for piece in to_host.chunks(MAX_DATA) {
            self.channel.send(piece)?;
        }
        Ok(Turn::GoOn)
    }

    /// The client names the object that is made: factory, type, version, properties, new id.
    fn learn(&mut self, packet: &Packet) {
        let fields: Vec<Field<'_>> = packet.fields().collect();
        if let [_, Field::Text(kind), .., Field::Int(id)] = fields[..] {
            if kind == CLIENT_NODE {
                self.nodes.insert(id);
            } else {
                self.nodes.remove(&id);
            }
        }
    }
}

/// Sends without waiting.
fn send(client: &UnixStream, message: &Outgoing) -> Result<usize, Errno> {
    let files: Vec<_> = message.files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(Errno::TOOMANYREFS);
    }
    let rest = IoSlice::new(&message.data[message.sent..]);
    sendmsg(client, &[rest], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// A client that has left is no error.
fn gone(errno: Errno) -> io::Result<Turn> {
    match errno {
        Errno::PIPE | Errno::CONNRESET => Ok(Turn::End),
        errno => Err(errno.into()),
    }
}
