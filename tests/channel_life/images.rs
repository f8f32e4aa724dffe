//! GET_IMAGE_REQUIREMENTS: layouts in which every pixel has its place, in a query ring that may be of any shape, and
//! questions that are none.

use virtio_gpu_uring::protocol::cross_domain::{ChannelType, ImageRequirements};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, FLAG_FENCE};
use virtio_gpu_uring::testing::{Guest, GuestChannel, Request};
use virtio_gpu_uring::{Builder, Limits};
use vm_memory::GuestAddress;
use zerocopy::FromBytes;

use crate::{PAGE, Scene, UNTOUCHED};

/// Bytes of a sample of a plane, and over how many pixels it goes in each direction, as `drm_fourcc.h` has them.
type Plane = (u64, u64, u64);

const NV12: &[Plane] = &[WHOLE[0], (2, 2, 2)];
const WHOLE: [Plane; 5] = [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (8, 1, 1)];

/// Each family of linear formats that Wayland clients, compositors and cameras use.
const FAMILIES: &[(&[&[u8; 4]], &[Plane])] = &[
    (&[b"R8  "], &[WHOLE[0]]),
    (&[b"GR88", b"RG16", b"BG16"], &[WHOLE[1]]),
    (&[b"YUYV", b"YVYU", b"UYVY", b"VYUY"], &[WHOLE[1]]),
    (&[b"RG24", b"BG24"], &[WHOLE[2]]),
    (&[b"XR24", b"AR24", b"XB24", b"AB24"], &[WHOLE[3]]),
    (&[b"XR30", b"AR30", b"XB30", b"AB30"], &[WHOLE[3]]),
    (&[b"XR4H", b"AR4H", b"XB4H", b"AB4H"], &[WHOLE[4]]),
    (&[b"NV12", b"NV21"], NV12),
    (&[b"P010"], &[WHOLE[1], (4, 2, 2)]),
    (&[b"YU12", b"YV12"], &[WHOLE[0], (1, 2, 2), (1, 2, 2)]),
];

const SIZES: [(u32, u32); 8] =
    [(1, 1), (1, 1080), (1920, 1), (17, 33), (641, 479), (1366, 768), (1920, 1080), (4096, 2161)];

#[track_caller]
fn assert_every_pixel_has_a_place(what: &str, (width, height): (u32, u32), planes: &[Plane], of: &ImageRequirements) {
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for (index, (bytes, across, down)) in planes.iter().enumerate() {
        let (stride, offset) = (u64::from(of.strides[index].get()), u64::from(of.offsets[index].get()));
        let row = u64::from(width).div_ceil(*across) * bytes;
        assert!(stride >= row, "{what}: rows of plane {index} have {row} bytes, and {stride} from one to the next");
        let end = offset + stride * u64::from(height).div_ceil(*down);
        assert!(end <= of.size.get(), "{what}: plane {index} ends at {end} of {}", of.size.get());
        for (start, stop) in &taken {
            assert!(offset >= *stop || end <= *start, "{what}: plane {index} lies over another");
        }
        taken.push((offset, end));
    }
    for index in planes.len()..4 {
        assert_eq!((of.strides[index].get(), of.offsets[index].get()), (0, 0), "{what}: there is no plane {index}");
    }
    assert_eq!(of.modifier.get(), 0, "{what}: not linear");
    assert_eq!(of.size.get() % PAGE, 0, "{what}: the guest's kernel would ask for more than that");
    assert!(of.blob_id.get() != 0 && of.map_info.get() == 1, "{what}: {of:?}");
    assert_eq!((of.memory_idx.get(), of.physical_device_idx.get()), (-1, -1), "{what}: there is no Vulkan here");
}

#[test]
fn no_layout_of_any_format_is_too_small_or_lets_planes_overlap() {
    let mut scene = Scene::with(Builder::new().limits(Limits { items_per_context: 4096, ..Limits::default() }));
    for (codes, planes) in FAMILIES {
        for size in SIZES {
            for code in *codes {
                let what = format!("{} {size:?}", code.escape_ascii());
                let answer = scene.channel.image(&mut scene.guest, size.0, size.1, **code);
                assert_every_pixel_has_a_place(&what, size, planes, &answer);
            }
        }
    }
    scene.assert_lives();
    scene.guest.assert_all_answered();
}

#[test]
fn no_flag_that_memory_can_honour_is_refused_nor_changes_where_pixels_lie() {
    let mut scene = Scene::new();
    let plain = scene.channel.image(&mut scene.guest, 640, 480, *b"AR24");
    // What sommelier asks for: scanout, texture, rendering, cameras, linear, and reads and writes by CPUs.
    for flags in [1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 5 | 1 << 6, 1 << 9, 1 << 10, 1 << 11 | 1 << 12] {
        scene.ok(&Request::stream_image(640, 480, *b"AR24", flags));
        let again = scene.channel.image(&mut scene.guest, 640, 480, *b"AR24");
        assert_eq!((again.strides, again.size), (plain.strides, plain.size), "flags {flags:#x}");
    }
}

#[test]
fn no_question_that_is_asked_again_takes_another_item() {
    let mut scene = Scene::with(Builder::new().limits(Limits { items_per_context: 2, ..Limits::default() }));
    let first = scene.channel.image(&mut scene.guest, 640, 480, *b"XR24");
    let other = scene.channel.image(&mut scene.guest, 640, 481, *b"XR24");
    assert_ne!(first.blob_id, other.blob_id, "two layouts of one id");
    for _ in 0..20 {
        assert_eq!(scene.channel.image(&mut scene.guest, 640, 480, *b"XR24").blob_id, first.blob_id);
        assert_eq!(scene.channel.image(&mut scene.guest, 640, 481, *b"XR24").blob_id, other.blob_id);
    }
}

/// Rings whose bytes show every write: the query ring 10 in these pieces, the channel ring 11 in one.
struct Rings {
    query: Vec<(u64, u32)>,
    channel: (u64, u32),
}

impl Rings {
    #[track_caller]
    fn create(guest: &mut Guest, pieces: &[u32]) -> Self {
        guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
        let piece = |len: &u32| (guest.ram().alloc(*len as usize + 16, 16).0 + 5, *len);
        let mut query: Vec<(u64, u32)> = pieces.iter().map(piece).collect();
        query.reverse();
        let rings = Self { query, channel: guest.page_range(4096) };
        for (resource, list) in [(10, &rings.query[..]), (11, &[rings.channel])] {
            guest.command(&Request::guest_blob(resource, PAGE, list)).ok();
            guest.command(&Request::ctx_attach(1, resource)).ok();
            for (address, len) in list {
                guest.ram().write(GuestAddress(*address), &vec![UNTOUCHED; *len as usize]);
            }
        }
        rings
    }

    fn bytes(list: &[(u64, u32)], guest: &Guest) -> Vec<u8> {
        let read = |(address, len): &(u64, u32)| guest.ram().read(GuestAddress(*address), *len as usize);
        list.iter().flat_map(read).collect()
    }

    /// The answer in the query ring; nothing else was written.
    #[track_caller]
    fn answer(&self, guest: &Guest) -> ImageRequirements {
        let query = Self::bytes(&self.query, guest);
        assert!(query[64..].iter().all(|byte| *byte == UNTOUCHED), "more than 64 bytes of the query ring");
        assert!(self.channel_is_untouched(guest), "an answer in the channel ring");
        ImageRequirements::read_from_bytes(&query[..64]).expect("64 bytes")
    }

    fn channel_is_untouched(&self, guest: &Guest) -> bool {
        Self::bytes(&[self.channel], guest).iter().all(|byte| *byte == UNTOUCHED)
    }

    fn query_is_untouched(&self, guest: &Guest) -> bool {
        Self::bytes(&self.query, guest).iter().all(|byte| *byte == UNTOUCHED)
    }
}

fn question() -> Vec<u8> {
    Request::stream_image(33, 7, *b"NV12", 0)
}

fn init(channel_type: ChannelType) -> Vec<u8> {
    Request::stream_init(10, 11, channel_type.0, Some(1))
}

/// A context without a channel, whose INIT names type 0.
fn queries_only(pieces: &[u32]) -> (Guest, Rings) {
    let mut guest = Guest::start(Builder::new());
    let rings = Rings::create(&mut guest, pieces);
    guest.command(&Request::submit(1, &init(ChannelType::NONE))).ok();
    (guest, rings)
}

#[test]
fn no_answer_is_torn_by_the_pieces_of_its_ring_nor_lands_beside_it() {
    for pieces in [&[4096][..], &[1, 2, 3, 5, 7, 11, 13, 17, 19, 4018], &[64, 4032], &[63, 4033], &[4095, 1]] {
        let (mut guest, rings) = queries_only(pieces);
        assert_eq!(pieces.iter().sum::<u32>(), 4096);
        guest.command(&Request::submit(1, &question())).ok();
        let answer = rings.answer(&guest);
        assert_every_pixel_has_a_place("NV12", (33, 7), NV12, &answer);
        guest.command(&Request::host_blob(1, 20, u64::from(answer.blob_id.get()), answer.size.get())).ok();
        guest.assert_all_answered();
    }
}

#[test]
fn a_context_without_a_channel_is_never_refused_its_images() {
    let (mut guest, rings) = queries_only(&[4096]);
    let answer = guest.command(&Request::submit(1, &question()).fenced(7).on_ring(0));
    assert_eq!((answer.header.flags.get() & FLAG_FENCE, answer.header.fence_id.get()), (FLAG_FENCE, 7));
    answer.ok();
    assert_eq!(rings.answer(&guest).modifier.get(), 0);
    assert_eq!(guest.device().counters().channels_opened, 0);
    // Nothing but images: there is nobody at the other end.
    for stream in [Request::stream_send(b"x", &[]), Request::stream_watch(1), Request::stream_write(1, &[0; 8], false)]
    {
        guest.command(&Request::submit(1, &stream)).expect_error(ERR_INVALID_PARAMETER);
    }
    guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(guest.device().counters().channels_closed, 0);
    guest.assert_all_answered();
}

#[test]
fn a_question_and_its_init_are_never_too_many_for_one_stream() {
    let mut guest = Guest::start(Builder::new());
    let rings = Rings::create(&mut guest, &[4096]);
    let stream = [init(ChannelType::NONE), question()].concat();
    guest.command(&Request::submit(1, &stream)).ok();
    assert_eq!(rings.answer(&guest).modifier.get(), 0);
}

#[test]
fn nothing_is_answered_before_init_nor_to_a_context_of_another_kind() {
    let mut guest = Guest::start(Builder::new());
    let rings = Rings::create(&mut guest, &[4096]);
    guest.command(&Request::submit(1, &question())).expect_error(ERR_INVALID_PARAMETER);
    guest.command(&Request::ctx_create(2, 0)).ok();
    guest.command(&Request::submit(2, &question())).expect_error(ERR_INVALID_PARAMETER);
    guest.command(&Request::submit(3, &question())).expect_error(ERR_INVALID_CONTEXT_ID);
    assert!(rings.query_is_untouched(&guest) && rings.channel_is_untouched(&guest));
    guest.command(&Request::submit(1, &init(ChannelType::NONE))).ok();
    guest.command(&Request::submit(1, &question())).ok();
    assert_eq!(rings.answer(&guest).modifier.get(), 0);
}

#[test]
fn an_image_that_there_cannot_be_is_never_laid_out_and_costs_nothing() {
    let mut guest = Guest::start(Builder::new().limits(Limits { items_per_context: 1, ..Limits::default() }));
    let rings = Rings::create(&mut guest, &[4096]);
    guest.command(&Request::submit(1, &init(ChannelType::NONE))).ok();
    let mut none = vec![(64, 64, *b"\0\0\0\0"), (64, 64, *b"ABCD"), (64, 64, [0xff; 4]), (64, 64, *b"MJPG")];
    for (codes, _) in FAMILIES {
        for size in [(0, 0), (0, 9), (9, 0), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX), (1 << 31, 1 << 31)] {
            none.push((size.0, size.1, *codes[0]));
        }
    }
    for (width, height, code) in none {
        let stream = Request::stream_image(width, height, code, 0);
        let answer = guest.command(&Request::submit(1, &stream).fenced(3));
        let what = format!("{width}x{height} {}", code.escape_ascii());
        assert_eq!(answer.kind(), ERR_INVALID_PARAMETER, "{what}: answered {:#x}", answer.kind());
        assert_eq!(answer.header.fence_id.get(), 3, "{what}");
        assert!(rings.query_is_untouched(&guest), "{what}: an answer in the ring");
    }
    // The one item that there is room for is still free.
    guest.command(&Request::submit(1, &question())).ok();
    assert_eq!(rings.answer(&guest).modifier.get(), 0);
    guest.assert_all_answered();
}

#[test]
fn no_question_is_answered_into_a_ring_that_the_guest_has_taken_back() {
    let ends = [Request::detach_backing(10), Request::unref(10), Request::ctx_detach(1, 10)];
    for end in &ends {
        let (mut guest, rings) = queries_only(&[4096]);
        guest.command(end).ok();
        let answer = guest.command(&Request::submit(1, &question()).fenced(4));
        assert!((0x1200..0x1206).contains(&answer.kind()), "{end:?}: answered {:#x}", answer.kind());
        assert_eq!(answer.header.fence_id.get(), 4);
        assert!(rings.query_is_untouched(&guest), "{end:?}: memory that the guest has taken back was written");
        guest.command(&Request::ctx_destroy(1)).ok();
        guest.assert_all_answered();
    }
    // The channel is none the worse for it.
    for end in &ends {
        let mut scene = Scene::new();
        scene.guest.command(end).ok();
        let kind = scene.channel.submit(&mut scene.guest, &question()).kind();
        assert!((0x1200..0x1206).contains(&kind), "{end:?}: answered {kind:#x}");
        scene.assert_lives();
        assert_eq!(scene.channels(), (1, 0));
    }
}

#[test]
fn a_ring_that_is_attached_again_is_never_lost_for_questions() {
    let (mut guest, rings) = queries_only(&[4096]);
    guest.command(&Request::ctx_detach(1, 10)).ok();
    assert!(guest.command(&Request::submit(1, &question())).kind() >= 0x1200);
    guest.command(&Request::ctx_attach(1, 10)).ok();
    guest.command(&Request::submit(1, &question())).ok();
    assert_eq!(rings.answer(&guest).modifier.get(), 0);
}

#[test]
fn an_image_of_one_context_is_never_known_to_another() {
    let mut scene = Scene::new();
    let mut other = GuestChannel::open(&mut scene.guest, 2, 30, ChannelType::PIPEWIRE);
    let peer = scene.service.accept();
    let image = scene.channel.image(&mut scene.guest, 64, 64, *b"XR24");
    let id = u64::from(image.blob_id.get());
    scene.guest.command(&Request::host_blob(2, 20, id, image.size.get())).expect_error(ERR_INVALID_PARAMETER);
    scene.guest.command(&Request::host_blob(1, 20, id, image.size.get())).ok();
    crate::assert_lives(&mut scene.guest, &mut other, &peer);
}

/// An id of an image is no eventfd and no pipe.
#[test]
fn an_image_is_never_taken_for_an_item_of_another_kind() {
    let mut scene = Scene::new();
    let id = scene.channel.image(&mut scene.guest, 64, 64, *b"XR24").blob_id.get();
    for hang_up in [false, true] {
        scene.refused(&Request::stream_write(id, &1u64.to_ne_bytes(), hang_up), ERR_INVALID_PARAMETER);
    }
    scene.refused(&Request::stream_watch(id), ERR_INVALID_PARAMETER);
    scene.refused(&Request::stream_unwatch(id), ERR_INVALID_PARAMETER);
    scene.guest.command(&Request::host_blob(1, 20, u64::from(id), 64 * 64 * 4)).ok();
    scene.assert_lives();
}

/// A window that is resized asks for a size at each frame.
#[test]
fn a_guest_that_resizes_its_window_is_never_refused_images_nor_descriptors() {
    let mut scene = Scene::new();
    for side in 1..=1000 {
        let image = scene.channel.image(&mut scene.guest, side, side, *b"XR24");
        let create = Request::host_blob(1, 20, u64::from(image.blob_id.get()), image.size.get());
        scene.guest.command(&create).ok();
        scene.guest.command(&Request::unref(20)).ok();
    }
    scene.event();
    scene.assert_lives();
}

#[test]
fn a_layout_that_was_forgotten_is_never_refused_when_it_is_asked_about_again() {
    let mut scene = Scene::new();
    let first = scene.channel.image(&mut scene.guest, 64, 64, *b"XR24");
    for height in 100..1100 {
        scene.channel.image(&mut scene.guest, 64, height, *b"XR24");
    }
    let again = scene.channel.image(&mut scene.guest, 64, 64, *b"XR24");
    assert_eq!((first.strides, first.size), (again.strides, again.size));
    // The old id is the same layout still, or nothing: never another one.
    let old = Request::host_blob(1, 20, u64::from(first.blob_id.get()), first.size.get());
    let kind = scene.guest.command(&old).kind();
    assert!(kind < 0x1200 || kind == ERR_INVALID_PARAMETER, "answered {kind:#x}");
    scene.guest.command(&Request::host_blob(1, 21, u64::from(again.blob_id.get()), again.size.get())).ok();
    let larger = Request::host_blob(1, 22, u64::from(first.blob_id.get()), first.size.get() + PAGE);
    scene.guest.command(&larger).expect_error(ERR_INVALID_PARAMETER);
}
