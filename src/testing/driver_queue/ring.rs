//! The three parts of a split virtqueue as bytes of guest memory, each access with the ordering
//! that a driver owes the device, so that no other file speaks of ring offsets or of memory
//! ordering.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::testing::GuestRam;

/// `VIRTQ_DESC_F_NEXT`: the chain goes on at `next`.
pub(super) const F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes this buffer.
pub(super) const F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
pub(super) const F_INDIRECT: u16 = 4;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`.
const F_NO_NOTIFY: u16 = 1;

/// Offset of `idx` in both rings, after `flags`.
const INDEX: u64 = 2;
/// Offset of the entries in both rings, after `flags` and `idx`.
const ENTRIES: u64 = 4;
/// An available entry is a head, le16.
const AVAILABLE_ENTRY: u64 = 2;
/// A used entry is `struct virtq_used_elem`: id and length, le32 each.
const USED_ENTRY: u64 = 8;
/// The event index after the entries, le16.
const EVENT: u64 = 2;

/// `struct virtq_desc` (virtio 1.4, 2.7, "The Virtqueue Descriptor Table").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Descriptor {
    pub addr: U64,
    pub len: U32,
    pub flags: U16,
    pub next: U16,
}

/// Bytes of a descriptor in a table.
pub(super) const DESCRIPTOR: u32 = size_of::<Descriptor>() as u32;

impl Descriptor {
    pub(super) fn new(addr: GuestAddress, len: u32, flags: u16, next: u16) -> Self {
        Self { addr: addr.raw_value().into(), len: len.into(), flags: flags.into(), next: next.into() }
    }
}

/// The ring's memory. All methods panic if it is not RAM, which [`SplitRing::new`] rules out.
#[derive(Debug)]
pub(super) struct SplitRing {
    ram: GuestRam,
    size: u16,
    table: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
}

impl SplitRing {
    /// Takes memory for a ring of `size` descriptors and zeroes it.
    pub(super) fn new(ram: GuestRam, size: u16) -> Self {
        let ring = Self {
            table: ram.alloc(table_bytes(size), 16),
            available: ram.alloc(available_bytes(size), 2),
            used: ram.alloc(used_bytes(size), 4),
            ram,
            size,
        };
        ring.clear();
        ring
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Zeroes both rings' flags, indices and events. Descriptors stay as they are.
    pub(super) fn clear(&self) {
        self.ram.write(self.available, &vec![0; available_bytes(self.size)]);
        self.ram.write(self.used, &vec![0; used_bytes(self.size)]);
    }

    /// The device's view of this ring, ready to be used.
    pub(super) fn device_queue(&self, event_idx: bool) -> Queue {
        let halves = |addr: GuestAddress| {
            let addr = addr.raw_value();
            (Some(addr as u32), Some((addr >> 32) as u32))
        };
        let mut queue = Queue::new(self.size).expect("the size was checked");
        let (low, high) = halves(self.table);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.available);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    /// Where descriptor `index` of the ring's own table lies.
    pub(super) fn descriptor_at(&self, index: u16) -> GuestAddress {
        self.table.unchecked_add(u64::from(index) * u64::from(DESCRIPTOR))
    }

    /// Writes the head of a chain into the available entry for `index`. The device does not look
    /// there before [`SplitRing::publish`] says so.
    pub(super) fn set_available(&self, index: u16, head: u16) {
        let entry = u64::from(index % self.size) * AVAILABLE_ENTRY;
        self.store_u16(self.available.unchecked_add(ENTRIES + entry), head, Ordering::Relaxed);
    }

    /// Stores the available index. Release: the chains' bytes, their descriptors and the
    /// available entries are visible to a device that sees the index.
    pub(super) fn publish(&self, index: u16) {
        self.store_u16(self.available.unchecked_add(INDEX), index, Ordering::Release);
    }

    /// Whether the device wants to be told that the available index went from `old` to `new`
    /// (virtio 1.4, 2.7, "Available Buffer
    /// Notification Suppression").
    pub(super) fn wants_kick(&self, event_idx: bool, old: u16, new: u16) -> bool {
        // The device stores its wish and then looks at the index; we store the index and then
        // look at the wish. Without the fence both may miss each other and sleep for ever.
        fence(Ordering::SeqCst);
        if event_idx {
            let end = ENTRIES + u64::from(self.size) * USED_ENTRY;
            let event = self.load_u16(self.used.unchecked_add(end), Ordering::Relaxed);
            passed(event, old, new)
        } else {
            self.load_u16(self.used, Ordering::Relaxed) & F_NO_NOTIFY == 0
        }
    }

    /// The used index. Acquire: what the device wrote before it stored the index is visible.
    pub(super) fn used_index(&self) -> u16 {
        self.load_u16(self.used.unchecked_add(INDEX), Ordering::Acquire)
    }

    /// The used entry for `index`: (id, length). Valid after [`SplitRing::used_index`] has
    /// passed it.
    pub(super) fn used(&self, index: u16) -> (u32, u32) {
        let entry = u64::from(index % self.size) * USED_ENTRY;
        let at = self.used.unchecked_add(ENTRIES + entry);
        let load = |addr| {
            let value: u32 = self.ram.memory().load(addr, Ordering::Relaxed).expect("the used ring lies in RAM");
            u32::from_le(value)
        };
        (load(at), load(at.unchecked_add(4)))
    }

    /// Asks for an interrupt once the used index passes `index` (with EVENT_IDX).
    pub(super) fn set_used_event(&self, index: u16) {
        let end = ENTRIES + u64::from(self.size) * AVAILABLE_ENTRY;
        self.store_u16(self.available.unchecked_add(end), index, Ordering::Relaxed);
        // Pairs with the device's fence between its used index and its look at this event: a
        // later look at the used index sees the entry, or the device sees the event.
        fence(Ordering::SeqCst);
    }

    /// Switches interrupts by flag (without EVENT_IDX), fenced as
    /// [`SplitRing::set_used_event`] is.
    pub(super) fn set_interrupt_flag(&self, wanted: bool) {
        let flags = if wanted { 0 } else { F_NO_INTERRUPT };
        self.store_u16(self.available, flags, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn store_u16(&self, addr: GuestAddress, value: u16, order: Ordering) {
        self.ram.memory().store(value.to_le(), addr, order).expect("the rings lie in RAM");
    }

    fn load_u16(&self, addr: GuestAddress, order: Ordering) -> u16 {
        let value: u16 = self.ram.memory().load(addr, order).expect("the rings lie in RAM");
        u16::from_le(value)
    }
}

/// Whether an index that went from `old` to `new` passed `event` (virtio 1.4, 2.7,
/// "Available Buffer Notification Suppression"), all modulo 65,536.
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn table_bytes(size: u16) -> usize {
    usize::from(size) * DESCRIPTOR as usize
}

fn available_bytes(size: u16) -> usize {
    (ENTRIES + u64::from(size) * AVAILABLE_ENTRY + EVENT) as usize
}

fn used_bytes(size: u16) -> usize {
    (ENTRIES + u64::from(size) * USED_ENTRY + EVENT) as usize
}
