//! Where blobs lie in the host-visible region. A range is a value: reserved, then placed, and free again only when the
//! region's owner has answered that nothing of the blob can be seen there.

mod book;
mod host;

use std::cell::RefCell;
use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use host::HostWindow;

use crate::buffer::{Access, HeldBuffer, HostBuffer};
use crate::limits::{Charge, Ledger, LimitReached, Quota};
use crate::seams::{BufferKind, FixedRange, LocalFuture, PlaceError, Protection, SharedMemory, Work};
use book::Book;

/// What happens to a read-only buffer whose exporter refuses private mappings (udmabuf does).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReadOnlyPolicy {
    /// It is mapped without write access: a guest's store never reaches it. KVM ends the vCPU's run with a fault, or hands
    /// the store to the VMM as one to a register (for memory of a device's driver; Linux 6.12).
    #[default]
    Allow,
    /// It is not mapped: the guest gets an error.
    Refuse,
}

/// Why a blob could not be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("offset {offset:#x} is no multiple of {alignment:#x}")]
    Unaligned { offset: u64, alignment: u64 },
    #[error("range {offset:#x}+{size:#x} does not fit into a window of {window:#x} bytes")]
    OutOfRange { offset: u64, size: u64, window: u64 },
    #[error("range {offset:#x}+{len:#x} overlaps one that is in use")]
    Overlap { offset: u64, len: u64 },
    #[error("blob of {size:#x} bytes on a {kind:?} buffer that has {len:#x} bytes now")]
    Truncated { size: u64, len: u64, kind: BufferKind },
    #[error(transparent)]
    Limit(#[from] LimitReached),
    #[error("{kind:?} buffer: {source}")]
    Place { kind: BufferKind, source: PlaceError },
    #[error("not placed within {deadline:?}")]
    Deadline { deadline: Duration },
    #[error("the buffer's size cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the region's owner has no way for a renderer to map by itself")]
    NoFixedRange,
    #[error("not mapped by the renderer: {0}")]
    Own(#[source] Box<dyn std::error::Error>),
}

struct Shared {
    memory: Box<dyn SharedMemory>,
    book: RefCell<Book>,
    page: u64,
    alignment: u64,
    read_only: ReadOnlyPolicy,
    deadline: Duration,
    ledger: Rc<Ledger>,
}

/// The region's ranges, and the way to change them.
pub(crate) struct Window {
    shared: Rc<Shared>,
}

/// A range that belongs to one blob; its end gives the range back.
struct Lease {
    shared: Rc<Shared>,
    offset: u64,
    len: u64,
    /// Whether nobody knows what the range shows: it stays booked for as long as the window lives.
    lost: bool,
    mapped_bytes: Option<Charge>,
}

/// A range that is booked and shows the filler.
pub(crate) struct Reserved(Lease);

/// A range that shows a buffer, which stays open for as long. Dropping it takes the buffer away without waiting.
pub(crate) struct Placed {
    lease: Option<Lease>,
    len: u64,
    content: Content,
    /// For the copies that a guest makes by writing to a read-only buffer.
    _copies: Option<Charge>,
}

/// What a range shows.
enum Content {
    Buffer(Rc<HeldBuffer>),
    /// What the renderer has mapped there by itself, or is about to.
    Own(Arc<FixedRange>),
}

impl Content {
    /// How it is taken back: what the renderer has mapped may be memory of any kind.
    fn kind(&self) -> BufferKind {
        match self {
            Self::Buffer(buffer) => buffer.kind(),
            Self::Own(_) => BufferKind::DmaBuf,
        }
    }
}

/// A buffer that could not be placed, and what is left to wait for before its range is free again.
pub(crate) struct PlaceFailure {
    pub(crate) error: MapError,
    /// The range is not free again: it is waited for, or lost.
    pub(crate) quarantined: bool,
    pub(crate) rest: Option<LocalFuture<()>>,
}

impl From<MapError> for PlaceFailure {
    fn from(error: MapError) -> Self {
        Self { error, quarantined: false, rest: None }
    }
}

/// What became of a placed range that was to be taken back.
pub(crate) enum Cleared {
    /// The filler is back, the range is free.
    Filled,
    /// It could not be taken back in time or at all. The range stays booked until the rest, where there is one, is done.
    Quarantined(Option<LocalFuture<()>>),
}

impl Window {
    pub(crate) fn new(
        memory: Box<dyn SharedMemory>,
        alignment: u64,
        read_only: ReadOnlyPolicy,
        deadline: Duration,
        ledger: Rc<Ledger>,
    ) -> Self {
        let page = rustix::param::page_size() as u64;
        let book = RefCell::default();
        Self { shared: Rc::new(Shared { memory, book, page, alignment, read_only, deadline, ledger }) }
    }

    /// Books the range of a blob of `size` bytes.
    ///
    /// # Errors
    /// An offset off the alignment, a range outside the window or over another one, [`MapError::Limit`].
    pub(crate) fn reserve(&self, offset: u64, size: u64) -> Result<Reserved, MapError> {
        let Shared { memory, page, alignment, ledger, book, .. } = &*self.shared;
        if !offset.is_multiple_of(*alignment) {
            return Err(MapError::Unaligned { offset, alignment: *alignment });
        }
        let window = memory.len();
        let len = size.checked_next_multiple_of(*page).filter(|len| *len > 0);
        let fits = len.and_then(|len| offset.checked_add(len)).is_some_and(|end| end <= window);
        let Some(len) = len.filter(|_| fits) else { return Err(MapError::OutOfRange { offset, size, window }) };
        let mapped_bytes = ledger.charge(Quota::MappedBytes, len)?;
        if !book.borrow_mut().insert(offset, len) {
            return Err(MapError::Overlap { offset, len });
        }
        Ok(Reserved(Lease {
            shared: Rc::clone(&self.shared),
            offset,
            len,
            lost: false,
            mapped_bytes: Some(mapped_bytes),
        }))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.lost {
            // What it takes of the quota is taken for good.
            std::mem::forget(self.mapped_bytes.take());
        } else {
            self.shared.book.borrow_mut().remove(self.offset);
        }
    }
}

impl Lease {
    /// Gives the range up for good.
    fn quarantine(mut self) {
        self.lost = true;
    }
}

impl Reserved {
    /// Lays a blob of `size` bytes, backed by `buffer`, into the range.
    pub(crate) fn place(self, buffer: &Rc<HeldBuffer>, size: u64) -> Work<Result<Placed, PlaceFailure>> {
        let (len, copies) = match self.check(buffer, size) {
            Ok(checked) => checked,
            Err(error) => return Work::Done(Err(error.into())),
        };
        let Shared { read_only, deadline, .. } = *self.0.shared;
        // From here on the range may show the buffer: whoever drops this before its end has it taken back.
        let content = Content::Buffer(Rc::clone(buffer));
        let placed = Placed { lease: Some(self.0), len, content, _copies: copies };
        let mut ways = ways(buffer, read_only);
        let first = ways.next().map_or(Work::Done(Ok(())), |protection| placed.show(protection));
        match first {
            Work::Done(result) if ways.len() == 0 || !refused(&result) => Work::Done(placed.shown(result)),
            work => Work::later(within(
                deadline,
                Box::pin(async move {
                    let mut result = work.result().await;
                    while let (true, Some(protection)) = (refused(&result), ways.next()) {
                        result = placed.show(protection).result().await;
                    }
                    placed.shown(result)
                }),
            )),
        }
    }

    /// Has `map` map something over all of the range, on another thread.
    pub(crate) fn place_own<E, F>(self, map: impl FnOnce(Arc<FixedRange>) -> F) -> Work<Result<Placed, PlaceFailure>>
    where
        E: std::error::Error + 'static,
        F: Future<Output = Result<(), E>> + 'static,
    {
        let Lease { shared, offset, len, .. } = &self.0;
        let Some(range) = shared.memory.fixed_range(*offset, *len).map(Arc::new) else {
            return Work::Done(Err(MapError::NoFixedRange.into()));
        };
        let (len, content) = (*len, Content::Own(Arc::clone(&range)));
        let placed = Placed { lease: Some(self.0), len, content, _copies: None };
        let mapping = map(range);
        Work::later(async move {
            match mapping.await {
                Ok(()) => Ok(placed),
                // The range is given back by `placed`, and shows the filler: nothing comes into it any more.
                Err(error) => Err(MapError::Own(error.into()).into()),
            }
        })
    }

    /// How many bytes to place, and the charge for pages that the guest may copy.
    fn check(&self, buffer: &HostBuffer, size: u64) -> Result<(u64, Option<Charge>), MapError> {
        let Shared { page, alignment, ledger, .. } = &*self.0.shared;
        let len = buffer.current_len()?;
        if len.checked_next_multiple_of(*alignment).is_none_or(|most| size > most) {
            return Err(MapError::Truncated { size, len, kind: buffer.kind() });
        }
        let placed = len.next_multiple_of(*page).min(self.0.len);
        let copies = match buffer.access() {
            Access::ReadWrite => None,
            Access::ReadOnly => Some(ledger.charge(Quota::HostBytes, placed)?),
        };
        Ok((placed, copies))
    }
}

/// The protections to try, best first.
fn ways(buffer: &HostBuffer, policy: ReadOnlyPolicy) -> impl ExactSizeIterator<Item = Protection> + use<> {
    let fallback = buffer.access() == Access::ReadOnly && policy == ReadOnlyPolicy::Allow;
    [buffer.protection(), Protection::ReadOnly].into_iter().take(if fallback { 2 } else { 1 })
}

fn refused(result: &Result<(), PlaceError>) -> bool {
    matches!(result, Err(PlaceError::Refused { .. }))
}

/// Waits for a placement until the deadline. What comes later is taken back, and its range is free only then.
async fn within(
    deadline: Duration,
    mut rest: LocalFuture<Result<Placed, PlaceFailure>>,
) -> Result<Placed, PlaceFailure> {
    match tokio::time::timeout(deadline, &mut rest).await {
        Ok(result) => result,
        Err(_) => Err(PlaceFailure {
            error: MapError::Deadline { deadline },
            quarantined: true,
            rest: Some(Box::pin(async move {
                if let Ok(placed) = rest.await
                    && let Cleared::Quarantined(Some(rest)) = placed.clear().result().await
                {
                    rest.await;
                }
            })),
        }),
    }
}

impl Placed {
    fn show(&self, protection: Protection) -> Work<Result<(), PlaceError>> {
        match (&self.lease, &self.content) {
            (Some(lease), Content::Buffer(buffer)) => {
                let memory = &lease.shared.memory;
                memory.place(lease.offset, self.len, buffer.as_fd(), buffer.kind(), protection)
            }
            _ => Work::Done(Ok(())),
        }
    }

    /// A placement has ended. One that failed has left the range as it was.
    fn shown(mut self, result: Result<(), PlaceError>) -> Result<Self, PlaceFailure> {
        let Err(source) = result else { return Ok(self) };
        let lease = self.lease.take();
        let quarantined = matches!(source, PlaceError::Lost { .. });
        if let (true, Some(lease)) = (quarantined, lease) {
            lease.quarantine();
        }
        let error = MapError::Place { kind: self.content.kind(), source };
        Err(PlaceFailure { error, quarantined, rest: None })
    }

    /// Takes the buffer out of the window.
    pub(crate) fn clear(self) -> Work<Cleared> {
        let Some(lease) = &self.lease else { return Work::Done(Cleared::Filled) };
        let deadline = lease.shared.deadline;
        match lease.shared.memory.clear(lease.offset, self.len, self.content.kind()) {
            Work::Done(result) => Work::Done(self.cleared(result)),
            Work::Later(future) => {
                let mut rest: LocalFuture<Cleared> = Box::pin(async move {
                    let result = future.await;
                    self.cleared(result)
                });
                Work::later(async move {
                    match tokio::time::timeout(deadline, &mut rest).await {
                        Ok(cleared) => cleared,
                        Err(_) => Cleared::Quarantined(Some(Box::pin(async move { drop(rest.await) }))),
                    }
                })
            }
        }
    }

    fn cleared(mut self, result: Result<(), PlaceError>) -> Cleared {
        let lease = self.lease.take();
        if let (Err(_), Some(lease)) = (result, lease) {
            lease.quarantine();
            return Cleared::Quarantined(None);
        }
        Cleared::Filled
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if let Content::Own(range) = &self.content {
            range.revoke();
        }
        if lease.shared.memory.clear_now(lease.offset, self.len).is_err() {
            lease.quarantine();
        }
    }
}
