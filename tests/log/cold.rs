//! A whole broker whose messages are on the disk alone: what waits for a read while the log is
//! tidied.

use std::io::IoSlice;
use std::sync::{Arc, Mutex};

use crate::bench::{MemDisk, MemStorage};
use ringmq::config::Config;
use ringmq::log::job::Lane;
use ringmq::shard::{ConnKey, Now, Shard};

/// A broker with one connection.
struct Broker {
    shard: Shard<MemStorage>,
    conn: ConnKey,
    held: Arc<Mutex<Vec<Lane>>>,
    now_us: u64,
}

impl Broker {
    /// A broker with small segments and chunks.
    fn open(disk: &MemDisk, now_us: u64) -> Broker {
        let mut config = Config::default();
        config.limits.body_bytes_max = 2000;
        config.log = crate::bench::config();
        let storage = MemStorage::new(disk);
        let held = storage.held.clone();
        let now = Now {
            us: now_us,
            wall_us: now_us,
        };
        let (mut shard, _) =
            Shard::open(&config, Some(storage), now, 7).expect("the directory is whole");
        let conn = shard.handle_accept("127.0.0.1:1", now);
        Broker {
            shard,
            conn: conn.expect("there is one connection"),
            held,
            now_us,
        }
    }

    /// Jobs of these lanes are not done from now on.
    fn hold(&self, lanes: &[Lane]) {
        *self.held.lock().expect("unpoisoned") = lanes.to_vec();
    }

    /// What comes after some commands.
    fn ask(&mut self, text: &str) -> String {
        let mut told = Vec::new();
        let mut rest = text.as_bytes();
        for _ in 0..20 {
            self.now_us += 1000;
            let now = Now {
                us: self.now_us,
                wall_us: self.now_us,
            };
            if !rest.is_empty() {
                let space = self.shard.receive_space(self.conn).expect("it is read");
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                self.shard.handle_received(self.conn, count, now);
            }
            self.shard.handle_turn_end(now);
            while let Some(conn) = self.shard.poll_output() {
                let mut slices = [IoSlice::new(&[]); 64];
                let filled = self.shard.output(conn, &mut slices);
                let before = told.len();
                for slice in &slices[..filled] {
                    told.extend_from_slice(slice);
                }
                self.shard.handle_sent(conn, told.len() - before, now);
            }
            while self.shard.poll_resume().is_some() {}
        }
        String::from_utf8(told).expect("it is text")
    }

    fn compactions(&mut self) -> u64 {
        let stats = self.ask("STATS\n");
        let mut lines = stats.lines();
        let count = lines.find_map(|line| line.strip_prefix("log_compactions_total="));
        count.expect("it is told").parse().expect("a number")
    }

    /// Messages that are settled at once fill a segment.
    fn pass_by(&mut self) {
        let body = "x".repeat(900);
        for _ in 0..18 {
            let told = self.ask(&format!("PUB f :{body}\nPOP f ack=auto\n"));
            assert!(told.contains("END 1"), "{told}");
        }
    }
}

/// Messages of `q` die at once by their time while reads last long, and the segment in which they are is
/// compacted meanwhile. `reader` has them.
fn dies_during_a_compaction(reader: &str) {
    let disk = MemDisk::default();
    let mut broker = Broker::open(&disk, 1_000_000_000);
    broker.ask("QSET q deadon=ttl\n");
    broker.ask(&format!("PULL {reader}\n"));
    for body in ["one", "two", "three"] {
        let told = broker.ask(&format!("PUB q ttl=60s :{body}\n"));
        assert!(told.contains("disk"), "{told}");
    }
    for _ in 0..2 {
        broker.pass_by();
    }
    assert_eq!(broker.compactions(), 0);
    let now_us = broker.now_us;
    drop(broker);

    let mut broker = Broker::open(&disk, now_us + 61_000_000);
    broker.hold(&[Lane::Read]);
    assert_eq!(broker.ask("PULL q.dead 10\n"), "END 0\n");
    for _ in 0..8 {
        broker.ask("PUB p :pin\n");
        broker.pass_by();
    }
    assert!(broker.compactions() > 0);
    assert_eq!(broker.ask("PULL q.dead 10\n"), "END 0\n");
    broker.hold(&[]);
    assert_eq!(broker.ask("PING\n"), "PONG\n");
    let told = broker.ask(&format!("PULL q.dead 10\nPULL {reader} 10\n"));
    let bodies = told.lines().filter(|line| !line.contains(' '));
    assert_eq!(
        bodies.collect::<Vec<_>>(),
        ["one", "two", "three"],
        "{told}"
    );
    assert!(told.ends_with("END 3\nEND 0\n"), "{told}");
    // Nothing is given up that is still needed, here and in what comes.
    for _ in 0..4 {
        broker.pass_by();
    }
    let now_us = broker.now_us;
    drop(broker);
    let mut broker = Broker::open(&disk, now_us);
    let told = broker.ask(&format!("PULL q.dead 10\nPULL {reader} 10\n"));
    assert!(told.ends_with("END 3\nEND 0\n"), "{told}");
}

#[test]
fn a_message_that_waits_to_be_buried_is_found_where_a_compaction_moved_it() {
    dies_during_a_compaction("q");
}

#[test]
fn so_is_one_that_a_group_buries() {
    dies_during_a_compaction("q/g");
}
