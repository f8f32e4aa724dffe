//! From the bytes of a request to a typed [`Command`]: lengths checked before anything is read, lists read in
//! one walk and only as far as the request really holds them.

use std::ops::Range;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::command::{Command, CreateBlob, Direction, MapBlob};
use super::response::ErrorCode;
use super::wire::{self, Header, MemEntry, command_type as kind};

/// The readable part of a request. The device task implements it over a descriptor chain, tests over a slice.
pub(crate) trait Body {
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// Copies `out.len()` bytes from `offset`; false where they cannot be read.
    fn read(&self, offset: usize, out: &mut [u8]) -> bool;
}

/// What a guest's request may make the device allocate while it is decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecodeLimits {
    /// Most memory entries of one request.
    pub(crate) backing_entries: usize,
    /// Longest command stream in bytes.
    pub(crate) submit_bytes: usize,
}

/// Why a request could not be read as a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The request ends before its structure does.
    #[error("request of {len} bytes where {needed} are needed")]
    Short { len: usize, needed: usize },
    /// The request names a type that this device does not know.
    #[error("unknown request type {kind:#x}")]
    Unknown { kind: u32 },
    /// Guest memory under the request cannot be read.
    #[error("request memory cannot be read")]
    Unreadable,
    /// A list or a stream is longer than the limits allow.
    #[error("{what} of {len} where at most {limit} are allowed")]
    TooLarge { what: &'static str, len: usize, limit: usize },
}

impl DecodeError {
    /// The specification's code for it.
    pub(crate) fn code(self) -> ErrorCode {
        match self {
            Self::Short { .. } => ErrorCode::InvalidParameter,
            Self::Unknown { .. } | Self::Unreadable => ErrorCode::Unspec,
            Self::TooLarge { .. } => ErrorCode::OutOfMemory,
        }
    }
}

const HEADER: usize = size_of::<Header>();
/// The longest fixed part of any request that is decoded (CTX_CREATE, SET_SCANOUT_BLOB).
const FIXED: usize = 96;

/// Reads the header and says how long the fixed part is that was read along with it.
pub(crate) struct Head {
    bytes: [u8; FIXED],
    len: usize,
}

impl Head {
    /// Reads the head of a request.
    ///
    /// # Errors
    /// [`DecodeError::Short`] below the header's 24 bytes, [`DecodeError::Unreadable`].
    pub(crate) fn read(body: &impl Body) -> Result<(Header, Self), DecodeError> {
        let mut head = Self { bytes: [0; FIXED], len: body.len().min(FIXED) };
        if !body.read(0, &mut head.bytes[..head.len]) {
            return Err(DecodeError::Unreadable);
        }
        let header = head.at::<Header>(0)?;
        Ok((header, head))
    }

    fn at<T: FromBytes>(&self, offset: usize) -> Result<T, DecodeError> {
        let (value, _) = T::read_from_prefix(&self.bytes[offset..self.len])
            .map_err(|_| DecodeError::Short { len: self.len, needed: offset + size_of::<T>() })?;
        Ok(value)
    }

    fn body<T: FromBytes>(&self) -> Result<T, DecodeError> {
        self.at(HEADER)
    }
}

/// Reads the command that `header` and `head` open.
pub(crate) fn decode(
    header: &Header,
    head: &Head,
    body: &impl Body,
    limits: &DecodeLimits,
) -> Result<Command, DecodeError> {
    let resource = || head.body::<wire::ResourceId>().map(|body| body.resource_id.get());
    Ok(match header.kind.get() {
        kind::GET_DISPLAY_INFO => Command::GetDisplayInfo,
        kind::GET_CAPSET_INFO => {
            Command::GetCapsetInfo { index: head.body::<wire::GetCapsetInfo>()?.capset_index.get() }
        }
        kind::GET_CAPSET => {
            let body = head.body::<wire::GetCapset>()?;
            Command::GetCapset { id: body.capset_id.get(), version: body.capset_version.get() }
        }
        kind::RESOURCE_UNREF => Command::Unref { resource: resource()? },
        kind::RESOURCE_DETACH_BACKING => Command::DetachBacking { resource: resource()? },
        kind::CTX_ATTACH_RESOURCE => Command::CtxAttach { resource: resource()? },
        kind::CTX_DETACH_RESOURCE => Command::CtxDetach { resource: resource()? },
        kind::RESOURCE_UNMAP_BLOB => Command::UnmapBlob { resource: resource()? },
        kind::RESOURCE_ATTACH_BACKING => {
            let list = head.body::<wire::AttachBacking>()?;
            let entries = entries(body, HEADER + size_of::<wire::AttachBacking>(), list.nr_entries.get(), limits)?;
            Command::AttachBacking { resource: list.resource_id.get(), entries }
        }
        kind::RESOURCE_CREATE_BLOB => create_blob(head, body, limits)?,
        kind::RESOURCE_MAP_BLOB => {
            let body = head.body::<wire::ResourceMapBlob>()?;
            Command::MapBlob(MapBlob { resource: body.resource_id.get(), offset: body.offset.get() })
        }
        kind::CTX_CREATE => ctx_create(&head.body::<wire::CtxCreate>()?),
        kind::CTX_DESTROY => Command::CtxDestroy,
        kind::SUBMIT_3D => {
            let size = head.body::<wire::Submit3d>()?.size.get() as usize;
            let start = HEADER + size_of::<wire::Submit3d>();
            Command::Submit { stream: bytes(body, start..start.saturating_add(size), limits)? }
        }
        kind::GET_EDID => Command::GetEdid { scanout: head.body::<wire::GetEdid>()?.scanout.get() },
        kind::RESOURCE_ASSIGN_UUID => Command::AssignUuid { resource: resource()? },
        kind::RESOURCE_CREATE_2D => Command::Create2d(head.body()?),
        kind::TRANSFER_TO_HOST_2D => Command::TransferToHost2d(head.body()?),
        kind::SET_SCANOUT => Command::SetScanout(head.body()?),
        kind::SET_SCANOUT_BLOB => Command::SetScanoutBlob(Box::new(head.body()?)),
        kind::RESOURCE_FLUSH => Command::Flush(head.body()?),
        kind::RESOURCE_CREATE_3D => Command::Create3d(Box::new(head.body()?)),
        kind::TRANSFER_TO_HOST_3D => Command::Transfer3d(Box::new(head.body()?), Direction::ToHost),
        kind::TRANSFER_FROM_HOST_3D => Command::Transfer3d(Box::new(head.body()?), Direction::FromHost),
        kind::UPDATE_CURSOR => Command::UpdateCursor(head.body()?),
        kind::MOVE_CURSOR => Command::MoveCursor(head.body()?),
        kind => return Err(DecodeError::Unknown { kind }),
    })
}

fn ctx_create(body: &wire::CtxCreate) -> Command {
    let len = (body.nlen.get() as usize).min(body.debug_name.len());
    let name = &body.debug_name[..len];
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Command::CtxCreate {
        capset: body.context_init.get() & wire::CONTEXT_INIT_CAPSET_MASK,
        name: String::from_utf8_lossy(name).into_owned(),
    }
}

fn create_blob(head: &Head, body: &impl Body, limits: &DecodeLimits) -> Result<Command, DecodeError> {
    let fixed = head.body::<wire::ResourceCreateBlob>()?;
    let start = HEADER + size_of::<wire::ResourceCreateBlob>();
    Ok(Command::CreateBlob(CreateBlob {
        resource: fixed.resource_id.get(),
        memory: fixed.blob_mem.get(),
        flags: fixed.blob_flags.get(),
        blob_id: fixed.blob_id.get(),
        size: fixed.size.get(),
        entries: entries(body, start, fixed.nr_entries.get(), limits)?,
    }))
}

/// Reads `count` memory entries. The count is the guest's; it is believed only as far as the request has bytes for it.
fn entries(body: &impl Body, start: usize, count: u32, limits: &DecodeLimits) -> Result<Vec<MemEntry>, DecodeError> {
    let count = count as usize;
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > limits.backing_entries {
        return Err(DecodeError::TooLarge { what: "list of entries", len: count, limit: limits.backing_entries });
    }
    let end = start + count * size_of::<MemEntry>();
    if body.len() < end {
        return Err(DecodeError::Short { len: body.len(), needed: end });
    }
    let mut list = vec![MemEntry::new_zeroed(); count];
    if body.read(start, list.as_mut_bytes()) { Ok(list) } else { Err(DecodeError::Unreadable) }
}

fn bytes(body: &impl Body, range: Range<usize>, limits: &DecodeLimits) -> Result<Vec<u8>, DecodeError> {
    if range.len() > limits.submit_bytes {
        return Err(DecodeError::TooLarge { what: "command stream", len: range.len(), limit: limits.submit_bytes });
    }
    read(body, range)
}

fn read(body: &impl Body, range: Range<usize>) -> Result<Vec<u8>, DecodeError> {
    if body.len() < range.end {
        return Err(DecodeError::Short { len: body.len(), needed: range.end });
    }
    let mut out = vec![0; range.len()];
    if body.read(range.start, &mut out) { Ok(out) } else { Err(DecodeError::Unreadable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Body for [u8] {
        fn len(&self) -> usize {
            self.len()
        }
        fn read(&self, offset: usize, out: &mut [u8]) -> bool {
            self.get(offset..offset + out.len()).map(|bytes| out.copy_from_slice(bytes)).is_some()
        }
    }

    struct Slice<'a>(&'a [u8]);
    impl Body for Slice<'_> {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn read(&self, offset: usize, out: &mut [u8]) -> bool {
            Body::read(self.0, offset, out)
        }
    }

    const LIMITS: DecodeLimits = DecodeLimits { backing_entries: 4, submit_bytes: 64 };

    fn parse(bytes: &[u8]) -> Result<Command, DecodeError> {
        let body = Slice(bytes);
        let (header, head) = Head::read(&body)?;
        decode(&header, &head, &body, &LIMITS)
    }

    fn request(kind: u32, body: &[u8]) -> Vec<u8> {
        [Header::new(kind).as_bytes(), body].concat()
    }

    #[test]
    fn a_request_is_never_read_past_its_end_whatever_its_length() {
        for kind in (0x100..0x110).chain(0x200..0x20a).chain(0x300..0x302).chain([0, u32::MAX]) {
            let full = request(kind, &[0xff; 128]);
            for len in 0..full.len() {
                let _ = parse(&full[..len]);
            }
        }
    }

    #[test]
    fn a_list_longer_than_the_request_or_the_limit_is_refused_without_an_allocation_of_its_size() {
        let list = |count: u32| wire::AttachBacking { resource_id: 1.into(), nr_entries: count.into() };
        let one = [list(1).as_bytes(), &[7; 16]].concat();
        let parsed = parse(&request(kind::RESOURCE_ATTACH_BACKING, &one));
        assert!(matches!(parsed, Ok(Command::AttachBacking { entries, .. }) if entries.len() == 1));
        let two = [list(2).as_bytes(), &[7; 16]].concat();
        let parsed = parse(&request(kind::RESOURCE_ATTACH_BACKING, &two));
        assert!(matches!(parsed, Err(DecodeError::Short { needed: 64, .. })));
        let parsed = parse(&request(kind::RESOURCE_ATTACH_BACKING, list(u32::MAX).as_bytes()));
        assert!(matches!(parsed, Err(DecodeError::TooLarge { limit: 4, .. })));
    }

    #[test]
    fn a_command_stream_longer_than_the_request_or_the_limit_is_refused() {
        let submit = |size: u32| wire::Submit3d { size: size.into(), padding: 0.into() };
        let fits = [submit(8).as_bytes(), &[1; 8]].concat();
        assert!(matches!(parse(&request(kind::SUBMIT_3D, &fits)), Ok(Command::Submit { stream }) if stream == [1; 8]));
        let short = [submit(9).as_bytes(), &[1; 8]].concat();
        assert!(matches!(parse(&request(kind::SUBMIT_3D, &short)), Err(DecodeError::Short { .. })));
        assert!(matches!(
            parse(&request(kind::SUBMIT_3D, submit(u32::MAX).as_bytes())),
            Err(DecodeError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_debug_name_longer_than_its_field_or_not_text_is_no_error() {
        let body = wire::CtxCreate { nlen: u32::MAX.into(), context_init: 0x1_0005.into(), debug_name: [0xfe; 64] };
        let parsed = parse(&request(kind::CTX_CREATE, body.as_bytes()));
        assert!(matches!(parsed, Ok(Command::CtxCreate { capset: 5, .. })));
    }
}
