//! Where front-ends come from: a Unix socket of this program's own, or a descriptor that it was started with.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use virtio_gpu_uring::inherited_descriptor;

use super::{Failure, say};

/// Before a front-end is accepted that could not be.
const PAUSE: Duration = Duration::from_secs(1);

/// Front-ends to come.
pub(super) struct FrontEnds {
    source: Source,
    closed: Arc<AtomicBool>,
    name: String,
}

enum Source {
    Listener {
        listener: UnixListener,
        _file: Option<OwnSocket>,
    },
    /// The one that there is, until it is taken.
    Connected(RefCell<Option<UnixStream>>),
}

/// A socket's file that goes with this program.
struct OwnSocket(PathBuf);

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Whoever has removed it before has done what was to be done.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Ends the wait for front-ends.
pub(super) struct Closer {
    listener: Option<UnixListener>,
    closed: Arc<AtomicBool>,
}

impl Closer {
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(listener) = &self.listener {
            // A thread that accepts wakes up with an error.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
    }
}

impl FrontEnds {
    /// The socket at `path`, or the descriptor `fd`.
    ///
    /// # Errors
    /// It cannot be listened on.
    pub(super) fn open(path: Option<&Path>, fd: Option<i32>) -> Result<Self, Failure> {
        let (source, name) = match (path, fd) {
            (Some(path), _) => {
                let at = |error: io::Error| Failure::unusable(format!("{}: {error}", path.display()));
                let listener = listen(path).map_err(at)?;
                (Source::Listener { listener, _file: Some(OwnSocket(path.into())) }, path.display().to_string())
            }
            (None, Some(fd)) => {
                let at = |error: io::Error| Failure::unusable(format!("descriptor {fd}: {error}"));
                (inherited(fd).map_err(at)?, format!("descriptor {fd}"))
            }
            (None, None) => return Err(Failure::unusable("neither a socket nor a descriptor")),
        };
        Ok(Self { source, closed: Arc::default(), name })
    }

    /// Waits for the next front-end; nothing where none is to come.
    ///
    /// # Errors
    /// The socket cannot be listened on any more.
    pub(super) fn next(&self) -> io::Result<Option<UnixStream>> {
        let is_closed = || self.closed.load(Ordering::Acquire);
        match &self.source {
            Source::Connected(front_end) => Ok(front_end.take().filter(|_| !is_closed())),
            Source::Listener { listener, .. } => loop {
                match listener.accept() {
                    _ if is_closed() => return Ok(None),
                    Ok((front_end, _)) => return Ok(Some(front_end)),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) if is_want(&error) => {
                        say(&format!("a front-end has to wait: {error}"));
                        std::thread::sleep(PAUSE);
                    }
                    Err(error) => return Err(error),
                }
            },
        }
    }

    /// For another thread, to end the wait.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn closer(&self) -> io::Result<Closer> {
        let listener = match &self.source {
            Source::Listener { listener, .. } => Some(listener.try_clone()?),
            Source::Connected(_) => None,
        };
        Ok(Closer { listener, closed: Arc::clone(&self.closed) })
    }
}

impl fmt::Display for FrontEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Whether something was wanting that may be there again soon: descriptors, memory.
fn is_want(error: &io::Error) -> bool {
    let want = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|number| want.iter().any(|want| want.raw_os_error() == number))
}

/// Listens at a path, in place of a socket that nobody listens on any more.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

fn inherited(fd: i32) -> io::Result<Source> {
    let socket: OwnedFd = inherited_descriptor(fd)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(if socket_acceptconn(&socket)? {
        Source::Listener { listener: socket.into(), _file: None }
    } else {
        Source::Connected(RefCell::new(Some(socket.into())))
    })
}
