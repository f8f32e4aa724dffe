//! Fences of virgl's and Venus's work: every one of them is kept, however many there are and whatever ends meanwhile.

use virtio_gpu_uring::protocol::wire::{FLAG_FENCE, FLAG_INFO_RING_IDX};
use virtio_gpu_uring::testing::{Request, Token};
use vm_memory::GuestAddress;

use super::alone::alone;
use super::stream::{Stream, bind, format, target};
use super::studio::{CONTEXT, PIPELINE, SURFACE, Studio, TEXTURE, VENUS, VERTICES, VIRGL, create_3d};

/// A picture large enough for a software GPU to take its time.
const LARGE: [u32; 2] = [1024, 1024];

/// What keeps a software GPU busy for some milliseconds.
fn work() -> Stream {
    let corner = |place| (place, [0.25; 4]);
    let vertices = [[-1.0, -1.0], [3.0, -1.0], [-1.0, 3.0]].map(corner);
    let mut stream = Stream::new().framebuffer(SURFACE).write_vertices(VERTICES, &vertices);
    for _ in 0..8 {
        stream = stream.clear([0.5; 4]).triangles(VERTICES, 3);
    }
    stream
}

fn busy(studio: &mut Studio) {
    studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
    studio.texture(CONTEXT, TEXTURE, format::B8G8R8A8, LARGE);
    studio.buffer(VERTICES, 4096);
    let stream = Stream::new().surface(SURFACE, TEXTURE, format::B8G8R8A8).framebuffer(SURFACE);
    studio.draw(&stream.pipeline(PIPELINE, LARGE[0], LARGE[1]));
}

fn submit(stream: &Stream) -> Request {
    Request::submit(CONTEXT, &stream.bytes())
}

/// Asserts that an answer is a success and names the fence that was asked for, on its ring.
#[track_caller]
fn assert_fence(studio: &mut Studio, token: Token, fence: u64, ring: Option<u8>) {
    let answer = studio.wait(token);
    let flags = FLAG_FENCE | ring.map_or(0, |_| FLAG_INFO_RING_IDX);
    assert_eq!((answer.header.flags.get(), answer.header.fence_id.get()), (flags, fence));
    assert_eq!(answer.header.ring_idx, ring.unwrap_or(0));
    answer.ok();
}

#[test]
fn a_fenced_stream_is_never_left_without_an_answer_on_a_ring_or_without() {
    let mut studio = Studio::enter();
    busy(&mut studio);
    for (number, ring) in [None, Some(0), None, Some(0)].into_iter().enumerate() {
        let fence = 1000 + number as u64;
        let request = submit(&work()).fenced(fence);
        let token = studio.submit(&ring.map_or(request.clone(), |ring| request.on_ring(ring)));
        assert_fence(&mut studio, token, fence, ring);
    }
    // An empty stream, and commands that are none.
    for request in
        [submit(&Stream::new()), Request::ctx_detach(CONTEXT, VERTICES), Request::ctx_attach(CONTEXT, VERTICES)]
    {
        let token = studio.submit(&request.fenced(u64::MAX));
        assert_fence(&mut studio, token, u64::MAX, None);
    }
    studio.assert_all_answered();
}

#[test]
fn of_many_fences_at_once_none_is_ever_left_behind() {
    let mut studio = Studio::enter();
    busy(&mut studio);
    studio.ok(&Request::ctx_create(2, VIRGL));
    studio.ok(&Request::ctx_create(3, VENUS));
    let mut waiting = Vec::new();
    for fence in 0..96u64 {
        let context = [CONTEXT, 2, CONTEXT, 3][fence as usize % 4];
        let ring = [None, Some(0)][fence as usize / 4 % 2];
        let stream = if context == CONTEXT { work().bytes() } else { Vec::new() };
        let request = Request::submit(context, &stream).fenced(fence);
        waiting.push((studio.submit(&ring.map_or(request.clone(), |ring| request.on_ring(ring))), fence, ring));
    }
    for (token, fence, ring) in waiting {
        assert_fence(&mut studio, token, fence, ring);
    }
    studio.assert_all_answered();
}

/// An occlusion query, its three commands, and where in its buffer the answer is: its state, and how many samples passed.
mod query {
    pub(super) const OBJECT: u32 = 9;
    pub(super) const OCCLUSION_COUNTER: u32 = 0;
    pub(super) const BEGIN: u32 = 19;
    pub(super) const END: u32 = 20;
    pub(super) const RESULT: u32 = 21;
    pub(super) const DONE: [u8; 4] = 1u32.to_le_bytes();
    pub(super) const SAMPLES: std::ops::Range<usize> = 8..16;
}

#[test]
fn a_query_that_nobody_has_waited_for_never_holds_up_fences_nor_loses_its_answer() {
    let mut studio = Studio::enter();
    busy(&mut studio);
    let (handle, buffer) = (90, 12);
    studio.ok(&create_3d(buffer, target::BUFFER, format::R8, bind::CUSTOM, [16, 1]));
    let piece = studio.memory(16);
    studio.ok(&Request::attach_backing(buffer, &[piece]));
    studio.ok(&Request::ctx_attach(CONTEXT, buffer));
    studio.draw(&Stream::new().command(1, query::OBJECT, &[handle, query::OCCLUSION_COUNTER, 0, buffer]));
    for fence in 0..20 {
        studio.fill(&[piece], &[0; 16]);
        let mut stream = Stream::new().command(query::BEGIN, 0, &[handle]).raw(work().words());
        stream = stream.command(query::END, 0, &[handle]).command(query::RESULT, 0, &[handle, 0]);
        let [asked, next] = [stream, work()].map(|stream| studio.submit(&submit(&stream).fenced(fence).on_ring(0)));
        assert_fence(&mut studio, asked, fence, Some(0));
        assert_fence(&mut studio, next, fence, Some(0));
        let ram = studio.ram().clone();
        let answer = || ram.read(GuestAddress(piece.0), 16);
        studio.until("the query's answer", || answer()[..4] == query::DONE);
        assert_ne!(answer()[query::SAMPLES], [0; 8]);
    }
}

#[test]
fn a_ring_that_the_renderer_does_not_have_never_swallows_a_fence() {
    let mut studio = Studio::enter();
    busy(&mut studio);
    studio.ok(&Request::ctx_create(3, VENUS));
    let mut waiting = Vec::new();
    for context in [CONTEXT, 3] {
        for ring in [1, 2, 63, 64, 255] {
            waiting.push(studio.submit(&Request::submit(context, &[]).fenced(ring.into()).on_ring(ring)));
        }
    }
    for token in waiting {
        assert_ne!(studio.wait(token).kind(), 0);
    }
    let token = studio.submit(&submit(&work()).fenced(9).on_ring(0));
    assert_fence(&mut studio, token, 9, Some(0));
    studio.assert_all_answered();
}

/// virglrenderer 1.3.0 itself uses a context that has ended where one of its fences on a ring is under way: the process dies.
#[test]
fn a_context_that_ends_never_takes_its_fences_with_it_nor_the_process() {
    alone("fences::a_context_that_ends_never_takes_its_fences_with_it_nor_the_process", || {
        let mut studio = Studio::alone();
        for round in 0..20u64 {
            busy(&mut studio);
            studio.ok(&Request::ctx_create(3, VENUS));
            let mut waiting = Vec::new();
            for ring in [None, Some(0), None, Some(0)] {
                let request = submit(&work()).fenced(round);
                waiting.push((studio.submit(&ring.map_or(request.clone(), |ring| request.on_ring(ring))), ring));
                let request = Request::submit(3, &[]).fenced(round).on_ring(0);
                waiting.push((studio.submit(&request), Some(0)));
            }
            let ends = [CONTEXT, 3].map(|context| studio.submit(&Request::ctx_destroy(context)));
            for (token, ring) in waiting {
                assert_fence(&mut studio, token, round, ring);
            }
            for end in ends {
                studio.wait(end).ok();
            }
            studio.assert_all_answered();
            for resource in [TEXTURE, VERTICES] {
                studio.ok(&Request::unref(resource));
            }
        }
    });
}

#[test]
fn a_context_that_ends_never_takes_another_ones_fences_with_it() {
    let mut studio = Studio::enter();
    busy(&mut studio);
    for round in 0..10u64 {
        studio.ok(&Request::ctx_create(2, VIRGL));
        let mut waiting = Vec::new();
        for ring in [None, Some(0)] {
            let request = submit(&work()).fenced(round);
            waiting.push((studio.submit(&ring.map_or(request.clone(), |ring| request.on_ring(ring))), ring));
            studio.submit(&Request::submit(2, &[]).fenced(round).on_ring(0));
        }
        studio.submit(&Request::ctx_destroy(2));
        // Nothing comes after them that would be merged with them.
        for (token, ring) in waiting {
            assert_fence(&mut studio, token, round, ring);
        }
        studio.settle();
    }
}

#[test]
fn a_reset_never_waits_for_ever_for_fences_nor_leaves_them_to_the_next_driver() {
    let mut studio = Studio::enter();
    for round in 0..10u64 {
        busy(&mut studio);
        for fence in 0..20 {
            let request = submit(&work()).fenced(round << 8 | fence);
            studio.submit(&if fence % 2 == 0 { request } else { request.on_ring(0) });
        }
        studio.start_over();
        assert_eq!(studio.device().counters().requests_lost, 0);
        // The next driver's fences are its own: each answer comes once, and with its number.
        busy(&mut studio);
        let tokens: Vec<Token> = (0..4).map(|fence| studio.submit(&submit(&work()).fenced(fence))).collect();
        for (fence, token) in tokens.into_iter().enumerate() {
            assert_fence(&mut studio, token, fence as u64, None);
        }
        studio.assert_all_answered();
        studio.start_over();
    }
}
