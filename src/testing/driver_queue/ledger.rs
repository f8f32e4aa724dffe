//! What the driver has given to the device and not got back: the exactly-once check. Every chain
//! comes back once, none that was not given, none with more bytes than it had room for; anything
//! else panics with the head and the chain's number, because only a defect of the device does it.

use vm_memory::GuestAddress;

use super::layout::Segment;

/// A chain that was added. Heads are used again, tokens never: two are equal only if they name
/// the same passage of the same chain through the queue.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    pub(super) serial: u64,
    pub(super) head: u16,
}

impl Token {
    /// The index of the chain's first descriptor: its id in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }
}

/// What belongs to a chain until it comes back.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Indices in the ring's table, in the chain's order; the first is the head.
    pub descriptors: Vec<u16>,
    /// The buffers, in the chain's order.
    pub segments: Vec<Segment>,
    /// The indirect table and how many descriptors it holds.
    pub table: Option<(GuestAddress, u16)>,
    /// Guest ranges to free with the chain.
    pub owned: Vec<(GuestAddress, usize)>,
    /// A prepared chain stays with its buffers after it came back, to be given again.
    pub prepared: bool,
}

impl Chain {
    fn writable_bytes(&self) -> u64 {
        let writable = self.segments.iter().filter(|segment| segment.writable);
        writable.map(|segment| u64::from(segment.len)).sum()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// With the driver.
    #[default]
    Idle,
    /// In an available entry that the index does not cover yet.
    Added,
    /// With the device.
    InFlight,
}

#[derive(Debug, Default)]
struct Slot {
    state: State,
    /// Number of the chain that has this head now or had it last.
    serial: Option<u64>,
    writable_bytes: u64,
    chain: Option<Chain>,
}

/// The book of heads.
#[derive(Debug)]
pub(super) struct Ledger {
    slots: Vec<Slot>,
    added: Vec<u16>,
    in_flight: usize,
    next_serial: u64,
    /// Heads published without a chain of ours: each may come back once.
    strays: Vec<u16>,
    /// Set when the driver has broken its own index, so that any head may come back.
    suspended: bool,
}

impl Ledger {
    pub(super) fn new(size: u16) -> Self {
        Self {
            slots: (0..size).map(|_| Slot::default()).collect(),
            added: Vec::with_capacity(size.into()),
            in_flight: 0,
            next_serial: 1,
            strays: Vec::new(),
            suspended: false,
        }
    }

    /// Chains added and not come back.
    pub(super) fn outstanding(&self) -> usize {
        self.in_flight + self.added.len()
    }

    /// Books a chain under its head, still with the driver.
    pub(super) fn keep(&mut self, chain: Chain) -> u16 {
        let head = chain.descriptors[0];
        let slot = &mut self.slots[usize::from(head)];
        slot.writable_bytes = chain.writable_bytes();
        slot.chain = Some(chain);
        head
    }

    /// Notes that the chain kept under `head` was written into an available entry.
    ///
    /// # Panics
    ///
    /// If it is there already.
    pub(super) fn add(&mut self, head: u16) -> Token {
        let slot = &mut self.slots[usize::from(head)];
        assert!(slot.chain.is_some(), "no chain was made with head {head}");
        assert_eq!(slot.state, State::Idle, "the chain with head {head} has not come back yet");
        let serial = self.next_serial;
        self.next_serial += 1;
        slot.state = State::Added;
        slot.serial = Some(serial);
        self.added.push(head);
        Token { serial, head }
    }

    /// Notes that a head was published that names no chain of ours.
    pub(super) fn add_stray(&mut self, head: u16) {
        self.strays.push(head);
    }

    /// Switches the check off until [`Ledger::forget`].
    pub(super) fn suspend(&mut self) {
        self.suspended = true;
    }

    /// Notes that the available index now covers all that was added.
    pub(super) fn publish(&mut self) {
        self.in_flight += self.added.len();
        for head in self.added.drain(..) {
            self.slots[usize::from(head)].state = State::InFlight;
        }
    }

    /// Checks a used entry and books the chain as come back. `None` means that the entry answers
    /// something that the driver published without a chain.
    ///
    /// # Panics
    ///
    /// If the device returned what it does not have, or wrote more than there was room for.
    pub(super) fn settle(&mut self, id: u32, written: u32) -> Option<Token> {
        let slot = usize::try_from(id).ok().and_then(|id| self.slots.get_mut(id));
        let Some(slot) = slot.filter(|slot| slot.state == State::InFlight) else {
            self.settle_stray(id);
            return None;
        };
        let head = id as u16;
        let serial = slot.serial.expect("a chain in flight has a number");
        assert!(
            u64::from(written) <= slot.writable_bytes,
            "chain {serial} with head {head}: the device says it wrote {written} bytes, \
             but there is room for {}",
            slot.writable_bytes
        );
        slot.state = State::Idle;
        self.in_flight -= 1;
        Some(Token { serial, head })
    }

    fn settle_stray(&mut self, id: u32) {
        let stray = self.strays.iter().position(|&head| u32::from(head) == id);
        if let Some(position) = stray {
            self.strays.swap_remove(position);
        } else if !self.suspended {
            let slot = usize::try_from(id).ok().and_then(|id| self.slots.get(id));
            match slot.map(|slot| (slot.state, slot.serial)) {
                Some((State::Added, Some(serial))) => {
                    panic!("head {id} came back before chain {serial} was published")
                }
                Some((_, Some(serial))) => {
                    panic!("head {id} came back twice: chain {serial} was its last")
                }
                _ => panic!("head {id} came back but was never given"),
            }
        }
    }

    /// The chain that is booked under `head`.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub(super) fn chain(&self, head: u16) -> &Chain {
        self.slots[usize::from(head)].chain.as_ref().unwrap_or_else(|| panic!("no chain was made with head {head}"))
    }

    /// Takes a chain that came back out of the book, unless it is a prepared one.
    pub(super) fn discharge(&mut self, head: u16) -> Option<Chain> {
        self.slots[usize::from(head)].chain.take_if(|chain| !chain.prepared)
    }

    /// Takes a prepared chain out of the book.
    ///
    /// # Panics
    ///
    /// If it is with the device.
    pub(super) fn retire(&mut self, head: u16) -> Option<Chain> {
        let slot = &mut self.slots[usize::from(head)];
        assert_eq!(slot.state, State::Idle, "the chain with head {head} has not come back yet");
        slot.chain.take()
    }

    /// Books everything as come back, as after a reset of the device, and hands over the chains
    /// that are not prepared ones.
    pub(super) fn forget(&mut self) -> Vec<Chain> {
        self.added.clear();
        self.strays.clear();
        self.in_flight = 0;
        self.suspended = false;
        let mut forgotten = Vec::new();
        for slot in &mut self.slots {
            slot.state = State::Idle;
            slot.serial = None;
            forgotten.extend(slot.chain.take_if(|chain| !chain.prepared));
        }
        forgotten
    }
}
