//! The broker's counts in Prometheus' text format, version 0.0.4. Base units: seconds and bytes.

use super::exposition::{SERIES_MAX, Text, WITHOUT_SERIES};
use crate::broker::id::Level;
use crate::broker::queue::{Counters, Queue, QueueKey};
use crate::broker::reply::ErrorCode;
use crate::log::disk::Storage;
use crate::shard::{Now, Shard};

/// Codes with which a publish is refused for what the broker or the queue can take.
const REJECTIONS: [ErrorCode; 7] = [
    ErrorCode::Full,
    ErrorCode::Limit,
    ErrorCode::Paused,
    ErrorCode::Mem,
    ErrorCode::Disk,
    ErrorCode::Draining,
    ErrorCode::TooBig,
];

/// What is counted of each queue: the metric, what it means, where it stands.
type Counted = (&'static str, &'static str, fn(&Counters) -> u64);
const COUNTED: [Counted; 10] = [
    ("published", "Messages taken.", |of| of.published),
    ("delivered", "Messages handed out, again ones too.", |of| {
        of.delivered
    }),
    ("redelivered", "Messages handed out again.", |of| {
        of.redelivered
    }),
    ("acked", "Messages settled by their consumers.", |of| {
        of.acked
    }),
    ("nacked", "Messages given back by their consumers.", |of| {
        of.nacked
    }),
    ("expired", "Messages whose time to live has ended.", |of| {
        of.expired
    }),
    ("dead", "Messages moved to the dead-letter queue.", |of| {
        of.dead
    }),
    (
        "deduplicated",
        "Publishes answered with an earlier one.",
        |of| of.deduplicated,
    ),
    ("dropped", "Messages freed to make room.", |of| of.dropped),
    (
        "damaged",
        "Messages kept back because the disk had changed them.",
        |of| of.damaged,
    ),
];

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The name of a queue or group as server lines print it.
fn label(queue: &Queue) -> String {
    String::from_utf8_lossy(&queue.printed).into_owned()
}

impl<S: Storage> Shard<S> {
    /// The page `/metrics`.
    pub(super) fn metrics(&mut self, now: Now) -> Vec<u8> {
        let mut text = Text::default();
        text.metric("ringmq_build_info", "gauge", "The version that runs.");
        let version = env!("CARGO_PKG_VERSION");
        text.sample("ringmq_build_info", &[("version", version)], 1);
        let memory = self.engine.count_memory(usize::MAX);
        self.broker_metrics(&mut text, memory, now);
        self.log_metrics(&mut text);
        self.time_metrics(&mut text);
        self.queue_metrics(&mut text, now);
        text.into_bytes()
    }

    fn broker_metrics(&self, text: &mut Text, memory: usize, now: Now) {
        let totals = &self.totals;
        let uptime = seconds(now.us.saturating_sub(totals.started_us));
        let help = "Time since the start.";
        text.single("ringmq_uptime_seconds", "gauge", help, uptime);
        let help = "Connections now open.";
        text.single("ringmq_connections", "gauge", help, self.connections());
        let counters = [
            (
                "ringmq_connections_total",
                "Connections taken.",
                totals.connections,
            ),
            (
                "ringmq_connections_refused_total",
                "Connections closed because there were too many.",
                totals.connections_refused,
            ),
            ("ringmq_bytes_in_total", "Bytes received.", totals.bytes_in),
            ("ringmq_bytes_out_total", "Bytes sent.", totals.bytes_out),
            (
                "ringmq_commands_total",
                "Commands and requests run.",
                totals.commands,
            ),
        ];
        for (name, help, value) in counters {
            text.single(name, "counter", help, value);
        }
        let name = "ringmq_errors_total";
        text.metric(name, "counter", "Commands refused, by the word they got.");
        for (code, count) in totals.by_code() {
            text.sample(name, &[("code", code.word())], count);
        }
        let name = "ringmq_messages_rejected_total";
        let help = "Publishes refused for what the broker or the queue can take.";
        text.metric(name, "counter", help);
        for code in REJECTIONS {
            let counted = totals.by_code().find(|(counted, _)| *counted == code);
            let count = counted.map_or(0, |(_, count)| count);
            text.sample(name, &[("code", code.word())], count);
        }
        let conns: usize = self.conns.iter().map(|(_, conn)| conn.memory()).sum();
        let messages = self.engine.message_memory();
        let name = "ringmq_memory_bytes";
        text.metric(name, "gauge", "Memory held, by what it is for.");
        let rest = memory.saturating_sub(messages);
        text.sample(name, &[("pool", "messages")], messages);
        text.sample(name, &[("pool", "index")], rest);
        text.sample(name, &[("pool", "connections")], conns);
        text.sample(name, &[("pool", "buffers")], self.pool.bytes());
        let help = "Memory that may be used.";
        let budget = self.memory_budget_bytes;
        text.single("ringmq_memory_budget_bytes", "gauge", help, budget);
    }

    fn log_metrics(&self, text: &mut Text) {
        let Some(log) = &self.engine.log else { return };
        let stats = log.stats();
        let help = "Bytes of records on the disk.";
        text.single("ringmq_log_bytes", "gauge", help, stats.bytes);
        let name = "ringmq_log_segments";
        text.metric(name, "gauge", "Files of the log.");
        text.sample(name, &[("state", "log")], stats.segments);
        text.sample(name, &[("state", "kept")], stats.segments_kept);
        text.sample(name, &[("state", "spare")], stats.segments_spare);
        let counters = [
            (
                "ringmq_log_records_total",
                "Records written, one for each turn with something to keep.",
                stats.records,
            ),
            (
                "ringmq_log_written_bytes_total",
                "Bytes written to the log.",
                stats.bytes_written,
            ),
            (
                "ringmq_log_damaged_total",
                "Messages found damaged when they were read.",
                stats.damaged,
            ),
            (
                "ringmq_log_checkpoints_total",
                "Checkpoints finished.",
                stats.checkpoints,
            ),
            (
                "ringmq_log_compactions_total",
                "Compactions finished.",
                stats.compactions,
            ),
        ];
        for (name, help, value) in counters {
            text.single(name, "counter", help, value);
        }
        let help = "Time that syncs to the disk take.";
        text.histogram(
            "ringmq_fsync_seconds",
            help,
            &stats.sync_us.within,
            stats.sync_us.sum,
            1e6,
        );
    }

    fn time_metrics(&self, text: &mut Text) {
        let times = &self.engine.times;
        let (dwell, service, turn) = (&times.dwell_ms, &times.service_us, &times.turn_us);
        let name = "ringmq_dwell_seconds";
        let help = "Time from publish to the first delivery, of one message of each hand-out.";
        text.histogram(name, help, &dwell.within, dwell.sum, 1e3);
        let name = "ringmq_service_seconds";
        let help = "Time from delivery to ack, of one message of each hand-out.";
        text.histogram(name, help, &service.within, service.sum, 1e6);
        let name = "ringmq_loop_turn_seconds";
        let help = "Time that turns of the event loop take, without their sleep.";
        text.histogram(name, help, &turn.within, turn.sum, 1e6);
    }

    fn queue_metrics(&mut self, text: &mut Text, now: Now) {
        let exists = |(key, queue): (usize, &Queue)| {
            queue.exists.then(|| (label(queue), QueueKey(key as u32)))
        };
        let mut queues: Vec<_> = self.engine.queues.iter().filter_map(exists).collect();
        queues.sort_unstable();
        let help = "Queues and groups.";
        text.single("ringmq_queues", "gauge", help, queues.len());
        let hidden = queues.len().saturating_sub(SERIES_MAX);
        let help = "Queues and groups that have no series of their own.";
        text.single(WITHOUT_SERIES, "gauge", help, hidden);
        queues.truncate(SERIES_MAX);
        for (word, help, of) in COUNTED {
            let name = format!("ringmq_messages_{word}_total");
            text.metric(&name, "counter", help);
            for (label, key) in &queues {
                let value = of(&self.engine.queue(*key).counters);
                text.sample(&name, &[("queue", label)], value);
            }
        }
        let name = "ringmq_queue_messages";
        text.metric(name, "gauge", "Messages now in the queue.");
        for (label, key) in &queues {
            let queue = self.engine.queue(*key);
            let states = [
                ("ready", queue.ready()),
                ("leased", queue.leased()),
                ("delayed", queue.delayed()),
                ("locked", queue.locked()),
                ("dead", queue.dead),
            ];
            for (state, count) in states {
                text.sample(name, &[("queue", label), ("state", state)], count);
            }
        }
        let name = "ringmq_queue_bytes";
        text.metric(name, "gauge", "Bytes of the bodies that are not settled.");
        for (label, key) in &queues {
            let queue = self.engine.queue(*key);
            let bytes = match queue.group {
                None => queue.index.bytes(),
                Some(_) => queue.unsettled_bytes(),
            };
            let place = match queue.settings.durable {
                Level::None => "memory",
                _ => "log",
            };
            text.sample(name, &[("queue", label), ("where", place)], bytes);
        }
        let name = "ringmq_queue_consumers";
        text.metric(name, "gauge", "Subscriptions now.");
        for (label, key) in &queues {
            let consumers = self.engine.queue(*key).consumers;
            text.sample(name, &[("queue", label)], consumers);
        }
        let name = "ringmq_queue_oldest_seconds";
        text.metric(name, "gauge", "Age of the oldest message that is ready.");
        for (label, key) in &queues {
            let oldest_ms = self.oldest_ms(*key, now);
            text.sample(name, &[("queue", label)], seconds(oldest_ms * 1000));
        }
    }
}
