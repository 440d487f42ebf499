//! `QSET dead=`: does the row of dead-letter queues lead back, over whatever shards?
//!
//! The shard of the queue follows the row and asks the others for the next name. Before it begins it notes what the
//! queue is going to say, and what is asked is answered with that too: of two such commands at the same time, each
//! of which would close the circle with the other, at least one finds the other's note and is refused.

use std::collections::{BTreeMap, BTreeSet};

use super::Letter;
use crate::broker::id::Level;
use crate::broker::reply::{Error, ErrorCode};
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::shard::Shard;
use crate::shard::session::Asker;

/// Queues that are followed at most.
const FOLLOWED_MAX: usize = 64;

/// A row of dead-letter queues that is being followed.
#[derive(Debug)]
struct Walk {
    /// The queue that is to have a new one, and that one.
    name: Box<[u8]>,
    target: Box<[u8]>,
    /// To be looked at.
    open: Vec<Box<[u8]>>,
    seen: BTreeSet<Box<[u8]>>,
    /// Answers that are missing.
    missing: usize,
    leads_back: bool,
    /// At which level the new one stores, if it is there.
    level: Option<Level>,
}

/// Rows that are being followed.
#[derive(Debug, Default)]
pub(super) struct Walks {
    last: u64,
    own: BTreeMap<u64, Walk>,
}

/// What came of a `QSET dead=`.
#[derive(Debug)]
pub(in crate::shard) enum Followed {
    /// It may be set.
    Free,
    /// Others are asked.
    Waits,
    /// It may not.
    Refused(Error),
}

impl<S: Storage> Shard<S> {
    /// Follows the row of dead-letter queues that begins with a new one, `target`, for the queue `name` (octets),
    /// which stores at `level`. It is asked again until that was done.
    pub(in crate::shard) fn follow_dead(
        &mut self,
        asker: Asker<'_>,
        name: &[u8],
        target: &[u8],
        level: Level,
    ) -> Followed {
        if self.peers.is_none() {
            return Followed::Free;
        }
        let mut progress = self.take_progress(asker);
        if progress.walk == 0 {
            let walks = &mut self.mail().walks;
            walks.last += 1;
            progress.walk = walks.last;
            let walk = Walk {
                name: name.into(),
                target: target.into(),
                open: vec![target.into()],
                seen: BTreeSet::new(),
                missing: 0,
                leads_back: false,
                level: None,
            };
            walks.own.insert(progress.walk, walk);
            self.go_on_walking(progress.walk);
        }
        let walks = &mut self.mail().walks;
        let walk = walks.own.get(&progress.walk);
        if walk.is_some_and(|walk| walk.missing > 0) {
            _ = self.pause_job(asker, progress, true);
            return Followed::Waits;
        }
        let Some(walk) = walks.own.remove(&progress.walk) else {
            return Followed::Free;
        };
        if walk.leads_back {
            let text =
                "dead= would lead back to this queue; a cycle of dead-letter queues never ends";
            return Followed::Refused(Error::new(ErrorCode::Conflict, text));
        }
        match walk.level {
            Some(stored) if stored < level => Followed::Refused(weaker(stored, level)),
            _ => Followed::Free,
        }
    }

    /// Whoever has asked is gone.
    pub(in crate::shard) fn forget_walk(&mut self, walk: u64) {
        if let Some(peers) = &mut self.peers {
            peers.walks.own.remove(&walk);
        }
    }

    fn go_on_walking(&mut self, number: u64) {
        while let Some(walk) = self.mail().walks.own.get_mut(&number) {
            let Some(next) = walk.open.pop() else { return };
            if next == walk.name {
                walk.leads_back = !planted(Fault::DeadCircleMade);
                continue;
            }
            if walk.seen.len() >= FOLLOWED_MAX || !walk.seen.insert(next.clone()) {
                continue;
            }
            match self.engine.elsewhere(&next) {
                Some(to) => {
                    let walk = number;
                    let letter = Letter::AskDead { walk, name: next };
                    self.mail().post(to, letter);
                    let walk = self.mail().walks.own.get_mut(&number);
                    walk.expect("it was just looked at").missing += 1;
                }
                None => {
                    let (level, names) = self.dead_of(&next);
                    self.followed(number, &next, level, names);
                }
            }
        }
    }

    /// Where the dead letters of a queue here go, or are going to go, and at which level it stores if it is there.
    pub(super) fn dead_of(&mut self, name: &[u8]) -> (Option<Level>, Vec<Box<[u8]>>) {
        let queue = self.engine.find(name).map(|key| self.engine.queue(key));
        let level = queue.map(|queue| queue.settings.durable);
        let mut names: Vec<Box<[u8]>> = queue
            .and_then(|queue| queue.dead_name())
            .into_iter()
            .collect();
        let noted = self.mail().walks.own.values();
        let noted = noted.filter(|walk| *walk.name == *name);
        names.extend(noted.map(|walk| walk.target.clone()));
        (level, names)
    }

    fn followed(&mut self, number: u64, name: &[u8], level: Option<Level>, names: Vec<Box<[u8]>>) {
        if let Some(walk) = self.mail().walks.own.get_mut(&number) {
            if *walk.target == *name {
                walk.level = level;
            }
            walk.open.extend(names);
        }
    }

    /// Another shard tells where the dead letters of a queue go.
    pub(super) fn dead_told(
        &mut self,
        number: u64,
        name: &[u8],
        level: Option<Level>,
        names: Vec<Box<[u8]>>,
    ) {
        self.followed(number, name, level, names);
        if let Some(walk) = self.mail().walks.own.get_mut(&number) {
            walk.missing -= 1;
        }
        self.go_on_walking(number);
        // The command looks again.
        self.engine.outbox.move_on();
        self.housekeeping.look_again();
    }
}

/// A dead-letter queue is not to store at less than its queue.
pub(in crate::shard) fn weaker(stored: Level, level: Level) -> Error {
    let text = format!(
        "the dead-letter queue stores at {}, less than this one; QSET it durable={} first",
        stored.setting(),
        level.setting()
    );
    Error::new(ErrorCode::Conflict, text)
}
