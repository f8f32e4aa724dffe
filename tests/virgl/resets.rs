//! What a reset gives back, in the middle of whatever the renderer does: guest memory, descriptors; and what devices after
//! the first one of a process have.

use std::sync::Arc;

use virtio_gpu_uring::protocol::wire::response_type::ERR_INVALID_PARAMETER;
use virtio_gpu_uring::testing::census::Census;
use virtio_gpu_uring::testing::{Guest, GuestChannel, HostService, Request, Screen};
use virtio_gpu_uring::{Builder, ChannelType, Monitor, RutabagaRenderer};

use super::alone::alone;
use super::stream::{Stream, format};
use super::studio::{CONTEXT, HEIGHT, Studio, TEXTURE, VENUS, VIRGL, WHOLE, WIDTH, colour_of, settings};
use super::venus::shared_blob;

/// Cycles before anything is counted: what is made once a process is there by then.
const WARM_UP: usize = 8;

/// Runs a cycle many times, and asserts that no descriptor more or less is open after it.
#[track_caller]
fn leaves_no_descriptor(studio: &mut Studio, count: usize, cycle: impl Fn(&mut Studio)) {
    (0..WARM_UP).for_each(|_| cycle(studio));
    let before = Census::take().fds;
    (0..count).for_each(|_| cycle(studio));
    // Some are closed behind the answer.
    studio.until("no more descriptors than before", || Census::take().fds <= before);
}

#[test]
fn no_life_of_a_texture_or_a_context_ever_leaves_a_descriptor_open() {
    alone("resets::no_life_of_a_texture_or_a_context_ever_leaves_a_descriptor_open", || {
        let mut studio = Studio::alone();
        leaves_no_descriptor(&mut studio, 20, |studio| {
            let pieces = studio.easel();
            studio.draw(&Stream::new().clear([1.0; 4]));
            assert_eq!(studio.pixels(TEXTURE, &pieces)[..4], [255; 4]);
            studio.ok(&Request::set_scanout(0, TEXTURE, WHOLE));
            studio.ok(&Request::flush(TEXTURE, WHOLE));
            studio.ok(&Request::detach_backing(TEXTURE));
            studio.ok(&Request::ctx_destroy(CONTEXT));
            studio.ok(&Request::unref(TEXTURE));
        });
        assert_eq!(studio.device().counters().requests_lost, 0);
    });
}

#[test]
fn no_reset_ever_leaves_a_descriptor_open() {
    alone("resets::no_reset_ever_leaves_a_descriptor_open", || {
        let mut studio = Studio::alone();
        leaves_no_descriptor(&mut studio, 15, |studio| {
            let _ = studio.easel();
            studio.ok(&Request::ctx_create(3, VENUS));
            studio.ok(&shared_blob(3, 20, 8192));
            studio.ok(&shared_blob(3, 21, 8192));
            studio.map(20, 0);
            let clear = Stream::new().clear([1.0; 4]).bytes();
            for fence in 0..8 {
                studio.submit(&Request::submit(CONTEXT, &clear).fenced(fence).on_ring(0));
            }
            studio.start_over();
            // The renderer's thread takes its time: its next answer comes when it is through with the last driver's.
            studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
            studio.ok(&Request::ctx_destroy(CONTEXT));
        });
    });
}

#[test]
fn guest_memory_is_never_held_after_the_device_nor_written_after_a_reset() {
    alone("resets::guest_memory_is_never_held_after_the_device_nor_written_after_a_reset", || {
        let mut studio = Studio::alone();
        studio.start_over();
        let memory = Arc::downgrade(&studio.ram().space());
        let before = memory.strong_count();
        for _ in 0..5 {
            let pieces = studio.easel();
            studio.texture(CONTEXT, 12, format::B8G8R8A8, [WIDTH, HEIGHT]);
            let others = studio.back(12);
            studio.draw(&Stream::new().clear(colour_of([7; 4])));
            assert!(memory.strong_count() > before, "nothing is pinned while it is attached");
            // Reads that are under way, or not even begun.
            for _ in 0..30 {
                let read = super::studio::read_all(TEXTURE);
                studio.submit(&read);
            }
            studio.reset();
            let later = [&pieces[..], &others].concat();
            studio.fill(&later, &vec![0x5a; super::studio::LEN * 2]);
            studio.activate();
            studio.ok(&Request::ctx_create(CONTEXT, VIRGL));
            studio.ok(&Request::ctx_destroy(CONTEXT));
            assert!(studio.contents(&later).iter().all(|byte| *byte == 0x5a), "written after the reset");
            studio.until("the end of all that held guest memory", || memory.strong_count() <= before);
        }
        let _ = studio.easel();
        drop(studio);
        assert!(memory.upgrade().is_none(), "somebody holds the memory of a guest that is gone");
    });
}

#[test]
fn a_device_after_the_first_one_never_offers_what_it_cannot_do_nor_does_without_the_rest() {
    alone("resets::a_device_after_the_first_one_never_offers_what_it_cannot_do_nor_does_without_the_rest", || {
        let mut first = Studio::alone();
        first.assert_draws(1);
        drop(first);
        let service = HostService::listen();
        let (screen, viewer) = Screen::new();
        let settings = settings();
        let builder = Builder::new().renderer(|| RutabagaRenderer::new(settings));
        let builder = builder.host_socket(ChannelType::PIPEWIRE, service.path());
        let mut guest = Guest::start(builder.display(0, Monitor::new(16, 8), screen));
        let offered = guest.command(&Request::capset_info(0)).ok();
        assert_eq!(offered[..4], 5u32.to_le_bytes(), "cross-domain alone");
        guest.command(&Request::capset_info(1)).expect_error(ERR_INVALID_PARAMETER);
        for capset in [1, VIRGL, VENUS] {
            guest.command(&Request::ctx_create(1, capset)).expect_error(ERR_INVALID_PARAMETER);
        }
        let channel = GuestChannel::open(&mut guest, 2, 40, ChannelType::PIPEWIRE);
        channel.send(&mut guest, b"goes on", &[]);
        assert_eq!(service.accept().receive(64).0, b"goes on");
        let piece = guest.page_range(16 * 8 * 4);
        guest.ram().write(vm_memory::GuestAddress(piece.0), &[0x77; 16 * 8 * 4]);
        guest.command(&Request::create_2d(7, format::B8G8R8X8, 16, 8)).ok();
        guest.command(&Request::attach_backing(7, &[piece])).ok();
        guest.command(&Request::transfer_2d(7, [0, 0, 16, 8], 0)).ok();
        guest.command(&Request::set_scanout(0, 7, [0, 0, 16, 8])).ok();
        guest.command(&Request::flush(7, [0, 0, 16, 8])).ok();
        assert_eq!(viewer.picture().2, [0x77; 16 * 8 * 4]);
    });
}
