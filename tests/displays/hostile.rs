//! Displays that make trouble: connected in the middle of a flush, asking without end, panicking where they are dropped.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};

use futures_util::future::pending;
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{DEADLINE, Guest, Request, Screen, Shown};
use virtio_gpu_uring::{Area, Builder, Cursor, Display, Displays, Monitor, Picture, Pixels, Work};

use crate::buffers::{dma_buf, memfd, set};
use crate::replaced::{HEIGHT, Stopper, WIDTH};
use crate::{show, soon};

/// A display that does nothing, but for what is asked of it here.
#[derive(Default)]
struct Trouble {
    /// Asks to be redrawn whenever it is.
    displays: Arc<Mutex<Option<Displays>>>,
    frames: Frames,
    _end: Option<PanicsAtItsEnd>,
}

#[derive(Default, Clone, Copy)]
enum Frames {
    #[default]
    Quick,
    /// Their work panics.
    Panic,
    /// Their work never ends, and panics when it is dropped.
    PanicLate,
}

struct PanicsAtItsEnd;

impl Drop for PanicsAtItsEnd {
    fn drop(&mut self) {
        resume_unwind(Box::new("as the test wants it"));
    }
}

impl Display for Trouble {
    fn takes_buffer(&mut self, _picture: &Picture<'_>) -> bool {
        true
    }

    fn attach(&mut self, _picture: &Picture<'_>) {
        if let Some(displays) = &*self.displays.lock().expect("no panic") {
            drop(displays.redraw(0));
        }
    }

    fn draw(&mut self, _area: Area, _pixels: Pixels<'_>) {}

    fn frame(&mut self, _damage: Area) -> Work<()> {
        match self.frames {
            Frames::Quick => Work::Done(()),
            Frames::Panic => Work::later(async { resume_unwind(Box::new("as the test wants it")) }),
            Frames::PanicLate => {
                let end = PanicsAtItsEnd;
                Work::later(async move {
                    let _end = end;
                    pending::<()>().await;
                })
            }
        }
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}
    fn move_cursor(&mut self, _position: (i32, i32)) {}
    fn detach(&mut self) {}
}

fn with(trouble: Trouble) -> Guest {
    let mut guest = Guest::start(Builder::new().display(0, Monitor::new(64, 48), trouble));
    show(&mut guest, 0, 7, [64, 48]);
    guest
}

#[test]
fn a_display_is_never_drawn_on_before_it_was_told_of_a_picture() {
    let (stopper, draws, gate) = Stopper::new(2);
    let mut guest = Guest::start(Builder::new().display(0, Monitor::new(WIDTH, HEIGHT), stopper));
    show(&mut guest, 0, 7, [WIDTH, HEIGHT]);
    let flushes = [(); 2].map(|()| guest.submit(&Request::flush(7, [0, 0, WIDTH, HEIGHT])));
    for _ in 0..3 {
        draws.recv_timeout(DEADLINE).expect("a part that is drawn");
    }
    // The second flush waits for the first, and the new display's own picture for both.
    let (screen, viewer) = Screen::new();
    let connected = guest.device().connect(0, Monitor::new(WIDTH, HEIGHT), screen);
    gate.send(()).expect("a display");
    soon(connected).expect("connected");
    flushes.into_iter().for_each(|flush| drop(guest.wait(flush).ok()));
    guest.settle();
    assert_eq!(guest.device().counters().displays_lost, 0);
    assert!(matches!(viewer.take()[0], Shown::Attached { .. }));
}

#[test]
fn a_display_that_asks_without_end_never_keeps_the_vmm_or_the_guest_waiting() {
    let mut builder = Builder::new();
    let displays = Arc::new(Mutex::new(Some(builder.displays())));
    let trouble = Trouble { displays: Arc::clone(&displays), ..Trouble::default() };
    let mut guest = Guest::start(builder.display(0, Monitor::new(64, 48), trouble));
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    dma_buf(&mut guest, 7, memfd("hostile", 1));
    guest.command(&set(7)).ok();
    for _ in 0..100 {
        guest.settle();
        soon(guest.device().pause()).expect("paused");
        soon(guest.device().resume());
    }
    displays.lock().expect("no panic").take();
}

#[test]
fn a_display_that_is_refused_never_ends_the_device_with_its_own_end() {
    let guest = Guest::start(Builder::new());
    let trouble = Trouble { _end: Some(PanicsAtItsEnd), ..Trouble::default() };
    soon(guest.device().connect(5, Monitor::new(64, 48), trouble)).expect_err("no such scanout");
    assert_eq!(soon(guest.device().disconnect(0)), Ok(false));
}

#[test]
fn a_frame_that_panics_when_it_is_dropped_never_ends_the_device() {
    let mut guest = with(Trouble { frames: Frames::PanicLate, ..Trouble::default() });
    let _flush = guest.submit(&Request::flush(7, [0, 0, 1, 1]));
    guest.settle();
    guest.reset();
    guest.activate();
    guest.settle();
}

#[test]
fn a_display_is_never_lost_more_than_once() {
    let mut guest = with(Trouble { frames: Frames::Panic, ..Trouble::default() });
    let flushes = [(); 3].map(|()| guest.submit(&Request::flush(7, [0, 0, 1, 1])));
    flushes.into_iter().for_each(|flush| drop(guest.wait(flush).ok()));
    guest.settle();
    assert_eq!(guest.device().counters().displays_lost, 1);
}
