//! A schedule on a broker that goes down again and again: never two messages for one interval, and one
//! for each interval in which the broker was there.

use std::collections::BTreeSet;

use crate::pipeline::World;
use crate::runs::{seeds, total};

/// How long a run is, microseconds.
const LENGTH_US: u64 = 15_000_000;
/// A message is on the disk so long after it was due at the latest, microseconds.
const LATE_US: u64 = 400_000;

/// Runs one seed: how many messages came, or what went wrong.
pub fn run(seed: u64) -> Result<usize, String> {
    let mut world = World::new(seed ^ 0x7363_6865);
    world.start()?;
    let every_ms = world.rng.spread(20, 1500);
    let first_ms = world.now / 1000 + world.rng.spread(1, 1000);
    let asker = world.connect();
    let made = world.ask(
        asker,
        &format!("PUB q every={every_ms}ms once=tick at=@{first_ms} :tick\n"),
    );
    if made.last().is_none_or(|line| line.kind != "OK") {
        return Err(format!("no schedule: {made:?}"));
    }
    world.plan_crash();
    let mut up_since = world.now;
    let mut ups = Vec::new();
    let end = world.now + LENGTH_US;
    while world.now < end {
        if world.disk.crashed() || world.now >= world.crash_at {
            ups.push((up_since, world.now));
            world.crash()?;
            up_since = world.now;
        }
        world.turn();
    }
    ups.push((up_since, world.now));
    world.crashes = 0;
    world.crash()?;
    let asker = world.connect();
    let ended = world.ask(asker, "PUB q every=0 once=tick :\n");
    if ended.last().is_none_or(|line| line.kind != "OK") {
        return Err(format!("the schedule is gone: {ended:?}"));
    }
    let mut times: Vec<u64> = Vec::new();
    loop {
        let lines = world.ask(asker, "PULL q 100 ts=1 ack=auto\n");
        let before = times.len();
        let told = lines.iter().filter_map(|line| line.option("ts"));
        times.extend(told.map(|ts| ts.parse::<u64>().expect("a time")));
        if times.len() == before {
            break;
        }
    }
    let mut seen = BTreeSet::new();
    for time_ms in times {
        if time_ms < first_ms {
            return Err(format!("one came at {time_ms}, before {first_ms}"));
        }
        let interval = (time_ms - first_ms) / every_ms;
        if !seen.insert(interval) {
            return Err(format!(
                "two for interval {interval} of {every_ms} ms, one of them at {time_ms}"
            ));
        }
    }
    for interval in 0..LENGTH_US / 1000 / every_ms {
        let due_us = (first_ms + interval * every_ms) * 1000;
        let was_up = |(from, to): &(u64, u64)| *from <= due_us && due_us + LATE_US <= *to;
        if ups.iter().any(was_up) && !seen.contains(&interval) {
            return Err(format!("none for interval {interval}, due at {due_us}"));
        }
    }
    Ok(seen.len())
}

#[test]
fn a_schedule_publishes_once_in_each_interval() {
    let seeds = seeds(60);
    let messages = total(seeds.clone(), run);
    let least = (seeds.end - seeds.start) as usize;
    assert!(messages > least, "only {messages} messages");
}
