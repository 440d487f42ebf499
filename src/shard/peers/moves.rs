//! `MOVE` to a queue of another shard: run by the shard of the source, piece by piece.

use super::Letter;
use crate::broker::id::Level;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, Reply};
use crate::log::disk::Storage;
use crate::log::{Log, Room};
use crate::shard::Shard;
use crate::shard::jobs::Progress;
use crate::shard::session::{Asker, Flow};

/// Messages in one piece at most.
const PIECE: usize = 1024;
/// Bytes of bodies in one piece, before it ends.
const PIECE_BYTES: u64 = 1 << 20;

impl<S: Storage> Shard<S> {
    /// Moves ready messages to the queue of that name (octets) at another shard. Comes again until all is where
    /// it belongs: the answer counts what is there, and what was refused is back.
    pub(in crate::shard) fn move_across(
        &mut self,
        asker: Asker<'_>,
        key: QueueKey,
        target: &[u8],
        to: u32,
        count: Option<u64>,
    ) -> Flow {
        let mut progress = self.take_progress(asker);
        if progress.piece == 0 {
            progress.end = self.engine.queue(key).next_id();
            // The target is made in any case, as it is on one shard.
            progress.piece = self.engine.outbox.begin_piece(to, 1);
            let target = target.into();
            let piece = progress.piece;
            self.mail().post(to, Letter::AskTarget { piece, target });
            return self.pause_job(asker, progress, true);
        }
        let Some(ended) = self.engine.outbox.take_piece(progress.piece) else {
            return self.pause_job(asker, progress, true);
        };
        progress.done += ended.moved;
        let is_first = !std::mem::replace(&mut progress.has_asked, true);
        if let Some(error) = ended.refused {
            let has_any = !is_first || self.next_to_move(key, &progress, count).is_some();
            let error = has_any.then_some(error);
            return self.end_move_across(asker, key, &progress, error);
        }
        progress.piece = self.engine.outbox.begin_piece(to, 0);
        let (mut bytes, mut leaving) = (0, 0);
        while leaving < PIECE as u64
            && bytes < PIECE_BYTES
            && let Some(id) = self.next_to_move(key, &progress, count.map(|most| most - leaving))
        {
            let is_full = self.engine.log.as_ref().map(Log::room) == Some(Room::NoSegment);
            let found = match is_full && self.engine.queue(key).settings.durable != Level::None {
                true => None,
                false => self.engine.locate(key, id),
            };
            let stored = found.and_then(|(place, _)| {
                let stored = self.engine.stored(key, place)?;
                Some((place, stored.map(|message| message.body.as_slice().len())))
            });
            let (place, size) = match stored {
                Some((place, Ok(size))) => (place, size),
                Some((_, Err(_))) => {
                    self.engine.keep_back(key, id);
                    continue;
                }
                None => {
                    if let Some((place, _)) = found {
                        self.engine.fetch(place);
                    }
                    return self.pause_job(asker, progress, true);
                }
            };
            progress.next = progress.next.max(id);
            let message = (id, place, Some(size as u32));
            self.engine.move_away(key, message, target, progress.piece);
            leaving += 1;
            bytes += size as u64;
        }
        if leaving == 0 {
            return self.end_move_across(asker, key, &progress, None);
        }
        self.pause_job(asker, progress, true)
    }

    /// The next message that a `MOVE` takes.
    fn next_to_move(
        &mut self,
        key: QueueKey,
        progress: &Progress,
        most: Option<u64>,
    ) -> Option<u64> {
        let most = most.unwrap_or(u64::MAX);
        let queue = self.engine.queue_mut(key);
        let found = queue.oldest_waiting(progress.next);
        found.filter(|id| *id < progress.end && progress.done < most)
    }

    /// Answers: an error only if nothing was moved.
    fn end_move_across(
        &mut self,
        asker: Asker<'_>,
        key: QueueKey,
        progress: &Progress,
        error: Option<Error>,
    ) -> Flow {
        self.engine.outbox.forget_piece(progress.piece);
        let is_logged = self.engine.queue(key).settings.durable != Level::None;
        // What has gone, and what is back, stays so.
        let level = match is_logged && (progress.done > 0 || error.is_some()) {
            true => Level::Disk,
            false => Level::None,
        };
        let need = self.engine.need(level);
        if let (0, Some(error)) = (progress.done, error) {
            self.totals.count_error(error.code);
            let loud = Asker {
                quiet: false,
                ..asker
            };
            self.answer_when(loud, need, &Reply::Error(&error));
            return Flow::Done;
        }
        let count = progress.done;
        self.answer_when(asker, need, &Reply::Count { count, stale: b"" });
        Flow::Done
    }

    /// Another shard asks for the target of a `MOVE`.
    pub(super) fn find_target(&mut self, from: u32, piece: u64, target: &[u8]) {
        let target = self.engine.find_or_create(target);
        let refused = self.engine.may_move(target, 0).err();
        self.mail().post(from, Letter::Target { piece, refused });
    }

    /// Other shards are told what was refused of what they have sent, and which pieces are over.
    pub(super) fn tell_pieces(&mut self) {
        let (returns, over) = self.engine.outbox.take_news();
        for (to, number, error) in returns {
            self.mail().post(to, Letter::Refused(number, error));
        }
        for (to, piece) in over {
            self.mail().post(to, Letter::PieceOver(piece));
        }
    }
}
