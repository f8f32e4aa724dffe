//! Fenced answers keep their order on each timeline: the global one, and those of (context, ring).

use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, response_type as response};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Request, Token};

use crate::{assert_waiting, guest_with_blobs, in_order};

#[test]
fn a_fenced_answer_never_overtakes_another_on_the_global_timeline() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    memory.places_later(true);
    let tokens = [
        guest.submit(&Request::map(100, 0).fenced(1)),
        guest.submit(&Request::display_info().fenced(2)),
        // An error is no way around it, whether it comes of decoding or of doing.
        guest.submit(&Request::unref(999).fenced(3)),
        guest.submit(&Request::new(0xbad, &[]).fenced(4)),
        guest.submit(&Request::ctx_create(2, CAPSET_CROSS_DOMAIN).fenced(5)),
    ];
    let call = memory.next();
    // What they do is not held up, only their answers.
    guest.command(&Request::ctx_create(2, 0)).expect_error(response::ERR_INVALID_CONTEXT_ID);
    assert_waiting(&mut guest, &tokens);
    call.answer(Ok(()));
    let (order, kinds): (Vec<Token>, Vec<u32>) = in_order(&mut guest, 5).into_iter().unzip();
    assert_eq!(order, tokens);
    let errors = [response::ERR_INVALID_RESOURCE_ID, response::ERR_UNSPEC];
    let expected = [response::OK_MAP_INFO, response::OK_DISPLAY_INFO, errors[0], errors[1], response::OK_NODATA];
    assert_eq!(kinds, expected);
    guest.assert_all_answered();
}

#[test]
fn a_fenced_answer_never_overtakes_another_on_its_ring() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    memory.places_later(true);
    let on_ring = |request: Request, fence| request.context(1).fenced(fence).on_ring(2);
    let tokens = [
        guest.submit(&on_ring(Request::map(100, 0), 1)),
        guest.submit(&on_ring(Request::submit(1, &[]), 2)),
        guest.submit(&on_ring(Request::unref(999), 3)),
    ];
    let call = memory.next();
    assert_waiting(&mut guest, &tokens);
    call.answer(Ok(()));
    let order: Vec<Token> = in_order(&mut guest, 3).into_iter().map(|(token, _)| token).collect();
    assert_eq!(order, tokens);
}

#[test]
fn a_timeline_never_waits_for_another() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 2);
    guest.command(&Request::ctx_create(2, CAPSET_CROSS_DOMAIN)).ok();
    memory.places_later(true);
    let slow = [
        guest.submit(&Request::map(100, 0).context(1).fenced(1).on_ring(0)),
        guest.submit(&Request::submit(1, &[]).fenced(2).on_ring(0)),
    ];
    let call = memory.next();
    for ring in [1, 2, 63] {
        guest.command(&Request::submit(1, &[]).fenced(1).on_ring(ring)).ok();
    }
    guest.command(&Request::submit(2, &[]).fenced(1).on_ring(0)).ok();
    guest.command(&Request::display_info().fenced(1)).ok();
    guest.command(&Request::submit(1, &[]).fenced(2)).ok();
    // And the global one does not hold up the others.
    let global = guest.submit(&Request::map(101, 0x1000).fenced(3));
    let other = memory.next();
    guest.command(&Request::submit(1, &[]).fenced(2).on_ring(5)).ok();
    let waiting = slow.into_iter().chain([global]).collect::<Vec<_>>();
    assert_waiting(&mut guest, &waiting);
    other.answer(Ok(()));
    call.answer(Ok(()));
    waiting.into_iter().for_each(|token| drop(guest.wait(token).ok()));
    guest.assert_all_answered();
}

#[test]
fn an_unfenced_answer_never_waits_for_a_fence() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    memory.places_later(true);
    let slow = guest.submit(&Request::map(100, 0).fenced(1));
    let call = memory.next();
    guest.command(&Request::submit(1, &[])).ok();
    guest.command(&Request::ctx_create(2, 0)).ok();
    guest.command(&Request::unref(999)).expect_error(response::ERR_INVALID_RESOURCE_ID);
    guest.command(&Request::new(0xbad, &[])).expect_error(response::ERR_UNSPEC);
    assert_waiting(&mut guest, std::slice::from_ref(&slow));
    call.answer(Ok(()));
    guest.wait(slow).ok();
}

#[test]
fn a_new_context_never_waits_for_the_fences_of_the_one_before() {
    let (mut guest, memory) = guest_with_blobs(Builder::new(), 1);
    memory.places_later(true);
    let slow = guest.submit(&Request::map(100, 0).context(1).fenced(100).on_ring(0));
    let call = memory.next();
    guest.command(&Request::ctx_destroy(1)).ok();
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let fresh = guest.submit(&Request::submit(1, &[]).fenced(1).on_ring(0));
    guest.settle();
    let answered = guest.has_answer(&fresh);
    call.answer(Ok(()));
    guest.wait(slow).ok();
    guest.wait(fresh).ok();
    assert!(answered, "a timeline outlived its context");
}

fn with_channel() -> (Guest, GuestChannel, virtio_gpu_uring::testing::HostPeer) {
    let service = HostService::listen();
    let mut guest = Guest::start(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
    let channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (guest, channel, peer)
}

#[test]
fn a_receive_credit_never_holds_up_anything_but_its_own_ring() {
    let (mut guest, mut channel, peer) = with_channel();
    let polls = [channel.poll(&mut guest), channel.poll(&mut guest)];
    guest.command(&Request::submit(1, &[]).fenced(1).on_ring(0)).ok();
    guest.command(&Request::submit(1, &[]).fenced(1)).ok();
    guest.command(&Request::display_info().fenced(2)).ok();
    channel.send(&mut guest, b"hello", &[]);
    assert_eq!(peer.receive(16).0, b"hello");
    assert_waiting(&mut guest, &polls);
    let [first, second] = polls;
    peer.send(b"one", &[]);
    assert_eq!(channel.wait(&mut guest, first).data, b"one");
    assert_waiting(&mut guest, std::slice::from_ref(&second));
    peer.send(b"two", &[]);
    assert_eq!(channel.wait(&mut guest, second).data, b"two");
    guest.assert_all_answered();
}

#[test]
fn a_context_that_dies_never_leaves_its_fences_unanswered() {
    let (mut guest, mut channel, peer) = with_channel();
    let polls: Vec<Token> = (0..5).map(|_| channel.poll(&mut guest)).collect();
    assert_waiting(&mut guest, &polls);
    let destroy = guest.submit(&Request::ctx_destroy(1));
    let (mut order, kinds): (Vec<Token>, Vec<u32>) = in_order(&mut guest, 6).into_iter().unzip();
    assert!(kinds.iter().all(|kind| *kind == response::OK_NODATA));
    order.retain(|token| *token != destroy);
    assert_eq!(order, polls);
    assert_eq!(peer.receive(1).0, b"");
    guest.settle();
    guest.assert_all_answered();
}
