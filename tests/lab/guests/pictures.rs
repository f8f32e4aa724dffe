//! What a guest shows: its kernel's console, and a program's pictures, pixel by pixel. Pictures that change in part, page
//! flips, cursors, displays that are plugged in, out, and become larger.

use super::pattern::{cursor_pixel, pixel};
use super::shown::{Desktop, Png};
use super::vm::{figure, traced};
use crate::exporters::say;

/// The console without what blinks, with words on it; and the program that draws what it is told.
const COMMANDS: &str = "
echo 0 >/sys/class/graphics/fbcon/cursor_blink
printf '\\033[?25l' >/dev/tty1
for line in $(seq 30); do echo \"Line $line of what a kernel's console shows, and of no picture.\" >/dev/tty1; done
lab-guest console || exit 1
pause console
lab-guest screens </dev/ttyS0 || exit 1
";

/// What the first of two screens is.
const FIRST: (u32, u32) = (1024, 768);
const SECOND: (u32, u32) = (800, 600);
const LARGER: (u32, u32) = (1280, 800);
const CREATE_2D: u32 = 0x101;
const SET_SCANOUT: u32 = 0x103;
const SET_SCANOUT_BLOB: u32 = 0x10d;
/// Where the part of a larger picture begins.
const PART_X: u32 = 37;
const PART_Y: u32 = 21;

/// The console is on the display as it lies in the guest's memory.
fn expect_console(desktop: &mut Desktop) {
    desktop.vm.pauses("console", 0);
    let line = desktop.vm.said("guest: console ");
    let words: Vec<&str> = line.split_whitespace().collect();
    let hash = words.iter().find_map(|word| word.strip_prefix("hash=")).expect("a hash");
    let hash = u64::from_str_radix(hash, 16).expect("a number");
    let (png, same) = desktop.wait_for("scanout-0", |png| png.hash() == hash);
    let lit = png.pixels.iter().filter(|pixel| **pixel != 0).count();
    say(&format!("console mode={}x{} lit={lit} same={same}", png.size.0, png.size.1));
    assert!(same, "the console is another one in the guest: {line}");
    assert_eq!(words[2], format!("{}x{}", png.size.0, png.size.1));
    // Some hundred characters, each of some ten pixels.
    assert!(lit > 5000 && lit == figure(&line, "lit") as usize, "{line}");
}

/// A picture in the mode that the screen prefers.
fn expect_picture(desktop: &mut Desktop, scanout: u32, size: (u32, u32), seed: u32) {
    desktop.order(&format!("draw {scanout} {seed}"));
    desktop.expect("picture", scanout, size, |x, y| pixel(seed, x, y));
}

/// A part of a picture that is larger than the screen.
fn expect_part(desktop: &mut Desktop, scanout: u32, size: (u32, u32), seed: u32) {
    desktop.order(&format!("part {scanout} {seed} {PART_X} {PART_Y}"));
    desktop.expect("part", scanout, size, part(seed));
}

fn part(seed: u32) -> impl Fn(u32, u32) -> u32 {
    move |x, y| pixel(seed, x + PART_X, y + PART_Y)
}

/// A picture that is drawn over, and one that comes by a page flip.
fn expect_changes(desktop: &mut Desktop, scanout: u32, size: (u32, u32), seed: u32) {
    desktop.order(&format!("dirty {scanout} {seed}"));
    desktop.expect("drawn over", scanout, size, |x, y| pixel(seed, x, y));
    desktop.order(&format!("flip {scanout} {}", seed + 1));
    desktop.expect("flip", scanout, size, |x, y| pixel(seed + 1, x, y));
}

/// A cursor with its hotspot, wherever it moves, until it is hidden.
fn expect_cursor(desktop: &mut Desktop, scanout: u32, seed: u32) {
    let name = format!("scanout-{scanout}-cursor");
    desktop.order(&format!("cursor {scanout} {seed} 5 60"));
    for position in ["100 120", "-20 -30", "700 500"] {
        desktop.order(&format!("move {scanout} {position}"));
        let good = |png: &Png| {
            png.wrong((64, 64), |x, y| cursor_pixel(seed, x, y)) == 0
                && (png.text("Hotspot"), png.text("Position")) == ("5 60", position)
        };
        let (png, comes) = desktop.wait_for(&name, good);
        let wrong = png.wrong((64, 64), |x, y| cursor_pixel(seed, x, y));
        let (hotspot, at) = (png.text("Hotspot").replace(' ', ","), png.text("Position").replace(' ', ","));
        say(&format!("cursor scanout={scanout} at={at} hotspot={hotspot} wrong={wrong}"));
        assert!(comes, "a cursor at {position}");
    }
    desktop.order(&format!("hide {scanout}"));
    desktop.expect_none(&name);
}

/// A display that becomes larger: the guest hears of it, and draws in the new mode.
fn expect_resize(desktop: &mut Desktop, seed: u32) {
    assert_eq!(desktop.control("screen 0 1280x800"), "ok");
    desktop.order("await 0 1280x800");
    desktop.order(&format!("draw 0 {seed}"));
    desktop.expect("resized", 0, LARGER, |x, y| pixel(seed, x, y));
}

#[test]
fn what_a_guest_draws_is_never_shown_otherwise() {
    let mut desktop = Desktop::start(&["--screen", "1024x768", "--screen", "800x600"], COMMANDS);
    expect_console(&mut desktop);
    // The kernel shows one console on both displays: the second has room for less of it.
    let (console, _) = desktop.wait_for("scanout-0", |_| true);
    let at = |x: u32, y: u32| console.pixels[(y * FIRST.0 + x) as usize];
    desktop.expect("console in part", 1, SECOND, at);
    desktop.vm.resume();

    desktop.screens_are_ready();
    expect_picture(&mut desktop, 0, FIRST, 10);
    expect_changes(&mut desktop, 0, FIRST, 11);
    expect_part(&mut desktop, 0, FIRST, 13);
    expect_picture(&mut desktop, 1, SECOND, 20);
    expect_part(&mut desktop, 1, SECOND, 21);
    desktop.expect("beside it", 0, FIRST, part(13));
    expect_cursor(&mut desktop, 0, 30);
    expect_cursor(&mut desktop, 1, 31);

    expect_resize(&mut desktop, 40);
    assert_eq!(desktop.control("unplug 0"), "ok");
    assert_eq!(desktop.control("unplug 0"), "error nothing is connected there");
    desktop.order("await 0 off");
    assert_eq!(desktop.control("screen 0 1024x768"), "ok");
    // What the guest went on showing is there before it draws again.
    desktop.expect("plugged in", 0, LARGER, |x, y| pixel(40, x, y));
    desktop.order("await 0 1024x768");
    expect_picture(&mut desktop, 0, FIRST, 50);
    desktop.expect("beside it", 1, SECOND, part(21));
    desktop.vm.tell("quit");
    let (ended, trace) = desktop.end();
    assert!(traced(&trace, CREATE_2D) > 0 && traced(&trace, SET_SCANOUT) > 0, "no 2D resource was shown");
    for name in ["name=\"Screen 0\"", "name=\"Screen 1\""] {
        let told = ended.console("guest: screen ");
        assert!(told.iter().any(|line| line.ends_with(name)), "{name} among {told:#?}");
    }
}

#[test]
fn a_picture_in_a_blob_of_the_guest_is_never_shown_otherwise() {
    let mut desktop = Desktop::start(&["--screen", "1024x768", "--no-3d"], COMMANDS);
    expect_console(&mut desktop);
    desktop.vm.resume();
    desktop.screens_are_ready();
    expect_picture(&mut desktop, 0, FIRST, 60);
    expect_changes(&mut desktop, 0, FIRST, 61);
    expect_part(&mut desktop, 0, FIRST, 63);
    expect_cursor(&mut desktop, 0, 70);
    expect_resize(&mut desktop, 80);
    desktop.vm.tell("quit");
    let (_, trace) = desktop.end();
    assert!(traced(&trace, SET_SCANOUT_BLOB) > 0 && traced(&trace, CREATE_2D) == 0, "the guest shows no blobs");
}
