//! The window of a VMM that maps the region's host memory in one slot: buffers are moved into a reservation, and KVM
//! follows by itself. Placing takes microseconds and is done in line; what frees pages goes to the ring's workers, and what
//! asks KVM for its opinion to a thread.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::seams::{BufferKind, FixedRange, PlaceError, Protection, SharedMemory, Work};
use crate::sys::reservation::Reservation;
use crate::sys::ring::{Advice, advise};

/// Up to here a range is taken back in line: 64 pages cost some 10 us, less than a trip to a worker thread.
const CLEAR_IN_LINE: u64 = 256 << 10;
/// A worker forgets this much at a time (some 2 ms where all of it is populated), so that no other thread waits long for
/// the address space.
const CHUNK: u32 = 32 << 20;
/// So much of a dma-buf is remapped at a time, with a pause for everybody else: pages that a guest has copied are freed by it.
const REMAP: u64 = 16 << 20;
const PAUSE: Duration = Duration::from_millis(1);
/// Length of the scratch memory where none is stated.
const SCRATCH: usize = 64 << 20;

/// A host-visible window in this process's memory. Clones are the same window; it stays mapped while one of them, or
/// the device, is alive.
#[derive(Debug, Clone)]
pub struct HostWindow {
    memory: Arc<Reservation>,
    populate: bool,
    check: Option<Check>,
}

/// The way to a thread that looks at placements. The thread ends with the last clone.
#[derive(Clone)]
struct Check {
    questions: mpsc::Sender<Question>,
    patience: Duration,
}

/// A range that shows a dma-buf, and who wants to know whether a guest can reach it.
struct Question {
    offset: u64,
    len: u64,
    answer: oneshot::Sender<io::Result<()>>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

impl Check {
    fn start(patience: Duration, check: impl Fn(u64, u64) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (sender, questions) = mpsc::channel::<Question>();
        let answer_all = move || {
            for Question { offset, len, answer } in questions {
                if !answer.is_closed() {
                    let _ = answer.send(check(offset, len));
                }
            }
        };
        std::thread::Builder::new().name("virtio-gpu-check".into()).spawn(answer_all)?;
        Ok(Self { questions: sender, patience })
    }

    async fn ask(&self, offset: u64, len: u64) -> io::Result<()> {
        let (answer, answered) = oneshot::channel();
        // A thread that is gone drops the question, and with it the answer's other end.
        let _ = self.questions.send(Question { offset, len, answer });
        let answered = tokio::time::timeout(self.patience, answered).await;
        let answered = answered.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the check takes too long"))?;
        answered.unwrap_or_else(|_| Err(io::Error::other("the check has panicked")))
    }
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
        Ok(Self { memory: Arc::new(Reservation::scratch(len, scratch)?), populate: false, check: None })
    }

    /// A window whose gaps deny all access: a guest that touches one ends its vCPU's run with `EFAULT`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn deny_gaps(len: usize) -> io::Result<Self> {
        Ok(Self { memory: Arc::new(Reservation::deny(len)?), populate: false, check: None })
    }

    /// Makes every page of a blob present before its MAP is answered, so that the guest's first touches take no faults.
    /// Buffers that cannot be populated are mapped all the same.
    #[must_use]
    pub fn populated(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }

    /// Asks `check` about each dma-buf that was placed, by offset and length in bytes, before its MAP is answered. It is
    /// called on a thread of its own, one placement at a time; what it refuses is taken back, and the guest gets an error.
    /// So is what it says nothing about within `patience`, and everything after it has panicked. A read-only buffer that
    /// it refuses is placed without write access, where the policy allows that, and asked about once more. The check may
    /// still run when the device has gone.
    ///
    /// What the host can map, its KVM may still be unable to show to a guest: before Linux 6.13 pages without a reference
    /// count of their own, of which dma-heaps and some GPUs' drivers make large buffers. The guest's first touch would end
    /// its vCPU's run. KVM_PRE_FAULT_MEMORY (Linux 6.10), on a vCPU that is kept for it, tells; `examples/vmm` does so.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn checked_by(
        mut self,
        patience: Duration,
        check: impl Fn(u64, u64) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        self.check = Some(Check::start(patience, check)?);
        Ok(self)
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
        kind: BufferKind,
        protection: Protection,
    ) -> Work<Result<(), PlaceError>> {
        let placed = self.memory.place(offset, len, file, protection);
        let check = self.check.clone().filter(|_| kind == BufferKind::DmaBuf);
        if placed.is_err() || !(self.populate || check.is_some()) {
            return Work::Done(placed);
        }
        let window = self.clone();
        Work::later(async move {
            if window.populate {
                window.populate(offset, len, protection).await;
            }
            let Some(check) = check else { return Ok(()) };
            let checked = check.ask(offset, len).await;
            checked.or_else(|source| window.fill(offset, len).and(Err(PlaceError::Refused { source })))
        })
    }

    fn fixed_range(&self, offset: u64, len: u64) -> Option<FixedRange> {
        FixedRange::new(Arc::clone(&self.memory), offset, len).ok()
    }

    /// The pages of a large piece of shared memory are forgotten first: a guest's touch has them back meanwhile. Those of
    /// a dma-buf would not come back (V4L2 maps all of them once and has no way to map one again); it is remapped in
    /// pieces instead.
    fn clear(&self, offset: u64, len: u64, kind: BufferKind) -> Work<Result<(), PlaceError>> {
        let in_line = match kind {
            BufferKind::SharedMemory => CLEAR_IN_LINE,
            BufferKind::DmaBuf => REMAP,
        };
        if len <= in_line {
            return Work::Done(self.fill(offset, len));
        }
        let window = self.clone();
        Work::later(async move {
            if kind == BufferKind::SharedMemory {
                let _ = advise_all(&window.memory, offset, len, Advice::DontNeed).await;
                return window.fill(offset, len);
            }
            let mut at = offset;
            while offset + len - at > REMAP {
                window.fill(at, REMAP).inspect_err(|_| window.memory.seal(offset, len))?;
                at += REMAP;
                tokio::time::sleep(PAUSE).await;
            }
            window.fill(at, offset + len - at)
        })
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        self.fill(offset, len)
    }
}

impl HostWindow {
    /// Makes the pages of a range present. Memory of a device takes no such advice; it needs none either.
    async fn populate(&self, offset: u64, len: u64, protection: Protection) {
        let advice = match protection {
            Protection::ReadWrite => Advice::PopulateWrite,
            Protection::PrivateCopy | Protection::ReadOnly => Advice::PopulateRead,
        };
        let _ = advise_all(&self.memory, offset, len, advice).await;
    }

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
