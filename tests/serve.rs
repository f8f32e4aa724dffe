//! The back-end as a program: its arguments, its socket, and its end.
#![cfg(all(feature = "cli", feature = "vhost-user"))]

mod program;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use program::text;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// `serve` with these arguments.
fn serve(arguments: &[&str]) -> Command {
    program::program(&[&["serve"], arguments].concat())
}

fn run(arguments: &[&str]) -> Output {
    program::run(&[&["serve"], arguments].concat())
}

#[track_caller]
fn assert_refused(arguments: &[&str], why: &str) {
    program::assert_refused(&[&["serve"], arguments].concat(), why);
}

/// A folder of this test's own, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("serve-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a plain path").to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program that serves, ended with the test.
struct Daemon {
    child: Child,
    lines: BufReader<ChildStderr>,
}

impl Daemon {
    /// Started, and listening.
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let mut child = serve(arguments).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
        let lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut daemon = Self { child, lines };
        daemon.says("virtio-gpu-uring: listening on ");
        daemon
    }

    /// Reads lines until one begins so.
    #[track_caller]
    fn says(&mut self, what: &str) -> String {
        let mut seen = String::new();
        loop {
            let from = seen.len();
            let got = self.lines.read_line(&mut seen).expect("text");
            assert_ne!(got, 0, "{what:?} is never said, but:\n{seen}");
            if seen[from..].starts_with(what) {
                return seen[from..].trim_end().to_owned();
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a process");
    }

    /// Waits for the end: its status, and what is left to be read.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(started.elapsed() < DEADLINE, "the program does not end");
            std::thread::yield_now();
        };
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("text");
        let mut said = String::new();
        self.child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert_eq!(said, "", "stdout is not for words");
        (status.code(), rest)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for the features, as each front-end begins.
#[track_caller]
fn is_served(mut socket: &UnixStream) {
    socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let header: Vec<u8> = [1u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    socket.write_all(&header).expect("a back-end");
    let mut reply = [0; 20];
    socket.read_exact(&mut reply).expect("a back-end that answers");
    assert_eq!(reply[..12], [1u32, 5, 8].map(u32::to_ne_bytes).concat());
}

#[test]
fn no_option_is_kept_from_whoever_asks() {
    let output = run(&["--help"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let help = text(&output.stdout);
    for option in ["--socket", "--fd", "--window", "--display", "--host-socket", "--limit", "--no-sandbox"] {
        assert!(help.contains(option), "{option} is not in the help");
    }
}

#[test]
fn capabilities_are_never_other_than_the_convention_asks() {
    let output = run(&["--print-capabilities"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let capabilities: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(capabilities["type"], "gpu");
}

#[test]
fn arguments_that_make_no_sense_are_never_served() {
    let scratch = Scratch::new("arguments");
    let path = scratch.file("socket");
    let with = |more: &[&str], why: &str| assert_refused(&[&["--socket", &path], more].concat(), why);
    assert_refused(&[], "--socket");
    assert_refused(&["--socket"], "--socket");
    assert_refused(&["--fd", "-1"], "-1");
    assert_refused(&["--fd", "2"], "--fd");
    assert_refused(&["--fd", "x"], "--fd");
    assert_refused(&["--fd", "1000"], "1000");
    with(&["--fd", "3"], "--fd");
    with(&["--nonsense"], "--nonsense");
    with(&["more"], "more");
    with(&["--window", "-1"], "-1");
    with(&["--window", "much"], "--window");
    with(&["--display", "wall"], "--display");
    with(&["--display", "png:"], "--display");
    with(&["--display", &format!("png:{path}/nowhere")], "nowhere");
    with(&["--scanouts", "0"], "--scanouts");
    with(&["--scanouts", "17"], "--scanouts");
    with(&["--size", "0x1", "--display", "null"], "0");
    with(&["--host-socket", "wayland"], "--host-socket");
    with(&["--host-socket", "printer=/nowhere"], "printer");
    with(&["--limit", "resources"], "--limit");
    with(&["--limit", "patience=3"], "patience");
    with(&["--limit", "resources=99999999999G"], "resources");
    assert_refused(&["--socket", &scratch.file("no/socket")], "no/socket");
    assert!(std::fs::symlink_metadata(&path).is_err(), "a socket was left");
}

#[test]
fn a_socket_in_use_is_never_taken_away() {
    let scratch = Scratch::new("in-use");
    let path = scratch.file("socket");
    let first = Daemon::start(&["--socket", &path]);
    assert_refused(&["--socket", &path], &path);
    is_served(&UnixStream::connect(&path).expect("the first lives"));
    first.signal(Signal::TERM);
    assert_eq!(first.end().0, Some(0));
}

#[test]
fn a_stale_socket_is_never_in_the_way_and_a_file_is_never_removed() {
    let scratch = Scratch::new("stale");
    let path = scratch.file("socket");
    drop(UnixListener::bind(&path).expect("a socket"));
    let daemon = Daemon::start(&["--socket", &path]);
    is_served(&UnixStream::connect(&path).expect("a back-end"));
    drop(daemon);
    let file = scratch.file("file");
    std::fs::write(&file, "precious").expect("written");
    assert_refused(&["--socket", &file], &file);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
    let link = scratch.file("link");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    assert_refused(&["--socket", &link], &link);
    assert!(std::fs::symlink_metadata(&link).is_ok() && std::fs::metadata(&file).is_ok());
}

#[test]
fn a_signal_never_leaves_a_socket_or_waits_for_a_front_end() {
    for signal in [Signal::TERM, Signal::INT] {
        for connected in [false, true] {
            let scratch = Scratch::new(&format!("signal-{}-{connected}", signal.as_raw()));
            let path = scratch.file("socket");
            let mut daemon = Daemon::start(&["--socket", &path]);
            let front_end = connected.then(|| UnixStream::connect(&path).expect("a back-end"));
            if let Some(front_end) = &front_end {
                daemon.says("virtio-gpu-uring: a front-end connected");
                is_served(front_end);
            }
            daemon.signal(signal);
            let (status, rest) = daemon.end();
            assert_eq!(status, Some(0), "{rest}");
            assert!(std::fs::symlink_metadata(&path).is_err(), "the socket is left");
        }
    }
}

#[test]
fn one_front_end_never_ends_the_next_ones_service() {
    let scratch = Scratch::new("next");
    let path = scratch.file("socket");
    let mut daemon = Daemon::start(&["--socket", &path]);
    for _ in 0..3 {
        let front_end = UnixStream::connect(&path).expect("a back-end");
        is_served(&front_end);
        drop(front_end);
        daemon.says("virtio-gpu-uring: the front-end left");
        let mut bad = UnixStream::connect(&path).expect("a back-end");
        bad.write_all(&[0xff; 12]).expect("a back-end");
        let line = daemon.says("virtio-gpu-uring: the front-end was cut off: ");
        assert!(line.len() > 45, "{line:?}");
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().0, Some(0));
}

#[test]
fn an_inherited_socket_is_never_anything_but_what_it_is() {
    let scratch = Scratch::new("inherited");
    let path = scratch.file("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    rustix::io::fcntl_setfd(&listener, FdFlags::empty()).expect("inherited");
    let daemon = Daemon::start(&["--fd", &listener.as_raw_fd().to_string()]);
    drop(listener);
    for _ in 0..2 {
        is_served(&UnixStream::connect(&path).expect("a back-end"));
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().0, Some(0));
    assert!(std::fs::symlink_metadata(&path).is_ok(), "a socket of somebody else's was removed");

    let (ours, theirs) = UnixStream::pair().expect("sockets");
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).expect("inherited");
    let mut daemon = Daemon::start(&["--fd", &theirs.as_raw_fd().to_string()]);
    drop(theirs);
    is_served(&ours);
    drop(ours);
    daemon.says("virtio-gpu-uring: the front-end left");
    assert_eq!(daemon.end().0, Some(0), "the end of the one connection");
}

#[test]
fn a_descriptor_that_is_no_socket_is_never_served() {
    let file = std::fs::File::open("/dev/null").expect("/dev/null");
    rustix::io::fcntl_setfd(file.as_fd(), FdFlags::empty()).expect("inherited");
    assert_refused(&["--fd", &file.as_raw_fd().to_string()], "descriptor");
}
