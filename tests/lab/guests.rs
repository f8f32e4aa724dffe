//! Linux guests with their own virtio-gpu driver, in the example VMM: what a program in the guest sees of host buffers, and
//! what it cannot do to them.

mod camera;
mod gaps;
mod live;
mod refused;
mod served;
mod unbind;
mod unreachable;
mod unwritable;
mod vandal;
mod vm;
