//! The sequencer: decides what a command does, logs the outcome, and applies it.
//!
//! *Admit* runs here at once: it sees leases, limits and time, reserves ids, and appends the
//! outcome to the turn's record. *Apply* is what [`Engine::apply_reached`] does when the record
//! has reached the queue's level: messages become visible. A `none` queue does both in one step.
//! Knows queues and the log; never a connection.

mod bindings;
mod cast;
mod census;
mod definitions;
mod deliver;
mod deliver_run;
mod exchanges;
mod groups;
mod moves;
mod outbox;
mod part;
mod parts;
mod publish;
mod publish_run;
mod request;
mod routes;
mod schedules;
mod settle;
mod settle_run;
mod timers;
mod transaction;

pub use bindings::Receiver;
pub use definitions::DEFINE_BEGUN;
pub use deliver::{Damaged, Next, Taken};
pub use exchanges::{Burial, Reached};
pub use outbox::{Carried, Out, Outbox, far, far_origin};
pub use part::{How, Part, Settle};
pub use parts::Ordered;
pub use publish::{Receipt, Refused, key_hash, once_hash};
pub use routes::RouteNews;
pub use settle::{Death, Return};
pub use transaction::{Bodies, Plan};

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use slab::Slab;

use super::conn::{Need, Unseen};
use super::times::Times;
use crate::broker::arena::{ChunkPool, PushRun};
use crate::broker::exchanges::Exchanges;
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::index::{Index, Slot};
use crate::broker::lease::Leases;
use crate::broker::name::Name;
use crate::broker::queue::{Counters, Queue, QueueKey};
use crate::broker::schedule::Schedules;
use crate::broker::settings::Settings;
use crate::broker::topics::Topics;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{BlockSlot, Log, LogIndex};

/// The slots on the disk that an index needs no more can be used again.
#[inline]
fn free_slots<S: Storage>(log: &mut Log<S>, index: &mut Index) {
    if index.has_freed_slots() {
        for slot in index.take_freed_slots() {
            log.free_slot(BlockSlot(slot.0 as u32));
        }
    }
}

/// Messages of a queue below `upto` become visible when the record has reached the level.
#[derive(Debug)]
struct Reveal {
    index: LogIndex,
    queue: QueueKey,
    uid: QueueUid,
    upto: MessageId,
}

/// A message on its way to another queue whose body is being read from the disk.
#[derive(Debug)]
struct Moving {
    queue: QueueKey,
    uid: QueueUid,
    death: Death,
}

/// Queues, leases and the log.
pub struct Engine<S: Storage> {
    /// Every queue, deleted ones that are still waited for included.
    pub queues: Slab<Queue>,
    names: HashMap<Name, QueueKey, SeedableRandomState>,
    by_uid: HashMap<QueueUid, QueueKey, foldhash::fast::FixedState>,
    /// The next queue's identity.
    pub next_uid: u64,
    /// Who takes what is cast.
    pub topics: Topics<Receiver>,
    /// Where goes what is published to exchanges.
    pub exchanges: Exchanges,
    /// All shards' exchanges and bindings are there, if there are several.
    pub has_routes: bool,
    /// Changes of them that other shards are to be told.
    pub route_news: Vec<RouteNews>,
    /// What is published again and again.
    pub schedules: Schedules,
    /// What queues and groups have counted that are deleted.
    pub gone: Counters,
    /// Who has what.
    pub leases: Leases,
    /// `None` with `--memory`.
    pub log: Option<Log<S>>,
    /// Memory of `none` queues.
    pub pool: ChunkPool,
    /// Where a run of publishes lies; empty between two of them.
    places: PushRun,
    /// Settings of queues created without any.
    pub defaults: Settings,
    /// Which run of the broker this is.
    pub incarnation: u64,
    /// Keys the hashes of clients' ids; constant for a data directory.
    pub once_key: u64,
    /// No memory for new messages.
    pub over_budget: bool,
    /// Something of this turn needs a sync.
    pub sync_wanted: bool,
    /// How long messages wait and are worked on.
    pub times: Times,
    /// When what was moved to other queues last can be seen there.
    pub moved: Unseen,
    /// Queues with ready messages and waiting consumers.
    pub runnable: VecDeque<QueueKey>,
    /// Queues that published in this turn and are not visible at once.
    touched: Vec<QueueKey>,
    reveals_os: VecDeque<Reveal>,
    reveals_disk: VecDeque<Reveal>,
    timers: BinaryHeap<Reverse<(u64, QueueKey, QueueUid)>>,
    moving: Vec<Moving>,
    /// What the transaction under way moves, read ahead.
    at_hand: Bodies,
    /// How many shards there are, and which this is.
    pub shards: (u32, u32),
    /// What goes to other shards, and has come from them.
    pub outbox: Outbox,
    /// Indexes of deleted queues whose messages' storage is still to be given back.
    pub doomed: Vec<Index>,
    /// Slots of index blocks that replay found deleted, until the log can take them back.
    pub unused_slots: Vec<Slot>,
    /// Queues with messages that no reader wants.
    to_free: Vec<(QueueKey, QueueUid)>,
    /// Queues whose next message is being read.
    cold_queues: Vec<QueueKey>,
    census: census::Census,
    sections: Vec<u8>,
    headers: Vec<u8>,
    decoded: Vec<u8>,
}

/// Messages expired or woken in one turn at most, of one queue.
const TURN_DEADLINES: usize = 4096;

impl<S: Storage> Engine<S> {
    /// An engine without queues.
    pub fn new(defaults: Settings, random: u64) -> Engine<S> {
        let seed = SeedableRandomState::with_seed(random, SharedSeed::global_fixed());
        let topics = Topics::new(seed.clone());
        let exchanges = Exchanges::new(seed.clone());
        Engine {
            queues: Slab::new(),
            names: HashMap::with_hasher(seed),
            by_uid: HashMap::default(),
            next_uid: 1,
            topics,
            exchanges,
            schedules: Schedules::default(),
            gone: Counters::default(),
            leases: Leases::default(),
            log: None,
            pool: ChunkPool::default(),
            defaults,
            incarnation: 1,
            once_key: 0,
            places: PushRun::default(),
            over_budget: false,
            sync_wanted: false,
            times: Times::default(),
            moved: Unseen::default(),
            runnable: VecDeque::new(),
            touched: Vec::new(),
            reveals_os: VecDeque::new(),
            reveals_disk: VecDeque::new(),
            timers: BinaryHeap::new(),
            moving: Vec::new(),
            at_hand: Bodies::new(),
            shards: (1, 0),
            outbox: Outbox::default(),
            has_routes: false,
            route_news: Vec::new(),
            doomed: Vec::new(),
            unused_slots: Vec::new(),
            to_free: Vec::new(),
            cold_queues: Vec::new(),
            census: census::Census::default(),
            sections: Vec::new(),
            headers: Vec::new(),
            decoded: Vec::new(),
        }
    }

    /// The queue at a place that is known to be taken.
    #[inline]
    pub fn queue(&self, key: QueueKey) -> &Queue {
        &self.queues[key.0 as usize]
    }

    /// The same, to change it.
    #[inline]
    pub fn queue_mut(&mut self, key: QueueKey) -> &mut Queue {
        &mut self.queues[key.0 as usize]
    }

    /// The queue of that name (octets), if it exists.
    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<QueueKey> {
        let key = *self.names.get(name)?;
        self.queue(key).exists.then_some(key)
    }

    /// The queue of that name (octets), or the place where consumers wait for it.
    pub fn find_with_ghosts(&self, name: &[u8]) -> Option<QueueKey> {
        self.names.get(name).copied()
    }

    /// The queue with that identity.
    pub fn find_uid(&self, uid: QueueUid) -> Option<QueueKey> {
        self.by_uid.get(&uid).copied()
    }

    /// Is the queue that was there still the same?
    #[inline]
    pub fn is_same(&self, key: QueueKey, uid: QueueUid) -> bool {
        self.queues
            .get(key.0 as usize)
            .is_some_and(|queue| queue.uid == uid && queue.exists)
    }

    /// Has the log got that far?
    #[inline]
    pub fn reached(&self, need: Need) -> bool {
        match (need.level, &self.log) {
            (Level::None, _) | (_, None) => true,
            (Level::Os, Some(log)) => log.written() >= need.index,
            (Level::Disk, Some(log)) if planted(Fault::ConfirmedBeforeSync) => {
                log.written() >= need.index
            }
            (Level::Disk | Level::Quorum, Some(log)) => log.durable() >= need.index,
        }
    }

    /// Somebody has asked for a sync and for nothing else: it does not wait for those who may still publish.
    pub fn sync_now(&mut self, need: Need) {
        if need.level >= Level::Disk && !self.reached(need) {
            self.sync_wanted = true;
            if let Some(log) = &mut self.log {
                log.hurry();
            }
        }
    }

    /// The need of what was appended to the log so far, at a level.
    #[inline]
    pub fn need(&mut self, level: Level) -> Need {
        match (&self.log, level) {
            (None, _) | (_, Level::None) => Need::NOW,
            (Some(log), level) => {
                self.sync_wanted |= level >= Level::Disk;
                // A record that nothing was appended to is never written.
                let index = match log.is_empty_turn() {
                    true => LogIndex(log.index().0 - 1),
                    false => log.index(),
                };
                Need { level, index }
            }
        }
    }

    /// The need of what is appended to the log next, at a level, unless a segment ends before it.
    #[inline]
    pub fn next_need(&mut self, level: Level) -> Need {
        match (&self.log, level) {
            (None, _) | (_, Level::None) => Need::NOW,
            (Some(log), level) => {
                self.sync_wanted |= level >= Level::Disk;
                let index = log.index();
                Need { level, index }
            }
        }
    }

    /// Puts a queue with something to hand out and somebody to take it on the list.
    #[inline]
    pub fn schedule(&mut self, key: QueueKey) {
        let queue = &mut self.queues[key.0 as usize];
        if !queue.scheduled && !queue.waiters.is_empty() && queue.ready() > 0 {
            queue.scheduled = true;
            self.runnable.push_back(key);
        }
    }

    /// The level at which what the queue published last becomes visible: its own, but order within the
    /// queue is kept, so that after a change to `os` messages wait for earlier ones that wait for a sync.
    #[inline]
    fn visible_level(&self, queue: &Queue) -> Level {
        let durable = self.log.as_ref().map_or(LogIndex(0), Log::durable);
        match queue.settings.durable {
            Level::Os if queue.synced_index > durable.0 => Level::Disk,
            level => level,
        }
    }

    /// What makes the queue's last publish visible.
    #[inline]
    pub fn visible_need(&self, key: QueueKey) -> Need {
        let queue = self.queue(key);
        match self.visible_level(queue) {
            Level::None => Need::NOW,
            level => Need {
                level,
                index: LogIndex(queue.last_index),
            },
        }
    }

    /// Before the turn's record is sealed: notes what it makes visible.
    pub fn before_commit(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            let Some(queue) = self.queues.get(key.0 as usize) else {
                continue;
            };
            let level = self.visible_level(queue);
            let queue = &mut self.queues[key.0 as usize];
            let reveal = Reveal {
                index: LogIndex(queue.last_index),
                queue: key,
                uid: queue.uid,
                upto: queue.next_id(),
            };
            if level == Level::Os {
                queue.os_index = queue.last_index;
                self.reveals_os.push_back(reveal);
            } else {
                queue.synced_index = queue.last_index;
                self.sync_wanted = true;
                self.reveals_disk.push_back(reveal);
            }
        }
        self.touched = touched;
    }

    /// Makes visible what has reached its level.
    pub fn apply_reached(&mut self) {
        let Some(log) = &self.log else { return };
        let (written, mut durable) = (log.written(), log.durable());
        if planted(Fault::VisibleBeforeDurable) {
            durable = written;
        }
        for (disk, reached) in [(false, written), (true, durable)] {
            loop {
                let reveals = if disk {
                    &mut self.reveals_disk
                } else {
                    &mut self.reveals_os
                };
                if reveals.front().is_none_or(|reveal| reveal.index > reached) {
                    break;
                }
                let reveal = reveals.pop_front().expect("it was just looked at");
                if self.is_same(reveal.queue, reveal.uid) {
                    self.queue_mut(reveal.queue).reveal(reveal.upto);
                    if planted(Fault::WaiterNotWoken) && reveal.upto.is_multiple_of(3) {
                        continue;
                    }
                    self.schedule(reveal.queue);
                    self.arm(reveal.queue);
                    if self.queue(reveal.queue).sharing.is_some() {
                        self.reveal_groups(reveal.queue);
                    }
                }
            }
        }
    }

    /// Memory held for messages and what is known of them, bytes; that of each queue by the last look at it.
    pub fn memory(&self) -> usize {
        self.census.total()
            + self.message_memory()
            + self.leases.memory()
            + self.topics.memory()
            + self.exchanges.memory()
            + self.schedules.memory()
            + self.outbox.orders.memory()
    }

    /// The same after so many queues were looked at again.
    pub fn count_memory(&mut self, queues: usize) -> usize {
        self.census.count(&mut self.queues, queues);
        self.memory()
    }

    /// Memory of the messages alone, bytes; quick.
    #[inline]
    pub fn message_memory(&self) -> usize {
        self.pool.bytes + self.log.as_ref().map_or(0, Log::memory)
    }
}
