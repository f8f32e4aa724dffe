//! How far the story is, for whoever watches a terminal; nothing anywhere else.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line is renewed.
const INTERVAL: Duration = Duration::from_millis(100);

/// One line on stderr that is written over and over, and wiped away on drop.
pub(super) struct Progress {
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    /// Progress for a terminal, if stderr is one.
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: None }
    }

    /// No progress.
    pub(super) fn silent() -> Self {
        Self { terminal: false, shown: None }
    }

    /// So many frames are done.
    pub(super) fn show(&mut self, done: u32, frames: u32) {
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() >= INTERVAL) {
            self.shown = Some(Instant::now());
            write(&format!("\r\x1b[Kframe {done} of {frames}"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            write("\r\x1b[K");
        }
    }
}

/// A terminal that has gone away needs no progress.
fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
