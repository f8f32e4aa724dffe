//! Venus by virglrenderer's render server: memory that the guest and the host share through the window, and a server that
//! goes away.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_MAPPABLE, BLOB_MEM_HOST3D};
use virtio_gpu_uring::testing::{Request, census};

use super::alone::alone;
use super::studio::{PAGE, PAGES, Studio, VENUS};

/// The context of Venus here.
const CONTEXT: u32 = 3;
/// The name of Venus's shared memory.
const NAME: &str = "vkr-shmem";

/// Memory that a guest shares with its context: what a driver makes its rings of.
pub(crate) fn shared_blob(context: u32, resource: u32, size: u64) -> Request {
    Request::create_blob(resource, BLOB_MEM_HOST3D, BLOB_FLAG_MAPPABLE, 0, size, &[]).context(context)
}

/// Paints each page of a window in another colour; gaps keep it.
pub(crate) fn paint(studio: &Studio) {
    for page in 0..PAGES {
        studio.window.write(page * PAGE, &[!(page as u8); PAGE as usize]).expect("in the window");
    }
}

pub(crate) fn page(studio: &Studio, page: u64) -> Vec<u8> {
    let mut seen = vec![0; PAGE as usize];
    studio.window.read(page * PAGE, &mut seen).expect("in the window");
    seen
}

#[track_caller]
pub(crate) fn assert_gap(studio: &Studio, mut pages: std::ops::Range<u64>) {
    let wrong = pages.find(|number| page(studio, *number) != [!(*number as u8); PAGE as usize]);
    assert_eq!(wrong, None, "a page that should be a gap");
}

fn open() -> std::sync::MutexGuard<'static, Studio> {
    let mut studio = Studio::enter();
    paint(&studio);
    studio.ok(&Request::ctx_create(CONTEXT, VENUS));
    studio
}

#[test]
fn shared_memory_is_never_another_one_at_another_place() {
    let mut studio = open();
    studio.ok(&shared_blob(CONTEXT, 20, 4 * PAGE));
    studio.ok(&shared_blob(CONTEXT, 21, PAGE));
    studio.map(20, 8 * PAGE);
    studio.map(21, 40 * PAGE);
    for number in 0..4 {
        assert_eq!(page(&studio, 8 + number), [0; PAGE as usize], "new memory");
        studio.window.write((8 + number) * PAGE, &[number as u8 + 1; PAGE as usize]).expect("in the window");
    }
    assert_eq!(page(&studio, 40), [0; PAGE as usize], "written through another one's mapping");
    assert_eq!((census::maps_named(NAME), census::fds_named(NAME)), (2, 4), "a memfd each, kept by both sides");
    assert_gap(&studio, 0..8);
    assert_gap(&studio, 12..40);
    studio.ok(&Request::unmap(20));
    assert_gap(&studio, 0..40);
    studio.map(20, 100 * PAGE);
    for number in 0..4 {
        assert_eq!(page(&studio, 100 + number), [number as u8 + 1; PAGE as usize], "what was written is gone");
    }
    // Over another one, beyond the window, twice.
    studio.command(&Request::map(20, 8 * PAGE)).expect_error(ERR_INVALID_PARAMETER);
    studio.ok(&Request::unmap(20));
    for offset in [40 * PAGE, 37 * PAGE, (PAGES - 3) * PAGE, 1, u64::MAX - PAGE + 1] {
        studio.command(&Request::map(20, offset)).expect_error(ERR_INVALID_PARAMETER);
    }
    assert_gap(&studio, 0..40);
    assert_gap(&studio, 41..PAGES);
}

#[test]
fn a_blob_that_goes_while_it_is_mapped_never_leaves_a_page_or_a_descriptor() {
    let mut studio = open();
    for round in 0..3 {
        studio.ok(&shared_blob(CONTEXT, 20, 4 * PAGE));
        studio.ok(&Request::ctx_attach(CONTEXT, 20));
        studio.map(20, round * PAGE);
        studio.ok(&Request::unref(20));
        studio.command(&Request::unmap(20)).expect_error(ERR_INVALID_RESOURCE_ID);
        assert_gap(&studio, 0..PAGES);
        assert_eq!(census::maps_named(NAME), 0);
        studio.until("the end of its descriptors", || census::fds_named(NAME) == 0);
    }
    // With its context, too: the blob outlives that.
    studio.ok(&shared_blob(CONTEXT, 20, PAGE));
    studio.map(20, 0);
    studio.window.write(0, &[0x42; PAGE as usize]).expect("in the window");
    studio.ok(&Request::ctx_destroy(CONTEXT));
    assert_eq!(page(&studio, 0), [0x42; PAGE as usize]);
    studio.ok(&Request::unmap(20));
    studio.map(20, PAGE);
    assert_eq!(page(&studio, 1), [0x42; PAGE as usize]);
}

#[test]
fn a_reset_never_leaves_shared_memory_in_the_window() {
    let mut studio = open();
    for resource in 20..30 {
        studio.ok(&shared_blob(CONTEXT, resource, 2 * PAGE));
        studio.map(resource, u64::from(resource) * 2 * PAGE);
    }
    studio.reset();
    assert_gap(&studio, 0..PAGES);
    assert_eq!(census::maps_named(NAME), 0);
    studio.activate();
}

/// The processes that this one has started, and theirs.
fn children() -> Vec<(Pid, String)> {
    let mut found = Vec::new();
    let mut parents = vec![std::process::id().cast_signed()];
    let read = |pid: i32, what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let all: Vec<i32> = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    while let Some(parent) = parents.pop() {
        for pid in &all {
            let status = read(*pid, "stat");
            // After the name, which may hold anything: state, parent.
            let of = status.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            if of == Some(parent) {
                found.extend(Pid::from_raw(*pid).map(|child| (child, read(*pid, "comm"))));
                parents.push(*pid);
            }
        }
    }
    found
}

#[test]
fn a_render_server_that_dies_never_takes_the_device_or_virgl_with_it() {
    alone("venus::a_render_server_that_dies_never_takes_the_device_or_virgl_with_it", || {
        let mut studio = Studio::alone();
        paint(&studio);
        studio.ok(&Request::ctx_create(CONTEXT, VENUS));
        studio.ok(&shared_blob(CONTEXT, 20, PAGE));
        studio.map(20, 0);
        let started = children();
        assert!(started.len() > 1, "a server, and a process for the context: {started:?}");
        for (child, _) in started {
            let _ = kill_process(child, Signal::KILL);
        }
        // Whatever is asked of it: an answer.
        let submit = Request::submit(CONTEXT, &[0; 64]);
        for request in
            [submit.clone(), submit.clone().fenced(1), submit.fenced(2).on_ring(0), shared_blob(CONTEXT, 21, PAGE)]
        {
            assert_ne!(studio.command(&request).kind(), 0);
        }
        studio.assert_draws(1);
        let again = studio.command(&Request::ctx_create(4, VENUS));
        assert!((0x1200..0x1300).contains(&again.kind()), "a context without a server: {:#x}", again.kind());
        studio.ok(&Request::unmap(20));
        assert_gap(&studio, 0..PAGES);
        studio.ok(&Request::ctx_destroy(CONTEXT));
        studio.assert_draws(2);
        studio.start_over();
        studio.assert_draws(3);
        let counters = studio.device().counters();
        assert_eq!((counters.renderers_lost, counters.requests_lost), (0, 0));
    });
}
