//! Pictures in dma-bufs, as far as messages go: any file stands for one here, and the display is called as the device calls it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use futures_util::FutureExt as _;

use super::super::scanout::{Buffers, FrontEndDisplay};
use super::super::sender::Sender;
use super::super::slot::{Bell, Slot};
use super::super::wire::{DmabufScanout, DmabufScanout2, Link, LinkError, Scanout, Update};
use super::*;
use crate::seams::{Area, Display as _, DmaBuf, Picture, Pixels, Plane, Work};

/// A display, what sends what it leaves, and the front-end.
struct Pair {
    display: FrontEndDisplay,
    sender: Sender,
    link: Link,
    front_end: FrontEnd,
}

impl Pair {
    fn new(buffers: Buffers) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        theirs.set_read_timeout(Some(DEADLINE)).expect("a socket");
        let (device, _task) = Builder::new().build::<Arc<vm_memory::GuestMemoryMmap>>().expect("a device");
        let bell = Bell::new(device.displays(), super::super::PATIENCE).expect("an eventfd");
        let (slot, sent, heard) = Slot::new(Arc::new(bell));
        let display = FrontEndDisplay::new(3, buffers, Arc::clone(&slot), heard);
        Self { display, sender: Sender::new(3, slot, sent), link: Link::new(ours), front_end: FrontEnd(theirs) }
    }

    /// Sends what there is, without an answer.
    fn send(&mut self) {
        self.sender.send(&self.link, &mut Vec::new()).expect("a front-end");
    }

    /// Sends what there is to a front-end that acknowledges one update; which it was.
    fn send_acknowledged(&mut self) -> Update {
        let Self { sender, link, front_end, .. } = self;
        thread::scope(|scope| {
            let sending = scope.spawn(|| sender.send(link, &mut Vec::new()));
            let update = front_end.answers(Asked::DmabufUpdate, &[]).is(Asked::DmabufUpdate);
            sending.join().expect("no panic").expect("a front-end");
            update
        })
    }
}

const ONE: [Plane; 1] = [Plane { offset: 0, stride: 256 }];
const SHOWN: Area = Area { x: 2, y: 3, width: 40, height: 30 };

fn picture<'a>(file: &'a impl AsFd, planes: &'a [Plane], modifier: Option<u64>) -> Picture<'a> {
    let file = file.as_fd();
    let buffer = DmaBuf { file, id: 1, width: 64, height: 48, planes, modifier, shown: SHOWN };
    Picture { buffer: Some(buffer), ..Picture::new(SHOWN.width, SHOWN.height, Format::R8G8B8X8) }
}

fn file(name: &str) -> OwnedFd {
    rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd")
}

#[test]
fn a_dma_buf_is_never_taken_where_no_message_has_words_for_it() {
    let file = file("vhost-display-words");
    let two = [ONE[0], Plane { offset: 4096, stride: 256 }];
    let later = [Plane { offset: 4096, stride: 256 }];
    let tiled = Some(0x0100_0000_0000_0002);
    let cases = [
        (&ONE[..], None, [false, true, true]),
        (&ONE[..], Some(0), [false, true, true]),
        (&ONE[..], tiled, [false, false, true]),
        (&two[..], None, [false; 3]),
        (&later[..], Some(0), [false; 3]),
        (&[], None, [false; 3]),
    ];
    for (planes, modifier, taken) in cases {
        for (buffers, taken) in [Buffers::Never, Buffers::Plain, Buffers::OfAnyLayout].into_iter().zip(taken) {
            let mut pair = Pair::new(buffers);
            let picture = picture(&file, planes, modifier);
            assert_eq!(pair.display.takes_buffer(&picture), taken, "{buffers:?} {planes:?} {modifier:?}");
        }
    }
    assert!(!Pair::new(Buffers::OfAnyLayout).display.takes_buffer(&Picture::new(8, 8, Format::B8G8R8X8)));
}

#[test]
fn a_dma_buf_is_told_where_it_lies_and_a_flush_waits_for_its_acknowledgement() {
    let mut pair = Pair::new(Buffers::OfAnyLayout);
    let file = file("vhost-display-told");
    let mut expected = DmabufScanout {
        scanout: 3,
        x: 2,
        y: 3,
        width: 40,
        height: 30,
        fd_width: 64,
        fd_height: 48,
        fd_stride: 256,
        fd_flags: 0,
        fd_drm_fourcc: u32::from_le_bytes(*b"XB24"),
    };
    let tiled = 0x0100_0000_0000_0002;
    for modifier in [None, Some(0), Some(tiled)] {
        let shown = picture(&file, &ONE, modifier);
        assert!(pair.display.takes_buffer(&shown));
        pair.display.attach(&shown);
        pair.send();
        let message = pair.front_end.message();
        if modifier == Some(tiled) {
            let told: DmabufScanout2 = message.is(Asked::DmabufScanout2);
            assert_eq!(told, DmabufScanout2 { scanout: expected, modifier: tiled });
        } else {
            assert_eq!(message.is::<DmabufScanout>(Asked::DmabufScanout), expected);
        }
        let sent = rustix::fs::fstat(message.file.expect("a descriptor")).expect("a file");
        assert_eq!(sent.st_ino, rustix::fs::fstat(&file).expect("a file").st_ino);

        let Work::Later(mut first) = pair.display.frame(Area { x: 1, y: 1, width: 2, height: 2 }) else {
            panic!("it has not been seen")
        };
        let Work::Later(second) = pair.display.frame(Area { x: 38, y: 28, width: 9, height: 9 }) else {
            panic!("it has not been seen")
        };
        assert_eq!((&mut first).now_or_never(), None);
        let update = pair.send_acknowledged();
        assert_eq!(update, Update { scanout: 3, x: 1, y: 1, width: 39, height: 29 });
        assert_eq!((first.now_or_never(), second.now_or_never()), (Some(()), Some(())));
    }
    // From a dma-buf to nothing, and from one to pixels.
    pair.display.detach();
    pair.send();
    expected = DmabufScanout { scanout: 3, ..DmabufScanout::new_zeroed() };
    let message = pair.front_end.message();
    assert!(message.file.is_none());
    assert_eq!(message.is::<DmabufScanout>(Asked::DmabufScanout), expected);
    let shown = picture(&file, &ONE, None);
    assert!(pair.display.takes_buffer(&shown));
    pair.display.attach(&shown);
    pair.send();
    assert!(pair.front_end.message().file.is_some());
    pair.display.attach(&Picture::new(2, 1, Format::B8G8R8X8));
    pair.display.draw(Area { x: 0, y: 0, width: 2, height: 1 }, Pixels::new(&[7; 8], 8, 2, 1));
    let Work::Later(frame) = pair.display.frame(Area { x: 0, y: 0, width: 2, height: 1 }) else {
        panic!("it has not been sent")
    };
    pair.send();
    assert_eq!(pair.front_end.message().is::<DmabufScanout>(Asked::DmabufScanout), expected);
    assert_eq!(pair.front_end.message().is::<Scanout>(Asked::Scanout), Scanout { scanout: 3, width: 2, height: 1 });
    assert_eq!(pair.front_end.message().carries::<Update>(Asked::Update).1, [7; 8]);
    assert_eq!(frame.now_or_never(), Some(()));
    pair.front_end.assert_silent();
}

#[test]
fn a_dma_buf_that_is_shown_no_more_is_not_kept() {
    let name = "vhost-display-kept";
    let mut pair = Pair::new(Buffers::Plain);
    let file = file(name);
    for detach in [false, true] {
        let shown = picture(&file, &ONE, None);
        assert!(pair.display.takes_buffer(&shown));
        pair.display.attach(&shown);
        assert_eq!(crate::testing::census::fds_named(name), 2);
        if detach {
            // Before anything has been sent of it.
            pair.display.detach();
        } else {
            pair.send();
            drop(pair.front_end.message());
        }
        assert_eq!(crate::testing::census::fds_named(name), 1, "{detach}");
    }
}

#[test]
fn an_acknowledgement_that_is_none_is_not_taken_for_one() {
    let mut pair = Pair::new(Buffers::Plain);
    let file = file("vhost-display-ack");
    let shown = picture(&file, &ONE, None);
    assert!(pair.display.takes_buffer(&shown));
    pair.display.attach(&shown);
    pair.send();
    drop(pair.front_end.message());
    let _ = pair.display.frame(SHOWN);
    let Pair { sender, link, front_end, .. } = &mut pair;
    thread::scope(|scope| {
        let sending = scope.spawn(|| sender.send(link, &mut Vec::new()));
        front_end.answers(Asked::DmabufUpdate, &[0; 4]);
        let sent = sending.join().expect("no panic");
        assert!(matches!(sent, Err(LinkError::Size { size: 4, wanted: 0, .. })), "{sent:?}");
    });
}
