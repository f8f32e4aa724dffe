//! Subcommands that watch the camera and leave it in different ways: in order, over and over, or with nothing undone.

use crate::camera::Camera;
use crate::failure::{Failure, Result, ensure};
use crate::window::{Window, memory_types};

/// Reads frames, then unmaps and closes everything.
pub(crate) fn camera(frames: usize) -> Result<()> {
    let mut camera = Camera::open()?;
    for _ in 0..frames {
        camera.compare_one()?;
    }
    camera.close_buffers()?;
    let tally = &camera.tally;
    let (buffers, zero, distinct) = (tally.buffers(), tally.zero, tally.distinct());
    println!("guest: camera frames={} buffers={buffers} zero={zero} distinct={distinct}", tally.frames);
    camera.check_none_zero()?;
    ensure(
        distinct > 1,
        "frames",
        format_args!("{frames} frames, {distinct} different pictures: the camera stands still"),
    )
}

/// Maps, reads a frame, unmaps and closes, again and again on one channel.
pub(crate) fn cycles(rounds: usize) -> Result<()> {
    let mut camera = Camera::open()?;
    camera.close_buffers()?;
    for round in 1..=rounds {
        camera.map_again()?;
        let offsets: Vec<String> = camera.buffers.iter().map(|buffer| format!("{:#x}", buffer.offset)).collect();
        println!("guest: cycle round={round} offsets={}", offsets.join(","));
        camera.compare_one()?;
        camera.close_buffers()?;
    }
    let tally = &camera.tally;
    println!("guest: cycles rounds={rounds} frames={} zero={}", tally.frames, tally.zero);
    camera.check_none_zero()
}

/// Closes the device while its buffers are mapped, goes on reading, and ends without unmapping anything.
pub(crate) fn leave() -> Result<()> {
    const STEP: &str = "read after close";
    let mut camera = Camera::open()?;
    // Every buffer holds a picture before the device is closed.
    while camera.tally.buffers() < camera.buffers.len() {
        camera.compare_one()?;
    }
    let kept = camera.next()?;
    let before = camera.read(kept);
    camera.check_none_zero()?;
    let Camera { channel, buffers, tally, .. } = camera;
    drop(channel);
    // The frame was not answered, so the camera does not write to its buffer.
    let after = buffers[kept.index].digest();
    ensure(after == before, STEP, format_args!("{:016x} has become {:016x}", before.hash, after.hash))?;
    let zero = buffers.iter().filter(|buffer| buffer.digest().zero).count();
    println!("guest: leave frames={} mapped={} zero={zero}", tally.frames, buffers.len());
    // The kernel unmaps and closes them when the process is gone.
    std::mem::forget(buffers);
    ensure(zero == 0, STEP, format_args!("{zero} buffers are all zero"))
}

/// Tells with which memory type the guest's kernel maps the window.
pub(crate) fn memory_type() -> Result<()> {
    const STEP: &str = "memory type";
    let mut camera = Camera::open()?;
    let types = memory_types(&Window::find()?)?;
    let first = types.first().ok_or_else(|| Failure::new(STEP, "the window is not in the list"))?;
    println!("guest: memory type={first}");
    let all = types.iter().all(|kind| kind == "write-back");
    ensure(all, STEP, format_args!("not write-back: {}", types.join(", ")))?;
    camera.close_buffers()
}
