//! One connection to a host service: messages in by credit, messages out through a bounded backlog.
//! The device task polls it as a stream; the socket is closed the moment its context lets go of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::buffer::HeldBuffer;
use crate::limits::{Charge, Ledger, Quota};
use crate::protocol::cross_domain::MAX_IDENTIFIERS;
use crate::sys::ring::Readiness;

/// What came from the host service.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message; one credit is used up.
    Message { data: Vec<u8>, files: Vec<OwnedFd> },
    /// The service has gone, or broke the rules; the socket is closed and nothing more will come.
    End { reason: io::Result<()> },
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the host service does not read: {backlog} bytes wait for it, and the channel is closed")]
    Backlog { backlog: usize },
    #[error("the channel is closed")]
    Closed,
}

/// A message, or the rest of one, that the socket has not taken yet.
struct Outgoing {
    data: Vec<u8>,
    sent: usize,
    buffers: Vec<Rc<HeldBuffer>>,
    _host_bytes: Charge,
}

/// What a channel may keep for a service that does not read.
pub(crate) struct Bounds {
    /// Most bytes of this channel.
    pub(crate) backlog: usize,
    /// What all channels together take of the host's memory.
    pub(crate) ledger: Rc<Ledger>,
}

struct Shared {
    socket: RefCell<Option<Readiness>>,
    backlog: RefCell<VecDeque<Outgoing>>,
    backlog_bytes: Cell<usize>,
    bounds: Bounds,
    credits: Cell<u32>,
    longest: usize,
    /// The channel was closed from this side and its context has not been told.
    overrun: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// The context's end of a channel; dropping it closes the socket.
pub(crate) struct ChannelHandle {
    shared: Rc<Shared>,
}

/// The device task's end: a stream of events under the tag that it was opened with.
pub(crate) struct Channel<T> {
    shared: Rc<Shared>,
    tag: T,
}

/// Makes a channel of a connected, non-blocking socket. Messages are read in pieces of at most `longest` bytes.
///
/// # Errors
/// Where the runtime cannot watch the socket.
pub(crate) fn open<T>(
    socket: OwnedFd,
    longest: usize,
    bounds: Bounds,
    tag: T,
) -> io::Result<(ChannelHandle, Channel<T>)> {
    let shared = Rc::new(Shared {
        socket: RefCell::new(Some(Readiness::new(socket)?)),
        backlog: RefCell::default(),
        backlog_bytes: Cell::new(0),
        bounds,
        credits: Cell::new(0),
        longest,
        overrun: Cell::new(false),
        waker: Cell::new(None),
    });
    Ok((ChannelHandle { shared: Rc::clone(&shared) }, Channel { shared, tag }))
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn close(&self) {
        self.socket.take();
        self.backlog.borrow_mut().clear();
        self.wake();
    }
}

impl ChannelHandle {
    /// Lets the service send one more message.
    pub(crate) fn credit(&self) {
        self.shared.credits.set(self.shared.credits.get() + 1);
        self.shared.wake();
    }

    /// Sends now what the socket takes now; the rest goes to the backlog.
    ///
    /// # Errors
    /// A closed channel, or a backlog that would grow past its limit: that closes the channel.
    pub(crate) fn send(&self, data: &[u8], mut buffers: Vec<Rc<HeldBuffer>>) -> Result<(), SendError> {
        let shared = &*self.shared;
        let mut rest = data;
        if shared.backlog.borrow().is_empty() {
            let socket = shared.socket.borrow();
            match send(socket.as_ref().ok_or(SendError::Closed)?.as_fd(), data, &buffers) {
                Ok(sent) if sent == data.len() => return Ok(()),
                Ok(sent) => {
                    buffers.clear();
                    rest = &data[sent..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The reading side finds out and ends the channel, after it has delivered what is still to be read.
                Err(_) => return Err(SendError::Closed),
            }
        }
        self.keep(rest, buffers)
    }

    fn keep(&self, data: &[u8], buffers: Vec<Rc<HeldBuffer>>) -> Result<(), SendError> {
        let shared = &*self.shared;
        let bytes = shared.backlog_bytes.get() + cost(data);
        let charge = shared.bounds.ledger.charge(Quota::HostBytes, cost(data) as u64);
        let Some(charge) = charge.ok().filter(|_| bytes <= shared.bounds.backlog) else {
            shared.overrun.set(true);
            shared.close();
            return Err(SendError::Backlog { backlog: shared.backlog_bytes.get() });
        };
        shared.backlog_bytes.set(bytes);
        let message = Outgoing { data: data.to_vec(), sent: 0, buffers, _host_bytes: charge };
        shared.backlog.borrow_mut().push_back(message);
        shared.wake();
        Ok(())
    }
}

impl Drop for ChannelHandle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<T: Copy + Unpin> Stream for Channel<T> {
    type Item = (T, Event);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let shared = &*self.shared;
        shared.waker.set(Some(cx.waker().clone()));
        let event = {
            let socket = shared.socket.borrow();
            let Some(socket) = socket.as_ref() else {
                let reason = Err(io::Error::other("the host service does not read"));
                return Poll::Ready(shared.overrun.take().then_some((self.tag, Event::End { reason })));
            };
            flush(shared, socket, cx);
            if shared.credits.get() == 0 {
                return Poll::Pending;
            }
            match socket.poll_read_with(cx, |file| receive(file, shared.longest)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some((data, files)))) => Event::Message { data, files },
                Poll::Ready(Ok(None)) => Event::End { reason: Ok(()) },
                Poll::Ready(Err(error)) => Event::End { reason: Err(error) },
            }
        };
        shared.credits.set(shared.credits.get() - 1);
        if let Event::End { .. } = event {
            shared.close();
        }
        Poll::Ready(Some((self.tag, event)))
    }
}

/// What a message in the backlog takes of the host's memory, its bookkeeping included.
fn cost(data: &[u8]) -> usize {
    data.len() + 256
}

/// Sends from the backlog what the socket takes. A socket that takes nothing any more empties it.
fn flush(shared: &Shared, socket: &Readiness, cx: &mut Context<'_>) {
    let mut backlog = shared.backlog.borrow_mut();
    while let Some(front) = backlog.front_mut() {
        let sent = socket.poll_write_with(cx, |file| send(file, &front.data[front.sent..], &front.buffers));
        match sent {
            Poll::Pending => return,
            Poll::Ready(Ok(sent)) => {
                front.buffers.clear();
                front.sent += sent;
                if front.sent == front.data.len() {
                    shared.backlog_bytes.set(shared.backlog_bytes.get() - cost(&front.data));
                    backlog.pop_front();
                }
            }
            Poll::Ready(Err(_)) => {
                backlog.clear();
                shared.backlog_bytes.set(0);
            }
        }
    }
}

fn send(socket: BorrowedFd<'_>, data: &[u8], buffers: &[Rc<HeldBuffer>]) -> io::Result<usize> {
    let files: Vec<BorrowedFd<'_>> = buffers.iter().map(|buffer| buffer.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_IDENTIFIERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("more descriptors than one message takes"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(data)], &mut control, flags)?)
}

/// One message; `None` at the end of the file. Descriptors that could not be received end the channel, because nobody
/// could tell which of them is missing.
fn receive(socket: BorrowedFd<'_>, longest: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
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
    // The kernel's room for 28 descriptors holds a 29th, for alignment's sake.
    if message.flags.contains(ReturnFlags::CTRUNC) || files.len() > MAX_IDENTIFIERS {
        return Err(io::Error::other("descriptors of a message were lost: more than 28, or no room in this process"));
    }
    data.truncate(message.bytes);
    Ok((!data.is_empty()).then_some((data, files)))
}
