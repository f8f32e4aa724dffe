//! A display of the VMM's behind a wall: one that panics is lost, and nobody else with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;

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
            Work::Later(frame) => {
                let failed = Arc::clone(&self.failed);
                Some(Some(Box::pin(async move {
                    if AssertUnwindSafe(frame).catch_unwind().await.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                })))
            }
        }
    }

    /// Drops the display where one of its frames has panicked.
    pub(super) fn sweep(&mut self) {
        if self.failed.swap(false, Ordering::Relaxed) {
            self.lost();
        }
    }

    fn lost(&mut self) {
        self.counters.displays_lost.bump();
        error_limited!("a display panicked and is shown nothing any more");
        self.end();
    }

    /// Drops the display, which may panic, too.
    fn end(&mut self) {
        let display = self.display.take();
        if catch_unwind(AssertUnwindSafe(|| drop(display))).is_err() {
            error_limited!("a display panicked when it was dropped");
        }
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        self.end();
    }
}
