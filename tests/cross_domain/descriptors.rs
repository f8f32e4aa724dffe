//! Descriptors through a channel: what comes in as items, what goes back, and what none of them may become.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;

use virtio_gpu_uring::protocol::cross_domain::{ChannelType, id_type};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID};
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestChannel, HostPeer, HostService, Request, census};
use virtio_gpu_uring::{Builder, HostWindow};

use super::{ROOM, connected, memfd, pattern};

#[test]
fn a_message_of_a_full_ring_and_28_descriptors_is_never_cut() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let files: Vec<OwnedFd> = (1..=28).map(|n| memfd("full", n * 1000)).collect();
    let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    peer.send(&pattern(ROOM), &borrowed);
    let message = channel.receive(&mut guest);
    assert_eq!(message.data, pattern(ROOM));
    let sizes: Vec<u32> = message.identifiers.iter().map(|(_, _, size)| *size).collect();
    assert_eq!(sizes, (1..=28).map(|n| n * 1000).collect::<Vec<u32>>());
    assert!(message.identifiers.iter().all(|(_, kind, _)| *kind == id_type::VIRTGPU_BLOB));
    let ids: HashSet<u32> = message.identifiers.iter().map(|(id, _, _)| *id).collect();
    assert_eq!((ids.len(), ids.contains(&0)), (28, false));
}

#[test]
fn no_id_is_given_or_used_twice() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let mut seen = HashSet::new();
    for round in 0..10u32 {
        let files = [memfd("single-use", 4096), memfd("single-use", 4096)];
        peer.send(b"two", &[files[0].as_fd(), files[1].as_fd()]);
        let message = channel.receive(&mut guest);
        for (id, _, _) in message.identifiers {
            assert!(seen.insert(id), "id {id} came twice");
            let (blob, again) = (100 + id, 10_000 + id);
            guest.command(&Request::host_blob(1, blob, u64::from(id), 4096)).ok();
            guest.command(&Request::host_blob(1, again, u64::from(id), 4096)).expect_error(ERR_INVALID_PARAMETER);
            if round % 2 == 0 {
                guest.command(&Request::unref(blob)).ok();
                guest.command(&Request::host_blob(1, again, u64::from(id), 4096)).expect_error(ERR_INVALID_PARAMETER);
            }
        }
    }
    guest.assert_all_answered();
}

#[test]
fn an_odd_descriptor_is_never_kept_open_and_never_ends_the_channel() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let (good, other) = (memfd("among-odd", 4096), memfd("among-odd", 8192));
    let (mut reader, writer) = UnixStream::pair().expect("sockets");
    let (pipe_reader, pipe_writer) = std::io::pipe().expect("a pipe");
    let files = [good.as_fd(), writer.as_fd(), pipe_reader.as_fd(), other.as_fd()];
    peer.send(b"odd", &files);
    let message = channel.receive(&mut guest);
    assert_eq!(message.data, b"odd");
    let kinds: Vec<(u32, u32)> = message.identifiers.iter().map(|(_, kind, size)| (*kind, *size)).collect();
    let unsupported = (id_type::UNSUPPORTED, 0);
    assert_eq!(kinds, [(1, 4096), unsupported, unsupported, (1, 8192)]);
    assert!(message.identifiers[1..3].iter().all(|(id, _, _)| *id == 0));

    drop((writer, pipe_reader));
    // The other ends find that nobody is there.
    reader.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    assert_eq!(reader.read(&mut [0; 1]).expect("the socket's other end"), 0);
    let timeout = Timespec::try_from(DEADLINE).expect("a short time");
    let mut wanted = [PollFd::new(&pipe_writer, PollFlags::empty())];
    assert_eq!(poll(&mut wanted, Some(&timeout)), Ok(1), "the pipe's other end");
    for (id, _, size) in [message.identifiers[0], message.identifiers[3]] {
        guest.command(&Request::host_blob(1, 100 + id, u64::from(id), u64::from(size))).ok();
    }
    peer.send(b"goes on", &[]);
    assert_eq!(channel.receive(&mut guest).data, b"goes on");
}

/// Receives blobs of these files as resources 20, 21 and so on, attached.
fn receive_blobs(guest: &mut Guest, channel: &mut GuestChannel, peer: &HostPeer, files: &[&OwnedFd]) -> Vec<u32> {
    let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
    peer.send(b"blobs", &borrowed);
    let message = channel.receive(guest);
    let create = |(at, (id, _, _)): (usize, (u32, u32, u32))| {
        let resource = 20 + at as u32;
        guest.command(&Request::host_blob(channel.context(), resource, u64::from(id), 4096)).ok();
        guest.command(&Request::ctx_attach(channel.context(), resource)).ok();
        resource
    };
    message.identifiers.into_iter().enumerate().map(create).collect()
}

#[test]
fn a_sent_blob_is_never_another_file_and_never_taken_from_the_guest() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let files = [memfd("sent-back", 4096), memfd("sent-back", 4096), memfd("sent-back", 4096)];
    let blobs = receive_blobs(&mut guest, &mut channel, &peer, &[&files[0], &files[1], &files[2]]);
    let inode = |file: &OwnedFd| fstat(file).expect("fstat").st_ino;
    for order in [[2, 0, 1], [0, 1, 2]] {
        channel.send(&mut guest, b"back", &order.map(|at| blobs[at]));
        let (data, back) = peer.receive(64);
        assert_eq!(data, b"back");
        let inodes: Vec<u64> = back.iter().map(inode).collect();
        assert_eq!(inodes, order.map(|at| inode(&files[at])));
    }
    rustix::io::pwrite(&files[0], b"still mine", 0).expect("written");
    assert_eq!(census::fds_named("sent-back"), 6);
    for blob in blobs {
        guest.command(&Request::unref(blob)).ok();
    }
    assert_eq!(census::fds_named("sent-back"), 3);
}

#[test]
fn only_attached_host_blobs_are_ever_sent() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let file = memfd("only-attached", 4096);
    let blobs = receive_blobs(&mut guest, &mut channel, &peer, &[&file, &file]);
    guest.command(&Request::ctx_detach(1, blobs[1])).ok();
    // Detached, unknown, none, a guest blob.
    for bad in [blobs[1], 999, 0, channel.rings[0]] {
        for list in [vec![bad], vec![blobs[0], bad]] {
            let send = Request::stream_send(b"never", &list);
            guest.command(&Request::submit(1, &send)).expect_error(ERR_INVALID_RESOURCE_ID);
        }
    }
    channel.send(&mut guest, b"first", &[blobs[0]]);
    let (data, files) = peer.receive(64);
    assert_eq!((data.as_slice(), files.len()), (&b"first"[..], 1));
}

/// Open descriptors of this process that a child would inherit.
fn inheritable() -> HashSet<String> {
    let flags = |name: &str| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{name}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        u32::from_str_radix(flags.trim(), 8).ok()
    };
    let names = fs::read_dir("/proc/self/fd").expect("fd").flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| flags(name).is_some_and(|flags| flags & 0o2_000_000 == 0)).collect()
}

#[test]
fn no_descriptor_of_a_channel_is_ever_inheritable() {
    // Tests beside this one open descriptors too, all of them close-on-exec; what was inherited stays as it is.
    let before = inheritable();
    let service = HostService::listen();
    let window = HostWindow::new(1 << 20).expect("window");
    let builder = Builder::new().window(window).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut guest = Guest::start(builder);
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let file = memfd("inheritable", 4096);
    let blobs = receive_blobs(&mut guest, &mut channel, &peer, &[&file, &file]);
    guest.map(blobs[0], 0);
    channel.send(&mut guest, b"back", &blobs[..1]);
    let _back = peer.receive(16);
    assert_eq!(census::fds_named("inheritable"), 4);
    assert_eq!(inheritable(), before);
}

#[test]
fn two_contexts_never_meet_each_others_ids_or_messages() {
    let service = HostService::listen();
    let (mut guest, mut one, first) = connected(&service);
    let mut two = GuestChannel::open(&mut guest, 2, 30, ChannelType::PIPEWIRE);
    let second = service.accept();
    let (small, large) = (memfd("of-one", 4096), memfd("of-two", 8192));
    let (poll_one, poll_two) = (one.poll(&mut guest), two.poll(&mut guest));
    second.send(b"for two", &[large.as_fd()]);
    let for_two = two.wait(&mut guest, poll_two);
    assert!(!guest.has_answer(&poll_one), "the other context's message was taken");
    first.send(b"for one", &[small.as_fd(), small.as_fd(), small.as_fd()]);
    let for_one = one.wait(&mut guest, poll_one);
    assert_eq!((for_one.data.as_slice(), for_two.data.as_slice()), (&b"for one"[..], &b"for two"[..]));
    // Ids count in each context by itself: what two has not been given it cannot have, whatever one holds.
    let foreign = for_one.identifiers[2].0;
    assert_ne!(foreign, for_two.identifiers[0].0);
    guest.command(&Request::host_blob(2, 50, u64::from(foreign), 4096)).expect_error(ERR_INVALID_PARAMETER);
    guest.command(&Request::host_blob(1, 50, u64::from(foreign), 4096)).ok();
    guest.command(&Request::host_blob(2, 51, u64::from(for_two.identifiers[0].0), 8192)).ok();
    // What is attached to one cannot be sent by two.
    guest.command(&Request::ctx_attach(1, 50)).ok();
    let steal = Request::stream_send(b"steal", &[50]);
    guest.command(&Request::submit(2, &steal)).expect_error(ERR_INVALID_RESOURCE_ID);
    guest.assert_all_answered();
}

#[cfg(feature = "sources")]
#[test]
fn a_dma_buf_is_never_announced_as_unsupported() {
    use virtio_gpu_uring::sources::{PictureSize, Source, memory};
    let source = match memory::udmabuf(PictureSize::default(), 1) {
        Ok(source) => source,
        Err(error) => return eprintln!("skipped: no dma-buf can be made here: {error}"),
    };
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    peer.send(b"dma-buf", &[source.buffer(0)]);
    let message = channel.receive(&mut guest);
    assert_eq!(message.identifiers.len(), 1);
    assert_eq!(message.identifiers[0].1, id_type::VIRTGPU_BLOB);
}
