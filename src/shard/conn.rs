//! One connection's state between turns: input left over, output, and what it waits for.

mod rare;

use std::collections::VecDeque;

use super::door::{Introduction, Session};
use super::peers::{Away, Guest, Wait as AwayWait};
use super::transaction::Transaction;
use crate::broker::id::Level;
use crate::broker::id::QueueUid;
use crate::broker::lease::HolderKey;
use crate::broker::queue::{QueueKey, WaiterKey};
use crate::broker::reply::Error;
use crate::buffer::send::{Pool, SendRing};
use crate::config::Door;
use crate::log::LogIndex;
use crate::protocol::text::decode::Decoder;
pub use rare::IfAny;

/// When an answer may leave: at once, or when the log has got that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// `None` = at once, `Os` = written, `Disk` = synced.
    pub level: Level,
    /// The record that must have got there.
    pub index: LogIndex,
}

impl Need {
    /// At once.
    pub const NOW: Need = Need {
        level: Level::None,
        index: LogIndex(0),
    };

    /// Both.
    pub fn and(self, other: Need) -> Need {
        Need {
            level: self.level.max(other.level),
            index: self.index.max(other.index),
        }
    }
}

/// What a connection's publishes wait for until consumers see them: the last one at each level.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen {
    os: LogIndex,
    disk: LogIndex,
}

impl Unseen {
    /// One more publish, which waits for that.
    #[inline]
    pub fn add(&mut self, need: Need) {
        match need.level {
            Level::None => {}
            Level::Os => self.os = need.index,
            Level::Disk | Level::Quorum => self.disk = need.index,
        }
    }

    /// All of another's publishes.
    pub fn merge(&mut self, other: Unseen) {
        self.os = self.os.max(other.os);
        self.disk = self.disk.max(other.disk);
    }

    /// What must be reached before a command of the connection that reads is run.
    #[inline]
    pub fn needs(self) -> [Need; 2] {
        let need = |level, index| Need { level, index };
        [need(Level::Os, self.os), need(Level::Disk, self.disk)]
    }
}

/// Output from `begins` on waits for `need`.
#[derive(Clone, Copy, Debug)]
struct Gate {
    begins: u64,
    need: Need,
    /// Serial of the first lease whose delivery can stand behind it.
    serial: u64,
}

/// Input that could not be used yet: an incomplete command, or commands behind one that waits.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Tail {
    /// Nothing is left over.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes left over.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Keeps what is left of bytes that lie elsewhere.
    pub fn keep(&mut self, rest: &[u8], pool: &mut Pool) {
        if self.bytes.capacity() == 0 {
            self.bytes = pool.take();
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(rest);
        self.start = 0;
        self.end = rest.len();
    }

    /// The first bytes were used; the memory goes back when none is left.
    pub fn consume(&mut self, count: usize, pool: &mut Pool) {
        self.start += count;
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
            pool.give(std::mem::take(&mut self.bytes));
        }
    }

    /// Where more can be read to; at least a page, and as much again as there is.
    pub fn space(&mut self, pool: &mut Pool) -> &mut [u8] {
        if self.bytes.capacity() == 0 {
            self.bytes = pool.take();
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let wanted = (self.end * 2).max(self.end + 4096);
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// That many bytes were read into the space.
    pub fn filled(&mut self, count: usize) {
        self.end += count;
        assert!(
            self.end <= self.bytes.len(),
            "more was read than there was room for"
        );
    }

    /// Keeps more behind what there is.
    pub fn push(&mut self, more: &[u8], pool: &mut Pool) {
        if self.is_empty() {
            return self.keep(more, pool);
        }
        self.bytes.truncate(self.end);
        self.bytes.drain(..self.start);
        self.bytes.extend_from_slice(more);
        self.start = 0;
        self.end = self.bytes.len();
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Output of a connection, and what keeps it back.
#[derive(Debug, Default)]
pub struct Output {
    /// The bytes.
    pub ring: SendRing,
    gates: VecDeque<Gate>,
}

impl Output {
    /// What the last byte waits for.
    pub fn need(&self) -> Need {
        self.gates.back().map_or(Need::NOW, |gate| gate.need)
    }
}

/// Where the bytes of the read under way go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadInto {
    /// The shard's own buffer.
    Scratch,
    /// The connection's tail.
    Tail,
    /// The body being received.
    Body,
    /// What is left of it, and what is expected behind it.
    Ahead,
}

/// Why a connection's next commands are not run yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// They are.
    No,
    /// Its earlier publishes must be visible first, or the log's backlog is too long.
    Log(Need),
    /// Its untagged pull waits.
    Pull(WaiterKey),
    /// Its untagged request waits for its answer.
    Request(u64),
    /// Something must be read from the disk first.
    Cold,
    /// Other shards must answer first, or take what was posted to them.
    Away(AwayWait),
}

/// How far a connection is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Reading and writing.
    Open,
    /// The peer has ended its side: what it sent is run and answered, then it closes.
    HalfClosed,
    /// Nothing more is read or run; it closes when its output is flushed.
    Closing,
}

/// A subscription or waiting pull of this connection.
#[derive(Clone, Debug)]
pub struct Wait {
    /// Without the `@`; untagged when empty.
    pub tag: Box<[u8]>,
    /// Its place in the shard's slab.
    pub waiter: WaiterKey,
    /// It is a subscription.
    pub subscription: bool,
}

/// The last queue used, so that a connection that stays on one queue hashes no name.
#[derive(Debug, Default)]
pub struct LastQueue {
    /// As typed.
    pub typed: Vec<u8>,
    /// Its place and identity.
    pub key: Option<(QueueKey, QueueUid)>,
}

/// Quiet publishes since the last `SYNC`.
#[derive(Clone, Copy, Debug)]
pub struct QuietCount {
    /// Taken.
    pub accepted: u64,
    /// Refused.
    pub rejected: u64,
    /// The weakest level among those taken.
    pub level: Level,
    /// What the strongest wait among them is for.
    pub need: Need,
}

impl QuietCount {
    /// None yet.
    pub const NONE: QuietCount = QuietCount {
        accepted: 0,
        rejected: 0,
        level: Level::Quorum,
        need: Need::NOW,
    };
}

impl Default for QuietCount {
    fn default() -> QuietCount {
        QuietCount::NONE
    }
}

/// The listener that a connection came by.
#[derive(Clone, Copy, Debug)]
pub struct Entrance {
    /// The only protocol that it takes.
    pub pinned: Option<Door>,
    /// Only this machine can reach it.
    pub is_loopback: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// Tells the users of a slot apart.
    pub generation: u32,
    /// Where the peer is, for people.
    pub peer: Box<str>,
    /// Wants `EXPIRED` lines.
    pub wants_expired: bool,
    /// How far it is on its way out.
    pub life: Life,
    /// The line protocol's state.
    pub decoder: Decoder,
    /// What it speaks, and the state of a door other than the line protocol's.
    pub session: Session,
    /// The listener that it came by.
    pub entrance: Entrance,
    /// Input not used yet.
    pub tail: Tail,
    /// Where the read under way goes.
    pub reading: ReadInto,
    /// It was not read when it could have been.
    pub read_wanted: bool,
    /// Bytes taken in this turn.
    pub turn_bytes: usize,
    /// Why its commands are not run.
    pub blocked: Blocked,
    /// Output.
    pub out: SendRing,
    gates: VecDeque<Gate>,
    /// Is in the list of those that wait for the log.
    pub gate_listed: bool,
    /// Is in the list of those that may be read again.
    pub read_listed: bool,
    /// The turn that `turn_bytes` is of.
    pub turn: u64,
    /// Is in the list of connections with output.
    pub dirty: bool,
    /// Is in the list of connections to be run or read again.
    pub resuming: bool,
    /// Its pulls' leases.
    pub holder: HolderKey,
    /// The deadline of a delivery passed behind a closed gate: they begin anew when it opens.
    pub is_late: bool,
    /// The last queue used.
    pub last_queue: LastQueue,
    /// Its publishes that must be visible before a later command of its own reads.
    pub published: Unseen,
    /// What it has queued since `BEGIN`.
    pub transaction: Option<Box<Transaction>>,
    /// When its last byte came, microseconds.
    pub heard_us: u64,
    /// What it has at other shards, if it has asked them for something.
    pub away: Option<Box<Away>>,
    /// It is a guest of another shard's connection.
    pub guest: Option<Box<Guest>>,
    /// What most connections never have.
    pub rare: IfAny,
}

// Ten thousand that do nothing are most of what a server with many clients has.
const _: () = assert!(size_of::<Conn>() <= 384);

impl Conn {
    /// A new connection.
    pub fn new(
        generation: u32,
        peer: &str,
        entrance: Entrance,
        holder: HolderKey,
        now_us: u64,
    ) -> Conn {
        Conn {
            generation,
            peer: peer.into(),
            wants_expired: false,
            life: Life::Open,
            decoder: Decoder::default(),
            session: Session::Undecided,
            entrance,
            tail: Tail::default(),
            reading: ReadInto::Scratch,
            read_wanted: false,
            turn_bytes: 0,
            blocked: Blocked::No,
            out: SendRing::default(),
            gates: VecDeque::new(),
            gate_listed: false,
            read_listed: false,
            turn: 0,
            dirty: false,
            resuming: false,
            holder,
            is_late: false,
            last_queue: LastQueue::default(),
            published: Unseen::default(),
            transaction: None,
            heard_us: now_us,
            away: None,
            guest: None,
            rare: IfAny::default(),
        }
    }

    /// Inside a large body: where its next bytes can be received to.
    pub fn body_space(&mut self) -> Option<&mut [u8]> {
        match self.session {
            Session::Text => self.decoder.body_space(),
            _ => self.session.body_space(),
        }
    }

    /// So many bytes were received into the space.
    pub fn body_filled(&mut self, count: usize) {
        match self.session {
            Session::Text => self.decoder.body_filled(count),
            _ => self.session.body_filled(count),
        }
    }

    /// A command has begun and is not complete.
    #[inline]
    pub fn in_frame(&self) -> bool {
        match self.session {
            Session::Text => self.decoder.in_frame(),
            _ => self.session.in_frame(),
        }
    }

    /// What to answer when the input ends here; `None` between commands.
    pub fn unfinished(&self) -> Option<Error> {
        match self.session {
            Session::Text => self.decoder.unfinished(),
            _ => self.session.unfinished(),
        }
    }

    /// Output that the socket has not taken, bytes.
    #[inline]
    pub fn unsent(&self) -> usize {
        self.out.len() + self.away.as_ref().map_or(0, |away| away.unsent())
    }

    /// What its pulls of queues on several shards wait for here.
    pub fn watches(&self) -> &[WaiterKey] {
        match (&self.guest, &self.away) {
            (Some(guest), _) => &guest.watches,
            (None, Some(away)) => &away.watches,
            (None, None) => &[],
        }
    }

    /// The same, to change it.
    pub fn watches_mut(&mut self) -> Option<&mut Vec<WaiterKey>> {
        match (&mut self.guest, &mut self.away) {
            (Some(guest), _) => Some(&mut guest.watches),
            (None, Some(away)) => Some(&mut away.watches),
            (None, None) => None,
        }
    }

    /// Exchanges output and gates for others.
    pub fn swap_output(&mut self, other: Output) -> Output {
        Output {
            ring: std::mem::replace(&mut self.out, other.ring),
            gates: std::mem::replace(&mut self.gates, other.gates),
        }
    }

    /// May it go when its own work is done, as far as other shards know?
    pub fn may_leave(&self) -> bool {
        let is_closing = self.life == Life::Closing;
        let mut guest = self.guest.iter();
        let guest_may = guest.all(|guest| is_closing || guest.is_finished());
        guest_may && self.away.as_ref().is_none_or(|away| away.may_close())
    }

    /// Has the peer taken its output up to this stream offset?
    pub fn confirmed(&self) -> u64 {
        match (&self.guest, &self.away) {
            (Some(guest), _) => guest.confirmed,
            (None, Some(away)) => away.own_confirmed,
            (None, None) => self.out.sent(),
        }
    }

    /// Places in the output behind that offset where the answers of a run of commands end, in order.
    pub fn marks_behind(&self, start: u64) -> Vec<u64> {
        let guest = self.guest.iter().flat_map(|guest| guest.marks());
        let own = self.away.iter().flat_map(|away| away.own_marks());
        let marks = guest.chain(own);
        marks.filter(|mark| *mark > start).collect()
    }

    /// What stood in the output behind that offset was taken out for good, and what was told instead ends it: other
    /// shards wait for no more of it.
    pub fn end_marks(&mut self, start: u64) {
        let end = self.out.end();
        if let Some(guest) = &mut self.guest {
            guest.forget_runs(start);
        }
        if let Some(away) = &mut self.away {
            away.end_behind(start, end);
        }
    }

    /// The output behind that offset was rewritten: these places are there now.
    pub fn move_marks(&mut self, start: u64, moved: &[u64]) {
        if let Some(guest) = &mut self.guest {
            guest.move_marks(start, moved);
        }
        if let Some(away) = &mut self.away {
            away.move_marks(start, moved);
        }
    }

    /// Tags in use, an empty one among them if there is an untagged subscription.
    pub fn tags_in_use(&self) -> Vec<Box<[u8]>> {
        let waits = self.rare.waits.iter();
        let waits = waits.filter(|wait| wait.subscription || !wait.tag.is_empty());
        let requests = self.rare.requests.keys().cloned();
        waits.map(|wait| wait.tag.clone()).chain(requests).collect()
    }

    /// What is appended from now on waits for `need` too; `serial` is that of the next lease.
    #[inline]
    pub fn gate(&mut self, need: Need, serial: u64) {
        if let Some(last) = self.gates.back()
            && last.need == need
        {
            return;
        }
        let begins = self.out.end();
        self.gates.push_back(Gate {
            begins,
            need,
            serial,
        });
        if self.gates.len() == 1 {
            self.out.set_gate(Some(begins));
        }
    }

    /// What waits behind the last gate waits for this record too, if it is a later one.
    pub fn raise_last_gate(&mut self, need: Need) {
        if let Some(last) = self.gates.back_mut()
            && last.need.level == need.level
        {
            last.need.index = last.need.index.max(need.index);
        }
    }

    /// Has the delivery of that lease not left because the log hasn't got far enough?
    pub fn is_held_back(&self, serial: u64) -> bool {
        self.gates.front().is_some_and(|gate| serial >= gate.serial)
    }

    /// Opens the gates whose need is met. Returns the serial of the first lease let out if leases
    /// are to begin anew.
    pub fn open_gates(&mut self, reached: impl Fn(Need) -> bool) -> Option<u64> {
        let first = self.late_from();
        let before = self.gates.len();
        while let Some(gate) = self.gates.front()
            && reached(gate.need)
        {
            self.gates.pop_front();
        }
        if self.gates.is_empty() {
            self.gates = VecDeque::new();
        }
        self.out
            .set_gate(self.gates.front().map(|gate| gate.begins));
        first.filter(|_| self.gates.len() < before)
    }

    /// Serial of the first lease behind a gate if one of them ran out there.
    pub fn late_from(&self) -> Option<u64> {
        let first = self.gates.front().map(|gate| gate.serial);
        first.filter(|_| self.is_late)
    }

    /// Does any output wait for the log?
    #[inline]
    pub fn is_gated(&self) -> bool {
        !self.gates.is_empty()
    }

    /// It speaks AMQP.
    #[inline]
    pub fn is_amqp(&self) -> bool {
        matches!(self.session, Session::Amqp(_))
    }

    /// What is settled as it is handed out leaves when that is safe.
    #[inline]
    pub fn waits_for_settles(&self) -> bool {
        !self.is_amqp()
    }

    /// Are publishers to be told of messages that wait for the log?
    #[inline]
    pub fn has_confirms(&self) -> bool {
        matches!(&self.session, Session::Amqp(amqp) if amqp.has_confirms())
    }

    /// Is a client of AMQP still to be told what became of what it has published at several shards?
    pub fn awaits_reports(&self) -> bool {
        matches!(&self.session, Session::Amqp(amqp) if amqp.awaits_reports())
    }

    /// What the guests of a client of AMQP are told of it.
    pub fn introduction(&self) -> Option<Introduction> {
        match &self.session {
            Session::Amqp(amqp) => Some(amqp.introduction()),
            _ => None,
        }
    }

    /// What the last byte of the output waits for.
    pub fn last_need(&self) -> Need {
        self.gates.back().map_or(Need::NOW, |gate| gate.need)
    }

    /// The log has failed: nothing waits for it any more. Returns the output that did.
    pub fn take_gated(&mut self) -> Vec<u8> {
        if self.gates.is_empty() {
            return Vec::new();
        }
        self.gates.clear();
        self.out.take_gated()
    }

    /// Nothing of the output that has not left will.
    pub fn drop_output(&mut self, pool: &mut Pool) {
        self.gates.clear();
        self.out.clear(pool);
    }

    /// The untagged subscription or wait, if there is one.
    pub fn has_untagged_subscription(&self) -> bool {
        let live = self.rare.live.len() > self.rare.live_tags.len();
        let mut waits = self.rare.waits.iter();
        live || waits.any(|wait| wait.subscription && wait.tag.is_empty())
    }

    /// Is something under way that has that tag?
    pub fn uses(&self, tag: &[u8]) -> bool {
        self.tagged(tag).is_some()
            || self.rare.requests.contains_key(tag)
            || self.rare.live_tags.contains(tag)
    }

    /// The wait with that tag.
    pub fn tagged(&self, tag: &[u8]) -> Option<&Wait> {
        self.rare
            .waits
            .iter()
            .find(|wait| *wait.tag == *tag && !wait.tag.is_empty())
    }

    /// Memory held beside this struct, bytes.
    pub fn memory(&self) -> usize {
        self.out.memory()
            + self.tail.memory()
            + self.decoder.memory()
            + self.session.memory()
            + self.rare.memory()
            + self.transaction.as_ref().map_or(0, |open| open.memory())
            + self.away.as_ref().map_or(0, |away| away.memory())
    }
}
