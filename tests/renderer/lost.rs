//! A renderer that panics in any of its calls, or never comes back from one: whatever waits for it is answered, everybody else
//! goes on, and the device can be reset and ended.

use std::sync::{Arc, Weak};
use std::time::Instant;

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::wire::BLOB_MEM_HOST3D_GUEST;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_CONTEXT_ID, ERR_UNSPEC, OK_NODATA};
use virtio_gpu_uring::testing::{Answer, DEADLINE, Lane, Request, Token};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::actor::{Fate, MARK, OWN, until};
use super::rendered::{FORMAT, HEIGHT, WHOLE, WIDTH};
use super::stage::{PAGE, Stage, brief, hasty, patient};

/// A call in which the renderer is lost, and the command that leads to it.
struct Case {
    call: &'static str,
    request: fn(&Stage) -> Request,
    /// What is answered.
    answer: u32,
}

fn backing(stage: &Stage) -> (u64, u32) {
    stage.guest.page_range(4096)
}

/// Resource 7 is a 3D resource with backing on scanout 0, 8 one without, 9 a blob of the renderer's own memory.
const CASES: [Case; 19] = [
    Case { call: "context", request: |_| Request::ctx_create(3, 1), answer: ERR_UNSPEC },
    Case { call: "end", request: |_| Request::ctx_destroy(2), answer: ERR_UNSPEC },
    Case { call: "attach", request: |_| Request::ctx_attach(1, 8), answer: ERR_UNSPEC },
    Case { call: "detach", request: |_| Request::ctx_detach(1, 7), answer: ERR_UNSPEC },
    Case { call: "submit", request: |_| Request::submit(1, b"stream"), answer: ERR_UNSPEC },
    Case { call: "blob", request: |_| Request::host_blob(1, 20, OWN, PAGE), answer: ERR_UNSPEC },
    Case { call: "map", request: |_| Request::map(9, 0), answer: ERR_UNSPEC },
    Case { call: "mapped", request: |_| Request::map(9, 0), answer: ERR_UNSPEC },
    Case { call: "descriptors", request: |_| Request::create_3d(20, 2, FORMAT, 4, 4), answer: ERR_UNSPEC },
    Case {
        call: "shadow",
        request: |stage| Request::create_blob(20, BLOB_MEM_HOST3D_GUEST, 0, 1, PAGE, &[backing(stage)]).context(1),
        answer: ERR_UNSPEC,
    },
    Case { call: "create", request: |_| Request::create_3d(20, 2, FORMAT, 4, 4), answer: ERR_UNSPEC },
    Case { call: "back", request: |stage| Request::attach_backing(8, &[backing(stage)]), answer: ERR_UNSPEC },
    Case { call: "unback", request: |_| Request::detach_backing(7), answer: ERR_UNSPEC },
    Case { call: "transfer", request: |_| Request::transfer_to_host_3d(1, 7, WHOLE, 0), answer: ERR_UNSPEC },
    Case { call: "read", request: |_| Request::flush(7, WHOLE), answer: ERR_UNSPEC },
    Case { call: "export", request: |_| Request::set_scanout(0, 8, WHOLE), answer: ERR_UNSPEC },
    // Nobody waits for what these do.
    Case { call: "forget", request: |_| Request::unref(8), answer: OK_NODATA },
    Case { call: "forget", request: |_| Request::unref(9), answer: OK_NODATA },
    // The stream has been carried out, and a promise that nobody can keep is kept.
    Case { call: "fence", request: |_| Request::submit(1, b"stream").fenced(77).on_ring(3), answer: OK_NODATA },
];

/// Commands that go to the renderer, and what a guest gets for them when it is lost.
fn asked_for_later() -> [Request; 8] {
    [
        Request::ctx_create(5, 1),
        Request::submit(1, b"later").fenced(8).on_ring(5),
        Request::ctx_attach(1, 9),
        Request::create_3d(21, 2, FORMAT, 4, 4),
        Request::host_blob(1, 22, OWN, PAGE),
        Request::transfer_to_host_3d(1, 7, WHOLE, 0),
        // The range of a call that has not ended is not handed out again.
        Request::map(9, 0x4000),
        Request::set_scanout(0, 8, WHOLE),
    ]
}

fn prepared(name: &'static str, limits: Limits) -> Stage {
    let mut stage = Stage::with_context(name, limits);
    let range = backing(&stage);
    for request in [
        Request::ctx_create(2, 1),
        Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT),
        Request::create_3d(8, 2, FORMAT, WIDTH, HEIGHT),
        Request::host_blob(1, 9, OWN, PAGE),
        Request::attach_backing(7, &[range]),
        Request::ctx_attach(1, 7),
    ] {
        stage.guest.command(&request).ok();
    }
    stage.assert_others_live();
    stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    stage
}

#[track_caller]
fn assert_answer(call: &str, answer: &Answer, wanted: u32) {
    assert_eq!(answer.kind(), wanted, "{call}: the device answered {:#x}", answer.kind());
}

/// The device's end, which waits no longer than twice its deadline.
fn end(stage: Stage) -> (super::actor::Director, Weak<GuestMemoryMmap>) {
    let Stage { guest, director, .. } = stage;
    let memory = Arc::downgrade(&guest.ram().space());
    let started = Instant::now();
    drop(guest);
    assert!(started.elapsed() < DEADLINE / 2, "the device's end took {:?}", started.elapsed());
    (director, memory)
}

/// The renderer is lost in the middle of this case's call.
fn lose(name: &'static str, case: &Case, fate: Fate) {
    let Case { call, request, answer } = case;
    let mut stage = prepared(name, if fate == Fate::Hang { hasty() } else { patient() });
    let kept: Vec<Token> = (1..4).map(|fence| stage.kept_fence(fence)).collect();
    stage.director.order(call, fate);
    let request = request(&stage);
    let lost = stage.guest.submit(&request);
    if *call == "fence" {
        // It is asked for when the stream has been carried out, behind what has come meanwhile.
        stage.director.reach("fence 1");
    }
    let behind = stage.guest.submit(&Request::ctx_create(4, 1).fenced(6));
    stage.assert_others_live();
    let lost = stage.guest.wait(lost);
    assert_answer(call, &lost, *answer);
    let behind = stage.guest.wait(behind);
    assert_answer(call, &behind, ERR_UNSPEC);
    assert_eq!(behind.header.fence_id.get(), 6);
    for token in kept {
        stage.guest.wait(token).ok();
    }
    stage.until_lost();
    for request in asked_for_later() {
        let given_up = [ERR_UNSPEC, super::ERR_INVALID_RESOURCE_ID];
        let later = stage.guest.command(&request);
        assert!(later.kind() == ERR_UNSPEC || *call == "forget", "{call}, later: {:#x}", later.kind());
        assert!(given_up.contains(&later.kind()), "{call}, later: {:#x}", later.kind());
    }
    stage.assert_others_live();
    // It is put to no further use, whatever it would do.
    stage.director.spare(call);
    stage.restart();
    stage.guest.command(&Request::ctx_create(1, 1)).expect_error(ERR_UNSPEC);
    stage.guest.command(&Request::submit(1, b"xyz")).expect_error(ERR_INVALID_CONTEXT_ID);
    stage.assert_others_live();
    stage.guest.assert_all_answered();
    assert_eq!(stage.lost(), 1);
    let (director, memory) = end(stage);
    let _ = director.take();
    if fate == Fate::Hang {
        director.release();
    }
    until("the guest's memory is let go", || memory.upgrade().is_none());
    let after = director.take();
    assert!(after.iter().all(|call| call == "gone"), "{call}: called after it was lost: {after:?}");
}

#[test]
fn a_renderer_that_panics_in_any_call_takes_nobody_along() {
    CASES.iter().for_each(|case| lose("lost-panics", case, Fate::Panic));
}

#[test]
fn a_call_that_never_returns_never_leaves_anybody_waiting() {
    // Each waits for its device's deadline: several at a time.
    for cases in CASES.chunks(7) {
        std::thread::scope(|scope| {
            cases.iter().for_each(|case| drop(scope.spawn(|| lose("lost-hangs", case, Fate::Hang))))
        });
    }
}

#[test]
fn a_renderer_that_comes_back_late_is_never_called_again() {
    let mut stage = Stage::with_context("lost-late", hasty());
    stage.director.order("submit", Fate::Hang);
    let hung = stage.guest.submit(&Request::submit(1, b"hangs"));
    let behind: Vec<Token> = (10..20).map(|context| stage.guest.submit(&Request::ctx_create(context, 1))).collect();
    stage.guest.wait(hung).expect_error(ERR_UNSPEC);
    for token in behind {
        stage.guest.wait(token).expect_error(ERR_UNSPEC);
    }
    stage.director.expect(&["submit 1"]);
    stage.guest.command(&Request::ctx_create(30, 1)).expect_error(ERR_UNSPEC);
    stage.director.release();
    stage.director.expect(&["gone"]);
    // And it is no more alive for having come back.
    stage.guest.command(&Request::ctx_create(30, 1)).expect_error(ERR_UNSPEC);
    assert_eq!((stage.director.take(), stage.lost()), (Vec::new(), 1));
    stage.assert_others_live();
}

#[test]
fn a_reset_never_waits_for_a_renderer_that_is_lost_already() {
    let mut stage = prepared("lost-reset", Limits { deadline: DEADLINE, ..hasty() });
    stage.director.order("transfer", Fate::Hang);
    stage.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).expect_error(ERR_UNSPEC);
    stage.until_lost();
    for _ in 0..3 {
        let started = Instant::now();
        stage.restart();
        assert!(started.elapsed() < DEADLINE / 2, "the reset took {:?}", started.elapsed());
        stage.assert_others_live();
    }
    assert_eq!(stage.guest.device().counters().quarantined, 0);
    stage.director.release();
}

#[test]
fn a_device_is_never_dropped_with_a_call_that_nobody_has_given_up_and_waits_for_it() {
    let mut stage = prepared("lost-dropped", brief());
    stage.director.order("transfer", Fate::Hang);
    let _never_answered = stage.guest.submit(&Request::transfer_to_host_3d(1, 7, WHOLE, 0));
    stage.director.reach("transfer 7");
    let (director, memory) = end(stage);
    assert!(memory.upgrade().is_some(), "the renderer has it in its hands");
    director.release();
    director.reach("gone");
    until("the guest's memory is let go", || memory.upgrade().is_none());
}

#[test]
fn a_picture_or_cursor_in_whose_reading_the_renderer_is_lost_never_holds_its_screen() {
    for fate in [Fate::Panic, Fate::Hang] {
        let mut stage = prepared("lost-screen", if fate == Fate::Hang { hasty() } else { patient() });
        stage.guest.command(&Request::create_3d(20, 2, FORMAT, 64, 64)).ok();
        stage.director.order("read", fate);
        stage.guest.device().redraw(0).wait().expect("a device").expect("a display");
        let cursor = Request::update_cursor(0, 20, (1, 2), (0, 0));
        let cursor = stage.guest.submit_on(Lane::Cursor, &cursor);
        let flush = stage.guest.submit(&Request::flush(7, WHOLE));
        stage.guest.wait_on(Lane::Cursor, cursor).expect_error(ERR_UNSPEC);
        stage.guest.wait(flush).expect_error(ERR_UNSPEC);
        stage.until_lost();
        // Asked again, there is still nothing to draw; whatever is not the renderer's goes on.
        stage.guest.device().redraw(0).wait().expect("a device").expect("a display");
        stage.assert_others_live();
        stage.guest.command(&Request::unref(7)).ok();
        stage.guest.assert_all_answered();
    }
}

/// Resource 20 with guest memory behind it, whose start is returned.
fn with_memory(stage: &mut Stage) -> GuestAddress {
    let range = backing(stage);
    stage.guest.command(&Request::create_3d(20, 2, FORMAT, WIDTH, HEIGHT)).ok();
    stage.guest.command(&Request::attach_backing(20, &[range])).ok();
    stage.guest.command(&Request::ctx_attach(1, 20)).ok();
    GuestAddress(range.0)
}

#[test]
fn guest_memory_is_never_written_by_a_renderer_that_is_lost() {
    for request in [Request::transfer_from_host_3d(1, 20, WHOLE, 0), Request::submit(1, &[20])] {
        let mut stage = Stage::with_context("lost-writes", hasty());
        let memory = with_memory(&mut stage);
        stage.guest.command(&request).ok();
        assert_eq!(stage.guest.ram().read(memory, MARK.len()), MARK, "where it writes");
        stage.guest.ram().write(memory, b"mine");
        for call in ["transfer", "submit"] {
            stage.director.order(call, Fate::Hang);
        }
        stage.guest.command(&request).expect_error(ERR_UNSPEC);
        stage.until_lost();
        // The guest has been told that it failed, and has its memory back.
        stage.guest.command(&Request::unref(20)).ok();
        stage.director.release();
        stage.director.reach("gone");
        assert_eq!(stage.guest.ram().read(memory, MARK.len()), b"mine");
    }
}

#[test]
fn guest_memory_is_never_given_back_while_the_renderer_may_write_it() {
    for last in [Request::unref(20), Request::detach_backing(20)] {
        let mut stage = Stage::with_context("lost-not-yet", patient());
        let memory = with_memory(&mut stage);
        stage.director.order("submit", Fate::Hang);
        let stream = stage.guest.submit(&Request::submit(1, &[20]));
        stage.director.reach("submit 1");
        let last = stage.guest.submit(&last);
        stage.guest.settle();
        if stage.guest.has_answer(&last) {
            // The guest's memory is its own again.
            stage.guest.ram().write(memory, b"mine");
            stage.director.release();
            stage.guest.wait(stream).ok();
            assert_eq!(stage.guest.ram().read(memory, MARK.len()), b"mine");
        } else {
            stage.director.release();
            stage.guest.wait(stream).ok();
            stage.guest.wait(last).ok();
        }
    }
}
