//! One guest from its start to its end: the VMM as a process, what the guest says on its console, and what the VMM says.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;

/// No guest takes longer for anything; an emulated one in an emulated machine boots in some ten seconds.
const DEADLINE: Duration = Duration::from_secs(150);
/// Words for a kernel in the lab. The emulator below does not intercept XSETBV: Linux must not try. And it makes an exit of
/// each access to a port, of which the search for a PCI bus that is not there takes thousands: two seconds.
const EMULATED: &str = "noxsave pci=off";
/// What a guest's kernel says of something that must not happen: it has found itself, its driver or the device to be wrong.
const COMPLAINTS: [&str; 5] = ["WARNING:", "BUG", "Oops", "drm_mm", "*ERROR*"];

/// What every guest's commands begin with: `pause` waits until the test has looked around; `reload` loads the driver anew;
/// `watch` starts a program that reads frames until `slay` kills it, which fails where it has ended before by itself.
/// `rest` waits until the driver has had all its blobs back, some time after a program's end: a driver that is unloaded before
/// leaves them behind, and its commands with them, and complains.
const PRELUDE: &str = "
pause() { echo \"guest: pause $1\"; read -r go </dev/ttyS0; }
appear() {
    for i in $(seq 300); do [ -e /dev/dri/card0 ] && return; usleep 100000; done
    return 1
}
rest() {
    for i in $(seq 300); do
        grep -q ': used$' /sys/kernel/debug/dri/0/virtio-gpu-host-visible-mm || { sleep 1; return; }
        usleep 100000
    done
    return 1
}
reload() { rest && modprobe -r virtio-gpu && [ ! -e /dev/dri/card0 ] && modprobe virtio-gpu && appear; }
watch() {
    lab-guest camera --frames 100000 >/tmp/watched & watcher=$!
    until grep -q '^guest: frame' /tmp/watched; do
        kill -0 $watcher || { cat /tmp/watched; return 1; }
        usleep 50000
    done
}
slay() { kill -9 $watcher; wait $watcher; [ $? = 137 ]; }
";

/// How dma-bufs are called in /proc.
const DMA_BUF: &str = "/dmabuf:";

/// A guest that runs.
pub(crate) struct Vm {
    child: Child,
    lines: Receiver<Line>,
    pub(crate) heard: Heard,
}

/// Where a line came from.
enum Line {
    Console(String),
    Vmm(String),
}

/// What has been said so far.
#[derive(Debug, Default, Clone)]
pub(crate) struct Heard {
    /// The guest's console.
    pub(crate) console: Vec<String>,
    /// The VMM's own words.
    pub(crate) vmm: Vec<String>,
}

/// A guest that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) heard: Heard,
}

/// What the lab hands to this program in its environment.
pub(crate) fn given(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: see tests/lab/checks")).into()
}

fn kernel() -> PathBuf {
    let folder = given("LAB_KERNEL").join("boot");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = files.map(|file| file.expect("an entry").path());
    let name = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    paths.filter(|path| name(path)).max().expect("a kernel in LAB_KERNEL")
}

impl Vm {
    /// Boots a guest that runs `commands` and powers off. `options` are the VMM's.
    pub(crate) fn start(options: &[&str], commands: &str) -> Self {
        Self::boot(&given("LAB_INITRD"), options, commands)
    }

    /// The same, with an initramfs that has more in it than others need.
    pub(crate) fn boot(initramfs: &Path, options: &[&str], commands: &str) -> Self {
        let run = base64::engine::general_purpose::STANDARD.encode(format!("{PRELUDE}{commands}"));
        let mut vmm = Command::new(given("LAB_VMM"));
        vmm.arg("--kernel").arg(kernel()).arg("--initrd").arg(initramfs);
        vmm.arg("--cmdline").arg(format!("quiet iomem=relaxed {EMULATED} lab.run={run}")).args(options);
        vmm.env_remove("RUST_LOG").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = vmm.spawn().expect("the VMM");
        let (sender, lines) = channel();
        listen(child.stdout.take().expect("a pipe"), Line::Console, sender.clone());
        listen(child.stderr.take().expect("a pipe"), Line::Vmm, sender);
        Self { child, lines, heard: Heard::default() }
    }

    /// Waits until the guest pauses, and until the VMM has accounted for `sessions` connections to its camera.
    pub(crate) fn pauses(&mut self, at: &str, sessions: usize) {
        self.says(&format!("guest: pause {at}"));
        self.wait_for("vmm: camera frames=", sessions, |heard| &heard.vmm);
    }

    /// Waits until the guest has said a line that begins like this.
    pub(crate) fn says(&mut self, beginning: &str) {
        self.wait_for(beginning, 1, |heard| &heard.console);
    }

    /// The first line that the guest says and that begins like this.
    pub(crate) fn said(&mut self, beginning: &str) -> String {
        self.wait_for(beginning, 1, |heard| &heard.console)
    }

    /// Lets a guest that pauses go on.
    pub(crate) fn resume(&mut self) {
        self.tell("go");
    }

    /// Types a line on the guest's console.
    pub(crate) fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{line}").expect("a VMM that listens");
    }

    /// Takes what has been said, and does not wait.
    pub(crate) fn listen(&mut self) {
        self.lines.try_iter().for_each(|line| self.heard.take(line));
    }

    /// Waits until `count` lines that begin like this have been said, and answers with the last of them.
    fn wait_for(&mut self, beginning: &str, count: usize, of: fn(&Heard) -> &Vec<String>) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut said = of(&self.heard).iter().filter(|line| line.starts_with(beginning));
            match count.checked_sub(1).map(|last| said.nth(last)) {
                None => return String::new(),
                Some(Some(line)) => return line.clone(),
                Some(None) => {}
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.heard.take(line),
                Err(_) => panic!("nobody said {beginning:?} {count} times; heard: {:#?}", self.heard),
            }
        }
    }

    /// Where the window lies in the VMM.
    pub(crate) fn window(&mut self) -> Range<u64> {
        let line = self.wait_for("vmm: window", 1, |heard| &heard.vmm);
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |name: &str| {
            let at = words.iter().position(|word| *word == name).unwrap_or_else(|| panic!("{line}"));
            u64::from_str_radix(words[at + 1].trim_start_matches("0x"), 16)
                .unwrap_or_else(|error| panic!("{line}: {error}"))
        };
        number("host")..number("host") + number("len")
    }

    /// Whether every page of the VMM's window is mapped: a hole would be filled by whatever the VMM allocates next, for the
    /// guest to read.
    pub(crate) fn window_is_whole(&mut self) -> bool {
        let window = self.window();
        let mut covered = window.start;
        for range in self.maps().lines().filter_map(range) {
            if range.start <= covered && covered < range.end {
                covered = range.end;
            }
        }
        covered >= window.end
    }

    /// Waits until the VMM has no dma-buf open or mapped: a guest's kernel takes blobs back some time after their last user
    /// is gone.
    pub(crate) fn expect_no_dma_buf(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.dma_bufs() != (0, 0) {
            let (open, mapped) = self.dma_bufs();
            assert!(Instant::now() < deadline, "dma-bufs: {open} open, {mapped} mapped; heard: {:#?}", self.heard);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many dma-bufs are mapped into the VMM's window. The VMM's camera has mappings of its own elsewhere.
    pub(crate) fn dma_bufs_in_window(&mut self) -> usize {
        let window = self.window();
        let in_window = |line: &&str| range(line).is_some_and(|range| window.contains(&range.start));
        self.maps().lines().filter(in_window).filter(|line| line.contains(DMA_BUF)).count()
    }

    /// How many dma-bufs the VMM has open, and how many mapped.
    fn dma_bufs(&self) -> (usize, usize) {
        let open = open_files(self.id()).iter().filter(|file| file.contains(DMA_BUF)).count();
        (open, self.maps().lines().filter(|line| line.contains(DMA_BUF)).count())
    }

    /// The VMM's process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.id())).expect("the VMM's mappings")
    }

    /// Ends the VMM as it stands.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// Waits for the guest's end.
    pub(crate) fn end(mut self) -> Ended {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.heard.take(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the guest does not end; heard: {:#?}", self.heard),
            }
        }
        let status = self.child.wait().expect("the VMM's status");
        Ended { status, heard: std::mem::take(&mut self.heard) }
    }
}

/// Passes on what is said, line by line, until there is no more.
fn listen(from: impl Read + Send + 'static, kind: fn(String) -> Line, to: Sender<Line>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if to.send(kind(line)).is_err() {
                return;
            }
        }
    });
}

/// What a process has open.
pub(crate) fn open_files(process: u32) -> Vec<String> {
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).expect("a process that lives");
    let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

/// The range of a line of /proc/PID/maps.
fn range(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Of no use to a guest that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            while let Ok(line) = self.lines.recv() {
                self.heard.take(line);
            }
            eprintln!("heard until the test failed: {:#?}", self.heard);
        }
    }
}

impl Heard {
    fn take(&mut self, line: Line) {
        match line {
            Line::Console(line) => self.console.push(line),
            Line::Vmm(line) => self.vmm.push(line),
        }
    }

    /// The guest's kernel has complained of nothing that does not hold one of these words, as far as it was asked.
    pub(crate) fn expect_no_complaints(&self, expected: &[&str]) {
        let holds = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
        // That a processor stands still for long is said of the machine's load.
        let of_load = |line: &str| line.contains("soft lockup");
        let mut complaints: Vec<_> = self.console.iter().filter(|line| line.starts_with("kernel: ")).collect();
        complaints.retain(|line| holds(line, &COMPLAINTS) && !holds(line, expected) && !of_load(line));
        assert!(complaints.is_empty(), "the guest's kernel complains: {complaints:#?}: {self:#?}");
    }
}

impl Ended {
    /// The guest's commands were all successful, its kernel has complained of nothing, and it powered off.
    pub(crate) fn expect_success(&self) {
        self.expect_success_but(&[]);
    }

    /// The same, but for complaints of the guest's kernel that hold one of these words.
    pub(crate) fn expect_success_but(&self, expected: &[&str]) {
        let said = self.heard.console.iter().any(|line| line == "guest: exit status 0");
        assert!(self.status.success() && said, "{:?}: {:#?}", self.status, self.heard);
        let panics: Vec<_> = self.heard.vmm.iter().filter(|line| line.contains("panicked")).collect();
        assert!(panics.is_empty(), "{panics:#?}");
        self.heard.expect_no_complaints(expected);
    }

    /// The lines of the guest that begin like this.
    pub(crate) fn console(&self, beginning: &str) -> Vec<&str> {
        self.heard.console.iter().map(String::as_str).filter(|line| line.starts_with(beginning)).collect()
    }

    /// The lines of the VMM that begin like this.
    pub(crate) fn vmm(&self, beginning: &str) -> Vec<&str> {
        self.heard.vmm.iter().map(String::as_str).filter(|line| line.starts_with(beginning)).collect()
    }
}

/// The number behind `name=` in a line.
pub(crate) fn figure(line: &str, name: &str) -> u64 {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

/// How many commands of a kind are through, as the VMM's trace tells.
pub(crate) fn traced(trace: &str, kind: u32) -> u64 {
    let kind = format!("kind={kind:#x} ");
    let of_kind = trace.lines().filter(|line| line.contains(&kind) && line.contains(" close time."));
    of_kind.count() as u64
}
