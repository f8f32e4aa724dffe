//! What a hostile or broken driver does to a split ring, on purpose and by name. A device must
//! survive each, and answer or park the queue.

use vm_memory::{Address, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::ledger::Chain;
use super::ring::{DESCRIPTOR, Descriptor, F_INDIRECT, F_NEXT};
use super::{DriverQueue, QueueFull, Segment, Token};

/// A chain that breaks one rule of virtio 1.4, 2.7 ("Message Framing", "The Virtqueue Descriptor
/// Table", "Indirect Descriptors"), and no other. Except where the variant says otherwise it is
/// the request and the response's room, one descriptor each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Misbehaviour {
    /// The last descriptor goes on at the head.
    Loop,
    /// The last descriptor goes on at an index one past the ring's table.
    NextOutOfRange,
    /// The last entry of an indirect table goes on at the table's first.
    IndirectLoop,
    /// The last entry of an indirect table goes on at an index one past the table.
    IndirectNextOutOfRange,
    /// The last entry of an indirect table is an indirect table.
    IndirectInsideIndirect,
    /// The length of an indirect table is half a descriptor too large.
    IndirectOddLength,
    /// An indirect table of zero bytes.
    IndirectEmpty,
    /// The descriptor of an indirect table goes on at another one of the ring.
    IndirectWithNext,
    /// An indirect table that lies outside RAM.
    IndirectOutsideRam,
    /// An indirect table whether it was negotiated or not.
    IndirectUnnegotiated,
    /// Buffers of zero bytes before, between and after the proper ones. The specification does
    /// not forbid them in words; an answer is as good as an error.
    ZeroLength,
    /// The request lies outside RAM.
    RequestOutsideRam,
    /// The response's room lies outside RAM.
    ResponseOutsideRam,
    /// The request starts inside RAM and ends outside.
    RequestPastRamEnd,
    /// The response's room starts inside RAM and ends outside.
    ResponsePastRamEnd,
    /// The request's address and length add up to more than 64 bits.
    AddressWraps,
    /// The request follows the response's room.
    ReadableAfterWritable,
    /// The response's room is given twice, with a length of 2^32 - 1 bytes each.
    LongerThan4Gib,
}

impl Misbehaviour {
    /// All of them, for tests that go through the list.
    pub const ALL: [Self; 18] = [
        Self::Loop,
        Self::NextOutOfRange,
        Self::IndirectLoop,
        Self::IndirectNextOutOfRange,
        Self::IndirectInsideIndirect,
        Self::IndirectOddLength,
        Self::IndirectEmpty,
        Self::IndirectWithNext,
        Self::IndirectOutsideRam,
        Self::IndirectUnnegotiated,
        Self::ZeroLength,
        Self::RequestOutsideRam,
        Self::ResponseOutsideRam,
        Self::RequestPastRamEnd,
        Self::ResponsePastRamEnd,
        Self::AddressWraps,
        Self::ReadableAfterWritable,
        Self::LongerThan4Gib,
    ];

    /// How many buffers the chain has.
    fn buffers(self) -> usize {
        match self {
            Self::ZeroLength => 5,
            Self::LongerThan4Gib => 3,
            _ => 2,
        }
    }

    /// Whether the chain lies in an indirect table.
    fn is_indirect(self) -> bool {
        matches!(
            self,
            Self::IndirectLoop
                | Self::IndirectNextOutOfRange
                | Self::IndirectInsideIndirect
                | Self::IndirectOddLength
                | Self::IndirectEmpty
                | Self::IndirectWithNext
                | Self::IndirectOutsideRam
                | Self::IndirectUnnegotiated
        )
    }
}

impl DriverQueue {
    /// Adds a chain that breaks the rule `how`; `request` and `response_len` must not be empty.
    /// Nothing else about the chain is wrong, so that a well-formed `request` shows what the
    /// device makes of its layout. It may come back as any other: the exactly-once check holds,
    /// with the room that the layout claims.
    ///
    /// # Errors
    ///
    /// As [`DriverQueue::add`].
    ///
    /// # Panics
    ///
    /// As [`DriverQueue::add`], but indirect descriptors need not be negotiated.
    pub fn add_misbehaving(
        &mut self,
        how: Misbehaviour,
        request: &[u8],
        response_len: usize,
    ) -> Result<Token, QueueFull> {
        assert!(!request.is_empty() && response_len > 0, "an empty buffer");
        let count = how.buffers();
        let direct = if how.is_indirect() { 0 } else { count };
        self.room_for(direct, count)?;

        let mut chain = Chain::default();
        let mut ask = Segment::readable(self.buffer(&mut chain, request), request.len() as u32);
        let room = vec![super::UNWRITTEN; response_len];
        let mut answer = Segment::writable(self.buffer(&mut chain, &room), response_len as u32);
        self.displace(how, &mut ask, &mut answer);
        let nothing = |segment: Segment| Segment { len: 0, ..segment };
        let segments = match how {
            Misbehaviour::ReadableAfterWritable => vec![answer, ask],
            Misbehaviour::LongerThan4Gib => vec![ask, answer, answer],
            Misbehaviour::ZeroLength => {
                vec![nothing(ask), ask, nothing(answer), answer, nothing(answer)]
            }
            _ => vec![ask, answer],
        };
        let head = self.link(segments, direct, chain);
        self.sabotage(how, head);
        Ok(self.make_available(head))
    }

    /// Publishes `head` at once, whatever it is, with all that was added before: an index out of
    /// the ring, a descriptor that belongs to no chain, or a chain that is outstanding already.
    /// It may come back once. Returns whether the device must be kicked.
    #[must_use = "the device sleeps until it is kicked"]
    pub fn publish_raw_head(&mut self, head: u16) -> bool {
        self.ledger.add_stray(head);
        self.ring.set_available(self.next_available.0, head);
        self.next_available += 1;
        self.publish()
    }

    /// Publishes an available index that is `jump` entries further than what was added: by up to
    /// the ring's size the device finds stale heads, by more it finds a broken ring, and a jump
    /// such as 65,535 goes back. The exactly-once check is off until [`DriverQueue::reset`].
    /// Returns whether the device must be kicked.
    #[must_use = "the device sleeps until it is kicked"]
    pub fn break_avail_index(&mut self, jump: u16) -> bool {
        self.ledger.suspend();
        self.next_available += jump;
        self.publish()
    }

    /// Moves the buffers that `how` wants elsewhere, or of another length.
    fn displace(&self, how: Misbehaviour, ask: &mut Segment, answer: &mut Segment) {
        let outside = self.ram.end();
        // The last byte of RAM, so that any longer buffer ends outside.
        let last = outside.unchecked_sub(1);
        match how {
            Misbehaviour::RequestOutsideRam => ask.addr = outside,
            Misbehaviour::ResponseOutsideRam => answer.addr = outside,
            Misbehaviour::RequestPastRamEnd => (ask.addr, ask.len) = (last, ask.len.max(2)),
            Misbehaviour::ResponsePastRamEnd => {
                (answer.addr, answer.len) = (last, answer.len.max(2));
            }
            Misbehaviour::AddressWraps => {
                (ask.addr, ask.len) = (GuestAddress(u64::MAX), ask.len.max(2));
            }
            Misbehaviour::LongerThan4Gib => answer.len = u32::MAX,
            _ => {}
        }
    }

    /// Rewrites the descriptors that `how` wants broken, of a chain that the device cannot see
    /// yet.
    fn sabotage(&self, how: Misbehaviour, head: u16) {
        let chain = self.ledger.chain(head);
        let first = self.ring.descriptor_at(head);
        let last = chain.descriptors.last().copied().unwrap_or(head);
        let last = self.ring.descriptor_at(last);
        let (table, count) = chain.table.unwrap_or((first, 1));
        let last_entry = table.unchecked_add(u64::from(count - 1) * u64::from(DESCRIPTOR));
        let go_on_at = |index: u16| {
            move |descriptor: &mut Descriptor| {
                descriptor.flags |= F_NEXT;
                descriptor.next = index.into();
            }
        };
        match how {
            Misbehaviour::Loop => self.edit(last, go_on_at(head)),
            Misbehaviour::NextOutOfRange => self.edit(last, go_on_at(self.size())),
            Misbehaviour::IndirectLoop => self.edit(last_entry, go_on_at(0)),
            Misbehaviour::IndirectNextOutOfRange => self.edit(last_entry, go_on_at(count)),
            Misbehaviour::IndirectInsideIndirect => self.edit(last_entry, |entry| {
                let len = u32::from(count) * DESCRIPTOR;
                *entry = Descriptor::new(table, len, F_INDIRECT, 0);
            }),
            Misbehaviour::IndirectOddLength => self.edit(first, |indirect| {
                indirect.len += DESCRIPTOR / 2;
            }),
            Misbehaviour::IndirectEmpty => self.edit(first, |indirect| indirect.len = 0.into()),
            Misbehaviour::IndirectWithNext => {
                // Any descriptor that is not the head: what it holds does not matter.
                self.edit(first, go_on_at((head + 1) % self.size()));
            }
            Misbehaviour::IndirectOutsideRam => {
                let outside = self.ram.end().raw_value();
                self.edit(first, |indirect| indirect.addr = outside.into());
            }
            _ => {}
        }
    }

    fn edit(&self, at: GuestAddress, change: impl FnOnce(&mut Descriptor)) {
        let bytes = self.ram.read(at, DESCRIPTOR as usize);
        let mut descriptor = Descriptor::read_from_bytes(&bytes).expect("as many bytes as a descriptor has");
        change(&mut descriptor);
        self.ram.write(at, descriptor.as_bytes());
    }
}
