//! Pipes: those whose end for writing a service sends, and those that a guest makes for a service to write.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat, open};
use rustix::io::{Errno, fcntl_getfd};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::cross_domain::id_type::{READ_PIPE, UNSUPPORTED, WRITE_PIPE};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_OUT_OF_MEMORY, ERR_UNSPEC};
use virtio_gpu_uring::testing::{DEADLINE, Request};

use super::{Desk, FIRST_PIPE, READ_ROOM, ends, flags, memfd, pattern};

/// Both ends of a pipe: for reading, for writing.
fn pair(kind: PipeFlags) -> (OwnedFd, OwnedFd) {
    pipe_with(kind | PipeFlags::CLOEXEC).expect("a pipe")
}

/// Exactly `len` bytes, from an end that blocks.
fn exactly(reader: &OwnedFd, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    clone(reader).read_exact(&mut data).expect("the writer is there");
    data
}

fn clone(file: &OwnedFd) -> File {
    file.try_clone().expect("a duplicate").into()
}

/// Whether the other end of a pipe has gone, or something else is there.
fn is_ready(file: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&Timespec::default())) == Ok(1)
}

/// Waits until nobody reads a pipe any more.
#[track_caller]
fn assert_reader_gone(writer: &OwnedFd) {
    let timeout = Timespec::try_from(DEADLINE).expect("a short time");
    assert_eq!(poll(&mut [PollFd::new(writer, PollFlags::empty())], Some(&timeout)), Ok(1), "still read");
}

impl Desk {
    /// A pipe of a page whose end for writing the guest has: the end for reading, the service's own for writing, the id.
    #[track_caller]
    fn small_pipe(&mut self, kind: PipeFlags) -> (OwnedFd, OwnedFd, u32) {
        let (reader, writer) = pair(kind);
        fcntl_setpipe_size(&reader, 4096).expect("a page");
        let id = self.forward_one(&writer, WRITE_PIPE);
        (reader, writer, id)
    }

    /// Makes pipes for the service to write, under these ids; the service's ends.
    #[track_caller]
    fn make_pipes(&mut self, ids: &[u32]) -> Vec<OwnedFd> {
        let identifiers: Vec<(u32, u32)> = ids.iter().map(|id| (*id, READ_PIPE)).collect();
        self.ok(&Request::stream_send_with(b"p", &identifiers));
        let (data, files) = self.peer.receive(1);
        assert_eq!((data.as_slice(), files.len()), (&b"p"[..], ids.len()));
        files
    }
}

#[test]
fn what_is_written_to_a_pipe_is_never_altered_nor_is_its_description() {
    for kind in [PipeFlags::empty(), PipeFlags::NONBLOCK] {
        let mut desk = Desk::new();
        let (reader, writer) = pair(kind);
        fcntl_setfl(&reader, OFlags::empty()).expect("a reader that blocks");
        let before = flags(&writer);
        let id = desk.forward_one(&writer, WRITE_PIPE);
        assert_eq!(flags(&writer), before, "received");
        desk.write(id, b"");
        for data in [&b"a"[..], b"clipboard", &pattern(4072)] {
            desk.write(id, data);
            assert_eq!(exactly(&reader, data.len()), data);
            assert_eq!(flags(&writer), before, "written");
        }
        // More than it holds.
        desk.write(id, &[1; 40_000]);
        desk.write(id, &[2; 40_000]);
        assert_eq!(flags(&writer), before, "full");
        desk.ok(&Request::stream_write(id, &[], true));
        assert_eq!(exactly(&reader, 80_000)[39_999..40_001], [1, 2]);
        assert_eq!(flags(&writer), before, "hung up");
    }
}

#[test]
fn what_a_pipe_does_not_hold_at_once_never_blocks_the_device_and_comes_in_order() {
    for kind in [PipeFlags::empty(), PipeFlags::NONBLOCK] {
        let mut desk = Desk::new();
        let (mut other, other_peer) = desk.another(2, 30);
        let (reader, _writer, id) = desk.small_pipe(kind);
        fcntl_setfl(&reader, OFlags::empty()).expect("a reader that blocks");
        let sent = pattern(1_000_000);
        let mut seen = Vec::new();
        for piece in sent.chunks(50_001) {
            desk.write(id, piece);
            desk.assert_lives();
            super::assert_lives(&mut desk.guest, &mut other, &other_peer);
            // The reader is slow, and reads lengths that are nobody's.
            seen.extend(exactly(&reader, 7777));
        }
        let left = sent.len() - seen.len();
        seen.extend(exactly(&reader, left));
        assert!(seen == sent, "the bytes differ");
        // With nothing left to wait behind, the next goes at once.
        desk.write(id, b"next");
        assert!(is_ready(&reader), "written later than it was answered");
        assert_eq!(exactly(&reader, 4), b"next");
    }
}

#[test]
fn a_hang_up_behind_queued_data_never_cuts_it_short() {
    for with_data in [true, false] {
        let mut desk = Desk::new();
        let (reader, writer, id) = desk.small_pipe(PipeFlags::empty());
        drop(writer);
        let sent = pattern(200_000);
        let (first, last) = sent.split_at(150_000);
        for piece in first.chunks(50_000) {
            desk.write(id, piece);
        }
        if with_data {
            desk.ok(&Request::stream_write(id, last, true));
        } else {
            desk.write(id, last);
            desk.ok(&Request::stream_write(id, &[], true));
        }
        desk.invalid(&Request::stream_write(id, b"late", false));
        desk.invalid(&Request::stream_write(id, b"", true));
        assert_eq!(ends(&reader), 2, "what it has taken is still to be written");
        let mut seen = Vec::new();
        clone(&reader).read_to_end(&mut seen).expect("an end of the file");
        assert!(seen == sent, "{} of {} bytes came, or others", seen.len(), sent.len());
        assert_eq!(ends(&reader), 1);
        desk.assert_lives();
    }
}

#[test]
fn a_hang_up_of_an_empty_pipe_closes_it_at_once() {
    let mut desk = Desk::new();
    let (reader, writer, id) = desk.small_pipe(PipeFlags::empty());
    drop(writer);
    desk.ok(&Request::stream_write(id, b"last", true));
    assert_eq!(ends(&reader), 1, "open after the answer");
    let mut seen = Vec::new();
    clone(&reader).read_to_end(&mut seen).expect("an end of the file");
    assert_eq!(seen, b"last");
}

#[test]
fn a_reader_that_has_gone_is_an_error_and_costs_nobody_else_anything() {
    let limits = Limits { host_bytes: 128 << 10, channel_backlog: 96 << 10, ..Limits::default() };
    let mut desk = Desk::with(limits);
    for backlog in [false, true] {
        for _ in 0..4 {
            let (reader, writer, id) = desk.small_pipe(PipeFlags::empty());
            if backlog {
                // Paid for by a limit that has no room for two of these.
                desk.write(id, &[1; 60_000]);
                desk.write(id, &[2; 20_000]);
            }
            let name = reader.try_clone().expect("a duplicate");
            drop((reader, name));
            // What waits for a reader goes as soon as the device hears of it; the answer is an error then.
            let mut answer = desk.channel.submit(&mut desk.guest, &Request::stream_write(id, b"nobody", false));
            for _ in 0..1000 {
                if answer.kind() == ERR_UNSPEC {
                    break;
                }
                answer = desk.channel.submit(&mut desk.guest, &Request::stream_write(id, b"nobody", false));
            }
            answer.expect_error(ERR_UNSPEC);
            desk.refused(&Request::stream_write(id, b"nobody", true), ERR_UNSPEC);
            assert_eq!(ends(&writer), 1, "open though it hung up");
            desk.invalid(&Request::stream_write(id, b"nobody", false));
            desk.assert_lives();
        }
    }
}

#[test]
fn a_pipe_without_a_reader_never_ends_its_channel_when_it_comes() {
    let mut desk = Desk::new();
    let (reader, writer) = pair(PipeFlags::empty());
    drop(reader);
    let good = memfd("beside-a-broken-pipe", 4096);
    let items = desk.forward(&[good.as_fd(), writer.as_fd(), good.as_fd()]);
    assert_eq!((items[0].1, items[2].1), (1, 1), "{items:?}");
    if items[1].1 == WRITE_PIPE {
        desk.refused(&Request::stream_write(items[1].0, b"nobody", false), ERR_UNSPEC);
    } else {
        assert_eq!(items[1], (0, UNSUPPORTED, 0));
        assert_eq!(ends(&writer), 1);
    }
    desk.assert_lives();
}

#[test]
fn a_write_for_which_there_is_no_room_is_never_taken_in_part() {
    let mut desk = Desk::with(Limits { channel_backlog: 64 << 10, ..Limits::default() });
    let (reader, _writer, id) = desk.small_pipe(PipeFlags::empty());
    for round in 0..3u8 {
        let mut taken = 0;
        let stream = Request::stream_write(id, &[round; 10_000], false);
        loop {
            let answer = desk.channel.submit(&mut desk.guest, &stream);
            if answer.kind() >= 0x1200 {
                answer.expect_error(ERR_OUT_OF_MEMORY);
                break;
            }
            taken += 10_000;
            assert!(taken <= 128 << 10, "{taken} bytes are kept where 64 KiB are allowed");
        }
        assert!(taken >= 40_000, "refused after {taken} bytes");
        desk.refused(&stream, ERR_OUT_OF_MEMORY);
        desk.assert_lives();
        assert_eq!(exactly(&reader, taken), vec![round; taken]);
        // Exactly that, and the pipe can be used again.
        desk.guest.settle();
        assert!(!is_ready(&reader), "more came than was taken");
        desk.write(id, b"again");
        assert_eq!(exactly(&reader, 5), b"again");
    }
}

#[test]
fn a_write_that_no_backlog_could_hold_is_never_taken_in_part() {
    let mut desk = Desk::with(Limits { channel_backlog: 16 << 10, ..Limits::default() });
    let (reader, _writer, id) = desk.small_pipe(PipeFlags::empty());
    // The pipe is empty and would take a page of it.
    desk.refused(&Request::stream_write(id, &[1; 60_000], false), ERR_OUT_OF_MEMORY);
    assert!(!is_ready(&reader), "a part of what was refused was written");
    desk.write(id, b"whole");
    assert_eq!(exactly(&reader, 5), b"whole");
}

#[test]
fn only_a_pipe_s_end_for_writing_is_ever_taken_for_one() {
    let mut desk = Desk::new();
    let (reader, writer) = pair(PipeFlags::empty());
    let both = open(format!("/proc/self/fd/{}", writer.as_raw_fd()), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let path = std::env::temp_dir().join(format!("virtio-gpu-uring-fifo-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    let fifo = |flags| open(&path, flags | OFlags::CLOEXEC, Mode::empty()).expect("opened");
    let fifos = [fifo(OFlags::RDWR), fifo(OFlags::WRONLY), fifo(OFlags::RDONLY)];
    std::fs::remove_file(&path).expect("removed");
    let odd = [&both.expect("both ends"), &reader, &fifos[0], &fifos[1], &fifos[2]];
    for (at, file) in odd.into_iter().enumerate() {
        let items = desk.forward(&[writer.as_fd(), file.as_fd(), writer.as_fd()]);
        assert_eq!(items.iter().map(|item| item.1).collect::<Vec<_>>(), [WRITE_PIPE, UNSUPPORTED, WRITE_PIPE], "{at}");
        assert_eq!(items[1], (0, UNSUPPORTED, 0));
        for item in [items[0], items[2]] {
            desk.ok(&Request::stream_write(item.0, b"ok", true));
            assert_eq!(exactly(&reader, 2), b"ok");
        }
    }
    super::eventually("closed", || ends(&writer) == 3);
    desk.assert_lives();
}

#[test]
fn a_guest_s_pipe_never_has_another_id_than_it_says() {
    let mut desk = Desk::with(Limits { fds: 8, items_per_context: 4, ..Limits::default() });
    let blob = memfd("beside-a-wrong-guess", 4096);
    let item = desk.forward(&[blob.as_fd()])[0];
    for wrong in [0, 1, item.0, 0x7fff_ffff, 0x8000_0000, FIRST_PIPE + 1, FIRST_PIPE + 2, u32::MAX] {
        // More than the limits would bear, if one of them were kept.
        desk.invalid(&Request::stream_send_with(b"never", &[(wrong, READ_PIPE)]));
        desk.invalid(&Request::stream_send_with(b"never", &[(FIRST_PIPE, READ_PIPE), (wrong.max(2) - 2, READ_PIPE)]));
        desk.invalid(&Request::stream_send_with(b"never", &[(FIRST_PIPE, READ_PIPE), (FIRST_PIPE, READ_PIPE)]));
    }
    let files = desk.make_pipes(&[FIRST_PIPE]);
    rustix::io::write(&files[0], b"right").expect("written");
    let read = desk.read();
    assert_eq!((read.id, read.data.as_slice(), read.hang_up), (FIRST_PIPE, &b"right"[..], false));
    desk.invalid(&Request::stream_send_with(b"never", &[(FIRST_PIPE, READ_PIPE)]));
    let _kept = desk.make_pipes(&[FIRST_PIPE + 1]);
    desk.assert_lives();
}

#[test]
fn two_pipes_of_one_message_are_never_mixed_up() {
    let mut desk = Desk::new();
    let files = desk.make_pipes(&[FIRST_PIPE, FIRST_PIPE + 1]);
    // What the service has is an end for writing that waits, as any program is used to.
    for file in &files {
        assert_eq!(flags(file) & (OFlags::ACCMODE | OFlags::NONBLOCK), OFlags::WRONLY);
        assert!(fcntl_getfd(file).is_ok());
        assert_eq!(ends(file), 2, "the service's end, and the one that the host reads");
    }
    for (file, id) in files.iter().zip([FIRST_PIPE, FIRST_PIPE + 1]).rev() {
        rustix::io::write(file, &id.to_le_bytes()).expect("written");
        let read = desk.read();
        assert_eq!((read.id, read.data), (id, id.to_le_bytes().to_vec()));
    }
    let third = desk.make_pipes(&[FIRST_PIPE + 2]);
    drop(third);
    let read = desk.read();
    assert_eq!((read.id, read.hang_up), (FIRST_PIPE + 2, true));
    desk.guest.assert_all_answered();
}

#[test]
fn a_pipe_s_contents_come_whole_and_never_without_credit() {
    let mut desk = Desk::new();
    let file = desk.make_pipes(&[FIRST_PIPE]).remove(0);
    let sent = pattern(60_000);
    assert_eq!(rustix::io::write(&file, &sent), Ok(sent.len()));
    for _ in 0..3 {
        desk.guest.settle();
    }
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        let read = desk.read();
        assert_eq!((read.id, read.hang_up), (FIRST_PIPE, false));
        assert!(
            read.data.len() == READ_ROOM || seen.len() + read.data.len() == sent.len(),
            "{} bytes",
            read.data.len()
        );
        seen.extend(read.data);
    }
    assert!(seen == sent, "the bytes differ");
    desk.assert_nothing_comes();
    // A writer that is faster than the guest waits in its own process, and loses nothing.
    let writing = thread::spawn(move || File::from(file).write_all(&pattern(400_000)));
    let mut seen = Vec::<u8>::new();
    let last = loop {
        let read = desk.read();
        seen.extend(&read.data);
        if read.hang_up {
            break read;
        }
    };
    writing.join().expect("joined").expect("written");
    assert!(last.data.is_empty() && seen == pattern(400_000), "{} bytes", seen.len());
    desk.guest.assert_all_answered();
}

#[test]
fn the_end_of_a_pipe_never_comes_twice_nor_leaves_its_id() {
    let mut desk = Desk::new();
    let file = desk.make_pipes(&[FIRST_PIPE]).remove(0);
    let watcher = file.try_clone().expect("a duplicate");
    rustix::io::write(&file, b"last words").expect("written");
    drop((file, watcher));
    let read = desk.read();
    assert_eq!((read.data.as_slice(), read.hang_up), (&b"last words"[..], false));
    let read = desk.read();
    assert_eq!((read.id, read.data.len(), read.hang_up), (FIRST_PIPE, 0, true));
    desk.assert_nothing_comes();
    desk.invalid(&Request::stream_write(FIRST_PIPE, &[], true));
    desk.invalid(&Request::stream_watch(FIRST_PIPE));
    desk.invalid(&Request::stream_send_with(b"p", &[(FIRST_PIPE, READ_PIPE)]));
    desk.make_pipes(&[FIRST_PIPE + 1]);
}

#[test]
fn a_pipe_that_the_guest_closes_is_never_read_again() {
    let mut desk = Desk::new();
    let file = desk.make_pipes(&[FIRST_PIPE]).remove(0);
    // It is read by the host alone, and not an eventfd.
    desk.invalid(&Request::stream_write(FIRST_PIPE, b"data", false));
    desk.invalid(&Request::stream_write(FIRST_PIPE, b"", false));
    desk.invalid(&Request::stream_unwatch(FIRST_PIPE));
    rustix::io::write(&file, b"not read").expect("written");
    desk.ok(&Request::stream_write(FIRST_PIPE, &[], true));
    assert_eq!(ends(&file), 1, "open after the answer");
    assert_reader_gone(&file);
    assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::PIPE));
    desk.assert_nothing_comes();
    desk.invalid(&Request::stream_write(FIRST_PIPE, &[], true));
    desk.assert_lives();
}

#[test]
fn a_message_that_is_refused_keeps_none_of_its_pipes() {
    let mut desk = Desk::with(Limits { fds: 5, ..Limits::default() });
    // A context takes one, a pipe two until it has been sent.
    let too_many = [FIRST_PIPE, FIRST_PIPE + 1, FIRST_PIPE + 2].map(|id| (id, READ_PIPE));
    let unsendable = [(FIRST_PIPE, READ_PIPE), (999, 1)];
    for _ in 0..5 {
        desk.refused(&Request::stream_send_with(b"never", &too_many), ERR_OUT_OF_MEMORY);
        assert!(
            desk.channel.submit(&mut desk.guest, &Request::stream_send_with(b"never", &unsendable)).kind() >= 0x1200
        );
    }
    let files = desk.make_pipes(&[FIRST_PIPE, FIRST_PIPE + 1]);
    for (file, id) in files.into_iter().zip([FIRST_PIPE, FIRST_PIPE + 1]) {
        drop(file);
        let read = desk.read();
        assert!(read.hang_up && read.id == id, "{read:?}");
    }
    desk.assert_lives();
}

#[test]
fn what_is_closed_never_goes_on_to_count() {
    let mut desk = Desk::with(Limits { fds: 3, ..Limits::default() });
    for round in 0..4 {
        let id = FIRST_PIPE + round;
        let file = desk.make_pipes(&[id]).remove(0);
        if round % 2 == 0 {
            drop(file);
            assert!(desk.read().hang_up);
        } else {
            desk.ok(&Request::stream_write(id, &[], true));
            assert_eq!(ends(&file), 1);
        }
    }
}

#[test]
fn pipes_for_a_service_that_never_reads_are_bounded_and_go_with_the_context() {
    let mut desk = Desk::with(Limits { fds: 21, ..Limits::default() });
    let (mut other, other_peer) = desk.another(2, 30);
    // What is sent from here on waits.
    for _ in 0..32 {
        desk.channel.send(&mut desk.guest, &[1; 32 << 10], &[]);
    }
    let made = (0..100).take_while(|at| {
        let send = Request::stream_send_with(b"p", &[(FIRST_PIPE + at, READ_PIPE)]);
        desk.channel.submit(&mut desk.guest, &send).kind() < 0x1200
    });
    assert!((1..=10).contains(&made.count()), "more ends of pipes than the limit of descriptors");
    super::assert_lives(&mut desk.guest, &mut other, &other_peer);
    desk.guest.command(&Request::ctx_destroy(1)).ok();
    // All of that has been given back.
    let file = memfd("after-the-pipes", 4096);
    other_peer.send(b"x", &[file.as_fd(); 19]);
    let message = other.receive(&mut desk.guest);
    assert!(message.identifiers.iter().all(|item| item.1 == 1), "{message:?}");
    desk.guest.assert_all_answered();
}
