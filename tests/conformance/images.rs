//! Items 28 and 32 to 34: images of the host's, and the guest memory that they are filled from.

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY,
};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request, Shown};
use virtio_gpu_uring::{Builder, Format, Limits};
use vm_memory::GuestAddress;

use crate::kit::{
    B8G8R8X8, Drawing, PAGE, assert_untouched, crop, done, frame, memfd, offer, paste, pattern, raw, refused, screens,
    with_screen,
};

#[test]
fn spec_28_no_format_is_ever_missing_or_mixed_up() {
    let (mut guest, viewer) = with_screen();
    let formats = [1, 2, 3, 4, 67, 68, 121, 134];
    assert_eq!(Format::ALL.map(Format::wire), formats);
    for (id, number) in (1..).zip(formats) {
        let drawing = Drawing::untransferred(&mut guest, id, number, 7, 5);
        drawing.transfer(&mut guest, drawing.whole());
        drawing.show(&mut guest, 0);
        let format = Format::from_wire(number).expect("a format");
        assert_eq!(viewer.take(), [Shown::Attached { width: 7, height: 5, format, by_buffer: false }]);
        drawing.flush(&mut guest);
        assert_eq!(frame(&viewer).1, drawing.bytes, "the bytes of {format:?}, in their order");
    }
    for number in [0, 5, 6, 66, 69, 120, 122, 133, 135, 0x102, 1 << 31, u32::MAX] {
        refused(&mut guest, &Request::create_2d(100, number, 7, 5), ERR_INVALID_PARAMETER);
    }
    // None of them has left something under the id.
    done(&mut guest, &Request::create_2d(100, 1, 7, 5));
}

#[test]
fn spec_28_a_new_image_never_shows_what_was_in_memory_before() {
    let (mut guest, viewer) = with_screen();
    for round in 0..3 {
        let drawing = Drawing::untransferred(&mut guest, 1, B8G8R8X8, 64, 64);
        assert_eq!(drawing.look(&mut guest, 0, &viewer), vec![0; 64 * 64 * 4], "round {round}");
        drawing.transfer(&mut guest, drawing.whole());
        done(&mut guest, &Request::unref(1));
    }
}

#[test]
fn spec_28_id_0_or_one_in_use_is_never_given_to_a_new_resource() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 5));
    let drawing = Drawing::new(&mut guest, 1, 8, 8);
    let page = guest.page_range(PAGE as usize);
    done(&mut guest, &Request::guest_blob(2, PAGE, &[page]));
    let id = offer(&guest, memfd("spec-28", &[1; 16]));
    done(&mut guest, &Request::host_blob(1, 3, id, PAGE));
    let offered = offer(&guest, memfd("spec-28", &[2; 16]));
    for id in [0, 1, 2, 3] {
        for create in [
            Request::create_2d(id, 1, 8, 8),
            Request::guest_blob(id, PAGE, &[page]),
            Request::host_blob(1, id, offered, PAGE),
            Request::create_3d(id, 2, 1, 8, 8),
        ] {
            refused(&mut guest, &create, ERR_INVALID_RESOURCE_ID);
        }
    }
    // All three are what they were, and the offer is still one.
    assert_eq!(drawing.look(&mut guest, 0, &viewer), drawing.bytes);
    done(&mut guest, &Request::detach_backing(2));
    assert_eq!(guest.device().read_blob(3, 0..16).wait().expect("a device").expect("a blob"), [1; 16]);
    done(&mut guest, &Request::host_blob(1, 4, offered, PAGE));
    // Any other number is a good one.
    done(&mut guest, &Request::create_2d(u32::MAX, 1, 8, 8));
    refused(&mut guest, &Request::create_2d(u32::MAX, 1, 8, 8), ERR_INVALID_RESOURCE_ID);
}

#[test]
fn spec_28_a_size_never_overflows_nor_takes_what_the_host_has_not_allowed() {
    let limits = Limits { image_bytes: 64 << 20, resources: 8, ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits).scanouts(1));
    // No picture has such sides, whatever the memory.
    for (width, height) in [
        (0, 0),
        (0, 1),
        (1, 0),
        (u32::MAX, u32::MAX),
        (u32::MAX, 1),
        (1, u32::MAX),
        (1 << 30, 1 << 2),
        (0x4000_0001, 1),
        (1 << 16, 1 << 16),
        (1 << 31, 1 << 31),
        (32769, 1),
        (1, 32769),
    ] {
        refused(&mut guest, &Request::create_2d(1, 1, width, height), ERR_INVALID_PARAMETER);
    }
    // Such pictures there are, but not here.
    for (width, height) in [(32768, 32768), (32768, 513), (4096, 4097)] {
        refused(&mut guest, &Request::create_2d(1, 1, width, height), ERR_OUT_OF_MEMORY);
    }
    // What was refused is charged to nobody: all of the allowance is there, and again after an UNREF.
    for _ in 0..2 {
        done(&mut guest, &Request::create_2d(1, 1, 4096, 4096));
        refused(&mut guest, &Request::create_2d(2, 1, 1, 1), ERR_OUT_OF_MEMORY);
        done(&mut guest, &Request::unref(1));
    }
    for (id, (width, height)) in (1..).zip([(32768, 1), (1, 32768), (1, 1)]) {
        done(&mut guest, &Request::create_2d(id, 1, width, height));
    }
}

#[test]
fn spec_32_a_transfer_as_linux_sends_it_never_lands_elsewhere() {
    let (mut guest, viewer) = with_screen();
    let (width, height) = (37, 23);
    let mut drawing = Drawing::new(&mut guest, 1, width, height);
    let mut expected = drawing.bytes.clone();
    for (seed, rect) in (50..).zip([
        [0, 0, 1, 1],
        [36, 22, 1, 1],
        [0, 0, 37, 1],
        [0, 22, 37, 1],
        [0, 0, 1, 23],
        [36, 0, 1, 23],
        [5, 7, 11, 13],
        [0, 3, 37, 9],
        [1, 1, 36, 22],
        [0, 0, 37, 23],
    ]) {
        drawing.redraw(&guest, seed);
        // offset = y * pitch + x * 4: where the box's first pixel lies in the backing.
        drawing.transfer(&mut guest, rect);
        paste(&mut expected, width, rect, &crop(&drawing.bytes, width, rect));
        assert_eq!(drawing.look(&mut guest, 0, &viewer), expected, "{rect:?}, and nothing around it");
    }
}

#[test]
fn spec_32_an_offset_is_never_counted_twice_nor_left_out() {
    let (mut guest, viewer) = with_screen();
    let drawing = Drawing::new(&mut guest, 1, 16, 16);
    let mut expected = drawing.bytes.clone();
    // Offsets that have nothing to do with the box: rows are a pitch of the image apart, from wherever it says.
    for (rect, offset) in
        [([4, 5, 3, 2], 0u64), ([0, 0, 3, 3], 1), ([9, 9, 4, 4], 64), ([0, 15, 16, 1], 3), ([15, 0, 1, 2], 955)]
    {
        done(&mut guest, &Request::transfer_2d(1, rect, offset));
        let rows: Vec<u8> = (0..rect[3] as usize)
            .flat_map(|row| drawing.bytes[offset as usize + row * 64..][..rect[2] as usize * 4].to_vec())
            .collect();
        paste(&mut expected, 16, rect, &rows);
        assert_eq!(drawing.look(&mut guest, 0, &viewer), expected, "{rect:?} from {offset}");
    }
}

#[test]
fn spec_32_a_transfer_outside_the_image_or_the_backing_is_never_begun() {
    let (mut guest, viewer) = with_screen();
    let mut drawing = Drawing::new(&mut guest, 1, 16, 16);
    let before = drawing.bytes.clone();
    drawing.redraw(&guest, 9);
    for rect in [
        [0, 0, 0, 0],
        [0, 0, 16, 0],
        [0, 0, 0, 16],
        [0, 0, 17, 16],
        [0, 0, 16, 17],
        [16, 0, 1, 1],
        [0, 16, 1, 1],
        [u32::MAX, 0, 1, 1],
        [u32::MAX, 0, 2, 1],
        [0, u32::MAX, 1, 2],
        [1, 0, u32::MAX, 1],
        [0, 1, 1, u32::MAX],
        [0x4000_0000, 0, 1, 1],
        [u32::MAX; 4],
    ] {
        refused(&mut guest, &Request::transfer_2d(1, rect, 0), ERR_INVALID_PARAMETER);
    }
    // The last byte must be in the backing of 1024, and the sum must not come round.
    for (rect, offset) in [
        ([0, 0, 16, 16], 1),
        ([0, 0, 16, 16], 1024),
        ([0, 0, 1, 1], 1021),
        ([0, 0, 1, 16], 1024 - 15 * 64 - 3),
        ([0, 0, 1, 1], u64::MAX),
        ([0, 0, 1, 1], u64::MAX - 3),
        ([0, 0, 1, 1], u64::MAX - 4),
        ([0, 0, 16, 16], u64::MAX - 1022),
        ([0, 0, 1, 1], 1 << 63),
        ([0, 0, 1, 1], 1 << 32),
    ] {
        refused(&mut guest, &Request::transfer_2d(1, rect, offset), ERR_INVALID_PARAMETER);
    }
    for id in [0, 2, u32::MAX] {
        refused(&mut guest, &Request::transfer_2d(id, [0, 0, 1, 1], 0), ERR_INVALID_RESOURCE_ID);
    }
    assert_eq!(drawing.look(&mut guest, 0, &viewer), before);
    // The very last pixel can be had.
    done(&mut guest, &Request::transfer_2d(1, [15, 15, 1, 1], 1020));
    assert_eq!(drawing.look(&mut guest, 0, &viewer)[1020..], drawing.bytes[1020..]);
}

#[test]
fn spec_32_a_backing_shorter_than_the_image_never_fills_more_than_it_holds() {
    let (mut guest, viewer) = with_screen();
    let bytes = pattern(600, 4);
    let (address, _) = guest.page_range(PAGE as usize);
    guest.ram().write(GuestAddress(address), &bytes);
    done(&mut guest, &Request::create_2d(1, B8G8R8X8, 16, 16));
    refused(&mut guest, &Request::transfer_2d(1, [0, 0, 16, 1], 0), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::attach_backing(1, &[(address, 600)]));
    for rect in [[0, 0, 16, 16], [0, 0, 16, 10]] {
        refused(&mut guest, &Request::transfer_2d(1, rect, 0), ERR_INVALID_PARAMETER);
    }
    // Nine rows of 64 bytes are there, and of the tenth 24: six pixels.
    refused(&mut guest, &Request::transfer_2d(1, [0, 9, 7, 1], 576), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::transfer_2d(1, [0, 0, 16, 9], 0));
    done(&mut guest, &Request::transfer_2d(1, [0, 9, 6, 1], 576));
    done(&mut guest, &Request::set_scanout(0, 1, [0, 0, 16, 16]));
    let _ = viewer.take();
    done(&mut guest, &Request::flush(1, [0, 0, 16, 16]));
    let mut expected = bytes;
    expected.resize(1024, 0);
    assert_eq!(frame(&viewer).1, expected);
}

#[test]
fn spec_32_a_transfer_in_several_turns_never_loses_a_row() {
    let (builder, viewers) = screens(Builder::new(), 1);
    let mut guest = Guest::with_options(builder, GuestOptions { ram: 48 << 20, ..GuestOptions::default() });
    let mut drawing = Drawing::new(&mut guest, 1, 1999, 1001);
    assert!(drawing.look(&mut guest, 0, &viewers[0]) == drawing.bytes, "the whole image");
    let mut expected = drawing.bytes.clone();
    drawing.redraw(&guest, 12);
    let rect = [1, 1, 1997, 999];
    drawing.transfer(&mut guest, rect);
    paste(&mut expected, 1999, rect, &crop(&drawing.bytes, 1999, rect));
    assert!(drawing.look(&mut guest, 0, &viewers[0]) == expected, "all but its edges");
}

#[test]
fn spec_32_a_blob_is_never_taken_for_an_image() {
    let mut guest = Guest::start(Builder::new());
    done(&mut guest, &Request::ctx_create(1, 5));
    let id = offer(&guest, memfd("spec-32", &[1; 16]));
    done(&mut guest, &Request::host_blob(1, 1, id, PAGE));
    refused(&mut guest, &Request::transfer_2d(1, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
    // The specification is silent on blobs of guest memory. Linux transfers what it draws into one, and nothing is to do.
    let (address, len) = guest.page_range(PAGE as usize);
    guest.ram().write(GuestAddress(address), &[6; 4096]);
    done(&mut guest, &Request::guest_blob(2, PAGE, &[(address, len)]));
    done(&mut guest, &Request::transfer_2d(2, [0, 0, 32, 32], 0));
    assert_eq!(guest.ram().read(GuestAddress(address), 4096), [6; 4096]);
}

/// Cuts `len` bytes into these lengths, over and over, and gives each a place in guest memory, no two of them neighbours but
/// where a length is 0: then the piece before goes on.
fn scatter(guest: &Guest, bytes: &[u8], lengths: &[usize]) -> Vec<(u64, u32)> {
    let (mut list, mut at) = (Vec::new(), 0);
    for (round, len) in lengths.iter().cycle().enumerate() {
        let len = (*len).min(bytes.len() - at);
        if len == 0 {
            return list;
        }
        // An odd address, in another order than the list's.
        let address = guest.ram().alloc(len + 7, 16).0 + 1 + round as u64 % 5;
        guest.ram().write(GuestAddress(address), &bytes[at..at + len]);
        list.push((address, len as u32));
        at += len;
    }
    list
}

#[test]
fn spec_33_a_scatter_list_is_never_read_in_another_order_however_it_is_cut() {
    let (mut guest, viewer) = with_screen();
    let (width, height) = (33, 21);
    let len = (width * height * 4) as usize;
    for (id, lengths) in (1..).zip([
        &[1][..],
        &[1, 2, 3, 5, 7, 11, 13],
        &[131, 133],
        &[132],
        &[4096],
        &[1, 1000],
        &[65, 67, 1],
        &[len - 1, 1],
        &[len],
    ]) {
        let bytes = pattern(len, id);
        let list = scatter(&guest, &bytes, lengths);
        done(&mut guest, &Request::create_2d(id, B8G8R8X8, width, height));
        done(&mut guest, &Request::attach_backing(id, &list));
        let drawing = Drawing { id, width, height, address: 0, bytes };
        drawing.transfer(&mut guest, drawing.whole());
        assert_eq!(drawing.look(&mut guest, 0, &viewer), drawing.bytes, "pieces of {lengths:?}");
        // A box that begins and ends within pieces, onto itself moved by a pixel.
        let (rect, from) = ([3, 2, 29, 17], [4, 3, 29, 17]);
        done(&mut guest, &Request::transfer_2d(id, rect, drawing.offset(from)));
        let mut expected = drawing.bytes.clone();
        paste(&mut expected, width, rect, &crop(&drawing.bytes, width, from));
        assert_eq!(drawing.look(&mut guest, 0, &viewer), expected, "a box of pieces of {lengths:?}");
    }
}

#[test]
fn spec_33_neighbours_and_repeated_pieces_are_never_confused() {
    let (mut guest, viewer) = with_screen();
    let bytes = pattern(1024, 8);
    let (address, _) = guest.page_range(PAGE as usize);
    guest.ram().write(GuestAddress(address), &bytes);
    let list: Vec<(u64, u32)> = [
        // Neighbours in order, neighbours in the wrong order, the same again, overlapping.
        (0, 100),
        (100, 28),
        (128, 1),
        (129, 127),
        (512, 128),
        (384, 128),
        (0, 64),
        (0, 64),
        (0, 64),
        (10, 64),
        (20, 64),
        (1023, 1),
        (0, 191),
    ]
    .map(|(at, len)| (address + at, len))
    .to_vec();
    let gathered: Vec<u8> =
        list.iter().flat_map(|(at, len)| bytes[(at - address) as usize..][..*len as usize].to_vec()).collect();
    assert_eq!(gathered.len(), 1024);
    done(&mut guest, &Request::create_2d(1, B8G8R8X8, 16, 16));
    done(&mut guest, &Request::attach_backing(1, &list));
    let drawing = Drawing { id: 1, width: 16, height: 16, address, bytes: gathered };
    drawing.transfer(&mut guest, drawing.whole());
    assert_eq!(drawing.look(&mut guest, 0, &viewer), drawing.bytes);
}

#[test]
fn spec_33_a_list_that_is_not_all_guest_memory_is_never_attached_in_part() {
    let (mut guest, viewer) = with_screen();
    let drawing = Drawing::new(&mut guest, 1, 16, 16);
    done(&mut guest, &Request::detach_backing(1));
    let (end, good) = (guest.ram().end().0, (drawing.address, 512));
    for bad in [
        (end - 511, 512),
        (end, 1),
        (end - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 255, 512),
        (1 << 63, 16),
        (drawing.address, 0),
        (0, u32::MAX),
    ] {
        for list in [&[bad][..], &[good, bad], &[bad, good], &[good, bad, good]] {
            refused(&mut guest, &Request::attach_backing(1, list), ERR_INVALID_PARAMETER);
        }
    }
    refused(&mut guest, &Request::attach_backing(1, &[]), ERR_INVALID_PARAMETER);
    for id in [0, 2, u32::MAX] {
        refused(&mut guest, &Request::attach_backing(id, &[good]), ERR_INVALID_RESOURCE_ID);
    }
    // Nothing is behind it, and its pixels are what they were.
    refused(&mut guest, &Request::detach_backing(1), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::transfer_2d(1, [0, 0, 1, 1], 0), ERR_INVALID_PARAMETER);
    assert_eq!(drawing.look(&mut guest, 0, &viewer), drawing.bytes);
    // A second list never replaces the first.
    done(&mut guest, &Request::attach_backing(1, &[good, good]));
    refused(&mut guest, &Request::attach_backing(1, &[(drawing.address + 512, 512)]), ERR_INVALID_PARAMETER);
    drawing.transfer(&mut guest, drawing.whole());
    let half = &drawing.bytes[..512];
    assert_eq!(drawing.look(&mut guest, 0, &viewer), [half, half].concat());
}

#[test]
fn spec_33_a_list_longer_than_the_request_or_the_limit_is_never_believed() {
    let limits = Limits { backing_entries: 8, ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits));
    let drawing = Drawing::untransferred(&mut guest, 1, B8G8R8X8, 16, 16);
    done(&mut guest, &Request::create_2d(2, B8G8R8X8, 16, 16));
    // One of eight is taken.
    refused(&mut guest, &Request::attach_backing(2, &[(drawing.address, 16); 8]), ERR_OUT_OF_MEMORY);
    refused(&mut guest, &Request::attach_backing(2, &[(drawing.address, 16); 9]), ERR_OUT_OF_MEMORY);
    let full = Request::attach_backing(2, &[(drawing.address, 16); 7]).bytes();
    for count in [8u32, 9, 0x1000_0000, u32::MAX] {
        let mut bytes = full.clone();
        bytes[28..32].copy_from_slice(&count.to_le_bytes());
        let code = if count <= 8 { ERR_INVALID_PARAMETER } else { ERR_OUT_OF_MEMORY };
        raw(&mut guest, virtio_gpu_uring::testing::Lane::Control, &bytes, 24).expect_error(code);
    }
    refused(&mut guest, &Request::detach_backing(2), ERR_INVALID_PARAMETER);
    done(&mut guest, &Request::attach_backing(2, &[(drawing.address, 16); 7]));
}

#[test]
fn spec_34_detached_memory_is_never_looked_at_again() {
    let (mut guest, viewer) = with_screen();
    let mut drawing = Drawing::new(&mut guest, 1, 16, 16);
    let before = drawing.bytes.clone();
    done(&mut guest, &Request::detach_backing(1));
    drawing.redraw(&guest, 40);
    refused(&mut guest, &Request::transfer_2d(1, drawing.whole(), 0), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::detach_backing(1), ERR_INVALID_PARAMETER);
    for id in [0, 2, u32::MAX] {
        refused(&mut guest, &Request::detach_backing(id), ERR_INVALID_RESOURCE_ID);
    }
    // The image is the host's own and stays.
    assert_eq!(drawing.look(&mut guest, 0, &viewer), before);
    // Other memory takes its place.
    let bytes = pattern(1024, 41);
    let list = scatter(&guest, &bytes, &[100, 3]);
    done(&mut guest, &Request::attach_backing(1, &list));
    drawing.transfer(&mut guest, drawing.whole());
    assert_eq!(drawing.look(&mut guest, 0, &viewer), bytes);
    assert_untouched(&viewer);
}
