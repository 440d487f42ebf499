//! The plainest forms of the commonest commands, recognised in one pass over their bytes.
//!
//! Decides nothing of its own: whatever is not plain here (options, tags, odd names, anything
//! over a limit, anything incomplete) is left to the general path, which gives the same answer for
//! everything that this one takes.

use crate::broker::command::{
    Body, Command, PublishOptions, PullOptions, Request, Sources, Tokens, Typed,
};
use crate::config::Limits;

use super::line::{behind_end, find_end};
use super::parse::TOKENS_RESERVE_BYTES;
use super::value::{NAME_BYTES_MAX, NAME_OCTET};

/// How a `PULL` pulls that says nothing about it.
pub(super) const PULL_DEFAULTS: PullOptions = PullOptions {
    count: 1,
    wait_us: 0,
    lease_us: None,
    from: None,
    ack_auto: false,
    hold: false,
    bytes_max: None,
    timestamps: false,
};

/// A plain command, so small that it costs nothing to pass on.
#[derive(Clone, Copy)]
pub(super) enum Plain<'a> {
    /// `PUB queue $n` or `PUB queue :text`
    Publish {
        quiet: bool,
        queue: &'a [u8],
        body: &'a [u8],
    },
    /// `ACK handle ...`
    Ack { quiet: bool, handles: &'a [u8] },
    /// `PULL queue [n]`
    Pull { queue: &'a [u8], count: u32 },
}

impl<'a> Plain<'a> {
    /// The request that it is.
    #[inline(always)]
    pub(super) fn request(self) -> Request<'a> {
        match self {
            Plain::Publish { quiet, queue, body } => Request {
                tag: None,
                quiet,
                command: Command::Publish {
                    queue: Typed(queue),
                    options: PublishOptions::plain(),
                    body: Body::Borrowed(body),
                },
            },
            Plain::Ack { quiet, handles } => Request {
                tag: None,
                quiet,
                command: Command::Ack {
                    handles: Tokens(handles),
                },
            },
            Plain::Pull { queue, count } => Request {
                tag: None,
                quiet: false,
                command: Command::Pull {
                    sources: Sources(queue),
                    options: PullOptions {
                        count,
                        ..PULL_DEFAULTS
                    },
                },
            },
        }
    }
}

/// A whole plain command at the front of `input` and its length, else `None`.
#[inline(always)]
pub(super) fn decode<'a>(input: &'a [u8], limits: &Limits) -> Option<(usize, Plain<'a>)> {
    match input.first_chunk::<4>()? {
        b"PUB " => publish(input, 4, limits),
        b"PUB!" if input.get(4) == Some(&b' ') => publish(input, 5, limits),
        b"ACK " => ack(input, 4, limits),
        b"ACK!" if input.get(4) == Some(&b' ') => ack(input, 5, limits),
        b"PULL" if input.get(4) == Some(&b' ') => pull(input, 5, limits),
        _ => None,
    }
}

/// The end of a plain name that starts at `start`.
#[inline]
fn name_end(input: &[u8], start: usize) -> Option<usize> {
    if matches!(input.get(start)?, b':' | b'@') {
        return None;
    }
    let mut at = start;
    while NAME_OCTET[usize::from(*input.get(at)?)] {
        at += 1;
    }
    (at > start && at - start <= NAME_BYTES_MAX).then_some(at)
}

#[inline]
fn publish<'a>(input: &'a [u8], start: usize, limits: &Limits) -> Option<(usize, Plain<'a>)> {
    let end = name_end(input, start)?;
    if input[end] != b' ' {
        return None;
    }
    let (body, consumed) = match *input.get(end + 1)? {
        b'$' => counted(input, end + 2, limits)?,
        b':' => inline(input, end + 2, limits)?,
        _ => return None,
    };
    let publish = Plain::Publish {
        quiet: start == 5,
        queue: &input[start..end],
        body,
    };
    Some((consumed, publish))
}

/// How a publish that is answered begins.
pub const PUBLISH: &[u8; 4] = b"PUB ";
/// How a cast that is answered begins.
pub const CAST: &[u8; 5] = b"CAST ";

/// Does `input` begin with that verb and this plain name, and is a body all that follows?
#[inline]
pub fn is_to<const N: usize>(input: &[u8], verb: &[u8; N], name: &[u8]) -> bool {
    let at = N + name.len();
    input.first_chunk() == Some(verb)
        && matches!(input.get(at..at + 2), Some(b" $" | b" :"))
        && input[N..at] == *name
}

/// The body of a whole command at the front of `input` that [`is_to`] that name, and the command's length.
#[inline]
pub fn body_to<'a, const N: usize>(
    input: &'a [u8],
    verb: &[u8; N],
    name: &[u8],
    limits: &Limits,
) -> Option<(&'a [u8], usize)> {
    if !is_to(input, verb, name) {
        return None;
    }
    let start = N + name.len() + 2;
    match input[start - 1] {
        b'$' => counted(input, start, limits),
        _ => inline(input, start, limits),
    }
}

/// The plain name behind that verb.
#[inline]
pub fn name_behind<'a>(input: &'a [u8], verb: &[u8]) -> Option<&'a [u8]> {
    let input = input.strip_prefix(verb)?;
    Some(&input[..name_end(input, 0)?])
}

#[inline]
fn counted<'a>(input: &'a [u8], digits: usize, limits: &Limits) -> Option<(&'a [u8], usize)> {
    let mut size = 0;
    let mut at = digits;
    loop {
        let digit = input.get(at)?.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        if at - digits == 10 {
            return None;
        }
        size = size * 10 + usize::from(digit);
        at += 1;
    }
    if at == digits || at > limits.line_bytes_max || size > limits.body_bytes_max {
        return None;
    }
    let body = behind_end(input, at)?;
    let end = body + size;
    let consumed = behind_end(input, end)?;
    Some((&input[body..end], consumed))
}

#[inline]
fn inline<'a>(input: &'a [u8], start: usize, limits: &Limits) -> Option<(&'a [u8], usize)> {
    let end = find_end(input, start)?;
    let body = super::line::without_cr(&input[start..end]);
    if start + body.len() > limits.line_bytes_max || body.len() > limits.body_bytes_max {
        return None;
    }
    Some((body, end + 1))
}

#[inline]
fn ack<'a>(input: &'a [u8], start: usize, limits: &Limits) -> Option<(usize, Plain<'a>)> {
    let mut spaces = 0;
    let mut at = start;
    loop {
        match *input.get(at)? {
            b'0'..=b'9' | b'.' => {}
            b' ' => spaces += 1,
            _ => break,
        }
        at += 1;
    }
    let consumed = behind_end(input, at)?;
    let handles = &input[start..at];
    let plain = handles.first().is_some_and(|first| *first != b' ')
        && handles.last().is_some_and(|last| *last != b' ')
        && spaces < limits.handles_max
        && at + TOKENS_RESERVE_BYTES <= limits.line_bytes_max;
    let ack = Plain::Ack {
        quiet: start == 5,
        handles,
    };
    plain.then_some((consumed, ack))
}

#[inline]
fn pull<'a>(input: &'a [u8], start: usize, limits: &Limits) -> Option<(usize, Plain<'a>)> {
    let end = name_end(input, start)?;
    let mut count = 1;
    let mut at = end;
    if input[end] == b' ' {
        at += 1;
        let digits = at;
        count = 0;
        while let Some(digit) = input.get(at).map(|octet| octet.wrapping_sub(b'0'))
            && digit <= 9
        {
            if at - digits == 9 {
                return None;
            }
            count = count * 10 + u32::from(digit);
            at += 1;
        }
        if count == 0 {
            return None;
        }
    }
    if at > limits.line_bytes_max {
        return None;
    }
    let consumed = behind_end(input, at)?;
    let pull = Plain::Pull {
        queue: &input[start..end],
        count,
    };
    Some((consumed, pull))
}
