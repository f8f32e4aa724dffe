//! 2D resources: RESOURCE_CREATE_2D, TRANSFER_TO_HOST_2D; and what stands behind any resource: RESOURCE_ATTACH_BACKING,
//! RESOURCE_DETACH_BACKING.

use std::rc::Rc;

use smallvec::{SmallVec, smallvec};

use super::{Claim, Claims, Gpu, Refusal, Resource, Response, Step, Turn};
use crate::display::{area, checked, inside};
use crate::limits::{Charge, Quota};
use crate::protocol::format::PIXEL;
use crate::protocol::wire::{MemEntry, ResourceCreate2d, TransferToHost2d};
use crate::resource::{Backing, GuestRam, Image, Memory, ResourceKey};
use crate::seams::{Area, Work};
use crate::sys::pages::Pages;

/// The resource, and its backing.
pub(super) fn claims(resource: u32) -> Claims {
    smallvec![Claim::Resource(resource)]
}

/// A transfer that is under way.
struct Transfer {
    resource: ResourceKey,
    area: Area,
    /// Where its first pixel lies in the backing.
    from: u64,
    /// How many of its bytes have been copied.
    done: u64,
}

impl Gpu {
    pub(super) fn create_2d(&mut self, create: &ResourceCreate2d) -> Result<Response, Refusal> {
        let id = create.resource_id.get();
        if !self.resources.is_free(id) {
            return Err(Refusal::ResourceId { id });
        }
        let (width, height) = (create.width.get(), create.height.get());
        let format = checked(create.format.get(), width, height)?;
        let size = Image::size(width, height);
        let charge = self.ledger.charge(Quota::Resources, 1)?;
        let bytes = self.ledger.charge(Quota::ImageBytes, size)?;
        let len = usize::try_from(size).map_err(|_| Refusal::NoMemory { bytes: size })?;
        let pixels = Pages::zeroed(len).map_err(|_| Refusal::NoMemory { bytes: size })?;
        let image = Image { format, width, height, pixels, backing: None, charge: bytes };
        self.insert(id, Memory::Image(image), charge);
        Ok(Response::NoData)
    }

    /// Adds a resource under a free id.
    pub(super) fn insert(&mut self, id: u32, memory: Memory, charge: Charge) -> ResourceKey {
        self.resources.insert(id, Resource { memory, contexts: SmallVec::new(), uuid: None, charge, rendering: None })
    }

    pub(super) fn transfer_to_host_2d(&mut self, transfer: &TransferToHost2d) -> Result<Step, Refusal> {
        let (key, resource) = self.resource(transfer.resource_id.get())?;
        let image = match &resource.memory {
            Memory::Image(image) => image,
            // Linux transfers what it has drawn into any buffer of its own, and this one is in the guest's memory already.
            Memory::Guest(_) => return Ok(Step::Done(Response::NoData)),
            _ => return Err(Refusal::Parameter("the resource is no 2D resource")),
        };
        let area = area(&transfer.rect);
        inside(area, image.width, image.height)?;
        let backing = image.backing.as_ref().ok_or(Refusal::Parameter("the resource has no backing"))?;
        let (rows, row) = (u64::from(area.height - 1), u64::from(area.width * PIXEL));
        let end = transfer.offset.get().checked_add(image.stride() * rows + row);
        if end.is_none_or(|end| end > backing.len()) {
            return Err(Refusal::Parameter("the transfer ends behind the backing"));
        }
        self.transfer(Transfer { resource: key, area, from: transfer.offset.get(), done: 0 })
    }

    /// Copies what this turn has room for, and the rest in turns to come.
    fn transfer(&mut self, mut transfer: Transfer) -> Result<Step, Refusal> {
        let ram = self.ram()?;
        let ram = ram.held();
        while transfer.done < transfer.len() {
            if self.turn.left() == 0 {
                return Ok(Step::Turn(Box::new(|gpu| gpu.transfer(transfer))));
            }
            let Some(Memory::Image(image)) = self.resources.get_mut(transfer.resource).map(|row| &mut row.memory)
            else {
                return Err(Refusal::Parameter("the resource has gone meanwhile"));
            };
            transfer.copy(image, &*ram, &mut self.turn)?;
        }
        Ok(Step::Done(Response::NoData))
    }
}

impl Transfer {
    fn row(&self) -> u64 {
        u64::from(self.area.width * PIXEL)
    }

    /// Bytes of all of it.
    fn len(&self) -> u64 {
        self.row() * u64::from(self.area.height)
    }

    /// Copies what lies in one piece, and what the turn has room for.
    fn copy(&mut self, image: &mut Image, ram: &dyn GuestRam, turn: &mut Turn) -> Result<(), Refusal> {
        let (stride, row) = (image.stride(), self.row());
        let (line, column) = (self.done / row, self.done % row);
        // Whole rows lie one after the other, in the image and behind it: any number of them is one copy.
        let len = if row == stride { self.len() - self.done } else { row - column };
        let len = len.min(turn.left() as u64) as usize;
        let to = stride * (u64::from(self.area.y) + line) + u64::from(self.area.x * PIXEL) + column;
        let backing = image.backing.as_ref().ok_or(Refusal::Parameter("the resource has no backing"))?;
        let out = &mut image.pixels[to as usize..][..len];
        let copied = backing.read(ram, self.from + stride * line + column, out, turn.pieces_left());
        let (bytes, pieces) = copied.ok_or(Refusal::Parameter("the backing is guest memory no more"))?;
        turn.spend(bytes, pieces);
        self.done += bytes as u64;
        Ok(())
    }
}

impl Gpu {
    pub(super) fn attach_backing(&mut self, id: u32, entries: &[MemEntry]) -> Result<Step, Refusal> {
        let (ram, ledger) = (self.ram()?, Rc::clone(&self.ledger));
        let key = self.resources.key(id).ok_or(Refusal::UnknownResource { id })?;
        let resource = self.resources.get_mut(key).ok_or(Refusal::UnknownResource { id })?;
        let (least, told) = match &resource.memory {
            Memory::Guest(blob) => (blob.size, None),
            Memory::Rendered(rendered) => (rendered.least, self.renderer.clone()),
            // Each transfer says what it needs.
            Memory::Image(_) | Memory::Host(_) | Memory::Own(_) => (1, None),
        };
        let slot = backing_slot(resource)?;
        if slot.is_some() {
            return Err(Refusal::Parameter("the resource has backing already"));
        }
        let backing = Backing::new(entries, least, &*ram, &ledger)?;
        let Some(renderer) = told else {
            *slot = Some(backing);
            return Ok(Step::Done(Response::NoData));
        };
        let work = Work::Later(renderer.attach_backing(id, backing.share(&*ram, &self.lease)));
        Step::after(work, self, move |gpu, told| {
            told?;
            if let Some(resource) = gpu.resources.get_mut(key) {
                *backing_slot(resource)? = Some(backing);
            }
            Ok(Response::NoData)
        })
    }

    pub(super) fn detach_backing(&mut self, id: u32) -> Result<Step, Refusal> {
        let key = self.resources.key(id).ok_or(Refusal::UnknownResource { id })?;
        let resource = self.resources.get_mut(key).ok_or(Refusal::UnknownResource { id })?;
        let detached = backing_slot(resource)?.take().ok_or(Refusal::Parameter("the resource has no backing"))?;
        match (&resource.memory, self.renderer.clone()) {
            (Memory::Rendered(_), Some(renderer)) => {
                let work = Work::Later(renderer.detach_backing(id));
                Step::after(work, self, move |_, told| {
                    // Charged for as long as the renderer may copy.
                    drop(detached);
                    Ok(told.map(|()| Response::NoData)?)
                })
            }
            _ => Ok(Step::Done(Response::NoData)),
        }
    }
}

fn backing_slot(resource: &mut Resource) -> Result<&mut Option<Backing>, Refusal> {
    resource.memory.backing_mut().ok_or(Refusal::Parameter("a blob of host memory has no backing"))
}
