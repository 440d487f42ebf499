//! Prometheus' text format: written metric by metric, and the pages of several shards made into one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};

/// Queues and groups with series of their own at most; those behind them in the order of names are counted by
/// [`WITHOUT_SERIES`].
pub const SERIES_MAX: usize = 1000;
/// The metric that counts the others.
pub const WITHOUT_SERIES: &str = "ringmq_queues_without_series";

/// What is the same for all shards is not added up.
const LARGEST: [&str; 2] = ["ringmq_build_info", "ringmq_uptime_seconds"];

/// Text that grows metric by metric.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }

    /// Begins a metric; its samples follow.
    pub fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A metric of one sample without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.sample(name, &[], value);
    }

    /// Times of which entry n of `within` counts those of at most 2^n, in units of which `per_second` are a second.
    pub fn histogram(&mut self, name: &str, help: &str, within: &[u64], sum: u64, per_second: f64) {
        self.metric(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (power, more) in within.iter().enumerate() {
            count += more;
            // The last one has no upper end.
            if power + 1 < within.len() {
                let end = (1u64 << power) as f64 / per_second;
                self.sample(&bucket, &[("le", &end.to_string())], count);
            }
        }
        self.sample(&bucket, &[("le", "+Inf")], count);
        self.sample(&format!("{name}_sum"), &[], sum as f64 / per_second);
        self.sample(&format!("{name}_count"), &[], count);
    }
}

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Count(u64),
    Seconds(f64),
}

impl Value {
    fn parse(text: &str) -> Value {
        let seconds = || {
            text.parse()
                .expect("a shard writes numbers where they belong")
        };
        text.parse()
            .map_or_else(|_| Value::Seconds(seconds()), Value::Count)
    }

    fn as_seconds(self) -> f64 {
        match self {
            Value::Count(count) => count as f64,
            Value::Seconds(seconds) => seconds,
        }
    }

    fn and(self, other: Value) -> Value {
        match (self, other) {
            (Value::Count(one), Value::Count(two)) => Value::Count(one + two),
            // Times are whole microseconds, which sums of fractions are not.
            _ => Value::Seconds(((self.as_seconds() + other.as_seconds()) * 1e6).round() / 1e6),
        }
    }

    fn max(self, other: Value) -> Value {
        match self.as_seconds() < other.as_seconds() {
            true => other,
            false => self,
        }
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Count(count) => count.fmt(f),
            Value::Seconds(seconds) => seconds.fmt(f),
        }
    }
}

/// One metric of all shards.
#[derive(Debug, Default)]
struct Family<'a> {
    /// Its `HELP` and its `TYPE`.
    about: Vec<&'a str>,
    samples: Vec<(&'a str, Value)>,
    /// Where each series stands among them.
    places: BTreeMap<&'a str, usize>,
}

impl<'a> Family<'a> {
    fn add(&mut self, name: &str, series: &'a str, value: Value) {
        let Some(at) = self.places.get(series) else {
            self.places.insert(series, self.samples.len());
            return self.samples.push((series, value));
        };
        let sum = &mut self.samples[*at].1;
        *sum = match LARGEST.contains(&name) {
            true => sum.max(value),
            false => sum.and(value),
        };
    }
}

/// The queue that a series is of. Names are printed without anything that would have to be escaped.
fn queue_of(series: &str) -> Option<&str> {
    let (_, name) = series.split_once("{queue=\"")?;
    name.split('"').next()
}

/// The pages of several shards as one: what counts is added up, the queues of all are in the order of their names.
pub fn merge(parts: &[&[u8]]) -> Vec<u8> {
    let parts: Vec<_> = parts
        .iter()
        .map(|part| String::from_utf8_lossy(part))
        .collect();
    let mut families: Vec<(&str, Family<'_>)> = Vec::new();
    for part in &parts {
        let mut at = 0;
        for line in part.lines() {
            let Some(about) = line.strip_prefix("# ") else {
                let (series, value) = line.rsplit_once(' ').unwrap_or((line, "0"));
                let (name, family) = &mut families[at];
                family.add(name, series, Value::parse(value));
                continue;
            };
            let name = about.split(' ').nth(1).unwrap_or_default();
            let known = families.iter().position(|(other, _)| *other == name);
            at = known.unwrap_or(families.len());
            if known.is_none() {
                families.push((name, Family::default()));
            }
            let family = &mut families[at].1;
            if !family.about.contains(&line) {
                family.about.push(line);
            }
        }
    }
    order_queues(&mut families);
    let mut text = String::new();
    for (_, family) in families {
        for line in family.about {
            let _ = writeln!(text, "{line}");
        }
        for (series, value) in family.samples {
            let _ = writeln!(text, "{series} {value}");
        }
    }
    text.into_bytes()
}

/// Puts the series of queues in order, and leaves those out that are too many.
fn order_queues(families: &mut [(&str, Family<'_>)]) {
    let samples = families.iter().flat_map(|(_, family)| &family.samples);
    let queues: BTreeSet<&str> = samples.filter_map(|(series, _)| queue_of(series)).collect();
    let first_hidden = queues.iter().nth(SERIES_MAX).copied();
    let more = Value::Count(queues.len().saturating_sub(SERIES_MAX) as u64);
    for (name, family) in families {
        if *name == WITHOUT_SERIES {
            family
                .samples
                .iter_mut()
                .for_each(|(_, value)| *value = value.and(more));
        }
        family.samples.sort_by_key(|(series, _)| queue_of(series));
        if let Some(first_hidden) = first_hidden {
            let is_shown = |series: &str| queue_of(series).is_none_or(|name| name < first_hidden);
            family.samples.retain(|(series, _)| is_shown(series));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page of a shard with these queues and so many messages in each.
    fn page(uptime: f64, queues: &[(&str, u64)], times: &[u64]) -> Vec<u8> {
        let mut text = Text::default();
        text.metric("ringmq_build_info", "gauge", "The version.");
        text.sample("ringmq_build_info", &[("version", "1")], 1);
        text.single("ringmq_uptime_seconds", "gauge", "Time.", uptime);
        text.single("ringmq_queues", "gauge", "Queues.", queues.len());
        text.single(WITHOUT_SERIES, "gauge", "Others.", 0);
        text.metric("ringmq_ready", "gauge", "Messages.");
        for (queue, count) in queues {
            text.sample("ringmq_ready", &[("queue", queue), ("state", "b")], *count);
            text.sample("ringmq_ready", &[("queue", queue), ("state", "a")], 7);
        }
        let sum = times
            .iter()
            .enumerate()
            .map(|(power, count)| count << power);
        text.histogram("ringmq_time", "Times.", times, sum.sum(), 1e6);
        text.into_bytes()
    }

    #[test]
    fn what_counts_is_added_and_queues_stand_in_order() {
        let one = page(2.5, &[("b", 1), ("d%20x", 2)], &[1, 0, 2]);
        let two = page(2.75, &[("a", 3), ("b.c", 4)], &[0, 1, 1]);
        let merged = merge(&[&one, &two]);
        let queues = [("a", 3), ("b", 1), ("b.c", 4), ("d%20x", 2)];
        let wanted = page(2.75, &queues, &[1, 1, 3]);
        assert_eq!(
            String::from_utf8_lossy(&merged),
            String::from_utf8_lossy(&wanted)
        );
    }

    #[test]
    fn a_series_that_one_shard_does_not_have_is_that_of_the_other() {
        let page = |codes: &[(&str, u64)]| {
            let mut text = Text::default();
            text.metric("errors", "counter", "Refused.");
            for (code, count) in codes {
                text.sample("errors", &[("code", code)], *count);
            }
            text.into_bytes()
        };
        let (large, none) = (u64::MAX / 2, page(&[]));
        let (one, two) = (page(&[("A", large)]), page(&[("B", 1), ("A", large)]));
        let merged = merge(&[&none, &one, &two]);
        assert_eq!(merged, page(&[("A", large * 2), ("B", 1)]));
    }

    #[test]
    fn times_are_whole_microseconds() {
        let (mut one, mut two) = (Text::default(), Text::default());
        one.single("sum", "gauge", "Times.", 0.1);
        two.single("sum", "gauge", "Times.", 0.2);
        let merged = merge(&[&one.into_bytes(), &two.into_bytes()]);
        assert!(merged.ends_with(b"\nsum 0.3\n"), "{merged:?}");
    }
}
