//! Item 53: requests that no driver sends. Each has its exact code, changes nothing, and the device goes on.

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC};
use virtio_gpu_uring::protocol::wire::{FLAG_FENCE, FLAG_INFO_RING_IDX};
use virtio_gpu_uring::testing::{Answer, Guest, Lane, Layout, Pieces, Request, Viewer};
use virtio_gpu_uring::{Builder, HostWindow};

use crate::honest::{Watch, honest, make_object};
use crate::kit::{B8G8R8X8, PAGE, WINDOW, assert_untouched, done, raw, screens};

fn furnished() -> (Guest, Watch, Viewer) {
    let (renderer, watch) = honest();
    let window = HostWindow::new(WINDOW as usize).expect("a window");
    let (builder, mut viewers) = screens(Builder::new().renderer(renderer).window(window), 1);
    let mut guest = Guest::start(builder);
    // Something to be broken: an image on the display, a context.
    done(&mut guest, &Request::create_2d(7, B8G8R8X8, 64, 64));
    done(&mut guest, &Request::set_scanout(0, 7, [0, 0, 64, 64]));
    done(&mut guest, &Request::ctx_create(7, 2));
    let viewer = viewers.remove(0);
    let _ = (viewer.take(), watch.take());
    (guest, watch, viewer)
}

/// Every request that there is, complete, in an order in which each succeeds.
fn all(page: (u64, u32)) -> Vec<(Lane, Request)> {
    let control = [
        Request::display_info(),
        Request::get_edid(0),
        Request::capset_info(0),
        Request::capset(2, 0, 10),
        Request::create_2d(1, B8G8R8X8, 8, 8),
        Request::attach_backing(1, &[page, page]),
        Request::transfer_2d(1, [0, 0, 8, 8], 0),
        Request::set_scanout(0, 1, [0, 0, 8, 8]),
        Request::flush(1, [0, 0, 8, 8]),
        Request::assign_uuid(1),
        Request::detach_backing(1),
        Request::guest_blob(2, PAGE, &[page]),
        Request::set_scanout_blob(0, 2, [8, 8], B8G8R8X8, 32, 0),
        Request::ctx_create(1, 2),
        Request::submit(1, &make_object(9, b"nine")),
        Request::host_blob(1, 3, 9, PAGE),
        Request::map(3, 0x1000),
        Request::unmap(3),
        Request::ctx_attach(1, 3),
        Request::ctx_detach(1, 3),
        Request::create_3d(4, 2, B8G8R8X8, 8, 8),
        Request::attach_backing(4, &[page]),
        Request::transfer_to_host_3d(1, 4, [0, 0, 8, 8], 0),
        Request::transfer_from_host_3d(1, 4, [0, 0, 8, 8], 0),
        Request::unref(1),
        Request::ctx_destroy(1),
    ];
    let cursor = [Request::update_cursor(0, 7, (1, 1), (2, 2)), Request::move_cursor(0, (3, 3))];
    let cursor = cursor.into_iter().map(|request| (Lane::Cursor, request));
    control.into_iter().map(|request| (Lane::Control, request)).chain(cursor).collect()
}

fn name(request: &Request) -> String {
    let kind = request.bytes()[..4].try_into().expect("a header");
    format!("request {:#x}", u32::from_le_bytes(kind))
}

#[test]
fn spec_53_a_request_that_ends_too_early_never_does_anything() {
    let (mut guest, watch, viewer) = furnished();
    let page = guest.page_range(PAGE as usize);
    for (lane, request) in all(page) {
        let whole = request.bytes();
        for len in 0..whole.len() {
            let answer = raw(&mut guest, lane, &whole[..len], request.room());
            let what = format!("{} cut to {len} bytes", name(&request));
            assert_eq!((answer.kind(), answer.written), (ERR_INVALID_PARAMETER, 24), "{what}");
        }
    }
    assert!(watch.take().is_empty(), "the renderer was asked");
    assert_untouched(&viewer);
    // So each of them still works, and the device with it.
    for (lane, request) in all(page) {
        let answer = raw(&mut guest, lane, &request.bytes(), request.room());
        assert!((0x1100..0x1107).contains(&answer.kind()), "{} answered {:#x}", name(&request), answer.kind());
    }
    guest.assert_all_answered();
    assert_eq!(guest.needs_resets(), 0);
}

#[test]
fn spec_53_bytes_behind_a_request_never_matter_nor_does_how_it_is_cut() {
    let (mut guest, _watch, _viewer) = furnished();
    let page = guest.page_range(PAGE as usize);
    let layout = Layout { readable: Pieces::Cut(vec![1, 2, 3, 5, 7, 11]), ..Layout::default() };
    for (lane, request) in all(page) {
        let bytes = [request.bytes(), vec![0xa5; 77]].concat();
        let token = guest.queue(lane).add(&bytes, request.room(), &layout).expect("room");
        guest.publish(lane);
        let answer = guest.wait_on(lane, token);
        assert!((0x1100..0x1107).contains(&answer.kind()), "{} answered {:#x}", name(&request), answer.kind());
    }
}

#[track_caller]
fn assert_unknown(answer: &Answer, fence: u64) {
    answer.expect_error(ERR_UNSPEC);
    assert_eq!((answer.written, answer.header.fence_id.get()), (24, fence));
    assert_eq!(answer.header.flags.get(), FLAG_FENCE | FLAG_INFO_RING_IDX);
    assert_eq!((answer.header.ctx_id.get(), answer.header.ring_idx), (7, 3));
}

#[test]
fn spec_53_an_unknown_type_is_never_taken_for_another_or_left_unanswered() {
    let (mut guest, watch, viewer) = furnished();
    let page = guest.page_range(PAGE as usize);
    let unknown = [
        0,
        1,
        0x101 << 8,
        0xff,
        0x10e,
        0x10f,
        0x110,
        0x1ff,
        0x20a,
        0x20f,
        0x2ff,
        0x302,
        0x3ff,
        0x400,
        0x1100,
        0x1106,
        0x1200,
        0x1_0100,
        0x8000_0100,
        u32::MAX,
    ];
    for (fence, kind) in (1..).zip(unknown) {
        for body in [&[][..], &[0xff; 32], &[0; 200]] {
            let request = Request::new(kind, body).context(7).fenced(fence).on_ring(3);
            assert_unknown(&guest.command(&request), fence);
            assert_unknown(&crate::kit::cursor(&mut guest, &request), fence);
        }
    }
    assert!(watch.take().is_empty(), "the renderer was asked");
    assert_untouched(&viewer);
    for (lane, request) in all(page) {
        raw(&mut guest, lane, &request.bytes(), request.room()).ok();
    }
    guest.assert_all_answered();
    assert_eq!(guest.needs_resets(), 0);
}
