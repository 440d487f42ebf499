//! A data directory given another number of shards: nothing that a client can see is different, at whatever
//! operation of the disk it was interrupted.

use std::fmt::Write;

use ringmq::log::conversion;
use ringmq::log::{OpenError, layout};
use ringmq::shard::reshard::{Outcome, Plan, ReshardError, Watch, plan, reshard};

use crate::bench::{MemDisk, Random};
use crate::brokers::World;

/// When histories begin, microseconds.
const BEGIN_US: u64 = 1_000_000_000;
/// When what they have led to is looked at.
const LOOK_US: u64 = BEGIN_US + 600_000_000;

/// Lets everything happen.
struct Quiet;

impl Watch for Quiet {
    fn planned(&mut self, _: &Plan) -> Result<(), String> {
        Ok(())
    }

    fn copied(&mut self, _: u64) {}
}

fn convert(disk: &MemDisk, to: u32) -> Result<Outcome, ReshardError> {
    reshard(disk, to, 99, &mut Quiet).map(|(_, outcome)| outcome)
}

#[track_caller]
fn converted(disk: &MemDisk, to: u32) {
    match convert(disk, to) {
        Ok(Outcome::Done(_, left)) => assert!(left.is_empty(), "{left:?}"),
        other => panic!("to {to} shards: {other:?}"),
    }
    assert_eq!(layout::shards(disk).expect("it is whole"), Some(to));
}

/// Queues that histories use; each has a dead-letter queue.
const QUEUES: usize = 7;

/// Everything about the broker's contents that commands can tell, without what counts since the start.
fn told(disk: &MemDisk, shards: u32) -> String {
    // What is looked at changes.
    let disk = disk.copy();
    let mut world = World::open(&disk, shards, LOOK_US).expect("it can be served");
    let mut told = world.ask("QLS");
    let names = (0..QUEUES).flat_map(|n| [format!("q{n}"), format!("q{n}.dead")]);
    for name in names {
        told += &world.ask(&format!("QGET {name}"));
        told += &world.ask(&format!("PEEK {name} 1000"));
        for state in ["ready", "delayed", "dead"] {
            told += &world.ask(&format!("PEEK {name} 1000 state={state}"));
        }
        told += &world.ask(&format!("PEEK {name}/g 1000"));
        // Duplicates, and the next ids.
        for once in 0..4 {
            told += &world.ask(&format!("PUB {name} once=o{once} :again"));
        }
        told += &world.ask(&format!("PUB {name} key=k1 :next"));
        // In the order in which they leave, with their tries.
        for source in [name.clone(), format!("{name}/g")] {
            told += &pulled(&mut world, &source, "1h");
        }
    }
    for topic in ["a.b", "a.c.d", "x"] {
        told += &world.ask(&format!("CAST {topic} :{topic}"));
    }
    // What is due later: delays, times to live, schedules.
    for _ in 0..3 {
        world.wait(400_000_000);
        told += &world.ask("QLS");
        for n in 0..QUEUES {
            told += &pulled(&mut world, &format!("q{n}"), "1m");
            told += &world.ask(&format!("SEEK q{n}/g to=first"));
            told += &pulled(&mut world, &format!("q{n}/g"), "1m");
        }
    }
    without_counts(&told)
}

/// All that a source has ready: one `PULL` may end where something must be read from the disk.
fn pulled(world: &mut World<'_>, source: &str, lease: &str) -> String {
    let mut told = String::new();
    loop {
        let answer = world.ask(&format!("PULL {source} 1000 lease={lease}"));
        let is_last = !answer.contains("MSG ");
        told.extend(
            answer
                .split_inclusive('\n')
                .filter(|line| is_last || !line.starts_with("END ")),
        );
        if is_last {
            return told;
        }
    }
}

/// Handles differ, and so does what is counted since the start; sums of bytes are estimates where the log does
/// not say how large a message was, and how old the oldest is is only told while it is in memory.
fn without_counts(told: &str) -> String {
    let mut kept = String::new();
    for line in told.lines() {
        let mut words: Vec<&str> = line.split(' ').collect();
        if words[0] == "MSG" && words[2] != "-" {
            words[2] = "<handle>";
        }
        let is_estimate = words[0]
            .split_once('=')
            .is_some_and(|(name, _)| name.ends_with("bytes") || name.ends_with("oldest_ms"));
        // Whether no message is locked is told only of queues that have had a key since the start.
        words.retain(|word| *word != "locked=0");
        if words.is_empty() || words[0] == "DATA" || is_estimate {
            continue;
        }
        let _ = writeln!(kept, "{}", words.join(" "));
    }
    kept
}

/// One random command; handles of leased messages are taken from `leased`.
fn command(random: &mut Random, leased: &mut Vec<String>) -> String {
    let queue = format!("q{}", random.below(QUEUES as u64));
    let body: String = (0..random.below(60))
        .map(|_| char::from(b'a' + random.below(26) as u8))
        .collect();
    let mut options = String::new();
    let option = |random: &mut Random, of: u64, text: String| match random.below(of) {
        0 => text,
        _ => String::new(),
    };
    let number = random.below(4);
    for (of, text) in [
        (4, format!(" key=k{number}")),
        (4, format!(" pri={number}")),
        (6, format!(" delay={}s", 300 + 200 * number)),
        (6, format!(" ttl={}s", 500 + 200 * number)),
        (5, format!(" once=o{number}")),
        (6, format!(" h.type=t{number} reply=r{number}")),
    ] {
        options += &option(random, of, text);
    }
    let taken = |random: &mut Random, leased: &mut Vec<String>| match leased.len() {
        0 => "1.1.1".to_owned(),
        count => leased.swap_remove(random.below(count as u64) as usize),
    };
    match random.below(28) {
        0..=12 => format!("PUB {queue}{options} :{body}"),
        13 => format!(
            "CAST a.{}{options} :{body}",
            ["b", "c.d"][number as usize % 2]
        ),
        14 => format!("BIND {} {queue}", ["a.#", "*.b", "x"][number as usize % 3]),
        15..=17 => format!("PULL {queue} 3 lease=1h"),
        18..=19 => format!("PULL {queue}/g 3 from=first lease=1h"),
        20..=21 => format!("ACK {}", taken(random, leased)),
        22 => format!("NACK {} delay={number}s", taken(random, leased)),
        23 => format!("NACK {} dead=1 why=broken", taken(random, leased)),
        24 => {
            let settings = [
                "durable=os lease=7s",
                "retain=1h",
                "dedup=20m maxdeliver=2 backoff=0",
                "ttl=1000s pri=1 fair=key",
            ];
            format!("QSET {queue} {}", settings[number as usize])
        }
        25 => format!(
            "PUB {queue} every={}s once=s{number}{} :{body}",
            200 + number,
            ""
        ),
        26 => match number {
            0 => format!("QDEL {queue}"),
            1 => format!("PURGE {queue} state=delayed"),
            _ => format!("DEL {queue} {} {}", random.below(20), random.below(20)),
        },
        _ => format!("MOVE {queue}.dead {queue} 1"),
    }
}

/// What a broker of so many shards leaves when it is killed after so many random commands.
fn history(random: &mut Random, shards: u32, commands: usize) -> MemDisk {
    let disk = MemDisk::default();
    let mut now_us = BEGIN_US;
    let mut done = 0;
    while done < commands {
        let mut world = World::open(&disk, shards, now_us).expect("it can be served");
        world.ask("QSET q0 durable=none\nBIND a.# q0");
        let mut leased = Vec::new();
        for _ in 0..commands.div_ceil(2) {
            let answer = world.ask(&command(random, &mut leased));
            let handles = answer.lines().filter_map(|line| {
                let mut words = line.strip_prefix("MSG ")?.split(' ').skip(1);
                words.next().map(str::to_owned)
            });
            leased.extend(handles);
            done += 1;
        }
        now_us += 100_000_000;
    }
    disk
}

#[test]
fn nothing_that_can_be_told_is_different_with_any_number_of_shards() {
    for seed in 0..24 {
        let mut random = Random(seed);
        let from = 1 + random.below(3) as u32;
        let disk = history(&mut random, from, 220);
        let before = told(&disk, from);
        assert!(before.contains("MSG "), "seed {seed} has stored nothing");
        let mut shards = from;
        for _ in 0..3 {
            let to = 1 + (shards + random.below(3) as u32) % 4;
            let untouched = disk.contents();
            let planned = plan(&disk, to).expect("it can be done");
            assert_eq!(planned.expect("it is another number").conversion.to, to);
            assert_eq!(disk.contents(), untouched, "a plan has changed something");
            converted(&disk, to);
            shards = to;
            let after = told(&disk, shards);
            assert!(
                after == before,
                "seed {seed}, {from} to {to} shards: first difference\n{}",
                difference(&before, &after)
            );
        }
        if shards != from {
            converted(&disk, from);
            assert_eq!(told(&disk, from), before, "seed {seed}, back to {from}");
        }
    }
}

#[track_caller]
fn assert_same(after: &str, before: &str, when: &str) {
    assert!(after == before, "{when}: {}", difference(before, after));
}

/// The first lines that differ.
fn difference(before: &str, after: &str) -> String {
    let pairs = before.lines().zip(after.lines());
    let at = pairs.take_while(|(one, two)| one == two).count();
    let show = |text: &str| {
        text.lines()
            .skip(at.saturating_sub(9))
            .take(11)
            .collect::<Vec<_>>()
            .join("\n")
    };
    format!("before:\n{}\nafter:\n{}", show(before), show(after))
}

#[test]
fn a_crash_at_any_operation_leaves_one_whole_directory() {
    for (from, to) in [(1, 2), (2, 1), (2, 3)] {
        let mut random = Random(u64::from(from * 10 + to));
        let disk = history(&mut random, from, 60);
        let before = told(&disk, from);
        let probe = disk.copy();
        convert(&probe, to).expect("nothing is in the way");
        let operations = probe.state().operations;
        let (mut old, mut new) = (0, 0);
        for die_at in 0..=operations {
            // Every operation of the second half of the way, in which the switch is, and most of the rest.
            if die_at < operations / 2 && !die_at.is_multiple_of(3) {
                continue;
            }
            let disk = disk.copy();
            disk.state().die_at = Some(die_at);
            let ended = convert(&disk, to);
            assert_eq!(
                ended.is_ok(),
                die_at == operations,
                "at {die_at}: {ended:?}"
            );
            let lives = match die_at % 3 {
                0 => disk.copy(),
                1 => disk.power_loss(),
                _ => disk.power_loss_mixed(die_at),
            };
            let when = format!("{from} to {to} shards, dead at operation {die_at}");
            // A start clears up and serves.
            let started = lives.copy();
            let cleared = conversion::clear(&started);
            let cleared = cleared.unwrap_or_else(|error| panic!("{when}: {error}"));
            let shards = layout::shards(&started)
                .expect("it is whole")
                .expect("it is not new");
            match shards == from {
                true => old += 1,
                false => new += 1,
            }
            assert_same(&told(&started, shards), &before, &when);
            if let Some(cleared) = cleared {
                assert_eq!(cleared.is_done, shards == to, "{when}");
            }
            assert_no_leftovers(&started, shards, &when);
            // Another attempt ends it.
            match convert(&lives, to) {
                Ok(Outcome::Already) if shards == to => {}
                Ok(Outcome::Done(..)) if shards == from => {}
                other => panic!("{when}: {other:?}"),
            }
            assert_same(&told(&lives, to), &before, &when);
            assert_no_leftovers(&lives, to, &when);
        }
        assert!(
            old > 20 && new > 2,
            "{old} crashes before and {new} behind the switch"
        );
    }
}

/// There is nothing but the shards' own files.
fn assert_no_leftovers(disk: &MemDisk, shards: u32, when: &str) {
    for path in disk.paths() {
        let is_own = match shards {
            1 => path == "MANIFEST" || path.starts_with("shard-0/"),
            _ => path == "SHARDS" || path.contains(&format!("-of-{shards}/")),
        };
        assert!(is_own || path == "LOCK", "{when}: {path} is left");
    }
}

#[test]
fn a_disk_that_fails_or_is_full_changes_nothing() {
    let disk = history(&mut Random(5), 1, 60);
    let before = told(&disk, 1);
    let used: u64 = disk
        .contents()
        .values()
        .map(|bytes| bytes.len() as u64)
        .sum();
    let mut refused = 0;
    for more in (0..40).map(|n| n * 2_000) {
        let disk = disk.copy();
        disk.state().space = Some(used + more);
        let ended = convert(&disk, 2);
        disk.state().space = None;
        if let Err(error) = ended {
            refused += 1;
            let text = error.to_string();
            assert!(text.contains("space") || text.contains("full"), "{text}");
            assert_no_leftovers(&disk, 1, &format!("with {more} bytes more"));
            assert_same(&told(&disk, 1), &before, "refused");
            converted(&disk, 2);
        }
        assert_same(&told(&disk, 2), &before, "converted");
    }
    assert!((3..37).contains(&refused), "{refused} of 40 were refused");
    let disk = disk.copy();
    disk.state().fail_syncs = true;
    convert(&disk, 2).expect_err("nothing can be synced");
    disk.state().fail_syncs = false;
    converted(&disk, 2);
    assert_eq!(told(&disk, 2), before);
}

#[test]
fn damage_is_refused_with_file_and_offset() {
    let disk = MemDisk::default();
    let mut world = World::open(&disk, 2, BEGIN_US).expect("it is new");
    for n in 0..20 {
        world.ask(&format!("PUB q{n} :a body to be found"));
    }
    drop(world);
    let path = "shard-1-of-2/shard-0/0000000000000001.seg";
    let mut bytes = disk.get(path);
    let at = bytes.windows(4).position(|window| window == b"body");
    bytes[at.expect("one queue at least is on the second shard")] ^= 1;
    disk.put(path, bytes);
    let untouched = disk.contents();
    let error = convert(&disk, 3).expect_err("it is damaged").to_string();
    assert!(error.contains(path) && error.contains("offset"), "{error}");
    assert_eq!(disk.contents(), untouched);
}

#[test]
fn what_is_in_the_way_is_not_touched() {
    let disk = history(&mut Random(6), 1, 20);
    disk.put("shard-1-of-2/", Vec::new());
    disk.put("shard-1-of-2/notes.txt", b"mine".to_vec());
    let untouched = disk.contents();
    match convert(&disk, 2) {
        Err(ReshardError::Open(OpenError::Taken { found })) => assert_eq!(found, "shard-1-of-2"),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.contents(), untouched);
    converted(&disk, 3);
    assert_eq!(disk.get("shard-1-of-2/notes.txt"), b"mine");
    // Among old files it is left, and told.
    disk.put("shard-2-of-3/notes.txt", b"mine, too".to_vec());
    match convert(&disk, 1) {
        Ok(Outcome::Done(_, left)) => assert_eq!(left, ["shard-2-of-3"]),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.get("shard-2-of-3/notes.txt"), b"mine, too");
}

#[test]
fn a_queue_and_its_dead_letter_queue_may_come_apart() {
    let disk = MemDisk::default();
    let mut world = World::open(&disk, 1, BEGIN_US).expect("it is new");
    world.ask("PUB jobs :x\nQSET jobs dead=mail\nPUB mail :y");
    drop(world);
    // By their names these two are on different shards of eight, and on the same of one.
    converted(&disk, 8);
    let mut world = World::open(&disk, 8, BEGIN_US).expect("it can be served");
    let given = world.ask("PULL jobs");
    let handle = given.split(' ').nth(2).expect("a handle").to_owned();
    world.ask(&format!("NACK {handle} dead=1"));
    let mut bodies = String::new();
    for _ in 0..9 {
        bodies.push_str(&world.ask("PULL mail 9"));
    }
    assert!(
        bodies.contains("\nx\n") && bodies.contains("\ny\n"),
        "{bodies}"
    );
}

#[test]
fn dead_letters_that_come_apart_from_their_queue_are_not_counted_there() {
    let disk = MemDisk::default();
    let mut world = World::open(&disk, 1, BEGIN_US).expect("it is new");
    world.ask("QSET jobs dead=mail maxdeliver=1\nPUB jobs :x\nPUB near :x\nQSET near maxdeliver=1");
    for queue in ["jobs", "near"] {
        let answer = world.ask(&format!("PULL {queue}"));
        let handle = answer.split(' ').nth(2).expect("a message").to_owned();
        assert_eq!(world.ask(&format!("NACK {handle}")), "OK 1\n");
    }
    let counted = |world: &mut World<'_>, queue: &str| {
        let told = world.ask(&format!("QGET {queue}"));
        let line = told.lines().find(|line| {
            let count = line.strip_prefix("dead=");
            count.is_some_and(|count| count.parse::<u64>().is_ok())
        });
        line.map(str::to_owned)
    };
    assert_eq!(counted(&mut world, "jobs").as_deref(), Some("dead=1"));
    // Back to what it is by itself.
    assert_eq!(world.ask("QSET jobs dead=jobs.dead"), "OK updated\n");
    drop(world);
    converted(&disk, 8);
    let mut world = World::open(&disk, 8, BEGIN_US).expect("it can be served");
    assert_eq!(counted(&mut world, "jobs").as_deref(), Some("dead=0"));
    assert_eq!(counted(&mut world, "near").as_deref(), Some("dead=1"));
    for (queue, dead) in [("jobs", "mail"), ("near", "near.dead")] {
        let answer = world.ask(&format!("PULL {dead}"));
        assert!(
            answer.contains(&format!(" h.dead-queue={queue} ")),
            "{answer}"
        );
        let handle = answer.split(' ').nth(2).expect("a message").to_owned();
        assert_eq!(world.ask(&format!("ACK {handle}")), "OK 1\n");
        assert_eq!(counted(&mut world, queue).as_deref(), Some("dead=0"));
    }
}

#[test]
fn no_handle_from_before_settles_anything() {
    let disk = MemDisk::default();
    let mut handles = Vec::new();
    let mut shards = 1;
    for to in [2, 1, 5, 3, 1, 4] {
        let mut world = World::open(&disk, shards, BEGIN_US).expect("it can be served");
        if shards == 1 {
            let published: String = (0..9).map(|n| format!("PUB many{n} :x\n")).collect();
            world.ask(&published);
        }
        for n in 0..9 {
            let answer = world.ask(&format!("PULL many{n} 1000 lease=1h"));
            for line in answer.lines().filter(|line| line.starts_with("MSG ")) {
                handles.push(line.split(' ').nth(2).expect("a handle").to_owned());
            }
        }
        drop(world);
        converted(&disk, to);
        shards = to;
        let mut world = World::open(&disk, shards, BEGIN_US).expect("it can be served");
        for n in 0..9 {
            world.ask(&format!("PULL many{n} 1000 lease=1h"));
        }
        for handle in &handles {
            let answer = world.ask(&format!("ACK {handle}"));
            assert_eq!(answer, format!("OK 0 stale={handle}\n"), "{to} shards");
        }
        let distinct: std::collections::BTreeSet<_> = handles.iter().collect();
        assert_eq!(distinct.len(), handles.len(), "a handle was given twice");
    }
}

#[test]
fn long_queues_keep_their_index_in_blocks_on_the_disk() {
    let disk = MemDisk::default();
    let mut world = World::open(&disk, 1, BEGIN_US).expect("it is new");
    for n in 0..3000 {
        world.ask(&format!("PUB q{} :message {n}", n % 2));
    }
    world.ask("DEL q0 1 2 3 700");
    drop(world);
    let before = told(&disk, 1);
    for to in [2, 5, 1] {
        converted(&disk, to);
        let has_blocks = disk.paths().iter().any(|path| path.ends_with("index.blk"));
        assert!(has_blocks, "{to} shards");
        assert_same(&told(&disk, to), &before, &format!("{to} shards"));
    }
}
