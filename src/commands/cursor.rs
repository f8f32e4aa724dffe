//! UPDATE_CURSOR and MOVE_CURSOR, from the queue of their own. They claim nothing, so no command holds them up: a cursor is
//! what its resource holds at that moment, or when a host buffer's pending writes are done.

use super::read::Fetched;
use super::{Gpu, Refusal, Response, Step};
use crate::buffer::read::Line;
use crate::display::CursorImage;
use crate::protocol::format::{CURSOR_SIDE, Format, PIXEL};
use crate::protocol::wire::UpdateCursor;
use crate::resource::Memory;
use crate::seams::{Area, Work};

/// Bytes of a cursor's image.
const BYTES: usize = (CURSOR_SIDE * CURSOR_SIDE * PIXEL) as usize;

/// Most pieces of guest memory that a cursor may lie in: it is read at once, and its pages are four.
const MOST_PIECES: usize = 256;

/// A blob has no format of its own, and the command states none: what Linux draws cursors in.
const BLOB_FORMAT: Format = Format::B8G8R8A8;

/// The guest writes signed numbers: a cursor may hang over the left edge.
fn position(cursor: &UpdateCursor) -> (i32, i32) {
    (cursor.x.get().cast_signed(), cursor.y.get().cast_signed())
}

impl Gpu {
    pub(super) fn move_cursor(&mut self, cursor: &UpdateCursor) -> Result<Response, Refusal> {
        let scanout = cursor.scanout_id.get();
        if !self.scanouts.has(scanout) {
            return Err(Refusal::UnknownScanout { id: scanout });
        }
        self.scanouts.move_cursor(scanout, position(cursor));
        Ok(Response::NoData)
    }

    pub(super) fn update_cursor(&mut self, cursor: &UpdateCursor) -> Result<Step, Refusal> {
        let (scanout, position) = (cursor.scanout_id.get(), position(cursor));
        if !self.scanouts.has(scanout) {
            return Err(Refusal::UnknownScanout { id: scanout });
        }
        let hot = (cursor.hot_x.get(), cursor.hot_y.get());
        let (format, pixels) = match cursor.resource_id.get() {
            0 => (BLOB_FORMAT, None),
            resource => {
                let (format, pixels) = self.cursor_pixels(resource)?;
                (format, Some(pixels))
            }
        };
        let number = self.scanouts.begin_cursor(scanout, position);
        let Some(pixels) = pixels else {
            self.scanouts.end_cursor(scanout, number, None);
            return Ok(Step::Done(Response::NoData));
        };
        Step::after(pixels, self, move |gpu, fetched| {
            // Linux draws cursors with alpha, and gives their resources the format of a screen.
            let image = CursorImage { format: format.with_alpha(), hot, pixels: gpu.take_fetched(fetched)? };
            gpu.scanouts.end_cursor(scanout, number, Some(image));
            Ok(Response::NoData)
        })
    }

    /// The pixels of a cursor, as its resource holds them now.
    fn cursor_pixels(&self, id: u32) -> Result<(Format, Work<Fetched>), Refusal> {
        let (_, resource) = self.resource(id)?;
        match &resource.memory {
            Memory::Image(image) if (image.width, image.height) == (CURSOR_SIDE, CURSOR_SIDE) => {
                Ok((image.format, Work::Done(image.pixels[..BYTES].to_vec().into())))
            }
            Memory::Guest(blob) => {
                let backing = blob.backing.as_ref().ok_or(Refusal::Parameter("the resource has no backing"))?;
                let mut pixels = vec![0; BYTES];
                let read = backing.read(&*self.ram()?, 0, &mut pixels, MOST_PIECES);
                let (bytes, _) = read.ok_or(Refusal::Parameter("the blob is smaller than a cursor"))?;
                if bytes < BYTES {
                    return Err(Refusal::Parameter("a cursor in very many pieces"));
                }
                Ok((BLOB_FORMAT, Work::Done(pixels.into())))
            }
            Memory::Host(blob) => {
                let fetching = self.fetch_buffer(blob, 0..BYTES as u64, Line::Cursors)?;
                Ok((BLOB_FORMAT, Work::Later(fetching)))
            }
            Memory::Image(_) => Err(Refusal::Parameter("a cursor is 64 pixels wide and high")),
            Memory::Own(_) => Err(Refusal::Parameter("the blob's memory is the renderer's own")),
            Memory::Rendered(rendered) => {
                if (rendered.width, rendered.height) != (CURSOR_SIDE, CURSOR_SIDE) {
                    return Err(Refusal::Parameter("a cursor is 64 pixels wide and high"));
                }
                let whole = Area { x: 0, y: 0, width: CURSOR_SIDE, height: CURSOR_SIDE };
                Ok((rendered.format()?, Work::Later(self.fetch_rendered(rendered, whole)?)))
            }
        }
    }
}
