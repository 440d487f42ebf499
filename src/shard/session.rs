//! Sessions: runs a connection's input, one command after another, and answers.
//!
//! Replies come in command order because a command that waits (an untagged pull, a read from the
//! disk, an earlier publish that is not visible yet) keeps the connection's later commands unrun, and an
//! answer that waits for the log keeps the output behind it.

use bytes::Bytes;

use super::conn::{Blocked, Life, Need};
use super::door::Told;
use super::drain::draining;
use super::engine::{Receipt, Refused};
use super::peers::{Errand, Followed, Plan, Wait};
use super::transaction::Kept;
use super::waiters::{Taking, Terms};
use super::{ConnKey, Now, Shard};
use crate::broker::command::{Body, Command, Request, Typed};
use crate::broker::id::{Level, QueueUid};
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::fault::{Fault, planted};
use crate::log::Room;
use crate::log::disk::Storage;
use crate::protocol::text::decode::{Decoder, Step};
use crate::protocol::text::{batch, encode, help, value};

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// It is done, or waits in a way that later commands know of.
    Done,
    /// It was not run: it comes again when what blocks the connection is gone.
    Again,
}

/// Who asks, and how the answer is to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    /// The connection.
    pub slot: usize,
    /// Without the `@`.
    pub tag: Option<&'a [u8]>,
    /// Success is not answered.
    pub quiet: bool,
}

impl<S: Storage> Shard<S> {
    /// Runs the commands at the front of `input`; returns how many bytes were used up.
    pub(super) fn run(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        if !self.conns[slot].session.is_text() {
            return self.run_at_door(slot, input, now);
        }
        self.run_text(slot, input, now)
    }

    /// The same for a connection that speaks the line protocol.
    #[inline]
    pub(super) fn run_text(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        let mut decoder = std::mem::take(&mut self.conns[slot].decoder);
        let used = self.run_with(slot, &mut decoder, input, now);
        self.conns[slot].decoder = decoder;
        self.ran_here(slot);
        used
    }

    fn run_with(&mut self, slot: usize, decoder: &mut Decoder, input: &[u8], now: Now) -> usize {
        let mut used = 0;
        loop {
            if !self.may_run(slot, &input[used..]) {
                return used;
            }
            if decoder.is_between() {
                let rest = &input[used..];
                let posted = match self.peers {
                    Some(_) => self.post_plain(slot, rest),
                    None => 0,
                };
                let consumed = match rest.first() {
                    _ if posted > 0 => posted,
                    Some(b'P') => self.run_publishes(slot, rest, now),
                    Some(b'A') => self.run_acks(slot, rest),
                    Some(b'C') => self.run_casts(slot, rest, now),
                    _ => 0,
                };
                if consumed > 0 {
                    used += consumed;
                    continue;
                }
            }
            let decoded = decoder.decode(&input[used..], &self.limits);
            let consumed = decoded.0;
            match decoded.1 {
                Step::Incomplete => return used + consumed,
                Step::Empty => {}
                Step::Request(request) => {
                    if self.peers.is_some() {
                        let plan = self.route(slot, &request);
                        if !matches!(plan, Plan::Here) {
                            let errand = Errand::new(plan, &request);
                            let frame = &input[used..used + consumed];
                            let line = &decoder.told;
                            if self.carry_out_plan(slot, errand, frame, line, now) == Flow::Again {
                                if let Some(body) = self.conns[slot].rare.take_kept_body() {
                                    decoder.again(body);
                                    used += consumed;
                                }
                                return used;
                            }
                            used += consumed;
                            continue;
                        }
                    }
                    self.totals.commands += 1;
                    if self.conns[slot].transaction.is_some() {
                        let frame = &input[used..used + consumed];
                        match self.run_in_transaction(slot, request, frame, now) {
                            Kept::Done => {}
                            Kept::Body(body) => {
                                self.keep_collected(slot, &decoder.told, &body);
                            }
                            Kept::Again => return used,
                        }
                    } else if self.execute(slot, request, now) == Flow::Again {
                        if let Some(body) = self.conns[slot].rare.take_kept_body() {
                            decoder.again(body);
                            used += consumed;
                        }
                        return used;
                    }
                }
                Step::Refused { tag, error } => {
                    self.refuse(slot, tag, &error);
                    self.void_transaction(slot);
                }
                Step::Fatal { tag, error } => {
                    self.refuse(slot, tag, &error);
                    self.conns[slot].life = Life::Closing;
                    return input.len();
                }
            }
            used += consumed;
        }
    }

    /// May the connection's next command be run? An empty line in front of what a waiting pull keeps
    /// back ends that wait.
    #[inline]
    pub(super) fn may_run(&mut self, slot: usize, rest: &[u8]) -> bool {
        let conn = &mut self.conns[slot];
        match conn.blocked {
            Blocked::No => {}
            Blocked::Pull(waiter) => {
                if conn.session.is_text() && (rest.starts_with(b"\n") || rest.starts_with(b"\r\n"))
                {
                    self.finish_pull(waiter, 0);
                    return self.conns[slot].blocked == Blocked::No;
                }
                return false;
            }
            Blocked::Away(Wait::Run(run)) => {
                let is_empty = rest.starts_with(b"\n") || rest.starts_with(b"\r\n");
                if is_empty && conn.session.is_text() {
                    self.cancel_away(slot, run, false);
                }
                return false;
            }
            Blocked::Request(_) | Blocked::Log(_) | Blocked::Cold | Blocked::Away(_) => {
                return false;
            }
        }
        if conn.life == Life::Closing {
            return false;
        }
        if conn.unsent() >= self.limits.send_bytes_max {
            return false;
        }
        let (gated, own) = (conn.is_gated().then(|| conn.last_need()), conn.published);
        if let Some(log) = &self.engine.log
            && log.room() == Room::Waiting
            && let Some(need) = gated
                .into_iter()
                .chain(own.needs())
                .find(|need| !self.engine.reached(*need))
        {
            // So much waits for the disk that this connection's share must get there first.
            self.block(slot, need);
            return false;
        }
        true
    }

    pub(super) fn refuse(&mut self, slot: usize, tag: Option<&[u8]>, error: &Error) {
        self.totals.count_error(error.code);
        self.answer_error(slot, tag, error);
    }

    /// Answers with an error.
    pub(super) fn answer_error(&mut self, slot: usize, tag: Option<&[u8]>, error: &Error) {
        self.answer(
            Asker {
                slot,
                tag,
                quiet: false,
            },
            &Reply::Error(error),
        );
    }

    /// Appends an answer to the connection's output.
    #[inline]
    pub(super) fn answer(&mut self, asker: Asker<'_>, reply: &Reply<'_>) {
        let conn = &mut self.conns[asker.slot];
        if !conn.session.is_text() {
            return conn.tell(&mut self.pool, asker.tag, Told::Reply(reply));
        }
        let out = conn.out.writer(&mut self.pool);
        encode::reply(out, asker.tag, reply);
    }

    /// Appends an answer that leaves when the log has got far enough.
    #[inline]
    pub(super) fn answer_when(&mut self, asker: Asker<'_>, need: Need, reply: &Reply<'_>) {
        self.wait_for(asker.slot, need);
        if !asker.quiet {
            self.answer(asker, reply);
        }
    }

    /// What a connection is told from here on waits until the log has got so far.
    #[inline]
    pub(super) fn wait_for(&mut self, slot: usize, need: Need) {
        if need.level != Level::None && !self.engine.reached(need) {
            self.conns[slot].gate(need, self.engine.leases.next_serial());
        }
    }

    /// Runs one command.
    #[inline]
    pub(super) fn execute(&mut self, slot: usize, request: Request<'_>, now: Now) -> Flow {
        let asker = Asker {
            slot,
            tag: request.tag,
            quiet: request.quiet,
        };
        if let Some(tag) = asker.tag
            && !matches!(
                request.command,
                Command::Subscribe { .. } | Command::SubscribeLive { .. }
            )
            && self.conns[slot].uses(tag)
        {
            return self.conclude(asker, Err(super::interest::tag_in_use(tag)));
        }
        let done = match request.command {
            Command::Publish { .. } | Command::PublishBatch { .. } if self.is_draining() => {
                return self.refuse_publish(asker, &draining());
            }
            Command::Publish {
                queue,
                options,
                body,
            } => {
                let size = body.as_slice().len() as u64;
                let own = owned(&body);
                let found = self.target(slot, queue);
                let one = std::iter::once(body);
                let outcome = self.engine.publish(found, &options, one, 1, size, now);
                return self.published(asker, found, outcome, false, own);
            }
            Command::Ack { handles } => {
                self.ack(asker, handles);
                Ok(())
            }
            Command::Pull { sources, options } => {
                return self.run_pull(asker, sources, &options, Taking::default(), now);
            }
            Command::PublishBatch {
                queue,
                options,
                framing,
                count,
                body_bytes,
                data,
            } => {
                let own = owned(&data);
                let found = self.target(slot, queue);
                let messages = batch::messages(framing, data.as_slice()).map(Body::Borrowed);
                let outcome = self
                    .engine
                    .publish(found, &options, messages, count, body_bytes, now);
                return self.published(asker, found, outcome, true, own);
            }
            other => return self.execute_rare(asker, other, now),
        };
        self.conclude(asker, done)
    }

    /// The commands that need no speed.
    fn execute_rare(&mut self, asker: Asker<'_>, command: Command<'_>, now: Now) -> Flow {
        if self.must_see_publishes(asker.slot, &command) {
            return Flow::Again;
        }
        let done = match command {
            Command::Cast { .. } if self.is_draining() => {
                return self.refuse_publish(asker, &draining());
            }
            Command::Subscribe { .. } | Command::SubscribeLive { .. } if self.is_draining() => {
                Err(draining())
            }
            Command::Hello {
                version,
                name,
                expired,
            } => self.hello(asker, version, name, expired),
            Command::Ping { body } => {
                self.answer(asker, &Reply::Pong(body.as_ref().map(Body::as_slice)));
                Ok(())
            }
            Command::Quit => {
                self.answer(asker, &Reply::Word("bye"));
                self.abandon_requests(asker.slot);
                self.end_interests(asker.slot, now);
                self.guests_quit(asker.slot);
                self.conns[asker.slot].life = Life::Closing;
                Ok(())
            }
            Command::Help { verb } => {
                help::text(verb).map(|text| self.answer(asker, &Reply::Data(text.as_bytes())))
            }
            Command::Nack {
                handles,
                delay_us,
                dead,
                why,
            } => {
                self.nack(asker, handles, delay_us, dead, why, now);
                Ok(())
            }
            Command::Touch { handles, lease_us } => {
                self.touch(asker, handles, lease_us, now);
                Ok(())
            }
            Command::Subscribe {
                source,
                credit,
                lease_us,
                from,
                ack_auto,
                timestamps,
            } => {
                let terms = Terms {
                    holder: self.holder(asker.slot),
                    lease_us,
                    ack_auto,
                    timestamps,
                    hold: false,
                    from_tail: false,
                };
                return self.run_subscribe(asker, source, credit, from, terms, now);
            }
            Command::SubscribeLive {
                pattern,
                timestamps,
            } => self.subscribe_live(asker, pattern, timestamps),
            Command::UnsubscribeLive { pattern } => self.run_unsubscribe_live(asker, pattern),
            Command::Credit { source, credit } => self.set_credit(asker, source, credit),
            Command::Unsubscribe { source } => self.run_unsubscribe(asker, source),
            Command::QueueSet { queue, settings } => {
                match self.may_set_dead(asker, queue, &settings) {
                    Followed::Waits => return Flow::Again,
                    Followed::Refused(error) => Err(error),
                    Followed::Free => self.queue_set(asker, queue, &settings, now),
                }
            }
            Command::QueueGet { source } => self.queue_get(asker, source, now),
            Command::Seek { source, .. } if self.is_leaving(asker.slot, source) => {
                return Flow::Again;
            }
            Command::Seek { source, to } => return self.seek(asker, source, to, now),
            Command::QueueList { pattern } => self.queue_list(asker, pattern),
            Command::QueueDelete { source } => {
                if self.is_leaving(asker.slot, source) {
                    return Flow::Again;
                }
                self.queue_delete(asker, source)
            }
            Command::Delete { queue, ids } => return self.delete_ids(asker, queue, ids, now),
            Command::Purge { source, state } => return self.purge(asker, source, state),
            Command::Peek {
                source,
                count,
                state,
                from,
            } => return self.peek(asker, source, count, state, from),
            Command::Move {
                source,
                target,
                count,
            } => return self.move_messages(asker, source, target, count, now),
            Command::Sync { level } => {
                self.sync(asker, level);
                Ok(())
            }
            Command::Stats(scope) => self.stats(asker, scope, now),
            Command::Why { source } => self.why(asker, source, now),
            Command::Drain { most_us } => {
                self.drain(asker, most_us, now);
                Ok(())
            }
            Command::Kill { conn } => self.kill(asker, conn, now),
            Command::Cancel { tag } => {
                self.cancel(asker, tag);
                Ok(())
            }
            Command::Request {
                queue,
                timeout_us,
                options,
                body,
            } => return self.request(asker, queue, timeout_us, &options, body, now),
            Command::Cast {
                topic,
                options,
                body,
            } => return self.cast(asker, topic, &options, body, now),
            Command::Bind { pattern, queue } => self.bind(asker, pattern, queue),
            Command::Unbind { pattern, queue } => self.unbind(asker, pattern, queue),
            Command::Answer { token, body } => self.give_answer(asker, token, body),
            Command::Schedule {
                queue,
                name,
                every_us,
                options,
                body,
            } => return self.schedule(asker, queue, name, every_us, &options, body, now),
            Command::Begin => {
                self.begin(asker);
                Ok(())
            }
            Command::Commit | Command::Abort => Err(super::transaction::none_begun()),
            Command::Publish { .. }
            | Command::PublishBatch { .. }
            | Command::Pull { .. }
            | Command::Ack { .. } => {
                unreachable!("these are run before")
            }
        };
        self.conclude(asker, done)
    }

    pub(super) fn conclude(&mut self, asker: Asker<'_>, done: Result<(), Error>) -> Flow {
        if let Err(error) = done {
            self.refuse(asker.slot, asker.tag, &error);
        }
        Flow::Done
    }

    /// A command that looks at messages waits until this connection's earlier publishes are visible.
    fn must_see_publishes(&mut self, slot: usize, command: &Command<'_>) -> bool {
        match command {
            Command::Pull { .. }
            | Command::Peek { .. }
            | Command::QueueGet { .. }
            | Command::Why { .. }
            | Command::QueueList { .. }
            | Command::Purge { .. }
            | Command::Delete { .. }
            | Command::Move { .. }
            | Command::QueueDelete { .. }
            | Command::Seek { .. }
            | Command::Stats(_) => self.wait_for_publishes(slot),
            _ => false,
        }
    }

    /// Blocks the connection until its publishes are visible; false if they are.
    #[inline]
    pub(super) fn wait_for_publishes(&mut self, slot: usize) -> bool {
        if planted(Fault::OwnPublishesUnseen) {
            return false;
        }
        let needs = self.conns[slot].published.needs();
        match needs.into_iter().find(|need| !self.engine.reached(*need)) {
            Some(need) => {
                self.block(slot, need);
                true
            }
            None => false,
        }
    }

    pub(super) fn block(&mut self, slot: usize, need: Need) {
        let key = self.key(slot);
        let conn = &mut self.conns[slot];
        conn.blocked = Blocked::Log(need);
        if !conn.gate_listed {
            conn.gate_listed = true;
            self.gated.push(key);
        }
    }

    // --- Names ---

    /// The queue of that name, made if there is none. A connection that stays on one queue hashes nothing.
    #[inline]
    pub(super) fn target(&mut self, slot: usize, name: Typed<'_>) -> QueueKey {
        match self.last_target(slot, name) {
            Some(key) => key,
            None => self.look_up(slot, name),
        }
    }

    /// The queue that the connection named last, if it was this.
    #[inline]
    pub(super) fn last_target(&self, slot: usize, name: Typed<'_>) -> Option<QueueKey> {
        let last = &self.conns[slot].last_queue;
        let (key, uid) = last.key.filter(|_| last.typed == name.0)?;
        self.engine.is_same(key, uid).then_some(key)
    }

    #[cold]
    fn look_up(&mut self, slot: usize, name: Typed<'_>) -> QueueKey {
        let key = self.find_or_create(name);
        let uid: QueueUid = self.engine.queue(key).uid;
        let last = &mut self.conns[slot].last_queue;
        last.typed.clear();
        last.typed.extend_from_slice(name.0);
        last.key = Some((key, uid));
        key
    }

    pub(super) fn find_or_create(&mut self, name: Typed<'_>) -> QueueKey {
        let mut scratch = Vec::new();
        self.engine.find_or_create(name.decoded(&mut scratch))
    }

    /// The queue of that name.
    pub(super) fn existing(&self, name: Typed<'_>) -> Result<QueueKey, Error> {
        let mut scratch = Vec::new();
        self.engine.find(name.decoded(&mut scratch)).ok_or_else(|| {
            let text = format!(
                "there is no queue {}; PUB or QSET makes one, QLS lists them",
                value::shown(name.0)
            );
            Error::new(ErrorCode::NoQueue, text)
        })
    }

    // --- Publishing ---

    #[inline]
    fn published(
        &mut self,
        asker: Asker<'_>,
        key: QueueKey,
        outcome: Result<Receipt, Refused>,
        batch: bool,
        own: Option<Bytes>,
    ) -> Flow {
        match outcome {
            Ok(receipt) => {
                self.accepted(asker, key, &receipt, batch);
                Flow::Done
            }
            Err(Refused::Cold) => {
                self.conns[asker.slot].rare.keep_body(own);
                self.block_cold(asker.slot);
                Flow::Again
            }
            Err(Refused::Error(error)) => self.refuse_publish(asker, &error),
        }
    }

    fn refuse_publish(&mut self, asker: Asker<'_>, error: &Error) -> Flow {
        if asker.quiet {
            self.conns[asker.slot].rare.make().quiet.rejected += 1;
        }
        self.refuse(asker.slot, asker.tag, error);
        Flow::Done
    }

    #[inline]
    fn accepted(&mut self, asker: Asker<'_>, key: QueueKey, receipt: &Receipt, batch: bool) {
        let conn = &mut self.conns[asker.slot];
        let need = receipt.need;
        if receipt.hidden {
            // Visibility follows the queue's own level, whenever the receipt comes.
            conn.published.add(self.engine.visible_need(key));
        }
        if asker.quiet {
            let quiet = &mut conn.rare.make().quiet;
            quiet.accepted += 1;
            quiet.level = quiet.level.min(receipt.level);
            if need.level != Level::None {
                quiet.need = Need {
                    level: quiet.need.level.max(need.level),
                    index: quiet.need.index.max(need.index),
                };
            }
            return;
        }
        if need.level != Level::None && !self.engine.reached(need) {
            conn.gate(need, self.engine.leases.next_serial());
        }
        let is_text = conn.session.is_text();
        let out = conn.out.writer(&mut self.pool);
        if is_text && !batch && asker.tag.is_none() && !receipt.duplicate {
            encode::receipt(out, receipt.first, receipt.level);
            return;
        }
        let Receipt {
            first,
            count,
            level,
            duplicate,
            ..
        } = *receipt;
        let reply = if batch {
            Reply::BatchReceipt {
                first,
                count,
                level,
                duplicate,
            }
        } else {
            Reply::Receipt {
                id: first,
                level,
                duplicate,
            }
        };
        self.answer(asker, &reply);
    }

    /// The connection's next command waits for a read from the disk, or goes on in the next turn.
    pub(super) fn block_cold(&mut self, slot: usize) {
        let key = self.key(slot);
        self.conns[slot].blocked = Blocked::Cold;
        self.cold.push(key);
    }

    fn sync(&mut self, asker: Asker<'_>, level: Option<Level>) {
        let quiet = self.conns[asker.slot].rare.take_quiet();
        let mut need = quiet.need;
        let mut reached = quiet.level;
        if quiet.accepted == 0 {
            reached = level.unwrap_or(self.engine.defaults.durable);
        }
        if self.engine.log.is_none() {
            reached = Level::None;
        } else if let Some(level) = level {
            if need.level != Level::None {
                need.level = level;
            }
            if reached != Level::None {
                reached = level;
            }
        }
        self.engine.sync_now(need);
        let reply = Reply::Synced {
            accepted: quiet.accepted,
            rejected: quiet.rejected,
            level: reached,
        };
        self.answer_when(asker, need, &reply);
    }

    // --- The rest ---

    fn hello(
        &mut self,
        asker: Asker<'_>,
        version: u64,
        name: Option<Typed<'_>>,
        expired: bool,
    ) -> Result<(), Error> {
        if version != 1 {
            return Err(Error::new(
                ErrorCode::Conflict,
                "this broker speaks version 1 of the protocol: HELLO 1",
            ));
        }
        let mut scratch = Vec::new();
        let conn = &mut self.conns[asker.slot];
        if let Some(name) = name {
            conn.rare.set_name(name.decoded(&mut scratch));
        }
        conn.wants_expired = expired;
        self.guests_named(asker.slot);
        let limits = self.limits.clone();
        let node = self.node.clone();
        let reply = Reply::Hello {
            body_bytes_max: limits.body_bytes_max as u64,
            line_bytes_max: limits.line_bytes_max as u64,
            batch_count_max: limits.batch_count_max as u64,
            batch_bytes_max: limits.batch_bytes_max as u64,
            handles_max: limits.handles_max as u64,
            node: &node,
        };
        self.answer(asker, &reply);
        Ok(())
    }

    /// The connection that holds leases as this holder.
    pub(super) fn conn_of_holder(&self, holder: crate::broker::lease::HolderKey) -> Option<usize> {
        let key: Option<ConnKey> = self
            .waiters
            .conn_of(holder)
            .or_else(|| self.holders.get(holder.0 as usize).copied().flatten());
        self.slot(key?)
    }
}

/// The body, if it has memory of its own and is not in the input any more.
#[inline]
pub(super) fn owned(body: &Body<'_>) -> Option<Bytes> {
    match body {
        Body::Owned(bytes) => Some(bytes.clone()),
        Body::Borrowed(_) => None,
    }
}
