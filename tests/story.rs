//! The reason the crate exists, from a guest's side: a host buffer that comes over a cross-domain socket is live in the
//! window, in both directions, and nothing of it is left afterwards.
#![cfg(feature = "testing")]

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Request};
use virtio_gpu_uring::{Builder, HostWindow};

#[test]
fn a_buffer_from_a_host_service_is_never_zeros_in_the_guest() {
    let service = HostService::listen();
    let window = HostWindow::new(1 << 20).expect("window");
    let builder = Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut guest = Guest::start(builder);
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();

    let poll = channel.poll(&mut guest);
    guest.settle();
    assert!(!guest.has_answer(&poll), "a POLL was answered before there was a message");
    let file = memfd_create("story", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, 2312).expect("size");
    rustix::io::pwrite(&file, b"live", 100).expect("write");
    peer.send(b"hello", &[file.as_fd()]);
    let message = channel.wait(&mut guest, poll);
    assert_eq!(message.data, b"hello");
    let [(id, kind, size)] = message.identifiers[..] else { panic!("{message:?}") };
    assert_eq!((kind, size), (1, 2312));

    guest.command(&Request::host_blob(1, 20, u64::from(id), 4096)).ok();
    guest.map(20, 0x2000);
    guest.command(&Request::ctx_attach(1, 20)).ok();
    let mut seen = [0; 4];
    window.read(0x2000 + 100, &mut seen).expect("in the window");
    assert_eq!(&seen, b"live");
    rustix::io::pwrite(&file, b"next", 100).expect("write");
    window.read(0x2000 + 100, &mut seen).expect("in the window");
    assert_eq!(&seen, b"next");
    window.write(0x2000 + 100, b"back").expect("in the window");
    rustix::io::pread(&file, &mut seen, 100).expect("read");
    assert_eq!(&seen, b"back");

    channel.send(&mut guest, b"thanks", &[20]);
    let (data, files) = peer.receive(64);
    assert_eq!((data.as_slice(), files.len()), (&b"thanks"[..], 1));

    guest.command(&Request::unmap(20)).ok();
    window.read(0x2000 + 100, &mut seen).expect("in the window");
    assert_eq!(seen, [0; 4]);
    guest.command(&Request::ctx_detach(1, 20)).ok();
    guest.command(&Request::unref(20)).ok();
    guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(peer.receive(1).0, b"");
    guest.assert_all_answered();
}
