//! Exchanges of every kind by hand, and any sequence of changes against a model of lists.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::broker::headers::push_text;

fn exchanges() -> Exchanges {
    Exchanges::new(SeedableRandomState::with_seed(
        7,
        foldhash::SharedSeed::global_fixed(),
    ))
}

fn declare(exchanges: &mut Exchanges, name: &str, kind: Kind, flags: u8, alternate: Option<&str>) {
    let mut arguments = Vec::new();
    if let Some(alternate) = alternate {
        push_text(&mut arguments, b"alternate-exchange", alternate.as_bytes());
    }
    let change = Change::Exchange {
        name: name.as_bytes(),
        kind,
        flags,
        arguments: &arguments,
    };
    assert!(exchanges.apply(&change));
    assert!(!exchanges.apply(&change), "it is there");
}

fn queue(uid: u64) -> Target {
    Target::Queue(QueueUid(uid))
}

fn to(name: &str) -> Target {
    Target::Exchange(name.as_bytes().into())
}

fn bind(exchanges: &mut Exchanges, source: &str, target: Target, key: &str) -> bool {
    bind_with(exchanges, source, target, key, b"")
}

fn bind_with(
    exchanges: &mut Exchanges,
    source: &str,
    target: Target,
    key: &str,
    arguments: &[u8],
) -> bool {
    exchanges.apply(&Change::Bind {
        source: source.as_bytes(),
        target,
        key: key.as_bytes(),
        arguments,
    })
}

fn unbind(exchanges: &mut Exchanges, source: &str, target: Target, key: &str) -> bool {
    exchanges.apply(&Change::Unbind {
        source: source.as_bytes(),
        target,
        key: key.as_bytes(),
        arguments: b"",
    })
}

fn found(exchanges: &mut Exchanges, exchange: &str, key: &str, headers: &[u8]) -> Found {
    let mut found = Found::default();
    let exchange = exchanges.find(exchange.as_bytes()).expect("it is there");
    exchanges.route(exchange, key.as_bytes(), headers, &mut found);
    found
}

fn queues(exchanges: &mut Exchanges, exchange: &str, key: &str) -> Vec<u64> {
    let found = found(exchanges, exchange, key, b"");
    found.queues.iter().map(|uid| uid.0).collect()
}

#[test]
fn each_kind_chooses_in_its_way() {
    let mut all = exchanges();
    for (source, target, key) in [
        ("amq.direct", 1, "a"),
        ("amq.direct", 2, "a"),
        ("amq.direct", 3, "b"),
        ("amq.fanout", 1, "x"),
        ("amq.fanout", 2, ""),
        ("amq.topic", 1, "news.#"),
        ("amq.topic", 2, "news.*.eu"),
        ("amq.topic", 3, "a*b"),
    ] {
        assert!(bind(&mut all, source, queue(target), key));
        assert!(!bind(&mut all, source, queue(target), key), "it is bound");
    }
    assert_eq!(queues(&mut all, "amq.direct", "a"), [1, 2]);
    assert_eq!(queues(&mut all, "amq.direct", "c"), []);
    assert_eq!(queues(&mut all, "amq.fanout", "anything"), [1, 2]);
    assert_eq!(queues(&mut all, "amq.topic", "news"), [1]);
    assert_eq!(queues(&mut all, "amq.topic", "news.today.eu"), [1, 2]);
    assert_eq!(queues(&mut all, "amq.topic", "a*b"), [3]);
    assert_eq!(queues(&mut all, "amq.topic", "axb"), []);
    assert!(unbind(&mut all, "amq.direct", queue(1), "a"));
    assert!(!unbind(&mut all, "amq.direct", queue(1), "a"));
    assert!(unbind(&mut all, "amq.topic", queue(1), "news.#"));
    assert_eq!(queues(&mut all, "amq.direct", "a"), [2]);
    assert_eq!(queues(&mut all, "amq.topic", "news"), []);
    assert!(found(&mut all, "amq.topic", "news", b"").by_topic);
}

#[test]
fn headers_are_all_wanted_or_any() {
    let mut all = exchanges();
    let table = |pairs: &[(&str, &str)]| {
        let mut table = Vec::new();
        for (name, value) in pairs {
            push_text(&mut table, name.as_bytes(), value.as_bytes());
        }
        table
    };
    let wants = [
        (1, table(&[("a", "1"), ("b", "2")])),
        (2, table(&[("x-match", "any"), ("a", "1"), ("b", "2")])),
        (3, table(&[("x-match", "all"), ("a", "1"), ("x-b", "2")])),
        (
            4,
            table(&[("x-match", "all-with-x"), ("a", "1"), ("x-b", "2")]),
        ),
        (5, table(&[("x-match", "any-with-x"), ("x-b", "2")])),
        (6, b"\x01aV".to_vec()),
        (7, b"\x01nI\0\0\0\x05".to_vec()),
        (8, Vec::new()),
        (9, table(&[("x-match", "any")])),
    ];
    for (target, arguments) in &wants {
        assert!(bind_with(
            &mut all,
            "amq.headers",
            queue(*target),
            "",
            arguments
        ));
    }
    let mut check = |headers: &[u8], want: &[u64]| {
        let found = found(&mut all, "amq.headers", "ignored", headers);
        let queues: Vec<u64> = found.queues.iter().map(|uid| uid.0).collect();
        assert_eq!(queues, want, "{headers:?}");
    };
    check(b"", &[8]);
    check(&table(&[("a", "1"), ("b", "2")]), &[1, 2, 3, 6, 8]);
    check(&table(&[("b", "2")]), &[2, 8]);
    check(&table(&[("a", "1"), ("x-b", "2")]), &[2, 3, 4, 5, 6, 8]);
    check(&table(&[("a", "other")]), &[6, 8]);
    check(b"\x01nl\0\0\0\0\0\0\0\x05", &[7, 8]);
    check(b"\x01nB\x05", &[7, 8]);
    check(b"\x01nS\0\0\0\x015", &[8]);
}

#[test]
fn exchanges_lead_to_exchanges_and_circles_end() {
    let mut all = exchanges();
    declare(&mut all, "first", Kind::Fanout, FLAG_DURABLE, None);
    declare(&mut all, "second", Kind::Topic, FLAG_DURABLE, None);
    assert!(bind(&mut all, "first", to("second"), ""));
    assert!(bind(&mut all, "second", to("first"), "#"));
    assert!(bind(&mut all, "first", queue(1), ""));
    assert!(bind(&mut all, "second", queue(1), "a.*"));
    assert!(bind(&mut all, "second", queue(2), "a.b"));
    assert!(!bind(&mut all, "first", to("missing"), ""));
    assert!(!bind(&mut all, "missing", queue(1), ""));
    assert_eq!(queues(&mut all, "first", "a.b"), [1, 2]);
    assert_eq!(queues(&mut all, "second", "b"), [1]);
    assert!(all.apply(&Change::ExchangeGone { name: b"second" }));
    assert!(!all.apply(&Change::ExchangeGone { name: b"second" }));
    assert_eq!(queues(&mut all, "first", "a.b"), [1]);
    declare(&mut all, "second", Kind::Direct, FLAG_DURABLE, None);
    assert_eq!(
        queues(&mut all, "second", "a.b"),
        [],
        "its bindings are gone"
    );
    assert!(!all.apply(&Change::ExchangeGone { name: b"amq.topic" }));
}

#[test]
fn what_nobody_wants_goes_to_the_alternate() {
    let mut all = exchanges();
    declare(&mut all, "one", Kind::Direct, FLAG_DURABLE, Some("two"));
    declare(&mut all, "two", Kind::Direct, FLAG_DURABLE, Some("one"));
    declare(&mut all, "named", Kind::Direct, FLAG_DURABLE, Some(""));
    declare(
        &mut all,
        "lost",
        Kind::Direct,
        FLAG_DURABLE,
        Some("missing"),
    );
    bind(&mut all, "one", queue(1), "a");
    bind(&mut all, "two", queue(2), "b");
    assert_eq!(queues(&mut all, "one", "a"), [1]);
    assert_eq!(queues(&mut all, "one", "b"), [2]);
    assert_eq!(queues(&mut all, "one", "c"), []);
    assert_eq!(queues(&mut all, "lost", "a"), []);
    assert!(found(&mut all, "named", "q", b"").by_name);
    bind(&mut all, "named", queue(3), "q");
    assert!(!found(&mut all, "named", "q", b"").by_name);
}

#[test]
fn what_is_there_for_its_bindings_goes_with_the_last() {
    let mut all = exchanges();
    declare(&mut all, "outer", Kind::Fanout, FLAG_AUTO_DELETE, None);
    declare(&mut all, "inner", Kind::Fanout, FLAG_AUTO_DELETE, None);
    bind(&mut all, "outer", to("inner"), "");
    bind(&mut all, "inner", queue(1), "");
    bind(&mut all, "inner", queue(2), "");
    all.queue_gone(QueueUid(1));
    assert_eq!(queues(&mut all, "outer", ""), [2]);
    let before = all.version();
    all.queue_gone(QueueUid(2));
    assert!(all.version() > before);
    assert_eq!((all.find(b"inner"), all.find(b"outer")), (None, None));
    assert_eq!(all.len(), BUILT_IN.len());
    assert!(all.bindings.is_empty() && all.of_queue.is_empty());
}

#[test]
fn a_change_survives_its_encoding_and_no_cut_does() {
    let mut arguments = Vec::new();
    push_text(&mut arguments, b"x-dead-letter-exchange", b"graves");
    push_text(&mut arguments, b"x-dead-letter-routing-key", b"k");
    arguments.extend_from_slice(b"\x09x-expiresI\0\0\x03\xe8");
    arguments.extend_from_slice(b"\x0ex-max-priorityb\x09");
    let declared = Declared::new(FLAG_DURABLE | FLAG_EXCLUSIVE, &arguments);
    assert_eq!(declared.expires_us, Some(1_000_000));
    assert_eq!(declared.pri_max, 9);
    let dead = DeadRoute {
        exchange: b"graves".as_slice().into(),
        key: Some(b"k".as_slice().into()),
    };
    assert_eq!(declared.dead, Some(dead));
    assert!(declared.is_transient());
    for change in [
        Change::Exchange {
            name: b"e",
            kind: Kind::Headers,
            flags: 7,
            arguments: &arguments,
        },
        Change::ExchangeGone { name: b"e" },
        Change::Bind {
            source: b"e",
            target: queue(1 << 40),
            key: b"k",
            arguments: b"\x01aV",
        },
        Change::Unbind {
            source: b"e",
            target: to("other"),
            key: b"",
            arguments: b"",
        },
        Change::Queue {
            uid: QueueUid(300),
            declared,
        },
        Change::QueueGone {
            uid: QueueUid(1 << 63 | 5 << 48 | 7),
        },
    ] {
        let mut octets = Vec::new();
        change.encode(&mut octets);
        assert_eq!(Change::decode(&octets), Some(change));
        for cut in 0..octets.len() {
            assert_eq!(Change::decode(&octets[..cut]), None, "cut at {cut}");
        }
        octets.push(0);
        assert_eq!(Change::decode(&octets), None);
    }
    assert_eq!(Change::decode(b"\x09"), None);
}

/// A name, a kind and a few keys.
fn name() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["p", "q", "r", "amq.topic", "amq.direct"])
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![(0u64..4).prop_map(queue), name().prop_map(to)]
}

fn key() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["a", "b", "a.b", "#", "*"])
}

#[derive(Clone, Debug)]
enum Step {
    Declare(&'static str, u8, u8),
    Delete(&'static str),
    Bind(&'static str, Target, &'static str),
    Unbind(&'static str, Target, &'static str),
    QueueGone(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (name(), 0u8..4, 0u8..4).prop_map(|(name, kind, flags)| Step::Declare(name, kind, flags)),
        name().prop_map(Step::Delete),
        (name(), target(), key()).prop_map(|(name, target, key)| Step::Bind(name, target, key)),
        (name(), target(), key()).prop_map(|(name, target, key)| Step::Bind(name, target, key)),
        (name(), target(), key()).prop_map(|(name, target, key)| Step::Unbind(name, target, key)),
        (0u64..4).prop_map(Step::QueueGone),
    ]
}

const KINDS: [Kind; 4] = [Kind::Direct, Kind::Fanout, Kind::Topic, Kind::Headers];

/// The same with nothing but lists: exchanges by name, bindings as they were made.
#[derive(Default)]
struct Naive {
    exchanges: BTreeMap<&'static str, (Kind, u8)>,
    bindings: Vec<(&'static str, Target, &'static str)>,
}

impl Naive {
    fn has(&self, name: &str) -> bool {
        name.starts_with("amq.") || self.exchanges.contains_key(name)
    }

    fn kind(&self, name: &str) -> Kind {
        match name {
            "amq.topic" => Kind::Topic,
            "amq.direct" => Kind::Direct,
            name => self.exchanges[name].0,
        }
    }

    /// Takes bindings away, and exchanges that were only there for them.
    fn drop(&mut self, gone: impl Fn(&(&'static str, Target, &'static str)) -> bool) {
        let sources: Vec<&'static str> = self
            .bindings
            .iter()
            .filter(|binding| gone(binding))
            .map(|(source, ..)| *source)
            .collect();
        self.bindings.retain(|binding| !gone(binding));
        for source in sources {
            let is_over = self
                .exchanges
                .get(source)
                .is_some_and(|(_, flags)| flags & FLAG_AUTO_DELETE != 0)
                && !self.bindings.iter().any(|(other, ..)| *other == source);
            if is_over {
                self.delete(source);
            }
        }
    }

    fn delete(&mut self, name: &'static str) {
        if self.exchanges.remove(name).is_some() {
            self.drop(|(source, target, _)| *source == name || *target == to(name));
        }
    }

    fn step(&mut self, step: &Step) {
        match step.clone() {
            Step::Declare(name, kind, flags) if !self.has(name) => {
                self.exchanges
                    .insert(name, (KINDS[usize::from(kind)], flags));
            }
            Step::Declare(..) => {}
            Step::Delete(name) => self.delete(name),
            Step::Bind(source, target, key) => {
                let target_is = match &target {
                    Target::Exchange(name) => {
                        self.has(std::str::from_utf8(name).expect("it is text"))
                    }
                    Target::Queue(_) => true,
                };
                let binding = (source, target, key);
                if self.has(source) && target_is && !self.bindings.contains(&binding) {
                    self.bindings.push(binding);
                }
            }
            Step::Unbind(source, target, key) => {
                let binding = (source, target, key);
                if self.bindings.contains(&binding) {
                    self.drop(|other| *other == binding);
                }
            }
            Step::QueueGone(uid) => self.drop(|(_, target, _)| *target == queue(uid)),
        }
    }

    fn reach(&self, name: &str, key: &str) -> BTreeSet<u64> {
        let mut visited = BTreeSet::new();
        let mut left = vec![name.to_owned()];
        let mut reached = BTreeSet::new();
        while let Some(name) = left.pop() {
            if !visited.insert(name.clone()) {
                continue;
            }
            for (source, target, binding_key) in &self.bindings {
                let wanted = *source == name
                    && match self.kind(source) {
                        Kind::Direct => *binding_key == key,
                        Kind::Fanout | Kind::Headers => true,
                        Kind::Topic => {
                            Pattern::of_binding_key(binding_key.as_bytes()).matches(key.as_bytes())
                        }
                    };
                match target {
                    Target::Queue(uid) if wanted => _ = reached.insert(uid.0),
                    Target::Exchange(next) if wanted => {
                        left.push(String::from_utf8(next.to_vec()).expect("it is text"));
                    }
                    _ => {}
                }
            }
        }
        reached
    }
}

fn apply(exchanges: &mut Exchanges, step: &Step) {
    match step.clone() {
        Step::Declare(name, kind, flags) => {
            exchanges.apply(&Change::Exchange {
                name: name.as_bytes(),
                kind: KINDS[usize::from(kind)],
                flags,
                arguments: b"",
            });
        }
        Step::Delete(name) => {
            exchanges.apply(&Change::ExchangeGone {
                name: name.as_bytes(),
            });
        }
        Step::Bind(name, target, key) => _ = bind(exchanges, name, target, key),
        Step::Unbind(name, target, key) => _ = unbind(exchanges, name, target, key),
        Step::QueueGone(uid) => exchanges.queue_gone(QueueUid(uid)),
    }
}

proptest! {
    #[test]
    fn agrees_with_lists(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut all = exchanges();
        let mut naive = Naive::default();
        for step in &steps {
            apply(&mut all, step);
            naive.step(step);
            prop_assert_eq!(all.len(), BUILT_IN.len() + naive.exchanges.len());
            prop_assert_eq!(all.bindings.len(), naive.bindings.len());
        }
        // What a checkpoint keeps makes the same again.
        let mut again = exchanges();
        for change in all.changes() {
            let mut octets = Vec::new();
            change.encode(&mut octets);
            let change = Change::decode(&octets).expect("it was just encoded");
            again.apply(&change);
        }
        for name in ["p", "q", "r", "amq.topic", "amq.direct"] {
            prop_assert_eq!(all.find(name.as_bytes()).is_some(), naive.has(name));
            prop_assert_eq!(again.find(name.as_bytes()).is_some(), naive.has(name));
            if !naive.has(name) {
                continue;
            }
            for key in ["a", "b", "a.b", "c"] {
                let want = Vec::from_iter(naive.reach(name, key));
                prop_assert_eq!(queues(&mut all, name, key), want.clone());
                prop_assert_eq!(queues(&mut again, name, key), want);
            }
        }
    }
}
