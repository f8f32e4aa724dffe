//! What the log says of a front-end whose displays are disconnected: one line that names the reason, or none where all is well.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::super::session::Session;
use super::super::slot::Bell;
use super::super::wire::Link;
use super::*;

/// Keeps warnings and errors, a line each.
struct Recorder(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).expect("a string");
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().expect("no panic").push(line.0.trim_end().to_owned());
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// What is said of a front-end that answers the first question about its displays so, and leaves.
fn said(answer: &[u8]) -> Vec<String> {
    let guest = Guest::start(Builder::new());
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let bell = Bell::new(guest.device().displays(), super::super::PATIENCE).expect("an eventfd");
    let session = Session::new(Link::new(ours), guest.device().displays(), Arc::new(bell), 1, false);
    let answer = answer.to_vec();
    let answering = std::thread::spawn(move || {
        let mut front_end = FrontEnd(theirs);
        front_end.answers(Asked::GetProtocolFeatures, 0_u64.as_bytes());
        front_end.message();
        front_end.message();
        front_end.0.write_all(&answer).expect("the back-end is there");
    });
    let lines = Arc::default();
    tracing::subscriber::with_default(Recorder(Arc::clone(&lines)), || session.run());
    answering.join().expect("no panic");
    std::mem::take(&mut *lines.lock().expect("no panic"))
}

#[test]
fn no_fault_of_a_front_ends_goes_without_one_clear_line_and_none_is_said_of_one_that_leaves() {
    let header = |request: u32, size: u32| Header { request, flags: REPLY, size }.as_bytes().to_vec();
    let message = "message=the front-end's displays are disconnected error=";
    let line = |error: &str| vec![format!("{message}{error}")];
    assert_eq!(said(&header(3, 407)), line("the front-end answers GetDisplayInfo with 407 bytes, 408 are due"));
    assert_eq!(said(&header(11, 408)), line("the front-end answers GetDisplayInfo with request 11, flags 0x4"));
    let torn = "the front-end has closed the display socket in the middle of its answer to GetDisplayInfo";
    assert_eq!(said(&header(3, 408)), line(torn));
    let mut info = DisplayInfo::new_zeroed();
    info.displays[0] = display(0, 5);
    let empty = [header(3, 408), info.as_bytes().to_vec()].concat();
    let error =
        "the front-end's display 0 cannot be told to a guest: a mode of 0x5 pixels: 1 to 16384 each way can be told";
    assert_eq!(said(&empty), line(error));
    assert_eq!(said(&[]), [""; 0]);
}
