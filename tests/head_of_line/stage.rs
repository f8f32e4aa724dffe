//! A guest that uses all of the device at once: a rendered context, pictures on two screens, a cursor, a channel to a host
//! service, and blobs of every kind; and the call of the renderer that is held while the rest of it goes on.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_gpu_uring::testing::{
    Answer, DEADLINE, Guest, GuestChannel, HostPeer, HostService, Request, Screen, Token, Viewer,
};
use virtio_gpu_uring::{Builder, ChannelType, HostBuffer, HostWindow, Limits, Monitor};

use super::gate::{CAPSET, Call, Gate, OWN, gated};

/// The host's and the guest's page.
pub(crate) const PAGE: u64 = 4096;
/// The wire's number of B8G8R8X8.
pub(crate) const FORMAT: u32 = 2;
/// Of the pictures.
pub(crate) const WIDTH: u32 = 16;
pub(crate) const HEIGHT: u32 = 8;
pub(crate) const WHOLE: [u32; 4] = [0, 0, WIDTH, HEIGHT];
pub(crate) const LEN: usize = (WIDTH * HEIGHT * 4) as usize;
/// Length of the host's buffers: room for a cursor.
pub(crate) const BUFFER: u64 = 4 * PAGE;

/// The rendered context whose calls are held.
pub(crate) const HELD: u32 = 1;
/// The context with the channel.
pub(crate) const CHANNEL: u32 = 2;
/// Another rendered one.
pub(crate) const SECOND: u32 = 3;

/// A 2D image with backing, which is attached to the rendered context as Linux does with every object of a client's.
pub(crate) const IMAGE: u32 = 10;
/// A 2D image of the size of a cursor.
pub(crate) const ARROW: u32 = 11;
/// A picture in guest memory.
pub(crate) const GUEST_BLOB: u32 = 12;
/// A buffer of the VMM's.
pub(crate) const OFFERED_BLOB: u32 = 13;
/// A buffer that the renderer has exported.
pub(crate) const EXPORTED_BLOB: u32 = 14;
/// A 3D image with backing, on scanout 1, which is attached to the rendered context.
pub(crate) const RENDERED_IMAGE: u32 = 15;
/// Another one, without backing.
pub(crate) const BARE_IMAGE: u32 = 16;
/// A blob whose memory is the renderer's own, which is not mapped.
pub(crate) const OWN_BLOB: u32 = 17;
/// Where it may be.
pub(crate) const OWN_AT: u64 = 0xc_0000;
/// What groups make and take away again has ids from here on.
pub(crate) const PASSING: u32 = 30;
/// What the held call makes.
pub(crate) const MADE: u32 = 60;

pub(crate) struct Stage {
    // Dropped first: whoever is held goes on.
    pub(crate) gate: Gate,
    pub(crate) guest: Guest,
    pub(crate) window: HostWindow,
    pub(crate) screens: [Viewer; 2],
    pub(crate) service: HostService,
    pub(crate) channel: GuestChannel,
    pub(crate) peer: HostPeer,
    /// What lies behind the buffer of the VMM's.
    pub(crate) offered: OwnedFd,
    /// Guest memory of the picture in an image and of the one in a blob.
    pub(crate) pixels: [(u64, u32); 2],
    /// No two pictures are alike.
    pub(crate) shade: u8,
}

/// A command whose call of the renderer is held.
pub(crate) struct Held(pub(crate) Token);

impl Stage {
    /// Nothing here is decided by a deadline.
    pub(crate) fn new() -> Self {
        Self::with(Limits { deadline: 3 * DEADLINE, ..Limits::default() })
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let (factory, gate) = gated();
        let (first, first_viewer) = Screen::new();
        let (second, second_viewer) = Screen::new();
        let window = HostWindow::new(1 << 20).expect("a window");
        let service = HostService::listen();
        let builder = Builder::new().limits(limits).renderer(factory).window(window.clone());
        let builder = builder.display(0, Monitor::new(WIDTH, HEIGHT), first);
        let builder = builder.display(1, Monitor::new(WIDTH, HEIGHT), second);
        let mut guest = Guest::start(builder.host_socket(ChannelType::PIPEWIRE, service.path()));
        let (channel, peer, offered, pixels) = furnish(&mut guest, &service);
        let screens = [first_viewer, second_viewer];
        let mut stage = Self { gate, guest, window, screens, service, channel, peer, offered, pixels, shade: 0 };
        stage.render();
        stage
    }

    /// Everything of the renderer's.
    pub(crate) fn render(&mut self) {
        let range = self.guest.page_range(PAGE as usize);
        for request in [
            Request::ctx_create(HELD, CAPSET),
            Request::ctx_create(SECOND, CAPSET),
            Request::host_blob(HELD, EXPORTED_BLOB, 1, BUFFER),
            Request::host_blob(HELD, OWN_BLOB, OWN, BUFFER),
            Request::create_3d(RENDERED_IMAGE, 2, FORMAT, WIDTH, HEIGHT),
            Request::create_3d(BARE_IMAGE, 2, FORMAT, WIDTH, HEIGHT),
            Request::attach_backing(RENDERED_IMAGE, &[range]),
            Request::ctx_attach(HELD, RENDERED_IMAGE),
            Request::ctx_attach(HELD, IMAGE),
            Request::set_scanout(1, RENDERED_IMAGE, WHOLE),
        ] {
            self.ok(&request);
        }
    }

    /// Everything else anew, for the driver after a reset.
    pub(crate) fn furnish(&mut self) {
        let (channel, peer, offered, pixels) = furnish(&mut self.guest, &self.service);
        (self.channel, self.peer, self.offered, self.pixels) = (channel, peer, offered, pixels);
    }

    #[track_caller]
    pub(crate) fn ok(&mut self, request: &Request) -> Vec<u8> {
        self.guest.command(request).ok()
    }

    /// Sends a command, and waits until its call of the renderer is held.
    #[track_caller]
    pub(crate) fn hold_with(&mut self, call: Call, request: &Request) -> Held {
        self.gate.shut(call);
        let token = self.guest.submit(request);
        assert_eq!(self.gate.wait(), call);
        Held(token)
    }

    /// The same with a command of that call; it is fenced on a timeline of its context where it has one already.
    #[track_caller]
    pub(crate) fn hold(&mut self, call: Call) -> Held {
        let request = request(call, self.guest.page_range(PAGE as usize));
        match call {
            Call::CreateContext => self.hold_with(call, &request),
            _ => self.hold_with(call, &request.context(HELD).on_ring(0).fenced(1)),
        }
    }

    /// Asserts that a command's call is still held.
    #[track_caller]
    pub(crate) fn assert_held(&mut self, held: &Held) {
        self.guest.settle();
        assert!(!self.guest.has_answer(&held.0), "answered while the renderer is at it");
    }

    /// Asserts that a command's call is still held, opens the gate, and waits for the answer.
    #[track_caller]
    pub(crate) fn release(&mut self, held: Held) -> Answer {
        self.assert_held(&held);
        self.gate.open();
        let answer = self.guest.wait(held.0);
        assert!((0x1100..0x1200).contains(&answer.kind()), "the device answered {:#x}", answer.kind());
        answer
    }

    /// Hands the device a duplicate of a file.
    pub(crate) fn offer(&self, file: &OwnedFd) -> u64 {
        offer(&self.guest, file)
    }

    /// The window's byte at `offset`.
    #[track_caller]
    pub(crate) fn byte(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.window.read(offset, &mut byte).expect("in the window");
        byte[0]
    }
}

impl Drop for Stage {
    /// Whatever a test was about: no request may be lost.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.guest.assert_all_answered();
        }
    }
}

type Furniture = (GuestChannel, HostPeer, OwnedFd, [(u64, u32); 2]);

fn furnish(guest: &mut Guest, service: &HostService) -> Furniture {
    let channel = GuestChannel::open(guest, CHANNEL, 20, ChannelType::PIPEWIRE);
    let peer = service.accept();
    let offered = memfd(BUFFER, 1);
    let id = offer(guest, &offered);
    let pixels = [guest.page_range(PAGE as usize), guest.page_range(PAGE as usize)];
    for request in [
        Request::create_2d(IMAGE, FORMAT, WIDTH, HEIGHT),
        Request::attach_backing(IMAGE, &[(pixels[0].0, LEN as u32)]),
        Request::create_2d(ARROW, FORMAT, 64, 64),
        Request::guest_blob(GUEST_BLOB, PAGE, &[pixels[1]]),
        Request::host_blob(CHANNEL, OFFERED_BLOB, id, BUFFER),
        Request::ctx_attach(CHANNEL, OFFERED_BLOB),
    ] {
        guest.command(&request).ok();
    }
    (channel, peer, offered, pixels)
}

fn offer(guest: &Guest, file: &OwnedFd) -> u64 {
    let buffer = HostBuffer::from_fd(file.try_clone().expect("a duplicate")).expect("a buffer");
    guest.device().offer(buffer).wait().expect("a device").expect("an offer").0
}

/// The command that ends in a call.
fn request(call: Call, range: (u64, u32)) -> Request {
    match call {
        Call::Submit => Request::submit(HELD, b"held"),
        Call::Transfer => Request::transfer_from_host_3d(HELD, RENDERED_IMAGE, WHOLE, 0),
        Call::CreateBlob => Request::host_blob(HELD, MADE, 2, BUFFER),
        Call::ReadPixels => Request::flush(RENDERED_IMAGE, WHOLE),
        Call::CreateContext => Request::ctx_create(MADE, CAPSET),
        Call::CreateResource => Request::create_3d(MADE, 2, FORMAT, WIDTH, HEIGHT),
        Call::MapBlob => Request::map(OWN_BLOB, OWN_AT),
        Call::ExportPicture => Request::set_scanout(1, BARE_IMAGE, WHOLE),
        Call::AttachBacking => Request::attach_backing(BARE_IMAGE, &[range]),
    }
}

/// A memfd that is filled with a byte.
pub(crate) fn memfd(len: u64, fill: u8) -> OwnedFd {
    let file = memfd_create("head-of-line", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    assert_eq!(rustix::io::pwrite(&file, &vec![fill; len as usize], 0), Ok(len as usize));
    file
}
