//! Work that has begun when a pause comes: it ends first, or the pause is refused and everything goes on.

use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::protocol::wire::response_type::ERR_UNSPEC;
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestOptions, Lane, Request, Screen, Shown, Token};
use virtio_gpu_uring::{Builder, HostBuffer, Limits, Monitor};

use crate::echo::{Remote, echo, stream};
use crate::memory::SlowMemory;
use crate::{Stage, is_there, small, soon};

const PAGE: u64 = 4096;

fn with_deadline(milliseconds: u64) -> Builder {
    let deadline = Duration::from_millis(milliseconds);
    Builder::new().limits(Limits { deadline, ..Limits::default() })
}

/// Blob 5 of a page, in context 1.
pub(crate) fn blob(guest: &mut Guest) {
    let file = memfd_create("pause-work", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, PAGE).expect("size");
    let offered = soon(guest.device().offer(HostBuffer::from_fd(file).expect("a buffer"))).expect("room").0;
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    guest.command(&Request::host_blob(1, 5, offered, PAGE)).ok();
}

#[test]
fn a_pause_never_answers_while_a_mapping_or_what_waits_for_it_is_under_way() {
    let memory = SlowMemory::default();
    memory.places_later(true).clears_later(true);
    let mut stage = Stage::start(Builder::new().window(memory.clone()), small(true));
    blob(&mut stage.guest);
    let tokens: Vec<Token> =
        [Request::map(5, 0), Request::unmap(5), Request::unref(5)].map(|request| stage.guest.submit(&request)).into();
    let place = memory.next();
    stage.guest.settle();
    let mut pause = stage.guest.device().pause();
    for _ in 0..4 {
        stage.runtime.turn();
        assert!(!is_there(&mut pause), "paused while the region was still at work");
    }
    // What comes now stays where it is.
    let commands = stage.guest.device().counters().commands;
    let later = stage.guest.submit(&Request::display_info());
    let cursor = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (0, 0)));
    place.answer(Ok(()));
    let clear = memory.next();
    stage.runtime.turn();
    assert!(!is_there(&mut pause), "paused with two commands waiting");
    clear.answer(Ok(()));
    let paused = soon(pause).expect("everything has ended");
    assert_eq!(paused.outstanding, 0);
    assert!(tokens.iter().all(|token| stage.guest.has_answer(token)), "work has ended, and nobody was told");
    assert_eq!(stage.guest.device().counters().commands, commands, "requests were taken during a pause");
    stage.assert_still();
    assert!(!stage.guest.has_answer(&later));
    stage.resume();
    for token in tokens.into_iter().chain([later]) {
        stage.guest.wait(token).ok();
    }
    stage.guest.wait_on(Lane::Cursor, cursor).ok();
    memory.assert_sound();
    stage.end();
}

#[test]
fn a_map_that_is_never_answered_never_makes_a_pause_fail() {
    // It is given up by its own deadline, which is the older one.
    let memory = SlowMemory::default();
    let mut stage = Stage::start(with_deadline(100).window(memory.clone()), small(true));
    blob(&mut stage.guest);
    memory.places_later(true);
    let map = stage.guest.submit(&Request::map(5, 0));
    let stuck = memory.next();
    let paused = stage.pause();
    assert_eq!(paused.outstanding, 0);
    assert!(stage.guest.has_answer(&map));
    stage.guest.wait(map).expect_error(ERR_UNSPEC);
    // It comes late, and what follows from it is no business of the guest's.
    memory.places_later(false);
    stuck.answer(Ok(()));
    stage.assert_still();
    assert!(memory.taken().is_empty(), "what came too late stays in the window until the resume");
    stage.resume();
    stage.guest.map(5, PAGE);
    memory.assert_sound();
    stage.end();
}

#[test]
fn a_long_copy_is_never_cut_in_two_by_a_pause() {
    const SIDE: u32 = 2048;
    let (screen, viewer) = Screen::new();
    let builder = Builder::new().display(0, Monitor::new(SIDE, SIDE), screen);
    let options = GuestOptions { ram: 24 << 20, ..small(true) };
    let mut stage = Stage::start(builder, options);
    let len = SIDE as usize * SIDE as usize * 4;
    let range = stage.guest.page_range(len);
    let whole = [0, 0, SIDE, SIDE];
    stage.guest.command(&Request::create_2d(7, 2, SIDE, SIDE)).ok();
    stage.guest.command(&Request::attach_backing(7, &[range])).ok();
    stage.guest.command(&Request::set_scanout(0, 7, whole)).ok();
    for round in 1..=4 {
        stage.guest.ram().write(vm_memory::GuestAddress(range.0), &vec![round; len]);
        let transfer = stage.guest.submit(&Request::transfer_2d(7, whole, 0));
        let flush = stage.guest.submit(&Request::flush(7, whole));
        let before = stage.pause().control.expect("an active queue");
        // The guest's memory is somebody else's now.
        stage.guest.ram().write(vm_memory::GuestAddress(range.0), &vec![0xee; len]);
        let answered = [&transfer, &flush].map(|token| stage.guest.has_answer(token));
        assert_eq!(before.next_avail, before.next_used, "commands are under way");
        let shown = viewer.picture().2;
        if answered == [true, true] {
            assert!(shown == vec![round; len], "not all of it was shown before the pause");
        }
        stage.guest.ram().write(vm_memory::GuestAddress(range.0), &vec![round; len]);
        stage.resume();
        stage.guest.wait(transfer).ok();
        stage.guest.wait(flush).ok();
        assert!(viewer.picture().2 == vec![round; len], "the picture is torn");
    }
    stage.end();
}

#[test]
fn a_pause_never_answers_while_a_display_holds_a_frame() {
    let (screen, viewer) = Screen::new();
    let mut stage = Stage::start(Builder::new().display(0, Monitor::new(64, 64), screen), small(true));
    stage.guest.command(&Request::create_2d(7, 2, 64, 64)).ok();
    stage.guest.command(&Request::set_scanout(0, 7, [0, 0, 64, 64])).ok();
    viewer.hold_frames(true);
    let flush = stage.guest.submit(&Request::flush(7, [0, 0, 64, 64]));
    stage.guest.settle();
    let mut pause = stage.guest.device().pause();
    for _ in 0..4 {
        stage.runtime.turn();
        assert!(!is_there(&mut pause), "paused while a frame was not done");
    }
    viewer.hold_frames(false);
    soon(pause).expect("the frame is done");
    assert!(stage.guest.has_answer(&flush));
    stage.assert_still();
    stage.resume();
    stage.guest.wait(flush).ok();
    assert!(viewer.take().contains(&Shown::Frame(virtio_gpu_uring::Area { x: 0, y: 0, width: 64, height: 64 })));
    stage.end();
}

/// A device whose renderer is stuck in a command of context 1.
fn blocked(builder: Builder, name: &'static str) -> (Stage, Remote, Token) {
    let (factory, mut remote) = echo(name);
    let mut stage = Stage::start(builder.renderer(factory), small(true));
    stage.guest.command(&Request::ctx_create(1, 2)).ok();
    let token = stage.guest.submit(&Request::submit(1, stream::BLOCK));
    remote.expect(&["create 1 of 2 named test", "submit block to 1"]);
    (stage, remote, token)
}

#[test]
fn work_that_does_not_end_never_stops_the_device() {
    let (mut stage, remote, stuck) = blocked(with_deadline(50), "pause-stuck");
    let behind = stage.guest.submit(&Request::submit(1, b"behind"));
    stage.guest.settle();
    for _ in 0..2 {
        let started = Instant::now();
        let pause = stage.guest.device().pause();
        // Its kick comes while the device waits.
        let later = stage.guest.submit(&Request::display_info());
        let cursor = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (0, 0)));
        let error = soon(pause).expect_err("the renderer is stuck");
        assert_eq!((error.unfinished, error.deadline), (2, Duration::from_millis(50)));
        assert!(started.elapsed() < DEADLINE / 4, "the pause took {:?}", started.elapsed());
        stage.guest.wait(later).ok();
        stage.guest.wait_on(Lane::Cursor, cursor).ok();
        assert!(!stage.guest.has_answer(&stuck) && !stage.guest.has_answer(&behind));
        stage.guest.settle();
    }
    remote.unblock();
    stage.guest.wait(stuck).ok();
    stage.guest.wait(behind).ok();
    assert_eq!(stage.pause().outstanding, 0);
    stage.assert_still();
    stage.resume();
    stage.guest.settle();
    stage.guest.assert_all_answered();
    stage.end();
}

#[test]
fn a_full_pipeline_never_makes_a_pause_take_requests_nor_fail() {
    let limits = Limits { commands_in_flight: 3, ..Limits::default() };
    let (mut stage, remote, stuck) = blocked(Builder::new().limits(limits), "pause-full");
    let tokens: Vec<Token> = (0..20).map(|_| stage.guest.submit(&Request::submit(1, b"more"))).collect();
    crate::until("the pipeline is full", || {
        // A device that was full already has asked for no kick.
        stage.guest.kick(Lane::Control);
        stage.guest.device().counters().stalls_full > 0
    });
    let mut pause = stage.guest.device().pause();
    stage.runtime.turn();
    assert!(!is_there(&mut pause));
    let commands = stage.guest.device().counters().commands;
    remote.unblock();
    let paused = soon(pause).expect("all that was taken has ended");
    assert_eq!((paused.outstanding, stage.guest.device().counters().commands), (0, commands));
    stage.assert_still();
    stage.resume();
    for token in [stuck].into_iter().chain(tokens) {
        stage.guest.wait(token).ok();
    }
    stage.end();
}

#[test]
fn a_pause_that_waits_never_keeps_a_processor_busy() {
    let memory = SlowMemory::default();
    memory.places_later(true);
    let deadline = Duration::from_millis(400);
    let limits = Limits { commands_in_flight: 2, deadline, ..Limits::default() };
    let (mut stage, remote, stuck) = blocked(Builder::new().limits(limits).window(memory.clone()), "pause-busy");
    let file = memfd_create("pause-busy-blob", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, PAGE).expect("size");
    let offered = soon(stage.guest.device().offer(HostBuffer::from_fd(file).expect("a buffer"))).expect("room").0;
    stage.guest.command(&Request::ctx_create(2, CAPSET_CROSS_DOMAIN)).ok();
    stage.guest.command(&Request::host_blob(2, 5, offered, PAGE)).ok();
    // The pipeline is full, and something waits in the queue; then there is room again, but not for a device that pauses.
    let map = stage.guest.submit(&Request::map(5, 0));
    let place = memory.next();
    let later = stage.guest.submit(&Request::display_info());
    stage.runtime.turn();
    let pause = stage.guest.device().pause();
    stage.runtime.turn();
    place.answer(Ok(()));
    let before = stage.runtime.busy();
    let error = soon(pause).expect_err("the renderer is stuck");
    assert_eq!(error.unfinished, 1);
    let busy = stage.runtime.busy() - before;
    assert!(busy < deadline / 16, "busy for {busy:?} of {deadline:?} with nothing to do");
    remote.unblock();
    for token in [stuck, map, later] {
        stage.guest.wait(token).ok();
    }
    stage.end();
}
