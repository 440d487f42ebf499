//! Several shards driven by hand, without sockets and threads.

mod commands;
mod commit;
mod ending;
mod http;
mod moves;
mod outbox;
mod pull;
mod resp;
mod resp_streams;

use std::collections::VecDeque;
use std::io::IoSlice;

use super::Bag;
use crate::config::Config;
use crate::log::NoStorage;
use crate::shard::placement::shard_of;
use crate::shard::{ConnKey, Now, Shard, Stop};

/// A connection's end outside the broker.
struct Client {
    shard: usize,
    key: ConnKey,
    /// Sent, and not yet taken by the shard.
    inbound: VecDeque<u8>,
    received: Vec<u8>,
    closed: bool,
    /// So much of what was sent to it its TCP has not acknowledged, bytes.
    unacknowledged: usize,
}

/// A broker of several shards, with mail that takes as long as chance says.
struct Broker {
    shards: Vec<Shard<NoStorage>>,
    /// By sender and receiver.
    mail: Vec<Vec<VecDeque<Bag>>>,
    clients: Vec<Client>,
    now_us: u64,
    random: u64,
    /// Most bytes that a client's socket takes in one turn.
    socket_bytes_max: usize,
    stops: Vec<Option<Stop>>,
}

impl Broker {
    fn new(count: u32, random: u64) -> Broker {
        Broker::with(count, random, |_| {})
    }

    /// Nothing is on its way from one shard to another.
    fn outboxes_are_idle(&self) -> bool {
        let mut shards = self.shards.iter();
        shards.all(|shard| shard.engine.outbox.is_idle())
    }

    fn with(count: u32, random: u64, change: impl Fn(&mut Config)) -> Broker {
        let now_us = 1_000_000_000;
        let shards = (0..count).map(|shard| {
            let mut config = Config {
                shards: count,
                shard,
                ..Config::default()
            };
            change(&mut config);
            let now = Now {
                us: now_us,
                wall_us: now_us,
            };
            let opened = Shard::open(&config, None, now, random);
            opened.expect("nothing can fail in memory").0
        });
        Broker {
            shards: shards.collect(),
            mail: (0..count)
                .map(|_| (0..count).map(|_| VecDeque::new()).collect())
                .collect(),
            clients: Vec::new(),
            now_us,
            random: random | 1,
            socket_bytes_max: usize::MAX,
            stops: vec![None; count as usize],
        }
    }

    fn chance(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn now(&self) -> Now {
        Now {
            us: self.now_us,
            wall_us: self.now_us,
        }
    }

    fn connect(&mut self, shard: usize) -> usize {
        let now = self.now();
        let key = self.shards[shard].handle_accept("test:1", now);
        self.clients.push(Client {
            shard,
            key: key.expect("there is room"),
            inbound: VecDeque::new(),
            received: Vec::new(),
            closed: false,
            unacknowledged: 0,
        });
        self.clients.len() - 1
    }

    fn send(&mut self, client: usize, text: &str) {
        self.clients[client].inbound.extend(text.bytes());
    }

    fn half_close(&mut self, client: usize) {
        self.settle();
        let now = self.now();
        let Client { shard, key, .. } = self.clients[client];
        self.shards[shard].handle_half_close(key, now);
    }

    fn reset(&mut self, client: usize) {
        let now = self.now();
        let Client { shard, key, .. } = self.clients[client];
        self.shards[shard].handle_reset(key, now);
        self.clients[client].closed = true;
    }

    fn feed(&mut self, client: usize) {
        let now = self.now();
        let piece = self.chance(5000) as usize + 1;
        let Client {
            shard,
            key,
            inbound,
            closed,
            ..
        } = &mut self.clients[client];
        let shard = &mut self.shards[*shard];
        if *closed || inbound.is_empty() {
            return;
        }
        if let Some(space) = shard.receive_space(*key) {
            let count = piece.min(space.len()).min(inbound.len());
            for (octet, from) in space.iter_mut().zip(inbound.drain(..count)) {
                *octet = from;
            }
            shard.handle_received(*key, count, now);
        }
    }

    /// One turn of one shard; true if something moved.
    fn turn(&mut self, shard: usize) -> bool {
        let now = self.now();
        let mut moved = false;
        for client in 0..self.clients.len() {
            if self.clients[client].shard == shard {
                let before = self.clients[client].inbound.len();
                self.feed(client);
                moved |= self.clients[client].inbound.len() < before;
            }
        }
        for from in 0..self.shards.len() {
            let some = self.chance(3);
            for _ in 0..some {
                if let Some(bag) = self.mail[from][shard].pop_front() {
                    self.shards[shard].handle_post(from as u32, bag, now);
                    moved = true;
                }
            }
        }
        self.shards[shard].handle_turn_end(now);
        for client in 0..self.clients.len() {
            if self.clients[client].shard == shard {
                moved |= self.write(client);
            }
        }
        let broker = &mut self.shards[shard];
        while broker.poll_output().is_some() {}
        while broker.poll_resume().is_some() {}
        while let Some(key) = broker.poll_unacknowledged() {
            let mut clients = self.clients.iter();
            let client = clients.find(|it| it.shard == shard && it.key == key);
            let unacknowledged = client.expect("only sockets are asked").unacknowledged;
            broker.handle_unacknowledged(key, unacknowledged, now);
        }
        while let Some(key) = broker.poll_close() {
            let mut clients = self.clients.iter_mut();
            if let Some(client) = clients.find(|it| it.shard == shard && it.key == key) {
                client.closed = true;
            }
        }
        while let Some((to, bag)) = broker.poll_post() {
            self.mail[shard][to as usize].push_back(bag);
            moved = true;
        }
        if let Some(stop) = broker.poll_stopped() {
            self.stops[shard] = Some(stop);
        }
        moved |= broker.poll_timeout().is_some_and(|at| at <= self.now_us);
        moved
    }

    fn write(&mut self, client: usize) -> bool {
        let now = self.now();
        let most = self.socket_bytes_max;
        let Client {
            shard,
            key,
            received,
            closed,
            ..
        } = &mut self.clients[client];
        let shard = &mut self.shards[*shard];
        if *closed {
            return false;
        }
        let mut slices = [IoSlice::new(&[]); 8];
        let filled = shard.output(*key, &mut slices);
        let mut bytes: Vec<u8> = slices[..filled]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        bytes.truncate(most);
        if bytes.is_empty() {
            return false;
        }
        received.extend_from_slice(&bytes);
        shard.handle_sent(*key, bytes.len(), now);
        true
    }

    /// Turns until nothing moves.
    fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..200_000 {
            let shard = self.chance(self.shards.len() as u64) as usize;
            quiet = match self.turn(shard) {
                true => 0,
                false => quiet + 1,
            };
            let has_mail = self.mail.iter().flatten().any(|bags| !bags.is_empty());
            if quiet > 20 * self.shards.len() && !has_mail {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// What a client was sent since the last call, once all is at rest.
    fn take(&mut self, client: usize) -> String {
        self.settle();
        let bytes = std::mem::take(&mut self.clients[client].received);
        String::from_utf8(bytes).expect("these tests speak ASCII")
    }

    /// Sends, and returns what comes.
    fn ask(&mut self, client: usize, text: &str) -> String {
        self.send(client, text);
        self.take(client)
    }

    /// Messages that are with consumers, or kept for them.
    fn leased(&self) -> usize {
        let leases = self.shards.iter().map(|shard| &shard.engine.leases);
        leases.map(|leases| leases.iter().count()).sum()
    }

    /// Messages on their way to other shards.
    fn leaving(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.engine.outbox.outs().count()).sum()
    }

    fn wait(&mut self, us: u64) {
        self.settle();
        self.now_us += us;
        self.settle();
    }
}

/// A name on that shard of so many, the nth.
fn name_on(shard: u32, shards: u32, nth: usize) -> String {
    let names = (0..).map(|number| format!("q{number}"));
    let mut there = names.filter(|name| shard_of(name.as_bytes(), shards) == shard);
    there.nth(nth).expect("there is no end of names")
}

fn handle_of(text: &str) -> String {
    let line = text.lines().find(|line| line.starts_with("MSG"));
    let mut words = line.expect("a message").split(' ');
    let handle = words.find(|word| word.split('.').count() == 3);
    handle.expect("it has a handle").to_owned()
}
