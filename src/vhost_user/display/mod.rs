//! A front-end's displays (`VHOST_USER_GPU_SET_SOCKET`): what the guest shows goes over a socket of its own to who has windows.
//!
//! A thread speaks with the front-end, and nobody waits for it: a display notes what it is told and returns. What the
//! front-end's displays are is asked when they may have changed, not when a guest asks; a guest that asks while that is found
//! out is answered a moment later.

mod damage;
mod scanout;
mod sender;
mod session;
mod slot;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::device::Displays;
use session::Session;
use slot::{Bell, Patience};
use wire::Link;

/// QEMU tells a guest itself that a display has changed, and the guest asks at once, and once.
const PATIENCE: Patience = Patience { first: Duration::from_secs(1), next: Duration::from_millis(200) };

/// The displays that a front-end offers. When this is dropped they are disconnected, and the thread has ended.
pub(super) struct FrontEndDisplays {
    bell: Arc<Bell>,
    socket: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl FrontEndDisplays {
    /// Takes up the socket that a front-end has handed over: asks it for its displays, and connects those that are enabled to the
    /// first `scanouts` of `displays`. Those that answer nonsense are disconnected, with a word in the log. From the call on a
    /// driver's questions about displays wait until that is done, for a second at most, and nothing else does.
    ///
    /// `dmabufs` gives it pictures that lie in dma-bufs as those, where its messages have words for them: a front-end has none for
    /// whether it can import one.
    ///
    /// # Errors
    /// There is no descriptor for it, or no thread.
    pub(super) fn start(socket: UnixStream, displays: Displays, scanouts: u32, dmabufs: bool) -> io::Result<Self> {
        Self::patient(PATIENCE, socket, displays, scanouts, dmabufs)
    }

    fn patient(
        patience: Patience,
        socket: UnixStream,
        displays: Displays,
        scanouts: u32,
        dmabufs: bool,
    ) -> io::Result<Self> {
        let bell = Arc::new(Bell::new(displays.clone(), patience)?);
        let link = Link::new(socket.try_clone()?);
        let session = Session::new(link, displays, Arc::clone(&bell), scanouts, dmabufs);
        let thread = thread::Builder::new().name("vhost displays".to_owned()).spawn(move || session.run())?;
        Ok(Self { bell, socket, thread: Some(thread) })
    }

    /// The front-end's displays may be others: asks for them anew, and returns. Hints that come before it is asked are one.
    /// A driver's questions that come after the call are answered by what it says, or after 200 ms by what was known.
    pub(super) fn refresh(&self) {
        self.bell.refresh();
    }
}

impl Drop for FrontEndDisplays {
    fn drop(&mut self) {
        drop(self.bell.end());
        // Whatever the thread waits for comes over the socket, and ends with it. One that is gone already has ended it.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; and if it did, that has been said.
            let _ = thread.join();
        }
    }
}
