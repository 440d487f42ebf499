//! What most connections never have. It is made when the first of it is written, so that a connection that does
//! nothing, or publishes plainly, pays a word for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Deref;

use bytes::Bytes;

use super::{QuietCount, Wait};
use crate::broker::id::QueueUid;
use crate::broker::pattern::Pattern;
use crate::broker::queue::WaiterKey;
use crate::shard::jobs::Progress;

/// What a connection has that consumes, asks, publishes quietly, has a name, or has a long command under way.
#[derive(Debug)]
pub struct Rare {
    /// What it calls itself.
    pub name: Vec<u8>,
    /// The body of a publish that could not be run yet, taken out of the input.
    pub kept_body: Option<Bytes>,
    /// How far a command that takes several turns has got.
    pub progress: Option<Progress>,
    /// Leases that outlive it once the reply that ends at this stream offset was sent: (end, serial).
    pub holding: VecDeque<(u64, u64)>,
    /// Its waiting pulls and subscriptions.
    pub waits: Vec<Wait>,
    /// Its tagged requests that wait for an answer, by their tags without the `@`.
    pub requests: BTreeMap<Box<[u8]>, u64>,
    /// Its live subscriptions by their patterns.
    pub live: BTreeMap<Pattern, u32>,
    /// Tags of its live subscriptions, without the `@`.
    pub live_tags: BTreeSet<Box<[u8]>>,
    /// Its live subscriptions miss what comes, until it has read half of its output.
    pub is_lagging: bool,
    /// Queues that it has pulled from.
    pub pulled: Pulled,
    /// Quiet publishes since the last `SYNC`.
    pub quiet: QuietCount,
}

/// Queues that a connection has pulled from, a tree because it may be many; deleted ones may be among them.
#[derive(Debug)]
pub struct Pulled {
    queues: BTreeSet<QueueUid>,
    /// The one pulled from last.
    pub last: QueueUid,
    /// Deleted ones are looked for when there are so many.
    sweep_at: usize,
}

/// Fewer are not worth looking for deleted ones.
const SWEEP_MIN: usize = 16;

impl Pulled {
    const NONE: Pulled = Pulled {
        queues: BTreeSet::new(),
        last: QueueUid(0),
        sweep_at: SWEEP_MIN,
    };

    /// Adds one; false if it was there. Those that do not exist any more are dropped now and then.
    pub fn add(&mut self, uid: QueueUid, exists: impl Fn(QueueUid) -> bool) -> bool {
        self.last = uid;
        if !self.queues.insert(uid) {
            return false;
        }
        if self.queues.len() > self.sweep_at {
            self.queues.retain(|uid| exists(*uid));
            self.sweep_at = (self.queues.len() * 2).max(SWEEP_MIN);
        }
        true
    }

    /// All, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = QueueUid> {
        self.queues.iter().copied()
    }

    /// Memory held, bytes: about that of a tree whose nodes are two thirds full.
    fn memory(&self) -> usize {
        self.queues.len() * size_of::<QueueUid>() * 2
    }
}

/// A connection that has none of it.
static NONE: Rare = Rare::NONE;

impl Rare {
    const NONE: Rare = Rare {
        name: Vec::new(),
        kept_body: None,
        progress: None,
        holding: VecDeque::new(),
        waits: Vec::new(),
        requests: BTreeMap::new(),
        live: BTreeMap::new(),
        live_tags: BTreeSet::new(),
        is_lagging: false,
        pulled: Pulled::NONE,
        quiet: QuietCount::NONE,
    };
}

/// A [`Rare`] that owns memory only once something was written to it; until then it reads as one without anything.
#[derive(Debug, Default)]
pub struct IfAny(Option<Box<Rare>>);

impl IfAny {
    /// To write something that was not there; makes it.
    #[inline]
    pub fn make(&mut self) -> &mut Rare {
        self.0.get_or_insert_with(|| Box::new(Rare::NONE))
    }

    /// To change or take what is there; `None` if nothing is.
    #[inline]
    pub fn any(&mut self) -> Option<&mut Rare> {
        self.0.as_deref_mut()
    }

    /// What the connection calls itself from now on.
    pub fn set_name(&mut self, name: &[u8]) {
        if self.name != name {
            self.make().name = name.to_vec();
        }
    }

    /// Keeps the body of a publish that could not be run yet, if that was taken out of the input.
    pub fn keep_body(&mut self, body: Option<Bytes>) {
        if body.is_some() {
            self.make().kept_body = body;
        }
    }

    /// That pull or subscription waits no more.
    pub fn end_wait(&mut self, waiter: WaiterKey) {
        if let Some(rare) = self.any() {
            rare.waits.retain(|wait| wait.waiter != waiter);
        }
    }

    /// Takes out every wait.
    pub fn take_waits(&mut self) -> Vec<Wait> {
        let waits = self.any().map(|rare| &mut rare.waits);
        waits.map(std::mem::take).unwrap_or_default()
    }

    /// Takes out every tagged request.
    pub fn take_requests(&mut self) -> BTreeMap<Box<[u8]>, u64> {
        let requests = self.any().map(|rare| &mut rare.requests);
        requests.map(std::mem::take).unwrap_or_default()
    }

    /// Takes the count of quiet publishes.
    pub fn take_quiet(&mut self) -> QuietCount {
        let quiet = self.any().map(|rare| &mut rare.quiet);
        quiet.map(std::mem::take).unwrap_or_default()
    }

    /// Takes the body of a publish that could not be run yet.
    #[inline]
    pub fn take_kept_body(&mut self) -> Option<Bytes> {
        self.any()?.kept_body.take()
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let memory = |rare: &Rare| size_of::<Rare>() + rare.pulled.memory();
        self.0.as_deref().map_or(0, memory)
    }
}

impl Deref for IfAny {
    type Target = Rare;

    #[inline]
    fn deref(&self) -> &Rare {
        self.0.as_deref().unwrap_or(&NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pulled_from_is_known_once_and_deleted_queues_are_dropped() {
        let mut pulled = Pulled::NONE;
        for uid in (1..=1_000).rev() {
            assert!(pulled.add(QueueUid(uid), |_| true));
            assert!(!pulled.add(QueueUid(uid), |_| true));
            assert_eq!(pulled.last, QueueUid(uid));
        }
        assert!(pulled.iter().eq((1..=1_000).map(QueueUid)));
        for uid in 1_001..10_000 {
            // Only the newest is there at any time.
            assert!(pulled.add(QueueUid(uid), |other| other.0 == uid));
        }
        assert!(pulled.iter().count() <= SWEEP_MIN);
        assert!(pulled.iter().any(|uid| uid == QueueUid(9_999)));
    }

    #[test]
    fn nothing_is_owned_until_something_is_written() {
        let mut rare = IfAny::default();
        rare.end_wait(WaiterKey(1));
        rare.keep_body(None);
        rare.set_name(b"");
        let _ = (rare.take_waits(), rare.take_requests(), rare.take_quiet());
        assert!(rare.take_kept_body().is_none() && rare.name.is_empty());
        assert_eq!(rare.memory(), 0);
        rare.set_name(b"worker");
        assert_eq!(rare.name, b"worker");
        assert!(rare.memory() > 0);
    }
}
