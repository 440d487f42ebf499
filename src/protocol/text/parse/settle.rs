//! `ACK`, `NACK`, `TOUCH` and `DEL`: many handles or ids in one command.

use crate::broker::command::{Command, Tokens};
use crate::broker::reply::{Error, ErrorCode};
use crate::config::Limits;

use super::super::settings::once;
use super::super::value::{self, shown, syntax};
use super::super::verb::Verb;
use super::{Arg, Args, TOKENS_RESERVE_BYTES, is_key, missing, no_such_option};

/// `ACK`, `NACK`, `TOUCH`. Any token that is no option is taken for a handle, whatever its form:
/// the engine answers those that are none as stale.
pub(super) fn settle<'a>(
    verb: Verb,
    mut args: Args<'a>,
    limits: &Limits,
) -> Result<Command<'a>, Error> {
    let mut run = TokenRun::default();
    let (mut delay, mut dead, mut why, mut lease) = (None, None, None, None);
    loop {
        let before = args.rest;
        let Some(word) = args.word() else {
            break;
        };
        let option = memchr::memchr(b'=', word)
            .map(|equals| (&word[..equals], &word[equals + 1..]))
            .filter(|(key, _)| is_key(key));
        match (verb, option) {
            (_, None) => run.push(verb, before, word, limits)?,
            (Verb::Nack, Some((b"delay", value))) => {
                once(&mut delay, "delay=", value::duration("delay=", value))?;
            }
            (Verb::Nack, Some((b"dead", value))) => {
                once(&mut dead, "dead=", value::flag("dead=", value))?;
            }
            (Verb::Nack, Some((b"why", value))) => {
                once(&mut why, "why=", value::text("why=", value))?;
            }
            (Verb::Touch, Some((b"lease", value))) => {
                once(
                    &mut lease,
                    "lease=",
                    value::duration_not_zero("lease=", value),
                )?;
            }
            (_, Some((key, _))) => return Err(no_such_option(verb, key)),
        }
        run.option_seen |= option.is_some() && run.count > 0;
    }
    if run.count == 0 {
        let example = format!("{} 1.1.1 (the handle in the MSG line)", verb.word());
        return Err(missing(verb, "a handle", &example));
    }
    let handles = Tokens(run.text);
    Ok(match verb {
        Verb::Nack => Command::Nack {
            handles,
            delay_us: delay,
            dead: dead.unwrap_or(false),
            why,
        },
        Verb::Touch => Command::Touch {
            handles,
            lease_us: lease,
        },
        _ => Command::Ack { handles },
    })
}

/// Tokens that stand together, as one piece of the line.
#[derive(Default)]
struct TokenRun<'a> {
    /// From the first token to the last.
    text: &'a [u8],
    /// What of the line begins with the first token.
    start: &'a [u8],
    count: usize,
    /// An option stood behind the last one: no token may follow.
    option_seen: bool,
}

impl<'a> TokenRun<'a> {
    /// Takes the next token; `before` is the line from the end of the token in front of it.
    fn push(
        &mut self,
        verb: Verb,
        before: &'a [u8],
        word: &'a [u8],
        limits: &Limits,
    ) -> Result<(), Error> {
        if self.option_seen {
            let what = verb.word();
            return Err(syntax(format!(
                "{what} takes its options behind all the handles"
            )));
        }
        let spaces = before.iter().take_while(|octet| **octet == b' ').count();
        if self.count == 0 {
            self.start = &before[spaces..];
        }
        self.count += 1;
        let end = self.start.len() - (before.len() - spaces - word.len());
        self.text = &self.start[..end];
        if self.count > limits.handles_max {
            return Err(Error::new(
                ErrorCode::TooBig,
                format!(
                    "{} takes at most {} at a time: send several",
                    verb.word(),
                    limits.handles_max
                ),
            ));
        }
        if end + TOKENS_RESERVE_BYTES > limits.line_bytes_max {
            return Err(Error::new(
                ErrorCode::TooBig,
                format!(
                    "the answer to this {} would not fit a line: send several",
                    verb.word()
                ),
            ));
        }
        Ok(())
    }
}

pub(super) fn delete<'a>(mut args: Args<'a>, limits: &Limits) -> Result<Command<'a>, Error> {
    let mut queue = None;
    let mut run = TokenRun::default();
    loop {
        let before = args.rest;
        match args.next()? {
            None => break,
            Some(Arg::Option(key, _)) => return Err(no_such_option(Verb::Del, key)),
            Some(Arg::Word(word)) if queue.is_none() => queue = Some(value::name(word)?),
            Some(Arg::Word(word)) => {
                if value::id(word).is_none() {
                    return Err(syntax(format!(
                        "{} is not a message id: DEL takes a queue and numbers such as 17 (the \
                         middle number of a handle)",
                        shown(word)
                    )));
                }
                run.push(Verb::Del, before, word, limits)?;
            }
        }
    }
    match queue {
        Some(queue) if run.count > 0 => Ok(Command::Delete {
            queue,
            ids: Tokens(run.text),
        }),
        _ => Err(missing(Verb::Del, "a queue and an id", "DEL jobs 17")),
    }
}
