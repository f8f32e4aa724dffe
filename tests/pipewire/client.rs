//! The capture client as a process: what it says, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::{CLIENT, Folder, Source, until};

/// Without a frame for so long, a camera of ten frames a second has stopped.
const STILL: Duration = Duration::from_millis(500);
/// More frames than were under way when something happened.
const MOVING: usize = 12;

/// A frame as a client has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    pub(crate) seq: i64,
    pub(crate) size: usize,
    pub(crate) nonzero: usize,
    pub(crate) sum: u64,
}

impl Frame {
    /// A line of the client's about a frame.
    fn read(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix("frame ")?.split(' ');
        let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let (seq, size) = (field("seq")?.parse().ok()?, field("size")?.parse().ok()?);
        let (nonzero, sum) = (field("nonzero")?.parse().ok()?, u64::from_str_radix(field("fnv")?, 16).ok()?);
        Some(Self { seq, size, nonzero, sum })
    }
}

pub(crate) struct Client {
    name: String,
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Client {
    /// Starts a client of the daemon in a folder; it ends by itself after so many frames.
    pub(crate) fn start(folder: &Folder, name: &str, source: &Source, frames: u32) -> Self {
        let mut process = folder
            .program(CLIENT)
            .args(["--name", name, "--frames", &frames.to_string(), "--format", source.format])
            .args(["--size", source.size, "--rate", source.rate])
            // So many that no buffer is filled again while a slow client looks at it.
            .args(["--buffers", "16"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv, of util-linux");
        let lines = Arc::default();
        let said = follow(process.stdout.take().expect("a pipe"), Arc::clone(&lines));
        let complained = follow(process.stderr.take().expect("a pipe"), Arc::clone(&lines));
        Self { name: name.to_owned(), process, lines, readers: vec![said, complained] }
    }

    /// Everything that it has said so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.lines().iter().filter_map(|line| Frame::read(line)).collect()
    }

    /// Waits until it has had so many frames.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, frames: usize) {
        until(&format!("frame {frames} of {}", self.name), || {
            let ended = self.process.try_wait().expect("a child");
            let there = self.frames().len();
            assert!(ended.is_none() || there >= frames, "{} ended with {ended:?}: {:?}", self.name, self.lines());
            there >= frames
        });
    }

    /// Asserts that frames keep coming.
    #[track_caller]
    pub(crate) fn goes_on(&mut self) {
        self.wait_for(self.frames().len() + MOVING);
    }

    /// Waits until it is plain whether frames still come, and says so.
    #[track_caller]
    pub(crate) fn is_moving(&self) -> bool {
        let first = self.frames().len();
        let (mut frames, mut since) = (first, Instant::now());
        until(&format!("{} to go on or to stand still", self.name), || {
            let now = self.frames().len();
            if now != frames {
                (frames, since) = (now, Instant::now());
            }
            frames > first + MOVING || since.elapsed() > STILL
        });
        frames > first + MOVING
    }

    /// Waits for its end, and for its last word.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until(&format!("the end of {}", self.name), || {
            status = self.process.try_wait().expect("a child");
            status.is_some()
        });
        for reader in self.readers.drain(..) {
            reader.join().expect("no panic");
        }
        status.expect("ended")
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.ended();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let lines = self.lines();
            eprintln!("{} said at last:\n{}", self.name, lines[lines.len().saturating_sub(10)..].join("\n"));
        }
    }
}

/// Keeps the lines of a stream as they come.
fn follow(stream: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}
