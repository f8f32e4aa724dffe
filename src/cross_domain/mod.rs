//! Contexts that talk to services of the host: a Wayland compositor, a PipeWire daemon, a camera service.
//! A context has at most one channel, which is a stream that the device task polls: no thread, no blocking socket.

mod backlog;
mod channel;
mod hosts;
mod image;
mod items;
mod pipe;
mod readable;
mod received;

use std::io;
use std::rc::Rc;

pub(crate) use backlog::Bounds;
pub(crate) use channel::{Channel, Event, SendError};
use channel::{ChannelHandle, Sent};
pub(crate) use hosts::HostSockets;
pub(crate) use image::{ImageError, Layout};
pub(crate) use items::{Item, Items};
pub(crate) use pipe::WritePipe;
pub(crate) use readable::{Read, Readable};
pub(crate) use received::{Odd, Received};

use crate::buffer::{CLOSING, Closer, HeldBuffer};
use crate::limits::{Ledger, LimitReached, Quota};
use crate::protocol::cross_domain::{Attachment, Capabilities, ChannelType, Dialect, ImageRequirements, MIN_RING_LEN};
use crate::resource::ResourceKey;
use crate::seams::LocalFuture;
use pipe::WriteError;

/// As much of a ring as is used, however long it is.
const MAX_RING: usize = 64 << 10;

/// Why a stream was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    #[error("the context has a channel already")]
    Initialised,
    #[error("too many descriptors of host services wait to be closed")]
    Closing,
    #[error("the context has no channel")]
    NoChannel,
    #[error(
        "resource {id} is not a ring: a guest blob of at least {MIN_RING_LEN} bytes that is attached to the context"
    )]
    NotARing { id: u32 },
    #[error("the query ring is gone or no longer guest memory")]
    RingGone,
    #[error("no host socket is configured for channel type {0:?}")]
    NotOffered(ChannelType),
    #[error("the host service does not take the connection: {0}")]
    Connect(io::Error),
    #[error("the host has no room for it: {0}")]
    Host(#[from] io::Error),
    #[error("resource {id} is not a host blob that is attached to the context")]
    NotSendable { id: u32 },
    #[error("a new pipe would have the id {next:#x}, not {id:#x}")]
    PipeId { id: u32, next: u32 },
    #[error("the context has too many items")]
    ItemLimit,
    #[error("item {id:#x} does not exist, or is of another kind")]
    NoSuchItem { id: u32 },
    #[error("eventfd {id:#x} is read already")]
    Watched { id: u32 },
    #[error("{len} bytes are no count for an eventfd, which takes 8")]
    Count { len: usize },
    #[error("READ_EVENTFD_DESTROY is not of the guest's dialect")]
    Dialect,
    #[error("item {id:#x} has no room: {backlog} bytes wait for its reader")]
    Full { id: u32, backlog: usize },
    #[error("item {id:#x} cannot be written: {source}")]
    Write { id: u32, source: io::Error },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Limit(#[from] LimitReached),
    #[error(transparent)]
    Send(#[from] SendError),
}

/// A cross-domain context.
pub(crate) struct Context {
    pub(crate) items: Items,
    /// What goes on behind the commands that began it, for the device task to poll.
    pub(crate) behind: Vec<LocalFuture<()>>,
    bounds: Bounds,
    closer: Rc<Closer>,
    /// Of the last INIT.
    dialect: Dialect,
    /// Where answers to queries go.
    query_ring: Option<ResourceKey>,
    link: Link,
}

/// Where a context stands between its creation and the end of its channel.
enum Link {
    /// No INIT yet.
    Fresh,
    /// INIT without a channel.
    QueriesOnly,
    /// The host service is, or was, at the other end; messages go to the ring.
    Open { handle: ChannelHandle, ring: ResourceKey, channel_type: ChannelType },
    /// The host service has gone.
    Ended { ring: ResourceKey },
}

/// What a context is told by INIT.
pub(crate) struct Rings {
    pub(crate) query: u32,
    pub(crate) channel: u32,
    pub(crate) channel_type: ChannelType,
    pub(crate) dialect: Dialect,
}

impl Context {
    pub(crate) fn new(items: Items, bounds: Bounds, closer: Rc<Closer>) -> Self {
        Self {
            items,
            behind: Vec::new(),
            bounds,
            closer,
            dialect: Dialect::Rutabaga,
            query_ring: None,
            link: Link::Fresh,
        }
    }

    /// What may be kept for the readers of its pipes.
    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds.clone()
    }

    /// Connects the context to its host service.
    ///
    /// `ring_len` finds the length of a ring that is attached to this context. The stream that is returned is to be
    /// polled under `tag` until it ends.
    ///
    /// # Errors
    /// A second INIT, rings that are none, a channel that is not offered, a service that does not answer at once.
    pub(crate) fn init<T: Copy + Unpin>(
        &mut self,
        rings: &Rings,
        ring: impl Fn(u32) -> Option<(ResourceKey, u64)>,
        hosts: &HostSockets,
        tag: T,
    ) -> Result<Option<Channel<T>>, ContextError> {
        if !matches!(self.link, Link::Fresh) {
            return Err(ContextError::Initialised);
        }
        if self.closer.pending() > CLOSING {
            return Err(ContextError::Closing);
        }
        let (query, _) = ring(rings.query).ok_or(ContextError::NotARing { id: rings.query })?;
        let channel = if rings.channel_type == ChannelType::NONE {
            self.link = Link::QueriesOnly;
            None
        } else {
            let (key, len) = ring(rings.channel).ok_or(ContextError::NotARing { id: rings.channel })?;
            let socket = hosts.connect(rings.channel_type)?;
            let used = usize::try_from(len).unwrap_or(MAX_RING).min(MAX_RING);
            let (handle, channel) = channel::open(socket, used, self.bounds.again(), Rc::clone(&self.closer), tag)?;
            self.link = Link::Open { handle, ring: key, channel_type: rings.channel_type };
            Some(channel)
        };
        (self.query_ring, self.dialect) = (Some(query), rings.dialect);
        Ok(channel)
    }

    /// Hands a message to the host service, or to the channel's bounded backlog. Pipes that go with it are made here.
    ///
    /// # Errors
    /// No channel; a pipe that would have another id than the guest says; limits. Or a backlog that is full: the channel is
    /// closed then, because a stream with a gap is worse.
    pub(crate) fn send(
        &mut self,
        data: &[u8],
        attachments: &[Attachment],
        buffer: impl Fn(u32) -> Option<Rc<HeldBuffer>>,
        ledger: &Rc<Ledger>,
    ) -> Result<(), ContextError> {
        let Link::Open { handle, .. } = &self.link else { return Err(ContextError::NoChannel) };
        let mut pipes = Vec::new();
        let mut sent = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            sent.push(match *attachment {
                Attachment::Blob(id) => Sent::Buffer(buffer(id).ok_or(ContextError::NotSendable { id })?),
                Attachment::ReadPipe(id) => {
                    let (pipe, end) = new_pipe(&self.items, id, pipes.len(), ledger)?;
                    pipes.push((id, pipe));
                    end
                }
            });
        }
        let watched = pipes.iter().try_for_each(|(id, pipe)| handle.watch(*id, pipe));
        let outcome = watched.map_err(ContextError::from).and_then(|()| Ok(handle.send(data, sent)?));
        for (_, pipe) in pipes {
            if outcome.is_ok() {
                self.items.insert_pipe(pipe);
            } else {
                // Nobody has written to it.
                drop(pipe.close());
            }
        }
        outcome
    }

    /// Writes to an eventfd or a pipe. One that hangs up loses its item, whether the write succeeds or not.
    ///
    /// # Errors
    /// No such item, or data that it does not take now, nor keep.
    pub(crate) fn write(&mut self, id: u32, data: &[u8], hang_up: bool) -> Result<(), ContextError> {
        let outcome = self.write_item(id, data, hang_up);
        if hang_up {
            self.behind.extend(self.items.let_go(id));
        }
        outcome
    }

    fn write_item(&mut self, id: u32, data: &[u8], hang_up: bool) -> Result<(), ContextError> {
        match self.items.get(u64::from(id)) {
            Some(Item::Event(_) | Item::ReadPipe(_)) if hang_up && data.is_empty() => Ok(()),
            Some(Item::Event(event)) => {
                let count = data.try_into().map_err(|_| ContextError::Count { len: data.len() })?;
                let waits = event.add(u64::from_le_bytes(count));
                self.behind.extend(waits.map_err(|source| ContextError::Write { id, source })?);
                Ok(())
            }
            Some(Item::WritePipe(pipe)) => match pipe.write(data) {
                Ok(more) => {
                    if let (true, Link::Open { handle, .. }) = (more, &self.link) {
                        handle.flush(pipe);
                    }
                    Ok(())
                }
                Err(WriteError::Full(full)) => Err(ContextError::Full { id, backlog: full.backlog }),
                Err(WriteError::Io(source)) => Err(ContextError::Write { id, source }),
            },
            _ => Err(ContextError::NoSuchItem { id }),
        }
    }

    /// Reads an eventfd for the guest from now on.
    ///
    /// # Errors
    /// No such eventfd, one that is read already, or no channel to tell the guest by.
    pub(crate) fn watch(&mut self, id: u32) -> Result<(), ContextError> {
        let event = self.event(id)?;
        let Link::Open { handle, .. } = &self.link else { return Err(ContextError::NoChannel) };
        handle.watch(id, event).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => ContextError::Watched { id },
            _ => ContextError::Host(error),
        })
    }

    /// Closes an eventfd.
    ///
    /// # Errors
    /// No such eventfd, or a guest whose dialect has no such command.
    pub(crate) fn unwatch(&mut self, id: u32) -> Result<(), ContextError> {
        if self.dialect != Dialect::Libkrun {
            return Err(ContextError::Dialect);
        }
        self.event(id)?;
        self.behind.extend(self.items.let_go(id));
        Ok(())
    }

    fn event(&self, id: u32) -> Result<&Rc<Readable>, ContextError> {
        match self.items.get(u64::from(id)) {
            Some(Item::Event(event)) => Ok(event),
            _ => Err(ContextError::NoSuchItem { id }),
        }
    }

    /// What an image would be like; blobs can be made after it from now on.
    ///
    /// # Errors
    /// No INIT yet.
    pub(crate) fn image(&mut self, layout: Layout) -> Result<ImageRequirements, ContextError> {
        if self.query_ring.is_none() {
            return Err(ContextError::NoChannel);
        }
        Ok(layout.requirements(self.items.image_id(layout)))
    }

    /// What an eventfd is announced as.
    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The resource that answers to queries are written to.
    pub(crate) fn query_ring(&self) -> Option<ResourceKey> {
        self.query_ring
    }

    /// Whether its channel, open or not yet heard to have ended, is of this type.
    pub(crate) fn is_of(&self, wanted: ChannelType) -> bool {
        matches!(self.link, Link::Open { channel_type, .. } if channel_type == wanted)
    }

    /// Closes the host socket at once, and what came and went through it; false where that was done already. The guest hears
    /// of it when its channel is polled.
    pub(crate) fn hang_up(&mut self) -> bool {
        let Link::Open { handle, .. } = &self.link else { return false };
        let open = handle.hang_up();
        self.behind.extend(self.items.close_ends());
        open
    }

    /// Whether a host service is at the other end.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.link, Link::Open { .. })
    }

    /// Grants the host service one message; false where none will ever come, so that the fence is done already.
    pub(crate) fn credit(&self) -> bool {
        match &self.link {
            Link::Open { handle, .. } => {
                handle.credit();
                true
            }
            Link::Fresh | Link::QueriesOnly | Link::Ended { .. } => false,
        }
    }

    /// The channel ends: its socket, and the eventfds and pipes that came and went through it, close at once.
    pub(crate) fn end(&mut self) {
        if let Link::Open { ring, .. } = self.link {
            self.link = Link::Ended { ring };
            self.behind.extend(self.items.close_ends());
        }
    }

    /// The resource that messages of the channel are written to.
    pub(crate) fn ring(&self) -> Option<ResourceKey> {
        match self.link {
            Link::Open { ring, .. } | Link::Ended { ring } => Some(ring),
            Link::Fresh | Link::QueriesOnly => None,
        }
    }
}

/// A pipe whose end for writing goes to the service: the one to be read, and the other. `before` more of the same message
/// come first.
fn new_pipe(items: &Items, id: u32, before: usize, ledger: &Rc<Ledger>) -> Result<(Rc<Readable>, Sent), ContextError> {
    let next = items.pipe_id(before as u32).filter(|_| items.has_room(before + 1)).ok_or(ContextError::ItemLimit)?;
    if id != next {
        return Err(ContextError::PipeId { id, next });
    }
    let [reads, writes] = [ledger.charge(Quota::Fds, 1)?, ledger.charge(Quota::Fds, 1)?];
    let (reader, writer) = pipe::new()?;
    Ok((Readable::pipe(reader, reads), Sent::Pipe { file: writer, _fd: writes }))
}

/// The capability set's data (id 5, version 1).
pub(crate) fn capabilities(hosts: &HostSockets) -> Capabilities {
    Capabilities {
        version: 1.into(),
        supported_channels: hosts.mask().into(),
        supports_dmabuf: 1.into(),
        supports_external_gpu_memory: 0.into(),
    }
}
