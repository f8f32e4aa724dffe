//! One front-end's connection: its messages one after the other, until it leaves, is stopped, or says what makes no sense.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::VhostUserSettings;
use super::front::Front;
use super::memory::SharedGuestMemory;
use super::wire::Wire;
use crate::device::{Device, DeviceGone};

/// Why a front-end was cut off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CutOff {
    /// It has sent what makes no sense, or what cannot be served.
    #[error("{request}: {reason}")]
    Message {
        /// The message, by its name in the vhost-user specification.
        request: String,
        /// What was wrong.
        reason: String,
    },
    /// Its socket cannot be read.
    #[error("its socket: {0}")]
    Socket(#[from] io::Error),
    /// Not its fault: the device has ended, and serves nobody any more.
    #[error(transparent)]
    Gone(#[from] DeviceGone),
}

/// What a [`Stopper`] stops.
#[derive(Debug, Default)]
struct Stoppable {
    stopped: bool,
    socket: Option<UnixStream>,
}

/// Ends [`VhostUserServer::serve`](super::VhostUserServer::serve) from another thread, and every later call at once.
#[derive(Debug, Clone, Default)]
pub struct Stopper(Arc<Mutex<Stoppable>>);

impl Stopper {
    /// Cuts the front-end off, if there is one, without a word.
    pub fn stop(&self) {
        let mut stoppable = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stoppable.stopped = true;
        if let Some(socket) = stoppable.socket.take() {
            // One that is gone needs no farewell.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Takes note of a connection; false where it is not to be served any more.
    fn takes(&self, socket: Option<UnixStream>) -> bool {
        let mut stoppable = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stoppable.socket = socket;
        !stoppable.stopped
    }
}

/// Serves one front-end.
///
/// # Errors
/// See [`CutOff`].
pub(super) fn serve(
    device: &Device<SharedGuestMemory>,
    settings: VhostUserSettings,
    wire: &Arc<Wire>,
    stopper: &Stopper,
    front_end: UnixStream,
) -> Result<(), CutOff> {
    front_end.set_nonblocking(false)?;
    let socket = front_end.try_clone()?;
    if !stopper.takes(Some(front_end.try_clone()?)) {
        return Ok(());
    }
    let front = Arc::new(Mutex::new(Front::new(device, settings, Arc::clone(wire))));
    let mut handler = BackendReqHandler::from_stream(front_end, Arc::clone(&front));
    let served = messages(&mut handler, &front, &socket);
    stopper.takes(None);
    // The front-end sees its connection closed before the device is quiet, and need not wait for that.
    drop(handler);
    drop(socket);
    if let Some(front) = Arc::into_inner(front) {
        front.into_inner().unwrap_or_else(PoisonError::into_inner).leave()?;
    }
    served
}

/// Takes message after message.
fn messages(
    handler: &mut BackendReqHandler<Mutex<Front<'_>>>,
    front: &Mutex<Front<'_>>,
    socket: &UnixStream,
) -> Result<(), CutOff> {
    let lock = || front.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let message = match Message::ahead(socket) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Message { code, needs_reply, brings } = message;
        {
            let mut front = lock();
            (front.brought, front.answered) = (brings, needs_reply);
        }
        match handler.handle_request() {
            Ok(()) => {}
            Err(_) if std::mem::take(&mut lock().goes_on) => {}
            Err(Error::Disconnected | Error::SocketBroken(_)) => return Ok(()),
            Err(error) => return Err(CutOff::Message { request: name(code), reason: reason(&error) }),
        }
        let mut front = lock();
        front.brought = None;
        if let Some(reason) = front.failed.take() {
            return Err(CutOff::Message { request: name(code), reason });
        }
    }
}

fn reason(error: &Error) -> String {
    match error {
        Error::ReqHandlerError(reason) => reason.to_string(),
        other => other.to_string(),
    }
}

/// The name of a message.
fn name(code: u32) -> String {
    FrontendReq::try_from(code).map_or_else(|_| format!("message {code}"), |known| format!("{known:?}"))
}

/// A message that has not been received yet.
struct Message {
    /// The first word of its header.
    code: u32,
    /// The front-end waits for how it goes.
    needs_reply: bool,
    /// A second descriptor of the socket that it brings. The library keeps the one that it receives to itself, where no thread
    /// that waits for an answer can be woken any more.
    brings: Option<UnixStream>,
}

impl Message {
    /// Waits for the next message and looks at it; nothing where none comes any more.
    fn ahead(socket: &UnixStream) -> io::Result<Option<Self>> {
        let mut header = [0; 8];
        let seen = peek(socket, &mut header, &mut RecvAncillaryBuffer::default())?;
        if seen == 0 {
            return Ok(None);
        }
        let [code, flags] =
            [[0, 1, 2, 3], [4, 5, 6, 7]].map(|word| u32::from_ne_bytes(word.map(|byte: usize| header[byte])));
        let needs_reply = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        let brings_socket = [FrontendReq::SET_BACKEND_REQ_FD, FrontendReq::GPU_SET_SOCKET].map(|known| known as u32);
        let brings = if brings_socket.contains(&code) { brought(socket)? } else { None };
        Ok(Some(Self { code, needs_reply, brings }))
    }
}

/// The first descriptor that comes with the next message, where it is a socket.
fn brought(socket: &UnixStream) -> io::Result<Option<UnixStream>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    peek(socket, &mut [0; 4], &mut ancillary)?;
    let files: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    // Whether it is a stream of the right family is the library's to check.
    Ok(files.into_iter().next().map(UnixStream::from))
}

fn peek(socket: &UnixStream, bytes: &mut [u8], ancillary: &mut RecvAncillaryBuffer<'_>) -> io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let received =
        rustix::io::retry_on_intr(|| recvmsg(socket.as_fd(), &mut [IoSliceMut::new(bytes)], ancillary, flags))?;
    Ok(received.bytes)
}
