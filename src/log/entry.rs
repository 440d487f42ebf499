//! The entries of a record: what happened, one by one, and how that is written.
//!
//! An entry holds outcomes (ids, runs, targets), never requests. Entries that hold a message
//! ([`Entry::Publish`], [`Entry::Transfer`]) carry a checksum of their own, seeded with their
//! position, so that a message read back later is this one or nothing.

use crate::broker::command::Body;
use crate::broker::id::{MessageId, QueueUid};

mod head;
mod read;

pub(crate) use head::{
    HeadBuilder, HeadError, MessageHead, SmallHead, message_crc, message_crc_more, message_head,
    seed,
};
pub use head::{PUBLISH_HEAD_BYTES_MAX, TRANSFER_HEAD_BYTES_MAX};
pub(crate) use read::{Entries, EntryError, Scratch};

/// A message to be stored.
#[derive(Debug)]
pub struct Message<'a> {
    /// Publish time, milliseconds since the unix epoch.
    pub time_ms: u64,
    /// Optional sections, as a [`super::SectionsBuilder`] makes them; mostly empty.
    pub sections: &'a [u8],
    /// The body. An owned one of 16 KiB or more is kept without copying it.
    pub body: Body<'a>,
}

/// Why messages were settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SettleReason {
    /// A consumer acked it.
    Acked = 1,
    /// Its time to live ended.
    Expired = 2,
    /// It made room in a queue that was full.
    DroppedOld = 3,
    /// `DEL`.
    Deleted = 4,
    /// `PURGE`.
    Purged = 5,
    /// Its last try failed and there is no dead-letter queue to take it.
    Dead = 6,
    /// Its body was damaged on disk.
    Damaged = 7,
    /// Every reader had settled it before, and `retain=` keeps it no longer.
    Released = 8,
}

impl SettleReason {
    fn from_byte(byte: u8) -> Option<SettleReason> {
        use SettleReason::*;
        [
            Acked, Expired, DroppedOld, Deleted, Purged, Dead, Damaged, Released,
        ]
        .get(byte.wrapping_sub(1) as usize)
        .copied()
    }
}

/// Why a message went to another queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TransferReason {
    /// `maxdeliver` was reached.
    Tries = 1,
    /// Its time to live ended.
    Expired = 2,
    /// It made room in a queue that was full.
    DroppedOld = 3,
    /// `NACK dead=1`.
    Rejected = 4,
    /// `MOVE`.
    Moved = 5,
}

impl TransferReason {
    /// The reason that this byte of the log means, if it means one.
    pub fn from_byte(byte: u8) -> Option<TransferReason> {
        use TransferReason::*;
        [Tries, Expired, DroppedOld, Rejected, Moved]
            .get(byte.wrapping_sub(1) as usize)
            .copied()
    }
}

/// Consecutive ids of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first id.
    pub first: MessageId,
    /// How many, at least 1.
    pub count: u64,
}

/// One thing that happened.
#[derive(Debug)]
pub enum Entry<'a> {
    /// A message was published to one or more queues; it is stored once.
    Publish {
        /// Every queue that took it, and its id there; at least one.
        targets: &'a [(QueueUid, MessageId)],
        /// The message.
        message: Message<'a>,
    },
    /// Messages of one queue were settled.
    Settle {
        /// The queue.
        queue: QueueUid,
        /// Number of the group in the queue; 0 = the one without a name.
        group: u32,
        /// Why.
        reason: SettleReason,
        /// Which; at least one run.
        runs: &'a [Run],
    },
    /// Leases of messages ended without settling them.
    Release {
        /// The queue.
        queue: QueueUid,
        /// Number of the group in the queue.
        group: u32,
        /// Which messages.
        run: Run,
        /// The failed tries of each so far.
        tries: u32,
        /// Not delivered again before this unix time, microseconds; 0 = at once.
        not_before_us: u64,
    },
    /// A message was settled in one queue and written anew to another, atomically.
    Transfer {
        /// Where it was.
        source: QueueUid,
        /// Its id there.
        source_id: MessageId,
        /// Number of the group of the source in which it was settled.
        group: u32,
        /// Why.
        reason: TransferReason,
        /// Where it is now.
        target: QueueUid,
        /// Its id there.
        target_id: MessageId,
        /// The message as it is stored now.
        message: Message<'a>,
    },
    /// A queue was made, or its settings changed.
    Define {
        /// The queue.
        uid: QueueUid,
        /// Its name, 1 to 255 octets.
        name: &'a [u8],
        /// The broker's encoding of its settings.
        settings: &'a [u8],
        /// The broker's flags.
        flags: u32,
    },
    /// A queue was deleted with everything in it.
    DeleteQueue {
        /// The queue.
        uid: QueueUid,
    },
    /// A queue takes what is cast to topics that a pattern means.
    Bind {
        /// The queue.
        queue: QueueUid,
        /// The pattern as it is typed.
        pattern: &'a [u8],
    },
    /// A reader of a queue begins, or goes to another place: it has every message that is stored from an id on,
    /// and none before.
    Group {
        /// The group's identity, of those of queues and never used again; the queue's own for its bare
        /// name.
        uid: QueueUid,
        /// Whose messages it reads.
        queue: QueueUid,
        /// The first message that it has.
        first: MessageId,
        /// Octets of the group's name; empty for the bare name.
        name: &'a [u8],
    },
    /// It does not any more.
    Unbind {
        /// The queue.
        queue: QueueUid,
        /// The pattern as it is typed.
        pattern: &'a [u8],
    },
    /// A schedule of a queue was made or changed, has published a message, or has ended.
    Schedule {
        /// The queue.
        queue: QueueUid,
        /// Which of the broker's schedules.
        number: u64,
        /// When its next message is due, unix microseconds; 0 = it has ended.
        next_us: u64,
        /// The broker's encoding of it; empty if it stays as it is.
        definition: &'a [u8],
    },
    /// A message has left for a queue of another shard: it stays where it is, taken, until it is settled.
    Out {
        /// Its number among those of this shard, from 1.
        seq: u64,
        /// Where it goes.
        shard: u32,
        /// Which reader it leaves.
        queue: QueueUid,
        /// Its id there.
        id: MessageId,
        /// Why.
        reason: TransferReason,
        /// How often it was tried.
        tries: u32,
        /// Name of the queue it goes to, 1 to 255 octets.
        target: &'a [u8],
        /// What the consumer said.
        why: &'a [u8],
    },
    /// The next message of this record came from another shard.
    In {
        /// Where it comes from.
        shard: u32,
        /// Its number there.
        seq: u64,
        /// What has lower numbers there is never sent again.
        below: u64,
        /// Uid of the reader there that it died in; 0 if it did not.
        origin: u64,
    },
    /// What another shard has to do in a transaction that is decided; an empty part: it has done it.
    Part {
        /// Its number among those of this shard, from 1.
        seq: u64,
        /// The shard.
        shard: u32,
        /// The broker's encoding of it.
        part: &'a [u8],
    },
    /// An exchange or a binding was made or ended, or a queue was declared.
    Route {
        /// The broker's encoding of it.
        change: &'a [u8],
    },
    /// The broker started.
    Open {
        /// Which start on this data directory, from 1.
        incarnation: u64,
    },
}

pub(crate) const PUBLISH: u8 = 1;
pub(crate) const TRANSFER: u8 = 2;
pub(super) const SETTLE: u8 = 3;
pub(super) const RELEASE: u8 = 4;
pub(super) const DEFINE: u8 = 5;
pub(super) const DELETE_QUEUE: u8 = 6;
pub(super) const OPEN: u8 = 7;
pub(super) const GROUP: u8 = 8;
pub(super) const SCHEDULE: u8 = 12;
pub(super) const OUT: u8 = 13;
pub(super) const IN: u8 = 14;
pub(super) const PART: u8 = 15;
pub(super) const BIND: u8 = 16;
pub(super) const UNBIND: u8 = 17;
pub(super) const ROUTE: u8 = 18;

/// The bits of the first byte that hold the kind; the others are flags.
const KIND_BITS: u8 = 0x1f;
/// A publish with several targets.
pub(crate) const FLAG_MANY: u8 = 0x20;
/// A message with sections.
pub(crate) const FLAG_SECTIONS: u8 = 0x40;
