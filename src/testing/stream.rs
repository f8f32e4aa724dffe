//! Streams of cross-domain contexts, as a guest submits them.

use zerocopy::IntoBytes;

use super::Request;
use crate::protocol::cross_domain::{
    EventCommand, GetImageRequirements, Init, MAX_IDENTIFIERS, ReadWrite, SendReceive, StreamHeader, command, id_type,
};

impl Request {
    /// A cross-domain INIT of 20 bytes, or with `version` libkrun's of 24.
    #[must_use]
    pub fn stream_init(query_ring: u32, channel_ring: u32, channel_type: u32, version: Option<u32>) -> Vec<u8> {
        let size = if version.is_some() { 24 } else { 20 };
        let header = stream_header(command::INIT, size);
        let init = Init {
            header,
            query_ring: query_ring.into(),
            channel_ring: channel_ring.into(),
            channel_type: channel_type.into(),
        };
        [init.as_bytes(), &version.map(u32::to_le_bytes).into_iter().flatten().collect::<Vec<u8>>()].concat()
    }

    /// A cross-domain POLL.
    #[must_use]
    pub fn stream_poll() -> Vec<u8> {
        [stream_header(command::POLL, 16).as_bytes(), &[0; 8]].concat()
    }

    /// A cross-domain SEND of data and blobs.
    ///
    /// # Panics
    /// With more than 28 blobs, or more data than a command of 64 KiB holds.
    #[must_use]
    pub fn stream_send(data: &[u8], blobs: &[u32]) -> Vec<u8> {
        let blobs: Vec<(u32, u32)> = blobs.iter().map(|blob| (*blob, id_type::VIRTGPU_BLOB)).collect();
        Self::stream_send_with(data, &blobs)
    }

    /// A cross-domain SEND of data and identifiers with their types.
    ///
    /// # Panics
    /// As [`stream_send`](Self::stream_send).
    #[must_use]
    pub fn stream_send_with(data: &[u8], identifiers: &[(u32, u32)]) -> Vec<u8> {
        let size = u16::try_from(size_of::<SendReceive>() + data.len()).expect("a command of less than 64 KiB");
        let mut head = SendReceive {
            header: stream_header(command::SEND, size),
            num_identifiers: (identifiers.len() as u32).into(),
            opaque_data_size: (data.len() as u32).into(),
            identifiers: [0.into(); MAX_IDENTIFIERS],
            identifier_types: [0.into(); MAX_IDENTIFIERS],
            identifier_sizes: [0.into(); MAX_IDENTIFIERS],
        };
        for (slot, (id, kind)) in identifiers.iter().enumerate() {
            head.identifiers[slot] = (*id).into();
            head.identifier_types[slot] = (*kind).into();
        }
        [head.as_bytes(), data].concat()
    }

    /// A cross-domain WRITE to an eventfd or a pipe.
    ///
    /// # Panics
    /// With more data than a command of 64 KiB holds.
    #[must_use]
    pub fn stream_write(id: u32, data: &[u8], hang_up: bool) -> Vec<u8> {
        let size = u16::try_from(size_of::<ReadWrite>() + data.len()).expect("a command of less than 64 KiB");
        let head = ReadWrite {
            header: stream_header(command::WRITE, size),
            identifier: id.into(),
            hang_up: u32::from(hang_up).into(),
            opaque_data_size: (data.len() as u32).into(),
            padding: 0.into(),
        };
        [head.as_bytes(), data].concat()
    }

    /// A cross-domain READ_EVENTFD_NEW.
    #[must_use]
    pub fn stream_watch(id: u32) -> Vec<u8> {
        stream_event(command::READ_EVENTFD_NEW, id)
    }

    /// A cross-domain READ_EVENTFD_DESTROY.
    #[must_use]
    pub fn stream_unwatch(id: u32) -> Vec<u8> {
        stream_event(command::READ_EVENTFD_DESTROY, id)
    }

    /// A cross-domain GET_IMAGE_REQUIREMENTS.
    #[must_use]
    pub fn stream_image(width: u32, height: u32, fourcc: [u8; 4], flags: u32) -> Vec<u8> {
        let image = GetImageRequirements {
            header: stream_header(command::GET_IMAGE_REQUIREMENTS, 24),
            width: width.into(),
            height: height.into(),
            drm_format: u32::from_le_bytes(fourcc).into(),
            flags: flags.into(),
        };
        image.as_bytes().to_vec()
    }
}

fn stream_event(cmd: u8, id: u32) -> Vec<u8> {
    EventCommand { header: stream_header(cmd, 16), id: id.into(), padding: 0.into() }.as_bytes().to_vec()
}

fn stream_header(cmd: u8, size: u16) -> StreamHeader {
    StreamHeader { cmd, ring_idx: 0, cmd_size: size.into(), padding: 0.into() }
}
