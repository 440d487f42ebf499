//! What the home of a client of AMQP says to the client's parts at other shards.
//!
//! Most of what a part is told, as publishes and acks, it does not answer, so that nothing waits for it: such input is no
//! run. What is behind a method that is answered waits for its run, as the client does.

use super::guest::Kind;
use crate::log::disk::Storage;
use crate::shard::Shard;

impl<S: Storage> Shard<S> {
    /// A client has parts at several shards: what it is told goes through its wire from the first byte on.
    pub(in crate::shard) fn begin_parts(&mut self, slot: usize) {
        self.away(slot);
    }

    /// Posts frames that are answered; what comes next waits for the answers.
    pub(in crate::shard) fn post_answered(&mut self, slot: usize, to: u32, frames: Vec<u8>) {
        self.post_alone(slot, to, Kind::Commands, frames);
        self.wait_for_last_run(slot);
    }

    /// Posts something that is answered when what the part has published is seen by consumers.
    pub(in crate::shard) fn post_barrier(&mut self, slot: usize, to: u32) {
        self.post_alone(slot, to, Kind::Barrier, Vec::new());
    }

    /// What was said here so far is a run: what waits for all answers waits until it is on the wire.
    pub(in crate::shard) fn mark_run(&mut self, slot: usize) {
        self.seal_own(slot, true);
        self.list_away(slot);
    }

    /// Other shards with a part of the client.
    pub(in crate::shard) fn parts_elsewhere(&self, slot: usize) -> Vec<u32> {
        let away = self.conns[slot].away.as_ref();
        away.map(|away| away.guests()).unwrap_or_default()
    }

    /// Runs a barrier; false if it comes again.
    pub(super) fn run_barrier(&mut self, slot: usize) -> bool {
        if self.wait_for_own(slot) {
            return false;
        }
        self.flush_confirms(slot);
        true
    }
}
