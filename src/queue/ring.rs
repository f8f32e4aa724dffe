//! One virtqueue from the device's side, over rust-vmm's `Queue`. It pops chains of any layout, gives them back, and
//! knows when the driver wants to hear of it. What breaks the ring itself parks it, once.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory};

use super::request::{Answer, LostAndFound, Pieces, Request, write};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.4, section 2.7.6).
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Why a ring cannot be served any more (virtio 1.4, section 2.1.2: the device needs a reset).
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("the queue's addresses or size are invalid")]
    Invalid,
    #[error("it is another queue than before")]
    Another,
    #[error("the available ring is broken: {0}")]
    Available(virtio_queue::Error),
    #[error("the available ring is no longer guest memory")]
    Unreadable,
    #[error("head {head} in a queue of {size}")]
    Head { head: u16, size: u16 },
    #[error("head {head} was made available again before it was given back")]
    Reused { head: u16 },
    #[error("the used ring is broken: {0}")]
    Used(virtio_queue::Error),
}

/// What was in the available ring.
pub(crate) enum Popped {
    /// A chain to serve.
    Request(Request),
    /// A chain that leads nowhere, or has a readable piece behind a writable one: given back at once, nothing written.
    Malformed,
    /// Nothing.
    Nothing,
}

/// A virtqueue that is being served.
pub(crate) struct Ring<M: GuestAddressSpace> {
    queue: Queue,
    memory: M,
    /// Which heads have been popped and not given back, a bit each.
    taken: Vec<u64>,
    lost: LostAndFound,
    unsignalled: bool,
}

impl<M: GuestAddressSpace> Ring<M> {
    /// Takes over a queue that the driver has set up.
    ///
    /// # Errors
    /// [`RingError::Invalid`] where it is not ready or does not lie in guest memory.
    pub(crate) fn new(queue: Queue, memory: M) -> Result<Self, RingError> {
        if !queue.is_valid(&*memory.memory()) {
            return Err(RingError::Invalid);
        }
        let taken = vec![0; usize::from(queue.size()).div_ceil(64)];
        Ok(Self { queue, memory, taken, lost: Rc::default(), unsignalled: false })
    }

    /// Goes on with the same queue from where `queue` is; what was popped and not given back stays so.
    ///
    /// # Errors
    /// Its size or its addresses are others, or do not lie in guest memory any more; nothing has changed then.
    pub(crate) fn continues(&mut self, mut queue: Queue) -> Result<(), RingError> {
        let place = |queue: &Queue| (queue.size(), queue.desc_table(), queue.avail_ring(), queue.used_ring());
        if place(&queue) != place(&self.queue) {
            return Err(RingError::Another);
        }
        queue.set_event_idx(self.queue.event_idx_enabled());
        if !queue.is_valid(&*self.memory.memory()) {
            return Err(RingError::Invalid);
        }
        self.queue = queue;
        Ok(())
    }

    /// Where the queue has come to, for one that goes on from there.
    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// The guest memory that the ring lies in, as it is now.
    pub(crate) fn memory(&self) -> M::T {
        self.memory.memory()
    }

    /// The next chain that the driver has made available.
    ///
    /// # Errors
    /// A broken ring; the caller parks it.
    pub(crate) fn pop(&mut self) -> Result<Popped, RingError> {
        let memory = self.memory.memory();
        let size = self.queue.size();
        let more = self.has_more();
        let chain = self.queue.iter(&*memory).map_err(RingError::Available)?.next();
        let Some(mut chain) = chain else {
            // rust-vmm's queue says the same of an entry that it cannot read as of one that is not there.
            return if more { Err(RingError::Unreadable) } else { Ok(Popped::Nothing) };
        };
        let head = chain.head_index();
        self.take(head, size)?;
        if let Some((readable, writable)) = pieces(&mut chain) {
            return Ok(Popped::Request(Request::new(head, readable, writable, Rc::clone(&self.lost))));
        }
        self.give_back(Answer { head, written: 0 })?;
        Ok(Popped::Malformed)
    }

    fn take(&mut self, head: u16, size: u16) -> Result<(), RingError> {
        let word = self.taken.get_mut(usize::from(head / 64)).filter(|_| head < size);
        let word = word.ok_or(RingError::Head { head, size })?;
        let bit = 1 << (head % 64);
        if *word & bit != 0 {
            return Err(RingError::Reused { head });
        }
        *word |= bit;
        Ok(())
    }

    /// Puts a finished chain into the used ring.
    ///
    /// # Errors
    /// A used ring that is not in guest memory any more.
    pub(crate) fn give_back(&mut self, answer: Answer) -> Result<(), RingError> {
        self.taken[usize::from(answer.head / 64)] &= !(1 << (answer.head % 64));
        self.unsignalled = true;
        self.queue.add_used(&*self.memory.memory(), answer.head, answer.written).map_err(RingError::Used)
    }

    /// Answers for requests that were dropped, and says how many there were: a defect of the device, but the driver's
    /// descriptors come back.
    pub(crate) fn give_back_lost(&mut self) -> Result<u64, RingError> {
        if self.lost.borrow().is_empty() {
            return Ok(0);
        }
        let lost = self.lost.take();
        let count = lost.len() as u64;
        for request in lost {
            let written = write(&request.writable, &*self.memory.memory(), &request.answer);
            self.give_back(Answer { head: request.head, written })?;
        }
        Ok(count)
    }

    /// Whether the driver is to be interrupted for what was given back since the last call.
    pub(crate) fn take_signal(&mut self) -> Result<Signal, RingError> {
        if !std::mem::take(&mut self.unsignalled) {
            return Ok(Signal::Nothing);
        }
        let memory = self.memory.memory();
        // Without EVENT_IDX rust-vmm's queue does not look at the driver's VIRTQ_AVAIL_F_NO_INTERRUPT.
        let wanted = self.queue.needs_notification(&*memory).map_err(RingError::Used)?
            && (self.queue.event_idx_enabled() || !self.no_interrupt(&*memory));
        Ok(if wanted { Signal::Interrupt } else { Signal::Suppressed })
    }

    /// The driver's flag that it needs no interrupts; the queue has fenced the used index before.
    fn no_interrupt(&self, memory: &impl GuestMemory) -> bool {
        let flags = memory.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Acquire);
        flags.is_ok_and(|flags| u16::from_le(flags) & AVAIL_F_NO_INTERRUPT != 0)
    }

    /// Whether there are chains that have not been popped.
    pub(crate) fn has_more(&self) -> bool {
        let available = self.queue.avail_idx(&*self.memory.memory(), Ordering::Acquire);
        available.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Asks the driver not to kick while the ring is being worked on.
    pub(crate) fn disable_kicks(&mut self) -> Result<(), RingError> {
        self.queue.disable_notification(&*self.memory.memory()).map_err(RingError::Used)
    }

    /// Asks for kicks again; true where chains have become available meanwhile.
    pub(crate) fn enable_kicks(&mut self) -> Result<bool, RingError> {
        self.queue.enable_notification(&*self.memory.memory()).map_err(RingError::Available)
    }
}

/// What the driver wants to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Nothing was given back.
    Nothing,
    /// The driver asked not to be interrupted for it.
    Suppressed,
    /// An interrupt is due.
    Interrupt,
}

/// Pieces of the writable part that are kept until the answer; an indirect table may have 65,535.
const MOST_WRITABLE: usize = 1024;

/// The chain's pieces by direction; `None` where a link leads nowhere, or a readable piece follows a writable one.
fn pieces<M>(chain: &mut virtio_queue::DescriptorChain<&M>) -> Option<(Pieces, Pieces)>
where
    M: GuestMemory,
{
    let (mut readable, mut writable) = (SmallVec::new(), SmallVec::new());
    let (mut complete, mut answer_begun) = (false, false);
    for descriptor in chain {
        complete = !descriptor.has_next();
        let piece = (descriptor.addr(), descriptor.len());
        if !descriptor.is_write_only() {
            if answer_begun {
                return None;
            }
            readable.push(piece);
            continue;
        }
        answer_begun = true;
        if descriptor.len() > 0 && writable.len() < MOST_WRITABLE {
            writable.push(piece);
        }
    }
    complete.then_some((readable, writable))
}
