//! The end of a broker with several shards: none closes its log before all have posted what their connections
//! had sent, and none stops before the others' last answers have come.
//!
//! A shard that begins to end says so at once, so that what connections wait for ends on all. It says `CLOSING` when
//! it has posted everything, closes its log when all have said so, says `CLOSED` behind its last answers, and stops when
//! all have. A drain ends when no shard has leases.

use super::Letter;
use crate::log::disk::Storage;
use crate::shard::conn::{Blocked, Conn};
use crate::shard::{Shard, Stop};

/// It ends.
const BEGUN: u8 = 0;
/// Nothing more is posted to queues.
pub(in crate::shard) const CLOSING: u8 = 1;
/// The log is closed, and every answer posted.
pub(in crate::shard) const CLOSED: u8 = 2;

/// How far each shard's end is.
#[derive(Debug)]
pub(super) struct Endings {
    stages: Vec<u8>,
    idle: Vec<bool>,
    /// What this shard is to say at the end of the turn, and has said.
    due: u8,
    said: u8,
    said_idle: bool,
    said_failed: bool,
}

impl Endings {
    pub(super) fn new(count: u32) -> Endings {
        Endings {
            stages: vec![0; count as usize],
            idle: vec![false; count as usize],
            due: 0,
            said: 0,
            said_idle: false,
            said_failed: false,
        }
    }

    pub(super) fn idle(&mut self, from: u32) {
        self.idle[from as usize] = true;
    }

    pub(super) fn reached(&mut self, from: u32, stage: u8) {
        self.stages[from as usize] = stage;
    }
}

impl<S: Storage> Shard<S> {
    /// This shard drains and has no leases: true if no other has either.
    pub(in crate::shard) fn all_idle(&mut self) -> bool {
        let Some(peers) = &mut self.peers else {
            return true;
        };
        let me = peers.me as usize;
        peers.ending.idle[me] = true;
        if !std::mem::replace(&mut peers.ending.said_idle, true) {
            for to in 0..peers.count {
                if to as usize != me {
                    peers.post(to, Letter::Idle);
                }
            }
        }
        peers.ending.idle.iter().all(|idle| *idle)
    }

    /// Tells the others that this shard ends.
    pub(in crate::shard) fn announce_ending(&mut self) {
        let Some(peers) = &mut self.peers else { return };
        for to in (0..peers.count).filter(|to| *to != peers.me) {
            peers.boxes[to as usize].push(Letter::Ending(BEGUN));
        }
    }

    /// Before the others may close their logs, something is to be passed on or brought to its end: a transaction, or
    /// what a connection has sent behind a command that others answer, or behind output that its peer has yet to read, or
    /// what shards are to say of its publishes.
    pub(in crate::shard) fn has_to_pass_on(&self) -> bool {
        let is_waiting = |conn: &Conn| {
            let is_away = matches!(conn.blocked, Blocked::Away(_));
            let is_full = conn.unsent() >= self.limits.send_bytes_max / 2;
            let has_more = (is_away || is_full) && !conn.tail.is_empty();
            conn.guest.is_none() && (has_more || conn.awaits_reports())
        };
        self.peers.is_some()
            && !self.has_passed_on()
            && (self.is_committing()
                || self.is_starting()
                || self.conns.iter().any(|(_, conn)| is_waiting(conn)))
    }

    /// The others may close their logs, as far as this shard is concerned.
    pub(super) fn has_passed_on(&self) -> bool {
        let peers = self.peers.as_ref();
        peers.is_some_and(|peers| peers.ending.due >= CLOSING)
    }

    /// This shard's end has got so far: true if every other's has too. Asked again and again.
    pub(in crate::shard) fn all_ending(&mut self, stage: u8) -> bool {
        let Some(peers) = &mut self.peers else {
            return true;
        };
        let me = peers.me as usize;
        let ending = &mut peers.ending;
        ending.due = ending.due.max(stage);
        // It counts once it was said, so that all of this shard's mail has been put together.
        ending.said >= stage
            && ending
                .stages
                .iter()
                .enumerate()
                .all(|(other, reached)| other == me || *reached >= stage)
    }

    /// Says what this shard has reached, behind everything else of this turn.
    pub(super) fn exchange_endings(&mut self) {
        let failed = match &self.stop {
            Some(Stop::Failed(text)) => Some(text.clone()),
            _ => None,
        };
        let Some(peers) = &mut self.peers else { return };
        let stage = peers.ending.due;
        let says_stage = stage > peers.ending.said;
        peers.ending.said = stage;
        let says_failed = failed.is_some() && !peers.ending.said_failed;
        peers.ending.said_failed |= says_failed;
        for to in (0..peers.count)
            .filter(|to| *to != peers.me)
            .collect::<Vec<_>>()
        {
            if says_stage {
                peers.post(to, Letter::Ending(stage));
            }
            if let (true, Some(text)) = (says_failed, &failed) {
                peers.post(to, Letter::Failed(text.clone()));
            }
        }
        if says_stage {
            // Whether the others were faster is found out in the next turn.
            self.housekeeping.look_again();
        }
    }
}
