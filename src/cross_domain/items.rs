//! Buffers that a host service has sent and that the guest has not yet made blobs of.
//! Their number is bounded, and what is left of them goes with the context.

use std::collections::HashMap;

use crate::buffer::HeldBuffer;
use crate::seams::LocalFuture;

/// Ids above belong to other kinds of objects.
const LAST_ID: u32 = 0x3fff_ffff;

/// A context's items by their ids.
pub(crate) struct Items {
    table: HashMap<u32, HeldBuffer>,
    last_id: u32,
    most: usize,
}

impl Items {
    pub(crate) fn new(most: usize) -> Self {
        Self { table: HashMap::new(), last_id: 0, most }
    }

    /// Takes an item in.
    ///
    /// # Errors
    /// The item, where the context has too many.
    pub(crate) fn insert(&mut self, item: HeldBuffer) -> Result<u32, HeldBuffer> {
        if self.table.len() >= self.most {
            return Err(item);
        }
        loop {
            self.last_id = if self.last_id == LAST_ID { 1 } else { self.last_id + 1 };
            if !self.table.contains_key(&self.last_id) {
                self.table.insert(self.last_id, item);
                return Ok(self.last_id);
            }
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<&HeldBuffer> {
        self.table.get(&u32::try_from(id).ok()?)
    }

    /// Takes an item out for good.
    pub(crate) fn take(&mut self, id: u64) -> Option<HeldBuffer> {
        self.table.remove(&u32::try_from(id).ok()?)
    }

    /// Closes all items; what takes longer goes on in the futures.
    pub(crate) fn close(self) -> impl Iterator<Item = LocalFuture<()>> {
        self.table.into_values().filter_map(HeldBuffer::close)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::buffer::HostBuffer;
    use crate::limits::{Ledger, Limits, Quota};

    #[test]
    fn items_are_bounded_used_once_and_never_share_an_id() {
        let ledger = Ledger::new(&Limits::default());
        let item = || {
            let file = memfd_create("item", MemfdFlags::CLOEXEC).expect("memfd");
            ftruncate(&file, 1).expect("size");
            let fd = ledger.charge(Quota::Fds, 1).expect("room");
            HeldBuffer::new(HostBuffer::from_fd(file).expect("buffer"), fd)
        };
        let mut items = Items { last_id: LAST_ID - 1, ..Items::new(3) };
        assert_eq!([items.insert(item()).ok(), items.insert(item()).ok()], [Some(LAST_ID), Some(1)]);
        items.last_id = LAST_ID;
        assert_eq!(items.insert(item()).ok(), Some(2));
        assert!(items.insert(item()).is_err());
        assert_eq!(ledger.used(Quota::Fds), 3);
        assert!(items.take(1).is_some());
        assert!(items.take(1).is_none() && items.take(1 | 1 << 32).is_none());
        drop(items);
        assert_eq!(ledger.used(Quota::Fds), 0);
    }
}
