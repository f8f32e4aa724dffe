//! A display that keeps what it is shown, for a test to look at.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::protocol::format::Format;
use crate::seams::{Area, Cursor, Display, Picture, Pixels, Work};

/// What a display was told, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A picture of this size and format, in a dma-buf that the display has taken, or to be drawn.
    Attached {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Of its pixels.
        format: Format,
        /// Whether it lies in a dma-buf that the display has taken.
        by_buffer: bool,
    },
    /// Pixels, their rows one after the other.
    Drawn(Area, Vec<u8>),
    /// A frame is complete.
    Frame(Area),
    /// A cursor: its position, its hotspot, its format, its pixels.
    Cursor((i32, i32), (u32, u32), Format, Vec<u8>),
    /// No cursor.
    CursorHidden,
    /// The cursor is here now.
    CursorMoved((i32, i32)),
    /// Nothing is shown.
    Detached,
    /// The display was dropped.
    Dropped,
}

#[derive(Default)]
struct State {
    shown: Vec<Shown>,
    size: (u32, u32),
    format: Option<Format>,
    canvas: Vec<u8>,
    buffer: Option<OwnedFd>,
}

/// The display, to be connected to a device.
pub struct Screen {
    state: Arc<Mutex<State>>,
    takes_buffers: bool,
    held: watch::Receiver<bool>,
}

/// The test's side of a [`Screen`].
pub struct Viewer {
    state: Arc<Mutex<State>>,
    hold: watch::Sender<bool>,
}

impl Screen {
    /// A display that wants bytes.
    #[must_use]
    pub fn new() -> (Self, Viewer) {
        let (hold, held) = watch::channel(false);
        let state = Arc::<Mutex<State>>::default();
        (Self { state: Arc::clone(&state), takes_buffers: false, held }, Viewer { state, hold })
    }

    /// A display that takes dma-bufs.
    #[must_use]
    pub fn taking_buffers() -> (Self, Viewer) {
        let (mut screen, viewer) = Self::new();
        screen.takes_buffers = true;
        (screen, viewer)
    }

    fn tell(&self, shown: Shown) {
        lock(&self.state).shown.push(shown);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic meanwhile")
}

impl Viewer {
    /// What the display was told since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Shown> {
        std::mem::take(&mut lock(&self.state).shown)
    }

    /// Its picture: width, height, and all pixels as they were drawn last.
    #[must_use]
    pub fn picture(&self) -> (u32, u32, Vec<u8>) {
        let state = lock(&self.state);
        (state.size.0, state.size.1, state.canvas.clone())
    }

    /// The dma-buf that it was given last.
    #[must_use]
    pub fn take_buffer(&self) -> Option<OwnedFd> {
        lock(&self.state).buffer.take()
    }

    /// Frames are done when this is taken back, and not at once.
    pub fn hold_frames(&self, hold: bool) {
        self.hold.send_replace(hold);
    }
}

impl Display for Screen {
    fn takes_buffer(&mut self, _picture: &Picture<'_>) -> bool {
        self.takes_buffers
    }

    fn attach(&mut self, picture: &Picture<'_>) {
        let Picture { width, height, format, buffer } = *picture;
        let mut state = lock(&self.state);
        if (state.size, state.format) != ((width, height), Some(format)) {
            (state.size, state.format) = ((width, height), Some(format));
            state.canvas = vec![0; width as usize * height as usize * 4];
        }
        state.buffer = buffer.map(|buffer| buffer.file.try_clone_to_owned().expect("a duplicate"));
        state.shown.push(Shown::Attached { width, height, format, by_buffer: buffer.is_some() });
    }

    fn draw(&mut self, area: Area, pixels: Pixels<'_>) {
        let mut state = lock(&self.state);
        let width = state.size.0 as usize;
        let mut drawn = Vec::new();
        for (y, row) in pixels.rows().enumerate() {
            let at = ((area.y as usize + y) * width + area.x as usize) * 4;
            state.canvas[at..at + row.len()].copy_from_slice(row);
            drawn.extend_from_slice(row);
        }
        assert_eq!(drawn.len(), area.width as usize * area.height as usize * 4, "pixels of {area:?}");
        state.shown.push(Shown::Drawn(area, drawn));
    }

    fn frame(&mut self, damage: Area) -> Work<()> {
        self.tell(Shown::Frame(damage));
        if !*self.held.borrow() {
            return Work::Done(());
        }
        let mut held = self.held.clone();
        // A viewer that is gone holds nothing.
        Work::later(async move { drop(held.wait_for(|held| !held).await) })
    }

    fn cursor(&mut self, cursor: Option<&Cursor<'_>>, position: (i32, i32)) {
        self.tell(match cursor {
            Some(cursor) => {
                let pixels = cursor.pixels.rows().flatten().copied().collect();
                Shown::Cursor(position, (cursor.hot_x, cursor.hot_y), cursor.format, pixels)
            }
            None => Shown::CursorHidden,
        });
    }

    fn move_cursor(&mut self, position: (i32, i32)) {
        self.tell(Shown::CursorMoved(position));
    }

    fn detach(&mut self) {
        lock(&self.state).buffer = None;
        self.tell(Shown::Detached);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.tell(Shown::Dropped);
    }
}
