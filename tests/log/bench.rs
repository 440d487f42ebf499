//! A disk in memory, a storage that works when told, and a model of the broker's state: what the
//! tests of the log stand on.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use ringmq::broker::command::Body;
use ringmq::broker::id::{MessageId, QueueUid};
use ringmq::config::LogConfig;
use ringmq::log::disk::{Disk, Storage};
use ringmq::log::job::{Done, Job, Lane, perform};
use ringmq::log::{
    BlockSlot, Entry, Event, Log, Message, OpenError, OpenOptions, Payload, Place, Position, Read,
    ReadBlock, Recovered, Replay,
};

/// One file: what the system shows, and what is on stable storage.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub bytes: Vec<u8>,
    pub synced: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct State {
    /// By number: renaming moves names, not files.
    pub files: BTreeMap<u64, File>,
    /// Paths and directories (with a `/`) as the system shows them.
    pub names: BTreeMap<String, u64>,
    /// Those on stable storage.
    pub names_synced: BTreeMap<String, u64>,
    pub next: u64,
    /// Operations done so far, and the one at which to fail with an error.
    pub operations: u64,
    pub fail_at: Option<(u64, io::ErrorKind)>,
    /// The process is dead from this operation on.
    pub die_at: Option<u64>,
    /// Bytes of files there may be.
    pub space: Option<u64>,
    /// Writes and reads take at most so many bytes, and every other one is interrupted.
    pub short: Option<usize>,
    pub interrupted: bool,
    pub fail_syncs: bool,
    /// Opening and reading fail with this code.
    pub fail_reads: Option<i32>,
    pub log: Vec<String>,
}

impl State {
    fn check_reads(&self) -> io::Result<()> {
        self.fail_reads
            .map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|id| self.files.get(id).map_or(0, |file| file.bytes.len() as u64))
            .sum()
    }
}

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk(pub Arc<Mutex<State>>);

impl MemDisk {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .lock()
            .expect("no test panics while it holds the disk")
    }

    /// Counts an operation; the error that it must fail with, if any.
    fn enter(&self, what: impl FnOnce() -> String) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let number = state.operations;
        state.operations += 1;
        if state.die_at.is_some_and(|at| number >= at) {
            return Err(io::Error::other("dead"));
        }
        state.log.push(what());
        match state.fail_at {
            Some((at, kind)) if at == number => return Err(kind.into()),
            _ => {}
        }
        // Interrupts every other operation.
        if state.short.is_some() {
            state.interrupted = !state.interrupted;
            if state.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(state)
    }

    /// A disk with the same contents that nothing is wrong with.
    pub fn copy(&self) -> MemDisk {
        let state = self.state();
        MemDisk(Arc::new(Mutex::new(State {
            files: state.files.clone(),
            names: state.names.clone(),
            names_synced: state.names_synced.clone(),
            next: state.next,
            ..State::default()
        })))
    }

    /// What a power loss leaves: only what was synced.
    pub fn power_loss(&self) -> MemDisk {
        let copy = self.copy();
        {
            let mut state = copy.state();
            state.names = state.names_synced.clone();
            for file in state.files.values_mut() {
                file.bytes = file.synced.clone();
            }
        }
        copy
    }

    /// What a power loss leaves when each 512-byte sector and each name had its own luck. Bytes
    /// that a sector had before and after keep their value.
    pub fn power_loss_mixed(&self, seed: u64) -> MemDisk {
        let mut random = Random(seed);
        let copy = self.copy();
        {
            let mut state = copy.state();
            if random.below(2) == 0 {
                state.names = state.names_synced.clone();
            }
            for file in state.files.values_mut() {
                let shown = std::mem::take(&mut file.bytes);
                let length = match random.below(2) {
                    0 => file.synced.len(),
                    _ => shown.len(),
                };
                let mut bytes = file.synced.clone();
                bytes.resize(length, 0);
                for (at, sector) in bytes.chunks_mut(512).enumerate() {
                    let from = at * 512;
                    if from + sector.len() > shown.len()
                        || sector == &shown[from..from + sector.len()]
                    {
                        continue;
                    }
                    match random.below(4) {
                        0 => {}
                        1 => {
                            for (byte, new) in sector.iter_mut().zip(&shown[from..]) {
                                *byte = if byte == new { *new } else { 0 };
                            }
                        }
                        _ => sector.copy_from_slice(&shown[from..from + sector.len()]),
                    }
                }
                file.synced = bytes.clone();
                file.bytes = bytes;
            }
            state.names_synced = state.names.clone();
        }
        copy
    }

    /// The contents of a file.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let state = self.state();
        state.files[&state.names[path]].bytes.clone()
    }

    /// Replaces or makes a file.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.files.insert(
            id,
            File {
                synced: bytes.clone(),
                bytes,
            },
        );
        state.names.insert(path.to_owned(), id);
        state.names_synced.insert(path.to_owned(), id);
    }

    pub fn delete(&self, path: &str) {
        let mut state = self.state();
        state.names.remove(path).expect("the file is there");
        state.names_synced.remove(path);
    }

    pub fn paths(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// Every file and its contents.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let names = state.names.iter();
        names
            .map(|(name, id)| {
                (
                    name.clone(),
                    state.files.get(id).map_or(Vec::new(), |f| f.bytes.clone()),
                )
            })
            .collect()
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for MemDisk {
    type File = u64;

    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        let state = self.enter(|| format!("list {dir}"))?;
        let prefix = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        if !dir.is_empty() && !state.names.contains_key(&prefix) {
            return Err(not_found());
        }
        let inside = state.names.iter().filter_map(|(name, id)| {
            let rest = name.strip_prefix(&prefix)?;
            let is_direct = !rest.is_empty() && !rest.trim_end_matches('/').contains('/');
            let bytes = state
                .files
                .get(id)
                .map_or(0, |file| file.bytes.len() as u64);
            is_direct.then(|| (rest.to_owned(), bytes))
        });
        Ok(inside.collect())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.enter(|| format!("create_dir {path}"))?;
        let id = state.next;
        state.next += 1;
        state.names.insert(format!("{path}/"), id);
        Ok(())
    }

    fn create(&self, path: &str) -> io::Result<u64> {
        let mut state = self.enter(|| format!("create {path}"))?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.next;
        state.next += 1;
        state.files.insert(id, File::default());
        state.names.insert(path.to_owned(), id);
        Ok(id)
    }

    fn open(&self, path: &str) -> io::Result<u64> {
        let state = self.enter(|| format!("open {path}"))?;
        state.check_reads()?;
        state.names.get(path).copied().ok_or_else(not_found)
    }

    fn len(&self, file: &u64) -> io::Result<u64> {
        let state = self.enter(|| "len".to_owned())?;
        Ok(state.files[file].bytes.len() as u64)
    }

    fn read_at(&self, file: &u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.enter(|| format!("read {offset} {}", into.len()))?;
        state.check_reads()?;
        let mut count = into.len();
        if let Some(short) = state.short {
            count = count.min(short);
        }
        let bytes = &state.files[file].bytes;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = count.min(rest.len());
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, file: &u64, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.enter(|| format!("write {offset} {}", bytes.len()))?;
        let mut count = bytes.len();
        if let Some(short) = state.short {
            count = count.min(short);
        }
        let used = state.used();
        let length = state.files[file].bytes.len() as u64;
        if let Some(space) = state.space {
            let grows = (offset + count as u64).saturating_sub(length);
            if used + grows > space {
                let left = space.saturating_sub(used) + length.saturating_sub(offset);
                count = count.min(left as usize);
                if count == 0 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
            }
        }
        let file = state.files.get_mut(file).expect("it was created");
        let end = offset as usize + count;
        if file.bytes.len() < end {
            file.bytes.resize(end, 0);
        }
        file.bytes[offset as usize..end].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn sync(&self, file: &u64) -> io::Result<()> {
        let mut state = self.enter(|| "sync".to_owned())?;
        if state.fail_syncs {
            return Err(io::Error::other("input/output error"));
        }
        let file = state.files.get_mut(file).expect("it was created");
        file.synced = file.bytes.clone();
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.enter(|| format!("sync_dir {dir}"))?;
        let prefix = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        let inside = |name: &str| {
            let rest = name.strip_prefix(&prefix);
            rest.is_some_and(|rest| !rest.is_empty() && !rest.trim_end_matches('/').contains('/'))
        };
        let shown: Vec<(String, u64)> = state
            .names
            .iter()
            .filter(|(name, _)| inside(name))
            .map(|(n, id)| (n.clone(), *id))
            .collect();
        state.names_synced.retain(|name, _| !inside(name));
        state.names_synced.extend(shown);
        // What was in a directory is gone with it.
        let names = std::mem::take(&mut state.names_synced);
        let is_there = |name: &str| {
            let parents = name.trim_end_matches('/').match_indices('/');
            parents
                .into_iter()
                .all(|(at, _)| names.contains_key(&name[..=at]))
        };
        let kept = names.iter().filter(|(name, _)| is_there(name));
        state.names_synced = kept.map(|(name, id)| (name.clone(), *id)).collect();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.enter(|| format!("rename {from} {to}"))?;
        let id = state.names.remove(from).ok_or_else(not_found)?;
        state.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.enter(|| format!("remove {path}"))?;
        state.names.remove(path).ok_or_else(not_found)?;
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.enter(|| format!("remove_dir {path}"))?;
        let name = format!("{path}/");
        let mut inside = state.names.keys().filter(|other| other.starts_with(&name));
        if inside.any(|other| *other != name) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.names.remove(&name).ok_or_else(not_found)?;
        Ok(())
    }
}

/// Does jobs when it is told to, or as soon as it is asked for results.
#[derive(Debug)]
pub struct MemStorage {
    disk: MemDisk,
    pub held: Arc<Mutex<Vec<Lane>>>,
    jobs: VecDeque<Job<u64>>,
    done: VecDeque<Done<u64>>,
}

impl MemStorage {
    pub fn new(disk: &MemDisk) -> MemStorage {
        MemStorage {
            disk: disk.clone(),
            held: Arc::default(),
            jobs: VecDeque::new(),
            done: VecDeque::new(),
        }
    }
}

impl Storage for MemStorage {
    type Disk = MemDisk;

    fn disk(&self) -> &MemDisk {
        &self.disk
    }

    fn submit(&mut self, job: Job<u64>) {
        self.jobs.push_back(job);
    }

    fn poll(&mut self) -> Option<Done<u64>> {
        let held = self
            .held
            .lock()
            .expect("no test panics while it holds it")
            .clone();
        for _ in 0..self.jobs.len() {
            let job = self.jobs.pop_front().expect("there is one");
            if held.contains(&job.lane()) {
                self.jobs.push_back(job);
            } else {
                self.done.push_back(perform(&self.disk, job));
                return self.done.pop_front();
            }
        }
        self.done.pop_front()
    }
}

/// A small generator of random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What the entries say: the messages that are not settled, where they are, and blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub live: BTreeMap<(u64, MessageId), Position>,
    pub next: BTreeMap<u64, MessageId>,
    pub entries: u64,
    pub opens: Vec<u64>,
    /// Queue, pattern, and whether it was bound or unbound.
    pub bound: Vec<(u64, Vec<u8>, bool)>,
    pub defined: BTreeMap<u64, (Vec<u8>, Vec<u8>, u32)>,
    pub released: Vec<(u64, MessageId, u32, u64)>,
    pub blocks: BTreeMap<u64, BlockSlot>,
}

impl Model {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |number: u64| out.extend_from_slice(&number.to_le_bytes());
        put(self.live.len() as u64);
        for ((queue, id), position) in &self.live {
            put(*queue);
            put(*id);
            put(position.0);
        }
        put(self.next.len() as u64);
        for (queue, id) in &self.next {
            put(*queue);
            put(*id);
        }
        put(self.blocks.len() as u64);
        for (number, slot) in &self.blocks {
            put(*number);
            put(u64::from(slot.0));
        }
        out
    }

    pub fn apply_entry(
        &mut self,
        entry: &Entry<'_>,
        position: Position,
        freed: &mut Vec<Position>,
    ) -> Result<(), String> {
        self.entries += 1;
        match entry {
            Entry::Publish { targets, .. } => {
                for (queue, id) in *targets {
                    self.add(*queue, *id, position)?;
                }
            }
            Entry::Settle { queue, runs, .. } => {
                for run in *runs {
                    for id in run.first..run.first + run.count {
                        freed.push(self.take(*queue, id)?);
                    }
                }
            }
            Entry::Transfer {
                source,
                source_id,
                target,
                target_id,
                ..
            } => {
                freed.push(self.take(*source, *source_id)?);
                self.add(*target, *target_id, position)?;
            }
            Entry::Release {
                queue,
                run,
                tries,
                not_before_us,
                ..
            } => self
                .released
                .push((queue.0, run.first, *tries, *not_before_us)),
            Entry::Define {
                uid,
                name,
                settings,
                flags,
            } => {
                self.defined
                    .insert(uid.0, (name.to_vec(), settings.to_vec(), *flags));
            }
            Entry::DeleteQueue { uid } => {
                let gone: Vec<_> = self
                    .live
                    .keys()
                    .filter(|(queue, _)| *queue == uid.0)
                    .copied()
                    .collect();
                for key in gone {
                    freed.extend(self.live.remove(&key));
                }
                self.defined.remove(&uid.0);
            }
            Entry::Bind { queue, pattern } | Entry::Unbind { queue, pattern } => {
                let is_bound = matches!(entry, Entry::Bind { .. });
                self.bound.push((queue.0, pattern.to_vec(), is_bound));
            }
            Entry::Route { change } => self.bound.push((0, change.to_vec(), true)),
            Entry::Group { uid, queue, .. } => {
                self.bound.push((uid.0, queue.0.to_le_bytes().into(), true))
            }
            Entry::Schedule { queue, number, .. } => {
                self.bound
                    .push((queue.0, number.to_le_bytes().into(), true))
            }
            Entry::Out {
                seq,
                shard,
                queue,
                id,
                reason,
                tries,
                target,
                why,
            } => {
                let (target, why) = (target.escape_ascii(), why.escape_ascii());
                let text = format!("{shard} {} {id} {reason:?} {tries} {target} {why}", queue.0);
                self.bound.push((*seq, text.into_bytes(), false));
            }
            Entry::In {
                shard,
                seq,
                below,
                origin,
            } => {
                let text = format!("{shard} {below} {origin}");
                self.bound.push((*seq, text.into_bytes(), false));
            }
            Entry::Part { seq, shard, part } => {
                let text = format!("{shard} {}", part.escape_ascii());
                self.bound.push((*seq, text.into_bytes(), false));
            }
            Entry::Open { incarnation } => self.opens.push(*incarnation),
        }
        Ok(())
    }

    fn add(&mut self, queue: QueueUid, id: MessageId, position: Position) -> Result<(), String> {
        let next = self.next.entry(queue.0).or_insert(1);
        if id < *next {
            return Err(format!("id {id} of queue {} was published before", queue.0));
        }
        *next = id + 1;
        self.live.insert((queue.0, id), position);
        Ok(())
    }

    fn take(&mut self, queue: QueueUid, id: MessageId) -> Result<Position, String> {
        let found = self.live.remove(&(queue.0, id));
        found.ok_or_else(|| format!("message {id} of queue {} is not there", queue.0))
    }
}

impl Replay for Model {
    fn restore(&mut self, payload: &[u8]) -> Result<(), String> {
        let (words, _) = payload.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut number = || words.next().ok_or("the payload ends early".to_owned());
        for _ in 0..number()? {
            let key = (number()?, number()?);
            self.live.insert(key, Position(number()?));
        }
        for _ in 0..number()? {
            let queue = number()?;
            self.next.insert(queue, number()?);
        }
        for _ in 0..number()? {
            let block = number()?;
            self.blocks.insert(block, BlockSlot(number()? as u32));
        }
        Ok(())
    }

    fn apply(
        &mut self,
        entry: &Entry<'_>,
        at: Place,
        blocks: &mut ReadBlock<'_>,
        freed: &mut Vec<Position>,
    ) -> Result<(), String> {
        // A release of message 999 reads a block: what a broker does when it settles in a cold one.
        if let Entry::Release { run, queue, .. } = entry
            && run.first == 999
            && let Some(slot) = self.blocks.get(&queue.0)
        {
            assert_eq!(blocks(*slot)?.len(), 10);
        }
        self.apply_entry(entry, at.position, freed)
    }
}

/// Small sizes.
pub fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 16 << 10,
        chunk_bytes: 2 << 10,
        flush_us: 50_000,
        checkpoint_bytes: 8 << 10,
        ..LogConfig::default()
    }
}

/// A log with its model, kept in step.
#[derive(Debug)]
pub struct Bench {
    pub log: Log<MemStorage>,
    pub model: Model,
    pub recovered: Recovered,
    pub held: Arc<Mutex<Vec<Lane>>>,
    pub now_us: u64,
    pub events: Vec<String>,
    pub relocated: u64,
    /// What was live after records that were sealed because a segment ended.
    pub sealed: Vec<(u64, Vec<(u64, MessageId)>)>,
}

pub fn options(now_us: u64) -> OpenOptions {
    OpenOptions {
        must_exist: false,
        now_ms: now_us / 1000,
        directory_id: 0x5eed,
    }
}

impl Bench {
    pub fn open(disk: &MemDisk) -> Result<Bench, OpenError> {
        Bench::open_with(disk, &config(), 1_000_000_000)
    }

    pub fn open_with(disk: &MemDisk, config: &LogConfig, now_us: u64) -> Result<Bench, OpenError> {
        let storage = MemStorage::new(disk);
        let held = storage.held.clone();
        let mut model = Model::default();
        let (log, recovered) = Log::open(storage, config, options(now_us), &mut model)?;
        Ok(Bench {
            log,
            model,
            recovered,
            held,
            now_us,
            events: Vec::new(),
            relocated: 0,
            sealed: Vec::new(),
        })
    }

    pub fn next_id(&self, queue: u64) -> MessageId {
        self.model.next.get(&queue).copied().unwrap_or(1)
    }

    pub fn publish(&mut self, queue: u64, body: &[u8]) -> Position {
        self.publish_with(queue, &[], Body::Borrowed(body))
    }

    pub fn publish_with(&mut self, queue: u64, sections: &[u8], body: Body<'_>) -> Position {
        let id = self.next_id(queue);
        let message = Message {
            time_ms: self.now_us / 1000,
            sections,
            body,
        };
        let before = self.log.index();
        let position = self.log.publish(QueueUid(queue), id, &message);
        self.note_sealed(before);
        let entry = Entry::Publish {
            targets: &[(QueueUid(queue), id)],
            message,
        };
        self.apply(&entry, position);
        position
    }

    /// Appends an entry and applies it to the model.
    pub fn append(&mut self, entry: &Entry<'_>) -> Position {
        let before = self.log.index();
        let position = self.log.append(entry);
        self.note_sealed(before);
        self.apply(entry, position);
        position
    }

    /// Notes the state of a record that was sealed by the append that comes next in the model.
    fn note_sealed(&mut self, before: ringmq::log::LogIndex) {
        if self.log.index() != before {
            self.sealed
                .push((before.0, self.model.live.keys().copied().collect()));
        }
    }

    fn apply(&mut self, entry: &Entry<'_>, position: Position) {
        let mut freed = Vec::new();
        self.model
            .apply_entry(entry, position, &mut freed)
            .expect("the test does what can be done");
        for position in freed {
            self.log.freed(position);
        }
    }

    pub fn settle(&mut self, queue: u64, id: MessageId) {
        use ringmq::log::SettleReason;
        let before = self.log.index();
        let position = self.model.live[&(queue, id)];
        // Freed first, as the entry that says so may go to a later record of the turn.
        self.log.freed(position);
        self.log.settle(QueueUid(queue), 0, SettleReason::Acked, id);
        self.note_sealed(before);
        self.model.live.remove(&(queue, id));
        self.model.entries += 1;
    }

    /// Ends a turn and does all the work that it leads to.
    pub fn turn(&mut self, sync: bool) {
        self.now_us += 1000;
        self.log.commit(self.now_us, sync);
        self.poll();
    }

    pub fn poll(&mut self) {
        while let Some(event) = self.log.poll(self.now_us) {
            if let Event::Compacted { moves, .. } = &event {
                for (queue, id, old, new) in moves {
                    self.relocated += 1;
                    match self.model.live.get_mut(&(queue.0, *id)) {
                        Some(position) if position == old => {
                            *position = *new;
                            self.log.freed(*old);
                        }
                        _ => self.log.freed(*new),
                    }
                }
            }
            self.events.push(format!("{event:?}"));
        }
    }

    /// Lets time pass, doing what is due.
    pub fn wait(&mut self, us: u64) {
        let until = self.now_us + us;
        self.poll();
        while let Some(at) = self.log.deadline_us().filter(|at| *at <= until) {
            assert!(
                at > self.now_us || self.log.failure().is_none(),
                "a deadline in the past"
            );
            self.now_us = self.now_us.max(at);
            self.log.handle_deadline(self.now_us);
            self.poll();
        }
        self.now_us = until;
    }

    pub fn checkpoint(&mut self) {
        self.log.checkpoint(self.model.encode());
        self.poll();
    }

    /// Reads a message, fetching it if need be.
    pub fn read(&mut self, position: Position) -> Option<(u64, Vec<u8>, Vec<u8>)> {
        for _ in 0..4 {
            match self.log.read(position) {
                Read::Resident(stored) => {
                    let body = match &stored.body {
                        Payload::Slice(slice) => slice.to_vec(),
                        Payload::Shared(bytes) => bytes.to_vec(),
                    };
                    return Some((stored.time_ms, stored.sections.0.to_vec(), body));
                }
                Read::Damaged => return None,
                Read::Cold => {
                    if self.log.failure().is_some() {
                        return None;
                    }
                    self.log.fetch(position);
                    self.poll();
                    if !self.log.is_resident(position) {
                        // It failed and is tried again.
                        self.wait(200_000);
                    }
                }
            }
        }
        panic!("a fetched message is neither there nor damaged");
    }

    /// The entries and messages of the model, without what only this run knows.
    pub fn kept(
        &self,
    ) -> (
        BTreeMap<(u64, MessageId), Position>,
        BTreeMap<u64, MessageId>,
    ) {
        (self.model.live.clone(), self.model.next.clone())
    }
}
