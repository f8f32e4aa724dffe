//! Answers and their bytes. Every answer echoes the fence fields of its request, success or not.

use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::wire::{
    CapsetInfo, DisplayOne, EDID_ROOM, Edid, FLAG_FENCE, FLAG_INFO_RING_IDX, Header, MAX_SCANOUTS, MapInfo,
    response_type as kind,
};

/// The specification's error codes (virtio 1.4, section 5.7.6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ErrorCode {
    Unspec,
    OutOfMemory,
    InvalidScanoutId,
    InvalidResourceId,
    InvalidContextId,
    InvalidParameter,
}

impl ErrorCode {
    fn wire(self) -> u32 {
        match self {
            Self::Unspec => kind::ERR_UNSPEC,
            Self::OutOfMemory => kind::ERR_OUT_OF_MEMORY,
            Self::InvalidScanoutId => kind::ERR_INVALID_SCANOUT_ID,
            Self::InvalidResourceId => kind::ERR_INVALID_RESOURCE_ID,
            Self::InvalidContextId => kind::ERR_INVALID_CONTEXT_ID,
            Self::InvalidParameter => kind::ERR_INVALID_PARAMETER,
        }
    }
}

/// An answer to one request.
#[derive(Debug)]
pub(crate) enum Response {
    NoData,
    DisplayInfo(Box<[DisplayOne; MAX_SCANOUTS]>),
    CapsetInfo {
        id: u32,
        max_version: u32,
        max_size: u32,
    },
    Capset(Vec<u8>),
    /// At most [`EDID_ROOM`] bytes.
    Edid(Arc<[u8]>),
    Uuid([u8; 16]),
    MapInfo {
        map_info: u32,
    },
    Error(ErrorCode),
}

impl From<ErrorCode> for Response {
    fn from(code: ErrorCode) -> Self {
        Self::Error(code)
    }
}

impl Response {
    fn kind(&self) -> u32 {
        match self {
            Self::NoData => kind::OK_NODATA,
            Self::DisplayInfo(_) => kind::OK_DISPLAY_INFO,
            Self::CapsetInfo { .. } => kind::OK_CAPSET_INFO,
            Self::Capset(_) => kind::OK_CAPSET,
            Self::Edid(_) => kind::OK_EDID,
            Self::Uuid(_) => kind::OK_RESOURCE_UUID,
            Self::MapInfo { .. } => kind::OK_MAP_INFO,
            Self::Error(code) => code.wire(),
        }
    }

    /// The head of the answer to `request`.
    pub(crate) fn header(&self, request: &Header) -> Header {
        let flags = request.flags.get() & (FLAG_FENCE | FLAG_INFO_RING_IDX);
        Header { kind: self.kind().into(), flags: flags.into(), padding: [0; 3], ..*request }
    }

    /// Writes the answer to `request` into `out`, which is emptied first.
    pub(crate) fn encode(&self, request: &Header, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.header(request).as_bytes());
        match self {
            Self::NoData | Self::Error(_) => {}
            Self::DisplayInfo(displays) => out.extend_from_slice(displays.as_bytes()),
            Self::CapsetInfo { id, max_version, max_size } => out.extend_from_slice(
                CapsetInfo {
                    capset_id: U32::new(*id),
                    max_version: U32::new(*max_version),
                    max_size: U32::new(*max_size),
                    padding: U32::new(0),
                }
                .as_bytes(),
            ),
            Self::Capset(bytes) => out.extend_from_slice(bytes),
            Self::Edid(bytes) => {
                let len = bytes.len().min(EDID_ROOM);
                let mut edid = [0; EDID_ROOM];
                edid[..len].copy_from_slice(&bytes[..len]);
                out.extend_from_slice(Edid { size: U32::new(len as u32), padding: U32::new(0), edid }.as_bytes());
            }
            Self::Uuid(uuid) => out.extend_from_slice(uuid),
            Self::MapInfo { map_info } => {
                out.extend_from_slice(MapInfo { map_info: U32::new(*map_info), padding: U32::new(0) }.as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn an_error_never_loses_the_fence_fields() {
        let request = Header {
            flags: (FLAG_FENCE | FLAG_INFO_RING_IDX | 0x80).into(),
            fence_id: u64::MAX.into(),
            ctx_id: 7.into(),
            ring_idx: 63,
            ..Header::new(0x208)
        };
        let mut out = vec![1, 2, 3];
        Response::Error(ErrorCode::InvalidParameter).encode(&request, &mut out);
        let answer = Header::read_from_bytes(&out).expect("a bare header");
        assert_eq!(answer.kind.get(), kind::ERR_INVALID_PARAMETER);
        assert_eq!(answer.flags.get(), FLAG_FENCE | FLAG_INFO_RING_IDX);
        assert_eq!((answer.fence_id.get(), answer.ctx_id.get(), answer.ring_idx), (u64::MAX, 7, 63));
    }
}
