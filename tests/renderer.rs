//! The renderer's seam, from both of its sides: a small renderer on its own thread, and a guest that uses it. A renderer
//! may be slow, refuse, panic or sit on its fences; nobody else may notice.
#![cfg(feature = "testing")]

#[path = "renderer/actor.rs"]
mod actor;
#[path = "renderer/echo.rs"]
mod echo;
#[path = "renderer/elsewhere.rs"]
mod elsewhere;
#[path = "renderer/exported.rs"]
mod exported;
#[path = "renderer/faults.rs"]
mod faults;
#[path = "renderer/fixed_map.rs"]
mod fixed_map;
#[path = "renderer/halt.rs"]
mod halt;
#[path = "renderer/held.rs"]
mod held;
#[path = "renderer/lost.rs"]
mod lost;
#[path = "renderer/memory.rs"]
mod memory;
#[path = "renderer/own_late.rs"]
mod own_late;
#[path = "renderer/own_memory.rs"]
mod own_memory;
#[path = "renderer/patience.rs"]
mod patience;
#[path = "renderer/quotas.rs"]
mod quotas;
#[path = "renderer/rendered.rs"]
mod rendered;
#[path = "renderer/shown.rs"]
mod shown;
#[path = "renderer/stage.rs"]
mod stage;
#[path = "renderer/studio.rs"]
mod studio;

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY, ERR_UNSPEC,
};
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostPeer, HostService, Lane, Request, Token, census};
use virtio_gpu_uring::{Builder, HostBuffer, HostWindow, Limits};

use echo::{REFUSED_CAPSET, Remote, echo, object, stream};

const CREATED: &str = "create 1 of 2 named test";

fn memfd(name: &str, len: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, len).expect("size");
    file
}

/// A device with the test's renderer, a window and a service.
struct Bench {
    guest: Guest,
    remote: Remote,
    window: HostWindow,
    service: HostService,
}

impl Bench {
    fn start(name: &'static str, limits: Limits) -> Self {
        let (factory, remote) = echo(name);
        let service = HostService::listen();
        let window = HostWindow::new(1 << 20).expect("window");
        let builder = Builder::new().limits(limits).renderer(factory).window(window.clone());
        let guest = Guest::start(builder.host_socket(ChannelType::PIPEWIRE, service.path()));
        Self { guest, remote, window, service }
    }

    /// With a rendered context 1.
    fn with_context(name: &'static str) -> Self {
        let mut bench = Self::start(name, Limits::default());
        bench.guest.command(&Request::ctx_create(1, 2)).ok();
        bench.remote.expect(&[CREATED]);
        bench
    }

    /// A submission with a fence that the renderer hands to the test.
    fn fenced(&mut self, ring: u8, fence: u64) -> Token {
        self.guest.submit(&Request::submit(1, b"fenced").fenced(fence).on_ring(ring))
    }

    /// Signals a fence on another timeline and waits for its answer: what was signalled before has been booked by then.
    fn settle_fences(&mut self) {
        let token = self.fenced(40, 1);
        self.remote.fence().signal();
        self.guest.wait(token).ok();
    }

    #[track_caller]
    fn open_channel(&mut self, context: u32) -> (GuestChannel, HostPeer) {
        let before = self.guest.device().counters().channels_opened;
        let channel = GuestChannel::open(&mut self.guest, context, context * 1000, ChannelType::PIPEWIRE);
        assert_eq!(self.guest.device().counters().channels_opened, before + 1, "nobody connects");
        (channel, self.service.accept())
    }

    /// A context of the device's own and a mapping work as they should.
    #[track_caller]
    fn assert_others_live(&mut self, channel: &mut GuestChannel, peer: &HostPeer) {
        let guest = &mut self.guest;
        guest.settle();
        channel.send(guest, b"ping", &[]);
        assert_eq!(peer.receive(4).0, b"ping");
        let poll = channel.poll(guest);
        peer.send(b"pong", &[]);
        assert_eq!(channel.wait(guest, poll).data, b"pong");
        let file = memfd("renderer-others", 4096);
        rustix::io::pwrite(&file, b"mapped", 0).expect("written");
        let buffer = HostBuffer::from_fd(file).expect("a buffer");
        let id = guest.device().offer(buffer).wait().expect("a device").expect("room").0;
        guest.command(&Request::host_blob(channel.context(), 900, id, 4096)).ok();
        guest.map(900, 0x8_0000);
        let mut seen = [0; 6];
        self.window.read(0x8_0000, &mut seen).expect("in the window");
        assert_eq!(&seen, b"mapped");
        guest.command(&Request::unmap(900)).ok();
        guest.command(&Request::unref(900)).ok();
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

#[test]
fn a_renderers_capset_is_never_hidden_nor_taken_for_the_devices_own() {
    let mut bench = Bench::start("capsets", Limits::default());
    let guest = &mut bench.guest;
    let mut count = [0; 4];
    guest.device().read_config(12, &mut count);
    assert_eq!(u32::from_le_bytes(count), 3);
    let mut infos: Vec<Vec<u32>> =
        (0..3).map(|index| words(&guest.command(&Request::capset_info(index)).ok())).collect();
    infos.sort();
    assert_eq!(infos, [[2, 1, 10, 0], [4, 0, 300, 0], [5, 1, 16, 0]]);
    guest.command(&Request::capset_info(3)).expect_error(ERR_INVALID_PARAMETER);
    for version in [0, 1] {
        assert_eq!(guest.command(&Request::capset(2, version, 10)).ok(), b"the second");
    }
    assert_eq!(guest.command(&Request::capset(4, 0, 300)).ok(), [4; 300]);
    assert_eq!(words(&guest.command(&Request::capset(5, 1, 16)).ok()), [1, 1 << 16, 1, 0]);
    for (id, version) in [(2, 2), (4, 1), (5, 2), (3, 0), (0, 0)] {
        guest.command(&Request::capset(id, version, 400)).expect_error(ERR_INVALID_PARAMETER);
    }
}

#[test]
fn no_context_ever_reaches_the_wrong_side() {
    let mut bench = Bench::start("routing", Limits::default());
    let (mut channel, peer) = bench.open_channel(2);
    bench.guest.command(&Request::ctx_create(3, 3)).expect_error(ERR_INVALID_PARAMETER);
    bench.guest.command(&Request::ctx_attach(2, 2000)).expect_error(ERR_INVALID_PARAMETER);
    bench.remote.expect_none();
    // Only the low byte names the capability set; the rest is for other things.
    bench.guest.command(&Request::ctx_create(1, 0x0001_0002)).ok();
    bench.guest.command(&Request::ctx_attach(1, 2000)).ok();
    bench.guest.command(&Request::submit(1, b"hello")).ok();
    bench.guest.command(&Request::ctx_detach(1, 2000)).ok();
    bench.remote.expect(&[CREATED, "attach 2000 to 1", "submit hello to 1", "detach 2000 from 1"]);
    bench.assert_others_live(&mut channel, &peer);
    bench.remote.expect_none();
}

#[test]
fn a_context_that_the_renderer_refuses_never_exists() {
    let mut bench = Bench::start("refused", Limits { contexts: 1, ..Limits::default() });
    for fence in 1..4 {
        let answer = bench.guest.command(&Request::ctx_create(1, REFUSED_CAPSET).fenced(fence));
        answer.expect_error(ERR_INVALID_PARAMETER);
        assert_eq!(answer.header.fence_id.get(), fence);
        bench.remote.expect(&["create 1 of 4 named test"]);
        bench.guest.command(&Request::submit(1, b"x")).expect_error(ERR_INVALID_CONTEXT_ID);
        bench.guest.command(&Request::ctx_destroy(1)).expect_error(ERR_INVALID_CONTEXT_ID);
    }
    bench.remote.expect_none();
    bench.guest.command(&Request::ctx_create(1, 2)).ok();
    bench.guest.assert_all_answered();
}

#[test]
fn a_contexts_commands_never_overtake_each_other() {
    let mut bench = Bench::start("order", Limits::default());
    let range = bench.guest.page_range(4096);
    bench.guest.command(&Request::guest_blob(7, 4096, &[range])).ok();
    let mut wanted = Vec::new();
    let mut tokens = Vec::new();
    for round in 0..20 {
        let context = 1 + round % 2;
        let text = format!("number {round}");
        let requests = [
            (Request::ctx_create(context, 2), format!("create {context} of 2 named test")),
            (Request::submit(context, text.as_bytes()), format!("submit {text} to {context}")),
            (Request::ctx_attach(context, 7), format!("attach 7 to {context}")),
            (Request::submit(context, b"second"), format!("submit second to {context}")),
            (Request::ctx_detach(context, 7), format!("detach 7 from {context}")),
            (Request::ctx_destroy(context), format!("destroy {context}")),
        ];
        for (request, call) in requests {
            tokens.push(bench.guest.submit(&request));
            wanted.push((context, call));
        }
    }
    for token in tokens {
        bench.guest.wait(token).ok();
    }
    let seen: Vec<String> = wanted.iter().map(|_| bench.remote.next()).collect();
    for context in [1, 2] {
        let wanted: Vec<&String> = wanted.iter().filter(|(whose, _)| *whose == context).map(|(_, call)| call).collect();
        let (start, end) = (format!("create {context} "), format!(" {context}"));
        let of = |call: &&String| call.starts_with(&start) || call.ends_with(&end);
        let seen: Vec<&String> = seen.iter().filter(of).collect();
        assert_eq!(seen, wanted);
    }
}

#[test]
fn the_renderer_is_never_asked_for_a_fence_after_what_came_behind_it() {
    let mut bench = Bench::with_context("fence-order");
    let requests = [
        Request::submit(1, b"a").fenced(1).on_ring(0),
        Request::submit(1, b"b").fenced(2),
        Request::submit(1, b"c").fenced(3).on_ring(3),
        Request::submit(1, b"d"),
    ];
    let tokens: Vec<Token> = requests.iter().map(|request| bench.guest.add(Lane::Control, request)).collect();
    bench.guest.publish(Lane::Control);
    let calls: Vec<String> = (0..7).map(|_| bench.remote.next()).collect();
    let wanted = ["submit a to 1", "fence of 1 on 0", "submit b to 1", "fence of 1 on none"];
    assert_eq!(calls[..4], wanted);
    assert_eq!(calls[4..], ["submit c to 1", "fence of 1 on 3", "submit d to 1"]);
    bench.remote.fences.clear();
    for token in tokens {
        bench.guest.wait(token).ok();
    }
    // Nor after the end of its context.
    let last = bench.guest.add(Lane::Control, &Request::submit(1, b"fenced").fenced(4).on_ring(0));
    let destroyed = bench.guest.submit(&Request::ctx_destroy(1));
    bench.remote.expect(&["submit fenced to 1", "fence of 1 on 0", "destroy 1"]);
    bench.remote.fences.clear();
    bench.guest.wait(destroyed).ok();
    bench.guest.wait(last).ok();
}

#[test]
fn no_fence_is_answered_before_it_signals_nor_before_the_one_ahead_of_it() {
    let mut bench = Bench::with_context("timelines");
    let first = bench.fenced(0, 1);
    let second = bench.fenced(0, 2);
    let elsewhere = bench.fenced(63, 1);
    let [one, two, other] = [bench.remote.fence(), bench.remote.fence(), bench.remote.fence()];
    bench.settle_fences();
    for token in [&first, &second, &elsewhere] {
        assert!(!bench.guest.has_answer(token), "answered before its fence has signalled");
    }
    // Fences may signal in any order and from any thread, answers of a timeline come in theirs.
    std::thread::spawn(move || two.signal()).join().expect("signalled");
    bench.settle_fences();
    assert!(!bench.guest.has_answer(&second), "an answer overtook another on its timeline");
    other.signal();
    let answer = bench.guest.wait(elsewhere);
    assert_eq!((answer.header.fence_id.get(), answer.header.ring_idx), (1, 63));
    assert!(!bench.guest.has_answer(&first));
    one.signal();
    assert_eq!(bench.guest.wait(first).header.fence_id.get(), 1);
    assert_eq!(bench.guest.wait(second).header.fence_id.get(), 2);
    bench.guest.assert_all_answered();
}

#[test]
fn a_fence_that_is_dropped_never_waits_for_ever() {
    let mut bench = Bench::with_context("dropped-fence");
    let token = bench.fenced(0, 1);
    drop(bench.remote.fence());
    bench.guest.wait(token).ok();
    // One that is kept until nobody waits any more is no trouble either.
    let _reset = bench.fenced(0, 2);
    let _dropped = bench.fenced(0, 3);
    let (of_reset, of_dropped) = (bench.remote.fence(), bench.remote.fence());
    bench.guest.reset();
    of_reset.signal();
    bench.guest.activate();
    bench.guest.settle();
    drop(bench);
    of_dropped.signal();
}

#[test]
fn a_blocked_renderer_delays_nobody_else() {
    let mut bench = Bench::with_context("blocked");
    let (mut channel, peer) = bench.open_channel(2);
    let blocked = bench.guest.submit(&Request::submit(1, stream::BLOCK).fenced(1).on_ring(0));
    bench.remote.expect(&["submit block to 1"]);
    bench.assert_others_live(&mut channel, &peer);
    // More than any queue to the renderer holds, of contexts of their own.
    let behind: Vec<Token> = (100..300).map(|context| bench.guest.submit(&Request::ctx_create(context, 2))).collect();
    bench.assert_others_live(&mut channel, &peer);
    assert!(!bench.guest.has_answer(&blocked) && behind.iter().all(|token| !bench.guest.has_answer(token)));
    bench.remote.unblock();
    for token in behind {
        bench.guest.wait(token).ok();
    }
    bench.remote.fence().signal();
    bench.guest.wait(blocked).ok();
    bench.guest.assert_all_answered();
}

#[test]
fn a_renderers_blob_is_live_in_the_window_and_never_outlives_its_resource() {
    let mut bench = Bench::with_context("rendered-blob");
    bench.guest.command(&Request::host_blob(1, 20, object::CANVAS, 8192)).ok();
    bench.remote.expect(&["blob 20 of 1/1, 8192 bytes, flags 3"]);
    bench.guest.map(20, 0x4000);
    assert_eq!(census::fds_named("rendered-blob"), 2);
    for text in [b"one", b"two"] {
        bench.guest.command(&Request::submit(1, text)).ok();
        let mut seen = [0; 3];
        bench.window.read(0x4000, &mut seen).expect("in the window");
        assert_eq!(&seen, text);
        bench.remote.next();
    }
    // The context goes, its mapped blob stays until the guest gives it up.
    bench.guest.command(&Request::ctx_destroy(1)).ok();
    bench.remote.expect(&["destroy 1"]);
    let mut seen = [0; 3];
    bench.window.read(0x4000, &mut seen).expect("in the window");
    assert_eq!(&seen, b"two");
    bench.guest.command(&Request::unref(20)).ok();
    bench.remote.expect(&["forget 20"]);
    bench.window.read(0x4000, &mut seen).expect("in the window");
    assert_eq!(seen, [0; 3]);
    assert_eq!((census::fds_named("rendered-blob"), census::maps_named("rendered-blob")), (0, 0));
    bench.remote.expect_none();
}

#[test]
fn an_id_that_is_used_again_never_reaches_the_renderer_before_its_end() {
    let mut bench = Bench::with_context("used-again");
    bench.guest.command(&Request::host_blob(1, 20, object::CANVAS, 8192)).ok();
    let made = "blob 20 of 1/1, 8192 bytes, flags 3";
    bench.remote.expect(&[made]);
    for _ in 0..10 {
        let unref = bench.guest.add(Lane::Control, &Request::unref(20));
        let create = bench.guest.submit(&Request::host_blob(1, 20, object::CANVAS, 8192));
        bench.guest.wait(unref).ok();
        bench.guest.wait(create).ok();
        bench.remote.expect(&["forget 20", made]);
    }
}

#[test]
fn what_the_renderer_refuses_is_answered_exactly_and_leaves_nothing() {
    let mut bench = Bench::with_context("refusals");
    for (stream, error) in [(stream::BAD, ERR_INVALID_PARAMETER), (stream::FULL, ERR_OUT_OF_MEMORY)] {
        let answer = bench.guest.command(&Request::submit(1, stream).fenced(6).on_ring(2));
        answer.expect_error(error);
        assert_eq!((answer.header.fence_id.get(), answer.header.ring_idx), (6, 2));
        bench.remote.next();
    }
    bench.remote.expect_none();
    let blobs = [
        (object::MISSING, ERR_INVALID_PARAMETER, false),
        (object::FULL, ERR_OUT_OF_MEMORY, false),
        (object::SHORT, ERR_INVALID_PARAMETER, true),
        (object::PIPE, ERR_UNSPEC, true),
    ];
    for (id, error, made) in blobs {
        bench.guest.command(&Request::host_blob(1, 20, id, 8192)).expect_error(error);
        bench.remote.expect(&[&format!("blob 20 of 1/{id}, 8192 bytes, flags 3")]);
        if made {
            // The renderer has made a resource that the guest does not have.
            bench.remote.expect(&["forget 20"]);
        }
    }
    assert_eq!(census::fds_named("refusals"), 1);
    bench.guest.command(&Request::host_blob(1, 20, object::CANVAS, 8192)).ok();
    bench.guest.assert_all_answered();
}
