//! What a renderer's resources take of the device's limits: descriptors, bytes, guest memory. Each is refused exactly at its
//! limit, leaves nothing with the renderer when it is, and is given back with the resource.

use std::sync::Arc;
use std::time::Instant;

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY, ERR_UNSPEC, OK_NODATA,
};
use virtio_gpu_uring::protocol::wire::{BLOB_MEM_HOST3D_GUEST, ResourceCreate3d, command_type};
use virtio_gpu_uring::testing::{DEADLINE, Guest, Request, census};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::actor::{FILE, Fate, OWN, until};
use super::rendered::{FORMAT, HEIGHT, WIDTH};
use super::stage::{PAGE, Stage, brief, patient};

fn with_fds(name: &'static str, fds: u64, each: u64) -> Stage {
    let stage = Stage::with_context(name, Limits { fds, ..patient() });
    stage.director.script().descriptors = each;
    stage
}

fn shadow(resource: u32, size: u64) -> Request {
    Request::create_blob(resource, BLOB_MEM_HOST3D_GUEST, 0, 1, size, &[]).context(1)
}

fn picture(resource: u32) -> Request {
    Request::create_3d(resource, 2, FORMAT, WIDTH, HEIGHT)
}

#[test]
fn a_resource_whose_descriptors_are_too_many_never_stays_with_the_renderer() {
    // A blob's own descriptor counts beside those that the renderer keeps.
    let kinds = [
        (picture(20), "create 20", 0),
        (shadow(20, PAGE), "shadow 20", 0),
        (Request::host_blob(1, 20, FILE, PAGE), "blob 20 2", 1),
    ];
    for (create, made, of_device) in kinds {
        let mut stage = with_fds("quota-refused", 8, 9 - of_device);
        for round in 1..4 {
            let answer = stage.guest.command(&create.clone().fenced(round));
            answer.expect_error(ERR_OUT_OF_MEMORY);
            assert_eq!(answer.header.fence_id.get(), round);
            stage.director.expect(&[made, "forget 20"]);
            stage.guest.command(&Request::unref(20)).expect_error(ERR_INVALID_RESOURCE_ID);
        }
        assert_eq!(stage.guest.device().counters().limit_refusals, 3);
        // The last that fits, and only that.
        stage.director.script().descriptors = 8 - of_device;
        stage.guest.command(&create).ok();
        stage.guest.command(&Request::host_blob(1, 21, FILE, PAGE)).expect_error(ERR_OUT_OF_MEMORY);
        stage.guest.command(&Request::unref(20)).ok();
        stage.director.expect(&[made, "forget 20"]);
        assert_eq!(stage.director.take(), Vec::<String>::new(), "asked for what there is no room for");
        until("nothing is left of it", || census::fds_named("quota-refused") == 0);
    }
}

#[test]
fn a_blob_without_a_descriptor_never_needs_room_for_one() {
    let mut stage = with_fds("quota-own", 8, 9);
    stage.guest.command(&Request::host_blob(1, 20, OWN, PAGE)).expect_error(ERR_OUT_OF_MEMORY);
    stage.director.expect(&["blob 20 1", "forget 20"]);
    stage.director.script().descriptors = 8;
    stage.guest.command(&Request::host_blob(1, 20, OWN, PAGE)).ok();
}

#[test]
fn descriptors_that_the_renderer_keeps_are_never_booked_longer_than_their_resource() {
    let mut stage = with_fds("quota-kept", 8, 3);
    for _ in 0..5 {
        stage.guest.command(&picture(20)).ok();
        stage.guest.command(&shadow(21, PAGE)).ok();
        stage.guest.command(&picture(22)).expect_error(ERR_OUT_OF_MEMORY);
        stage.guest.command(&Request::unref(20)).ok();
        stage.guest.command(&picture(22)).ok();
        stage.guest.command(&picture(20)).expect_error(ERR_OUT_OF_MEMORY);
        stage.guest.reset();
        stage.guest.activate();
        stage.guest.command(&Request::ctx_create(1, 1)).ok();
    }
    // One that says that it keeps very many is not believed to keep fewer.
    stage.director.script().descriptors = u64::MAX;
    for _ in 0..2 {
        stage.guest.command(&picture(20)).expect_error(ERR_OUT_OF_MEMORY);
    }
    stage.director.script().descriptors = 8;
    stage.guest.command(&picture(20)).ok();
    // What fails in the renderer costs nothing.
    stage.guest.command(&Request::unref(20)).ok();
    stage.director.order("create", Fate::OutOfMemory);
    stage.guest.command(&picture(20)).expect_error(ERR_OUT_OF_MEMORY);
    stage.director.spare("create");
    stage.guest.command(&picture(20)).ok();
}

#[test]
fn descriptors_of_a_context_are_never_booked_longer_than_it_lives_nor_left_where_they_are_too_many() {
    let mut stage = with_fds("quota-context", 8, 0);
    for _ in 0..3 {
        stage.director.script().of_context = 9;
        stage.guest.command(&Request::ctx_create(2, 1)).expect_error(ERR_OUT_OF_MEMORY);
        stage.director.expect(&["context 2", "end 2"]);
        stage.guest.command(&Request::ctx_destroy(2)).expect_error(ERR_INVALID_CONTEXT_ID);
        stage.director.script().of_context = 8;
        stage.guest.command(&Request::ctx_create(2, 1)).ok();
        stage.guest.command(&Request::host_blob(2, 21, FILE, PAGE)).expect_error(ERR_OUT_OF_MEMORY);
        stage.guest.command(&Request::ctx_destroy(2)).ok();
        stage.guest.command(&Request::ctx_create(3, 1)).ok();
        stage.director.expect(&["context 2", "end 2", "context 3"]);
        stage.guest.reset();
        stage.guest.activate();
        let _ = stage.director.take();
    }
}

/// RESOURCE_CREATE_3D with every number that its size depends on.
struct Size {
    target: u32,
    sides: [u32; 3],
    layers: u32,
    last_level: u32,
    samples: u32,
}

const PLAIN: Size = Size { target: 2, sides: [16, 8, 1], layers: 1, last_level: 0, samples: 0 };

impl Size {
    fn create(&self, resource: u32) -> Request {
        let body = ResourceCreate3d {
            resource_id: resource.into(),
            target: self.target.into(),
            format: FORMAT.into(),
            bind: 0.into(),
            width: self.sides[0].into(),
            height: self.sides[1].into(),
            depth: self.sides[2].into(),
            array_size: self.layers.into(),
            last_level: self.last_level.into(),
            nr_samples: self.samples.into(),
            flags: 0.into(),
            padding: 0.into(),
        };
        Request::new(command_type::RESOURCE_CREATE_3D, zerocopy::IntoBytes::as_bytes(&body))
    }
}

#[test]
fn no_resource_ever_takes_more_or_less_of_the_bytes_than_it_says() {
    let sizes = [
        (PLAIN, 512),
        (Size { samples: 1, ..PLAIN }, 512),
        (Size { samples: 4, ..PLAIN }, 2048),
        (Size { layers: 6, ..PLAIN }, 3072),
        (Size { sides: [16, 8, 3], ..PLAIN }, 1536),
        (Size { last_level: 4, ..PLAIN }, 1024),
        (Size { sides: [16, 8, 2], layers: 3, last_level: 1, samples: 4, ..PLAIN }, 24_576),
        // A side of nothing is no way to have all others for nothing.
        (Size { sides: [16, 8, 0], layers: 0, ..PLAIN }, 512),
        (Size { target: 0, sides: [1000, 1, 1], ..PLAIN }, 1000),
    ];
    for (size, bytes) in sizes {
        for rendered_bytes in [bytes - 1, bytes, 2 * bytes - 1] {
            let mut stage = Stage::with_context("quota-bytes", Limits { rendered_bytes, ..patient() });
            for _ in 0..3 {
                let first = stage.guest.command(&size.create(20));
                assert_eq!(first.kind() == OK_NODATA, rendered_bytes >= bytes, "{bytes} of {rendered_bytes}");
                stage.guest.command(&size.create(21)).expect_error(ERR_OUT_OF_MEMORY);
                if first.kind() == OK_NODATA {
                    stage.guest.command(&Request::unref(20)).ok();
                } else {
                    first.expect_error(ERR_OUT_OF_MEMORY);
                    assert_eq!(stage.director.take(), Vec::<String>::new(), "asked for what there is no room for");
                }
            }
        }
    }
}

#[test]
fn sizes_that_no_number_holds_are_never_small_ones() {
    const MOST: u32 = u32::MAX;
    let half = 1 << 31;
    let sizes = [
        Size { sides: [MOST; 3], layers: MOST, last_level: MOST, samples: MOST, ..PLAIN },
        // Products that are 0 or very small where they wrap around.
        Size { sides: [half, half, 4], ..PLAIN },
        Size { sides: [half, half, 1], layers: 4, ..PLAIN },
        Size { sides: [half, half, 1], last_level: 1, ..PLAIN },
        Size { sides: [half, half, 1], samples: 1, ..PLAIN },
        Size { sides: [1 << 16, 1 << 16, 1 << 16], layers: 1 << 14, ..PLAIN },
    ];
    let mut stage = Stage::with_context("quota-overflow", patient());
    for (round, size) in sizes.iter().enumerate() {
        let answer = stage.guest.command(&size.create(20));
        assert_eq!(answer.kind(), ERR_OUT_OF_MEMORY, "number {round}: {:#x}", answer.kind());
        stage.guest.command(&PLAIN.create(20)).ok();
        stage.guest.command(&size.create(21)).expect_error(ERR_OUT_OF_MEMORY);
        stage.guest.command(&Request::unref(20)).ok();
    }
    let blobs: [fn(u64) -> Request; 3] = [
        |size| Request::host_blob(1, 20, OWN, size),
        |size| Request::host_blob(1, 20, FILE, size),
        |size| shadow(20, size),
    ];
    for blob in blobs {
        for size in [u64::MAX - 4095, 1 << 63, (8 << 30) + PAGE] {
            stage.guest.command(&blob(size)).expect_error(ERR_OUT_OF_MEMORY);
        }
    }
    let calls = stage.director.take();
    let asked = calls.iter().filter(|call| !call.starts_with("forget")).count();
    assert_eq!(asked, 6, "only for what there is room for: {calls:?}");
}

#[test]
fn bytes_of_blobs_and_pictures_are_never_booked_apart_nor_longer_than_they_are() {
    let mut stage = Stage::with_context("quota-together", Limits { rendered_bytes: 3 * PAGE, ..patient() });
    for _ in 0..3 {
        stage.guest.command(&Request::host_blob(1, 20, OWN, PAGE)).ok();
        stage.guest.command(&Request::host_blob(1, 21, FILE, PAGE)).ok();
        stage.guest.command(&shadow(22, PAGE)).ok();
        stage.guest.command(&PLAIN.create(23)).expect_error(ERR_OUT_OF_MEMORY);
        stage.guest.map(20, 0);
        stage.guest.command(&Request::unref(20)).ok();
        stage.guest.command(&Size { target: 0, sides: [4096, 1, 1], ..PLAIN }.create(23)).ok();
        stage.guest.command(&shadow(24, PAGE)).expect_error(ERR_OUT_OF_MEMORY);
        stage.guest.reset();
        stage.guest.activate();
        stage.guest.command(&Request::ctx_create(1, 1)).ok();
        for (call, create) in [
            ("create", Size { target: 0, sides: [12_288, 1, 1], ..PLAIN }.create(20)),
            ("shadow", shadow(20, 3 * PAGE)),
            ("blob", Request::host_blob(1, 20, OWN, 3 * PAGE)),
        ] {
            stage.director.order(call, Fate::Invalid);
            for _ in 0..2 {
                stage.guest.command(&create).expect_error(ERR_INVALID_PARAMETER);
            }
            stage.director.spare(call);
        }
    }
}

#[test]
fn pinned_memory_is_never_any_other_than_the_guests() {
    let mut stage = Stage::with_context("quota-pinned", patient());
    stage.director.script().pins = true;
    let (start, _) = stage.guest.page_range(4 * 4096);
    let pieces = [(start + 8192, 4096), (start, 100), (start + 200, 1000)];
    let wanted: Vec<(usize, usize)> = pieces
        .iter()
        .map(|(address, len)| {
            let host = stage.guest.ram().memory().get_host_address(GuestAddress(*address)).expect("guest memory");
            (host.addr(), *len as usize)
        })
        .collect();
    stage.guest.command(&picture(20)).ok();
    stage.guest.command(&Request::attach_backing(20, &pieces)).ok();
    assert_eq!(stage.director.script().pinned, wanted);
    stage.guest.command(&Request::create_blob(21, BLOB_MEM_HOST3D_GUEST, 0, 1, PAGE, &pieces).context(1)).ok();
    assert_eq!(stage.director.script().pinned, wanted);
    // A renderer that gives it back in time is no reason to wait.
    let before = stage.guest.device().counters().quarantined;
    let started = Instant::now();
    stage.guest.reset();
    assert!(started.elapsed() < DEADLINE / 4, "the reset took {:?}", started.elapsed());
    assert_eq!(stage.guest.device().counters().quarantined, before);
}

#[test]
fn a_reset_never_answers_while_memory_is_pinned_nor_waits_beyond_its_deadline() {
    let limits = Limits { deadline: DEADLINE, ..patient() };
    let mut stage = Stage::with_context("quota-pinned-reset", limits);
    stage.director.script().pins = true;
    let range = stage.guest.page_range(4096);
    stage.guest.command(&picture(20)).ok();
    stage.guest.command(&Request::attach_backing(20, &[range])).ok();
    // It holds the memory until this call returns.
    stage.director.order("forget", Fate::Hang);
    let (told, reset) = (std::sync::mpsc::channel(), stage.guest.device().reset());
    let waiting = std::thread::spawn(move || {
        reset.wait().expect("a device");
        told.0.send(()).expect("a test");
    });
    stage.director.reach("forget 20");
    assert!(told.1.try_recv().is_err(), "answered while the renderer has the driver's memory");
    stage.director.spare("forget");
    stage.director.release();
    waiting.join().expect("answered");
    assert_eq!(stage.guest.device().counters().quarantined, 0);
    drop(stage);
    let mut stage = Stage::with_context("quota-pinned-late", brief());
    stage.director.script().pins = true;
    let range = stage.guest.page_range(4096);
    stage.guest.command(&picture(20)).ok();
    stage.guest.command(&Request::attach_backing(20, &[range])).ok();
    stage.director.order("submit", Fate::Hang);
    let _never_answered = stage.guest.submit(&Request::submit(1, b"hangs"));
    stage.director.reach("submit 1");
    let started = Instant::now();
    stage.restart();
    assert!(started.elapsed() < DEADLINE / 4, "the reset took {:?}", started.elapsed());
    assert!(stage.guest.device().counters().quarantined > 0, "it was not said that somebody has the memory");
    stage.director.spare("submit");
    stage.director.release();
    stage.director.reach("forget 20");
    stage.assert_others_live();
    assert_eq!(stage.lost(), 0);
}

#[test]
fn memory_that_stays_pinned_is_never_taken_for_given_back_nor_freed() {
    let mut stage = Stage::with_context("quota-hoarded", brief());
    stage.director.script().pins = true;
    stage.director.script().hoards = true;
    let range = stage.guest.page_range(4096);
    stage.guest.command(&picture(20)).ok();
    stage.guest.command(&Request::attach_backing(20, &[range])).ok();
    stage.guest.command(&Request::unref(20)).ok();
    stage.director.expect(&["create 20", "back 20", "forget 20"]);
    // The first reset waits for it until the deadline; the next driver's memory is nobody's.
    for _ in 0..2 {
        stage.restart();
        assert_eq!(stage.guest.device().counters().quarantined, 1);
        stage.assert_others_live();
    }
    let Stage { guest, director, .. } = stage;
    let memory = Arc::downgrade(&guest.ram().space());
    end(guest);
    director.reach("gone");
    until("the guest's memory is let go", || memory.upgrade().is_none());
}

/// The device's end lasts no longer than what it sets aside may.
fn end(guest: Guest) {
    let started = Instant::now();
    drop(guest);
    assert!(started.elapsed() < DEADLINE / 2, "the end took {:?}", started.elapsed());
}

#[test]
fn memory_that_is_no_more_the_guests_is_never_pinned() {
    let mut stage = Stage::with_context("quota-unpinned", patient());
    stage.guest.command(&picture(20)).ok();
    for wrong in [vec![(1 << 40, 4096)], vec![(0, 0)], vec![]] {
        let answer = stage.guest.command(&Request::attach_backing(20, &wrong));
        assert!([ERR_INVALID_PARAMETER, ERR_UNSPEC].contains(&answer.kind()), "{wrong:?}: {:#x}", answer.kind());
    }
    assert_eq!(stage.director.take(), ["create 20"]);
}
