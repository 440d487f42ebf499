//! Several shards driven by hand, without sockets and threads.

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

#[test]
fn answers_come_in_the_order_of_the_commands() {
    for seed in 1..40 {
        let mut broker = Broker::new(3, seed);
        let client = broker.connect(0);
        let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
        let (mut commands, mut wanted) = (String::new(), String::new());
        let mut counts = [0; 3];
        for nth in 0..300 {
            let shard = broker.chance(3) as usize;
            match broker.chance(4) {
                0 => {
                    commands += &format!("PING :{nth}\n");
                    wanted += &format!("PONG :{nth}\n");
                }
                1 => {
                    commands += &format!("NO{} x\n", names[shard]);
                    wanted += "ERR";
                    wanted += "\n";
                }
                _ => {
                    counts[shard] += 1;
                    commands += &format!("PUB {} :x\n", names[shard]);
                    wanted += &format!("OK {} mem\n", counts[shard]);
                }
            }
        }
        let said = broker.ask(client, &commands);
        let said: Vec<&str> = said
            .lines()
            .map(|line| if line.starts_with("ERR") { "ERR" } else { line })
            .collect();
        assert_eq!(said, wanted.lines().collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn leases_are_settled_at_their_shard_wherever_one_asks() {
    let mut broker = Broker::new(3, 5);
    let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
    let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
    let mut handles = Vec::new();
    for name in &names {
        broker.ask(clients[0], &format!("PUB {name} :x\nPUB {name} :y\n"));
        for _ in 0..2 {
            let said = broker.ask(clients[1], &format!("PULL {name}\n"));
            handles.push(handle_of(&said));
        }
    }
    let three = format!("{} {} {}", handles[0], handles[2], handles[4]);
    assert_eq!(broker.ask(clients[2], &format!("ACK {three}\n")), "OK 3\n");
    let again = format!("@t NACK {} x {three} delay=0\n", handles[1]);
    assert_eq!(
        broker.ask(clients[2], &again),
        format!("OK @t 1 stale=x,{}\n", three.replace(' ', ","))
    );
    let quiet = format!("TOUCH! {} {}\n", handles[3], handles[5]);
    assert_eq!(broker.ask(clients[0], &quiet), "");
    let quiet = format!("ACK! {} {}\n", handles[3], handles[0]);
    let stale = broker.ask(clients[0], &quiet);
    let wanted = format!("ERR STALE done=1 stale={} :", handles[0]);
    assert!(stale.starts_with(&wanted), "{stale}");
    // What its connection held goes back with it.
    broker.reset(clients[1]);
    let said = broker.ask(clients[0], &format!("PULL {} 9\n", names[2]));
    assert!(
        said.contains("try=2") && said.ends_with("END 1\n"),
        "{said}"
    );
}

#[test]
fn a_wait_elsewhere_keeps_later_commands_back() {
    let mut broker = Broker::new(2, 3);
    let (home, other) = (broker.connect(0), broker.connect(1));
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    let wait = format!("PUB {near} :n\nPULL {far} wait=1h\nPUB {near} :x\nPING\n");
    assert_eq!(broker.ask(home, &wait), "OK 1 mem\n");
    assert_eq!(broker.ask(other, &format!("PUB {far} :y\n")), "OK 1 mem\n");
    let said = broker.take(home);
    assert!(said.ends_with("$1\ny\nEND 1\nOK 2 mem\nPONG\n"), "{said}");
    // An empty line ends it; so do its time, and the end of the input.
    let said = broker.ask(home, &format!("PULL {far} wait=1h\n"));
    assert_eq!(said, "");
    assert_eq!(broker.ask(home, "\nPING\n"), "END 0\nPONG\n");
    assert_eq!(broker.ask(home, &format!("PULL {far} wait=1s\nPING\n")), "");
    broker.wait(1_100_000);
    assert_eq!(broker.take(home), "END 0\nPONG\n");
    // A local one too, behind an answer from elsewhere.
    let said = broker.ask(home, &format!("PUB {far} :z\nPULL {near} 3 wait=1s\n"));
    assert!(
        said.starts_with("OK 2 mem\nMSG") && said.ends_with("END 2\n"),
        "{said}"
    );
    let said = broker.ask(home, &format!("PUB {far} :z\nPULL {near} wait=1s\nPING\n"));
    assert_eq!(said, "OK 3 mem\n");
    broker.wait(1_100_000);
    assert_eq!(broker.take(home), "END 0\nPONG\n");
    broker.send(
        home,
        &format!("@1 PULL {near} wait=1h\n@2 PULL {far}x wait=1h\nPUB {far} :w\n"),
    );
    broker.half_close(home);
    let said = broker.take(home);
    assert!(broker.clients[home].closed);
    assert!(
        said.contains("OK 4 mem\n") && said.contains("END @1 0\n"),
        "{said}"
    );
}

#[test]
fn subscriptions_push_across_shards_within_their_credit() {
    let mut broker = Broker::new(3, 7);
    let (reader, writer) = (broker.connect(0), broker.connect(1));
    let far = name_on(2, 3, 0);
    let said = broker.ask(reader, &format!("@s SUB {far} credit=2\n"));
    assert_eq!(said, "OK @s\n");
    broker.ask(
        writer,
        &format!("PUB {far} :a\nPUB {far} :b\nPUB {far} :c\n"),
    );
    let said = broker.take(reader);
    assert_eq!(said.matches("MSG @s").count(), 2, "{said}");
    let next = broker.ask(reader, &format!("ACK {}\n", handle_of(&said)));
    assert!(next.contains("OK 1\n") && next.contains("\nc\n"), "{next}");
    // The tag is the connection's, wherever it is used.
    for command in [
        "PULL q0 wait=1h",
        "PULL q1 wait=1h",
        "PULL q2",
        "QLS",
        "PING",
    ] {
        let said = broker.ask(reader, &format!("@s {command}\n"));
        assert!(said.starts_with("ERR @s CONFLICT"), "{command}: {said}");
    }
    assert_eq!(broker.ask(reader, "CANCEL @s\n"), "OK 0\n");
    assert_eq!(
        broker.ask(reader, &format!("UNSUB {far}\n@s PING\n")),
        "OK\nPONG @s\n"
    );
    // One without a tag keeps untagged pulls away, wherever they are.
    assert_eq!(broker.ask(reader, &format!("SUB {far}\n")), "OK\n");
    for shard in 0..3 {
        let said = broker.ask(reader, &format!("PULL {}\n", name_on(shard, 3, 1)));
        assert!(said.starts_with("ERR CONFLICT"), "{said}");
    }
    assert_eq!(
        broker.ask(reader, &format!("UNSUB {far}\nPULL {far}x\n")),
        "OK\nEND 0\n"
    );
    let tagged = broker.ask(reader, &format!("@w PULL {far}y wait=1h\n"));
    assert_eq!(tagged, "");
    assert_eq!(broker.ask(reader, "CANCEL @w\n"), "END @w 0\nOK 1\n");
}

#[test]
fn casts_reach_queues_and_readers_of_every_shard() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
        for shard in 0..3 {
            let name = name_on(shard, 3, 0);
            assert_eq!(
                broker.ask(clients[0], &format!("BIND news.# {name}\n")),
                "OK\n"
            );
        }
        for client in &clients {
            assert_eq!(broker.ask(*client, "SUB news.* mode=live\n"), "OK\n");
        }
        let said = broker.ask(clients[1], "CAST news.x :hello\nPING\n");
        assert!(said.contains("MSG news.x - $5\nhello\n"), "{said}");
        let end = said.replace("MSG news.x - $5\nhello\n", "");
        assert_eq!(end, "OK 6 mem\nPONG\n", "seed {seed}");
        for client in [clients[0], clients[2]] {
            assert_eq!(broker.take(client), "MSG news.x - $5\nhello\n");
        }
        let said = broker.ask(
            clients[2],
            "CAST! news.y :a\nPUB! q0 :x\nPUB! q1 :x\nPUB! q2 :x\nSYNC\n",
        );
        assert!(said.ends_with("OK accepted=4 rejected=0 mem\n"), "{said}");
        let list = broker.ask(clients[2], "QLS\n");
        let names: Vec<&str> = list
            .lines()
            .skip(1)
            .filter(|line| !line.is_empty())
            .collect();
        assert!(names.is_sorted() && names.len() >= 3, "{list}");
        broker.take(clients[0]);
        let large = "x".repeat(40_000);
        let said = broker.ask(
            clients[0],
            &format!("CAST none.x ${}\n{large}\n", large.len()),
        );
        assert_eq!(said, "OK 0 mem\n");
    }
}

#[test]
fn requests_are_answered_across_shards() {
    let mut broker = Broker::new(3, 9);
    let (asker, worker) = (broker.connect(0), broker.connect(1));
    let far = name_on(2, 3, 0);
    let said = broker.ask(asker, &format!("PUB {far} :first\nREQ {far} :x\n"));
    assert!(said.starts_with("OK 1 mem\nERR NOCONSUMER"), "{said}");
    assert_eq!(
        broker
            .ask(worker, &format!("@w SUB {far} credit=9\n"))
            .lines()
            .next(),
        Some("OK @w")
    );
    assert_eq!(broker.ask(asker, &format!("REQ {far} :what\nPING\n")), "");
    let said = broker.take(worker);
    let token = said.split("reply=").nth(1).expect("a token");
    let token = token.split(' ').next().expect("a token").to_owned();
    assert_eq!(broker.ask(worker, &format!("REP {token} :that\n")), "OK\n");
    let said = broker.take(asker);
    assert_eq!(said, format!("MSG {far} - $4\nthat\nEND 1\nPONG\n"));
    let said = broker.ask(worker, &format!("REP {token} :that\n"));
    assert!(said.starts_with("ERR STALE"), "{said}");
}

#[test]
fn statistics_are_of_the_whole_broker() {
    let mut broker = Broker::new(3, 11);
    let (one, two) = (broker.connect(0), broker.connect(1));
    for shard in 0..3 {
        let name = name_on(shard, 3, 0);
        broker.ask(
            one,
            &format!("HELLO name=one\nPUB {name} :x\nPULL {name}\n"),
        );
    }
    let text = broker.ask(two, "STATS\n");
    for line in [
        "shards=3",
        "connections=2",
        "leased=3",
        "published_total=3",
        "queues=3",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} in {text}");
    }
    let text = broker.ask(two, "STATS conns\n");
    let row = text.lines().find(|line| line.contains("name=one"));
    let row = row.expect("it is listed");
    assert!(row.contains("leased=3"), "{text}");
    assert_eq!(text.matches("conn=").count(), 2, "{text}");
    let id = row["conn=".len()..].split(' ').next().expect("an id");
    let killed = broker.ask(two, &format!("KILL {id}\nKILL {id}\n"));
    assert!(killed.starts_with("OK\nERR STALE"), "{killed}");
    assert!(broker.clients[one].closed);
    let text = broker.ask(two, "STATS\n");
    assert!(
        text.contains("\nleased=0\n") && text.contains("\nconnections=1\n"),
        "{text}"
    );
}

#[test]
fn transactions_are_committed_where_their_queue_is() {
    let mut broker = Broker::new(2, 13);
    let client = broker.connect(0);
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    for name in [&near, &far] {
        let text = format!("BEGIN\nPUB {name} :a\nPUB {name} :b\nCOMMIT\nPULL {name} 5\n");
        let said = broker.ask(client, &text);
        assert!(
            said.starts_with("OK\nOK queued\nOK queued\nOK 2\nMSG"),
            "{said}"
        );
        assert!(said.ends_with("END 2\n"), "{said}");
    }
    let text = format!("BEGIN\nPUB {near} :a\nPUB {far} :b\nCOMMIT\nPULL {near}\nCOMMIT\n");
    let said = broker.ask(client, &text);
    assert!(
        said.starts_with("OK\nOK queued\nOK queued\nERR CONFLICT :the queues"),
        "{said}"
    );
    assert!(said.contains("END 0\nERR CONFLICT :there is no"), "{said}");
    for refused in [
        format!("MOVE {near} {far}\n"),
        format!("PULL {near},{far}\n"),
        format!("QSET {near} dead={far}\n"),
    ] {
        let said = broker.ask(client, &refused);
        assert!(said.starts_with("ERR CONFLICT"), "{refused} {said}");
    }
}

#[test]
fn a_slow_reader_stops_what_feeds_it_and_loses_nothing() {
    let mut broker = Broker::with(2, 17, |config| config.limits.send_bytes_max = 20_000);
    let client = broker.connect(0);
    let far = name_on(1, 2, 0);
    broker.socket_bytes_max = 700;
    let body = "x".repeat(900);
    let mut text = String::new();
    for nth in 0..300 {
        text += &format!("PUB {far} :{nth} {body}\nPULL {far} ack=auto\n");
    }
    let said = broker.ask(client, &text);
    assert_eq!(said.matches("END 1\n").count(), 300);
    let ids: Vec<&str> = said.lines().filter(|line| line.starts_with("OK")).collect();
    let wanted: Vec<String> = (1..=300).map(|id| format!("OK {id} mem")).collect();
    assert_eq!(ids, wanted);
    // A subscription whose reader reads nothing is given what fits the limits, and goes on later.
    broker.send(client, &format!("SUB {far} ack=auto\n"));
    broker.settle();
    broker.socket_bytes_max = 0;
    let writer = broker.connect(1);
    broker.socket_bytes_max = 1 << 20;
    broker.take(client);
    let mut text = String::new();
    for _ in 0..500 {
        text += &format!("PUB {far} :{body}\n");
    }
    broker.ask(writer, &text);
    let said = broker.take(client);
    assert_eq!(said.matches(&body).count(), 500);
}

#[test]
fn held_leases_outlive_a_connection_that_was_elsewhere() {
    let mut broker = Broker::new(2, 19);
    let client = broker.connect(0);
    let far = name_on(1, 2, 0);
    let said = broker.ask(client, &format!("PUB {far} :x\nPULL {far} hold=1\n"));
    broker.reset(client);
    let other = broker.connect(1);
    assert_eq!(broker.ask(other, &format!("PULL {far}\n")), "END 0\n");
    assert_eq!(
        broker.ask(other, &format!("ACK {}\n", handle_of(&said))),
        "OK 1\n"
    );
}

#[test]
fn quit_waits_for_every_answer() {
    let mut broker = Broker::new(3, 23);
    let client = broker.connect(0);
    let mut text = String::new();
    for shard in 0..3 {
        text += &format!("PUB {} :x\n", name_on(shard, 3, 0));
    }
    let said = broker.ask(client, &format!("{text}QUIT\nPING\n"));
    assert_eq!(said, "OK 1 mem\nOK 1 mem\nOK 1 mem\nOK bye\n");
    assert!(broker.clients[client].closed);
}

#[test]
fn a_shutdown_ends_all_shards_and_answers_first() {
    for seed in 1..30 {
        let mut broker = Broker::new(3, seed);
        let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
        for client in &clients {
            for shard in 0..3 {
                broker.send(*client, &format!("PUB {} :x\n", name_on(shard, 3, 0)));
            }
        }
        let shard = broker.chance(3) as usize;
        for _ in 0..seed {
            broker.turn(shard);
        }
        let now = broker.now();
        broker.shards[shard].handle_shutdown(now);
        broker.settle();
        let finished = vec![Some(Stop::Finished); 3];
        assert_eq!(broker.stops, finished, "seed {seed}");
    }
    let mut broker = Broker::new(3, 31);
    let (one, two) = (broker.connect(0), broker.connect(1));
    let far = name_on(2, 3, 0);
    let said = broker.ask(one, &format!("PUB {far} :x\nPULL {far}\nSUB {far}\n"));
    assert_eq!(broker.ask(two, "DRAIN 30s\n"), "OK\n");
    assert_eq!(broker.take(one), format!("END {far} gone=drain\n"));
    assert_eq!(broker.stops, [None, None, None]);
    assert_eq!(
        broker.ask(two, &format!("PUB {far} :x\n"))[..12],
        *"ERR DRAINING"
    );
    assert_eq!(
        broker.ask(one, &format!("ACK {}\n", handle_of(&said))),
        "OK 1\n"
    );
    broker.settle();
    assert_eq!(broker.stops, vec![Some(Stop::Finished); 3]);
}

#[test]
fn a_wait_here_does_not_let_later_answers_overtake() {
    let (near, other, far) = (name_on(2, 3, 0), name_on(2, 3, 1), name_on(0, 3, 0));
    for seed in 1..200 {
        let mut broker = Broker::new(3, seed);
        let client = broker.connect(2);
        broker.send(
            client,
            &format!("PUB {far} :x\nPUB {near} :x\nPUB {far} :y\n"),
        );
        broker.turn(2);
        broker.send(client, &format!("PING\nPULL {other} wait=3s\n"));
        let said = broker.take(client);
        assert_eq!(said, "OK 1 mem\nOK 1 mem\nOK 2 mem\nPONG\n", "seed {seed}");
    }
}
