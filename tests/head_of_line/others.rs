//! What a guest does beside the renderer, group by group: each is answered, and has its effect, or the test ends.

use virtio_gpu_uring::ChannelType;
use virtio_gpu_uring::testing::{GuestChannel, Lane, Request, Shown};
use virtio_gpu_uring::{Area, Format};
use vm_memory::GuestAddress;

use super::gate::{CAPSET, EXPORTED};
use super::stage::{
    ARROW, BUFFER, CHANNEL, EXPORTED_BLOB, FORMAT, GUEST_BLOB, HEIGHT, IMAGE, LEN, OFFERED_BLOB, PAGE, PASSING, Stage,
    WHOLE, WIDTH, memfd,
};

/// Where groups map.
const AT: u64 = 0x8_0000;

impl Stage {
    /// All that the renderer has no part in.
    #[track_caller]
    pub(crate) fn others(&mut self) {
        self.cursor();
        self.image();
        self.pictures_in_blobs();
        self.messages();
        self.channels();
        self.offers(CHANNEL);
        self.questions();
        self.resources();
    }

    /// What it has exported, and is done with.
    #[track_caller]
    pub(crate) fn exports(&mut self) {
        self.map(EXPORTED_BLOB, EXPORTED);
        self.show_blob(EXPORTED_BLOB, EXPORTED);
    }

    /// A new shade for a picture.
    fn next_shade(&mut self) -> u8 {
        self.shade = self.shade % 64 + 1;
        self.shade
    }

    #[track_caller]
    fn on_cursor_queue(&mut self, request: &Request) {
        let token = self.guest.submit_on(Lane::Cursor, request);
        self.guest.wait_on(Lane::Cursor, token).ok();
    }

    /// UPDATE_CURSOR of an image and of a buffer, MOVE_CURSOR, and a cursor that is hidden.
    #[track_caller]
    pub(crate) fn cursor(&mut self) {
        for scanout in [0, 1] {
            let shade = self.next_shade();
            self.fill_offered(shade);
            let at = (i32::from(shade), 5);
            let _ = self.screens[scanout as usize].take();
            self.on_cursor_queue(&Request::update_cursor(scanout, ARROW, at, (1, 2)));
            self.on_cursor_queue(&Request::move_cursor(scanout, (-3, 6)));
            self.on_cursor_queue(&Request::update_cursor(scanout, OFFERED_BLOB, at, (3, 4)));
            self.on_cursor_queue(&Request::update_cursor(scanout, 0, at, (0, 0)));
            let shown = self.screens[scanout as usize].take();
            let arrow = Shown::Cursor(at, (1, 2), Format::B8G8R8A8, vec![0; BUFFER as usize]);
            let other = Shown::Cursor(at, (3, 4), Format::B8G8R8A8, vec![shade; BUFFER as usize]);
            let wanted = [arrow, Shown::CursorMoved((-3, 6)), other, Shown::CursorHidden];
            assert!(shown == wanted, "cursors of scanout {scanout}");
        }
    }

    /// SET_SCANOUT, TRANSFER_TO_HOST_2D and RESOURCE_FLUSH.
    #[track_caller]
    pub(crate) fn image(&mut self) {
        let shade = self.next_shade();
        self.guest.ram().write(GuestAddress(self.pixels[0].0), &[shade; LEN]);
        self.ok(&Request::set_scanout(0, IMAGE, WHOLE));
        self.ok(&Request::transfer_2d(IMAGE, WHOLE, 0));
        self.flush(IMAGE, shade);
    }

    /// RESOURCE_FLUSH of what scanout 0 shows, all of this shade.
    #[track_caller]
    fn flush(&mut self, resource: u32, shade: u8) {
        let _ = self.screens[0].take();
        self.ok(&Request::flush(resource, WHOLE));
        let whole = Area { x: 0, y: 0, width: WIDTH, height: HEIGHT };
        let wanted = [Shown::Drawn(whole, vec![shade; LEN]), Shown::Frame(whole)];
        assert!(self.screens[0].take() == wanted, "the picture in resource {resource}");
    }

    /// SET_SCANOUT_BLOB and RESOURCE_FLUSH.
    #[track_caller]
    fn show_blob(&mut self, resource: u32, shade: u8) {
        self.ok(&Request::set_scanout_blob(0, resource, [WIDTH, HEIGHT], FORMAT, WIDTH * 4, 0));
        self.flush(resource, shade);
    }

    /// Pictures in guest memory and in a buffer of the VMM's.
    #[track_caller]
    pub(crate) fn pictures_in_blobs(&mut self) {
        let shade = self.next_shade();
        self.guest.ram().write(GuestAddress(self.pixels[1].0), &[shade; LEN]);
        self.show_blob(GUEST_BLOB, shade);
        let shade = self.next_shade();
        self.fill_offered(shade);
        self.show_blob(OFFERED_BLOB, shade);
    }

    fn fill_offered(&self, shade: u8) {
        assert_eq!(rustix::io::pwrite(&self.offered, &[shade; BUFFER as usize], 0), Ok(BUFFER as usize));
    }

    /// SEND and RECEIVE, each with a descriptor, which the guest maps.
    #[track_caller]
    pub(crate) fn messages(&mut self) {
        let shade = self.next_shade();
        self.fill_offered(shade);
        let poll = self.channel.poll(&mut self.guest);
        self.channel.send(&mut self.guest, b"ping", &[OFFERED_BLOB]);
        let (data, files) = self.peer.receive(16);
        let mut seen = [0];
        rustix::io::pread(&files[0], &mut seen, 0).expect("a buffer");
        assert_eq!((&data[..], files.len(), seen[0]), (&b"ping"[..], 1, shade));
        let file = memfd(PAGE, shade);
        self.peer.send(b"pong", &[std::os::fd::AsFd::as_fd(&file)]);
        let message = self.channel.wait(&mut self.guest, poll);
        assert_eq!((&message.data[..], message.identifiers.len()), (&b"pong"[..], 1));
        let id = message.identifiers[0].0;
        self.ok(&Request::host_blob(CHANNEL, PASSING, id.into(), PAGE));
        self.map(PASSING, shade);
        self.ok(&Request::unref(PASSING));
    }

    /// Channels that open and close.
    #[track_caller]
    pub(crate) fn channels(&mut self) {
        const CONTEXT: u32 = 5;
        let channel = GuestChannel::open(&mut self.guest, CONTEXT, PASSING, ChannelType::PIPEWIRE);
        let peer = self.service.accept();
        channel.send(&mut self.guest, b"short", &[]);
        assert_eq!(peer.receive(16).0, b"short");
        self.ok(&Request::ctx_destroy(CONTEXT));
        assert_eq!(peer.receive(16).0, b"", "the end of the channel");
        for ring in channel.rings {
            self.ok(&Request::unref(ring));
        }
    }

    /// RESOURCE_MAP_BLOB and RESOURCE_UNMAP_BLOB of what is filled with a byte.
    #[track_caller]
    pub(crate) fn map(&mut self, resource: u32, fill: u8) {
        self.guest.map(resource, AT);
        assert_eq!(self.byte(AT), fill, "resource {resource} in the window");
        self.ok(&Request::unmap(resource));
        assert_eq!(self.byte(AT), 0, "resource {resource} in a gap");
    }

    /// A buffer that the VMM offers now, and one that it has offered before.
    #[track_caller]
    pub(crate) fn offers(&mut self, context: u32) {
        let shade = self.next_shade();
        let id = self.offer(&memfd(PAGE, shade));
        self.ok(&Request::host_blob(context, PASSING, id, PAGE));
        self.map(PASSING, shade);
        self.ok(&Request::unref(PASSING));
        let shade = self.next_shade();
        self.fill_offered(shade);
        self.map(OFFERED_BLOB, shade);
    }

    /// GET_DISPLAY_INFO, GET_EDID, GET_CAPSET_INFO and GET_CAPSET of the renderer's and of the device's own.
    #[track_caller]
    pub(crate) fn questions(&mut self) {
        self.ok(&Request::display_info());
        self.ok(&Request::get_edid(0));
        for index in [0, 1] {
            self.ok(&Request::capset_info(index));
        }
        assert_eq!(self.ok(&Request::capset(CAPSET, 1, 5)), b"gated");
        self.ok(&Request::capset(5, 1, 16));
    }

    /// Resources that are made, named, backed, attached to a context, and taken away again.
    #[track_caller]
    pub(crate) fn resources(&mut self) {
        let range = self.guest.page_range(PAGE as usize);
        for request in [
            Request::create_2d(PASSING, FORMAT, 8, 8),
            Request::attach_backing(PASSING, &[range]),
            Request::guest_blob(PASSING + 1, PAGE, &[range]),
            Request::assign_uuid(PASSING + 1),
            Request::ctx_attach(CHANNEL, PASSING + 1),
            Request::ctx_detach(CHANNEL, PASSING + 1),
            Request::detach_backing(PASSING),
            Request::unref(PASSING),
            Request::unref(PASSING + 1),
        ] {
            self.ok(&request);
        }
    }
}
