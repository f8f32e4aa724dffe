//! The other calls of a renderer, each held in turn: nobody else waits for any of them.

use virtio_gpu_uring::testing::{Request, Shown};

use super::gate::{Call, EXPORTED, RENDERED};
use super::stage::{FORMAT, HEIGHT, LEN, MADE, OWN_BLOB, RENDERED_IMAGE, SECOND, Stage, WHOLE, WIDTH};

/// Everything that goes on beside a call, and the call's own end.
#[track_caller]
fn goes_on_beside(call: Call) -> Stage {
    let mut stage = Stage::new();
    let held = stage.hold(call);
    stage.others();
    stage.exports();
    stage.offers(SECOND);
    stage.release(held);
    stage
}

#[test]
fn a_held_transfer_never_holds_up_anybody_else() {
    goes_on_beside(Call::Transfer);
}

#[test]
fn a_held_blob_never_holds_up_anybody_else() {
    let mut stage = goes_on_beside(Call::CreateBlob);
    stage.map(MADE, EXPORTED);
}

#[test]
fn a_held_reading_of_pixels_never_holds_up_anybody_else() {
    let stage = goes_on_beside(Call::ReadPixels);
    let shown = stage.screens[1].take();
    let drawn = shown.iter().filter(|shown| matches!(shown, Shown::Drawn(_, pixels) if *pixels == [RENDERED; LEN]));
    assert_eq!(drawn.count(), 1, "the picture that was held");
}

#[test]
fn a_held_context_never_holds_up_anybody_else() {
    let mut stage = goes_on_beside(Call::CreateContext);
    stage.ok(&Request::submit(MADE, b"alive"));
}

#[test]
fn a_held_resource_never_holds_up_anybody_else() {
    let mut stage = goes_on_beside(Call::CreateResource);
    stage.ok(&Request::transfer_to_host_3d(0, MADE, WHOLE, 0));
}

#[test]
fn a_held_backing_never_holds_up_anybody_else() {
    goes_on_beside(Call::AttachBacking);
}

#[test]
fn a_held_map_of_the_renderers_own_memory_never_holds_up_anybody_else() {
    let mut stage = goes_on_beside(Call::MapBlob);
    stage.ok(&Request::unmap(OWN_BLOB));
}

#[test]
fn a_held_picture_that_a_screen_is_to_show_never_holds_up_anybody_else() {
    goes_on_beside(Call::ExportPicture);
}

#[test]
fn a_picture_that_is_being_read_never_keeps_its_screen_from_another() {
    let mut stage = Stage::new();
    let held = stage.hold(Call::ReadPixels);
    stage.ok(&Request::create_2d(MADE, FORMAT, WIDTH, HEIGHT));
    stage.ok(&Request::set_scanout(1, MADE, WHOLE));
    let _ = stage.screens[1].take();
    stage.ok(&Request::flush(MADE, WHOLE));
    assert_eq!(stage.screens[1].take().len(), 2, "the other picture");
    stage.release(held);
    assert_eq!(stage.screens[1].take(), [], "drawn over the other picture");
    stage.ok(&Request::set_scanout(1, RENDERED_IMAGE, WHOLE));
}
