//! Identifiers that must not be mixed up, and the durability levels.

use std::fmt;

/// A queue's identity: never used again, not even after the queue is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueUid(pub u64);

/// A message's id inside its queue: starts at 1, increases by one with every publish.
pub type MessageId = u64;

/// Names one delivery on the wire as `<incarnation>.<id>.<serial>`.
///
/// The incarnation counts the starts of the broker on its data directory and the serial counts the
/// leases of one run, so a handle is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// Which run of the broker made the delivery.
    pub incarnation: u64,
    /// The message's id in its queue.
    pub id: MessageId,
    /// The lease's serial number within the run, from 1.
    pub serial: u64,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.incarnation, self.id, self.serial)
    }
}

/// How far a queue's messages must have got before they are confirmed and visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Memory only; receipts say `mem`.
    None = 0,
    /// Accepted by `write(2)`.
    Os = 1,
    /// `fdatasync` has returned.
    Disk = 2,
    /// On disk on a majority of a cluster.
    Quorum = 3,
}

impl Level {
    /// The word a setting or a `sync=` uses: `none`, `os`, `disk`, `quorum`.
    pub fn setting(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Os => "os",
            Level::Disk => "disk",
            Level::Quorum => "quorum",
        }
    }

    /// The word a receipt uses: as the setting's, but `mem` for [`Level::None`].
    pub fn receipt(self) -> &'static str {
        match self {
            Level::None => "mem",
            other => other.setting(),
        }
    }

    /// Parses a setting's word.
    pub fn parse(word: &[u8]) -> Option<Level> {
        match word {
            b"none" => Some(Level::None),
            b"os" => Some(Level::Os),
            b"disk" => Some(Level::Disk),
            b"quorum" => Some(Level::Quorum),
            _ => None,
        }
    }
}
