//! The reactor against a broker-shaped echo: real sockets on loopback, no protocol, no log.

mod attend;
mod mail;

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{Driven, Options, Reactor};
use crate::shard::{ConnKey, Now, Room, Stop};

/// Output kept for one connection before it is read no further, bytes.
const OUTPUT_MAX: usize = 64 << 10;
const SPACE: usize = 16 << 10;

/// What a test can see and say while the loop runs.
#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    reset: AtomicU64,
    half_closed: AtomicU64,
    closed: AtomicU64,
    turns: AtomicU64,
    received: AtomicU64,
    /// 1: stop as finished; 2: stop as failed.
    stop: AtomicU64,
    /// Time at which `poll_timeout` is due, microseconds after the first turn; 0 = none.
    deadline: AtomicU64,
    fired: AtomicU64,
}

#[derive(Default)]
struct Line {
    generation: u32,
    open: bool,
    output: VecDeque<u8>,
    /// After `quit`: input is ignored, closes when flushed.
    quitting: bool,
    paused: bool,
    dirty: bool,
}

/// Sends back what it gets; `quit` at the start of a read ends the connection after `bye`.
struct Echo {
    lines: Vec<Line>,
    space: Vec<u8>,
    dirty: VecDeque<ConnKey>,
    resume: VecDeque<ConnKey>,
    close: VecDeque<ConnKey>,
    counters: Arc<Counters>,
    connections_max: usize,
    first_us: Option<u64>,
}

impl Echo {
    fn new(counters: &Arc<Counters>, connections_max: usize) -> Echo {
        Echo {
            lines: Vec::new(),
            space: vec![0; SPACE],
            dirty: VecDeque::new(),
            resume: VecDeque::new(),
            close: VecDeque::new(),
            counters: Arc::clone(counters),
            connections_max,
            first_us: None,
        }
    }

    fn line(&mut self, key: ConnKey) -> &mut Line {
        let line = &mut self.lines[key.slot as usize];
        assert!(
            line.open && line.generation == key.generation,
            "the reactor used a dead key"
        );
        line
    }

    fn mark(&mut self, key: ConnKey) {
        let line = self.line(key);
        if !line.dirty {
            line.dirty = true;
            self.dirty.push_back(key);
        }
    }

    fn close_if_done(&mut self, key: ConnKey) {
        let line = self.line(key);
        if line.quitting && line.output.is_empty() {
            line.open = false;
            self.close.push_back(key);
            self.counters.closed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Driven for Echo {
    fn handle_accept(&mut self, _peer: &str, _listener: usize, _now: Now) -> Option<ConnKey> {
        if self.lines.iter().filter(|line| line.open).count() >= self.connections_max {
            return None;
        }
        let slot = match self.lines.iter().position(|line| !line.open) {
            Some(slot) => slot,
            None => {
                self.lines.push(Line::default());
                self.lines.len() - 1
            }
        };
        let generation = self.lines[slot].generation + 1;
        self.lines[slot] = Line {
            generation,
            open: true,
            ..Line::default()
        };
        self.counters.accepted.fetch_add(1, Ordering::SeqCst);
        Some(ConnKey {
            slot: slot as u32,
            generation,
        })
    }

    fn receive_room(&mut self, conn: ConnKey) -> Option<Room<'_>> {
        let line = self.line(conn);
        line.paused = line.quitting || line.output.len() >= OUTPUT_MAX;
        (!line.paused).then(|| Room::One(&mut self.space[..]))
    }

    fn handle_received(&mut self, conn: ConnKey, count: usize, _now: Now) {
        assert!((1..=SPACE).contains(&count));
        self.counters
            .received
            .fetch_add(count as u64, Ordering::SeqCst);
        let input = self.space[..count].to_vec();
        let line = self.line(conn);
        if input.starts_with(b"quit") {
            line.quitting = true;
            line.output.extend(b"bye");
        } else {
            line.output.extend(input);
        }
        self.mark(conn);
    }

    fn handle_half_close(&mut self, conn: ConnKey, _now: Now) {
        self.counters.half_closed.fetch_add(1, Ordering::SeqCst);
        self.line(conn).quitting = true;
        self.close_if_done(conn);
    }

    fn handle_reset(&mut self, conn: ConnKey, _now: Now) {
        self.counters.reset.fetch_add(1, Ordering::SeqCst);
        self.line(conn).open = false;
    }

    fn handle_turn_end(&mut self, now: Now) {
        self.counters.turns.fetch_add(1, Ordering::SeqCst);
        let first_us = *self.first_us.get_or_insert(now.us);
        let deadline = self.counters.deadline.load(Ordering::SeqCst);
        if deadline > 0 && now.us >= first_us + deadline {
            self.counters
                .fired
                .store(now.us - first_us, Ordering::SeqCst);
            self.counters.deadline.store(0, Ordering::SeqCst);
        }
    }

    fn poll_resume(&mut self) -> Option<ConnKey> {
        self.resume.pop_front()
    }

    fn poll_output(&mut self) -> Option<ConnKey> {
        while let Some(key) = self.dirty.pop_front() {
            let line = &mut self.lines[key.slot as usize];
            if line.open && line.generation == key.generation {
                line.dirty = false;
                return Some(key);
            }
        }
        None
    }

    fn output<'a>(&'a self, conn: ConnKey, slices: &mut [IoSlice<'a>]) -> usize {
        let line = &self.lines[conn.slot as usize];
        assert!(
            line.open && line.generation == conn.generation,
            "the reactor used a dead key"
        );
        let (front, back) = line.output.as_slices();
        let mut filled = 0;
        for piece in [front, back] {
            if !piece.is_empty() {
                slices[filled] = IoSlice::new(piece);
                filled += 1;
            }
        }
        filled
    }

    fn handle_sent(&mut self, conn: ConnKey, count: usize, _now: Now) -> bool {
        let line = self.line(conn);
        line.output.drain(..count);
        let more = !line.output.is_empty();
        if line.paused && line.output.len() < OUTPUT_MAX / 2 {
            line.paused = false;
            self.resume.push_back(conn);
        }
        self.close_if_done(conn);
        more
    }

    fn poll_close(&mut self) -> Option<ConnKey> {
        self.close.pop_front()
    }

    fn poll_timeout(&self) -> Option<u64> {
        let deadline = self.counters.deadline.load(Ordering::SeqCst);
        (deadline > 0).then(|| self.first_us.unwrap_or(0) + deadline)
    }

    fn handle_shutdown(&mut self, _now: Now) {}

    fn poll_stopped(&mut self) -> Option<Stop> {
        match self.counters.stop.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Stop::Finished),
            _ => Some(Stop::Failed("the disk is gone".to_owned())),
        }
    }
}

/// A reactor on a thread of its own.
struct Running {
    address: SocketAddr,
    counters: Arc<Counters>,
    wake: Arc<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<Stop>>,
}

impl Running {
    fn start_with(options: Options, connections_max: usize) -> Running {
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let reactor = Reactor::bind(&[loopback], options).expect("port 0 is always free");
        let address = reactor.addresses().expect("a bound socket has an address")[0];
        let wake = reactor.waker();
        let counters = Arc::new(Counters::default());
        let echo = Echo::new(&counters, connections_max);
        let thread = std::thread::spawn(move || reactor.run(echo).expect("polling works"));
        Running {
            address,
            counters,
            wake,
            thread: Some(thread),
        }
    }

    fn start() -> Running {
        let options = Options {
            spin: false,
            pinned: false,
            turn_bytes_max: 8 << 10,
            lingering_max: 100,
        };
        Running::start_with(options, 100_000)
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("the reactor listens");
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout above zero is valid");
        client
            .set_nodelay(true)
            .expect("a connected socket takes it");
        client
    }

    /// Ends the loop and returns what it said.
    fn stop(&mut self, how: u64) -> Stop {
        self.counters.stop.store(how, Ordering::SeqCst);
        (self.wake)();
        let thread = self.thread.take().expect("stopped only once");
        thread.join().expect("the reactor did not panic")
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Counters) -> bool) {
        let start = Instant::now();
        while !done(&self.counters) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "never happened: {what}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.stop(1);
        }
    }
}

fn ping(client: &mut TcpStream, text: &[u8]) {
    client.write_all(text).expect("the peer reads");
    let mut answer = vec![0; text.len()];
    client.read_exact(&mut answer).expect("the peer answers");
    assert_eq!(answer, text);
}

fn reset(client: TcpStream) {
    let client = Socket::from(client);
    client
        .set_linger(Some(Duration::ZERO))
        .expect("a socket takes it");
}

#[test]
fn answers_many_clients_in_any_order() {
    let running = Running::start();
    let mut clients: Vec<_> = (0..50).map(|_| running.connect()).collect();
    for round in 0..20 {
        for (index, client) in clients.iter_mut().enumerate() {
            ping(client, format!("round {round} client {index}\n").as_bytes());
        }
        clients.rotate_left(7);
    }
}

#[test]
fn a_slot_is_used_again_without_mixing_up_its_users() {
    let running = Running::start();
    for round in 0..300 {
        let mut client = running.connect();
        ping(&mut client, format!("user {round}").as_bytes());
        if round % 3 == 0 {
            reset(client);
        }
    }
    running.wait_for("every connection is over", |c| {
        c.reset.load(Ordering::SeqCst) + c.closed.load(Ordering::SeqCst) == 300
    });
    assert!(running.counters.reset.load(Ordering::SeqCst) >= 100);
}

#[test]
fn everything_sent_before_a_half_close_is_answered() {
    let running = Running::start();
    let text: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let client = running.connect();
    let mut writer = client.try_clone().expect("descriptors are left");
    let sent = text.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&sent).expect("the peer reads");
        writer
            .shutdown(Shutdown::Write)
            .expect("the socket is open");
    });
    let mut answer = Vec::new();
    let mut reader = client;
    reader
        .read_to_end(&mut answer)
        .expect("closed with FIN, not with RST");
    thread.join().expect("the writer did not panic");
    assert!(
        answer == text,
        "{} of {} bytes came back",
        answer.len(),
        text.len()
    );
    assert_eq!(running.counters.half_closed.load(Ordering::SeqCst), 1);
}

#[test]
fn the_last_answer_survives_input_that_nobody_reads() {
    let running = Running::start();
    for _ in 0..20 {
        let mut client = running.connect();
        client.write_all(b"quit").expect("the peer reads");
        let more = vec![b'x'; 300_000];
        // The peer may already be gone when the last of it is sent.
        let _ = client.write_all(&more);
        std::thread::sleep(Duration::from_millis(5));
        let mut answer = Vec::new();
        client
            .read_to_end(&mut answer)
            .expect("the answer and then FIN, not RST");
        assert!(answer.ends_with(b"bye") && answer.len() == 3, "{answer:?}");
    }
}

#[test]
fn a_peer_that_never_ends_its_side_is_closed_all_the_same() {
    let running = Running::start();
    let mut client = running.connect();
    client.write_all(b"quit").expect("the peer reads");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("FIN comes at once");
    let start = Instant::now();
    while client.write_all(b"still here").is_ok() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the socket was never closed"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_reader_that_stops_is_not_read_and_delays_nobody() {
    let running = Running::start();
    let mut lazy = running.connect();
    lazy.set_nonblocking(true).expect("a socket takes it");
    let chunk = vec![b'z'; 64 << 10];
    let mut sent = 0u64;
    let start = Instant::now();
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(300) {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "input without end was taken"
        );
        match lazy.write(&chunk) {
            Ok(count) => {
                sent += count as u64;
                quiet_since = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    let turns = running.counters.turns.load(Ordering::SeqCst);
    let mut other = running.connect();
    for _ in 0..100 {
        let start = Instant::now();
        ping(&mut other, b"quick");
        assert!(start.elapsed() < Duration::from_secs(1));
    }
    let turned = running.counters.turns.load(Ordering::SeqCst) - turns;
    assert!(
        turned < 2_000,
        "the loop spins while a peer does not read: {turned} turns"
    );
    lazy.set_nonblocking(false).expect("a socket takes it");
    lazy.shutdown(Shutdown::Write).expect("the socket is open");
    let mut answer = Vec::new();
    lazy.read_to_end(&mut answer)
        .expect("everything comes once it is read");
    assert_eq!(answer.len() as u64, sent);
}

#[test]
fn a_broken_connection_is_noticed_even_when_it_is_not_read() {
    let running = Running::start();
    let mut client = running.connect();
    client.set_nonblocking(true).expect("a socket takes it");
    let chunk = vec![b'z'; 64 << 10];
    let mut idle = 0;
    while idle < 50 {
        if client.write(&chunk).is_err() {
            idle += 1;
            std::thread::sleep(Duration::from_millis(4));
        }
    }
    reset(client);
    running.wait_for("the reset", |c| c.reset.load(Ordering::SeqCst) == 1);
}

#[test]
fn thousands_of_connects_at_once_are_served() {
    crate::net::os::raise_open_files_limit().expect("raising to the hard limit is always allowed");
    let running = Running::start();
    let start = Instant::now();
    let mut clients: Vec<_> = (0..2_000).map(|_| running.connect()).collect();
    for client in &mut clients {
        ping(client, b"here");
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(running.counters.accepted.load(Ordering::SeqCst), 2_000);
}

#[test]
fn a_connection_too_many_is_closed_and_the_others_stay() {
    let options = Options {
        spin: false,
        pinned: false,
        turn_bytes_max: 8 << 10,
        lingering_max: 100,
    };
    let running = Running::start_with(options, 2);
    let mut first = running.connect();
    let mut second = running.connect();
    ping(&mut first, b"one");
    ping(&mut second, b"two");
    let mut third = running.connect();
    assert_eq!(third.read(&mut [0; 8]).expect("closed cleanly"), 0);
    ping(&mut first, b"still here");
    drop(second);
    running.wait_for("room", |c| c.closed.load(Ordering::SeqCst) == 1);
    let mut fourth = running.connect();
    ping(&mut fourth, b"four");
}

#[test]
fn deadlines_and_wakers_begin_a_turn_and_nothing_else_does() {
    let running = Running::start();
    let mut client = running.connect();
    ping(&mut client, b"x");
    let turns = running.counters.turns.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(300));
    let idle = running.counters.turns.load(Ordering::SeqCst) - turns;
    assert!(idle <= 2, "{idle} turns while nothing happened");

    running.counters.deadline.store(700_000, Ordering::SeqCst);
    (running.wake)();
    running.wait_for("the deadline", |c| c.fired.load(Ordering::SeqCst) > 0);
    let fired = running.counters.fired.load(Ordering::SeqCst);
    assert!(
        (700_000..5_000_000).contains(&fired),
        "due at 700 ms, fired at {fired} us"
    );
}

#[test]
fn a_flood_leaves_the_others_their_turn() {
    let running = Running::start();
    let flood = running.connect();
    let mut reader = flood.try_clone().expect("descriptors are left");
    let counters = Arc::clone(&running.counters);
    let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let mut writer = flood.try_clone().expect("descriptors are left");
    let pump = std::thread::spawn(move || {
        let chunk = vec![b'f'; 256 << 10];
        while counters.received.load(Ordering::SeqCst) < 256 << 20
            && writer.write_all(&chunk).is_ok()
        {}
        writer
            .shutdown(Shutdown::Write)
            .expect("the socket is open");
    });
    let mut other = running.connect();
    for _ in 0..200 {
        let start = Instant::now();
        ping(&mut other, b"me too");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    flood.shutdown(Shutdown::Both).ok();
    pump.join().ok();
    drain.join().expect("the reader did not panic").ok();
}

#[test]
fn the_end_of_the_thread_lets_the_answers_leave() {
    for how in [1, 2] {
        let mut running = Running::start();
        let mut clients: Vec<_> = (0..10).map(|_| running.connect()).collect();
        for client in &mut clients {
            ping(client, b"x");
            // More than a socket buffer takes at once, so that some of it is still to be written.
            client.write_all(&[b'y'; 30_000]).expect("the peer reads");
        }
        running.wait_for("all input", |c| {
            c.received.load(Ordering::SeqCst) == 10 * 30_001
        });
        let start = Instant::now();
        let stop = running.stop(how);
        assert!(start.elapsed() < Duration::from_secs(2));
        assert_eq!(matches!(stop, Stop::Finished), how == 1, "{stop:?}");
        for client in &mut clients {
            let mut answer = Vec::new();
            client
                .read_to_end(&mut answer)
                .expect("everything and then FIN");
            assert_eq!(answer.len(), 30_000);
        }
        let refused = TcpStream::connect(running.address).expect_err("nobody listens any more");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn spinning_answers_too() {
    let options = Options {
        spin: true,
        pinned: false,
        turn_bytes_max: 256 << 10,
        lingering_max: 100,
    };
    let running = Running::start_with(options, 10);
    let mut client = running.connect();
    for _ in 0..100 {
        ping(&mut client, b"spin");
    }
}

#[test]
fn a_taken_port_is_refused_with_a_sentence() {
    let running = Running::start();
    let options = Options {
        spin: false,
        pinned: false,
        turn_bytes_max: 1,
        lingering_max: 100,
    };
    let error = Reactor::<Echo>::bind(&[running.address], options)
        .map(drop)
        .expect_err("the port is taken");
    let text = error.to_string();
    assert!(text.contains(&running.address.to_string()), "{text}");
    assert!(text.contains("another program is listening"), "{text}");
}
