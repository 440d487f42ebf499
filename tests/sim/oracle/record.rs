//! What the oracle remembers of messages, deliveries, commands and connections.
//!
//! Times are microseconds of simulated time. An interval "low to high" always means: the broker
//! did it at some moment not before `low` and not after `high`, and nobody outside can know more.

use std::collections::{BTreeMap, VecDeque};

use crate::command::{Command, Level};
use crate::dialect::{Dialect, Reader};
use crate::wire::Line;

/// What became of one send of one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The command hasn't wholly arrived, or never will: it must not appear.
    Unsent,
    /// Arrived, not answered.
    InFlight,
    /// Its receipt was read, or it was seen by a consumer: it is there once.
    Confirmed {
        /// When that was known.
        at: u64,
        /// What was promised for it.
        level: Level,
    },
    /// No answer will come: there 0 or 1 times.
    Unknown,
    /// Refused: it must not appear. The text says how.
    Failed(String),
    /// A crash took it, as its level allows: it must not come back.
    Lost,
}

/// Why a message may be gone from where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reason {
    Ack,
    AutoAck,
    Purge,
    Delete,
    QueueDelete,
    Move,
    Dead,
    Drop,
    /// A power loss may have undone its last move: the loss with this index.
    Undone {
        loss: usize,
    },
}

/// Where a message was before it was seen to have been moved.
#[derive(Clone, Debug)]
pub struct Stay {
    /// The queue.
    pub place: String,
    /// Queues it may have passed through on its way from there, unseen.
    pub through: Vec<String>,
    /// Its id there, if that was known.
    pub id: Option<u64>,
    /// When it was first seen elsewhere.
    pub until: u64,
    /// What the move is at least as durable as: the level at which it was visible then.
    pub level: Level,
}

/// How sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// The command that does it is not answered.
    Pending,
    /// Nobody will ever say whether it was done; it was before `finished` if at all.
    Maybe { finished: u64 },
    /// Known to be done by `at`, and to stay done as `level` promises.
    Sure { at: u64, level: Level },
    /// Was sure, but a power loss may have undone it: the loss with this index.
    Weak { at: u64, loss: usize },
}

/// One thing that may have taken a message away.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What.
    pub reason: Reason,
    /// The command, if it was one.
    pub cause: usize,
    /// Not before this.
    pub from: u64,
    /// Queues where it may have gone to.
    pub to: Vec<String>,
    /// How sure.
    pub certainty: Certainty,
}

/// One send of one body.
#[derive(Clone, Debug)]
pub struct Message {
    /// The octets.
    pub body: Vec<u8>,
    /// The command that sent it.
    pub command: usize,
    /// What became of the send.
    pub fate: Fate,
    /// Lines about it were read so late that their order is lost: it isn't judged any more.
    pub murky: bool,
    /// Where it is now, unless a claim took it elsewhere.
    pub place: String,
    /// The queue that a copy was cast to.
    pub home: Option<String>,
    /// It has been moved since it was published: what depended on its first queue is off.
    pub moved: bool,
    /// Where it was before, oldest first.
    pub trail: Vec<Stay>,
    /// Its id in the queue it was published to, once known.
    pub first_id: Option<u64>,
    /// Its id at its place, once known.
    pub id: Option<u64>,
    /// When its command had wholly arrived.
    pub sent: u64,
    /// It doesn't become ready before this (given that it was sent), nor later than that.
    pub due: (u64, Option<u64>),
    /// It doesn't expire before this, and surely by that.
    pub expires: (u64, u64),
    /// Lowest and highest possible priority.
    pub pri: (u64, u64),
    /// Its ordering key.
    pub key: Option<String>,
    /// Since when consumers can see it (if it is ready), once that is known.
    pub visible: Option<u64>,
    /// Levels its queue may have stored it at.
    pub stored: (Level, Level),
    /// Whether a power loss may have taken it: index of the loss.
    pub weak: Option<usize>,
    /// What may have taken it from its place.
    pub claims: Vec<Claim>,
    /// Its deliveries at this place, oldest first, as indexes.
    pub deliveries: Vec<usize>,
    /// The next delivery's try: not below, not above.
    pub tries: (u64, Option<u64>),
    /// Failed tries whose logging was confirmed: try, when, level.
    pub failed: Vec<(u64, u64, Level)>,
}

impl Message {
    /// Something may have taken it by `now`.
    pub fn possibly_claimed(&self, now: u64) -> bool {
        self.claims.iter().any(|claim| claim.from <= now)
    }

    /// Something surely took it by `now`.
    pub fn surely_claimed(&self, now: u64) -> bool {
        self.claims
            .iter()
            .any(|claim| matches!(claim.certainty, Certainty::Sure { at, .. } if at <= now))
    }

    /// Since when something has surely taken it.
    pub fn claimed_since(&self) -> Option<u64> {
        let sure = self
            .claims
            .iter()
            .filter_map(|claim| match claim.certainty {
                Certainty::Sure { at, .. } => Some(at),
                _ => None,
            });
        sure.min()
    }

    /// It may be in the broker at all.
    pub fn possibly_exists(&self) -> bool {
        matches!(
            self.fate,
            Fate::InFlight | Fate::Confirmed { .. } | Fate::Unknown
        )
    }

    /// It is in the broker unless something took it.
    pub fn surely_exists(&self) -> bool {
        if self.murky {
            return false;
        }
        matches!(self.fate, Fate::Confirmed { .. }) && self.weak.is_none()
    }
}

/// One delivery that a client saw.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Of which message.
    pub message: usize,
    /// To which connection.
    pub link: usize,
    /// In which run of the broker.
    pub boot: u64,
    /// Which try it said it is.
    pub tries: u64,
    /// When the lease began.
    pub granted: (u64, u64),
    /// When it ends by itself.
    pub deadline: (u64, u64),
    /// How long it was given, or may have been given by a `TOUCH` since.
    pub lease: (u64, u64),
    /// Deadlines that a `TOUCH` in flight may have given it: command, not before, not after.
    pub touches: Vec<(usize, u64, u64)>,
    /// `NACK`s in flight: command, when the message may be ready again, longest delay.
    pub nacks: Vec<(usize, u64, u64)>,
    /// The lease outlives its connection.
    pub held: Option<bool>,
    /// Its connection may be closed from then on, and the lease return.
    pub leaving: Option<u64>,
    /// Ended otherwise than by its deadline; the message is ready again not before, not after.
    pub ended: Option<(u64, u64)>,
    /// Settled for good.
    pub settled: bool,
    /// Settled by a move to another queue, where it was seen then.
    pub moved: Option<u64>,
    /// Settled by another delivery with `ack=auto`, which was seen then.
    pub taken: Option<u64>,
}

impl Delivery {
    /// The earliest moment at which the message may be ready again.
    pub fn ready_again(&self) -> u64 {
        if let Some((low, _)) = self.ended {
            return low;
        }
        let touched = self.touches.iter().map(|touch| touch.1);
        let nacked = self.nacks.iter().map(|nack| nack.1);
        touched
            .chain(nacked)
            .chain(self.leaving)
            .chain([self.deadline.0])
            .min()
            .expect("has a deadline")
    }

    /// The latest moment until which the lease may last, or a nack's delay.
    pub fn over(&self) -> u64 {
        if self.settled {
            return u64::MAX;
        }
        match self.ended {
            Some((_, high)) => high,
            None if !self.nacks.is_empty() => u64::MAX,
            None => {
                let touched = self.touches.iter().map(|touch| touch.2);
                touched
                    .chain([self.deadline.1])
                    .max()
                    .expect("has a deadline")
            }
        }
    }
}

/// One command that a client sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What it is.
    pub command: Command,
    /// On which connection.
    pub link: usize,
    /// When its last octet arrived.
    pub arrived: Option<u64>,
    /// When its terminal line was sent; for a quiet one, when a later answer showed it was run.
    pub answered: Option<u64>,
    /// When it was known that no answer will come.
    pub orphaned: Option<u64>,
    /// `MSG`s so far.
    pub messages: u64,
    /// Deliveries it made.
    pub deliveries: Vec<usize>,
    /// Messages that it may take away.
    pub claimed: Vec<usize>,
    /// What the answer is checked against: computed when the command arrived.
    pub tally: u64,
    /// The transaction that it begins, is in, or ends.
    pub transaction: Option<usize>,
    /// What was popped and read before it was typed: it is settled before the command is run.
    pub settles: Vec<usize>,
}

impl Sent {
    /// No answer yet, and one may come.
    pub fn open(&self) -> bool {
        self.answered.is_none() && self.orphaned.is_none()
    }
}

/// A subscription.
#[derive(Clone, Debug)]
pub struct Sub {
    /// The command that made it.
    pub command: usize,
    /// The tag its messages carry.
    pub tag: Option<String>,
    /// What it reads.
    pub source: String,
    /// Least and most credit it may have.
    pub credit: (u64, u64),
    /// Leases that may be asked for; `None` = the queue's.
    pub leases: Vec<Option<u64>>,
    /// Settled before it is sent.
    pub auto: bool,
    /// When its command had arrived.
    pub begun: u64,
    /// When `OK` was read.
    pub since: u64,
    /// A change of it is in flight.
    pub changing: u64,
    /// Deliveries that may still count against the credit.
    pub deliveries: Vec<usize>,
}

/// A live subscription.
#[derive(Clone, Debug)]
pub struct LiveSub {
    /// The command that made it.
    pub command: usize,
    /// What it is for.
    pub pattern: String,
    /// The tag its copies carry.
    pub tag: String,
    /// It began not before, not after.
    pub from: (u64, u64),
    /// It ended not before, not after.
    pub until: (u64, u64),
}

impl LiveSub {
    /// It may have been there at some moment of a span.
    pub fn may_get(&self, begin: u64, end: u64) -> bool {
        self.from.0 <= end && self.until.1 >= begin
    }
}

/// One connection as its client sees it.
#[derive(Debug, Default)]
pub struct Link {
    /// What it speaks.
    pub dialect: Dialect,
    /// Cuts what is received.
    pub reader: Reader,
    /// What was popped and is not known to be settled: deliveries.
    pub pops: Vec<usize>,
    /// What was settled in this run of the broker, and may be undone by a crash: message and command.
    pub unproved: Vec<(usize, usize)>,
    /// Its publishes wait for room.
    pub waits_for_room: bool,
    /// The server has closed its channel: nothing that is typed is run.
    pub is_over: bool,
    /// The transaction that the client has begun and not ended.
    pub typing: Option<usize>,
    /// Untagged commands without an answer, in order. Quiet ones too.
    pub waiting: VecDeque<usize>,
    /// Tagged ones.
    pub tagged: BTreeMap<String, usize>,
    /// Subscriptions now.
    pub subs: Vec<Sub>,
    /// Live subscriptions, oldest first, and those that were.
    pub live: Vec<LiveSub>,
    /// Live copies received, and those that it was told to have missed.
    pub live_count: u64,
    /// The last cast of each connection that a copy came of.
    pub last_casts: BTreeMap<usize, usize>,
    /// When it was over.
    pub ended: Option<u64>,
    /// Open on the client's side.
    pub open: bool,
    /// The client has ended its side.
    pub half_closed: bool,
    /// The server has a reason to close it, since then.
    pub may_close: Option<u64>,
    /// Its client is going, or the broker at once.
    pub leaving: bool,
    /// The broker is ending: what it hasn't begun stays unanswered.
    pub shut: bool,
    /// The socket takes nothing; what it doesn't take was written then or later.
    pub blocked: Option<u64>,
    /// When something was last answered, and the first arrival of what was answered then.
    pub burst: Option<(u64, u64)>,
    /// When the last untagged command was answered.
    pub idle_since: u64,
    /// Wants `EXPIRED` lines.
    pub expired: bool,
    /// Untagged publishes' highest confirmed id by queue, with the boot.
    pub ids: BTreeMap<String, (u64, u64)>,
    /// Errors that may belong to quiet commands in front of the next answer.
    pub quiet_errors: Vec<Line>,
    /// Quiet publishes since the last `SYNC`: commands.
    pub unsynced: Vec<usize>,
    /// Quiet publishes that were refused since the last `SYNC`.
    pub refused: u64,
    /// Sources from which it may have been given messages.
    pub sources: Vec<String>,
}

/// A power loss, and what it took from the `os` records: a suffix of the log.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Everything confirmed before this moment survived.
    pub kept: u64,
    /// Something confirmed by this moment was lost.
    pub lost: u64,
}
