//! What shares the renderer's one thread with a held stream: it is taken from the queue and waits there, in its order, and
//! neither a full pipeline nor a reset makes the rest of the device wait with it.

use std::time::{Duration, Instant};

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::testing::{DEADLINE, Lane, Request, Shown, Token};

use super::gate::{CAPSET, Call};
use super::stage::{FORMAT, HELD, MADE, RENDERED_IMAGE, SECOND, Stage, WHOLE};

#[test]
fn what_shares_the_renderer_with_a_held_stream_is_never_left_in_the_queue_nor_answered_before_it() {
    let mut stage = Stage::new();
    let held = stage.hold(Call::Submit);
    let taken = stage.guest.device().counters().commands;
    let mut behind = Vec::new();
    for round in 0..40 {
        let requests = [
            Request::submit(SECOND, b"second"),
            Request::submit(SECOND, b"fenced").on_ring(0).fenced(round + 1),
            Request::submit(HELD, b"behind"),
        ];
        behind.extend(requests.map(|request| stage.guest.submit(&request)));
    }
    let others = [
        Request::create_3d(MADE, 2, FORMAT, 8, 8),
        Request::ctx_create(MADE, CAPSET),
        Request::flush(RENDERED_IMAGE, WHOLE),
        Request::transfer_to_host_3d(SECOND, RENDERED_IMAGE, WHOLE, 0),
        Request::display_info().context(SECOND).on_ring(1).fenced(1),
    ];
    behind.extend(others.map(|request| stage.guest.submit(&request)));
    stage.guest.settle();
    let popped = stage.guest.device().counters().commands - taken;
    assert_eq!(popped, behind.len() as u64 + 1, "all of them, and the one that settles");
    stage.others();
    stage.exports();
    stage.assert_held(&held);
    assert!(behind.iter().all(|token| !stage.guest.has_answer(token)), "answered past the renderer's one thread");
    stage.release(held);
    for token in behind {
        stage.guest.wait(token).ok();
    }
}

#[test]
fn a_cursor_that_the_renderer_draws_never_keeps_the_cursor_from_moving() {
    let mut stage = Stage::new();
    stage.ok(&Request::create_3d(MADE, 2, FORMAT, 64, 64));
    let held = stage.hold(Call::Submit);
    let _ = stage.screens[0].take();
    let update = stage.guest.submit_on(Lane::Cursor, &Request::update_cursor(0, MADE, (1, 1), (0, 0)));
    for x in 2..10 {
        let moved = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (x, 1)));
        stage.guest.wait_on(Lane::Cursor, moved).ok();
        assert_eq!(stage.screens[0].take(), [Shown::CursorMoved((x, 1))]);
    }
    assert_eq!(stage.guest.queue(Lane::Cursor).outstanding(), 1, "pixels that nobody has read");
    stage.release(held);
    stage.guest.wait_on(Lane::Cursor, update).ok();
    let shown = stage.screens[0].take();
    assert!(matches!(&shown[..], [Shown::Cursor((9, 1), ..)]), "the cursor is not where it was moved to");
}

#[test]
fn a_pipeline_full_of_streams_never_holds_up_the_cursor() {
    const ROOM: usize = 8;
    let mut stage = Stage::with(Limits { commands_in_flight: ROOM, deadline: 3 * DEADLINE, ..Limits::default() });
    let held = stage.hold(Call::Submit);
    let behind: Vec<Token> = (0..4 * ROOM).map(|_| stage.guest.submit(&Request::submit(HELD, b"behind"))).collect();
    let started = Instant::now();
    while stage.guest.device().counters().stalls_full == 0 {
        assert!(started.elapsed() < DEADLINE, "the pipeline never was full");
        std::thread::yield_now();
    }
    stage.cursor();
    stage.gate.open();
    stage.guest.wait(held.0).ok();
    for token in behind {
        stage.guest.wait(token).ok();
    }
}

#[test]
fn a_reset_never_waits_for_a_held_stream_nor_does_what_comes_after_it() {
    // As long as the reset is to last.
    let deadline = Duration::from_millis(500);
    let mut stage = Stage::with(Limits { deadline, ..Limits::default() });
    let _never_answered = stage.hold(Call::Submit);
    stage.guest.reset();
    assert!(stage.guest.device().counters().quarantined > 0, "the stream was not set aside");
    stage.guest.activate();
    stage.furnish();
    stage.others();
    // The next driver's contexts come after the end of the one before.
    let created = stage.guest.submit(&Request::ctx_create(HELD, CAPSET));
    stage.others();
    assert!(!stage.guest.has_answer(&created), "answered past the renderer's one thread");
    stage.gate.open();
    stage.guest.wait(created).ok();
    stage.ok(&Request::submit(HELD, b"alive"));
}
