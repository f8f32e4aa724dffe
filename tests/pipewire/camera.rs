//! The lab's camera, made slow enough for a machine that emulates every instruction.
#![expect(unsafe_code, reason = "an ioctl has no safe form")]

use std::ffi::c_int;
use std::fs::File;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// The camera that `camera.conf` names.
const CAMERA: &str = "/dev/video0";
/// The second of its inputs, as `tests/lab/run` makes them: a webcam, which has few and small pictures. The first one has
/// sizes that PipeWire 1.4 finds no common format for.
const WEBCAM: c_int = 1;
/// `VIDIOC_S_INPUT`.
const S_INPUT: Opcode = opcode::read_write::<c_int>(b'V', 39);

/// Has the camera show what the webcam sees.
pub(crate) fn choose_webcam() {
    let camera = File::options().read(true).write(true).open(CAMERA).expect("the lab's camera");
    let mut input = WEBCAM;
    // SAFETY: VIDIOC_S_INPUT takes a pointer to an `int`, which it reads and writes back.
    let choose = unsafe { Updater::<S_INPUT, c_int>::new(&mut input) };
    // SAFETY: the kernel touches no memory but that `int`, which lives until the call returns.
    unsafe { ioctl(&camera, choose) }.expect("the webcam among the camera's inputs");
}
