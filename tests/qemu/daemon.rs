//! `virtio-gpu-uring serve` as a process, and what it says.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmm_sys_util::tempdir::TempDir;

/// Nothing that the daemon owes takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// What each of its own lines begins with.
const NAME: &str = "virtio-gpu-uring: ";
/// How a guest's memory is called in /proc.
const GUEST_MEMORY: &str = "/memfd:memory-backend-memfd";

/// A daemon that listens, in a folder of its own.
pub(crate) struct Daemon {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
    /// How many of the lines have been waited for.
    seen: usize,
    /// How many files it had open when it began to listen.
    files: usize,
    folder: TempDir,
}

impl Daemon {
    /// Starts one with these options, and waits until it listens.
    pub(crate) fn start(options: &[&str]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtio-gpu-uring"));
        command.arg("serve").arg("--socket").arg(folder.as_path().join("gpu")).args(options);
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the daemon");
        let (sender, lines) = channel();
        listen(child.stderr.take().expect("a pipe"), |line| line, sender);
        let mut daemon = Self { child, lines, heard: Vec::new(), seen: 0, files: 0, folder };
        daemon.says("listening on ");
        daemon.files = daemon.open_files().len();
        daemon
    }

    /// Where front-ends connect to.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder().join("gpu")
    }

    /// A folder for files that go with the daemon.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_path()
    }

    /// Waits for the next line of its own that begins like this; answers with the rest of it.
    #[track_caller]
    pub(crate) fn says(&mut self, beginning: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            while let Some(line) = self.heard.get(self.seen) {
                self.seen += 1;
                if let Some(rest) = line.strip_prefix(NAME).and_then(|line| line.strip_prefix(beginning)) {
                    return rest.to_owned();
                }
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.heard.push(line),
                Err(_) => panic!("the daemon does not say {beginning:?}; it said: {:#?}", self.heard),
            }
        }
    }

    /// It runs, holds no memory of a guest, open or mapped, and has no more files open than before its first front-end.
    #[track_caller]
    pub(crate) fn expect_no_guest(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        assert_eq!(self.child.try_wait().expect("a child"), None, "the daemon ended: {:#?}", self.heard);
        while self.guest_memory() > 0 || self.open_files().len() > self.files {
            let files = self.open_files();
            assert!(Instant::now() < deadline, "a guest's memory or one of these is left: {files:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How often it has a guest's memory open or mapped.
    pub(crate) fn guest_memory(&self) -> usize {
        let open = self.open_files().iter().filter(|file| file.starts_with(GUEST_MEMORY)).count();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).expect("a process that lives");
        open + maps.lines().filter(|line| line.contains(GUEST_MEMORY)).count()
    }

    fn open_files(&self) -> Vec<String> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a process that lives");
        let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect()
    }

    /// Ends it as it stands.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// Ends it by SIGTERM: it must take its socket with it and have nothing to complain of.
    #[track_caller]
    pub(crate) fn end(mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process");
        kill_process(pid, Signal::TERM).expect("a process that lives");
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the daemon does not end: {:#?}", self.heard),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.heard.extend(self.lines.iter());
        assert!(status.success(), "{status}: {:#?}", self.heard);
        assert!(!self.socket().exists(), "its socket is left");
        let foreign: Vec<_> = self.heard.iter().filter(|line| !line.starts_with(NAME)).collect();
        assert!(foreign.is_empty(), "the daemon complains: {foreign:#?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Of no use to one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.heard.extend(self.lines.iter());
            eprintln!("the daemon said: {:#?}", self.heard);
        }
    }
}

/// Passes on what is said, line by line, until there is no more.
pub(crate) fn listen<T: Send + 'static>(from: impl Read + Send + 'static, kind: fn(String) -> T, to: Sender<T>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if to.send(kind(String::from_utf8_lossy(&line).trim_end().to_owned())).is_err() {
                return;
            }
        }
    });
}

/// Prints a line of figures straight to the terminal, past what the test program keeps for failures.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "qemu: {line}");
}
