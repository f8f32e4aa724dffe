//! The device task: it owns all state of the device and decides when things happen.
//! Every turn serves its sources in a fixed order (finished work, fences, channels, cursor queue, control queue), each
//! only so far that none starves another, and ends with at most one interrupt a queue.

mod intake;
mod pause;
mod quiesce;
mod ram;
mod scoreboard;
mod source;
mod turn;

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, SelectAll};
use slotmap::SecondaryMap;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tracing::{Span, debug};
use vm_memory::GuestAddressSpace;

pub use pause::{PauseError, Paused};
pub(crate) use source::Source;

use crate::commands::{Claim, ContextKey, FenceState, Finish, Gpu, Refusal, Step, Ticket};
use crate::cross_domain::Channel;
use crate::limits::Charge;
use crate::observe::{error_limited, warn_limited};
use crate::protocol::decode::DecodeLimits;
use crate::protocol::wire::{Header, command_type};
use crate::protocol::{Command, Response};
use crate::queue::{Request, RingError};
use crate::resource::ResourceKey;
use crate::seams::{Interrupt, LocalFuture};
use crate::sys::ring::Nudge;
use ram::Ram;
use scoreboard::{Order, Scoreboard};

/// Which of the two queues a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Control,
    Cursor,
}

/// A fence timeline (virtio 1.4, section 5.7.6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Timeline {
    Global,
    /// Of one life of a context's id.
    Ring {
        context: u32,
        life: u64,
        ring: u8,
    },
}

/// A command between pop and answer.
struct Job {
    lane: Lane,
    request: Request,
    header: Header,
    span: Span,
    stage: Stage,
}

enum Stage {
    /// Not begun; what it holds meanwhile is charged.
    Waiting { command: Command, _payload: Charge },
    /// Its future is in flight.
    Running,
    /// Waits for its fence, or for its turn.
    Executed(Response),
}

/// What a request is given back with.
struct Answer {
    lane: Lane,
    request: Request,
    bytes: Vec<u8>,
    is_error: bool,
}

/// The queues of an active device, and how their driver is interrupted.
pub(crate) struct Active<M: GuestAddressSpace> {
    pub(crate) control: Source<M>,
    /// None where the driver does without.
    pub(crate) cursor: Option<Source<M>>,
    /// A cursor queue that the VMM has taken away for the moment.
    pub(crate) resting: Option<Source<M>>,
    pub(crate) interrupt: Box<dyn Interrupt>,
}

impl<M: GuestAddressSpace> Active<M> {
    fn source(&self, lane: Lane) -> Option<&Source<M>> {
        match lane {
            Lane::Control => Some(&self.control),
            Lane::Cursor => self.cursor.as_ref(),
        }
    }

    fn source_mut(&mut self, lane: Lane) -> Option<&mut Source<M>> {
        match lane {
            Lane::Control => Some(&mut self.control),
            Lane::Cursor => self.cursor.as_mut(),
        }
    }
}

/// The end of a read of the VMM's.
pub(crate) struct ReadEnd {
    /// What is still in the kernel, to be set aside.
    pub(crate) rest: Option<LocalFuture<()>>,
    /// Tells the VMM, when all of it is booked.
    pub(crate) tell: Box<dyn FnOnce()>,
}

/// The state of the device task.
pub(crate) struct Pipeline<M: GuestAddressSpace> {
    gpu: Gpu,
    active: Option<Active<M>>,
    board: Scoreboard<Ticket, Claim, Timeline>,
    jobs: SecondaryMap<Ticket, Job>,
    in_flight: FuturesUnordered<LocalFuture<(Ticket, Finish)>>,
    /// Commands that had no room in this turn.
    paced: VecDeque<(Ticket, Finish)>,
    /// Scanouts that are to be redrawn, and what they show.
    redraws: SecondaryMap<Ticket, (u32, ResourceKey)>,
    /// What answers wait for when their commands are done: displays.
    ends: FuturesUnordered<LocalFuture<Ticket>>,
    chores: FuturesUnordered<LocalFuture<()>>,
    /// Work that was given up; it keeps what it holds until it ends, and nobody waits for it.
    quarantine: FuturesUnordered<LocalFuture<()>>,
    /// The VMM's reads of blobs.
    reads: FuturesUnordered<LocalFuture<ReadEnd>>,
    channels: SelectAll<Channel<ContextKey>>,
    fences: UnboundedReceiver<(ContextKey, Ticket)>,
    /// Is ready when the renderer is lost.
    renderer: Option<LocalFuture<()>>,
    /// For turns that end with more to do.
    nudge: Nudge,
    /// Something was added to the sets above that has not been polled yet.
    fresh: bool,
    /// The control queue holds requests that are not popped before others are answered.
    stalled: bool,
    /// The control queue was not looked at in this turn, because the pipeline was full.
    held: bool,
    /// The VMM has stopped its guest: the queues are left alone, and nothing is answered.
    paused: bool,
    /// Answers that came meanwhile.
    withheld: Vec<Answer>,
    /// The configuration has changed meanwhile.
    config_changed: bool,
    /// Ids of contexts that there are once every command that has arrived is carried out.
    contexts: HashSet<u32>,
    /// How often each context's id has ended, for timelines.
    lives: HashMap<u32, u64>,
    last_life: u64,
    response: Vec<u8>,
    decode_limits: DecodeLimits,
}

impl<M: GuestAddressSpace + Send + 'static> Pipeline<M> {
    pub(crate) fn new(mut gpu: Gpu, nudge: Nudge) -> Self {
        let (sink, fences) = unbounded_channel();
        gpu.outbox.fence_sink = Some(sink);
        let decode_limits = DecodeLimits {
            backing_entries: usize::try_from(gpu.limits.backing_entries).unwrap_or(usize::MAX),
            submit_bytes: usize::try_from(gpu.limits.submit_bytes).unwrap_or(usize::MAX),
        };
        let renderer = gpu.watch_renderer();
        Self {
            gpu,
            active: None,
            board: Scoreboard::default(),
            jobs: SecondaryMap::new(),
            in_flight: FuturesUnordered::new(),
            paced: VecDeque::new(),
            redraws: SecondaryMap::new(),
            ends: FuturesUnordered::new(),
            chores: FuturesUnordered::new(),
            quarantine: FuturesUnordered::new(),
            reads: FuturesUnordered::new(),
            channels: SelectAll::new(),
            fences,
            renderer,
            nudge,
            fresh: false,
            stalled: false,
            held: false,
            paused: false,
            withheld: Vec::new(),
            config_changed: false,
            contexts: HashSet::new(),
            lives: HashMap::new(),
            last_life: 0,
            response: Vec::new(),
            decode_limits,
        }
    }

    pub(crate) fn gpu(&mut self) -> &mut Gpu {
        &mut self.gpu
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// The driver is up: serves its queues from now on.
    pub(crate) fn activate(&mut self, active: Active<M>, memory: M, features: u64) {
        self.gpu.start(features, Rc::new(Ram(memory)));
        self.active = Some(active);
    }

    /// The queues of a device that is paused.
    pub(crate) fn at_rest(&mut self) -> Option<&mut Active<M>> {
        self.active.as_mut().filter(|_| self.paused)
    }

    /// Takes up a read of the VMM's.
    pub(crate) fn read(&mut self, reading: LocalFuture<ReadEnd>) {
        self.reads.push(reading);
        self.fresh = true;
    }

    fn read_ended(&mut self, ReadEnd { rest, tell }: ReadEnd) {
        if let Some(rest) = rest {
            self.gpu.counters.quarantined.bump();
            warn_limited!("a read of a blob takes too long and is set aside");
            self.quarantine.push(rest);
        }
        tell();
    }

    fn source(&mut self, lane: Lane) -> Option<&mut Source<M>> {
        self.active.as_mut()?.source_mut(lane)
    }

    /// Does what the scoreboard orders until it has nothing more to say.
    fn obey(&mut self) {
        while let Some(order) = self.board.next_order() {
            match order {
                Order::Start(ticket) => self.start(ticket),
                Order::Answer(ticket) => {
                    if let Some(Job { lane, request, header, span, stage: Stage::Executed(response) }) =
                        self.jobs.remove(ticket)
                    {
                        span.in_scope(|| self.answer(lane, request, Some(&header), &response));
                    }
                }
            }
        }
    }

    fn fly(&mut self, ticket: Ticket, future: LocalFuture<Finish>) {
        debug!("waiting");
        self.in_flight.push(Box::pin(future.map(move |finish| (ticket, finish))));
        self.fresh = true;
    }

    fn start(&mut self, ticket: Ticket) {
        if let Some((scanout, key)) = self.redraws.remove(ticket) {
            match self.gpu.redraw(scanout, key) {
                Some(step) => self.take_step(ticket, step),
                None => {
                    self.board.finished(ticket, false);
                    self.redraw(scanout);
                }
            }
            return;
        }
        // One that was refused at sight is done already, and only waits for its turn to be answered.
        let Some(job) = self.jobs.get_mut(ticket).filter(|job| matches!(job.stage, Stage::Waiting { .. })) else {
            return;
        };
        let header = job.header;
        let Stage::Waiting { command, .. } = std::mem::replace(&mut job.stage, Stage::Running) else { return };
        let span = job.span.clone();
        let _entered = span.enter();
        let step = self.gpu.begin(&header, command);
        self.take_step(ticket, step);
        self.take_outbox();
    }

    /// How a command goes on.
    fn take_step(&mut self, ticket: Ticket, step: Result<Step, Refusal>) {
        match step {
            Ok(Step::Done(response)) => self.book(ticket, Ok(response)),
            Ok(Step::Later(future)) => self.fly(ticket, future),
            Ok(Step::Until(end, response)) => {
                self.ends.push(Box::pin(end.map(move |()| ticket)));
                self.fresh = true;
                self.executed_until(ticket, response, true);
            }
            Ok(Step::Turn(finish)) => self.paced.push_back((ticket, finish)),
            Err(refusal) => self.book(ticket, Err(refusal)),
        }
    }

    /// Shows a display all that its scanout shows, when the commands before are done with it. One that waits is enough.
    pub(crate) fn redraw(&mut self, scanout: u32) {
        if self.redraws.values().any(|(waiting, _)| *waiting == scanout) {
            return;
        }
        let Some((key, claims)) = self.gpu.redraw_claims(scanout) else { return };
        let ticket = self.board.arrived(claims, None);
        self.redraws.insert(ticket, (scanout, key));
        self.obey();
    }

    /// A command's work is done: books it and does what follows from that.
    fn executed(&mut self, ticket: Ticket, outcome: Result<Response, Refusal>) {
        self.book(ticket, outcome);
        self.take_outbox();
        self.obey();
    }

    fn book(&mut self, ticket: Ticket, outcome: Result<Response, Refusal>) {
        let Some(header) = self.jobs.get(ticket).map(|job| job.header) else {
            // A redraw, which nobody waits for.
            return self.board.finished(ticket, false);
        };
        let (response, fence) = match outcome {
            Ok(response) if header.fenced() => (response, self.gpu.fence(&header, ticket)),
            Ok(response) => (response, FenceState::Signalled),
            Err(refusal) => {
                self.forget_context(ticket, &header);
                (self.refuse(&refusal), FenceState::Signalled)
            }
        };
        self.executed_until(ticket, response, fence == FenceState::Pending);
    }

    /// A command was refused: where it was to make a context there is none, unless another is making it.
    fn forget_context(&mut self, refused: Ticket, header: &Header) {
        let id = header.ctx_id.get();
        let makes = |header: &Header| header.kind.get() == command_type::CTX_CREATE && header.ctx_id.get() == id;
        if !makes(header) || self.gpu.has_context(id) {
            return;
        }
        let under_way = |job: &Job| makes(&job.header) && !matches!(job.stage, Stage::Executed(_));
        if !self.jobs.iter().any(|(ticket, job)| ticket != refused && under_way(job)) {
            self.contexts.remove(&id);
        }
    }

    /// A command has been carried out; where it is `pending`, its answer waits for a signal.
    fn executed_until(&mut self, ticket: Ticket, response: Response, pending: bool) {
        debug!(pending, "done");
        if let Some(job) = self.jobs.get_mut(ticket) {
            job.stage = Stage::Executed(response);
        }
        self.board.finished(ticket, pending);
    }

    fn refuse(&self, refusal: &Refusal) -> Response {
        if refusal.is_limit() {
            self.gpu.counters.limit_refusals.bump();
        }
        warn_limited!(%refusal, "command refused");
        Response::Error(refusal.code())
    }

    /// Gives a request back with its answer.
    fn answer(&mut self, lane: Lane, request: Request, header: Option<&Header>, response: &Response) {
        let header = header.copied().unwrap_or_else(|| Header::new(0));
        response.encode(&header, &mut self.response);
        let room = request.writable_len();
        let unanswerable = lane == Lane::Cursor && room == 0;
        if self.response.len() > room && !unanswerable && !matches!(response, Response::Error(_)) {
            let refusal = Refusal::ResponseSpace { needed: self.response.len(), have: room };
            self.refuse(&refusal).encode(&header, &mut self.response);
        }
        let bytes = std::mem::take(&mut self.response);
        let answer = Answer { lane, request, bytes, is_error: matches!(response, Response::Error(_)) };
        if self.paused {
            self.withheld.push(answer);
        } else {
            self.response = self.give_back(answer);
        }
    }

    /// Writes an answer into its queue, where that is not taken away, and hands its bytes back for the next.
    fn give_back(&mut self, answer: Answer) -> Vec<u8> {
        if answer.lane == Lane::Cursor && self.active.as_ref().is_some_and(|active| active.resting.is_some()) {
            self.withheld.push(answer);
            return Vec::new();
        }
        let Answer { lane, request, bytes, is_error } = answer;
        debug!("answered");
        let counters = &self.gpu.counters;
        if is_error {
            counters.answers_error.bump()
        } else {
            counters.answers_ok.bump()
        }
        let answered = match self.source(lane) {
            Some(source) => source.answer(request, &bytes),
            None => {
                request.abandon();
                Ok(())
            }
        };
        if let Err(error) = answered {
            self.broken(lane, &error);
        }
        bytes
    }

    /// A ring that cannot be served: parked, reported once, and the driver is told.
    fn broken(&mut self, lane: Lane, error: &RingError) {
        let Some(source) = self.source(lane) else { return };
        if !source.park() {
            return;
        }
        self.gpu.counters.rings_broken.bump();
        error_limited!(?lane, %error, "the queue is broken and is not served until the driver resets the device");
        if let Some(active) = &self.active {
            self.gpu.counters.needs_resets.bump();
            active.interrupt.needs_reset();
        }
    }

    /// The configuration space has changed: the driver hears of it, where there is one that runs.
    pub(crate) fn config_changed(&mut self) {
        match &self.active {
            Some(_) if self.paused => self.config_changed = true,
            Some(active) => active.interrupt.config_changed(),
            None => {}
        }
    }

    /// Takes up what commands have left.
    pub(crate) fn take_outbox(&mut self) {
        let outbox = &mut self.gpu.outbox;
        self.fresh |= !(outbox.channels.is_empty() && outbox.chores.is_empty() && outbox.quarantine.is_empty());
        self.channels.extend(outbox.channels.drain(..));
        self.chores.extend(outbox.chores.drain(..));
        self.quarantine.extend(outbox.quarantine.drain(..));
        for ticket in outbox.signalled.drain(..) {
            self.board.signalled(ticket);
        }
    }
}
