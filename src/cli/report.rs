//! The account of a story, in plain words or as one line of JSON.

use std::fmt;
use std::path::PathBuf;

use serde_json::json;
use virtio_gpu_uring::sources::{HandleKind, SourceKind};

use super::measure::Timing;
use super::story::Seen;

/// All that there is to tell.
#[derive(Debug)]
pub(super) struct Account {
    /// What was asked for.
    pub(super) source: SourceKind,
    pub(super) seen: Seen,
    pub(super) fds_leaked: usize,
    pub(super) maps_leaked: usize,
    /// The file that has the last frame.
    pub(super) png: Option<PathBuf>,
}

impl Account {
    /// Frames were compared, and nothing was wrong.
    pub(super) fn is_clean(&self) -> bool {
        let compared = &self.seen.compared;
        let wrong = [compared.zero, compared.mismatched, self.seen.stale_buffers];
        compared.frames > 0 && wrong == [0; 3] && (self.fds_leaked, self.maps_leaked) == (0, 0)
    }

    /// The source, as it could be asked for again.
    fn source(&self) -> String {
        match &self.source {
            camera @ SourceKind::V4l2(_) => camera.to_string(),
            _ => self.seen.source.to_string(),
        }
    }

    /// One line of JSON. Times are in microseconds but for `elapsed_ms`.
    pub(super) fn json(&self) -> String {
        let Seen { handle, format, buffers, buffer_len, compared, stale_buffers, map, command, elapsed, .. } =
            &self.seen;
        let timing = |timing: &Timing| json!({ "p50": timing.p50, "p99": timing.p99, "samples": timing.samples });
        let line = json!({
            "source": self.source(),
            "handle": handle.to_string(),
            "frames": compared.frames,
            "zero_frames": compared.zero,
            "mismatched_frames": compared.mismatched,
            "bytes_compared": compared.bytes,
            "buffers": buffers,
            "buffer_bytes": buffer_len,
            "width": format.width,
            "height": format.height,
            "format": format.fourcc_name(),
            "map_us": timing(map),
            "command_us": timing(command),
            "stale_buffers": stale_buffers,
            "fds_leaked": self.fds_leaked,
            "maps_leaked": self.maps_leaked,
            "elapsed_ms": elapsed.as_millis() as u64,
            "ok": self.is_clean(),
        });
        format!("{line}\n")
    }
}

/// A short text for people.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { handle, format, buffers, buffer_len, window, compared, .. } = &self.seen;
        let kind = match (handle, buffers) {
            (HandleKind::DmaBuf, 1) => "dma-buf",
            (HandleKind::DmaBuf, _) => "dma-bufs",
            (HandleKind::Memfd, 1) => "memfd",
            (HandleKind::Memfd, _) => "memfds",
        };
        let picture = format!("{}x{} {}", format.width, format.height, format.fourcc_name());
        writeln!(f, "source      {}: {buffers} {kind} of {buffer_len} bytes, {picture}", self.source())?;
        writeln!(f, "guest       got them through a Unix socket and mapped them into a {} MiB window", window >> 20)?;
        let megabytes = compared.bytes as f64 / f64::from(1 << 20);
        let (frames, zero, mismatched) = (compared.frames, compared.zero, compared.mismatched);
        writeln!(
            f,
            "frames      {frames} compared in every byte ({megabytes:.1} MiB): {zero} zero, {mismatched} mismatched"
        )?;
        writeln!(f, "map         {}", self.seen.map)?;
        writeln!(f, "command     {}", self.seen.command)?;
        let (stale, fds, maps) = (self.seen.stale_buffers, self.fds_leaked, self.maps_leaked);
        writeln!(f, "afterwards  {stale} buffers seen after unmap, {fds} descriptors and {maps} mappings leaked")?;
        if let Some(png) = &self.png {
            writeln!(f, "picture     the last frame as the guest saw it: {}", png.display())?;
        }
        if self.is_clean() {
            let seconds = self.seen.elapsed.as_secs_f64();
            writeln!(
                f,
                "ok          every frame was live in the guest's window, nothing was left behind ({seconds:.2} s)"
            )
        } else {
            writeln!(f, "FAILED      what is not 0 above is wrong")
        }
    }
}
