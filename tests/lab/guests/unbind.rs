//! A driver that is taken from its device while a program has blobs mapped: Linux sends neither UNMAP nor UNREF then, only
//! status 0. It is the device alone that empties the window and closes what the guest has held.

use super::vm::{Vm, figure};
use crate::exporters::{CAMERA, say};

const COMMANDS: &str = "
watch || exit 1
pause watching
cd /sys/bus/virtio/drivers/virtio_gpu
device=$(echo virtio[0-9]*)
echo $device >unbind
[ ! -e $device ] || exit 1
pause unbound
slay 2>/dev/null
[ ! -e /dev/dri/card0 ] || exit 1
echo $device >bind
appear && lab-guest camera --frames 8 || exit 1
";

#[test]
fn a_driver_that_is_unbound_under_live_mappings_never_leaves_them() {
    let mut vm = Vm::start(&["--camera", CAMERA], COMMANDS);
    vm.pauses("watching", 0);
    let mapped = vm.dma_bufs_in_window();
    assert_eq!(mapped, 4, "buffers of the camera in the window");
    vm.resume();
    vm.pauses("unbound", 1);
    vm.expect_no_dma_buf();
    assert!(vm.window_is_whole(), "a hole in the window");
    vm.resume();
    let ended = vm.end();
    // What Linux finds wrong is its own: it frees its allocators under the blobs that are mapped, and under the commands
    // that wait to be answered, which a reset drops.
    ended.expect_success_but(&["drm_mm", "kmem_cache_", "BUG virtio-gpu-vbufs"]);
    let accounts = ended.vmm("vmm: camera frames=");
    let [unbound, after] = accounts[..] else { panic!("{:#?}", ended.heard) };
    for account in [unbound, after] {
        assert_eq!(figure(account, "zero") + figure(account, "mismatched"), 0, "{:#?}", ended.heard);
    }
    assert_eq!(figure(after, "frames"), 8);
    let device = ended.vmm("vmm: device ")[0];
    let never_unmapped = figure(device, "maps") - figure(device, "unmaps");
    say(&format!("unbind mapped={mapped} never-unmapped={never_unmapped} left=0 holes=0 frames-after=8"));
}
