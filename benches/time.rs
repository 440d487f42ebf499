//! How long things take: `cargo bench --bench time`, or a part of it by a word of its names:
//! `cargo bench --bench time -- decode`.
//!
//! `RINGMQ_DIR` names the directory whose disk is measured (otherwise the system's temporary one).

#![allow(missing_docs)]

mod bodies;

use std::cell::RefCell;

use bodies::{Body, codec, log, recovery, shard, topics};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

fn main() {
    divan::main();
}

fn measure(bencher: Bencher<'_, '_>, body: &Body) {
    let work = RefCell::new((body.make)());
    let log_bytes = work.borrow().log_bytes();
    let bencher = bencher.counter(ItemsCount::new(body.operations));
    match log_bytes {
        Some(bytes) => run(bencher.counter(BytesCount::new(bytes)), &work),
        None => run(bencher, &work),
    }
}

fn run(bencher: Bencher<'_, '_>, work: &RefCell<Box<dyn bodies::Work>>) {
    // The input is only there so that something is prepared before each run.
    bencher
        .with_inputs(|| {
            work.borrow_mut().prepare();
            1_u8
        })
        .bench_local_values(|_| work.borrow_mut().run());
}

#[divan::bench(args = codec::DECODE, sample_size = 1)]
fn decode(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = codec::ENCODE, sample_size = 1)]
fn encode(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = shard::MEMORY, sample_size = 1)]
fn shard_in_memory(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = shard::LOGGED, sample_size = 1)]
fn shard_with_log(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = topics::MEMORY, sample_size = 1)]
fn shard_topics(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = log::MEMORY, sample_size = 1)]
fn log_in_memory(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = log::WRITTEN, sample_size = 1)]
fn log_on_disk(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = log::SYNCED, sample_size = 1, sample_count = 20)]
fn log_synced(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}

#[divan::bench(args = recovery::FILES, sample_size = 1, sample_count = 7)]
fn restart(bencher: Bencher<'_, '_>, body: &Body) {
    measure(bencher, body);
}
