//! The host's side: Debian 13's PipeWire daemon with the lab's camera, whatever links it to its clients, and a client on the
//! host itself.
#![expect(unsafe_code, reason = "an ioctl has no safe form")]

use std::ffi::c_int;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use vmm_sys_util::tempdir::TempDir;

use super::frames::Frame;
use crate::exporters::CAMERA;
use crate::guests::vm::given;

/// Where Debian has libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// What the daemon calls the camera.
const SOURCE: &str = "camera:";
/// The camera's inputs: a television standard, whose frames come 25 times a second, and a webcam, which can be slow.
const TELEVISION: c_int = 0;
const WEBCAM: c_int = 1;

/// The whole story must end before.
#[derive(Clone, Copy)]
pub(super) struct Limit(Instant);

impl Limit {
    pub(super) fn new(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// Tries until there is an answer.
    #[track_caller]
    pub(super) fn wait<T>(self, what: &str, mut answer: impl FnMut() -> Result<T, String>) -> T {
        loop {
            match answer() {
                Ok(answer) => return answer,
                Err(reason) => assert!(Instant::now() < self.0, "{what} does not come: {reason}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Has the camera another input, which it refuses while a daemon uses it.
fn choose_input(mut input: c_int) -> rustix::io::Result<()> {
    /// `VIDIOC_S_INPUT`.
    const OPCODE: Opcode = opcode::read_write::<c_int>(b'V', 39);
    let camera = File::options().read(true).write(true).open(CAMERA).expect("the lab's camera");
    // SAFETY: the opcode belongs to an ioctl that reads and writes one `int`.
    let request = unsafe { Updater::<OPCODE, c_int>::new(&mut input) };
    // SAFETY: the camera reads and writes that `int` alone.
    unsafe { ioctl(&camera, request) }
}

/// A process that ends with its owner.
pub(super) struct Process(Child);

impl Process {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn kill(&mut self) {
        self.0.kill().expect("a child");
        self.0.wait().expect("a child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of no use to a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The root that has PipeWire in it, and the folder for the socket.
pub(super) struct Host {
    root: PathBuf,
    folder: TempDir,
    limit: Limit,
}

impl Host {
    pub(super) fn new(limit: Limit) -> Self {
        choose_input(WEBCAM).expect("a camera with two inputs, as tests/lab/run makes it");
        let folder = TempDir::new().expect("a temporary folder");
        Self { root: given("LAB_PIPEWIRE"), folder, limit }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.as_path().join("pipewire-0")
    }

    /// A program of that root, with its own loader and its own libraries and configurations.
    fn program(&self, name: &str) -> Command {
        let libraries = self.root.join(LIBRARIES);
        let mut command = Command::new(self.root.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&libraries).arg(self.root.join("usr/bin").join(name));
        command.env("PIPEWIRE_MODULE_DIR", libraries.join("pipewire-0.3"));
        command.env("SPA_PLUGIN_DIR", libraries.join("spa-0.2"));
        command.env("PIPEWIRE_CONFIG_DIR", self.root.join("usr/share/pipewire"));
        command.env("PIPEWIRE_RUNTIME_DIR", self.folder.as_path()).env("XDG_RUNTIME_DIR", self.folder.as_path());
        command.stdin(Stdio::null());
        command
    }

    /// Starts the daemon, and waits for its camera.
    pub(super) fn start_daemon(&self) -> Process {
        let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pipewire/camera.conf");
        let daemon = self.program("pipewire").arg("-c").arg(configuration).spawn().expect("a daemon");
        let daemon = Process(daemon);
        self.port("-o", SOURCE);
        daemon
    }

    /// Starts a client that takes frames until it is killed, and links it.
    pub(super) fn start_client(&self, name: &str) -> HostClient {
        let mut client = self.program("pipewire-client");
        let [many, format, size, rate, buffers] = CLIENT;
        client.args(["--name", name, "--frames", many, "--format", format, "--size", size, "--rate", rate]);
        client.args(["--buffers", buffers]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().expect("a client");
        let said = Arc::new(Mutex::new(Vec::new()));
        listen(client.stdout.take().expect("a pipe"), Arc::clone(&said));
        listen(client.stderr.take().expect("a pipe"), Arc::clone(&said));
        self.link(name);
        HostClient { _process: Process(client), said, limit: self.limit }
    }

    /// Waits for a client's port, and links the camera to it.
    pub(super) fn link(&self, client: &str) {
        let (from, to) = (self.port("-o", SOURCE), self.port("-i", &format!("{client}:")));
        self.limit.wait("a link", || self.ask(&[&from, &to]).map(drop));
    }

    /// Waits until a client that has gone is forgotten.
    pub(super) fn forgets(&self, client: &str) {
        self.limit.wait("the end of a client", || match self.find("-i", &format!("{client}:"))? {
            Some(port) => Err(port),
            None => Ok(()),
        });
    }

    /// The port of a node: what follows its name differs by PipeWire's version.
    fn port(&self, direction: &str, node: &str) -> String {
        self.limit.wait(node, || self.find(direction, node)?.ok_or_else(|| "no such port".to_owned()))
    }

    fn find(&self, direction: &str, node: &str) -> Result<Option<String>, String> {
        let ports = self.ask(&[direction])?;
        Ok(ports.lines().map(str::trim).find(|port| port.starts_with(node)).map(str::to_owned))
    }

    /// What pw-link says.
    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.program("pw-link").args(arguments).output().expect("pw-link");
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(words(&output.stdout)) } else { Err(words(&output.stderr)) }
    }
}

impl Drop for Host {
    /// The daemon has ended before: it is dropped first.
    fn drop(&mut self) {
        let chosen = choose_input(TELEVISION);
        assert!(chosen.is_ok() || std::thread::panicking(), "the camera's first input: {chosen:?}");
    }
}

/// Keeps what is said, line by line, until there is no more.
fn listen(from: impl Read + Send + 'static, said: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).for_each(|line| said.lock().expect("lines").push(line));
    });
}

/// What every client asks for: frames, format, size, frames a second, and buffers.
pub(super) const CLIENT: [&str; 5] = ["1000000", "YUY2", "320x180", "5", "16"];

/// A client on the host: what it sees is what a guest must see.
pub(super) struct HostClient {
    _process: Process,
    said: Arc<Mutex<Vec<String>>>,
    limit: Limit,
}

impl HostClient {
    fn frames(&self) -> Vec<Frame> {
        self.said.lock().expect("lines").iter().filter_map(|line| Frame::read(line)).collect()
    }

    /// What it said that is no frame.
    fn words(&self) -> Vec<String> {
        self.said.lock().expect("lines").iter().filter(|line| Frame::read(line).is_none()).cloned().collect()
    }

    /// All frames so far, once there is one of this number or a later one.
    pub(super) fn until(&self, sequence: u64) -> Vec<Frame> {
        self.limit.wait(&format!("frame {sequence} on the host"), || {
            let frames = self.frames();
            let last = frames.last().map(|frame| frame.sequence);
            if last >= Some(sequence) { Ok(frames) } else { Err(format!("the last is {last:?}; {:#?}", self.words())) }
        })
    }

    /// Waits for frames that are new.
    #[track_caller]
    pub(super) fn goes_on(&self) {
        let before = self.frames().len();
        self.limit.wait("more of the host's own frames", || {
            let now = self.frames().len();
            if now >= before + 5 { Ok(()) } else { Err(format!("{before} before, {now} now; {:#?}", self.words())) }
        });
    }
}
