//! A small honest renderer: resources are bytes, transfers copy them from and to the guest's memory, blobs are memfds.
//! A command stream is the id of an object and what it is to hold.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use virtio_gpu_uring::{
    Area, BlobRequest, Capset, Direction, Fence, GuestBacking, RenderedBlob, Renderer, RendererError, Resource3d,
    Transfer3d,
};

use crate::kit::memfd;

/// Resources with this bind value are refused their backing.
pub(crate) const NO_BACKING: u32 = 0xbad;

/// Resources of this target are of any size and take no memory: nothing can be read of them.
pub(crate) const ENDLESS: u32 = 0xe4d;

/// Contexts of this name are refused.
pub(crate) const REFUSED: &str = "refused";

/// What the renderer was asked for, in words, and the gate that makers of contexts and readers of pixels pass.
#[derive(Default)]
struct Shared {
    calls: Mutex<Vec<String>>,
    shut: Mutex<bool>,
    opened: Condvar,
}

/// The test's end.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Shared>);

impl Watch {
    /// What the renderer was asked for since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.calls.lock().expect("no panic meanwhile"))
    }

    /// Shuts the gate, or opens it.
    pub(crate) fn shut(&self, shut: bool) {
        *self.0.shut.lock().expect("no panic meanwhile") = shut;
        self.0.opened.notify_all();
    }

    fn tell(&self, call: String) {
        self.0.calls.lock().expect("no panic meanwhile").push(call);
    }

    fn pass(&self) {
        let shut = self.0.shut.lock().expect("no panic meanwhile");
        drop(self.0.opened.wait_while(shut, |shut| *shut).expect("no panic meanwhile"));
    }
}

struct Resource {
    /// Pixels of a row; for a blob, bytes.
    width: u32,
    height: u32,
    pixel: usize,
    bytes: Vec<u8>,
    takes_backing: bool,
    backing: Option<GuestBacking>,
}

pub(crate) struct Honest {
    watch: Watch,
    objects: HashMap<(u32, u64), Vec<u8>>,
    resources: HashMap<u32, Resource>,
}

/// The renderer, and the test's end of it.
pub(crate) fn honest() -> (impl FnOnce() -> io::Result<Honest> + Send + 'static, Watch) {
    let watch = Watch::default();
    let own = watch.clone();
    (move || Ok(Honest { watch: own, objects: HashMap::new(), resources: HashMap::new() }), watch)
}

/// The stream that makes an object of these bytes.
pub(crate) fn make_object(id: u64, bytes: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes(), bytes].concat()
}

fn invalid<T>(what: &str) -> Result<T, RendererError> {
    Err(RendererError::Invalid(what.into()))
}

impl Renderer for Honest {
    fn capsets(&self) -> Vec<Capset> {
        vec![
            Capset { id: 2, max_version: 3, data: b"the second".to_vec() },
            Capset { id: 4, max_version: 0, data: vec![4; 300] },
        ]
    }

    fn create_context(&mut self, context: u32, capset: u32, name: &str) -> Result<(), RendererError> {
        self.watch.tell(format!("context {context} of {capset} named {name}"));
        self.watch.pass();
        if name == REFUSED { invalid("not this one") } else { Ok(()) }
    }

    fn destroy_context(&mut self, context: u32) {
        self.watch.tell(format!("end of context {context}"));
        self.objects.retain(|(owner, _), _| *owner != context);
    }

    fn attach_resource(&mut self, context: u32, resource: u32) {
        self.watch.tell(format!("attach {resource} to {context}"));
    }

    fn detach_resource(&mut self, context: u32, resource: u32) {
        self.watch.tell(format!("detach {resource} from {context}"));
    }

    fn submit(&mut self, context: u32, stream: &[u8]) -> Result<(), RendererError> {
        self.watch.tell(format!("{} bytes for {context}", stream.len()));
        if let Some((id, bytes)) = stream.split_first_chunk() {
            self.objects.insert((context, u64::from_le_bytes(*id)), bytes.to_vec());
            return Ok(());
        }
        if stream.is_empty() { Ok(()) } else { invalid("a stream without an object") }
    }

    fn create_blob(&mut self, request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        let BlobRequest { context, resource, blob_id, size, flags, .. } = *request;
        self.watch.tell(format!("blob {resource} of {context}/{blob_id}: {size} bytes, flags {flags:#x}"));
        match self.objects.get(&(context, blob_id)) {
            Some(bytes) => Ok(memfd("honest", bytes).into()),
            None => invalid("no such object"),
        }
    }

    fn create_shadowed_blob(
        &mut self,
        request: &BlobRequest,
        backing: Option<GuestBacking>,
    ) -> Result<(), RendererError> {
        let BlobRequest { context, resource, blob_id, size, flags, .. } = *request;
        self.watch.tell(format!("shadowed blob {resource} of {context}/{blob_id}: {size} bytes, flags {flags:#x}"));
        let Some(bytes) = self.objects.get(&(context, blob_id)) else { return invalid("no such object") };
        let mut bytes = bytes.clone();
        bytes.resize(size as usize, 0);
        let blob = Resource { width: size as u32, height: 1, pixel: 1, bytes, takes_backing: true, backing };
        self.resources.insert(resource, blob);
        Ok(())
    }

    fn create_resource(&mut self, request: &Resource3d) -> Result<(), RendererError> {
        let Resource3d { resource, target, format, width, height, depth, array_size, bind, .. } = *request;
        self.watch.tell(format!("resource {resource}: {target} {format} {width}x{height}x{depth}x{array_size}"));
        if target == 0 || width == 0 || height == 0 {
            return invalid("no such texture");
        }
        if target == ENDLESS {
            let endless = Resource { width, height, pixel: 4, bytes: vec![], takes_backing: false, backing: None };
            self.resources.insert(resource, endless);
            return Ok(());
        }
        let Some(len) = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(4)) else {
            return Err(RendererError::OutOfMemory("a large texture".into()));
        };
        let (bytes, takes_backing) = (vec![0; len as usize], bind != NO_BACKING);
        self.resources.insert(resource, Resource { width, height, pixel: 4, bytes, takes_backing, backing: None });
        Ok(())
    }

    fn attach_backing(&mut self, resource: u32, backing: GuestBacking) -> Result<(), RendererError> {
        self.watch.tell(format!("backing of {} bytes behind {resource}", backing.len()));
        match self.resources.get_mut(&resource) {
            Some(resource) if resource.takes_backing => resource.backing = Some(backing),
            _ => return invalid("no backing for this one"),
        }
        Ok(())
    }

    fn detach_backing(&mut self, resource: u32) {
        self.watch.tell(format!("no backing behind {resource}"));
        if let Some(resource) = self.resources.get_mut(&resource) {
            resource.backing = None;
        }
    }

    fn transfer(&mut self, transfer: &Transfer3d) -> Result<(), RendererError> {
        let Transfer3d { context, resource, direction, origin: [x, y, _], size: [w, h, _], offset, .. } = *transfer;
        self.watch.tell(format!("transfer {direction:?} {resource} in {context}: {w}x{h}+{x}+{y} at {offset}"));
        let Some(Resource { width, height, pixel, bytes, backing: Some(backing), .. }) =
            self.resources.get_mut(&resource)
        else {
            return invalid("nothing to transfer");
        };
        let inside = |at: u32, len: u32, all: u32| at.checked_add(len).is_some_and(|end| end <= all);
        if !inside(x, w, *width) || !inside(y, h, *height) {
            return invalid("a part outside");
        }
        let stride = *width as usize * *pixel;
        for row in 0..h as usize {
            let line = &mut bytes[(y as usize + row) * stride + x as usize * *pixel..][..w as usize * *pixel];
            let from = offset.saturating_add((row * stride) as u64);
            let copied = match direction {
                Direction::ToHost => backing.read(from, line),
                Direction::FromHost => backing.write(from, line),
            };
            copied.or_else(|_| invalid("no memory there"))?;
        }
        Ok(())
    }

    fn read_pixels(&mut self, resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        self.watch.pass();
        let resource = self.resources.get(&resource).filter(|resource| !resource.bytes.is_empty());
        let Some(resource) = resource else { return invalid("nothing to read") };
        let Area { x, y, width, height } = area;
        Ok(crate::kit::crop(&resource.bytes, resource.width, [x, y, width, height]))
    }

    fn destroy_resource(&mut self, resource: u32) {
        self.watch.tell(format!("end of {resource}"));
        self.resources.remove(&resource);
    }

    fn fence(&mut self, _context: u32, _ring: Option<u8>, fence: Fence) {
        fence.signal();
    }
}
