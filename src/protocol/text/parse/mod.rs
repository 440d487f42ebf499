//! What a line means: tag, verb, arguments and options into a request. The line's extent and its
//! body's were decided before (`line`), so nothing here can lose the stream.

mod consume;
mod publish;
mod settle;

use crate::broker::command::{Body, Command, MessageState, Request, StatsScope};
use crate::broker::pattern;
use crate::broker::reply::{Error, ErrorCode};
use crate::broker::settings::SettingsPatch;
use crate::config::Limits;

use super::line::Form;
use super::settings::once;
use super::value::{self, shown, syntax, unknown};
use super::verb::{Lookup, Verb};

/// The part of a line that handles can't fill, so that the answer that lists all of them as
/// stale fits a line too, bytes.
pub(super) const TOKENS_RESERVE_BYTES: usize = 256;

/// Longest tag, characters.
const TAG_BYTES_MAX: usize = 20;

/// A line read as far as it could be.
pub(super) struct Parsed<'a> {
    /// Its tag, if that was well-formed.
    pub tag: Option<&'a [u8]>,
    /// It publishes one message, so its body is bounded as one.
    pub is_single: bool,
    /// The request, without its counted body or its lines; or what is wrong.
    pub result: Result<Request<'a>, Error>,
}

/// Reads a line's head.
pub(super) fn parse<'a>(head: &'a [u8], form: Form<'a>, limits: &Limits) -> Parsed<'a> {
    let mut args = Args { rest: head };
    let mut first = args.word();
    let mut tag = None;
    let mut is_single = false;
    if let Some([b'@', name @ ..]) = first {
        if !is_tag(name) {
            let result = Err(syntax(
                "a tag is @ and 1 to 20 letters, digits, - or _, as in @7 PING",
            ));
            return Parsed {
                tag,
                is_single,
                result,
            };
        }
        tag = Some(name);
        first = args.word();
    }
    let result = verb(first).and_then(|(verb, quiet)| {
        is_single = verb.takes_message();
        if quiet && !verb.can_be_quiet() {
            let word = verb.word();
            return Err(syntax(format!(
                "{word} is never quiet, since it answers with more than OK: leave out the !"
            )));
        }
        check_form(verb, form)?;
        let command = command(verb, args, form, limits)?;
        Ok(Request {
            tag,
            quiet,
            command,
        })
    });
    Parsed {
        tag,
        is_single,
        result,
    }
}

/// The tag at the front of a line that can't be read whole.
pub(super) fn tag_of(line: &[u8]) -> Option<&[u8]> {
    let tag = Args { rest: line }.word()?.strip_prefix(b"@")?;
    is_tag(tag).then_some(tag)
}

fn is_tag(name: &[u8]) -> bool {
    let plain = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
    (1..=TAG_BYTES_MAX).contains(&name.len()) && name.iter().all(plain)
}

/// The verb and whether it is quiet.
fn verb(word: Option<&[u8]>) -> Result<(Verb, bool), Error> {
    let Some(word) = word else {
        return Err(syntax(
            "a command begins with a verb, as in PUB jobs :hello",
        ));
    };
    let (letters, quiet) = match word {
        [letters @ .., b'!'] => (letters, true),
        letters => (letters, false),
    };
    match Verb::lookup(letters) {
        Lookup::Built(verb) => Ok((verb, quiet)),
        Lookup::Planned(word) => Err(unknown(format!(
            "{word} is not built yet: HELP lists what is"
        ))),
        Lookup::Unknown => Err(unknown(format!(
            "there is no verb {}: HELP lists them",
            shown(letters)
        ))),
    }
}

/// Checks that a verb goes with that kind of body. A body that is missing is found by the verb.
fn check_form(verb: Verb, form: Form<'_>) -> Result<(), Error> {
    match (verb, form) {
        (_, Form::None) => Ok(()),
        (verb, Form::Inline(_) | Form::Counted(_)) if verb.takes_message() => Ok(()),
        (Verb::Mpub, Form::Lines(_) | Form::Counted(_)) | (Verb::Ping, Form::Inline(_)) => Ok(()),
        (Verb::Pub, Form::Lines(_)) => Err(syntax(
            "PUB takes one message, :text or $bytes; for lines use MPUB jobs *3",
        )),
        (verb, Form::Lines(_)) if verb.takes_message() => Err(syntax(format!(
            "{} takes one message, :text or $bytes",
            verb.word()
        ))),
        (Verb::Mpub, Form::Inline(_)) => Err(syntax(
            "MPUB takes *n and n lines, or $bytes; for one message use PUB jobs :hello",
        )),
        (Verb::Ping, _) => Err(syntax("PING takes its text inline, as in PING :hello")),
        _ => Err(syntax(format!(
            "{} takes no body: {}",
            verb.word(),
            verb.usage()
        ))),
    }
}

/// The tokens of a line from left to right.
#[derive(Clone, Copy)]
struct Args<'a> {
    rest: &'a [u8],
}

/// A token after the verb.
enum Arg<'a> {
    /// One without a key.
    Word(&'a [u8]),
    /// `key=value`, the key well-formed.
    Option(&'a [u8], &'a [u8]),
}

impl<'a> Args<'a> {
    /// The next token, whatever it is.
    fn word(&mut self) -> Option<&'a [u8]> {
        while let [b' ', rest @ ..] = self.rest {
            self.rest = rest;
        }
        if self.rest.is_empty() {
            return None;
        }
        let space = self.rest.iter().position(|octet| *octet == b' ');
        let end = space.unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(word)
    }

    /// The next token, split when it is an option.
    fn next(&mut self) -> Result<Option<Arg<'a>>, Error> {
        let Some(word) = self.word() else {
            return Ok(None);
        };
        let Some(equals) = word.iter().position(|octet| *octet == b'=') else {
            return Ok(Some(Arg::Word(word)));
        };
        let (key, value) = (&word[..equals], &word[equals + 1..]);
        if !is_key(key) {
            return Err(syntax(format!(
                "{} is not an option: keys are a-z, 0-9, . and -, as in pri=5 \
                 (in a name write = as %3D)",
                shown(word)
            )));
        }
        Ok(Some(Arg::Option(key, value)))
    }
}

fn is_key(key: &[u8]) -> bool {
    let plain = |octet: &u8| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    match key.strip_prefix(b"h.") {
        Some(name) => {
            let wide = |octet: &u8| plain(octet) || matches!(octet, b'A'..=b'Z' | b'_');
            name.iter().all(wide)
        }
        None => !key.is_empty() && key.iter().all(plain),
    }
}

/// The answer to an option that a verb does not take.
pub(super) fn no_such_option(verb: Verb, key: &[u8]) -> Error {
    let word = verb.word();
    let key_shown = shown(key);
    match verb.options() {
        "" => unknown(format!("{word} takes no options such as {key_shown}=")),
        options => unknown(format!(
            "{word} has no option {key_shown}=; it takes {options}"
        )),
    }
}

/// One token too many.
fn surplus(verb: Verb, word: &[u8]) -> Error {
    syntax(format!(
        "{} is one argument too many: {}",
        shown(word),
        verb.usage()
    ))
}

/// A token is missing.
fn missing(verb: Verb, what: &str, example: &str) -> Error {
    syntax(format!("{} needs {what}, as in {example}", verb.word()))
}

fn command<'a>(
    verb: Verb,
    args: Args<'a>,
    form: Form<'a>,
    limits: &Limits,
) -> Result<Command<'a>, Error> {
    match verb {
        Verb::Pub | Verb::Mpub | Verb::Cast | Verb::Req => publish::publish(verb, args, form),
        Verb::Rep => publish::answer(args, form),
        Verb::Pull => consume::pull(args, limits),
        Verb::Ack | Verb::Nack | Verb::Touch => settle::settle(verb, args, limits),
        Verb::Sub => consume::subscribe(args),
        Verb::Qset => queue_set(args),
        Verb::Purge | Verb::Peek => select(verb, args),
        Verb::Hello => hello(args),
        Verb::Ping => ping(args, form),
        Verb::Del => settle::delete(args, limits),
        Verb::Quit
        | Verb::Help
        | Verb::Credit
        | Verb::Unsub
        | Verb::Qget
        | Verb::Qls
        | Verb::Qdel
        | Verb::Move
        | Verb::Sync
        | Verb::Stats
        | Verb::Cancel
        | Verb::Why
        | Verb::Kill
        | Verb::Begin
        | Verb::Commit
        | Verb::Abort
        | Verb::Drain => words_only(verb, args),
        Verb::Bind | Verb::Unbind => bind(verb, args),
        Verb::Seek => consume::seek(args),
    }
}

fn credit_of(what: &str, value: &[u8]) -> Result<u32, Error> {
    value::integer(what, value, 0, u64::from(u32::MAX)).map(|credit| credit as u32)
}

fn queue_set(mut args: Args<'_>) -> Result<Command<'_>, Error> {
    let mut queue = None;
    let mut settings = Box::<SettingsPatch>::default();
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Word(word) if queue.is_none() => queue = Some(value::name(word)?),
            Arg::Word(word) => return Err(surplus(Verb::Qset, word)),
            Arg::Option(key, value) => super::settings::set(&mut settings, key, value)?,
        }
    }
    match queue {
        Some(queue) => Ok(Command::QueueSet { queue, settings }),
        None => Err(missing(
            Verb::Qset,
            "a queue",
            "QSET jobs maxdeliver=3 lease=1m",
        )),
    }
}

/// `PURGE` and `PEEK`: a source, and which of its messages.
fn select(verb: Verb, mut args: Args<'_>) -> Result<Command<'_>, Error> {
    let (mut source, mut count, mut state, mut from) = (None, None, None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Word(word) if source.is_none() => source = Some(value::source(word)?),
            Arg::Word(word) if verb == Verb::Peek && count.is_none() => {
                count = Some(value::integer("n", word, 1, u64::from(u32::MAX))? as u32);
            }
            Arg::Word(word) => return Err(surplus(verb, word)),
            Arg::Option(key, value) => match (verb, key) {
                (_, b"state") => once(&mut state, "state=", message_state(value))?,
                (Verb::Peek, b"from") => once(&mut from, "from=", first_id(value))?,
                _ => return Err(no_such_option(verb, key)),
            },
        }
    }
    match (source, verb) {
        (Some(source), Verb::Peek) => Ok(Command::Peek {
            source,
            count: count.unwrap_or(1),
            state: state.unwrap_or(MessageState::Ready),
            from: from.unwrap_or(0),
        }),
        (Some(source), _) => Ok(Command::Purge { source, state }),
        (None, _) => Err(missing(verb, "a queue", &format!("{} jobs", verb.word()))),
    }
}

fn message_state(value: &[u8]) -> Result<MessageState, Error> {
    match value {
        b"ready" => Ok(MessageState::Ready),
        b"delayed" => Ok(MessageState::Delayed),
        b"leased" => Ok(MessageState::Leased),
        b"dead" => Ok(MessageState::Dead),
        _ => Err(syntax(format!(
            "state= is ready, delayed, leased or dead, not {}",
            shown(value)
        ))),
    }
}

fn first_id(value: &[u8]) -> Result<u64, Error> {
    value::id(value).ok_or_else(|| {
        syntax(format!(
            "from= is a message id such as 17, not {}",
            shown(value)
        ))
    })
}

fn hello(mut args: Args<'_>) -> Result<Command<'_>, Error> {
    let (mut version, mut name, mut expired) = (None, None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Word(word) if version.is_none() => {
                version = Some(value::integer("the protocol's version", word, 1, u64::MAX)?);
            }
            Arg::Word(word) => return Err(surplus(Verb::Hello, word)),
            Arg::Option(b"name", value) => once(&mut name, "name=", value::text("name=", value))?,
            Arg::Option(b"expired", value) => {
                once(&mut expired, "expired=", value::flag("expired=", value))?;
            }
            Arg::Option(key, _) => return Err(no_such_option(Verb::Hello, key)),
        }
    }
    Ok(Command::Hello {
        version: version.unwrap_or(1),
        name,
        expired: expired.unwrap_or(false),
    })
}

fn ping<'a>(mut args: Args<'a>, form: Form<'a>) -> Result<Command<'a>, Error> {
    if let Some(word) = args.word() {
        return Err(syntax(format!(
            "the text starts with a colon, as in PING :{}",
            shown(word)
        )));
    }
    let body = match form {
        Form::Inline(text) => Some(Body::Borrowed(text)),
        _ => None,
    };
    Ok(Command::Ping { body })
}

/// The verbs that take at most three words and no options.
fn words_only(verb: Verb, mut args: Args<'_>) -> Result<Command<'_>, Error> {
    let mut words = [None; 3];
    let mut used = 0;
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Option(key, _) => return Err(no_such_option(verb, key)),
            Arg::Word(word) => {
                let place = words.get_mut(used).ok_or_else(|| surplus(verb, word))?;
                *place = Some(word);
                used += 1;
            }
        }
    }
    match (verb, words) {
        (Verb::Quit, [None, ..]) => Ok(Command::Quit),
        (Verb::Begin, [None, ..]) => Ok(Command::Begin),
        (Verb::Commit, [None, ..]) => Ok(Command::Commit),
        (Verb::Abort, [None, ..]) => Ok(Command::Abort),
        (Verb::Help, [verb, None, _]) => Ok(Command::Help { verb }),
        (Verb::Credit, [Some(source), Some(credit), None]) => Ok(Command::Credit {
            source: value::source(source)?,
            credit: credit_of("credit", credit)?,
        }),
        (Verb::Credit, [_, None, _]) => {
            Err(missing(verb, "a queue and a number", "CREDIT jobs 10"))
        }
        (Verb::Unsub, [Some(source), None, _]) => consume::unsubscribe(source),
        (Verb::Qget, [Some(source), None, _]) => Ok(Command::QueueGet {
            source: value::source(source)?,
        }),
        (Verb::Qdel, [Some(source), None, _]) => Ok(Command::QueueDelete {
            source: value::source(source)?,
        }),
        (Verb::Why, [Some(source), None, _]) => Ok(Command::Why {
            source: value::source(source)?,
        }),
        (Verb::Kill, [Some(conn), None, _]) => Ok(Command::Kill {
            conn: connection(conn)?,
        }),
        (Verb::Drain, [most, None, _]) => Ok(Command::Drain {
            most_us: most
                .map(|most| value::duration("the time of DRAIN", most))
                .transpose()?,
        }),
        (Verb::Kill, [None, ..]) => Err(missing(verb, "a connection", "KILL 3.17")),
        (Verb::Unsub | Verb::Qget | Verb::Qdel | Verb::Why, [None, ..]) => {
            Err(missing(verb, "a queue", &format!("{} jobs", verb.word())))
        }
        (Verb::Qls, [text, None, _]) => {
            text.map_or(Ok(()), pattern::check)?;
            Ok(Command::QueueList { pattern: text })
        }
        (Verb::Move, [Some(source), Some(target), count]) => Ok(Command::Move {
            source: value::source(source)?,
            target: value::name(target)?,
            count: count
                .map(|count| value::integer("n", count, 1, u64::MAX))
                .transpose()?,
        }),
        (Verb::Move, _) => Err(missing(verb, "two queues", "MOVE jobs.dead jobs")),
        (Verb::Sync, [level, None, _]) => Ok(Command::Sync {
            level: level
                .map(|level| value::level("the level of SYNC", level))
                .transpose()?,
        }),
        (Verb::Stats, words) => stats(words),
        (Verb::Cancel, [Some([b'@', tag @ ..]), None, _]) if is_tag(tag) => {
            Ok(Command::Cancel { tag })
        }
        (Verb::Cancel, [_, None, _]) => Err(missing(verb, "a tag", "CANCEL @7")),
        (_, words) => {
            let last = words.into_iter().flatten().last();
            Err(surplus(
                verb,
                last.expect("a verb without words was handled above"),
            ))
        }
    }
}

/// `<slot>.<generation>`, as `STATS conns` prints it.
fn connection(word: &[u8]) -> Result<(u32, u32), Error> {
    let parsed = word.split(|octet| *octet == b'.').map(|part| {
        let digits = (1..=10).contains(&part.len()) && part.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(part).ok().filter(|_| digits)?;
        text.parse::<u32>().ok()
    });
    match parsed.collect::<Option<Vec<u32>>>().as_deref() {
        Some([slot, generation]) => Ok((*slot, *generation)),
        _ => Err(syntax(format!(
            "a connection is written as STATS conns prints it, such as 3.17, not {}",
            shown(word)
        ))),
    }
}

/// `BIND` and `UNBIND`: a pattern, then a queue.
fn bind(verb: Verb, mut args: Args<'_>) -> Result<Command<'_>, Error> {
    let (mut first, mut queue) = (None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Option(key, _) => return Err(no_such_option(verb, key)),
            Arg::Word(word) if first.is_none() => first = Some(word),
            Arg::Word(word) if queue.is_none() => queue = Some(word),
            Arg::Word(word) => return Err(surplus(verb, word)),
        }
    }
    let example = format!("{} news.# archive", verb.word());
    let (Some(text), Some(queue)) = (first, queue) else {
        return Err(missing(verb, "a pattern and a queue", &example));
    };
    pattern::check(text)?;
    if pattern::has_wildcard(queue) {
        return Err(Error::new(
            ErrorCode::Name,
            format!("the pattern stands first and then the name of a queue, as in {example}"),
        ));
    }
    let queue = value::name(queue)?;
    Ok(match verb {
        Verb::Bind => Command::Bind {
            pattern: text,
            queue,
        },
        _ => Command::Unbind {
            pattern: text,
            queue,
        },
    })
}

fn stats<'a>(words: [Option<&'a [u8]>; 3]) -> Result<Command<'a>, Error> {
    match words {
        [None, ..] => Ok(Command::Stats(StatsScope::Broker)),
        [Some(b"q"), Some(queue), None] => {
            Ok(Command::Stats(StatsScope::Queue(value::source(queue)?)))
        }
        [Some(b"conns"), None, _] => Ok(Command::Stats(StatsScope::Connections)),
        [Some(b"nodes"), None, _] => Err(unknown(
            "STATS nodes is not built yet: this broker has one node; STATS alone shows it",
        )),
        _ => Err(syntax(
            "STATS stands alone or as STATS q jobs or STATS conns",
        )),
    }
}
