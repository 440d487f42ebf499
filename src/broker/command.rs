//! What a client can ask for, independent of the protocol it asked in.
//!
//! Commands borrow from the connection's input. Names and option values are kept as they were
//! typed (`%XX` for odd octets) and already validated, so that decoding them cannot fail.

use bytes::Bytes;

use super::id::{Level, MessageId};
use super::settings::SettingsPatch;

/// One command as it stood on the wire.
#[derive(Debug)]
pub struct Request<'a> {
    /// The `@tag` in front, without the `@`.
    pub tag: Option<&'a [u8]>,
    /// The verb ended in `!`: its success line is not sent.
    pub quiet: bool,
    /// What is asked.
    pub command: Command<'a>,
}

/// A name or option value as typed: valid, with `%XX` standing for any octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Typed<'a>(pub &'a [u8]);

impl<'a> Typed<'a> {
    /// The octets that were meant; `scratch` is used only when there is a `%XX` in the text.
    pub fn decoded<'b>(&self, scratch: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if memchr::memchr(b'%', self.0).is_none() {
            return self.0;
        }
        scratch.clear();
        let mut rest = self.0;
        while let [first, tail @ ..] = rest {
            match (*first, tail) {
                (b'%', [high, low, after @ ..]) => {
                    scratch.push(hex(*high) << 4 | hex(*low));
                    rest = after;
                }
                (octet, tail) => {
                    scratch.push(octet);
                    rest = tail;
                }
            }
        }
        scratch
    }
}

/// The value of a hexadecimal digit that was validated before.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10) & 15,
    }
}

/// `name` or `name/group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// The queue's name.
    pub queue: Typed<'a>,
    /// The group, if one was named.
    pub group: Option<Typed<'a>>,
}

/// Sources separated by commas, each already validated. Iterate with [`Sources::iter`].
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a>(pub &'a [u8]);

impl<'a> Sources<'a> {
    /// The sources in the order written.
    pub fn iter(&self) -> impl Iterator<Item = Source<'a>> + use<'a> {
        self.0.split(|octet| *octet == b',').map(Source::split)
    }
}

impl<'a> Source<'a> {
    /// Splits validated text at its `/`.
    pub fn split(text: &'a [u8]) -> Source<'a> {
        match memchr::memchr(b'/', text) {
            Some(at) => Source {
                queue: Typed(&text[..at]),
                group: Some(Typed(&text[at + 1..])),
            },
            None => Source {
                queue: Typed(text),
                group: None,
            },
        }
    }
}

/// Handles or ids as typed, separated by spaces; at most the limit of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a>(pub &'a [u8]);

impl<'a> Tokens<'a> {
    /// The tokens in the order written.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.0
            .split(|octet| *octet == b' ')
            .filter(|token| !token.is_empty())
    }
}

/// The bytes of one message, or of one batch.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// Lies in the receive buffer; must be copied to be kept.
    Borrowed(&'a [u8]),
    /// A large one, read straight into memory of its own; can be kept as it is.
    Owned(Bytes),
}

impl Body<'_> {
    /// The bytes, whoever owns them.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Body::Borrowed(slice) => slice,
            Body::Owned(bytes) => bytes,
        }
    }
}

/// How the messages of an `MPUB` stand in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Every line is a message; LF ends a line, one CR before it is dropped.
    Lines,
    /// `<len> LF bytes LF` again and again; checked to be exact before the command is run.
    Counted,
}

/// What `at=`, `from=` and `to=` can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSpec {
    /// Unix time in microseconds.
    UnixUs(u64),
    /// That many microseconds before now.
    AgoUs(u64),
    /// A bare number: a message id.
    Id(MessageId),
}

/// The options of `PUB` and `MPUB`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishOptions<'a> {
    /// Wait before it becomes ready, microseconds.
    pub delay_us: Option<u64>,
    /// Unix time at which it becomes ready, microseconds.
    pub at_us: Option<u64>,
    /// Time to live, microseconds.
    pub ttl_us: Option<u64>,
    /// Priority; higher leaves first.
    pub pri: Option<u8>,
    /// Ordering key.
    pub key: Option<Typed<'a>>,
    /// The client's id for deduplication.
    pub once: Option<Typed<'a>>,
    /// When the receipt is sent.
    pub sync: Option<Level>,
    /// Where an answer goes.
    pub reply: Option<Typed<'a>>,
    /// The whole argument text when it holds at least one `h.<name>=<value>`, else empty.
    pub args: &'a [u8],
    /// Encoded sections that another protocol has made; empty if none.
    pub sections: &'a [u8],
    /// Priority and time to live stay within what the queue's declaration and settings allow.
    pub within: bool,
    /// Known to say nothing of all that; false means nothing.
    pub is_plain: bool,
}

impl<'a> PublishOptions<'a> {
    /// The options of a publish that says none.
    pub fn plain() -> PublishOptions<'a> {
        PublishOptions {
            is_plain: true,
            ..PublishOptions::default()
        }
    }

    /// The `h.` options in the order written: name without the `h.`, value as typed.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Typed<'a>)> + use<'a> {
        self.args.split(|octet| *octet == b' ').filter_map(|arg| {
            let rest = arg.strip_prefix(b"h.")?;
            let equals = memchr::memchr(b'=', rest)?;
            Some((&rest[..equals], Typed(&rest[equals + 1..])))
        })
    }
}

/// The options of `PULL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullOptions {
    /// Most messages wanted, at least 1.
    pub count: u32,
    /// How long to wait for the first message, microseconds; 0 = not at all.
    pub wait_us: u64,
    /// Lease, microseconds; the queue's when absent.
    pub lease_us: Option<u64>,
    /// Where a group that begins with this pull starts.
    pub from: Option<From>,
    /// Settled before it is sent.
    pub ack_auto: bool,
    /// The lease outlives the connection once the reply was taken by the socket.
    pub hold: bool,
    /// Stop when this many body bytes are in the reply (at least one message is given).
    pub bytes_max: Option<u64>,
    /// Tell the publish time.
    pub timestamps: bool,
}

/// Where a group starts to read, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the oldest message kept.
    First,
    /// At the next message published.
    New,
    /// At an id or a time.
    At(TimeSpec),
}

/// Which messages `PEEK` and `PURGE` mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageState {
    /// Ready to be pulled.
    Ready,
    /// Waiting for its time.
    Delayed,
    /// Leased by a consumer.
    Leased,
    /// In the dead-letter queue, from this queue.
    Dead,
}

/// What `STATS` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsScope<'a> {
    /// The whole broker.
    Broker,
    /// One queue or group.
    Queue(Source<'a>),
    /// Every connection.
    Connections,
}

/// The verbs.
#[derive(Debug)]
pub enum Command<'a> {
    /// `HELLO [1] [name=x] [expired=1]`
    Hello {
        /// Protocol version asked for, 1 if not said.
        version: u64,
        /// The client's name for itself.
        name: Option<Typed<'a>>,
        /// Wants `EXPIRED` lines.
        expired: bool,
    },
    /// `PING [:x]`
    Ping {
        /// Sent back.
        body: Option<Body<'a>>,
    },
    /// `QUIT`
    Quit,
    /// `HELP [verb]`
    Help {
        /// The verb to explain.
        verb: Option<&'a [u8]>,
    },
    /// `PUB`
    Publish {
        /// Where to.
        queue: Typed<'a>,
        /// How.
        options: PublishOptions<'a>,
        /// What.
        body: Body<'a>,
    },
    /// `MPUB`
    PublishBatch {
        /// Where to.
        queue: Typed<'a>,
        /// How; applies to each message, `once` to the batch.
        options: PublishOptions<'a>,
        /// How the messages stand in `data`.
        framing: Framing,
        /// How many messages there are.
        count: u32,
        /// The sum of their bodies' lengths.
        body_bytes: u64,
        /// All of them.
        data: Body<'a>,
    },
    /// `PULL` or `POP`
    Pull {
        /// Tried in the order written.
        sources: Sources<'a>,
        /// How.
        options: PullOptions,
    },
    /// `ACK`
    Ack {
        /// What to settle.
        handles: Tokens<'a>,
    },
    /// `NACK`
    Nack {
        /// What to give back.
        handles: Tokens<'a>,
        /// Before it is ready again, microseconds; the queue's backoff when absent.
        delay_us: Option<u64>,
        /// Straight to the dead-letter queue.
        dead: bool,
        /// The consumer's reason.
        why: Option<Typed<'a>>,
    },
    /// `TOUCH`
    Touch {
        /// What to keep.
        handles: Tokens<'a>,
        /// New lease from now, microseconds; the queue's when absent.
        lease_us: Option<u64>,
    },
    /// `SUB`
    Subscribe {
        /// What to read.
        source: Source<'a>,
        /// Most unacked messages; 100 or what it was when absent.
        credit: Option<u32>,
        /// Lease, microseconds; the queue's when absent.
        lease_us: Option<u64>,
        /// Where a group that begins with this starts.
        from: Option<From>,
        /// Settled before it is sent.
        ack_auto: bool,
        /// Tell the publish time.
        timestamps: bool,
    },
    /// `SUB pattern mode=live`
    SubscribeLive {
        /// Which topics, as typed; checked.
        pattern: &'a [u8],
        /// Tell when it was cast.
        timestamps: bool,
    },
    /// `UNSUB pattern`, with a wildcard; others are [`Command::Unsubscribe`]
    UnsubscribeLive {
        /// Which topics, as typed; checked.
        pattern: &'a [u8],
    },
    /// `CREDIT src n`
    Credit {
        /// Which subscription.
        source: Source<'a>,
        /// Most unacked messages.
        credit: u32,
    },
    /// `UNSUB src`
    Unsubscribe {
        /// Which subscription.
        source: Source<'a>,
    },
    /// `QSET`
    QueueSet {
        /// Which queue.
        queue: Typed<'a>,
        /// What changes.
        settings: Box<SettingsPatch>,
    },
    /// `QGET`
    QueueGet {
        /// Which queue or group.
        source: Source<'a>,
    },
    /// `QLS [pattern]`
    QueueList {
        /// Words joined by `.`, `*` one word, `#` any number; everything when absent.
        pattern: Option<&'a [u8]>,
    },
    /// `QDEL q[/group]`
    QueueDelete {
        /// Which queue or group.
        source: Source<'a>,
    },
    /// `DEL q id…`
    Delete {
        /// Which queue.
        queue: Typed<'a>,
        /// Which messages.
        ids: Tokens<'a>,
    },
    /// `PURGE src [state=]`
    Purge {
        /// Which queue.
        source: Source<'a>,
        /// Only these; ready and delayed when absent.
        state: Option<MessageState>,
    },
    /// `PEEK src [n] [state=] [from=id]`
    Peek {
        /// Which queue.
        source: Source<'a>,
        /// Most messages wanted.
        count: u32,
        /// Which messages.
        state: MessageState,
        /// The first id to show.
        from: MessageId,
    },
    /// `MOVE src dst [n]`
    Move {
        /// From where.
        source: Source<'a>,
        /// To where.
        target: Typed<'a>,
        /// At most so many; all when absent.
        count: Option<u64>,
    },
    /// `SYNC [level]`
    Sync {
        /// The level to wait for; each queue's own when absent.
        level: Option<Level>,
    },
    /// `STATS`
    Stats(StatsScope<'a>),
    /// `WHY src`
    Why {
        /// The queue.
        source: Source<'a>,
    },
    /// `KILL conn`
    Kill {
        /// Place and generation, as `STATS conns` prints them.
        conn: (u32, u32),
    },
    /// `DRAIN [dur]`
    Drain {
        /// How long leases are waited for at most, microseconds; 30 s when absent.
        most_us: Option<u64>,
    },
    /// `CANCEL @tag`
    Cancel {
        /// Whose wait to end, without the `@`.
        tag: &'a [u8],
    },
    /// `REQ q [timeout=2s]`
    Request {
        /// Whose consumers are asked.
        queue: Typed<'a>,
        /// How long an answer is waited for, microseconds, above 0.
        timeout_us: u64,
        /// How; only `pri`, `key` and headers.
        options: PublishOptions<'a>,
        /// What.
        body: Body<'a>,
    },
    /// `CAST topic`
    Cast {
        /// Where to: a name that nothing is stored under.
        topic: Typed<'a>,
        /// How; holds for each queue that takes it.
        options: PublishOptions<'a>,
        /// What.
        body: Body<'a>,
    },
    /// `BIND pattern q`
    Bind {
        /// Which topics, as typed; checked.
        pattern: &'a [u8],
        /// Who takes them.
        queue: Typed<'a>,
    },
    /// `UNBIND pattern q`
    Unbind {
        /// Which topics, as typed; checked.
        pattern: &'a [u8],
        /// Who took them.
        queue: Typed<'a>,
    },
    /// `PUB queue every=`
    Schedule {
        /// Where to.
        queue: Typed<'a>,
        /// The schedule's name: its `once=`.
        name: Typed<'a>,
        /// Between two messages, microseconds; 0 ends it.
        every_us: u64,
        /// How.
        options: PublishOptions<'a>,
        /// What.
        body: Body<'a>,
    },
    /// `BEGIN`
    Begin,
    /// `COMMIT`
    Commit,
    /// `ABORT`
    Abort,
    /// `SEEK src to=`
    Seek {
        /// Which queue or group.
        source: Source<'a>,
        /// Where it goes on to read.
        to: From,
    },
    /// `REP token`
    Answer {
        /// The `reply=` of the request.
        token: Typed<'a>,
        /// What.
        body: Body<'a>,
    },
}

impl<'a> Command<'a> {
    /// The message that it brings, if it brings one.
    pub fn message_mut(&mut self) -> Option<&mut Body<'a>> {
        match self {
            Command::Publish { body, .. }
            | Command::Cast { body, .. }
            | Command::Request { body, .. }
            | Command::Schedule { body, .. }
            | Command::Answer { body, .. } => Some(body),
            _ => None,
        }
    }
}
