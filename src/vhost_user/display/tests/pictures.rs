//! What the guest shows, as the front-end is sent it: sizes, pixels, cursors.

use super::super::wire::{CursorPos, CursorUpdate, Scanout, Update};
use super::*;
use crate::testing::{Lane, Screen, Shown};

/// The pixels of part of a picture as front-ends take them; what is beside the colours is not theirs.
fn colours(format: Format, pixels: &[u8], width: u32, [x, y, w, h]: [u32; 4]) -> Vec<[u8; 3]> {
    let pixels = pixels.as_chunks::<4>().0;
    let row = |y: u32| pixels[(y * width + x) as usize..][..w as usize].iter();
    let turned = |pixel: &[u8; 4]| {
        let [red, green, blue, _] = format.rgba(*pixel);
        [blue, green, red]
    };
    (y..y + h).flat_map(row).map(turned).collect()
}

fn sent(pixels: &[u8]) -> Vec<[u8; 3]> {
    pixels.as_chunks::<4>().0.iter().map(|[blue, green, red, _]| [*blue, *green, *red]).collect()
}

fn area(update: Update) -> [u32; 4] {
    [update.x, update.y, update.width, update.height]
}

#[test]
fn no_format_mixes_up_its_channels_and_no_flush_sends_more_than_it_says() {
    let mut desk = Desk::new(&[display(64, 48), display(64, 48)]);
    for (index, format) in Format::ALL.into_iter().enumerate() {
        let resource = index as u32 + 1;
        let pixels = noise(resource, 20 * 10 * 4);
        let address = desk.image(resource, format, [20, 10], &pixels);
        desk.show(1, resource, [20, 10]);
        if index == 0 {
            let scanout: Scanout = desk.front_end.message().is(Asked::Scanout);
            assert_eq!(scanout, Scanout { scanout: 1, width: 20, height: 10 });
        }
        // All of a picture that is new, whatever is flushed of it; the rest of it is black.
        desk.guest.command(&Request::flush(resource, [3, 2, 5, 4])).ok();
        let message = desk.front_end.message();
        let (update, bytes) = message.carries::<Update>(Asked::Update);
        assert_eq!((update.scanout, area(update)), (1, [0, 0, 20, 10]), "{format:?}");
        let all = sent(bytes);
        let drawn: Vec<_> = (2..6).flat_map(|y| all[y * 20 + 3..][..5].iter().copied()).collect();
        assert!(drawn == colours(format, &pixels, 20, [3, 2, 5, 4]), "{format:?}");
        assert_eq!(all.iter().filter(|pixel| **pixel != [0; 3]).count(), 20, "{format:?}");

        let pixels = noise(resource + 100, 20 * 10 * 4);
        desk.paint(resource, address, [20, 10], &pixels);
        desk.guest.command(&Request::flush(resource, [11, 7, 9, 3])).ok();
        let message = desk.front_end.message();
        let (update, bytes) = message.carries::<Update>(Asked::Update);
        assert_eq!(area(update), [11, 7, 9, 3]);
        assert!(sent(bytes) == colours(format, &pixels, 20, [11, 7, 9, 3]), "{format:?}");
    }
    desk.front_end.assert_silent();
}

#[test]
fn turning_a_page_begins_no_new_picture_and_forgets_none_of_the_old() {
    let mut desk = Desk::new(&[display(8, 8)]);
    let pages = [noise(1, 256), noise(2, 256)];
    for (page, pixels) in pages.iter().enumerate() {
        desk.image(page as u32 + 1, Format::B8G8R8X8, [8, 8], pixels);
    }
    desk.show(0, 1, [8, 8]);
    let _: Scanout = desk.front_end.message().is(Asked::Scanout);
    desk.guest.command(&Request::flush(1, [0, 0, 8, 8])).ok();
    let message = desk.front_end.message();
    assert!(message.carries::<Update>(Asked::Update).1 == pages[0]);
    for page in [2, 1, 2] {
        desk.show(0, page, [8, 8]);
        desk.guest.command(&Request::flush(page, [0, 4, 8, 4])).ok();
        let message = desk.front_end.message();
        let (update, bytes) = message.carries::<Update>(Asked::Update);
        assert_eq!(area(update), [0, 4, 8, 4]);
        assert!(bytes == &pages[page as usize - 1][128..]);
    }
    // Another size is another picture, and none is told as one without sides.
    desk.image(3, Format::B8G8R8X8, [4, 4], &noise(3, 64));
    desk.show(0, 3, [4, 4]);
    assert_eq!(desk.front_end.message().is::<Scanout>(Asked::Scanout), Scanout { scanout: 0, width: 4, height: 4 });
    desk.guest.command(&Request::unref(3)).ok();
    assert_eq!(desk.front_end.message().is::<Scanout>(Asked::Scanout), Scanout { scanout: 0, width: 0, height: 0 });
    desk.front_end.assert_silent();
}

#[test]
fn no_message_is_longer_than_a_band_and_no_row_falls_between_two() {
    let mut desk = Desk::new(&[display(1000, 700)]);
    let pixels = noise(4, 1000 * 700 * 4);
    desk.image(1, Format::R8G8B8A8, [1000, 700], &pixels);
    desk.show(0, 1, [1000, 700]);
    let _: Scanout = desk.front_end.message().is(Asked::Scanout);
    let flush = desk.guest.submit(&Request::flush(1, [0, 0, 1000, 700]));
    let (mut all, mut bands) = (Vec::new(), 0);
    while all.len() < 1000 * 700 {
        let message = desk.front_end.message();
        let (update, bytes) = message.carries::<Update>(Asked::Update);
        assert_eq!((update.x, update.y as usize, update.width), (0, all.len() / 1000, 1000));
        assert!(bytes.len() <= 1 << 20 && bytes.len() == update.height as usize * 4000);
        all.extend(sent(bytes));
        bands += 1;
    }
    assert_eq!(bands, 3);
    assert!(all == colours(Format::R8G8B8A8, &pixels, 1000, [0, 0, 1000, 700]));
    desk.guest.wait(flush).ok();
}

#[test]
fn a_cursor_keeps_its_alpha_and_place_and_a_hidden_one_never_moves() {
    let mut desk = Desk::new(&[display(64, 48)]);
    let pixels = noise(6, 64 * 64 * 4);
    desk.image(1, Format::A8R8G8B8, [64, 64], &pixels);
    let hidden = Request::move_cursor(0, (1, 1));
    let token = desk.guest.submit_on(Lane::Cursor, &hidden);
    desk.guest.wait_on(Lane::Cursor, token);
    let cursor = |desk: &mut Desk, request: &Request| {
        let token = desk.guest.submit_on(Lane::Cursor, request);
        desk.guest.wait_on(Lane::Cursor, token).ok();
    };
    cursor(&mut desk, &Request::update_cursor(0, 1, (-3, 40), (5, 6)));
    let message = desk.front_end.message();
    let (update, bytes) = message.carries::<CursorUpdate>(Asked::CursorUpdate);
    assert_eq!(update, CursorUpdate { pos: CursorPos { scanout: 0, x: -3, y: 40 }, hot_x: 5, hot_y: 6 });
    let expected: Vec<u8> =
        pixels.as_chunks::<4>().0.iter().flat_map(|[alpha, red, green, blue]| [*blue, *green, *red, *alpha]).collect();
    assert!(bytes == expected);
    cursor(&mut desk, &Request::move_cursor(0, (20, -1)));
    assert_eq!(desk.front_end.message().is::<CursorPos>(Asked::CursorPos), CursorPos { scanout: 0, x: 20, y: -1 });
    cursor(&mut desk, &Request::update_cursor(0, 0, (9, 8), (0, 0)));
    assert_eq!(desk.front_end.message().is::<CursorPos>(Asked::CursorPosHide), CursorPos { scanout: 0, x: 9, y: 8 });
    cursor(&mut desk, &Request::move_cursor(0, (2, 2)));
    cursor(&mut desk, &Request::update_cursor(0, 0, (3, 3), (0, 0)));
    desk.front_end.assert_silent();
}

#[test]
fn a_front_end_is_not_left_with_a_picture_that_is_shown_no_more() {
    let mut desk = Desk::new(&[display(64, 48)]);
    desk.image(1, Format::B8G8R8A8, [64, 64], &noise(1, 64 * 64 * 4));
    desk.show(0, 1, [64, 64]);
    let _: Scanout = desk.front_end.message().is(Asked::Scanout);
    let token = desk.guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 1, (1, 1), (0, 0)));
    desk.guest.wait_on(Lane::Cursor, token).ok();
    assert_eq!(desk.front_end.message().request, Asked::CursorUpdate as u32);
    desk.guest.reset();
    desk.guest.activate();
    let mut told = [desk.front_end.message(), desk.front_end.message()];
    told.sort_by_key(|message| message.request);
    assert_eq!(told.each_ref().map(|message| message.request), [Asked::CursorPosHide as u32, Asked::Scanout as u32]);
    assert_eq!(told[1].is::<Scanout>(Asked::Scanout).width, 0);
    // And the same where the VMM shows the scanout elsewhere; what it has connected stays.
    desk.image(1, Format::B8G8R8A8, [64, 64], &noise(1, 64 * 64 * 4));
    desk.show(0, 1, [64, 64]);
    assert_eq!(desk.front_end.message().is::<Scanout>(Asked::Scanout).width, 64);
    let (screen, viewer) = Screen::new();
    let connected = desk.guest.device().connect(0, crate::display::Monitor::new(32, 32), screen);
    connected.wait().expect("a device").expect("a display");
    assert_eq!(desk.front_end.message().is::<Scanout>(Asked::Scanout).width, 0);
    desk.displays.refresh();
    desk.front_end.tell(&[display(99, 99)]);
    drop(desk.displays);
    desk.front_end.assert_end();
    desk.guest.settle();
    assert!(!viewer.take().contains(&Shown::Dropped));
    let info = desk.guest.command(&Request::display_info()).ok();
    assert_eq!(info[8..16], [32, 0, 0, 0, 32, 0, 0, 0]);
}
