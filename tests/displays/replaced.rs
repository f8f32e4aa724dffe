//! A display that is replaced while a long flush is under way: the new one is told the truth about what was drawn.

use std::sync::mpsc::{Receiver, Sender, channel};

use virtio_gpu_uring::testing::{DEADLINE, Guest, Request, Screen, Shown};
use virtio_gpu_uring::{Area, Builder, Cursor, Display, Monitor, Picture, Pixels, Work};

use crate::{area, connect, image, pattern, show, soon};

/// A display that stops the device's thread in one of its draws, so that the test knows where it is.
pub(crate) struct Stopper {
    drawn: Sender<Area>,
    go_on: Receiver<()>,
    /// How many it lets pass before.
    passes: usize,
}

impl Stopper {
    pub(crate) fn new(passes: usize) -> (Self, Receiver<Area>, Sender<()>) {
        let ((drawn, draws), (gate, go_on)) = (channel(), channel());
        (Self { drawn, go_on, passes }, draws, gate)
    }
}

impl Display for Stopper {
    fn attach(&mut self, _picture: &Picture<'_>) {}

    fn draw(&mut self, area: Area, _pixels: Pixels<'_>) {
        let _ = self.drawn.send(area);
        if self.passes == 0 {
            self.go_on.recv_timeout(DEADLINE).expect("the test goes on");
        }
        self.passes = self.passes.wrapping_sub(1);
    }

    fn frame(&mut self, _damage: Area) -> Work<()> {
        Work::Done(())
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}

    fn move_cursor(&mut self, _position: (i32, i32)) {}

    fn detach(&mut self) {}
}

/// Asserts that each frame was drawn before it was said to be complete. Every area is as wide as the picture.
#[track_caller]
fn assert_honest(shown: &[Shown], height: u32) {
    let mut drawn = vec![false; height as usize];
    for shown in shown {
        match shown {
            Shown::Attached { .. } => drawn.fill(false),
            Shown::Drawn(area, _) => drawn[area.y as usize..][..area.height as usize].fill(true),
            Shown::Frame(area) => {
                let rows = &drawn[area.y as usize..][..area.height as usize];
                let missing = rows.iter().filter(|drawn| !**drawn).count();
                assert_eq!(missing, 0, "a frame of {area:?} is complete, and so many of its rows were never drawn");
            }
            _ => {}
        }
    }
}

pub(crate) const WIDTH: u32 = 1024;
pub(crate) const HEIGHT: u32 = 1200;

/// A guest with a flush of a large picture that a display has in its hands, after so many parts of it.
fn flushing(parts: usize) -> (Guest, Receiver<Area>, Sender<()>, virtio_gpu_uring::testing::Token) {
    let (stopper, draws, gate) = Stopper::new(parts);
    let monitor = Monitor::new(WIDTH, HEIGHT);
    let mut guest = Guest::start(Builder::new().display(0, monitor, stopper));
    show(&mut guest, 0, 7, [WIDTH, HEIGHT]);
    let flush = guest.submit(&Request::flush(7, [0, 0, WIDTH, HEIGHT]));
    let end = |part: Area| part.y + part.height;
    for _ in 0..=parts {
        let part = draws.recv_timeout(DEADLINE).expect("drawn");
        assert!(end(part) < HEIGHT, "this test needs a larger picture");
    }
    (guest, draws, gate, flush)
}

#[test]
fn a_display_that_replaces_another_is_never_told_of_a_frame_that_it_was_not_drawn() {
    for parts in 0..4 {
        let (mut guest, _draws, gate, flush) = flushing(parts);
        let (screen, viewer) = Screen::new();
        let connected = guest.device().connect(0, Monitor::new(WIDTH, HEIGHT), screen);
        gate.send(()).expect("a display");
        soon(connected).expect("connected");
        guest.wait(flush).ok();
        let mut shown = Vec::new();
        crate::until("the picture is shown", || {
            guest.settle();
            shown.extend(viewer.take());
            shown.contains(&Shown::Frame(area(WIDTH, HEIGHT))) && viewer.picture().2 == pattern(WIDTH, HEIGHT, 7)
        });
        assert_honest(&shown, HEIGHT);
        // And afterwards.
        guest.command(&Request::flush(7, [0, 0, WIDTH, HEIGHT])).ok();
        assert_honest(&viewer.take(), HEIGHT);
    }
}

#[test]
fn a_picture_that_replaces_another_is_never_drawn_with_rows_of_the_first() {
    let (mut guest, _draws, gate, flush) = flushing(1);
    let set = guest.submit(&Request::set_scanout(0, 0, [0; 4]));
    gate.send(()).expect("a display");
    guest.wait(flush).ok();
    guest.wait(set).ok();
    // The same in a display that keeps what it was shown.
    let (screen, viewer) = Screen::new();
    connect(&guest, 0, Monitor::new(WIDTH, HEIGHT), screen);
    image(&mut guest, 8, [WIDTH, 64], 8);
    for _ in 0..10 {
        guest.command(&Request::set_scanout(0, 7, [0, 0, WIDTH, HEIGHT])).ok();
        let long = guest.submit(&Request::flush(7, [0, 0, WIDTH, HEIGHT]));
        let set = guest.submit(&Request::set_scanout(0, 8, [0, 0, WIDTH, 64]));
        let short = guest.submit(&Request::flush(8, [0, 0, WIDTH, 64]));
        for token in [long, set, short] {
            guest.wait(token).ok();
        }
        assert!(viewer.picture() == (WIDTH, 64, pattern(WIDTH, 64, 8)), "not the second picture");
        assert_honest(&viewer.take(), HEIGHT);
    }
}

#[test]
fn a_display_that_goes_in_the_middle_of_a_flush_never_takes_it_along() {
    let (mut guest, draws, gate, flush) = flushing(1);
    let disconnected = guest.device().disconnect(0);
    gate.send(()).expect("a display");
    assert!(soon(disconnected).expect("a scanout"));
    assert_eq!(draws.try_iter().count(), 0, "drawn on after the end");
    guest.wait(flush).ok();
    guest.settle();
    guest.assert_all_answered();
}

#[test]
fn a_reset_in_the_middle_of_a_flush_never_waits_nor_draws_on() {
    let (mut guest, draws, gate, _flush) = flushing(1);
    let reset = guest.device().reset();
    gate.send(()).expect("a display");
    soon(reset);
    guest.reset();
    let before = draws.try_iter().count();
    guest.activate();
    guest.settle();
    assert_eq!((before, draws.try_iter().count()), (0, 0), "drawn after the reset");
    assert_eq!(guest.device().counters().quarantined, 0);
}
