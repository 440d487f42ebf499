//! One simulated machine: a broker, its disk, its clients and the network between them, on one
//! clock that jumps from event to event. The broker is driven exactly as the event loop drives it.

mod drain;
mod network;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use ringmq::config::{Config, LogConfig};
use ringmq::shard::{Now, Stop};

use crate::broker::{Broker, Key, Start};
use crate::client::{BODY_BYTES_MAX, Client};
use crate::command::{Command, Kind, Level};
use crate::dialect::Dialect;
use crate::disk::{Crash, Faults, Op, SimDisk, Space};
use crate::oracle::{Oracle, Terms};
use crate::plan::{Harm, Plan};
use crate::rng::Rng;
use crate::storage::JobsHandle;
use crate::trace::Trace;

/// The time at which every run begins, microseconds since the unix epoch.
const EPOCH_US: u64 = 1_700_000_000_000_000;

/// Turns in a row at one moment, without anything new from outside, that count as a spin.
const SPINS_MAX: u64 = 2_000;

/// What will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client does something.
    Act(usize),
    /// Octets reach the broker's side of a connection.
    Arrive(usize, usize),
    /// The end of the client's side does.
    Fin(usize),
    /// A client reads again.
    Unpause(usize),
    /// Something breaks.
    Harm(usize),
    /// The broker is started.
    Start,
    /// The disk is repaired or gets room.
    Mend,
}

/// One connection, both its ends.
struct Socket {
    key: Key,
    client: usize,
    dialect: Dialect,
    open: bool,
    /// Typed and on its way.
    flying: VecDeque<u8>,
    /// Arrived, not read by the broker.
    inbound: VecDeque<u8>,
    /// Offsets behind the last octet of each command, with its number.
    ends: VecDeque<(u64, usize)>,
    typed: u64,
    fed: u64,
    fin_typed: bool,
    fin_arrived: bool,
    fin_told: bool,
    /// The broker may be offered input.
    readable: bool,
    /// When the last octet that is on its way arrives.
    last_arrival: u64,
    paused: bool,
    /// Octets that the client's side still takes while it isn't read.
    room: usize,
    blocked: bool,
}

/// Everything of one run.
pub struct World {
    plan: Plan,
    rng: Rng,
    trace: Trace,
    /// Microseconds on the broker's clock.
    now: u64,
    /// How far the wall clock was set off from it since the broker began, microseconds.
    wall_offset: i64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    disk: SimDisk,
    /// The background of each shard that runs.
    jobs: Vec<JobsHandle>,
    broker: Option<Broker>,
    sockets: Vec<Socket>,
    clients: Vec<Client>,
    /// The client's open connection.
    current: Vec<Option<usize>>,
    oracle: Oracle,
    boots: u64,
    spins: u64,
    /// Clients type nothing more.
    resting: bool,
    draining: bool,
    /// A graceful end was asked for: it is late after this moment, microseconds.
    stopping: Option<u64>,
    /// The same, of an end that lets clients go on until then.
    drained_by: Option<u64>,
    /// How the machine goes down when the disk's planned crash is reached.
    crash_mode: Crash,
    /// How it goes down with the next `COMMIT`.
    crash_in_commit: Option<Crash>,
    /// Longest sync of the run of the broker that ended last, microseconds.
    sync_us: u64,
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Of everything that happened, in order.
    pub hash: u64,
    /// The broken promise, if one was.
    pub violation: Option<String>,
    /// Commands answered and messages delivered.
    pub totals: (usize, usize),
    /// How often each promise was put to the test.
    pub checks: std::collections::BTreeMap<&'static str, u64>,
    /// Starts of the broker.
    pub boots: u64,
}

impl World {
    /// A run of this plan.
    pub fn new(plan: Plan, trace: Trace) -> World {
        let mut rng = Rng::new(plan.seed);
        let terms = Terms {
            level: if plan.memory { Level::None } else { plan.level },
            memory: plan.memory,
            scarce: plan.memory_budget_bytes < 1 << 30,
            flush_us: LogConfig::default().flush_us,
            shards: plan.shards,
            way_us: plan.mail_us + plan.timer_late_us,
        };
        let mut clients: Vec<Client> = (0..plan.clients)
            .map(|n| Client::new(rng.fork(n), Dialect::Text))
            .collect();
        let mut others = Rng::new(plan.seed ^ 0x646f_6f72);
        for (n, dialect) in (0..).zip(&plan.doors) {
            clients.push(Client::new(others.fork(n), *dialect));
        }
        World {
            disk: SimDisk::new(rng.next()),
            jobs: Vec::new(),
            broker: None,
            sockets: Vec::new(),
            current: vec![None; clients.len()],
            clients,
            oracle: Oracle::new(terms),
            now: EPOCH_US,
            wall_offset: 0,
            events: BinaryHeap::new(),
            order: 0,
            boots: 0,
            spins: 0,
            resting: false,
            draining: false,
            stopping: None,
            drained_by: None,
            crash_mode: Crash::Kill,
            crash_in_commit: None,
            sync_us: 0,
            plan,
            rng,
            trace,
        }
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Outcome {
        self.begin();
        let end = EPOCH_US + self.plan.length_us;
        while self.now < end
            && self.oracle.commands() < self.plan.commands_max
            && self.oracle.violation().is_none()
        {
            let soon = (self.now + 10_000).min(end);
            self.run_until(soon);
        }
        let more = self.rng.below(300_000);
        self.resting = true;
        self.run_until(self.now + more);
        if self.oracle.violation().is_none() {
            self.drain();
        }
        let violation = self.oracle.violation().map(|violation| {
            self.trace
                .note(self.now, || format!("VIOLATION {violation:?}"));
            format!("promise {}: {}", violation.promise, violation.text)
        });
        Outcome {
            hash: self.trace.hash(),
            violation,
            totals: self.oracle.totals(),
            checks: self.oracle.checks.clone(),
            boots: self.boots,
        }
    }

    fn begin(&mut self) {
        self.disk.set_faults(|faults| {
            faults.short_per_mille = self.plan.short_per_mille;
            faults.interrupted_per_mille = self.plan.short_per_mille;
        });
        self.start();
        for client in 0..self.clients.len() {
            let at = self.now + self.rng.below(10_000);
            self.schedule(at, Event::Act(client));
        }
        for harm in 0..self.plan.harms.len() {
            let at = EPOCH_US + self.plan.harms[harm].0;
            self.schedule(at, Event::Harm(harm));
        }
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events
            .push(Reverse((at.max(self.now), self.order, event)));
    }

    /// What the system says the time is.
    fn wall_us(&self) -> u64 {
        self.now.saturating_add_signed(self.wall_offset)
    }

    /// The wall clock differs so much from the broker's from now on.
    fn set_wall_offset(&mut self, offset: i64) {
        self.wall_offset = offset;
        self.oracle.wall_clock_set(offset, self.now);
    }

    fn clock(&self) -> Now {
        Now {
            us: self.now,
            wall_us: self.wall_us(),
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.queue_defaults.durable = match self.plan.level {
            Level::None => ringmq::broker::id::Level::None,
            Level::Os => ringmq::broker::id::Level::Os,
            Level::Disk => ringmq::broker::id::Level::Disk,
        };
        config.limits.body_bytes_max = BODY_BYTES_MAX;
        config.limits.send_bytes_max = self.plan.send_bytes_max;
        config.limits.turn_bytes_max = self.plan.turn_bytes_max;
        config.memory_budget_bytes = self.plan.memory_budget_bytes;
        config.log.segment_bytes = self.plan.segment_bytes;
        config.log.chunk_bytes = self.plan.chunk_bytes;
        config.log.checkpoint_bytes = self.plan.checkpoint_bytes;
        config.log.gather_after_syncs = self.plan.gather_after_syncs;
        config.log.scrub_piece_us = 2_000;
        config.log.scrub_round_us = 1_000_000;
        config
    }

    /// Starts the broker. False when it did not come up; then a start is scheduled.
    fn start(&mut self) {
        self.trace.note(self.now, || "start".to_string());
        let start = Start {
            shards: self.plan.shards,
            memory: self.plan.memory,
            delays: self.plan.delays,
            now: self.clock(),
            seed: self.rng.next(),
            mail_us: self.plan.mail_us,
        };
        if self.rng.chance(self.plan.recovery_crash_per_mille) {
            let at = self.disk.ops() + self.rng.spread(1, 300);
            self.disk.set_faults(|faults| faults.crash_at = Some(at));
        }
        let before = self.disk_failures();
        let opened = Broker::open(&self.config(), &self.disk, start);
        if self.disk.crashed() {
            drop(opened);
            self.jobs.clear();
            let mode = *self.rng.pick(&[Crash::Kill, Crash::Power]);
            self.trace
                .note(self.now, || format!("crash in recovery: {mode:?}"));
            self.disk.crash(mode);
            self.oracle
                .crashed_in_recovery(mode, self.sync_us, self.now);
            let at = self.now + self.rng.spread(1000, 100_000);
            return self.schedule(at, Event::Start);
        }
        match opened {
            Ok((broker, jobs, found)) => {
                self.boots += 1;
                self.trace.note(self.now, || format!("serving: {found}"));
                self.broker = Some(broker);
                self.jobs = jobs;
                self.oracle.started(self.now);
            }
            Err(error) => {
                self.trace.note(self.now, || format!("refused: {error}"));
                self.jobs.clear();
                if self.disk_failures() == before {
                    self.oracle.refused_to_start(format!("{error}"));
                    return;
                }
                // An honest refusal: the disk failed under it. Somebody mends it.
                self.disk.crash(Crash::Kill);
                self.oracle
                    .crashed_in_recovery(Crash::Kill, self.sync_us, self.now);
                self.disk.set_faults(|faults| *faults = Faults::default());
                let at = self.now + 100_000;
                self.schedule(at, Event::Start);
            }
        }
    }

    /// The broker's process is gone.
    fn crash(&mut self, mode: Crash, for_os: Crash) {
        self.trace.note(self.now, || format!("crash: {mode:?}"));
        self.broker = None;
        self.stopping = None;
        self.drained_by = None;
        let longest = self
            .jobs
            .drain(..)
            .map(|jobs| jobs.take_longest_sync())
            .max();
        if let Some(longest) = longest {
            self.sync_us = longest.max(self.plan.delays.sync_us.1);
        }
        self.disk.crash(mode);
        for socket in &mut self.sockets {
            socket.open = false;
        }
        self.current.fill(None);
        // The clock of the next run begins with the time there is then.
        self.set_wall_offset(0);
        self.oracle.crashed(for_os, self.sync_us, self.now);
        let at = self.now + self.rng.spread(1000, 2_000_000);
        self.schedule(at, Event::Start);
    }

    /// Lets things happen until `end`.
    fn run_until(&mut self, end: u64) {
        while self.oracle.violation().is_none() {
            let event = self.events.peek().map(|Reverse(event)| event.0);
            let timeout = self
                .broker
                .as_ref()
                .and_then(|broker| broker.poll_timeout());
            let timeout = timeout.map(|at| at + self.rng.below(self.plan.timer_late_us + 1));
            let job = self.jobs.iter().filter_map(JobsHandle::next_time).min();
            let mail = self.broker.as_ref().and_then(Broker::next_mail);
            let work = self.work_pending().then_some(self.now);
            let next = [event, timeout, job, mail, work]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = self.now.max(end);
                return;
            };
            if next > self.now {
                self.spins = 0;
            } else {
                self.spins += 1;
                if self.spins > SPINS_MAX {
                    self.oracle.spun(format!(
                        "{SPINS_MAX} turns in a row; timeout {timeout:?}, now {}",
                        self.now
                    ));
                    return;
                }
            }
            self.now = next.max(self.now);
            self.oracle.tick(self.now);
            while let Some(Reverse((at, _, event))) = self.events.peek().copied() {
                if at > self.now || self.oracle.violation().is_some() {
                    break;
                }
                self.events.pop();
                self.spins = 0;
                self.happen(event);
            }
            self.turn();
            self.now += 1;
        }
    }

    fn work_pending(&self) -> bool {
        self.broker.is_some()
            && self.sockets.iter().any(|socket| {
                let input = !socket.inbound.is_empty() || (socket.fin_arrived && !socket.fin_told);
                socket.open && socket.readable && input
            })
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act(client) => self.act(client),
            Event::Arrive(socket, count) => {
                let socket = &mut self.sockets[socket];
                let count = count.min(socket.flying.len());
                let octets: Vec<u8> = socket.flying.drain(..count).collect();
                socket.inbound.extend(octets);
            }
            Event::Fin(socket) => self.sockets[socket].fin_arrived = true,
            Event::Unpause(socket) => {
                self.sockets[socket].paused = false;
                self.sockets[socket].room = usize::MAX;
                if self.sockets[socket].open && self.sockets[socket].blocked {
                    self.write(socket);
                }
            }
            Event::Harm(harm) => self.harm(harm),
            Event::Start => {
                if self.broker.is_none() {
                    self.start();
                }
            }
            Event::Mend => {
                self.trace.note(self.now, || "mended".to_string());
                self.disk.set_faults(|faults| *faults = Faults::default());
                for jobs in &self.jobs {
                    jobs.set_delays(self.plan.delays);
                }
            }
        }
    }

    fn harm(&mut self, index: usize) {
        let harm = self.plan.harms[index].1;
        if self.broker.is_none() || self.draining {
            return;
        }
        self.trace.note(self.now, || format!("harm: {harm:?}"));
        match harm {
            Harm::Crash(mode) => self.crash(mode, mode),
            Harm::CrashInOps(mode, ops) => {
                self.crash_mode = mode;
                let at = self.disk.ops() + ops;
                self.disk.set_faults(|faults| faults.crash_at = Some(at));
            }
            Harm::CrashInCommit(mode) => self.crash_in_commit = Some(mode),
            Harm::Shutdown => {
                // The syncs it waits for may have begun before the drain makes them short.
                let syncs = 4 * self.plan.delays.sync_us.1;
                self.stopping = Some(self.now + 1_000_000 + syncs);
                self.oracle.shutting_down();
                let now = self.clock();
                if let Some(shard) = &mut self.broker {
                    shard.handle_shutdown(now);
                }
            }
            Harm::Drain(us) => {
                if self.stopping.is_some() || self.drained_by.is_some() {
                    return;
                }
                let Some(socket) = self.connect(usize::MAX) else {
                    return;
                };
                let kind = Kind::Drain(us);
                self.type_command(
                    socket,
                    Command {
                        tag: None,
                        quiet: false,
                        kind,
                    },
                );
                let syncs = 4 * self.plan.delays.sync_us.1;
                let network = self.sockets[socket].last_arrival - self.now;
                self.drained_by = Some(self.now + network + us + 1_000_000 + syncs);
            }
            Harm::Full(space) => {
                self.disk.set_faults(|faults| faults.space = space);
                let at = self.now + self.rng.spread(10_000, 5_000_000);
                self.schedule(at, Event::Mend);
            }
            Harm::Errors => {
                let rng = &mut self.rng;
                let which = rng.below(3);
                self.disk.set_faults(|faults| match which {
                    0 => faults.sync_errors_per_100k = 20_000,
                    1 => faults.write_errors_per_100k = 5_000,
                    _ => {
                        faults.read_errors_per_100k = 5_000;
                        faults.name_errors_per_100k = 20_000;
                    }
                });
                let at = self.now + self.rng.spread(10_000, 5_000_000);
                self.schedule(at, Event::Mend);
            }
            Harm::Clock(us) => self.set_wall_offset(self.wall_offset + us),
            Harm::SlowSync(us) => {
                for jobs in &self.jobs {
                    let delays = crate::storage::Delays {
                        sync_us: (us / 2, us),
                        ..self.plan.delays
                    };
                    jobs.set_delays(delays);
                }
                let at = self.now + us;
                self.schedule(at, Event::Mend);
            }
        }
    }

    /// One turn of the event loop.
    fn turn(&mut self) {
        for jobs in &self.jobs {
            jobs.advance(self.now);
        }
        let now = self.clock();
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].open && self.sockets[socket].readable {
                self.feed(socket);
            }
            if self.went_down() {
                return;
            }
        }
        let Some(shard) = &mut self.broker else {
            return;
        };
        shard.handle_turn_end(now);
        if self.went_down() {
            return;
        }
        loop {
            let Some(shard) = &mut self.broker else {
                return;
            };
            if let Some(key) = shard.poll_output() {
                if let Some(socket) = self.find(key) {
                    self.write(socket);
                }
            } else if let Some(key) = shard.poll_resume() {
                if let Some(socket) = self.find(key) {
                    self.sockets[socket].readable = true;
                }
            } else if let Some(key) = shard.poll_close() {
                if let Some(socket) = self.find(key) {
                    self.close(socket);
                }
            } else if let Some(key) = shard.poll_unacknowledged() {
                if let Some(socket) = self.find(key) {
                    self.acknowledge(socket);
                }
            } else {
                break;
            }
            if self.went_down() {
                return;
            }
        }
        if let Some(broker) = &mut self.broker {
            broker.post(self.now);
        }
        self.stopped();
    }

    /// Whether the disk's planned crash was reached: then the process is gone with all it did
    /// since its last output.
    fn went_down(&mut self) -> bool {
        if !self.disk.crashed() {
            return false;
        }
        self.crash(self.crash_mode, self.crash_mode);
        true
    }

    fn stopped(&mut self) {
        let stop = self
            .broker
            .as_mut()
            .and_then(|broker| broker.poll_stopped());
        match stop {
            None => {
                let late = |limit: u64| self.now > limit;
                let faulty = !self.plan.harms.iter().all(|harm| harm.1.harmless());
                let ends = self.stopping.or(self.drained_by);
                if ends.is_some_and(late) && !faulty {
                    self.oracle
                        .spun("a shutdown takes more than 1 s and a sync".to_string());
                }
            }
            Some(Stop::Finished) => {
                self.trace.note(self.now, || "shut down".to_string());
                self.crash(Crash::Kill, Crash::Kill);
            }
            Some(Stop::Failed(text)) => {
                self.trace.note(self.now, || format!("gave up: {text}"));
                if self.disk_failures() == 0 {
                    self.oracle
                        .spun(format!("it gave up on a disk that never failed: {text}"));
                }
                // What the failed sync lost was never confirmed at `disk`; `os` may have lost it.
                self.crash(Crash::Kill, Crash::Power);
            }
        }
    }

    /// Operations of the disk that failed so far.
    fn disk_failures(&self) -> u64 {
        let all = [
            Op::Open,
            Op::Read,
            Op::Write,
            Op::Create,
            Op::Sync,
            Op::SyncDir,
            Op::Rename,
            Op::Remove,
            Op::CreateDir,
        ];
        all.iter().map(|op| self.disk.failures(*op)).sum()
    }
}

impl Harm {
    /// It doesn't touch the disk's promises.
    fn harmless(self) -> bool {
        matches!(
            self,
            Harm::Crash(_) | Harm::Shutdown | Harm::Drain(_) | Harm::Clock(_)
        )
    }
}

/// How full a disk gets, for plans.
pub const FULL: [Space; 2] = [Space::NoGrowth, Space::NoWrite];
