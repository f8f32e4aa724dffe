//! Pictures that a renderer has drawn and exports as dma-bufs: a display that takes them gets the buffer itself with its layout,
//! all others get what the renderer reads, and nothing of it is left when the resource goes.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};

use virtio_gpu_uring::testing::{Request, Screen, Shown};
use virtio_gpu_uring::{
    Area, BlobRequest, Builder, Capset, Cursor, Display, Fence, Format, Monitor, Picture, Pixels, Plane, RenderedBlob,
    RenderedPicture, Renderer, RendererError, Resource3d, Work,
};

use crate::desk::{Desk, assert_same, dma_bufs, scenario};
use crate::exporters::{Exporter, Mapping};

const WIDTH: u32 = 64;
const HEIGHT: u32 = 16;
const WHOLE: [u32; 4] = [0, 0, WIDTH, HEIGHT];
const LEN: u64 = 1 << 16;
const PLANE: Plane = Plane { offset: 4096, stride: 1024 };
/// Any layout but the plain one.
const MODIFIER: u64 = 0x0100_0000_0000_0001;

/// A renderer whose every picture lies in the same dma-buf.
struct Painter(OwnedFd);

impl Renderer for Painter {
    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: 1, max_version: 1, data: vec![1] }]
    }

    fn create_context(&mut self, _context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        Ok(())
    }

    fn destroy_context(&mut self, _context: u32) {}

    fn attach_resource(&mut self, _context: u32, _resource: u32) {}

    fn detach_resource(&mut self, _context: u32, _resource: u32) {}

    fn submit(&mut self, _context: u32, _stream: &[u8]) -> Result<(), RendererError> {
        Ok(())
    }

    fn create_blob(&mut self, _request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        Err(RendererError::Invalid("not here".into()))
    }

    fn create_resource(&mut self, _request: &Resource3d) -> Result<(), RendererError> {
        Ok(())
    }

    fn read_pixels(&mut self, _resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        Ok(vec![0x5a; area.width as usize * area.height as usize * 4])
    }

    fn export_picture(&mut self, _resource: u32) -> Option<RenderedPicture> {
        let file = self.0.try_clone().expect("a duplicate");
        Some(RenderedPicture::new(file, vec![PLANE], Some(MODIFIER)))
    }

    fn destroy_resource(&mut self, _resource: u32) {}

    fn fence(&mut self, _context: u32, _ring: Option<u8>, fence: Fence) {
        fence.signal();
    }
}

/// A picture as a display was told of it.
#[derive(Debug)]
struct Given {
    file: OwnedFd,
    id: u64,
    size: (u32, u32),
    planes: Vec<Plane>,
    modifier: Option<u64>,
    shown: Area,
}

/// A display that takes dma-bufs, and tells of them.
struct Taker(Sender<Given>);

impl Display for Taker {
    fn takes_buffer(&mut self, _picture: &Picture<'_>) -> bool {
        true
    }

    fn attach(&mut self, picture: &Picture<'_>) {
        let buffer = picture.buffer.expect("a picture in a dma-buf");
        let given = Given {
            file: buffer.file.try_clone_to_owned().expect("a duplicate"),
            id: buffer.id,
            size: (buffer.width, buffer.height),
            planes: buffer.planes.to_vec(),
            modifier: buffer.modifier,
            shown: buffer.shown,
        };
        let _ = self.0.send(given);
    }

    fn draw(&mut self, area: Area, _pixels: Pixels<'_>) {
        panic!("bytes of {area:?} for a display that has the buffer");
    }

    fn frame(&mut self, _damage: Area) -> Work<()> {
        Work::Done(())
    }

    fn cursor(&mut self, _cursor: Option<&Cursor<'_>>, _position: (i32, i32)) {}

    fn move_cursor(&mut self, _position: (i32, i32)) {}

    fn detach(&mut self) {}
}

#[test]
fn a_rendered_picture_is_never_handed_out_as_another_nor_kept_longer_than_its_resource() {
    scenario("rendered picture", || {
        let buffer = Exporter::Udmabuf.writable(LEN);
        let file = buffer.file.try_clone().expect("a duplicate");
        let ((tell, given), (screen, viewer)) = (channel(), Screen::new());
        let monitor = || Monitor::new(WIDTH, HEIGHT);
        let builder = Builder::new().renderer(move || Ok(Painter(file)));
        let mut desk = Desk::with(builder.display(0, monitor(), screen).display(1, monitor(), Taker(tell)));
        let (quiet, mut ids) = (dma_bufs().0, Vec::new());
        for round in 1..4 {
            desk.ok(&Request::create_3d(70, 2, Format::B8G8R8X8.wire(), WIDTH, HEIGHT));
            desk.ok(&Request::set_scanout(0, 70, WHOLE));
            desk.ok(&Request::set_scanout(1, 70, [8, 4, 16, 8]));
            let taken = given.try_recv().expect("the dma-buf itself");
            assert_eq!((taken.size, taken.planes, taken.modifier), ((WIDTH, HEIGHT), vec![PLANE], Some(MODIFIER)));
            assert_eq!(taken.shown, Area { x: 8, y: 4, width: 16, height: 8 });
            // The picture's own, and the display's.
            assert_eq!(dma_bufs().0, quiet + 2);
            buffer.paint(round);
            let theirs = Mapping::new(std::os::fd::AsFd::as_fd(&taken.file), 0, LEN).expect("a mapping");
            assert_same(&theirs.read(0, LEN as usize), &buffer.bytes(), "what the display reads by itself");
            desk.ok(&Request::flush(70, WHOLE));
            assert_same(&viewer.picture().2, &[0x5a; (WIDTH * HEIGHT * 4) as usize], "what the renderer reads");
            ids.push(taken.id);
            drop(taken.file);
            if round == 1 {
                desk.ok(&Request::unref(70));
            } else {
                desk.reset();
            }
            assert_eq!(dma_bufs().0, quiet, "the picture's descriptor is open after its resource");
        }
        ids.dedup();
        assert_eq!(ids.len(), 3, "another life is another picture");
        let by_buffer =
            viewer.take().iter().filter(|shown| matches!(shown, Shown::Attached { by_buffer: true, .. })).count();
        assert_eq!(by_buffer, 0, "a display that takes none");
        "pictures=3 wrong=0".into()
    });
}
