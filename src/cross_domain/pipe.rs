//! Pipes: the ends that a host service sends for a guest to write, and new ones whose other end goes to the service.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::backlog::{Backlog, Bounds, Full};
use crate::limits::Charge;
use crate::sys::ring::Readiness;
use crate::sys::signals::write_to_pipe;

/// A new pipe: an end that is read without waiting, and one for a service to write, as it is used to.
pub(super) fn new() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&reader, rustix::fs::fcntl_getfl(&reader)? | OFlags::NONBLOCK)?;
    Ok((reader, writer))
}

/// Why nothing was written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The reader does not read.
    Full(Full),
    Io(io::Error),
}

/// The end of a pipe that a guest writes.
pub(crate) struct WritePipe {
    file: RefCell<Option<(Readiness, Charge)>>,
    backlog: Backlog<()>,
}

impl WritePipe {
    /// Takes somebody's end. Its file description is shared with others, who may want to wait: this opens one of its own.
    ///
    /// # Errors
    /// The pipe belongs to another user, or the runtime cannot watch it.
    pub(crate) fn new(file: &OwnedFd, bounds: Bounds, fd: Charge) -> io::Result<Rc<Self>> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let own = rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())?;
        let file = RefCell::new(Some((Readiness::new(own)?, fd)));
        Ok(Rc::new(Self { file, backlog: Backlog::new(bounds) }))
    }

    /// Writes what the pipe takes now, and keeps the rest; true where there is a rest to be [flushed](Self::poll_flush).
    ///
    /// # Errors
    /// The reader does not read, or has gone. Nothing of the data is written or kept then.
    pub(super) fn write(&self, data: &[u8]) -> Result<bool, WriteError> {
        let file = self.file.borrow();
        let (file, _) = file.as_ref().ok_or_else(|| WriteError::Io(Errno::PIPE.into()))?;
        // Before the first byte is written: a guest that is refused may write all of it again.
        let room = self.backlog.room(data.len(), 0).map_err(WriteError::Full)?;
        let mut rest = data;
        if self.backlog.is_empty() {
            match write_to_pipe(file, data) {
                Ok(written) => rest = &data[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(WriteError::Io(error)),
            }
        }
        if rest.is_empty() {
            return Ok(false);
        }
        self.backlog.keep(rest, (), room);
        Ok(true)
    }

    /// Ready when nothing is left to write; a reader that has gone gets nothing.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        let file = self.file.borrow();
        let Some((file, _)) = file.as_ref() else { return Poll::Ready(()) };
        let flushed = self.backlog.poll_flush(|data, ()| file.poll_write_with(cx, |_| write_to_pipe(file, data)));
        flushed.map(drop)
    }

    /// Closes the pipe at once, written or not.
    pub(super) fn close(&self) {
        self.file.take();
        self.backlog.clear();
    }
}
