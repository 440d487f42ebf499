//! One queue: its settings, its messages' states and the order in which they leave.
//!
//! A message is *hidden* from its publish until its level is reached, then *delayed*, *ready* or *leased*, and at
//! last settled. Nothing here knows where bodies are, who asks, or what time it is: times are
//! arguments, and what must be logged or sent is up to the caller.
//!
//! ```text
//!            reveal            due               take
//!   hidden ---------> delayed -----> ready -------------> leased ----> settled
//!      \_________________________________/^ \___ put back ___/ |
//!                 reveal                  |_____ after a delay_|
//! ```
//!
//! A message with a key that another message has is *locked* where it would be ready.

mod changes;
mod counters;
mod dead;
mod image;
mod keyed;
mod rate;
mod replayed;
mod run;
mod shared;
#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use image::{Image, Runs, leave_out, push_runs};

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::arena::{Arena, PushRun};
use super::dedup::Dedup;
use super::delayed::Delayed;
use super::exchanges::Declared;
use super::expiry::Expiry;
use super::id::{MessageId, QueueUid};
use super::index::Index;
use super::keys::Keys;
use super::pattern::Pattern;
use super::ready::Ready;
use super::settings::Settings;

pub use shared::{Adoption, Group, Kept, Retained, Sharing, View};

/// A queue's place in the shard's slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey(pub u32);

/// A waiting consumer's place in the shard's slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterKey(pub u32);

/// Hash maps that iterate the same way in every run: ids are the broker's own, not the peer's.
pub type IdMap<V> = HashMap<MessageId, V, foldhash::fast::FixedState>;

/// Longest name of a queue, octets.
pub const NAME_BYTES_MAX: usize = 255;
/// A hidden message that will not simply become ready with the others.
#[derive(Clone, Copy, Debug)]
struct Special {
    id: MessageId,
    pri: u8,
    due_us: u64,
}

/// What is known of a message when it is published.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Where its body lies.
    pub place: u64,
    /// Size of the body, bytes.
    pub size: u32,
    /// Priority.
    pub pri: u8,
    /// Not ready before this; 0 = at once.
    pub due_us: u64,
    /// Its own deadline, if it has one.
    pub expires_us: Option<u64>,
    /// When it was published.
    pub now_us: u64,
}

/// In which state a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Published but not at its level yet.
    Hidden,
    /// Ready to be taken.
    Ready,
    /// Ready but for its key, which another message has.
    Locked,
    /// Not before its time.
    Delayed,
    /// With a consumer, or on its way elsewhere.
    Leased,
    /// Settled or never published.
    Gone,
}

/// One queue.
#[derive(Debug)]
pub struct Queue {
    /// Never used again.
    pub uid: QueueUid,
    /// Octets of the name.
    pub name: Box<[u8]>,
    /// The name as server lines print it.
    pub printed: Box<[u8]>,
    /// Effective settings.
    pub settings: Settings,
    /// How it was declared by a protocol that declares.
    pub declared: Option<Box<Declared>>,
    /// Where messages lie and which are settled. A group has none: its messages are in its queue's.
    pub index: Index,
    /// Which messages the reader has not settled, where it is one of several; `None` = the index says
    /// it.
    view: Option<Box<View>>,
    /// The group it is; `None` for a queue.
    pub group: Option<Box<Group>>,
    /// Its groups, and what is kept for them; `None` while the bare name is all there is.
    pub sharing: Option<Box<Sharing>>,
    /// Somebody has read from it by its bare name.
    pub begun: bool,
    /// Bodies of a `none` queue.
    pub arena: Arena,
    /// Client ids seen.
    pub dedup: Dedup,
    /// Deadlines.
    pub expiry: Expiry,
    /// What it takes of what is cast.
    pub bindings: BTreeSet<Pattern>,
    /// Consumers waiting for a message, in the order they came.
    pub waiters: VecDeque<WaiterKey>,
    /// Subscriptions on it, whether they have credit or not.
    pub consumers: u32,
    /// Open connections that have pulled from it.
    pub pullers: u32,
    /// Counted since the start.
    pub counters: Counters,
    /// Where its dead letters came from; only of a queue that received some.
    pub origins: BTreeMap<MessageId, QueueUid>,
    /// Dead letters of this queue now in its dead-letter queue.
    pub dead: u64,
    /// The message that is taken next is the one at the other end: while that is done.
    pub from_tail: bool,
    /// It was not deleted. A deleted queue stays while consumers wait for its name.
    pub exists: bool,
    /// Number of the log record that holds its last publish.
    pub last_index: u64,
    /// Number of the last log record whose messages of this queue became visible when it was written.
    pub os_index: u64,
    /// Number of the last log record whose messages of this queue become visible when it is synced.
    pub synced_index: u64,
    /// When all that was published at `rate=` would have been published evenly, microseconds.
    pub paced_until_us: u64,
    /// Is in the list of queues to be dispatched.
    pub scheduled: bool,
    /// The earliest entry of this queue in the shard's timers, microseconds.
    pub timer_us: u64,
    next_id: MessageId,
    /// Ids below this are not hidden.
    visible: MessageId,
    /// The ready messages that have no key.
    ready: Ready,
    /// Messages that have a key; `None` until there was one.
    keys: Option<Box<Keys>>,
    specials: VecDeque<Special>,
    delayed: Delayed,
    /// Failed tries of messages that have any.
    tries: IdMap<u16>,
    /// Leased messages whose time to live has ended.
    overdue: BTreeSet<MessageId>,
    leased: u64,
    /// Taken messages that have left for another shard and are still stored, and bytes of their bodies.
    leaving: (u64, u64),
    /// How many of its dead letters are in a queue of another shard, as far as that has told.
    pub dead_far: i64,
    /// Messages and bytes that are to come, and count for the limits already.
    expected: (u64, u64),
}

impl Queue {
    /// An empty queue.
    pub fn new(uid: QueueUid, name: &[u8], printed: Vec<u8>, settings: Settings) -> Queue {
        Queue {
            uid,
            name: name.into(),
            printed: printed.into(),
            settings,
            declared: None,
            index: Index::default(),
            view: None,
            group: None,
            sharing: None,
            begun: false,
            arena: Arena::default(),
            dedup: Dedup::default(),
            expiry: Expiry::default(),
            bindings: BTreeSet::new(),
            waiters: VecDeque::new(),
            consumers: 0,
            pullers: 0,
            counters: Counters::default(),
            origins: BTreeMap::new(),
            dead: 0,
            from_tail: false,
            exists: true,
            last_index: 0,
            os_index: 0,
            synced_index: 0,
            paced_until_us: 0,
            scheduled: false,
            timer_us: u64::MAX,
            next_id: 1,
            visible: 1,
            ready: Ready::default(),
            keys: None,
            specials: VecDeque::new(),
            delayed: Delayed::default(),
            tries: IdMap::default(),
            overdue: BTreeSet::new(),
            leased: 0,
            leaving: (0, 0),
            expected: (0, 0),
            dead_far: 0,
        }
    }

    /// The queue is deleted: nothing is left of it but those who wait for its name.
    pub fn become_ghost(&mut self) {
        let (name, printed) = (
            std::mem::take(&mut self.name),
            std::mem::take(&mut self.printed),
        );
        let ghost = Queue::new(self.uid, &name, printed.into(), self.settings.clone());
        *self = Queue {
            waiters: std::mem::take(&mut self.waiters),
            consumers: self.consumers,
            counters: std::mem::take(&mut self.counters),
            scheduled: self.scheduled,
            group: self.group.take(),
            sharing: self.sharing.take().and_then(|sharing| sharing.ghost()),
            exists: false,
            ..ghost
        };
    }

    /// The id the next message will get.
    #[inline]
    pub fn next_id(&self) -> MessageId {
        self.next_id
    }

    /// Ids below this are not hidden.
    pub fn visible(&self) -> MessageId {
        self.visible
    }

    /// Messages ready to be taken.
    #[inline]
    pub fn ready(&self) -> u64 {
        match &self.keys {
            None => self.ready.len(),
            Some(keys) => self.ready.len() + keys.ready(),
        }
    }

    /// Messages with consumers.
    pub fn leased(&self) -> u64 {
        self.leased
    }

    /// Messages not before their time.
    pub fn delayed(&self) -> u64 {
        self.delayed.len() as u64
    }

    /// Messages published and not at their level yet.
    pub fn hidden(&self) -> u64 {
        let visible = self.ready() + self.leased + self.delayed() + self.locked();
        self.unsettled().saturating_sub(visible)
    }

    /// Memory held without bodies, bytes.
    pub fn memory(&self) -> usize {
        self.index.memory()
            + self.ready.memory()
            + self.keys.as_ref().map_or(0, |keys| keys.memory())
            + self.dedup.memory()
            + self.expiry.memory()
            + self.delayed.memory()
            + self.tries.len() * 24
            + self.origins.len() * 32
            + self.shared_memory()
    }

    /// Takes a new message; it is hidden until [`Queue::reveal`]. Returns its id.
    #[inline]
    pub fn publish(&mut self, message: Published) -> MessageId {
        let id = self.next_id;
        self.next_id += 1;
        self.index.locate(id, message.place, message.size);
        if self.view.is_some() && !self.publish_shared(id, &message) {
            return id;
        }
        self.expect(id, &message);
        self.counters.published += 1;
        id
    }

    /// Is all that a publish without options needs that it is stored and located?
    #[inline]
    pub fn takes_plainly(&self) -> bool {
        let settings = &self.settings;
        !settings.pause.input
            && settings.pri == 0
            && settings.rate.is_none()
            && settings.maxlen.is_none()
            && settings.maxbytes.is_none()
            && settings.ttl_us.is_none()
            && self.sharing.is_none()
            && self.view.is_none()
            && self.expiry.is_empty()
    }

    /// [`Queue::publish`] of a message without options, where [`Queue::takes_plainly`].
    #[inline]
    pub fn publish_plain(&mut self, place: u64, size: u32) {
        self.index.locate(self.next_id, place, size);
        self.next_id += 1;
        self.counters.published += 1;
    }

    /// How many messages of the next ids [`Queue::publish_run`] takes at most.
    #[inline]
    pub fn run_max(&self) -> usize {
        Index::left_in_block(self.next_id)
    }

    /// [`Queue::publish_plain`] of the messages that [`Arena::push_run`] has stored here.
    #[inline]
    pub fn publish_run(&mut self, run: &PushRun) {
        self.index
            .locate_run(self.next_id, run.base, &run.offsets, run.bytes);
        self.next_id += run.offsets.len() as u64;
        self.counters.published += run.offsets.len() as u64;
    }

    /// A message was published that is hidden until [`Queue::reveal`].
    #[inline]
    fn expect(&mut self, id: MessageId, message: &Published) {
        if message.pri != self.settings.pri || message.due_us != 0 {
            self.specials.push_back(Special {
                id,
                pri: message.pri,
                due_us: message.due_us,
            });
        }
        if let Some(expires_us) = message.expires_us {
            self.expiry.own(id, expires_us);
        } else if self.settings.ttl_us.is_some() {
            self.expiry.follow(id, message.now_us);
        }
    }

    /// Skips ids that were used before but are settled, when state comes from a checkpoint or log.
    pub fn skip_to(&mut self, id: MessageId) {
        self.next_id = self.next_id.max(id);
        self.visible = self.visible.max(id);
    }

    /// Could anybody answer a request?
    pub fn has_consumers(&self) -> bool {
        self.consumers > 0 || self.pullers > 0
    }

    /// Every message below `upto` has reached its level.
    #[inline]
    pub fn reveal(&mut self, upto: MessageId) {
        if self.is_absent() {
            self.visible = self.visible.max(upto);
            return;
        }
        let pri = self.settings.pri;
        if self.specials.is_empty() && self.keys.is_none() && self.overdue.is_empty() {
            let first = self.visible;
            self.visible = first.max(upto);
            self.ready.insert_run(first, self.visible, pri);
            return;
        }
        while self.visible < upto {
            let id = self.visible;
            self.visible += 1;
            if let Some(special) = self.specials.front()
                && special.id == id
            {
                let special = *special;
                self.specials.pop_front();
                self.become_waiting(id, special.pri, special.due_us);
            } else {
                self.insert_ready(id, pri);
            }
            // Its time may have ended before anybody could see it.
            self.due_if_overdue(id);
        }
    }

    /// Ready, or locked if another has its key.
    #[inline]
    fn insert_ready(&mut self, id: MessageId, pri: u8) {
        if self.keys.is_none() {
            self.ready.insert(id, pri);
        } else {
            self.insert_keyed(id, pri);
        }
    }

    /// Ready at once, or delayed until its time.
    fn become_waiting(&mut self, id: MessageId, pri: u8, due_us: u64) {
        if due_us == 0 {
            self.insert_ready(id, pri);
        } else {
            self.delayed.insert(id, due_us, pri);
        }
    }

    /// The next message to leave, left where it is.
    #[inline]
    pub fn peek(&mut self) -> Option<(MessageId, u8)> {
        if self.keys.is_some() || self.settings.head || self.from_tail {
            return self.peek_keyed();
        }
        self.ready.peek()
    }

    /// Takes the next message, which becomes leased; with its priority.
    #[inline]
    pub fn take(&mut self) -> Option<(MessageId, u8)> {
        if self.keys.is_some() || self.settings.head || self.from_tail {
            return self.take_keyed();
        }
        let taken = self.ready.pop()?;
        self.leased += 1;
        Some(taken)
    }

    /// Is it the first try of every ready message, and has none of them a key? Then nothing is to be known of
    /// them but where they lie.
    #[inline]
    pub fn gives_plainly(&self) -> bool {
        let is_list = self.settings.head || self.from_tail;
        self.keys.is_none() && self.group.is_none() && self.tries.is_empty() && !is_list
    }

    /// The next messages, left where they are, where [`Queue::gives_plainly`]: the first of consecutive ids,
    /// how many (at most `most`) and their priority.
    #[inline]
    pub fn peek_run(&mut self, most: u64) -> Option<(MessageId, u64, u8)> {
        self.ready.peek_run(most)
    }

    /// Takes the first `count` messages that [`Queue::peek_run`] has just found; they become leased.
    #[inline]
    pub fn take_run(&mut self, first: MessageId, count: u64, pri: u8) {
        self.ready.take_run(first, count, pri);
        self.leased += count;
        self.counters.delivered += count;
    }

    /// Which try the next delivery of a message is, from 1.
    #[inline]
    pub fn next_try(&self, id: MessageId) -> u16 {
        if self.tries.is_empty() {
            return 1;
        }
        self.tries
            .get(&id)
            .map_or(1, |failed| failed.saturating_add(1))
    }

    /// Notes how many tries of a message have failed. One that was tried holds its key.
    pub fn set_failed(&mut self, id: MessageId, failed: u16) {
        if failed == 0 {
            self.tries.remove(&id);
        } else {
            self.tries.insert(id, failed);
            if let Some(keys) = &mut self.keys {
                keys.hold(id);
            }
        }
    }

    /// A leased message waits again: ready when `due_us` is 0, else delayed.
    pub fn put_back(&mut self, id: MessageId, pri: u8, due_us: u64) {
        self.leased -= 1;
        self.become_waiting(id, pri, due_us);
    }

    /// Messages that outlived their time and couldn't expire yet, for a checkpoint.
    pub fn overdue(&self) -> impl Iterator<Item = MessageId> {
        self.overdue.iter().copied()
    }

    /// Has a leased message outlived its time meanwhile?
    pub fn is_overdue(&self, id: MessageId) -> bool {
        !self.overdue.is_empty() && self.overdue.contains(&id)
    }

    /// Notes that a leased message has outlived its time.
    pub fn set_overdue(&mut self, id: MessageId) {
        self.overdue.insert(id);
    }

    /// A message waits (again): if its time has ended meanwhile, it expires now.
    pub fn due_if_overdue(&mut self, id: MessageId) {
        if self.is_overdue(id) {
            self.overdue.remove(&id);
            self.expiry.own(id, 0);
        }
    }

    /// A leased message is settled.
    #[inline]
    pub fn settle_leased(&mut self, id: MessageId, size: Option<u32>) {
        self.leased -= 1;
        self.forget(id, size);
    }

    /// Removes what is kept about a message beside its state.
    #[inline]
    fn forget(&mut self, id: MessageId, size: Option<u32>) {
        match &mut self.view {
            None => _ = self.index.settle(id, size),
            Some(view) => view.settle(id, size),
        }
        if !self.tries.is_empty() {
            self.tries.remove(&id);
        }
        if !self.expiry.is_empty() {
            self.expiry.forget(id);
        }
        if !self.overdue.is_empty() {
            self.overdue.remove(&id);
        }
        if let Some(keys) = &mut self.keys {
            keys.forget(id);
        }
    }

    /// Settles a ready, locked or delayed message; false if it is in another state.
    pub fn settle_waiting(&mut self, id: MessageId, size: Option<u32>) -> bool {
        match self.state(id) {
            State::Ready | State::Locked => {
                self.remove_ready(id);
            }
            State::Delayed => {
                self.delayed.remove(id);
            }
            State::Hidden | State::Leased | State::Gone => return false,
        }
        self.forget(id, size);
        true
    }

    /// In which state a message is.
    pub fn state(&self, id: MessageId) -> State {
        if !self.is_unsettled(id) {
            State::Gone
        } else if id >= self.visible {
            State::Hidden
        } else if self.ready.pri(id).is_some() {
            State::Ready
        } else if let Some((_, front)) = self.keys.as_ref().and_then(|keys| keys.waiting(id)) {
            if front { State::Ready } else { State::Locked }
        } else if self.delayed.contains(id) {
            State::Delayed
        } else {
            State::Leased
        }
    }

    /// When a delayed message becomes ready, microseconds; 0 if it is in another state.
    pub fn due_us(&self, id: MessageId) -> u64 {
        self.delayed.get(id).map_or(0, |(due_us, _)| due_us)
    }

    /// Makes ready what is due; how many that were. At most `most`.
    pub fn wake_due(&mut self, now_us: u64, most: usize) -> usize {
        let mut woken = 0;
        while woken < most
            && let Some((id, pri)) = self.delayed.pop_due(now_us)
        {
            self.insert_ready(id, pri);
            woken += 1;
        }
        woken
    }

    /// When something of this queue is next due, microseconds.
    pub fn next_timer_us(&self) -> Option<u64> {
        let due = self.delayed.first_us();
        let expiry = self.expiry.next_us(self.settings.ttl_us);
        let retained = self.next_retained_us();
        [due, expiry, retained].into_iter().flatten().min()
    }

    /// Takes a given ready, locked or delayed message, which counts as leased; its priority.
    pub fn take_waiting(&mut self, id: MessageId) -> Option<u8> {
        let pri = match self.delayed.remove(id) {
            Some((_, pri)) => pri,
            None => self.remove_ready(id)?,
        };
        self.leased += 1;
        Some(pri)
    }

    /// The oldest message from an id on that is ready, locked or delayed; hidden ones are not looked at.
    pub fn next_unleased(&self, from: MessageId) -> Option<MessageId> {
        let mut id = self.next_unsettled(from)?;
        loop {
            match self.state(id) {
                State::Ready | State::Locked | State::Delayed => return Some(id),
                State::Hidden => return None,
                State::Leased | State::Gone => id = self.next_unsettled(id + 1)?,
            }
        }
    }

    /// Delayed messages by time.
    pub fn iter_delayed(&self) -> impl Iterator<Item = (u64, MessageId)> {
        self.delayed.iter().map(|(due_us, id, _)| (due_us, id))
    }
}
