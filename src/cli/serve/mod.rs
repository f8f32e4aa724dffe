//! The device as a program of its own: a vhost-user back-end that serves one VMM after the other on a Unix socket, until a
//! signal ends it.

mod arguments;
mod socket;

use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use virtio_gpu_uring::sandbox::Sandbox;
use virtio_gpu_uring::{
    Builder, CutOff, Monitor, NullDisplay, PngDisplay, RutabagaRenderer, VhostUserServer, VhostUserSettings,
};

pub(super) use arguments::ServeArguments;
use arguments::Shown;
use socket::FrontEnds;

use super::{Failure, log_to_stderr, print, say};

/// Serves until a signal comes, or the one connection that was inherited ends.
///
/// # Errors
/// What is asked for cannot be had.
pub(super) fn serve(arguments: &ServeArguments) -> Result<(), Failure> {
    if arguments.print_capabilities {
        print(&format!("{}\n", arguments.capabilities()), std::process::ExitCode::SUCCESS);
        return Ok(());
    }
    log_to_stderr(Some("virtio_gpu_uring=warn"))?;
    raise_descriptors();
    let front_ends = FrontEnds::open(arguments.socket.as_deref(), arguments.fd)?;
    // Files are closed thread by thread: before there is another one.
    let sandbox = if arguments.no_sandbox {
        None
    } else {
        Some(Sandbox::close_files(arguments.needs()).map_err(Failure::unusable)?)
    };
    let mut server = VhostUserServer::new(builder(arguments)?, settings(arguments)).map_err(Failure::unusable)?;
    end_by_signal(&server, &front_ends)?;
    match sandbox {
        Some(sandbox) => say(&sandbox.enter().map_err(Failure::unusable)?.to_string()),
        None => say("no sandbox: this process keeps every right that it has"),
    }
    say(&format!("listening on {front_ends}"));
    while let Some(front_end) = front_ends.next().map_err(Failure::broken_off)? {
        serve_one(&mut server, front_end)?;
    }
    Ok(())
}

/// Takes as many descriptors as this process may have: a guest's blobs, its memory's regions and its channels are one each.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Where that is not possible, the device says so when it has none left.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn serve_one(server: &mut VhostUserServer, front_end: UnixStream) -> Result<(), Failure> {
    say("a front-end connected");
    match server.serve(front_end) {
        Ok(()) => say("the front-end left"),
        Err(CutOff::Gone(gone)) => return Err(Failure::broken_off(gone)),
        Err(cut_off) => say(&format!("the front-end was cut off: {cut_off}")),
    }
    Ok(())
}

/// Lets SIGTERM and SIGINT end this process as its own end would; a second one ends it at once.
fn end_by_signal(server: &VhostUserServer, front_ends: &FrontEnds) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Failure::unusable)?;
    let (stopper, closer) = (server.stopper(), front_ends.closer().map_err(Failure::unusable)?);
    let wait = move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            closer.close();
            stopper.stop();
        }
        // Whatever the end is waiting for.
        if signals.next().is_some() {
            std::process::exit(1);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(Failure::unusable)?;
    Ok(())
}

/// What the device is made of.
fn builder(arguments: &ServeArguments) -> Result<Builder, Failure> {
    let mut builder = Builder::new().limits(arguments.limits()).scanouts(arguments.scanouts());
    for (channel_type, path) in &arguments.host_socket {
        builder = builder.host_socket(*channel_type, path);
    }
    if let Some(renderer) = arguments.renderer() {
        builder = builder.renderer(|| RutabagaRenderer::new(renderer));
    }
    let monitor = Monitor::new(arguments.size.0, arguments.size.1);
    match &arguments.display {
        Shown::FrontEnd { .. } => Ok(builder),
        Shown::Nowhere => Ok((0..arguments.scanouts())
            .fold(builder, |builder, scanout| builder.display(scanout, monitor.clone(), NullDisplay))),
        Shown::Png(folder) => (0..arguments.scanouts()).try_fold(builder, |builder, scanout| {
            let path = folder.join(format!("scanout-{scanout}.png"));
            let display =
                PngDisplay::new(&path).map_err(|error| Failure::unusable(format!("{}: {error}", path.display())))?;
            Ok(builder.display(scanout, monitor.clone(), display))
        }),
    }
}

/// What front-ends are offered.
fn settings(arguments: &ServeArguments) -> VhostUserSettings {
    let settings = VhostUserSettings::new().window(arguments.window << 20);
    match arguments.display {
        Shown::FrontEnd { dmabufs } => settings.displays(arguments.scanouts(), dmabufs),
        Shown::Nowhere | Shown::Png(_) => settings,
    }
}
