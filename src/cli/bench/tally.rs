//! What was said, counted: receipts, arrivals, acks, their latencies, and what was wrong.

use hdrhistogram::Histogram;

use super::connection::{Role, Work};
use super::seen::Seen;
use super::wire::{Said, Wire};

/// Largest latency told apart, nanoseconds.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// Everything counted since the beginning of a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages with a receipt.
    pub confirmed: u64,
    /// Messages received.
    pub delivered: u64,
    /// Messages whose ack was answered.
    pub acked: u64,
    /// Handles that the server called stale.
    pub stale: u64,
    /// Messages received that said they had been delivered before.
    pub again: u64,
    /// Bodies that were not of this run, or damaged.
    pub foreign: u64,
    /// Receipts whose level was not the first one's.
    pub level_changes: u64,
}

impl Counts {
    /// What was counted after `before`.
    pub fn since(&self, before: &Counts) -> Counts {
        Counts {
            confirmed: self.confirmed - before.confirmed,
            delivered: self.delivered - before.delivered,
            acked: self.acked - before.acked,
            stale: self.stale - before.stale,
            again: self.again - before.again,
            foreign: self.foreign - before.foreign,
            level_changes: self.level_changes - before.level_changes,
        }
    }
}

/// Times from a nanosecond to an hour, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
        .expect("a nanosecond and an hour are good bounds")
}

/// Latencies; equal ones in a row are recorded at once.
#[derive(Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    /// The due time of the messages that are not recorded yet, and how many they are.
    due_ns: u64,
    messages: u64,
}

impl Latencies {
    fn new() -> Latencies {
        Latencies {
            histogram: histogram(),
            due_ns: 0,
            messages: 0,
        }
    }

    /// Notes messages that were due then and are done now.
    #[inline]
    fn note(&mut self, due_ns: u64, messages: u64, now_ns: u64) {
        if due_ns != self.due_ns {
            self.record(now_ns);
            self.due_ns = due_ns;
        }
        self.messages += messages;
    }

    /// Records what was noted; `now_ns` must be the time it was noted at.
    fn record(&mut self, now_ns: u64) {
        if self.messages > 0 {
            let latency = now_ns.saturating_sub(self.due_ns).max(1);
            self.histogram.saturating_record_n(latency, self.messages);
            self.messages = 0;
        }
    }

    /// The recorded latencies, nanoseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// The counts of one part.
#[derive(Debug)]
pub struct Tally<'a> {
    /// Which messages have arrived.
    pub seen: &'a mut Seen,
    /// How many.
    pub counts: Counts,
    /// From due to receipt.
    pub receipts: Latencies,
    /// From due to arrival.
    pub arrivals: Latencies,
    /// Latencies are recorded.
    pub measuring: bool,
    /// Messages that open pulls have asked for.
    pub asked: u64,
    /// The first receipt's level.
    pub level: Vec<u8>,
    /// The first refusal.
    pub refused: Option<String>,
    /// Numbers below this were published.
    pub published: u64,
    /// How often each message arrives: once, or once at each consumer.
    pub copies: u64,
}

impl<'a> Tally<'a> {
    /// At the beginning of a part.
    pub fn new(seen: &'a mut Seen, published: u64, copies: u64) -> Tally<'a> {
        Tally {
            seen,
            counts: Counts::default(),
            receipts: Latencies::new(),
            arrivals: Latencies::new(),
            measuring: false,
            asked: 0,
            level: Vec::new(),
            refused: None,
            published,
            copies,
        }
    }

    /// Notes one thing that was said on a connection.
    #[inline]
    pub fn note(&mut self, said: Said<'_>, work: &mut Work, wire: &Wire<'_>, now_ns: u64) {
        match (said, work.role) {
            (Said::Done(rest), Role::Producer) => self.receipt(rest, work, now_ns),
            (Said::Done(rest), Role::Consumer) => self.settled(rest, work),
            (Said::Receipts(commands), _) => {
                for _ in 0..commands {
                    self.confirmed(work.answered(), work, now_ns);
                }
            }
            (Said::RunRead, _) => self.confirmed(work.run_answered(), work, now_ns),
            (Said::Subscribed, _) => work.unanswered = work.unanswered.saturating_sub(1),
            (Said::Settled(messages), _) => {
                work.unanswered = work.unanswered.saturating_sub(1);
                self.counts.acked += messages;
            }
            (Said::Ping, _) => work.owes_pong = true,
            (
                Said::Message {
                    handle,
                    again,
                    body,
                },
                _,
            ) => {
                if !handle.is_empty() {
                    work.settle_later(handle);
                }
                self.counts.again += u64::from(again);
                self.arrival(wire.open(body), work.index, now_ns);
            }
            (Said::End, _) => {
                let asked = work.pulls.pop_front().unwrap_or(0);
                work.asked -= asked;
                work.is_waiting = false;
                self.asked -= asked;
            }
            (Said::Refused(line), _) => self.refusal(line, work),
        }
    }

    /// Records what the last calls of [`Tally::note`] left, at their time.
    pub fn settle(&mut self, now_ns: u64) {
        self.receipts.record(now_ns);
        self.arrivals.record(now_ns);
    }

    #[inline]
    fn receipt(&mut self, rest: &[u8], work: &mut Work, now_ns: u64) {
        self.confirmed(work.answered(), work, now_ns);
        if !rest.ends_with(&self.level) {
            self.counts.level_changes += u64::from(!self.level.is_empty());
        }
        if self.level.is_empty() {
            let word = rest
                .rsplit(|octet| *octet == b' ')
                .next()
                .unwrap_or_default();
            if rest.len() > word.len() {
                self.level = word.to_vec();
            }
        }
    }

    /// Notes the receipt of messages that were due then.
    #[inline]
    fn confirmed(&mut self, answered: Option<(u64, u64)>, work: &mut Work, now_ns: u64) {
        let Some((due_ns, messages)) = answered else {
            self.refusal(b"a receipt that nothing was published for", work);
            return;
        };
        self.counts.confirmed += messages;
        if self.measuring {
            self.receipts.note(due_ns, messages, now_ns);
        }
    }

    fn settled(&mut self, rest: &[u8], work: &mut Work) {
        work.unanswered = work.unanswered.saturating_sub(1);
        let text = String::from_utf8_lossy(rest);
        for word in text.split(' ') {
            match word.strip_prefix("stale=") {
                Some(list) => self.counts.stale += list.split(',').count() as u64,
                None => self.counts.acked += word.parse().unwrap_or(0),
            }
        }
    }

    #[inline]
    fn arrival(&mut self, message: Option<(u64, u64)>, consumer: u64, now_ns: u64) {
        match message {
            Some((number, due_ns)) if number < self.published => {
                let copy = if self.copies == 1 { 0 } else { consumer };
                self.seen.insert(number * self.copies + copy);
                self.counts.delivered += 1;
                if self.measuring {
                    self.arrivals.note(due_ns, 1, now_ns);
                }
            }
            _ => self.counts.foreign += 1,
        }
    }

    #[cold]
    fn refusal(&mut self, line: &[u8], work: &mut Work) {
        if work.role == Role::Producer {
            work.answered();
        }
        let line = String::from_utf8_lossy(line).chars().take(300).collect();
        self.refused.get_or_insert(line);
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::super::wire::dialect;
    use super::*;

    #[test]
    fn every_consumer_of_a_fan_out_is_counted_by_itself() {
        let args = lexopt::Parser::from_args(["fanout", "--consumers", "2"]);
        let plan = plan::parse(args).expect("good");
        let nowhere = "127.0.0.1:1".parse().expect("an address");
        let dialect = dialect(&plan, "q", nowhere);
        let wire = Wire::new(&*dialect, 16);
        let mut seen = Seen::default();
        let mut tally = Tally::new(&mut seen, 2, plan.copies());
        let mut consumers = [0, 1].map(|index| Work::new(Role::Consumer, index));
        let mut arrives = |consumer: usize, number: u64| {
            let body = [number.to_le_bytes(), [0; 8]].concat();
            let message = Said::Message {
                handle: &[],
                again: false,
                body: &body,
            };
            tally.note(message, &mut consumers[consumer], &wire, 1);
            (tally.seen.count(), tally.seen.duplicates())
        };
        assert_eq!(arrives(0, 0), (1, 0));
        assert_eq!(arrives(1, 0), (2, 0));
        assert_eq!(arrives(0, 1), (3, 0));
        assert_eq!(arrives(0, 1), (3, 1), "the other one's is still missing");
        assert_eq!(arrives(1, 1), (4, 1));
    }
}
