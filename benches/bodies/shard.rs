//! A whole shard without sockets: what a publish, a pull, an ack and a whole turn cost between the
//! bytes that arrive and the bytes that leave.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::time::Duration;

use ringmq::broker::id::Level;
use ringmq::broker::settings::Settings;
use ringmq::config::{Config, Limits};
use ringmq::log::disk::Storage;
use ringmq::log::{NoStorage, Recovered};
use ringmq::shard::{ConnKey, Now, Shard};

use super::memory::{MemoryDisk, MemoryStorage};
use super::{Body, COPY_BYTES, OPERATIONS, Work, body, copy};

/// Everything in memory, a thousand commands a turn unless the name says something else.
pub const MEMORY: &[Body] = &[
    body("publish_16_bytes", || publish(in_memory(), 16)),
    body("publish_100_bytes", || publish(in_memory(), 100)),
    body("publish_1024_bytes", || publish(in_memory(), 1024)),
    body("publish_batch", || {
        let head = format!("MPUB jobs *{OPERATIONS}\n");
        let lines = format!("{}\n", "x".repeat(100)).repeat(OPERATIONS);
        phase::<Publish, _>(in_memory(), (head + &lines).into_bytes())
    }),
    body("pull", || {
        phase::<Pull, _>(in_memory(), publishes(100, OPERATIONS))
    }),
    body("pull_each", || {
        phase::<PullEach, _>(in_memory(), publishes(100, OPERATIONS))
    }),
    body("ack", || {
        phase::<Ack, _>(in_memory(), publishes(100, OPERATIONS))
    }),
    body("ack_each", || {
        phase::<AckEach, _>(in_memory(), publishes(100, OPERATIONS))
    }),
    body("turn_publish_push_ack", || whole(OPERATIONS)),
    body("turn_publish_push_ack_one_by_one", || whole(1)),
];

/// The same with a log below: its records are made and handed to a disk that does nothing.
pub const LOGGED: &[Body] = &[
    body("publish_os", || publish(logged(Level::Os), 100)),
    body("publish_disk", || publish(logged(Level::Disk), 100)),
    body("pull_os", || {
        phase::<Pull, _>(logged(Level::Os), publishes(100, OPERATIONS))
    }),
    body("ack_os", || {
        phase::<Ack, _>(logged(Level::Os), publishes(100, OPERATIONS))
    }),
    body("ack_each_os", || {
        phase::<AckEach, _>(logged(Level::Os), publishes(100, OPERATIONS))
    }),
];

/// A shard with one connection.
pub struct Driver<S: Storage> {
    pub shard: Shard<S>,
    conn: ConnKey,
    now: Now,
    out: Vec<u8>,
    /// Something else does the log's jobs: wait for it.
    pub waits: bool,
}

/// The settings of a broker with much memory and room for a thousand answers in a turn.
pub fn config(durable: Level) -> Config {
    Config {
        queue_defaults: Settings {
            durable,
            ..Settings::default()
        },
        memory_budget_bytes: 8 << 30,
        limits: Limits {
            send_bytes_max: 8 << 20,
            turn_bytes_max: 8 << 20,
            ..Limits::default()
        },
        ..Config::default()
    }
}

/// The time of the first turn.
pub const NOW: Now = Now {
    us: 1_700_000_000_000_000,
    wall_us: 1_700_000_000_000_000,
};

impl<S: Storage> Driver<S> {
    /// Opens the shard and connects to it.
    pub fn open(config: &Config, storage: Option<S>) -> (Driver<S>, Recovered) {
        let opened = Shard::open(config, storage, NOW, 1);
        let (mut shard, recovered) = opened.expect("the storage can be served");
        let conn = shard.handle_accept("bench", NOW).expect("there is room");
        let driver = Driver {
            shard,
            conn,
            now: NOW,
            out: Vec::new(),
            waits: false,
        };
        (driver, recovered)
    }

    /// Bytes arrive, the turn ends, and what is answered is taken.
    pub fn turn(&mut self, mut input: &[u8]) {
        self.now.us += 100;
        self.out.clear();
        while !input.is_empty() {
            let space = self.shard.receive_space(self.conn);
            let space = space.expect("the connection is read");
            let count = space.len().min(input.len());
            copy(&mut space[..count], &input[..count]);
            input = &input[count..];
            self.shard.handle_received(self.conn, count, self.now);
        }
        self.end_turn();
    }

    /// A turn in which nothing arrives on the sockets.
    pub fn end_turn(&mut self) {
        self.shard.handle_turn_end(self.now);
        take_output(&mut self.shard, self.now, &mut self.out);
    }

    /// A turn, and those after it until its answer is there.
    pub fn answered(&mut self, input: &[u8]) {
        self.turn(input);
        for _ in 0..1000 {
            if !self.out.is_empty() {
                let refused = self.out.starts_with(b"ERR");
                assert!(!refused, "{}", String::from_utf8_lossy(&self.out));
                return;
            }
            if self.waits {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            self.now.us += 100;
            self.end_turn();
        }
        panic!("no answer");
    }

    /// `ACK` lines for every message in the last answer.
    fn acks(&self, one_line: bool) -> Vec<u8> {
        acks_of(&self.out, one_line)
    }
}

/// Takes what every connection has to say, as their sockets would.
pub fn take_output<S: Storage>(shard: &mut Shard<S>, now: Now, out: &mut Vec<u8>) {
    while let Some(conn) = shard.poll_output() {
        let mut more = true;
        while more {
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = shard.output(conn, &mut slices);
            let mut taken = 0;
            for slice in &slices[..filled] {
                for piece in slice.chunks(COPY_BYTES) {
                    out.extend_from_slice(piece);
                }
                taken += slice.len();
            }
            more = shard.handle_sent(conn, taken, now);
        }
    }
}

/// Incarnation, id and serial of the first message in an answer.
pub fn first_handle(answer: &[u8]) -> [u64; 3] {
    let answer = String::from_utf8_lossy(answer);
    let line = answer.lines().find(|line| line.starts_with("MSG "));
    let handle = line.and_then(|line| line.split(' ').nth(2));
    let mut numbers = handle.expect("a message").split('.').map(str::parse);
    std::array::from_fn(|_| {
        let number = numbers.next().expect("a handle has three parts");
        number.expect("they are numbers")
    })
}

/// One `ACK` of `count` messages, `from` behind the one with that handle.
pub fn ack_behind([incarnation, id, serial]: [u64; 3], from: u64, count: u64) -> Vec<u8> {
    let mut line = b"ACK".to_vec();
    for step in from..from + count {
        // Ids and serials go up by one from message to message.
        let handle = format!(" {incarnation}.{}.{}", id + step, serial + step);
        line.extend_from_slice(handle.as_bytes());
    }
    line.push(b'\n');
    line
}

/// `ACK` lines for every message in an answer.
pub fn acks_of(answer: &[u8], one_line: bool) -> Vec<u8> {
    let mut acks = Vec::new();
    for line in answer.split(|octet| *octet == b'\n') {
        if !line.starts_with(b"MSG ") {
            continue;
        }
        let handle = line.split(|octet| *octet == b' ').nth(2);
        if acks.is_empty() || !one_line {
            acks.extend_from_slice(b"ACK");
        }
        acks.push(b' ');
        acks.extend_from_slice(handle.expect("MSG source handle"));
        if !one_line {
            acks.push(b'\n');
        }
    }
    if one_line && !acks.is_empty() {
        acks.push(b'\n');
    }
    acks
}

fn in_memory() -> Driver<NoStorage> {
    Driver::open(&config(Level::None), None).0
}

fn logged(durable: Level) -> Driver<MemoryStorage> {
    let storage = MemoryStorage::new(&MemoryDisk::forgetful());
    Driver::open(&config(durable), Some(storage)).0
}

/// `count` publishes with bodies of that size.
pub fn publishes(size: usize, count: usize) -> Vec<u8> {
    format!("PUB jobs ${size}\n{}\n", "x".repeat(size))
        .repeat(count)
        .into_bytes()
}

/// Publish, pull and ack of `OPERATIONS` messages, of which one part is measured.
trait Part: 'static {
    /// What is done before with the queue empty.
    fn before<S: Storage>(driver: &mut Driver<S>, publishes: &[u8]) -> Vec<u8>;
    /// What is done after, until the queue is empty.
    fn after<S: Storage>(driver: &mut Driver<S>);
}

/// The publishing is measured.
struct Publish;
/// Taking all with one command is measured.
struct Pull;
/// Taking each with a command of its own is measured.
struct PullEach;
/// Settling all with one command is measured.
struct Ack;
/// Settling each with a command of its own is measured.
struct AckEach;

fn pull_all<S: Storage>(driver: &mut Driver<S>) {
    driver.answered(format!("PULL jobs {OPERATIONS}\n").as_bytes());
}

fn ack_all<S: Storage>(driver: &mut Driver<S>) {
    let acks = driver.acks(true);
    assert!(!acks.is_empty(), "the messages were taken");
    driver.answered(&acks);
}

impl Part for Publish {
    fn before<S: Storage>(_: &mut Driver<S>, publishes: &[u8]) -> Vec<u8> {
        publishes.to_vec()
    }
    fn after<S: Storage>(driver: &mut Driver<S>) {
        pull_all(driver);
        ack_all(driver);
    }
}

impl Part for Pull {
    fn before<S: Storage>(driver: &mut Driver<S>, publishes: &[u8]) -> Vec<u8> {
        driver.answered(publishes);
        format!("PULL jobs {OPERATIONS}\n").into_bytes()
    }
    fn after<S: Storage>(driver: &mut Driver<S>) {
        ack_all(driver);
    }
}

impl Part for PullEach {
    fn before<S: Storage>(driver: &mut Driver<S>, publishes: &[u8]) -> Vec<u8> {
        driver.answered(publishes);
        b"PULL jobs\n".repeat(OPERATIONS)
    }
    fn after<S: Storage>(driver: &mut Driver<S>) {
        ack_all(driver);
    }
}

impl Part for Ack {
    fn before<S: Storage>(driver: &mut Driver<S>, publishes: &[u8]) -> Vec<u8> {
        driver.answered(publishes);
        pull_all(driver);
        driver.acks(true)
    }
    fn after<S: Storage>(_: &mut Driver<S>) {}
}

impl Part for AckEach {
    fn before<S: Storage>(driver: &mut Driver<S>, publishes: &[u8]) -> Vec<u8> {
        driver.answered(publishes);
        pull_all(driver);
        driver.acks(false)
    }
    fn after<S: Storage>(_: &mut Driver<S>) {}
}

/// Measures one part of a message's life.
struct Phase<P, S: Storage> {
    driver: Driver<S>,
    publishes: Vec<u8>,
    input: Option<Vec<u8>>,
    part: PhantomData<P>,
}

impl<P: Part, S: Storage> Work for Phase<P, S> {
    fn prepare(&mut self) {
        if self.input.is_some() {
            P::after(&mut self.driver);
            assert_eq!(self.driver.shard.messages(), 0, "nothing is left over");
        }
        self.input = Some(P::before(&mut self.driver, &self.publishes));
    }

    fn run(&mut self) {
        let input = self.input.as_ref().expect("it is prepared before each run");
        self.driver.answered(input);
    }
}

fn phase<P: Part, S: Storage + 'static>(driver: Driver<S>, publishes: Vec<u8>) -> Box<dyn Work> {
    Box::new(Phase::<P, S> {
        driver,
        publishes,
        input: None,
        part: PhantomData,
    })
}

fn publish<S: Storage + 'static>(driver: Driver<S>, size: usize) -> Box<dyn Work> {
    phase::<Publish, S>(driver, publishes(size, OPERATIONS))
}

/// The whole way of messages in turns as a busy broker has them: in each turn some are published
/// and pushed, and those of the turn before are acked.
struct Whole {
    driver: Driver<NoStorage>,
    publishes: Vec<u8>,
    turns: Vec<Vec<u8>>,
    /// Messages of a turn.
    count: u64,
}

impl Work for Whole {
    fn prepare(&mut self) {
        let last = first_handle(&self.driver.out);
        for (turn, input) in (0..).zip(&mut self.turns) {
            *input = ack_behind(last, turn * self.count, self.count);
            input.extend_from_slice(&self.publishes);
        }
    }

    fn run(&mut self) {
        for input in &self.turns {
            self.driver.answered(input);
        }
        let left = self.driver.shard.messages();
        assert_eq!(left, self.count, "only the last ones are not acked");
    }
}

/// `OPERATIONS` messages, so many in a turn.
fn whole(in_a_turn: usize) -> Box<dyn Work> {
    let mut driver = in_memory();
    driver.answered(format!("SUB jobs credit={OPERATIONS}\n").as_bytes());
    let publishes = publishes(100, in_a_turn);
    driver.answered(&publishes);
    Box::new(Whole {
        driver,
        publishes,
        turns: vec![Vec::new(); OPERATIONS / in_a_turn],
        count: in_a_turn as u64,
    })
}
