//! Items 26 to 31 but for 28: what the guest learns of its displays, and what they are shown and not shown.

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_INVALID_SCANOUT_ID, OK_DISPLAY_INFO, OK_EDID,
};
use virtio_gpu_uring::testing::{Answer, Guest, Request, Screen, Shown};
use virtio_gpu_uring::{Builder, Format, HostWindow, Mode, Monitor};

use crate::kit::{
    B8G8R8A8, Drawing, PAGE, area, assert_untouched, crop, cursor, done, frame, memfd, offer, refused, screens,
    with_screen, with_screens, words,
};

/// GET_DISPLAY_INFO: x, y, width, height, enabled and flags of each of 16 scanouts.
#[track_caller]
fn display_info(guest: &mut Guest) -> Vec<[u32; 6]> {
    let answer = guest.command(&Request::display_info());
    assert_eq!((answer.kind(), answer.written), (OK_DISPLAY_INFO, 408));
    let words = words(&answer.ok());
    words.chunks(6).map(|one| one.try_into().expect("six words")).collect()
}

/// A table with these entries, and nothing in the others.
fn table(entries: &[(usize, [u32; 6])]) -> Vec<[u32; 6]> {
    let mut table = vec![[0; 6]; 16];
    entries.iter().for_each(|(at, entry)| table[*at] = *entry);
    table
}

fn monitor(width: u32, height: u32, position: (u32, u32)) -> Monitor {
    Monitor { position, ..Monitor::new(width, height) }
}

fn screen() -> Screen {
    Screen::new().0
}

#[test]
fn spec_26_display_info_never_misses_a_display_nor_invents_one() {
    let builder = Builder::new().scanouts(16).display(0, monitor(1280, 720, (0, 0)), screen());
    let builder = builder.display(5, monitor(800, 600, (1280, 100)), screen());
    let mut guest = Guest::start(builder.display(15, monitor(640, 480, (0, 720)), screen()));
    let (first, last) = ([0, 0, 1280, 720, 1, 0], [0, 720, 640, 480, 1, 0]);
    let all = table(&[(0, first), (5, [1280, 100, 800, 600, 1, 0]), (15, last)]);
    assert_eq!(display_info(&mut guest), all);
    // Asking twice changes nothing.
    assert_eq!(display_info(&mut guest), all);

    assert!(guest.device().disconnect(5).wait().expect("a device").expect("a scanout"));
    assert_eq!(display_info(&mut guest), table(&[(0, first), (15, last)]));
    guest.device().change_monitor(15, monitor(1024, 600, (7, 8))).wait().expect("a device").expect("a display");
    guest.device().connect(1, monitor(320, 200, (9, 9)), screen()).wait().expect("a device").expect("a scanout");
    let now = table(&[(0, first), (1, [9, 9, 320, 200, 1, 0]), (15, [7, 8, 1024, 600, 1, 0])]);
    assert_eq!(display_info(&mut guest), now);
    // A driver's reset unplugs nothing.
    guest.reset();
    guest.activate();
    assert_eq!(display_info(&mut guest), now);
}

#[test]
fn spec_26_a_device_without_displays_never_enables_a_scanout() {
    for scanouts in [1, 16] {
        let mut guest = Guest::start(Builder::new().scanouts(scanouts));
        assert_eq!(display_info(&mut guest), table(&[]));
    }
}

/// GET_EDID: the bytes that it says there are.
#[track_caller]
fn edid(answer: Answer) -> Vec<u8> {
    assert_eq!((answer.kind(), answer.written), (OK_EDID, 1056));
    let payload = answer.ok();
    let (size, padding) = (words(&payload)[0] as usize, words(&payload)[1]);
    assert_eq!(padding, 0);
    assert!(size <= 1024, "an EDID of {size} bytes");
    assert!(payload[8 + size..].iter().all(|byte| *byte == 0), "bytes behind the EDID's end");
    payload[8..8 + size].to_vec()
}

#[test]
fn spec_27_an_edid_is_never_of_another_size_than_it_says_nor_of_another_display() {
    let (small, large) = (monitor(800, 600, (0, 0)), monitor(7680, 4320, (800, 0)));
    let small = Monitor { name: "left".into(), modes: vec![], ..small };
    let large = Monitor { name: "right one".into(), ..large };
    let builder = Builder::new().scanouts(4).display(0, small, screen()).display(2, large, screen());
    let mut guest = Guest::start(builder);
    for (scanout, size, name) in [(0, Some((800, 600)), "left"), (2, None, "right one")] {
        let edid = edid(guest.command(&Request::get_edid(scanout)));
        assert!(!edid.is_empty() && edid.len().is_multiple_of(128), "{} bytes", edid.len());
        assert_eq!(edid[..8], [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(usize::from(edid[126]), edid.len() / 128 - 1, "blocks behind the first");
        for block in edid.chunks(128) {
            assert_eq!(block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "a checksum");
        }
        let name = [b"\0\0\0\xfc\0", name.as_bytes(), b"\n"].concat();
        assert!(edid[54..126].windows(name.len()).any(|part| part == name), "the display's name");
        if let Some(size) = size {
            // The first detailed timing is the preferred mode.
            let active = |low: usize, high: usize| u32::from(edid[low]) | u32::from(edid[high] >> 4) << 8;
            assert_eq!((active(56, 58), active(59, 61)), size);
        }
    }
    let mode = Monitor { preferred: Mode::new(1024, 600), modes: vec![], ..Monitor::new(1, 1) };
    guest.device().change_monitor(0, mode).wait().expect("a device").expect("a display");
    let changed = edid(guest.command(&Request::get_edid(0)));
    assert_eq!((changed[56], changed[58] >> 4, changed[59], changed[61] >> 4), (0, 4, 0x58, 2));
}

#[test]
fn spec_27_a_scanout_that_is_not_there_never_has_an_edid() {
    let mut guest = Guest::start(Builder::new().scanouts(3).display(1, Monitor::new(800, 600), screen()));
    for scanout in [3, 4, 15, 16, 0x100, 0x8000_0001, u32::MAX] {
        refused(&mut guest, &Request::get_edid(scanout), ERR_INVALID_SCANOUT_ID);
    }
    // One that is there with nothing connected: the specification is silent, and the answer is an EDID of no bytes.
    for scanout in [0, 2] {
        assert!(edid(guest.command(&Request::get_edid(scanout))).is_empty());
    }
    guest.device().disconnect(1).wait().expect("a device").expect("a scanout");
    assert!(edid(guest.command(&Request::get_edid(1))).is_empty());
}

#[test]
fn spec_29_what_was_unreferenced_is_never_shown_again_anywhere() {
    let (mut guest, viewers) = with_screens(3);
    let drawing = Drawing::new(&mut guest, 1, 16, 16);
    let other = Drawing::new(&mut guest, 2, 16, 16);
    drawing.show(&mut guest, 0);
    drawing.show(&mut guest, 2);
    other.show(&mut guest, 1);
    viewers.iter().for_each(|viewer| drop(viewer.take()));

    done(&mut guest, &Request::unref(1));
    assert_eq!(viewers[0].take(), [Shown::Detached]);
    assert_eq!(viewers[2].take(), [Shown::Detached]);
    assert_untouched(&viewers[1]);
    let whole = drawing.whole();
    for request in [
        Request::unref(1),
        Request::flush(1, whole),
        Request::transfer_2d(1, whole, 0),
        Request::set_scanout(0, 1, whole),
        Request::attach_backing(1, &[(drawing.address, 1024)]),
        Request::detach_backing(1),
        Request::assign_uuid(1),
    ] {
        refused(&mut guest, &request, ERR_INVALID_RESOURCE_ID);
    }
    refused(&mut guest, &Request::unref(0), ERR_INVALID_RESOURCE_ID);
    refused(&mut guest, &Request::unref(u32::MAX), ERR_INVALID_RESOURCE_ID);

    // The id is free, and its next bearer is nobody's picture.
    let next = Drawing::new(&mut guest, 1, 16, 16);
    next.flush(&mut guest);
    assert_untouched(&viewers[0]);
    assert_untouched(&viewers[2]);
    other.flush(&mut guest);
    assert_eq!(frame(&viewers[1]).1, other.bytes);
}

#[test]
fn spec_29_an_unreferenced_resource_never_stays_in_a_window_a_context_a_cursor_or_under_a_name() {
    let window = HostWindow::new(1 << 20).expect("a window");
    let (builder, viewers) = screens(Builder::new().window(window.clone()), 1);
    let mut guest = Guest::start(builder);
    done(&mut guest, &Request::ctx_create(1, 5));
    let id = offer(&guest, memfd("spec-29", &[7; 64]));
    done(&mut guest, &Request::host_blob(1, 1, id, PAGE));
    guest.map(1, 0x4000);
    done(&mut guest, &Request::ctx_attach(1, 1));
    let uuid = guest.command(&Request::assign_uuid(1)).ok().try_into().expect("16 bytes");
    assert!(guest.device().exported(uuid).wait().expect("a device").expect("descriptors").is_some());
    Drawing::new(&mut guest, 2, 64, 64);
    cursor(&mut guest, &Request::update_cursor(0, 2, (3, 4), (0, 0))).ok();
    assert_eq!(viewers[0].take().len(), 1);

    let mut seen = [0; 64];
    window.read(0x4000, &mut seen).expect("in the window");
    assert_eq!(seen, [7; 64]);
    done(&mut guest, &Request::unref(1));
    window.read(0x4000, &mut seen).expect("in the window");
    assert_eq!(seen, [0; 64], "a mapping of what is gone");
    assert!(guest.device().exported(uuid).wait().expect("a device").expect("descriptors").is_none());
    // Nothing of it is left in the context: the id's next bearer is not attached, and its range is free.
    let id = offer(&guest, memfd("spec-29", &[8; 64]));
    done(&mut guest, &Request::host_blob(1, 1, id, PAGE));
    refused(&mut guest, &Request::ctx_detach(1, 1), ERR_INVALID_PARAMETER);
    guest.map(1, 0x4000);
    window.read(0x4000, &mut seen).expect("in the window");
    assert_eq!(seen, [8; 64]);
    // The cursor is a picture of its resource as it was; nothing of the resource is needed for it any more.
    done(&mut guest, &Request::unref(2));
    cursor(&mut guest, &Request::move_cursor(0, (5, 6))).ok();
    assert_eq!(viewers[0].take(), [Shown::CursorMoved((5, 6))]);
}

fn attached(width: u32, height: u32) -> Shown {
    Shown::Attached { width, height, format: Format::B8G8R8X8, by_buffer: false }
}

#[test]
fn spec_30_a_scanout_never_shows_a_part_outside_its_resource() {
    let (mut guest, viewer) = with_screen();
    let drawing = Drawing::new(&mut guest, 1, 40, 30);
    let kept = [3, 4, 20, 10];
    done(&mut guest, &Request::set_scanout(0, 1, kept));
    assert_eq!(viewer.take(), [attached(20, 10)]);
    for rect in [
        [0, 0, 0, 0],
        [0, 0, 40, 0],
        [0, 0, 0, 30],
        [0, 0, 41, 30],
        [0, 0, 40, 31],
        [1, 0, 40, 30],
        [0, 1, 40, 30],
        [40, 0, 1, 1],
        [0, 30, 1, 1],
        [u32::MAX, 0, 1, 30],
        [0, u32::MAX, 40, 1],
        [1, 0, u32::MAX, 30],
        [0, 1, 40, u32::MAX],
        [u32::MAX, u32::MAX, u32::MAX, u32::MAX],
        [0x8000_0000, 0, 0x8000_0000, 30],
        [0x4000_0000, 0, 4, 4],
    ] {
        refused(&mut guest, &Request::set_scanout(0, 1, rect), ERR_INVALID_PARAMETER);
    }
    refused(&mut guest, &Request::set_scanout(0, 9, kept), ERR_INVALID_RESOURCE_ID);
    for scanout in [1, 16, u32::MAX] {
        refused(&mut guest, &Request::set_scanout(scanout, 1, kept), ERR_INVALID_SCANOUT_ID);
        refused(&mut guest, &Request::set_scanout(scanout, 0, kept), ERR_INVALID_SCANOUT_ID);
    }
    // What was refused has changed nothing.
    assert_untouched(&viewer);
    drawing.flush(&mut guest);
    assert_eq!(frame(&viewer), (area(0, 0, 20, 10), crop(&drawing.bytes, 40, kept)));
    // Every corner, one pixel, all of it.
    for rect in [[39, 29, 1, 1], [0, 0, 1, 1], [39, 0, 1, 30], [0, 29, 40, 1], [0, 0, 40, 30]] {
        done(&mut guest, &Request::set_scanout(0, 1, rect));
        assert_eq!(viewer.take(), [attached(rect[2], rect[3])]);
        drawing.flush(&mut guest);
        assert_eq!(frame(&viewer), (area(0, 0, rect[2], rect[3]), crop(&drawing.bytes, 40, rect)));
    }
}

#[test]
fn spec_30_resource_0_always_switches_a_scanout_off_and_no_other() {
    let (mut guest, viewers) = with_screens(2);
    let drawing = Drawing::new(&mut guest, 1, 8, 8);
    drawing.show(&mut guest, 0);
    drawing.show(&mut guest, 1);
    viewers.iter().for_each(|viewer| drop(viewer.take()));
    // Linux sends an empty rectangle; none of it matters.
    done(&mut guest, &Request::set_scanout(0, 0, [0, 0, 0, 0]));
    assert_eq!(viewers[0].take(), [Shown::Detached]);
    done(&mut guest, &Request::set_scanout(0, 0, [u32::MAX, 1, u32::MAX, 7]));
    assert_untouched(&viewers[0]);
    drawing.flush(&mut guest);
    assert_untouched(&viewers[0]);
    assert_eq!(frame(&viewers[1]).1, drawing.bytes);
}

#[test]
fn spec_30_a_display_that_comes_later_never_misses_what_its_scanout_shows() {
    let mut guest = Guest::start(Builder::new().scanouts(2));
    let drawing = Drawing::new(&mut guest, 1, 8, 8);
    let pointer = Drawing::untransferred(&mut guest, 2, B8G8R8A8, 64, 64);
    pointer.transfer(&mut guest, pointer.whole());
    done(&mut guest, &Request::set_scanout(1, 1, [2, 2, 4, 4]));
    cursor(&mut guest, &Request::update_cursor(1, 2, (-3, 9), (5, 6))).ok();
    drawing.flush(&mut guest);
    let (screen, viewer) = Screen::new();
    guest.device().connect(1, Monitor::new(800, 600), screen).wait().expect("a device").expect("a scanout");
    guest.settle();
    let pixels = crop(&drawing.bytes, 8, [2, 2, 4, 4]);
    let pointer = Shown::Cursor((-3, 9), (5, 6), Format::B8G8R8A8, pointer.bytes);
    let shown = viewer.take();
    for told in [attached(4, 4), pointer, Shown::Drawn(area(0, 0, 4, 4), pixels), Shown::Frame(area(0, 0, 4, 4))] {
        assert!(shown.contains(&told), "the display was never told {:.80}", format!("{told:?}"));
    }
    assert_eq!(shown.len(), 4);
}

#[test]
fn spec_30_one_resource_never_takes_itself_from_another_scanout() {
    let (mut guest, viewers) = with_screens(4);
    let mut drawing = Drawing::new(&mut guest, 1, 64, 48);
    // Side by side, mirrored, and one within the other.
    let rects = [[0, 0, 32, 48], [32, 0, 32, 48], [0, 0, 64, 48], [20, 10, 24, 20]];
    for (scanout, rect) in rects.into_iter().enumerate() {
        done(&mut guest, &Request::set_scanout(scanout as u32, 1, rect));
        assert_eq!(viewers[scanout].take(), [attached(rect[2], rect[3])]);
    }
    drawing.redraw(&guest, 77);
    drawing.transfer(&mut guest, drawing.whole());
    drawing.flush(&mut guest);
    for (viewer, rect) in viewers.iter().zip(rects) {
        assert_eq!(frame(viewer), (area(0, 0, rect[2], rect[3]), crop(&drawing.bytes, 64, rect)));
        assert_eq!(viewer.picture(), (rect[2], rect[3], crop(&drawing.bytes, 64, rect)));
    }
}
