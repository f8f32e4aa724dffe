//! Eventfds, and pipes whose other end a host service writes: what the host reads for a guest. Whoever is on the other side
//! of an eventfd shares its file description, so its flags are left alone. Reads never wait, whatever the flags are. A write
//! looks at them first: only an owner that changes them at that very moment, and leaves no room, makes it wait.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::Stream;
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, write};

use crate::limits::Charge;
use crate::seams::LocalFuture;
use crate::sys::ring::{self, Readiness};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Event,
    Pipe,
}

/// How the descriptor is held, and its place among the device's.
enum File {
    Idle(OwnedFd, Charge),
    Watched { file: Readiness, fd: Charge },
    Closed,
}

/// An eventfd, or the end of a pipe that is read.
pub(crate) struct Readable {
    kind: Kind,
    file: RefCell<File>,
    waker: Cell<Option<Waker>>,
    /// What is still to be added by a write that may wait, and whether there is one.
    adding: Cell<u64>,
    is_adding: Cell<bool>,
    /// Whether the guest still wants what comes.
    is_read: Cell<bool>,
}

/// How long a write may wait whose eventfd the guest has given up.
const LAST_WRITE: Duration = Duration::from_millis(100);

/// Between two looks at a write, and two attempts to give it up.
const GIVING_UP: Duration = Duration::from_millis(1);

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
        Rc::new(Self {
            kind,
            file: RefCell::new(File::Idle(file, fd)),
            waker: Cell::new(None),
            adding: Cell::new(0),
            is_adding: Cell::new(false),
            is_read: Cell::new(true),
        })
    }

    /// Adds to an eventfd's counter: at once where writes to it do not wait. Where they do, elsewhere, in the future, with all
    /// that is added meanwhile: between a look at its room and the write another owner may have taken that.
    ///
    /// # Errors
    /// `InvalidInput` for 2^64 - 1; `WouldBlock` where the counter has no room.
    pub(super) fn add(self: &Rc<Self>, count: u64) -> io::Result<Option<LocalFuture<()>>> {
        if count == u64::MAX {
            return Err(Errno::INVAL.into());
        }
        let file = self.file.borrow();
        let file = match &*file {
            File::Idle(file, _) => file.as_fd(),
            File::Watched { file, .. } => file.as_fd(),
            File::Closed => return Err(Errno::BADF.into()),
        };
        if rustix::fs::fcntl_getfl(file)?.contains(OFlags::NONBLOCK) {
            rustix::io::retry_on_intr(|| write(file, &count.to_ne_bytes()))?;
            return Ok(None);
        }
        let sum = self.adding.get().checked_add(count).ok_or(Errno::AGAIN)?;
        if would_wait(file, sum) {
            return Err(Errno::AGAIN.into());
        }
        if self.is_adding.get() {
            self.adding.set(sum);
            return Ok(None);
        }
        let file = Arc::new(file.try_clone_to_owned()?);
        self.adding.set(sum);
        self.is_adding.set(true);
        let this = Rc::clone(self);
        Ok(Some(Box::pin(async move {
            while let sum @ 1.. = this.adding.take() {
                let added = ring::add(Arc::clone(&file), sum).await;
                // Another item of the same eventfd may have been given up; where it was this one nobody is left to be told.
                if added.is_err() && !matches!(*this.file.borrow(), File::Closed) {
                    this.adding.set(this.adding.get().saturating_add(sum));
                    tokio::time::sleep(GIVING_UP).await;
                }
            }
            this.is_adding.set(false);
        })))
    }

    /// Begins to watch it, for a channel to read when the guest has asked for a message: at most `longest` bytes at a time.
    ///
    /// # Errors
    /// It is watched already, or the runtime cannot watch it.
    pub(super) fn watch(self: &Rc<Self>, id: u32, longest: usize) -> io::Result<Reader> {
        let mut file = self.file.borrow_mut();
        match std::mem::replace(&mut *file, File::Closed) {
            File::Idle(idle, fd) => match Readiness::for_reading(idle) {
                Ok(watched) => *file = File::Watched { file: watched, fd },
                Err((idle, error)) => {
                    *file = File::Idle(idle, fd);
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

    /// Closes the descriptor when a write that is under way has ended, or cannot go on for want of room; at once without one.
    /// Nothing more is read.
    pub(super) fn close_after_writing(self: &Rc<Self>) -> Option<LocalFuture<()>> {
        if !self.is_adding.get() {
            return self.close();
        }
        self.is_read.set(false);
        let this = Rc::clone(self);
        Some(Box::pin(async move {
            let begun = Instant::now();
            while this.is_adding.get() && begun.elapsed() < LAST_WRITE {
                tokio::time::sleep(GIVING_UP).await;
            }
            if let Some(giving_up) = this.close() {
                giving_up.await;
            }
        }))
    }

    /// Closes the descriptor at once, whoever else holds this. A write that waits is given up, which the future waits for.
    pub(super) fn close(self: &Rc<Self>) -> Option<LocalFuture<()>> {
        self.adding.set(0);
        let file = match self.file.replace(File::Closed) {
            File::Idle(file, fd) => Some((file, fd)),
            File::Watched { file, fd } => Some((file.into_inner(), fd)),
            File::Closed => None,
        };
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        let (file, fd) = file.filter(|_| self.is_adding.get())?;
        let (this, file) = (Rc::clone(self), Arc::new(file));
        Some(Box::pin(async move {
            while this.is_adding.get() {
                // One that no worker has taken up yet is not found.
                let _ = ring::give_up(Arc::clone(&file)).await;
                tokio::time::sleep(GIVING_UP).await;
            }
            drop(fd);
        }))
    }

    fn poll_read(&self, cx: &mut Context<'_>, longest: usize) -> Poll<Option<io::Result<Vec<u8>>>> {
        self.waker.set(Some(cx.waker().clone()));
        let file = self.file.borrow();
        let File::Watched { file, .. } = &*file else { return Poll::Ready(None) };
        if !self.is_read.get() {
            return Poll::Ready(None);
        }
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
                self.of.is_read.set(false);
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
    fn an_eventfd_never_keeps_a_read_or_a_write_waiting_whatever_its_flags() {
        tokio_uring::start(async {
            for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
                let file = eventfd(0, flags).expect("eventfd");
                let other = file.try_clone().expect("duplicate");
                let event = Readable::event(file, charge());
                let mut reader = event.watch(7, 4096).expect("watched");
                assert!(reader.next().now_or_never().is_none(), "nothing to read");
                if let Some(adding) = event.add(u64::MAX - 1).expect("a count") {
                    adding.await;
                }
                assert_eq!(event.add(1).map(drop).expect_err("no room").kind(), io::ErrorKind::WouldBlock);
                assert_eq!(event.add(u64::MAX).map(drop).expect_err("no count").kind(), io::ErrorKind::InvalidInput);
                let read = reader.next().await.expect("a read");
                assert_eq!((read.id, read.data, read.hang_up), (7, (u64::MAX - 1).to_ne_bytes().to_vec(), false));
                assert!(reader.next().now_or_never().is_none(), "read already");
                let now = rustix::fs::fcntl_getfl(&other).expect("flags");
                assert_eq!(now.contains(OFlags::NONBLOCK), flags.contains(EventfdFlags::NONBLOCK));
            }
        });
    }

    /// A write that was to find room, and whose room another owner has taken before it came.
    fn stuck() -> (Rc<Readable>, OwnedFd, LocalFuture<()>) {
        let file = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        let other = file.try_clone().expect("duplicate");
        let event = Readable::event(file, charge());
        let adding = event.add(1).expect("a count").expect("elsewhere");
        write(&other, &(u64::MAX - 1).to_ne_bytes()).expect("room");
        (event, other, adding)
    }

    #[test]
    fn a_write_that_waits_never_outlives_its_eventfd() {
        tokio_uring::start(async {
            for leave in [false, true] {
                let (event, _other, adding) = stuck();
                let adding = tokio_uring::spawn(adding);
                tokio::task::yield_now().await;
                let closing = if leave { event.close_after_writing() } else { event.close() };
                let ended = tokio::time::timeout(Duration::from_secs(10), closing.expect("a write that waits"));
                ended.await.expect("given up");
                adding.await.expect("no panic");
                assert!(matches!(*event.file.borrow(), File::Closed));
            }
        });
    }

    #[test]
    fn giving_up_one_item_of_an_eventfd_never_loses_the_count_of_another() {
        tokio_uring::start(async {
            let (event, other, adding) = stuck();
            let twin = Readable::event(other.try_clone().expect("duplicate"), charge());
            let adding = tokio_uring::spawn(adding);
            tokio::time::sleep(Duration::from_millis(20)).await;
            // Of the same file.
            ring::give_up(Arc::new(other.try_clone().expect("duplicate"))).await.expect("found");
            assert!(twin.close().is_none());
            let mut count = [0; 8];
            read(&other, &mut count).expect("a count");
            tokio::time::timeout(Duration::from_secs(10), adding).await.expect("added").expect("no panic");
            assert_eq!((read(&other, &mut count), u64::from_ne_bytes(count)), (Ok(8), 1));
            assert!(event.close().is_none());
        });
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
