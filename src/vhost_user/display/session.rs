//! The thread that speaks with a front-end: which displays it has, what they show. Whatever the front-end does, it ends with
//! the socket, and the device's displays with it.

use std::sync::Arc;

use zerocopy::IntoBytes;

use super::scanout::{Buffers, FrontEndDisplay};
use super::sender::Sender;
use super::slot::{Bell, Slot};
use super::wire::{self, DisplayInfo, DisplayOne, Link, LinkError, Request};
use crate::device::Displays;
use crate::display::{Hold, Monitor};
use crate::observe::warn_limited;

/// Size of an EDID's block, and where the first says how many others there are.
const BLOCK: usize = 128;
const EXTENSIONS: usize = 126;

/// A display of the front-end's that the device has.
struct Connected {
    monitor: Monitor,
    sender: Sender,
}

/// All that the thread has.
pub(super) struct Session {
    link: Link,
    displays: Displays,
    bell: Arc<Bell>,
    /// By scanout.
    connected: Vec<Option<Connected>>,
    dmabufs: bool,
    /// Of the protocol; none before the front-end has said.
    features: Option<u64>,
    /// What the driver's questions wait for, while the front-end is asked.
    hold: Option<Hold>,
    /// The message that is sent.
    message: Vec<u8>,
}

impl Session {
    pub(super) fn new(link: Link, displays: Displays, bell: Arc<Bell>, scanouts: u32, dmabufs: bool) -> Self {
        let connected = (0..scanouts).map(|_| None).collect();
        Self { link, displays, bell, connected, dmabufs, features: None, hold: None, message: Vec::new() }
    }

    /// Speaks with the front-end until one of the two has enough.
    pub(super) fn run(mut self) {
        let Err(error) = self.serve();
        match error {
            LinkError::Over => {}
            // A socket that was shut down, in the middle of something perhaps.
            _ if self.bell.is_over() => {}
            LinkError::Closed => tracing::debug!("the front-end has closed the display socket"),
            error => warn_limited!(%error, "the front-end's displays are disconnected"),
        }
        self.link.shut_down();
        for (scanout, connected) in self.connected.iter().enumerate() {
            if connected.as_ref().is_some_and(|connected| !connected.sender.is_gone()) {
                // Nobody is left to hear how it went.
                drop(self.displays.disconnect(scanout as u32));
            }
        }
        self.release();
        self.hold = self.bell.end();
        self.release();
    }

    /// Has questions answered that have waited, by what the device has been told by now.
    fn release(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.displays.release(hold);
        }
    }

    fn serve(&mut self) -> Result<std::convert::Infallible, LinkError> {
        loop {
            self.bell.silence();
            if self.bell.is_over() {
                return Err(LinkError::Over);
            }
            if let Some(hold) = self.bell.take_look() {
                self.hold = Some(hold);
                self.look()?;
                self.release();
            }
            let mut was_busy = false;
            for connected in self.connected.iter_mut().flatten() {
                was_busy |= connected.sender.send(&self.link, &mut self.message)?;
            }
            if !was_busy {
                self.link.idle(&*self.bell)?;
            }
        }
    }

    /// The features of the protocol that both sides have.
    fn features(&mut self) -> Result<u64, LinkError> {
        if let Some(features) = self.features {
            return Ok(features);
        }
        let theirs: u64 = self.link.ask(Request::GetProtocolFeatures, &[])?;
        let features = theirs & (wire::EDID | wire::DMABUF2);
        self.link.tell(Request::SetProtocolFeatures, &features)?;
        self.features = Some(features);
        Ok(features)
    }

    /// Asks the front-end what its displays are, and tells the device what it does not know.
    fn look(&mut self) -> Result<(), LinkError> {
        let features = self.features()?;
        let info: DisplayInfo = self.link.ask(Request::GetDisplayInfo, &[])?;
        for (scanout, one) in info.displays.iter().enumerate() {
            if scanout >= self.connected.len() {
                break;
            }
            let monitor = match one.enabled {
                0 => None,
                _ => Some(self.monitor(scanout as u32, one, features)?),
            };
            self.note(scanout, monitor, features)?;
        }
        Ok(())
    }

    /// What a guest is told of an enabled display.
    fn monitor(&self, scanout: u32, one: &DisplayOne, features: u64) -> Result<Monitor, LinkError> {
        let position = (one.x, one.y);
        let monitor = Monitor { position, ..Monitor::new(one.width, one.height) };
        monitor.check().map_err(|error| LinkError::Monitor { scanout, error })?;
        if features & wire::EDID == 0 {
            return Ok(monitor);
        }
        let answer: wire::Edid = self.link.ask(Request::GetEdid, scanout.as_bytes())?;
        let told = Monitor { edid: Some(edid(&answer)), ..monitor.clone() };
        match told.check() {
            Ok(()) => Ok(told),
            Err(error) => {
                warn_limited!(scanout, %error, "a front-end's EDID is not used");
                Ok(monitor)
            }
        }
    }

    /// A display of the front-end's is this one, or none. Nothing is done where it was before.
    fn note(&mut self, scanout: usize, monitor: Option<Monitor>, features: u64) -> Result<(), LinkError> {
        let Some(place) = self.connected.get_mut(scanout) else { return Ok(()) };
        let number = scanout as u32;
        match (place.as_mut(), monitor) {
            (Some(connected), Some(monitor)) if connected.monitor != monitor => {
                connected.monitor = monitor.clone();
                if !connected.sender.is_gone() {
                    drop(self.displays.change_monitor(number, monitor));
                }
            }
            (None, Some(monitor)) => {
                let buffers = match (self.dmabufs, features & wire::DMABUF2 != 0) {
                    (false, _) => Buffers::Never,
                    (true, false) => Buffers::Plain,
                    (true, true) => Buffers::OfAnyLayout,
                };
                let (slot, sent, heard) = Slot::new(Arc::clone(&self.bell));
                let display = FrontEndDisplay::new(number, buffers, Arc::clone(&slot), heard);
                drop(self.displays.connect(number, monitor.clone(), display));
                *place = Some(Connected { monitor, sender: Sender::new(number, slot, sent) });
            }
            (Some(_), None) => {
                if let Some(Connected { sender, .. }) = place.take() {
                    if !sender.is_gone() {
                        drop(self.displays.disconnect(number));
                    }
                    sender.end(&self.link)?;
                }
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        Ok(())
    }
}

/// The blocks that an EDID says it has; QEMU sends 1024 bytes, whatever it says.
fn edid(answer: &wire::Edid) -> Vec<u8> {
    let len = (answer.size as usize).min(answer.edid.len());
    let said = (usize::from(answer.edid[EXTENSIONS]) + 1) * BLOCK;
    answer.edid[..len.min(said)].to_vec()
}
