//! Publishers and consumers that note everything they are told in a [`Ledger`].

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::{Client, Message};
use super::ledger::{self, Key, Ledger};
use super::{Broker, Random};

/// The queues under load and the level that their receipts must name.
pub const QUEUES: [(&str, &str); 2] = [("paper", "disk"), ("slate", "os")];

/// Messages that one publisher sends in one run at most.
const PUBLISHES_MAX: u64 = 5_000;

/// A ledger that the threads of one run share.
#[derive(Clone, Default)]
pub struct Shared {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
}

impl Shared {
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no thread panicked with it")
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Threads at work on one broker.
pub struct Load {
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `publishers` and `consumers` threads, which work until the broker is gone or
    /// [`Load::stop`].
    pub fn start(
        shared: &Shared,
        address: SocketAddr,
        publishers: u64,
        consumers: u64,
        seed: u64,
    ) -> Load {
        shared.stop.store(false, Ordering::SeqCst);
        let mut threads = Vec::new();
        for worker in 0..publishers + consumers {
            let shared = shared.clone();
            let random = Random::new(seed.wrapping_mul(1000) + worker);
            threads.push(thread::spawn(move || {
                let work = if worker < publishers {
                    publish
                } else {
                    consume
                };
                // The broker is killed under them: whatever error that gives is no fault.
                match work(&shared, address, random) {
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        shared
                            .ledger()
                            .fault(format!("the protocol was broken: {error}"));
                    }
                    _ => {}
                }
            }));
        }
        Load {
            shared: shared.clone(),
            threads,
        }
    }

    /// Waits for threads whose broker is gone.
    pub fn join(self) {
        for thread in self.threads {
            thread
                .join()
                .expect("a worker found something that the client asserts");
        }
    }

    /// Lets every thread finish what it waits for.
    pub fn stop(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join();
    }
}

/// Makes the queues such that nothing leaves them but by an ack.
pub fn create_queues(broker: &Broker) {
    let mut client = broker.client();
    for (queue, level) in QUEUES {
        let answer = client.ask(&format!(
            "QSET {queue} durable={level} maxdeliver=0 backoff=0"
        ));
        assert_eq!(answer, "OK created");
    }
}

/// What [`create_queues`] set must be there after every restart.
pub fn assert_queues_kept(broker: &Broker) {
    let mut client = broker.client();
    for (queue, level) in QUEUES {
        let data = client.data(&format!("QGET {queue}"));
        for want in [
            format!("set.durable={level}"),
            "set.maxdeliver=0".to_owned(),
        ] {
            assert!(
                data.split_whitespace().any(|word| word == want),
                "{want} not in {data}"
            );
        }
    }
}

/// Takes and acks everything there is, then closes the books.
pub fn drain(shared: &Shared, broker: &Broker) {
    let mut client = broker.client();
    let sources = QUEUES.map(|(queue, _)| queue).join(",");
    let mut empty = 0;
    while empty < 2 {
        let messages = client.pull(&format!("{sources} 500 wait=200ms lease=60s"));
        let messages = messages.expect("the broker stays up");
        empty = if messages.is_empty() { empty + 1 } else { 0 };
        settle(shared, &mut client, &messages, |_| true).expect("the broker stays up");
    }
    shared.ledger().settle();
}

/// [`drain`]s a broker and ends it: everything was as promised, and there was something.
pub fn end(shared: &Shared, mut broker: Broker) {
    drain(shared, &broker);
    shared.ledger().assert_faultless("at the end");
    broker.terminate();
    let ledger = shared.ledger();
    assert!(
        ledger.confirmed > 0 && ledger.acked > 0,
        "there was no load"
    );
}

fn publish(shared: &Shared, address: SocketAddr, mut random: Random) -> io::Result<()> {
    let mut client = Client::try_connect(address)?;
    let mut sent = 0;
    let mut last_ids = [0; QUEUES.len()];
    while sent < PUBLISHES_MAX && !shared.stopped() {
        let mut bytes = Vec::new();
        let mut awaited: Vec<(Key, u64, usize)> = Vec::new();
        for _ in 0..1 + random.below(40) {
            let queue = random.below(QUEUES.len() as u64) as usize;
            let count = if random.once_in(10) {
                2 + random.below(20)
            } else {
                1
            };
            let first = shared.ledger().publishing(queue, count);
            append_publish(&mut bytes, QUEUES[queue].0, first, count);
            awaited.push((first, count, queue));
            sent += count;
        }
        client.send(&bytes)?;
        for (first, count, queue) in awaited {
            let line = client.line()?;
            let mut ledger = shared.ledger();
            if let Some(id) = ledger.published(first, count, QUEUES[queue].1, &line) {
                if id <= last_ids[queue] {
                    ledger.fault(format!("message {first} overtook an earlier one: {line}"));
                }
                last_ids[queue] = id + count - 1;
            }
        }
    }
    Ok(())
}

/// A `PUB`, or an `MPUB` of several messages.
fn append_publish(bytes: &mut Vec<u8>, queue: &str, first: Key, count: u64) {
    if count == 1 {
        bytes.extend(Client::publish_bytes(queue, &ledger::body(first)));
        return;
    }
    let mut batch = Vec::new();
    for key in first..first + count {
        let body = ledger::body(key);
        batch.extend(format!("{}\n", body.len()).into_bytes());
        batch.extend(body);
        batch.push(b'\n');
    }
    bytes.extend(format!("MPUB {queue} ${}\n", batch.len()).into_bytes());
    bytes.extend(batch);
    bytes.push(b'\n');
}

fn consume(shared: &Shared, address: SocketAddr, mut random: Random) -> io::Result<()> {
    let mut client = Client::try_connect(address)?;
    while !shared.stopped() {
        let mut sources = QUEUES.map(|(queue, _)| queue);
        if random.once_in(2) {
            sources.reverse();
        }
        let sources = if random.once_in(3) {
            sources[0].to_owned()
        } else {
            sources.join(",")
        };
        let count = 1 + random.below(60);
        let messages = match client.pull(&format!("{sources} {count} wait=50ms lease=60s")) {
            // Nothing is handed out any more, and soon the connection ends.
            Err(error) if error.to_string().contains("ERR DRAINING") => Vec::new(),
            pulled => pulled?,
        };
        if messages.is_empty() {
            // Nothing may be there for a while; a pause keeps the loop from being all there is.
            thread::sleep(Duration::from_millis(1));
        }
        let fate = random.below(4);
        settle(shared, &mut client, &messages, |_| {
            fate > 0 || !random.once_in(3)
        })?;
    }
    Ok(())
}

/// Notes deliveries, acks those that `wanted` picks and gives every second of the others back.
fn settle(
    shared: &Shared,
    client: &mut Client,
    messages: &[Message],
    mut wanted: impl FnMut(Key) -> bool,
) -> io::Result<()> {
    let mut acks = Vec::new();
    let mut nacks = Vec::new();
    {
        let mut ledger = shared.ledger();
        for message in messages {
            let queue = QUEUES.iter().position(|(name, _)| *name == message.source);
            let queue = queue.unwrap_or(usize::MAX);
            let Some(key) = ledger.delivered(queue, message.id(), &message.body) else {
                continue;
            };
            if wanted(key) {
                ledger.acking(key);
                acks.push((key, message.handle.as_str()));
            } else if key % 2 == 0 {
                nacks.push(message.handle.as_str());
            }
        }
    }
    if !acks.is_empty() {
        let handles: Vec<&str> = acks.iter().map(|(_, handle)| *handle).collect();
        let answer = client.try_ask(&format!("ACK {}", handles.join(" ")))?;
        let mut ledger = shared.ledger();
        if answer == format!("OK {}", acks.len()) {
            for (key, _) in acks {
                ledger.acked(key);
            }
        } else if !answer.starts_with("ERR UNKNOWNRESULT") {
            // The leases are longer than any run, so none of them can be stale.
            ledger.fault(format!("ACK of {} live handles got {answer:?}", acks.len()));
        }
    }
    if !nacks.is_empty() {
        let answer = client.try_ask(&format!("NACK {} delay=0", nacks.join(" ")))?;
        if answer != format!("OK {}", nacks.len()) && !answer.starts_with("ERR UNKNOWNRESULT") {
            let text = format!("NACK of {} live handles got {answer:?}", nacks.len());
            shared.ledger().fault(text);
        }
    }
    Ok(())
}
