//! RESOURCE_FLUSH: what has changed in a resource goes to the displays that show it, and to no others.
//! A display that takes dma-bufs has the buffer already; all others are handed bytes, in parts where they are many.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::join_all;

use super::read::Fetched;
use super::turns::PIECE_COST;
use super::{Gpu, Refusal, Response, Step};
use crate::display::{View, area, inside, intersection};
use crate::limits::{Charge, Quota};
use crate::observe::warn_limited;
use crate::protocol::format::PIXEL;
use crate::protocol::wire::ResourceFlush;
use crate::resource::{Backing, GuestRam, Image, Memory, ResourceKey};
use crate::seams::{Area, LocalFuture, Pixels, Work};

/// A flush that is under way.
struct Flush {
    resource: ResourceKey,
    /// What is still to be drawn, scanout by scanout.
    parts: VecDeque<Part>,
    /// Displays that are not done with their frame.
    waiting: Vec<LocalFuture<()>>,
}

/// What one display is to be shown.
struct Part {
    scanout: u32,
    epoch: u64,
    view: View,
    by_buffer: bool,
    /// What has changed, in the resource's pixels.
    damage: Area,
    /// Rows of it that have been drawn.
    drawn: u32,
    /// The bytes of it, from its first pixel to its last, where they had to be fetched first.
    fetched: Option<Rows>,
}

/// Rows of pixels that were fetched for a part, with their place in the quota of pixels.
struct Rows {
    bytes: Vec<u8>,
    stride: usize,
    _charge: Charge,
}

/// How far a part has come in a turn.
enum Progress {
    Done,
    /// This turn has no room for more.
    Turn,
    /// Its bytes have to be fetched.
    Fetch(LocalFuture<Fetched>, usize, Charge),
}

impl Part {
    /// A rectangle of the resource as the display knows it.
    fn on_display(&self, area: Area) -> Area {
        Area { x: area.x - self.view.shown.x, y: area.y - self.view.shown.y, ..area }
    }

    /// The rows to be drawn next, about `most` bytes of them and at least one.
    fn band(&self, most: usize) -> Area {
        let row = self.damage.width * PIXEL;
        let left = self.damage.height - self.drawn;
        let rows = (most / row as usize).clamp(1, left as usize) as u32;
        Area { y: self.damage.y + self.drawn, height: rows, ..self.damage }
    }
}

impl Gpu {
    pub(super) fn flush(&mut self, flush: &ResourceFlush) -> Result<Step, Refusal> {
        let (key, resource) = self.resource(flush.resource_id.get())?;
        let changed = area(&flush.rect);
        match &resource.memory {
            Memory::Image(image) => inside(changed, image.width, image.height)?,
            Memory::Rendered(rendered) => inside(changed, rendered.width, rendered.height)?,
            // A blob has no sides but those that a scanout gives it.
            Memory::Guest(_) | Memory::Host(_) => {
                for (_, showing) in self.scanouts.showing_resource(key) {
                    inside(changed, showing.view.width, showing.view.height)?;
                }
            }
        }
        self.flush_to(key, changed, None)
    }

    /// Shows a part of a resource on the displays that show it, or on one of them.
    pub(super) fn flush_to(&mut self, key: ResourceKey, changed: Area, only: Option<u32>) -> Result<Step, Refusal> {
        let showing =
            self.scanouts.showing_resource(key).filter(|(scanout, _)| only.is_none_or(|only| only == *scanout));
        let parts = showing.filter_map(|(scanout, showing)| {
            let damage = intersection(changed, showing.view.shown)?;
            let (view, epoch, by_buffer) = (showing.view, showing.epoch, showing.by_buffer);
            Some(Part { scanout, epoch, view, by_buffer, damage, drawn: 0, fetched: None })
        });
        let parts = parts.collect();
        self.draw(Flush { resource: key, parts, waiting: Vec::new() })
    }

    /// Draws what this turn has room for, and the rest in turns to come.
    fn draw(&mut self, mut flush: Flush) -> Result<Step, Refusal> {
        while let Some(part) = flush.parts.front_mut() {
            match self.draw_part(flush.resource, part)? {
                Progress::Turn => {
                    let next = Work::Later(self.turns.next());
                    return Step::and_then(next, self, move |gpu, ()| gpu.draw(flush));
                }
                Progress::Fetch(fetching, stride, charge) => {
                    return Step::and_then(Work::Later(fetching), self, move |gpu, fetched| {
                        let bytes = gpu.take_fetched(fetched)?;
                        if let Some(part) = flush.parts.front_mut() {
                            part.fetched = Some(Rows { bytes, stride, _charge: charge });
                        }
                        gpu.draw(flush)
                    });
                }
                Progress::Done => {
                    let frame = self.scanouts.frame(part.scanout, part.epoch, part.on_display(part.damage));
                    self.counters.frames.bump();
                    if let Work::Later(frame) = frame {
                        flush.waiting.push(frame);
                    }
                    flush.parts.pop_front();
                }
            }
        }
        Ok(self.shown(flush.waiting))
    }

    /// Is answered when the displays are done, but does not wait for ever. What comes after it need not wait at all: pixels
    /// have been copied by now.
    fn shown(&self, waiting: Vec<LocalFuture<()>>) -> Step {
        if waiting.is_empty() {
            return Step::Done(Response::NoData);
        }
        let (deadline, counters) = (self.limits.deadline, Arc::clone(&self.counters));
        let shown = async move {
            if tokio::time::timeout(deadline, join_all(waiting)).await.is_err() {
                counters.frames_late.bump();
                warn_limited!("a display takes too long over a frame: the flush is answered without it");
            }
        };
        Step::Until(Box::pin(shown), Response::NoData)
    }

    fn draw_part(&mut self, key: ResourceKey, part: &mut Part) -> Result<Progress, Refusal> {
        if part.by_buffer {
            return Ok(Progress::Done);
        }
        let ram = self.ram()?;
        while part.drawn < part.damage.height {
            let left = self.turns.left();
            if left == 0 {
                return Ok(Progress::Turn);
            }
            // A resource that has gone is not shown either.
            let Some(resource) = self.resources.get(key) else { return Ok(Progress::Done) };
            let band = part.band(left);
            let scratch = &mut self.scratch;
            let (bytes, stride, cost) = match (&part.fetched, &resource.memory) {
                (Some(Rows { bytes, stride, .. }), _) => (&bytes[stride * part.drawn as usize..], *stride, 0),
                (None, Memory::Image(image)) => (of_image(image, &part.view, band), image.stride() as usize, 0),
                (None, Memory::Guest(blob)) => {
                    let backing = blob.backing.as_ref().ok_or(Refusal::Parameter("the resource has no backing"))?;
                    let cost = gather(backing, &*ram, &part.view, band, scratch)?;
                    (&scratch[..], (band.width * PIXEL) as usize, cost)
                }
                (None, _) => return self.fetch(key, part),
            };
            let pixels = Pixels::new(bytes, stride, band.width, band.height);
            let area = part.on_display(band);
            let drawn = (band.width * PIXEL * band.height) as usize;
            if !self.scanouts.draw(part.scanout, part.epoch, area, pixels) {
                return Ok(Progress::Done);
            }
            self.turns.spend(drawn + cost);
            part.drawn += band.height;
        }
        Ok(Progress::Done)
    }

    /// Bytes that the device task cannot copy by itself: of a host buffer, whose implicit fences have to signal first, or
    /// of the renderer's.
    fn fetch(&self, key: ResourceKey, part: &Part) -> Result<Progress, Refusal> {
        match self.resources.get(key).map(|resource| &resource.memory) {
            Some(Memory::Host(blob)) => {
                let range = part.view.bytes_of(part.damage);
                let charge = self.ledger.charge(Quota::ImageBytes, range.end - range.start)?;
                Ok(Progress::Fetch(self.fetch_buffer(blob, range)?, part.view.stride() as usize, charge))
            }
            Some(Memory::Rendered(rendered)) => {
                let stride = part.damage.width * PIXEL;
                let charge =
                    self.ledger.charge(Quota::ImageBytes, u64::from(stride) * u64::from(part.damage.height))?;
                Ok(Progress::Fetch(self.fetch_rendered(rendered, part.damage)?, stride as usize, charge))
            }
            _ => Ok(Progress::Done),
        }
    }
}

/// A part of an image where it lies.
fn of_image<'a>(image: &'a Image, view: &View, band: Area) -> &'a [u8] {
    let range = view.bytes_of(band);
    &image.pixels[range.start as usize..range.end as usize]
}

/// A part of a picture in guest memory, its rows one after the other, and what it has cost beside its bytes.
fn gather(backing: &Backing, ram: &dyn GuestRam, view: &View, band: Area, out: &mut Vec<u8>) -> Result<usize, Refusal> {
    let row = (band.width * PIXEL) as usize;
    out.resize(row * band.height as usize, 0);
    let mut pieces = 0;
    let gone = Refusal::Parameter("the backing is guest memory no more");
    if view.stride() == row as u64 {
        pieces = backing.read(ram, view.bytes_of(band).start, out).ok_or(gone)?;
        return Ok(pieces * PIECE_COST);
    }
    for (y, out) in out.chunks_mut(row).enumerate() {
        let line = Area { y: band.y + y as u32, height: 1, ..band };
        let Some(more) = backing.read(ram, view.bytes_of(line).start, out) else { return Err(gone) };
        pieces += more;
    }
    Ok(pieces * PIECE_COST)
}
