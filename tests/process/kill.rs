//! kill -9 in a loop under load, with a checker over what clients were told.
//!
//! Publishers and consumers work on a `disk` and an `os` queue; the broker is killed at a random
//! moment, sometimes again while it recovers, and started anew on the same directory. At the end
//! (and every 25 rounds) everything left is taken, and the books are closed: every confirmed
//! message was delivered, nothing acked and confirmed came again, nothing refused appeared, every
//! octet is as sent, batches are whole, ids are as confirmed, definitions are kept.
//!
//! Ten rounds by default; more, and the same again, with
//!
//! ```text
//! RINGMQ_KILL_ROUNDS=1000 RINGMQ_KILL_SEED=7 cargo test --release --test process kill:: -- --nocapture
//! ```
//!
//! Small segments, checkpoints and memory (`--segment 1M --checkpoint 1M --memory-budget 16M`) let a
//! short run roll, recycle, compact, spill and checkpoint many times.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::ledger::{self, Ledger};
use crate::support::load::{self, Load, Shared};
use crate::support::{Broker, Launch, Random, TempDir};

/// Rounds between two closings of the books.
const ROUNDS_PER_DRAIN: u64 = 25;

#[test]
fn nothing_confirmed_is_lost_when_it_is_killed_again_and_again() {
    let rounds = std::env::var("RINGMQ_KILL_ROUNDS")
        .map_or(10, |text| text.parse::<u64>().expect("a number of rounds"));
    let seed = Random::seed_from("RINGMQ_KILL_SEED");
    println!("RINGMQ_KILL_ROUNDS={rounds} RINGMQ_KILL_SEED={seed}");
    let mut random = Random::new(seed);
    let dir = TempDir::new("kill");
    let launch = Launch::data(&dir.data()).arg("--segment 1M --checkpoint 1M --memory-budget 16M");
    let shared = Shared::default();
    let mut slowest = Duration::ZERO;

    let mut broker = launch.start();
    load::create_queues(&broker);
    for round in 1..=rounds {
        let when = format!("in round {round} of seed {seed}");
        // Without consumers a backlog grows past the memory that it may take.
        let (publishers, consumers) = (1 + random.below(3), random.below(4));
        let load = Load::start(
            &shared,
            broker.address,
            publishers,
            consumers,
            random.next(),
        );
        sleep(Duration::from_millis(10 + random.below(290)));
        broker.process.kill_running();
        load.join();
        shared.ledger().assert_faultless(&when);

        while random.once_in(3) {
            let mut recovering = launch.spawn();
            sleep(Duration::from_micros(random.below(60_000)));
            recovering.kill_running();
        }
        let start = Instant::now();
        broker = launch.start();
        slowest = slowest.max(start.elapsed());
        load::assert_queues_kept(&broker);
        if round % ROUNDS_PER_DRAIN == 0 || round == rounds {
            close_the_books(&shared, &broker, &when);
            println!("{when}: {}", summary(&shared, slowest));
        }
    }
    broker.terminate();
    assert!(
        shared.ledger().confirmed > 0 && shared.ledger().acked > 0,
        "there was no load"
    );
}

fn close_the_books(shared: &Shared, broker: &Broker, when: &str) {
    load::drain(shared, broker);
    shared.ledger().assert_faultless(when);
}

fn summary(shared: &Shared, slowest: Duration) -> String {
    let ledger = shared.ledger();
    format!(
        "{} publishes confirmed, {} without an answer, {} acks confirmed, slowest start {slowest:?}",
        ledger.confirmed, ledger.unknown, ledger.acked
    )
}

/// What the checker says about a history told in a few steps.
fn faults_of(history: impl FnOnce(&mut Ledger)) -> String {
    let mut ledger = Ledger::default();
    history(&mut ledger);
    ledger.settle();
    ledger.faults().join("; ")
}

#[test]
fn the_checker_finds_each_kind_of_fault_and_no_other() {
    let good = faults_of(|ledger| {
        let one = ledger.publishing(0, 1);
        ledger.published(one, 1, "disk", "OK 1 disk");
        let two = ledger.publishing(0, 1);
        ledger.published(two, 1, "disk", "ERR DISK retry=100 :full");
        let three = ledger.publishing(0, 3);
        for (key, id) in [(one, 1), (three, 5), (three + 1, 6), (three + 2, 7)] {
            assert_eq!(ledger.delivered(0, id, &ledger::body(key)), Some(key));
            ledger.acking(key);
        }
        // The first ack was lost on its way: it comes again.
        ledger.delivered(0, 1, &ledger::body(one));
        ledger.acking(one);
        ledger.acked(one);
    });
    assert_eq!(good, "");

    let confirmed = |ledger: &mut Ledger| {
        let key = ledger.publishing(0, 1);
        ledger.published(key, 1, "disk", "OK 1 disk");
        key
    };
    let lost = faults_of(|ledger| {
        confirmed(ledger);
    });
    assert!(lost.contains("was never delivered"), "{lost}");
    let gone = faults_of(|ledger| {
        let key = confirmed(ledger);
        ledger.delivered(0, 1, &ledger::body(key));
    });
    assert!(gone.contains("never acked, is gone"), "{gone}");
    let again = faults_of(|ledger| {
        let key = confirmed(ledger);
        for _ in 0..2 {
            ledger.delivered(0, 1, &ledger::body(key));
            ledger.acking(key);
            ledger.acked(key);
        }
    });
    assert!(again.contains("after its confirmed ack"), "{again}");
    let refused = faults_of(|ledger| {
        let key = ledger.publishing(0, 1);
        ledger.published(key, 1, "disk", "ERR FULL retry=5 :full");
        ledger.delivered(0, 1, &ledger::body(key));
        ledger.acking(key);
    });
    assert!(refused.contains("was refused, and delivered"), "{refused}");
    let octets = faults_of(|ledger| {
        let key = confirmed(ledger);
        let mut body = ledger::body(key);
        body.push(b'!');
        ledger.delivered(0, 1, &body);
        ledger.acking(key);
    });
    assert!(octets.contains("with other octets"), "{octets}");
    let twice = faults_of(|ledger| {
        let key = ledger.publishing(0, 1);
        ledger.delivered(0, 1, &ledger::body(key));
        ledger.delivered(0, 2, &ledger::body(key));
        ledger.acking(key);
    });
    assert!(twice.contains("stored twice"), "{twice}");
    let halves = faults_of(|ledger| {
        let key = ledger.publishing(0, 2);
        ledger.delivered(0, 1, &ledger::body(key));
        ledger.acking(key);
    });
    assert!(halves.contains("1 of 2 messages appeared"), "{halves}");
    let level = faults_of(|ledger| {
        let key = ledger.publishing(0, 1);
        ledger.published(key, 1, "disk", "OK 1 os");
    });
    assert!(level.contains("not a receipt at disk"), "{level}");
    let stranger = faults_of(|ledger| {
        ledger.delivered(0, 1, &ledger::body(77));
    });
    assert!(stranger.contains("was never sent"), "{stranger}");
}
