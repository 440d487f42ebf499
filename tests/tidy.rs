//! House rules that a compiler does not check: which room may use which, what is not left lying
//! around, how long a file may be, and that the documents' links lead somewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, lines before its tests.
const LINES_MAX: usize = 800;

/// What each room may import of the others. Rooms at the top (`cli`, `main.rs`, `lib.rs`) may
/// import everything.
const ROOMS: &[(&str, &[&str])] = &[
    ("config", &["broker"]),
    ("broker", &[]),
    ("log", &["broker", "config", "fault"]),
    ("buffer", &[]),
    ("protocol", &["broker", "buffer", "config"]),
    (
        "shard",
        &["broker", "log", "protocol", "buffer", "config", "fault"],
    ),
    ("net", &["shard", "log", "config"]),
    // What a client and the broker share is the protocol.
    ("client", &["broker", "protocol"]),
];

/// What only some places may use: the words that betray the use, and the paths under `src` that
/// may.
const OUTSIDE: &[(&[&str], &[&str])] = &[
    (
        &[
            "mio::",
            "socket2::",
            "TcpListener",
            "TcpStream",
            "UdpSocket",
            "UnixStream",
        ],
        &["net/", "cli/", "client/"],
    ),
    (
        &["std::fs", "File::open", "File::create"],
        &["log/files", "cli/", "net/"],
    ),
    (
        &[
            "Instant::now",
            "SystemTime::now",
            "thread::sleep",
            ".elapsed()",
        ],
        // A client runs in another process than the broker and waits there.
        &["net/", "cli/", "client/"],
    ),
    (
        &["std::thread", "thread::spawn"],
        &["net/", "cli/", "client/", "log/files"],
    ),
    (&["std::env"], &["cli/", "net/"]),
    (&["std::process"], &["net/", "cli/", "log/files", "main.rs"]),
    (&["println!", "print!"], &["cli/", "net/"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `dir` whose name ends so, sorted.
fn files(dir: &str, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(dir)];
    while let Some(dir) = left.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("the directory is readable").path();
            if path.is_dir() {
                left.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    let dirs = ["src", "tests", "benches", "examples"];
    dirs.iter().flat_map(|dir| files(dir, ".rs")).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The path as it is told, relative to the project.
fn shown(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.to_string_lossy().into_owned()
}

/// The part of a file that ships: nothing from its test module on, nothing in test-only files.
fn shipped(path: &Path) -> String {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    if name.is_some_and(|name| name == "tests.rs") {
        return String::new();
    }
    let text = read(path);
    let mut kept = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().copied().unwrap_or_default();
        if line.trim() == "#[cfg(test)]" && next.trim_end().ends_with('{') {
            break;
        }
        kept.push(line);
    }
    kept.join("\n")
}

/// Lines of code, numbered from 1, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn assert_none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

/// The rooms that a line names by `crate::`.
fn rooms_named(line: &str) -> Vec<&str> {
    let mut named = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let list: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list
                .split('}')
                .next()
                .unwrap_or_default()
                .split(',')
                .collect(),
            None => vec![rest],
        };
        for word in list {
            let word = word.trim();
            let end = word.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
            named.push(&word[..end.unwrap_or(word.len())]);
        }
    }
    named
}

#[test]
fn rooms_import_only_what_they_may() {
    let all: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).chain(["cli"]).collect();
    let mut faults = Vec::new();
    for (room, allowed) in ROOMS {
        let mut paths = files(&format!("src/{room}"), ".rs");
        paths.extend(files("src", &format!("src/{room}.rs")));
        for path in paths {
            let text = shipped(&path);
            for (number, line) in code(&text) {
                for named in rooms_named(line) {
                    let fine = named == *room || !all.contains(&named) || allowed.contains(&named);
                    if !fine {
                        faults.push(format!("{}:{number}: {room} uses {named}", shown(&path)));
                    }
                }
            }
        }
    }
    assert_none(&faults, "a room may import only what ARCHITECTURE.md says");
}

#[test]
fn sockets_files_clocks_and_threads_stay_in_their_places() {
    let mut faults = Vec::new();
    for path in files("src", ".rs") {
        let place = shown(&path).trim_start_matches("src/").to_owned();
        let text = shipped(&path);
        for (words, allowed) in OUTSIDE {
            if allowed.iter().any(|allowed| place.starts_with(allowed)) {
                continue;
            }
            for (number, line) in code(&text) {
                if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                    faults.push(format!("{}:{number}: {word}", shown(&path)));
                }
            }
        }
    }
    assert_none(&faults, "only the rooms made for it touch the outside");
}

#[test]
fn nothing_is_left_unfinished() {
    // Written in two parts, so that this file does not find itself.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
        concat!("#[", "ignore"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let mut faults = Vec::new();
    for path in sources() {
        let text = read(&path);
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                faults.push(format!("{}:{}: {word}", shown(&path), number + 1));
            }
        }
    }
    assert_none(&faults, "unfinished work does not stay in the source");
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut faults = Vec::new();
    for path in files("src", ".rs") {
        let lines = shipped(&path).lines().count();
        if lines > LINES_MAX {
            faults.push(format!("{} has {lines} lines", shown(&path)));
        }
    }
    assert_none(
        &faults,
        &format!("at most {LINES_MAX} lines before a file's tests"),
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut faults = Vec::new();
    for path in sources() {
        if !read(&path).starts_with("//! ") {
            faults.push(shown(&path));
        }
    }
    assert_none(&faults, "the first line of a file says what it is for");
}

/// A heading's anchor as the usual renderers make it.
fn anchor(heading: &str) -> String {
    let mut anchor = String::new();
    for letter in heading.trim().chars() {
        match letter {
            ' ' => anchor.push('-'),
            '-' | '_' => anchor.push(letter),
            letter if letter.is_alphanumeric() => anchor.extend(letter.to_lowercase()),
            _ => {}
        }
    }
    anchor
}

/// The anchors of a document.
fn anchors(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        let heading = line.trim_start_matches('#');
        if !fenced && heading.len() < line.len() && heading.starts_with(' ') {
            found.push(anchor(heading));
        }
    }
    found
}

/// The targets of a document's links, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        if fenced || line.starts_with("    ") {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split(')').next().unwrap_or_default();
            found.push((index + 1, target.to_owned()));
        }
    }
    found
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut documents = files("docs", ".md");
    let top = fs::read_dir(root()).expect("the project's own directory");
    let top = top.flatten().map(|entry| entry.path());
    documents.extend(top.filter(|path| path.extension().is_some_and(|end| end == "md")));
    let mut seen = BTreeMap::new();
    let mut faults = Vec::new();
    for document in &documents {
        let text = read(document);
        let dir = document.parent().expect("a file has a directory");
        for (number, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() {
                document.clone()
            } else {
                dir.join(file)
            };
            let at = format!("{}:{number}: {target}", shown(document));
            if !path.exists() {
                faults.push(at);
            } else if !fragment.is_empty() {
                let known = seen
                    .entry(path.clone())
                    .or_insert_with(|| anchors(&read(&path)));
                if !known.iter().any(|anchor| anchor == fragment) {
                    faults.push(at);
                }
            }
        }
    }
    assert!(
        documents.len() >= 5,
        "the documents are where this test looks"
    );
    assert_none(&faults, "links lead to files and headings that are there");
}

#[test]
fn the_rules_find_what_they_look_for() {
    assert_eq!(
        rooms_named("use crate::{broker::id, net};"),
        ["broker", "net"]
    );
    assert_eq!(
        rooms_named("fn x(a: crate::log::Log, b: crate::shard::Now)"),
        ["log", "shard"]
    );
    assert_eq!(links("see [a](b.md#c) and [d](e)")[1], (1, "e".to_owned()));
    assert_eq!(links("    [not](a link)"), []);
    assert_eq!(
        anchors("# A\n\n## What a `PUB` costs\n"),
        ["a", "what-a-pub-costs"]
    );
}
