//! Pictures in host buffers: a display that takes dma-bufs has the dma-buf itself and closes it when it is told to, and all
//! others are drawn what lies in the buffer when it is flushed.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::CAPSET_CROSS_DOMAIN;
use virtio_gpu_uring::testing::{Guest, Request, Screen, Shown, Viewer, census};
use virtio_gpu_uring::{
    Access, Area, BufferKind, Builder, Cursor, Display, Format, HostBuffer, Monitor, Picture, Pixels, Plane, Work,
};

use crate::{FORMAT, area, attached, connect, pattern, soon, until};

const LEN: u64 = 64 * 48 * 4;
const PAGES: u64 = LEN.next_multiple_of(4096);
const WHOLE: [u32; 4] = [0, 0, 64, 48];

pub(crate) fn memfd(name: &str, seed: u32) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, PAGES).expect("size");
    rustix::io::pwrite(&file, &pattern(64, 48, seed), 0).expect("written");
    file
}

/// Makes blob `resource` of a buffer.
fn blob_of(guest: &mut Guest, resource: u32, buffer: HostBuffer) {
    let offered = soon(guest.device().offer(buffer)).expect("room").0;
    guest.command(&Request::host_blob(1, resource, offered, PAGES)).ok();
}

/// Makes blob `resource` of a file that passes for a dma-buf.
pub(crate) fn dma_buf(guest: &mut Guest, resource: u32, file: OwnedFd) {
    blob_of(guest, resource, HostBuffer::stand_in(file, BufferKind::DmaBuf, PAGES, Access::ReadWrite));
}

pub(crate) fn set(resource: u32) -> Request {
    Request::set_scanout_blob(0, resource, [64, 48], FORMAT, 64 * 4, 0)
}

fn by_buffer() -> Shown {
    Shown::Attached { width: 64, height: 48, format: Format::B8G8R8X8, by_buffer: true }
}

/// A guest whose display takes dma-bufs, or does not; context 1 is there.
fn with_display(takes: bool) -> (Guest, Viewer) {
    let (screen, viewer) = if takes { Screen::taking_buffers() } else { Screen::new() };
    let mut guest = Guest::start(Builder::new().display(0, Monitor::new(64, 48), screen));
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    (guest, viewer)
}

#[test]
fn a_dma_buf_is_never_copied_for_a_display_that_takes_it() {
    const NAME: &str = "shown-dmabuf";
    let (mut guest, viewer) = with_display(true);
    let file = memfd(NAME, 1);
    dma_buf(&mut guest, 7, file.try_clone().expect("a duplicate"));
    assert_eq!(census::fds_named(NAME), 2);
    guest.command(&set(7)).ok();
    assert_eq!(viewer.take(), [by_buffer()]);
    assert_eq!(census::fds_named(NAME), 3, "the test's, the blob's, the display's");
    guest.command(&Request::flush(7, [1, 2, 3, 4])).ok();
    assert_eq!(viewer.take(), [Shown::Frame(Area { x: 1, y: 2, width: 3, height: 4 })]);
    let shown = viewer.take_buffer().expect("the dma-buf");
    let inode = |file: &OwnedFd| fstat(file).expect("a file").st_ino;
    assert_eq!(inode(&shown), inode(&file));
    drop(shown);
    guest.command(&Request::unref(7)).ok();
    assert_eq!(viewer.take(), [Shown::Detached]);
    assert_eq!(census::fds_named(NAME), 1);
}

#[test]
fn no_end_of_a_picture_leaves_its_dma_buf_open() {
    const NAME: &str = "ended-dmabuf";
    type End = fn(&mut Guest);
    let ends: [End; 5] = [
        |guest| drop(guest.command(&Request::set_scanout(0, 0, [0; 4])).ok()),
        |guest| drop(guest.command(&Request::unref(7)).ok()),
        |guest| assert!(soon(guest.device().disconnect(0)).expect("a scanout")),
        |guest| connect(guest, 0, Monitor::new(64, 48), Screen::new().0),
        Guest::reset,
    ];
    for (index, end) in ends.into_iter().enumerate() {
        let (mut guest, viewer) = with_display(true);
        dma_buf(&mut guest, 7, memfd(NAME, 1));
        guest.command(&set(7)).ok();
        assert_eq!(census::fds_named(NAME), 2);
        end(&mut guest);
        drop(viewer);
        // The blob may live on, but nobody else.
        let blob = if matches!(index, 1 | 4) { 0 } else { 1 };
        // A new display's picture is read through a descriptor of its own, which is there for a moment.
        until("only the blob has it open", || census::fds_named(NAME) == blob);
        drop(guest);
        assert_eq!(census::fds_named(NAME), 0, "end {index}");
    }
}

#[test]
fn a_guest_that_flips_pages_never_wears_descriptors_out() {
    const NAME: &str = "flipped-dmabuf";
    let (mut guest, viewer) = with_display(true);
    for resource in [7, 8] {
        dma_buf(&mut guest, resource, memfd(NAME, resource));
    }
    for round in 0..100 {
        let resource = 7 + round % 2;
        guest.command(&set(resource)).ok();
        guest.command(&Request::flush(resource, WHOLE)).ok();
        assert_eq!(viewer.take(), [by_buffer(), Shown::Frame(area(64, 48))]);
        assert_eq!(census::fds_named(NAME), 3, "two blobs', and the display's");
    }
    // What is not shown is no business of the display's.
    guest.command(&Request::flush(7, WHOLE)).ok();
    guest.command(&Request::unref(7)).ok();
    assert_eq!(viewer.take(), []);
    guest.command(&Request::set_scanout(0, 0, [0; 4])).ok();
    guest.command(&Request::unref(8)).ok();
    assert_eq!((viewer.take(), census::fds_named(NAME)), (vec![Shown::Detached], 0));
}

#[test]
fn a_display_that_comes_late_is_never_left_without_the_dma_buf() {
    const NAME: &str = "late-dmabuf";
    let (mut guest, first) = with_display(true);
    dma_buf(&mut guest, 7, memfd(NAME, 1));
    guest.command(&set(7)).ok();
    drop(first);
    let (screen, viewer) = Screen::taking_buffers();
    connect(&guest, 0, Monitor::new(64, 48), screen);
    let mut shown = viewer.take();
    shown.retain(|shown| *shown != Shown::CursorHidden);
    assert_eq!(shown, [by_buffer(), Shown::Frame(area(64, 48))]);
    assert_eq!(census::fds_named(NAME), 2);
}

#[test]
fn a_display_that_wants_bytes_is_never_handed_a_dma_buf_nor_bytes_before_its_fences() {
    let (mut guest, viewer) = with_display(false);
    // A pipe stands in for a dma-buf with a write that is pending: it is readable when the test says so.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    dma_buf(&mut guest, 7, reader.into());
    guest.command(&set(7)).ok();
    assert_eq!(viewer.take(), [attached(64, 48)]);
    let flush = guest.submit(&Request::flush(7, WHOLE));
    for _ in 0..4 {
        guest.settle();
        assert!(!guest.has_answer(&flush), "answered before the fence");
    }
    assert_eq!(viewer.take(), [], "drawn before the fence");
    writer.write_all(b"!").expect("a pipe with room");
    // A pipe cannot be mapped, but that was tried.
    let answer = guest.wait(flush);
    assert!(answer.kind() >= 0x1200, "the device answered {:#x}", answer.kind());
    assert_eq!(viewer.take(), []);
    guest.settle();
}

#[test]
fn a_memfd_is_never_handed_over_as_a_dma_buf_and_its_bytes_are_those_of_the_flush() {
    const NAME: &str = "live-memfd";
    let (mut guest, viewer) = with_display(true);
    let file = memfd(NAME, 1);
    blob_of(&mut guest, 7, HostBuffer::from_fd(file.try_clone().expect("a duplicate")).expect("a buffer"));
    guest.command(&set(7)).ok();
    assert_eq!(viewer.take(), [attached(64, 48)]);
    for seed in 1..5 {
        rustix::io::pwrite(&file, &pattern(64, 48, seed), 0).expect("written");
        guest.command(&Request::flush(7, WHOLE)).ok();
        assert_eq!(viewer.take(), [Shown::Drawn(area(64, 48), pattern(64, 48, seed)), Shown::Frame(area(64, 48))]);
        assert_eq!(census::fds_named(NAME), 2, "a read has left a descriptor open");
    }
    // A part of it, with a row that is longer than the picture's.
    let mut body = Request::scanout_blob(0, 7, [4, 2, 16, 8], [32, 20], FORMAT);
    (body.strides[0], body.offsets[0]) = ((64 * 4).into(), 8.into());
    guest.command(&Request::with_scanout_blob(&body)).ok();
    guest.command(&Request::flush(7, [4, 2, 16, 8])).ok();
    let whole = pattern(64, 48, 4);
    let rows = (2..10).flat_map(|y| whole[y * 256 + 4 * 4 + 8..][..16 * 4].to_vec()).collect();
    assert_eq!(viewer.take()[1..], [Shown::Drawn(area(16, 8), rows), Shown::Frame(area(16, 8))]);
}

/// What a display was told of dma-bufs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Dma {
    /// Width and height, what is shown of it, and its planes.
    Attached(u64, [u32; 2], Area, Vec<Plane>),
    Detached,
    Forgotten(u64),
}

type Told = Arc<Mutex<Vec<Dma>>>;

/// A display that notes where pictures lie, and refuses what is narrower than 64 pixels.
struct Surveyor(Told);

impl Surveyor {
    fn tell(&self, told: Dma) {
        self.0.lock().expect("no panic under it").push(told);
    }
}

impl Display for Surveyor {
    fn takes_buffer(&mut self, picture: &Picture<'_>) -> bool {
        assert!(picture.buffer.is_some(), "asked about a picture that lies in no dma-buf");
        picture.width >= 64
    }

    fn attach(&mut self, picture: &Picture<'_>) {
        assert_eq!(picture.buffer.is_some(), picture.width >= 64, "not as it was said");
        if let Some(buffer) = picture.buffer {
            let size = [buffer.width, buffer.height];
            self.tell(Dma::Attached(buffer.id, size, buffer.shown, buffer.planes.to_vec()));
        }
    }

    fn draw(&mut self, _area: Area, _pixels: Pixels<'_>) {
        panic!("drawn what lies in a dma-buf");
    }

    fn frame(&mut self, _damage: Area) -> Work<()> {
        Work::Done(())
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}

    fn move_cursor(&mut self, _position: (i32, i32)) {}

    fn detach(&mut self) {
        self.tell(Dma::Detached);
    }

    fn forget(&mut self, buffer: u64) {
        self.tell(Dma::Forgotten(buffer));
    }
}

fn surveyed() -> (Guest, Told) {
    let told = Told::default();
    let builder = Builder::new().display(0, Monitor::new(64, 48), Surveyor(Arc::clone(&told)));
    let mut guest = Guest::start(builder);
    guest.command(&Request::ctx_create(1, CAPSET_CROSS_DOMAIN)).ok();
    (guest, told)
}

/// What was told since the last call. A display that panicked would be told nothing.
fn take(guest: &Guest, told: &Told) -> Vec<Dma> {
    assert_eq!(guest.device().counters().displays_lost, 0);
    std::mem::take(&mut *told.lock().expect("no panic under it"))
}

#[test]
fn a_display_is_never_told_of_other_planes_than_the_guests() {
    let (mut guest, told) = surveyed();
    dma_buf(&mut guest, 7, memfd("surveyed", 1));
    let mut body = Request::scanout_blob(0, 7, [1, 2, 64, 3], [70, 6], FORMAT);
    (body.strides[0], body.offsets[0]) = (300.into(), 16.into());
    guest.command(&Request::with_scanout_blob(&body)).ok();
    (body.strides[1], body.offsets[1]) = (64.into(), 4096.into());
    guest.command(&Request::with_scanout_blob(&body)).ok();
    guest.command(&Request::flush(7, [0, 0, 70, 6])).ok();
    let shown = Area { x: 1, y: 2, width: 64, height: 3 };
    let planes = [Plane { offset: 16, stride: 300 }, Plane { offset: 4096, stride: 64 }];
    let seen = take(&guest, &told);
    let Some(Dma::Attached(id, ..)) = seen.first() else { panic!("{seen:?}") };
    let attached = |planes: &[Plane]| Dma::Attached(*id, [70, 6], shown, planes.to_vec());
    assert_eq!(seen, [attached(&planes[..1]), attached(&planes)]);
    // Asked anew for each picture.
    guest.command(&Request::set_scanout_blob(0, 7, [32, 6], FORMAT, 300, 0)).ok();
    assert_eq!(take(&guest, &told), []);
}

#[test]
fn a_dma_buf_is_never_another_one_before_it_is_forgotten() {
    let (mut guest, told) = surveyed();
    for resource in [7, 8, 9] {
        dma_buf(&mut guest, resource, memfd("remembered", resource));
    }
    let mut ids = Vec::new();
    for round in 0..6 {
        guest.command(&set(7 + round % 2)).ok();
        match take(&guest, &told)[..] {
            [Dma::Attached(id, ..)] => ids.push(id),
            ref other => panic!("{other:?}"),
        }
    }
    assert!(ids.chunks(2).all(|pair| pair == &ids[..2]) && ids[0] != ids[1], "{ids:?}");
    // One that is not shown, one that was never taken, one that is shown.
    guest.command(&Request::unref(7)).ok();
    assert_eq!(take(&guest, &told), [Dma::Forgotten(ids[0])]);
    guest.command(&Request::unref(9)).ok();
    assert_eq!(take(&guest, &told), []);
    guest.command(&Request::unref(8)).ok();
    assert_eq!(take(&guest, &told), [Dma::Detached, Dma::Forgotten(ids[1])]);
    // The guest's number is used again, the display's is not.
    dma_buf(&mut guest, 7, memfd("remembered", 7));
    guest.command(&set(7)).ok();
    let again = take(&guest, &told);
    assert!(matches!(again[..], [Dma::Attached(id, ..)] if !ids.contains(&id)), "{again:?} after {ids:?}");
    guest.reset();
    let ended = take(&guest, &told);
    assert!(matches!(ended[..], [Dma::Detached, Dma::Forgotten(_)]), "{ended:?}");
}
