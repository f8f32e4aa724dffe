//! A turn of the device task: its sources in a fixed order, each only so far that none starves another.

use std::task::{Context, Poll};

use futures_util::{FutureExt, StreamExt};
use tracing::Span;
use vm_memory::GuestAddressSpace;

use super::{Lane, Pipeline};
use crate::commands::{FenceState, Finish, Ticket};
use crate::observe::warn_limited;
use crate::protocol::wire::Header;
use crate::queue::{Popped, Signal};

/// Most requests that one queue is served in a turn.
const REQUESTS_A_TURN: usize = 64;
/// And no further than this many bytes of them: a list of a million entries takes its time.
const REQUEST_BYTES_A_TURN: usize = 1 << 20;
/// Most pieces of finished work, most fences, most events of channels, that are booked in a turn.
const EVENTS_A_TURN: usize = 64;

impl<M: GuestAddressSpace + Send + 'static> Pipeline<M> {
    /// One turn. Ready never comes: the device task ends by its control messages.
    pub(crate) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<std::convert::Infallible> {
        self.nudge.arm(cx);
        let more = if self.paused { self.still_turn(cx) } else { self.turn(cx, true) };
        if more {
            self.nudge.again();
        }
        Poll::Pending
    }

    /// One turn, and another soon.
    pub(crate) fn poll_again(&mut self, cx: &mut Context<'_>) -> Poll<std::convert::Infallible> {
        let polled = self.poll_turn(cx);
        self.nudge.again();
        polled
    }

    /// Serves everything for a turn, the queues where it is to `pop`; true where there is more to do.
    pub(super) fn turn(&mut self, cx: &mut Context<'_>, pop: bool) -> bool {
        self.pace();
        let mut more = self.poll_work(cx);
        if pop {
            more |= self.poll_queue(cx, Lane::Cursor);
            more |= self.poll_queue(cx, Lane::Control);
        }
        if std::mem::take(&mut self.fresh) {
            more |= self.poll_work(cx);
            more |= self.fresh;
        }
        more |= pop && self.held && self.board.len() < self.gpu.limits.commands_in_flight;
        self.interrupt();
        more | !self.paced.is_empty()
    }

    /// A turn of a device that is paused: only what the VMM has asked for goes on.
    fn still_turn(&mut self, cx: &mut Context<'_>) -> bool {
        self.pace();
        let more = self.poll_commands(cx) | self.poll_rest(cx);
        more | std::mem::take(&mut self.fresh) | !self.paced.is_empty()
    }

    /// A turn begins: what had no room in the one before goes on, one after the other.
    fn pace(&mut self) {
        self.gpu.turn.begin();
        for _ in 0..self.paced.len() {
            if self.gpu.turn.left() == 0 {
                break;
            }
            if let Some((ticket, finish)) = self.paced.pop_front() {
                self.finish(ticket, finish);
            }
        }
    }

    fn finish(&mut self, ticket: Ticket, finish: Finish) {
        let span = self.jobs.get(ticket).map_or_else(Span::none, |job| job.span.clone());
        let _entered = span.enter();
        let step = finish(&mut self.gpu);
        self.take_step(ticket, step);
        self.take_outbox();
        self.obey();
    }

    /// Books what has ended: work, fences, displays, events of channels. Each has its own part of the turn, so that none
    /// starves another.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> bool {
        if self.renderer.as_mut().is_some_and(|lost| lost.poll_unpin(cx).is_ready()) {
            self.renderer = None;
            self.gpu.renderer_lost();
            self.take_outbox();
            self.obey();
        }
        let mut full = self.poll_commands(cx);
        let mut budget = EVENTS_A_TURN;
        while budget > 0
            && let Poll::Ready(Some((context, ticket))) = self.fences.poll_recv(cx)
        {
            budget -= 1;
            self.gpu.renderer_signalled(context, ticket);
            self.take_outbox();
            self.obey();
        }
        full |= budget == 0;
        budget = EVENTS_A_TURN;
        while budget > 0
            && let Poll::Ready(Some((context, event))) = self.channels.poll_next_unpin(cx)
        {
            budget -= 1;
            self.gpu.channel_event(context, event);
            self.take_outbox();
            self.obey();
        }
        full | (budget == 0) | self.poll_rest(cx)
    }

    /// Books work that has ended, and displays that are done.
    fn poll_commands(&mut self, cx: &mut Context<'_>) -> bool {
        let mut budget = EVENTS_A_TURN;
        while budget > 0
            && let Poll::Ready(Some((ticket, finish))) = self.in_flight.poll_next_unpin(cx)
        {
            budget -= 1;
            self.finish(ticket, finish);
        }
        let full = budget == 0;
        budget = EVENTS_A_TURN;
        while budget > 0
            && let Poll::Ready(Some(ticket)) = self.ends.poll_next_unpin(cx)
        {
            budget -= 1;
            self.gpu.scanouts().sweep();
            let fenced = self.jobs.get(ticket).map(|job| job.header).filter(Header::fenced);
            let fence = fenced.map(|header| self.gpu.fence(&header, ticket));
            if fence != Some(FenceState::Pending) {
                self.board.signalled(ticket);
            }
            self.take_outbox();
            self.obey();
        }
        full | (budget == 0)
    }

    /// Books what has ended beside the guest's commands.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> bool {
        let mut budget = EVENTS_A_TURN;
        while budget > 0
            && let Poll::Ready(Some(end)) = self.reads.poll_next_unpin(cx)
        {
            budget -= 1;
            self.read_ended(end);
        }
        let mut full = budget == 0;
        for rest in [&mut self.chores, &mut self.quarantine] {
            budget = EVENTS_A_TURN;
            while budget > 0
                && let Poll::Ready(Some(())) = rest.poll_next_unpin(cx)
            {
                budget -= 1;
            }
            full |= budget == 0;
        }
        full
    }

    /// Serves a queue for a turn; true where there is more to do.
    fn poll_queue(&mut self, cx: &mut Context<'_>, lane: Lane) -> bool {
        let Some(source) = self.source(lane) else { return false };
        if source.poll_kick(cx) {
            self.gpu.counters.kicks.bump();
        }
        let mut bytes = 0;
        self.held &= lane == Lane::Cursor;
        for _ in 0..REQUESTS_A_TURN {
            let full = lane == Lane::Control && self.board.len() >= self.gpu.limits.commands_in_flight;
            let Some(source) = self.source(lane) else { return false };
            if full {
                // The guest's ring is the buffer: whatever is answered next continues from here.
                let stalls = source.has_more();
                self.held = true;
                let before = std::mem::replace(&mut self.stalled, stalls);
                self.gpu.counters.stalls_full.add(u64::from(stalls && !before));
                return false;
            }
            match source.next() {
                Ok(Popped::Request(request)) => {
                    self.stalled &= lane == Lane::Cursor;
                    self.gpu.counters.commands.bump();
                    bytes += request.readable_len();
                    self.arrived(lane, request);
                    if bytes > REQUEST_BYTES_A_TURN {
                        return true;
                    }
                }
                Ok(Popped::Malformed) => {
                    self.gpu.counters.commands.bump();
                    warn_limited!(?lane, "a descriptor chain was malformed and was given back unread");
                }
                Ok(Popped::Nothing) => return false,
                Err(error) => {
                    self.broken(lane, &error);
                    return false;
                }
            }
        }
        true
    }

    /// Interrupts the driver, once a queue at most.
    fn interrupt(&mut self) {
        for (lane, index) in [(Lane::Control, 0), (Lane::Cursor, 1)] {
            let Some(source) = self.source(lane) else { return };
            match source.take_signal() {
                Ok((signal, lost)) => {
                    self.gpu.counters.requests_lost.add(lost);
                    self.signal(signal, index);
                }
                Err(error) => self.broken(lane, &error),
            }
        }
    }

    fn signal(&self, signal: Signal, index: u16) {
        match (signal, &self.active) {
            (Signal::Interrupt, Some(active)) => {
                self.gpu.counters.interrupts.bump();
                active.interrupt.queue(index);
            }
            (Signal::Suppressed, _) => self.gpu.counters.interrupts_suppressed.bump(),
            _ => {}
        }
    }
}
