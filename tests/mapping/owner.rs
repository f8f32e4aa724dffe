//! A region whose owner answers late, or never, or with an error: the test plays it, and sees what the device asks of it.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use virtio_gpu_uring::{BufferKind, Builder, HostWindow, PlaceError, Protection, SharedMemory, Work};

use crate::setup::{PAGE, PAGES, Setup};

/// What the device has asked of the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Of this many pages, at this page.
    Place(u64, u64, Protection),
    /// The same.
    Clear(u64, u64),
    /// Without anybody to wait for it.
    ClearNow(u64, u64),
}

type Verdict = Box<dyn FnMut(&Asked) -> bool + Send>;

/// A window behind an owner who asks the test before anything happens.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) window: HostWindow,
    /// A permit lets one request go on; closed, everything is done at once.
    gate: Arc<Semaphore>,
    asked: Arc<Mutex<Vec<Asked>>>,
    refuses: Arc<Mutex<Verdict>>,
}

impl Owner {
    /// Does everything at once.
    pub(crate) fn prompt() -> Self {
        let owner = Self::slow();
        owner.gate.close();
        owner
    }

    /// Does nothing before [`allow`](Self::allow).
    pub(crate) fn slow() -> Self {
        let len = (PAGES * PAGE) as usize;
        let window = HostWindow::with_scratch(len, len).expect("a window");
        Self {
            window,
            gate: Arc::new(Semaphore::new(0)),
            asked: Arc::default(),
            refuses: Arc::new(Mutex::new(Box::new(|_| false))),
        }
    }

    /// Refuses what `verdict` says, and what it is asked for from now on only.
    pub(crate) fn refusing(self, verdict: impl FnMut(&Asked) -> bool + Send + 'static) -> Self {
        *self.refuses.lock().expect("no panic under it") = Box::new(verdict);
        self
    }

    /// Lets `requests` more go on.
    pub(crate) fn allow(&self, requests: usize) {
        self.gate.add_permits(requests);
    }

    /// What the device has asked since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().expect("no panic under it"))
    }

    /// A guest on this region, its gaps painted.
    pub(crate) fn guest(&self, builder: Builder) -> Setup {
        let builder = builder.window(self.clone());
        let setup = Setup::with_options(self.window.clone(), builder, Default::default());
        setup.paint();
        setup
    }

    /// Notes the request; whether it is refused.
    fn ask(&self, asked: Asked) -> bool {
        self.asked.lock().expect("no panic under it").push(asked);
        (self.refuses.lock().expect("no panic under it"))(&asked)
    }

    /// Goes on with `work` when the test says so.
    fn when_allowed(
        &self,
        refused: bool,
        work: impl FnOnce(&HostWindow) -> Work<Result<(), PlaceError>> + 'static,
    ) -> Work<Result<(), PlaceError>> {
        let no = || Err(PlaceError::Refused { source: std::io::Error::other("the owner refuses") });
        if self.gate.is_closed() {
            return if refused { Work::Done(no()) } else { work(&self.window) };
        }
        let (gate, window) = (Arc::clone(&self.gate), self.window.clone());
        Work::later(async move {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
            if refused { no() } else { work(&window).result().await }
        })
    }
}

impl SharedMemory for Owner {
    fn len(&self) -> u64 {
        self.window.len()
    }

    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        kind: BufferKind,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        let refused = self.ask(Asked::Place(offset / PAGE, len / PAGE, protection));
        let file = file.try_clone_to_owned().expect("a duplicate");
        self.when_allowed(refused, move |window| {
            window.place(offset, len, std::os::fd::AsFd::as_fd(&file), kind, protection)
        })
    }

    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>> {
        let refused = self.ask(Asked::Clear(offset / PAGE, len / PAGE));
        self.when_allowed(refused, move |window| window.clear(offset, len, kind))
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.ask(Asked::ClearNow(offset / PAGE, len / PAGE));
        self.window.clear_now(offset, len)
    }
}
