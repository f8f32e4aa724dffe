//! How a subcommand fails: the step that did not work, and why, as one line that a test can look for.

use std::fmt::{self, Display, Formatter};

/// Prints as `<step>: <reason>`.
#[derive(Debug)]
pub(crate) struct Failure {
    step: &'static str,
    reason: String,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(step: &'static str, reason: impl Display) -> Self {
        Self { step, reason: reason.to_string() }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.reason)
    }
}

impl From<Failure> for std::io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure.to_string())
    }
}

/// Names the step that an error belongs to.
pub(crate) trait In<T> {
    fn during(self, step: &'static str) -> Result<T>;
}

impl<T, E: Display> In<T> for std::result::Result<T, E> {
    fn during(self, step: &'static str) -> Result<T> {
        self.map_err(|error| Failure::new(step, error))
    }
}

/// Ends a subcommand where something is not as it must be.
pub(crate) fn ensure(holds: bool, step: &'static str, reason: impl Display) -> Result<()> {
    if holds { Ok(()) } else { Err(Failure::new(step, reason)) }
}
