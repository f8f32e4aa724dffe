//! Items 1 to 3: what the device is, and which features it offers, takes and honours.

use std::sync::Arc;

use virtio_gpu_uring::protocol::features::{
    BLOB_ALIGNMENT, CONTEXT_INIT, EDID, EVENT_IDX, INDIRECT_DESC, OFFERED, RESOURCE_BLOB, RESOURCE_UUID, VERSION_1,
    VIRGL,
};
use virtio_gpu_uring::protocol::wire::response_type::{
    ERR_INVALID_RESOURCE_ID, ERR_UNSPEC, OK_CAPSET, OK_CAPSET_INFO, OK_DISPLAY_INFO, OK_EDID, OK_MAP_INFO, OK_NODATA,
    OK_RESOURCE_UUID,
};
use virtio_gpu_uring::testing::{Guest, GuestOptions, Request, Screen, Viewer};
use virtio_gpu_uring::{ActivateError, Builder, DEVICE_ID, FeatureError, HostWindow, Monitor, QUEUE_SIZES};
use vm_memory::GuestMemoryMmap;

use crate::honest::{Watch, honest};
use crate::kit;

/// Bits that build on others (D:38-41).
const BUILDS_ON: [(u64, u64); 2] = [(CONTEXT_INIT, VIRGL), (BLOB_ALIGNMENT, RESOURCE_BLOB)];
/// The bits of the GPU device's own.
const GPU_BITS: [u64; 6] = [VIRGL, EDID, RESOURCE_UUID, RESOURCE_BLOB, CONTEXT_INIT, BLOB_ALIGNMENT];

/// What a driver of the usual kind takes beside them.
const RINGS: u64 = VERSION_1 | INDIRECT_DESC | EVENT_IDX;

/// Whether a set of features has all that each of them builds on.
fn complete(features: u64) -> bool {
    BUILDS_ON.iter().all(|(feature, needs)| features & feature == 0 || features & needs != 0)
}

/// All subsets of a set of bits.
fn subsets(of: u64) -> impl Iterator<Item = u64> {
    let mut next = Some(of);
    std::iter::from_fn(move || {
        let now = next?;
        next = now.checked_sub(1).map(|less| less & of);
        Some(now)
    })
}

/// A guest whose driver has not started.
pub(crate) fn powered_off(builder: Builder) -> Guest {
    Guest::powered_off(builder.spawn().expect("a device"), GuestOptions::default())
}

/// DRIVER_OK with this choice of features.
#[track_caller]
pub(crate) fn start_with(guest: &Guest, features: u64) {
    guest.device().acknowledge(features).expect("features that can be served");
    guest.device().activate(guest.activation()).wait().expect("a device").expect("queues that can be served");
}

#[test]
fn spec_01_the_device_is_16_with_a_control_and_a_cursor_queue_of_one_format() {
    assert_eq!(DEVICE_ID, 16);
    assert_eq!(QUEUE_SIZES.len(), 2);
    let (mut guest, _viewer) = kit::with_screen();
    let answer = guest.command(&Request::display_info());
    assert_eq!((answer.kind(), answer.written), (OK_DISPLAY_INFO, 408));
    let moved = kit::cursor(&mut guest, &Request::move_cursor(0, (1, 2)).context(7).fenced(9));
    assert_eq!((moved.kind(), moved.written, moved.payload.len()), (OK_NODATA, 24, 0));
    assert_eq!((moved.header.flags.get(), moved.header.fence_id.get(), moved.header.ctx_id.get()), (1, 9, 7));
    // What is for one queue is nothing for the other.
    let stray = kit::cursor(&mut guest, &Request::display_info());
    assert_eq!((stray.kind(), stray.written), (ERR_UNSPEC, 24));
    kit::refused(&mut guest, &Request::move_cursor(0, (1, 2)), ERR_UNSPEC);
    guest.assert_all_answered();
}

#[test]
fn spec_02_version_1_is_offered_and_no_driver_does_without() {
    let guest = powered_off(Builder::new());
    assert_ne!(guest.device().features() & VERSION_1, 0);
    assert_eq!(guest.device().acknowledge(OFFERED & !VERSION_1), Err(FeatureError::Legacy));
    assert_eq!(guest.device().acknowledge(0), Err(FeatureError::Legacy));
    let started = guest.device().activate(guest.activation()).wait().expect("a device");
    assert!(matches!(started, Err(ActivateError::NoFeatures)), "{started:?}");
}

#[test]
fn spec_02_every_complete_subset_of_the_offer_is_taken_and_no_other() {
    let guest = powered_off(Builder::new());
    let offered = guest.device().features();
    assert_eq!(offered, GPU_BITS.iter().fold(RINGS, |all, bit| all | bit));
    let mut count = 0;
    for chosen in subsets(offered) {
        let taken = guest.device().acknowledge(chosen);
        assert_eq!(taken.is_ok(), chosen & VERSION_1 != 0 && complete(chosen), "features {chosen:#x}: {taken:?}");
        count += 1;
    }
    assert_eq!(count, 512);
    for unknown in (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit == 0) {
        assert_eq!(guest.device().acknowledge(offered | unknown), Err(FeatureError::NotOffered { unknown }));
    }
}

#[test]
fn spec_02_no_bit_is_offered_without_the_one_that_it_builds_on_nor_one_that_is_withheld() {
    for withheld in subsets(OFFERED) {
        let (device, _task) = Builder::new().withhold(withheld).build::<Arc<GuestMemoryMmap>>().expect("a device");
        let offered = device.features();
        assert!(complete(offered), "{offered:#x} is offered without {withheld:#x}");
        assert_eq!(offered & withheld & !VERSION_1, 0);
        assert_eq!(offered & VERSION_1, VERSION_1);
        // And nothing more is missing than what builds on it.
        let built = BUILDS_ON.iter().filter(|(_, needs)| withheld & needs != 0).fold(0, |all, (bit, _)| all | bit);
        assert_eq!(offered | withheld | built, OFFERED, "{withheld:#x} is withheld");
        device.acknowledge(offered).expect("all that is offered");
        let bit = withheld & !VERSION_1 & OFFERED;
        if bit != 0 {
            let taken = device.acknowledge(offered | bit);
            assert!(matches!(taken, Err(FeatureError::NotOffered { .. })), "{taken:?}");
        }
    }
}

#[test]
fn spec_02_the_same_set_is_taken_again_after_a_reset_and_none_outlives_it() {
    let mut guest = Guest::start(Builder::new());
    for chosen in [OFFERED, VERSION_1, VERSION_1 | EDID, OFFERED] {
        guest.reset();
        let offered = guest.device().features();
        assert_eq!(offered, OFFERED, "another offer after a reset");
        let started = guest.device().activate(guest.activation()).wait().expect("a device");
        assert!(matches!(started, Err(ActivateError::NoFeatures)), "features outlived a reset: {started:?}");
        // A choice that is refused makes an earlier one void.
        guest.device().acknowledge(chosen).expect("features");
        guest.device().acknowledge(chosen & !VERSION_1).expect_err("no legacy drivers");
        let started = guest.device().activate(guest.activation()).wait().expect("a device");
        assert!(matches!(started, Err(ActivateError::NoFeatures)), "{started:?}");
        guest.device().acknowledge(chosen).expect("the same features again");
        guest.device().acknowledge(chosen).expect("and once more");
        guest.device().activate(guest.activation()).wait().expect("a device").expect("queues");
    }
}

/// A device that can serve every command, with the ends that tell what it did.
struct Full {
    guest: Guest,
    viewer: Viewer,
    watch: Watch,
    window: HostWindow,
    backing: (u64, u32),
}

impl Full {
    fn new() -> Self {
        let window = HostWindow::new(1 << 20).expect("a window");
        let (factory, watch) = honest();
        let (screen, viewer) = Screen::new();
        let builder = Builder::new().window(window.clone()).renderer(factory);
        let guest = powered_off(builder.display(0, Monitor::new(640, 480), screen));
        let backing = guest.page_range(16384);
        Self { guest, viewer, watch, window, backing }
    }

    /// The commands that need a feature, in an order in which all of them succeed; each with what it needs, and with the type
    /// of its answer.
    fn gated(&self, blob_id: u64) -> Vec<(Request, u64, u32)> {
        let (blobs, both) = (RESOURCE_BLOB, RESOURCE_BLOB | VIRGL);
        vec![
            (Request::get_edid(0), EDID, OK_EDID),
            (Request::assign_uuid(1), RESOURCE_UUID, OK_RESOURCE_UUID),
            (Request::capset_info(0), VIRGL, OK_CAPSET_INFO),
            (Request::capset(2, 3, 64), VIRGL, OK_CAPSET),
            (Request::ctx_create(1, 0), VIRGL, OK_NODATA),
            (Request::ctx_create(2, 5), VIRGL | CONTEXT_INIT, OK_NODATA),
            (Request::ctx_attach(1, 1), VIRGL, OK_NODATA),
            (Request::submit(1, &crate::honest::make_object(7, &[0x77; 4096])), VIRGL, OK_NODATA),
            (Request::create_3d(3, 2, 1, 16, 16), VIRGL, OK_NODATA),
            (Request::attach_backing(3, &[self.backing]), VIRGL, OK_NODATA),
            (Request::transfer_to_host_3d(1, 3, [0, 0, 16, 16], 0), VIRGL, OK_NODATA),
            (Request::transfer_from_host_3d(1, 3, [0, 0, 16, 16], 0), VIRGL, OK_NODATA),
            (Request::guest_blob(4, 16384, &[self.backing]), blobs, OK_NODATA),
            (Request::set_scanout_blob(0, 4, [16, 16], 1, 64, 0), blobs, OK_NODATA),
            (Request::host_blob(1, 5, blob_id, 4096), both, OK_NODATA),
            (Request::map(5, 0x3000), both, OK_MAP_INFO),
            (Request::unmap(5), both, OK_NODATA),
            (Request::ctx_detach(1, 1), VIRGL, OK_NODATA),
            (Request::ctx_destroy(1), VIRGL, OK_NODATA),
        ]
    }
}

#[test]
fn spec_03_an_optional_command_is_served_with_its_feature_and_refused_without_changing_nothing() {
    let mut full = Full::new();
    let all = GPU_BITS.iter().fold(0, |all, bit| all | bit);
    for chosen in subsets(all).filter(|&chosen| complete(chosen)) {
        full.guest.reset();
        start_with(&full.guest, chosen | RINGS);
        let _ = (full.viewer.take(), full.watch.take());
        kit::done(&mut full.guest, &Request::create_2d(1, 1, 16, 16));
        for (request, needs, kind) in full.gated(7) {
            let what = format!("{:x?} with features {chosen:#x}", &request.bytes()[..2]);
            let answer = full.guest.command(&request);
            if chosen & needs == needs {
                assert_eq!(answer.kind(), kind, "{what}");
            } else {
                assert_eq!((answer.kind() & 0xff00, answer.written), (0x1200, 24), "{what}");
            }
        }
        if chosen & VIRGL == 0 {
            assert_eq!(full.watch.take(), [""; 0], "the renderer was called with features {chosen:#x}");
            kit::done(&mut full.guest, &Request::create_2d(3, 1, 16, 16));
        }
        if chosen & RESOURCE_BLOB == 0 {
            kit::assert_untouched(&full.viewer);
            kit::done(&mut full.guest, &Request::create_2d(4, 1, 16, 16));
        }
        if chosen & (RESOURCE_BLOB | VIRGL) != RESOURCE_BLOB | VIRGL {
            kit::done(&mut full.guest, &Request::create_2d(5, 1, 16, 16));
            let mut seen = [0xee; 4096];
            full.window.read(0x3000, &mut seen).expect("in the window");
            assert_eq!(seen, [0; 4096], "something was mapped with features {chosen:#x}");
        }
        assert_eq!(full.guest.device().counters().requests_lost, 0);
    }
}

#[test]
fn spec_03_a_command_without_its_feature_is_as_unknown_as_any() {
    let mut full = Full::new();
    start_with(&full.guest, RINGS);
    kit::done(&mut full.guest, &Request::create_2d(1, 1, 16, 16));
    for (request, ..) in full.gated(7) {
        // ATTACH_BACKING needs no feature, but here its resource.
        let code = if request.bytes()[..2] == [6, 1] { ERR_INVALID_RESOURCE_ID } else { ERR_UNSPEC };
        kit::refused(&mut full.guest, &request, code);
    }
    full.guest.assert_all_answered();
}

#[test]
fn spec_03_map_and_unmap_are_refused_without_a_region() {
    let mut guest = Guest::start(Builder::new());
    kit::done(&mut guest, &Request::ctx_create(1, 5));
    let blob = kit::offer(&guest, kit::memfd("no-region", &[1; 4096]));
    kit::done(&mut guest, &Request::host_blob(1, 5, blob, 4096));
    kit::refused(&mut guest, &Request::map(5, 0), ERR_UNSPEC);
    let unmapped = guest.command(&Request::unmap(5));
    assert_eq!((unmapped.kind() & 0xff00, unmapped.written), (0x1200, 24));
    kit::done(&mut guest, &Request::unref(5));
}
