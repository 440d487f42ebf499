//! Groups as commands see them: which reader a source means, how one begins, and SEEK.

use super::conn::Need;
use super::session::{Asker, Flow};
use super::{Now, Shard};
use crate::broker::command::{From, Source};
use crate::broker::id::Level;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::log::disk::Storage;
use crate::protocol::text::value;

/// A reader that a consumer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// It can read.
    Open(QueueKey),
    /// The connection waits, the command comes again.
    Blocked,
}

impl<S: Storage> Shard<S> {
    /// The reader that a consumer names, which begins to read with that if nobody did before.
    ///
    /// # Errors
    /// `CONFLICT` for the bare name of a queue that only groups read, unless `from` says where it begins.
    pub(super) fn open_reader(
        &mut self,
        slot: usize,
        source: Source<'_>,
        from: Option<From>,
        now: Now,
    ) -> Result<Reader, Error> {
        let store = self.target(slot, source.queue);
        let mut scratch = Vec::new();
        let Some(name) = source.group.map(|name| name.decoded(&mut scratch)) else {
            return self.open_bare(slot, store, source, from, now);
        };
        if let Some(key) = self.engine.find_group(store, name) {
            let begun = self.engine.begun(key);
            if !self.engine.reached(begun) {
                self.block(slot, begun);
                return Ok(Reader::Blocked);
            }
            return Ok(Reader::Open(key));
        }
        let queue = self.engine.queue(store);
        let is_first = !queue.begun && !queue.is_absent();
        let start = from.unwrap_or(if is_first { From::First } else { From::New });
        let Ok(first) = self.engine.find_start(store, start, now) else {
            self.block_cold(slot);
            return Ok(Reader::Blocked);
        };
        let key = self.engine.begin_group(store, name, first, now.us);
        let begun = self.engine.begun(key);
        if self.engine.reached(begun) {
            return Ok(Reader::Open(key));
        }
        self.block(slot, begun);
        Ok(Reader::Blocked)
    }

    fn open_bare(
        &mut self,
        slot: usize,
        store: QueueKey,
        source: Source<'_>,
        from: Option<From>,
        now: Now,
    ) -> Result<Reader, Error> {
        let queue = self.engine.queue(store);
        if queue.begun {
            return Ok(Reader::Open(store));
        }
        let is_absent = queue.is_absent();
        match from {
            None if is_absent => Err(self.only_groups(store, source)),
            None | Some(From::First) if !is_absent => {
                self.engine.begin_bare(store);
                Ok(Reader::Open(store))
            }
            from => {
                let start = from.unwrap_or(From::First);
                let Ok(first) = self.engine.find_start(store, start, now) else {
                    self.block_cold(slot);
                    return Ok(Reader::Blocked);
                };
                let need = self.engine.begin_bare_at(store, first, now.us);
                if self.engine.reached(need) {
                    return Ok(Reader::Open(store));
                }
                self.block(slot, need);
                Ok(Reader::Blocked)
            }
        }
    }

    /// The reader that a source names.
    ///
    /// # Errors
    /// `NOQUEUE`; `NOGROUP`, also for the bare name of a queue that only groups read.
    pub(super) fn existing_reader(&self, source: Source<'_>) -> Result<QueueKey, Error> {
        let store = self.existing(source.queue)?;
        let Some(group) = source.group else {
            return match self.engine.queue(store).is_absent() {
                true => Err(Error {
                    code: ErrorCode::NoGroup,
                    ..self.only_groups(store, source)
                }),
                false => Ok(store),
            };
        };
        let mut scratch = Vec::new();
        let name = group.decoded(&mut scratch);
        self.engine.find_group(store, name).ok_or_else(|| {
            let text = format!(
                "{} has no group {}; PULL or SUB {0}/{1} begins one, QGET {0} lists them",
                value::shown(source.queue.0),
                value::shown(group.0)
            );
            Error::new(ErrorCode::NoGroup, text)
        })
    }

    /// Are messages of this reader, or of any of its queue if it is the bare name, on their way to another shard?
    /// Then the connection waits until they are there.
    pub(super) fn is_leaving(&mut self, slot: usize, source: Source<'_>) -> bool {
        if self.engine.outbox.is_idle() && self.prepared_messages().next().is_none() {
            return false;
        }
        let Some(key) = self.known_reader(source) else {
            return false;
        };
        let readers = self.engine.readers(self.engine.store_of(key));
        let uids: Vec<_> = readers
            .iter()
            .map(|key| self.engine.queue(*key).uid)
            .collect();
        let mut prepared = self.prepared_messages();
        let is_leaving =
            self.engine.outbox.holds(&uids) || prepared.any(|(key, ..)| readers.contains(&key));
        drop(prepared);
        if is_leaving {
            self.block_cold(slot);
        }
        is_leaving
    }

    /// The reader that a source names, or the place where consumers wait for one.
    pub(super) fn known_reader(&self, source: Source<'_>) -> Option<QueueKey> {
        let mut scratch = Vec::new();
        let name = source.queue.decoded(&mut scratch);
        let store = self.engine.find_with_ghosts(name)?;
        let Some(group) = source.group else {
            return Some(store);
        };
        let name = group.decoded(&mut scratch);
        self.engine.find_group_with_ghosts(store, name)
    }

    /// The bare name means nothing where only groups read: they are named.
    fn only_groups(&self, store: QueueKey, source: Source<'_>) -> Error {
        const SHOWN: usize = 3;
        let groups = self.engine.queue(store).groups();
        let names: Vec<String> = groups
            .take(SHOWN)
            .map(|key| value::shown(&self.engine.queue(key).printed).to_string())
            .collect();
        let text = format!(
            "{} is read by groups ({}): name one, or begin to read by the bare name with PULL {0} \
             from=first or from=new",
            value::shown(source.queue.0),
            names.join(", ")
        );
        Error::new(ErrorCode::Conflict, text)
    }

    /// `SEEK`: a reader goes to another place.
    pub(super) fn seek(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        to: From,
        now: Now,
    ) -> Flow {
        let key = match self.existing_reader(source) {
            Ok(key) => key,
            Err(error) => return self.conclude(asker, Err(error)),
        };
        let store = self.engine.store_of(key);
        let Ok(first) = self.engine.find_start(store, to, now) else {
            self.block_cold(asker.slot);
            return Flow::Again;
        };
        for holder in self.engine.seek(key, first, now.us) {
            self.credit_returned(holder);
        }
        let need: Need = self.engine.need(Level::Disk);
        self.answer_when(asker, need, &Reply::Ok);
        Flow::Done
    }
}
