//! A cross-domain channel as the field's guests speak it: two rings of one page, a stream of commands, and a POLL
//! that is answered by one message in the channel ring and has to be sent again.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::drm::{self, Blob, Mapping, PAGE};
use crate::failure::{Failure, In, Result, ensure};
use crate::gpu::{CHANNEL_RING, Gpu};

pub(crate) const INIT: u8 = 1;
const POLL: u8 = 3;
pub(crate) const SEND: u8 = 4;
pub(crate) const RECEIVE: u8 = 5;
pub(crate) const MAX_IDENTIFIERS: usize = 28;
/// A descriptor that the device could not forward.
const UNSUPPORTED: u32 = 0;
const VIRTGPU_BLOB: u32 = 1;

/// `struct CrossDomainHeader`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    cmd: u8,
    ring_idx: u8,
    cmd_size: U16,
    pad: U32,
}

/// `struct CrossDomainInit`, its first version.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Init {
    pub(crate) header: Header,
    pub(crate) query_ring: U32,
    pub(crate) channel_ring: U32,
    pub(crate) channel_type: U32,
}

/// `struct CrossDomainPoll`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Poll {
    header: Header,
    pad: [U32; 2],
}

/// `struct CrossDomainSendReceive`; data follows.
#[derive(Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SendReceive {
    pub(crate) header: Header,
    pub(crate) num_identifiers: U32,
    pub(crate) opaque_data_size: U32,
    pub(crate) identifiers: [U32; MAX_IDENTIFIERS],
    pub(crate) types: [U32; MAX_IDENTIFIERS],
    pub(crate) sizes: [U32; MAX_IDENTIFIERS],
}

const _: () = assert!(size_of::<Init>() == 20 && size_of::<Poll>() == 16 && size_of::<SendReceive>() == 352);

/// A descriptor that came with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identifier {
    /// The device cannot forward it.
    Unsupported,
    /// A buffer that a host blob of this size in bytes can be made of.
    Buffer { id: u32, size: u32 },
}

/// A message of the host's service. A stream's lines may come split or joined.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    data: Vec<u8>,
    identifiers: Vec<Identifier>,
}

/// The two rings of a context.
pub(crate) struct Rings {
    /// The query ring's resource. It needs no mapping: nothing is asked.
    pub(crate) query: U32,
    /// The channel ring's resource.
    pub(crate) channel: U32,
    /// The channel ring, where the host writes messages.
    messages: Mapping,
}

impl Rings {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        let blob = || Blob::guest(gpu.as_fd(), PAGE).during("RESOURCE_CREATE_BLOB of a ring");
        let (query, channel) = (blob()?, blob()?);
        let (messages, _) = channel.map(gpu.as_fd()).during("map of a ring")?;
        Ok(Self { query: query.resource.into(), channel: channel.resource.into(), messages })
    }

    /// Asks for one message. The old one is wiped first, so that a fence without a message is not taken for one.
    pub(crate) fn ask(&self, gpu: &Gpu) -> Result<()> {
        self.messages.set_word(0, 0);
        let poll = Poll { header: header(POLL, size_of::<Poll>())?, pad: [0.into(); 2] };
        drm::submit_on_ring(gpu.as_fd(), poll.as_bytes(), CHANNEL_RING).during("POLL")
    }

    /// What is in the channel ring, once the event of the fence has come.
    pub(crate) fn message(&self, gpu: &Gpu) -> Result<Vec<u8>> {
        gpu.wait_event()?;
        Ok((0..PAGE).step_by(8).flat_map(|offset| self.messages.word(offset).to_le_bytes()).collect())
    }
}

/// A connection to a service of the host.
pub(crate) struct Channel {
    gpu: Gpu,
    rings: Rings,
    bytes: Vec<u8>,
    identifiers: VecDeque<Identifier>,
}

impl Channel {
    /// Opens the device and connects to the service of type `channel`.
    pub(crate) fn open(channel: u32) -> Result<Self> {
        let gpu = Gpu::open(channel)?;
        let rings = Rings::new(&gpu)?;
        let init = Init {
            header: header(INIT, size_of::<Init>())?,
            query_ring: rings.query,
            channel_ring: rings.channel,
            channel_type: channel.into(),
        };
        gpu.finish(init.as_bytes(), "INIT")?;
        let channel = Self { gpu, rings, bytes: Vec::new(), identifiers: VecDeque::new() };
        channel.rings.ask(&channel.gpu)?;
        Ok(channel)
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Sends one line.
    pub(crate) fn send(&self, line: &str) -> Result<()> {
        let data = format!("{line}\n");
        let header = header(SEND, size_of::<SendReceive>() + data.len())?;
        let head = SendReceive { header, opaque_data_size: (data.len() as u32).into(), ..SendReceive::default() };
        let stream = [head.as_bytes(), data.as_bytes()].concat();
        drm::submit(self.gpu.as_fd(), &stream).during("SEND")
    }

    /// The next line of the host's service.
    pub(crate) fn line(&mut self) -> Result<String> {
        loop {
            if let Some(line) = take_line(&mut self.bytes) {
                return String::from_utf8(line).during("line");
            }
            self.receive()?;
        }
    }

    /// Takes all descriptors that have arrived, in their order. Those of a line are there when the line is.
    pub(crate) fn identifiers(&mut self) -> Vec<Identifier> {
        self.identifiers.drain(..).collect()
    }

    fn receive(&mut self) -> Result<()> {
        let message = read_message(&self.rings.message(&self.gpu)?)?;
        self.rings.ask(&self.gpu)?;
        self.bytes.extend(message.data);
        self.identifiers.extend(message.identifiers);
        Ok(())
    }
}

pub(crate) fn header(cmd: u8, size: usize) -> Result<Header> {
    let cmd_size = u16::try_from(size).during("stream")?.into();
    Ok(Header { cmd, cmd_size, ..Header::default() })
}

/// Splits the first line off, without its end.
fn take_line(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let rest = bytes.split_off(end + 1);
    let mut line = std::mem::replace(bytes, rest);
    line.truncate(end);
    Some(line)
}

/// Reads what the host wrote to the channel ring.
fn read_message(ring: &[u8]) -> Result<Message> {
    const STEP: &str = "RECEIVE";
    let (head, data) = SendReceive::read_from_prefix(ring).map_err(|_| Failure::new(STEP, "a short ring"))?;
    let (count, len) = (head.num_identifiers.get() as usize, head.opaque_data_size.get() as usize);
    let cmd = head.header.cmd;
    ensure(cmd != 0, STEP, "the fence was signalled, but no message was written: the channel is not open")?;
    ensure(cmd == RECEIVE, STEP, format_args!("command {cmd} in the channel ring"))?;
    ensure(count <= MAX_IDENTIFIERS, STEP, format_args!("{count} identifiers"))?;
    let data = data.get(..len).ok_or_else(|| Failure::new(STEP, format_args!("{len} bytes of data")))?;
    ensure(count + len > 0, STEP, "the host has closed the channel")?;
    let identifier = |slot: usize| match (head.types[slot].get(), head.identifiers[slot].get()) {
        (UNSUPPORTED, 0) => Ok(Identifier::Unsupported),
        (VIRTGPU_BLOB, id) if id != 0 => Ok(Identifier::Buffer { id, size: head.sizes[slot].get() }),
        (kind, id) => Err(Failure::new(STEP, format_args!("identifier {id} of type {kind}"))),
    };
    Ok(Message { data: data.to_vec(), identifiers: (0..count).map(identifier).collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(cmd: u8, identifiers: &[(u32, u32, u32)], len: u32, data: &[u8]) -> Vec<u8> {
        let header = Header { cmd, ..Header::default() };
        let num_identifiers = (identifiers.len() as u32).into();
        let mut head = SendReceive { header, num_identifiers, opaque_data_size: len.into(), ..SendReceive::default() };
        for (slot, (id, kind, size)) in identifiers.iter().enumerate().take(MAX_IDENTIFIERS) {
            head.identifiers[slot] = (*id).into();
            head.types[slot] = (*kind).into();
            head.sizes[slot] = (*size).into();
        }
        let mut bytes = [head.as_bytes(), data].concat();
        bytes.resize(PAGE, 0xee);
        bytes
    }

    #[test]
    fn split_and_joined_lines_come_out_one_by_one() {
        let mut bytes = b"buff".to_vec();
        assert_eq!(take_line(&mut bytes), None);
        bytes.extend(b"ers 4\nframe 0 1\n\nfr");
        assert_eq!(take_line(&mut bytes).as_deref(), Some(&b"buffers 4"[..]));
        assert_eq!(take_line(&mut bytes).as_deref(), Some(&b"frame 0 1"[..]));
        assert_eq!(take_line(&mut bytes).as_deref(), Some(&b""[..]));
        assert_eq!((take_line(&mut bytes), &bytes[..]), (None, &b"fr"[..]));
    }

    #[test]
    fn a_message_is_read_with_every_descriptor_in_its_place() {
        let bytes = ring(RECEIVE, &[(7, 1, 4096), (0, 0, 0)], 3, b"hi\n");
        let message = read_message(&bytes).expect("a message");
        assert_eq!(message.data, b"hi\n");
        assert_eq!(message.identifiers, [Identifier::Buffer { id: 7, size: 4096 }, Identifier::Unsupported]);
    }

    #[test]
    fn what_is_no_message_is_told_by_name() {
        let reason = |bytes: Vec<u8>| read_message(&bytes).expect_err("no message").to_string();
        assert!(reason(ring(0, &[], 3, b"old")).contains("no message was written"));
        assert!(reason(ring(RECEIVE, &[], 0, b"")).contains("closed"));
        assert!(reason(ring(RECEIVE, &[], PAGE as u32, b"")).contains("bytes of data"));
        assert!(reason(ring(RECEIVE, &[(1, 1, 1); 29], 1, b"x")).contains("29 identifiers"));
        assert!(reason(ring(RECEIVE, &[(1, 6, 1)], 1, b"x")).contains("identifier 1 of type 6"));
        assert!(reason(ring(SEND, &[], 1, b"x")).contains("command 4"));
    }
}
