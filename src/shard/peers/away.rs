//! A connection with guests at other shards: what it has posted, and the order of what comes back.
//!
//! Its socket is written from the *wire*. What this shard answers, and what guests send, goes there in the order
//! of the commands: a *run* is a row of commands to one place, and a place with a run that is not at the front
//! waits. A place without a run that is unanswered only pushes, which needs no order.

mod post;

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

use bytes::Bytes;

use super::gather::Gather;
use super::pull::Pull;
use super::unread::{Place, Unread};
use super::{Leave, Letter, PEER_BYTES_MAX, RUNS_MAX, WINDOW_BYTES};
use crate::broker::queue::WaiterKey;
use crate::buffer::send::{Pool, SendRing};
use crate::log::disk::Storage;
use crate::shard::conn::{Blocked, Conn, Life, Output};
use crate::shard::{Ending, Now, Shard};

/// Pieces from this size are referenced by the wire, smaller ones copied, bytes.
const SHARED_BYTES_MIN: usize = 4 << 10;

/// What a connection waits for before its next command is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The answers of this run, whose last command may be an untagged wait.
    Run(u64),
    /// Every answer.
    All,
    /// Room in the mail.
    Mail,
    /// What a crash has left half done on other shards.
    Start,
    /// Every shard to have changed exchanges or bindings as it wants.
    Definition,
}

/// Where the answers of a run come from.
#[derive(Debug)]
pub(super) enum Dest {
    /// This shard: complete behind this offset of the connection's own output.
    Own(u64),
    /// A guest.
    Guest(u32),
    /// Several shards, one answer.
    Gather(Box<Gather>),
}

/// A row of commands to one place.
#[derive(Debug)]
pub(super) struct Run {
    pub id: u64,
    pub dest: Dest,
}

/// A part of a guest's output.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// The guest's stream offset behind it.
    end: u64,
    /// It completes the answers of that run.
    mark: Option<u64>,
    /// The guest wants to know when the socket has taken it.
    confirm: bool,
}

/// The way to one guest.
#[derive(Debug, Default)]
struct Link {
    is_open: bool,
    is_gone: bool,
    /// Commands of this turn, and the run that they are.
    draft: Option<(u64, Vec<u8>)>,
    /// Runs that are not answered.
    pending: usize,
    /// Input posted and not used up, bytes.
    posted: usize,
    kept: VecDeque<Piece>,
    /// The last run whose answers have all come.
    answered: u64,
    /// The socket has taken the guest's output up to there; and what of that was told.
    sent: u64,
    told: u64,
}

/// What a connection has whose commands went to other shards.
#[derive(Debug)]
pub struct Away {
    /// What the socket is written from.
    pub(super) wire: SendRing,
    /// Bytes in `kept`.
    kept_bytes: usize,
    pub(super) runs: VecDeque<Run>,
    next_run: u64,
    links: Vec<Link>,
    /// What of it the peer may not have read.
    pub(super) unread: Unread,
    /// (offset in the wire, shard, offset in its guest's output or this shard's, whether that is to be told).
    pub(super) confirms: VecDeque<Place>,
    /// Tags under which something may be under way at a guest, the empty one for untagged subscriptions:
    /// where, and the run that began it.
    pub(super) tags: BTreeMap<Box<[u8]>, (u32, u64)>,
    /// The socket has taken this shard's own output up to there.
    pub own_confirmed: u64,
    /// The connection's own output was looked at up to there.
    own_seen: u64,
    /// The last queue routed, as typed, and its shard.
    pub(super) last: (Vec<u8>, u32),
    listed: bool,
    /// An empty line was posted behind the command that waits.
    pub(super) cancelled: bool,
    /// The guests know that nothing more comes.
    pub(super) finished: bool,
    /// The connection waits for its guests to go before it closes.
    pub(super) quitting: bool,
    /// Nothing is answered behind the runs there are.
    ends: bool,
    /// Nothing more is sent.
    is_broken: bool,
    /// Its pulls of queues on several shards.
    pub(super) pulls: Vec<Pull>,
    pub(super) next_pull: u64,
    /// What they wait for here.
    pub watches: Vec<WaiterKey>,
}

impl Away {
    /// For a connection whose socket has taken so much.
    fn new(shards: u32, sent: u64) -> Away {
        Away {
            wire: SendRing::beginning_at(sent),
            unread: Unread::new(sent),
            kept_bytes: 0,
            runs: VecDeque::new(),
            next_run: 1,
            links: (0..shards).map(|_| Link::default()).collect(),
            confirms: VecDeque::new(),
            tags: BTreeMap::new(),
            own_confirmed: sent,
            own_seen: 0,
            last: (Vec::new(), 0),
            listed: false,
            cancelled: false,
            finished: false,
            quitting: false,
            ends: false,
            is_broken: false,
            pulls: Vec::new(),
            next_pull: 0,
            watches: Vec::new(),
        }
    }

    /// Output that the socket has not taken, beside the connection's own, bytes.
    #[inline]
    pub fn unsent(&self) -> usize {
        self.wire.len() + self.kept_bytes
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let drafts = self.links.iter().filter_map(|link| link.draft.as_ref());
        size_of::<Away>()
            + self.wire.memory()
            + self.kept_bytes
            + drafts.map(|(_, bytes)| bytes.capacity()).sum::<usize>()
    }

    /// Something can be written to the socket.
    pub fn has_output(&self) -> bool {
        !self.wire.is_empty()
    }

    /// Nothing is under way, and nothing to be sent.
    pub fn is_idle(&self) -> bool {
        self.runs.is_empty() && self.wire.is_empty() && self.kept_bytes == 0
    }

    /// Every guest has gone.
    fn is_alone(&self) -> bool {
        self.links.iter().all(|link| !link.is_open || link.is_gone)
    }

    /// May the connection be closed, as far as its guests are concerned?
    pub fn may_close(&self) -> bool {
        self.is_idle() && (self.is_alone() || !(self.finished || self.quitting))
    }

    /// The socket has taken so much, in all.
    pub fn sent(&self) -> u64 {
        self.wire.sent()
    }

    /// Where the next answer will stand on the wire if nothing is under way.
    pub fn end(&self) -> u64 {
        self.wire.end()
    }

    /// What of the connection's own output stood behind `start` was taken out, and it ends at `end` now: what is to be
    /// answered behind that is not.
    pub fn end_behind(&mut self, start: u64, end: u64) {
        let is_it = |run: &Run| matches!(run.dest, Dest::Own(mark) if mark > start);
        if let Some(at) = self.runs.iter().position(is_it) {
            self.runs.truncate(at);
        }
        self.add_run(Dest::Own(end));
        self.own_seen = end;
        self.ends = true;
    }

    /// Nothing more goes to the wire.
    fn break_off(&mut self) {
        self.runs.clear();
        for link in &mut self.links {
            link.kept.clear();
        }
        self.kept_bytes = 0;
        self.is_broken = true;
    }

    /// Fills `slices` with what may be written.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.wire.slices(slices)
    }

    /// Drops what is to be written.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.wire.clear(pool);
    }

    /// Shards with a guest of the connection.
    pub(super) fn guests(&self) -> Vec<u32> {
        let open = |(_, link): &(usize, &Link)| link.is_open && !link.is_gone;
        let links = self.links.iter().enumerate().filter(open);
        links.map(|(shard, _)| shard as u32).collect()
    }

    /// Has that run not been answered?
    pub(super) fn is_pending(&self, run: u64) -> bool {
        self.runs.front().is_some_and(|front| front.id <= run)
    }

    /// Where the answers of this shard's runs end in the connection's own output.
    pub fn own_marks(&self) -> impl Iterator<Item = u64> {
        self.runs.iter().filter_map(|run| match run.dest {
            Dest::Own(mark) => Some(mark),
            _ => None,
        })
    }

    /// Those behind `start` are elsewhere now.
    pub fn move_marks(&mut self, start: u64, moved: &[u64]) {
        let mut moved = moved.iter();
        for run in &mut self.runs {
            if let Dest::Own(mark) = &mut run.dest
                && *mark > start
                && let Some(new) = moved.next()
            {
                *mark = *new;
            }
        }
        self.own_seen = self.own_seen.min(start);
    }

    /// The last run at that shard that was not answered.
    pub(super) fn last_run_at(&self, shard: u32) -> Option<u64> {
        let mut runs = self.runs.iter().rev();
        let last = runs.find(|run| matches!(run.dest, Dest::Guest(at) if at == shard));
        last.map(|run| run.id)
    }

    fn add_run(&mut self, dest: Dest) -> u64 {
        let id = self.next_run;
        self.next_run += 1;
        if let Dest::Guest(to) = dest {
            self.links[to as usize].pending += 1;
        }
        self.runs.push_back(Run { id, dest });
        id
    }

    /// The connection's own output so far stands before what is posted next.
    fn seal(&mut self, conn: &Conn, is_waiting: bool) {
        let end = conn.out.end();
        if end == self.own_seen && !is_waiting {
            return;
        }
        self.own_seen = end;
        match self.runs.back_mut() {
            Some(Run {
                dest: Dest::Own(mark),
                ..
            }) => *mark = end,
            _ if conn.out.is_empty() && !is_waiting => {}
            _ => {
                self.add_run(Dest::Own(end));
            }
        }
    }

    /// Puts a guest's piece on the wire.
    fn send(&mut self, from: u32, piece: Piece, conn: &mut Conn, pool: &mut Pool) {
        self.kept_bytes -= piece.bytes.len();
        let mut bytes = piece.bytes.len() as u64;
        let is_relayed = conn.is_amqp();
        if let Some(amqp) = conn.amqp() {
            amqp.relay_output(from, &piece.bytes, &mut self.wire, pool);
            // It is not what the guest has said, octet by octet: it counts as one.
            bytes = 0;
        } else if piece.bytes.len() >= SHARED_BYTES_MIN {
            self.wire.share(piece.bytes);
        } else {
            self.wire.writer(pool).extend_from_slice(&piece.bytes);
        }
        let end = self.wire.end();
        let goes_on = |last: &Place| {
            let follows = (last.at + bytes, last.upto + bytes) == (end, piece.end);
            last.shard == from && (is_relayed || (last.bytes > 0 && follows))
        };
        match self.confirms.back_mut() {
            Some(last) if goes_on(last) => {
                (last.at, last.upto) = (end, piece.end);
                last.bytes += bytes;
                last.confirm |= piece.confirm;
            }
            _ => self.confirms.push_back(Place {
                at: end,
                shard: from,
                upto: piece.end,
                bytes,
                confirm: piece.confirm,
            }),
        }
    }

    /// Puts the connection's own output up to that offset on the wire, as far as it may leave.
    fn send_own(&mut self, me: u32, conn: &mut Conn, upto: u64, pool: &mut Pool) {
        let sent = conn.out.sent();
        let count = (upto.saturating_sub(sent) as usize).min(conn.out.sendable());
        if count == 0 {
            return;
        }
        let end = sent + count as u64;
        let bytes = Bytes::from(conn.out.take(count, pool));
        self.kept_bytes += bytes.len();
        let piece = Piece {
            bytes,
            end,
            mark: None,
            confirm: false,
        };
        self.send(me, piece, conn, pool);
    }

    /// Puts on the wire what may go there.
    fn pump(&mut self, me: u32, conn: &mut Conn, bytes_max: usize, pool: &mut Pool) {
        while self.wire.len() < bytes_max && self.pump_front(me, conn, pool) {}
        if self.ends && self.runs.is_empty() {
            self.break_off();
        }
        if self.is_broken {
            conn.drop_output(pool);
            return;
        }
        if self.wire.len() >= bytes_max {
            return;
        }
        // What is only pushed stands between others' answers.
        for shard in 0..self.links.len() {
            if self.links[shard].pending == 0 {
                while let Some(piece) = self.links[shard].kept.pop_front() {
                    self.send(shard as u32, piece, conn, pool);
                }
            }
        }
        let is_own = |run: &Run| matches!(run.dest, Dest::Own(_));
        if !self.runs.iter().any(is_own) {
            self.send_own(me, conn, u64::MAX, pool);
        }
    }

    /// Moves the front run on; false if it is not answered yet, or there is none.
    fn pump_front(&mut self, me: u32, conn: &mut Conn, pool: &mut Pool) -> bool {
        let is_last = self.runs.len() == 1;
        let Some(run) = self.runs.front_mut() else {
            return false;
        };
        let id = run.id;
        match &mut run.dest {
            Dest::Own(mark) => {
                // Nothing is posted behind a command that waits here, so it is of the last run.
                let waits = matches!(conn.blocked, Blocked::Pull(_) | Blocked::Request(_));
                let waits = waits && is_last;
                let upto = if waits { u64::MAX } else { *mark };
                self.send_own(me, conn, upto, pool);
                if waits || conn.out.sent() < upto {
                    return false;
                }
            }
            Dest::Guest(from) => {
                let from = *from;
                loop {
                    let link = &mut self.links[from as usize];
                    let Some(piece) = link.kept.pop_front() else {
                        if link.is_gone && !conn.session.is_text() {
                            // It could not say what became of its commands; there is no answer to give for each.
                            self.break_off();
                            conn.life = Life::Closing;
                        }
                        return false;
                    };
                    let is_last = piece.mark == Some(id);
                    if is_last {
                        link.pending -= 1;
                    }
                    self.send(from, piece, conn, pool);
                    if is_last {
                        break;
                    }
                }
            }
            Dest::Gather(gather) => {
                if !gather.is_whole() {
                    return false;
                }
                // What was run here meanwhile is told behind it.
                let held = conn.swap_output(Output::default());
                gather.finish(conn, pool);
                let mut told = conn.swap_output(held);
                let text = told.ring.take(told.ring.len(), pool);
                self.wire.writer(pool).extend_from_slice(&text);
            }
        }
        self.runs.pop_front();
        true
    }
}

impl<S: Storage> Shard<S> {
    /// What the connection has at other shards; begun when it is first needed.
    pub(super) fn away(&mut self, slot: usize) -> &mut Away {
        let (shards, _) = self.shards();
        let conn = &mut self.conns[slot];
        let sent = conn.out.sent();
        let away = &mut conn.away;
        away.get_or_insert_with(|| Box::new(Away::new(shards, sent)))
    }

    pub(super) fn list_away(&mut self, slot: usize) {
        let key = self.key(slot);
        let away = self.away(slot);
        if !away.listed {
            away.listed = true;
            self.mail().moving.push_back(key);
        }
    }

    /// Commands of this connection were run here: their answers stand behind those that are awaited.
    #[inline]
    pub(in crate::shard) fn ran_here(&mut self, slot: usize) {
        if self.peers.is_some() && self.conns[slot].away.is_some() {
            self.seal_own(slot, false);
        }
    }

    #[inline(never)]
    pub(super) fn seal_own(&mut self, slot: usize, is_posting: bool) {
        self.away(slot);
        let conn = &mut self.conns[slot];
        let Some(mut away) = conn.away.take() else {
            return;
        };
        if is_posting || !away.runs.is_empty() {
            let waits = matches!(conn.blocked, Blocked::Pull(_) | Blocked::Request(_));
            away.seal(conn, waits);
        }
        conn.away = Some(away);
    }

    /// Is there room to post to these shards? Otherwise the connection waits for it.
    pub(in crate::shard) fn has_room_to(&mut self, slot: usize, to: &[u32]) -> bool {
        let away = self.away(slot);
        let is_full = |to: &u32| away.links[*to as usize].posted >= WINDOW_BYTES;
        let any_full = to.iter().any(is_full);
        let front = away.runs.front().map_or(0, |run| run.id);
        if away.runs.len() >= RUNS_MAX {
            self.conns[slot].blocked = Blocked::Away(Wait::Run(front));
            return false;
        }
        let key = self.key(slot);
        let peers = self.mail();
        let crowded = to
            .iter()
            .find(|to| peers.outstanding[**to as usize] >= PEER_BYTES_MAX);
        if let Some(crowded) = crowded {
            peers.waiting[*crowded as usize].push(key);
        }
        if crowded.is_some() || any_full {
            self.conns[slot].blocked = Blocked::Away(Wait::Mail);
            return false;
        }
        true
    }

    /// Are answers awaited? Then the connection waits until all are there.
    pub(in crate::shard) fn awaits_answers(&mut self, slot: usize) -> bool {
        let conn = &mut self.conns[slot];
        let awaits = conn.away.as_ref().is_some_and(|away| !away.runs.is_empty());
        if awaits {
            conn.blocked = Blocked::Away(Wait::All);
        }
        awaits
    }

    fn open_link(&mut self, slot: usize, to: u32) {
        if std::mem::replace(&mut self.away(slot).links[to as usize].is_open, true) {
            return;
        }
        let conn = self.key(slot);
        let open = &self.conns[slot];
        let letter = Letter::Open {
            conn,
            door: open.session.door().expect("it has said something"),
            peer: open.peer.clone(),
            name: open.rare.name.as_slice().into(),
            wants_expired: open.wants_expired,
        };
        let is_half_closed = open.life == Life::HalfClosed;
        let version = open.resp_version();
        let introduction = open.introduction();
        self.mail().post(to, letter);
        if let Some(introduction) = introduction {
            self.mail()
                .post(to, Letter::Introduce { conn, introduction });
        }
        if let Some(version) = version {
            self.mail().post(to, Letter::Speaks { conn, version });
        }
        if is_half_closed {
            let how = Leave::HalfClosed;
            self.mail().post(to, Letter::Leave { conn, how });
        }
    }

    pub(super) fn link_taken(&mut self, slot: usize, from: u32, taken: usize) {
        if let Some(away) = &mut self.conns[slot].away {
            away.links[from as usize].posted -= taken;
        }
    }

    pub(super) fn guest_gone(&mut self, slot: usize, from: u32) {
        if let Some(away) = &mut self.conns[slot].away {
            away.links[from as usize].is_gone = true;
            self.list_away(slot);
        }
    }

    /// A guest has sent something.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn guest_said(
        &mut self,
        slot: usize,
        from: u32,
        bytes: Vec<u8>,
        marks: Vec<(usize, u64)>,
        end: u64,
        tags: Vec<Box<[u8]>>,
        confirm: bool,
    ) {
        let Some(away) = &mut self.conns[slot].away else {
            return;
        };
        if away.is_broken {
            return;
        }
        let link = &mut away.links[from as usize];
        let mut rest = Bytes::from(bytes);
        let start = end - rest.len() as u64;
        let mut at = 0;
        away.kept_bytes += rest.len();
        for (offset, run) in marks {
            link.answered = run;
            let bytes = rest.split_to(offset - at);
            at = offset;
            link.kept.push_back(Piece {
                bytes,
                end: start + offset as u64,
                mark: Some(run),
                confirm,
            });
        }
        if !rest.is_empty() {
            link.kept.push_back(Piece {
                bytes: rest,
                end,
                mark: None,
                confirm,
            });
        }
        let answered = link.answered;
        if !away.tags.is_empty() {
            away.tags.retain(|tag, (shard, run)| {
                *shard != from || *run > answered || tags.iter().any(|other| other == tag)
            });
        }
        self.list_away(slot);
    }

    /// Posts and sends what a connection has for its guests and its peer.
    pub(super) fn move_away(&mut self, slot: usize, now: Now) {
        self.away(slot).listed = false;
        self.flush_drafts(slot);
        self.pump_away(slot);
        self.heed_parts(slot, now);
        self.flush_drafts(slot);
        self.settle_life(slot, now);
    }

    pub(in crate::shard) fn pump_away(&mut self, slot: usize) {
        let (_, me) = self.shards();
        let conn = &mut self.conns[slot];
        let Some(mut away) = conn.away.take() else {
            return;
        };
        away.pump(me, conn, self.limits.send_bytes_max, &mut self.pool);
        if self.ending != Ending::No && conn.is_amqp() {
            // It may be what its end waits for.
            self.housekeeping.look_again();
        }
        let has_news = conn
            .amqp()
            .is_some_and(|amqp| amqp.has_news() || amqp.is_over());
        let goes_on = match conn.blocked {
            Blocked::Away(Wait::Run(run)) => !away.is_pending(run),
            Blocked::Away(Wait::All) => away.runs.is_empty(),
            _ => false,
        };
        let has_output = !away.wire.is_empty();
        away.cancelled &= !goes_on;
        conn.away = Some(away);
        if goes_on {
            conn.blocked = Blocked::No;
            self.resume(slot);
        }
        let is_amqp = self.conns[slot].is_amqp();
        if has_news && self.conns[slot].life != Life::Closing {
            self.list_away(slot);
        }
        if is_amqp {
            // What is not passed on is taken without the socket.
            self.tell_sent(slot);
        }
        let key = self.key(slot);
        let conn = &mut self.conns[slot];
        if has_output && !conn.dirty {
            conn.dirty = true;
            self.dirty.push_back(key);
        }
    }

    /// The socket took `count` bytes of the wire; true while more could be written now.
    #[inline(never)]
    pub(in crate::shard) fn wire_sent(&mut self, slot: usize, count: usize, now: Now) -> bool {
        let half = self.limits.send_bytes_max / 2;
        let was_full = self.conns[slot].unsent() >= half;
        let Some(away) = &mut self.conns[slot].away else {
            return false;
        };
        away.wire.consume(count, &mut self.pool);
        self.tell_sent(slot);
        if !self.conns[slot].rare.holding.is_empty() {
            self.release_holds(slot);
        }
        self.pump_away(slot);
        if was_full && self.conns[slot].unsent() < half {
            self.room_again(slot);
        }
        let away = self.conns[slot].away.as_ref();
        let more = away.is_some_and(|away| !away.wire.is_empty());
        self.settle_life(slot, now);
        more
    }

    /// Notes what the socket has taken of the wire, and tells guests of theirs.
    fn tell_sent(&mut self, slot: usize) {
        let key = self.key(slot);
        let (_, me) = self.shards();
        // Whether the peer has read something counts there, not whether the socket has taken it.
        let (is_read, has_pops) = {
            let conn = &self.conns[slot];
            (conn.resp_version().is_some(), conn.has_pops())
        };
        let Some(away) = &mut self.conns[slot].away else {
            return;
        };
        let mut letters = Vec::new();
        while let Some(place) = away.confirms.front().copied()
            && place.at <= away.wire.sent()
        {
            away.confirms.pop_front();
            let Place {
                shard,
                upto,
                confirm,
                ..
            } = place;
            if is_read && if shard == me { has_pops } else { confirm } {
                away.unread.add(place);
            }
            if shard == me {
                away.own_confirmed = upto;
                continue;
            }
            let link = &mut away.links[shard as usize];
            link.sent = upto;
            if (confirm && !is_read) || link.sent - link.told >= WINDOW_BYTES as u64 / 4 {
                link.told = link.sent;
                letters.push((shard, Letter::Confirmed { conn: key, upto }));
            }
        }
        for (shard, letter) in letters {
            self.mail().post(shard, letter);
        }
    }
}
