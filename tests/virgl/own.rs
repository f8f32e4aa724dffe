//! Blobs whose memory the renderer maps by itself, into the device's window: Venus's shared memory as if it had no descriptor,
//! and OpenGL's buffers, which have none on a software GPU.

use std::ptr::NonNull;

use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_UNSPEC};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_MAPPABLE, BLOB_MEM_HOST3D};
use virtio_gpu_uring::testing::{Request, census};
use virtio_gpu_uring::{
    Area, BlobMemory, BlobRequest, Builder, Capset, Fence, GuestBacking, RenderedBlob, RenderedPicture, Renderer,
    RendererError, Resource3d, RutabagaRenderer, Transfer3d,
};

use super::alone::alone;
use super::stream::Stream;
use super::studio::{CONTEXT, PAGE, PAGES, Studio, VENUS, VIRGL, settings};
use super::venus::{assert_gap, page, paint, shared_blob};

/// The renderer, but for descriptors: it keeps them to itself.
struct Keeper(RutabagaRenderer);

impl Renderer for Keeper {
    fn capsets(&self) -> Vec<Capset> {
        self.0.capsets()
    }

    fn create_context(&mut self, context: u32, capset: u32, name: &str) -> Result<(), RendererError> {
        self.0.create_context(context, capset, name)
    }

    fn destroy_context(&mut self, context: u32) {
        self.0.destroy_context(context);
    }

    fn attach_resource(&mut self, context: u32, resource: u32) {
        self.0.attach_resource(context, resource);
    }

    fn detach_resource(&mut self, context: u32, resource: u32) {
        self.0.detach_resource(context, resource);
    }

    fn submit(&mut self, context: u32, stream: &[u8]) -> Result<(), RendererError> {
        self.0.submit(context, stream)
    }

    fn create_blob(&mut self, request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        let blob = self.0.create_blob(request)?;
        Ok(RenderedBlob::new(BlobMemory::Own, blob.caching))
    }

    fn map_blob(&mut self, resource: u32, address: NonNull<u8>, len: usize) -> Result<(), RendererError> {
        self.0.map_blob(resource, address, len)
    }

    fn descriptors(&mut self, resource: u32) -> u64 {
        self.0.descriptors(resource)
    }

    fn create_resource(&mut self, request: &Resource3d) -> Result<(), RendererError> {
        self.0.create_resource(request)
    }

    fn attach_backing(&mut self, resource: u32, backing: GuestBacking) -> Result<(), RendererError> {
        self.0.attach_backing(resource, backing)
    }

    fn detach_backing(&mut self, resource: u32) {
        self.0.detach_backing(resource);
    }

    fn transfer(&mut self, transfer: &Transfer3d) -> Result<(), RendererError> {
        self.0.transfer(transfer)
    }

    fn read_pixels(&mut self, resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        self.0.read_pixels(resource, area)
    }

    fn export_picture(&mut self, resource: u32) -> Option<RenderedPicture> {
        self.0.export_picture(resource)
    }

    fn destroy_resource(&mut self, resource: u32) {
        self.0.destroy_resource(resource);
    }

    fn fence(&mut self, context: u32, ring: Option<u8>, fence: Fence) {
        self.0.fence(context, ring, fence);
    }
}

/// A device whose renderer maps all blobs by itself, with a context of Venus.
fn keeper() -> Studio {
    let settings = settings();
    let mut studio = Studio::open(Builder::new().renderer(|| RutabagaRenderer::new(settings).map(Keeper)));
    paint(&studio);
    studio.ok(&Request::ctx_create(3, VENUS));
    studio
}

#[test]
fn what_the_renderer_maps_by_itself_is_never_elsewhere_than_asked_nor_left_behind() {
    alone("own::what_the_renderer_maps_by_itself_is_never_elsewhere_than_asked_nor_left_behind", || {
        let mut studio = keeper();
        studio.ok(&shared_blob(3, 20, 4 * PAGE));
        studio.ok(&shared_blob(3, 21, 2 * PAGE));
        studio.map(20, 8 * PAGE);
        studio.map(21, 12 * PAGE);
        for number in 8..14 {
            assert_eq!(page(&studio, number), [0; PAGE as usize], "new memory on page {number}");
            studio.window.write(number * PAGE, &[number as u8; PAGE as usize]).expect("in the window");
        }
        assert_gap(&studio, 0..8);
        assert_gap(&studio, 14..PAGES);
        for offset in [9 * PAGE, 11 * PAGE, 5 * PAGE, 13 * PAGE, (PAGES - 3) * PAGE, 1, u64::MAX - PAGE + 1] {
            studio.command(&Request::map(20, offset)).expect_error(ERR_INVALID_PARAMETER);
        }
        studio.ok(&Request::unmap(20));
        assert_gap(&studio, 0..12);
        studio.command(&Request::unmap(20)).expect_error(ERR_INVALID_PARAMETER);
        studio.command(&Request::map(20, 9 * PAGE)).expect_error(ERR_INVALID_PARAMETER);
        studio.map(20, 100 * PAGE);
        for number in 0..4 {
            assert_eq!(page(&studio, 100 + number), [number as u8 + 8; PAGE as usize], "what was written is gone");
        }
        // The mapping goes with the resource, and with the device's reset.
        studio.ok(&Request::unref(20));
        assert_gap(&studio, 14..PAGES);
        assert_eq!(page(&studio, 13), [13; PAGE as usize]);
        studio.start_over();
        assert_gap(&studio, 0..PAGES);
        assert_eq!(census::maps_named("vkr-shmem"), 0);
    });
}

#[test]
fn maps_and_ends_in_quick_succession_never_leave_a_page_of_what_is_gone() {
    alone("own::maps_and_ends_in_quick_succession_never_leave_a_page_of_what_is_gone", || {
        let mut studio = keeper();
        for round in 0..20u64 {
            let mut waiting = Vec::new();
            for resource in 20..28 {
                let offset = (u64::from(resource) * 3 + round) * PAGE;
                waiting.push(studio.submit(&shared_blob(3, resource, 3 * PAGE)));
                waiting.push(studio.submit(&Request::map(resource, offset)));
                if resource % 3 != 0 {
                    waiting.push(studio.submit(&Request::unmap(resource)));
                }
                if resource % 2 == 0 {
                    waiting.push(studio.submit(&Request::unref(resource)));
                }
            }
            if round % 2 == 0 {
                for token in waiting {
                    assert_ne!(studio.wait(token).kind(), 0);
                }
            }
            // The renderer may be mapping at this moment.
            studio.start_over();
            studio.ok(&Request::ctx_create(3, VENUS));
            assert_gap(&studio, 0..PAGES);
        }
        assert_eq!(studio.device().counters().requests_lost, 0);
    });
}

/// On a software GPU such a buffer lies in the private memory of virglrenderer's process, that is ours: there is nothing to
/// map. One of a GPU is mapped.
#[test]
fn a_buffer_of_opengl_that_cannot_be_mapped_never_leaves_a_trace_in_the_window() {
    const OBJECT: u32 = 77;
    let mut studio = Studio::enter();
    paint(&studio);
    studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
    for round in 0..3 {
        let object = OBJECT + round;
        studio.draw(&Stream::new().blob_buffer(object, 2 * PAGE as u32));
        let blob = Request::create_blob(30, BLOB_MEM_HOST3D, BLOB_FLAG_MAPPABLE, object.into(), 2 * PAGE, &[]);
        studio.ok(&blob.context(CONTEXT));
        for _ in 0..2 {
            studio.command(&Request::map(30, 5 * PAGE)).expect_error(ERR_UNSPEC);
            assert_gap(&studio, 0..PAGES);
        }
        studio.command(&Request::unmap(30)).expect_error(ERR_INVALID_PARAMETER);
        studio.ok(&Request::unref(30));
    }
    studio.assert_draws(2);
}
