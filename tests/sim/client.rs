//! Clients that do what chance and their theme say: they know what they were sent, and nothing
//! of the broker.

mod doors;
mod topics;
mod transactions;

use crate::command::{Command, Form, Kind, Level, Publish, Pull, Setting, State};
use crate::dialect::Dialect;
use crate::oracle::Oracle;
use crate::rng::Rng;
use crate::wire::Line;

/// Dead-letter queues, on whatever shards.
const GRAVES: [&str; 4] = ["graves", "yard", "pit.dead", "d"];

/// What a run is about: which parts of the protocol its clients use, and how often.
#[derive(Clone, Debug)]
pub struct Theme {
    /// Queues, as they are typed.
    pub queues: Vec<String>,
    /// `delay=` and `at=`.
    pub delays: bool,
    /// `ttl=`, of messages and of queues.
    pub ttl: bool,
    /// `pri=`
    pub priorities: bool,
    /// `key=`
    pub keys: bool,
    /// `once=`
    pub once: bool,
    /// `ack=auto`
    pub auto: bool,
    /// `maxlen=`, `maxbytes=`, `full=`
    pub limits: bool,
    /// `PURGE`, `DEL`, `MOVE`, `QDEL`
    pub removals: bool,
    /// `QSET` in the middle of things.
    pub resets: bool,
    /// `pause=`
    pub pauses: bool,
    /// Malformed and unknown commands.
    pub garbage: bool,
    /// `SUB` and `CREDIT`
    pub pushes: bool,
    /// Levels other than the broker's default.
    pub levels: bool,
    /// `!`
    pub quiet: bool,
    /// Connections that end, sockets that block.
    pub rough: bool,
    /// Few tries, so that messages are dead-lettered.
    pub dead_letters: bool,
    /// `CAST`, `BIND` and live subscriptions.
    pub topics: bool,
    /// `REQ` and `REP`
    pub requests: bool,
    /// `BEGIN … COMMIT`
    pub transactions: bool,
    /// How many shards the broker has: what must be on one of them is.
    pub shards: u32,
    /// Only what is on this shard.
    pub only: Option<u32>,
    /// Messages of a batch at most.
    pub batch_max: u64,
    /// Longest lease and delay, microseconds.
    pub span_us: u64,
}

impl Theme {
    /// The shard of a source, as it is typed.
    pub fn shard_of(&self, source: &str) -> u32 {
        let queue = source.split('/').next().unwrap_or_default();
        let name = queue.replace("%20", " ");
        ringmq::shard::shard_of(name.as_bytes(), self.shards)
    }

    /// The shard that gave a handle; `None` if none did.
    pub fn shard_of_handle(&self, handle: &str) -> Option<u32> {
        let mut numbers = handle.split('.').map(str::parse::<u64>);
        let incarnation = numbers.next()?.ok()?;
        let rest: Result<Vec<u64>, _> = numbers.collect();
        let is_handle = rest.is_ok_and(|rest| rest.len() == 2);
        is_handle.then_some((incarnation % u64::from(self.shards)) as u32)
    }
}

/// What a client does next.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Act {
    Type(Command),
    HalfClose,
    Reset,
    /// Reads nothing for so long, microseconds.
    Pause(u64),
}

/// A message that the client was given.
#[derive(Clone, Debug)]
struct Held {
    handle: String,
}

/// One client, over all its connections.
#[derive(Debug)]
pub struct Client {
    /// What it speaks.
    pub dialect: Dialect,
    rng: Rng,
    held: Vec<Held>,
    /// Commands without an answer.
    pub open: usize,
    tags: u64,
    pings: u64,
    /// Types nothing more on this connection.
    pub finished: bool,
    untagged_sub: bool,
    /// Subscriptions: source, tagged, settled before sent.
    subs: Vec<(String, bool, bool)>,
    /// Tags of waiting `PULL`s and `REQ`s.
    waiting_tags: Vec<String>,
    /// Patterns of live subscriptions.
    live: Vec<String>,
    /// Tokens of requests that it was given.
    asked: Vec<String>,
    /// Consumers of AMQP: what they read, and their names.
    consumers: Vec<(String, String)>,
    /// It has said what every client of its protocol says first.
    has_greeted: bool,
    /// The broker has closed its channel.
    is_refused: bool,
    /// Shares of the kinds of work: publish, consume, administer.
    shares: [u64; 3],
}

/// Most commands that a client has unanswered before it waits.
const OPEN_MAX: usize = 40;

impl Client {
    /// A client with habits of its own.
    pub fn new(mut rng: Rng, dialect: Dialect) -> Client {
        let shares = *rng.pick(&[
            [6, 2, 1],
            [2, 6, 1],
            [4, 4, 1],
            [1, 8, 0],
            [8, 1, 0],
            [2, 2, 3],
        ]);
        Client {
            dialect,
            rng,
            held: Vec::new(),
            open: 0,
            tags: 0,
            pings: 0,
            finished: false,
            untagged_sub: false,
            subs: Vec::new(),
            waiting_tags: Vec::new(),
            live: Vec::new(),
            asked: Vec::new(),
            consumers: Vec::new(),
            has_greeted: false,
            is_refused: false,
            shares,
        }
    }

    /// A new connection: what was pending on the old one is forgotten, handles are not.
    pub fn connected(&mut self) {
        self.open = 0;
        self.finished = false;
        self.untagged_sub = false;
        self.subs.clear();
        self.waiting_tags.clear();
        self.live.clear();
        self.consumers.clear();
        self.has_greeted = false;
        self.is_refused = false;
        if self.dialect != Dialect::Text {
            // Their deliveries have no names that outlive the connection.
            self.held.clear();
        }
    }

    /// A line that this client was sent, and what it belongs to.
    pub fn line(&mut self, command: Option<&Command>, line: &Line) {
        if self.dialect != Dialect::Text {
            return self.line_of_door(command, line);
        }
        if line.kind == "MSG" {
            self.asked.extend(line.option("reply").map(str::to_string));
            if let Some(handle) = line.words.get(1).filter(|handle| handle.contains('.')) {
                self.held.push(Held {
                    handle: handle.clone(),
                });
            }
            return;
        }
        if let Some(command) = command {
            self.open = self.open.saturating_sub(1);
            if let Some(tag) = &command.tag {
                self.waiting_tags.retain(|waiting| waiting != tag);
            }
        }
    }

    /// What to do now.
    pub fn act(&mut self, theme: &Theme, oracle: &mut Oracle, wall_us: u64) -> Vec<Act> {
        if self.is_refused {
            return vec![Act::Reset];
        }
        if self.finished || self.open > OPEN_MAX {
            return match theme.rough && self.rng.chance(100) {
                true => vec![Act::Reset],
                false => Vec::new(),
            };
        }
        let says_hello = self.dialect.is_amqp() && !self.has_greeted;
        if theme.rough && !says_hello && self.rng.chance(25) {
            return self.leave();
        }
        if self.dialect != Dialect::Text {
            return self.act_at_door(theme, oracle);
        }
        let mut acts = Vec::new();
        for _ in 0..self.rng.spread(1, 8) {
            let shares = self.shares;
            match self.rng.weighted(&[
                shares[0],
                shares[1],
                shares[2],
                u64::from(theme.garbage),
                4 * u64::from(theme.topics),
                4 * u64::from(theme.requests),
                4 * u64::from(theme.transactions),
            ]) {
                0 => self.publish(theme, oracle, wall_us, &mut acts),
                1 => self.consume(theme, oracle, &mut acts),
                2 => self.administer(theme, oracle, &mut acts),
                4 => self.topics(oracle, &mut acts),
                5 => self.ask(oracle, &mut acts),
                6 => self.transact(theme, oracle, wall_us, &mut acts),
                _ => self.garbage(theme, &mut acts),
            }
            if self.finished {
                break;
            }
        }
        acts
    }

    fn leave(&mut self) -> Vec<Act> {
        match self.rng.below(5) {
            0 => vec![Act::Reset],
            1 => {
                self.finished = true;
                vec![Act::HalfClose]
            }
            2 => {
                self.finished = true;
                let quit = Command {
                    tag: None,
                    quiet: false,
                    kind: Kind::Quit,
                };
                vec![Act::Type(quit)]
            }
            _ => vec![Act::Pause(self.rng.spread(1_000, 2_000_000))],
        }
    }

    fn queue(&mut self, theme: &Theme) -> String {
        self.rng.pick(&theme.queues).clone()
    }

    fn tag(&mut self, per_mille: u64) -> Option<String> {
        self.rng.chance(per_mille).then(|| {
            self.tags += 1;
            format!("t{}", self.tags)
        })
    }

    fn say(&mut self, tag: Option<String>, kind: Kind, acts: &mut Vec<Act>) {
        self.open += 1;
        acts.push(Act::Type(Command {
            tag,
            quiet: false,
            kind,
        }));
    }

    fn body(&mut self, oracle: &mut Oracle, form: Form, small: bool) -> (usize, Vec<u8>) {
        let index = oracle.body_next();
        let mut body = format!("{index}:").into_bytes();
        let size = match self.rng.weighted(&[60, 30, 8, 2]) {
            _ if small => self.rng.below(20),
            0 => self.rng.below(20),
            1 => self.rng.below(200),
            2 => self.rng.below(3000),
            _ => self.rng.below(40_000),
        };
        for _ in 0..size {
            let byte = self.rng.next() as u8;
            body.push(match form {
                Form::Counted | Form::Blocks => byte,
                Form::Inline | Form::Lines => b' ' + byte % 90,
            });
        }
        oracle.add_body(body.clone());
        (index, body)
    }

    fn publish(&mut self, theme: &Theme, oracle: &mut Oracle, wall_us: u64, acts: &mut Vec<Act>) {
        let form = *self.rng.pick(&[
            Form::Inline,
            Form::Inline,
            Form::Counted,
            Form::Lines,
            Form::Blocks,
        ]);
        let count = match form {
            Form::Inline | Form::Counted => 1,
            Form::Lines | Form::Blocks => self.rng.spread(1, theme.batch_max),
        };
        let bodies = (0..count)
            .map(|_| self.body(oracle, form, count > 12))
            .collect();
        let rng = &mut self.rng;
        let delayed = theme.delays && rng.chance(200);
        let at = delayed && rng.chance(300);
        let span = rng.spread(1000, theme.span_us);
        let once = (theme.once && rng.chance(500)).then(|| format!("o{}", rng.below(12)));
        let level = *rng.pick(&[Level::None, Level::Os, Level::Disk]);
        let publish = Publish {
            queue: rng.pick(&theme.queues).clone(),
            bodies,
            form,
            delay_us: if delayed && !at { span } else { 0 },
            at_ms: at.then_some((wall_us + span) / 1000),
            ttl_us: (theme.ttl && rng.chance(200)).then(|| rng.spread(1000, theme.span_us)),
            pri: (theme.priorities && rng.chance(400)).then(|| rng.below(4)),
            key: (theme.keys && rng.chance(400)).then(|| format!("k{}", rng.below(3))),
            once,
            sync: (theme.levels && rng.chance(150)).then_some(level),
        };
        if theme.quiet && self.rng.chance(150) {
            return self.quiet(Kind::Publish(publish), acts);
        }
        let tag = self.tag(60);
        self.say(tag, Kind::Publish(publish), acts);
    }

    /// A quiet command, and one behind it whose answer tells that it was run.
    fn quiet(&mut self, kind: Kind, acts: &mut Vec<Act>) {
        acts.push(Act::Type(Command {
            tag: None,
            quiet: true,
            kind,
        }));
        let barrier = match self.rng.chance(500) {
            true => Kind::Sync(None),
            false => self.ping(),
        };
        self.say(None, barrier, acts);
    }

    fn ping(&mut self) -> Kind {
        self.pings += 1;
        Kind::Ping(Some(format!("p{}", self.pings)))
    }

    fn consume(&mut self, theme: &Theme, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        match self.held.is_empty() || self.rng.chance(350) {
            true => self.fetch(theme, acts),
            false => self.settle(theme, oracle, acts),
        }
    }

    fn lease(&mut self, theme: &Theme) -> Option<u64> {
        let explicit = self.rng.chance(500);
        explicit.then(|| self.rng.spread(2000, theme.span_us))
    }

    fn fetch(&mut self, theme: &Theme, acts: &mut Vec<Act>) {
        if theme.pushes && self.rng.chance(200) {
            return self.push(theme, acts);
        }
        if let Some(tag) = self.waiting_tags.first().cloned()
            && self.rng.chance(100)
        {
            return self.say(None, Kind::Cancel(tag), acts);
        }
        if self.rng.chance(40) {
            // Cancels a waiting PULL, if that is what comes before it.
            acts.push(Act::Type(Command {
                tag: None,
                quiet: false,
                kind: Kind::Empty,
            }));
            return;
        }
        let several = self.rng.chance(150);
        let mut sources = vec![self.source(theme)];
        if several {
            let more = self.source(theme);
            if !sources.contains(&more) {
                sources.push(more);
            }
        }
        let auto = theme.auto && self.rng.chance(300);
        let pull = Pull {
            sources,
            count: self.rng.spread(1, 16),
            wait_us: if self.rng.chance(500) {
                self.rng.spread(1000, 3_000_000)
            } else {
                0
            },
            lease_us: self.lease(theme),
            auto,
            hold: !auto && self.rng.chance(60),
            bytes: self.rng.chance(60).then(|| self.rng.spread(1, 1000)),
            timestamps: self.rng.chance(50),
            tail: false,
        };
        let tag = self.tag(if self.untagged_sub { 1000 } else { 300 });
        self.waiting_tags.extend(tag.clone());
        self.say(tag, Kind::Pull(pull), acts);
    }

    fn push(&mut self, theme: &Theme, acts: &mut Vec<Act>) {
        let source = self.source(theme);
        match self.rng.below(6) {
            0 => {
                let credit = self.rng.below(20);
                self.say(None, Kind::Credit { source, credit }, acts);
            }
            1 => {
                self.subs.retain(|sub| sub.0 != source);
                self.say(None, Kind::Unsub(source), acts);
            }
            _ => {
                // A second SUB of a source changes the first: only as far as is defined.
                let before = self.subs.iter().find(|sub| sub.0 == source).cloned();
                if before.as_ref().is_some_and(|sub| sub.1) {
                    return;
                }
                let tag = self.tag(if before.is_some() { 0 } else { 500 });
                self.untagged_sub |= tag.is_none();
                let credit = self.rng.chance(700).then(|| self.rng.spread(1, 30));
                let lease_us = self.lease(theme);
                let auto = match &before {
                    Some(sub) => sub.2,
                    None => theme.auto && self.rng.chance(300),
                };
                if before.is_none() {
                    self.subs.push((source.clone(), tag.is_some(), auto));
                }
                self.say(
                    tag,
                    Kind::Sub {
                        source,
                        credit,
                        lease_us,
                        auto,
                    },
                    acts,
                );
            }
        }
    }

    fn settle(&mut self, theme: &Theme, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        let mut handles = Vec::new();
        for _ in 0..self.rng.spread(1, 8).min(self.held.len() as u64) {
            let at = self.rng.below(self.held.len() as u64) as usize;
            let again = self.rng.chance(40);
            handles.push(match again {
                true => self.held[at].handle.clone(),
                false => self.held.swap_remove(at).handle,
            });
            if self.held.is_empty() {
                break;
            }
        }
        if self.rng.chance(60) {
            handles.push(self.strange_handle(oracle));
        }
        if let Some(only) = theme.only {
            handles.retain(|handle| theme.shard_of_handle(handle).is_none_or(|it| it == only));
            if handles.is_empty() {
                return;
            }
        }
        let kind = match self.rng.weighted(&[70, 18, 8, 4]) {
            0 => Kind::Ack(handles),
            1 => Kind::Nack {
                handles,
                delay_us: self.rng.chance(600).then(|| self.rng.below(theme.span_us)),
                dead: self.rng.chance(if theme.dead_letters { 150 } else { 10 }),
            },
            2 => {
                let lease_us = self.lease(theme);
                self.held.extend(handles.iter().map(|handle| Held {
                    handle: handle.clone(),
                }));
                Kind::Touch { handles, lease_us }
            }
            // Left to expire.
            _ => return,
        };
        if theme.quiet && self.rng.chance(150) {
            return self.quiet(kind, acts);
        }
        let tag = self.tag(60);
        self.say(tag, kind, acts);
    }

    fn strange_handle(&mut self, oracle: &Oracle) -> String {
        let known: Vec<&String> = oracle.handles().collect();
        match self.rng.below(5) {
            0 => "1.1".to_string(),
            1 => "x".to_string(),
            2 => {
                let start = self.rng.below(4);
                let (id, serial) = (self.rng.below(30), self.rng.below(60));
                let has_serial = |handle: &&String| {
                    let mut numbers = handle.split('.');
                    let starts_alike = numbers.next() == Some(&start.to_string());
                    starts_alike && numbers.nth(1) == Some(&serial.to_string())
                };
                // A serial that nobody has seen may be that of a lease whose holder has not read of it yet.
                let unseen = !known.iter().any(has_serial);
                let serial = serial + if unseen { 1 << 20 } else { 0 };
                format!("{start}.{id}.{serial}")
            }
            3 => "99999999999999999999.1.1".to_string(),
            _ if known.is_empty() => "-".to_string(),
            _ => (*self.rng.pick(&known)).clone(),
        }
    }

    fn administer(&mut self, theme: &Theme, oracle: &mut Oracle, acts: &mut Vec<Act>) {
        let queue = self.queue(theme);
        let removals = if theme.removals { 1 } else { 0 };
        let tag = self.tag(60);
        let kind = match self.rng.weighted(&[
            3 * u64::from(theme.resets),
            3,
            2,
            2 * removals,
            3 * removals,
            3 * removals,
            removals,
            3,
            1,
        ]) {
            0 if theme.dead_letters && theme.shards > 1 && self.rng.chance(200) => Kind::QSet {
                // Rows of dead-letter queues, some of which would lead back.
                queue: self.rng.pick(&GRAVES).to_string(),
                settings: vec![Setting::Dead(self.rng.pick(&GRAVES).to_string())],
            },
            0 => {
                let settings = self.settings(theme, false);
                Kind::QSet { queue, settings }
            }
            1 => {
                let ping = self.ping();
                self.rng
                    .pick(&[ping, Kind::QGet(queue), Kind::QLs, Kind::Stats, Kind::Help])
                    .clone()
            }
            2 => Kind::Sync(None),
            3 => Kind::Purge {
                queue,
                state: *self.rng.pick(&[None, None, Some(State::Ready)]),
            },
            4 => {
                let known = oracle.ids_of(&queue);
                let mut ids: Vec<String> = Vec::new();
                for _ in 0..self.rng.spread(1, 4) {
                    let id = match known.is_empty() {
                        true => self.rng.below(50),
                        false => *self.rng.pick(&known),
                    };
                    if !ids.contains(&id.to_string()) {
                        ids.push(id.to_string());
                    }
                }
                Kind::Del { queue, ids }
            }
            5 => {
                let to = self.queue(theme);
                if to == queue {
                    return;
                }
                let from = match self.rng.chance(400) {
                    true => format!("{queue}.dead"),
                    false => queue,
                };
                let count = self.rng.chance(600).then(|| self.rng.spread(1, 20));
                Kind::Move { from, to, count }
            }
            6 => Kind::QDel(queue),
            7 => {
                let states = [State::Ready, State::Delayed, State::Leased, State::Dead];
                let state = *self.rng.pick(&states);
                let tag = self.tag(if self.untagged_sub { 1000 } else { 100 });
                let count = self.rng.spread(1, 20);
                return self.say(
                    tag,
                    Kind::Peek {
                        queue,
                        count,
                        state,
                    },
                    acts,
                );
            }
            _ => Kind::Hello {
                expired: self.rng.chance(500),
            },
        };
        self.say(tag, kind, acts);
    }

    /// Settings that fit the theme. At the start of a run everything may be said.
    pub fn settings(&mut self, theme: &Theme, first: bool) -> Vec<Setting> {
        let rng = &mut self.rng;
        let mut settings = Vec::new();
        let often = if first { 600 } else { 150 };
        let span = theme.span_us;
        if theme.levels && rng.chance(often) {
            let level = *rng.pick(&[Level::None, Level::Os, Level::Disk, Level::Os]);
            settings.push(Setting::Durable(level));
        }
        if rng.chance(often) {
            settings.push(Setting::Lease(rng.spread(20_000, span.max(20_001))));
        }
        if theme.dead_letters && rng.chance(often) {
            settings.push(Setting::MaxDeliver(rng.below(4)));
        }
        if theme.dead_letters && theme.ttl && rng.chance(often) {
            settings.push(Setting::DeadOn(true, rng.chance(500), rng.chance(300)));
        }
        if rng.chance(often) {
            let first = rng.spread(1000, span);
            let backoff = match rng.chance(500) {
                true => Setting::Backoff(0, 0),
                false => Setting::Backoff(first, first * 4),
            };
            settings.push(backoff);
        }
        if theme.once && rng.chance(often) {
            settings.push(Setting::Dedup(rng.spread(500_000, 60_000_000)));
        }
        if theme.limits && rng.chance(often) {
            settings.push(Setting::DropOld(rng.chance(400)));
            settings.push(Setting::MaxLen(rng.spread(1, 40)));
        }
        if theme.limits && rng.chance(often / 3) {
            settings.push(Setting::MaxBytes(rng.spread(500, 20_000)));
        }
        if theme.ttl && rng.chance(often / 2) {
            settings.push(Setting::Ttl(rng.spread(10_000, span.max(10_001))));
        }
        if theme.priorities && rng.chance(often) {
            settings.push(Setting::Pri(rng.below(4)));
        }
        if theme.pauses && rng.chance(often / 2) {
            settings.push(Setting::Pause(rng.chance(300), rng.chance(300)));
        }
        if theme.keys && rng.chance(often / 2) {
            settings.push(Setting::Fair(rng.chance(600)));
        }
        if theme.keys && rng.chance(often / 2) {
            settings.push(Setting::Single(rng.chance(500)));
        }
        if theme.dead_letters && theme.shards > 1 && rng.chance(often / 2) {
            settings.push(Setting::Dead(rng.pick(&GRAVES).to_string()));
        }
        if settings.is_empty() {
            settings.push(Setting::Lease(rng.spread(20_000, 5_000_000)));
        }
        settings
    }

    fn garbage(&mut self, theme: &Theme, acts: &mut Vec<Act>) {
        const REFUSED: &[&str] = &["SYNTAX", "UNKNOWN", "NAME", "CONFLICT", "TOOBIG", "LIMIT"];
        let queue = self.queue(theme);
        let inner = format!("PUB {queue} :evil\n");
        let closes = self.rng.chance(60);
        let text = match (closes, self.rng.below(16)) {
            (true, at) if at < 8 => format!("PUB {queue} $1e3\n"),
            (true, _) => format!("FROB {queue} $3\nabcdefg\n"),
            (_, 0) => format!("FROB {queue} x=1 :evil\n"),
            (_, 1) => "PUB\n".to_string(),
            (_, 2) => format!("PUB {queue} evil\n"),
            (_, 3) => format!("PUB {queue} delay=1x :evil\n"),
            (_, 4) => format!("PULL {queue} lease=abc\n"),
            (_, 5) => format!("FROB {queue} ${}\n{inner}\n", inner.len()),
            (_, 6) => format!("MPUB {queue} nosuch=1 *2\n{inner}{inner}"),
            (_, 7) => "ACK\n".to_string(),
            (_, 8) => format!("PULL! {queue}\n"),
            (_, 9) => format!("PUB {queue} sync=quorum :evil\n"),
            (_, 10) => format!("AUTH {queue} ${}\r\n{inner}\r\n", inner.len()),
            (_, 11) => format!("QSET {queue} nosuch=1\n"),
            (_, 12) => format!("PUB :evil {queue}\n"),
            (_, 13) => format!("MPUB {queue} ${}\n{inner}\n", inner.len()),
            (_, 14) => format!("PUB {queue} pri=256 :evil\n"),
            (_, _) => format!(
                "PUB {queue} ${}\n{}\n",
                BODY_BYTES_MAX + 1,
                "e".repeat(BODY_BYTES_MAX + 1)
            ),
        };
        let codes: &[&str] = if closes { &["PROTO"] } else { REFUSED };
        self.finished |= closes;
        self.say(
            None,
            Kind::Bad {
                bytes: text.into_bytes(),
                codes,
                closes,
            },
            acts,
        );
    }
}

/// The limit of a body in simulated brokers, bytes.
pub const BODY_BYTES_MAX: usize = 50_000;
