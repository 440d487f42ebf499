//! Runs every example of docs/http.md against a real broker: what the page shows is what comes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::Launch;
use crate::support::http::Http;

/// The words of a command line; quotes keep what is between them together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut is_quoted = false;
    for letter in line.chars() {
        match letter {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    words.push(word);
    words
}

/// Does what a `curl` of these words would: the text that it prints.
fn curl(http: &mut Http, words: &[String]) -> String {
    let (mut method, mut data, mut url) = (None, None, None);
    let (mut shows_head, mut is_head) = (false, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-s" => {}
            "-si" => shows_head = true,
            "-sI" => (is_head, shows_head) = (true, true),
            "-X" => method = words.next().cloned(),
            "-d" => data = words.next().cloned(),
            other => {
                assert!(!other.starts_with('-'), "what is {other}?");
                url = Some(other.to_owned());
            }
        }
    }
    let url = url.expect("curl is told where to");
    let target = url
        .strip_prefix("http://localhost:7766")
        .expect("the examples ask this machine");
    let fallback = match (is_head, &data) {
        (true, _) => "HEAD",
        (_, Some(_)) => "POST",
        _ => "GET",
    };
    let method = method.unwrap_or_else(|| fallback.to_owned());
    let response = http.ask(&method, target, data.unwrap_or_default().as_bytes());
    let text = response.text();
    match shows_head {
        true => format!("{}\n{text}", response.head.replace('\r', "")),
        false => text,
    }
}

/// `want` means `line`: `…` stands for anything, `<word>` for what stands there, the same everywhere.
fn means(want: &str, line: &str, known: &mut BTreeMap<String, String>) -> bool {
    if let Some(rest) = want.strip_prefix('…') {
        let mut ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
        return ends.any(|at| means(rest, &line[at..], known));
    }
    if let Some((name, rest)) = want.strip_prefix('<').and_then(|want| want.split_once('>')) {
        let end = line
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(line.len());
        known.insert(format!("<{name}>"), line[..end].to_owned());
        return end > 0 && means(rest, &line[end..], known);
    }
    match (want.chars().next(), line.chars().next()) {
        (None, None) => true,
        (Some(a), Some(b)) if a == b => means(&want[a.len_utf8()..], &line[b.len_utf8()..], known),
        _ => false,
    }
}

#[test]
fn the_examples_are_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/http.md");
    let page = fs::read_to_string(path).expect("the page is there");
    for shards in ["1", "2", "4"] {
        let broker = Launch::memory().arg(&format!("--shards {shards}")).start();
        check(&page, &mut Http::connect(broker.address));
    }
}

/// Does what every example of the page does, and compares what comes with what the page shows.
fn check(page: &str, http: &mut Http) {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut examples = 0;
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().expect("a block ends");
        for example in block.split("$ curl ").skip(1) {
            let (command, shown) = example.split_once('\n').expect("a command has a line");
            let mut command = command.to_owned();
            for (name, text) in &known {
                command = command.replace(name.as_str(), text);
            }
            let found = curl(http, &words(&command.replace('…', "1.1.99")));
            let is_open = shown.ends_with("…\n");
            let mut lines = found.lines();
            for want in shown.lines() {
                if want == "…" && is_open {
                    lines.by_ref().for_each(drop);
                    continue;
                }
                let line = lines.next().unwrap_or_default();
                assert!(
                    means(want, line, &mut known),
                    "curl {command}\nwanted {want:?}\n found {line:?}"
                );
            }
            assert_eq!(lines.next(), None, "curl {command}: there is more");
            examples += 1;
        }
    }
    assert!(examples > 15, "{examples} examples");
}
