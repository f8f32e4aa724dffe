//! The seams to the guest, which a VMM implements: how its driver is interrupted, and the region that blobs are mapped
//! into. A renderer's seam is in `renderer`.

use std::fmt;
use std::future::Future;
use std::os::fd::BorrowedFd;
use std::pin::Pin;

pub use crate::sys::reservation::{PlaceError, Protection};

/// What kind of file stands behind a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BufferKind {
    /// A memfd or another file of shared memory (tmpfs). A page that a process forgets comes back when it is touched.
    SharedMemory,
    /// A dma-buf: memory of a device or of an exporter such as udmabuf. A page that is forgotten may be gone for good.
    DmaBuf,
}

/// A future that stays on the device's thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Work that is done already, or will be: most of it is, and then nothing is allocated and nobody wakes up.
pub enum Work<T> {
    /// Done at once.
    Done(T),
    /// Done when the future is.
    Later(LocalFuture<T>),
}

impl<T: 'static> Work<T> {
    /// Work that goes on in `future`.
    pub fn later(future: impl Future<Output = T> + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// Waits for the result.
    pub async fn result(self) -> T {
        match self {
            Self::Done(value) => value,
            Self::Later(future) => future.await,
        }
    }

    /// The same work with its result passed through `then`.
    pub fn map<U: 'static>(self, then: impl FnOnce(T) -> U + 'static) -> Work<U> {
        match self {
            Self::Done(value) => Work::Done(then(value)),
            Self::Later(future) => Work::later(async move { then(future.await) }),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Work<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(value) => f.debug_tuple("Done").field(value).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// How the device reaches its driver. Called on the device's thread; it must not block, nor wait for a
/// [`Reply`](crate::Reply). Dropped on that thread at reset.
pub trait Interrupt: Send + 'static {
    /// There are used buffers in queue `index` (0 control, 1 cursor).
    fn queue(&self, index: u16);

    /// A queue is broken and is not served before the next reset: set DEVICE_NEEDS_RESET (0x40) in the device status, then
    /// send a configuration change notification (virtio 1.4, section 2.1.2). Once for each queue and activation.
    fn needs_reset(&self);
}

/// A pair of closures: the first for queues, the second for [`needs_reset`](Interrupt::needs_reset).
impl<Q, R> Interrupt for (Q, R)
where
    Q: Fn(u16) + Send + 'static,
    R: Fn() + Send + 'static,
{
    fn queue(&self, index: u16) {
        self.0(index);
    }

    fn needs_reset(&self) {
        self.1();
    }
}

/// The shared-memory region (virtio 1.4, section 2.10) that blobs are mapped into: region id 1, host-visible.
///
/// [`HostWindow`](crate::HostWindow) implements it for a VMM that maps the region's host memory in one slot. A VMM with a
/// memory slot per blob, or one behind a vhost-user socket, implements it itself and answers when the guest can see
/// the change.
///
/// All calls come on the device's thread and must not block; futures are polled there, in the tokio-uring runtime. One
/// range has one call under way at a time.
#[expect(clippy::len_without_is_empty, reason = "an empty region is no region")]
pub trait SharedMemory: Send + 'static {
    /// Length of the region in bytes; it never changes.
    fn len(&self) -> u64;

    /// Shows the first `len` bytes of `file`, a buffer of this kind, at `offset`. Both are multiples of the page; ranges never
    /// overlap. The descriptor is borrowed for the call; whoever works on asynchronously duplicates it. A placement that
    /// comes after [`Limits::deadline`](crate::Limits::deadline) is cleared again.
    ///
    /// # Errors
    /// After every error but [`PlaceError::Lost`] the range shows what it showed before. `Refused`: a read-only buffer is
    /// tried again with [`Protection::ReadOnly`] where the policy allows it. `Refused` and `Moved` for want of memory or
    /// of descriptors are answered ERR_OUT_OF_MEMORY, all else ERR_UNSPEC. `Lost`: the range is never used again.
    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        kind: BufferKind,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>>;

    /// Takes back what was placed at exactly this range, a buffer of this kind, so that the guest cannot reach it any more.
    /// Until it is gone the guest may touch it: the range must not be without anything in between.
    ///
    /// # Errors
    /// Any: the range is never used again, and the guest gets ERR_UNSPEC.
    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>>;

    /// Takes the range back at once, because nobody can wait: for whatever is placed, being placed or being cleared when the
    /// device's task is dropped. The range may be empty already.
    ///
    /// # Errors
    /// Any: the range is never used again.
    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError>;
}
