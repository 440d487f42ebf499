//! Workers that consume, transform and produce, each a process of its own, killed at random, on a broker
//! that is killed at random: what comes out is what went in, each exactly once.
//!
//! Five seconds by default; longer, and the same again, with
//!
//! ```text
//! RINGMQ_EXACTLY_ONCE_SECONDS=60 RINGMQ_EXACTLY_ONCE_SEED=7 cargo test --release --test process exactly_once:: -- --nocapture
//! ```

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Broker, Launch, Random, TempDir, free_port};
use ringmq::client::{Client, Code, Error, Nack, Publish, Pull, Settled, Transaction};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// Where the worker that this process is finds its broker.
const WORKER_OF: &str = "RINGMQ_WORKER_OF";

/// Takes numbers of `in`, publishes their squares to `out`, and gives every seventh back once. Returns when
/// nothing has come for so long.
fn work(client: &mut Client, patience: Duration) -> u64 {
    let mut committed = 0;
    loop {
        let pull = Pull::new("in").count(20).wait(patience);
        let messages = client.pull(&pull).expect("the broker comes back");
        if messages.is_empty() {
            return committed;
        }
        let mut transaction = Transaction::new();
        for message in &messages {
            let number: u64 = message.text().parse().expect("it is a number");
            transaction = match number % 7 == 3 && message.tries() == 1 {
                true => transaction.nack(message, &Nack::new().delay(Duration::ZERO)),
                false => {
                    let square = Publish::new("out", format!("{number} {}", number * number));
                    transaction.publish(square).ack(message)
                }
            };
        }
        match client.commit(&transaction) {
            Ok(Settled::Confirmed) => committed += 1,
            Ok(Settled::Stale | Settled::Unknown) => {}
            Err(error) => panic!("a transaction was refused: {error}"),
        }
    }
}

/// The numbers in `out` and how often each is there.
fn results(client: &mut Client) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let pulled = client.pull(&Pull::new("out").count(1000));
        let messages = pulled.expect("the broker is there");
        if messages.is_empty() {
            numbers.sort_unstable();
            return numbers;
        }
        for message in &messages {
            let text = message.text();
            let (number, square) = text.split_once(' ').expect("two numbers");
            let number: u64 = number.parse().expect("a number");
            assert_eq!(square.parse(), Ok(number * number));
            numbers.push(number);
            client.ack_nowait(message);
        }
    }
}

/// One worker. As a process of its own it is told by its environment where to work.
#[test]
fn a_worker_gives_each_number_one_result() {
    if let Ok(address) = std::env::var(WORKER_OF) {
        let mut client = Client::connect(&address).expect("the broker was there");
        work(&mut client, LONG);
        return;
    }
    let dir = TempDir::new("worker");
    let broker = Launch::data(&dir.data()).start();
    let mut client = Client::connect(&broker.address.to_string()).expect("the broker listens");
    client
        .publish(&Publish::batch("in", (0..100).map(|n| n.to_string())))
        .expect("it is taken");
    let committed = work(&mut client, Duration::from_millis(200));
    assert!(committed >= 100 / 20, "{committed}");
    assert_eq!(results(&mut client), (0..100).collect::<Vec<u64>>());
    // A transaction that is refused does nothing, and tells why.
    let kept = client.publish(&Publish::new("in", "7"));
    kept.expect("it is taken");
    client.set("shut", "pause=in").expect("it is taken");
    let message = client.pull(&Pull::new("in").wait(LONG));
    let message = message.expect("it answers").pop().expect("there is one");
    let refused = Transaction::new()
        .publish(Publish::new("out", "7 49"))
        .publish(Publish::new("shut", "x"))
        .ack(&message);
    let error = client.commit(&refused).expect_err("a queue is paused");
    assert!(matches!(error, Error::Refused(refusal) if refusal.code == Code::Paused));
    let too_big = Transaction::new().publish(Publish::new("out", vec![b'x'; 2 << 20]));
    let error = client.commit(&too_big).expect_err("it is too big");
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert_eq!(
        client.ack(&message).expect("it answers"),
        Settled::Confirmed
    );
    let stale = Transaction::new()
        .publish(Publish::new("out", "7 49"))
        .ack(&message);
    assert_eq!(client.commit(&stale).expect("it answers"), Settled::Stale);
    assert_eq!(results(&mut client), []);
}

/// A worker's process, killed with its owner.
struct Worker(Child);

impl Worker {
    fn start(address: &str) -> Worker {
        let this = std::env::current_exe().expect("it runs");
        let child = Command::new(this)
            .args(["--exact", "a_worker_gives_each_number_one_result"])
            .env(WORKER_OF, address)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Worker(child.expect("it starts once more"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn restarted(broker: &mut Broker, launch: &Launch) {
    broker.process.kill_running();
    *broker = launch.start();
}

#[test]
fn what_comes_out_is_what_went_in_whoever_is_killed() {
    let seconds = std::env::var("RINGMQ_EXACTLY_ONCE_SECONDS")
        .map_or(5, |text| text.parse::<u64>().expect("a number of seconds"));
    let seed = Random::seed_from("RINGMQ_EXACTLY_ONCE_SEED");
    println!("RINGMQ_EXACTLY_ONCE_SECONDS={seconds} RINGMQ_EXACTLY_ONCE_SEED={seed}");
    let mut random = Random::new(seed);
    let dir = TempDir::new("exactly-once");
    let launch = Launch::data(&dir.data())
        .port(free_port())
        .arg("--segment 1M --checkpoint 1M");
    let mut broker = launch.start();
    let address = broker.address.to_string();
    let mut client = Client::connect(&address).expect("the broker listens");
    client
        .set("in", "maxdeliver=0 lease=2s dedup=1h backoff=0")
        .expect("it is taken");

    // Numbers go in all the time, each once, whatever happens to the broker.
    let stopped = Arc::new(AtomicBool::new(false));
    let producer = thread::spawn({
        let (stopped, address) = (Arc::clone(&stopped), address.clone());
        move || {
            let mut client = Client::connect(&address).expect("the broker listens");
            let mut number: u64 = 0;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..50 {
                    client
                        .publish_nowait(&Publish::new("in", number.to_string()))
                        .expect("it is taken");
                    number += 1;
                }
                let flushed = client.flush().expect("the broker comes back");
                assert!(flushed.refused.is_empty(), "{flushed:?}");
                // About as fast as they are worked on.
                thread::sleep(Duration::from_millis(30));
            }
            number
        }
    });
    let mut workers: Vec<Worker> = (0..2).map(|_| Worker::start(&address)).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut brokers_killed, mut workers_killed) = (0, 0);
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(20 + random.below(200)));
        if random.once_in(3) {
            restarted(&mut broker, &launch);
            brokers_killed += 1;
        } else {
            let which = random.below(2) as usize;
            workers[which] = Worker::start(&address);
            workers_killed += 1;
        }
    }
    stopped.store(true, Ordering::Relaxed);
    let count = producer.join().expect("the producer has no complaint");
    drop(workers);
    // What is still there is worked on in peace, and the broker killed once more.
    work(&mut client, Duration::from_secs(3));
    restarted(&mut broker, &launch);
    let results = results(&mut client);
    println!("{count} in, {brokers_killed} brokers and {workers_killed} workers killed");
    let twice: Vec<u64> = results
        .windows(2)
        .filter_map(|pair| (pair[0] == pair[1]).then_some(pair[0]))
        .collect();
    assert_eq!(twice, [], "these came out more than once");
    let missing: Vec<u64> = (0..count)
        .filter(|number| results.binary_search(number).is_err())
        .collect();
    assert_eq!(missing, [], "these never came out");
    assert_eq!(results.len() as u64, count);
    assert!(brokers_killed > 0 && workers_killed > 0 && count > 100);
    broker.terminate();
}
