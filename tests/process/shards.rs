//! Brokers of several shards: killed under load, stopped while they work, and started with another number.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::load::{self, Load, Shared};
use crate::support::{Launch, Random, TempDir, amqp};

#[test]
fn nothing_confirmed_is_lost_when_two_or_four_shards_are_killed() {
    for shards in [2, 4] {
        let seed = Random::seed_from("RINGMQ_KILL_SEED");
        println!("{shards} shards, RINGMQ_KILL_SEED={seed}");
        let mut random = Random::new(seed);
        let dir = TempDir::new("shards-kill");
        let launch = Launch::data(&dir.data())
            .arg("--segment 1M --checkpoint 1M --memory-budget 64M")
            .arg(&format!("--shards {shards}"));
        let shared = Shared::default();
        let mut broker = launch.start();
        load::create_queues(&broker);
        for round in 1..=5 {
            let when = format!("in round {round} of seed {seed} with {shards} shards");
            let (publishers, consumers) = (1 + random.below(3), 1 + random.below(3));
            let seed = random.next();
            let load = Load::start(&shared, broker.address, publishers, consumers, seed);
            thread::sleep(Duration::from_millis(20 + random.below(200)));
            broker.process.kill_running();
            load.join();
            shared.ledger().assert_faultless(&when);
            broker = launch.start();
            load::assert_queues_kept(&broker);
        }
        load::end(&shared, broker);
    }
}

/// Queues enough that every shard has some.
const QUEUES: usize = 16;

/// Publishes to every queue in turn on one connection, without waiting, until the broker goes. Returns what was
/// confirmed.
fn publish(address: SocketAddr, worker: usize, total: &AtomicUsize) -> BTreeSet<(usize, String)> {
    let mut confirmed = BTreeSet::new();
    let Ok(stream) = TcpStream::connect(address) else {
        return confirmed;
    };
    let mut writer = stream.try_clone().expect("a socket can be cloned");
    let sender = thread::spawn(move || {
        for nth in 0..20_000 {
            let line = format!("PUB many{} :{worker}-{nth}\n", nth % QUEUES);
            if writer.write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    });
    let reader = BufReader::new(stream);
    for (nth, line) in reader.lines().enumerate() {
        let Ok(line) = line else { break };
        if line.starts_with("OK ") {
            assert!(line.ends_with(" disk"), "{line}");
            confirmed.insert((nth % QUEUES, format!("{worker}-{nth}")));
            total.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!(line.starts_with("ERR "), "{line}");
        }
    }
    sender.join().expect("it only writes");
    confirmed
}

/// The bodies in a queue, in order.
fn bodies(address: SocketAddr, queue: usize) -> Vec<String> {
    let mut stream = TcpStream::connect(address).expect("the broker listens");
    let mut reader = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
    let mut found = Vec::new();
    loop {
        let command = format!("PULL many{queue} 1000 ack=auto\n");
        stream.write_all(command.as_bytes()).expect("it reads");
        let mut line = String::new();
        while !line.starts_with("END") {
            line.clear();
            reader.read_line(&mut line).expect("it answers");
            if line.starts_with("MSG ") {
                let mut body = String::new();
                reader.read_line(&mut body).expect("it answers");
                found.push(body.trim_end().to_owned());
            }
        }
        if line == "END 0\n" {
            return found;
        }
    }
}

#[test]
fn one_connection_publishes_to_all_shards_in_order_through_kills_and_stops() {
    for (shards, is_killed) in [(2, true), (4, true), (3, false)] {
        let dir = TempDir::new("shards-many");
        let launch = Launch::data(&dir.data()).arg(&format!("--shards {shards}"));
        let mut broker = launch.start();
        let address = broker.address;
        let total = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let total = Arc::clone(&total);
                thread::spawn(move || publish(address, worker, &total))
            })
            .collect();
        // In the middle of it, however slow the machine is.
        for _ in 0..2_000 {
            if total.load(Ordering::Relaxed) > 2_000 {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        match is_killed {
            true => broker.process.kill_running(),
            false => broker.terminate(),
        }
        let mut confirmed = BTreeSet::new();
        for worker in workers {
            confirmed.extend(worker.join().expect("every line is as it should be"));
        }
        assert!(confirmed.len() > 100, "only {} confirmed", confirmed.len());
        let broker = launch.start();
        for queue in 0..QUEUES {
            let found = bodies(broker.address, queue);
            let set: BTreeSet<&String> = found.iter().collect();
            assert_eq!(set.len(), found.len(), "a message is there twice");
            for (_, body) in confirmed.iter().filter(|(of, _)| *of == queue) {
                assert!(set.contains(body), "{body} is lost with {shards} shards");
            }
            let mut last = BTreeMap::new();
            for body in &found {
                let (worker, nth) = body.split_once('-').expect("as published");
                let nth: usize = nth.parse().expect("as published");
                let before = last.insert(worker.to_owned(), nth);
                assert!(
                    before.is_none_or(|before| before < nth),
                    "{body} is out of order"
                );
            }
        }
        drop(broker);
    }
}

#[test]
fn another_number_of_shards_is_refused() {
    let dir = TempDir::new("shards-count");
    let data = dir.data();
    let launch = |shards: &str| Launch::data(&data).arg(&format!("--shards {shards}"));
    launch("2").start().terminate();
    for other in ["1", "3"] {
        let (code, text) = launch(other).refused();
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("start it with --shards 2"), "{text}");
    }
    launch("2").start().terminate();
    // A directory from before there were several is one of one.
    let dir = TempDir::new("shards-one");
    Launch::data(&dir.data()).start().terminate();
    let (code, text) = Launch::data(&dir.data()).arg("--shards 2").refused();
    assert_eq!(code, Some(3), "{text}");
    Launch::data(&dir.data())
        .arg("--shards 1")
        .start()
        .terminate();
}

#[test]
fn a_taken_port_is_refused_with_several_shards_too() {
    let first = Launch::memory().arg("--shards 2").start();
    let port = first.address.port();
    let (code, text) = Launch::memory().port(port).arg("--shards 2").refused();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another program is listening"), "{text}");
}

#[test]
fn every_door_is_open() {
    let arguments = "--shards 2 --listen amqp://127.0.0.1:0";
    let mut broker = Launch::memory().arg(arguments).start();
    let banner = broker.banner().join("\n");
    assert!(banner.contains("shards 2\n"), "{banner}");
    assert!(banner.contains("(amqp only)"), "{banner}");
    let mut client = amqp::Client::open(broker.address);
    for nth in 0..9 {
        let queue = format!("q{nth}");
        client.declare(&queue, 0, b"");
        client.publish("", &queue, "hi");
        assert_eq!(client.ready(&queue), 1);
    }
    broker.assert_well();
}
