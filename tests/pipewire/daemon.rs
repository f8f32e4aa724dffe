//! A PipeWire daemon of the test's own: its folder, its process, and the links in it. It ends with its value.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::camera::choose_webcam;

/// How long anything may take: the lab's machine is slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// The node of the source, in each of the configurations.
const CAMERA: &str = "camera";

/// What the daemon has frames of, and how they are asked for.
pub(crate) struct Source {
    configuration: &'static str,
    pub(crate) format: &'static str,
    pub(crate) size: &'static str,
    pub(crate) rate: &'static str,
    /// Whether its buffers are dma-bufs that can only be read.
    pub(crate) is_dma_buf: bool,
}

impl Source {
    /// Test pictures; in the lab, which sets `PIPEWIRE_SOURCE=camera`, its V4L2 camera.
    pub(crate) fn here() -> Self {
        match std::env::var("PIPEWIRE_SOURCE").as_deref() {
            Err(std::env::VarError::NotPresent) => {
                let (format, size) = ("UYVY", "320x240");
                Self { configuration: "pattern.conf", format, size, rate: "25", is_dma_buf: false }
            }
            Ok("camera") => {
                let (format, size) = ("YUY2", "320x180");
                Self { configuration: "camera.conf", format, size, rate: "10", is_dma_buf: true }
            }
            other => panic!("PIPEWIRE_SOURCE is {other:?}, and can be nothing but 'camera'"),
        }
    }
}

/// A folder for sockets in the temporary folder, which goes with its value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("virtio-gpu-pipewire-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a folder in the temporary folder");
        Self(path)
    }

    /// Where clients look for the daemon.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("pipewire-0")
    }

    /// A program whose daemon is the one in this folder. It ends with the thread that starts it, whatever ends that.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).stdin(Stdio::null());
        for name in ["PIPEWIRE_CORE", "PIPEWIRE_DEBUG", "PIPEWIRE_REMOTE", "PIPEWIRE_RUNTIME_DIR"] {
            command.env_remove(name);
        }
        command.env("XDG_RUNTIME_DIR", &self.0);
        match Elsewhere::here() {
            Some(elsewhere) => elsewhere.add(&mut command, name),
            None => _ = command.arg(installed(name)),
        }
        command
    }
}

/// The capture client, as [`Folder::program`] knows it.
pub(crate) const CLIENT: &str = "pipewire-client";

fn installed(name: &str) -> PathBuf {
    if name != CLIENT {
        return name.into();
    }
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pipewire/client");
    assert!(client.exists(), "no client in {}: run tests/pipewire/prepare", client.display());
    client
}

/// Another Debian's PipeWire, of the folder that `PIPEWIRE_ROOT` names: programs, modules, and the libraries of all of them.
struct Elsewhere {
    root: PathBuf,
    libraries: PathBuf,
}

impl Elsewhere {
    fn here() -> Option<Self> {
        let root = PathBuf::from(std::env::var_os("PIPEWIRE_ROOT")?);
        let folders = fs::read_dir(root.join("usr/lib")).expect("PIPEWIRE_ROOT names the root of a Debian").flatten();
        let mut folders = folders.map(|folder| folder.path());
        let libraries = folders.find(|folder| folder.join("libpipewire-0.3.so.0").exists());
        Some(Self { libraries: libraries.expect("a PipeWire in PIPEWIRE_ROOT"), root })
    }

    fn add(&self, command: &mut Command, name: &str) {
        let Self { root, libraries } = self;
        command
            .env("PIPEWIRE_CONFIG_DIR", root.join("usr/share/pipewire"))
            .env("PIPEWIRE_MODULE_DIR", libraries.join("pipewire-0.3"))
            .env("SPA_PLUGIN_DIR", libraries.join("spa-0.2"))
            .arg(root.join("lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(libraries)
            .arg(root.join("usr/bin").join(name));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Daemon {
    pub(crate) folder: Folder,
    process: Child,
}

impl Daemon {
    pub(crate) fn start(source: &Source) -> Self {
        if source.is_dma_buf {
            choose_webcam();
        }
        let folder = Folder::new();
        let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pipewire").join(source.configuration);
        let words = File::create(folder.0.join("words")).expect("a file in the folder");
        let process = folder
            .program("pipewire")
            .arg("-c")
            .arg(configuration)
            .stdout(words.try_clone().expect("a duplicate"))
            .stderr(words)
            .spawn()
            .expect("setpriv, of util-linux");
        let mut daemon = Self { folder, process };
        until("the daemon's camera", || {
            let ended = daemon.process.try_wait().expect("a child");
            assert!(ended.is_none(), "the daemon ended with {ended:?}: {}", daemon.words());
            daemon.folder.socket().exists() && daemon.port("-o", CAMERA).is_some()
        });
        daemon
    }

    /// Links the camera to a client, once that has a port.
    pub(crate) fn link(&self, client: &str) {
        let output = self.port("-o", CAMERA).expect("the camera's port");
        let mut input = None;
        until(&format!("a port of {client}"), || {
            input = self.port("-i", client);
            input.is_some()
        });
        let link = [output, input.expect("there")];
        let done = self.folder.program("pw-link").args(&link).output().expect("pw-link");
        assert!(done.status.success(), "pw-link {link:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Whether a client has a port.
    pub(crate) fn knows(&self, client: &str) -> bool {
        self.port("-i", client).is_some()
    }

    /// Ports have different names in different versions, behind the node's name and a colon.
    fn port(&self, direction: &str, node: &str) -> Option<String> {
        let listed = self.folder.program("pw-link").arg(direction).output().expect("pw-link, of pipewire-bin");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let is_of_node = |port: &&str| port.split_once(':').is_some_and(|(name, _)| name == node);
        listed.lines().map(str::trim).find(is_of_node).map(ToOwned::to_owned)
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn words(&self) -> String {
        let words = fs::read_to_string(self.folder.0.join("words")).unwrap_or_default();
        let lines: Vec<&str> = words.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's last words:\n{}", self.words());
        }
        self.kill();
    }
}

/// Looks until it is so.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
