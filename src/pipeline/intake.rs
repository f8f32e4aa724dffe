//! From a popped request to a command that runs or waits: decoding, what can be refused at sight, and the scoreboard's
//! verdict. A command that claims nothing and is not fenced is begun on the spot, and mostly answered.

use tracing::{debug, debug_span};
use vm_memory::{GuestAddressSpace, GuestMemory};
use zerocopy::transmute;

use super::{Job, Lane, Pipeline, Stage, Timeline};
use crate::commands::{Claim, Claims, Refusal, Step};
use crate::limits::Quota;
use crate::protocol::command::{needed_feature, response_len};
use crate::protocol::decode::{Head, decode};
use crate::protocol::features::CONTEXT_INIT;
use crate::protocol::wire::{Header, RING_COUNT, command_type};
use crate::protocol::{Body, Command, ErrorCode, Response};
use crate::queue::Request;

/// Ids of contexts whose ends are remembered.
const MOST_LIVES: usize = 1 << 16;

impl<M: GuestAddressSpace + Send + 'static> Pipeline<M> {
    /// A request has been popped: decodes it, and runs it or lets the scoreboard decide.
    pub(super) fn arrived(&mut self, lane: Lane, mut request: Request) {
        let (header, command) = self.decode(lane, &mut request);
        request.forget_readable();
        let Some(header) = header else { return self.answer(lane, request, None, &ErrorCode::InvalidParameter.into()) };
        let span = debug_span!(
            "command",
            queue = ?lane,
            kind = format_args!("{:#x}", header.kind.get()),
            context = header.ctx_id.get(),
            resource = command.as_ref().ok().and_then(Command::resource),
            fence = header.fenced().then(|| header.fence_id.get()),
            ring = header.on_ring().then_some(header.ring_idx),
        );
        let command = command.and_then(|command| {
            let charge = self.gpu.ledger.charge(Quota::HostBytes, command.payload() as u64)?;
            Ok((command, charge))
        });
        let claims = command.as_ref().map(|(command, _)| self.claims(&header, command)).unwrap_or_default();
        let timeline = if lane == Lane::Control { self.timeline(&header) } else { None };
        self.gpu.counters.fenced.add(u64::from(header.fenced()));
        match command {
            Ok((Command::CtxCreate { .. }, _)) => drop(self.contexts.insert(header.ctx_id.get())),
            Ok((Command::CtxDestroy, _)) => self.next_life(header.ctx_id.get()),
            _ => {}
        }
        if claims.is_empty() && timeline.is_none() {
            let begun = span.in_scope(|| command.and_then(|(command, _)| self.gpu.begin(&header, command)));
            let response = match begun {
                Ok(Step::Done(response)) => response,
                Ok(step) => return self.goes_on(Job { lane, request, header, span, stage: Stage::Running }, step),
                Err(refusal) => span.in_scope(|| self.refuse(&refusal)),
            };
            return span.in_scope(|| self.answer(lane, request, Some(&header), &response));
        }
        let ticket = self.board.arrived(claims, timeline);
        match command {
            Ok((command, payload)) => {
                let stage = Stage::Waiting { command, _payload: payload };
                self.jobs.insert(ticket, Job { lane, request, header, span: span.clone(), stage });
                self.obey();
                if self.jobs.get(ticket).is_some_and(|job| matches!(job.stage, Stage::Waiting { .. })) {
                    span.in_scope(|| debug!("waiting for an earlier command"));
                }
            }
            Err(refusal) => {
                self.jobs.insert(ticket, Job { lane, request, header, span, stage: Stage::Running });
                self.executed(ticket, Err(refusal));
            }
        }
    }

    /// The claims of a command, with those of attachments to come: a flush has to wait for the streams of the contexts that its
    /// resource will be attached to.
    fn claims(&self, header: &Header, command: &Command) -> Claims {
        let mut claims = self.gpu.claims(header, command);
        if !self.gpu.is_drawn_by_streams(command) {
            return claims;
        }
        for job in self.jobs.values() {
            if let Stage::Waiting { command: Command::CtxAttach { resource }, .. } = &job.stage
                && Some(*resource) == command.resource()
            {
                let claim = Claim::Context(job.header.ctx_id.get());
                if !claims.contains(&claim) {
                    claims.push(claim);
                }
            }
        }
        claims
    }

    /// A command that claims nothing takes its time all the same.
    fn goes_on(&mut self, job: Job, step: Step) {
        let ticket = self.board.arrived(Claims::new(), None);
        self.jobs.insert(ticket, job);
        self.take_step(ticket, Ok(step));
        self.obey();
    }

    /// The timeline of a fenced command. Those of a context die with it: the next life of its id has its own.
    fn timeline(&self, header: &Header) -> Option<Timeline> {
        if !header.fenced() {
            return None;
        }
        if !header.on_ring() {
            return Some(Timeline::Global);
        }
        let (context, ring) = (header.ctx_id.get(), header.ring_idx);
        let life = self.lives.get(&context).copied().unwrap_or(0);
        Some(Timeline::Ring { context, life, ring })
    }

    /// A CTX_DESTROY has arrived: what comes after it speaks of the next life of the id.
    fn next_life(&mut self, context: u32) {
        if self.lives.len() >= MOST_LIVES {
            // A guest that uses up so many ids may find a new context's fences behind an old one's.
            self.lives.clear();
        }
        self.contexts.remove(&context);
        self.last_life += 1;
        self.lives.insert(context, self.last_life);
    }

    fn decode(&self, lane: Lane, request: &mut Request) -> (Option<Header>, Result<Command, Refusal>) {
        let Some(source) = self.active.as_ref().and_then(|active| active.source(lane)) else {
            return (None, Err(Refusal::Inactive));
        };
        let memory = source.memory();
        let body = RequestBody { request, memory: &*memory };
        let (header, head) = match Head::read(&body) {
            Ok(read) => read,
            Err(error) => return (None, Err(error.into())),
        };
        let command = self
            .check(lane, &header, request.writable_len())
            .and_then(|()| Ok(decode(&header, &head, &body, &self.decode_limits)?));
        request.set_fallback(transmute!(Response::from(ErrorCode::Unspec).header(&header)));
        (Some(header), command)
    }

    /// What can be said before the command is read: its queue, its feature, its timeline (virtio 1.4, section 5.7.6.7), room
    /// for its answer.
    fn check(&self, lane: Lane, header: &Header, room: usize) -> Result<(), Refusal> {
        let kind = header.kind.get();
        if matches!(kind, command_type::UPDATE_CURSOR | command_type::MOVE_CURSOR) != (lane == Lane::Cursor) {
            return Err(Refusal::WrongQueue);
        }
        let ring = if header.on_ring() { CONTEXT_INIT } else { 0 };
        for feature in [needed_feature(kind), ring] {
            if self.gpu.features & feature != feature {
                return Err(Refusal::NotNegotiated { feature });
            }
        }
        if header.on_ring() && header.ring_idx >= RING_COUNT {
            return Err(Refusal::Parameter("ring_idx must be below 64"));
        }
        // The context as it will be when what came before has been carried out, and whatever becomes of it after.
        let context = header.ctx_id.get();
        if header.on_ring() && kind != command_type::CTX_CREATE && !self.contexts.contains(&context) {
            return Err(Refusal::UnknownContext { id: context });
        }
        // Linux leaves no room for the answer to a cursor command: it waits for the chain's return alone.
        let needed = if lane == Lane::Cursor && room == 0 { 0 } else { response_len(kind) };
        if room < needed { Err(Refusal::ResponseSpace { needed, have: room }) } else { Ok(()) }
    }
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
