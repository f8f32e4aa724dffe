//! Where the device's spans and events go: warnings to stderr, and everything that is asked for to a file.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use super::error::VmmError;

/// What the file gets where `RUST_LOG` does not say.
const DEFAULT: &str = "vmm=info,virtio_gpu_uring=debug";

pub(crate) fn start(file: Option<&Path>) -> Result<(), VmmError> {
    let warnings = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_filter(LevelFilter::WARN);
    let everything = file.map(to_file).transpose()?;
    registry().with(warnings).with(everything).init();
    Ok(())
}

/// A line for each event, and one for each command when it is through, with the time that it took.
fn to_file<S>(path: &Path) -> Result<impl Layer<S>, VmmError>
where
    S: tracing::Subscriber + for<'a> registry::LookupSpan<'a>,
{
    let file = File::create(path).map_err(|source| VmmError::File { path: path.into(), source })?;
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| DEFAULT.into());
    let filter = EnvFilter::builder().parse_lossy(wanted);
    let layer = fmt::layer().with_writer(Mutex::new(file)).with_ansi(false).with_span_events(FmtSpan::CLOSE);
    Ok(layer.with_filter(filter))
}
