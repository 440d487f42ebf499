//! RESP as its clients write and read it.

use std::collections::VecDeque;
use std::fmt;

use super::{UNTOLD, line, message, plain};
use crate::command::{Kind, Pull};
use crate::rng::Rng;
use crate::wire::Line;

/// The priority that stands for the head of a list.
pub const HEAD: u64 = 255;

/// A message handed out by a pop is known by this number alone: `untold-<connection>-<n>`.
type Number = u64;

/// What the answer to a command looks like.
#[derive(Clone, Debug)]
enum Expected {
    /// `+OK`, or a map that says which protocol.
    Hello,
    /// The body that was sent.
    Pong(Option<String>),
    /// How long the list is.
    Length,
    /// The same, of a command that takes nothing and gives no lines.
    Data,
    /// A body or nothing.
    One(String),
    /// Bodies or nothing.
    Many(String),
    /// Key and body, or nothing.
    KeyAndOne(Vec<String>),
    /// Key and bodies, or nothing.
    KeyAndMany(Vec<String>),
    /// `+OK`
    Bye,
    /// `+QUEUED`
    Queued,
    /// All that was said since `MULTI`, in one.
    Exec(Vec<Expected>),
    /// An error.
    Error,
}

/// What is said in the end; a map is an array of its keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Value {
    Simple(String),
    Error(String),
    Integer(u64),
    Bulk(Vec<u8>),
    Array(Vec<Value>),
    Nil,
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Simple(text) | Value::Error(text) => out.write_str(text),
            Value::Integer(number) => write!(out, ":{number}"),
            Value::Bulk(octets) => write!(out, "{}", String::from_utf8_lossy(octets)),
            Value::Array(values) => {
                out.write_str("[")?;
                values
                    .iter()
                    .try_for_each(|value| write!(out, " {value}"))?;
                out.write_str(" ]")
            }
            Value::Nil => out.write_str("nil"),
        }
    }
}

/// Cuts a connection's octets into replies.
#[derive(Debug)]
pub struct Reader {
    link: usize,
    buffer: Vec<u8>,
    expected: VecDeque<Expected>,
    /// What `EXEC` will answer, since `MULTI`.
    kept: Option<Vec<Expected>>,
    given: Number,
}

fn words(rng: &mut Rng, words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for (at, word) in words.iter().enumerate() {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        match at == 0 && rng.chance(300) {
            true => out.extend_from_slice(&word.to_ascii_lowercase()),
            false => out.extend_from_slice(word),
        }
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// How a pull is asked for: the shape depends on nothing but the pull, so that its answer is known.
fn shape(pull: &Pull) -> Expected {
    let sources = pull.sources.clone();
    match (&sources[..], pull.count, pull.wait_us) {
        ([one], 1, 0) => Expected::One(one.clone()),
        ([one], _, 0) => Expected::Many(one.clone()),
        (_, 1, 1..) => Expected::KeyAndOne(sources),
        _ => Expected::KeyAndMany(sources),
    }
}

fn pull(pull: &Pull, rng: &mut Rng) -> Vec<u8> {
    let names: Vec<String> = pull.sources.iter().map(|name| plain(name)).collect();
    let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    let count = pull.count.to_string();
    let timeout = format!("{}", pull.wait_us as f64 / 1e6);
    let number = names.len().to_string();
    let end: &[u8] = if pull.tail { b"RIGHT" } else { b"LEFT" };
    let verbs: [&[u8]; 2] = match pull.tail {
        true => [b"RPOP", b"BRPOP"],
        false => [b"LPOP", b"BLPOP"],
    };
    let mut said: Vec<&[u8]> = Vec::new();
    match shape(pull) {
        Expected::One(_) => said.extend([verbs[0], names[0]]),
        Expected::Many(_) => said.extend([verbs[0], names[0], count.as_bytes()]),
        Expected::KeyAndOne(_) => {
            said.push(verbs[1]);
            said.extend(names);
            said.push(timeout.as_bytes());
        }
        _ => {
            match pull.wait_us {
                0 => said.push(b"LMPOP"),
                _ => said.extend([&b"BLMPOP"[..], timeout.as_bytes()]),
            }
            said.push(number.as_bytes());
            said.extend(names);
            said.extend([end, b"COUNT", count.as_bytes()]);
        }
    }
    words(rng, &said)
}

/// The octets of a command.
pub fn typed(kind: &Kind, rng: &mut Rng) -> Vec<u8> {
    match kind {
        Kind::Hello { expired: false } => match rng.chance(500) {
            true => words(rng, &[b"HELLO", b"3"]),
            false => words(rng, &[b"HELLO", b"2"]),
        },
        Kind::Ping(None) => words(rng, &[b"PING"]),
        Kind::Ping(Some(text)) => words(rng, &[b"PING", text.as_bytes()]),
        Kind::QGet(queue) => words(rng, &[b"LLEN", plain(queue).as_bytes()]),
        Kind::Publish(publish) => {
            let name = plain(&publish.queue);
            let verb: &[u8] = match publish.pri {
                Some(HEAD) => b"LPUSH",
                _ => b"RPUSH",
            };
            let mut said: Vec<&[u8]> = vec![verb, name.as_bytes()];
            said.extend(publish.bodies.iter().map(|(_, body)| &body[..]));
            words(rng, &said)
        }
        Kind::Pull(asked) => pull(asked, rng),
        Kind::Multi => words(rng, &[b"MULTI"]),
        Kind::Exec => words(rng, &[b"EXEC"]),
        Kind::Quit => words(rng, &[b"QUIT"]),
        Kind::Bad { bytes, .. } => bytes.clone(),
        other => unreachable!("{other:?} is not said in RESP"),
    }
}

impl Reader {
    /// The reader of connection number `link`.
    pub fn new(link: usize) -> Reader {
        Reader {
            link,
            buffer: Vec::new(),
            expected: VecDeque::new(),
            kept: None,
            given: 0,
        }
    }

    /// A command is on its way.
    pub fn expect(&mut self, kind: &Kind) {
        let expected = match kind {
            Kind::Multi => {
                self.kept = Some(Vec::new());
                return self.expected.push_back(Expected::Bye);
            }
            Kind::Exec => Expected::Exec(self.kept.take().expect("there was a MULTI")),
            Kind::Hello { .. } => Expected::Hello,
            Kind::Ping(text) => Expected::Pong(text.clone()),
            Kind::QGet(_) => Expected::Data,
            Kind::Publish(_) => Expected::Length,
            Kind::Pull(pull) => shape(pull),
            Kind::Quit => Expected::Bye,
            Kind::Bad { .. } => Expected::Error,
            other => unreachable!("{other:?} is not said in RESP"),
        };
        match &mut self.kept {
            Some(kept) => {
                kept.push(expected);
                self.expected.push_back(Expected::Queued);
            }
            None => self.expected.push_back(expected),
        }
    }

    /// Whether a reply has begun and not ended.
    pub fn inside(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// See [`super::Reader::is_cut_by_failure`].
    pub fn is_cut_by_failure(&self) -> bool {
        let text = String::from_utf8_lossy(&self.buffer);
        let last = text.strip_suffix("\r\n").unwrap_or_default();
        let last = last.rsplit("\r\n").next().unwrap_or_default();
        text.starts_with('*') && last.starts_with("-UNKNOWNRESULT ")
    }

    /// See [`super::Reader::feed`].
    pub fn feed(&mut self, octets: &[u8]) -> Result<Vec<Line>, String> {
        self.buffer.extend_from_slice(octets);
        let mut lines = Vec::new();
        let mut start = 0;
        while let Some((value, size)) = parse(&self.buffer[start..])? {
            start += size;
            self.answer(value, &mut lines)?;
        }
        self.buffer.drain(..start);
        Ok(lines)
    }

    fn answer(&mut self, value: Value, lines: &mut Vec<Line>) -> Result<(), String> {
        if let Value::Error(text) = &value {
            let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
            let is_end = rest.starts_with("the input ended inside");
            let code = match word {
                _ if is_end => "PROTO",
                "ERR" => "SYNTAX",
                "OOM" => "MEM",
                word => word,
            };
            if !is_end && self.expected.pop_front().is_none() {
                return Err(format!("an error that answers nothing: {text}"));
            }
            let mut said = line("ERR", None, &[code]);
            said.text = Some(rest.to_string());
            lines.push(said);
            return Ok(());
        }
        let Some(expected) = self.expected.pop_front() else {
            return Err(format!("a reply that answers nothing: {value:?}"));
        };
        let wrong = |value: &Value| Err(format!("{value:?} answers {expected:?}"));
        match (&expected, value) {
            (Expected::Hello, Value::Array(pairs)) if pairs.len() % 2 == 0 && pairs.len() >= 6 => {
                lines.push(line("OK", None, &[]));
            }
            (Expected::Bye, Value::Simple(text)) if text == "OK" => {
                lines.push(line("OK", None, &[]));
            }
            (Expected::Queued, Value::Simple(text)) if text == "QUEUED" => {}
            (Expected::Exec(parts), Value::Array(values)) if parts.len() == values.len() => {
                for (part, value) in parts.iter().zip(values) {
                    self.expected.push_front(part.clone());
                    self.answer(value, lines)?;
                }
                lines.push(line("OK", None, &[]));
            }
            (Expected::Pong(None), Value::Simple(text)) if text == "PONG" => {
                lines.push(line("PONG", None, &[]));
            }
            (Expected::Pong(Some(text)), Value::Bulk(body)) if body == text.as_bytes() => {
                let mut said = line("PONG", None, &[]);
                said.text = Some(text.clone());
                lines.push(said);
            }
            (Expected::Length, Value::Integer(length)) => {
                lines.push(line("OK", None, &[&length.to_string()]));
            }
            (Expected::Data, Value::Integer(_)) => lines.push(line("DATA", None, &[])),
            (Expected::One(source), Value::Bulk(body)) => {
                let source = source.clone();
                self.give(&source, vec![body], lines);
            }
            (Expected::Many(source), Value::Array(values)) => {
                let source = source.clone();
                let bodies = bodies(values)?;
                self.give(&source, bodies, lines);
            }
            (Expected::KeyAndOne(sources), Value::Array(values)) if values.len() == 2 => {
                let mut bodies = bodies(values)?;
                let key = bodies.remove(0);
                let source = named(sources, &key)?;
                self.give(&source, bodies, lines);
            }
            (Expected::KeyAndMany(sources), Value::Array(values)) if values.len() == 2 => {
                let [Value::Bulk(key), Value::Array(values)] = &values[..] else {
                    return wrong(&Value::Array(values));
                };
                let source = named(sources, key)?;
                let bodies = bodies(values.clone())?;
                self.give(&source, bodies, lines);
            }
            (
                Expected::One(_)
                | Expected::Many(_)
                | Expected::KeyAndOne(_)
                | Expected::KeyAndMany(_),
                Value::Nil,
            ) => lines.push(line("END", None, &["0"])),
            (_, value) => return wrong(&value),
        }
        Ok(())
    }

    /// Messages, and the end of the answer.
    fn give(&mut self, source: &str, bodies: Vec<Vec<u8>>, lines: &mut Vec<Line>) {
        let count = bodies.len();
        for body in bodies {
            self.given += 1;
            let handle = format!("{UNTOLD}{}-{}", self.link, self.given);
            lines.push(message(None, &[source, &handle], body));
        }
        lines.push(line("END", None, &[&count.to_string()]));
    }
}

/// Which of the queues is named.
fn named(sources: &[String], key: &[u8]) -> Result<String, String> {
    let found = sources.iter().find(|name| plain(name).as_bytes() == key);
    found
        .cloned()
        .ok_or_else(|| format!("{key:?} was not asked for"))
}

fn bodies(values: Vec<Value>) -> Result<Vec<Vec<u8>>, String> {
    let body = |value| match value {
        Value::Bulk(body) => Ok(body),
        other => Err(format!("{other:?} is no body")),
    };
    values.into_iter().map(body).collect()
}

/// One value at the front of the octets, and its size.
pub fn parse(octets: &[u8]) -> Result<Option<(Value, usize)>, String> {
    let Some(end) = octets.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&octets[1..end]).into_owned();
    let mut size = end + 2;
    let number = || -> Result<i64, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is no number of RESP"))
    };
    let value = match octets[0] {
        b'+' => Value::Simple(text),
        b'-' => Value::Error(text),
        b':' => Value::Integer(number()?.try_into().map_err(|_| "below 0".to_string())?),
        b'_' => Value::Nil,
        b'$' | b'*' if number()? < 0 => Value::Nil,
        b'$' => {
            let length = number()? as usize;
            let Some(body) = octets.get(size..size + length + 2) else {
                return Ok(None);
            };
            if !body.ends_with(b"\r\n") {
                return Err("no line end behind a body".to_string());
            }
            size += length + 2;
            Value::Bulk(body[..length].to_vec())
        }
        kind @ (b'*' | b'%') => {
            let count = number()? * if kind == b'%' { 2 } else { 1 };
            let mut values = Vec::new();
            for _ in 0..count {
                match parse(&octets[size..])? {
                    Some((value, used)) => {
                        values.push(value);
                        size += used;
                    }
                    None => return Ok(None),
                }
            }
            Value::Array(values)
        }
        other => return Err(format!("{:?} begins no reply", other as char)),
    };
    Ok(Some((value, size)))
}

#[test]
fn replies_are_cut_at_any_point() {
    let octets =
        b":3\r\n*2\r\n$1\r\na\r\n*2\r\n$4\r\n\r\n$1\r\n$0\r\n\r\n$-1\r\n-OOM no room\r\n_\r\n";
    for cut in 0..octets.len() {
        let mut reader = Reader::new(7);
        let many = Expected::KeyAndMany(vec!["a".to_string()]);
        let one = || Expected::One("a".to_string());
        reader.expected = [Expected::Length, many, one(), Expected::Error, one()].into();
        let mut lines = reader.feed(&octets[..cut]).expect("well formed");
        lines.extend(reader.feed(&octets[cut..]).expect("well formed"));
        let kinds: Vec<&str> = lines.iter().map(|line| &line.kind[..]).collect();
        assert_eq!(kinds, ["OK", "MSG", "MSG", "END", "END", "ERR", "END"]);
        assert_eq!(lines[1].words, ["a", "untold-7-1"]);
        assert_eq!(lines[1].body.as_deref(), Some(&b"\r\n$1"[..]));
        assert_eq!(lines[5].words, ["MEM"]);
        assert!(!reader.inside());
    }
    let mut reader = Reader::new(0);
    assert!(reader.feed(b":1\r\n").is_err(), "it answers nothing");
    reader.expected = [Expected::Length].into();
    assert!(
        reader.feed(b"+OK\r\n").is_err(),
        "it answers something else"
    );
}
