//! In steady state publish, pull and ack allocate nothing: counted by the allocator itself.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;

use ringmq::config::Config;
use ringmq::log::NoStorage;
use ringmq::shard::{ConnKey, Now, Shard};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a plain cell of
// this thread that needs no allocation of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Driver {
    shard: Shard<NoStorage>,
    now: Now,
    out: Vec<u8>,
}

impl Driver {
    fn new() -> Driver {
        let config = Config::default();
        let now = Now {
            us: 1_700_000_000_000_000,
            wall_us: 1_700_000_000_000_000,
        };
        let (shard, _) = Shard::open(&config, None, now, 1).expect("memory is always there");
        Driver {
            shard,
            now,
            out: Vec::with_capacity(1 << 20),
        }
    }

    /// One turn: the bytes arrive, what is answered is taken.
    fn turn(&mut self, conn: ConnKey, input: &[u8]) -> &[u8] {
        self.now.us += 10;
        let space = self
            .shard
            .receive_space(conn)
            .expect("the connection is read");
        space[..input.len()].copy_from_slice(input);
        self.shard.handle_received(conn, input.len(), self.now);
        self.shard.handle_turn_end(self.now);
        self.out.clear();
        while let Some(conn) = self.shard.poll_output() {
            loop {
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = self.shard.output(conn, &mut slices);
                let mut taken = 0;
                for slice in &slices[..filled] {
                    self.out.extend_from_slice(slice);
                    taken += slice.len();
                }
                if taken == 0 || !self.shard.handle_sent(conn, taken, self.now) {
                    break;
                }
            }
        }
        &self.out
    }
}

/// The handle of the first message in an answer.
fn handle<'a>(answer: &[u8], into: &'a mut Vec<u8>) -> &'a [u8] {
    let text = std::str::from_utf8(answer).expect("answers are text here");
    let handle = text.split(' ').nth(2).expect("MSG source handle");
    into.clear();
    into.extend_from_slice(b"ACK ");
    into.extend_from_slice(handle.as_bytes());
    into.push(b'\n');
    into
}

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

#[test]
fn publish_pull_and_ack_allocate_nothing() {
    let mut driver = Driver::new();
    let producer = driver
        .shard
        .handle_accept("producer", driver.now)
        .expect("there is room");
    let consumer = driver
        .shard
        .handle_accept("consumer", driver.now)
        .expect("there is room");
    let publish = [b"PUB jobs $100\n".as_slice(), &[b'x'; 100], b"\n"].concat();
    let mut ack = Vec::with_capacity(256);
    let mut round = |driver: &mut Driver| {
        driver.turn(producer, &publish);
        let answer = driver.turn(consumer, b"PULL jobs\n");
        assert!(
            answer.starts_with(b"MSG jobs "),
            "{}",
            String::from_utf8_lossy(answer)
        );
        let ack = handle(answer, &mut ack);
        assert_eq!(driver.turn(consumer, ack), b"OK 1\n");
    };
    for _ in 0..10_000 {
        round(&mut driver);
    }
    let before = allocations();
    for _ in 0..10_000 {
        round(&mut driver);
    }
    assert_eq!(allocations() - before, 0, "in 10,000 rounds");
}

#[test]
fn pushes_to_a_subscription_allocate_nothing() {
    let mut driver = Driver::new();
    let producer = driver
        .shard
        .handle_accept("producer", driver.now)
        .expect("there is room");
    let consumer = driver
        .shard
        .handle_accept("consumer", driver.now)
        .expect("there is room");
    driver.turn(consumer, b"SUB jobs credit=50\n");
    let publish = [b"PUB jobs $100\n".as_slice(), &[b'x'; 100], b"\n"].concat();
    let mut ack = Vec::with_capacity(256);
    let mut round = |driver: &mut Driver| {
        let answer = driver.turn(producer, &publish);
        let pushed = answer
            .windows(9)
            .position(|window| window == b"MSG jobs ")
            .expect("it is pushed");
        let ack = handle(&answer[pushed..pushed + 60], &mut ack);
        assert_eq!(driver.turn(consumer, ack), b"OK 1\n");
    };
    for _ in 0..10_000 {
        round(&mut driver);
    }
    let before = allocations();
    for _ in 0..10_000 {
        round(&mut driver);
    }
    assert_eq!(allocations() - before, 0, "in 10,000 rounds");
}

#[test]
fn a_pull_that_waits_allocates_nothing() {
    let mut driver = Driver::new();
    let producer = driver
        .shard
        .handle_accept("producer", driver.now)
        .expect("there is room");
    let consumer = driver
        .shard
        .handle_accept("consumer", driver.now)
        .expect("there is room");
    let publish = [b"PUB jobs $100\n".as_slice(), &[b'x'; 100], b"\n"].concat();
    let mut ack = Vec::with_capacity(256);
    let mut round = |driver: &mut Driver| {
        assert_eq!(driver.turn(consumer, b"PULL jobs wait=10s\n"), b"");
        let answer = driver.turn(producer, &publish);
        let pushed = answer
            .windows(9)
            .position(|window| window == b"MSG jobs ")
            .expect("it is given");
        let ack = handle(&answer[pushed..pushed + 60], &mut ack);
        assert_eq!(driver.turn(consumer, ack), b"OK 1\n");
    };
    for _ in 0..10_000 {
        round(&mut driver);
    }
    let before = allocations();
    for _ in 0..10_000 {
        round(&mut driver);
    }
    assert_eq!(allocations() - before, 0, "in 10,000 rounds");
}
