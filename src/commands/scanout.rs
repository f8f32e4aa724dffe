//! What is shown where: SET_SCANOUT, SET_SCANOUT_BLOB, and the redraws that a VMM asks for.

use std::os::fd::AsFd;

use smallvec::{SmallVec, smallvec};

use super::{Claim, Claims, Gpu, Refusal, Response, Step};
use crate::buffer::BufferKind;
use crate::display::{InBuffer, Scanouts, View, area};
use crate::limits::Quota;
use crate::protocol::wire::{SetScanout, SetScanoutBlob};
use crate::renderer::RenderedPicture;
use crate::resource::{ExportedPicture, Memory, Rendered, Resource, ResourceKey};
use crate::seams::{Area, Plane, Work};

/// The scanout, and the resource that it shows.
pub(super) fn claims(scanout: u32, resource: u32) -> Claims {
    let mut claims: Claims = smallvec![Claim::Scanout(scanout)];
    if resource != 0 {
        claims.push(Claim::Resource(resource));
    }
    claims
}

/// The dma-buf that a resource is, or that its picture lies in.
fn dma_buf<C: slotmap::Key>(resource: &Resource<C>) -> Option<InBuffer<'_>> {
    match &resource.memory {
        Memory::Host(blob) if blob.buffer.kind() == BufferKind::DmaBuf => {
            Some(InBuffer { file: blob.buffer.as_fd(), layout: None })
        }
        Memory::Rendered(Rendered { picture: Some(Some(picture)), .. }) => {
            Some(InBuffer { file: picture.buffer.as_fd(), layout: Some((&picture.planes, picture.modifier)) })
        }
        _ => None,
    }
}

impl Gpu {
    pub(super) fn set_scanout(&mut self, set: &SetScanout) -> Result<Step, Refusal> {
        let Some((scanout, id)) = self.what_to_show(set.scanout_id.get(), set.resource_id.get())? else {
            return Ok(Step::Done(Response::NoData));
        };
        let (key, resource) = self.resource(id)?;
        let shown = area(&set.rect);
        let (view, asked) = match &resource.memory {
            Memory::Image(image) => (View::packed(image.format.wire(), image.width, image.height, shown)?, true),
            Memory::Rendered(rendered) => (rendered.view(shown)?, rendered.picture.is_some()),
            Memory::Guest(_) | Memory::Host(_) | Memory::Own(_) => {
                return Err(Refusal::Parameter("a blob has no format of its own"));
            }
        };
        let work = match self.renderer.clone().filter(|_| !asked) {
            Some(renderer) => Work::Later(renderer.export_picture(id)),
            None => Work::Done(Ok(None)),
        };
        Step::after(work, self, move |gpu, exported| {
            if !asked {
                gpu.take_picture(key, exported?);
            }
            if let Some(resource) = gpu.resources.get(key) {
                gpu.scanouts.show(scanout, key, view, dma_buf(resource));
            }
            Ok(Response::NoData)
        })
    }

    /// Keeps what the renderer has exported of a picture; without it the pixels are read.
    fn take_picture(&mut self, key: ResourceKey, exported: Option<RenderedPicture>) {
        let picture = exported.and_then(|RenderedPicture { file, planes, modifier }| {
            let planes: SmallVec<[Plane; 4]> = planes.into_iter().take(4).collect();
            let fd = self.ledger.charge(Quota::Fds, 1).ok()?;
            let buffer = self.take_file(file, fd).ok()?;
            let is_picture = buffer.kind() == BufferKind::DmaBuf && !planes.is_empty();
            if !is_picture {
                self.outbox.chores.extend(buffer.close());
                return None;
            }
            Some(ExportedPicture { buffer, planes, modifier })
        });
        if let Some(Memory::Rendered(rendered)) = self.resources.get_mut(key).map(|row| &mut row.memory) {
            rendered.picture = Some(picture);
        }
    }

    pub(super) fn set_scanout_blob(&mut self, set: &SetScanoutBlob) -> Result<Response, Refusal> {
        let Some((scanout, resource)) = self.what_to_show(set.scanout_id.get(), set.resource_id.get())? else {
            return Ok(Response::NoData);
        };
        let key = self.resources.key(resource).ok_or(Refusal::UnknownResource { id: resource })?;
        let Some(resource) = self.resources.get(key) else { return Err(Refusal::UnknownResource { id: resource }) };
        let size = match &resource.memory {
            Memory::Guest(blob) => blob.size,
            Memory::Host(blob) => blob.window.size.min(blob.buffer.len()),
            Memory::Own(_) => return Err(Refusal::Parameter("the blob's memory is the renderer's own")),
            Memory::Image(_) | Memory::Rendered(_) => return Err(Refusal::Parameter("the resource is no blob")),
        };
        let (view, buffer) = (View::of_blob(set, size)?, dma_buf(resource));
        if !view.is_plain() && buffer.is_none() {
            return Err(Refusal::Parameter("a picture of several planes must lie in a dma-buf"));
        }
        self.scanouts.show(scanout, key, view, buffer);
        Ok(Response::NoData)
    }

    /// What both commands have in common: the scanout must exist; resource 0 switches it off, and nothing is left to do.
    fn what_to_show(&mut self, scanout: u32, resource: u32) -> Result<Option<(u32, u32)>, Refusal> {
        if !self.scanouts.has(scanout) {
            return Err(Refusal::UnknownScanout { id: scanout });
        }
        if resource == 0 {
            self.scanouts.hide(scanout);
            return Ok(None);
        }
        Ok(Some((scanout, resource)))
    }
}

impl Gpu {
    /// The scanouts, for the VMM's hand.
    pub(crate) fn scanouts(&mut self) -> &mut Scanouts<ResourceKey> {
        &mut self.scanouts
    }

    /// What a scanout shows, where it shows something, and what redrawing it claims.
    pub(crate) fn redraw_claims(&self, scanout: u32) -> Option<(ResourceKey, Claims)> {
        let key = self.scanouts.showing(scanout)?.resource;
        let (resource, _) = self.resources.entry(key)?;
        Some((key, claims(scanout, resource)))
    }

    /// Tells a display anew what its scanout shows, all of it. A picture that cannot be drawn now is drawn when the guest
    /// flushes it. `None` where the scanout shows another resource than `key` by now.
    pub(crate) fn redraw(&mut self, scanout: u32, key: ResourceKey) -> Option<Result<Step, Refusal>> {
        let showing = self.scanouts.showing(scanout).filter(|showing| showing.resource == key)?;
        let View { width, height, .. } = showing.view;
        self.scanouts.attach(scanout, dma_buf(self.resources.get(key)?));
        Some(self.flush_to(key, Area { x: 0, y: 0, width, height }, Some(scanout)))
    }
}
