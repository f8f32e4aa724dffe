//! What came from the host, on its way to the guest: descriptors become items, a message, a wake-up or a pipe's contents go
//! into the channel ring, and the fence that was waiting for it signals.

use std::os::fd::OwnedFd;

use super::{ContextKey, Gpu, Refusal};
use crate::buffer::{CLOSING, HeldBuffer, HostBuffer};
use crate::cross_domain::{Event, Item, Odd, Read, Readable, Received, WritePipe};
use crate::limits::{Charge, Quota};
use crate::observe::warn_limited;
use crate::protocol::cross_domain::{ChannelType, Identifier, id_type, read, receive};

impl Gpu {
    /// Takes an event of a channel. What comes for a context that is gone is closed.
    pub(crate) fn channel_event(&mut self, key: ContextKey, event: Event) {
        match event {
            Event::Message { data, files } => {
                self.counters.messages_received.bump();
                self.counters.bytes_received.add(data.len() as u64);
                self.counters.fds_received.add(files.len() as u64);
                let closing = self.closer.pending();
                let identifiers: Vec<Identifier> = files.into_iter().map(|file| self.item(key, file)).collect();
                self.deliver_for_credit(key, &receive(&identifiers, &data));
                if self.closer.pending() > closing.max(CLOSING) {
                    warn_limited!(?key, "a host service sends what takes too long to close: the channel is closed");
                    self.end_channel(key);
                }
            }
            Event::Read(Read { id, data, hang_up }) => {
                if hang_up && let Some(context) = self.contexts.get_mut(key).and_then(|row| row.cross_domain()) {
                    context.behind.extend(context.items.take(u64::from(id)).and_then(Item::close));
                }
                self.take_behind(key);
                let delivered = self.deliver_for_credit(key, &read(id, &data, hang_up));
                self.counters.items_read.add(u64::from(delivered));
            }
            Event::End { reason } => {
                if let Err(error) = reason {
                    warn_limited!(?key, %error, "a channel to a host service broke");
                }
                self.end_channel(key);
            }
        }
    }

    /// A message, and the fence that waits for one. Where the ring is gone the channel ends.
    fn deliver_for_credit(&mut self, key: ContextKey, message: &[u8]) -> bool {
        let delivered = self.deliver(key, message);
        if delivered {
            self.signal_credits(key, 1);
        } else {
            warn_limited!(?key, "the channel ring is gone or no longer guest memory: the channel is closed");
            self.end_channel(key);
        }
        delivered
    }

    /// The end of a file is a message without data; every fence that still waits has nothing else to wait for.
    fn end_channel(&mut self, key: ContextKey) {
        if let Some(context) = self.contexts.get_mut(key).and_then(|row| row.cross_domain()) {
            self.counters.channels_closed.add(u64::from(context.is_open()));
            context.end();
        }
        self.take_behind(key);
        if self.contexts.get_mut(key).is_some_and(|row| !row.credits.is_empty()) {
            self.deliver_end(key);
        }
        self.signal_credits(key, usize::MAX);
    }

    /// Tells a guest that asks for a message that none will come any more.
    pub(super) fn deliver_end(&mut self, key: ContextKey) {
        self.deliver(key, &receive(&[], &[]));
    }

    /// Writes a message into the channel ring; false where that is not the guest's to be written any more.
    fn deliver(&mut self, key: ContextKey, message: &[u8]) -> bool {
        let context = self.contexts.get_mut(key).and_then(|row| row.cross_domain());
        let ring = context.and_then(|context| context.ring());
        ring.is_some_and(|ring| self.write_ring(key, ring, message))
    }

    fn signal_credits(&mut self, key: ContextKey, most: usize) {
        if let Some(row) = self.contexts.get_mut(key) {
            let count = most.min(row.credits.len());
            self.outbox.signalled.extend(row.credits.drain(..count));
        }
    }

    /// Makes an item of a descriptor. One that is of no use to the guest is announced as unsupported and closed; the
    /// message and its other descriptors are none the worse for it.
    fn item(&mut self, key: ContextKey, file: OwnedFd) -> Identifier {
        match self.try_item(key, file) {
            Ok(identifier) => identifier,
            Err(refusal) => {
                if refusal.is_limit() {
                    self.counters.limit_refusals.bump();
                }
                warn_limited!(?key, %refusal, "a descriptor of a host service is not forwarded");
                Identifier { id: 0, kind: id_type::UNSUPPORTED, size: 0 }
            }
        }
    }

    fn try_item(&mut self, key: ContextKey, file: OwnedFd) -> Result<Identifier, Refusal> {
        // Whatever it is, it counts as long as it is open.
        let fd = match self.ledger.charge(Quota::Fds, 1) {
            Ok(fd) => fd,
            Err(reached) => {
                match Received::recognise(file) {
                    Ok(Received::Buffer(buffer)) => self.outbox.chores.extend(buffer.close()),
                    Ok(Received::Event(_) | Received::WritePipe(_)) => {}
                    Err(Odd { file, .. }) => self.closer.discard(file),
                }
                return Err(reached.into());
            }
        };
        let received = match Received::recognise(file) {
            Ok(received) => received,
            Err(Odd { error, file }) => {
                self.outbox.quarantine.push(self.closer.close(file, fd));
                return Err(error.into());
            }
        };
        let (item, kind, size) = match received {
            Received::Buffer(buffer) => self.buffer_item(buffer, fd)?,
            Received::Event(file) => (Item::Event(Readable::event(file, fd)), self.event_type(key), 0),
            Received::WritePipe(file) => {
                let context = self.contexts.get_mut(key).and_then(|row| row.cross_domain());
                let bounds = context.ok_or(Refusal::ItemLimit)?.bounds();
                (Item::WritePipe(WritePipe::new(&file, bounds, fd)?), id_type::WRITE_PIPE, 0)
            }
        };
        let inserted = match self.contexts.get_mut(key).and_then(|row| row.items()) {
            Some(items) => items.insert(item),
            None => Err(item),
        };
        match inserted {
            Ok(id) => Ok(Identifier { id, kind, size }),
            Err(item) => {
                self.outbox.chores.extend(item.close());
                Err(Refusal::ItemLimit)
            }
        }
    }

    fn buffer_item(&mut self, buffer: HostBuffer, fd: Charge) -> Result<(Item, u32, u32), Refusal> {
        let held = HeldBuffer::new(buffer, fd);
        match u32::try_from(held.len()) {
            Ok(size) => Ok((Item::Buffer(held), id_type::VIRTGPU_BLOB, size)),
            Err(_) => {
                self.outbox.chores.extend(held.close());
                Err(Refusal::Parameter("a buffer of 4 GiB or more"))
            }
        }
    }

    /// Closes the channels of a type, and says how many.
    pub(crate) fn hang_up(&mut self, channel_type: ChannelType) -> usize {
        let contexts = self.contexts.iter_mut().filter_map(|row| row.cross_domain());
        let mut closed = 0;
        for context in contexts.filter(|context| context.is_of(channel_type)) {
            closed += usize::from(context.hang_up());
            self.outbox.chores.append(&mut context.behind);
        }
        closed
    }

    /// What an eventfd is announced as to this guest.
    fn event_type(&mut self, key: ContextKey) -> u32 {
        let context = self.contexts.get_mut(key).and_then(|row| row.cross_domain());
        context.map_or(id_type::UNSUPPORTED, |context| context.dialect().event_type())
    }
}
