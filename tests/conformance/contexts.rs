//! Items 48 and 49: contexts, their command streams, and the renderer's own resources.

use virtio_gpu_uring::protocol::features::{CONTEXT_INIT, OFFERED};
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY, ERR_UNSPEC,
};
use virtio_gpu_uring::protocol::wire::{CtxCreate, command_type as kind};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Request, Shown, Viewer};
use virtio_gpu_uring::{Builder, Limits};
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

use crate::honest::{ENDLESS, NO_BACKING, REFUSED, Watch, honest, make_object};
use crate::kit::{
    B8G8R8X8, PAGE, area, assert_untouched, crop, done, frame, paste, pattern, refused, screens, with_screen,
};

fn with_renderer() -> (Guest, Watch, Viewer) {
    let (renderer, watch) = honest();
    let limits = Limits { rendered_bytes: u64::MAX, ..Limits::default() };
    let (builder, mut viewers) = screens(Builder::new().limits(limits).renderer(renderer), 1);
    (Guest::start(builder), watch, viewers.remove(0))
}

/// CTX_CREATE with any name.
fn create(context: u32, context_init: u32, name: &[u8], nlen: u32) -> Request {
    let mut debug_name = [0; 64];
    debug_name[..name.len()].copy_from_slice(name);
    let body = CtxCreate { nlen: nlen.into(), context_init: context_init.into(), debug_name };
    Request::new(kind::CTX_CREATE, body.as_bytes()).context(context)
}

#[test]
fn spec_48_a_context_is_never_made_under_another_id_or_for_another_stream() {
    let (mut guest, watch, _viewer) = with_renderer();
    done(&mut guest, &create(1, 2, b"glxgears", 8));
    // Only the low eight bits name a capability set.
    done(&mut guest, &create(u32::MAX, 0xffff_ff04, b"vulkan", 6));
    // 0: the device decides, and here that is the renderer's matter.
    done(&mut guest, &create(3, 0, b"", 0));
    assert_eq!(
        watch.take(),
        ["context 1 of 2 named glxgears", "context 4294967295 of 4 named vulkan", "context 3 of 0 named ",]
    );
    done(&mut guest, &create(5, 5, b"pipewire", 8));
    assert!(watch.take().is_empty(), "the device's own context went to the renderer");
    for id in [0, 1, 3, 5, u32::MAX] {
        for capset in [0, 2, 5] {
            refused(&mut guest, &create(id, capset, b"again", 5), ERR_INVALID_CONTEXT_ID);
        }
    }
    // A capability set that the device does not have: the specification has no code for it.
    for capset in [1, 3, 6, 64, 255] {
        refused(&mut guest, &create(9, capset, b"none", 4), ERR_INVALID_PARAMETER);
    }
    assert!(watch.take().is_empty(), "the renderer was asked");
    // Each handles its stream from now on, and no refused one is there.
    done(&mut guest, &Request::submit(1, &make_object(1, b"x")));
    done(&mut guest, &Request::submit(u32::MAX, &make_object(1, b"xy")));
    assert_eq!(watch.take(), ["9 bytes for 1", "10 bytes for 4294967295"]);
    refused(&mut guest, &Request::submit(9, b""), ERR_INVALID_CONTEXT_ID);
    refused(&mut guest, &Request::submit(5, b"not of cross-domain"), ERR_INVALID_PARAMETER);
}

#[test]
fn spec_48_a_name_never_matters() {
    let (mut guest, watch, _viewer) = with_renderer();
    let long = [b'n'; 64];
    for (id, (name, nlen)) in
        (1..).zip([(&long[..], 64), (&long, 65), (&long, u32::MAX), (b"\xff\xfe\0hidden", 9), (b"shorter", 2)])
    {
        done(&mut guest, &create(id, 2, name, nlen));
    }
    let names: Vec<String> =
        watch.take().iter().map(|call| call.split_once("named ").expect("a name").1.into()).collect();
    let long = "n".repeat(64);
    assert_eq!(names, [&long, &long, &long, "\u{fffd}\u{fffd}", "sh"]);
}

#[test]
fn spec_48_a_creation_that_is_refused_never_takes_a_context_with_it() {
    let (mut guest, watch, _viewer) = with_renderer();
    // While the renderer makes the context, the same is asked for in a request that ends too early.
    watch.shut(true);
    let creation = guest.submit(&create(1, 2, b"good", 4));
    let short = create(1, 2, b"short", 5).fenced(7).bytes();
    crate::kit::raw(&mut guest, Lane::Control, &short[..90], 24).expect_error(ERR_INVALID_PARAMETER);
    watch.shut(false);
    guest.wait(creation).ok();
    guest.command(&Request::submit(1, b"").fenced(8).on_ring(0)).ok();
    // Two that follow each other, of which the renderer refuses the first.
    watch.shut(true);
    let first = guest.submit(&create(2, 2, REFUSED.as_bytes(), 7));
    let second = guest.submit(&create(2, 2, b"good", 4));
    watch.shut(false);
    guest.wait(first).expect_error(ERR_INVALID_PARAMETER);
    guest.wait(second).ok();
    guest.command(&Request::submit(2, b"").fenced(9).on_ring(0)).ok();
}

#[test]
fn spec_48_without_context_init_no_capset_is_ever_chosen_by_the_guest() {
    let (renderer, watch) = honest();
    let options = GuestOptions { features: OFFERED & !CONTEXT_INIT, ..GuestOptions::default() };
    let mut guest = Guest::with_options(Builder::new().renderer(renderer), options);
    for capset in [2, 4, 5] {
        refused(&mut guest, &create(1, capset, b"", 0), ERR_UNSPEC);
    }
    assert!(watch.take().is_empty(), "the renderer was asked");
    done(&mut guest, &create(1, 0, b"", 0));
    assert_eq!(watch.take(), ["context 1 of 0 named "]);
}

#[test]
fn spec_49_a_context_that_is_not_there_is_never_served() {
    let (mut guest, watch, _viewer) = with_renderer();
    let page = guest.page_range(4096);
    done(&mut guest, &Request::ctx_create(1, 2));
    done(&mut guest, &Request::ctx_create(2, 2));
    done(&mut guest, &Request::create_3d(1, 2, 1, 8, 8));
    done(&mut guest, &Request::attach_backing(1, &[page]));
    done(&mut guest, &Request::ctx_destroy(2));
    let _ = watch.take();
    for context in [0, 2, 3, u32::MAX] {
        for request in [
            Request::ctx_destroy(context),
            Request::ctx_attach(context, 1),
            Request::ctx_detach(context, 1),
            Request::submit(context, &make_object(1, b"x")),
            Request::submit(context, b""),
            Request::host_blob(context, 9, 1, PAGE),
        ] {
            refused(&mut guest, &request, ERR_INVALID_CONTEXT_ID);
        }
    }
    for context in [2, 3, u32::MAX] {
        for transfer in [Request::transfer_to_host_3d, Request::transfer_from_host_3d] {
            refused(&mut guest, &transfer(context, 1, [0, 0, 8, 8], 0), ERR_INVALID_CONTEXT_ID);
        }
    }
    assert!(watch.take().is_empty(), "the renderer was asked");
    // The id is free again.
    done(&mut guest, &Request::ctx_create(2, 4));
}

#[test]
fn spec_49_a_resource_is_never_attached_twice_nor_detached_where_it_is_not() {
    let (mut guest, watch, _viewer) = with_renderer();
    done(&mut guest, &Request::ctx_create(1, 2));
    done(&mut guest, &Request::ctx_create(2, 2));
    done(&mut guest, &Request::create_3d(1, 2, 1, 8, 8));
    done(&mut guest, &Request::create_2d(2, 1, 8, 8));
    let _ = watch.take();
    for id in [0, 3, u32::MAX] {
        refused(&mut guest, &Request::ctx_attach(1, id), ERR_INVALID_RESOURCE_ID);
        refused(&mut guest, &Request::ctx_detach(1, id), ERR_INVALID_RESOURCE_ID);
    }
    // The specification is silent on what follows.
    refused(&mut guest, &Request::ctx_detach(1, 1), ERR_INVALID_PARAMETER);
    assert!(watch.take().is_empty(), "the renderer was asked");
    for (context, id) in [(1, 1), (2, 1), (1, 2)] {
        done(&mut guest, &Request::ctx_attach(context, id));
    }
    refused(&mut guest, &Request::ctx_attach(1, 1), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::ctx_detach(1, 1));
    refused(&mut guest, &Request::ctx_detach(1, 1), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::ctx_detach(2, 1));
    let attached = ["attach 1 to 1", "attach 1 to 2", "attach 2 to 1"];
    assert_eq!(watch.take(), [&attached[..], &["detach 1 from 1", "detach 1 from 2"]].concat());
    // The end of a context is the end of what is attached to it, and of nothing else.
    done(&mut guest, &Request::ctx_destroy(1));
    done(&mut guest, &Request::ctx_create(1, 2));
    refused(&mut guest, &Request::ctx_detach(1, 2), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::unref(2));
    done(&mut guest, &Request::unref(1));
}

#[test]
fn spec_49_pixels_never_get_lost_between_guest_renderer_and_display() {
    let (mut guest, watch, viewer) = with_renderer();
    let (width, height) = (24, 10);
    let bytes = pattern(960, 3);
    let (address, _) = guest.page_range(4096);
    guest.ram().write(GuestAddress(address), &bytes);
    done(&mut guest, &Request::ctx_create(1, 2));
    done(&mut guest, &Request::create_3d(1, 2, B8G8R8X8, width, height));
    done(&mut guest, &Request::attach_backing(1, &[(address + 500, 460), (address, 500)]));
    assert_eq!(watch.take().pop().as_deref(), Some("backing of 960 bytes behind 1"));
    let backing = [&bytes[500..], &bytes[..500]].concat();
    // Linux transfers before there is a context, too: context 0.
    let rect = [3, 2, 20, 7];
    let offset = (2 * width + 3) * 4;
    done(&mut guest, &Request::transfer_to_host_3d(0, 1, rect, u64::from(offset)));
    done(&mut guest, &Request::set_scanout(0, 1, [1, 1, 23, 9]));
    let _ = viewer.take();
    done(&mut guest, &Request::flush(1, [0, 0, width, height]));
    let mut held = vec![0; 960];
    paste(&mut held, width, rect, &crop(&backing, width, rect));
    assert_eq!(frame(&viewer), (area(0, 0, 23, 9), crop(&held, width, [1, 1, 23, 9])));
    // And back, into memory that knows nothing of it.
    guest.ram().write(GuestAddress(address), &[0; 4096]);
    done(&mut guest, &Request::transfer_from_host_3d(1, 1, [0, 0, width, height], 0));
    let back = [guest.ram().read(GuestAddress(address + 500), 460), guest.ram().read(GuestAddress(address), 500)];
    assert_eq!(back.concat(), held);
    assert_eq!(guest.ram().read(GuestAddress(address + 960), 100), [0; 100]);
    refused(&mut guest, &Request::flush(1, [0, 0, width + 1, height]), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::set_scanout(0, 1, [0, 0, width, height + 1]), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::transfer_2d(1, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
    assert_untouched(&viewer);
    // Detached memory is the renderer's no more, and the end of the resource is told once.
    done(&mut guest, &Request::detach_backing(1));
    refused(&mut guest, &Request::detach_backing(1), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::transfer_from_host_3d(1, 1, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
    let _ = watch.take();
    done(&mut guest, &Request::unref(1));
    done(&mut guest, &Request::ctx_destroy(1));
    assert_eq!(watch.take(), ["end of 1", "end of context 1"]);
}

#[test]
fn spec_49_what_the_renderer_refuses_never_leaves_anything_behind() {
    let (mut guest, watch, _viewer) = with_renderer();
    let page = guest.page_range(4096);
    refused(&mut guest, &Request::create_3d(1, 0, 1, 8, 8), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::create_3d(1, 2, 1, u32::MAX, u32::MAX), ERR_OUT_OF_MEMORY);
    refused(&mut guest, &Request::unref(1), ERR_INVALID_RESOURCE_ID);
    let _ = watch.take();
    refused(&mut guest, &Request::create_3d(0, 2, 1, 8, 8), ERR_INVALID_RESOURCE_ID);
    assert!(watch.take().is_empty(), "the renderer was asked");
    done(&mut guest, &Request::create_3d(1, 2, 1, 8, 8));
    refused(&mut guest, &Request::create_3d(1, 2, 1, 8, 8), ERR_INVALID_RESOURCE_ID);
    // A resource of a kind that has no memory of the guest's behind it: its `bind` says so.
    let mut stubborn = Request::create_3d(2, 2, 1, 8, 8).bytes();
    stubborn[36..40].copy_from_slice(&NO_BACKING.to_le_bytes());
    crate::kit::raw(&mut guest, Lane::Control, &stubborn, 24).ok();
    refused(&mut guest, &Request::attach_backing(2, &[page]), ERR_INVALID_PARAMETER);
    // So there is nothing behind it, and nothing to detach.
    let _ = watch.take();
    refused(&mut guest, &Request::detach_backing(2), ERR_INVALID_PARAMETER);
    assert!(watch.take().is_empty(), "the renderer was told of an end of what it had refused");
}

#[test]
fn spec_49_a_resource_of_any_size_never_breaks_the_device() {
    let (mut guest, _watch, viewer) = with_renderer();
    let sides =
        [(0x4000_0000, 1), (0x4000_0001, 1), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX), (1 << 16, 1 << 16)];
    for (id, (width, height)) in (1..).zip(sides) {
        done(&mut guest, &Request::create_3d(id, ENDLESS, B8G8R8X8, width, height));
        for rect in [[0, 0, width, height], [0, 0, 1, 1], [width - 1, height - 1, 1, 1]] {
            // Whether such a thing can be shown is for the device to say, but not by its end.
            for request in [
                Request::set_scanout(0, id, rect),
                Request::flush(id, rect),
                Request::transfer_to_host_3d(0, id, rect, u64::MAX),
            ] {
                let answer = guest.command(&request);
                assert!((0x1100..0x1206).contains(&answer.kind()), "the device answered {:#x}", answer.kind());
            }
        }
        let update = Request::update_cursor(0, id, (0, 0), (0, 0));
        crate::kit::cursor(&mut guest, &update).expect_error(ERR_INVALID_PARAMETER);
        done(&mut guest, &Request::unref(id));
    }
    assert!(!viewer.take().iter().any(|shown| matches!(shown, Shown::Drawn(..))), "pixels that nobody has");
}

#[test]
fn spec_49_the_end_of_a_context_never_takes_its_blobs() {
    let (mut guest, watch, viewer) = with_renderer();
    done(&mut guest, &Request::ctx_create(1, 2));
    done(&mut guest, &Request::submit(1, &make_object(9, &pattern(4096, 9))));
    done(&mut guest, &Request::host_blob(1, 1, 9, PAGE));
    done(&mut guest, &Request::ctx_attach(1, 1));
    done(&mut guest, &Request::set_scanout_blob(0, 1, [8, 8], B8G8R8X8, 32, 0));
    done(&mut guest, &Request::ctx_destroy(1));
    let _ = (viewer.take(), watch.take());
    done(&mut guest, &Request::flush(1, [0, 0, 8, 8]));
    assert_eq!(frame(&viewer).1, pattern(4096, 9)[..256]);
    done(&mut guest, &Request::unref(1));
    // The renderer hears of things in their order.
    done(&mut guest, &Request::ctx_create(2, 2));
    assert_eq!(watch.take(), ["end of 1", "context 2 of 2 named test"]);
}

#[test]
fn spec_49_without_a_renderer_no_3d_resource_is_ever_there() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 0));
    done(&mut guest, &Request::ctx_create(2, 5));
    let page = guest.page_range(4096);
    done(&mut guest, &Request::create_2d(2, 1, 8, 8));
    done(&mut guest, &Request::attach_backing(2, &[page]));
    for context in [0, 1, 2] {
        // The specification has no code for a device without 3D that offers VIRGL for the contexts' sake.
        refused(&mut guest, &Request::create_3d(1, 2, 1, 8, 8).context(context), ERR_UNSPEC);
        for transfer in [Request::transfer_to_host_3d, Request::transfer_from_host_3d] {
            refused(&mut guest, &transfer(context, 1, [0, 0, 1, 1], 0), ERR_INVALID_RESOURCE_ID);
            refused(&mut guest, &transfer(context, 2, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
        }
    }
    refused(&mut guest, &Request::set_scanout(0, 1, [0, 0, 8, 8]), ERR_INVALID_RESOURCE_ID);
    assert_untouched(&viewer);
    // A context that nobody has a stream for takes an empty one, which drivers send for its fence.
    done(&mut guest, &Request::submit(1, b""));
    refused(&mut guest, &Request::submit(1, b"stream"), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::create_2d(1, 1, 8, 8));
}
