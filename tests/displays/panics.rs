//! A display that panics: it is lost, and nobody else with it.

use virtio_gpu_uring::testing::{Guest, Lane, Request, Screen, Shown};
use virtio_gpu_uring::{Area, Builder, Cursor, Display, Monitor, Picture, Pixels, Work};

use crate::{area, attached, connect, image, pattern, show, soon};

/// A display that panics in the call of this name.
struct Brittle(&'static str);

impl Brittle {
    fn call(&self, name: &str) {
        if self.0 == name {
            // As a panic does, without its message on the terminal.
            std::panic::resume_unwind(Box::new("told to"));
        }
    }
}

impl Display for Brittle {
    fn attach(&mut self, _picture: &Picture<'_>) {
        self.call("attach");
    }

    fn draw(&mut self, _area: Area, _pixels: Pixels<'_>) {
        self.call("draw");
    }

    fn frame(&mut self, _damage: Area) -> Work<()> {
        self.call("frame");
        if self.0 == "work" {
            return Work::later(async { std::panic::resume_unwind(Box::new("told to")) });
        }
        Work::Done(())
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {
        self.call("cursor");
    }

    fn move_cursor(&mut self, _position: (i32, i32)) {
        self.call("move");
    }

    fn detach(&mut self) {
        self.call("detach");
    }
}

impl Drop for Brittle {
    fn drop(&mut self) {
        self.call("drop");
    }
}

/// All that a guest does with a display.
fn use_display(guest: &mut Guest) {
    let cursor = |guest: &mut Guest, request: Request| {
        let token = guest.submit_on(Lane::Cursor, &request);
        guest.wait_on(Lane::Cursor, token).ok();
    };
    for request in [Request::set_scanout(0, 7, [0, 0, 64, 48]), Request::flush(7, [0, 0, 64, 48])] {
        guest.command(&request).ok();
    }
    cursor(guest, Request::update_cursor(0, 8, (1, 2), (0, 0)));
    cursor(guest, Request::move_cursor(0, (3, 4)));
    guest.command(&Request::set_scanout(0, 0, [0; 4])).ok();
}

#[test]
fn a_display_that_panics_never_takes_the_guest_or_another_display_along() {
    for call in ["attach", "draw", "frame", "work", "cursor", "move", "detach", "drop"] {
        let (screen, other) = Screen::new();
        let builder = Builder::new().display(0, Monitor::new(64, 48), Brittle(call));
        let mut guest = Guest::start(builder.display(1, Monitor::new(64, 48), screen));
        image(&mut guest, 7, [64, 48], 7);
        image(&mut guest, 8, [64, 64], 8);
        guest.command(&Request::set_scanout(1, 7, [0, 0, 64, 48])).ok();
        for _ in 0..2 {
            let _ = other.take();
            use_display(&mut guest);
            assert_eq!(other.take(), [Shown::Drawn(area(64, 48), pattern(64, 48, 7)), Shown::Frame(area(64, 48))]);
        }
        let lost = guest.device().counters().displays_lost;
        assert_eq!(lost, u64::from(call != "drop"), "displays lost in {call}");
        // Another one in its place.
        let (screen, next) = Screen::new();
        connect(&guest, 0, Monitor::new(64, 48), screen);
        let _ = next.take();
        show(&mut guest, 0, 9, [64, 48]);
        guest.command(&Request::flush(9, [0, 0, 64, 48])).ok();
        let frame = Shown::Frame(area(64, 48));
        assert_eq!(next.take(), [attached(64, 48), Shown::Drawn(area(64, 48), pattern(64, 48, 9)), frame]);
        guest.reset();
        guest.activate();
        guest.settle();
        drop(guest);
        assert_eq!(other.take().last(), Some(&Shown::Dropped));
    }
}

#[test]
fn a_display_that_panics_when_it_is_connected_or_goes_is_never_the_callers_trouble() {
    let mut guest = Guest::start(Builder::new());
    show(&mut guest, 0, 7, [64, 48]);
    for call in ["attach", "draw", "frame", "work", "drop"] {
        connect(&guest, 0, Monitor::new(64, 48), Brittle(call));
        guest.settle();
        assert!(soon(guest.device().disconnect(0)).expect("a scanout"));
    }
    connect(&guest, 0, Monitor::new(64, 48), Brittle("drop"));
    connect(&guest, 0, Monitor::new(64, 48), Brittle("detach"));
    guest.reset();
    guest.activate();
    guest.settle();
    connect(&guest, 0, Monitor::new(64, 48), Brittle("drop"));
    drop(guest);
}
