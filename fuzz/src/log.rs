//! The log's reader and recovery, from a directory that is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;

use ringmq::config::Config;
use ringmq::log::disk::Disk;
use ringmq::shard::{ConnKey, Now, Shard};

use crate::disk::{Crash, SimDisk};
use crate::storage::{Delays, JobsHandle, SimStorage};

const DELAYS: Delays = Delays {
    sync_us: (1, 1),
    other_us: (1, 1),
};
const QUEUES: [&str; 3] = ["a", "b", "c.d"];

type Files = BTreeMap<String, Vec<u8>>;

/// A broker on a disk, and its only connection.
struct Run {
    shard: Shard<SimStorage>,
    jobs: JobsHandle,
    conn: ConnKey,
    us: u64,
}

fn config() -> Config {
    let mut config = Config::default();
    config.log.segment_bytes = 64 << 10;
    config.log.chunk_bytes = 4 << 10;
    config.log.checkpoint_bytes = 6 << 10;
    config
}

impl Run {
    /// `None`: the broker refuses the directory.
    fn open(disk: &SimDisk) -> Option<Run> {
        let now = Now {
            us: 1_000_000,
            wall_us: 1_000_000,
        };
        let (storage, jobs) = SimStorage::new(disk, DELAYS, now.us, 1);
        let (mut shard, _) = Shard::open(&config(), Some(storage), now, 1).ok()?;
        let conn = shard.handle_accept("127.0.0.1:1", now)?;
        Some(Run {
            shard,
            jobs,
            conn,
            us: now.us,
        })
    }

    /// Says something; what was answered in a few turns, and whether the broker still runs.
    fn say(&mut self, text: &[u8]) -> (Vec<u8>, bool) {
        let mut rest = text;
        let mut heard = Vec::new();
        for _ in 0..40 {
            self.us += 10;
            let now = Now {
                us: self.us,
                wall_us: self.us,
            };
            self.jobs.advance(self.us);
            while !rest.is_empty() {
                let Some(space) = self.shard.receive_space(self.conn) else {
                    break;
                };
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                self.shard.handle_received(self.conn, count, now);
            }
            self.shard.handle_turn_end(now);
            loop {
                let mut slices = [IoSlice::new(&[]); 64];
                let filled = self.shard.output(self.conn, &mut slices);
                let octets: Vec<u8> = slices[..filled]
                    .iter()
                    .flat_map(|slice| slice.iter().copied())
                    .collect();
                if octets.is_empty() {
                    break;
                }
                heard.extend_from_slice(&octets);
                self.shard.handle_sent(self.conn, octets.len(), now);
            }
            while self.shard.poll_output().is_some() || self.shard.poll_resume().is_some() {}
            if self.shard.poll_stopped().is_some() || self.shard.poll_close().is_some() {
                return (heard, false);
            }
        }
        (heard, true)
    }
}

/// What a broker has written: messages of all sizes, acks, a checkpoint; and the bodies.
fn written() -> &'static (Files, BTreeSet<Vec<u8>>) {
    static WRITTEN: std::sync::OnceLock<(Files, BTreeSet<Vec<u8>>)> = std::sync::OnceLock::new();
    WRITTEN.get_or_init(|| {
        let disk = SimDisk::new(1);
        let mut run = Run::open(&disk).expect("the directory is new");
        let mut bodies = BTreeSet::new();
        for number in 0..60usize {
            let size = [3, 40, 200, 700][number % 4];
            let body: Vec<u8> = (0..size + number)
                .map(|at| (at * 7 + number) as u8)
                .collect();
            let queue = QUEUES[number % 3];
            let mut said = format!("PUB {queue} ${}\n", body.len()).into_bytes();
            said.extend_from_slice(&body);
            said.push(b'\n');
            bodies.insert(body);
            if number % 5 == 4 {
                said.extend_from_slice(format!("PULL {queue} ack=auto\n").as_bytes());
            }
            assert!(run.say(&said).1);
        }
        drop(run);
        disk.crash(Crash::Kill);
        (disk.contents(), bodies)
    })
}

/// What the octets of an input do to the files: each time five of them, a file, a place, and what is done there.
fn damage(files: &mut Files, data: &[u8]) {
    for change in data.chunks_exact(5) {
        let names: Vec<String> = files.keys().cloned().collect();
        let Some(name) = names.get(usize::from(change[0]) % names.len().max(1)) else {
            return;
        };
        let octets = files.get_mut(name).expect("it is one of them");
        if octets.is_empty() {
            continue;
        }
        let used = octets.iter().rposition(|octet| *octet != 0).unwrap_or(0) + 1;
        let at = usize::from(u16::from_be_bytes([change[1], change[2]])) % used;
        match change[3] % 6 {
            0 => octets[at] ^= change[4].max(1),
            1 => octets[at] = change[4],
            2 => octets.truncate(at),
            3 => {
                let end = (at + 64 * usize::from(change[4])).min(octets.len());
                octets[at..end].fill(0);
            }
            4 => {
                // A piece of the file stands where another was.
                let from = (at + 97 * usize::from(change[4])) % used;
                let count = (used - from).min(used - at).min(512);
                octets.copy_within(from..from + count, at);
            }
            _ => {
                files.remove(name);
            }
        }
    }
}

/// A disk with these files.
fn disk_of(files: &Files) -> SimDisk {
    let disk = SimDisk::new(1);
    for (path, octets) in files {
        let mut directory = "";
        if let Some((inside, _)) = path.rsplit_once('/') {
            directory = inside;
            // It may be there, of another file.
            let _ = disk.create_dir(directory);
        }
        let file = disk.create(path).expect("no two files have one name");
        let mut at = 0;
        while at < octets.len() {
            at += disk
                .write_at(&file, at as u64, &octets[at..])
                .expect("the disk has room");
        }
        disk.sync(&file).expect("the disk is well");
        disk.sync_dir(directory).expect("the disk is well");
    }
    disk
}

/// See [`crate`].
pub fn run(data: &[u8]) {
    let (files, bodies) = written();
    let mut files = files.clone();
    damage(&mut files, data);
    let disk = disk_of(&files);
    let Some(mut first) = Run::open(&disk) else {
        return;
    };
    let mut seen = Vec::new();
    for queue in QUEUES {
        let (heard, _) = first.say(format!("PEEK {queue} 100\n").as_bytes());
        for body in messages(&heard) {
            assert!(bodies.contains(&body), "a payload that nobody published");
            seen.push(body);
        }
    }
    let unique: BTreeSet<&Vec<u8>> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "a message is there twice");
    drop(first);
    // Recovery is idempotent: nothing that it has taken over goes when it is done again.
    disk.crash(Crash::Kill);
    let mut second = Run::open(&disk).expect("what was recovered once is recovered again");
    for queue in QUEUES {
        let (heard, is_up) = second.say(format!("PEEK {queue} 100\n").as_bytes());
        let again: BTreeSet<Vec<u8>> = messages(&heard).into_iter().collect();
        if is_up {
            assert!(again.iter().all(|body| unique.contains(body)));
        }
    }
}

/// The bodies of the `MSG` lines.
fn messages(heard: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = heard;
    while let Some(end) = rest.iter().position(|octet| *octet == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        if let Some(size) = line
            .strip_prefix("MSG ")
            .and_then(|it| it.rsplit('$').next())
        {
            let size: usize = size.parse().expect("the length of a body");
            let Some(body) = rest.get(..size) else {
                break;
            };
            found.push(body.to_vec());
            rest = &rest[size + 1..];
        }
    }
    found
}
