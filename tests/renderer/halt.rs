//! A halt while the renderer is at work: what it comes to is kept, also for a queue that is taken away for the moment.

use std::sync::Arc;
use std::time::Duration;

use virtio_gpu_uring::testing::{Lane, Request};
use virtio_gpu_uring::{Activation, Paused};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::actor::Fate;
use super::stage::{Stage, patient};

const GRACE: Duration = Duration::from_millis(5);

fn halt(stage: &Stage) -> Paused {
    stage.guest.device().halt(GRACE).wait().expect("a device")
}

fn rewire(stage: &Stage, activation: Activation<Arc<GuestMemoryMmap>>) {
    stage.guest.device().rewire(activation).wait().expect("a device").expect("the same queues");
}

#[test]
fn a_cursor_that_is_answered_while_its_queue_is_away_is_never_lost() {
    let mut stage = Stage::with_context("halted-cursor", patient());
    stage.guest.command(&Request::create_3d(7, 2, 2, 64, 64)).ok();
    stage.director.order("submit", Fate::Hang);
    let slow = stage.guest.submit(&Request::submit(1, b"slow"));
    stage.director.reach("submit 1");
    let before = stage.guest.device().counters().commands;
    let update = Request::update_cursor(0, 7, (0, 0), (0, 0));
    let cursor = stage.guest.submit_on(Lane::Cursor, &update);
    stage.until_taken(before + 1);
    let paused = halt(&stage);
    assert_eq!(paused.outstanding, 2);
    let mut without = stage.guest.activation_from(&paused);
    without.cursor.queue.set_ready(false);
    rewire(&stage, without);
    stage.director.release();
    stage.guest.wait(slow).ok();
    // What comes behind it has been through the renderer, and so has the cursor.
    stage.guest.command(&Request::create_3d(8, 2, 2, 64, 64)).ok();
    assert!(!stage.guest.has_answer(&cursor), "a queue that is away was written to");
    let mut halted = halt(&stage);
    halted.cursor = paused.cursor;
    rewire(&stage, stage.guest.activation_from(&halted));
    stage.guest.wait_on(Lane::Cursor, cursor).ok();
    stage.guest.assert_all_answered();
}
