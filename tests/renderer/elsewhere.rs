//! A shared-memory region whose owner maps by other means, and has no range for a renderer to map into by itself.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use virtio_gpu_uring::{BufferKind, PlaceError, Protection, SharedMemory, Work};

/// Clones are the same region.
#[derive(Clone, Default)]
pub(super) struct Elsewhere(Arc<Mutex<Vec<String>>>);

impl Elsewhere {
    fn tell(&self, what: &str, offset: u64, len: u64) {
        self.0.lock().expect("no panic under it").push(format!("{what} {offset:#x}+{len:#x}"));
    }

    /// What the device has asked of it since the last call.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic under it"))
    }
}

impl SharedMemory for Elsewhere {
    fn len(&self) -> u64 {
        1 << 20
    }

    fn place(
        &self,
        offset: u64,
        len: u64,
        _file: BorrowedFd<'_>,
        _kind: BufferKind,
        _protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        self.tell("place", offset, len);
        Work::Done(Ok(()))
    }

    fn clear(&self, offset: u64, len: u64, _kind: BufferKind) -> Work<Result<(), PlaceError>> {
        self.tell("clear", offset, len);
        Work::Done(Ok(()))
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.tell("clear now", offset, len);
        Ok(())
    }
}
