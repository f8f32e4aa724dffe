//! Services that do not read: what waits for them is bounded, whole, in order, and paid for.

use std::os::fd::AsFd;

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, id_type};
use virtio_gpu_uring::protocol::wire::response_type::ERR_OUT_OF_MEMORY;
use virtio_gpu_uring::testing::{GuestChannel, HostService, Request, census};

use super::{assert_lives, connected, connected_with, memfd, peek};

#[test]
fn a_service_that_never_reads_delays_nobody_and_ends_at_its_limit() {
    const BACKLOG: usize = 256 << 10;
    let service = HostService::listen();
    let limits = Limits { channel_backlog: BACKLOG, ..Limits::default() };
    let (mut guest, mut stuck, deaf) = connected_with(&service, limits);
    let mut other = GuestChannel::open(&mut guest, 2, 30, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let poll = stuck.poll(&mut guest);
    let stream = Request::stream_send(&[7; 16 << 10], &[]);
    let mut taken = 0;
    let refused = loop {
        let answer = guest.command(&Request::submit(1, &stream));
        if answer.kind() >= 0x1200 {
            break answer;
        }
        taken += 16 << 10;
        assert_lives(&mut guest, &mut other, &peer);
        assert!(taken < 64 << 20, "64 MiB are kept for a service that does not read");
    };
    refused.expect_error(ERR_OUT_OF_MEMORY);
    assert!(taken >= BACKLOG, "refused after {taken} bytes");
    // The channel is closed: what is in the socket is still read, then comes the end, and no fence goes on waiting.
    let mut read = 0;
    while peek(&deaf) != Ok(0) {
        let (data, _) = deaf.receive(64 << 10);
        read += data.len();
    }
    assert!(read <= taken);
    guest.wait(poll).ok();
    let late = stuck.poll(&mut guest);
    guest.wait(late).ok();
    assert_lives(&mut guest, &mut other, &peer);
    guest.command(&Request::ctx_destroy(1)).ok();
    guest.assert_all_answered();
    let counters = guest.device().counters();
    assert_eq!((counters.channels_opened, counters.channels_closed), (2, 1));
}

#[test]
fn what_waits_for_a_slow_reader_comes_whole_and_in_order() {
    let service = HostService::listen();
    let (mut guest, channel, peer) = connected(&service);
    let total: Vec<u8> = (0..1 << 20).map(|at: usize| (at / 1000) as u8).collect();
    // So long that the socket takes a part of one and refuses the rest.
    for piece in total.chunks(60_001) {
        channel.send(&mut guest, piece, &[]);
    }
    let mut seen = Vec::new();
    while seen.len() < total.len() {
        let (data, _) = peer.receive(64 << 10);
        assert!(!data.is_empty(), "the channel ended after {} bytes", seen.len());
        seen.extend(data);
    }
    assert!(seen == total, "the bytes differ");
}

#[test]
fn descriptors_that_wait_in_a_backlog_go_with_their_own_message() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let file = memfd("in-the-backlog", 4096);
    peer.send(b"one", &[file.as_fd()]);
    let id = channel.receive(&mut guest).identifiers[0].0;
    guest.command(&Request::host_blob(1, 20, u64::from(id), 4096)).ok();
    guest.command(&Request::ctx_attach(1, 20)).ok();
    for _ in 0..64 {
        channel.send(&mut guest, &[1; 32 << 10], &[]);
    }
    channel.send(&mut guest, &[2; 8], &[20]);
    // The blob goes, its file travels on all the same.
    guest.command(&Request::unref(20)).ok();
    let (mut ones, mut files) = (0, Vec::new());
    let twos = loop {
        let (data, more) = peer.receive(64 << 10);
        ones += data.iter().filter(|byte| **byte == 1).count();
        files.extend(more);
        let twos = data.iter().filter(|byte| **byte == 2).count();
        if twos > 0 {
            break twos;
        }
    };
    assert_eq!((ones, twos, files.len()), (64 * (32 << 10), 8, 1));
    drop(files);
    guest.settle();
    assert_eq!(census::fds_named("in-the-backlog"), 1);
}

#[test]
fn files_that_wait_in_a_backlog_never_escape_their_quota() {
    const FDS: u64 = 12;
    let service = HostService::listen();
    let limits = Limits { fds: FDS, ..Limits::default() };
    let (mut guest, mut channel, peer) = connected_with(&service, limits);
    // From here on nothing that is sent leaves the device.
    for _ in 0..32 {
        channel.send(&mut guest, &[1; 32 << 10], &[]);
    }
    let file = memfd("escapes-the-quota", 4096);
    let mut refused = false;
    for round in 0..10 {
        if refused {
            // At the quota the channel may well be closed.
            break;
        }
        peer.send(b"four", &[file.as_fd(); 4]);
        for (id, kind, _) in channel.receive(&mut guest).identifiers {
            if kind != id_type::VIRTGPU_BLOB {
                continue;
            }
            guest.command(&Request::host_blob(1, 20, u64::from(id), 4096)).ok();
            guest.command(&Request::ctx_attach(1, 20)).ok();
            refused |= guest.command(&Request::submit(1, &Request::stream_send(b"x", &[20]))).kind() >= 0x1200;
            guest.command(&Request::unref(20)).ok();
        }
        let held = census::fds_named("escapes-the-quota") as u64 - 1;
        assert!(held <= FDS, "round {round}: the device holds {held} descriptors where {FDS} are allowed");
    }
}

#[test]
fn a_backlog_of_the_smallest_messages_is_bounded_by_more_than_their_bytes() {
    const BACKLOG: usize = 1 << 20;
    let service = HostService::listen();
    let limits = Limits { channel_backlog: BACKLOG, host_bytes: 1 << 20, ..Limits::default() };
    let (mut guest, channel, _deaf) = connected_with(&service, limits);
    for _ in 0..16 {
        channel.send(&mut guest, &[1; 32 << 10], &[]);
    }
    // Each message that waits costs the host some 100 bytes of bookkeeping, whatever it holds. Half the backlog in single
    // bytes would take 50 MB.
    let many = Request::stream_send(b"x", &[]).repeat(2000);
    let refused = (0..256).any(|_| guest.command(&Request::submit(1, &many)).kind() >= 0x1200);
    assert!(refused, "512,000 messages of one byte are kept on 1 MiB of quota");
}
