//! What the device counts while it runs, readable by the VMM at any time without asking the device task.
//! One list defines both the live counters and the plain snapshot, so that neither can lack a field.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One number that only goes up. One thread writes it, any thread may read it.
///
/// The device task is the single writer of all its counters (its channels are tasks of the same thread), so
/// a load and a store are enough and spare the hot path a locked add. A second writer would lose counts.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Counts one. For the device task alone.
    #[inline]
    pub(crate) fn bump(&self) {
        self.add(1);
    }

    /// Counts `n`; wraps at the end of `u64`. For the device task alone.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Relaxed);
    }

    /// The number now.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Defines [`LiveCounters`] and [`Counters`] from one documented list.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The live counters of one device, shared by `Arc` between the device task, which writes them, and
        /// the VMM's handle, which reads them. They count from the device's creation and survive resets.
        #[derive(Debug, Default)]
        pub(crate) struct LiveCounters {
            $($(#[doc = $doc])+ pub(crate) $name: Counter,)+
        }

        /// What a device's counters showed at one time. The fields are read one after another: each is exact, but
        /// two of them may be some commands apart while the device runs.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl LiveCounters {
            /// Reads all counters.
            pub(crate) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counters! {
    /// Wake-ups by the guest's notifications, of all queues.
    kicks,
    /// Requests taken from the rings, well formed or not.
    commands,
    /// Requests answered with one of the specification's OK codes.
    answers_ok,
    /// Requests answered with one of the specification's error codes.
    answers_error,
    /// Requests that carried a fence.
    fenced,
    /// Interrupts sent for used buffers: at most one a batch.
    interrupts,
    /// Batches that needed no interrupt, because the driver had asked for none.
    interrupts_suppressed,
    /// Times the driver was to be told that the device needs a reset.
    needs_resets,
    /// Requests that were dropped without an answer. Anything but 0 is a bug of this crate.
    requests_lost,
    /// Queues parked because their ring was broken.
    rings_broken,
    /// Times the device stopped popping because its pipeline was full.
    stalls_full,
    /// Commands and descriptors answered out of memory: by a limit, by the renderer or by the host.
    limit_refusals,
    /// Blobs mapped into the window.
    maps,
    /// Blobs unmapped from the window by command; UNREF and reset unmap without being counted here.
    unmaps,
    /// Maps that were begun and failed; the window is as it was.
    map_failures,
    /// Mappings, teardowns and other work that did not end by the deadline, or failed for good: set aside with what they hold.
    quarantined,
    /// Frames handed to displays.
    frames,
    /// Frames that a display did not finish by the deadline.
    frames_late,
    /// Displays that panicked.
    displays_lost,
    /// Renderers that panicked, or whose call did not end: 3D is refused from then on.
    renderers_lost,
    /// Cross-domain channels opened to a host service.
    channels_opened,
    /// Cross-domain channels closed, by either side.
    channels_closed,
    /// Messages received from host services.
    messages_received,
    /// Messages sent to host services.
    messages_sent,
    /// File descriptors received from host services.
    fds_received,
    /// File descriptors sent to host services.
    fds_sent,
    /// Bytes of messages received from host services.
    bytes_received,
    /// Bytes of messages sent to host services.
    bytes_sent,
    /// Wake-ups by eventfds and contents of pipes handed to guests.
    items_read,
    /// Wake-ups and contents of pipes that guests have written.
    items_written,
    /// Resets of the device that were answered.
    resets,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_snapshot_mixes_up_no_fields() {
        let counters = LiveCounters::default();
        counters.kicks.bump();
        counters.commands.bump();
        counters.commands.bump();
        counters.bytes_sent.add(4096);
        let expected = Counters { kicks: 1, commands: 2, bytes_sent: 4096, ..Counters::default() };
        assert_eq!(counters.snapshot(), expected);
    }

    #[test]
    fn a_reader_on_another_thread_never_sees_a_count_go_back() {
        let counters = Arc::new(LiveCounters::default());
        let reader = Arc::clone(&counters);
        let reading = std::thread::spawn(move || {
            let mut last = 0;
            while last < 100_000 {
                let now = reader.snapshot().commands;
                assert!(now >= last);
                last = now;
            }
        });
        for _ in 0..100_000 {
            counters.commands.bump();
        }
        reading.join().unwrap();
        assert_eq!(counters.snapshot().commands, 100_000);
    }

    #[test]
    fn a_counter_at_its_end_does_not_panic() {
        let counter = Counter::default();
        counter.add(u64::MAX);
        counter.bump();
        assert_eq!(counter.get(), 0);
    }
}
