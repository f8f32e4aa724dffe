//! The virtqueues from a guest's side: every layout of a chain, every way to break one, broken rings, notifications both
//! ways, and a pipeline that is full.
#![cfg(feature = "testing")]

mod chains;
mod full;
mod notifications;
mod rings;

use std::time::Instant;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{
    DEADLINE, Guest, GuestChannel, GuestOptions, HostPeer, HostService, Lane, Request, Used,
};
use virtio_gpu_uring::{Builder, Counters, Limits};

fn guest_with(features: u64) -> Guest {
    Guest::with_options(Builder::new(), GuestOptions { features, ..GuestOptions::default() })
}

/// Looks again until it is true.
#[track_caller]
fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let started = Instant::now();
    while !true_now() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}

fn counters(guest: &Guest) -> Counters {
    guest.device().counters()
}

/// The cursor queue answers, so that the device has had a turn and is alive.
#[track_caller]
fn cursor_lives(guest: &mut Guest) {
    for _ in 0..4 {
        let token = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
        guest.wait_on(Lane::Cursor, token).ok();
    }
}

/// Takes `count` chains from the used ring without sleeping for an interrupt, in the order in which they came back.
#[track_caller]
fn take_used(guest: &mut Guest, lane: Lane, count: usize) -> Vec<Used> {
    let mut taken = Vec::new();
    until("the chains have come back", || {
        taken.extend(std::iter::from_fn(|| guest.queue(lane).poll_used()));
        taken.len() >= count
    });
    assert_eq!(taken.len(), count, "more came back than were given");
    taken
}

/// A guest whose pipeline takes `in_flight` commands, with a channel and its host service.
fn with_channel(in_flight: usize) -> (Guest, GuestChannel, HostPeer) {
    let service = HostService::listen();
    let limits = Limits { commands_in_flight: in_flight, ..Limits::default() };
    let builder = Builder::new().limits(limits).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut guest = Guest::start(builder);
    let channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (guest, channel, peer)
}
