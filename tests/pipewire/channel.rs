//! The bridge's channel over the virtqueues: what a guest's kernel and its library would do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pipewire_bridge::{Channel, Identifier, Message};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::ChannelType;
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, response_type};
use virtio_gpu_uring::testing::{Request, Token};
use vm_memory::GuestAddress;

use crate::machine::{Machine, Order};

/// Length of each ring.
const RING: usize = 4096;
/// From here on memory is taken for frames.
pub(crate) const LARGE: u64 = 64 << 10;
/// Commands of the channel's stream, and messages in its ring.
const RECEIVE: u32 = 5;
const READ: u32 = 6;
const WRITE: u8 = 7;
const READ_EVENTFD_NEW: u8 = 11;
/// Where data begin in a RECEIVE and in a READ.
const RECEIVE_HEADER: usize = 352;
const READ_HEADER: usize = 24;

/// Frames: a range of the window, and the memory that the client has in its place.
struct Copied {
    offset: u64,
    bytes: Vec<u8>,
    file: OwnedFd,
}

pub(crate) struct GuestSide<'a> {
    machine: &'a mut Machine,
    context: u32,
    ring: GuestAddress,
    rings: [u32; 2],
    /// The POLL that waits for its message.
    waiting: Option<Token>,
    polls: u64,
    blobs: Vec<u32>,
    next_offset: u64,
    copied: Vec<Copied>,
}

impl<'a> GuestSide<'a> {
    /// Opens a channel to the daemon.
    pub(crate) fn open(machine: &'a mut Machine, context: u32) -> Self {
        let guest = &mut machine.guest;
        guest.command(&Request::ctx_create(context, CAPSET_CROSS_DOMAIN)).ok();
        let rings = [context * 1000, context * 1000 + 1];
        let ranges = rings.map(|ring| {
            let range = guest.page_range(RING);
            guest.command(&Request::guest_blob(ring, RING as u64, &[range])).ok();
            guest.command(&Request::ctx_attach(context, ring)).ok();
            GuestAddress(range.0)
        });
        let init = Request::stream_init(rings[0], rings[1], ChannelType::PIPEWIRE.0, Some(1));
        guest.command(&Request::submit(context, &init)).ok();
        let (waiting, polls, blobs, copied) = (None, 0, Vec::new(), Vec::new());
        Self { machine, context, ring: ranges[1], rings, waiting, polls, blobs, next_offset: 0, copied }
    }

    /// Ends it as a program does that lets go of everything itself.
    pub(crate) fn close(mut self) {
        let guest = &mut self.machine.guest;
        for blob in self.blobs.drain(..) {
            guest.command(&Request::unmap(blob)).ok();
            guest.command(&Request::ctx_detach(self.context, blob)).ok();
            guest.command(&Request::unref(blob)).ok();
        }
        self.abandon();
    }

    /// Ends it as Linux does where a program has died: the context first.
    pub(crate) fn abandon(self) {
        let guest = &mut self.machine.guest;
        guest.command(&Request::ctx_destroy(self.context)).ok();
        for resource in self.blobs.iter().chain(&self.rings) {
            guest.command(&Request::unref(*resource)).ok();
        }
        self.await_poll();
    }

    /// No fence may outlive its context.
    fn await_poll(self) {
        if let Some(waiting) = self.waiting {
            self.machine.guest.wait(waiting);
        }
        self.machine.guest.assert_all_answered();
    }

    fn submit(&mut self, stream: &[u8]) -> io::Result<()> {
        let answer = self.machine.guest.command(&Request::submit(self.context, stream));
        answered(answer.kind(), "SUBMIT_3D")
    }

    /// What stands in the ring.
    fn message(&self) -> io::Result<Message> {
        let bytes = self.machine.guest.ram().read(self.ring, RING);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        match word(0) & 0xff {
            RECEIVE => {
                let (count, len) = (word(8) as usize, word(12) as usize);
                let identifier = |slot: usize| {
                    let at = |list: usize| word(list + 4 * slot);
                    Identifier { id: at(16), kind: at(128), size: at(240) }
                };
                let identifiers: Vec<_> = (0..count).map(identifier).collect();
                let data = bytes[RECEIVE_HEADER..RECEIVE_HEADER + len].to_vec();
                let is_end = data.is_empty() && identifiers.is_empty();
                Ok(if is_end { Message::End } else { Message::Receive { data, identifiers } })
            }
            READ => {
                assert_eq!((word(12), word(16)), (0, 8), "the hang-up and the size of an eventfd's READ");
                let count = u64::from(word(READ_HEADER + 4)) << 32 | u64::from(word(READ_HEADER));
                Ok(Message::Read { id: word(8), count })
            }
            other => Err(io::Error::other(format!("message {other} in the channel ring"))),
        }
    }

    /// Frames: memory of the client's own, into which the window's bytes are copied before it looks.
    fn copied(&mut self, offset: u64, len: u64) -> io::Result<OwnedFd> {
        let file = memfd_create("frames-of-the-guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len)?;
        let theirs = file.try_clone()?;
        self.copied.push(Copied { offset, bytes: vec![0; len as usize], file });
        Ok(theirs)
    }
}

impl Channel for GuestSide<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.machine.bell.rung.as_fd()
    }

    fn next(&mut self) -> io::Result<Option<Message>> {
        // Emptied before it is looked: what comes afterwards rings again.
        let _ = rustix::io::read(&*self.machine.bell.rung, &mut [0; 8]);
        match self.machine.bell.order() {
            Order::None => {}
            Order::Freeze => self.machine.freeze(),
            _ => return Err(io::Error::other("stopped")),
        }
        let waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => {
                self.polls += 1;
                let poll = Request::submit(self.context, &Request::stream_poll()).fenced(self.polls).on_ring(1);
                self.machine.guest.submit(&poll)
            }
        };
        if !self.machine.guest.has_answer(&waiting) {
            self.waiting = Some(waiting);
            return Ok(None);
        }
        answered(self.machine.guest.wait(waiting).kind(), "POLL")?;
        self.message().map(Some)
    }

    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        self.submit(&Request::stream_send(data, &[]))
    }

    fn buffer(&mut self, id: u32, size: u32) -> io::Result<OwnedFd> {
        let len = u64::from(size).next_multiple_of(4096);
        let resource = self.context * 1000 + 2 + self.blobs.len() as u32;
        let guest = &mut self.machine.guest;
        let made = guest.command(&Request::host_blob(self.context, resource, id.into(), len));
        answered(made.kind(), "CREATE_BLOB")?;
        self.blobs.push(resource);
        // Never where something was before, and never beside its neighbour.
        let offset = self.next_offset;
        self.next_offset += len + 4096;
        answered(guest.command(&Request::map(resource, offset)).kind(), "MAP_BLOB")?;
        answered(guest.command(&Request::ctx_attach(self.context, resource)).kind(), "CTX_ATTACH_RESOURCE")?;
        if len >= LARGE {
            return self.copied(offset, len);
        }
        let placed = self.machine.witness.placed();
        let placed = placed.get(&offset).ok_or_else(|| io::Error::other("a MAP that placed nothing"))?;
        placed.file.try_clone()
    }

    fn watch(&mut self, id: u32) -> io::Result<()> {
        let words = [u32::from(READ_EVENTFD_NEW) | 16 << 16, 0, id, 0];
        self.submit(&words.map(u32::to_le_bytes).concat())
    }

    fn write(&mut self, id: u32, count: u64) -> io::Result<()> {
        self.write_to(id, Some(count))
    }

    fn wakes(&mut self) -> io::Result<()> {
        for Copied { offset, bytes, file } in &mut self.copied {
            self.machine.witness.window().read(*offset, bytes).map_err(io::Error::other)?;
            let written = rustix::io::pwrite(&*file, bytes, 0)?;
            assert_eq!(written, bytes.len());
        }
        Ok(())
    }

    fn forget(&mut self, id: u32) -> io::Result<()> {
        self.write_to(id, None)
    }
}

impl GuestSide<'_> {
    /// Writes to an eventfd, or hangs up.
    fn write_to(&mut self, id: u32, count: Option<u64>) -> io::Result<()> {
        let data = count.map(u64::to_le_bytes);
        let len = data.map_or(0, |data| data.len()) as u32;
        let words = [u32::from(WRITE) | (24 + len) << 16, 0, id, u32::from(data.is_none()), len, 0];
        let mut stream = words.map(u32::to_le_bytes).concat();
        stream.extend(data.into_iter().flatten());
        self.submit(&stream)
    }
}

fn answered(kind: u32, what: &str) -> io::Result<()> {
    if (response_type::OK_NODATA..0x1200).contains(&kind) {
        return Ok(());
    }
    Err(io::Error::other(format!("the device answered {kind:#x} to {what}")))
}
