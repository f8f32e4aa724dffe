//! The wire itself: each structure's size and each field's place, and each constant, against the kernel's headers
//! (`virtio-bindings`), or against the specification's figures where those are older than it.

use std::mem::offset_of;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_gpu::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_GPU;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_gpu_uring::protocol::config::{self, Config};
use virtio_gpu_uring::protocol::wire::{self, command_type as command, response_type as response};
use virtio_gpu_uring::protocol::{features, format::Format};
use virtio_gpu_uring::testing::Request;
use virtio_gpu_uring::{DEVICE_ID, SHM_ID_HOST_VISIBLE};

/// Bytes of the header in front of every body and payload.
const HEADER: usize = 24;

/// A structure of ours lies `$before` bytes into one of the kernel's, ends where that ends, and has these fields where that
/// has them.
macro_rules! lies_in {
    ($ours:ty, $before:expr, $theirs:ty: $($field:ident = $($path:tt).+),+) => {
        assert_eq!(size_of::<$ours>() + $before, size_of::<$theirs>(), "size of {}", stringify!($theirs));
        $(assert_eq!(
            offset_of!($ours, $field) + $before,
            offset_of!($theirs, $($path).+),
            "{}.{}", stringify!($theirs), stringify!($($path).+)
        );)+
    };
}

#[test]
fn no_request_has_another_layout_than_the_kernels() {
    lies_in!(wire::Header, 0, virtio_gpu_ctrl_hdr: kind = type_, flags = flags, fence_id = fence_id, ctx_id = ctx_id,
        ring_idx = ring_idx, padding = padding);
    lies_in!(wire::ResourceCreate2d, HEADER, virtio_gpu_resource_create_2d: resource_id = resource_id, format = format,
        width = width, height = height);
    lies_in!(wire::ResourceId, HEADER, virtio_gpu_resource_unref: resource_id = resource_id, padding = padding);
    lies_in!(wire::ResourceId, HEADER, virtio_gpu_resource_detach_backing: resource_id = resource_id);
    lies_in!(wire::ResourceId, HEADER, virtio_gpu_resource_assign_uuid: resource_id = resource_id);
    lies_in!(wire::ResourceId, HEADER, virtio_gpu_ctx_resource: resource_id = resource_id);
    lies_in!(wire::ResourceId, HEADER, virtio_gpu_resource_unmap_blob: resource_id = resource_id);
    lies_in!(wire::SetScanout, HEADER, virtio_gpu_set_scanout: rect = r, scanout_id = scanout_id,
        resource_id = resource_id);
    lies_in!(wire::ResourceFlush, HEADER, virtio_gpu_resource_flush: rect = r, resource_id = resource_id,
        padding = padding);
    lies_in!(wire::TransferToHost2d, HEADER, virtio_gpu_transfer_to_host_2d: rect = r, offset = offset,
        resource_id = resource_id, padding = padding);
    lies_in!(wire::AttachBacking, HEADER, virtio_gpu_resource_attach_backing: resource_id = resource_id,
        nr_entries = nr_entries);
    lies_in!(wire::MemEntry, 0, virtio_gpu_mem_entry: addr = addr, length = length, padding = padding);
    lies_in!(wire::Rect, 0, virtio_gpu_rect: x = x, y = y, width = width, height = height);
    lies_in!(wire::GetCapsetInfo, HEADER, virtio_gpu_get_capset_info: capset_index = capset_index, padding = padding);
    lies_in!(wire::GetCapset, HEADER, virtio_gpu_get_capset: capset_id = capset_id, capset_version = capset_version);
    lies_in!(wire::GetEdid, HEADER, virtio_gpu_cmd_get_edid: scanout = scanout, padding = padding);
    lies_in!(wire::UpdateCursor, HEADER, virtio_gpu_update_cursor: scanout_id = pos.scanout_id, x = pos.x, y = pos.y,
        pos_padding = pos.padding, resource_id = resource_id, hot_x = hot_x, hot_y = hot_y, padding = padding);
}

#[test]
fn no_request_of_blobs_and_contexts_has_another_layout_than_the_kernels() {
    lies_in!(wire::ResourceCreateBlob, HEADER, virtio_gpu_resource_create_blob: resource_id = resource_id,
        blob_mem = blob_mem, blob_flags = blob_flags, nr_entries = nr_entries, blob_id = blob_id, size = size);
    lies_in!(wire::SetScanoutBlob, HEADER, virtio_gpu_set_scanout_blob: rect = r, scanout_id = scanout_id,
        resource_id = resource_id, width = width, height = height, format = format, padding = padding,
        strides = strides, offsets = offsets);
    lies_in!(wire::ResourceMapBlob, HEADER, virtio_gpu_resource_map_blob: resource_id = resource_id, padding = padding,
        offset = offset);
    lies_in!(wire::CtxCreate, HEADER, virtio_gpu_ctx_create: nlen = nlen, context_init = context_init,
        debug_name = debug_name);
    lies_in!(wire::ResourceCreate3d, HEADER, virtio_gpu_resource_create_3d: resource_id = resource_id, target = target,
        format = format, bind = bind, width = width, height = height, depth = depth, array_size = array_size,
        last_level = last_level, nr_samples = nr_samples, flags = flags, padding = padding);
    lies_in!(wire::Box3d, 0, virtio_gpu_box: x = x, y = y, z = z, w = w, h = h, d = d);
    lies_in!(wire::TransferHost3d, HEADER, virtio_gpu_transfer_host_3d: region = box_, offset = offset,
        resource_id = resource_id, level = level, stride = stride, layer_stride = layer_stride);
    lies_in!(wire::Submit3d, HEADER, virtio_gpu_cmd_submit: size = size, padding = padding);
    assert_eq!(size_of::<virtio_gpu_ctx_destroy>(), HEADER, "a CTX_DESTROY is a header");
}

#[test]
fn no_response_has_another_layout_than_the_kernels() {
    lies_in!(wire::DisplayOne, 0, virtio_gpu_resp_display_info_virtio_gpu_display_one: rect = r, enabled = enabled,
        flags = flags);
    let displays = wire::MAX_SCANOUTS * size_of::<wire::DisplayOne>();
    assert_eq!(HEADER + displays, size_of::<virtio_gpu_resp_display_info>());
    lies_in!(wire::CapsetInfo, HEADER, virtio_gpu_resp_capset_info: capset_id = capset_id,
        max_version = capset_max_version, max_size = capset_max_size, padding = padding);
    lies_in!(wire::Edid, HEADER, virtio_gpu_resp_edid: size = size, padding = padding, edid = edid);
    lies_in!(wire::Uuid, HEADER, virtio_gpu_resp_resource_uuid: uuid = uuid);
    lies_in!(wire::MapInfo, HEADER, virtio_gpu_resp_map_info: map_info = map_info, padding = padding);
    assert_eq!(offset_of!(virtio_gpu_resp_capset, capset_data), HEADER, "a capability set follows the header");
}

#[test]
fn the_configuration_space_is_the_kernels_and_one_word_more() {
    // The kernel's is older than VIRTIO_GPU_F_BLOB_ALIGNMENT.
    assert_eq!((size_of::<virtio_gpu_config>(), size_of::<Config>()), (16, 20));
    assert_eq!(offset_of!(Config, events_read), offset_of!(virtio_gpu_config, events_read));
    assert_eq!(offset_of!(Config, events_clear), offset_of!(virtio_gpu_config, events_clear));
    assert_eq!(offset_of!(Config, num_scanouts), offset_of!(virtio_gpu_config, num_scanouts));
    assert_eq!(offset_of!(Config, num_capsets), offset_of!(virtio_gpu_config, num_capsets));
    assert_eq!(offset_of!(Config, blob_alignment), 16);
}

#[test]
fn no_structure_has_another_size_than_the_specification_says() {
    let body = |len: usize| HEADER + len;
    let sizes = [
        (size_of::<wire::Header>(), 24),
        (body(size_of::<wire::UpdateCursor>()), 56),
        (body(size_of::<wire::ResourceCreate2d>()), 40),
        (body(size_of::<wire::SetScanout>()), 48),
        (body(size_of::<wire::ResourceFlush>()), 48),
        (body(size_of::<wire::TransferToHost2d>()), 56),
        (size_of::<wire::MemEntry>(), 16),
        (body(size_of::<wire::AttachBacking>()), 32),
        (body(wire::MAX_SCANOUTS * size_of::<wire::DisplayOne>()), 408),
        (body(size_of::<wire::CtxCreate>()), 96),
        (body(size_of::<wire::ResourceCreate3d>()), 72),
        (body(size_of::<wire::TransferHost3d>()), 72),
        (body(size_of::<wire::Submit3d>()), 32),
        (body(size_of::<wire::CapsetInfo>()), 40),
        (body(size_of::<wire::Edid>()), 1056),
        (body(size_of::<wire::ResourceCreateBlob>()), 56),
        (body(size_of::<wire::SetScanoutBlob>()), 96),
        (body(size_of::<wire::ResourceMapBlob>()), 40),
        (body(size_of::<wire::MapInfo>()), 32),
        (body(size_of::<wire::Uuid>()), 40),
        (body(size_of::<wire::ResourceId>()), 32),
        (body(size_of::<wire::GetCapsetInfo>()), 32),
        (body(size_of::<wire::GetCapset>()), 32),
        (body(size_of::<wire::GetEdid>()), 32),
    ];
    for (at, (ours, specified)) in sizes.into_iter().enumerate() {
        assert_eq!(ours, specified, "number {at}");
    }
}

/// Asserts that a request's bytes are a structure of the kernel's with these values, and zero between them.
macro_rules! spells {
    ($request:expr => $theirs:ty: $($($path:tt).+ = $value:expr),+ $(; then $rest:expr)?) => {{
        let mut expected = vec![0; size_of::<$theirs>()];
        $(
            let (at, value) = (offset_of!($theirs, $($path).+), $value.to_le_bytes());
            expected[at..at + value.len()].copy_from_slice(&value);
        )+
        $(expected.extend_from_slice(&$rest);)?
        assert_eq!($request.bytes(), expected, "{}", stringify!($theirs));
    }};
}

#[test]
fn no_field_of_a_2d_request_is_in_another_byte_order_or_place() {
    let rect = [0x0102_0304, 0x0506_0708, 0x090a_0b0c, 0x0d0e_0f10];
    let [x, y, width, height]: [u32; 4] = rect;
    let request = Request::create_2d(0x1112_1314, 67, width, height).context(0x2122_2324).fenced(0x3132_3334_3536_3738);
    spells!(request.on_ring(63) => virtio_gpu_resource_create_2d: hdr.type_ = 0x101u32, hdr.flags = 3u32,
        hdr.fence_id = 0x3132_3334_3536_3738u64, hdr.ctx_id = 0x2122_2324u32, hdr.ring_idx = 63u8,
        resource_id = 0x1112_1314u32, format = 67u32, width = width, height = height);
    spells!(Request::set_scanout(15, 0x1112_1314, rect) => virtio_gpu_set_scanout: hdr.type_ = 0x103u32, r.x = x, r.y = y,
        r.width = width, r.height = height, scanout_id = 15u32, resource_id = 0x1112_1314u32);
    spells!(Request::flush(0x1112_1314, rect) => virtio_gpu_resource_flush: hdr.type_ = 0x104u32, r.x = x, r.y = y,
        r.width = width, r.height = height, resource_id = 0x1112_1314u32);
    spells!(Request::transfer_2d(0x1112_1314, rect, 0x2122_2324_2526_2728) => virtio_gpu_transfer_to_host_2d:
        hdr.type_ = 0x105u32, r.x = x, r.y = y, r.width = width, r.height = height,
        offset = 0x2122_2324_2526_2728u64, resource_id = 0x1112_1314u32);
    let entry = [&0x3132_3334_3536_3738u64.to_le_bytes()[..], &0x4142_4344u32.to_le_bytes(), &[0; 4]].concat();
    spells!(Request::attach_backing(7, &[(0x3132_3334_3536_3738, 0x4142_4344)]) => virtio_gpu_resource_attach_backing:
        hdr.type_ = 0x106u32, resource_id = 7u32, nr_entries = 1u32; then entry);
    spells!(Request::update_cursor(3, 0x1112_1314, (-2, 0x0506_0708), (63, 62)) => virtio_gpu_update_cursor:
        hdr.type_ = 0x300u32, pos.scanout_id = 3u32, pos.x = -2i32, pos.y = 0x0506_0708i32,
        resource_id = 0x1112_1314u32, hot_x = 63u32, hot_y = 62u32);
}

#[test]
fn no_field_of_a_blob_or_3d_request_is_in_another_byte_order_or_place() {
    spells!(Request::create_blob(7, 3, 6, 0x0102_0304_0506_0708, 0x1112_1314_1516_1718, &[]) =>
        virtio_gpu_resource_create_blob: hdr.type_ = 0x10cu32, resource_id = 7u32, blob_mem = 3u32, blob_flags = 6u32,
        blob_id = 0x0102_0304_0506_0708u64, size = 0x1112_1314_1516_1718u64);
    spells!(Request::set_scanout_blob(2, 7, [0x101, 0x202], 121, 0x303, 0x404) => virtio_gpu_set_scanout_blob:
        hdr.type_ = 0x10du32, r.width = 0x101u32, r.height = 0x202u32, scanout_id = 2u32, resource_id = 7u32,
        width = 0x101u32, height = 0x202u32, format = 121u32, strides = 0x303u32, offsets = 0x404u32);
    spells!(Request::map(7, 0x0102_0304_0506_0708) => virtio_gpu_resource_map_blob: hdr.type_ = 0x208u32,
        resource_id = 7u32, offset = 0x0102_0304_0506_0708u64);
    spells!(Request::create_3d(7, 2, 67, 0x101, 0x202) => virtio_gpu_resource_create_3d: hdr.type_ = 0x204u32,
        resource_id = 7u32, target = 2u32, format = 67u32, width = 0x101u32, height = 0x202u32, depth = 1u32,
        array_size = 1u32);
    spells!(Request::transfer_from_host_3d(9, 7, [1, 2, 3, 4], 0x0102_0304_0506_0708) => virtio_gpu_transfer_host_3d:
        hdr.type_ = 0x206u32, hdr.ctx_id = 9u32, box_.x = 1u32, box_.y = 2u32, box_.w = 3u32, box_.h = 4u32,
        box_.d = 1u32, offset = 0x0102_0304_0506_0708u64, resource_id = 7u32);
    spells!(Request::submit(9, b"stream") => virtio_gpu_cmd_submit: hdr.type_ = 0x207u32, hdr.ctx_id = 9u32,
        size = 6u32; then *b"stream");
    spells!(Request::ctx_create(9, 0x105) => virtio_gpu_ctx_create: hdr.type_ = 0x200u32, hdr.ctx_id = 9u32,
        nlen = 4u32, context_init = 0x105u32, debug_name = u32::from_le_bytes(*b"test"));
}

#[test]
fn no_command_type_is_another_number() {
    let controls = [
        (command::GET_DISPLAY_INFO, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_GET_DISPLAY_INFO),
        (command::RESOURCE_CREATE_2D, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_CREATE_2D),
        (command::RESOURCE_UNREF, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_UNREF),
        (command::SET_SCANOUT, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_SET_SCANOUT),
        (command::RESOURCE_FLUSH, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_FLUSH),
        (command::TRANSFER_TO_HOST_2D, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D),
        (command::RESOURCE_ATTACH_BACKING, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING),
        (command::RESOURCE_DETACH_BACKING, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_DETACH_BACKING),
        (command::GET_CAPSET_INFO, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_GET_CAPSET_INFO),
        (command::GET_CAPSET, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_GET_CAPSET),
        (command::GET_EDID, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_GET_EDID),
        (command::RESOURCE_ASSIGN_UUID, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_ASSIGN_UUID),
        (command::RESOURCE_CREATE_BLOB, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB),
        (command::SET_SCANOUT_BLOB, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_SET_SCANOUT_BLOB),
    ];
    let contexts = [
        (command::CTX_CREATE, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_CTX_CREATE),
        (command::CTX_DESTROY, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_CTX_DESTROY),
        (command::CTX_ATTACH_RESOURCE, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_CTX_ATTACH_RESOURCE),
        (command::CTX_DETACH_RESOURCE, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_CTX_DETACH_RESOURCE),
        (command::RESOURCE_CREATE_3D, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_CREATE_3D),
        (command::TRANSFER_TO_HOST_3D, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_TRANSFER_TO_HOST_3D),
        (command::TRANSFER_FROM_HOST_3D, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_TRANSFER_FROM_HOST_3D),
        (command::SUBMIT_3D, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_SUBMIT_3D),
        (command::RESOURCE_MAP_BLOB, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB),
        (command::RESOURCE_UNMAP_BLOB, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_RESOURCE_UNMAP_BLOB),
    ];
    let cursors = [
        (command::UPDATE_CURSOR, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_UPDATE_CURSOR),
        (command::MOVE_CURSOR, virtio_gpu_ctrl_type_VIRTIO_GPU_CMD_MOVE_CURSOR),
    ];
    for (first, family) in [(0x100, &controls[..]), (0x200, &contexts), (0x300, &cursors)] {
        for (number, &(ours, theirs)) in (first..).zip(family) {
            assert_eq!((ours, theirs), (number, number));
        }
    }
}

#[test]
fn no_response_type_is_another_number() {
    let good = [
        (response::OK_NODATA, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_OK_NODATA),
        (response::OK_DISPLAY_INFO, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_OK_DISPLAY_INFO),
        (response::OK_CAPSET_INFO, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_OK_CAPSET_INFO),
        (response::OK_CAPSET, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_OK_CAPSET),
        (response::OK_EDID, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_OK_EDID),
        (response::OK_RESOURCE_UUID, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_OK_RESOURCE_UUID),
        (response::OK_MAP_INFO, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_OK_MAP_INFO),
    ];
    let bad = [
        (response::ERR_UNSPEC, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_ERR_UNSPEC),
        (response::ERR_OUT_OF_MEMORY, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY),
        (response::ERR_INVALID_SCANOUT_ID, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID),
        (response::ERR_INVALID_RESOURCE_ID, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID),
        (response::ERR_INVALID_CONTEXT_ID, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_ERR_INVALID_CONTEXT_ID),
        (response::ERR_INVALID_PARAMETER, virtio_gpu_ctrl_type_VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER),
    ];
    for (first, family) in [(0x1100, &good[..]), (0x1200, &bad)] {
        for (number, &(ours, theirs)) in (first..).zip(family) {
            assert_eq!((ours, theirs), (number, number));
        }
    }
}

#[test]
fn no_flag_limit_or_id_is_another_number() {
    let numbers = [
        (wire::FLAG_FENCE, VIRTIO_GPU_FLAG_FENCE, 1),
        (wire::FLAG_INFO_RING_IDX, VIRTIO_GPU_FLAG_INFO_RING_IDX, 2),
        (wire::MAX_SCANOUTS as u32, VIRTIO_GPU_MAX_SCANOUTS, 16),
        (wire::BLOB_MEM_GUEST, VIRTIO_GPU_BLOB_MEM_GUEST, 1),
        (wire::BLOB_MEM_HOST3D, VIRTIO_GPU_BLOB_MEM_HOST3D, 2),
        (wire::BLOB_MEM_HOST3D_GUEST, VIRTIO_GPU_BLOB_MEM_HOST3D_GUEST, 3),
        (wire::BLOB_FLAG_MAPPABLE, VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE, 1),
        (wire::BLOB_FLAG_SHAREABLE, VIRTIO_GPU_BLOB_FLAG_USE_SHAREABLE, 2),
        (wire::BLOB_FLAG_CROSS_DEVICE, VIRTIO_GPU_BLOB_FLAG_USE_CROSS_DEVICE, 4),
        (wire::MAP_CACHE_CACHED, VIRTIO_GPU_MAP_CACHE_CACHED, 1),
        (wire::CAPSET_CROSS_DOMAIN, VIRTIO_GPU_CAPSET_CROSS_DOMAIN, 5),
        (wire::CONTEXT_INIT_CAPSET_MASK, VIRTIO_GPU_CONTEXT_INIT_CAPSET_ID_MASK, 0xff),
        (config::EVENT_DISPLAY, VIRTIO_GPU_EVENT_DISPLAY, 1),
        (SHM_ID_HOST_VISIBLE.into(), virtio_gpu_shm_id_VIRTIO_GPU_SHM_ID_HOST_VISIBLE, 1),
        (DEVICE_ID, VIRTIO_ID_GPU, 16),
    ];
    for (at, (ours, theirs, specified)) in numbers.into_iter().enumerate() {
        assert_eq!((ours, theirs), (specified, specified), "number {at}");
    }
    assert_eq!((wire::RING_COUNT, wire::EDID_ROOM), (64, 1024));
    let bits = [
        (features::VIRGL, VIRTIO_GPU_F_VIRGL, 0),
        (features::EDID, VIRTIO_GPU_F_EDID, 1),
        (features::RESOURCE_UUID, VIRTIO_GPU_F_RESOURCE_UUID, 2),
        (features::RESOURCE_BLOB, VIRTIO_GPU_F_RESOURCE_BLOB, 3),
        (features::CONTEXT_INIT, VIRTIO_GPU_F_CONTEXT_INIT, 4),
        // The kernel's headers here are older than this one.
        (features::BLOB_ALIGNMENT, 5, 5),
        (features::INDIRECT_DESC, VIRTIO_RING_F_INDIRECT_DESC, 28),
        (features::EVENT_IDX, VIRTIO_RING_F_EVENT_IDX, 29),
        (features::VERSION_1, VIRTIO_F_VERSION_1, 32),
    ];
    for (ours, theirs, specified) in bits {
        assert_eq!((ours, theirs), (1 << specified, specified));
    }
}

#[test]
fn no_format_is_another_number() {
    let formats = [
        (Format::B8G8R8A8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM, 1),
        (Format::B8G8R8X8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM, 2),
        (Format::A8R8G8B8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM, 3),
        (Format::X8R8G8B8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM, 4),
        (Format::R8G8B8A8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM, 67),
        (Format::X8B8G8R8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM, 68),
        (Format::A8B8G8R8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM, 121),
        (Format::R8G8B8X8, virtio_gpu_formats_VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM, 134),
    ];
    assert_eq!(formats.map(|(format, ..)| format), Format::ALL);
    for (ours, theirs, specified) in formats {
        assert_eq!((ours.wire(), theirs), (specified, specified));
    }
}
