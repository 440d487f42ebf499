//! Streams of RESP at brokers of several shards.

use super::{Broker, name_on};

/// A reply with its entries' ids cut away.
fn without_ids(reply: &str) -> String {
    let is_id = |word: &&str| {
        let parts = word.split_once('-');
        parts.is_some_and(|(ms, _)| ms.len() == 7 && ms.parse::<u64>().is_ok())
    };
    let mut words: Vec<&str> = Vec::new();
    for word in reply.split(' ') {
        if is_id(&word) {
            words.pop();
            words.push("ID");
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

impl Broker {
    fn check_read(&mut self, client: usize, line: &str, want: &str) {
        self.resp(client, line);
        assert_eq!(without_ids(&self.replies(client)), want, "{line}");
    }
}

/// An entry with that value of the field `n`.
fn entry(value: u32) -> String {
    format!("*2 ID *2 $1 n $1 {value}")
}

/// Streams of three shards, each with a group, and a client at the first shard.
fn streams(seed: u64) -> (Broker, usize, [String; 3]) {
    let mut broker = Broker::new(3, seed);
    let client = broker.connect(0);
    let names = [0, 1, 2].map(|shard| name_on(shard, 3, 0));
    for name in &names {
        broker.check(client, &format!("XGROUP CREATE {name} g 0 MKSTREAM"), "+OK");
    }
    (broker, client, names)
}

fn shown(name: &str) -> String {
    format!("${} {name}", name.len())
}

#[test]
fn a_stream_of_another_shard_is_a_stream() {
    let (mut broker, client, [_, far, _]) = streams(1);
    broker.resp(client, &format!("XADD {far} * n 1"));
    let id = broker
        .replies(client)
        .split(' ')
        .nth(1)
        .expect("an id")
        .to_owned();
    let other = broker.connect(2);
    broker.check(other, &format!("XLEN {far}"), ":1");
    broker.check(other, &format!("TYPE {far}"), "+stream");
    let want = format!("*1 *2 {} *1 {}", shown(&far), entry(1));
    broker.check_read(
        other,
        &format!("XREADGROUP GROUP g c STREAMS {far} >"),
        &want,
    );
    // Whichever connection it comes by, what a consumer has pending is its own.
    broker.reset(other);
    broker.check_read(
        client,
        &format!("XREADGROUP GROUP g c STREAMS {far} 0"),
        &want,
    );
    broker.check(client, &format!("XACK {far} g {id}"), ":1");
    broker.check(client, &format!("XDEL {far} {id}"), ":1");
    broker.check(client, &format!("XGROUP DESTROY {far} g"), ":1");
}

#[test]
fn streams_of_several_shards_are_read_at_once() {
    for seed in 1..10 {
        let (mut broker, client, [a, b, c]) = streams(seed);
        let read = format!("XREADGROUP GROUP g alice COUNT 2 STREAMS {c} {a} {b} > > >");
        broker.check(client, &read, "*-1");
        for number in 1..=3 {
            broker.resp(client, &format!("XADD {a} * n {number}"));
            broker.resp(client, &format!("XADD {c} * n {number}"));
        }
        broker.replies(client);
        // At most so many of each, in the order asked for.
        let [one, two, three] = [1, 2, 3].map(entry);
        let [of_a, of_c] = [&a, &c].map(|name| shown(name));
        let want = format!("*2 *2 {of_c} *2 {one} {two} *2 {of_a} *2 {one} {two}");
        broker.check_read(client, &read, &want);
        // One that is missing refuses all of it, and nothing was taken.
        broker.resp(
            client,
            &format!("XREADGROUP GROUP g bob STREAMS {a} none > >"),
        );
        let refused = broker.replies(client);
        assert!(
            refused.starts_with("-NOGROUP No such key 'none'"),
            "{refused}"
        );
        broker.resp(client, "HELLO 3");
        broker.replies(client);
        let bob = format!("XREADGROUP GROUP g bob NOACK STREAMS {b} {a} {c} > > >");
        let want = format!("%2 {of_a} *1 {three} {of_c} *1 {three}");
        broker.check_read(client, &bob, &want);
        broker.check(client, &bob, "_");
        // What is pending is told even if there is nothing, and then nothing is waited for.
        let mixed = format!("XREADGROUP GROUP g alice BLOCK 0 STREAMS {a} {b} {c} 0 > >");
        let want = format!("%1 {of_a} *2 {one} {two}");
        broker.check_read(client, &mixed, &want);
        let none = format!("XREADGROUP GROUP g bob BLOCK 0 STREAMS {b} {a} > 0");
        broker.check(client, &none, &format!("%1 {of_a} *0"));
        broker.check(
            client,
            &format!("XREADGROUP GROUP g bob STREAMS {b} {a} > x"),
            "-ERR Invalid stream ID specified as stream command argument",
        );
    }
}

#[test]
fn a_reader_of_streams_on_several_shards_waits_for_any() {
    for seed in 1..10 {
        let (mut broker, client, [a, b, c]) = streams(seed);
        let adder = broker.connect(1);
        let read =
            |name: &str| format!("XREADGROUP GROUP g {name} BLOCK 0 STREAMS {a} {b} {c} > > >");
        for stream in [&a, &b, &c] {
            broker.resp(client, &read("alice"));
            broker.resp(client, "PING");
            assert_eq!(broker.replies(client), "");
            broker.resp(adder, &format!("XADD {stream} * n 1"));
            broker.replies(adder);
            let want = format!("*1 *2 {} *1 {} +PONG", shown(stream), entry(1));
            assert_eq!(without_ids(&broker.replies(client)), want);
            broker.resp(adder, &format!("XPENDING {stream} g"));
            assert!(broker.replies(adder).contains("$5 alice $1 1"));
        }
        // Two who wait are served one after another, each with what comes then.
        let second = broker.connect(2);
        broker.resp(client, &read("alice"));
        broker.settle();
        broker.resp(second, &read("bob"));
        broker.settle();
        let mut got = Vec::new();
        for _ in 0..2 {
            broker.resp(adder, &format!("XADD {b} * n 2"));
            broker.replies(adder);
            for reader in [client, second] {
                got.push(without_ids(&broker.replies(reader)));
            }
        }
        let want = format!("*1 *2 {} *1 {}", shown(&b), entry(2));
        assert_eq!(got, [&*want, "", "", &*want]);
        // Its time passes, it is unblocked, its client goes, its group goes.
        let short = format!("XREADGROUP GROUP g c BLOCK 30 STREAMS {a} {b} > >");
        broker.resp(client, &short);
        broker.wait(40_000);
        assert_eq!(broker.replies(client), "*-1");
        broker.resp(client, "CLIENT ID");
        let id = broker.replies(client)[1..].to_owned();
        broker.resp(client, &read("alice"));
        broker.settle();
        broker.check(adder, &format!("CLIENT UNBLOCK {id} ERROR"), ":1");
        let unblocked = "-UNBLOCKED client unblocked via CLIENT UNBLOCK";
        assert_eq!(broker.replies(client), unblocked);
        for end in [format!("XGROUP DESTROY {c} g"), format!("DEL {a}")] {
            broker.resp(client, &read("alice"));
            broker.settle();
            broker.check(adder, &end, ":1");
            let gone = "-NOGROUP the consumer group this client was blocked on no longer exists";
            assert_eq!(broker.replies(client), gone, "{end}");
            broker.resp(client, &format!("XGROUP CREATE {c} g $"));
            broker.replies(client);
        }
        broker.check(client, &format!("XGROUP CREATE {a} g $ MKSTREAM"), "+OK");
        broker.resp(client, &read("gone"));
        broker.settle();
        broker.reset(client);
        broker.settle();
        broker.resp(adder, &format!("XADD {a} * n 4"));
        broker.replies(adder);
        let want = format!("*1 *2 {} *1 {}", shown(&a), entry(4));
        broker.check_read(
            adder,
            &format!("XREADGROUP GROUP g d STREAMS {b} {a} > >"),
            &want,
        );
    }
}
