//! Debian's modetest (libdrm-tests) in the guest: its test picture, and the cursor that it moves over it.

use std::collections::HashSet;

use super::shown::Desktop;
use super::vm::figure;
use crate::exporters::say;

const SIZE: (u32, u32) = (1024, 768);

/// How many places of the cursor are waited for.
const PLACES: usize = 5;

/// Modetest waits for a key: the end of its input is one, too.
const COMMANDS: &str = "
connector=$(modetest -M virtio_gpu -c | awk '$3 == \"connected\" { print $1; exit }')
mkfifo /tmp/keys
modetest -M virtio_gpu -s $connector:1024x768 -C </tmp/keys >/tmp/said 2>&1 & modetest=$!
exec 3>/tmp/keys
pause shown
exec 3>&-
wait $modetest || { cat /tmp/said; exit 1; }
grep '^setting mode' /tmp/said
";

/// The SMPTE bars as modetest paints them (libdrm, tests/util/pattern.c): three bands.
fn bars((x, y): (u32, u32)) -> u32 {
    let (width, height) = SIZE;
    const TOP: [u32; 7] = [0xc0c0c0, 0xc0c000, 0x00c0c0, 0x00c000, 0xc000c0, 0xc00000, 0x0000c0];
    const MIDDLE: [u32; 7] = [0x0000c0, 0x131313, 0xc000c0, 0x131313, 0x00c0c0, 0x131313, 0xc0c0c0];
    const BOTTOM: [u32; 8] = [0x00214c, 0xffffff, 0x32006a, 0x131313, 0x090909, 0x131313, 0x1d1d1d, 0x131313];
    if y < height * 6 / 9 {
        return TOP[(x * 7 / width) as usize];
    }
    if y < height * 7 / 9 {
        return MIDDLE[(x * 7 / width) as usize];
    }
    let of_bottom = if x < width * 5 / 7 {
        x * 4 / (width * 5 / 7)
    } else if x < width * 6 / 7 {
        (x - width * 5 / 7) * 3 / (width / 7) + 4
    } else {
        7
    };
    BOTTOM[of_bottom as usize]
}

#[test]
fn modetests_picture_and_its_cursor_are_never_shown_otherwise() {
    let mut desktop = Desktop::start(&["--screen", "1024x768"], COMMANDS);
    desktop.vm.pauses("shown", 0);
    desktop.expect("modetest", 0, SIZE, |x, y| bars((x, y)));
    let mut places = HashSet::new();
    while places.len() < PLACES {
        let (cursor, new) = desktop.wait_for("scanout-0-cursor", |cursor| !places.contains(cursor.text("Position")));
        assert!(new, "the cursor stands still at {}", cursor.text("Position"));
        assert_eq!(cursor.wrong((64, 64), |_, _| 0x7777_7777), 0, "the cursor's image");
        assert_eq!(cursor.text("Hotspot"), "0 0");
        places.insert(cursor.text("Position").to_owned());
    }
    desktop.vm.resume();
    let (ended, _) = desktop.end();
    assert_eq!(ended.console("setting mode 1024x768").len(), 1, "{:#?}", ended.heard);
    let account = ended.vmm("vmm: screen 0 ")[0];
    let (cursors, moves) = (figure(account, "cursors"), figure(account, "moves"));
    assert!(cursors > 0 && moves >= PLACES as u64, "{account}");
    say(&format!("modetest cursor places={} cursors={cursors} moves={moves} wrong=0", places.len()));
}
