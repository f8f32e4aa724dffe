//! The displays of a device, for threads that show them: a handle of its own, that does not keep the device alive and may be
//! had before the device is built.

#[cfg(feature = "vhost-user")]
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::control::{Answer, Reply};
use crate::display::{ConnectError, Hold, Holds, Mode, Monitor};
use crate::seams::Display;

/// What is asked of a device's displays.
pub(super) enum Request {
    Connect {
        scanout: u32,
        monitor: Box<Monitor>,
        display: Box<dyn Display>,
        reply: Answer<Result<(), ConnectError>>,
    },
    Change {
        scanout: u32,
        change: Change,
        reply: Answer<Result<(), ConnectError>>,
    },
    Redraw {
        scanout: u32,
        reply: Answer<Result<(), ConnectError>>,
    },
    Disconnect {
        scanout: u32,
        reply: Answer<Result<bool, ConnectError>>,
    },
    #[cfg_attr(
        not(feature = "vhost-user"),
        expect(dead_code, reason = "a front-end's displays alone have to be asked for")
    )]
    Release {
        hold: Hold,
    },
}

/// What becomes of a monitor.
pub(super) type Change = Box<dyn FnOnce(&Monitor) -> Monitor + Send>;

/// The displays of a device: connects, changes, redraws and disconnects them while the guest runs, or before. Clones are the
/// same; any thread may have one, a display's own too. It does not keep the device alive: what is asked of a device that has
/// ended is answered [`DeviceGone`](crate::DeviceGone).
///
/// Every call is on its way when it returns, and stays so where nobody waits for the reply.
#[derive(Debug, Clone)]
pub struct Displays {
    pub(super) requests: UnboundedSender<Request>,
    pub(super) holds: Holds,
}

impl Displays {
    /// Connects a display to a scanout, in place of what was connected, and tells the driver. A display that comes while the
    /// guest shows something is shown that at once. On an error it is dropped.
    pub fn connect(&self, scanout: u32, monitor: Monitor, display: impl Display) -> Reply<Result<(), ConnectError>> {
        let (monitor, display) = (Box::new(monitor), Box::new(display));
        self.send(|reply| Request::Connect { scanout, monitor, display, reply })
    }

    /// A display is another one to the guest from now on: tells the driver. What is shown stays until the guest sets another
    /// mode.
    pub fn change_monitor(&self, scanout: u32, monitor: Monitor) -> Reply<Result<(), ConnectError>> {
        self.send(|reply| Request::Change { scanout, change: Box::new(|_| monitor), reply })
    }

    /// A display has another size in pixels, at 96 dpi, and is the same otherwise: tells the driver. An EDID that it was given is
    /// not told any more. Each call is an event for the guest, which sets a mode for it: whoever drags a window asks once it rests.
    pub fn resize(&self, scanout: u32, width: u32, height: u32) -> Reply<Result<(), ConnectError>> {
        let resized = move |monitor: &Monitor| Monitor {
            preferred: Mode { width, height, ..monitor.preferred },
            size_mm: None,
            edid: None,
            ..monitor.clone()
        };
        self.send(|reply| Request::Change { scanout, change: Box::new(resized), reply })
    }

    /// Tells a display anew what its scanout shows: the cursor, the picture (asked again whether it takes the dma-buf), all of
    /// its pixels. For one that has lost what it had, or found out late that it cannot import a dma-buf. The guest does not hear
    /// of it.
    pub fn redraw(&self, scanout: u32) -> Reply<Result<(), ConnectError>> {
        self.send(|reply| Request::Redraw { scanout, reply })
    }

    /// Disconnects and drops the display of a scanout, and tells the driver; the reply says whether there was one.
    pub fn disconnect(&self, scanout: u32) -> Reply<Result<bool, ConnectError>> {
        self.send(|reply| Request::Disconnect { scanout, reply })
    }

    /// Holds up the driver's questions about displays that come from now on, while somebody finds out what the displays are; all
    /// else goes on. Ends by [`release`](Self::release), and when the time is over.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn hold(&self, at_most: Duration) -> Hold {
        self.holds.hold(at_most)
    }

    /// Has the questions answered, after all that was asked of the displays before.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn release(&self, hold: Hold) {
        // A device that is gone drops it as well.
        let _ = self.requests.send(Request::Release { hold });
    }

    fn send<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Reply<T> {
        let (answer, reply) = Reply::new();
        // A device that is gone drops the request, and with it the other end of the reply.
        let _ = self.requests.send(request(answer));
        reply
    }
}
