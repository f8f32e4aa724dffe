//! The head of the line: while the renderer is at a call that takes as long as it takes, everything else of the device goes
//! on. No time decides: a call is held at a gate, the others are answered while it is shut, and only then is it opened.
//!
//! What does wait for the renderer's one thread is stated here too: commands of every rendered context, and what they alone
//! can say. They are taken from the queue at once and answered when it is their turn.
#![cfg(feature = "testing")]

#[path = "head_of_line/calls.rs"]
mod calls;
#[path = "head_of_line/fences.rs"]
mod fences;
#[path = "head_of_line/gate.rs"]
mod gate;
#[path = "head_of_line/others.rs"]
mod others;
#[path = "head_of_line/stage.rs"]
mod stage;
#[path = "head_of_line/thread.rs"]
mod thread;

use virtio_gpu_uring::testing::Request;

use gate::{Call, EXPORTED, OWN};
use stage::{BUFFER, CHANNEL, EXPORTED_BLOB, FORMAT, HEIGHT, HELD, OWN_AT, OWN_BLOB, PASSING, SECOND, Stage, WIDTH};

/// A group of commands, answered while a stream is held.
#[track_caller]
fn beside_a_held_stream(group: impl FnOnce(&mut Stage)) {
    let mut stage = Stage::new();
    let held = stage.hold(Call::Submit);
    group(&mut stage);
    let answer = stage.release(held);
    assert_eq!((answer.header.fence_id.get(), answer.header.ctx_id.get(), answer.header.ring_idx), (1, HELD, 0));
}

#[test]
fn a_held_stream_never_holds_up_the_cursor() {
    beside_a_held_stream(Stage::cursor);
}

#[test]
fn a_held_stream_never_holds_up_an_image_of_the_devices_own() {
    beside_a_held_stream(Stage::image);
}

#[test]
fn a_held_stream_never_holds_up_a_picture_in_a_blob() {
    beside_a_held_stream(Stage::pictures_in_blobs);
}

#[test]
fn a_held_stream_never_holds_up_messages_of_a_channel() {
    beside_a_held_stream(Stage::messages);
}

#[test]
fn a_held_stream_never_holds_up_channels_that_open_and_close() {
    beside_a_held_stream(Stage::channels);
}

#[test]
fn a_held_stream_never_holds_up_a_map_of_what_the_vmm_offers() {
    beside_a_held_stream(|stage| [CHANNEL, SECOND].into_iter().for_each(|context| stage.offers(context)));
}

#[test]
fn a_held_stream_never_holds_up_a_map_of_what_the_renderer_has_exported() {
    beside_a_held_stream(|stage| stage.map(EXPORTED_BLOB, EXPORTED));
}

#[test]
fn a_held_stream_never_holds_up_the_taking_back_of_the_renderers_own_memory() {
    let mut stage = Stage::new();
    stage.ok(&Request::host_blob(HELD, PASSING, OWN, BUFFER));
    stage.guest.map(OWN_BLOB, OWN_AT);
    stage.guest.map(PASSING, OWN_AT + BUFFER);
    let held = stage.hold(Call::Submit);
    stage.ok(&Request::unmap(OWN_BLOB));
    stage.ok(&Request::unref(PASSING));
    // It cannot be mapped without the renderer, and what others map does not wait for that.
    let mapping = stage.guest.submit(&Request::map(OWN_BLOB, OWN_AT));
    stage.map(EXPORTED_BLOB, EXPORTED);
    stage.offers(CHANNEL);
    assert!(!stage.guest.has_answer(&mapping), "mapped without the renderer");
    stage.release(held);
    stage.guest.wait(mapping).ok();
}

#[test]
fn a_held_stream_never_holds_up_a_picture_that_the_renderer_has_exported() {
    beside_a_held_stream(Stage::exports);
}

#[test]
fn a_held_stream_never_holds_up_a_question() {
    beside_a_held_stream(Stage::questions);
}

#[test]
fn a_held_stream_never_holds_up_the_making_and_the_end_of_resources() {
    beside_a_held_stream(Stage::resources);
}

#[test]
fn a_held_stream_never_holds_up_the_end_of_what_the_renderer_has_made() {
    let mut stage = Stage::new();
    stage.ok(&Request::host_blob(HELD, PASSING, 3, BUFFER));
    stage.ok(&Request::create_3d(PASSING + 1, 2, FORMAT, WIDTH, HEIGHT));
    stage.guest.map(PASSING, 0);
    let held = stage.hold(Call::Submit);
    for resource in [PASSING, PASSING + 1] {
        stage.ok(&Request::unref(resource));
        // The name is free for what needs no renderer.
        stage.ok(&Request::create_2d(resource, FORMAT, WIDTH, HEIGHT));
    }
    assert_eq!(stage.byte(0), 0, "mapped after its end");
    stage.release(held);
}
