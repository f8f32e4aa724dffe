//! A channel ring that the guest takes back while something is about to come: that channel ends alone, and the pages are the
//! guest's.

use std::os::fd::{AsFd, OwnedFd};

use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{Guest, GuestChannel, GuestOptions, HostPeer, HostService, Request, Token};
use vm_memory::GuestAddress;

use crate::{RAM, Scene, UNTOUCHED, event, event_holders, peek, ring, turns};

/// A channel whose ring this test lays out, as context 1 with resources 10 and 11, and another one, context 2.
struct Taken {
    guest: Guest,
    peer: HostPeer,
    page: (u64, u32),
    event: OwnedFd,
    other: GuestChannel,
    other_peer: HostPeer,
    _service: HostService,
}

fn credit(fence: u64) -> Request {
    Request::submit(1, &Request::stream_poll()).fenced(fence).on_ring(1)
}

impl Taken {
    /// With a watched eventfd.
    #[track_caller]
    fn new() -> Self {
        let service = HostService::listen();
        let builder = Builder::new().host_socket(ChannelType::PIPEWIRE, service.path());
        let mut guest = Guest::with_options(builder, GuestOptions { ram: RAM, ..GuestOptions::default() });
        guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
        let page = guest.page_range(4096);
        for (resource, range) in [(10, guest.page_range(4096)), (11, page)] {
            guest.command(&Request::guest_blob(resource, 4096, &[range])).ok();
            guest.command(&Request::ctx_attach(1, resource)).ok();
        }
        let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, Some(1));
        guest.command(&Request::submit(1, &init)).ok();
        let peer = service.accept();
        let event = event();
        peer.send(b"x", &[event.as_fd()]);
        guest.command(&credit(1)).ok();
        guest.command(&Request::submit(1, &Request::stream_watch(1))).ok();
        guest.ram().write(GuestAddress(page.0), &[UNTOUCHED; 4096]);
        let other = GuestChannel::open(&mut guest, 2, 30, ChannelType::PIPEWIRE);
        let other_peer = service.accept();
        Self { guest, peer, page, event, other, other_peer, _service: service }
    }

    /// The channel has ended, alone, and its fences have signalled.
    #[track_caller]
    fn assert_ended(&mut self, what: &str, polls: Vec<Token>) {
        for poll in polls {
            self.guest.wait(poll).ok();
        }
        assert_eq!(peek(&self.peer), Ok(0), "{what}: the service still has a connection");
        let page = self.guest.ram().read(GuestAddress(self.page.0), 4096);
        assert!(page.iter().all(|byte| *byte == UNTOUCHED), "{what}: memory that the guest has taken back was written");
        crate::assert_lives(&mut self.guest, &mut self.other, &self.other_peer);
        let counters = self.guest.device().counters();
        assert_eq!((counters.channels_opened, counters.channels_closed), (2, 1), "{what}");
        // Whoever asks again does not wait, and writes nothing.
        self.guest.command(&credit(99)).ok();
        assert!(self.guest.ram().read(GuestAddress(self.page.0), 4096).iter().all(|byte| *byte == UNTOUCHED));
        self.guest.command(&Request::ctx_destroy(1)).ok();
        assert_eq!(event_holders(&self.event), 1, "{what}");
        self.guest.assert_all_answered();
        let counters = self.guest.device().counters();
        assert_eq!((counters.channels_opened, counters.channels_closed), (2, 1), "{what}");
    }
}

/// All the ways to take a ring back.
fn ways() -> [(&'static str, Request); 3] {
    [
        ("detached from its context", Request::ctx_detach(1, 11)),
        ("without backing", Request::detach_backing(11)),
        ("unreferenced", Request::unref(11)),
    ]
}

#[test]
fn no_wake_up_reaches_a_ring_that_was_taken_back() {
    for (what, take) in ways() {
        let mut taken = Taken::new();
        let polls = vec![taken.guest.submit(&credit(2)), taken.guest.submit(&credit(3))];
        taken.guest.settle();
        taken.guest.command(&take).ok();
        ring(&taken.event, 1);
        taken.assert_ended(what, polls);
    }
}

#[test]
fn no_wake_up_that_waits_for_credit_reaches_a_ring_that_was_taken_back() {
    for (what, take) in ways() {
        let mut taken = Taken::new();
        ring(&taken.event, 1);
        turns(&taken.guest);
        taken.guest.command(&take).ok();
        let polls = vec![taken.guest.submit(&credit(2)), taken.guest.submit(&credit(3))];
        taken.assert_ended(what, polls);
    }
}

/// The wake-up and the taking back race: one of them is first, and no wake-up lands afterwards.
#[test]
fn a_wake_up_in_the_moment_of_taking_back_is_never_written_after_it() {
    for round in 0..30 {
        let (what, take) = &ways()[round % 3];
        let mut taken = Taken::new();
        let poll = taken.guest.submit(&credit(2));
        taken.guest.settle();
        let token = taken.guest.submit(take);
        ring(&taken.event, 1);
        taken.guest.wait(token).ok();
        // The guest's page: what stands in it now is what will stand in it.
        let before = taken.guest.ram().read(GuestAddress(taken.page.0), 4096);
        ring(&taken.event, 1);
        let last = taken.guest.submit(&credit(3));
        taken.guest.wait(poll).ok();
        taken.guest.wait(last).ok();
        turns(&taken.guest);
        let after = taken.guest.ram().read(GuestAddress(taken.page.0), 4096);
        assert!(before == after, "{what}: written after the ring was taken back");
        assert_eq!(peek(&taken.peer), Ok(0), "{what}");
        crate::assert_lives(&mut taken.guest, &mut taken.other, &taken.other_peer);
    }
}

/// What the counters promise: handed to guests.
#[test]
fn a_wake_up_that_found_no_ring_is_never_counted_as_handed_to_the_guest() {
    for (what, take) in ways() {
        let mut taken = Taken::new();
        let poll = taken.guest.submit(&credit(2));
        taken.guest.settle();
        taken.guest.command(&take).ok();
        ring(&taken.event, 1);
        taken.guest.wait(poll).ok();
        assert_eq!(taken.guest.device().counters().items_read, 0, "{what}");
    }
}

#[test]
fn a_query_ring_that_was_taken_back_never_ends_the_channel() {
    for end in [Request::ctx_detach(1, 10), Request::detach_backing(10), Request::unref(10)] {
        let mut scene = Scene::new();
        let (id, event) = scene.watched();
        scene.guest.command(&end).ok();
        ring(&event, 4);
        let read = scene.channel.receive_read(&mut scene.guest);
        assert_eq!((read.id, read.data.as_slice()), (id, &4u64.to_ne_bytes()[..]));
        scene.assert_lives();
        assert_eq!((scene.channels(), scene.items()), ((1, 0), (1, 0)));
    }
}
