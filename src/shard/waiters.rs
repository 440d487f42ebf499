//! Who waits for messages: pulls that found nothing ready, and subscriptions. Knows places, times and
//! terms; never a message.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use slab::Slab;

use super::ConnKey;
use crate::broker::command::PullOptions;
use crate::broker::lease::HolderKey;
use crate::broker::queue::{QueueKey, WaiterKey};

/// A lease of so long has no deadline, microseconds.
pub const FOREVER_US: u64 = u64::MAX;

/// What a pull can have that no command of the line protocol says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taking<'a> {
    /// The consumer of streams whose leases they are, in each source's group; the connection's when absent.
    pub consumer: Option<&'a [u8]>,
    /// Messages are taken at the end that leaves last.
    pub from_tail: bool,
    /// Those who came before have been served.
    pub has_turn: bool,
}

/// Whom a message goes to and how.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Whose lease it will be.
    pub holder: HolderKey,
    /// Lease, microseconds; the queue's when absent.
    pub lease_us: Option<u64>,
    /// Settled before it is sent.
    pub ack_auto: bool,
    /// Tell the publish time.
    pub timestamps: bool,
    /// The lease outlives the connection.
    pub hold: bool,
    /// Messages are taken at the end that leaves last.
    pub from_tail: bool,
}

impl Terms {
    /// Those of a pull whose leases `holder` gets.
    pub fn of_pull(options: &PullOptions, taking: Taking<'_>, holder: HolderKey) -> Terms {
        Terms {
            holder,
            lease_us: options.lease_us,
            ack_auto: options.ack_auto,
            timestamps: options.timestamps,
            hold: options.hold,
            from_tail: taking.from_tail,
        }
    }

    /// Is each message leased and sent as it is, and nothing else done?
    #[inline]
    pub fn are_plain(&self) -> bool {
        !self.ack_auto && !self.timestamps && !self.hold && !self.from_tail
    }
}

/// Who waits.
#[derive(Debug)]
pub enum Waiter {
    /// A pull that found nothing ready.
    Pull(PullWaiter),
    /// A subscription.
    Subscription(Subscription),
    /// A pull of queues on several shards, at its connection's home.
    Across(AcrossWaiter),
    /// What such a pull waits for at one of the shards.
    Watch(Watch),
}

/// A pull of queues on several shards, at its connection's home. It stands in no line.
#[derive(Debug)]
pub struct AcrossWaiter {
    /// Whose.
    pub conn: ConnKey,
    /// Which of the connection's pulls.
    pub pull: u64,
    /// It ends with `END 0` then, microseconds.
    pub deadline_us: u64,
    /// Tells the users of a place apart.
    pub(super) serial: u64,
}

/// What a pull of queues on several shards waits for at one of them.
#[derive(Debug)]
pub struct Watch {
    /// The connection, or its guest.
    pub conn: ConnKey,
    /// Which of the connection's pulls, and which part of it.
    pub pull: u64,
    /// The part.
    pub part: u32,
    /// Whose lines it stands in.
    pub sources: Vec<QueueKey>,
    /// It is for a reader of streams, who is told when its group goes.
    pub is_stream: bool,
    /// What it has told.
    pub offer: Offer,
    /// An offered message is given back then, microseconds.
    pub deadline_us: u64,
    /// Tells the users of a place apart.
    pub(super) serial: u64,
}

/// What a watch has told the pull's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Nothing: it waits for its turn.
    None,
    /// A message is kept for the pull until it says whether it takes it: the lease's serial.
    Kept(u64),
    /// There was one, which took too long to be taken and went back.
    Late,
}

/// A pull that found nothing ready.
#[derive(Debug)]
pub struct PullWaiter {
    /// Whose.
    pub conn: ConnKey,
    /// Without the `@`; untagged when empty.
    pub tag: Box<[u8]>,
    /// The first source.
    pub first: QueueKey,
    /// The other sources.
    pub others: Vec<QueueKey>,
    /// The consumer of streams that it is for.
    pub consumer: Option<Box<[u8]>>,
    /// Most messages; of each source if it is for a consumer of streams.
    pub count: u32,
    /// Most bytes of bodies.
    pub bytes_max: u64,
    /// How.
    pub terms: Terms,
    /// It ends with `END 0` then, microseconds.
    pub deadline_us: u64,
    /// Tells the users of a place apart.
    pub(super) serial: u64,
}

impl PullWaiter {
    pub(super) fn sources(&self) -> impl Iterator<Item = QueueKey> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }
}

/// A subscription.
#[derive(Debug)]
pub struct Subscription {
    /// Whose.
    pub conn: ConnKey,
    /// Without the `@`; untagged when empty.
    pub tag: Box<[u8]>,
    /// What it reads.
    pub queue: QueueKey,
    /// Most unacked messages.
    pub credit: u32,
    /// How.
    pub terms: Terms,
    /// Stands in the queue's line of waiters.
    pub queued: bool,
    /// Who has a higher one is served first, as long as it may have more.
    pub priority: i32,
}

impl Waiter {
    /// The subscription that it is.
    pub fn subscription(&self) -> Option<&Subscription> {
        match self {
            Waiter::Subscription(subscription) => Some(subscription),
            _ => None,
        }
    }
}

/// Every waiting consumer.
#[derive(Debug, Default)]
pub struct Waiters {
    /// By [`WaiterKey`].
    pub slab: Slab<Waiter>,
    /// (deadline, place, serial) of waiting pulls, and of some that wait no more.
    pub(super) deadlines: BinaryHeap<Reverse<(u64, WaiterKey, u64)>>,
    /// Pulls that wait.
    pulls: usize,
    /// Subscriptions with a priority other than 0.
    pub(super) ranked: usize,
    next_serial: u64,
    /// Subscriptions by their holder.
    pub(super) by_holder: Vec<Option<WaiterKey>>,
}

impl Waiters {
    /// The earliest end of a wait, microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((at_us, ..))| *at_us)
    }

    /// The subscription at that place.
    pub fn subscription(&mut self, key: WaiterKey) -> Option<&mut Subscription> {
        match self.slab.get_mut(key.0 as usize) {
            Some(Waiter::Subscription(subscription)) => Some(subscription),
            _ => None,
        }
    }

    pub(super) fn next_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    pub(super) fn add_pull(&mut self, waiter: PullWaiter) -> WaiterKey {
        let (deadline_us, serial) = (waiter.deadline_us, waiter.serial);
        let key = WaiterKey(self.slab.insert(Waiter::Pull(waiter)) as u32);
        self.deadlines.push(Reverse((deadline_us, key, serial)));
        self.pulls += 1;
        key
    }

    /// A pull of queues on several shards begins to wait, or its part at one of them.
    pub(super) fn add_across(&mut self, waiter: Waiter) -> WaiterKey {
        self.pulls += 1;
        let key = WaiterKey(self.slab.insert(waiter) as u32);
        self.deadline_changed(key);
        key
    }

    /// The waiter at that place has another deadline now.
    pub(super) fn deadline_changed(&mut self, key: WaiterKey) {
        let (deadline_us, serial) = match self.slab.get(key.0 as usize) {
            Some(Waiter::Across(waiter)) => (waiter.deadline_us, waiter.serial),
            Some(Waiter::Watch(watch)) => (watch.deadline_us, watch.serial),
            _ => return,
        };
        if deadline_us != FOREVER_US {
            self.deadlines.push(Reverse((deadline_us, key, serial)));
        }
    }

    /// The watch at that place.
    pub(super) fn watch(&mut self, key: WaiterKey) -> Option<&mut Watch> {
        match self.slab.get_mut(key.0 as usize) {
            Some(Waiter::Watch(watch)) => Some(watch),
            _ => None,
        }
    }

    /// A pull waits no more. Its deadline stays in the heap until most of those there are stale.
    pub(super) fn pull_gone(&mut self) {
        self.pulls -= 1;
        if self.deadlines.len() > 2 * self.pulls + STALE_DEADLINES_MAX {
            let slab = &self.slab;
            self.deadlines.retain(|Reverse((at_us, key, serial))| {
                waits_until(slab, *key, *serial) == Some(*at_us)
            });
        }
    }

    /// The next pull that has waited long enough.
    pub(super) fn next_due(&mut self, now_us: u64) -> Option<WaiterKey> {
        while let Some(Reverse((at_us, key, serial))) = self.deadlines.peek().copied()
            && at_us <= now_us
        {
            self.deadlines.pop();
            if waits_until(&self.slab, key, serial) == Some(at_us) {
                return Some(key);
            }
        }
        None
    }

    /// A pull waits at that place.
    pub fn is_pull(&self, key: WaiterKey) -> bool {
        let waiter = self.slab.get(key.0 as usize);
        matches!(waiter, Some(Waiter::Pull(_) | Waiter::Watch(_)))
    }

    /// Who has a higher one is served first.
    fn priority(&self, key: WaiterKey) -> i32 {
        match self.slab.get(key.0 as usize) {
            Some(Waiter::Subscription(subscription)) => subscription.priority,
            _ => 0,
        }
    }

    /// Puts one who waits into a queue's line: behind those of its priority and of higher ones.
    #[inline]
    pub(super) fn join(&self, line: &mut VecDeque<WaiterKey>, key: WaiterKey) {
        if self.ranked == 0 {
            return line.push_back(key);
        }
        let own = self.priority(key);
        let last = line.iter().rposition(|other| self.priority(*other) >= own);
        line.insert(last.map_or(0, |last| last + 1), key);
    }

    /// The holder of a subscription's leases.
    pub fn holder_of(&self, key: WaiterKey) -> Option<HolderKey> {
        match self.slab.get(key.0 as usize) {
            Some(Waiter::Subscription(subscription)) => Some(subscription.terms.holder),
            _ => None,
        }
    }

    /// The connection whose subscription holds leases as this holder.
    pub fn conn_of(&self, holder: HolderKey) -> Option<ConnKey> {
        match self.slab.get(self.of_holder(holder)?.0 as usize) {
            Some(Waiter::Subscription(subscription)) => Some(subscription.conn),
            _ => None,
        }
    }

    /// The subscription that holds leases as this holder.
    pub fn of_holder(&self, holder: HolderKey) -> Option<WaiterKey> {
        self.by_holder.get(holder.0 as usize).copied().flatten()
    }
}

/// Until when the pull with that serial waits, if it still does.
fn waits_until(slab: &Slab<Waiter>, key: WaiterKey, serial: u64) -> Option<u64> {
    match slab.get(key.0 as usize) {
        Some(Waiter::Pull(waiter)) if waiter.serial == serial => Some(waiter.deadline_us),
        Some(Waiter::Across(waiter)) if waiter.serial == serial => Some(waiter.deadline_us),
        Some(Waiter::Watch(watch)) if watch.serial == serial => Some(watch.deadline_us),
        _ => None,
    }
}

/// Deadlines of pulls that wait no more, kept before the heap is cleaned.
const STALE_DEADLINES_MAX: usize = 1024;

/// A pull whose time is up waits so much longer for a message that is being read from the disk, microseconds.
pub(super) const COLD_PATIENCE_US: u64 = 10_000;
