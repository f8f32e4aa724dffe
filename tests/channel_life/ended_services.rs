//! A service that goes while its guest has items of it: the guest hears of the end, the other items go on as far as there is
//! somebody at their other ends, and nothing that was promised is lost without a word.

use std::net::Shutdown;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
use virtio_gpu_uring::testing::{Guest, GuestChannel, Incoming, Request, Token};

use crate::{Scene, assert_end_of_file, drain, event_holders, has_reader, holders, memfd, peek, ring, turns, until};

/// How a service ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Closed,
    /// With something unread, so that its connection is reset.
    Killed,
    ShutDown,
}

/// What is left of a scene without its service.
struct Gone {
    guest: Guest,
    channel: GuestChannel,
}

impl Gone {
    /// The service has gone in one of these ways.
    fn after(mut scene: Scene, how: End) -> Self {
        match how {
            End::Closed => {}
            End::Killed => scene.channel.send(&mut scene.guest, b"unread", &[]),
            End::ShutDown => scene.peer.stream().shutdown(Shutdown::Both).expect("shut down"),
        }
        let Scene { guest, channel, peer, service } = scene;
        drop((peer, service));
        Self { guest, channel }
    }

    fn poll(&mut self) -> Token {
        self.channel.poll(&mut self.guest)
    }

    #[track_caller]
    fn assert_end(&mut self, polls: impl IntoIterator<Item = Token>) {
        assert_end_of_file(&mut self.guest, &self.channel, polls);
        let counters = self.guest.device().counters();
        assert_eq!((counters.channels_opened, counters.channels_closed), (1, 1));
    }
}

#[test]
fn a_service_that_goes_leaves_no_fence_waiting_whatever_is_watched() {
    for how in [End::Closed, End::Killed, End::ShutDown] {
        let mut scene = Scene::new();
        let file = memfd("life-service-went", 4096);
        scene.hand(&[&file]);
        let (_, watched) = scene.watched();
        let (_, idle) = scene.event();
        let (_, reader) = scene.write_pipe();
        let writer = scene.read_pipe(0);
        let polls = [scene.poll(), scene.poll()];
        scene.guest.settle();
        let mut gone = Gone::after(scene, how);
        gone.assert_end(polls);
        // What fires now finds nobody who listens, and whoever asks is told of the end again.
        ring(&watched, 1);
        for _ in 0..3 {
            let poll = gone.poll();
            gone.assert_end([poll]);
        }
        gone.guest.command(&Request::ctx_destroy(1)).ok();
        assert_eq!([event_holders(&watched), event_holders(&idle), holders(&file)], [1, 1, 1], "{how:?}");
        assert!(!has_reader(&writer) && !drain(&reader).1, "{how:?}: a pipe is still open");
        gone.guest.assert_all_answered();
        let counters = gone.guest.device().counters();
        assert_eq!((counters.channels_closed, counters.items_read), (1, 0), "{how:?}");
    }
}

/// Wake-ups of the last moments: as long as there is one, it comes, or the end does; no fence waits.
#[test]
fn wake_ups_beside_the_end_of_the_service_never_leave_a_fence_waiting() {
    for round in 0..30u64 {
        let mut scene = Scene::new();
        let (id, event) = scene.watched();
        let polls = [scene.poll(), scene.poll(), scene.poll()];
        scene.guest.settle();
        ring(&event, round + 1);
        let mut gone = Gone::after(scene, End::Closed);
        gone.assert_end(polls);
        let read = gone.guest.device().counters().items_read;
        assert!(read <= 1, "one wake-up was read {read} times");
        let poll = gone.poll();
        match gone.channel.wait_any(&mut gone.guest, poll) {
            Incoming::Message(message) => assert_eq!(message.data, b""),
            Incoming::Read(read) => panic!("item {id} after the end: {read:?}"),
        }
    }
}

/// A pipe ends with its channel: whoever reads it gets what came before, without a gap, and does not wait for more.
#[test]
fn the_reader_of_a_pipe_is_never_left_waiting_nor_with_a_gap_when_the_service_goes() {
    let mut scene = Scene::new();
    let (id, reader) = scene.write_pipe();
    let total: Vec<u8> = (0..8 * 30_000).map(|at: usize| (at / 999) as u8).collect();
    for piece in total.chunks(30_000) {
        scene.ok(&Request::stream_write(id, piece, false));
    }
    assert_eq!(scene.items(), (0, 8));
    let poll = scene.poll();
    scene.guest.settle();
    let mut gone = Gone::after(scene, End::Closed);
    gone.assert_end([poll]);
    let (seen, open) = drain(&reader);
    assert!(!open, "the reader waits for more");
    assert!(!seen.is_empty() && total.starts_with(&seen), "the bytes differ");
}

#[test]
fn a_write_after_the_end_of_the_service_is_never_answered_ok_and_lost() {
    let mut scene = Scene::new();
    let (id, reader) = scene.write_pipe();
    let mut gone = Gone::after(scene, End::Closed);
    let poll = gone.poll();
    gone.assert_end([poll]);
    let mut taken = 0;
    for _ in 0..4 {
        let answer = gone.channel.submit(&mut gone.guest, &Request::stream_write(id, &[5; 30_000], false));
        if answer.kind() >= 0x1200 {
            break;
        }
        taken += 30_000;
    }
    let mut seen = 0;
    until("the reader has all that the guest was told is written", || {
        let (more, open) = drain(&reader);
        seen += more.len();
        assert!(open || seen >= taken, "{seen} of {taken} bytes, and no more will come");
        seen >= taken
    });
}

#[test]
fn no_eventfd_is_watched_for_a_channel_that_has_ended() {
    let mut scene = Scene::new();
    let (id, event) = scene.event();
    let mut gone = Gone::after(scene, End::Closed);
    let poll = gone.poll();
    gone.assert_end([poll]);
    gone.channel.submit(&mut gone.guest, &Request::stream_watch(id)).expect_error(ERR_INVALID_PARAMETER);
    assert_eq!(event_holders(&event), 1, "an eventfd of a channel that has ended is still open");
    gone.channel.submit(&mut gone.guest, &Request::stream_unwatch(id)).expect_error(ERR_INVALID_PARAMETER);
}

#[test]
fn an_image_that_was_laid_out_is_never_lost_with_the_service() {
    let mut scene = Scene::new();
    let image = scene.channel.image(&mut scene.guest, 64, 64, *b"XR24");
    let mut gone = Gone::after(scene, End::Closed);
    let poll = gone.poll();
    gone.assert_end([poll]);
    let create = Request::host_blob(1, 20, u64::from(image.blob_id.get()), image.size.get());
    gone.guest.command(&create).ok();
    gone.guest.assert_all_answered();
}

#[test]
fn one_service_s_end_is_never_noticed_on_another_channel() {
    let mut scene = Scene::new();
    let (id, event) = scene.watched();
    let mut other = GuestChannel::open(&mut scene.guest, 2, 30, ChannelType::PIPEWIRE);
    let other_peer = scene.service.accept();
    let other_poll = other.poll(&mut scene.guest);
    let poll = scene.poll();
    scene.guest.settle();
    drop(other_peer);
    assert_end_of_file(&mut scene.guest, &other, [other_poll]);
    turns(&scene.guest);
    assert!(!scene.guest.has_answer(&poll), "a channel heard of another's end");
    ring(&event, 9);
    scene.guest.wait(poll).ok();
    assert!(matches!(scene.channel.incoming(&scene.guest), Incoming::Read(read) if read.id == id));
    scene.assert_lives();
    assert_eq!((scene.channels(), scene.items(), peek(&scene.peer).is_err()), ((2, 1), (1, 0), true));
}
