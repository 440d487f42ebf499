//! Replays every transcript of docs/protocol.md against a real broker, each on a data directory of
//! its own, so that the page can't lie.
//!
//! A block begins with three backticks and `transcript`. `C: text` is sent with a line end, `S: text` is the next
//! line that comes; `C2:`/`S2:` and so on are further connections, opened when they are first named.
//! `…` stands for anything on its line, `S: …` alone for any number of lines, `C: (half-close)` and
//! `S: (closes)` for the ends of the two directions, `-- 200ms` for a pause. At the end of a block no
//! connection may have anything more to say. `<token>` stands for what `reply=<token>` was last.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::{Broker, Launch, TempDir};

const PAGE: &str = include_str!("../../docs/protocol.md");

/// What stands for anything.
const ANYTHING: &str = "…";

/// One block of the page.
struct Transcript {
    /// Line of the page on which its first line stands, from 1.
    line: usize,
    text: Vec<&'static str>,
}

fn transcripts() -> Vec<Transcript> {
    let mut found: Vec<Transcript> = Vec::new();
    let mut open = false;
    for (index, line) in PAGE.lines().enumerate() {
        match line {
            "```transcript" => {
                open = true;
                found.push(Transcript {
                    line: index + 2,
                    text: Vec::new(),
                });
            }
            "```" => open = false,
            line if open => found.last_mut().expect("one is open").text.push(line),
            _ => {}
        }
    }
    found
}

/// `want`, in which `…` stands for anything, means `line`.
fn matches(want: &str, line: &str) -> bool {
    let mut parts = want.split(ANYTHING);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// One connection, read line by line whatever the lines are.
struct Peer {
    reader: BufReader<TcpStream>,
    closed: bool,
}

impl Peer {
    fn connect(broker: &Broker) -> Peer {
        let stream = TcpStream::connect(broker.address).expect("the broker listens");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("it is not zero");
        Peer {
            reader: BufReader::new(stream),
            closed: false,
        }
    }

    fn send(&mut self, line: &str) {
        let sent = self
            .reader
            .get_mut()
            .write_all(format!("{line}\n").as_bytes());
        sent.expect("the broker reads");
    }

    /// The next line without its end.
    fn line(&mut self, place: &str) -> String {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        read.unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(line.pop(), Some('\n'), "{place}: the end of the connection");
        line
    }

    /// Everything up to the end of the connection.
    fn rest(&mut self, place: &str) -> String {
        let mut rest = String::new();
        let read = self.reader.read_to_string(&mut rest);
        read.unwrap_or_else(|error| panic!("{place}: not closed: {error}"));
        self.closed = true;
        rest
    }
}

struct Replay<'a> {
    broker: &'a Broker,
    peers: BTreeMap<String, Peer>,
    /// `S: …` was the last line of that connection.
    skipping: Option<String>,
    /// What stood where a line says `<token>`.
    token: String,
}

/// `want` with the token of a request written out, and that token if `got` is what tells it first.
fn with_token(want: &str, got: &str, token: &str) -> (String, Option<String>) {
    let told = want
        .contains("reply=<token>")
        .then(|| got.split(' ').find_map(|word| word.strip_prefix("reply=")));
    let told = told.flatten().map(str::to_owned);
    let want = want.replace("<token>", told.as_deref().unwrap_or(token));
    (want, told)
}

impl Replay<'_> {
    fn peer(&mut self, name: &str) -> &mut Peer {
        let broker = self.broker;
        self.peers
            .entry(name.to_owned())
            .or_insert_with(|| Peer::connect(broker))
    }

    fn send(&mut self, name: &str, text: &str) {
        let token = self.token.clone();
        let peer = self.peer(name);
        match text {
            "(half-close)" => {
                let ended = peer.reader.get_ref().shutdown(Shutdown::Write);
                ended.expect("the connection is open");
            }
            text => peer.send(&text.replace("<token>", &token)),
        }
    }

    fn expect(&mut self, name: &str, want: &str, place: &str) {
        if want == ANYTHING {
            self.skipping = Some(name.to_owned());
            return;
        }
        let skips = self.skipping.take().is_some_and(|skipped| skipped == name);
        if want == "(closes)" {
            let rest = self.peer(name).rest(place);
            assert!(skips || rest.is_empty(), "{place}: {rest}");
            return;
        }
        loop {
            let got = self.peer(name).line(place);
            let (want, told) = with_token(want, &got, &self.token);
            if matches(&want, &got) {
                if let Some(told) = told {
                    self.token = told;
                }
                return;
            }
            assert!(skips, "{place}:\nwant {want}\n got {got}");
        }
    }

    fn line(&mut self, line: &str, place: &str) {
        if let Some(pause) = line.strip_prefix("-- ") {
            let pause = pause.strip_suffix("ms").and_then(|ms| ms.parse().ok());
            thread::sleep(Duration::from_millis(pause.expect("a pause is in ms")));
            return;
        }
        let (who, text) = line.split_once(':').expect("a line is C: or S:");
        let text = text.strip_prefix(' ').unwrap_or(text);
        match who.split_at(1) {
            ("C", name) => self.send(name, text),
            ("S", name) => self.expect(name, text, place),
            _ => panic!("{place}: {line}"),
        }
    }

    /// Nothing more comes but the answer to a last question.
    fn finish(self, place: &str) {
        for mut peer in self.peers.into_values().filter(|peer| !peer.closed) {
            peer.send("PING :the end");
            let last = peer.line(place);
            assert_eq!(last, "PONG :the end", "{place}: something more came");
        }
    }
}

fn replay(transcript: &Transcript) {
    let first = format!("docs/protocol.md:{}", transcript.line);
    let directory = TempDir::new("transcript");
    let mut broker = Launch::data(&directory.data()).start();
    let mut replay = Replay {
        broker: &broker,
        peers: BTreeMap::new(),
        skipping: None,
        token: String::new(),
    };
    for (index, line) in transcript.text.iter().enumerate() {
        let place = format!("docs/protocol.md:{}", transcript.line + index);
        replay.line(line, &place);
    }
    replay.finish(&first);
    broker.terminate();
}

#[test]
fn every_transcript_of_the_page_is_what_happens() {
    let transcripts = transcripts();
    assert!(transcripts.len() >= 15, "the page has its transcripts");
    for transcript in &transcripts {
        replay(transcript);
    }
}

/// Each verb that can be run is shown running.
#[test]
fn every_verb_is_in_a_transcript() {
    let sent: Vec<String> = transcripts()
        .iter()
        .flat_map(|transcript| transcript.text.iter())
        .filter_map(|line| line.strip_prefix('C')?.split_once(": "))
        .flat_map(|(_, text)| {
            text.split(' ')
                .map(|word| word.trim_end_matches('!').to_owned())
        })
        .collect();
    let verbs = "HELLO PING QUIT HELP PUB MPUB PULL ACK NACK TOUCH SUB CREDIT UNSUB QSET QGET QLS QDEL \
                 DEL PURGE PEEK MOVE SYNC STATS CANCEL REQ REP CAST BIND UNBIND BEGIN \
                 COMMIT ABORT SEEK DRAIN";
    for verb in verbs.split(' ') {
        assert!(
            sent.iter().any(|word| word == verb),
            "{verb} is in no transcript"
        );
    }
}

#[test]
fn a_wildcard_means_anything_and_nothing_more() {
    assert!(matches("OK 1 disk", "OK 1 disk"));
    assert!(!matches("OK 1 disk", "OK 1 disk dup=1"));
    assert!(!matches("OK 1 disk dup=1", "OK 1 disk"));
    assert!(matches("DATA $…", "DATA $15"));
    assert!(!matches("DATA $…", "OK"));
    assert!(matches("a … c … e", "a b c d e"));
    assert!(!matches("a … c … e", "a b c d"));
    assert!(!matches("ab…ba", "aba"));
}
