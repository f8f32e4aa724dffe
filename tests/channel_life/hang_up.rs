//! `Device::hang_up`: the VMM closes the channels of one type. The services see it at once, guests hear of it, running or
//! when they run again, and nobody else does.

use std::os::fd::AsFd;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
use virtio_gpu_uring::testing::{Guest, GuestChannel, GuestOptions, HostPeer, HostService, Lane, Request};
use virtio_gpu_uring::{Builder, DeviceGone, Limits};
use vm_memory::GuestAddress;

use crate::{RAM, Scene, assert_end_of_file, assert_lives, drain, event_holders, has_reader, peek, ring, turns, until};

#[track_caller]
fn hang_up(guest: &Guest, channel_type: ChannelType) -> usize {
    guest.device().hang_up(channel_type).wait().expect("a device")
}

/// The whole of guest memory, queues included, and how often the driver was interrupted.
fn look(guest: &Guest) -> (u64, u64, Vec<u8>) {
    let counters = guest.device().counters();
    let ram = guest.ram().read(GuestAddress(0), RAM);
    (counters.interrupts + counters.interrupts_suppressed, counters.commands, ram)
}

/// Kicked, and given every chance, the device does nothing to its guest.
#[track_caller]
fn assert_still(guest: &mut Guest, since: &(u64, u64, Vec<u8>)) {
    for _ in 0..4 {
        guest.kick(Lane::Control);
        turns(guest);
    }
    let now = look(guest);
    assert_eq!((now.0, now.1), (since.0, since.1), "interrupts and commands");
    assert_eq!(now.2.iter().zip(&since.2).position(|(now, since)| now != since), None, "guest memory was written");
}

/// Two channels of PipeWire's type and one of Wayland's, with what else the host has of them.
struct Desk {
    guest: Guest,
    channels: [GuestChannel; 3],
    peers: [HostPeer; 3],
    services: [HostService; 2],
}

impl Desk {
    fn new() -> Self {
        let services = [HostService::listen(), HostService::listen()];
        let builder = Builder::new()
            .host_socket(ChannelType::PIPEWIRE, services[0].path())
            .host_socket(ChannelType::WAYLAND, services[1].path());
        let mut guest = Guest::with_options(builder, GuestOptions { ram: RAM, ..GuestOptions::default() });
        let mut open = |context: u32, channel_type| GuestChannel::open(&mut guest, context, context * 10, channel_type);
        let channels = [open(1, ChannelType::PIPEWIRE), open(2, ChannelType::WAYLAND), open(3, ChannelType::PIPEWIRE)];
        let peers = [services[0].accept(), services[1].accept(), services[0].accept()];
        Self { guest, channels, peers, services }
    }

    fn closed(&self) -> [bool; 3] {
        self.peers.each_ref().map(|peer| peek(peer) == Ok(0))
    }

    fn counted(&self) -> (u64, u64) {
        let counters = self.guest.device().counters();
        (counters.channels_opened, counters.channels_closed)
    }
}

#[test]
fn no_channel_of_another_type_is_ever_hung_up() {
    let mut desk = Desk::new();
    for unknown in [ChannelType::NONE, ChannelType::X11, ChannelType(u32::MAX)] {
        assert_eq!(hang_up(&desk.guest, unknown), 0);
    }
    let polls = [0, 2].map(|which: usize| desk.channels[which].poll(&mut desk.guest));
    let other = desk.channels[1].poll(&mut desk.guest);
    desk.guest.settle();
    assert_eq!(hang_up(&desk.guest, ChannelType::PIPEWIRE), 2);
    assert_eq!(desk.closed(), [true, false, true], "when the reply is there");
    for (which, poll) in [0, 2].into_iter().zip(polls) {
        assert_end_of_file(&mut desk.guest, &desk.channels[which], [poll]);
    }
    assert!(!desk.guest.has_answer(&other), "a channel of another type was told of the end");
    assert_eq!((hang_up(&desk.guest, ChannelType::PIPEWIRE), desk.counted()), (0, (3, 2)));
    desk.peers[1].send(b"still", &[]);
    assert_eq!(desk.channels[1].wait(&mut desk.guest, other).data, b"still");
    assert_lives(&mut desk.guest, &mut desk.channels[1], &desk.peers[1]);
    assert_eq!((hang_up(&desk.guest, ChannelType::WAYLAND), desk.closed()), (1, [true; 3]));
    until("the channel is counted", || desk.counted() == (3, 3));
    desk.guest.assert_all_answered();
}

#[test]
fn a_guest_that_was_hung_up_on_is_never_kept_from_connecting_anew() {
    let mut desk = Desk::new();
    assert_eq!(hang_up(&desk.guest, ChannelType::PIPEWIRE), 2);
    // A new context at once, and one under the old number.
    let mut anew = GuestChannel::open(&mut desk.guest, 9, 90, ChannelType::PIPEWIRE);
    let peer = desk.services[0].accept();
    assert_lives(&mut desk.guest, &mut anew, &peer);
    desk.guest.command(&Request::ctx_destroy(1)).ok();
    for ring in [10, 11] {
        desk.guest.command(&Request::unref(ring)).ok();
    }
    let mut again = GuestChannel::open(&mut desk.guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = desk.services[0].accept();
    assert_lives(&mut desk.guest, &mut again, &peer);
    assert_eq!(desk.counted(), (5, 2));
    assert_eq!(hang_up(&desk.guest, ChannelType::PIPEWIRE), 2);
    until("the channels are counted", || desk.counted() == (5, 4));
}

#[test]
fn whoever_asks_after_a_hang_up_never_waits_and_is_told_nothing_unasked() {
    let mut scene = Scene::new();
    scene.peer.send(b"last", &[]);
    let last = scene.channel.receive(&mut scene.guest);
    // Not read any more: it goes with the channel.
    scene.peer.send(b"too late", &[]);
    assert_eq!(hang_up(&scene.guest, ChannelType::PIPEWIRE), 1);
    turns(&scene.guest);
    assert_eq!(scene.channel.message(&scene.guest), last, "the end was told before anybody asked");
    for _ in 0..3 {
        let poll = scene.poll();
        assert_end_of_file(&mut scene.guest, &scene.channel, [poll]);
    }
    let kind = scene.channel.submit(&mut scene.guest, &Request::stream_send(b"x", &[])).kind();
    assert!((0x1200..0x1206).contains(&kind), "sent to a channel that was hung up: {kind:#x}");
    assert_eq!((scene.channels(), scene.guest.device().counters().messages_received), ((1, 1), 1));
    scene.guest.assert_all_answered();
}

#[test]
fn a_channel_that_has_ended_is_never_counted_among_those_hung_up() {
    // By its service's end, by its context's, by its ring's, by a backlog that is full.
    let mut scene = Scene::new();
    let poll = scene.poll();
    scene.peer.stream().shutdown(std::net::Shutdown::Both).expect("shut down");
    scene.guest.wait(poll).ok();
    assert_eq!((hang_up(&scene.guest, ChannelType::PIPEWIRE), scene.channels()), (0, (1, 1)));
    let mut scene = Scene::new();
    scene.guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!((hang_up(&scene.guest, ChannelType::PIPEWIRE), scene.channels()), (0, (1, 1)));
    let mut scene = Scene::new();
    let poll = scene.poll();
    scene.guest.command(&Request::ctx_detach(1, 11)).ok();
    scene.peer.send(b"x", &[]);
    scene.guest.wait(poll).ok();
    assert_eq!((hang_up(&scene.guest, ChannelType::PIPEWIRE), scene.channels()), (0, (1, 1)));
    let mut scene = Scene::with(Builder::new().limits(Limits { channel_backlog: 4096, ..Limits::default() }));
    while scene.channel.submit(&mut scene.guest, &Request::stream_send(&[1; 30_000], &[])).kind() < 0x1200 {}
    assert_eq!(hang_up(&scene.guest, ChannelType::PIPEWIRE), 0);
    until("the channel is counted", || scene.channels() == (1, 1));
}

#[test]
fn a_channel_that_is_hung_up_on_keeps_no_eventfd_and_no_pipe() {
    for destroyed_at_once in [false, true] {
        let mut scene = Scene::new();
        let (id, event) = scene.watched();
        let (_, reader) = scene.write_pipe();
        let writer = scene.read_pipe(0);
        let poll = scene.poll();
        scene.guest.settle();
        assert_eq!(hang_up(&scene.guest, ChannelType::PIPEWIRE), 1);
        assert_eq!(event_holders(&event), 1, "the eventfd was open after the hang-up");
        assert!(!has_reader(&writer) && !drain(&reader).1, "a pipe was open after the hang-up");
        if !destroyed_at_once {
            assert_end_of_file(&mut scene.guest, &scene.channel, [poll]);
            ring(&event, 1);
            // Its items are gone with the channel, and nobody waits for the context's end.
            scene.refused(&Request::stream_write(id, &1u64.to_ne_bytes(), false), ERR_INVALID_PARAMETER);
        }
        scene.guest.command(&Request::ctx_destroy(1)).ok();
        assert_eq!(scene.channels(), (1, 1));
        scene.guest.settle();
    }
}

#[test]
fn nothing_of_a_hang_up_touches_a_paused_guest_before_it_goes_on() {
    let mut desk = Desk::new();
    let event = crate::event();
    desk.peers[0].send(b"e", &[event.as_fd()]);
    let id = desk.channels[0].receive(&mut desk.guest).identifiers[0].0;
    desk.channels[0].submit(&mut desk.guest, &Request::stream_watch(id)).ok();
    let polls = [desk.channels[0].poll(&mut desk.guest), desk.channels[0].poll(&mut desk.guest)];
    let other = desk.channels[1].poll(&mut desk.guest);
    desk.guest.settle();
    let paused = desk.guest.device().pause().wait().expect("a device").expect("nothing is under way");
    assert_eq!(paused.outstanding, 3);
    let before = look(&desk.guest);
    assert_eq!(hang_up(&desk.guest, ChannelType::PIPEWIRE), 2);
    assert_eq!(desk.closed(), [true, false, true], "a service waits for a guest that is paused");
    ring(&event, 1);
    desk.peers[1].send(b"later", &[]);
    assert_eq!(hang_up(&desk.guest, ChannelType::PIPEWIRE), 0);
    assert_still(&mut desk.guest, &before);
    desk.guest.device().resume().wait().expect("a device");
    assert_end_of_file(&mut desk.guest, &desk.channels[0], polls);
    assert_eq!(desk.channels[1].wait(&mut desk.guest, other).data, b"later");
    let late = desk.channels[2].poll(&mut desk.guest);
    assert_end_of_file(&mut desk.guest, &desk.channels[2], [late]);
    assert_eq!((desk.counted(), desk.guest.device().counters().items_read), ((3, 2), 0));
    desk.guest.assert_all_answered();
}

#[test]
fn a_guest_that_is_paused_in_the_moment_of_a_hang_up_never_loses_a_fence() {
    for round in 0..60 {
        let mut scene = Scene::new();
        let polls = [scene.poll(), scene.poll()];
        scene.guest.settle();
        let device = scene.guest.device();
        let (hung_up, paused) = if round % 2 == 0 {
            let hung_up = device.hang_up(ChannelType::PIPEWIRE);
            (hung_up, device.pause())
        } else {
            let paused = device.pause();
            (device.hang_up(ChannelType::PIPEWIRE), paused)
        };
        assert_eq!(hung_up.wait(), Ok(1));
        paused.wait().expect("a device").expect("nothing is under way");
        let before = look(&scene.guest);
        turns(&scene.guest);
        assert!(look(&scene.guest) == before, "a paused guest was touched");
        scene.guest.device().resume().wait().expect("a device");
        assert_end_of_file(&mut scene.guest, &scene.channel, polls);
        assert_eq!((scene.channels(), peek(&scene.peer)), ((1, 1), Ok(0)));
        scene.guest.assert_all_answered();
    }
}

#[test]
fn a_reset_of_a_paused_device_never_leaves_what_was_hung_up() {
    let mut desk = Desk::new();
    for round in 1..=3 {
        let _polls = [0, 1, 2].map(|which: usize| desk.channels[which].poll(&mut desk.guest));
        desk.guest.settle();
        desk.guest.device().pause().wait().expect("a device").expect("nothing is under way");
        assert_eq!(hang_up(&desk.guest, ChannelType::PIPEWIRE), 2);
        let before = look(&desk.guest);
        desk.guest.device().reset().wait().expect("a device");
        assert_eq!((desk.closed(), desk.counted()), ([true; 3], (3 * round, 3 * round)));
        assert!(look(&desk.guest) == before, "a reset wrote to guest memory");
        let Desk { mut guest, services, .. } = desk;
        guest.reset();
        guest.activate();
        let mut open = |context: u32, kind| GuestChannel::open(&mut guest, context, context * 10, kind);
        let channels = [open(1, ChannelType::PIPEWIRE), open(2, ChannelType::WAYLAND), open(3, ChannelType::PIPEWIRE)];
        let peers = [services[0].accept(), services[1].accept(), services[0].accept()];
        desk = Desk { guest, channels, peers, services };
        for (channel, peer) in desk.channels.iter_mut().zip(&desk.peers) {
            assert_lives(&mut desk.guest, channel, peer);
        }
    }
}

#[test]
fn a_paused_device_with_channels_hung_up_never_keeps_anything_when_it_is_dropped_or_stopped() {
    for stopped in [true, false] {
        let mut desk = Desk::new();
        let event = crate::event();
        desk.peers[0].send(b"e", &[event.as_fd()]);
        let id = desk.channels[0].receive(&mut desk.guest).identifiers[0].0;
        desk.channels[0].submit(&mut desk.guest, &Request::stream_watch(id)).ok();
        let _poll = desk.channels[0].poll(&mut desk.guest);
        desk.guest.settle();
        desk.guest.device().pause().wait().expect("a device").expect("nothing is under way");
        assert_eq!(hang_up(&desk.guest, ChannelType::PIPEWIRE), 2);
        if stopped {
            desk.guest.device().stop().wait().expect("a device");
            assert_eq!(desk.counted(), (3, 3));
        }
        let Desk { guest, peers, .. } = desk;
        drop(guest);
        assert!(peers.iter().all(|peer| peek(peer) == Ok(0)));
        assert_eq!(event_holders(&event), 1);
    }
}

#[test]
fn nobody_is_hung_up_on_where_nobody_is() {
    let device = Builder::new().host_socket(ChannelType::PIPEWIRE, "/nonexistent").spawn().expect("a device");
    let mut guest = Guest::powered_off(device, GuestOptions::default());
    assert_eq!(hang_up(&guest, ChannelType::PIPEWIRE), 0);
    guest.activate();
    let _without_init = GuestChannel::create(&mut guest, 1, 10);
    assert_eq!(hang_up(&guest, ChannelType::PIPEWIRE), 0);
    let init = Request::stream_init(10, 11, 0, Some(1));
    guest.command(&Request::submit(1, &init)).ok();
    assert_eq!(hang_up(&guest, ChannelType::NONE), 0, "a context without a channel");
    guest.reset();
    assert_eq!(hang_up(&guest, ChannelType::PIPEWIRE), 0);
    guest.device().stop().wait().expect("a device");
    assert_eq!(guest.device().hang_up(ChannelType::PIPEWIRE).wait(), Err(DeviceGone));
}

/// Hang-ups, messages and wake-ups race: whatever comes first, no fence waits and no channel is counted twice.
#[test]
fn a_hang_up_among_messages_and_wake_ups_never_leaves_a_fence_waiting() {
    let mut scene = Scene::new();
    for round in 1..=45u64 {
        let (_, event) = scene.watched();
        let polls: Vec<_> = (0..4).map(|_| scene.poll()).collect();
        scene.peer.send(b"one", &[]);
        ring(&event, 1);
        if round % 3 == 0 {
            scene.guest.settle();
        }
        assert_eq!(hang_up(&scene.guest, ChannelType::PIPEWIRE), 1);
        assert_eq!(peek(&scene.peer).map_err(|_| ()).unwrap_or(0), 0, "the service has a connection");
        assert_end_of_file(&mut scene.guest, &scene.channel, polls);
        assert_eq!(scene.channels(), (round, round));
        let Scene { mut guest, service, .. } = scene;
        guest.command(&Request::ctx_destroy(1)).ok();
        assert_eq!(event_holders(&event), 1);
        for ring in [10, 11] {
            guest.command(&Request::unref(ring)).ok();
        }
        guest.assert_all_answered();
        scene = Scene::on(guest, service);
    }
}

/// The service goes, the VMM hangs up and the guest destroys its context, all at once.
#[test]
fn an_end_from_three_sides_is_never_counted_twice_nor_leaves_a_fence_waiting() {
    let mut scene = Scene::new();
    for round in 1..=45u64 {
        let (_, event) = scene.watched();
        let polls: Vec<_> = (0..3).map(|_| scene.poll()).collect();
        let Scene { mut guest, service, peer, .. } = scene;
        let leaves = std::thread::spawn(move || drop(peer));
        ring(&event, 1);
        let hung_up = guest.device().hang_up(ChannelType::PIPEWIRE);
        let destroyed = (round % 3 != 0).then(|| guest.submit(&Request::ctx_destroy(1)));
        assert!(hung_up.wait().expect("a device") <= 1);
        for poll in polls {
            guest.wait(poll).ok();
        }
        leaves.join().expect("no panic");
        match destroyed {
            Some(token) => drop(guest.wait(token).ok()),
            None => drop(guest.command(&Request::ctx_destroy(1)).ok()),
        }
        assert_eq!(event_holders(&event), 1);
        let counters = guest.device().counters();
        assert_eq!((counters.channels_opened, counters.channels_closed), (round, round));
        guest.assert_all_answered();
        for ring in [10, 11] {
            guest.command(&Request::unref(ring)).ok();
        }
        scene = Scene::on(guest, service);
    }
}
