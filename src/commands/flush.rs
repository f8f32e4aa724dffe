//! RESOURCE_FLUSH: what has changed in a resource goes to the displays that show it, and to no others.
//! A display that takes dma-bufs has the buffer already; all others are handed bytes, in parts where they are many.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::read::Fetched;
use super::{Gpu, Refusal, Response, Step, Turn};
use crate::buffer::read::Line;
use crate::display::{View, area, inside, intersection};
use crate::observe::warn_limited;
use crate::protocol::format::PIXEL;
use crate::protocol::wire::ResourceFlush;
use crate::resource::{Backing, GuestRam, Memory, ResourceKey};
use crate::seams::{Area, LocalFuture, Pixels, Work};

/// Bytes of a picture that are fetched at a time where the device task cannot copy them by itself. Freeing as many takes it
/// less than half a millisecond.
const FETCHED: u64 = 2 << 20;

/// A flush that is under way.
struct Flush {
    resource: ResourceKey,
    /// What is still to be drawn, scanout by scanout.
    parts: VecDeque<Part>,
    /// Displays that are not done with their frame; whether they were in time.
    waiting: Vec<LocalFuture<bool>>,
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
    /// The rows to be drawn next, where their bytes are not at hand.
    band: Option<Band>,
}

/// Some rows of a part, on their way from where they lie.
struct Band {
    rows: Area,
    bytes: Vec<u8>,
    stride: usize,
    /// Bytes that are there.
    have: usize,
}

impl Band {
    fn is_whole(&self) -> bool {
        self.have == self.bytes.len()
    }

    /// Copies what lies in one piece, and what the turn has room for.
    fn gather(&mut self, view: &View, backing: &Backing, ram: &dyn GuestRam, turn: &mut Turn) -> Result<(), Refusal> {
        let (line, column) = (self.have / self.stride, self.have % self.stride);
        let row = Area { y: self.rows.y + line as u32, height: 1, ..self.rows };
        let rest = &mut self.bytes[self.have..];
        let len = if view.stride() == self.stride as u64 { rest.len() } else { self.stride - column };
        let len = len.min(turn.left());
        let start = view.bytes_of(row).start + column as u64;
        let copied = backing.read(ram, start, &mut rest[..len], turn.pieces_left());
        let (bytes, pieces) = copied.ok_or(Refusal::Parameter("the backing is guest memory no more"))?;
        turn.spend(bytes, pieces);
        self.have += bytes;
        Ok(())
    }
}

/// A rectangle of the resource as the display knows it.
fn on_display(view: &View, area: Area) -> Area {
    Area { x: area.x - view.shown.x, y: area.y - view.shown.y, ..area }
}

/// How far a part has come in a turn.
enum Progress {
    Done,
    /// This turn has no room for more.
    Turn,
    /// These rows have to be fetched.
    Fetch(LocalFuture<Fetched>, Area, usize),
}

impl Part {
    /// The rows to be drawn next, about `most` bytes of `stride` each and at least one.
    fn next_rows(&self, most: u64, stride: u64) -> Area {
        let left = u64::from(self.damage.height - self.drawn);
        let rows = (most / stride.max(1)).clamp(1, left) as u32;
        Area { y: self.damage.y + self.drawn, height: rows, ..self.damage }
    }

    fn row(&self) -> usize {
        (self.damage.width * PIXEL) as usize
    }
}

impl Gpu {
    pub(super) fn flush(&mut self, flush: &ResourceFlush) -> Result<Step, Refusal> {
        let (key, resource) = self.resource(flush.resource_id.get())?;
        let changed = area(&flush.rect);
        match &resource.memory {
            Memory::Image(image) => inside(changed, image.width, image.height)?,
            Memory::Rendered(rendered) => inside(changed, rendered.width, rendered.height)?,
            // A blob has no sides but those that a scanout gives it, each its own.
            Memory::Guest(_) | Memory::Host(_) | Memory::Own(_) => {
                let views = self.scanouts.showing_resource(key).map(|(_, showing)| showing.view);
                let sides = views.map(|view| inside(changed, view.width, view.height));
                sides.reduce(Result::or).unwrap_or(Ok(()))?;
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
            // What only the buffer's importer can read is not drawn.
            (by_buffer || view.is_plain()).then_some(())?;
            Some(Part { scanout, epoch, view, by_buffer, damage, drawn: 0, band: None })
        });
        let parts = parts.collect();
        self.draw(Flush { resource: key, parts, waiting: Vec::new() })
    }

    /// Draws what this turn has room for, and the rest in turns to come.
    fn draw(&mut self, mut flush: Flush) -> Result<Step, Refusal> {
        while let Some(part) = flush.parts.front_mut() {
            match self.draw_part(flush.resource, part)? {
                Progress::Turn => return Ok(Step::Turn(Box::new(|gpu| gpu.draw(flush)))),
                Progress::Fetch(fetching, rows, stride) => {
                    return Step::and_then(Work::Later(fetching), self, move |gpu, fetched| {
                        let bytes = gpu.take_fetched(fetched)?;
                        if let Some(part) = flush.parts.front_mut() {
                            part.band = Some(Band { rows, have: bytes.len(), bytes, stride });
                        }
                        gpu.draw(flush)
                    });
                }
                Progress::Done => {
                    flush.waiting.extend(self.frame(part));
                    flush.parts.pop_front();
                }
            }
        }
        Ok(self.shown(flush.waiting))
    }

    /// Tells a display that its part is drawn, and gives it until the deadline.
    fn frame(&mut self, part: &Part) -> Option<LocalFuture<bool>> {
        let damage = on_display(&part.view, part.damage);
        let frame = self.scanouts.frame(part.scanout, part.epoch, damage)?;
        self.counters.frames.bump();
        let frame = tokio::time::timeout(self.limits.deadline, frame?);
        Some(Box::pin(frame.map(|end| end.is_ok())))
    }

    /// Is answered when the displays are done, but does not wait for ever. What comes after it need not wait at all: pixels
    /// have been copied by now.
    fn shown(&self, waiting: Vec<LocalFuture<bool>>) -> Step {
        if waiting.is_empty() {
            return Step::Done(Response::NoData);
        }
        let counters = Arc::clone(&self.counters);
        let shown = async move {
            let late = join_all(waiting).await.into_iter().filter(|in_time| !in_time).count();
            if late > 0 {
                counters.frames_late.add(late as u64);
                warn_limited!(late, "displays take too long over a frame: the flush is answered without them");
            }
        };
        Step::Until(Box::pin(shown), Response::NoData)
    }

    fn draw_part(&mut self, key: ResourceKey, part: &mut Part) -> Result<Progress, Refusal> {
        if part.by_buffer {
            return Ok(Progress::Done);
        }
        let ram = self.ram()?;
        let ram = ram.held();
        while part.drawn < part.damage.height {
            if self.turn.left() == 0 {
                return Ok(Progress::Turn);
            }
            // A resource that has gone is not shown either.
            let Some(resource) = self.resources.get(key) else { return Ok(Progress::Done) };
            let row = part.row();
            let (rows, bytes, stride) = match (&mut part.band, &resource.memory) {
                (Some(band), _) if band.is_whole() => (band.rows, &band.bytes[..], band.stride),
                (Some(band), Memory::Guest(blob)) => {
                    let backing = blob.backing.as_ref().ok_or(Refusal::Parameter("the resource has no backing"))?;
                    band.gather(&part.view, backing, &*ram, &mut self.turn)?;
                    continue;
                }
                (None, Memory::Guest(_)) => {
                    let rows = part.next_rows(self.turn.left() as u64, row as u64);
                    let bytes = vec![0; row * rows.height as usize];
                    part.band = Some(Band { rows, bytes, stride: row, have: 0 });
                    continue;
                }
                (_, Memory::Image(image)) => {
                    let rows = part.next_rows(self.turn.left() as u64, row as u64);
                    let range = part.view.bytes_of(rows);
                    (rows, &image.pixels[range.start as usize..range.end as usize], image.stride() as usize)
                }
                (_, Memory::Host(_) | Memory::Own(_) | Memory::Rendered(_)) => {
                    return self.fetch(&resource.memory, part);
                }
            };
            let pixels = Pixels::new(bytes, stride, rows.width, rows.height);
            let area = on_display(&part.view, rows);
            if !self.scanouts.draw(part.scanout, part.epoch, area, pixels) {
                return Ok(Progress::Done);
            }
            self.turn.spend(row * rows.height as usize, 0);
            part.drawn += rows.height;
            part.band = None;
        }
        Ok(Progress::Done)
    }

    /// Rows that the device task cannot copy by itself: of a host buffer, whose implicit fences have to signal first, or of
    /// the renderer's.
    fn fetch(&self, memory: &Memory, part: &Part) -> Result<Progress, Refusal> {
        match memory {
            Memory::Host(blob) => {
                let rows = part.next_rows(FETCHED, part.view.stride());
                let fetching = self.fetch_buffer(blob, part.view.bytes_of(rows), Line::Pictures)?;
                Ok(Progress::Fetch(fetching, rows, part.view.stride() as usize))
            }
            Memory::Rendered(rendered) => {
                let rows = part.next_rows(FETCHED, part.row() as u64);
                Ok(Progress::Fetch(self.fetch_rendered(rendered, rows)?, rows, part.row()))
            }
            Memory::Image(_) | Memory::Guest(_) | Memory::Own(_) => Ok(Progress::Done),
        }
    }
}
