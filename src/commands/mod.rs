//! What each command does, and what it claims while it does it. A command checks and moves its state machine at once;
//! what takes longer goes on in a future that owns just what it needs, and is booked when that has ended.

mod blob;
mod channel;
mod context;
mod cursor;
mod export;
mod flush;
mod image;
mod query;
mod read;
mod refusal;
mod rendered;
mod scanout;
mod stream;
mod turn;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

pub(crate) use context::ContextKey;
pub use export::{Exported, ExportedMemory};
pub(crate) use query::capset_count;
pub(crate) use refusal::Refusal;
pub(crate) use turn::Turn;

use crate::buffer::read::Reads;
use crate::buffer::{Closer, HeldBuffer};
use crate::cross_domain::{Channel, HostSockets};
use crate::display::Scanouts;
use crate::limits::{Ledger, Limits};
use crate::observe::LiveCounters;
use crate::protocol::config::LiveConfig;
use crate::protocol::wire::Header;
use crate::protocol::{Command, ErrorCode, Response};
use crate::renderer::{Capset, RendererThread};
use crate::resource::{GuestRam, Lease, ResourceKey, Table};
use crate::seams::{LocalFuture, Work};
use crate::window::Window;
use context::Context;

slotmap::new_key_type! {
    /// Names one command between pop and answer.
    pub(crate) struct Ticket;
}

/// What a command touches, and nobody after it may touch before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    /// A resource: its existence, its backing.
    Resource(u32),
    /// A resource's mapping, which may take long to come and go.
    Mapping(u32),
    /// A context: its existence, what is attached to it, the order of its streams.
    Context(u32),
    /// What a scanout shows.
    Scanout(u32),
}

/// The claims of one command, all different.
pub(crate) type Claims = SmallVec<[Claim; 3]>;

/// Something that the renderer is making for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Made {
    Context(u32),
    Resource(u32),
}

/// What has been decided about a command's work.
pub(crate) enum Step {
    /// It is done.
    Done(Response),
    /// It is done when the future is, and then booked by what the future yields.
    Later(LocalFuture<Finish>),
    /// It is done and holds up nobody, and is answered when the future is ready.
    Until(LocalFuture<()>, Response),
    /// There is more of it than this turn has room for: it goes on in another.
    Turn(Finish),
}

/// Books the outcome of work that has ended, and answers or goes on.
pub(crate) type Finish = Box<dyn FnOnce(&mut Gpu) -> Result<Step, Refusal>>;

impl Step {
    /// Goes on in `work`; `finish` books its outcome.
    fn after<T: 'static>(
        work: Work<T>,
        gpu: &mut Gpu,
        finish: impl FnOnce(&mut Gpu, T) -> Result<Response, Refusal> + 'static,
    ) -> Result<Self, Refusal> {
        Self::and_then(work, gpu, |gpu, outcome| finish(gpu, outcome).map(Self::Done))
    }

    /// Goes on in `work`; `finish` books its outcome, and says how to go on.
    fn and_then<T: 'static>(
        work: Work<T>,
        gpu: &mut Gpu,
        finish: impl FnOnce(&mut Gpu, T) -> Result<Self, Refusal> + 'static,
    ) -> Result<Self, Refusal> {
        match work {
            Work::Done(outcome) => finish(gpu, outcome),
            Work::Later(future) => Ok(Self::Later(Box::pin(async move {
                let outcome = future.await;
                Box::new(move |gpu: &mut Gpu| finish(gpu, outcome)) as Finish
            }))),
        }
    }
}

/// Whether a fence has signalled when its command is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FenceState {
    Signalled,
    Pending,
}

/// All state that commands work on. One task owns it; nothing in it is locked or borrowed across an await.
pub(crate) struct Gpu {
    pub(crate) resources: Table<ResourceKey, Resource>,
    contexts: Table<ContextKey, Context>,
    window: Option<Window>,
    /// Buffers that the VMM has handed in and no context has made a blob of.
    offered: HashMap<u64, HeldBuffer>,
    last_offer: u64,
    /// What the VMM is reading of blobs.
    reads: Reads,
    scanouts: Scanouts<ResourceKey>,
    /// Resources by the names that they are exported under.
    exports: HashMap<[u8; 16], ResourceKey>,
    events: Arc<LiveConfig>,
    pub(crate) turn: Turn,
    /// The renderer's right to touch guest memory.
    pub(crate) lease: Lease,
    hosts: HostSockets,
    closer: Rc<Closer>,
    renderer: Option<RendererThread>,
    /// What the renderer has been asked to make and has not made yet.
    making: HashSet<Made>,
    capsets: Vec<Capset>,
    alignment: u64,
    pub(crate) limits: Limits,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) counters: Arc<LiveCounters>,
    /// What the driver has acknowledged.
    pub(crate) features: u64,
    ram: Option<Rc<dyn GuestRam>>,
    /// What commands leave for the device task to take up.
    pub(crate) outbox: Outbox,
}

type Resource = crate::resource::Resource<ContextKey>;

/// Work that commands have started and the device task is to poll, and fences that have signalled.
#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) channels: Vec<Channel<ContextKey>>,
    /// Calls of the renderer, and closes of large files, that nobody's answer depends on.
    pub(crate) chores: Vec<LocalFuture<()>>,
    /// What nobody waits for, not even a reset: what did not end by its deadline, with everything that it still holds, and
    /// closes of others' descriptors.
    pub(crate) quarantine: Vec<LocalFuture<()>>,
    pub(crate) signalled: Vec<Ticket>,
    /// Fences for the renderer; it signals from its own thread.
    pub(crate) fence_sink: Option<tokio::sync::mpsc::UnboundedSender<(ContextKey, Ticket)>>,
}

/// What the builder hands over.
pub(crate) struct Parts {
    pub(crate) window: Option<Window>,
    pub(crate) hosts: HostSockets,
    pub(crate) renderer: Option<RendererThread>,
    pub(crate) capsets: Vec<Capset>,
    pub(crate) alignment: u64,
    pub(crate) scanouts: Scanouts<ResourceKey>,
    pub(crate) events: Arc<LiveConfig>,
    pub(crate) limits: Limits,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) counters: Arc<LiveCounters>,
}

impl Gpu {
    /// The claims of a command; each family states them beside what it does. What reads or writes pixels of the renderer's
    /// has to come after the streams that draw them, of whatever context.
    pub(crate) fn claims(&self, header: &Header, command: &Command) -> Claims {
        let mut claims = claims_of(header, command);
        if self.is_drawn_by_streams(command)
            && let Some((_, resource)) = command.resource().and_then(|id| self.resource(id).ok())
            && resource.memory.is_rendered()
        {
            let contexts = resource.contexts.iter().filter_map(|key| self.contexts.entry(*key));
            for claim in contexts.map(|(id, _)| Claim::Context(id)) {
                if !claims.contains(&claim) {
                    claims.push(claim);
                }
            }
        }
        claims
    }

    /// Whether a command deals with pixels that streams of the renderer's may draw.
    pub(crate) fn is_drawn_by_streams(&self, command: &Command) -> bool {
        self.renderer.is_some() && matches!(command, Command::Flush(_) | Command::Transfer3d(..))
    }
}

fn claims_of(header: &Header, command: &Command) -> Claims {
    let context = header.ctx_id.get();
    match command {
        Command::GetDisplayInfo
        | Command::GetEdid { .. }
        | Command::GetCapsetInfo { .. }
        | Command::GetCapset { .. }
        | Command::UpdateCursor(_)
        | Command::MoveCursor(_) => Claims::new(),
        Command::AttachBacking { resource, .. } | Command::DetachBacking { resource } => image::claims(*resource),
        Command::Create2d(create) => image::claims(create.resource_id.get()),
        Command::TransferToHost2d(transfer) => image::claims(transfer.resource_id.get()),
        Command::Flush(flush) => image::claims(flush.resource_id.get()),
        Command::SetScanout(set) => scanout::claims(set.scanout_id.get(), set.resource_id.get()),
        Command::SetScanoutBlob(set) => scanout::claims(set.scanout_id.get(), set.resource_id.get()),
        Command::AssignUuid { resource } => image::claims(*resource),
        Command::CreateBlob(create) => blob::create_claims(context, create),
        Command::MapBlob(map) => blob::map_claims(map.resource),
        Command::UnmapBlob { resource } => blob::map_claims(*resource),
        Command::Unref { resource } => blob::unref_claims(*resource),
        Command::Create3d(create) => rendered::create_claims(create.resource_id.get()),
        Command::Transfer3d(transfer, _) => rendered::transfer_claims(context, transfer.resource_id.get()),
        Command::CtxCreate { .. } | Command::CtxDestroy | Command::Submit { .. } => context::claims(context),
        Command::CtxAttach { resource } | Command::CtxDetach { resource } => context::attach_claims(context, *resource),
    }
}

impl Gpu {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { window, hosts, renderer, capsets, alignment, scanouts, events, limits, ledger, counters } = parts;
        Self {
            resources: Table::default(),
            contexts: Table::default(),
            window,
            offered: HashMap::new(),
            last_offer: 0,
            reads: Reads::new(limits.deadline),
            scanouts,
            exports: HashMap::new(),
            events,
            turn: Turn::default(),
            lease: Lease::default(),
            hosts,
            closer: Rc::default(),
            renderer,
            making: HashSet::new(),
            capsets,
            alignment,
            limits,
            ledger,
            counters,
            features: 0,
            ram: None,
            outbox: Outbox::default(),
        }
    }

    /// The driver is up: what it has acknowledged, and the memory that its commands speak of.
    pub(crate) fn start(&mut self, features: u64, ram: Rc<dyn GuestRam>) {
        self.features = features;
        self.ram = Some(ram);
        self.lease = Lease::default();
    }

    fn negotiated(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    fn ram(&self) -> Result<Rc<dyn GuestRam>, Refusal> {
        self.ram.clone().ok_or(Refusal::Inactive)
    }

    /// The resource under a guest's id.
    fn resource(&self, id: u32) -> Result<(ResourceKey, &Resource), Refusal> {
        let unknown = Refusal::UnknownResource { id };
        let key = self.resources.key(id).ok_or(Refusal::UnknownResource { id })?;
        self.resources.get(key).map(|resource| (key, resource)).ok_or(unknown)
    }

    /// Begins a command whose claims are free.
    ///
    /// # Errors
    /// Why the guest is answered with an error; nothing has changed then.
    pub(crate) fn begin(&mut self, header: &Header, command: Command) -> Result<Step, Refusal> {
        let context = header.ctx_id.get();
        match command {
            Command::GetDisplayInfo => self.display_info(),
            Command::GetEdid { scanout } => self.edid(scanout),
            Command::GetCapsetInfo { index } => self.capset_info(index).map(Step::Done),
            Command::GetCapset { id, version } => self.capset(id, version).map(Step::Done),
            Command::UpdateCursor(cursor) => self.update_cursor(&cursor),
            Command::MoveCursor(cursor) => self.move_cursor(&cursor).map(Step::Done),
            Command::SetScanout(set) => self.set_scanout(&set),
            Command::SetScanoutBlob(set) => self.set_scanout_blob(&set).map(Step::Done),
            Command::Flush(flush) => self.flush(&flush),
            Command::Create2d(create) => self.create_2d(&create).map(Step::Done),
            Command::TransferToHost2d(transfer) => self.transfer_to_host_2d(&transfer),
            Command::AttachBacking { resource, entries } => self.attach_backing(resource, &entries),
            Command::DetachBacking { resource } => self.detach_backing(resource),
            Command::AssignUuid { resource } => self.assign_uuid(resource).map(Step::Done),
            Command::Create3d(create) => self.create_3d(&create),
            Command::Transfer3d(transfer, direction) => self.transfer_3d(context, &transfer, direction),
            Command::CreateBlob(create) => self.create_blob(context, create),
            Command::MapBlob(map) => self.map_blob(map.resource, map.offset),
            Command::UnmapBlob { resource } => self.unmap_blob(resource),
            Command::Unref { resource } => self.unref(resource),
            Command::CtxCreate { capset, name } => self.ctx_create(context, capset, name),
            Command::CtxDestroy => self.ctx_destroy(context),
            Command::CtxAttach { resource } => self.ctx_attach(context, resource),
            Command::CtxDetach { resource } => self.ctx_detach(context, resource),
            Command::Submit { stream } => self.submit(context, stream),
        }
    }

    /// Is ready when the renderer is lost.
    pub(crate) fn watch_renderer(&self) -> Option<LocalFuture<()>> {
        self.renderer.as_ref().map(|renderer| renderer.watch(self.limits.renderer_deadline))
    }

    /// Whether there is such a context now.
    pub(crate) fn has_context(&self, id: u32) -> bool {
        self.contexts.key(id).is_some()
    }
}
