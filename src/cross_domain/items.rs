//! What a context has of the host beside its resources: buffers that a host service has sent and that the guest has not
//! yet made blobs of, eventfds, pipes, layouts of images. Their number is bounded, and what is left goes with the context.

use std::collections::HashMap;
use std::rc::Rc;

use super::image::Layout;
use super::pipe::WritePipe;
use super::readable::Readable;
use crate::buffer::HeldBuffer;
use crate::protocol::cross_domain::FIRST_READ_PIPE;
use crate::seams::LocalFuture;

/// Ids above belong to other kinds of objects.
const LAST_ID: u32 = 0x3fff_ffff;

/// Something that the guest has an id for.
pub(crate) enum Item {
    /// Becomes a blob, once.
    Buffer(HeldBuffer),
    /// Any number of blobs are made after it.
    Image(Layout),
    Event(Rc<Readable>),
    ReadPipe(Rc<Readable>),
    WritePipe(Rc<WritePipe>),
}

impl Item {
    /// Closes what it holds at once, but for what takes longer, which goes on in the future.
    pub(crate) fn close(self) -> Option<LocalFuture<()>> {
        match self {
            Self::Buffer(buffer) => return buffer.close(),
            Self::Event(readable) | Self::ReadPipe(readable) => readable.close(),
            Self::WritePipe(pipe) => pipe.close(),
            Self::Image(_) => {}
        }
        None
    }
}

/// A context's items by their ids.
pub(crate) struct Items {
    table: HashMap<u32, Item>,
    last_id: u32,
    next_pipe: u32,
    most: usize,
}

impl Items {
    pub(crate) fn new(most: usize) -> Self {
        Self { table: HashMap::new(), last_id: 0, next_pipe: FIRST_READ_PIPE, most }
    }

    /// Whether there is room for so many more.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.table.len() + more <= self.most
    }

    /// Takes an item in.
    ///
    /// # Errors
    /// The item, where the context has too many.
    pub(crate) fn insert(&mut self, item: Item) -> Result<u32, Item> {
        if !self.has_room(1) {
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

    /// The id of the pipe after the next `ahead` ones; `None` where all have been used.
    pub(super) fn pipe_id(&self, ahead: u32) -> Option<u32> {
        self.next_pipe.checked_add(ahead).filter(|id| *id < u32::MAX)
    }

    /// Takes in a pipe under the next of the ids that guests state beforehand.
    pub(super) fn insert_pipe(&mut self, pipe: Rc<Readable>) {
        self.table.insert(self.next_pipe, Item::ReadPipe(pipe));
        self.next_pipe += 1;
    }

    /// The layout that images of this kind have here already, by its id.
    pub(super) fn image(&self, layout: &Layout) -> Option<u32> {
        let same = |item: &Item| matches!(item, Item::Image(other) if other == layout);
        self.table.iter().find_map(|(id, item)| same(item).then_some(*id))
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Item> {
        self.table.get(&u32::try_from(id).ok()?)
    }

    /// Takes an item out for good.
    pub(crate) fn take(&mut self, id: u64) -> Option<Item> {
        self.table.remove(&u32::try_from(id).ok()?)
    }

    /// Closes all items; what takes longer goes on in the futures.
    pub(crate) fn close(self) -> impl Iterator<Item = LocalFuture<()>> {
        self.table.into_values().filter_map(Item::close)
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
            Item::Buffer(HeldBuffer::new(HostBuffer::from_fd(file).expect("buffer"), fd))
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
