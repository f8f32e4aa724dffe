//! Random programs on a region that answers whenever it likes: whatever overtakes whatever, the answers are those of a
//! guest that waits for each command, and they come in the orders that are promised.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;
use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::wire::response_type as response;
use virtio_gpu_uring::testing::{Guest, Lane, Request, Token};

use crate::memory::{SlowMemory, refused};
use crate::{PAGE, guest_with_blobs, offer, until};

const BLOBS: u32 = 4;
/// Distance of the blobs in the window.
const STRIDE: u64 = 0x10000;

#[derive(Debug, Clone, Copy)]
enum What {
    Map,
    Unmap,
    Unref,
    Create,
    /// A type that is not served: it touches nothing.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Submit {
        what: What,
        blob: u32,
        fence: Option<Option<u8>>,
    },
    /// Answer what the region was asked for, if it was: a place well or badly, a clear well.
    Complete {
        well: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        4 => Just(What::Map),
        3 => Just(What::Unmap),
        1 => Just(What::Unref),
        2 => Just(What::Create),
        1 => Just(What::Nothing),
    ];
    let fence = prop_oneof![3 => Just(None), 1 => Just(Some(None)), 1 => (0u8..3).prop_map(|ring| Some(Some(ring)))];
    prop_oneof![
        3 => (what, 0..BLOBS, fence).prop_map(|(what, blob, fence)| Step::Submit { what, blob, fence }),
        2 => any::<bool>().prop_map(|well| Step::Complete { well }),
    ]
}

/// A command that was sent, and its answer's type.
struct Sent {
    what: What,
    blob: u32,
    fence: Option<Option<u8>>,
    answer: Option<u32>,
}

struct Run {
    guest: Guest,
    memory: SlowMemory,
    sent: Vec<Sent>,
    tokens: HashMap<Token, usize>,
    /// Numbers of commands in the order of their answers.
    order: Vec<usize>,
    /// What became of each blob's places, in order.
    placed: HashMap<u32, VecDeque<bool>>,
}

impl Run {
    fn submit(&mut self, what: What, blob: u32, fence: Option<Option<u8>>) {
        let id = 100 + blob;
        let request = match what {
            What::Map => Request::map(id, u64::from(blob) * STRIDE).context(1),
            What::Unmap => Request::unmap(id).context(1),
            What::Unref => Request::unref(id).context(1),
            What::Create => Request::host_blob(1, id, offer(&self.guest, "order-program"), PAGE),
            What::Nothing => Request::new(0xbad, &[]).context(1),
        };
        let number = self.sent.len() as u64;
        let request = match fence {
            None => request,
            Some(None) => request.fenced(number),
            Some(Some(ring)) => request.fenced(number).on_ring(ring),
        };
        let token = self.guest.submit(&request);
        self.tokens.insert(token, self.sent.len());
        self.sent.push(Sent { what, blob, fence, answer: None });
    }

    fn complete(&mut self, well: bool) {
        if self.memory.pending() > 0 {
            let call = self.memory.next();
            let well = well || !call.is_place;
            if call.is_place {
                let blob = (call.offset / STRIDE) as u32;
                self.placed.entry(blob).or_default().push_back(well);
            }
            call.answer(if well { Ok(()) } else { Err(refused()) });
        }
    }

    fn collect(&mut self) {
        while let Some(used) = self.guest.queue(Lane::Control).poll_used() {
            let number = self.tokens.remove(&used.token).expect("an answer to a command that waits");
            let kind = used.response[..4].try_into().map(u32::from_le_bytes).expect("a header");
            self.sent[number].answer = Some(kind);
            self.order.push(number);
        }
    }

    /// The answers that a guest gets that waits for each command.
    fn expected(&mut self) -> Vec<u32> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            Gone,
            Unmapped,
            Mapped,
        }
        let mut states = vec![State::Unmapped; BLOBS as usize];
        let mut answers = Vec::new();
        for sent in &self.sent {
            let state = &mut states[sent.blob as usize];
            answers.push(match (sent.what, *state) {
                (What::Nothing, _) => response::ERR_UNSPEC,
                (What::Create, State::Gone) => {
                    *state = State::Unmapped;
                    response::OK_NODATA
                }
                (What::Create, _) | (_, State::Gone) => response::ERR_INVALID_RESOURCE_ID,
                (What::Map, State::Unmapped) => {
                    let well = self.placed.get_mut(&sent.blob).and_then(VecDeque::pop_front);
                    if well.expect("a place for each map") {
                        *state = State::Mapped;
                        response::OK_MAP_INFO
                    } else {
                        response::ERR_UNSPEC
                    }
                }
                (What::Unmap, State::Mapped) => {
                    *state = State::Unmapped;
                    response::OK_NODATA
                }
                (What::Map, State::Mapped) | (What::Unmap, State::Unmapped) => response::ERR_INVALID_PARAMETER,
                (What::Unref, _) => {
                    *state = State::Gone;
                    response::OK_NODATA
                }
            });
        }
        answers
    }

    /// The commands that `pick` names were answered in the order in which they were sent.
    fn assert_in_order(&self, what: &str, pick: impl Fn(&Sent) -> bool) {
        let picked: Vec<usize> = self.order.iter().copied().filter(|number| pick(&self.sent[*number])).collect();
        assert!(picked.is_sorted(), "{what}: answered in the order {picked:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 256, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_program_ends_otherwise_because_its_commands_overtook_each_other(
        program in prop::collection::vec(step(), 1..60),
    ) {
        let (guest, memory) = guest_with_blobs(Builder::new(), BLOBS);
        memory.places_later(true).clears_later(true);
        let mut run = Run {
            guest,
            memory,
            sent: Vec::new(),
            tokens: HashMap::new(),
            order: Vec::new(),
            placed: HashMap::new(),
        };
        for step in program {
            match step {
                Step::Submit { what, blob, fence } => run.submit(what, blob, fence),
                Step::Complete { well } => run.complete(well),
            }
            run.collect();
        }
        until("all is answered", || {
            run.complete(true);
            run.collect();
            run.tokens.is_empty()
        });
        let answers: Vec<u32> = run.sent.iter().map(|sent| sent.answer.expect("answered")).collect();
        prop_assert_eq!(answers, run.expected());
        let touches = |sent: &Sent, blob| sent.blob == blob && !matches!(sent.what, What::Nothing);
        for blob in 0..BLOBS {
            run.assert_in_order("a blob", |sent| sent.fence.is_none() && touches(sent, blob));
        }
        for timeline in [None, Some(0), Some(1), Some(2)] {
            run.assert_in_order("a timeline", |sent| sent.fence == Some(timeline));
        }
        run.memory.places_later(false).clears_later(false);
        run.guest.reset();
        prop_assert!(run.memory.taken().is_empty());
        run.memory.assert_sound();
    }
}
