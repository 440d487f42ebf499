//! Is anybody looking? Every bug that can be planted must be seen within so many seeds.

use std::sync::Mutex;
use std::thread;

use ringmq::fault::{ALL, Fault, plant};

use crate::amqp_tx;
use crate::groups;
use crate::pipeline;
use crate::runs::{run, run_sharded};
use crate::schedules;
use crate::single;
use crate::streams;

/// Seeds that each bug is given: as many as CI looks at for those that nobody has planted.
const SEEDS: u64 = 3_000;

/// What a seed breaks; some promises have short runs of their own.
fn broken(fault: Fault, seed: u64) -> Option<String> {
    match fault {
        Fault::StandbyServed => single::run(seed).err(),
        Fault::FiringNotLogged => schedules::run(seed).err(),
        Fault::GroupNotLogged | Fault::FreedByOne => groups::run(seed).err(),
        Fault::StreamsOfOneConsumer | Fault::ColdStreamLeftOut => streams::run(seed).err(),
        Fault::TransactionInTwoRecords => pipeline::run(seed).err(),
        Fault::ArrivalNotLogged | Fault::PartsInRecordsOfTheirOwn | Fault::RefusedMoveLost => {
            pipeline::run_sharded(seed).err()
        }
        Fault::CommitInTwoRecords => amqp_tx::run(seed).err(),
        Fault::DeadCircleMade => run_sharded(seed, false).violation,
        _ => run(seed, false).violation,
    }
}

/// The first seed that breaks a promise with this bug and keeps them all without it.
fn caught(fault: Fault) -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| {
        plant(Some(fault));
        let violation = broken(fault, seed);
        plant(None);
        let violation = violation?;
        broken(fault, seed).is_none().then_some((seed, violation))
    })
}

#[test]
fn every_planted_bug_is_caught() {
    // `RINGMQ_FAULT=name` looks for one of them alone.
    let wanted = std::env::var("RINGMQ_FAULT").ok();
    let is_wanted = |fault: &Fault| {
        wanted
            .as_ref()
            .is_none_or(|name| *name == format!("{fault:?}"))
    };
    let left = Mutex::new(ALL.into_iter().filter(is_wanted));
    let missed = Mutex::new(Vec::new());
    let look = || {
        // A bug is planted in what one thread runs.
        while let Some(fault) = { left.lock().expect("nobody panics with it").next() } {
            match caught(fault) {
                Some((seed, violation)) => {
                    let shown: String = violation.chars().take(160).collect();
                    println!("{fault:?}: seed {seed}: {shown}");
                }
                None => missed.lock().expect("nobody panics with it").push(fault),
            }
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| _ = scope.spawn(look));
    });
    let missed = missed.into_inner().expect("nobody panicked");
    assert!(missed.is_empty(), "nobody saw {missed:?} in {SEEDS} seeds");
}
