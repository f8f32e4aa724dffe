//! Pauses and resumes at random points of a stream of requests: every request is carried out once, in its order, and
//! answered once.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::Config;
use virtio_gpu_uring::Builder;
use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::testing::{GuestChannel, HostPeer, HostService, Lane, Request, Shown, Token, Viewer};

use crate::{Stage, small, soon, until};

#[derive(Debug, Clone)]
enum Step {
    /// Messages to the service, kicked one by one.
    Send(usize),
    /// Messages that become available together, with one kick or none.
    Batch(usize, bool),
    /// Moves of the cursor.
    Move(usize),
    /// Fenced commands that touch nothing.
    Fenced(usize),
    Pause,
    /// A pause whose reply nobody waits for yet.
    PauseBehind,
    Resume,
    /// The service speaks.
    Speak,
    /// The guest asks for a message.
    Poll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..6usize).prop_map(Step::Send),
        2 => ((1..12usize), any::<bool>()).prop_map(|(count, kicked)| Step::Batch(count, kicked)),
        2 => (1..6usize).prop_map(Step::Move),
        2 => (1..4usize).prop_map(Step::Fenced),
        2 => Just(Step::Pause),
        1 => Just(Step::PauseBehind),
        3 => Just(Step::Resume),
        2 => Just(Step::Speak),
        2 => Just(Step::Poll),
    ];
    vec(step, 1..40)
}

/// What a program has done so far.
struct Run {
    stage: Stage,
    channel: GuestChannel,
    peer: HostPeer,
    viewer: Viewer,
    tokens: Vec<(Lane, Token)>,
    polls: Vec<Token>,
    sent: u32,
    moved: i32,
    spoken: usize,
    fence: u64,
    paused: bool,
}

impl Run {
    fn start(service: &HostService, event_idx: bool) -> Self {
        let (screen, viewer) = virtio_gpu_uring::testing::Screen::new();
        let builder = Builder::new().host_socket(ChannelType::PIPEWIRE, service.path());
        let builder = builder.display(0, virtio_gpu_uring::Monitor::new(640, 480), screen);
        let mut options = small(event_idx);
        options.queue_size = 256;
        let mut stage = Stage::start(builder, options);
        let channel = GuestChannel::open(&mut stage.guest, 1, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        let (tokens, polls) = (Vec::new(), Vec::new());
        Self { stage, channel, peer, viewer, tokens, polls, sent: 0, moved: 0, spoken: 0, fence: 0, paused: false }
    }

    fn message(&mut self) -> Request {
        self.sent += 1;
        Request::submit(1, &Request::stream_send(&self.sent.to_le_bytes(), &[]))
    }

    /// Whether the queues have room for a step. Answers make room, where the device gives any.
    fn has_room(&mut self) -> bool {
        let full = |run: &mut Self| {
            let guest = &mut run.stage.guest;
            guest.queue(Lane::Control).outstanding() > 80 || guest.queue(Lane::Cursor).outstanding() > 1
        };
        if full(self) && !self.paused {
            self.collect();
        }
        !full(self)
    }

    /// Waits for all answers that are promised.
    fn collect(&mut self) {
        for (lane, token) in std::mem::take(&mut self.tokens) {
            self.stage.guest.wait_on(lane, token).ok();
        }
    }

    fn step(&mut self, step: &Step) {
        if !self.has_room() && !matches!(step, Step::Pause | Step::PauseBehind | Step::Resume | Step::Speak) {
            return;
        }
        match *step {
            Step::Send(count) => {
                for _ in 0..count {
                    let message = self.message();
                    let token = self.stage.guest.submit(&message);
                    self.tokens.push((Lane::Control, token));
                }
            }
            Step::Batch(count, kicked) => {
                for _ in 0..count {
                    let message = self.message();
                    let token = self.stage.guest.add(Lane::Control, &message);
                    self.tokens.push((Lane::Control, token));
                }
                // A driver may leave a kick out while the device stands still, and never else.
                if kicked || !self.paused {
                    self.stage.guest.publish(Lane::Control);
                } else {
                    let _never_kicked = self.stage.guest.queue(Lane::Control).publish();
                }
            }
            Step::Move(count) => {
                for _ in 0..count {
                    self.moved += 1;
                    let request = Request::move_cursor(0, (self.moved, 0));
                    let token = self.stage.guest.submit_on(Lane::Cursor, &request);
                    self.tokens.push((Lane::Cursor, token));
                }
            }
            Step::Fenced(count) => {
                for _ in 0..count {
                    self.fence += 1;
                    let token = self.stage.guest.submit(&Request::display_info().fenced(self.fence));
                    self.tokens.push((Lane::Control, token));
                }
            }
            Step::Pause => {
                self.stage.pause();
                self.paused = true;
            }
            Step::PauseBehind => {
                drop(self.stage.guest.device().pause());
                self.paused = true;
            }
            Step::Resume => {
                soon(self.stage.guest.device().resume());
                self.paused = false;
            }
            Step::Speak => {
                self.spoken += 1;
                self.peer.send(b"!", &[]);
            }
            Step::Poll => self.polls.push(self.channel.poll(&mut self.stage.guest)),
        }
    }

    /// Lets everything end, and looks at what has become of it.
    fn finish(mut self) {
        self.stage.resume();
        self.collect();
        let numbers: Vec<u8> = (1..=self.sent).flat_map(u32::to_le_bytes).collect();
        let mut seen = Vec::new();
        while seen.len() < numbers.len() {
            seen.extend(self.peer.receive(numbers.len() - seen.len()).0);
        }
        assert_eq!(seen, numbers, "what the service was sent");
        let moves: Vec<Shown> = (1..=self.moved).map(|x| Shown::CursorMoved((x, 0))).collect();
        assert_eq!(self.viewer.take(), moves);
        // Messages may be delivered together; each poll is answered at the end of the channel at the latest.
        drop(self.peer);
        let polls = std::mem::take(&mut self.polls);
        for poll in polls {
            self.stage.guest.wait(poll).ok();
        }
        self.stage.guest.settle();
        self.stage.guest.assert_all_answered();
        let counters = self.stage.guest.device().counters();
        assert_eq!(counters.commands, counters.answers_ok + counters.answers_error);
        until("messages are counted", || self.stage.guest.device().counters().messages_sent == u64::from(self.sent));
        self.stage.end();
    }
}

proptest! {
    #![proptest_config(Config { cases: 48, max_shrink_iters: 64, failure_persistence: None, ..Config::default() })]

    #[test]
    fn no_pause_ever_loses_a_request_or_serves_one_twice(steps in steps(), event_idx in any::<bool>()) {
        let service = HostService::listen();
        let mut run = Run::start(&service, event_idx);
        for step in &steps {
            run.step(step);
        }
        run.finish();
    }
}
