//! Which ranges of the window are taken: a pure map, so that overlap is a question of numbers alone.

use std::collections::BTreeMap;

/// Taken ranges by their start.
#[derive(Debug, Default)]
pub(super) struct Book {
    ranges: BTreeMap<u64, u64>,
}

impl Book {
    /// Takes a range; false where it would overlap one that is taken. The caller has checked that its end does not wrap.
    pub(super) fn insert(&mut self, offset: u64, len: u64) -> bool {
        let before = self.ranges.range(..offset + len).next_back();
        if before.is_some_and(|(start, len)| start + len > offset) {
            return false;
        }
        self.ranges.insert(offset, len);
        true
    }

    /// Gives the range back that starts at `offset`.
    pub(super) fn remove(&mut self, offset: u64) {
        self.ranges.remove(&offset);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn two_ranges_never_overlap(steps in prop::collection::vec((0u64..64, 1u64..9, any::<bool>()), 1..200)) {
            let mut book = Book::default();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (offset, len, remove) in steps {
                if remove {
                    taken.retain(|(start, _)| *start != offset);
                    book.remove(offset);
                } else {
                    let free = taken.iter().all(|(start, size)| start + size <= offset || offset + len <= *start);
                    prop_assert_eq!(book.insert(offset, len), free);
                    if free {
                        taken.push((offset, len));
                    }
                }
            }
        }
    }
}
