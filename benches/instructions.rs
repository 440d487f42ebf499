//! The same bodies for counting instructions: `tools/instructions` runs this under valgrind, which
//! counts what happens inside [`run_measured`] and nothing else.
//!
//! With a name it runs that body and prints how many operations were measured; with `--list` it
//! prints the names; without either it runs each body once, which shows that they work.

mod bodies;

use bodies::{Body, Work, codec, log, recovery, shard, shards, topics};

/// Runs before the measured ones: buffers grow to their size, chunks are there to be used again.
const RUNS_BEFORE: usize = 3;
/// Measured runs.
const RUNS: usize = 5;

/// Everything whose instructions are worth counting: what waits for a real disk is not.
const ALL: [&[Body]; 8] = [
    codec::DECODE,
    codec::ENCODE,
    shard::MEMORY,
    shard::LOGGED,
    shards::MEMORY,
    topics::MEMORY,
    log::MEMORY,
    recovery::MEMORY,
];

fn main() {
    let bodies = ALL.into_iter().flatten();
    match std::env::args().nth(1).as_deref() {
        None => {
            for body in bodies {
                once(&mut *(body.make)());
            }
        }
        Some("--list") => {
            for body in bodies {
                println!("{body}");
            }
        }
        Some(name) => {
            let body = bodies.into_iter().find(|body| body.name == name);
            let Some(body) = body else {
                eprintln!("there is no {name}: see --list");
                std::process::exit(2);
            };
            let mut work = (body.make)();
            for _ in 0..RUNS_BEFORE {
                once(&mut *work);
            }
            for _ in 0..RUNS {
                work.prepare();
                run_measured(&mut *work);
            }
            println!("{}", RUNS * body.operations);
        }
    }
}

fn once(work: &mut dyn Work) {
    work.prepare();
    work.run();
}

/// Valgrind counts between the beginning and the end of this function.
#[inline(never)]
fn run_measured(work: &mut dyn Work) {
    work.run();
    // Keeps this a call with something behind it, so that the function is there to be found.
    std::hint::black_box(());
}
