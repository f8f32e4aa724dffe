//! The house checks itself: the rules of its rooms that neither compiler nor clippy can see. `rules` holds
//! one checker a rule, each shown its own bad snippets; here the tree is held against them.

mod reader;
mod rules;

use reader::tree;
use rules::ROOMS;
use std::collections::BTreeSet;

/// Folders whose files keep the rules that are not about rooms.
const ALL: &[&str] = &["src", "tests", "benches", "examples"];

/// Lines of `src/` that pay for one function longer than a screen.
const LINES_PER_LONG_FUNCTION: usize = 1000;

/// Fails with all offences that `rule` finds in `folders`.
fn assert_clean(folders: &[&str], rule: impl Fn(&str, &str) -> Vec<String>) {
    let files = tree(folders);
    assert!(files.iter().any(|(path, _)| path == "src/lib.rs"), "the tree was not found");
    let offences: Vec<String> = files.iter().flat_map(|(path, text)| rule(path, text)).collect();
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

#[test]
fn no_file_opens_without_saying_why_it_exists() {
    assert_clean(ALL, rules::opening);
}

#[test]
fn no_file_has_grown_too_long() {
    assert_clean(ALL, rules::length);
}

#[test]
fn nothing_outside_sys_is_unsafe() {
    assert_clean(&["src"], rules::unsafe_outside_sys);
}

#[test]
fn no_unsafe_block_goes_without_its_argument() {
    assert_clean(ALL, rules::unargued_unsafe);
}

#[test]
fn no_room_names_a_room_above_it() {
    assert_clean(&["src"], rules::upward_imports);
}

#[test]
fn nothing_unfinished_is_left_behind() {
    assert_clean(ALL, rules::leftovers);
}

#[test]
fn few_functions_exceed_a_screen() {
    let files = tree(&["src"]);
    let long: Vec<String> = files.iter().flat_map(|(path, text)| rules::long_functions(path, text)).collect();
    let lines: usize = files.iter().map(|(_, text)| text.lines().count()).sum();
    let paid_for = lines / LINES_PER_LONG_FUNCTION;
    assert!(long.len() <= paid_for, "{lines} lines pay for {paid_for}:\n{}", long.join("\n"));
}

#[test]
fn the_table_of_rooms_has_no_arrow_upward() {
    for (rank, room) in ROOMS.iter().enumerate() {
        for &used in room.may_use.iter().filter(|&&used| used != "*") {
            let below = ROOMS[rank + 1..].iter().any(|lower| lower.name == used);
            assert!(below, "{} may use {used}, which does not stand below it", room.name);
        }
    }
}

#[test]
fn no_room_stands_in_the_table_twice() {
    let names: BTreeSet<&str> = ROOMS.iter().map(|room| room.name).collect();
    assert_eq!(names.len(), ROOMS.len());
}
