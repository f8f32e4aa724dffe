//! Items are limited, of every kind, and what is given up is given back: however a channel, an item or a message ends.

use std::os::fd::AsFd;

use virtio_gpu_uring::protocol::cross_domain::{FIRST_READ_PIPE, id_type};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_OUT_OF_MEMORY};
use virtio_gpu_uring::testing::{Incoming, Request};
use virtio_gpu_uring::{Builder, ChannelType, Limits};

use crate::{Scene, drain, event, event_holders, has_reader, memfd, pipe, ring, until};

fn items(most: usize) -> Scene {
    Scene::with(Builder::new().limits(Limits { items_per_context: most, ..Limits::default() }))
}

fn pipe_identifier(number: u32) -> (u32, u32) {
    (FIRST_READ_PIPE + number, id_type::READ_PIPE)
}

#[test]
fn no_kind_of_item_passes_the_limit_of_a_context() {
    let mut scene = items(3);
    let (file, first) = (memfd("life-items", 4096), event());
    let (_reader, writer) = pipe();
    let kinds: Vec<u32> = scene.hand(&[&file, &first, &writer]).iter().map(|item| item.1).collect();
    assert_eq!(kinds, [id_type::VIRTGPU_BLOB, id_type::EVENTFD, id_type::WRITE_PIPE]);
    // A fourth of any kind.
    let refused = scene.hand(&[&file, &first, &writer]);
    assert!(refused.iter().all(|item| (item.0, item.1) == (0, id_type::UNSUPPORTED)), "{refused:?}");
    until("one that was not announced is closed", || event_holders(&first) == 2);
    scene.refused(&Request::stream_send_with(b"p", &[pipe_identifier(0)]), ERR_OUT_OF_MEMORY);
    assert_eq!(scene.guest.device().counters().limit_refusals, 4);
    // A layout is none: it holds nothing of the host.
    scene.channel.image(&mut scene.guest, 64, 64, *b"XR24");
    scene.assert_lives();
    assert_eq!(scene.channels(), (1, 0));
}

#[test]
fn an_item_that_is_given_up_always_makes_room() {
    let mut scene = items(1);
    for round in 0..20 {
        let (id, event) = scene.event();
        if round % 2 == 0 {
            scene.ok(&Request::stream_watch(id));
        }
        scene.ok(&Request::stream_unwatch(id));
        assert_eq!(event_holders(&event), 1, "READ_EVENTFD_DESTROY leaves it open");
        let (id, event) = scene.event();
        scene.ok(&Request::stream_write(id, &1u64.to_ne_bytes(), true));
        assert_eq!(event_holders(&event), 1, "a hang-up leaves it open");
        let (id, reader) = scene.write_pipe();
        scene.ok(&Request::stream_write(id, b"end", true));
        assert_eq!(drain(&reader), (b"end".to_vec(), false));
        // The service ends the pipe: the guest is told, and the item is gone.
        drop(scene.read_pipe(2 * round));
        let read = scene.channel.receive_read(&mut scene.guest);
        assert_eq!((read.id, read.data.len(), read.hang_up), (FIRST_READ_PIPE + 2 * round, 0, true));
        // The guest ends it: the service is told.
        let writer = scene.read_pipe(2 * round + 1);
        scene.ok(&Request::stream_write(FIRST_READ_PIPE + 2 * round + 1, &[], true));
        assert!(!has_reader(&writer), "a pipe that the guest has hung up is still open");
    }
    scene.assert_lives();
}

#[test]
fn an_item_that_was_given_up_is_never_known_any_more() {
    let mut scene = Scene::new();
    let (id, event) = scene.watched();
    scene.ok(&Request::stream_unwatch(id));
    let poll = scene.poll();
    ring(&event, 1);
    scene.guest.settle();
    assert!(!scene.guest.has_answer(&poll), "an eventfd that was destroyed was read");
    for stream in [
        Request::stream_unwatch(id),
        Request::stream_watch(id),
        Request::stream_write(id, &1u64.to_ne_bytes(), false),
        Request::stream_write(id, &[], true),
    ] {
        scene.refused(&stream, ERR_INVALID_PARAMETER);
    }
    scene.peer.send(b"x", &[]);
    assert_eq!(scene.channel.wait(&mut scene.guest, poll).data, b"x");
    assert_eq!(scene.items(), (0, 0));
}

/// The device's descriptors: one for the context, and `room` more.
fn fds(room: u64) -> Scene {
    Scene::with(Builder::new().limits(Limits { fds: 1 + room, ..Limits::default() }))
}

#[test]
fn descriptors_of_items_are_counted_and_paid_back_whatever_the_item_was() {
    let mut scene = fds(2);
    for round in 0..20u32 {
        let (id, first) = scene.watched();
        let (pipe_id, reader) = scene.write_pipe();
        let third = event();
        assert_eq!(scene.hand(&[&third])[0].1, id_type::UNSUPPORTED);
        until("one that was not announced is closed", || event_holders(&third) == 1);
        assert_eq!(event_holders(&first), 2);
        scene.refused(&Request::stream_send_with(b"p", &[pipe_identifier(round)]), ERR_OUT_OF_MEMORY);
        scene.ok(&Request::stream_unwatch(id));
        scene.ok(&Request::stream_write(pipe_id, &[], true));
        assert!(!drain(&reader).1);
        // Both ends of a new pipe, the second of which goes to the service.
        let writer = scene.read_pipe(round);
        drop(writer);
        assert!(scene.channel.receive_read(&mut scene.guest).hang_up);
    }
    scene.assert_lives();
}

/// Nobody need ask for a message in between.
#[test]
fn a_pipe_that_the_guest_gives_up_is_paid_back_at_once() {
    let mut scene = fds(2);
    for number in 0..20 {
        let writer = scene.read_pipe(number);
        scene.ok(&Request::stream_write(FIRST_READ_PIPE + number, &[], true));
        assert!(!has_reader(&writer));
    }
    scene.assert_lives();
}

#[test]
fn a_message_that_is_refused_uses_up_neither_ids_nor_descriptors() {
    let mut scene = fds(4);
    for _ in 0..20 {
        // A blob that there is not, behind a pipe; two of one id; one out of turn.
        for identifiers in [
            vec![pipe_identifier(0), (99, id_type::VIRTGPU_BLOB)],
            vec![pipe_identifier(0), pipe_identifier(0)],
            vec![pipe_identifier(1)],
            vec![pipe_identifier(0), pipe_identifier(2)],
        ] {
            let kind = scene.channel.submit(&mut scene.guest, &Request::stream_send_with(b"p", &identifiers)).kind();
            assert!((0x1200..0x1206).contains(&kind), "{identifiers:?}: answered {kind:#x}");
        }
        // More than there is room for: three pipes take six.
        let three = [0, 1, 2].map(pipe_identifier);
        scene.refused(&Request::stream_send_with(b"p", &three), ERR_OUT_OF_MEMORY);
    }
    scene.peer.send(b"quiet", &[]);
    assert_eq!(scene.channel.receive(&mut scene.guest).data, b"quiet", "a pipe that was never sent was heard of");
    let two = [0, 1].map(pipe_identifier);
    scene.ok(&Request::stream_send_with(b"pp", &two));
    let (data, writers) = scene.peer.receive(2);
    assert_eq!((data.as_slice(), writers.len()), (&b"pp"[..], 2));
    for (number, writer) in (0u32..).zip(writers) {
        rustix::io::write(&writer, &[number as u8]).expect("written");
        let read = scene.channel.receive_read(&mut scene.guest);
        assert_eq!((read.id, read.data), (FIRST_READ_PIPE + number, vec![number as u8]));
        drop(writer);
        let read = scene.channel.receive_read(&mut scene.guest);
        assert_eq!((read.id, read.hang_up), (FIRST_READ_PIPE + number, true));
    }
}

#[test]
fn what_waits_for_a_pipe_is_paid_back_however_the_pipe_ends() {
    const BACKLOG: u64 = 200_000;
    for end in ["reader goes", "CTX_DESTROY", "hang_up", "reset"] {
        let limits = Limits { host_bytes: BACKLOG, ..Limits::default() };
        let mut scene = Scene::with(Builder::new().limits(limits));
        for round in 0..5 {
            let (id, reader) = scene.write_pipe();
            let mut taken = 0;
            let refused = loop {
                let answer = scene.channel.submit(&mut scene.guest, &Request::stream_write(id, &[1; 10_000], false));
                if answer.kind() >= 0x1200 {
                    break answer;
                }
                taken += 10_000;
                assert!(taken < 1 << 20, "{end}: {taken} bytes were kept");
            };
            refused.expect_error(ERR_OUT_OF_MEMORY);
            // What a pipe takes, and the limit; less would mean that the round before has not been paid back.
            assert!(taken > 200_000, "{end}, round {round}: room for {taken} bytes only");
            scene = ended(scene, end, id, reader);
        }
    }
}

/// Ends what has the pipe `id`, as the test above says.
#[track_caller]
fn ended(mut scene: Scene, end: &str, id: u32, reader: std::os::fd::OwnedFd) -> Scene {
    if end == "reader goes" {
        drop(reader);
        // The device finds out when it tries; then the item is of no use.
        scene.assert_lives();
        let kind = scene.channel.submit(&mut scene.guest, &Request::stream_write(id, b"x", true)).kind();
        assert!((0x1200..0x1206).contains(&kind), "written to nobody: {kind:#x}");
        return scene;
    }
    let Scene { mut guest, service, .. } = scene;
    match end {
        "hang_up" => assert_eq!(guest.device().hang_up(ChannelType::PIPEWIRE).wait(), Ok(1)),
        "reset" => {
            guest.reset();
            guest.activate();
            return Scene::on(guest, service);
        }
        _ => {}
    }
    guest.command(&Request::ctx_destroy(1)).ok();
    for ring in [10, 11] {
        guest.command(&Request::unref(ring)).ok();
    }
    Scene::on(guest, service)
}

#[test]
fn one_context_s_items_never_take_the_room_of_another() {
    let mut scene = items(2);
    scene.watched();
    scene.event();
    let mut other = virtio_gpu_uring::testing::GuestChannel::open(&mut scene.guest, 2, 30, ChannelType::PIPEWIRE);
    let peer = scene.service.accept();
    let (one, two) = (event(), event());
    peer.send(b"x", &[one.as_fd(), two.as_fd()]);
    let kinds: Vec<u32> = other.receive(&mut scene.guest).identifiers.iter().map(|item| item.1).collect();
    assert_eq!(kinds, [id_type::EVENTFD; 2]);
    assert_eq!(scene.hand(&[&one])[0].1, id_type::UNSUPPORTED);
}

/// Counters of items say what was handed over, no more and no less.
#[test]
fn no_item_s_traffic_is_counted_wrong() {
    let mut scene = Scene::new();
    let (id, event) = scene.watched();
    let (pipe_id, _reader) = scene.write_pipe();
    let writer = scene.read_pipe(0);
    for round in 1..=10u64 {
        ring(&event, 1);
        assert_eq!(scene.channel.receive_read(&mut scene.guest).id, id);
        rustix::io::write(&writer, b"data").expect("written");
        assert_eq!(scene.channel.receive_read(&mut scene.guest).data, b"data");
        scene.ok(&Request::stream_write(pipe_id, b"data", false));
        scene.ok(&Request::stream_write(id, &1u64.to_ne_bytes(), false));
        // Its own write comes back: it shares the eventfd with itself.
        let poll = scene.poll();
        assert!(matches!(scene.channel.wait_any(&mut scene.guest, poll), Incoming::Read(read) if read.id == id));
        // Refused: not counted.
        scene.refused(&Request::stream_write(id, b"odd", false), ERR_INVALID_PARAMETER);
        scene.refused(&Request::stream_write(77, b"nobody", false), ERR_INVALID_PARAMETER);
        assert_eq!(scene.items(), (3 * round, 2 * round));
    }
}

/// The guest has hung up, and its reader is slow: the item is gone, and what was promised still comes.
#[test]
fn what_waits_for_a_pipe_is_never_lost_by_the_guest_s_hang_up() {
    let mut scene = Scene::new();
    let (id, reader) = scene.write_pipe();
    let total: Vec<u8> = (0..8 * 30_000).map(|at: usize| (at / 999) as u8).collect();
    for (number, piece) in (1..).zip(total.chunks(30_000)) {
        scene.ok(&Request::stream_write(id, piece, number == 8));
    }
    scene.refused(&Request::stream_write(id, b"x", false), ERR_INVALID_PARAMETER);
    let mut seen = Vec::new();
    until("the reader has everything, and the end", || {
        let (more, open) = drain(&reader);
        seen.extend(more);
        !open
    });
    assert!(seen == total, "{} bytes of {}", seen.len(), total.len());
    scene.assert_lives();
}
