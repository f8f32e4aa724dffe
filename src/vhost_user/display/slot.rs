//! Where a display leaves what the thread is to send: the newest of everything, one picture at most, so that a front-end that
//! reads slowly is sent less, and never later and later.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;

use super::damage::Damage;
use super::wire::DmabufScanout;
use crate::device::Displays;
use crate::display::Hold;
use crate::display::canvas::Canvas;

/// How long a driver's questions about displays are held up for a front-end's answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the first, before which a guest would be told of no display, and perhaps not ask again.
    pub(super) first: Duration,
    /// For those that follow, before which a guest is told what was known.
    pub(super) next: Duration,
}

/// What the thread is to do besides.
#[derive(Default)]
struct Orders {
    /// To look at the front-end's displays: questions about them wait for it.
    look: Option<Hold>,
    /// To end; or it has.
    over: bool,
}

/// What wakes the thread, and why.
pub(super) struct Bell {
    rung: OwnedFd,
    orders: Mutex<Orders>,
    displays: Displays,
    patience: Patience,
}

impl Bell {
    /// A bell that has been rung for a first look at the front-end's displays: from now on questions wait for that.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub(super) fn new(displays: Displays, patience: Patience) -> rustix::io::Result<Self> {
        let rung = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let orders = Orders { look: Some(displays.hold(patience.first)), over: false };
        Ok(Self { rung, orders: Mutex::new(orders), displays, patience })
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // One that has been rung too often to be rung once more is still ringing.
        let _ = rustix::io::write(&self.rung, &1_u64.to_ne_bytes());
    }

    /// The front-end's displays may be others. A hint that has not been followed yet is enough.
    pub(super) fn refresh(&self) {
        let mut orders = self.orders();
        if !orders.over {
            orders.look.get_or_insert_with(|| self.displays.hold(self.patience.next));
            self.ring();
        }
    }

    /// The thread is to end, or has: nobody follows a hint any more.
    pub(super) fn end(&self) -> Option<Hold> {
        let mut orders = self.orders();
        orders.over = true;
        self.ring();
        orders.look.take()
    }

    pub(super) fn is_over(&self) -> bool {
        self.orders().over
    }

    /// Whether the front-end's displays are to be looked at.
    pub(super) fn take_look(&self) -> Option<Hold> {
        self.orders().look.take()
    }

    /// Silences it. What it was rung for is to be looked for after that.
    pub(super) fn silence(&self) {
        let _ = rustix::io::read(&self.rung, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rung.as_fd()
    }
}

/// What a scanout shows.
pub(super) enum Show {
    Nothing,
    /// Pixels: width and height.
    Pixels(u32, u32),
    /// A dma-buf, where its picture lies in it, and its layout where it is known.
    Buffer(OwnedFd, DmabufScanout, Option<u64>),
}

/// A cursor's image: its pixels in the order that front-ends take, and the pixel that points.
pub(super) struct Sprite {
    pub(super) hot: (u32, u32),
    pub(super) pixels: Vec<u8>,
}

/// What has become of the cursor.
pub(super) enum CursorChange {
    Shape(Sprite),
    Moved,
    Hidden,
}

/// What the thread has not taken yet.
#[derive(Default)]
pub(super) struct Letters {
    /// Something else is shown.
    pub(super) show: Option<Show>,
    /// The picture, where it is one of pixels and has been flushed.
    pub(super) canvas: Option<Canvas>,
    /// What has been flushed.
    pub(super) damage: Damage,
    /// The number of the last flush.
    pub(super) flush: u64,
    /// The cursor has changed, and is there.
    pub(super) cursor: Option<(CursorChange, (i32, i32))>,
    /// The display is no more.
    pub(super) gone: bool,
}

impl Letters {
    /// Something else is shown: what was flushed before is of no use.
    pub(super) fn show(&mut self, show: Show) {
        self.show = Some(show);
        self.canvas = None;
        self.damage = Damage::default();
    }

    /// The cursor has moved.
    pub(super) fn move_cursor(&mut self, to: (i32, i32)) {
        match &mut self.cursor {
            Some((_, position)) => *position = to,
            none => *none = Some((CursorChange::Moved, to)),
        }
    }
}

/// The letters of one display.
pub(super) struct Slot {
    letters: Mutex<Letters>,
    bell: Arc<Bell>,
}

impl Slot {
    /// A slot, and its two ends besides: what tells how far the thread has come, and what hears it.
    pub(super) fn new(bell: Arc<Bell>) -> (Arc<Self>, watch::Sender<u64>, watch::Receiver<u64>) {
        let (tell, sent) = watch::channel(0);
        (Arc::new(Self { letters: Mutex::default(), bell }), tell, sent)
    }

    /// Held for moments only, by the thread as well as by the device's.
    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something for the thread.
    pub(super) fn leave(&self, leave: impl FnOnce(&mut Letters)) {
        leave(&mut self.lock());
        self.bell.ring();
    }

    /// Takes what there is.
    pub(super) fn take(&self) -> Letters {
        let mut letters = self.lock();
        let (flush, gone) = (letters.flush, letters.gone);
        std::mem::replace(&mut *letters, Letters { flush, gone, ..Letters::default() })
    }
}
