//! Fences beside a held stream: answers keep the order of their timeline, and of no other.

use std::time::Instant;

use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_RESOURCE_ID;
use virtio_gpu_uring::testing::{DEADLINE, Lane, Request, Token};

use super::gate::{Call, KEPT_RING};
use super::stage::{CHANNEL, FORMAT, HELD, Held, MADE, PASSING, SECOND, Stage};

impl Stage {
    #[track_caller]
    fn assert_waiting(&mut self, tokens: &[Token]) {
        self.guest.settle();
        for (index, token) in tokens.iter().enumerate() {
            assert!(!self.guest.has_answer(token), "number {index} was answered too early");
        }
    }

    /// Opens the gate, and asserts in which order everything comes back.
    #[track_caller]
    fn release_in_order(&mut self, held: Held, behind: Vec<Token>) {
        self.assert_held(&held);
        self.assert_waiting(&behind);
        self.gate.open();
        let wanted: Vec<Token> = std::iter::once(held.0).chain(behind).collect();
        let (started, mut came) = (Instant::now(), Vec::new());
        while came.len() < wanted.len() {
            assert!(started.elapsed() < DEADLINE, "{} of {} came back", came.len(), wanted.len());
            came.extend(std::iter::from_fn(|| self.guest.queue(Lane::Control).poll_used()).map(|used| used.token));
        }
        assert_eq!(came, wanted);
    }

    /// What is fenced in these ways is answered at once.
    #[track_caller]
    fn fenced_at_once(&mut self, timelines: &[fn(Request) -> Request]) {
        for timeline in timelines {
            for request in [Request::display_info(), Request::create_2d(PASSING, FORMAT, 8, 8), Request::unref(PASSING)]
            {
                self.ok(&timeline(request).fenced(7));
            }
        }
    }
}

#[test]
fn a_held_stream_on_a_ring_never_holds_up_another_timeline_nor_lets_its_own_overtake_it() {
    let mut stage = Stage::new();
    let held = stage.hold(Call::Submit);
    let on_its_ring = |request: Request, fence| request.context(HELD).on_ring(0).fenced(fence);
    let behind = [
        on_its_ring(Request::create_2d(MADE, FORMAT, 8, 8), 2),
        on_its_ring(Request::submit(HELD, b"behind"), 3),
        on_its_ring(Request::display_info(), 4),
        on_its_ring(Request::unref(MADE), 5),
    ];
    let behind = behind.map(|request| stage.guest.submit(&request)).into();
    stage.fenced_at_once(&[
        |request| request,
        |request| request.context(CHANNEL),
        |request| request.context(CHANNEL).on_ring(0),
        |request| request.context(CHANNEL).on_ring(63),
    ]);
    // What is not fenced is on no timeline at all. The work of what is has been done.
    stage.ok(&Request::display_info().context(HELD));
    stage.guest.command(&Request::unref(MADE)).expect_error(ERR_INVALID_RESOURCE_ID);
    stage.messages();
    stage.release_in_order(held, behind);
}

#[test]
fn a_held_stream_on_the_global_timeline_never_holds_up_a_ring_nor_is_it_overtaken() {
    let mut stage = Stage::new();
    let held = stage.hold_with(Call::Submit, &Request::submit(HELD, b"held").fenced(1));
    let behind = [
        Request::create_2d(MADE, FORMAT, 8, 8).fenced(2),
        Request::display_info().context(CHANNEL).fenced(3),
        Request::new(0xbad, &[]).fenced(4),
        Request::submit(HELD, b"behind").fenced(5),
    ];
    let behind = behind.map(|request| stage.guest.submit(&request)).into();
    stage.fenced_at_once(&[
        |request| request.context(CHANNEL).on_ring(0),
        |request| request.context(CHANNEL).on_ring(63),
    ]);
    // Cursors have a queue of their own, whose fences are on no timeline of the other.
    let moved = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (1, 1)).fenced(6));
    assert_eq!(stage.guest.wait_on(Lane::Cursor, moved).header.fence_id.get(), 6);
    stage.others();
    stage.ok(&Request::unref(MADE));
    stage.release_in_order(held, behind);
}

#[test]
fn a_fence_that_another_thread_signals_is_never_held_up_by_a_held_stream() {
    let mut stage = Stage::new();
    let fenced = Request::submit(SECOND, b"quick").on_ring(KEPT_RING).fenced(1);
    let [first, second] = [(); 2].map(|()| stage.guest.submit(&fenced));
    let fences = [(); 2].map(|()| stage.gate.fence());
    let held = stage.hold(Call::Submit);
    for (token, fence) in [first, second].into_iter().zip(fences) {
        stage.guest.settle();
        assert!(!stage.guest.has_answer(&token), "answered before its fence has signalled");
        std::thread::spawn(move || fence.signal()).join().expect("signalled");
        stage.guest.wait(token).ok();
    }
    stage.release(held);
}
