//! The driver's side of a split virtqueue (virtio 1.4, 2.7), in guest memory and with a real
//! driver's memory ordering, so that tests and benches meet the device where a guest does.
//!
//! A command's life: [`DriverQueue::add`] lays it out, [`DriverQueue::publish`] makes all added
//! chains available and says whether the device must be kicked, [`DriverQueue::poll_used`] takes
//! an answer and checks that it came exactly once.
//!
//! Interrupts are on at first. A driver that sleeps must call `poll_used` until it gives `None`
//! before it waits for the interrupt: what comes back after that `None` raises one. A driver that
//! switched interrupts off wakes up safely with [`DriverQueue::enable_interrupts`].

mod layout;
mod ledger;
mod misbehaviour;
mod prepared;
mod ring;
#[cfg(test)]
mod tests;

use std::num::Wrapping;

use thiserror::Error;
use virtio_queue::Queue;
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

pub use layout::{Layout, Pieces, Segment, Table};
pub use ledger::Token;
pub use misbehaviour::Misbehaviour;
pub use prepared::Prepared;

use crate::testing::GuestRam;
use ledger::{Chain, Ledger};
use ring::{DESCRIPTOR, Descriptor, F_INDIRECT, F_NEXT, F_WRITE, SplitRing};

/// What the room for a response holds before the device writes it, so that bytes which the device
/// counts as written but never wrote show.
const UNWRITTEN: u8 = 0xa5;

/// The ring's negotiated features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// `VIRTIO_F_EVENT_IDX`: kicks and interrupts are asked for by index.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`: chains may lie in tables of their own.
    pub indirect: bool,
}

/// The ring has too few free descriptors for a chain. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the chain needs {needed} descriptors and {free} are free")]
pub struct QueueFull {
    /// Descriptors of the ring that the chain needs.
    pub needed: usize,
    /// Descriptors of the ring that are free.
    pub free: usize,
}

/// A chain that came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Used {
    /// Equal to the token that the chain was added with. After misbehaviour with a head that
    /// names no chain of this queue, a token that equals no other.
    pub token: Token,
    /// Bytes that the device says it wrote.
    pub written: u32,
    /// Exactly these bytes, gathered from the writable buffers. Bytes that the device counted
    /// but did not write read as 0xa5.
    pub response: Vec<u8>,
}

/// The driver of one queue.
///
/// The rings keep their memory as long as the RAM lives, also when this is dropped: a device may
/// still look at them.
#[derive(Debug)]
pub struct DriverQueue {
    ram: GuestRam,
    ring: SplitRing,
    features: RingFeatures,
    /// Descriptors that belong to no chain.
    free: Vec<u16>,
    ledger: Ledger,
    /// Where the next added chain's head goes; ahead of `published` by what is not published.
    next_available: Wrapping<u16>,
    published: Wrapping<u16>,
    next_used: Wrapping<u16>,
    interrupts: bool,
}

impl DriverQueue {
    /// A queue of `size` descriptors in `ram`, with interrupts on.
    ///
    /// # Panics
    ///
    /// If `size` is not a power of two up to 32,768, or `ram` is too small.
    #[must_use]
    pub fn new(ram: GuestRam, size: u16, features: RingFeatures) -> Self {
        assert!(size.is_power_of_two() && size <= 32_768, "a split ring of {size} descriptors");
        Self {
            ring: SplitRing::new(ram.clone(), size),
            ram,
            features,
            free: (0..size).rev().collect(),
            ledger: Ledger::new(size),
            next_available: Wrapping(0),
            published: Wrapping(0),
            next_used: Wrapping(0),
            interrupts: true,
        }
    }

    /// The device's side of this ring, as a transport would configure it, for activation. Fresh:
    /// its indices are zero, so call [`DriverQueue::reset`] before a second activation.
    #[must_use]
    pub fn device_queue(&self) -> Queue {
        self.ring.device_queue(self.features.event_idx)
    }

    /// The features that the queue was made with.
    #[must_use]
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// Descriptors in the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Chains that were added and have not come back.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.ledger.outstanding()
    }

    /// As a driver does after it wrote 0 to the device's status: indices and events go to zero,
    /// what was outstanding is dropped and its memory freed, interrupts are on. Prepared chains
    /// stay prepared. The device must be quiet, or it writes into memory that is used anew.
    pub fn reset(&mut self) {
        for chain in self.ledger.forget() {
            self.release(chain);
        }
        self.ring.clear();
        self.next_available = Wrapping(0);
        self.published = Wrapping(0);
        self.next_used = Wrapping(0);
        self.interrupts = true;
    }

    /// Copies `request` into guest buffers and makes room for `response_len` bytes, as `layout`
    /// says. The device sees nothing of it before [`DriverQueue::publish`].
    ///
    /// # Errors
    ///
    /// [`QueueFull`] until chains come back.
    ///
    /// # Panics
    ///
    /// If the chain can never fit into the ring, has no descriptor at all, or needs a feature
    /// that was not negotiated; if guest RAM is exhausted.
    pub fn add(&mut self, request: &[u8], response_len: usize, layout: &Layout) -> Result<Token, QueueFull> {
        let head = self.lay_out(request, response_len, layout, false)?;
        Ok(self.make_available(head))
    }

    /// Adds a chain of buffers that the caller keeps: nothing is copied into them, and they are
    /// not freed when the chain comes back.
    ///
    /// # Errors
    ///
    /// As [`DriverQueue::add`].
    ///
    /// # Panics
    ///
    /// As [`DriverQueue::add`], and if a readable segment follows a writable one.
    pub fn add_scattered(&mut self, segments: &[Segment], table: Table) -> Result<Token, QueueFull> {
        assert!(
            segments.is_sorted_by_key(|segment| segment.writable),
            "a driver places readable buffers first (virtio 1.4, 2.7, Message Framing)"
        );
        let direct = table.direct(segments.len(), self.features);
        self.room_for(direct, segments.len())?;
        let head = self.link(segments.to_vec(), direct, Chain::default());
        Ok(self.make_available(head))
    }

    /// Makes all added chains available with one store of the index. True if the device wants to
    /// be kicked for them: then the caller must kick.
    #[must_use = "the device sleeps until it is kicked"]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_available {
            return false;
        }
        let old = self.published;
        self.published = self.next_available;
        // Booked first: the device may answer as soon as the index is stored.
        self.ledger.publish();
        self.ring.publish(self.published.0);
        self.ring.wants_kick(self.features.event_idx, old.0, self.published.0)
    }

    /// Takes the next chain that came back, its response, and its memory. With interrupts on and
    /// EVENT_IDX, asks for an interrupt for the one after it.
    ///
    /// # Panics
    ///
    /// If the device returned a head that it does not have, or claims to have written more than
    /// there was room for.
    pub fn poll_used(&mut self) -> Option<Used> {
        let (id, written) = self.take_used()?;
        let Some(token) = self.ledger.settle(id, written) else {
            return Some(Used { token: Token { serial: 0, head: id as u16 }, written, response: Vec::new() });
        };
        let response = self.gather(token.head, written);
        self.discharge(token.head);
        Some(Used { token, written, response })
    }

    /// Switches interrupts. Off is a hint: a device may still raise one, with EVENT_IDX once in
    /// 65,536 chains by design. On takes effect for what comes back from now on; whoever sleeps
    /// then needs [`DriverQueue::enable_interrupts`].
    pub fn set_interrupts(&mut self, enabled: bool) {
        self.interrupts = enabled;
        if !self.features.event_idx {
            self.ring.set_interrupt_flag(enabled);
        } else if enabled {
            self.ring.set_used_event(self.next_used.0);
        } else {
            // The index that the device has just passed is the one that it reaches last.
            self.ring.set_used_event((self.next_used - Wrapping(1)).0);
        }
    }

    /// Switches interrupts on and looks once more. True if chains have come back already, perhaps
    /// between the last `poll_used` and this call, without an interrupt: poll again before
    /// sleeping. False promises an interrupt for the next one.
    #[must_use = "what came back meanwhile raises no interrupt"]
    pub fn enable_interrupts(&mut self) -> bool {
        self.set_interrupts(true);
        self.ring.used_index() != self.next_used.0
    }

    /// The next used entry: (id, bytes written).
    fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.ring.used_index() == self.next_used.0 {
            return None;
        }
        let used = self.ring.used(self.next_used.0);
        self.next_used += Wrapping(1);
        if self.interrupts && self.features.event_idx {
            self.ring.set_used_event(self.next_used.0);
        }
        Some(used)
    }

    /// Writes the chain's head into the next available entry.
    fn make_available(&mut self, head: u16) -> Token {
        let token = self.ledger.add(head);
        self.ring.set_available(self.next_available.0, head);
        self.next_available += Wrapping(1);
        token
    }

    /// Makes a chain with buffers of its own; books it, but does not add it.
    fn lay_out(
        &mut self,
        request: &[u8],
        response_len: usize,
        layout: &Layout,
        prepared: bool,
    ) -> Result<u16, QueueFull> {
        let readable = layout.readable.cut(request.len());
        let writable = layout.writable.cut(response_len);
        let count = readable.len() + writable.len();
        let direct = layout.table.direct(count, self.features);
        self.room_for(direct, count)?;

        let mut chain = Chain { prepared, ..Chain::default() };
        let mut segments = Vec::with_capacity(count);
        let mut rest = request;
        for len in readable {
            let piece;
            (piece, rest) = rest.split_at(len);
            segments.push(Segment::readable(self.buffer(&mut chain, piece), len as u32));
        }
        for len in writable {
            let addr = self.buffer(&mut chain, &vec![UNWRITTEN; len]);
            segments.push(Segment::writable(addr, len as u32));
        }
        Ok(self.link(segments, direct, chain))
    }

    /// A guest buffer that holds `bytes`, freed with `chain`. A byte more than asked is taken, so
    /// that no buffer starts where another ends.
    fn buffer(&self, chain: &mut Chain, bytes: &[u8]) -> GuestAddress {
        let taken = bytes.len() + 1;
        let addr = self.ram.alloc(taken, 1);
        chain.owned.push((addr, taken));
        self.ram.write(addr, bytes);
        addr
    }

    /// Whether the ring has descriptors for a chain of `count`, `direct` of them in the ring.
    fn room_for(&self, direct: usize, count: usize) -> Result<(), QueueFull> {
        assert_ne!(count, 0, "a chain has at least one descriptor");
        let needed = direct + usize::from(direct < count);
        assert!(
            needed <= usize::from(self.size()),
            "a chain of {needed} descriptors never fits into a ring of {}",
            self.size()
        );
        let free = self.free.len();
        if needed > free {
            return Err(QueueFull { needed, free });
        }
        Ok(())
    }

    /// Writes the descriptors of a chain, `direct` of them in the ring and the others in a table,
    /// and books it. There must be room.
    fn link(&mut self, segments: Vec<Segment>, direct: usize, mut chain: Chain) -> u16 {
        let (in_ring, in_table) = segments.split_at(direct);
        let mut descriptors: Vec<_> = in_ring.iter().map(descriptor).collect();
        if !in_table.is_empty() {
            let (addr, len) = self.write_table(in_table, &mut chain);
            descriptors.push(Descriptor::new(addr, len, F_INDIRECT, 0));
        }
        let from = self.free.len() - descriptors.len();
        chain.descriptors = self.free.split_off(from);
        chain.descriptors.reverse();
        for (position, mut descriptor) in descriptors.into_iter().enumerate() {
            if let Some(&next) = chain.descriptors.get(position + 1) {
                descriptor.flags |= F_NEXT;
                descriptor.next = next.into();
            }
            let at = self.ring.descriptor_at(chain.descriptors[position]);
            self.ram.write(at, descriptor.as_bytes());
        }
        chain.segments = segments;
        self.ledger.keep(chain)
    }

    /// Writes an indirect table for `segments`: its address and length in bytes.
    fn write_table(&self, segments: &[Segment], chain: &mut Chain) -> (GuestAddress, u32) {
        let count = u16::try_from(segments.len()).expect("an indirect table within 65,535 entries");
        let len = u32::from(count) * DESCRIPTOR;
        let addr = self.ram.alloc(len as usize, 16);
        chain.owned.push((addr, len as usize));
        chain.table = Some((addr, count));
        let mut bytes = Vec::with_capacity(len as usize);
        for (next, segment) in (1..).zip(segments) {
            let mut descriptor = descriptor(segment);
            if next < count {
                descriptor.flags |= F_NEXT;
                descriptor.next = next.into();
            }
            bytes.extend_from_slice(descriptor.as_bytes());
        }
        self.ram.write(addr, &bytes);
        (addr, len)
    }

    /// The first `written` bytes of the writable buffers of the chain under `head`.
    fn gather(&self, head: u16, written: u32) -> Vec<u8> {
        let mut response = Vec::with_capacity(written as usize);
        let segments = &self.ledger.chain(head).segments;
        for segment in segments.iter().filter(|segment| segment.writable) {
            let left = written as usize - response.len();
            let len = left.min(segment.len as usize);
            response.extend(self.ram.read(segment.addr, len));
        }
        response
    }

    /// Frees what belongs to the chain under `head`, which came back, unless it is prepared.
    fn discharge(&mut self, head: u16) {
        if let Some(chain) = self.ledger.discharge(head) {
            self.release(chain);
        }
    }

    fn release(&mut self, chain: Chain) {
        // Reversed, so that a ring at rest hands out the same descriptors in the same order.
        self.free.extend(chain.descriptors.iter().rev());
        for (addr, len) in chain.owned {
            self.ram.free(addr, len);
        }
    }
}

/// The descriptor of a buffer, the chain's last until it is linked on.
fn descriptor(segment: &Segment) -> Descriptor {
    let flags = if segment.writable { F_WRITE } else { 0 };
    Descriptor::new(segment.addr, segment.len, flags, 0)
}
