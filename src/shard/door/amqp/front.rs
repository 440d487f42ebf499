//! What a client sees of its parts at several shards: one connection.
//!
//! ```text
//!   part at shard 0 --frames--.
//!   part at shard 1 --frames---> front: tags, confirms, returns --> the client's wire
//!   part at shard 2 --frames--'
//! ```
//!
//! A part's deliveries get the client's tags in the order in which they go to the wire, so that an ack of all up to
//! one means what its client has seen. What parts report of publishes becomes the client's confirms and returns, in order of
//! the publishes. Answers that the home has asked for in its own name stay here. Nothing is posted here: what is to
//! be told to parts is [`News`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::part::{self, REPORT, UNTRACKED, UNUSED, Verdict, WANT};
use super::publish::put_returned;
use super::{Amqp, Fault, Phase, Understands, settle};
use crate::broker::reply::Payload;
use crate::buffer::send::{Pool, SendRing};
use crate::protocol::amqp::content::Properties;
use crate::protocol::amqp::encode;
use crate::protocol::amqp::frame::{self, Frame, HEAD_BYTES, Kind, Step};
use crate::protocol::amqp::method::{Id, id};
use crate::protocol::amqp::wire::Reader;

/// Pieces from this size are referenced, smaller ones copied, bytes.
const SHARED_BYTES_MIN: usize = 16 << 10;

/// A delivery that the client has not settled.
#[derive(Clone, Copy, Debug)]
struct Given {
    /// Of which part.
    shard: u32,
    /// Its tag there; 0 = it is settled, or needs no ack.
    tag: u64,
}

/// A message that comes back if no shard has a queue for it.
#[derive(Debug)]
pub(super) struct Returnable {
    pub exchange: Box<[u8]>,
    pub key: Box<[u8]>,
    /// Flags and values as they came.
    pub properties: Box<[u8]>,
    pub body: Bytes,
}

/// A publish of which not all shards have said what became of it.
#[derive(Debug)]
struct Sent {
    /// So many have not.
    missing: u32,
    is_refused: bool,
    is_routed: bool,
    returnable: Option<Box<Returnable>>,
}

/// Publishes with numbers from one to another.
type Range = (u64, u64);

/// A publish that waits for its channel's commit: where it went.
#[derive(Debug)]
struct Uncommitted {
    shards: Vec<u32>,
    returnable: Option<Box<Returnable>>,
}

/// What was said of deliveries and waits for the channel's commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub tag: u64,
    pub multiple: bool,
    /// `None`: an ack. Else whether it goes back.
    pub requeue: Option<bool>,
}

/// What is to be said to one part of several deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    pub shard: u32,
    pub tag: u64,
    pub multiple: bool,
}

/// A channel as its client sees it.
#[derive(Debug)]
pub(super) struct Relay {
    /// The client was told that it is closed.
    is_closed: bool,
    next_tag: u64,
    /// Deliveries since the first one that is not settled, in order of their tags.
    unacked: VecDeque<Given>,
    unacked_count: u32,
    /// Consumers at other shards.
    pub consumers: BTreeMap<Box<[u8]>, u32>,
    /// Other shards whose parts have the channel, and those among them that have something to commit.
    pub open_at: BTreeSet<u32>,
    pub tx_at: BTreeSet<u32>,
    /// Parts that know where the channel's answers go.
    pub answers_at: BTreeSet<u32>,
    /// Publishes so far, and from which on they are confirmed.
    published: u64,
    confirms_from: Option<u64>,
    /// The last ones, from the first one that is not over.
    sent: VecDeque<Sent>,
    /// Of which each part has said nothing.
    awaited: BTreeMap<u32, VecDeque<Range>>,
    uncommitted: Vec<Uncommitted>,
    pub said: Vec<Said>,
    /// All parts have committed what is committed now.
    pub is_committed: bool,
    /// Most unacked deliveries of the whole channel; 0 = any number.
    limit: u32,
    /// So many more deliveries parts may make now.
    granted: u32,
    /// Parts that could make more.
    wanting: BTreeSet<u32>,
}

/// What is to be told to parts.
#[derive(Debug)]
pub(super) enum News {
    /// A part has closed that channel.
    ChannelClosed { channel: u16, by: u32 },
    /// A part of a channel may make so many more deliveries.
    Allow {
        channel: u16,
        shard: u32,
        count: u32,
    },
}

/// The client's side of a connection with parts at several shards.
#[derive(Debug)]
pub(super) struct Front {
    me: u32,
    relays: BTreeMap<u16, Relay>,
    /// Channels that a part was told to close, and how often it has not answered that.
    closing: BTreeMap<(u32, u16), u32>,
    /// Parts whose last method was not passed on: the content behind it is not either.
    skipped: BTreeSet<u32>,
    /// Parts whose publishes wait.
    blocked: BTreeSet<u32>,
    pub understands: Understands,
    /// Parts with publishes or dead letters of rejects that may not be safe, or that may not have heard of an ack.
    pub unsettled: BTreeSet<u32>,
    /// What the first frame has asked of a part is answered.
    pub is_answered: bool,
    /// The parts were told that the client goes.
    pub is_parting: bool,
    /// The client was told that the connection is closed.
    is_over: bool,
    pub news: Vec<News>,
}

impl Relay {
    pub(super) fn new() -> Relay {
        Relay {
            is_closed: false,
            next_tag: 1,
            unacked: VecDeque::new(),
            unacked_count: 0,
            consumers: BTreeMap::new(),
            open_at: BTreeSet::new(),
            tx_at: BTreeSet::new(),
            answers_at: BTreeSet::new(),
            published: 0,
            confirms_from: None,
            sent: VecDeque::new(),
            awaited: BTreeMap::new(),
            uncommitted: Vec::new(),
            said: Vec::new(),
            is_committed: false,
            limit: 0,
            granted: 0,
            wanting: BTreeSet::new(),
        }
    }

    // --- Deliveries ---

    /// A part's delivery gets the client's tag.
    fn delivered(&mut self, shard: u32, tag: u64) -> u64 {
        let next = self.next_tag;
        self.next_tag += 1;
        if tag & UNTRACKED == 0 {
            self.unacked.push_back(Given { shard, tag });
            self.unacked_count += 1;
        } else if !self.unacked.is_empty() {
            self.unacked.push_back(Given { shard, tag: 0 });
        }
        next
    }

    /// What is to be said to the parts to settle that delivery, or all up to it (0: all). Settles nothing yet.
    pub(super) fn find(&self, tag: u64, multiple: bool) -> Result<Vec<Settled>, Fault> {
        let first = self.next_tag - self.unacked.len() as u64;
        let place = tag.checked_sub(first);
        if !multiple {
            let found = place
                .and_then(|place| self.unacked.get(usize::try_from(place).ok()?))
                .filter(|given| given.tag != 0);
            let Some(given) = found else {
                return Err(settle::unknown_tag(tag));
            };
            return Ok(vec![Settled {
                shard: given.shard,
                tag: given.tag,
                multiple,
            }]);
        }
        let count = match tag {
            0 => self.unacked.len() as u64,
            tag if tag >= self.next_tag || tag < first => return Err(settle::unknown_tag(tag)),
            tag => tag - first + 1,
        };
        // Those of one part come in the order of its tags.
        let mut last = BTreeMap::new();
        let taken = self.unacked.iter().take(count as usize);
        for given in taken.filter(|given| given.tag != 0) {
            last.insert(given.shard, given.tag);
        }
        let settled = last.into_iter().map(|(shard, tag)| Settled {
            shard,
            tag,
            multiple,
        });
        Ok(settled.collect())
    }

    /// What [`Relay::find`] has found is settled.
    pub(super) fn settle(&mut self, tag: u64, multiple: bool) {
        let first = self.next_tag - self.unacked.len() as u64;
        let count = match (tag, multiple) {
            (0, true) => self.unacked.len(),
            (tag, true) => (tag - first + 1) as usize,
            (tag, false) => {
                self.unacked[(tag - first) as usize].tag = 0;
                self.unacked_count -= 1;
                0
            }
        };
        let taken = self.unacked.drain(..count).filter(|given| given.tag != 0);
        self.unacked_count -= taken.count() as u32;
        while self.unacked.front().is_some_and(|given| given.tag == 0) {
            self.unacked.pop_front();
        }
        if self.unacked.is_empty() && self.unacked.capacity() > 1024 {
            self.unacked = VecDeque::new();
        }
    }

    // --- Publishes ---

    /// They are confirmed from now on.
    pub(super) fn confirm(&mut self) {
        let next = self.published;
        self.confirms_from.get_or_insert(next);
    }

    pub(super) fn has_confirms(&self) -> bool {
        self.confirms_from.is_some()
    }

    /// A message went to these shards, each of which will say what became of it.
    pub(super) fn sent(&mut self, shards: &[u32], returnable: Option<Box<Returnable>>) {
        let number = self.published;
        self.published += 1;
        self.sent.push_back(Sent {
            missing: shards.len() as u32,
            is_refused: false,
            is_routed: false,
            returnable,
        });
        for shard in shards {
            let awaited = self.awaited.entry(*shard).or_default();
            match awaited.back_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => awaited.push_back((number, number)),
            }
        }
    }

    /// The same, when the channel commits.
    pub(super) fn sent_uncommitted(
        &mut self,
        shards: Vec<u32>,
        returnable: Option<Box<Returnable>>,
    ) {
        self.uncommitted.push(Uncommitted { shards, returnable });
    }

    /// The channel commits.
    pub(super) fn commit(&mut self) {
        for Uncommitted { shards, returnable } in std::mem::take(&mut self.uncommitted) {
            self.sent(&shards, returnable);
        }
    }

    /// The channel does not want what it has queued.
    pub(super) fn roll_back(&mut self) {
        self.uncommitted.clear();
        self.said.clear();
        self.tx_at.clear();
    }

    /// A part says what became of its next publishes.
    fn reported(&mut self, from: u32, verdict: Verdict, mut count: u64) {
        let begin = self.published - self.sent.len() as u64;
        let Some(awaited) = self.awaited.get_mut(&from) else {
            return;
        };
        while count > 0
            && let Some((first, last)) = awaited.front_mut()
        {
            let number = *first;
            *first += 1;
            count -= 1;
            if *first > *last {
                awaited.pop_front();
            }
            let place = number.checked_sub(begin);
            let Some(sent) = place.and_then(|place| self.sent.get_mut(place as usize)) else {
                continue;
            };
            sent.missing -= 1;
            sent.is_refused |= verdict == Verdict::Refused;
            sent.is_routed |= verdict != Verdict::Unrouted;
        }
    }

    // --- The channel's own limit ---

    /// So many deliveries may be unacked on the whole channel.
    pub(super) fn set_limit(&mut self, limit: u16) {
        self.limit = u32::from(limit);
        self.granted = 0;
        self.wanting.clear();
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limit > 0
    }

    /// Who may make how many more deliveries; those with something for the channel's consumers share what is left.
    pub(super) fn grants(&mut self) -> Vec<(u32, u32)> {
        let mut grants = Vec::new();
        if self.limit == 0 {
            return grants;
        }
        let mut left = self.limit.saturating_sub(self.unacked_count + self.granted);
        while left > 0
            && let Some(shard) = self.wanting.pop_first()
        {
            let count = (left / (self.wanting.len() as u32 + 1)).max(1);
            left -= count;
            self.granted += count;
            grants.push((shard, count));
        }
        grants
    }

    fn memory(&self) -> usize {
        size_of::<Relay>()
            + self.unacked.capacity() * size_of::<Given>()
            + self.sent.capacity() * size_of::<Sent>()
            + self
                .sent
                .iter()
                .filter_map(|sent| sent.returnable.as_ref())
                .map(|message| message.body.len())
                .sum::<usize>()
    }
}

/// What becomes of a frame of a part.
enum Fate {
    Drop,
    Pass,
    /// With another tag, which stands there in the frame.
    Retag(usize, u64),
}

impl Front {
    pub(super) fn new(me: u32) -> Front {
        Front {
            me,
            relays: BTreeMap::new(),
            closing: BTreeMap::new(),
            skipped: BTreeSet::new(),
            blocked: BTreeSet::new(),
            understands: Understands::default(),
            unsettled: BTreeSet::new(),
            is_answered: false,
            is_parting: false,
            is_over: false,
            news: Vec::new(),
        }
    }

    pub(super) fn open(&mut self, channel: u16) {
        self.relays.insert(channel, Relay::new());
    }

    pub(super) fn forget(&mut self, channel: u16) {
        self.relays.remove(&channel);
    }

    pub(super) fn relay(&mut self, channel: u16) -> Option<&mut Relay> {
        self.relays.get_mut(&channel)
    }

    /// What the part says of that channel means nothing until it has answered.
    pub(super) fn closes(&mut self, shard: u32, channel: u16) {
        *self.closing.entry((shard, channel)).or_default() += 1;
    }

    /// Not all shards have said what became of the client's publishes.
    pub(super) fn awaits_reports(&self) -> bool {
        self.relays.values().any(|relay| !relay.sent.is_empty())
    }

    pub(super) fn memory(&self) -> usize {
        let relays = self.relays.values();
        size_of::<Front>() + relays.map(Relay::memory).sum::<usize>()
    }

    /// Parts of a channel may make more deliveries, if that is so.
    pub(super) fn grant(&mut self, channel: u16) {
        let grants = self.relay(channel).map(Relay::grants).unwrap_or_default();
        let news = grants.into_iter().map(|(shard, count)| News::Allow {
            channel,
            shard,
            count,
        });
        self.news.extend(news);
    }

    fn answers_closing(&mut self, from: u32, channel: u16, id: Id) -> bool {
        let Some(left) = self.closing.get_mut(&(from, channel)) else {
            return false;
        };
        if id == id::CHANNEL_CLOSE_OK {
            *left -= 1;
            if *left == 0 {
                self.closing.remove(&(from, channel));
            }
        }
        true
    }

    /// Is a method of a part to be passed on?
    fn method(&mut self, from: u32, frame: &Frame<'_>, id: Id) -> Fate {
        let is_own = from == self.me;
        let number = frame.channel;
        if number == 0 {
            return self.connection_method(from, id);
        }
        if self.answers_closing(from, number, id) {
            return Fate::Drop;
        }
        if id == id::CHANNEL_CLOSE_OK {
            return if is_own { Fate::Pass } else { Fate::Drop };
        }
        let Some(relay) = self.relays.get_mut(&number) else {
            return Fate::Drop;
        };
        let mut reader = Reader::new(&frame.payload[4..]);
        match id {
            // Publishes before the end of their channel are reported all the same.
            REPORT => {
                if let (Ok(verdict), Ok(count)) = (reader.octet(), reader.longlong()) {
                    relay.reported(from, Verdict::of(verdict), count);
                }
                Fate::Drop
            }
            _ if relay.is_closed => Fate::Drop,
            id::BASIC_DELIVER => {
                let _ = reader.shortstr();
                let at = frame.payload.len() - reader.rest().len();
                let tag = reader.longlong().unwrap_or(UNTRACKED);
                if tag & UNTRACKED == 0 {
                    relay.granted = relay.granted.saturating_sub(1);
                }
                Fate::Retag(at, relay.delivered(from, tag))
            }
            id::BASIC_GET_OK => {
                let tag = reader.longlong().unwrap_or(UNTRACKED);
                Fate::Retag(4, relay.delivered(from, tag))
            }
            WANT => {
                relay.wanting.insert(from);
                self.grant(number);
                Fate::Drop
            }
            UNUSED => {
                let count = reader.long().unwrap_or_default();
                relay.granted = relay.granted.saturating_sub(count);
                self.grant(number);
                Fate::Drop
            }
            id::BASIC_CANCEL => {
                let name = reader.shortstr().unwrap_or_default();
                if relay.consumers.get(name) == Some(&from) {
                    relay.consumers.remove(name);
                }
                match self.understands.cancel {
                    true => Fate::Pass,
                    false => Fate::Drop,
                }
            }
            id::CHANNEL_CLOSE => {
                relay.is_closed = true;
                // Nobody is told any more, and a part that has closed it says nothing.
                relay.sent.clear();
                if !is_own {
                    self.news.push(News::ChannelClosed {
                        channel: number,
                        by: from,
                    });
                }
                Fate::Pass
            }
            // The home has asked for that in its own name.
            id::CHANNEL_OPEN_OK
            | id::CONFIRM_SELECT_OK
            | id::BASIC_QOS_OK
            | id::TX_SELECT_OK
            | id::TX_COMMIT_OK
            | id::TX_ROLLBACK_OK
                if !is_own =>
            {
                Fate::Drop
            }
            _ => Fate::Pass,
        }
    }

    fn connection_method(&mut self, from: u32, id: Id) -> Fate {
        let was_blocked = !self.blocked.is_empty();
        match id {
            id::CONNECTION_BLOCKED => _ = self.blocked.insert(from),
            id::CONNECTION_UNBLOCKED => _ = self.blocked.remove(&from),
            id::CONNECTION_CLOSE_OK if from != self.me => return Fate::Drop,
            _ => return Fate::Pass,
        }
        let is_told = was_blocked == self.blocked.is_empty();
        match is_told && self.understands.blocked {
            true => Fate::Pass,
            false => Fate::Drop,
        }
    }
}

impl Amqp {
    /// Passes on what a part has said, as whole frames, to the client's wire.
    pub fn relay_output(&mut self, from: u32, bytes: &Bytes, wire: &mut SendRing, pool: &mut Pool) {
        let Some(mut front) = self.front.take() else {
            wire.writer(pool).extend_from_slice(bytes);
            return;
        };
        let mut at = 0;
        if from == front.me && bytes.starts_with(b"AMQP") {
            // Another version was asked for; this one is told, which is no frame.
            wire.writer(pool).extend_from_slice(bytes);
            at = bytes.len();
        }
        while at < bytes.len() {
            let Step::Frame(frame, used) = frame::decode(&bytes[at..], u32::MAX) else {
                panic!("a part says whole frames");
            };
            let fate = self.fate_of(&mut front, from, &frame);
            let range = at..at + used;
            match fate {
                Fate::Drop => {}
                Fate::Pass if used >= SHARED_BYTES_MIN => wire.share(bytes.slice(range)),
                Fate::Pass => wire.writer(pool).extend_from_slice(&bytes[range]),
                Fate::Retag(offset, tag) => {
                    let out = wire.writer(pool);
                    let start = out.len() + HEAD_BYTES + offset;
                    out.extend_from_slice(&bytes[range]);
                    out[start..start + 8].copy_from_slice(&tag.to_be_bytes());
                }
            }
            if frame.kind == Kind::Method && part::is_internal(frame.payload) {
                front.tell_publisher(frame.channel, self.frame_bytes_max, wire, pool);
            }
            at += used;
        }
        self.front = Some(front);
    }

    fn fate_of(&mut self, front: &mut Front, from: u32, frame: &Frame<'_>) -> Fate {
        if frame.kind == Kind::Heartbeat {
            return Fate::Pass;
        }
        if frame.kind != Kind::Method {
            return match front.skipped.contains(&from) {
                true => Fate::Drop,
                false => Fate::Pass,
            };
        }
        let (class, rest) = frame
            .payload
            .split_first_chunk::<2>()
            .unwrap_or((&[0; 2], &[]));
        let method = rest.first_chunk::<2>().unwrap_or(&[0; 2]);
        let id = (u16::from_be_bytes(*class), u16::from_be_bytes(*method));
        if front.is_over {
            return Fate::Drop;
        }
        let fate = front.method(from, frame, id);
        match fate {
            Fate::Drop => _ = front.skipped.insert(from),
            _ => _ = front.skipped.remove(&from),
        }
        match (id, &fate) {
            (id::CHANNEL_CLOSE, Fate::Pass) => {
                if let Some(channel) = self.channel(frame.channel) {
                    channel.is_closed = true;
                }
            }
            (id::CONNECTION_CLOSE, Fate::Pass) => {
                front.is_over = true;
                self.phase = Phase::Closed;
            }
            _ => {}
        }
        fate
    }

    /// The client was told that its connection is closed, by whatever part.
    pub fn is_over(&self) -> bool {
        self.front.as_ref().is_some_and(|front| front.is_over)
    }

    /// Something that parts have said is to be heeded.
    pub fn has_news(&self) -> bool {
        self.front
            .as_ref()
            .is_some_and(|front| !front.news.is_empty())
    }

    /// See [`Front::awaits_reports`].
    pub fn awaits_reports(&self) -> bool {
        self.front
            .as_ref()
            .is_some_and(|front| front.awaits_reports())
    }
}

impl Front {
    /// Confirms and returns the first publishes of a channel of which everything is known.
    fn tell_publisher(
        &mut self,
        number: u16,
        frame_bytes_max: u32,
        wire: &mut SendRing,
        pool: &mut Pool,
    ) {
        let understands_nack = self.understands.nack;
        let Some(relay) = self.relays.get_mut(&number) else {
            return;
        };
        let mut acked: Option<Range> = None;
        while relay.sent.front().is_some_and(|sent| sent.missing == 0) {
            let next = relay.published - relay.sent.len() as u64;
            let Some(sent) = relay.sent.pop_front() else {
                break;
            };
            if relay.is_closed {
                continue;
            }
            let tag = relay
                .confirms_from
                .and_then(|from| Some(next.checked_sub(from)? + 1));
            if let Some(message) = sent.returnable.filter(|_| !sent.is_routed)
                && let Ok(found) = Properties::decode(&message.properties)
            {
                give_acks(&mut acked, number, wire.writer(pool));
                let to = (&*message.exchange, &*message.key);
                let body = Payload::Shared(message.body.clone());
                put_returned(wire, pool, number, to, &found, &body, frame_bytes_max);
            }
            match tag {
                None => {}
                Some(tag) if sent.is_refused => {
                    give_acks(&mut acked, number, wire.writer(pool));
                    if understands_nack {
                        encode::nack(wire.writer(pool), number, tag);
                    }
                }
                Some(tag) => acked = Some((acked.map_or(tag, |(first, _)| first), tag)),
            }
        }
        if acked.is_some() {
            give_acks(&mut acked, number, wire.writer(pool));
        }
        if relay.sent.is_empty() && relay.sent.capacity() > 1024 {
            relay.sent = VecDeque::new();
        }
    }
}

/// Confirms messages: all before them were confirmed or refused.
fn give_acks(acked: &mut Option<Range>, channel: u16, out: &mut Vec<u8>) {
    if let Some((first, last)) = acked.take() {
        encode::ack(out, channel, last, first != last);
    }
}
