//! Order by key, `fair=key` and `single=1`, seen from outside: which message leaves next, and to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::script::{disk, memory};
use crate::support::client::{Client, Message};
use crate::support::{Launch, Random, TempDir};

// --- One at a time, in order ---

#[test]
fn the_next_of_a_key_leaves_when_the_one_before_is_acked() {
    memory(
        r"
        C: PUB q key=a :1
        S: OK 1 mem
        C: PUB q key=a :2
        S: OK 2 mem
        C: PUB q key=b :3
        S: OK 3 mem
        C: PUB q :4
        S: OK 4 mem
        C: PULL q 9
        S: MSG q <one> key=a $1
        S: 1
        S: MSG q <three> key=b $1
        S: 3
        S: MSG q <four> $1
        S: 4
        S: END 3
        C2: PULL q 9
        S2: END 0
        C: ACK <three> <four>
        S: OK 2
        C2: PULL q 9
        S2: END 0
        C2: PULL q wait=20s
        C: ACK <one>
        S: OK 1
        S2: MSG q <two> key=a $1
        S2: 2
        S2: END 1
        ",
    );
}

#[test]
fn a_batch_with_a_key_leaves_one_by_one_to_any_number_of_consumers() {
    memory(
        r"
        C: @s SUB q
        S: OK @s
        C2: @s SUB q
        S2: OK @s
        C3: MPUB q key=a *3
        C3: 1
        C3: 2
        C3: 3
        S3: OK 1 3 mem
        S: MSG @s q <one> key=a $1
        S: 1
        -- 100ms
        C2: PING
        S2: PONG
        C3: ACK <one>
        S3: OK 1
        S2: MSG @s q <two> key=a $1
        S2: 2
        C: PING
        S: PONG
        C3: ACK <two>
        S3: OK 1
        S: MSG @s q <three> key=a $1
        S: 3
        ",
    );
}

#[test]
fn a_pull_that_settles_at_once_takes_a_key_empty() {
    disk(
        r"
        C: MPUB q key=a *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 disk
        C: PULL q 9 ack=auto
        S: MSG q - id=1 key=a $1
        S: 1
        S: MSG q - id=2 key=a $1
        S: 2
        S: MSG q - id=3 key=a $1
        S: 3
        S: END 3
        ",
    );
}

#[test]
fn a_key_is_its_octets() {
    memory(
        r"
        C: PUB q key=a%20b :1
        S: OK 1 mem
        C: PUB q key=%61%20b :2
        S: OK 2 mem
        C: PUB q key=A%20b :3
        S: OK 3 mem
        C: PULL q 9
        S: MSG q <one> key=a%20b $1
        S: 1
        S: MSG q <three> key=A%20b $1
        S: 3
        S: END 2
        ",
    );
}

#[test]
fn a_key_holds_in_its_own_queue_alone() {
    memory(
        r"
        C: PUB q key=a :1
        S: OK 1 mem
        C: PUB r key=a :2
        S: OK 1 mem
        C: PULL q,r 9
        S: MSG q <one> key=a $1
        S: 1
        S: MSG r <two> key=a $1
        S: 2
        S: END 2
        ",
    );
}

#[test]
fn of_a_key_the_highest_priority_leaves_first_but_never_beside_one_that_is_out() {
    memory(
        r"
        C: PUB q key=a :1
        S: OK 1 mem
        C: PUB q key=a pri=5 :2
        S: OK 2 mem
        C: PUB q key=a pri=9 :3
        S: OK 3 mem
        C: PUB q key=b pri=7 :4
        S: OK 4 mem
        C: PULL q 9
        S: MSG q <three> key=a $1
        S: 3
        S: MSG q <four> key=b $1
        S: 4
        S: END 2
        C: PUB q key=a pri=200 :5
        S: OK 5 mem
        C: PULL q
        S: END 0
        C: ACK <three>
        S: OK 1
        C: PULL q
        S: MSG q <five> key=a $1
        S: 5
        S: END 1
        C: ACK <five>
        S: OK 1
        C: PULL q
        S: MSG q <two> key=a $1
        S: 2
        S: END 1
        ",
    );
}

#[test]
fn a_message_that_is_not_due_yet_holds_nobody_up() {
    memory(
        r"
        C: PUB q key=a delay=300 :1
        S: OK 1 mem
        C: PUB q key=a :2
        S: OK 2 mem
        C: PULL q
        S: MSG q <two> key=a $1
        S: 2
        S: END 1
        -- 400ms
        C: PULL q
        S: END 0
        C: ACK <two>
        S: OK 1
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        ",
    );
}

// --- Retries ---

#[test]
fn a_key_stays_taken_while_its_message_waits_for_its_retry() {
    memory(
        r"
        C: QSET q backoff=400ms
        S: OK created
        C: MPUB q key=a *2
        C: 1
        C: 2
        S: OK 1 2 mem
        C: PUB q key=a pri=9 delay=50 :3
        S: OK 3 mem
        C: PULL q 9
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        -- mark
        C: NACK <one>
        S: OK 1
        C2: PULL q wait=200
        S2: END 0
        C2: PULL q wait=20s
        S2: MSG q <again> try=2 key=a $1
        S2: 1
        S2: END 1
        -- at least 400ms
        C2: NACK <again> delay=100ms
        S2: OK 1
        C2: PULL q 9 wait=20s
        S2: MSG q <third> try=3 key=a $1
        S2: 1
        S2: END 1
        C2: ACK <third>
        S2: OK 1
        C2: PULL q 9
        S2: MSG q <three> key=a $1
        S2: 3
        S2: END 1
        ",
    );
}

#[test]
fn a_lease_that_ends_by_itself_or_by_a_close_keeps_the_key() {
    memory(
        r"
        C: MPUB q key=a *2
        C: 1
        C: 2
        S: OK 1 2 mem
        C: PULL q lease=100ms
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C2: PULL q 9 wait=20s
        S2: MSG q <again> try=2 key=a $1
        S2: 1
        S2: END 1
        C2: (close)
        C: PULL q 9 wait=20s
        S: MSG q <third> try=3 key=a $1
        S: 1
        S: END 1
        C: ACK <third>
        S: OK 1
        C: PULL q 9
        S: MSG q <two> key=a $1
        S: 2
        S: END 1
        ",
    );
}

#[test]
fn a_dead_letter_frees_its_key_and_keeps_it_in_the_dead_letter_queue() {
    disk(
        r"
        C: QSET q backoff=0 maxdeliver=2
        S: OK created
        C: MPUB q key=a *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 disk
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C: NACK <one>
        S: OK 1
        C: PULL q
        S: MSG q <again> try=2 key=a $1
        S: 1
        S: END 1
        C2: PULL q 9 wait=20s
        C: NACK <again>
        S: OK 1
        S2: MSG q <two> key=a $1
        S2: 2
        S2: END 1
        C: NACK <two> dead=1
        S: OK 1
        C: PULL q.dead 9
        S: MSG q.dead <d1> key=a h.dead-queue=q h.dead-id=1 h.dead-reason=tries h.dead-tries=2 $1
        S: 1
        S: END 1
        C: PULL q
        S: MSG q <three> key=a $1
        S: 3
        S: END 1
        C: ACK <d1>
        S: OK 1
        C: PULL q.dead 9
        S: MSG q.dead <d2> key=a h.dead-queue=q h.dead-id=2 h.dead-reason=rejected h.dead-tries=1 $1
        S: 2
        S: END 1
        ",
    );
}

// --- Messages that go otherwise ---

#[test]
fn a_time_to_live_ends_for_those_that_wait_for_their_key_too() {
    memory(
        r"
        C: PUB q key=a :1
        S: OK 1 mem
        C: PUB q key=a ttl=100 :2
        S: OK 2 mem
        C: PUB q key=a :3
        S: OK 3 mem
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        -- 250ms
        C: ACK <one>
        S: OK 1
        C: PULL q 9
        S: MSG q <three> key=a $1
        S: 3
        S: END 1
        ",
    );
}

#[test]
fn a_time_to_live_that_ends_while_its_message_waits_for_a_retry_frees_the_key() {
    memory(
        r"
        C: PUB q key=a ttl=300 :1
        S: OK 1 mem
        C: PUB q key=a :2
        S: OK 2 mem
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C: NACK <one> delay=1h
        S: OK 1
        C: PULL q
        S: END 0
        C: PULL q wait=20s
        S: MSG q <two> key=a $1
        S: 2
        S: END 1
        ",
    );
}

#[test]
fn deleting_the_one_that_waits_for_its_retry_frees_the_key() {
    disk(
        r"
        C: MPUB q key=a *4
        C: 1
        C: 2
        C: 3
        C: 4
        S: OK 1 4 disk
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C: NACK <one> delay=1h
        S: OK 1
        C2: PULL q wait=20s
        C: DEL q 2 1
        S: OK 2
        S2: MSG q <three> key=a $1
        S2: 3
        S2: END 1
        C: PURGE q
        S: OK 1
        C2: ACK <three>
        S2: OK 1
        C2: PULL q
        S2: END 0
        C: PUB q key=a :5
        S: OK 5 disk
        C2: PULL q
        S2: MSG q <five> key=a $1
        S2: 5
        S2: END 1
        ",
    );
}

#[test]
fn a_purge_or_a_move_takes_those_that_wait_for_their_key() {
    memory(
        r"
        C: MPUB q key=a *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 mem
        C: PUB q :4
        S: OK 4 mem
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C: MOVE q r 2
        S: OK 2
        C: PULL r 9
        S: MSG r <r1> key=a $1
        S: 2
        S: END 1
        C: ACK <r1>
        S: OK 1
        C: PULL r 9
        S: MSG r <r2> key=a $1
        S: 3
        S: END 1
        C: PUB q key=a :5
        S: OK 5 mem
        C: PURGE q state=ready
        S: OK 2
        C: NACK <one> delay=0
        S: OK 1
        C: PULL q 9
        S: MSG q <again> try=2 key=a $1
        S: 1
        S: END 1
        ",
    );
}

#[test]
fn a_deleted_queue_leaves_no_key_behind() {
    memory(
        r"
        C: MPUB q key=a *2
        C: 1
        C: 2
        S: OK 1 2 mem
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C2: PULL q wait=20s
        C: QDEL q
        S: OK
        C: PUB q key=a :3
        S: OK 1 mem
        S2: MSG q <three> key=a $1
        S2: 3
        S2: END 1
        C: ACK <one>
        S: OK 0 stale=<one>
        ",
    );
}

#[test]
fn the_oldest_is_dropped_whether_its_key_is_taken_or_not() {
    memory(
        r"
        C: QSET q maxlen=3 full=dropold
        S: OK created
        C: MPUB q key=a *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 mem
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C: PUB q key=a :4
        S: OK 4 mem
        C: ACK <one>
        S: OK 1
        C: PULL q 9
        S: MSG q <three> key=a $1
        S: 3
        S: END 1
        ",
    );
}

// --- What is told ---

#[test]
fn those_that_wait_for_their_key_are_told_apart_and_can_be_looked_at() {
    memory(
        r"
        C: MPUB q key=a *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 mem
        C: PUB q key=b :4
        S: OK 4 mem
        C: PULL q
        S: MSG q <one> key=a $1
        S: 1
        S: END 1
        C: QGET q
        S: DATA $…
        S: ready=1
        S: leased=1
        S: delayed=0
        S: locked=2
        S: …
        S: set.pause=none
        S:
        C: QLS
        S: DATA $…
        S: q ready=1 leased=1 delayed=0 dead=0 locked=2
        S:
        C: PEEK q 9
        S: MSG q - id=4 key=b $1
        S: 4
        S: MSG q - id=2 key=a $1
        S: 2
        S: MSG q - id=3 key=a $1
        S: 3
        S: END 3
        C: PEEK q 9 from=3
        S: MSG q - id=4 key=b $1
        S: 4
        S: MSG q - id=3 key=a $1
        S: 3
        S: END 2
        ",
    );
}

// --- Over a restart ---

#[test]
fn a_message_that_waits_for_its_retry_holds_its_key_over_a_restart() {
    // The lease of 3 is void after a kill; a shutdown returns it, which is a try.
    for (how, first) in [("kill", ["<b>", "4"]), ("restart", ["<b> try=2", "3"])] {
        let [head, body] = first;
        disk(&format!(
            r"
            C: MPUB q key=a *2
            C: 1
            C: 2
            S: OK 1 2 disk
            C: PUB q key=b pri=3 :3
            S: OK 3 disk
            C: PULL q 9
            S: MSG q <three> key=b $1
            S: 3
            S: MSG q <one> key=a $1
            S: 1
            S: END 2
            C: PUB q key=b pri=9 :4
            S: OK 4 disk
            -- mark
            C: NACK <one> delay=2s
            S: OK 1
            -- {how}
            C: PULL q 9
            S: MSG q {head} key=b $1
            S: {body}
            S: END 1
            C: PULL q 9 wait=20s
            S: MSG q <again> try=2 key=a $1
            S: 1
            S: END 1
            -- at least 2s
            C: ACK <again>
            S: OK 1
            C: PULL q 9
            S: MSG q <two> key=a $1
            S: 2
            S: END 1
            "
        ));
    }
}

/// A counter of `STATS`.
fn counter(client: &mut Client, name: &str) -> u64 {
    let text = client.data("STATS");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.strip_prefix('='));
    let value = value.and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Takes what is ready of a queue; the ids.
fn pull_ids(client: &mut Client, arguments: &str) -> Vec<u64> {
    let taken = client.pull(arguments).expect("it is well");
    taken.iter().map(Message::id).collect()
}

#[test]
fn a_checkpoint_keeps_the_keys_of_messages_whose_publish_it_covers() {
    let dir = TempDir::new("keys");
    let launch = Launch::data(&dir.data()).arg("--checkpoint 1M --segment 1M");
    let mut broker = launch.start();
    let mut client = broker.client();
    assert_eq!(client.ask("QSET q backoff=1h"), "OK created");
    assert_eq!(client.ask("PUB q key=a :1"), "OK 1 disk");
    assert_eq!(client.ask("PUB q key=a :2"), "OK 2 disk");
    assert_eq!(client.ask("PUB q key=b :3"), "OK 3 disk");
    assert_eq!(client.ask("PUB q key=b delay=1h :4"), "OK 4 disk");
    assert_eq!(client.ask("PUB q key=b :5"), "OK 5 disk");
    assert_eq!(client.ask("PUB q :6"), "OK 6 disk");
    let taken = client.pull("q").expect("it is well");
    assert_eq!(client.ask(&format!("NACK {}", taken[0].handle)), "OK 1");
    // The log goes on until they are known by a checkpoint alone.
    let body = vec![b'x'; 50_000];
    while counter(&mut client, "log_checkpoints_total") < 2 {
        let answer = client.publish("filler", &body).expect("it is well");
        assert!(answer.starts_with("OK "), "{answer}");
    }
    broker.process.kill_running();
    broker = launch.start();
    let mut client = broker.client();
    assert_eq!(pull_ids(&mut client, "q 9"), [3, 6]);
    assert_eq!(client.ask("DEL q 1"), "OK 1");
    assert_eq!(pull_ids(&mut client, "q 9"), [2]);
    let text = client.data("QGET q");
    assert!(
        text.starts_with("ready=0\nleased=3\ndelayed=1\nlocked=1\n"),
        "{text}"
    );
}

// --- Many keys, many consumers ---

const KEYS: u64 = 1_000;
const OF_EACH: u64 = 10;
const CONSUMERS: u64 = 100;

/// The key of a message and its number within the key: its body is `<key>:<number>`.
fn parts(message: &Message) -> (u64, u64) {
    let text = std::str::from_utf8(&message.body).expect("it is text");
    let (key, number) = text.split_once(':').expect("it is key:number");
    let read = |text: &str| text.parse::<u64>().expect("it is a number");
    (read(key), read(number))
}

fn publish_all(client: &mut Client) {
    for number in 1..=OF_EACH {
        for key in 1..=KEYS {
            let padding = "x".repeat(200);
            let line = format!("PUB! work key=k{key} h.padding={padding} :{key}:{number}\n");
            client.send(line.as_bytes()).expect("it is well");
        }
    }
    let answer = client.ask("SYNC");
    let wanted = format!("OK accepted={} rejected=0", KEYS * OF_EACH);
    assert!(answer.starts_with(&wanted), "{answer}");
}

/// What consumers did, in the order in which it was done.
#[derive(Default)]
struct Done {
    /// Keys with a message out.
    out: BTreeSet<u64>,
    /// By key, the numbers that were acked.
    acked: BTreeMap<u64, Vec<u64>>,
    retries: u64,
}

/// Takes what there is until all is acked; now and then it gives a message back, lets its lease end, or
/// closes its connection.
fn consume(address: std::net::SocketAddr, seed: u64, done: &Mutex<Done>, left: &AtomicU64) {
    let mut random = Random::new(seed);
    let mut client = Client::connect(address);
    while left.load(Ordering::SeqCst) > 0 {
        let count = 1 + random.below(5);
        let taken = client.pull(&format!("work {count} wait=100ms lease=20s"));
        for message in taken.expect("it is well") {
            let (key, number) = parts(&message);
            let mut books = done.lock().expect("no test has failed");
            assert!(books.out.insert(key), "two of key {key} are out");
            let before = books.acked.get(&key).map_or(0, Vec::len) as u64;
            assert_eq!(number, before + 1, "the next of key {key}");
            // From here on the broker may hand out the next, so the books are written before.
            books.out.remove(&key);
            let command = match random.below(8) {
                0 => {
                    books.retries += 1;
                    format!("NACK {} delay={}", message.handle, random.below(30))
                }
                1 => {
                    books.retries += 1;
                    format!("TOUCH {} lease=5ms", message.handle)
                }
                _ => {
                    books.acked.entry(key).or_default().push(number);
                    left.fetch_sub(1, Ordering::SeqCst);
                    format!("ACK {}", message.handle)
                }
            };
            drop(books);
            assert_eq!(client.ask(&command), "OK 1", "{command}");
        }
        if random.once_in(20) {
            let held = client.pull("work lease=20s").expect("it is well");
            done.lock().expect("no test has failed").retries += held.len() as u64;
            client = Client::connect(address);
        }
    }
}

#[test]
fn a_thousand_keys_keep_their_order_with_a_hundred_consumers_and_retries() {
    let launch = Launch::memory();
    let broker = launch.start();
    let mut client = broker.client();
    assert_eq!(client.ask("QSET work maxdeliver=0"), "OK created");
    publish_all(&mut client);
    let done = Mutex::new(Done::default());
    let left = AtomicU64::new(KEYS * OF_EACH);
    thread::scope(|scope| {
        for seed in 1..=CONSUMERS {
            let (done, left) = (&done, &left);
            let address = broker.address;
            scope.spawn(move || consume(address, seed, done, left));
        }
    });
    let done = done.into_inner().expect("no consumer has failed");
    assert_eq!(done.acked.len() as u64, KEYS);
    let order: Vec<u64> = (1..=OF_EACH).collect();
    assert!(done.acked.values().all(|numbers| *numbers == order));
    assert!(done.retries > 100, "{} retries", done.retries);
    let text = client.data("QGET work");
    assert!(
        text.starts_with("ready=0\nleased=0\ndelayed=0\nlocked=0\n"),
        "{text}"
    );
}

#[test]
fn keys_keep_their_order_when_the_broker_is_killed_again_and_again() {
    let dir = TempDir::new("keys");
    let launch = Launch::data(&dir.data()).arg("--checkpoint 1M --segment 1M");
    let mut broker = launch.start();
    let mut client = broker.client();
    let settings = "QSET work maxdeliver=0 backoff=0 lease=1m";
    assert_eq!(client.ask(settings), "OK created");
    publish_all(&mut client);
    let mut random = Random::new(1);
    // By key, how many were acked; and the keys whose last ack may or may not have been done.
    let mut acked = BTreeMap::<u64, u64>::new();
    let mut unsure = BTreeSet::new();
    let mut checkpoints = 0;
    while acked.values().sum::<u64>() < KEYS * OF_EACH {
        let taken = client.pull("work 400").expect("it is well");
        let mut acks = Vec::new();
        for message in &taken {
            let (key, number) = parts(message);
            let known = acked.entry(key).or_default();
            if unsure.remove(&key) && number == *known + 2 {
                *known += 1;
            }
            assert_eq!(number, *known + 1, "the next of key {key}");
            match random.below(5) {
                0 => {
                    let answer = client.ask(&format!("NACK {} delay=0", message.handle));
                    assert_eq!(answer, "OK 1");
                }
                _ => acks.push((key, message.handle.clone())),
            }
        }
        let killed = random.once_in(4) || taken.is_empty();
        for some in acks.chunks(50) {
            let handles: Vec<_> = some.iter().map(|(_, handle)| handle.as_str()).collect();
            let command = format!("ACK {}", handles.join(" "));
            if killed && random.once_in(2) {
                client
                    .send(format!("{command}\n").as_bytes())
                    .expect("it is well");
                unsure.extend(some.iter().map(|(key, _)| *key));
                break;
            }
            assert_eq!(client.ask(&command), format!("OK {}", some.len()));
            for (key, _) in some {
                *acked.entry(*key).or_default() += 1;
            }
        }
        if killed {
            checkpoints += counter(&mut broker.client(), "log_checkpoints_total");
            broker.process.kill_running();
            broker = launch.start();
            client = broker.client();
            if taken.is_empty() {
                // Nothing is left: what nobody was sure of was done.
                let text = client.data("QGET work");
                assert!(text.starts_with("ready=0\nleased=0\ndelayed=0\n"), "{text}");
                for key in std::mem::take(&mut unsure) {
                    *acked.entry(key).or_default() += 1;
                }
            }
        }
    }
    assert_eq!(acked.len() as u64, KEYS);
    assert!(acked.values().all(|known| *known == OF_EACH));
    assert!(checkpoints > 0, "no checkpoint was made");
}

// --- Turns ---

/// Publishes one message of tenant `b` and counts what the consumer is given before it and with it.
fn deliveries_until_served(consumer: &mut Client, publisher: &mut Client) -> u64 {
    // The consumer has a message at that moment, as a busy one has.
    let held = consumer.pull("work").expect("it is well");
    let answer = publisher.ask("PUB work key=b :b");
    assert!(answer.starts_with("OK "), "{answer}");
    let mut given = 0;
    let mut handle = held.first().map(|message| message.handle.clone());
    loop {
        if let Some(handle) = &handle {
            assert_eq!(consumer.ask(&format!("ACK {handle}")), "OK 1");
        }
        let taken = consumer.pull("work wait=10s").expect("it is well");
        given += 1;
        let message = taken.first().expect("it is ready");
        handle = Some(message.handle.clone());
        if message.body == b"b" {
            assert_eq!(consumer.ask(&format!("ACK {}", message.handle)), "OK 1");
            return given;
        }
    }
}

#[test]
fn a_tenant_with_a_hundred_thousand_waiting_does_not_hold_another_up() {
    let broker = Launch::memory().start();
    let (mut consumer, mut publisher) = (broker.client(), broker.client());
    assert_eq!(publisher.ask("QSET work fair=key"), "OK created");
    let unloaded = deliveries_until_served(&mut consumer, &mut publisher);
    assert_eq!(unloaded, 1);
    let mut batch = b"MPUB work key=a *100000\n".to_vec();
    for _ in 0..100_000 {
        batch.extend_from_slice(b"a\n");
    }
    publisher.send(&batch).expect("it is well");
    let answer = publisher.line().expect("it is well");
    assert!(answer.ends_with(" 100000 mem"), "{answer}");
    for _ in 0..50 {
        let loaded = deliveries_until_served(&mut consumer, &mut publisher);
        assert!(
            loaded <= 2 * unloaded,
            "{loaded} deliveries until it was served"
        );
    }
    // Without turns the same message waits for all of them.
    assert_eq!(publisher.ask("QSET work fair=none"), "OK updated");
    assert!(publisher.ask("PUB work key=c :c").starts_with("OK "));
    for _ in 0..100 {
        let taken = consumer.pull("work").expect("it is well");
        assert_eq!(taken[0].body, b"a");
        let answer = consumer.ask(&format!("ACK {}", taken[0].handle));
        assert_eq!(answer, "OK 1");
    }
}

#[test]
fn keys_take_turns_one_message_each_and_priorities_come_first() {
    memory(
        r"
        C: QSET q fair=key
        S: OK created
        C: MPUB q key=a *4
        C: a1
        C: a2
        C: a3
        C: a4
        S: OK 1 4 mem
        C: MPUB q key=b *2
        C: b1
        C: b2
        S: OK 5 2 mem
        C: MPUB q *2
        C: x1
        C: x2
        S: OK 7 2 mem
        C: PUB q key=a pri=3 :top
        S: OK 9 mem
        C: PULL q 9 ack=auto
        S: MSG q - id=9 key=a $3
        S: top
        S: …
        S: END 9
        C: MPUB q key=a *3
        C: a1
        C: a2
        C: a3
        S: OK 10 3 mem
        C: MPUB q key=b *2
        C: b1
        C: b2
        S: OK 13 2 mem
        C: PULL q 9
        S: MSG q <a1> key=a $2
        S: a1
        S: MSG q <b1> key=b $2
        S: b1
        S: END 2
        C: ACK <a1> <b1>
        S: OK 2
        C: PULL q 9 ack=auto
        S: MSG q - id=11 key=a $2
        S: a2
        S: MSG q - id=14 key=b $2
        S: b2
        S: MSG q - id=12 key=a $2
        S: a3
        S: END 3
        ",
    );
}

#[test]
fn fair_and_single_are_settings_like_others() {
    disk(
        r"
        C: QSET q fair=key single=1
        S: OK created
        -- kill
        C: QGET q
        S: DATA $…
        S: …
        S: set.fair=key
        S: set.single=1
        S: …
        S: set.pause=none
        S:
        C: QSET q fair=none single=0
        S: OK updated
        -- restart
        C: QGET q
        S: DATA $…
        S: …
        S: set.fair=none
        S: set.single=0
        S: …
        S: set.pause=none
        S:
        C: QSET q fair=yes
        S: ERR SYNTAX :fair= is key or none, not yes
        C: QSET q single=2
        S: ERR SYNTAX :…
        ",
    );
}

// --- One consumer at a time ---

#[test]
fn one_subscription_is_active_and_the_next_in_line_takes_over_at_its_end() {
    memory(
        r"
        C: QSET q single=1
        S: OK created
        C: @s SUB q credit=1
        S: OK @s
        C2: @s SUB q
        S2: OK @s
        C3: @s SUB q
        S3: OK @s
        C4: MPUB q *5
        C4: 1
        C4: 2
        C4: 3
        C4: 4
        C4: 5
        S4: OK 1 5 mem
        S: MSG @s q <one> $1
        S: 1
        -- 100ms
        # Its credit is used up, and still nobody else is served.
        C2: PING
        S2: PONG
        C4: PULL q
        S4: END 0
        C: ACK <one>
        S: OK 1
        S: MSG @s q <two> $1
        S: 2
        C: UNSUB q
        S: OK
        S2: MSG @s q <three> $1
        S2: 3
        S2: MSG @s q <four> $1
        S2: 4
        S2: MSG @s q <five> $1
        S2: 5
        C: NACK <two> delay=0
        S: OK 1
        S2: MSG @s q <again> try=2 $1
        S2: 2
        C2: (close)
        S3: MSG @s q <a> try=3 $1
        S3: 2
        S3: MSG @s q <b> try=2 $1
        S3: 3
        S3: MSG @s q <c> try=2 $1
        S3: 4
        S3: MSG @s q <d> try=2 $1
        S3: 5
        ",
    );
}

#[test]
fn a_puller_is_active_while_it_holds_a_lease_or_waits() {
    memory(
        r"
        C: QSET q single=1
        S: OK created
        C: MPUB q *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 mem
        C: PULL q
        S: MSG q <one> $1
        S: 1
        S: END 1
        C2: PULL q
        S2: END 0
        C2: PULL q wait=100ms
        S2: END 0
        C2: PULL q wait=20s
        -- 50ms
        C: PULL q
        S: MSG q <two> $1
        S: 2
        S: END 1
        C: ACK <one>
        S: OK 1
        C3: PING
        S3: PONG
        C: ACK <two>
        S: OK 1
        S2: MSG q <three> $1
        S2: 3
        S2: END 1
        C: PULL q
        S: END 0
        C2: NACK <three> delay=0
        S2: OK 1
        C: PULL q
        S: MSG q <again> try=2 $1
        S: 3
        S: END 1
        C2: PULL q wait=20s
        C: (close)
        S2: MSG q <third> try=3 $1
        S2: 3
        S2: END 1
        ",
    );
}

#[test]
fn a_waiting_puller_that_was_first_is_served_first() {
    memory(
        r"
        C: QSET q single=1
        S: OK created
        C: PULL q wait=20s
        -- 50ms
        C2: @s SUB q
        S2: OK @s
        C3: MPUB q *2
        C3: 1
        C3: 2
        S3: OK 1 2 mem
        S: MSG q <one> $1
        S: 1
        S: END 1
        -- 50ms
        C2: PING
        S2: PONG
        C: ACK <one>
        S: OK 1
        S2: MSG @s q <two> $1
        S2: 2
        ",
    );
}

#[test]
fn single_can_be_set_and_taken_away_while_consumers_work() {
    memory(
        r"
        C: @s SUB q credit=1
        S: OK @s
        C2: @s SUB q credit=1
        S2: OK @s
        C3: QSET q single=1
        S3: OK updated
        C3: MPUB q *3
        C3: 1
        C3: 2
        C3: 3
        S3: OK 1 3 mem
        S: MSG @s q <one> $1
        S: 1
        -- 50ms
        C2: PING
        S2: PONG
        C3: QSET q single=0
        S3: OK updated
        S2: MSG @s q <two> $1
        S2: 2
        ",
    );
}
