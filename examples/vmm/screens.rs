//! The machine's displays: what each tells the guest about itself, and where its pictures go.

use std::path::PathBuf;
use std::str::FromStr;

use virtio_gpu_uring::{Area, Builder, Cursor, Display, Monitor, NullDisplay, Picture, Pixels, PngDisplay, Work};

use super::arguments::Arguments;
use super::error::VmmError;

/// A display's width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse().ok();
        let sides = text.split_once('x').and_then(|(width, height)| Some((number(width)?, number(height)?)));
        let (width, height) = sides.ok_or("a size is written as WIDTHxHEIGHT")?;
        Ok(Self { width, height })
    }
}

/// Makes displays, those of the command line and those that are plugged in later.
pub(crate) struct Screens {
    /// Of those that are connected from the start.
    sizes: Vec<Size>,
    folder: Option<PathBuf>,
}

impl Screens {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        Self { sizes: arguments.screen.clone(), folder: arguments.png.clone() }
    }

    /// Connects what the command line asks for.
    pub(crate) fn connect(&self, mut builder: Builder) -> Result<Builder, VmmError> {
        for (scanout, size) in (0..).zip(&self.sizes) {
            builder = builder.display(scanout, self.monitor(scanout, *size), self.display(scanout)?);
        }
        Ok(builder)
    }

    /// What display `scanout` tells the guest: it stands right of those before it.
    pub(crate) fn monitor(&self, scanout: u32, Size { width, height }: Size) -> Monitor {
        let before = self.sizes.iter().take(scanout as usize);
        let left = before.fold(0, |left: u32, Size { width, .. }| left.saturating_add(*width));
        Monitor { name: format!("Screen {scanout}"), position: (left, 0), ..Monitor::new(width, height) }
    }

    /// What is connected to `scanout`.
    pub(crate) fn display(&self, scanout: u32) -> Result<Screen, VmmError> {
        let inner: Box<dyn Display> = match &self.folder {
            Some(folder) => {
                let path = folder.join(format!("scanout-{scanout}.png"));
                Box::new(PngDisplay::new(&path).map_err(|source| VmmError::File { path, source })?)
            }
            None => Box::new(NullDisplay),
        };
        Ok(Screen { scanout, inner, frames: 0, cursors: 0, moves: 0 })
    }
}

/// A display that counts what it is told, and passes it on.
pub(crate) struct Screen {
    scanout: u32,
    inner: Box<dyn Display>,
    frames: u64,
    cursors: u64,
    moves: u64,
}

impl Display for Screen {
    fn takes_buffer(&mut self, picture: &Picture<'_>) -> bool {
        self.inner.takes_buffer(picture)
    }

    fn attach(&mut self, picture: &Picture<'_>) {
        self.inner.attach(picture);
    }

    fn draw(&mut self, area: Area, pixels: Pixels<'_>) {
        self.inner.draw(area, pixels);
    }

    fn frame(&mut self, damage: Area) -> Work<()> {
        self.frames += 1;
        self.inner.frame(damage)
    }

    fn cursor(&mut self, cursor: Option<&Cursor<'_>>, position: (i32, i32)) {
        if let Some(Cursor { width, height, hot_x, hot_y, .. }) = cursor {
            self.cursors += 1;
            let (scanout, (x, y)) = (self.scanout, position);
            tracing::info!(scanout, width, height, hot_x, hot_y, x, y, "a cursor");
        }
        self.inner.cursor(cursor, position);
    }

    fn move_cursor(&mut self, position: (i32, i32)) {
        self.moves += 1;
        self.inner.move_cursor(position);
    }

    fn detach(&mut self) {
        self.inner.detach();
    }

    fn forget(&mut self, buffer: u64) {
        self.inner.forget(buffer);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let Self { scanout, frames, cursors, moves, .. } = self;
        say!("screen {scanout} frames={frames} cursors={cursors} moves={moves}");
    }
}
