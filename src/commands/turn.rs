//! Long copies are made in parts, a turn of the device task each, so that none holds up what comes between.

/// Bytes that all commands together copy in a turn.
const BYTES_A_TURN: usize = 1 << 20;

/// What a piece of guest memory costs beside its bytes, in bytes that could be copied meanwhile.
const PIECE_COST: usize = 256;

/// What may still be copied in this turn. A command that finds nothing left goes on in the next one
/// ([`Step::Turn`](super::Step::Turn)).
#[derive(Debug, Default)]
pub(crate) struct Turn {
    left: usize,
}

impl Turn {
    /// A new turn begins.
    pub(crate) fn begin(&mut self) {
        self.left = BYTES_A_TURN;
    }

    /// Bytes that may still be copied.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Pieces of guest memory that they may be of, one at least.
    pub(super) fn pieces_left(&self) -> usize {
        (self.left / PIECE_COST).max(1)
    }

    /// So many bytes have been copied, in so many pieces.
    pub(super) fn spend(&mut self, bytes: usize, pieces: usize) {
        self.left = self.left.saturating_sub(bytes.max(pieces * PIECE_COST));
    }
}
