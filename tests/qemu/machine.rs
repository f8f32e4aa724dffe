//! One QEMU with one guest: its command line, a shell in the guest, what both say, and the screen.

use std::fmt::{self, Display, Formatter};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::json;
use vmm_sys_util::tempdir::TempDir;

use crate::daemon::{Daemon, listen};
use crate::picture::{Picture, wait_for};
use crate::qmp::Qmp;

/// No guest takes longer for anything; an emulated one boots in some ten seconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// What the guest runs: lines from its console, one command each.
const SHELL: &str = "
exec </dev/ttyS0
stty -echo
echo 'guest: up'
while read -r line; do
    eval \"$line\"
    echo \"guest: status $?\"
done
";
/// What a guest's kernel says of something that must not happen: it has found itself, its driver or the device to be wrong.
const COMPLAINTS: &str = "WARNING:|BUG|Oops|drm_mm|\\*ERROR\\*";

/// Which QEMU, and with it which of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// QEMU 10.0's virtio-gpu with a screen of this size.
    Screen10(u32, u32),
    /// The same of QEMU 11.1.
    Screen11(u32, u32),
    /// QEMU 11.1's generic device, which has a window and no screen.
    Window11,
}

impl Device {
    fn qemu(self) -> &'static str {
        if matches!(self, Self::Screen10(..)) { "qemu-10" } else { "qemu-11" }
    }

    fn option(self) -> String {
        match self {
            Self::Screen10(width, height) | Self::Screen11(width, height) => {
                format!("vhost-user-gpu-pci,chardev=gpu,xres={width},yres={height}")
            }
            Self::Window11 => {
                "vhost-user-test-device-pci,chardev=gpu,virtio-id=16,num_vqs=2,vq_size=256,config_size=20".to_owned()
            }
        }
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let device = if *self == Self::Window11 { "generic" } else { "gpu" };
        write!(f, "{} device={device}", self.qemu())
    }
}

/// Where a line came from.
enum Line {
    Console(String),
    Qemu(String),
}

/// A QEMU that runs.
pub(crate) struct Machine {
    child: Child,
    lines: Receiver<Line>,
    qmp: Qmp,
    /// What the guest has said, and how much of it has been waited for.
    pub(crate) console: Vec<String>,
    seen: usize,
    /// QEMU's own words.
    pub(crate) words: Vec<String>,
    folder: TempDir,
}

/// What tests/qemu/prepare makes.
fn prepared(file: PathBuf) -> PathBuf {
    assert!(file.exists(), "no {}: run tests/qemu/prepare", file.display());
    file
}

fn cache() -> PathBuf {
    let given = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = given.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache"));
    cache.join("virtio-gpu-uring")
}

fn kernel() -> PathBuf {
    let files = std::fs::read_dir(prepared(cache().join("kernel-6.12/boot"))).expect("a folder");
    let paths = files.map(|file| file.expect("an entry").path());
    let name = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    paths.filter(|path| name(path)).max().expect("a kernel")
}

/// The whole command line, as the README has it, but for what names the guest's files.
fn command(device: Device, socket: &Path, monitor: &Path) -> Command {
    let mut qemu = Command::new(prepared(cache().join(device.qemu()).join("qemu")));
    qemu.args(["-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", "512", "-nodefaults", "-no-user-config"]);
    qemu.args(["-object", "memory-backend-memfd,id=mem,size=512M,share=on", "-numa", "node,memdev=mem"]);
    qemu.args(["-vga", "none", "-display", "none", "-serial", "stdio"]);
    qemu.arg("-chardev").arg(format!("socket,id=gpu,path={}", socket.display()));
    qemu.arg("-device").arg(device.option());
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
    let initramfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/qemu/initramfs");
    qemu.arg("-kernel").arg(kernel()).arg("-initrd").arg(prepared(initramfs));
    let run = base64::engine::general_purpose::STANDARD.encode(SHELL);
    // An emulated timer is late where others want the processor, too: Linux must not take it for broken.
    qemu.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 no_timer_check lab.run={run}"));
    qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    qemu
}

impl Machine {
    /// Starts one at this daemon, and waits until the guest is up.
    pub(crate) fn start(device: Device, daemon: &Daemon) -> Self {
        Self::start_at(device, &daemon.socket())
    }

    /// The same, by the daemon's socket.
    pub(crate) fn start_at(device: Device, socket: &Path) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let monitor = folder.as_path().join("qmp");
        let mut child = command(device, socket, &monitor).spawn().expect("QEMU");
        let (sender, lines) = channel();
        listen(child.stdout.take().expect("a pipe"), Line::Console, sender.clone());
        listen(child.stderr.take().expect("a pipe"), Line::Qemu, sender);
        let deadline = Instant::now() + DEADLINE;
        let qmp = loop {
            match Qmp::connect(&monitor) {
                Some(qmp) => break qmp,
                None => assert!(Instant::now() < deadline, "QEMU has no monitor"),
            }
            if let Some(status) = child.try_wait().expect("a child") {
                let words: Vec<_> = lines.iter().map(|(Line::Console(line) | Line::Qemu(line))| line).collect();
                panic!("QEMU ended with {status}: {words:#?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut machine = Self { child, lines, qmp, console: Vec::new(), seen: 0, words: Vec::new(), folder };
        machine.says("guest: up");
        machine
    }

    /// Waits for the next line of the guest that begins like this; answers with it.
    #[track_caller]
    pub(crate) fn says(&mut self, beginning: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            while let Some(line) = self.console.get(self.seen) {
                self.seen += 1;
                assert!(!line.starts_with("guest: FAILED"), "{line}; QEMU said: {:#?}", self.words);
                if line.starts_with(beginning) {
                    return line.clone();
                }
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Line::Console(line)) => self.console.push(line),
                Ok(Line::Qemu(line)) => self.words.push(line),
                Err(error) => panic!("the guest does not say {beginning:?}: {error}: {:#?}", self.console),
            }
        }
    }

    /// Types a line on the guest's console.
    pub(crate) fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{line}").expect("a QEMU that listens");
    }

    /// Runs a command in the guest, which must be successful.
    #[track_caller]
    pub(crate) fn run(&mut self, command: &str) {
        self.tell(command);
        let status = self.says("guest: status ");
        assert_eq!(status, "guest: status 0", "{command}: {:#?}", self.console);
    }

    pub(crate) fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Has the guest reboot itself at once, whatever it is doing, and waits until it is up again.
    #[track_caller]
    pub(crate) fn reboot(&mut self) {
        self.tell("reboot -f");
        self.says("guest: up");
    }

    /// Resets the machine under the guest, and waits until it is up again.
    #[track_caller]
    pub(crate) fn reset(&mut self) {
        self.qmp.run("system_reset", json!({}));
        self.says("guest: up");
    }

    /// What is on the screen now.
    #[track_caller]
    pub(crate) fn picture(&mut self) -> Picture {
        let path = self.folder.as_path().join("screen.ppm");
        self.qmp.run("screendump", json!({ "filename": path }));
        Picture::read(&path)
    }

    /// Waits for a picture that is as it must be; answers with the last one, and whether it was.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, good: impl Fn(&Picture) -> bool) -> (Picture, bool) {
        wait_for(|| self.picture(), good)
    }

    /// The guest's kernel has complained of nothing but that a processor stood still for long, which is said of this machine's load.
    #[track_caller]
    pub(crate) fn expect_no_complaints(&mut self) {
        self.run(&format!("! dmesg -r | grep '^<[0-4]>' | grep -v 'soft lockup' | grep -E '{COMPLAINTS}'"));
    }

    /// Ends QEMU as it stands.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// Has QEMU end in order.
    #[track_caller]
    pub(crate) fn quit(mut self) {
        self.qmp.run("quit", json!({}));
        let status = self.ended();
        assert!(status.success(), "QEMU: {status}: {:#?}", self.words);
    }

    /// Waits for QEMU's end.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "QEMU does not end: {:#?}", self.words);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes what has been said, and does not wait.
    pub(crate) fn listen(&mut self) {
        for line in self.lines.try_iter() {
            match line {
                Line::Console(line) => self.console.push(line),
                Line::Qemu(line) => self.words.push(line),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Of no use to one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.listen();
            let from = self.console.len().saturating_sub(60);
            eprintln!("QEMU said: {:#?}; the guest said: {:#?}", self.words, &self.console[from..]);
        }
    }
}
