//! A guest program that writes wherever it can reach: all over a read-only camera buffer, and all over the window's gaps.
//! Its guest has two processors and RAM on both sides of the hole below 4 GiB.

use super::vm::{Vm, figure};
use crate::exporters::{CAMERA, say};

#[test]
fn a_vandal_never_reaches_the_host_or_another_buffer() {
    let commands = "
[ $(nproc) = 2 ] && grep -q '^1.*System RAM' /proc/iomem || exit 1
lab-guest vandal --frames 8 && lab-guest camera --frames 8
";
    let ended = Vm::start(&["--camera", CAMERA, "--memory", "3073", "--cpus", "2"], commands).end();
    ended.expect_success();
    // The host hashes the vandalised buffer after the guest has written to it: a write that got through is a mismatch.
    let accounts = ended.vmm("vmm: camera frames=");
    let [vandal, after] = accounts[..] else { panic!("{accounts:?}") };
    for account in [vandal, after] {
        assert_eq!(figure(account, "zero") + figure(account, "mismatched"), 0, "{:#?}", ended.heard);
    }
    let (frames, buffers) = (figure(vandal, "frames"), figure(vandal, "buffers"));
    assert_eq!((frames, figure(after, "frames")), (1 + 8 + 8, 8));
    assert!(buffers >= 4, "{vandal}");
    let told = ended.console("guest: vandal frames=");
    let gaps = figure(told[0], "gaps");
    assert!(gaps > 128 << 20, "most of the window is gaps: {told:?}");
    say(&format!("vandal frames={frames} buffers={buffers} mismatched=0 gaps={gaps}"));
}
