//! Descriptor chains, well made in every way and badly made in every way.

use virtio_gpu_uring::protocol::features::{EVENT_IDX, INDIRECT_DESC, OFFERED};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Layout, Misbehaviour, Pieces, Request};
use virtio_gpu_uring::{Builder, HostWindow};

use crate::{counters, cursor_lives, guest_with, take_used};

/// Commands of every shape, good and bad, that leave nothing behind.
fn program() -> Vec<Request> {
    vec![
        Request::display_info(),
        Request::capset_info(0),
        Request::capset_info(9),
        Request::capset(CAPSET_CROSS_DOMAIN, 1, 16).fenced(7),
        Request::ctx_create(3, CAPSET_CROSS_DOMAIN).fenced(8),
        Request::ctx_create(3, CAPSET_CROSS_DOMAIN).fenced(9),
        Request::submit(3, &Request::stream_poll()).fenced(10).on_ring(0),
        Request::submit(3, &[0; 64]).fenced(11).on_ring(2),
        Request::guest_blob(4, 8192, &[(0, 4096), (0, 4096)]),
        Request::map(4, 0).fenced(12),
        Request::ctx_attach(3, 4),
        Request::ctx_attach(3, 5),
        Request::detach_backing(4),
        Request::attach_backing(4, &[(0, 4096), (0, 4096)]),
        Request::unref(4),
        Request::unref(4),
        Request::ctx_destroy(3),
        Request::set_scanout(0, 0, [0, 0, 64, 64]),
        Request::new(0xdead, &[1; 40]),
    ]
}

fn play(features: u64, layout: &Layout) -> Vec<(u32, Vec<u8>)> {
    let builder = Builder::new().window(HostWindow::new(1 << 20).expect("window"));
    let options = GuestOptions { features, layout: layout.clone(), queue_size: 1024, ..GuestOptions::default() };
    let mut guest = Guest::with_options(builder, options);
    let answers = program().into_iter().map(|request| {
        let _ = guest.queue(Lane::Control).add(&request.bytes(), request.room(), layout).expect("room");
        guest.publish(Lane::Control);
        let used = take_used(&mut guest, Lane::Control, 1).remove(0);
        (used.written, used.response)
    });
    let answers = answers.collect();
    guest.assert_all_answered();
    answers
}

#[test]
fn no_layout_of_a_chain_changes_an_answer() {
    let pieces = |len| Layout::direct().readable(Pieces::Each(len)).writable(Pieces::Each(len));
    let cut = Pieces::Cut(vec![1, 22, 2, 30]);
    let direct = [
        Layout::direct(),
        Layout::bytewise(),
        pieces(7),
        pieces(24),
        Layout::direct().readable(cut.clone()).writable(cut.clone()),
    ];
    let indirect = [
        Layout::indirect(),
        Layout::mixed(1),
        Layout::mixed(0).readable(Pieces::Each(1)).writable(Pieces::Each(5)),
        Layout::mixed(3).readable(Pieces::Each(9)).writable(Pieces::Each(1)),
        Layout::indirect().readable(cut.clone()).writable(cut),
    ];
    let expected = play(OFFERED, &Layout::default());
    assert!(expected.iter().all(|(written, _)| *written >= 24), "an answer without a header");
    for layout in &direct {
        for features in [OFFERED, OFFERED & !INDIRECT_DESC, OFFERED & !EVENT_IDX] {
            assert_eq!(play(features, layout), expected, "{layout:?} with features {features:#x}");
        }
    }
    for layout in &indirect {
        assert_eq!(play(OFFERED, layout), expected, "{layout:?}");
    }
}

#[test]
fn no_misbehaving_chain_is_kept_returned_twice_or_harms_its_neighbours() {
    for features in [OFFERED, OFFERED & !INDIRECT_DESC] {
        for how in Misbehaviour::ALL {
            for (lane, request) in [
                (Lane::Control, Request::display_info()),
                (Lane::Cursor, Request::move_cursor(0, (10, 20)).response_len(24)),
            ] {
                let mut guest = guest_with(features);
                let before = guest.add(lane, &request);
                let bad = guest.queue(lane).add_misbehaving(how, &request.bytes(), request.room()).expect("room");
                let after = guest.add(lane, &request);
                guest.publish(lane);
                guest.wait_on(lane, before).ok();
                let answer = guest.wait_on(lane, bad);
                let kind = answer.kind();
                let sane = kind == 0 || (0x1100..0x1206).contains(&kind);
                assert!(sane, "{how:?} was answered {kind:#x} with {} bytes", answer.written);
                guest.wait_on(lane, after).ok();
                cursor_lives(&mut guest);
                guest.settle();
                guest.assert_all_answered();
                assert_eq!(counters(&guest).rings_broken, 0, "{how:?} breaks a chain, not the ring");
            }
        }
    }
}

#[test]
fn a_thousand_misbehaving_chains_never_wear_the_device_out() {
    let mut guest = guest_with(OFFERED);
    let request = Request::display_info();
    for round in 0..1024 {
        let how = Misbehaviour::ALL[round % Misbehaviour::ALL.len()];
        let token = guest.queue(Lane::Control).add_misbehaving(how, &request.bytes(), request.room()).expect("room");
        guest.publish(Lane::Control);
        drop(guest.wait(token));
    }
    guest.settle();
    guest.assert_all_answered();
}
