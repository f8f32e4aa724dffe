//! EDIDs as guests get them over the wire, in the eyes of `edid-decode`, which knows VESA's standards by heart. Needs that
//! program (Debian's package has its name), so `cargo test` leaves it out and CI runs it.
#![cfg(feature = "testing")]

use std::io::Write;
use std::process::{Command, Stdio};

use virtio_gpu_uring::testing::{Guest, Request};
use virtio_gpu_uring::{Builder, Mode, Monitor, NullDisplay};

/// Displays that a device has at most.
const SCANOUTS: usize = 16;

const fn mode(width: u32, height: u32, refresh: u32) -> Mode {
    Mode { width, height, refresh }
}

/// A monitor as usual, but for its preferred mode.
fn monitor(preferred: Mode) -> Monitor {
    Monitor { preferred, ..Monitor::new(preferred.width, preferred.height) }
}

/// What GET_EDID answers for each monitor, on a device that has them all.
fn edids_of(monitors: &[Monitor]) -> Vec<Vec<u8>> {
    let mut edids = Vec::new();
    for monitors in monitors.chunks(SCANOUTS) {
        let connect = |builder: Builder, (scanout, monitor): (usize, &Monitor)| {
            builder.display(scanout as u32, monitor.clone(), NullDisplay)
        };
        let mut guest = Guest::start(monitors.iter().enumerate().fold(Builder::new(), connect));
        for scanout in 0..monitors.len() as u32 {
            let payload = guest.command(&Request::get_edid(scanout)).ok();
            assert_eq!(payload.len(), 8 + 1024);
            let size = u32::from_le_bytes(payload[..4].try_into().expect("four bytes")) as usize;
            assert!(payload[8 + size..].iter().all(|byte| *byte == 0), "something after {size} bytes of EDID");
            edids.push(payload[8..][..size].to_vec());
        }
    }
    edids
}

/// What the program says of an EDID, and whether that conforms.
fn decode(edid: &[u8]) -> (String, bool) {
    let arguments = ["--check", "--skip-hex-dump", "--preferred-timings", "--native-resolution"];
    let started = Command::new("edid-decode").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child =
        started.unwrap_or_else(|error| panic!("edid-decode is needed (Debian's package edid-decode): {error}"));
    child.stdin.take().expect("a pipe").write_all(edid).expect("an EDID that it reads to the end");
    let output = child.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let conforms = output.status.success() && said.contains("\nEDID conformity: PASS\n");
    (said, conforms)
}

/// Asserts that all conform, and hands out what the program says of each.
fn decode_all(monitors: &[Monitor]) -> Vec<String> {
    let edids = edids_of(monitors);
    assert_eq!(edids.len(), monitors.len());
    let said = |(edid, monitor): (&Vec<u8>, &Monitor)| {
        let (said, conforms) = decode(edid);
        assert!(conforms, "{monitor:?}\n{said}");
        said
    };
    edids.iter().zip(monitors).map(said).collect()
}

/// The line after the last that begins so.
fn after<'a>(said: &'a str, begin: &str) -> &'a str {
    let lines: Vec<&str> = said.lines().collect();
    let at = lines.iter().rposition(|line| line.starts_with(begin));
    lines[at.unwrap_or_else(|| panic!("no {begin:?} in:\n{said}")) + 1].trim()
}

/// Asserts that a guest that reads all blocks prefers this mode, and takes it for the native one.
fn assert_preferred(said: &str, mode: Mode) {
    let Mode { width, height, refresh } = mode;
    let line = after(said, "Preferred Video Timing");
    let words: Vec<&str> = line.split_whitespace().collect();
    let size = words.iter().position(|word| *word == format!("{width}x{height}"));
    let hertz: f64 = size.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or_else(|| panic!("{mode}: {line}"));
    assert!((hertz - f64::from(refresh)).abs() < 0.5, "{mode}: {line}");
    assert_eq!(after(said, "Native Video Resolution"), format!("{width}x{height}"));
}

/// Whether it names a mode of this size and 60 Hz anywhere.
fn offers(said: &str, width: u32, height: u32) -> bool {
    let size = format!(" {width}x{height} ");
    said.lines().filter(|line| line.contains(&size)).any(|line| line.contains(" 59.") || line.contains(" 60."))
}

#[test]
fn no_usual_monitor_gives_reason_to_complain() {
    let modes = [
        mode(1024, 768, 60),
        mode(1280, 800, 60),
        mode(1366, 768, 60),
        mode(1920, 1080, 60),
        mode(1920, 1200, 60),
        mode(2560, 1440, 60),
        mode(3840, 2160, 60),
        mode(7680, 4320, 60),
        mode(5120, 1440, 60),
        mode(1080, 1920, 60),
        mode(1234, 567, 60),
        mode(1920, 1080, 120),
        mode(1920, 1080, 144),
        mode(2560, 1440, 240),
        mode(3840, 2160, 144),
        mode(7680, 4320, 120),
    ];
    let monitors = modes.map(monitor);
    for (said, mode) in decode_all(&monitors).iter().zip(modes) {
        assert!(!said.contains("\nWarnings:"), "{mode}:\n{said}");
        assert_preferred(said, mode);
        for Mode { width, height, .. } in Monitor::new(640, 480).modes {
            assert!(offers(said, width, height), "{width}x{height} is lost:\n{said}");
        }
        assert!(said.contains("Display Product Name: 'virtio-gpu'\n") && said.contains("Manufacturer: VGU\n"));
    }
}

#[test]
fn no_size_refresh_or_list_of_modes_breaks_the_standards() {
    let sides = [1, 63, 64, 200, 321, 640, 1080, 2161, 4095, 4096, 8192, 16384];
    let mut monitors = Vec::new();
    for (row, &width) in sides.iter().enumerate() {
        for (column, &height) in sides.iter().enumerate().filter(|(column, _)| (row + column) % 2 == 0) {
            let refresh = if width * height > 1 << 24 { 60 } else { [60, 75, 30, 1, 144, 240][(row * 2 + column) % 6] };
            let modes = (0..(row + column) as u32).map(|nth| mode(width.min(8000) + nth, 600 + 40 * nth, 60 + nth % 3));
            monitors.push(Monitor { modes: modes.collect(), ..monitor(mode(width, height, refresh)) });
        }
    }
    for (said, monitor) in decode_all(&monitors).iter().zip(&monitors) {
        let Mode { width, height, .. } = monitor.preferred;
        assert_eq!(after(said, "Native Video Resolution"), format!("{width}x{height}"));
    }
}

#[test]
fn no_name_is_misread() {
    let names = [
        ("x", "x"),
        ("exactly 13 ch", "exactly 13 ch"),
        ("more than thirteen", "more than thi"),
        ("  padded  ", "padded"),
        ("Büro\n你好", "B?ro???"),
        ("", "virtio-gpu"),
    ];
    let monitors = names.map(|(name, _)| Monitor { name: name.to_owned(), ..Monitor::new(1920, 1080) });
    for (said, (name, shown)) in decode_all(&monitors).iter().zip(names) {
        assert!(said.contains(&format!("Display Product Name: '{shown}'\n")), "{name:?}:\n{said}");
    }
}

#[test]
fn no_serial_number_or_size_is_misread() {
    let sizes = [
        ((600, 340), "Maximum image size: 60 cm x 34 cm\n"),
        ((2554, 1004), "Maximum image size: 255 cm x 100 cm\n"),
        ((0, 0), "Image size is variable\n"),
        ((300, 0), "Image size is variable\n"),
        ((5000, 3000), "Image size is variable\n"),
    ];
    let monitors =
        sizes.map(|(size, _)| Monitor { size_mm: Some(size), serial: 0xfedc_ba98, ..Monitor::new(3840, 2160) });
    for (said, (size, shown)) in decode_all(&monitors).iter().zip(sizes) {
        assert!(said.contains(shown), "{size:?}:\n{said}");
        assert!(said.contains("Serial Number: 4275878552"), "{said}");
    }
}

#[test]
fn an_edid_that_is_wrong_does_not_pass() {
    let [mut edid] = <[Vec<u8>; 1]>::try_from(edids_of(&[Monitor::new(7680, 4320)])).expect("one EDID");
    assert!(decode(&edid).1);
    edid[200] ^= 1;
    assert!(!decode(&edid).1, "a bit of an extension block was turned over");
}
