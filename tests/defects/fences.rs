//! Rows 14 to 18: fences that never signalled, signalled at once, or lost half of their id.

use std::sync::{Arc, Mutex};

use virtio_gpu_uring::protocol::cross_domain::ChannelType;
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_CONTEXT_ID, ERR_UNSPEC};
use virtio_gpu_uring::protocol::wire::{CAPSET_CROSS_DOMAIN, FLAG_FENCE, FLAG_INFO_RING_IDX};
use virtio_gpu_uring::testing::{GuestChannel, HostService, Request};
use virtio_gpu_uring::{BlobRequest, Builder, Capset, Fence, RenderedBlob, Renderer, RendererError};

use crate::setup::{CONTEXT, PAGE, Setup};

/// Row 14: a command whose fence could not be made was put aside and never completed.
#[test]
fn a_fence_that_nothing_will_ever_signal_does_not_keep_its_command() {
    let mut setup = Setup::new();
    // A context without a channel has no message to wait for.
    let poll = Request::submit(CONTEXT, &Request::stream_poll());
    setup.ok(&poll.clone().fenced(1).on_ring(1));
    let answer = setup.guest.command(&Request::submit(77, &Request::stream_poll()).fenced(2).on_ring(1));
    answer.expect_error(ERR_INVALID_CONTEXT_ID);
    let malformed = Request::submit(CONTEXT, &[1; 8]).fenced(3).on_ring(1);
    assert!(setup.guest.command(&malformed).kind() >= ERR_UNSPEC);
    setup.ok(&poll.fenced(4).on_ring(1));
}

/// Row 15: a request that could not be decoded was answered without its fence, which then never signalled.
#[test]
fn no_error_loses_the_fields_of_its_fence() {
    let mut setup = Setup::new();
    let requests = [
        Request::new(0xdead_beef, &[]),
        Request::new(0x10f, &[0; 64]),
        Request::new(0x208, &[0; 4]),
        Request::new(0x300, &[0; 64]),
        Request::map(99, 0),
        Request::ctx_create(CONTEXT, CAPSET_CROSS_DOMAIN),
        Request::submit(CONTEXT, &[0; 64]),
        Request::submit(CONTEXT, &[0; 7]),
        Request::map(99, 0).response_len(24),
    ];
    for (fence, request) in (1 << 40..).zip(requests) {
        for ring in [None, Some(2)] {
            let fenced = request.clone().context(CONTEXT).fenced(fence);
            let (request, flags) = match ring {
                None => (fenced, FLAG_FENCE),
                Some(ring) => (fenced.on_ring(ring), FLAG_FENCE | FLAG_INFO_RING_IDX),
            };
            let answer = setup.guest.command(&request);
            assert!(answer.kind() >= ERR_UNSPEC, "{request:?}: answered {:#x}", answer.kind());
            let header = answer.header;
            let echoed = (header.flags.get(), header.fence_id.get(), header.ctx_id.get(), header.ring_idx);
            assert_eq!(echoed, (flags, fence, CONTEXT, ring.unwrap_or(0)), "{request:?}");
        }
    }
    assert_eq!(setup.guest.device().counters().requests_lost, 0, "an error that came by losing the request");
}

/// Row 16: the id of a fence was cut to 32 bits, so that all of them hung after the first four billion.
#[test]
fn a_fence_s_id_is_never_cut_to_32_bits() {
    let mut setup = Setup::new();
    let half = u64::from(u32::MAX);
    for fence in [half - 1, half, half + 1, half + 2, 1 << 40, u64::MAX - 1, u64::MAX] {
        let answer = setup.guest.command(&Request::submit(CONTEXT, &[]).fenced(fence));
        assert_eq!(answer.header.fence_id.get(), fence);
        answer.ok();
    }
}

/// Row 17: completed fences outlived their context, so that those of the next one under its id signalled at once.
#[test]
fn a_new_context_never_inherits_the_fences_of_the_last_one_under_its_id() {
    let service = HostService::listen();
    let mut setup = Setup::with(Builder::new().host_socket(ChannelType::PIPEWIRE, service.path()));
    for life in 0..4 {
        let mut channel = GuestChannel::open(&mut setup.guest, 2, 10, ChannelType::PIPEWIRE);
        let peer = service.accept();
        for message in 0..5u8 {
            let poll = channel.poll(&mut setup.guest);
            setup.guest.settle();
            assert!(!setup.guest.has_answer(&poll), "life {life}: message {message} signalled before it came");
            peer.send(&[message], &[]);
            assert_eq!(channel.wait(&mut setup.guest, poll).data, [message]);
        }
        setup.ok(&Request::ctx_destroy(2));
        for ring in channel.rings {
            setup.ok(&Request::unref(ring));
        }
    }
}

/// Keeps every fence until the test takes it.
struct Keeper(Arc<Mutex<Vec<Fence>>>);

impl Renderer for Keeper {
    fn capsets(&self) -> Vec<Capset> {
        vec![Capset { id: 4, max_version: 0, data: vec![0; 16] }]
    }

    fn create_context(&mut self, _: u32, _: u32, _: &str) -> Result<(), RendererError> {
        Ok(())
    }

    fn destroy_context(&mut self, _: u32) {}

    fn attach_resource(&mut self, _: u32, _: u32) {}

    fn detach_resource(&mut self, _: u32, _: u32) {}

    fn submit(&mut self, _: u32, _: &[u8]) -> Result<(), RendererError> {
        Ok(())
    }

    fn create_blob(&mut self, _: &BlobRequest) -> Result<RenderedBlob, RendererError> {
        Err(RendererError::Invalid("it has no objects".into()))
    }

    fn destroy_resource(&mut self, _: u32) {}

    fn fence(&mut self, _: u32, _: Option<u8>, fence: Fence) {
        self.0.lock().expect("no panic under it").push(fence);
    }
}

/// Row 18: fences retired only when somebody asked the renderer, and nobody did.
#[test]
fn a_renderer_s_fence_needs_no_other_traffic_to_be_answered() {
    let fences = Arc::new(Mutex::new(Vec::new()));
    let keeper = Keeper(Arc::clone(&fences));
    let mut setup = Setup::with(Builder::new().renderer(move || Ok(keeper)));
    setup.ok(&Request::ctx_create(2, 4));
    for fence in 1..10 {
        let token = setup.guest.submit(&Request::submit(2, &[1, 2, 3, 4]).fenced(fence).on_ring(3));
        let kept = loop {
            setup.guest.settle();
            assert!(!setup.guest.has_answer(&token), "answered before its fence");
            if let Some(kept) = fences.lock().expect("no panic under it").pop() {
                break kept;
            }
        };
        std::thread::spawn(move || kept.signal());
        let answer = setup.guest.wait(token);
        assert_eq!(answer.header.fence_id.get(), fence);
        answer.ok();
    }
    let range = setup.guest.page_range(4096);
    setup.ok(&Request::guest_blob(20, PAGE, &[range]));
}
