//! The client's side of the line protocol: what replies look like, and how names and values are
//! typed.

use std::time::Duration;

use crate::broker::command::Typed;
use crate::protocol::text::{encode, value};

use super::error::{Code, Refusal};
use super::message::Message;

/// One thing that the broker said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `OK …`: what follows the word.
    Ok(String),
    /// `ERR …`
    Error(Refusal),
    /// `MSG …` with its body.
    Message(Message),
    /// `END n`
    End(u64),
    /// `END src gone=…`: a subscription ended by itself.
    Gone(String),
    /// `DATA $n` with its bytes.
    Data(Vec<u8>),
    /// A line that needs no answer: `PONG`, `LAG`, `EXPIRED`.
    Other(String),
}

/// A reply with the tag of the command that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The tag without its `@`; absent on most replies.
    pub tag: Option<String>,
    /// What was said.
    pub reply: Reply,
}

/// The first reply in `input` and its length, `None` while it is not whole; the error is the
/// line that is no reply.
pub(super) fn parse(input: &[u8]) -> Result<Option<(Tagged, usize)>, String> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        return Ok(None);
    };
    let line = String::from_utf8_lossy(&input[..end]).into_owned();
    let bad = || line.chars().take(80).collect::<String>();
    let (kind, rest) = line.split_once(' ').unwrap_or((line.as_str(), ""));
    let taken = end + 1;
    let (tag, rest) = match rest.strip_prefix('@') {
        Some(tagged) if kind != "PONG" => {
            let (tag, rest) = tagged.split_once(' ').unwrap_or((tagged, ""));
            (Some(tag.to_owned()), rest)
        }
        _ => (None, rest),
    };
    let reply = match kind {
        "OK" => Reply::Ok(rest.to_owned()),
        "ERR" => Reply::Error(refusal(rest)),
        "END" => match count(rest) {
            Some(count) => Reply::End(count),
            None => Reply::Gone(rest.to_owned()),
        },
        "PONG" | "LAG" | "EXPIRED" => Reply::Other(line),
        "MSG" | "DATA" => {
            let last = rest.rsplit(' ').next().unwrap_or_default();
            let size = last.strip_prefix('$').and_then(count).ok_or_else(bad)?;
            let size = usize::try_from(size).map_err(|_| bad())?;
            let Some(body) = input
                .get(taken..)
                .and_then(|input| input.get(..size.checked_add(1)?))
            else {
                return Ok(None);
            };
            let body = body[..size].to_vec();
            let taken = taken + size + 1;
            let reply = match kind {
                "DATA" => Reply::Data(body),
                _ => Reply::Message(message(rest, body).ok_or_else(bad)?),
            };
            return Ok(Some((Tagged { tag, reply }, taken)));
        }
        _ => return Err(bad()),
    };
    Ok(Some((Tagged { tag, reply }, taken)))
}

/// Digits only, within 64 bits.
fn count(text: &str) -> Option<u64> {
    value::decimal(text.as_bytes())
}

/// What follows `ERR`.
fn refusal(rest: &str) -> Refusal {
    let (words, text) = match rest.split_once(" :") {
        Some((words, text)) => (words, text),
        None => (rest, ""),
    };
    let mut words = words.split(' ');
    let code = Code::from_word(words.next().unwrap_or_default());
    let retry = words.find_map(|word| count(word.strip_prefix("retry=")?));
    Refusal {
        code,
        retry: retry.map(Duration::from_millis),
        text: text.to_owned(),
    }
}

/// What follows `MSG`, the length included.
fn message(rest: &str, body: Vec<u8>) -> Option<Message> {
    let mut words = rest.split(' ');
    let source = words.next()?.to_owned();
    let handle = words
        .next()
        .filter(|handle| *handle != "-")
        .map(str::to_owned);
    let fields = words
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| {
            (
                key.to_owned(),
                Typed(value.as_bytes()).decoded(&mut Vec::new()).to_vec(),
            )
        })
        .collect();
    Some(Message {
        source,
        handle,
        fields,
        body,
    })
}

/// A name as the protocol types it: odd octets become `%XX`.
pub fn typed_name(name: &str) -> String {
    let mut typed = Vec::with_capacity(name.len());
    encode::typed(&mut typed, name.as_bytes());
    String::from_utf8(typed).expect("a typed name is ASCII")
}

/// A queue or `queue/group`, several joined by commas, as the protocol types them.
pub fn typed_sources(text: &str) -> String {
    let source = |source: &str| match source.split_once('/') {
        Some((queue, group)) => format!("{}/{}", typed_name(queue), typed_name(group)),
        None => typed_name(source),
    };
    text.split(',').map(source).collect::<Vec<_>>().join(",")
}

/// An option's value as the protocol types it: spaces, controls and `%` become `%XX`.
pub fn typed_value(value: &str) -> String {
    let mut typed = String::with_capacity(value.len());
    for letter in value.chars() {
        match u8::try_from(letter) {
            Ok(octet) if letter.is_ascii() && encode::is_escaped(octet) => {
                typed += &format!("%{octet:02X}");
            }
            _ => typed.push(letter),
        }
    }
    typed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reply is found with any bytes behind it, and not before its last byte.
    fn check(input: &str, want: Reply) {
        let behind = format!("{input}OK more\n");
        let (tagged, taken) = parse(behind.as_bytes())
            .expect("a reply")
            .expect("a whole one");
        assert_eq!(tagged.reply, want);
        assert_eq!(tagged.tag, None);
        assert_eq!(taken, input.len(), "{input:?}");
        for cut in 0..input.len() {
            assert_eq!(
                parse(&input.as_bytes()[..cut]),
                Ok(None),
                "{input:?} cut at {cut}"
            );
        }
    }

    fn sent(source: &str, handle: Option<&str>, fields: &[(&str, &str)], body: &str) -> Reply {
        let field = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec());
        Reply::Message(Message {
            source: source.to_owned(),
            handle: handle.map(str::to_owned),
            fields: fields.iter().map(field).collect(),
            body: body.as_bytes().to_vec(),
        })
    }

    #[test]
    fn replies() {
        check("OK 1 disk\n", Reply::Ok("1 disk".into()));
        check("OK\n", Reply::Ok(String::new()));
        check("END 12\n", Reply::End(12));
        check(
            "END jobs gone=deleted\n",
            Reply::Gone("jobs gone=deleted".into()),
        );
        check("DATA $3\na\nb\n", Reply::Data(b"a\nb".to_vec()));
        check("PONG :x\n", Reply::Other("PONG :x".into()));
        check(
            "MSG jobs 1.2.3 $0\n\n",
            sent("jobs", Some("1.2.3"), &[], ""),
        );
        check(
            "MSG a/b - id=7 try=2 h.x=a%20b $4\na\nb\n\n",
            sent(
                "a/b",
                None,
                &[("id", "7"), ("try", "2"), ("h.x", "a b")],
                "a\nb\n",
            ),
        );
        let error = |code: Code, retry: Option<u64>, text: &str| {
            Reply::Error(Refusal {
                code,
                retry: retry.map(Duration::from_millis),
                text: text.to_owned(),
            })
        };
        check(
            "ERR NOQUEUE :no such queue\n",
            error(Code::NoQueue, None, "no such queue"),
        );
        check(
            "ERR FULL retry=100 messages=5 :it is full\n",
            error(Code::Full, Some(100), "it is full"),
        );
        check("ERR STALE done=1 stale=h\n", error(Code::Stale, None, ""));
    }

    #[test]
    fn tags() {
        let tagged = |line: &str| {
            let (tagged, taken) = parse(line.as_bytes()).expect("a reply").expect("whole");
            assert_eq!(taken, line.len());
            (tagged.tag, tagged.reply)
        };
        let tag = |tag: &str| Some(tag.to_owned());
        assert_eq!(tagged("OK @s1\n"), (tag("s1"), Reply::Ok(String::new())));
        assert_eq!(tagged("END @7 2\n"), (tag("7"), Reply::End(2)));
        assert_eq!(
            tagged("MSG @s jobs 1.2.3 $1\nx\n"),
            (tag("s"), sent("jobs", Some("1.2.3"), &[], "x"))
        );
        let (found, reply) = tagged("ERR @t SYNTAX :no\n");
        assert_eq!(found, tag("t"));
        assert!(matches!(reply, Reply::Error(refusal) if refusal.text == "no"));
    }

    #[test]
    fn what_is_no_reply() {
        for line in [
            "HTTP/1.1 400\n",
            "-ERR\n",
            "MSG jobs 1.1.1 12\n",
            "DATA $-1\n",
            "\n",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line:?}");
        }
        let huge = format!("DATA ${}\n", u64::MAX - 1);
        assert_eq!(
            parse(huge.as_bytes()),
            Ok(None),
            "announced lengths allocate nothing"
        );
    }

    #[test]
    fn what_is_typed() {
        assert_eq!(typed_name("jobs.eu-1"), "jobs.eu-1");
        assert_eq!(typed_name("a b/c%"), "a%20b%2Fc%25");
        assert_eq!(typed_name(":a:b"), "%3Aa:b");
        assert_eq!(typed_name("é"), "%C3%A9");
        assert_eq!(typed_sources("a/b,c d"), "a/b,c%20d");
        assert_eq!(typed_value("x=1 %\n"), "x=1%20%25%0A");
        assert_eq!(typed_value("é"), "é");
    }
}
