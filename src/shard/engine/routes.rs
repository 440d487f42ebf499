//! Exchanges and bindings of a broker with several shards: every shard has all of them, and changes them in
//! the same order.
//!
//! The first shard decides the order and logs it; what others want changed is asked of it, and what it has
//! changed is told to all. A queue is named by its shard and its identity there wherever it is not of the shard itself
//! ([`far`]). So any shard finds where a publish or a dead letter goes, and an exchange that goes with its last
//! binding goes everywhere at the same point of the order.

use super::Engine;
use super::outbox::{far, far_origin};
use crate::broker::exchanges::{Change, Target};
use crate::broker::id::QueueUid;
use crate::log::disk::Storage;

/// A change on its way to other shards.
#[derive(Debug)]
pub struct RouteNews {
    /// Encoded for any shard; empty if there is nothing to change any more.
    pub change: Vec<u8>,
    /// Who asked for it, and the number of what was asked; 0 = nobody waits.
    pub asker: (u32, u64),
}

/// Renames the queue that a change is about.
fn with_queue<'a>(change: &Change<'a>, name: impl Fn(QueueUid) -> QueueUid) -> Change<'a> {
    let mut change = change.clone();
    match &mut change {
        Change::Bind {
            target: Target::Queue(uid),
            ..
        }
        | Change::Unbind {
            target: Target::Queue(uid),
            ..
        }
        | Change::QueueGone { uid } => *uid = name(*uid),
        _ => {}
    }
    change
}

impl<S: Storage> Engine<S> {
    /// A change as any shard understands it.
    pub fn encode_for_all(&self, change: &Change<'_>) -> Vec<u8> {
        let me = self.shards.1;
        let named = |uid| match far(uid) {
            Some(_) => uid,
            None => far_origin(me, uid.0),
        };
        let mut octets = Vec::new();
        with_queue(change, named).encode(&mut octets);
        octets
    }

    /// Reads a change that was encoded for any shard; `None` if there is nothing to change.
    pub fn decode_for_me<'a>(&self, octets: &'a [u8]) -> Option<Change<'a>> {
        let me = self.shards.1;
        let named = |uid| match far(uid) {
            Some((shard, own)) if shard == me => own,
            _ => uid,
        };
        Some(with_queue(&Change::decode(octets)?, named))
    }

    /// What all shards have, encoded for any.
    pub fn routes_for_all(&self) -> Vec<Vec<u8>> {
        let changes = self.exchanges.changes();
        changes.map(|change| self.encode_for_all(&change)).collect()
    }

    /// Takes over what the first shard has. Bindings to queues that are not here any more are to end.
    pub fn install_routes(&mut self, changes: &[Vec<u8>]) {
        self.exchanges.clear();
        for octets in changes {
            self.install_route(octets);
        }
        self.has_routes = true;
        let bound: Vec<QueueUid> = self.exchanges.bound().collect();
        for uid in bound {
            if far(uid).is_none() && self.find_uid(uid).is_none() {
                self.unbind_queue(uid);
            }
        }
    }

    /// Does what the first shard has done.
    pub fn install_route(&mut self, octets: &[u8]) {
        if let Some(change) = self.decode_for_me(octets) {
            self.exchanges.apply(&change);
        }
    }

    /// A queue is deleted: its bindings end.
    pub(super) fn unbind_queue(&mut self, uid: QueueUid) {
        let (shards, me) = self.shards;
        if me == 0 {
            let is_bound = shards > 1 && self.exchanges.has_bindings(uid);
            self.exchanges.queue_gone(uid);
            if !is_bound {
                return;
            }
        } else if !self.exchanges.has_bindings(uid) {
            return;
        }
        let change = self.encode_for_all(&Change::QueueGone { uid });
        self.route_news.push(RouteNews {
            change,
            asker: (me, 0),
        });
    }
}
