//! PipeWire's stream as far as a bridge must read it: where messages end, how many descriptors belong to each, and the few
//! fields that say what a descriptor is.

use std::io;

/// Length of a message's header: object, opcode and size, sequence number, number of descriptors; 4 bytes each.
pub(crate) const HEADER: usize = 16;
/// Most descriptors of a message: what the kernel takes in one call.
pub(crate) const MAX_FILES: usize = 253;

/// The object that every session begins with.
pub(crate) const CORE: u32 = 0;
/// The type of the objects whose events carry eventfds.
pub(crate) const CLIENT_NODE: &[u8] = b"PipeWire:Interface:ClientNode";

/// Methods of the core, from the client.
pub(crate) mod method {
    pub(crate) const CREATE_OBJECT: u8 = 6;
}

/// Events, from the daemon: of the core, then of client nodes.
pub(crate) mod event {
    pub(crate) const REMOVE_ID: u8 = 4;
    pub(crate) const ADD_MEM: u8 = 6;
    pub(crate) const TRANSPORT: u8 = 0;
    pub(crate) const SET_ACTIVATION: u8 = 10;
}

/// One whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Header and payload.
    pub(crate) bytes: Vec<u8>,
}

impl Packet {
    fn word(&self, at: usize) -> u32 {
        word(&self.bytes, at)
    }

    pub(crate) fn object(&self) -> u32 {
        self.word(0)
    }

    pub(crate) fn opcode(&self) -> u8 {
        (self.word(4) >> 24) as u8
    }

    /// How many descriptors belong to it.
    pub(crate) fn files(&self) -> usize {
        self.word(12) as usize
    }

    /// The fields of its structure; what follows that is a footer.
    pub(crate) fn fields(&self) -> Fields<'_> {
        let mut payload = Fields { rest: &self.bytes[HEADER..] };
        match payload.next() {
            Some(Field::Struct(rest)) => Fields { rest },
            _ => Fields { rest: &[] },
        }
    }

    /// An error that names it.
    pub(crate) fn refused(&self, why: &str) -> io::Error {
        let text = format!("PipeWire message {} of object {}: {why}", self.opcode(), self.object());
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

/// A field of a message: a plain old datum of the simple kinds, or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Int(u32),
    /// Without the zero at its end.
    Text(&'a [u8]),
    Struct(&'a [u8]),
    /// A descriptor by its place in the message; what is no place means none.
    File(u64),
    Other,
}

/// Walks over data that lie one after another. Ends where they are cut off.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (head, rest) = self.rest.split_at_checked(8)?;
        let (size, kind) = (word(head, 0) as usize, word(head, 4));
        let body = rest.get(..size)?;
        self.rest = rest.get(size.next_multiple_of(8)..).unwrap_or(&[]);
        Some(match (kind, size) {
            (3 | 4, 4) => Field::Int(word(body, 0)),
            (8, 1..) => Field::Text(&body[..size - 1]),
            (14, _) => Field::Struct(body),
            (18, 8) => Field::File(u64::from(word(body, 4)) << 32 | u64::from(word(body, 0))),
            _ => Field::Other,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Puts together what was cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    bytes: Vec<u8>,
}

impl Stream {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, once all of it is there.
    pub(crate) fn next(&mut self) -> Option<Packet> {
        let head = self.bytes.get(..HEADER)?;
        let len = HEADER + (word(head, 4) & 0xff_ffff) as usize;
        (self.bytes.len() >= len).then(|| Packet { bytes: self.bytes.drain(..len).collect() })
    }
}
