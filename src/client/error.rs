//! What can go wrong between a client and its broker.

use std::fmt;
use std::io;
use std::time::Duration;

use super::wire::Reply;

/// Why a call did not do what it was asked. Displays as one sentence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No connection was made, or none that lasted.
    Connect {
        /// Where the broker was looked for.
        addr: String,
        /// What the last attempt met.
        source: io::Error,
    },
    /// The connection broke before the answer. Whether the command was run is unknown.
    Lost {
        /// Where the broker was.
        addr: String,
        /// What broke it; `UnexpectedEof` when the broker closed it.
        source: io::Error,
    },
    /// The broker answered `ERR`. But for [`Code::UnknownResult`] the command had no effect.
    Refused(Refusal),
    /// What came back is not the line protocol, or does not belong to what was asked.
    Protocol(String),
    /// The broker ended a subscription by itself: the rest of its line.
    Ended(String),
    /// What the caller passed cannot be sent. Nothing was sent.
    Invalid(String),
}

/// An `ERR` of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What programs look at.
    pub code: Code,
    /// `retry=`: when it may be better. Present with the codes of capacity.
    pub retry: Option<Duration>,
    /// The sentence for people.
    pub text: String,
}

/// The code of an `ERR`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// `NOQUEUE`: there is no such queue.
    NoQueue,
    /// `STALE`: handles that are no live leases.
    Stale,
    /// `NOCONSUMER`: nobody could answer a request.
    NoConsumer,
    /// `TIMEOUT`: nobody answered a request in time.
    Timeout,
    /// `CONFLICT`: it contradicts how things are.
    Conflict,
    /// `TOOBIG`: over a limit of size or number.
    TooBig,
    /// `FULL`: the queue is at its limit.
    Full,
    /// `MEM`: the broker's memory budget is used up.
    Memory,
    /// `DISK`: the broker's disk is full.
    Disk,
    /// `PAUSED`: the queue takes nothing at the moment.
    Paused,
    /// `LIMIT`: another limit of the broker is reached.
    Limit,
    /// `DRAINING`: the broker is about to stop.
    Draining,
    /// `UNKNOWNRESULT`: the broker cannot tell whether it happened.
    UnknownResult,
    /// Any other word, as the broker said it.
    Other(String),
}

impl Code {
    const WORDS: [(&str, Code); 13] = [
        ("NOQUEUE", Code::NoQueue),
        ("STALE", Code::Stale),
        ("NOCONSUMER", Code::NoConsumer),
        ("TIMEOUT", Code::Timeout),
        ("CONFLICT", Code::Conflict),
        ("TOOBIG", Code::TooBig),
        ("FULL", Code::Full),
        ("MEM", Code::Memory),
        ("DISK", Code::Disk),
        ("PAUSED", Code::Paused),
        ("LIMIT", Code::Limit),
        ("DRAINING", Code::Draining),
        ("UNKNOWNRESULT", Code::UnknownResult),
    ];

    /// The code that the broker means by a word.
    pub fn from_word(word: &str) -> Code {
        let mut words = Code::WORDS.into_iter();
        let known = words.find_map(|(known, code)| (known == word).then_some(code));
        known.unwrap_or_else(|| Code::Other(word.to_owned()))
    }

    /// The word of the protocol.
    pub fn word(&self) -> &str {
        match self {
            Code::Other(word) => word,
            code => {
                let mut words = Code::WORDS.iter();
                let found = words.find(|(_, known)| known == code);
                found.map_or("", |(word, _)| word)
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.is_empty() {
            true => write!(f, "the broker said {}", self.code.word()),
            false => write!(f, "{} ({})", self.text, self.code.word()),
        }
    }
}

impl Error {
    /// The error for a reply that does not belong to what was asked: [`Error::Refused`] for an
    /// `ERR`, [`Error::Protocol`] for anything else.
    pub fn unexpected(reply: Reply) -> Error {
        match reply {
            Reply::Error(refusal) => Error::Refused(refusal),
            other => Error::Protocol(format!(
                "the broker said something that does not belong here: {other:?}"
            )),
        }
    }

    /// What the broker refused and why, when that is what happened.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// How long to wait before the same is tried again, when the broker says that it may be better
    /// then.
    pub fn retry(&self) -> Option<Duration> {
        self.refusal().and_then(|refusal| refusal.retry)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Connect { addr, source } => match source.kind() {
                io::ErrorKind::ConnectionRefused => write!(f, "no broker answers at {addr}"),
                _ => write!(f, "cannot connect to {addr}: {source}"),
            },
            Error::Lost { addr, source } => match source.kind() {
                io::ErrorKind::UnexpectedEof => write!(f, "the broker at {addr} has gone"),
                _ => write!(f, "lost the broker at {addr}: {source}"),
            },
            Error::Refused(refusal) => refusal.fmt(f),
            Error::Ended(line) => write!(f, "the subscription has ended: {line}"),
            Error::Protocol(text) | Error::Invalid(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Connect { source, .. } | Error::Lost { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_words() {
        for word in ["NOQUEUE", "FULL", "MEM", "UNKNOWNRESULT", "NEWER"] {
            assert_eq!(Code::from_word(word).word(), word);
        }
        assert_eq!(Code::from_word("FULL"), Code::Full);
        assert_eq!(Code::from_word("X"), Code::Other("X".to_owned()));
    }
}
