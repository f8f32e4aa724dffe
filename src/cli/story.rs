//! The story itself: a device with a window, a guest with a driver, a host service with a source's buffers between them,
//! and every frame compared. The guest is the crate's fake one; all it does goes through virtqueues in its memory.

use std::ops::Range;
use std::time::{Duration, Instant};

use virtio_gpu_uring::protocol::cross_domain::{ChannelType, MAX_IDENTIFIERS};
use virtio_gpu_uring::protocol::wire::response_type;
use virtio_gpu_uring::sources::{Format, Frame, HandleKind, Source};
use virtio_gpu_uring::testing::{Answer, Guest, GuestChannel, GuestOptions, HostPeer, HostService, Request};
use virtio_gpu_uring::{Builder, HostWindow};

use super::Failure;
use super::measure::{Stopwatch, Timing};
use super::picture::PictureFile;
use super::progress::Progress;

/// The guest's cross-domain context.
const CONTEXT: u32 = 1;
/// The first of the two resources that are the channel's rings.
const FIRST_RING: u32 = 1;
/// The first resource that is a host buffer.
const FIRST_BLOB: u32 = 10;
/// So many round trips of the command that does nothing are timed, after [`COMMANDS_AHEAD`] that are not.
const COMMANDS: usize = 500;
const COMMANDS_AHEAD: usize = 20;
/// At least so many MAPs are timed.
const MAPS: usize = 256;

/// How long a story it is.
pub(super) struct Plan {
    /// Frames to compare.
    pub(super) frames: u32,
    /// The window's length in bytes.
    pub(super) window: usize,
}

/// What was seen in it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) source: &'static str,
    pub(super) handle: HandleKind,
    pub(super) format: Format,
    pub(super) buffers: usize,
    /// Bytes of a buffer, the largest if they differ.
    pub(super) buffer_len: u64,
    /// The window's length in bytes.
    pub(super) window: usize,
    pub(super) compared: Compared,
    /// Buffers that the guest still saw after they were unmapped.
    pub(super) stale_buffers: u32,
    pub(super) map: Timing,
    pub(super) command: Timing,
    /// From the start of the device to its end.
    pub(super) elapsed: Duration,
}

/// What comparing frames came to.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) frames: u32,
    /// Frames of which the guest saw nothing but zeros.
    pub(super) zero: u32,
    /// Frames of which the guest saw other bytes than the source.
    pub(super) mismatched: u32,
    pub(super) bytes: u64,
}

/// Everything that takes part.
struct Stage {
    guest: Guest,
    window: HostWindow,
    channel: GuestChannel,
    peer: HostPeer,
    maps: Stopwatch,
}

/// A host buffer in the guest's hands.
struct Blob {
    resource: u32,
    /// Where it is in the window, in bytes.
    range: Range<u64>,
}

/// Plays it. Whatever was made for it, the source too, is gone on return.
pub(super) fn play(
    mut source: Box<dyn Source>,
    plan: &Plan,
    picture: Option<&mut PictureFile>,
    progress: &mut Progress,
) -> Result<Seen, Failure> {
    let started = Instant::now();
    let buffer_len = check_room(&*source, plan.window as u64)?;
    let mut stage = Stage::set_up(plan.window)?;
    let mut blobs = Vec::new();
    for index in (0..source.buffers()).step_by(MAX_IDENTIFIERS) {
        let together = index..source.buffers().min(index + MAX_IDENTIFIERS);
        stage.hand_over(&*source, together, &mut blobs)?;
    }
    stage.map_again_and_again(&blobs)?;
    let command = stage.time_commands()?;
    let compared = stage.compare_frames(&mut *source, &blobs, plan.frames, picture, progress)?;
    let stale_buffers = stage.take_down(&blobs)?;
    let (name, handle, format, buffers) = (source.name(), source.handle(), source.format(), source.buffers());
    let map = stage.close();
    drop(source);
    let elapsed = started.elapsed();
    Ok(Seen {
        source: name,
        handle,
        format,
        buffers,
        buffer_len,
        window: plan.window,
        compared,
        stale_buffers,
        map,
        command,
        elapsed,
    })
}

/// The window must have room for all buffers at a time. Returns the length of the largest.
fn check_room(source: &dyn Source, window: u64) -> Result<u64, Failure> {
    let lengths = (0..source.buffers()).map(|index| source.len(index));
    let needed: u64 = lengths.clone().sum();
    let largest = lengths.max().unwrap_or(0);
    if needed <= window {
        return Ok(largest);
    }
    Err(Failure::Unusable(format!(
        "{} buffers of {largest} bytes do not fit into a window of {} MiB: it takes --window {}",
        source.buffers(),
        window >> 20,
        needed.div_ceil(1 << 20),
    )))
}

impl Stage {
    /// Starts the device and its guest, and connects the guest to a host service as PipeWire's would be.
    fn set_up(window: usize) -> Result<Self, Failure> {
        let service = HostService::listen();
        let window = HostWindow::new(window)
            .map_err(|error| Failure::Unusable(format!("cannot reserve a window of {} MiB: {error}", window >> 20)))?;
        let builder = Builder::new().window(window.clone()).host_socket(ChannelType::PIPEWIRE, service.path());
        let device = builder.spawn().map_err(|error| Failure::Unusable(format!("the device (on io_uring) {error}")))?;
        let mut guest = Guest::powered_off(device, GuestOptions::default());
        guest.activate();
        let channel = GuestChannel::open(&mut guest, CONTEXT, FIRST_RING, ChannelType::PIPEWIRE);
        let peer = service.accept();
        Ok(Self { guest, window, channel, peer, maps: Stopwatch::default() })
    }

    /// Sends some of the source's buffers to the guest in one message; the guest makes blobs of them, maps them one
    /// behind the other, and attaches them to its context, in the order in which Linux does.
    fn hand_over(&mut self, source: &dyn Source, which: Range<usize>, blobs: &mut Vec<Blob>) -> Result<(), Failure> {
        let poll = self.channel.poll(&mut self.guest);
        let files: Vec<_> = which.clone().map(|index| source.buffer(index)).collect();
        self.peer.send(&Note::Buffers { count: files.len() }.bytes(), &files);
        let message = self.channel.wait(&mut self.guest, poll);
        let told = Note::read(&message.data);
        if told != Some(Note::Buffers { count: files.len() }) || message.identifiers.len() != files.len() {
            return Err(Failure::BrokenOff(format!(
                "{} buffers were sent, the guest was told {message:?}",
                files.len()
            )));
        }
        let page = rustix::param::page_size() as u64;
        for (index, (id, _, size)) in which.zip(message.identifiers) {
            let start = blobs.last().map_or(0, |blob: &Blob| blob.range.end);
            let len = u64::from(size).next_multiple_of(page);
            if len != source.len(index) {
                let has = source.len(index);
                return Err(Failure::BrokenOff(format!("the guest was told of {size} bytes where there are {has}")));
            }
            let blob = Blob { resource: FIRST_BLOB + blobs.len() as u32, range: start..start + len };
            let create = Request::host_blob(CONTEXT, blob.resource, u64::from(id), len);
            self.must("RESOURCE_CREATE_BLOB", &create)?;
            self.map(&blob)?;
            self.must("CTX_ATTACH_RESOURCE", &Request::ctx_attach(CONTEXT, blob.resource))?;
            blobs.push(blob);
        }
        Ok(())
    }

    /// Maps a blob and times it. Only an answer that tells how the pages may be cached is a success.
    fn map(&mut self, blob: &Blob) -> Result<(), Failure> {
        let request = Request::map(blob.resource, blob.range.start);
        let answer = self.maps.time(|| self.guest.command(&request));
        expect("RESOURCE_MAP_BLOB", &answer, response_type::OK_MAP_INFO)
    }

    fn map_again_and_again(&mut self, blobs: &[Blob]) -> Result<(), Failure> {
        for _ in 0..MAPS.div_ceil(blobs.len()) {
            for blob in blobs {
                self.must("RESOURCE_UNMAP_BLOB", &Request::unmap(blob.resource))?;
                self.map(blob)?;
            }
        }
        Ok(())
    }

    fn time_commands(&mut self) -> Result<Timing, Failure> {
        let mut commands = Stopwatch::default();
        let request = Request::display_info();
        for _ in 0..COMMANDS_AHEAD {
            expect("GET_DISPLAY_INFO", &self.guest.command(&request), response_type::OK_DISPLAY_INFO)?;
        }
        for _ in 0..COMMANDS {
            let answer = commands.time(|| self.guest.command(&request));
            expect("GET_DISPLAY_INFO", &answer, response_type::OK_DISPLAY_INFO)?;
        }
        Ok(commands.summary())
    }

    fn compare_frames(
        &mut self,
        source: &mut dyn Source,
        blobs: &[Blob],
        frames: u32,
        mut picture: Option<&mut PictureFile>,
        progress: &mut Progress,
    ) -> Result<Compared, Failure> {
        let mut compared = Compared::default();
        let (mut guest_sees, mut source_sees) = (Vec::new(), Vec::new());
        while compared.frames < frames {
            let frame = self.next_frame(source)?;
            let blob = blobs.get(frame.index).ok_or_else(|| Failure::broken_off("a frame in no buffer"))?;
            guest_sees.resize((blob.range.end - blob.range.start) as usize, 0);
            self.window.read(blob.range.start, &mut guest_sees).map_err(Failure::broken_off)?;
            source.read(frame.index, &mut source_sees).map_err(Failure::broken_off)?;
            compared.frames += 1;
            compared.zero += u32::from(guest_sees.iter().all(|byte| *byte == 0));
            compared.mismatched += u32::from(guest_sees != source_sees);
            compared.bytes += guest_sees.len() as u64;
            if compared.frames == frames
                && let Some(picture) = picture.take()
            {
                let Format { width, height, .. } = source.format();
                picture.write(width, height, &source.frame_rgb(&guest_sees)).map_err(Failure::broken_off)?;
            }
            source.release(frame.index).map_err(Failure::broken_off)?;
            progress.show(compared.frames, frames);
        }
        Ok(compared)
    }

    /// Has the source produce a frame and the host service tell the guest of it, where PipeWire would write an eventfd.
    /// Returns what the guest was told. The frame stays as it is until it is released.
    fn next_frame(&mut self, source: &mut dyn Source) -> Result<Frame, Failure> {
        let poll = self.channel.poll(&mut self.guest);
        let frame = source.next_frame().map_err(Failure::broken_off)?;
        self.peer.send(&Note::Frame(frame).bytes(), &[]);
        let message = self.channel.wait(&mut self.guest, poll);
        match Note::read(&message.data) {
            Some(Note::Frame(told)) if told == frame => Ok(told),
            _ => Err(Failure::BrokenOff(format!("{frame:?} was sent, the guest was told {message:?}"))),
        }
    }

    /// Takes all blobs and the context away again, and resets the device. Returns how many blobs the guest still saw
    /// after they were unmapped: what is there then is scratch memory, which nobody has written to.
    fn take_down(&mut self, blobs: &[Blob]) -> Result<u32, Failure> {
        let mut stale = 0;
        let mut bytes = Vec::new();
        for blob in blobs {
            self.must("RESOURCE_UNMAP_BLOB", &Request::unmap(blob.resource))?;
            bytes.resize((blob.range.end - blob.range.start) as usize, 0);
            self.window.read(blob.range.start, &mut bytes).map_err(Failure::broken_off)?;
            stale += u32::from(bytes.iter().any(|byte| *byte != 0));
        }
        let rings = self.channel.rings;
        for resource in blobs.iter().map(|blob| blob.resource).chain(rings) {
            self.must("CTX_DETACH_RESOURCE", &Request::ctx_detach(CONTEXT, resource))?;
            self.must("RESOURCE_UNREF", &Request::unref(resource))?;
        }
        self.must("CTX_DESTROY", &Request::ctx_destroy(CONTEXT))?;
        let (rest, _) = self.peer.receive(1);
        if !rest.is_empty() {
            return Err(Failure::broken_off("the guest's context is gone, its channel is not"));
        }
        self.guest.assert_all_answered();
        self.guest.reset();
        Ok(stale)
    }

    /// Ends the device, and what is left of the stage with it.
    fn close(self) -> Timing {
        self.maps.summary()
    }

    fn must(&mut self, name: &str, request: &Request) -> Result<(), Failure> {
        let answer = self.guest.command(request);
        expect(name, &answer, response_type::OK_NODATA)
    }
}

fn expect(name: &str, answer: &Answer, kind: u32) -> Result<(), Failure> {
    if answer.kind() == kind {
        return Ok(());
    }
    Err(Failure::BrokenOff(format!("{name}: the device answered {:#x} where {kind:#x} is due", answer.kind())))
}

/// What the host service tells the guest. On the wire: a tag, a count or an index, a sequence number, 64 bits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Note {
    /// So many descriptors come with this message.
    Buffers { count: usize },
    /// A buffer has a new frame.
    Frame(Frame),
}

impl Note {
    const LEN: usize = 24;
    const BUFFERS: u64 = 1;
    const FRAME: u64 = 2;

    fn bytes(self) -> Vec<u8> {
        let words = match self {
            Self::Buffers { count } => [Self::BUFFERS, count as u64, 0],
            Self::Frame(Frame { index, sequence }) => [Self::FRAME, index as u64, sequence],
        };
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let count = usize::try_from(word(8)?).ok()?;
        match word(0)? {
            Self::BUFFERS => Some(Self::Buffers { count }),
            Self::FRAME => Some(Self::Frame(Frame { index: count, sequence: word(16)? })),
            _ => None,
        }
    }
}
