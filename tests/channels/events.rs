//! Eventfds of a host service: counters that the guest is told of, counters that it writes, and the end of both.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::cross_domain::{command, id_type};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC};
use virtio_gpu_uring::testing::{Incoming, Request};

use super::{Desk, FULL, counter, eventually, flags, holders, memfd, signal, take, try_take, words};

/// Every way in which a daemon may have made one.
const KINDS: [EventfdFlags; 4] = [
    EventfdFlags::empty(),
    EventfdFlags::NONBLOCK,
    EventfdFlags::SEMAPHORE,
    EventfdFlags::SEMAPHORE.union(EventfdFlags::NONBLOCK),
];

#[test]
fn no_dialect_is_told_the_other_one_s_number_for_an_eventfd() {
    for (size, kind) in [(16, id_type::EVENT), (20, id_type::EVENT), (24, id_type::EVENTFD), (36, id_type::EVENT)] {
        let mut desk = Desk::speaking(Limits::default(), size);
        let file = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let id = desk.forward_one(&file, kind);
        // Each can read and write it.
        desk.ok(&Request::stream_watch(id));
        signal(&file, 5);
        assert_eq!(desk.count(id), 5, "INIT of {size} bytes");
        desk.add(id, 6);
        assert_eq!(desk.count(id), 6, "INIT of {size} bytes");
        desk.assert_lives();
    }
}

#[test]
fn a_counter_is_never_altered_on_its_way_to_the_guest() {
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
    let before = desk.guest.device().counters().items_read;
    let counts = [1, 2, 255, 256, 0x0102_0304_0506_0708, u64::MAX >> 1, FULL];
    for count in counts {
        signal(&file, count);
        assert_eq!(desk.count(id), count);
        assert_eq!(counter(&file), 0, "read, but not taken");
    }
    assert_eq!(desk.guest.device().counters().items_read - before, counts.len() as u64);
    desk.guest.assert_all_answered();
}

#[test]
fn several_wake_ups_never_come_as_more_than_one_message_nor_without_credit() {
    for kind in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
        let mut desk = Desk::new();
        let (file, id) = desk.watched(kind);
        for count in 1..=4 {
            signal(&file, count);
            desk.guest.settle();
        }
        assert_eq!(counter(&file), 10, "read although the guest has asked for nothing");
        assert_eq!(desk.count(id), 10);
        desk.assert_nothing_comes();
        // Credit that was there before.
        let [first, second] = [desk.poll(), desk.poll()];
        signal(&file, 3);
        let read = desk.channel.wait_any(&mut desk.guest, first);
        assert!(matches!(&read, Incoming::Read(read) if read.data == 3u64.to_le_bytes()), "{read:?}");
        desk.guest.settle();
        assert!(!desk.guest.has_answer(&second), "one wake-up has used two credits");
        signal(&file, 4);
        let read = desk.channel.wait_any(&mut desk.guest, second);
        assert!(matches!(&read, Incoming::Read(read) if read.data == 4u64.to_le_bytes()), "{read:?}");
        desk.guest.assert_all_answered();
    }
}

#[test]
fn a_semaphore_never_gives_more_than_one_at_a_time_and_none_is_lost() {
    for kind in [EventfdFlags::SEMAPHORE, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK] {
        let mut desk = Desk::new();
        let (file, id) = desk.watched(kind);
        signal(&file, 3);
        for left in [2, 1, 0] {
            assert_eq!(desk.count(id), 1);
            assert_eq!(counter(&file), left);
        }
        desk.assert_nothing_comes();
    }
}

#[test]
fn a_message_and_a_wake_up_never_share_a_credit() {
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
    for round in 1..50u64 {
        signal(&file, round);
        desk.peer.send(&round.to_le_bytes(), &[]);
        let (mut messages, mut reads) = (0, 0);
        for _ in 0..2 {
            let poll = desk.poll();
            match desk.channel.wait_any(&mut desk.guest, poll) {
                Incoming::Message(message) => {
                    assert_eq!(message.data, round.to_le_bytes());
                    messages += 1;
                }
                Incoming::Read(read) => {
                    assert_eq!((read.id, read.data), (id, round.to_le_bytes().to_vec()));
                    reads += 1;
                }
            }
        }
        assert_eq!((messages, reads), (1, 1), "round {round}");
        desk.assert_nothing_comes();
    }
}

#[test]
fn wake_ups_between_messages_put_none_of_them_out_of_order_and_none_is_lost() {
    const MESSAGES: u32 = 500;
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
    let (mut sent, mut seen, mut woken) = (0u32, 0u32, 0u64);
    while seen < MESSAGES || woken < u64::from(MESSAGES) {
        // The peer is ahead, but never so far that it had to wait itself.
        while sent < MESSAGES && sent - seen < 1 + seen % 7 {
            // A packet's length tells where one ends, for a stream may join them: here each takes the whole ring.
            let mut data = vec![0; 3744];
            data[..4].copy_from_slice(&sent.to_le_bytes());
            signal(&file, 1);
            desk.peer.send(&data, &[]);
            sent += 1;
        }
        let poll = desk.poll();
        match desk.channel.wait_any(&mut desk.guest, poll) {
            Incoming::Message(message) => {
                assert_eq!(message.data[..4], seen.to_le_bytes(), "out of order");
                seen += 1;
            }
            Incoming::Read(read) => {
                assert_eq!((read.id, read.hang_up), (id, false));
                woken += u64::from_le_bytes(read.data.try_into().expect("eight bytes"));
            }
        }
    }
    assert_eq!((seen, woken), (MESSAGES, u64::from(MESSAGES)));
    desk.guest.assert_all_answered();
}

#[test]
fn an_eventfd_that_was_signalled_before_it_was_watched_is_not_missed() {
    for kind in KINDS {
        let mut desk = Desk::new();
        let (file, id) = desk.event(kind);
        signal(&file, 1);
        let poll = desk.poll();
        desk.guest.settle();
        assert!(!desk.guest.has_answer(&poll), "read before READ_EVENTFD_NEW");
        desk.ok(&Request::stream_watch(id));
        let read = desk.channel.wait_any(&mut desk.guest, poll);
        assert!(matches!(&read, Incoming::Read(read) if read.id == id), "{read:?}");
    }
}

#[test]
fn the_description_that_a_daemon_shares_is_never_changed() {
    for kind in KINDS {
        let mut desk = Desk::new();
        let file = eventfd(0, kind | EventfdFlags::CLOEXEC).expect("an eventfd");
        let before = flags(&file);
        let id = desk.forward_one(&file, id_type::EVENTFD);
        assert_eq!(flags(&file), before, "received");
        desk.add(id, 1);
        eventually("added", || counter(&file) == 1);
        assert_eq!((flags(&file), take(&file)), (before, 1), "written");
        desk.ok(&Request::stream_watch(id));
        assert_eq!(flags(&file), before, "watched");
        desk.add(id, 1);
        assert_eq!((desk.count(id), flags(&file)), (1, before), "read");
        desk.add(id, FULL);
        let _ = desk.channel.submit(&mut desk.guest, &Request::stream_write(id, &1u64.to_le_bytes(), false));
        assert_eq!(flags(&file), before, "full");
        desk.ok(&Request::stream_unwatch(id));
        assert_eq!(flags(&file), before, "destroyed");
    }
}

#[test]
fn an_eventfd_that_others_read_too_never_blocks_the_device_nor_counts_twice() {
    for kind in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
        let mut desk = Desk::new();
        let (file, id) = desk.watched(kind);
        let (mut theirs, mut ours, mut poll) = (0, 0, desk.poll());
        for round in 0..3000u32 {
            signal(&file, 1);
            for _ in 0..round % 100 * 50 {
                std::hint::spin_loop();
            }
            // Where the device has seen that it is ready and has not read it yet, it finds nothing there.
            theirs += try_take(&file).unwrap_or(0);
            desk.guest.settle();
            if desk.guest.has_answer(&poll) {
                ours += count_of(desk.channel.wait_any(&mut desk.guest, poll), id);
                poll = desk.poll();
            }
        }
        signal(&file, 1_000_000);
        let mut last = count_of(desk.channel.wait_any(&mut desk.guest, poll), id);
        if last < 1_000_000 {
            last += desk.count(id);
        }
        assert_eq!(theirs + ours + last, 1_003_000, "theirs {theirs}, ours {ours}");
        assert!(theirs > 0 && ours > 0, "no race: theirs {theirs}, ours {ours}");
        desk.assert_nothing_comes();
    }
}

/// The counter that came, of this eventfd.
fn count_of(incoming: Incoming, id: u32) -> u64 {
    let Incoming::Read(read) = incoming else { panic!("{incoming:?}") };
    assert_eq!((read.id, read.hang_up), (id, false));
    u64::from_le_bytes(read.data.try_into().expect("eight bytes of an eventfd"))
}

#[test]
fn an_eventfd_is_never_watched_twice() {
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
    for _ in 0..3 {
        desk.invalid(&Request::stream_watch(id));
    }
    signal(&file, 7);
    assert_eq!(desk.count(id), 7);
    desk.assert_nothing_comes();
    assert_eq!(holders(&file), 2);
    desk.invalid(&Request::stream_watch(id));
    // The same eventfd in another item is another one to the guest.
    let other = desk.forward_one(&file, id_type::EVENTFD);
    desk.ok(&Request::stream_watch(other));
    signal(&file, 8);
    let read = desk.read();
    assert!([id, other].contains(&read.id), "{read:?}");
    assert_eq!(read.data, 8u64.to_le_bytes());
    desk.assert_nothing_comes();
}

#[test]
fn nothing_but_an_eventfd_is_ever_watched_or_destroyed() {
    let mut desk = Desk::new();
    let blob = memfd("not-an-eventfd", 4096);
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let items = desk.forward(&[blob.as_fd(), writer.as_fd()]);
    desk.ok(&Request::stream_send_with(b"pipe", &[(super::FIRST_PIPE, id_type::READ_PIPE)]));
    let (_, theirs) = desk.peer.receive(16);
    let image = desk.channel.image(&mut desk.guest, 64, 64, *b"XR24").blob_id.get();
    let given = [items[0].0, items[1].0, super::FIRST_PIPE, image];
    for id in given.into_iter().chain([0, 999, 0x7fff_ffff, 0x8000_0000, u32::MAX]) {
        desk.invalid(&Request::stream_watch(id));
        desk.invalid(&Request::stream_unwatch(id));
    }
    // Each is there as before.
    desk.guest.command(&Request::host_blob(1, 20, u64::from(items[0].0), 4096)).ok();
    desk.guest.command(&Request::host_blob(1, 21, u64::from(image), 4096)).ok();
    desk.write(items[1].0, b"still");
    rustix::io::write(&theirs[0], b"there").expect("written");
    assert_eq!(desk.read().data, b"there");
    desk.assert_lives();
}

#[test]
fn a_destroyed_eventfd_is_never_left_open_nor_read_nor_known() {
    for (kind, watched) in
        [(EventfdFlags::empty(), true), (EventfdFlags::NONBLOCK, true), (EventfdFlags::empty(), false)]
    {
        let mut desk = Desk::new();
        let (file, id) = if watched { desk.watched(kind) } else { desk.event(kind) };
        assert_eq!(holders(&file), 2, "one is the daemon's, one the device's");
        // Something is there to be read, and credit for nothing else.
        signal(&file, 9);
        desk.guest.settle();
        desk.ok(&Request::stream_unwatch(id));
        assert_eq!(holders(&file), 1, "open after the answer (watched: {watched})");
        desk.assert_nothing_comes();
        assert_eq!(counter(&file), 9);
        desk.invalid(&Request::stream_unwatch(id));
        desk.invalid(&Request::stream_watch(id));
        desk.invalid(&Request::stream_write(id, &1u64.to_le_bytes(), false));
        desk.invalid(&Request::stream_write(id, &[], true));
        // An id is not given again while the guest may still name it.
        let (_other, new) = desk.watched(kind);
        assert_ne!(new, id);
        desk.assert_lives();
        desk.guest.assert_all_answered();
    }
}

#[test]
fn an_eventfd_that_is_destroyed_under_a_waiting_credit_never_signals_it() {
    let mut desk = Desk::new();
    let (file, id) = desk.watched(EventfdFlags::empty());
    let poll = desk.poll();
    desk.guest.settle();
    desk.ok(&Request::stream_unwatch(id));
    signal(&file, 1);
    desk.guest.settle();
    assert!(!desk.guest.has_answer(&poll));
    assert_eq!((holders(&file), counter(&file)), (1, 1));
    desk.peer.send(b"goes on", &[]);
    assert_eq!(desk.channel.wait(&mut desk.guest, poll).data, b"goes on");
}

#[test]
fn the_other_dialect_s_command_12_never_destroys_an_eventfd() {
    for size in [16, 20, 36] {
        let mut desk = Desk::speaking(Limits::default(), size);
        let file = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let id = desk.forward_one(&file, id_type::EVENT);
        desk.ok(&Request::stream_watch(id));
        desk.invalid(&Request::stream_unwatch(id));
        // IMPORT_VIRTIOFS_HANDLE, as it is there.
        desk.invalid(&words(command::READ_EVENTFD_DESTROY, &[id, 0, 0, 0, 0, 0]));
        assert_eq!(holders(&file), 2);
        signal(&file, 4);
        assert_eq!(desk.count(id), 4);
        // It has hang_up for that.
        desk.ok(&Request::stream_write(id, &[], true));
        assert_eq!(holders(&file), 1);
        desk.assert_lives();
    }
}

#[test]
fn no_count_is_written_other_than_the_guest_s() {
    for kind in KINDS {
        let mut desk = Desk::new();
        let (file, id) = desk.event(kind);
        let before = desk.guest.device().counters().items_written;
        for (count, sum) in [(0, 0), (1, 1), (0, 1), (1, 2), (0xfe, 0x100), (FULL - 0x100, FULL), (0, FULL)] {
            desk.add(id, count);
            // One that blocks is written behind the answer.
            eventually("added", || counter(&file) == sum);
        }
        assert_eq!(desk.guest.device().counters().items_written - before, 7);
        desk.assert_lives();
    }
}

#[test]
fn a_count_that_no_eventfd_takes_is_never_answered_by_what_kind_of_eventfd_it_is() {
    for kind in KINDS {
        for has in [0, 1, FULL] {
            let mut desk = Desk::new();
            let (file, id) = desk.event(kind);
            signal(&file, has);
            let answer =
                desk.channel.submit(&mut desk.guest, &Request::stream_write(id, &u64::MAX.to_le_bytes(), false));
            assert_eq!(answer.kind(), ERR_INVALID_PARAMETER, "{kind:?} at {has}");
            assert_eq!(counter(&file), has);
        }
    }
}

/// What a counter has, and what does not fit into it then.
const TOO_MUCH: [(u64, u64); 5] = [(FULL, 1), (FULL, FULL), (FULL - 1, 2), (5, FULL - 4), (1, FULL)];

#[test]
fn a_full_counter_never_blocks_the_device_nor_is_it_altered() {
    for kind in KINDS {
        let mut desk = Desk::new();
        let (mut other, other_peer) = desk.another(2, 30);
        for (has, more) in TOO_MUCH {
            let (file, id) = desk.watched(kind);
            signal(&file, has);
            let write = Request::stream_write(id, &more.to_le_bytes(), false);
            let answer = desk.channel.submit(&mut desk.guest, &write).kind();
            super::assert_lives(&mut desk.guest, &mut other, &other_peer);
            desk.assert_lives_beside();
            assert_eq!(counter(&file), has, "{kind:?}: {more} onto {has}");
            // One that blocks may wait for room, behind the answer; what was answered with an error never comes.
            let waits = answer < 0x1200;
            assert!(answer == ERR_UNSPEC || waits && !kind.contains(EventfdFlags::NONBLOCK), "answered {answer:#x}");
            let left = has - take(&file);
            if waits && left == 0 {
                eventually("added", || counter(&file) == more);
            } else if !waits {
                desk.add(id, 1);
                eventually("added", || counter(&file) == left + 1);
            }
            desk.ok(&Request::stream_unwatch(id));
        }
        desk.guest.assert_all_answered();
    }
}

#[test]
fn a_write_that_waits_for_room_never_keeps_its_eventfd_open() {
    for how in 0..5 {
        let mut desk = Desk::new();
        let (file, id) = desk.event(EventfdFlags::empty());
        signal(&file, FULL);
        for _ in 0..3 {
            let _ = desk.channel.submit(&mut desk.guest, &Request::stream_write(id, &1u64.to_le_bytes(), false));
            desk.guest.settle();
        }
        match how {
            0 => desk.ok(&Request::stream_unwatch(id)),
            1 => desk.ok(&Request::stream_write(id, &[], true)),
            2 => {
                desk.guest.command(&Request::ctx_destroy(1)).ok();
            }
            3 => desk.guest.reset(),
            _ => {
                let Desk { guest, .. } = desk;
                drop(guest);
            }
        }
        let closed = || holders(&file) == 1;
        eventually(["destroyed", "hung up", "without a context", "reset", "dropped"][how], closed);
        assert_eq!(counter(&file), FULL);
    }
}

#[test]
fn an_eventfd_takes_eight_bytes_and_nothing_of_another_length() {
    for kind in KINDS {
        let mut desk = Desk::new();
        let (file, id) = desk.watched(kind);
        for len in [0, 1, 4, 7, 9, 16, 24, 4096, 60_000] {
            desk.invalid(&Request::stream_write(id, &vec![1; len], false));
        }
        // Eight bytes are stated, fewer are there.
        for there in [0, 1, 7] {
            let mut short = Request::stream_write(id, &vec![1; there], false);
            short[16] = 8;
            desk.invalid(&short);
        }
        assert_eq!((counter(&file), holders(&file)), (0, 2));
        desk.assert_nothing_comes();
    }
}

#[test]
fn a_hang_up_never_leaves_an_eventfd_open_and_never_loses_its_last_count() {
    for (watched, data, added) in [(false, 3u64.to_le_bytes().to_vec(), 3), (true, 3u64.to_le_bytes().to_vec(), 3)]
        .into_iter()
        .chain([(false, vec![], 0), (true, vec![], 0)])
    {
        let mut desk = Desk::new();
        let (file, id) = if watched { desk.watched(EventfdFlags::empty()) } else { desk.event(EventfdFlags::empty()) };
        desk.ok(&Request::stream_write(id, &data, true));
        eventually("added and closed", || (holders(&file), counter(&file)) == (1, added));
        for stream in [
            Request::stream_write(id, &1u64.to_le_bytes(), false),
            Request::stream_write(id, &[], true),
            Request::stream_watch(id),
            Request::stream_unwatch(id),
        ] {
            desk.invalid(&stream);
        }
        desk.assert_nothing_comes();
        assert_eq!(counter(&file), added);
    }
}

#[test]
fn a_hang_up_whose_write_fails_never_leaves_an_eventfd_open() {
    for kind in KINDS {
        for (fill, data, code) in [
            (FULL, 1u64.to_le_bytes().to_vec(), ERR_UNSPEC),
            (1, FULL.to_le_bytes().to_vec(), ERR_UNSPEC),
            (1, vec![1, 2, 3], ERR_INVALID_PARAMETER),
        ] {
            let mut desk = Desk::new();
            let (file, id) = desk.event(kind);
            signal(&file, fill);
            let answer = desk.channel.submit(&mut desk.guest, &Request::stream_write(id, &data, true)).kind();
            let may_wait = code == ERR_UNSPEC && !kind.contains(EventfdFlags::NONBLOCK);
            assert!(answer == code || may_wait && answer < 0x1200, "{kind:?}: {data:?} onto {fill}: {answer:#x}");
            eventually("closed", || (holders(&file), counter(&file)) == (1, fill));
            desk.assert_lives();
        }
    }
}
