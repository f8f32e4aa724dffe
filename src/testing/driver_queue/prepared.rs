//! The driver's fast path: a chain laid out once and given again and again, so that a bench
//! measures the device and not this driver.

use super::{DriverQueue, Layout, QueueFull, Token};
use vm_memory::GuestAddress;

/// A chain whose buffers and descriptors are written already. It belongs to the queue that made
/// it, can be outstanding once at a time, and outlives [`DriverQueue::reset`].
#[derive(Debug)]
pub struct Prepared {
    head: u16,
    /// Readable buffers: address and length in bytes.
    request: Vec<(GuestAddress, usize)>,
}

impl Prepared {
    /// The index of the chain's first descriptor: its id in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }
}

impl DriverQueue {
    /// Lays a chain out as [`DriverQueue::add`] does, but adds nothing yet.
    ///
    /// # Errors
    ///
    /// As [`DriverQueue::add`].
    ///
    /// # Panics
    ///
    /// As [`DriverQueue::add`].
    pub fn prepare(&mut self, request: &[u8], response_len: usize, layout: &Layout) -> Result<Prepared, QueueFull> {
        let head = self.lay_out(request, response_len, layout, true)?;
        let segments = self.ledger.chain(head).segments.iter();
        let request =
            segments.filter(|segment| !segment.writable).map(|segment| (segment.addr, segment.len as usize)).collect();
        Ok(Prepared { head, request })
    }

    /// Adds a prepared chain: one available entry, no copy, no allocation. What the device wrote
    /// the last time is still in the response's room.
    ///
    /// # Panics
    ///
    /// If the chain has not come back from the last time.
    pub fn add_prepared(&mut self, prepared: &Prepared) -> Token {
        self.make_available(prepared.head)
    }

    /// Puts other bytes in place of a prepared chain's request. The chain must be with the
    /// driver.
    ///
    /// # Panics
    ///
    /// If `request` has another length than the chain was prepared with.
    pub fn rewrite(&mut self, prepared: &Prepared, request: &[u8]) {
        let mut rest = request;
        for &(addr, len) in &prepared.request {
            let (piece, after) = rest.split_at_checked(len).expect("a request as long as the prepared one");
            self.ram.write(addr, piece);
            rest = after;
        }
        assert!(rest.is_empty(), "a request as long as the prepared one");
    }

    /// The first `written` bytes of a prepared chain's response, after
    /// [`DriverQueue::poll_used_fast`] said how many there are.
    ///
    /// # Panics
    ///
    /// If that is more than the chain has room for.
    #[must_use]
    pub fn prepared_response(&self, prepared: &Prepared, written: u32) -> Vec<u8> {
        let response = self.gather(prepared.head, written);
        assert_eq!(response.len(), written as usize, "more than there is room");
        response
    }

    /// Takes the next chain that came back without reading its response: (head, bytes written).
    /// The exactly-once check is made as in [`DriverQueue::poll_used`].
    ///
    /// # Panics
    ///
    /// As [`DriverQueue::poll_used`].
    pub fn poll_used_fast(&mut self) -> Option<(u16, u32)> {
        let (id, written) = self.take_used()?;
        if let Some(token) = self.ledger.settle(id, written) {
            self.discharge(token.head);
        }
        Some((id as u16, written))
    }

    /// Frees a prepared chain's descriptors and buffers.
    ///
    /// # Panics
    ///
    /// If the chain has not come back.
    pub fn retire(&mut self, prepared: Prepared) {
        if let Some(chain) = self.ledger.retire(prepared.head) {
            self.release(chain);
        }
    }
}
