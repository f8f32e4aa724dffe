//! What may overtake what: commands that touch the same thing never, all others always, fenced answers only between
//! timelines. With a region whose owner answers late, wrongly or never.
#![cfg(feature = "testing")]

mod late;
mod memory;
mod overtaking;
mod programs;
mod timelines;

use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{DEADLINE, Guest, Lane, Request, Token};
use virtio_gpu_uring::{Builder, HostBuffer};

use memory::SlowMemory;

/// Size of the blobs here: one page.
const PAGE: u64 = 4096;

/// A guest with context 1, and host blobs 100, 101, … of one page each.
fn guest_with_blobs(builder: Builder, blobs: u32) -> (Guest, SlowMemory) {
    let memory = SlowMemory::default();
    let mut guest = Guest::start(builder.window(memory.clone()));
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    for blob in 100..100 + blobs {
        let offered = offer(&guest, "order");
        guest.command(&Request::host_blob(1, blob, offered, PAGE)).ok();
    }
    (guest, memory)
}

/// The id of a new buffer that the VMM offers.
fn offer(guest: &Guest, name: &str) -> u64 {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, PAGE).expect("size");
    let buffer = HostBuffer::from_fd(file).expect("a buffer");
    guest.device().offer(buffer).wait().expect("a device").expect("room").0
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

/// None of these has been answered, although the device has had its chance.
#[track_caller]
fn assert_waiting(guest: &mut Guest, tokens: &[Token]) {
    guest.settle();
    for (index, token) in tokens.iter().enumerate() {
        assert!(!guest.has_answer(token), "number {index} was answered too early");
    }
}

/// The next chains of the control queue in the order in which they came back, and their answers' types. To be used
/// where nothing else is outstanding.
#[track_caller]
fn in_order(guest: &mut Guest, count: usize) -> Vec<(Token, u32)> {
    let mut taken = Vec::new();
    until("the chains have come back", || {
        while let Some(used) = guest.queue(Lane::Control).poll_used() {
            let kind = used.response[..4].try_into().map(u32::from_le_bytes).expect("a header");
            taken.push((used.token, kind));
        }
        taken.len() >= count
    });
    taken
}
