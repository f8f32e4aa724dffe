//! The window as a VMM sees it that keeps the descriptors of what the device asks it to place, as one with a memory slot per
//! blob does, or one that hands them to another process.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_gpu_uring::{BufferKind, HostWindow, PlaceError, Protection, SharedMemory, Work};

/// Something that is placed.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) file: OwnedFd,
    pub(crate) len: u64,
    pub(crate) kind: BufferKind,
    pub(crate) protection: Protection,
}

/// What a mapping is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Honesty {
    /// What was asked for is there.
    Honest,
    /// It is said to be there, and is not: what this project is about, and what a test must not miss.
    Hollow,
}

#[derive(Debug, Clone)]
pub(crate) struct Witness {
    window: HostWindow,
    honesty: Honesty,
    placed: Arc<Mutex<BTreeMap<u64, Placed>>>,
}

impl Witness {
    pub(crate) fn new(window: HostWindow, honesty: Honesty) -> Self {
        Self { window, honesty, placed: Arc::default() }
    }

    pub(crate) fn window(&self) -> &HostWindow {
        &self.window
    }

    /// What is placed, by its offset.
    pub(crate) fn placed(&self) -> MutexGuard<'_, BTreeMap<u64, Placed>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedMemory for Witness {
    fn len(&self) -> u64 {
        SharedMemory::len(&self.window)
    }

    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        kind: BufferKind,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        let file = match file.try_clone_to_owned() {
            Ok(file) => file,
            Err(source) => return Work::Done(Err(PlaceError::Refused { source })),
        };
        let placed = match self.honesty {
            Honesty::Honest => self.window.place(offset, len, file.as_fd(), kind, protection),
            Honesty::Hollow => Work::Done(Ok(())),
        };
        let witness = self.clone();
        placed.map(move |result| {
            result?;
            witness.placed().insert(offset, Placed { file, len, kind, protection });
            Ok(())
        })
    }

    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>> {
        self.placed().remove(&offset);
        match self.honesty {
            Honesty::Honest => self.window.clear(offset, len, kind),
            Honesty::Hollow => Work::Done(Ok(())),
        }
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.placed().remove(&offset);
        match self.honesty {
            Honesty::Honest => self.window.clear_now(offset, len),
            Honesty::Hollow => Ok(()),
        }
    }
}
