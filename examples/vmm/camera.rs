//! A host service beside the VMM: serves the buffers of a V4L2 camera on a Unix socket, as dma-bufs, and compares what the
//! guest says it has read with what the host sees in the same buffers.
//!
//! The guest reaches the socket by a cross-domain channel of type camera. Messages are lines of text:
//!
//! | from | line | |
//! |---|---|---|
//! | host | `buffers N WIDTH HEIGHT STRIDE FOURCC` | first of all; with N descriptors |
//! | guest | `next` | |
//! | host | `frame INDEX SEQUENCE` | the buffer stays as it is until the guest has answered |
//! | guest | `seen INDEX SEQUENCE HASH` | FNV-1a (64 bit) of all bytes of the buffer, 16 hexadecimal digits |
//! | guest | `skip INDEX SEQUENCE` | the frame is not compared |
//! | guest | `again` | answered with `buffers`, as at first |

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::SplitWhitespace;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_gpu_uring::sources::camera::Camera;
use virtio_gpu_uring::sources::{Frame, MAX_BUFFERS, Source};
use vmm_sys_util::tempdir::TempDir;

use super::error::VmmError;

/// How many buffers are asked for.
const BUFFERS: usize = 4;
/// A guest that says nothing for so long has had its turn at the camera.
const PATIENCE: Duration = Duration::from_secs(60);
/// No line of a guest is longer.
const LONGEST_LINE: u64 = 128;

/// The service; its socket is gone when it is dropped.
pub(crate) struct CameraService {
    _folder: TempDir,
    path: PathBuf,
}

impl CameraService {
    /// Serves `device` on a socket of its own, one connection at a time, each with the camera opened anew.
    pub(crate) fn start(device: &Path) -> Result<Self, VmmError> {
        // Whether there is a camera is better said now than to a guest.
        drop(Camera::open(device, BUFFERS)?);
        let folder = TempDir::new().map_err(|error| VmmError::io("a folder for the camera")(error.into()))?;
        let service = Self { path: folder.as_path().join("camera"), _folder: folder };
        let listener = UnixListener::bind(&service.path).map_err(VmmError::io("the camera's socket"))?;
        let device = device.to_path_buf();
        let serve = move || {
            for guest in listener.incoming() {
                let guest = match guest {
                    Ok(guest) => guest,
                    Err(error) => {
                        say!("camera: {error}");
                        std::thread::sleep(Duration::from_secs(1));
                        continue;
                    }
                };
                let mut account = Account::default();
                if let Err(error) = Session::open(&device, guest).and_then(|mut session| session.serve(&mut account)) {
                    say!("camera: {error}");
                }
                say!("camera {account}");
            }
        };
        std::thread::Builder::new().name("camera".into()).spawn(serve).map_err(VmmError::io("the camera's thread"))?;
        Ok(service)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What became of the frames of one connection.
#[derive(Default)]
struct Account {
    frames: u64,
    buffers: HashSet<usize>,
    zero: u64,
    mismatched: u64,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { frames, buffers, zero, mismatched } = self;
        write!(f, "frames={frames} buffers={} zero={zero} mismatched={mismatched}", buffers.len())
    }
}

/// One guest at the camera.
struct Session {
    camera: Camera,
    guest: BufReader<UnixStream>,
    /// The frame that the guest looks at.
    shown: Option<Frame>,
}

impl Session {
    fn open(device: &Path, guest: UnixStream) -> io::Result<Self> {
        let camera = Camera::open(device, BUFFERS).map_err(io::Error::other)?;
        guest.set_read_timeout(Some(PATIENCE))?;
        guest.set_write_timeout(Some(PATIENCE))?;
        let session = Self { camera, guest: BufReader::new(guest), shown: None };
        session.send_buffers()?;
        Ok(session)
    }

    /// Answers the guest until it closes.
    fn serve(&mut self, account: &mut Account) -> io::Result<()> {
        loop {
            let mut line = String::new();
            if (&mut self.guest).take(LONGEST_LINE).read_line(&mut line).map_err(silence)? == 0 {
                return Ok(());
            }
            let mut words = line.split_whitespace();
            let answered = match words.next() {
                Some("next") if self.shown.is_none() => self.show_next(),
                Some("again") => self.send_buffers(),
                Some("skip") => self.take_back(&mut words),
                Some("seen") => self.compare(&mut words, account),
                _ => Err(io::Error::other(format!("the guest said {line:?}"))),
            };
            answered?;
        }
    }

    /// Announces the buffers, with a descriptor of each.
    fn send_buffers(&self) -> io::Result<()> {
        let count = self.camera.buffers();
        let format = self.camera.format();
        let (width, height, stride) = (format.width, format.height, format.stride);
        let line = format!("buffers {count} {width} {height} {stride} {}\n", format.fourcc_name());
        let descriptors: Vec<_> = (0..count).map(|index| self.camera.buffer(index)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_BUFFERS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent =
            sendmsg(self.guest.get_ref(), &[IoSlice::new(line.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.guest.get_ref().write_all(&line.as_bytes()[sent..])
    }

    fn show_next(&mut self) -> io::Result<()> {
        let frame = self.camera.next_frame().map_err(io::Error::other)?;
        self.shown = Some(frame);
        writeln!(self.guest.get_ref(), "frame {} {}", frame.index, frame.sequence)
    }

    /// The camera may fill the buffer again.
    fn take_back(&mut self, words: &mut SplitWhitespace<'_>) -> io::Result<()> {
        let frame = self.shown.take().filter(|frame| names(words, frame));
        let frame = frame.ok_or_else(|| io::Error::other("the guest answered to a frame that it was not shown"))?;
        self.camera.release(frame.index).map_err(io::Error::other)
    }

    /// Compares the guest's hash with one of the host's own mapping of the buffer, made now.
    fn compare(&mut self, words: &mut SplitWhitespace<'_>, account: &mut Account) -> io::Result<()> {
        let Some(frame) = self.shown else {
            return Err(io::Error::other("the guest has seen a frame that it was not shown"));
        };
        let mut bytes = Vec::new();
        self.camera.read(frame.index, &mut bytes).map_err(io::Error::other)?;
        self.take_back(words)?;
        let seen = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
        let seen = seen.ok_or_else(|| io::Error::other("the guest sent no hash"))?;
        let (here, Frame { index, sequence }) = (fnv1a(bytes.iter().copied()), frame);
        account.frames += 1;
        account.buffers.insert(index);
        account.zero += u64::from(seen == fnv1a(std::iter::repeat_n(0, bytes.len())));
        account.mismatched += u64::from(seen != here);
        let verdict = if seen == here { "ok" } else { "MISMATCHED" };
        say!("frame seq={sequence} buffer={index} hash={here:016x} {verdict}");
        Ok(())
    }
}

/// Names a read that has waited for as long as it may: the socket's own word for it, `EAGAIN`, tells nobody that the guest
/// has fallen silent.
fn silence(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let words = format!("the guest said nothing for {} s", PATIENCE.as_secs());
            io::Error::new(ErrorKind::TimedOut, words)
        }
        _ => error,
    }
}

/// Whether the next two words are this frame's.
fn names(words: &mut SplitWhitespace<'_>, frame: &Frame) -> bool {
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    (number(), number()) == (Some(frame.index as u64), Some(frame.sequence))
}

fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
