//! CTX_DESTROY, reset, stop, and the end of the handle or of the task: the socket and every item of the channel are closed
//! at once, and every fence has its answer.

use std::os::fd::{AsFd, OwnedFd};

use tokio::sync::oneshot;
use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::{ChannelType, FIRST_READ_PIPE, id_type};
use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
use virtio_gpu_uring::testing::{Guest, GuestChannel, GuestOptions, HostPeer, HostService, Request, Token};

use crate::{
    RAM, Scene, assert_end_of_file, drain, event_holders, has_reader, holders, memfd, peek, pipe, ring, turns,
};

/// What is at the other ends of everything that a context can have.
struct Others {
    watched: OwnedFd,
    unwatched: OwnedFd,
    /// Of a pipe that the guest has written less to than it takes, and of one that it has written more to.
    idle: OwnedFd,
    busy: OwnedFd,
    /// Of pipes that the guest reads: one that stays empty, one that does not.
    quiet: OwnedFd,
    loud: OwnedFd,
    /// A file that the guest has not made a blob of.
    file: OwnedFd,
}

/// More than a pipe takes.
const LONG: usize = 96 << 10;
/// Less than one takes.
const LOUD: usize = 60_000;

impl Others {
    #[track_caller]
    fn of(scene: &mut Scene) -> Self {
        let file = memfd("life-endings", 4096);
        scene.hand(&[&file, &file, &file]);
        let (_, watched) = scene.watched();
        let (_, unwatched) = scene.event();
        let (idle_id, idle) = scene.write_pipe();
        let (busy_id, busy) = scene.write_pipe();
        scene.ok(&Request::stream_write(idle_id, b"said", false));
        for _ in 0..LONG >> 15 {
            scene.ok(&Request::stream_write(busy_id, &[3; 1 << 15], false));
        }
        let (quiet, loud) = (scene.read_pipe(0), scene.read_pipe(1));
        rustix::io::write(&loud, &[4; LOUD]).expect("room in a new pipe");
        scene.channel.image(&mut scene.guest, 64, 64, *b"XR24");
        let others = Self { watched, unwatched, idle, busy, quiet, loud, file };
        assert_eq!(others.held(), [2, 2, 4, 1]);
        assert!(has_reader(&others.quiet) && has_reader(&others.loud));
        others
    }

    /// Descriptors of eventfds, of the file, and of the pipe that has been written.
    fn held(&self) -> [usize; 4] {
        [event_holders(&self.watched), event_holders(&self.unwatched), holders(&self.file), holders(&self.idle) - 1]
    }

    /// Nothing waits for anything: this is true when the call has returned.
    #[track_caller]
    fn assert_released(&self, how: &str) {
        assert_eq!(self.held(), [1, 1, 1, 0], "{how}: eventfds, files, pipes");
        assert_eq!(drain(&self.idle), (b"said".to_vec(), false), "{how}: the reader waits for more");
        let (seen, open) = drain(&self.busy);
        assert!(!open && seen.iter().all(|byte| *byte == 3), "{how}: the reader of a pipe waits for more");
        for writer in [&self.quiet, &self.loud] {
            assert!(!has_reader(writer), "{how}: the service writes to a pipe that nobody will read");
        }
    }
}

/// A scene in which everything is open and two fences wait.
#[track_caller]
fn whole() -> (Scene, Others, [Token; 2]) {
    let mut scene = Scene::new();
    let others = Others::of(&mut scene);
    // What is in the loud pipe comes first.
    let mut seen = 0;
    while seen < LOUD {
        seen += scene.channel.receive_read(&mut scene.guest).data.len();
    }
    let polls = [scene.poll(), scene.poll()];
    scene.guest.settle();
    assert!(polls.iter().all(|poll| !scene.guest.has_answer(poll)));
    (scene, others, polls)
}

#[test]
fn a_destroyed_context_keeps_nothing_open_when_it_is_answered_and_no_fence_waiting() {
    let (mut scene, others, polls) = whole();
    scene.guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(peek(&scene.peer), Ok(0), "the socket was open after the answer");
    others.assert_released("CTX_DESTROY");
    for poll in polls {
        scene.guest.wait(poll).ok();
    }
    scene.guest.assert_all_answered();
    assert_eq!(scene.channels(), (1, 1));
    assert_eq!(scene.items().1, 1 + (LONG >> 15) as u64);
}

#[test]
fn a_reset_keeps_nothing_open_and_answers_nothing_afterwards() {
    let (mut scene, others, _polls) = whole();
    scene.guest.reset();
    assert_eq!(peek(&scene.peer), Ok(0), "the socket was open after the reset");
    others.assert_released("reset");
    assert_eq!(scene.channels(), (1, 1));
    let Scene { mut guest, service, .. } = scene;
    guest.activate();
    // What the life before has left behind at the other ends is nothing to this one.
    ring(&others.watched, 3);
    let mut scene = Scene::on(guest, service);
    let poll = scene.poll();
    turns(&scene.guest);
    assert!(!scene.guest.has_answer(&poll), "something of the life before has come");
    scene.peer.send(b"new", &[]);
    assert_eq!(scene.channel.wait(&mut scene.guest, poll).data, b"new");
    scene.guest.assert_all_answered();
    assert_eq!(scene.channels(), (2, 1));
}

#[test]
fn a_stopped_device_keeps_nothing_open() {
    let (scene, others, _polls) = whole();
    scene.guest.device().stop().wait().expect("a device");
    assert_eq!(peek(&scene.peer), Ok(0), "the socket was open after the stop");
    others.assert_released("stop");
    assert_eq!(scene.channels(), (1, 1));
}

#[test]
fn a_dropped_handle_keeps_nothing_open() {
    let (scene, others, _polls) = whole();
    let Scene { guest, peer, .. } = scene;
    drop(guest);
    assert_eq!(peek(&peer), Ok(0), "the socket outlives the handle");
    others.assert_released("drop");
}

/// A device on a runtime of the VMM's, which drops the task when it is told to.
#[test]
fn a_dropped_task_keeps_nothing_open() {
    let service = HostService::listen();
    let builder = Builder::new().host_socket(ChannelType::PIPEWIRE, service.path());
    let (device, task) = builder.build().expect("a device");
    let (let_go, told) = oneshot::channel::<()>();
    let (dropped, gone) = std::sync::mpsc::channel();
    let (end, ended) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        tokio_uring::start(async move {
            let running = tokio_uring::spawn(task.run());
            told.await.expect("a test that tells");
            running.abort();
            running.await.expect_err("dropped while it ran");
            dropped.send(()).expect("a test that listens");
            // The runtime stays: nothing is closed by its end.
            ended.await.expect("a test that ends");
        });
    });
    let mut guest = Guest::powered_off(device, GuestOptions { ram: RAM, ..GuestOptions::default() });
    guest.activate();
    let mut scene = Scene::on(guest, service);
    let others = Others::of(&mut scene);
    scene.guest.settle();
    let_go.send(()).expect("a runtime");
    gone.recv().expect("a runtime");
    assert_eq!(peek(&scene.peer), Ok(0), "the socket outlives the task");
    others.assert_released("drop of the task");
    end.send(()).expect("a runtime");
    thread.join().expect("no panic on the runtime's thread");
}

#[test]
fn one_context_s_end_never_touches_what_another_has_of_the_same_files() {
    let mut scene = Scene::new();
    let mut other = GuestChannel::open(&mut scene.guest, 2, 30, ChannelType::PIPEWIRE);
    let peer = scene.service.accept();
    let (id, event) = scene.watched();
    let (reader, writer) = pipe();
    scene.hand(&[&writer]);
    peer.send(b"x", &[event.as_fd(), writer.as_fd()]);
    drop(writer);
    let items = other.receive(&mut scene.guest).identifiers;
    other.submit(&mut scene.guest, &Request::stream_watch(items[0].0)).ok();
    scene.guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(event_holders(&event), 2, "one of the two contexts', and the service's");
    ring(&event, 5);
    let read = other.receive_read(&mut scene.guest);
    assert_eq!((read.id, read.data.as_slice()), (items[0].0, &5u64.to_ne_bytes()[..]));
    other.submit(&mut scene.guest, &Request::stream_write(items[1].0, b"still", false)).ok();
    assert_eq!(drain(&reader), (b"still".to_vec(), true));
    crate::assert_lives(&mut scene.guest, &mut other, &peer);
    assert!(id > 0);
    assert_eq!(scene.channels(), (2, 1));
}

/// The second life of context 1 with the same rings.
#[track_caller]
fn again(scene: Scene) -> (Scene, HostPeer) {
    let Scene { mut guest, service, peer, .. } = scene;
    guest.command(&Request::ctx_destroy(1)).ok();
    for ring in [10, 11] {
        guest.command(&Request::unref(ring)).ok();
    }
    (Scene::on(guest, service), peer)
}

#[test]
fn a_reused_context_id_gets_nothing_of_its_earlier_life() {
    let mut scene = Scene::new();
    let file = memfd("life-reused", 4096);
    let buffer = scene.hand(&[&file])[0].0;
    let (event_id, event) = scene.watched();
    let (pipe_id, reader) = scene.write_pipe();
    let writer = scene.read_pipe(0);
    let waiting = scene.poll();
    scene.guest.settle();
    let (mut scene, old_peer) = again(scene);
    scene.guest.wait(waiting).ok();
    assert_eq!((peek(&old_peer), has_reader(&writer), drain(&reader).1), (Ok(0), false, false));
    let poll = scene.poll();
    ring(&event, 1);
    turns(&scene.guest);
    assert!(!scene.guest.has_answer(&poll), "an eventfd of the earlier life was read");
    for stream in [
        Request::stream_write(event_id, &1u64.to_ne_bytes(), false),
        Request::stream_write(pipe_id, b"x", true),
        Request::stream_watch(event_id),
        Request::stream_unwatch(event_id),
    ] {
        scene.refused(&stream, ERR_INVALID_PARAMETER);
    }
    let create = Request::host_blob(1, 20, u64::from(buffer), 4096);
    scene.guest.command(&create).expect_error(ERR_INVALID_PARAMETER);
    // Pipes for reading are counted from the start again.
    let second = Request::stream_send_with(b"p", &[(FIRST_READ_PIPE + 1, id_type::READ_PIPE)]);
    scene.refused(&second, ERR_INVALID_PARAMETER);
    scene.peer.send(b"mine", &[]);
    assert_eq!(scene.channel.wait(&mut scene.guest, poll).data, b"mine");
    let _own = scene.read_pipe(0);
    scene.assert_lives();
    scene.guest.assert_all_answered();
    assert_eq!(scene.channels(), (2, 1));
}

/// The old life's eventfd and peer speak while the context is made anew, all of it in one kick.
#[test]
fn a_wake_up_in_the_moment_of_the_end_never_reaches_the_next_life() {
    let mut scene = Scene::new();
    for life in 0..60u64 {
        let (_, event) = scene.watched();
        let _old = scene.poll();
        scene.guest.settle();
        let first = scene.channel.rings[0];
        ring(&event, 1);
        scene.peer.send(b"old", &[]);
        let mut tokens =
            vec![scene.guest.submit(&Request::ctx_destroy(1)), scene.guest.submit(&Request::ctx_create(1, 5))];
        for resource in [first, first + 1] {
            tokens.push(scene.guest.submit(&Request::ctx_attach(1, resource)));
        }
        let init = Request::stream_init(first, first + 1, ChannelType::PIPEWIRE.0, Some(1));
        tokens.push(scene.guest.submit(&Request::submit(1, &init)));
        let poll = scene.poll();
        tokens.into_iter().for_each(|token| drop(scene.guest.wait(token).ok()));
        scene.peer = scene.service.accept();
        turns(&scene.guest);
        assert!(!scene.guest.has_answer(&poll), "life {life}: something of the life before has come");
        scene.peer.send(&[life as u8], &[]);
        assert_eq!(scene.channel.wait(&mut scene.guest, poll).data, [life as u8]);
        assert_eq!(scene.channels(), (life + 2, life + 1));
    }
}

#[test]
fn a_context_that_ended_by_itself_is_never_counted_twice() {
    let mut scene = Scene::new();
    let poll = scene.poll();
    scene.peer.stream().shutdown(std::net::Shutdown::Both).expect("shut down");
    assert_end_of_file(&mut scene.guest, &scene.channel, [poll]);
    scene.guest.command(&Request::ctx_destroy(1)).ok();
    assert_eq!(scene.channels(), (1, 1));
    scene.guest.reset();
    assert_eq!(scene.channels(), (1, 1));
}

/// Descriptors of messages that the service has not taken: a blob's, and the end of a new pipe.
#[test]
fn what_waits_for_a_service_never_outlives_its_channel() {
    for end in ["CTX_DESTROY", "hang_up", "reset", "stop"] {
        let mut scene = Scene::new();
        let file = memfd("life-waits", 4096);
        let id = scene.hand(&[&file])[0].0;
        scene.guest.command(&Request::host_blob(1, 20, u64::from(id), 4096)).ok();
        scene.guest.command(&Request::ctx_attach(1, 20)).ok();
        for _ in 0..16 {
            scene.channel.send(&mut scene.guest, &[1; 32 << 10], &[]);
        }
        let identifiers = [(20, id_type::VIRTGPU_BLOB), (FIRST_READ_PIPE, id_type::READ_PIPE)];
        scene.ok(&Request::stream_send_with(b"b", &identifiers));
        scene.guest.command(&Request::unref(20)).ok();
        assert_eq!(holders(&file), 2, "what was to be sent has gone with its resource");
        let device = scene.guest.device();
        match end {
            "hang_up" => assert_eq!(device.hang_up(ChannelType::PIPEWIRE).wait(), Ok(1)),
            "reset" => device.reset().wait().expect("a device"),
            "stop" => device.stop().wait().expect("a device"),
            _ => drop(scene.guest.command(&Request::ctx_destroy(1)).ok()),
        }
        assert_eq!(holders(&file), 1, "{end}: what nobody will be sent is still open");
        // The service gets what it had been sent, whole messages and no descriptor without its message.
        while peek(&scene.peer) != Ok(0) {
            assert!(scene.peer.receive(64 << 10).1.is_empty(), "{end}: a descriptor after the end");
        }
    }
}
