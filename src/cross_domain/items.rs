//! What a context has of the host beside its resources: buffers that a host service has sent and that the guest has not
//! yet made blobs of, eventfds, pipes; and layouts of images. Their number is bounded, and what is left goes with the context.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
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
    Event(Rc<Readable>),
    ReadPipe(Rc<Readable>),
    WritePipe(Rc<WritePipe>),
}

impl Item {
    /// Closes what it holds at once, but for what takes longer, which goes on in the future.
    pub(crate) fn close(self) -> Option<LocalFuture<()>> {
        match self {
            Self::Buffer(buffer) => return buffer.close(),
            Self::Event(readable) | Self::ReadPipe(readable) => return readable.close(),
            Self::WritePipe(pipe) => pipe.close(),
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
    /// Layouts that blobs can be made after, those asked for last behind the others.
    images: VecDeque<(u32, Layout)>,
}

/// Layouts that a context may have in use at a time.
const IMAGES: usize = 64;

impl Items {
    pub(crate) fn new(most: usize) -> Self {
        Self { table: HashMap::new(), last_id: 0, next_pipe: FIRST_READ_PIPE, most, images: VecDeque::new() }
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
        let id = self.next_id();
        self.table.insert(id, item);
        Ok(id)
    }

    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = if self.last_id == LAST_ID { 1 } else { self.last_id + 1 };
            let is_image = self.images.iter().any(|(id, _)| *id == self.last_id);
            if !is_image && !self.table.contains_key(&self.last_id) {
                return self.last_id;
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

    /// The id of a layout: always the same for the same. The one that was not asked for the longest time is forgotten where
    /// there are too many.
    pub(super) fn image_id(&mut self, layout: Layout) -> u32 {
        let known = self.images.iter().position(|(_, other)| *other == layout).and_then(|at| self.images.remove(at));
        let id = known.map_or_else(|| self.next_id(), |(id, _)| id);
        if self.images.len() == IMAGES {
            self.images.pop_front();
        }
        self.images.push_back((id, layout));
        id
    }

    /// A layout by its id.
    pub(crate) fn image(&self, id: u64) -> Option<Layout> {
        self.images.iter().find_map(|(known, layout)| (u64::from(*known) == id).then_some(*layout))
    }

    /// The guest is done with an eventfd or a pipe: it closes when what the guest has written has gone out, as far as it can.
    pub(super) fn let_go(&mut self, id: u32) -> Option<LocalFuture<()>> {
        match self.table.entry(id) {
            Entry::Vacant(_) => None,
            Entry::Occupied(item) if matches!(item.get(), Item::Buffer(_)) => None,
            Entry::Occupied(item) => match item.remove() {
                Item::Event(readable) | Item::ReadPipe(readable) => readable.close_after_writing(),
                // The channel has a pipe until its backlog is empty.
                Item::WritePipe(_) | Item::Buffer(_) => None,
            },
        }
    }

    /// Closes what only a channel makes use of: eventfds and pipes.
    pub(super) fn close_ends(&mut self) -> Vec<LocalFuture<()>> {
        let is_end = |_: &u32, item: &mut Item| !matches!(item, Item::Buffer(_));
        self.table.extract_if(is_end).filter_map(|(_, item)| item.close()).collect()
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
    fn layouts_never_use_up_items_and_the_same_layout_never_has_two_ids() {
        let mut items = Items::new(1);
        let layout = |width: u32| Layout::new(16 * width, 1, u32::from_le_bytes(*b"XR24"), 0, 4096).expect("a layout");
        let first = items.image_id(layout(1));
        for width in 2..IMAGES as u32 + 1 {
            assert_ne!(items.image_id(layout(width)), first);
        }
        assert_eq!(items.image_id(layout(1)), first);
        items.image_id(layout(1000));
        assert_eq!(items.image(u64::from(first)), Some(layout(1)));
        assert_eq!((items.images.len(), items.has_room(1)), (IMAGES, true));
    }

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
