//! Blobs and the contexts that they came from: whose objects they are, and what is left when either of them goes.

use std::os::fd::AsFd;

use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID,
};
use virtio_gpu_uring::testing::{GuestChannel, HostService, Request, census};

use crate::setup::{CONTEXT, PAGE, PAGES, Setup, memfd, put};

#[test]
fn an_item_of_one_context_is_never_given_to_another() {
    let service = HostService::listen();
    let mut setup = Setup::with(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
    let mut channels = Vec::new();
    for context in [2, 3] {
        channels.push(GuestChannel::open(&mut setup.guest, context, 10 * context, ChannelType::PIPEWIRE));
    }
    let peers = [service.accept(), service.accept()];
    peers[0].send(b"x", &[memfd("of-one-context", PAGE).as_fd()]);
    let message = channels[0].receive(&mut setup.guest);
    let id = u64::from(message.identifiers[0].0);
    for context in [CONTEXT, 3] {
        setup.refused(&Request::host_blob(context, 7, id, PAGE), ERR_INVALID_PARAMETER);
    }
    for context in [0, 4, u32::MAX] {
        setup.refused(&Request::host_blob(context, 7, id, PAGE), ERR_INVALID_CONTEXT_ID);
    }
    for other in [id | 1 << 32, id | 1 << 62] {
        setup.refused(&Request::host_blob(2, 7, other, PAGE), ERR_INVALID_PARAMETER);
    }
    setup.ok(&Request::host_blob(2, 7, id, PAGE));
    setup.refused(&Request::host_blob(2, 8, id, PAGE), ERR_INVALID_PARAMETER);
}

/// Linux sends CTX_DESTROY first when a process dies, and UNMAP and UNREF after it.
#[test]
fn a_destroyed_context_never_takes_its_mapped_blobs_along() {
    let name = "outlives-its-context";
    let mut setup = Setup::new();
    setup.paint();
    let file = memfd(name, 2 * PAGE);
    setup.blob(7, &file, 2 * PAGE);
    setup.ok(&Request::ctx_attach(CONTEXT, 7));
    setup.guest.map(7, 4 * PAGE);
    setup.ok(&Request::ctx_destroy(CONTEXT));
    assert_eq!(setup.pages(4..6), [1, 2]);
    put(&file, PAGE, 0x42);
    assert_eq!(setup.byte(5 * PAGE), 0x42, "the page is no longer live");
    assert_eq!(census::maps_named(name), 1);
    setup.ok(&Request::unmap(7));
    setup.assert_gap(0..PAGES);
    setup.guest.map(7, 0);
    assert_eq!(setup.byte(PAGE), 0x42);
    setup.ok(&Request::unref(7));
    setup.assert_gap(0..PAGES);
    assert_eq!((census::fds_named(name), census::maps_named(name)), (1, 0));
}

#[test]
fn an_item_that_nobody_made_a_blob_of_never_outlives_its_context() {
    let name = "unconsumed-item";
    let service = HostService::listen();
    let mut setup = Setup::with(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
    let mut channel = GuestChannel::open(&mut setup.guest, 2, 10, ChannelType::PIPEWIRE);
    let file = memfd(name, PAGE);
    service.accept().send(b"x", &[file.as_fd(), file.as_fd()]);
    let ids = channel.receive(&mut setup.guest).identifiers;
    setup.ok(&Request::host_blob(2, 7, u64::from(ids[0].0), PAGE));
    assert_eq!(census::fds_named(name), 3);
    setup.ok(&Request::ctx_destroy(2));
    assert_eq!(census::fds_named(name), 2, "the blob's own descriptor, and the test's");
    setup.ok(&Request::unref(7));
    assert_eq!(census::fds_named(name), 1);
}

#[test]
fn a_new_blob_under_an_old_id_never_inherits_anything() {
    let mut setup = Setup::new();
    setup.paint();
    let (old, new) = (memfd("old", 2 * PAGE), memfd("new", PAGE));
    put(&new, 0, 0x99);
    setup.blob(7, &old, 2 * PAGE);
    setup.ok(&Request::ctx_attach(CONTEXT, 7));
    setup.guest.map(7, 0);
    setup.ok(&Request::unref(7));
    for request in [Request::unmap(7), Request::map(7, 0), Request::ctx_attach(CONTEXT, 7), Request::unref(7)] {
        setup.refused(&request, ERR_INVALID_RESOURCE_ID);
    }
    setup.blob(7, &new, PAGE);
    setup.refused(&Request::ctx_detach(CONTEXT, 7), ERR_INVALID_PARAMETER);
    setup.refused(&Request::unmap(7), ERR_INVALID_PARAMETER);
    setup.guest.map(7, PAGE);
    assert_eq!(setup.byte(PAGE), 0x99);
    setup.assert_gap(0..1);
    setup.assert_gap(2..PAGES);
    setup.ok(&Request::unref(7));
    let range = setup.guest.page_range(4096);
    setup.ok(&Request::guest_blob(7, PAGE, &[range]));
    setup.refused(&Request::map(7, 0), ERR_INVALID_PARAMETER);
}

#[test]
fn a_blob_never_holds_more_or_less_than_one_descriptor() {
    let name = "one-descriptor";
    let mut setup = Setup::new();
    let file = memfd(name, PAGE);
    setup.blob(7, &file, PAGE);
    let mut steps = vec![census::fds_named(name)];
    setup.guest.map(7, 0);
    steps.push(census::fds_named(name));
    for context in [2, 3] {
        setup.ok(&Request::ctx_create(context, 0));
        setup.ok(&Request::ctx_attach(context, 7));
    }
    steps.push(census::fds_named(name));
    setup.ok(&Request::unmap(7));
    steps.push(census::fds_named(name));
    setup.ok(&Request::unref(7));
    assert_eq!(steps, [2; 4], "with the test's own");
    assert_eq!(census::fds_named(name), 1);
}
