//! Halts, for a VMM that cannot wait: what does not end is held, and comes out after the resume. And queues that are wired
//! anew, as a VMM does whose eventfds do not outlive a stop.

use std::time::Duration;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::ERR_UNSPEC;
use virtio_gpu_uring::testing::{GuestChannel, HostService, Lane, Request, Token};
use virtio_gpu_uring::{ActivateError, Activation, Builder, Paused};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::memory::{Call, SlowMemory, refused};
use crate::work::blob;
use crate::{Memory, Stage, is_there, small, soon};

/// Nothing here ends by itself, however long the grace.
const GRACE: Duration = Duration::from_millis(5);

fn halt(stage: &Stage) -> Paused {
    soon(stage.guest.device().halt(GRACE))
}

/// A guest whose MAP of blob 5 is under way.
fn mapping() -> (Stage, SlowMemory, Token, Call) {
    let memory = SlowMemory::default();
    memory.places_later(true);
    let mut stage = Stage::start(Builder::new().window(memory.clone()), small(true));
    blob(&mut stage.guest);
    let map = stage.guest.submit(&Request::map(5, 0));
    let call = memory.next();
    (stage, memory, map, call)
}

fn rewire(stage: &Stage, activation: Activation<Memory>) -> Result<(), ActivateError> {
    soon(stage.guest.device().rewire(activation))
}

#[test]
fn work_that_does_not_end_never_keeps_a_halt_waiting_nor_comes_out_during_it() {
    for answer in [Ok(()), Err(refused())] {
        let refusal = answer.is_err();
        let (mut stage, memory, map, call) = mapping();
        let mut pause = stage.guest.device().pause();
        stage.runtime.turn();
        assert!(!is_there(&mut pause), "a pause waits for what is under way");
        drop(pause);
        call.answer(answer);
        let answered = stage.guest.wait(map);
        if refusal {
            answered.expect_error(ERR_UNSPEC)
        } else {
            drop(answered.ok())
        }
        stage.resume();

        let unmapping = if refusal { Request::map(5, 0) } else { Request::unmap(5) };
        memory.clears_later(true);
        let held = stage.guest.submit(&unmapping);
        let call = memory.next();
        assert_eq!(halt(&stage).outstanding, 1);
        call.answer(Ok(()));
        stage.assert_still();
        assert!(!stage.guest.has_answer(&held), "answered while halted");
        assert_eq!(halt(&stage).outstanding, 1, "an answer that is held was forgotten");
        stage.resume();
        stage.guest.wait(held).ok();
        memory.assert_sound();
        stage.end();
    }
}

#[test]
fn commands_behind_one_that_is_held_never_come_out_before_the_resume() {
    let (mut stage, memory, map, call) = mapping();
    let unmap = stage.guest.submit(&Request::unmap(5));
    stage.guest.settle();
    assert_eq!(halt(&stage).outstanding, 2);
    call.answer(Ok(()));
    stage.assert_still();
    assert!(!stage.guest.has_answer(&map) && !stage.guest.has_answer(&unmap));
    stage.resume();
    stage.guest.wait(map).ok();
    stage.guest.wait(unmap).ok();
    assert!(memory.taken().is_empty());
    stage.end();
}

#[test]
fn a_reset_of_a_halted_device_never_gives_its_answers_to_the_next_driver() {
    let (mut stage, memory, _map, call) = mapping();
    halt(&stage);
    call.answer(Ok(()));
    stage.assert_still();
    stage.guest.reset();
    stage.guest.activate();
    assert!(memory.taken().is_empty(), "the window is not empty after a reset");
    let commands = stage.guest.device().counters().answers_ok;
    stage.guest.command(&Request::display_info()).ok();
    assert_eq!(stage.guest.device().counters().answers_ok, commands + 1);
    stage.end();
}

#[test]
fn queues_that_are_wired_anew_lose_neither_resources_nor_requests() {
    let (mut stage, memory, map, call) = mapping();
    let paused = halt(&stage);
    let late = stage.guest.submit(&Request::display_info());
    rewire(&stage, stage.guest.activation_from(&paused)).expect("the same queues");
    call.answer(Ok(()));
    stage.guest.wait(map).ok();
    stage.guest.wait(late).ok();
    stage.guest.command(&Request::unmap(5)).ok();
    stage.guest.command(&Request::unref(5)).ok();
    let cursor = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (1, 1)));
    stage.guest.wait_on(Lane::Cursor, cursor).ok();
    memory.assert_sound();
    stage.end();
}

#[test]
fn a_channels_wait_never_gets_lost_where_queues_are_wired_anew() {
    let service = HostService::listen();
    let builder = Builder::new().host_socket(ChannelType::PIPEWIRE, service.path());
    let mut stage = Stage::start(builder, small(true));
    let mut channel = GuestChannel::open(&mut stage.guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    for round in 0..5u8 {
        let poll = channel.poll(&mut stage.guest);
        stage.guest.settle();
        let paused = halt(&stage);
        assert_eq!(paused.outstanding, 1);
        rewire(&stage, stage.guest.activation_from(&paused)).expect("the same queues");
        peer.send(&[round; 64], &[]);
        assert_eq!(channel.wait(&mut stage.guest, poll).data, [round; 64]);
    }
    stage.end();
}

#[test]
fn a_queue_that_is_another_one_is_never_taken_for_the_one_before() {
    let mut stage = Stage::start(Builder::new(), small(true));
    let paused = halt(&stage);
    let mut other = stage.guest.activation_from(&paused);
    let used = other.control.queue.used_ring();
    other.control.queue.try_set_used_ring_address(GuestAddress(used + 64)).expect("an address");
    let error = rewire(&stage, other).expect_err("another queue");
    assert!(matches!(error, ActivateError::Queue { index: 0, .. }), "{error}");
    // The device is halted as before.
    rewire(&stage, stage.guest.activation_from(&paused)).expect("the same queues");
    stage.guest.command(&Request::display_info()).ok();
    stage.end();
}

#[test]
fn a_device_that_serves_is_never_wired_anew() {
    let mut stage = Stage::start(Builder::new(), small(true));
    let activation = stage.guest.activation();
    assert!(matches!(rewire(&stage, activation), Err(ActivateError::NotPaused)));
    stage.guest.command(&Request::display_info()).ok();
    stage.end();
}

#[test]
fn a_cursor_queue_that_comes_or_goes_never_takes_anything_with_it() {
    let mut stage = Stage::start(Builder::new(), small(true));
    let paused = halt(&stage);
    let mut without = stage.guest.activation_from(&paused);
    without.cursor.queue.set_ready(false);
    rewire(&stage, without).expect("the same queue");
    stage.guest.command(&Request::display_info()).ok();
    let moved = stage.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (1, 1)));
    stage.runtime.turn();
    assert!(!stage.guest.has_answer(&moved), "a queue that is not there was served");
    let mut halted = halt(&stage);
    assert!(halted.cursor.is_none());
    halted.cursor = paused.cursor;
    rewire(&stage, stage.guest.activation_from(&halted)).expect("with a cursor queue");
    stage.guest.wait_on(Lane::Cursor, moved).ok();
    stage.end();
}
