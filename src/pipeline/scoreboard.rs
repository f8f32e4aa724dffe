//! When a command may start and when it may be answered: a pure machine without descriptor, clock or future.
//!
//! Like a processor's scoreboard it lets a command start when no earlier one claims the same thing, so that commands on
//! different things overtake each other and those on the same never do. Fenced commands are answered in the order of
//! their timeline, each when its own work is done and its fence has signalled.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use slotmap::{Key, SlotMap};
use smallvec::SmallVec;

/// What the pipeline is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order<K> {
    /// Nothing that came before claims the same: begin.
    Start(K),
    /// Everything that the answer waited for is done: answer. The command is forgotten.
    Answer(K),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waits for this many of its claims.
    Waiting(usize),
    Running,
    /// Its work is done, its fence has not signalled.
    Executed,
    /// Waits for its turn on the timeline.
    Done,
}

struct Entry<C, T> {
    claims: SmallVec<[C; 3]>,
    timeline: Option<T>,
    stage: Stage,
    /// The fence signalled before the work was booked.
    signalled: bool,
}

/// Commands between arrival and answer. `K` names a command, `C` is what it may claim, `T` names a timeline.
pub(crate) struct Scoreboard<K: Key, C, T> {
    entries: SlotMap<K, Entry<C, T>>,
    /// Who claims a thing, oldest first; the front holds it.
    queues: HashMap<C, VecDeque<K>>,
    timelines: HashMap<T, VecDeque<K>>,
    orders: VecDeque<Order<K>>,
}

impl<K: Key, C: Copy + Eq + Hash, T: Copy + Eq + Hash> Default for Scoreboard<K, C, T> {
    fn default() -> Self {
        Self {
            entries: SlotMap::with_key(),
            queues: HashMap::new(),
            timelines: HashMap::new(),
            orders: VecDeque::new(),
        }
    }
}

impl<K: Key, C: Copy + Eq + Hash, T: Copy + Eq + Hash> Scoreboard<K, C, T> {
    /// A command has arrived. Its claims must differ from each other.
    pub(crate) fn arrived(&mut self, claims: SmallVec<[C; 3]>, timeline: Option<T>) -> K {
        let entry = Entry { claims: claims.clone(), timeline, stage: Stage::Running, signalled: false };
        let key = self.entries.insert(entry);
        let mut held_up = 0;
        for claim in &claims {
            let queue = self.queues.entry(*claim).or_default();
            held_up += usize::from(!queue.is_empty());
            queue.push_back(key);
        }
        if let Some(timeline) = timeline {
            self.timelines.entry(timeline).or_default().push_back(key);
        }
        if held_up == 0 {
            self.orders.push_back(Order::Start(key));
        } else {
            self.entries[key].stage = Stage::Waiting(held_up);
        }
        key
    }

    /// A command's work is done and booked. `pending` says that its fence will signal later.
    pub(crate) fn finished(&mut self, key: K, pending: bool) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        debug_assert_eq!(entry.stage, Stage::Running, "only a running command finishes");
        let claims = std::mem::take(&mut entry.claims);
        entry.stage = if pending && !entry.signalled { Stage::Executed } else { Stage::Done };
        let done = entry.stage == Stage::Done;
        for claim in claims {
            self.release(claim);
        }
        if done {
            self.answer(key);
        }
    }

    /// A command's fence has signalled. What signals twice, or for a command that is gone, changes nothing.
    pub(crate) fn signalled(&mut self, key: K) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.signalled = true;
        if entry.stage == Stage::Executed {
            entry.stage = Stage::Done;
            self.answer(key);
        }
    }

    /// What to do next, in order.
    pub(crate) fn next_order(&mut self) -> Option<Order<K>> {
        self.orders.pop_front()
    }

    /// Commands that have arrived and are not answered.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets every command, for a reset.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.queues.clear();
        self.timelines.clear();
        self.orders.clear();
    }

    /// The front of a claim's queue is done with it: the next one holds it.
    fn release(&mut self, claim: C) {
        let Some(queue) = self.queues.get_mut(&claim) else { return };
        queue.pop_front();
        let Some(next) = queue.front().copied() else {
            self.queues.remove(&claim);
            return;
        };
        let entry = &mut self.entries[next];
        if let Stage::Waiting(held_up) = &mut entry.stage {
            *held_up -= 1;
            if *held_up == 0 {
                entry.stage = Stage::Running;
                self.orders.push_back(Order::Start(next));
            }
        }
    }

    /// A command is done: answers it and whatever waited for it on its timeline, or leaves it to wait for its turn.
    fn answer(&mut self, key: K) {
        let Some(timeline) = self.entries[key].timeline else {
            self.entries.remove(key);
            self.orders.push_back(Order::Answer(key));
            return;
        };
        let Some(queue) = self.timelines.get_mut(&timeline) else { return };
        while let Some(front) = queue.front().copied() {
            if self.entries[front].stage != Stage::Done {
                return;
            }
            queue.pop_front();
            self.entries.remove(front);
            self.orders.push_back(Order::Answer(front));
        }
        self.timelines.remove(&timeline);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use slotmap::DefaultKey;
    use smallvec::smallvec;

    use super::*;

    type Board = Scoreboard<DefaultKey, u8, u8>;

    fn orders(board: &mut Board) -> Vec<Order<DefaultKey>> {
        std::iter::from_fn(|| board.next_order()).collect()
    }

    #[test]
    fn commands_on_the_same_thing_never_overtake_each_other() {
        let mut board = Board::default();
        let first = board.arrived(smallvec![1], None);
        let second = board.arrived(smallvec![1, 2], None);
        let third = board.arrived(smallvec![2], None);
        assert_eq!(orders(&mut board), [Order::Start(first)]);
        board.finished(first, false);
        assert_eq!(orders(&mut board), [Order::Start(second), Order::Answer(first)]);
        board.finished(second, false);
        assert_eq!(orders(&mut board), [Order::Start(third), Order::Answer(second)]);
    }

    #[test]
    fn a_slow_command_never_holds_up_one_on_another_thing() {
        let mut board = Board::default();
        let slow = board.arrived(smallvec![1], None);
        let quick = board.arrived(smallvec![2], None);
        assert_eq!(orders(&mut board), [Order::Start(slow), Order::Start(quick)]);
        board.finished(quick, false);
        assert_eq!(orders(&mut board), [Order::Answer(quick)]);
    }

    #[test]
    fn answers_never_overtake_each_other_on_a_timeline_and_never_come_before_their_fence() {
        let mut board = Board::default();
        let first = board.arrived(smallvec![1], Some(0));
        let second = board.arrived(smallvec![2], Some(0));
        let other = board.arrived(smallvec![3], Some(1));
        orders(&mut board);
        board.finished(second, false);
        board.finished(first, true);
        assert_eq!(orders(&mut board), []);
        board.finished(other, false);
        assert_eq!(orders(&mut board), [Order::Answer(other)]);
        board.signalled(first);
        assert_eq!(orders(&mut board), [Order::Answer(first), Order::Answer(second)]);
        board.signalled(first);
        assert_eq!((orders(&mut board).len(), board.len()), (0, 0));
    }

    #[test]
    fn a_fence_that_signals_before_its_command_is_booked_is_never_lost() {
        let mut board = Board::default();
        let key = board.arrived(smallvec![], Some(0));
        board.signalled(key);
        board.finished(key, true);
        assert_eq!(orders(&mut board), [Order::Start(key), Order::Answer(key)]);
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Seen {
        Waiting,
        Running,
        Executed,
        Done,
        Answered,
    }

    struct Command {
        claims: Vec<u8>,
        timeline: Option<u8>,
        seen: Seen,
    }

    /// What the machine must do, said once more in the plainest way: look at everything that came before.
    #[derive(Default)]
    struct Model(Vec<Command>);

    impl Model {
        fn may_start(&self, index: usize) -> bool {
            let command = &self.0[index];
            let blocks = |other: &Command| {
                matches!(other.seen, Seen::Waiting | Seen::Running)
                    && other.claims.iter().any(|claim| command.claims.contains(claim))
            };
            command.seen == Seen::Waiting && !self.0[..index].iter().any(blocks)
        }

        fn may_answer(&self, index: usize) -> bool {
            let command = &self.0[index];
            let first = |other: &Command| other.timeline == command.timeline && other.seen != Seen::Answered;
            command.seen == Seen::Done && (command.timeline.is_none() || !self.0[..index].iter().any(first))
        }

        fn settle(&mut self) -> (Vec<usize>, Vec<usize>) {
            let (mut started, mut answered) = (Vec::new(), Vec::new());
            for index in 0..self.0.len() {
                if self.may_start(index) {
                    self.0[index].seen = Seen::Running;
                    started.push(index);
                }
                if self.may_answer(index) {
                    self.0[index].seen = Seen::Answered;
                    answered.push(index);
                }
            }
            (started, answered)
        }

        /// One of the commands at this stage.
        fn pick(&self, index: usize, seen: Seen) -> Option<usize> {
            let at: Vec<usize> = (0..self.0.len()).filter(|index| self.0[*index].seen == seen).collect();
            (!at.is_empty()).then(|| at[index % at.len()])
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrive(Vec<u8>, Option<u8>),
        Finish(usize, bool),
        Signal(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let claims = prop::collection::btree_set(0u8..5, 0..4).prop_map(|set| set.into_iter().collect());
        prop_oneof![
            3 => (claims, prop::option::of(0u8..3)).prop_map(|(claims, timeline)| Step::Arrive(claims, timeline)),
            3 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(index, later)| Step::Finish(index.index(64), later)),
            1 => any::<prop::sample::Index>().prop_map(|index| Step::Signal(index.index(64))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn no_order_of_events_starts_or_answers_a_command_too_early_or_never(steps in prop::collection::vec(step(), 1..120)) {
            let (mut board, mut model, mut keys) = (Board::default(), Model::default(), Vec::new());
            for step in steps {
                match step {
                    Step::Arrive(claims, timeline) => {
                        keys.push(board.arrived(claims.iter().copied().collect(), timeline));
                        model.0.push(Command { claims, timeline, seen: Seen::Waiting });
                    }
                    Step::Finish(index, pending) => {
                        let Some(index) = model.pick(index, Seen::Running) else { continue };
                        board.finished(keys[index], pending);
                        model.0[index].seen = if pending { Seen::Executed } else { Seen::Done };
                    }
                    Step::Signal(index) => {
                        let Some(index) = model.pick(index, Seen::Executed) else { continue };
                        board.signalled(keys[index]);
                        model.0[index].seen = Seen::Done;
                    }
                }
                let (started, answered) = model.settle();
                let got = orders(&mut board);
                let of = |pick: fn(&Order<DefaultKey>) -> Option<DefaultKey>| {
                    let mut list: Vec<usize> = got.iter().filter_map(pick)
                        .map(|key| keys.iter().position(|other| *other == key).expect("known")).collect();
                    list.sort_unstable();
                    list
                };
                prop_assert_eq!(of(|order| if let Order::Start(key) = order { Some(*key) } else { None }), started);
                prop_assert_eq!(of(|order| if let Order::Answer(key) = order { Some(*key) } else { None }), answered);
                prop_assert_eq!(board.len(), model.0.iter().filter(|command| command.seen != Seen::Answered).count());
            }
        }
    }
}
