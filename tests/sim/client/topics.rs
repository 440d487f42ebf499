//! What clients do with topics and requests.

use super::{Act, Client, Theme};
use crate::command::{Kind, Setting};
use crate::oracle::Oracle;

/// Queues that topics are bound to. Nothing else is published there.
pub const CAST_QUEUES: [&str; 3] = ["cast.a", "cast.b", "cast.c"];
/// The queue that is asked.
pub const ASKED: &str = "rpc";

const TOPICS: [&str; 4] = ["n.eu.x", "n.us", "n.eu", "w"];
const PATTERNS: [&str; 7] = ["#", "n.#", "n.*", "*.eu.#", "#.x", "w", "n.eu"];

/// Live subscriptions of one connection at most.
const LIVE_MAX: usize = 4;

impl Client {
    /// A queue to read from.
    pub(super) fn source(&mut self, theme: &Theme) -> String {
        if theme.topics && self.rng.chance(400) {
            return self.rng.pick(&CAST_QUEUES).to_string();
        }
        if theme.requests && self.rng.chance(400) {
            return ASKED.to_string();
        }
        self.queue(theme)
    }

    /// Something about topics.
    pub(super) fn topics(&mut self, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        let queue = self.rng.pick(&CAST_QUEUES).to_string();
        let pattern = self.rng.pick(&PATTERNS).to_string();
        match self.rng.weighted(&[60, 12, 5, 12, 4, 4]) {
            0 => {
                for _ in 0..self.rng.spread(1, 6) {
                    self.cast(oracle, acts);
                }
            }
            1 => self.say(None, Kind::Bind { pattern, queue }, acts),
            2 => self.say(None, Kind::Unbind { pattern, queue }, acts),
            3 if self.live.len() < LIVE_MAX && !self.live.contains(&pattern) => {
                self.tags += 1;
                let tag = Some(format!("l{}", self.tags));
                self.live.push(pattern.clone());
                self.say(tag, Kind::SubLive(pattern), acts);
            }
            4 if !self.live.is_empty() => {
                let at = self.rng.below(self.live.len() as u64) as usize;
                let pattern = self.live.swap_remove(at);
                self.say(None, Kind::UnsubLive(pattern), acts);
            }
            _ => {
                let level = *self.rng.pick(&[
                    crate::command::Level::None,
                    crate::command::Level::Os,
                    crate::command::Level::Disk,
                ]);
                let settings = vec![Setting::Durable(level)];
                self.say(None, Kind::QSet { queue, settings }, acts);
            }
        }
    }

    fn cast(&mut self, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        let size = match self.rng.weighted(&[70, 20, 10]) {
            0 => self.rng.below(20),
            1 => self.rng.below(700),
            _ => self.rng.below(30_000),
        };
        let mut body = format!("cast {}:", oracle.serial()).into_bytes();
        body.resize(body.len() + size as usize, b'c');
        let topic = self.rng.pick(&TOPICS).to_string();
        let tag = self.tag(60);
        self.say(tag, Kind::Cast { topic, body }, acts);
    }

    /// A request, or an answer to one.
    pub(super) fn ask(&mut self, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        if !self.asked.is_empty() && self.rng.chance(700) {
            let at = self.rng.below(self.asked.len() as u64) as usize;
            let token = match self.rng.weighted(&[80, 10, 5]) {
                0 => self.asked.swap_remove(at),
                // It may come a second time.
                1 => self.asked[at].clone(),
                _ => "0123456789abcdef0123456789abcdef".to_string(),
            };
            let body = format!("answer {}", oracle.serial()).into_bytes();
            let tag = self.tag(60);
            return self.say(tag, Kind::Answer { token, body }, acts);
        }
        let message = oracle.body_next();
        let body = format!("{message}:ask").into_bytes();
        let message = oracle.add_request(body.clone());
        self.tags += 1;
        let tag = Some(format!("r{}", self.tags));
        let kind = Kind::Request {
            queue: ASKED.to_string(),
            timeout_us: self.rng.spread(1000, 2_000_000),
            message,
            body,
        };
        self.waiting_tags.extend(tag.clone());
        self.say(tag, kind, acts);
    }
}
