//! What a guest draws is what QEMU shows: its console, pictures that change in part and as a whole, and again after the machine
//! stood still and after its guest started anew.

use serde_json::json;
use vmm_sys_util::tempdir::TempDir;

use crate::daemon::{Daemon, say};
use crate::machine::{Device, Machine};
use crate::pattern::pixel;
use crate::picture::{Picture, wait_for};

/// Of no default, so that it can come from the machine's own screen alone.
const SIZE: (u32, u32) = (1152, 864);
/// Where the part of a larger picture begins.
const PART: (u32, u32) = (37, 21);
/// The console without what blinks, with words on it.
const CONSOLE: &str = "echo 0 >/sys/class/graphics/fbcon/cursor_blink; printf '\\033[?25l' >/dev/tty1; \
    for line in $(seq 30); do echo \"Line $line of what a kernel's console shows, and of no picture.\" >/dev/tty1; done; \
    lab-guest console";
/// The driver lets go of the device and takes it again.
const REBIND: &str = "cd /sys/bus/virtio/drivers/virtio_gpu && name=$(echo virtio*) && echo $name >unbind && \
    [ ! -e /dev/dri/card0 ] && echo $name >bind && [ -e /dev/dri/card0 ]";

/// The guest's program that draws what it is told.
pub(crate) struct Painter<'a> {
    pub(crate) machine: &'a mut Machine,
    orders: usize,
}

impl<'a> Painter<'a> {
    /// Starts it. Answers with what it says of its screen, too.
    #[track_caller]
    pub(crate) fn start(machine: &'a mut Machine) -> (Self, String) {
        machine.tell("lab-guest screens </dev/ttyS0");
        let screen = machine.says("guest: screen 0 ");
        machine.says("guest: screens ready count=1");
        (Self { machine, orders: 0 }, screen)
    }

    #[track_caller]
    pub(crate) fn order(&mut self, order: &str) {
        self.orders += 1;
        self.machine.tell(order);
        let done = format!("guest: done {} {order}", self.orders);
        self.machine.says(&done);
    }

    /// Has it draw, and waits until QEMU shows that; answers with how many pixels are wrong.
    #[track_caller]
    pub(crate) fn expect(&mut self, order: &str, size: (u32, u32), pixel: impl Fn(u32, u32) -> u32) -> usize {
        self.order(order);
        let (picture, comes) = self.machine.wait_for(|picture| picture.wrong(size, &pixel) == 0);
        let wrong = picture.wrong(size, &pixel);
        assert!(comes, "{order}: {wrong} of {size:?} pixels are wrong, the screen is {:?}", picture.size);
        wrong
    }

    /// Ends it; the guest's shell is back.
    #[track_caller]
    pub(crate) fn quit(self) {
        self.machine.tell("quit");
        assert_eq!(self.machine.says("guest: status "), "guest: status 0");
    }
}

/// The console is on QEMU's screen as it lies in the guest's memory, and has words on it.
#[track_caller]
fn expect_console(machine: &mut Machine) -> usize {
    machine.tell(CONSOLE);
    let line = machine.says("guest: console ");
    machine.says("guest: status 0");
    let hash = line.split_whitespace().find_map(|word| word.strip_prefix("hash=")).expect("a hash");
    let hash = u64::from_str_radix(hash, 16).expect("a number");
    let (picture, same) = machine.wait_for(|picture| picture.hash() == hash);
    let lit = picture.lit();
    assert!(same, "the console is another one in the guest: {line}; on the screen {lit} pixels are lit");
    // Some hundred characters, each of some ten pixels.
    assert!(lit > 5000, "{line}");
    lit
}

/// A picture, the same changed, another by a page flip, and a part of a larger one.
#[track_caller]
fn expect_pictures(machine: &mut Machine, seed: u32) -> String {
    let (mut painter, screen) = Painter::start(machine);
    let (width, height) = SIZE;
    let mut wrong = painter.expect(&format!("draw 0 {seed}"), SIZE, |x, y| pixel(seed, x, y));
    wrong += painter.expect(&format!("dirty 0 {}", seed + 1), SIZE, |x, y| pixel(seed + 1, x, y));
    wrong += painter.expect(&format!("flip 0 {}", seed + 2), SIZE, |x, y| pixel(seed + 2, x, y));
    let part = |x, y| pixel(seed + 3, x + PART.0, y + PART.1);
    wrong += painter.expect(&format!("part 0 {} {} {}", seed + 3, PART.0, PART.1), SIZE, part);
    // A cursor is no part of the screen, and a QEMU without windows has it nowhere.
    for order in ["cursor 0 30 5 60", "move 0 100 120", "move 0 -20 -30", "hide 0"] {
        painter.expect(order, SIZE, part);
    }
    painter.quit();
    let mode = format!(" preferred={width}x{height} ");
    assert!(screen.contains(&mode), "the screen's mode is another one: {screen}");
    assert!(!screen.contains(" edid=0 "), "there is no EDID: {screen}");
    format!("pictures=4 size={width}x{height} wrong={wrong}")
}

fn expect_all_of_it(device: Device) {
    let mut daemon = Daemon::start(&["--display", "vhost-user"]);
    let mut machine = Machine::start(device, &daemon);
    daemon.says("a front-end connected");
    let lit = expect_console(&mut machine);
    let pictures = expect_pictures(&mut machine, 10);
    say(&format!("{device} console lit={lit} {pictures}"));

    machine.qmp().run("stop", json!({}));
    machine.qmp().run("cont", json!({}));
    let pictures = expect_pictures(&mut machine, 20);
    say(&format!("{device} after=stop,cont {pictures}"));
    machine.run(REBIND);
    let pictures = expect_pictures(&mut machine, 30);
    say(&format!("{device} after=rebind {pictures}"));
    machine.expect_no_complaints();

    machine.reboot();
    let lit = expect_console(&mut machine);
    let pictures = expect_pictures(&mut machine, 40);
    say(&format!("{device} after=reboot console lit={lit} {pictures}"));
    machine.reset();
    let pictures = expect_pictures(&mut machine, 50);
    say(&format!("{device} after=reset {pictures}"));
    machine.expect_no_complaints();

    machine.quit();
    daemon.says("the front-end left");
    daemon.expect_no_guest();
    daemon.end();
}

#[test]
fn what_a_guest_draws_is_never_shown_otherwise_by_qemu_10() {
    expect_all_of_it(Device::Screen10(SIZE.0, SIZE.1));
}

#[test]
fn what_a_guest_draws_is_never_shown_otherwise_by_qemu_11() {
    expect_all_of_it(Device::Screen11(SIZE.0, SIZE.1));
}

#[test]
fn a_screen_of_the_daemons_own_never_shows_anything_else() {
    let shots = TempDir::new().expect("a temporary folder");
    let shown = format!("png:{}", shots.as_path().display());
    let (width, height) = SIZE;
    let daemon = Daemon::start(&["--display", &shown, "--size", &format!("{width}x{height}")]);
    let mut machine = Machine::start(Device::Window11, &daemon);
    let (mut painter, screen) = Painter::start(&mut machine);
    assert!(screen.contains(&format!(" preferred={width}x{height} ")), "{screen}");
    let file = shots.as_path().join("scanout-0.png");
    let mut wrong = 0;
    for (order, seed) in [("draw", 60), ("dirty", 61), ("flip", 62)] {
        painter.order(&format!("{order} 0 {seed}"));
        let good = |picture: &Picture| picture.wrong(SIZE, |x, y| pixel(seed, x, y)) == 0;
        let (picture, comes) = wait_for(|| Picture::read_png(&file), good);
        assert!(comes, "{order}: the screen is {:?}", picture.size);
        wrong += picture.wrong(SIZE, |x, y| pixel(seed, x, y));
    }
    painter.quit();
    machine.expect_no_complaints();
    machine.quit();
    daemon.end();
    say(&format!("{} display=png pictures=3 size={width}x{height} wrong={wrong}", Device::Window11));
}
