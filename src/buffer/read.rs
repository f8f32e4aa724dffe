//! The host's own reads: what a buffer shows at this moment, copied without the device task waiting in the kernel.
//!
//! A dma-buf is read when the implicit write fences that it has at the start have signalled, which the runtime waits for. What
//! may sleep after that (the bracket of CPU access, the copy) is done on a thread of the read's own.

use std::future::{Future, poll_fn};
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Sleep, sleep};

use super::{BufferKind, HeldBuffer, HostBuffer};
use crate::limits::{Charge, Ledger, LimitReached, Quota};
use crate::seams::LocalFuture;
use crate::sys::dmabuf::{begin_cpu_access, end_cpu_access, pending_writes};
use crate::sys::mapping::{MappingAccess, SharedMapping};
use crate::sys::ring::Readiness;

/// Most copies of a line at a time, each on a thread of its own. Whoever comes later waits, and holds no bytes meanwhile.
const COPIES: usize = 4;

/// Why a blob could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The guest has no such resource, or its creation has not been answered yet.
    #[error("there is no resource {resource}")]
    UnknownResource {
        /// Its id.
        resource: u32,
    },
    /// The resource is an image, or something that only the renderer knows.
    #[error("resource {resource} is no blob")]
    NotABlob {
        /// Its id.
        resource: u32,
    },
    /// The range is no range, or ends behind what can be read: the blob, the pages that its file has now, or the guest
    /// memory behind it.
    #[error("bytes {start:#x}..{end:#x} of a blob of which {readable:#x} bytes can be read")]
    OutOfRange {
        /// First byte.
        start: u64,
        /// The byte behind the last.
        end: u64,
        /// How many bytes can be read.
        readable: u64,
    },
    /// It took longer than [`Limits::deadline`](crate::Limits::deadline).
    #[error("not read within {deadline:?}: it waited for {waiting_for}")]
    Deadline {
        /// The limit.
        deadline: Duration,
        /// What it was waiting for, in plain words.
        waiting_for: &'static str,
    },
    /// The device holds as many descriptors as [`Limits::fds`](crate::Limits::fds) allows.
    #[error("the device holds {limit} descriptors already")]
    Limit {
        /// The limit.
        limit: u64,
    },
    /// The device was reset or stopped meanwhile.
    #[error("the device was reset meanwhile")]
    Reset,
    /// The page that was guest memory is none any more.
    #[error("{address:#x} is guest memory no more")]
    NotRam {
        /// The guest's address.
        address: u64,
    },
    /// The kernel or the exporter refused, or there was no memory for the bytes.
    #[error("the buffer could not be read: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<LimitReached> for ReadError {
    fn from(reached: LimitReached) -> Self {
        Self::Limit { limit: reached.limit }
    }
}

/// A range as it was asked for; without an end it goes as far as can be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    start: u64,
    end: Option<u64>,
}

impl Span {
    /// Ends beyond `u64` are ends that no blob has.
    pub(crate) fn new(range: &impl RangeBounds<u64>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => Some(last.saturating_add(1)),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => None,
        };
        Self { start, end }
    }

    /// The range, where all of it can be read.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`].
    pub(crate) fn within(self, readable: u64) -> Result<Range<u64>, ReadError> {
        let (start, end) = (self.start, self.end.unwrap_or(readable));
        if start <= end && end <= readable {
            Ok(start..end)
        } else {
            Err(ReadError::OutOfRange { start, end, readable })
        }
    }
}

/// How a read has ended.
pub(crate) struct Read {
    pub(crate) result: Result<Vec<u8>, ReadError>,
    /// Its thread is still in the kernel, and this keeps account of what it holds.
    pub(crate) rest: Option<LocalFuture<()>>,
}

impl From<Result<Vec<u8>, ReadError>> for Read {
    fn from(result: Result<Vec<u8>, ReadError>) -> Self {
        Self { result, rest: None }
    }
}

/// Where a read waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// With the VMM's other reads.
    Vmm,
    /// With what other displays are to be shown.
    Pictures,
    /// With other cursors: a small copy, which no large one may hold up.
    Cursors,
}

/// All reads of a device.
pub(crate) struct Reads {
    deadline: Duration,
    line: Arc<Semaphore>,
    pictures: Arc<Semaphore>,
    cursors: Arc<Semaphore>,
    /// For those that the device task copies by itself: one at a time.
    own_line: Arc<Semaphore>,
    /// Changes when the reads that wait are to end.
    ended: watch::Sender<()>,
}

impl Reads {
    pub(crate) fn new(deadline: Duration) -> Self {
        let [line, pictures, cursors, own_line] = [COPIES, COPIES, 1, 1].map(|places| Arc::new(Semaphore::new(places)));
        Self { deadline, line, pictures, cursors, own_line, ended: watch::Sender::new(()) }
    }

    /// Ends the reads that wait, now. Copies go on: they end by themselves, or by their deadline.
    pub(crate) fn end(&self) {
        self.ended.send_replace(());
    }

    /// The time that a read has, from now on.
    fn term(&self) -> Term {
        Term { deadline: self.deadline, clock: Box::pin(sleep(self.deadline)), ended: self.ended.subscribe() }
    }

    /// Reads by a copy that the device task makes by itself, piece by piece.
    pub(crate) fn in_pieces(
        &self,
        copy: impl Future<Output = Result<Vec<u8>, ReadError>> + 'static,
    ) -> LocalFuture<Read> {
        let (line, mut term) = (Arc::clone(&self.own_line), self.term());
        Box::pin(async move {
            let copied = match term.place(line).await {
                Ok(_place) => term.wait(copy, "its turn").await,
                Err(error) => Err(error),
            };
            copied.and_then(|bytes| bytes).into()
        })
    }

    /// Reads a range of a buffer that the read owns; all of it can be read, as far as is known.
    pub(crate) fn buffer(&self, held: HeldBuffer, range: Range<u64>, line: Line) -> LocalFuture<Read> {
        let line = match line {
            Line::Vmm => &self.line,
            Line::Pictures => &self.pictures,
            Line::Cursors => &self.cursors,
        };
        let (line, mut term) = (Arc::clone(line), self.term());
        Box::pin(async move {
            let HeldBuffer { buffer, fd, .. } = held;
            let (buffer, written) = term.written(buffer).await;
            let place = match written {
                Ok(()) => term.place(line).await,
                Err(error) => Err(error),
            };
            match place {
                Ok(place) => {
                    let copy = move || {
                        let bytes = copy(&buffer, range);
                        // Closed before anybody hears of the end.
                        drop(buffer);
                        bytes
                    };
                    term.on_a_thread(copy, place, fd).await
                }
                Err(error) => {
                    if let Some(closing) = HeldBuffer::new(buffer, fd).close() {
                        closing.await;
                    }
                    Err(error).into()
                }
            }
        })
    }
}

/// The time that a read has.
struct Term {
    deadline: Duration,
    clock: Pin<Box<Sleep>>,
    ended: watch::Receiver<()>,
}

impl Term {
    /// Waits for `work`, and no longer than until the deadline or a reset, which drop it.
    ///
    /// # Errors
    /// [`ReadError::Reset`] and [`ReadError::Deadline`].
    async fn wait<T>(&mut self, work: impl Future<Output = T>, name: &'static str) -> Result<T, ReadError> {
        let Self { deadline, clock, ended } = self;
        let (mut work, mut ended) = (pin!(work), pin!(ended.changed()));
        poll_fn(|cx| {
            if ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(ReadError::Reset));
            }
            if let Poll::Ready(value) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            let late = clock.as_mut().poll(cx);
            late.map(|()| Err(ReadError::Deadline { deadline: *deadline, waiting_for: name }))
        })
        .await
    }

    /// Waits until the writes to the buffer that are pending now are done, and hands it back.
    async fn written(&mut self, buffer: HostBuffer) -> (HostBuffer, Result<(), ReadError>) {
        if buffer.kind != BufferKind::DmaBuf {
            return (buffer, Ok(()));
        }
        if let Ok(fences) = pending_writes(buffer.as_fd()) {
            return (buffer, self.readable(fences).await.1);
        }
        // Before Linux 6.0 the dma-buf itself is watched, until it has no pending write for a moment.
        let HostBuffer { file, kind, len, access } = buffer;
        let (file, written) = self.readable(file).await;
        (HostBuffer { file, kind, len, access }, written)
    }

    /// Waits until a file can be read, and hands it back.
    async fn readable(&mut self, file: OwnedFd) -> (OwnedFd, Result<(), ReadError>) {
        match Readiness::for_reading(file) {
            Ok(watch) => {
                let event = self.wait(poll_fn(|cx| watch.poll_event(cx)), "writes that are pending").await;
                (watch.into_inner(), event.and_then(|event| Ok(event?)))
            }
            Err((file, error)) => (file, Err(error.into())),
        }
    }

    /// Waits for a place among those who copy.
    async fn place(&mut self, line: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ReadError> {
        let place = self.wait(line.acquire_owned(), "other reads").await?;
        Ok(place.map_err(io::Error::other)?)
    }

    /// Copies on a thread that ends with the copy. One that is still in the kernel at the deadline keeps its place.
    async fn on_a_thread(
        self,
        copy: impl FnOnce() -> Result<Vec<u8>, ReadError> + Send + 'static,
        place: OwnedSemaphorePermit,
        fd: Charge,
    ) -> Read {
        let (done, copied) = oneshot::channel();
        let thread = std::thread::Builder::new().name("virtio-gpu-read".into()).spawn(move || {
            let bytes = copy();
            drop(place);
            // Nobody listens where the device has gone.
            let _ = done.send(bytes);
        });
        if let Err(error) = thread {
            return Err(error.into()).into();
        }
        match select(copied, self.clock).await {
            Either::Left((Ok(bytes), _)) => bytes.into(),
            Either::Left((Err(_), _)) => Err(io::Error::other("its thread ended without an answer").into()).into(),
            Either::Right(((), copied)) => Read {
                result: Err(ReadError::Deadline { deadline: self.deadline, waiting_for: "the kernel" }),
                rest: Some(Box::pin(async move {
                    let _ = copied.await;
                    drop(fd);
                })),
            },
        }
    }
}

impl HostBuffer {
    /// How many bytes of it a CPU can read now: whole pages, because behind the end of a file a mapping shows zeros.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(crate) fn readable(&self) -> io::Result<u64> {
        let len = match self.kind {
            BufferKind::SharedMemory => self.current_len()?,
            // It never changes.
            BufferKind::DmaBuf => self.len,
        };
        Ok(len.checked_next_multiple_of(rustix::param::page_size() as u64).unwrap_or(len))
    }
}

impl HeldBuffer {
    /// A descriptor of its own for the same buffer, and for a dma-buf room for one of its fences.
    ///
    /// # Errors
    /// The limit of descriptors, the device's or the process's.
    pub(crate) fn duplicate(&self, ledger: &std::rc::Rc<Ledger>) -> Result<Self, ReadError> {
        let fd = ledger.charge(Quota::Fds, if self.kind == BufferKind::DmaBuf { 2 } else { 1 })?;
        Ok(Self::new(self.buffer.try_clone()?, fd))
    }
}

/// Empty room for so many bytes.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn room(bytes: u64) -> Result<Vec<u8>, ReadError> {
    let mut room = Vec::new();
    let reserved = usize::try_from(bytes).is_ok_and(|bytes| room.try_reserve_exact(bytes).is_ok());
    if reserved { Ok(room) } else { Err(Errno::NOMEM.into()) }
}

/// May sleep.
fn copy(buffer: &HostBuffer, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
    let len = range.end - range.start;
    let mut bytes = room(len)?;
    bytes.resize(len as usize, 0);
    match buffer.kind {
        _ if bytes.is_empty() => {}
        BufferKind::SharedMemory => copy_file(buffer, range, &mut bytes)?,
        BufferKind::DmaBuf => copy_mapped(buffer, range, &mut bytes)?,
    }
    Ok(bytes)
}

/// By `pread` and not through a mapping: whoever truncates the file meanwhile gets nobody a `SIGBUS`. `out` is zero.
fn copy_file(buffer: &HostBuffer, range: Range<u64>, out: &mut [u8]) -> Result<(), ReadError> {
    let mut have = 0;
    while have < out.len() {
        match rustix::io::pread(buffer, &mut out[have..], range.start + have as u64) {
            Ok(0) => return Span { start: range.start, end: Some(range.end) }.within(buffer.readable()?).map(drop),
            Ok(more) => have += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Maps it from its start on, wherever the range lies: not every exporter looks where a mapping is to begin (V4L2's
/// vmalloc memory shows its first page there).
fn copy_mapped(buffer: &HostBuffer, range: Range<u64>, out: &mut [u8]) -> Result<(), ReadError> {
    let (start, end) = (range.start as usize, range.end as usize);
    let len = end.next_multiple_of(rustix::param::page_size());
    let mapping = SharedMapping::new(buffer.as_fd(), len, MappingAccess::Read)?;
    begin_cpu_access(buffer.as_fd(), false)?;
    let copied = mapping.read(start, out);
    end_cpu_access(buffer.as_fd(), false)?;
    copied.map_err(|outside| io::Error::other(outside).into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::limits::Limits;

    fn reads(deadline: Duration) -> (Reads, std::rc::Rc<Ledger>) {
        (Reads::new(deadline), Ledger::new(&Limits::default()))
    }

    fn late(read: &Read) -> Option<&'static str> {
        match read.result {
            Err(ReadError::Deadline { waiting_for, .. }) => Some(waiting_for),
            _ => None,
        }
    }

    #[test]
    fn a_copy_that_is_stuck_is_given_up_in_time_and_what_it_holds_is_booked_until_its_end() {
        tokio_uring::start(async {
            let (reads, ledger) = reads(Duration::from_millis(20));
            let mut stuck = Vec::new();
            for booked in 1..=COPIES as u64 {
                let (release, released) = mpsc::channel::<()>();
                let mut term = reads.term();
                let place = term.place(Arc::clone(&reads.line)).await.expect("a place");
                let fd = ledger.charge(Quota::Fds, 1).expect("room");
                let kernel = move || Err(released.recv().map(|()| Errno::IO).unwrap_or(Errno::PIPE).into());
                let read = term.on_a_thread(kernel, place, fd).await;
                assert_eq!(late(&read), Some("the kernel"));
                assert_eq!(ledger.used(Quota::Fds), booked, "given back while the thread is in the kernel");
                stuck.push((release, read.rest.expect("what is left")));
            }
            let waits = reads.term().place(Arc::clone(&reads.line)).await;
            assert!(matches!(waits, Err(ReadError::Deadline { waiting_for: "other reads", .. })));
            for (release, rest) in stuck {
                release.send(()).expect("a thread that listens");
                rest.await;
            }
            assert_eq!(ledger.used(Quota::Fds), 0);
            drop(reads.term().place(Arc::clone(&reads.line)).await.expect("free again"));
        });
    }

    #[test]
    fn a_copy_that_panics_is_an_error_and_keeps_no_place() {
        tokio_uring::start(async {
            let (reads, ledger) = reads(Duration::from_secs(20));
            for _ in 0..=COPIES {
                let mut term = reads.term();
                let place = term.place(Arc::clone(&reads.line)).await.expect("a place");
                let fd = ledger.charge(Quota::Fds, 1).expect("room");
                let read = term.on_a_thread(|| panic!("as a test wants it"), place, fd).await;
                assert!(matches!(read.result, Err(ReadError::Io(_))));
            }
        });
    }

    #[test]
    fn a_range_that_overflows_is_never_taken_for_a_small_one() {
        let max = u64::MAX;
        let after = (Bound::Excluded(max), Bound::Unbounded);
        for span in [Span::new(&(0..=max)), Span::new(&(max..)), Span::new(&after), Span::new(&(max..=max))] {
            assert!(matches!(span.within(8), Err(ReadError::OutOfRange { readable: 8, .. })), "{span:?}");
        }
        assert_eq!(Span::new(&(Bound::Excluded(2), Bound::Included(4))).within(8).expect("inside"), 3..5);
    }

    #[test]
    fn more_room_than_there_is_never_ends_the_process() {
        assert!(matches!(room(u64::MAX), Err(ReadError::Io(_))));
        assert!(matches!(room(1 << 62), Err(ReadError::Io(_))));
    }
}
