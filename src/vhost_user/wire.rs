//! What the device asks of its front-end: to map blobs into the guest, to take them back, to tell the driver of changes. Each
//! is a message that the front-end answers when it likes, so a thread of its own sends them and waits, and nobody else.
//!
//! A front-end is asked only while it has a driver up: QEMU 11.1 does not survive being asked between a stop and a start. And
//! with a device's reset it forgets by itself what it was asked for (vhost-user's specification), so then nothing is.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

use crate::protocol::features::SHM_ID_HOST_VISIBLE;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, version 1, no payload, no reply. The library has no call for it.
const CONFIG_CHANGED: [u32; 3] = [2, 1, 0];

/// A file, whoever has it open.
type FileId = (u64, u64);
/// The front-end's answer to a request; none comes where the front-end has gone, or its guest has been reset.
pub(super) type Answer = oneshot::Receiver<io::Result<()>>;

/// A range of the region, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Range {
    fn message(self, flags: VhostUserMMapFlags) -> VhostUserMMap {
        VhostUserMMap {
            shmid: SHM_ID_HOST_VISIBLE,
            shm_offset: self.offset,
            len: self.len,
            flags: flags.bits(),
            ..Default::default()
        }
    }
}

/// Whoever waits for an answer.
type Asker = oneshot::Sender<io::Result<()>>;

#[derive(Debug)]
enum What {
    Map { range: Range, file: OwnedFd, writable: bool },
    Unmap { range: Range },
    ConfigChanged,
}

#[derive(Debug)]
struct Request {
    what: What,
    asker: Option<Asker>,
}

/// Whether requests go to the front-end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// None is made: there is no front-end, or its guest is being reset.
    #[default]
    Void,
    /// They wait for a driver.
    Held,
    Free,
}

#[derive(Debug, Default)]
struct State {
    flow: Flow,
    queue: VecDeque<Request>,
    /// Of the request that the front-end has.
    asker: Option<Asker>,
    /// The socket that the thread waits on, to end its waiting.
    socket: Option<UnixStream>,
    /// How many front-ends there have been.
    count: u64,
    /// The front-end maps blobs.
    shmem: bool,
    /// The files in the region, by offset.
    shown: HashMap<u64, FileId>,
}

/// The way to whatever front-end there is, and what it shows of the device's.
#[derive(Debug, Default)]
pub(super) struct Wire {
    state: Mutex<State>,
    /// There is a request, or the front-end has gone.
    news: Condvar,
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a front-end that can be asked, once it has a driver. `backend` speaks by `socket`.
    ///
    /// # Errors
    /// The thread does not start, or no descriptor is left.
    pub(super) fn connect(self: &Arc<Self>, backend: Backend, socket: UnixStream, shmem: bool) -> io::Result<()> {
        self.disconnect();
        let (wire, sender) = (Arc::clone(self), socket.try_clone()?);
        let mut state = self.lock();
        (state.socket, state.shmem) = (Some(socket), shmem);
        let count = state.count;
        std::thread::Builder::new().name("virtio-gpu-ask".into()).spawn(move || wire.ask_all(count, &backend, &sender))?;
        Ok(())
    }

    /// There is no front-end any more: all that is asked of it is over.
    pub(super) fn disconnect(&self) {
        self.reset();
        let mut state = self.lock();
        state.count += 1;
        if let Some(socket) = state.socket.take() {
            // One that is gone needs no farewell.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.news.notify_all();
    }

    /// The guest is reset: the front-end shows nothing any more, and nobody waits for its answers.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.flow = Flow::Void;
        state.queue.clear();
        state.shown.clear();
        state.asker = None;
    }

    /// Requests wait from now on.
    pub(super) fn hold(&self) {
        self.lock().flow = Flow::Held;
    }

    /// A driver is up: requests are sent.
    pub(super) fn release(&self) {
        self.lock().flow = Flow::Free;
        self.news.notify_all();
    }

    /// Whether the file is one that the front-end was asked to show.
    pub(super) fn shows(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        let id = file_id(file)?;
        Ok(self.lock().shown.values().any(|shown| *shown == id))
    }

    /// Asks for a range to show a file.
    ///
    /// # Errors
    /// There is nobody to ask, or no descriptor left.
    pub(super) fn map(&self, range: Range, file: BorrowedFd<'_>, writable: bool) -> io::Result<Answer> {
        let (asker, answer) = oneshot::channel();
        let (id, file) = (file_id(file)?, file.try_clone_to_owned()?);
        let mut state = self.lock();
        if state.socket.is_none() || !state.shmem || state.flow == Flow::Void {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "there is no front-end that maps blobs"));
        }
        state.shown.insert(range.offset, id);
        state.queue.push_back(Request { what: What::Map { range, file, writable }, asker: Some(asker) });
        self.news.notify_all();
        Ok(answer)
    }

    /// Asks for a range back.
    pub(super) fn unmap(&self, range: Range) -> Answer {
        let (asker, answer) = oneshot::channel();
        self.push(Request { what: What::Unmap { range }, asker: Some(asker) });
        answer
    }

    /// Asks for a range back where nobody can wait for the answer.
    pub(super) fn unmap_unheard(&self, range: Range) {
        self.push(Request { what: What::Unmap { range }, asker: None });
    }

    /// A range shows nothing any more, as far as is known.
    pub(super) fn shows_nothing(&self, range: Range) {
        self.lock().shown.remove(&range.offset);
    }

    /// Asks the front-end to tell the driver that the configuration has changed.
    pub(super) fn config_changed(&self) {
        self.push(Request { what: What::ConfigChanged, asker: None });
    }

    /// Where there is nobody to ask, the request is dropped, and with it the answer's other end.
    fn push(&self, request: Request) {
        let mut state = self.lock();
        if state.socket.is_some() && state.flow != Flow::Void {
            state.queue.push_back(request);
            self.news.notify_all();
        }
    }

    /// The thread: asks front-end number `count` for one thing after the other, until it has gone.
    fn ask_all(&self, count: u64, backend: &Backend, socket: &UnixStream) {
        while let Some(what) = self.next(count) {
            let result = ask(backend, socket, &what);
            let mut state = self.lock();
            if state.count != count {
                return;
            }
            match (state.asker.take(), what) {
                // Whoever has given up waiting has done so by dropping all that he wanted.
                (Some(asker), _) => drop(asker.send(result)),
                // The guest was reset meanwhile: nobody wants it any more.
                (None, What::Map { range, .. }) if result.is_ok() => {
                    state.queue.push_front(Request { what: What::Unmap { range }, asker: None });
                }
                (None, _) => {}
            }
        }
    }

    /// The next request for front-end number `count`; nothing where that has gone.
    fn next(&self, count: u64) -> Option<What> {
        let mut state = self.lock();
        while state.count == count {
            if state.flow == Flow::Free
                && let Some(Request { what, asker }) = state.queue.pop_front()
            {
                state.asker = asker;
                return Some(what);
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

fn file_id(file: BorrowedFd<'_>) -> io::Result<FileId> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Sends one request and waits for what the front-end says.
fn ask(backend: &Backend, socket: &UnixStream, what: &What) -> io::Result<()> {
    match what {
        What::Map { range, file, writable } => {
            let flags = if *writable { VhostUserMMapFlags::WRITABLE } else { VhostUserMMapFlags::empty() };
            backend.shmem_map(&range.message(flags), file).map(drop)
        }
        What::Unmap { range } => backend.shmem_unmap(&range.message(VhostUserMMapFlags::empty())).map(drop),
        What::ConfigChanged => {
            let message: Vec<u8> = CONFIG_CHANGED.iter().flat_map(|word| word.to_ne_bytes()).collect();
            Ok(rustix::net::send(socket.as_fd(), &message, rustix::net::SendFlags::NOSIGNAL).map(drop)?)
        }
    }
}
