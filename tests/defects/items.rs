//! Rows 11 and 24 to 27: descriptors that a host service sends, and what became of them.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{OFlags, SealFlags, fcntl_add_seals, ftruncate};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID};
use virtio_gpu_uring::testing::{GuestChannel, HostPeer, HostService, Request, census};
use virtio_gpu_uring::{Builder, Limits};

use crate::setup::{PAGE, Setup, get, memfd, put, reopened};

/// The context of the channel under test.
const CHANNEL: u32 = 2;
/// Types of identifiers: of no use to the guest, and a blob.
const UNSUPPORTED: u32 = 0;
const BLOB: u32 = 1;

fn connected(limits: Limits) -> (Setup, GuestChannel, HostPeer) {
    let service = HostService::listen();
    let builder = Builder::new().limits(limits).host_socket(ChannelType::PIPEWIRE, service.path());
    let mut setup = Setup::with(builder);
    let channel = GuestChannel::open(&mut setup.guest, CHANNEL, 10, ChannelType::PIPEWIRE);
    let peer = service.accept();
    (setup, channel, peer)
}

/// Sends descriptors with a byte of data; what the guest is told of each: id, type, size.
#[track_caller]
fn forward(setup: &mut Setup, channel: &mut GuestChannel, peer: &HostPeer, files: &[&OwnedFd]) -> Vec<(u32, u32, u32)> {
    let files: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
    peer.send(b"x", &files);
    let message = channel.receive(&mut setup.guest);
    assert_eq!(message.data, b"x");
    message.identifiers
}

/// Makes resource 7 of an item, maps it at page 0, and asserts that it shows page 0 of its file.
#[track_caller]
fn assert_live(setup: &mut Setup, item: (u32, u32, u32), writer: &OwnedFd) {
    assert_eq!(item.1, BLOB, "{item:?}");
    setup.ok(&Request::host_blob(CHANNEL, 7, u64::from(item.0), PAGE));
    setup.guest.map(7, 0);
    for byte in [0x31, 0x32] {
        put(writer, 0, byte);
        assert_eq!(setup.byte(0), byte);
    }
    setup.ok(&Request::unref(7));
}

/// Row 11: the first descriptor of an unknown kind ended the channel without a word.
#[test]
fn a_descriptor_of_an_odd_kind_does_not_end_its_channel_nor_its_message() {
    let (mut setup, mut channel, peer) = connected(Limits::default());
    let good = memfd("row-11", PAGE);
    let large = memfd("row-11-large", 1);
    ftruncate(&large, 5 << 30).expect("a sparse file");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let (socket, _other) = UnixStream::pair().expect("sockets");
    let odd: Vec<OwnedFd> = vec![
        reader.into(),
        socket.into(),
        rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("an epoll"),
        memfd("row-11-empty", 0),
        reopened(&good, OFlags::WRONLY),
        large,
        std::fs::File::open("/dev/null").expect("/dev/null").into(),
        std::fs::File::open("/").expect("/").into(),
        std::fs::File::open("/proc/self/maps").expect("/proc/self/maps").into(),
    ];
    for file in &odd {
        let items = forward(&mut setup, &mut channel, &peer, &[&good, file, &good]);
        assert_eq!(items.iter().map(|item| item.1).collect::<Vec<_>>(), [BLOB, UNSUPPORTED, BLOB], "{file:?}");
        let create = Request::host_blob(CHANNEL, 7, u64::from(items[1].0), PAGE);
        setup.refused(&create, ERR_INVALID_PARAMETER);
        assert_live(&mut setup, items[0], &good);
        assert_live(&mut setup, items[2], &good);
    }
}

/// Row 24: what the guest never took up was kept without bound.
#[test]
fn items_that_nobody_takes_up_are_not_kept_without_bound() {
    let name = "not-taken-up";
    let (mut setup, mut channel, peer) = connected(Limits { items_per_context: 3, ..Limits::default() });
    let file = memfd(name, PAGE);
    let kinds = |items: &[(u32, u32, u32)]| items.iter().map(|item| item.1).collect::<Vec<_>>();
    let first = forward(&mut setup, &mut channel, &peer, &[&file; 5]);
    assert_eq!(kinds(&first), [BLOB, BLOB, BLOB, UNSUPPORTED, UNSUPPORTED]);
    assert_eq!(census::fds_named(name), 4, "three items, and the test's own");
    assert_eq!(setup.guest.device().counters().limit_refusals, 2);
    assert_live(&mut setup, first[1], &file);
    let second = forward(&mut setup, &mut channel, &peer, &[&file; 2]);
    assert_eq!(kinds(&second), [BLOB, UNSUPPORTED]);
    assert!(first.iter().all(|item| item.0 != second[0].0), "an id that the guest still has was given again");
    setup.ok(&Request::ctx_destroy(CHANNEL));
    assert_eq!(census::fds_named(name), 1);
}

/// Row 24: nor does a device hold more descriptors than it may, whoever holds them.
#[test]
fn the_limit_of_descriptors_is_not_passed_by_items() {
    let name = "limit-of-items";
    // Two are the contexts' own, for their sockets.
    let (mut setup, mut channel, peer) = connected(Limits { fds: 4, ..Limits::default() });
    let file = memfd(name, PAGE);
    let items = forward(&mut setup, &mut channel, &peer, &[&file; 28]);
    assert_eq!(items.iter().filter(|item| item.1 == BLOB).count(), 2);
    assert_eq!(census::fds_named(name), 3);
    setup.ok(&Request::host_blob(CHANNEL, 7, u64::from(items[0].0), PAGE));
    let more = forward(&mut setup, &mut channel, &peer, &[&file]);
    assert_eq!(more[0].1, UNSUPPORTED);
    setup.ok(&Request::unref(7));
    let more = forward(&mut setup, &mut channel, &peer, &[&file]);
    assert_eq!(more[0].1, BLOB);
}

/// Row 25: an item was gone after the first CREATE_BLOB, even where that was refused.
#[test]
fn a_refused_creation_does_not_use_its_item_up() {
    let (mut setup, mut channel, peer) = connected(Limits::default());
    let file = memfd("row-25", 2312);
    let item = forward(&mut setup, &mut channel, &peer, &[&file])[0];
    assert_eq!(item.2, 2312);
    let id = u64::from(item.0);
    for (request, code) in [
        (Request::host_blob(CHANNEL, 7, id, 2 * PAGE), ERR_INVALID_PARAMETER),
        (Request::host_blob(CHANNEL, 7, id, 0), ERR_INVALID_PARAMETER),
        (Request::host_blob(CHANNEL, 0, id, PAGE), ERR_INVALID_RESOURCE_ID),
        (Request::host_blob(CHANNEL, 10, id, PAGE), ERR_INVALID_RESOURCE_ID),
        (Request::create_blob(7, 2, 1 << 5, id, PAGE, &[]).context(CHANNEL), ERR_INVALID_PARAMETER),
        (Request::create_blob(7, 3, 1, id, PAGE, &[]).context(CHANNEL), ERR_INVALID_PARAMETER),
    ] {
        setup.refused(&request, code);
    }
    assert_live(&mut setup, item, &file);
}

/// Row 25: a file that takes no seals is a buffer all the same.
#[test]
fn a_file_without_seals_is_not_closed_for_that() {
    let path = format!("/dev/shm/virtio-gpu-uring-row-25-{}", std::process::id());
    let file: OwnedFd = match std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path) {
        Ok(file) => file.into(),
        Err(error) => return eprintln!("skipped: no shared memory file system ({error})"),
    };
    std::fs::remove_file(&path).expect("removed");
    ftruncate(&file, PAGE).expect("size");
    let (mut setup, mut channel, peer) = connected(Limits::default());
    let item = forward(&mut setup, &mut channel, &peer, &[&file])[0];
    assert_live(&mut setup, item, &file);
}

/// Row 26: a memfd sealed against future writes was mapped for writing, and so not at all.
#[test]
fn a_memfd_sealed_against_future_writes_is_not_refused() {
    for seal in [SealFlags::FUTURE_WRITE, SealFlags::WRITE] {
        let (mut setup, mut channel, peer) = connected(Limits::default());
        let file = memfd("row-26", PAGE);
        fcntl_add_seals(&file, seal).expect("sealed");
        let item = forward(&mut setup, &mut channel, &peer, &[&file])[0];
        setup.ok(&Request::host_blob(CHANNEL, 7, u64::from(item.0), PAGE));
        setup.guest.map(7, 0);
        assert_eq!(setup.byte(0), 1);
        setup.window.write(0, &[0xee]).expect("in the window");
        assert_eq!((setup.byte(0), get(&file, 0)), (0xee, 1));
    }
}

/// Row 27: received descriptors were inherited by whatever the VMM executed.
#[test]
fn no_received_descriptor_is_inherited_by_a_child() {
    let name = "not-inherited";
    let (mut setup, mut channel, peer) = connected(Limits::default());
    let file = memfd(name, PAGE);
    let items = forward(&mut setup, &mut channel, &peer, &[&file; 3]);
    setup.ok(&Request::host_blob(CHANNEL, 7, u64::from(items[0].0), PAGE));
    let child = std::process::Command::new("/bin/ls").args(["-l", "/proc/self/fd"]).output().expect("a child");
    let inherited = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(inherited.contains("/proc"), "not a list of descriptors: {inherited}");
    assert!(!inherited.contains(name), "{inherited}");
    assert_eq!(census::fds_named(name), 4);
}

/// Row 27: descriptors behind the first control message were dropped.
#[test]
fn no_descriptor_of_a_second_control_message_is_lost() {
    let (mut setup, mut channel, peer) = connected(Limits::default());
    let files = [memfd("row-27-first", PAGE), memfd("row-27-second", PAGE)];
    let sets = files.each_ref().map(|file| [file.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    for set in &sets {
        assert!(control.push(SendAncillaryMessage::ScmRights(set)), "no room for two");
    }
    sendmsg(peer.stream(), &[IoSlice::new(b"two")], &mut control, SendFlags::NOSIGNAL).expect("sent");
    let message = channel.receive(&mut setup.guest);
    assert_eq!((message.data.as_slice(), message.identifiers.len()), (&b"two"[..], 2));
    for (item, file) in message.identifiers.into_iter().zip(&files) {
        assert_live(&mut setup, item, file);
    }
}
