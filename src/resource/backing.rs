//! Guest memory behind a resource: a scatter list that was checked once, and is checked by the memory itself at every
//! access, because regions may go while it is attached.

use std::ops::Range;
use std::rc::Rc;

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

/// A checked scatter list.
#[derive(Debug)]
pub(crate) struct Backing {
    pieces: Vec<(u64, u64)>,
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
        let mut pieces: Vec<(u64, u64)> = Vec::with_capacity(entries.len());
        let mut len = 0u64;
        for entry in entries {
            let (address, piece) = (entry.addr.get(), entry.length.get());
            if piece == 0 || !ram.contains(address, u64::from(piece)) {
                return Err(BackingError::NotRam { address, len: piece });
            }
            len += u64::from(piece);
            match pieces.last_mut() {
                Some((start, have)) if *start + *have == address => *have += u64::from(piece),
                _ => pieces.push((address, u64::from(piece))),
            }
        }
        if len < size {
            return Err(BackingError::Short { have: len, size });
        }
        Ok(Self { pieces, len, _charge: charge })
    }

    /// Bytes that the list holds.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where a range of the backing lies: addresses and lengths.
    pub(crate) fn pieces_of(&self, range: Range<u64>) -> Vec<(u64, u64)> {
        let mut at = 0;
        let mut found = Vec::new();
        for (address, len) in &self.pieces {
            let (start, end) = (range.start.max(at), range.end.min(at + len));
            if start < end {
                found.push((address + (start - at), end - start));
            }
            at += len;
        }
        found
    }

    /// Writes `data` at the start of the backing; false where it does not fit or is RAM no more.
    pub(crate) fn write(&self, ram: &dyn GuestRam, mut data: &[u8]) -> bool {
        for (address, len) in &self.pieces {
            let here = usize::try_from(*len).unwrap_or(usize::MAX).min(data.len());
            let (now, later) = data.split_at(here);
            if !ram.write(*address, now) {
                return false;
            }
            data = later;
            if data.is_empty() {
                return true;
            }
        }
        data.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::limits::Limits;

    struct Ram(RefCell<Vec<u8>>);

    impl GuestRam for Ram {
        fn contains(&self, address: u64, len: u64) -> bool {
            address.checked_add(len).is_some_and(|end| end <= self.0.borrow().len() as u64)
        }
        fn write(&self, address: u64, data: &[u8]) -> bool {
            let fits = self.contains(address, data.len() as u64);
            if fits {
                self.0.borrow_mut()[address as usize..][..data.len()].copy_from_slice(data);
            }
            fits
        }
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let fits = self.contains(address, out.len() as u64);
            if fits {
                out.copy_from_slice(&self.0.borrow()[address as usize..][..out.len()]);
            }
            fits
        }
    }

    fn entry(addr: u64, length: u32) -> MemEntry {
        MemEntry { addr: addr.into(), length: length.into(), padding: 0.into() }
    }

    #[test]
    fn an_entry_outside_ram_is_never_accepted() {
        let ram = Ram(RefCell::new(vec![0; 64]));
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
        let ram = Ram(RefCell::new(vec![0; 64]));
        let ledger = Ledger::new(&Limits::default());
        let list = [entry(32, 4), entry(0, 4), entry(4, 4)];
        let backing = Backing::new(&list, 12, &ram, &ledger).expect("valid");
        assert_eq!((backing.pieces.len(), backing.len()), (2, 12));
        assert!(backing.write(&ram, b"abcdefghij"));
        assert_eq!(&ram.0.borrow()[32..36], b"abcd");
        assert_eq!(&ram.0.borrow()[..8], b"efghij\0\0");
        assert!(!backing.write(&ram, &[1; 13]));
    }
}
