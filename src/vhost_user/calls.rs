//! How a driver behind a front-end is interrupted: by eventfds that the front-end may change at any time.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{ReadWriteFlags, preadv2};

use super::rings::QUEUES;
use super::wire::Wire;
use crate::device::{DeviceGone, Reply};
use crate::seams::Interrupt;

/// Between two looks at whether the device is stuck.
const LOOK: Duration = Duration::from_millis(100);

/// The eventfds of a queue.
#[derive(Default)]
struct Events {
    call: Option<Arc<File>>,
    error: Option<Arc<File>>,
}

/// The eventfds of all queues, and the way to tell of a changed configuration.
pub(super) struct Calls {
    queues: [Mutex<Events>; QUEUES],
    /// Those that were replaced, and may still be written to.
    left: Mutex<Vec<Arc<File>>>,
    wire: Arc<Wire>,
    /// The front-end has displays of its own, and tells the driver itself when they change.
    displays: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self { queues: Default::default(), left: Mutex::default(), wire, displays: AtomicBool::new(false) }
    }

    /// The driver of queue `index` is interrupted by this from now on.
    ///
    /// # Errors
    /// It is no eventfd.
    pub(super) fn set_call(&self, index: usize, call: Option<File>) -> io::Result<()> {
        let call = call.map(never_waiting).transpose()?;
        let before = std::mem::replace(&mut lock(&self.queues[index]).call, call);
        self.leave(before);
        Ok(())
    }

    /// The front-end hears by this that queue `index` is broken.
    ///
    /// # Errors
    /// As [`set_call`](Self::set_call).
    pub(super) fn set_error(&self, index: usize, error: Option<File>) -> io::Result<()> {
        let error = error.map(never_waiting).transpose()?;
        let before = std::mem::replace(&mut lock(&self.queues[index]).error, error);
        self.leave(before);
        Ok(())
    }

    fn leave(&self, event: Option<Arc<File>>) {
        let mut left = lock(&self.left);
        left.retain(|event| Arc::strong_count(event) > 1);
        left.extend(event);
    }

    /// The front-end has displays of its own, or not.
    pub(super) fn has_displays(&self, displays: bool) {
        self.displays.store(displays, Ordering::Relaxed);
    }

    /// Waits for the device, and sees to it that it does not wait for the front-end: one that takes the flag off an eventfd again
    /// and fills it at the right moment has the device sleep in a write.
    ///
    /// # Errors
    /// The device has stopped.
    pub(super) fn wait<T>(&self, reply: Reply<T>) -> Result<T, DeviceGone> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let (mut reply, mut context) = (pin!(reply), Context::from_waker(&waker));
        loop {
            if let Poll::Ready(result) = reply.as_mut().poll(&mut context) {
                return result;
            }
            std::thread::park_timeout(LOOK);
            let now = self.queues.iter().flat_map(|queue| {
                let Events { call, error } = &*lock(queue);
                [call.clone(), error.clone()]
            });
            now.flatten().for_each(|event| make_room(&event));
            lock(&self.left).iter().for_each(|event| make_room(event));
        }
    }

    /// Forgets all eventfds.
    pub(super) fn clear(&self) {
        self.queues.iter().for_each(|queue| *lock(queue) = Events::default());
        lock(&self.left).clear();
        self.has_displays(false);
    }
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An eventfd: all else could be on a file system that takes its time, or be ready without end. By the kernel's own name for it,
/// which no file of a file system can have.
pub(super) fn expect_eventfd(file: &File) -> io::Result<()> {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if name.as_os_str() == "anon_inode:[eventfd]" { Ok(()) } else { Err(io::Error::other("not an eventfd")) }
}

/// A front-end that does not listen must not stop the device. The flag is the front-end's own, too: it is one description.
fn never_waiting(event: File) -> io::Result<Arc<File>> {
    expect_eventfd(&event)?;
    let flags = fcntl_getfl(&event)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(&event, flags | OFlags::NONBLOCK)?;
    }
    Ok(Arc::new(event))
}

/// Whether the event has come, without waiting for it.
fn is_ready(event: &File, what: PollFlags) -> bool {
    let mut events = [PollFd::new(event, what)];
    matches!(poll(&mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1)) && events[0].revents().contains(what)
}

fn add_one(event: Option<Arc<File>>) {
    // What has been written is still to be read where there is no room: the front-end will wake up all the same.
    if let Some(event) = event.filter(|event| is_ready(event, PollFlags::OUT)) {
        let _ = rustix::io::write(&*event, &1u64.to_ne_bytes());
    }
}

/// Empties an eventfd that is full.
fn make_room(event: &File) {
    if !is_ready(event, PollFlags::OUT) {
        let mut count = [0; 8];
        // Without waiting, whatever the front-end has done to its flags meanwhile. The offset is the file's own position.
        let _ = preadv2(event, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT);
    }
}

/// The device's way to the calls.
pub(super) struct Driver(pub(super) Arc<Calls>);

impl Interrupt for Driver {
    fn queue(&self, index: u16) {
        if let Some(queue) = self.0.queues.get(usize::from(index)) {
            let call = lock(queue).call.clone();
            add_one(call);
        }
    }

    fn config_changed(&self) {
        if !self.0.displays.load(Ordering::Relaxed) {
            self.0.wire.config_changed();
        }
    }

    fn needs_reset(&self) {
        for queue in &self.0.queues {
            let error = lock(queue).error.clone();
            add_one(error);
        }
    }
}
