//! A display that writes what it is shown to PNG files: for tests, for guests without a screen, and as a model of a display
//! whose work takes longer than the device may wait.

mod file;
mod writer;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use file::{Files, Sprite};
use writer::Writer;

use crate::display::canvas::{Canvas, MOST_PIXELS};
use crate::observe::warn_limited;
use crate::seams::{Area, Cursor, Display, Picture, Pixels, Work};

/// A display whose picture is a PNG file.
///
/// - The picture: 8 bits each of red, green and blue; alpha is ignored. The file is replaced as a whole, so that who
///   reads it never sees part of a picture, and it shows frames as the guest flushed them, never one half drawn.
/// - A flush is answered when the file shows its frame or a later one. Of frames that come while one is written,
///   the latest alone is written next.
/// - The cursor: a second file, `NAME-cursor.png` beside `NAME.png`, with alpha as the guest gave it (Linux multiplies colours
///   by it). Text chunks `Hotspot` and `Position` hold two numbers each, from the left and from the top. There is no such
///   file where the cursor is hidden. A cursor that was set before a frame is in its file when the frame is in its own.
/// - When the scanout is switched off, and when the display is dropped, both files stay as they are. A frame that has not been
///   written when the display is dropped never is; its flush was not answered either.
/// - What fails on the disk is logged, and tried again with the next frame. The guest is answered all the same.
///
/// Pixels that a new picture of the same size and format has not been given yet are those of the picture before it; of any
/// other they are black. Pictures of more than 64 million pixels are not shown. It takes memory for three pictures at
/// most: the one being drawn, one being written, one waiting, of which rows that are alike are shared. Files are not synced.
pub struct PngDisplay {
    canvas: Option<Canvas>,
    cursor: Option<Arc<Sprite>>,
    writer: Writer,
}

impl PngDisplay {
    /// A display that writes to `path`, and to `NAME-cursor.png` in the same folder. What lies there from before is removed.
    /// Starts a thread, which ends when the display is dropped.
    ///
    /// # Errors
    /// The path names no file, or none that could be written; the thread cannot be started.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let files = Files::new(path.into())?;
        Ok(Self { canvas: None, cursor: None, writer: Writer::start(files)? })
    }
}

impl Display for PngDisplay {
    fn attach(&mut self, picture: &Picture<'_>) {
        let Picture { width, height, format, .. } = *picture;
        if u64::from(width) * u64::from(height) > MOST_PIXELS {
            warn_limited!(width, height, "a picture is too large for a PNG display, and is not shown");
            self.canvas = None;
        } else if !self.canvas.as_ref().is_some_and(|canvas| canvas.is_like(picture)) {
            self.canvas = Some(Canvas::new(format, width, height));
        }
    }

    fn draw(&mut self, area: Area, pixels: Pixels<'_>) {
        if let Some(canvas) = &mut self.canvas {
            canvas.draw(area, pixels);
        }
    }

    fn frame(&mut self, _damage: Area) -> Work<()> {
        match &self.canvas {
            Some(canvas) => Work::later(self.writer.write(canvas.clone())),
            None => Work::Done(()),
        }
    }

    fn cursor(&mut self, cursor: Option<&Cursor<'_>>, position: (i32, i32)) {
        self.cursor = cursor.map(|cursor| Arc::new(Sprite::new(cursor)));
        self.writer.cursor(self.cursor.clone().map(|sprite| (sprite, position)));
    }

    fn move_cursor(&mut self, position: (i32, i32)) {
        if let Some(sprite) = &self.cursor {
            self.writer.cursor(Some((Arc::clone(sprite), position)));
        }
    }

    fn detach(&mut self) {
        self.canvas = None;
    }
}

impl fmt::Debug for PngDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PngDisplay").field("path", &self.writer.path()).finish_non_exhaustive()
    }
}
