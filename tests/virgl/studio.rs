//! The device with virgl and Venus that tests share, one at a time: there is one virgl in a process, ever. Each test begins
//! with a reset, and finds nothing of the one before it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use virtio_gpu_uring::protocol::wire::{Box3d, ResourceCreate3d, TransferHost3d, command_type};
use virtio_gpu_uring::testing::{DEADLINE, Guest, GuestOptions, Request, Screen, Viewer};
use virtio_gpu_uring::{Builder, HostWindow, Monitor, RutabagaRenderer, RutabagaSettings};
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

use super::stream::{Region, Stream, bind, format, target};

/// Pages of hosts and guests.
pub(crate) const PAGE: u64 = 4096;
/// Of the window.
pub(crate) const PAGES: u64 = 256;
/// The capability sets that matter here.
pub(crate) const VIRGL: u32 = 2;
pub(crate) const VENUS: u32 = 4;
/// Of the usual picture: no power of two, so that a row is no round number of bytes.
pub(crate) const WIDTH: u32 = 37;
pub(crate) const HEIGHT: u32 = 23;
pub(crate) const WHOLE: [u32; 4] = [0, 0, WIDTH, HEIGHT];
pub(crate) const LEN: usize = (WIDTH * HEIGHT * 4) as usize;
/// The context that draws, its texture, the surface on it, its buffer of vertices, and the first object of its pipeline.
pub(crate) const CONTEXT: u32 = 1;
pub(crate) const TEXTURE: u32 = 10;
pub(crate) const VERTICES: u32 = 11;
pub(crate) const SURFACE: u32 = 50;
pub(crate) const PIPELINE: u32 = 60;

/// A piece of guest memory: where it is, and how long.
pub(crate) type Piece = (u64, u32);

/// A guest on a device with virgl.
pub(crate) struct Studio {
    guest: Guest,
    pub(crate) viewer: Viewer,
    pub(crate) window: HostWindow,
    pieces: Vec<Piece>,
}

impl Deref for Studio {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for Studio {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// A window whose gaps all look different, when they are painted.
pub(crate) fn window() -> HostWindow {
    let len = (PAGES * PAGE) as usize;
    HostWindow::with_scratch(len, len).expect("a window")
}

pub(crate) fn settings() -> RutabagaSettings {
    RutabagaSettings::new().virgl().venus()
}

impl Studio {
    /// The shared one, after a reset.
    pub(crate) fn enter() -> MutexGuard<'static, Self> {
        static SHARED: OnceLock<Mutex<Studio>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Mutex::new(Self::alone()));
        // A test that failed leaves what a reset puts right.
        let mut studio = shared.lock().unwrap_or_else(PoisonError::into_inner);
        studio.start_over();
        studio
    }

    /// The only one of this process.
    pub(crate) fn alone() -> Self {
        let settings = settings();
        Self::open(Builder::new().renderer(|| RutabagaRenderer::new(settings)))
    }

    pub(crate) fn open(builder: Builder) -> Self {
        let (screen, viewer) = Screen::new();
        let window = window();
        let builder = builder.window(window.clone()).display(0, Monitor::new(WIDTH, HEIGHT), screen);
        let guest = Guest::with_options(builder, GuestOptions { ram: 64 << 20, ..GuestOptions::default() });
        Self { guest, viewer, window, pieces: Vec::new() }
    }

    /// Resets the device and starts the driver anew.
    pub(crate) fn start_over(&mut self) {
        self.guest.reset();
        for (start, len) in std::mem::take(&mut self.pieces) {
            self.guest.ram().free(GuestAddress(start), len as usize);
        }
        self.guest.activate();
        let _ = self.viewer.take();
    }

    /// Waits until something that the device does behind its answers has come about.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut has_come: impl FnMut() -> bool) {
        let started = Instant::now();
        while !has_come() {
            assert!(started.elapsed() < DEADLINE, "waited for: {what}");
            self.guest.settle();
        }
    }

    /// Sends a request that must succeed.
    #[track_caller]
    pub(crate) fn ok(&mut self, request: &Request) {
        self.guest.command(request).ok();
    }

    #[track_caller]
    pub(crate) fn draw(&mut self, stream: &Stream) {
        self.ok(&Request::submit(CONTEXT, &stream.bytes()));
    }

    /// Guest memory until the next reset, page aligned.
    pub(crate) fn memory(&mut self, len: usize) -> Piece {
        let piece = self.guest.page_range(len);
        self.pieces.push(piece);
        piece
    }

    pub(crate) fn fill(&self, pieces: &[Piece], mut bytes: &[u8]) {
        for (address, len) in pieces {
            let (now, later) = bytes.split_at(bytes.len().min(*len as usize));
            self.guest.ram().write(GuestAddress(*address), now);
            bytes = later;
        }
    }

    pub(crate) fn contents(&self, pieces: &[Piece]) -> Vec<u8> {
        let piece = |(address, len): &Piece| self.guest.ram().read(GuestAddress(*address), *len as usize);
        pieces.iter().flat_map(piece).collect()
    }

    /// A context of virgl with a texture, which is drawn on, and guest memory behind that.
    pub(crate) fn easel(&mut self) -> [Piece; 4] {
        self.easel_of(format::B8G8R8A8)
    }

    pub(crate) fn easel_of(&mut self, format: u32) -> [Piece; 4] {
        self.ok(&Request::ctx_create(CONTEXT, VIRGL));
        self.texture(CONTEXT, TEXTURE, format, [WIDTH, HEIGHT]);
        let pieces = self.back(TEXTURE);
        self.draw(&Stream::new().surface(SURFACE, TEXTURE, format).framebuffer(SURFACE));
        pieces
    }

    /// A texture that a context can draw on.
    pub(crate) fn texture(&mut self, context: u32, resource: u32, format: u32, size: [u32; 2]) {
        let usage = bind::RENDER_TARGET | bind::SAMPLER_VIEW;
        self.ok(&create_3d(resource, target::TEXTURE_2D, format, usage, size));
        self.ok(&Request::ctx_attach(context, resource));
    }

    /// A buffer for vertices in the context that draws.
    pub(crate) fn buffer(&mut self, resource: u32, len: u32) {
        self.ok(&create_3d(resource, target::BUFFER, format::R8, bind::VERTEX_BUFFER, [len, 1]));
        self.ok(&Request::ctx_attach(CONTEXT, resource));
    }

    /// Puts guest memory behind a resource of the usual size: four pieces, none of them where it is expected, of which one
    /// crosses a page and one is no whole number of pixels.
    pub(crate) fn back(&mut self, resource: u32) -> [Piece; 4] {
        let (start, _) = self.memory(4 * PAGE as usize);
        let pieces = [(start + 2 * PAGE, 101), (start + PAGE - 500, 1100), (start + 3 * PAGE, 1000), (start, 0)];
        let rest = LEN as u32 - pieces.iter().map(|piece| piece.1).sum::<u32>();
        let pieces = [pieces[0], pieces[1], pieces[2], (start, rest)];
        assert!(rest < PAGE as u32 - 500, "the last piece and the second overlap");
        self.ok(&Request::attach_backing(resource, &pieces));
        pieces
    }

    /// All pixels of a texture of the usual size, by the guest memory behind it.
    #[track_caller]
    pub(crate) fn pixels(&mut self, resource: u32, pieces: &[Piece]) -> Vec<u8> {
        self.fill(pieces, &[0xee; LEN]);
        self.ok(&read_all(resource));
        self.contents(pieces)
    }

    /// Asserts that the context that draws still does: an honest guest's life from its beginning to its end.
    #[track_caller]
    pub(crate) fn assert_draws(&mut self, context: u32) {
        let (texture, shade) = (0x7000 + context, context as u8);
        self.ok(&Request::ctx_create(context, VIRGL));
        self.texture(context, texture, format::B8G8R8A8, [WIDTH, HEIGHT]);
        let pieces = self.back(texture);
        let colour = [0x10, shade, 0x30, 0xff];
        let stream = Stream::new().surface(1, texture, format::B8G8R8A8).framebuffer(1).clear(colour_of(colour));
        self.ok(&Request::submit(context, &stream.bytes()).fenced(u64::from(context)));
        assert_eq!(self.pixels(texture, &pieces), colour.repeat(LEN / 4), "context {context} does not draw any more");
        self.ok(&Request::ctx_destroy(context));
        self.ok(&Request::unref(texture));
    }
}

/// What to clear with for this pixel of B8G8R8A8.
pub(crate) fn colour_of([blue, green, red, alpha]: [u8; 4]) -> [f32; 4] {
    [red, green, blue, alpha].map(|channel| f32::from(channel) / 255.0)
}

/// RESOURCE_CREATE_3D of one layer and level.
pub(crate) fn create_3d(resource: u32, target: u32, format: u32, bind: u32, [width, height]: [u32; 2]) -> Request {
    with_create(&ResourceCreate3d {
        resource_id: resource.into(),
        target: target.into(),
        format: format.into(),
        bind: bind.into(),
        width: width.into(),
        height: height.into(),
        depth: 1.into(),
        array_size: 1.into(),
        last_level: 0.into(),
        nr_samples: 0.into(),
        flags: 0.into(),
        padding: 0.into(),
    })
}

/// RESOURCE_CREATE_3D with every value.
pub(crate) fn with_create(body: &ResourceCreate3d) -> Request {
    Request::new(command_type::RESOURCE_CREATE_3D, body.as_bytes())
}

/// A transfer in the context that draws; `offset` and `stride` are in bytes of guest memory.
pub(crate) fn transfer(kind: u32, resource: u32, region: Region, offset: u64, stride: u32) -> Request {
    let ([x, y, z], [w, h, d]) = (region.origin.map(Into::into), region.size.map(Into::into));
    let body = TransferHost3d {
        region: Box3d { x, y, z, w, h, d },
        offset: offset.into(),
        resource_id: resource.into(),
        level: 0.into(),
        stride: stride.into(),
        layer_stride: 0.into(),
    };
    Request::new(kind, body.as_bytes()).context(CONTEXT)
}

/// Reads all of a texture of the usual size, in no context: of whichever context it is.
pub(crate) fn read_all(resource: u32) -> Request {
    transfer(command_type::TRANSFER_FROM_HOST_3D, resource, Region::flat(WHOLE), 0, WIDTH * 4).context(0)
}
