//! Subcommands that write where a guest has no business: all over a camera's buffer, and into the window's gaps.

use std::io;

use rustix::io::Errno;
use rustix::termios::tcdrain;

use crate::camera::Camera;
use crate::drm::PAGE;
use crate::failure::{Failure, Result, ensure};
use crate::window::{Gap, Window};

/// What the buffer is filled with.
const SCRAWL: u8 = 0x5a;

/// A camera of which one buffer was written all over.
struct Vandalised {
    camera: Camera,
    victim: usize,
    skipped: usize,
}

impl Vandalised {
    /// Takes `frames` frames of the other buffers; what was written must still be there.
    fn watch(&mut self, frames: usize) -> Result<()> {
        let end = self.camera.tally.frames + frames;
        while self.camera.tally.frames < end {
            let frame = self.camera.next()?;
            if frame.index == self.victim {
                self.camera.skip(frame)?;
                self.skipped += 1;
            } else {
                let digest = self.camera.read(frame);
                self.camera.seen(frame, digest)?;
            }
        }
        self.camera.check_none_zero()?;
        let kept = self.camera.buffers[self.victim].is_full_of(SCRAWL);
        ensure(kept, "vandalised buffer", "the guest's own writes are gone")
    }
}

/// Writes all over one buffer, watches the others, writes all over the gaps, and watches again.
pub(crate) fn vandal(frames: usize) -> Result<()> {
    let mut camera = Camera::open()?;
    let frame = camera.next()?;
    let before = camera.read(frame);
    let victim = frame.index;
    camera.buffers[victim].fill(SCRAWL);
    println!("guest: vandal wrote buffer={victim} bytes={}", camera.buffers[victim].size());
    // The host compares with what its own mapping holds now: a write that got through would be seen.
    camera.seen(frame, before)?;
    let mut vandalised = Vandalised { camera, victim, skipped: 0 };
    vandalised.watch(frames)?;
    let bytes: usize = Window::find()?.map_gaps()?.iter().map(scrawl).sum();
    ensure(bytes > 0, "gap", "the window has none")?;
    vandalised.watch(frames)?;
    let Vandalised { mut camera, skipped, .. } = vandalised;
    camera.close_buffers()?;
    println!("guest: vandal frames={} gaps={bytes} skipped={skipped}", camera.tally.frames);
    Ok(())
}

/// Touches the first page of a gap. Where the host answers that with the machine's end, this is the last line.
pub(crate) fn gap() -> Result<()> {
    let gaps = Window::find()?.map_gaps()?;
    let gap = gaps.first().ok_or_else(|| Failure::new("gap", "the window has none"))?;
    println!("guest: gap touching {:#x}", gap.start);
    last_words()?;
    let word = gap.memory.word(0);
    gap.memory.set_word(0, !word);
    println!("guest: gap lives address={:#x} word={word:#x}", gap.start);
    Ok(())
}

/// Waits until the console has sent what was printed. A print ends when the kernel has taken the line, and the machine may end
/// before another processor has sent it.
fn last_words() -> Result<()> {
    match tcdrain(io::stdout()) {
        // What is no terminal keeps nothing back.
        Ok(()) | Err(Errno::NOTTY) => Ok(()),
        Err(errno) => Err(Failure::new("tcdrain", errno)),
    }
}

/// Writes to every page of a gap and reads it back, whatever comes; returns the gap's length.
fn scrawl(gap: &Gap) -> usize {
    let len = gap.memory.len();
    let pages = || (0..len).step_by(PAGE);
    pages().for_each(|offset| gap.memory.set_word(offset, !(offset as u64)));
    let kept = pages().filter(|offset| gap.memory.word(*offset) == !(*offset as u64)).count();
    println!("guest: gap wrote address={:#x} pages={} kept={kept}", gap.start, len / PAGE);
    len
}
