//! QEMU's monitor: commands as JSON, one a line, over its socket.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A monitor that does not answer by then belongs to a QEMU that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to the monitor.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// None while nobody listens there, or any more.
    pub(crate) fn connect(path: &Path) -> Option<Self> {
        let stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let mut qmp = Self { reader: BufReader::new(stream) };
        // Its greeting comes first.
        qmp.read().ok()?;
        qmp.try_run("qmp_capabilities", json!({})).ok()?;
        Some(qmp)
    }

    /// Has QEMU do something; answers with what it returns.
    #[track_caller]
    pub(crate) fn run(&mut self, command: &str, arguments: Value) -> Value {
        self.try_run(command, arguments).unwrap_or_else(|reason| panic!("QMP {command}: {reason}"))
    }

    /// The same, where QEMU may have ended, or refuse.
    pub(crate) fn try_run(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_ref(), "{line}").map_err(|error| error.to_string())?;
        loop {
            let answer = self.read()?;
            match (answer.get("return"), answer.get("error")) {
                (Some(value), _) => return Ok(value.clone()),
                (None, Some(error)) => return Err(error.to_string()),
                // An event.
                (None, None) => {}
            }
        }
    }

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err("QEMU has closed its monitor".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}")),
            Err(error) => Err(error.to_string()),
        }
    }
}
