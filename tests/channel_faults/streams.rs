//! Command streams that no guest should send: each is refused whole, and none hangs, panics or loses anything.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, command};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, FLAG_FENCE};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Request, Token, census};

use super::{assert_lives, connected, memfd, start_with};

/// A command of the length that `size` states, whatever it holds.
fn stated(cmd: u8, size: u16, body: &[u8]) -> Vec<u8> {
    let [low, high] = size.to_le_bytes();
    [&[cmd, 0, low, high, 0, 0, 0, 0], body].concat()
}

/// A command that states its own length.
fn honest(cmd: u8, body: &[u8]) -> Vec<u8> {
    stated(cmd, 8 + body.len() as u16, body)
}

/// A SEND with these fields and `data` bytes of data.
fn send(identifiers: u32, kind: u32, len: u32, data: usize) -> Vec<u8> {
    let mut body = vec![0; 344 + data];
    body[..4].copy_from_slice(&identifiers.to_le_bytes());
    body[4..8].copy_from_slice(&len.to_le_bytes());
    body[8..12].copy_from_slice(&20u32.to_le_bytes());
    body[120..124].copy_from_slice(&kind.to_le_bytes());
    honest(command::SEND, &body)
}

fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let mut list = vec![
        ("one byte", vec![command::POLL]),
        ("seven bytes", vec![command::POLL, 0, 7, 0, 0, 0, 0]),
        ("size 0", stated(command::POLL, 0, &[])),
        ("size 0 with a body", stated(command::POLL, 0, &[0; 64])),
        ("size 7", stated(command::POLL, 7, &[])),
        ("size past the end", stated(command::POLL, 9, &[])),
        ("size far past the end", stated(command::POLL, u16::MAX, &[])),
        ("a tail of 3 bytes", [honest(command::POLL, &[]), vec![3, 0, 8]].concat()),
        ("a second command of size 0", [honest(command::POLL, &[]), stated(command::POLL, 0, &[])].concat()),
        ("command 0", honest(0, &[0; 8])),
        ("RECEIVE from a guest", honest(command::RECEIVE, &[0; 344])),
        ("command 200", honest(200, &[0; 8])),
        ("command 255", honest(255, &[])),
        ("SEND without its fields", honest(command::SEND, &[])),
        ("SEND one byte short", honest(command::SEND, &[0; 343])),
        ("29 identifiers", send(29, 1, 1, 1)),
        ("2^32 - 1 identifiers", send(u32::MAX, 1, 1, 1)),
        ("data past the command", send(0, 0, 2, 1)),
        ("2^32 - 1 bytes of data", send(0, 0, u32::MAX, 1)),
        ("identifiers of type 0", send(1, 0, 1, 1)),
        ("identifiers of type 99", send(1, 99, 1, 1)),
    ];
    for size in [0, 4, 20, 24, 32, 512] {
        list.push(("INIT of a size that no dialect has", honest(command::INIT, &vec![1; size])));
    }
    list
}

#[test]
fn no_malformed_stream_is_carried_out_even_in_part() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    for (what, stream) in malformed() {
        for prefix in [vec![], Request::stream_send(b"never", &[])] {
            let stream = [prefix, stream.clone()].concat();
            let answer = guest.command(&Request::submit(1, &stream).fenced(7).on_ring(1));
            assert_eq!(answer.kind(), ERR_INVALID_PARAMETER, "{what}: answered {:#x}", answer.kind());
            assert_eq!((answer.header.fence_id.get(), answer.header.ctx_id.get()), (7, 1), "{what}");
            assert_eq!((answer.header.ring_idx, answer.header.flags.get() & FLAG_FENCE), (1, FLAG_FENCE), "{what}");
        }
    }
    // None of it was sent, and none of those fences took a credit.
    assert_lives(&mut guest, &mut channel, &peer);
    guest.assert_all_answered();
}

#[test]
fn a_stream_that_is_shorter_than_its_command_says_is_refused() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    for size in [17u32, 4096, u32::MAX] {
        let body = [&size.to_le_bytes()[..], &[0; 4], &Request::stream_poll()].concat();
        let answer = guest.command(&Request::new(0x207, &body).context(1).fenced(3));
        assert!((0x1200..0x1206).contains(&answer.kind()), "size {size}: answered {:#x}", answer.kind());
        assert_eq!(answer.header.fence_id.get(), 3);
    }
    // An empty stream asks for nothing, which is no mistake.
    guest.command(&Request::submit(1, &[])).ok();
    assert_lives(&mut guest, &mut channel, &peer);
}

#[test]
fn a_second_init_never_opens_a_second_channel_nor_ends_the_first() {
    let service = HostService::listen();
    let (mut guest, mut channel, peer) = connected(&service);
    for channel_type in [ChannelType::PIPEWIRE, ChannelType::NONE] {
        let init = Request::stream_init(10, 11, channel_type.0, None);
        guest.command(&Request::submit(1, &init)).expect_error(ERR_INVALID_PARAMETER);
        guest.command(&Request::submit(1, &[init.clone(), init].concat())).expect_error(ERR_INVALID_PARAMETER);
    }
    assert_lives(&mut guest, &mut channel, &peer);
    assert_eq!(guest.device().counters().channels_opened, 1);
    // Nor does one after the end of the channel.
    let poll = channel.poll(&mut guest);
    drop(peer);
    guest.wait(poll).ok();
    let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, None);
    guest.command(&Request::submit(1, &init)).expect_error(ERR_INVALID_PARAMETER);
}

#[test]
fn a_stream_for_a_context_that_does_not_exist_is_refused_by_its_id() {
    let service = HostService::listen();
    let (mut guest, _channel, _peer) = connected(&service);
    for context in [0, 2, u32::MAX] {
        for ring in [None, Some(0), Some(1), Some(63)] {
            let mut request = Request::submit(context, &Request::stream_poll()).fenced(5);
            if let Some(ring) = ring {
                request = request.on_ring(ring);
            }
            let answer = guest.command(&request);
            answer.expect_error(ERR_INVALID_CONTEXT_ID);
            assert_eq!((answer.header.fence_id.get(), answer.header.ctx_id.get()), (5, context));
        }
    }
    guest.command(&Request::ctx_destroy(1)).ok();
    let poll = Request::submit(1, &Request::stream_poll()).fenced(5).on_ring(1);
    guest.command(&poll).expect_error(ERR_INVALID_CONTEXT_ID);
    guest.assert_all_answered();
}

/// Commands that are right more often than random bytes would be.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let ids = prop_oneof![Just(10u32), Just(11), Just(20), 0u32..40, any::<u32>()];
    let init = (prop::collection::vec(ids, 2..8)).prop_map(|mut words| {
        if words.len() > 2 {
            words[2] = ChannelType::PIPEWIRE.0;
        }
        let body: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        honest(command::INIT, &body)
    });
    let poll = (0usize..24).prop_map(|len| honest(command::POLL, &vec![0; len]));
    let identifiers = prop_oneof![Just(0u32), Just(1), 0u32..31];
    let kind = prop_oneof![3 => Just(1u32), 1 => 0u32..3];
    let sending = (identifiers, kind, 0u32..400, 0usize..400);
    let sending = sending.prop_map(|(identifiers, kind, len, data)| send(identifiers, kind, len, data));
    let any_header = (0u8..14, any::<u16>(), prop::collection::vec(any::<u8>(), 0..64));
    let any_header = any_header.prop_map(|(cmd, size, body)| stated(cmd, size, &body));
    prop_oneof![1 => init, 3 => poll, 3 => sending, 1 => any_header]
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..600),
        3 => prop::collection::vec(likely(), 0..4).prop_map(|commands| commands.concat()),
    ]
}

/// A guest that is fed with anything; its context starts anew now and then.
struct Fed {
    guest: Guest,
    waiting: Vec<Token>,
    rounds: u32,
}

impl Fed {
    fn round(&mut self, context: u32, stream: &[u8], ring: Option<u8>) {
        let mut request = Request::submit(context, stream);
        if let Some(ring) = ring {
            request = request.fenced(u64::from(self.rounds)).on_ring(ring);
        }
        let token = self.guest.submit(&request);
        if ring == Some(1) {
            // May wait for a message that never comes.
            self.waiting.push(token);
        } else {
            let kind = self.guest.wait(token).kind();
            assert!((0x1100..0x1206).contains(&kind), "answered {kind:#x}");
        }
        self.rounds += 1;
        if self.rounds.is_multiple_of(16) {
            self.anew();
        }
    }

    fn anew(&mut self) {
        self.guest.command(&Request::ctx_destroy(1)).ok();
        for token in self.waiting.drain(..) {
            self.guest.wait(token);
        }
        self.guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
        for resource in [10, 11, 20] {
            self.guest.command(&Request::ctx_attach(1, resource)).ok();
        }
        if self.rounds.is_multiple_of(32) {
            let init = Request::stream_init(10, 11, ChannelType::PIPEWIRE.0, None);
            self.guest.command(&Request::submit(1, &init)).ok();
        }
    }
}

#[test]
fn no_stream_of_random_bytes_hangs_the_device_or_loses_anything() {
    let service = HostService::listen();
    let mut guest = start_with(&service, Limits { channel_backlog: 4096, ..Limits::default() });
    let mut channel = GuestChannel::open(&mut guest, 1, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let file = memfd("sent-at-random", 4096);
    peer.send(b"blob", std::slice::from_ref(&std::os::fd::AsFd::as_fd(&file)));
    let id = channel.receive(&mut guest).identifiers[0].0;
    guest.command(&Request::host_blob(1, 20, u64::from(id), 4096)).ok();
    let fed = RefCell::new(Fed { guest, waiting: Vec::new(), rounds: 0 });
    fed.borrow_mut().anew();
    // A case that fails by its deadline would fail as slowly with every shorter one.
    let config = Config { cases: 3000, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
    let rings = prop_oneof![Just(None), Just(Some(0)), Just(Some(1)), any::<u8>().prop_map(Some)];
    let contexts = prop_oneof![9 => Just(1u32), 1 => 0u32..3];
    TestRunner::new(config)
        .run(&(contexts, streams(), rings), |(context, stream, ring)| {
            fed.borrow_mut().round(context, &stream, ring);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let mut fed = fed.into_inner();
    fed.anew();
    fed.guest.command(&Request::unref(20)).ok();
    fed.guest.assert_all_answered();
    let counters = fed.guest.device().counters();
    assert!(counters.channels_opened > 50 && counters.messages_sent > 50 && counters.fds_sent > 0, "{counters:?}");
    assert_eq!(counters.channels_opened, counters.channels_closed);
    // What waits unread in connections that nobody accepted goes with the service.
    drop((service, peer));
    assert_eq!(census::fds_named("sent-at-random"), 1);
}
