//! Ends of a device that has work under way which takes its time: the host's services do not wait for that.

use std::os::fd::OwnedFd;
use std::time::Duration;

use virtio_gpu_uring::testing::{Guest, HostPeer, Request};
use virtio_gpu_uring::{Builder, Limits};

use crate::memory::{Call, SlowMemory};
use crate::{Scene, drain, event_holders, memfd, peek, until};

/// A guest in whose window something is being placed, and what its service has.
struct Busy {
    guest: Guest,
    peer: HostPeer,
    event: OwnedFd,
    reader: OwnedFd,
    placing: Call,
}

impl Busy {
    #[track_caller]
    fn new() -> Self {
        let memory = SlowMemory::default();
        // Longer than any test waits: nothing is set aside meanwhile.
        let limits = Limits { deadline: Duration::from_secs(600), ..Limits::default() };
        let mut scene = Scene::with(Builder::new().limits(limits).window(memory.clone()));
        let file = memfd("life-stuck", 4096);
        let id = scene.hand(&[&file])[0].0;
        let (_, event) = scene.watched();
        let (_, reader) = scene.write_pipe();
        scene.guest.command(&Request::host_blob(1, 20, u64::from(id), 4096)).ok();
        memory.places_later(true);
        let _ = scene.guest.submit(&Request::map(20, 0));
        let placing = memory.next();
        let _ = scene.poll();
        let Scene { guest, peer, .. } = scene;
        Self { guest, peer, event, reader, placing }
    }
}

/// While the place is still under way.
#[track_caller]
fn assert_closed(peer: &HostPeer, event: &OwnedFd, reader: &OwnedFd) {
    until("the service sees that its client has gone", || peek(peer) == Ok(0));
    until("eventfds and pipes are closed", || event_holders(event) == 1 && !drain(reader).1);
}

#[test]
fn a_reset_never_keeps_a_service_waiting_for_work_that_takes_its_time() {
    let Busy { guest, peer, event, reader, placing } = Busy::new();
    let reset = guest.device().reset();
    assert_closed(&peer, &event, &reader);
    placing.answer(Ok(()));
    reset.wait().expect("a device");
    let counters = guest.device().counters();
    assert_eq!((counters.channels_opened, counters.channels_closed), (1, 1));
}

#[test]
fn a_stop_never_keeps_a_service_waiting_for_work_that_takes_its_time() {
    let Busy { guest, peer, event, reader, placing } = Busy::new();
    let stop = guest.device().stop();
    assert_closed(&peer, &event, &reader);
    placing.answer(Ok(()));
    stop.wait().expect("a device");
}

#[test]
fn a_drop_never_keeps_a_service_waiting_for_work_that_takes_its_time() {
    let Busy { guest, peer, event, reader, placing } = Busy::new();
    let thread = std::thread::spawn(move || drop(guest));
    assert_closed(&peer, &event, &reader);
    placing.answer(Ok(()));
    thread.join().expect("no panic");
}

#[test]
fn a_hang_up_never_waits_for_work_that_takes_its_time() {
    let Busy { guest, peer, placing, .. } = Busy::new();
    assert_eq!(guest.device().hang_up(virtio_gpu_uring::ChannelType::PIPEWIRE).wait(), Ok(1));
    assert_eq!(peek(&peer), Ok(0));
    placing.answer(Ok(()));
}

#[test]
fn a_destroyed_context_never_keeps_its_service_waiting_for_a_mapping() {
    let Busy { mut guest, peer, event, reader, placing } = Busy::new();
    guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!((peek(&peer), event_holders(&event), drain(&reader).1), (Ok(0), 1, false));
    placing.answer(Ok(()));
}
