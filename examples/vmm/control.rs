//! Commands to a machine that runs, on a Unix socket: one a line, each answered with `ok` or with `error` and a reason.
//! One connection is served at a time.
//!
//! | line | |
//! |---|---|
//! | `screen N WIDTHxHEIGHT` | connects display N, or gives it another size where it is there |
//! | `unplug N` | disconnects it |

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use virtio_gpu_uring::{ConnectError, Displays};

use super::error::VmmError;
use super::screens::{Screens, Size};

/// No command is longer.
const LONGEST_LINE: u64 = 128;

/// The socket; it is gone when this is dropped.
pub(crate) struct Control(PathBuf);

impl Control {
    /// Takes commands at `path`, where nothing may be yet, on a thread of its own.
    pub(crate) fn start(path: &Path, displays: Displays, screens: Screens) -> Result<Self, VmmError> {
        let listener = UnixListener::bind(path).map_err(|source| VmmError::Socket { path: path.into(), source })?;
        let control = Self(path.into());
        let serve = move || {
            for client in listener.incoming().map_while(Result::ok) {
                if let Err(error) = converse(client, &displays, &screens) {
                    tracing::info!(%error, "a client of the control socket");
                }
            }
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(serve)
            .map_err(VmmError::io("the control's thread"))?;
        Ok(control)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Somebody else may have taken it away.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Answers a client until it closes.
fn converse(client: UnixStream, displays: &Displays, screens: &Screens) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    loop {
        let mut line = String::new();
        if (&mut client).take(LONGEST_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        match obey(&line, displays, screens) {
            Ok(()) => writeln!(client.get_ref(), "ok")?,
            Err(error) => writeln!(client.get_ref(), "error {error}")?,
        }
    }
}

fn obey(line: &str, displays: &Displays, screens: &Screens) -> Result<(), Box<dyn Error>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["screen", scanout, size] => plug(scanout.parse()?, size.parse()?, displays, screens),
        ["unplug", scanout] => match displays.disconnect(scanout.parse()?).wait()?? {
            true => Ok(()),
            false => Err("nothing is connected there".into()),
        },
        _ => Err("commands are: screen N WIDTHxHEIGHT, unplug N".into()),
    }
}

/// Changes what is connected, or connects something.
fn plug(scanout: u32, size: Size, displays: &Displays, screens: &Screens) -> Result<(), Box<dyn Error>> {
    match displays.resize(scanout, size.width, size.height).wait()? {
        Err(ConnectError::NotConnected { .. }) => {
            let (monitor, display) = (screens.monitor(scanout, size), screens.display(scanout)?);
            Ok(displays.connect(scanout, monitor, display).wait()??)
        }
        resized => Ok(resized?),
    }
}
