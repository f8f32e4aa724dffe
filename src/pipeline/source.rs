//! A queue with its kick: how requests reach the device task, and how it goes to sleep without missing one.

use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use virtio_queue::{Queue, QueueState};
use vm_memory::GuestAddressSpace;

use crate::queue::{Popped, Request, Ring, RingError, Signal};
use crate::sys::ring::Readiness;

/// A ring, the eventfd that announces its chains, and whether it may hold any.
pub(crate) struct Source<M: GuestAddressSpace> {
    ring: Ring<M>,
    kick: Readiness<OwnedFd>,
    /// There may be chains: kicks are off, and the ring is looked at in every turn.
    busy: bool,
    parked: bool,
}

impl<M: GuestAddressSpace> Source<M> {
    pub(crate) fn new(ring: Ring<M>, kick: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { ring, kick: Readiness::new(kick)?, busy: true, parked: false })
    }

    /// Goes on with a queue that is the same, at a position that the VMM states, and with another kick.
    ///
    /// # Errors
    /// See [`Ring::continues`]; and the kick cannot be watched.
    pub(crate) fn rewire(&mut self, queue: Queue, kick: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
        let kick = Readiness::new(kick)?;
        self.ring.continues(queue)?;
        (self.kick, self.busy) = (kick, true);
        Ok(())
    }

    pub(crate) fn memory(&self) -> M::T {
        self.ring.memory()
    }

    /// Takes note of kicks; true where there was one since the last call.
    ///
    /// The eventfd is never read: its readiness is edge-triggered, each write is an event of its own, and a counter of
    /// 64 bits does not fill up. That saves a system call a kick.
    pub(crate) fn poll_kick(&mut self, cx: &mut Context<'_>) -> bool {
        let mut kicked = false;
        // Twice: once to take note, once to be woken by the next. What is no eventfd may be ready for ever.
        for _ in 0..2 {
            kicked |= matches!(self.kick.poll_event(cx), Poll::Ready(Ok(())));
        }
        self.busy |= kicked;
        kicked
    }

    /// The next chain; nothing when the ring is empty and the driver has been asked to kick again.
    pub(crate) fn next(&mut self) -> Result<Popped, RingError> {
        if !self.busy || self.parked {
            return Ok(Popped::Nothing);
        }
        self.ring.disable_kicks()?;
        loop {
            match self.ring.pop()? {
                Popped::Nothing if self.ring.enable_kicks()? => {}
                popped => {
                    self.busy = !matches!(popped, Popped::Nothing);
                    return Ok(popped);
                }
            }
        }
    }

    /// Whether the driver has made requests available that were not popped.
    pub(crate) fn has_more(&self) -> bool {
        self.busy && !self.parked && self.ring.has_more()
    }

    /// Gives a request back with its answer.
    pub(crate) fn answer(&mut self, request: Request, answer: &[u8]) -> Result<(), RingError> {
        let answer = request.answer(&*self.ring.memory(), answer);
        if self.parked { Ok(()) } else { self.ring.give_back(answer) }
    }

    /// What the driver is to hear of this turn, and how many requests were lost in it.
    pub(crate) fn take_signal(&mut self) -> Result<(Signal, u64), RingError> {
        if self.parked {
            return Ok((Signal::Nothing, 0));
        }
        let lost = self.ring.give_back_lost()?;
        Ok((self.ring.take_signal()?, lost))
    }

    /// There may be chains whose kick nobody has seen.
    pub(crate) fn look_again(&mut self) {
        self.busy = true;
    }

    /// Where the ring has come to.
    pub(crate) fn state(&self) -> QueueState {
        self.ring.state()
    }

    /// Stops serving a broken ring; false where that was done before.
    pub(crate) fn park(&mut self) -> bool {
        !std::mem::replace(&mut self.parked, true)
    }
}
