//! What virgl has drawn, on a display: the pixels that the guest reads back, in the order of rows in which it does.

use virtio_gpu_uring::protocol::wire::command_type::TRANSFER_TO_HOST_3D;
use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
use virtio_gpu_uring::testing::{Request, Shown};
use virtio_gpu_uring::{Area, Format};

use super::stream::{Region, Stream, bind, format, target};
use super::studio::{
    CONTEXT, HEIGHT, LEN, PIPELINE, Studio, TEXTURE, VERTICES, WHOLE, WIDTH, colour_of, create_3d, transfer,
};

const ALL: Area = Area { x: 0, y: 0, width: WIDTH, height: HEIGHT };

/// Red above, green to the left below, blue to the right: a picture that shows every way to turn it.
fn flag() -> Vec<u8> {
    let pixel = |x, y| match (x < WIDTH / 2, y < HEIGHT / 3) {
        (_, true) => [0, 0, 255, 255],
        (true, false) => [0, 255, 0, 255],
        (false, false) => [255, 0, 0, 255],
    };
    (0..HEIGHT).flat_map(|y| (0..WIDTH).flat_map(move |x| pixel(x, y))).collect()
}

/// Draws the same as triangles, the first row above.
fn draw_flag(studio: &mut Studio) {
    let (middle, third) = ((WIDTH / 2) as f32, (HEIGHT / 3) as f32);
    let (width, height) = (WIDTH as f32, HEIGHT as f32);
    let fields = [
        ([0.0, 0.0, width, third], [0, 0, 255, 255]),
        ([0.0, third, middle, height], [0, 255, 0, 255]),
        ([middle, third, width, height], [255, 0, 0, 255]),
    ];
    let mut vertices = Vec::new();
    for ([l, t, r, b], colour) in fields {
        let corners = [[l, t], [r, t], [r, b], [l, t], [r, b], [l, b]];
        let place = |[x, y]: [f32; 2]| [x / width * 2.0 - 1.0, y / height * 2.0 - 1.0];
        vertices.extend(corners.map(|corner| (place(corner), colour_of(colour))));
    }
    studio.buffer(VERTICES, 4096);
    let stream = Stream::new().pipeline(PIPELINE, WIDTH, HEIGHT).clear([0.0; 4]);
    studio.draw(&stream.write_vertices(VERTICES, &vertices).triangles(VERTICES, 18));
}

fn attached(format: Format) -> Shown {
    Shown::Attached { width: WIDTH, height: HEIGHT, format, by_buffer: false }
}

/// The part of a picture in a rectangle.
fn part(picture: &[u8], area: Area) -> Vec<u8> {
    let rows = picture.chunks_exact(WIDTH as usize * 4).skip(area.y as usize).take(area.height as usize);
    rows.flat_map(|row| &row[area.x as usize * 4..(area.x + area.width) as usize * 4]).copied().collect()
}

#[test]
fn a_drawn_picture_is_never_shown_upside_down_nor_in_other_colours_nor_before_its_flush() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.ok(&Request::set_scanout(0, TEXTURE, WHOLE));
    assert_eq!(studio.viewer.take(), [attached(Format::B8G8R8A8)]);
    draw_flag(&mut studio);
    assert_eq!(studio.viewer.take(), [], "shown before its flush");
    studio.ok(&Request::flush(TEXTURE, WHOLE));
    assert!(studio.viewer.take() == [Shown::Drawn(ALL, flag()), Shown::Frame(ALL)], "another picture");
    assert!(studio.pixels(TEXTURE, &pieces) == flag(), "the guest sees it otherwise than the display");
    // Drawn over and not flushed; then a part of it is.
    studio.draw(&Stream::new().clear(colour_of([1, 2, 3, 255])));
    let damage = Area { x: 30, y: 4, width: 5, height: 9 };
    studio.ok(&Request::flush(TEXTURE, [30, 4, 5, 9]));
    let drawn = [1, 2, 3, 255].repeat(45);
    assert_eq!(studio.viewer.take(), [Shown::Drawn(damage, drawn), Shown::Frame(damage)]);
    let mut wanted = flag();
    for y in 4..13 {
        let start = (y * WIDTH as usize + 30) * 4;
        wanted[start..start + 20].copy_from_slice(&[1, 2, 3, 255].repeat(5));
    }
    assert!(studio.viewer.picture().2 == wanted, "more or less than the damage was drawn");
}

#[test]
fn a_scanout_of_a_part_never_shows_another_part() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.fill(&pieces, &flag());
    studio.ok(&transfer(TRANSFER_TO_HOST_3D, TEXTURE, Region::flat(WHOLE), 0, WIDTH * 4));
    let shown = Area { x: 11, y: 5, width: 20, height: 14 };
    studio.ok(&Request::set_scanout(0, TEXTURE, [11, 5, 20, 14]));
    studio.ok(&Request::flush(TEXTURE, WHOLE));
    let (width, height, picture) = studio.viewer.picture();
    assert_eq!((width, height), (20, 14));
    assert!(picture == part(&flag(), shown), "another part");
    for outside in [[18, 0, 20, 1], [0, 0, WIDTH + 1, 1], [0, HEIGHT, 1, 1], [0, 0, 0, 0]] {
        studio.command(&Request::set_scanout(0, TEXTURE, outside)).expect_error(ERR_INVALID_PARAMETER);
    }
    let _ = studio.viewer.take();
    studio.ok(&Request::unref(TEXTURE));
    assert_eq!(studio.viewer.take(), [Shown::Detached]);
}

#[test]
fn a_format_is_never_shown_as_another_and_what_displays_do_not_know_is_refused() {
    let mut studio = Studio::enter();
    for (number, shown) in [
        (format::B8G8R8A8, Format::B8G8R8A8),
        (format::B8G8R8X8, Format::B8G8R8X8),
        (format::R8G8B8A8, Format::R8G8B8A8),
    ] {
        let pieces = studio.easel_of(number);
        studio.fill(&pieces, &flag());
        studio.ok(&transfer(TRANSFER_TO_HOST_3D, TEXTURE, Region::flat(WHOLE), 0, WIDTH * 4));
        studio.ok(&Request::set_scanout(0, TEXTURE, WHOLE));
        studio.ok(&Request::flush(TEXTURE, WHOLE));
        assert_eq!(studio.viewer.take()[0], attached(shown));
        assert!(studio.viewer.picture().2 == flag(), "{shown:?}");
        studio.start_over();
    }
    studio.ok(&Request::ctx_create(CONTEXT, 2));
    studio.ok(&create_3d(7, target::TEXTURE_2D, format::R8, bind::RENDER_TARGET, [WIDTH, HEIGHT]));
    studio.ok(&create_3d(8, target::BUFFER, format::R8, bind::VERTEX_BUFFER, [LEN as u32, 1]));
    for resource in [7, 8] {
        let refused = studio.command(&Request::set_scanout(0, resource, [0, 0, 1, 1]));
        refused.expect_error(ERR_INVALID_PARAMETER);
    }
    assert_eq!(studio.viewer.take(), []);
}
