//! One descriptor chain between pop and completion: a token that is given back exactly once.
//! A token that is lost all the same is noticed by its `Drop`, which has the ring answer for it.

use std::cell::RefCell;
use std::rc::Rc;

use smallvec::SmallVec;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Bytes that a lost request is answered with.
const FALLBACK: usize = 24;

/// A piece of guest memory: address and length.
pub(super) type Piece = (GuestAddress, u32);
/// The pieces of one direction; a driver mostly sends one.
pub(super) type Pieces = SmallVec<[Piece; 2]>;

/// What a chain is given back with.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) head: u16,
    pub(super) writable: Pieces,
    pub(super) answer: [u8; FALLBACK],
}

/// Where lost requests wait for their ring.
pub(super) type LostAndFound = Rc<RefCell<Vec<Lost>>>;

/// A descriptor chain that was popped and not given back yet.
#[derive(Debug)]
#[must_use = "a request is to be completed"]
pub(crate) struct Request {
    head: u16,
    readable: Pieces,
    writable: Pieces,
    fallback: [u8; FALLBACK],
    lost: Option<LostAndFound>,
}

/// What goes back to the ring: the token's end.
pub(crate) struct Answer {
    pub(super) head: u16,
    pub(super) written: u32,
}

impl Request {
    pub(super) fn new(head: u16, readable: Pieces, writable: Pieces, lost: LostAndFound) -> Self {
        Self { head, readable, writable, fallback: [0; FALLBACK], lost: Some(lost) }
    }

    /// Length of the part that the driver wrote, in bytes.
    pub(crate) fn readable_len(&self) -> usize {
        len(&self.readable)
    }

    /// Length of the part that the device may write, in bytes.
    pub(crate) fn writable_len(&self) -> usize {
        len(&self.writable)
    }

    /// Copies `out.len()` bytes from `offset` of the readable part; false where there are fewer, or where guest memory
    /// cannot be read.
    pub(crate) fn read<M: GuestMemory>(&self, memory: &M, offset: usize, out: &mut [u8]) -> bool {
        let mut done = 0;
        each(&self.readable, offset, out.len(), |address, len| {
            let read = memory.read_slice(&mut out[done..done + len], address).is_ok();
            done += len;
            read
        })
    }

    /// Forgets the readable part, once it has been read: a guest may make it of very many pieces.
    pub(crate) fn forget_readable(&mut self) {
        self.readable = Pieces::new();
    }

    /// States what the driver is told if this request should ever be lost.
    pub(crate) fn set_fallback(&mut self, answer: [u8; FALLBACK]) {
        self.fallback = answer;
    }

    /// Writes the answer, or as much of it as fits, and ends the token.
    pub(crate) fn answer<M: GuestMemory>(mut self, memory: &M, answer: &[u8]) -> Answer {
        self.lost = None;
        Answer { head: self.head, written: write(&self.writable, memory, answer) }
    }

    /// Ends the token without an answer: the queue that it came from is no more.
    pub(crate) fn abandon(mut self) {
        self.lost = None;
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(lost) = self.lost.take() {
            let writable = std::mem::take(&mut self.writable);
            lost.borrow_mut().push(Lost { head: self.head, writable, answer: self.fallback });
        }
    }
}

fn len(pieces: &Pieces) -> usize {
    pieces.iter().map(|(_, len)| *len as usize).sum()
}

/// Writes as much of `bytes` as the pieces take, and says how much that was.
pub(super) fn write<M: GuestMemory>(pieces: &Pieces, memory: &M, bytes: &[u8]) -> u32 {
    let fits = len(pieces).min(bytes.len());
    let mut done = 0;
    each(pieces, 0, fits, |address, len| {
        let wrote = memory.write_slice(&bytes[done..done + len], address).is_ok();
        done += if wrote { len } else { 0 };
        wrote
    });
    done as u32
}

/// Walks `len` bytes from `offset` piece by piece until `step` says no; false where that happened or bytes are missing.
fn each(pieces: &Pieces, mut offset: usize, mut len: usize, mut step: impl FnMut(GuestAddress, usize) -> bool) -> bool {
    for (address, piece) in pieces {
        let piece = *piece as usize;
        if offset >= piece {
            offset -= piece;
            continue;
        }
        if len == 0 {
            break;
        }
        let here = (piece - offset).min(len);
        let Some(start) = address.0.checked_add(offset as u64) else { return false };
        if !step(GuestAddress(start), here) {
            return false;
        }
        offset = 0;
        len -= here;
    }
    len == 0
}
