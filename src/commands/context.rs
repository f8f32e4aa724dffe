//! Contexts: CTX_CREATE, CTX_DESTROY, CTX_ATTACH_RESOURCE, CTX_DETACH_RESOURCE, SUBMIT_3D.
//! Streams of cross-domain contexts are carried out at once, in `stream`; all others go to the renderer.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;

use smallvec::smallvec;

use super::{Claim, Claims, FenceState, Gpu, Made, Refusal, Response, Step, Ticket};
use crate::cross_domain::{self, Bounds, Items};
use crate::limits::{Charge, Quota};
use crate::protocol::features;
use crate::protocol::wire::command_type::SUBMIT_3D;
use crate::protocol::wire::{CAPSET_CROSS_DOMAIN, Header};
use crate::renderer::{Created, Fence};
use crate::resource::ResourceKey;
use crate::seams::Work;

slotmap::new_key_type! {
    /// Names one life of a context.
    pub(crate) struct ContextKey;
}

/// The timeline of a cross-domain context whose fences are credits for messages.
const CHANNEL_RING: u8 = 1;

/// A context of the guest.
pub(super) struct Context {
    kind: Kind,
    /// What is attached to it.
    pub(super) resources: HashSet<ResourceKey>,
    /// Fenced commands whose answers are the host service's next messages, oldest first.
    pub(super) credits: VecDeque<Ticket>,
    /// Fenced commands whose fences the renderer has not signalled.
    rendering: HashSet<Ticket>,
    _charges: [Option<Charge>; 2],
}

/// Who understands a context's streams.
enum Kind {
    /// Nobody: the guest named no capability set and there is no renderer to choose one.
    Plain,
    CrossDomain(Box<cross_domain::Context>),
    Rendered,
}

impl Context {
    pub(super) fn is_rendered(&self) -> bool {
        matches!(self.kind, Kind::Rendered)
    }

    pub(super) fn items(&mut self) -> Option<&mut Items> {
        self.cross_domain().map(|context| &mut context.items)
    }

    pub(super) fn cross_domain(&mut self) -> Option<&mut cross_domain::Context> {
        self.cross_domain_parts().map(|(_, context)| context)
    }

    /// A cross-domain context, and what is attached to it.
    pub(super) fn cross_domain_parts(&mut self) -> Option<(&HashSet<ResourceKey>, &mut cross_domain::Context)> {
        match &mut self.kind {
            Kind::CrossDomain(context) => Some((&self.resources, context)),
            Kind::Plain | Kind::Rendered => None,
        }
    }
}

/// The context, and with it the order of its streams.
pub(super) fn claims(context: u32) -> Claims {
    smallvec![Claim::Context(context)]
}

/// Both sides of an attachment.
pub(super) fn attach_claims(context: u32, resource: u32) -> Claims {
    smallvec![Claim::Context(context), Claim::Resource(resource)]
}

impl Gpu {
    pub(super) fn ctx_create(&mut self, id: u32, capset: u32, name: String) -> Result<Step, Refusal> {
        if !self.contexts.is_free(id) {
            return Err(Refusal::ContextId { id });
        }
        if capset != 0 && !self.negotiated(features::CONTEXT_INIT) {
            return Err(Refusal::NotNegotiated { feature: features::CONTEXT_INIT });
        }
        let charge = self.ledger.charge(Quota::Contexts, 1)?;
        let rendered = self.capsets.iter().any(|offered| offered.id == capset || capset == 0);
        if let (true, Some(renderer)) = (rendered, self.renderer.clone()) {
            self.making.insert(Made::Context(id));
            let work = Work::Later(renderer.create_context(id, capset, name));
            return Step::after(work, self, move |gpu, created| {
                gpu.making.remove(&Made::Context(id));
                let Created { descriptors, .. } = created?;
                match gpu.ledger.charge(Quota::Fds, descriptors) {
                    Ok(fds) => gpu.insert_context(id, Kind::Rendered, [Some(charge), Some(fds)]),
                    Err(reached) => {
                        gpu.forget_rendered_context(id);
                        return Err(reached.into());
                    }
                }
                Ok(Response::NoData)
            });
        }
        let (kind, fd) = match capset {
            0 => (Kind::Plain, None),
            CAPSET_CROSS_DOMAIN => {
                let items = Items::new(self.limits.items_per_context);
                // Charged for its socket from the start, so that INIT cannot run out of descriptors.
                let fd = self.ledger.charge(Quota::Fds, 1)?;
                let bounds = Bounds::new(self.limits.channel_backlog, Rc::clone(&self.ledger));
                let context = cross_domain::Context::new(items, bounds, Rc::clone(&self.closer));
                (Kind::CrossDomain(Box::new(context)), Some(fd))
            }
            id => return Err(Refusal::UnknownCapset { id }),
        };
        self.insert_context(id, kind, [Some(charge), fd]);
        Ok(Step::Done(Response::NoData))
    }

    fn insert_context(&mut self, id: u32, kind: Kind, charges: [Option<Charge>; 2]) {
        let context = Context {
            kind,
            resources: HashSet::new(),
            credits: VecDeque::new(),
            rendering: HashSet::new(),
            _charges: charges,
        };
        self.contexts.insert(id, context);
    }

    pub(super) fn ctx_destroy(&mut self, id: u32) -> Result<Step, Refusal> {
        let unknown = Refusal::UnknownContext { id };
        let Some(key) = self.contexts.key(id) else { return Err(unknown) };
        let Some(context) = self.contexts.remove(key) else { return Err(unknown) };
        for resource in &context.resources {
            if let Some(resource) = self.resources.get_mut(*resource) {
                resource.contexts.retain(|other| *other != key);
            }
        }
        let rendered = context.is_rendered();
        self.end_context(context);
        match (rendered, self.renderer.clone()) {
            (true, Some(renderer)) => {
                let work = Work::Later(renderer.destroy_context(id));
                Step::after(work, self, |_, destroyed| Ok(destroyed.map(|()| Response::NoData)?))
            }
            _ => Ok(Step::Done(Response::NoData)),
        }
    }

    /// Closes the host socket at once, and keeps every promise to the guest.
    fn end_context(&mut self, context: Context) {
        if let Kind::CrossDomain(cross_domain) = &context.kind
            && cross_domain.is_open()
        {
            self.counters.channels_closed.bump();
        }
        self.outbox.signalled.extend(context.credits);
        self.outbox.signalled.extend(context.rendering);
        if let Kind::CrossDomain(cross_domain) = context.kind {
            self.outbox.chores.extend(cross_domain.behind);
            self.outbox.chores.extend(cross_domain.items.close());
        }
    }

    /// Closes all channels at once, with their eventfds and pipes; a reset goes on from there.
    pub(super) fn close_channels(&mut self) {
        for context in self.contexts.iter_mut().filter_map(Context::cross_domain) {
            self.counters.channels_closed.add(u64::from(context.is_open()));
            context.end();
            self.outbox.chores.append(&mut context.behind);
        }
    }

    /// Takes up what a context has left to go on by itself.
    pub(super) fn take_behind(&mut self, key: ContextKey) {
        if let Some(context) = self.contexts.get_mut(key).and_then(Context::cross_domain) {
            self.outbox.chores.append(&mut context.behind);
        }
    }

    /// Ends all contexts, for a reset, and takes back what the renderer is still making: it serves requests in order, so
    /// that the next driver's come after.
    pub(super) fn destroy_contexts(&mut self) {
        let mut making: Vec<Made> = self.making.drain().collect();
        // Resources first, as those that are there already.
        making.sort_by_key(|made| matches!(made, Made::Context(_)));
        making.into_iter().for_each(|made| match made {
            Made::Context(id) => self.forget_rendered_context(id),
            Made::Resource(id) => self.forget_rendered(id),
        });
        let rendered: Vec<u32> = self.contexts.iter().filter(|(_, row)| row.is_rendered()).map(|(id, _)| id).collect();
        rendered.into_iter().for_each(|id| self.forget_rendered_context(id));
        let contexts: Vec<Context> = self.contexts.drain().collect();
        contexts.into_iter().for_each(|context| self.end_context(context));
    }

    fn forget_rendered_context(&mut self, context: u32) {
        if let Some(renderer) = &self.renderer {
            let told = renderer.destroy_context(context);
            self.outbox.chores.push(Box::pin(async move { drop(told.await) }));
        }
    }

    pub(super) fn ctx_attach(&mut self, context: u32, resource: u32) -> Result<Step, Refusal> {
        self.attachment(context, resource, true)
    }

    pub(super) fn ctx_detach(&mut self, context: u32, resource: u32) -> Result<Step, Refusal> {
        self.attachment(context, resource, false)
    }

    fn attachment(&mut self, context: u32, resource: u32, attached: bool) -> Result<Step, Refusal> {
        let context_key = self.contexts.key(context).ok_or(Refusal::UnknownContext { id: context })?;
        let resource_key = self.resources.key(resource).ok_or(Refusal::UnknownResource { id: resource })?;
        let (Some(row), Some(target)) = (self.contexts.get_mut(context_key), self.resources.get_mut(resource_key))
        else {
            return Err(Refusal::UnknownResource { id: resource });
        };
        let changed = if attached { row.resources.insert(resource_key) } else { row.resources.remove(&resource_key) };
        if !changed {
            return Err(Refusal::Parameter("the resource is attached already, or not attached"));
        }
        target.contexts.retain(|other| *other != context_key);
        if attached {
            target.contexts.push(context_key);
        }
        match (row.is_rendered(), self.renderer.clone()) {
            (true, Some(renderer)) => {
                let work = Work::Later(renderer.attach(context, resource, attached));
                Step::after(work, self, |_, told| Ok(told.map(|()| Response::NoData)?))
            }
            _ => Ok(Step::Done(Response::NoData)),
        }
    }

    pub(super) fn submit(&mut self, context: u32, stream: Vec<u8>) -> Result<Step, Refusal> {
        let key = self.contexts.key(context).ok_or(Refusal::UnknownContext { id: context })?;
        let row = self.contexts.get_mut(key).ok_or(Refusal::UnknownContext { id: context })?;
        match (&row.kind, self.renderer.clone()) {
            (Kind::CrossDomain(_), _) => {
                let outcome = self.cross_domain_stream(key, &stream);
                self.take_behind(key);
                outcome.map(|()| Step::Done(Response::NoData))
            }
            (Kind::Rendered, Some(renderer)) => {
                let work = Work::Later(renderer.submit(context, stream));
                Step::after(work, self, |_, submitted| Ok(submitted.map(|()| Response::NoData)?))
            }
            _ if stream.is_empty() => Ok(Step::Done(Response::NoData)),
            _ => Err(Refusal::Parameter("the context has no command stream")),
        }
    }

    /// Whether a fenced command that has succeeded is done with that. A stream's fence on the channel's timeline is a credit:
    /// it signals with the next message. A renderer signals its own.
    pub(crate) fn fence(&mut self, header: &Header, ticket: Ticket) -> FenceState {
        let context = header.ctx_id.get();
        let Some(key) = self.contexts.key(context) else { return FenceState::Signalled };
        let Some(row) = self.contexts.get_mut(key) else { return FenceState::Signalled };
        let ring = header.on_ring().then_some(header.ring_idx);
        match &mut row.kind {
            Kind::Plain => FenceState::Signalled,
            Kind::CrossDomain(cross_domain) => {
                if ring != Some(CHANNEL_RING) || header.kind.get() != SUBMIT_3D {
                    return FenceState::Signalled;
                }
                if cross_domain.credit() {
                    row.credits.push_back(ticket);
                    return FenceState::Pending;
                }
                self.deliver_end(key);
                FenceState::Signalled
            }
            Kind::Rendered => {
                let (Some(renderer), Some(sink)) = (self.renderer.clone(), self.outbox.fence_sink.clone()) else {
                    return FenceState::Signalled;
                };
                let fence = Fence::new(move || {
                    // A device that is gone waits for nothing.
                    let _ = sink.send((key, ticket));
                });
                row.rendering.insert(ticket);
                renderer.fence(context, ring, fence);
                FenceState::Pending
            }
        }
    }

    /// The renderer has signalled a fence. One of a context that is gone has been signalled with it.
    pub(crate) fn renderer_signalled(&mut self, key: ContextKey, ticket: Ticket) {
        if self.contexts.get_mut(key).is_some_and(|row| row.rendering.remove(&ticket)) {
            self.outbox.signalled.push(ticket);
        }
    }

    /// The renderer is lost: what waits for its fences waits no more, and should its last call go on, it copies no more. Whatever
    /// else is asked of it is answered by its thread's end.
    pub(crate) fn renderer_lost(&mut self) {
        self.counters.renderers_lost.bump();
        self.lease.end();
        for context in self.contexts.iter_mut() {
            self.outbox.signalled.extend(context.rendering.drain());
        }
    }
}
