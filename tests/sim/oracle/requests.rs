//! Requests: each answer reaches the one who asked, once; `TIMEOUT` comes in time, `NOCONSUMER` only
//! when there is nobody. The requests themselves are messages without promises.

use std::collections::BTreeMap;

use super::record::Fate;
use super::{DELIVERY_US_MAX, Deferred, Oracle};
use crate::command::Kind;
use crate::wire::Line;

/// One request.
#[derive(Clone, Debug, Default)]
struct Request {
    token: Option<String>,
    /// `REP`s of it that were answered `OK`.
    taken: Vec<usize>,
    /// The `REP` whose body its requester was given.
    given: Option<usize>,
    /// The code of the error that it ended with.
    failed: Option<String>,
}

/// All that is known of requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By their commands.
    requests: BTreeMap<usize, Request>,
    by_token: BTreeMap<String, usize>,
    /// Answers by their bodies, which differ.
    answers: BTreeMap<Vec<u8>, (usize, String)>,
}

impl Oracle {
    /// A `REP` was typed.
    pub(super) fn answer_typed(&mut self, command: usize, token: &str, body: &[u8]) {
        let answer = (command, token.to_string());
        self.requests.answers.insert(body.to_vec(), answer);
    }

    /// The message is a request.
    pub(super) fn is_request(&self, message: usize) -> bool {
        let command = self.commands.get(self.messages[message].command);
        command.is_some_and(|sent| matches!(sent.command.kind, Kind::Request { .. }))
    }

    /// A `REQ` has arrived.
    pub(super) fn request_arrived(&mut self, command: usize, message: usize) {
        self.requests.requests.entry(command).or_default();
        let now = self.now;
        let message = &mut self.messages[message];
        message.fate = Fate::InFlight;
        message.sent = now;
    }

    /// Its message was given to a consumer.
    pub(super) fn request_seen(&mut self, message: usize, line: &Line) {
        let command = self.messages[message].command;
        let Some(request) = self.requests.requests.get_mut(&command) else {
            return;
        };
        let Some(token) = line.option("reply").map(str::to_string) else {
            return self.fail("Q", format!("a request without reply=: {line:?}"));
        };
        let same = request.token.get_or_insert(token.clone()) == &token;
        let owner = *self.requests.by_token.entry(token).or_insert(command);
        self.checked("Q");
        if !same || owner != command {
            let text = format!("{line:?} has the token of another request ({owner}, {command})");
            self.fail("Q", text);
        }
    }

    /// The `MSG` of an answer.
    pub(super) fn answer_given(&mut self, command: usize, line: &Line) {
        self.checked("Q");
        self.commands[command].messages += 1;
        let body = line.body.clone().unwrap_or_default();
        let answer = self.requests.answers.get(&body).cloned();
        let token = self.requests.requests[&command].token.clone();
        match answer {
            Some((answer, of))
                if Some(&of) == token.as_ref()
                    && self.commands[answer].arrived.is_some()
                    && self.commands[command].messages == 1 =>
            {
                let request = self.requests.requests.get_mut(&command);
                request.expect("it has arrived").given = Some(answer);
            }
            answer => {
                let text = format!("{line:?} answers request {command} ({token:?}): {answer:?}");
                self.fail("Q", text);
            }
        }
        self.check_answers(command);
    }

    /// A `REP` was answered.
    pub(super) fn answer_taken(&mut self, command: usize, token: &str, line: &Line) {
        let Some(asked) = self.requests.by_token.get(token).copied() else {
            if line.kind == "OK" {
                self.fail("Q", format!("{line:?} answers a REP to nobody"));
            }
            return;
        };
        if line.kind == "OK" {
            let request = self.requests.requests.get_mut(&asked);
            request.expect("it has a token").taken.push(command);
            return self.check_answers(asked);
        }
        // Nobody waits: was there somebody all the time?
        let request = &self.requests.requests[&asked];
        let (sent, link) = (&self.commands[asked], self.commands[asked].link);
        let record = &self.links[link];
        let others = self.requests.answers.values().any(|(other, of)| {
            *other != command && of == token && self.commands[*other].arrived.is_some()
        });
        let Kind::Request { timeout_us, .. } = &sent.command.kind else {
            return;
        };
        let in_time = sent.arrived.is_some_and(|at| self.now < at + timeout_us);
        let waits = sent.open() && record.open && record.may_close.is_none() && in_time;
        let undisturbed = record.blocked.is_none() && !self.is_held_back(link);
        if waits
            && undisturbed
            && !others
            && request.taken.is_empty()
            && self.surely_consumed(asked, "rpc")
            && line.words[0] == "STALE"
        {
            let text = format!("{line:?} answers a REP to {sent:?}, which waits");
            self.fail("Q", text);
        }
    }

    /// At most one answer, and the one that was taken is the one that was given.
    fn check_answers(&mut self, command: usize) {
        let request = &self.requests.requests[&command];
        let twice = request.taken.len() > 1;
        let other = request
            .given
            .is_some_and(|given| request.taken.iter().any(|taken| *taken != given));
        let failed = request.failed.is_some() && !request.taken.is_empty();
        if twice || other || failed {
            let text = format!("request {command}: {request:?}");
            self.fail("Q", text);
        }
    }

    /// The terminal line of a `REQ`.
    pub(super) fn request_ended(&mut self, command: usize, message: usize, line: &Line) {
        self.messages[message].fate = Fate::Failed("it is over".to_string());
        if line.kind == "ERR" {
            let request = self.requests.requests.get_mut(&command);
            request.expect("it has arrived").failed = Some(line.words[0].clone());
            return self.check_answers(command);
        }
        let given = self.requests.requests[&command].given;
        if line.words[..] != ["1".to_string()] || given.is_none() {
            self.fail("Q", format!("{line:?} ends request {command}: {given:?}"));
        }
    }

    /// Whether a refusal of a `REQ` is true.
    pub(super) fn is_true_of_request(&mut self, command: usize, code: &str) -> bool {
        let sent = &self.commands[command];
        let Kind::Request {
            queue, timeout_us, ..
        } = sent.command.kind.clone()
        else {
            return false;
        };
        let (arrived, link) = (sent.arrived.unwrap_or(self.now), sent.link);
        let tag = sent.command.tag.clone();
        self.checked("Q");
        match code {
            "TIMEOUT" => {
                let record = &self.links[link];
                let cancels = |other: &super::record::Sent| {
                    other.link == link
                        && matches!(&other.command.kind, Kind::Cancel(of) if Some(of) == tag.as_ref())
                };
                let ended = record.may_close.is_some() || self.commands.iter().any(cancels);
                let possible = self.links.iter().any(|link| {
                    let way_us = self.terms.way_us;
                    let there = link.ended.is_none_or(|ended| ended + way_us >= arrived);
                    there && link.sources.contains(&queue)
                });
                (self.now >= arrived + timeout_us || ended) && possible
            }
            "NOCONSUMER" | "NOQUEUE" => {
                self.deferred.push(Deferred::NoConsumer { command });
                true
            }
            _ => false,
        }
    }

    /// `NOCONSUMER` is true if no consumer was there all the time.
    pub(super) fn check_no_consumer(&mut self, command: usize) {
        let sent = &self.commands[command];
        if let Kind::Request { queue, .. } = &sent.command.kind
            && self.surely_consumed(command, queue)
        {
            let text = format!("{sent:?} was told that there is no consumer");
            self.fail("Q", text);
        }
    }

    /// There is a consumer of the queue, and was since before the command arrived.
    fn surely_consumed(&self, command: usize, queue: &str) -> bool {
        let arrived = self.commands[command].arrived.unwrap_or(self.now);
        let of_link = |(index, link): (usize, &super::record::Link)| {
            let subscribed = link
                .subs
                .iter()
                .any(|sub| sub.source == queue && sub.since < arrived && sub.changing == 0);
            let pulled = self.commands.iter().any(|sent| {
                let pulls = matches!(
                    &sent.command.kind,
                    Kind::Pull(pull) if pull.sources.iter().any(|source| source == queue)
                );
                let over = sent.answered.is_some_and(|answered| answered < arrived);
                // One that was given something was not refused.
                sent.link == index && pulls && over && sent.messages > 0
            });
            link.open && link.may_close.is_none() && (subscribed || pulled)
        };
        self.links.iter().enumerate().any(of_link)
    }

    /// `TIMEOUT` comes in time.
    pub(super) fn late_requests(&mut self, link: usize) {
        let (now, record) = (self.now, &self.links[link]);
        if !record.waiting.is_empty() || self.held_back_since(link) < now {
            return;
        }
        let late = record.tagged.values().find(|command| {
            let sent = &self.commands[**command];
            let (Kind::Request { timeout_us, .. }, Some(arrived)) =
                (&sent.command.kind, sent.arrived)
            else {
                return false;
            };
            now > arrived.max(record.idle_since) + timeout_us + DELIVERY_US_MAX
        });
        if let Some(command) = late.copied()
            && !self.unseen_publishes(link)
        {
            let sent = self.commands[command].clone();
            self.fail(
                "Q",
                format!("connection {link}: no answer at {now} to {sent:?}"),
            );
        }
    }
}
