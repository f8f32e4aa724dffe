//! The cross-domain context as a guest and a host service meet in it: capability set, INIT in every dialect, POLL as
//! credit, descriptors in both directions. What goes wrong on purpose stands in `channel_faults.rs`.
#![cfg(feature = "testing")]

#[path = "cross_domain/descriptors.rs"]
mod descriptors;

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::GuestAddress;
use zerocopy::FromBytes;

use virtio_gpu_uring::protocol::cross_domain::{ChannelType, SendReceive, command};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, FLAG_FENCE, FLAG_INFO_RING_IDX};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostPeer, HostService, Message, Request};
use virtio_gpu_uring::{Builder, HostBuffer};

/// Room for data in a ring of one page.
const ROOM: usize = 4096 - size_of::<SendReceive>();
/// What a ring is filled with so that every write to it shows.
const UNTOUCHED: u8 = 0xee;

fn memfd(name: &str, len: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    file
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn start(service: &HostService) -> Guest {
    Guest::start(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()))
}

/// A guest with one channel, as context 1 with resources 10 and 11.
fn connected(service: &HostService) -> (Guest, GuestChannel, HostPeer) {
    let mut guest = start(service);
    let channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (guest, channel, peer)
}

/// A ring that a test lays out itself.
struct Ring {
    pieces: Vec<(u64, u32)>,
}

impl Ring {
    /// Makes it the guest blob `resource` and attaches it.
    #[track_caller]
    fn create(guest: &mut Guest, context: u32, resource: u32, pieces: Vec<(u64, u32)>) -> Self {
        let ring = Self { pieces };
        let size = u64::from(ring.pieces.iter().map(|(_, len)| len).sum::<u32>());
        guest.command(&Request::guest_blob(resource, size, &ring.pieces)).ok();
        guest.command(&Request::ctx_attach(context, resource)).ok();
        ring.poison(guest);
        ring
    }

    fn one_piece(guest: &mut Guest, context: u32, resource: u32, len: usize) -> Self {
        let range = guest.page_range(len);
        Self::create(guest, context, resource, vec![range])
    }

    fn poison(&self, guest: &Guest) {
        for &(address, len) in &self.pieces {
            guest.ram().write(GuestAddress(address), &vec![UNTOUCHED; len as usize]);
        }
    }

    fn bytes(&self, guest: &Guest) -> Vec<u8> {
        let piece = |&(address, len): &(u64, u32)| guest.ram().read(GuestAddress(address), len as usize);
        self.pieces.iter().flat_map(piece).collect()
    }

    fn is_untouched(&self, guest: &Guest) -> bool {
        self.bytes(guest).iter().all(|byte| *byte == UNTOUCHED)
    }

    /// The message in it, byte by byte as the guest reads it.
    fn message(&self, guest: &Guest) -> Message {
        let bytes = self.bytes(guest);
        let (head, data) = SendReceive::read_from_prefix(&bytes).expect("a whole ring");
        assert_eq!(head.header.cmd, command::RECEIVE);
        let slot =
            |at: usize| (head.identifiers[at].get(), head.identifier_types[at].get(), head.identifier_sizes[at].get());
        Message {
            data: data[..head.opaque_data_size.get() as usize].to_vec(),
            identifiers: (0..head.num_identifiers.get() as usize).map(slot).collect(),
        }
    }
}

fn credit(context: u32, fence: u64) -> Request {
    Request::submit(context, &Request::stream_poll()).fenced(fence).on_ring(1)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

#[test]
fn the_capset_never_lists_a_channel_that_is_not_offered() {
    let builder = Builder::new()
        .host_socket(ChannelType::WAYLAND, "/nonexistent/wayland")
        .host_socket(ChannelType::CAMERA, "/nonexistent/camera")
        .host_socket(ChannelType::X11, "/nonexistent/x11");
    let mut guest = Guest::start(builder);
    let mut count = [0; 4];
    guest.device().read_config(12, &mut count);
    assert_eq!(u32::from_le_bytes(count), 1);
    assert_eq!(words(&guest.command(&Request::capset_info(0)).ok()), [CAPSET_CROSS_DOMAIN, 1, 16, 0]);
    let capset = guest.command(&Request::capset(CAPSET_CROSS_DOMAIN, 1, 16)).ok();
    assert_eq!(words(&capset), [1, 1 << 1 | 1 << 2 | 1 << 17, 1, 0]);
    let refused = [Request::capset_info(1), Request::capset(4, 0, 16), Request::capset(CAPSET_CROSS_DOMAIN, 2, 16)];
    for request in refused {
        guest.command(&request.fenced(9)).expect_error(ERR_INVALID_PARAMETER);
    }
    guest.assert_all_answered();
}

#[test]
fn no_dialect_of_init_is_refused_and_each_delivers_to_the_ring_that_it_names() {
    let service = HostService::listen();
    let mut guest = start(&service);
    for (context, size) in [(1, 16), (2, 20), (3, 24), (4, 36)] {
        let (query, channel) = (context * 10, context * 10 + 1);
        guest.command(&Request::ctx_create(context, CAPSET_CROSS_DOMAIN)).ok();
        let query_ring = Ring::one_piece(&mut guest, context, query, 4096);
        let channel_ring = Ring::one_piece(&mut guest, context, channel, 4096);
        let mut init = match size {
            16 => vec![channel, ChannelType::PIPEWIRE.0],
            _ => vec![query, channel, ChannelType::PIPEWIRE.0, 1, 2, 3, 4],
        };
        init.truncate((size - 8) / 4);
        let mut stream = vec![command::INIT, 0, size as u8, 0, 0, 0, 0, 0];
        init.iter().for_each(|word| stream.extend_from_slice(&word.to_le_bytes()));
        // A POLL in the same stream: the size that INIT states splits the two, not what the stream holds.
        stream.extend(Request::stream_poll());
        let poll = guest.submit(&Request::submit(context, &stream).fenced(1).on_ring(1));
        guest.settle();
        assert_eq!(guest.device().counters().channels_opened, u64::from(context), "INIT of {size} bytes: no channel");
        let peer = service.accept();
        assert!(!guest.has_answer(&poll), "INIT of {size} bytes: answered before there was a message");
        peer.send(&[size as u8], &[]);
        guest.wait(poll).ok();
        assert_eq!(channel_ring.message(&guest).data, [size as u8]);
        assert!(query_ring.is_untouched(&guest), "INIT of {size} bytes: the message came to the ring for queries");
    }
    guest.assert_all_answered();
}

#[test]
fn a_channel_that_is_not_offered_is_never_opened_and_costs_the_context_nothing() {
    let service = HostService::listen();
    let mut guest = start(&service);
    let channel = GuestChannel::create(&mut guest, 1, 10);
    for unknown in [1, 2, 0x11, 15, 17, 32, 48, u32::MAX] {
        let init = Request::stream_init(10, 11, unknown, Some(1));
        guest.command(&Request::submit(1, &init)).expect_error(ERR_INVALID_PARAMETER);
    }
    assert_eq!(guest.device().counters().channels_opened, 0);
    channel.init(&mut guest, ChannelType::PIPEWIRE);
    let peer = service.accept();
    channel.send(&mut guest, b"at last", &[]);
    assert_eq!(peer.receive(16).0, b"at last");
}

#[test]
fn a_ring_that_is_none_is_never_accepted() {
    let service = HostService::listen();
    let mut guest = start(&service);
    let _channel = GuestChannel::create(&mut guest, 1, 10);
    let range = guest.page_range(4096);
    guest.command(&Request::guest_blob(12, 4096, &[range])).ok();
    guest.command(&Request::guest_blob(13, 4096, &[])).ok();
    guest.command(&Request::ctx_attach(1, 13)).ok();
    let host = guest.device().offer(HostBuffer::from_fd(memfd("no-ring", 4096)).expect("a buffer"));
    let host = host.wait().expect("a device").expect("room");
    guest.command(&Request::host_blob(1, 14, host.0, 4096)).ok();
    guest.command(&Request::ctx_attach(1, 14)).ok();
    // Not attached, without backing, of host memory, and none at all.
    for bad in [12, 13, 14, 0, 99] {
        for (query, channel) in [(bad, 11), (10, bad)] {
            let init = Request::stream_init(query, channel, ChannelType::PIPEWIRE.0, None);
            guest.command(&Request::submit(1, &init)).expect_error(ERR_INVALID_RESOURCE_ID);
        }
    }
    assert_eq!(guest.device().counters().channels_opened, 0);
    guest.assert_all_answered();
}

#[test]
fn no_poll_is_answered_before_its_own_message_and_no_two_share_one() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let polls: Vec<_> = (0..4).map(|_| channel.poll(&mut guest)).collect();
    guest.settle();
    assert!(polls.iter().all(|poll| !guest.has_answer(poll)), "a POLL was answered before there was a message");
    let mut waiting = polls.into_iter();
    for text in [b"first", b"other", b"third"] {
        peer.send(text, &[]);
        let poll = waiting.next().expect("a credit");
        assert_eq!(channel.wait(&mut guest, poll).data, text);
        guest.settle();
        assert!(waiting.as_slice().iter().all(|poll| !guest.has_answer(poll)), "two POLLs were answered by {text:?}");
    }
    peer.send(b"last", &[]);
    assert_eq!(channel.wait(&mut guest, waiting.next().expect("a credit")).data, b"last");
    guest.assert_all_answered();
}

#[test]
fn no_message_is_written_without_a_credit() {
    let service = HostService::listen();
    let mut guest = start(&service);
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let ring = Ring::one_piece(&mut guest, 1, 10, 4096);
    let init = Request::stream_init(10, 10, ChannelType::PIPEWIRE.0, None);
    guest.command(&Request::submit(1, &init)).ok();
    let peer = service.accept();
    peer.send(b"early", &[]);
    // A POLL without a fence, or with one on another timeline, asks for nothing.
    let poll = Request::stream_poll();
    guest.command(&Request::submit(1, &poll)).ok();
    guest.command(&Request::submit(1, &poll).fenced(1)).ok();
    guest.command(&Request::submit(1, &poll).fenced(1).on_ring(0)).ok();
    guest.settle();
    assert!(ring.is_untouched(&guest), "a message came without credit");
    assert_eq!(guest.device().counters().messages_received, 0);
    guest.command(&credit(1, 2)).ok();
    assert_eq!(ring.message(&guest).data, b"early");
}

#[test]
fn a_waiting_poll_never_holds_up_another_timeline_and_ring_64_is_none() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let poll = channel.poll(&mut guest);
    let stream = Request::stream_poll();
    let submit = || Request::submit(1, &stream).fenced(0x1_0000_0001);
    guest.command(&submit()).ok();
    for ring in [0, 2, 62, 63] {
        let answer = guest.command(&submit().on_ring(ring));
        assert_eq!((answer.header.flags.get(), answer.header.ring_idx), (FLAG_FENCE | FLAG_INFO_RING_IDX, ring));
        assert_eq!((answer.header.fence_id.get(), answer.header.ctx_id.get()), (0x1_0000_0001, 1));
        answer.ok();
    }
    for ring in [64, 65, 255] {
        let answer = guest.command(&submit().on_ring(ring));
        answer.expect_error(ERR_INVALID_PARAMETER);
        assert_eq!(answer.header.fence_id.get(), 0x1_0000_0001);
        assert_eq!(answer.header.flags.get() & FLAG_FENCE, FLAG_FENCE);
    }
    assert!(!guest.has_answer(&poll));
    peer.send(b"now", &[]);
    assert_eq!(channel.wait(&mut guest, poll).data, b"now");
    guest.assert_all_answered();
}

#[test]
fn data_that_does_not_fit_comes_in_pieces_and_none_is_lost() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    let file = memfd("pieces", 4096);
    let sent = pattern(10_001);
    peer.send(&sent, &[file.as_fd()]);
    let mut seen = Vec::new();
    let mut descriptors = Vec::new();
    while seen.len() < sent.len() {
        let message = channel.receive(&mut guest);
        assert!((1..=ROOM).contains(&message.data.len()), "{} bytes in a piece", message.data.len());
        seen.extend(message.data);
        descriptors.push(message.identifiers.len());
    }
    assert!(seen == sent, "the bytes differ");
    assert_eq!((descriptors[0], descriptors.iter().sum::<usize>()), (1, 1));
}

#[test]
fn a_larger_ring_is_never_used_in_part_nor_left() {
    let service = HostService::listen();
    let mut guest = start(&service);
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let ring = Ring::one_piece(&mut guest, 1, 10, 16_384);
    let beyond = guest.page_range(4096);
    guest.ram().write(GuestAddress(beyond.0), &[UNTOUCHED; 4096]);
    let init = Request::stream_init(10, 10, ChannelType::PIPEWIRE.0, None);
    guest.command(&Request::submit(1, &init)).ok();
    let peer = service.accept();
    let room = 16_384 - size_of::<SendReceive>();
    peer.send(&pattern(room + 5), &[]);
    guest.command(&credit(1, 1)).ok();
    assert!(ring.message(&guest).data == pattern(room), "the ring was not filled");
    guest.command(&credit(1, 2)).ok();
    assert_eq!(ring.message(&guest).data, pattern(room + 5)[room..]);
    assert!(guest.ram().read(GuestAddress(beyond.0), 4096).iter().all(|byte| *byte == UNTOUCHED));
}

#[test]
fn a_message_never_reaches_past_the_blob_of_its_ring() {
    let service = HostService::listen();
    let mut guest = start(&service);
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    // The blob has a page, its list of guest memory two: the second is no part of the resource.
    let (address, len) = guest.page_range(8192);
    guest.ram().write(GuestAddress(address), &[UNTOUCHED; 8192]);
    guest.command(&Request::guest_blob(10, 4096, &[(address, len)])).ok();
    guest.command(&Request::ctx_attach(1, 10)).ok();
    let init = Request::stream_init(10, 10, ChannelType::PIPEWIRE.0, None);
    guest.command(&Request::submit(1, &init)).ok();
    service.accept().send(&pattern(7000), &[]);
    guest.command(&credit(1, 1)).ok();
    let past = guest.ram().read(GuestAddress(address + 4096), 4096);
    assert!(past.iter().all(|byte| *byte == UNTOUCHED), "the message went on behind the blob");
}

#[test]
fn a_ring_in_odd_pieces_is_never_torn() {
    let service = HostService::listen();
    let mut guest = start(&service);
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    let lengths = [1u32, 7, 351, 1, 1025, 2500, 211];
    assert_eq!(lengths.iter().sum::<u32>(), 4096);
    // Each at an odd address, and in no order.
    let mut pieces: Vec<(u64, u32)> =
        lengths.iter().map(|&len| (guest.ram().alloc(len as usize + 32, 16).0 + 13, len)).collect();
    pieces.swap(1, 5);
    pieces.swap(0, 4);
    let ring = Ring::create(&mut guest, 1, 10, pieces);
    let init = Request::stream_init(10, 10, ChannelType::PIPEWIRE.0, None);
    guest.command(&Request::submit(1, &init)).ok();
    let peer = service.accept();
    let file = memfd("odd-pieces", 77);
    peer.send(&pattern(ROOM), &[file.as_fd()]);
    guest.command(&credit(1, 1)).ok();
    let message = ring.message(&guest);
    assert!(message.data == pattern(ROOM), "the bytes differ");
    assert_eq!(message.identifiers.len(), 1);
    assert_eq!(message.identifiers[0].2, 77);
    for &(address, len) in &ring.pieces {
        let around = [address - 1, address + u64::from(len)];
        assert!(around.iter().all(|at| guest.ram().read(GuestAddress(*at), 1) == [0]), "a neighbour was written");
    }
}
