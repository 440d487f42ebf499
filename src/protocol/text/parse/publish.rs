//! `PUB`, `MPUB`, `CAST`, `REQ` and `REP`: their options, and what is said to who forgets the colon.

use crate::broker::command::{Body, Command, Framing, PublishOptions, TimeSpec, Typed};
use crate::broker::pattern;
use crate::broker::reply::{Error, ErrorCode};
use crate::broker::schedule::EVERY_US_MIN;

use super::super::line::Form;
use super::super::settings::once;
use super::super::value::{self, shown, syntax};
use super::super::verb::Verb;
use super::super::{SENT_LINE_BYTES_MAX, SENT_LINE_RESERVE_BYTES, batch, encode};
use super::{Arg, Args, missing, no_such_option, surplus};

pub(super) fn publish<'a>(
    verb: Verb,
    args: Args<'a>,
    form: Form<'a>,
) -> Result<Command<'a>, Error> {
    let mut queue = None;
    let mut options = PublishOptions::default();
    let (mut timeout, mut every) = (None, None);
    let mut rest = args;
    let mut headers = 0;
    loop {
        let before = rest;
        match rest.next()? {
            None => break,
            Some(Arg::Word(word)) if queue.is_none() => queue = Some(target(verb, word)?),
            Some(Arg::Word(word)) => return Err(surplus_publish(verb, form, queue, word, before)),
            Some(Arg::Option(key, value)) => match key.strip_prefix(b"h.") {
                Some(name) => {
                    header(name, value)?;
                    headers += 1;
                }
                None if verb == Verb::Req && key == b"timeout" => once(
                    &mut timeout,
                    "timeout=",
                    value::duration_not_zero("timeout=", value),
                )?,
                None if verb == Verb::Pub && key == b"every" => {
                    once(&mut every, "every=", interval(value))?;
                }
                None => publish_option(verb, &mut options, key, value)?,
            },
        }
    }
    if headers > 0 {
        options.args = args.rest;
        check_headers(&options, headers)?;
    }
    if args.rest.len() > (SENT_LINE_BYTES_MAX - SENT_LINE_RESERVE_BYTES) / 3 {
        check_sent_size(&options)?;
    }
    if options.delay_us.is_some() && options.at_us.is_some() {
        return Err(syntax(
            "delay= and at= say the same thing: give one of them",
        ));
    }
    let Some(queue) = queue else {
        let what = match verb {
            Verb::Cast => "a topic",
            _ => "a queue",
        };
        return Err(missing(verb, what, example(verb)));
    };
    if let Some(every_us) = every
        && form != Form::None
    {
        return schedule(queue, every_us, options, form);
    }
    match (verb, form) {
        (Verb::Pub | Verb::Cast | Verb::Req, Form::None) => Err(no_body(verb, queue.0)),
        (Verb::Req, form) => Ok(Command::Request {
            queue,
            timeout_us: timeout.unwrap_or(REQUEST_TIMEOUT_US),
            options,
            body: content(form),
        }),
        (Verb::Cast, form) => Ok(Command::Cast {
            topic: queue,
            options,
            body: content(form),
        }),
        (Verb::Pub, form) => Ok(Command::Publish {
            queue,
            options,
            body: content(form),
        }),
        (_, Form::None) => Err(syntax(format!(
            "the messages are missing: type MPUB {} *2 and then two lines",
            shown(queue.0)
        ))),
        (_, Form::Lines(0) | Form::Counted(0)) => Err(batch::empty_batch()),
        (_, form) => Ok(Command::PublishBatch {
            queue,
            options,
            framing: match form {
                Form::Lines(_) => Framing::Lines,
                _ => Framing::Counted,
            },
            count: 0,
            body_bytes: 0,
            data: Body::Borrowed(b""),
        }),
    }
}

/// The queue or topic that a message goes to.
fn target(verb: Verb, word: &[u8]) -> Result<Typed<'_>, Error> {
    if verb == Verb::Cast && pattern::has_wildcard(word) {
        return Err(Error::new(
            ErrorCode::Name,
            "CAST goes to one topic, as in CAST news.eu; * and # are for those who take it: BIND \
             news.# archive",
        ));
    }
    value::name(word)
}

/// `every=`
fn interval(value: &[u8]) -> Result<u64, Error> {
    match value::duration("every=", value)? {
        0 => Ok(0),
        every_us if every_us < EVERY_US_MIN => Err(syntax(
            "every= is 10ms or longer, as in every=1h; every=0 ends the schedule",
        )),
        every_us => Ok(every_us),
    }
}

/// `PUB` with `every=`.
fn schedule<'a>(
    queue: Typed<'a>,
    every_us: u64,
    options: PublishOptions<'a>,
    form: Form<'a>,
) -> Result<Command<'a>, Error> {
    let Some(name) = options.once else {
        return Err(syntax(
            "every= needs a name for the schedule, as in PUB jobs every=1h once=hourly :go",
        ));
    };
    if name.0.len() > value::NAME_BYTES_MAX {
        return Err(syntax(
            "with every=, once= is the schedule's name: at most 255 characters",
        ));
    }
    if options.sync.is_some() {
        return Err(syntax(
            "a schedule is always on the disk before its OK: leave out sync=",
        ));
    }
    Ok(Command::Schedule {
        queue,
        name,
        every_us,
        options,
        body: content(form),
    })
}

/// What a request waits for if it says nothing, microseconds.
const REQUEST_TIMEOUT_US: u64 = 2_000_000;

/// The body as far as it stands on the line; a counted one is attached later.
fn content(form: Form<'_>) -> Body<'_> {
    match form {
        Form::Inline(body) => Body::Borrowed(body),
        _ => Body::Borrowed(b""),
    }
}

fn no_body(verb: Verb, name: &[u8]) -> Error {
    syntax(format!(
        "the body is missing: type {0} {1} :hello, or {0} {1} $5, a line end and 5 octets",
        verb.word(),
        shown(name)
    ))
}

/// `REP`: a token and a body, no options.
pub(super) fn answer<'a>(mut args: Args<'a>, form: Form<'a>) -> Result<Command<'a>, Error> {
    let mut token = None;
    loop {
        let before = args;
        match args.next()? {
            None => break,
            Some(Arg::Option(key, _)) => return Err(no_such_option(Verb::Rep, key)),
            Some(Arg::Word(word)) if token.is_none() => {
                value::escapes("the token", word)?;
                token = Some(Typed(word));
            }
            Some(Arg::Word(word)) => {
                return Err(surplus_publish(Verb::Rep, form, token, word, before));
            }
        }
    }
    let Some(token) = token else {
        return Err(missing(
            Verb::Rep,
            "the reply= of a request",
            example(Verb::Rep),
        ));
    };
    match form {
        Form::None => Err(no_body(Verb::Rep, token.0)),
        form => Ok(Command::Answer {
            token,
            body: content(form),
        }),
    }
}

fn example(verb: Verb) -> &'static str {
    match verb {
        Verb::Req => "REQ sums timeout=2s :1+1",
        Verb::Cast => "CAST news.eu :hello",
        Verb::Rep => "REP <token> :2",
        Verb::Mpub => "MPUB jobs *2 and two lines",
        _ => "PUB jobs :hello",
    }
}

/// A second bare word: most often a body without its colon.
fn surplus_publish(
    verb: Verb,
    form: Form<'_>,
    queue: Option<Typed<'_>>,
    word: &[u8],
    from: Args<'_>,
) -> Error {
    if let [b'$' | b'*', ..] = word {
        return syntax(format!(
            "the size of the body comes last on the line; {} stands before something else",
            shown(word)
        ));
    }
    match (verb, form, queue) {
        (verb, Form::None, Some(queue)) if verb.takes_message() => {
            let body = from.rest.strip_prefix(b" ").unwrap_or(from.rest);
            syntax(format!(
                "the body starts with a colon, as in {} {} :{}",
                verb.word(),
                shown(queue.0),
                shown(body)
            ))
        }
        (Verb::Mpub, Form::None, Some(queue)) => syntax(format!(
            "MPUB takes *n and n lines, as in MPUB {} *2 and two lines",
            shown(queue.0)
        )),
        _ => surplus(verb, word),
    }
}

fn publish_option<'a>(
    verb: Verb,
    options: &mut PublishOptions<'a>,
    key: &'a [u8],
    value: &'a [u8],
) -> Result<(), Error> {
    if verb == Verb::Req && !matches!(key, b"pri" | b"key") {
        return Err(no_such_option(verb, key));
    }
    match key {
        b"delay" => once(
            &mut options.delay_us,
            "delay=",
            value::duration("delay=", value),
        ),
        b"at" => once(&mut options.at_us, "at=", publish_time(value)),
        b"ttl" => once(&mut options.ttl_us, "ttl=", value::duration("ttl=", value)),
        b"pri" => {
            let pri = value::integer("pri=", value, 0, 255).map(|pri| pri as u8);
            once(&mut options.pri, "pri=", pri)
        }
        b"key" => once(&mut options.key, "key=", value::text("key=", value)),
        b"once" => once(&mut options.once, "once=", value::text("once=", value)),
        b"sync" => once(&mut options.sync, "sync=", value::level("sync=", value)),
        b"reply" => once(&mut options.reply, "reply=", value::text("reply=", value)),
        _ => Err(no_such_option(verb, key)),
    }
}

fn publish_time(value: &[u8]) -> Result<u64, Error> {
    match value::time("at=", value)? {
        TimeSpec::UnixUs(at_us) => Ok(at_us),
        TimeSpec::AgoUs(_) | TimeSpec::Id(_) => Err(syntax(
            "at= is a time to come, such as 2026-01-31T09:00:00Z or @1769850000000 (unix ms); \
             for a wait from now use delay=5m",
        )),
    }
}

fn header(name: &[u8], value: &[u8]) -> Result<(), Error> {
    if !(1..=value::NAME_BYTES_MAX).contains(&name.len()) {
        return Err(syntax(
            "a header has a name of 1 to 255 characters, as in h.type=invoice",
        ));
    }
    value::escapes("h.<name>=", value)
}

/// Refuses a header that is said twice. Few are compared in place, many are sorted first.
fn check_headers(options: &PublishOptions<'_>, count: usize) -> Result<(), Error> {
    const FEW: usize = 16;
    let names = || options.headers().map(|(name, _)| name);
    let twice = if count <= FEW {
        names()
            .enumerate()
            .find(|(index, name)| names().take(*index).any(|other| other == *name))
            .map(|(_, name)| name)
    } else {
        let mut sorted: Vec<&[u8]> = names().collect();
        sorted.sort_unstable();
        sorted
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| pair[0])
    };
    match twice {
        Some(name) => Err(syntax(format!(
            "h.{}= is said twice: say it once",
            shown(name)
        ))),
        None => Ok(()),
    }
}

/// Refuses options that a `MSG` line could not carry once their octets are written as `%XX`.
fn check_sent_size(options: &PublishOptions<'_>) -> Result<(), Error> {
    let printed = |value: Typed<'_>| {
        let escapes = |octet: &&u8| encode::is_escaped(**octet) && **octet != b'%';
        value.0.len() + 2 * value.0.iter().filter(escapes).count()
    };
    let texts = [options.key, options.reply].into_iter().flatten();
    let bytes: usize = texts.map(|text| printed(text) + 8).sum::<usize>()
        + options
            .headers()
            .map(|(name, value)| name.len() + printed(value) + 4)
            .sum::<usize>();
    if bytes > SENT_LINE_BYTES_MAX - SENT_LINE_RESERVE_BYTES {
        return Err(Error::new(
            ErrorCode::TooBig,
            "key=, reply= and h.<name>= have at most 60 KiB together once their octets are \
             written as %XX: put large things into the body",
        ));
    }
    Ok(())
}
