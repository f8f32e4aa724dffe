//! A front-end's displays with a front-end that is made up, and the real device behind them.

mod buffers;
mod faults;
mod held;
mod monitors;
mod pace;
mod pictures;
mod words;

use std::io::{ErrorKind, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vm_memory::GuestAddress;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::FrontEndDisplays;
use super::slot::Patience;
use super::wire::{DisplayInfo, DisplayOne, Edid, Header, REPLY, Request as Asked};
use crate::device::Builder;
use crate::limits::Limits;
use crate::protocol::format::Format;
use crate::testing::{DEADLINE, Guest, Request};

/// A message of the back-end's.
struct Message {
    request: u32,
    body: Vec<u8>,
    file: Option<OwnedFd>,
}

impl Message {
    /// Its body without a payload.
    #[track_caller]
    fn is<T: FromBytes>(&self, request: Asked) -> T {
        assert_eq!(self.request, request as u32, "{request:?} is due");
        T::read_from_bytes(&self.body).expect("a body of the right size")
    }

    /// Its body, and the payload.
    #[track_caller]
    fn carries<T: FromBytes>(&self, request: Asked) -> (T, &[u8]) {
        assert_eq!(self.request, request as u32, "{request:?} is due");
        let (body, _) = T::read_from_prefix(&self.body).expect("a body");
        (body, &self.body[size_of::<T>()..])
    }
}

/// The front-end's end of the socket.
struct FrontEnd(UnixStream);

impl FrontEnd {
    /// The next message; `None` where the back-end has gone.
    fn next(&mut self) -> Option<Message> {
        let mut header = Header::new_zeroed();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let bytes = header.as_mut_bytes();
        let received = recvmsg(&self.0, &mut [std::io::IoSliceMut::new(bytes)], &mut control, RecvFlags::WAITALL);
        let files: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(files) => Some(files),
                _ => None,
            })
            .flatten()
            .collect();
        match received.map(|received| received.bytes) {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => return None,
            Ok(bytes) => assert_eq!(bytes, size_of::<Header>(), "a whole header"),
            Err(error) => panic!("waited {DEADLINE:?} for a message: {error}"),
        }
        assert_eq!(header.flags, 0, "flags of a request");
        assert!(header.size <= (1 << 20) + 64, "a message of {} bytes", header.size);
        let mut body = vec![0; header.size as usize];
        self.0.read_exact(&mut body).expect("the rest of a message");
        assert!(files.len() <= 1);
        Some(Message { request: header.request, body, file: files.into_iter().next() })
    }

    /// The next message, which is there.
    #[track_caller]
    fn message(&mut self) -> Message {
        self.next().expect("the back-end is there")
    }

    fn answer(&mut self, request: Asked, body: &[u8]) {
        let header = Header { request: request as u32, flags: REPLY, size: body.len() as u32 };
        self.0.write_all(&[header.as_bytes(), body].concat()).expect("the back-end is there");
    }

    /// Takes a question and answers it.
    #[track_caller]
    fn answers(&mut self, request: Asked, body: &[u8]) -> Message {
        let message = self.message();
        assert_eq!(message.request, request as u32, "{request:?} is due");
        self.answer(request, body);
        message
    }

    /// Answers what a back-end asks first: which features, and which displays.
    #[track_caller]
    fn greet(&mut self, features: u64, displays: &[DisplayOne]) {
        self.answers(Asked::GetProtocolFeatures, features.as_bytes());
        let taken: u64 = self.message().is(Asked::SetProtocolFeatures);
        assert_eq!(taken, features & 3);
        self.tell(displays);
    }

    /// Answers GET_DISPLAY_INFO.
    #[track_caller]
    fn tell(&mut self, displays: &[DisplayOne]) {
        let mut info = DisplayInfo::new_zeroed();
        info.displays[..displays.len()].copy_from_slice(displays);
        self.answers(Asked::GetDisplayInfo, info.as_bytes());
    }

    /// Answers GET_EDID for a scanout with these bytes, in the 1024 that QEMU always sends.
    #[track_caller]
    fn tell_edid(&mut self, scanout: u32, edid: &[u8]) {
        let mut answer = Edid::new_zeroed();
        answer.edid[..edid.len()].copy_from_slice(edid);
        answer.size = answer.edid.len() as u32;
        let asked: u32 = self.answers(Asked::GetEdid, answer.as_bytes()).is(Asked::GetEdid);
        assert_eq!(asked, scanout);
    }

    /// Nothing more comes before the back-end has gone.
    fn assert_end(&mut self) {
        if let Some(message) = self.next() {
            panic!("request {} of {} bytes, where the end is due", message.request, message.body.len());
        }
    }

    /// Nothing has come, of what the back-end does at once.
    fn assert_silent(&mut self) {
        self.0.set_nonblocking(true).expect("a socket");
        let kind = self.0.read(&mut [0]).map_err(|error| error.kind());
        self.0.set_nonblocking(false).expect("a socket");
        assert_eq!(kind, Err(ErrorKind::WouldBlock));
    }
}

/// A display of this size.
fn display(width: u32, height: u32) -> DisplayOne {
    DisplayOne { x: 0, y: 0, width, height, enabled: 1, flags: 0 }
}

/// An EDID of these many blocks that no two seeds share.
fn edid(blocks: usize, seed: u8) -> Vec<u8> {
    let mut edid: Vec<u8> = (0..blocks * 128).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
    edid[..8].copy_from_slice(&[0, 255, 255, 255, 255, 255, 255, 0]);
    edid[126] = (blocks - 1) as u8;
    for block in edid.chunks_mut(128) {
        block[127] = 0;
        block[127] = block.iter().fold(0, |sum, byte| sum.wrapping_sub(*byte));
    }
    edid
}

/// A guest, and a front-end that shows what it draws.
struct Desk {
    guest: Guest,
    displays: FrontEndDisplays,
    front_end: FrontEnd,
}

impl Desk {
    /// A front-end that has said nothing yet, and that nobody waits for.
    fn silent(scanouts: u32) -> Self {
        Self::patient(Patience { first: Duration::ZERO, next: Duration::ZERO }, scanouts)
    }

    /// A front-end that has said nothing yet.
    fn patient(patience: Patience, scanouts: u32) -> Self {
        // A flush is answered by its display, and not by the clock.
        let limits = Limits { deadline: 3 * DEADLINE, ..Limits::default() };
        let guest = Guest::start(Builder::new().scanouts(scanouts).limits(limits));
        let (front_end, displays) = connect(&guest, scanouts, patience);
        Self { guest, displays, front_end }
    }

    /// A front-end with these displays, without EDIDs, as the guest knows.
    fn new(displays: &[DisplayOne]) -> Self {
        let mut desk = Self::silent(displays.len() as u32);
        desk.front_end.greet(0, displays);
        desk.until("the displays are connected", |desk| (0..displays.len()).all(|at| desk.info(at)[4] == 1));
        desk
    }

    /// Waits until something is so.
    #[track_caller]
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A scanout as GET_DISPLAY_INFO has it: x, y, width, height, enabled, flags.
    fn info(&mut self, scanout: usize) -> [u32; 6] {
        let info = self.guest.command(&Request::display_info()).ok();
        let (words, _) = info[scanout * 24..].as_chunks::<4>();
        std::array::from_fn(|at| u32::from_le_bytes(words[at]))
    }

    /// What the guest is told at GET_EDID.
    fn edid(&mut self, scanout: u32) -> Vec<u8> {
        let answer = self.guest.command(&Request::get_edid(scanout)).ok();
        let size = u32::from_le_bytes(answer[..4].try_into().expect("four bytes"));
        answer[8..][..size as usize].to_vec()
    }

    /// The events that are pending.
    fn events(&self) -> u32 {
        let mut events = [0xff; 4];
        self.guest.device().read_config(0, &mut events);
        u32::from_le_bytes(events)
    }

    /// The guest has heard of all events: of one that came while it asked it hears once more.
    fn clear_events(&mut self) {
        self.until("no event is pending", |desk| {
            desk.guest.device().write_config(4, &1_u32.to_le_bytes());
            desk.events() == 0
        });
    }

    /// Makes an image that holds these pixels; where in guest memory they lie.
    fn image(&mut self, resource: u32, format: Format, [width, height]: [u32; 2], pixels: &[u8]) -> u64 {
        let (address, len) = self.guest.page_range(pixels.len());
        self.guest.command(&Request::create_2d(resource, format.wire(), width, height)).ok();
        self.guest.command(&Request::attach_backing(resource, &[(address, len)])).ok();
        self.paint(resource, address, [width, height], pixels);
        address
    }

    /// Puts other pixels into an image.
    fn paint(&mut self, resource: u32, address: u64, [width, height]: [u32; 2], pixels: &[u8]) {
        self.guest.ram().write(GuestAddress(address), pixels);
        self.guest.command(&Request::transfer_2d(resource, [0, 0, width, height], 0)).ok();
    }

    fn show(&mut self, scanout: u32, resource: u32, [width, height]: [u32; 2]) {
        self.guest.command(&Request::set_scanout(scanout, resource, [0, 0, width, height])).ok();
    }
}

/// A front-end's displays on the device of a guest.
fn connect(guest: &Guest, scanouts: u32, patience: Patience) -> (FrontEnd, FrontEndDisplays) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    theirs.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let displays = guest.device().displays();
    let displays = FrontEndDisplays::patient(patience, ours, displays, scanouts, false).expect("a thread");
    (FrontEnd(theirs), displays)
}

/// Pixels that never repeat soon, alpha among them.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}
