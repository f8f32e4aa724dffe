//! A guest that touches the window where no blob is: it lives on over scratch memory, and where gaps deny access the VMM
//! says what has ended it.

use super::vm::Vm;
use crate::exporters::{CAMERA, say};

#[test]
fn a_touch_of_a_gap_never_ends_a_guest_over_scratch_memory() {
    let ended = Vm::start(&["--camera", CAMERA], "lab-guest gap && lab-guest camera --frames 4").end();
    ended.expect_success();
    assert_eq!(ended.console("guest: gap lives").len(), 1, "{:#?}", ended.heard);
    say("gaps filler=scratch lives=yes");
}

#[test]
fn a_touch_of_a_denied_gap_never_ends_as_a_bare_fault() {
    let ended = Vm::start(&["--gaps", "deny", "--cpus", "2"], "lab-guest gap").end();
    assert_eq!(ended.status.code(), Some(1), "{:#?}", ended.heard);
    assert_eq!(ended.console("guest: gap touching").len(), 1, "{:#?}", ended.heard);
    assert!(ended.console("guest: gap lives").is_empty());
    let said = ended.vmm("vmm: the instruction at 0x");
    let named = |line: &str| line.contains("touched guest memory") && line.contains("--gaps deny");
    assert!(matches!(said[..], [line] if named(line)), "{:#?}", ended.heard);
    say("gaps filler=deny named=yes");
}
