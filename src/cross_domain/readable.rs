//! What the host reads for a guest: eventfds, and pipes whose other end a host service writes. Whoever is on the other side
//! of an eventfd shares its file description, so its flags are left alone and nothing here relies on them.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, write};

use crate::limits::Charge;
use crate::sys::ring::Readiness;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Event,
    Pipe,
}

/// How the descriptor is held.
enum File {
    Idle(OwnedFd),
    Watched(Readiness),
    Closed,
}

/// An eventfd, or the end of a pipe that is read.
pub(crate) struct Readable {
    kind: Kind,
    file: RefCell<File>,
    waker: Cell<Option<Waker>>,
    _fd: Charge,
}

/// What was read for a guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// Of what, by the guest's id.
    pub(crate) id: u32,
    /// An eventfd's counter, or what came through the pipe.
    pub(crate) data: Vec<u8>,
    /// Nothing will come any more.
    pub(crate) hang_up: bool,
}

impl Readable {
    /// An eventfd of somebody's.
    pub(crate) fn event(file: OwnedFd, fd: Charge) -> Rc<Self> {
        Self::new(Kind::Event, file, fd)
    }

    /// A pipe of our own, whose reads do not wait.
    pub(super) fn pipe(file: OwnedFd, fd: Charge) -> Rc<Self> {
        Self::new(Kind::Pipe, file, fd)
    }

    fn new(kind: Kind, file: OwnedFd, fd: Charge) -> Rc<Self> {
        Rc::new(Self { kind, file: RefCell::new(File::Idle(file)), waker: Cell::new(None), _fd: fd })
    }

    /// Adds to an eventfd's counter, without ever waiting.
    ///
    /// # Errors
    /// `InvalidInput` for 2^64 - 1; `WouldBlock` where the counter has no room.
    pub(crate) fn add(&self, count: u64) -> io::Result<()> {
        let file = self.file.borrow();
        let file = match &*file {
            File::Idle(file) => file.as_fd(),
            File::Watched(file) => file.as_fd(),
            File::Closed => return Err(Errno::BADF.into()),
        };
        if !rustix::fs::fcntl_getfl(file)?.contains(OFlags::NONBLOCK) && would_wait(file, count) {
            return Err(Errno::AGAIN.into());
        }
        rustix::io::retry_on_intr(|| write(file, &count.to_ne_bytes()))?;
        Ok(())
    }

    /// Begins to watch it, for a channel to read when the guest has asked for a message: at most `longest` bytes at a time.
    ///
    /// # Errors
    /// It is watched already, or the runtime cannot watch it.
    pub(super) fn watch(self: &Rc<Self>, id: u32, longest: usize) -> io::Result<Reader> {
        let mut file = self.file.borrow_mut();
        match std::mem::replace(&mut *file, File::Closed) {
            File::Idle(idle) => match Readiness::for_reading(idle) {
                Ok(watched) => *file = File::Watched(watched),
                Err((idle, error)) => {
                    *file = File::Idle(idle);
                    return Err(error);
                }
            },
            other => {
                *file = other;
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
        }
        Ok(Reader { id, of: Rc::clone(self), longest })
    }

    /// Closes the descriptor at once, whoever else holds this.
    pub(super) fn close(&self) {
        self.file.replace(File::Closed);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, longest: usize) -> Poll<Option<io::Result<Vec<u8>>>> {
        self.waker.set(Some(cx.waker().clone()));
        let file = self.file.borrow();
        let File::Watched(file) = &*file else { return Poll::Ready(None) };
        let mut data = vec![0; if self.kind == Kind::Event { size_of::<u64>() } else { longest }];
        let len = file.poll_read_with(cx, |file| match self.kind {
            // Without waiting, whatever the flags that its owner has given it.
            Kind::Event => Ok(preadv2(file, &mut [IoSliceMut::new(&mut data)], u64::MAX, ReadWriteFlags::NOWAIT)?),
            Kind::Pipe => Ok(read(file, &mut data)?),
        });
        len.map(|len| {
            Some(len.map(|len| {
                data.truncate(len);
                data
            }))
        })
    }
}

/// Whether a write would wait for somebody to read. The guest's writes come one after the other, so only another owner could
/// fill the counter meanwhile.
fn would_wait(file: BorrowedFd<'_>, count: u64) -> bool {
    if count <= 1 {
        // Room for one more is what an eventfd's readiness says.
        return poll(&mut [PollFd::new(&file, PollFlags::OUT)], Some(&Timespec::default())) != Ok(1);
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap_or_default();
    let has = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
    let has = has.and_then(|has| u64::from_str_radix(has.trim(), 16).ok());
    has.and_then(|has| has.checked_add(count)).is_none_or(|sum| sum == u64::MAX)
}

/// Reads one after the other, until the descriptor is closed here or at the other end.
pub(super) struct Reader {
    id: u32,
    of: Rc<Readable>,
    longest: usize,
}

impl Stream for Reader {
    type Item = Read;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let id = self.id;
        self.of.poll_read(cx, self.longest).map(|read| {
            let data = read?.unwrap_or_default();
            let hang_up = data.is_empty();
            if hang_up {
                self.of.close();
            }
            Some(Read { id, data, hang_up })
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::limits::{Ledger, Limits, Quota};

    fn charge() -> Charge {
        Ledger::new(&Limits::default()).charge(Quota::Fds, 1).expect("room")
    }

    #[test]
    fn an_eventfd_that_blocks_never_keeps_a_read_or_a_write_waiting() {
        tokio_uring::start(async {
            for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
                let file = eventfd(0, flags).expect("eventfd");
                let other = file.try_clone().expect("duplicate");
                let event = Readable::event(file, charge());
                let mut reader = event.watch(7, 4096).expect("watched");
                assert!(reader.next().now_or_never().is_none(), "nothing to read");
                event.add(u64::MAX - 1).expect("the counter is full now");
                assert_eq!(event.add(1).expect_err("no room").kind(), io::ErrorKind::WouldBlock);
                assert_eq!(event.add(u64::MAX).expect_err("no count").kind(), refused(flags));
                let read = reader.next().await.expect("a read");
                assert_eq!((read.id, read.data, read.hang_up), (7, (u64::MAX - 1).to_ne_bytes().to_vec(), false));
                assert!(reader.next().now_or_never().is_none(), "read already");
                assert_eq!(
                    rustix::fs::fcntl_getfl(&other).expect("flags").contains(OFlags::NONBLOCK),
                    flags.contains(EventfdFlags::NONBLOCK)
                );
            }
        });
    }

    /// One that blocks is not asked for what it would never take.
    fn refused(flags: EventfdFlags) -> io::ErrorKind {
        if flags.contains(EventfdFlags::NONBLOCK) { io::ErrorKind::InvalidInput } else { io::ErrorKind::WouldBlock }
    }

    #[test]
    fn a_pipe_that_has_ended_hangs_up_once_and_a_closed_one_never() {
        tokio_uring::start(async {
            let (end, writer) = super::super::pipe::new().expect("a pipe");
            let pipe = Readable::pipe(end, charge());
            let mut reader = pipe.watch(7, 2).expect("watched");
            assert!(pipe.watch(7, 2).is_err(), "watched already");
            write(&writer, b"abc").expect("written");
            drop(writer);
            let read = |data: &[u8], hang_up| Some(Read { id: 7, data: data.to_vec(), hang_up });
            assert_eq!(reader.next().await, read(b"ab", false));
            assert_eq!(reader.next().await, read(b"c", false));
            assert_eq!(reader.next().await, read(b"", true));
            assert_eq!(reader.next().await, None);
            let (end, _writer) = super::super::pipe::new().expect("a pipe");
            let pipe = Readable::pipe(end, charge());
            let mut reader = pipe.watch(7, 2).expect("watched");
            pipe.close();
            assert_eq!(reader.next().await, None);
        });
    }
}
