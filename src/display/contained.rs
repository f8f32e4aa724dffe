//! A display of the VMM's behind a wall: one that panics is lost, and nobody else with it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use crate::observe::{LiveCounters, error_limited};
use crate::seams::{Display, LocalFuture, Work};

/// A display, as long as it has not panicked.
pub(super) struct Contained {
    display: Option<Box<dyn Display>>,
    /// One of its frames has panicked, elsewhere.
    failed: Arc<AtomicBool>,
    counters: Arc<LiveCounters>,
}

impl Contained {
    pub(super) fn new(display: Box<dyn Display>, counters: Arc<LiveCounters>) -> Self {
        Self { display: Some(display), failed: Arc::default(), counters }
    }

    /// Calls the display; `None` where it has been lost.
    pub(super) fn call<T>(&mut self, call: impl FnOnce(&mut dyn Display) -> T) -> Option<T> {
        self.sweep();
        let display = self.display.as_deref_mut()?;
        let called = catch_unwind(AssertUnwindSafe(|| call(display))).ok();
        if called.is_none() {
            self.lost();
        }
        called
    }

    /// A frame; what goes on of it.
    pub(super) fn frame(&mut self, call: impl FnOnce(&mut dyn Display) -> Work<()>) -> Option<Option<LocalFuture<()>>> {
        match self.call(call)? {
            Work::Done(()) => Some(None),
            Work::Later(work) => Some(Some(Box::pin(Frame { work: Some(work), failed: Arc::clone(&self.failed) }))),
        }
    }

    /// Drops the display where one of its frames has panicked.
    pub(super) fn sweep(&mut self) {
        if self.failed.swap(false, Ordering::Relaxed) {
            self.lost();
        }
    }

    fn lost(&mut self) {
        if self.display.is_some() {
            self.counters.displays_lost.bump();
            error_limited!("a display panicked and is shown nothing any more");
            self.end();
        }
    }

    fn end(&mut self) {
        if !dropped(self.display.take()) {
            error_limited!("a display panicked when it was dropped");
        }
    }
}

/// Drops what is the VMM's; false where that panicked.
fn dropped<T>(value: T) -> bool {
    catch_unwind(AssertUnwindSafe(|| drop(value))).is_ok()
}

impl Drop for Contained {
    fn drop(&mut self) {
        self.end();
    }
}

/// A frame that a display is still at, which may panic when it is polled and when it is dropped.
struct Frame {
    work: Option<LocalFuture<()>>,
    failed: Arc<AtomicBool>,
}

impl Frame {
    fn end(&mut self) {
        if !dropped(self.work.take()) {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

impl Future for Frame {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(work) = &mut self.work else { return Poll::Ready(()) };
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
            Err(_) => self.failed.store(true, Ordering::Relaxed),
        }
        self.end();
        Poll::Ready(())
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.end();
    }
}
