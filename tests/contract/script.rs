//! Plays a written conversation with a real broker: "send a line, expect a line". Every test of
//! this folder is one such script; nothing here knows the broker's insides.
//!
//! ```text
//! C: PUB jobs :hi         send this line with a line end
//! C+ PING\r\nPI           send these bytes, no line end added; \r \n \t \0 \\ and \xNN mean octets
//! S: OK 1 mem             this line comes next; `…` in it stands for anything
//! S: …                    any number of lines, up to the next one of this connection
//! S: MSG jobs <a> $2      `<a>` is whatever word stands there, the same wherever `<a>` is written
//! C2: …  S2: …            a second connection, opened when it is first named
//! {ab*3}                  ababab
//! C: (half-close)         end of our input          C: (close)   the connection is closed
//! S: (closes)             the broker closes, and says nothing more
//! -- 200ms                a pause
//! -- mark                 the instant that `-- at least 1s` and `-- at most 2s` count from
//! -- kill, -- restart     kill -9 or SIGTERM, then a start on the same data; connections are gone
//! -- ends                 the broker ends by itself, with exit code 0; then it is started again
//! # …                     a remark
//! ```
//!
//! At the end no connection may have anything more to say.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Broker, Launch, TempDir};

/// Nothing in these scripts takes longer, whatever else the machine does.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Plays a script against a broker started with `--memory`.
pub fn memory(script: &str) {
    play(&Launch::memory(), script);
}

/// Plays a script against a broker started with `--memory` and these arguments.
pub fn memory_with(arguments: &str, script: &str) {
    play(&Launch::memory().arg(arguments), script);
}

/// Plays a script against a broker with a data directory of its own.
pub fn disk(script: &str) {
    let dir = TempDir::new("contract");
    play(&Launch::data(&dir.data()), script);
}

/// Plays a script against a broker with a data directory of its own and these arguments.
pub fn disk_with(arguments: &str, script: &str) {
    let dir = TempDir::new("contract");
    play(&Launch::data(&dir.data()).arg(arguments), script);
}

fn play(launch: &Launch, script: &str) {
    let mut player = Player {
        launch,
        broker: launch.start(),
        peers: BTreeMap::new(),
        words: BTreeMap::new(),
        skipping: BTreeSet::new(),
        mark: Instant::now(),
    };
    for (index, line) in script.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Err(fault) = player.step(line) {
            panic!("line {} of the script, {line:?}: {fault}", index + 1);
        }
    }
    player.finish();
}

/// A script in play.
struct Player<'a> {
    launch: &'a Launch,
    broker: Broker,
    /// Open connections by what follows `C` or `S`.
    peers: BTreeMap<String, Peer>,
    /// What each `<word>` stands for.
    words: BTreeMap<String, String>,
    /// Connections of which any number of lines may come now.
    skipping: BTreeSet<String>,
    mark: Instant,
}

impl Player<'_> {
    fn step(&mut self, line: &str) -> Result<(), String> {
        if let Some(order) = line.strip_prefix("-- ") {
            return self.order(order);
        }
        let at = line.find([':', '+']).ok_or("it is no step")?;
        let (who, rest) = line.split_at(at);
        let raw = rest.starts_with('+');
        let text = rest[1..].strip_prefix(' ').unwrap_or(&rest[1..]);
        let Some(side) = who.get(..1) else {
            return Err("it is no step".to_owned());
        };
        let name = who[1..].to_owned();
        match side {
            "C" => self.send(name, text, raw),
            "S" => self.expect(name, text),
            _ => Err("it is no step".to_owned()),
        }
    }

    /// A line that begins with `--`.
    fn order(&mut self, order: &str) -> Result<(), String> {
        let passed = self.mark.elapsed();
        if let Some(least) = order.strip_prefix("at least ") {
            return match passed >= duration(least) {
                true => Ok(()),
                false => Err(format!("after {passed:?} already")),
            };
        }
        if let Some(most) = order.strip_prefix("at most ") {
            return match passed <= duration(most) {
                true => Ok(()),
                false => Err(format!("after {passed:?} only")),
            };
        }
        match order {
            "mark" => self.mark = Instant::now(),
            "kill" | "restart" => {
                match order {
                    "kill" => self.broker.process.kill_running(),
                    _ => self.broker.terminate(),
                }
                self.peers.clear();
                self.broker = self.launch.start();
            }
            "ends" => {
                let status = self.broker.process.wait(ANSWER_MAX);
                let code = status.ok_or("it still runs")?.code();
                if code != Some(0) {
                    return Err(format!("the exit code is {code:?}"));
                }
                self.peers.clear();
                self.broker = self.launch.start();
            }
            pause => thread::sleep(duration(pause)),
        }
        Ok(())
    }

    fn peer(&mut self, name: &str) -> &mut Peer {
        let address = self.broker.address;
        self.peers.entry(name.to_owned()).or_insert_with(|| {
            let stream = TcpStream::connect(address).expect("the broker listens");
            stream.set_nodelay(true).expect("a socket takes it");
            Peer(BufReader::with_capacity(64 << 10, stream))
        })
    }

    fn send(&mut self, name: String, text: &str, raw: bool) -> Result<(), String> {
        match text {
            "(half-close)" => self
                .peer(&name)
                .stream()
                .shutdown(Shutdown::Write)
                .map_err(|error| error.to_string()),
            "(close)" => {
                self.peers.remove(&name);
                Ok(())
            }
            text => {
                let mut text = repeated(text);
                for (word, means) in &self.words {
                    text = text.replace(&format!("<{word}>"), means);
                }
                let bytes = match raw {
                    true => octets(&text),
                    false => format!("{text}\n").into_bytes(),
                };
                // The broker may have closed it already; what it said can still be read.
                let _ = self.peer(&name).stream().write_all(&bytes);
                Ok(())
            }
        }
    }

    fn expect(&mut self, name: String, text: &str) -> Result<(), String> {
        if text == "…" {
            self.skipping.insert(name);
            return Ok(());
        }
        loop {
            let line = self.peer(&name).line()?;
            if text == "(closes)" {
                return line.map_or(Ok(()), |line| Err(format!("there is more: {line:?}")));
            }
            let line = line.ok_or("the connection was closed")?;
            if means(&repeated(text), &line, &mut self.words) {
                self.skipping.remove(&name);
                return Ok(());
            }
            if !self.skipping.contains(&name) {
                return Err(format!("it is {line:?}"));
            }
        }
    }

    /// Nobody has anything more to say: a `PING` would be answered behind it.
    fn finish(mut self) {
        for (name, peer) in &mut self.peers {
            if !self.skipping.contains(name) {
                peer.assert_silent();
            }
        }
        self.broker.assert_well();
    }
}

/// One connection.
struct Peer(BufReader<TcpStream>);

impl Peer {
    fn stream(&mut self) -> &mut TcpStream {
        self.0.get_mut()
    }

    /// The next line without its end; none if the connection was closed.
    fn line(&mut self) -> Result<Option<String>, String> {
        let stream = self.stream();
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .expect("it is longer than 0");
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => return Err(format!("nothing comes ({error})")),
        }
        if line.is_empty() {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            return Err("closed within a line".to_owned());
        }
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }

    fn assert_silent(&mut self) {
        let stream = self.stream();
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("it is longer than 0");
        let mut more = Vec::new();
        // It ends with a timeout, or with the end of a stream that was closed.
        let _ = self.0.read_to_end(&mut more);
        let more = String::from_utf8_lossy(&more);
        assert!(more.is_empty(), "there is more at the end: {more:?}");
    }
}

/// `want`, in which `…` stands for anything and `<word>` for one word, means `line`. New words are
/// remembered if it does.
fn means(want: &str, line: &str, words: &mut BTreeMap<String, String>) -> bool {
    if let Some(want) = want.strip_prefix('…') {
        let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
        return ends.into_iter().any(|at| means(want, &line[at..], words));
    }
    if let Some((word, rest)) = word(want) {
        if let Some(known) = words.get(word) {
            let left = line.strip_prefix(known.as_str()).map(str::to_owned);
            return left.is_some_and(|left| means(rest, &left, words));
        }
        let end = line.find([' ', '.', ',']).unwrap_or(line.len());
        let end = match rest.starts_with('.') {
            true => end,
            false => line.find([' ', ',']).unwrap_or(line.len()),
        };
        words.insert(word.to_owned(), line[..end].to_owned());
        let fits = end > 0 && means(rest, &line[end..], words);
        if !fits {
            words.remove(word);
        }
        return fits;
    }
    // A `<` that begins no word is plain text too.
    let plain = want
        .char_indices()
        .find(|&(at, _)| at > 0 && want[at..].starts_with(['…', '<']))
        .map_or(want.len(), |(at, _)| at);
    match plain {
        0 => line.is_empty(),
        plain => line
            .strip_prefix(&want[..plain])
            .is_some_and(|line| means(&want[plain..], line, words)),
    }
}

/// `<word>` at the front, and what follows it.
fn word(want: &str) -> Option<(&str, &str)> {
    let (word, rest) = want.strip_prefix('<')?.split_once('>')?;
    let plain = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
    (!word.is_empty() && word.bytes().all(plain)).then_some((word, rest))
}

/// Every `{text*n}` written out.
fn repeated(text: &str) -> String {
    let mut out = String::new();
    let mut left = text;
    while let Some((before, rest)) = left.split_once('{') {
        out.push_str(before);
        let Some((inside, after)) = rest.split_once('}') else {
            out.push('{');
            left = rest;
            continue;
        };
        match inside.rsplit_once('*') {
            Some((text, count)) => {
                let count = count.parse().expect("a script says how often");
                out.push_str(&text.repeat(count));
            }
            None => out.push_str(&format!("{{{inside}}}")),
        }
        left = after;
    }
    out + left
}

/// The octets that a raw step means.
fn octets(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut left = text.bytes();
    while let Some(octet) = left.next() {
        if octet != b'\\' {
            out.push(octet);
            continue;
        }
        match left.next() {
            Some(b'r') => out.push(b'\r'),
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'0') => out.push(0),
            Some(b'\\') => out.push(b'\\'),
            Some(b'x') => {
                let digits: String = left.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&digits, 16).expect("a script writes two digits"));
            }
            other => panic!("\\{other:?} in a script"),
        }
    }
    out
}

fn duration(text: &str) -> Duration {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s').unwrap_or_default(), 1000),
    };
    let number: u64 = digits.parse().expect("a script says ms or s");
    Duration::from_millis(number * unit)
}
