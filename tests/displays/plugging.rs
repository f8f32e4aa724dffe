//! Displays that are connected, changed and disconnected: what the guest is told, and what the display is shown.

use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Request, Screen, Shown};
use virtio_gpu_uring::{Builder, ConnectError, Format, Mode, Monitor, MonitorError};

use crate::{area, attached, connect, events, image, info, pattern, show, soon, with_screen};

#[test]
fn a_display_that_comes_late_is_never_left_without_the_whole_picture_and_the_cursor() {
    let mut guest = Guest::start(Builder::new().scanouts(2));
    show(&mut guest, 1, 7, [64, 48]);
    image(&mut guest, 8, [64, 64], 8);
    let update = guest.submit_on(Lane::Cursor, &Request::update_cursor(1, 8, (-3, 5), (1, 2)));
    guest.wait_on(Lane::Cursor, update).ok();
    guest.command(&Request::flush(7, [0, 0, 1, 1])).ok();
    let moved = guest.submit_on(Lane::Cursor, &Request::move_cursor(1, (9, -10)));
    guest.wait_on(Lane::Cursor, moved).ok();
    let (screen, viewer) = Screen::new();
    connect(&guest, 1, Monitor::new(64, 48), screen);
    let mut shown = viewer.take();
    let cursor = Shown::Cursor((9, -10), (1, 2), Format::B8G8R8A8, pattern(64, 64, 8));
    let at = shown.iter().position(|shown| *shown == cursor).expect("the cursor");
    shown.remove(at);
    let drawn = Shown::Drawn(area(64, 48), pattern(64, 48, 7));
    assert_eq!(shown, [attached(64, 48), drawn, Shown::Frame(area(64, 48))]);
    // From now on it is one like any other.
    guest.command(&Request::flush(7, [1, 2, 3, 4])).ok();
    let damage = virtio_gpu_uring::Area { x: 1, y: 2, width: 3, height: 4 };
    assert_eq!(viewer.take().last(), Some(&Shown::Frame(damage)));
}

#[test]
fn a_display_that_comes_late_never_shows_more_than_its_scanout_does() {
    let mut guest = Guest::start(Builder::new());
    image(&mut guest, 7, [64, 48], 7);
    guest.command(&Request::set_scanout(0, 7, [16, 8, 32, 24])).ok();
    let (screen, viewer) = Screen::new();
    connect(&guest, 0, Monitor::new(32, 24), screen);
    let whole = pattern(64, 48, 7);
    let rows = (8..32).flat_map(|y| whole[(y * 64 + 16) * 4..][..32 * 4].to_vec()).collect();
    let mut shown = viewer.take();
    shown.retain(|shown| *shown != Shown::CursorHidden);
    assert_eq!(shown, [attached(32, 24), Shown::Drawn(area(32, 24), rows), Shown::Frame(area(32, 24))]);
}

#[test]
fn a_display_that_comes_late_is_never_left_without_the_cursor_where_nothing_else_is_shown() {
    let mut guest = Guest::start(Builder::new());
    image(&mut guest, 8, [64, 64], 8);
    let update = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 8, (3, 5), (1, 2)));
    guest.wait_on(Lane::Cursor, update).ok();
    let (screen, viewer) = Screen::new();
    connect(&guest, 0, Monitor::new(64, 48), screen);
    let cursor = Shown::Cursor((3, 5), (1, 2), Format::B8G8R8A8, pattern(64, 64, 8));
    assert_eq!(viewer.take(), [cursor]);
    let hide = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 0, (4, 6), (0, 0)));
    guest.wait_on(Lane::Cursor, hide).ok();
    assert_eq!(viewer.take(), [Shown::CursorHidden]);
}

#[test]
fn a_large_picture_never_holds_up_the_call_that_connects_nor_comes_in_part() {
    const SIDE: u32 = 1500;
    let mut guest = Guest::start(Builder::new());
    show(&mut guest, 0, 7, [SIDE, SIDE]);
    for _ in 0..3 {
        let (screen, viewer) = Screen::new();
        connect(&guest, 0, Monitor::new(SIDE, SIDE), screen);
        let mut shown = Vec::new();
        crate::until("the picture is shown", || {
            guest.settle();
            shown.extend(viewer.take());
            shown.contains(&Shown::Frame(area(SIDE, SIDE)))
        });
        assert!(viewer.picture().2 == pattern(SIDE, SIDE, 7), "not the whole picture");
    }
}

#[test]
fn a_display_that_comes_before_anything_is_shown_is_never_told_of_it() {
    let mut guest = Guest::start(Builder::new());
    let (screen, viewer) = Screen::new();
    connect(&guest, 0, Monitor::new(64, 48), screen);
    guest.settle();
    assert_eq!(viewer.take(), []);
    show(&mut guest, 0, 7, [64, 48]);
    assert_eq!(viewer.take(), [attached(64, 48)], "pixels come with a flush");
    guest.command(&Request::set_scanout(0, 0, [0; 4])).ok();
    assert_eq!(viewer.take(), [Shown::Detached]);
    let (screen, viewer) = Screen::new();
    connect(&guest, 0, Monitor::new(64, 48), screen);
    guest.settle();
    assert_eq!(viewer.take(), []);
}

#[test]
fn a_display_that_is_replaced_or_disconnected_is_never_kept_nor_told_anything_more() {
    let (mut guest, first) = with_screen(Builder::new());
    show(&mut guest, 0, 7, [64, 48]);
    let _ = first.take();
    let (screen, second) = Screen::new();
    connect(&guest, 0, Monitor::new(80, 60), screen);
    assert_eq!(first.take().last(), Some(&Shown::Dropped));
    assert_eq!(info(&mut guest, 0), [0, 0, 80, 60, 1, 0]);
    assert!(soon(guest.device().disconnect(0)).expect("a scanout"));
    assert_eq!(second.take().last(), Some(&Shown::Dropped));
    assert_eq!(info(&mut guest, 0), [0; 6]);
    assert!(!soon(guest.device().disconnect(0)).expect("a scanout"), "there is none any more");
    // The guest does not know yet, and goes on.
    guest.command(&Request::flush(7, [0, 0, 64, 48])).ok();
    guest.command(&Request::set_scanout(0, 7, [0, 0, 32, 32])).ok();
    let moved = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (1, 1)));
    guest.wait_on(Lane::Cursor, moved).ok();
    assert_eq!((first.take(), second.take()), (vec![], vec![]));
}

#[test]
fn what_is_refused_never_changes_anything() {
    let (mut guest, viewer) = with_screen(Builder::new().scanouts(2));
    let before = (info(&mut guest, 0), info(&mut guest, 1), guest.device().config_generation());
    let huge = Monitor::new(1 << 20, 48);
    for scanout in [2, 16, u32::MAX] {
        let unknown = ConnectError::Scanout { scanout, count: 2 };
        let (screen, refused) = Screen::new();
        let connected = soon(guest.device().connect(scanout, Monitor::new(64, 48), screen));
        assert_eq!(connected, Err(unknown.clone()));
        assert_eq!(refused.take(), [Shown::Dropped]);
        assert_eq!(soon(guest.device().change_monitor(scanout, Monitor::new(64, 48))), Err(unknown.clone()));
        assert_eq!(soon(guest.device().disconnect(scanout)), Err(unknown));
    }
    let nobody = ConnectError::NotConnected { scanout: 1 };
    assert_eq!(soon(guest.device().change_monitor(1, Monitor::new(64, 48))), Err(nobody));
    let told = MonitorError::Size { width: 1 << 20, height: 48 };
    assert_eq!(soon(guest.device().change_monitor(0, huge.clone())), Err(told.into()));
    let (screen, refused) = Screen::new();
    assert_eq!(soon(guest.device().connect(0, huge, screen)), Err(told.into()));
    assert_eq!(refused.take(), [Shown::Dropped]);
    assert!(!soon(guest.device().disconnect(1)).expect("a scanout"));
    let after = (info(&mut guest, 0), info(&mut guest, 1), guest.device().config_generation());
    assert_eq!(after, before);
    assert_eq!((events(&guest), guest.take_config_changes()), (0, 0));
    assert_eq!(viewer.take(), [], "the display has gone");
}

#[test]
fn a_device_that_is_not_active_never_refuses_a_display_nor_tells_of_it() {
    let device = Builder::new().scanouts(3).spawn().expect("a device");
    let mut guest = Guest::powered_off(device, GuestOptions::default());
    let (screen, _first) = Screen::new();
    connect(&guest, 0, Monitor::new(64, 48), screen);
    let (screen, second) = Screen::new();
    connect(&guest, 2, Monitor::new(64, 48), screen);
    let changed = Monitor { preferred: Mode::new(320, 200), position: (64, 10), ..Monitor::new(1, 1) };
    soon(guest.device().change_monitor(0, changed)).expect("changed");
    assert!(soon(guest.device().disconnect(2)).expect("a scanout"));
    assert_eq!(second.take(), [Shown::Dropped]);
    assert_eq!(events(&guest), 0, "a driver that is not up asks by itself");
    guest.activate();
    assert_eq!(info(&mut guest, 0), [64, 10, 320, 200, 1, 0]);
    assert_eq!((info(&mut guest, 1), info(&mut guest, 2)), ([0; 6], [0; 6]));
    assert_eq!((events(&guest), guest.take_config_changes()), (0, 0));
}

#[test]
fn what_is_shown_never_changes_with_the_monitor_before_the_guest_sets_a_mode() {
    let (mut guest, viewer) = with_screen(Builder::new());
    show(&mut guest, 0, 7, [64, 48]);
    let _ = viewer.take();
    soon(guest.device().change_monitor(0, Monitor::new(800, 600))).expect("changed");
    guest.command(&Request::flush(7, [0, 0, 64, 48])).ok();
    let shown = viewer.take();
    assert_eq!(shown, [Shown::Drawn(area(64, 48), pattern(64, 48, 7)), Shown::Frame(area(64, 48))]);
    assert_eq!(info(&mut guest, 0), [0, 0, 800, 600, 1, 0]);
    image(&mut guest, 8, [800, 600], 8);
    guest.command(&Request::set_scanout(0, 8, [0, 0, 800, 600])).ok();
    assert_eq!(viewer.take(), [attached(800, 600)]);
}

#[test]
fn a_display_that_asks_is_never_refused_its_picture_and_cursor() {
    let (mut guest, viewer) = with_screen(Builder::new().scanouts(2));
    soon(guest.device().redraw(0)).expect("a display");
    assert_eq!(viewer.take(), [Shown::CursorHidden], "nothing is shown");
    show(&mut guest, 0, 7, [64, 48]);
    image(&mut guest, 8, [64, 64], 8);
    let update = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 8, (3, 5), (1, 2)));
    guest.wait_on(Lane::Cursor, update).ok();
    for _ in 0..2 {
        let _ = viewer.take();
        soon(guest.device().redraw(0)).expect("a display");
        guest.settle();
        let mut shown = viewer.take();
        let cursor = Shown::Cursor((3, 5), (1, 2), Format::B8G8R8A8, pattern(64, 64, 8));
        let at = shown.iter().position(|shown| *shown == cursor).expect("the cursor");
        shown.remove(at);
        let drawn = Shown::Drawn(area(64, 48), pattern(64, 48, 7));
        assert_eq!(shown, [attached(64, 48), drawn, Shown::Frame(area(64, 48))]);
    }
    let (unknown, nobody) = (ConnectError::Scanout { scanout: 2, count: 2 }, ConnectError::NotConnected { scanout: 1 });
    for (scanout, error) in [(2, unknown), (1, nobody)] {
        assert_eq!(soon(guest.device().redraw(scanout)), Err(error.clone()));
        assert_eq!(soon(guest.device().resize(scanout, 64, 48)), Err(error));
    }
    assert_eq!((events(&guest), guest.take_config_changes()), (0, 0), "the guest is told of it");
}

#[test]
fn a_resize_never_changes_anything_but_the_size() {
    let monitor = Monitor { name: "Window".into(), serial: 9, position: (5, 6), ..Monitor::new(64, 48) };
    let (screen, _viewer) = Screen::new();
    let mut guest = Guest::start(Builder::new().display(0, monitor, screen));
    soon(guest.device().resize(0, 1234, 567)).expect("resized");
    assert_eq!((events(&guest), guest.take_config_changes()), (1, 1));
    assert_eq!(info(&mut guest, 0), [5, 6, 1234, 567, 1, 0]);
    let edid = guest.command(&Request::get_edid(0)).ok();
    assert!(edid.windows(6).any(|bytes| bytes == b"Window"), "it has another name now");
    let generation = guest.device().config_generation();
    for (width, height) in [(0, 48), (64, 0), (u32::MAX, 48), (1 << 16, 1)] {
        let refused = soon(guest.device().resize(0, width, height));
        assert_eq!(refused, Err(MonitorError::Size { width, height }.into()));
    }
    assert_eq!((info(&mut guest, 0), guest.device().config_generation()), ([5, 6, 1234, 567, 1, 0], generation));
}

#[test]
fn a_reset_never_leaves_a_picture_or_a_cursor_on_a_display() {
    let (mut guest, viewer) = with_screen(Builder::new());
    for _ in 0..3 {
        show(&mut guest, 0, 7, [64, 48]);
        image(&mut guest, 8, [64, 64], 8);
        let update = guest.submit_on(Lane::Cursor, &Request::update_cursor(0, 8, (3, 5), (0, 0)));
        guest.wait_on(Lane::Cursor, update).ok();
        let _ = viewer.take();
        guest.reset();
        let shown = viewer.take();
        assert_eq!(shown, [Shown::Detached, Shown::CursorHidden]);
        // The display is still there for the next driver, and one that comes now is shown nothing.
        guest.activate();
        assert_eq!(info(&mut guest, 0), [0, 0, 64, 48, 1, 0]);
        let flush = guest.command(&Request::flush(7, [0, 0, 64, 48]));
        flush.expect_error(virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_RESOURCE_ID);
        assert_eq!(viewer.take(), []);
    }
    guest.reset();
    let (screen, next) = Screen::new();
    connect(&guest, 0, Monitor::new(64, 48), screen);
    guest.activate();
    guest.settle();
    assert_eq!(next.take(), []);
}

#[test]
fn no_display_outlives_its_device_and_none_is_dropped_twice() {
    for stop in [false, true] {
        let (mut guest, first) = with_screen(Builder::new().scanouts(3));
        let (screen, second) = Screen::new();
        connect(&guest, 2, Monitor::new(64, 48), screen);
        show(&mut guest, 0, 7, [64, 48]);
        let _ = (first.take(), second.take());
        if stop {
            soon(guest.device().stop());
            let (screen, refused) = Screen::new();
            assert!(crate::ends(guest.device().connect(1, Monitor::new(64, 48), screen)).is_err());
            assert_eq!(refused.take(), [Shown::Dropped]);
        }
        drop(guest);
        assert_eq!(first.take(), [Shown::Detached, Shown::Dropped]);
        assert_eq!(second.take(), [Shown::Dropped]);
    }
}
