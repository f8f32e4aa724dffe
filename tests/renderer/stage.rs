//! A guest on a device with the renderer that plays any part, and with everything that has to go on without it.

use std::time::Duration;

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostPeer, HostService, Lane, Request, Screen, Token, Viewer};
use virtio_gpu_uring::{Builder, HostBuffer, HostWindow, Limits, Monitor};

use super::actor::{Director, KEPT, actor, until};
use super::memfd;
use super::rendered::{FORMAT, HEIGHT, WHOLE, WIDTH};

pub(super) const PAGE: u64 = 4096;

/// Where the blob of the others is mapped.
const OTHERS: u64 = 0x8_0000;

/// Of a device whose renderer has all the time that there is.
pub(super) fn patient() -> Limits {
    Limits { renderer_deadline: Duration::from_secs(3600), ..Limits::default() }
}

/// The same, but resets do not wait for it for long.
pub(super) fn brief() -> Limits {
    Limits { deadline: Duration::from_millis(100), ..patient() }
}

/// Of a device that gives its renderer up soon: no call is as slow as that by chance.
pub(super) fn hasty() -> Limits {
    Limits { renderer_deadline: Duration::from_millis(250), ..brief() }
}

pub(super) struct Stage {
    pub(super) guest: Guest,
    pub(super) director: Director,
    pub(super) window: HostWindow,
    pub(super) viewer: Viewer,
    service: HostService,
    channel: Option<(GuestChannel, HostPeer)>,
}

impl Stage {
    pub(super) fn open(name: &'static str, limits: Limits) -> Self {
        Self::on(name, limits, HostWindow::new(1 << 20).expect("window"))
    }

    pub(super) fn on(name: &'static str, limits: Limits, window: HostWindow) -> Self {
        let (factory, director) = actor(name);
        let ((screen, viewer), service) = (Screen::new(), HostService::listen());
        let builder = Builder::new().limits(limits).renderer(factory).window(window.clone());
        let builder = builder.display(0, Monitor::new(WIDTH, HEIGHT), screen);
        let guest = Guest::start(builder.host_socket(ChannelType::PIPEWIRE, service.path()));
        Self { guest, director, window, viewer, service, channel: None }
    }

    /// With context 1 of the renderer's.
    pub(super) fn with_context(name: &'static str, limits: Limits) -> Self {
        Self::open(name, limits).in_context()
    }

    pub(super) fn in_context(mut self) -> Self {
        self.guest.command(&Request::ctx_create(1, 1)).ok();
        self.director.expect(&["context 1"]);
        self
    }

    /// A submission whose fence the renderer keeps.
    pub(super) fn kept_fence(&mut self, fence: u64) -> Token {
        let token = self.guest.submit(&Request::submit(1, b"fenced").fenced(fence).on_ring(KEPT));
        self.director.reach("fence 1");
        token
    }

    /// Resets the device and starts the driver anew.
    pub(super) fn restart(&mut self) {
        self.guest.reset();
        self.channel = None;
        self.guest.activate();
    }

    pub(super) fn lost(&self) -> u64 {
        self.guest.device().counters().renderers_lost
    }

    /// Waits until the device has taken so many requests from its queues since it was made.
    #[track_caller]
    pub(super) fn until_taken(&self, commands: u64) {
        until("the device has taken them", || self.guest.device().counters().commands >= commands);
    }

    /// Waits until the renderer is counted as lost.
    #[track_caller]
    pub(super) fn until_lost(&self) {
        until("the renderer is given up", || self.lost() > 0);
        assert_eq!(self.lost(), 1);
    }

    #[track_caller]
    pub(super) fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.window.read(offset, &mut bytes).expect("in the window");
        bytes
    }

    /// 2D, cursors, channels and mappings of other blobs work as they should.
    #[track_caller]
    pub(super) fn assert_others_live(&mut self) {
        let guest = &mut self.guest;
        let _ = self.viewer.take();
        guest.command(&Request::create_2d(900, FORMAT, WIDTH, HEIGHT)).ok();
        guest.command(&Request::set_scanout(0, 900, WHOLE)).ok();
        guest.command(&Request::flush(900, WHOLE)).ok();
        assert_eq!(self.viewer.take().len(), 3, "attached, drawn, a frame");
        guest.command(&Request::unref(900)).ok();
        let cursor = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (3, 4)));
        guest.wait_on(Lane::Cursor, cursor).ok();
        if self.channel.is_none() {
            let channel = GuestChannel::open(guest, 50, 901, ChannelType::PIPEWIRE);
            self.channel = Some((channel, self.service.accept()));
        }
        let Some((channel, peer)) = &mut self.channel else { unreachable!("opened above") };
        channel.send(guest, b"ping", &[]);
        assert_eq!(peer.receive(4).0, b"ping");
        let poll = channel.poll(guest);
        peer.send(b"pong", &[]);
        assert_eq!(channel.wait(guest, poll).data, b"pong");
        let file = memfd("stage-others", PAGE);
        rustix::io::pwrite(&file, b"mapped", 0).expect("written");
        let buffer = HostBuffer::from_fd(file).expect("a buffer");
        let id = guest.device().offer(buffer).wait().expect("a device").expect("room").0;
        guest.command(&Request::host_blob(50, 903, id, PAGE)).ok();
        guest.map(903, OTHERS);
        assert_eq!(self.bytes(OTHERS, 6), b"mapped");
        self.guest.command(&Request::unmap(903)).ok();
        self.guest.command(&Request::unref(903)).ok();
    }
}
