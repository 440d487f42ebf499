//! The result of a run, for people and as JSON.

use hdrhistogram::Histogram;

use crate::cli::json::Object;

use super::control::Server;
use super::driver::Outcome;
use super::machine;
use super::plan::{Consume, Mode, Plan, Protocol};
use super::seen::Seen;
use super::wire::Receipts;

/// The percentiles told, with their JSON names.
const PERCENTILES: [(f64, &str); 5] = [
    (50.0, "p50"),
    (90.0, "p90"),
    (99.0, "p99"),
    (99.9, "p999"),
    (99.99, "p9999"),
];

/// One finished run.
pub struct Report<'a> {
    /// What was to be done.
    pub plan: &'a Plan,
    /// With whom.
    pub server: &'a Server,
    /// What came of it.
    pub outcome: &'a Outcome,
    /// Which messages arrived.
    pub seen: &'a Seen,
    /// How many were confirmed, those of a queue filled before included.
    pub expected: u64,
    /// How many must be in the queue at the end.
    pub left: u64,
    /// How many the server says are there; `None` when it was not asked or cannot tell.
    pub held: Option<u64>,
}

impl Report<'_> {
    /// Everything that was wrong; empty for a good run.
    pub fn faults(&self) -> Vec<String> {
        let counts = &self.outcome.total;
        let mut faults = Vec::new();
        let mut fault = |count: u64, what: &str| {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        };
        if self.plan.mode != Mode::Publish {
            fault(
                self.expected.saturating_sub(self.seen.count()),
                "messages never arrived",
            );
        }
        if let Some(held) = self.held {
            fault(
                self.left.saturating_sub(held),
                "messages were confirmed and are not there",
            );
            fault(
                held.saturating_sub(self.left),
                "messages are there and should not be",
            );
        }
        fault(self.seen.duplicates(), "messages arrived again");
        fault(counts.again, "messages were marked as delivered before");
        fault(counts.foreign, "messages were damaged or not of this run");
        fault(counts.stale, "acks were too late");
        fault(
            counts.level_changes,
            "receipts had another level than the first",
        );
        if self.plan.producers == 1 && self.plan.consumers == 1 {
            fault(self.seen.out_of_order(), "messages overtook others");
        }
        if self.outcome.stalled {
            faults.push("the server has stopped answering".to_owned());
        }
        if let Some(line) = &self.outcome.refused {
            faults.push(format!("the server refused: {line}"));
        }
        faults
    }

    /// Messages that the mode is about, while measuring: what rates and CPU time refer to.
    fn messages(&self) -> u64 {
        match self.plan.mode {
            Mode::Publish => self.outcome.measured.confirmed,
            _ => self.outcome.measured.delivered,
        }
    }

    fn seconds(&self) -> f64 {
        self.outcome.measured_ns as f64 / 1e9
    }

    fn rate(&self, messages: u64) -> f64 {
        messages as f64 / self.seconds()
    }

    /// Microseconds of server CPU for each message; `NaN` when unknown.
    fn server_us_per_message(&self) -> f64 {
        let used = self
            .outcome
            .server_cpu_ns
            .map_or(f64::NAN, |ns| ns as f64 / 1e3);
        used / self.messages() as f64
    }

    /// The part of one core that was used.
    fn cores(&self, cpu_ns: u64) -> f64 {
        cpu_ns as f64 / self.outcome.measured_ns as f64
    }

    fn settings(&self) -> String {
        let plan = self.plan;
        let mut text = format!("{}, {}-byte bodies", plan.mode.word(), plan.body_bytes);
        if !self.outcome.level.is_empty() {
            text += &format!(", receipts '{}'", self.outcome.level);
        }
        if plan.mode != Mode::Pull {
            text += &format!(", {} producers", plan.producers);
        }
        if plan.mode != Mode::Publish {
            let how = match (plan.protocol, plan.consume) {
                (Protocol::Redis, Consume::Pull) => "LPOP",
                (Protocol::Redis, Consume::Push) => "SUBSCRIBE",
                (Protocol::Streams, _) => "XREADGROUP",
                (Protocol::Beanstalkd, _) => "reserve",
                (Protocol::Amqp, _) => "basic.consume",
                (Protocol::Frames, _) => "fixed frames",
                (Protocol::Text | Protocol::Nats, Consume::Push) => "SUB",
                (Protocol::Text | Protocol::Nats, Consume::Pull) => "PULL",
            };
            text += &format!(", {} consumers by {how}", plan.consumers);
        }
        text += &format!(", window {}, batch {}", plan.window, plan.batch);
        if plan.pull_batch != plan.batch && plan.consume == Consume::Pull {
            text += &format!(", at most {} a pull", plan.pull_batch);
        }
        let acks = matches!(plan.protocol, Protocol::Text | Protocol::Streams);
        if acks && plan.mode != Mode::Publish {
            text += &format!(", ack batch {}", plan.ack_batch);
            text += if plan.quiet_acks { ", quiet acks" } else { "" };
        }
        if matches!(plan.mode, Mode::EndToEnd | Mode::FanOut) && plan.rate.is_none() {
            text += &format!(", backlog {}", plan.backlog);
        }
        match plan.rate {
            Some(rate) => text + &format!(", open loop at {rate}/s"),
            None => text + ", closed loop",
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let outcome = self.outcome;
        let mut lines = vec![
            format!("run        {}", self.settings()),
            format!("server     {} at {}", self.server.version, self.plan.addr),
            format!("machine    {}", machine::describe()),
            format!(
                "measured   {:.3} s after {:.3} s of warm-up",
                self.seconds(),
                self.plan.warmup_us as f64 / 1e6
            ),
        ];
        if let Some(label) = &self.plan.label {
            lines.insert(0, format!("label      {label}"));
        }
        let mut flow = |word: &str, messages: u64, histogram: Option<&Histogram<u64>>| {
            if messages == 0 {
                return;
            }
            let mb = self.rate(messages) * self.plan.body_bytes as f64 / 1e6;
            lines.push(format!(
                "{word:<10} {:>12} msg/s {mb:>9.1} MB/s",
                grouped(self.rate(messages))
            ));
            lines.extend(histogram.filter(|it| !it.is_empty()).map(percentiles));
        };
        flow(
            "published",
            outcome.measured.confirmed,
            Some(outcome.receipts.histogram()),
        );
        let both = matches!(self.plan.mode, Mode::EndToEnd | Mode::FanOut);
        let arrivals = both.then(|| outcome.arrivals.histogram());
        flow("delivered", outcome.measured.delivered, arrivals);
        flow("acked", outcome.measured.acked, None);
        if let Some(cpu_ns) = outcome.server_cpu_ns {
            lines.push(format!(
                "server CPU {:.3} us a message, {:.0} % of a core",
                self.server_us_per_message(),
                self.cores(cpu_ns) * 100.0
            ));
        }
        let generator = self.cores(outcome.generator_cpu_ns) * 100.0;
        lines.push(format!("generator  {generator:.0} % of a core"));
        lines.push(self.verdict());
        lines.join("\n")
    }

    fn verdict(&self) -> String {
        let faults = self.faults();
        if !faults.is_empty() {
            return format!("FAULTS     {}", faults.join("; "));
        }
        format!("verified   {} messages, {}", self.expected, self.proof())
    }

    /// What was seen of every message.
    fn proof(&self) -> &'static str {
        match (self.plan.mode, self.held, self.server.dialect.receipts()) {
            (Mode::Publish, Some(_), _) => "one receipt each, and all are in the queue",
            (Mode::Publish, None, Receipts::Each) => "one receipt each",
            (Mode::Publish, None, _) => "which the server has read",
            (Mode::FanOut, ..) => "each arrived exactly once at every consumer",
            (_, Some(_), _) => "each arrived exactly once, and none is left in the queue",
            _ => "each arrived exactly once",
        }
    }

    /// For programs: one line.
    pub fn json(&self) -> String {
        let (plan, outcome) = (self.plan, self.outcome);
        let mut object = Object::default();
        object
            .string("mode", plan.mode.word())
            .string("protocol", plan.protocol.word())
            .string("server", &self.server.version)
            .string("machine", &machine::describe())
            .string("label", plan.label.as_deref().unwrap_or(""))
            .string("settings", &self.settings())
            .string("level", &outcome.level)
            .count("body_bytes", plan.body_bytes as u64)
            .count("producers", plan.producers as u64)
            .count("consumers", plan.consumers as u64)
            .count("window", plan.window)
            .count("batch", plan.batch)
            .count("pull_batch", plan.pull_batch)
            .count("ack_batch", plan.ack_batch as u64)
            .count("backlog", plan.backlog)
            .count("rate_target", plan.rate.unwrap_or(0))
            .number("warmup_s", plan.warmup_us as f64 / 1e6)
            .number("measured_s", self.seconds())
            .count("messages", self.messages())
            .number("messages_per_s", self.rate(self.messages()))
            .number("published_per_s", self.rate(outcome.measured.confirmed))
            .number("delivered_per_s", self.rate(outcome.measured.delivered))
            .number("acked_per_s", self.rate(outcome.measured.acked))
            .number("server_cpu_us_per_message", self.server_us_per_message())
            .number(
                "server_cpu_cores",
                outcome
                    .server_cpu_ns
                    .map_or(f64::NAN, |cpu_ns| self.cores(cpu_ns)),
            )
            .number("generator_cpu_cores", self.cores(outcome.generator_cpu_ns))
            .number(
                "receipt_p50_us",
                outcome.receipts.histogram().value_at_percentile(50.0) as f64 / 1e3,
            )
            .raw("receipt_us", &latencies(outcome.receipts.histogram()))
            .raw("arrival_us", &latencies(outcome.arrivals.histogram()))
            .number(
                "first_tenth_per_s",
                outcome.first_tenth_ns.map_or(f64::NAN, |ns| {
                    self.expected as f64 / 10.0 / (ns.max(1) as f64 / 1e9)
                }),
            )
            .string(
                "proof",
                if self.faults().is_empty() {
                    self.proof()
                } else {
                    ""
                },
            )
            .count("total_confirmed", outcome.total.confirmed)
            .count("total_arrived", self.seen.count())
            .string("faults", &self.faults().join("; "));
        object.finish()
    }
}

/// One line of latencies.
pub fn percentiles(histogram: &Histogram<u64>) -> String {
    let mut line = "           ".to_owned();
    for (percentile, name) in PERCENTILES {
        let name = name.replace("p999", "p99.9");
        line += &format!(
            "{name} {}  ",
            time(histogram.value_at_percentile(percentile))
        );
    }
    line + &format!("max {}", time(histogram.max()))
}

/// Latencies as a JSON object, microseconds.
pub fn latencies(histogram: &Histogram<u64>) -> String {
    let mut object = Object::default();
    object.count("count", histogram.len());
    for (percentile, name) in PERCENTILES {
        object.number(name, histogram.value_at_percentile(percentile) as f64 / 1e3);
    }
    object.number("mean", histogram.mean() / 1e3);
    object.number("max", histogram.max() as f64 / 1e3);
    object.finish()
}

/// Nanoseconds with the unit that fits.
fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{:.1} us", ns as f64 / 1e3),
        10_000..10_000_000 => format!("{:.0} us", ns as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.0} ms", ns as f64 / 1e6),
        _ => format!("{:.0} s", ns as f64 / 1e9),
    }
}

/// A whole number with a space before each group of three digits.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(grouped(0.4), "0");
        assert_eq!(grouped(999.0), "999");
        assert_eq!(grouped(1_234_567.0), "1 234 567");
        assert_eq!(time(1_500), "1.5 us");
        assert_eq!(time(54_000), "54 us");
        assert_eq!(time(12_000_000), "12 ms");
    }
}
