//! The closet every room may open: log macros that a guest cannot turn into a flood, and the counters
//! that a VMM reads while the device runs. It imports nothing of the crate.

mod counters;
pub(crate) mod limited;

pub(crate) use counters::Counters;
pub use counters::Snapshot;
pub(crate) use limited::{error_limited, warn_limited};
