//! Operations that the runtime's io_uring does not offer by itself, and readiness of descriptors.
//! What may sleep in the kernel (tearing down page tables, populating them, the last close of a large file) is handed
//! to the ring's own worker threads, so that the device needs no thread for it.
#![expect(unsafe_code, reason = "submission entries carry pointers and descriptors that the kernel trusts")]

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use io_uring::{cqueue, opcode, squeue, types};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::pages::Pages;
use super::reservation::Reservation;
use super::restricted;

/// `madvise` advice for a range of a reservation (`asm-generic/mman-common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Advice {
    /// `MADV_DONTNEED`: forget the pages of the range.
    DontNeed = 4,
    /// `MADV_POPULATE_READ`: make the pages present for reading.
    PopulateRead = 22,
    /// `MADV_POPULATE_WRITE`: make the pages present for writing.
    PopulateWrite = 23,
}

/// As many bytes of whole pages as an operation's length can state.
const WHOLE_PAGES: u32 = !0xffff;

/// Entries of a runtime's submission queue, as tokio-uring has it by default.
const ENTRIES: u32 = 256;

/// How many descriptors the rest of the process may open while a runtime is made, without the ring being lost among them.
const OTHERS: RawFd = 64;

/// A runtime for a device's own thread. Where the kernel has that, from Linux 5.10 on, its ring takes none but the operations
/// below: whoever gets hold of it opens no file by it.
///
/// # Errors
/// Where the process has no room for it, or the host does not let it use io_uring. tokio-uring 0.5 forgets the tokio
/// runtime, and three descriptors with it, where its ring cannot be opened; so what it is about to need is tried first.
pub(crate) fn runtime() -> io::Result<tokio_uring::Runtime> {
    /// Of a process's rings the runtime's is known by being disabled still.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    let spare = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
    let spares = [spare()?, spare()?, spare()?];
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (ring, can_restrict) = restricted::try_out(ENTRIES)?;
    // The runtime takes the lowest numbers that are free: these.
    let highest = spares.iter().map(AsRawFd::as_raw_fd).fold(ring.as_raw_fd(), RawFd::max);
    drop((ring, spares));
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES);
    if can_restrict {
        let runtime = tokio_uring::Runtime::new(builder.uring_builder(&restricted::disabled()))?;
        match restricted::restrict_the_disabled(highest.saturating_add(OTHERS)) {
            Ok(()) => return Ok(runtime),
            Err(error) => tracing::debug!(%error, "the ring stays unrestricted"),
        }
    }
    tokio_uring::Runtime::new(builder.uring_builder(&tokio_uring::uring_builder()))
}

/// Drops what an operation kept alive and turns its completion into a result.
struct Completion<D>(std::marker::PhantomData<D>);

impl<D: 'static> OneshotOutputTransform for Completion<D> {
    type Output = io::Result<()>;
    type StoredData = D;

    fn transform_oneshot_output(self, _data: D, cqe: cqueue::Entry) -> io::Result<()> {
        if cqe.result() < 0 { Err(io::Error::from_raw_os_error(-cqe.result())) } else { Ok(()) }
    }
}

/// Submits at once, polled or not; `keep` stays alive until the kernel has answered, even where the future is dropped.
///
/// # Safety
/// Whatever memory or descriptor `entry` names must stay valid for the kernel until the operation completes, by means
/// of `keep` or by itself.
#[expect(clippy::disallowed_methods, reason = "the one door to the runtime's ring; its contract is stated above")]
unsafe fn submit<D: Unpin + 'static>(keep: D, entry: squeue::Entry) -> impl Future<Output = io::Result<()>> {
    UnsubmittedOneshot::new(keep, Completion(std::marker::PhantomData), entry).submit()
}

/// `madvise` on a range of the window, on a worker thread of the ring.
///
/// # Errors
/// A range outside the reservation, or what the kernel answers (`EINVAL` for memory that takes no such advice).
pub(crate) async fn advise(memory: Arc<Reservation>, offset: u64, len: u32, advice: Advice) -> io::Result<()> {
    let (start, _) = memory.span(offset, u64::from(len)).map_err(io::Error::other)?;
    let entry = opcode::Madvise::new(start, i64::from(len), advice as i32).build();
    // SAFETY: the range was checked to lie in `memory`, which the operation keeps mapped until it has completed; advice
    // of these kinds invalidates no reference, because a reservation hands out none.
    unsafe { submit(memory, entry) }.await
}

/// Frees pages on a worker thread of the ring; unmapping what is left of them costs next to nothing.
///
/// # Errors
/// What the kernel answers; the pages are gone all the same.
pub(crate) async fn free(pages: Pages) -> io::Result<()> {
    let len = u32::try_from(pages.len()).unwrap_or(WHOLE_PAGES);
    let entry = opcode::Madvise::new(pages.as_ptr().cast(), i64::from(len), Advice::DontNeed as i32).build();
    // SAFETY: the range lies in `pages`, which the operation keeps mapped until it has completed; whoever had references to
    // them has given them up with the value.
    unsafe { submit(pages, entry) }.await
}

/// Closes a descriptor on a worker thread of the ring, where freeing a large file's pages holds nobody up.
///
/// # Errors
/// What `close` answers; the descriptor is gone all the same.
pub(crate) fn close(file: OwnedFd) -> impl Future<Output = io::Result<()>> {
    let entry = opcode::Close::new(types::Fd(file.into_raw_fd())).build().flags(squeue::Flags::ASYNC);
    // SAFETY: the descriptor was owned and has been given up, so nobody else closes or uses its number.
    unsafe { submit((), entry) }
}

/// Adds to an eventfd's counter on a worker thread of the ring, which may wait until somebody reads it.
///
/// # Errors
/// What `write` answers; `Interrupted` and others where it was [given up](give_up).
pub(crate) fn add(event: Arc<OwnedFd>, count: u64) -> impl Future<Output = io::Result<()>> {
    let bytes = Box::new(count.to_ne_bytes());
    let entry = opcode::Write::new(types::Fd(event.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32).build();
    // SAFETY: the operation keeps the descriptor open and the bytes where they are, on the heap, until it has completed.
    unsafe { submit((event, bytes), entry.flags(squeue::Flags::ASYNC)) }
}

/// Ends operations of the ring on a file, but for those that no worker has taken up yet.
///
/// # Errors
/// `NotFound` where there are none.
pub(crate) fn give_up(file: Arc<OwnedFd>) -> impl Future<Output = io::Result<()>> {
    let all = types::CancelBuilder::fd(types::Fd(file.as_raw_fd())).all();
    let entry = opcode::AsyncCancel2::new(all).build();
    // SAFETY: the operation names the descriptor, which it keeps open until it has completed.
    unsafe { submit(file, entry) }
}

/// A descriptor whose owner promises that it stays the same: the only kind that may be registered.
struct Owned<T>(T, RawFd);

impl<T> AsRawFd for Owned<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.1
    }
}

/// A descriptor that the runtime watches. Waiting is by readiness, so a wait that is dropped loses nothing.
pub(crate) struct Readiness<T: AsFd = OwnedFd> {
    inner: AsyncFd<Owned<T>>,
}

impl Readiness<OwnedFd> {
    /// Registers a descriptor with the runtime that the caller runs in.
    ///
    /// # Errors
    /// What `epoll_ctl` answers, for instance `EPERM` for a plain file.
    pub(crate) fn new(file: OwnedFd) -> io::Result<Self> {
        let raw = file.as_raw_fd();
        // SAFETY: the descriptor is owned, open, moves into the `AsyncFd` and is closed only with it; `as_raw_fd`
        // answers the same number for ever.
        let inner = unsafe { AsyncFd::register(Owned(file, raw)) }.map_err(|refused| refused.into_parts().1)?;
        Ok(Self { inner })
    }

    /// The same for what can be read alone; one that is refused comes back. A dma-buf is readable when no write to it is
    /// pending, and must not be watched for longer: each look at one without fences is an event of its own, without end.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn for_reading(file: OwnedFd) -> Result<Self, (OwnedFd, io::Error)> {
        let raw = file.as_raw_fd();
        // SAFETY: as in `new`.
        let registered = unsafe { AsyncFd::register_with_interest(Owned(file, raw), Interest::READABLE) };
        match registered {
            Ok(inner) => Ok(Self { inner }),
            Err(refused) => {
                let (Owned(file, _), error) = refused.into_parts();
                Err((file, error))
            }
        }
    }

    /// Stops watching, and hands the descriptor back.
    pub(crate) fn into_inner(self) -> OwnedFd {
        self.inner.into_inner().0
    }
}

impl<T: AsFd> Readiness<T> {
    /// Ready once for every event since the last call (edge-triggered): an eventfd that has been written again, a socket
    /// that has become readable. The caller then works until it would block.
    pub(crate) fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.inner.poll_read_ready(cx))?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// Tries a non-blocking read-like call whenever the descriptor may be readable.
    pub(crate) fn poll_read_with<R>(
        &self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut guard = ready!(self.inner.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|inner| call(inner.get_ref().0.as_fd())) {
                return Poll::Ready(result);
            }
        }
    }

    /// Tries a non-blocking write-like call whenever the descriptor may be writable.
    pub(crate) fn poll_write_with<R>(
        &self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut guard = ready!(self.inner.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|inner| call(inner.get_ref().0.as_fd())) {
                return Poll::Ready(result);
            }
        }
    }
}

/// A way to be polled again soon, by way of the runtime's reactor.
///
/// tokio-uring submits operations only when the runtime goes to sleep, which it never does while some task wakes itself. A
/// task with more to do than one turn holds therefore asks to be woken by an event: everybody else has a turn first,
/// and whatever was submitted reaches the kernel.
pub(crate) struct Nudge(Readiness<OwnedFd>);

impl Nudge {
    /// Registers an eventfd of the caller's with the runtime.
    ///
    /// # Errors
    /// As [`Readiness::new`].
    pub(crate) fn new(event: OwnedFd) -> io::Result<Self> {
        Ok(Self(Readiness::new(event)?))
    }

    /// Asks for another turn.
    pub(crate) fn again(&self) {
        // The counter cannot fill up, and nothing else can go wrong with an eventfd.
        let _ = rustix::io::write(self.0.as_fd(), &1u64.to_ne_bytes());
    }

    /// Takes note that the turn has come, and watches for the next request.
    pub(crate) fn arm(&self, cx: &mut Context<'_>) {
        while let Poll::Ready(Ok(())) = self.0.poll_event(cx) {}
    }
}

impl<T: AsFd> AsFd for Readiness<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.get_ref().0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_dropped_wait_never_eats_the_next_kick() {
        tokio_uring::start(async {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
            let kicker = event.try_clone().expect("dup");
            let ready = Readiness::new(event).expect("registered");
            for _ in 0..3 {
                let waited =
                    tokio::time::timeout(std::time::Duration::from_millis(1), poll_fn(|cx| ready.poll_event(cx)));
                assert!(waited.await.is_err(), "nobody kicked");
                rustix::io::write(&kicker, &1u64.to_ne_bytes()).expect("kick");
                poll_fn(|cx| ready.poll_event(cx)).await.expect("kicked");
            }
        });
    }

    #[test]
    fn a_task_that_is_always_busy_never_keeps_operations_from_the_kernel() {
        tokio_uring::start(async {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
            let nudge = Nudge::new(event).expect("registered");
            let busy = tokio_uring::spawn(tokio::task::unconstrained(poll_fn(move |cx| {
                nudge.arm(cx);
                nudge.again();
                Poll::<()>::Pending
            })));
            let (left, _right) = std::os::unix::net::UnixStream::pair().expect("sockets");
            let closed = tokio::time::timeout(std::time::Duration::from_secs(10), close(left.into()));
            closed.await.expect("submitted beside the busy task").expect("closed");
            busy.abort();
        });
    }

    #[test]
    fn a_write_that_waits_for_its_reader_never_outlives_being_given_up() {
        tokio_uring::start(async {
            let event = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
            add(Arc::new(event.try_clone().expect("duplicate")), u64::MAX - 1).await.expect("room");
            let waiting = add(Arc::new(event.try_clone().expect("duplicate")), 1);
            let mut waiting = std::pin::pin!(waiting);
            let soon = std::time::Duration::from_millis(20);
            assert!(tokio::time::timeout(soon, &mut waiting).await.is_err(), "there is no room");
            give_up(Arc::new(event)).await.expect("found");
            tokio::time::timeout(std::time::Duration::from_secs(10), waiting)
                .await
                .expect("ended")
                .expect_err("given up");
        });
    }

    #[test]
    fn a_ring_of_the_device_never_opens_a_file_and_takes_the_operations_of_its_own() {
        let runtime = runtime().expect("a runtime");
        runtime.block_on(async {
            let refused = tokio_uring::fs::File::open("/proc/self/status").await.expect_err("opened");
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
            let refused = tokio_uring::no_op().await.expect_err("an operation that the device has no use for");
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
            let memory = Arc::new(Reservation::scratch(16 * 4096, 4096).expect("window"));
            advise(memory, 0, 16 * 4096, Advice::PopulateWrite).await.expect("populated");
            let event = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
            add(Arc::new(event.try_clone().expect("duplicate")), 1).await.expect("added");
            give_up(Arc::new(event.try_clone().expect("duplicate")))
                .await
                .expect("nothing waits, and nothing is wrong");
            close(event).await.expect("closed");
        });
    }

    #[test]
    fn rings_that_are_made_at_the_same_time_are_never_taken_for_each_other() {
        let together = std::sync::Barrier::new(8);
        let is_refused = || {
            let opened = runtime().map(|runtime| runtime.block_on(tokio_uring::fs::File::open("/proc/self/status")));
            opened.is_ok_and(|opened| opened.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)))
        };
        let make = || {
            let rounds = (0..16).map(|_| {
                together.wait();
                is_refused()
            });
            rounds.filter(|refused| *refused).count()
        };
        let counts = std::thread::scope(|scope| {
            let threads = [(); 8].map(|()| scope.spawn(make));
            threads.map(|thread| thread.join().expect("no panic"))
        });
        assert_eq!(counts, [16; 8]);
    }

    #[test]
    fn an_operation_of_the_device_is_given_up_when_its_runtime_goes() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("room");
        let runtime = runtime().expect("a runtime");
        let waiting = Arc::new(event.try_clone().expect("duplicate"));
        runtime.block_on(async {
            let soon = std::time::Duration::from_millis(20);
            tokio::time::timeout(soon, add(waiting, 1)).await.expect_err("there is no room");
        });
        drop(runtime);
    }

    #[test]
    fn a_closed_descriptor_is_gone_when_the_close_completes() {
        tokio_uring::start(async {
            let (left, right) = std::os::unix::net::UnixStream::pair().expect("sockets");
            close(left.into()).await.expect("closed");
            assert_eq!(rustix::io::read(&right, &mut [0; 1]).expect("end of file"), 0);
        });
    }

    #[test]
    fn advice_for_a_range_outside_the_reservation_never_reaches_the_kernel() {
        tokio_uring::start(async {
            let memory = Arc::new(Reservation::scratch(16 * 4096, 4096).expect("window"));
            for (offset, len) in [(16 * 4096, 4096), (1, 4096), (15 * 4096, 8192)] {
                assert!(advise(Arc::clone(&memory), offset, len, Advice::DontNeed).await.is_err());
            }
            advise(memory, 0, 16 * 4096, Advice::PopulateWrite).await.expect("populated");
        });
    }
}
