//! Items 13, 14 and 19: when a command may be answered, fences, and the header of a response.

use std::time::Instant;

use virtio_gpu_uring::protocol::wire::response_type::*;
use virtio_gpu_uring::testing::{Answer, DEADLINE, Guest, Lane, Request, Shown, Token, Viewer};
use virtio_gpu_uring::{Builder, Limits};
use zerocopy::IntoBytes;

use crate::kit::{self, Drawing};

pub(crate) const FENCE: u32 = 1;
pub(crate) const RING_IDX: u32 = 2;

/// A guest with contexts 1 and 2, whose resources 1, 2, … are shown on screens that do not finish their frames: a flush of one
/// is a command that takes long.
pub(crate) struct Slow {
    // A viewer that is gone holds nothing: dropped first.
    viewers: Vec<Viewer>,
    pub(crate) guest: Guest,
}

impl Slow {
    pub(crate) fn new(count: u32) -> Self {
        // No test is to be decided by a display that takes too long.
        let limits = Limits { deadline: 3 * DEADLINE, ..Limits::default() };
        let (builder, viewers) = kit::screens(Builder::new().limits(limits), count);
        let mut guest = Guest::start(builder);
        for resource in 1..=count {
            Drawing::new(&mut guest, resource, 8, 8).show(&mut guest, resource - 1);
        }
        for context in [1, 2] {
            kit::done(&mut guest, &Request::ctx_create(context, 5));
        }
        viewers.iter().for_each(|viewer| viewer.hold_frames(true));
        Self { viewers, guest }
    }

    /// The work of the flush of a resource is done.
    pub(crate) fn finish(&self, resource: usize) {
        self.viewers[resource - 1].hold_frames(false);
    }

    pub(crate) fn submit(&mut self, request: Request) -> Token {
        self.guest.submit(&request)
    }

    #[track_caller]
    pub(crate) fn assert_waiting(&mut self, tokens: &[&Token]) {
        self.guest.settle();
        for (index, token) in tokens.iter().enumerate() {
            assert!(!self.guest.has_answer(token), "number {index} was answered too early");
        }
    }

    /// The next chains that come back, in their order, with the types of their answers.
    #[track_caller]
    pub(crate) fn in_order(&mut self, count: usize) -> Vec<(Token, u32)> {
        let started = Instant::now();
        let mut taken = Vec::new();
        while taken.len() < count {
            assert!(started.elapsed() < DEADLINE, "{} of {count} came back", taken.len());
            while let Some(used) = self.guest.queue(Lane::Control).poll_used() {
                taken.push((used.token, u32::from_le_bytes(used.response[..4].try_into().expect("a header"))));
            }
        }
        taken
    }

    #[track_caller]
    pub(crate) fn assert_order(&mut self, tokens: Vec<Token>) {
        let order: Vec<Token> = self.in_order(tokens.len()).into_iter().map(|(token, _)| token).collect();
        assert_eq!(order, tokens);
    }
}

/// The slow command.
pub(crate) fn flush(resource: u32) -> Request {
    Request::flush(resource, [0, 0, 8, 8])
}

/// A quick one.
pub(crate) fn quick() -> Request {
    Request::set_scanout(0, 0, [0; 4]).context(1)
}

/// A response's bytes.
pub(crate) fn bytes(answer: &Answer) -> Vec<u8> {
    let bytes = [answer.header.as_bytes(), &answer.payload].concat();
    assert_eq!(bytes.len(), answer.written as usize);
    bytes
}

/// A header, written out.
pub(crate) fn head(kind: u32, flags: u32, fence: u64, context: u32, ring: u8) -> Vec<u8> {
    let mut head = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    head.extend(fence.to_le_bytes());
    head.extend(context.to_le_bytes());
    head.extend([ring, 0, 0, 0]);
    head
}

/// Commands of every family, good and bad, and the types of their answers.
fn program(backing: (u64, u32)) -> Vec<(Request, u32)> {
    let rect = [0, 0, 16, 16];
    vec![
        (Request::display_info(), OK_DISPLAY_INFO),
        (Request::get_edid(0), OK_EDID),
        (Request::get_edid(9), ERR_INVALID_SCANOUT_ID),
        (Request::create_2d(21, 1, 16, 16), OK_NODATA),
        (Request::create_2d(21, 1, 16, 16), ERR_INVALID_RESOURCE_ID),
        (Request::create_2d(22, 5, 16, 16), ERR_INVALID_PARAMETER),
        (Request::attach_backing(21, &[backing]), OK_NODATA),
        (Request::transfer_2d(21, rect, 0), OK_NODATA),
        (Request::transfer_2d(21, rect, 1 << 40), ERR_INVALID_PARAMETER),
        (Request::set_scanout(0, 21, rect), OK_NODATA),
        (Request::set_scanout(9, 21, rect), ERR_INVALID_SCANOUT_ID),
        (Request::flush(21, rect), OK_NODATA),
        (Request::flush(21, [0, 0, 17, 16]), ERR_INVALID_PARAMETER),
        (Request::assign_uuid(21), OK_RESOURCE_UUID),
        (Request::assign_uuid(99), ERR_INVALID_RESOURCE_ID),
        (Request::detach_backing(21), OK_NODATA),
        (Request::unref(21), OK_NODATA),
        (Request::unref(21), ERR_INVALID_RESOURCE_ID),
        (Request::capset_info(0), OK_CAPSET_INFO),
        (Request::capset_info(9), ERR_INVALID_PARAMETER),
        (Request::capset(5, 1, 16), OK_CAPSET),
        (Request::guest_blob(23, 4096, &[backing]), OK_NODATA),
        (Request::guest_blob(24, 4096, &[(u64::MAX, 4096)]), ERR_INVALID_PARAMETER),
        (Request::map(23, 0), ERR_INVALID_PARAMETER),
        (Request::unref(23), OK_NODATA),
        (Request::new(0x1ff, &[]), ERR_UNSPEC),
        // As short as it gets: no body at all.
        (Request::new(0x101, &[]), ERR_INVALID_PARAMETER),
    ]
}

fn with_backing() -> (Guest, Viewer, (u64, u32)) {
    let (guest, viewer) = kit::with_screen();
    let backing = guest.page_range(4096);
    (guest, viewer, backing)
}

#[test]
fn spec_13_a_fenced_command_is_never_answered_before_its_work_is_done() {
    let mut slow = Slow::new(1);
    let token = slow.submit(flush(1).fenced(5));
    slow.assert_waiting(&[&token]);
    // Nor does anything else that the driver does make it come.
    slow.guest.kick(Lane::Control);
    kit::done(&mut slow.guest, &Request::create_2d(50, 1, 4, 4));
    kit::cursor(&mut slow.guest, &Request::move_cursor(0, (1, 1))).ok();
    slow.assert_waiting(&[&token]);
    slow.finish(1);
    let answer = slow.guest.wait(token);
    assert_eq!(bytes(&answer), head(OK_NODATA, FENCE, 5, 0, 0));
    let shown = slow.viewers[0].take();
    assert!(shown.iter().any(|shown| matches!(shown, Shown::Frame(_))), "answered without a frame");
}

#[test]
fn spec_13_a_fenced_transfer_has_copied_everything_when_it_is_answered() {
    let (mut guest, viewer) = kit::with_screen();
    // Eight MiB: more than the device copies in one go.
    let mut drawing = Drawing::untransferred(&mut guest, 1, kit::B8G8R8X8, 2048, 1024);
    drawing.show(&mut guest, 0);
    let before = drawing.bytes.clone();
    let answer = guest.command(&Request::transfer_2d(1, drawing.whole(), 0).fenced(1));
    assert_eq!(answer.kind(), OK_NODATA);
    drawing.redraw(&guest, 99);
    let _ = viewer.take();
    drawing.flush(&mut guest);
    assert!(kit::frame(&viewer).1 == before, "pixels of after the answer");
}

#[test]
fn spec_13_a_fenced_mapping_is_there_when_it_is_answered() {
    let (mut guest, window) = kit::with_window();
    kit::done(&mut guest, &Request::ctx_create(1, 5));
    let content = kit::pattern(64 << 10, 13);
    let blob = kit::offer(&guest, kit::memfd("fenced", &content));
    kit::done(&mut guest, &Request::host_blob(1, 5, blob, content.len() as u64));
    for round in 0..20 {
        let answer = guest.command(&Request::map(5, 0x8000).fenced(2 * round + 1));
        let mut seen = vec![0; content.len()];
        window.read(0x8000, &mut seen).expect("in the window");
        assert_eq!(bytes(&answer)[..24], head(OK_MAP_INFO, FENCE, 2 * round + 1, 0, 0));
        assert!(seen == content, "the mapping came after its answer");
        kit::done(&mut guest, &Request::unmap(5).fenced(2 * round + 2));
        window.read(0x8000, &mut seen).expect("in the window");
        assert!(seen.iter().all(|byte| *byte == 0), "the mapping was there after the answer to UNMAP");
    }
}

#[test]
fn spec_14_a_fence_is_echoed_with_every_answer_good_or_bad_and_none_where_none_was_asked_for() {
    let (mut guest, _viewer, backing) = with_backing();
    let fences = [1, 2, 0x0102_0304_0506_0708, 1 << 63, u64::MAX, 0];
    for fence in fences {
        for (request, kind) in program(backing) {
            let answer = guest.command(&request.clone().fenced(fence));
            assert_eq!(bytes(&answer)[..24], head(kind, FENCE, fence, 0, 0), "{:x?}", &request.bytes()[..2]);
        }
    }
    for (request, kind) in program(backing) {
        let answer = guest.command(&request);
        assert_eq!((answer.kind(), answer.header.flags.get()), (kind, 0), "a fence that nobody asked for");
    }
    for request in [Request::move_cursor(0, (1, 1)), Request::move_cursor(9, (1, 1))] {
        let fenced = kit::cursor(&mut guest, &request.clone().fenced(u64::MAX));
        assert_eq!(bytes(&fenced), head(fenced.kind(), FENCE, u64::MAX, 0, 0));
        assert_eq!(kit::cursor(&mut guest, &request).header.flags.get(), 0);
    }
}

#[test]
fn spec_14_flags_that_mean_nothing_are_not_answered_with() {
    let (mut guest, _viewer) = kit::with_screen();
    for (sent, answered) in [(0xffff_fffc, 0), (0xffff_fffd, FENCE), (0x8000_0000, 0)] {
        let mut request = Request::create_2d(0, 1, 1, 1).bytes();
        request[4..8].copy_from_slice(&u32::to_le_bytes(sent));
        request[8..16].copy_from_slice(&7u64.to_le_bytes());
        let answer = kit::raw(&mut guest, Lane::Control, &request, 24);
        assert_eq!((answer.kind(), answer.header.flags.get()), (ERR_INVALID_RESOURCE_ID, answered));
        assert_eq!(answer.header.fence_id.get(), 7);
    }
}

#[test]
fn spec_19_an_answer_is_the_commands_own_type_or_one_error_with_context_and_ring_echoed() {
    let (mut guest, _viewer, backing) = with_backing();
    kit::done(&mut guest, &Request::ctx_create(0x0102_0304, 5));
    for (request, kind) in program(backing) {
        // More room than is needed: an answer is as long as it is.
        let room = request.room() + 40;
        let plain = guest.command(&request.clone().context(0x0102_0304).response_len(room));
        assert_eq!(bytes(&plain)[..24], head(kind, 0, 0, 0x0102_0304, 0));
        let payload = match kind {
            OK_DISPLAY_INFO => 384,
            OK_CAPSET_INFO | OK_CAPSET | OK_RESOURCE_UUID => 16,
            OK_EDID => 1032,
            _ => 0,
        };
        assert_eq!(plain.written, 24 + payload, "an answer of type {kind:#x}");
    }
    for (request, kind) in program(backing) {
        let answer = guest.command(&request.context(0x0102_0304).on_ring(63).fenced(3));
        assert_eq!(bytes(&answer)[..24], head(kind, FENCE | RING_IDX, 3, 0x0102_0304, 63));
    }
}

#[test]
fn spec_19_padding_is_not_echoed() {
    let (mut guest, _viewer) = kit::with_screen();
    let mut request = Request::display_info().bytes();
    request[21..24].fill(0xee);
    let answer = kit::raw(&mut guest, Lane::Control, &request, 408);
    assert_eq!(bytes(&answer)[..24], head(OK_DISPLAY_INFO, 0, 0, 0, 0));
    // A request that has no header is answered all the same, with nothing to echo.
    for len in [1, 4, 23] {
        let answer = kit::raw(&mut guest, Lane::Control, &request[..len], 64);
        assert_eq!(bytes(&answer), head(ERR_INVALID_PARAMETER, 0, 0, 0, 0));
    }
}
