//! Crude readers of Rust text: they know comments, strings, braces and words, and no more of the language.
//! Offsets are in bytes and stay true to the file from one reader to the next.

use std::path::Path;

/// All `.rs` files below `folders`, by path from the crate's root. A folder that does not exist holds none.
pub(crate) fn tree(folders: &[&str]) -> Vec<(String, String)> {
    fn walk(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return;
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(root, &path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in folders {
        walk(root, &root.join(folder), &mut files);
    }
    files.sort();
    files
}

/// `text` with comments and the insides of strings and characters blanked; every other byte stays in its place.
pub(crate) fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let literal = literal_at(rest, code.chars().next_back());
        let (taken, is_code) = if literal > 0 { (literal, false) } else { (first.len_utf8(), true) };
        for c in rest[..taken].chars() {
            if is_code || c == '\n' { code.push(c) } else { code.extend(std::iter::repeat_n(' ', c.len_utf8())) }
        }
        rest = &rest[taken..];
    }
    code
}

/// The bytes of the comment, string or character that `rest` starts with, or 0. `before` is what stands before it.
fn literal_at(rest: &str, before: Option<char>) -> usize {
    let until = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        let (mut depth, mut at) = (1, 2);
        while depth > 0 && at < rest.len() {
            let (step, change) = match &rest.as_bytes()[at..] {
                [b'/', b'*', ..] => (2, 1),
                [b'*', b'/', ..] => (2, -1),
                _ => (1, 0),
            };
            (at, depth) = (at + step, depth + change);
        }
        return at;
    }
    let raw = rest.trim_start_matches(['b', 'c']).strip_prefix('r').filter(|_| !before.is_some_and(is_word));
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return until(&format!("\"{}", "#".repeat(hashes)), rest.len() - raw.len() + hashes + 1);
        }
    }
    if rest.starts_with('"') {
        return escaped_until(rest, '"');
    }
    let mut chars = rest.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('\\'), _) | (Some('\''), Some(_), Some('\'')) => escaped_until(rest, '\''),
        _ => 0,
    }
}

/// The bytes up to and with the next `quote` after the first that no backslash precedes.
fn escaped_until(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// `code` with every item under `#[cfg(test)]` (or `all(test, …)`) blanked.
pub(crate) fn without_tests(code: &str) -> String {
    let mut kept = code.to_owned();
    for attribute in ["#[cfg(test)]", "#[cfg(all(test"] {
        while let Some(start) = kept.find(attribute) {
            let item = start + kept[start..].find(']').unwrap_or(0) + 1;
            let end = end_of_item(&kept, item).map_or(kept.len(), |end| end + 1);
            let blank: String = kept[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            kept.replace_range(start..end, &blank);
        }
    }
    kept
}

/// Where the item that begins at `start` ends: at its `;`, or at the `}` that closes its first `{`.
pub(crate) fn end_of_item(code: &str, start: usize) -> Option<usize> {
    let (mut braces, mut brackets) = (0, 0);
    for (at, c) in code.char_indices().skip_while(|&(at, _)| at < start) {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            '{' => braces += 1,
            '}' => braces -= 1,
            _ => {}
        }
        if (c == '}' && braces == 0) || (c == ';' && braces == 0 && brackets == 0) {
            return Some(at);
        }
    }
    None
}

/// What follows `crate::` anywhere in `code`, with its place; a group in braces gives one entry each.
pub(crate) fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(code, "crate").filter(|at| code[at + 5..].starts_with("::")) {
        let rest = &code[at + 7..];
        let ident = |text: &str| text.trim_start().chars().take_while(|&c| is_word(c)).collect::<String>();
        if !rest.starts_with('{') {
            found.push((at, ident(rest)));
            continue;
        }
        let mut depth = 0;
        for (offset, c) in rest.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            let opens_entry = depth == 1 && (c == '{' || c == ',');
            if opens_entry && !ident(&rest[offset + 1..]).is_empty() {
                found.push((at, ident(&rest[offset + 1..])));
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// Where `word` stands in `code` as a whole word.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !code[..at].chars().next_back().is_some_and(is_word)
            && !code[at + word.len()..].chars().next().is_some_and(is_word)
    })
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The number of the line, from 0, that holds byte `at`.
pub(crate) fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count()
}

pub(crate) fn place(path: &str, code: &str, at: usize) -> String {
    format!("{path}:{}", line_of(code, at) + 1)
}

#[test]
fn the_readers_take_no_comment_or_string_for_code() {
    let hidden = [
        "// unsafe {",
        "/* unsafe { /* nested */ unsafe { */",
        r#""unsafe { \" unsafe {""#,
        "r#\"unsafe { \" unsafe {\"#",
        "br\"unsafe { \\\"",
        "'\"' '{' '\\'' b'\\\\' '\\u{7b}'",
    ];
    for literal in hidden {
        let code = code_of(&format!("<'a>(1) {literal}\n;r#fn;"));
        assert_eq!(code.split_whitespace().collect::<Vec<_>>().concat().replace('b', ""), "<'a>(1);r#fn;", "{literal}");
    }
}
