//! Commands that walk over many messages: DEL, PURGE, PEEK, MOVE.
//!
//! They do a bounded piece of work in a turn. What is left is remembered with the connection, and the
//! command comes again in the next turn, or when what it needs has been read from the disk.

use bytes::Bytes;

use super::hand_out::{Shown, write_message};
use super::session::{Asker, Flow};
use super::trace;
use super::{Now, Shard};
use crate::broker::command::{MessageState, Source, Tokens, Typed};
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::queue::{QueueKey, State};
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::log::disk::Storage;
use crate::log::{Log, Room, Sections, SettleReason, TransferReason};
use crate::protocol::text::value;

/// Messages shown by one `PEEK` at most.
pub(super) const PEEK_MAX: usize = 10_000;
/// Messages settled or moved by one command in one turn at most.
const PIECE: usize = 4096;

/// How far a command that takes several turns has got.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Messages dealt with.
    pub(super) done: u64,
    /// Messages looked at.
    looked: u64,
    /// The next id to look at.
    pub(super) next: MessageId,
    /// Messages from this id on came after the command.
    pub(super) end: MessageId,
    /// The piece of a `MOVE` to another shard that is under way; 0 = none.
    pub(super) piece: u64,
    /// The row of dead-letter queues that is being followed; 0 = none.
    pub(super) walk: u64,
    /// What another shard is asked to show; 0 = nothing.
    pub(super) peek: u64,
    /// The target of a `MOVE` to another shard was looked at.
    pub(super) has_asked: bool,
}

impl<S: Storage> Shard<S> {
    /// `DEL`: messages by id, ready or delayed ones.
    pub(super) fn delete_ids(
        &mut self,
        asker: Asker<'_>,
        name: Typed<'_>,
        ids: Tokens<'_>,
        now: Now,
    ) -> Flow {
        let key = match self.existing(name) {
            Ok(key) => key,
            Err(error) => return self.fail_command(asker, &error),
        };
        // Every place must be known before the first is deleted.
        for token in ids.iter() {
            if let Some(id) = value::id(token)
                && self.is_deletable(key, id)
                && self.engine.locate(key, id).is_none()
            {
                self.block_cold(asker.slot);
                return Flow::Again;
            }
        }
        let mut count = 0;
        let mut stale = Vec::new();
        for token in ids.iter() {
            let found = value::id(token).filter(|id| self.is_deletable(key, *id));
            let settled = found.is_some_and(|id| {
                let (place, size) = self
                    .engine
                    .locate(key, id)
                    .expect("every place was looked up before");
                let reason = SettleReason::Deleted;
                self.engine
                    .settle_for_all(key, id, place, size, reason, false, now)
            });
            if settled {
                count += 1;
            } else {
                if !stale.is_empty() {
                    stale.push(b',');
                }
                stale.extend_from_slice(token);
            }
        }
        let level = self.engine.queue(key).settings.durable;
        let need = self
            .engine
            .need(if count > 0 { level } else { Level::None });
        self.answer_when(
            asker,
            need,
            &Reply::Count {
                count,
                stale: &stale,
            },
        );
        Flow::Done
    }

    /// Is it ready or delayed for everybody who has it still to settle?
    fn is_deletable(&self, key: QueueKey, id: MessageId) -> bool {
        let mut wanted = false;
        for reader in self.engine.readers(key) {
            match self.engine.queue(reader).state(id) {
                State::Ready | State::Locked | State::Delayed => wanted = true,
                State::Gone => {}
                State::Hidden | State::Leased => return false,
            }
        }
        wanted
    }

    pub(super) fn fail_command(&mut self, asker: Asker<'_>, error: &Error) -> Flow {
        let progress = self.take_progress(asker);
        self.forget_job(progress);
        self.totals.count_error(error.code);
        self.answer_error(asker.slot, asker.tag, error);
        Flow::Done
    }

    /// What a command that does not go on has begun elsewhere.
    pub(super) fn forget_job(&mut self, progress: Progress) {
        self.engine.outbox.forget_piece(progress.piece);
        self.forget_walk(progress.walk);
        self.forget_peek(progress.peek);
    }

    /// How far the command that goes on has got; nothing is kept of it.
    pub(super) fn take_progress(&mut self, asker: Asker<'_>) -> Progress {
        let rare = self.conns[asker.slot].rare.any();
        rare.and_then(|rare| rare.progress.take())
            .unwrap_or_default()
    }

    /// The command's piece of this turn is done, or it waits for the disk.
    pub(super) fn pause_job(
        &mut self,
        asker: Asker<'_>,
        progress: Progress,
        for_disk: bool,
    ) -> Flow {
        self.conns[asker.slot].rare.make().progress = Some(progress);
        self.block_cold(asker.slot);
        if !for_disk {
            self.goes_on = true;
        }
        Flow::Again
    }

    /// `PURGE`: settles what is ready and delayed, or one of both.
    pub(super) fn purge(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        state: Option<MessageState>,
    ) -> Flow {
        let key = match self.existing_reader(source) {
            Ok(key) => key,
            Err(error) => return self.fail_command(asker, &error),
        };
        if let Some(MessageState::Leased | MessageState::Dead) = state {
            let error = Error::new(
                ErrorCode::Syntax,
                "PURGE takes state=ready or state=delayed; leased messages end with their lease, dead ones are in the dead-letter queue",
            );
            return self.fail_command(asker, &error);
        }
        let mut progress = self.take_progress(asker);
        if progress.end == 0 {
            progress.end = self.engine.queue(key).next_id();
        }
        for _ in 0..PIECE {
            let next = self
                .engine
                .queue(key)
                .next_unsettled(progress.next)
                .filter(|id| *id < progress.end);
            let Some(id) = next else {
                let level = self.engine.queue(key).settings.durable;
                let need = self.engine.need(if progress.done > 0 {
                    level
                } else {
                    Level::None
                });
                self.answer_when(
                    asker,
                    need,
                    &Reply::Count {
                        count: progress.done,
                        stale: b"",
                    },
                );
                return Flow::Done;
            };
            let wanted = match self.engine.queue(key).state(id) {
                State::Ready | State::Locked => state != Some(MessageState::Delayed),
                State::Delayed => state != Some(MessageState::Ready),
                State::Hidden | State::Leased | State::Gone => false,
            };
            if wanted {
                let Some((place, size)) = self.engine.locate(key, id) else {
                    return self.pause_job(asker, progress, true);
                };
                self.engine
                    .settle_waiting(key, id, place, size, SettleReason::Purged);
                progress.done += 1;
            }
            progress.next = id + 1;
        }
        self.pause_job(asker, progress, false)
    }

    /// `MOVE`: ready messages to another queue, tries reset, trace kept.
    pub(super) fn move_messages(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        target: Typed<'_>,
        count: Option<u64>,
        now: Now,
    ) -> Flow {
        let key = match self.existing_reader(source) {
            Ok(key) => key,
            Err(error) => return self.fail_command(asker, &error),
        };
        let mut name = Vec::new();
        let name = target.decoded(&mut name);
        if let Some(shard) = self.engine.elsewhere(name) {
            return self.move_across(asker, key, name, shard, count);
        }
        let to = self.find_or_create(target);
        if to == self.engine.store_of(key) {
            let error = Error::new(
                ErrorCode::Conflict,
                "source and target are the same queue; name another target",
            );
            return self.fail_command(asker, &error);
        }
        let mut progress = self.take_progress(asker);
        if progress.end == 0 {
            progress.end = self.engine.queue(key).next_id();
        }
        for _ in 0..PIECE {
            let most = count.unwrap_or(u64::MAX);
            let found = self
                .engine
                .queue_mut(key)
                .oldest_waiting(progress.next)
                .filter(|id| *id < progress.end && progress.done < most);
            let Some(id) = found else {
                return self.end_move(asker, key, to, progress.done, None);
            };
            let Some((place, _)) = self.engine.locate(key, id) else {
                return self.pause_job(asker, progress, true);
            };
            let (sections, body) = match self.engine.stored(key, place) {
                Some(Ok(message)) => (
                    trace::keep(Sections(message.sections)),
                    Bytes::copy_from_slice(message.body.as_slice()),
                ),
                Some(Err(_)) => {
                    self.engine.keep_back(key, id);
                    continue;
                }
                None => {
                    self.engine.fetch(place);
                    return self.pause_job(asker, progress, true);
                }
            };
            let room = self.engine.log.as_ref().map(Log::room);
            if room == Some(Room::NoSegment)
                && self.engine.queue(to).settings.durable != Level::None
            {
                return self.pause_job(asker, progress, true);
            }
            if let Err(error) = self.engine.may_move(to, body.len() as u64) {
                return self.end_move(asker, key, to, progress.done, Some(error));
            }
            self.engine
                .queue_mut(key)
                .take_waiting(id)
                .expect("it is ready");
            // Those with a key are looked for from here on.
            progress.next = progress.next.max(id);
            let size = Some(body.len() as u32);
            self.engine.transfer(
                key,
                id,
                place,
                size,
                TransferReason::Moved,
                to,
                &sections,
                body,
                now,
            );
            progress.done += 1;
        }
        self.pause_job(asker, progress, false)
    }

    /// Answers a `MOVE`: an error only if nothing was moved.
    fn end_move(
        &mut self,
        asker: Asker<'_>,
        key: QueueKey,
        to: QueueKey,
        done: u64,
        error: Option<Error>,
    ) -> Flow {
        if let (0, Some(error)) = (done, error) {
            return self.fail_command(asker, &error);
        }
        let level = self
            .engine
            .queue(key)
            .settings
            .durable
            .max(self.engine.queue(to).settings.durable);
        let need = self.engine.need(if done > 0 { level } else { Level::None });
        self.answer_when(
            asker,
            need,
            &Reply::Count {
                count: done,
                stale: b"",
            },
        );
        Flow::Done
    }

    /// `PEEK`: shows messages without taking them.
    pub(super) fn peek(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        count: u32,
        state: MessageState,
        from: MessageId,
    ) -> Flow {
        if asker.tag.is_none()
            && let Err(error) = self.may_wait(asker)
        {
            return self.fail_command(asker, &error);
        }
        let key = match self.existing_reader(source) {
            Ok(key) => key,
            Err(error) => return self.fail_command(asker, &error),
        };
        if state == MessageState::Dead
            && let Some(dead) = self.dead_elsewhere(key)
        {
            return self.peek_elsewhere(asker, key, dead, count, from);
        }
        let (key, ids) = self.peeked(key, (count as usize).min(PEEK_MAX), state, from);
        // What was shown before something had to be read from the disk is not shown again.
        let mut progress = self.take_progress(asker);
        for id in ids.into_iter().skip(progress.looked as usize) {
            if progress.done > 0 && self.conns[asker.slot].out.len() >= self.limits.send_bytes_max {
                break;
            }
            let Some((place, _)) = self.engine.locate(key, id) else {
                return self.pause_job(asker, progress, true);
            };
            let tries = u32::from(self.engine.queue(key).next_try(id));
            match self.engine.stored_beside_queue(key, place) {
                None => {
                    self.engine.fetch(place);
                    return self.pause_job(asker, progress, true);
                }
                Some(Err(_)) => {}
                Some(Ok((source, message))) => {
                    let what = Shown {
                        source,
                        handle: None,
                        id,
                        tries,
                        timestamp_ms: None,
                    };
                    let conn = &mut self.conns[asker.slot];
                    let tag = asker.tag.unwrap_or_default();
                    write_message(
                        conn,
                        &mut self.pool,
                        tag,
                        what,
                        Sections(message.sections),
                        message.body,
                    );
                    progress.done += 1;
                }
            }
            progress.looked += 1;
        }
        self.answer(
            asker,
            &Reply::End {
                count: progress.done,
            },
        );
        Flow::Done
    }

    /// The messages that a `PEEK` means, and in which queue they are.
    fn peeked(
        &mut self,
        key: QueueKey,
        count: usize,
        state: MessageState,
        from: MessageId,
    ) -> (QueueKey, Vec<MessageId>) {
        let queue = self.engine.queue(key);
        match state {
            MessageState::Ready => (key, queue.iter_ready(from).take(count).collect()),
            MessageState::Delayed => {
                let delayed = queue
                    .iter_delayed()
                    .map(|(_, id)| id)
                    .filter(|id| *id >= from);
                (key, delayed.take(count).collect())
            }
            MessageState::Leased => {
                let mut leased: Vec<_> = self
                    .engine
                    .leases
                    .iter()
                    .filter(|lease| lease.queue == key && lease.id >= from)
                    .map(|lease| lease.id)
                    .collect();
                leased.sort_unstable();
                leased.truncate(count);
                (key, leased)
            }
            MessageState::Dead => {
                let uid = queue.uid;
                let Some(dead) = queue.dead_name().and_then(|name| self.engine.find(&name)) else {
                    return (key, Vec::new());
                };
                (dead, self.dead_of_reader(dead, uid, from, count))
            }
        }
    }

    /// So many of a reader's dead letters in a queue, from an id on.
    pub(super) fn dead_of_reader(
        &self,
        dead: QueueKey,
        reader: QueueUid,
        from: MessageId,
        count: usize,
    ) -> Vec<MessageId> {
        let queue = self.engine.queue(dead);
        let origins = queue.origins.range(from..);
        let ids = origins.filter(|(_, origin)| **origin == reader);
        let live = ids.map(|(id, _)| *id);
        let live = live.filter(|id| queue.state(*id) != State::Hidden);
        live.take(count).collect()
    }
}
