//! What the tests of displays, blobs and contexts have in common: guests with screens, pictures in guest memory, and a look
//! at what a display was shown.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::protocol::wire::response_type::OK_NODATA;
use virtio_gpu_uring::testing::{Answer, Guest, Lane, Layout, Request, Screen, Shown, Viewer};
use virtio_gpu_uring::{Area, Builder, HostBuffer, HostWindow, Monitor};
use vm_memory::GuestAddress;

/// The host's and the guest's page.
pub(crate) const PAGE: u64 = 4096;
/// Length of the window.
pub(crate) const WINDOW: u64 = 1 << 20;
/// The wire's number of the format that Linux draws consoles in.
pub(crate) const B8G8R8X8: u32 = 2;
/// And cursors.
pub(crate) const B8G8R8A8: u32 = 1;

/// A guest with a screen on each of `count` scanouts.
pub(crate) fn with_screens(count: u32) -> (Guest, Vec<Viewer>) {
    let (builder, viewers) = screens(Builder::new(), count);
    (Guest::start(builder), viewers)
}

/// Connects a screen to each of `count` scanouts.
pub(crate) fn screens(mut builder: Builder, count: u32) -> (Builder, Vec<Viewer>) {
    let mut viewers = Vec::new();
    for scanout in 0..count {
        let (screen, viewer) = Screen::new();
        builder = builder.display(scanout, Monitor::new(1024, 768), screen);
        viewers.push(viewer);
    }
    (builder, viewers)
}

/// A guest with one screen.
pub(crate) fn with_screen() -> (Guest, Viewer) {
    let (guest, mut viewers) = with_screens(1);
    (guest, viewers.remove(0))
}

/// A guest with a window, and the window.
pub(crate) fn with_window() -> (Guest, HostWindow) {
    let window = HostWindow::new(WINDOW as usize).expect("a window");
    (Guest::start(Builder::new().window(window.clone())), window)
}

pub(crate) fn area(x: u32, y: u32, width: u32, height: u32) -> Area {
    Area { x, y, width, height }
}

/// Bytes of which no two neighbours, rows or pictures are alike.
pub(crate) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let byte = |at: usize| ((at as u32 ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b1) >> 21) as u8;
    (0..len).map(byte).collect()
}

/// A rectangle of a picture of four bytes a pixel, its rows one after the other.
pub(crate) fn crop(pixels: &[u8], width: u32, [x, y, w, h]: [u32; 4]) -> Vec<u8> {
    let row = |row: u32| &pixels[((row * width + x) * 4) as usize..][..(w * 4) as usize];
    (y..y + h).flat_map(row).copied().collect()
}

/// Lays the rows of a rectangle into a picture.
pub(crate) fn paste(pixels: &mut [u8], width: u32, [x, y, w, h]: [u32; 4], rows: &[u8]) {
    for (row, bytes) in (y..y + h).zip(rows.chunks((w * 4) as usize)) {
        pixels[((row * width + x) * 4) as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// Succeeds with a bare header.
#[track_caller]
pub(crate) fn done(guest: &mut Guest, request: &Request) {
    let answer = guest.command(request);
    assert_eq!((answer.kind(), answer.written), (OK_NODATA, 24), "the device answered {:#x}", answer.kind());
}

/// Is refused with this code and a bare header.
#[track_caller]
pub(crate) fn refused(guest: &mut Guest, request: &Request, code: u32) {
    let answer = guest.command(request);
    answer.expect_error(code);
    assert_eq!(answer.written, 24, "an error is a header");
}

/// Sends a command to the cursor queue.
#[track_caller]
pub(crate) fn cursor(guest: &mut Guest, request: &Request) -> Answer {
    let token = guest.submit_on(Lane::Cursor, request);
    guest.wait_on(Lane::Cursor, token)
}

/// Sends bytes as they are.
#[track_caller]
pub(crate) fn raw(guest: &mut Guest, lane: Lane, bytes: &[u8], room: usize) -> Answer {
    let token = guest.queue(lane).add(bytes, room, &Layout::default()).expect("room in the queue");
    guest.publish(lane);
    guest.wait_on(lane, token)
}

/// The one frame that was shown since the last look: its area, and its pixels from however many parts.
#[track_caller]
pub(crate) fn frame(viewer: &Viewer) -> (Area, Vec<u8>) {
    let mut shown = viewer.take();
    let Some(Shown::Frame(damage)) = shown.pop() else { panic!("no frame at the end of {}", names(&shown)) };
    let mut pixels = Vec::new();
    for part in shown {
        let Shown::Drawn(part, rows) = part else { panic!("{part:?} within a frame") };
        assert_eq!((part.x, part.width), (damage.x, damage.width), "a part of {damage:?}");
        assert_eq!(part.y as usize, damage.y as usize + pixels.len() / (damage.width * 4) as usize, "the next part");
        pixels.extend(rows);
    }
    assert_eq!(pixels.len(), (damage.width * damage.height * 4) as usize, "pixels of {damage:?}");
    (damage, pixels)
}

fn names(shown: &[Shown]) -> String {
    let name = |shown: &Shown| format!("{shown:?}").chars().take(60).collect::<String>();
    shown.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Nothing was shown since the last look.
#[track_caller]
pub(crate) fn assert_untouched(viewer: &Viewer) {
    let shown = viewer.take();
    assert!(shown.is_empty(), "a display was told {}", names(&shown));
}

/// A 2D resource with backing in one piece.
pub(crate) struct Drawing {
    pub(crate) id: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Drawing {
    /// Made, and filled with a pattern by a transfer.
    #[track_caller]
    pub(crate) fn new(guest: &mut Guest, id: u32, width: u32, height: u32) -> Self {
        let drawing = Self::untransferred(guest, id, B8G8R8X8, width, height);
        drawing.transfer(guest, drawing.whole());
        drawing
    }

    /// Made, with a pattern in its backing that no transfer has taken over.
    #[track_caller]
    pub(crate) fn untransferred(guest: &mut Guest, id: u32, format: u32, width: u32, height: u32) -> Self {
        let len = (width * height * 4) as usize;
        let address = guest.ram().alloc(len, 4096).0;
        let bytes = pattern(len, id);
        guest.ram().write(GuestAddress(address), &bytes);
        done(guest, &Request::create_2d(id, format, width, height));
        done(guest, &Request::attach_backing(id, &[(address, len as u32)]));
        Self { id, width, height, address, bytes }
    }

    pub(crate) fn whole(&self) -> [u32; 4] {
        [0, 0, self.width, self.height]
    }

    /// Where Linux says that a box begins.
    pub(crate) fn offset(&self, [x, y, ..]: [u32; 4]) -> u64 {
        u64::from(y) * u64::from(self.width) * 4 + u64::from(x) * 4
    }

    /// Writes another pattern into the backing.
    pub(crate) fn redraw(&mut self, guest: &Guest, seed: u32) {
        self.bytes = pattern(self.bytes.len(), seed);
        guest.ram().write(GuestAddress(self.address), &self.bytes);
    }

    /// Transfers a box as Linux does.
    #[track_caller]
    pub(crate) fn transfer(&self, guest: &mut Guest, rect: [u32; 4]) {
        done(guest, &Request::transfer_2d(self.id, rect, self.offset(rect)));
    }

    /// Shows all of it.
    #[track_caller]
    pub(crate) fn show(&self, guest: &mut Guest, scanout: u32) {
        done(guest, &Request::set_scanout(scanout, self.id, self.whole()));
    }

    #[track_caller]
    pub(crate) fn flush(&self, guest: &mut Guest) {
        done(guest, &Request::flush(self.id, self.whole()));
    }

    /// What the resource holds: shown anew on a scanout whose viewer this is.
    #[track_caller]
    pub(crate) fn look(&self, guest: &mut Guest, scanout: u32, viewer: &Viewer) -> Vec<u8> {
        self.show(guest, scanout);
        let _ = viewer.take();
        self.flush(guest);
        frame(viewer).1
    }
}

/// A memfd that holds these bytes, at least a page long.
pub(crate) fn memfd(name: &str, bytes: &[u8]) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, (bytes.len() as u64).max(PAGE)).expect("a size");
    assert_eq!(rustix::io::pwrite(&file, bytes, 0).expect("written"), bytes.len());
    file
}

/// Offers a file to the guest: the id to create a blob of.
pub(crate) fn offer(guest: &Guest, file: OwnedFd) -> u64 {
    offer_buffer(guest, HostBuffer::from_fd(file).expect("a buffer"))
}

pub(crate) fn offer_buffer(guest: &Guest, buffer: HostBuffer) -> u64 {
    guest.device().offer(buffer).wait().expect("a device").expect("room for a descriptor").0
}

/// The little-endian words of an answer.
pub(crate) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}
