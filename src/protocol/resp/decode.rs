//! The decoder of one connection: bytes in any pieces to the words of commands.
//!
//! A command stays where it was received until it is whole, and its words are ranges of it; what was seen of
//! one that is incomplete is remembered, so that it is not read again with each piece that comes. Memory grows
//! with what has arrived, never with what was announced.

use std::ops::Range;

use super::{LINE_BYTES_MAX, WORDS_MAX};
use crate::config::Limits;

/// Why a stream is out of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// What [`Decoder::decode`] found at the front of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    Incomplete,
    /// A command; its words are [`Decoder::words`] of the same input. One without words is to be ignored.
    Command,
    /// Nobody knows where the next command begins.
    Broken(Broken),
}

/// Decodes one connection.
///
/// Calling order: [`Decoder::decode`], and on [`Step::Command`] the words; then the next command is at the
/// returned place, or the same once more.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Commands typed by hand, a line each, are taken too.
    takes_lines: bool,
    /// Where the words found so far lie in the input.
    words: Vec<Range<usize>>,
    /// Words still to come of the command that is incomplete.
    left: usize,
    /// Where it goes on.
    at: usize,
    is_inside: bool,
    /// A part of a command has come.
    is_partial: bool,
}

impl Decoder {
    /// A new connection; `takes_lines`: commands typed by hand, a line each, are taken too.
    pub fn new(takes_lines: bool) -> Decoder {
        Decoder {
            takes_lines,
            ..Decoder::default()
        }
    }

    /// Decodes what is at the front of `input`; with [`Step::Command`] also how many bytes the command has.
    /// Bytes not consumed must be presented again with more behind them.
    pub fn decode(&mut self, input: &[u8], limits: &Limits) -> (usize, Step) {
        let (used, step) = self.decode_any(input, limits);
        self.is_partial = step == Step::Incomplete && !input.is_empty();
        (used, step)
    }

    fn decode_any(&mut self, input: &[u8], limits: &Limits) -> (usize, Step) {
        if !self.is_inside {
            self.words.clear();
            self.at = 0;
            match input.first() {
                None => return (0, Step::Incomplete),
                Some(b'*') => {}
                Some(_) if self.takes_lines => return self.line_of_words(input),
                Some(_) => return broken("expected '*'"),
            }
            let count = match self.number(input, b'*') {
                Ok(Some(count)) => count,
                Ok(None) => return (0, Step::Incomplete),
                Err(error) => return (0, Step::Broken(error)),
            };
            if count > WORDS_MAX as i64 {
                return broken("invalid multibulk length");
            }
            self.left = usize::try_from(count).unwrap_or(0);
            self.is_inside = true;
        }
        while self.left > 0 {
            let before = self.at;
            let length = match self.number(input, b'$') {
                Ok(Some(length)) => length,
                Ok(None) => return (0, Step::Incomplete),
                Err(error) => return (0, Step::Broken(error)),
            };
            let body = limits.body_bytes_max;
            let Some(length) = usize::try_from(length).ok().filter(|size| *size <= body) else {
                return broken("invalid bulk length");
            };
            let end = self.at + length;
            if end > limits.batch_bytes_max + LINE_BYTES_MAX {
                return broken("the command is larger than --max-batch-bytes");
            }
            match input.get(end..end + 2) {
                Some(b"\r\n") => {}
                Some(_) => return broken("expected a line end behind a bulk"),
                None => {
                    // The length is read again when all is there; until then no byte of it is.
                    self.at = before;
                    return (0, Step::Incomplete);
                }
            }
            self.words.push(self.at..end);
            self.at = end + 2;
            self.left -= 1;
        }
        self.is_inside = false;
        (self.at, Step::Command)
    }

    /// The number in the line at `at`, which begins with `kind`; `None` while the line is incomplete.
    fn number(&mut self, input: &[u8], kind: u8) -> Result<Option<i64>, Broken> {
        let rest = &input[self.at..];
        match rest.first() {
            None => return Ok(None),
            Some(first) if *first == kind => {}
            Some(_) => return Err(Broken("expected '$'")),
        }
        let bad = match kind {
            b'*' => Broken("invalid multibulk length"),
            _ => Broken("invalid bulk length"),
        };
        // The longest number has 20 characters.
        let line = &rest[..rest.len().min(32)];
        let Some(end) = memchr::memchr(b'\n', line) else {
            return if rest.len() >= 32 { Err(bad) } else { Ok(None) };
        };
        let digits = line[1..end].strip_suffix(b"\r").ok_or(bad)?;
        let (is_negative, digits) = match digits.strip_prefix(b"-") {
            Some(digits) => (true, digits),
            None => (false, digits),
        };
        if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(bad);
        }
        let number = digits
            .iter()
            .fold(0i64, |number, digit| number * 10 + i64::from(digit - b'0'));
        self.at += end + 1;
        Ok(Some(if is_negative { -number } else { number }))
    }

    /// A command typed by hand: words separated by spaces, in quotes if they hold any.
    fn line_of_words(&mut self, input: &[u8]) -> (usize, Step) {
        let Some(end) = memchr::memchr(b'\n', input) else {
            return match input.len() > LINE_BYTES_MAX {
                true => broken("too big inline request"),
                false => (0, Step::Incomplete),
            };
        };
        let line = &input[..end];
        let mut at = 0;
        while at < line.len() {
            if line[at].is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let quote = line[at];
            let (from, to) = if matches!(quote, b'"' | b'\'') {
                let Some(length) = memchr::memchr(quote, &line[at + 1..]) else {
                    return broken("unbalanced quotes in request");
                };
                (at + 1, at + 1 + length)
            } else {
                let length = line[at..].iter().position(u8::is_ascii_whitespace);
                (at, at + length.unwrap_or(line.len() - at))
            };
            self.words.push(from..to);
            at = to + 1;
        }
        (end + 1, Step::Command)
    }

    /// How many words the last command has.
    pub fn count(&self) -> usize {
        self.words.len()
    }

    /// The words of the last command, in the input that it was found in.
    pub fn words<'a>(&self, input: &'a [u8]) -> Vec<&'a [u8]> {
        let words = self.words.iter();
        words.map(|range| &input[range.clone()]).collect()
    }

    /// A command has begun and is not complete.
    pub fn in_frame(&self) -> bool {
        self.is_partial
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.words.capacity() * size_of::<Range<usize>>()
    }

    /// Gives back the memory of a command with many words.
    pub fn trim(&mut self) {
        if self.words.capacity() > 64 {
            self.words = Vec::new();
        }
    }
}

fn broken(text: &'static str) -> (usize, Step) {
    (0, Step::Broken(Broken(text)))
}

#[cfg(test)]
mod tests;
