//! What is stored, freed and settled in runs is what it is one by one, to the octet on the disk.

use crate::bench::{Bench, MemDisk, Random};
use bytes::Bytes;
use ringmq::broker::command::Body;
use ringmq::broker::id::QueueUid;
use ringmq::config::LogConfig;
use ringmq::log::job::Lane;
use ringmq::log::{Entry, LogIndex, Message, PUBLISH_HEAD_BYTES_MAX, Position, Room, SettleReason};

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 64 << 10,
        chunk_bytes: 2 << 10,
        checkpoint_bytes: 32 << 10,
        ..LogConfig::default()
    }
}

fn message(time_ms: u64, body: &[u8]) -> Message<'_> {
    Message {
        time_ms,
        sections: &[],
        body: Body::Borrowed(body),
    }
}

/// Notes in the model that a message was published.
fn note(bench: &mut Bench, queue: u64, message: Message<'_>, position: Position) {
    let targets = &[(QueueUid(queue), bench.next_id(queue))];
    let entry = Entry::Publish { targets, message };
    let mut freed = Vec::new();
    bench
        .model
        .apply_entry(&entry, position, &mut freed)
        .expect("it is new");
}

/// Publishes as many as the record has room for, one by one.
fn publish_each(bench: &mut Bench, queue: u64, time_ms: u64, bodies: &[Vec<u8>]) -> usize {
    let index = bench.log.index();
    for (nth, body) in bodies.iter().enumerate() {
        let room = bench.log.begin(PUBLISH_HEAD_BYTES_MAX + body.len());
        if room != Room::Plenty || bench.log.index() != index {
            return nth;
        }
        let message = message(time_ms, body);
        let id = bench.next_id(queue);
        let position = bench.log.publish(QueueUid(queue), id, &message);
        assert_eq!(bench.log.index(), index, "what is begun is not sealed");
        note(bench, queue, message, position);
    }
    bodies.len()
}

/// The same in runs of so many; what is no part of one is published by itself.
fn publish_runs(
    bench: &mut Bench,
    queue: u64,
    time_ms: u64,
    bodies: &[Vec<u8>],
    most: usize,
    runs: &mut usize,
) -> usize {
    let index = bench.log.index();
    let mut offsets = Vec::new();
    let mut taken = 0;
    while let Some(first) = bodies.get(taken)
        && bench.log.begin_run(time_ms, first.len())
        && bench.log.index() == index
    {
        let before = taken;
        let (base, bytes) = bench.log.publish_run(
            QueueUid(queue),
            bench.next_id(queue),
            time_ms,
            most,
            |below| {
                let body = bodies.get(taken).filter(|body| body.len() < below)?;
                taken += 1;
                Some(body)
            },
            &mut offsets,
        );
        assert_eq!(bench.log.index(), index, "what is begun is not sealed");
        let stored = &bodies[before..taken];
        assert_eq!(bytes, stored.iter().map(|body| body.len() as u64).sum());
        assert_eq!(offsets.len(), stored.len());
        *runs += usize::from(stored.len() > 1);
        for (body, offset) in stored.iter().zip(&offsets) {
            let place = base.plus(u64::from(*offset));
            note(bench, queue, message(time_ms, body), place);
        }
    }
    taken + publish_each_of(bench, queue, time_ms, &bodies[taken..], index)
}

fn publish_each_of(
    bench: &mut Bench,
    queue: u64,
    time_ms: u64,
    bodies: &[Vec<u8>],
    index: LogIndex,
) -> usize {
    match bench.log.index() == index {
        true => publish_each(bench, queue, time_ms, bodies),
        false => 0,
    }
}

/// Settles unsettled messages of consecutive ids: in one run, or one by one.
fn settle(bench: &mut Bench, queue: u64, first: u64, count: u64, run: bool) {
    let ids = first..first + count;
    let places: Vec<_> = ids
        .clone()
        .map(|id| bench.model.live.remove(&(queue, id)).expect("it is live"))
        .collect();
    if run {
        let mut freed = bench.log.free_run();
        for place in places {
            freed.free(place);
        }
        drop(freed);
        let uid = QueueUid(queue);
        bench.log.settle_run(uid, SettleReason::Acked, first, count);
    } else {
        for (id, place) in ids.zip(places) {
            bench.log.freed(place);
            bench
                .log
                .settle(QueueUid(queue), 0, SettleReason::Acked, id);
        }
    }
}

/// Both logs do the same, one of them in runs.
fn compare(seed: u64) -> (usize, usize) {
    let mut random = Random(seed);
    let disks = [MemDisk::default(), MemDisk::default()];
    let mut benches = disks
        .each_ref()
        .map(|disk| Bench::open_with(disk, &config(), 1_000_000_000).expect("an empty directory"));
    let (mut runs, mut cut) = (0, 0);
    for _ in 0..300 {
        let kind = random.below(16);
        let queue = 1 + random.below(3);
        match kind {
            0..=7 => {
                let usual = random.below(200);
                let late_ms = random.below(20) / 19 * (1 << 28);
                let sizes: Vec<_> = (0..1 + random.below(80))
                    .map(|_| match random.below(12) {
                        0 => random.below(3000),
                        1 => random.below(300),
                        2 => 0,
                        _ => usual,
                    })
                    .collect();
                let bodies: Vec<Vec<u8>> = sizes
                    .iter()
                    .map(|size| (0..*size).map(|_| random.next() as u8).collect())
                    .collect();
                let most = 1 + random.below(100) as usize;
                let [one, other] = &mut benches;
                let time_ms = one.now_us / 1000 + late_ms;
                let taken = publish_each(one, queue, time_ms, &bodies);
                let in_runs = publish_runs(other, queue, time_ms, &bodies, most, &mut runs);
                assert_eq!(taken, in_runs);
                cut += usize::from(taken < bodies.len());
            }
            8..=10 => {
                let live: Vec<_> = benches[0].model.live.keys().copied().collect();
                if live.is_empty() {
                    continue;
                }
                let (queue, first) = live[random.below(live.len() as u64) as usize];
                let most = 1 + random.below(120);
                let count = (0..most)
                    .take_while(|nth| live.binary_search(&(queue, first + nth)).is_ok())
                    .count() as u64;
                for (bench, run) in benches.iter_mut().zip([false, true]) {
                    settle(bench, queue, first, count, run);
                }
            }
            11 => {
                let body = vec![random.next() as u8; 16 << 10];
                for bench in &mut benches {
                    bench.publish_with(queue, &[], Body::Owned(Bytes::from(body.clone())));
                    bench.publish(queue, b"behind it");
                }
            }
            12 if random.below(4) == 0 => {
                // More rows than a run knows.
                for bench in &mut benches {
                    for queue in 0..150 {
                        bench.publish(1000 + queue, b"x");
                    }
                }
            }
            13 => {
                // No other segment is made ready for now.
                let held = match random.below(2) {
                    0 => vec![Lane::Background],
                    _ => Vec::new(),
                };
                for bench in &mut benches {
                    *bench.held.lock().expect("nothing panics there") = held.clone();
                }
            }
            _ => {
                let sync = random.below(2) == 0;
                for bench in &mut benches {
                    bench.turn(sync);
                    if bench.log.checkpoint_due() {
                        bench.checkpoint();
                    }
                }
            }
        }
        let [one, other] = &benches;
        assert_eq!(one.model.live, other.model.live);
        assert_eq!(one.log.index(), other.log.index());
        let live = |bench: &Bench| bench.log.stats().messages_live;
        assert_eq!(live(one), live(other));
    }
    for bench in &mut benches {
        bench.held.lock().expect("nothing panics there").clear();
        bench.turn(true);
        bench.turn(true);
    }
    assert_eq!(disks[0].contents(), disks[1].contents());
    let copy = disks[1].copy();
    let mut again = Bench::open_with(&copy, &config(), 2_000_000_000).expect("it is whole");
    assert_eq!(again.kept().0, benches[0].kept().0);
    for place in benches[0].model.live.values() {
        assert!(again.read(*place).is_some(), "{place} is damaged");
    }
    // Nothing is left of what is settled but chunks to be used again.
    let live: Vec<_> = benches[0].model.live.keys().copied().collect();
    for (bench, run) in benches.iter_mut().zip([false, true]) {
        for (queue, id) in &live {
            settle(bench, *queue, *id, 1, run);
        }
        bench.turn(true);
        assert_eq!(bench.log.stats().messages_live, 0);
        let memory = bench.log.memory();
        assert!(memory < 20 * (2 << 10), "{memory} bytes");
    }
    (runs, cut)
}

#[test]
fn runs_write_and_free_what_single_messages_do() {
    let (mut runs, mut cut) = (0, 0);
    for seed in 0..40 {
        let (more, ended) = compare(seed);
        runs += more;
        cut += ended;
    }
    assert!(
        runs > 1000 && cut > 100,
        "{runs} runs, and {cut} that a record was too short for"
    );
}
