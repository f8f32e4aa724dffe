//! The closet every room may open: log macros that a guest cannot turn into a flood, and the counters
//! that a VMM reads while the device runs. It imports nothing of the crate.

mod counters;
pub(crate) mod limited;

pub use counters::Counters;
pub(crate) use counters::LiveCounters;
pub(crate) use limited::{error_limited, warn_limited};
