//! The dma-buf that a rendered picture lies in: asked for once, when a scanout first shows it, closed with the resource, and of no
//! use where it is none. What displays do with a real one is seen where there are dma-bufs.

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC};
use virtio_gpu_uring::testing::{Request, Screen, Shown, census};
use virtio_gpu_uring::{Format, Limits, Monitor};

use super::actor::{Export, Fate, until};
use super::rendered::{FORMAT, HEIGHT, WHOLE, WIDTH};
use super::stage::{Stage, brief, patient};

/// With resource 7, a display that takes dma-bufs, and what the renderer says.
fn with_picture(name: &'static str, limits: Limits, export: Export) -> Stage {
    let mut stage = Stage::with_context(name, limits);
    stage.director.script().export = export;
    let (screen, viewer) = Screen::taking_buffers();
    let connected = stage.guest.device().connect(0, Monitor::new(WIDTH, HEIGHT), screen).wait();
    connected.expect("a device").expect("connected");
    stage.guest.command(&Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)).ok();
    stage.director.expect(&["create 7"]);
    stage.viewer = viewer;
    stage
}

fn attached() -> Shown {
    Shown::Attached { width: WIDTH, height: HEIGHT, format: Format::B8G8R8X8, by_buffer: false }
}

/// The pixels come from the renderer.
#[track_caller]
fn assert_read(stage: &mut Stage) {
    stage.guest.command(&Request::flush(7, WHOLE)).ok();
    assert_eq!(stage.viewer.picture().2, [7; (WIDTH * HEIGHT * 4) as usize]);
    assert!(stage.viewer.take_buffer().is_none(), "a display was handed what is no dma-buf");
}

#[test]
fn a_picture_is_never_asked_for_before_it_is_shown_nor_twice() {
    for export in [Export::Nothing, Export::Memfd(1)] {
        let mut stage = with_picture("export-once", patient(), export);
        stage.guest.command(&Request::flush(7, WHOLE)).ok();
        stage.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).ok();
        // What is refused, or shows nothing, is no reason to ask.
        stage.guest.command(&Request::set_scanout(0, 7, [0, 0, WIDTH + 1, 1])).expect_error(ERR_INVALID_PARAMETER);
        stage.guest.command(&Request::set_scanout(0, 0, WHOLE)).ok();
        stage.director.expect(&["transfer 7"]);
        stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
        stage.director.expect(&["export 7"]);
        assert_eq!(stage.viewer.take(), [attached()]);
        for rect in [[4, 4, 4, 4], WHOLE, [0, 0, 1, 1], WHOLE] {
            stage.guest.command(&Request::set_scanout(0, 7, rect)).ok();
            stage.guest.command(&Request::set_scanout(0, 0, WHOLE)).ok();
        }
        stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
        assert_eq!(stage.director.take(), Vec::<String>::new());
        assert_read(&mut stage);
        stage.director.expect(&["read 7"]);
        // Another life of the same id is another picture.
        stage.guest.command(&Request::unref(7)).ok();
        stage.guest.command(&Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)).ok();
        stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
        stage.director.expect(&["forget 7", "create 7", "export 7"]);
    }
}

#[test]
fn what_is_no_picture_in_a_dma_buf_is_never_kept_nor_handed_to_displays() {
    for export in [Export::Memfd(1), Export::Memfd(0), Export::Memfd(4), Export::Memfd(9), Export::Pipe] {
        let mut stage = with_picture("export-refused", patient(), export);
        stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
        assert_eq!(stage.viewer.take(), [attached()], "{export:?}");
        assert_eq!(census::fds_named("export-refused"), 0, "{export:?}");
        assert_read(&mut stage);
        stage.guest.command(&Request::unref(7)).ok();
        stage.director.expect(&["export 7", "read 7", "forget 7"]);
    }
}

#[test]
fn no_picture_is_ever_asked_for_where_nobody_can_be_shown_one() {
    let mut stage = with_picture("export-2d", patient(), Export::Memfd(1));
    stage.guest.command(&Request::create_2d(8, FORMAT, WIDTH, HEIGHT)).ok();
    stage.guest.command(&Request::set_scanout(0, 8, WHOLE)).ok();
    stage.guest.command(&Request::set_scanout(99, 7, WHOLE));
    stage.guest.command(&Request::set_scanout(0, 99, WHOLE));
    assert_eq!(stage.director.take(), Vec::<String>::new());
}

#[test]
fn a_picture_never_costs_more_descriptors_than_there_are() {
    // The limit is full: the display gets pixels, and the guest no error.
    let limits = Limits { fds: 1, ..patient() };
    let mut stage = with_picture("export-limit", limits, Export::Memfd(1));
    stage.guest.command(&Request::host_blob(1, 20, super::actor::FILE, 4096)).ok();
    let before = census::fds_named("export-limit");
    stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    assert_read(&mut stage);
    assert_eq!(census::fds_named("export-limit"), before);
    // And what was of no use is given back.
    let mut stage = with_picture("export-given-back", Limits { fds: 1, ..patient() }, Export::Memfd(1));
    stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
    stage.guest.command(&Request::host_blob(1, 20, super::actor::FILE, 4096)).ok();
}

#[test]
fn a_reset_in_the_middle_of_an_export_never_leaves_its_descriptor() {
    let mut stage = with_picture("export-reset", brief(), Export::Memfd(1));
    stage.director.order("export", Fate::Hang);
    let _never_answered = stage.guest.submit(&Request::set_scanout(0, 7, WHOLE));
    stage.director.reach("export 7");
    stage.restart();
    stage.assert_others_live();
    let _ = stage.viewer.take();
    stage.director.spare("export");
    stage.director.release();
    stage.director.reach("forget 7");
    stage.guest.command(&Request::ctx_create(1, 1)).ok();
    stage.guest.settle();
    until("the descriptor is closed", || census::fds_named("export-reset") == 0);
    assert_eq!(stage.viewer.take(), [], "shown after the reset");
    assert_eq!(stage.lost(), 0);
}

#[test]
fn an_export_that_is_lost_never_leaves_a_scanout_half_set() {
    let mut stage = with_picture("export-lost", patient(), Export::Nothing);
    stage.guest.command(&Request::create_2d(8, FORMAT, WIDTH, HEIGHT)).ok();
    stage.guest.command(&Request::set_scanout(0, 8, WHOLE)).ok();
    let _ = stage.viewer.take();
    stage.director.order("export", Fate::Panic);
    for _ in 0..2 {
        stage.guest.command(&Request::set_scanout(0, 7, WHOLE)).expect_error(ERR_UNSPEC);
        assert_eq!(stage.viewer.take(), [], "another picture than before");
        stage.guest.command(&Request::flush(8, WHOLE)).ok();
        assert_eq!(stage.viewer.take().len(), 2, "drawn, a frame");
    }
    stage.until_lost();
}
