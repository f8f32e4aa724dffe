//! Row 7: a process that has no descriptor left. The limit is the whole process's, so the test runs in a process of its
//! own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{GuestChannel, HostService, Request};

use crate::setup::{CONTEXT, PAGE, PAGES, Setup, memfd, put};

/// Row 7: an EMFILE on the way ended in OK_MAP_INFO over zeros.
#[test]
fn a_process_without_descriptors_is_not_answered_with_zeros() {
    let test = "exhausted::in_a_process_without_descriptors";
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .expect("the same program, started again");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
}

/// Takes all descriptors that the process may still open; gives them back at its end.
struct Exhausted(Rlimit);

impl Exhausted {
    fn now() -> Self {
        let before = getrlimit(Resource::Nofile);
        let next = File::open("/dev/null").expect("/dev/null").as_raw_fd();
        setrlimit(Resource::Nofile, Rlimit { current: Some(next as u64), ..before }).expect("a lower limit");
        assert!(File::open("/dev/null").is_err(), "there is a descriptor left");
        Self(before)
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).expect("the limit as it was");
    }
}

#[test]
#[ignore = "lowers a limit of the whole process: started by the test above in a process of its own"]
fn in_a_process_without_descriptors() {
    let service = HostService::listen();
    let mut setup = Setup::with(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
    setup.paint();
    let mut channel = GuestChannel::open(&mut setup.guest, 2, 10, ChannelType::PIPEWIRE);
    let _unused = GuestChannel::create(&mut setup.guest, 3, 20);
    let peer = service.accept();
    let file = memfd("exhausted", PAGE);
    setup.blob(7, &file, PAGE);
    let offered = setup.offer(&file);

    let exhausted = Exhausted::now();
    // What the device has already goes on without a descriptor more.
    for round in 0..3 {
        setup.guest.map(7, round * PAGE);
        put(&file, 0, 0x20 + round as u8);
        assert_eq!(setup.byte(round * PAGE), 0x20 + round as u8);
        setup.ok(&Request::unmap(7));
    }
    setup.ok(&Request::host_blob(CONTEXT, 8, offered, PAGE));
    setup.guest.map(8, 0);
    assert_eq!(setup.byte(0), 0x22);
    // A new connection is refused, and a message loses its descriptor or ends the channel: both are said.
    let init = Request::stream_init(20, 21, ChannelType::PIPEWIRE.0, Some(1));
    assert!(setup.guest.command(&Request::submit(3, &init)).kind() >= 0x1200, "connected without a socket");
    peer.send(b"one", &[file.as_fd()]);
    let message = channel.receive(&mut setup.guest);
    assert!(message.identifiers.iter().all(|(id, kind, _)| (*id, *kind) == (0, 0)), "{message:?}");
    assert!(message.data.is_empty() || message.identifiers.len() == 1, "a descriptor is gone in silence: {message:?}");
    for id in 0..4 {
        let answer = setup.guest.command(&Request::host_blob(2, 9, id, PAGE));
        assert!(answer.kind() >= 0x1200, "a blob was made of nothing");
    }
    setup.ok(&Request::unref(7));
    setup.guest.reset();
    setup.assert_gap(0..PAGES);
    drop(exhausted);

    setup.guest.activate();
    let mut channel = GuestChannel::open(&mut setup.guest, 2, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    peer.send(b"two", &[file.as_fd()]);
    let message = channel.receive(&mut setup.guest);
    setup.ok(&Request::host_blob(2, 9, u64::from(message.identifiers[0].0), PAGE));
    setup.guest.map(9, 0);
    assert_eq!(setup.byte(0), 0x22);
}
