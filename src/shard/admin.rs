//! Commands about queues: QSET, QGET, QLS, QDEL.

use super::conn::Need;
use super::peers::{Followed, weaker};
use super::session::Asker;
use super::{Now, Shard};
use crate::broker::command::{Source, Typed};
use crate::broker::id::Level;
use crate::broker::pattern::Pattern;
use crate::broker::queue::{Queue, QueueKey};
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::broker::settings::SettingsPatch;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::text::{encode, settings};

/// Dead-letter queues followed when looking for a cycle.
const CHAIN_MAX: usize = 64;

/// What is counted of one reader of a queue.
#[derive(Clone, Copy, Debug)]
struct ReaderCounts {
    ready: u64,
    leased: u64,
    delayed: u64,
    locked: u64,
    dead: u64,
    consumers: u64,
    waiting: u64,
    oldest_ms: u64,
}

impl<S: Storage> Shard<S> {
    /// May `QSET` give a queue that dead-letter queue, as far as other shards have to do with it?
    pub(super) fn may_set_dead(
        &mut self,
        asker: Asker<'_>,
        name: Typed<'_>,
        patch: &SettingsPatch,
    ) -> Followed {
        let Some(dead) = patch.dead.as_deref().filter(|dead| !dead.is_empty()) else {
            return Followed::Free;
        };
        let mut scratch = Vec::new();
        let name = name.decoded(&mut scratch);
        let found = self.engine.find(name);
        if let Err(error) = self.check_patch(name, found, patch) {
            let progress = self.take_progress(asker);
            self.forget_walk(progress.walk);
            return Followed::Refused(error);
        }
        let before = match found {
            Some(key) => self.engine.queue(key).settings.durable,
            None => self.engine.defaults.durable,
        };
        self.follow_dead(asker, name, dead, patch.durable.unwrap_or(before))
    }

    /// `QSET`: makes a queue or changes it, at once.
    pub(super) fn queue_set(
        &mut self,
        asker: Asker<'_>,
        name: Typed<'_>,
        patch: &SettingsPatch,
        now: Now,
    ) -> Result<(), Error> {
        let mut scratch = Vec::new();
        let name = name.decoded(&mut scratch);
        let found = self.engine.find(name);
        self.check_patch(name, found, patch)?;
        let word = match found {
            Some(key) => {
                let queue = self.engine.queue_mut(key);
                let before = queue.settings.clone();
                queue.settings.apply(patch);
                self.engine.settings_changed(key, &before, now.us);
                self.engine.log_definition(key);
                "updated"
            }
            None => {
                let mut settings = self.engine.defaults.clone();
                settings.apply(patch);
                self.engine.create(name, settings);
                "created"
            }
        };
        let mut need = self.engine.need(Level::Disk);
        if planted(Fault::DefinitionNotSynced) {
            need = Need::NOW;
            self.engine.sync_wanted = false;
        }
        self.answer_when(asker, need, &Reply::Word(word));
        Ok(())
    }

    /// Refuses what cannot be, before anything is changed.
    fn check_patch(
        &self,
        name: &[u8],
        found: Option<QueueKey>,
        patch: &SettingsPatch,
    ) -> Result<(), Error> {
        let conflict = |text: String| Err(Error::new(ErrorCode::Conflict, text));
        let queue = found.map(|key| self.engine.queue(key));
        let before = queue.map_or(self.engine.defaults.durable, |queue| queue.settings.durable);
        let durable = patch.durable.unwrap_or(before);
        if self.engine.log.is_none() && durable != Level::None {
            return conflict(
                "the broker runs with --memory and stores nothing: durable=none is all there is"
                    .into(),
            );
        }
        if let Some(queue) = queue {
            let changes_kind = (before == Level::None) != (durable == Level::None);
            if changes_kind && queue.index.live() > 0 {
                let count = queue.index.live();
                return conflict(format!(
                    "durable= goes to or from none only while the queue is empty, and it holds {count}; PURGE it or let it drain"
                ));
            }
        }
        let mut dead = match (&patch.dead, queue) {
            (Some(dead), _) => Some(dead.clone()).filter(|dead| !dead.is_empty()),
            (None, Some(queue)) => queue.dead_name(),
            (None, None) => None,
        };
        if let Some(target) = dead.as_deref().and_then(|dead| self.engine.find(dead)) {
            let target = self.engine.queue(target);
            if target.settings.durable < durable && patch.dead.is_some() {
                return Err(weaker(target.settings.durable, durable));
            }
        }
        if patch.dead.is_some() {
            for _ in 0..CHAIN_MAX {
                match dead {
                    Some(next) if *next == *name => {
                        return conflict("dead= would lead back to this queue; a cycle of dead-letter queues never ends".into());
                    }
                    Some(next) => {
                        dead = self
                            .engine
                            .find(&next)
                            .and_then(|key| self.engine.queue(key).dead_name())
                    }
                    None => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// `QGET`: counts and settings, a line each.
    pub(super) fn queue_get(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        now: Now,
    ) -> Result<(), Error> {
        let key = self.described(source)?;
        let text = self.describe_queue(key, now);
        self.answer(asker, &Reply::Data(&text));
        Ok(())
    }

    /// The queue or group that is to be described: a bare name means the queue with all its readers.
    pub(super) fn described(&self, source: Source<'_>) -> Result<QueueKey, Error> {
        match source.group {
            None => self.existing(source.queue),
            Some(_) => self.existing_reader(source),
        }
    }

    /// The text of `QGET`.
    pub(super) fn describe_queue(&mut self, key: QueueKey, now: Now) -> Vec<u8> {
        let readers = match self.engine.queue(key).group {
            None => self.engine.readers(key),
            Some(_) => vec![key],
        };
        let counts: Vec<_> = readers
            .iter()
            .map(|reader| self.reader_counts(*reader, now))
            .collect();
        let queue = self.engine.queue(key);
        let bytes = match queue.group {
            None => queue.index.bytes(),
            Some(_) => queue.unsettled_bytes(),
        };
        let sum = |of: fn(&ReaderCounts) -> u64| counts.iter().map(of).sum::<u64>();
        let oldest_ms = counts.iter().map(|counts| counts.oldest_ms).max();
        let mut text = Vec::new();
        let lines = [
            ("ready", sum(|counts| counts.ready)),
            ("leased", sum(|counts| counts.leased)),
            ("delayed", sum(|counts| counts.delayed)),
            ("dead", sum(|counts| counts.dead)),
            ("bytes", bytes),
            ("consumers", sum(|counts| counts.consumers)),
            ("waiting", sum(|counts| counts.waiting)),
            ("oldest_ms", oldest_ms.unwrap_or(0)),
        ];
        let is_keyed = readers.iter().any(|key| self.engine.queue(*key).is_keyed());
        for (name, value) in lines {
            text.extend_from_slice(format!("{name}={value}\n").as_bytes());
            if name == "delayed" && is_keyed {
                let locked = sum(|counts| counts.locked);
                text.extend_from_slice(format!("locked={locked}\n").as_bytes());
            }
        }
        if queue.group.is_none() {
            self.describe_schedules(&mut text, key, now);
            self.describe_readers(&mut text, key, &readers, &counts);
        }
        let dead = queue.dead_name().unwrap_or_default();
        settings::write(&mut text, &queue.settings, &dead, "set.", b'\n');
        text
    }

    /// The schedules of a queue, and when the system's clock will show that each is due.
    fn describe_schedules(&self, text: &mut Vec<u8>, key: QueueKey, now: Now) {
        for (number, planned) in self.engine.schedules.of(self.engine.queue(key).uid) {
            text.extend_from_slice(b"schedule.");
            encode::typed(text, &planned.schedule.name);
            text.extend_from_slice(format!("=id:{number},every:").as_bytes());
            settings::write_duration(text, planned.schedule.every_us);
            // The two clocks are not read in the same microsecond.
            let next_us = planned
                .next_us
                .saturating_add(now.wall_us)
                .saturating_sub(now.us);
            let next_ms = next_us.saturating_add(500) / 1000;
            text.extend_from_slice(format!(",next_ms:{next_ms}\n").as_bytes());
        }
    }

    /// What of `QGET` is said of a queue and not of a group.
    fn describe_readers(
        &self,
        text: &mut Vec<u8>,
        key: QueueKey,
        readers: &[QueueKey],
        counts: &[ReaderCounts],
    ) {
        let queue = self.engine.queue(key);
        let bindings = queue.bindings.iter().map(Pattern::printed);
        text.extend_from_slice(b"bindings=");
        text.extend_from_slice(&bindings.collect::<Vec<_>>().join(&b','));
        text.push(b'\n');
        let Some(sharing) = &queue.sharing else {
            return;
        };
        let lines = [
            ("stored", queue.index.live()),
            ("retained", sharing.retained()),
            ("retained_bytes", sharing.retained_bytes()),
            ("groups", sharing.groups.len() as u64),
        ];
        for (name, value) in lines {
            text.extend_from_slice(format!("{name}={value}\n").as_bytes());
        }
        if sharing.groups.is_empty() {
            return;
        }
        for (reader, counts) in readers.iter().zip(counts) {
            let reader = self.engine.queue(*reader);
            let mut prefix = b"bare.".to_vec();
            if let Some(group) = &reader.group {
                prefix = b"group.".to_vec();
                encode::typed(&mut prefix, &group.name);
                prefix.push(b'.');
            }
            let lines = [
                ("unsettled", reader.unsettled()),
                ("ready", counts.ready),
                ("leased", counts.leased),
                ("delayed", counts.delayed),
                ("dead", counts.dead),
                ("consumers", counts.consumers),
                ("oldest_ms", counts.oldest_ms),
            ];
            for (name, value) in lines {
                text.extend_from_slice(&prefix);
                text.extend_from_slice(format!("{name}={value}\n").as_bytes());
            }
        }
    }

    fn reader_counts(&mut self, key: QueueKey, now: Now) -> ReaderCounts {
        let oldest_ms = self.oldest_ms(key, now);
        let queue = self.engine.queue(key);
        ReaderCounts {
            ready: queue.ready(),
            leased: queue.leased(),
            delayed: queue.delayed(),
            locked: queue.locked(),
            dead: queue.dead_letters(),
            consumers: u64::from(queue.consumers),
            waiting: self.waiting_pulls(queue),
            oldest_ms,
        }
    }

    fn waiting_pulls(&self, queue: &Queue) -> u64 {
        queue
            .waiters
            .iter()
            .filter(|key| self.waiters.is_pull(**key))
            .count() as u64
    }

    /// Age of the oldest message that is ready, milliseconds; 0 if there is none or it is not in memory.
    pub(super) fn oldest_ms(&mut self, key: QueueKey, now: Now) -> u64 {
        let Some(id) = self.engine.queue_mut(key).oldest_waiting(0) else {
            return 0;
        };
        let place = self.engine.place_of(key, id);
        let Some(Some(Ok(message))) = place.map(|place| self.engine.stored(key, place)) else {
            return 0;
        };
        (now.us / 1000).saturating_sub(message.time_ms)
    }

    /// `QLS`: names in order, with counts.
    pub(super) fn queue_list(
        &mut self,
        asker: Asker<'_>,
        pattern: Option<&[u8]>,
    ) -> Result<(), Error> {
        let pattern = pattern.map(Pattern::new).transpose()?;
        let wanted = |queue: &&Queue| {
            queue.exists
                && pattern
                    .as_ref()
                    .is_none_or(|pattern| pattern.matches(&queue.name))
        };
        let mut queues: Vec<&Queue> = self
            .engine
            .queues
            .iter()
            .map(|(_, queue)| queue)
            .filter(wanted)
            .collect();
        // A group has its queue's name, and stands behind it.
        let group = |queue: &Queue| queue.group.as_ref().map(|group| group.name.clone());
        queues.sort_unstable_by(|a, b| a.name.cmp(&b.name).then_with(|| group(a).cmp(&group(b))));
        let mut text = Vec::new();
        for queue in queues {
            text.extend_from_slice(&queue.printed);
            let counts = format!(
                " ready={} leased={} delayed={} dead={}\n",
                queue.ready(),
                queue.leased(),
                queue.delayed(),
                queue.dead_letters()
            );
            text.extend_from_slice(counts.as_bytes());
            if queue.is_keyed() {
                text.pop();
                text.extend_from_slice(format!(" locked={}\n", queue.locked()).as_bytes());
            }
        }
        self.answer(asker, &Reply::Data(&text));
        Ok(())
    }

    /// `QDEL`: the queue with all that is in it, or a group; consumers that wait stay for the name.
    pub(super) fn queue_delete(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
    ) -> Result<(), Error> {
        let key = self.described(source)?;
        self.drop_queue(key);
        let need: Need = self.engine.need(Level::Disk);
        self.answer_when(asker, need, &Reply::Ok);
        Ok(())
    }

    /// Deletes a queue or a group.
    pub(super) fn drop_queue(&mut self, key: QueueKey) {
        self.cancel_consumers_of(key);
        let uid = self.engine.queue(key).uid;
        let is_group = self.engine.queue(key).group.is_some();
        let readers = self.engine.readers(self.engine.store_of(key));
        match is_group {
            true => self.refuse_stream_readers(&[key]),
            false => self.refuse_stream_readers(&readers),
        }
        let is_awaited = readers
            .iter()
            .any(|key| self.engine.queue(*key).consumers > 0);
        let holders = match is_group {
            true => self.engine.delete_group(key, false),
            false => self.engine.delete_queue(key, false),
        };
        for holder in holders {
            self.credit_returned(holder);
        }
        if !is_awaited && !is_group {
            self.fail_requests_of(uid);
        }
    }
}
