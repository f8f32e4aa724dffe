//! Blobs from creation to end: RESOURCE_CREATE_BLOB, RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB; and the end of any resource,
//! RESOURCE_UNREF.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use smallvec::smallvec;
use tracing::debug;

use super::{Claim, Claims, Gpu, Made, Refusal, Resource, Response, Step};
use crate::buffer::{BufferKind, HeldBuffer, HostBuffer};
use crate::cross_domain::{Item, Layout};
use crate::limits::{Charge, LimitReached, Quota};
use crate::observe::warn_limited;
use crate::protocol::wire::{
    BLOB_FLAG_CROSS_DEVICE, BLOB_FLAG_MAPPABLE, BLOB_FLAG_SHAREABLE, BLOB_MEM_GUEST, BLOB_MEM_HOST3D,
    BLOB_MEM_HOST3D_GUEST, MAP_CACHE_CACHED,
};
use crate::protocol::{CreateBlob, features};
use crate::renderer::BlobRequest;
use crate::resource::{Backing, GuestBlob, HostBlob, MapState, Memory, Rendered, ResourceKey, Retired};
use crate::seams::{LocalFuture, Work};
use crate::window::{Cleared, PlaceFailure, Placed};

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
        let charge = self.ledger.charge(Quota::Resources, 1)?;
        match create.memory {
            BLOB_MEM_GUEST => self.create_guest_blob(&create, charge).map(Step::Done),
            BLOB_MEM_HOST3D => self.create_host_blob(context, create, charge),
            BLOB_MEM_HOST3D_GUEST => self.create_shadowed_blob(context, &create, charge),
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

    fn create_guest_blob(&mut self, create: &CreateBlob, charge: Charge) -> Result<Response, Refusal> {
        let backing = match create.entries.as_slice() {
            [] => None,
            entries => Some(Backing::new(entries, create.size, &*self.ram()?, &self.ledger)?),
        };
        self.insert(create.resource, Memory::Guest(GuestBlob { size: create.size, backing }), charge);
        Ok(Response::NoData)
    }

    fn create_host_blob(&mut self, context: u32, create: CreateBlob, charge: Charge) -> Result<Step, Refusal> {
        if !self.negotiated(features::VIRGL) {
            return Err(Refusal::NotNegotiated { feature: features::VIRGL });
        }
        if !create.entries.is_empty() {
            return Err(Refusal::Parameter("a blob of host memory has no entries"));
        }
        let key = self.contexts.key(context).ok_or(Refusal::UnknownContext { id: context })?;
        let source = if create.blob_id & OFFERED != 0 { None } else { self.contexts.get_mut(key) };
        if source.as_ref().is_some_and(|context| context.is_rendered()) {
            return self.create_rendered_blob(context, &create, charge);
        }
        let items = source.and_then(|context| context.items());
        if let Some(layout) = items.as_ref().and_then(|items| items.image(create.blob_id)) {
            return self.create_image_blob(&create, layout, charge);
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
            self.insert_host_blob(&create, buffer, charge, false);
        }
        Ok(Step::Done(Response::NoData))
    }

    /// Memory of the host for an image that the guest has asked about.
    fn create_image_blob(&mut self, create: &CreateBlob, layout: Layout, charge: Charge) -> Result<Step, Refusal> {
        fits(create.size, BufferKind::SharedMemory, layout.size, self.alignment)?;
        let (fd, bytes) = (self.ledger.charge(Quota::Fds, 1)?, self.ledger.charge(Quota::ImageBytes, layout.size)?);
        let buffer = HostBuffer::allocate(layout.size)?;
        self.insert_host_blob(create, HeldBuffer::allocated(buffer, fd, bytes), charge, false);
        Ok(Step::Done(Response::NoData))
    }

    fn create_rendered_blob(&mut self, context: u32, create: &CreateBlob, charge: Charge) -> Result<Step, Refusal> {
        let renderer = self.renderer.clone().ok_or(Refusal::UnknownObject { blob_id: create.blob_id })?;
        let fd = self.ledger.charge(Quota::Fds, 1)?;
        let CreateBlob { resource, flags, blob_id, size, .. } = *create;
        let request = BlobRequest { context, resource, blob_id, size, flags };
        let create = CreateBlob { entries: Vec::new(), ..*create };
        self.making.insert(Made::Resource(resource));
        let work = Work::Later(renderer.create_blob(request));
        Step::after(work, self, move |gpu, file| {
            gpu.making.remove(&Made::Resource(create.resource));
            match gpu.take_rendered(&create, file?, fd) {
                Ok(buffer) => gpu.insert_host_blob(&create, buffer, charge, true),
                Err(refusal) => {
                    gpu.forget_rendered(create.resource);
                    return Err(refusal);
                }
            }
            Ok(Response::NoData)
        })
    }

    /// A host object of the renderer's that guest memory shadows: transfers copy between the two, and nothing is mapped.
    fn create_shadowed_blob(&mut self, context: u32, create: &CreateBlob, charge: Charge) -> Result<Step, Refusal> {
        if !self.negotiated(features::VIRGL) {
            return Err(Refusal::NotNegotiated { feature: features::VIRGL });
        }
        let key = self.contexts.key(context).ok_or(Refusal::UnknownContext { id: context })?;
        let CreateBlob { resource, flags, blob_id, size, .. } = *create;
        let rendered = self.contexts.get(key).is_some_and(|context| context.is_rendered());
        let renderer = self.renderer.clone().filter(|_| rendered);
        let renderer = renderer.ok_or(Refusal::UnknownObject { blob_id })?;
        let ram = self.ram()?;
        let backing = match create.entries.as_slice() {
            [] => None,
            entries => Some(Backing::new(entries, size, &*ram, &self.ledger)?),
        };
        let shared = backing.as_ref().map(|backing| backing.share(&*ram, &self.lease));
        self.making.insert(Made::Resource(resource));
        let request = BlobRequest { context, resource, blob_id, size, flags };
        let work = Work::Later(renderer.create_shadowed_blob(request, shared));
        Step::after(work, self, move |gpu, created| {
            gpu.making.remove(&Made::Resource(resource));
            created?;
            let blob = Rendered { id: resource, format: 0, width: 0, height: 0, least: size, backing };
            gpu.insert(resource, Memory::Rendered(blob), charge);
            Ok(Response::NoData)
        })
    }

    /// A buffer that the renderer has exported, where it is one and large enough.
    fn take_rendered(&mut self, create: &CreateBlob, file: OwnedFd, fd: Charge) -> Result<HeldBuffer, Refusal> {
        let buffer = match HostBuffer::recognise(file) {
            Ok(buffer) => buffer,
            Err((error, file)) => {
                self.outbox.quarantine.push(self.closer.close(file, fd));
                return Err(error.into());
            }
        };
        let held = HeldBuffer::new(buffer, fd);
        if let Err(refusal) = fits(create.size, held.kind(), held.len(), self.alignment) {
            self.outbox.chores.extend(held.close());
            return Err(refusal);
        }
        Ok(held)
    }

    fn insert_host_blob(&mut self, create: &CreateBlob, buffer: HeldBuffer, charge: Charge, rendered: bool) {
        let blob = Memory::Host(HostBlob {
            size: create.size,
            mappable: create.flags & BLOB_FLAG_MAPPABLE != 0,
            rendered,
            buffer: Rc::new(buffer),
            mapping: MapState::Unmapped,
        });
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

/// A blob may be as large as its buffer rounded up to the alignment, because guests ask for whole pages.
fn fits(size: u64, kind: BufferKind, len: u64, alignment: u64) -> Result<(), Refusal> {
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
        let (key, blob) = host_blob(&mut self.resources, resource)?;
        if !blob.mappable {
            return Err(Refusal::Parameter("the blob was not created for mapping"));
        }
        let window = self.window.as_ref().ok_or(Refusal::NoWindow)?;
        blob.mapping.begin_map()?;
        let (kind, access) = (blob.buffer.kind(), blob.buffer.access());
        debug!(offset, size = blob.size, ?kind, ?access, "placing");
        let work = match window.reserve(offset, blob.size) {
            Ok(range) => range.place(&blob.buffer, blob.size),
            Err(error) => Work::Done(Err(error.into())),
        };
        Step::after(work, self, move |gpu, placed| gpu.mapped(key, placed))
    }

    fn mapped(&mut self, key: ResourceKey, placed: Result<Placed, PlaceFailure>) -> Result<Response, Refusal> {
        let (placed, failure) = match placed {
            Ok(placed) => (Some(placed), None),
            Err(failure) => (None, Some(failure)),
        };
        if let Some(Memory::Host(blob)) = self.resources.get_mut(key).map(|resource| &mut resource.memory) {
            blob.mapping.end_map(placed);
        }
        let Some(failure) = failure else {
            self.counters.maps.bump();
            return Ok(Response::MapInfo { map_info: MAP_CACHE_CACHED });
        };
        self.counters.map_failures.bump();
        self.counters.quarantined.add(u64::from(failure.quarantined));
        self.outbox.quarantine.extend(failure.rest);
        Err(failure.error.into())
    }

    pub(super) fn unmap_blob(&mut self, resource: u32) -> Result<Step, Refusal> {
        let (key, blob) = host_blob(&mut self.resources, resource)?;
        let placed = blob.mapping.begin_unmap()?;
        debug!(size = blob.size, "taking back");
        let work = placed.clear();
        Step::after(work, self, move |gpu, cleared| {
            let filled = matches!(cleared, Cleared::Filled);
            if let Some(Memory::Host(blob)) = gpu.resources.get_mut(key).map(|resource| &mut resource.memory) {
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

fn host_blob(
    resources: &mut super::Table<ResourceKey, Resource>,
    id: u32,
) -> Result<(ResourceKey, &mut HostBlob), Refusal> {
    let unknown = Refusal::UnknownResource { id };
    let key = resources.key(id).ok_or(unknown)?;
    match resources.get_mut(key).map(|resource| &mut resource.memory) {
        Some(Memory::Host(blob)) => Ok((key, blob)),
        _ => Err(Refusal::Parameter("only blobs of host memory are mapped into the window")),
    }
}

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
        if resource.memory.is_rendered() {
            self.forget_rendered(id);
        }
        let work = resource.retire();
        Step::after(work, self, |gpu, retired| gpu.retired(retired))
    }

    fn retired(&mut self, retired: Retired) -> Result<Response, Refusal> {
        if retired.quarantined { Err(self.quarantined(retired.rest)) } else { Ok(Response::NoData) }
    }

    pub(super) fn forget_rendered(&mut self, resource: u32) {
        if let Some(renderer) = &self.renderer {
            let told = renderer.destroy_resource(resource);
            self.outbox.chores.push(Box::pin(async move { drop(told.await) }));
        }
    }

    /// Gives up everything that the guest has made, for a reset. What does not happen at once goes on in the futures.
    pub(crate) fn release_all(&mut self) -> Vec<LocalFuture<Retired>> {
        let offered = std::mem::take(&mut self.offered);
        self.outbox.chores.extend(offered.into_values().filter_map(HeldBuffer::close));
        self.features = 0;
        self.scanouts.reset();
        self.exports.clear();
        self.events.reset();
        self.destroy_contexts();
        let rendered = self.resources.iter().filter(|(_, row)| row.memory.is_rendered());
        let rendered: Vec<u32> = rendered.map(|(id, _)| id).collect();
        rendered.into_iter().for_each(|id| self.forget_rendered(id));
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
