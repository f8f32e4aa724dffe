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
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

use crate::protocol::features::SHM_ID_HOST_VISIBLE;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, version 1, no payload, no reply. The library has no call for it.
const CONFIG_CHANGED: [u32; 3] = [2, 1, 0];

/// A front-end that tells of its memory has done so by then.
const EFFECT: Duration = Duration::from_millis(50);
/// One that has not, so many times in a row, is not waited for any more.
const MOST_UNTOLD: u32 = 4;

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

/// What the front-end has agreed to be asked for.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Asks {
    /// To map blobs.
    pub(super) shmem: bool,
    /// To tell of a changed configuration.
    pub(super) config: bool,
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

/// What has become of a MAP. The front-end may say that it is done a moment before it is (QEMU 11.1 does): a guest that has been
/// told would read nothing there, and write to nowhere. What QEMU then tells of its memory comes when it is done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// None is asked for.
    #[default]
    None,
    Asked,
    Answered,
    Seen,
}

#[derive(Debug, Default)]
struct State {
    effect: Effect,
    /// How many MAPs in a row the front-end has not told of its memory after.
    untold: u32,
    flow: Flow,
    queue: VecDeque<Request>,
    /// Of the request that the front-end has.
    asker: Option<Asker>,
    /// The socket that the thread waits on, to end its waiting.
    socket: Option<UnixStream>,
    /// How many front-ends there have been.
    count: u64,
    asks: Asks,
    /// The files in the region, by offset.
    shown: HashMap<u64, FileId>,
    /// The file that the front-end is being asked to show, whether it is wanted any more or not.
    passing: Option<FileId>,
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
    /// It can be asked already, by another socket; the thread does not start; or no descriptor is left.
    pub(super) fn connect(self: &Arc<Self>, backend: Backend, socket: UnixStream, asks: Asks) -> io::Result<()> {
        // The library has no patience with one that does not wait.
        socket.set_nonblocking(false)?;
        let (wire, sender) = (Arc::clone(self), socket.try_clone()?);
        let mut state = self.lock();
        if state.socket.is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it has given a socket for that already"));
        }
        (state.socket, state.asks, state.untold) = (Some(socket), asks, 0);
        let count = state.count;
        std::thread::Builder::new()
            .name("virtio-gpu-ask".into())
            .spawn(move || wire.ask_all(count, &backend, &sender))?;
        Ok(())
    }

    /// There is no front-end any more: all that is asked of it is over.
    pub(super) fn disconnect(&self) {
        self.reset();
        let mut state = self.lock();
        (state.count, state.passing) = (state.count + 1, None);
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
        self.news.notify_all();
    }

    /// A driver is up: requests are sent.
    pub(super) fn release(&self) {
        self.lock().flow = Flow::Free;
        self.news.notify_all();
    }

    /// Whether the file is one that the front-end was asked to show.
    pub(super) fn shows(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        let id = file_id(file)?;
        let state = self.lock();
        Ok(state.passing == Some(id) || state.shown.values().any(|shown| *shown == id))
    }

    /// Asks for a range to show a file.
    ///
    /// # Errors
    /// There is nobody to ask, or no descriptor left.
    pub(super) fn map(&self, range: Range, file: BorrowedFd<'_>, writable: bool) -> io::Result<Answer> {
        let (asker, answer) = oneshot::channel();
        let (id, file) = (file_id(file)?, file.try_clone_to_owned()?);
        let mut state = self.lock();
        if state.socket.is_none() || !state.asks.shmem || state.flow == Flow::Void {
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

    /// Asks the front-end to tell the driver that the configuration has changed, once for all changes up to then.
    pub(super) fn config_changed(&self) {
        let state = self.lock();
        let waits = state.queue.iter().any(|request| matches!(request.what, What::ConfigChanged));
        if waits || !state.asks.config {
            return;
        }
        drop(state);
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
            if result.is_ok() && state.effect != Effect::None {
                state = self.take_effect(count, state);
            }
            if state.count != count {
                return;
            }
            state.effect = Effect::None;
            state.passing = None;
            match (state.asker.take(), what) {
                // Whoever has given up waiting has done so by dropping all that he wanted.
                (Some(asker), _) => drop(asker.send(result)),
                // The guest was reset meanwhile: nobody wants it any more.
                (None, What::Map { range, file, .. }) if result.is_ok() => {
                    state.passing = file_id(file.as_fd()).ok();
                    state.queue.push_front(Request { what: What::Unmap { range }, asker: None });
                }
                (None, _) => {}
            }
        }
    }

    /// Waits until a MAP that has been answered is done.
    fn take_effect<'a>(&'a self, count: u64, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let deadline = Instant::now() + EFFECT;
        if state.effect == Effect::Asked {
            state.effect = Effect::Answered;
        }
        let is_patient = |state: &State| state.count == count && state.flow == Flow::Free && state.untold < MOST_UNTOLD;
        while state.effect == Effect::Answered && is_patient(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.untold += 1;
                break;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// The front-end tells of its memory, of these files among others.
    pub(super) fn memory_changes<'a>(&self, mut files: impl Iterator<Item = BorrowedFd<'a>>) {
        let mut state = self.lock();
        // What it tells before its answer to a MAP is of something else, unless it is of that file: the answer may have been read
        // already.
        let passing = state.passing;
        let answered = match state.effect {
            Effect::Asked => {
                files.any(|file| passing.is_some() && file_id(file).ok() == passing)
                    || state.socket.as_ref().is_some_and(is_readable)
            }
            effect => effect == Effect::Answered,
        };
        if answered {
            (state.effect, state.untold) = (Effect::Seen, 0);
            self.news.notify_all();
        }
    }

    /// The next request for front-end number `count`; nothing where that has gone.
    fn next(&self, count: u64) -> Option<What> {
        let mut state = self.lock();
        while state.count == count {
            if state.flow == Flow::Free
                && let Some(Request { what, asker }) = state.queue.pop_front()
            {
                if let What::Map { range, .. } = &what {
                    state.passing = state.shown.get(&range.offset).copied();
                }
                state.effect = if matches!(what, What::Map { .. }) { Effect::Asked } else { Effect::None };
                state.asker = asker;
                return Some(what);
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

fn is_readable(socket: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&now)) == Ok(1)
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
