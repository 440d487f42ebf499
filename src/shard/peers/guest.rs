//! A connection of another shard, at the shard whose queues its commands are about.

use std::collections::VecDeque;
use std::sync::Arc;

use super::commit::gone;
use super::gather;
use super::watch::Part;
use super::{Leave, Letter, WINDOW_BYTES};
use crate::broker::queue::WaiterKey;
use crate::config::Door;
use crate::log::disk::Storage;
use crate::shard::conn::{Blocked, Conn, Entrance, Life};
use crate::shard::door::{Page, PassedOn, Session};
use crate::shard::session::Flow;
use crate::shard::{ConnKey, Ending, Now, Shard};

/// How a piece of input is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Commands, one after another.
    Commands,
    /// A request of HTTP.
    Http(Arc<PassedOn>),
    /// This shard's part of a page of HTTP.
    Page(Page),
    /// One command whose answer is a part of what several shards answer.
    Part,
    /// The command before it waits no more; a client of Redis may be told so.
    Cancel { with_error: bool },
    /// It is run when what the guest has published is seen by consumers.
    Barrier,
    /// A part of a pull looks for messages.
    Look(Box<Part>),
    /// A part of a pull takes messages.
    Take(Box<Part>),
    /// A part of a pull reads streams.
    Read { pull: u64 },
    /// A part of a transaction of several shards, to be prepared.
    Prepare { number: u64 },
    /// What was queued since `BEGIN`, to be committed.
    Commit {
        commands: u64,
        items: usize,
        tag: Box<[u8]>,
        quiet: bool,
    },
}

impl Kind {
    /// Bytes of input that are not in the letter's own.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Kind::Http(request) => request.bytes(),
            _ => 0,
        }
    }
}

/// Input of a guest that is not run to its end.
#[derive(Debug)]
struct Piece {
    run: u64,
    /// Bytes of it in the tail.
    left: usize,
    kind: Kind,
}

/// What a guest has beside an ordinary connection.
#[derive(Debug)]
pub struct Guest {
    /// The shard and the key of the connection whose guest it is.
    pub home: (u32, ConnKey),
    pieces: VecDeque<Piece>,
    /// Behind these offsets of the output the answers of a run are complete.
    marks: VecDeque<(u64, u64)>,
    /// Input used up since that was told, bytes.
    taken: usize,
    /// The socket has taken the output up to this offset.
    pub confirmed: u64,
    /// Nothing more comes.
    finish: bool,
    listed: bool,
    /// Tags told in the last letter.
    had_tags: bool,
    /// What its connection's pulls of queues on several shards wait for here.
    pub watches: Vec<WaiterKey>,
}

impl Guest {
    /// Transactions that it has to commit.
    pub(super) fn commits(&self) -> usize {
        let pieces = self.pieces.iter();
        pieces
            .filter(|piece| matches!(piece.kind, Kind::Commit { .. }))
            .count()
    }

    /// Where the answers of runs end in the output.
    pub fn marks(&self) -> impl Iterator<Item = u64> {
        self.marks.iter().map(|(offset, _)| *offset)
    }

    /// What is not answered before that offset is not answered any more.
    pub fn forget_runs(&mut self, start: u64) {
        self.pieces.clear();
        self.marks.retain(|(offset, _)| *offset <= start);
    }

    /// Those behind `start` are elsewhere now.
    pub fn move_marks(&mut self, start: u64, moved: &[u64]) {
        let behind = self.marks.iter_mut().filter(|(mark, _)| *mark > start);
        for ((mark, _), new) in behind.zip(moved) {
            *mark = *new;
        }
    }

    /// All that came was run, and no more comes.
    pub fn is_finished(&self) -> bool {
        self.finish && self.pieces.is_empty() && self.marks.is_empty()
    }
}

impl<S: Storage> Shard<S> {
    pub(super) fn guest_slot(&self, from: u32, conn: ConnKey) -> Option<usize> {
        let peers = self.peers.as_ref()?;
        self.slot(*peers.guests.get(&(from, conn))?)
    }

    pub(super) fn open_guest(
        &mut self,
        home: (u32, ConnKey),
        door: Door,
        peer: &str,
        name: Box<[u8]>,
        wants_expired: bool,
        now: Now,
    ) {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let holder = self.engine.leases.add_holder();
        let entrance = Entrance {
            pinned: Some(door),
            is_loopback: true,
        };
        let mut conn = Conn::new(generation, peer, entrance, holder, now.us);
        conn.session = Session::of_guest(door);
        conn.rare.set_name(&name);
        conn.wants_expired = wants_expired;
        if self.ending != Ending::No {
            // As those that were there when the end began: nothing waits.
            conn.life = Life::HalfClosed;
        }
        conn.guest = Some(Box::new(Guest {
            home,
            pieces: VecDeque::new(),
            marks: VecDeque::new(),
            taken: 0,
            confirmed: 0,
            finish: false,
            listed: false,
            had_tags: false,
            watches: Vec::new(),
        }));
        let slot = self.conns.insert(conn) as u32;
        self.wait_for_start(slot as usize);
        let key = ConnKey { slot, generation };
        self.set_holder(holder, key);
        self.mail().guests.insert(home, key);
    }

    fn guest(&mut self, slot: usize) -> &mut Guest {
        let guest = self.conns[slot].guest.as_mut();
        guest.expect("it is looked up among the guests")
    }

    /// Commands have come.
    pub(super) fn guest_input(
        &mut self,
        slot: usize,
        run: u64,
        kind: Kind,
        bytes: &[u8],
        now: Now,
    ) {
        let conn = &mut self.conns[slot];
        conn.heard_us = now.us;
        let direct = conn.blocked == Blocked::No && conn.tail.is_empty();
        let guest = self.guest(slot);
        let direct = direct && guest.pieces.is_empty() && kind == Kind::Commands;
        let mut piece = Piece {
            run,
            left: bytes.len(),
            kind,
        };
        let mut used = 0;
        if direct {
            // Most input is run where it came.
            used = self.run(slot, bytes, now);
            piece.left -= used;
        }
        let conn = &mut self.conns[slot];
        if used < bytes.len() {
            conn.tail.push(&bytes[used..], &mut self.pool);
        }
        let guest = self.guest(slot);
        guest.taken += used;
        guest.pieces.push_back(piece);
        self.run_guest(slot, now);
        self.after_run(slot, now);
        if self.conns.contains(slot) {
            self.list_guest(slot);
        }
    }

    /// Runs what has come, as far as nothing keeps it back.
    pub(in crate::shard) fn run_guest(&mut self, slot: usize, now: Now) {
        while self.run_piece(slot, now) {}
    }

    /// Runs the first piece; false if it cannot be run to its end now.
    fn run_piece(&mut self, slot: usize, now: Now) -> bool {
        let blocked = self.conns[slot].blocked;
        let is_open = self.conns[slot].life != Life::Closing;
        let guest = self.guest(slot);
        let Some(front) = guest.pieces.front() else {
            return false;
        };
        let (left, run, kind) = (front.left, front.run, front.kind.clone());
        match kind {
            Kind::Commands if left == 0 => {
                if let Blocked::Pull(waiter) = blocked {
                    // Its last command waits, unless an empty line follows.
                    let next = guest.pieces.get(1).map(|piece| &piece.kind);
                    let Some(Kind::Cancel { with_error }) = next else {
                        return false;
                    };
                    let with_error = *with_error;
                    guest.pieces.remove(1);
                    if with_error {
                        self.end_with(slot, true);
                    }
                    self.finish_pull(waiter, 0);
                    return true;
                }
                if matches!(blocked, Blocked::Request(_)) {
                    return false;
                }
                self.complete_piece(slot, run);
                true
            }
            // Nothing waits.
            Kind::Cancel { .. } => {
                guest.pieces.pop_front();
                true
            }
            _ if blocked != Blocked::No || !is_open => false,
            Kind::Commands => {
                let tail = std::mem::take(&mut self.conns[slot].tail);
                let used = self.run(slot, &tail.as_slice()[..left], now);
                self.conns[slot].tail = tail;
                self.use_up(slot, used);
                used > 0
            }
            Kind::Http(request) => {
                if self.run_passed_on(slot, &request, now) == Flow::Again {
                    return false;
                }
                let guest = self.guest(slot);
                guest.taken += request.bytes();
                if let Some(front) = guest.pieces.front_mut() {
                    // It may wait still, and ends as a row of commands does.
                    front.kind = Kind::Commands;
                }
                self.list_guest(slot);
                true
            }
            Kind::Barrier => {
                if !self.run_barrier(slot) {
                    return false;
                }
                self.complete_piece(slot, run);
                self.list_guest(slot);
                true
            }
            Kind::Page(page) => {
                let text = self.part_of_page(page, now);
                let guest = self.guest(slot);
                guest.pieces.pop_front();
                let home = guest.home;
                self.keep_captured(home, run, gather::Part::now(text));
                true
            }
            Kind::Part | Kind::Read { .. } => {
                let tail = std::mem::take(&mut self.conns[slot].tail);
                let command = &tail.as_slice()[..left];
                let captured = match kind {
                    Kind::Read { pull } => self.read_part(slot, pull, command, now),
                    _ => self.run_captured(slot, command, now),
                };
                self.conns[slot].tail = tail;
                let Some(answer) = captured else {
                    return false;
                };
                self.use_up(slot, left);
                self.guest(slot).pieces.pop_front();
                let home = self.guest(slot).home;
                self.keep_captured(home, run, answer);
                true
            }
            Kind::Look(look) => {
                if !self.look(slot, &look, now) {
                    return false;
                }
                self.guest(slot).pieces.pop_front();
                true
            }
            Kind::Take(take) => {
                self.take_for_home(slot, &take, now);
                self.complete_piece(slot, run);
                self.list_guest(slot);
                true
            }
            Kind::Prepare { number } => {
                let tail = std::mem::take(&mut self.conns[slot].tail);
                let name = (self.guest(slot).home.0, number);
                let done = self.prepare_posted(slot, name, &tail.as_slice()[..left], now);
                self.conns[slot].tail = tail;
                if !done {
                    return false;
                }
                self.use_up(slot, left);
                self.guest(slot).pieces.pop_front();
                true
            }
            Kind::Commit {
                commands,
                items,
                tag,
                quiet,
            } => {
                if self.conns[slot].transaction.is_none() {
                    let tail = std::mem::take(&mut self.conns[slot].tail);
                    self.take_transaction(slot, &tail.as_slice()[..left], commands, items);
                    self.conns[slot].tail = tail;
                }
                if !self.commit_posted(slot, &tag, quiet, now) {
                    return false;
                }
                self.use_up(slot, left);
                self.complete_piece(slot, run);
                true
            }
        }
    }

    fn complete_piece(&mut self, slot: usize, run: u64) {
        let end = self.conns[slot].out.end();
        let guest = self.guest(slot);
        guest.pieces.pop_front();
        guest.marks.push_back((end, run));
    }

    /// So much of the first piece was run.
    fn use_up(&mut self, slot: usize, used: usize) {
        if used == 0 {
            return;
        }
        let conn = &mut self.conns[slot];
        conn.tail.consume(used, &mut self.pool);
        let guest = self.guest(slot);
        guest.taken += used;
        if let Some(front) = guest.pieces.front_mut() {
            front.left -= used;
        }
        self.list_guest(slot);
    }

    pub(super) fn list_guest(&mut self, slot: usize) {
        let key = self.key(slot);
        let guest = self.guest(slot);
        if !guest.listed {
            guest.listed = true;
            self.mail().posting.push_back(key);
        }
    }

    /// Posts what a guest has to say.
    pub(super) fn post_guest(&mut self, slot: usize, now: Now) {
        self.guest(slot).listed = false;
        // The wait of its last command may just have ended.
        if self.conns[slot].blocked == Blocked::No {
            self.run_guest(slot, now);
            self.guest(slot).listed = false;
        }
        let half = self.limits.send_bytes_max / 2;
        let conn = &mut self.conns[slot];
        let has_pops = conn.has_pops();
        let Some(guest) = &mut conn.guest else { return };
        let start = conn.out.sent();
        let has_window = start - guest.confirmed < WINDOW_BYTES as u64;
        let was_full = conn.out.len() >= half;
        let bytes = match has_window {
            true => conn.out.take(conn.out.sendable(), &mut self.pool),
            false => Vec::new(),
        };
        let end = conn.out.sent();
        let mut marks = Vec::new();
        while let Some((offset, run)) = guest.marks.front().copied()
            && offset <= end
        {
            guest.marks.pop_front();
            marks.push((offset.saturating_sub(start) as usize, run));
        }
        let is_told = guest.taken >= WINDOW_BYTES / 4;
        if !bytes.is_empty() || !marks.is_empty() || is_told {
            let taken = std::mem::take(&mut guest.taken);
            let has_tags = !conn.rare.waits.is_empty() || !conn.rare.requests.is_empty();
            let confirm = !conn.rare.holding.is_empty() || has_pops;
            let tags = match has_tags || guest.had_tags {
                true => conn.tags_in_use(),
                false => Vec::new(),
            };
            let Some(guest) = &mut conn.guest else { return };
            guest.had_tags = has_tags;
            let (to, home) = guest.home;
            let letter = Letter::Output {
                conn: home,
                bytes,
                marks,
                end,
                taken,
                tags,
                confirm,
            };
            self.mail().post(to, letter);
        }
        if was_full && self.conns[slot].out.len() < half {
            self.room_again(slot);
        }
        self.settle_life(slot, now);
    }

    /// The peer has read the guest's output up to there.
    pub(super) fn guest_read(&mut self, slot: usize, upto: u64, now: Now) {
        self.settle_pops(slot, upto);
        self.settle_life(slot, now);
    }

    /// The socket has taken the guest's output up to there.
    pub(super) fn guest_confirmed(&mut self, slot: usize, upto: u64) {
        self.guest(slot).confirmed = upto;
        if !self.conns[slot].rare.holding.is_empty() {
            self.release_holds(slot);
        }
        self.list_guest(slot);
    }

    pub(super) fn guest_leaves(&mut self, slot: usize, how: Leave, now: Now) {
        if how == Leave::Reset {
            self.remove(slot, now);
            return;
        }
        if how == Leave::Quit {
            self.abandon_requests(slot);
        }
        if how != Leave::HalfClosed {
            self.guest(slot).finish = true;
        }
        let is_amqp = self.conns[slot].is_amqp();
        if self.conns[slot].life == Life::Open {
            self.conns[slot].life = Life::HalfClosed;
            if !is_amqp {
                self.end_interests(slot, now);
            }
        }
        if is_amqp && how == Leave::Finish {
            // Its consumers go together with what they have not settled, or another consumer would overtake that.
            self.end_channels(slot, now);
        }
        self.mark_dirty(slot);
        self.list_guest(slot);
    }

    /// The guest goes: its home is told, and what it had not run counts as used up.
    pub(in crate::shard) fn guest_goes(&mut self, guest: &Guest, unused: usize) {
        let (to, conn) = guest.home;
        let waiting = guest.pieces.iter().map(|piece| piece.kind.bytes());
        let taken = guest.taken + unused + waiting.sum::<usize>();
        self.totals.transactions.aborted += guest.commits() as u64;
        let peers = self.mail();
        peers.guests.remove(&guest.home);
        for piece in &guest.pieces {
            if let Kind::Prepare { number } = piece.kind {
                let vote = Box::new(Err(gone()));
                peers.post(to, Letter::Vote { number, vote });
            }
        }
        peers.post(to, Letter::Gone { conn, taken });
    }
}
