//! What a guest reads out of EDIDs, by a reader that shares nothing with the writer.

mod random;
mod reader;

use super::{MAX_DESCRIBED, edid};
use crate::display::monitor::{Mode, Monitor, MonitorError};
use reader::Edid;

const fn at(width: u32, height: u32, refresh: u32) -> Mode {
    Mode { width, height, refresh }
}

fn read(monitor: &Monitor) -> Edid {
    monitor.check().expect("a monitor that an EDID can describe");
    Edid::read(&edid(monitor))
}

fn plain(mode: Mode) -> Monitor {
    Monitor { preferred: mode, modes: Vec::new(), ..Monitor::new(0, 0) }
}

#[test]
fn no_byte_of_a_plain_base_block_differs_from_the_layout() {
    let monitor = Monitor { serial: 0x0102_0304, name: "desk".to_owned(), ..plain(at(1920, 1080, 60)) };
    #[rustfmt::skip]
    let mut expected = vec![
        0, 255, 255, 255, 255, 255, 255, 0, 0x58, 0xf5, 0x50, 0x10, 4, 3, 2, 1, 0xff, 36, 1, 4, 0xa0, 51, 29, 120, 6,
        // sRGB as the standard has it.
        0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54, 0, 0, 0,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        // 133.32 MHz, 1920 and 80, 1080 and 31; 8 and 32, 17 and 8; 508 mm by 286.
        0x14, 0x34, 0x80, 80, 0x70, 0x38, 31, 0x40, 8, 32, 0x18, 0x04, 0xfc, 0x1e, 0x11, 0, 0, 0x1a,
        0, 0, 0, 0xfc, 0, b'd', b'e', b's', b'k', b'\n', 32, 32, 32, 32, 32, 32, 32, 32,
    ];
    for _ in 0..2 {
        expected.extend([&[0, 0, 0, 0x10][..], &[0; 14]].concat());
    }
    expected.push(0);
    assert_eq!(edid(&monitor)[..127], expected);
}

#[test]
fn no_timing_strays_from_reduced_blanking() {
    // Totals and clocks of VESA's CVT 1.2 formulas: version 2, but version 1 where the last value says so.
    #[rustfmt::skip]
    let vectors = [
        (at(1920, 1080, 60), (2000, 1111), 133.32),
        (at(1920, 1080, 144), (2000, 1157), 333.22),
        (at(1920, 1080, 240), (2080, 1215), 606.5),
        (at(2560, 1440, 60), (2640, 1481), 234.59),
        (at(3840, 2160, 60), (3920, 2222), 522.61),
        (at(1366, 768, 60), (1446, 790), 68.54),
    ];
    for (mode, total, clock) in vectors {
        let first = read(&plain(mode)).descriptors[0];
        assert_eq!((first.width, first.height, first.total, first.clock), (mode.width, mode.height, total, clock));
    }
}

#[test]
fn an_8k_display_is_not_taken_for_a_smaller_one() {
    let edid = read(&Monitor::new(7680, 4320));
    assert!(!edid.native, "the first descriptor is not what the display is");
    assert_eq!(edid.extension_pixels, Some((7680, 4320)));
    let flagged: Vec<_> = edid.extension.iter().filter(|mode| mode.preferred).collect();
    let [first] = flagged[..] else { panic!("{} preferred modes in extension blocks", flagged.len()) };
    assert_eq!((first.width, first.height, first.total, first.clock), (7680, 4320, (7760, 4443), 2068.66));
    assert_eq!(
        (edid.descriptors[0].width, edid.descriptors[0].height),
        (3840, 2160),
        "the largest that has a descriptor"
    );
}

#[test]
fn a_stand_in_that_linux_drops_takes_its_mode_with_it_nowhere() {
    for (width, height) in [(7680, 4320), (5120, 1440), (5120, 2880)] {
        let edid = read(&Monitor::new(width, height));
        let first = edid.descriptors[0];
        assert!(first.preferred && (first.width, first.height) != (width, height));
        assert!(first.width <= width && first.height <= height, "{first:?}");
        let same_size = |read: &&reader::Read| (read.width, read.height) == (first.width, first.height);
        let again: Vec<_> = edid.descriptors[1..].iter().chain(&edid.extension).filter(same_size).collect();
        assert_eq!(again.len(), 1, "{first:?} is offered once more");
        assert!(!again[0].preferred && again[0].total != first.total, "in a mode of its own");
    }
}

#[test]
fn a_fast_mode_does_not_lose_its_descriptor_to_a_long_front_porch() {
    let edid = read(&plain(at(1920, 1080, 240)));
    assert!(edid.native && edid.extension.is_empty());
    assert!(edid.offers(1920, 1080, 240));
}

#[test]
fn a_mode_too_small_or_slow_for_a_descriptor_is_not_lost() {
    for mode in [at(1, 1, 60), at(63, 64, 60), at(32, 32, 60), at(1920, 1080, 1), at(16384, 1, 60), at(1, 16384, 1000)]
    {
        let edid = read(&plain(mode));
        assert!(!edid.native && edid.extension[0].preferred, "{mode:?}");
        assert!(edid.offers(mode.width, mode.height, mode.refresh) || mode.width * mode.height * mode.refresh < 4096);
        assert_eq!((edid.extension[0].width, edid.extension[0].height), (mode.width, mode.height));
        assert_eq!((edid.descriptors[0].width, edid.descriptors[0].height), (640, 480), "every display has this one");
    }
    // Nothing wraps where not even the longest line makes the clock fast enough.
    let slowest = read(&plain(at(1, 1, 1))).extension[0];
    assert_eq!((slowest.total, slowest.clock), ((0xffff, 16), 1.05));
}

#[test]
fn no_descriptor_has_a_clock_that_tools_take_for_a_mistake() {
    for mode in [at(64, 64, 60), at(320, 200, 20), at(640, 480, 15), at(320, 240, 60)] {
        let first = read(&plain(mode)).descriptors[0];
        assert_eq!((first.width, first.height), (mode.width, mode.height));
        assert!(first.clock >= 10.0, "{first:?}");
    }
}

#[test]
fn no_default_mode_is_lost() {
    for (width, height) in [(640, 480), (1280, 800), (1920, 1080), (1080, 1920), (1234, 567), (7680, 4320)] {
        let monitor = Monitor::new(width, height);
        let edid = read(&monitor);
        for Mode { width, height, refresh } in monitor.modes {
            assert!(edid.offers(width, height, refresh), "{width}x{height}");
        }
        let preferred = edid.preferred();
        assert!(preferred.iter().any(|mode| (mode.width, mode.height) == (width, height)), "{preferred:?}");
    }
}

#[test]
fn no_mode_is_offered_twice_when_listed_twice() {
    let twice =
        Monitor { modes: vec![at(800, 600, 60), at(1024, 768, 60), at(1024, 768, 60)], ..Monitor::new(1024, 768) };
    let edid = read(&twice);
    assert_eq!((edid.descriptors.len(), edid.extension.len()), (1, 0));
    assert_eq!(edid.named, [(800, 600, 60)]);
    let wide = Monitor { modes: vec![at(1366, 768, 60), at(1366, 768, 60)], ..Monitor::new(1024, 768) };
    assert_eq!(read(&wide).descriptors.len(), 2);
}

#[test]
fn no_name_leaves_its_thirteen_places() {
    let names = [
        ("x", "x"),
        ("exactly 13 ch", "exactly 13 ch"),
        ("more than thirteen", "more than thi"),
        ("twelve chars and", "twelve chars"),
        ("  padded  ", "padded"),
        ("Büro\n你好\u{7f}", "B?ro????"),
        ("", "virtio-gpu"),
        (" \t\n", "virtio-gpu"),
    ];
    for (name, shown) in names {
        let edid = read(&Monitor { name: name.to_owned(), ..Monitor::new(1920, 1080) });
        assert_eq!(edid.name, shown, "{name:?}");
    }
}

#[test]
fn a_size_that_has_no_place_is_left_open() {
    let size = |size_mm| {
        let edid = read(&Monitor { size_mm, ..Monitor::new(1920, 1080) });
        (edid.size_cm, edid.size_mm)
    };
    assert_eq!(size(None), ((51, 29), (508, 286)));
    assert_eq!(size(Some((600, 340))), ((60, 34), (600, 340)));
    assert_eq!(size(Some((2554, 5))), ((255, 1), (2554, 5)));
    for none in [(0, 0), (0, 300), (600, 0), (4, 100), (2555, 1000), (1000, u32::MAX)] {
        assert_eq!(size(Some(none)), ((0, 0), (0, 0)), "{none:?}");
    }
    for (width, height) in [(16384, 16384), (320, 240), (1920, 360)] {
        let guessed = read(&Monitor::new(width, height));
        assert_eq!((guessed.size_cm, guessed.size_mm), ((0, 0), (0, 0)), "{width}x{height}");
    }
}

#[test]
fn no_picture_is_larger_than_the_screen_or_out_of_shape() {
    let monitor = Monitor { size_mm: Some((600, 400)), ..plain(at(1920, 1080, 60)) };
    let modes = [(3840, 1080, (600, 168)), (1080, 2160, (200, 400)), (4000, 500, (600, 75)), (1500, 1000, (600, 400))];
    for (width, height, picture) in modes {
        let bytes = edid(&Monitor { modes: vec![at(width, height, 60)], ..monitor.clone() });
        let second = &bytes[72..90];
        let size =
            [(12, second[14] >> 4), (13, second[14] & 15)].map(|(low, high)| u16::from_le_bytes([second[low], high]));
        assert_eq!(size, [picture.0, picture.1], "{width}x{height}");
    }
}

#[test]
fn a_monitor_that_cannot_be_told_is_refused() {
    for (width, height) in [(0, 1), (1, 0), (16385, 1), (1, 16385), (u32::MAX, u32::MAX)] {
        let error = Err(MonitorError::Size { width, height });
        assert_eq!(Monitor::new(width, height).check(), error);
        assert_eq!(Monitor { modes: vec![at(width, height, 60)], ..Monitor::new(640, 480) }.check(), error);
    }
    for refresh in [0, 1001, u32::MAX] {
        assert_eq!(plain(at(640, 480, refresh)).check(), Err(MonitorError::Refresh { refresh }));
    }
    plain(at(16384, 16384, 60)).check().expect("the largest");
    let mode = at(16384, 16384, 61);
    assert_eq!(plain(mode).check(), Err(MonitorError::PixelClock { mode, clock_khz: 16_930_560 }));
    plain(at(16384, 1, 1000)).check().expect("the fastest");
}

#[test]
fn no_mode_too_many_is_dropped_in_silence() {
    // Each needs a timing of an extension block: wider than a descriptor can say.
    let wide = |count: u32| Monitor {
        modes: (0..count).map(|index| at(4096 + index, 2160, 60)).collect(),
        ..Monitor::new(800, 600)
    };
    let full = wide(MAX_DESCRIBED as u32);
    assert_eq!(full.modes.len(), 32);
    assert_eq!(read(&full).extension.len(), 33);
    assert_eq!(edid(&full).len(), 1024);
    assert_eq!(wide(33).check(), Err(MonitorError::TooManyModes { modes: 33, most: 32 }));
}

#[test]
fn an_edid_from_elsewhere_is_told_as_it_is_or_not_at_all() {
    let own = edid(&Monitor { modes: vec![at(4096, 2160, 60)], ..Monitor::new(800, 600) });
    assert_eq!(own.len(), 256);
    let with = |edid: Vec<u8>| Monitor { edid: Some(edid), ..Monitor::new(64, 48) };
    with(own.clone()).check().expect("an EDID");
    assert_eq!(edid(&with(own.clone())), own);
    let broken = |at: usize, value: u8| {
        let mut bytes = own.clone();
        bytes[at] = bytes[at].wrapping_add(value);
        bytes
    };
    let mut header = broken(1, 1);
    header[127] = header[127].wrapping_sub(1);
    let mut blocks = broken(126, 1);
    blocks[127] = blocks[127].wrapping_sub(1);
    let mut many = own.repeat(5);
    (many[126], many[127]) = (9, many[127].wrapping_sub(8));
    let wrong =
        [header, blocks, broken(60, 1), broken(200, 1), many, own[..128].to_vec(), own[..200].to_vec(), Vec::new()];
    for bytes in wrong {
        let len = bytes.len();
        let refused = with(bytes).check();
        assert!(matches!(refused, Err(MonitorError::Edid { len: told, .. }) if told == len), "{len}: {refused:?}");
    }
}
