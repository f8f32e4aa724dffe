//! Item 25: suspension. The device does not offer it to a driver; its VMM may pause it, and then the same holds.

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::features::{EVENT_IDX, OFFERED};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Lane, Request};
use virtio_gpu_uring::{Builder, Monitor, Paused};

use crate::driver::{LANES, counted, powered_off, question, take, turns, used_ring, with_slow_flush};
use crate::kit;

#[track_caller]
fn pause(guest: &Guest) -> Paused {
    guest.device().pause().wait().expect("a device").expect("nothing that takes for ever")
}

fn resume(guest: &Guest) {
    guest.device().resume().wait().expect("a device");
}

#[test]
fn spec_25_suspension_is_not_offered() {
    const SUSPEND: u64 = 1 << 43;
    let guest = powered_off(Builder::new(), OFFERED);
    assert_eq!(guest.device().features() & SUSPEND, 0);
    guest.device().acknowledge(OFFERED | SUSPEND).expect_err("not offered");
}

#[test]
fn spec_25_a_paused_device_touches_no_queue_and_serves_all_when_it_goes_on() {
    for (features, kicked) in [(OFFERED, true), (OFFERED, false), (OFFERED & !EVENT_IDX, true)] {
        let (mut guest, told) = counted(Builder::new(), features);
        for lane in LANES {
            let _ = guest.submit_on(lane, &question(lane));
            take(&mut guest, lane);
        }
        let paused = pause(&guest);
        let state = |paused: &Paused| [paused.control, paused.cursor].map(|state| state.expect("a queue").next_avail);
        assert_eq!((state(&paused), paused.outstanding), ([1, 1], 0));
        let quiet = (LANES.map(|lane| used_ring(&mut guest, lane)), told.all(), guest.device().counters());
        let tokens = LANES.map(|lane| (0..10).map(|_| guest.add(lane, &question(lane))).collect::<Vec<_>>());
        for lane in LANES {
            let _ = guest.queue(lane).publish();
            if kicked {
                guest.kick(lane);
            }
        }
        turns(&guest);
        let still = (LANES.map(|lane| used_ring(&mut guest, lane)), told.all(), guest.device().counters());
        assert_eq!(still, quiet);
        assert_eq!(state(&pause(&guest)), [1, 1], "a second pause");
        resume(&guest);
        for (lane, tokens) in LANES.into_iter().zip(tokens) {
            tokens.into_iter().for_each(|token| drop(guest.wait_on(lane, token).ok()));
        }
        guest.assert_all_answered();
    }
}

#[test]
fn spec_25_buffers_in_flight_are_used_and_notified_before_the_device_is_paused() {
    let (mut guest, told, token, viewer) = with_slow_flush(OFFERED);
    // Asleep, as a driver that waits for this answer is.
    assert!(!guest.queue(Lane::Control).enable_interrupts());
    let before = told.queue(Lane::Control);
    let pausing = guest.device().pause();
    viewer.hold_frames(false);
    let paused = pausing.wait().expect("a device").expect("a frame that ends");
    assert_eq!(paused.outstanding, 0);
    assert_eq!(told.queue(Lane::Control), before + 1, "the driver was not notified");
    assert!(guest.has_answer(&token), "not used before the pause");
    let control = paused.control.expect("a queue");
    assert_eq!(control.next_avail, control.next_used);
    assert_eq!(control.next_used, used_ring(&mut guest, Lane::Control).1);
    resume(&guest);
    guest.settle();
}

#[test]
fn spec_25_a_configuration_change_is_notified_after_the_pause() {
    let (builder, _viewers) = kit::screens(Builder::new(), 1);
    let (mut guest, told) = counted(builder, OFFERED);
    let change = |guest: &Guest, width| {
        guest.device().change_monitor(0, Monitor::new(width, 600)).wait().expect("a device").expect("a monitor");
    };
    let config = || told.all()[2];
    pause(&guest);
    change(&guest, 800);
    change(&guest, 1024);
    turns(&guest);
    assert_eq!(config(), 0, "notified while paused");
    resume(&guest);
    assert_eq!(config(), 1);
    let mut events = [0; 4];
    guest.device().read_config(0, &mut events);
    assert_eq!(events, [1, 0, 0, 0]);
    assert_eq!(kit::words(&guest.command(&Request::display_info()).ok())[2], 1024);
    // It is told once.
    pause(&guest);
    resume(&guest);
    turns(&guest);
    assert_eq!(config(), 1);
    change(&guest, 800);
    assert_eq!(config(), 2);
}

#[test]
fn spec_25_what_waits_for_the_host_is_counted_and_answered_after_the_pause() {
    let service = HostService::listen();
    let (mut guest, told) = counted(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()), OFFERED);
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let poll = channel.poll(&mut guest);
    guest.settle();
    assert_eq!(pause(&guest).outstanding, 1);
    let quiet = (used_ring(&mut guest, Lane::Control), told.all());
    peer.send(b"while it was paused", &[]);
    turns(&guest);
    assert_eq!((used_ring(&mut guest, Lane::Control), told.all()), quiet);
    resume(&guest);
    assert_eq!(channel.wait(&mut guest, poll).data, b"while it was paused");
    guest.assert_all_answered();
}

#[test]
fn spec_25_a_reset_ends_a_pause() {
    let (builder, _viewers) = kit::screens(Builder::new(), 1);
    let (mut guest, told) = counted(builder, OFFERED);
    pause(&guest);
    guest.device().change_monitor(0, Monitor::new(800, 600)).wait().expect("a device").expect("a monitor");
    guest.reset();
    guest.activate();
    guest.settle();
    assert_eq!(
        (told.all()[2], guest.take_config_changes()),
        (0, 0),
        "notified of what the driver asks for when it starts"
    );
    guest.assert_all_answered();
    // And a resumption of what was not paused is nothing.
    resume(&guest);
    guest.settle();
}
