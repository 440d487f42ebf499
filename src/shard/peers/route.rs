//! Where a command is run.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::away::{Dest, Wait};
use super::gather::{Gather, Question};
use super::guest::Kind;
use super::pull::Asks;
use crate::broker::command::{Body, Command, PullOptions, Request, StatsScope, Tokens, Typed};
use crate::broker::reply::Error;
use crate::log::disk::Storage;
use crate::protocol::text::fast;
use crate::protocol::text::handles::{self, Acks};
use crate::protocol::text::repeated::Bodies;
use crate::shard::conn::Blocked;
use crate::shard::door::PassedOn;
use crate::shard::drain::draining;
use crate::shard::interest::{tag_in_use, untagged_in_use};
use crate::shard::placement::shard_of;
use crate::shard::request::shard_of_token;
use crate::shard::session::{Asker, Flow};
use crate::shard::transaction::Commands;
use crate::shard::{Now, Shard};

/// So much of plain commands is posted in one go, bytes, before limits are looked at again.
const PLAIN_BYTES_MAX: usize = 64 << 10;

/// Where a command is run.
#[derive(Debug)]
pub(in crate::shard) enum Plan {
    /// Here, by this connection.
    Here,
    /// At another shard.
    Post {
        to: u32,
        /// Later commands wait for its answers.
        waits: bool,
        /// A tag is in use from now on; the empty one is that of untagged subscriptions.
        begins: Option<Box<[u8]>>,
    },
    /// At several; what each is asked if that is not the command as it stands.
    Gather {
        question: Question,
        asked: Vec<(u32, Option<Vec<u8>>)>,
    },
    /// Messages are taken at several, in this order: the sources at each.
    Pull(Vec<(u32, Vec<u8>)>, PullOptions),
    /// The transaction is committed at another shard.
    Commit(u32),
    /// It is committed at several: the commands of each.
    CommitAcross(Vec<(u32, Vec<u8>)>),
    /// It comes again when this is over.
    Again(Wait),
    /// Nowhere.
    Refuse(Error),
}

/// What is needed to carry out a plan when the command is no longer borrowed.
#[derive(Debug)]
pub(in crate::shard) struct Errand {
    plan: Plan,
    tag: Option<Box<[u8]>>,
    quiet: bool,
    /// The body, if it is not in the input.
    own: Option<Bytes>,
}

impl Errand {
    /// For that request.
    pub(in crate::shard) fn new(plan: Plan, request: &Request<'_>) -> Errand {
        Errand {
            plan,
            tag: request.tag.map(Box::from),
            quiet: request.quiet,
            own: own_body(&request.command),
        }
    }
}

/// The body that came into memory of its own.
fn own_body(command: &Command<'_>) -> Option<Bytes> {
    let body = match command {
        Command::Publish { body, .. }
        | Command::PublishBatch { data: body, .. }
        | Command::Request { body, .. }
        | Command::Cast { body, .. }
        | Command::Schedule { body, .. }
        | Command::Answer { body, .. } => body,
        _ => return None,
    };
    match body {
        Body::Owned(bytes) => Some(bytes.clone()),
        Body::Borrowed(_) => None,
    }
}

impl<S: Storage> Shard<S> {
    /// The shard of the queue of that name. A connection that stays on one queue hashes nothing.
    pub(super) fn owner_of(&mut self, slot: usize, name: Typed<'_>) -> u32 {
        let (shards, me) = self.shards();
        if self.last_target(slot, name).is_some() {
            return me;
        }
        if let Some(away) = &self.conns[slot].away
            && away.last.0 == name.0
        {
            return away.last.1;
        }
        let owner = shard_of(name.decoded(&mut Vec::new()), shards);
        if let Some(away) = &mut self.conns[slot].away {
            away.last.0.clear();
            away.last.0.extend_from_slice(name.0);
            away.last.1 = owner;
        }
        owner
    }

    /// Posts the plain publishes, or plain acks, at the front of `input` that go to one other shard; returns how
    /// many bytes they are. Decides nothing: what is not plain, and what goes elsewhere, is left to the general
    /// path, which posts the same bytes.
    #[inline(never)]
    pub(in crate::shard) fn post_plain(&mut self, slot: usize, input: &[u8]) -> usize {
        let (shards, me) = self.shards();
        let conn = &self.conns[slot];
        let Some(away) = &conn.away else { return 0 };
        if conn.transaction.is_some() {
            return 0;
        }
        let mut used = 0;
        let to = match input.first() {
            Some(b'P') => {
                let (name, to) = (&away.last.0[..], away.last.1);
                if to == me || name.is_empty() {
                    return 0;
                }
                let mut bodies = Bodies::new(input, fast::PUBLISH, name, &self.limits);
                while used < PLAIN_BYTES_MAX
                    && let Some((_, consumed)) = bodies.peek()
                {
                    bodies.advance(consumed);
                    used += consumed;
                }
                to
            }
            Some(b'A') => {
                let owner = |incarnation: u64| (incarnation % u64::from(shards)) as u32;
                let to = match handles::first_incarnation(input) {
                    Some(incarnation) => owner(incarnation),
                    None => me,
                };
                if to == me {
                    return 0;
                }
                let (mut acks, mut read) = (Acks::new(), std::mem::take(&mut self.handles));
                while used < PLAIN_BYTES_MAX
                    && let Some((_, end)) = acks.read(input, used, &self.limits, &mut read)
                {
                    let elsewhere = |typed: &handles::Typed| owner(typed.handle.incarnation) != to;
                    if read.iter().any(elsewhere) {
                        break;
                    }
                    used = end;
                    read.clear();
                }
                read.clear();
                self.handles = read;
                to
            }
            _ => return 0,
        };
        if used == 0 || !self.has_room_to(slot, &[to]) {
            return 0;
        }
        self.post_command(slot, to, &[&input[..used]]);
        used
    }

    /// The shard that a handle names, if it is one.
    fn owner_of_handle(&self, token: &[u8]) -> Option<u32> {
        let (shards, _) = self.shards();
        let handle = handles::parse(token)?;
        Some((handle.incarnation % u64::from(shards)) as u32)
    }

    /// Where a command of a connection is run.
    #[inline(never)]
    pub(in crate::shard) fn route(&mut self, slot: usize, request: &Request<'_>) -> Plan {
        let conn = &self.conns[slot];
        if conn.guest.is_some() {
            return Plan::Here;
        }
        if let Some(open) = &conn.transaction {
            return match request.command {
                Command::Commit if !open.is_void() => self.plan_commit(slot),
                Command::Quit => self.plan_command(slot, request),
                _ => Plan::Here,
            };
        }
        let plan = self.plan_command(slot, request);
        let to = match &plan {
            Plan::Here => Some(self.shards().1),
            Plan::Post { to, .. } => Some(*to),
            Plan::Gather { .. } | Plan::Pull(..) => None,
            _ => return plan,
        };
        match self.tag_conflict(slot, request, to) {
            Some(other) => other,
            None => plan,
        }
    }

    fn plan_command(&mut self, slot: usize, request: &Request<'_>) -> Plan {
        let to = match &request.command {
            Command::Publish { queue, .. }
            | Command::PublishBatch { queue, .. }
            | Command::Schedule { queue, .. }
            | Command::Delete { queue, .. }
            | Command::Bind { queue, .. }
            | Command::Unbind { queue, .. } => self.owner_of(slot, *queue),
            Command::QueueSet { queue, settings } => {
                // What is behind it may be another one of the same row of dead-letter queues.
                let to = self.owner_of(slot, *queue);
                return self.post_to(to, settings.dead.is_some(), None);
            }
            Command::Request { queue, .. } => {
                let to = self.owner_of(slot, *queue);
                return self.post_to(to, request.tag.is_none(), request.tag);
            }
            Command::Pull { sources, options } => {
                let to = match self.split_pull(slot, *sources, *options) {
                    Ok(plan) => return plan,
                    Err(to) => to,
                };
                let waits = options.wait_us > 0;
                let begins = request.tag.filter(|_| waits);
                return self.post_to(to, waits && request.tag.is_none(), begins);
            }
            Command::Subscribe { source, .. } => {
                let to = self.owner_of(slot, source.queue);
                let tag = request.tag.unwrap_or_default();
                return self.post_to(to, false, Some(tag));
            }
            Command::Unsubscribe { source } => {
                let pattern = crate::broker::pattern::Pattern::new(source.queue.0).ok();
                let live = &self.conns[slot].rare.live;
                if source.group.is_none() && pattern.is_some_and(|it| live.contains_key(&it)) {
                    return Plan::Here;
                }
                self.owner_of(slot, source.queue)
            }
            Command::Credit { source, .. }
            | Command::QueueGet { source }
            | Command::QueueDelete { source }
            | Command::Purge { source, .. }
            | Command::Peek { source, .. }
            | Command::Seek { source, .. }
            | Command::Why { source }
            | Command::Stats(StatsScope::Queue(source)) => self.owner_of(slot, source.queue),
            Command::Move { source, target, .. } => {
                let to = self.owner_of(slot, source.queue);
                // What is behind it may look at the target.
                let waits = self.owner_of(slot, *target) != to;
                return self.post_to(to, waits, None);
            }
            Command::Ack { handles }
            | Command::Nack { handles, .. }
            | Command::Touch { handles, .. } => {
                return self.plan_settle(request, *handles);
            }
            Command::Answer { token, .. } => {
                let (shards, me) = self.shards();
                let token = token.decoded(&mut Vec::new()).to_vec();
                shard_of_token(&token, shards).unwrap_or(me)
            }
            Command::Kill { conn } => conn.0 % self.shards().0,
            // It is answered behind what the pull is given at this moment.
            Command::Cancel { tag } if self.is_pulling(slot, Some(tag)) => {
                return Plan::Again(Wait::All);
            }
            Command::Cancel { tag } => match &self.conns[slot].away {
                Some(away) => away.tags.get(*tag).map_or(self.shards().1, |(to, _)| *to),
                None => return Plan::Here,
            },
            Command::QueueList { .. } => return self.ask_all(Question::List),
            Command::Stats(StatsScope::Broker) => return self.ask_all(Question::Stats),
            Command::Stats(StatsScope::Connections) => {
                return self.ask_all(Question::Connections);
            }
            Command::Cast { .. } => return self.ask_all(Question::Cast),
            Command::Drain { .. } => return self.ask_all(Question::Drain),
            Command::Sync { .. } => return self.plan_sync(slot),
            Command::Quit if self.is_pulling(slot, None) => return Plan::Again(Wait::All),
            Command::Quit => {
                let away = self.conns[slot].away.as_ref();
                return match away.is_some_and(|away| !away.runs.is_empty()) {
                    true => Plan::Again(Wait::All),
                    false => Plan::Here,
                };
            }
            // What it changes is told to the guests at once, so its answer must not wait.
            Command::Hello { .. } => {
                let away = self.conns[slot].away.as_ref();
                return match away.is_some_and(|away| !away.runs.is_empty()) {
                    true => Plan::Again(Wait::All),
                    false => Plan::Here,
                };
            }
            Command::Ping { .. }
            | Command::Help { .. }
            | Command::SubscribeLive { .. }
            | Command::UnsubscribeLive { .. }
            | Command::Begin
            | Command::Commit
            | Command::Abort => return Plan::Here,
        };
        self.post_to(to, false, None)
    }

    fn post_to(&self, to: u32, waits: bool, begins: Option<&[u8]>) -> Plan {
        if to == self.shards().1 {
            return Plan::Here;
        }
        Plan::Post {
            to,
            waits,
            begins: begins.map(Box::from),
        }
    }

    fn ask_all(&self, question: Question) -> Plan {
        let asked = (0..self.shards().0).map(|shard| (shard, None));
        Plan::Gather {
            question,
            asked: asked.collect(),
        }
    }

    /// `SYNC` asks the shards that this connection has published at, as far as is known.
    fn plan_sync(&self, slot: usize) -> Plan {
        let Some(away) = &self.conns[slot].away else {
            return Plan::Here;
        };
        let is_counted_later = |dest: &Dest| match dest {
            Dest::Gather(gather) => gather.is_quiet_cast(),
            _ => false,
        };
        if away.runs.iter().any(|run| is_counted_later(&run.dest)) {
            return Plan::Again(Wait::All);
        }
        let mut asked = vec![(self.shards().1, None)];
        asked.extend(away.guests().into_iter().map(|shard| (shard, None)));
        Plan::Gather {
            question: Question::Sync,
            asked,
        }
    }

    /// Handles of one shard are settled there; those of several in as many commands.
    fn plan_settle(&self, request: &Request<'_>, handles: Tokens<'_>) -> Plan {
        let tokens = handles.iter();
        let owners: Vec<Option<u32>> = tokens.map(|token| self.owner_of_handle(token)).collect();
        let first = owners.first().copied().flatten();
        if owners.iter().all(|owner| *owner == first) {
            return self.post_to(first.unwrap_or(self.shards().1), false, None);
        }
        let mut shards: Vec<u32> = owners.iter().flatten().copied().collect();
        shards.sort_unstable();
        shards.dedup();
        let asked = shards.into_iter().map(|shard| {
            let own = handles.iter().zip(&owners);
            let own = own.filter(|(_, owner)| **owner == Some(shard));
            let own: Vec<&[u8]> = own.map(|(token, _)| token).collect();
            (shard, Some(settle_command(&request.command, &own)))
        });
        Plan::Gather {
            asked: asked.collect(),
            question: Question::Settle(handles.0.to_vec(), owners.clone()),
        }
    }

    /// A transaction is committed where its queues and leases are.
    fn plan_commit(&mut self, slot: usize) -> Plan {
        let frames = match &self.conns[slot].transaction {
            Some(open) => open.frames().to_vec(),
            None => return Plan::Here,
        };
        let me = self.shards().1;
        let limits = self.limits.clone();
        let mut parts: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut commands = Commands::new(&frames);
        loop {
            let before = commands.rest();
            let Some(command) = commands.next(&limits) else {
                break;
            };
            match command {
                Command::Publish { queue, .. } | Command::PublishBatch { queue, .. } => {
                    let owner = self.owner_of(slot, queue);
                    let frame = &before[..before.len() - commands.rest().len()];
                    parts.entry(owner).or_default().extend_from_slice(frame);
                }
                Command::Ack { handles } | Command::Nack { handles, .. } => {
                    let mut owners: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
                    for token in handles.iter() {
                        let owner = self.owner_of_handle(token).unwrap_or(me);
                        owners.entry(owner).or_default().push(token);
                    }
                    let is_whole = owners.len() == 1;
                    let own = owners.iter();
                    let lines = own.map(|(owner, own)| (*owner, settle_command(&command, own)));
                    let lines: Vec<(u32, Vec<u8>)> = lines.collect();
                    let frame = &before[..before.len() - commands.rest().len()];
                    for (owner, line) in lines {
                        let part = parts.entry(owner).or_default();
                        part.extend_from_slice(if is_whole { frame } else { &line });
                    }
                }
                _ => {}
            }
        }
        match (parts.len(), parts.first_key_value()) {
            (1, Some((to, _))) if *to != me => Plan::Commit(*to),
            (0 | 1, _) => Plan::Here,
            // Behind output that was not read for long; nobody would decide it any more.
            _ if self.has_passed_on() => Plan::Refuse(draining()),
            _ => Plan::CommitAcross(parts.into_iter().collect()),
        }
    }

    /// Tags are the connection's, wherever what they name is under way.
    fn tag_conflict(&self, slot: usize, request: &Request<'_>, to: Option<u32>) -> Option<Plan> {
        let conn = &self.conns[slot];
        let is_here = to == Some(self.shards().1);
        let away = conn.away.as_ref();
        let elsewhere = |tag: &[u8]| {
            let away = away?;
            let (shard, _) = *away.tags.get(tag)?;
            (to != Some(shard)).then(|| away.last_run_at(shard))
        };
        let verdict = |found: Option<Option<u64>>, error: Error| match found {
            // Perhaps it ends by what was posted there; the answer tells.
            Some(Some(run)) => Some(Plan::Again(Wait::Run(run))),
            Some(None) => Some(Plan::Refuse(error)),
            None => None,
        };
        if matches!(request.command, Command::Cancel { .. }) {
            return None;
        }
        if let Some(tag) = request.tag {
            if !is_here && conn.uses(tag) {
                return Some(Plan::Refuse(tag_in_use(tag)));
            }
            return verdict(elsewhere(tag), tag_in_use(tag));
        }
        if matches!(
            request.command,
            Command::Pull { .. } | Command::Request { .. } | Command::Peek { .. }
        ) {
            if !is_here && conn.has_untagged_subscription() {
                return Some(Plan::Refuse(untagged_in_use()));
            }
            return verdict(elsewhere(b""), untagged_in_use());
        }
        None
    }

    /// Does what was planned for a command: `frame` is what stands of it in the input, `line` its line if its
    /// body came into memory of its own.
    #[inline(never)]
    pub(in crate::shard) fn carry_out_plan(
        &mut self,
        slot: usize,
        errand: Errand,
        frame: &[u8],
        line: &[u8],
        now: Now,
    ) -> Flow {
        let Errand {
            plan,
            tag,
            quiet,
            own,
        } = errand;
        let flow = match (plan, &own) {
            (Plan::Here, _) => unreachable!("that is run as ever"),
            (Plan::Again(wait), _) => {
                self.conns[slot].blocked = Blocked::Away(wait);
                Flow::Again
            }
            (Plan::Refuse(error), _) => {
                self.refuse(slot, tag.as_deref(), &error);
                self.refuse_commit(slot, quiet);
                Flow::Done
            }
            (Plan::Post { to, waits, begins }, own) => {
                let end: &[u8] = if is_counted(line) { b"\n" } else { b"" };
                let parts: [&[u8]; 4] = match own {
                    Some(body) => [line, b"\n", body, end],
                    None => [frame, b"", b"", b""],
                };
                self.post(slot, to, waits, begins, &parts)
            }
            (Plan::Gather { question, asked }, own) => {
                let whole = match own {
                    Some(body) => {
                        let end: &[u8] = if is_counted(line) { b"\n" } else { b"" };
                        [line, b"\n", body, end].concat()
                    }
                    None => frame.to_vec(),
                };
                self.gather(slot, question, asked, tag.as_deref(), quiet, &whole, now)
            }
            (Plan::Pull(parts, options), _) => self.begin_across(
                slot,
                tag.as_deref().unwrap_or_default(),
                parts,
                options,
                Asks::Messages,
                now,
            ),
            (Plan::Commit(to), _) => self.post_commit(slot, to, tag.as_deref(), quiet),
            (Plan::CommitAcross(parts), _) => {
                self.commit_across(slot, parts, tag.as_deref(), quiet, now)
            }
        };
        if flow == Flow::Again {
            self.conns[slot].rare.keep_body(own);
        }
        flow
    }

    /// Posts a command to another shard, if there is room.
    pub(in crate::shard) fn post(
        &mut self,
        slot: usize,
        to: u32,
        waits: bool,
        begins: Option<Box<[u8]>>,
        frame: &[&[u8]],
    ) -> Flow {
        if !self.has_room_to(slot, &[to]) {
            return Flow::Again;
        }
        let run = self.post_command(slot, to, frame);
        let away = self.away(slot);
        if let Some(tag) = begins {
            away.tags.insert(tag, (to, run));
        }
        if waits {
            self.conns[slot].blocked = Blocked::Away(Wait::Run(run));
        }
        Flow::Done
    }

    /// Asks several shards something, of which there is one answer.
    #[allow(clippy::too_many_arguments)]
    pub(in crate::shard) fn gather(
        &mut self,
        slot: usize,
        question: Question,
        asked: Vec<(u32, Option<Vec<u8>>)>,
        tag: Option<&[u8]>,
        quiet: bool,
        frame: &[u8],
        now: Now,
    ) -> Flow {
        let (shards, me) = self.shards();
        let others: Vec<u32> = asked.iter().map(|(shard, _)| *shard).collect();
        let others: Vec<u32> = others.into_iter().filter(|shard| *shard != me).collect();
        if !self.has_room_to(slot, &others) {
            return Flow::Again;
        }
        let mut own = None;
        if let Some((_, command)) = asked.iter().find(|(shard, _)| *shard == me) {
            let command = command.as_deref().unwrap_or(frame);
            own = match self.run_captured(slot, command, now) {
                Some(own) => Some(own),
                None => return Flow::Again,
            };
        }
        let gather = Gather::new(question, tag, quiet, shards, asked.len());
        let run = self.add_gather(slot, gather);
        for (to, command) in asked {
            if to != me {
                let bytes = command.unwrap_or_else(|| frame.to_vec());
                self.post_input(slot, to, run, Kind::Part, bytes);
            }
        }
        if let Some(answer) = own {
            let home = (me, self.key(slot));
            self.keep_captured(home, run, answer);
        }
        Flow::Done
    }

    /// Posts a request of HTTP to where it belongs.
    pub(in crate::shard) fn post_http(
        &mut self,
        slot: usize,
        to: u32,
        request: impl FnOnce() -> PassedOn,
    ) -> Flow {
        if !self.has_room_to(slot, &[to]) {
            return Flow::Again;
        }
        let kind = Kind::Http(Arc::new(request()));
        self.post_alone(slot, to, kind, Vec::new());
        Flow::Done
    }

    /// What comes next waits for what the last command posted, or asked of several shards.
    pub(in crate::shard) fn wait_for_last_run(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        let runs = conn.away.iter().flat_map(|away| away.runs.back());
        if let Some(run) = runs.last() {
            conn.blocked = Blocked::Away(Wait::Run(run.id));
        }
    }

    fn post_commit(&mut self, slot: usize, to: u32, tag: Option<&[u8]>, quiet: bool) -> Flow {
        if !self.has_room_to(slot, &[to]) {
            return Flow::Again;
        }
        let Some(open) = self.conns[slot].transaction.take() else {
            return Flow::Done;
        };
        let (frames, commands, items) = open.into_parts();
        let kind = Kind::Commit {
            commands,
            items,
            tag: tag.unwrap_or_default().into(),
            quiet,
        };
        self.post_alone(slot, to, kind, frames);
        Flow::Done
    }

    /// Commits at a guest what its connection has queued; false if that goes on later.
    pub(super) fn commit_posted(&mut self, slot: usize, tag: &[u8], quiet: bool, now: Now) -> bool {
        let asker = Asker {
            slot,
            tag: (!tag.is_empty()).then_some(tag),
            quiet,
        };
        self.commit_now(asker, now)
    }
}

/// Does the line announce octets, behind which a line end stands?
fn is_counted(line: &[u8]) -> bool {
    line.iter().rev().find(|octet| !octet.is_ascii_digit()) == Some(&b'$')
}

/// The command that settles only these handles.
fn settle_command(command: &Command<'_>, handles: &[&[u8]]) -> Vec<u8> {
    let (verb, options): (&[u8], Vec<u8>) = match command {
        Command::Nack {
            delay_us,
            dead,
            why,
            ..
        } => {
            let mut options = Vec::new();
            if let Some(delay_us) = delay_us {
                // Never so much longer than it was typed that the line would be too long.
                let delay = match delay_us {
                    us if us % 1_000_000 == 0 => format!(" delay={}s", us / 1_000_000),
                    us if us % 1_000 == 0 => format!(" delay={}ms", us / 1_000),
                    us => format!(" delay={us}us"),
                };
                options.extend_from_slice(delay.as_bytes());
            }
            if *dead {
                options.extend_from_slice(b" dead=1");
            }
            if let Some(why) = why {
                options.extend_from_slice(b" why=");
                options.extend_from_slice(why.0);
            }
            (b"NACK", options)
        }
        Command::Touch { lease_us, .. } => {
            let lease = lease_us.map(|lease_us| format!(" lease={lease_us}us"));
            (b"TOUCH", lease.unwrap_or_default().into_bytes())
        }
        _ => (b"ACK", Vec::new()),
    };
    let mut line = verb.to_vec();
    for handle in handles {
        line.push(b' ');
        line.extend_from_slice(handle);
    }
    line.extend_from_slice(&options);
    line.push(b'\n');
    line
}
