//! Who wants which topics: patterns in a trie over their words.
//!
//! A look-up walks the topic's words with the set of nodes that the words so far lead to, so it costs
//! what begins like the topic, however many other patterns there are, and never more than nodes
//! times words. Knows patterns and who gave them; nothing of what is done with a match.
//!
//! ```text
//!   news.#  news.*.eu           root -- news -- # (loops on every word)  [archive]
//!                                            \- * -- eu                  [mail]
//! ```

use std::collections::HashMap;

use foldhash::fast::SeedableRandomState;

use super::pattern::{Pattern, Word};

/// A node's place. The root is 0, so that 0 is no child's.
type NodeKey = u32;
const ROOT: NodeKey = 0;
const NONE: NodeKey = 0;

/// Memory of one node beyond what it holds, and of one child's entry in its parent, bytes.
const NODE_BYTES: usize = size_of::<Node<u64>>();
const CHILD_BYTES: usize = 32;

/// How a node is reached from its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Edge {
    /// It is the root.
    Root,
    /// By exactly this word.
    Word(Box<[u8]>),
    /// By any one word: `*`.
    One,
    /// By any number of words: `#`.
    Any,
}

#[derive(Debug)]
struct Node<T> {
    parent: NodeKey,
    edge: Edge,
    words: HashMap<Box<[u8]>, NodeKey, SeedableRandomState>,
    one: NodeKey,
    any: NodeKey,
    /// Whose patterns end here, in order.
    values: Vec<T>,
    /// The last step of a look-up that led here.
    seen: u64,
}

/// Patterns and whose they are.
#[derive(Debug)]
pub struct Topics<T> {
    nodes: Vec<Option<Node<T>>>,
    free: Vec<NodeKey>,
    seed: SeedableRandomState,
    patterns: usize,
    word_bytes: usize,
    /// Counts the steps of all look-ups.
    step: u64,
    active: Vec<NodeKey>,
    next: Vec<NodeKey>,
}

impl<T: Copy + Ord> Topics<T> {
    /// No patterns; `seed` keeps peers from choosing words that collide.
    pub fn new(seed: SeedableRandomState) -> Topics<T> {
        let mut topics = Topics {
            nodes: Vec::new(),
            free: Vec::new(),
            seed,
            patterns: 0,
            word_bytes: 0,
            step: 0,
            active: Vec::new(),
            next: Vec::new(),
        };
        topics.add_node(NONE, Edge::Root);
        topics
    }

    /// Patterns, each counted once for everybody who has it.
    pub fn len(&self) -> usize {
        self.patterns
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.patterns == 0
    }

    /// Memory held, estimated, bytes.
    pub fn memory(&self) -> usize {
        let nodes = self.nodes.len() - self.free.len();
        nodes * (NODE_BYTES + CHILD_BYTES) + 2 * self.word_bytes + self.patterns * size_of::<T>()
    }

    fn node(&self, key: NodeKey) -> &Node<T> {
        self.nodes[key as usize]
            .as_ref()
            .expect("links lead to nodes")
    }

    fn node_mut(&mut self, key: NodeKey) -> &mut Node<T> {
        self.nodes[key as usize]
            .as_mut()
            .expect("links lead to nodes")
    }

    fn add_node(&mut self, parent: NodeKey, edge: Edge) -> NodeKey {
        let node = Node {
            parent,
            edge,
            words: HashMap::with_hasher(self.seed.clone()),
            one: NONE,
            any: NONE,
            values: Vec::new(),
            seen: 0,
        };
        if let Some(key) = self.free.pop() {
            self.nodes[key as usize] = Some(node);
            return key;
        }
        self.nodes.push(Some(node));
        (self.nodes.len() - 1) as NodeKey
    }

    /// The child that a pattern's word leads to; `NONE` if there is none.
    fn child(&self, key: NodeKey, word: &Word) -> NodeKey {
        let node = self.node(key);
        match word {
            Word::One => node.one,
            Word::Any => node.any,
            Word::Exact(octets) => node.words.get(octets).copied().unwrap_or(NONE),
        }
    }

    fn find(&self, pattern: &Pattern) -> Option<NodeKey> {
        let mut at = ROOT;
        for word in pattern.words() {
            at = self.child(at, word);
            if at == NONE {
                return None;
            }
        }
        Some(at)
    }

    /// Adds somebody's pattern; false if it was there.
    pub fn insert(&mut self, pattern: &Pattern, value: T) -> bool {
        let mut at = ROOT;
        for word in pattern.words() {
            let mut child = self.child(at, word);
            if child == NONE {
                let edge = match word {
                    Word::One => Edge::One,
                    Word::Any => Edge::Any,
                    Word::Exact(octets) => Edge::Word(octets.clone()),
                };
                child = self.add_node(at, edge);
                let parent = self.node_mut(at);
                match word {
                    Word::One => parent.one = child,
                    Word::Any => parent.any = child,
                    Word::Exact(octets) => {
                        parent.words.insert(octets.clone(), child);
                        self.word_bytes += octets.len();
                    }
                }
            }
            at = child;
        }
        let values = &mut self.node_mut(at).values;
        let Err(place) = values.binary_search(&value) else {
            return false;
        };
        values.insert(place, value);
        self.patterns += 1;
        true
    }

    /// Takes somebody's pattern away; false if it was not there.
    pub fn remove(&mut self, pattern: &Pattern, value: T) -> bool {
        let Some(mut at) = self.find(pattern) else {
            return false;
        };
        let values = &mut self.node_mut(at).values;
        let Ok(place) = values.binary_search(&value) else {
            return false;
        };
        values.remove(place);
        self.patterns -= 1;
        // Branches that lead nowhere go.
        while at != ROOT && self.node(at).is_bare() {
            let node = self.nodes[at as usize].take().expect("it was just found");
            self.free.push(at);
            let parent = self.node_mut(node.parent);
            match &node.edge {
                Edge::Root => unreachable!("the root stays"),
                Edge::One => parent.one = NONE,
                Edge::Any => parent.any = NONE,
                Edge::Word(octets) => {
                    parent.words.remove(octets);
                    self.word_bytes -= octets.len();
                }
            }
            at = node.parent;
        }
        true
    }

    /// Puts into `found`, which is emptied first, everybody with a pattern that means the topic: each once,
    /// in order.
    pub fn matches(&mut self, topic: &[u8], found: &mut Vec<T>) {
        found.clear();
        if self.is_empty() {
            return;
        }
        let mut active = std::mem::take(&mut self.active);
        let mut next = std::mem::take(&mut self.next);
        active.clear();
        self.step += 1;
        self.enter(ROOT, &mut active);
        for word in topic.split(|octet| *octet == b'.') {
            next.clear();
            self.step += 1;
            for key in &active {
                let node = self.node(*key);
                let (one, loops) = (node.one, node.edge == Edge::Any);
                let exact = node.words.get(word).copied().unwrap_or(NONE);
                for child in [exact, one] {
                    if child != NONE {
                        self.enter(child, &mut next);
                    }
                }
                if loops {
                    self.enter(*key, &mut next);
                }
            }
            std::mem::swap(&mut active, &mut next);
            if active.is_empty() {
                break;
            }
        }
        for key in &active {
            found.extend_from_slice(&self.node(*key).values);
        }
        if active.len() > 1 {
            found.sort_unstable();
            found.dedup();
        }
        self.active = active;
        self.next = next;
    }

    /// The words so far lead to this node, and as `#` may be no word, to the one behind it.
    fn enter(&mut self, mut key: NodeKey, active: &mut Vec<NodeKey>) {
        let step = self.step;
        loop {
            let node = self.node_mut(key);
            if node.seen == step {
                return;
            }
            node.seen = step;
            active.push(key);
            key = node.any;
            if key == NONE {
                return;
            }
        }
    }
}

impl<T> Node<T> {
    /// Nothing ends here or goes on from here.
    fn is_bare(&self) -> bool {
        let leads_on = !self.words.is_empty() || self.one != NONE || self.any != NONE;
        self.values.is_empty() && !leads_on
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn topics() -> Topics<u32> {
        Topics::new(SeedableRandomState::with_seed(
            7,
            foldhash::SharedSeed::global_fixed(),
        ))
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text.as_bytes()).expect("cases are valid")
    }

    fn found(topics: &mut Topics<u32>, topic: &str) -> Vec<u32> {
        let mut found = vec![99];
        topics.matches(topic.as_bytes(), &mut found);
        found
    }

    #[test]
    fn everybody_is_found_once_and_in_order() {
        let mut topics = topics();
        assert_eq!(found(&mut topics, "news.eu"), []);
        for (text, value) in [
            ("news.#", 3),
            ("news.eu", 1),
            ("#", 2),
            ("news.*", 1),
            ("*.eu", 4),
            ("news", 5),
            ("#.eu.#", 3),
        ] {
            assert!(topics.insert(&pattern(text), value));
        }
        assert!(!topics.insert(&pattern("news.*"), 1));
        assert_eq!(topics.len(), 7);
        assert_eq!(found(&mut topics, "news.eu"), [1, 2, 3, 4]);
        assert_eq!(found(&mut topics, "news"), [2, 3, 5]);
        assert_eq!(found(&mut topics, "a.eu.b"), [2, 3]);
        assert_eq!(found(&mut topics, "news.us.x"), [2, 3]);
        assert!(topics.remove(&pattern("news.*"), 1));
        assert!(!topics.remove(&pattern("news.*"), 1));
        assert!(!topics.remove(&pattern("news.#"), 1));
        assert!(!topics.remove(&pattern("x.y"), 1));
        assert_eq!(found(&mut topics, "news.eu"), [1, 2, 3, 4]);
        assert!(topics.remove(&pattern("news.eu"), 1));
        assert_eq!(found(&mut topics, "news.eu"), [2, 3, 4]);
    }

    #[test]
    fn what_is_taken_away_leaves_nothing_behind() {
        let mut topics = topics();
        let before = topics.memory();
        let texts = ["a.b.c", "a.b", "a.*.c", "#", "#.a.#", "*"];
        for _ in 0..3 {
            for (value, text) in texts.iter().enumerate() {
                assert!(topics.insert(&pattern(text), value as u32));
            }
            for (value, text) in texts.iter().enumerate() {
                assert!(topics.remove(&pattern(text), value as u32));
            }
            assert!(topics.is_empty());
            assert_eq!(topics.memory(), before);
        }
        assert!(topics.nodes.len() < 20, "places are used again");
    }

    /// Nodes looked at for one topic.
    fn visited(topics: &mut Topics<u32>, topic: &str) -> usize {
        found(topics, topic);
        let first = topics.step - topic.split('.').count() as u64;
        let nodes = topics.nodes.iter().flatten();
        nodes.filter(|node| node.seen >= first).count()
    }

    #[test]
    fn a_look_up_costs_what_begins_alike_and_not_what_there_is() {
        let mut topics = topics();
        for nth in 0..10_000 {
            for text in [
                format!("site{nth}.door.*"),
                format!("*.door.key{nth}"),
                format!("#.key{nth}"),
                format!("site{nth}.#"),
            ] {
                topics.insert(&pattern(&text), nth);
            }
        }
        assert_eq!(found(&mut topics, "site7.door.key9"), [7, 9]);
        assert!(visited(&mut topics, "site7.door.key9") < 20);
        assert!(visited(&mut topics, "x.y.z") < 20);
    }

    #[test]
    fn hostile_patterns_cost_no_more_than_their_words() {
        let mut topics = topics();
        let deep = "#.a.".repeat(100) + "b";
        topics.insert(&pattern(&deep), 1);
        let topic = "a.".repeat(120) + "c";
        for _ in 0..100 {
            assert_eq!(found(&mut topics, &topic), []);
        }
        let matching = "a.".repeat(120) + "b";
        assert_eq!(found(&mut topics, &matching), [1]);
    }

    fn word() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec!["a", "b", "", "%2A", "*", "#", "#"])
    }

    proptest! {
        #[test]
        fn agrees_with_patterns_looked_at_one_by_one(
            changes in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(word(), 1..6), 0u32..4), 1..60),
            names in proptest::collection::vec(
                proptest::collection::vec(proptest::sample::select(vec!["a", "b", "", "*", "#", "c"]), 1..7),
                1..20),
        ) {
            let mut topics = topics();
            let mut all = BTreeSet::new();
            for (is_added, words, value) in changes {
                let Ok(pattern) = Pattern::new(words.join(".").as_bytes()) else {
                    continue;
                };
                let key = (pattern.clone(), value);
                if is_added {
                    prop_assert_eq!(topics.insert(&pattern, value), all.insert(key));
                } else {
                    prop_assert_eq!(topics.remove(&pattern, value), all.remove(&key));
                }
                prop_assert_eq!(topics.len(), all.len());
            }
            for words in names {
                let name = words.join(".");
                let want: BTreeSet<u32> = all
                    .iter()
                    .filter(|(pattern, _)| pattern.matches(name.as_bytes()))
                    .map(|(_, value)| *value)
                    .collect();
                prop_assert_eq!(found(&mut topics, &name), Vec::from_iter(want));
            }
        }
    }
}
