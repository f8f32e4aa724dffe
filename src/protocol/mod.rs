//! The bytes of the specification: structures, commands, responses, configuration layout, feature bits.
//! Nothing here knows a file descriptor, a pointer, a clock or a policy.

pub(crate) mod command;
pub mod config;
pub mod cross_domain;
pub(crate) mod decode;
pub mod features;
pub mod format;
pub(crate) mod response;
pub mod wire;

pub(crate) use command::{Command, CreateBlob};
pub(crate) use decode::{Body, DecodeError};
pub(crate) use response::{ErrorCode, Response};
