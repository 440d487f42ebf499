//! STATS: what the broker has counted and holds.

use std::fmt::Write;

use super::conn::Life;
use super::peers::GUEST;
use super::session::Asker;
use super::{ConnKey, Now, Shard};
use crate::broker::command::StatsScope;
use crate::broker::id::Level;
use crate::broker::queue::Counters;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::log::disk::Storage;
use crate::protocol::text::encode;

/// Counted since the broker's start.
#[derive(Debug)]
#[allow(missing_docs)]
pub(super) struct Totals {
    pub started_us: u64,
    pub connections: u64,
    pub connections_refused: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub commands: u64,
    pub errors: u64,
    /// Errors by code, in the order of first use.
    by_code: Vec<(ErrorCode, u64)>,
    pub transactions: Transactions,
}

/// How transactions ended. Those begun are these and those that are still open.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    pub begun: u64,
    pub committed: u64,
    /// By `ABORT`, `QUIT` or the end of the connection.
    pub aborted: u64,
    /// By an `ERR` inside or of the `COMMIT`.
    pub voided: u64,
}

impl Totals {
    pub(super) fn new(now: Now) -> Totals {
        Totals {
            started_us: now.us,
            connections: 0,
            connections_refused: 0,
            bytes_in: 0,
            bytes_out: 0,
            commands: 0,
            errors: 0,
            by_code: Vec::new(),
            transactions: Transactions::default(),
        }
    }

    /// Errors by code.
    pub(super) fn by_code(&self) -> impl Iterator<Item = (ErrorCode, u64)> {
        self.by_code.iter().copied()
    }

    pub(super) fn count_error(&mut self, code: ErrorCode) {
        self.errors += 1;
        match self
            .by_code
            .iter_mut()
            .find(|(counted, _)| *counted == code)
        {
            Some((_, count)) => *count += 1,
            None => self.by_code.push((code, 1)),
        }
    }
}

impl<S: Storage> Shard<S> {
    /// `STATS`, `STATS q <queue>`, `STATS conns`.
    pub(super) fn stats(
        &mut self,
        asker: Asker<'_>,
        scope: StatsScope<'_>,
        now: Now,
    ) -> Result<(), Error> {
        let text = match scope {
            StatsScope::Broker => self.broker_stats(now),
            StatsScope::Queue(name) => {
                let key = self.described(name)?;
                let mut text = self.describe_queue(key, now);
                let queue = self.engine.queue(key);
                let mut counted = String::new();
                write_counters(&mut counted, &queue.counters);
                let schedules = self.engine.schedules.of(queue.uid).count();
                let _ = writeln!(counted, "schedules={schedules}");
                let _ = writeln!(
                    counted,
                    "memory_bytes={}",
                    queue.memory() + queue.arena.memory()
                );
                let _ = writeln!(counted, "next_id={}", queue.next_id());
                text.extend_from_slice(counted.as_bytes());
                text
            }
            StatsScope::Connections => self.connection_stats(now),
        };
        self.answer(asker, &Reply::Data(&text));
        Ok(())
    }

    fn broker_stats(&mut self, now: Now) -> Vec<u8> {
        let mut text = String::new();
        let memory_bytes = self.engine.count_memory(usize::MAX);
        let totals = &self.totals;
        let mut counted = self.engine.gone;
        let mut messages = [0u64; 5];
        let (mut queues, mut groups, mut unsettled_most) = (0, 0, 0);
        for (_, queue) in &self.engine.queues {
            match &queue.group {
                None => queues += u64::from(queue.exists),
                Some(_) if queue.exists => {
                    groups += 1;
                    unsettled_most = queue.unsettled().max(unsettled_most);
                }
                Some(_) => {}
            }
            counted.add(&queue.counters);
            messages[0] += queue.ready();
            messages[1] += queue.leased();
            messages[2] += queue.delayed();
            messages[3] += queue.index.bytes();
            messages[4] += queue.locked();
        }
        let open = self.conns.iter().filter(|(_, conn)| {
            let open = conn.transaction.as_ref();
            conn.guest.is_none() && open.is_some_and(|open| !open.is_void())
        });
        let level = self.engine.defaults.durable;
        let lines = [
            ("uptime_ms", (now.us - totals.started_us) / 1000),
            ("draining", u64::from(self.is_draining())),
            ("connections", self.connections() as u64),
            ("connections_total", totals.connections),
            ("connections_refused_total", totals.connections_refused),
            ("bytes_in_total", totals.bytes_in),
            ("bytes_out_total", totals.bytes_out),
            ("commands_total", totals.commands),
            ("errors_total", totals.errors),
            ("queues", queues),
            ("groups", groups),
            ("group_unsettled_most", unsettled_most),
            ("requests", self.requests.len() as u64),
            ("transactions", (open.count() + self.commits_open()) as u64),
            ("transactions_begun_total", totals.transactions.begun),
            (
                "transactions_committed_total",
                totals.transactions.committed,
            ),
            ("transactions_aborted_total", totals.transactions.aborted),
            ("transactions_voided_total", totals.transactions.voided),
            ("schedules", self.engine.schedules.iter().count() as u64),
            ("live_subscriptions", self.live.len() as u64),
            ("live_given_total", self.live.given_total),
            ("live_dropped_total", self.live.dropped_total),
            ("ready", messages[0]),
            ("leased", messages[1]),
            ("delayed", messages[2]),
            ("locked", messages[4]),
            ("bytes", messages[3]),
            ("memory_bytes", memory_bytes as u64),
            ("memory_budget_bytes", self.memory_budget_bytes as u64),
            ("incarnation", self.engine.incarnation),
        ];
        let _ = writeln!(text, "server=ringmq/{}", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(text, "durable={}", level.setting());
        for (key, value) in lines {
            let _ = writeln!(text, "{key}={value}");
        }
        write_counters(&mut text, &counted);
        for (code, count) in &totals.by_code {
            let _ = writeln!(text, "errors_total.{}={count}", code.word());
        }
        self.write_log_stats(&mut text);
        text.into_bytes()
    }

    fn write_log_stats(&self, text: &mut String) {
        let Some(log) = &self.engine.log else { return };
        let stats = log.stats();
        let lines = [
            ("log_bytes", stats.bytes),
            ("log_segments", stats.segments as u64),
            ("log_segments_kept", stats.segments_kept as u64),
            ("log_segments_spare", stats.segments_spare as u64),
            ("log_records_total", stats.records),
            ("log_bytes_written_total", stats.bytes_written),
            ("log_syncs_total", stats.syncs),
            ("log_syncs_gathered_total", stats.syncs_gathered),
            ("log_syncs_in_vain_total", stats.syncs_in_vain),
            ("log_sync_us_max", stats.sync_us_max),
            ("log_reads_total", stats.reads),
            ("log_damaged_total", stats.damaged),
            ("log_scrubbed_bytes_total", stats.scrubbed_bytes),
            ("log_scrub_damaged_total", stats.scrub_damaged),
            ("log_checkpoints_total", stats.checkpoints),
            ("log_compactions_total", stats.compactions),
        ];
        for (key, value) in lines {
            let _ = writeln!(text, "{key}={value}");
        }
    }

    fn connection_stats(&mut self, now: Now) -> Vec<u8> {
        let mut text = Vec::new();
        let (shards, me) = self.shards();
        for (slot, conn) in &self.conns {
            let of_queues = conn
                .rare
                .waits
                .iter()
                .filter(|wait| wait.subscription)
                .count();
            let subscriptions = of_queues + conn.rare.live.len();
            let leased: u32 = self.engine.leases.held(conn.holder)
                + conn
                    .rare
                    .waits
                    .iter()
                    .filter_map(|wait| self.waiters.holder_of(wait.waiter))
                    .map(|holder| self.engine.leases.held(holder))
                    .sum::<u32>();
            let waiting = conn.rare.waits.len() - of_queues;
            if let Some(guest) = &conn.guest {
                let (home, key) = guest.home;
                let id = shown(key, (shards, home));
                let line = format!(
                    "{GUEST}{id} leased={leased} subscriptions={subscriptions} waiting={waiting}\n"
                );
                text.extend_from_slice(line.as_bytes());
                continue;
            }
            let id = shown(self.key(slot), (shards, me));
            text.extend_from_slice(format!("conn={id} peer={} name=", conn.peer).as_bytes());
            encode::typed(&mut text, &conn.rare.name);
            let rest = format!(
                " leased={leased} subscriptions={subscriptions} waiting={waiting} unsent_bytes={} idle_ms={}\n",
                conn.unsent(),
                now.us.saturating_sub(conn.heard_us) / 1000
            );
            text.extend_from_slice(rest.as_bytes());
        }
        text
    }

    /// `KILL conn`: closes a connection at once, what it was not sent yet is dropped.
    pub(super) fn kill(
        &mut self,
        asker: Asker<'_>,
        (slot, generation): (u32, u32),
        now: Now,
    ) -> Result<(), Error> {
        let slot = slot / self.shards().0;
        let key = ConnKey { slot, generation };
        let is_own = |slot: &usize| self.conns[*slot].guest.is_none();
        let Some(slot) = self.slot(key).filter(is_own) else {
            let text = "there is no such connection any more: STATS conns lists them";
            return Err(Error::new(ErrorCode::Stale, text));
        };
        if !asker.quiet || slot == asker.slot {
            self.answer(asker, &Reply::Ok);
        }
        if slot == asker.slot {
            self.end_interests(slot, now);
            self.conns[slot].life = Life::Closing;
        } else {
            self.remove(slot, now);
            self.closing.push_back(key);
        }
        Ok(())
    }

    /// The level at which queues made without settings store.
    pub fn default_level(&self) -> Level {
        self.engine.defaults.durable
    }
}

/// How people name a connection: its place, which tells its shard too, and its generation.
fn shown(key: ConnKey, (shards, shard): (u32, u32)) -> String {
    format!("{}.{}", key.slot * shards + shard, key.generation)
}

fn write_counters(text: &mut String, counters: &Counters) {
    let lines = [
        ("published_total", counters.published),
        ("delivered_total", counters.delivered),
        ("redelivered_total", counters.redelivered),
        ("acked_total", counters.acked),
        ("nacked_total", counters.nacked),
        ("expired_total", counters.expired),
        ("dead_total", counters.dead),
        ("deduplicated_total", counters.deduplicated),
        ("rejected_total", counters.rejected),
        ("dropped_total", counters.dropped),
        ("damaged_total", counters.damaged),
        ("scheduled_total", counters.scheduled),
    ];
    for (key, value) in lines {
        let _ = writeln!(text, "{key}={value}");
    }
}
