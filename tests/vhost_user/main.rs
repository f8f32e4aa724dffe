//! The device behind a vhost-user socket: a front-end of the tests' own, whose guest has a driver that works.
#![cfg(all(feature = "testing", feature = "vhost-user"))]

#[path = "../sandbox/alone.rs"]
#[allow(dead_code, reason = "shared with the sandbox's tests, which use more of it")]
mod alone;
mod blobs;
mod endings;
mod front_end;
mod life;
mod machine;
mod memory;
mod stops;
mod wrong;
