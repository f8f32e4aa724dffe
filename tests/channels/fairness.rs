//! Whoever talks a lot delays nobody else: sockets, eventfds and pipes of one channel take turns, and channels too.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::event::EventfdFlags;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{SendFlags, send};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::cross_domain::id_type::{READ_PIPE, WRITE_PIPE};
use virtio_gpu_uring::protocol::wire::response_type::ERR_UNSPEC;
use virtio_gpu_uring::testing::{GuestChannel, HostPeer, Incoming, Request, Token};

use super::{Desk, FIRST_PIPE, FULL, READ_ROOM, assert_lives, eventually, signal, try_take};

/// Fills a service's end of a connection with whole messages, until it takes no more.
fn flood(peer: &HostPeer) {
    while send(peer.stream(), &[7; 3744], SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok() {}
}

/// How many others come before something that was read of `id`.
#[track_caller]
fn others_before(desk: &mut Desk, id: u32, most: usize) -> usize {
    for before in 0..=most {
        let poll = desk.poll();
        if matches!(desk.channel.wait_any(&mut desk.guest, poll), Incoming::Read(read) if read.id == id) {
            return before;
        }
    }
    panic!("{most} others came, and it did not");
}

#[test]
fn a_socket_that_floods_never_delays_a_wake_up_by_more_than_one_message() {
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
    let mut first = 0;
    for _ in 0..200 {
        flood(&desk.peer);
        signal(&file, 1);
        first += usize::from(others_before(&mut desk, id, 1) == 0);
        // In whichever turn it comes.
        for _ in 0..first % 3 {
            desk.receive();
        }
    }
    desk.guest.assert_all_answered();
}

#[test]
fn credits_that_wait_are_never_all_used_up_by_a_flood() {
    let mut desk = Desk::new();
    let (file, _) = desk.watched(EventfdFlags::NONBLOCK);
    flood(&desk.peer);
    desk.guest.settle();
    for _ in 0..20 {
        signal(&file, 1);
        // Both are there before the credits; the two come in one batch, so that the ring shows the second alone.
        let polls = [desk.poll(), desk.poll()];
        for poll in polls {
            desk.guest.wait(poll).ok();
        }
        assert_eq!(super::counter(&file), 0, "two messages, and neither was the wake-up");
        flood(&desk.peer);
        desk.guest.settle();
    }
}

#[test]
fn an_eventfd_that_floods_never_delays_a_message_by_more_than_one_wake_up() {
    let mut desk = Desk::new();
    let (file, _) = desk.watched(EventfdFlags::NONBLOCK);
    for round in 0..200u32 {
        signal(&file, 1);
        desk.peer.send(&round.to_le_bytes(), &[]);
        let mut before = 0;
        loop {
            let poll = desk.poll();
            if let Incoming::Message(message) = desk.channel.wait_any(&mut desk.guest, poll) {
                assert_eq!(message.data, round.to_le_bytes());
                break;
            }
            before += 1;
            assert!(before <= 1, "{before} wake-ups before a message");
            signal(&file, 1);
        }
    }
}

#[test]
fn eventfds_that_flood_never_starve_each_other_nor_the_socket() {
    const LOUD: usize = 7;
    let mut desk = Desk::new();
    let loud: Vec<(OwnedFd, u32)> = (0..LOUD).map(|_| desk.watched(EventfdFlags::NONBLOCK)).collect();
    let (quiet, quiet_id) = desk.watched(EventfdFlags::NONBLOCK);
    for round in 0..60usize {
        loud.iter().for_each(|(file, _)| signal(file, 1));
        flood(&desk.peer);
        signal(&quiet, 1);
        let mut before = 0;
        loop {
            let poll = desk.poll();
            match desk.channel.wait_any(&mut desk.guest, poll) {
                Incoming::Read(read) if read.id == quiet_id => break,
                // Ready again as soon as it has been read.
                Incoming::Read(read) => {
                    let (file, _) = loud.iter().find(|(_, id)| *id == read.id).expect("one of them");
                    signal(file, 1);
                }
                Incoming::Message(_) => flood(&desk.peer),
            }
            before += 1;
            // Each of the others once, and a message beside each.
            assert!(before <= 2 * (LOUD + 1), "round {round}: {before} others came first");
        }
    }
    desk.guest.assert_all_answered();
}

#[test]
fn a_pipe_that_floods_never_starves_a_wake_up_nor_a_message() {
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
    desk.ok(&Request::stream_send_with(b"p", &[(FIRST_PIPE, READ_PIPE)]));
    let pipe = desk.peer.receive(1).1.remove(0);
    fcntl_setfl(&pipe, OFlags::NONBLOCK).expect("the service's own end");
    let fill = || while rustix::io::write(&pipe, &[9; READ_ROOM]).is_ok() {};
    for round in 0..100u32 {
        fill();
        signal(&file, 1);
        others_before(&mut desk, id, 3);
        fill();
        desk.peer.send(&round.to_le_bytes(), &[]);
        let mut before = 0;
        loop {
            let poll = desk.poll();
            match desk.channel.wait_any(&mut desk.guest, poll) {
                Incoming::Message(message) => {
                    assert_eq!(message.data, round.to_le_bytes());
                    break;
                }
                Incoming::Read(read) => assert_eq!(read.id, FIRST_PIPE),
            }
            before += 1;
            assert!(before <= 1, "{before} pieces of a pipe before a message");
        }
    }
}

/// A channel that asks for the next message whenever one has come.
struct Greedy {
    channel: GuestChannel,
    peer: HostPeer,
    polls: Vec<Token>,
    came: usize,
}

impl Greedy {
    fn turn(&mut self, desk: &mut Desk) {
        flood(&self.peer);
        let mut waiting = std::mem::take(&mut self.polls);
        waiting.retain(|poll| {
            let came = desk.guest.has_answer(poll);
            self.came += usize::from(came);
            !came
        });
        while waiting.len() < 16 {
            waiting.push(self.channel.poll(&mut desk.guest));
        }
        self.polls = waiting;
    }
}

#[test]
fn channels_that_flood_never_delay_another_channel_s_wake_up() {
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
    let mut greedy: Vec<Greedy> = (0..6)
        .map(|at| {
            let (channel, peer) = desk.another(2 + at, 30 + 2 * at);
            Greedy { channel, peer, polls: Vec::new(), came: 0 }
        })
        .collect();
    let mut longest = 0;
    for _ in 0..100 {
        greedy.iter_mut().for_each(|one| one.turn(&mut desk));
        let before: usize = greedy.iter().map(|one| one.came).sum();
        signal(&file, 1);
        let poll = desk.poll();
        loop {
            desk.guest.settle();
            if desk.guest.has_answer(&poll) {
                break;
            }
            greedy.iter_mut().for_each(|one| one.turn(&mut desk));
            let came = greedy.iter().map(|one| one.came).sum::<usize>() - before;
            longest = longest.max(came);
            // What was asked for already, and a turn of all of them.
            assert!(came <= 6 * 16 * 3, "{came} messages of others came first");
        }
        let incoming = desk.channel.wait_any(&mut desk.guest, poll);
        assert!(matches!(&incoming, Incoming::Read(read) if read.id == id), "{incoming:?}");
    }
    for (at, one) in greedy.into_iter().enumerate() {
        assert!(one.came > 0, "channel {at} was starved");
        drop(one.peer);
        desk.guest.command(&Request::ctx_destroy(2 + at as u32)).ok();
        for poll in one.polls {
            desk.guest.wait(poll).ok();
        }
    }
    desk.guest.assert_all_answered();
}

#[test]
fn what_is_stuck_never_delays_another_item_channel_or_command() {
    let mut desk = Desk::with(Limits { channel_backlog: 1 << 20, ..Limits::default() });
    let (mut other, other_peer) = desk.another(2, 30);
    let (file, id) = desk.watched(EventfdFlags::empty());
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    fcntl_setpipe_size(&reader, 4096).expect("a page");
    let pipe = desk.forward_one(&writer, WRITE_PIPE);
    let (readable, live_writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let live = desk.forward_one(&live_writer, WRITE_PIPE);
    // The service reads neither its socket nor this pipe, and an eventfd of its own is full.
    for _ in 0..16 {
        desk.channel.send(&mut desk.guest, &[1; 32 << 10], &[]);
        desk.write(pipe, &[2; 32 << 10]);
    }
    let (full, full_id) = desk.event(EventfdFlags::empty());
    signal(&full, FULL);
    for round in 1..100u64 {
        let full = Request::submit(1, &Request::stream_write(full_id, &1u64.to_le_bytes(), false));
        let refused = desk.guest.submit(&full);
        desk.guest.wait(refused);
        signal(&file, round);
        assert_eq!(desk.count(id), round);
        desk.write(live, b"live");
        let mut data = [0; 4];
        assert_eq!((rustix::io::read(&readable, &mut data), &data), (Ok(4), b"live"));
        assert_lives(&mut desk.guest, &mut other, &other_peer);
        // Towards the guest the stuck service itself goes on.
        desk.peer.send(b"still talks", &[]);
        assert_eq!(desk.receive().data, b"still talks");
        desk.guest.settle();
    }
    desk.guest.assert_all_answered();
}

#[test]
fn a_stuck_pipe_and_a_stuck_socket_never_wait_for_each_other() {
    let mut desk = Desk::with(Limits { channel_backlog: 4 << 20, ..Limits::default() });
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let pipe = desk.forward_one(&writer, WRITE_PIPE);
    for _ in 0..32 {
        desk.channel.send(&mut desk.guest, &[1; 32 << 10], &[]);
        desk.write(pipe, &[2; 32 << 10]);
    }
    // First all of the pipe while nobody reads the socket, then the socket.
    let mut seen = 0;
    while seen < 32 * (32 << 10) {
        let len = rustix::io::read(&reader, &mut [0; 65_536][..]).expect("more of it");
        assert!(len > 0);
        seen += len;
    }
    // As much as the pipe holds and then some.
    desk.write(pipe, &[3; 60_000]);
    desk.write(pipe, &[3; 60_000]);
    let mut seen = 0;
    while seen < 32 * (32 << 10) {
        let (data, _) = desk.peer.receive(65_536);
        assert!(!data.is_empty());
        seen += data.len();
    }
    desk.peer.send(b"done", &[]);
    assert_eq!(desk.receive().data, b"done");
}

/// How often an owner tries to be quicker.
const ROUNDS: u32 = 3000;

/// An eventfd that blocks, whose owner fills it on a thread of its own; and all that was ever taken out, modulo 2^64.
struct Contested {
    file: OwnedFd,
    taken: AtomicU64,
    asked: AtomicU32,
    done: AtomicU32,
}

impl Contested {
    fn take(&self) {
        if let Some(count) = try_take(&self.file) {
            self.taken.fetch_add(count, Ordering::SeqCst);
        }
    }

    /// Empties it for a moment at which the device may find room, and fills it again. Waits for room itself where the device
    /// was quicker, until the test takes everything out.
    fn own(&self) {
        for round in 1..=ROUNDS {
            while self.asked.load(Ordering::SeqCst) < round {
                std::hint::spin_loop();
            }
            for _ in 0..round % 200 * 20 {
                std::hint::spin_loop();
            }
            self.take();
            signal(&self.file, FULL);
            self.done.store(round, Ordering::SeqCst);
        }
    }

    /// Takes out all of `rounds`: what filled it twice each, and `added` of the device's.
    fn empty(&self, rounds: u32, added: u64) {
        let sum = FULL.wrapping_mul(2 * u64::from(rounds)).wrapping_add(added);
        eventually("added", || {
            self.take();
            self.done.load(Ordering::SeqCst) == rounds && self.taken.load(Ordering::SeqCst) == sum
        });
    }
}

/// Lets the owner's thread and the device go when a test ends, however it ends.
struct LetGo<'a>(&'a Contested);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.asked.store(ROUNDS, Ordering::SeqCst);
        while self.0.done.load(Ordering::SeqCst) < ROUNDS {
            self.0.take();
        }
        while try_take(&self.0.file).is_some() {}
    }
}

#[test]
fn an_owner_that_fills_a_blocking_counter_under_a_write_never_blocks_the_device() {
    let mut desk = Desk::new();
    let (file, id) = desk.event(EventfdFlags::empty());
    let contested = Contested { file, taken: AtomicU64::new(0), asked: AtomicU32::new(0), done: AtomicU32::new(0) };
    std::thread::scope(|scope| {
        scope.spawn(|| contested.own());
        let _let_go = LetGo(&contested);
        let mut added = 0;
        for round in 1..=ROUNDS {
            signal(&contested.file, FULL);
            let write = Request::stream_write(id, &1u64.to_le_bytes(), false);
            let token = desk.guest.submit(&Request::submit(1, &write));
            contested.asked.store(round, Ordering::SeqCst);
            // Nobody reads any more: an answer comes all the same, and that of everybody else.
            desk.guest.settle();
            let kind = desk.guest.wait(token).kind();
            assert!(kind < 0x1200 || kind == ERR_UNSPEC, "round {round}: answered {kind:#x}");
            added += u64::from(kind < 0x1200);
            // What was answered with success comes in the end, and nothing else.
            contested.empty(round, added);
        }
    });
}
