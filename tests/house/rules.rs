//! The rules, one function each: a file's path (from the crate's root, with `/`) and its text in, its offences
//! out; each is shown what it forbids beside what it must let pass.

use std::fmt::Write as _;

use crate::reader::{code_of, crate_paths, end_of_item, is_word, line_of, place, without_tests, words};

/// The most lines a file may have.
const LONGEST_FILE: usize = 700;
/// The most lines a function may have, signature and closing brace included, to fit a screen.
const LONGEST_FUNCTION: usize = 60;

/// A room of `src/` and the rooms it may name with `crate::`.
pub(crate) struct Room {
    pub(crate) name: &'static str,
    pub(crate) may_use: &'static [&'static str],
}

/// What stands in `may_use` where every room further down is meant.
pub(crate) const ALL_BELOW: &[&str] = &["*"];

/// The rooms from the top of the house to its ground: arrows point down this list only, and no further than
/// an entry says. `queue` knows no GPU. `limits` and `observe` are closets that nearly all rooms open and that
/// open no other; `seams` is what a VMM implements, in one file low down, so that whoever calls it may name it.
/// `lib.rs` and `main.rs` stand outside and may name all; so do tests.
#[rustfmt::skip]
pub(crate) const ROOMS: &[Room] = &[
    Room { name: "cli",          may_use: ALL_BELOW },
    Room { name: "testing",      may_use: ALL_BELOW },
    Room { name: "vhost_user",   may_use: ALL_BELOW },
    Room { name: "sandbox",      may_use: &["sys"] },
    Room { name: "sources",      may_use: &["buffer", "sys", "limits", "observe"] },
    Room { name: "device",       may_use: ALL_BELOW },
    Room { name: "pipeline",     may_use: ALL_BELOW },
    Room { name: "queue",        may_use: &["sys", "limits", "observe"] },
    Room { name: "commands",     may_use: ALL_BELOW },
    Room { name: "cross_domain", may_use: &["resource", "buffer", "protocol", "seams", "sys", "limits", "observe"] },
    Room { name: "renderer",     may_use: &["resource", "buffer", "protocol", "seams", "sys", "limits", "observe"] },
    Room { name: "display",      may_use: &["protocol", "seams", "limits", "observe"] },
    Room { name: "resource",     may_use: &["window", "buffer", "protocol", "seams", "sys", "limits", "observe"] },
    Room { name: "window",       may_use: &["buffer", "seams", "sys", "limits", "observe"] },
    Room { name: "buffer",       may_use: &["seams", "sys", "limits", "observe"] },
    Room { name: "seams",        may_use: &["protocol", "sys"] },
    Room { name: "protocol",     may_use: &[] },
    Room { name: "sys",          may_use: &[] },
    Room { name: "limits",       may_use: &[] },
    Room { name: "observe",      may_use: &[] },
];

pub(crate) fn opening(path: &str, text: &str) -> Vec<String> {
    let says_why = text.strip_prefix("//!").is_some_and(|rest| !rest.lines().next().unwrap_or("").trim().is_empty());
    if says_why { Vec::new() } else { vec![format!("{path}: does not open with `//!` and a sentence")] }
}

pub(crate) fn length(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines <= LONGEST_FILE { Vec::new() } else { vec![format!("{path}: {lines} lines, of {LONGEST_FILE} at most")] }
}

pub(crate) fn unsafe_outside_sys(path: &str, text: &str) -> Vec<String> {
    if path.starts_with("src/sys/") || path == "src/sys.rs" {
        return Vec::new();
    }
    let code = code_of(text);
    words(&code, "unsafe").map(|at| format!("{}: unsafe outside src/sys/", place(path, &code, at))).collect()
}

/// An `unsafe {` or `unsafe impl` needs `SAFETY:` in a comment of its line or of the six above it. The lines of
/// a comment count as one: a long argument is welcome.
pub(crate) fn unargued_unsafe(path: &str, text: &str) -> Vec<String> {
    let code = code_of(text);
    let lines: Vec<&str> = text.lines().collect();
    let is_comment = |line: usize| lines[line].trim_start().starts_with("//");
    let argues = |line: usize| lines[line].split_once("//").is_some_and(|(_, comment)| comment.contains("SAFETY:"));
    let argued = |line: usize| {
        let mut steps = 0;
        let mut above = (0..line).rev().take_while(|&above| {
            steps += usize::from(!(is_comment(above) && is_comment(above + 1)));
            steps <= 6
        });
        argues(line) || above.any(argues)
    };
    let mut offences = Vec::new();
    for at in words(&code, "unsafe") {
        let rest = code[at + "unsafe".len()..].trim_start();
        let needs_argument = rest.starts_with('{') || words(rest, "impl").next() == Some(0);
        if needs_argument && !argued(line_of(&code, at)) {
            offences.push(format!("{}: no SAFETY: argument above", place(path, &code, at)));
        }
    }
    offences
}

pub(crate) fn upward_imports(path: &str, text: &str) -> Vec<String> {
    let inside = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    let modules: Vec<&str> = inside.split('/').filter(|&module| module != "mod").collect();
    if modules == ["lib"] || modules == ["main"] || modules.contains(&"tests") {
        return Vec::new();
    }
    let Some(rank) = ROOMS.iter().position(|room| room.name == modules[0]) else {
        return vec![format!("{path}: `{}` is no room of the table", modules[0])];
    };
    let room = &ROOMS[rank];
    let below = |used: &str| ROOMS[rank + 1..].iter().any(|lower| lower.name == used);
    let may_use =
        |used: &str| used == room.name || room.may_use.contains(&used) || (room.may_use == ALL_BELOW && below(used));
    let code = without_tests(&code_of(text));
    let mut offences: Vec<String> = crate_paths(&code)
        .into_iter()
        .filter(|(_, used)| !may_use(used))
        .map(|(at, used)| format!("{}: {} may not use {used}", place(path, &code, at), room.name))
        .collect();
    let to_the_root = "super::".repeat(modules.len());
    if let Some(at) = code.find(&to_the_root) {
        offences.push(format!("{}: climbs to the crate's root: name the room", place(path, &code, at)));
    }
    offences
}

pub(crate) fn leftovers(path: &str, text: &str) -> Vec<String> {
    let code = code_of(text);
    let mut offences = Vec::new();
    for name in ["todo", "unimplemented", "dbg"] {
        let calls = words(&code, name).filter(|at| code[at + name.len()..].starts_with('!'));
        offences.extend(calls.map(|at| format!("{}: {name}!", place(path, &code, at))));
    }
    offences
}

/// The functions outside tests that are longer than a screen.
pub(crate) fn long_functions(path: &str, text: &str) -> Vec<String> {
    if path.ends_with("/tests.rs") || path.contains("/tests/") {
        return Vec::new();
    }
    let code = without_tests(&code_of(text));
    let mut offences = Vec::new();
    for at in words(&code, "fn") {
        let name: String = code[at + 2..].trim_start().chars().take_while(|&c| is_word(c)).collect();
        let Some(end) = end_of_item(&code, at).filter(|_| !name.is_empty()) else {
            continue;
        };
        let lines = line_of(&code, end) - line_of(&code, at) + 1;
        if lines > LONGEST_FUNCTION {
            offences.push(format!("{}: fn {name} has {lines} lines", place(path, &code, at)));
        }
    }
    offences
}

#[test]
fn a_file_without_an_opening_is_seen() {
    assert_eq!(opening("src/a.rs", "//! Why.\n"), [""; 0]);
    for bad in ["", "\n//! Why.\n", "// Why.\n", "//!\n//! Why.\n", "use std::fs;\n//! Why.\n"] {
        assert_eq!(opening("src/a.rs", bad).len(), 1, "{bad:?}");
    }
}

#[test]
fn a_file_that_is_too_long_is_seen() {
    assert_eq!(length("src/a.rs", &"\n".repeat(700)), [""; 0]);
    assert_eq!(length("src/a.rs", &"\n".repeat(701)).len(), 1);
}

#[test]
fn unsafe_in_any_form_outside_sys_is_seen() {
    for bad in [
        "unsafe { x() }",
        "unsafe\n{}",
        "unsafe fn f() {}",
        "unsafe impl Send for A {}",
        "unsafe trait A {}",
        "#[unsafe(no_mangle)]",
    ] {
        assert_eq!(unsafe_outside_sys("src/queue/ring.rs", bad).len(), 1, "{bad}");
        assert_eq!(unsafe_outside_sys("src/sys/ring.rs", bad), [""; 0], "{bad}");
    }
    assert_eq!(unsafe_outside_sys("src/lib.rs", "#![deny(unsafe_code)] // unsafe { }"), [""; 0]);
}

#[test]
fn unsafe_without_an_argument_is_seen() {
    let bad = [
        "unsafe { x() }",
        "// SAFETY: far away.\n\n\n\n\n\n\nunsafe { x() }",
        "let s = \"SAFETY:\";\nunsafe impl Send for A {}",
        "// SAFETY: of another.\nunsafe { x() }\n\n\n\n\n\n\n\nunsafe { y() }",
    ];
    for bad in bad {
        assert_eq!(unargued_unsafe("src/sys/a.rs", bad).len(), 1, "{bad}");
    }
    let long_argument = format!("// SAFETY: because\n{}let y = unsafe {{ x() }};", "// and\n".repeat(20));
    let good = ["// SAFETY: so.\n#[inline]\nunsafe impl Send for A {}", "unsafe fn f() {}", &long_argument];
    for good in good {
        assert_eq!(unargued_unsafe("src/sys/a.rs", good), [""; 0], "{good}");
    }
}

#[test]
fn an_import_from_above_is_seen_in_every_spelling() {
    let bad = [
        ("src/queue/ring.rs", "use crate::protocol::Command;"),
        ("src/queue/ring.rs", "use crate::{sys::Ring, observe::{warn_limited, x}, pipeline};"),
        ("src/window/mod.rs", "fn f() -> crate::resource::Id { todo }"),
        ("src/protocol/wire.rs", "use crate::observe::warn_limited;"),
        ("src/limits.rs", "pub(in crate::device) struct A;"),
        ("src/resource/table.rs", "use crate::Device;"),
        ("src/buffer/mod.rs", "use super::device::Handle;"),
        ("src/buffer/memfd.rs", "use super::super::device::Handle;"),
        ("src/utils.rs", ""),
    ];
    for (path, bad) in bad {
        assert_eq!(upward_imports(path, bad).len(), 1, "{path}: {bad}");
    }
    let good = [
        ("src/lib.rs", "pub use crate::device::Device;"),
        ("src/queue/tests.rs", "use crate::testing::Guest;"),
        ("src/pipeline/mod.rs", "use crate::{commands::Claims, queue::Request, protocol::{self, device}};"),
        ("src/queue/ring.rs", "use super::request::Request; crate::observe::warn_limited!(\"crate::device\");"),
        ("src/queue/ring.rs", "#[cfg(test)]\nmod tests { use super::super::*; use crate::testing::Guest; }"),
    ];
    for (path, good) in good {
        assert_eq!(upward_imports(path, good), [""; 0], "{path}: {good}");
    }
}

#[test]
fn unfinished_code_is_seen() {
    for name in ["todo", "unimplemented", "dbg"] {
        let call = format!("{name}!(1);");
        assert_eq!(leftovers("src/a.rs", &call).len(), 1);
        assert_eq!(leftovers("src/a.rs", &format!("// {call}\nlet {name} = \"{call}\"; my_{call}")), [""; 0]);
    }
}

#[test]
fn a_function_longer_than_a_screen_is_seen() {
    let function = |lines: usize| {
        let mut text = String::from("fn f(a: [u8; 4])\nwhere\n    A: B,\n{\n");
        (5..lines).for_each(|line| writeln!(text, "    let s{line} = {{ \"}}\" }};").unwrap());
        text + "}\nfn g() {}\ntrait T { fn h(&self); }\n"
    };
    assert_eq!(long_functions("src/a.rs", &function(60)), [""; 0]);
    assert_eq!(long_functions("src/a.rs", &function(61)), ["src/a.rs:1: fn f has 61 lines"]);
    let test = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(61));
    assert_eq!(long_functions("src/a.rs", &test), [""; 0]);
}
