//! Item 20: descriptor chains of any layout, and what is written where.

use virtio_gpu_uring::protocol::wire::response_type::*;
use virtio_gpu_uring::testing::{Guest, Lane, Layout, Pieces, Request, Segment, Table};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::driver::take;
use crate::kit::{self, Drawing};

#[test]
fn spec_20_no_layout_of_a_chain_changes_an_answer() {
    let questions =
        [Request::display_info(), Request::get_edid(0), Request::capset(5, 1, 16), Request::unref(99).fenced(7)];
    let cut = Pieces::Cut(vec![1, 22, 2, 30]);
    let layouts = [
        Layout::direct(),
        Layout::indirect(),
        Layout::direct().readable(Pieces::Each(1)).writable(Pieces::Each(7)),
        Layout::indirect().readable(cut.clone()).writable(Pieces::Each(9)),
        // Some in the ring, and a table at the end.
        Layout::mixed(1),
        Layout::mixed(3).readable(Pieces::Each(5)).writable(cut),
    ];
    let (mut guest, _viewer) = kit::with_screen();
    let mut ask = |layout: &Layout, lane, request: &Request| {
        let _ = guest.queue(lane).add(&request.bytes(), request.room(), layout).expect("room");
        guest.publish(lane);
        let used = take(&mut guest, lane);
        (used.written, used.response)
    };
    let cursor = Request::move_cursor(0, (3, 4)).fenced(8);
    let expected: Vec<_> = questions.iter().map(|request| ask(&Layout::default(), Lane::Control, request)).collect();
    let expected_cursor = ask(&Layout::default(), Lane::Cursor, &cursor);
    assert_eq!(expected.iter().map(|(written, _)| *written).collect::<Vec<_>>(), [408, 1056, 40, 24]);
    for layout in &layouts {
        let answers: Vec<_> = questions.iter().map(|request| ask(layout, Lane::Control, request)).collect();
        assert!(answers == expected, "{layout:?}");
        // The cursor queue is short.
        if layout.readable == Pieces::One {
            assert_eq!(ask(layout, Lane::Cursor, &cursor), expected_cursor, "{layout:?}");
        }
    }
}

/// Sends bytes from memory that is looked at afterwards: what the used ring says was written, and what was.
fn into_canary(guest: &mut Guest, lane: Lane, request: &[u8], room: u32) -> (u32, Vec<u8>) {
    const CANARY: u8 = 0x3c;
    let area = guest.ram().alloc(4096, 4096);
    guest.ram().write(area, &[CANARY; 4096]);
    guest.ram().write(area, request);
    let answer = GuestAddress(area.0 + 1024);
    let mut segments = vec![Segment::readable(area, request.len() as u32)];
    if room > 0 {
        segments.push(Segment::writable(answer, room));
    }
    let _ = guest.queue(lane).add_scattered(&segments, Table::Auto).expect("room");
    guest.publish(lane);
    let written = take(guest, lane).written;
    let after = guest.ram().read(area, 4096);
    assert_eq!(&after[..request.len()], request, "the device wrote to the request");
    let (before, rest) = after[request.len()..].split_at(1024 - request.len());
    let (answer, behind) = rest.split_at(written as usize);
    assert!(before.iter().chain(behind).all(|byte| *byte == CANARY), "the device wrote elsewhere");
    assert!(written <= room);
    guest.ram().free(area, 4096);
    (written, answer.to_vec())
}

#[test]
fn spec_20_used_len_is_what_was_written_and_nothing_else_is_ever_written() {
    let (mut guest, _viewer) = kit::with_screen();
    for (request, len, least) in [
        (Request::display_info(), 408, 408),
        (Request::get_edid(0), 1056, 1056),
        (Request::capset(5, 1, 16), 40, 40),
        (Request::capset_info(0), 40, 40),
        (Request::set_scanout(0, 0, [0; 4]), 24, 24),
        (Request::unref(99), 24, 0),
        (Request::new(0xbad, &[]), 24, 0),
    ] {
        for room in [0, 1, 3, 23, 24, 25, 39, 40, 64, 407, 408, 409, 1055, 1056, 1057, 2048] {
            let (written, answer) = into_canary(&mut guest, Lane::Control, &request.bytes(), room);
            // Without room for the answer the command is refused, in as much of a header as fits.
            let expected = if room < least { room.min(24) } else { room.min(len) };
            assert_eq!(written, expected, "room of {room} for {:x?}", &request.bytes()[..2]);
            if room < least && room >= 4 {
                assert_eq!(answer[..4], ERR_INVALID_PARAMETER.to_le_bytes(), "room of {room}");
            }
        }
    }
    // Linux leaves no room on the cursor queue.
    for room in [0, 24, 100] {
        let (written, _) = into_canary(&mut guest, Lane::Cursor, &Request::move_cursor(0, (1, 1)).bytes(), room);
        assert_eq!(written, room.min(24));
    }
}

#[test]
fn spec_20_a_command_without_room_for_its_answer_has_no_effect() {
    let (mut guest, viewer) = kit::with_screen();
    let (written, _) = into_canary(&mut guest, Lane::Control, &Request::create_2d(1, 1, 8, 8).bytes(), 23);
    assert_eq!(written, 23);
    kit::refused(&mut guest, &Request::unref(1), ERR_INVALID_RESOURCE_ID);
    let drawing = Drawing::new(&mut guest, 2, 8, 8);
    let (written, _) = into_canary(&mut guest, Lane::Control, &Request::set_scanout(0, 2, drawing.whole()).bytes(), 8);
    assert_eq!(written, 8);
    kit::assert_untouched(&viewer);
}

#[test]
fn spec_20_the_write_flag_of_an_indirect_descriptor_means_nothing() {
    const FLAGS: u64 = 12;
    const WRITE: u16 = 2;
    let (mut guest, _viewer) = kit::with_screen();
    for direct in [0, 1] {
        let request = Request::display_info();
        let layout = Layout::mixed(direct);
        let token = guest.queue(Lane::Control).add(&request.bytes(), request.room(), &layout).expect("room");
        let table = guest.queue(Lane::Control).device_queue().desc_table();
        let field = |guest: &Guest, index: u16, at: u64| {
            let address = GuestAddress(table + u64::from(index) * 16 + at);
            let bytes = guest.ram().read(address, 2);
            (address, u16::from_le_bytes([bytes[0], bytes[1]]))
        };
        let indirect = if direct == 0 { token.head() } else { field(&guest, token.head(), 14).1 };
        let (at, flags) = field(&guest, indirect, FLAGS);
        assert_eq!(flags & 4, 4, "VIRTQ_DESC_F_INDIRECT");
        guest.ram().write(at, &(flags | WRITE).to_le_bytes());
        guest.publish(Lane::Control);
        let answer = guest.wait(token);
        assert_eq!((answer.kind(), answer.written), (OK_DISPLAY_INFO, 408));
    }
}
