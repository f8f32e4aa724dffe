//! A host's PipeWire daemon, a native client of it, and a client behind the device: both see the same frames.
//! `tests/pipewire/prepare` installs the daemon and builds the client.
#![cfg(feature = "testing")]

mod alone;
mod camera;
mod channel;
mod client;
mod daemon;
mod endings;
mod frames;
mod judge;
mod machine;
mod stage;
mod witness;
