//! Dma-bufs of every exporter that the lab's machine has, through the device in this process: what the host and a real
//! vCPU see, what is refused and how, and that nothing is left.

mod facts;
mod large;
mod live;
mod many;
mod owner;
mod read_only;
mod refusals;
mod running;
mod sizes;
