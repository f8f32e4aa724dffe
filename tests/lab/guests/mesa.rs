//! Linux guests whose OpenGL and Vulkan are the host's: Mesa's drivers for a virtio-gpu in the guest, virglrenderer behind the
//! device. The guest's pictures are exact ones, and are compared in the guest, by what it says of them, and on a display.

mod picture;

use std::time::{Duration, Instant};

use self::picture::{hash, pixel};
use super::shown::Desktop;
use super::vm::{Vm, figure, open_files};
use crate::exporters::say;

/// One program, two at the same time, one after another that is killed at work, and after the driver's own end and return.
const DRAWING: &str = "
. mesa.sh
inside eglinfo -B -p surfaceless && inside eglinfo -B -p gbm || exit 1
inside virgl-client draw || exit 1
rest && pause alone
draw_beside_another || exit 1
kill_at_work 'virgl-client: ok blit' virgl-client draw 256 128 4000 && inside virgl-client draw || exit 1
rest && pause killed
reload && inside virgl-client draw || exit 1
";

const SHOWING: &str = "
. mesa.sh
chroot /mesa virgl-client show </dev/ttyS0
";

/// The same with Vulkan.
const COMPUTING: &str = "
. mesa.sh
inside eglinfo -B -p surfaceless && inside vulkaninfo --summary >/tmp/vulkan || exit 1
grep '^[[:space:]]*\\(device\\|driver\\)Name ' /tmp/vulkan
inside venus-client || exit 1
rest && pause alone
kill_at_work 'venus-client: ok buffers round=2' venus-client 4000 && inside venus-client || exit 1
rest && pause killed
reload && inside venus-client || exit 1
";

/// What the GL program draws where nobody says anything else, and the seeds of its pictures.
const DRAWN: (u32, u32) = (256, 128);
const SEEDS: [u32; 2] = [1, 2];
const SCREEN: (u32, u32) = (640, 480);
/// More descriptors than one program's buffers take on the host, and fewer than those of two.
const ONE_PROGRAM: usize = 16;
/// What has not gone from the window by then stays there.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every renderer's name that eglinfo tells, in as many platforms as were asked for, is virgl's.
fn expect_virgl(console: &[String], platforms: usize) -> String {
    let names: Vec<_> = console.iter().filter_map(|line| Some(line.split_once(" renderer: ")?.1)).collect();
    assert!(names.len() >= 2 * platforms && names.iter().all(|name| name.starts_with("virgl (")), "{console:#?}");
    names[0].to_owned()
}

/// All pictures are right, by the program's own words and by their hashes.
fn expect_pictures(console: &[String], runs: usize) -> usize {
    let said = |way: &str, hash: u64, seed: u32| {
        let (width, height) = DRAWN;
        let line = format!("virgl-client: ok {way} seed={seed} size={width}x{height} wrong=0 hash={hash:016x}");
        let count = console.iter().filter(|heard| **heard == line).count();
        assert_eq!(count, runs, "{line:?}: {console:#?}");
        count
    };
    let pictures = SEEDS.map(|seed| {
        let upright = hash(DRAWN, |x, y| pixel(seed, x, y));
        let flipped = hash(DRAWN, |x, y| pixel(seed, x, DRAWN.1 - 1 - y));
        said("read", upright, seed) + said("buffer", upright, seed) + said("blit", flipped, seed)
    });
    let ends = console.iter().filter(|line| *line == "virgl-client: ok all").count();
    assert_eq!(ends, runs, "{console:#?}");
    pictures.iter().sum()
}

/// Waits until the VMM has dma-bufs in its window, or none.
#[track_caller]
fn expect_in_window(vm: &mut Vm, some: bool) {
    let deadline = Instant::now() + PATIENCE;
    while (vm.dma_bufs_in_window() > 0) != some {
        assert!(Instant::now() < deadline, "{} dma-bufs in the window", vm.dma_bufs_in_window());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(vm.window_is_whole(), "a hole in the window: {}", vm.maps());
}

/// Programs that were killed leave no more behind than one alone may: with llvmpipe, descriptors of a program's last buffers now
/// and then stay open until the next one draws. Whether there are dma-bufs in the window is another matter with Vulkan than with OpenGL.
fn expect_nothing_left(vm: &mut Vm, in_window: bool) {
    vm.pauses("alone", 0);
    expect_in_window(vm, false);
    let alone = open_files(vm.id()).len();
    vm.resume();
    for turn in 1..=3 {
        vm.pauses(&format!("working{turn}"), 0);
        expect_in_window(vm, in_window);
        vm.resume();
    }
    vm.pauses("killed", 0);
    expect_in_window(vm, false);
    let killed = open_files(vm.id());
    assert!(killed.len() <= alone + ONE_PROGRAM, "{} descriptors became {}: {killed:#?}", alone, killed.len());
    vm.resume();
}

#[test]
fn what_opengl_draws_in_a_guest_is_never_another_picture() {
    let begin = Instant::now();
    let mut vm = Vm::start(&["--renderer", "virgl"], DRAWING);
    expect_nothing_left(&mut vm, false);
    let ended = vm.end();
    ended.expect_success();
    let eglinfo = expect_virgl(&ended.heard.console, 2);
    let pictures = expect_pictures(&ended.heard.console, 5);
    let errors = figure(ended.vmm("vmm: device ")[0], "errors");
    assert_eq!(errors, 0, "{:#?}", ended.heard);
    say(&format!("mesa eglinfo={eglinfo:?} pictures={pictures} wrong=0 seconds={}", begin.elapsed().as_secs()));
}

#[test]
fn what_opengl_draws_on_a_display_is_never_another_picture() {
    let begin = Instant::now();
    let mut desktop = Desktop::start(&["--screen", "640x480", "--renderer", "virgl"], SHOWING);
    desktop.vm.says("virgl-client: screen 640x480");
    for seed in 1..6 {
        desktop.vm.tell(&seed.to_string());
        desktop.vm.says(&format!("virgl-client: shown seed={seed} "));
        desktop.expect("mesa picture", 0, SCREEN, |x, y| pixel(seed, x, SCREEN.1 - 1 - y));
    }
    desktop.vm.tell("0");
    let _ = desktop.end();
    say(&format!("mesa pictures=5 wrong=0 on a display seconds={}", begin.elapsed().as_secs()));
}

#[test]
fn what_vulkan_writes_in_a_guest_is_never_other_bytes() {
    let begin = Instant::now();
    let mut vm = Vm::start(&["--renderer", "virgl,venus"], COMPUTING);
    expect_nothing_left(&mut vm, true);
    let ended = vm.end();
    ended.expect_success();
    let console = &ended.heard.console;
    let eglinfo = expect_virgl(console, 1);
    let word = |name: &str| {
        let value = |line: &String| Some(line.trim_start().strip_prefix(name)?.split_once("= ")?.1.to_owned());
        console.iter().filter_map(value).collect::<Vec<_>>()
    };
    let (devices, drivers) = (word("deviceName"), word("driverName"));
    assert!(devices.iter().all(|device| device.starts_with("Virtio-GPU Venus (")), "{devices:?}");
    assert_eq!(drivers, ["venus"], "{console:#?}");
    let ways = ["buffers", "image"].map(|way| ended.console(&format!("venus-client: ok {way} ")).len());
    assert_eq!((ways, ended.console("venus-client: ok all").len()), ([9, 9], 3), "{console:#?}");
    let device = ended.vmm("vmm: device ")[0];
    let (maps, unmaps, errors) = (figure(device, "maps"), figure(device, "unmaps"), figure(device, "errors"));
    assert!(maps > 0 && maps == unmaps && errors == 0, "{:#?}", ended.heard);
    let (name, seconds) = (&devices[0], begin.elapsed().as_secs());
    say(&format!("mesa vulkaninfo={name:?} eglinfo={eglinfo:?} rounds=9 wrong=0 maps={maps} seconds={seconds}"));
}
