//! A request as the device understands it, after its bytes have been checked.
//! One variant a command; anything the device does not serve is refused while decoding.

use super::features;
use super::wire::{
    CapsetInfo, DisplayOne, Edid, Header, MAX_SCANOUTS, MapInfo, MemEntry, ResourceCreate2d, ResourceCreate3d,
    ResourceFlush, SetScanout, SetScanoutBlob, TransferHost3d, TransferToHost2d, UpdateCursor, Uuid,
    command_type as kind,
};

/// A decoded request.
#[derive(Debug)]
pub(crate) enum Command {
    GetDisplayInfo,
    GetCapsetInfo { index: u32 },
    GetCapset { id: u32, version: u32 },
    Unref { resource: u32 },
    AttachBacking { resource: u32, entries: Vec<MemEntry> },
    DetachBacking { resource: u32 },
    CreateBlob(CreateBlob),
    MapBlob(MapBlob),
    UnmapBlob { resource: u32 },
    CtxCreate { capset: u32, name: String },
    CtxDestroy,
    CtxAttach { resource: u32 },
    CtxDetach { resource: u32 },
    Submit { stream: Vec<u8> },
    GetEdid { scanout: u32 },
    AssignUuid { resource: u32 },
    Create2d(ResourceCreate2d),
    TransferToHost2d(TransferToHost2d),
    SetScanout(SetScanout),
    SetScanoutBlob(Box<SetScanoutBlob>),
    Flush(ResourceFlush),
    Create3d(Box<ResourceCreate3d>),
    Transfer3d(Box<TransferHost3d>, Direction),
    UpdateCursor(UpdateCursor),
    MoveCursor(UpdateCursor),
}

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the guest's memory to the resource.
    ToHost,
    /// From the resource to the guest's memory.
    FromHost,
}

impl Command {
    /// Bytes of host memory that it holds while it waits to be carried out.
    pub(crate) fn payload(&self) -> usize {
        match self {
            Self::AttachBacking { entries, .. } => size_of_val(entries.as_slice()),
            Self::CreateBlob(create) => size_of_val(create.entries.as_slice()),
            Self::Submit { stream } => stream.len(),
            _ => 0,
        }
    }

    /// The resource that it is about, where it is about one.
    pub(crate) fn resource(&self) -> Option<u32> {
        match self {
            Self::Unref { resource }
            | Self::AttachBacking { resource, .. }
            | Self::DetachBacking { resource }
            | Self::UnmapBlob { resource }
            | Self::CtxAttach { resource }
            | Self::CtxDetach { resource }
            | Self::AssignUuid { resource } => Some(*resource),
            Self::CreateBlob(create) => Some(create.resource),
            Self::MapBlob(map) => Some(map.resource),
            Self::Create2d(create) => Some(create.resource_id.get()),
            Self::TransferToHost2d(transfer) => Some(transfer.resource_id.get()),
            Self::SetScanout(set) => Some(set.resource_id.get()),
            Self::SetScanoutBlob(set) => Some(set.resource_id.get()),
            Self::Flush(flush) => Some(flush.resource_id.get()),
            Self::Create3d(create) => Some(create.resource_id.get()),
            Self::Transfer3d(transfer, _) => Some(transfer.resource_id.get()),
            Self::UpdateCursor(cursor) => Some(cursor.resource_id.get()),
            Self::MoveCursor(_)
            | Self::GetEdid { .. }
            | Self::GetDisplayInfo
            | Self::GetCapsetInfo { .. }
            | Self::GetCapset { .. }
            | Self::CtxCreate { .. }
            | Self::CtxDestroy
            | Self::Submit { .. } => None,
        }
    }
}

/// `RESOURCE_CREATE_BLOB`, its values as the guest gave them.
#[derive(Debug)]
pub(crate) struct CreateBlob {
    pub(crate) resource: u32,
    pub(crate) memory: u32,
    pub(crate) flags: u32,
    pub(crate) blob_id: u64,
    pub(crate) size: u64,
    pub(crate) entries: Vec<MemEntry>,
}

/// `RESOURCE_MAP_BLOB`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapBlob {
    pub(crate) resource: u32,
    pub(crate) offset: u64,
}

/// The feature that a driver must have acknowledged before it may send a request of this type; 0 for none.
pub(crate) fn needed_feature(request: u32) -> u64 {
    match request {
        kind::RESOURCE_CREATE_BLOB | kind::SET_SCANOUT_BLOB | kind::RESOURCE_MAP_BLOB | kind::RESOURCE_UNMAP_BLOB => {
            features::RESOURCE_BLOB
        }
        kind::CTX_CREATE
        | kind::CTX_DESTROY
        | kind::CTX_ATTACH_RESOURCE
        | kind::CTX_DETACH_RESOURCE
        | kind::RESOURCE_CREATE_3D
        | kind::TRANSFER_TO_HOST_3D
        | kind::TRANSFER_FROM_HOST_3D
        | kind::SUBMIT_3D
        | kind::GET_CAPSET_INFO
        | kind::GET_CAPSET => features::VIRGL,
        kind::GET_EDID => features::EDID,
        kind::RESOURCE_ASSIGN_UUID => features::RESOURCE_UUID,
        _ => 0,
    }
}

/// Bytes that the largest successful response to a request of this type takes, beside a capability set's own.
pub(crate) fn response_len(request: u32) -> usize {
    let payload = match request {
        kind::GET_DISPLAY_INFO => MAX_SCANOUTS * size_of::<DisplayOne>(),
        kind::GET_CAPSET_INFO => size_of::<CapsetInfo>(),
        kind::RESOURCE_MAP_BLOB => size_of::<MapInfo>(),
        kind::GET_EDID => size_of::<Edid>(),
        kind::RESOURCE_ASSIGN_UUID => size_of::<Uuid>(),
        _ => 0,
    };
    size_of::<Header>() + payload
}
