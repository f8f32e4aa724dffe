//! A channel to a PipeWire daemon in libkrun's dialect, which has eventfds: the kernel's ioctls behind each of the bridge's
//! wishes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pipewire_bridge::{Identifier, Message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::CHANNEL;
use crate::channel::{Header, INIT, Init, MAX_IDENTIFIERS, RECEIVE, Rings, SEND, SendReceive, header};
use crate::drm::{self, Blob};
use crate::failure::{Failure, In, Result, ensure};
use crate::gpu::Gpu;

const READ: u8 = 6;
const WRITE: u8 = 7;
const READ_EVENTFD_NEW: u8 = 11;
const READ_EVENTFD_DESTROY: u8 = 12;

/// `struct CrossDomainInit` as libkrun has it: its length tells the device which dialect is spoken.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct InitVersioned {
    init: Init,
    protocol_version: U32,
}

/// `struct CrossDomainReadWrite`; data follows.
#[derive(Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ReadWrite {
    header: Header,
    identifier: U32,
    hang_up: U32,
    opaque_data_size: U32,
    pad: U32,
}

/// What goes to an eventfd.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct WriteCount {
    head: ReadWrite,
    count: U64,
}

/// `struct CrossDomainReadEventfdNew`, and the one that ends it.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Eventfd {
    header: Header,
    id: U32,
    pad: U32,
}

const _: () = assert!(size_of::<InitVersioned>() == 24 && size_of::<WriteCount>() == 32 && size_of::<Eventfd>() == 16);

/// A connection to the host's daemon.
pub(super) struct PipeWire {
    gpu: Gpu,
    rings: Rings,
}

impl PipeWire {
    pub(super) fn open() -> Result<Self> {
        let gpu = Gpu::open(CHANNEL)?;
        let rings = Rings::new(&gpu)?;
        let header = header(INIT, size_of::<InitVersioned>())?;
        let init = Init { header, query_ring: rings.query, channel_ring: rings.channel, channel_type: CHANNEL.into() };
        gpu.finish(InitVersioned { init, protocol_version: 1.into() }.as_bytes(), "INIT")?;
        rings.ask(&gpu)?;
        Ok(Self { gpu, rings })
    }

    fn submit(&self, stream: &[u8], step: &'static str) -> Result<()> {
        drm::submit(self.gpu.as_fd(), stream).during(step)
    }

    fn eventfd(&self, cmd: u8, id: u32, step: &'static str) -> Result<()> {
        let command = Eventfd { header: header(cmd, size_of::<Eventfd>())?, id: id.into(), pad: 0.into() };
        self.submit(command.as_bytes(), step)
    }

    /// Nothing is asked for after the end.
    fn receive(&self) -> Result<Option<Message>> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.gpu, PollFlags::IN)], Some(&now)).during("poll")?;
        if ready == 0 {
            return Ok(None);
        }
        let message = read_message(&self.rings.message(&self.gpu)?)?;
        if message != Message::End {
            self.rings.ask(&self.gpu)?;
        }
        Ok(Some(message))
    }
}

impl pipewire_bridge::Channel for PipeWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gpu.as_fd()
    }

    fn next(&mut self) -> io::Result<Option<Message>> {
        Ok(self.receive()?)
    }

    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        let header = header(SEND, size_of::<SendReceive>() + data.len())?;
        let head = SendReceive { header, opaque_data_size: (data.len() as u32).into(), ..SendReceive::default() };
        Ok(self.submit(&[head.as_bytes(), data].concat(), "SEND")?)
    }

    /// The descriptor alone keeps the blob; that the host refused to map it is told only to who maps it.
    fn buffer(&mut self, id: u32, size: u32) -> io::Result<OwnedFd> {
        let gpu = self.gpu.as_fd();
        let blob = Blob::host(gpu, id, size as usize).during("RESOURCE_CREATE_BLOB")?;
        let file = blob.export(gpu).during("PRIME_HANDLE_TO_FD");
        blob.close(gpu).during("GEM_CLOSE")?;
        Ok(file?)
    }

    fn watch(&mut self, id: u32) -> io::Result<()> {
        Ok(self.eventfd(READ_EVENTFD_NEW, id, "READ_EVENTFD_NEW")?)
    }

    fn write(&mut self, id: u32, count: u64) -> io::Result<()> {
        let header = header(WRITE, size_of::<WriteCount>())?;
        let (identifier, opaque_data_size) = (id.into(), 8.into());
        let head = ReadWrite { header, identifier, opaque_data_size, ..ReadWrite::default() };
        Ok(self.submit(WriteCount { head, count: count.into() }.as_bytes(), "WRITE")?)
    }

    fn forget(&mut self, id: u32) -> io::Result<()> {
        Ok(self.eventfd(READ_EVENTFD_DESTROY, id, "READ_EVENTFD_DESTROY")?)
    }
}

/// Reads what the host wrote to the channel ring.
fn read_message(ring: &[u8]) -> Result<Message> {
    const STEP: &str = "channel ring";
    match ring.first() {
        Some(&RECEIVE) => read_receive(ring),
        Some(&READ) => read_count(ring),
        Some(0) => Err(Failure::new(STEP, "the fence was signalled, but no message was written")),
        cmd => Err(Failure::new(STEP, format_args!("command {cmd:?}"))),
    }
}

fn read_receive(ring: &[u8]) -> Result<Message> {
    const STEP: &str = "RECEIVE";
    let (head, data) = SendReceive::read_from_prefix(ring).map_err(|_| Failure::new(STEP, "a short ring"))?;
    let (count, len) = (head.num_identifiers.get() as usize, head.opaque_data_size.get() as usize);
    ensure(count <= MAX_IDENTIFIERS, STEP, format_args!("{count} identifiers"))?;
    let data = data.get(..len).ok_or_else(|| Failure::new(STEP, format_args!("{len} bytes of data")))?;
    if count + len == 0 {
        return Ok(Message::End);
    }
    let identifier = |slot: usize| Identifier {
        id: head.identifiers[slot].get(),
        kind: head.types[slot].get(),
        size: head.sizes[slot].get(),
    };
    Ok(Message::Receive { data: data.to_vec(), identifiers: (0..count).map(identifier).collect() })
}

/// What is read from an eventfd is its counter.
fn read_count(ring: &[u8]) -> Result<Message> {
    const STEP: &str = "READ";
    let (head, data) = ReadWrite::read_from_prefix(ring).map_err(|_| Failure::new(STEP, "a short ring"))?;
    let (id, len) = (head.identifier.get(), head.opaque_data_size.get());
    ensure(len == 8, STEP, format_args!("{len} bytes of item {id}, an eventfd has 8"))?;
    let (count, _) = U64::read_from_prefix(data).map_err(|_| Failure::new(STEP, "a short ring"))?;
    Ok(Message::Read { id, count: count.get() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(id: u32, hang_up: u32, len: u32, count: u64) -> Vec<u8> {
        let head = ReadWrite {
            header: header(READ, 0).expect("a header"),
            identifier: id.into(),
            hang_up: hang_up.into(),
            opaque_data_size: len.into(),
            pad: 0.into(),
        };
        WriteCount { head, count: count.into() }.as_bytes().to_vec()
    }

    fn receive(kinds: &[u32], len: u32) -> Vec<u8> {
        let header = header(RECEIVE, 0).expect("a header");
        let num_identifiers = (kinds.len() as u32).into();
        let mut head = SendReceive { header, num_identifiers, opaque_data_size: len.into(), ..SendReceive::default() };
        for (slot, kind) in kinds.iter().enumerate().take(MAX_IDENTIFIERS) {
            head.identifiers[slot] = (slot as u32 + 2).into();
            head.types[slot] = (*kind).into();
            head.sizes[slot] = 2312.into();
        }
        [head.as_bytes(), b"stream"].concat()
    }

    #[test]
    fn a_message_is_read_with_the_type_of_every_descriptor() {
        let identifiers = vec![Identifier { id: 2, kind: 1, size: 2312 }, Identifier { id: 3, kind: 6, size: 2312 }];
        let message = read_message(&receive(&[1, 6], 3)).expect("a message");
        assert_eq!(message, Message::Receive { data: b"str".to_vec(), identifiers });
        assert_eq!(read_message(&receive(&[], 0)).expect("a message"), Message::End);
    }

    #[test]
    fn an_eventfds_counter_is_read_whole() {
        let count = 1 << 40 | 7;
        assert_eq!(read_message(&read(9, 0, 8, count)).expect("a message"), Message::Read { id: 9, count });
    }

    #[test]
    fn what_is_no_message_is_told_by_name() {
        let reason = |bytes: Vec<u8>| read_message(&bytes).expect_err("no message").to_string();
        assert!(reason(vec![0; 4096]).contains("no message was written"));
        assert!(reason(vec![SEND; 400]).contains("command Some(4)"));
        assert!(reason(receive(&[1; 29], 3)).contains("29 identifiers"));
        assert!(reason(receive(&[], 7)).contains("7 bytes of data"));
        assert!(reason(read(9, 1, 0, 0)).contains("0 bytes of item 9"));
    }
}
