//! What the command line may say, and every way of saying it wrongly as one line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use virtio_gpu_uring::sources::{MAX_BUFFERS, PictureSize, SourceKind};

use super::serve::ServeArguments;

const EXAMPLES: &str = "\
Examples:
  virtio-gpu-uring                                      120 frames from the best source that is there
  virtio-gpu-uring --source v4l2:/dev/video0 --frames 30 --png frame.png
                                                        a camera; the last frame as the guest saw it
  virtio-gpu-uring --json | jq .map_us.p99              the figures, for programs
  RUST_LOG=virtio_gpu_uring=debug virtio-gpu-uring --frames 1
                                                        what the device does, on stderr
  virtio-gpu-uring serve --socket gpu.sock              a back-end for QEMU: see serve --help

Exit status:
  0  frames were compared; none was zero or mismatched, and nothing was left behind
  1  something was wrong: the account or a line on stderr says what
  2  bad arguments or a missing device: a line on stderr says which";

/// Puts host buffers live into a guest's window, and checks every frame
///
/// Plays the device's main job in one process: starts a virtio-gpu device with a host-visible
/// window, plays a guest driver over real virtqueues, sends a source's buffers to that guest through
/// a Unix socket as PipeWire would, has the guest map them, and compares each frame that the guest
/// sees with what the source wrote, byte by byte. In the end everything is unmapped and the device
/// is reset, and what the process still holds is counted.
#[derive(Debug, Parser)]
#[command(name = "virtio-gpu-uring", version, verbatim_doc_comment, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Where buffers come from: auto, memfd, udmabuf, dma-heap, or v4l2:DEV for a camera
    ///
    /// auto takes udmabuf where it can be opened, else a dma-heap, else memfd, each with a moving
    /// test picture. A camera is switched on only when it is named.
    #[arg(long, value_name = "SOURCE", default_value = "auto", verbatim_doc_comment)]
    source: SourceKind,

    /// Frames to compare, 1 to 1000000
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    frames: u32,

    /// Buffers to share, 1 to 32 (a camera may make more or fewer)
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=MAX_BUFFERS as i64))]
    buffers: u8,

    /// Size of the guest's window in MiB, 1 to 65536
    #[arg(long, value_name = "MiB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    window: u32,

    /// Size of the test picture, 16x16 to 4096x4096 (a camera keeps its own)
    #[arg(long, value_name = "WxH", default_value = "640x360", value_parser = picture_size)]
    size: PictureSize,

    /// Write the last frame, as the guest saw it, to this PNG file
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,

    /// Print the account as one line of JSON
    #[arg(long)]
    json: bool,
}

/// What to do in place of the main job.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serves VMMs over a Unix socket, as a vhost-user back-end
    ///
    /// One front-end at a time describes its guest's memory and queues; when it leaves, everything of
    /// its guest is given up, and the next may come. What the program has to say goes to stderr, a line
    /// each; RUST_LOG chooses what the device says beside that (warnings, where it is not set).
    #[command(verbatim_doc_comment)]
    Serve(Box<ServeArguments>),
}

/// What to do, checked.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) source: SourceKind,
    /// At least 1.
    pub(super) frames: u32,
    /// 1 to [`MAX_BUFFERS`].
    pub(super) buffers: usize,
    /// In bytes.
    pub(super) window: usize,
    pub(super) size: PictureSize,
    pub(super) png: Option<PathBuf>,
    pub(super) json: bool,
}

/// What the command line came to.
pub(super) enum Invocation {
    /// The main job.
    Run(Options),
    /// A back-end for VMMs.
    Serve(Box<ServeArguments>),
    /// A text that was asked for.
    Asked(String),
    /// Why it makes no sense.
    Wrong(String),
}

/// Reads this process's command line.
pub(super) fn parse() -> Invocation {
    let matched = Arguments::command().try_get_matches().and_then(|found| Arguments::from_arg_matches(&found));
    match matched {
        Ok(Arguments { command: Some(Command::Serve(arguments)), .. }) => Invocation::Serve(arguments),
        Ok(arguments) => Invocation::Run(options(arguments)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Invocation::Asked(error.render().to_string())
        }
        Err(error) => Invocation::Wrong(first_sentence(&error.render().to_string())),
    }
}

fn options(arguments: Arguments) -> Options {
    let Arguments { command: _, source, frames, buffers, window, size, png, json } = arguments;
    Options { source, frames, buffers: usize::from(buffers), window: (window as usize) << 20, size, png, json }
}

/// What clap says before it goes on with tips and usage. The rejected value in it may hold anything, empty lines too.
fn first_sentence(error: &str) -> String {
    let error = error.strip_prefix("error: ").unwrap_or(error);
    let ends = ["\n\n  tip: ", "\n\nUsage: ", "\n\nFor more information"];
    let end = ends.iter().filter_map(|end| error.rfind(end)).min().unwrap_or(error.len());
    format!("{} (see --help)", error[..end].trim_end())
}

fn picture_size(text: &str) -> Result<PictureSize, String> {
    let numbers = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    let (width, height) = numbers.ok_or("a size is written as 640x360")?;
    PictureSize::new(width, height)
        .ok_or_else(|| format!("width and height are {} to {}", PictureSize::MIN, PictureSize::MAX))
}
