//! A disk made of memory that forgets what a real one may forget. It keeps, for every file and
//! directory, what is on stable storage and what is only in the page cache, fails on demand, and
//! never reads a clock: time passes in `storage`.
//!
//! # What a crash leaves
//!
//! *kill -9*: the page cache survives. Every write and directory operation is there, but what
//! wasn't synced is still unsynced, so a later power loss may take it.
//!
//! *Power loss*: stable storage survives. For each 512-byte sector written since the file's last
//! sync, independently: the old content, any version written since, a torn mixture of two
//! versions, or zeros. A byte that has the same value in every version keeps it ("power-safe
//! overwrite": drives write sectors whole or guard them, so bytes of a synced record survive the
//! rewriting of their sector with more bytes behind them). The size is, independently of data,
//! the synced one or any the file had since. Each directory operation since the directory's last
//! sync is kept or lost by itself, a rename as one.
//!
//! *A failed fsync* leaves some of the dirty sectors on disk, marks all clean, and the next fsync
//! succeeds: Linux' behaviour. Sectors that were lost so are still read from the cache until the
//! cache is dropped, which may happen at a restart.
//!
//! `fdatasync` of a file doesn't make its directory entry durable; only `sync_dir` does.

mod checks;
mod inode;

use std::cell::{Ref, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use ringmq::log::disk::Disk;

use crate::rng::Rng;
use inode::{Change, Directory, Entry, Inode};

/// How a machine may go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies; the kernel lives.
    Kill,
    /// The machine loses power.
    Power,
}

/// The operations, for faults that are meant for some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Op {
    List,
    CreateDir,
    Create,
    Open,
    Len,
    Read,
    Write,
    Sync,
    SyncDir,
    Rename,
    Remove,
}

/// What goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A read or write does a part of its work and says so.
    Short,
    /// A read or write is interrupted before it did anything.
    Interrupted,
    /// Anything that needs space has none; a write may have done a part.
    NoSpace,
    /// The device fails. A write may have done a part unseen.
    Io,
}

/// How full the disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// There is room.
    #[default]
    Free,
    /// Files can't grow nor be created; what they have can be overwritten.
    NoGrowth,
    /// Nothing can be written at all (a copy-on-write or thin volume).
    NoWrite,
}

/// What goes wrong from now on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The machine stops at this operation (counted from 0 over the disk's life), which may have
    /// done a part of its work; that and every later one fails.
    pub crash_at: Option<u64>,
    /// Faults of single operations by index.
    pub at: BTreeMap<u64, Fault>,
    /// Of a thousand reads or writes, so many are short.
    pub short_per_mille: u64,
    /// Of a thousand reads or writes, so many are interrupted.
    pub interrupted_per_mille: u64,
    /// Of 100,000 writes, so many fail with EIO.
    pub write_errors_per_100k: u64,
    /// Of 100,000 reads, so many fail with EIO.
    pub read_errors_per_100k: u64,
    /// Of 100,000 fsyncs, so many fail with EIO.
    pub sync_errors_per_100k: u64,
    /// Of 100,000 creations, opens, renames and removals, so many fail with EIO.
    pub name_errors_per_100k: u64,
    /// How full it is, until set otherwise.
    pub space: Space,
}

/// A file: clones and copies are the same file. It is of no use after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimFile {
    inode: u64,
    boot: u64,
}

/// The disk; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    all: Rc<RefCell<State>>,
    /// The directory that paths are relative to.
    root: String,
}

#[derive(Clone)]
struct State {
    rng: Rng,
    /// Counts crashes, so that files from before one are not used after it.
    boot: u64,
    /// Operations so far.
    ops: u64,
    faults: Faults,
    crashed: bool,
    files: BTreeMap<u64, Inode>,
    directories: BTreeMap<u64, Directory>,
    inode_next: u64,
    /// Failed operations so far, by kind: lets a test see that a fault was met.
    failures: BTreeMap<Op, u64>,
}

const ROOT: u64 = 0;

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        let directories = BTreeMap::from([(ROOT, Directory::default())]);
        let all = Rc::new(RefCell::new(State {
            rng: Rng::new(seed),
            boot: 0,
            ops: 0,
            faults: Faults::default(),
            crashed: false,
            files: BTreeMap::new(),
            directories,
            inode_next: 1,
            failures: BTreeMap::new(),
        }));
        SimDisk {
            all,
            root: String::new(),
        }
    }

    /// The same disk, seen from a directory.
    pub fn part(&self, directory: &str) -> SimDisk {
        SimDisk {
            all: self.all.clone(),
            root: self.at(directory),
        }
    }

    /// The path from the disk's own root.
    fn at(&self, path: &str) -> String {
        match (self.root.as_str(), path) {
            ("", path) => path.to_string(),
            (root, "") => root.to_string(),
            (root, path) => format!("{root}/{path}"),
        }
    }

    fn state(&self) -> Ref<'_, State> {
        self.all.borrow()
    }

    fn state_mut(&self) -> RefMut<'_, State> {
        self.all.borrow_mut()
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state_mut().faults);
    }

    /// Operations so far.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Operations of a kind that failed so far.
    pub fn failures(&self, op: Op) -> u64 {
        self.state().failures.get(&op).copied().unwrap_or(0)
    }

    /// The operation of `crash_at` was reached: everything fails until [`SimDisk::crash`].
    pub fn crashed(&self) -> bool {
        self.state().crashed
    }

    /// Forgets files that nothing can bring back. To be called while no process has them open, as behind
    /// a crash; a run that is not long does without.
    pub fn forget_removed(&self) {
        self.state_mut().drop_unreachable();
    }

    /// The machine goes down and comes up again. Files opened before are dead; planned crashes
    /// are over; other faults stay.
    pub fn crash(&self, mode: Crash) {
        let state = &mut *self.state_mut();
        state.boot += 1;
        state.crashed = false;
        state.faults.crash_at = None;
        match mode {
            Crash::Kill => {
                for file in state.files.values_mut() {
                    file.drop_clean_pages(&mut state.rng);
                }
            }
            Crash::Power => {
                for directory in state.directories.values_mut() {
                    directory.lose_power(&mut state.rng);
                }
                for file in state.files.values_mut() {
                    file.lose_power(&mut state.rng);
                }
                state.drop_unreachable();
            }
        }
    }

    /// Every file's path and content as a reader sees it now; not an operation.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let mut found = BTreeMap::new();
        state.collect(ROOT, "", &mut found);
        found
    }

    /// Damages (or makes) a file behind everybody's back, on stable storage and in the cache.
    pub fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let state = &mut *self.state_mut();
        let (parent, name) = state
            .parent(path)
            .expect("damage in a directory that exists");
        let entry = state.directories[&parent].cache.get(name).copied();
        let inode = match entry {
            Some(Entry::File(inode)) => inode,
            Some(Entry::Directory(_)) => panic!("{path} is a directory"),
            None => {
                let inode = state.inode_next;
                state.inode_next += 1;
                state.files.insert(inode, Inode::default());
                let directory = state.directories.get_mut(&parent).expect("looked up above");
                for entries in [&mut directory.cache, &mut directory.durable] {
                    entries.insert(name.to_string(), Entry::File(inode));
                }
                inode
            }
        };
        let file = state.files.get_mut(&inode).expect("an entry has its inode");
        change(&mut file.cache);
        *file = Inode {
            durable: file.cache.clone(),
            cache: std::mem::take(&mut file.cache),
            ..Inode::default()
        };
    }
}

impl State {
    /// Counts an operation and decides its fate.
    fn begin(&mut self, op: Op) -> io::Result<Option<Fault>> {
        let index = self.ops;
        self.ops += 1;
        if self.crashed || self.faults.crash_at == Some(index) {
            // The harness sees `crashed`; what the broker does with this error reaches nobody.
            let first = !self.crashed;
            self.crashed = true;
            if first && op == Op::Write {
                return Ok(Some(Fault::Io));
            }
            return Err(self.failed(op, Fault::Io));
        }
        let transfer = matches!(op, Op::Read | Op::Write);
        let errors = match op {
            Op::Write => self.faults.write_errors_per_100k,
            Op::Read => self.faults.read_errors_per_100k,
            Op::Sync | Op::SyncDir => self.faults.sync_errors_per_100k,
            Op::Len | Op::List => 0,
            _ => self.faults.name_errors_per_100k,
        };
        let planned = self.faults.at.get(&index).copied();
        let fault = planned.or_else(|| {
            if errors > 0 && self.rng.below(100_000) < errors {
                Some(Fault::Io)
            } else if transfer && self.rng.chance(self.faults.short_per_mille) {
                Some(Fault::Short)
            } else if transfer && self.rng.chance(self.faults.interrupted_per_mille) {
                Some(Fault::Interrupted)
            } else {
                None
            }
        });
        let space_needed = matches!(op, Op::Write | Op::Create | Op::CreateDir | Op::Rename);
        match fault {
            Some(Fault::Short | Fault::Interrupted) if !transfer => Ok(None),
            Some(Fault::NoSpace) if !space_needed => Ok(None),
            Some(Fault::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(fault @ (Fault::Io | Fault::NoSpace)) if op != Op::Write && op != Op::Sync => {
                Err(self.failed(op, fault))
            }
            other => Ok(other),
        }
    }

    fn failed(&mut self, op: Op, fault: Fault) -> io::Error {
        *self.failures.entry(op).or_insert(0) += 1;
        match fault {
            Fault::NoSpace => io::Error::from_raw_os_error(libc_enospc()),
            _ => io::Error::from_raw_os_error(5),
        }
    }

    fn parent<'a>(&self, path: &'a str) -> io::Result<(u64, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.directory(dir)?, name))
    }

    fn directory(&self, path: &str) -> io::Result<u64> {
        let mut at = ROOT;
        for word in path.split('/').filter(|word| !word.is_empty()) {
            match self.directories[&at].cache.get(word) {
                Some(Entry::Directory(next)) => at = *next,
                _ => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Ok(at)
    }

    fn file(&self, file: &SimFile) -> &Inode {
        assert_eq!(
            file.boot, self.boot,
            "a file from before the crash is used after it"
        );
        &self.files[&file.inode]
    }

    fn file_mut(&mut self, file: &SimFile) -> &mut Inode {
        assert_eq!(
            file.boot, self.boot,
            "a file from before the crash is used after it"
        );
        self.files
            .get_mut(&file.inode)
            .expect("inodes live until a crash")
    }

    fn collect(&self, directory: u64, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for (name, entry) in &self.directories[&directory].cache {
            match entry {
                Entry::File(inode) => {
                    found.insert(format!("{prefix}{name}"), self.files[inode].cache.clone());
                }
                Entry::Directory(next) => self.collect(*next, &format!("{prefix}{name}/"), found),
            }
        }
    }

    fn drop_unreachable(&mut self) {
        let mut reachable = BTreeSet::new();
        let mut directories = vec![ROOT];
        let mut directories_seen = BTreeSet::from([ROOT]);
        while let Some(at) = directories.pop() {
            let directory = &self.directories[&at];
            let names = directory.cache.values().chain(directory.durable.values());
            let changed = directory.unsynced.iter().map(|change| match change {
                Change::Insert(_, entry) | Change::Rename(_, _, entry) => entry,
                Change::Remove(_, entry) => entry,
            });
            for entry in names.chain(changed) {
                match entry {
                    Entry::File(inode) => {
                        reachable.insert(*inode);
                    }
                    Entry::Directory(next) if directories_seen.insert(*next) => {
                        directories.push(*next);
                    }
                    Entry::Directory(_) => {}
                }
            }
        }
        self.files.retain(|inode, _| reachable.contains(inode));
        self.directories
            .retain(|inode, _| directories_seen.contains(inode));
    }
}

/// The errno of a full disk.
fn libc_enospc() -> i32 {
    28
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        let dir = &self.at(dir);
        let state = &mut *self.state_mut();
        state.begin(Op::List)?;
        let directory = state.directory(dir)?;
        let entries = &state.directories[&directory].cache;
        Ok(entries
            .iter()
            .map(|(name, entry)| match entry {
                Entry::File(inode) => (name.clone(), state.files[inode].cache.len() as u64),
                Entry::Directory(_) => (format!("{name}/"), 0),
            })
            .collect())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let path = &self.at(path);
        let state = &mut *self.state_mut();
        state.begin(Op::CreateDir)?;
        if state.faults.space != Space::Free {
            return Err(state.failed(Op::CreateDir, Fault::NoSpace));
        }
        let (parent, name) = state.parent(path)?;
        if state.directories[&parent].cache.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inode_next;
        state.inode_next += 1;
        state.directories.insert(inode, Directory::default());
        let parent = state.directories.get_mut(&parent).expect("looked up above");
        parent.change(Change::Insert(name.to_string(), Entry::Directory(inode)));
        Ok(())
    }

    fn create(&self, path: &str) -> io::Result<SimFile> {
        let path = &self.at(path);
        let state = &mut *self.state_mut();
        state.begin(Op::Create)?;
        if state.faults.space != Space::Free {
            return Err(state.failed(Op::Create, Fault::NoSpace));
        }
        let (parent, name) = state.parent(path)?;
        if state.directories[&parent].cache.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inode_next;
        state.inode_next += 1;
        state.files.insert(inode, Inode::default());
        let parent = state.directories.get_mut(&parent).expect("looked up above");
        parent.change(Change::Insert(name.to_string(), Entry::File(inode)));
        Ok(SimFile {
            inode,
            boot: state.boot,
        })
    }

    fn open(&self, path: &str) -> io::Result<SimFile> {
        let path = &self.at(path);
        let state = &mut *self.state_mut();
        state.begin(Op::Open)?;
        let (parent, name) = state.parent(path)?;
        match state.directories[&parent].cache.get(name) {
            Some(Entry::File(inode)) => Ok(SimFile {
                inode: *inode,
                boot: state.boot,
            }),
            Some(Entry::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn len(&self, file: &SimFile) -> io::Result<u64> {
        let state = &mut *self.state_mut();
        state.begin(Op::Len)?;
        Ok(state.file(file).cache.len() as u64)
    }

    fn read_at(&self, file: &SimFile, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.state_mut();
        let fault = state.begin(Op::Read)?;
        let content = &state.file(file).cache;
        let start = content.len().min(offset as usize);
        let mut count = into.len().min(content.len() - start);
        into[..count].copy_from_slice(&content[start..start + count]);
        if fault == Some(Fault::Short) && count > 1 {
            count = state.rng.range(1, count as u64 - 1) as usize;
        }
        Ok(count)
    }

    fn write_at(&self, file: &SimFile, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let state = &mut *self.state_mut();
        let fault = state.begin(Op::Write)?;
        let offset = offset as usize;
        let room = match state.faults.space {
            Space::Free => bytes.len(),
            Space::NoGrowth => state
                .file(file)
                .cache
                .len()
                .saturating_sub(offset)
                .min(bytes.len()),
            Space::NoWrite => 0,
        };
        let part = match fault {
            None => bytes.len(),
            Some(Fault::Short) if bytes.len() > 1 => {
                state.rng.range(1, bytes.len() as u64 - 1) as usize
            }
            Some(Fault::Short) => bytes.len(),
            Some(_) => state.rng.below(bytes.len() as u64 + 1) as usize,
        };
        let count = part.min(room);
        state.file_mut(file).write(offset, &bytes[..count]);
        match fault {
            // A device error says nothing of the part that was done; a full disk says how much.
            Some(Fault::Io) => Err(state.failed(Op::Write, Fault::Io)),
            Some(Fault::NoSpace) if count == 0 => Err(state.failed(Op::Write, Fault::NoSpace)),
            _ if count == 0 && !bytes.is_empty() => Err(state.failed(Op::Write, Fault::NoSpace)),
            _ => Ok(count),
        }
    }

    fn sync(&self, file: &SimFile) -> io::Result<()> {
        let state = &mut *self.state_mut();
        if state.begin(Op::Sync)?.is_some() {
            let error = state.failed(Op::Sync, Fault::Io);
            let mut rng = state.rng.fork(state.ops);
            state.file_mut(file).sync_failed(&mut rng);
            return Err(error);
        }
        state.file_mut(file).sync();
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let dir = &self.at(dir);
        let state = &mut *self.state_mut();
        state.begin(Op::SyncDir)?;
        let directory = state.directory(dir)?;
        state
            .directories
            .get_mut(&directory)
            .expect("looked up above")
            .sync();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (&self.at(from), &self.at(to));
        let state = &mut *self.state_mut();
        state.begin(Op::Rename)?;
        let (from_parent, from_name) = state.parent(from)?;
        let (to_parent, to_name) = state.parent(to)?;
        let entry = state.directories[&from_parent]
            .cache
            .get(from_name)
            .copied();
        let entry = entry.ok_or(io::ErrorKind::NotFound)?;
        if from_parent == to_parent {
            let directory = state
                .directories
                .get_mut(&from_parent)
                .expect("looked up above");
            directory.change(Change::Rename(
                from_name.to_string(),
                to_name.to_string(),
                entry,
            ));
            return Ok(());
        }
        let target = state
            .directories
            .get_mut(&to_parent)
            .expect("looked up above");
        target.change(Change::Insert(to_name.to_string(), entry));
        let origin = state
            .directories
            .get_mut(&from_parent)
            .expect("looked up above");
        origin.change(Change::Remove(from_name.to_string(), entry));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let path = &self.at(path);
        let state = &mut *self.state_mut();
        state.begin(Op::Remove)?;
        let (parent, name) = state.parent(path)?;
        let directory = state.directories.get_mut(&parent).expect("parents exist");
        let entry = directory
            .cache
            .get(name)
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        directory.change(Change::Remove(name.to_string(), entry));
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let path = &self.at(path);
        let state = &mut *self.state_mut();
        state.begin(Op::Remove)?;
        let (parent, name) = state.parent(path)?;
        let entry = state.directories[&parent].cache.get(name).copied();
        let Some(entry @ Entry::Directory(inode)) = entry else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if !state.directories[&inode].cache.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let directory = state.directories.get_mut(&parent).expect("parents exist");
        directory.change(Change::Remove(name.to_string(), entry));
        Ok(())
    }
}
