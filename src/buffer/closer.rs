//! Closes what others have sent and nobody here knows: the last close of a socket may linger, that of a device or of a daemon's
//! file may wait. One thread of a device's own does it, which nothing else waits for.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::oneshot;

use crate::limits::Charge;
use crate::seams::LocalFuture;

/// Most descriptors that may wait to be closed before the service that sends more of them loses its channel, and nobody gets a
/// new one.
pub(crate) const CLOSING: usize = 256;

/// A descriptor, and who wants to know that it is closed.
type Order = (OwnedFd, Option<oneshot::Sender<()>>);

/// Where descriptors go that may take their time to close. Its thread begins with the first of them.
#[derive(Debug, Default)]
pub(crate) struct Closer {
    orders: RefCell<Option<Sender<Order>>>,
    pending: Arc<AtomicUsize>,
}

impl Closer {
    /// Descriptors that are not closed yet.
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Closes a descriptor, which counts until then.
    pub(crate) fn close(&self, file: OwnedFd, fd: Charge) -> LocalFuture<()> {
        let (told, closed) = oneshot::channel();
        self.order(file, Some(told));
        Box::pin(async move {
            // It is closed, too, where the thread could not begin.
            let _ = closed.await;
            drop(fd);
        })
    }

    /// Closes a descriptor that counts nowhere.
    pub(crate) fn discard(&self, file: OwnedFd) {
        self.order(file, None);
    }

    fn order(&self, file: OwnedFd, told: Option<oneshot::Sender<()>>) {
        let mut orders = self.orders.borrow_mut();
        if orders.is_none() {
            let (sender, receiver) = channel();
            let pending = Arc::clone(&self.pending);
            let thread = std::thread::Builder::new().name("virtio-gpu-close".into());
            *orders = thread.spawn(move || close_all(&receiver, &pending)).ok().map(|_| sender);
        }
        // A process that has no room for a thread closes in line.
        if let Some(orders) = &*orders {
            self.pending.fetch_add(1, Ordering::Relaxed);
            let _ = orders.send((file, told));
        }
    }
}

fn close_all(orders: &Receiver<Order>, pending: &AtomicUsize) {
    while let Ok((file, told)) = orders.recv() {
        drop(file);
        pending.fetch_sub(1, Ordering::Relaxed);
        if let Some(told) = told {
            // A device that has ended waits for nothing.
            let _ = told.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::limits::{Ledger, Limits, Quota};

    #[test]
    fn a_descriptor_that_is_given_away_is_always_closed_and_counts_until_then() {
        let ledger = Ledger::new(&Limits::default());
        let closer = Closer::default();
        let (mut known, file) = UnixStream::pair().expect("sockets");
        let closed = closer.close(file.into(), ledger.charge(Quota::Fds, 1).expect("room"));
        assert_eq!(known.read(&mut [0; 1]).expect("end of file"), 0);
        assert_eq!(ledger.used(Quota::Fds), 1);
        futures_util::FutureExt::now_or_never(closed);
        let (mut known, file) = UnixStream::pair().expect("sockets");
        closer.discard(file.into());
        drop(closer);
        assert_eq!(known.read(&mut [0; 1]).expect("end of file"), 0);
        assert_eq!(ledger.used(Quota::Fds), 0);
    }
}
