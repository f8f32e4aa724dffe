//! Guest memory in a renderer's hands: it is there as long as it is held, and let go when the resource is; and a reset in
//! the middle of every call leaves the renderer with nothing of the guest's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::wire::BLOB_MEM_HOST3D_GUEST;
use virtio_gpu_uring::testing::{DEADLINE, Guest, Request};

use super::rendered::{FORMAT, Gallery, HEIGHT, WHOLE, WIDTH};
use super::studio::Fate;

/// How many hold the guest's memory.
fn holders(guest: &Guest) -> usize {
    Arc::strong_count(&guest.ram().space()) - 1
}

#[track_caller]
fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let started = Instant::now();
    while !true_now() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}

fn create() -> Request {
    Request::create_3d(7, 2, FORMAT, WIDTH, HEIGHT)
}

#[test]
fn guest_memory_is_never_held_for_a_resource_that_has_none() {
    let mut gallery = Gallery::with_resource();
    let before = holders(&gallery.guest);
    let range = gallery.guest.page_range(4096);
    for _ in 0..3 {
        gallery.guest.command(&Request::attach_backing(7, &[range])).ok();
        assert_eq!(holders(&gallery.guest), before + 1);
        gallery.guest.command(&Request::detach_backing(7)).ok();
        assert_eq!(holders(&gallery.guest), before);
        gallery.guest.command(&Request::attach_backing(7, &[range])).ok();
        gallery.guest.command(&Request::unref(7)).ok();
        until("the renderer has let go", || holders(&gallery.guest) == before);
        gallery.guest.command(&create()).ok();
    }
    // Refused by the device, and by the renderer.
    gallery.visitor.order("back", Some(Fate::OutOfMemory));
    gallery.visitor.order("shadow", Some(Fate::OutOfMemory));
    let shadow = Request::create_blob(8, BLOB_MEM_HOST3D_GUEST, 0, 1, 4096, &[range]).context(1);
    for request in [Request::attach_backing(7, &[(1 << 40, 1)]), Request::attach_backing(7, &[range]), shadow] {
        let answer = gallery.guest.command(&request);
        assert!(answer.kind() >= 0x1200);
        until("nobody holds what was refused", || holders(&gallery.guest) == before);
    }
}

#[test]
fn a_reset_never_leaves_guest_memory_in_the_renderers_hands() {
    let mut gallery = Gallery::with_resource();
    gallery.guest.reset();
    let quiet = holders(&gallery.guest);
    for _ in 0..3 {
        gallery.guest.activate();
        gallery.guest.command(&Request::ctx_create(1, 1)).ok();
        gallery.guest.command(&create()).ok();
        let range = gallery.guest.page_range(4096);
        gallery.guest.command(&Request::attach_backing(7, &[range])).ok();
        gallery.guest.command(&Request::transfer_to_host_3d(1, 7, WHOLE, 0)).ok();
        gallery.guest.reset();
        assert_eq!(holders(&gallery.guest), quiet);
    }
    gallery.visitor.order("forget", Some(Fate::Panic));
    gallery.guest.activate();
    gallery.guest.command(&create()).ok();
    let range = gallery.guest.page_range(4096);
    gallery.guest.command(&Request::attach_backing(7, &[range])).ok();
    gallery.guest.command(&Request::unref(7)).ok();
    gallery.guest.reset();
    until("a renderer that has panicked holds nothing", || holders(&gallery.guest) == quiet);
}

/// What a renderer is in the middle of when the reset comes.
struct Case {
    call: &'static str,
    /// Resource 7 is there, with backing.
    prepared: bool,
    request: fn(&mut Gallery) -> Request,
    told: &'static str,
}

fn backed(gallery: &mut Gallery, resource: u32) -> Request {
    let range = gallery.guest.page_range(4096);
    Request::attach_backing(resource, &[range])
}

const CASES: [Case; 8] = [
    Case { call: "create", prepared: false, request: |_| create(), told: "create 7 of 16x8" },
    Case {
        call: "shadow",
        prepared: false,
        request: |gallery| {
            let range = gallery.guest.page_range(4096);
            Request::create_blob(7, BLOB_MEM_HOST3D_GUEST, 0, 1, 4096, &[range]).context(1)
        },
        told: "shadow 7 of 1/1, 4096 bytes, flags 0, backed by 4096",
    },
    Case { call: "back", prepared: true, request: |gallery| backed(gallery, 8), told: "back 8 with 4096" },
    Case { call: "unback", prepared: true, request: |_| Request::detach_backing(7), told: "unback 7" },
    Case {
        call: "transfer",
        prepared: true,
        request: |_| Request::transfer_from_host_3d(1, 7, WHOLE, 0),
        told: "from 7 in 1",
    },
    Case { call: "read", prepared: true, request: |_| Request::flush(7, WHOLE), told: "read 7 at 16x8+0+0" },
    Case { call: "submit", prepared: true, request: |_| Request::submit(1, &[7, 1, 1, 1, 1]), told: "submit 7 to 1" },
    Case { call: "forget", prepared: true, request: |_| Request::unref(7), told: "forget 7" },
];

#[test]
fn a_reset_in_the_middle_of_a_call_never_leaves_the_renderer_with_what_the_guest_had() {
    for late in [false, true] {
        for Case { call, prepared, request, told } in CASES {
            let deadline = Duration::from_millis(if late { 50 } else { 10_000 });
            let mut gallery = Gallery::open(Limits { deadline, ..Limits::default() });
            let (quiet, device) = (holders(&gallery.guest), gallery.guest.device().counters().quarantined);
            if prepared {
                gallery.guest.command(&create()).ok();
                gallery.guest.command(&Request::create_3d(8, 2, FORMAT, WIDTH, HEIGHT)).ok();
                let attach = backed(&mut gallery, 7);
                gallery.guest.command(&attach).ok();
                gallery.guest.command(&Request::set_scanout(0, 7, WHOLE)).ok();
            }
            gallery.visitor.order(call, Some(Fate::Block));
            let request = request(&mut gallery);
            let _never_answered = gallery.guest.submit(&request);
            while gallery.visitor.next() != told {}
            gallery.visitor.order(call, None);
            let reset = gallery.guest.device().reset();
            if !late {
                gallery.visitor.unblock();
            }
            let started = Instant::now();
            reset.wait().expect("a device");
            assert!(started.elapsed() < DEADLINE / 4, "{call}: the reset took {:?}", started.elapsed());
            if late {
                assert!(gallery.guest.device().counters().quarantined > device, "{call} was not set aside");
                gallery.visitor.unblock();
            }
            // The next driver's resources of the same names come after the end of these.
            gallery.guest.reset();
            gallery.guest.activate();
            gallery.guest.command(&Request::ctx_create(1, 1)).ok();
            gallery.guest.command(&create()).ok();
            gallery.guest.command(&Request::create_3d(8, 2, FORMAT, WIDTH, HEIGHT)).ok();
            until("nobody holds the old driver's memory", || holders(&gallery.guest) == quiet);
            let Gallery { guest, visitor, .. } = gallery;
            drop(guest);
            let mut last = visitor.next();
            while !last.starts_with("gone") {
                last = visitor.next();
            }
            assert_eq!(last, "gone with []", "{call}");
        }
    }
}
