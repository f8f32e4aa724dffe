//! Rules that the device once broke: each has been seen to break, and must not again.
#![cfg(feature = "testing")]

mod channel;
mod copies;
#[path = "../renderer/echo.rs"]
#[allow(dead_code, reason = "shared with other test programs")]
mod echo;
mod held;
mod idle;
#[path = "../order/memory.rs"]
mod memory;
mod queue;
mod resets;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{DEADLINE, Guest, Request};
use virtio_gpu_uring::{BlobId, Builder, HostBuffer, Limits};

/// Size of the blobs here: one page.
const PAGE: u64 = 4096;

/// Short, for tests that wait until it has passed.
const SHORT: Duration = Duration::from_millis(100);

fn memfd(name: &str) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, PAGE).expect("size");
    file
}

/// A new buffer that the VMM offers.
#[track_caller]
fn offer(guest: &Guest, name: &str) -> BlobId {
    let buffer = HostBuffer::from_fd(memfd(name)).expect("a buffer");
    guest.device().offer(buffer).wait().expect("a device").expect("room")
}

/// Makes context 1, and a host blob of a page for each of `blobs`.
#[track_caller]
fn make_blobs(guest: &mut Guest, blobs: impl IntoIterator<Item = u32>) {
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    for blob in blobs {
        let offered = offer(guest, "regressions");
        guest.command(&Request::host_blob(1, blob, offered.0, PAGE)).ok();
    }
}

/// A device that does not wait long.
fn impatient() -> Builder {
    Builder::new().limits(Limits { deadline: SHORT, ..Limits::default() })
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
