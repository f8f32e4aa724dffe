//! The few V4L2 requests that turn a camera into dma-bufs: single-plane capture into buffers that the driver
//! allocates (`V4L2_MEMORY_MMAP`) and exports (`linux/videodev2.h`).
#![expect(unsafe_code, reason = "the VIDIOC requests have no safe wrappers")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

/// `V4L2_BUF_TYPE_VIDEO_CAPTURE`
const VIDEO_CAPTURE: u32 = 1;
/// `V4L2_MEMORY_MMAP`
const MEMORY_MMAP: u32 = 1;
/// `V4L2_BUF_FLAG_ERROR`
const FLAG_ERROR: u32 = 0x40;
/// `V4L2_CAP_VIDEO_CAPTURE`
const CAP_VIDEO_CAPTURE: u32 = 0x1;
/// `V4L2_CAP_STREAMING`
const CAP_STREAMING: u32 = 0x0400_0000;
/// `V4L2_CAP_DEVICE_CAPS`
const CAP_DEVICE_CAPS: u32 = 0x8000_0000;

/// `struct v4l2_capability`
#[repr(C)]
struct Capability {
    driver: [u8; 16],
    card: [u8; 32],
    bus_info: [u8; 32],
    version: u32,
    capabilities: u32,
    device_caps: u32,
    reserved: [u32; 3],
}

/// What a device can do, from `VIDIOC_QUERYCAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// It captures video through the single-plane API.
    pub(crate) captures: bool,
    /// It hands frames over in buffers, not only through `read(2)`.
    pub(crate) streams: bool,
}

/// `struct v4l2_pix_format`: what a frame looks like.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PixFormat {
    /// Width in pixels.
    pub(crate) width: u32,
    /// Height in pixels.
    pub(crate) height: u32,
    /// `V4L2_PIX_FMT_*`: four ASCII characters, the first in the lowest byte.
    pub(crate) pixelformat: u32,
    field: u32,
    /// Bytes from one row to the next; 0 for a compressed format.
    pub(crate) bytesperline: u32,
    /// Bytes of a whole frame, at most.
    pub(crate) sizeimage: u32,
    colorspace: u32,
    private: u32,
    flags: u32,
    encoding: u32,
    quantization: u32,
    transfer: u32,
}

/// The union of `struct v4l2_format`: 200 bytes, aligned as the pointers that other formats hold.
#[repr(C)]
struct FormatUnion {
    alignment: [usize; 0],
    pix: PixFormat,
    rest: [u8; 152],
}

/// `struct v4l2_format`
#[repr(C)]
struct Format {
    kind: u32,
    union: FormatUnion,
}

/// `struct v4l2_requestbuffers`
#[repr(C)]
#[derive(Default)]
struct RequestBuffers {
    count: u32,
    kind: u32,
    memory: u32,
    capabilities: u32,
    flags: u8,
    reserved: [u8; 3],
}

/// `struct v4l2_buffer`; `place` is the union `m`, as wide as a pointer.
#[repr(C)]
#[derive(Default)]
struct Buffer {
    index: u32,
    kind: u32,
    bytesused: u32,
    flags: u32,
    field: u32,
    timestamp: [i64; 2],
    timecode: [u32; 4],
    sequence: u32,
    memory: u32,
    place: usize,
    length: u32,
    reserved: u32,
    request_fd: i32,
}

/// `struct v4l2_exportbuffer`
#[repr(C)]
#[derive(Default)]
struct ExportBuffer {
    kind: u32,
    index: u32,
    plane: u32,
    flags: u32,
    fd: i32,
    reserved: [u32; 11],
}

const QUERYCAP: Opcode = opcode::read::<Capability>(b'V', 0);
const G_FMT: Opcode = opcode::read_write::<Format>(b'V', 4);
const REQBUFS: Opcode = opcode::read_write::<RequestBuffers>(b'V', 8);
const QUERYBUF: Opcode = opcode::read_write::<Buffer>(b'V', 9);
const QBUF: Opcode = opcode::read_write::<Buffer>(b'V', 15);
const EXPBUF: Opcode = opcode::read_write::<ExportBuffer>(b'V', 16);
const DQBUF: Opcode = opcode::read_write::<Buffer>(b'V', 17);
const STREAMON: Opcode = opcode::write::<i32>(b'V', 18);
const STREAMOFF: Opcode = opcode::write::<i32>(b'V', 19);

/// A filled buffer that the driver has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dequeued {
    /// Which of the requested buffers it is.
    pub(crate) index: u32,
    /// The driver's number of the frame; a gap means that frames were lost.
    pub(crate) sequence: u32,
    /// Bytes that hold the frame.
    pub(crate) bytes_used: u32,
    /// `V4L2_BUF_FLAG_ERROR`: the frame may be damaged.
    pub(crate) damaged: bool,
}

/// `VIDIOC_QUERYCAP`: what the device behind this very file can do.
///
/// # Errors
/// `NOTTY` if it is not a V4L2 device.
pub(crate) fn abilities(device: BorrowedFd<'_>) -> Result<Abilities> {
    // SAFETY: the argument of QUERYCAP is `struct v4l2_capability`, which `Capability` mirrors.
    let argument = unsafe { Getter::<QUERYCAP, Capability>::new() };
    // SAFETY: the opcode states the argument's size; the kernel fills all of it, and every bit pattern is a
    // value of it. On a file that is no V4L2 device the opcode is unknown, so nothing is taken as filled.
    let answer = unsafe { ioctl(device, argument)? };
    let bits = if answer.capabilities & CAP_DEVICE_CAPS == 0 { answer.capabilities } else { answer.device_caps };
    Ok(Abilities { captures: bits & CAP_VIDEO_CAPTURE != 0, streams: bits & CAP_STREAMING != 0 })
}

/// `VIDIOC_G_FMT`: the format in which the device captures now.
///
/// # Errors
/// `INVAL` if it does not capture through the single-plane API.
pub(crate) fn format(device: BorrowedFd<'_>) -> Result<PixFormat> {
    let mut format =
        Format { kind: VIDEO_CAPTURE, union: FormatUnion { alignment: [], pix: PixFormat::default(), rest: [0; 152] } };
    // SAFETY: the argument of G_FMT is `struct v4l2_format`, which `Format` mirrors.
    let argument = unsafe { Updater::<G_FMT, _>::new(&mut format) };
    // SAFETY: the opcode states the argument's size; for this buffer type the kernel fills the `pix` member,
    // which holds no pointer.
    unsafe { ioctl(device, argument)? };
    Ok(format.union.pix)
}

/// `VIDIOC_REQBUFS`: has the driver allocate about `count` buffers and returns how many it made.
///
/// # Errors
/// `BUSY` if somebody else streams from the device, `NOMEM` if there is no memory for the buffers.
pub(crate) fn request_buffers(device: BorrowedFd<'_>, count: u32) -> Result<u32> {
    let mut request = RequestBuffers { count, kind: VIDEO_CAPTURE, memory: MEMORY_MMAP, ..RequestBuffers::default() };
    // SAFETY: the argument of REQBUFS is `struct v4l2_requestbuffers`, which `RequestBuffers` mirrors.
    let argument = unsafe { Updater::<REQBUFS, _>::new(&mut request) };
    // SAFETY: the opcode states the argument's size, and the argument holds no pointer; the memory that is
    // allocated is the driver's, not this process's.
    unsafe { ioctl(device, argument)? };
    Ok(request.count)
}

/// `VIDIOC_QUERYBUF`: the length in bytes of buffer `index`.
///
/// # Errors
/// `INVAL` if there is no such buffer.
pub(crate) fn buffer_length(device: BorrowedFd<'_>, index: u32) -> Result<u32> {
    buffer_request::<QUERYBUF>(device, index).map(|buffer| buffer.length)
}

/// `VIDIOC_QBUF`: gives buffer `index` to the driver, which may write it from now on.
///
/// # Errors
/// `INVAL` if there is no such buffer or the driver has it already.
pub(crate) fn queue_buffer(device: BorrowedFd<'_>, index: u32) -> Result<()> {
    buffer_request::<QBUF>(device, index).map(drop)
}

/// `VIDIOC_DQBUF`: takes the next filled buffer back from the driver.
///
/// # Errors
/// `AGAIN` if none is filled yet (the device must be open `O_NONBLOCK`), `INVAL` if the stream is off, `IO`
/// after a failure of the hardware, `NODEV` when the camera was unplugged.
pub(crate) fn dequeue_buffer(device: BorrowedFd<'_>) -> Result<Dequeued> {
    buffer_request::<DQBUF>(device, 0).map(|buffer| Dequeued {
        index: buffer.index,
        sequence: buffer.sequence,
        bytes_used: buffer.bytesused,
        damaged: buffer.flags & FLAG_ERROR != 0,
    })
}

/// One of the requests whose argument is a `struct v4l2_buffer` of a capture queue.
fn buffer_request<const OPCODE: Opcode>(device: BorrowedFd<'_>, index: u32) -> Result<Buffer> {
    let mut buffer = Buffer { index, kind: VIDEO_CAPTURE, memory: MEMORY_MMAP, ..Buffer::default() };
    // SAFETY: all callers pass QUERYBUF, QBUF or DQBUF, whose argument is `struct v4l2_buffer`, which `Buffer`
    // mirrors.
    let argument = unsafe { Updater::<OPCODE, _>::new(&mut buffer) };
    // SAFETY: the opcode states the argument's size. With a single-plane type and MMAP memory its union `m`
    // holds an offset that the kernel writes, never an address that it follows; frames land in the driver's
    // own pages.
    unsafe { ioctl(device, argument)? };
    Ok(buffer)
}

/// `VIDIOC_EXPBUF`: buffer `index` as a dma-buf, close-on-exec and read-only, as PipeWire exports it.
///
/// # Errors
/// `INVAL` if there is no such buffer, `NOTTY` if the driver cannot export.
pub(crate) fn export_buffer(device: BorrowedFd<'_>, index: u32) -> Result<OwnedFd> {
    let mut request = ExportBuffer {
        kind: VIDEO_CAPTURE,
        index,
        flags: (OFlags::RDONLY | OFlags::CLOEXEC).bits(),
        fd: -1,
        ..ExportBuffer::default()
    };
    // SAFETY: the argument of EXPBUF is `struct v4l2_exportbuffer`, which `ExportBuffer` mirrors.
    let argument = unsafe { Updater::<EXPBUF, _>::new(&mut request) };
    // SAFETY: the opcode states the argument's size, and the argument holds no pointer.
    unsafe { ioctl(device, argument)? };
    if request.fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the call succeeded, so `fd` was installed for it and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(request.fd) })
}

/// `VIDIOC_STREAMON`: the camera starts to fill the queued buffers.
///
/// # Errors
/// `INVAL` if too few buffers are queued, `BUSY` if the device streams for somebody else.
pub(crate) fn stream_on(device: BorrowedFd<'_>) -> Result<()> {
    stream_request::<STREAMON>(device)
}

/// `VIDIOC_STREAMOFF`: the camera stops; all buffers come back unfilled.
///
/// # Errors
/// `NODEV` when the camera was unplugged.
pub(crate) fn stream_off(device: BorrowedFd<'_>) -> Result<()> {
    stream_request::<STREAMOFF>(device)
}

fn stream_request<const OPCODE: Opcode>(device: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: both callers pass an opcode (STREAMON, STREAMOFF) whose argument is an `int`, the buffer type.
    let argument = unsafe { Setter::<OPCODE, u32>::new(VIDEO_CAPTURE) };
    // SAFETY: the kernel only reads that `int`; frames land in the driver's own pages.
    unsafe { ioctl(device, argument) }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_structures_are_laid_out_as_in_the_kernel_header() {
        assert_eq!(size_of::<Capability>(), 104);
        assert_eq!(offset_of!(Capability, device_caps), 88);
        assert_eq!(size_of::<PixFormat>(), 48);
        assert_eq!(size_of::<Format>(), 208);
        assert_eq!(offset_of!(Format, union), 8);
        assert_eq!(size_of::<RequestBuffers>(), 20);
        assert_eq!(size_of::<Buffer>(), 88);
        assert_eq!(offset_of!(Buffer, timestamp), 24);
        assert_eq!(offset_of!(Buffer, sequence), 56);
        assert_eq!(offset_of!(Buffer, place), 64);
        assert_eq!(offset_of!(Buffer, length), 72);
        assert_eq!(offset_of!(Buffer, request_fd), 80);
        assert_eq!(size_of::<ExportBuffer>(), 64);
        assert_eq!(offset_of!(ExportBuffer, fd), 16);
    }

    #[test]
    fn the_opcodes_are_those_of_the_kernel_header() {
        assert_eq!(QUERYCAP, 0x8068_5600);
        assert_eq!(G_FMT, 0xc0d0_5604);
        assert_eq!(REQBUFS, 0xc014_5608);
        assert_eq!(QUERYBUF, 0xc058_5609);
        assert_eq!(QBUF, 0xc058_560f);
        assert_eq!(EXPBUF, 0xc040_5610);
        assert_eq!(DQBUF, 0xc058_5611);
        assert_eq!(STREAMON, 0x4004_5612);
        assert_eq!(STREAMOFF, 0x4004_5613);
    }

    #[test]
    fn a_device_of_another_kind_answers_an_error_to_every_request() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let null = null.as_fd();
        assert_eq!(abilities(null), Err(Errno::NOTTY));
        assert_eq!(format(null), Err(Errno::NOTTY));
        assert_eq!(request_buffers(null, 4), Err(Errno::NOTTY));
        assert_eq!(buffer_length(null, 0), Err(Errno::NOTTY));
        assert_eq!(queue_buffer(null, 0), Err(Errno::NOTTY));
        assert_eq!(dequeue_buffer(null), Err(Errno::NOTTY));
        assert_eq!(export_buffer(null, 0).unwrap_err(), Errno::NOTTY);
        assert_eq!(stream_on(null), Err(Errno::NOTTY));
        assert_eq!(stream_off(null), Err(Errno::NOTTY));
    }
}
