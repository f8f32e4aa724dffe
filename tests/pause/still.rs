//! Nothing is popped, answered or interrupted while a device is paused, and nothing is forgotten for that.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{GuestOptions, Lane, Request, Screen, Token};
use virtio_gpu_uring::{Builder, HostBuffer, Monitor};
use vm_memory::GuestAddress;

use crate::{Stage, small, soon, until};

/// Takes answers out of the control queue in the order in which the device gave them, until there are so many.
fn answers(stage: &mut Stage, count: usize) -> Vec<Token> {
    let mut tokens = Vec::new();
    until("everything is answered", || {
        tokens.extend(stage.guest.queue(Lane::Control).poll_used().map(|used| used.token));
        tokens.len() >= count
    });
    tokens
}

#[test]
fn nothing_is_taken_answered_or_interrupted_while_paused() {
    for event_idx in [true, false] {
        let mut stage = Stage::start(Builder::new(), small(event_idx));
        stage.guest.settle();
        let paused = stage.pause();
        assert_eq!(paused.outstanding, 0);
        let tokens: Vec<Token> = (0..5).map(|_| stage.guest.submit(&Request::display_info())).collect();
        let cursor = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (1, 2)));
        stage.assert_still();
        assert_eq!(stage.pause(), paused, "the queues have moved on");
        stage.resume();
        for token in tokens {
            stage.guest.wait(token).ok();
        }
        stage.guest.wait_on(Lane::Cursor, cursor).ok();
        stage.guest.assert_all_answered();
        stage.end();
    }
}

#[test]
fn a_request_whose_kick_never_came_is_never_left_in_the_queue() {
    for event_idx in [true, false] {
        let mut stage = Stage::start(Builder::new(), small(event_idx));
        stage.guest.settle();
        stage.pause();
        let tokens: Vec<Token> =
            [Lane::Control, Lane::Cursor].map(|lane| stage.guest.add(lane, &request_for(lane))).into();
        for lane in [Lane::Control, Lane::Cursor] {
            let _never_kicked = stage.guest.queue(lane).publish();
        }
        stage.resume();
        for (lane, token) in [Lane::Control, Lane::Cursor].into_iter().zip(tokens) {
            stage.guest.wait_on(lane, token).ok();
        }
        stage.end();
    }
}

fn request_for(lane: Lane) -> Request {
    match lane {
        Lane::Control => Request::display_info(),
        Lane::Cursor => Request::move_cursor(0, (3, 4)),
    }
}

#[test]
fn what_came_during_a_pause_is_never_answered_out_of_order() {
    let mut stage = Stage::start(Builder::new(), small(true));
    let mut tokens = Vec::new();
    for round in 0..4 {
        stage.pause();
        // Of one timeline, so that the order of answers is promised.
        let fenced = |fence: u32| Request::create_2d(round * 100 + fence, 1, 4, 4).fenced(u64::from(fence));
        tokens.extend((1..8).map(|fence| stage.guest.submit(&fenced(fence))));
        stage.assert_still();
        stage.resume();
    }
    let seen = answers(&mut stage, tokens.len());
    assert_eq!(seen, tokens);
    stage.end();
}

#[test]
fn a_pause_never_comes_between_an_answer_and_its_interrupt() {
    for round in 0..50 {
        let mut stage = Stage::start(Builder::new(), small(round % 2 == 0));
        let tokens: Vec<Token> = (0..30).map(|_| stage.guest.submit(&Request::display_info())).collect();
        let control = stage.pause().control.expect("an active queue");
        let counters = stage.guest.device().counters();
        let answered = tokens.iter().filter(|token| stage.guest.has_answer(token)).count();
        assert_eq!((control.next_avail, control.next_used), (answered as u16, answered as u16));
        assert_eq!(counters.commands, answered as u64);
        assert!(answered == 0 || counters.interrupts > 0, "{answered} answers that nobody hears of");
        stage.assert_still();
        stage.resume();
        for token in tokens {
            stage.guest.wait(token).ok();
        }
        stage.end();
    }
}

#[test]
fn a_pause_never_keeps_the_vmm_from_reading_blobs() {
    const LEN: usize = 128 << 10;
    let mut stage = Stage::start(Builder::new(), small(true));
    let file = memfd_create("pause-read", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, LEN as u64).expect("size");
    rustix::io::pwrite(&file, &[7; LEN], 0).expect("written");
    let buffer = HostBuffer::from_fd(file.try_clone().expect("a duplicate")).expect("a buffer");
    let offered = soon(stage.guest.device().offer(buffer)).expect("room").0;
    stage.guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    stage.guest.command(&Request::host_blob(1, 5, offered, LEN as u64)).ok();
    let range = stage.guest.page_range(LEN);
    stage.guest.ram().write(GuestAddress(range.0), &[8; LEN]);
    // An entry a page, so that the copy is made in several parts.
    let pages: Vec<(u64, u32)> = (0..LEN as u64 / 16).map(|piece| (range.0 + piece * 16, 16)).rev().collect();
    stage.guest.command(&Request::guest_blob(6, LEN as u64, &pages)).ok();
    stage.pause();
    for _ in 0..2 {
        assert_eq!(soon(stage.guest.device().read_blob(5, ..)).expect("read"), [7; LEN]);
        assert_eq!(soon(stage.guest.device().read_blob(6, ..)).expect("read"), [8; LEN]);
        assert_eq!(soon(stage.guest.device().read_blob(6, 4096..4100)).expect("read"), [8; 4]);
    }
    rustix::io::pwrite(&file, b"live", 0).expect("written");
    assert_eq!(soon(stage.guest.device().read_blob(5, 0..4)).expect("read"), b"live");
    stage.assert_still();
    stage.resume();
    stage.guest.settle();
    stage.end();
}

#[test]
fn the_driver_never_hears_of_a_change_before_the_resume() {
    let mut stage = Stage::start(Builder::new().scanouts(2), small(true));
    stage.guest.settle();
    stage.pause();
    let (screen, viewer) = Screen::new();
    soon(stage.guest.device().connect(1, Monitor::new(640, 480), screen)).expect("connected");
    soon(stage.guest.device().change_monitor(1, Monitor::new(800, 600))).expect("changed");
    stage.assert_still();
    assert_eq!(stage.guest.take_config_changes(), 0, "notified while paused");
    stage.resume();
    assert_eq!(stage.guest.take_config_changes(), 1, "once is enough, and never is too little");
    let info = stage.guest.command(&Request::display_info()).ok();
    assert_eq!(info[24 + 8..24 + 16], [800u32.to_le_bytes(), 600u32.to_le_bytes()].concat());
    assert_eq!(viewer.take(), [], "nothing is shown");
    // Nor is it told twice.
    stage.pause();
    stage.resume();
    stage.guest.settle();
    assert_eq!(stage.guest.take_config_changes(), 0);
    // A write of the driver's own that is late counts too.
    soon(stage.guest.device().disconnect(1)).expect("a scanout");
    assert_eq!(stage.guest.take_config_changes(), 1);
    stage.pause();
    stage.guest.device().write_config(4, &1u32.to_le_bytes());
    stage.assert_still();
    assert_eq!(stage.guest.take_config_changes(), 0, "notified while paused");
    stage.resume();
    assert_eq!(stage.guest.take_config_changes(), 1);
    stage.end();
}

#[test]
fn a_display_that_comes_during_a_pause_is_never_left_without_the_picture() {
    const SIDE: u32 = 1024;
    let mut stage = Stage::start(Builder::new(), GuestOptions { ram: 8 << 20, ..small(true) });
    let len = (SIDE * SIDE * 4) as usize;
    let range = stage.guest.page_range(len);
    stage.guest.ram().write(GuestAddress(range.0), &vec![3; len]);
    stage.guest.command(&Request::guest_blob(7, len as u64, &[range])).ok();
    stage.guest.command(&Request::set_scanout_blob(0, 7, [SIDE, SIDE], 2, SIDE * 4, 0)).ok();
    stage.pause();
    for _ in 0..2 {
        let (screen, viewer) = Screen::new();
        soon(stage.guest.device().connect(0, Monitor::new(SIDE, SIDE), screen)).expect("connected");
        until("the picture is shown", || {
            stage.runtime.turn();
            viewer.picture().2 == vec![3; len]
        });
        stage.assert_still();
        soon(stage.guest.device().redraw(0)).expect("a display");
        stage.assert_still();
        assert!(viewer.take().len() > 3, "not drawn anew");
    }
    stage.resume();
    stage.guest.settle();
    stage.end();
}
