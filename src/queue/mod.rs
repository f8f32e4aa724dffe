//! Virtqueues: descriptor chains in, used elements out, notifications both ways.
//! This room has never heard of a GPU; it knows bytes, and that each chain is given back exactly once.

mod request;
mod ring;

pub(crate) use request::Request;
pub(crate) use ring::{Popped, Ring, RingError, Signal};
