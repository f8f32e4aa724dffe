//! Where the device's spans and events go: warnings to stderr, and everything that is asked for to a file.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use tracing::Metadata;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use super::error::VmmError;

/// What the file gets where `RUST_LOG` does not say.
const DEFAULT: &str = "vmm=info,virtio_gpu_uring=debug";

pub(crate) fn start(file: Option<&Path>) -> Result<(), VmmError> {
    // A guest makes virglrenderer say as much as it likes: that is for the file, where it is asked for.
    let is_ours = |metadata: &Metadata<'_>| !metadata.target().starts_with("rutabaga_gfx");
    let is_shown = filter_fn(is_ours).with_max_level_hint(LevelFilter::WARN);
    let warnings = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let warnings = warnings.with_filter(LevelFilter::WARN.and(is_shown));
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
