//! The headline: a V4L2 camera's dma-bufs in a Linux guest, frame by frame, and whatever a guest's program may do to its
//! mappings meanwhile.

use vmm_sys_util::tempdir::TempDir;

use super::vm::{Ended, Vm, figure, traced};
use crate::exporters::{CAMERA, say};

const FRAMES: u64 = 60;
const MAP: u32 = 0x208;
const UNMAP: u32 = 0x209;

/// In this order: a program that watches, one that maps and unmaps, one that closes without unmapping, one that is killed,
/// and the driver's own end and return.
const COMMANDS: &str = "
lab-guest camera --frames 60 || exit 1
pause watched
lab-guest cycles --rounds 12 || exit 1
lab-guest leave || exit 1
pause left
watch && slay || exit 1
pause killed
lab-guest camera --frames 8 || exit 1
reload || exit 1
pause reloaded
lab-guest camera --frames 8 || exit 1
lab-guest memory-type || exit 1
";

/// The frames that the VMM has compared, connection by connection, and its account of each.
fn sessions(ended: &Ended) -> Vec<(Vec<String>, String)> {
    let mut sessions = Vec::new();
    let mut frames = Vec::new();
    for line in &ended.heard.vmm {
        if let Some(frame) = line.strip_prefix("vmm: frame ") {
            frames.push(frame.to_owned());
        } else if line.starts_with("vmm: camera frames=") {
            sessions.push((std::mem::take(&mut frames), line.clone()));
        }
    }
    sessions
}

#[test]
fn a_camera_frame_never_arrives_as_zeros_or_as_another() {
    let folder = TempDir::new().expect("a temporary folder");
    let trace = folder.as_path().join("trace");
    let mut vm = Vm::start(&["--camera", CAMERA, "--trace", trace.to_str().expect("a name in UTF-8")], COMMANDS);
    for (pause, sessions) in [("watched", 1), ("left", 3), ("killed", 4), ("reloaded", 5)] {
        vm.pauses(pause, sessions);
        vm.expect_no_dma_buf();
        assert!(vm.window_is_whole(), "a hole in the window when the guest has {pause}");
        vm.resume();
    }
    let ended = vm.end();
    ended.expect_success();

    let sessions = sessions(&ended);
    let bad = |account: &String| figure(account, "zero") + figure(account, "mismatched");
    assert!(sessions.iter().all(|(_, account)| bad(account) == 0), "{sessions:#?}");
    // What the guest has printed on its console and what the host has hashed are the same, frame by frame.
    let (compared, account) = &sessions[0];
    let printed = ended.console("guest: frame ");
    let printed = printed.iter().map(|line| format!("{} ok", &line["guest: frame ".len()..]));
    assert!(printed.take(FRAMES as usize).eq(compared.iter().cloned()), "{:#?}", ended.heard);
    assert_eq!(figure(account, "frames"), FRAMES);
    assert!(figure(account, "buffers") >= 4, "{account}");
    say(account.trim_start_matches("vmm: "));

    let frames: Vec<u64> = sessions.iter().map(|(_, account)| figure(account, "frames")).collect();
    let [_, cycles, left, killed, again, reloaded, ..] = frames[..] else { panic!("{sessions:#?}") };
    assert_eq!((cycles, again, reloaded), (12, 8, 8), "{sessions:#?}");
    assert!(left > 0 && killed > 0, "{sessions:#?}");
    assert_eq!(ended.console("guest: memory type="), ["guest: memory type=write-back"]);
    let device = ended.vmm("vmm: device ")[0];
    let (maps, unmaps) = (figure(device, "maps"), figure(device, "unmaps"));
    // Four buffers at each connection and in each cycle.
    assert!(maps >= 4 * (frames.len() as u64 + cycles) && unmaps == maps, "{device}");
    let trace = std::fs::read_to_string(&trace).expect("a trace");
    assert_eq!((traced(&trace, MAP), traced(&trace, UNMAP)), (maps, unmaps), "MAP and UNMAP in the trace");
    say(&format!(
        "camera cycles={cycles} left={left} killed={killed} after={again} reloaded={reloaded} maps={maps} traced={maps} \
         memory=write-back"
    ));
}
