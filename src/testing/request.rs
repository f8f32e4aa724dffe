//! Requests as a driver writes them: a header, a body, whatever follows. Values are the caller's, right or wrong.

use zerocopy::IntoBytes;

use crate::protocol::wire::{
    AttachBacking, BLOB_FLAG_MAPPABLE, BLOB_FLAG_SHAREABLE, BLOB_MEM_GUEST, BLOB_MEM_HOST3D, Box3d, CtxCreate,
    FLAG_FENCE, FLAG_INFO_RING_IDX, GetCapset, GetCapsetInfo, GetEdid, Header, MemEntry, Rect, ResourceCreate2d,
    ResourceCreate3d, ResourceCreateBlob, ResourceFlush, ResourceId, ResourceMapBlob, SetScanout, SetScanoutBlob,
    Submit3d, TransferHost3d, TransferToHost2d, UpdateCursor, command_type as kind,
};

/// The bytes of a request, and how much room its answer takes.
#[derive(Debug, Clone)]
pub struct Request {
    header: Header,
    body: Vec<u8>,
    response_len: usize,
}

impl Request {
    /// A request of any type with any body; room for a bare header.
    #[must_use]
    pub fn new(kind: u32, body: &[u8]) -> Self {
        Self { header: Header::new(kind), body: body.to_vec(), response_len: size_of::<Header>() }
    }

    /// In this context.
    #[must_use]
    pub fn context(mut self, context: u32) -> Self {
        self.header.ctx_id = context.into();
        self
    }

    /// With a fence on the global timeline.
    #[must_use]
    pub fn fenced(mut self, fence: u64) -> Self {
        self.header.flags = (self.header.flags.get() | FLAG_FENCE).into();
        self.header.fence_id = fence.into();
        self
    }

    /// With the timeline of a ring.
    #[must_use]
    pub fn on_ring(mut self, ring: u8) -> Self {
        self.header.flags = (self.header.flags.get() | FLAG_INFO_RING_IDX).into();
        self.header.ring_idx = ring;
        self
    }

    /// With this much room for the answer.
    #[must_use]
    pub fn response_len(mut self, len: usize) -> Self {
        self.response_len = len;
        self
    }

    /// Room for the answer in bytes.
    #[must_use]
    pub fn room(&self) -> usize {
        self.response_len
    }

    /// The request's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [self.header.as_bytes(), &self.body].concat()
    }

    /// `GET_DISPLAY_INFO`: the command that does nothing.
    #[must_use]
    pub fn display_info() -> Self {
        Self::new(kind::GET_DISPLAY_INFO, &[]).response_len(408)
    }

    /// `GET_CAPSET_INFO`.
    #[must_use]
    pub fn capset_info(index: u32) -> Self {
        let body = GetCapsetInfo { capset_index: index.into(), padding: 0.into() };
        Self::new(kind::GET_CAPSET_INFO, body.as_bytes()).response_len(40)
    }

    /// `GET_CAPSET`, with room for `size` bytes of it.
    #[must_use]
    pub fn capset(id: u32, version: u32, size: usize) -> Self {
        let body = GetCapset { capset_id: id.into(), capset_version: version.into() };
        Self::new(kind::GET_CAPSET, body.as_bytes()).response_len(24 + size)
    }

    /// `CTX_CREATE`.
    #[must_use]
    pub fn ctx_create(context: u32, capset: u32) -> Self {
        let mut name = [0; 64];
        name[..4].copy_from_slice(b"test");
        let body = CtxCreate { nlen: 4.into(), context_init: capset.into(), debug_name: name };
        Self::new(kind::CTX_CREATE, body.as_bytes()).context(context)
    }

    /// `CTX_DESTROY`.
    #[must_use]
    pub fn ctx_destroy(context: u32) -> Self {
        Self::new(kind::CTX_DESTROY, &[]).context(context)
    }

    /// `CTX_ATTACH_RESOURCE`.
    #[must_use]
    pub fn ctx_attach(context: u32, resource: u32) -> Self {
        Self::on_resource(kind::CTX_ATTACH_RESOURCE, resource).context(context)
    }

    /// `CTX_DETACH_RESOURCE`.
    #[must_use]
    pub fn ctx_detach(context: u32, resource: u32) -> Self {
        Self::on_resource(kind::CTX_DETACH_RESOURCE, resource).context(context)
    }

    /// `SUBMIT_3D`.
    #[must_use]
    pub fn submit(context: u32, stream: &[u8]) -> Self {
        let body = Submit3d { size: (stream.len() as u32).into(), padding: 0.into() };
        Self::new(kind::SUBMIT_3D, &[body.as_bytes(), stream].concat()).context(context)
    }

    /// `RESOURCE_CREATE_BLOB` with every value.
    #[must_use]
    pub fn create_blob(resource: u32, memory: u32, flags: u32, blob_id: u64, size: u64, list: &[(u64, u32)]) -> Self {
        let body = ResourceCreateBlob {
            resource_id: resource.into(),
            blob_mem: memory.into(),
            blob_flags: flags.into(),
            nr_entries: (list.len() as u32).into(),
            blob_id: blob_id.into(),
            size: size.into(),
        };
        Self::new(kind::RESOURCE_CREATE_BLOB, &[body.as_bytes(), &entries(list)].concat())
    }

    /// A blob of guest memory.
    #[must_use]
    pub fn guest_blob(resource: u32, size: u64, list: &[(u64, u32)]) -> Self {
        Self::create_blob(resource, BLOB_MEM_GUEST, 0, 0, size, list)
    }

    /// A mappable and shareable blob of a host object.
    #[must_use]
    pub fn host_blob(context: u32, resource: u32, blob_id: u64, size: u64) -> Self {
        let flags = BLOB_FLAG_MAPPABLE | BLOB_FLAG_SHAREABLE;
        Self::create_blob(resource, BLOB_MEM_HOST3D, flags, blob_id, size, &[]).context(context)
    }

    /// `RESOURCE_MAP_BLOB`.
    #[must_use]
    pub fn map(resource: u32, offset: u64) -> Self {
        let body = ResourceMapBlob { resource_id: resource.into(), padding: 0.into(), offset: offset.into() };
        Self::new(kind::RESOURCE_MAP_BLOB, body.as_bytes()).response_len(32)
    }

    /// `RESOURCE_UNMAP_BLOB`.
    #[must_use]
    pub fn unmap(resource: u32) -> Self {
        Self::on_resource(kind::RESOURCE_UNMAP_BLOB, resource)
    }

    /// `RESOURCE_UNREF`.
    #[must_use]
    pub fn unref(resource: u32) -> Self {
        Self::on_resource(kind::RESOURCE_UNREF, resource)
    }

    /// `RESOURCE_ATTACH_BACKING`.
    #[must_use]
    pub fn attach_backing(resource: u32, list: &[(u64, u32)]) -> Self {
        let body = AttachBacking { resource_id: resource.into(), nr_entries: (list.len() as u32).into() };
        Self::new(kind::RESOURCE_ATTACH_BACKING, &[body.as_bytes(), &entries(list)].concat())
    }

    /// `RESOURCE_DETACH_BACKING`.
    #[must_use]
    pub fn detach_backing(resource: u32) -> Self {
        Self::on_resource(kind::RESOURCE_DETACH_BACKING, resource)
    }

    /// `GET_EDID`.
    #[must_use]
    pub fn get_edid(scanout: u32) -> Self {
        let body = GetEdid { scanout: scanout.into(), padding: 0.into() };
        Self::new(kind::GET_EDID, body.as_bytes()).response_len(1056)
    }

    /// `RESOURCE_ASSIGN_UUID`.
    #[must_use]
    pub fn assign_uuid(resource: u32) -> Self {
        Self::on_resource(kind::RESOURCE_ASSIGN_UUID, resource).response_len(40)
    }

    /// `RESOURCE_CREATE_2D`; `format` is the wire's number.
    #[must_use]
    pub fn create_2d(resource: u32, format: u32, width: u32, height: u32) -> Self {
        let body = ResourceCreate2d {
            resource_id: resource.into(),
            format: format.into(),
            width: width.into(),
            height: height.into(),
        };
        Self::new(kind::RESOURCE_CREATE_2D, body.as_bytes())
    }

    /// `TRANSFER_TO_HOST_2D` of a rectangle: x, y, width, height.
    #[must_use]
    pub fn transfer_2d(resource: u32, rect: [u32; 4], offset: u64) -> Self {
        let body = TransferToHost2d {
            rect: wire_rect(rect),
            offset: offset.into(),
            resource_id: resource.into(),
            padding: 0.into(),
        };
        Self::new(kind::TRANSFER_TO_HOST_2D, body.as_bytes())
    }

    /// `RESOURCE_FLUSH` of a rectangle: x, y, width, height.
    #[must_use]
    pub fn flush(resource: u32, rect: [u32; 4]) -> Self {
        let body = ResourceFlush { rect: wire_rect(rect), resource_id: resource.into(), padding: 0.into() };
        Self::new(kind::RESOURCE_FLUSH, body.as_bytes())
    }

    /// `SET_SCANOUT` of a rectangle of the resource: x, y, width, height.
    #[must_use]
    pub fn set_scanout(scanout: u32, resource: u32, rect: [u32; 4]) -> Self {
        let body = SetScanout { rect: wire_rect(rect), scanout_id: scanout.into(), resource_id: resource.into() };
        Self::new(kind::SET_SCANOUT, body.as_bytes())
    }

    /// `SET_SCANOUT_BLOB` of a whole picture in one plane: width, height, the wire's number of a format, bytes from row to
    /// row, and where it begins.
    #[must_use]
    pub fn set_scanout_blob(
        scanout: u32,
        resource: u32,
        size: [u32; 2],
        format: u32,
        stride: u32,
        offset: u32,
    ) -> Self {
        let mut body = Self::scanout_blob(scanout, resource, [0, 0, size[0], size[1]], size, format);
        body.strides[0] = stride.into();
        body.offsets[0] = offset.into();
        Self::with_scanout_blob(&body)
    }

    /// The body of a `SET_SCANOUT_BLOB` without planes, to be changed.
    #[must_use]
    pub fn scanout_blob(scanout: u32, resource: u32, rect: [u32; 4], size: [u32; 2], format: u32) -> SetScanoutBlob {
        SetScanoutBlob {
            rect: wire_rect(rect),
            scanout_id: scanout.into(),
            resource_id: resource.into(),
            width: size[0].into(),
            height: size[1].into(),
            format: format.into(),
            padding: 0.into(),
            strides: [0.into(); 4],
            offsets: [0.into(); 4],
        }
    }

    /// `SET_SCANOUT_BLOB` with every value.
    #[must_use]
    pub fn with_scanout_blob(body: &SetScanoutBlob) -> Self {
        Self::new(kind::SET_SCANOUT_BLOB, body.as_bytes())
    }

    /// `RESOURCE_CREATE_3D` of one layer and one level.
    #[must_use]
    pub fn create_3d(resource: u32, target: u32, format: u32, width: u32, height: u32) -> Self {
        let one = || 1.into();
        let body = ResourceCreate3d {
            resource_id: resource.into(),
            target: target.into(),
            format: format.into(),
            bind: 0.into(),
            width: width.into(),
            height: height.into(),
            depth: one(),
            array_size: one(),
            last_level: 0.into(),
            nr_samples: 0.into(),
            flags: 0.into(),
            padding: 0.into(),
        };
        Self::new(kind::RESOURCE_CREATE_3D, body.as_bytes())
    }

    /// `TRANSFER_TO_HOST_3D` of a rectangle of the first layer: x, y, width, height.
    #[must_use]
    pub fn transfer_to_host_3d(context: u32, resource: u32, rect: [u32; 4], offset: u64) -> Self {
        Self::transfer_3d(kind::TRANSFER_TO_HOST_3D, context, resource, rect, offset)
    }

    /// `TRANSFER_FROM_HOST_3D` of a rectangle of the first layer: x, y, width, height.
    #[must_use]
    pub fn transfer_from_host_3d(context: u32, resource: u32, rect: [u32; 4], offset: u64) -> Self {
        Self::transfer_3d(kind::TRANSFER_FROM_HOST_3D, context, resource, rect, offset)
    }

    fn transfer_3d(kind: u32, context: u32, resource: u32, rect: [u32; 4], offset: u64) -> Self {
        let [x, y, w, h] = rect.map(Into::into);
        let body = TransferHost3d {
            region: Box3d { x, y, z: 0.into(), w, h, d: 1.into() },
            offset: offset.into(),
            resource_id: resource.into(),
            level: 0.into(),
            stride: 0.into(),
            layer_stride: 0.into(),
        };
        Self::new(kind, body.as_bytes()).context(context)
    }

    /// `MOVE_CURSOR`, with values that it must ignore.
    #[must_use]
    pub fn move_cursor(scanout: u32, position: (i32, i32)) -> Self {
        Self::new(kind::MOVE_CURSOR, cursor(scanout, 77, position, (1, 2)).as_bytes())
    }

    /// `UPDATE_CURSOR`.
    #[must_use]
    pub fn update_cursor(scanout: u32, resource: u32, position: (i32, i32), hot: (u32, u32)) -> Self {
        Self::new(kind::UPDATE_CURSOR, cursor(scanout, resource, position, hot).as_bytes())
    }

    fn on_resource(kind: u32, resource: u32) -> Self {
        Self::new(kind, ResourceId { resource_id: resource.into(), padding: 0.into() }.as_bytes())
    }
}

fn wire_rect(rect: [u32; 4]) -> Rect {
    let [x, y, width, height] = rect.map(Into::into);
    Rect { x, y, width, height }
}

fn cursor(scanout: u32, resource: u32, position: (i32, i32), hot: (u32, u32)) -> UpdateCursor {
    UpdateCursor {
        scanout_id: scanout.into(),
        x: position.0.cast_unsigned().into(),
        y: position.1.cast_unsigned().into(),
        pos_padding: 0.into(),
        resource_id: resource.into(),
        hot_x: hot.0.into(),
        hot_y: hot.1.into(),
        padding: 0.into(),
    }
}

fn entries(list: &[(u64, u32)]) -> Vec<u8> {
    let entry = |(addr, len): &(u64, u32)| MemEntry { addr: (*addr).into(), length: (*len).into(), padding: 0.into() };
    list.iter().flat_map(|piece| entry(piece).as_bytes().to_vec()).collect()
}
