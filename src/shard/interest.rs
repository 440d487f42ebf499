//! PULL, SUB, CREDIT, UNSUB and CANCEL: what a connection wants to receive, and under which tag.

use super::conn::{Life, Need};
use super::drain::draining;
use super::groups::Reader;
use super::session::{Asker, Flow};
use super::waiters::{Taking, Terms};
use super::{Now, Shard};
use crate::broker::command::{From, Source, Typed};
use crate::broker::pattern::Pattern;
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::log::disk::Storage;
use crate::protocol::text::value;

impl<S: Storage> Shard<S> {
    #[inline]
    pub(super) fn run_pull(
        &mut self,
        asker: Asker<'_>,
        sources: crate::broker::command::Sources<'_>,
        options: &crate::broker::command::PullOptions,
        taking: Taking<'_>,
        now: Now,
    ) -> Flow {
        let slot = asker.slot;
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        if self.is_draining() {
            return self.conclude(asker, Err(draining()));
        }
        if let Err(error) = self.may_wait(asker) {
            return self.conclude(asker, Err(error));
        }
        let at = self.key(slot);
        let tag = asker.tag.unwrap_or_default();
        let mut keys = std::mem::take(&mut self.keys);
        keys.clear();
        // A connection that stays on one queue needs no look at what it typed.
        match self.last_target(slot, Typed(sources.0)) {
            Some(key) if self.engine.queue(key).begun => keys.push(key),
            _ => match self.open_readers(slot, sources, options.from, &mut keys, now) {
                Ok(true) => {}
                refused => {
                    self.keys = keys;
                    return match refused {
                        Err(error) => self.conclude(asker, Err(error)),
                        _ => Flow::Again,
                    };
                }
            },
        }
        for key in &keys {
            if self.engine.queue(*key).uid != self.conns[slot].rare.pulled.last {
                self.note_puller(slot, *key);
            }
        }
        self.pull(at, tag, &keys, options, taking, now);
        self.keys = keys;
        Flow::Done
    }

    /// Every reader that a pull names; false if the connection waits for one to begin.
    #[cold]
    fn open_readers(
        &mut self,
        slot: usize,
        sources: crate::broker::command::Sources<'_>,
        from: Option<From>,
        keys: &mut Vec<QueueKey>,
        now: Now,
    ) -> Result<bool, Error> {
        keys.clear();
        for source in sources.iter() {
            match self.open_reader(slot, source, from, now)? {
                Reader::Open(key) if keys.contains(&key) => {}
                Reader::Open(key) => keys.push(key),
                Reader::Blocked => return Ok(false),
            }
        }
        Ok(true)
    }

    /// May this connection wait for messages under that tag?
    pub(super) fn may_wait(&self, asker: Asker<'_>) -> Result<(), Error> {
        let conn = &self.conns[asker.slot];
        match asker.tag {
            None if conn.has_untagged_subscription() => Err(untagged_in_use()),
            _ => Ok(()),
        }
    }

    pub(super) fn run_subscribe(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        credit: Option<u32>,
        from: Option<From>,
        terms: Terms,
        now: Now,
    ) -> Flow {
        if let Err(error) = self.may_subscribe(asker, source) {
            return self.conclude(asker, Err(error));
        }
        let at = self.key(asker.slot);
        let queue = match self.open_reader(asker.slot, source, from, now) {
            Ok(Reader::Open(key)) => key,
            Ok(Reader::Blocked) => return Flow::Again,
            Err(error) => return self.conclude(asker, Err(error)),
        };
        self.answer(
            Asker {
                quiet: false,
                ..asker
            },
            &Reply::Ok,
        );
        self.subscribe(at, asker.tag.unwrap_or_default(), queue, credit, terms);
        Flow::Done
    }

    fn may_subscribe(&mut self, asker: Asker<'_>, source: Source<'_>) -> Result<(), Error> {
        if let Some(tag) = asker.tag
            && self.conns[asker.slot].tagged(tag).is_none()
            && self.conns[asker.slot].uses(tag)
        {
            return Err(tag_in_use(tag));
        }
        if let Some(tag) = asker.tag
            && let Some(wait) = self.conns[asker.slot].tagged(tag)
        {
            let waiter = wait.waiter;
            let known = self.known_reader(source);
            // Its own tag is what an update of a subscription is expected to have.
            let update = self
                .waiters
                .subscription(waiter)
                .is_some_and(|subscription| Some(subscription.queue) == known);
            if !update {
                return Err(tag_in_use(tag));
            }
        }
        if self.conns[asker.slot].life != Life::Open {
            return Err(Error::new(
                ErrorCode::Conflict,
                "the connection is closing; a subscription would end at once",
            ));
        }
        Ok(())
    }

    fn own_subscription(
        &mut self,
        slot: usize,
        source: Source<'_>,
    ) -> Result<crate::broker::queue::WaiterKey, Error> {
        let at = self.key(slot);
        self.known_reader(source)
            .and_then(|queue| self.find_subscription(at, queue))
            .ok_or_else(|| {
                let group = source
                    .group
                    .map(|group| format!("/{}", value::shown(group.0)));
                let text = format!(
                    "this connection has no SUB on {}{}; SUB begins one",
                    value::shown(source.queue.0),
                    group.unwrap_or_default()
                );
                Error::new(ErrorCode::Conflict, text)
            })
    }

    pub(super) fn set_credit(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
        credit: u32,
    ) -> Result<(), Error> {
        let key = self.own_subscription(asker.slot, source)?;
        if let Some(subscription) = self.waiters.subscription(key) {
            subscription.credit = credit;
        }
        self.line_up(key);
        self.answer_when(asker, Need::NOW, &Reply::Ok);
        Ok(())
    }

    pub(super) fn run_unsubscribe(
        &mut self,
        asker: Asker<'_>,
        source: Source<'_>,
    ) -> Result<(), Error> {
        match self.own_subscription(asker.slot, source) {
            Ok(key) => self.unsubscribe(key),
            // A name is a pattern too.
            Err(error) => {
                let pattern = Pattern::new(source.queue.0).ok();
                let is_live = source.group.is_none()
                    && pattern.is_some_and(|pattern| self.unsubscribe_live(asker.slot, &pattern));
                if !is_live {
                    return Err(error);
                }
            }
        }
        self.answer_when(asker, Need::NOW, &Reply::Ok);
        Ok(())
    }

    pub(super) fn cancel(&mut self, asker: Asker<'_>, tag: &[u8]) {
        let waiting = self.conns[asker.slot]
            .tagged(tag)
            .filter(|wait| !wait.subscription)
            .map(|wait| wait.waiter);
        if let Some(waiter) = waiting {
            self.finish_pull(waiter, 0);
        }
        let ended = waiting.is_some() || self.cancel_request(asker.slot, tag);
        self.answer(
            asker,
            &Reply::Count {
                count: u64::from(ended),
                stale: b"",
            },
        );
    }
}

#[cold]
pub(super) fn untagged_in_use() -> Error {
    Error::new(
        ErrorCode::Conflict,
        "this connection has an untagged SUB, whose MSG lines could not be told apart; tag one of them, as in @1 PULL",
    )
}

pub(super) fn tag_in_use(tag: &[u8]) -> Error {
    let text = format!(
        "@{0} is in use; end what it names with CANCEL or UNSUB, or take another tag",
        String::from_utf8_lossy(tag)
    );
    Error::new(ErrorCode::Conflict, text)
}
