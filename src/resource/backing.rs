//! Guest memory behind a resource: a scatter list that was checked once, and is checked by the memory itself at every
//! access, because regions may go while it is attached.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::{Charge, Ledger, LimitReached, Quota};
use crate::protocol::wire::MemEntry;

/// Guest RAM, as far as the rooms below the queues need it.
pub(crate) trait GuestRam {
    /// Whether the whole range is RAM.
    fn contains(&self, address: u64, len: u64) -> bool;
    /// Copies `data` to `address`; false where not all of it is RAM.
    fn write(&self, address: u64, data: &[u8]) -> bool;
    /// Copies bytes from `address` on; false where not all of them are RAM.
    fn read(&self, address: u64, out: &mut [u8]) -> bool;
    /// The same memory, looked up once for many accesses that follow each other.
    fn held(&self) -> Box<dyn GuestRam + '_>;
    /// The same memory for another thread.
    fn share(&self) -> Box<dyn GuestRam + Send>;
    /// Where the ranges lie in this process, and what keeps them there; `None` where not all of them are RAM, or it has no
    /// addresses.
    fn pin(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>) -> Option<(Vec<HostPiece>, Box<dyn Any>)>;
}

/// A piece of guest memory in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPiece {
    /// Its first byte. The guest reads and writes it at the same time.
    pub address: NonNull<u8>,
    /// Bytes from there on.
    pub len: usize,
}

/// Why a list of entries is refused.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum BackingError {
    #[error("entry {address:#x}+{len:#x} is not guest memory")]
    NotRam { address: u64, len: u32 },
    #[error("{have} bytes of backing for a blob of {size}")]
    Short { have: u64, size: u64 },
    #[error(transparent)]
    Limit(#[from] LimitReached),
}

/// A piece of guest memory, and where in the whole it begins.
#[derive(Debug, Clone, Copy)]
struct Piece {
    address: u64,
    len: u64,
    start: u64,
}

/// A checked scatter list.
#[derive(Debug)]
pub(crate) struct Backing {
    pieces: Arc<[Piece]>,
    len: u64,
    _charge: Charge,
}

impl Backing {
    /// Checks that every entry is RAM and that together they hold `size` bytes; neighbours are merged.
    ///
    /// # Errors
    /// The first entry that is not RAM, too little of it, or a limit.
    pub(crate) fn new(
        entries: &[MemEntry],
        size: u64,
        ram: &dyn GuestRam,
        ledger: &Rc<Ledger>,
    ) -> Result<Self, BackingError> {
        let charge = ledger.charge(Quota::BackingEntries, entries.len() as u64)?;
        let mut pieces: Vec<Piece> = Vec::with_capacity(entries.len());
        let mut len = 0u64;
        for entry in entries {
            let (address, piece) = (entry.addr.get(), entry.length.get());
            if piece == 0 || !ram.contains(address, u64::from(piece)) {
                return Err(BackingError::NotRam { address, len: piece });
            }
            let piece = u64::from(piece);
            match pieces.last_mut() {
                Some(last) if last.address + last.len == address => last.len += piece,
                _ => pieces.push(Piece { address, len: piece, start: len }),
            }
            len += piece;
        }
        if len < size {
            return Err(BackingError::Short { have: len, size });
        }
        Ok(Self { pieces: pieces.into(), len, _charge: charge })
    }

    /// Bytes that the list holds.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where a range of the backing lies: addresses and lengths. What lies behind its end is nowhere.
    pub(crate) fn pieces_of(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        pieces_of(&self.pieces, range)
    }

    /// Copies bytes from `start` on into `out`, as many as lie in the first `most` pieces, and says how many bytes and pieces
    /// that were; `None` where they do not all lie in the backing, or are RAM no more.
    pub(crate) fn read(&self, ram: &dyn GuestRam, start: u64, out: &mut [u8], most: usize) -> Option<(usize, usize)> {
        read(&self.pieces, ram, start, out, most)
    }

    /// Writes `data` at the start of the backing; false where it does not fit or is RAM no more.
    pub(crate) fn write(&self, ram: &dyn GuestRam, data: &[u8]) -> bool {
        write(&self.pieces, ram, 0, data)
    }

    /// The same memory for somebody on another thread, as long as the lease lasts.
    pub(crate) fn share(&self, ram: &dyn GuestRam, lease: &Lease) -> GuestBacking {
        GuestBacking {
            pieces: Arc::clone(&self.pieces),
            len: self.len,
            ram: ram.share(),
            copies: Arc::clone(&lease.copies),
        }
    }
}

/// The right of other threads to touch guest memory: from the driver's start to its end, after which the memory may belong to
/// another driver. It ends with the value at the latest.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// How many copies are under way and how many backings pinned, and [`ENDED`].
    copies: Arc<AtomicUsize>,
}

const ENDED: usize = 1 << (usize::BITS - 1);

impl Lease {
    /// No copy begins any more.
    pub(crate) fn end(&self) {
        self.copies.fetch_or(ENDED, Ordering::SeqCst);
    }

    /// Whether no copy is under way, and no memory pinned.
    pub(crate) fn is_quiet(&self) -> bool {
        self.copies.load(Ordering::SeqCst) & !ENDED == 0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end();
    }
}

/// A copy that is under way, or memory that a renderer has the addresses of.
struct Touch(Arc<AtomicUsize>);

impl Touch {
    /// `None` where the lease has ended.
    fn begin(copies: &Arc<AtomicUsize>) -> Option<Self> {
        let copy = Self(Arc::clone(copies));
        (copies.fetch_add(1, Ordering::SeqCst) & ENDED == 0).then_some(copy)
    }
}

impl Drop for Touch {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The guest memory behind a resource, for a renderer: bytes are copied, and each access is checked, because memory may be
/// taken from a guest while it is attached. It stays alive as long as this value, but after a reset nothing is copied any
/// more: it is another driver's then.
pub struct GuestBacking {
    pieces: Arc<[Piece]>,
    len: u64,
    ram: Box<dyn GuestRam + Send>,
    copies: Arc<AtomicUsize>,
}

/// Bytes that are not, or not any more, guest memory behind a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bytes {start:#x}+{len:#x} of a backing of {have:#x} bytes are no guest memory")]
#[non_exhaustive]
pub struct NotBacked {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
    /// How many there are.
    pub have: u64,
}

#[expect(clippy::len_without_is_empty, reason = "a list without bytes is refused")]
impl GuestBacking {
    /// Bytes that it holds.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Copies bytes from `start` on to `out`.
    ///
    /// # Errors
    /// [`NotBacked`]; `out` may be written in part.
    pub fn read(&self, start: u64, out: &mut [u8]) -> Result<(), NotBacked> {
        let range = NotBacked { start, len: out.len() as u64, have: self.len };
        let copy = Touch::begin(&self.copies);
        copy.and_then(|_copy| read(&self.pieces, &*self.ram, start, out, usize::MAX)).map(drop).ok_or(range)
    }

    /// Copies `data` to the bytes from `start` on.
    ///
    /// # Errors
    /// [`NotBacked`]; part of it may have been written.
    pub fn write(&self, start: u64, data: &[u8]) -> Result<(), NotBacked> {
        let range = NotBacked { start, len: data.len() as u64, have: self.len };
        let copy = Touch::begin(&self.copies);
        let written = copy.is_some_and(|_copy| write(&self.pieces, &*self.ram, start, data));
        if written { Ok(()) } else { Err(range) }
    }

    /// The addresses of this memory, for a renderer whose library copies by itself. A reset waits until they are given back.
    /// What is written through them is in no record of dirty pages.
    ///
    /// # Errors
    /// [`NotBacked`]: it is guest memory no more, or memory that has no addresses (behind an IOMMU).
    pub fn pin(&self) -> Result<PinnedBacking, NotBacked> {
        let missing = NotBacked { start: 0, len: self.len, have: self.len };
        let touch = Touch::begin(&self.copies).ok_or_else(|| missing.clone())?;
        let mut pieces = self.pieces.iter().map(|piece| (piece.address, piece.len));
        let (pieces, memory) = self.ram.pin(&mut pieces).ok_or(missing)?;
        Ok(PinnedBacking { pieces, _memory: memory, _touch: touch })
    }
}

/// Guest memory behind a resource by its addresses, which stay what they are for as long as this value lives. It does not
/// leave the thread.
#[must_use = "the addresses are good for as long as this lives"]
pub struct PinnedBacking {
    pieces: Vec<HostPiece>,
    _memory: Box<dyn Any>,
    _touch: Touch,
}

impl PinnedBacking {
    /// Its pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[HostPiece] {
        &self.pieces
    }
}

impl fmt::Debug for PinnedBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBacking").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl fmt::Debug for GuestBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestBacking").field("len", &self.len).field("pieces", &self.pieces.len()).finish()
    }
}

fn pieces_of(pieces: &[Piece], range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let first = pieces.partition_point(|piece| piece.start + piece.len <= range.start);
    let touched = pieces[first..].iter().take_while(move |piece| piece.start < range.end);
    touched.map(move |piece| {
        let (start, end) = (range.start.max(piece.start), range.end.min(piece.start + piece.len));
        (piece.address + (start - piece.start), end - start)
    })
}

fn read(pieces: &[Piece], ram: &dyn GuestRam, start: u64, out: &mut [u8], most: usize) -> Option<(usize, usize)> {
    let end = start.checked_add(out.len() as u64)?;
    let (mut done, mut count) = (0, 0);
    for (address, len) in pieces_of(pieces, start..end).take(most) {
        let now = done..done + len as usize;
        done = now.end;
        count += 1;
        ram.read(address, &mut out[now]).then_some(())?;
    }
    (done == out.len() || count == most).then_some((done, count))
}

fn write(pieces: &[Piece], ram: &dyn GuestRam, start: u64, mut data: &[u8]) -> bool {
    let Some(end) = start.checked_add(data.len() as u64) else { return false };
    for (address, len) in pieces_of(pieces, start..end) {
        let (now, later) = data.split_at(len as usize);
        if !ram.write(address, now) {
            return false;
        }
        data = later;
    }
    data.is_empty()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::limits::Limits;

    #[derive(Clone)]
    struct Ram(Arc<Mutex<Vec<u8>>>);

    impl Ram {
        fn new(len: usize) -> Self {
            Self(Arc::new(Mutex::new(vec![0; len])))
        }
        fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
            self.0.lock().expect("no panic meanwhile")
        }
    }

    impl GuestRam for Ram {
        fn contains(&self, address: u64, len: u64) -> bool {
            address.checked_add(len).is_some_and(|end| end <= self.bytes().len() as u64)
        }
        fn write(&self, address: u64, data: &[u8]) -> bool {
            let fits = self.contains(address, data.len() as u64);
            if fits {
                self.bytes()[address as usize..][..data.len()].copy_from_slice(data);
            }
            fits
        }
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let fits = self.contains(address, out.len() as u64);
            if fits {
                out.copy_from_slice(&self.bytes()[address as usize..][..out.len()]);
            }
            fits
        }
        fn held(&self) -> Box<dyn GuestRam + '_> {
            Box::new(self.clone())
        }
        fn share(&self) -> Box<dyn GuestRam + Send> {
            Box::new(self.clone())
        }
        fn pin(&self, ranges: &mut dyn Iterator<Item = (u64, u64)>) -> Option<(Vec<HostPiece>, Box<dyn Any>)> {
            let piece = |(address, len): (u64, u64)| {
                let address = NonNull::from(&mut self.bytes()[address as usize..][..len as usize]).cast();
                HostPiece { address, len: len as usize }
            };
            Some((ranges.map(piece).collect(), Box::new(self.clone())))
        }
    }

    fn entry(addr: u64, length: u32) -> MemEntry {
        MemEntry { addr: addr.into(), length: length.into(), padding: 0.into() }
    }

    #[test]
    fn an_entry_outside_ram_is_never_accepted() {
        let ram = Ram::new(64);
        let ledger = Ledger::new(&Limits { backing_entries: 3, ..Limits::default() });
        let backing = |entries: &[MemEntry], size| Backing::new(entries, size, &ram, &ledger);
        for bad in [entry(60, 5), entry(u64::MAX, 2), entry(0, 0), entry(64, 1)] {
            assert!(matches!(backing(&[entry(0, 4), bad], 4), Err(BackingError::NotRam { .. })), "{bad:?}");
        }
        assert!(matches!(backing(&[entry(0, 8)], 9), Err(BackingError::Short { have: 8, size: 9 })));
        assert!(matches!(backing(&[entry(0, 1); 4], 1), Err(BackingError::Limit(_))));
        assert_eq!(ledger.used(Quota::BackingEntries), 0);
    }

    #[test]
    fn a_message_over_several_pieces_is_written_whole_and_in_order() {
        let ram = Ram::new(64);
        let ledger = Ledger::new(&Limits::default());
        let list = [entry(32, 4), entry(0, 4), entry(4, 4)];
        let backing = Backing::new(&list, 12, &ram, &ledger).expect("valid");
        assert_eq!((backing.pieces.len(), backing.len()), (2, 12));
        assert!(backing.write(&ram, b"abcdefghij"));
        assert_eq!(&ram.bytes()[32..36], b"abcd");
        assert_eq!(&ram.bytes()[..8], b"efghij\0\0");
        assert!(!backing.write(&ram, &[1; 13]));
    }

    #[test]
    fn a_range_is_read_from_where_it_lies_and_never_past_the_end() {
        let ram = Ram::new(64);
        ram.bytes().iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
        let ledger = Ledger::new(&Limits::default());
        let list = [entry(32, 4), entry(0, 2), entry(50, 6)];
        let backing = Backing::new(&list, 12, &ram, &ledger).expect("valid");
        let whole = [32, 33, 34, 35, 0, 1, 50, 51, 52, 53, 54, 55];
        for start in 0..12 {
            for end in start..=12 {
                let mut out = vec![0xff; end - start];
                assert!(backing.read(&ram, start as u64, &mut out, usize::MAX).is_some());
                assert_eq!(out, whole[start..end]);
            }
            assert!(backing.read(&ram, start as u64, &mut vec![0; 13 - start], usize::MAX).is_none());
        }
        assert!(backing.read(&ram, u64::MAX, &mut [0; 2], usize::MAX).is_none());
        let mut some = [0; 12];
        assert_eq!(backing.read(&ram, 1, &mut some[..9], 2), Some((5, 2)));
        assert_eq!(some, [33, 34, 35, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let lease = Lease::default();
        let shared = backing.share(&ram, &lease);
        shared.write(5, &[9, 9]).expect("inside");
        assert_eq!(ram.bytes()[1], 9);
        assert_eq!(ram.bytes()[50], 9);
        assert_eq!(shared.write(11, &[0; 2]), Err(NotBacked { start: 11, len: 2, have: 12 }));
    }

    #[test]
    fn memory_is_never_touched_after_its_lease() {
        let ram = Ram::new(64);
        let ledger = Ledger::new(&Limits::default());
        let backing = Backing::new(&[entry(0, 8)], 8, &ram, &ledger).expect("valid");
        let lease = Lease::default();
        let shared = backing.share(&ram, &lease);
        let copy = Touch::begin(&shared.copies).expect("a lease that lasts");
        lease.end();
        assert!(!lease.is_quiet(), "a copy is under way");
        drop(copy);
        assert!(lease.is_quiet());
        shared.write(0, &[1]).expect_err("the lease has ended");
        shared.read(0, &mut [0]).expect_err("the lease has ended");
        assert!(lease.is_quiet());
        assert_eq!(ram.bytes()[0], 0);
    }

    #[test]
    fn a_lease_is_never_quiet_while_somebody_has_addresses_and_hands_out_none_after_its_end() {
        let ram = Ram::new(64);
        let ledger = Ledger::new(&Limits::default());
        let backing = Backing::new(&[entry(32, 4), entry(0, 8)], 12, &ram, &ledger).expect("valid");
        let lease = Lease::default();
        let shared = backing.share(&ram, &lease);
        let pinned = shared.pin().expect("a lease that lasts");
        assert_eq!(pinned.pieces().iter().map(|piece| piece.len).collect::<Vec<_>>(), [4, 8]);
        lease.end();
        assert!(!lease.is_quiet());
        shared.pin().expect_err("the lease has ended");
        drop(pinned);
        assert!(lease.is_quiet());
    }
}
