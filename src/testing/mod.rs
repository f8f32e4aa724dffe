//! The one fake guest: a driver that speaks virtio-gpu to a device over real queues in guest memory, as tests, benches,
//! the demonstration and embedders need it. It reaches no further into the device than a guest or a VMM does.
//!
//! Calls that go wrong panic with a sentence: this is code for tests.

pub mod census;
mod channel;
mod driver_queue;
mod guest;
mod ram;
mod request;
mod screen;
mod stream;

pub use channel::{GuestChannel, HostPeer, HostService, Incoming, Message, Read};
pub use driver_queue::{
    DriverQueue, Layout, Misbehaviour, Pieces, Prepared, QueueFull, RingFeatures, Segment, Table, Token, Used,
};
pub use guest::{Answer, DEADLINE, Guest, GuestOptions, Lane};
pub use ram::GuestRam;
pub use request::Request;
pub use screen::{Screen, Shown, Viewer};
