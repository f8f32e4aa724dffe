//! The window of this VMM: a buffer counts as mapped only when KVM, too, can reach it.
//!
//! The host's mapping is not enough everywhere. KVM before Linux 6.13 cannot show a guest pages that have no reference count
//! of their own, as a dma-heap's and some GPUs' have none: the guest's first touch would end the machine. Here such a
//! buffer is refused, and the guest gets an error that it can live with.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;
use virtio_gpu_uring::{BufferKind, HostWindow, PlaceError, Protection, SharedMemory, Work};

use crate::error::VmmError;
use crate::kvm::Prober;

/// A range of the window to look at, in guest addresses, and who wants to know.
struct Question {
    at: u64,
    len: u64,
    answer: oneshot::Sender<io::Result<()>>,
}

/// A [`HostWindow`] whose placements KVM is asked about.
pub(crate) struct CheckedWindow {
    window: HostWindow,
    /// Where the window begins in the guest.
    at: u64,
    questions: Sender<Question>,
}

impl CheckedWindow {
    /// Looking at each page takes KVM its time, so a thread of its own does it.
    pub(crate) fn new(window: HostWindow, at: u64, prober: Prober) -> Result<Self, VmmError> {
        let (questions, asked) = channel::<Question>();
        let probe = move || {
            for Question { at, len, answer } in asked {
                let _ = answer.send(prober.probe(at, len));
            }
        };
        std::thread::Builder::new().name("prober".into()).spawn(probe).map_err(VmmError::io("the prober's thread"))?;
        Ok(Self { window, at, questions })
    }
}

/// Whether the guest can reach a range.
async fn reach(questions: &Sender<Question>, at: u64, len: u64) -> io::Result<()> {
    let (answer, answered) = oneshot::channel();
    // A thread that is gone drops the question, and with it the answer's other end.
    let _ = questions.send(Question { at, len, answer });
    answered.await.unwrap_or_else(|_| Err(io::Error::other("the prober has stopped")))
}

impl SharedMemory for CheckedWindow {
    fn len(&self) -> u64 {
        self.window.len()
    }

    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        let placed = self.window.place(offset, len, file, protection);
        let (window, questions, at) = (self.window.clone(), self.questions.clone(), self.at + offset);
        Work::later(async move {
            placed.result().await?;
            let reached = reach(&questions, at, len).await;
            reached.or_else(|source| window.clear_now(offset, len).and(Err(PlaceError::Refused { source })))
        })
    }

    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>> {
        self.window.clear(offset, len, kind)
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.window.clear_now(offset, len)
    }
}
