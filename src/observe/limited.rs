//! Logs that somebody else can trigger: a guest, a host peer or a front-end. Each call site has a token
//! bucket of its own, so that a guest in a loop fills neither a disk nor the device's time, and so that one
//! noisy message does not silence the others.
//!
//! The rule for callers: `tracing::warn!` and `tracing::error!` are banned in this crate (`clippy.toml`);
//! [`warn_limited!`] and [`error_limited!`] take their place.
//!
//! A site may emit [`BURST`] messages at once and earns one more every [`INTERVAL`]. What was held back is
//! counted, and the next message that passes says the number in its field `suppressed`.
//!
//! The bucket is kept as one number, the instant at which it would be full again (the *theoretical arrival
//! time* of the generic cell rate algorithm): taking a token moves that instant one interval on, and a
//! bucket is empty when it lies a whole burst ahead of now. So one compare-and-swap takes a token, and
//! nothing has to be refilled.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Messages that one call site may emit in a row after a quiet time: enough to see the shape of a fault.
pub(crate) const BURST: u32 = 10;

/// How long a call site waits for its next message once its burst is spent: slow enough to leave running for days.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

const INTERVAL_NS: u64 = INTERVAL.as_nanos() as u64;

/// How far ahead of now a bucket may reach and still have a token.
const REACH_NS: u64 = INTERVAL_NS * (BURST as u64 - 1);

/// The token bucket of one call site, meant for a `static`. It knows no clock: the caller says what time it is.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// When the bucket is full again, in nanoseconds on the caller's clock.
    full_at: AtomicU64,
    /// Messages held back since the last one that passed.
    suppressed: AtomicU64,
}

impl Limiter {
    /// A full bucket.
    pub(crate) const fn new() -> Self {
        Self { full_at: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Asks to emit a message at `now`, a time since any fixed origin. `Some(n)` lets it pass and hands over
    /// how many were held back since the last that passed; `None` holds it back and counts it.
    ///
    /// Threads that ask at once share the burst exactly, and every held-back message is reported once.
    pub(crate) fn admit(&self, now: Duration) -> Option<u64> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let full_at = full_at.max(now);
            (full_at - now <= REACH_NS).then(|| full_at.saturating_add(INTERVAL_NS))
        });
        match taken {
            Ok(_) => Some(self.suppressed.swap(0, Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Relaxed);
                None
            }
        }
    }
}

/// The clock of all limiters: monotonic time since the first message of the process.
pub(crate) fn now() -> Duration {
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    ORIGIN.elapsed()
}

/// `tracing::warn!` for what a guest, a host peer or a front-end can trigger, limited per call site.
///
/// Takes fields and a message as `tracing::warn!` does (no `target:`, `parent:` or `name:`). Where the level
/// is off, neither the fields are evaluated nor the clock read.
macro_rules! warn_limited {
    ($($fields_and_message:tt)+) => {
        $crate::observe::limited::limit_call_site!(WARN, $($fields_and_message)+)
    };
}

/// `tracing::error!` for what a guest, a host peer or a front-end can trigger: as [`warn_limited!`].
macro_rules! error_limited {
    ($($fields_and_message:tt)+) => {
        $crate::observe::limited::limit_call_site!(ERROR, $($fields_and_message)+)
    };
}

/// Asks the limiter of this call site, where the level is on at all.
macro_rules! limit_call_site {
    ($level:ident, $($fields_and_message:tt)+) => {
        if ::tracing::enabled!(::tracing::Level::$level) {
            static LIMITER: $crate::observe::limited::Limiter = $crate::observe::limited::Limiter::new();
            let admitted = LIMITER.admit($crate::observe::limited::now());
            $crate::observe::limited::emit_admitted!(admitted, $level, $($fields_and_message)+);
        }
    };
}

/// Emits what a limiter's answer (see [`Limiter::admit`]) lets pass, with the number that it held back before.
/// `tracing::event!` is what `tracing::warn!` and `tracing::error!` stand for; only these two are banned.
macro_rules! emit_admitted {
    ($admitted:expr, $level:ident, $($fields_and_message:tt)+) => {
        if let Some(suppressed) = $admitted {
            let suppressed = (suppressed > 0).then_some(suppressed);
            ::tracing::event!(::tracing::Level::$level, suppressed, $($fields_and_message)+);
        }
    };
}

pub(crate) use {emit_admitted, error_limited, limit_call_site, warn_limited};

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    /// How many of `asked` messages pass at `now`.
    fn passing(limiter: &Limiter, asked: u32, now: Duration) -> usize {
        (0..asked).filter_map(|_| limiter.admit(now)).count()
    }

    #[test]
    fn a_flood_passes_no_more_than_its_burst() {
        let limiter = Limiter::new();
        assert_eq!(passing(&limiter, 10_000, Duration::ZERO), BURST as usize);
    }

    #[test]
    fn a_long_flood_passes_one_message_an_interval_after_its_burst() {
        let limiter = Limiter::new();
        let start = Duration::from_secs(86_400);
        let passed: usize = (0..10_000).map(|tick| passing(&limiter, 3, start + tick * INTERVAL / 100)).sum();
        assert_eq!(passed, BURST as usize + 99);
    }

    #[test]
    fn no_held_back_message_goes_unreported_or_is_reported_twice() {
        let limiter = Limiter::new();
        assert_eq!(limiter.admit(Duration::ZERO), Some(0));
        passing(&limiter, BURST + 41, Duration::ZERO);
        assert_eq!(limiter.admit(INTERVAL), Some(42));
        assert_eq!(limiter.admit(INTERVAL), None);
        assert_eq!(limiter.admit(2 * INTERVAL), Some(1));
    }

    #[test]
    fn a_token_does_not_come_a_moment_too_early() {
        let limiter = Limiter::new();
        passing(&limiter, BURST, Duration::ZERO);
        assert_eq!(limiter.admit(INTERVAL - Duration::from_nanos(1)), None);
        assert_eq!(limiter.admit(INTERVAL), Some(1));
    }

    #[test]
    fn a_quiet_time_saves_up_no_more_than_one_burst() {
        let limiter = Limiter::new();
        passing(&limiter, BURST, Duration::ZERO);
        assert_eq!(passing(&limiter, 100, 3600 * INTERVAL), BURST as usize);
    }

    #[test]
    fn neither_a_clock_at_its_end_nor_one_that_steps_back_panics_or_opens_the_gate() {
        let limiter = Limiter::new();
        assert_eq!(limiter.admit(Duration::MAX), Some(0));
        assert_eq!(limiter.admit(Duration::ZERO), None);
    }

    #[test]
    fn threads_that_ask_at_once_do_not_exceed_the_burst() {
        let limiter = Limiter::new();
        let passed: usize = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| passing(&limiter, 1000, Duration::ZERO)));
            threads.map(|thread| thread.join().unwrap()).iter().sum()
        });
        assert_eq!(passed, BURST as usize);
        assert_eq!(limiter.admit(INTERVAL), Some(4000 - u64::from(BURST)));
    }

    /// Keeps each event of at least `level` as a line of `name=value`.
    struct Recorder {
        level: Level,
        lines: Arc<Mutex<Vec<String>>>,
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0 += &format!("{}={value:?} ", field.name());
        }
    }

    impl Subscriber for Recorder {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= self.level
        }
        fn event(&self, event: &Event<'_>) {
            let mut line = Line(format!("{} ", event.metadata().level()));
            event.record(&mut line);
            self.lines.lock().unwrap().push(line.0.trim_end().to_owned());
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    /// What `body` logs at `level` and above.
    fn logged(level: Level, body: impl FnOnce()) -> Vec<String> {
        let lines = Arc::default();
        let recorder = Recorder { level, lines: Arc::clone(&lines) };
        tracing::subscriber::with_default(recorder, body);
        std::mem::take(&mut *lines.lock().unwrap())
    }

    #[test]
    fn a_message_loses_neither_its_fields_nor_its_level() {
        let (resource, offset) = (7_u32, 4096_u64);
        let lines = logged(Level::WARN, || {
            crate::observe::warn_limited!(resource, offset, "unmap of an unmapped blob");
            crate::observe::error_limited!(error = %"EIO", "lost {} of {}", 1, 2);
            crate::observe::warn_limited!("plain");
        });
        assert_eq!(
            lines,
            [
                "WARN message=unmap of an unmapped blob resource=7 offset=4096",
                "ERROR message=lost 1 of 2 error=EIO",
                "WARN message=plain",
            ]
        );
    }

    #[test]
    fn a_call_site_in_a_loop_fills_no_log_and_silences_no_other() {
        let lines = logged(Level::WARN, || {
            for turn in 0..1000_u32 {
                crate::observe::warn_limited!(turn, "loop");
            }
            crate::observe::warn_limited!("other");
        });
        assert!((2..=1 + 2 * BURST as usize).contains(&lines.len()), "{lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("WARN message=other"));
    }

    #[test]
    fn a_message_after_a_flood_does_not_hide_how_many_were_held_back() {
        let limiter = Limiter::new();
        let site = |now| emit_admitted!(limiter.admit(now), WARN, resource = 7, "refused");
        logged(Level::WARN, || (0..BURST + 5).for_each(|_| site(Duration::ZERO)));
        let lines = logged(Level::WARN, || (1..=2).for_each(|turn| site(turn * INTERVAL)));
        assert_eq!(lines, ["WARN message=refused suppressed=5 resource=7", "WARN message=refused resource=7",]);
    }

    #[test]
    fn a_level_that_is_off_evaluates_no_field_and_spends_no_token() {
        let evaluated = Cell::new(0_u32);
        let site = || {
            crate::observe::warn_limited!(value = evaluated.replace(evaluated.get() + 1), "costly");
        };
        assert_eq!(logged(Level::ERROR, || (0..1000).for_each(|_| site())), [""; 0]);
        assert_eq!(evaluated.get(), 0);
        assert_eq!(logged(Level::WARN, site), ["WARN message=costly value=0"]);
    }
}
