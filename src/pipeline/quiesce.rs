//! How the device task comes to rest: everything that the guest has begun ends, and everything that it has made is given
//! up. What does not end by the deadline is set aside with all that it holds, so that a reset always answers.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout_at};
use vm_memory::GuestAddressSpace;

use super::{Pipeline, ReadEnd};
use crate::commands::Step;
use crate::observe::warn_limited;
use crate::resource::Retired;
use crate::seams::LocalFuture;

/// Between two looks at copies that are under way.
const COPIES: Duration = Duration::from_millis(1);

/// In place of deadlines that no clock can hold.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

impl<M: GuestAddressSpace + Send + 'static> Pipeline<M> {
    /// Stops serving and gives everything up. The queues and guest memory are not touched any more from the start, and
    /// no command is under way at the end, but for what is set aside.
    pub(crate) async fn quiesce(&mut self, deadline: Duration) {
        self.active = None;
        (self.held, self.stalled, self.paused, self.config_changed) = (false, false, false, false);
        self.gpu.end();
        // What ends work that waits is work itself.
        self.take_outbox();
        // Nobody waits for a display any more, nor for what would have been copied.
        self.ends.clear();
        self.paced.clear();
        self.redraws.clear();
        self.jobs.drain().for_each(|(_, job)| job.request.abandon());
        self.withheld.drain(..).for_each(|answer| answer.request.abandon());
        let now = Instant::now();
        let ends = now.checked_add(deadline).unwrap_or(now + FOREVER);
        self.end_work(ends).await;
        let mut releasing: FuturesUnordered<_> = self.gpu.release_all().into_iter().collect();
        self.take_outbox();
        while let Ok(Some(retired)) = timeout_at(ends, releasing.next()).await {
            self.gpu.released(retired);
        }
        // What is left of a teardown, it too, keeps its range until it ends.
        let teardown = |work: LocalFuture<Retired>| async {
            if let Some(rest) = work.await.rest {
                rest.await;
            }
        };
        let stuck = releasing.into_iter().map(|work| Box::pin(teardown(work)) as LocalFuture<()>);
        self.set_aside(stuck.collect());
        self.end_work(ends).await;
        self.end_copies(ends).await;
        self.take_outbox();
        self.board.clear();
        self.lives.clear();
        self.contexts.clear();
    }

    /// Waits for commands, for calls of the renderer, and for reads that copy.
    async fn end_work(&mut self, ends: Instant) {
        if timeout_at(ends, poll_fn(|cx| self.poll_ends(cx))).await.is_err() {
            let stuck = std::mem::take(&mut self.in_flight);
            self.set_aside(stuck);
            let stuck = std::mem::take(&mut self.chores);
            self.set_aside(stuck);
            let read = |reading: LocalFuture<ReadEnd>| async {
                let ReadEnd { rest, tell } = reading.await;
                tell();
                if let Some(rest) = rest {
                    rest.await;
                }
            };
            let stuck = std::mem::take(&mut self.reads).into_iter();
            self.set_aside(stuck.map(|reading| Box::pin(read(reading)) as LocalFuture<()>).collect());
        }
    }

    /// Waits for copies of guest memory that other threads make: they have no way to call, and last as long as a `memcpy`.
    async fn end_copies(&mut self, ends: Instant) {
        let lease = &self.gpu.lease;
        let quiet = async {
            while !lease.is_quiet() {
                tokio::time::sleep(COPIES).await;
            }
        };
        if timeout_at(ends, quiet).await.is_err() {
            self.gpu.counters.quarantined.bump();
            warn_limited!("a renderer's copy of guest memory did not end before the deadline");
        }
    }

    /// Ready when no command's work, no call of the renderer and no read is under way, and every channel has been heard.
    fn poll_ends(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some((ticket, finish))) = self.in_flight.poll_next_unpin(cx) {
            // Booked like any other, so that what it placed or made is found and given up; nobody is answered.
            if let Ok(Step::Later(more)) = finish(&mut self.gpu) {
                self.fly(ticket, more);
            }
        }
        while let Poll::Ready(Some(_)) = self.channels.poll_next_unpin(cx) {}
        while let Poll::Ready(Some(())) = self.chores.poll_next_unpin(cx) {}
        while let Poll::Ready(Some(end)) = self.reads.poll_next_unpin(cx) {
            self.read_ended(end);
        }
        let idle = self.in_flight.is_empty() && self.chores.is_empty() && self.reads.is_empty();
        if idle { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Lets work go on behind the device's back; what it yields is dropped, and with it what it owns.
    fn set_aside<T: 'static>(&mut self, stuck: FuturesUnordered<LocalFuture<T>>) {
        if stuck.is_empty() {
            return;
        }
        self.gpu.counters.quarantined.add(stuck.len() as u64);
        warn_limited!(count = stuck.len(), "work did not end before the deadline and is set aside");
        self.quarantine.extend(stuck.into_iter().map(|work| Box::pin(work.map(drop)) as LocalFuture<()>));
        self.fresh = true;
    }
}
