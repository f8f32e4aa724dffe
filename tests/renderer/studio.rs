//! A renderer with 3D resources for tests: each is an array of pixels, which transfers copy and displays are read from. It
//! tells a test of every call, and refuses, blocks or panics where the test says so.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_gpu_uring::testing::DEADLINE;
use virtio_gpu_uring::{
    Area, BlobRequest, Capset, Direction, Fence, GuestBacking, RenderedBlob, Renderer, RendererError, Resource3d,
    Transfer3d,
};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Invalid,
    OutOfMemory,
    Panic,
    /// It returns when the test says so.
    Block,
    /// An answer that is so many bytes longer or shorter than it should be.
    Length(isize),
}

#[derive(Default)]
struct Orders {
    fates: HashMap<&'static str, Fate>,
    /// All of the last resource and transfer that were asked for.
    resource: Option<Resource3d>,
    transfer: Option<Transfer3d>,
}

struct Piece {
    width: u32,
    pixels: Vec<u8>,
    backing: Option<GuestBacking>,
}

pub(crate) struct Studio {
    calls: Sender<String>,
    gate: Receiver<()>,
    orders: Arc<Mutex<Orders>>,
    pieces: HashMap<u32, Piece>,
}

/// The test's end.
pub(crate) struct Visitor {
    calls: Receiver<String>,
    gate: Sender<()>,
    orders: Arc<Mutex<Orders>>,
}

pub(crate) fn studio() -> (impl FnOnce() -> io::Result<Studio> + Send + 'static, Visitor) {
    let ((tell, calls), (open, gate)) = (channel(), channel());
    let orders = Arc::<Mutex<Orders>>::default();
    let visitor = Visitor { calls, gate: open, orders: Arc::clone(&orders) };
    (move || Ok(Studio { calls: tell, gate, orders, pieces: HashMap::new() }), visitor)
}

impl Visitor {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().expect("no panic under it")
    }

    /// What becomes of calls of this name from now on; nothing unusual for `None`.
    pub(crate) fn order(&self, call: &'static str, fate: Option<Fate>) {
        match fate {
            Some(fate) => drop(self.orders().fates.insert(call, fate)),
            None => drop(self.orders().fates.remove(call)),
        }
    }

    /// Lets a blocked call return.
    pub(crate) fn unblock(&self) {
        self.gate.send(()).expect("a renderer");
    }

    /// The next call, in words.
    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.calls.recv_timeout(DEADLINE).expect("a call of the renderer before the deadline")
    }

    /// Asserts what the next calls are.
    #[track_caller]
    pub(crate) fn expect(&self, calls: &[&str]) {
        let seen: Vec<String> = calls.iter().map(|_| self.next()).collect();
        assert_eq!(seen, calls);
    }

    /// Asserts that no call has come that was not expected.
    #[track_caller]
    pub(crate) fn expect_none(&self) {
        let calls: Vec<String> = self.calls.try_iter().collect();
        assert!(calls.is_empty(), "the renderer was called: {calls:?}");
    }

    /// All of the last resource that was asked for.
    pub(crate) fn resource(&self) -> Resource3d {
        self.orders().resource.expect("a resource was asked for")
    }

    /// All of the last transfer that was asked for.
    pub(crate) fn transfer(&self) -> Transfer3d {
        self.orders().transfer.expect("a transfer was asked for")
    }
}

fn invalid(text: &str) -> RendererError {
    RendererError::Invalid(text.into())
}

impl Studio {
    /// Tells the test, and does as it was told.
    fn call(&self, name: &'static str, text: String) -> Result<(), RendererError> {
        let fate = self.orders.lock().expect("no panic under it").fates.get(name).copied();
        let _ = self.calls.send(text);
        match fate {
            None | Some(Fate::Length(_)) => Ok(()),
            Some(Fate::Invalid) => Err(invalid("told to")),
            Some(Fate::OutOfMemory) => Err(RendererError::OutOfMemory("told to".into())),
            // As a panic does, without its message on the terminal.
            Some(Fate::Panic) => std::panic::resume_unwind(Box::new("told to")),
            Some(Fate::Block) => {
                // A test that has gone lets everybody go on.
                let _ = self.gate.recv();
                Ok(())
            }
        }
    }

    fn make(&mut self, resource: u32, width: u32, bytes: usize, backing: Option<GuestBacking>) {
        let made = self.pieces.insert(resource, Piece { width, pixels: vec![0; bytes], backing });
        assert!(made.is_none(), "resource {resource} was made twice");
    }
}

impl Piece {
    /// Where each row of an area lies.
    fn rows(&self, area: Area) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (width, len) = (self.width as usize, area.width as usize * 4);
        (area.y..area.y + area.height).map(move |y| {
            let start = (y as usize * width + area.x as usize) * 4;
            start..start + len
        })
    }

    /// Rows lie in guest memory as they do here.
    fn copy(&mut self, transfer: &Transfer3d) -> Result<(), RendererError> {
        let ([x, y, _], [width, height, _]) = (transfer.origin, transfer.size);
        let rows = self.rows(Area { x, y, width, height });
        let backing = self.backing.as_ref().ok_or_else(|| invalid("no backing"))?;
        for (index, row) in rows.enumerate() {
            let at = transfer.offset + index as u64 * u64::from(self.width) * 4;
            let pixels = self.pixels.get_mut(row).ok_or_else(|| invalid("outside"))?;
            let copied = match transfer.direction {
                Direction::ToHost => backing.read(at, pixels),
                Direction::FromHost => backing.write(at, pixels),
            };
            copied.map_err(|outside| invalid(&outside.to_string()))?;
        }
        Ok(())
    }
}

impl Renderer for Studio {
    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: 1, max_version: 1, data: b"studio".to_vec() }]
    }

    fn create_context(&mut self, context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        self.call("context", format!("context {context}"))
    }

    fn destroy_context(&mut self, context: u32) {
        let _ = self.call("end", format!("end {context}"));
    }

    fn attach_resource(&mut self, _context: u32, _resource: u32) {}

    fn detach_resource(&mut self, _context: u32, _resource: u32) {}

    /// A stream of five bytes fills a resource: its id, then a pixel.
    fn submit(&mut self, context: u32, stream: &[u8]) -> Result<(), RendererError> {
        self.call("submit", format!("submit {} to {context}", stream[0]))?;
        let piece = self.pieces.get_mut(&u32::from(stream[0])).ok_or_else(|| invalid("no such resource"))?;
        piece.pixels.chunks_exact_mut(4).for_each(|pixel| pixel.copy_from_slice(&stream[1..5]));
        Ok(())
    }

    fn create_blob(&mut self, _request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        Err(invalid("not here"))
    }

    fn create_shadowed_blob(
        &mut self,
        request: &BlobRequest,
        backing: Option<GuestBacking>,
    ) -> Result<(), RendererError> {
        let BlobRequest { context, resource, blob_id, size, flags, .. } = *request;
        let len = backing.as_ref().map_or(0, GuestBacking::len);
        let text = format!("shadow {resource} of {context}/{blob_id}, {size} bytes, flags {flags}, backed by {len}");
        self.call("shadow", text)?;
        self.make(resource, 16, size as usize, backing);
        Ok(())
    }

    fn create_resource(&mut self, request: &Resource3d) -> Result<(), RendererError> {
        let Resource3d { resource, width, height, .. } = *request;
        self.orders.lock().expect("no panic under it").resource = Some(*request);
        self.call("create", format!("create {resource} of {width}x{height}"))?;
        // What nobody can show needs no pixels.
        let bytes = if u64::from(width) * u64::from(height) > 1 << 24 { 0 } else { width * height * 4 };
        self.make(resource, width, bytes as usize, None);
        Ok(())
    }

    fn attach_backing(&mut self, resource: u32, backing: GuestBacking) -> Result<(), RendererError> {
        self.call("back", format!("back {resource} with {}", backing.len()))?;
        let piece = self.pieces.get_mut(&resource).ok_or_else(|| invalid("no such resource"))?;
        assert!(piece.backing.replace(backing).is_none(), "resource {resource} has backing already");
        Ok(())
    }

    fn detach_backing(&mut self, resource: u32) {
        let _ = self.call("unback", format!("unback {resource}"));
        let backing = self.pieces.get_mut(&resource).and_then(|piece| piece.backing.take());
        assert!(backing.is_some(), "resource {resource} has no backing");
    }

    fn transfer(&mut self, transfer: &Transfer3d) -> Result<(), RendererError> {
        self.orders.lock().expect("no panic under it").transfer = Some(*transfer);
        let direction = match transfer.direction {
            Direction::ToHost => "to",
            Direction::FromHost => "from",
        };
        self.call("transfer", format!("{direction} {} in {}", transfer.resource, transfer.context))?;
        self.pieces.get_mut(&transfer.resource).ok_or_else(|| invalid("no such resource"))?.copy(transfer)
    }

    fn read_pixels(&mut self, resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        let Area { x, y, width, height } = area;
        let fate = self.orders.lock().expect("no panic under it").fates.get("read").copied();
        self.call("read", format!("read {resource} at {width}x{height}+{x}+{y}"))?;
        let piece = self.pieces.get(&resource).ok_or_else(|| invalid("no such resource"))?;
        let rows = piece.rows(area).map(|row| piece.pixels.get(row).ok_or_else(|| invalid("outside")));
        let mut pixels = rows.collect::<Result<Vec<&[u8]>, _>>()?.concat();
        if let Some(Fate::Length(more)) = fate {
            pixels.resize(pixels.len().saturating_add_signed(more), 0);
        }
        Ok(pixels)
    }

    fn destroy_resource(&mut self, resource: u32) {
        let _ = self.call("forget", format!("forget {resource}"));
        // One that it has refused, or has not got to, is none of its own.
        self.pieces.remove(&resource);
    }

    fn fence(&mut self, _context: u32, _ring: Option<u8>, fence: Fence) {
        fence.signal();
    }
}

impl Drop for Studio {
    fn drop(&mut self) {
        let mut left: Vec<u32> = self.pieces.keys().copied().collect();
        left.sort_unstable();
        let _ = self.calls.send(format!("gone with {left:?}"));
    }
}
