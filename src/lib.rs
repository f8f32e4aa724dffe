//! An async virtio-gpu device (virtio 1.4, device id 16) on tokio-uring, to be embedded in Rust VMMs. It lays host
//! buffers, memfds and dma-bufs, live into the guest's host-visible memory, or answers an exact error.
//!
//! # Four nouns
//! - A [`Builder`] states what a device is made of: [`Limits`], a window, displays, host sockets, a renderer. It gives a
//!   [`Device`], the VMM's handle, and runs its task on a thread of its own ([`Builder::spawn`]) or hands it over for a
//!   tokio-uring runtime that the VMM has ([`Builder::build`], [`DeviceTask::run`]).
//! - A window ([`HostWindow`], or any [`SharedMemory`]) is shared-memory region 1: the guest maps blobs into it.
//! - A [`HostBuffer`] is what a blob of host memory is made of: one descriptor, and what the kernel says it is.
//! - A [`Display`] shows what the guest draws on a scanout; a [`Monitor`] is what the guest learns of it. They come, change
//!   and go while the guest runs ([`Displays`]).
//!
//! # From kick to interrupt
//! ```text
//! kick ─▶ queue ─▶ protocol ─▶ pipeline ─▶ commands ─▶ resource / cross_domain / renderer / display
//!           ▲                     │  ▲                      └─▶ window / buffer ─▶ sys
//!           └── used + irq ◀──────┘  └── answered at once, or an awaited future comes back
//! ```
//! One task owns all state of a device; nothing is locked, and nothing is borrowed across an await. A scoreboard lets a
//! command start when no earlier one claims the same resource, mapping, context or scanout, so that a slow one holds up nobody
//! else. What may sleep in the kernel (taking back large mappings, populating them, the last close of a large file) goes
//! to io_uring's own workers; a renderer has a thread of its own, and so has each copy of a host buffer that the VMM
//! ([`Device::read_blob`]) or a display is to see; descriptors of odd kinds that a host service has sent close on one more.
//! Copies of guest memory are made on the device's thread, about a MiB a turn. Imports point down the picture only, and a
//! test says so.
//!
//! # Embedding
//! The README has a whole VMM's glue, which is compiled with the documentation's tests. The seams that a VMM implements,
//! [`Interrupt`] and where it wants to [`Display`], [`SharedMemory`] and [`Renderer`], are four traits.
//!
//! # Features
//! `cli` (default) builds the command line program. `png` is a display that writes PNG files. `testing` is the fake guest
//! that the crate's own tests drive it with, `sources` makes host buffers of every kind to try it with. An embedder needs
//! none of them. `vhost-user` is the device as a back-end ([`VhostUserServer`]), and the [`sandbox`] that it runs in; `virgl` has
//! [`RutabagaRenderer`] draw.

#[cfg(not(target_os = "linux"))]
compile_error!("the device is made of io_uring, memfds and dma-bufs: Linux only");

mod buffer;
mod commands;
mod cross_domain;
mod device;
mod display;
mod limits;
mod observe;
mod pipeline;
pub mod protocol;
mod queue;
mod renderer;
mod resource;
#[cfg(feature = "vhost-user")]
pub mod sandbox;
mod seams;
#[cfg(feature = "sources")]
pub mod sources;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(feature = "vhost-user")]
mod vhost_user;
mod window;

pub use buffer::{Access, BufferError, BufferKind, HostBuffer, ReadError};
pub use commands::{Exported, ExportedMemory};
pub use device::{
    ActivateError, Activation, BlobId, BuildError, Builder, Device, DeviceGone, DeviceTask, Displays, OfferError,
    QUEUE_SIZES, QueueSetup, Reply,
};
#[cfg(feature = "png")]
pub use display::PngDisplay;
pub use display::{ConnectError, Mode, Monitor, MonitorError, NullDisplay};
pub use limits::Limits;
pub use observe::Counters;
pub use pipeline::{PauseError, Paused};
pub use protocol::cross_domain::ChannelType;
pub use protocol::features::{DEVICE_ID, FeatureError, SHM_ID_HOST_VISIBLE};
pub use protocol::format::Format;
pub use renderer::{
    BlobMemory, BlobRequest, Capset, Direction, Fence, RenderedBlob, RenderedPicture, Renderer, RendererError,
    Resource3d, RutabagaRenderer, RutabagaSettings, Transfer3d,
};
pub use resource::{GuestBacking, HostPiece, NotBacked, PinnedBacking};
pub use seams::{
    Area, Caching, Cursor, Display, DmaBuf, FixedRange, Interrupt, LocalFuture, Picture, Pixels, PlaceError, Plane,
    Protection, SharedMemory, Work,
};
#[cfg(feature = "vhost-user")]
pub use sys::inherited::inherited_descriptor;
#[cfg(feature = "vhost-user")]
pub use vhost_user::{CutOff, SharedGuestMemory, Stopper, VhostUserServer, VhostUserSettings};
pub use window::{HostWindow, ReadOnlyPolicy};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/channels.md")]
struct Channels;
