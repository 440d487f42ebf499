//! One simulated machine: a broker, its disk, its clients and the network between them, on one
//! clock that jumps from event to event. The broker is driven exactly as the event loop drives it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::IoSlice;

use ringmq::config::{Config, LogConfig};
use ringmq::shard::{ConnKey, Now, Shard, Stop};

use crate::client::{Act, BODY_BYTES_MAX, Client};
use crate::command::{Command, Kind, Level};
use crate::disk::{Crash, Faults, Op, SimDisk, Space};
use crate::oracle::{Oracle, Terms};
use crate::plan::{Harm, Plan};
use crate::rng::Rng;
use crate::storage::{JobsHandle, SimStorage};
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
    key: ConnKey,
    client: usize,
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
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    disk: SimDisk,
    jobs: Option<JobsHandle>,
    shard: Option<Shard<SimStorage>>,
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
    stopping: Option<u64>,
    /// How the machine goes down when the disk's planned crash is reached.
    crash_mode: Crash,
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
            flush_us: LogConfig::default().flush_us,
        };
        let clients: Vec<Client> = (0..plan.clients)
            .map(|n| Client::new(rng.fork(n)))
            .collect();
        World {
            disk: SimDisk::new(rng.next()),
            jobs: None,
            shard: None,
            sockets: Vec::new(),
            current: vec![None; clients.len()],
            clients,
            oracle: Oracle::new(terms),
            now: EPOCH_US,
            events: BinaryHeap::new(),
            order: 0,
            boots: 0,
            spins: 0,
            resting: false,
            draining: false,
            stopping: None,
            crash_mode: Crash::Kill,
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

    fn clock(&self) -> Now {
        Now {
            us: self.now,
            wall_us: self.now,
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
        config.log.segment_bytes = self.plan.segment_bytes;
        config.log.chunk_bytes = self.plan.chunk_bytes;
        config.log.checkpoint_bytes = self.plan.checkpoint_bytes;
        config
    }

    /// Starts the broker. False when it did not come up; then a start is scheduled.
    fn start(&mut self) {
        self.trace.note(self.now, || "start".to_string());
        let seed = self.rng.next();
        let storage = match self.plan.memory {
            true => None,
            false => {
                let delays = self.plan.delays;
                let (storage, jobs) = SimStorage::new(&self.disk, delays, self.now, seed);
                self.jobs = Some(jobs);
                Some(storage)
            }
        };
        if self.rng.chance(self.plan.recovery_crash_per_mille) {
            let at = self.disk.ops() + self.rng.spread(1, 300);
            self.disk.set_faults(|faults| faults.crash_at = Some(at));
        }
        let before = self.disk_failures();
        let opened = Shard::open(&self.config(), storage, self.clock(), seed);
        if self.disk.crashed() {
            drop(opened);
            self.jobs = None;
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
            Ok((shard, found)) => {
                self.boots += 1;
                self.trace.note(self.now, || format!("serving: {found:?}"));
                self.shard = Some(shard);
                self.oracle.started(self.now);
            }
            Err(error) => {
                self.trace.note(self.now, || format!("refused: {error}"));
                self.jobs = None;
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
        self.shard = None;
        self.stopping = None;
        if let Some(jobs) = self.jobs.take() {
            self.sync_us = jobs.take_longest_sync().max(self.plan.delays.sync_us.1);
        }
        self.disk.crash(mode);
        for socket in &mut self.sockets {
            socket.open = false;
        }
        self.current.fill(None);
        self.oracle.crashed(for_os, self.sync_us, self.now);
        let at = self.now + self.rng.spread(1000, 2_000_000);
        self.schedule(at, Event::Start);
    }

    /// Lets things happen until `end`.
    fn run_until(&mut self, end: u64) {
        while self.oracle.violation().is_none() {
            let event = self.events.peek().map(|Reverse(event)| event.0);
            let timeout = self.shard.as_ref().and_then(|shard| shard.poll_timeout());
            let timeout = timeout.map(|at| at + self.rng.below(self.plan.timer_late_us + 1));
            let job = self.jobs.as_ref().and_then(JobsHandle::next_time);
            let work = self.work_pending().then_some(self.now);
            let next = [event, timeout, job, work].into_iter().flatten().min();
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
        self.shard.is_some()
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
                if self.shard.is_none() {
                    self.start();
                }
            }
            Event::Mend => {
                self.trace.note(self.now, || "mended".to_string());
                self.disk.set_faults(|faults| *faults = Faults::default());
                if let Some(jobs) = &self.jobs {
                    jobs.set_delays(self.plan.delays);
                }
            }
        }
    }

    fn harm(&mut self, index: usize) {
        let harm = self.plan.harms[index].1;
        if self.shard.is_none() || self.draining {
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
            Harm::Shutdown => {
                self.stopping = Some(self.now);
                self.oracle.shutting_down();
                let now = self.clock();
                if let Some(shard) = &mut self.shard {
                    shard.handle_shutdown(now);
                }
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
            Harm::SlowSync(us) => {
                if let Some(jobs) = &self.jobs {
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

    fn act(&mut self, client: usize) {
        if self.draining || self.resting {
            return;
        }
        let pause = self.rng.spread(200, self.plan.think_us);
        let at = self.now + pause;
        self.schedule(at, Event::Act(client));
        if self.shard.is_none() || self.stopping.is_some() {
            return;
        }
        let Some(socket) = self.current[client] else {
            self.connect(client);
            return;
        };
        if self.sockets[socket].paused {
            return;
        }
        let theme = self.plan.theme.clone();
        let acts = self.clients[client].act(&theme, &mut self.oracle, self.now);
        for act in acts {
            self.perform(client, socket, act);
        }
    }

    fn connect(&mut self, client: usize) -> Option<usize> {
        let now = self.clock();
        let shard = self.shard.as_mut()?;
        let key = shard.handle_accept("127.0.0.1:1", now)?;
        let socket = self.oracle.connected();
        assert_eq!(
            socket,
            self.sockets.len(),
            "the oracle numbers connections as the world does"
        );
        self.sockets.push(Socket {
            key,
            client,
            open: true,
            flying: VecDeque::new(),
            inbound: VecDeque::new(),
            ends: VecDeque::new(),
            typed: 0,
            fed: 0,
            fin_typed: false,
            fin_arrived: false,
            fin_told: false,
            readable: true,
            last_arrival: self.now,
            paused: false,
            room: usize::MAX,
            blocked: false,
        });
        self.trace
            .note(self.now, || format!("client {client} connects as {socket}"));
        if let Some(current) = self.current.get_mut(client) {
            *current = Some(socket);
            self.clients[client].connected();
        }
        Some(socket)
    }

    fn perform(&mut self, client: usize, socket: usize, act: Act) {
        match act {
            Act::Type(command) => {
                self.type_command(socket, command);
            }
            Act::HalfClose => {
                self.trace
                    .note(self.now, || format!("{socket} half-closes"));
                self.sockets[socket].fin_typed = true;
                let at = self.sockets[socket].last_arrival + 1;
                self.schedule(at, Event::Fin(socket));
            }
            Act::Reset => {
                self.trace.note(self.now, || format!("{socket} resets"));
                self.reset(socket);
                self.current[client] = None;
            }
            Act::Pause(us) => {
                let room = self.rng.spread(1, 20_000) as usize;
                self.sockets[socket].paused = true;
                self.sockets[socket].room = room;
                let at = self.now + us;
                self.schedule(at, Event::Unpause(socket));
            }
        }
    }

    fn reset(&mut self, socket: usize) {
        if !self.sockets[socket].open {
            return;
        }
        self.sockets[socket].open = false;
        let now = self.clock();
        if let Some(shard) = &mut self.shard {
            shard.handle_reset(self.sockets[socket].key, now);
        }
        self.oracle.closed(socket, false, self.now);
    }

    /// Sends a command on its way, in pieces. Gives its number.
    fn type_command(&mut self, socket: usize, command: Command) -> usize {
        let octets = command.typed(&mut self.rng);
        // What closes the connection may do so as soon as enough of it is there.
        let early = matches!(command.kind, Kind::Bad { closes: true, .. });
        let number = self.oracle.typed(socket, command);
        self.trace.note(self.now, || {
            let shown = &octets[..octets.len().min(300)];
            format!(
                "{socket} types {number}: {:?}",
                String::from_utf8_lossy(shown)
            )
        });
        self.sockets[socket].typed += octets.len() as u64;
        let begin = self.sockets[socket].typed - octets.len() as u64;
        let end = if early {
            begin + 1
        } else {
            self.sockets[socket].typed
        };
        self.sockets[socket].ends.push_back((end, number));
        self.sockets[socket].flying.extend(octets.iter().copied());
        let mut left = octets.len();
        while left > 0 {
            let piece = match self.plan.chunk_bytes_max {
                1 => 1,
                most => self.rng.spread(1, most as u64) as usize,
            };
            let piece = match self.rng.chance(self.plan.whole_per_mille) {
                true => left,
                false => piece.min(left),
            };
            let delay = match self.rng.chance(300) {
                true => self.rng.spread(1, self.plan.network_us),
                false => 0,
            };
            let at = self.sockets[socket].last_arrival.max(self.now) + delay;
            self.sockets[socket].last_arrival = at;
            self.schedule(at, Event::Arrive(socket, piece));
            left -= piece;
        }
        number
    }

    /// One turn of the event loop.
    fn turn(&mut self) {
        if let Some(jobs) = &self.jobs {
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
        let Some(shard) = &mut self.shard else {
            return;
        };
        shard.handle_turn_end(now);
        if self.went_down() {
            return;
        }
        loop {
            let Some(shard) = &mut self.shard else {
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
            } else {
                break;
            }
            if self.went_down() {
                return;
            }
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
        let stop = self.shard.as_mut().and_then(|shard| shard.poll_stopped());
        match stop {
            None => {
                let late =
                    |since: u64| self.now > since + 1_000_000 + 4 * self.plan.delays.sync_us.1;
                let faulty = !self.plan.harms.iter().all(|harm| harm.1.harmless());
                if self.stopping.is_some_and(late) && !faulty {
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

    /// The broker is down and a byte of its log rots. It must refuse to start: more was confirmed
    /// behind that byte than could be read. True when it does.
    fn rot(&mut self) -> bool {
        let contents = self.disk.contents();
        let checkpointed = contents.keys().any(|path| path.ends_with(".ckpt"));
        let segment = contents.iter().find(|(path, _)| path.ends_with(".seg"));
        let Some((path, content)) = segment.filter(|_| !checkpointed && self.shard.is_some())
        else {
            return false;
        };
        let used = content.iter().rposition(|octet| *octet != 0).unwrap_or(0);
        let at = self.rng.range(used as u64 / 8, used as u64 / 2) as usize;
        if at < 512 {
            return false;
        }
        let bit = 1 << self.rng.below(8);
        self.trace
            .note(self.now, || format!("rot at {at} of {path}"));
        self.crash(Crash::Kill, Crash::Kill);
        self.disk.damage(path, |octets| octets[at] ^= bit);
        let (storage, _jobs) = SimStorage::new(&self.disk, self.plan.delays, self.now, 1);
        let opened = Shard::open(&self.config(), Some(storage), self.clock(), 1);
        match opened {
            Err(_) => true,
            Ok(_) => {
                self.trace
                    .note(self.now, || "rot was not noticed at start".to_string());
                self.disk.crash(Crash::Kill);
                false
            }
        }
    }

    fn find(&self, key: ConnKey) -> Option<usize> {
        let mut sockets = self.sockets.iter().enumerate().rev();
        sockets
            .find(|(_, socket)| socket.open && socket.key == key)
            .map(|found| found.0)
    }

    fn feed(&mut self, socket: usize) {
        let now = self.clock();
        while !self.sockets[socket].inbound.is_empty() {
            let Some(shard) = &mut self.shard else {
                return;
            };
            let end = &mut self.sockets[socket];
            let Some(space) = shard.receive_space(end.key) else {
                end.readable = false;
                return;
            };
            assert!(!space.is_empty(), "no space is None");
            let count = space.len().min(end.inbound.len());
            for (octet, from) in space.iter_mut().zip(end.inbound.drain(..count)) {
                *octet = from;
            }
            end.fed += count as u64;
            while let Some((at, command)) = end.ends.front().copied() {
                if at > end.fed {
                    break;
                }
                end.ends.pop_front();
                self.trace.note(self.now, || format!("{command} arrives"));
                self.oracle.arrived(command, self.now);
            }
            shard.handle_received(self.sockets[socket].key, count, now);
            if self.disk.crashed() {
                return;
            }
        }
        let end = &mut self.sockets[socket];
        if end.fin_arrived && !end.fin_told && end.flying.is_empty() {
            end.fin_told = true;
            self.oracle.half_closed(socket, self.now);
            if let Some(shard) = &mut self.shard {
                shard.handle_half_close(self.sockets[socket].key, now);
            }
        }
    }

    /// Offers a connection's output to its socket.
    fn write(&mut self, socket: usize) {
        let now = self.clock();
        let key = self.sockets[socket].key;
        loop {
            let Some(shard) = &mut self.shard else {
                return;
            };
            let mut slices = [IoSlice::new(&[]); 64];
            let filled = shard.output(key, &mut slices);
            let offered: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
            if offered == 0 {
                break;
            }
            let room = self.sockets[socket].room;
            let count = offered.min(room);
            if count > 0 {
                let mut octets = Vec::with_capacity(offered);
                slices[..filled]
                    .iter()
                    .for_each(|slice| octets.extend_from_slice(slice));
                octets.truncate(count);
                if room != usize::MAX {
                    self.sockets[socket].room -= count;
                }
                if count < offered {
                    self.oracle.blocked(socket, self.now);
                }
                self.received(socket, &octets);
                let Some(shard) = &mut self.shard else {
                    return;
                };
                let more = shard.handle_sent(key, count, now);
                if count == offered {
                    match more {
                        true => continue,
                        false => break,
                    }
                }
            }
            self.sockets[socket].blocked = true;
            self.oracle.blocked(socket, self.now);
            return;
        }
        self.sockets[socket].blocked = false;
        self.oracle.unblocked(socket, self.now);
    }

    fn received(&mut self, socket: usize, octets: &[u8]) {
        self.trace.note(self.now, || {
            let shown = &octets[..octets.len().min(60000)];
            format!("{socket} is sent {:?}", String::from_utf8_lossy(shown))
        });
        let client = self.sockets[socket].client;
        for (command, line) in self.oracle.received(socket, octets, self.now) {
            if let Some(client) = self.clients.get_mut(client) {
                let command = command.map(|command| self.oracle.command(command));
                client.line(command, &line);
            }
        }
    }

    fn close(&mut self, socket: usize) {
        self.trace.note(self.now, || format!("{socket} is closed"));
        self.sockets[socket].open = false;
        if self.disk_failures() > 0 {
            // It may be giving up: every connection is told what is known, and closed.
            self.oracle.giving_up(socket);
        }
        self.oracle.closed(socket, true, self.now);
        let client = self.sockets[socket].client;
        if let Some(current) = self.current.get_mut(client)
            && *current == Some(socket)
        {
            *current = None;
        }
    }

    /// The end of a run: everything is mended, every client gone, and one consumer reads all there
    /// is, waits for what is leased or delayed, and reads again.
    fn drain(&mut self) {
        self.trace.note(self.now, || "drain".to_string());
        self.draining = true;
        self.disk.set_faults(|faults| *faults = Faults::default());
        self.plan.recovery_crash_per_mille = 0;
        self.plan.delays.sync_us = (100, 2000);
        if let Some(jobs) = &self.jobs {
            jobs.set_delays(self.plan.delays);
        }
        // Subscriptions would be given the same messages again and again while time passes.
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].open && self.oracle.subscribes(socket) {
                self.reset(socket);
            }
        }
        let settled = self.now + 70_000_000;
        self.run_until(settled);
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].paused {
                self.happen(Event::Unpause(socket));
            }
        }
        let settled = self.now + 5_000_000;
        self.run_until(settled);
        self.oracle.stuck(self.now);
        if self.plan.rot && self.oracle.violation().is_none() && self.rot() {
            return;
        }
        for socket in 0..self.sockets.len() {
            if self.sockets[socket].open && self.shard.is_some() {
                self.reset(socket);
            }
        }
        let soon = self.now + 1_000_000;
        self.run_until(soon);
        if self.oracle.violation().is_some() {
            return;
        }
        if self.shard.is_none() {
            self.oracle
                .refused_to_start("it did not come up again".to_string());
            return;
        }
        let Some(socket) = self.connect(usize::MAX) else {
            self.oracle
                .refused_to_start("it takes no connection".to_string());
            return;
        };
        let names = self.oracle.queue_names();
        for queue in &names {
            let settings = vec![crate::command::Setting::Pause(false, false)];
            self.say(
                socket,
                Kind::QSet {
                    queue: queue.clone(),
                    settings,
                },
            );
        }
        for _ in 0..40 {
            for queue in &names {
                while self.drain_some(socket, queue) {}
            }
            match self.oracle.later() {
                _ if self.oracle.violation().is_some() => return,
                None => break,
                Some(at) => {
                    let at = at.max(self.now).min(self.now + 1_000_000_000) + 500_000;
                    self.run_until(at);
                }
            }
        }
        self.oracle.finish(self.now);
    }

    /// Says a command and waits until it is answered.
    fn say(&mut self, socket: usize, kind: Kind) -> usize {
        let command = Command {
            tag: None,
            quiet: false,
            kind,
        };
        let number = self.type_command(socket, command);
        for _ in 0..100 {
            let soon = self.now + 100_000;
            self.run_until(soon);
            if self.oracle.is_answered(number) || self.oracle.violation().is_some() {
                return number;
            }
        }
        self.oracle.stuck(self.now);
        number
    }

    /// Takes messages of a queue and acks them. False when there are none now.
    fn drain_some(&mut self, socket: usize, queue: &str) -> bool {
        let pull = crate::command::Pull {
            sources: vec![queue.to_string()],
            count: 100,
            wait_us: 0,
            lease_us: Some(60_000_000),
            auto: false,
            hold: false,
            bytes: None,
            timestamps: false,
        };
        let pulled = self.say(socket, Kind::Pull(pull));
        let handles = self.oracle.handles_from(pulled);
        if handles.is_empty() || self.oracle.violation().is_some() {
            return false;
        }
        self.say(socket, Kind::Ack(handles));
        self.oracle.violation().is_none()
    }
}

impl Harm {
    /// It doesn't touch the disk's promises.
    fn harmless(self) -> bool {
        matches!(self, Harm::Crash(_) | Harm::Shutdown)
    }
}

/// How full a disk gets, for plans.
pub const FULL: [Space; 2] = [Space::NoGrowth, Space::NoWrite];
