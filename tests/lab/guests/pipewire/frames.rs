//! A frame as the capture client tells of it, on the host and in the guest alike, and how the two are compared.

use std::collections::{HashMap, HashSet};

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// The camera's own number.
    pub(super) sequence: u64,
    size: u64,
    nonzero: u64,
    sum: String,
}

impl Frame {
    pub(super) fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("frame ")?.split_whitespace();
        let mut value = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        Some(Self {
            sequence: value("seq")?.parse().ok()?,
            size: value("size")?.parse().ok()?,
            nonzero: value("nonzero")?.parse().ok()?,
            sum: value("fnv")?,
        })
    }

    /// No byte of these pictures is zero, as long as they are pictures.
    pub(super) fn is_full(&self) -> bool {
        self.size == 320 * 180 * 2 && self.nonzero == self.size
    }
}

/// How many of the guest's frames the host has seen alike under the same number.
pub(super) fn equal(guest: &[Frame], host: &[Frame]) -> usize {
    let sums: HashMap<u64, &Frame> = host.iter().map(|frame| (frame.sequence, frame)).collect();
    guest.iter().filter(|frame| sums.get(&frame.sequence) == Some(frame)).count()
}

/// How many different pictures there are.
pub(super) fn distinct(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| &frame.sum).collect::<HashSet<_>>().len()
}
