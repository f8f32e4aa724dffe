//! Requests as no good driver writes them: too short, too long, of unknown types, without room for their answer, without
//! the feature they need. Each is answered with an exact code and its fence fields, and changes nothing.
#![cfg(feature = "testing")]

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::features::{
    BLOB_ALIGNMENT, CONTEXT_INIT, FeatureError, OFFERED, RESOURCE_BLOB, VERSION_1, VIRGL,
};
use virtio_gpu_uring::protocol::wire::{
    CAPSET_CROSS_DOMAIN, FLAG_FENCE, FLAG_INFO_RING_IDX, response_type as response,
};
use virtio_gpu_uring::testing::{Answer, Guest, GuestOptions, Lane, Layout, Request};
use virtio_gpu_uring::{Builder, HostBuffer, HostWindow};

const PAGE: u64 = 4096;

fn builder() -> Builder {
    Builder::new().window(HostWindow::new(1 << 20).expect("window"))
}

fn guest() -> Guest {
    Guest::start(builder())
}

fn guest_with(features: u64) -> Guest {
    Guest::with_options(builder(), GuestOptions { features, ..GuestOptions::default() })
}

/// Sends bytes as they are.
#[track_caller]
fn raw(guest: &mut Guest, lane: Lane, bytes: &[u8], room: usize) -> Answer {
    let token = guest.queue(lane).add(bytes, room, &Layout::default()).expect("room");
    guest.publish(lane);
    guest.wait_on(lane, token)
}

/// A context, a guest blob in it and, made of a buffer of one page, a host blob.
fn furnished() -> (Guest, u64) {
    let mut guest = guest();
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let range = guest.page_range(4096);
    guest.command(&Request::guest_blob(2, PAGE, &[range])).ok();
    let blob = offer(&guest);
    guest.command(&Request::host_blob(1, 3, blob, PAGE)).ok();
    let offered = offer(&guest);
    (guest, offered)
}

/// The id of a buffer of one page that the VMM offers.
fn offer(guest: &Guest) -> u64 {
    let file = memfd_create("requests", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, PAGE).expect("size");
    let buffer = HostBuffer::from_fd(file).expect("a buffer");
    guest.device().offer(buffer).wait().expect("a device").expect("room").0
}

#[track_caller]
fn is_error(answer: &Answer) {
    assert!((response::ERR_UNSPEC..0x1206).contains(&answer.kind()), "answered {:#x}", answer.kind());
    assert_eq!(answer.written, 24, "an error is a header");
}

/// Every request that the device serves, complete, in an order in which each succeeds.
fn served(offered: u64, page: (u64, u32)) -> Vec<(Lane, Request)> {
    let control = [
        Request::display_info(),
        Request::capset_info(0),
        Request::capset(CAPSET_CROSS_DOMAIN, 1, 16),
        Request::ctx_create(7, CAPSET_CROSS_DOMAIN),
        Request::guest_blob(8, PAGE, &[page]),
        Request::detach_backing(8),
        Request::attach_backing(8, &[page]),
        Request::ctx_attach(7, 8),
        Request::submit(7, &Request::stream_poll()),
        Request::ctx_detach(7, 8),
        Request::unref(8),
        Request::host_blob(7, 9, offered, PAGE),
        Request::map(9, 0x8000),
        Request::unmap(9),
        Request::ctx_destroy(7),
        Request::get_edid(0),
        Request::create_2d(10, 1, 16, 16),
        Request::attach_backing(10, &[page]),
        Request::transfer_2d(10, [0, 0, 16, 16], 0),
        Request::set_scanout(0, 10, [0, 0, 16, 16]),
        Request::flush(10, [0, 0, 16, 16]),
        Request::assign_uuid(10),
        Request::detach_backing(10),
        Request::guest_blob(11, PAGE, &[page]),
        Request::set_scanout_blob(0, 11, [16, 16], 1, 64, 0),
        Request::set_scanout(0, 0, [0, 0, 64, 64]),
    ];
    let cursor = [Request::move_cursor(0, (10, 20)), Request::update_cursor(0, 0, (10, 20), (0, 0))];
    let on = |lane| move |request| (lane, request);
    control.into_iter().map(on(Lane::Control)).chain(cursor.into_iter().map(on(Lane::Cursor))).collect()
}

#[test]
fn a_request_that_is_too_short_never_takes_effect() {
    let (mut guest, offered) = furnished();
    let page = guest.page_range(4096);
    for (lane, request) in served(offered, page) {
        let bytes = request.bytes();
        for request in [request.clone(), request.clone().fenced(77)] {
            for len in 0..bytes.len() {
                let answer = raw(&mut guest, lane, &request.bytes()[..len], request.room());
                is_error(&answer);
                if len >= 24 {
                    assert_eq!(answer.kind(), response::ERR_INVALID_PARAMETER, "{len} bytes of {request:?}");
                    let (flags, fence) = (answer.header.flags.get(), answer.header.fence_id.get());
                    let fenced = u32::from(request.bytes()[4]) & FLAG_FENCE;
                    assert_eq!((flags, fence), (fenced, u64::from(fenced) * 77), "{len} bytes of {request:?}");
                }
            }
        }
        // Had one of them taken effect, this would not succeed.
        raw(&mut guest, lane, &bytes, request.room()).ok();
    }
    guest.assert_all_answered();
}

#[test]
fn a_request_that_is_too_long_is_never_read_as_another() {
    for extra in [1, 8, 100, 70_000] {
        let (mut guest, offered) = furnished();
        let page = guest.page_range(4096);
        for (lane, request) in served(offered, page) {
            let bytes = [request.bytes(), vec![0xff; extra]].concat();
            raw(&mut guest, lane, &bytes, request.room()).ok();
        }
        guest.assert_all_answered();
    }
}

#[test]
fn an_answer_never_fills_more_than_its_structure_nor_less() {
    let (mut guest, offered) = furnished();
    let page = guest.page_range(4096);
    for (lane, request) in served(offered, page) {
        let answer = raw(&mut guest, lane, &request.bytes(), 4096);
        assert_eq!(answer.written as usize, request.room(), "{request:?}");
        answer.ok();
    }
    let info = guest.command(&Request::display_info());
    assert_eq!((info.kind(), info.written), (response::OK_DISPLAY_INFO, 408));
    let displays = info.ok();
    assert_eq!(displays.len(), 16 * 24);
    assert!(displays.chunks(24).skip(1).all(|display| display == [0; 24]), "a display beyond num_scanouts");
}

#[test]
fn a_type_that_is_not_known_is_never_answered_with_anything_but_unspec() {
    let mut guest = guest();
    let unknown = (0..0x100).chain(0x10e..0x200).chain(0x20a..0x300).chain(0x302..0x310).chain([0x1100, u32::MAX]);
    for kind in unknown {
        for lane in [Lane::Control, Lane::Cursor] {
            for len in [0, 8, 100] {
                let request = Request::new(kind, &vec![1; len]).fenced(5);
                let answer = raw(&mut guest, lane, &request.bytes(), 1024);
                is_error(&answer);
                answer.expect_error(response::ERR_UNSPEC);
                assert_eq!((answer.header.flags.get(), answer.header.fence_id.get()), (FLAG_FENCE, 5));
            }
        }
    }
    guest.assert_all_answered();
}

#[test]
fn a_command_is_never_served_on_the_other_queue() {
    let (mut guest, offered) = furnished();
    let page = guest.page_range(4096);
    for (lane, request) in served(offered, page) {
        let other = if lane == Lane::Control { Lane::Cursor } else { Lane::Control };
        is_error(&raw(&mut guest, other, &request.bytes(), request.room()));
        raw(&mut guest, lane, &request.bytes(), request.room()).ok();
    }
}

#[test]
fn an_answer_without_room_never_hides_a_command_that_took_effect() {
    let (mut guest, offered) = furnished();
    let page = guest.page_range(4096);
    for (lane, request) in served(offered, page) {
        let bytes = request.bytes();
        for room in 0..request.room() {
            let answer = raw(&mut guest, lane, &bytes, room);
            assert!(answer.written as usize <= room);
            if room >= 24 {
                is_error(&answer);
                answer.expect_error(response::ERR_INVALID_PARAMETER);
            }
        }
        raw(&mut guest, lane, &bytes, request.room()).ok();
    }
    guest.assert_all_answered();
}

#[test]
fn a_map_or_a_context_without_room_for_its_answer_is_never_there() {
    let (mut guest, _) = furnished();
    guest.command(&Request::map(3, 0x4000).response_len(24)).expect_error(response::ERR_INVALID_PARAMETER);
    assert_eq!(guest.device().counters().maps, 0);
    guest.command(&Request::unmap(3)).expect_error(response::ERR_INVALID_PARAMETER);
    guest.map(3, 0x4000);
    drop(guest.command(&Request::unmap(3).response_len(23)));
    guest.command(&Request::map(3, 0x5000)).expect_error(response::ERR_INVALID_PARAMETER);
    drop(guest.command(&Request::ctx_create(50, CAPSET_CROSS_DOMAIN).response_len(23)));
    guest.command(&Request::ctx_destroy(50)).expect_error(response::ERR_INVALID_CONTEXT_ID);
    drop(guest.command(&Request::ctx_destroy(1).response_len(0)));
    guest.command(&Request::ctx_create(1, 0)).expect_error(response::ERR_INVALID_CONTEXT_ID);
    drop(guest.command(&Request::unref(3).response_len(1)));
    guest.command(&Request::unmap(3)).ok();
}

#[test]
fn a_capability_set_is_never_cut_off() {
    let mut guest = guest();
    for room in 24..40 {
        let answer = guest.command(&Request::capset(CAPSET_CROSS_DOMAIN, 1, 16).response_len(room));
        is_error(&answer);
    }
    let info = guest.command(&Request::capset_info(0)).ok();
    assert_eq!(info, [5, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.command(&Request::capset(CAPSET_CROSS_DOMAIN, 1, 16)).ok().len(), 16);
    guest.command(&Request::capset_info(1)).expect_error(response::ERR_INVALID_PARAMETER);
    guest.command(&Request::capset(1, 1, 16)).expect_error(response::ERR_INVALID_PARAMETER);
    guest.command(&Request::capset(CAPSET_CROSS_DOMAIN, 2, 16)).expect_error(response::ERR_INVALID_PARAMETER);
}

#[test]
fn no_answer_loses_the_fence_fields_of_its_request() {
    let (mut guest, offered) = furnished();
    let page = guest.page_range(4096);
    let mut requests: Vec<Request> = served(offered, page)
        .into_iter()
        .filter(|(lane, _)| *lane == Lane::Control)
        .map(|(_, request)| request)
        .collect();
    requests.extend([Request::map(99, 0), Request::unref(98), Request::ctx_create(1, 5), Request::new(0xbad, &[])]);
    for (fence, request) in (u64::MAX - 40..).zip(requests) {
        let header = |bytes: &[u8]| (bytes[8..16].to_vec(), bytes[16..20].to_vec(), bytes[20]);
        for request in [request.clone().fenced(fence), request.clone(), request.fenced(fence).context(1).on_ring(63)] {
            let bytes = request.bytes();
            let token = guest.submit(&request);
            let answer = guest.wait(token).header;
            let flags = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let echoed = (
                answer.fence_id.get().to_le_bytes().to_vec(),
                answer.ctx_id.get().to_le_bytes().to_vec(),
                answer.ring_idx,
            );
            assert_eq!((answer.flags.get(), echoed), (flags, header(&bytes)), "{request:?}");
        }
    }
}

#[test]
fn an_unknown_flag_is_never_echoed() {
    let mut guest = guest();
    let mut bytes = Request::display_info().fenced(9).bytes();
    bytes[4..8].copy_from_slice(&(FLAG_FENCE | 0xffff_fff0).to_le_bytes());
    let answer = raw(&mut guest, Lane::Control, &bytes, 408);
    assert_eq!(answer.header.flags.get(), FLAG_FENCE);
    answer.ok();
}

#[test]
fn a_command_whose_feature_was_not_negotiated_is_never_served() {
    let contexts = [
        Request::ctx_create(7, 0),
        Request::ctx_destroy(7),
        Request::ctx_attach(7, 8),
        Request::ctx_detach(7, 8),
        Request::submit(7, &[]),
        Request::capset_info(0),
        Request::capset(CAPSET_CROSS_DOMAIN, 1, 16),
    ];
    let mut guest = guest_with(VERSION_1 | RESOURCE_BLOB);
    contexts.iter().for_each(|request| guest.command(request).expect_error(response::ERR_UNSPEC));
    let blob = offer(&guest);
    is_error(&guest.command(&Request::host_blob(0, 8, blob, PAGE)));
    guest.command(&Request::guest_blob(8, PAGE, &[])).ok();

    let mut guest = guest_with(VERSION_1 | VIRGL | CONTEXT_INIT);
    guest.command(&Request::ctx_create(7, 0)).ok();
    for request in
        [Request::guest_blob(8, PAGE, &[]), Request::map(8, 0), Request::unmap(8), Request::host_blob(7, 8, 1, PAGE)]
    {
        guest.command(&request).expect_error(response::ERR_UNSPEC);
    }
    guest.command(&Request::unref(8)).expect_error(response::ERR_INVALID_RESOURCE_ID);
    guest.settle();
}

#[test]
fn context_types_and_timelines_are_never_served_without_context_init() {
    let mut guest = guest_with(VERSION_1 | VIRGL | RESOURCE_BLOB);
    is_error(&guest.command(&Request::ctx_create(7, CAPSET_CROSS_DOMAIN)));
    guest.command(&Request::ctx_create(7, 0)).ok();
    let request = Request::submit(7, &[]).fenced(3);
    guest.command(&request).ok();
    let answer = guest.command(&request.on_ring(0));
    is_error(&answer);
    assert_eq!(answer.header.flags.get(), FLAG_FENCE | FLAG_INFO_RING_IDX);
}

#[test]
fn a_timeline_beyond_63_or_of_no_context_is_never_served() {
    let mut guest = guest();
    guest.command(&Request::ctx_create(7, CAPSET_CROSS_DOMAIN)).ok();
    for ring in [0, 1, 63] {
        guest.command(&Request::submit(7, &[]).fenced(1).on_ring(ring)).ok();
    }
    for ring in [64, 65, 255] {
        let answer = guest.command(&Request::submit(7, &[]).fenced(1).on_ring(ring));
        answer.expect_error(response::ERR_INVALID_PARAMETER);
        assert_eq!((answer.header.fence_id.get(), answer.header.ring_idx), (1, ring));
    }
    guest.command(&Request::submit(8, &[]).fenced(1).on_ring(0)).expect_error(response::ERR_INVALID_CONTEXT_ID);
}

#[test]
fn alignment_is_never_demanded_where_it_was_not_negotiated_nor_forgotten_where_it_was() {
    let options = |features| GuestOptions { features, ..GuestOptions::default() };
    let mut guest = Guest::with_options(builder().blob_alignment(1 << 16), options(OFFERED));
    let range = guest.page_range(4096);
    let request = Request::guest_blob(8, PAGE, &[range]);
    guest.command(&request).expect_error(response::ERR_INVALID_PARAMETER);
    let mut guest = Guest::with_options(builder().blob_alignment(1 << 16), options(OFFERED & !BLOB_ALIGNMENT));
    let range = guest.page_range(4096);
    guest.command(&Request::guest_blob(8, PAGE, &[range])).ok();
}

#[test]
fn a_choice_of_features_that_cannot_be_served_is_never_acknowledged() {
    let device = Guest::powered_off(builder().spawn().expect("a device"), GuestOptions::default());
    let device = device.device();
    assert_eq!(device.features(), OFFERED);
    assert_eq!(device.acknowledge(0), Err(FeatureError::Legacy));
    assert_eq!(device.acknowledge(OFFERED | 1 << 63), Err(FeatureError::NotOffered { unknown: 1 << 63 }));
    // VIRTIO_F_IN_ORDER would be a lie: commands overtake each other.
    assert_eq!(device.acknowledge(OFFERED | 1 << 35), Err(FeatureError::NotOffered { unknown: 1 << 35 }));
    let missing = |feature, needs| Err(FeatureError::MissingPrerequisite { feature, needs });
    assert_eq!(device.acknowledge(OFFERED & !VIRGL), missing(CONTEXT_INIT, VIRGL));
    assert_eq!(device.acknowledge(OFFERED & !RESOURCE_BLOB), missing(BLOB_ALIGNMENT, RESOURCE_BLOB));
    assert_eq!(device.acknowledge(VERSION_1), Ok(()));
    assert_eq!(device.acknowledge(OFFERED), Ok(()));
}

#[test]
fn the_configuration_space_is_never_more_than_its_twenty_bytes() {
    let guest = Guest::start(builder().blob_alignment(1 << 16));
    let device = guest.device();
    let mut all = [0xff; 64];
    device.read_config(0, &mut all);
    let word = |index: usize| u32::from_le_bytes(all[index * 4..][..4].try_into().expect("four bytes"));
    assert_eq!((word(0), word(1), word(3), word(4)), (0, 0, 1, 1 << 16));
    assert!((1..=16).contains(&word(2)), "{} scanouts", word(2));
    assert_eq!(all[20..], [0; 44]);
    for offset in 0..24 {
        for len in 0..8 {
            let mut part = vec![0xff; len];
            device.read_config(offset as u64, &mut part);
            assert_eq!(part, all[offset..offset + len]);
        }
    }
    let mut beyond = [0xff; 4];
    device.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 4]);
    for offset in [0, 4, 8, 12, 16, 20, u64::MAX] {
        device.write_config(offset, &[0xff; 8]);
    }
    let mut after = [0; 64];
    device.read_config(0, &mut after);
    assert_eq!(after, all, "a write changed the configuration");
}

#[test]
fn a_scanout_or_a_picture_that_does_not_exist_is_never_shown() {
    let (mut guest, _) = furnished();
    guest.command(&Request::set_scanout(0, 0, [0, 0, 64, 64])).ok();
    guest.command(&Request::set_scanout(0, 99, [0, 0, 64, 64])).expect_error(response::ERR_INVALID_RESOURCE_ID);
    for scanout in [1, 15, 16, u32::MAX] {
        guest.command(&Request::set_scanout(scanout, 0, [0, 0, 64, 64])).expect_error(response::ERR_INVALID_SCANOUT_ID);
        for request in [Request::move_cursor(scanout, (10, 20)), Request::update_cursor(scanout, 0, (10, 20), (0, 0))] {
            let token = guest.submit_on(Lane::Cursor, &request.fenced(4));
            let answer = guest.wait_on(Lane::Cursor, token);
            answer.expect_error(response::ERR_INVALID_SCANOUT_ID);
            assert_eq!((answer.header.flags.get(), answer.header.fence_id.get()), (FLAG_FENCE, 4));
        }
    }
    let token = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 99, (10, 20), (0, 0)));
    guest.wait_on(Lane::Cursor, token).expect_error(response::ERR_INVALID_RESOURCE_ID);
}

/// A request that is random, or nearly right.
fn any_request() -> impl Strategy<Value = (bool, Vec<u8>, usize)> {
    let noise = (prop::collection::vec(any::<u8>(), 0..200), 0usize..500);
    let kind = prop_oneof![0x100u32..0x10e, 0x200u32..0x20a, 0x300u32..0x302];
    let words = prop::collection::vec(prop_oneof![4 => 0u32..4, 1 => Just(4096), 1 => any::<u32>()], 0..24);
    let nearly = (kind, 0u32..4, 0u64..4, 0u32..3, 0u8..66, words, 20usize..420).prop_map(
        |(kind, flags, fence, context, ring, words, room)| {
            let mut request = Request::new(kind, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
            request = request.context(context);
            if flags & 1 != 0 {
                request = request.fenced(fence);
            }
            if flags & 2 != 0 {
                request = request.on_ring(ring);
            }
            (request.bytes(), room)
        },
    );
    let bytes = prop_oneof![1 => noise, 4 => nearly];
    (any::<bool>(), bytes).prop_filter_map("a chain of nothing", |(control, (bytes, room))| {
        (bytes.len() + room > 0).then_some((control, bytes, room))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 1024, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_program_of_random_requests_loses_a_descriptor_or_the_device(
        program in prop::collection::vec(any_request(), 1..120),
    ) {
        let (mut guest, _) = furnished();
        let mut tokens = Vec::new();
        for (control, bytes, room) in program {
            let lane = if control { Lane::Control } else { Lane::Cursor };
            let token = guest.queue(lane).add(&bytes, room, &Layout::default()).expect("room: the queues are drained");
            guest.publish(lane);
            tokens.push((lane, token));
            if tokens.len() == 8 {
                tokens.drain(..).for_each(|(lane, token)| drop(guest.wait_on(lane, token)));
            }
        }
        tokens.into_iter().for_each(|(lane, token)| drop(guest.wait_on(lane, token)));
        guest.settle();
        guest.assert_all_answered();
        guest.reset();
        guest.activate();
        guest.settle();
    }
}
