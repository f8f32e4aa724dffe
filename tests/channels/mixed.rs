//! Descriptors of every kind together: each in its own slot, counted, and gone in the end; and streams that no guest should
//! send, which nothing else notices.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};

use virtio_gpu_uring::Limits;
use virtio_gpu_uring::protocol::cross_domain::id_type::{EVENTFD, READ_PIPE, UNSUPPORTED, VIRTGPU_BLOB, WRITE_PIPE};
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, command};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_OUT_OF_MEMORY};
use virtio_gpu_uring::testing::census::Census;
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Request, census};

use super::{
    Desk, FIRST_PIPE, Identifier, assert_lives, counter, ends, eventually, holders, memfd, raw, signal, words,
};
use crate::alone::{alone, leaves_nothing};

/// Numbers in no order, the same ones each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % most
    }
}

/// A descriptor of the service's, with what it takes to recognise it.
enum Sent {
    Blob(OwnedFd, u32),
    Event(OwnedFd),
    Pipe { reader: OwnedFd, writer: OwnedFd },
    Odd(OwnedFd),
}

impl Sent {
    fn new(kind: usize, size: u32) -> Self {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        match kind {
            0 => Self::Blob(memfd("mixed-blob", u64::from(size)), size),
            1 => Self::Event(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")),
            2 => Self::Event(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")),
            3 => {
                let (reader, writer) = pipe();
                Self::Pipe { reader, writer }
            }
            4 => Self::Odd(pipe().0),
            5 => Self::Odd(UnixStream::pair().expect("sockets").0.into()),
            6 => Self::Odd(epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll")),
            _ => Self::Odd(std::fs::File::open("/proc/self/maps").expect("a file").into()),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Blob(file, _) | Self::Event(file) | Self::Odd(file) | Self::Pipe { writer: file, .. } => file.as_fd(),
        }
    }

    /// Asserts that the guest's `item` is this one and no other, and gives it back.
    #[track_caller]
    fn assert_is(&self, desk: &mut Desk, item: Identifier, number: u32) {
        match self {
            Self::Blob(_, size) => {
                assert_eq!((item.1, item.2), (VIRTGPU_BLOB, *size));
                desk.guest.command(&Request::host_blob(1, 1000 + number, u64::from(item.0), u64::from(*size))).ok();
                desk.guest.command(&Request::unref(1000 + number)).ok();
            }
            Self::Event(file) => {
                assert_eq!((item.1, item.2), (EVENTFD, 0));
                desk.add(item.0, u64::from(number) + 1);
                eventually("added", || counter(file) == u64::from(number) + 1);
                desk.ok(&Request::stream_watch(item.0));
                assert_eq!(desk.count(item.0), u64::from(number) + 1);
                let end = if number.is_multiple_of(2) {
                    Request::stream_unwatch(item.0)
                } else {
                    Request::stream_write(item.0, &[], true)
                };
                desk.ok(&end);
                eventually("closed", || holders(file) == 1);
            }
            Self::Pipe { reader, writer } => {
                assert_eq!((item.1, item.2), (WRITE_PIPE, 0));
                desk.ok(&Request::stream_write(item.0, &number.to_le_bytes(), true));
                let mut data = [0; 4];
                assert_eq!((rustix::io::read(reader, &mut data), data), (Ok(4), number.to_le_bytes()));
                assert_eq!(ends(writer), 2);
            }
            Self::Odd(_) => assert_eq!(item, (0, UNSUPPORTED, 0)),
        }
    }
}

#[test]
fn no_descriptor_of_a_mix_is_ever_announced_in_another_one_s_slot() {
    let mut desk = Desk::new();
    let mut numbers = Numbers(5);
    for round in 0..25u32 {
        let sent: Vec<Sent> = (0..28).map(|at| Sent::new(numbers.below(8), 4096 * (round * 28 + at + 1))).collect();
        let files: Vec<BorrowedFd<'_>> = sent.iter().map(Sent::as_fd).collect();
        let items = desk.forward(&files);
        for (at, (one, item)) in sent.iter().zip(items).enumerate() {
            one.assert_is(&mut desk, item, round * 28 + at as u32);
        }
        desk.assert_lives();
    }
    eventually("closed", || census::fds_named("mixed-blob") == 0);
    desk.guest.assert_all_answered();
}

#[test]
fn many_rounds_of_every_kind_leave_nothing() {
    alone("mixed::many_rounds_of_every_kind_leave_nothing", || {
        let (mut desk, mut rounds) = (Desk::new(), 0);
        leaves_nothing(60, |cycle| {
            let before = Census::take().fds;
            let (mut channel, peer) = desk.another(2, 30);
            let sent: Vec<Sent> = (0..28).map(|at| Sent::new((at + cycle) % 8, 4096)).collect();
            let files: Vec<BorrowedFd<'_>> = sent.iter().map(Sent::as_fd).collect();
            peer.send(b"mix", &files);
            let items = channel.receive(&mut desk.guest).identifiers;
            // Some are used in one way, some in another, some not at all.
            for (at, item) in items.into_iter().enumerate() {
                let stream = match (item.1, (at + cycle) % 3) {
                    (EVENTFD, 0) => Request::stream_watch(item.0),
                    (EVENTFD, 1) => Request::stream_write(item.0, &7u64.to_le_bytes(), false),
                    // More than the pipe holds, so that the rest waits.
                    (WRITE_PIPE, 0) => Request::stream_write(item.0, &[1; 60_000], false).repeat(2),
                    (WRITE_PIPE, 1) => Request::stream_write(item.0, &[1; 60_000], true),
                    _ => continue,
                };
                channel.submit(&mut desk.guest, &stream).ok();
            }
            let pipes = [(FIRST_PIPE, READ_PIPE), (FIRST_PIPE + 1, READ_PIPE)];
            channel.submit(&mut desk.guest, &Request::stream_send_with(b"p", &pipes)).ok();
            drop(peer.receive(1).1.pop());
            desk.guest.command(&Request::ctx_destroy(2)).ok();
            for resource in [30, 31] {
                desk.guest.command(&Request::unref(resource)).ok();
            }
            drop((sent, peer));
            // Some of it is closed behind the answers. What the first rounds make for good is no part of that.
            rounds += 1;
            eventually("closed", || rounds < 5 || Census::take().fds <= before);
        });
    });
}

#[test]
fn eventfds_and_pipes_never_escape_the_limit_of_items() {
    let mut desk = Desk::with(Limits { items_per_context: 4, ..Limits::default() });
    let event = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let (blob, events) = (memfd("limit-of-items", 4096), [event(), event(), event()]);
    let pipes = [pipe_with(PipeFlags::CLOEXEC).expect("a pipe"), pipe_with(PipeFlags::CLOEXEC).expect("a pipe")];
    let files = [blob.as_fd(), events[0].as_fd(), pipes[0].1.as_fd(), events[1].as_fd(), events[2].as_fd()];
    let items = desk.forward(&[&files[..], &[pipes[1].1.as_fd(), blob.as_fd()]].concat());
    let kinds: Vec<u32> = items.iter().map(|item| item.1).collect();
    assert_eq!(kinds, [VIRTGPU_BLOB, EVENTFD, WRITE_PIPE, EVENTFD, UNSUPPORTED, UNSUPPORTED, UNSUPPORTED]);
    assert_eq!(desk.guest.device().counters().limit_refusals, 3);
    assert_eq!((holders(&events[2]), ends(&pipes[1].1)), (1, 2), "kept, over the limit");
    let pipe = |id: u32| Request::stream_send_with(b"p", &[(id, READ_PIPE)]);
    desk.refused(&pipe(FIRST_PIPE), ERR_OUT_OF_MEMORY);
    // Each that goes makes room for one, of whatever kind; being watched takes none.
    desk.ok(&Request::stream_watch(items[1].0));
    desk.ok(&Request::stream_write(items[2].0, b"", true));
    desk.ok(&pipe(FIRST_PIPE));
    let (_, theirs) = desk.peer.receive(1);
    desk.refused(&pipe(FIRST_PIPE + 1), ERR_OUT_OF_MEMORY);
    drop(theirs);
    assert!(desk.read().hang_up);
    assert_eq!(
        desk.forward(&[events[2].as_fd(), events[2].as_fd()]).iter().map(|i| i.1).collect::<Vec<_>>(),
        [EVENTFD, 0]
    );
    desk.ok(&Request::stream_unwatch(items[1].0));
    desk.ok(&pipe(FIRST_PIPE + 1));
    desk.refused(&pipe(FIRST_PIPE + 2), ERR_OUT_OF_MEMORY);
    assert_eq!(desk.peer.receive(1).1.len(), 1);
}

#[test]
fn eventfds_and_pipes_never_escape_the_limit_of_descriptors() {
    // The context itself takes one.
    let mut desk = Desk::with(Limits { fds: 4, ..Limits::default() });
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let files = [event.as_fd(), writer.as_fd(), event.as_fd(), writer.as_fd(), event.as_fd()];
    let items = desk.forward(&files);
    let kinds: Vec<u32> = items.iter().map(|item| item.1).collect();
    assert_eq!(kinds, [EVENTFD, WRITE_PIPE, EVENTFD, UNSUPPORTED, UNSUPPORTED]);
    assert_eq!((holders(&event), ends(&writer)), (3, 3));
    let pipe = Request::stream_send_with(b"p", &[(FIRST_PIPE, READ_PIPE)]);
    desk.refused(&pipe, ERR_OUT_OF_MEMORY);
    desk.ok(&Request::stream_write(items[0].0, b"", true));
    desk.ok(&Request::stream_unwatch(items[2].0));
    desk.ok(&pipe);
    desk.guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!((holders(&event), ends(&writer)), (1, 2));
}

#[test]
fn nothing_of_a_context_outlives_it() {
    for how in 0..3 {
        let mut desk = Desk::new();
        let (watched, id) = desk.watched(EventfdFlags::empty());
        let (idle, _) = desk.event(EventfdFlags::NONBLOCK);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let pipe = desk.forward_one(&writer, WRITE_PIPE);
        (0..4).for_each(|_| desk.write(pipe, &[1; 60_000]));
        let (hung_reader, hung_writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let hung = desk.forward_one(&hung_writer, WRITE_PIPE);
        (0..4).for_each(|at| desk.ok(&Request::stream_write(hung, &[1; 60_000], at == 3)));
        desk.ok(&Request::stream_send_with(b"p", &[(FIRST_PIPE, READ_PIPE)]));
        let theirs = desk.peer.receive(1).1.remove(0);
        signal(&watched, 1);
        assert_eq!(desk.count(id), 1);
        let poll = desk.poll();
        match how {
            0 => {
                desk.guest.command(&Request::ctx_destroy(1)).ok();
                desk.guest.wait(poll).ok();
            }
            1 => desk.guest.reset(),
            _ => {
                let Desk { guest, .. } = desk;
                drop(guest);
            }
        }
        let left = (holders(&watched), holders(&idle), ends(&reader), ends(&hung_reader), ends(&theirs));
        assert_eq!(left, (1, 1, 2, 2, 1), "ended by {how}");
    }
}

#[test]
fn an_item_of_one_context_is_never_another_one_s() {
    let mut desk = Desk::new();
    let (other, other_peer) = desk.another(2, 30);
    let (file, _) = desk.event(EventfdFlags::empty());
    let (second, id) = desk.event(EventfdFlags::empty());
    for stream in [
        Request::stream_write(id, &1u64.to_le_bytes(), false),
        Request::stream_write(id, &[], true),
        Request::stream_watch(id),
        Request::stream_unwatch(id),
    ] {
        other.submit(&mut desk.guest, &stream).expect_error(ERR_INVALID_PARAMETER);
    }
    assert_eq!((holders(&file), holders(&second), counter(&second)), (2, 2, 0));
    drop(other_peer);
    desk.assert_lives();
}

/// Commands about items that are malformed by themselves, where `id` is an eventfd.
fn malformed(id: u32) -> Vec<(&'static str, Vec<u8>)> {
    let body = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let event = body(&[id, 0]);
    let write = |len: u32, data: &[u8]| [body(&[id, 0, len, 0]), data.to_vec()].concat();
    let honest = |cmd: u8, body: &[u8]| raw(cmd, 8 + body.len() as u16, body);
    vec![
        ("WRITE without its fields", honest(command::WRITE, &[])),
        ("WRITE one byte short of them", honest(command::WRITE, &write(0, &[])[..15])),
        ("WRITE of more than there is", honest(command::WRITE, &write(9, &[1; 8]))),
        ("WRITE of 2^32 - 1 bytes", honest(command::WRITE, &write(u32::MAX, &[1; 8]))),
        ("WRITE that states more than the stream has", raw(command::WRITE, 33, &write(8, &[1; 8]))),
        ("NEW without an id", honest(command::READ_EVENTFD_NEW, &[])),
        ("NEW one byte short", honest(command::READ_EVENTFD_NEW, &event[..7])),
        ("NEW that states more than the stream has", raw(command::READ_EVENTFD_NEW, 17, &event)),
        ("DESTROY without an id", honest(command::READ_EVENTFD_DESTROY, &[])),
        ("DESTROY one byte short", honest(command::READ_EVENTFD_DESTROY, &event[..7])),
        ("DESTROY of another dialect's length", words(command::READ_EVENTFD_DESTROY, &[id, 0, 0, 0])),
        ("an image without its fields", honest(command::GET_IMAGE_REQUIREMENTS, &[])),
        ("an image one byte short", honest(command::GET_IMAGE_REQUIREMENTS, &[1; 15])),
        ("READ from a guest", honest(command::READ, &write(8, &[1; 8]))),
        ("a futex", words(8, &[1, 0, 1, 0, id, 0])),
        ("a futex's signal", honest(9, &event)),
        ("a futex's end", honest(10, &event)),
        ("command 13", honest(13, &event)),
        ("a SEND of an eventfd", Request::stream_send_with(b"x", &[(id, EVENTFD)])),
        ("a SEND of a pipe to write", Request::stream_send_with(b"x", &[(id, WRITE_PIPE)])),
    ]
}

#[test]
fn nothing_notices_a_malformed_command() {
    let mut desk = Desk::new();
    let (mut other, other_peer) = desk.another(2, 30);
    let (file, id) = desk.event(EventfdFlags::empty());
    let add = Request::stream_write(id, &1u64.to_le_bytes(), false);
    for (what, stream) in malformed(id) {
        for before in [vec![], add.clone(), Request::stream_watch(id), Request::stream_unwatch(id)] {
            let stream = [before, stream.clone(), add.clone()].concat();
            let fenced = Request::submit(1, &stream).fenced(77).on_ring(1);
            let answer = desk.guest.command(&fenced);
            assert_eq!((answer.kind(), answer.header.fence_id.get()), (ERR_INVALID_PARAMETER, 77), "{what}");
            assert_eq!((counter(&file), holders(&file)), (0, 2), "{what}: carried out in part");
        }
    }
    desk.ok(&Request::stream_watch(id));
    desk.assert_nothing_comes();
    desk.assert_lives();
    assert_lives(&mut desk.guest, &mut other, &other_peer);
    desk.guest.assert_all_answered();
}

#[test]
fn nothing_that_comes_before_init_is_carried_out_nor_spoils_it() {
    let service = HostService::listen();
    let builder = virtio_gpu_uring::Builder::new().host_socket(ChannelType::PIPEWIRE, service.path());
    let mut guest = Guest::start(builder);
    let mut channel = GuestChannel::create(&mut guest, 1, 10);
    for stream in [
        Request::stream_write(1, &1u64.to_le_bytes(), false),
        Request::stream_write(1, &[], true),
        Request::stream_watch(1),
        Request::stream_unwatch(1),
        Request::stream_image(64, 64, *b"XR24", 0),
        Request::stream_send(b"early", &[]),
        Request::stream_send_with(b"early", &[(FIRST_PIPE, READ_PIPE)]),
    ] {
        channel.submit(&mut guest, &stream).expect_error(ERR_INVALID_PARAMETER);
    }
    channel.init(&mut guest, ChannelType::PIPEWIRE);
    let peer = service.accept();
    // The first id is still the first.
    channel.submit(&mut guest, &Request::stream_send_with(b"p", &[(FIRST_PIPE, READ_PIPE)])).ok();
    let (data, files) = peer.receive(16);
    assert_eq!((data.as_slice(), files.len()), (&b"p"[..], 1));
    assert_lives(&mut guest, &mut channel, &peer);
    guest.assert_all_answered();
}

#[test]
fn nothing_hangs_or_is_read_after_the_end_of_its_channel() {
    for by_the_vmm in [false, true] {
        let mut desk = Desk::new();
        let (file, id) = desk.watched(EventfdFlags::empty());
        let (idle, idle_id) = desk.event(EventfdFlags::empty());
        let poll = desk.poll();
        if by_the_vmm {
            assert_eq!(desk.guest.device().hang_up(ChannelType::PIPEWIRE).wait().expect("a device"), 1);
        } else {
            desk.peer.stream().shutdown(std::net::Shutdown::Both).expect("shut down");
        }
        let end = super::message(&mut desk.guest, &mut desk.channel, poll);
        assert_eq!((end.data.len(), end.identifiers.len()), (0, 0), "no end of file");
        // Nobody asks for this any more.
        signal(&file, 1);
        for stream in [
            Request::stream_watch(idle_id),
            Request::stream_watch(id),
            Request::stream_send(b"late", &[]),
            Request::stream_send_with(b"late", &[(FIRST_PIPE, READ_PIPE)]),
            Request::stream_write(999, b"late", false),
            words(command::INIT, &[10, 11, ChannelType::PIPEWIRE.0, 1]),
        ] {
            let kind = desk.channel.submit(&mut desk.guest, &stream).kind();
            assert!((0x1200..0x1206).contains(&kind), "answered {kind:#x}");
        }
        assert_eq!(counter(&file), 1, "read though there is no channel");
        let late = desk.poll();
        let end = super::message(&mut desk.guest, &mut desk.channel, late);
        assert_eq!(end.data.len(), 0);
        // What came through it has gone with it.
        assert_eq!((holders(&file), holders(&idle)), (1, 1));
        desk.invalid(&Request::stream_write(id, b"", true));
        desk.invalid(&Request::stream_unwatch(idle_id));
        let (mut other, peer) = desk.another(2, 30);
        assert_lives(&mut desk.guest, &mut other, &peer);
        desk.guest.assert_all_answered();
    }
}

#[test]
fn a_ring_that_is_taken_away_ends_its_channel_alone() {
    let takes = [Request::ctx_detach(1, 11), Request::detach_backing(11), Request::unref(11)];
    for take in takes {
        let mut desk = Desk::new();
        let (mut other, other_peer) = desk.another(2, 30);
        let (file, id) = desk.watched(EventfdFlags::NONBLOCK);
        let others = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        other_peer.send(b"x", &[others.as_fd()]);
        let item = other.receive(&mut desk.guest).identifiers[0].0;
        other.submit(&mut desk.guest, &Request::stream_watch(item)).ok();
        signal(&file, 1);
        assert_eq!(desk.count(id), 1);
        let polls = [desk.poll(), desk.poll()];
        desk.guest.settle();
        desk.guest.command(&take).ok();
        signal(&file, 2);
        for poll in polls {
            desk.guest.wait(poll).ok();
        }
        assert_eq!(desk.peer.receive(1).0, b"", "the service still has a connection");
        signal(&others, 5);
        let read = other.receive_read(&mut desk.guest);
        assert_eq!((read.id, read.data), (item, 5u64.to_le_bytes().to_vec()));
        assert_lives(&mut desk.guest, &mut other, &other_peer);
        desk.guest.assert_all_answered();
    }
}
