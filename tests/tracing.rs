//! What an operator sees: a span for each command that says which it is, events for what happens to it, and a bounded
//! number of warnings whatever the guest does.
#![cfg(feature = "testing")]

#[path = "order/memory.rs"]
mod memory;

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, command_type as kind, response_type as response};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Lane, Misbehaviour, Request};
use virtio_gpu_uring::{Builder, HostBuffer};

use memory::SlowMemory;

/// Fields by name, as text.
#[derive(Debug, Clone, Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = self.0.entry(field.name()).or_default();
        text.clear();
        write!(text, "{value:?}").expect("a string takes it");
    }
}

impl Fields {
    /// A field under one of these names.
    fn any(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.0.get(*name)).map(String::as_str)
    }

    /// A field under one of these names that is this number, written in any way.
    fn has(&self, names: &[&str], number: u64) -> bool {
        let same = |text: &str| {
            let text = text.trim_start_matches("Some(").trim_end_matches(')');
            text.parse() == Ok(number) || u64::from_str_radix(text.trim_start_matches("0x"), 16) == Ok(number)
        };
        self.any(names).is_some_and(same)
    }
}

#[derive(Debug, Clone)]
struct SpanRecord {
    name: &'static str,
    fields: Fields,
    references: usize,
}

#[derive(Debug, Clone)]
struct EventRecord {
    level: Level,
    message: String,
    /// The innermost span.
    span: Option<u64>,
}

#[derive(Debug, Default)]
struct Seen {
    spans: HashMap<u64, SpanRecord>,
    events: Vec<EventRecord>,
    entered: Vec<u64>,
}

impl Seen {
    fn commands(&self) -> impl Iterator<Item = (&u64, &SpanRecord)> {
        self.spans.iter().filter(|(_, span)| span.name == "command")
    }

    /// The one span of a command of this type, and the messages of the events in it.
    #[track_caller]
    fn command(&self, kind: u32) -> (&Fields, Vec<String>) {
        let of_kind = |span: &SpanRecord| span.fields.has(&["kind", "type", "command"], kind.into());
        let mut found = self.commands().filter(|(_, span)| of_kind(span));
        let (id, span) = found.next().unwrap_or_else(|| panic!("no span for {kind:#x} in {:?}", self.spans));
        assert!(found.next().is_none(), "two spans for one command {kind:#x}");
        let events = self.events.iter().filter(|event| event.span == Some(*id));
        (&span.fields, events.map(|event| event.message.to_lowercase()).collect())
    }
}

/// A subscriber that keeps everything down to a level, for one device on a thread of its own.
struct Collector {
    level: Level,
    seen: Mutex<Seen>,
}

impl Collector {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Collector {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // Other tests of this process want other levels.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("virtio_gpu_uring") && *metadata.level() <= self.level
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let mut seen = self.seen();
        let id = seen.spans.len() as u64 + 1;
        seen.spans.insert(id, SpanRecord { name: attributes.metadata().name(), fields, references: 1 });
        Id::from_u64(id)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        if let Some(span) = self.seen().spans.get_mut(&id.into_u64()) {
            values.record(&mut span.fields);
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.any(&["message"]).unwrap_or_default().to_owned();
        let mut seen = self.seen();
        let span = seen.entered.last().copied();
        seen.events.push(EventRecord { level: *event.metadata().level(), message, span });
    }

    fn enter(&self, id: &Id) {
        self.seen().entered.push(id.into_u64());
    }

    fn exit(&self, id: &Id) {
        let left = self.seen().entered.pop();
        assert_eq!(left, Some(id.into_u64()), "spans are left in the wrong order");
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(span) = self.seen().spans.get_mut(&id.into_u64()) {
            span.references += 1;
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut seen = self.seen();
        let Some(span) = seen.spans.get_mut(&id.into_u64()) else { return false };
        span.references -= 1;
        span.references == 0
    }
}

/// A guest on a device whose thread reports to a collector.
struct Watched {
    guest: Guest,
    collector: Arc<Collector>,
    thread: JoinHandle<()>,
}

impl Watched {
    fn start(builder: Builder, level: Level) -> Self {
        let collector = Arc::new(Collector { level, seen: Mutex::default() });
        let (device, task) = builder.build().expect("a device");
        let mut guest = Guest::powered_off(device, GuestOptions::default());
        let subscriber = Arc::clone(&collector);
        let thread = std::thread::spawn(move || {
            let run = || tokio_uring::start(task.run());
            tracing::subscriber::with_default(subscriber, run).expect("a runtime that watches descriptors");
        });
        guest.activate();
        Self { guest, collector, thread }
    }

    /// Ends the device, so that all is said, and hands out what was.
    fn end(self) -> Arc<Collector> {
        let Self { guest, collector, thread } = self;
        drop(guest);
        thread.join().expect("no panic on the device's thread");
        collector
    }
}

/// Context 9 and a host blob 77 of one page.
fn furnish(guest: &mut Guest) {
    guest.command(&Request::ctx_create(9, CAPSET_CROSS_DOMAIN)).ok();
    let file = memfd_create("tracing", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, 4096).expect("size");
    let buffer = HostBuffer::from_fd(file).expect("a buffer");
    let offered = guest.device().offer(buffer).wait().expect("a device").expect("room").0;
    guest.command(&Request::host_blob(9, 77, offered, 4096)).ok();
}

#[test]
fn no_command_is_without_a_span_of_its_own_or_leaves_it_open() {
    let mut watched = Watched::start(Builder::new().window(SlowMemory::default()), Level::DEBUG);
    let guest = &mut watched.guest;
    furnish(guest);
    guest.map(77, 0);
    guest.command(&Request::unmap(77).fenced(5)).ok();
    guest.command(&Request::unref(77)).ok();
    guest.settle();
    guest.command(&Request::submit(9, &[]).fenced(6).on_ring(3)).ok();
    let cursor = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
    guest.wait_on(Lane::Cursor, cursor).ok();
    let served = guest.device().counters().commands;
    let collector = watched.end();
    let seen = collector.seen();
    assert_eq!((seen.commands().count() as u64, served), (8, 8));
    let open: Vec<_> = seen.spans.values().filter(|span| span.references != 0).collect();
    assert!(open.is_empty(), "spans that never ended: {open:?}");
    assert!(seen.entered.is_empty(), "a span was never left");
}

#[test]
fn no_span_leaves_open_which_command_it_is() {
    let mut watched = Watched::start(Builder::new().window(SlowMemory::default()), Level::DEBUG);
    furnish(&mut watched.guest);
    watched.guest.command(&Request::map(77, 0).context(9).fenced(1234).on_ring(3)).ok();
    watched.guest.command(&Request::display_info()).ok();
    let collector = watched.end();
    let seen = collector.seen();
    let (fields, _) = seen.command(kind::RESOURCE_MAP_BLOB);
    assert!(fields.has(&["context", "ctx", "ctx_id"], 9), "{fields:?}");
    assert!(fields.has(&["fence", "fence_id"], 1234), "{fields:?}");
    assert!(fields.has(&["ring", "ring_idx"], 3), "{fields:?}");
    let (fields, _) = seen.command(kind::GET_DISPLAY_INFO);
    assert_eq!(fields.any(&["fence", "fence_id"]), None, "a fence that was not asked for");
}

#[test]
fn no_span_leaves_open_which_queue_and_which_resource_it_is_about() {
    let mut watched = Watched::start(Builder::new().window(SlowMemory::default()), Level::DEBUG);
    furnish(&mut watched.guest);
    watched.guest.map(77, 0);
    let cursor = watched.guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
    watched.guest.wait_on(Lane::Cursor, cursor).ok();
    let collector = watched.end();
    let seen = collector.seen();
    let (map, _) = seen.command(kind::RESOURCE_MAP_BLOB);
    let (cursor, _) = seen.command(kind::MOVE_CURSOR);
    let queue = |fields: &Fields| fields.any(&["queue", "lane"]).map(str::to_owned);
    assert!(queue(map).is_some() && queue(map) != queue(cursor), "queues: {:?} and {:?}", queue(map), queue(cursor));
    assert!(map.has(&["resource", "resource_id"], 77), "{map:?}");
}

#[test]
fn no_command_that_takes_its_time_does_so_in_silence() {
    let memory = SlowMemory::default();
    let mut watched = Watched::start(Builder::new().window(memory.clone()), Level::DEBUG);
    let guest = &mut watched.guest;
    furnish(guest);
    memory.places_later(true);
    let map = guest.submit(&Request::map(77, 0));
    let call = memory.next();
    let unmap = guest.submit(&Request::unmap(77));
    guest.settle();
    call.answer(Ok(()));
    guest.wait(map).ok();
    guest.wait(unmap).ok();
    let collector = watched.end();
    let seen = collector.seen();
    let (_, slow) = seen.command(kind::RESOURCE_MAP_BLOB);
    let (_, behind) = seen.command(kind::RESOURCE_UNMAP_BLOB);
    let done = &["done", "complet", "answered"][..];
    let mut missing = Vec::new();
    for (what, events, words) in [
        ("MAP waits for the region", &slow, &["wait"][..]),
        ("MAP places", &slow, &["plac"]),
        ("MAP completes", &slow, done),
        ("UNMAP waits for MAP", &behind, &["wait"]),
        ("UNMAP completes", &behind, done),
    ] {
        if !events.iter().any(|text| words.iter().any(|word| text.contains(word))) {
            missing.push((what, events));
        }
    }
    assert!(missing.is_empty(), "not a word about it: {missing:?}");
}

#[test]
fn a_flood_of_errors_never_becomes_a_flood_of_warnings() {
    let started = Instant::now();
    let mut watched = Watched::start(Builder::new(), Level::WARN);
    let guest = &mut watched.guest;
    for round in 0..1000u32 {
        guest.command(&Request::unref(1 + round)).expect_error(response::ERR_INVALID_RESOURCE_ID);
        guest.command(&Request::new(0xbad0 + round, &[])).expect_error(response::ERR_UNSPEC);
        drop(guest.command(&Request::map(round, 0)));
        let bytes = Request::display_info().bytes();
        let how = Misbehaviour::ALL[round as usize % Misbehaviour::ALL.len()];
        let bad = guest.queue(Lane::Control).add_misbehaving(how, &bytes, 408).expect("room");
        guest.publish(Lane::Control);
        drop(guest.wait(bad));
        let cursor = guest.submit_on(Lane::Cursor, &Request::move_cursor(99, (10, 20)));
        guest.wait_on(Lane::Cursor, cursor).expect_error(response::ERR_INVALID_SCANOUT_ID);
    }
    for _ in 0..20 {
        if guest.queue(Lane::Control).publish_raw_head(u16::MAX) {
            guest.kick(Lane::Control);
        }
        let cursor = guest.submit_on(Lane::Cursor, &Request::move_cursor(0, (10, 20)));
        guest.wait_on(Lane::Cursor, cursor).ok();
        guest.reset();
        guest.activate();
    }
    let collector = watched.end();
    let seen = collector.seen();
    let mut counts = BTreeMap::<&str, u64>::new();
    for event in &seen.events {
        assert!(event.level <= Level::WARN);
        *counts.entry(&event.message).or_default() += 1;
    }
    // Ten at once and one more a second from each place in the source: what a log can bear.
    let most = 12 + started.elapsed().as_secs();
    assert!(!counts.is_empty(), "not a word about a thousand errors");
    assert!(counts.len() <= 8, "as many messages as errors: {counts:?}");
    assert!(counts.values().all(|count| *count <= most), "{counts:?} in {:?}", started.elapsed());
}

#[test]
fn tracing_that_is_off_never_costs_a_span() {
    let mut watched = Watched::start(Builder::new().window(SlowMemory::default()), Level::INFO);
    let guest = &mut watched.guest;
    furnish(guest);
    guest.map(77, 0);
    guest.command(&Request::unmap(77).fenced(5)).ok();
    (0..100).for_each(|_| guest.settle());
    let collector = watched.end();
    let seen = collector.seen();
    assert!(seen.spans.is_empty(), "{:?}", seen.spans);
    assert!(seen.events.is_empty(), "{:?}", seen.events);
}
