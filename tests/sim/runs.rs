//! The runs: a range of seeds, each replayed from its number alone.

use std::collections::BTreeMap;

use crate::plan::Plan;
use crate::trace::Trace;
use crate::world::{Outcome, World};

/// Runs one seed.
pub fn run(seed: u64, print: bool) -> Outcome {
    World::new(Plan::new(seed), Trace::new(print)).run()
}

/// Runs one seed with several shards.
pub fn run_sharded(seed: u64, print: bool) -> Outcome {
    World::new(Plan::new(seed).with_shards(3), Trace::new(print)).run()
}

/// Runs one seed with clients who are back before a sync ends, and so many shards.
fn run_quick(seed: u64, shards: u32, print: bool) -> Outcome {
    let plan = Plan::new(seed);
    let plan = match shards {
        1 => plan,
        shards => plan.with_shards(shards),
    };
    World::new(plan.with_quick_clients(), Trace::new(print)).run()
}

/// The seeds to run: `RINGMQ_SEED=n`, or `RINGMQ_SEEDS=from..to`, or the first ones, so many.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |text: &str| text.trim().parse::<u64>().expect("a seed is a number");
    if let Ok(seed) = std::env::var("RINGMQ_SEED") {
        let seed = number(&seed);
        return seed..seed + 1;
    }
    match std::env::var("RINGMQ_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("RINGMQ_SEEDS=from..to");
            number(from)..number(to)
        }
        Err(_) => 0..usual,
    }
}

/// Runs these seeds and adds up what each of them has done.
///
/// # Panics
/// With the first seed that breaks a promise, and what it broke.
pub fn total<T: std::iter::Sum>(
    seeds: std::ops::Range<u64>,
    run: impl Fn(u64) -> Result<T, String>,
) -> T {
    seeds
        .map(|seed| run(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}")))
        .sum()
}

#[test]
fn seeds_keep_every_promise() {
    keep_every_promise("seeds_keep", 300, run);
}

#[test]
fn seeds_keep_every_promise_with_three_shards() {
    keep_every_promise("three_shards", 300, run_sharded);
}

#[test]
fn seeds_keep_every_promise_with_quick_clients() {
    syncs_wait("quick_clients", |seed, print| run_quick(seed, 1, print));
}

#[test]
fn seeds_keep_every_promise_with_quick_clients_on_three_shards() {
    syncs_wait("quick_clients_on", |seed, print| run_quick(seed, 3, print));
}

/// Syncs wait for publishers, in vain and not.
fn syncs_wait(name: &str, run: fn(u64, bool) -> Outcome) {
    const USUAL: u64 = 60;
    let waits = keep_every_promise(name, USUAL, run);
    let range = seeds(USUAL);
    // One alone, or a few, may have none.
    let least = match range.end - range.start {
        few if few < USUAL => 0,
        many => many / 6,
    };
    for what in ["log_syncs_gathered_total", "log_syncs_in_vain_total"] {
        let count = waits.get(what).copied().unwrap_or(0);
        assert!(count >= least, "{what}: {count} in {range:?}");
    }
}

/// Gives how often each promise was put to the test.
fn keep_every_promise(
    name: &str,
    usual: u64,
    run: fn(u64, bool) -> Outcome,
) -> BTreeMap<&'static str, u64> {
    let print = std::env::var("RINGMQ_TRACE").is_ok_and(|value| value == "1");
    let mut broken = Vec::new();
    let (mut answers, mut deliveries, mut boots) = (0, 0, 0);
    let mut checks = BTreeMap::<&str, u64>::new();
    for seed in seeds(usual) {
        let outcome = run(seed, print);
        answers += outcome.totals.0;
        deliveries += outcome.totals.1;
        boots += outcome.boots;
        for (promise, count) in outcome.checks {
            *checks.entry(promise).or_insert(0) += count;
        }
        if let Some(violation) = outcome.violation {
            eprintln!(
                "seed {seed} broke {violation}\n  again: RINGMQ_TRACE=1 RINGMQ_SEED={seed} cargo \
                 test --test sim {name} -- --nocapture"
            );
            broken.push(seed);
        }
    }
    println!("{answers} answers, {deliveries} deliveries, {boots} starts; checks: {checks:?}");
    assert!(broken.is_empty(), "broken by seeds {broken:?}");
    checks
}

#[test]
fn a_seed_replays_bit_by_bit() {
    for seed in [1, 2, 3, 17, 42] {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first.hash, second.hash, "seed {seed} went two ways");
        let (first, second) = (run_sharded(seed, false), run_sharded(seed, false));
        assert_eq!(first.hash, second.hash, "seed {seed} went two ways");
    }
}
