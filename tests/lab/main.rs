//! What only the lab's machine can show: dma-bufs of every exporter, and Linux guests that map them. `tests/lab/run` starts
//! that machine, and `tests/lab/checks` runs this program in it; nothing is skipped there.

mod desk;
mod dmabufs;
mod exporters;
mod fences;
mod guests;
mod rendered;
mod scanouts;
mod vcpu;
mod vgem;
