//! Requests that wait for something that may never come: a pause does not wait for them, says how many there are, and they
//! are answered after it.

use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{GuestChannel, HostPeer, HostService, Lane, Request};
use vm_memory::GuestAddress;

use crate::echo::echo;
use crate::{Stage, small};

fn connected() -> (Stage, GuestChannel, HostPeer, HostService) {
    let service = HostService::listen();
    let builder = Builder::new().host_socket(ChannelType::PIPEWIRE, service.path());
    let mut stage = Stage::start(builder, small(true));
    let channel = GuestChannel::open(&mut stage.guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (stage, channel, peer, service)
}

/// How many requests the device has taken and not given back, by the state of its control queue.
fn open(paused: &virtio_gpu_uring::Paused) -> u16 {
    let control = paused.control.expect("an active queue");
    control.next_avail.wrapping_sub(control.next_used)
}

#[test]
fn a_poll_that_waits_is_never_a_reason_not_to_pause_nor_lost_by_it() {
    let (mut stage, mut channel, peer, _service) = connected();
    let polls = [channel.poll(&mut stage.guest), channel.poll(&mut stage.guest)];
    stage.guest.settle();
    let paused = stage.pause();
    assert_eq!((paused.outstanding, open(&paused)), (2, 2));
    stage.resume();
    stage.guest.settle();
    assert!(polls.iter().all(|poll| !stage.guest.has_answer(poll)));
    for (poll, text) in polls.into_iter().zip([b"one", b"two"]) {
        peer.send(text, &[]);
        assert_eq!(channel.wait(&mut stage.guest, poll).data, text);
    }
    assert_eq!(stage.pause().outstanding, 0);
    stage.end();
}

#[test]
fn a_message_that_comes_during_a_pause_is_never_delivered_before_the_resume() {
    let (mut stage, mut channel, peer, _service) = connected();
    for round in 0..10u8 {
        let poll = channel.poll(&mut stage.guest);
        stage.guest.settle();
        assert_eq!(stage.pause().outstanding, 1);
        peer.send(&[round; 100], &[]);
        stage.assert_still();
        assert!(!stage.guest.has_answer(&poll), "answered while paused");
        stage.resume();
        assert_eq!(channel.wait(&mut stage.guest, poll).data, [round; 100]);
    }
    stage.end();
}

#[test]
fn a_service_that_ends_during_a_pause_never_leaves_a_poll_waiting() {
    let (mut stage, mut channel, peer, _service) = connected();
    let poll = channel.poll(&mut stage.guest);
    stage.guest.settle();
    stage.pause();
    drop(peer);
    stage.assert_still();
    stage.resume();
    assert_eq!(channel.wait(&mut stage.guest, poll).data, b"", "the end of the file");
    stage.end();
}

#[test]
fn what_a_guest_sends_during_a_pause_reaches_its_service_after_it_alone() {
    let (mut stage, _channel, peer, _service) = connected();
    stage.pause();
    let sent = stage.guest.submit(&Request::submit(1, &Request::stream_send(b"late", &[])));
    stage.assert_still();
    peer.stream().set_nonblocking(true).expect("set");
    let early = std::io::Read::read(&mut peer.stream(), &mut [0; 4]);
    assert!(early.is_err(), "the service was sent something: {early:?}");
    peer.stream().set_nonblocking(false).expect("set");
    stage.resume();
    stage.guest.wait(sent).ok();
    assert_eq!(peer.receive(4).0, b"late");
    stage.end();
}

#[test]
fn a_renderers_fence_never_signals_into_a_pause() {
    let (factory, mut remote) = echo("pause-fences");
    let mut stage = Stage::start(Builder::new().renderer(factory), small(true));
    stage.guest.command(&Request::ctx_create(1, 2)).ok();
    for signals_first in [0, 1] {
        let fenced = |fence, ring| Request::submit(1, b"fenced").fenced(fence).on_ring(ring);
        let tokens = [1, 2].map(|fence| stage.guest.submit(&fenced(fence, 0)));
        let elsewhere = stage.guest.submit(&fenced(1, 5));
        let mut fences = vec![remote.fence(), remote.fence(), remote.fence()];
        stage.guest.settle();
        let paused = stage.pause();
        assert_eq!((paused.outstanding, open(&paused)), (3, 3));
        fences.remove(signals_first).signal();
        stage.assert_still();
        assert!(tokens.iter().chain([&elsewhere]).all(|token| !stage.guest.has_answer(token)));
        fences.into_iter().for_each(|fence| fence.signal());
        stage.assert_still();
        stage.resume();
        for token in tokens.into_iter().chain([elsewhere]) {
            stage.guest.wait(token).ok();
        }
    }
    stage.guest.assert_all_answered();
    stage.end();
}

#[test]
fn a_fence_that_signals_after_the_resume_never_finds_its_request_gone() {
    let (factory, mut remote) = echo("pause-late-fence");
    let mut stage = Stage::start(Builder::new().renderer(factory), small(false));
    stage.guest.command(&Request::ctx_create(1, 2)).ok();
    let token = stage.guest.submit(&Request::submit(1, b"fenced").fenced(1).on_ring(0));
    let fence = remote.fence();
    for _ in 0..3 {
        stage.guest.settle();
        assert_eq!(stage.pause().outstanding, 1);
        stage.resume();
    }
    stage.guest.settle();
    assert!(!stage.guest.has_answer(&token));
    fence.signal();
    let answer = stage.guest.wait(token);
    assert_eq!(answer.header.fence_id.get(), 1);
    // One that waits behind it in a timeline waits as well, and a reset ends both.
    let _tokens = [1, 2].map(|fence| stage.guest.submit(&Request::submit(1, b"fenced").fenced(fence).on_ring(0)));
    let _fences = [remote.fence(), remote.fence()];
    stage.guest.settle();
    assert_eq!(stage.pause().outstanding, 2);
    stage.guest.device().reset().wait().expect("a device");
    let ram = stage.guest.ram().read(GuestAddress(0), crate::RAM);
    stage.guest.kick(Lane::Control);
    stage.runtime.turn();
    assert!(stage.guest.ram().read(GuestAddress(0), crate::RAM) == ram, "written after the reset");
    stage.end();
}
