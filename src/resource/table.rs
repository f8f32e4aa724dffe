//! Rows under ids that a guest chose. A key names one life of an id, so that whatever comes late for an earlier life
//! finds nothing.

use std::collections::HashMap;

use slotmap::{Key, SlotMap};

/// Rows by the guest's ids and by keys.
pub(crate) struct Table<K: Key, T> {
    keys: HashMap<u32, K>,
    rows: SlotMap<K, (u32, T)>,
}

impl<K: Key, T> Default for Table<K, T> {
    fn default() -> Self {
        Self { keys: HashMap::new(), rows: SlotMap::with_key() }
    }
}

impl<K: Key, T> Table<K, T> {
    /// Whether a guest may give this id to something new.
    pub(crate) fn is_free(&self, id: u32) -> bool {
        id != 0 && !self.keys.contains_key(&id)
    }

    /// Adds a row under a free id.
    pub(crate) fn insert(&mut self, id: u32, row: T) -> K {
        debug_assert!(self.is_free(id), "id {id} is taken");
        let key = self.rows.insert((id, row));
        self.keys.insert(id, key);
        key
    }

    pub(crate) fn key(&self, id: u32) -> Option<K> {
        self.keys.get(&id).copied()
    }

    pub(crate) fn get(&self, key: K) -> Option<&T> {
        self.rows.get(key).map(|(_, row)| row)
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        self.rows.get_mut(key).map(|(_, row)| row)
    }

    /// A row with its id.
    pub(crate) fn entry(&self, key: K) -> Option<(u32, &T)> {
        self.rows.get(key).map(|(id, row)| (*id, row))
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        let (id, row) = self.rows.remove(key)?;
        self.keys.remove(&id);
        Some(row)
    }

    /// All rows with their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.rows.values().map(|(id, row)| (*id, row))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.rows.values_mut().map(|(_, row)| row)
    }

    /// Takes all rows out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.keys.clear();
        self.rows.drain().map(|(_, (_, row))| row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_an_earlier_life_never_finds_the_next_one_under_the_same_id() {
        let mut table = Table::<slotmap::DefaultKey, &str>::default();
        assert!(!table.is_free(0));
        let first = table.insert(7, "first");
        assert!(!table.is_free(7));
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert(7, "second");
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&"second"));
        assert_eq!(table.entry(second), Some((7, &"second")));
    }
}
