//! What the command line may say.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use virtio_gpu_uring::{ChannelType, HostWindow, RutabagaSettings};

use super::error::VmmError;
use super::screens::Size;

/// Boots a Linux kernel with a virtio-gpu whose blobs are live host buffers
///
/// The guest's serial console is stdout and stdin; the VMM's own words go to stderr. It ends with
/// status 0 when the guest powers off, and with 1 and a line that says why at any other end.
#[derive(Debug, Parser)]
#[command(name = "vmm", verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// The guest's kernel, a bzImage as distributions install it
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,

    /// The guest's initial RAM disk; it loads the virtio_mmio and virtio-gpu modules
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: PathBuf,

    /// Words for the kernel, after "console=ttyS0 reboot=t panic=-1"
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub(crate) cmdline: String,

    /// Guest RAM
    #[arg(long, value_name = "MiB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(128..=1 << 20))]
    pub(crate) memory: u64,

    /// The window that blobs are mapped into
    #[arg(long, value_name = "MiB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) window: u64,

    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) cpus: u8,

    /// What a guest meets where nothing is mapped in the window
    #[arg(long, value_enum, default_value_t = Gaps::Scratch)]
    pub(crate) gaps: Gaps,

    /// Serves the buffers of this V4L2 device to the guest, on cross-domain channels of type camera
    #[arg(long, value_name = "DEV", conflicts_with = "no_3d")]
    pub(crate) camera: Option<PathBuf>,

    /// Lets the guest connect to a Unix socket; TYPE is wayland, camera (not beside --camera), pipewire or x11
    #[arg(long, value_name = "TYPE=PATH", value_parser = socket, conflicts_with = "no_3d")]
    pub(crate) socket: Vec<(ChannelType, PathBuf)>,

    /// Connects a display of this size, from left to right where there are several: up to 16
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub(crate) screen: Vec<Size>,

    /// Keeps what display N shows in scanout-N.png in this folder, and its cursor in scanout-N-cursor.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) png: Option<PathBuf>,

    /// Draws for the guest: virgl (OpenGL), venus (Vulkan) or both with a comma between; takes a build with feature virgl
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', conflicts_with = "no_3d")]
    pub(crate) renderer: Vec<Drawing>,

    /// Offers no contexts, and so no channels: Linux then shows blobs of its own memory
    #[arg(long)]
    pub(crate) no_3d: bool,

    /// Takes commands on this Unix socket while the guest runs, a line each, and answers "ok" or "error REASON":
    /// "screen N WIDTHxHEIGHT" connects display N or gives it another size, "unplug N" disconnects it
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    pub(crate) control: Option<PathBuf>,

    /// Writes what the device does to this file; RUST_LOG chooses what, as in virtio_gpu_uring=trace
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}

/// What a guest may draw by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Drawing {
    Virgl,
    Venus,
}

/// What fills the window's gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gaps {
    /// Memory that belongs to nobody: a guest that touches it lives on
    Scratch,
    /// Nothing: a guest that touches it ends the machine
    Deny,
}

impl Arguments {
    /// The renderer that was asked for.
    pub(crate) fn renderer_settings(&self) -> Option<RutabagaSettings> {
        let add = |settings: RutabagaSettings, drawing: &Drawing| match drawing {
            Drawing::Virgl => settings.virgl(),
            Drawing::Venus => settings.venus(),
        };
        (!self.renderer.is_empty()).then(|| self.renderer.iter().fold(RutabagaSettings::new(), add))
    }

    /// The kernel's command line: a serial console, and a triple fault instead of a machine that hangs.
    pub(crate) fn command_line(&self) -> String {
        format!("console=ttyS0 reboot=t panic=-1 {}", self.cmdline).trim_end().to_owned()
    }

    /// A window of this size, its gaps filled as was asked for.
    pub(crate) fn host_window(&self) -> Result<HostWindow, VmmError> {
        let len = (self.window << 20) as usize;
        let window = match self.gaps {
            Gaps::Scratch => HostWindow::new(len),
            Gaps::Deny => HostWindow::deny_gaps(len),
        };
        window.map_err(VmmError::io("the window"))
    }
}

fn socket(text: &str) -> Result<(ChannelType, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("a socket is written as TYPE=PATH")?;
    let channel_type = name.parse::<ChannelType>().map_err(|unknown| unknown.to_string())?;
    Ok((channel_type, path.into()))
}
