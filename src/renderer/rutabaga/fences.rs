//! The fences that a guest has asked of rutabaga_gfx, until it signals them from whatever thread it likes.
//! Its numbers are merged: one signal stands for all that were asked for before on the same timeline.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::renderer::Fence;

/// A ring of a context; `None` for what virglrenderer has one of for all contexts.
pub(super) type Timeline = Option<(u32, u8)>;

/// Fences that have not signalled. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Fences(Arc<(Mutex<Waiting>, Condvar)>);

#[derive(Default)]
struct Waiting {
    /// By timeline, oldest first; without what a guest waits for where its context has ended.
    lists: HashMap<Timeline, VecDeque<(u32, Option<Fence>)>>,
    last: u32,
}

/// Between two polls of whoever waits for fences.
const BETWEEN_POLLS: Duration = Duration::from_millis(1);

/// Whether a timeline is one of a context's rings.
fn is_of(timeline: &Timeline, context: u32) -> bool {
    matches!(timeline, Some((of, _)) if *of == context)
}

impl Waiting {
    fn is_idle(&self, context: u32) -> bool {
        self.lists.iter().all(|(timeline, list)| list.is_empty() || !is_of(timeline, context))
    }

    /// What somebody waits for on some timelines; their numbers stay until they signal.
    fn take(&mut self, of: impl Fn(&Timeline) -> bool) -> Vec<Fence> {
        let lists = self.lists.iter_mut().filter(|(timeline, _)| of(timeline)).map(|(_, list)| list);
        let taken = lists.flat_map(|list| list.iter_mut().filter_map(|(_, fence)| fence.take())).collect();
        self.lists.retain(|_, list| !list.is_empty());
        taken
    }
}

impl Fences {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a fence, and gives it its number: 32 bits, for virglrenderer keeps no more of it.
    pub(super) fn add(&self, timeline: Timeline, fence: Fence) -> u32 {
        let mut waiting = self.lock();
        waiting.last = waiting.last.wrapping_add(1);
        let number = waiting.last;
        waiting.lists.entry(timeline).or_default().push_back((number, Some(fence)));
        number
    }

    /// Everything up to a number is done. It only tells whoever waits: no lock is held meanwhile, and rutabaga may be on the
    /// stack.
    pub(super) fn signal(&self, timeline: Timeline, number: u32) {
        let mut done = Vec::new();
        if let Some(list) = self.lock().lists.get_mut(&timeline) {
            // Numbers wrap; no more than half of them are ever under way.
            let reached = |(waiting, _): &(u32, Option<Fence>)| number.wrapping_sub(*waiting) as i32 >= 0;
            let count = list.iter().take_while(|fence| reached(fence)).count();
            done.extend(list.drain(..count).filter_map(|(_, fence)| fence));
        }
        done.into_iter().for_each(Fence::signal);
        self.0.1.notify_all();
    }

    /// Waits until all fences of a context's rings have signalled, and says whether they have by the deadline. `poll` is called
    /// once at least where they have not: some signal only then.
    pub(super) fn wait_for_context(&self, context: u32, deadline: Duration, mut poll: impl FnMut()) -> bool {
        let end = Instant::now() + deadline;
        while !self.lock().is_idle(context) {
            poll();
            let busy = |waiting: &mut Waiting| !waiting.is_idle(context);
            let waited = self.0.1.wait_timeout_while(self.lock(), BETWEEN_POLLS, busy);
            if Instant::now() >= end && !waited.unwrap_or_else(PoisonError::into_inner).0.is_idle(context) {
                return false;
            }
        }
        true
    }

    /// A context is no more: nobody waits for its fences. Those that have not signalled are remembered.
    pub(super) fn end_context(&self, context: u32) {
        let ended = self.lock().take(|timeline| is_of(timeline, context));
        drop(ended);
    }

    /// Nobody signals for a context any more.
    pub(super) fn forget(&self, context: u32) {
        self.lock().lists.retain(|timeline, _| !is_of(timeline, context));
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        let ended = self.lock().take(|_| true);
        drop(ended);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    fn fence(name: u32, told: &Sender<u32>) -> Fence {
        let told = told.clone();
        Fence::new(move || told.send(name).expect("a test that listens"))
    }

    fn seen(told: &Receiver<u32>) -> Vec<u32> {
        told.try_iter().collect()
    }

    #[test]
    fn a_signal_never_leaves_an_older_fence_of_its_timeline_behind_nor_takes_another_timelines() {
        let (tell, told) = channel();
        let fences = Fences::default();
        let numbers: Vec<u32> = (0..3).map(|name| fences.add(Some((1, 0)), fence(name, &tell))).collect();
        fences.add(Some((1, 1)), fence(10, &tell));
        let global = fences.add(None, fence(20, &tell));
        fences.signal(Some((1, 0)), numbers[1]);
        assert_eq!(seen(&told), [0, 1]);
        fences.signal(Some((1, 0)), numbers[1]);
        fences.signal(Some((2, 0)), global);
        assert_eq!(seen(&told), [] as [u32; 0]);
        fences.signal(None, global);
        assert_eq!(seen(&told), [20]);
        fences.end_context(1);
        let mut rest = seen(&told);
        rest.sort_unstable();
        assert_eq!(rest, [2, 10]);
    }

    #[test]
    fn a_context_is_never_idle_before_its_last_fence_has_signalled() {
        let (tell, told) = channel();
        let fences = Fences::default();
        let number = fences.add(Some((1, 0)), fence(0, &tell));
        fences.add(Some((2, 0)), fence(1, &tell));
        fences.add(None, fence(2, &tell));
        assert!(!fences.wait_for_context(1, Duration::ZERO, || ()));
        assert!(fences.wait_for_context(1, Duration::from_secs(60), || fences.signal(Some((1, 0)), number)));
        assert_eq!(seen(&told), [0]);
        assert!(fences.wait_for_context(3, Duration::ZERO, || ()));
        fences.end_context(2);
        assert_eq!(seen(&told), [1]);
        assert!(!fences.wait_for_context(2, Duration::ZERO, || ()), "nobody waits, but it has not signalled");
        fences.forget(2);
        assert!(fences.wait_for_context(2, Duration::ZERO, || ()));
    }

    #[test]
    fn numbers_that_wrap_never_hold_a_fence_back() {
        let (tell, told) = channel();
        let fences = Fences::default();
        fences.lock().last = u32::MAX - 1;
        let before = fences.add(None, fence(0, &tell));
        let after = fences.add(None, fence(1, &tell));
        assert_eq!((before, after), (u32::MAX, 0));
        fences.signal(None, before);
        assert_eq!(seen(&told), [0]);
        fences.signal(None, after);
        assert_eq!(seen(&told), [1]);
    }

    #[test]
    fn no_fence_outlives_the_end_and_a_signal_may_ask_for_the_next() {
        let (tell, told) = channel();
        let fences = Fences::default();
        let (again, next) = (fences.clone(), fence(1, &tell));
        let ask = move || {
            again.add(None, next);
        };
        let number = fences.add(None, Fence::new(ask));
        fences.signal(None, number);
        assert_eq!(seen(&told), [] as [u32; 0]);
        fences.end();
        assert_eq!(seen(&told), [1]);
    }
}
