//! What a client keeps across connections: publishes without a receipt, subscriptions, what it has
//! settled; and how it comes back when a connection breaks.
//!
//! Untagged commands are answered in order, so what is expected next is a queue. Subscriptions are
//! tagged, which leaves the untagged `MSG` lines to the one pull that may be under way.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::{Duration, Instant, SystemTime};

use super::connection::Connection;
use super::consume::Subscribe;
use super::error::{Code, Error, Refusal};
use super::memory::Memory;
use super::message::{Flushed, Message, Receipt};
use super::options::Options;
use super::publish::{Limits, Publish};
use super::transaction::Transaction;
use super::wire::{Reply, Tagged, typed_value};

/// First and longest wait between two attempts to connect. The first attempt is made at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// A subscription that hears nothing for so long asks whether the broker is there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Longest single wait for bytes.
const TICK: Duration = Duration::from_millis(500);
/// Output is sent when it has so many bytes, or earlier when an answer is waited for.
const FLUSH_BYTES: usize = 16 << 10;

/// What a waiting call gets.
#[derive(Debug)]
pub enum Answer {
    /// The terminal line of its command.
    Reply(Reply),
    /// The connection broke before that.
    Lost,
}

/// What the next untagged terminal line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Publish,
    Command,
    /// A part of a transaction; its refusal is kept.
    Part,
    Ping,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    number: u64,
    expected: Expected,
    /// How long the broker may keep silent about it on purpose.
    wait: Duration,
}

/// A publish without a receipt.
#[derive(Debug)]
struct Unconfirmed {
    number: u64,
    command: Vec<u8>,
    is_batch: bool,
    /// Refused, and to be sent again then.
    due: Option<Instant>,
    /// When a refusal becomes final.
    patient_until: Option<Instant>,
}

#[derive(Debug)]
struct Subscription {
    tag: u64,
    request: Subscribe,
}

/// The time since the broker answered last, while it is not reached.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    /// Attempts that failed.
    failures: u32,
    /// When to try again.
    next: Instant,
}

/// The state behind a [`Client`](super::Client).
#[derive(Debug)]
pub struct Session {
    options: Options,
    /// Random, so that no other client or earlier run uses the same `once=` ids.
    id: String,
    link: Option<Connection>,
    limits: Limits,
    outage: Option<Outage>,
    /// When something came last, or an answer became due.
    heard: Instant,
    last_number: u64,
    unconfirmed: VecDeque<Unconfirmed>,
    unconfirmed_bytes: usize,
    postponed: usize,
    pending: VecDeque<Pending>,
    awaited: Option<u64>,
    answer: Option<Answer>,
    /// Why a part of the transaction under way was refused.
    part_refused: Option<Refusal>,
    subscriptions: Vec<Subscription>,
    /// Messages of subscriptions, not shown yet.
    pub arrived: VecDeque<Message>,
    /// Messages of the pull or command under way.
    pub pulled: Vec<Message>,
    /// Subscriptions that ended without being asked to.
    pub ended: VecDeque<Error>,
    /// Live copies that the broker could not send.
    pub missed: u64,
    /// What was settled.
    pub memory: Memory,
    flushed: Flushed,
}

impl Session {
    /// Connects.
    pub fn open(options: Options) -> Result<Session, Error> {
        let random = RandomState::new().hash_one(SystemTime::now());
        let mut session = Session {
            id: format!("c{random:016x}"),
            link: None,
            limits: Limits::parse(""),
            outage: None,
            heard: Instant::now(),
            last_number: 0,
            unconfirmed: VecDeque::new(),
            unconfirmed_bytes: 0,
            postponed: 0,
            pending: VecDeque::new(),
            awaited: None,
            answer: None,
            part_refused: None,
            subscriptions: Vec::new(),
            arrived: VecDeque::new(),
            pulled: Vec::new(),
            ended: VecDeque::new(),
            missed: 0,
            memory: Memory::new(options.remembered),
            flushed: Flushed::default(),
            options,
        };
        session.connect()?;
        Ok(session)
    }

    /// There is a connection, as far as this side knows.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Waits until there is a connection.
    pub fn ensure_connected(&mut self) -> Result<(), Error> {
        while self.link.is_none() {
            self.step(TICK)?;
        }
        Ok(())
    }

    /// The error of a command whose answer did not come.
    pub fn lost(&self) -> Error {
        Error::Lost {
            addr: self.options.addr.clone(),
            source: io::ErrorKind::ConnectionAborted.into(),
        }
    }

    fn connect(&mut self) -> Result<(), Error> {
        let mut link = Connection::open(&self.options.addr)?;
        link.stall_at_most(self.options.answer_timeout);
        let mut hello = "HELLO 1".to_owned();
        if let Some(name) = &self.options.name {
            hello += &format!(" name={}", typed_value(name));
        }
        link.output().extend_from_slice(hello.as_bytes());
        link.output().push(b'\n');
        link.flush()?;
        let began = Instant::now();
        let reply = loop {
            match link.buffered()? {
                Some(reply) => break reply,
                None if began.elapsed() > self.options.answer_timeout => {
                    return Err(link.lost(io::ErrorKind::TimedOut.into()));
                }
                None => link.fill_within(TICK)?,
            };
        };
        let Reply::Ok(told) = reply else {
            return Err(Error::unexpected(reply));
        };
        self.limits = Limits::parse(&told);
        self.link = Some(link);
        self.heard = Instant::now();
        self.resume();
        Ok(())
    }

    /// Says again on a new connection what the broker may not know: subscriptions, and publishes
    /// without a receipt, in order.
    fn resume(&mut self) {
        let link = self.link.as_mut().expect("it was just made");
        for subscription in &self.subscriptions {
            let command = subscription.request.encode(subscription.tag);
            link.output().extend_from_slice(command.as_bytes());
        }
        self.postponed = 0;
        for publish in &mut self.unconfirmed {
            publish.due = None;
            link.output().extend_from_slice(&publish.command);
            self.pending.push_back(Pending {
                number: publish.number,
                expected: Expected::Publish,
                wait: Duration::ZERO,
            });
        }
    }

    /// The connection cannot be used any more. What was waited for is lost, but for publishes and
    /// subscriptions, which are said again.
    fn broke(&mut self) {
        self.link = None;
        self.pulled.clear();
        // Their leases ended with the connection. What has no handle was settled before it was sent.
        self.arrived.retain(|message| message.handle.is_none());
        let lost = |pending: &Pending| {
            pending.expected == Expected::Command && Some(pending.number) == self.awaited
        };
        if self.pending.iter().any(lost) {
            self.answer = Some(Answer::Lost);
        }
        self.pending.clear();
        let now = Instant::now();
        let outage = self.outage.get_or_insert(Outage {
            since: now,
            failures: 0,
            next: now,
        });
        if outage.failures > 0 {
            outage.next = now + backoff(outage.failures);
        }
        outage.failures += 1;
    }

    /// Does one thing: takes a reply, sends what was collected, waits for bytes or for the next
    /// attempt to connect, at most so long. True when something happened.
    ///
    /// # Errors
    /// The last error when no connection has lasted for the time that the options give.
    pub fn step(&mut self, wait: Duration) -> Result<bool, Error> {
        let done = match self.link {
            Some(_) => self.exchange(wait),
            None => self.reconnect(wait),
        };
        done.or_else(|error| {
            self.broke();
            let outage = self.outage.expect("it was just noted");
            if outage.since.elapsed() <= self.options.give_up_after {
                return Ok(true);
            }
            // The next call begins anew.
            self.outage = None;
            self.awaited = None;
            self.answer = None;
            Err(error)
        })
    }

    fn reconnect(&mut self, wait: Duration) -> Result<bool, Error> {
        let left = self.outage.map_or(Duration::ZERO, |outage| {
            outage.next.saturating_duration_since(Instant::now())
        });
        if left > wait {
            std::thread::sleep(wait);
            return Ok(false);
        }
        std::thread::sleep(left);
        self.connect()?;
        Ok(true)
    }

    fn exchange(&mut self, wait: Duration) -> Result<bool, Error> {
        let wait = self.send_postponed(wait);
        let link = self.link.as_mut().expect("there is a connection");
        if let Some(tagged) = link.buffered_tagged()? {
            self.take(tagged)?;
            return Ok(true);
        }
        let silent = self.heard.elapsed();
        if self.pending.is_empty() && !self.subscriptions.is_empty() && silent > HEARTBEAT {
            self.issue(Expected::Ping, b"PING\n", Duration::ZERO);
        }
        let link = self.link.as_mut().expect("there is a connection");
        if !link.output().is_empty() {
            // What it may have read meanwhile is looked at before anything is waited for.
            link.flush()?;
            return Ok(true);
        }
        let came = link.fill_within(wait.min(TICK))?;
        if came {
            self.heard = Instant::now();
        } else if let Some(first) = self.pending.front()
            && silent > self.options.answer_timeout + first.wait
        {
            return Err(link.lost(io::ErrorKind::TimedOut.into()));
        }
        Ok(came)
    }

    /// Sends again what was refused and is due; how long to wait for the next, at most `wait`.
    fn send_postponed(&mut self, wait: Duration) -> Duration {
        if self.postponed == 0 {
            return wait;
        }
        let (now, mut wait) = (Instant::now(), wait);
        let link = self.link.as_mut().expect("there is a connection");
        for publish in &mut self.unconfirmed {
            let Some(due) = publish.due else {
                continue;
            };
            if due > now {
                wait = wait.min(due - now);
                continue;
            }
            publish.due = None;
            self.postponed -= 1;
            link.output().extend_from_slice(&publish.command);
            if self.pending.is_empty() {
                self.heard = now;
            }
            self.pending.push_back(Pending {
                number: publish.number,
                expected: Expected::Publish,
                wait: Duration::ZERO,
            });
        }
        wait
    }

    fn take(&mut self, tagged: Tagged) -> Result<(), Error> {
        let reply = match (tagged.tag, tagged.reply) {
            (Some(tag), reply) => return self.take_tagged(&tag, reply),
            (None, Reply::Message(message)) => {
                self.pulled.push(message);
                return Ok(());
            }
            (None, Reply::Other(line)) if !line.starts_with("PONG") => return Ok(()),
            (None, reply) => reply,
        };
        let Some(pending) = self.pending.pop_front() else {
            return Err(Error::unexpected(reply));
        };
        match pending.expected {
            Expected::Publish => self.take_receipt(pending.number, reply)?,
            Expected::Command if self.awaited == Some(pending.number) => {
                self.answer = Some(Answer::Reply(reply));
            }
            Expected::Part => {
                if let (Reply::Error(refusal), None) = (reply, &self.part_refused) {
                    self.part_refused = Some(refusal);
                }
            }
            // An ack that nobody waits for: if it had no effect, the message comes again.
            Expected::Command | Expected::Ping => {}
        }
        self.outage = None;
        Ok(())
    }

    fn take_tagged(&mut self, tag: &str, reply: Reply) -> Result<(), Error> {
        let mut subscriptions = self.subscriptions.iter();
        let of_tag = |subscription: &Subscription| format!("s{}", subscription.tag) == tag;
        let at = subscriptions.position(of_tag);
        match (reply, at) {
            (Reply::Message(message), _) => self.arrived.push_back(message),
            (Reply::Error(refusal), Some(_)) if refusal.code == Code::Draining => {
                return Err(Error::Refused(refusal));
            }
            (reply @ (Reply::Ok(_) | Reply::Error(_)), Some(at)) => {
                let is_refused = matches!(reply, Reply::Error(_));
                let number = self.subscriptions[at].tag;
                if is_refused {
                    self.subscriptions.remove(at);
                }
                if self.awaited == Some(number) {
                    self.answer = Some(Answer::Reply(reply));
                } else if is_refused {
                    self.ended.push_back(Error::unexpected(reply));
                }
            }
            // A broker that goes down: what is held can be settled until the connection ends, and the
            // subscription is said again over the next one.
            (Reply::Gone(line), Some(_)) if line.ends_with("gone=drain") => {}
            (Reply::Gone(line), Some(at)) => {
                self.subscriptions.remove(at);
                self.ended.push_back(Error::Ended(line));
            }
            (Reply::Other(line), _) => self.missed += dropped(&line),
            _ => {}
        }
        self.outage = None;
        Ok(())
    }

    /// The answer to a publish. One that says that the result is unknown, or that the broker stops,
    /// counts as a broken connection: the publish is sent again over the next one.
    fn take_receipt(&mut self, number: u64, reply: Reply) -> Result<(), Error> {
        let mut unconfirmed = self.unconfirmed.iter();
        let at = unconfirmed.position(|publish| publish.number == number);
        let at = at.expect("what is pending is kept");
        match &reply {
            Reply::Ok(rest) => {
                let receipt = Receipt::parse(rest, self.unconfirmed[at].is_batch);
                let receipt = receipt.ok_or_else(|| Error::unexpected(reply.clone()))?;
                self.flushed.confirmed += 1;
                self.flushed.duplicates += u64::from(receipt.is_duplicate);
            }
            Reply::Error(refusal) => {
                if matches!(refusal.code, Code::UnknownResult | Code::Draining) {
                    return Err(Error::Refused(refusal.clone()));
                }
                if self.postpone(at, refusal) {
                    return Ok(());
                }
                if self.awaited != Some(number) {
                    self.flushed.refused.push((number, refusal.clone()));
                }
            }
            _ => return Err(Error::unexpected(reply)),
        }
        let publish = self.unconfirmed.remove(at).expect("it was found there");
        self.unconfirmed_bytes -= publish.command.len();
        if self.awaited == Some(number) {
            self.answer = Some(Answer::Reply(reply));
        }
        Ok(())
    }

    /// Whether a refused publish is to be sent again later.
    fn postpone(&mut self, at: usize, refusal: &Refusal) -> bool {
        let (Some(retry), false) = (refusal.retry, self.options.patience.is_zero()) else {
            return false;
        };
        let now = Instant::now();
        let publish = &mut self.unconfirmed[at];
        let until = publish
            .patient_until
            .get_or_insert(now + self.options.patience);
        if now >= *until {
            return false;
        }
        publish.due = Some(now + retry);
        self.postponed += 1;
        true
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Puts a command into the output of the connection there is.
    fn issue(&mut self, expected: Expected, command: &[u8], wait: Duration) -> u64 {
        let number = self.next_number();
        let link = self.link.as_mut().expect("there is a connection");
        link.output().extend_from_slice(command);
        if self.pending.is_empty() {
            self.heard = Instant::now();
        }
        self.pending.push_back(Pending {
            number,
            expected,
            wait,
        });
        number
    }

    /// Sends a command that nobody waits for. Without a connection it is not sent.
    pub fn send(&mut self, command: &str) {
        if self.link.is_none() {
            return;
        }
        self.issue(Expected::Command, command.as_bytes(), Duration::ZERO);
        self.push();
    }

    /// Sends what was collected, if there is a connection.
    pub fn push(&mut self) {
        if let Some(Err(_)) = self.link.as_mut().map(Connection::flush) {
            self.broke();
        }
    }

    /// Sends a command and waits for its terminal line; it may be silent for `wait`.
    pub fn ask(&mut self, command: &[u8], wait: Duration) -> Result<Answer, Error> {
        if self.link.is_none() {
            return Ok(Answer::Lost);
        }
        self.pulled.clear();
        let number = self.issue(Expected::Command, command, wait);
        self.wait_for(number)
    }

    /// Sends a transaction and waits for the terminal line of its end, or gives the first refusal of one
    /// of its parts.
    pub fn transact(&mut self, parts: &[Vec<u8>]) -> Result<Answer, Error> {
        if self.link.is_none() {
            return Ok(Answer::Lost);
        }
        self.part_refused = None;
        self.issue(Expected::Part, b"BEGIN\n", Duration::ZERO);
        for part in parts {
            self.issue(Expected::Part, part, Duration::ZERO);
        }
        let answer = self.ask(b"COMMIT\n", Duration::ZERO)?;
        match (&answer, self.part_refused.take()) {
            (Answer::Reply(_), Some(refusal)) => Ok(Answer::Reply(Reply::Error(refusal))),
            _ => Ok(answer),
        }
    }

    /// The parts of a transaction, within the broker's limits; the error says what cannot be sent.
    pub fn encoded(&self, transaction: &Transaction) -> Result<Vec<Vec<u8>>, String> {
        transaction.encode(&self.limits)
    }

    /// A command with a body, within the broker's limits; the error says what cannot be sent.
    pub fn counted(&self, line: String, body: &[u8]) -> Result<Vec<u8>, String> {
        self.limits.counted(line, body, self.limits.body_bytes)
    }

    fn wait_for(&mut self, number: u64) -> Result<Answer, Error> {
        self.awaited = Some(number);
        loop {
            if let Some(answer) = self.answer.take() {
                self.awaited = None;
                return Ok(answer);
            }
            self.step(TICK)?;
        }
    }

    /// Takes a publish into the window; waits while that is full.
    pub fn publish(&mut self, publish: &Publish) -> Result<u64, Error> {
        if self.flushed.refused.len() >= self.options.window {
            let (_, refusal) = &self.flushed.refused[0];
            return Err(Error::Refused(refusal.clone()));
        }
        let number = self.next_number();
        let once = format!("{}-{number}", self.id);
        let command = publish
            .encode(Some(&once), &self.limits)
            .map_err(Error::Invalid)?;
        let (most, most_bytes) = (self.options.window, self.options.window_bytes);
        let has_room = |session: &Session, most: usize, most_bytes: usize| {
            let bytes = session.unconfirmed_bytes + command.len();
            session.unconfirmed.is_empty()
                || session.unconfirmed.len() < most && bytes <= most_bytes
        };
        if !has_room(self, most, most_bytes) {
            // Half of it at once, so that commands leave many at a time.
            while !has_room(self, most.div_ceil(2), most_bytes / 2) {
                self.step(TICK)?;
            }
        }
        if let Some(link) = &mut self.link {
            link.output().extend_from_slice(&command);
            let is_full = link.output().len() >= FLUSH_BYTES;
            if self.pending.is_empty() {
                self.heard = Instant::now();
            }
            self.pending.push_back(Pending {
                number,
                expected: Expected::Publish,
                wait: Duration::ZERO,
            });
            self.keep(number, command, publish.is_batch());
            if is_full {
                self.push();
            }
        } else {
            self.keep(number, command, publish.is_batch());
        }
        Ok(number)
    }

    fn keep(&mut self, number: u64, command: Vec<u8>, is_batch: bool) {
        self.unconfirmed_bytes += command.len();
        self.unconfirmed.push_back(Unconfirmed {
            number,
            command,
            is_batch,
            due: None,
            patient_until: None,
        });
    }

    /// Publishes and waits for the receipt.
    pub fn publish_and_wait(&mut self, publish: &Publish) -> Result<Receipt, Error> {
        let number = self.publish(publish)?;
        match self.wait_for(number)? {
            Answer::Reply(Reply::Ok(rest)) => Receipt::parse(&rest, publish.is_batch())
                .ok_or_else(|| Error::unexpected(Reply::Ok(rest))),
            Answer::Reply(reply) => Err(Error::unexpected(reply)),
            Answer::Lost => Err(Error::Protocol("a publish is never lost".to_owned())),
        }
    }

    /// Waits for every answer that is due.
    pub fn flush(&mut self) -> Result<Flushed, Error> {
        let is_due = |pending: &Pending| pending.expected == Expected::Command;
        while !self.unconfirmed.is_empty() || self.pending.iter().any(is_due) {
            self.step(TICK)?;
        }
        Ok(std::mem::take(&mut self.flushed))
    }

    /// Begins a subscription and waits until it is taken.
    pub fn subscribe(&mut self, request: &Subscribe) -> Result<(), Error> {
        let number = self.next_number();
        if let Some(link) = &mut self.link {
            let command = request.encode(number);
            link.output().extend_from_slice(command.as_bytes());
        }
        self.subscriptions.push(Subscription {
            tag: number,
            request: request.clone(),
        });
        match self.wait_for(number) {
            Ok(Answer::Reply(Reply::Ok(_))) => Ok(()),
            Ok(Answer::Reply(reply)) => Err(Error::unexpected(reply)),
            Ok(Answer::Lost) => Err(Error::Protocol("a subscription is never lost".to_owned())),
            Err(error) => {
                self.subscriptions.retain(|kept| kept.tag != number);
                Err(error)
            }
        }
    }

    /// Somebody may send messages here.
    pub fn is_subscribed(&self) -> bool {
        !self.subscriptions.is_empty()
    }
}

/// How many copies a `LAG` line says were missed; 0 of another line.
fn dropped(line: &str) -> u64 {
    let mut words = line.split(' ');
    let count = words.next() == Some("LAG");
    let mut counts = words.filter_map(|word| word.strip_prefix("dropped=")?.parse().ok());
    counts.next().filter(|_| count).unwrap_or(0)
}

/// How long to wait after so many failures: doubling, and somewhere in its upper half so that clients
/// do not come back all at once.
fn backoff(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let doubled = first.saturating_mul(1 << (failures - 1).min(16));
    let random = RandomState::new().hash_one(failures) % 1024;
    let part = u32::try_from(random).expect("it is below 1024");
    doubled.min(longest) * (1024 + part) / 2048
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second() {
        for failures in 1..200 {
            let wait = backoff(failures);
            assert!(wait <= BACKOFF.1, "{wait:?}");
            assert!(wait >= BACKOFF.0 / 2, "{wait:?}");
        }
        assert!(backoff(1) <= BACKOFF.0);
        assert!(backoff(20) >= BACKOFF.1 / 2);
    }
}
