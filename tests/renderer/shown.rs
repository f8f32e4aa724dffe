//! What a renderer has drawn, on a display: read when the guest flushes it, and never without the renderer's word.

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_OUT_OF_MEMORY, ERR_UNSPEC};
use virtio_gpu_uring::testing::{Request, Screen, Shown, Token};
use virtio_gpu_uring::{Area, Format, Limits, Monitor};

use super::rendered::{FORMAT, Gallery, HEIGHT, WHOLE, WIDTH};
use super::studio::Fate;

/// Fills resource 7 with a pixel.
fn fill(pixel: [u8; 4]) -> Request {
    let [blue, green, red, none] = pixel;
    Request::submit(1, &[7, blue, green, red, none])
}

fn attached(width: u32, height: u32) -> Shown {
    Shown::Attached { width, height, format: Format::B8G8R8X8, by_buffer: false }
}

fn drawn(area: Area, pixel: [u8; 4]) -> [Shown; 2] {
    let pixels = pixel.repeat((area.width * area.height) as usize);
    [Shown::Drawn(area, pixels), Shown::Frame(area)]
}

#[test]
fn a_flush_never_shows_more_or_less_than_the_renderer_has_at_that_moment() {
    let mut gallery = Gallery::with_resource();
    gallery.guest.command(&Request::set_scanout(0, 7, [4, 2, 8, 4])).ok();
    assert_eq!(gallery.viewer.take(), [attached(8, 4)]);
    gallery.visitor.expect_none();
    for round in 1..5 {
        gallery.guest.command(&fill([round; 4])).ok();
        assert_eq!(gallery.viewer.take(), [], "shown before its flush");
        gallery.guest.command(&Request::flush(7, WHOLE)).ok();
        gallery.visitor.expect(&["submit 7 to 1", "read 7 at 8x4+4+2"]);
        let whole = Area { x: 0, y: 0, width: 8, height: 4 };
        assert_eq!(gallery.viewer.take(), drawn(whole, [round; 4]));
        gallery.guest.command(&Request::flush(7, [0, 0, 6, 4])).ok();
        gallery.visitor.expect(&["read 7 at 2x2+4+2"]);
        let corner = Area { x: 0, y: 0, width: 2, height: 2 };
        assert_eq!(gallery.viewer.take(), drawn(corner, [round; 4]));
    }
    // What lies elsewhere is nobody's business, and what lies outside is refused.
    gallery.guest.command(&Request::flush(7, [0, 0, 4, 2])).ok();
    for outside in [[0, 0, 17, 8], [16, 0, 1, 1], [0, 0, 0, 0], [1, 1, u32::MAX, 1]] {
        gallery.guest.command(&Request::flush(7, outside)).expect_error(ERR_INVALID_PARAMETER);
        gallery.guest.command(&Request::set_scanout(0, 7, outside)).expect_error(ERR_INVALID_PARAMETER);
    }
    gallery.visitor.expect_none();
    assert_eq!(gallery.viewer.take(), []);
    gallery.guest.command(&Request::unref(7)).ok();
    gallery.visitor.expect(&["forget 7"]);
    assert_eq!(gallery.viewer.take(), [Shown::Detached]);
}

#[test]
fn pixels_that_the_renderer_does_not_give_are_never_shown() {
    let mut gallery = Gallery::with_resource();
    gallery.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    let _ = gallery.viewer.take();
    for (fate, error) in [
        (Fate::Invalid, ERR_INVALID_PARAMETER),
        (Fate::OutOfMemory, ERR_OUT_OF_MEMORY),
        (Fate::Length(1), ERR_INVALID_PARAMETER),
        (Fate::Length(-1), ERR_INVALID_PARAMETER),
        (Fate::Length(-10_000), ERR_INVALID_PARAMETER),
        (Fate::Length(10_000), ERR_INVALID_PARAMETER),
    ] {
        gallery.visitor.order("read", Some(fate));
        let answer = gallery.guest.command(&Request::flush(7, WHOLE).fenced(3));
        assert_eq!(answer.kind(), error, "{fate:?}");
        assert_eq!(answer.header.fence_id.get(), 3);
        assert_eq!(gallery.viewer.take(), [], "{fate:?}");
    }
    gallery.visitor.order("read", None);
    gallery.guest.command(&Request::flush(7, WHOLE)).ok();
    assert_eq!(gallery.viewer.take().len(), 2);
    gallery.visitor.order("read", Some(Fate::Panic));
    gallery.guest.command(&Request::flush(7, WHOLE)).expect_error(ERR_UNSPEC);
    gallery.guest.command(&Request::flush(7, WHOLE)).expect_error(ERR_UNSPEC);
    assert_eq!(gallery.viewer.take(), []);
    // The rest of the device goes on, and the guest may take the picture away.
    gallery.guest.command(&Request::create_2d(9, FORMAT, WIDTH, HEIGHT)).ok();
    gallery.guest.command(&Request::set_scanout(0, 9, WHOLE)).ok();
    gallery.guest.command(&Request::flush(9, WHOLE)).ok();
    assert_eq!(gallery.viewer.take().len(), 3);
    gallery.guest.command(&Request::unref(7)).ok();
    gallery.guest.assert_all_answered();
}

#[test]
fn a_flush_that_the_renderer_holds_never_holds_up_other_pictures_nor_outlasts_its_own() {
    let mut gallery = Gallery::with_resource();
    gallery.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    gallery.visitor.order("read", Some(Fate::Block));
    let flush = gallery.guest.submit(&Request::flush(7, WHOLE));
    gallery.visitor.expect(&["read 7 at 16x8+0+0"]);
    gallery.guest.command(&Request::create_2d(9, FORMAT, 4, 4)).ok();
    gallery.guest.command(&Request::set_scanout(0, 9, [0, 0, 4, 4])).ok();
    gallery.guest.command(&Request::flush(9, [0, 0, 4, 4])).ok();
    assert!(!gallery.guest.has_answer(&flush));
    let _ = gallery.viewer.take();
    gallery.visitor.unblock();
    gallery.guest.wait(flush).ok();
    assert_eq!(gallery.viewer.take(), [], "drawn over another picture");
}

#[test]
fn a_display_that_comes_late_is_never_left_without_what_the_renderer_has_drawn() {
    let mut gallery = Gallery::with_resource();
    gallery.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    gallery.guest.command(&fill([9; 4])).ok();
    for blocks in [false, true] {
        gallery.visitor.order("read", blocks.then_some(Fate::Block));
        let (screen, viewer) = Screen::new();
        let connected = gallery.guest.device().connect(0, Monitor::new(WIDTH, HEIGHT), screen);
        // Not even a renderer that takes its time holds up the call.
        connected.wait().expect("a device").expect("connected");
        while gallery.visitor.next() != "read 7 at 16x8+0+0" {}
        if blocks {
            gallery.visitor.unblock();
        }
        let started = std::time::Instant::now();
        while viewer.picture().2 != [9; (WIDTH * HEIGHT * 4) as usize] {
            assert!(started.elapsed() < virtio_gpu_uring::testing::DEADLINE, "the picture never came");
            gallery.guest.settle();
        }
    }
}

#[test]
fn a_flush_never_overtakes_the_streams_that_draw_what_it_shows() {
    let mut gallery = Gallery::with_resource();
    // What a context's streams may draw to is attached to it.
    gallery.guest.command(&Request::ctx_attach(1, 7)).ok();
    gallery.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    let _ = gallery.viewer.take();
    gallery.visitor.order("submit", Some(Fate::Block));
    let mut tokens: Vec<Token> = Vec::new();
    tokens.push(gallery.guest.submit(&fill([1; 4])));
    gallery.visitor.expect(&["submit 7 to 1"]);
    gallery.visitor.order("submit", None);
    tokens.push(gallery.guest.submit(&fill([2; 4])));
    tokens.push(gallery.guest.submit(&fill([3; 4])));
    tokens.push(gallery.guest.submit(&Request::flush(7, WHOLE)));
    gallery.guest.settle();
    gallery.visitor.unblock();
    for token in tokens {
        gallery.guest.wait(token).ok();
    }
    let whole = Area { x: 0, y: 0, width: WIDTH, height: HEIGHT };
    let right = gallery.viewer.take() == drawn(whole, [3; 4]);
    assert!(right, "the guest's later streams are missing in {:?}...", &gallery.viewer.picture().2[..4]);
}

#[test]
fn a_resource_of_any_size_is_never_too_large_for_the_device() {
    // Buffers have lengths for widths; whether it can be shown is another matter.
    for (width, height) in [(1 << 30, 1), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX), (0x4000_0001, 2)] {
        let mut gallery = Gallery::open(Limits::default());
        gallery.guest.command(&Request::create_3d(7, 0, FORMAT, width, height)).ok();
        for rect in [[0, 0, 1, 1], [0, 0, width, height], [width - 1, height - 1, 1, 1]] {
            let set = gallery.guest.submit(&Request::set_scanout(0, 7, rect));
            gallery.guest.settle();
            let shown = gallery.guest.wait(set);
            assert!(shown.kind() < 0x1200 || shown.kind() == ERR_INVALID_PARAMETER, "{:#x}", shown.kind());
            if rect[2] == 1 {
                let flush = gallery.guest.command(&Request::flush(7, [rect[0], rect[1], 1, 1]));
                assert_ne!(flush.kind(), 0);
            }
        }
        gallery.guest.command(&Request::unref(7)).ok();
    }
}

#[test]
fn a_flush_never_overtakes_streams_that_wait_for_the_attachment_too() {
    let mut gallery = Gallery::with_resource();
    gallery.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    gallery.visitor.order("submit", Some(Fate::Block));
    let mut tokens = vec![gallery.guest.submit(&fill([9; 4]))];
    gallery.visitor.next();
    tokens.push(gallery.guest.submit(&Request::ctx_attach(1, 7)));
    tokens.extend([1, 2].map(|shade| gallery.guest.submit(&fill([shade; 4]))));
    tokens.push(gallery.guest.submit(&Request::flush(7, WHOLE)));
    gallery.guest.settle();
    gallery.visitor.order("submit", None);
    gallery.visitor.unblock();
    for token in tokens {
        gallery.guest.wait(token).ok();
    }
    let shown = gallery.viewer.picture().2;
    assert_eq!(shown[..4], [2; 4], "a later stream is missing");
}
