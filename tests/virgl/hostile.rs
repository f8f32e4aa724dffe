//! Guests that mean harm by commands around the streams: absurd resources, transfers outside, ids used twice or too late.

use virtio_gpu_uring::protocol::wire::command_type::{TRANSFER_FROM_HOST_3D, TRANSFER_TO_HOST_3D};
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_CONTEXT_ID, ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, ERR_OUT_OF_MEMORY,
};
use virtio_gpu_uring::protocol::wire::{BLOB_FLAG_MAPPABLE, BLOB_FLAG_SHAREABLE, BLOB_MEM_HOST3D, ResourceCreate3d};
use virtio_gpu_uring::testing::Request;

use super::stream::{Region, Stream, bind, format, target};
use super::studio::{
    CONTEXT, HEIGHT, PAGE, SURFACE, Studio, TEXTURE, VENUS, VIRGL, WHOLE, WIDTH, create_3d, transfer, with_create,
};

fn is_error(kind: u32) -> bool {
    (0x1200..0x1300).contains(&kind)
}

/// RESOURCE_CREATE_3D of a usual texture with these numbers instead: target, format, width, height, depth, layers, levels,
/// samples.
fn create_with(numbers: [u32; 8]) -> Request {
    let [target, format, width, height, depth, array_size, last_level, nr_samples] = numbers.map(Into::into);
    with_create(&ResourceCreate3d {
        resource_id: 7.into(),
        target,
        format,
        bind: bind::RENDER_TARGET.into(),
        width,
        height,
        depth,
        array_size,
        last_level,
        nr_samples,
        flags: 0.into(),
        padding: 0.into(),
    })
}

#[test]
fn a_resource_of_absurd_numbers_is_never_made_nor_kills() {
    let mut studio = Studio::enter();
    let usual = [target::TEXTURE_2D, format::B8G8R8A8, WIDTH, HEIGHT, 1, 1, 0, 0];
    let absurd = [0u32, 0x4001, 1 << 31, (1 << 31) - 1, u32::MAX];
    // Not the samples: virglrenderer takes more of them than its OpenGL does, and then loses the next read of anybody.
    for field in 0..7 {
        for number in absurd {
            let mut numbers = usual;
            numbers[field] = number;
            // Buffers, and none of what there need not be, are what guests ask for.
            let sense = number == 0 && ![2, 3].contains(&field);
            let answer = studio.command(&create_with(numbers));
            assert!(sense || is_error(answer.kind()), "{numbers:x?}: {:#x}", answer.kind());
            if !is_error(answer.kind()) {
                studio.ok(&Request::unref(7));
            }
        }
    }
    for numbers in [
        [target::TEXTURE_2D, format::B8G8R8A8, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX, u32::MAX],
        [target::BUFFER, format::R8, u32::MAX, 1, 1, 1, 0, 0],
        [target::BUFFER, format::R8, 16, u32::MAX, 1, 1, 0, 0],
        [99, format::B8G8R8A8, WIDTH, HEIGHT, 1, 1, 0, 0],
        [target::TEXTURE_2D, 5000, WIDTH, HEIGHT, 1, 1, 0, 0],
        [target::TEXTURE_2D, format::B8G8R8A8, WIDTH, HEIGHT, 1, 1, 31, 0],
    ] {
        let answer = studio.command(&create_with(numbers));
        assert!(is_error(answer.kind()), "{numbers:x?}: {:#x}", answer.kind());
    }
    studio.assert_draws(9);
}

#[test]
fn a_transfer_never_reaches_beyond_its_resource_or_the_memory_behind_it() {
    let mut studio = Studio::enter();
    let pieces = studio.easel();
    studio.fill(&pieces, &[0x5a; super::studio::LEN]);
    let row = WIDTH * 4;
    for (region, offset, stride) in [
        (Region::flat([WIDTH, 0, 1, 1]), 0, row),
        (Region::flat([0, HEIGHT, 1, 1]), 0, row),
        (Region::flat([0, 0, WIDTH + 1, 1]), 0, row),
        (Region::flat([u32::MAX, 0, 2, 1]), 0, row),
        (Region::flat([0, 0, u32::MAX, u32::MAX]), 0, 0),
        (Region::flat(WHOLE), 1, row),
        (Region::flat(WHOLE), 0, row + 1),
        (Region::flat([0, 0, 1, 1]), u64::MAX, row),
        (Region::flat([0, 0, 1, 1]), u64::from(u32::MAX) + 1, row),
        (Region::flat([0, 0, 1, 1]), super::studio::LEN as u64 - 3, row),
        (Region { origin: [0, 0, 1], size: [1, 1, 1] }, 0, row),
        (Region { origin: [0, 0, 0], size: [1, 1, 2] }, 0, row),
    ] {
        for kind in [TRANSFER_TO_HOST_3D, TRANSFER_FROM_HOST_3D] {
            for context in [CONTEXT, 0] {
                let answer = studio.command(&transfer(kind, TEXTURE, region, offset, stride).context(context));
                assert!(is_error(answer.kind()), "{kind:#x} {region:?} {offset} {stride} in {context}");
            }
        }
        assert!(studio.contents(&pieces) == [0x5a; super::studio::LEN], "{region:?} {offset} {stride} wrote something");
    }
    studio.assert_draws(9);
}

#[test]
fn what_has_no_memory_behind_it_is_never_transferred() {
    let mut studio = Studio::enter();
    studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
    studio.texture(CONTEXT, TEXTURE, format::B8G8R8A8, [WIDTH, HEIGHT]);
    // A context does not outlive what it is refused.
    let whole = |kind| transfer(kind, TEXTURE, Region::flat(WHOLE), 0, WIDTH * 4).context(0);
    for _ in 0..2 {
        for kind in [TRANSFER_TO_HOST_3D, TRANSFER_FROM_HOST_3D] {
            assert!(is_error(studio.command(&whole(kind)).kind()));
        }
        let pieces = studio.back(TEXTURE);
        let twice = studio.command(&Request::attach_backing(TEXTURE, &pieces));
        assert!(is_error(twice.kind()));
        studio.ok(&whole(TRANSFER_TO_HOST_3D));
        studio.ok(&whole(TRANSFER_FROM_HOST_3D));
        studio.ok(&Request::detach_backing(TEXTURE));
        assert!(is_error(studio.command(&Request::detach_backing(TEXTURE)).kind()));
    }
    // In a context that there is not, and in one that does not know the resource.
    let pieces = studio.back(TEXTURE);
    studio.command(&whole(TRANSFER_TO_HOST_3D).context(99)).expect_error(ERR_INVALID_CONTEXT_ID);
    studio.ok(&Request::ctx_create(2, VIRGL));
    studio.ok(&Request::ctx_create(3, VENUS));
    for context in [2, 3] {
        let answer = studio.command(&whole(TRANSFER_FROM_HOST_3D).context(context));
        assert!(is_error(answer.kind()), "context {context} read a texture that it was never given");
    }
    assert_eq!(studio.pixels(TEXTURE, &pieces).len(), super::studio::LEN);
}

#[test]
fn an_object_that_does_not_exist_never_becomes_a_blob() {
    let mut studio = Studio::enter();
    studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
    studio.ok(&Request::ctx_create(3, VENUS));
    for context in [CONTEXT, 3] {
        for blob_id in [1, 77, u64::from(u32::MAX), 1 << 62] {
            for flags in [BLOB_FLAG_MAPPABLE, BLOB_FLAG_MAPPABLE | BLOB_FLAG_SHAREABLE, 0] {
                let blob = Request::create_blob(9, BLOB_MEM_HOST3D, flags, blob_id, PAGE, &[]).context(context);
                studio.command(&blob).expect_error(ERR_INVALID_PARAMETER);
                studio.command(&Request::unref(9)).expect_error(ERR_INVALID_RESOURCE_ID);
            }
        }
    }
    let blob = Request::create_blob(9, BLOB_MEM_HOST3D, BLOB_FLAG_MAPPABLE, 1, PAGE, &[]);
    studio.command(&blob.context(99)).expect_error(ERR_INVALID_CONTEXT_ID);
    // More than the device may have of its host.
    let blob = Request::create_blob(9, BLOB_MEM_HOST3D, BLOB_FLAG_MAPPABLE, 0, 1 << 60, &[]);
    studio.command(&blob.context(3)).expect_error(ERR_OUT_OF_MEMORY);
    studio.assert_draws(9);
}

#[test]
fn what_is_gone_is_never_used_and_its_id_is_another_ones_then() {
    let mut studio = Studio::enter();
    let clear = Stream::new().framebuffer(SURFACE).clear([1.0; 4]);
    for _ in 0..20 {
        studio.easel();
        studio.command(&Request::ctx_attach(CONTEXT, TEXTURE)).expect_error(ERR_INVALID_PARAMETER);
        studio.draw(&clear);
        // Its resource goes while the context draws on it.
        studio.ok(&Request::unref(TEXTURE));
        let _ = studio.command(&Request::submit(CONTEXT, &clear.bytes()).fenced(1));
        studio.command(&Request::ctx_attach(CONTEXT, TEXTURE)).expect_error(ERR_INVALID_RESOURCE_ID);
        let read = transfer(TRANSFER_FROM_HOST_3D, TEXTURE, Region::flat(WHOLE), 0, WIDTH * 4);
        studio.command(&read).expect_error(ERR_INVALID_RESOURCE_ID);
        studio.command(&Request::ctx_create(CONTEXT, VIRGL)).expect_error(ERR_INVALID_CONTEXT_ID);
        // The same number, another size: nothing of the old one is left in it.
        let size = [WIDTH * 2, HEIGHT * 2];
        studio.ok(&create_3d(TEXTURE, target::TEXTURE_2D, format::R8G8B8A8, bind::RENDER_TARGET, size));
        studio.ok(&Request::ctx_destroy(CONTEXT));
        studio.command(&Request::submit(CONTEXT, &clear.bytes())).expect_error(ERR_INVALID_CONTEXT_ID);
        studio.command(&Request::ctx_destroy(CONTEXT)).expect_error(ERR_INVALID_CONTEXT_ID);
        studio.ok(&Request::unref(TEXTURE));
        studio.assert_draws(CONTEXT);
    }
    studio.assert_all_answered();
}
