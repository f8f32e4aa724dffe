//! The seams of the house: what a VMM gives to the device so that it can reach the guest.
//! They stand in one file, because together they are all that a VMM has to implement.

use std::fmt;
use std::future::Future;
use std::os::fd::BorrowedFd;
use std::pin::Pin;

pub use crate::sys::reservation::{PlaceError, Protection};

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

/// How the device interrupts the guest. Called on the device's thread; it must not block.
pub trait Interrupt: Send + 'static {
    /// There are used buffers in queue `index` (0 control, 1 cursor).
    fn queue(&self, index: u16);
    /// The configuration space has changed, or the device needs a reset.
    fn config(&self);
}

/// Why the configuration interrupt was raised is the VMM's business; a pair of closures is often all it takes.
impl<Q, C> Interrupt for (Q, C)
where
    Q: Fn(u16) + Send + 'static,
    C: Fn() + Send + 'static,
{
    fn queue(&self, index: u16) {
        self.0(index);
    }

    fn config(&self) {
        self.1();
    }
}

/// The shared-memory region (virtio 1.4, section 2.10) that blobs are mapped into: region id 1, host-visible.
///
/// [`HostWindow`](crate::HostWindow) implements it for a VMM that maps the region's host memory in one slot. A VMM with a
/// memory slot per blob, or one behind a vhost-user socket, implements it itself and answers when the guest can see
/// the change.
#[expect(clippy::len_without_is_empty, reason = "an empty region is no region")]
pub trait SharedMemory: Send + 'static {
    /// Length of the region in bytes.
    fn len(&self) -> u64;

    /// Shows the first `len` bytes of `file` at `offset`. Both are multiples of the page; ranges never overlap. The
    /// descriptor is borrowed for the call; whoever works on asynchronously duplicates it.
    ///
    /// When the result is an error the range shows what it showed before.
    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>>;

    /// Takes back what was placed at exactly this range, so that the guest cannot reach it any more.
    fn clear(&self, offset: u64, len: u64) -> Work<Result<(), PlaceError>>;

    /// The same without anybody to wait for it: the device is being dropped.
    fn clear_now(&self, offset: u64, len: u64);
}
