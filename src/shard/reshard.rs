//! A data directory of some shards made into one of another number of them, while no broker runs.
//!
//! Each old shard is replayed as at a start, and left as it is. Then its segments are read one after another, and
//! what is live in each is copied as a compaction copies it, to kept segments of the shard that its queue belongs
//! to now; the index learns the new places. What is known of a queue beside that goes into the new shard's first
//! checkpoint. So a new shard is a checkpoint and what it refers to, and memory holds what it holds while a broker
//! runs on the old ones, and one segment's messages.
//!
//! What counts at which moment is told in [`crate::log::conversion`].

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use super::engine::{Engine, Outbox, far, far_origin};
use super::placement::shard_of;
use super::recovery::Recovery;
use super::snapshot::Writer;
use crate::broker::exchanges::{Change, Target as BindingTarget};
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::index::Slot;
use crate::broker::queue::{Queue, QueueKey};
use crate::broker::schedule::Schedules;
use crate::broker::settings::Settings;
use crate::config::LogConfig;
use crate::log::conversion::{self, Cleared, Conversion};
use crate::log::disk::Disk;
use crate::log::{
    Below, BlockSlot, Entry, Foreground, Log, NoStorage, OpenError, OpenOptions, Position, Room,
    SegmentRange, Survey, layout,
};

/// Segments that a new shard makes ready before it has anything in them, and one that is not full.
const SPARE_SEGMENTS: u64 = 3;
/// A stored message beside its body, bytes, for an estimate.
const HEAD_BYTES: u64 = 48;

/// Why a directory was not converted.
#[derive(Debug)]
pub enum ReshardError {
    /// The directory is refused, or the disk has failed.
    Open(OpenError),
    /// What is in it cannot be on so many shards; with what to do.
    Refused(String),
    /// The new shards cannot be written.
    Failed(String),
}

impl From<OpenError> for ReshardError {
    fn from(error: OpenError) -> ReshardError {
        ReshardError::Open(error)
    }
}

impl fmt::Display for ReshardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReshardError::Open(error) => error.fmt(f),
            ReshardError::Refused(text) | ReshardError::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ReshardError {}

/// What a shard has or is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Queues.
    pub queues: u64,
    /// Stored messages, once for each queue.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Share {
    fn add(&mut self, queue: &Queue) {
        self.queues += 1;
        self.messages += queue.index.live();
        self.bytes += queue.index.bytes();
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which change of the number of shards.
    pub conversion: Conversion,
    /// What each old shard has.
    pub old: Vec<Share>,
    /// What each new shard gets.
    pub new: Vec<Share>,
    /// Bytes to copy, about.
    pub copy_bytes: u64,
    /// Free space that it takes until the old shards are removed, bytes, about.
    pub needed_bytes: u64,
}

/// Who is asked and told meanwhile.
pub trait Watch {
    /// Everything was read and verified, and nothing changed yet.
    ///
    /// # Errors
    /// A sentence: it is not to be done.
    fn planned(&mut self, plan: &Plan) -> Result<(), String>;

    /// So many of the plan's bytes were copied in all.
    fn copied(&mut self, bytes: u64);
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The directory had that number already.
    Already,
    /// It has it now. With the directories that were left because they hold other files too.
    Done(Box<Plan>, Vec<String>),
}

/// What would be done to a directory, which is read and not changed; `None` if it has that number of shards
/// already.
///
/// # Errors
/// Those of [`reshard`].
pub fn plan<D: Disk>(disk: &D, to: u32) -> Result<Option<Plan>, ReshardError> {
    let from = count(disk)?;
    if from == to {
        return Ok(None);
    }
    let mut sources = read(disk, Conversion { from, to })?;
    Ok(Some(plan_for(&mut sources, Conversion { from, to })?))
}

/// Makes a directory one of `to` shards. An interrupted change is cleared away first. The caller holds the
/// locks; `random` is a number that nobody can guess.
///
/// # Errors
/// The directory is damaged or cannot be of so many shards: nothing was changed then. Or the disk fails: what
/// there was counts as before, unless the error came behind the switch, and the next attempt or start clears up.
pub fn reshard<D: Disk>(
    disk: &D,
    to: u32,
    random: u64,
    watch: &mut dyn Watch,
) -> Result<(Option<Cleared>, Outcome), ReshardError> {
    let cleared = conversion::clear(disk)?;
    let from = count(disk)?;
    if from == to {
        return Ok((cleared, Outcome::Already));
    }
    let conversion = Conversion { from, to };
    let mut sources = read(disk, conversion)?;
    let plan = plan_for(&mut sources, conversion)?;
    watch.planned(&plan).map_err(ReshardError::Failed)?;
    conversion::begin(disk, conversion)?;
    if let Err(error) = write(disk, conversion, sources, &plan, random, watch) {
        // Half of it is of no use and takes space. What cannot be removed now is removed later.
        if let Err(later) = conversion::clear(disk) {
            ::log::warn!("what was made of the new shards is left for the next attempt: {later}");
        }
        return Err(error);
    }
    conversion::switch(disk, to)?;
    let left = conversion::clear(disk)?.map_or(Vec::new(), |cleared| cleared.left);
    Ok((cleared, Outcome::Done(Box::new(plan), left)))
}

fn count<D: Disk>(disk: &D) -> Result<u32, ReshardError> {
    layout::shards(disk)?.ok_or_else(|| {
        ReshardError::Refused("the directory is new or empty: there is nothing to convert".into())
    })
}

/// One of the old shards.
struct Source<'d, D> {
    directory: String,
    survey: Survey<Below<'d, D>>,
    engine: Engine<NoStorage>,
    /// Where its queues and groups go, by what they are called in its log.
    homes: BTreeMap<QueueUid, Home>,
    /// The new shard of each queue and group.
    shards: BTreeMap<QueueKey, u32>,
}

/// Where a queue or group goes.
#[derive(Clone, Copy, Debug)]
struct Home {
    shard: u32,
    /// What it is called there.
    uid: QueueUid,
    /// Its place in the old shard's engine.
    key: QueueKey,
}

/// Replays the shards of a directory; one that was never used has nothing.
fn read<D: Disk>(
    disk: &D,
    conversion: Conversion,
) -> Result<Vec<Option<Source<'_, D>>>, ReshardError> {
    let directories =
        (0..conversion.from).map(|shard| conversion::directory(shard, conversion.from));
    let sources = directories.map(|directory| read_shard(disk, directory));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let mut sizes = sources
        .iter()
        .flatten()
        .map(|source| source.survey.segment_bytes());
    if let Some(first) = sizes.next()
        && let Some(other) = sizes.find(|size| *size != first)
    {
        return Err(ReshardError::Refused(format!(
            "its shards have segments of {first} and of {other} bytes: they are not of one directory"
        )));
    }
    Ok(sources)
}

fn read_shard<D: Disk>(disk: &D, directory: String) -> Result<Option<Source<'_, D>>, ReshardError> {
    let mut engine = Engine::new(Settings::default(), 0);
    let below = Below::new(disk, &directory);
    let survey = Survey::read(below, &mut Recovery::new(&mut engine));
    let survey = match survey {
        Ok(survey) => survey,
        // A start that died before it had made all directories.
        Err(OpenError::Io { cause, .. })
            if cause.kind() == std::io::ErrorKind::NotFound && !directory.is_empty() =>
        {
            None
        }
        Err(error) => return Err(error.below(&directory).into()),
    };
    Ok(survey.map(|survey| Source {
        directory,
        survey,
        engine,
        homes: BTreeMap::new(),
        shards: BTreeMap::new(),
    }))
}

/// The queues of an engine, without groups and without places where consumers wait.
fn queues(engine: &Engine<NoStorage>) -> impl Iterator<Item = (QueueKey, &Queue)> {
    let queues = engine.queues.iter();
    queues
        .filter(|(_, queue)| queue.exists && queue.group.is_none())
        .map(|(key, queue)| (QueueKey(key as u32), queue))
}

fn plan_for<D: Disk>(
    sources: &mut [Option<Source<'_, D>>],
    conversion: Conversion,
) -> Result<Plan, ReshardError> {
    let mut plan = Plan {
        conversion,
        old: vec![Share::default(); conversion.from as usize],
        new: vec![Share::default(); conversion.to as usize],
        copy_bytes: 0,
        needed_bytes: 0,
    };
    let mut segment_bytes = LogConfig::default().segment_bytes;
    for (old, source) in plan.old.iter_mut().zip(&*sources) {
        let Some(source) = source else { continue };
        segment_bytes = source.survey.segment_bytes();
        let leaving = source.engine.leaving();
        if leaving > 0 {
            return Err(ReshardError::Refused(format!(
                "{}: {leaving} dead letters, moved messages or parts of transactions are on their way to another shard, \
                 which each may have reached: start the broker as it is, which finishes that at once, stop it, and try again",
                source.directory
            )));
        }
        for (_, queue) in queues(&source.engine) {
            let home = shard_of(&queue.name, conversion.to);
            old.add(queue);
            plan.new[home as usize].add(queue);
        }
        let segments = source.survey.live_segments();
        plan.copy_bytes += segments.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }
    let bodies: u64 = plan
        .new
        .iter()
        .map(|share| share.bytes + share.messages * HEAD_BYTES)
        .sum();
    let shards = u64::from(conversion.to);
    let copied = plan.copy_bytes.max(bodies);
    plan.needed_bytes = copied + copied / 16 + shards * SPARE_SEGMENTS * segment_bytes;
    Ok(plan)
}

/// One of the new shards.
struct Target<'d, D: Disk> {
    log: Log<Foreground<Below<'d, D>>>,
    jobs: Rc<Cell<u64>>,
    /// The time of all it does: that of the last record of any old shard, microseconds.
    now_us: u64,
    next_uid: u64,
    share: Share,
    queues: Writer,
    schedules: Schedules,
    /// Declarations, exchanges, bindings.
    routes: Vec<Vec<u8>>,
}

/// Writes the new shards, whole and on stable storage.
fn write<D: Disk>(
    disk: &D,
    conversion: Conversion,
    mut sources: Vec<Option<Source<'_, D>>>,
    plan: &Plan,
    random: u64,
    watch: &mut dyn Watch,
) -> Result<(), ReshardError> {
    let Conversion { from, to } = conversion;
    let surveys = || sources.iter().flatten().map(|source| &source.survey);
    let wall_ms = surveys().map(Survey::last_wall_ms).max().unwrap_or(0);
    // Places in new segments are above all that are in old ones, which tells them apart.
    let first_kept = surveys().map(Survey::last_kept).max().unwrap_or(0) + 1;
    let segment_bytes = surveys().map(Survey::segment_bytes).next();
    let config = LogConfig {
        segment_bytes: segment_bytes.unwrap_or(LogConfig::default().segment_bytes),
        ..LogConfig::default()
    };
    // Handles carry the shard in their incarnation, and none that was given before may be given again.
    let incarnations = sources.iter().zip(0u64..).filter_map(|(source, shard)| {
        Some(source.as_ref()?.survey.incarnation() * u64::from(from) + shard)
    });
    let incarnation = incarnations.max().unwrap_or(0) / u64::from(to);
    let mut targets = Vec::new();
    for shard in 0..to {
        let below = Below::new(disk, &conversion::directory(shard, to));
        let id = mixed(random, u64::from(shard));
        let target = Target::open(below, &config, wall_ms, id, incarnation, first_kept);
        targets.push(target?);
    }
    let first_place = Position::new(true, first_kept, 0, config.segment_bytes);
    let mut copied = 0;
    let mut homes = Vec::new();
    let mut routes: Vec<Vec<u8>> = Vec::new();
    for (shard, source) in sources.iter_mut().enumerate() {
        let Some(mut source) = source.take() else {
            homes.push(BTreeMap::new());
            continue;
        };
        if shard == 0 {
            let changes = source.engine.exchanges.changes();
            routes = changes.map(|change| encoded(&change)).collect();
        }
        source.name(&mut targets, to);
        homes.push(source.homes.clone());
        for (segment, bytes) in source.survey.live_segments() {
            source.copy(segment, first_place, &mut targets)?;
            copied += bytes;
            watch.copied(copied.min(plan.copy_bytes));
        }
        let down_us = (wall_ms - source.survey.last_wall_ms()) * 1000;
        source.give(&mut targets, first_place, down_us)?;
    }
    give_routes(&routes, &homes, &mut targets[0].routes);
    for (target, planned) in targets.into_iter().zip(&plan.new) {
        if target.share != *planned {
            return Err(ReshardError::Failed(
                "not everything was copied, which is an error of this program; nothing was changed"
                    .into(),
            ));
        }
        target.finish()?;
    }
    verify(disk, conversion, plan)
}

/// The new shards are read as at a start: they must hold what was planned.
fn verify<D: Disk>(disk: &D, conversion: Conversion, plan: &Plan) -> Result<(), ReshardError> {
    for shard in 0..conversion.to {
        let directory = conversion::directory(shard, conversion.to);
        let mut found = Share::default();
        if let Some(source) = read_shard(disk, directory)? {
            queues(&source.engine).for_each(|(_, queue)| found.add(queue));
        }
        let planned = plan.new[shard as usize];
        if found != planned {
            return Err(ReshardError::Failed(format!(
                "new shard {shard} holds {found:?} and should hold {planned:?}, which is an error of this \
                 program; the old shards are as they were"
            )));
        }
    }
    Ok(())
}

/// Another number for each shard (SplitMix64's finish).
fn mixed(random: u64, shard: u64) -> u64 {
    let mut z = random.wrapping_add((shard + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl<'d, D: Disk> Source<'d, D> {
    /// Gives every queue and group its new identity, as what it is copied under.
    fn name(&mut self, targets: &mut [Target<'_, D>], shards: u32) {
        let mut named = Vec::new();
        for (key, queue) in queues(&self.engine) {
            let shard = shard_of(&queue.name, shards);
            let keys = [key].into_iter().chain(queue.groups());
            named.extend(keys.map(|key| (key, shard)));
        }
        for (key, shard) in named {
            let target = &mut targets[shard as usize];
            let uid = QueueUid(target.next_uid);
            target.next_uid += 1;
            let queue = self.engine.queue_mut(key);
            self.homes.insert(queue.uid, Home { shard, uid, key });
            queue.uid = uid;
            self.shards.insert(key, shard);
        }
        self.leave_origins();
    }

    /// Dead letters whose queue goes to another shard are not its any more, and it does not count them.
    fn leave_origins(&mut self) {
        for (key, shard) in &self.shards {
            let origins = std::mem::take(&mut self.engine.queue_mut(*key).origins);
            for (id, origin) in origins {
                let Some(home) = self.homes.get(&origin) else {
                    continue;
                };
                if home.shard == *shard {
                    self.engine.queue_mut(*key).origins.insert(id, home.uid);
                } else {
                    let origin = self.engine.queue_mut(home.key);
                    origin.dead = origin.dead.saturating_sub(1);
                }
            }
        }
    }

    /// Copies what is live in a segment to where its queues go.
    fn copy(
        &mut self,
        segment: SegmentRange,
        first_place: Position,
        targets: &mut [Target<'_, D>],
    ) -> Result<(), ReshardError> {
        let mut live: Vec<Vec<_>> = vec![Vec::new(); targets.len()];
        let mut touched = Vec::new();
        let (from, to) = (segment.start.0, segment.end.0);
        for (key, queue) in queues(&self.engine) {
            if queue.settings.durable == Level::None {
                continue;
            }
            let load = |slot: Slot| self.survey.block(BlockSlot(slot.0 as u32));
            let found = queue.index.live_between_with(from, to, load);
            let found = found.map_err(|error| error.below(&self.directory))?;
            if found.is_empty() {
                continue;
            }
            let shard = self.shards[&key];
            touched.push((key, shard));
            let place = |(id, place)| (queue.uid, id, Position(place));
            live[shard as usize].extend(found.into_iter().map(place));
        }
        let keys: BTreeMap<(u32, QueueUid), QueueKey> = touched
            .iter()
            .map(|(key, shard)| ((*shard, self.engine.queue(*key).uid), *key))
            .collect();
        for ((shard, target), live) in (0..).zip(&mut *targets).zip(live) {
            if live.is_empty() {
                continue;
            }
            let wanted = live.len();
            let (_, _, first) = live[0];
            let copied = target.log.copy_in(&self.survey, segment, live);
            let moves = copied.map_err(|error| error.below(&self.directory))?;
            if moves.len() < wanted {
                return Err(ReshardError::Refused(format!(
                    "{}/{} holds a message that fills a whole segment, for which there is no place in \
                     another: consume it first",
                    self.directory,
                    self.survey.file_of(first)
                )));
            }
            for (uid, id, place) in moves {
                let queue = self.engine.queue_mut(keys[&(shard, uid)]);
                queue.index.relocate(id, place.0);
            }
        }
        for (key, shard) in touched {
            let queue = self.engine.queue_mut(key);
            let target = &mut targets[shard as usize];
            for (number, column) in queue.index.gather(first_place.0) {
                let slot = target.log.spill(queue.uid, number, column);
                queue.index.saved(number, Slot(u64::from(slot.0)));
            }
            queue.index.evict(0);
        }
        // Index blocks are written now, so that they do not wait in memory.
        targets.iter_mut().try_for_each(Target::work)
    }

    /// Adds what is known of the queues to the checkpoints of the new shards; all messages were copied.
    fn give(
        mut self,
        targets: &mut [Target<'_, D>],
        first_place: Position,
        down_us: u64,
    ) -> Result<(), ReshardError> {
        let keys: Vec<QueueKey> = queues(&self.engine).map(|(key, _)| key).collect();
        for key in keys {
            let queue = self.engine.queue_mut(key);
            let is_copied = queue.index.lies_behind(first_place.0);
            if queue.settings.durable != Level::None && !is_copied {
                return Err(ReshardError::Failed(format!(
                    "messages of queue {} are in no segment, which is an error of this program; nothing was \
                     changed",
                    queue.printed.escape_ascii()
                )));
            }
            // The windows of `once=` stand still while no broker runs.
            queue.dedup.shift(down_us);
            let queue = self.engine.queue(key);
            let groups: Vec<(&Queue, &[(MessageId, u8)])> = queue
                .groups()
                .map(|group| (self.engine.queue(group), &[][..]))
                .collect();
            let target = &mut targets[self.shards[&key] as usize];
            target.queues.queue(queue, &[], &groups);
            target.share.add(queue);
        }
        for (queue, number, planned) in self.engine.schedules.iter() {
            let Some(home) = self.homes.get(&queue) else {
                continue;
            };
            let schedules = &mut targets[home.shard as usize].schedules;
            schedules.insert(home.uid, number, planned.schedule.clone(), planned.next_us);
        }
        for target in &mut *targets {
            let next = &mut target.schedules.next_number;
            *next = self.engine.schedules.next_number.max(*next);
        }
        self.give_declared(targets);
        Ok(())
    }

    /// Declarations go with their queues.
    fn give_declared(&self, targets: &mut [Target<'_, D>]) {
        for home in self.homes.values() {
            if let Some(declared) = &self.engine.queue(home.key).declared {
                let declared = Change::Queue {
                    uid: home.uid,
                    declared: (**declared).clone(),
                };
                let routes = &mut targets[home.shard as usize].routes;
                routes.push(encoded(&declared));
            }
        }
    }
}

/// Exchanges and bindings are kept by the first shard, and lead to queues wherever these go.
fn give_routes(routes: &[Vec<u8>], homes: &[BTreeMap<QueueUid, Home>], first: &mut Vec<Vec<u8>>) {
    for mut change in routes.iter().filter_map(|octets| Change::decode(octets)) {
        if let Change::Bind {
            target: BindingTarget::Queue(uid),
            ..
        } = &mut change
        {
            let (shard, own) = far(*uid).unwrap_or((0, *uid));
            let home = homes.get(shard as usize).and_then(|homes| homes.get(&own));
            let Some(home) = home else {
                continue;
            };
            *uid = match home.shard {
                0 => home.uid,
                shard => far_origin(shard, home.uid.0),
            };
        }
        first.push(encoded(&change));
    }
}

fn encoded(change: &Change<'_>) -> Vec<u8> {
    let mut octets = Vec::new();
    change.encode(&mut octets);
    octets
}

impl<'d, D: Disk> Target<'d, D> {
    fn open(
        disk: Below<'d, D>,
        config: &LogConfig,
        wall_ms: u64,
        directory_id: u64,
        incarnation: u64,
        first_kept: u64,
    ) -> Result<Target<'d, D>, ReshardError> {
        Log::<NoStorage>::create(&disk, config, directory_id, incarnation)?;
        let storage = Foreground::new(disk);
        let jobs = storage.done();
        let options = OpenOptions {
            must_exist: true,
            now_ms: wall_ms,
            directory_id,
        };
        let mut nothing = Engine::<NoStorage>::new(Settings::default(), 0);
        let (mut log, _) = Log::open(storage, config, options, &mut Recovery::new(&mut nothing))?;
        log.number_kept_from(first_kept);
        Ok(Target {
            log,
            jobs,
            now_us: wall_ms * 1000,
            next_uid: 1,
            share: Share::default(),
            queues: Writer::default(),
            schedules: Schedules::default(),
            routes: Vec::new(),
        })
    }

    /// Lets the log do what it has begun, until it does nothing more by itself.
    fn work(&mut self) -> Result<(), ReshardError> {
        loop {
            let before = self.jobs.get();
            let event = self.log.poll(self.now_us);
            if let Some(failure) = self.log.failure() {
                return Err(ReshardError::Failed(failure.to_string()));
            }
            if event.is_none() && self.jobs.get() == before {
                return Ok(());
            }
        }
    }

    /// The same until it is as wanted.
    fn work_until(
        &mut self,
        is_done: impl Fn(&Log<Foreground<Below<'d, D>>>) -> bool,
    ) -> Result<(), ReshardError> {
        self.work()?;
        match is_done(&self.log) {
            true => Ok(()),
            false => Err(ReshardError::Failed(
                "there is not enough space on the disk for the new shards; nothing was changed"
                    .into(),
            )),
        }
    }

    /// Writes the checkpoint and closes the log, so that all of it is on stable storage.
    fn finish(mut self) -> Result<(), ReshardError> {
        self.work_until(|log| log.room() == Room::Plenty)?;
        let incarnation = self.log.incarnation();
        self.log.append(&Entry::Open { incarnation });
        self.log.commit(self.now_us, true);
        let mut payload = Writer::new(self.next_uid, self.share.queues as usize);
        payload.append(std::mem::take(&mut self.queues));
        payload.schedules(&self.schedules);
        payload.behind(&self.routes, &Outbox::default());
        self.log.checkpoint(payload.finish());
        self.work_until(|log| log.stats().checkpoints == 1)?;
        self.log.close(self.now_us);
        self.work_until(Log::is_closed)
    }
}
