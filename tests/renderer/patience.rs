//! When a renderer is given up, and when it is not: slow calls and idle renderers are no trouble, a queue that is full of
//! what it has not looked at is.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use virtio_gpu_uring::protocol::wire::response_type::{ERR_UNSPEC, OK_NODATA};
use virtio_gpu_uring::testing::{Guest, Lane, Request, Token};
use virtio_gpu_uring::{
    BlobRequest, Builder, Capset, Fence, HostWindow, Limits, RenderedBlob, Renderer, RendererError,
};

use super::actor::{Fate, until};
use super::rendered::FORMAT;
use super::stage::{Stage, brief, hasty, patient};
use super::words;

/// Few of everything, so that the renderer's queue is short.
fn few(limits: Limits) -> Limits {
    Limits { commands_in_flight: 4, resources: 4, contexts: 2, ..limits }
}

#[test]
fn calls_that_end_never_add_up_to_one_that_does_not() {
    let limits = Limits { renderer_deadline: Duration::from_millis(500), ..brief() };
    let mut busy = Stage::with_context("patience-busy", limits.clone());
    for context in 2..6 {
        busy.guest.command(&Request::ctx_create(context, 1)).ok();
    }
    busy.director.order("submit", Fate::Hang);
    // One call after the other, from several contexts in turn, so that there is hardly a moment without one.
    let submit = |busy: &mut Stage, context| (context, busy.guest.submit(&Request::submit(context, b"short")));
    let mut under_way = VecDeque::from([1, 2, 3, 4, 5].map(|context| submit(&mut busy, context)));
    // It has had its time twice when the other, which began later, is given up.
    let mut clock = Stage::with_context("patience-clock", limits);
    clock.director.order("submit", Fate::Hang);
    let hung = clock.guest.submit(&Request::submit(1, b"hangs"));
    while clock.lost() == 0 {
        let (context, token) = under_way.pop_front().expect("several of them");
        busy.director.release();
        busy.guest.wait(token).ok();
        under_way.push_back(submit(&mut busy, context));
    }
    clock.guest.wait(hung).expect_error(ERR_UNSPEC);
    for (_, token) in under_way {
        busy.director.release();
        busy.guest.wait(token).ok();
    }
    assert_eq!(busy.lost(), 0);
}

#[test]
fn a_renderer_that_has_nothing_to_do_is_never_taken_for_hung() {
    let idle = Stage::with_context("patience-idle", hasty());
    let mut idle_after = Stage::with_context("patience-idle-after", hasty());
    idle_after.guest.command(&Request::submit(1, b"x")).ok();
    for _ in 0..3 {
        let mut clock = Stage::with_context("patience-clock", hasty());
        clock.director.order("submit", Fate::Hang);
        clock.guest.command(&Request::submit(1, b"hangs")).expect_error(ERR_UNSPEC);
    }
    for mut stage in [idle, idle_after] {
        stage.guest.command(&Request::submit(1, b"x")).ok();
        assert_eq!(stage.lost(), 0);
    }
}

#[test]
fn a_call_within_its_deadline_never_loses_the_renderer_however_long_the_queue_behind_it() {
    let mut stage = Stage::with_context("patience-slow", few(patient()));
    stage.guest.command(&Request::create_3d(7, 2, FORMAT, 64, 64)).ok();
    stage.director.order("submit", Fate::Hang);
    for _ in 0..5 {
        // As much as the ring holds, round after round; the cursor's queue is another one.
        let tokens: Vec<Token> =
            (0..40).map(|fence| stage.guest.submit(&Request::submit(1, b"slow").fenced(fence).on_ring(3))).collect();
        let cursor: Vec<Token> = (0..8)
            .map(|_| stage.guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 7, (0, 0), (0, 0))))
            .collect();
        stage.director.reach("submit 1");
        for _ in 0..39 {
            stage.director.release();
            stage.director.reach("submit 1");
        }
        stage.director.release();
        for token in tokens {
            stage.guest.wait(token).ok();
        }
        for token in cursor {
            stage.guest.wait_on(Lane::Cursor, token).ok();
        }
    }
    assert_eq!(stage.lost(), 0);
    stage.guest.assert_all_answered();
}

#[test]
fn cursors_never_fill_the_queue_of_a_slow_renderer() {
    let least = Limits { commands_in_flight: 1, resources: 1, contexts: 1, ..patient() };
    let mut stage = Stage::with_context("patience-cursors", least);
    stage.guest.command(&Request::create_3d(7, 2, FORMAT, 64, 64)).ok();
    stage.director.order("submit", Fate::Hang);
    let slow = stage.guest.submit(&Request::submit(1, b"slow"));
    stage.director.reach("submit 1");
    let before = stage.guest.device().counters().commands;
    let update = Request::update_cursor(0, 7, (0, 0), (0, 0));
    let tokens: Vec<Token> = (0..16).map(|_| stage.guest.submit_on(Lane::Cursor, &update)).collect();
    stage.until_taken(before + 16);
    assert_eq!(stage.lost(), 0, "a driver has lost the renderer by what the device took from it");
    stage.director.release();
    stage.guest.wait(slow).ok();
    for token in tokens {
        stage.guest.wait_on(Lane::Cursor, token).ok();
    }
}

#[test]
fn drivers_that_come_and_go_never_pile_up_behind_a_renderer_that_hangs() {
    let limits = Limits { deadline: Duration::from_millis(20), ..few(patient()) };
    let mut stage = Stage::with_context("patience-resets", limits);
    stage.director.order("submit", Fate::Hang);
    let _never_answered = stage.guest.submit(&Request::submit(1, b"hangs"));
    stage.director.reach("submit 1");
    for round in 0..12 {
        stage.restart();
        let before = stage.guest.device().counters().commands;
        for id in 10..14 {
            let create =
                if round % 2 == 0 { Request::create_3d(id, 2, FORMAT, 4, 4) } else { Request::ctx_create(id, 1) };
            stage.guest.submit(&create);
        }
        stage.until_taken(before + 4);
    }
    stage.restart();
    assert_eq!(stage.director.take(), Vec::<String>::new(), "called while it hangs");
    assert_eq!(stage.lost(), 0, "the guest's limits hold for what is behind it");
    stage.director.release();
    // What the drivers before had is given back, and nobody is left with it.
    until("there is room for a context", || stage.guest.command(&Request::ctx_create(10, 1)).kind() == OK_NODATA);
    for id in 10..14 {
        until("there is room", || stage.guest.command(&Request::create_3d(id, 2, FORMAT, 4, 4)).kind() == OK_NODATA);
    }
    let calls = stage.director.take();
    let count = |wanted: &str| calls.iter().filter(|call| call.starts_with(wanted)).count();
    assert_eq!(count("create") - count("forget"), 4, "{calls:?}");
    assert_eq!(count("context") + 1 - count("end"), 1, "{calls:?}");
    stage.guest.assert_all_answered();
}

#[test]
fn a_pause_never_waits_for_a_renderer_that_hangs_nor_hides_its_loss() {
    let mut stage = Stage::with_context("patience-pause", brief());
    stage.director.order("submit", Fate::Hang);
    let slow = stage.guest.submit(&Request::submit(1, b"slow"));
    stage.director.reach("submit 1");
    let error = stage.guest.device().pause().wait().expect("a device").map(drop);
    assert!(error.is_err(), "paused in the middle of a command");
    stage.assert_others_live();
    stage.director.release();
    stage.guest.wait(slow).ok();
    stage.guest.device().pause().wait().expect("a device").map(drop).expect("nothing is under way");
    stage.guest.device().resume().wait().expect("a device");
    stage.assert_others_live();
    // It is lost in a call that nobody waits for, and maybe during the pause: its fences are answered behind that.
    let mut stage = Stage::with_context("patience-pause-lost", hasty());
    stage.guest.command(&Request::create_3d(7, 2, FORMAT, 4, 4)).ok();
    let kept = stage.kept_fence(1);
    stage.director.order("forget", Fate::Hang);
    stage.guest.command(&Request::unref(7)).ok();
    stage.director.reach("forget 7");
    let _ = stage.guest.device().pause().wait().expect("a device").map(drop);
    stage.guest.device().resume().wait().expect("a device");
    stage.guest.wait(kept).ok();
    stage.until_lost();
    stage.guest.device().pause().wait().expect("a device").map(drop).expect("nothing is under way");
    stage.guest.device().resume().wait().expect("a device");
    stage.assert_others_live();
    stage.guest.assert_all_answered();
}

#[test]
fn a_renderer_that_has_something_to_do_is_never_left_alone_nor_asked_more_often() {
    let mut stage = Stage::with_context("patience-bell", patient());
    for fence in 1..20 {
        let kept = stage.kept_fence(fence);
        assert!(!stage.guest.has_answer(&kept));
        stage.director.ring();
        stage.guest.wait(kept).ok();
        stage.director.expect(&["poll"]);
    }
    stage.restart();
    stage.guest.command(&Request::ctx_create(1, 1)).ok();
    stage.director.ring();
    stage.director.reach("poll");
    stage.guest.command(&Request::submit(1, b"xyz")).ok();
    assert_eq!(stage.director.take(), ["submit 1"]);
    let Stage { guest, director, .. } = stage;
    drop(guest);
    director.reach("gone");
}

#[test]
fn a_renderer_that_is_lost_while_it_is_polled_takes_nobody_along() {
    for fate in [Fate::Panic, Fate::Hang] {
        let limits = if fate == Fate::Hang { hasty() } else { patient() };
        let mut stage = Stage::with_context("patience-bell-lost", limits);
        let kept = stage.kept_fence(1);
        stage.director.order("poll", fate);
        stage.director.ring();
        stage.director.expect(&["poll"]);
        let behind = stage.guest.submit(&Request::submit(1, b"behind"));
        stage.assert_others_live();
        stage.guest.wait(behind).expect_error(ERR_UNSPEC);
        stage.guest.wait(kept).ok();
        stage.until_lost();
        stage.restart();
        stage.assert_others_live();
        if fate == Fate::Hang {
            stage.director.release();
        }
        stage.director.expect(&["gone"]);
    }
}

#[test]
fn no_deadline_of_the_renderer_ever_stops_the_device() {
    for renderer_deadline in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        let limits = Limits { renderer_deadline, ..patient() };
        let mut stage = Stage::open("patience-extreme", limits);
        // Without patience it may be given up at any moment, and nobody but its own contexts may notice.
        let made = stage.guest.command(&Request::ctx_create(1, 1)).kind();
        assert!(made == OK_NODATA || made == ERR_UNSPEC, "{renderer_deadline:?}: {made:#x}");
        stage.assert_others_live();
        stage.restart();
        stage.assert_others_live();
        assert!(stage.lost() == 0 || renderer_deadline < Duration::MAX);
    }
}

/// A renderer that has nothing to offer; its value tells of its end.
struct Nobody(#[expect(dead_code, reason = "its end is what counts")] Arc<()>);

impl Renderer for Nobody {
    fn capsets(&self) -> Vec<Capset> {
        Vec::new()
    }

    fn create_context(&mut self, _context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        unreachable!("a renderer without capability sets is not used")
    }

    fn destroy_context(&mut self, _context: u32) {}

    fn attach_resource(&mut self, _context: u32, _resource: u32) {}

    fn detach_resource(&mut self, _context: u32, _resource: u32) {}

    fn submit(&mut self, _context: u32, _stream: &[u8]) -> Result<(), RendererError> {
        unreachable!("a renderer without capability sets is not used")
    }

    fn create_blob(&mut self, _request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        unreachable!("a renderer without capability sets is not used")
    }

    fn destroy_resource(&mut self, _resource: u32) {}

    fn fence(&mut self, _context: u32, _ring: Option<u8>, _fence: Fence) {}
}

fn nobody() -> (impl FnOnce() -> io::Result<Nobody> + Send + 'static, Weak<()>) {
    let life = Arc::new(());
    let alive = Arc::downgrade(&life);
    (move || Ok(Nobody(life)), alive)
}

#[test]
fn a_renderer_without_capability_sets_is_never_used_nor_kept() {
    let (factory, alive) = nobody();
    let window = HostWindow::new(1 << 20).expect("window");
    let mut guest = Guest::start(Builder::new().renderer(factory).window(window));
    until("the renderer is dropped", || alive.upgrade().is_none());
    let mut count = [0; 4];
    guest.device().read_config(12, &mut count);
    assert_eq!(u32::from_le_bytes(count), 1);
    assert_eq!(words(&guest.command(&Request::capset_info(0)).ok())[0], 5);
    guest.command(&Request::create_3d(7, 2, FORMAT, 4, 4)).expect_error(ERR_UNSPEC);
    // A context of no capability set is one without streams.
    guest.command(&Request::ctx_create(1, 0)).ok();
    guest.command(&Request::submit(1, b"stream")).expect_error(super::ERR_INVALID_PARAMETER);
    guest.command(&Request::ctx_create(2, 1)).expect_error(super::ERR_INVALID_PARAMETER);
    guest.command(&Request::create_2d(8, FORMAT, 4, 4)).ok();
    guest.command(&Request::ctx_attach(1, 8)).ok();
    guest.reset();
    guest.activate();
    guest.command(&Request::create_3d(7, 2, FORMAT, 4, 4)).expect_error(ERR_UNSPEC);
    assert_eq!(guest.device().counters().renderers_lost, 0, "it was never there");
}
