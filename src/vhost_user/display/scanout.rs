//! A front-end's display as the device sees it: everything is noted at once, and sent by somebody else.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use super::slot::{CursorChange, Show, Slot, Sprite};
use super::wire::DmabufScanout;
use crate::display::canvas::{Canvas, MOST_PIXELS};
use crate::observe::warn_limited;
use crate::protocol::format::Format;
use crate::seams::{Area, Cursor, Display, DmaBuf, Picture, Pixels, Work};

/// `DRM_FORMAT_MOD_LINEAR`: rows one after the other.
const LINEAR: u64 = 0;

/// Which dma-bufs a front-end is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffers {
    /// None.
    Never,
    /// Those of a layout that is not known or linear: there is no way to tell it another.
    Plain,
    /// All that lie in one plane.
    OfAnyLayout,
}

/// What is shown now.
enum Shown {
    Nothing,
    Pixels(Canvas),
    /// A dma-buf, of this size.
    Buffer(u32, u32),
}

/// A scanout of a front-end's.
pub(super) struct FrontEndDisplay {
    scanout: u32,
    buffers: Buffers,
    slot: Arc<Slot>,
    sent: watch::Receiver<u64>,
    shown: Shown,
    /// The dma-buf that is attached next.
    taken: Option<OwnedFd>,
    /// How many frames there were.
    frames: u64,
    has_cursor: bool,
}

impl FrontEndDisplay {
    /// `sent` is the last frame that the front-end has been sent.
    pub(super) fn new(scanout: u32, buffers: Buffers, slot: Arc<Slot>, sent: watch::Receiver<u64>) -> Self {
        Self { scanout, buffers, slot, sent, shown: Shown::Nothing, taken: None, frames: 0, has_cursor: false }
    }

    /// Whether the messages have words for where a picture lies.
    fn can_tell(&self, buffer: &DmaBuf<'_>) -> bool {
        let is_plain = matches!(buffer.modifier, None | Some(LINEAR));
        // There is none for where a plane begins.
        let is_one_plane = matches!(buffer.planes, [plane] if plane.offset == 0);
        is_one_plane && (self.buffers == Buffers::OfAnyLayout || self.buffers == Buffers::Plain && is_plain)
    }

    fn attach_buffer(&mut self, format: Format, buffer: &DmaBuf<'_>, file: OwnedFd) {
        let DmaBuf { width, height, planes, modifier, shown, .. } = *buffer;
        let scanout = DmabufScanout {
            scanout: self.scanout,
            x: shown.x,
            y: shown.y,
            width: shown.width,
            height: shown.height,
            fd_width: width,
            fd_height: height,
            fd_stride: planes.first().map_or(0, |plane| plane.stride),
            fd_flags: 0,
            fd_drm_fourcc: format.fourcc(),
        };
        self.shown = Shown::Buffer(shown.width, shown.height);
        self.slot.leave(|letters| letters.show(Show::Buffer(file, scanout, modifier)));
    }

    fn attach_pixels(&mut self, picture: &Picture<'_>) {
        let Picture { width, height, format, .. } = *picture;
        if matches!(&self.shown, Shown::Pixels(canvas) if canvas.is_like(picture)) {
            return;
        }
        if u64::from(width) * u64::from(height) > MOST_PIXELS {
            warn_limited!(width, height, "a picture is too large for a front-end's display, and is not shown");
            return self.detach();
        }
        self.shown = Shown::Pixels(Canvas::new(format, width, height));
        self.slot.leave(|letters| letters.show(Show::Pixels(width, height)));
    }
}

impl Display for FrontEndDisplay {
    fn takes_buffer(&mut self, picture: &Picture<'_>) -> bool {
        let buffer = picture.buffer.as_ref().filter(|buffer| self.can_tell(buffer));
        // Where there is no descriptor left, its bytes are shown.
        self.taken = buffer.and_then(|buffer| buffer.file.try_clone_to_owned().ok());
        self.taken.is_some()
    }

    fn attach(&mut self, picture: &Picture<'_>) {
        match (&picture.buffer, self.taken.take()) {
            (Some(buffer), Some(file)) => self.attach_buffer(picture.format, buffer, file),
            _ => self.attach_pixels(picture),
        }
    }

    fn draw(&mut self, area: Area, pixels: Pixels<'_>) {
        if let Shown::Pixels(canvas) = &mut self.shown {
            canvas.draw(area, pixels);
        }
    }

    fn frame(&mut self, damage: Area) -> Work<()> {
        let (size, canvas) = match &self.shown {
            Shown::Nothing => return Work::Done(()),
            Shown::Pixels(canvas) => (canvas.size(), Some(canvas.clone())),
            Shown::Buffer(width, height) => ((*width, *height), None),
        };
        self.frames += 1;
        let number = self.frames;
        let mut outdated = None;
        self.slot.leave(|letters| {
            outdated = std::mem::replace(&mut letters.canvas, canvas);
            letters.damage.add(damage, size);
            letters.flush = number;
        });
        drop(outdated);
        let mut sent = self.sent.clone();
        Work::later(async move {
            // A thread that has ended sends nothing any more.
            let _ = sent.wait_for(|sent| *sent >= number).await;
        })
    }

    fn cursor(&mut self, cursor: Option<&Cursor<'_>>, position: (i32, i32)) {
        self.has_cursor = cursor.is_some();
        let change = cursor.map_or(CursorChange::Hidden, |cursor| CursorChange::Shape(sprite(cursor)));
        self.slot.leave(|letters| letters.cursor = Some((change, position)));
    }

    fn move_cursor(&mut self, position: (i32, i32)) {
        // To be told a position is to be told to show it.
        if self.has_cursor {
            self.slot.leave(|letters| letters.move_cursor(position));
        }
    }

    fn detach(&mut self) {
        self.shown = Shown::Nothing;
        self.slot.leave(|letters| letters.show(Show::Nothing));
    }
}

/// The front-end is not left with the last picture.
impl Drop for FrontEndDisplay {
    fn drop(&mut self) {
        self.slot.leave(|letters| {
            letters.show(Show::Nothing);
            letters.cursor = Some((CursorChange::Hidden, (0, 0)));
            letters.gone = true;
        });
    }
}

fn sprite(cursor: &Cursor<'_>) -> Sprite {
    let mut pixels = Vec::new();
    for row in cursor.pixels.rows() {
        for pixel in row.as_chunks().0 {
            let [red, green, blue, alpha] = cursor.format.rgba(*pixel);
            pixels.extend([blue, green, red, alpha]);
        }
    }
    Sprite { hot: (cursor.hot_x, cursor.hot_y), pixels }
}
