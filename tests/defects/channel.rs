//! Rows 9, 10, 11 and 28 to 30: the stream of a cross-domain context, its rings, and host services that stall or die.

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_OUT_OF_MEMORY};
use virtio_gpu_uring::testing::{GuestChannel, HostPeer, HostService, Message, Request};
use virtio_gpu_uring::{Builder, Limits};
use vm_memory::GuestAddress;

use crate::setup::Setup;

/// The context of the channel under test.
const CHANNEL: u32 = 2;

/// A guest with a channel as context 2, with the rings 10 and 11.
fn connected(limits: Limits) -> (Setup, GuestChannel, HostPeer, HostService) {
    let service = HostService::listen();
    let builder = Builder::new().limits(limits).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut setup = Setup::with(builder);
    let channel = GuestChannel::open(&mut setup.guest, CHANNEL, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (setup, channel, peer, service)
}

/// The channel still carries a message each way.
#[track_caller]
fn assert_alive(setup: &mut Setup, channel: &mut GuestChannel, peer: &HostPeer) {
    peer.send(b"to the guest", &[]);
    assert_eq!(channel.receive(&mut setup.guest).data, b"to the guest");
    channel.send(&mut setup.guest, b"to the host", &[]);
    assert_eq!(peer.receive(64).0, b"to the host");
}

/// Row 9: a command of size 0 in a stream was read again and again, for ever.
#[test]
fn a_command_of_no_size_does_not_spin_the_device() {
    let (mut setup, mut channel, peer, _service) = connected(Limits::default());
    let poll = Request::stream_poll();
    for size in [0u16, 1, 7] {
        for cmd in [0u8, 1, 3, 4, 5, 255] {
            let mut bad = vec![cmd, 0];
            bad.extend(size.to_le_bytes());
            bad.extend([0; 4]);
            setup.refused(&Request::submit(CHANNEL, &bad), ERR_INVALID_PARAMETER);
            setup.refused(&Request::submit(CHANNEL, &[poll.clone(), bad].concat()), ERR_INVALID_PARAMETER);
        }
    }
    assert_alive(&mut setup, &mut channel, &peer);
}

/// Row 10: one host service that did not read froze every context of the machine.
#[test]
fn a_service_that_does_not_read_holds_up_nobody_and_loses_nothing() {
    let (mut setup, channel, peer, service) = connected(Limits::default());
    let mut other = GuestChannel::open(&mut setup.guest, 3, 20, ChannelType::PIPEWIRE);
    let other_peer = service.accept();
    let message = |number: u8| -> Vec<u8> { (0..50_000).map(|at| number ^ (at % 251) as u8).collect() };
    for number in 0..40 {
        channel.send(&mut setup.guest, &message(number), &[]);
        assert_alive(&mut setup, &mut other, &other_peer);
    }
    let mut got = Vec::new();
    while got.len() < 40 * 50_000 {
        let (piece, _) = peer.receive(1 << 16);
        assert!(!piece.is_empty(), "the channel was closed after {} bytes", got.len());
        got.extend(piece);
    }
    let sent: Vec<u8> = (0..40).flat_map(message).collect();
    assert!(got == sent, "the service has got other bytes than were sent");
}

/// Row 10: and what waits for it is bounded.
#[test]
fn a_service_that_never_reads_costs_no_more_than_the_limit() {
    let limits = Limits { channel_backlog: 200_000, ..Limits::default() };
    let (mut setup, mut channel, peer, service) = connected(limits);
    let message = Request::submit(CHANNEL, &Request::stream_send(&[7; 50_000], &[]));
    let mut sent = 0;
    let refused = loop {
        let answer = setup.guest.command(&message);
        if answer.kind() >= 0x1200 {
            break answer;
        }
        sent += 1;
        assert!(sent < 1000, "50 MB are kept for a service that does not read");
    };
    refused.expect_error(ERR_OUT_OF_MEMORY);
    assert_eq!(channel.receive(&mut setup.guest).data, b"", "the guest is not told that the stream has ended");
    assert_eq!(setup.guest.device().counters().channels_closed, 1);
    let again = setup.guest.command(&message);
    assert!(again.kind() >= 0x1200, "a stream with a gap was continued");
    drop(peer);
    let mut other = GuestChannel::open(&mut setup.guest, 3, 20, ChannelType::PIPEWIRE);
    let other_peer = service.accept();
    assert_alive(&mut setup, &mut other, &other_peer);
}

/// Row 11: when a channel had died, its fences queued for ever and the guest's program hung.
#[test]
fn no_fence_outlives_the_service_that_it_waits_for() {
    let (mut setup, mut channel, peer, _service) = connected(Limits::default());
    let polls: Vec<_> = (0..5).map(|_| channel.poll(&mut setup.guest)).collect();
    setup.guest.settle();
    assert!(polls.iter().all(|poll| !setup.guest.has_answer(poll)));
    peer.send(b"last words", &[]);
    drop(peer);
    let mut polls = polls.into_iter();
    let first = polls.next().expect("five");
    setup.guest.wait(first).ok();
    for poll in polls {
        setup.guest.wait(poll).ok();
    }
    assert_eq!(channel.message(&setup.guest), Message { data: Vec::new(), identifiers: Vec::new() });
    // And those that come later do not wait either.
    for _ in 0..3 {
        assert_eq!(channel.receive(&mut setup.guest).data, b"");
    }
    let late = setup.guest.command(&Request::submit(CHANNEL, &Request::stream_send(b"late", &[])));
    assert!(late.kind() >= 0x1200, "a dead service was sent to: {:#x}", late.kind());
}

/// Row 11: nor does one that waits when its context, or the whole machine's state, goes.
#[test]
fn no_fence_outlives_its_context() {
    let (mut setup, mut channel, peer, _service) = connected(Limits::default());
    let polls: Vec<_> = (0..5).map(|_| channel.poll(&mut setup.guest)).collect();
    setup.ok(&Request::ctx_destroy(CHANNEL));
    for poll in polls {
        setup.guest.wait(poll).ok();
    }
    assert_eq!(peer.receive(8).0, b"", "the service still has a connection");
}

/// Row 28: only the first piece of a ring in several was written.
#[test]
fn a_ring_in_pieces_is_written_in_all_of_them() {
    let service = HostService::listen();
    let mut setup = Setup::with(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
    setup.ok(&Request::ctx_create(CHANNEL, 5));
    // Every other 512 bytes of two pages, the last first.
    let (start, _) = setup.guest.page_range(8192);
    let pieces: Vec<(u64, u32)> = (0..8).rev().map(|piece| (start + piece * 1024, 512)).collect();
    let query = setup.guest.page_range(4096);
    setup.guest.ram().write(GuestAddress(start), &[0xee; 8192]);
    setup.ok(&Request::guest_blob(10, 4096, &[query]));
    setup.ok(&Request::guest_blob(11, 4096, &pieces));
    for ring in [10, 11] {
        setup.ok(&Request::ctx_attach(CHANNEL, ring));
    }
    let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, None);
    setup.ok(&Request::submit(CHANNEL, &init));
    let data: Vec<u8> = (0..3000).map(|at| (at % 251) as u8).collect();
    service.accept().send(&data, &[]);
    setup.ok(&Request::submit(CHANNEL, &Request::stream_poll()).fenced(1).on_ring(1));
    let ring: Vec<u8> =
        pieces.iter().flat_map(|(at, len)| setup.guest.ram().read(GuestAddress(*at), *len as usize)).collect();
    assert_eq!(ring[352..3352], data);
    for piece in 0..8 {
        let between = setup.guest.ram().read(GuestAddress(start + piece * 1024 + 512), 512);
        assert_eq!(between, [0xee; 512], "written beside the ring");
    }
}

/// Row 29: the ring's pages were kept after the guest had taken them back, and written to.
#[test]
fn nothing_is_written_to_a_ring_s_pages_after_the_guest_has_taken_them_back() {
    for end in [Request::detach_backing(11), Request::unref(11)] {
        let (mut setup, mut channel, peer, _service) = connected(Limits::default());
        peer.send(b"before", &[]);
        assert_eq!(channel.receive(&mut setup.guest).data, b"before");
        let poll = channel.poll(&mut setup.guest);
        setup.ok(&end);
        peer.send(b"after!", &[]);
        setup.guest.wait(poll);
        assert_eq!(channel.message(&setup.guest).data, b"before", "{end:?}: pages of the guest's were overwritten");
        setup.guest.settle();
    }
}

/// Row 29: a ring could be attached to one context only; the second one found nothing.
#[test]
fn a_ring_is_not_used_up_by_its_first_context() {
    let (mut setup, mut channel, peer, service) = connected(Limits::default());
    setup.ok(&Request::ctx_create(3, 5));
    for ring in channel.rings {
        setup.ok(&Request::ctx_attach(3, ring));
    }
    let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, Some(1));
    setup.ok(&Request::submit(3, &init));
    let second = service.accept();
    second.send(b"second", &[]);
    setup.ok(&Request::submit(3, &Request::stream_poll()).fenced(1).on_ring(1));
    assert_eq!(channel.message(&setup.guest).data, b"second");
    setup.ok(&Request::ctx_destroy(3));
    assert_alive(&mut setup, &mut channel, &peer);
}

/// Row 30: the dialect of INIT was guessed from the bytes that followed it, so that a batch was misread.
#[test]
fn the_command_behind_an_init_is_not_taken_for_a_part_of_it() {
    for version in [None, Some(1)] {
        let service = HostService::listen();
        let mut setup = Setup::with(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
        let channel = GuestChannel::create(&mut setup.guest, CHANNEL, 10);
        let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, version);
        let send = Request::stream_send(b"in one batch", &[]);
        let batch = [init, Request::stream_poll(), send].concat();
        let token = setup.guest.submit(&Request::submit(CHANNEL, &batch).fenced(1).on_ring(1));
        let peer = service.accept();
        assert_eq!(peer.receive(64).0, b"in one batch", "INIT of {version:?}");
        peer.send(b"answer", &[]);
        setup.guest.wait(token).ok();
        assert_eq!(channel.message(&setup.guest).data, b"answer");
    }
}
