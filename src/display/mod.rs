//! Scanouts: what is connected to each, what the guest shows on it, and its cursor.
//! This room decides what a display is told; where pixels come from is the commands' business.

#[cfg(any(feature = "png", feature = "vhost-user"))]
pub(crate) mod canvas;
mod contained;
mod edid;
mod hold;
mod monitor;
mod null;
#[cfg(feature = "png")]
mod png;
mod view;

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use slotmap::Key;
use zerocopy::FromZeros;

pub(crate) use hold::{Hold, Holds};
pub use monitor::{Mode, Monitor, MonitorError};
pub use null::NullDisplay;
#[cfg(feature = "png")]
pub use png::PngDisplay;
pub(crate) use view::{View, ViewError, area, checked, inside, intersection};

use crate::observe::LiveCounters;
use crate::protocol::format::Format;
use crate::protocol::wire::{DisplayOne, MAX_SCANOUTS, Rect};
use crate::seams::{Area, Cursor, Display, DmaBuf, LocalFuture, Picture, Pixels, Plane};
use contained::Contained;

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
struct Connected<R> {
    monitor: Monitor,
    edid: Arc<[u8]>,
    display: Contained,
    /// Resources whose dma-bufs it has been given, and may know.
    taken: HashSet<R>,
}

/// Part of a resource on a scanout. `R` names a resource.
pub(crate) struct Showing<R> {
    pub(crate) resource: R,
    pub(crate) view: View,
    /// Which of all things ever shown this is.
    pub(crate) epoch: u64,
    /// The display has been told of it; one that has just come has not.
    attached: bool,
    /// The display has the dma-buf itself.
    pub(crate) by_buffer: bool,
}

/// The dma-buf that a picture lies in.
pub(crate) struct InBuffer<'a> {
    pub(crate) file: BorrowedFd<'a>,
    /// Its planes and its modifier, where somebody else than the guest knows them.
    pub(crate) layout: Option<(&'a [Plane], Option<u64>)>,
}

/// A cursor as the guest has set it.
pub(crate) struct CursorImage {
    pub(crate) format: Format,
    pub(crate) hot: (u32, u32),
    pub(crate) pixels: Vec<u8>,
}

/// One scanout.
struct Scanout<R> {
    connected: Option<Connected<R>>,
    showing: Option<Showing<R>>,
    cursor: Option<CursorImage>,
    position: (i32, i32),
    /// Cursors that have been asked for are numbered: of two that are read at a time, the later one stays.
    last_cursor: u64,
    /// The number of the one that is shown.
    shown_cursor: u64,
    /// Where the cursor is that was asked for last, once it is there.
    next_position: (i32, i32),
}

impl<R> Scanout<R> {
    /// Puts a display in place of another. What is on its way to the one before is not for this one.
    fn connect(&mut self, connected: Option<Connected<R>>) -> Option<Connected<R>> {
        if let Some(showing) = &mut self.showing {
            (showing.attached, showing.by_buffer) = (false, false);
        }
        std::mem::replace(&mut self.connected, connected)
    }
}

/// All scanouts of a device.
pub(crate) struct Scanouts<R> {
    list: Vec<Scanout<R>>,
    last_epoch: u64,
    holds: Holds,
    counters: Arc<LiveCounters>,
}

impl<R: Key> Scanouts<R> {
    /// `count` scanouts with nothing connected.
    pub(crate) fn new(count: u32, holds: Holds, counters: Arc<LiveCounters>) -> Self {
        let scanout = |_| Scanout {
            connected: None,
            showing: None,
            cursor: None,
            position: (0, 0),
            last_cursor: 0,
            shown_cursor: 0,
            next_position: (0, 0),
        };
        Self { list: (0..count).map(scanout).collect(), last_epoch: 0, holds, counters }
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
        let display = Contained::new(display, Arc::clone(&self.counters));
        let row = self.connectable(scanout)?;
        monitor.check()?;
        let edid = edid::edid(&monitor).into();
        row.connect(Some(Connected { monitor, edid, display, taken: HashSet::new() }));
        if row.cursor.is_some() {
            self.tell_cursor(scanout);
        }
        Ok(())
    }

    /// A display is another one to the guest: its size, its modes, its place.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and where nothing is connected.
    pub(crate) fn change(
        &mut self,
        scanout: u32,
        change: impl FnOnce(&Monitor) -> Monitor,
    ) -> Result<(), ConnectError> {
        let connected = &mut self.connectable(scanout)?.connected;
        let connected = connected.as_mut().ok_or(ConnectError::NotConnected { scanout })?;
        let monitor = change(&connected.monitor);
        monitor.check()?;
        connected.edid = edid::edid(&monitor).into();
        connected.monitor = monitor;
        Ok(())
    }

    /// Tells the display its cursor, for one that asks to be told anew.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub(crate) fn tell_again(&mut self, scanout: u32) -> Result<(), ConnectError> {
        if self.connectable(scanout)?.connected.is_none() {
            return Err(ConnectError::NotConnected { scanout });
        }
        self.tell_cursor(scanout);
        Ok(())
    }

    /// Drops the display of a scanout; false where there was none.
    ///
    /// # Errors
    /// There is no such scanout.
    pub(crate) fn disconnect(&mut self, scanout: u32) -> Result<bool, ConnectError> {
        Ok(self.connectable(scanout)?.connect(None).is_some())
    }

    /// What a question about displays is to wait for; `None` where the answer is known.
    pub(crate) fn hold(&self) -> Option<impl Future<Output = ()> + use<R>> {
        self.holds.wait()
    }

    /// Questions that wait do so no longer, because their driver has gone.
    pub(crate) fn end_holds(&self) {
        self.holds.reset();
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
    pub(crate) fn show(&mut self, scanout: u32, resource: R, view: View, buffer: Option<InBuffer<'_>>) {
        let Some(row) = self.at_mut(scanout) else { return };
        row.showing = Some(Showing { resource, view, epoch: 0, attached: false, by_buffer: false });
        self.attach(scanout, buffer);
    }

    /// Tells the display what its scanout shows. What is on its way to the display from before is not drawn any more.
    pub(crate) fn attach(&mut self, scanout: u32, buffer: Option<InBuffer<'_>>) {
        self.last_epoch += 1;
        let epoch = self.last_epoch;
        let Some(row) = self.at_mut(scanout) else { return };
        let Some(showing) = &mut row.showing else { return };
        (showing.epoch, showing.attached, showing.by_buffer) = (epoch, false, false);
        let Some(connected) = &mut row.connected else { return };
        showing.attached = true;
        let View { format, width, height, shown, .. } = showing.view;
        let (stated, id) = (showing.view.planes(), showing.resource.data().as_ffi());
        let buffer = buffer.map(|InBuffer { file, layout }| {
            let (planes, modifier) = layout.unwrap_or((&stated, None));
            DmaBuf { file, id, width, height, planes, modifier, shown }
        });
        let mut picture = Picture { width: shown.width, height: shown.height, format, buffer };
        let taken = connected.display.call(|display| buffer.is_some() && display.takes_buffer(&picture));
        showing.by_buffer = taken == Some(true);
        if showing.by_buffer {
            connected.taken.insert(showing.resource);
        }
        picture.buffer = buffer.filter(|_| showing.by_buffer);
        connected.display.call(|display| display.attach(&picture));
    }

    /// What a scanout shows.
    pub(crate) fn showing(&self, scanout: u32) -> Option<&Showing<R>> {
        self.at(scanout)?.showing.as_ref()
    }

    /// The scanouts with a display that shows the resource.
    pub(crate) fn showing_resource(&self, resource: R) -> impl Iterator<Item = (u32, &Showing<R>)> {
        self.list.iter().enumerate().filter_map(move |(index, row)| {
            let showing = row.showing.as_ref().filter(|showing| showing.attached && showing.resource == resource)?;
            Some((index as u32, showing))
        })
    }

    /// Shows nothing.
    pub(crate) fn hide(&mut self, scanout: u32) {
        let Some(row) = self.at_mut(scanout) else { return };
        if row.showing.take().is_some_and(|showing| showing.attached)
            && let Some(connected) = &mut row.connected
        {
            connected.display.call(|display| display.detach());
        }
    }

    /// A resource is no more: no scanout shows it from now on, and no display knows its dma-buf.
    pub(crate) fn forget(&mut self, resource: R) {
        for scanout in 0..self.count() {
            if self.showing(scanout).is_some_and(|showing| showing.resource == resource) {
                self.hide(scanout);
            }
            let Some(connected) = self.at_mut(scanout).and_then(|row| row.connected.as_mut()) else { continue };
            if connected.taken.remove(&resource) {
                connected.display.call(|display| display.forget(resource.data().as_ffi()));
            }
        }
    }

    /// The display of a scanout, where it still shows what it showed at `epoch`.
    fn display_at(&mut self, scanout: u32, epoch: u64) -> Option<&mut Contained> {
        let row = self.at_mut(scanout)?;
        row.showing.as_ref().filter(|showing| showing.attached && showing.epoch == epoch)?;
        row.connected.as_mut().map(|connected| &mut connected.display)
    }

    /// Hands pixels to a display; false where it shows something else by now.
    pub(crate) fn draw(&mut self, scanout: u32, epoch: u64, area: Area, pixels: Pixels<'_>) -> bool {
        let display = self.display_at(scanout, epoch);
        display.and_then(|display| display.call(|display| display.draw(area, pixels))).is_some()
    }

    /// A frame is complete: `None` where the display shows something else by now, else what the display is still doing.
    pub(crate) fn frame(&mut self, scanout: u32, epoch: u64, damage: Area) -> Option<Option<LocalFuture<()>>> {
        self.display_at(scanout, epoch)?.frame(|display| display.frame(damage))
    }

    /// Drops the displays whose frames have panicked.
    pub(crate) fn sweep(&mut self) {
        self.list.iter_mut().filter_map(|row| row.connected.as_mut()).for_each(|connected| connected.display.sweep());
    }

    /// A cursor has been asked for, to be at this position: its number.
    pub(crate) fn begin_cursor(&mut self, scanout: u32, position: (i32, i32)) -> u64 {
        let Some(row) = self.at_mut(scanout) else { return 0 };
        row.next_position = position;
        row.last_cursor += 1;
        row.last_cursor
    }

    /// Sets the cursor that was asked for under this number, unless a later one is shown already.
    pub(crate) fn end_cursor(&mut self, scanout: u32, number: u64, image: Option<CursorImage>) {
        let Some(row) = self.at_mut(scanout).filter(|row| row.shown_cursor < number) else { return };
        row.shown_cursor = number;
        row.cursor = image;
        row.position = row.next_position;
        self.tell_cursor(scanout);
    }

    /// Tells the display its cursor.
    fn tell_cursor(&mut self, scanout: u32) {
        let Some(row) = self.at_mut(scanout) else { return };
        let (Some(connected), position) = (&mut row.connected, row.position) else { return };
        let cursor = row.cursor.as_ref().map(|image| Cursor::new(image.format, image.hot, &image.pixels));
        connected.display.call(|display| display.cursor(cursor.as_ref(), position));
    }

    /// Moves the cursor, also one that is not there yet.
    pub(crate) fn move_cursor(&mut self, scanout: u32, position: (i32, i32)) {
        let Some(row) = self.at_mut(scanout) else { return };
        (row.position, row.next_position) = (position, position);
        if let Some(connected) = &mut row.connected {
            connected.display.call(|display| display.move_cursor(position));
        }
    }

    /// Shows nothing anywhere, for a reset.
    pub(crate) fn reset(&mut self) {
        for scanout in 0..self.count() {
            self.hide(scanout);
            let Some(row) = self.at_mut(scanout) else { continue };
            row.shown_cursor = row.last_cursor;
            (row.position, row.next_position) = ((0, 0), (0, 0));
            if row.cursor.take().is_some() {
                self.tell_cursor(scanout);
            }
            let Some(connected) = self.at_mut(scanout).and_then(|row| row.connected.as_mut()) else { continue };
            for resource in std::mem::take(&mut connected.taken) {
                connected.display.call(|display| display.forget(resource.data().as_ffi()));
            }
        }
    }
}
