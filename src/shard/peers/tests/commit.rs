//! Transactions that several shards have a part in.

use super::*;

fn is_idle(broker: &Broker) -> bool {
    broker.outboxes_are_idle() && broker.shards.iter().all(|shard| !shard.is_committing())
}

fn bodies(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let heads = lines.iter().enumerate();
    let heads = heads.filter(|(_, line)| line.starts_with("MSG"));
    heads.map(|(at, _)| lines[at + 1]).collect()
}

#[test]
fn a_transaction_of_several_shards_is_done_whole() {
    for seed in 1..30 {
        let mut broker = Broker::new(3, seed);
        let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
        let client = broker.connect((seed % 3) as usize);
        let (a, b, c) = (&names[0], &names[1], &names[2]);
        broker.ask(client, &format!("PUB {a} :1\nPUB {b} :2\nPUB {b} :3\n"));
        let one = handle_of(&broker.ask(client, &format!("PULL {a}\n")));
        let two = handle_of(&broker.ask(client, &format!("PULL {b}\n")));
        let three = handle_of(&broker.ask(client, &format!("PULL {b}\n")));
        let said = broker.ask(
            client,
            &format!(
                "BEGIN\nACK {one} {two}\nNACK {three} delay=0\nPUB {c} :x\nMPUB {a} *2\ny\nz\nPUB {b} :w\n\
                 @t COMMIT\nPULL {a} 9\nPULL {b} 9\nPULL {c} 9\n"
            ),
        );
        assert!(
            said.starts_with(
                "OK\nOK queued\nOK queued\nOK queued\nOK queued\nOK queued\nOK @t 5\n"
            ),
            "{said}"
        );
        assert_eq!(bodies(&said), ["y", "z", "3", "w", "x"], "{said}");
        assert!(said.contains(" try=2 "), "{said}");
        assert!(is_idle(&broker));
        let said = broker.ask(client, &format!("ACK {one} {two} {three}\n"));
        assert_eq!(said, format!("OK 0 stale={one},{two},{three}\n"));
        let stats = broker.ask(client, "STATS\n");
        assert!(stats.contains("\nleased=5\n"), "{stats}");
    }
}

#[test]
fn what_one_shard_refuses_is_done_on_none() {
    for seed in 1..30 {
        let mut broker = Broker::new(2, seed);
        let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
        let client = broker.connect((seed % 2) as usize);
        broker.ask(
            client,
            &format!("PUB {near} :1\nPUB {far} :2\nQSET {far} maxlen=2\n"),
        );
        let one = handle_of(&broker.ask(client, &format!("PULL {near} lease=1h\n")));
        let two = handle_of(&broker.ask(client, &format!("PULL {far}\n")));
        // A stale handle on one shard, and too many messages for a queue on the other.
        let gone = two.replace(".1.", ".77.");
        let said = broker.ask(
            client,
            &format!("BEGIN\nACK {one} {gone}\nPUB {near} :x\nCOMMIT\nPULL {near}\n"),
        );
        assert!(
            said.contains(&format!("ERR STALE stale={gone} :")),
            "{said}"
        );
        assert!(said.ends_with("END 0\n"), "{said}");
        let said = broker.ask(
            client,
            &format!("BEGIN\nACK {one}\nMPUB {far} *2\na\nb\nCOMMIT\nPULL {far}\n"),
        );
        assert!(
            said.contains("ERR FULL ") && said.ends_with("END 0\n"),
            "{said}"
        );
        // An ack in the same transaction makes room. The leases are what they were.
        let said = broker.ask(
            client,
            &format!("BEGIN\nACK {one} {two}\nMPUB {far} *2\na\nb\nCOMMIT\n"),
        );
        assert!(said.ends_with("OK 2\n"), "{said}");
        let said = broker.ask(
            client,
            &format!("BEGIN\nPUB {near} :x\nPUB {far} :c\nCOMMIT!\nSYNC\n"),
        );
        assert!(said.contains("ERR FULL "), "{said}");
        assert!(said.ends_with("OK accepted=0 rejected=1 mem\n"), "{said}");
        broker.ask(client, &format!("QSET {far} maxlen=9\n"));
        let said = broker.ask(
            client,
            &format!("BEGIN\nPUB {near} :x\nPUB {far} :c\nCOMMIT!\nSYNC\n"),
        );
        assert!(said.ends_with("OK accepted=1 rejected=0 mem\n"), "{said}");
        assert!(is_idle(&broker));
    }
}

#[test]
fn leases_of_a_refused_transaction_end_when_they_would_have() {
    let mut broker = Broker::new(2, 5);
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    let (client, other) = (broker.connect(0), broker.connect(1));
    broker.ask(
        client,
        &format!("PUB {near} :1\nPUB {far} :2\nQSET {far} pause=in\n"),
    );
    let one = handle_of(&broker.ask(client, &format!("PULL {near} lease=10s\n")));
    let two = handle_of(&broker.ask(other, &format!("PULL {far} lease=1h\n")));
    broker.wait(6_000_000);
    let refused = format!("BEGIN\nACK {one} {two}\nPUB {far} :x\nCOMMIT\n");
    let said = broker.ask(client, &refused);
    assert!(said.contains("ERR PAUSED "), "{said}");
    assert_eq!(broker.leased(), 2);
    broker.wait(4_000_001);
    assert_eq!(broker.leased(), 1, "the one of ten seconds is over");
    // The other's goes with its connection, whoever had it in a transaction.
    let said = broker.ask(client, &refused.replace(&one, ""));
    assert!(said.contains("ERR PAUSED "), "{said}");
    broker.reset(other);
    broker.settle();
    assert_eq!(broker.leased(), 0);
    let got = broker.ask(client, &format!("PULL {far}\nPULL {near}\n"));
    assert_eq!(bodies(&got), ["2", "1"]);
}

#[test]
fn a_connection_that_goes_leaves_nothing_half_done() {
    let mut done = 0;
    for seed in 1..120 {
        let mut broker = Broker::new(3, seed);
        let (near, far) = (name_on(1, 3, 0), name_on(2, 3, 0));
        let watcher = broker.connect(0);
        broker.ask(watcher, &format!("PUB {near} :1\nPUB {far} :2\n"));
        let client = broker.connect((seed % 3) as usize);
        let one = handle_of(&broker.ask(client, &format!("PULL {near}\n")));
        let two = handle_of(&broker.ask(client, &format!("PULL {far}\n")));
        broker.send(
            client,
            &format!("BEGIN\nACK {one} {two}\nPUB {near} :x\nPUB {far} :y\nCOMMIT\n"),
        );
        for _ in 0..seed % 12 {
            let shard = broker.chance(3) as usize;
            broker.turn(shard);
        }
        broker.reset(client);
        broker.settle();
        let got = broker.ask(watcher, &format!("PULL {near} 9\nPULL {far} 9\n"));
        match bodies(&got)[..] {
            ["x", "y"] => done += 1,
            ["1", "2"] => {}
            _ => panic!("seed {seed}: {got}"),
        }
        assert!(is_idle(&broker), "seed {seed}");
        assert_eq!(broker.leased(), 2, "seed {seed}");
    }
    assert!((10..110).contains(&done), "{done} were done");
}

#[test]
fn limits_count_what_is_on_its_way() {
    let mut refused = 0;
    for seed in 1..40 {
        let mut broker = Broker::new(2, seed);
        let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
        let (client, other) = (broker.connect(0), broker.connect(1));
        broker.ask(
            client,
            &format!("QSET {far} maxlen=3\nQSET {near} maxlen=3\n"),
        );
        broker.send(
            client,
            &format!("BEGIN\nMPUB {far} *2\na\nb\nPUB {near} :a\nCOMMIT\n"),
        );
        broker.send(
            other,
            &format!("BEGIN\nMPUB {near} *3\na\nb\nc\nPUB {far} :a\nCOMMIT\n"),
        );
        broker.send(
            other,
            &format!("PUB {far} :c\nPUB {far} :d\nPUB {far} :e\n"),
        );
        let said = broker.take(client);
        let others = broker.take(other);
        refused += u64::from(said.contains("ERR FULL"));
        let list = broker.ask(client, "QLS\n");
        for name in [&near, &far] {
            let line = list
                .lines()
                .find(|line| line.starts_with(&**name))
                .expect("it is there");
            let count = line
                .split("ready=")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            let count: u64 = count.and_then(|count| count.parse().ok()).expect("a count");
            assert!(count <= 3, "{line}: {said} {others}");
        }
        assert!(is_idle(&broker));
    }
    assert!(refused < 39, "some are done");
}

#[test]
fn what_is_held_outlives_its_connection_and_a_transaction_that_is_refused() {
    for seed in 1..200 {
        let mut broker = Broker::new(3, seed);
        let (near, far) = (name_on(0, 3, 0), name_on(1, 3, 0));
        let (client, other) = (broker.connect(0), broker.connect(2));
        let said = broker.ask(
            other,
            &format!("PUB {near} :1\nPUB {far} :2\nPULL {near}\n"),
        );
        let one = handle_of(&said);
        broker.ask(other, &format!("ACK {one}\n"));
        broker.send(client, &format!("PULL {far} lease=1h hold=1\n"));
        let is_whole = |broker: &Broker| broker.clients[client].received.ends_with(b"END 1\n");
        for _ in 0..1_000 {
            if is_whole(&broker) {
                break;
            }
            let shard = broker.chance(3) as usize;
            broker.turn(shard);
        }
        assert!(is_whole(&broker), "seed {seed}");
        let said = String::from_utf8_lossy(&broker.clients[client].received);
        let two = handle_of(&said);
        // That the reply was taken may be heard of while a transaction keeps the lease.
        broker.send(other, &format!("BEGIN\nACK {one} {two}\nCOMMIT\n"));
        for _ in 0..seed % 12 {
            let shard = broker.chance(3) as usize;
            broker.turn(shard);
        }
        broker.reset(client);
        let said = broker.take(other);
        assert!(said.contains(&format!("ERR STALE stale={one} ")), "{said}");
        assert_eq!(broker.leased(), 1, "seed {seed}");
        let said = broker.ask(other, &format!("ACK {two}\n"));
        assert_eq!(said, "OK 1\n", "seed {seed}");
    }
}

#[test]
fn each_transaction_that_was_begun_ends_as_one_of_three() {
    let mut ends = [0; 3];
    for seed in 1..60 {
        let mut broker = Broker::new(2, seed);
        let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
        let watcher = broker.connect(1);
        broker.ask(watcher, &format!("QSET {far} maxlen=3\n"));
        let lines = [
            format!("BEGIN\nPUB {near} :1\nCOMMIT\n"),
            format!("BEGIN\nPUB {far} :1\nCOMMIT\n"),
            format!("BEGIN\nPUB {near} :1\nPUB {far} :1\nCOMMIT\n"),
            format!("BEGIN\nMPUB {far} *4\n1\n2\n3\n4\nCOMMIT\n"),
            format!("BEGIN\nPUB {near} :1\nMPUB {far} *4\n1\n2\n3\n4\nCOMMIT\n"),
            format!("BEGIN\nPUB {far} :1\nABORT\n"),
            format!("BEGIN\nPULL {far}\nABORT\n"),
        ];
        let count = |broker: &mut Broker, key: &str| {
            let stats = broker.ask(watcher, "STATS\n");
            let line = stats.lines().find_map(|line| line.strip_prefix(key));
            let count = line.and_then(|line| line.strip_prefix('='));
            count
                .and_then(|count| count.parse::<u64>().ok())
                .expect("a count")
        };
        let mut begun = 0;
        for _ in 0..12 {
            let client = broker.connect(0);
            for _ in 0..broker.chance(4) {
                let line = &lines[broker.chance(7) as usize];
                broker.send(client, line);
                begun += 1;
            }
            let is_reset = broker.chance(2) == 0;
            if is_reset {
                for _ in 0..broker.chance(9) {
                    let shard = broker.chance(2) as usize;
                    broker.turn(shard);
                }
                broker.reset(client);
            }
            broker.settle();
        }
        let counted = count(&mut broker, "transactions_begun_total");
        assert!(counted <= begun, "seed {seed}");
        let ended = ["committed", "aborted", "voided"];
        let ended = ended.map(|how| count(&mut broker, &format!("transactions_{how}_total")));
        assert_eq!(count(&mut broker, "transactions"), 0, "seed {seed}");
        assert_eq!(ended.iter().sum::<u64>(), counted, "seed {seed}: {ended:?}");
        for (all, one) in ends.iter_mut().zip(ended) {
            *all += one;
        }
    }
    assert!(ends.iter().all(|count| *count > 50), "{ends:?}");
}
