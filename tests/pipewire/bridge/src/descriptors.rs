//! What a message's descriptors are, and the eventfds of this side that stand for the host's.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::wire::{CORE, Field, Packet, event};
use crate::{Channel, Identifier};

/// Types of identifiers, as libkrun numbers them.
const MEMORY: u32 = 1;
const EVENTFD: u32 = 6;

/// What the client does with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It maps it.
    Memory,
    /// It waits for it.
    Wait,
    /// It writes to it, to wake up `node`.
    Wake { node: Option<u32> },
    /// Nobody here knows.
    Unknown,
}

/// The role of each descriptor of a message from the daemon. `on_node`: its object is a client node.
///
/// The places where fields stand are not looked at, only their order: that is the same in all versions.
pub(crate) fn roles(packet: &Packet, on_node: bool) -> io::Result<Vec<Role>> {
    let mut roles = vec![Role::Unknown; packet.files()];
    let known: &[Role] = match (packet.object(), packet.opcode()) {
        (CORE, event::ADD_MEM) => &[Role::Memory],
        (_, event::TRANSPORT) if on_node => &[Role::Wait, Role::Wake { node: None }],
        (_, event::SET_ACTIVATION) if on_node => &[Role::Wake { node: node_of(packet) }],
        _ => &[],
    };
    for (place, known) in files_of(packet).zip(known) {
        let role = usize::try_from(place).ok().and_then(|place| roles.get_mut(place));
        match role {
            Some(role) if *role == Role::Unknown => *role = *known,
            Some(_) => return Err(packet.refused("one descriptor is to be waited for and written to")),
            None => {}
        }
    }
    Ok(roles)
}

/// The node that a SET_ACTIVATION is about.
pub(crate) fn node_of(packet: &Packet) -> Option<u32> {
    packet.fields().find_map(|field| if let Field::Int(node) = field { Some(node) } else { None })
}

fn files_of(packet: &Packet) -> impl Iterator<Item = u64> {
    packet.fields().filter_map(|field| if let Field::File(place) = field { Some(place) } else { None })
}

/// An eventfd that the client writes to.
struct Wake {
    /// The client node that it came for.
    object: u32,
    /// The node that it wakes up.
    node: Option<u32>,
    id: u32,
    file: OwnedFd,
}

/// The eventfds of this side. The client's end of each is a duplicate; what is one item of the host's is one of them.
#[derive(Default)]
pub(crate) struct Eventfds {
    waits: HashMap<u32, (u32, OwnedFd)>,
    wakes: Vec<Wake>,
}

impl Eventfds {
    /// What the client is handed for a descriptor of `packet`.
    pub(crate) fn pass(
        &mut self,
        packet: &Packet,
        role: Role,
        identifier: Identifier,
        channel: &mut impl Channel,
    ) -> io::Result<OwnedFd> {
        let Identifier { id, kind, size } = identifier;
        match (role, kind) {
            (Role::Memory | Role::Unknown, MEMORY) => channel.buffer(id, size),
            (Role::Wait, EVENTFD) => {
                let (ours, theirs) = pair()?;
                channel.watch(id)?;
                self.waits.insert(id, (packet.object(), ours));
                Ok(theirs)
            }
            (Role::Wake { node }, EVENTFD) => {
                let (file, theirs) = pair()?;
                self.wakes.push(Wake { object: packet.object(), node, id, file });
                Ok(theirs)
            }
            _ => Err(packet.refused(&format!("no way to pass a descriptor of type {kind} on"))),
        }
    }

    /// The host's eventfd was written to: so is the client's.
    pub(crate) fn wake_client(&self, id: u32, count: u64) -> io::Result<()> {
        let Some((_, file)) = self.waits.get(&id) else { return Ok(()) };
        match rustix::io::write(file, &count.to_ne_bytes()) {
            // A full counter wakes up all the same.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Those that the client may have written to.
    pub(crate) fn to_poll(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.wakes.iter().map(|wake| wake.file.as_fd())
    }

    /// Writes to the host's what the client has written to the `place`th of [`to_poll`](Self::to_poll).
    pub(crate) fn wake_host(&self, place: usize, channel: &mut impl Channel) -> io::Result<()> {
        let wake = &self.wakes[place];
        let mut count = [0; 8];
        match rustix::io::read(&wake.file, &mut count) {
            Ok(_) => channel.write(wake.id, u64::from_ne_bytes(count)),
            Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Drops the eventfds that wake up `node` on behalf of a client node; all of that client node's without one.
    pub(crate) fn forget(&mut self, object: u32, node: Option<u32>, channel: &mut impl Channel) -> io::Result<()> {
        for wake in self.wakes.extract_if(.., |wake| wake.object == object && (node.is_none() || wake.node == node)) {
            channel.forget(wake.id)?;
        }
        if node.is_none() {
            self.waits.retain(|_, (owner, _)| *owner != object);
        }
        Ok(())
    }
}

/// An eventfd twice: for this side and for the client.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let ours = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let theirs = ours.try_clone()?;
    Ok((ours, theirs))
}
