//! A host-visible region whose owner takes its time: places and clears are answered when the test says so, with what the
//! test says, or never. It keeps its own book, and complains of whatever the device must not ask for.
#![allow(dead_code, reason = "shared by several test programs, and none uses all of it")]

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use virtio_gpu_uring::testing::DEADLINE;
use virtio_gpu_uring::{BufferKind, PlaceError, Protection, SharedMemory, Work};

type Outcome = Result<(), PlaceError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Placing,
    Placed,
    Clearing,
}

#[derive(Default)]
struct State {
    places_later: bool,
    clears_later: bool,
    pending: VecDeque<Call>,
    ranges: BTreeMap<u64, (u64, Phase)>,
    places: u64,
    clears: u64,
    complaints: Vec<String>,
}

/// The region. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct SlowMemory {
    state: Arc<Mutex<State>>,
}

/// Something that the device waits for.
pub(crate) struct Call {
    memory: SlowMemory,
    /// A place, or else a clear.
    pub(crate) is_place: bool,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    reply: oneshot::Sender<Outcome>,
}

/// Why a buffer is not placed.
pub(crate) fn refused() -> PlaceError {
    PlaceError::Refused { source: std::io::Error::other("the test says no") }
}

impl Call {
    /// Answers it. Whoever asked must still be there, or nobody would know what the range shows.
    pub(crate) fn answer(self, outcome: Outcome) {
        let Self { memory, is_place, offset, len, reply } = self;
        let mut state = memory.lock();
        state.book(is_place, offset, len, outcome.is_ok());
        let what = format!("nobody waits for the place at {offset:#x} any more");
        if reply.send(outcome).is_err() && is_place {
            state.complaints.push(what);
        }
    }
}

impl State {
    fn book(&mut self, is_place: bool, offset: u64, len: u64, ok: bool) {
        match (is_place, ok) {
            (true, true) | (false, false) => drop(self.ranges.insert(offset, (len, Phase::Placed))),
            (true, false) | (false, true) => drop(self.ranges.remove(&offset)),
        }
    }

    fn begin_clear(&mut self, offset: u64, len: u64) {
        self.clears += 1;
        if self.ranges.get(&offset) != Some(&(len, Phase::Placed)) {
            let found = self.ranges.get(&offset);
            self.complaints.push(format!("cleared {offset:#x}+{len:#x}, where {found:x?} is"));
        }
        self.ranges.insert(offset, (len, Phase::Clearing));
    }
}

impl SlowMemory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on places wait for the test, or do not.
    pub(crate) fn places_later(&self, later: bool) -> &Self {
        self.lock().places_later = later;
        self
    }

    /// From now on clears wait for the test, or do not.
    pub(crate) fn clears_later(&self, later: bool) -> &Self {
        self.lock().clears_later = later;
        self
    }

    /// The oldest thing that the device waits for, once there is one.
    #[track_caller]
    pub(crate) fn next(&self) -> Call {
        let started = Instant::now();
        loop {
            if let Some(call) = self.lock().pending.pop_front() {
                return call;
            }
            assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for a call");
            std::thread::yield_now();
        }
    }

    /// How many things the device waits for that [`next`](Self::next) has not taken.
    pub(crate) fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// Ranges that show, will show or may still show a buffer.
    pub(crate) fn taken(&self) -> Vec<u64> {
        self.lock().ranges.keys().copied().collect()
    }

    /// Places and clears that have begun.
    pub(crate) fn calls(&self) -> (u64, u64) {
        let state = self.lock();
        (state.places, state.clears)
    }

    /// The device has asked for nothing that it must not ask for.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        let complaints = self.lock().complaints.clone();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    fn later(&self, state: &mut State, is_place: bool, offset: u64, len: u64) -> Work<Outcome> {
        let (reply, answer) = oneshot::channel();
        state.pending.push_back(Call { memory: self.clone(), is_place, offset, len, reply });
        Work::later(async move { answer.await.unwrap_or_else(|_| Err(refused())) })
    }
}

impl SharedMemory for SlowMemory {
    fn len(&self) -> u64 {
        1 << 20
    }

    fn place(&self, offset: u64, len: u64, _: BorrowedFd<'_>, _: BufferKind, _: Protection) -> Work<Outcome> {
        let mut state = self.lock();
        state.places += 1;
        let overlaps = |(start, (size, _)): (&u64, &(u64, Phase))| *start < offset + len && offset < start + size;
        if let Some(other) = state.ranges.iter().find(|range| overlaps(*range)) {
            let complaint = format!("placed {offset:#x}+{len:#x} over {other:x?}");
            state.complaints.push(complaint);
        }
        if state.places_later {
            state.ranges.insert(offset, (len, Phase::Placing));
            return self.later(&mut state, true, offset, len);
        }
        state.book(true, offset, len, true);
        Work::Done(Ok(()))
    }

    fn clear(&self, offset: u64, len: u64, _: BufferKind) -> Work<Outcome> {
        let mut state = self.lock();
        state.begin_clear(offset, len);
        if state.clears_later {
            return self.later(&mut state, false, offset, len);
        }
        state.book(false, offset, len, true);
        Work::Done(Ok(()))
    }

    fn clear_now(&self, offset: u64, len: u64) -> Result<(), PlaceError> {
        // Whatever is under way there: the device is going, and this is the last word on the range.
        let mut state = self.lock();
        if state.ranges.remove(&offset).is_none_or(|(known, _)| known != len) {
            state.complaints.push(format!("cleared {offset:#x}+{len:#x} at once, where nothing is"));
        }
        Ok(())
    }
}
