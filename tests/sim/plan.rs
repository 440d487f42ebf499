//! What one seed means: the theme of its clients, the shape of its network and disk, and what
//! goes wrong when.

use crate::client::Theme;
use crate::command::Level;
use crate::dialect::Dialect;
use crate::disk::{Crash, Space};
use crate::rng::Rng;
use crate::storage::Delays;
use crate::world::FULL;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// The process or the machine goes down between two turns.
    Crash(Crash),
    /// It goes down so many disk operations later, in the middle of whatever that is.
    CrashInOps(Crash, u64),
    /// It goes down in one of the first disk operations after the next `COMMIT` has arrived.
    CrashInCommit(Crash),
    /// A graceful end, and a start behind it.
    Shutdown,
    /// `DRAIN` with so many microseconds, and a start behind it.
    Drain(u64),
    /// The disk is full for a while.
    Full(Space),
    /// The disk fails now and then, for a while.
    Errors,
    /// Syncs take about so long for a while, microseconds.
    SlowSync(u64),
    /// The wall clock is set by so many microseconds.
    Clock(i64),
}

/// Everything that a seed decides before the run begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all of it comes from.
    pub seed: u64,
    /// What clients do.
    pub theme: Theme,
    /// How many there are.
    pub clients: u64,
    /// What those speak that come beside them and don't speak the line protocol.
    pub doors: Vec<Dialect>,
    /// After about so many commands it ends.
    pub commands_max: usize,
    /// How long they do it at most, microseconds.
    pub length_us: u64,
    /// Longest pause between two acts of a client, microseconds.
    pub think_us: u64,
    /// Without a data directory.
    pub memory: bool,
    /// How many shards the broker has.
    pub shards: u32,
    /// Longest way of mail between them, microseconds.
    pub mail_us: u64,
    /// Level of queues that nobody defined.
    pub level: Level,
    /// How long background jobs take.
    pub delays: Delays,
    /// What goes wrong, and when after the begin, microseconds.
    pub harms: Vec<(u64, Harm)>,
    /// At the end, a byte of the log rots.
    pub rot: bool,
    /// Of a thousand starts, so many crash in recovery.
    pub recovery_crash_per_mille: u64,
    /// Of a thousand reads and writes, so many are short, and as many interrupted.
    pub short_per_mille: u64,
    /// Largest piece in which octets arrive.
    pub chunk_bytes_max: usize,
    /// Of a thousand pieces, so many are all that is left of a command.
    pub whole_per_mille: u64,
    /// Longest delay of the network, microseconds.
    pub network_us: u64,
    /// How late a timer may be, microseconds.
    pub timer_late_us: u64,
    /// Output limit of a connection, bytes.
    pub send_bytes_max: usize,
    /// Input limit of a turn, bytes.
    pub turn_bytes_max: usize,
    /// Memory that messages and buffers may take, bytes.
    pub memory_budget_bytes: usize,
    /// Size of a log segment, bytes.
    pub segment_bytes: u64,
    /// Size of a chunk of the log in memory, bytes.
    pub chunk_bytes: usize,
    /// Log between checkpoints, bytes.
    pub checkpoint_bytes: u64,
    /// Syncs before one waits until publishers are back; `None` = none does.
    pub gather_after_syncs: Option<u32>,
}

impl Plan {
    /// The same with several shards, and queues on each.
    pub fn with_shards(mut self, shards: u32) -> Plan {
        let rng = &mut Rng::new(self.seed ^ 0x7368_6172);
        self.shards = shards;
        self.mail_us = *rng.pick(&[1, 50, 1_000, 10_000]);
        self.theme.shards = shards;
        for name in ["a", "b", "jobs.x", "odd%20name", "c"] {
            if !self.theme.queues.iter().any(|other| other == name) && rng.chance(600) {
                self.theme.queues.push(name.to_string());
            }
        }
        self
    }

    /// The same with clients who are back before a sync ends, so that syncs wait for them.
    pub fn with_quick_clients(mut self) -> Plan {
        self.gather_after_syncs = Some(0);
        self.think_us = 300;
        self.network_us = self.network_us.min(100);
        self.delays.sync_us = (500, 3_000);
        self.clients = self.clients.max(6);
        self.level = Level::Disk;
        self
    }

    /// The plan of a seed.
    pub fn new(seed: u64) -> Plan {
        let rng = &mut Rng::new(seed ^ 0x706c_616e);
        let memory = rng.chance(100);
        let level = *rng.pick(&[Level::Disk, Level::Disk, Level::Os, Level::None]);
        let length_us = rng.spread(200_000, 8_000_000);
        let sync_most = *rng.pick(&[500, 5_000, 50_000, 2_000_000]);
        let mut plan = Plan {
            seed,
            theme: theme(rng),
            clients: rng.range(1, 6),
            doors: Vec::new(),
            commands_max: rng.spread(60, 1200) as usize,
            length_us,
            think_us: *rng.pick(&[2_000, 20_000, 200_000]),
            memory,
            shards: 1,
            mail_us: 0,
            level,
            delays: Delays {
                sync_us: (50, sync_most),
                other_us: (100, rng.spread(1_000, 100_000)),
            },
            harms: Vec::new(),
            rot: rng.chance(100),
            recovery_crash_per_mille: *rng.pick(&[0, 0, 300, 600]),
            short_per_mille: *rng.pick(&[0, 0, 20, 200]),
            chunk_bytes_max: *rng.pick(&[1, 7, 200, 100_000]),
            whole_per_mille: *rng.pick(&[0, 300, 900, 1000]),
            network_us: rng.spread(10, 20_000),
            timer_late_us: *rng.pick(&[0, 100, 2_000]),
            send_bytes_max: *rng.pick(&[1 << 20, 1 << 20, 64 << 10]),
            turn_bytes_max: *rng.pick(&[256 << 10, 4 << 10]),
            memory_budget_bytes: 1 << 30,
            segment_bytes: *rng.pick(&[64 << 10, 256 << 10, 1 << 20]),
            chunk_bytes: *rng.pick(&[4 << 10, 64 << 10]),
            checkpoint_bytes: *rng.pick(&[20 << 10, 200 << 10, 4 << 20]),
            gather_after_syncs: None,
        };
        if plan.chunk_bytes_max == 1 && plan.whole_per_mille < 900 {
            plan.length_us = plan.length_us.min(500_000);
        }
        if !memory {
            harms(rng, &mut plan);
        } else if rng.chance(300) {
            plan.harms.push((rng.below(length_us), Harm::Shutdown));
        }
        later_additions(&mut Rng::new(seed ^ 0x6d6f_7265), &mut plan);
        let rng = &mut Rng::new(seed ^ 0x746f_7069);
        plan.theme.topics = rng.chance(250);
        plan.theme.requests = rng.chance(150);
        transactions_and_drains(&mut Rng::new(seed ^ 0x7472_616e), &mut plan);
        doors(&mut Rng::new(seed ^ 0x646f_6f72), &mut plan);
        let rng = &mut Rng::new(seed ^ 0x6761_7468);
        plan.gather_after_syncs = *rng.pick(&[Some(0), Some(0), Some(16), None]);
        if plan.theme.topics && rng.chance(400) {
            // Readers that are too slow for what is cast.
            plan.theme.rough = true;
            plan.send_bytes_max = 8 << 10;
        }
        plan
    }
}

/// Clients of other protocols, on the same queues.
fn doors(rng: &mut Rng, plan: &mut Plan) {
    if !rng.chance(400) {
        return;
    }
    for _ in 0..rng.range(1, 3) {
        let kinds = [Dialect::Resp, Dialect::Amqp, Dialect::AmqpConfirmed];
        plan.doors.push(*rng.pick(&kinds));
    }
    // As many clients as before, or nearly.
    plan.clients = plan.clients.saturating_sub(plan.doors.len() as u64).max(1);
}

/// Transactions, with crashes that meet them, and graceful ends with time to settle.
fn transactions_and_drains(rng: &mut Rng, plan: &mut Plan) {
    plan.theme.transactions = rng.chance(350);
    if plan.theme.transactions && !plan.memory && rng.chance(400) {
        for _ in 0..rng.range(2, 6) {
            let mode = *rng.pick(&[Crash::Kill, Crash::Kill, Crash::Power]);
            let harm = Harm::CrashInCommit(mode);
            plan.harms.push((rng.below(plan.length_us), harm));
        }
    }
    if rng.chance(150) {
        let us = rng.spread(1_000, 3_000_000);
        plan.harms
            .push((rng.below(plan.length_us), Harm::Drain(us)));
    }
}

/// What was added when the others had proved themselves: drawn apart, so that most seeds stay
/// what they were.
fn later_additions(rng: &mut Rng, plan: &mut Plan) {
    if rng.chance(100) {
        for _ in 0..rng.range(1, 4) {
            let us = rng.spread(1_000, 3_600_000_000) as i64;
            let us = if rng.chance(500) { us } else { -us };
            plan.harms
                .push((rng.below(plan.length_us), Harm::Clock(us)));
        }
    }
    if rng.chance(100) && !plan.memory {
        plan.memory_budget_bytes = *rng.pick(&[100 << 10, 200 << 10, 500 << 10, 2 << 20]);
        // Every message may have to be read, one after the other.
        plan.delays.other_us.1 = plan.delays.other_us.1.min(2_000);
        if rng.chance(500) {
            // So many messages that whole blocks of the index are spilled.
            plan.theme.batch_max = 150;
            plan.commands_max = plan.commands_max.min(250);
        }
    }
}

fn theme(rng: &mut Rng) -> Theme {
    let names = ["a", "jobs.x", "odd%20name", "b"];
    let count = rng.range(1, 3) as usize;
    let mut some = |per_mille: u64| rng.chance(per_mille);
    Theme {
        queues: names[..count].iter().map(|name| name.to_string()).collect(),
        delays: some(400),
        ttl: some(250),
        priorities: some(300),
        keys: some(250),
        once: some(400),
        auto: some(150),
        limits: some(250),
        removals: some(300),
        resets: some(400),
        pauses: some(150),
        garbage: some(400),
        pushes: some(500),
        levels: some(400),
        quiet: some(400),
        rough: some(500),
        dead_letters: some(400),
        topics: false,
        requests: false,
        transactions: false,
        batch_max: 12,
        shards: 1,
        only: None,
        span_us: *rng.pick(&[50_000, 500_000, 3_000_000]),
    }
}

fn harms(rng: &mut Rng, plan: &mut Plan) {
    let count = match rng.weighted(&[20, 40, 40]) {
        0 => 0,
        1 => 1,
        _ => rng.range(2, 5),
    };
    // A run about the disk's failures, or about crashes, or a bit of everything.
    let weights = match rng.below(4) {
        0 => [0, 0, 0, 5, 3, 3],
        1 => [3, 6, 1, 0, 0, 0],
        2 => [4, 8, 1, 0, 0, 1],
        _ => [3, 6, 1, 1, 1, 1],
    };
    for _ in 0..count {
        let mode = *rng.pick(&[Crash::Kill, Crash::Power, Crash::Power]);
        let harm = match rng.weighted(&weights) {
            0 => Harm::Crash(mode),
            1 => Harm::CrashInOps(mode, rng.spread(1, 200)),
            2 => Harm::Shutdown,
            3 => Harm::Full(*rng.pick(&FULL)),
            4 => Harm::Errors,
            _ => Harm::SlowSync(rng.spread(100_000, 30_000_000)),
        };
        plan.harms.push((rng.below(plan.length_us), harm));
    }
}
