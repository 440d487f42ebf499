//! What a file and a directory remember: the page cache, stable storage, and what was unsynced.

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::Rng;

/// The unit in which a disk keeps or loses what was written.
pub const SECTOR_BYTES: usize = 512;

/// Versions of one unsynced sector that are remembered, besides the synced and the newest one.
const VERSIONS_MAX: usize = 3;

#[derive(Clone, Default)]
pub struct Inode {
    /// What is read: the page cache.
    pub cache: Vec<u8>,
    /// What is on stable storage; its length is the durable size.
    pub durable: Vec<u8>,
    /// Sectors written since the last sync, with versions they had since, oldest first, without
    /// the durable and the newest.
    pub dirty: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Sizes that the file had since the last sync.
    pub sizes: Vec<usize>,
    /// Sectors whose cached content differs from the durable one, and that are not dirty: a
    /// failed fsync lost them.
    pub forgotten: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    File(u64),
    Directory(u64),
}

#[derive(Clone, Debug)]
pub enum Change {
    Insert(String, Entry),
    Rename(String, String, Entry),
    Remove(String, Entry),
}

#[derive(Clone, Default)]
pub struct Directory {
    pub cache: BTreeMap<String, Entry>,
    pub durable: BTreeMap<String, Entry>,
    /// What happened since the last sync, in order.
    pub unsynced: Vec<Change>,
}

impl Inode {
    pub fn sector_of(bytes: &[u8], sector: usize) -> Vec<u8> {
        let start = (sector * SECTOR_BYTES).min(bytes.len());
        let end = (start + SECTOR_BYTES).min(bytes.len());
        let mut content = bytes[start..end].to_vec();
        content.resize(SECTOR_BYTES, 0);
        content
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        for sector in offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            let before = Inode::sector_of(&self.cache, sector);
            self.forgotten.remove(&sector);
            match self.dirty.get_mut(&sector) {
                None => {
                    self.dirty.insert(sector, Vec::new());
                }
                Some(versions) if versions.len() < VERSIONS_MAX => versions.push(before),
                Some(versions) => versions[VERSIONS_MAX - 1] = before,
            }
        }
        if end > self.cache.len() {
            self.sizes.push(self.cache.len());
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
    }

    pub fn write_durable(&mut self, sector: usize, content: &[u8]) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.durable.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&content[..end - start]);
        }
    }

    pub fn sync(&mut self) {
        self.durable.resize(self.cache.len(), 0);
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            self.write_durable(sector, &Inode::sector_of(&self.cache, sector));
        }
        self.sizes.clear();
    }

    /// An fsync that failed: some of it got to the disk, and all of it counts as clean.
    pub fn sync_failed(&mut self, rng: &mut Rng) {
        if rng.chance(500) {
            self.durable.resize(self.cache.len(), 0);
        }
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            let content = Inode::sector_of(&self.cache, sector);
            if rng.chance(500) {
                self.write_durable(sector, &content);
            }
            if Inode::sector_of(&self.durable, sector) != content {
                self.forgotten.insert(sector);
            }
        }
        self.sizes.clear();
    }

    /// The process dies. Clean pages may be dropped from the cache at any time: what a failed
    /// fsync lost is then read as it is on disk.
    pub fn drop_clean_pages(&mut self, rng: &mut Rng) {
        for sector in std::mem::take(&mut self.forgotten) {
            if rng.chance(500) {
                self.forgotten.insert(sector);
                continue;
            }
            let content = Inode::sector_of(&self.durable, sector);
            let start = sector * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(self.cache.len());
            if start < end {
                self.cache[start..end].copy_from_slice(&content[..end - start]);
            }
        }
    }

    pub fn lose_power(&mut self, rng: &mut Rng) {
        let size = match rng.below(3) {
            0 => self.durable.len(),
            1 => self.cache.len(),
            _ if self.sizes.is_empty() => self.durable.len(),
            _ => *rng.pick(&self.sizes),
        };
        self.durable.resize(size.max(self.durable.len()), 0);
        // One mood for the whole file makes the extreme outcomes (all kept, all lost) likely.
        let mood = rng.below(5);
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let old = Inode::sector_of(&self.durable, sector);
            let new = Inode::sector_of(&self.cache, sector);
            let mut all: Vec<&[u8]> = vec![&old];
            all.extend(versions.iter().map(Vec::as_slice));
            all.push(&new);
            let content = match mood {
                0 => new.clone(),
                1 => old.clone(),
                _ => Inode::sector_outcome(&all, rng),
            };
            self.write_durable(sector, &content);
        }
        self.sizes.clear();
        self.forgotten.clear();
        self.cache = self.durable.clone();
    }

    /// What a sector that had all these versions holds after power comes back.
    pub fn sector_outcome(versions: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
        let first = *rng.pick(versions);
        let newest = versions[versions.len() - 1];
        match rng.below(6) {
            0 | 1 => first.to_vec(),
            2 => newest.to_vec(),
            3 => {
                let cut = rng.below(SECTOR_BYTES as u64 + 1) as usize;
                [&newest[..cut], &first[cut..]].concat()
            }
            4 => {
                let cut = rng.below(SECTOR_BYTES as u64 + 1) as usize;
                [&first[..cut], &newest[cut..]].concat()
            }
            _ => (0..SECTOR_BYTES)
                .map(|at| {
                    let same = versions.iter().all(|version| version[at] == newest[at]);
                    if same { newest[at] } else { 0 }
                })
                .collect(),
        }
    }
}

impl Directory {
    pub fn change(&mut self, change: Change) {
        Directory::apply(&mut self.cache, &change);
        self.unsynced.push(change);
    }

    pub fn apply(entries: &mut BTreeMap<String, Entry>, change: &Change) {
        match change {
            Change::Insert(name, entry) => {
                entries.insert(name.clone(), *entry);
            }
            Change::Rename(from, to, entry) => {
                if entries.get(from) == Some(entry) {
                    entries.remove(from);
                }
                entries.insert(to.clone(), *entry);
            }
            Change::Remove(name, entry) => {
                if entries.get(name) == Some(entry) {
                    entries.remove(name);
                }
            }
        }
    }

    pub fn sync(&mut self) {
        self.durable = self.cache.clone();
        self.unsynced.clear();
    }

    pub fn lose_power(&mut self, rng: &mut Rng) {
        let keep_per_mille = *rng.pick(&[0, 500, 500, 1000]);
        for change in std::mem::take(&mut self.unsynced) {
            if rng.chance(keep_per_mille) {
                Directory::apply(&mut self.durable, &change);
            }
        }
        self.cache = self.durable.clone();
    }
}
