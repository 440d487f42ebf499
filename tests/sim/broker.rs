//! The broker as the world drives it: one shard or several, and the mail between them.
//!
//! Mail takes time, drawn for each bag; between two shards it stays in order. All shards are one process: they
//! go down together.

use std::collections::VecDeque;
use std::io::IoSlice;

use ringmq::config::Config;
use ringmq::log::{OpenError, layout};
use ringmq::shard::{Bag, ConnKey, Now, Room, Shard, Stop};

use crate::disk::{Crash, SimDisk};
use crate::rng::Rng;
use crate::storage::{Delays, JobsHandle, SimStorage};

/// A connection: its shard, and its key there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    shard: usize,
    conn: ConnKey,
}

/// What the mail between two shards holds, and when each bag arrives, microseconds.
type Mail = VecDeque<(u64, Bag)>;

/// A whole broker.
pub struct Broker {
    shards: Vec<Shard<SimStorage>>,
    stops: Vec<Option<Stop>>,
    /// By sender and receiver.
    mail: Vec<Vec<Mail>>,
    rng: Rng,
    /// Longest way of a bag, microseconds.
    mail_us: u64,
    disk: SimDisk,
}

/// How a broker is started.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// How many shards.
    pub shards: u32,
    /// Without a data directory.
    pub memory: bool,
    /// How long background jobs take.
    pub delays: Delays,
    /// What the clocks say.
    pub now: Now,
    /// Of everything random.
    pub seed: u64,
    /// Longest way of a bag of mail, microseconds.
    pub mail_us: u64,
}

/// Where the shards' data lies.
fn directories(disk: &SimDisk, shards: u32) -> Result<Vec<SimDisk>, OpenError> {
    if shards == 1 {
        return Ok(vec![disk.clone()]);
    }
    let found = layout::prepare(disk, shards, false)?;
    Ok(found.iter().map(|directory| disk.part(directory)).collect())
}

impl Broker {
    /// A started broker, its background, and what each shard found.
    pub fn open(
        config: &Config,
        disk: &SimDisk,
        start: Start,
    ) -> Result<(Broker, Vec<JobsHandle>, String), OpenError> {
        let Start {
            shards: count,
            memory,
            delays,
            now,
            seed,
            mail_us,
        } = start;
        let parts = match memory {
            true => vec![disk.clone(); count as usize],
            false => directories(disk, count)?,
        };
        let (mut shards, mut jobs, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for (shard, part) in (0..count).zip(parts) {
            let seed = seed.wrapping_add(u64::from(shard));
            let storage = match memory {
                true => None,
                false => {
                    let (storage, handle) = SimStorage::new(&part, delays, now.us, seed);
                    jobs.push(handle);
                    Some(storage)
                }
            };
            let config = Config {
                shards: count,
                shard,
                ..config.clone()
            };
            let (opened, recovered) = Shard::open(&config, storage, now, seed)?;
            found.push(format!("{recovered:?}"));
            shards.push(opened);
        }
        let broker = Broker {
            stops: vec![None; shards.len()],
            mail: shards
                .iter()
                .map(|_| shards.iter().map(|_| Mail::new()).collect())
                .collect(),
            shards,
            rng: Rng::new(seed ^ 0x6d61_696c),
            mail_us,
            disk: disk.clone(),
        };
        Ok((broker, jobs, found.join(", ")))
    }

    fn runs(&self, shard: usize) -> bool {
        self.stops[shard].is_none()
    }

    /// A connection, at one of the shards.
    pub fn handle_accept(&mut self, peer: &str, now: Now) -> Option<Key> {
        let shard = match self.shards.len() {
            1 => 0,
            count => self.rng.below(count as u64) as usize,
        };
        let conn = self.shards[shard].handle_accept(peer, now)?;
        Some(Key { shard, conn })
    }

    /// See [`Shard::receive_room`].
    pub fn receive_room(&mut self, key: Key) -> Option<Room<'_>> {
        self.shards[key.shard].receive_room(key.conn)
    }

    /// See [`Shard::handle_received`].
    pub fn handle_received(&mut self, key: Key, count: usize, now: Now) {
        self.shards[key.shard].handle_received(key.conn, count, now);
    }

    /// See [`Shard::handle_half_close`].
    pub fn handle_half_close(&mut self, key: Key, now: Now) {
        self.shards[key.shard].handle_half_close(key.conn, now);
    }

    /// See [`Shard::handle_reset`].
    pub fn handle_reset(&mut self, key: Key, now: Now) {
        self.shards[key.shard].handle_reset(key.conn, now);
    }

    /// Hands over the mail that has arrived and ends the turn of every shard, in any order.
    pub fn handle_turn_end(&mut self, now: Now) {
        let count = self.shards.len();
        let first = match count {
            1 => 0,
            _ => self.rng.below(count as u64) as usize,
        };
        for shard in (first..first + count).map(|shard| shard % count) {
            if !self.runs(shard) || self.disk.crashed() {
                continue;
            }
            for from in 0..count {
                while let Some((at, _)) = self.mail[from][shard].front()
                    && *at <= now.us
                {
                    let (_, bag) = self.mail[from][shard]
                        .pop_front()
                        .expect("it was looked at");
                    self.shards[shard].handle_post(from as u32, bag, now);
                }
            }
            self.shards[shard].handle_turn_end(now);
        }
    }

    /// See [`Shard::poll_output`].
    pub fn poll_output(&mut self) -> Option<Key> {
        self.poll_conn(Shard::poll_output)
    }

    /// See [`Shard::poll_resume`].
    pub fn poll_resume(&mut self) -> Option<Key> {
        self.poll_conn(Shard::poll_resume)
    }

    /// See [`Shard::poll_close`].
    pub fn poll_close(&mut self) -> Option<Key> {
        self.poll_conn(Shard::poll_close)
    }

    /// See [`Shard::poll_unacknowledged`].
    pub fn poll_unacknowledged(&mut self) -> Option<Key> {
        self.poll_conn(Shard::poll_unacknowledged)
    }

    /// See [`Shard::handle_unacknowledged`].
    pub fn handle_unacknowledged(&mut self, key: Key, bytes: usize, now: Now) {
        self.shards[key.shard].handle_unacknowledged(key.conn, bytes, now);
    }

    fn poll_conn(
        &mut self,
        poll: impl Fn(&mut Shard<SimStorage>) -> Option<ConnKey>,
    ) -> Option<Key> {
        let mut shards = self.shards.iter_mut().enumerate();
        shards.find_map(|(shard, it)| poll(it).map(|conn| Key { shard, conn }))
    }

    /// Puts the turn's mail on its way.
    pub fn post(&mut self, now_us: u64) {
        for from in 0..self.shards.len() {
            while let Some((to, bag)) = self.shards[from].poll_post() {
                let way = self.rng.spread(0, self.mail_us);
                let mail = &mut self.mail[from][to as usize];
                let last = mail.back().map_or(0, |(at, _)| *at);
                mail.push_back(((now_us + way).max(last), bag));
            }
        }
    }

    /// See [`Shard::output`].
    pub fn output<'a>(&'a self, key: Key, slices: &mut [IoSlice<'a>]) -> usize {
        self.shards[key.shard].output(key.conn, slices)
    }

    /// See [`Shard::handle_sent`].
    pub fn handle_sent(&mut self, key: Key, count: usize, now: Now) -> bool {
        self.shards[key.shard].handle_sent(key.conn, count, now)
    }

    /// See [`Shard::handle_shutdown`]: the signal comes to the first.
    pub fn handle_shutdown(&mut self, now: Now) {
        self.shards[0].handle_shutdown(now);
    }

    /// See [`Shard::poll_stopped`]: when all have stopped, and the first failure if there is one.
    pub fn poll_stopped(&mut self) -> Option<Stop> {
        for (shard, stop) in self.shards.iter_mut().zip(&mut self.stops) {
            if stop.is_none() {
                *stop = shard.poll_stopped();
            }
        }
        let stops: Option<Vec<&Stop>> = self.stops.iter().map(Option::as_ref).collect();
        let stops = stops?;
        let failed = stops.iter().find(|stop| matches!(stop, Stop::Failed(_)));
        Some((**failed.unwrap_or(&stops[0])).clone())
    }

    /// See [`Shard::poll_timeout`].
    pub fn poll_timeout(&self) -> Option<u64> {
        let running = self.shards.iter().zip(&self.stops);
        let running = running.filter(|(_, stop)| stop.is_none());
        running.filter_map(|(shard, _)| shard.poll_timeout()).min()
    }

    /// When the next mail arrives.
    pub fn next_mail(&self) -> Option<u64> {
        let mut next = None;
        for mail in &self.mail {
            for (to, mail) in mail.iter().enumerate().filter(|(to, _)| self.runs(*to)) {
                let _ = to;
                let first = mail.front().map(|(at, _)| *at);
                next = [next, first].into_iter().flatten().min();
            }
        }
        next
    }
}

#[test]
fn a_directory_of_several_shards_outlives_two_interrupted_first_starts() {
    for seed in 0..8 {
        for (first, second) in (0..24).flat_map(|first| (0..24).map(move |second| (first, second)))
        {
            let disk = SimDisk::new(seed);
            for (ops, mode) in [(first, Crash::Kill), (second, Crash::Power)] {
                let at = disk.ops() + ops;
                disk.set_faults(|faults| faults.crash_at = Some(at));
                let _ = layout::prepare(&disk, 3, false);
                disk.crash(mode);
            }
            let prepared = layout::prepare(&disk, 3, false);
            let directories = prepared.map_err(|error| error.to_string());
            let known = directories
                .expect("whatever was interrupted, it is ours")
                .len();
            assert_eq!(known, 3, "seed {seed}, after {first} and {second}");
        }
    }
}
