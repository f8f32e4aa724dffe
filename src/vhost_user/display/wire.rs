//! The messages of the display socket, as QEMU's document "vhost-user-gpu" describes them, and the socket itself: every answer is
//! held against its question, and no wait outlives the socket.
//!
//! `vhost` has these messages too, but takes the size of an answer from itself, not from the answer, and cannot wait for the
//! front-end and for something else at once.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::display::MonitorError;
use crate::protocol::wire::MAX_SCANOUTS;

/// `VHOST_USER_GPU_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    GetProtocolFeatures = 1,
    SetProtocolFeatures = 2,
    GetDisplayInfo = 3,
    CursorPos = 4,
    CursorPosHide = 5,
    CursorUpdate = 6,
    Scanout = 7,
    Update = 8,
    DmabufScanout = 9,
    DmabufUpdate = 10,
    GetEdid = 11,
    DmabufScanout2 = 12,
}

/// `VHOST_USER_GPU_PROTOCOL_F_EDID`: GET_EDID is answered.
pub(super) const EDID: u64 = 1 << 0;
/// `VHOST_USER_GPU_PROTOCOL_F_DMABUF2`: DMABUF_SCANOUT2 is understood.
pub(super) const DMABUF2: u64 = 1 << 1;

/// The bit of a header's flags that an answer has.
pub(super) const REPLY: u32 = 1 << 2;

/// What every message begins with. All numbers are in the machine's own order of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    /// Bytes that follow.
    pub(super) size: u32,
}

/// A scanout is of this size, or off where a side is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Scanout {
    pub(super) scanout: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// Part of a scanout is new; in UPDATE its pixels follow, x8r8g8b8 words without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Update {
    pub(super) scanout: u32,
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// A scanout lies in the dma-buf that comes with the message, or in none any more where nothing comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DmabufScanout {
    pub(super) scanout: u32,
    /// The part of the dma-buf's picture that is shown.
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    /// The whole of it.
    pub(super) fd_width: u32,
    pub(super) fd_height: u32,
    pub(super) fd_stride: u32,
    /// 0: the first row is the upper one, as it is in everything that a guest scans out by itself.
    pub(super) fd_flags: u32,
    pub(super) fd_drm_fourcc: u32,
}

/// The same, and how the exporter lays its pixels out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DmabufScanout2 {
    pub(super) scanout: DmabufScanout,
    pub(super) modifier: u64,
}

/// The cursor's place. The numbers are signed, whatever the document calls them: a cursor may hang over the left edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CursorPos {
    pub(super) scanout: u32,
    pub(super) x: i32,
    pub(super) y: i32,
}

/// The cursor's image: 64 by 64 words follow, a8r8g8b8 with alpha multiplied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CursorUpdate {
    pub(super) pos: CursorPos,
    pub(super) hot_x: u32,
    pub(super) hot_y: u32,
}

/// One of a front-end's displays.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DisplayOne {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) enabled: u32,
    pub(super) flags: u32,
}

/// The answer to GET_DISPLAY_INFO: virtio's, with its header, which says nothing here.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DisplayInfo {
    pub(super) header: [u32; 6],
    pub(super) displays: [DisplayOne; MAX_SCANOUTS],
}

/// The answer to GET_EDID, likewise.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Edid {
    pub(super) header: [u32; 6],
    pub(super) size: u32,
    pub(super) padding: u32,
    pub(super) edid: [u8; 1024],
}

/// Why a front-end's displays are not served any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the displays are not wanted any more")]
    Over,
    #[error("the front-end has closed the display socket")]
    Closed,
    #[error("the front-end has closed the display socket in the middle of its answer to {asked:?}")]
    Torn { asked: Request },
    #[error("the display socket: {0}")]
    Socket(#[from] Errno),
    #[error("the front-end answers {asked:?} with request {request}, flags {flags:#x}")]
    Answer { asked: Request, request: u32, flags: u32 },
    #[error("the front-end answers {asked:?} with {size} bytes, {wanted} are due")]
    Size { asked: Request, size: u32, wanted: usize },
    #[error("the front-end sends descriptors where none are due")]
    Descriptors,
    #[error("the front-end sends what nobody has asked for")]
    Unasked,
    #[error("the front-end's display {scanout} cannot be told to a guest: {error}")]
    Monitor { scanout: u32, error: MonitorError },
}

/// The socket. What waits on it waits until it is shut down, at the latest.
pub(super) struct Link(UnixStream);

impl Link {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(socket)
    }

    /// Says to the front-end that it is over, whoever has the socket open besides.
    pub(super) fn shut_down(&self) {
        // A front-end that is gone need not hear it.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Sends a message without an answer.
    pub(super) fn tell(&self, request: Request, body: &(impl IntoBytes + Immutable)) -> Result<(), LinkError> {
        self.send(&message(request, body.as_bytes()), None)
    }

    /// The same with a descriptor.
    pub(super) fn hand(
        &self,
        request: Request,
        body: &(impl IntoBytes + Immutable),
        file: BorrowedFd<'_>,
    ) -> Result<(), LinkError> {
        self.send(&message(request, body.as_bytes()), Some(file))
    }

    /// Sends a message and waits for its answer.
    pub(super) fn ask<A: FromBytes + IntoBytes>(&self, request: Request, body: &[u8]) -> Result<A, LinkError> {
        self.send(&message(request, body), None)?;
        let mut header = Header::new_zeroed();
        self.receive(request, header.as_mut_bytes(), true)?;
        let Header { request: answered, flags, size } = header;
        if answered != request as u32 || flags & REPLY == 0 {
            return Err(LinkError::Answer { asked: request, request: answered, flags });
        }
        if size as usize != size_of::<A>() {
            return Err(LinkError::Size { asked: request, size, wanted: size_of::<A>() });
        }
        let mut answer = A::new_zeroed();
        self.receive(request, answer.as_mut_bytes(), false)?;
        Ok(answer)
    }

    /// Sends a whole message; the descriptor goes with its first byte.
    pub(super) fn send(&self, message: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), LinkError> {
        let files = file.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut sent = 0;
        while sent < message.len() {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !files.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(files));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.0, &[IoSlice::new(&message[sent..])], &mut control, flags) {
                Ok(len) => sent += len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_for(PollFlags::OUT)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Fills `bytes`, the beginning of an answer or what follows it.
    fn receive(&self, asked: Request, bytes: &mut [u8], first: bool) -> Result<(), LinkError> {
        let mut have = 0;
        while have < bytes.len() {
            match self.take(&mut bytes[have..])? {
                Some(0) if first && have == 0 => return Err(LinkError::Closed),
                Some(0) => return Err(LinkError::Torn { asked }),
                Some(len) => have += len,
                None => self.wait_for(PollFlags::IN)?,
            }
        }
        Ok(())
    }

    /// Takes what is there; `None` where nothing is, 0 where nothing will be.
    fn take(&self, bytes: &mut [u8]) -> Result<Option<usize>, LinkError> {
        // There is no room for descriptors: the kernel closes what comes, and says so.
        let mut control = RecvAncillaryBuffer::new(&mut []);
        match recvmsg(&self.0, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::DONTWAIT) {
            Ok(received) if received.flags.contains(ReturnFlags::CTRUNC) => Err(LinkError::Descriptors),
            Ok(received) => Ok(Some(received.bytes)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::CONNRESET) => Ok(Some(0)),
            Err(error) => Err(error.into()),
        }
    }

    fn wait_for(&self, flags: PollFlags) -> Result<(), LinkError> {
        wait(&mut [PollFd::new(&self.0, flags)])
    }

    /// Waits until `bell` can be read.
    ///
    /// # Errors
    /// The front-end has gone, or says something by itself.
    pub(super) fn idle(&self, bell: impl AsFd) -> Result<(), LinkError> {
        let mut ready = [PollFd::new(&self.0, PollFlags::IN), PollFd::new(&bell, PollFlags::IN)];
        wait(&mut ready)?;
        if ready[0].revents().is_empty() {
            return Ok(());
        }
        match self.take(&mut [0])? {
            Some(0) => Err(LinkError::Closed),
            Some(_) => Err(LinkError::Unasked),
            None => Ok(()),
        }
    }
}

fn wait(ready: &mut [PollFd<'_>]) -> Result<(), LinkError> {
    match poll(ready, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A whole message without payload.
fn message(request: Request, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(size_of::<Header>() + body.len());
    begin(&mut message, request, body, 0);
    message
}

/// Begins a message in place of another; `payload` bytes are to follow.
pub(super) fn begin(message: &mut Vec<u8>, request: Request, body: &[u8], payload: usize) {
    message.clear();
    let header = Header { request: request as u32, flags: 0, size: (body.len() + payload) as u32 };
    message.extend_from_slice(header.as_bytes());
    message.extend_from_slice(body);
}
