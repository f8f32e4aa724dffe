//! Linux guests with their own virtio-gpu driver, in the example VMM: what a program in the guest sees of host buffers, what
//! it cannot do to them, and what the host sees of the guest's pictures.

mod camera;
mod gaps;
mod live;
mod mesa;
mod modetest;
mod pictures;
mod pipewire;
mod refused;
mod served;
mod shown;
mod unbind;
mod unreachable;
mod unwritable;
mod vandal;
mod vm;

/// The guest program's pictures, as it computes them itself.
#[path = "guest/src/pattern.rs"]
mod pattern;
