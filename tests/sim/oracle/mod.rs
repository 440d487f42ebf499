//! Knows what clients sent and saw, and checks it against every promise of the broker.
//!
//! It never looks into the broker. For each message it keeps the set of states that what was seen
//! allows: where it may be, what may have taken it, when it may be ready. A check fails only when
//! no allowed state explains what a client saw, so a failure is always a broken promise, however
//! unlucky the timing. The promises' letters are those of the guarantees: P publishing,
//! L delivery, A acks, R redelivery, O order, D deduplication, F the form of the protocol, T topics,
//! Q requests, C transactions.

mod answers;
mod doors;
mod drain;
mod effects;
mod judge;
mod keys;
mod publishing;
mod record;
mod requests;
mod settings;
mod settling;
mod sighting;
mod topics;
mod transactions;

use std::collections::BTreeMap;

use crate::command::{Command, Kind, Level, Publish};
use crate::dialect::{Dialect, Reader, UNTOLD};
use crate::disk::Crash;
use crate::wire::Line;
use record::{Certainty, Delivery, Fate, Link, Loss, Message, Sent};
use settings::Track;

/// Slack for what a deadline causes: the time a timer may be late, plus a turn. Microseconds.
const TIMER_SLACK_US: u64 = 20_000;

/// A ready message reaches a willing consumer within this, microseconds.
const DELIVERY_US_MAX: u64 = 100_000;

/// What a run of the simulator does to the broker, as far as judging depends on it.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Level of queues that nobody defined.
    pub level: Level,
    /// No disk: everything is `none`.
    pub memory: bool,
    /// There is so little memory that publishes may be refused for it.
    pub scarce: bool,
    /// How many shards it has, each with a log of its own.
    pub shards: u32,
    /// Longest way of what one shard tells another, microseconds; 0 if there is one.
    pub way_us: u64,
    /// `os` records are synced within this plus two syncs, microseconds.
    pub flush_us: u64,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The promise's letter.
    pub promise: &'static str,
    /// What was seen.
    pub text: String,
}

/// What is known of one queue's name.
#[derive(Debug)]
struct Queue {
    track: Track,
    /// Messages that are or may come here.
    messages: Vec<usize>,
    /// The queue has been read: its reader is known to the log, so reads wait for no sync.
    established: bool,
    /// Moves may have filled it beyond its limits.
    moved_into: bool,
    /// Deliveries may have been made that nobody saw, the last at this time.
    fog: Option<u64>,
    /// `ack=auto` consumers whose connections are gone, which may not be known at the queue's shard before this time.
    takers: Vec<(usize, u64)>,
    /// Publishes with each `once=`.
    once: BTreeMap<String, Vec<usize>>,
    /// Arrival of the last `QDEL`, and its certain end.
    deleted: Option<(u64, u64)>,
    /// It was surely there in this run of the broker, at this time.
    there: Option<(u64, u64)>,
}

/// A check that waits until all that the broker sent in the same turn is known: another consumer
/// may have been given the message in question, on a connection that is read later.
#[derive(Clone, Debug)]
enum Deferred {
    /// A `PULL` that came back empty.
    Empty {
        command: usize,
        sources: Vec<String>,
    },
    /// A delivery, and the messages that stood before it.
    Order {
        index: usize,
        source: String,
        low: u64,
    },
    /// A request that nobody can answer: consumers may have gone in the same turn.
    NoConsumer { command: usize },
}

/// The judge of one run.
#[derive(Debug)]
pub struct Oracle {
    terms: Terms,
    now: u64,
    /// Counts the starts of the broker.
    boot: u64,
    /// When the broker began to serve; `None` while it is down.
    up_since: Option<u64>,
    /// The index of the power loss since the broker last served, if there was one.
    dark: Option<usize>,
    /// (start, end) of earlier runs of the broker.
    runs: Vec<(u64, u64)>,
    links: Vec<Link>,
    commands: Vec<Sent>,
    messages: Vec<Message>,
    by_body: BTreeMap<Vec<u8>, usize>,
    topics: topics::Topics,
    requests: requests::Requests,
    transactions: Vec<transactions::Transaction>,
    drain: Option<drain::Drain>,
    serial: u64,
    deliveries: Vec<Delivery>,
    by_handle: BTreeMap<String, usize>,
    queues: BTreeMap<String, Queue>,
    losses: Vec<Loss>,
    /// Everything confirmed at `os` before this is on disk, because something that was written
    /// after it was confirmed at `disk`.
    floor: u64,
    /// What the wall clock differed from the broker's, and since when.
    wall: Vec<(u64, i64)>,
    violation: Option<Violation>,
    deferred: Vec<Deferred>,
    /// Commands without an answer that empty a queue, and may be run by its shard until then, after the end of their connections.
    run_late: Vec<(usize, u64)>,
    /// Messages of such commands, which may be stored until then.
    stored_late: Vec<(usize, u64)>,
    /// How often each promise was put to the test in a way that could have failed.
    pub checks: BTreeMap<&'static str, u64>,
    /// What this run of the broker has told of syncs that waited.
    waits_told: BTreeMap<&'static str, u64>,
}

impl Oracle {
    /// The broker may refuse what it has no memory for.
    pub fn is_scarce(&self) -> bool {
        self.terms.scarce
    }

    /// Something written then is confirmed on the disk: so is all that was confirmed before it, in the same log.
    fn confirmed_on_disk(&mut self, written: u64) {
        if self.terms.shards == 1 {
            self.floor = self.floor.max(written);
        }
    }

    /// The shard of a queue, or of a group's, as it is typed.
    fn shard_of(&self, name: &str) -> u32 {
        let queue = name.split('/').next().unwrap_or_default();
        ringmq::shard::shard_of(queue.replace("%20", " ").as_bytes(), self.terms.shards)
    }

    /// Nothing has happened yet.
    pub fn new(terms: Terms) -> Oracle {
        Oracle {
            terms,
            now: 0,
            boot: 0,
            up_since: None,
            dark: None,
            runs: Vec::new(),
            links: Vec::new(),
            commands: Vec::new(),
            messages: Vec::new(),
            by_body: BTreeMap::new(),
            topics: topics::Topics::default(),
            requests: requests::Requests::default(),
            transactions: Vec::new(),
            drain: None,
            serial: 0,
            deliveries: Vec::new(),
            by_handle: BTreeMap::new(),
            queues: BTreeMap::new(),
            losses: Vec::new(),
            floor: 0,
            wall: vec![(0, 0)],
            violation: None,
            deferred: Vec::new(),
            run_late: Vec::new(),
            stored_late: Vec::new(),
            checks: BTreeMap::new(),
            waits_told: BTreeMap::new(),
        }
    }

    /// The first broken promise, if any.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    fn fail(&mut self, promise: &'static str, text: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { promise, text });
        }
    }

    fn checked(&mut self, promise: &'static str) {
        *self.checks.entry(promise).or_insert(0) += 1;
    }

    /// A number for a new message's body, which must hold it so that bodies differ.
    pub fn body_next(&self) -> usize {
        self.messages.len()
    }

    /// A body that some command will carry. Bodies must differ.
    pub fn add_body(&mut self, body: Vec<u8>) -> usize {
        let index = self.new_message(body.clone());
        let before = self.by_body.insert(body, index);
        assert_eq!(before, None, "the workload made two equal bodies");
        index
    }

    /// The body of a request: a message that nothing is promised about.
    pub fn add_request(&mut self, body: Vec<u8>) -> usize {
        let index = self.add_body(body);
        self.messages[index].murky = true;
        index
    }

    /// A number that was not given before.
    pub fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn new_message(&mut self, body: Vec<u8>) -> usize {
        let index = self.messages.len();
        self.messages.push(Message {
            body,
            command: usize::MAX,
            fate: Fate::Unsent,
            murky: false,
            place: String::new(),
            home: None,
            moved: false,
            trail: Vec::new(),
            first_id: None,
            id: None,
            sent: 0,
            due: (0, None),
            expires: (u64::MAX, u64::MAX),
            pri: (0, 255),
            key: None,
            visible: None,
            stored: (Level::None, Level::Disk),
            weak: None,
            claims: Vec::new(),
            deliveries: Vec::new(),
            tries: (1, Some(1)),
            failed: Vec::new(),
        });
        index
    }

    /// A new connection that speaks so; gives its number.
    pub fn connected(&mut self, dialect: Dialect) -> usize {
        self.links.push(Link {
            dialect,
            reader: Reader::new(dialect, self.links.len()),
            open: true,
            idle_since: self.now,
            // A broker that drains takes connections, and may go at any time.
            shut: self.drain.is_some(),
            may_close: self.drain.is_some().then_some(self.now),
            ..Link::default()
        });
        self.links.len() - 1
    }

    /// A client typed a command; it is on its way. Gives its number.
    pub fn typed(&mut self, link: usize, command: Command) -> usize {
        let index = self.commands.len();
        match &command.kind {
            Kind::Publish(publish) => {
                for (message, _) in &publish.bodies {
                    self.messages[*message].command = index;
                    self.messages[*message].place = publish.queue.clone();
                    self.messages[*message].key = publish.key.clone();
                }
            }
            Kind::Cast { topic, body } => self.cast_typed(index, topic, body),
            Kind::Request { queue, message, .. } => {
                self.messages[*message].command = index;
                self.messages[*message].place = queue.clone();
            }
            Kind::Answer { token, body } => self.answer_typed(index, token, body),
            _ => {}
        }
        self.commands.push(Sent {
            command,
            link,
            arrived: None,
            answered: None,
            orphaned: None,
            messages: 0,
            deliveries: Vec::new(),
            claimed: Vec::new(),
            tally: 0,
            transaction: None,
            settles: Vec::new(),
        });
        self.typed_inside(index);
        self.typed_at_door(index);
        index
    }

    fn queue(&mut self, name: &str) -> &mut Queue {
        let level = self.terms.level;
        let memory = self.terms.memory;
        self.queues
            .entry(name.to_string())
            .or_insert_with(|| Queue {
                track: Track::new(name, if memory { Level::None } else { level }),
                messages: Vec::new(),
                established: false,
                moved_into: false,
                fog: None,
                takers: Vec::new(),
                once: BTreeMap::new(),
                deleted: None,
                there: None,
            })
    }

    fn publish_of(&self, command: usize) -> Option<&Publish> {
        match &self.commands.get(command)?.command.kind {
            Kind::Publish(publish) => Some(publish),
            _ => None,
        }
    }

    fn name_of(&self, message: usize) -> String {
        let record = &self.messages[message];
        let shown = &record.body[..record.body.len().min(24)];
        format!(
            "message {message} ({:?}, {} id {:?}, sent at {}, {:?})",
            String::from_utf8_lossy(shown),
            record.place,
            record.id,
            record.sent,
            record.fate
        )
    }

    /// Octets from the server on a connection. Gives the lines, each with the command that it
    /// answers or belongs to.
    pub fn received(&mut self, link: usize, bytes: &[u8], now: u64) -> Vec<(Option<usize>, Line)> {
        self.now = now;
        let lines = match self.links[link].reader.feed(bytes) {
            Ok(lines) => lines,
            Err(text) => {
                self.fail("F", format!("connection {link}: {text}"));
                return Vec::new();
            }
        };
        let mut matched = Vec::new();
        for line in lines {
            let command = self.line(link, &line);
            matched.push((command, line));
        }
        matched
    }

    /// The socket of a connection takes nothing from now on.
    pub fn blocked(&mut self, link: usize, now: u64) {
        self.now = now;
        // What it doesn't take now may have stood behind a receipt before.
        let since = self.held_back_since(link);
        self.links[link].blocked.get_or_insert(since);
    }

    /// The socket has room and the broker has nothing more to write.
    pub fn unblocked(&mut self, link: usize, now: u64) {
        self.now = now;
        if self.links[link].blocked.take().is_some() {
            for source in self.links[link].sources.clone() {
                self.queue(&source).fog = Some(now);
            }
        }
    }

    /// The wall clock was set: it differs by `offset` microseconds from the broker's from now on.
    pub fn wall_clock_set(&mut self, offset: i64, now: u64) {
        self.now = now;
        self.wall.push((now, offset));
        for index in 0..self.messages.len() {
            let message = &self.messages[index];
            let at_ms = self.publish_of(message.command).and_then(|p| p.at_ms);
            if let (Fate::InFlight, Some(ms)) = (&message.fate, at_ms) {
                // It may be run only now.
                let (least, _) = self.due_at(ms, message.sent, now);
                self.messages[index].due.0 = least;
            }
        }
    }

    /// When a message is due that was published with `at=` between `low` and `high`: not before,
    /// not after.
    fn due_at(&self, at_ms: u64, low: u64, high: u64) -> (u64, u64) {
        let since = self.wall.iter().rposition(|(from, _)| *from <= low);
        let possible = self.wall[since.unwrap_or(0)..].iter();
        let offsets = possible
            .filter(|(from, _)| *from <= high)
            .map(|(_, offset)| (at_ms * 1000).saturating_add_signed(-offset));
        let least = offsets.clone().min().expect("the clock shows something");
        let most = offsets.max().expect("as above");
        (least.max(low), most.max(high))
    }

    /// The broker was asked to end.
    pub fn shutting_down(&mut self) {
        self.drain = None;
        for link in 0..self.links.len() {
            self.links[link].shut = true;
            self.leaves(link);
        }
    }

    /// The broker closes this connection because its disk failed.
    pub fn giving_up(&mut self, link: usize) {
        self.links[link].shut = true;
        self.leaves(link);
    }

    /// The client has ended its side; all it sent has arrived.
    pub fn half_closed(&mut self, link: usize, now: u64) {
        self.now = now;
        self.links[link].half_closed = true;
        self.leaves(link);
        self.pops_await_peer(link);
    }

    /// The server may close the connection from now on; then its leases return.
    fn leaves(&mut self, link: usize) {
        let now = self.now;
        let record = &mut self.links[link];
        record.leaving = true;
        if !record.open {
            return;
        }
        if record.may_close.is_none() {
            record.may_close = Some(now);
            for sub in &mut record.live {
                sub.until.0 = sub.until.0.min(now);
            }
        }
        self.leases_leave(link);
    }

    /// What the connection holds may return from now on.
    fn leases_leave(&mut self, link: usize) {
        let now = self.now;
        for delivery in &mut self.deliveries {
            if delivery.link == link && delivery.held != Some(true) {
                delivery.leaving = delivery.leaving.or(Some(now));
            }
        }
    }

    /// The connection is gone: closed by the server after its output was flushed, or reset.
    pub fn closed(&mut self, link: usize, by_server: bool, now: u64) {
        self.now = now;
        if !self.links[link].open {
            return;
        }
        self.links[link].open = false;
        if by_server {
            if self.links[link].may_close.is_none() {
                self.fail("F", format!("connection {link} was closed for no reason"));
            }
            let reader = &self.links[link].reader;
            if reader.inside_line() && !reader.is_cut_by_failure() {
                self.fail("F", format!("connection {link} was closed inside a line"));
            }
            self.check_drained(link);
        }
        self.end_of_link(link, by_server);
    }

    /// The broker is gone. `sync_us` is how long its syncs may have lasted, microseconds.
    pub fn crashed(&mut self, mode: Crash, sync_us: u64, now: u64) {
        self.now = now;
        // What else it gave out in its last turn was never sent, so nobody can judge.
        self.deferred.clear();
        for link in 0..self.links.len() {
            if self.links[link].open {
                self.links[link].open = false;
                self.end_of_link(link, false);
            }
        }
        self.end_of_boot(mode, sync_us);
    }

    /// The broker died again before it served. `sync_us` as in [`Oracle::crashed`].
    pub fn crashed_in_recovery(&mut self, mode: Crash, sync_us: u64, now: u64) {
        self.now = now;
        if mode == Crash::Power && self.dark.is_none() {
            let end = self.runs.last().map_or(0, |run| run.1);
            self.power_lost(end, sync_us);
        }
    }

    /// The broker serves (again).
    pub fn started(&mut self, now: u64) {
        self.now = now;
        self.boot += 1;
        self.up_since = Some(now);
        self.dark = None;
        self.waits_told.clear();
        for index in 0..self.deliveries.len() {
            let delivery = &mut self.deliveries[index];
            // A confirmed nack keeps its delay over the restart; every lease is void.
            match delivery.ended {
                Some((low, high)) => delivery.ended = Some((low, high.max(now))),
                None => {
                    // A nack that was in flight may have been logged with its delay, or not.
                    let delay = delivery.nacks.iter().map(|nack| nack.2).max().unwrap_or(0);
                    let low = delivery.ready_again().min(now);
                    delivery.ended = Some((low, now + delay));
                }
            }
        }
    }

    /// Known handles and ids, for clients that want to name somebody else's.
    pub fn handles(&self) -> impl Iterator<Item = &String> {
        let told = |handle: &&String| !handle.starts_with(UNTOLD);
        self.by_handle.keys().filter(told)
    }

    /// An id that a queue has given, for `DEL`.
    pub fn ids_of(&self, queue: &str) -> Vec<u64> {
        let Some(queue_known) = self.queues.get(queue) else {
            return Vec::new();
        };
        let here = queue_known
            .messages
            .iter()
            .map(|index| &self.messages[*index]);
        here.filter(|message| message.place == queue)
            .filter_map(|message| message.id)
            .collect()
    }

    /// Queues that clients have named, and those that dead letters may be in.
    pub fn queue_names(&self) -> Vec<String> {
        let mut names = std::collections::BTreeSet::new();
        for (name, queue) in &self.queues {
            names.insert(name.clone());
            names.extend(queue.track.dead(0, u64::MAX));
        }
        names.into_iter().collect()
    }

    /// A command that was typed.
    pub fn command(&self, command: usize) -> &Command {
        &self.commands[command].command
    }

    /// Its terminal line was read.
    pub fn is_answered(&self, command: usize) -> bool {
        !self.commands[command].open()
    }

    /// The handles that a `PULL` was given.
    pub fn handles_from(&self, command: usize) -> Vec<String> {
        let sent = &self.commands[command];
        // Those of messages that are not judged any more too: others of their key wait for them.
        let given = self.by_handle.iter().filter(|handle| {
            let delivery = &self.deliveries[*handle.1];
            delivery.link == sent.link && sent.arrived.is_some_and(|at| delivery.granted.0 >= at)
        });
        given.map(|handle| handle.0.clone()).collect()
    }

    /// The broker refuses a disk that only honest crashes have touched.
    pub fn refused_to_start(&mut self, text: String) {
        self.fail("P", format!("no start: {text}"));
    }

    /// The broker uses the processor for nothing, or takes too long to end.
    pub fn spun(&mut self, text: String) {
        self.fail("L", text);
    }

    /// It has, or may soon have, a subscription.
    pub fn subscribes(&self, link: usize) -> bool {
        let asks = |sent: &Sent| {
            let comes = sent.arrived.is_none() || sent.open();
            sent.link == link && comes && matches!(sent.command.kind, Kind::Sub { .. })
        };
        !self.links[link].subs.is_empty() || self.commands.iter().any(asks)
    }

    /// How many commands were typed.
    pub fn commands(&self) -> usize {
        self.commands.len()
    }

    /// How many commands have been answered, and deliveries seen.
    pub fn totals(&self) -> (usize, usize) {
        let answered = self
            .commands
            .iter()
            .filter(|sent| sent.answered.is_some())
            .count();
        (answered, self.deliveries.len())
    }
}

/// Whether a claim of this certainty may still be decided by what is seen later.
fn undecided(certainty: Certainty) -> bool {
    matches!(certainty, Certainty::Pending | Certainty::Maybe { .. })
}
