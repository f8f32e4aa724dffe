//! Streams that no driver writes: a device answers each of them, and the next honest context draws.
//!
//! Left out, because a software GPU takes minutes over them, which is what the renderer's deadline is for: draws of as many
//! vertices as fit into 32 bits.

use std::ops::Range;

use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
use virtio_gpu_uring::testing::Request;

use super::alone::alone;
use super::stream::{Object, Region, Stream, format};
use super::studio::{CONTEXT, HEIGHT, PIPELINE, SURFACE, Studio, TEXTURE, VERTICES, VIRGL, WIDTH};

/// Streams of each kind.
const STREAMS: u64 = 800;

/// Random numbers of a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A handle, a small number, one at the edge, or any.
    fn word(&mut self) -> u32 {
        let known = [0, 1, 2, TEXTURE, VERTICES, SURFACE, PIPELINE, u32::MAX, 1 << 31, 0x7fff_ffff, 0x3f80_0000];
        match self.below(4) {
            0 => self.next() as u32,
            1 => self.below(70) as u32,
            _ => known[self.below(known.len())],
        }
    }
}

/// Words without sense.
fn noise(random: &mut Random) -> Vec<u32> {
    let len = random.below(64);
    (0..len).map(|_| random.next() as u32).collect()
}

/// Commands with headers that are right, and arguments that may be.
fn commands(random: &mut Random) -> Vec<u32> {
    let mut stream = Stream::new();
    for _ in 0..1 + random.below(6) {
        let (command, object) = (random.below(64) as u32, random.below(13) as u32);
        let arguments: Vec<u32> = (0..random.below(24)).map(|_| random.word()).collect();
        stream = stream.command(command, object, &arguments);
    }
    stream.words().to_vec()
}

fn honest() -> Stream {
    let corners = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]].map(|place| (place, [1.0; 4]));
    Stream::new()
        .surface(SURFACE, TEXTURE, format::B8G8R8A8)
        .framebuffer(SURFACE)
        .pipeline(PIPELINE, WIDTH, HEIGHT)
        .clear([0.5; 4])
        .write_vertices(VERTICES, &corners)
        .triangles(VERTICES, 3)
}

/// Draws, which are left alone, each with its command's header.
fn left_out(words: &[u32]) -> Vec<Range<usize>> {
    const DRAW: u32 = 8;
    let (mut found, mut at) = (Vec::new(), 0);
    while at < words.len() {
        let next = at + 1 + (words[at] >> 16) as usize;
        if words[at] & 0xffff == DRAW {
            found.push(at..next);
        }
        at = next;
    }
    found
}

/// An honest stream with some words changed.
fn changed(random: &mut Random) -> Vec<u32> {
    let mut words = honest().words().to_vec();
    let left_out = left_out(&words);
    for _ in 0..1 + random.below(4) {
        let at = random.below(words.len());
        if left_out.iter().any(|command| command.contains(&at)) {
            continue;
        }
        words[at] = match random.below(3) {
            0 => words[at] ^ 1 << random.below(32),
            1 => words[at].wrapping_add(1),
            _ => random.word(),
        };
    }
    words
}

/// What a stream may do harm to.
fn victims(studio: &mut Studio) {
    studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
    studio.texture(CONTEXT, TEXTURE, format::B8G8R8A8, [WIDTH, HEIGHT]);
    studio.buffer(VERTICES, 4096);
}

/// Sends streams by seed, to a context of eight of them at most, and lets an honest one draw in between.
fn send(streams: fn(&mut Random) -> Vec<u32>) {
    let mut studio = Studio::alone();
    for seed in 0..STREAMS {
        if seed % 8 == 0 {
            studio.start_over();
            victims(&mut studio);
        }
        let stream = Stream::new().raw(&streams(&mut Random(seed)));
        let answer = studio.command(&Request::submit(CONTEXT, &stream.bytes()).fenced(seed));
        assert!([0x1100, ERR_INVALID_PARAMETER].contains(&answer.kind()), "seed {seed}: {:#x}", answer.kind());
        assert_eq!(answer.header.fence_id.get(), seed);
        if seed % 50 == 49 {
            studio.assert_draws(77);
        }
    }
    let counters = studio.device().counters();
    assert_eq!((counters.renderers_lost, counters.requests_lost), (0, 0));
}

/// GET_PIPE_RESOURCE_LAYOUT, as far as a seed has made it up: without a GPU's driver nobody can answer it.
const FOR_A_GPU: [u32; 23] = [
    0x0016_073f,
    0xb,
    0xb,
    0x8000_0000,
    0x42,
    0xa,
    0xfe64_3175,
    0x34,
    0xb,
    0x31,
    0x3a04_f145,
    0x2,
    0x3f80_0000,
    0x4,
    0xa,
    0x2,
    0x1,
    0x3f80_0000,
    0x1e,
    0x1,
    0xb,
    0x0,
    0x2e,
];

#[test]
fn a_question_for_a_gpu_never_brings_the_device_down() {
    alone("garbage::a_question_for_a_gpu_never_brings_the_device_down", || {
        let mut studio = Studio::alone();
        victims(&mut studio);
        let stream = Stream::new().raw(&FOR_A_GPU);
        studio.command(&Request::submit(CONTEXT, &stream.bytes())).expect_error(ERR_INVALID_PARAMETER);
        studio.assert_draws(77);
    });
}

#[test]
fn random_words_never_bring_the_device_down() {
    alone("garbage::random_words_never_bring_the_device_down", || send(noise));
}

#[test]
fn commands_with_random_arguments_never_bring_the_device_down() {
    alone("garbage::commands_with_random_arguments_never_bring_the_device_down", || send(commands));
}

#[test]
fn honest_streams_with_changes_never_bring_the_device_down() {
    alone("garbage::honest_streams_with_changes_never_bring_the_device_down", || send(changed));
}

#[test]
fn a_stream_that_ends_within_a_word_or_a_command_is_never_carried_out() {
    let mut studio = Studio::enter();
    victims(&mut studio);
    let whole = honest().bytes();
    studio.ok(&Request::submit(CONTEXT, &whole));
    let mut refused = 0;
    for len in 0..whole.len() {
        // Every length that is not whole words, and some that end between commands or within.
        if len % 4 == 0 && len % 5 != 0 {
            continue;
        }
        let answer = studio.command(&Request::submit(2, &whole[..len]));
        assert_ne!(answer.kind(), 0x1100, "there is no context 2");
        if refused % 8 == 0 {
            let _ = studio.command(&Request::ctx_destroy(CONTEXT));
            studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
            for resource in [TEXTURE, VERTICES] {
                studio.ok(&Request::ctx_attach(CONTEXT, resource));
            }
        }
        refused += 1;
        let answer = studio.command(&Request::submit(CONTEXT, &whole[..len]).fenced(len as u64));
        if len % 4 != 0 {
            answer.expect_error(ERR_INVALID_PARAMETER);
        }
    }
    assert!(refused > 500, "hardly anything was tried");
    studio.assert_draws(9);
}

#[test]
fn lengths_and_handles_that_are_wrong_never_harm_another_context() {
    let mut studio = Studio::enter();
    let wrong = [
        // A header that promises more or less than its command takes.
        Stream::new().command(7, 0, &[4]),
        Stream::new().command(7, 0, &[4; 40]),
        // Commands and objects that there are not.
        Stream::new().command(0xff, 0, &[1, 2, 3]),
        Stream::new().command(1, 0xff, &[1, 2, 3]),
        Stream::new().command(1, 0, &[]),
        // Handles of nothing.
        Stream::new().framebuffer(999),
        Stream::new().surface(5, 999, format::B8G8R8A8),
        Stream::new().surface(5, 0, format::B8G8R8A8),
        Stream::new().bind(Object::Blend, 999),
        Stream::new().bind(Object::VertexElements, 999),
        Stream::new().inline_write(999, 4, Region::flat([0, 0, 1, 1]), &[1]),
        Stream::new().copy(TEXTURE, [0, 0], 999, Region::flat([0, 0, 1, 1])),
        Stream::new().copy(999, [0, 0], TEXTURE, Region::flat([0, 0, 1, 1])),
        // An object that is another one.
        Stream::new().bind(Object::Rasterizer, SURFACE),
        // More than the texture has.
        Stream::new().inline_write(TEXTURE, 4, Region::flat([WIDTH, HEIGHT, 1, 1]), &[1]),
        Stream::new().inline_write(TEXTURE, 4, Region::flat([0, 0, WIDTH, HEIGHT]), &[1]),
    ];
    let mut refused = 0;
    for (index, stream) in wrong.iter().enumerate() {
        victims(&mut studio);
        studio.draw(&Stream::new().surface(SURFACE, TEXTURE, format::B8G8R8A8).framebuffer(SURFACE));
        let answer = studio.command(&Request::submit(CONTEXT, &stream.bytes()).fenced(3));
        // virglrenderer gives up the context of some of them without a word.
        let known = [0x1100, ERR_INVALID_PARAMETER].contains(&answer.kind());
        assert!(known, "stream {index}: {:#x}, {:x?}", answer.kind(), stream.words());
        refused += usize::from(answer.kind() == ERR_INVALID_PARAMETER);
        studio.assert_draws(9);
        studio.start_over();
    }
    assert!(refused > 8, "{refused} of {} were refused", wrong.len());
}

/// virglrenderer 1.3.0 would bring the process down: what it binds here has no text yet, or says more of its outputs than
/// follows.
#[test]
fn a_shader_that_is_not_all_there_is_never_bound() {
    alone("garbage::a_shader_that_is_not_all_there_is_never_bound", || {
        let mut studio = Studio::alone();
        let whole = honest();
        let vertex = whole.words().windows(3).position(|words| words[0] & 0xffff == 0x401 && words[2] == 0);
        let vertex = vertex.expect("an honest stream has a vertex shader");
        for (word, number) in
            [(3, 0x10_0078), (3, u32::MAX >> 1), (5, 1), (5, 2), (5, 4), (5, 8), (5, 65), (5, u32::MAX)]
        {
            victims(&mut studio);
            let mut words = whole.words().to_vec();
            words[vertex + word] = number;
            let stream = Stream::new().raw(&words);
            let answer = studio.command(&Request::submit(CONTEXT, &stream.bytes()).fenced(1));
            answer.expect_error(ERR_INVALID_PARAMETER);
            studio.assert_draws(9);
            studio.start_over();
        }
    });
}
