//! Items 15 to 18: the fence timelines, one for all that name none, and one for each ring of each context.

use std::sync::mpsc::{Receiver, channel};

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::features::{CONTEXT_INIT, OFFERED};
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, OK_NODATA,
};
use virtio_gpu_uring::testing::{Guest, GuestChannel, GuestOptions, HostService, Lane, Request};
use virtio_gpu_uring::{BlobRequest, Builder, Capset, Fence, RenderedBlob, Renderer, RendererError, Resource3d};

use crate::fences::{FENCE, RING_IDX, Slow, bytes, flush, head, quick};
use crate::kit;

#[test]
fn spec_15_a_ring_index_needs_its_feature() {
    let options = GuestOptions { features: OFFERED & !CONTEXT_INIT, ..GuestOptions::default() };
    let mut guest = Guest::with_options(Builder::new(), options);
    kit::done(&mut guest, &Request::ctx_create(1, 0));
    for fenced in [false, true] {
        let request = Request::create_2d(1, 1, 4, 4).context(1).on_ring(0);
        let answer = guest.command(&if fenced { request.fenced(1) } else { request });
        assert_eq!((answer.kind() & 0xff00, answer.written), (0x1200, 24));
    }
    kit::done(&mut guest, &Request::create_2d(1, 1, 4, 4));
}

#[test]
fn spec_15_a_ring_index_is_below_64() {
    let mut guest = Guest::start(Builder::new());
    kit::done(&mut guest, &Request::ctx_create(1, 5));
    for ring in 0..=255 {
        for fence in [None, Some(u64::from(ring) + 1)] {
            let request = Request::create_2d(7, 1, 4, 4).context(1).on_ring(ring);
            let (request, flags) = match fence {
                Some(fence) => (request.fenced(fence), FENCE | RING_IDX),
                None => (request, RING_IDX),
            };
            let kind = if ring < 64 { OK_NODATA } else { ERR_INVALID_PARAMETER };
            let answer = guest.command(&request);
            assert_eq!(bytes(&answer), head(kind, flags, fence.unwrap_or(0), 1, ring));
            let unref = guest.command(&Request::unref(7));
            let left = if ring < 64 { OK_NODATA } else { ERR_INVALID_RESOURCE_ID };
            assert_eq!(unref.kind(), left, "a refused command left a resource");
        }
    }
    // Without the flag the field means nothing.
    let mut request = Request::create_2d(7, 1, 4, 4).bytes();
    request[20] = 200;
    assert_eq!(kit::raw(&mut guest, Lane::Control, &request, 24).kind(), OK_NODATA);
}

#[test]
fn spec_15_a_timeline_needs_its_context() {
    let mut guest = Guest::start(Builder::new());
    for context in [0, 1, u32::MAX] {
        let answer = guest.command(&Request::create_2d(7, 1, 4, 4).context(context).on_ring(3).fenced(1));
        assert_eq!(bytes(&answer), head(ERR_INVALID_CONTEXT_ID, FENCE | RING_IDX, 1, context, 3));
    }
    kit::done(&mut guest, &Request::create_2d(7, 1, 4, 4));
}

/// A renderer whose contexts are made when the test says so.
struct Gated(Receiver<()>);

impl Renderer for Gated {
    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: 2, max_version: 1, data: vec![0; 4] }]
    }

    fn create_context(&mut self, _context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        // A test that has gone lets it go on.
        let _ = self.0.recv();
        Ok(())
    }

    fn destroy_context(&mut self, _context: u32) {}

    fn attach_resource(&mut self, _context: u32, _resource: u32) {}

    fn detach_resource(&mut self, _context: u32, _resource: u32) {}

    fn submit(&mut self, _context: u32, _stream: &[u8]) -> Result<(), RendererError> {
        Ok(())
    }

    fn create_blob(&mut self, _request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        Err(RendererError::Invalid("none".into()))
    }

    fn create_resource(&mut self, _request: &Resource3d) -> Result<(), RendererError> {
        Ok(())
    }

    fn destroy_resource(&mut self, _resource: u32) {}

    fn fence(&mut self, _context: u32, _ring: Option<u8>, fence: Fence) {
        fence.signal();
    }
}

#[test]
fn spec_15_the_timelines_of_a_context_are_there_as_soon_as_its_creation_is_sent() {
    let (open, gate) = channel();
    let mut guest = Guest::start(Builder::new().renderer(move || Ok(Gated(gate))));
    let created = guest.submit(&Request::ctx_create(1, 2));
    let fenced = guest.submit(&Request::create_2d(7, 1, 4, 4).context(1).on_ring(3).fenced(1));
    guest.settle();
    open.send(()).expect("a renderer");
    assert_eq!(guest.wait(created).kind(), OK_NODATA);
    assert_eq!(bytes(&guest.wait(fenced)), head(OK_NODATA, FENCE | RING_IDX, 1, 1, 3));
}

#[test]
fn spec_15_what_became_of_a_context_is_what_its_timelines_go_by() {
    let mut guest = Guest::start(Builder::new());
    let on_ring = |guest: &mut Guest| guest.command(&quick().on_ring(3).fenced(1)).kind();
    // Refused creations: of a set that is not there, in too little room, on no ring.
    kit::refused(&mut guest, &Request::ctx_create(1, 2), ERR_INVALID_PARAMETER);
    assert_eq!(on_ring(&mut guest), ERR_INVALID_CONTEXT_ID);
    let short = guest.command(&Request::ctx_create(1, 5).response_len(8));
    assert_eq!(short.written, 8);
    assert_eq!(on_ring(&mut guest), ERR_INVALID_CONTEXT_ID);
    kit::refused(&mut guest, &Request::ctx_create(1, 5).on_ring(64), ERR_INVALID_PARAMETER);
    assert_eq!(on_ring(&mut guest), ERR_INVALID_CONTEXT_ID);
    kit::done(&mut guest, &Request::ctx_create(1, 5));
    assert_eq!(on_ring(&mut guest), OK_NODATA);
    // What is refused changes nothing.
    kit::refused(&mut guest, &Request::ctx_create(1, 5), ERR_INVALID_CONTEXT_ID);
    kit::refused(&mut guest, &Request::ctx_create(1, 2), ERR_INVALID_CONTEXT_ID);
    kit::refused(&mut guest, &Request::ctx_destroy(1).on_ring(64), ERR_INVALID_PARAMETER);
    kit::refused(&mut guest, &Request::ctx_destroy(2), ERR_INVALID_CONTEXT_ID);
    assert_eq!(on_ring(&mut guest), OK_NODATA);
    kit::done(&mut guest, &Request::ctx_destroy(1));
    assert_eq!(on_ring(&mut guest), ERR_INVALID_CONTEXT_ID);
    // A batch is as good as one after the other.
    let batch = [
        Request::ctx_create(1, 5),
        quick().on_ring(3).fenced(2),
        Request::ctx_destroy(1).on_ring(3).fenced(3),
        quick().on_ring(3).fenced(4),
        Request::ctx_create(1, 5),
        quick().on_ring(3).fenced(5),
    ];
    let tokens = batch.map(|request| guest.add(Lane::Control, &request));
    guest.publish(Lane::Control);
    let kinds = tokens.map(|token| guest.wait(token).kind());
    let expected = [OK_NODATA, OK_NODATA, OK_NODATA, ERR_INVALID_CONTEXT_ID, OK_NODATA, OK_NODATA];
    assert_eq!(kinds, expected);
    guest.reset();
    guest.activate();
    assert_eq!(on_ring(&mut guest), ERR_INVALID_CONTEXT_ID, "a context outlived a reset");
}

#[test]
fn spec_15_a_command_is_never_refused_for_what_comes_after_it() {
    let (open, gate) = channel();
    let mut guest = Guest::start(Builder::new().renderer(move || Ok(Gated(gate))));
    kit::done(&mut guest, &Request::ctx_create(1, 5));
    let _ = guest.submit(&Request::ctx_create(2, 2));
    let slow = guest.submit(&Request::create_3d(7, 2, 1, 4, 4));
    let behind = guest.submit(&Request::unref(7).context(1).on_ring(3).fenced(1));
    let end = guest.submit(&Request::ctx_destroy(1));
    guest.settle();
    open.send(()).expect("a renderer");
    for token in [slow, end] {
        assert_eq!(guest.wait(token).kind(), OK_NODATA);
    }
    assert_eq!(bytes(&guest.wait(behind)), head(OK_NODATA, FENCE | RING_IDX, 1, 1, 3));
}

#[test]
fn spec_16_each_ring_of_each_context_counts_for_itself() {
    let mut slow = Slow::new(1);
    let held = slow.submit(flush(1).context(1).on_ring(0).fenced(100));
    slow.assert_waiting(&[&held]);
    // The same numbers, smaller and larger ones, on every other timeline.
    for fence in [1, 99, 100, 101, u64::MAX] {
        for (context, ring) in [(1, 1), (1, 63), (2, 0), (2, 63)] {
            let answer = slow.guest.command(&quick().context(context).on_ring(ring).fenced(fence));
            assert_eq!(bytes(&answer), head(OK_NODATA, FENCE | RING_IDX, fence, context, ring));
        }
        let global = slow.guest.command(&quick().fenced(fence));
        assert_eq!(bytes(&global), head(OK_NODATA, FENCE, fence, 1, 0));
    }
    slow.assert_waiting(&[&held]);
    slow.finish(1);
    let answer = slow.guest.wait(held);
    assert_eq!(bytes(&answer), head(OK_NODATA, FENCE | RING_IDX, 100, 1, 0));
}

#[test]
fn spec_16_a_timeline_begins_anew_with_its_context() {
    let mut slow = Slow::new(1);
    let held = slow.submit(flush(1).context(1).on_ring(0).fenced(100));
    kit::done(&mut slow.guest, &Request::ctx_destroy(1));
    kit::done(&mut slow.guest, &Request::ctx_create(1, 5));
    let answer = slow.guest.command(&quick().on_ring(0).fenced(1));
    assert_eq!(bytes(&answer), head(OK_NODATA, FENCE | RING_IDX, 1, 1, 0));
    slow.finish(1);
    slow.guest.wait(held).ok();
}

#[test]
fn spec_17_a_completed_sequence_number_answers_all_up_to_it_and_none_after_it() {
    let mut slow = Slow::new(2);
    let on = |request: Request, fence| request.context(1).on_ring(7).fenced(fence);
    let first = slow.submit(on(flush(1), 10));
    let quick_one = slow.submit(on(quick(), 11));
    let refused = slow.submit(on(Request::unref(999), 12));
    let second = slow.submit(on(flush(2), 13));
    let last = slow.submit(on(quick(), 14));
    slow.assert_waiting(&[&first, &quick_one, &refused, &second, &last]);
    slow.finish(1);
    let order = slow.in_order(3);
    let expected = [(first, OK_NODATA), (quick_one, OK_NODATA), (refused, ERR_INVALID_RESOURCE_ID)];
    assert_eq!(order, expected);
    slow.assert_waiting(&[&second, &last]);
    slow.finish(2);
    slow.assert_order(vec![second, last]);
}

#[test]
fn spec_17_a_later_sequence_number_is_never_answered_before_an_earlier_one() {
    let mut slow = Slow::new(2);
    let on = |request: Request, fence| request.context(2).on_ring(63).fenced(fence);
    let first = slow.submit(on(flush(1), 1));
    let second = slow.submit(on(flush(2), 2));
    slow.finish(2);
    slow.assert_waiting(&[&first, &second]);
    slow.finish(1);
    slow.assert_order(vec![first, second]);
}

#[test]
fn spec_17_a_smaller_number_that_comes_later_is_answered_with_the_larger_one() {
    let mut slow = Slow::new(1);
    let on = |request: Request, fence| request.context(1).on_ring(7).fenced(fence);
    let tokens = [slow.submit(on(flush(1), 10)), slow.submit(on(quick(), 5)), slow.submit(on(quick(), 10))];
    slow.finish(1);
    slow.assert_order(tokens.into());
}

#[test]
fn spec_17_an_end_of_the_context_that_was_refused_changes_no_timeline() {
    let mut slow = Slow::new(1);
    let on = |request: Request, fence| request.context(1).on_ring(7).fenced(fence);
    let first = slow.submit(on(flush(1), 1));
    let refused = slow.guest.command(&Request::ctx_destroy(1).on_ring(64));
    assert_eq!(bytes(&refused), head(ERR_INVALID_PARAMETER, RING_IDX, 0, 1, 64));
    let second = slow.submit(on(quick(), 2));
    slow.assert_waiting(&[&first, &second]);
    slow.finish(1);
    slow.assert_order(vec![first, second]);
}

#[test]
fn spec_17_a_fence_that_is_a_credit_holds_up_those_behind_it() {
    let service = HostService::listen();
    let mut guest = Guest::start(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let poll = channel.poll(&mut guest);
    let behind = guest.submit(&Request::create_2d(7, 1, 4, 4).context(1).on_ring(1).fenced(2));
    guest.settle();
    assert!(!guest.has_answer(&poll) && !guest.has_answer(&behind));
    peer.send(b"message", &[]);
    assert_eq!(bytes(&guest.wait(behind)), head(OK_NODATA, FENCE | RING_IDX, 2, 1, 1));
    assert!(guest.has_answer(&poll), "the earlier one is still outstanding");
    assert_eq!(channel.wait(&mut guest, poll).data, b"message");
}

#[test]
fn spec_18_no_fence_of_the_global_timeline_is_answered_before_an_earlier_one() {
    let mut slow = Slow::new(2);
    let tokens = vec![
        slow.submit(flush(1).fenced(1)),
        slow.submit(quick().context(1).fenced(2)),
        slow.submit(quick().context(2).fenced(3)),
        slow.submit(Request::new(0xbad, &[]).fenced(4)),
        slow.submit(Request::create_2d(60, 1, 4, 4).fenced(5)),
        slow.submit(flush(2).context(2).fenced(6)),
        slow.submit(Request::display_info().fenced(7)),
    ];
    slow.finish(2);
    slow.assert_waiting(&tokens.iter().collect::<Vec<_>>());
    // What they do is not held up, only what the driver is told of it.
    kit::refused(&mut slow.guest, &Request::create_2d(60, 1, 4, 4), ERR_INVALID_RESOURCE_ID);
    slow.finish(1);
    slow.assert_order(tokens);
}

#[test]
fn spec_18_an_answer_without_a_fence_waits_for_none() {
    let mut slow = Slow::new(1);
    let held = slow.submit(flush(1).fenced(1));
    for (request, kind) in [(quick(), OK_NODATA), (Request::unref(99), ERR_INVALID_RESOURCE_ID)] {
        assert_eq!(slow.guest.command(&request).kind(), kind);
    }
    slow.assert_waiting(&[&held]);
    slow.finish(1);
    slow.guest.wait(held).ok();
}
