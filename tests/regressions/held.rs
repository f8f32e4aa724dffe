//! What a device holds for its guest and its VMM: what waits is charged, and what is taken back is gone.

use virtio_gpu_uring::protocol::wire::response_type as response;
use virtio_gpu_uring::testing::{Guest, Request, census};
use virtio_gpu_uring::{BlobId, Builder, Limits};

use crate::echo::{echo, stream};
use crate::memory::SlowMemory;
use crate::{PAGE, make_blobs, offer};

fn small(host_bytes: u64) -> Builder {
    Builder::new().limits(Limits { host_bytes, ..Limits::default() })
}

#[test]
fn streams_that_wait_never_hold_more_host_memory_than_the_limit() {
    let (factory, mut remote) = echo("regressions-streams");
    let mut guest = Guest::start(small(4096).renderer(factory));
    guest.command(&Request::ctx_create(1, 2)).ok();
    let stream = [b'x'; 2000];
    for round in 1..=3 {
        let blocked = guest.submit(&Request::submit(1, stream::BLOCK));
        let within = [(); 2].map(|()| guest.submit(&Request::submit(1, &stream)));
        let over = guest.submit(&Request::submit(1, &stream));
        let little = guest.submit(&Request::submit(1, &stream[..64]));
        guest.settle();
        assert_eq!(guest.device().counters().limit_refusals, round, "what waits is not counted");
        while remote.next() != "submit block to 1" {}
        remote.unblock();
        guest.wait(blocked).ok();
        for token in within {
            guest.wait(token).ok();
        }
        guest.wait(over).expect_error(response::ERR_OUT_OF_MEMORY);
        guest.wait(little).ok();
    }
    // Nothing is left of it: all of the limit may be used at once.
    guest.command(&Request::submit(1, &[b'y'; 4096])).ok();
    assert_eq!(guest.device().counters().limit_refusals, 3);
    guest.assert_all_answered();
}

#[test]
fn lists_that_wait_never_hold_more_host_memory_than_the_limit() {
    let memory = SlowMemory::default();
    let mut guest = Guest::start(small(64).window(memory.clone()));
    make_blobs(&mut guest, [100, 101]);
    guest.map(100, 0);
    guest.map(101, 0x4000);
    memory.clears_later(true);
    // 16 bytes an entry: one list has room, two have not.
    let list: Vec<_> = (0..3).map(|_| guest.page_range(PAGE as usize)).collect();
    let gone = [100, 101].map(|blob| guest.submit(&Request::unref(blob)));
    let first = guest.submit(&Request::guest_blob(100, 3 * PAGE, &list));
    let second = guest.submit(&Request::guest_blob(101, 3 * PAGE, &list));
    guest.settle();
    assert_eq!(guest.device().counters().limit_refusals, 1, "what waits is not counted");
    assert!(!guest.has_answer(&first), "answered before the id was free");
    (0..2).for_each(|_| memory.next().answer(Ok(())));
    for token in gone {
        guest.wait(token).ok();
    }
    guest.wait(first).ok();
    guest.wait(second).expect_error(response::ERR_OUT_OF_MEMORY);
    guest.command(&Request::guest_blob(101, 3 * PAGE, &list)).ok();
    guest.command(&Request::detach_backing(101)).ok();
    guest.command(&Request::attach_backing(101, &list)).ok();
    memory.assert_sound();
    guest.assert_all_answered();
}

#[test]
fn what_waits_never_counts_beyond_a_reset() {
    let memory = SlowMemory::default();
    let mut guest = Guest::start(small(48).window(memory.clone()));
    make_blobs(&mut guest, [100]);
    guest.map(100, 0);
    memory.clears_later(true);
    let list: Vec<_> = (0..3).map(|_| guest.page_range(PAGE as usize)).collect();
    let _ = guest.submit(&Request::unref(100));
    let _ = guest.submit(&Request::guest_blob(100, 3 * PAGE, &list));
    guest.settle();
    let reset = guest.device().reset();
    memory.next().answer(Ok(()));
    reset.wait().expect("a device");
    guest.reset();
    guest.activate();
    guest.command(&Request::guest_blob(100, 3 * PAGE, &list)).ok();
    assert_eq!(guest.device().counters().limit_refusals, 0);
}

#[test]
fn an_offer_that_was_withdrawn_is_never_made_a_blob_nor_kept_open() {
    const NAME: &str = "regressions-withdrawn";
    let limits = Limits { fds: 3, ..Limits::default() };
    let mut guest = Guest::start(Builder::new().limits(limits));
    make_blobs(&mut guest, []);
    for _ in 0..8 {
        let [withdrawn, kept] = [(); 2].map(|()| offer(&guest, NAME));
        assert_eq!(census::fds_named(NAME), 2);
        let withdraw = |guest: &Guest, id| guest.device().withdraw(id).wait().expect("a device");
        assert!(withdraw(&guest, withdrawn), "the offer was there");
        assert_eq!(census::fds_named(NAME), 1, "the descriptor is still open");
        assert!(!withdraw(&guest, withdrawn), "withdrawn twice");
        let create = |id: BlobId| Request::host_blob(1, 20, id.0, PAGE);
        guest.command(&create(withdrawn)).expect_error(response::ERR_INVALID_PARAMETER);
        guest.command(&create(kept)).ok();
        assert!(!withdraw(&guest, kept), "what a guest has taken is not the VMM's to take back");
        assert_eq!(census::fds_named(NAME), 1);
        guest.command(&Request::unref(20)).ok();
        assert_eq!(census::fds_named(NAME), 0);
    }
}
