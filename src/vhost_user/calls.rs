//! How a driver behind a front-end is interrupted: by eventfds that the front-end may change at any time.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::rings::QUEUES;
use super::wire::Wire;
use crate::seams::Interrupt;

/// The eventfds of a queue.
#[derive(Default)]
struct Events {
    call: Option<File>,
    error: Option<File>,
}

/// The eventfds of all queues, and the way to tell of a changed configuration.
pub(super) struct Calls {
    queues: [Mutex<Events>; QUEUES],
    wire: Arc<Wire>,
    /// The front-end has displays of its own, and tells the driver itself when they change.
    displays: AtomicBool,
}

fn lock(events: &Mutex<Events>) -> MutexGuard<'_, Events> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self { queues: Default::default(), wire, displays: AtomicBool::new(false) }
    }

    /// The driver of queue `index` is interrupted by this from now on.
    ///
    /// # Errors
    /// It cannot be made to never wait.
    pub(super) fn set_call(&self, index: usize, call: Option<File>) -> io::Result<()> {
        let call = call.map(never_waiting).transpose()?;
        lock(&self.queues[index]).call = call;
        Ok(())
    }

    /// The front-end hears by this that queue `index` is broken.
    ///
    /// # Errors
    /// As [`set_call`](Self::set_call).
    pub(super) fn set_error(&self, index: usize, error: Option<File>) -> io::Result<()> {
        let error = error.map(never_waiting).transpose()?;
        lock(&self.queues[index]).error = error;
        Ok(())
    }

    /// The front-end has displays of its own, or not.
    pub(super) fn has_displays(&self, displays: bool) {
        self.displays.store(displays, Ordering::Relaxed);
    }

    /// Forgets all eventfds.
    pub(super) fn clear(&self) {
        self.queues.iter().for_each(|queue| *lock(queue) = Events::default());
        self.has_displays(false);
    }
}

/// A front-end that does not listen must not stop the device. The flag is the front-end's own, too: it is one description.
fn never_waiting(event: File) -> io::Result<File> {
    let flags = fcntl_getfl(&event)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(&event, flags | OFlags::NONBLOCK)?;
    }
    Ok(event)
}

fn add_one(event: Option<&File>) {
    if let Some(event) = event {
        // What has been written is still to be read where there is no room: the front-end will wake up all the same.
        let _ = rustix::io::write(event, &1u64.to_ne_bytes());
    }
}

/// The device's way to the calls.
pub(super) struct Driver(pub(super) Arc<Calls>);

impl Interrupt for Driver {
    fn queue(&self, index: u16) {
        if let Some(queue) = self.0.queues.get(usize::from(index)) {
            add_one(lock(queue).call.as_ref());
        }
    }

    fn config_changed(&self) {
        if !self.0.displays.load(Ordering::Relaxed) {
            self.0.wire.config_changed();
        }
    }

    fn needs_reset(&self) {
        self.0.queues.iter().for_each(|queue| add_one(lock(queue).error.as_ref()));
    }
}
