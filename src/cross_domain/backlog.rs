//! What a peer has not taken yet: bytes in order, bounded, and charged to the device's limits.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Poll, ready};

use crate::limits::{Charge, Ledger, Quota};

/// What may be kept for a peer that does not read.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Most bytes of one peer.
    pub(crate) backlog: usize,
    /// What all peers together take of the host's memory.
    pub(crate) ledger: Rc<Ledger>,
}

/// There is no room for more; nothing of it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    /// Bytes that wait already.
    pub(super) backlog: usize,
}

/// A piece, or the rest of one, and what goes with its first byte.
struct Outgoing<A> {
    data: Vec<u8>,
    sent: usize,
    with: A,
    _host_bytes: Charge,
}

/// Pieces in the order in which they go out.
pub(super) struct Backlog<A> {
    queue: RefCell<VecDeque<Outgoing<A>>>,
    bytes: Cell<usize>,
    bounds: Bounds,
}

impl<A> Backlog<A> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { queue: RefCell::default(), bytes: Cell::new(0), bounds }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Takes a piece in behind all others.
    ///
    /// # Errors
    /// The peer's own bound, or the limit of host memory.
    pub(super) fn keep(&self, data: &[u8], with: A) -> Result<(), Full> {
        let bytes = self.bytes.get() + cost(data);
        let charge = self.bounds.ledger.charge(Quota::HostBytes, cost(data) as u64);
        let Some(charge) = charge.ok().filter(|_| bytes <= self.bounds.backlog) else {
            return Err(Full { backlog: self.bytes.get() });
        };
        self.bytes.set(bytes);
        self.queue.borrow_mut().push_back(Outgoing { data: data.to_vec(), sent: 0, with, _host_bytes: charge });
        Ok(())
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
            match ready!(take(&front.data[front.sent..], &mut front.with)) {
                Ok(sent) => front.sent += sent,
                Err(error) => {
                    drop(queue);
                    self.clear();
                    return Poll::Ready(Err(error));
                }
            }
            if front.sent == front.data.len() {
                self.bytes.set(self.bytes.get() - cost(&front.data));
                queue.pop_front();
            }
        }
    }

    pub(super) fn clear(&self) {
        self.queue.borrow_mut().clear();
        self.bytes.set(0);
    }
}

/// What a piece takes of the host's memory, its bookkeeping included.
fn cost(data: &[u8]) -> usize {
    data.len() + 256
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    #[test]
    fn a_backlog_never_passes_its_bound_nor_loses_its_order() {
        let ledger = Ledger::new(&Limits::default());
        let backlog = Backlog::new(Bounds { backlog: 2 * cost(b"abc"), ledger: Rc::clone(&ledger) });
        backlog.keep(b"abc", 1).expect("room");
        backlog.keep(b"def", 2).expect("room");
        assert_eq!(backlog.keep(b"g", 3), Err(Full { backlog: 2 * cost(b"abc") }));
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
        assert_eq!(ledger.used(Quota::HostBytes), cost(b"def") as u64);
        let gone = backlog.poll_flush(|_, _| Poll::Ready(Err(io::Error::other("gone"))));
        assert!(matches!(gone, Poll::Ready(Err(_))) && backlog.is_empty());
        assert_eq!(ledger.used(Quota::HostBytes), 0);
    }
}
