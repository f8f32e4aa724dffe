//! 3D resources, which are the renderer's alone: RESOURCE_CREATE_3D, TRANSFER_TO_HOST_3D, TRANSFER_FROM_HOST_3D.

use smallvec::smallvec;

use super::{Claim, Claims, Gpu, Made, Refusal, Response, Step};
use crate::display::{View, ViewError};
use crate::limits::Quota;
use crate::protocol::command::Direction;
use crate::protocol::format::Format;
use crate::protocol::wire::{ResourceCreate3d, TransferHost3d};
use crate::renderer::{Resource3d, Transfer3d};
use crate::resource::{Memory, Rendered};
use crate::seams::{Area, Work};

/// The new resource.
pub(super) fn create_claims(resource: u32) -> Claims {
    smallvec![Claim::Resource(resource), Claim::Mapping(resource)]
}

/// The resource, and the order of the context's streams.
pub(super) fn transfer_claims(context: u32, resource: u32) -> Claims {
    smallvec![Claim::Context(context), Claim::Resource(resource)]
}

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
        let charge = self.ledger.charge(Quota::Resources, 1)?;
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
        self.making.insert(Made::Resource(id));
        let work = Work::Later(renderer.create_resource(request));
        Step::after(work, self, move |gpu, created| {
            gpu.making.remove(&Made::Resource(id));
            created?;
            let Resource3d { format, width, height, .. } = request;
            gpu.insert(id, Memory::Rendered(Rendered { id, format, width, height, least: 1, backing: None }), charge);
            Ok(Response::NoData)
        })
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
