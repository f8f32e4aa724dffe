//! Messages from a VMM to its device, and the replies. A reply can be awaited, or waited for by a thread that may block.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Activation, BlobId};
use crate::buffer::read::Span;
use crate::buffer::{HostBuffer, ReadError};
use crate::commands::Exported;
use crate::pipeline::{PauseError, Paused};
use crate::protocol::cross_domain::ChannelType;

/// The device's task has ended, so that nobody can reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device has stopped")]
pub struct DeviceGone;

/// Why a driver's queues cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// The device is active; it must be reset first.
    #[error("the device is active already")]
    Active,
    /// Queues can be wired anew only where a driver is up and the device is paused.
    #[error("no driver is up, or the device is not paused")]
    NotPaused,
    /// No features have been acknowledged.
    #[error("the driver has not acknowledged its features")]
    NoFeatures,
    /// A queue is not set up, or does not lie in guest memory.
    #[error("queue {index}: {reason}")]
    Queue {
        /// 0 control, 1 cursor.
        index: u16,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a buffer was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// The device holds as many descriptors as [`Limits::fds`](crate::Limits::fds) allows.
    #[error("the device holds {limit} descriptors already")]
    Limit {
        /// The limit.
        limit: u64,
    },
}

/// The device's end of a reply.
pub(super) type Answer<T> = oneshot::Sender<T>;

/// What a VMM can ask of its device.
pub(super) enum Control<M> {
    Activate {
        activation: Box<Activation<M>>,
        features: u64,
        reply: Answer<Result<(), ActivateError>>,
    },
    Reset {
        reply: Answer<()>,
    },
    Offer {
        buffer: HostBuffer,
        reply: Answer<Result<BlobId, OfferError>>,
    },
    Read {
        resource: u32,
        span: Span,
        reply: Answer<Result<Vec<u8>, ReadError>>,
    },
    Withdraw {
        id: BlobId,
        reply: Answer<bool>,
    },
    Exported {
        uuid: [u8; 16],
        reply: Answer<std::io::Result<Option<Exported>>>,
    },
    HangUp {
        channel_type: ChannelType,
        reply: Answer<usize>,
    },
    /// The configuration space has changed by the driver's own hand.
    Notify,
    Pause {
        reply: Answer<Result<Paused, PauseError>>,
    },
    Halt {
        grace: Duration,
        reply: Answer<Paused>,
    },
    Resume {
        reply: Answer<()>,
    },
    Rewire {
        activation: Box<Activation<M>>,
        reply: Answer<Result<(), ActivateError>>,
    },
    Stop {
        reply: Answer<()>,
    },
}

/// A reply on its way. Await it, or [`wait`](Self::wait) for it on a thread that may block.
#[derive(Debug)]
#[must_use = "the reply says when it is done, and whether"]
pub struct Reply<T>(oneshot::Receiver<T>);

impl<T> Reply<T> {
    pub(super) fn new() -> (Answer<T>, Self) {
        let (answer, reply) = oneshot::channel();
        (answer, Self(reply))
    }

    /// Blocks until the reply is there. Not for the thread that the device's task runs on: that would wait for itself.
    ///
    /// # Errors
    /// The device's task has ended.
    ///
    /// # Panics
    /// On a thread that is running a tokio runtime.
    pub fn wait(self) -> Result<T, DeviceGone> {
        self.0.blocking_recv().map_err(|_| DeviceGone)
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, DeviceGone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| DeviceGone)
    }
}
