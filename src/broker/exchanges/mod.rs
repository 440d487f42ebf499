//! Exchanges and bindings: where a message goes that is published to an exchange with a routing key. Pure:
//! knows queues by their identity, and nothing of messages but the key and the headers.
//!
//! A publish reaches a queue once, however many bindings lead there, and a walk over exchanges that are
//! bound to each other ends since each is visited once. Every change is a [`Change`], which the log and the
//! checkpoint keep.
//!
//! ```text
//!   publish --> exchange --binding(key, arguments)--> queue
//!                  |  \----binding------------------> exchange --> ...
//!                  \-- nothing matched --> its alternate exchange
//! ```

mod change;
mod headers;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::SeedableRandomState;
use slab::Slab;

pub use change::{
    Change, DeadRoute, Declared, FLAG_AUTO_DELETE, FLAG_DURABLE, FLAG_EXCLUSIVE, FLAG_INTERNAL,
};

use super::id::QueueUid;
use super::pattern::Pattern;
use super::topics::Topics;
use headers::Match;

/// An exchange's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExchangeKey(u32);

/// The exchange that topics of the line protocol belong to.
pub const TOPIC_EXCHANGE: &[u8] = b"amq.topic";

/// Exchanges that are always there; the one without a name is known to whoever routes.
const BUILT_IN: [(&[u8], Kind); 5] = [
    (b"amq.direct", Kind::Direct),
    (b"amq.fanout", Kind::Fanout),
    (b"amq.headers", Kind::Headers),
    (b"amq.match", Kind::Headers),
    (TOPIC_EXCHANGE, Kind::Topic),
];

/// How an exchange chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The routing key is the binding key.
    Direct,
    /// Every binding.
    Fanout,
    /// The binding key is a pattern of words.
    Topic,
    /// By the message's headers.
    Headers,
}

impl Kind {
    /// The kind of that name.
    pub fn from_name(name: &[u8]) -> Option<Kind> {
        match name {
            b"direct" => Some(Kind::Direct),
            b"fanout" => Some(Kind::Fanout),
            b"topic" => Some(Kind::Topic),
            b"headers" => Some(Kind::Headers),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Direct => "direct",
            Kind::Fanout => "fanout",
            Kind::Topic => "topic",
            Kind::Headers => "headers",
        }
    }
}

/// Where a binding leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A queue.
    Queue(QueueUid),
    /// An exchange, by its name.
    Exchange(Box<[u8]>),
}

/// A binding's place.
type BindingId = u32;

#[derive(Debug)]
struct Binding {
    source: ExchangeKey,
    target: Target,
    key: Box<[u8]>,
    arguments: Box<[u8]>,
    wanted: Option<Match>,
}

/// What tells two bindings of an exchange apart.
type Identity = (Target, Box<[u8]>, Box<[u8]>);

#[derive(Debug)]
enum Index {
    Direct(HashMap<Box<[u8]>, Vec<BindingId>, SeedableRandomState>),
    Topic(Box<Topics<BindingId>>),
    /// Each binding is looked at.
    All,
}

/// One exchange.
#[derive(Debug)]
pub struct Exchange {
    /// Its name, octets.
    pub name: Box<[u8]>,
    /// How it chooses.
    pub kind: Kind,
    /// [`FLAG_DURABLE`], [`FLAG_AUTO_DELETE`], [`FLAG_INTERNAL`].
    pub flags: u8,
    /// Arguments as they were declared, a table.
    pub arguments: Box<[u8]>,
    /// Where goes what no binding wants.
    alternate: Option<Box<[u8]>>,
    bindings: BTreeMap<Identity, BindingId>,
    index: Index,
    /// Exchanges' bindings that lead here.
    incoming: BTreeSet<BindingId>,
    is_built_in: bool,
    visited: u64,
}

impl Exchange {
    /// Nothing is bound to it as a source.
    pub fn is_unused(&self) -> bool {
        self.bindings.is_empty()
    }

    /// It was not declared and cannot be deleted.
    pub fn is_built_in(&self) -> bool {
        self.is_built_in
    }
}

/// What a publish reaches.
#[derive(Debug, Default)]
pub struct Found {
    /// Queues, each once, in order of their identity.
    pub queues: Vec<QueueUid>,
    /// The default exchange was reached: the queue whose name is the routing key is meant too.
    pub by_name: bool,
    /// The exchange of topics was reached.
    pub by_topic: bool,
}

/// Every exchange and binding of a broker.
#[derive(Debug)]
pub struct Exchanges {
    names: BTreeMap<Box<[u8]>, ExchangeKey>,
    topics: ExchangeKey,
    exchanges: Slab<Exchange>,
    bindings: Slab<Binding>,
    of_queue: BTreeMap<QueueUid, BTreeSet<BindingId>>,
    seed: SeedableRandomState,
    /// Grows with every change: what was found before may be found no more.
    version: u64,
    walk: u64,
    stack: Vec<ExchangeKey>,
    matched: Vec<BindingId>,
}

impl Exchanges {
    /// The exchanges that are always there; `seed` keeps peers from choosing keys that collide.
    pub fn new(seed: SeedableRandomState) -> Exchanges {
        let mut exchanges = Exchanges {
            names: BTreeMap::new(),
            topics: ExchangeKey(0),
            exchanges: Slab::new(),
            bindings: Slab::new(),
            of_queue: BTreeMap::new(),
            seed,
            version: 1,
            walk: 0,
            stack: Vec::new(),
            matched: Vec::new(),
        };
        for (name, kind) in BUILT_IN {
            let key = exchanges.insert(name, kind, FLAG_DURABLE, b"");
            exchanges.get_mut(key).is_built_in = true;
            if name == TOPIC_EXCHANGE {
                exchanges.topics = key;
            }
        }
        exchanges
    }

    /// Grows with every change of an exchange or a binding.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The exchange that topics belong to.
    #[inline]
    pub fn topics(&self) -> ExchangeKey {
        self.topics
    }

    /// The exchange of that name.
    pub fn find(&self, name: &[u8]) -> Option<ExchangeKey> {
        self.names.get(name).copied()
    }

    /// An exchange that was found.
    pub fn get(&self, key: ExchangeKey) -> &Exchange {
        &self.exchanges[key.0 as usize]
    }

    fn get_mut(&mut self, key: ExchangeKey) -> &mut Exchange {
        &mut self.exchanges[key.0 as usize]
    }

    /// Exchanges, those that are always there included.
    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// There is none, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// Memory held, estimated, bytes.
    pub fn memory(&self) -> usize {
        const BINDING_BYTES: usize = 2 * size_of::<Binding>() + 96;
        self.exchanges.len() * size_of::<Exchange>() + self.bindings.len() * BINDING_BYTES
    }

    /// The queue has bindings.
    pub fn has_bindings(&self, queue: QueueUid) -> bool {
        self.of_queue.contains_key(&queue)
    }

    /// The binding is there.
    pub fn is_bound(
        &self,
        source: ExchangeKey,
        target: &Target,
        key: &[u8],
        arguments: &[u8],
    ) -> bool {
        let identity = (target.clone(), key.into(), arguments.into());
        self.get(source).bindings.contains_key(&identity)
    }

    /// Names of exchanges that do not survive a restart.
    pub fn transient(&self) -> Vec<Box<[u8]>> {
        self.exchanges
            .iter()
            .filter(|(_, exchange)| exchange.flags & FLAG_DURABLE == 0)
            .map(|(_, exchange)| exchange.name.clone())
            .collect()
    }

    // --- Changes ---

    /// Does what the change says. One that says what is so already, or names what is not there, changes
    /// nothing. Returns false then.
    pub fn apply(&mut self, change: &Change<'_>) -> bool {
        let is_changed = match change {
            Change::Exchange {
                name,
                kind,
                flags,
                arguments,
            } => {
                if self.names.contains_key(*name) {
                    return false;
                }
                self.insert(name, *kind, *flags, arguments);
                true
            }
            Change::ExchangeGone { name } => match self.find(name) {
                Some(key) if !self.get(key).is_built_in => {
                    self.remove(key);
                    true
                }
                _ => false,
            },
            Change::Bind {
                source,
                target,
                key,
                arguments,
            } => self.bind(source, target, key, arguments),
            Change::Unbind {
                source,
                target,
                key,
                arguments,
            } => self.unbind(source, target, key, arguments),
            Change::QueueGone { uid } => {
                let is_bound = self.has_bindings(*uid);
                self.queue_gone(*uid);
                is_bound
            }
            // That is the queue's own.
            Change::Queue { .. } => false,
        };
        self.version += u64::from(is_changed);
        is_changed
    }

    /// A queue is deleted: its bindings go with it, and exchanges that were only for them.
    pub fn queue_gone(&mut self, queue: QueueUid) {
        let ids = self.of_queue.remove(&queue);
        for id in ids.into_iter().flatten() {
            // One may have gone with an exchange that went before.
            if self.bindings.contains(id as usize) {
                self.drop_binding(id);
            }
        }
        self.version += 1;
    }

    /// Queues that something is bound to.
    pub fn bound(&self) -> impl Iterator<Item = QueueUid> {
        self.of_queue.keys().copied()
    }

    /// Only those that are always there are left.
    pub fn clear(&mut self) {
        let version = self.version;
        *self = Exchanges::new(self.seed.clone());
        self.version = version + 1;
    }

    fn insert(&mut self, name: &[u8], kind: Kind, flags: u8, arguments: &[u8]) -> ExchangeKey {
        let index = match kind {
            Kind::Direct => Index::Direct(HashMap::with_hasher(self.seed.clone())),
            Kind::Topic => Index::Topic(Box::new(Topics::new(self.seed.clone()))),
            Kind::Fanout | Kind::Headers => Index::All,
        };
        let alternate = match super::headers::find(arguments, b"alternate-exchange") {
            Some(super::headers::Value::Text(name)) => Some(name.into()),
            _ => None,
        };
        let key = ExchangeKey(self.exchanges.insert(Exchange {
            name: name.into(),
            kind,
            flags,
            arguments: arguments.into(),
            alternate,
            bindings: BTreeMap::new(),
            index,
            incoming: BTreeSet::new(),
            is_built_in: false,
            visited: 0,
        }) as u32);
        self.names.insert(name.into(), key);
        key
    }

    fn remove(&mut self, key: ExchangeKey) {
        let exchange = self.get_mut(key);
        // Nothing is deleted for want of bindings while the whole of it goes.
        exchange.flags &= !FLAG_AUTO_DELETE;
        let name = std::mem::take(&mut exchange.name);
        let ids: Vec<BindingId> = exchange.bindings.values().copied().collect();
        let incoming: Vec<BindingId> = exchange.incoming.iter().copied().collect();
        for id in ids.into_iter().chain(incoming) {
            // One that leads from it to itself stands in both.
            if self.bindings.contains(id as usize) {
                self.drop_binding(id);
            }
        }
        self.names.remove(&name);
        self.exchanges.remove(key.0 as usize);
    }

    fn bind(&mut self, source: &[u8], target: &Target, key: &[u8], arguments: &[u8]) -> bool {
        let Some(source) = self.find(source) else {
            return false;
        };
        let to = match target {
            Target::Exchange(name) => match self.find(name) {
                Some(to) => Some(to),
                None => return false,
            },
            Target::Queue(_) => None,
        };
        let identity = (target.clone(), key.into(), arguments.into());
        if self.get(source).bindings.contains_key(&identity) {
            return false;
        }
        let wanted = match self.get(source).kind {
            Kind::Headers => Some(Match::new(arguments)),
            Kind::Direct | Kind::Fanout | Kind::Topic => None,
        };
        let id = self.bindings.insert(Binding {
            source,
            target: target.clone(),
            key: key.into(),
            arguments: arguments.into(),
            wanted,
        }) as BindingId;
        match (target, to) {
            (_, Some(to)) => _ = self.get_mut(to).incoming.insert(id),
            (Target::Queue(uid), None) => _ = self.of_queue.entry(*uid).or_default().insert(id),
            (Target::Exchange(_), None) => unreachable!("it was just found"),
        }
        let exchange = self.get_mut(source);
        exchange.bindings.insert(identity, id);
        match &mut exchange.index {
            Index::Direct(keys) => keys.entry(key.into()).or_default().push(id),
            Index::Topic(topics) => _ = topics.insert(&Pattern::of_binding_key(key), id),
            Index::All => {}
        }
        true
    }

    fn unbind(&mut self, source: &[u8], target: &Target, key: &[u8], arguments: &[u8]) -> bool {
        let Some(source) = self.find(source) else {
            return false;
        };
        let identity = (target.clone(), key.into(), arguments.into());
        match self.get(source).bindings.get(&identity).copied() {
            Some(id) => {
                self.drop_binding(id);
                true
            }
            None => false,
        }
    }

    /// Takes a binding out of its places. The source goes too if it was only there for its bindings.
    fn drop_binding(&mut self, id: BindingId) {
        let Binding {
            source,
            target,
            key,
            arguments,
            ..
        } = self.bindings.remove(id as usize);
        match &target {
            Target::Queue(uid) => {
                if let Some(ids) = self.of_queue.get_mut(uid) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.of_queue.remove(uid);
                    }
                }
            }
            Target::Exchange(name) => {
                if let Some(to) = self.find(name) {
                    self.get_mut(to).incoming.remove(&id);
                }
            }
        }
        let exchange = self.get_mut(source);
        match &mut exchange.index {
            Index::Direct(keys) => {
                if let Some(ids) = keys.get_mut(&key) {
                    ids.retain(|other| *other != id);
                    if ids.is_empty() {
                        keys.remove(&key);
                    }
                }
            }
            Index::Topic(topics) => _ = topics.remove(&Pattern::of_binding_key(&key), id),
            Index::All => {}
        }
        exchange.bindings.remove(&(target, key, arguments));
        let is_over = exchange.flags & FLAG_AUTO_DELETE != 0
            && exchange.bindings.is_empty()
            && !exchange.is_built_in;
        if is_over {
            self.remove(source);
        }
    }

    /// Everything as changes that make it again, exchanges first.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        let exchanges = self.names.values().map(|key| self.get(*key));
        let made = exchanges
            .clone()
            .filter(|exchange| !exchange.is_built_in)
            .map(|exchange| Change::Exchange {
                name: &exchange.name,
                kind: exchange.kind,
                flags: exchange.flags,
                arguments: &exchange.arguments,
            });
        let bound = exchanges.flat_map(|exchange| {
            exchange
                .bindings
                .keys()
                .map(|(target, key, arguments)| Change::Bind {
                    source: &exchange.name,
                    target: target.clone(),
                    key,
                    arguments,
                })
        });
        made.chain(bound)
    }

    // --- Routing ---

    /// Adds to `found` what a message reaches that is published to an exchange. `headers` is its table.
    pub fn route(&mut self, exchange: ExchangeKey, key: &[u8], headers: &[u8], found: &mut Found) {
        self.walk += 1;
        let before = found.queues.len();
        let mut stack = std::mem::take(&mut self.stack);
        stack.push(exchange);
        while let Some(next) = stack.pop() {
            self.visit(next, key, headers, found, &mut stack);
        }
        self.stack = stack;
        if found.queues.len() > before + 1 {
            found.queues.sort_unstable();
            found.queues.dedup();
        }
    }

    fn visit(
        &mut self,
        key_of: ExchangeKey,
        key: &[u8],
        headers: &[u8],
        found: &mut Found,
        stack: &mut Vec<ExchangeKey>,
    ) {
        let walk = self.walk;
        let exchange = &mut self.exchanges[key_of.0 as usize];
        if exchange.visited == walk {
            return;
        }
        exchange.visited = walk;
        let mut is_matched = false;
        let (bindings, names) = (&self.bindings, &self.names);
        let mut take = |id: BindingId| {
            is_matched = true;
            match &bindings[id as usize].target {
                Target::Queue(uid) => found.queues.push(*uid),
                Target::Exchange(name) => stack.extend(names.get(name)),
            }
        };
        match &mut exchange.index {
            Index::Direct(keys) => keys.get(key).into_iter().flatten().copied().for_each(take),
            Index::Topic(topics) => {
                topics.matches(key, &mut self.matched);
                self.matched.iter().copied().for_each(take);
            }
            Index::All => {
                for id in exchange.bindings.values() {
                    match &bindings[*id as usize].wanted {
                        Some(wanted) if !wanted.matches(headers) => {}
                        _ => take(*id),
                    }
                }
            }
        }
        if &*exchange.name == TOPIC_EXCHANGE {
            found.by_topic = true;
        }
        if !is_matched && let Some(alternate) = &exchange.alternate {
            match self.names.get(alternate) {
                Some(next) => stack.push(*next),
                None => found.by_name |= alternate.is_empty(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
