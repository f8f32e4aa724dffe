//! The main job as a command: a host buffer goes the whole way into a guest's window, every frame is compared, and what
//! came of it is told in words or as JSON. And the device as a back-end for VMMs.
//!
//! Exit status: 0 where frames were compared and nothing was wrong, 1 where something was, 2 where the command could
//! not start: bad arguments, missing devices. The last two say why in one line on stderr.

mod args;
mod measure;
mod picture;
mod progress;
mod report;
mod serve;
mod story;

use std::any::Any;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;
use virtio_gpu_uring::sources::{self, PictureSize, SourceKind};
use virtio_gpu_uring::testing::census::Census;

use args::{Invocation, Options};
use picture::PictureFile;
use progress::Progress;
use report::Account;
use story::{Plan, play};

/// Whether any thread has panicked: there is no account then.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// What the command was told to work with is wrong, or not there.
    #[error("{0}")]
    Unusable(String),
    /// The story broke off.
    #[error("{0}")]
    BrokenOff(String),
}

impl Failure {
    fn unusable(reason: impl fmt::Display) -> Self {
        Self::Unusable(reason.to_string())
    }

    fn broken_off(reason: impl fmt::Display) -> Self {
        Self::BrokenOff(reason.to_string())
    }

    fn status(&self) -> u8 {
        match self {
            Self::Unusable(_) => 2,
            Self::BrokenOff(_) => 1,
        }
    }
}

/// The whole program.
pub(crate) fn main() -> ExitCode {
    panic::set_hook(Box::new(|panicked| {
        PANICKED.store(true, Ordering::Relaxed);
        let place = panicked.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        say(&format!("{}{place}", words_of(panicked.payload())));
    }));
    match args::parse() {
        Invocation::Asked(text) => print(&text, ExitCode::SUCCESS),
        Invocation::Wrong(reason) => fail(&Failure::Unusable(reason)),
        // The fake guest's calls panic where a device misbehaves; the hook has said how by then.
        Invocation::Run(options) => {
            panic::catch_unwind(AssertUnwindSafe(|| run(&options))).unwrap_or(ExitCode::FAILURE)
        }
        Invocation::Serve(arguments) => match serve::serve(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => fail(&failure),
        },
    }
}

fn run(options: &Options) -> ExitCode {
    match log_to_stderr(None).and_then(|()| main_job(options)) {
        Ok(account) => {
            let clean = account.is_clean();
            let text = if options.json { account.json() } else { account.to_string() };
            print(&text, if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(failure) => fail(&failure),
    }
}

/// Logs what `RUST_LOG` names; without it `otherwise`, or nothing.
fn log_to_stderr(otherwise: Option<&str>) -> Result<(), Failure> {
    let named = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let Some(filter) = named.or(otherwise.map(str::to_owned)) else { return Ok(()) };
    let filter = EnvFilter::try_new(&filter).map_err(|error| Failure::Unusable(format!("RUST_LOG: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Plays the story with the source that is asked for, and counts what it leaves behind.
///
/// One frame of it is played before, with small memfds, and not counted: threads' stacks and allocation arenas, which
/// the C library keeps for the next thread, and whatever else a process makes once at its first use, would look like
/// leaks of the first story.
fn main_job(options: &Options) -> Result<Account, Failure> {
    let mut picture = options.png.as_deref().map(PictureFile::create).transpose().map_err(Failure::unusable)?;
    warm_up(options)?;

    let mut progress = Progress::new();
    let before = Census::take();
    let source = sources::open(&options.source, options.size, options.buffers).map_err(Failure::unusable)?;
    let plan = Plan { frames: options.frames, window: options.window };
    let seen = play(source, &plan, picture.as_mut(), &mut progress)?;
    let after = Census::take();
    if PANICKED.load(Ordering::Relaxed) {
        return Err(Failure::broken_off("a thread of the device has panicked"));
    }
    Ok(Account {
        source: options.source.clone(),
        seen,
        fds_leaked: after.fds.saturating_sub(before.fds),
        maps_leaked: after.maps.saturating_sub(before.maps),
        png: options.png.clone(),
    })
}

fn warm_up(options: &Options) -> Result<(), Failure> {
    let smallest =
        PictureSize::new(PictureSize::MIN, PictureSize::MIN).ok_or_else(|| Failure::unusable("no picture"))?;
    let source = sources::open(&SourceKind::Memfd, smallest, 1).map_err(Failure::unusable)?;
    let plan = Plan { frames: 1, window: options.window };
    play(source, &plan, None, &mut Progress::silent()).map(drop)
}

/// Prints to stdout. A reader that has gone away is no failure.
fn print(text: &str, status: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&Failure::BrokenOff(format!("cannot write to stdout: {error}")))
        }
        _ => status,
    }
}

fn fail(failure: &Failure) -> ExitCode {
    say(&failure.to_string());
    ExitCode::from(failure.status())
}

/// One line on stderr, whatever stands in a file's name or an argument.
fn say(words: &str) {
    let line: String =
        words.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    // Nobody is left to tell where that fails.
    let _ = writeln!(io::stderr(), "virtio-gpu-uring: {line}");
}

fn words_of(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panicked")
}
