//! The defects that were found in an existing virtio-gpu device and its bridge, one test for each that could happen here.
//! The rows are those of a defect table in the project's notes; each test names its row and what must not happen.
//!
//! Without a test: row 32 (caching and CPU access of dma-bufs on hosts that are not coherent), which needs such a host.
#![cfg(feature = "testing")]

#[path = "defects/channel.rs"]
mod channel;
#[path = "defects/displays.rs"]
mod displays;
#[path = "defects/exhausted.rs"]
mod exhausted;
#[path = "defects/fences.rs"]
mod fences;
#[path = "defects/items.rs"]
mod items;
#[path = "defects/requests.rs"]
mod requests;
#[path = "blobs/setup.rs"]
mod setup;
#[path = "defects/window.rs"]
mod window;
