//! A renderer for tests: it writes every stream into a memfd of its context, tells a test of every call in order, and
//! leaves its fences to the test.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ThreadId;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use virtio_gpu_uring::testing::DEADLINE;
use virtio_gpu_uring::{BlobRequest, Capset, Fence, RenderedBlob, Renderer, RendererError};

/// Streams that mean something; all others are echoed.
pub(crate) mod stream {
    /// The call returns when the test says so.
    pub(crate) const BLOCK: &[u8] = b"block";
    /// The renderer panics.
    pub(crate) const PANIC: &[u8] = b"panic";
    /// The stream is refused.
    pub(crate) const BAD: &[u8] = b"bad";
    /// There is no memory for it.
    pub(crate) const FULL: &[u8] = b"full";
}

/// Objects that contexts have.
pub(crate) mod object {
    /// What was echoed: 8192 bytes.
    pub(crate) const CANVAS: u64 = 1;
    /// None.
    pub(crate) const MISSING: u64 = 2;
    /// A page, whatever was asked for.
    pub(crate) const SHORT: u64 = 3;
    /// A pipe, which nobody can map.
    pub(crate) const PIPE: u64 = 4;
    /// There is no memory for it.
    pub(crate) const FULL: u64 = 5;
}

/// Fences of this ring are kept by the renderer itself.
pub(crate) const KEPT_RING: u8 = 9;
/// Contexts of this capability set are refused.
pub(crate) const REFUSED_CAPSET: u32 = 4;

type Call = (String, Option<Fence>);

pub(crate) struct Echo {
    calls: Sender<Call>,
    gate: Receiver<()>,
    name: &'static str,
    canvases: HashMap<u32, OwnedFd>,
    kept: Vec<Fence>,
    /// A renderer need not be `Send`.
    thread: Rc<ThreadId>,
}

/// The test's end.
pub(crate) struct Remote {
    calls: Receiver<Call>,
    gate: Sender<()>,
    /// Fences that the renderer was asked for, oldest first.
    pub(crate) fences: Vec<Fence>,
}

/// A renderer whose memfds have this name, and the test's end of it.
pub(crate) fn echo(name: &'static str) -> (impl FnOnce() -> io::Result<Echo> + Send + 'static, Remote) {
    let (tell, calls) = channel();
    let (open, gate) = channel();
    let factory = move || {
        let thread = Rc::new(std::thread::current().id());
        let (canvases, kept) = (HashMap::new(), Vec::new());
        Ok(Echo { calls: tell, gate, name, canvases, kept, thread })
    };
    (factory, Remote { calls, gate: open, fences: Vec::new() })
}

impl Remote {
    /// The next call, in words.
    #[track_caller]
    pub(crate) fn next(&mut self) -> String {
        let (text, fence) = self.calls.recv_timeout(DEADLINE).expect("a call of the renderer before the deadline");
        self.fences.extend(fence);
        text
    }

    /// Asserts what the next calls are.
    #[track_caller]
    pub(crate) fn expect(&mut self, calls: &[&str]) {
        let seen: Vec<String> = calls.iter().map(|_| self.next()).collect();
        assert_eq!(seen, calls);
    }

    /// Asserts that no call has come that was not expected.
    #[track_caller]
    pub(crate) fn expect_none(&mut self) {
        if let Ok((text, _)) = self.calls.try_recv() {
            panic!("the renderer was called: {text}");
        }
    }

    /// Waits for a fence, and hands it out; the calls before it are let go.
    #[track_caller]
    pub(crate) fn fence(&mut self) -> Fence {
        while self.fences.is_empty() {
            self.next();
        }
        self.fences.remove(0)
    }

    /// Lets a blocked call return.
    pub(crate) fn unblock(&self) {
        self.gate.send(()).expect("a renderer");
    }
}

impl Echo {
    fn tell(&self, text: String) {
        assert_eq!(*self.thread, std::thread::current().id(), "{text} on another thread");
        let _ = self.calls.send((text, None));
    }

    fn memfd(&self, len: u64) -> OwnedFd {
        let file = memfd_create(self.name, MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, len).expect("size");
        file
    }
}

impl Renderer for Echo {
    fn capsets(&self) -> Vec<Capset> {
        vec![
            Capset { id: 2, max_version: 1, data: b"the second".to_vec() },
            Capset { id: REFUSED_CAPSET, max_version: 0, data: vec![4; 300] },
            Capset { id: 5, max_version: 9, data: b"not the renderer's to offer".to_vec() },
        ]
    }

    fn create_context(&mut self, context: u32, capset: u32, name: &str) -> Result<(), RendererError> {
        self.tell(format!("create {context} of {capset} named {name}"));
        if capset == REFUSED_CAPSET {
            return Err(RendererError::Invalid("not today".into()));
        }
        self.canvases.insert(context, self.memfd(8192));
        Ok(())
    }

    fn destroy_context(&mut self, context: u32) {
        self.tell(format!("destroy {context}"));
        self.canvases.remove(&context);
    }

    fn attach_resource(&mut self, context: u32, resource: u32) {
        self.tell(format!("attach {resource} to {context}"));
    }

    fn detach_resource(&mut self, context: u32, resource: u32) {
        self.tell(format!("detach {resource} from {context}"));
    }

    fn submit(&mut self, context: u32, stream: &[u8]) -> Result<(), RendererError> {
        self.tell(format!("submit {} to {context}", String::from_utf8_lossy(stream)));
        match stream {
            // A test that has gone lets everybody go on.
            stream::BLOCK => drop(self.gate.recv()),
            // As a panic does, without its message on the terminal.
            stream::PANIC => std::panic::resume_unwind(Box::new("told to")),
            stream::BAD => return Err(RendererError::Invalid("a bad stream".into())),
            stream::FULL => return Err(RendererError::OutOfMemory("full".into())),
            echoed => {
                let canvas = self.canvases.get(&context);
                let canvas = canvas.ok_or_else(|| RendererError::Invalid("no such context".into()))?;
                rustix::io::pwrite(canvas, echoed, 0).expect("written");
            }
        }
        Ok(())
    }

    fn create_blob(&mut self, request: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        let BlobRequest { context, resource, blob_id, size, flags, .. } = *request;
        self.tell(format!("blob {resource} of {context}/{blob_id}, {size} bytes, flags {flags}"));
        match blob_id {
            object::CANVAS => Ok(self.canvases[&context].try_clone().expect("a duplicate").into()),
            object::SHORT => Ok(self.memfd(4096).into()),
            object::PIPE => Ok(OwnedFd::from(std::io::pipe().expect("a pipe").0).into()),
            object::FULL => Err(RendererError::OutOfMemory("full".into())),
            _ => Err(RendererError::Invalid("no such object".into())),
        }
    }

    fn destroy_resource(&mut self, resource: u32) {
        self.tell(format!("forget {resource}"));
    }

    fn fence(&mut self, context: u32, ring: Option<u8>, fence: Fence) {
        let ring_name = ring.map_or("none".into(), |ring| ring.to_string());
        let text = format!("fence of {context} on {ring_name}");
        if ring == Some(KEPT_RING) {
            self.tell(text);
            self.kept.push(fence);
        } else {
            let _ = self.calls.send((text, Some(fence)));
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.calls.send(("gone".into(), None));
    }
}
