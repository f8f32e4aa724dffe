//! Buffers that the VMM hands to the device: who may make a blob of one, and how often.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER};
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{BufferError, HostBuffer};

use crate::setup::{CONTEXT, PAGE, Setup, memfd};

#[test]
fn an_offered_id_never_looks_like_one_of_a_context_and_never_comes_twice() {
    let setup = Setup::new();
    let file = memfd("bit63", PAGE);
    let ids: Vec<u64> = (0..32).map(|_| setup.offer(&file)).collect();
    assert!(ids.iter().all(|id| id >> 63 == 1), "{ids:x?}");
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
}

#[test]
fn an_offer_is_never_made_a_blob_of_twice() {
    let mut setup = Setup::new();
    let id = setup.offer(&memfd("once", PAGE));
    setup.ok(&Request::host_blob(CONTEXT, 7, id, PAGE));
    setup.refused(&Request::host_blob(CONTEXT, 8, id, PAGE), ERR_INVALID_PARAMETER);
    setup.ok(&Request::unref(7));
    setup.refused(&Request::host_blob(CONTEXT, 7, id, PAGE), ERR_INVALID_PARAMETER);
}

#[test]
fn an_offer_is_never_kept_from_a_context_whatever_its_kind() {
    let mut setup = Setup::new();
    setup.ok(&Request::ctx_create(2, 0));
    setup.ok(&Request::ctx_create(u32::MAX, CAPSET_CROSS_DOMAIN));
    for (resource, context) in [(7, CONTEXT), (8, 2), (9, u32::MAX)] {
        let id = setup.offer(&memfd("any", PAGE));
        setup.ok(&Request::host_blob(context, resource, id, PAGE));
        setup.guest.map(resource, u64::from(resource) * PAGE);
        assert_eq!(setup.byte(u64::from(resource) * PAGE), 1);
    }
}

#[test]
fn an_id_that_was_not_offered_is_never_created() {
    let mut setup = Setup::new();
    let id = setup.offer(&memfd("guessed", PAGE));
    for other in [0, 1, 2, id & !(1 << 63), id + 1, id ^ 1 << 62, id ^ 1 << 32, 1 << 63, u64::MAX] {
        setup.refused(&Request::host_blob(CONTEXT, 7, other, PAGE), ERR_INVALID_PARAMETER);
    }
    for context in [0, 2, u32::MAX] {
        setup.refused(&Request::host_blob(context, 7, id, PAGE), ERR_INVALID_CONTEXT_ID);
    }
    setup.ok(&Request::host_blob(CONTEXT, 7, id, PAGE));
}

#[test]
fn an_offer_that_nobody_takes_never_outlives_a_reset() {
    let name = "offer-and-reset";
    let mut setup = Setup::new();
    let file = memfd(name, PAGE);
    let id = setup.offer(&file);
    assert_eq!(census::fds_named(name), 2);
    setup.guest.reset();
    assert_eq!(census::fds_named(name), 1);
    setup.guest.activate();
    setup.ok(&Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN));
    setup.refused(&Request::host_blob(CONTEXT, 7, id, PAGE), ERR_INVALID_PARAMETER);
    let again = setup.offer(&file);
    assert_ne!(again, id, "an id from before the reset means another buffer now");
    setup.ok(&Request::host_blob(CONTEXT, 7, again, PAGE));
}

#[test]
fn a_file_that_is_no_buffer_never_becomes_an_offer() {
    let kind_of = |file: OwnedFd| match HostBuffer::from_fd(file) {
        Err(error @ (BufferError::Kind { .. } | BufferError::WriteOnly { .. } | BufferError::Empty { .. })) => {
            error.to_string()
        }
        other => panic!("{other:?}"),
    };
    let flags = rustix::event::EventfdFlags::CLOEXEC;
    let eventfd = rustix::event::eventfd(0, flags).expect("an eventfd");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let path = std::env::current_exe().expect("this program");
    let disk = std::fs::File::open(path).expect("this program, to read").into();
    for (file, word) in [(eventfd, "eventfd"), (reader.into(), "pipe"), (writer.into(), "pipe"), (disk, "disk")] {
        let text = kind_of(file);
        assert!(text.contains(word), "{text:?} does not name the kind {word:?}");
    }
    assert!(kind_of(memfd("empty-offer", 0)).contains("empty"));
}
