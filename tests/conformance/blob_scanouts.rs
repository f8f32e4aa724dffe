//! Item 45: blobs on scanouts. A blob has no sides of its own: SET_SCANOUT_BLOB says how a picture lies in it, and every
//! byte that it speaks of must be there.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::fs::{fstat, ftruncate};
use virtio_gpu_uring::protocol::wire::SetScanoutBlob;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_INVALID_SCANOUT_ID,
};
use virtio_gpu_uring::testing::{Guest, Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{
    Access, Area, BufferKind, Builder, Cursor, Display, Format, HostBuffer, Monitor, Picture, Pixels, Plane, Work,
};
use vm_memory::GuestAddress;

use crate::frames::order;
use crate::kit::{
    B8G8R8X8, Drawing, PAGE, area, assert_untouched, cursor, done, frame, memfd, offer, offer_buffer, pattern, refused,
    with_screen, with_screens,
};

/// The rows of a picture that lies in bytes.
fn rows(bytes: &[u8], offset: u32, stride: u32, [x, y, w, h]: [u32; 4]) -> Vec<u8> {
    let row = |row: u32| &bytes[(offset + row * stride + x * 4) as usize..][..(w * 4) as usize];
    (y..y + h).flat_map(row).copied().collect()
}

/// A blob of three pages of guest memory in odd pieces, and what it holds.
#[track_caller]
fn guest_blob(guest: &mut Guest, id: u32) -> Vec<u8> {
    let bytes = pattern(3 * PAGE as usize, id);
    let (mut list, mut at) = (Vec::new(), 0);
    for len in [1, 4095, 13, 131, 4097, 3951] {
        let address = guest.ram().alloc(len + 3, 16).0 + 3;
        guest.ram().write(GuestAddress(address), &bytes[at..at + len]);
        list.push((address, len as u32));
        at += len;
    }
    assert_eq!(at, bytes.len());
    done(guest, &Request::guest_blob(id, bytes.len() as u64, &list));
    bytes
}

/// A blob of three pages of a host buffer, what it holds, and its file.
#[track_caller]
fn host_blob(guest: &mut Guest, id: u32) -> (Vec<u8>, OwnedFd) {
    let bytes = pattern(3 * PAGE as usize, id);
    let file = memfd("spec-45", &bytes);
    let offered = offer(guest, file.try_clone().expect("a duplicate"));
    done(guest, &Request::host_blob(1, id, offered, 3 * PAGE));
    (bytes, file)
}

/// Offsets and strides of a picture of 20x9 that fits into three pages: packed, wider rows, an odd begin, the very end.
const LAYOUTS: [(u32, u32); 6] =
    [(0, 80), (0, 84), (3, 81), (100, 500), (12288 - 8 * 1024 - 80, 1024), (12288 - 720, 80)];

#[test]
fn spec_45_a_picture_in_guest_memory_is_never_read_with_other_strides_or_offsets() {
    let (mut guest, viewer) = with_screen();
    let bytes = guest_blob(&mut guest, 1);
    for (offset, stride) in LAYOUTS {
        done(&mut guest, &Request::set_scanout_blob(0, 1, [20, 9], B8G8R8X8, stride, offset));
        assert_eq!(viewer.take(), [attached(20, 9)]);
        done(&mut guest, &Request::flush(1, [0, 0, 20, 9]));
        assert_eq!(frame(&viewer), (area(0, 0, 20, 9), rows(&bytes, offset, stride, [0, 0, 20, 9])));
        done(&mut guest, &Request::flush(1, [3, 2, 11, 5]));
        assert_eq!(frame(&viewer), (area(3, 2, 11, 5), rows(&bytes, offset, stride, [3, 2, 11, 5])));
    }
}

#[test]
fn spec_45_a_picture_in_host_memory_is_never_read_with_other_strides_or_offsets_nor_too_early() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 5));
    let (_, file) = host_blob(&mut guest, 1);
    for (seed, (offset, stride)) in (20..).zip(LAYOUTS) {
        done(&mut guest, &Request::set_scanout_blob(0, 1, [20, 9], B8G8R8X8, stride, offset));
        assert_eq!(viewer.take(), [attached(20, 9)]);
        // What is there at the time of the flush is what is shown.
        let bytes = pattern(3 * PAGE as usize, seed);
        rustix::io::pwrite(&file, &bytes, 0).expect("written");
        done(&mut guest, &Request::flush(1, [0, 0, 20, 9]));
        assert_eq!(frame(&viewer), (area(0, 0, 20, 9), rows(&bytes, offset, stride, [0, 0, 20, 9])));
        done(&mut guest, &Request::flush(1, [19, 0, 1, 9]));
        assert_eq!(frame(&viewer), (area(19, 0, 1, 9), rows(&bytes, offset, stride, [19, 0, 1, 9])));
    }
}

fn attached(width: u32, height: u32) -> Shown {
    Shown::Attached { width, height, format: Format::B8G8R8X8, by_buffer: false }
}

#[test]
fn spec_45_no_format_is_ever_missing_or_mixed_up() {
    let (mut guest, viewer) = with_screen();
    let bytes = guest_blob(&mut guest, 1);
    for format in Format::ALL {
        done(&mut guest, &Request::set_scanout_blob(0, 1, [4, 4], format.wire(), 16, 0));
        assert_eq!(viewer.take(), [Shown::Attached { width: 4, height: 4, format, by_buffer: false }]);
        done(&mut guest, &Request::flush(1, [0, 0, 4, 4]));
        assert_eq!(frame(&viewer).1, bytes[..64]);
    }
    for format in [0, 5, 66, 135, 0x3432_5258, u32::MAX] {
        let set = Request::set_scanout_blob(0, 1, [4, 4], format, 16, 0);
        refused(&mut guest, &set, ERR_INVALID_PARAMETER);
    }
    assert_untouched(&viewer);
}

/// The body for a picture of 20x9 in one plane, changed.
fn changed(change: impl FnOnce(&mut SetScanoutBlob)) -> Request {
    let mut body = Request::scanout_blob(0, 1, [2, 1, 10, 8], [20, 9], B8G8R8X8);
    body.strides[0] = 80.into();
    change(&mut body);
    Request::with_scanout_blob(&body)
}

/// Descriptions that reach out of a blob of three pages, or of its picture.
fn outside() -> Vec<Request> {
    let mut requests = Vec::new();
    for rect in [
        [0, 0, 0, 0],
        [0, 0, 20, 0],
        [0, 0, 0, 9],
        [0, 0, 21, 9],
        [0, 0, 20, 10],
        [20, 0, 1, 1],
        [0, 9, 1, 1],
        [u32::MAX, 0, 2, 1],
        [0, u32::MAX, 1, 2],
        [1, 1, u32::MAX, u32::MAX],
    ] {
        let [x, y, width, height] = rect.map(Into::into);
        requests.push(changed(|body| body.rect = virtio_gpu_uring::protocol::wire::Rect { x, y, width, height }));
    }
    for (width, height) in
        [(0, 9), (20, 0), (21, 9), (20, 154), (u32::MAX, 9), (20, u32::MAX), (0x4000_0000, 9), (0x4000_0014, 9)]
    {
        requests.push(changed(|body| (body.width, body.height) = (width.into(), height.into())));
    }
    // A row is 80 bytes; the last begins at offset + 8 strides.
    for (stride, offset) in [
        (0, 0),
        (79, 0),
        (80, 12288 - 719),
        (80, 12288),
        (80, u32::MAX),
        (80, u32::MAX - 79),
        (1527, 0),
        (u32::MAX, 0),
        (u32::MAX, u32::MAX),
        (0x2000_0000, 0),
        (0x8000_0000, 0),
        (1024, 12288 - 8 * 1024 - 79),
    ] {
        requests.push(changed(|body| (body.strides[0], body.offsets[0]) = (stride.into(), offset.into())));
    }
    requests
}

#[test]
fn spec_45_a_picture_that_reaches_out_of_its_blob_is_never_shown() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 5));
    for host in [false, true] {
        let bytes = if host { host_blob(&mut guest, 1).0 } else { guest_blob(&mut guest, 1) };
        done(&mut guest, &changed(|_| ()));
        assert_eq!(viewer.take(), [attached(10, 8)]);
        for request in outside() {
            refused(&mut guest, &request, ERR_INVALID_PARAMETER);
        }
        for id in [2, u32::MAX] {
            refused(&mut guest, &changed(|body| body.resource_id = id.into()), ERR_INVALID_RESOURCE_ID);
        }
        for id in [1, 16, u32::MAX] {
            refused(&mut guest, &changed(|body| body.scanout_id = id.into()), ERR_INVALID_SCANOUT_ID);
        }
        // What was refused has changed nothing.
        assert_untouched(&viewer);
        done(&mut guest, &Request::flush(1, [0, 0, 20, 9]));
        assert_eq!(frame(&viewer), (area(0, 0, 10, 8), rows(&bytes, 0, 80, [2, 1, 10, 8])));
        // To the last byte: 1526 bytes from row to row, and the last row ends 0 to 3 bytes before the blob.
        done(&mut guest, &changed(|body| body.strides[0] = 1526.into()));
        let _ = viewer.take();
        done(&mut guest, &Request::flush(1, [0, 0, 20, 9]));
        assert_eq!(frame(&viewer).1, rows(&bytes, 0, 1526, [2, 1, 10, 8]));
        done(&mut guest, &Request::unref(1));
        assert_eq!(viewer.take(), [Shown::Detached]);
    }
}

#[test]
fn spec_45_all_four_planes_are_always_looked_at() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 5));
    host_blob(&mut guest, 1);
    let buffer = HostBuffer::stand_in(memfd("spec-45", &[0; 12288]), BufferKind::DmaBuf, 12288, Access::ReadWrite);
    let offered = offer_buffer(&guest, buffer);
    done(&mut guest, &Request::host_blob(1, 2, offered, 12288));
    for (resource, plane) in [1, 2].into_iter().flat_map(|resource| [1, 2, 3].map(|plane| (resource, plane))) {
        for (stride, offset) in [(80, 12288), (80, 12289), (80, u32::MAX), (u32::MAX, u32::MAX), (0, u32::MAX)] {
            let request = changed(|body| {
                body.resource_id = resource.into();
                (body.strides[plane], body.offsets[plane]) = (stride.into(), offset.into());
            });
            refused(&mut guest, &request, ERR_INVALID_PARAMETER);
        }
        // Several planes are an exporter's own affair: in memory of no exporter nobody can make anything of them.
        let planes = changed(|body| (body.strides[plane], body.offsets[plane]) = (80.into(), 4096.into()));
        refused(&mut guest, &planes, ERR_INVALID_PARAMETER);
    }
    assert_untouched(&viewer);
}

/// What a display was handed of a dma-buf: its file's number, its sides, its planes, the part that is shown.
type Handed = (u64, (u32, u32), Vec<Plane>, Area);

/// A display that takes dma-bufs and tells what it was handed.
struct Taker(Sender<Handed>);

impl Display for Taker {
    fn takes_buffer(&mut self, _picture: &Picture<'_>) -> bool {
        true
    }

    fn attach(&mut self, picture: &Picture<'_>) {
        let buffer = picture.buffer.as_ref().expect("the dma-buf that it asked for");
        let node = fstat(buffer.file).expect("a file").st_ino;
        assert_eq!((picture.width, picture.height), (buffer.shown.width, buffer.shown.height));
        let handed = (node, (buffer.width, buffer.height), buffer.planes.to_vec(), buffer.shown);
        self.0.send(handed).expect("a test");
    }

    fn draw(&mut self, area: Area, _pixels: Pixels<'_>) {
        panic!("drawn at {area:?}, where it has the dma-buf");
    }

    fn frame(&mut self, _damage: Area) -> Work<()> {
        Work::Done(())
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}

    fn move_cursor(&mut self, _position: (i32, i32)) {}

    fn detach(&mut self) {}
}

/// A device with a dma-buf of three pages in blob 1, on a display that takes it: its file's number.
fn with_dma_buf(display: impl Display) -> (Guest, u64) {
    let mut guest = Guest::start(Builder::new().display(0, Monitor::new(800, 600), display));
    done(&mut guest, &Request::ctx_create(1, 5));
    let file = memfd("spec-45", &[0; 12288]);
    let node = fstat(&file).expect("a file").st_ino;
    let buffer = HostBuffer::stand_in(file, BufferKind::DmaBuf, 12288, Access::ReadWrite);
    let offered = offer_buffer(&guest, buffer);
    done(&mut guest, &Request::host_blob(1, 1, offered, 12288));
    (guest, node)
}

#[test]
fn spec_45_a_display_that_takes_dma_bufs_never_gets_another_or_with_other_planes() {
    let (told, handed): (_, Receiver<Handed>) = channel();
    let (mut guest, node) = with_dma_buf(Taker(told));
    done(&mut guest, &changed(|body| (body.strides[0], body.offsets[0]) = (96.into(), 64.into())));
    let first = Plane { offset: 64, stride: 96 };
    assert_eq!(handed.try_recv(), Ok((node, (20, 9), vec![first], area(2, 1, 10, 8))));
    done(&mut guest, &Request::flush(1, [0, 0, 20, 9]));
    let four = changed(|body| {
        body.strides = [96, 48, 32, 16].map(Into::into);
        body.offsets = [64, 4096, 8192, 12287].map(Into::into);
    });
    done(&mut guest, &four);
    let planes = [(64, 96), (4096, 48), (8192, 32), (12287, 16)];
    let planes = planes.map(|(offset, stride)| Plane { offset, stride }).to_vec();
    assert_eq!(handed.try_recv(), Ok((node, (20, 9), planes, area(2, 1, 10, 8))));
    done(&mut guest, &Request::flush(1, [0, 0, 20, 9]));
    assert!(handed.try_recv().is_err(), "attached again by a flush");
}

#[test]
fn spec_45_a_display_with_the_dma_buf_is_never_drawn_to_but_always_told_the_damage() {
    let (screen, viewer) = Screen::taking_buffers();
    let (mut guest, node) = with_dma_buf(screen);
    done(&mut guest, &changed(|_| ()));
    let format = Format::B8G8R8X8;
    assert_eq!(viewer.take(), [Shown::Attached { width: 10, height: 8, format, by_buffer: true }]);
    let file = viewer.take_buffer().expect("the dma-buf");
    assert_eq!(fstat(file.as_fd()).expect("a file").st_ino, node);
    done(&mut guest, &Request::flush(1, [0, 0, 20, 9]));
    done(&mut guest, &Request::flush(1, [11, 8, 9, 1]));
    done(&mut guest, &Request::flush(1, [12, 0, 8, 9]));
    assert_eq!(viewer.take(), [Shown::Frame(area(0, 0, 10, 8)), Shown::Frame(area(9, 7, 1, 1))]);
    done(&mut guest, &Request::unref(1));
    assert_eq!(viewer.take(), [Shown::Detached]);
}

#[test]
fn spec_45_a_blob_without_memory_is_never_drawn_and_with_memory_always() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::guest_blob(1, PAGE, &[]));
    done(&mut guest, &Request::set_scanout_blob(0, 1, [8, 8], B8G8R8X8, 32, 0));
    assert_eq!(viewer.take(), [Shown::Attached { width: 8, height: 8, format: Format::B8G8R8X8, by_buffer: false }]);
    // There is nothing to show: the specification is silent on the code.
    refused(&mut guest, &Request::flush(1, [0, 0, 8, 8]), ERR_INVALID_PARAMETER);
    assert_untouched(&viewer);
    let bytes = pattern(PAGE as usize, 6);
    let (address, len) = guest.page_range(PAGE as usize);
    guest.ram().write(GuestAddress(address), &bytes);
    done(&mut guest, &Request::attach_backing(1, &[(address, len)]));
    done(&mut guest, &Request::flush(1, [0, 0, 8, 8]));
    assert_eq!(frame(&viewer).1, bytes[..256]);
    // What the guest writes is shown by the next flush, without a transfer.
    guest.ram().write(GuestAddress(address), &pattern(256, 7));
    done(&mut guest, &Request::flush(1, [0, 0, 8, 8]));
    assert_eq!(frame(&viewer).1, pattern(256, 7));
    done(&mut guest, &Request::detach_backing(1));
    refused(&mut guest, &Request::flush(1, [0, 0, 8, 8]), ERR_INVALID_PARAMETER);
    assert_untouched(&viewer);
}

#[test]
fn spec_45_a_buffer_that_another_owner_cuts_short_never_breaks_the_device() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 5));
    let (bytes, file) = host_blob(&mut guest, 1);
    done(&mut guest, &Request::set_scanout_blob(0, 1, [32, 96], B8G8R8X8, 128, 0));
    let _ = viewer.take();
    for len in [12287, 4096, 1, 0] {
        ftruncate(&file, len).expect("a size");
        let answer = guest.command(&Request::flush(1, [0, 0, 32, 96]));
        // The rest of a page that is there in part reads as zero; a page that is gone is an error.
        if len == 12287 {
            answer.ok();
            assert_eq!(frame(&viewer).1[..12287], bytes[..12287]);
        } else {
            assert!((0x1200..0x1206).contains(&answer.kind()), "{len} bytes left, answered {:#x}", answer.kind());
            assert_untouched(&viewer);
        }
        let _ = cursor(&mut guest, &Request::update_cursor(0, 1, (0, 0), (0, 0)));
    }
    ftruncate(&file, 12288).expect("a size");
    done(&mut guest, &Request::flush(1, [0, 0, 32, 96]));
    assert_eq!(frame(&viewer).1, vec![0; 12288]);
}

#[test]
fn spec_45_nothing_ever_waits_behind_a_large_frame_of_a_blob() {
    let (mut guest, viewer) = with_screen();
    done(&mut guest, &Request::ctx_create(1, 5));
    // 8K: 127 MiB, of which a row near each end is not zero.
    let (row, len) = (7680 * 4, 7680 * 4320 * 4);
    let file = memfd("spec-45", &pattern(row, 1));
    ftruncate(&file, len).expect("a size");
    let last = len - row as u64;
    assert_eq!(rustix::io::pwrite(&file, &pattern(row, 2), last).expect("written"), row);
    let offered = offer(&guest, file);
    done(&mut guest, &Request::host_blob(1, 1, offered, len));
    done(&mut guest, &Request::set_scanout_blob(0, 1, [7680, 4320], B8G8R8X8, row as u32, 0));
    let _ = viewer.take();
    let short = [Request::create_2d(2, 1, 4, 4), Request::display_info(), Request::unref(2), Request::get_edid(0)];
    assert_eq!(order(&mut guest, &Request::flush(1, [0, 0, 7680, 4320]), &short), short.len());
    let (damage, pixels) = frame(&viewer);
    assert_eq!(damage, area(0, 0, 7680, 4320));
    assert!(pixels[..row] == pattern(row, 1) && pixels[last as usize..] == pattern(row, 2), "its first and last row");
    let between = pixels[row..last as usize].chunks(row).all(|line| line == vec![0; row]);
    assert!(between, "what lies between them");
}

#[test]
fn spec_45_an_image_is_never_taken_for_a_blob_nor_a_blob_for_an_image() {
    let (mut guest, viewer) = with_screen();
    let drawing = Drawing::new(&mut guest, 1, 20, 9);
    guest_blob(&mut guest, 2);
    refused(&mut guest, &changed(|_| ()), ERR_INVALID_PARAMETER);
    refused(&mut guest, &Request::set_scanout(0, 2, [0, 0, 1, 1]), ERR_INVALID_PARAMETER);
    assert_untouched(&viewer);
    drawing.show(&mut guest, 0);
    let _ = viewer.take();
    // Resource 0 switches off by this command, too, whatever else it says.
    done(
        &mut guest,
        &changed(|body| {
            body.resource_id = 0.into();
            (body.width, body.format) = (u32::MAX.into(), 0.into());
        }),
    );
    assert_eq!(viewer.take(), [Shown::Detached]);
}

/// A guest whose blob 1 is on two scanouts, with pictures of other sides.
fn of_two_sizes() -> (Guest, Vec<Viewer>, Vec<u8>) {
    let (mut guest, viewers) = with_screens(2);
    let bytes = guest_blob(&mut guest, 1);
    done(&mut guest, &Request::set_scanout_blob(0, 1, [32, 24], B8G8R8X8, 128, 0));
    done(&mut guest, &Request::set_scanout_blob(1, 1, [16, 8], B8G8R8X8, 64, 4096));
    viewers.iter().for_each(|viewer| drop(viewer.take()));
    (guest, viewers, bytes)
}

#[test]
fn spec_45_a_blob_on_two_scanouts_never_lacks_damage_on_the_larger_one() {
    let (mut guest, viewers, bytes) = of_two_sizes();
    done(&mut guest, &Request::flush(1, [0, 0, 16, 8]));
    assert_eq!(frame(&viewers[0]).1, rows(&bytes, 0, 128, [0, 0, 16, 8]));
    assert_eq!(frame(&viewers[1]).1, rows(&bytes, 4096, 64, [0, 0, 16, 8]));
    // The whole of the larger picture: more than the smaller one has, which gets what it can show.
    done(&mut guest, &Request::flush(1, [0, 0, 32, 24]));
    assert_eq!(frame(&viewers[0]).1, rows(&bytes, 0, 128, [0, 0, 32, 24]));
    assert_eq!(frame(&viewers[1]).1, rows(&bytes, 4096, 64, [0, 0, 16, 8]));
}
