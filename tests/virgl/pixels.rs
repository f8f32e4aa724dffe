//! What a guest clears and draws, and what it reads back of it: every byte.

use virtio_gpu_uring::protocol::wire::command_type::{TRANSFER_FROM_HOST_3D, TRANSFER_TO_HOST_3D};
use virtio_gpu_uring::testing::Request;

use super::stream::{Region, Stream, Vertex, bind, format, target};
use super::studio::{
    CONTEXT, HEIGHT, LEN, PIPELINE, SURFACE, Studio, TEXTURE, VERTICES, VIRGL, WHOLE, WIDTH, colour_of, create_3d,
    transfer,
};

/// A pixel of each place, none like another.
fn pattern(seed: u8) -> Vec<u8> {
    (0..WIDTH * HEIGHT).flat_map(|pixel| [pixel as u8, (pixel >> 8) as u8, seed, !seed]).collect()
}

/// The bytes of a row of a rectangle, in a picture with rows of `stride` bytes that begin at `offset`.
fn row([x, _, width, _]: [u32; 4], y: u32, offset: usize, stride: u32) -> std::ops::Range<usize> {
    let start = offset + (y * stride + x * 4) as usize;
    start..start + width as usize * 4
}

#[test]
fn a_clear_never_leaves_a_pixel_of_another_colour() {
    let mut studio = Studio::enter();
    for (format, swap) in [(format::B8G8R8A8, false), (format::R8G8B8A8, true)] {
        let pieces = studio.easel_of(format);
        for pixel in [[0, 0, 0, 0], [255, 255, 255, 255], [1, 2, 3, 4], [0x33, 0x7f, 0x80, 0xfe]] {
            studio.draw(&Stream::new().clear(colour_of(pixel)));
            let seen = if swap { [pixel[2], pixel[1], pixel[0], pixel[3]] } else { pixel };
            assert_eq!(studio.pixels(TEXTURE, &pieces), seen.repeat(LEN / 4), "format {format}, {pixel:?}");
        }
        studio.start_over();
    }
}

#[test]
fn what_goes_to_the_host_and_back_is_never_changed() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    for seed in 0..5 {
        studio.fill(&pieces, &pattern(seed));
        studio.ok(&transfer(TRANSFER_TO_HOST_3D, TEXTURE, Region::flat(WHOLE), 0, WIDTH * 4));
        assert_eq!(studio.pixels(TEXTURE, &pieces), pattern(seed));
    }
}

#[test]
fn a_part_that_is_read_back_never_lands_elsewhere_nor_takes_more_with_it() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.fill(&pieces, &pattern(7));
    studio.ok(&transfer(TRANSFER_TO_HOST_3D, TEXTURE, Region::flat(WHOLE), 0, WIDTH * 4));
    // To where it came from, with rows of its own width, and with rows further apart, from an odd place on.
    for (rect, offset, stride) in [
        ([5, 3, 9, 11], (3 * WIDTH + 5) * 4, WIDTH * 4),
        ([5, 3, 9, 11], 0, 9 * 4),
        ([0, 0, 1, 1], 403, 4),
        ([WIDTH - 1, HEIGHT - 1, 1, 1], LEN as u32 - 4, 4),
        ([0, 7, WIDTH, 2], 1201, WIDTH * 4 + 13),
        ([WIDTH - 2, 0, 2, HEIGHT], 17, 101),
    ] {
        studio.fill(&pieces, &[0xee; LEN]);
        studio.ok(&transfer(TRANSFER_FROM_HOST_3D, TEXTURE, Region::flat(rect), offset.into(), stride));
        let mut wanted = vec![0xee; LEN];
        for y in 0..rect[3] {
            let to = row([0, 0, rect[2], 0], y, offset as usize, stride);
            wanted[to].copy_from_slice(&pattern(7)[row(rect, rect[1] + y, 0, WIDTH * 4)]);
        }
        assert_eq!(studio.contents(&pieces), wanted, "{rect:?} at {offset}, rows of {stride} bytes");
    }
}

#[test]
fn a_part_that_is_written_never_changes_what_lies_around_it() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    for (rect, offset, stride) in [
        ([5, 3, 9, 11], (3 * WIDTH + 5) * 4, WIDTH * 4),
        ([0, 0, 1, 1], 403, 4),
        ([1, 2, 30, 20], 3, 31 * 4),
        ([WIDTH - 2, 0, 2, HEIGHT], 17, 101),
    ] {
        studio.draw(&Stream::new().clear(colour_of([9; 4])));
        studio.fill(&pieces, &pattern(8));
        studio.ok(&transfer(TRANSFER_TO_HOST_3D, TEXTURE, Region::flat(rect), offset.into(), stride));
        let mut wanted = vec![9; LEN];
        for y in 0..rect[3] {
            let from = row([0, 0, rect[2], 0], y, offset as usize, stride);
            wanted[row(rect, rect[1] + y, 0, WIDTH * 4)].copy_from_slice(&pattern(8)[from]);
        }
        assert_eq!(studio.pixels(TEXTURE, &pieces), wanted, "{rect:?} at {offset}, rows of {stride} bytes");
    }
}

/// A corner in pixels from the first row's first one.
fn corner([x, y]: [f32; 2], colour: [f32; 4]) -> Vertex {
    ([x / WIDTH as f32 * 2.0 - 1.0, y / HEIGHT as f32 * 2.0 - 1.0], colour)
}

/// On which side of a line the middle of a pixel lies, and how far.
fn side([a, b]: [[f32; 2]; 2], [x, y]: [u32; 2]) -> f32 {
    let (along, across) = (b[0] - a[0], b[1] - a[1]);
    (along * (y as f32 + 0.5 - a[1]) - across * (x as f32 + 0.5 - a[0])) / along.hypot(across)
}

fn inside(corners: [[f32; 2]; 3], pixel: [u32; 2]) -> bool {
    let [a, b, c] = corners;
    let sides = [[a, b], [b, c], [c, a]].map(|line| side(line, pixel));
    assert!(sides.iter().all(|side| side.abs() > 0.01), "{pixel:?} lies on an edge: no test of it");
    sides.iter().all(|side| *side > 0.0) || sides.iter().all(|side| *side < 0.0)
}

#[test]
fn triangles_never_miss_a_pixel_inside_nor_touch_one_outside() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.buffer(VERTICES, 4096);
    let (ground, first, second) = ([10, 20, 30, 255], [200, 100, 50, 255], [0, 255, 127, 64]);
    let shapes =
        [([[2.1, 1.5], [32.8, 4.9], [11.9, 20.6]], first), ([[30.4, 8.1], [36.0, 23.1], [20.6, 21.2]], second)];
    let mut vertices = Vec::new();
    for (corners, colour) in shapes {
        vertices.extend(corners.map(|place| corner(place, colour_of(colour))));
    }
    let stream = Stream::new()
        .pipeline(PIPELINE, WIDTH, HEIGHT)
        .clear(colour_of(ground))
        .write_vertices(VERTICES, &vertices)
        .triangles(VERTICES, 6);
    studio.draw(&stream);
    let mut wanted = Vec::new();
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let over = shapes.iter().rev().find(|(corners, _)| inside(*corners, [x, y]));
            wanted.extend(over.map_or(ground, |(_, colour)| *colour));
        }
    }
    assert!(studio.pixels(TEXTURE, &pieces) == wanted, "not what was drawn");
    assert!(wanted.chunks(4).filter(|pixel| *pixel == second).count() > 30, "the second one is hardly there");
}

#[test]
fn a_rectangle_never_ends_a_pixel_too_early_or_too_late() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.buffer(VERTICES, 4096);
    studio.draw(&Stream::new().pipeline(PIPELINE, WIDTH, HEIGHT));
    let mut shade = 0;
    for [left, top, right, bottom] in [[0, 0, 1, 1], [36, 22, 37, 23], [3, 5, 30, 6], [8, 0, 9, 23], [0, 0, 37, 23]] {
        shade += 40;
        let (ground, colour) = ([shade; 4], [255 - shade, shade, 1, 255]);
        let [l, t, r, b] = [left, top, right, bottom].map(|edge| edge as f32);
        let corners = [[l, t], [r, t], [r, b], [l, t], [r, b], [l, b]];
        let vertices = corners.map(|place| corner(place, colour_of(colour)));
        let stream = Stream::new().clear(colour_of(ground)).write_vertices(VERTICES, &vertices);
        studio.draw(&stream.triangles(VERTICES, 6));
        let mut wanted = ground.repeat(LEN / 4);
        for y in top..bottom {
            wanted[row([left, 0, right - left, 0], y, 0, WIDTH * 4)]
                .copy_from_slice(&colour.repeat((right - left) as usize));
        }
        assert!(studio.pixels(TEXTURE, &pieces) == wanted, "{left},{top} to {right},{bottom}");
    }
}

#[test]
fn vertices_from_guest_memory_are_never_others_than_the_guest_wrote() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.buffer(VERTICES, 192);
    let list = [studio.memory(192)];
    studio.ok(&Request::attach_backing(VERTICES, &list));
    studio.draw(&Stream::new().pipeline(PIPELINE, WIDTH, HEIGHT).clear([0.0; 4]));
    let all = [[0.0, 0.0], [WIDTH as f32, 0.0], [0.0, HEIGHT as f32]].map(|place| place.map(|edge| edge * 2.0));
    for shade in [11, 22] {
        let vertices = all.map(|place| corner(place, colour_of([shade; 4])));
        let words = Stream::new().write_vertices(VERTICES, &vertices);
        // What the stream would write, by guest memory instead.
        studio.fill(&list, &words.bytes()[12 * 4..]);
        studio.ok(&transfer(TRANSFER_TO_HOST_3D, VERTICES, Region::flat([0, 0, 96, 1]), 0, 0));
        studio.draw(&Stream::new().triangles(VERTICES, 3));
        assert_eq!(studio.pixels(TEXTURE, &pieces), [shade; LEN]);
    }
}

#[test]
fn a_copy_between_textures_never_takes_pixels_from_elsewhere() {
    const OTHER: u32 = 12;
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.texture(CONTEXT, OTHER, format::B8G8R8A8, [WIDTH, HEIGHT]);
    let others = studio.back(OTHER);
    studio.fill(&others, &pattern(3));
    studio.ok(&transfer(TRANSFER_TO_HOST_3D, OTHER, Region::flat(WHOLE), 0, WIDTH * 4));
    let words: Vec<u32> = (0..6u32).map(|pixel| 0x0101_0101 * pixel).collect();
    let stream = Stream::new()
        .clear(colour_of([5; 4]))
        .copy(TEXTURE, [20, 2], OTHER, Region::flat([4, 9, 10, 7]))
        .inline_write(TEXTURE, 8, Region::flat([1, 15, 2, 3]), &words);
    studio.draw(&stream);
    let mut wanted = vec![5; LEN];
    for y in 0..7 {
        let from = pattern(3)[row([4, 0, 10, 0], 9 + y, 0, WIDTH * 4)].to_vec();
        wanted[row([20, 0, 10, 0], 2 + y, 0, WIDTH * 4)].copy_from_slice(&from);
    }
    for (y, pair) in words.chunks(2).enumerate() {
        let bytes: Vec<u8> = pair.iter().flat_map(|word| word.to_le_bytes()).collect();
        wanted[row([1, 0, 2, 0], 15 + y as u32, 0, WIDTH * 4)].copy_from_slice(&bytes);
    }
    assert!(studio.pixels(TEXTURE, &pieces) == wanted, "not what was copied");
    // The other one is as it was.
    assert!(studio.pixels(OTHER, &others) == pattern(3), "the source has changed");
}

#[test]
fn contexts_that_come_draw_and_go_by_turns_never_draw_for_each_other_nor_stop_each_other() {
    let mut studio = Studio::enter();
    let whole = [[-1.0, -1.0], [3.0, -1.0], [-1.0, 3.0]];
    let contexts = [1, 2, 3];
    let [texture, buffer] = [20, 40].map(|first| move |context: u32| first + context);
    let mut pieces = Vec::new();
    for context in contexts {
        studio.ok(&Request::ctx_create(context, VIRGL));
        studio.texture(context, texture(context), format::B8G8R8A8, [WIDTH, HEIGHT]);
        studio.ok(&create_3d(buffer(context), target::BUFFER, format::R8, bind::VERTEX_BUFFER, [96, 1]));
        studio.ok(&Request::ctx_attach(context, buffer(context)));
        pieces.push(studio.back(texture(context)));
        // Handles are the same in all of them: they are each context's own.
        let stream = Stream::new().surface(SURFACE, texture(context), format::B8G8R8A8).framebuffer(SURFACE);
        let stream = stream.pipeline(PIPELINE, WIDTH, HEIGHT);
        studio.ok(&Request::submit(context, &stream.bytes()));
    }
    for round in 0..12u8 {
        let shade = |context: u32| [round, context as u8, 7, 255];
        for context in contexts {
            let vertices = whole.map(|place| (place, colour_of(shade(context))));
            let write = Stream::new().write_vertices(buffer(context), &vertices);
            studio.ok(&Request::submit(context, &write.bytes()));
            // Between two streams of the same context.
            if u32::from(round) % 3 == context - 1 {
                studio.ok(&Request::ctx_create(9, VIRGL));
            } else if u32::from(round) % 3 == context % 3 {
                let _ = studio.command(&Request::ctx_destroy(9));
            }
            let draw = Stream::new().triangles(buffer(context), 3);
            studio.ok(&Request::submit(context, &draw.bytes()));
        }
        for (context, pieces) in contexts.iter().zip(&pieces) {
            let seen = studio.pixels(texture(*context), pieces);
            assert!(seen == shade(*context).repeat(LEN / 4), "context {context}, round {round}: {:?}...", &seen[..4]);
        }
        let _ = studio.command(&Request::ctx_destroy(9));
    }
}
