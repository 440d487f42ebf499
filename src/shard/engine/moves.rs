//! `MOVE` to a queue of another shard: messages leave as dead letters do, a piece of them at a time.
//!
//! A piece goes in its order. The other shard takes a message if the queue's limits let it, and refuses it and the
//! rest of its piece otherwise; what it refuses is back where it was. A piece has ended when each of its messages
//! is on stable storage there and settled here, or is back.

use std::collections::BTreeMap;

use super::outbox::Stage;
use super::{Death, Engine};
use crate::broker::id::{Level, MessageId};
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, ErrorCode};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{Entry, Log, Room, Run, TransferReason};

/// What came of a piece.
#[derive(Debug, Default)]
pub struct Ended {
    /// Messages that are in the other queue.
    pub moved: u64,
    /// Something was refused, and is back.
    pub refused: Option<Error>,
}

/// A piece under way.
#[derive(Debug, Default)]
struct Piece {
    to: u32,
    /// Messages, or answers, that are missing.
    left: usize,
    ended: Ended,
}

/// Pieces of `MOVE`s, those of this shard and what it has refused of others.
#[derive(Debug, Default)]
pub struct Pieces {
    next: u64,
    own: BTreeMap<u64, Piece>,
    /// Own ones that have ended and of which something was refused: the shard that has may forget it.
    over: Vec<(u32, u64)>,
    /// Pieces of other shards, of which nothing more is taken.
    refused: BTreeMap<(u32, u64), Error>,
    /// What was refused: whose, its number, why.
    returns: Vec<(u32, u64, Error)>,
}

impl Pieces {
    /// Something is to be told to other shards.
    pub fn has_news(&self) -> bool {
        !self.over.is_empty() || !self.returns.is_empty()
    }

    /// A piece of which so many messages, or answers, are missing.
    pub fn begin(&mut self, to: u32, left: usize) -> u64 {
        self.next += 1;
        let piece = Piece {
            to,
            left,
            ended: Ended::default(),
        };
        self.own.insert(self.next, piece);
        self.next
    }

    /// One message more belongs to a piece.
    fn add(&mut self, piece: u64) {
        if let Some(piece) = self.own.get_mut(&piece) {
            piece.left += 1;
        }
    }

    /// What came of a piece, once, when it has ended; nothing is said of it any more.
    pub fn take(&mut self, piece: u64) -> Option<Ended> {
        if self.own.get(&piece)?.left > 0 {
            return None;
        }
        self.own.remove(&piece).map(|piece| piece.ended)
    }

    /// Whoever waited for a piece is gone; what is on its way goes on.
    pub fn forget(&mut self, piece: u64) {
        if let Some(piece) = self.own.get_mut(&piece) {
            // It is dropped when the last of it has ended.
            piece.ended.moved = u64::MAX;
        }
        self.drop_forgotten(piece);
    }

    fn drop_forgotten(&mut self, piece: u64) {
        let own = self.own.get(&piece);
        if own.is_some_and(|piece| piece.left == 0 && piece.ended.moved == u64::MAX) {
            self.own.remove(&piece);
        }
    }

    fn end_one(&mut self, number: u64, moved: bool, refused: Option<Error>) {
        let Some(piece) = self.own.get_mut(&number) else {
            return;
        };
        piece.left -= 1;
        piece.ended.moved = piece.ended.moved.saturating_add(u64::from(moved));
        if refused.is_some() {
            piece.ended.refused = refused;
        }
        if piece.left == 0 && piece.ended.refused.is_some() {
            self.over.push((piece.to, number));
        }
        self.drop_forgotten(number);
    }

    /// A message of a piece is in the other queue.
    pub fn gone(&mut self, piece: u64) {
        self.end_one(piece, true, None);
    }

    /// A message of a piece is not there any more.
    pub fn lost(&mut self, piece: u64) {
        self.end_one(piece, false, None);
    }

    /// The other shard has looked at the queue.
    pub fn answered(&mut self, piece: u64, refused: Option<Error>) {
        self.end_one(piece, false, refused);
    }

    /// A message of another shard's piece is not taken.
    pub fn refuse(&mut self, from: u32, piece: u64, seq: u64, error: Error) {
        if piece != 0 {
            self.refused.insert((from, piece), error.clone());
        }
        self.returns.push((from, seq, error));
    }

    /// A piece of another shard has ended.
    pub fn forget_refused(&mut self, from: u32, piece: u64) {
        self.refused.remove(&(from, piece));
    }

    /// What is to be told to other shards: what was refused, and which pieces are over.
    #[allow(clippy::type_complexity)]
    pub fn take_news(&mut self) -> (Vec<(u32, u64, Error)>, Vec<(u32, u64)>) {
        let returns = std::mem::take(&mut self.returns);
        (returns, std::mem::take(&mut self.over))
    }
}

impl<S: Storage> Engine<S> {
    /// Why a queue here does not take a message of a piece; `None` if it does.
    pub(super) fn refuses_piece(
        &self,
        from: u32,
        piece: u64,
        target: QueueKey,
        size: u64,
    ) -> Option<Error> {
        let earlier = self.outbox.pieces.refused.get(&(from, piece));
        let earlier = earlier.filter(|_| piece != 0).cloned();
        earlier.or_else(|| self.may_move(target, size).err())
    }

    /// A waiting message leaves for a queue of another shard, as the next of its piece.
    pub fn move_away(
        &mut self,
        key: QueueKey,
        (id, place, size): (MessageId, u64, Option<u32>),
        target: &[u8],
        piece: u64,
    ) {
        let pri = self.queue_mut(key).take_waiting(id);
        let death = Death {
            id,
            place,
            size,
            pri: pri.expect("it is ready"),
            reason: TransferReason::Moved,
            tries: self.queue(key).next_try(id) - 1,
            why: Vec::new(),
        };
        self.outbox.pieces.add(piece);
        let to = self.elsewhere(target).expect("it is another shard's");
        self.send_away(key, death, target.into(), to, piece);
    }

    /// The other shard does not take a message: it is back where it was.
    pub fn out_refused(&mut self, seq: u64, error: Error) {
        let Some(out) = self.outbox.outs.get(&seq) else {
            return;
        };
        if out.stage != Stage::Sent {
            return;
        }
        let (uid, id, pri, tries) = (out.uid, out.id, out.pri, out.tries);
        let (is_logged, piece, counted) = (out.is_logged, out.piece, out.counted);
        let key = self.find_uid(uid).filter(|key| self.is_same(*key, uid));
        if let Some(key) = key.filter(|_| !planted(Fault::RefusedMoveLost)) {
            self.queue_mut(key).put_back(id, pri, 0);
            self.queue_mut(key).due_if_overdue(id);
            self.arm(key);
            if is_logged {
                let log = self.log.as_mut().expect("a logged queue has a log");
                log.append(&Entry::Release {
                    queue: uid,
                    group: 0,
                    run: Run {
                        first: id,
                        count: 1,
                    },
                    tries: u32::from(tries),
                    not_before_us: 0,
                });
                self.sync_wanted = true;
            }
            self.schedule(key);
            let store = self.store_of(key);
            if let Some(bytes) = counted {
                self.queue_mut(store).has_left(bytes);
            }
        }
        self.outbox.outs.remove(&seq);
        self.outbox.has_moved_on = true;
        self.outbox.pieces.end_one(piece, false, Some(error));
    }

    /// Has the target of a `MOVE` room for one more, of so many bytes?
    ///
    /// # Errors
    /// It has not, or takes nothing at the moment.
    pub fn may_move(&self, to: QueueKey, size: u64) -> Result<(), Error> {
        let queue = self.queue(to);
        let settings = &queue.settings;
        if settings.pause.input {
            return Err(Error::new(
                ErrorCode::Paused,
                "the target takes nothing at the moment; QSET pause= opens it",
            )
            .retry(1000));
        }
        let full = settings.maxlen.is_some_and(|most| queue.counted() >= most)
            || settings
                .maxbytes
                .is_some_and(|most| queue.counted_bytes() + size > most);
        if full {
            return Err(
                Error::new(ErrorCode::Full, "the target is at its maxlen or maxbytes").retry(100),
            );
        }
        if self.over_budget {
            return Err(Error::new(ErrorCode::Mem, "the memory budget is used up").retry(100));
        }
        let is_full = |log: &Log<S>| log.room() == Room::DiskFull;
        if settings.durable != Level::None && self.log.as_ref().is_some_and(is_full) {
            return Err(Error::new(ErrorCode::Disk, "the disk is full").retry(500));
        }
        Ok(())
    }
}
