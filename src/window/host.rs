//! The window of a VMM that maps the region's host memory in one slot: buffers are moved into a reservation, and KVM
//! follows by itself. Placing takes microseconds and is done in line; what frees pages goes to the ring's workers.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::seams::{BufferKind, PlaceError, Protection, SharedMemory, Work};
use crate::sys::reservation::Reservation;
use crate::sys::ring::{Advice, advise};

/// Up to here a range is taken back in line: 64 pages cost some 10 us, less than a trip to a worker thread.
const CLEAR_IN_LINE: u64 = 256 << 10;
/// A worker forgets this much at a time (some 2 ms where all of it is populated), so that no other thread waits long for
/// the address space.
const CHUNK: u32 = 32 << 20;
/// Length of the scratch memory where none is stated.
const SCRATCH: usize = 64 << 20;

/// A host-visible window in this process's memory. Clones are the same window; it stays mapped while one of them, or
/// the device, is alive.
#[derive(Debug, Clone)]
pub struct HostWindow {
    memory: Arc<Reservation>,
    populate: bool,
}

impl HostWindow {
    /// A window of `len` bytes whose gaps show scratch memory: one memfd of at most 64 MiB, mapped again and again,
    /// sparse until a guest writes into a gap.
    ///
    /// # Errors
    /// A length that is no multiple of the page, or what the kernel answers.
    pub fn new(len: usize) -> io::Result<Self> {
        Self::with_scratch(len, SCRATCH)
    }

    /// The same with a scratch memory of `scratch` bytes: less of it costs the host less, more of it takes fewer
    /// mappings.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_scratch(len: usize, scratch: usize) -> io::Result<Self> {
        Ok(Self { memory: Arc::new(Reservation::scratch(len, scratch)?), populate: false })
    }

    /// A window whose gaps deny all access: a guest that touches one ends its vCPU's run with `EFAULT`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn deny_gaps(len: usize) -> io::Result<Self> {
        Ok(Self { memory: Arc::new(Reservation::deny(len)?), populate: false })
    }

    /// Makes every page of a blob present before its MAP is answered, so that the guest's first touches take no faults.
    /// Buffers that cannot be populated are mapped all the same.
    #[must_use]
    pub fn populated(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a window is never empty")]
    pub fn len(&self) -> u64 {
        self.memory.len()
    }

    /// Where the window starts in this process: what a VMM gives to its memory slot. The VMM keeps a clone of the window for
    /// as long as the slot exists.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.memory.host_address()
    }

    /// Copies bytes out of the window, as the guest sees them.
    ///
    /// A byte with no page behind it (a gap that denies access, a file truncated after it was mapped) ends the process
    /// by a signal.
    ///
    /// # Errors
    /// [`PlaceError::OutOfRange`].
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), PlaceError> {
        self.memory.read(offset, out)
    }

    /// Copies bytes into the window, as the guest's stores would.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), PlaceError> {
        self.memory.write(offset, data)
    }
}

impl SharedMemory for HostWindow {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn place(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        let placed = self.memory.place(offset, len, file, protection);
        if placed.is_err() || !self.populate {
            return Work::Done(placed);
        }
        let advice = match protection {
            Protection::ReadWrite => Advice::PopulateWrite,
            Protection::PrivateCopy | Protection::ReadOnly => Advice::PopulateRead,
        };
        let memory = Arc::clone(&self.memory);
        Work::later(async move {
            // Memory of a device takes no such advice; it needs none either.
            let _ = advise_all(&memory, offset, len, advice).await;
            Ok(())
        })
    }

    /// The pages of a large piece of shared memory are forgotten first: a guest's touch has them back meanwhile. Those of
    /// a dma-buf would not come back (V4L2 maps all of them once and has no way to map one again); nor has the remap any
    /// to free, so that it is cheap.
    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>> {
        if len <= CLEAR_IN_LINE || kind == BufferKind::DmaBuf {
            return Work::Done(self.fill(offset, len));
        }
        let window = self.clone();
        Work::later(async move {
            let _ = advise_all(&window.memory, offset, len, Advice::DontNeed).await;
            window.fill(offset, len)
        })
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.fill(offset, len)
    }
}

impl HostWindow {
    /// Refills a range; where not even that works, at least nothing behind it can be reached any more.
    fn fill(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.memory.fill(offset, len).inspect_err(|_| self.memory.seal(offset, len))
    }
}

async fn advise_all(memory: &Arc<Reservation>, offset: u64, len: u64, advice: Advice) -> io::Result<()> {
    let mut at = offset;
    while at < offset + len {
        let piece = u32::try_from(offset + len - at).unwrap_or(CHUNK).min(CHUNK);
        advise(Arc::clone(memory), at, piece, advice).await?;
        at += u64::from(piece);
    }
    Ok(())
}
