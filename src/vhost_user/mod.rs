//! The device as a vhost-user back-end, for VMMs that embed none: one front-end at a time describes guest memory and queues over
//! a Unix socket, maps blobs into its guest, and shows what the guest draws. The device behind it is the one that a VMM embeds.

mod calls;
mod connection;
mod display;
mod front;
mod memory;
mod rings;
mod window;
mod wire;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub use connection::{CutOff, Stopper};
pub use memory::SharedGuestMemory;

use crate::device::{BuildError, Builder, Device};
use window::FrontEndWindow;
use wire::Wire;

/// What a back-end offers to its front-ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct VhostUserSettings {
    /// Length of the host-visible region in bytes; `None` is none.
    window: Option<u64>,
    displays: Option<Displays>,
}

/// Displays of the front-end's.
#[derive(Debug, Clone, Copy)]
struct Displays {
    scanouts: u32,
    dmabufs: bool,
}

impl VhostUserSettings {
    /// Without a host-visible region, and without displays of the front-end's.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a host-visible region of `len` bytes (`VHOST_USER_PROTOCOL_F_SHMEM`), which guests map blobs into. A front-end that
    /// does without leaves its guests without blobs of the host's.
    #[must_use]
    pub fn window(mut self, len: u64) -> Self {
        self.window = Some(len).filter(|len| *len > 0);
        self
    }

    /// Shows the first `scanouts` scanouts on the displays that a front-end has (`VHOST_USER_GPU_SET_SOCKET`), by their pixels;
    /// with `dmabufs` pictures in dma-bufs as those, for front-ends that can import them: there is no way to ask one.
    #[must_use]
    pub fn displays(mut self, scanouts: u32, dmabufs: bool) -> Self {
        self.displays = Some(Displays { scanouts, dmabufs });
        self
    }
}

/// A device that serves front-ends, one after the other.
#[derive(Debug)]
pub struct VhostUserServer {
    device: Device<SharedGuestMemory>,
    settings: VhostUserSettings,
    wire: Arc<Wire>,
    stopper: Stopper,
}

impl VhostUserServer {
    /// Makes the device of `builder`, on a thread of its own. The window is this server's business.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(builder: Builder, settings: VhostUserSettings) -> Result<Self, BuildError> {
        let wire = Arc::new(Wire::default());
        let builder = match settings.window {
            Some(len) => builder.window(FrontEndWindow { len, wire: Arc::clone(&wire) }),
            None => builder,
        };
        Ok(Self { device: builder.spawn()?, settings, wire, stopper: Stopper::default() })
    }

    /// The device, for what a front-end has no message for: [displays](Device::connect), [counters](Device::counters). Its
    /// queues are the front-end's.
    #[must_use]
    pub fn device(&self) -> &Device<SharedGuestMemory> {
        &self.device
    }

    /// Ends [`serve`](Self::serve) from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves a front-end on this thread until it leaves or is stopped. The device is reset then, and whatever the front-end has
    /// sent is closed and unmapped: another may come.
    ///
    /// # Errors
    /// The front-end was cut off. After [`CutOff::Gone`] nobody is served any more.
    pub fn serve(&mut self, front_end: UnixStream) -> Result<(), CutOff> {
        connection::serve(&self.device, self.settings, &self.wire, &self.stopper, front_end)
    }
}
