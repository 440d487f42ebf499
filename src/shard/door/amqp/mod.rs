//! The AMQP 0-9-1 door: connections with channels, over the same engine that the line protocol has.
//!
//! What is published is stored with its exchange, key and properties as sections beside the body; a delivery
//! is a lease whose holder is its consumer, and whose delivery tag is its place in the channel's list of
//! unacked deliveries. A method that is answered waits until the connection's publishes are visible, so
//! whoever has read an answer knows that what it sent before is safe.
//!
//! - `life`: the handshake, closing, errors, heartbeats
//! - `run`: frames and methods, in order
//! - `definitions`: exchanges, queues, bindings; `arguments` reads and compares what they were declared with
//! - `publish`: messages in, confirms and returns out
//! - `consume`: messages out; `settle`: what consumers say of them
//! - `tx`: transactions
//! - `reply_to`: answers that are never stored
//! - `upkeep`: what is done now and then
//!
//! Where the broker has several shards, a client has a part at each that it has to do with:
//!
//! - `route`: which part runs a method; `front`: what the client sees of them; `part`: what they say beside
//!   the methods of the specification

mod arguments;
mod consume;
mod definitions;
mod front;
mod life;
mod part;
mod publish;
mod reply_to;
mod route;
mod run;
mod settle;
mod tx;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Told;
use crate::broker::id::QueueUid;
use crate::broker::queue::WaiterKey;
use crate::broker::reply::{ErrorCode, Reply};
use crate::buffer::send::{Pool, SendRing};
use crate::protocol::amqp::encode::{self, Frame};
use crate::protocol::amqp::method::{Id, id};
use crate::protocol::amqp::{code, frame::FRAME_BYTES_MIN};
use crate::shard::conn::{Conn, Need};
use crate::shard::engine::Reached;

pub use part::Introduction;
pub use upkeep::Upkeep;

use front::Front;

/// Channels of one connection at most, and what is proposed.
const CHANNELS_MAX: u16 = 2047;
/// The size of a frame that is proposed, bytes.
const FRAME_BYTES_MAX: u32 = 128 << 10;
/// Seconds between two signs of life that are proposed.
const HEARTBEAT_S: u16 = 60;
/// Size of a body's first memory at most, bytes: nothing is reserved for what is announced.
const BODY_BYTES_RESERVED: usize = 64 << 10;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The protocol's name and version are awaited.
    Preamble,
    /// Who the client is is awaited.
    Starting,
    /// What it agrees to is awaited.
    Tuning,
    /// The virtual host is awaited.
    Opening,
    /// Channels are used.
    Running,
    /// It is closed by the broker; nothing that comes is run any more.
    Closed,
}

/// What a client says that it understands.
#[derive(Clone, Copy, Debug, Default)]
struct Understands {
    /// The end of a consumer that it has not asked for.
    cancel: bool,
    /// That its publishes wait.
    blocked: bool,
    /// The refusal of a message.
    nack: bool,
}

impl Understands {
    /// What shards understand of each other.
    const ALL: Understands = Understands {
        cancel: true,
        blocked: true,
        nack: true,
    };
}

/// A connection's state.
#[derive(Debug)]
pub struct Amqp {
    phase: Phase,
    understands: Understands,
    /// It is what a client has at one of several shards: this one, or another that is its home.
    is_part: bool,
    is_guest: bool,
    /// What the client sees of all its parts; `None` if there is one shard, and for guests.
    front: Option<Box<Front>>,
    /// The broker has given the name of the queue that is declared now.
    is_given: bool,
    /// The definition of a queue that is bound is to be on stable storage first.
    bind_need: Option<Need>,
    /// A queue was deleted with so many messages, and it is awaited that no shard has its bindings any more.
    deleted: Option<u32>,
    /// Who it says it is.
    user: Box<[u8]>,
    frame_bytes_max: u32,
    channels_max: u16,
    /// Between two signs of life, microseconds; 0 = none are sent or expected.
    heartbeat_us: u64,
    /// When a sign of life is due unless something is sent, microseconds.
    beat_due_us: u64,
    /// Where its output ended when that was looked at last.
    beat_end: u64,
    channels: Vec<Option<Box<Channel>>>,
    /// Bytes of bodies that are not complete, of all channels.
    unfinished_bytes: usize,
    /// What publishers are told when the log has got far enough, in order.
    confirms: VecDeque<Confirm>,
    /// Queues that go with the connection.
    exclusive: BTreeSet<QueueUid>,
    /// Dead letters of its rejects have lower numbers, of those that go to other shards; 0 = none was rejected.
    dead_below: u64,
    /// It was told that its publishes wait.
    is_blocked: bool,
    /// When what waits is given up since the client has ended its side, microseconds.
    gives_up_us: Option<u64>,
    /// A message that came whole on this channel and could not be stored yet.
    stuck: Option<u16>,
    /// Which answer the next reply of the shard is.
    awaited: Option<Awaited>,
    /// The message that is handed out is the answer to a get.
    is_getting: bool,
    /// Where that answer's method ends in the output's copied bytes.
    got_end: usize,
    /// The last frame was cut.
    is_inside: bool,
    /// Scratch.
    reached: Reached,
    sections: Vec<u8>,
    octets: Vec<u8>,
}

/// What a publisher is told.
#[derive(Clone, Copy, Debug)]
enum Confirm {
    /// Messages from one number to another have reached their level when that is met.
    Taken {
        channel: u16,
        first: u64,
        last: u64,
        need: Need,
    },
    /// That message was refused.
    Refused { channel: u16, tag: u64 },
    /// So many messages found no queue at this shard.
    Unrouted { channel: u16, count: u64 },
}

/// The answer that a command of the line protocol stands for.
#[derive(Clone, Copy, Debug)]
enum Awaited {
    /// How many messages were purged.
    Purge { channel: u16, nowait: bool },
}

/// What happens to publishes and acks of a channel.
#[derive(Debug)]
enum Mode {
    /// They take effect as they come.
    Plain,
    /// Publishes are confirmed; the next one's number.
    Confirm(u64),
    /// They wait for a commit.
    Tx(Box<tx::Tx>),
}

/// A message that comes in several frames.
#[derive(Debug)]
struct Content {
    exchange: Box<[u8]>,
    key: Box<[u8]>,
    mandatory: bool,
    /// Flags and values as they came; empty until the header has come.
    properties: Vec<u8>,
    /// Size of the body; `None` until the header has come.
    body_bytes: Option<u64>,
    body: Vec<u8>,
}

/// A consumer of a channel.
#[derive(Debug)]
struct Consumer {
    waiter: WaiterKey,
}

/// One delivery that its consumer has not settled.
#[derive(Clone, Copy, Debug)]
struct Unacked {
    /// The lease; 0 = it is settled.
    serial: u64,
    /// The message.
    id: u64,
}

/// One channel.
#[derive(Debug)]
struct Channel {
    /// The broker has closed it and awaits that the client has seen that.
    is_closed: bool,
    mode: Mode,
    /// The tag of the next delivery.
    next_tag: u64,
    /// Deliveries since the first one unacked, in order of their tags.
    unacked: VecDeque<Unacked>,
    /// Those that are not settled.
    unacked_count: u32,
    consumers: BTreeMap<Box<[u8]>, Consumer>,
    /// Most unacked deliveries of each consumer that begins; 0 = any number.
    prefetch: u16,
    /// Most unacked deliveries of the whole channel; 0 = any number.
    prefetch_all: u16,
    content: Option<Content>,
    /// The queue that is meant where none is named.
    last_queue: Box<[u8]>,
    /// The name of the consumer that takes answers, and what makes its address one that nobody guesses.
    answers: Option<(Box<[u8]>, u64)>,
    /// Of a part: publishes so far.
    published: u64,
    /// Of a part: so many more deliveries may be made; `None` = any number.
    allowed: Option<u32>,
    /// Of a part: it has asked for more.
    has_asked: bool,
}

impl Channel {
    fn new() -> Channel {
        Channel {
            is_closed: false,
            mode: Mode::Plain,
            next_tag: 1,
            unacked: VecDeque::new(),
            unacked_count: 0,
            consumers: BTreeMap::new(),
            prefetch: 0,
            prefetch_all: 0,
            content: None,
            last_queue: Box::default(),
            answers: None,
            published: 0,
            allowed: None,
            has_asked: false,
        }
    }

    /// A delivery gets its tag; `serial` is that of its lease, 0 if there is none.
    #[inline]
    fn delivered(&mut self, serial: u64, id: u64) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        if serial != 0 {
            // Tags without a lease between two that have one keep their places.
            let first = tag - self.unacked.len() as u64;
            debug_assert!(first <= tag);
            self.unacked.push_back(Unacked { serial, id });
            self.unacked_count += 1;
        } else if !self.unacked.is_empty() {
            self.unacked.push_back(Unacked { serial: 0, id });
        }
        tag
    }

    /// The tag of the first delivery in the list.
    fn first_tag(&self) -> u64 {
        self.next_tag - self.unacked.len() as u64
    }

    /// Those at the front that are settled are forgotten.
    #[inline]
    fn forget_settled(&mut self) {
        while let Some(front) = self.unacked.front()
            && front.serial == 0
        {
            self.unacked.pop_front();
        }
        if self.unacked.is_empty() && self.unacked.capacity() > 1024 {
            self.unacked = VecDeque::new();
        }
    }

    fn memory(&self) -> usize {
        let content = self.content.as_ref().map_or(0, |content| {
            content.body.capacity() + content.properties.capacity()
        });
        let tx = match &self.mode {
            Mode::Tx(tx) => tx.memory(),
            Mode::Plain | Mode::Confirm(_) => 0,
        };
        size_of::<Channel>() + self.unacked.capacity() * size_of::<Unacked>() + content + tx
    }
}

/// Why a method was not done.
#[derive(Clone, Debug)]
enum Fault {
    /// Its channel is closed.
    Channel(u16, String),
    /// Its connection is closed.
    Connection(u16, String),
    /// It was not run: it comes again when what blocks the connection is gone.
    Again,
}

type Outcome = Result<(), Fault>;

fn channel_fault(code: u16, text: impl Into<String>) -> Fault {
    Fault::Channel(code, text.into())
}

fn connection_fault(code: u16, text: impl Into<String>) -> Fault {
    Fault::Connection(code, text.into())
}

/// Why a connection is closed that the broker has refused something else than one of its methods.
fn close_code(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::Proto => code::FRAME_ERROR,
        ErrorCode::Auth | ErrorCode::Denied => code::ACCESS_REFUSED,
        _ => code::INTERNAL_ERROR,
    }
}

/// A name as people read it.
fn shown(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

/// A consumer as the shard's tags name it: its channel, then its own name.
fn consumer_tag(channel: u16, name: &[u8]) -> Vec<u8> {
    [&channel.to_be_bytes()[..], name].concat()
}

fn split_tag(tag: &[u8]) -> Option<(u16, &[u8])> {
    let (channel, name) = tag.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*channel), name))
}

impl Amqp {
    /// A connection of which nothing is known yet.
    pub fn new() -> Amqp {
        Amqp {
            phase: Phase::Preamble,
            understands: Understands::default(),
            is_part: false,
            is_guest: false,
            front: None,
            is_given: false,
            bind_need: None,
            deleted: None,
            user: Box::default(),
            frame_bytes_max: FRAME_BYTES_MIN,
            channels_max: CHANNELS_MAX,
            heartbeat_us: 0,
            beat_due_us: u64::MAX,
            beat_end: 0,
            channels: Vec::new(),
            unfinished_bytes: 0,
            confirms: VecDeque::new(),
            exclusive: BTreeSet::new(),
            dead_below: 0,
            is_blocked: false,
            gives_up_us: None,
            stuck: None,
            awaited: None,
            is_getting: false,
            got_end: 0,
            is_inside: false,
            reached: Reached::default(),
            sections: Vec::new(),
            octets: Vec::new(),
        }
    }

    /// The same, of a client with parts at several shards, of which this is that number.
    pub fn with_parts(me: u32) -> Amqp {
        Amqp {
            is_part: true,
            front: Some(Box::new(Front::new(me))),
            ..Amqp::new()
        }
    }

    /// A frame or a message has begun and is not complete, or the handshake is under way.
    pub fn in_frame(&self) -> bool {
        match self.phase {
            Phase::Running => {
                self.is_inside
                    || self
                        .channels
                        .iter()
                        .flatten()
                        .any(|channel| channel.content.is_some())
            }
            Phase::Closed => false,
            _ => true,
        }
    }

    /// Publishers are still to be told what became of their messages.
    #[inline]
    pub fn has_confirms(&self) -> bool {
        !self.confirms.is_empty()
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let channels = self.channels.iter().flatten();
        size_of::<Amqp>()
            + channels.map(|channel| channel.memory()).sum::<usize>()
            + self.channels.capacity() * size_of::<Option<Box<Channel>>>()
            + self.confirms.capacity() * size_of::<Confirm>()
            + self.sections.capacity()
            + self.octets.capacity()
            + self.front.as_ref().map_or(0, |front| front.memory())
    }

    #[inline]
    fn channel(&mut self, number: u16) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(number))?.as_deref_mut()
    }

    /// Takes out the message that comes on a channel.
    fn take_content(&mut self, number: u16) -> Option<Content> {
        let content = self.channel(number)?.content.take()?;
        self.unfinished_bytes -= content.body.len();
        Some(content)
    }

    /// Puts back what was taken out.
    fn keep_content(&mut self, number: u16, content: Content) {
        let bytes = content.body.len();
        if let Some(channel) = self.channel(number) {
            channel.content = Some(content);
            self.unfinished_bytes += bytes;
        }
    }

    /// Bytes of messages that wait for a commit, of all channels.
    fn queued_bytes(&self) -> usize {
        let channels = self.channels.iter().flatten();
        let queued = channels.map(|channel| match &channel.mode {
            Mode::Tx(tx) => tx.memory(),
            Mode::Plain | Mode::Confirm(_) => 0,
        });
        queued.sum()
    }

    /// A subscription of the connection has ended, whoever ended it.
    pub fn forget_consumer(&mut self, tag: &[u8], waiter: WaiterKey) {
        if let Some((channel, name)) = split_tag(tag)
            && let Some(channel) = self.channel(channel)
            && channel
                .consumers
                .get(name)
                .is_some_and(|consumer| consumer.waiter == waiter)
        {
            channel.consumers.remove(name);
        }
    }

    /// How many more messages a consumer of that channel may have, which itself has room for `credit`.
    #[inline]
    pub fn credit(&self, tag: &[u8], credit: u32) -> u32 {
        let channel = split_tag(tag)
            .and_then(|(number, _)| self.channels.get(usize::from(number))?.as_deref());
        match channel {
            Some(Channel {
                allowed: Some(allowed),
                ..
            }) => credit.min(*allowed),
            Some(channel) if channel.prefetch_all > 0 => {
                let left = u32::from(channel.prefetch_all).saturating_sub(channel.unacked_count);
                credit.min(left)
            }
            Some(_) => credit,
            None => 0,
        }
    }

    /// Writes what the shard says to a connection.
    pub fn tell(
        &mut self,
        out: &mut SendRing,
        pool: &mut Pool,
        tag: Option<&[u8]>,
        told: Told<'_>,
    ) {
        match told {
            Told::Reply(Reply::Count { count, .. }) => {
                if let Some(Awaited::Purge { channel, nowait }) = self.awaited.take()
                    && !nowait
                {
                    Frame::method(out.writer(pool), channel, id::QUEUE_PURGE_OK)
                        .long(u32::try_from(*count).unwrap_or(u32::MAX))
                        .end();
                }
            }
            Told::Reply(Reply::Error(error)) => {
                let code = close_code(error.code);
                let text = format!("{} - {}", code::name(code), error.text);
                self.close_with(out.writer(pool), code, &text, (0, 0));
            }
            Told::Gone { .. } => {
                let understands = self.understands.cancel;
                if let Some((channel, name)) = tag.and_then(split_tag)
                    && understands
                {
                    cancel(out.writer(pool), channel, name);
                }
            }
            // Nothing that a connection of this protocol asks for is answered so.
            Told::Reply(_) | Told::Message(_) | Told::Lag { .. } | Told::Expired(_) => {}
        }
    }

    /// The broker goes down, and has not said so yet. Parts go on with what their homes have taken.
    fn awaits_end(&self) -> bool {
        !self.is_guest && self.phase != Phase::Closed
    }

    fn close_with(&mut self, out: &mut Vec<u8>, code: u16, text: &str, cause: Id) {
        if self.phase != Phase::Closed {
            encode::close(out, 0, code, text, cause);
            self.phase = Phase::Closed;
            self.confirms.clear();
        }
    }
}

/// A consumer ends without having asked for it.
fn cancel(out: &mut Vec<u8>, channel: u16, name: &[u8]) {
    const NOWAIT: u8 = 1;
    Frame::method(out, channel, id::BASIC_CANCEL)
        .shortstr(name)
        .octet(NOWAIT)
        .end();
}

impl Conn {
    /// The state of a connection of this protocol.
    #[inline]
    pub fn amqp(&mut self) -> Option<&mut Amqp> {
        match &mut self.session {
            super::Session::Amqp(amqp) => Some(amqp),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_places_in_the_list_of_the_unacked() {
        let mut channel = Channel::new();
        assert_eq!(channel.delivered(0, 1), 1);
        assert!(channel.unacked.is_empty());
        assert_eq!(channel.delivered(70, 2), 2);
        assert_eq!(channel.delivered(0, 3), 3);
        assert_eq!(channel.delivered(71, 4), 4);
        assert_eq!((channel.first_tag(), channel.unacked_count), (2, 2));
        channel.unacked[0].serial = 0;
        channel.forget_settled();
        assert_eq!((channel.first_tag(), channel.unacked.len()), (4, 1));
    }

    #[test]
    fn a_consumer_is_named_by_its_channel_and_its_name() {
        let tag = consumer_tag(513, b"ctag");
        assert_eq!(split_tag(&tag), Some((513, &b"ctag"[..])));
        assert_eq!(split_tag(b"x"), None);
    }

    #[test]
    fn who_may_not_is_told_that_and_not_that_the_broker_is_broken() {
        for (code, want) in [
            (ErrorCode::Auth, code::ACCESS_REFUSED),
            (ErrorCode::Denied, code::ACCESS_REFUSED),
            (ErrorCode::Proto, code::FRAME_ERROR),
            (ErrorCode::Internal, code::INTERNAL_ERROR),
        ] {
            assert_eq!(close_code(code), want);
        }
    }
}
