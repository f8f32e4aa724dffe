//! Structures as they stand in guest memory (virtio 1.4, section 5.7.6; `linux/virtio_gpu.h`).
//! Little-endian field types and derived layouts, so that reading one is a copy and never a cast.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Request types (`enum virtio_gpu_ctrl_type`).
#[allow(missing_docs, reason = "the specification's own names say it all")]
pub mod command_type {
    pub const GET_DISPLAY_INFO: u32 = 0x100;
    pub const RESOURCE_CREATE_2D: u32 = 0x101;
    pub const RESOURCE_UNREF: u32 = 0x102;
    pub const SET_SCANOUT: u32 = 0x103;
    pub const RESOURCE_FLUSH: u32 = 0x104;
    pub const TRANSFER_TO_HOST_2D: u32 = 0x105;
    pub const RESOURCE_ATTACH_BACKING: u32 = 0x106;
    pub const RESOURCE_DETACH_BACKING: u32 = 0x107;
    pub const GET_CAPSET_INFO: u32 = 0x108;
    pub const GET_CAPSET: u32 = 0x109;
    pub const GET_EDID: u32 = 0x10a;
    pub const RESOURCE_ASSIGN_UUID: u32 = 0x10b;
    pub const RESOURCE_CREATE_BLOB: u32 = 0x10c;
    pub const SET_SCANOUT_BLOB: u32 = 0x10d;
    pub const CTX_CREATE: u32 = 0x200;
    pub const CTX_DESTROY: u32 = 0x201;
    pub const CTX_ATTACH_RESOURCE: u32 = 0x202;
    pub const CTX_DETACH_RESOURCE: u32 = 0x203;
    pub const RESOURCE_CREATE_3D: u32 = 0x204;
    pub const TRANSFER_TO_HOST_3D: u32 = 0x205;
    pub const TRANSFER_FROM_HOST_3D: u32 = 0x206;
    pub const SUBMIT_3D: u32 = 0x207;
    pub const RESOURCE_MAP_BLOB: u32 = 0x208;
    pub const RESOURCE_UNMAP_BLOB: u32 = 0x209;
    pub const UPDATE_CURSOR: u32 = 0x300;
    pub const MOVE_CURSOR: u32 = 0x301;
}

/// Response types (`VIRTIO_GPU_RESP_OK_*` and `VIRTIO_GPU_RESP_ERR_*`).
#[allow(missing_docs, reason = "the specification's own names say it all")]
pub mod response_type {
    pub const OK_NODATA: u32 = 0x1100;
    pub const OK_DISPLAY_INFO: u32 = 0x1101;
    pub const OK_CAPSET_INFO: u32 = 0x1102;
    pub const OK_CAPSET: u32 = 0x1103;
    pub const OK_EDID: u32 = 0x1104;
    pub const OK_RESOURCE_UUID: u32 = 0x1105;
    pub const OK_MAP_INFO: u32 = 0x1106;
    pub const ERR_UNSPEC: u32 = 0x1200;
    pub const ERR_OUT_OF_MEMORY: u32 = 0x1201;
    pub const ERR_INVALID_SCANOUT_ID: u32 = 0x1202;
    pub const ERR_INVALID_RESOURCE_ID: u32 = 0x1203;
    pub const ERR_INVALID_CONTEXT_ID: u32 = 0x1204;
    pub const ERR_INVALID_PARAMETER: u32 = 0x1205;
}

/// `VIRTIO_GPU_FLAG_FENCE`: answer when the work is done.
pub const FLAG_FENCE: u32 = 1 << 0;
/// `VIRTIO_GPU_FLAG_INFO_RING_IDX`: the fence is on the timeline (ctx_id, ring_idx).
pub const FLAG_INFO_RING_IDX: u32 = 1 << 1;
/// Number of fence timelines of a context; `ring_idx` is below it.
pub const RING_COUNT: u8 = 64;
/// Number of scanouts in a display-info response (`VIRTIO_GPU_MAX_SCANOUTS`).
pub const MAX_SCANOUTS: usize = 16;

/// Most bytes of an EDID.
pub const EDID_ROOM: usize = 1024;

/// `VIRTIO_GPU_BLOB_MEM_GUEST`: the blob is guest memory.
pub const BLOB_MEM_GUEST: u32 = 1;
/// `VIRTIO_GPU_BLOB_MEM_HOST3D`: the blob is a host object of the context.
pub const BLOB_MEM_HOST3D: u32 = 2;
/// `VIRTIO_GPU_BLOB_MEM_HOST3D_GUEST`: a host object shadowed by guest memory.
pub const BLOB_MEM_HOST3D_GUEST: u32 = 3;
/// `VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE`.
pub const BLOB_FLAG_MAPPABLE: u32 = 1 << 0;
/// `VIRTIO_GPU_BLOB_FLAG_USE_SHAREABLE`.
pub const BLOB_FLAG_SHAREABLE: u32 = 1 << 1;
/// `VIRTIO_GPU_BLOB_FLAG_USE_CROSS_DEVICE`.
pub const BLOB_FLAG_CROSS_DEVICE: u32 = 1 << 2;

/// `VIRTIO_GPU_MAP_CACHE_CACHED`: the guest maps the blob write-back.
pub const MAP_CACHE_CACHED: u32 = 1;
/// `VIRTIO_GPU_MAP_CACHE_UNCACHED`: the guest maps the blob uncached.
pub const MAP_CACHE_UNCACHED: u32 = 2;
/// `VIRTIO_GPU_MAP_CACHE_WC`: the guest maps the blob write-combining.
pub const MAP_CACHE_WC: u32 = 3;

/// Capability set of cross-domain contexts (`VIRTIO_GPU_CAPSET_CROSS_DOMAIN`).
pub const CAPSET_CROSS_DOMAIN: u32 = 5;
/// The bits of `context_init` that hold the capability set's id.
pub const CONTEXT_INIT_CAPSET_MASK: u32 = 0xff;

/// Declares wire structures: `repr(C)`, byte-level conversions derived, size stated and checked.
macro_rules! wire {
    ($($(#[$doc:meta])* $size:literal $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}
pub(crate) use wire;

wire! {
    /// `struct virtio_gpu_ctrl_hdr`, the head of every request and every response.
    24 Header {
        /// Request or response type.
        kind: U32,
        /// [`FLAG_FENCE`], [`FLAG_INFO_RING_IDX`].
        flags: U32,
        /// The fence, where one is asked for.
        fence_id: U64,
        /// The context that the command belongs to.
        ctx_id: U32,
        /// The timeline of the context, with [`FLAG_INFO_RING_IDX`].
        ring_idx: u8,
        /// Unused.
        padding: [u8; 3],
    }
    /// `struct virtio_gpu_rect`.
    16 Rect {
        /// Left edge in pixels.
        x: U32,
        /// Top edge in pixels.
        y: U32,
        /// Width in pixels.
        width: U32,
        /// Height in pixels.
        height: U32,
    }
    /// `struct virtio_gpu_display_one`.
    24 DisplayOne {
        /// Position and preferred size.
        rect: Rect,
        /// 1 where a display is connected.
        enabled: U32,
        /// Unused.
        flags: U32,
    }
    /// Body of `GET_EDID`.
    8 GetEdid {
        /// The scanout.
        scanout: U32,
        /// Unused.
        padding: U32,
    }
    /// Payload of `OK_EDID`.
    1032 Edid {
        /// How many bytes of it there are; 0 where nothing is connected.
        size: U32,
        /// Unused.
        padding: U32,
        /// Blocks of 128 bytes.
        edid: [u8; EDID_ROOM],
    }
    /// Payload of `OK_RESOURCE_UUID`.
    16 Uuid {
        /// In the order in which it is written.
        uuid: [u8; 16],
    }
    /// Body of `RESOURCE_UNREF`, `RESOURCE_DETACH_BACKING`, `RESOURCE_ASSIGN_UUID`, `CTX_ATTACH_RESOURCE`,
    /// `CTX_DETACH_RESOURCE` and `RESOURCE_UNMAP_BLOB`.
    8 ResourceId {
        /// The resource.
        resource_id: U32,
        /// Unused.
        padding: U32,
    }
    /// Body of `SET_SCANOUT`.
    24 SetScanout {
        /// Part of the resource to show.
        rect: Rect,
        /// The scanout, below the number in the configuration space.
        scanout_id: U32,
        /// The resource, 0 to switch the scanout off.
        resource_id: U32,
    }
    /// Body of `RESOURCE_CREATE_2D`.
    16 ResourceCreate2d {
        /// The new resource, chosen by the guest, not 0.
        resource_id: U32,
        /// One of the [`Format`](super::format::Format)s.
        format: U32,
        /// Width in pixels.
        width: U32,
        /// Height in pixels.
        height: U32,
    }
    /// Body of `RESOURCE_FLUSH`.
    24 ResourceFlush {
        /// What has changed, in the resource's pixels.
        rect: Rect,
        /// The resource.
        resource_id: U32,
        /// Unused.
        padding: U32,
    }
    /// Body of `TRANSFER_TO_HOST_2D`.
    32 TransferToHost2d {
        /// What is copied, in the resource's pixels.
        rect: Rect,
        /// Where the first pixel of it lies in the backing, in bytes.
        offset: U64,
        /// The resource.
        resource_id: U32,
        /// Unused.
        padding: U32,
    }
    /// Body of `SET_SCANOUT_BLOB`.
    72 SetScanoutBlob {
        /// Part of the picture to show.
        rect: Rect,
        /// The scanout, below the number in the configuration space.
        scanout_id: U32,
        /// The blob, 0 to switch the scanout off.
        resource_id: U32,
        /// Width of the picture in pixels.
        width: U32,
        /// Height of the picture in pixels.
        height: U32,
        /// One of the [`Format`](super::format::Format)s.
        format: U32,
        /// Unused.
        padding: U32,
        /// Bytes from row to row, of each plane.
        strides: [U32; 4],
        /// Where each plane begins, in bytes.
        offsets: [U32; 4],
    }
    /// Body of `RESOURCE_CREATE_3D` (`struct virtio_gpu_resource_create_3d`); what the values mean is the renderer's matter.
    48 ResourceCreate3d {
        /// The new resource, chosen by the guest, not 0.
        resource_id: U32,
        /// Kind of texture or buffer.
        target: U32,
        /// The renderer's number of a format.
        format: U32,
        /// What it is for.
        bind: U32,
        /// Width in pixels, or length in bytes.
        width: U32,
        /// Height in pixels.
        height: U32,
        /// Depth in pixels.
        depth: U32,
        /// Number of layers.
        array_size: U32,
        /// Last level of a mipmap.
        last_level: U32,
        /// Samples of a pixel.
        nr_samples: U32,
        /// The renderer's flags.
        flags: U32,
        /// Unused.
        padding: U32,
    }
    /// `struct virtio_gpu_box`.
    24 Box3d {
        /// First column.
        x: U32,
        /// First row.
        y: U32,
        /// First layer.
        z: U32,
        /// Columns.
        w: U32,
        /// Rows.
        h: U32,
        /// Layers.
        d: U32,
    }
    /// Body of `TRANSFER_TO_HOST_3D` and `TRANSFER_FROM_HOST_3D` (`struct virtio_gpu_transfer_host_3d`).
    48 TransferHost3d {
        /// What is copied.
        region: Box3d,
        /// Where it begins in the backing, in bytes.
        offset: U64,
        /// The resource.
        resource_id: U32,
        /// Level of a mipmap.
        level: U32,
        /// Bytes from row to row in the backing; 0: as the format has it.
        stride: U32,
        /// Bytes from layer to layer in the backing; 0: as the format has it.
        layer_stride: U32,
    }
    /// Body of `RESOURCE_ATTACH_BACKING`; [`MemEntry`]s follow.
    8 AttachBacking {
        /// The resource.
        resource_id: U32,
        /// Number of entries.
        nr_entries: U32,
    }
    /// `struct virtio_gpu_mem_entry`: a piece of guest memory.
    16 MemEntry {
        /// Guest-physical address.
        addr: U64,
        /// Length in bytes.
        length: U32,
        /// Unused.
        padding: U32,
    }
    /// Body of `GET_CAPSET_INFO`.
    8 GetCapsetInfo {
        /// Below the number in the configuration space.
        capset_index: U32,
        /// Unused.
        padding: U32,
    }
    /// Payload of `OK_CAPSET_INFO`.
    16 CapsetInfo {
        /// The capability set's id.
        capset_id: U32,
        /// Highest version.
        max_version: U32,
        /// Size in bytes.
        max_size: U32,
        /// Unused.
        padding: U32,
    }
    /// Body of `GET_CAPSET`.
    8 GetCapset {
        /// The capability set's id.
        capset_id: U32,
        /// The version asked for.
        capset_version: U32,
    }
    /// Body of `RESOURCE_CREATE_BLOB`; [`MemEntry`]s follow.
    32 ResourceCreateBlob {
        /// The new resource, chosen by the guest, not 0.
        resource_id: U32,
        /// One of the `BLOB_MEM_*` values.
        blob_mem: U32,
        /// `BLOB_FLAG_*` bits.
        blob_flags: U32,
        /// Number of entries that follow.
        nr_entries: U32,
        /// The host object, for host memory.
        blob_id: U64,
        /// Size in bytes.
        size: U64,
    }
    /// Body of `CTX_CREATE`.
    72 CtxCreate {
        /// Length of the name.
        nlen: U32,
        /// Capability set in the low byte.
        context_init: U32,
        /// A name for people.
        debug_name: [u8; 64],
    }
    /// Body of `SUBMIT_3D`; `size` bytes follow.
    8 Submit3d {
        /// Length of the command stream in bytes.
        size: U32,
        /// Unused.
        padding: U32,
    }
    /// Body of `RESOURCE_MAP_BLOB`.
    16 ResourceMapBlob {
        /// The blob.
        resource_id: U32,
        /// Unused.
        padding: U32,
        /// Where in the window, in bytes.
        offset: U64,
    }
    /// Payload of `OK_MAP_INFO`.
    8 MapInfo {
        /// One of the `VIRTIO_GPU_MAP_CACHE_*` values.
        map_info: U32,
        /// Unused.
        padding: U32,
    }
    /// Body of `UPDATE_CURSOR` and `MOVE_CURSOR`.
    32 UpdateCursor {
        /// Scanout of the cursor.
        scanout_id: U32,
        /// Column in pixels.
        x: U32,
        /// Row in pixels.
        y: U32,
        /// Unused.
        pos_padding: U32,
        /// The cursor's image, 0 to hide it.
        resource_id: U32,
        /// Hotspot column.
        hot_x: U32,
        /// Hotspot row.
        hot_y: U32,
        /// Unused.
        padding: U32,
    }
}

impl Header {
    /// A header with nothing but a type.
    #[must_use]
    pub fn new(kind: u32) -> Self {
        Self { kind: kind.into(), flags: 0.into(), fence_id: 0.into(), ctx_id: 0.into(), ring_idx: 0, padding: [0; 3] }
    }

    /// Whether the answer must wait for the work.
    #[must_use]
    pub fn fenced(&self) -> bool {
        self.flags.get() & FLAG_FENCE != 0
    }

    /// Whether the fence lies on a timeline of the context.
    #[must_use]
    pub fn on_ring(&self) -> bool {
        self.flags.get() & FLAG_INFO_RING_IDX != 0
    }
}
