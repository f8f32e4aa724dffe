//! One connection to a host service, and what else of the host its context listens to: messages, wake-ups and contents of
//! pipes come in by credit and in turns, so that a service that talks a lot delays no wake-up. What goes out waits in bounded
//! backlogs. The device task polls it as a stream; the socket is closed the moment its context lets go of it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use futures_util::stream::SelectAll;
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};

use super::backlog::{Backlog, Bounds, Full};
use super::pipe::WritePipe;
use super::readable::{Read, Readable, Reader};
use crate::buffer::{Closer, HeldBuffer};
use crate::limits::Charge;
use crate::protocol::cross_domain::{MAX_IDENTIFIERS, ReadWrite, SendReceive};
use crate::sys::ring::Readiness;

/// What came from the host.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message of the service; one credit is used up.
    Message { data: Vec<u8>, files: Vec<OwnedFd> },
    /// An eventfd was written, or a pipe, or nobody will write the pipe any more; one credit is used up.
    Read(Read),
    /// The service has gone, or broke the rules; the socket is closed and nothing more will come.
    End { reason: io::Result<()> },
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the host service does not read: {backlog} bytes wait for it, and the channel is closed")]
    Backlog { backlog: usize },
    #[error("the host has no room for the message: {0}")]
    NoRoom(Errno),
    #[error("the channel is closed")]
    Closed,
}

/// A descriptor that goes with a message.
pub(crate) enum Sent {
    Buffer(Rc<HeldBuffer>),
    /// The end of a pipe that the service is to write. Here it closes when it has been sent.
    Pipe {
        file: OwnedFd,
        _fd: Charge,
    },
}

impl AsFd for Sent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Buffer(buffer) => buffer.as_fd(),
            Self::Pipe { file, .. } => file.as_fd(),
        }
    }
}

/// Why a channel was closed from this side, which its context has not been told.
#[derive(Debug, Clone, Copy)]
enum Closing {
    Overrun,
    HungUp,
}

struct Shared {
    socket: RefCell<Option<Readiness>>,
    backlog: Backlog<Vec<Sent>>,
    credits: Cell<u32>,
    ring: usize,
    closing: Cell<Option<Closing>>,
    waker: Cell<Option<Waker>>,
    /// What is to be read from now on.
    readers: RefCell<Vec<Reader>>,
    /// Pipes that have more to write.
    writers: RefCell<Vec<Rc<WritePipe>>>,
    closer: Rc<Closer>,
}

/// The context's end of a channel; dropping it closes the socket.
pub(crate) struct ChannelHandle {
    shared: Rc<Shared>,
}

/// The device task's end: a stream of events under the tag that it was opened with.
pub(crate) struct Channel<T> {
    shared: Rc<Shared>,
    tag: T,
    readers: SelectAll<Reader>,
    /// Whose turn it is.
    socket_first: bool,
}

/// Makes a channel of a connected, non-blocking socket, for messages that a ring of `ring` bytes holds.
///
/// # Errors
/// Where the runtime cannot watch the socket.
pub(crate) fn open<T>(
    socket: OwnedFd,
    ring: usize,
    bounds: Bounds,
    closer: Rc<Closer>,
    tag: T,
) -> io::Result<(ChannelHandle, Channel<T>)> {
    let shared = Rc::new(Shared {
        socket: RefCell::new(Some(Readiness::new(socket)?)),
        backlog: Backlog::new(bounds),
        credits: Cell::new(0),
        ring,
        closing: Cell::new(None),
        waker: Cell::new(None),
        readers: RefCell::default(),
        writers: RefCell::default(),
        closer,
    });
    let channel = Channel { shared: Rc::clone(&shared), tag, readers: SelectAll::new(), socket_first: true };
    Ok((ChannelHandle { shared }, channel))
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The service sees the end at once. What it has sent and nobody has read goes elsewhere: its last close may take long.
    fn close(&self) {
        if let Some(socket) = self.socket.take().map(Readiness::into_inner) {
            // One that is not connected any more has nothing to be told.
            let _ = shutdown(&socket, Shutdown::Both);
            if ioctl_fionread(&socket) != Ok(0) {
                self.closer.discard(socket);
            }
        }
        self.backlog.clear();
        self.readers.take();
        self.writers.take();
        self.wake();
    }

    /// Sends what the service and the readers of pipes take now.
    ///
    /// # Errors
    /// The host has no room for a message that was taken already: without it the stream would have a gap.
    fn flush(&self, socket: &Readiness, cx: &mut Context<'_>) -> io::Result<()> {
        self.writers.borrow_mut().retain(|pipe| pipe.poll_flush(cx).is_pending());
        let flushed = self.backlog.poll_flush(|data, with| {
            socket.poll_write_with(cx, |file| send(file, data, with)).map_ok(|sent| {
                with.clear();
                sent
            })
        });
        match flushed {
            // One that takes nothing any more is found out by reading, after what is still to be read.
            Poll::Ready(Err(error)) if !has_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

impl ChannelHandle {
    /// Lets the host send one more message.
    pub(crate) fn credit(&self) {
        self.shared.credits.set(self.shared.credits.get() + 1);
        self.shared.wake();
    }

    /// Sends now what the socket takes now; the rest goes to the backlog.
    ///
    /// # Errors
    /// A closed channel; no room in the host, with nothing sent; or a backlog that would grow past its limit: that closes the
    /// channel.
    pub(crate) fn send(&self, data: &[u8], mut with: Vec<Sent>) -> Result<(), SendError> {
        let shared = &*self.shared;
        let mut rest = data;
        if shared.backlog.is_empty() {
            let socket = shared.socket.borrow();
            match send(socket.as_ref().ok_or(SendError::Closed)?.as_fd(), data, &with) {
                Ok(sent) if sent == data.len() => return Ok(()),
                Ok(sent) => {
                    with.clear();
                    rest = &data[sent..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The reading side finds out and ends the channel, after it has delivered what is still to be read.
                Err(error) if has_gone(&error) => return Err(SendError::Closed),
                Err(error) => return Err(SendError::NoRoom(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
            }
        }
        match shared.backlog.room(rest.len(), with.len()) {
            Ok(room) => shared.backlog.keep(rest, with, room),
            Err(Full { backlog }) => {
                self.end(Closing::Overrun);
                return Err(SendError::Backlog { backlog });
            }
        }
        shared.wake();
        Ok(())
    }

    /// Reads an eventfd or a pipe from now on, as credits allow.
    ///
    /// # Errors
    /// It is read already, or the runtime cannot watch it.
    pub(crate) fn watch(&self, id: u32, readable: &Rc<Readable>) -> io::Result<()> {
        let longest = self.shared.ring - size_of::<ReadWrite>();
        self.shared.readers.borrow_mut().push(readable.watch(id, longest)?);
        self.shared.wake();
        Ok(())
    }

    /// Writes the rest of what a pipe has taken as the pipe takes it.
    pub(crate) fn flush(&self, pipe: &Rc<WritePipe>) {
        let mut writers = self.shared.writers.borrow_mut();
        if !writers.iter().any(|other| Rc::ptr_eq(other, pipe)) {
            writers.push(Rc::clone(pipe));
        }
        drop(writers);
        self.shared.wake();
    }

    /// Closes the socket at once, and says whether it was open; the guest hears of it when its channel is polled next.
    pub(crate) fn hang_up(&self) -> bool {
        let open = self.shared.socket.borrow().is_some();
        if open {
            self.end(Closing::HungUp);
        }
        open
    }

    fn end(&self, closing: Closing) {
        self.shared.closing.set(Some(closing));
        self.shared.close();
    }
}

impl Drop for ChannelHandle {
    fn drop(&mut self) {
        self.shared.closing.set(None);
        self.shared.close();
    }
}

impl<T: Copy + Unpin> Stream for Channel<T> {
    type Item = (T, Event);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let shared = Rc::clone(&self.shared);
        shared.waker.set(Some(cx.waker().clone()));
        let event = {
            let socket = shared.socket.borrow();
            let Some(socket) = socket.as_ref() else {
                let reason = shared.closing.take().map(|closing| match closing {
                    Closing::Overrun => Err(io::Error::other("the host service does not read")),
                    Closing::HungUp => Ok(()),
                });
                return Poll::Ready(reason.map(|reason| (self.tag, Event::End { reason })));
            };
            let flushed = shared.flush(socket, cx);
            self.readers.extend(shared.readers.take());
            match flushed {
                Err(error) => Event::End { reason: Err(error) },
                Ok(()) if shared.credits.get() == 0 => return Poll::Pending,
                Ok(()) => match self.poll_event(socket, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(event) => event,
                },
            }
        };
        shared.credits.set(shared.credits.get().saturating_sub(1));
        if let Event::End { .. } = event {
            shared.close();
        }
        Poll::Ready(Some((self.tag, event)))
    }
}

impl<T> Channel<T> {
    /// The next event: the socket and all others take turns where both have something, and these among themselves.
    fn poll_event(&mut self, socket: &Readiness, cx: &mut Context<'_>) -> Poll<Event> {
        for _ in 0..2 {
            let polled = if self.socket_first { self.shared.poll_socket(socket, cx) } else { self.poll_reader(cx) };
            self.socket_first = !self.socket_first;
            if polled.is_ready() {
                return polled;
            }
        }
        Poll::Pending
    }

    fn poll_reader(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match Pin::new(&mut self.readers).poll_next(cx) {
            Poll::Ready(Some(read)) => Poll::Ready(Event::Read(read)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Shared {
    /// The service's next message. Descriptors that could not be received end the channel, because nobody could tell which
    /// of them is missing.
    fn poll_socket(&self, socket: &Readiness, cx: &mut Context<'_>) -> Poll<Event> {
        let longest = self.ring - size_of::<SendReceive>();
        socket.poll_read_with(cx, |file| receive(file, longest)).map(|received| match received {
            Ok(Received { files, lost: true, .. }) => {
                files.into_iter().for_each(|file| self.closer.discard(file));
                let lost = "descriptors of a message were lost: more than 28, or no room in this process";
                Event::End { reason: Err(io::Error::other(lost)) }
            }
            Ok(Received { data, .. }) if data.is_empty() => Event::End { reason: Ok(()) },
            Ok(Received { data, files, .. }) => Event::Message { data, files },
            Err(error) => Event::End { reason: Err(error) },
        })
    }
}

/// Whether a peer has closed its end.
fn has_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected)
}

fn send(socket: BorrowedFd<'_>, data: &[u8], with: &[Sent]) -> io::Result<usize> {
    let files: Vec<BorrowedFd<'_>> = with.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_IDENTIFIERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("more descriptors than one message takes"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(data)], &mut control, flags)?)
}

/// What one call has received.
struct Received {
    /// Nothing at the end of the file.
    data: Vec<u8>,
    files: Vec<OwnedFd>,
    /// There were more descriptors.
    lost: bool,
}

fn receive(socket: BorrowedFd<'_>, longest: usize) -> io::Result<Received> {
    let mut data = vec![0; longest];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_IDENTIFIERS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut data)], &mut control, flags)?;
    let mut files = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            files.extend(rights);
        }
    }
    data.truncate(message.bytes);
    // The kernel's room for 28 descriptors holds a 29th, for alignment's sake.
    let lost = message.flags.contains(ReturnFlags::CTRUNC) || files.len() > MAX_IDENTIFIERS;
    Ok(Received { data, files, lost })
}
