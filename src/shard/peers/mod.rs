//! Several shards in one broker: what they send each other, and who waits for whom.
//!
//! A connection lives on the shard that accepted it, its *home*. When one of its commands is about another
//! shard's queue, the home posts the command as it was typed to that shard, where the connection has a
//! *guest*: an ordinary [`Conn`](super::conn::Conn) whose bytes come and go by mail instead of a socket. So
//! leases, credit, waits and gates are there what they are for any connection.
//!
//! ```text
//!   home: route --> draft --one bag a turn--> guest: run, answer
//!         wire <-- in command order <--one bag a turn-- output and marks
//! ```
//!
//! Mail is data, delivered in order between any two shards and never lost while the process lives; who carries
//! it is not known here. Nothing waits for it but connections: each has so much on its way in either direction
//! and is not read further before some of it has arrived.

mod away;
mod circle;
mod commit;
mod definitions;
mod ending;
mod gather;
mod guest;
mod merge;
mod moves;
mod peek;
mod pull;
mod read;
mod route;
mod spoken;
#[cfg(test)]
mod tests;
mod told;
mod unread;
mod watch;

pub(super) use away::{Away, Wait};
pub(super) use circle::{Followed, weaker};
pub(super) use ending::{CLOSED, CLOSING};
use gather::Captured;
pub(super) use gather::Question;
pub(super) use guest::Guest;
pub(super) use merge::GUEST;
pub(super) use pull::Asks;
pub(super) use read::Read;
pub(super) use route::{Errand, Plan};

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::conn::Blocked;
use super::door::Introduction;
use super::engine::{Carried, Ordered};
use super::{ConnKey, Now, Shard};
use crate::broker::id::{Level, QueueUid};
use crate::broker::reply::Error;
use crate::config::Door;
use crate::log::disk::Storage;
use crate::protocol::resp::encode::Version;
use guest::Kind;
use watch::{Found, Given};

/// A connection's commands on their way to one shard, or output on its way back, bytes: so much is on its way
/// before the next waits. One command, or one reply, may take it over.
const WINDOW_BYTES: usize = 1 << 20;
/// What is on its way from one shard to another in all, bytes, before connections wait.
const PEER_BYTES_MAX: usize = 16 << 20;
/// A connection's runs of commands that are not answered, before the next wait.
const RUNS_MAX: usize = 1024;

/// What one shard has for another at the end of a turn.
#[derive(Debug, Default)]
pub struct Bag(Vec<Letter>);

/// How a home leaves its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// The peer has ended its side: waits end, what was posted is still run.
    HalfClosed,
    /// `QUIT`: requests are abandoned too, and nothing more comes.
    Quit,
    /// Nothing more comes; the guest goes when all is said.
    Finish,
    /// The connection is gone, and its guest with it.
    Reset,
}

/// One thing that a shard tells another. `conn` is the connection's key at its home.
#[derive(Debug)]
enum Letter {
    /// To a guest: it begins, and tells its connection things as that door does.
    Open {
        conn: ConnKey,
        /// What its connection speaks.
        door: Door,
        peer: Box<str>,
        name: Box<[u8]>,
        wants_expired: bool,
    },
    /// To a guest: what `HELLO` has said.
    Named {
        conn: ConnKey,
        name: Box<[u8]>,
        wants_expired: bool,
    },
    /// To a guest of a client of AMQP: who that is.
    Introduce {
        conn: ConnKey,
        introduction: Introduction,
    },
    /// To a guest of a client of Redis: the version of its protocol, from here on.
    Speaks { conn: ConnKey, version: Version },
    /// To a guest: commands.
    Input {
        conn: ConnKey,
        run: u64,
        kind: Kind,
        bytes: Vec<u8>,
    },
    /// To a guest: the socket has taken its output up to this offset.
    Confirmed { conn: ConnKey, upto: u64 },
    /// To a guest: its peer has read the output up to this offset.
    Read { conn: ConnKey, upto: u64 },
    /// To a guest: it goes.
    Leave { conn: ConnKey, how: Leave },
    /// To a home: output up to the guest's stream offset `end`, whole lines and messages. `marks` say behind
    /// which byte the answers of a run are complete. `taken` bytes of input were used up. `tags` are those in
    /// use, an empty one among them if there is an untagged subscription.
    Output {
        conn: ConnKey,
        bytes: Vec<u8>,
        marks: Vec<(usize, u64)>,
        end: u64,
        taken: usize,
        tags: Vec<Box<[u8]>>,
        confirm: bool,
    },
    /// To a home: this shard's part of an answer that several give.
    Part {
        conn: ConnKey,
        run: u64,
        text: Vec<u8>,
    },
    /// To a home: what a part of a pull has found.
    Looked {
        conn: ConnKey,
        pull: u64,
        part: u32,
        found: Found,
    },
    /// To a home: a message is kept for a pull.
    Offered { conn: ConnKey, pull: u64, part: u32 },
    /// To a home: what a part of a pull was given.
    Taken {
        conn: ConnKey,
        pull: u64,
        given: Given,
    },
    /// To the home of a transaction: whether its part can be done.
    Vote {
        number: u64,
        vote: Box<Result<commit::Vote, Error>>,
    },
    /// A transaction of that number, which all can do, is to be decided: shard, whether any of it is logged, part.
    Decide {
        number: u64,
        parts: Vec<(u32, bool, Bytes)>,
    },
    /// To the home of a transaction: it is done everywhere, or refused.
    Decided {
        number: u64,
        result: Result<(), Error>,
    },
    /// To the home of a transaction that is decided: a shard has no space for its part.
    Stuck { number: u64 },
    /// The transaction of that number is refused.
    Abort { number: u64 },
    /// A part of a transaction that is decided.
    Order(Box<Ordered>),
    /// Dead letters of readers of that shard have come, or are settled: how many more.
    CountDead(Vec<(QueueUid, i64)>),
    /// To the first shard: exchanges or bindings are to be changed, by who waits for that number; if that is said, only
    /// an exchange that nothing is bound to.
    Change {
        change: Vec<u8>,
        only_unused: bool,
        ticket: u64,
    },
    /// The first shard has changed them, as that shard has asked by that number.
    Changed { change: Vec<u8>, asker: (u32, u64) },
    /// What was asked by that number is so here, and on stable storage.
    Defined { ticket: u64 },
    /// All exchanges and bindings, before anything is served.
    Routes(Vec<Vec<u8>>),
    /// What was left from before the start was posted.
    Started,
    /// A message that goes to a queue here.
    Carry(Box<Carried>),
    /// It is on stable storage there: the messages' numbers.
    Arrived(Vec<u64>),
    /// A `QSET dead=` asks where the dead letters of a queue go.
    AskDead { walk: u64, name: Box<[u8]> },
    /// Where they go, and at which level the queue stores, if it is there.
    Dead {
        walk: u64,
        name: Box<[u8]>,
        level: Option<Level>,
        names: Vec<Box<[u8]>>,
    },
    /// A `PEEK` asks for dead letters that are there.
    Peek(Box<peek::Wanted>),
    /// What there is of them.
    Peeked {
        number: u64,
        copies: Box<peek::Copies>,
    },
    /// A `MOVE` asks for its target, which is made if it is missing: the piece that waits for the answer, its name.
    AskTarget { piece: u64, target: Box<[u8]> },
    /// The target is there: why it takes nothing.
    Target { piece: u64, refused: Option<Error> },
    /// A message of a `MOVE` is not taken: its number, and why.
    Refused(u64, Error),
    /// A piece of a `MOVE` of which something was refused has ended.
    PieceOver(u64),
    /// To a guest: a pull has ended.
    Unwatch { conn: ConnKey, pull: u64 },
    /// To a home: the guest is gone.
    Gone { conn: ConnKey, taken: usize },
    /// The broker drains, and nothing is leased here any more.
    Idle,
    /// How far this shard's end is.
    Ending(u8),
    /// This shard's disk has failed.
    Failed(String),
}

/// What a shard knows of the others.
#[derive(Debug)]
pub(super) struct Peers {
    pub me: u32,
    pub count: u32,
    boxes: Vec<Vec<Letter>>,
    /// Input posted to each and not used up, bytes.
    outstanding: Vec<usize>,
    /// Connections that wait until some of it is.
    waiting: Vec<Vec<ConnKey>>,
    /// Guests by their home's shard and their key there.
    guests: HashMap<(u32, ConnKey), ConnKey, FixedState>,
    /// Guests with something to post.
    posting: VecDeque<ConnKey>,
    /// Connections with guests elsewhere that have something to send or post.
    moving: VecDeque<ConnKey>,
    /// Parts of answers that wait for the log.
    captured: Vec<Captured>,
    /// Queues that took the last cast.
    taken: u64,
    /// Pulls of queues on several shards that go on in the next turn, and those that were cancelled in this one.
    deciding: Vec<(ConnKey, u64)>,
    ended: Vec<(ConnKey, u64)>,
    ending: ending::Endings,
    commits: commit::Commits,
    definitions: definitions::Definitions,
    walks: circle::Walks,
    peeks: peek::Peeks,
    /// So many others have posted what was left from before the start; this one has; connections are served.
    started: u32,
    said_started: bool,
    is_open: bool,
}

impl Peers {
    /// `count` shards, of which this is number `me`.
    pub fn new(me: u32, count: u32) -> Peers {
        assert!(me < count, "shards are numbered from 0");
        Peers {
            me,
            count,
            boxes: (0..count).map(|_| Vec::new()).collect(),
            outstanding: vec![0; count as usize],
            waiting: vec![Vec::new(); count as usize],
            guests: HashMap::default(),
            posting: VecDeque::new(),
            moving: VecDeque::new(),
            captured: Vec::new(),
            taken: 0,
            deciding: Vec::new(),
            ended: Vec::new(),
            ending: ending::Endings::new(count),
            commits: commit::Commits::default(),
            definitions: definitions::Definitions::default(),
            walks: circle::Walks::default(),
            peeks: peek::Peeks::default(),
            started: 0,
            said_started: false,
            is_open: false,
        }
    }

    fn post(&mut self, to: u32, letter: Letter) {
        assert!(to != self.me, "no shard writes to itself");
        self.boxes[to as usize].push(letter);
    }

    /// How many guests there are.
    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    /// Something is to be done without waiting for anything.
    pub fn is_busy(&self) -> bool {
        !self.posting.is_empty()
            || !self.moving.is_empty()
            || !self.deciding.is_empty()
            || !self.said_started
    }
}

impl<S: Storage> Shard<S> {
    /// How many shards there are, and which this is.
    pub(super) fn shards(&self) -> (u32, u32) {
        self.peers
            .as_ref()
            .map_or((1, 0), |peers| (peers.count, peers.me))
    }

    #[inline]
    fn mail(&mut self) -> &mut Peers {
        self.peers.as_mut().expect("only one of several has mail")
    }

    /// Mail for another shard, told by its number; each once, at the end of a turn.
    pub fn poll_post(&mut self) -> Option<(u32, Bag)> {
        let peers = self.peers.as_mut()?;
        let to = peers.boxes.iter().position(|letters| !letters.is_empty())?;
        Some((to as u32, Bag(std::mem::take(&mut peers.boxes[to]))))
    }

    /// Mail of another shard has come.
    pub fn handle_post(&mut self, from: u32, bag: Bag, now: Now) {
        self.engine.times.now_us = now.us;
        for letter in bag.0 {
            self.handle_letter(from, letter, now);
        }
    }

    fn handle_letter(&mut self, from: u32, letter: Letter, now: Now) {
        match letter {
            Letter::Open {
                conn,
                door,
                peer,
                name,
                wants_expired,
            } => self.open_guest((from, conn), door, &peer, name, wants_expired, now),
            Letter::Speaks { conn, version } => {
                if let Some(slot) = self.guest_slot(from, conn) {
                    self.conns[slot].speaks_resp(version);
                }
            }
            Letter::Introduce { conn, introduction } => {
                if let Some(slot) = self.guest_slot(from, conn)
                    && let Some(amqp) = self.conns[slot].amqp()
                {
                    amqp.introduced(introduction);
                }
            }
            Letter::Named {
                conn,
                name,
                wants_expired,
            } => {
                if let Some(slot) = self.guest_slot(from, conn) {
                    self.conns[slot].rare.set_name(&name);
                    self.conns[slot].wants_expired = wants_expired;
                }
            }
            Letter::Input {
                conn,
                run,
                kind,
                bytes,
            } => match self.guest_slot(from, conn) {
                Some(slot) => self.guest_input(slot, run, kind, &bytes, now),
                // It has gone with the last `Gone`; what comes behind that is used up too.
                None => {
                    let taken = bytes.len() + kind.bytes();
                    if let Kind::Prepare { number } = kind {
                        let vote = Box::new(Err(commit::gone()));
                        self.mail().post(from, Letter::Vote { number, vote });
                    }
                    self.mail().post(from, Letter::Gone { conn, taken });
                }
            },
            Letter::Confirmed { conn, upto } => {
                if let Some(slot) = self.guest_slot(from, conn) {
                    self.guest_confirmed(slot, upto);
                }
            }
            Letter::Read { conn, upto } => {
                if let Some(slot) = self.guest_slot(from, conn) {
                    self.guest_read(slot, upto, now);
                }
            }
            Letter::Leave { conn, how } => {
                if let Some(slot) = self.guest_slot(from, conn) {
                    self.guest_leaves(slot, how, now);
                }
            }
            Letter::Output {
                conn,
                bytes,
                marks,
                end,
                taken,
                tags,
                confirm,
            } => {
                self.input_taken(from, conn, taken);
                if let Some(slot) = self.slot(conn) {
                    self.guest_said(slot, from, bytes, marks, end, tags, confirm);
                }
            }
            Letter::Part { conn, run, text } => {
                if let Some(slot) = self.slot(conn) {
                    self.part_came(slot, run, from, text);
                }
            }
            Letter::Looked {
                conn,
                pull,
                part,
                found,
            } => {
                if let Some(slot) = self.slot(conn) {
                    self.looked(slot, pull, part, found);
                }
            }
            Letter::Offered { conn, pull, part } => {
                if let Some(slot) = self.slot(conn) {
                    self.offered(slot, pull, part);
                }
            }
            Letter::Taken { conn, pull, given } => {
                if let Some(slot) = self.slot(conn) {
                    self.taken(slot, pull, given, now);
                }
            }
            Letter::Unwatch { conn, pull } => {
                if let Some(slot) = self.guest_slot(from, conn) {
                    self.drop_watches(slot, Some(pull), now);
                }
            }
            Letter::Vote { number, vote } => self.voted(from, number, *vote, now),
            Letter::Decide { number, parts } => self.decide_later((from, number), parts),
            Letter::Decided { number, result } => self.decided(number, result, now),
            Letter::Stuck { number } => self.stuck(number),
            Letter::Abort { number } => self.end_prepared((from, number), false, now),
            Letter::Order(ordered) => self.engine.outbox.orders.add(from, *ordered),
            Letter::CountDead(counts) => {
                for (uid, more) in counts {
                    self.engine.dead_counted(uid, more);
                }
            }
            Letter::Change {
                change,
                only_unused,
                ticket,
            } => self.order_change((from, ticket), change, only_unused),
            Letter::Changed { change, asker } => {
                self.engine.install_route(&change);
                self.tell_defined(asker);
            }
            Letter::Defined { ticket } => self.count_defined(ticket),
            Letter::Routes(changes) => {
                self.engine.install_routes(&changes);
                self.engine.bury_again(now);
            }
            Letter::Started => self.mail().started += 1,
            Letter::AskDead { walk, name } => {
                let (level, names) = self.dead_of(&name);
                let letter = Letter::Dead {
                    walk,
                    name,
                    level,
                    names,
                };
                self.mail().post(from, letter);
            }
            Letter::Dead {
                walk,
                name,
                level,
                names,
            } => self.dead_told(walk, &name, level, names),
            Letter::Peek(wanted) => self.peek_for(from, *wanted),
            Letter::Peeked { number, copies } => self.peeked_elsewhere(number, *copies),
            Letter::AskTarget { piece, target } => self.find_target(from, piece, &target),
            Letter::Target { piece, refused } => {
                self.engine.outbox.target_found(piece, refused);
                self.housekeeping.look_again();
            }
            Letter::Refused(number, error) => {
                if !self.is_log_closed() && self.failed.is_none() {
                    self.engine.out_refused(number, error);
                    self.housekeeping.look_again();
                }
            }
            Letter::PieceOver(piece) => self.engine.outbox.forget_refused(from, piece),
            Letter::Carry(carried) => {
                // What comes while the log is being closed is sent again after the restart.
                if !self.is_log_closed() && self.failed.is_none() {
                    self.engine.take_in(from, *carried, now);
                }
            }
            Letter::Arrived(numbers) => {
                if !self.is_log_closed() && self.failed.is_none() {
                    for number in numbers {
                        if !self.engine.order_done(number) {
                            self.engine.out_taken(number);
                        }
                    }
                    self.housekeeping.look_again();
                }
            }
            Letter::Gone { conn, taken } => {
                self.input_taken(from, conn, taken);
                if let Some(slot) = self.slot(conn) {
                    self.guest_gone(slot, from);
                }
            }
            Letter::Idle => self.mail().ending.idle(from),
            Letter::Ending(stage) => {
                self.mail().ending.reached(from, stage);
                // One that ends takes all with it.
                self.handle_shutdown(now);
            }
            Letter::Failed(text) => self.fail(text),
        }
    }

    /// A peer has used up input that this shard has posted: connections that waited for that go on.
    fn input_taken(&mut self, from: u32, conn: ConnKey, taken: usize) {
        if taken == 0 {
            return;
        }
        let peers = self.mail();
        let left = &mut peers.outstanding[from as usize];
        *left -= taken;
        if *left < PEER_BYTES_MAX / 2 {
            for key in std::mem::take(&mut peers.waiting[from as usize]) {
                self.unblock_mail(key);
            }
        }
        if let Some(slot) = self.slot(conn) {
            self.link_taken(slot, from, taken);
            self.unblock_mail(conn);
        }
    }

    /// A connection that waits for room in the mail tries again.
    fn unblock_mail(&mut self, key: ConnKey) {
        if let Some(slot) = self.slot(key)
            && self.conns[slot].blocked == Blocked::Away(away::Wait::Mail)
        {
            self.conns[slot].blocked = Blocked::No;
            self.resume(slot);
        }
    }

    /// Does the connection have something for its socket? A guest's output goes by mail, in the next turn.
    #[inline(never)]
    pub(super) fn is_writable(&mut self, slot: usize) -> bool {
        if self.conns[slot].guest.is_some() {
            self.list_guest(slot);
            return false;
        }
        if self.conns[slot].away.is_none() {
            return true;
        }
        // It is not to be listed once more by this.
        self.conns[slot].dirty = true;
        self.pump_away(slot);
        let conn = &mut self.conns[slot];
        conn.dirty = false;
        conn.away.as_ref().is_some_and(|away| away.has_output())
    }

    /// Messages that go to other shards are sent, and what has come from them is told to be safe.
    fn exchange_outs(&mut self, now: Now) {
        if self.engine.outbox.is_idle() || self.is_log_closed() || self.failed.is_some() {
            return;
        }
        self.exchange_orders(now);
        self.exchange_dead();
        self.engine.take_in_again(now);
        for (to, carried) in self.engine.poll_out() {
            self.mail().post(to, Letter::Carry(Box::new(carried)));
        }
        self.tell_pieces();
        if self.engine.outbox.take_moved_on() {
            // A command may wait for them to be gone.
            for key in std::mem::take(&mut self.cold) {
                self.unblock_cold(key);
            }
        }
        let mut numbers = vec![Vec::new(); self.shards().0 as usize];
        for (from, number) in self.engine.poll_arrived() {
            numbers[from as usize].push(number);
        }
        for (to, numbers) in numbers.into_iter().enumerate() {
            if !numbers.is_empty() {
                self.mail().post(to as u32, Letter::Arrived(numbers));
            }
        }
    }

    /// Other shards are told how many dead letters of theirs are here.
    fn exchange_dead(&mut self) {
        let mut counts = vec![Vec::new(); self.shards().0 as usize];
        for (shard, uid, more) in self.engine.outbox.take_dead() {
            // A directory may name a shard that there is not any more.
            if let Some(counts) = counts.get_mut(shard as usize) {
                counts.push((uid, more));
            }
        }
        for (to, counts) in counts.into_iter().enumerate() {
            if !counts.is_empty() && to as u32 != self.shards().1 {
                self.mail().post(to as u32, Letter::CountDead(counts));
            }
        }
    }

    /// At the end of a turn: answers go to where they belong, and the turn's mail is put together.
    #[inline(never)]
    pub(super) fn exchange(&mut self, now: Now) {
        self.return_allowances();
        self.release_captured();
        self.end_cancelled(now);
        self.answer_peeks();
        self.exchange_outs(now);
        self.exchange_starts();
        for _ in 0..self.dirty.len() {
            let Some(key) = self.dirty.pop_front() else {
                break;
            };
            let Some(slot) = self.slot(key) else { continue };
            let conn = &mut self.conns[slot];
            if conn.guest.is_some() {
                conn.dirty = false;
                self.list_guest(slot);
            } else if conn.away.is_some() {
                conn.dirty = false;
                self.list_away(slot);
            } else {
                self.dirty.push_back(key);
            }
        }
        while let Some(key) = self.mail().posting.pop_front() {
            if let Some(slot) = self.slot(key) {
                self.post_guest(slot, now);
            }
        }
        while let Some(key) = self.mail().moving.pop_front() {
            if let Some(slot) = self.slot(key) {
                self.move_away(slot, now);
            }
        }
        self.exchange_definitions();
        self.exchange_endings();
    }
}
