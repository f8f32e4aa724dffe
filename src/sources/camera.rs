//! A V4L2 camera as a source: its own capture buffers, exported as dma-bufs, so that what reaches the guest
//! is what the driver wrote and nothing was copied on the way.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;

use super::{Format, Frame, HandleKind, Refusal, Source, SourceError, open_device, with_cpu_access};
use crate::sys::mapping::{MappingAccess, SharedMapping};
use crate::sys::v4l2;

/// How long a frame may take: a camera that was stopped or broke is an error then, and no hang.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(2);

/// A capture device that streams into buffers which others see, too. Dropping it stops the stream.
#[derive(Debug)]
pub struct Camera {
    path: PathBuf,
    format: Format,
    buffers: Vec<CameraBuffer>,
    device: OwnedFd,
}

#[derive(Debug)]
struct CameraBuffer {
    mapping: SharedMapping,
    fd: OwnedFd,
    len: u64,
    /// Dequeued and not yet released: the driver does not write it.
    held: bool,
}

impl Camera {
    /// Opens the device, has it make about `buffers` buffers, exports them read-only, and starts the stream.
    /// The device keeps the format that it is set to.
    ///
    /// # Errors
    /// [`SourceError::CannotOpen`], [`SourceError::NotCapture`], [`SourceError::NotStreaming`], or
    /// [`SourceError::Device`] with the request that failed (a camera that is in use answers "Device or
    /// resource busy" to `VIDIOC_REQBUFS`).
    pub fn open(path: &Path, buffers: usize) -> Result<Camera, SourceError> {
        let device = open_device(path, OFlags::NONBLOCK)?;
        check_abilities(&device, path)?;
        let pix = v4l2::format(device.as_fd()).map_err(|e| failed(path, "VIDIOC_G_FMT", e))?;
        let mut camera = Camera {
            path: path.to_path_buf(),
            format: Format {
                width: pix.width,
                height: pix.height,
                stride: pix.bytesperline,
                fourcc: pix.pixelformat.to_le_bytes(),
            },
            buffers: Vec::new(),
            device,
        };
        camera.make_buffers(u32::try_from(buffers).unwrap_or(u32::MAX))?;
        v4l2::stream_on(camera.device.as_fd()).map_err(|e| camera.failed("VIDIOC_STREAMON", e))?;
        Ok(camera)
    }

    /// Has the driver allocate buffers, and gives each to it once it is exported and mapped.
    fn make_buffers(&mut self, wanted: u32) -> Result<(), SourceError> {
        let made = v4l2::request_buffers(self.device.as_fd(), wanted).map_err(|e| self.failed("VIDIOC_REQBUFS", e))?;
        if made == 0 {
            return Err(self.failed("VIDIOC_REQBUFS", Errno::NOMEM));
        }
        for index in 0..made {
            let buffer =
                CameraBuffer::new(self.device.as_fd(), index).map_err(|(step, errno)| self.failed(step, errno))?;
            self.buffers.push(buffer);
            v4l2::queue_buffer(self.device.as_fd(), index).map_err(|e| self.failed("VIDIOC_QBUF", e))?;
        }
        Ok(())
    }

    fn failed(&self, step: &'static str, errno: Errno) -> SourceError {
        failed(&self.path, step, errno)
    }

    fn no_such_buffer(&self, index: usize) -> SourceError {
        SourceError::NoSuchBuffer { index, count: self.buffers.len() }
    }

    /// Takes the next undamaged buffer from the driver; a damaged one goes straight back to it.
    fn dequeue(&mut self) -> Result<Option<Frame>, SourceError> {
        let filled = match v4l2::dequeue_buffer(self.device.as_fd()) {
            Err(Errno::AGAIN) => return Ok(None),
            answer => answer.map_err(|e| self.failed("VIDIOC_DQBUF", e))?,
        };
        if filled.damaged || filled.bytes_used == 0 {
            v4l2::queue_buffer(self.device.as_fd(), filled.index).map_err(|e| self.failed("VIDIOC_QBUF", e))?;
            return Ok(None);
        }
        let index = filled.index as usize;
        match self.buffers.get_mut(index) {
            Some(buffer) => buffer.held = true,
            None => return Err(self.no_such_buffer(index)),
        }
        Ok(Some(Frame { index, sequence: u64::from(filled.sequence) }))
    }
}

impl CameraBuffer {
    /// Exports buffer `index` and maps the export, whose size must cover what the driver calls its length.
    fn new(device: BorrowedFd<'_>, index: u32) -> Result<CameraBuffer, Refusal> {
        let length = v4l2::buffer_length(device, index).map_err(|e| ("VIDIOC_QUERYBUF", e))?;
        let fd = v4l2::export_buffer(device, index).map_err(|e| ("VIDIOC_EXPBUF", e))?;
        let len = seek(&fd, SeekFrom::End(0)).map_err(|e| ("lseek", e))?;
        if len < u64::from(length) {
            return Err(("size of the exported buffer", Errno::OVERFLOW));
        }
        let mapped = usize::try_from(len).map_err(|_| ("mmap", Errno::NOMEM))?;
        let mapping = SharedMapping::new(fd.as_fd(), mapped, MappingAccess::Read).map_err(|e| ("mmap", e))?;
        Ok(CameraBuffer { mapping, fd, len, held: false })
    }
}

fn failed(path: &Path, step: &'static str, errno: Errno) -> SourceError {
    SourceError::Device { path: path.to_path_buf(), step, errno }
}

fn check_abilities(device: &OwnedFd, path: &Path) -> Result<(), SourceError> {
    let path = path.to_path_buf();
    match v4l2::abilities(device.as_fd()) {
        Ok(can) if can.captures && can.streams => Ok(()),
        Ok(can) if can.captures => Err(SourceError::NotStreaming { path }),
        Ok(_) | Err(Errno::NOTTY | Errno::INVAL) => Err(SourceError::NotCapture { path }),
        Err(errno) => Err(failed(&path, "VIDIOC_QUERYCAP", errno)),
    }
}

/// Waits until there is something to read, or an error to fetch, from `fd`; false if `deadline` came first.
fn readable_before(fd: BorrowedFd<'_>, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            answer => return answer.map(|ready| ready > 0),
        }
    }
}

impl Source for Camera {
    fn name(&self) -> &'static str {
        "v4l2"
    }

    fn handle(&self) -> HandleKind {
        HandleKind::DmaBuf
    }

    fn format(&self) -> Format {
        self.format
    }

    fn buffers(&self) -> usize {
        self.buffers.len()
    }

    fn buffer(&self, index: usize) -> BorrowedFd<'_> {
        self.buffers[index].fd.as_fd()
    }

    fn len(&self, index: usize) -> u64 {
        self.buffers[index].len
    }

    fn next_frame(&mut self) -> Result<Frame, SourceError> {
        if self.buffers.iter().all(|buffer| buffer.held) {
            return Err(SourceError::AllHeld { count: self.buffers.len() });
        }
        let deadline = Instant::now() + FRAME_DEADLINE;
        loop {
            if let Some(frame) = self.dequeue()? {
                return Ok(frame);
            }
            let ready = readable_before(self.device.as_fd(), deadline).map_err(|e| self.failed("poll", e))?;
            if !ready {
                return Err(SourceError::NoFrame { path: self.path.clone(), seconds: FRAME_DEADLINE.as_secs() });
            }
        }
    }

    fn read(&self, index: usize, out: &mut Vec<u8>) -> Result<(), SourceError> {
        let buffer = self.buffers.get(index).ok_or_else(|| self.no_such_buffer(index))?;
        out.resize(buffer.mapping.len(), 0);
        let copy = || buffer.mapping.read(0, out);
        with_cpu_access(HandleKind::DmaBuf, buffer.fd.as_fd(), false, copy)
            .map_err(|(step, errno)| self.failed(step, errno))
    }

    fn release(&mut self, index: usize) -> Result<(), SourceError> {
        match self.buffers.get(index) {
            None => return Err(self.no_such_buffer(index)),
            Some(buffer) if !buffer.held => return Err(SourceError::NotHeld { index }),
            Some(_) => {}
        }
        v4l2::queue_buffer(self.device.as_fd(), index as u32).map_err(|e| self.failed("VIDIOC_QBUF", e))?;
        self.buffers[index].held = false;
        Ok(())
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        if let Err(errno) = v4l2::stream_off(self.device.as_fd()) {
            tracing::debug!(path = %self.path.display(), %errno, "VIDIOC_STREAMOFF");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_file_that_is_no_camera_is_one_clear_line() {
        let error = Camera::open(Path::new("/dev/null"), 4).unwrap_err();
        assert_eq!(error.to_string(), "/dev/null is not a V4L2 capture device");
        let error = Camera::open(Path::new("/"), 4).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /: Is a directory");
    }

    #[test]
    fn waiting_for_a_dead_device_ends() {
        let silent = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let deadline = Instant::now() + Duration::from_millis(5);
        assert_eq!(readable_before(silent.as_fd(), deadline), Ok(false));
        assert!(Instant::now() >= deadline);
        let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(readable_before(ready.as_fd(), later), Ok(true));
        assert_eq!(readable_before(ready.as_fd(), deadline), Ok(false));
    }
}
