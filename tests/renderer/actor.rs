//! A renderer for tests that plays any part: each of its calls may refuse, panic or never return, it maps memory of its own,
//! keeps descriptors, pins guest memory and exports pictures, as the test directs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use virtio_gpu_uring::testing::DEADLINE;
use virtio_gpu_uring::{
    Area, BlobMemory, BlobRequest, Caching, Capset, Fence, GuestBacking, PinnedBacking, Plane, RenderedBlob,
    RenderedPicture, Renderer, RendererError, Resource3d, Transfer3d,
};

use super::fixed_map::map_over;
use super::memfd;

/// Blobs of this object have memory of the renderer's own.
pub(super) const OWN: u64 = 1;
/// Blobs of this object lie in a memfd.
pub(super) const FILE: u64 = 2;
/// Fences of this ring are kept, and of no other.
pub(super) const KEPT: u8 = 9;

/// What it copies to guest memory.
pub(super) const MARK: &[u8] = b"mark";

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Invalid,
    OutOfMemory,
    Panic,
    /// It does not return before the test says so.
    Hang,
}

/// What a resource's picture is exported as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Export {
    #[default]
    Nothing,
    /// A memfd, with as many planes.
    Memfd(usize),
    /// A pipe.
    Pipe,
}

/// How it maps a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mapping {
    #[default]
    Whole,
    FirstPage,
    /// The same page, again and again.
    EachPage,
}

#[derive(Default)]
pub(super) struct Script {
    fates: HashMap<&'static str, Fate>,
    /// Kept for each resource, it says.
    pub(super) descriptors: u64,
    /// And for each context.
    pub(super) of_context: u64,
    /// The other end of what it waits for by itself.
    bell: Option<PipeWriter>,
    pub(super) caching: Caching,
    pub(super) export: Export,
    pub(super) mapping: Mapping,
    /// Whether it pins the guest memory that it is given.
    pub(super) pins: bool,
    /// Whether it keeps that beyond the end of the resource.
    pub(super) hoards: bool,
    /// What it has pinned last: addresses and lengths.
    pub(super) pinned: Vec<(usize, usize)>,
}

pub(super) struct Actor {
    name: &'static str,
    calls: Sender<String>,
    gate: Receiver<()>,
    script: Arc<Mutex<Script>>,
    /// The memory of blobs. A file that was handed out is the device's.
    blobs: HashMap<u32, OwnedFd>,
    backings: HashMap<u32, (GuestBacking, Option<PinnedBacking>)>,
    hoard: Vec<PinnedBacking>,
    fences: Vec<Fence>,
    bell: PipeReader,
}

/// The test's end.
pub(super) struct Director {
    calls: Receiver<String>,
    gate: Sender<()>,
    script: Arc<Mutex<Script>>,
}

/// A renderer whose memfds have this name, and the test's end of it.
pub(super) fn actor(name: &'static str) -> (impl FnOnce() -> io::Result<Actor> + Send + 'static, Director) {
    let ((tell, calls), (open, gate)) = (channel(), channel());
    let script = Arc::<Mutex<Script>>::default();
    let director = Director { calls, gate: open, script: Arc::clone(&script) };
    let factory = move || {
        let (blobs, backings) = (HashMap::new(), HashMap::new());
        let (bell, rope) = io::pipe()?;
        script.lock().expect("no panic under it").bell = Some(rope);
        Ok(Actor { name, calls: tell, gate, script, blobs, backings, hoard: Vec::new(), fences: Vec::new(), bell })
    };
    (factory, director)
}

/// Waits for something that comes about by itself.
#[track_caller]
pub(super) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        std::thread::yield_now();
    }
}

impl Director {
    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no panic under it")
    }

    /// What becomes of calls of this name from now on.
    pub(super) fn order(&self, call: &'static str, fate: Fate) {
        self.script().fates.insert(call, fate);
    }

    /// Nothing unusual becomes of calls of this name any more.
    pub(super) fn spare(&self, call: &'static str) {
        self.script().fates.remove(call);
    }

    /// Gives it something to do by itself.
    pub(super) fn ring(&self) {
        let script = self.script();
        rustix::io::write(script.bell.as_ref().expect("a renderer"), b"!").expect("rung");
    }

    /// Lets a call that hangs return.
    pub(super) fn release(&self) {
        self.gate.send(()).expect("a renderer");
    }

    #[track_caller]
    pub(super) fn next(&self) -> String {
        self.calls.recv_timeout(DEADLINE).expect("a call of the renderer before the deadline")
    }

    /// Lets calls pass until this one.
    #[track_caller]
    pub(super) fn reach(&self, call: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            match self.next() {
                found if found == call => return before,
                other => before.push(other),
            }
        }
    }

    /// Asserts what the next calls are.
    #[track_caller]
    pub(super) fn expect(&self, calls: &[&str]) {
        let seen: Vec<String> = calls.iter().map(|_| self.next()).collect();
        assert_eq!(seen, calls);
    }

    /// The calls that have come and nobody has looked at.
    pub(super) fn take(&self) -> Vec<String> {
        self.calls.try_iter().collect()
    }
}

impl Actor {
    /// Tells the test, and does as it was told.
    fn call(&self, name: &'static str, numbers: &[u64]) -> Result<(), RendererError> {
        let mut text = name.to_owned();
        numbers.iter().for_each(|number| write!(text, " {number}").expect("text"));
        let fate = self.fate(name);
        let _ = self.calls.send(text);
        self.suffer(fate)
    }

    fn fate(&self, name: &'static str) -> Option<Fate> {
        self.script().fates.get(name).copied()
    }

    fn suffer(&self, fate: Option<Fate>) -> Result<(), RendererError> {
        match fate {
            None => Ok(()),
            Some(Fate::Invalid) => Err(RendererError::Invalid("told to".into())),
            Some(Fate::OutOfMemory) => Err(RendererError::OutOfMemory("told to".into())),
            // As a panic does, without its message on the terminal.
            Some(Fate::Panic) => std::panic::resume_unwind(Box::new("told to")),
            Some(Fate::Hang) => {
                // A test that has gone lets everybody go on.
                let _ = self.gate.recv();
                Ok(())
            }
        }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no panic under it")
    }

    fn mark(&self, resource: u32) -> Result<(), RendererError> {
        let Some((backing, _)) = self.backings.get(&resource) else { return Ok(()) };
        backing.write(0, MARK).map_err(|outside| RendererError::Invalid(outside.to_string()))
    }

    fn back(&mut self, resource: u32, backing: GuestBacking) {
        let pins = self.script().pins;
        let pinned = pins.then(|| backing.pin().expect("guest memory with addresses"));
        if let Some(pinned) = &pinned {
            let pieces = pinned.pieces().iter().map(|piece| (piece.address.as_ptr().addr(), piece.len));
            self.script().pinned = pieces.collect();
        }
        self.backings.insert(resource, (backing, pinned));
    }
}

impl Renderer for Actor {
    fn poll_descriptor(&self) -> Option<OwnedFd> {
        Some(self.bell.try_clone().expect("a duplicate").into())
    }

    fn poll(&mut self) {
        rustix::io::read(&self.bell, &mut [0]).expect("a bell that was rung");
        let _ = self.call("poll", &[]);
        // What it was waiting for.
        self.fences.clear();
    }

    fn context_descriptors(&mut self, _context: u32) -> u64 {
        self.script().of_context
    }

    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: 1, max_version: 1, data: b"actor".to_vec() }]
    }

    fn create_context(&mut self, context: u32, _capset: u32, _name: &str) -> Result<(), RendererError> {
        self.call("context", &[context.into()])
    }

    fn destroy_context(&mut self, context: u32) {
        let _ = self.call("end", &[context.into()]);
    }

    fn attach_resource(&mut self, context: u32, resource: u32) {
        let _ = self.call("attach", &[context.into(), resource.into()]);
    }

    fn detach_resource(&mut self, context: u32, resource: u32) {
        let _ = self.call("detach", &[context.into(), resource.into()]);
    }

    /// A stream of two bytes fills a blob of its own memory: its id, and the byte. One of a single byte marks the guest memory
    /// behind the resource of that id.
    fn submit(&mut self, context: u32, stream: &[u8]) -> Result<(), RendererError> {
        self.call("submit", &[context.into()])?;
        if let [resource] = *stream {
            return self.mark(resource.into());
        }
        if let [resource, byte] = *stream {
            let blob = self.blobs.get(&resource.into());
            let blob = blob.ok_or_else(|| RendererError::Invalid("no such resource".into()))?;
            let len = rustix::fs::fstat(blob).expect("its size").st_size;
            rustix::io::pwrite(blob, &vec![byte; usize::try_from(len).expect("a short blob")], 0).expect("filled");
        }
        Ok(())
    }

    fn create_blob(&mut self, request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        self.call("blob", &[request.resource.into(), request.blob_id])?;
        let file = memfd(self.name, request.size.next_multiple_of(4096));
        let memory = if request.blob_id == OWN {
            self.blobs.insert(request.resource, file);
            BlobMemory::Own
        } else {
            BlobMemory::File(file)
        };
        let caching = self.script().caching;
        Ok(RenderedBlob::new(memory, caching))
    }

    fn map_blob(&mut self, resource: u32, address: NonNull<u8>, len: usize) -> Result<(), RendererError> {
        self.call("map", &[resource.into(), len as u64])?;
        let blob = self.blobs.get(&resource);
        let blob = blob.ok_or_else(|| RendererError::Invalid("it has no memory of its own".into()))?;
        match self.script().mapping {
            Mapping::Whole => map_over(address, len, blob),
            Mapping::FirstPage => map_over(address, 4096, blob),
            Mapping::EachPage => (0..len / 4096).for_each(|page| {
                let address = address.map_addr(|at| at.saturating_add(page * 4096));
                map_over(address, 4096, blob);
            }),
        }
        self.suffer(self.fate("mapped"))
    }

    fn descriptors(&mut self, _resource: u32) -> u64 {
        let _ = self.suffer(self.fate("descriptors"));
        self.script().descriptors
    }

    fn create_shadowed_blob(
        &mut self,
        request: &BlobRequest,
        backing: Option<GuestBacking>,
    ) -> Result<(), RendererError> {
        self.call("shadow", &[request.resource.into()])?;
        if let Some(backing) = backing {
            self.back(request.resource, backing);
        }
        Ok(())
    }

    fn create_resource(&mut self, request: &Resource3d) -> Result<(), RendererError> {
        self.call("create", &[request.resource.into()])
    }

    fn attach_backing(&mut self, resource: u32, backing: GuestBacking) -> Result<(), RendererError> {
        self.call("back", &[resource.into()])?;
        self.back(resource, backing);
        Ok(())
    }

    fn detach_backing(&mut self, resource: u32) {
        let _ = self.call("unback", &[resource.into()]);
        self.backings.remove(&resource);
    }

    /// Copies a mark to the start of the guest memory behind the resource, where it has any.
    fn transfer(&mut self, transfer: &Transfer3d) -> Result<(), RendererError> {
        self.call("transfer", &[transfer.resource.into()])?;
        self.mark(transfer.resource)
    }

    fn read_pixels(&mut self, resource: u32, area: Area) -> Result<Vec<u8>, RendererError> {
        self.call("read", &[resource.into()])?;
        Ok(vec![resource.to_le_bytes()[0]; area.width as usize * area.height as usize * 4])
    }

    fn export_picture(&mut self, resource: u32) -> Option<RenderedPicture> {
        self.call("export", &[resource.into()]).ok()?;
        let export = self.script().export;
        let (file, planes) = match export {
            Export::Nothing => return None,
            Export::Memfd(planes) => (memfd(self.name, 4096), planes),
            Export::Pipe => (io::pipe().expect("a pipe").0.into(), 1),
        };
        Some(RenderedPicture::new(file, vec![Plane { offset: 0, stride: 64 }; planes], None))
    }

    fn destroy_resource(&mut self, resource: u32) {
        let _ = self.call("forget", &[resource.into()]);
        self.blobs.remove(&resource);
        let pinned = self.backings.remove(&resource).and_then(|(_, pinned)| pinned);
        let hoards = self.script().hoards;
        self.hoard.extend(pinned.filter(|_| hoards));
    }

    fn fence(&mut self, context: u32, ring: Option<u8>, fence: Fence) {
        let _ = self.call("fence", &[context.into()]);
        if ring == Some(KEPT) {
            self.fences.push(fence);
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.calls.send("gone".into());
    }
}
