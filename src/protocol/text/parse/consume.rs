//! `PULL` and `SUB`.

use crate::broker::command::{Command, PullOptions, Sources};
use crate::broker::pattern;
use crate::broker::reply::{Error, ErrorCode};
use crate::config::Limits;

use super::super::settings::once;
use super::super::value::{self, shown, syntax};
use super::super::verb::Verb;
use super::{Arg, Args, credit_of, missing, no_such_option, surplus};

pub(super) fn pull<'a>(mut args: Args<'a>, limits: &Limits) -> Result<Command<'a>, Error> {
    let mut sources = None;
    let mut count = None;
    let (mut wait, mut lease, mut ack, mut hold) = (None, None, None, None);
    let (mut bytes, mut timestamps, mut from) = (None, None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Word(word) if sources.is_none() => sources = Some(source_list(word, limits)?),
            Arg::Word(word) if count.is_none() => {
                count = Some(value::integer("n", word, 1, u64::from(u32::MAX))? as u32);
            }
            Arg::Word(word) => return Err(surplus(Verb::Pull, word)),
            Arg::Option(key, value) => match key {
                b"wait" => once(&mut wait, "wait=", value::duration("wait=", value))?,
                b"lease" => once(
                    &mut lease,
                    "lease=",
                    value::duration_not_zero("lease=", value),
                )?,
                b"ack" => once(&mut ack, "ack=", ack_auto(value))?,
                b"hold" => once(&mut hold, "hold=", value::flag("hold=", value))?,
                b"from" => once(&mut from, "from=", value::position("from=", value))?,
                b"bytes" => once(&mut bytes, "bytes=", value::size("bytes=", value))?,
                b"ts" => once(&mut timestamps, "ts=", value::flag("ts=", value))?,
                _ => return Err(no_such_option(Verb::Pull, key)),
            },
        }
    }
    let Some(sources) = sources else {
        return Err(missing(Verb::Pull, "a queue", "PULL jobs wait=10s"));
    };
    let options = PullOptions {
        count: count.unwrap_or(1),
        wait_us: wait.unwrap_or(0),
        lease_us: lease,
        ack_auto: ack.unwrap_or(false),
        hold: hold.unwrap_or(false),
        bytes_max: bytes,
        timestamps: timestamps.unwrap_or(false),
        from,
    };
    Ok(Command::Pull { sources, options })
}

fn source_list<'a>(word: &'a [u8], limits: &Limits) -> Result<Sources<'a>, Error> {
    for (index, text) in word.split(|octet| *octet == b',').enumerate() {
        if index >= limits.handles_max {
            return Err(Error::new(
                ErrorCode::TooBig,
                format!("a PULL names at most {} sources", limits.handles_max),
            ));
        }
        value::source(text)?;
    }
    Ok(Sources(word))
}

fn ack_auto(value: &[u8]) -> Result<bool, Error> {
    match value {
        b"auto" => Ok(true),
        _ => Err(syntax(format!(
            "ack= is auto (settled before it is sent) or left out, not {}",
            shown(value)
        ))),
    }
}

pub(super) fn subscribe(mut args: Args<'_>) -> Result<Command<'_>, Error> {
    let mut source = None;
    let (mut credit, mut lease, mut ack, mut timestamps) = (None, None, None, None);
    let (mut live, mut from) = (None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Word(word) if source.is_none() => source = Some(word),
            Arg::Word(word) => return Err(surplus(Verb::Sub, word)),
            Arg::Option(key, value) => match key {
                b"credit" => once(&mut credit, "credit=", credit_of("credit=", value))?,
                b"lease" => once(
                    &mut lease,
                    "lease=",
                    value::duration_not_zero("lease=", value),
                )?,
                b"ack" => once(&mut ack, "ack=", ack_auto(value))?,
                b"ts" => once(&mut timestamps, "ts=", value::flag("ts=", value))?,
                b"from" => once(&mut from, "from=", value::position("from=", value))?,
                b"mode" => once(&mut live, "mode=", mode_live(value))?,
                _ => return Err(no_such_option(Verb::Sub, key)),
            },
        }
    }
    let Some(word) = source else {
        return Err(missing(Verb::Sub, "a queue", "SUB jobs credit=10"));
    };
    let timestamps = timestamps.unwrap_or(false);
    if live.is_some() {
        if credit.is_some() || lease.is_some() || ack.is_some() || from.is_some() {
            return Err(syntax(
                "mode=live keeps nothing, so there is nothing to ack: it takes ts=1 and no other option",
            ));
        }
        pattern::check(word)?;
        return Ok(Command::SubscribeLive {
            pattern: word,
            timestamps,
        });
    }
    if pattern::has_wildcard(word) {
        return Err(Error::new(
            ErrorCode::Name,
            "a SUB of a pattern has mode=live, as in SUB news.# mode=live; to keep what is cast, BIND \
             it to a queue",
        ));
    }
    Ok(Command::Subscribe {
        source: value::source(word)?,
        credit,
        lease_us: lease,
        from,
        ack_auto: ack.unwrap_or(false),
        timestamps,
    })
}

/// `SEEK`: a queue or a group, and where to.
pub(super) fn seek(mut args: Args<'_>) -> Result<Command<'_>, Error> {
    let (mut source, mut to) = (None, None);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Word(word) if source.is_none() => source = Some(value::source(word)?),
            Arg::Word(word) => return Err(surplus(Verb::Seek, word)),
            Arg::Option(b"to", value) => once(&mut to, "to=", value::position("to=", value))?,
            Arg::Option(key, _) => return Err(no_such_option(Verb::Seek, key)),
        }
    }
    match (source, to) {
        (Some(source), Some(to)) => Ok(Command::Seek { source, to }),
        _ => Err(missing(
            Verb::Seek,
            "a queue or a group and where to",
            "SEEK orders/billing to=first",
        )),
    }
}

/// `UNSUB`: a queue or a pattern.
pub(super) fn unsubscribe(word: &[u8]) -> Result<Command<'_>, Error> {
    if pattern::has_wildcard(word) {
        pattern::check(word)?;
        return Ok(Command::UnsubscribeLive { pattern: word });
    }
    Ok(Command::Unsubscribe {
        source: value::source(word)?,
    })
}

fn mode_live(value: &[u8]) -> Result<bool, Error> {
    match value {
        b"live" => Ok(true),
        _ => Err(syntax(format!(
            "mode= is live (copies of what is cast, kept nowhere) or left out, not {}",
            shown(value)
        ))),
    }
}
