//! What one display has left is sent: what is shown, what of it is new, and the cursor.

use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::watch;
use zerocopy::IntoBytes;

use super::damage::Damage;
use super::slot::{CursorChange, Letters, Show, Slot};
use super::wire::{
    CursorPos, CursorUpdate, DmabufScanout, DmabufScanout2, Link, LinkError, Request, Scanout, Update, begin,
};
use crate::display::canvas::Canvas;
use crate::protocol::format::{Format, PIXEL};
use crate::seams::Area;

/// Bytes of pixels in a message. A front-end reads a message whole before it does anything else.
const BAND: u64 = 1 << 20;

/// What the front-end takes a scanout for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Pixels(u32, u32),
    Buffer,
}

/// The thread's end of a display.
pub(super) struct Sender {
    scanout: u32,
    slot: Arc<Slot>,
    sent: watch::Sender<u64>,
    told: Told,
    /// The front-end has nothing of the picture yet.
    is_new: bool,
    has_cursor: bool,
    is_gone: bool,
}

impl Sender {
    pub(super) fn new(scanout: u32, slot: Arc<Slot>, sent: watch::Sender<u64>) -> Self {
        Self { scanout, slot, sent, told: Told::Nothing, is_new: false, has_cursor: false, is_gone: false }
    }

    /// The device has dropped the display by itself.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Sends what there is, by way of `message`; true where there was something.
    pub(super) fn send(&mut self, link: &Link, message: &mut Vec<u8>) -> Result<bool, LinkError> {
        let Letters { show, canvas, damage, flush, cursor, gone } = self.slot.take();
        self.is_gone = gone;
        let is_silent = show.is_none() && cursor.is_none() && damage.bounds().is_none();
        if let Some((change, position)) = cursor {
            self.send_cursor(link, change, position, message)?;
        }
        if let Some(show) = show {
            self.show(link, show)?;
        }
        match canvas {
            Some(canvas) => self.send_pixels(link, &canvas, damage, message)?,
            None => self.send_update(link, &damage)?,
        }
        if *self.sent.borrow() != flush {
            self.sent.send_replace(flush);
        }
        Ok(!is_silent)
    }

    /// The scanout is nobody's any more.
    pub(super) fn end(mut self, link: &Link) -> Result<(), LinkError> {
        self.show(link, Show::Nothing)?;
        self.send_cursor(link, CursorChange::Hidden, (0, 0), &mut Vec::new())
    }

    fn show(&mut self, link: &Link, show: Show) -> Result<(), LinkError> {
        let wanted = match &show {
            Show::Nothing => Told::Nothing,
            Show::Pixels(width, height) => Told::Pixels(*width, *height),
            Show::Buffer(..) => Told::Buffer,
        };
        self.is_new = true;
        if self.told == Told::Buffer && wanted != Told::Buffer {
            let off = DmabufScanout { scanout: self.scanout, ..zerocopy::FromZeros::new_zeroed() };
            link.tell(Request::DmabufScanout, &off)?;
            self.told = Told::Nothing;
        }
        match show {
            Show::Buffer(file, scanout, Some(modifier)) if modifier != 0 => {
                link.hand(Request::DmabufScanout2, &DmabufScanout2 { scanout, modifier }, file.as_fd())?;
            }
            Show::Buffer(file, scanout, _) => link.hand(Request::DmabufScanout, &scanout, file.as_fd())?,
            // A front-end may begin a new picture each time that it is told one.
            _ if self.told == wanted => {}
            Show::Nothing => link.tell(Request::Scanout, &self.sized(0, 0))?,
            Show::Pixels(width, height) => link.tell(Request::Scanout, &self.sized(width, height))?,
        }
        self.told = wanted;
        Ok(())
    }

    fn sized(&self, width: u32, height: u32) -> Scanout {
        Scanout { scanout: self.scanout, width, height }
    }

    fn update(&self, Area { x, y, width, height }: Area) -> Update {
        Update { scanout: self.scanout, x, y, width, height }
    }

    /// Sends what is new of a picture, in bands.
    fn send_pixels(
        &mut self,
        link: &Link,
        canvas: &Canvas,
        mut damage: Damage,
        message: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        if std::mem::take(&mut self.is_new) {
            let (width, height) = canvas.size();
            damage.add(Area { x: 0, y: 0, width, height }, canvas.size());
        }
        for area in damage.areas() {
            let most = (BAND / u64::from(area.width * PIXEL)).max(1) as u32;
            for drawn in (0..area.height).step_by(most as usize) {
                let height = most.min(area.height - drawn);
                let band = Area { y: area.y + drawn, height, ..*area };
                let len = band.width as usize * band.height as usize * PIXEL as usize;
                begin(message, Request::Update, self.update(band).as_bytes(), len);
                append(message, canvas, band);
                link.send(message, None)?;
            }
        }
        Ok(())
    }

    /// The dma-buf has been drawn on; waits until the front-end has seen that.
    fn send_update(&self, link: &Link, damage: &Damage) -> Result<(), LinkError> {
        match damage.bounds() {
            Some(bounds) if self.told == Told::Buffer => {
                link.ask::<[u8; 0]>(Request::DmabufUpdate, self.update(bounds).as_bytes())?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn send_cursor(
        &mut self,
        link: &Link,
        change: CursorChange,
        (x, y): (i32, i32),
        message: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        let pos = CursorPos { scanout: self.scanout, x, y };
        match change {
            CursorChange::Shape(sprite) => {
                let update = CursorUpdate { pos, hot_x: sprite.hot.0, hot_y: sprite.hot.1 };
                begin(message, Request::CursorUpdate, update.as_bytes(), sprite.pixels.len());
                message.extend_from_slice(&sprite.pixels);
                link.send(message, None)?;
                self.has_cursor = true;
            }
            CursorChange::Moved => link.tell(Request::CursorPos, &pos)?,
            CursorChange::Hidden if self.has_cursor => {
                link.tell(Request::CursorPosHide, &pos)?;
                self.has_cursor = false;
            }
            CursorChange::Hidden => {}
        }
        Ok(())
    }
}

/// Appends an area of a picture in the order of bytes that front-ends take: blue, green, red, nothing.
fn append(message: &mut Vec<u8>, canvas: &Canvas, area: Area) {
    let columns = (area.x * PIXEL) as usize..((area.x + area.width) * PIXEL) as usize;
    let rows = canvas.rows().skip(area.y as usize).take(area.height as usize).map(|row| &row[columns.clone()]);
    if matches!(canvas.format(), Format::B8G8R8X8 | Format::B8G8R8A8) {
        rows.for_each(|row| message.extend_from_slice(row));
        return;
    }
    let [red, green, blue, _] = canvas.format().rgba([0, 1, 2, 3]).map(usize::from);
    for row in rows {
        message.extend(row.as_chunks::<4>().0.iter().flat_map(|pixel| [pixel[blue], pixel[green], pixel[red], 0xff]));
    }
}
