//! What a peer has not taken yet: bytes in order, bounded, and charged to the device's limits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Poll, ready};

use crate::limits::{Charge, Ledger, Quota};

/// What may be kept for peers that do not read: a context's service, or the readers of all its pipes.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    most: usize,
    /// Bytes that are kept for all of them.
    kept: Rc<Cell<usize>>,
    ledger: Rc<Ledger>,
}

impl Bounds {
    /// At most so many bytes, which count as the host's memory.
    pub(crate) fn new(most: usize, ledger: Rc<Ledger>) -> Self {
        Self { most, kept: Rc::default(), ledger }
    }

    /// As many bytes again, for others.
    pub(super) fn again(&self) -> Self {
        Self::new(self.most, Rc::clone(&self.ledger))
    }
}

/// There is no room for more; nothing of it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    /// Bytes that wait already.
    pub(super) backlog: usize,
}

/// Room for a piece, given back with the drop.
pub(super) struct Room {
    bytes: usize,
    kept: Rc<Cell<usize>>,
    _host_bytes: Charge,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.kept.set(self.kept.get() - self.bytes);
    }
}

/// A piece, or the rest of one, and what goes with its first byte.
struct Outgoing<A> {
    data: Vec<u8>,
    sent: usize,
    with: A,
    _room: Room,
}

/// Pieces in the order in which they go out.
pub(super) struct Backlog<A> {
    queue: RefCell<VecDeque<Outgoing<A>>>,
    bounds: Bounds,
}

/// What the bookkeeping of a piece, and of each descriptor that goes with it, takes of the host's memory.
const BOOKS: usize = 256;

impl<A> Backlog<A> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { queue: RefCell::default(), bounds }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Room for so many bytes with so many descriptors.
    ///
    /// # Errors
    /// The context's bound, or the limit of host memory.
    pub(super) fn room(&self, bytes: usize, descriptors: usize) -> Result<Room, Full> {
        let Bounds { most, kept, ledger } = &self.bounds;
        let bytes = bytes + BOOKS * (1 + descriptors);
        let full = Full { backlog: kept.get() };
        let charge = ledger.charge(Quota::HostBytes, bytes as u64).map_err(|_| full)?;
        if kept.get() + bytes > *most {
            return Err(full);
        }
        kept.set(kept.get() + bytes);
        Ok(Room { bytes, kept: Rc::clone(kept), _host_bytes: charge })
    }

    /// Takes a piece in behind all others.
    pub(super) fn keep(&self, data: &[u8], with: A, room: Room) {
        self.queue.borrow_mut().push_back(Outgoing { data: data.to_vec(), sent: 0, with, _room: room });
    }

    /// Hands pieces to `take`, which says how many bytes of one have gone, until none is left or it takes no more.
    ///
    /// # Errors
    /// A peer that takes nothing any more; the backlog is empty then.
    pub(super) fn poll_flush(
        &self,
        mut take: impl FnMut(&[u8], &mut A) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut queue = self.queue.borrow_mut();
            let Some(front) = queue.front_mut() else { return Poll::Ready(Ok(())) };
            let error = match ready!(take(&front.data[front.sent..], &mut front.with)) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(sent) => {
                    front.sent += sent;
                    if front.sent == front.data.len() {
                        queue.pop_front();
                    }
                    continue;
                }
                Err(error) => error,
            };
            drop(queue);
            self.clear();
            return Poll::Ready(Err(error));
        }
    }

    pub(super) fn clear(&self) {
        self.queue.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    #[test]
    fn a_backlog_never_passes_its_bound_nor_loses_its_order() {
        let ledger = Ledger::new(&Limits::default());
        let bounds = Bounds::new(2 * (3 + BOOKS), Rc::clone(&ledger));
        let (backlog, other) = (Backlog::new(bounds.clone()), Backlog::<()>::new(bounds));
        for (data, with) in [(b"abc", 1), (b"def", 2)] {
            backlog.keep(data, with, backlog.room(3, 0).expect("room"));
        }
        for backlog in [backlog.room(1, 0).err(), other.room(1, 0).err()] {
            assert_eq!(backlog, Some(Full { backlog: 2 * (3 + BOOKS) }));
        }
        let mut taken = Vec::new();
        let first = backlog.poll_flush(|data, with| {
            if taken.len() == 4 {
                return Poll::Pending;
            }
            taken.push((data[0], *with));
            Poll::Ready(Ok(1))
        });
        assert!(first.is_pending());
        assert_eq!(taken, [(b'a', 1), (b'b', 1), (b'c', 1), (b'd', 2)]);
        assert_eq!(ledger.used(Quota::HostBytes), (3 + BOOKS) as u64);
        let gone = backlog.poll_flush(|_, _| Poll::Ready(Ok(0)));
        assert!(matches!(gone, Poll::Ready(Err(_))) && backlog.is_empty());
        assert_eq!(ledger.used(Quota::HostBytes), 0);
        assert!(other.room(3 + BOOKS, 0).is_ok());
    }
}
