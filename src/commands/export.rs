//! Resources that other devices of the VMM may use: RESOURCE_ASSIGN_UUID, and what the VMM finds under the name.

use super::{Gpu, Refusal, Response};
use crate::buffer::HostBuffer;
use crate::resource::Memory;

/// A resource that the guest has given a name (virtio 1.4, section 5.7.6.8, "exported object"), for another device of the
/// VMM that the guest gives the name to. It is as it was at the time of asking: the guest may give it up at any moment.
#[derive(Debug)]
#[non_exhaustive]
pub struct Exported {
    /// Its id.
    pub resource: u32,
    /// What it is made of.
    pub memory: ExportedMemory,
}

/// What an exported resource is made of.
#[derive(Debug)]
#[non_exhaustive]
pub enum ExportedMemory {
    /// A host buffer: a descriptor of its own, for whoever asks to keep.
    Host(HostBuffer),
    /// Guest memory: each piece's address and length in bytes; none while nothing is attached.
    Guest(Vec<(u64, u64)>),
    /// The device's own memory or the renderer's, which nobody else can reach.
    Private,
}

impl Gpu {
    /// A resource keeps its first name as long as it lives.
    pub(super) fn assign_uuid(&mut self, id: u32) -> Result<Response, Refusal> {
        let key = self.resources.key(id).ok_or(Refusal::UnknownResource { id })?;
        let Some(resource) = self.resources.get_mut(key) else { return Err(Refusal::UnknownResource { id }) };
        let uuid = *resource.uuid.get_or_insert_with(|| uuid::Uuid::new_v4().into_bytes());
        self.exports.insert(uuid, key);
        Ok(Response::Uuid(uuid))
    }

    /// What the guest has named so; `None` where there is nothing of that name.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn exported(&self, uuid: &[u8; 16]) -> std::io::Result<Option<Exported>> {
        let Some(key) = self.exports.get(uuid) else { return Ok(None) };
        let Some((resource, row)) = self.resources.entry(*key) else { return Ok(None) };
        let memory = match &row.memory {
            Memory::Host(blob) => ExportedMemory::Host(blob.buffer.try_clone()?),
            Memory::Guest(blob) => {
                let pieces = blob.backing.as_ref().map(|backing| backing.pieces_of(0..blob.size).collect());
                ExportedMemory::Guest(pieces.unwrap_or_default())
            }
            Memory::Image(_) | Memory::Own(_) | Memory::Rendered(_) => ExportedMemory::Private,
        };
        Ok(Some(Exported { resource, memory }))
    }
}
