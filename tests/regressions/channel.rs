//! Cross-domain channels: what takes a credit, who is told of the end, and what becomes of files that are of no use.

use std::fs::File;
use std::os::fd::AsFd;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostPeer, HostService, Message, Request, census};
use virtio_gpu_uring::{Builder, Limits};

use crate::{PAGE, offer, until};

/// A guest whose context 1 has a channel.
fn connected() -> (Guest, GuestChannel, HostPeer) {
    connected_to(Builder::new())
}

fn connected_to(builder: Builder) -> (Guest, GuestChannel, HostPeer) {
    let service = HostService::listen();
    let mut guest = Guest::start(builder.host_socket(ChannelType::PIPEWIRE, service.path()));
    let channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (guest, channel, peer)
}

#[test]
fn a_fenced_command_that_is_no_stream_never_waits_for_a_message_nor_takes_one() {
    let (mut guest, mut channel, peer) = connected();
    let offered = offer(&guest, "regressions-credit");
    let page = guest.page_range(PAGE as usize);
    let commands = [
        Request::host_blob(1, 20, offered.0, PAGE),
        Request::guest_blob(21, PAGE, &[page]).context(1),
        Request::ctx_attach(1, 20),
        Request::detach_backing(21).context(1),
        Request::ctx_detach(1, 20),
        Request::unref(20).context(1),
        Request::display_info().context(1),
    ];
    for (fence, command) in (100..).zip(&commands) {
        guest.command(&command.clone().fenced(fence).on_ring(1)).ok();
    }
    peer.send(b"one", &[]);
    for _ in 0..16 {
        guest.settle();
    }
    assert_eq!(guest.device().counters().messages_received, 0, "a message was taken for nobody");
    assert_eq!(channel.message(&guest).data, b"");
    assert_eq!(channel.receive(&mut guest).data, b"one");
    peer.send(b"two", &[]);
    assert_eq!(channel.receive(&mut guest).data, b"two");
    assert_eq!(guest.device().counters().messages_received, 2);
}

/// The ring shows `last`, however often the device has its turn, until the guest asks: then it is told of the end at once.
#[track_caller]
fn assert_ends_when_asked(guest: &mut Guest, channel: &mut GuestChannel, last: &Message) {
    for _ in 0..16 {
        guest.settle();
    }
    assert_eq!(&channel.message(guest), last, "the end was told before anybody asked");
    for _ in 0..3 {
        let end = channel.receive(guest);
        assert!(end.data.is_empty() && end.identifiers.is_empty(), "no end of the file, but {end:?}");
    }
    assert_eq!(guest.device().counters().channels_closed, 1);
    guest.assert_all_answered();
}

#[test]
fn the_end_of_a_channel_is_never_written_over_a_message_unasked() {
    let (mut guest, mut channel, peer) = connected();
    peer.send(b"last", &[]);
    let last = channel.receive(&mut guest);
    assert_eq!(last.data, b"last");
    drop(peer);
    assert_ends_when_asked(&mut guest, &mut channel, &last);
}

#[test]
fn the_end_of_an_overrun_channel_is_never_written_over_a_message_unasked() {
    let limits = Limits { channel_backlog: 4096, ..Limits::default() };
    let (mut guest, mut channel, peer) = connected_to(Builder::new().limits(limits));
    peer.send(b"last", &[]);
    let last = channel.receive(&mut guest);
    assert_eq!(last.data, b"last");
    let more = Request::submit(1, &Request::stream_send(&[7; 2048], &[]));
    until("the service's backlog is full", || {
        let _ = guest.command(&more);
        guest.device().counters().channels_closed == 1
    });
    assert_ends_when_asked(&mut guest, &mut channel, &last);
}

#[test]
fn the_end_of_a_channel_is_never_kept_from_a_guest_that_asks_already() {
    let (mut guest, mut channel, peer) = connected();
    peer.send(b"last", &[]);
    assert_eq!(channel.receive(&mut guest).data, b"last");
    let polls = [channel.poll(&mut guest), channel.poll(&mut guest)];
    drop(peer);
    for poll in polls {
        let end = channel.wait(&mut guest, poll);
        assert!(end.data.is_empty() && end.identifiers.is_empty(), "no end of the file, but {end:?}");
    }
    guest.assert_all_answered();
}

#[test]
fn a_file_of_a_disk_that_a_service_sends_never_stays_open() {
    const NAME: &str = "regressions-file-of-a-disk";
    let path = format!("{}/{NAME}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let (mut guest, mut channel, peer) = connected();
    let file = File::create_new(&path).expect("a new file");
    std::fs::remove_file(&path).expect("removed");
    for round in 1..=8 {
        peer.send(b"file", &[file.as_fd(), file.as_fd()]);
        let message = channel.receive(&mut guest);
        assert_eq!(message.data, b"file");
        let kinds: Vec<_> = message.identifiers.iter().map(|(id, kind, _)| (*id, *kind)).collect();
        assert_eq!(kinds.len(), 2, "{message:?}");
        assert!(kinds.iter().all(|(id, kind)| *id == 0 && *kind != 1), "a file of a disk was taken: {message:?}");
        until("the device's descriptors are closed", || census::fds_named(NAME) == 1);
        assert_eq!(guest.device().counters().fds_received, 2 * round);
    }
    drop(file);
    until("all descriptors are closed", || census::fds_named(NAME) == 0);
}
