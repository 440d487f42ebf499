//! BEGIN, COMMIT, ABORT: a connection's publishes, acks and nacks in between are kept as they were typed
//! and done at the `COMMIT`, all in one record of the log or none.
//!
//! Any `ERR` in between voids the transaction: who sends ahead without reading the answers must not have
//! a part of it done.

use bytes::Bytes;

use super::conn::Need;
use super::drain::draining;
use super::engine::{Bodies, Plan, Receipt, Refused};
use super::session::{Asker, owned};
use super::settling::push_stale;
use super::{Now, Shard};
use crate::broker::command::{Body, Command, Request};
use crate::broker::id::Level;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::config::Limits;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::protocol::text::batch;
use crate::protocol::text::decode::{Decoder, Step};
use crate::protocol::text::handles;

/// What is said with `ERR MEM`, milliseconds.
const MEMORY_RETRY_MS: u32 = 100;
/// Stale handles named by one `COMMIT`, bytes at most.
const STALE_BYTES_MAX: usize = 16 << 10;

/// Commands from this size get as much buffer as they need, smaller ones one that grows
/// by half, bytes.
const EXACT_BYTES_MIN: usize = 64 << 10;
/// What most lines take beside a body that came into memory of its own, bytes.
const LINE_BYTES: usize = 512;

/// What a connection has queued since its `BEGIN`.
#[derive(Debug, Default)]
pub struct Transaction {
    /// The commands as they were typed, bodies and line ends included.
    frames: Vec<u8>,
    /// How many they are.
    commands: u64,
    /// Messages and handles in them.
    items: usize,
    /// Something of it was refused: nothing of it is done.
    is_void: bool,
    /// What its `COMMIT` moves to other queues, as far as that was read.
    bodies: Bodies,
}

impl Transaction {
    /// Something of it was refused, so that nothing of it can be done.
    pub fn is_void(&self) -> bool {
        self.is_void
    }

    /// A part of one, with what was read for it.
    pub(super) fn part(frames: Vec<u8>, bodies: Bodies) -> Transaction {
        Transaction {
            frames,
            bodies,
            ..Transaction::default()
        }
    }

    /// What its `COMMIT` moves to other queues, as far as that was read.
    pub(super) fn bodies(&mut self) -> &mut Bodies {
        &mut self.bodies
    }

    /// The commands as they were typed.
    pub(super) fn frames(&self) -> &[u8] {
        &self.frames
    }

    /// The commands as they were typed, how many they are, and the messages and handles in them.
    pub(super) fn into_parts(self) -> (Vec<u8>, u64, usize) {
        (self.frames, self.commands, self.items)
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let body = |(sections, body): &(Vec<u8>, Bytes)| sections.len() + body.len();
        size_of::<Transaction>()
            + self.frames.capacity()
            + self.bodies.values().map(body).sum::<usize>()
    }
}

/// What became of a command inside a transaction.
#[derive(Debug)]
pub(super) enum Kept {
    /// It is kept, refused or done.
    Done,
    /// It is to be kept; this is its body, which is not in the input.
    Body(Bytes),
    /// It comes again.
    Again,
}

/// Kept commands, one after another.
pub(super) struct Commands<'a> {
    decoder: Decoder,
    rest: &'a [u8],
}

impl<'a> Commands<'a> {
    pub(super) fn new(frames: &'a [u8]) -> Commands<'a> {
        Commands {
            decoder: Decoder::default(),
            rest: frames,
        }
    }

    /// What is left of them.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn next(&mut self, limits: &Limits) -> Option<Command<'_>> {
        if self.rest.is_empty() {
            return None;
        }
        let (used, step) = self.decoder.decode(self.rest, limits);
        self.rest = &self.rest[used..];
        match step {
            Step::Request(request) => Some(request.command),
            step => panic!("a command that was decoded before is now {step:?}"),
        }
    }
}

/// What the `OK` of a `COMMIT` waits for.
#[derive(Debug)]
struct Sum {
    need: Need,
    /// The strongest level of a queue that a lease has ended in.
    settled: Level,
    /// The weakest level that a publish is told.
    told: Level,
}

impl<S: Storage> Shard<S> {
    /// `BEGIN` outside a transaction.
    pub(super) fn begin(&mut self, asker: Asker<'_>) {
        self.totals.transactions.begun += 1;
        self.conns[asker.slot].transaction = Some(Box::default());
        if !asker.quiet {
            self.answer(asker, &Reply::Ok);
        }
    }

    /// Something was refused: the open transaction, if there is one, can only end.
    #[cold]
    pub(super) fn void_transaction(&mut self, slot: usize) {
        if planted(Fault::ErrorVoidsNothing) {
            return;
        }
        if let Some(open) = &mut self.conns[slot].transaction {
            self.totals.transactions.voided += u64::from(!open.is_void);
            **open = Transaction {
                is_void: true,
                ..Transaction::default()
            };
        }
    }

    /// The open transaction, if there is one, ends, and nothing of it is done.
    pub(super) fn abort_transaction(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        let (open, is_own) = (conn.transaction.take(), conn.guest.is_none());
        // One that is void was counted when it became so.
        let is_aborted = is_own && open.is_some_and(|open| !open.is_void);
        self.totals.transactions.aborted += u64::from(is_aborted);
    }

    /// Another shard's connection has queued this, and commits it here.
    pub(super) fn take_transaction(
        &mut self,
        slot: usize,
        frames: &[u8],
        commands: u64,
        items: usize,
    ) {
        self.conns[slot].transaction = Some(Box::new(Transaction {
            frames: frames.to_vec(),
            commands,
            items,
            ..Transaction::default()
        }));
    }

    /// Commits what the connection has queued; false if that goes on in a later turn.
    pub(super) fn commit_now(&mut self, asker: Asker<'_>, now: Now) -> bool {
        !matches!(self.commit_transaction(asker, now), Kept::Again)
    }

    /// The transaction ends with its `COMMIT`, which is refused.
    pub(super) fn refuse_commit(&mut self, slot: usize, quiet: bool) {
        if self.conns[slot].transaction.take().is_some() {
            self.totals.transactions.voided += 1;
            if quiet {
                self.conns[slot].rare.make().quiet.rejected += 1;
            }
        }
    }

    /// A command between `BEGIN` and the end of its transaction; `frame` is what stands of it in the input.
    pub(super) fn run_in_transaction(
        &mut self,
        slot: usize,
        request: Request<'_>,
        frame: &[u8],
        now: Now,
    ) -> Kept {
        let asker = Asker {
            slot,
            tag: request.tag,
            quiet: request.quiet,
        };
        let tag_is_used = asker.tag.is_some_and(|tag| self.conns[slot].uses(tag));
        if tag_is_used {
            let tag = asker.tag.unwrap_or_default();
            return self.refuse_inside(asker, &super::interest::tag_in_use(tag));
        }
        let (items, own) = match &request.command {
            Command::Publish { body, .. } => (1, owned(body)),
            Command::PublishBatch { count, data, .. } => (*count as usize, owned(data)),
            Command::Ack { handles } | Command::Nack { handles, .. } => {
                (handles.iter().count(), None)
            }
            Command::Ping { .. } => {
                self.execute(slot, request, now);
                return Kept::Done;
            }
            Command::Quit => {
                self.abort_transaction(slot);
                self.execute(slot, request, now);
                return Kept::Done;
            }
            Command::Abort => {
                self.abort_transaction(slot);
                if !asker.quiet {
                    self.answer(asker, &Reply::Ok);
                }
                return Kept::Done;
            }
            Command::Commit => return self.commit_transaction(asker, now),
            Command::Begin => return self.refuse_inside(asker, &nested()),
            _ => return self.refuse_inside(asker, &not_inside()),
        };
        let bytes = own.as_ref().map_or(frame.len(), Bytes::len);
        if let Err(error) = self.may_keep(slot, items, bytes, now) {
            return self.refuse_inside(asker, &error);
        }
        let open = self.conns[slot].transaction.as_mut();
        let open = open.expect("it was just looked at");
        open.items += items;
        open.commands += 1;
        let kept = match own {
            Some(body) => Kept::Body(body),
            None => {
                open.frames.extend_from_slice(frame);
                Kept::Done
            }
        };
        if !asker.quiet {
            self.answer(asker, &Reply::Word("queued"));
        }
        kept
    }

    /// Keeps a command whose body came into memory of its own.
    pub(super) fn keep_collected(&mut self, slot: usize, line: &[u8], body: &[u8]) {
        let Some(open) = &mut self.conns[slot].transaction else {
            return;
        };
        open.frames.extend_from_slice(line);
        open.frames.push(b'\n');
        open.frames.extend_from_slice(body);
        // Lines bring their ends with them.
        let is_counted = line.iter().rev().find(|octet| !octet.is_ascii_digit()) == Some(&b'$');
        if is_counted {
            open.frames.push(b'\n');
        }
    }

    fn refuse_inside(&mut self, asker: Asker<'_>, error: &Error) -> Kept {
        self.refuse(asker.slot, asker.tag, error);
        self.void_transaction(asker.slot);
        Kept::Done
    }

    /// Is there room in the transaction, and memory, for so many messages or handles and so many bytes?
    fn may_keep(&mut self, slot: usize, items: usize, bytes: usize, now: Now) -> Result<(), Error> {
        let (count_max, bytes_max) = (self.limits.batch_count_max, self.limits.batch_bytes_max);
        let Some(open) = &self.conns[slot].transaction else {
            return Ok(());
        };
        if open.is_void {
            return Err(void());
        }
        if open.items + items > count_max || open.frames.len() + bytes > bytes_max {
            return Err(too_big(count_max, bytes_max));
        }
        let (capacity, length) = (open.frames.capacity(), open.frames.len());
        let wanted = length + bytes + LINE_BYTES;
        // Small commands fill a buffer that grows by half; large ones get what they need.
        let wanted = match bytes < EXACT_BYTES_MIN {
            true => wanted.max(capacity + capacity / 2),
            false => wanted,
        };
        let grows = capacity < length + bytes + LINE_BYTES;
        if self.engine.over_budget || (grows && !self.has_memory(wanted - capacity, now)) {
            return Err(no_memory());
        }
        if grows && let Some(open) = &mut self.conns[slot].transaction {
            open.frames.reserve_exact(wanted - length);
        }
        Ok(())
    }

    /// `COMMIT`: everything or nothing.
    fn commit_transaction(&mut self, asker: Asker<'_>, now: Now) -> Kept {
        let slot = asker.slot;
        let mut open = self.conns[slot].transaction.take().unwrap_or_default();
        let planned = match open.is_void {
            true => Err(void().into()),
            false => self.plan(&mut open, now),
        };
        let mut plan = match planned {
            Ok(plan) => plan,
            Err(Refused::Cold) => {
                self.conns[slot].transaction = Some(open);
                self.block_cold(slot);
                return Kept::Again;
            }
            Err(Refused::Error(error)) => {
                if asker.quiet {
                    self.conns[slot].rare.make().quiet.rejected += 1;
                }
                self.totals.transactions.voided += u64::from(!open.is_void);
                self.refuse(slot, asker.tag, &error);
                return Kept::Done;
            }
        };
        self.totals.transactions.committed += 1;
        let sum = self.carry_out(slot, &mut open, &mut plan, now);
        let need = self.engine.need(sum.settled).and(sum.need);
        self.engine.sync_wanted |= need.level >= Level::Disk && !self.engine.reached(need);
        if asker.quiet {
            let quiet = &mut self.conns[slot].rare.make().quiet;
            quiet.accepted += 1;
            quiet.level = quiet.level.min(sum.told);
            quiet.need = quiet.need.and(need);
            return Kept::Done;
        }
        let reply = Reply::Count {
            count: open.commands,
            stale: b"",
        };
        self.answer_when(asker, need, &reply);
        Kept::Done
    }

    /// Finds out whether all of it can be done; changes nothing that could be seen.
    pub(super) fn plan(&mut self, open: &mut Transaction, now: Now) -> Result<Plan, Refused> {
        let mut plan = Plan::default();
        let (mut stale, mut all_live) = (Vec::new(), true);
        let mut refused = None;
        let is_draining = self.is_draining();
        let mut scratch = Vec::new();
        let mut commands = Commands::new(&open.frames);
        while let Some(command) = commands.next(&self.limits) {
            let (handles, nack) = match command {
                Command::Publish { .. } | Command::PublishBatch { .. } if is_draining => {
                    refused = refused.or(Some(draining()));
                    continue;
                }
                Command::Ack { handles } => (handles, None),
                Command::Nack {
                    handles, dead, why, ..
                } => (handles, Some((dead, why.map_or(0, |why| why.0.len())))),
                Command::Publish {
                    queue,
                    options,
                    body,
                } => {
                    let (name, size) = (queue.decoded(&mut scratch), body.as_slice().len() as u64);
                    let planned = self
                        .engine
                        .plan_publish(&mut plan, name, &options, 1, size, now);
                    refused = refused.or(planned.err());
                    continue;
                }
                Command::PublishBatch {
                    queue,
                    options,
                    count,
                    body_bytes,
                    ..
                } => {
                    let name = queue.decoded(&mut scratch);
                    let planned = self
                        .engine
                        .plan_publish(&mut plan, name, &options, count, body_bytes, now);
                    refused = refused.or(planned.err());
                    continue;
                }
                command => unreachable!("{command:?} is never kept"),
            };
            for token in handles.iter() {
                let live = handles::parse(token)
                    .is_some_and(|handle| self.engine.plan_settle(&mut plan, handle, nack));
                all_live &= live;
                if !live && stale.len() + token.len() < STALE_BYTES_MAX {
                    push_stale(&mut stale, token);
                }
            }
        }
        if !all_live {
            return Err(stale_handles(&stale).into());
        }
        if let Some(error) = refused {
            return Err(error.into());
        }
        let bytes_max = self.limits.batch_bytes_max;
        self.engine
            .admit_transaction(&mut plan, &mut open.bodies, bytes_max, now)?;
        Ok(plan)
    }

    /// Does all of it, first what makes room.
    fn carry_out(&mut self, slot: usize, open: &mut Transaction, plan: &mut Plan, now: Now) -> Sum {
        let limits = self.limits.clone();
        let mut sum = Sum {
            need: Need::NOW,
            settled: Level::None,
            told: Level::Quorum,
        };
        let bodies = std::mem::take(&mut open.bodies);
        let begun = self.engine.begin_transaction(plan, bodies);
        let mut scratch = Vec::new();
        let mut commands = Commands::new(&open.frames);
        while let Some(command) = commands.next(&limits) {
            match command {
                Command::Ack { handles } => {
                    for token in handles.iter() {
                        let lease =
                            handles::parse(token).and_then(|handle| self.engine.ack(handle));
                        let (lease, safe_at) = lease.expect("the handle was looked at");
                        sum.settled = sum.settled.max(safe_at);
                        self.credit_returned(lease.holder);
                    }
                }
                Command::Nack {
                    handles,
                    delay_us,
                    dead,
                    why,
                } => {
                    let why = why.map(|why| why.decoded(&mut scratch)).unwrap_or_default();
                    for token in handles.iter() {
                        let handle = handles::parse(token).expect("the handle was looked at");
                        let lease = self.engine.leases.end(handle.serial);
                        let lease = lease.expect("the lease was looked at");
                        sum.settled = sum.settled.max(self.settled_at(&lease));
                        self.credit_returned(lease.holder);
                        self.give_back_nacked(&lease, delay_us, dead, why, now);
                    }
                }
                _ => {}
            }
        }
        self.engine.drop_planned(plan, now);
        if planted(Fault::TransactionInTwoRecords) {
            self.engine.before_commit();
            if let Some(log) = &mut self.engine.log {
                log.commit(now.us, false);
            }
        }
        let mut commands = Commands::new(&open.frames);
        while let Some(command) = commands.next(&limits) {
            let (queue, receipt) = match command {
                Command::Publish {
                    queue,
                    options,
                    body,
                } => {
                    let size = body.as_slice().len() as u64;
                    let key = self.target(slot, queue);
                    let one = std::iter::once(body);
                    let receipt = self
                        .engine
                        .publish_planned(key, &options, one, 1, size, now);
                    (key, receipt)
                }
                Command::PublishBatch {
                    queue,
                    options,
                    framing,
                    count,
                    body_bytes,
                    data,
                } => {
                    let key = self.target(slot, queue);
                    let messages = batch::messages(framing, data.as_slice()).map(Body::Borrowed);
                    let receipt = self
                        .engine
                        .publish_planned(key, &options, messages, count, body_bytes, now);
                    (key, receipt)
                }
                _ => continue,
            };
            let Receipt {
                need,
                level,
                hidden,
                ..
            } = receipt;
            sum.need = sum.need.and(need);
            sum.told = sum.told.min(level);
            if hidden {
                let visible = self.engine.visible_need(queue);
                self.conns[slot].published.add(visible);
            }
        }
        self.engine.end_transaction(&begun);
        sum
    }
}

fn stale_handles(stale: &[u8]) -> Error {
    let text = "these are no live leases (any more), or are named twice: nothing was done";
    let mut error = Error::new(ErrorCode::Stale, text);
    if !stale.is_empty() {
        error.fields = format!("stale={}", String::from_utf8_lossy(stale));
    }
    error
}

/// `COMMIT` or `ABORT` outside a transaction.
pub(super) fn none_begun() -> Error {
    conflict("there is no transaction: BEGIN begins one")
}

fn nested() -> Error {
    conflict("there is a transaction already, which can only end now: nothing of it is done")
}

fn not_inside() -> Error {
    conflict(
        "a transaction takes PUB, MPUB, ACK, NACK and PING; it can only end now: nothing of it is done",
    )
}

fn void() -> Error {
    conflict(
        "an earlier command of this transaction was refused, so nothing of it is done: BEGIN again",
    )
}

fn conflict(text: &'static str) -> Error {
    Error::new(ErrorCode::Conflict, text)
}

fn too_big(count_max: usize, bytes_max: usize) -> Error {
    let text = format!(
        "a transaction has at most {count_max} messages and handles, and {bytes_max} bytes; nothing of it is done"
    );
    Error::new(ErrorCode::TooBig, text)
}

fn no_memory() -> Error {
    Error::new(
        ErrorCode::Mem,
        "the memory budget is used up; nothing of the transaction is done",
    )
    .retry(MEMORY_RETRY_MS)
}
