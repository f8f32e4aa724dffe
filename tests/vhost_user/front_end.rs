//! A front-end's end of the sockets: messages as bytes, right or wrong, and what the back-end asks for.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use virtio_gpu_uring::testing::DEADLINE;

/// Requests of a front-end, by their numbers in the vhost-user specification.
pub(crate) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const GPU_SET_SOCKET: u32 = 33;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    pub(crate) const GET_SHMEM_CONFIG: u32 = 44;
}

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, BACKEND_SEND_FD, RESET_DEVICE, CONFIGURE_MEM_SLOTS and SHMEM.
pub(crate) const ALL_PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 15 | SHMEM;
/// `VHOST_USER_PROTOCOL_F_SHMEM`.
pub(crate) const SHMEM: u64 = 1 << 22;
/// The index of a queue that comes without a descriptor.
pub(crate) const NO_FD: u64 = 1 << 8;

/// Version 1.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Words and long words, one after the other.
pub(crate) fn words(words: &[u32], longs: &[u64]) -> Vec<u8> {
    let words = words.iter().flat_map(|word| word.to_ne_bytes());
    words.chain(longs.iter().flat_map(|long| long.to_ne_bytes())).collect()
}

/// A header and a body.
pub(crate) fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).expect("a short message");
    [&words(&[request, flags, size], &[]), body].concat()
}

/// Sends bytes with descriptors.
#[track_caller]
pub(crate) fn send(socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)), "too many descriptors");
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("a back-end");
    assert_eq!(sent, bytes.len());
}

/// Receives `len` bytes with descriptors; fewer at the end.
#[track_caller]
fn receive(socket: &UnixStream, len: usize) -> (Vec<u8>, Vec<OwnedFd>) {
    let (mut data, mut files) = (vec![0; len], Vec::new());
    let mut filled = 0;
    while filled < len {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut room = [IoSliceMut::new(&mut data[filled..])];
        let got = recvmsg(socket, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC).expect("in time").bytes;
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                files.extend(rights);
            }
        }
        if got == 0 {
            break;
        }
        filled += got;
    }
    data.truncate(filled);
    (data, files)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The main socket.
pub(crate) struct FrontEnd {
    pub(crate) socket: UnixStream,
}

impl FrontEnd {
    pub(crate) fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        socket.set_write_timeout(Some(DEADLINE)).expect("a deadline");
        Self { socket }
    }

    /// Sends a message that nobody answers.
    #[track_caller]
    pub(crate) fn say(&self, request: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        send(&self.socket, &message(request, VERSION, body), files);
    }

    /// Sends a message that asks for something, and hands out what.
    #[track_caller]
    pub(crate) fn ask(&self, request: u32, body: &[u8]) -> Vec<u8> {
        self.say(request, body, &[]);
        self.reply(request)
    }

    #[track_caller]
    pub(crate) fn ask_long(&self, request: u32) -> u64 {
        long(&self.ask(request, &[]), 0)
    }

    /// Sends a message whose success is to be stated, and hands out what is.
    #[track_caller]
    pub(crate) fn result(&self, request: u32, body: &[u8], files: &[BorrowedFd<'_>]) -> u64 {
        send(&self.socket, &message(request, VERSION | NEED_REPLY, body), files);
        long(&self.reply(request), 0)
    }

    /// Sends a message that must succeed.
    #[track_caller]
    pub(crate) fn tell(&self, request: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        assert_eq!(self.result(request, body, files), 0, "message {request} was refused");
    }

    /// The reply to a message.
    #[track_caller]
    pub(crate) fn reply(&self, request: u32) -> Vec<u8> {
        let (header, files) = receive(&self.socket, 12);
        assert_eq!(header.len(), 12, "the back-end has gone instead of answering message {request}");
        assert_eq!((word(&header, 0), word(&header, 4) & 7, files.len()), (request, VERSION | REPLY, 0));
        let size = word(&header, 8) as usize;
        let (body, _) = receive(&self.socket, size);
        assert_eq!(body.len(), size, "the back-end has gone within a reply");
        body
    }

    /// The back-end closes the connection, whatever it says before.
    #[track_caller]
    pub(crate) fn expect_end(&self) {
        use std::io::Read;
        let mut bytes = [0; 4096];
        loop {
            match (&self.socket).read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the connection is not closed: {error}"),
            }
        }
    }
}

/// What a back-end asks its front-end for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: u32,
    pub(crate) needs_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
}

impl Asked {
    pub(crate) const CONFIG_CHANGED: u32 = 2;
    pub(crate) const MAP: u32 = 9;
    pub(crate) const UNMAP: u32 = 10;

    /// Of a SHMEM message: region, offset in the file, offset in the region, length, flags.
    pub(crate) fn range(&self) -> (u8, u64, u64, u64, u64) {
        let at = |at| long(&self.body, at);
        assert_eq!(self.body.len(), 40, "a SHMEM message's body");
        (self.body[0], at(8), at(16), at(24), at(32))
    }
}

/// The socket that the back-end asks by.
pub(crate) struct BackEndChannel {
    pub(crate) socket: UnixStream,
}

impl BackEndChannel {
    pub(crate) fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        Self { socket }
    }

    /// The next thing that is asked for.
    #[track_caller]
    pub(crate) fn next(&self) -> Asked {
        let (header, mut files) = receive(&self.socket, 12);
        assert_eq!(header.len(), 12, "the back-end asks for nothing any more");
        let flags = word(&header, 4);
        assert_eq!(flags & 7, VERSION, "flags of a request: {flags:#x}");
        let (body, more) = receive(&self.socket, word(&header, 8) as usize);
        files.extend(more);
        Asked { request: word(&header, 0), needs_reply: flags & NEED_REPLY != 0, body, files }
    }

    /// Answers it; 0 is success.
    #[track_caller]
    pub(crate) fn answer(&self, asked: &Asked, result: u64) {
        send(&self.socket, &message(asked.request, VERSION | REPLY, &words(&[], &[result])), &[]);
    }

    /// The next thing that is asked for, which is of this kind, and is answered with success.
    #[track_caller]
    pub(crate) fn serve(&self, request: u32) -> Asked {
        let asked = self.next();
        assert_eq!((asked.request, asked.needs_reply), (request, true));
        self.answer(&asked, 0);
        asked
    }

    /// Whether there is something to be read, or the end.
    pub(crate) fn is_ready(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.socket.as_fd(), PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }
}
