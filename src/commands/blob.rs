//! Blobs from creation to end: RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB; and the end of any resource,
//! RESOURCE_UNREF.

use std::rc::Rc;

use futures_util::FutureExt;
use smallvec::smallvec;
use tracing::debug;

use super::{Claim, Claims, Gpu, Refusal, Resource, Response, Step};
use crate::buffer::{BufferKind, HeldBuffer, HostBuffer};
use crate::cross_domain::{Item, Layout};
use crate::limits::{Charge, LimitReached, Quota};
use crate::observe::warn_limited;
use crate::protocol::wire::{
    BLOB_FLAG_CROSS_DEVICE, BLOB_FLAG_MAPPABLE, BLOB_FLAG_SHAREABLE, BLOB_MEM_GUEST, BLOB_MEM_HOST3D,
    BLOB_MEM_HOST3D_GUEST,
};
use crate::protocol::{CreateBlob, features};
use crate::resource::{Backing, GuestBlob, HostBlob, MapState, Mappable, Memory, Rendered, ResourceKey, Retired};
use crate::seams::{Caching, LocalFuture, Work};
use crate::window::{Cleared, MapError, PlaceFailure, Placed};

/// Ids of buffers that the VMM has offered have this bit, which no context's own ids have.
const OFFERED: u64 = 1 << 63;

/// The new resource, and for host memory the context whose object it is made of.
pub(super) fn create_claims(context: u32, create: &CreateBlob) -> Claims {
    let mut claims: Claims = smallvec![Claim::Resource(create.resource), Claim::Mapping(create.resource)];
    if create.memory != BLOB_MEM_GUEST {
        claims.push(Claim::Context(context));
    }
    claims
}

impl Gpu {
    pub(super) fn create_blob(&mut self, context: u32, create: CreateBlob) -> Result<Step, Refusal> {
        if !self.resources.is_free(create.resource) {
            return Err(Refusal::ResourceId { id: create.resource });
        }
        self.check_blob(&create)?;
        match create.memory {
            BLOB_MEM_GUEST => self.create_guest_blob(&create).map(Step::Done),
            BLOB_MEM_HOST3D => self.create_host_blob(context, &create),
            BLOB_MEM_HOST3D_GUEST => self.create_shadowed_blob(context, &create),
            _ => Err(Refusal::Parameter("blob_mem is none of the three")),
        }
    }

    fn check_blob(&self, create: &CreateBlob) -> Result<(), Refusal> {
        if create.flags & !(BLOB_FLAG_MAPPABLE | BLOB_FLAG_SHAREABLE | BLOB_FLAG_CROSS_DEVICE) != 0 {
            return Err(Refusal::Parameter("unknown blob_flags"));
        }
        if create.size == 0 {
            return Err(Refusal::Parameter("a blob has a size"));
        }
        if self.negotiated(features::BLOB_ALIGNMENT) && !create.size.is_multiple_of(self.alignment) {
            return Err(Refusal::Parameter("the size is no multiple of blob_alignment"));
        }
        Ok(())
    }

    fn create_guest_blob(&mut self, create: &CreateBlob) -> Result<Response, Refusal> {
        let charge = self.ledger.charge(Quota::Resources, 1)?;
        let backing = match create.entries.as_slice() {
            [] => None,
            entries => Some(Backing::new(entries, create.size, &*self.ram()?, &self.ledger)?),
        };
        self.insert(create.resource, Memory::Guest(GuestBlob { size: create.size, backing }), charge);
        Ok(Response::NoData)
    }

    fn create_host_blob(&mut self, context: u32, create: &CreateBlob) -> Result<Step, Refusal> {
        if !self.negotiated(features::VIRGL) {
            return Err(Refusal::NotNegotiated { feature: features::VIRGL });
        }
        if !create.entries.is_empty() {
            return Err(Refusal::Parameter("a blob of host memory has no entries"));
        }
        let key = self.contexts.key(context).ok_or(Refusal::UnknownContext { id: context })?;
        let source = if create.blob_id & OFFERED != 0 { None } else { self.contexts.get_mut(key) };
        if source.as_ref().is_some_and(|context| context.is_rendered()) {
            return self.create_rendered_blob(context, create);
        }
        let charge = self.ledger.charge(Quota::Resources, 1)?;
        let items = source.and_then(|context| context.items());
        if let Some(layout) = items.as_ref().and_then(|items| items.image(create.blob_id)) {
            return self.create_image_blob(create, layout, charge);
        }
        let found = match &items {
            Some(items) => match items.get(create.blob_id) {
                Some(Item::Buffer(buffer)) => Some(buffer),
                _ => None,
            },
            None => self.offered.get(&create.blob_id),
        };
        let found = found.ok_or(Refusal::UnknownObject { blob_id: create.blob_id })?;
        fits(create.size, found.kind(), found.len(), self.alignment)?;
        let item = match items {
            Some(items) => items.take(create.blob_id),
            None => self.offered.remove(&create.blob_id).map(Item::Buffer),
        };
        if let Some(Item::Buffer(buffer)) = item {
            self.insert_host_blob(create, buffer, charge);
        }
        Ok(Step::Done(Response::NoData))
    }

    /// Memory of the host for an image that the guest has asked about.
    fn create_image_blob(&mut self, create: &CreateBlob, layout: Layout, charge: Charge) -> Result<Step, Refusal> {
        fits(create.size, BufferKind::SharedMemory, layout.size, self.alignment)?;
        let (fd, bytes) = (self.ledger.charge(Quota::Fds, 1)?, self.ledger.charge(Quota::ImageBytes, layout.size)?);
        let buffer = HostBuffer::allocate(layout.size)?;
        self.insert_host_blob(create, HeldBuffer::allocated(buffer, fd, bytes), charge);
        Ok(Step::Done(Response::NoData))
    }

    fn insert_host_blob(&mut self, create: &CreateBlob, buffer: HeldBuffer, charge: Charge) {
        let window = mappable(create, Caching::Cached);
        let blob = Memory::Host(HostBlob { window, rendered: false, buffer: Rc::new(buffer) });
        self.insert(create.resource, blob, charge);
    }

    /// Takes a buffer of the VMM's in, for a guest to make a blob of.
    ///
    /// # Errors
    /// The limit of descriptors.
    pub(crate) fn offer(&mut self, buffer: HostBuffer) -> Result<u64, LimitReached> {
        let fd = self.ledger.charge(Quota::Fds, 1)?;
        self.last_offer += 1;
        let id = OFFERED | self.last_offer;
        self.offered.insert(id, HeldBuffer::new(buffer, fd));
        Ok(id)
    }
}

impl Gpu {
    /// Takes an offer back; false where it has been taken, or never was.
    pub(crate) fn withdraw(&mut self, id: u64) -> bool {
        let withdrawn = self.offered.remove(&id);
        let found = withdrawn.is_some();
        self.outbox.chores.extend(withdrawn.and_then(HeldBuffer::close));
        found
    }
}

/// A blob of host memory that is not mapped yet.
pub(super) fn mappable(create: &CreateBlob, caching: Caching) -> Mappable {
    let mappable = create.flags & BLOB_FLAG_MAPPABLE != 0;
    Mappable { size: create.size, mappable, caching, mapping: MapState::Unmapped }
}

/// A blob may be as large as its buffer rounded up to the alignment, because guests ask for whole pages.
pub(super) fn fits(size: u64, kind: BufferKind, len: u64, alignment: u64) -> Result<(), Refusal> {
    if len.checked_next_multiple_of(alignment).is_some_and(|most| size <= most) {
        return Ok(());
    }
    Err(Refusal::Oversize { size, kind, len })
}

/// A mapping alone: what else is done with the resource need not wait for it.
pub(super) fn map_claims(resource: u32) -> Claims {
    smallvec![Claim::Mapping(resource)]
}

impl Gpu {
    pub(super) fn map_blob(&mut self, resource: u32, offset: u64) -> Result<Step, Refusal> {
        let key = self.resources.key(resource).ok_or(Refusal::UnknownResource { id: resource })?;
        let row = self.resources.get_mut(key).ok_or(Refusal::UnknownResource { id: resource })?;
        let blob = row.memory.window_mut().ok_or(NO_HOST_BLOB)?;
        if !blob.mappable {
            return Err(Refusal::Parameter("the blob was not created for mapping"));
        }
        let window = self.window.as_ref().ok_or(Refusal::NoWindow)?;
        blob.mapping.begin_map()?;
        let (size, caching) = (blob.size, blob.caching);
        match &row.memory {
            Memory::Host(HostBlob { buffer, .. }) => {
                debug!(offset, size, kind = ?buffer.kind(), access = ?buffer.access(), "placing");
            }
            _ => debug!(offset, size, kind = "the renderer's own", "placing"),
        }
        let work = match (window.reserve(offset, size), &row.memory) {
            (Ok(range), Memory::Host(blob)) => range.place(&blob.buffer, size),
            (Ok(range), _) => match &self.renderer {
                Some(renderer) => range.place_own(|range| renderer.map_blob(resource, range)),
                None => Work::Done(Err(MapError::NoFixedRange.into())),
            },
            (Err(error), _) => Work::Done(Err(error.into())),
        };
        Step::after(work, self, move |gpu, placed| gpu.mapped(key, caching, placed))
    }

    fn mapped(
        &mut self,
        key: ResourceKey,
        caching: Caching,
        placed: Result<Placed, PlaceFailure>,
    ) -> Result<Response, Refusal> {
        let (placed, failure) = match placed {
            Ok(placed) => (Some(placed), None),
            Err(failure) => (None, Some(failure)),
        };
        if let Some(blob) = self.resources.get_mut(key).and_then(|resource| resource.memory.window_mut()) {
            blob.mapping.end_map(placed);
        }
        let Some(failure) = failure else {
            self.counters.maps.bump();
            return Ok(Response::MapInfo { map_info: caching.map_info() });
        };
        self.counters.map_failures.bump();
        self.counters.quarantined.add(u64::from(failure.quarantined));
        self.outbox.quarantine.extend(failure.rest);
        Err(failure.error.into())
    }

    pub(super) fn unmap_blob(&mut self, resource: u32) -> Result<Step, Refusal> {
        let key = self.resources.key(resource).ok_or(Refusal::UnknownResource { id: resource })?;
        let row = self.resources.get_mut(key).ok_or(Refusal::UnknownResource { id: resource })?;
        let blob = row.memory.window_mut().ok_or(NO_HOST_BLOB)?;
        let placed = blob.mapping.begin_unmap()?;
        debug!(size = blob.size, "taking back");
        let work = placed.clear();
        Step::after(work, self, move |gpu, cleared| {
            let filled = matches!(cleared, Cleared::Filled);
            if let Some(blob) = gpu.resources.get_mut(key).and_then(|resource| resource.memory.window_mut()) {
                blob.mapping.end_unmap(filled);
            }
            gpu.counters.unmaps.bump();
            match cleared {
                Cleared::Filled => Ok(Response::NoData),
                Cleared::Quarantined(rest) => Err(gpu.quarantined(rest)),
            }
        })
    }

    fn quarantined(&mut self, rest: Option<LocalFuture<()>>) -> Refusal {
        self.counters.quarantined.bump();
        self.outbox.quarantine.extend(rest);
        Refusal::Quarantined
    }
}

const NO_HOST_BLOB: Refusal = Refusal::Parameter("only blobs of host memory are mapped into the window");

/// Everything about the resource.
pub(super) fn unref_claims(resource: u32) -> Claims {
    smallvec![Claim::Resource(resource), Claim::Mapping(resource)]
}

impl Gpu {
    pub(super) fn unref(&mut self, id: u32) -> Result<Step, Refusal> {
        let key = self.resources.key(id).ok_or(Refusal::UnknownResource { id })?;
        let resource = self.resources.remove(key).ok_or(Refusal::UnknownResource { id })?;
        for context in &resource.contexts {
            if let Some(context) = self.contexts.get_mut(*context) {
                context.resources.remove(&key);
            }
        }
        self.scanouts.forget(key);
        if let Some(uuid) = resource.uuid {
            self.exports.remove(&uuid);
        }
        let told = if resource.memory.is_rendered() { self.forgotten(id) } else { None };
        match told {
            // The guest has another use for that memory once this is answered, and a stream may still be copying.
            Some(told) if matches!(resource.memory, Memory::Rendered(Rendered { backing: Some(_), .. })) => {
                Step::and_then(Work::Later(told), self, |gpu, _| gpu.retire(resource))
            }
            told => {
                self.outbox.chores.extend(told.map(|told| Box::pin(told.map(drop)) as LocalFuture<()>));
                self.retire(resource)
            }
        }
    }

    fn retire(&mut self, resource: Resource) -> Result<Step, Refusal> {
        Step::after(resource.retire(), self, |gpu, retired| gpu.retired(retired))
    }

    fn retired(&mut self, retired: Retired) -> Result<Response, Refusal> {
        if retired.quarantined { Err(self.quarantined(retired.rest)) } else { Ok(Response::NoData) }
    }

    /// Gives up everything that the guest has made, for a reset. What does not happen at once goes on in the futures.
    pub(crate) fn release_all(&mut self) -> Vec<LocalFuture<Retired>> {
        let offered = std::mem::take(&mut self.offered);
        self.outbox.chores.extend(offered.into_values().filter_map(HeldBuffer::close));
        self.features = 0;
        self.scanouts.reset();
        self.exports.clear();
        self.events.reset();
        // Resources first: with them goes the renderer's guest memory, and a context may take its time to end.
        let rendered = self.resources.iter().filter(|(_, row)| row.memory.is_rendered());
        let rendered: Vec<u32> = rendered.map(|(id, _)| id).collect();
        rendered.into_iter().for_each(|id| self.forget_rendered(id));
        self.destroy_contexts();
        let resources: Vec<Resource> = self.resources.drain().collect();
        let mut going_on = Vec::new();
        for resource in resources {
            match resource.retire() {
                Work::Done(retired) => self.released(retired),
                Work::Later(future) => going_on.push(future),
            }
        }
        going_on
    }

    /// Books a resource that a reset has given up.
    pub(crate) fn released(&mut self, retired: Retired) {
        if let Err(refusal) = self.retired(retired) {
            warn_limited!(%refusal, "a mapping outlives the reset");
        }
    }
}
