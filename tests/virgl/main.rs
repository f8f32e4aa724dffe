//! virgl and Venus for real: a fake guest's streams through the device to virglrenderer, on a software GPU.
//!
//! What a software GPU shows: that commands, pixels, fences, memory and their ends are right. What it has not, and only a GPU
//! would show: pictures and buffers in dma-bufs, OpenGL's buffers in the window, fences that take long.
//!
//! virglrenderer allows for one virgl in a process, ever. So most tests share one device, one test at a time, and each of
//! them begins with a reset: what that leaves behind, the next test finds. Tests that count what a process holds, that may bring
//! it down, or that need a device of their own run in a process of their own: this program once more (`alone`).

#[path = "../pipewire/alone.rs"]
mod alone;
mod fences;
mod garbage;
mod hostile;
mod own;
mod pixels;
mod resets;
mod shown;
mod stream;
mod studio;
mod venus;
