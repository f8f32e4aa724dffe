//! Where the demonstration's real buffers come from: memory that it draws a moving picture into (memfd,
//! udmabuf, dma-heap) or a camera that fills its own.
//!
//! [`open`] turns a [`SourceKind`] into a [`Source`]: a fixed set of buffers, each with a descriptor to hand to
//! a guest, and [`Source::next_frame`], which puts the next picture into one of them. [`Source::read`] tells
//! what the host sees in a buffer, so that it can be compared with what the guest sees.

pub mod camera;
pub mod memory;
pub mod picture;
pub mod pixels;

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::sys::dmabuf::{begin_cpu_access, end_cpu_access};
use crate::sys::mapping::OutOfRange;
pub use picture::PictureSize;

/// Most buffers that a source may have; V4L2 stops at 32.
pub const MAX_BUFFERS: usize = 32;

/// Which source to open, as it is named on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// The first that can be opened of udmabuf, dma-heap and memfd; never a camera.
    Auto,
    /// Sealed shared memory.
    Memfd,
    /// dma-bufs made of shared memory by `/dev/udmabuf`.
    Udmabuf,
    /// dma-bufs from `/dev/dma_heap/system`.
    DmaHeap,
    /// dma-bufs of the V4L2 camera behind this device file.
    V4l2(PathBuf),
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceKind::Auto => f.write_str("auto"),
            SourceKind::Memfd => f.write_str("memfd"),
            SourceKind::Udmabuf => f.write_str("udmabuf"),
            SourceKind::DmaHeap => f.write_str("dma-heap"),
            SourceKind::V4l2(device) => write!(f, "v4l2:{}", device.display()),
        }
    }
}

/// A source's name that stands for none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no source is called {name:?}: choose auto, memfd, udmabuf, dma-heap or v4l2:DEV (as v4l2:/dev/video0)")]
pub struct UnknownSource {
    /// What was given.
    pub name: String,
}

impl FromStr for SourceKind {
    type Err = UnknownSource;

    fn from_str(name: &str) -> Result<SourceKind, UnknownSource> {
        match name {
            "auto" => Ok(SourceKind::Auto),
            "memfd" => Ok(SourceKind::Memfd),
            "udmabuf" => Ok(SourceKind::Udmabuf),
            "dma-heap" => Ok(SourceKind::DmaHeap),
            _ => match name.strip_prefix("v4l2:") {
                Some(device) if !device.is_empty() => Ok(SourceKind::V4l2(device.into())),
                _ => Err(UnknownSource { name: name.into() }),
            },
        }
    }
}

/// What a buffer's descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandleKind {
    /// Shared memory from `memfd_create(2)`.
    Memfd,
    /// A dma-buf.
    DmaBuf,
}

impl fmt::Display for HandleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HandleKind::Memfd => "memfd",
            HandleKind::DmaBuf => "dmabuf",
        })
    }
}

/// How a frame lies in its buffer, from byte 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes from one row to the next; 0 for a compressed format.
    pub stride: u32,
    /// The format's four characters, as DRM and V4L2 write them.
    pub fourcc: [u8; 4],
}

impl Format {
    /// The four characters as text.
    #[must_use]
    pub fn fourcc_name(&self) -> String {
        self.fourcc.escape_ascii().to_string()
    }
}

/// A frame that a source has just produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The buffer that holds it, until [`Source::release`].
    pub index: usize,
    /// Its number; a camera may skip some.
    pub sequence: u64,
}

/// A fixed set of host buffers with moving contents. Dropping it closes its descriptors and takes its own
/// mappings away; memory that others have mapped lives on for them.
pub trait Source: Send {
    /// What it is: `"memfd"`, `"udmabuf"`, `"dma-heap"` or `"v4l2"`.
    fn name(&self) -> &'static str;

    /// What its descriptors are.
    fn handle(&self) -> HandleKind;

    /// How a frame lies in a buffer.
    fn format(&self) -> Format;

    /// Number of buffers, at least 1.
    fn buffers(&self) -> usize;

    /// The descriptor of a buffer.
    ///
    /// # Panics
    /// If `index` is not below [`Source::buffers`].
    fn buffer(&self, index: usize) -> BorrowedFd<'_>;

    /// Size in bytes of a buffer as the kernel tells it, a whole number of pages.
    ///
    /// # Panics
    /// If `index` is not below [`Source::buffers`].
    fn len(&self, index: usize) -> u64;

    /// Produces the next frame: draws it, or takes it from the camera. The buffer's contents then stay as they
    /// are until it is released (a camera) or its turn comes again (memory: after as many frames as there are
    /// buffers).
    ///
    /// # Errors
    /// [`SourceError::NoFrame`] and the like if a camera gives none; it never waits longer than
    /// [`camera::FRAME_DEADLINE`].
    fn next_frame(&mut self) -> Result<Frame, SourceError>;

    /// Fills `out` with all bytes of a buffer, as the source itself sees them now: through a mapping of its
    /// own and, for a dma-buf, between `DMA_BUF_SYNC_START` and `DMA_BUF_SYNC_END`.
    ///
    /// # Errors
    /// [`SourceError::NoSuchBuffer`], or the kernel's refusal to synchronise.
    fn read(&self, index: usize, out: &mut Vec<u8>) -> Result<(), SourceError>;

    /// Gives a buffer back to a camera, which will fill it again. Memory needs none of this.
    ///
    /// # Errors
    /// [`SourceError::NotHeld`] if the camera has that buffer already.
    fn release(&mut self, index: usize) -> Result<(), SourceError>;

    /// Turns the bytes of a buffer into red, green and blue bytes, `width * height` of each in turn.
    fn frame_rgb(&self, bytes: &[u8]) -> Vec<u8> {
        pixels::to_rgb(&self.format(), bytes)
    }
}

/// Why a source cannot be opened or gives no frame; each reads as one line.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The device file could not be opened.
    #[error("cannot open {}: {}", path.display(), reason(*errno))]
    CannotOpen {
        /// The device file.
        path: PathBuf,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The file opens, but no camera is behind it (or one that has only the multi-planar API).
    #[error("{} is not a V4L2 capture device", path.display())]
    NotCapture {
        /// The device file.
        path: PathBuf,
    },
    /// The camera knows only `read(2)`, which has no buffers to share.
    #[error("{} cannot stream into shared buffers", path.display())]
    NotStreaming {
        /// The device file.
        path: PathBuf,
    },
    /// A step that should have worked did not.
    #[error("{} failed: {step}: {}", path.display(), reason(*errno))]
    Device {
        /// The device file.
        path: PathBuf,
        /// What was asked of it, in the kernel's words.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The kernel refused memory, or one of the things that are done with it.
    #[error("{source_name} buffer of {size} bytes: {step}: {}", reason(*errno))]
    Memory {
        /// The source, as [`Source::name`] tells it.
        source_name: &'static str,
        /// Size of the buffer in bytes.
        size: u64,
        /// What was asked, in the kernel's words.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The camera filled no buffer in time.
    #[error("no frame within {seconds} s from {}", path.display())]
    NoFrame {
        /// The device file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The camera has no buffer left to fill.
    #[error("all {count} buffers are held: release one to get the next frame")]
    AllHeld {
        /// Number of buffers.
        count: usize,
    },
    /// The buffer is with the camera already.
    #[error("buffer {index} is not held, so it cannot be released")]
    NotHeld {
        /// The buffer.
        index: usize,
    },
    /// There is no such buffer.
    #[error("there is no buffer {index}: the source has {count}")]
    NoSuchBuffer {
        /// What was asked for.
        index: usize,
        /// Number of buffers.
        count: usize,
    },
    /// Too few or too many buffers were asked for.
    #[error("a source cannot have {count} buffers: 1 to {MAX_BUFFERS} are possible")]
    BufferCount {
        /// What was asked for.
        count: usize,
    },
}

/// The kernel's words for an error, without its number.
fn reason(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_string(),
        None => text,
    }
}

/// Opens a source with `buffers` buffers (1 to [`MAX_BUFFERS`]; a camera may make more or fewer). `size` is
/// that of a drawn picture; a camera keeps the format that it is set to.
///
/// [`SourceKind::Auto`] goes on to the next kind only where a device file cannot be opened; any other failure
/// is returned.
///
/// # Errors
/// Every [`SourceError`] but those of frames.
pub fn open(kind: &SourceKind, size: PictureSize, buffers: usize) -> Result<Box<dyn Source>, SourceError> {
    if !(1..=MAX_BUFFERS).contains(&buffers) {
        return Err(SourceError::BufferCount { count: buffers });
    }
    match kind {
        SourceKind::Auto => open_first(size, buffers),
        SourceKind::Memfd => Ok(Box::new(memory::memfd(size, buffers)?)),
        SourceKind::Udmabuf => Ok(Box::new(memory::udmabuf(size, buffers)?)),
        SourceKind::DmaHeap => Ok(Box::new(memory::dma_heap(size, buffers)?)),
        SourceKind::V4l2(device) => Ok(Box::new(camera::Camera::open(device, buffers)?)),
    }
}

fn open_first(size: PictureSize, buffers: usize) -> Result<Box<dyn Source>, SourceError> {
    for kind in [SourceKind::Udmabuf, SourceKind::DmaHeap] {
        match open(&kind, size, buffers) {
            Err(missing @ SourceError::CannotOpen { .. }) => {
                tracing::debug!(%kind, %missing, "passed over");
            }
            opened => return opened,
        }
    }
    open(&SourceKind::Memfd, size, buffers)
}

/// Opens a device file read-write and close-on-exec.
fn open_device(path: &Path, flags: OFlags) -> Result<OwnedFd, SourceError> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty())
        .map_err(|errno| SourceError::CannotOpen { path: path.to_path_buf(), errno })
}

/// What was asked of the kernel, in its own words, and why it refused.
type Refusal = (&'static str, Errno);

/// Runs `copy` on the mapping of a buffer; for a dma-buf the CPU's access is announced to the exporter before
/// and ended after, whatever `copy` answers.
fn with_cpu_access(
    handle: HandleKind,
    fd: BorrowedFd<'_>,
    write: bool,
    copy: impl FnOnce() -> Result<(), OutOfRange>,
) -> Result<(), Refusal> {
    let refused = |errno| ("DMA_BUF_IOCTL_SYNC", errno);
    let bracketed = handle == HandleKind::DmaBuf;
    if bracketed {
        begin_cpu_access(fd, write).map_err(refused)?;
    }
    let copied = copy();
    if bracketed {
        end_cpu_access(fd, write).map_err(refused)?;
    }
    copied.map_err(|_| ("copy past the end", Errno::FAULT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_written_is_read_back() {
        for name in ["auto", "memfd", "udmabuf", "dma-heap", "v4l2:/dev/video0"] {
            assert_eq!(name.parse::<SourceKind>().unwrap().to_string(), name);
        }
        let camera = SourceKind::V4l2("/dev/video0".into());
        assert_eq!("v4l2:/dev/video0".parse(), Ok(camera));
    }

    #[test]
    fn an_unknown_name_is_refused_with_all_choices() {
        for name in ["", "v4l2", "v4l2:", "camera", "Memfd", "memfd "] {
            let text = name.parse::<SourceKind>().unwrap_err().to_string();
            assert!(text.contains(&format!("{name:?}")), "{text}");
            for choice in ["auto", "memfd", "udmabuf", "dma-heap", "v4l2:DEV"] {
                assert!(text.contains(choice), "{text}");
            }
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn no_buffers_and_too_many_are_refused() {
        for count in [0, MAX_BUFFERS + 1, usize::MAX] {
            let refused = open(&SourceKind::Memfd, PictureSize::default(), count);
            assert!(matches!(refused, Err(SourceError::BufferCount { count: c }) if c == count));
        }
    }

    #[test]
    fn auto_always_finds_a_source_on_linux() {
        let source = open(&SourceKind::Auto, PictureSize::default(), 2).unwrap();
        assert!(["memfd", "udmabuf", "dma-heap"].contains(&source.name()));
        assert_eq!(source.buffers(), 2);
    }

    #[test]
    fn a_missing_camera_is_one_clear_line() {
        let missing = SourceKind::V4l2("/nonexistent/video9".into());
        let error = open(&missing, PictureSize::default(), 4).err().unwrap();
        assert_eq!(error.to_string(), "cannot open /nonexistent/video9: No such file or directory");
    }
}
