//! Contexts that talk to services of the host: a Wayland compositor, a PipeWire daemon, a camera service.
//! A context has at most one channel, which is a stream that the device task polls: no thread, no blocking socket.

mod channel;
mod hosts;
mod items;

use std::rc::Rc;

pub(crate) use channel::{Bounds, Channel, ChannelHandle, Event, SendError};
pub(crate) use hosts::HostSockets;
pub(crate) use items::Items;

use crate::buffer::HeldBuffer;
use crate::protocol::cross_domain::{Capabilities, ChannelType, MIN_RING_LEN, SendReceive};
use crate::resource::ResourceKey;

/// Longest message that is read from a service at once, whatever the ring's size.
const MAX_MESSAGE: usize = 64 << 10;

/// Why a stream was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    #[error("the context has a channel already")]
    Initialised,
    #[error("the context has no channel")]
    NoChannel,
    #[error(
        "resource {id} is not a ring: a guest blob of at least {MIN_RING_LEN} bytes that is attached to the context"
    )]
    NotARing { id: u32 },
    #[error("no host socket is configured for channel type {0:?}")]
    NotOffered(ChannelType),
    #[error("the host service does not take the connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("resource {id} is not a host blob that is attached to the context")]
    NotSendable { id: u32 },
    #[error(transparent)]
    Send(#[from] SendError),
}

/// A cross-domain context.
pub(crate) struct Context {
    pub(crate) items: Items,
    link: Link,
}

/// Where a context stands between its creation and the end of its channel.
enum Link {
    /// No INIT yet.
    Fresh,
    /// INIT without a channel.
    QueriesOnly,
    /// The host service is, or was, at the other end; messages go to the ring.
    Open { handle: ChannelHandle, ring: ResourceKey },
    /// The host service has gone.
    Ended { ring: ResourceKey },
}

/// What a context is told by INIT.
pub(crate) struct Rings {
    pub(crate) query: u32,
    pub(crate) channel: u32,
    pub(crate) channel_type: ChannelType,
}

impl Context {
    pub(crate) fn new(items: Items) -> Self {
        Self { items, link: Link::Fresh }
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
        bounds: Bounds,
        tag: T,
    ) -> Result<Option<Channel<T>>, ContextError> {
        if !matches!(self.link, Link::Fresh) {
            return Err(ContextError::Initialised);
        }
        ring(rings.query).ok_or(ContextError::NotARing { id: rings.query })?;
        if rings.channel_type == ChannelType::NONE {
            self.link = Link::QueriesOnly;
            return Ok(None);
        }
        let (key, len) = ring(rings.channel).ok_or(ContextError::NotARing { id: rings.channel })?;
        let socket = hosts.connect(rings.channel_type)?;
        let longest = usize::try_from(len).unwrap_or(MAX_MESSAGE).min(MAX_MESSAGE) - size_of::<SendReceive>();
        let (handle, channel) = channel::open(socket, longest, bounds, tag)?;
        self.link = Link::Open { handle, ring: key };
        Ok(Some(channel))
    }

    /// Hands a message to the host service, or to the channel's bounded backlog.
    ///
    /// # Errors
    /// No channel, or one whose backlog is full: the channel is closed then, because a stream with a gap is worse.
    pub(crate) fn send(&mut self, data: &[u8], buffers: Vec<Rc<HeldBuffer>>) -> Result<(), ContextError> {
        let Link::Open { handle, .. } = &self.link else { return Err(ContextError::NoChannel) };
        Ok(handle.send(data, buffers)?)
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

    /// The channel has ended; its socket is closed already.
    pub(crate) fn end(&mut self) {
        if let Link::Open { ring, .. } = self.link {
            self.link = Link::Ended { ring };
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

/// The capability set's data (id 5, version 1).
pub(crate) fn capabilities(hosts: &HostSockets) -> Capabilities {
    Capabilities {
        version: 1.into(),
        supported_channels: hosts.mask().into(),
        supports_dmabuf: 1.into(),
        supports_external_gpu_memory: 0.into(),
    }
}
