//! Long copies are made in parts, a turn of the device task each, so that none holds up what comes between.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::seams::LocalFuture;

/// Bytes that all commands together copy in a turn, but for a row of each.
const BYTES_A_TURN: usize = 1 << 20;

/// What one more piece of guest memory costs, in bytes that could be copied meanwhile.
pub(super) const PIECE_COST: usize = 256;

#[derive(Default)]
struct State {
    turn: Cell<u64>,
    left: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

/// The turns of the device task, as commands see them.
#[derive(Clone, Default)]
pub(crate) struct Turns(Rc<State>);

impl Turns {
    /// A new turn begins: whoever waits for it goes on.
    pub(crate) fn begin(&self) {
        self.0.turn.set(self.0.turn.get().wrapping_add(1));
        self.0.left.set(BYTES_A_TURN);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Whether somebody waits for the next turn.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.0.waiting.borrow().is_empty()
    }

    /// Bytes that may still be copied in this turn.
    pub(super) fn left(&self) -> usize {
        self.0.left.get()
    }

    /// So many have been copied.
    pub(super) fn spend(&self, bytes: usize) {
        self.0.left.set(self.left().saturating_sub(bytes));
    }

    /// Waits for the next turn.
    pub(super) fn next(&self) -> LocalFuture<()> {
        let (state, now) = (Rc::clone(&self.0), self.0.turn.get());
        Box::pin(poll_fn(move |cx| {
            if state.turn.get() != now {
                return Poll::Ready(());
            }
            state.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        }))
    }
}
