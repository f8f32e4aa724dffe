//! A PipeWire client on one side, a cross-domain channel on the other: what a guest runs so that its clients reach the host's
//! daemon. The test with the device in process uses it, and the program in the lab's guest.
//!
//! The bytes pass as they are; descriptors do not. Memory is what [`Channel::buffer`] makes of it. An eventfd becomes another
//! one on this side, and its counter is carried over.

mod descriptors;
#[cfg(test)]
mod script;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most bytes of one [`Channel::send`]: what a ring of one page has room for beside its header.
pub const MAX_DATA: usize = 3744;

/// A descriptor of a message, as the channel announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identifier {
    /// The item's id.
    pub id: u32,
    /// Its type in libkrun's dialect: 1 for memory, 6 for an eventfd.
    pub kind: u32,
    /// Its size in bytes; PipeWire's are no multiples of the page.
    pub size: u32,
}

/// What comes from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Bytes of the daemon's stream, cut anywhere, and descriptors: they come with the first of the bytes that they were sent
    /// with, so never later than the PipeWire message that they belong to.
    Receive {
        /// The bytes.
        data: Vec<u8>,
        /// The descriptors.
        identifiers: Vec<Identifier>,
    },
    /// An eventfd that is watched was written to.
    Read {
        /// The item's id.
        id: u32,
        /// What its counter was.
        count: u64,
    },
    /// The daemon has gone.
    End,
}

/// A cross-domain channel to the host's daemon, as the guest has it.
pub trait Channel {
    /// Readable when [`next`](Self::next) may have something.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// The next message, where there is one: it does not wait, and asks the host for the following one by itself.
    ///
    /// # Errors
    /// The channel is broken.
    fn next(&mut self) -> io::Result<Option<Message>>;

    /// Sends at most [`MAX_DATA`] bytes to the daemon.
    ///
    /// # Errors
    /// The channel is broken.
    fn send(&mut self, data: &[u8]) -> io::Result<()>;

    /// Makes a mapped blob of an item of memory, and a descriptor for the client.
    ///
    /// # Errors
    /// The item is not one, or cannot be mapped.
    fn buffer(&mut self, id: u32, size: u32) -> io::Result<OwnedFd>;

    /// Has the host tell when this eventfd is written to.
    ///
    /// # Errors
    /// The item is no eventfd.
    fn watch(&mut self, id: u32) -> io::Result<()>;

    /// Adds to the counter of an eventfd of the host's.
    ///
    /// # Errors
    /// The item is no eventfd.
    fn write(&mut self, id: u32, count: u64) -> io::Result<()>;

    /// Called before a wake-up of the host's is passed on to the client.
    ///
    /// # Errors
    /// What the client is to see after the wake-up cannot be made visible.
    fn wakes(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// This eventfd is not written to any more: the host may let go of it.
    ///
    /// # Errors
    /// The channel is broken.
    fn forget(&mut self, id: u32) -> io::Result<()> {
        let _ = id;
        Ok(())
    }
}

/// Carries one client's session until either side has gone.
///
/// # Errors
/// Either side is broken, does not speak PipeWire's protocol, or sends a descriptor that cannot be passed on.
pub fn serve(client: UnixStream, channel: &mut impl Channel) -> io::Result<()> {
    session::Session::new(client, channel).run()
}
