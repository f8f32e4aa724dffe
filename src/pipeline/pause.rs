//! A guest that its VMM has stopped: work that has begun ends, or is held, and then nothing touches the queues or the driver
//! until the guest goes on, here or elsewhere.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;
use virtio_queue::QueueState;
use vm_memory::GuestAddressSpace;

use super::{Pipeline, Source, Stage};

/// The queues of a device that is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paused {
    /// Queue 0, where the driver is up. `virtio_queue::Queue::try_from` makes a queue of it that goes on where this one
    /// stopped, for [`Activation`](crate::Activation).
    pub control: Option<QueueState>,
    /// Queue 1, where the driver is up and uses it.
    pub cursor: Option<QueueState>,
    /// Requests that were taken from the queues and wait for something that may never come: a message of a host service, a
    /// fence of the renderer; after [`halt`](crate::Device::halt) any other, too. They are answered after
    /// [`resume`](crate::Device::resume) alone; with any of them a device elsewhere cannot take over.
    pub outstanding: usize,
}

/// Work did not end in time; the device goes on serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{unfinished} commands did not end within {deadline:?}")]
pub struct PauseError {
    /// How many commands are under way or wait for one that is.
    pub unfinished: usize,
    /// [`Limits::deadline`](crate::Limits::deadline).
    pub deadline: Duration,
}

impl<M: GuestAddressSpace + Send + 'static> Pipeline<M> {
    /// Takes no more requests, waits until none is under way, and stops.
    ///
    /// # Errors
    /// The deadline; everything is as it was then.
    pub(crate) async fn pause(&mut self, deadline: Duration) -> Result<Paused, PauseError> {
        if !self.paused && !self.ends_within(deadline).await {
            return Err(PauseError { unfinished: self.unfinished(), deadline });
        }
        self.paused = true;
        Ok(self.state())
    }

    /// The same, but for work that does not end soon: it goes on, and what it comes to is kept until the guest goes on.
    pub(crate) async fn halt(&mut self, grace: Duration) -> Paused {
        if !self.paused {
            self.ends_within(grace).await;
            self.paused = true;
        }
        self.state()
    }

    /// Takes no more requests; whether none is under way in the end.
    async fn ends_within(&mut self, deadline: Duration) -> bool {
        let ended = poll_fn(|cx| {
            self.nudge.arm(cx);
            let more = self.turn(cx, false);
            if self.unfinished() == 0 {
                return Poll::Ready(());
            }
            if more {
                self.nudge.again();
            }
            Poll::Pending
        });
        timeout(deadline, ended).await.is_ok()
    }

    /// The queues as they are.
    fn state(&self) -> Paused {
        let state = |source: &Source<M>| source.state();
        let control = self.active.as_ref().map(|active| state(&active.control));
        let cursor = self.active.as_ref().and_then(|active| active.cursor.as_ref()).map(state);
        Paused { control, cursor, outstanding: self.jobs.len() + self.withheld.len() }
    }

    /// Commands that are under way, wait for one that is, or for a display; and redraws.
    fn unfinished(&self) -> usize {
        let waiting = self.jobs.values().filter(|job| matches!(job.stage, Stage::Waiting { .. }));
        self.in_flight.len() + self.paced.len() + self.redraws.len() + self.ends.len() + waiting.count()
    }

    /// Goes on as if nothing had been.
    pub(crate) fn resume(&mut self) {
        self.paused = false;
        for answer in std::mem::take(&mut self.withheld) {
            self.give_back(answer);
        }
        if let Some(active) = &mut self.active {
            active.control.look_again();
            if let Some(cursor) = &mut active.cursor {
                cursor.look_again();
            }
        }
        if std::mem::take(&mut self.config_changed) {
            self.config_changed();
        }
    }
}
