//! Scanouts: what is connected to each, what the guest shows on it, and its cursor.
//! This room decides what a display is told; where pixels come from is the commands' business.

mod edid;
mod monitor;
mod null;
#[cfg(feature = "png")]
mod png;
mod view;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use zerocopy::FromZeros;

pub use monitor::{Mode, Monitor, MonitorError};
pub use null::NullDisplay;
#[cfg(feature = "png")]
pub use png::PngDisplay;
pub(crate) use view::{View, ViewError, area, checked, inside, intersection};

use crate::protocol::format::Format;
use crate::protocol::wire::{DisplayOne, MAX_SCANOUTS, Rect};
use crate::seams::{Area, Cursor, Display, DmaBuf, Picture, Pixels, Work};

/// A cursor's sides in pixels (virtio 1.4, section 5.7.6.8).
pub(crate) const CURSOR_SIDE: u32 = 64;

/// Why a display was not connected or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The device has no such scanout.
    #[error("scanout {scanout} of {count}")]
    Scanout {
        /// What was asked for.
        scanout: u32,
        /// How many there are.
        count: u32,
    },
    /// There is no display to change.
    #[error("nothing is connected to scanout {scanout}")]
    NotConnected {
        /// The scanout.
        scanout: u32,
    },
    /// A guest could not be told of such a monitor.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// A display and what it tells the guest about itself.
struct Connected {
    monitor: Monitor,
    edid: Arc<[u8]>,
    display: Box<dyn Display>,
}

/// Part of a resource on a scanout. `R` names a resource.
pub(crate) struct Showing<R> {
    pub(crate) resource: R,
    pub(crate) view: View,
    /// Which of all things ever shown this is.
    pub(crate) epoch: u64,
    /// The display has the dma-buf itself.
    pub(crate) by_buffer: bool,
}

/// A cursor as the guest has set it.
pub(crate) struct CursorImage {
    pub(crate) format: Format,
    pub(crate) hot: (u32, u32),
    pub(crate) pixels: Vec<u8>,
}

/// One scanout.
struct Scanout<R> {
    connected: Option<Connected>,
    showing: Option<Showing<R>>,
    cursor: Option<CursorImage>,
    position: (i32, i32),
    /// How many cursors have been asked for: of two that are read at a time, the later one stays.
    cursors: u64,
}

/// All scanouts of a device.
pub(crate) struct Scanouts<R> {
    list: Vec<Scanout<R>>,
    last_epoch: u64,
}

impl<R: Copy + Eq> Scanouts<R> {
    /// `count` scanouts with nothing connected.
    pub(crate) fn new(count: u32) -> Self {
        let scanout = |_| Scanout { connected: None, showing: None, cursor: None, position: (0, 0), cursors: 0 };
        Self { list: (0..count).map(scanout).collect(), last_epoch: 0 }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.list.len() as u32
    }

    fn at(&self, scanout: u32) -> Option<&Scanout<R>> {
        self.list.get(scanout as usize)
    }

    fn at_mut(&mut self, scanout: u32) -> Option<&mut Scanout<R>> {
        self.list.get_mut(scanout as usize)
    }

    /// Whether there is such a scanout.
    pub(crate) fn has(&self, scanout: u32) -> bool {
        self.at(scanout).is_some()
    }

    fn connectable(&mut self, scanout: u32) -> Result<&mut Scanout<R>, ConnectError> {
        let count = self.count();
        self.at_mut(scanout).ok_or(ConnectError::Scanout { scanout, count })
    }

    /// Connects a display in place of what was connected.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing has changed then.
    pub(crate) fn connect(
        &mut self,
        scanout: u32,
        monitor: Monitor,
        display: Box<dyn Display>,
    ) -> Result<(), ConnectError> {
        let row = self.connectable(scanout)?;
        monitor.check()?;
        let edid = edid::edid(&monitor).into();
        row.connected = Some(Connected { monitor, edid, display });
        Ok(())
    }

    /// A display is another one to the guest: its size, its modes, its place.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and where nothing is connected.
    pub(crate) fn change(&mut self, scanout: u32, monitor: Monitor) -> Result<(), ConnectError> {
        let connected = &mut self.connectable(scanout)?.connected;
        let connected = connected.as_mut().ok_or(ConnectError::NotConnected { scanout })?;
        monitor.check()?;
        connected.edid = edid::edid(&monitor).into();
        connected.monitor = monitor;
        Ok(())
    }

    /// Drops the display of a scanout; false where there was none.
    ///
    /// # Errors
    /// There is no such scanout.
    pub(crate) fn disconnect(&mut self, scanout: u32) -> Result<bool, ConnectError> {
        Ok(self.connectable(scanout)?.connected.take().is_some())
    }

    /// What GET_DISPLAY_INFO answers.
    pub(crate) fn info(&self) -> Box<[DisplayOne; MAX_SCANOUTS]> {
        let mut info = Box::new([DisplayOne::new_zeroed(); MAX_SCANOUTS]);
        for (one, scanout) in info.iter_mut().zip(&self.list) {
            let Some(Connected { monitor, .. }) = &scanout.connected else { continue };
            let ((x, y), mode) = (monitor.position, monitor.preferred);
            one.rect = Rect { x: x.into(), y: y.into(), width: mode.width.into(), height: mode.height.into() };
            one.enabled = 1.into();
        }
        info
    }

    /// What GET_EDID answers, `None` where there is no such scanout; nothing in it where nothing is connected.
    pub(crate) fn edid(&self, scanout: u32) -> Option<Arc<[u8]>> {
        let connected = self.at(scanout)?.connected.as_ref();
        Some(connected.map_or_else(|| Arc::from([]), |connected| Arc::clone(&connected.edid)))
    }

    /// Shows part of a resource. `buffer` is the dma-buf that it is.
    pub(crate) fn show(&mut self, scanout: u32, resource: R, view: View, buffer: Option<BorrowedFd<'_>>) {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        let Some(row) = self.at_mut(scanout) else { return };
        row.showing = Some(Showing { resource, view, epoch, by_buffer: false });
        self.attach(scanout, buffer);
    }

    /// Tells the display what its scanout shows.
    pub(crate) fn attach(&mut self, scanout: u32, buffer: Option<BorrowedFd<'_>>) {
        let Some(row) = self.at_mut(scanout) else { return };
        let (Some(connected), Some(showing)) = (&mut row.connected, &mut row.showing) else { return };
        let View { format, width, height, shown, .. } = showing.view;
        let planes = showing.view.planes();
        let buffer = buffer.map(|file| DmaBuf { file, width, height, planes: &planes, shown });
        let mut picture = Picture { width: shown.width, height: shown.height, format, buffer };
        showing.by_buffer = buffer.is_some() && connected.display.takes_buffer(&picture);
        picture.buffer = buffer.filter(|_| showing.by_buffer);
        connected.display.attach(&picture);
    }

    /// What a scanout shows.
    pub(crate) fn showing(&self, scanout: u32) -> Option<&Showing<R>> {
        self.at(scanout)?.showing.as_ref()
    }

    /// The scanouts with a display that shows the resource.
    pub(crate) fn showing_resource(&self, resource: R) -> impl Iterator<Item = (u32, &Showing<R>)> {
        let rows = self.list.iter().enumerate().filter(|(_, row)| row.connected.is_some());
        rows.filter_map(move |(index, row)| {
            let showing = row.showing.as_ref().filter(|showing| showing.resource == resource)?;
            Some((index as u32, showing))
        })
    }

    /// Shows nothing.
    pub(crate) fn hide(&mut self, scanout: u32) {
        let Some(row) = self.at_mut(scanout) else { return };
        if row.showing.take().is_some()
            && let Some(connected) = &mut row.connected
        {
            connected.display.detach();
        }
    }

    /// A resource is no more: no scanout shows it from now on.
    pub(crate) fn forget(&mut self, resource: R) {
        for scanout in 0..self.count() {
            if self.showing(scanout).is_some_and(|showing| showing.resource == resource) {
                self.hide(scanout);
            }
        }
    }

    /// The display of a scanout, where it still shows what it showed at `epoch`.
    fn display_at(&mut self, scanout: u32, epoch: u64) -> Option<&mut Box<dyn Display>> {
        let row = self.at_mut(scanout)?;
        row.showing.as_ref().filter(|showing| showing.epoch == epoch)?;
        row.connected.as_mut().map(|connected| &mut connected.display)
    }

    /// Hands pixels to a display; false where it shows something else by now.
    pub(crate) fn draw(&mut self, scanout: u32, epoch: u64, area: Area, pixels: Pixels<'_>) -> bool {
        self.display_at(scanout, epoch).map(|display| display.draw(area, pixels)).is_some()
    }

    /// A frame is complete.
    pub(crate) fn frame(&mut self, scanout: u32, epoch: u64, damage: Area) -> Work<()> {
        self.display_at(scanout, epoch).map_or(Work::Done(()), |display| display.frame(damage))
    }

    /// A cursor has been asked for: its number.
    pub(crate) fn begin_cursor(&mut self, scanout: u32) -> u64 {
        let Some(row) = self.at_mut(scanout) else { return 0 };
        row.cursors += 1;
        row.cursors
    }

    /// Sets the cursor that was asked for under this number, unless a later one has been asked for.
    pub(crate) fn end_cursor(&mut self, scanout: u32, number: u64, image: Option<CursorImage>, position: (i32, i32)) {
        let Some(row) = self.at_mut(scanout).filter(|row| row.cursors == number) else { return };
        (row.cursor, row.position) = (image, position);
        self.tell_cursor(scanout);
    }

    /// Tells the display its cursor.
    pub(crate) fn tell_cursor(&mut self, scanout: u32) {
        let Some(row) = self.at_mut(scanout) else { return };
        let Some(connected) = &mut row.connected else { return };
        let cursor = row.cursor.as_ref().map(|image| Cursor {
            width: CURSOR_SIDE,
            height: CURSOR_SIDE,
            format: image.format,
            hot_x: image.hot.0,
            hot_y: image.hot.1,
            pixels: Pixels::new(&image.pixels, CURSOR_SIDE as usize * 4, CURSOR_SIDE, CURSOR_SIDE),
        });
        connected.display.cursor(cursor.as_ref(), row.position);
    }

    /// Moves the cursor.
    pub(crate) fn move_cursor(&mut self, scanout: u32, position: (i32, i32)) {
        let Some(row) = self.at_mut(scanout) else { return };
        row.position = position;
        if let Some(connected) = &mut row.connected {
            connected.display.move_cursor(position);
        }
    }

    /// Shows nothing anywhere, for a reset.
    pub(crate) fn reset(&mut self) {
        for scanout in 0..self.count() {
            self.hide(scanout);
            let Some(row) = self.at_mut(scanout) else { continue };
            row.cursors += 1;
            row.position = (0, 0);
            if row.cursor.take().is_some() {
                self.tell_cursor(scanout);
            }
        }
    }
}
