//! A renderer whose calls take as long as a test wants: the next call of a kind is held at a gate until the test opens it.

use std::io;
use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use virtio_gpu_uring::testing::DEADLINE;
use virtio_gpu_uring::{
    Area, BlobMemory, BlobRequest, Caching, Capset, Fence, GuestBacking, RenderedBlob, RenderedPicture, Renderer,
    RendererError, Resource3d, Transfer3d,
};

use super::stage::memfd;

/// Its capability set.
pub(crate) const CAPSET: u32 = 2;
/// Fences of this ring are the test's to signal; all others signal at once.
pub(crate) const KEPT_RING: u8 = 9;
/// The object whose memory is its own.
pub(crate) const OWN: u64 = 77;
/// What its other blobs are filled with.
pub(crate) const EXPORTED: u8 = 0x5e;
/// Each byte of its pixels.
pub(crate) const RENDERED: u8 = 0x77;

/// Calls that can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Submit,
    Transfer,
    CreateBlob,
    ReadPixels,
    CreateContext,
    CreateResource,
    AttachBacking,
    MapBlob,
    ExportPicture,
}

pub(crate) struct Gated {
    wanted: Arc<Mutex<Option<Call>>>,
    arrived: Sender<Call>,
    opened: Receiver<()>,
    fences: Sender<Fence>,
}

/// The test's hand on the gate. Where it is let go the gate stands open.
pub(crate) struct Gate {
    wanted: Arc<Mutex<Option<Call>>>,
    arrived: Receiver<Call>,
    open: Sender<()>,
    fences: Receiver<Fence>,
}

pub(crate) fn gated() -> (impl FnOnce() -> io::Result<Gated> + Send + 'static, Gate) {
    let wanted = Arc::<Mutex<Option<Call>>>::default();
    let ((arrive, arrived), (open, opened), (keep, fences)) = (channel(), channel(), channel());
    let gate = Gate { wanted: Arc::clone(&wanted), arrived, open, fences };
    (move || Ok(Gated { wanted, arrived: arrive, opened, fences: keep }), gate)
}

impl Gate {
    /// The next call of this kind is held.
    pub(crate) fn shut(&self, call: Call) {
        *self.wanted.lock().expect("no panic under it") = Some(call);
    }

    /// Waits until a call is held.
    #[track_caller]
    pub(crate) fn wait(&self) -> Call {
        self.arrived.recv_timeout(DEADLINE).expect("a call of the renderer before the deadline")
    }

    /// Lets the call that is held go on.
    pub(crate) fn open(&self) {
        self.open.send(()).expect("a renderer");
    }

    /// The next fence of the ring whose fences are the test's.
    #[track_caller]
    pub(crate) fn fence(&self) -> Fence {
        self.fences.recv_timeout(DEADLINE).expect("a fence before the deadline")
    }
}

impl Gated {
    fn pass(&self, call: Call) {
        let held = self.wanted.lock().expect("no panic under it").take_if(|wanted| *wanted == call).is_some();
        if held {
            let _ = self.arrived.send(call);
            // A test that has gone lets everybody go on.
            let _ = self.opened.recv();
        }
    }
}

impl Renderer for Gated {
    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: CAPSET, max_version: 1, data: b"gated".to_vec() }]
    }

    fn create_context(&mut self, _context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        self.pass(Call::CreateContext);
        Ok(())
    }

    fn destroy_context(&mut self, _context: u32) {}

    fn attach_resource(&mut self, _context: u32, _resource: u32) {}

    fn detach_resource(&mut self, _context: u32, _resource: u32) {}

    fn submit(&mut self, _context: u32, _stream: &[u8]) -> Result<(), RendererError> {
        self.pass(Call::Submit);
        Ok(())
    }

    fn create_blob(&mut self, request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        self.pass(Call::CreateBlob);
        match request.blob_id {
            OWN => Ok(RenderedBlob::new(BlobMemory::Own, Caching::Cached)),
            _ => Ok(memfd(request.size, EXPORTED).into()),
        }
    }

    /// Leaves what is mapped there.
    fn map_blob(&mut self, _resource: u32, _address: NonNull<u8>, _len: usize) -> Result<(), RendererError> {
        self.pass(Call::MapBlob);
        Ok(())
    }

    fn export_picture(&mut self, _resource: u32) -> Option<RenderedPicture> {
        self.pass(Call::ExportPicture);
        None
    }

    fn create_resource(&mut self, _request: &Resource3d) -> Result<(), RendererError> {
        self.pass(Call::CreateResource);
        Ok(())
    }

    fn attach_backing(&mut self, _resource: u32, _backing: GuestBacking) -> Result<(), RendererError> {
        self.pass(Call::AttachBacking);
        Ok(())
    }

    fn detach_backing(&mut self, _resource: u32) {}

    fn transfer(&mut self, _transfer: &Transfer3d) -> Result<(), RendererError> {
        self.pass(Call::Transfer);
        Ok(())
    }

    fn read_pixels(&mut self, _resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        self.pass(Call::ReadPixels);
        Ok(vec![RENDERED; area.width as usize * area.height as usize * 4])
    }

    fn destroy_resource(&mut self, _resource: u32) {}

    fn fence(&mut self, _context: u32, ring: Option<u8>, fence: Fence) {
        if ring == Some(KEPT_RING) {
            // A test that has gone drops it, which signals it.
            let _ = self.fences.send(fence);
        } else {
            fence.signal();
        }
    }
}
