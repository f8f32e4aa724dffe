//! Pauses at every point of a device's life: before the driver is up, twice, and until a reset or the end.

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{GuestChannel, HostService, Lane, Request, Screen, Shown};
use virtio_gpu_uring::{Builder, Monitor};
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::{RAM, Stage, small, soon};

#[test]
fn a_pause_before_the_driver_is_up_never_fails_and_holds_until_the_resume() {
    let mut stage = Stage::powered_off(Builder::new(), small(true));
    for _ in 0..2 {
        let paused = stage.pause();
        assert_eq!((paused.control, paused.cursor, paused.outstanding), (None, None, 0));
    }
    stage.guest.activate();
    let token = stage.guest.submit(&Request::display_info());
    stage.assert_still();
    let control = stage.pause().control.expect("an active queue");
    assert_eq!((control.next_avail, control.next_used), (0, 0));
    stage.resume();
    stage.guest.wait(token).ok();
    stage.end();
}

#[test]
fn neither_a_second_pause_nor_a_second_resume_does_anything() {
    let mut stage = Stage::start(Builder::new(), small(true));
    // Nothing is paused yet.
    stage.resume();
    stage.guest.settle();
    let first = stage.pause();
    let token = stage.guest.submit(&Request::display_info());
    assert_eq!(stage.pause(), first);
    stage.assert_still();
    assert_eq!(stage.pause(), first);
    stage.resume();
    stage.guest.wait(token).ok();
    stage.resume();
    stage.resume();
    stage.guest.settle();
    let next = stage.pause().control.expect("an active queue");
    let control = first.control.expect("an active queue");
    assert_eq!((next.next_avail, next.next_used), (control.next_avail + 2, control.next_used + 2));
    stage.end();
}

#[test]
fn a_pause_never_outlives_a_reset() {
    let service = HostService::listen();
    let builder = Builder::new().scanouts(2).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut stage = Stage::start(builder, small(true));
    for _ in 0..5 {
        let mut channel = GuestChannel::open(&mut stage.guest, 1, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        let _waits = channel.poll(&mut stage.guest);
        stage.guest.settle();
        assert_eq!(stage.pause().outstanding, 1);
        let (screen, _viewer) = Screen::new();
        soon(stage.guest.device().connect(1, Monitor::new(640, 480), screen)).expect("connected");
        let _never_taken = stage.guest.submit(&Request::display_info());
        peer.send(b"late", &[]);
        stage.guest.reset();
        // A connection that ends with something unread is an error to the other side, and an end all the same.
        let end = std::io::Read::read(&mut peer.stream(), &mut [0]);
        assert!(!matches!(end, Ok(1..)), "the channel outlives the reset");
        stage.guest.activate();
        stage.guest.settle();
        assert_eq!(stage.guest.take_config_changes(), 0, "a change of before the reset is told after it");
        let mut events = [0xff];
        stage.guest.device().read_config(0, &mut events);
        assert_eq!(events, [0]);
        stage.guest.assert_all_answered();
    }
    // A pause of a device that was reset is as before.
    let paused = stage.pause();
    stage.assert_still();
    assert_eq!(stage.pause(), paused);
    stage.end();
}

#[test]
fn the_end_of_a_paused_device_never_waits_nor_touches_the_guest() {
    for stop in [true, false] {
        let (screen, viewer) = Screen::new();
        let mut stage = Stage::start(Builder::new().display(0, Monitor::new(64, 64), screen), small(true));
        stage.guest.settle();
        stage.pause();
        let _never_taken = stage.guest.submit(&Request::display_info());
        let ram = stage.guest.ram().clone();
        let before = ram.read(GuestAddress(0), RAM);
        if stop {
            soon(stage.guest.device().stop());
            assert!(stage.guest.device().resume().wait().is_err(), "it is gone");
        }
        stage.end();
        assert!(ram.read(GuestAddress(0), RAM) == before, "guest memory was written");
        assert_eq!(viewer.take(), [Shown::Dropped]);
    }
}

#[test]
fn a_queue_that_the_driver_does_not_use_never_has_a_state() {
    let mut stage = Stage::powered_off(Builder::new(), small(true));
    stage.guest.device().acknowledge(virtio_gpu_uring::protocol::features::OFFERED).expect("served");
    let mut activation = stage.guest.activation();
    activation.cursor.queue.set_ready(false);
    soon(stage.guest.device().activate(activation)).expect("activated");
    stage.guest.settle();
    let paused = stage.pause();
    assert!(paused.control.is_some() && paused.cursor.is_none(), "{paused:?}");
    stage.assert_still();
    stage.resume();
    stage.guest.settle();
    stage.end();
}

#[test]
fn a_broken_queue_never_keeps_a_device_from_pausing() {
    let mut stage = Stage::start(Builder::new(), small(true));
    stage.guest.settle();
    let _needed = stage.guest.queue(Lane::Cursor).publish_raw_head(999);
    stage.guest.kick(Lane::Cursor);
    crate::until("it is noticed", || stage.guest.needs_resets() == 1);
    stage.pause();
    stage.assert_still();
    stage.resume();
    stage.guest.settle();
    assert_eq!(stage.guest.needs_resets(), 1);
    stage.end();
}
