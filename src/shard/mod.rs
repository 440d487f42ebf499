//! One shard: connections, sessions, queues and log, driven by whoever owns the sockets.
//!
//! Calling order of one turn: any number of `handle_*`, then [`Shard::handle_turn_end`], then the
//! `poll_*` until each is empty. Never a socket, a file or a clock of its own.

mod ack_run;
mod admin;
mod ahead;
mod cast;
mod cast_run;
mod conn;
mod consume;
mod deaths;
mod door;
mod drain;
mod engine;
mod failure;
mod groups;
mod hand_out;
mod housekeeping;
mod interest;
mod jobs;
mod live;
mod peers;
mod placement;
mod publish_run;
mod recovery;
mod request;
pub mod reshard;
mod schedule;
mod session;
mod settling;
mod single;
mod snapshot;
mod stats;
mod times;
mod trace;
mod transaction;
mod waiters;
mod why;

use std::collections::VecDeque;
use std::io::IoSlice;

use slab::Slab;

use crate::broker::id::Level;
use crate::broker::lease::HolderKey;
use crate::broker::queue::QueueKey;
use crate::buffer::ahead::Ahead;
pub use crate::buffer::ahead::Room;
use crate::buffer::send::Pool;
use crate::config::{Config, Limits};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{BlockSlot, Log, OpenError, OpenOptions, Recovered};
use crate::protocol::text::handles::Typed;
use conn::{Blocked, Conn, Entrance, Life, ReadInto};
use engine::{Engine, Receiver, Return};
pub use peers::Bag;
use peers::Peers;
pub use placement::shard_of;
use waiters::Waiters;

/// A connection: a slab slot and the generation that tells its users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnKey {
    /// Index in the slab.
    pub slot: u32,
    /// Increases with every use of the slot.
    pub generation: u32,
}

/// What the clocks say; read once a turn by the owner of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds since the unix epoch on a clock that never jumps nor goes back while the
    /// process lives: the wall clock at start plus the monotonic time since.
    pub us: u64,
    /// Microseconds since the unix epoch as the system says now; only for `at=`.
    pub wall_us: u64,
}

/// Why the shard wants its thread to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A graceful shutdown is complete.
    Finished,
    /// The disk failed; nothing more can be confirmed. The text is for stderr.
    Failed(String),
}

/// How far a graceful shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// None was asked for.
    No,
    /// Receipts are awaited and the log is being closed.
    Closing,
    /// All is said.
    Done,
}

/// Size of the buffer that sockets are read into, bytes.
const SCRATCH_BYTES: usize = 256 << 10;
/// Output buffers kept for reuse, the largest of them, and their memory in all. What a connection may have
/// in its output at most must fit one, or memory is asked for, and zeroed by the system, each time.
const POOL_COUNT: usize = 256;
const POOL_BUFFER_BYTES_MAX: usize = 2 << 20;
const POOL_BYTES_MAX: usize = 16 << 20;

/// What is known of the listeners.
fn entrances(config: &Config) -> Vec<Entrance> {
    let pinned = config.pinned.iter().copied().chain(std::iter::repeat(None));
    let listeners = config.listen.iter().zip(pinned);
    listeners
        .map(|(address, pinned)| Entrance {
            pinned,
            is_loopback: address.ip().is_loopback(),
        })
        .collect()
}

/// A whole broker without its sockets.
pub struct Shard<S: Storage> {
    limits: Limits,
    memory_budget_bytes: usize,
    node: String,
    /// Of every listener, by its index.
    entrances: Vec<Entrance>,
    conns: Slab<Conn>,
    next_generation: u32,
    /// Counts the turns.
    turn: u64,
    waiters: Waiters,
    singles: single::Singles,
    engine: Engine<S>,
    pool: Pool,
    scratch: Vec<u8>,
    /// What large bodies are received into.
    ahead: Ahead,
    /// Connections with something to write.
    dirty: VecDeque<ConnKey>,
    /// Connections whose commands or sockets go on.
    resuming: VecDeque<ConnKey>,
    /// Connections that may be read again.
    readable: VecDeque<ConnKey>,
    /// Connections with output or commands that wait for the log.
    gated: Vec<ConnKey>,
    /// Connections whose next command waits for a read from the disk, or goes on with a long job.
    cold: Vec<ConnKey>,
    closing: VecDeque<ConnKey>,
    /// Connections whose peers' acknowledgements are asked for, and when they are asked for again.
    /// Who has what of the streams of RESP.
    consumers: door::Consumers,
    asking: VecDeque<ConnKey>,
    ask_again: VecDeque<(u64, ConnKey)>,
    /// Whose leases a holder's are, for holders that are connections.
    holders: Vec<Option<ConnKey>>,
    /// A long command goes on in the next turn.
    goes_on: bool,
    /// Scratch for those who take what is cast.
    receivers: Vec<Receiver>,
    /// Scratch for the sources of a pull.
    keys: Vec<QueueKey>,
    ending: Ending,
    /// When a drain ends at the latest, microseconds; [`drain::NEVER`] = none was asked for.
    drained_at_us: u64,
    failed: Option<String>,
    stop: Option<Stop>,
    housekeeping: housekeeping::Housekeeping,
    totals: stats::Totals,
    requests: request::Requests,
    live: live::Live,
    amqp: door::Upkeep,
    /// The other shards; `None` if this is the only one.
    peers: Option<Box<Peers>>,
    /// Scratch for tokens that were stale, and texts.
    text: Vec<u8>,
    /// Scratch for a run of casts.
    cast_run: cast_run::CastRun,
    /// Scratch for the handles of an ack.
    handles: Vec<Typed>,
    /// Scratch for the commands of a run of acks.
    ack_commands: Vec<ack_run::Command>,
}

impl<S: Storage> Shard<S> {
    /// A shard on that storage, recovered from what it holds; without one everything is in memory.
    /// `random` seeds what a peer must not foresee.
    ///
    /// # Errors
    /// The data directory cannot be served; see [`OpenError`].
    pub fn open(
        config: &Config,
        storage: Option<S>,
        now: Now,
        random: u64,
    ) -> Result<(Shard<S>, Recovered), OpenError> {
        let mut defaults = config.queue_defaults.clone();
        if storage.is_none() {
            defaults.durable = Level::None;
        }
        let mut engine = Engine::new(defaults, random);
        engine.shards = (config.shards, config.shard);
        let mut recovered = Recovered::default();
        match storage {
            Some(storage) => {
                let options = OpenOptions {
                    must_exist: config.data_must_exist,
                    now_ms: now.us / 1000,
                    directory_id: random,
                };
                let mut replay = recovery::Recovery::new(&mut engine);
                let (mut log, found) = Log::open(storage, &config.log, options, &mut replay)?;
                replay.finish(now, &found);
                for slot in std::mem::take(&mut engine.unused_slots) {
                    log.free_slot(BlockSlot(slot.0 as u32));
                }
                engine.incarnation = log.incarnation();
                engine.log = Some(log);
                engine.drop_transient();
                recovered = found;
            }
            // Without a directory nothing remembers how many runs there were: the time tells them apart.
            None => engine.incarnation = (now.us / 1000).max(1),
        }
        // Its handles, and whatever else is named by the run, tell the shard too.
        let (shards, me) = (u64::from(config.shards), u64::from(config.shard));
        if shards > 1 {
            engine.incarnation = engine.incarnation * shards + me;
        }
        let mut shard = Shard {
            limits: config.limits.clone(),
            memory_budget_bytes: config.memory_budget_bytes,
            node: "ringmq".to_owned(),
            entrances: entrances(config),
            conns: Slab::new(),
            next_generation: 1,
            turn: 1,
            waiters: Waiters::default(),
            singles: single::Singles::default(),
            engine,
            pool: Pool::new(POOL_COUNT, POOL_BUFFER_BYTES_MAX, POOL_BYTES_MAX),
            scratch: vec![0; SCRATCH_BYTES],
            ahead: Ahead::default(),
            dirty: VecDeque::new(),
            resuming: VecDeque::new(),
            readable: VecDeque::new(),
            gated: Vec::new(),
            cold: Vec::new(),
            closing: VecDeque::new(),
            consumers: door::Consumers::default(),
            asking: VecDeque::new(),
            ask_again: VecDeque::new(),
            holders: Vec::new(),
            goes_on: false,
            receivers: Vec::new(),
            keys: Vec::new(),
            ending: Ending::No,
            drained_at_us: drain::NEVER,
            failed: None,
            stop: None,
            housekeeping: housekeeping::Housekeeping::new(now),
            totals: stats::Totals::new(now),
            requests: request::Requests::new(random, (config.shards, config.shard)),
            live: live::Live::default(),
            amqp: door::Upkeep::new(random),
            peers: (config.shards > 1).then(|| Box::new(Peers::new(config.shard, config.shards))),
            text: Vec::new(),
            cast_run: cast_run::CastRun::default(),
            handles: Vec::new(),
            ack_commands: Vec::new(),
        };
        shard.watch_expiring(now);
        Ok((shard, recovered))
    }

    #[inline]
    fn key(&self, slot: usize) -> ConnKey {
        ConnKey {
            slot: slot as u32,
            generation: self.conns[slot].generation,
        }
    }

    /// The slot of a connection that is still there.
    #[inline]
    fn slot(&self, key: ConnKey) -> Option<usize> {
        let conn = self.conns.get(key.slot as usize)?;
        (conn.generation == key.generation).then_some(key.slot as usize)
    }

    /// A new connection that came by the first listener, see [`Shard::handle_accept_at`].
    pub fn handle_accept(&mut self, peer: &str, now: Now) -> Option<ConnKey> {
        self.handle_accept_at(peer, 0, now)
    }

    /// A new connection that came by that listener; `None` when there are too many, or none is taken any
    /// more (close the socket).
    pub fn handle_accept_at(&mut self, peer: &str, listener: usize, now: Now) -> Option<ConnKey> {
        if self.connections() >= self.limits.connections_max
            || self.ending != Ending::No
            || self.failed.is_some()
        {
            self.totals.connections_refused += 1;
            return None;
        }
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let holder = self.engine.leases.add_holder();
        let entrance = self.entrances.get(listener).copied();
        let entrance = entrance.unwrap_or(Entrance {
            pinned: None,
            is_loopback: true,
        });
        let slot = self
            .conns
            .insert(Conn::new(generation, peer, entrance, holder, now.us));
        self.totals.connections += 1;
        self.wait_for_start(slot);
        let key = ConnKey {
            slot: slot as u32,
            generation,
        };
        self.set_holder(holder, key);
        Some(key)
    }

    /// Notes whose leases a new connection's holder has.
    fn set_holder(&mut self, holder: HolderKey, key: ConnKey) {
        if self.holders.len() <= holder.0 as usize {
            self.holders.resize(holder.0 as usize + 1, None);
        }
        self.holders[holder.0 as usize] = Some(key);
    }

    /// Where to read the connection's next bytes to, in one piece; `None` when it must not be read now (it will
    /// come out of `poll_resume` when it may be read again). Never an empty slice.
    pub fn receive_space(&mut self, conn: ConnKey) -> Option<&mut [u8]> {
        let slot = self.may_receive(conn)?;
        Some(self.space(slot))
    }

    /// The connection's slot, if it may be read now.
    #[inline]
    fn may_receive(&mut self, conn: ConnKey) -> Option<usize> {
        let slot = self.slot(conn)?;
        let limits = &self.limits;
        let turn = self.turn;
        let conn = &mut self.conns[slot];
        if conn.turn != turn {
            conn.turn = turn;
            conn.turn_bytes = 0;
        }
        let room = match conn.blocked {
            _ if conn.life != Life::Open => false,
            Blocked::No => conn.unsent() < limits.send_bytes_max,
            // What is behind a command that waits is kept, up to a line and a small body.
            _ => conn.tail.len() < limits.line_bytes_max,
        };
        if !room || conn.turn_bytes >= limits.turn_bytes_max {
            conn.read_wanted = conn.life == Life::Open;
            if room {
                self.read_again(slot);
            }
            return None;
        }
        Some(slot)
    }

    /// Where the next bytes go, in one piece.
    #[inline]
    fn space(&mut self, slot: usize) -> &mut [u8] {
        let conn = &mut self.conns[slot];
        if conn.blocked == Blocked::No && conn.tail.is_empty() && conn.body_space().is_some() {
            conn.reading = ReadInto::Body;
            return conn.body_space().expect("the decoder is inside a body");
        }
        if conn.tail.is_empty() && conn.blocked == Blocked::No {
            conn.reading = ReadInto::Scratch;
            return &mut self.scratch;
        }
        conn.reading = ReadInto::Tail;
        conn.tail.space(&mut self.pool)
    }

    /// `count` bytes were read into the space.
    pub fn handle_received(&mut self, conn: ConnKey, count: usize, now: Now) {
        let Some(slot) = self.slot(conn) else { return };
        self.engine.times.now_us = now.us;
        let conn = &mut self.conns[slot];
        conn.heard_us = now.us;
        conn.turn_bytes += count;
        self.totals.bytes_in += count as u64;
        match conn.reading {
            ReadInto::Body => {
                conn.body_filled(count);
                self.run_input(slot, now);
            }
            ReadInto::Tail => {
                conn.tail.filled(count);
                self.run_input(slot, now);
            }
            ReadInto::Scratch => {
                let scratch = std::mem::take(&mut self.scratch);
                self.run_or_keep(slot, &scratch[..count], now);
                self.scratch = scratch;
            }
            ReadInto::Ahead => self.received_ahead(slot, count, now),
        }
        self.after_run(slot, now);
    }

    /// Runs input that is not in the connection's tail, which is empty, and keeps the rest there.
    fn run_or_keep(&mut self, slot: usize, input: &[u8], now: Now) {
        let used = self.run(slot, input, now);
        let conn = &mut self.conns[slot];
        if used < input.len() && conn.life != Life::Closing {
            conn.tail.keep(&input[used..], &mut self.pool);
        }
    }

    /// Runs what is in the connection's tail and decoder.
    fn run_input(&mut self, slot: usize, now: Now) {
        if self.conns[slot].guest.is_some() {
            return self.run_guest(slot, now);
        }
        let mut tail = std::mem::take(&mut self.conns[slot].tail);
        let used = self.run(slot, tail.as_slice(), now);
        tail.consume(used, &mut self.pool);
        self.conns[slot].tail = tail;
    }

    fn after_run(&mut self, slot: usize, now: Now) {
        let conn = &mut self.conns[slot];
        if conn.in_frame() || !conn.tail.is_empty() {
            self.housekeeping.watch_stalls(now, self.limits.stall_us);
        }
        if !conn.out.is_empty() {
            self.mark_dirty(slot);
        }
        self.settle_life(slot, now);
    }

    /// The peer has ended its side; nothing more will be read.
    pub fn handle_half_close(&mut self, conn: ConnKey, now: Now) {
        let Some(slot) = self.slot(conn) else { return };
        if self.conns[slot].life == Life::Open {
            self.conns[slot].life = Life::HalfClosed;
            self.conns[slot].read_wanted = false;
            if !self.has_front(slot) {
                self.end_interests(slot, now);
            }
            self.guests_half_closed(slot);
        }
        self.settle_life(slot, now);
    }

    /// Waits for messages end, subscriptions end: the peer sends nothing more.
    fn end_interests(&mut self, slot: usize, now: Now) {
        self.end_live(slot);
        self.end_across(slot, now);
        for wait in self.conns[slot].rare.waits.clone() {
            if wait.subscription {
                self.unsubscribe(wait.waiter);
            } else {
                self.end_wait(wait.waiter, now);
            }
        }
    }

    /// Closes a connection whose work is done.
    fn settle_life(&mut self, slot: usize, now: Now) {
        let conn = &self.conns[slot];
        let is_sent = conn.out.is_empty() && conn.away.as_ref().is_none_or(|away| away.is_idle());
        let done = match conn.life {
            Life::Open => false,
            Life::HalfClosed => {
                let has_front = self.has_front(slot);
                let waiting = conn.blocked != Blocked::No
                    || conn.resuming
                    || !(conn.rare.waits.is_empty() || has_front)
                    || conn.has_confirms()
                    || conn.awaits_reports()
                    || self.has_requests(slot);
                // Behind output that the peer does not take there may be commands that were not looked at.
                let has_room = conn.unsent() < self.limits.send_bytes_max / 2;
                if !waiting && has_room && conn.away.is_some() {
                    self.finish_guests(slot, now);
                }
                let conn = &self.conns[slot];
                // What is left in the tail of a blocked connection will be run; else it is a command that never ends.
                !waiting && is_sent && !conn.is_gated()
            }
            Life::Closing => is_sent,
        };
        // What was popped at other shards is settled there before the guests go.
        if done && self.conns[slot].away.is_some() && self.awaits_peer(slot) {
            return;
        }
        let done = done && self.conns[slot].may_leave();
        if done
            && self.conns[slot].life == Life::HalfClosed
            && let Some(error) = self.conns[slot].unfinished()
        {
            // The peer ended its side inside a command: it is told, and nothing of it is run.
            self.answer_error(slot, None, &error);
            self.conns[slot].life = Life::Closing;
            self.mark_dirty(slot);
            return;
        }
        if done && self.awaits_peer(slot) {
            return;
        }
        if done {
            let key = self.key(slot);
            let is_guest = self.conns[slot].guest.is_some();
            self.remove(slot, now);
            if !is_guest {
                self.closing.push_back(key);
            }
        }
    }

    /// The connection is broken (reset, write error): everything of it goes at once. Not followed
    /// by `poll_close`.
    pub fn handle_reset(&mut self, conn: ConnKey, now: Now) {
        if let Some(slot) = self.slot(conn) {
            self.remove(slot, now);
        }
    }

    fn remove(&mut self, slot: usize, now: Now) {
        self.forget_amqp(slot);
        self.forget_requests(slot);
        self.forget_live(slot);
        self.abort_transaction(slot);
        self.guests_reset(slot);
        self.drop_watches(slot, None, now);
        for wait in self.conns[slot].rare.take_waits() {
            if wait.subscription {
                self.unsubscribe(wait.waiter);
            } else {
                self.drop_pull(wait.waiter);
            }
        }
        let mut conn = self.conns.remove(slot);
        let progress = conn.rare.any().and_then(|rare| rare.progress.take());
        if let Some(progress) = progress {
            self.forget_job(progress);
        }
        while let Some(serial) = self.engine.leases.any_of(conn.holder) {
            let lease = self.engine.leases.end(serial).expect("the holder has it");
            if !planted(Fault::LeaseLostAtClose) {
                let how = match conn.is_held_back(serial) {
                    true => Return::Unsent,
                    false => Return::Lost,
                };
                self.engine.give_back(&lease, how, b"", now);
            }
        }
        self.holders[conn.holder.0 as usize] = None;
        self.engine.leases.remove_holder(conn.holder);
        conn.out.clear(&mut self.pool);
        let left = conn.tail.len();
        conn.tail.consume(left, &mut self.pool);
        if let Some(away) = &mut conn.away {
            away.clear(&mut self.pool);
        }
        if let Some(guest) = conn.guest.take() {
            self.guest_goes(&guest, left);
        }
        self.pullers_gone(conn.rare.pulled.iter());
    }

    #[inline]
    fn mark_dirty(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        let key = ConnKey {
            slot: slot as u32,
            generation: conn.generation,
        };
        if conn.is_gated() && !conn.gate_listed {
            conn.gate_listed = true;
            self.gated.push(key);
        }
        if !conn.dirty && conn.out.sendable() > 0 {
            conn.dirty = true;
            self.dirty.push_back(key);
        }
    }

    /// The connection's kept commands will be run in this turn or the next.
    fn resume(&mut self, slot: usize) {
        let key = self.key(slot);
        let conn = &mut self.conns[slot];
        if !conn.resuming {
            conn.resuming = true;
            self.resuming.push_back(key);
        }
    }

    fn read_again(&mut self, slot: usize) {
        let key = self.key(slot);
        let conn = &mut self.conns[slot];
        if conn.read_wanted && !conn.read_listed {
            conn.read_listed = true;
            self.readable.push_back(key);
        }
    }

    /// A connection that stopped being read and may be read again.
    pub fn poll_resume(&mut self) -> Option<ConnKey> {
        while let Some(key) = self.readable.pop_front() {
            if let Some(slot) = self.slot(key) {
                let conn = &mut self.conns[slot];
                conn.read_listed = false;
                conn.read_wanted = false;
                return Some(key);
            }
        }
        None
    }

    /// A connection with something to write, once each until it is written and dirty again.
    pub fn poll_output(&mut self) -> Option<ConnKey> {
        while let Some(key) = self.dirty.pop_front() {
            if let Some(slot) = self.slot(key) {
                self.conns[slot].dirty = false;
                if self.peers.is_some() && !self.is_writable(slot) {
                    continue;
                }
                return Some(key);
            }
        }
        None
    }

    /// What to write; fills `slices`, returns how many.
    pub fn output<'a>(&'a self, conn: ConnKey, slices: &mut [IoSlice<'a>]) -> usize {
        match self.slot(conn) {
            Some(slot) => match &self.conns[slot].away {
                None => self.conns[slot].out.slices(slices),
                Some(away) => away.slices(slices),
            },
            None => 0,
        }
    }

    /// The socket took `count` bytes. Returns true while more could be written now.
    pub fn handle_sent(&mut self, conn: ConnKey, count: usize, now: Now) -> bool {
        let Some(slot) = self.slot(conn) else {
            return false;
        };
        self.totals.bytes_out += count as u64;
        if self.conns[slot].away.is_some() {
            return self.wire_sent(slot, count, now);
        }
        let conn = &mut self.conns[slot];
        let was_full = conn.out.len() >= self.limits.send_bytes_max / 2;
        conn.out.consume(count, &mut self.pool);
        let more = conn.out.sendable() > 0;
        let has_room = conn.out.len() < self.limits.send_bytes_max / 2;
        if !conn.rare.holding.is_empty() {
            self.release_holds(slot);
        }
        if was_full && has_room {
            self.room_again(slot);
        }
        self.settle_life(slot, now);
        more
    }

    /// The output has room again: commands, reads and subscriptions go on.
    fn room_again(&mut self, slot: usize) {
        self.catch_up(slot);
        for wait in self.conns[slot].rare.waits.clone() {
            if wait.subscription {
                self.line_up(wait.waiter);
            }
        }
        self.resume(slot);
        self.read_again(slot);
    }

    /// A connection whose output is flushed and that must be closed; the key is dead after this.
    pub fn poll_close(&mut self) -> Option<ConnKey> {
        self.closing.pop_front()
    }

    /// The thread should end.
    pub fn poll_stopped(&mut self) -> Option<Stop> {
        self.stop.take()
    }

    /// Connections now open.
    pub fn connections(&self) -> usize {
        let guests = self.peers.as_ref().map_or(0, |peers| peers.guests());
        self.conns.len() - guests
    }

    /// Messages that exist now, for the first lines a broker prints.
    pub fn messages(&self) -> u64 {
        self.engine
            .queues
            .iter()
            .map(|(_, queue)| queue.index.live())
            .sum()
    }

    /// Queues that exist now.
    pub fn queues(&self) -> usize {
        self.engine
            .queues
            .iter()
            .filter(|(_, queue)| queue.exists)
            .count()
    }

    fn holder(&self, slot: usize) -> HolderKey {
        self.conns[slot].holder
    }
}
