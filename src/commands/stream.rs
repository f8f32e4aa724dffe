//! What streams of cross-domain contexts ask for: a channel, messages to the host service, eventfds and pipes, images. All of
//! it is done where it is read; what a service does not take at once goes on behind the command.

use std::rc::Rc;

use zerocopy::IntoBytes;

use super::{ContextKey, Gpu, Refusal};
use crate::buffer::HeldBuffer;
use crate::cross_domain::{ContextError, Layout, Rings};
use crate::protocol::cross_domain::{Attachment, MIN_RING_LEN, StreamCommand, parse};
use crate::resource::{Memory, ResourceKey};

impl Gpu {
    /// Carries a stream out. It is read as a whole first, so that nothing of a malformed one happens; of one with a command
    /// that is refused, those before it have happened.
    pub(super) fn cross_domain_stream(&mut self, key: ContextKey, stream: &[u8]) -> Result<(), Refusal> {
        for command in parse(stream)? {
            match command {
                // What a POLL asks for is granted by its fence.
                StreamCommand::Poll => {}
                StreamCommand::Init { query_ring, channel_ring, channel_type, dialect } => {
                    self.init(key, &Rings { query: query_ring, channel: channel_ring, channel_type, dialect })?;
                }
                StreamCommand::Send { attachments, data } => self.send(key, &attachments, data)?,
                StreamCommand::Write { id, data, hang_up } => {
                    self.channel_of(key)?.write(id, data, hang_up)?;
                    self.counters.items_written.bump();
                }
                StreamCommand::Watch { id } => self.channel_of(key)?.watch(id)?,
                StreamCommand::Unwatch { id } => self.channel_of(key)?.unwatch(id)?,
                StreamCommand::Image { width, height, fourcc, flags } => {
                    let layout = Layout::new(width, height, fourcc, flags, self.alignment);
                    self.lay_out(key, layout.map_err(ContextError::from)?)?;
                }
            }
        }
        Ok(())
    }

    fn channel_of(&mut self, key: ContextKey) -> Result<&mut crate::cross_domain::Context, ContextError> {
        self.contexts.get_mut(key).and_then(|row| row.cross_domain()).ok_or(ContextError::NoChannel)
    }

    fn init(&mut self, key: ContextKey, rings: &Rings) -> Result<(), Refusal> {
        let Some((attached, context)) = self.contexts.get_mut(key).and_then(|row| row.cross_domain_parts()) else {
            return Ok(());
        };
        let resources = &self.resources;
        let ring = |id: u32| {
            let key = resources.key(id).filter(|key| attached.contains(key))?;
            let Memory::Guest(blob) = &resources.get(key)?.memory else { return None };
            (blob.len() >= MIN_RING_LEN).then_some((key, blob.len()))
        };
        if let Some(channel) = context.init(rings, ring, &self.hosts, key)? {
            self.counters.channels_opened.bump();
            self.outbox.channels.push(channel);
        }
        Ok(())
    }

    fn send(&mut self, key: ContextKey, attachments: &[Attachment], data: &[u8]) -> Result<(), Refusal> {
        let Some((attached, context)) = self.contexts.get_mut(key).and_then(|row| row.cross_domain_parts()) else {
            return Ok(());
        };
        let resources = &self.resources;
        let buffer = |id: u32| -> Option<Rc<HeldBuffer>> {
            let key = resources.key(id).filter(|key| attached.contains(key))?;
            let Memory::Host(blob) = &resources.get(key)?.memory else { return None };
            Some(Rc::clone(&blob.buffer))
        };
        context.send(data, attachments, buffer, &self.ledger)?;
        self.counters.messages_sent.bump();
        self.counters.fds_sent.add(attachments.len() as u64);
        self.counters.bytes_sent.add(data.len() as u64);
        Ok(())
    }

    /// Answers in the query ring what an image would be like.
    fn lay_out(&mut self, key: ContextKey, layout: Layout) -> Result<(), Refusal> {
        let context = self.channel_of(key)?;
        let ring = context.query_ring().ok_or(ContextError::NoChannel)?;
        let requirements = context.image(layout)?;
        let written = self.write_ring(key, ring, requirements.as_bytes());
        if written { Ok(()) } else { Err(ContextError::RingGone.into()) }
    }

    /// Writes to the start of a ring; false where it is not the guest's to be written any more: detached, unreferenced,
    /// without backing, or no longer RAM.
    pub(super) fn write_ring(&mut self, key: ContextKey, ring: ResourceKey, bytes: &[u8]) -> bool {
        let Some(ram) = self.ram.clone() else { return false };
        if !self.contexts.get_mut(key).is_some_and(|row| row.resources.contains(&ring)) {
            return false;
        }
        match self.resources.get(ring).map(|resource| &resource.memory) {
            Some(Memory::Guest(blob)) => blob.backing.as_ref().is_some_and(|backing| backing.write(&*ram, bytes)),
            _ => false,
        }
    }
}
