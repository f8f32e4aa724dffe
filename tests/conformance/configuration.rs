//! Items 4 to 8: the configuration space, and the event that tells of changes to it.

use std::sync::Arc;
use std::time::Instant;

use virtio_gpu_uring::protocol::features::{BLOB_ALIGNMENT, OFFERED, RESOURCE_BLOB, VIRGL};
use virtio_gpu_uring::protocol::wire::response_type::{ERR_INVALID_PARAMETER, ERR_INVALID_SCANOUT_ID, OK_CAPSET_INFO};
use virtio_gpu_uring::testing::{DEADLINE, Guest, Request, Screen, Viewer};
use virtio_gpu_uring::{Builder, Device, Monitor};
use vm_memory::GuestMemoryMmap;

use crate::honest::honest;
use crate::identity::{powered_off, start_with};
use crate::kit;

type Gpu = Device<Arc<GuestMemoryMmap>>;

fn config<const LEN: usize>(device: &Gpu, offset: u64) -> [u8; LEN] {
    let mut bytes = [0xee; LEN];
    device.read_config(offset, &mut bytes);
    bytes
}

fn word(device: &Gpu, offset: u64) -> u32 {
    u32::from_le_bytes(config(device, offset))
}

fn events(guest: &Guest) -> u32 {
    word(guest.device(), 0)
}

/// A device with three scanouts, three capability sets and an alignment of 16 KiB.
fn three_scanouts() -> (Builder, [u8; 20]) {
    let (factory, _) = honest();
    let expected = [0u32, 0, 3, 3, 0x4000].map(u32::to_le_bytes).concat();
    let builder = Builder::new().scanouts(3).blob_alignment(0x4000).renderer(factory);
    (builder, expected.try_into().expect("five words"))
}

#[test]
fn spec_04_the_configuration_space_is_five_little_endian_words_at_any_time() {
    let (builder, expected) = three_scanouts();
    let mut guest = powered_off(builder);
    let assert_read = |guest: &Guest, when: &str| {
        assert_eq!(config::<20>(guest.device(), 0), expected, "{when}");
    };
    assert_read(&guest, "before anything is acknowledged");
    guest.device().acknowledge(OFFERED).expect("features");
    assert_read(&guest, "before DRIVER_OK");
    guest.activate();
    assert_read(&guest, "after DRIVER_OK");
    guest.reset();
    assert_read(&guest, "after a reset");
}

#[test]
fn spec_04_a_read_of_any_part_of_the_configuration_space_is_that_part() {
    let (builder, expected) = three_scanouts();
    let guest = powered_off(builder);
    let endless: Vec<u8> = expected.iter().copied().chain([0; 80]).collect();
    for offset in 0..40 {
        for len in 0..=32 {
            let mut out = vec![0xee; len];
            guest.device().read_config(offset as u64, &mut out);
            assert_eq!(out, endless[offset..offset + len], "{len} bytes at {offset}");
        }
    }
    assert_eq!(config::<8>(guest.device(), u64::MAX - 3), [0; 8]);
}

#[test]
fn spec_04_the_alignment_is_no_part_of_it_where_its_feature_is_not_offered() {
    for withheld in [BLOB_ALIGNMENT, RESOURCE_BLOB] {
        let guest = powered_off(Builder::new().withhold(withheld));
        assert_eq!(guest.device().features() & BLOB_ALIGNMENT, 0);
        assert_eq!(word(guest.device(), 16), 0, "features {withheld:#x} are withheld");
    }
}

#[test]
fn spec_05_there_are_one_to_sixteen_scanouts() {
    for count in 1..=16 {
        let mut guest = Guest::start(Builder::new().scanouts(count));
        assert_eq!(word(guest.device(), 8), count);
        kit::done(&mut guest, &Request::set_scanout(count - 1, 0, [0; 4]));
        assert_eq!(guest.command(&Request::set_scanout(count, 0, [0; 4])).kind(), ERR_INVALID_SCANOUT_ID);
    }
    assert_eq!(word(powered_off(Builder::new()).device(), 8), 1);
    for count in [0, 17, u32::MAX] {
        Builder::new().scanouts(count).build::<Arc<GuestMemoryMmap>>().expect_err("no such number of scanouts");
    }
}

#[test]
fn spec_05_every_capability_set_that_is_counted_is_there_and_no_other() {
    let (factory, _) = honest();
    let with_renderer = Builder::new().renderer(factory);
    for (builder, ids) in [(Builder::new(), vec![5]), (with_renderer, vec![2, 4, 5])] {
        let mut guest = Guest::start(builder);
        assert_eq!(word(guest.device(), 12) as usize, ids.len());
        for (index, id) in (0..).zip(&ids) {
            let info = guest.command(&Request::capset_info(index)).ok();
            assert_eq!(info[..4], u32::to_le_bytes(*id));
        }
        kit::refused(&mut guest, &Request::capset_info(ids.len() as u32), ERR_INVALID_PARAMETER);
    }
}

#[test]
fn spec_05_no_capability_set_is_counted_that_no_driver_can_ask_for() {
    // Linux asks for each that is counted, whatever it has negotiated, and waits five seconds for it.
    let mut guest = powered_off(Builder::new().withhold(VIRGL));
    start_with(&guest, guest.device().features());
    for index in 0..word(guest.device(), 12) {
        assert_eq!(guest.command(&Request::capset_info(index)).kind(), OK_CAPSET_INFO, "capability set {index}");
    }
}

#[test]
fn spec_06_the_alignment_of_blobs_is_a_power_of_two() {
    for shift in 12..32 {
        let guest = powered_off(Builder::new().blob_alignment(1 << shift));
        assert_eq!(word(guest.device(), 16), 1 << shift);
    }
    let guest = powered_off(Builder::new());
    assert_eq!(u64::from(word(guest.device(), 16)), kit::PAGE, "the host's page where none is stated");
    for alignment in [0, 3, 4097, 12288, 1 << 32, 1 << 63, u64::MAX] {
        Builder::new().blob_alignment(alignment).build::<Arc<GuestMemoryMmap>>().expect_err("no alignment");
    }
}

/// A guest with an event pending.
fn with_event() -> (Guest, Viewer) {
    let (mut guest, viewer) = kit::with_screen();
    assert_eq!(events(&guest), 0, "an event before anything has happened");
    guest.device().change_monitor(0, Monitor::new(800, 600)).wait().expect("a device").expect("a monitor");
    assert_eq!((events(&guest), guest.take_config_changes()), (1, 1));
    (guest, viewer)
}

#[test]
fn spec_07_a_write_anywhere_but_to_events_clear_has_no_effect() {
    let (mut guest, _viewer) = with_event();
    let before = (config::<20>(guest.device(), 0), guest.device().config_generation());
    for offset in (0..4).chain(8..40).chain([u64::MAX - 2, u64::MAX]) {
        for data in [&[0xff][..], &[0xff; 2], &[0xff; 4], &[0; 4], &[0xff; 8]] {
            let touches_clear = offset < 8 && offset + data.len() as u64 > 4;
            if !touches_clear {
                guest.device().write_config(offset, data);
                let now = (config::<20>(guest.device(), 0), guest.device().config_generation());
                assert_eq!(now, before, "{data:x?} at {offset}");
            }
        }
    }
    guest.settle();
    assert_eq!(guest.take_config_changes(), 0);
    kit::done(&mut guest, &Request::create_2d(1, 1, 1, 1));
}

#[test]
fn spec_07_events_clear_clears_the_bits_that_are_written_as_ones_and_no_others() {
    for (offset, data) in [
        (4, &0u32.to_le_bytes()[..]),
        (4, &0xffff_fffeu32.to_le_bytes()),
        (4, &[0xfe]),
        (5, &[0xff]),
        (6, &[0xff, 0xff]),
        (5, &[0xff; 3]),
        (0, &[0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff]),
        (3, &[1]),
    ] {
        let (guest, _viewer) = with_event();
        let generation = guest.device().config_generation();
        guest.device().write_config(offset, data);
        assert_eq!(events(&guest), 1, "cleared by {data:x?} at {offset}");
        assert_eq!(guest.device().config_generation(), generation);
    }
    for (offset, data) in [
        (4, &1u32.to_le_bytes()[..]),
        (4, &u32::MAX.to_le_bytes()),
        (4, &[1]),
        (4, &[1, 0]),
        (3, &[0, 1]),
        (0, &[0, 0, 0, 0, 1, 0, 0, 0]),
        (0, &[0xff; 20]),
    ] {
        let (mut guest, _viewer) = with_event();
        let generation = guest.device().config_generation();
        guest.device().write_config(offset, data);
        assert_eq!(events(&guest), 0, "not cleared by {data:x?} at {offset}");
        assert_eq!(word(guest.device(), 4), 0, "events_clear reads as zero");
        assert_ne!(guest.device().config_generation(), generation, "a change that no driver would notice");
        guest.settle();
        assert_eq!(guest.take_config_changes(), 0, "a notification of what the driver has done itself");
    }
}

#[test]
fn spec_07_clearing_what_is_not_pending_has_no_effect() {
    let (mut guest, _viewer) = kit::with_screen();
    let generation = guest.device().config_generation();
    guest.device().write_config(4, &u32::MAX.to_le_bytes());
    guest.settle();
    assert_eq!((events(&guest), guest.take_config_changes()), (0, 0));
    assert_eq!(guest.device().config_generation(), generation);
    // And it takes no credit for what comes later.
    guest.device().change_monitor(0, Monitor::new(800, 600)).wait().expect("a device").expect("a monitor");
    assert_eq!((events(&guest), guest.take_config_changes()), (1, 1));
}

/// Asserts that a change of the displays was told, and takes note of it as a driver does.
#[track_caller]
fn told(guest: &mut Guest, generation: &mut u32) -> Vec<u32> {
    assert_eq!(events(guest), 1, "no event");
    assert_eq!(guest.take_config_changes(), 1, "no configuration change notification, or too many");
    assert_ne!(guest.device().config_generation(), *generation, "the same generation");
    let info = kit::words(&guest.command(&Request::display_info()).ok());
    guest.device().write_config(4, &1u32.to_le_bytes());
    assert_eq!(events(guest), 0);
    *generation = guest.device().config_generation();
    info
}

#[test]
fn spec_08_a_display_that_comes_changes_or_goes_is_told_by_event_notification_and_generation() {
    let mut guest = Guest::start(Builder::new().scanouts(3));
    let mut generation = guest.device().config_generation();
    let (screen, _viewer) = Screen::new();
    guest.device().connect(1, Monitor::new(1024, 768), screen).wait().expect("a device").expect("a display");
    // x, y, width, height, enabled, flags of the second scanout.
    assert_eq!(told(&mut guest, &mut generation)[6..12], [0, 0, 1024, 768, 1, 0]);
    let monitor = Monitor { position: (5, 6), ..Monitor::new(1920, 1080) };
    guest.device().change_monitor(1, monitor).wait().expect("a device").expect("a monitor");
    assert_eq!(told(&mut guest, &mut generation)[6..12], [5, 6, 1920, 1080, 1, 0]);
    let (other, _other) = Screen::new();
    guest.device().connect(1, Monitor::new(640, 480), other).wait().expect("a device").expect("a display");
    assert_eq!(told(&mut guest, &mut generation)[6..12], [0, 0, 640, 480, 1, 0]);
    assert_eq!(guest.device().disconnect(1).wait().expect("a device"), Ok(true));
    assert_eq!(told(&mut guest, &mut generation), [0; 96]);
}

#[test]
fn spec_08_what_changes_nothing_is_not_told() {
    let mut guest = Guest::start(Builder::new().scanouts(2));
    let generation = guest.device().config_generation();
    let device = guest.device();
    assert_eq!(device.disconnect(0).wait().expect("a device"), Ok(false));
    device.disconnect(2).wait().expect("a device").expect_err("no such scanout");
    device.change_monitor(0, Monitor::new(800, 600)).wait().expect("a device").expect_err("no display to change");
    device.connect(2, Monitor::new(800, 600), Screen::new().0).wait().expect("a device").expect_err("no such scanout");
    device.connect(0, Monitor::new(0, 600), Screen::new().0).wait().expect("a device").expect_err("no such monitor");
    guest.settle();
    assert_eq!((events(&guest), guest.take_config_changes()), (0, 0));
    assert_eq!(guest.device().config_generation(), generation);
}

#[test]
fn spec_08_no_notification_is_sent_before_driver_ok_or_after_a_reset() {
    let mut guest = powered_off(Builder::new().scanouts(2));
    let connect = |guest: &Guest, scanout| {
        let (screen, viewer) = Screen::new();
        guest.device().connect(scanout, Monitor::new(800, 600), screen).wait().expect("a device").expect("a display");
        viewer
    };
    let _first = connect(&guest, 0);
    guest.device().acknowledge(OFFERED).expect("features");
    let _second = connect(&guest, 1);
    assert_eq!(guest.take_config_changes(), 0, "notified before DRIVER_OK");
    guest.activate();
    guest.settle();
    assert_eq!(guest.take_config_changes(), 0, "notified of what the driver asks for when it starts");
    // An event that is pending goes with the driver that it was for.
    let _third = connect(&guest, 1);
    assert_eq!((events(&guest), guest.take_config_changes()), (1, 1));
    guest.reset();
    assert_eq!(events(&guest), 0, "an event outlived a reset");
    let _fourth = connect(&guest, 1);
    assert_eq!(guest.take_config_changes(), 0, "notified after a reset");
}

#[test]
fn spec_08_a_driver_that_is_notified_never_finds_the_space_unchanged() {
    let (mut guest, _viewer) = kit::with_screen();
    for round in 0..200 {
        let changed = guest.device().change_monitor(0, Monitor::new(800 + round, 600));
        let started = Instant::now();
        while guest.take_config_changes() == 0 {
            assert!(started.elapsed() < DEADLINE, "no notification");
        }
        assert_eq!(events(&guest), 1);
        changed.wait().expect("a device").expect("a monitor");
        let info = kit::words(&guest.command(&Request::display_info()).ok());
        assert_eq!(info[2], 800 + round);
        guest.device().write_config(4, &[1]);
    }
}

#[test]
fn spec_08_a_change_between_a_drivers_look_and_its_clearing_is_never_lost() {
    let (mut guest, _viewer) = with_event();
    // Linux asks for the displays, and clears the event last.
    guest.command(&Request::display_info()).ok();
    guest.device().change_monitor(0, Monitor::new(1280, 720)).wait().expect("a device").expect("a monitor");
    let _ = guest.take_config_changes();
    guest.device().write_config(4, &1u32.to_le_bytes());
    assert_eq!(events(&guest), 1, "the second change is lost");
    // What the VMM asks is answered in order, and the notification was asked for first.
    guest.device().exported([0; 16]).wait().expect("a device").expect("an answer");
    assert_eq!(guest.take_config_changes(), 1, "the driver is not notified of it");
    guest.command(&Request::display_info()).ok();
    guest.device().write_config(4, &1u32.to_le_bytes());
    assert_eq!(events(&guest), 0);
}
