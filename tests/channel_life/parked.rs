//! Channels of a paused guest are parked: nothing of them is read, and everything that came meanwhile is delivered
//! afterwards, once and in its order.

use std::os::fd::AsFd;

use virtio_gpu_uring::ChannelType;
use virtio_gpu_uring::testing::{Incoming, Request};
use vm_memory::GuestAddress;

use crate::{RAM, Scene, assert_end_of_file, drain, memfd, peek, ring, turns, until};

impl Scene {
    #[track_caller]
    fn pause(&self) {
        self.guest.device().pause().wait().expect("a device").expect("nothing is under way");
    }

    #[track_caller]
    fn resume(&self) {
        self.guest.device().resume().wait().expect("a device");
    }

    /// Whatever comes next.
    #[track_caller]
    fn next(&mut self) -> Incoming {
        let poll = self.poll();
        self.channel.wait_any(&mut self.guest, poll)
    }

    /// Guest memory, queues included, stays as it is whatever the device has to do.
    #[track_caller]
    fn assert_parked(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        let before = self.guest.ram().read(GuestAddress(0), RAM);
        meanwhile(self);
        turns(&self.guest);
        let after = self.guest.ram().read(GuestAddress(0), RAM);
        let touched = before.iter().zip(&after).position(|(before, after)| before != after);
        assert_eq!(touched, None, "a paused guest's memory was written");
    }
}

#[test]
fn no_message_and_no_wake_up_of_a_pause_is_lost_or_told_twice() {
    let mut scene = Scene::new();
    let (first, one) = scene.watched();
    let (second, two) = scene.watched();
    for round in 1..=10u64 {
        scene.pause();
        scene.assert_parked(|scene| {
            // Each read by itself: what a stream socket may join, descriptors keep apart.
            let file = memfd("life-parked", 4096);
            for byte in 0..5 {
                scene.peer.send(&[byte], &[file.as_fd()]);
                ring(&one, round);
                ring(&two, 1);
            }
        });
        assert_eq!(scene.items().0, 2 * (round - 1), "read while paused");
        scene.resume();
        let (mut data, mut files, mut counts) = (Vec::new(), 0, [Vec::new(), Vec::new()]);
        while data.len() < 5 || counts.iter().any(Vec::is_empty) {
            match scene.next() {
                Incoming::Message(message) => {
                    data.extend(message.data);
                    files += message.identifiers.len();
                }
                Incoming::Read(read) => {
                    assert!([first, second].contains(&read.id) && !read.hang_up, "{read:?}");
                    counts[usize::from(read.id == second)].push(read.data);
                }
            }
        }
        assert_eq!((data, files), (vec![0, 1, 2, 3, 4], 5));
        let sums = [5 * round, 5].map(|sum| vec![sum.to_ne_bytes().to_vec()]);
        assert_eq!(counts, sums, "wake-ups were lost, or told more than once");
        assert_eq!(scene.items().0, 2 * round);
    }
    scene.assert_lives();
}

#[test]
fn a_wake_up_whose_fence_waits_is_never_told_before_the_guest_goes_on() {
    let mut scene = Scene::new();
    let (id, event) = scene.watched();
    for round in 0..30u64 {
        let poll = scene.poll();
        scene.guest.settle();
        if round % 2 == 0 {
            // Both at once: told before the pause, or after it.
            ring(&event, 1);
            scene.pause();
        } else {
            scene.pause();
            ring(&event, 1);
        }
        scene.assert_parked(|_| {});
        scene.resume();
        match scene.channel.wait_any(&mut scene.guest, poll) {
            Incoming::Read(read) => assert_eq!((read.id, read.data.as_slice()), (id, &1u64.to_ne_bytes()[..])),
            Incoming::Message(message) => panic!("{message:?}"),
        }
    }
    assert_eq!(scene.items(), (30, 0));
}

#[test]
fn what_is_written_to_a_pipe_during_a_pause_comes_whole_after_it() {
    let mut scene = Scene::new();
    let writer = scene.read_pipe(0);
    let sent: Vec<u8> = (0..50_000).map(|at: usize| (at / 77) as u8).collect();
    scene.pause();
    scene.assert_parked(|_| {
        for piece in sent.chunks(7001) {
            rustix::io::write(&writer, piece).expect("room in the pipe");
        }
    });
    drop(writer);
    scene.resume();
    let (mut seen, mut ends) = (Vec::new(), 0);
    while ends == 0 {
        match scene.next() {
            Incoming::Read(read) => {
                seen.extend(read.data);
                ends += u32::from(read.hang_up);
            }
            Incoming::Message(message) => panic!("{message:?}"),
        }
    }
    assert!(seen == sent, "{} bytes of {}", seen.len(), sent.len());
    // The end of the pipe was told once, and is not the end of the channel.
    let poll = scene.poll();
    turns(&scene.guest);
    assert!(!scene.guest.has_answer(&poll));
    scene.peer.send(b"on", &[]);
    assert_eq!(scene.channel.wait(&mut scene.guest, poll).data, b"on");
}

#[test]
fn what_a_guest_writes_during_a_pause_is_never_done_before_its_end_nor_out_of_order() {
    let mut scene = Scene::new();
    let (event_id, event) = scene.event();
    let (pipe_id, reader) = scene.write_pipe();
    scene.pause();
    let mut tokens = Vec::new();
    for byte in 0..10u8 {
        for stream in [
            Request::stream_write(pipe_id, &[byte; 3], false),
            Request::stream_write(event_id, &2u64.to_ne_bytes(), false),
        ] {
            tokens.push(scene.guest.submit(&Request::submit(1, &stream)));
        }
    }
    turns(&scene.guest);
    assert_eq!(drain(&reader), (Vec::new(), true));
    assert!(rustix::io::read(&event, &mut [0; 8]).is_err(), "a paused guest's write was done");
    assert_eq!(scene.items(), (0, 0));
    scene.resume();
    tokens.into_iter().for_each(|token| drop(scene.guest.wait(token).ok()));
    let expected: Vec<u8> = (0..10).flat_map(|byte| [byte; 3]).collect();
    assert_eq!(drain(&reader), (expected, true));
    let mut count = [0; 8];
    rustix::io::read(&event, &mut count).expect("wake-ups");
    assert_eq!((u64::from_ne_bytes(count), scene.items()), (20, (0, 20)));
}

#[test]
fn what_waits_for_the_reader_of_a_pipe_is_never_lost_by_a_pause() {
    let mut scene = Scene::new();
    let (id, reader) = scene.write_pipe();
    let total: Vec<u8> = (0..9 * 30_000).map(|at: usize| (at / 500) as u8).collect();
    for piece in total.chunks(30_000) {
        scene.ok(&Request::stream_write(id, piece, false));
    }
    scene.pause();
    let mut seen = drain(&reader).0;
    turns(&scene.guest);
    scene.resume();
    until("the reader has everything", || {
        seen.extend(drain(&reader).0);
        seen.len() >= total.len()
    });
    assert!(seen == total, "the bytes differ");
    scene.assert_lives();
}

/// A service sees no end while its guest stands still, and hears its guest afterwards.
#[test]
fn a_parked_channel_is_never_closed() {
    let mut scene = Scene::new();
    for _ in 0..5 {
        scene.pause();
        turns(&scene.guest);
        assert!(peek(&scene.peer).is_err(), "the channel was closed");
        scene.resume();
        scene.assert_lives();
    }
    assert_eq!(scene.channels(), (1, 0));
}

#[test]
fn a_service_that_ends_during_a_pause_is_never_forgotten_nor_what_it_said_last() {
    let mut scene = Scene::new();
    let (id, event) = scene.watched();
    let poll = scene.poll();
    scene.guest.settle();
    scene.pause();
    scene.assert_parked(|scene| {
        scene.peer.send(b"last words", &[]);
        scene.peer.stream().shutdown(std::net::Shutdown::Both).expect("shut down");
    });
    scene.resume();
    assert_eq!(scene.channel.wait(&mut scene.guest, poll).data, b"last words");
    let poll = scene.poll();
    assert_end_of_file(&mut scene.guest, &scene.channel, [poll]);
    ring(&event, 1);
    let poll = scene.poll();
    assert_end_of_file(&mut scene.guest, &scene.channel, [poll]);
    assert_eq!((scene.channels(), scene.items(), id > 0), ((1, 1), (0, 0), true));
}

/// An eventfd is the service's as well: what a paused guest was not told of is still in it.
#[test]
fn no_wake_up_is_taken_for_a_guest_that_never_goes_on() {
    for hung_up in [false, true] {
        let mut scene = Scene::new();
        let (_, event) = scene.watched();
        let _polls = [scene.poll(), scene.poll()];
        scene.guest.settle();
        scene.pause();
        ring(&event, 7);
        turns(&scene.guest);
        if hung_up {
            assert_eq!(scene.guest.device().hang_up(ChannelType::PIPEWIRE).wait(), Ok(1));
        }
        scene.guest.reset();
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).expect("a wake-up");
        assert_eq!((u64::from_ne_bytes(count), scene.items(), scene.channels()), (7, (0, 0), (1, 1)));
    }
}
