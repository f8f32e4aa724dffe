//! What a host service sent, on its way to the guest: descriptors become items, the message goes into the channel ring,
//! and the fence that was waiting for it signals.

use std::os::fd::OwnedFd;

use super::{ContextKey, Gpu, Refusal};
use crate::buffer::{HeldBuffer, HostBuffer};
use crate::cross_domain::Event;
use crate::limits::Quota;
use crate::observe::warn_limited;
use crate::protocol::cross_domain::{Identifier, id_type, receive};
use crate::resource::Memory;

impl Gpu {
    /// Takes an event of a channel. What comes for a context that is gone is closed.
    pub(crate) fn channel_event(&mut self, key: ContextKey, event: Event) {
        match event {
            Event::Message { data, files } => {
                self.counters.messages_received.bump();
                self.counters.bytes_received.add(data.len() as u64);
                self.counters.fds_received.add(files.len() as u64);
                let identifiers: Vec<Identifier> = files.into_iter().map(|file| self.item(key, file)).collect();
                if self.deliver(key, &receive(&identifiers, &data)) {
                    self.signal_credits(key, 1);
                } else {
                    warn_limited!(?key, "the channel ring is gone or no longer guest memory: the channel is closed");
                    self.end_channel(key);
                }
            }
            Event::End { reason } => {
                if let Err(error) = reason {
                    warn_limited!(?key, %error, "a channel to a host service broke");
                }
                self.end_channel(key);
            }
        }
    }

    /// The end of a file is a message without data; every fence that still waits has nothing else to wait for.
    fn end_channel(&mut self, key: ContextKey) {
        if let Some(context) = self.contexts.get_mut(key).and_then(|row| row.cross_domain()) {
            context.end();
            self.counters.channels_closed.bump();
        }
        if self.contexts.get_mut(key).is_some_and(|row| !row.credits.is_empty()) {
            self.deliver_end(key);
        }
        self.signal_credits(key, usize::MAX);
    }

    /// Tells a guest that asks for a message that none will come any more.
    pub(super) fn deliver_end(&mut self, key: ContextKey) {
        self.deliver(key, &receive(&[], &[]));
    }

    /// Writes a message into the channel ring; false where the ring is not the guest's to be written any more: detached,
    /// unreferenced, without backing, or no longer RAM.
    fn deliver(&mut self, key: ContextKey, message: &[u8]) -> bool {
        let Some(ram) = self.ram.clone() else { return false };
        let Some(row) = self.contexts.get_mut(key) else { return false };
        let ring = row.cross_domain().and_then(|context| context.ring());
        let Some(ring) = ring.filter(|ring| row.resources.contains(ring)) else { return false };
        match self.resources.get(ring).map(|resource| &resource.memory) {
            Some(Memory::Guest(blob)) => blob.backing.as_ref().is_some_and(|backing| backing.write(&*ram, message)),
            _ => false,
        }
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
        let buffer = HostBuffer::recognise(file).map_err(|(error, closing)| {
            self.outbox.chores.extend(closing);
            error
        })?;
        let fd = match self.ledger.charge(Quota::Fds, 1) {
            Ok(fd) => fd,
            Err(reached) => {
                self.outbox.chores.extend(buffer.close());
                return Err(reached.into());
            }
        };
        let held = HeldBuffer::new(buffer, fd);
        let Ok(size) = u32::try_from(held.len()) else {
            self.outbox.chores.extend(held.close());
            return Err(Refusal::Parameter("a buffer of 4 GiB or more"));
        };
        let Some(items) = self.contexts.get_mut(key).and_then(|row| row.items()) else {
            self.outbox.chores.extend(held.close());
            return Err(Refusal::ItemLimit);
        };
        match items.insert(held) {
            Ok(id) => Ok(Identifier { id, kind: id_type::VIRTGPU_BLOB, size }),
            Err(held) => {
                self.outbox.chores.extend(held.close());
                Err(Refusal::ItemLimit)
            }
        }
    }
}
