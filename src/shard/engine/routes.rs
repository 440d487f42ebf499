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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::exchanges::{FLAG_AUTO_DELETE, Kind};
    use crate::broker::settings::Settings;
    use crate::log::NoStorage;

    fn shard(me: u32) -> Engine<NoStorage> {
        let mut engine = Engine::new(Settings::default(), 0);
        engine.shards = (3, me);
        engine
    }

    fn bind(uid: QueueUid) -> Change<'static> {
        Change::Bind {
            source: b"e",
            target: Target::Queue(uid),
            key: b"k",
            arguments: b"",
        }
    }

    #[test]
    fn a_queue_is_named_by_its_shard_everywhere_else() {
        let (first, second) = (shard(1), shard(2));
        let octets = first.encode_for_all(&bind(QueueUid(7)));
        assert_eq!(first.decode_for_me(&octets), Some(bind(QueueUid(7))));
        let seen = second.decode_for_me(&octets);
        assert_eq!(seen, Some(bind(far_origin(1, 7))));
        // Told on, it is the same.
        let told = second.encode_for_all(&bind(far_origin(1, 7)));
        assert_eq!(told, octets);
        assert_eq!(first.decode_for_me(b""), None);
    }

    #[test]
    fn bindings_to_queues_that_are_gone_end_at_the_start() {
        let mut owner = shard(1);
        let exchange = Change::Exchange {
            name: b"e",
            kind: Kind::Direct,
            flags: FLAG_AUTO_DELETE,
            arguments: b"",
        };
        let routes = [
            owner.encode_for_all(&exchange),
            owner.encode_for_all(&bind(QueueUid(7))),
            owner.encode_for_all(&bind(far_origin(2, 7))),
        ];
        owner.install_routes(&routes);
        let news: Vec<_> = owner.route_news.drain(..).collect();
        assert_eq!(news.len(), 1);
        let gone = far_origin(1, 7);
        assert_eq!(
            Change::decode(&news[0].change),
            Some(Change::QueueGone { uid: gone })
        );
        // It is the first shard that ends them, for all in the same order.
        assert!(owner.exchanges.has_bindings(QueueUid(7)));
        owner.install_route(&news[0].change);
        assert!(!owner.exchanges.has_bindings(QueueUid(7)));
        assert!(owner.exchanges.find(b"e").is_some());
        let other = owner.encode_for_all(&Change::QueueGone {
            uid: far_origin(2, 7),
        });
        owner.install_route(&other);
        assert!(owner.exchanges.find(b"e").is_none());
    }
}
