//! What the engine answers, independent of the protocol it answers in.

use std::borrow::Cow;

use bytes::Bytes;

use super::id::{Handle, Level, MessageId};

/// The closed set of error words of the wire contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ErrorCode {
    Syntax,
    Unknown,
    Name,
    TooBig,
    Line,
    Proto,
    NoQueue,
    NoGroup,
    Stale,
    NoConsumer,
    Timeout,
    Conflict,
    Full,
    Mem,
    Disk,
    Paused,
    Limit,
    Draining,
    Auth,
    Denied,
    NotLeader,
    UnknownResult,
    Internal,
}

impl ErrorCode {
    /// Each of them.
    pub const ALL: [ErrorCode; 23] = [
        ErrorCode::Syntax,
        ErrorCode::Unknown,
        ErrorCode::Name,
        ErrorCode::TooBig,
        ErrorCode::Line,
        ErrorCode::Proto,
        ErrorCode::NoQueue,
        ErrorCode::NoGroup,
        ErrorCode::Stale,
        ErrorCode::NoConsumer,
        ErrorCode::Timeout,
        ErrorCode::Conflict,
        ErrorCode::Full,
        ErrorCode::Mem,
        ErrorCode::Disk,
        ErrorCode::Paused,
        ErrorCode::Limit,
        ErrorCode::Draining,
        ErrorCode::Auth,
        ErrorCode::Denied,
        ErrorCode::NotLeader,
        ErrorCode::UnknownResult,
        ErrorCode::Internal,
    ];

    /// The code with that word.
    pub fn from_word(word: &str) -> Option<ErrorCode> {
        ErrorCode::ALL.into_iter().find(|code| code.word() == word)
    }

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            ErrorCode::Syntax => "SYNTAX",
            ErrorCode::Unknown => "UNKNOWN",
            ErrorCode::Name => "NAME",
            ErrorCode::TooBig => "TOOBIG",
            ErrorCode::Line => "LINE",
            ErrorCode::Proto => "PROTO",
            ErrorCode::NoQueue => "NOQUEUE",
            ErrorCode::NoGroup => "NOGROUP",
            ErrorCode::Stale => "STALE",
            ErrorCode::NoConsumer => "NOCONSUMER",
            ErrorCode::Timeout => "TIMEOUT",
            ErrorCode::Conflict => "CONFLICT",
            ErrorCode::Full => "FULL",
            ErrorCode::Mem => "MEM",
            ErrorCode::Disk => "DISK",
            ErrorCode::Paused => "PAUSED",
            ErrorCode::Limit => "LIMIT",
            ErrorCode::Draining => "DRAINING",
            ErrorCode::Auth => "AUTH",
            ErrorCode::Denied => "DENIED",
            ErrorCode::NotLeader => "NOTLEADER",
            ErrorCode::UnknownResult => "UNKNOWNRESULT",
            ErrorCode::Internal => "INTERNAL",
        }
    }
}

// None is forgotten.
const _: () = assert!(ErrorCode::ALL.len() == ErrorCode::Internal as usize + 1);

/// A refusal: what went wrong and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The word programs look at.
    pub code: ErrorCode,
    /// When to try again, milliseconds; only for capacity.
    pub retry_ms: Option<u32>,
    /// `k=v` fields between the code and the text, empty if none.
    pub fields: String,
    /// One sentence for a person that teaches.
    pub text: Cow<'static, str>,
}

impl Error {
    /// An error without fields.
    pub fn new(code: ErrorCode, text: impl Into<Cow<'static, str>>) -> Error {
        Error {
            code,
            retry_ms: None,
            fields: String::new(),
            text: text.into(),
        }
    }

    /// The same with a `retry=`.
    pub fn retry(mut self, retry_ms: u32) -> Error {
        self.retry_ms = Some(retry_ms);
        self
    }
}

/// One terminal answer.
#[derive(Debug)]
pub enum Reply<'a> {
    /// `OK`
    Ok,
    /// `OK <word>`, as in `OK bye`, `OK created`.
    Word(&'static str),
    /// `OK <id> <level> [dup=1]`
    Receipt {
        /// The message's id.
        id: MessageId,
        /// How far it has got.
        level: Level,
        /// It had been published before.
        duplicate: bool,
    },
    /// `OK <first-id> <n> <level> [dup=1]`
    BatchReceipt {
        /// The first message's id.
        first: MessageId,
        /// How many there are.
        count: u32,
        /// How far they have got.
        level: Level,
        /// They had been published before.
        duplicate: bool,
    },
    /// `OK <receivers> <level> [refused=k]`
    Cast {
        /// Who got it: queues and live connections.
        receivers: u64,
        /// How far it has got in the queue where it has got least.
        level: Level,
        /// Queues that refused it.
        refused: u64,
    },
    /// `OK k [stale=a,b]`
    Count {
        /// How many it was done for.
        count: u64,
        /// The tokens for which it was not, joined by commas; empty if none.
        stale: &'a [u8],
    },
    /// `ERR STALE done=k stale=a,b`: what a quiet settle says when some were stale.
    QuietStale {
        /// How many it was done for.
        count: u64,
        /// The others.
        stale: &'a [u8],
    },
    /// `END k`
    End {
        /// How many messages were given.
        count: u64,
    },
    /// `PONG [:x]`
    Pong(Option<&'a [u8]>),
    /// `DATA $n`
    Data(&'a [u8]),
    /// The line of `HELLO`.
    Hello {
        /// Largest body, bytes.
        body_bytes_max: u64,
        /// Longest line, bytes.
        line_bytes_max: u64,
        /// Most messages in a batch.
        batch_count_max: u64,
        /// Most bytes in a batch.
        batch_bytes_max: u64,
        /// Most handles in an `ACK`.
        handles_max: u64,
        /// The broker's name.
        node: &'a str,
    },
    /// `OK accepted=n rejected=m <level>`
    Synced {
        /// Quiet publishes taken since the last one.
        accepted: u64,
        /// Quiet publishes refused since the last one.
        rejected: u64,
        /// The weakest level among them.
        level: Level,
    },
    /// `ERR …`
    Error(&'a Error),
}

/// A message on its way to a consumer.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The source as typed (queue's printed name, with `/group` if any).
    pub source: &'a [u8],
    /// Its handle; `-` when absent.
    pub handle: Option<Handle>,
    /// Sent as `id=` when there is no handle; 0 = it was never stored.
    pub id: MessageId,
    /// Which try this is; told when above 1.
    pub tries: u32,
    /// Publish time in unix milliseconds, when asked for.
    pub timestamp_ms: Option<u64>,
    /// Octets of `key=`.
    pub key: Option<&'a [u8]>,
    /// Octets of `reply=`.
    pub reply: Option<&'a [u8]>,
    /// AMQP field-table octets of its headers; empty if none (see `broker::headers`).
    pub headers: &'a [u8],
    /// The body.
    pub body: Payload<'a>,
}

/// A stored body.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// To be copied into the output.
    Slice(&'a [u8]),
    /// Large; may be referenced.
    Shared(Bytes),
}

impl Payload<'_> {
    /// The bytes, whoever owns them.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Slice(slice) => slice,
            Payload::Shared(bytes) => bytes,
        }
    }
}
