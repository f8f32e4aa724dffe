//! 3D resources and shadowed blobs, which are the renderer's: made, filled from guest memory and back, and refused.

use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY, ERR_UNSPEC,
};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_MAPPABLE, BLOB_MEM_HOST3D_GUEST, command_type};
use virtio_gpu_uring::testing::{Guest, Request, Screen, Token, Viewer};
use virtio_gpu_uring::{Builder, Direction, HostWindow, Limits, Monitor};
use vm_memory::GuestAddress;

use super::studio::{Fate, Visitor, studio};
use super::{Bench, words};

/// The wire's number of B8G8R8X8.
pub(super) const FORMAT: u32 = 2;
/// Of the pictures here.
pub(super) const WIDTH: u32 = 16;
pub(super) const HEIGHT: u32 = 8;
pub(super) const WHOLE: [u32; 4] = [0, 0, WIDTH, HEIGHT];
pub(super) const LEN: usize = (WIDTH * HEIGHT * 4) as usize;

/// A device with the renderer that has 3D resources, its display on scanout 0, and context 1.
pub(super) struct Gallery {
    pub(super) guest: Guest,
    pub(super) visitor: Visitor,
    pub(super) viewer: Viewer,
}

impl Gallery {
    pub(super) fn open(limits: Limits) -> Self {
        let (factory, visitor) = studio();
        let (screen, viewer) = Screen::new();
        let builder = Builder::new().limits(limits).renderer(factory);
        let builder = builder.window(HostWindow::new(1 << 20).expect("window"));
        let mut guest = Guest::start(builder.display(0, Monitor::new(WIDTH, HEIGHT), screen));
        guest.command(&Request::ctx_create(1, 1)).ok();
        visitor.expect(&["context 1"]);
        Self { guest, visitor, viewer }
    }

    /// With resource 7 of 16x8, without backing.
    pub(super) fn with_resource() -> Self {
        let mut gallery = Self::open(Limits::default());
        gallery.guest.command(&Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)).ok();
        gallery.visitor.expect(&["create 7 of 16x8"]);
        gallery
    }

    /// Puts guest memory behind resource 7: two pieces, the later one first.
    pub(super) fn back(&mut self) -> [(u64, u32); 2] {
        let (start, _) = self.guest.page_range(8192);
        let pieces = [(start + 4096, 100), (start, LEN as u32 - 100)];
        self.guest.command(&Request::attach_backing(7, &pieces)).ok();
        self.visitor.expect(&["back 7 with 512"]);
        pieces
    }

    fn write(&self, pieces: &[(u64, u32)], mut bytes: &[u8]) {
        for (address, len) in pieces {
            let (now, later) = bytes.split_at(bytes.len().min(*len as usize));
            self.guest.ram().write(GuestAddress(*address), now);
            bytes = later;
        }
    }

    fn read(&self, pieces: &[(u64, u32)]) -> Vec<u8> {
        let piece = |(address, len): &(u64, u32)| self.guest.ram().read(GuestAddress(*address), *len as usize);
        pieces.iter().flat_map(piece).collect()
    }
}

pub(super) fn pattern(seed: u32) -> Vec<u8> {
    (0..WIDTH * HEIGHT).flat_map(|pixel| (pixel * 3 + seed * 0x0101_0101).to_le_bytes()).collect()
}

#[test]
fn what_goes_to_a_renderer_and_back_is_never_changed_nor_lands_elsewhere() {
    let mut gallery = Gallery::with_resource();
    let pieces = gallery.back();
    let pixels = pattern(5);
    gallery.write(&pieces, &pixels);
    gallery.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).ok();
    gallery.write(&pieces, &[0xee; LEN]);
    // Two rows of four pixels, to where they came from.
    let offset = (2 * WIDTH + 3) * 4;
    gallery.guest.command(&Request::transfer_from_host_3d(1, 7, [3, 2, 4, 2], offset.into())).ok();
    gallery.visitor.expect(&["to 7 in 1", "from 7 in 1"]);
    let mut wanted = vec![0xee; LEN];
    for y in [2, 3] {
        let row = (y * WIDTH as usize + 3) * 4..(y * WIDTH as usize + 7) * 4;
        wanted[row.clone()].copy_from_slice(&pixels[row]);
    }
    assert_eq!(gallery.read(&pieces), wanted);
    gallery.guest.command(&Request::transfer_from_host_3d(0, 7, WHOLE, 0)).ok();
    gallery.visitor.expect(&["from 7 in 0"]);
    assert_eq!(gallery.read(&pieces), pixels);
    // Beyond its memory the renderer finds nothing.
    let beyond = Request::transfer_from_host_3d(1, 7, WHOLE, 4);
    gallery.guest.command(&beyond).expect_error(ERR_INVALID_PARAMETER);
    gallery.guest.assert_all_answered();
}

/// A body of little-endian words.
fn body(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn no_number_of_a_resource_or_a_transfer_is_ever_lost_on_the_way() {
    let mut gallery = Gallery::open(Limits::default());
    let create = [7, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 0];
    gallery.guest.command(&Request::new(command_type::RESOURCE_CREATE_3D, &body(&create))).ok();
    let made = gallery.visitor.resource();
    let numbers = [made.resource, made.target, made.format, made.bind, made.width, made.height, made.depth];
    assert_eq!(numbers, [7, 21, 22, 23, 24, 25, 26]);
    assert_eq!([made.array_size, made.last_level, made.samples, made.flags], [27, 28, 29, 30]);
    gallery.guest.command(&Request::unref(7)).ok();
    gallery.visitor.expect(&["create 7 of 24x25", "forget 7"]);
    gallery.guest.command(&Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)).ok();
    gallery.visitor.expect(&["create 7 of 16x8"]);
    // Box, offset, resource, level, stride, layer stride.
    let transfer = body(&[1, 2, 3, 4, 5, 6, 0x1111, 0x2222, 7, 8, 9, 10]);
    for (kind, direction) in [
        (command_type::TRANSFER_TO_HOST_3D, Direction::ToHost),
        (command_type::TRANSFER_FROM_HOST_3D, Direction::FromHost),
    ] {
        let refused = gallery.guest.command(&Request::new(kind, &transfer).context(1));
        refused.expect_error(ERR_INVALID_PARAMETER);
        let asked = gallery.visitor.transfer();
        assert_eq!((asked.context, asked.resource, asked.direction), (1, 7, direction));
        assert_eq!((asked.origin, asked.size, asked.offset), ([1, 2, 3], [4, 5, 6], 0x2222_0000_1111));
        assert_eq!((asked.level, asked.stride, asked.layer_stride), (8, 9, 10));
    }
}

fn shadowed(resource: u32, size: u64, list: &[(u64, u32)]) -> Request {
    Request::create_blob(resource, BLOB_MEM_HOST3D_GUEST, BLOB_FLAG_MAPPABLE, 99, size, list).context(1)
}

#[test]
fn a_shadowed_blob_is_never_without_the_memory_that_the_guest_gave_it() {
    let mut gallery = Gallery::open(Limits::default());
    let range = gallery.guest.page_range(4096);
    gallery.guest.command(&shadowed(7, 4096, &[range])).ok();
    gallery.guest.command(&shadowed(8, 4096, &[])).ok();
    gallery.visitor.expect(&[
        "shadow 7 of 1/99, 4096 bytes, flags 1, backed by 4096",
        "shadow 8 of 1/99, 4096 bytes, flags 1, backed by 0",
    ]);
    gallery.write(&[range], &pattern(3));
    gallery.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).ok();
    gallery.guest.command(&Request::transfer_to_host_3d(1, 8, WHOLE, 0)).expect_error(ERR_INVALID_PARAMETER);
    gallery.guest.command(&Request::detach_backing(7)).ok();
    gallery.guest.command(&Request::attach_backing(8, &[range])).ok();
    gallery.guest.command(&Request::transfer_to_host_3d(1, 8, WHOLE, 0)).ok();
    gallery.visitor.expect(&["to 7 in 1", "to 8 in 1", "unback 7", "back 8 with 4096", "to 8 in 1"]);
    // It has neither sides nor host memory that could be mapped.
    gallery.guest.command(&Request::set_scanout(0, 8, [0, 0, 1, 1])).expect_error(ERR_INVALID_PARAMETER);
    gallery.guest.command(&Request::map(8, 0)).expect_error(ERR_INVALID_PARAMETER);
    for resource in [7, 8] {
        gallery.guest.command(&Request::unref(resource)).ok();
    }
    gallery.visitor.expect(&["forget 7", "forget 8"]);
}

#[test]
fn what_makes_no_sense_never_reaches_the_renderer() {
    let mut gallery = Gallery::with_resource();
    gallery.guest.command(&Request::create_2d(9, FORMAT, WIDTH, HEIGHT)).ok();
    let range = gallery.guest.page_range(4096);
    let none = ERR_INVALID_RESOURCE_ID;
    let refused = [
        (Request::create_3d(0, 2, FORMAT, WIDTH, HEIGHT), none),
        (Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT), none),
        (Request::create_3d(9, 2, FORMAT, WIDTH, HEIGHT), none),
        (Request::transfer_to_host_3d(1, 8, WHOLE, 0), none),
        (Request::transfer_from_host_3d(1, 0, WHOLE, 0), none),
        (Request::transfer_to_host_3d(1, 9, WHOLE, 0), ERR_INVALID_PARAMETER),
        (Request::transfer_to_host_3d(2, 7, WHOLE, 0), ERR_INVALID_CONTEXT_ID),
        (Request::attach_backing(7, &[]), ERR_INVALID_PARAMETER),
        (Request::attach_backing(7, &[(1 << 40, 4096)]), ERR_INVALID_PARAMETER),
        (Request::attach_backing(8, &[range]), none),
        (Request::detach_backing(7), ERR_INVALID_PARAMETER),
        (Request::transfer_2d(7, WHOLE, 0), ERR_INVALID_PARAMETER),
        (shadowed(7, 4096, &[range]), none),
        (shadowed(8, 8192, &[range]), ERR_INVALID_PARAMETER),
        (shadowed(8, 0, &[]), ERR_INVALID_PARAMETER),
        (shadowed(8, 4096, &[(1 << 40, 4096)]), ERR_INVALID_PARAMETER),
        (shadowed(8, 4096, &[]).context(2), ERR_INVALID_CONTEXT_ID),
    ];
    for (index, (request, error)) in refused.into_iter().enumerate() {
        let answer = gallery.guest.command(&request);
        assert_eq!(answer.kind(), error, "request {index}");
    }
    gallery.visitor.expect_none();
    gallery.guest.command(&Request::create_3d(8, 2, FORMAT, WIDTH, HEIGHT)).ok();
    gallery.visitor.expect(&["create 8 of 16x8"]);
}

#[test]
fn a_resource_that_the_renderer_refuses_never_exists() {
    let limits = Limits { resources: 1, backing_entries: 1, ..Limits::default() };
    let mut gallery = Gallery::open(limits);
    let range = gallery.guest.page_range(4096);
    for (fate, error) in [(Fate::Invalid, ERR_INVALID_PARAMETER), (Fate::OutOfMemory, ERR_OUT_OF_MEMORY)] {
        gallery.visitor.order("create", Some(fate));
        gallery.visitor.order("shadow", Some(fate));
        for request in [Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT), shadowed(7, 4096, &[range])] {
            gallery.guest.command(&request).expect_error(error);
            gallery.visitor.next();
            gallery.guest.command(&Request::unref(7)).expect_error(ERR_INVALID_RESOURCE_ID);
        }
    }
    gallery.visitor.expect_none();
    gallery.visitor.order("create", None);
    gallery.guest.command(&Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)).ok();
}

#[test]
fn backing_that_the_renderer_refuses_is_never_attached_all_the_same() {
    let mut gallery = Gallery::with_resource();
    let range = gallery.guest.page_range(4096);
    for (fate, error) in [(Fate::OutOfMemory, ERR_OUT_OF_MEMORY), (Fate::Invalid, ERR_INVALID_PARAMETER)] {
        gallery.visitor.order("back", Some(fate));
        gallery.guest.command(&Request::attach_backing(7, &[range])).expect_error(error);
        gallery.visitor.expect(&["back 7 with 4096"]);
        // Nothing has changed: it has none, and may be given some.
        gallery.guest.command(&Request::detach_backing(7)).expect_error(ERR_INVALID_PARAMETER);
        gallery.visitor.expect_none();
    }
    gallery.visitor.order("back", None);
    gallery.guest.command(&Request::attach_backing(7, &[range])).ok();
    gallery.visitor.expect(&["back 7 with 4096"]);
    gallery.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).ok();
    gallery.guest.command(&Request::detach_backing(7)).ok();
}

#[test]
fn a_renderer_without_3d_resources_refuses_all_of_them_exactly() {
    let mut bench = Bench::with_context("without-3d");
    let range = bench.guest.page_range(4096);
    bench.guest.command(&Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)).expect_error(ERR_INVALID_PARAMETER);
    bench.guest.command(&shadowed(7, 4096, &[range])).expect_error(ERR_INVALID_PARAMETER);
    bench.guest.command(&Request::unref(7)).expect_error(ERR_INVALID_RESOURCE_ID);
    bench.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).expect_error(ERR_INVALID_RESOURCE_ID);
    bench.guest.command(&Request::guest_blob(7, 4096, &[range])).ok();
    bench.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).expect_error(ERR_INVALID_PARAMETER);
    bench.guest.command(&Request::submit(1, b"goes on")).ok();
    bench.remote.expect(&["submit goes on to 1"]);
}

#[test]
fn a_device_without_renderer_refuses_3d_resources_exactly() {
    let mut guest = Guest::start(Builder::new());
    assert_eq!(words(&guest.command(&Request::capset_info(0)).ok())[0], 5, "the device's own alone");
    guest.command(&Request::ctx_create(1, 5)).ok();
    guest.command(&Request::ctx_create(2, 0)).ok();
    let range = guest.page_range(4096);
    for _ in 0..2 {
        guest.command(&Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)).expect_error(ERR_UNSPEC);
        for context in [1, 2] {
            guest.command(&shadowed(7, 4096, &[range]).context(context)).expect_error(ERR_INVALID_PARAMETER);
            let transfer = Request::transfer_to_host_3d(context, 7, WHOLE, 0);
            guest.command(&transfer).expect_error(ERR_INVALID_RESOURCE_ID);
        }
    }
    guest.command(&Request::create_2d(7, FORMAT, WIDTH, HEIGHT)).ok();
    guest.command(&Request::transfer_from_host_3d(1, 7, WHOLE, 0)).expect_error(ERR_INVALID_PARAMETER);
    guest.assert_all_answered();
}

#[test]
fn a_transfer_never_overtakes_a_stream_of_its_context_nor_is_overtaken() {
    let mut gallery = Gallery::with_resource();
    gallery.back();
    gallery.guest.command(&Request::create_3d(8, 2, FORMAT, WIDTH, HEIGHT)).ok();
    let range = gallery.guest.page_range(4096);
    gallery.guest.command(&Request::attach_backing(8, &[range])).ok();
    let mut wanted = Vec::new();
    let mut tokens: Vec<Token> = Vec::new();
    gallery.visitor.order("submit", Some(Fate::Block));
    tokens.push(gallery.guest.submit(&Request::submit(1, &[7, 0, 0, 0, 0])));
    for round in 0..10u8 {
        let resource = 7 + u32::from(round % 2);
        let steps = [
            (Request::transfer_to_host_3d(1, resource, WHOLE, 0), format!("to {resource} in 1")),
            (Request::submit(1, &[7, round, 0, 0, 0]), "submit 7 to 1".into()),
            (Request::transfer_from_host_3d(1, resource, WHOLE, 0), format!("from {resource} in 1")),
        ];
        for (request, call) in steps {
            tokens.push(gallery.guest.submit(&request));
            wanted.push(call);
        }
    }
    while gallery.visitor.next() != "submit 7 to 1" {}
    gallery.guest.settle();
    gallery.visitor.expect_none();
    gallery.visitor.order("submit", None);
    gallery.visitor.unblock();
    for token in tokens {
        gallery.guest.wait(token).ok();
    }
    let seen: Vec<String> = wanted.iter().map(|_| gallery.visitor.next()).collect();
    assert_eq!(seen, wanted);
}
