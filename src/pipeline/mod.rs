//! The device task: it owns all state of the device and decides when things happen.
//! Every turn serves its sources in a fixed order (finished work, fences, channels, cursor queue, control queue), each
//! only so far that none starves another, and ends with at most one interrupt a queue.

mod scoreboard;
mod source;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, SelectAll};
use futures_util::{FutureExt, StreamExt};
use slotmap::SecondaryMap;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tracing::{Span, debug, debug_span};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory};

pub(crate) use source::Source;

use crate::commands::{Claim, Claims, ContextKey, FenceState, Finish, Gpu, Refusal, Step, Ticket, claims};
use crate::cross_domain::Channel;
use crate::observe::{error_limited, warn_limited};
use crate::protocol::command::{needed_feature, response_len};
use crate::protocol::decode::{DecodeLimits, Head, decode};
use crate::protocol::wire::Header;
use crate::protocol::{Body, Command, DecodeError, ErrorCode, Response};
use crate::queue::{Request, RingError, Signal};
use crate::resource::GuestRam;
use crate::seams::{Interrupt, LocalFuture};
use crate::sys::ring::Nudge;
use scoreboard::{Order, Scoreboard};

/// Most requests that one queue is served in a turn.
const REQUESTS_A_TURN: usize = 64;
/// Most pieces of finished work, and most events of channels, that are booked in a turn.
const EVENTS_A_TURN: usize = 64;

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
    Ring { context: u32, ring: u8 },
}

/// A command between pop and answer.
struct Job {
    request: Request,
    header: Header,
    span: Span,
    stage: Stage,
}

enum Stage {
    /// Not begun.
    Waiting(Command),
    /// Its future is in flight.
    Running,
    /// Waits for its fence, or for its turn.
    Executed(Response),
}

/// The queues of an active device, and how their driver is interrupted.
pub(crate) struct Active<M: GuestAddressSpace> {
    pub(crate) control: Source<M>,
    pub(crate) cursor: Source<M>,
    pub(crate) interrupt: Box<dyn Interrupt>,
}

/// The state of the device task.
pub(crate) struct Pipeline<M: GuestAddressSpace> {
    gpu: Gpu,
    active: Option<Active<M>>,
    board: Scoreboard<Ticket, Claim, Timeline>,
    jobs: SecondaryMap<Ticket, Job>,
    in_flight: FuturesUnordered<LocalFuture<(Ticket, Finish)>>,
    chores: FuturesUnordered<LocalFuture<()>>,
    /// Work that was given up; it keeps what it holds until it ends, and nobody waits for it.
    quarantine: FuturesUnordered<LocalFuture<()>>,
    channels: SelectAll<Channel<ContextKey>>,
    fences: UnboundedReceiver<Ticket>,
    /// For turns that end with more to do.
    nudge: Nudge,
    /// Something was added to the sets above that has not been polled yet.
    fresh: bool,
    response: Vec<u8>,
    decode_limits: DecodeLimits,
}

impl<M: GuestAddressSpace + Clone + 'static> Pipeline<M> {
    pub(crate) fn new(mut gpu: Gpu, nudge: Nudge) -> Self {
        let (sink, fences) = unbounded_channel();
        gpu.outbox.fence_sink = Some(sink);
        let decode_limits = DecodeLimits {
            backing_entries: usize::try_from(gpu.limits.backing_entries).unwrap_or(usize::MAX),
            submit_bytes: usize::try_from(gpu.limits.submit_bytes).unwrap_or(usize::MAX),
        };
        Self {
            gpu,
            active: None,
            board: Scoreboard::default(),
            jobs: SecondaryMap::new(),
            in_flight: FuturesUnordered::new(),
            chores: FuturesUnordered::new(),
            quarantine: FuturesUnordered::new(),
            channels: SelectAll::new(),
            fences,
            nudge,
            fresh: false,
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

    /// One turn. Ready never comes: the device task ends by its control messages.
    pub(crate) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<std::convert::Infallible> {
        self.nudge.arm(cx);
        let mut more = self.poll_work(cx);
        more |= self.poll_queue(cx, Lane::Cursor);
        more |= self.poll_queue(cx, Lane::Control);
        if std::mem::take(&mut self.fresh) {
            more |= self.poll_work(cx);
            more |= self.fresh;
        }
        self.interrupt();
        if more {
            self.nudge.again();
        }
        Poll::Pending
    }

    /// Books what has ended: work, fences, events of channels.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> bool {
        let mut budget = EVENTS_A_TURN;
        while budget > 0
            && let Poll::Ready(Some((ticket, finish))) = self.in_flight.poll_next_unpin(cx)
        {
            budget -= 1;
            let span = self.jobs.get(ticket).map_or_else(Span::none, |job| job.span.clone());
            let _entered = span.enter();
            let outcome = finish(&mut self.gpu);
            self.executed(ticket, outcome);
            self.take_outbox();
        }
        while budget > 0
            && let Poll::Ready(Some(ticket)) = self.fences.poll_recv(cx)
        {
            budget -= 1;
            self.board.signalled(ticket);
            self.obey();
        }
        while budget > 0
            && let Poll::Ready(Some((context, event))) = self.channels.poll_next_unpin(cx)
        {
            budget -= 1;
            self.gpu.channel_event(context, event);
            self.take_outbox();
        }
        for rest in [&mut self.chores, &mut self.quarantine] {
            while budget > 0
                && let Poll::Ready(Some(())) = rest.poll_next_unpin(cx)
            {
                budget -= 1;
            }
        }
        budget == 0
    }

    /// Serves a queue for a turn; true where there is more to do.
    fn poll_queue(&mut self, cx: &mut Context<'_>, lane: Lane) -> bool {
        let counters = std::sync::Arc::clone(&self.gpu.counters);
        let Some(source) = self.source(lane) else { return false };
        if source.poll_kick(cx) {
            counters.kicks.bump();
        }
        for _ in 0..REQUESTS_A_TURN {
            if lane == Lane::Control && self.board.len() >= self.gpu.limits.commands_in_flight {
                // The guest's ring is the buffer: whatever ends next continues from here.
                self.gpu.counters.stalls_full.bump();
                return false;
            }
            let Some(source) = self.source(lane) else { return false };
            match source.next() {
                Ok(Some(request)) => self.arrived(lane, request),
                Ok(None) => return false,
                Err(error) => {
                    self.broken(lane, &error);
                    return false;
                }
            }
        }
        true
    }

    fn source(&mut self, lane: Lane) -> Option<&mut Source<M>> {
        let active = self.active.as_mut()?;
        Some(match lane {
            Lane::Control => &mut active.control,
            Lane::Cursor => &mut active.cursor,
        })
    }

    /// A request has been popped: decodes it, and runs it or lets the scoreboard decide.
    fn arrived(&mut self, lane: Lane, mut request: Request) {
        self.gpu.counters.commands.bump();
        let (header, command) = self.decode(lane, &mut request);
        let Some(header) = header else { return self.answer(lane, request, None, &ErrorCode::InvalidParameter.into()) };
        let span = debug_span!(
            "command",
            kind = format_args!("{:#x}", header.kind.get()),
            context = header.ctx_id.get(),
            fence = header.fenced().then(|| header.fence_id.get()),
            ring = header.on_ring().then_some(header.ring_idx),
        );
        let claims = command.as_ref().map(|command| claims(&header, command)).unwrap_or_default();
        let timeline = if lane == Lane::Control { timeline(&header) } else { None };
        self.gpu.counters.fenced.add(u64::from(header.fenced()));
        if claims.is_empty() && timeline.is_none() {
            let begun = span.in_scope(|| command.and_then(|command| self.gpu.begin(&header, command)));
            let response = match begun {
                Ok(Step::Done(response)) => response,
                Ok(Step::Later(future)) => {
                    return self.goes_on(Job { request, header, span, stage: Stage::Running }, future);
                }
                Err(refusal) => span.in_scope(|| self.refuse(&refusal)),
            };
            return self.answer(lane, request, Some(&header), &response);
        }
        let ticket = self.board.arrived(claims, timeline);
        match command {
            Ok(command) => {
                self.jobs.insert(ticket, Job { request, header, span, stage: Stage::Waiting(command) });
                self.obey();
            }
            Err(refusal) => {
                self.jobs.insert(ticket, Job { request, header, span, stage: Stage::Running });
                self.executed(ticket, Err(refusal));
            }
        }
    }

    /// A command that claims nothing takes its time all the same.
    fn goes_on(&mut self, job: Job, future: LocalFuture<Finish>) {
        let ticket = self.board.arrived(Claims::new(), None);
        self.jobs.insert(ticket, job);
        self.fly(ticket, future);
        self.obey();
    }

    fn fly(&mut self, ticket: Ticket, future: LocalFuture<Finish>) {
        debug!("waiting");
        self.in_flight.push(Box::pin(future.map(move |finish| (ticket, finish))));
        self.fresh = true;
    }

    fn decode(&self, lane: Lane, request: &mut Request) -> (Option<Header>, Result<Command, Refusal>) {
        let Some(active) = &self.active else { return (None, Err(Refusal::Inactive)) };
        let source = if lane == Lane::Control { &active.control } else { &active.cursor };
        let memory = source.memory();
        let body = RequestBody { request, memory: &*memory };
        let (header, head) = match Head::read(&body) {
            Ok(read) => read,
            Err(error) => return (None, Err(error.into())),
        };
        let command = self
            .check(lane, &header, &body)
            .and_then(|()| decode(&header, &head, &body, &self.decode_limits).map_err(Refusal::from));
        self.response_of_last_resort(&header, request);
        (Some(header), command)
    }

    /// What can be said before the command is read: its queue, its feature, room for its answer.
    fn check(&self, lane: Lane, header: &Header, body: &RequestBody<'_, impl GuestMemory>) -> Result<(), Refusal> {
        let kind = header.kind.get();
        if (kind >= 0x300) != (lane == Lane::Cursor) {
            let unknown = DecodeError::Unknown { kind };
            return Err(if (0x300..0x302).contains(&kind) || kind < 0x300 {
                Refusal::WrongQueue
            } else {
                unknown.into()
            });
        }
        let feature = needed_feature(kind);
        if self.gpu.features & feature != feature {
            return Err(Refusal::NotNegotiated { feature });
        }
        let (needed, have) = (response_len(kind), body.request.writable_len());
        if have < needed { Err(Refusal::ResponseSpace { needed, have }) } else { Ok(()) }
    }

    fn response_of_last_resort(&self, header: &Header, request: &mut Request) {
        let mut bytes = Vec::with_capacity(size_of::<Header>());
        Response::from(ErrorCode::Unspec).encode(header, &mut bytes);
        if let Ok(answer) = bytes.try_into() {
            request.set_fallback(answer);
        }
    }

    /// Does what the scoreboard orders until it has nothing more to say.
    fn obey(&mut self) {
        while let Some(order) = self.board.next_order() {
            match order {
                Order::Start(ticket) => self.start(ticket),
                Order::Answer(ticket) => {
                    if let Some(Job { request, header, span, stage: Stage::Executed(response) }) =
                        self.jobs.remove(ticket)
                    {
                        span.in_scope(|| debug!("answered"));
                        self.answer(Lane::Control, request, Some(&header), &response);
                    }
                }
            }
        }
    }

    fn start(&mut self, ticket: Ticket) {
        let Some(job) = self.jobs.get_mut(ticket) else { return };
        let header = job.header;
        let Stage::Waiting(command) = std::mem::replace(&mut job.stage, Stage::Running) else { return };
        let span = job.span.clone();
        let _entered = span.enter();
        match self.gpu.begin(&header, command) {
            Ok(Step::Done(response)) => self.book(ticket, Ok(response)),
            Ok(Step::Later(future)) => self.fly(ticket, future),
            Err(refusal) => self.book(ticket, Err(refusal)),
        }
        self.take_outbox_without_orders();
    }

    /// A command's work is done: books it and does what follows from that.
    fn executed(&mut self, ticket: Ticket, outcome: Result<Response, Refusal>) {
        self.book(ticket, outcome);
        self.obey();
    }

    fn book(&mut self, ticket: Ticket, outcome: Result<Response, Refusal>) {
        let Some(header) = self.jobs.get(ticket).map(|job| job.header) else { return };
        let (response, fence) = match outcome {
            Ok(response) if header.fenced() => (response, self.gpu.fence(&header, ticket)),
            Ok(response) => (response, FenceState::Signalled),
            Err(refusal) => (self.refuse(&refusal), FenceState::Signalled),
        };
        debug!(pending = (fence == FenceState::Pending), "done");
        if let Some(job) = self.jobs.get_mut(ticket) {
            job.stage = Stage::Executed(response);
        }
        self.board.finished(ticket, fence == FenceState::Pending);
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
        if self.response.len() > request.writable_len() && !matches!(response, Response::Error(_)) {
            let refusal = Refusal::ResponseSpace { needed: self.response.len(), have: request.writable_len() };
            self.refuse(&refusal).encode(&header, &mut self.response);
        }
        let counters = &self.gpu.counters;
        if matches!(response, Response::Error(_)) {
            counters.answers_error.bump()
        } else {
            counters.answers_ok.bump()
        }
        let Some(active) = self.active.as_mut() else { return request.abandon() };
        let source = if lane == Lane::Control { &mut active.control } else { &mut active.cursor };
        if let Err(error) = source.answer(request, &self.response) {
            self.broken(lane, &error);
        }
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
            self.gpu.counters.config_interrupts.bump();
            active.interrupt.config();
        }
    }

    /// Interrupts the driver, once a queue at most.
    fn interrupt(&mut self) {
        for (lane, index) in [(Lane::Control, 0), (Lane::Cursor, 1)] {
            let Some(source) = self.source(lane) else { return };
            match source.take_signal() {
                Ok((signal, lost)) => {
                    self.gpu.counters.requests_lost.add(lost);
                    self.signal(signal, index);
                }
                Err(error) => self.broken(lane, &error),
            }
        }
    }

    fn signal(&self, signal: Signal, index: u16) {
        match (signal, &self.active) {
            (Signal::Interrupt, Some(active)) => {
                self.gpu.counters.interrupts.bump();
                active.interrupt.queue(index);
            }
            (Signal::Suppressed, _) => self.gpu.counters.interrupts_suppressed.bump(),
            _ => {}
        }
    }

    /// Takes up what commands have left, and does what follows from it.
    fn take_outbox(&mut self) {
        self.take_outbox_without_orders();
        self.obey();
    }

    fn take_outbox_without_orders(&mut self) {
        let outbox = &mut self.gpu.outbox;
        self.fresh |= !(outbox.channels.is_empty() && outbox.chores.is_empty() && outbox.quarantine.is_empty());
        self.channels.extend(outbox.channels.drain(..));
        self.chores.extend(outbox.chores.drain(..));
        self.quarantine.extend(outbox.quarantine.drain(..));
        for ticket in outbox.signalled.drain(..) {
            self.board.signalled(ticket);
        }
    }

    /// Stops serving, ends everything that the guest has begun, and gives up everything that it has made. What does not
    /// end by the deadline is set aside: it keeps its range of the window and its descriptor until it does.
    pub(crate) async fn quiesce(&mut self, deadline: Duration) {
        self.active = None;
        self.jobs.drain().for_each(|(_, job)| job.request.abandon());
        let ends = tokio::time::Instant::now() + deadline;
        let ended = tokio::time::timeout_at(ends, poll_fn(|cx| self.poll_ends(cx))).await;
        self.set_aside(ended.is_err());
        self.board.clear();
        let mut releasing: FuturesUnordered<_> = self.gpu.release_all().into_iter().collect();
        self.take_outbox_without_orders();
        while let Ok(Some(retired)) = tokio::time::timeout_at(ends, releasing.next()).await {
            self.gpu.released(retired);
        }
        self.set_aside(!releasing.is_empty());
        self.quarantine.extend(releasing.into_iter().map(|rest| Box::pin(rest.map(drop)) as LocalFuture<()>));
        let _ = tokio::time::timeout_at(ends, poll_fn(|cx| self.poll_ends(cx))).await;
        self.take_outbox_without_orders();
        self.board.clear();
    }

    /// Ready when no command's work and no call of the renderer is under way, and every channel has been heard.
    fn poll_ends(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(Some((_, finish))) = self.in_flight.poll_next_unpin(cx) {
            // Booked like any other, so that what it placed or made is found and given up below; nobody is answered.
            let _ = finish(&mut self.gpu);
        }
        while let Poll::Ready(Some(_)) = self.channels.poll_next_unpin(cx) {}
        while let Poll::Ready(Some(())) = self.chores.poll_next_unpin(cx) {}
        if self.in_flight.is_empty() && self.chores.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Work that did not end goes on behind the device's back; what it yields is dropped, and with it what it owns.
    fn set_aside(&mut self, stuck: bool) {
        let left = self.in_flight.len() as u64;
        if !stuck {
            return;
        }
        self.gpu.counters.quarantined.add(left.max(1));
        warn_limited!(left, "work did not end before the deadline and is set aside");
        let in_flight = std::mem::take(&mut self.in_flight);
        self.quarantine.extend(in_flight.into_iter().map(|work| Box::pin(work.map(drop)) as LocalFuture<()>));
    }
}

fn timeline(header: &Header) -> Option<Timeline> {
    let ring = Timeline::Ring { context: header.ctx_id.get(), ring: header.ring_idx };
    header.fenced().then_some(if header.on_ring() { ring } else { Timeline::Global })
}

/// The readable part of a request, as the protocol room wants it.
struct RequestBody<'a, G> {
    request: &'a Request,
    memory: &'a G,
}

impl<G: GuestMemory> Body for RequestBody<'_, G> {
    fn len(&self) -> usize {
        self.request.readable_len()
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        self.request.read(self.memory, offset, out)
    }
}

/// Guest memory for the rooms below.
struct Ram<M>(M);

impl<M: GuestAddressSpace> GuestRam for Ram<M> {
    fn contains(&self, address: u64, len: u64) -> bool {
        let Ok(len) = usize::try_from(len) else { return false };
        let access = vm_memory::Permissions::ReadWrite;
        self.0.memory().check_range(GuestAddress(address), len, access)
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.0.memory().write_slice(data, GuestAddress(address)).is_ok()
    }
}
