//! Resets: at any time, any number of times, and answered only when nothing of the guest's is left or under way.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, response_type as response};
use virtio_gpu_uring::testing::{
    DEADLINE, Guest, GuestChannel, GuestOptions, GuestRam, HostPeer, HostService, Lane, Request, Token, census,
};
use virtio_gpu_uring::{Builder, HostWindow, Limits};
use vm_memory::GuestAddress;

use crate::memory::SlowMemory;
use crate::{Runtime, offer, on_runtime, show, until};

const PAGE: u64 = 4096;
/// Guest memory that is quick to look through.
const RAM: usize = 256 << 10;

fn small() -> GuestOptions {
    GuestOptions { ram: RAM, queue_size: 64, ..GuestOptions::default() }
}

fn ready<F: Future + Unpin>(future: &mut F) -> bool {
    matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
}

/// Everything at once: a POLL that waits, a mapped blob, a fence behind the POLL.
fn load(guest: &mut Guest, service: &HostService, name: &str) -> (HostPeer, Vec<Token>) {
    let mut channel = GuestChannel::open(guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    show(guest, name, 2, 20, (0x2000, PAGE));
    show(guest, name, 3, 30, (0x10000, 512 << 10));
    let polls = vec![channel.poll(guest), channel.poll(guest)];
    (peer, polls)
}

#[test]
fn no_number_of_resets_with_work_in_flight_wears_the_device_out() {
    const NAME: &str = "lifecycle-hundred-resets";
    let service = HostService::listen();
    let window = HostWindow::new(1 << 20).expect("window");
    let builder = Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut guest = Guest::start(builder);
    for round in 1..=100 {
        let (peer, polls) = load(&mut guest, &service, NAME);
        // Commands that nobody waits for, in the ring or on their way.
        let _ = guest.submit(&Request::unmap(30));
        let _ = guest.submit(&Request::unref(30));
        for _ in 0..8 {
            let _ = guest.submit(&Request::display_info().fenced(1));
        }
        guest.reset();
        drop(polls);
        assert_eq!(peer.receive(1).0, b"", "the channel outlives the reset");
        assert_eq!((census::fds_named(NAME), census::maps_named(NAME)), (0, 0), "round {round}");
        let mut seen = [0xff; 16];
        window.read(0x2000, &mut seen).expect("in the window");
        assert_eq!(seen, [0; 16], "the buffer is still in the window");
        guest.activate();
        guest.command(&Request::unref(20)).expect_error(response::ERR_INVALID_RESOURCE_ID);
        guest.command(&Request::ctx_destroy(1)).expect_error(response::ERR_INVALID_CONTEXT_ID);
        assert_eq!(guest.device().counters().resets, round);
    }
    assert_eq!(guest.device().counters().quarantined, 0);
    guest.settle();
    guest.assert_all_answered();
}

#[test]
fn a_reset_of_a_device_that_is_not_active_is_never_refused() {
    let mut guest = Guest::powered_off(Builder::new().spawn().expect("a device"), GuestOptions::default());
    (0..3).for_each(|_| guest.reset());
    guest.activate();
    guest.settle();
    (0..3).for_each(|_| guest.reset());
    guest.activate();
    guest.settle();
    assert_eq!(guest.device().counters().resets, 6);
}

/// Fills all of guest memory, so that whatever is written shows.
fn poison(ram: &GuestRam) {
    ram.write(GuestAddress(0), &[0xee; RAM]);
}

#[track_caller]
fn assert_untouched(ram: &GuestRam) {
    let bytes = ram.read(GuestAddress(0), RAM);
    let touched = bytes.iter().position(|byte| *byte != 0xee);
    assert_eq!(touched, None, "guest memory was written after the reset was answered");
}

#[test]
fn nothing_touches_guest_memory_after_a_reset_was_answered() {
    let service = HostService::listen();
    let window = HostWindow::new(1 << 20).expect("window");
    let builder = Builder::new().window(window).host_socket(ChannelType::PIPEWIRE, service.path());
    let (mut guest, runtime) = on_runtime(builder, small());
    let interrupts = guest.activation();
    for _ in 0..10 {
        let (peer, polls) = load(&mut guest, &service, "lifecycle-poison");
        let _ = guest.submit(&Request::unmap(30));
        // A message that is on its way when the reset comes.
        peer.send(b"late", &[]);
        guest.device().reset().wait().expect("a device");
        poison(guest.ram());
        let counters = guest.device().counters();
        for _ in 0..8 {
            guest.kick(Lane::Control);
            guest.kick(Lane::Cursor);
            runtime.turn();
        }
        assert_untouched(guest.ram());
        let now = guest.device().counters();
        assert_eq!(now.interrupts, counters.interrupts, "interrupted after the reset was answered");
        assert_eq!(now.commands, counters.commands, "served after the reset was answered");
        drop(polls);
        guest.reset();
        guest.activate();
        guest.settle();
    }
    drop(interrupts);
    drop(guest);
    runtime.join();
}

/// A reset while `begin` is under way in the region, which ends only after the device has had every chance to answer.
fn reset_waits_for(begin: impl FnOnce(&mut Guest, &SlowMemory)) {
    let memory = SlowMemory::default();
    let (mut guest, runtime) = on_runtime(Builder::new().window(memory.clone()), small());
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let offered = offer(&guest, "lifecycle-slow", PAGE, 1);
    guest.command(&Request::host_blob(1, 5, offered, PAGE)).ok();
    begin(&mut guest, &memory);
    let call = memory.next();
    let mut reset = guest.device().reset();
    for _ in 0..4 {
        runtime.turn();
        assert!(!ready(&mut reset), "the reset was answered while the region was still at work");
    }
    memory.places_later(false).clears_later(false);
    call.answer(Ok(()));
    reset.wait().expect("a device");
    assert!(memory.taken().is_empty(), "the reset left something in the window");
    memory.assert_sound();
    poison(guest.ram());
    runtime.turn();
    assert_untouched(guest.ram());
    guest.reset();
    guest.activate();
    show(&mut guest, "lifecycle-slow", 1, 5, (0, PAGE));
    guest.assert_all_answered();
    assert_eq!(guest.device().counters().quarantined, 0);
    drop(guest);
    runtime.join();
    assert!(memory.taken().is_empty());
    memory.assert_sound();
}

#[test]
fn a_reset_never_answers_while_an_unmap_is_under_way() {
    reset_waits_for(|guest, memory| {
        guest.map(5, 0);
        memory.clears_later(true);
        let _ = guest.submit(&Request::unmap(5));
    });
}

#[test]
fn a_reset_never_answers_while_a_map_is_under_way() {
    reset_waits_for(|guest, memory| {
        memory.places_later(true);
        let _ = guest.submit(&Request::map(5, 0));
    });
}

#[test]
fn a_reset_never_answers_before_its_own_clears_have_ended() {
    let memory = SlowMemory::default();
    let (mut guest, runtime) = on_runtime(Builder::new().window(memory.clone()), small());
    for blob in 1..=3 {
        show(&mut guest, "lifecycle-clears", blob, blob, (u64::from(blob) * PAGE, PAGE));
    }
    memory.clears_later(true);
    let mut reset = guest.device().reset();
    for _ in 0..3 {
        let call = memory.next();
        runtime.turn();
        assert!(!ready(&mut reset), "the reset was answered before the window was empty");
        call.answer(Ok(()));
    }
    reset.wait().expect("a device");
    assert!(memory.taken().is_empty());
    memory.assert_sound();
}

/// A device whose region is stuck with `begin`, and a reset of it, which ends all the same.
fn reset_ends_without(begin: impl FnOnce(&mut Guest, &SlowMemory)) {
    let memory = SlowMemory::default();
    let limits = Limits { deadline: Duration::from_millis(100), ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits).window(memory.clone()));
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let offered = offer(&guest, "lifecycle-stuck", PAGE, 1);
    guest.command(&Request::host_blob(1, 5, offered, PAGE)).ok();
    begin(&mut guest, &memory);
    let started = Instant::now();
    guest.reset();
    assert!(started.elapsed() < DEADLINE / 4, "the reset took {:?}", started.elapsed());
    let call = memory.next();
    memory.places_later(false).clears_later(false);
    assert_eq!(guest.device().counters().quarantined, 1);
    guest.activate();
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let offered = offer(&guest, "lifecycle-stuck", PAGE, 1);
    guest.command(&Request::host_blob(1, 5, offered, PAGE)).ok();
    guest.command(&Request::map(5, 0)).expect_error(response::ERR_INVALID_PARAMETER);
    guest.map(5, 0x4000);
    guest.command(&Request::unmap(5)).ok();
    // The range comes back when it is known what it shows.
    call.answer(Ok(()));
    until("the range is free", || guest.command(&Request::map(5, 0)).kind() == response::OK_MAP_INFO);
    memory.assert_sound();
    guest.assert_all_answered();
}

#[test]
fn a_stuck_unmap_never_outlasts_the_deadline_of_a_reset() {
    reset_ends_without(|guest, memory| {
        guest.map(5, 0);
        memory.clears_later(true);
        let _ = guest.submit(&Request::unmap(5));
        until("the clear has begun", || memory.pending() == 1);
    });
}

#[test]
fn a_stuck_map_never_outlasts_the_deadline_of_a_reset() {
    reset_ends_without(|guest, memory| {
        memory.places_later(true);
        let _ = guest.submit(&Request::map(5, 0));
        until("the place has begun", || memory.pending() == 1);
    });
}

#[test]
fn a_blob_that_cannot_be_cleared_never_outlasts_the_deadline_of_a_reset() {
    reset_ends_without(|guest, memory| {
        guest.map(5, 0);
        memory.clears_later(true);
    });
}

#[test]
fn an_offer_never_outlives_a_reset() {
    const NAME: &str = "lifecycle-offer";
    let mut guest = Guest::start(Builder::new());
    let offered = offer(&guest, NAME, PAGE, 1);
    assert_eq!(census::fds_named(NAME), 1);
    guest.reset();
    assert_eq!(census::fds_named(NAME), 0, "the offer is still open");
    guest.activate();
    guest.command(&Request::ctx_create(1, 0)).ok();
    guest.command(&Request::host_blob(1, 5, offered, PAGE)).expect_error(response::ERR_INVALID_PARAMETER);
    let next = offer(&guest, NAME, PAGE, 1);
    assert_ne!(next, offered, "an id was given away twice");
    guest.command(&Request::host_blob(1, 5, next, PAGE)).ok();
}

#[test]
fn a_reset_of_one_device_never_disturbs_its_neighbour_on_the_thread() {
    let (slow, quick) = (SlowMemory::default(), SlowMemory::default());
    let (first, first_task) = Builder::new().window(slow.clone()).build().expect("a device");
    let (second, second_task) = Builder::new().window(quick.clone()).build().expect("a device");
    let runtime = Runtime::start(vec![first_task, second_task]);
    let mut guests = [Guest::powered_off(first, small()), Guest::powered_off(second, small())];
    for guest in &mut guests {
        guest.activate();
        show(guest, "lifecycle-neighbour", 1, 5, (0, PAGE));
    }
    slow.clears_later(true);
    let mut reset = guests[0].device().reset();
    let call = slow.next();
    for _ in 0..16 {
        guests[1].command(&Request::unmap(5)).ok();
        guests[1].map(5, 0);
    }
    assert!(!ready(&mut reset));
    call.answer(Ok(()));
    reset.wait().expect("a device");
    drop(guests);
    runtime.join();
    quick.assert_sound();
}
