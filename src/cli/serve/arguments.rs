//! What `serve` may be told, and every way of saying it wrongly.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::json;
use virtio_gpu_uring::sandbox::Needs;
use virtio_gpu_uring::{ChannelType, Limits, RutabagaSettings};

const EXAMPLES: &str = "\
Examples:
  virtio-gpu-uring serve --socket gpu.sock
      for QEMU's vhost-user-gpu-pci: the guest's screen is QEMU's
  virtio-gpu-uring serve --socket gpu.sock --host-socket pipewire=$XDG_RUNTIME_DIR/pipewire-0
      for QEMU's vhost-user-test-device-pci (11.1 or later): host buffers live in the guest's window
  virtio-gpu-uring serve --socket gpu.sock --display png:shots --size 1920x1080
      a screen that is a PNG file

Exit status:
  0  ended by SIGTERM or SIGINT, or by the end of an inherited connection
  1  something broke off: a line on stderr says what
  2  bad arguments, or something that cannot be had: a line on stderr says which";

/// The options of `serve`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("where").args(["socket", "fd", "print_capabilities"]).required(true))]
pub(in crate::cli) struct ServeArguments {
    /// Listen on this Unix socket; one that nobody listens on is replaced
    #[arg(long, value_name = "PATH", alias = "socket-path")]
    pub(super) socket: Option<PathBuf>,

    /// Use this descriptor, inherited: a socket that listens, or one that is connected to the front-end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub(super) fd: Option<i32>,

    /// Print what this back-end can do as JSON, as vhost-user's convention for programs asks, and end
    #[arg(long)]
    pub(super) print_capabilities: bool,

    /// Size of the window that blobs are mapped into; 0 offers none
    #[arg(long, value_name = "MiB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub(super) window: u64,

    /// Where the guest's screens are: vhost-user, the front-end's own; vhost-user,dmabuf, the same where it can
    /// import dma-bufs; png:FOLDER, in scanout-N.png there; null, nowhere, though the guest has them
    #[arg(long, value_name = "WHERE", default_value = "vhost-user", value_parser = shown)]
    pub(super) display: Shown,

    /// How many screens there can be; 16 with --display vhost-user, else 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(super) scanouts: Option<u32>,

    /// Size of each screen with --display png or null
    #[arg(long, value_name = "WxH", default_value = "1280x800", value_parser = size)]
    pub(super) size: (u32, u32),

    /// Let guests connect to a Unix socket of this host; TYPE is wayland, camera, pipewire or x11
    #[arg(long, value_name = "TYPE=PATH", value_parser = host_socket)]
    pub(super) host_socket: Vec<(ChannelType, PathBuf)>,

    /// Draw for guests: virgl (OpenGL), venus (Vulkan) or both with a comma between; takes a build with feature
    /// virgl, and goes without the sandbox
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', requires = "no_sandbox")]
    pub(super) renderer: Vec<Drawing>,

    /// Hold guests to another limit than the default: NAME is resources, contexts, mapped-bytes, host-bytes,
    /// image-bytes, rendered-bytes, fds, backing-entries, submit-bytes, commands-in-flight, items-per-context,
    /// channel-backlog or deadline-ms; N may end with K, M or G
    #[arg(long, value_name = "NAME=N", value_parser = limit)]
    pub(super) limit: Vec<(Limit, u64)>,

    /// Keep every right that this process has, for debugging
    #[arg(long)]
    pub(super) no_sandbox: bool,
}

/// Where the guest's screens are.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    FrontEnd { dmabufs: bool },
    Png(PathBuf),
    Nowhere,
}

/// What a guest may draw by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Drawing {
    Virgl,
    Venus,
}

/// A limit by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Limit {
    Resources,
    Contexts,
    MappedBytes,
    HostBytes,
    ImageBytes,
    RenderedBytes,
    Fds,
    BackingEntries,
    SubmitBytes,
    CommandsInFlight,
    ItemsPerContext,
    ChannelBacklog,
    DeadlineMs,
}

impl ServeArguments {
    pub(super) fn scanouts(&self) -> u32 {
        self.scanouts.unwrap_or(if matches!(self.display, Shown::FrontEnd { .. }) { 16 } else { 1 })
    }

    pub(super) fn renderer(&self) -> Option<RutabagaSettings> {
        let add = |settings: RutabagaSettings, drawing: &Drawing| match drawing {
            Drawing::Virgl => settings.virgl(),
            Drawing::Venus => settings.venus(),
        };
        (!self.renderer.is_empty()).then(|| self.renderer.iter().fold(RutabagaSettings::new(), add))
    }

    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for &(limit, value) in &self.limit {
            let size = usize::try_from(value).unwrap_or(usize::MAX);
            match limit {
                Limit::Resources => limits.resources = value,
                Limit::Contexts => limits.contexts = value,
                Limit::MappedBytes => limits.mapped_bytes = value,
                Limit::HostBytes => limits.host_bytes = value,
                Limit::ImageBytes => limits.image_bytes = value,
                Limit::RenderedBytes => limits.rendered_bytes = value,
                Limit::Fds => limits.fds = value,
                Limit::BackingEntries => limits.backing_entries = value,
                Limit::SubmitBytes => limits.submit_bytes = value,
                Limit::CommandsInFlight => limits.commands_in_flight = size,
                Limit::ItemsPerContext => limits.items_per_context = size,
                Limit::ChannelBacklog => limits.channel_backlog = size,
                Limit::DeadlineMs => limits.deadline = Duration::from_millis(value),
            }
        }
        limits
    }

    /// What this process goes on needing of its host.
    pub(super) fn needs(&self) -> Needs {
        let needs = self.socket.iter().fold(Needs::default(), Needs::socket);
        let needs = match &self.display {
            Shown::Png(folder) => needs.pictures(folder),
            Shown::FrontEnd { .. } | Shown::Nowhere => needs,
        };
        self.host_socket.iter().fold(needs, |needs, (_, path)| needs.host_socket(path))
    }

    /// What vhost-user's convention for back-end programs has a program of type gpu print.
    pub(super) fn capabilities(&self) -> String {
        json!({ "type": "gpu", "features": [] }).to_string()
    }
}

fn shown(text: &str) -> Result<Shown, String> {
    match text.split_once(':') {
        None if text == "null" => Ok(Shown::Nowhere),
        None if text == "vhost-user" => Ok(Shown::FrontEnd { dmabufs: false }),
        None if text == "vhost-user,dmabuf" => Ok(Shown::FrontEnd { dmabufs: true }),
        Some(("png", folder)) if !folder.is_empty() => Ok(Shown::Png(folder.into())),
        _ => Err("null, png:FOLDER, vhost-user or vhost-user,dmabuf".to_owned()),
    }
}

fn size(text: &str) -> Result<(u32, u32), &'static str> {
    let number = |text: &str| text.parse().ok();
    let sides = text.split_once('x').and_then(|(width, height)| Some((number(width)?, number(height)?)));
    sides.ok_or("a size is written as 1280x800")
}

fn host_socket(text: &str) -> Result<(ChannelType, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("a socket is written as TYPE=PATH")?;
    let channel_type = name.parse::<ChannelType>().map_err(|unknown| unknown.to_string())?;
    Ok((channel_type, path.into()))
}

fn limit(text: &str) -> Result<(Limit, u64), String> {
    let (name, number) = text.split_once('=').ok_or("a limit is written as NAME=N")?;
    let limit = Limit::from_str(name, false).map_err(|_| format!("{name:?} is no limit"))?;
    let (digits, unit) = match number.char_indices().next_back() {
        Some((at, 'K')) => (&number[..at], 1 << 10),
        Some((at, 'M')) => (&number[..at], 1 << 20),
        Some((at, 'G')) => (&number[..at], 1 << 30),
        _ => (number, 1),
    };
    let value = digits.parse::<u64>().ok().and_then(|value| value.checked_mul(unit));
    Ok((limit, value.ok_or_else(|| format!("{number:?} is no number that a limit can be"))?))
}
