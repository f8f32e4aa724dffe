//! How a command's bytes are laid out as a descriptor chain: a device must answer alike however
//! the driver cuts them, and tests choose the cut here.

use vm_memory::GuestAddress;

use super::RingFeatures;

/// A layout: how the request is cut, how the room for the response is cut, and where the
/// descriptors lie. The default is one readable and one writable buffer in [`Table::Auto`], as
/// Linux does.
///
/// An empty request has no readable descriptor, and a response of zero bytes no writable one,
/// whatever the layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// How the request (device-readable) is cut.
    pub readable: Pieces,
    /// How the room for the response (device-writable) is cut.
    pub writable: Pieces,
    /// Where the descriptors lie.
    pub table: Table,
}

impl Layout {
    /// One readable and one writable descriptor in the ring itself.
    #[must_use]
    pub fn direct() -> Self {
        Self { table: Table::Direct, ..Self::default() }
    }

    /// One readable and one writable descriptor in an indirect table.
    #[must_use]
    pub fn indirect() -> Self {
        Self { table: Table::Indirect, ..Self::default() }
    }

    /// `direct` descriptors in the ring, the others in one final indirect table.
    #[must_use]
    pub fn mixed(direct: usize) -> Self {
        Self { table: Table::Mixed { direct }, ..Self::default() }
    }

    /// A descriptor in the ring for every single byte of request and response.
    #[must_use]
    pub fn bytewise() -> Self {
        Self::direct().readable(Pieces::Each(1)).writable(Pieces::Each(1))
    }

    /// The same, with the request cut as `pieces` says.
    #[must_use]
    pub fn readable(mut self, pieces: Pieces) -> Self {
        self.readable = pieces;
        self
    }

    /// The same, with the response's room cut as `pieces` says.
    #[must_use]
    pub fn writable(mut self, pieces: Pieces) -> Self {
        self.writable = pieces;
        self
    }
}

/// How a run of bytes is cut into buffers. Buffers are never neighbours in guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pieces {
    /// All bytes in one buffer.
    #[default]
    One,
    /// Buffers of this many bytes; the last may be shorter.
    Each(usize),
    /// Buffers of these lengths in this order; bytes left over follow in one more, and lengths
    /// beyond the bytes there are fall away.
    Cut(Vec<usize>),
}

impl Pieces {
    /// The lengths that `total` bytes are cut into: none is zero, and they add up to `total`.
    ///
    /// # Panics
    ///
    /// If a length of zero was asked for ([`super::Misbehaviour::ZeroLength`] does that).
    pub(super) fn cut(&self, total: usize) -> Vec<usize> {
        let mut left = total;
        let mut lengths = Vec::new();
        let mut push = |wanted: usize| {
            assert_ne!(wanted, 0, "a driver makes no piece of zero bytes");
            let len = wanted.min(left);
            left -= len;
            if len > 0 {
                lengths.push(len);
            }
            left > 0
        };
        match self {
            Self::One => {}
            Self::Each(len) => while push(*len) {},
            Self::Cut(wanted) => wanted.iter().for_each(|&len| {
                push(len);
            }),
        }
        if left > 0 {
            lengths.push(left);
        }
        lengths
    }
}

/// Where the descriptors of a chain lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// As Linux chooses: an indirect table for more than one descriptor if indirect descriptors
    /// were negotiated, else the ring.
    #[default]
    Auto,
    /// In the ring's own table.
    Direct,
    /// All in one indirect table, behind one descriptor of the ring.
    Indirect,
    /// The first `direct` in the ring, the others in one indirect table, behind a last
    /// descriptor of the ring. A device must take this (virtio 1.4, 2.7, "Device Requirements:
    /// Indirect Descriptors").
    Mixed {
        /// How many come before the table; the chain's last is always in the table.
        direct: usize,
    },
}

impl Table {
    /// How many of `count` descriptors lie in the ring; the others go to an indirect table.
    ///
    /// # Panics
    ///
    /// If this needs indirect descriptors and they were not negotiated.
    pub(super) fn direct(self, count: usize, features: RingFeatures) -> usize {
        let direct = match self {
            Self::Auto if features.indirect && count > 1 => 0,
            Self::Auto | Self::Direct => count,
            Self::Indirect => 0,
            Self::Mixed { direct } => direct.min(count.saturating_sub(1)),
        };
        assert!(direct == count || features.indirect, "{self:?}, but indirect descriptors were not negotiated");
        direct
    }
}

/// One buffer of a chain, at a guest address of the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts.
    pub addr: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
    /// True if the device writes it, false if the device reads it.
    pub writable: bool,
}

impl Segment {
    /// A buffer that the device reads.
    #[must_use]
    pub fn readable(addr: GuestAddress, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub fn writable(addr: GuestAddress, len: u32) -> Self {
        Self { addr, len, writable: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_add_up_and_have_no_empty_piece() {
        assert_eq!(Pieces::One.cut(9), [9]);
        assert!(Pieces::One.cut(0).is_empty());
        assert_eq!(Pieces::Each(4).cut(9), [4, 4, 1]);
        assert_eq!(Pieces::Each(3).cut(9), [3, 3, 3]);
        assert!(Pieces::Each(4).cut(0).is_empty());
        assert_eq!(Pieces::Cut(vec![2, 3]).cut(9), [2, 3, 4]);
        assert_eq!(Pieces::Cut(vec![8, 8, 8]).cut(9), [8, 1]);
    }

    #[test]
    #[should_panic(expected = "not negotiated")]
    fn no_indirect_table_without_the_feature() {
        let features = RingFeatures { event_idx: true, indirect: false };
        Table::Indirect.direct(2, features);
    }
}
