//! Round trips as the guest's driver sees them: from making a command available to having its answer.

use std::fmt;
use std::time::{Duration, Instant};

/// Durations of one kind of command.
#[derive(Debug, Default)]
pub(super) struct Stopwatch(Vec<Duration>);

impl Stopwatch {
    /// Runs `action` and keeps how long it took.
    pub(super) fn time<T>(&mut self, action: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = action();
        self.0.push(started.elapsed());
        done
    }

    /// What they come to.
    pub(super) fn summary(mut self) -> Timing {
        self.0.sort_unstable();
        let rank = |percent: usize| self.0.get((self.0.len() * percent).div_ceil(100).saturating_sub(1));
        let microseconds = |percent| rank(percent).map_or(0.0, |time| time.as_nanos() as f64 / 1000.0);
        Timing { p50: microseconds(50), p99: microseconds(99), samples: self.0.len() }
    }
}

/// Percentiles by nearest rank, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timing {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) samples: usize,
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, samples } = self;
        write!(f, "half of {samples} round trips within {p50:.1} us, 99 of 100 within {p99:.1} us")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_never_a_time_that_was_not_measured() {
        let timing = |times: Vec<u64>| Stopwatch(times.into_iter().map(Duration::from_micros).collect()).summary();
        assert_eq!(timing((1..=200).rev().collect()), Timing { p50: 100.0, p99: 198.0, samples: 200 });
        assert_eq!(timing(vec![7]), Timing { p50: 7.0, p99: 7.0, samples: 1 });
        assert_eq!(timing(vec![1, 9]), Timing { p50: 1.0, p99: 9.0, samples: 2 });
        assert_eq!(timing(vec![]), Timing { p50: 0.0, p99: 0.0, samples: 0 });
    }
}
