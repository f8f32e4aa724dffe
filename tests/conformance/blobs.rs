//! Items 38 to 44: what blobs can be made of, and how long they may be.

use virtio_gpu_uring::protocol::features::{BLOB_ALIGNMENT, CONTEXT_INIT, OFFERED, VIRGL};
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_UNSPEC,
};
use virtio_gpu_uring::protocol::wire::{
    BLOB_FLAG_MAPPABLE, BLOB_FLAG_SHAREABLE, BLOB_MEM_GUEST as GUEST, BLOB_MEM_HOST3D as HOST3D,
    BLOB_MEM_HOST3D_GUEST as HOST3D_GUEST,
};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request};
use virtio_gpu_uring::{Builder, HostWindow};
use vm_memory::GuestAddress;

use crate::honest::{Watch, honest, make_object};
use crate::kit::{PAGE, WINDOW, done, memfd, offer, pattern, refused};

/// Every flag that the specification knows.
const FLAGS: u32 = 7;

/// A guest with a renderer and a window, and in context 1 an object 9.
fn with_renderer() -> (Guest, Watch, HostWindow) {
    let (renderer, watch) = honest();
    let window = HostWindow::new(WINDOW as usize).expect("a window");
    let mut guest = Guest::start(Builder::new().renderer(renderer).window(window.clone()));
    done(&mut guest, &Request::ctx_create(1, 2));
    done(&mut guest, &Request::submit(1, &make_object(9, &pattern(PAGE as usize, 9))));
    let _ = watch.take();
    (guest, watch, window)
}

/// Nothing is there under the id.
#[track_caller]
fn assert_free(guest: &mut Guest, id: u32) {
    refused(guest, &Request::unref(id), ERR_INVALID_RESOURCE_ID);
}

#[test]
fn spec_38_memory_of_an_unknown_kind_is_never_a_blob() {
    let (mut guest, watch, _) = with_renderer();
    let page = guest.page_range(4096);
    for memory in [0, 4, 5, 0x101, 1 << 31, u32::MAX] {
        for list in [&[page][..], &[]] {
            let create = Request::create_blob(1, memory, 0, 9, PAGE, list).context(1);
            refused(&mut guest, &create, ERR_INVALID_PARAMETER);
        }
    }
    assert_free(&mut guest, 1);
    assert!(watch.take().is_empty(), "the renderer was asked");
}

#[test]
fn spec_39_host_memory_is_never_had_without_virgl() {
    let features = OFFERED & !(VIRGL | CONTEXT_INIT);
    let (renderer, watch) = honest();
    let (renderer_too, watch_too) = honest();
    for (builder, watch) in
        [(Builder::new().renderer(renderer), watch), (Builder::new().renderer(renderer_too).withhold(VIRGL), watch_too)]
    {
        let mut guest = Guest::with_options(builder, GuestOptions { features, ..GuestOptions::default() });
        let page = guest.page_range(4096);
        let id = offer(&guest, memfd("spec-39", &[1; 16]));
        for (memory, blob_id) in [(HOST3D, 9), (HOST3D, id), (HOST3D_GUEST, 9), (HOST3D_GUEST, id)] {
            for context in [0, 1] {
                // The specification has no code for it; what was not negotiated is ERR_UNSPEC here.
                let create = Request::create_blob(1, memory, 0, blob_id, PAGE, &[]).context(context);
                refused(&mut guest, &create, ERR_UNSPEC);
            }
        }
        assert_free(&mut guest, 1);
        done(&mut guest, &Request::guest_blob(1, PAGE, &[page]));
        assert!(watch.take().is_empty(), "the renderer was asked");
    }
}

#[test]
fn spec_39_guest_memory_is_always_a_blob() {
    let (mut guest, watch, _) = with_renderer();
    let page = guest.page_range(4096);
    for (id, flags) in (1..).zip(0..=FLAGS) {
        // What it would be of a host object, and whose, does not matter.
        done(&mut guest, &Request::create_blob(id, GUEST, flags, u64::MAX, PAGE, &[page]).context(77));
    }
    assert!(watch.take().is_empty(), "the renderer was asked");
}

#[test]
fn spec_40_a_guest_blob_never_has_less_memory_than_it_is_long() {
    let mut guest = Guest::start(Builder::new());
    let (address, _) = guest.page_range(4 * PAGE as usize);
    let end = guest.ram().end().0;
    for list in [
        &[(address, 4095)][..],
        &[(address, 4096), (address, 4095)],
        &[(address, 8192), (end, 1)],
        &[(end - 100, 8192)],
        &[(u64::MAX - 4095, 8192)],
        &[(address, 0), (address, 8192)],
    ] {
        refused(&mut guest, &Request::guest_blob(1, 2 * PAGE, list), ERR_INVALID_PARAMETER);
        assert_free(&mut guest, 1);
    }
    // More than it is long is no error, nor are odd pieces.
    done(&mut guest, &Request::guest_blob(1, PAGE, &[(address, 8192)]));
    done(&mut guest, &Request::guest_blob(2, PAGE, &[(address + 1, 1), (address + 77, 4095)]));
}

#[test]
fn spec_40_a_guest_blobs_memory_may_always_come_later_and_go_again() {
    let mut guest = Guest::start(Builder::new());
    let bytes = pattern(2 * PAGE as usize, 1);
    let (address, _) = guest.page_range(bytes.len());
    guest.ram().write(GuestAddress(address), &bytes);
    done(&mut guest, &Request::guest_blob(1, 2 * PAGE, &[]));
    refused(&mut guest, &Request::detach_backing(1), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::attach_backing(1, &[(address, 8191)]), ERR_INVALID_PARAMETER);
    // Upper half first.
    done(&mut guest, &Request::attach_backing(1, &[(address + PAGE, 4096), (address, 4096)]));
    let read = guest.device().read_blob(1, ..).wait().expect("a device").expect("a blob");
    let (lower, upper) = bytes.split_at(4096);
    assert_eq!(read, [upper, lower].concat());
    refused(&mut guest, &Request::attach_backing(1, &[(address, 8192)]), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::detach_backing(1));
    refused(&mut guest, &Request::detach_backing(1), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::attach_backing(1, &[(address, 8192)]));
    assert_eq!(guest.device().read_blob(1, ..).wait().expect("a device").expect("a blob"), bytes);
}

#[test]
fn spec_40_a_shadow_never_loses_its_bytes_whether_it_comes_at_once_or_later() {
    let (mut guest, watch, _) = with_renderer();
    let host = pattern(PAGE as usize, 9);
    let (at_once, later) = (guest.page_range(4096), guest.page_range(4096));
    done(&mut guest, &Request::create_blob(1, HOST3D_GUEST, 0, 9, PAGE, &[at_once]).context(1));
    done(&mut guest, &Request::create_blob(2, HOST3D_GUEST, 0, 9, PAGE, &[]).context(1));
    refused(&mut guest, &Request::transfer_from_host_3d(1, 2, [0, 0, 4096, 1], 0), ERR_INVALID_PARAMETER);
    let end = guest.ram().end().0;
    refused(&mut guest, &Request::attach_backing(2, &[(end, 4096)]), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::attach_backing(2, &[later]));
    for (id, page) in [(1, at_once), (2, later)] {
        done(&mut guest, &Request::transfer_from_host_3d(1, id, [0, 0, 4096, 1], 0));
        assert_eq!(guest.ram().read(GuestAddress(page.0), 4096), host);
        // One byte there and back, elsewhere.
        guest.ram().write(GuestAddress(page.0 + 100), &[0xee]);
        done(&mut guest, &Request::transfer_to_host_3d(1, id, [7, 0, 1, 1], 100));
        done(&mut guest, &Request::transfer_from_host_3d(1, id, [7, 0, 1, 1], 200));
        assert_eq!(guest.ram().read(GuestAddress(page.0 + 200), 1), [0xee]);
        refused(&mut guest, &Request::attach_backing(id, &[page]), ERR_INVALID_PARAMETER);
        done(&mut guest, &Request::detach_backing(id));
        refused(&mut guest, &Request::transfer_from_host_3d(1, id, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
    }
    // Less than the blob is long shadows nothing.
    let short = [(at_once.0, 4095)];
    refused(&mut guest, &Request::create_blob(3, HOST3D_GUEST, 0, 9, PAGE, &short).context(1), ERR_INVALID_PARAMETER);
    assert_free(&mut guest, 3);
    let calls = watch.take();
    assert!(!calls.iter().any(|call| call.contains("blob 3")), "the renderer was asked for a blob that was refused");
}

#[test]
fn spec_40_a_shadow_for_a_blob_is_never_shorter_than_the_blob() {
    let (mut guest, _watch, _) = with_renderer();
    let page = guest.page_range(4096);
    done(&mut guest, &Request::create_blob(1, HOST3D_GUEST, 0, 9, PAGE, &[]).context(1));
    refused(&mut guest, &Request::attach_backing(1, &[(page.0, 4095)]), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::detach_backing(1), ERR_INVALID_PARAMETER);
}

#[test]
fn spec_40_host_memory_never_has_guest_memory_behind_it() {
    let (mut guest, _watch, _) = with_renderer();
    let page = guest.page_range(4096);
    refused(&mut guest, &Request::create_blob(1, HOST3D, 0, 9, PAGE, &[page]).context(1), ERR_INVALID_PARAMETER);
    assert_free(&mut guest, 1);
    done(&mut guest, &Request::host_blob(1, 1, 9, PAGE));
    refused(&mut guest, &Request::attach_backing(1, &[page]), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::detach_backing(1), ERR_INVALID_PARAMETER);
}

#[test]
fn spec_41_a_host_blob_is_never_made_of_another_contexts_object() {
    let (mut guest, watch, _) = with_renderer();
    done(&mut guest, &Request::ctx_create(2, 2));
    done(&mut guest, &Request::submit(2, &make_object(9, b"of the other")));
    let _ = watch.take();
    for memory in [HOST3D, HOST3D_GUEST] {
        for context in [0, 3, u32::MAX] {
            let create = Request::create_blob(1, memory, 0, 9, PAGE, &[]).context(context);
            refused(&mut guest, &create, ERR_INVALID_CONTEXT_ID);
        }
        assert!(watch.take().is_empty(), "the renderer was asked");
        // An object that is not there: the specification has no code for it.
        refused(&mut guest, &Request::create_blob(1, memory, 0, 8, PAGE, &[]).context(1), ERR_INVALID_PARAMETER);
        assert_free(&mut guest, 1);
        let _ = watch.take();
    }
    done(&mut guest, &Request::host_blob(1, 1, 9, PAGE));
    done(&mut guest, &Request::host_blob(2, 2, 9, PAGE));
    done(&mut guest, &Request::create_blob(3, HOST3D_GUEST, 4, 9, PAGE, &[]).context(2));
    let calls = ["blob 1 of 1/9: 4096 bytes, flags 0x3", "blob 2 of 2/9: 4096 bytes, flags 0x3"];
    let shadowed = "shadowed blob 3 of 2/9: 4096 bytes, flags 0x4";
    assert_eq!(watch.take(), [calls[0], calls[1], shadowed]);
    let read = |id| guest.device().read_blob(id, 0..12).wait().expect("a device").expect("a blob");
    assert_eq!(read(1), pattern(12, 9));
    assert_eq!(read(2), b"of the other");
}

#[test]
fn spec_41_an_object_of_a_context_without_objects_is_never_found() {
    let mut guest = Guest::start(Builder::new());
    // Cross-domain, and one that nobody has a stream for.
    done(&mut guest, &Request::ctx_create(1, 5));
    done(&mut guest, &Request::ctx_create(2, 0));
    for context in [1, 2] {
        for memory in [HOST3D, HOST3D_GUEST] {
            for blob_id in [0, 1, u64::MAX >> 1, u64::MAX] {
                let create = Request::create_blob(1, memory, 0, blob_id, PAGE, &[]).context(context);
                refused(&mut guest, &create, ERR_INVALID_PARAMETER);
            }
        }
    }
    assert_free(&mut guest, 1);
    // A buffer that the VMM offers is one object: it is there once.
    let id = offer(&guest, memfd("spec-41", &[1; 16]));
    refused(&mut guest, &Request::host_blob(3, 1, id, PAGE), ERR_INVALID_CONTEXT_ID);
    refused(&mut guest, &Request::host_blob(1, 1, id, 2 * PAGE), ERR_INVALID_PARAMETER);
    let shadowed = Request::create_blob(1, HOST3D_GUEST, 0, id, PAGE, &[]).context(1);
    refused(&mut guest, &shadowed, ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::host_blob(1, 1, id, PAGE));
    refused(&mut guest, &Request::host_blob(1, 2, id, PAGE), ERR_INVALID_PARAMETER);
}

#[test]
fn spec_42_a_flag_that_the_specification_does_not_know_is_never_taken() {
    let (mut guest, watch, _) = with_renderer();
    let page = guest.page_range(4096);
    for flags in [8, 0x10, FLAGS | 8, 1 << 31, u32::MAX] {
        for (memory, list) in [(GUEST, &[page][..]), (HOST3D, &[]), (HOST3D_GUEST, &[page])] {
            let create = Request::create_blob(1, memory, flags, 9, PAGE, list).context(1);
            refused(&mut guest, &create, ERR_INVALID_PARAMETER);
        }
    }
    assert_free(&mut guest, 1);
    assert!(watch.take().is_empty(), "the renderer was asked");
}

#[test]
fn spec_42_what_was_not_made_for_mapping_is_never_mapped() {
    let (mut guest, _watch, window) = with_renderer();
    for (id, flags) in (1..).zip(0..=FLAGS) {
        done(&mut guest, &Request::create_blob(id, HOST3D, flags, 9, PAGE, &[]).context(1));
        let mut seen = [0; 16];
        if flags & BLOB_FLAG_MAPPABLE == 0 {
            refused(&mut guest, &Request::map(id, 0x3000), ERR_INVALID_PARAMETER);
            window.read(0x3000, &mut seen).expect("in the window");
            assert_eq!(seen, [0; 16]);
        } else {
            guest.map(id, 0x3000);
            window.read(0x3000, &mut seen).expect("in the window");
            assert_eq!(seen[..], pattern(16, 9));
            done(&mut guest, &Request::unmap(id));
        }
    }
}

#[test]
fn spec_43_a_3d_transfer_never_reaches_a_blob_that_is_not_the_renderers() {
    let (mut guest, watch, _) = with_renderer();
    let page = guest.page_range(4096);
    done(&mut guest, &Request::ctx_create(2, 5));
    let id = offer(&guest, memfd("spec-43", &[1; 16]));
    done(&mut guest, &Request::host_blob(2, 1, id, PAGE));
    done(&mut guest, &Request::create_blob(2, HOST3D_GUEST, 0, 9, PAGE, &[page]).context(1));
    done(&mut guest, &Request::host_blob(1, 3, 9, PAGE));
    for (transfer, name) in [
        (Request::transfer_to_host_3d as fn(u32, u32, [u32; 4], u64) -> Request, "ToHost"),
        (Request::transfer_from_host_3d, "FromHost"),
    ] {
        let _ = watch.take();
        refused(&mut guest, &transfer(1, 1, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
        assert!(watch.take().is_empty(), "the renderer was asked");
        refused(&mut guest, &transfer(7, 2, [0, 0, 1, 1], 0), ERR_INVALID_CONTEXT_ID);
        refused(&mut guest, &transfer(1, 9, [0, 0, 1, 1], 0), ERR_INVALID_RESOURCE_ID);
        refused(&mut guest, &transfer(1, 0, [0, 0, 1, 1], 0), ERR_INVALID_RESOURCE_ID);
        assert!(watch.take().is_empty(), "the renderer was asked");
        done(&mut guest, &transfer(1, 2, [3, 0, 5, 1], 40));
        assert_eq!(watch.take(), [format!("transfer {name} 2 in 1: 5x1+3+0 at 40")]);
        // What the renderer itself refuses: a part outside, memory outside, a blob without a shadow.
        for (id, rect, offset) in
            [(2, [4095, 0, 2, 1], 0), (2, [u32::MAX, 0, 2, 1], 0), (2, [0, 0, 2, 1], 4095), (2, [0, 0, 2, 1], u64::MAX)]
        {
            refused(&mut guest, &transfer(1, id, rect, offset), ERR_INVALID_PARAMETER);
        }
        refused(&mut guest, &transfer(1, 3, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
    }
}

#[test]
fn spec_44_what_is_not_aligned_is_never_created_nor_mapped() {
    const ALIGNMENT: u64 = 16384;
    let window = HostWindow::new(WINDOW as usize).expect("a window");
    let mut guest = Guest::start(Builder::new().window(window.clone()).blob_alignment(ALIGNMENT));
    done(&mut guest, &Request::ctx_create(1, 5));
    let list = [guest.page_range(2 * ALIGNMENT as usize)];
    let id = offer(&guest, memfd("spec-44", &[4; 16384]));
    for size in [0, 1, PAGE, ALIGNMENT - 1, ALIGNMENT + 1, ALIGNMENT + PAGE, (1 << 63) + 1, u64::MAX] {
        refused(&mut guest, &Request::guest_blob(1, size, &list), ERR_INVALID_PARAMETER);
        refused(&mut guest, &Request::guest_blob(1, size, &[]), ERR_INVALID_PARAMETER);
        refused(&mut guest, &Request::host_blob(1, 1, id, size), ERR_INVALID_PARAMETER);
    }
    assert_free(&mut guest, 1);
    done(&mut guest, &Request::guest_blob(1, 2 * ALIGNMENT, &list));
    done(&mut guest, &Request::host_blob(1, 2, id, ALIGNMENT));
    for offset in [1, 4095, PAGE, ALIGNMENT - PAGE, ALIGNMENT + PAGE, WINDOW - PAGE, u64::MAX - 4095] {
        refused(&mut guest, &Request::map(2, offset), ERR_INVALID_PARAMETER);
    }
    let mut all = vec![0; WINDOW as usize];
    window.read(0, &mut all).expect("the window");
    assert!(all.iter().all(|byte| *byte == 0), "something is mapped");
    guest.map(2, 3 * ALIGNMENT);
}

#[test]
fn spec_44_a_driver_without_the_feature_is_never_held_to_more_than_pages() {
    let builder = Builder::new().blob_alignment(16384);
    let features = OFFERED & !BLOB_ALIGNMENT;
    let mut guest = Guest::with_options(builder, GuestOptions { features, ..GuestOptions::default() });
    done(&mut guest, &Request::ctx_create(1, 5));
    let page = guest.page_range(4096);
    done(&mut guest, &Request::guest_blob(1, PAGE, &[page]));
    let id = offer(&guest, memfd("spec-44", &[4; 16]));
    done(&mut guest, &Request::create_blob(2, HOST3D, BLOB_FLAG_SHAREABLE, id, PAGE, &[]).context(1));
}
