//! Resources of the renderer's: RESOURCE_CREATE_3D, its host objects as blobs, TRANSFER_TO_HOST_3D, TRANSFER_FROM_HOST_3D.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use futures_util::FutureExt;
use smallvec::smallvec;

use super::blob::{fits, mappable};
use super::{Claim, Claims, Gpu, Made, Refusal, Response, Step};
use crate::buffer::{HeldBuffer, HostBuffer};
use crate::display::{View, ViewError};
use crate::limits::{Charge, Quota};
use crate::protocol::command::Direction;
use crate::protocol::format::{Format, PIXEL};
use crate::protocol::wire::{ResourceCreate3d, TransferHost3d};
use crate::protocol::{CreateBlob, features};
use crate::renderer::{BlobMemory, BlobRequest, Created, RenderedBlob, RendererError, Replied, Resource3d, Transfer3d};
use crate::resource::{Backing, HostBlob, Memory, Rendered};
use crate::seams::{Area, LocalFuture, Work};

/// The new resource.
pub(super) fn create_claims(resource: u32) -> Claims {
    smallvec![Claim::Resource(resource), Claim::Mapping(resource)]
}

/// The resource, and the order of the context's streams.
pub(super) fn transfer_claims(context: u32, resource: u32) -> Claims {
    smallvec![Claim::Context(context), Claim::Resource(resource)]
}

/// What a 3D resource takes, as far as the numbers tell: four bytes for each pixel, layer, level and sample. Those of a buffer
/// say its length in `width`.
fn bytes_of(request: &Resource3d) -> u64 {
    let Resource3d { target, width, height, depth, array_size, last_level, samples, .. } = *request;
    if target == BUFFER {
        return u64::from(width);
    }
    let factors = [width, height, depth, array_size, samples, PIXEL].map(|factor| u64::from(factor.max(1)));
    let level = factors.into_iter().fold(1, u64::saturating_mul);
    // All further levels together are smaller than the first.
    if last_level == 0 { level } else { level.saturating_mul(2) }
}

/// `PIPE_BUFFER`, in Mesa's `p_defines.h`, whose numbers 3D resources are described in.
const BUFFER: u32 = 0;

impl Rendered {
    /// The format of its pixels, where displays know it.
    ///
    /// # Errors
    /// [`ViewError::Format`].
    pub(super) fn format(&self) -> Result<Format, ViewError> {
        Format::from_wire(self.format).ok_or(ViewError::Format { format: self.format })
    }

    /// A part of it that a scanout shows.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(super) fn view(&self, shown: Area) -> Result<View, ViewError> {
        View::packed(self.format, self.width, self.height, shown)
    }
}

impl Gpu {
    pub(super) fn create_3d(&mut self, create: &ResourceCreate3d) -> Result<Step, Refusal> {
        let id = create.resource_id.get();
        if !self.resources.is_free(id) {
            return Err(Refusal::ResourceId { id });
        }
        let renderer = self.renderer.clone().ok_or(Refusal::NoRenderer)?;
        let request = Resource3d {
            resource: id,
            target: create.target.get(),
            format: create.format.get(),
            bind: create.bind.get(),
            width: create.width.get(),
            height: create.height.get(),
            depth: create.depth.get(),
            array_size: create.array_size.get(),
            last_level: create.last_level.get(),
            samples: create.nr_samples.get(),
            flags: create.flags.get(),
        };
        let charges = self.charge_rendered(bytes_of(&request))?;
        self.making.insert(Made::Resource(id));
        let work = Work::Later(renderer.create_resource(request));
        Step::after(work, self, move |gpu, created| {
            let Resource3d { format, width, height, .. } = request;
            let picture = None;
            let rendered = Rendered { id, format, width, height, least: 1, backing: None, picture };
            gpu.rendered(id, created, charges, |_, ()| Ok(Memory::Rendered(rendered)))
        })
    }

    /// For a resource of the renderer's: one of all resources, and its bytes.
    fn charge_rendered(&self, bytes: u64) -> Result<[Charge; 2], Refusal> {
        Ok([self.ledger.charge(Quota::Resources, 1)?, self.ledger.charge(Quota::RenderedBytes, bytes)?])
    }

    /// The renderer has made a resource, or refused to: books it as what `memory` makes of it, with the descriptors that the
    /// renderer keeps for it.
    fn rendered<T>(
        &mut self,
        id: u32,
        created: Result<Created<T>, RendererError>,
        [charge, bytes]: [Charge; 2],
        memory: impl FnOnce(&mut Self, T) -> Result<Memory, Refusal>,
    ) -> Result<Response, Refusal> {
        self.making.remove(&Made::Resource(id));
        let Created { made, descriptors } = created?;
        let booked = memory(self, made).and_then(|memory| Ok((memory, self.ledger.charge(Quota::Fds, descriptors)?)));
        match booked {
            Ok((memory, kept)) => {
                let key = self.insert(id, memory, charge);
                if let Some(row) = self.resources.get_mut(key) {
                    row.rendering = Some([bytes, kept]);
                }
                Ok(Response::NoData)
            }
            Err(refusal) => {
                self.forget_rendered(id);
                Err(refusal)
            }
        }
    }

    /// A host object of the renderer's as a blob.
    pub(super) fn create_rendered_blob(&mut self, context: u32, create: &CreateBlob) -> Result<Step, Refusal> {
        let renderer = self.renderer.clone().ok_or(Refusal::UnknownObject { blob_id: create.blob_id })?;
        let charges = self.charge_rendered(create.size)?;
        let fd = self.ledger.charge(Quota::Fds, 1)?;
        let CreateBlob { resource, flags, blob_id, size, .. } = *create;
        let request = BlobRequest { context, resource, blob_id, size, flags };
        let create = CreateBlob { entries: Vec::new(), ..*create };
        self.making.insert(Made::Resource(resource));
        let work = Work::Later(renderer.create_blob(request));
        Step::after(work, self, move |gpu, created| {
            gpu.rendered(resource, created, charges, |gpu, RenderedBlob { memory, caching }| {
                let window = mappable(&create, caching);
                Ok(match memory {
                    BlobMemory::File(file) => {
                        let buffer = Rc::new(gpu.take_rendered(&create, file, fd)?);
                        Memory::Host(HostBlob { window, rendered: true, buffer })
                    }
                    BlobMemory::Own => {
                        drop(fd);
                        Memory::Own(window)
                    }
                })
            })
        })
    }

    /// A host object of the renderer's that guest memory shadows: transfers copy between the two, and nothing is mapped.
    pub(super) fn create_shadowed_blob(&mut self, context: u32, create: &CreateBlob) -> Result<Step, Refusal> {
        if !self.negotiated(features::VIRGL) {
            return Err(Refusal::NotNegotiated { feature: features::VIRGL });
        }
        let key = self.contexts.key(context).ok_or(Refusal::UnknownContext { id: context })?;
        let CreateBlob { resource: id, flags, blob_id, size, .. } = *create;
        let rendered = self.contexts.get(key).is_some_and(|context| context.is_rendered());
        let renderer = self.renderer.clone().filter(|_| rendered);
        let renderer = renderer.ok_or(Refusal::UnknownObject { blob_id })?;
        let charges = self.charge_rendered(size)?;
        let ram = self.ram()?;
        let backing = match create.entries.as_slice() {
            [] => None,
            entries => Some(Backing::new(entries, size, &*ram, &self.ledger)?),
        };
        let shared = backing.as_ref().map(|backing| backing.share(&*ram, &self.lease));
        self.making.insert(Made::Resource(id));
        let request = BlobRequest { context, resource: id, blob_id, size, flags };
        let work = Work::Later(renderer.create_shadowed_blob(request, shared));
        Step::after(work, self, move |gpu, created| {
            let blob = Rendered { id, format: 0, width: 0, height: 0, least: size, backing, picture: None };
            gpu.rendered(id, created, charges, |_, ()| Ok(Memory::Rendered(blob)))
        })
    }

    /// A buffer that the renderer has exported, where it is one and large enough.
    fn take_rendered(&mut self, create: &CreateBlob, file: OwnedFd, fd: Charge) -> Result<HeldBuffer, Refusal> {
        let held = self.take_file(file, fd)?;
        if let Err(refusal) = fits(create.size, held.kind(), held.len(), self.alignment) {
            self.outbox.chores.extend(held.close());
            return Err(refusal);
        }
        Ok(held)
    }

    /// A descriptor of the renderer's, where it is a buffer's.
    pub(super) fn take_file(&mut self, file: OwnedFd, fd: Charge) -> Result<HeldBuffer, Refusal> {
        match HostBuffer::recognise(file) {
            Ok(buffer) => Ok(HeldBuffer::new(buffer, fd)),
            Err((error, file)) => {
                self.outbox.quarantine.push(self.closer.close(file, fd));
                Err(error.into())
            }
        }
    }

    /// Has the renderer forget a resource; ready when it has.
    pub(super) fn forgotten(&self, resource: u32) -> Option<Replied<()>> {
        self.renderer.as_ref().map(|renderer| renderer.destroy_resource(resource))
    }

    /// The same, and nobody waits for it but a reset.
    pub(super) fn forget_rendered(&mut self, resource: u32) {
        let told = self.forgotten(resource);
        self.outbox.chores.extend(told.map(|told| Box::pin(told.map(drop)) as LocalFuture<()>));
    }

    pub(super) fn transfer_3d(
        &mut self,
        context: u32,
        transfer: &TransferHost3d,
        direction: Direction,
    ) -> Result<Step, Refusal> {
        let (_, resource) = self.resource(transfer.resource_id.get())?;
        if !resource.memory.is_rendered() {
            return Err(Refusal::Parameter("the resource is not the renderer's"));
        }
        let renderer = self.renderer.clone().ok_or(Refusal::NoRenderer)?;
        if context != 0 && self.contexts.key(context).is_none() {
            return Err(Refusal::UnknownContext { id: context });
        }
        let region = transfer.region;
        let request = Transfer3d {
            context,
            resource: transfer.resource_id.get(),
            direction,
            origin: [region.x, region.y, region.z].map(|value| value.get()),
            size: [region.w, region.h, region.d].map(|value| value.get()),
            offset: transfer.offset.get(),
            level: transfer.level.get(),
            stride: transfer.stride.get(),
            layer_stride: transfer.layer_stride.get(),
        };
        let work = Work::Later(renderer.transfer(request));
        Step::after(work, self, |_, transferred| Ok(transferred.map(|()| Response::NoData)?))
    }
}
