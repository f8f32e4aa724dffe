//! The main job as its users meet it: the program is run, and what it prints, writes and returns is looked at.
#![cfg(feature = "cli")]

mod program;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use program::{assert_refused, program, run, text};

/// Runs the program with `--json`, which must succeed, and parses its only line.
fn account(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let line = text(&output.stdout).strip_suffix('\n').expect("a whole line");
    assert!(!line.contains('\n'), "more than one line: {line}");
    serde_json::from_str(line).expect("JSON")
}

/// A file of this test's own in the temporary folder, removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("main-job-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a plain path")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn no_figure_is_missing_from_the_line_of_json() {
    let account = account(&["--source", "memfd", "--frames", "3"]);
    assert_eq!((&account["source"], &account["handle"]), (&"memfd".into(), &"memfd".into()));
    assert_eq!((&account["frames"], &account["buffers"]), (&3.into(), &4.into()));
    for nothing in ["zero_frames", "mismatched_frames", "stale_buffers", "fds_leaked", "maps_leaked"] {
        assert_eq!(account[nothing], 0, "{nothing}");
    }
    assert_eq!(account["bytes_compared"], 3 * 640 * 360 * 4);
    for times in ["map_us", "command_us"] {
        let figure = |name: &str| account[times][name].as_f64().unwrap_or_else(|| panic!("{times}.{name}: {account}"));
        let (p50, p99) = (figure("p50"), figure("p99"));
        assert!(0.0 < p50 && p50 <= p99 && p99 < 10e6, "{times}: {account}");
        assert!(figure("samples") >= 200.0, "{times}: {account}");
    }
}

#[test]
fn neither_one_buffer_nor_more_than_a_message_holds_are_refused() {
    for (buffers, size) in [("1", "640x360"), ("28", "33x17"), ("32", "33x17")] {
        let account = account(&["--source", "memfd", "--frames", "40", "--buffers", buffers, "--size", size]);
        assert_eq!(account["buffers"].to_string(), buffers);
        assert_eq!((&account["frames"], &account["mismatched_frames"]), (&40.into(), &0.into()));
    }
}

#[test]
fn auto_never_fails_where_there_is_only_memory() {
    let account = account(&["--frames", "5"]);
    let source = account["source"].as_str().expect("a name");
    let handle = if source == "memfd" { "memfd" } else { "dmabuf" };
    assert!(["udmabuf", "dma-heap", "memfd"].contains(&source), "{source}");
    assert_eq!(account["handle"], handle);
}

#[test]
fn the_text_never_hides_a_number() {
    let output = run(&["--source", "memfd", "--frames", "7", "--buffers", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "progress is for terminals");
    let shown = text(&output.stdout);
    let told = ["memfd: 2 memfds", "640x360 XR24", "7 compared", "0 zero", "0 mismatched", "us", "0 descriptors"];
    for words in told.into_iter().chain(["0 mappings leaked", "\nok "]) {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
}

#[test]
fn the_png_file_is_never_another_picture() {
    let file = Scratch::new("frame.png");
    fs::write(&file.0, [0; 200_000]).expect("something longer to write over");
    let run = account(&["--source", "memfd", "--frames", "3", "--size", "80x45", "--png", file.path()]);
    let bytes = fs::read(&file.0).expect("the picture");
    assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
    let decoder = png::Decoder::new(std::io::Cursor::new(&bytes));
    let mut reader = decoder.read_info().expect("a picture");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a small picture")];
    let info = reader.next_frame(&mut pixels).expect("a whole picture");
    assert_eq!((info.width, info.height, info.color_type), (80, 45, png::ColorType::Rgb));
    assert_eq!((&run["width"], &run["height"]), (&80.into(), &45.into()));
    assert!(bytes.len() < 80 * 45 * 4, "what was in the file before is still there");
    // No pixel of the test picture is black; a gap of the window would be.
    assert!(pixels.chunks_exact(3).all(|pixel| !pixel.contains(&0)));
}

#[test]
fn no_bad_argument_is_taken() {
    let refused = [
        (&["--no-such-option"][..], "'--no-such-option'"),
        (&["frames"], "'frames'"),
        (&["--frames", "many"], "'many'"),
        (&["--frames", "0"], "'0'"),
        (&["--frames", "1000001"], "1000001"),
        (&["--frames", "-1"], "'-1'"),
        (&["--frames"], "'--frames <N>'"),
        (&["--buffers", "0"], "'0'"),
        (&["--buffers", "33"], "'33'"),
        (&["--window", "0"], "'0'"),
        (&["--window", "65537"], "'65537'"),
        (&["--window", "99999999999999999999"], "--window"),
        (&["--window", "1"], "it takes --window 4"),
        (&["--size", "640"], "'640'"),
        (&["--size", "640x"], "'640x'"),
        (&["--size", "8x8"], "16 to 4096"),
        (&["--source", ""], "memfd"),
        (&["--source", "camera"], "v4l2:DEV"),
        (&["--source", "v4l2:"], "v4l2:DEV"),
        (&["--source", "two\nlines\n\nand more"], "v4l2:DEV"),
        (&["--json=yes"], "--json"),
    ];
    for (arguments, why) in refused {
        assert_refused(arguments, why);
        assert_refused(&[arguments, &["--json"]].concat(), if why.contains("--json") { "--json" } else { why });
    }
}

#[test]
fn no_missing_device_ends_in_more_than_a_line() {
    assert_refused(&["--source", "v4l2:/dev/no-such-camera"], "cannot open /dev/no-such-camera");
    assert_refused(&["--source", "v4l2:/dev/null"], "/dev/null is not a V4L2 capture device");
    assert_refused(&["--source", "v4l2:/dev/no\nsuch\ncamera", "--json"], "cannot open /dev/no\\nsuch\\ncamera");
    for (source, device) in [("udmabuf", "/dev/udmabuf"), ("dma-heap", "/dev/dma_heap/system")] {
        if fs::exists(device).expect("a look into /dev") {
            eprintln!("skipped: this machine has {device}");
        } else {
            assert_refused(&["--source", source], &format!("cannot open {device}"));
        }
    }
}

#[test]
fn a_picture_that_cannot_be_written_is_not_found_out_after_the_run() {
    assert_refused(&["--png", "/no/such/folder/frame.png"], "cannot write /no/such/folder/frame.png");
    assert_refused(&["--png", "/"], "cannot write /");
    let file = Scratch::new("never.png");
    assert_refused(&["--png", file.path(), "--source", "v4l2:/dev/null"], "not a V4L2 capture device");
    assert!(!file.0.exists(), "an empty picture was left");
}

#[test]
fn a_bad_filter_for_logs_is_not_ignored() {
    let output = program(&["--frames", "1"]).env("RUST_LOG", "a=b=c").output().expect("the program runs");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(text(&output.stderr).starts_with("virtio-gpu-uring: RUST_LOG: "));
}

#[test]
fn logs_never_mix_with_the_account() {
    let arguments = ["--source", "memfd", "--frames", "1", "--json"];
    let output = program(&arguments).env("RUST_LOG", "virtio_gpu_uring=debug").output().expect("the program runs");
    assert_eq!(output.status.code(), Some(0));
    serde_json::from_slice::<Value>(&output.stdout).expect("JSON alone");
    assert!(text(&output.stderr).contains("DEBUG"));
}

#[test]
fn help_and_version_are_no_errors() {
    for (option, words) in [("--help", "Examples:"), ("-h", "--source"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let output = run(&[option]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{option}");
        assert!(text(&output.stdout).contains(words), "{option}");
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_panic() {
    for arguments in [&["--frames", "1", "--source", "memfd"][..], &["--help"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = program(arguments).stdout(writer).stderr(Stdio::piped()).output().expect("the program runs");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn an_account_that_cannot_be_written_is_no_success() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = program(&["--frames", "1", "--source", "memfd"]).stdout(full).output().expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write to stdout"), "{}", text(&output.stderr));
}
