//! A disk in memory, so that the log is measured without the system under it: nothing it is asked
//! for leaves the process. It never fails, and it does a job when its result is asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

use ringmq::log::disk::{Disk, Storage};
use ringmq::log::job::{Done, Job, perform};

use super::copy;

/// Of a file that is written but not to be read again, so much is kept: headers and small files.
const HEAD_BYTES: usize = 64 << 10;

#[derive(Default)]
struct File {
    length: u64,
    /// The first bytes; what is behind them reads as zeroes.
    bytes: Vec<u8>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, File>,
    names: BTreeMap<String, u64>,
    next: u64,
}

/// Clones are the same disk.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Rc<RefCell<State>>,
    kept_bytes_max: usize,
}

impl MemoryDisk {
    /// A disk that remembers names, lengths and the beginning of every file.
    pub fn forgetful() -> MemoryDisk {
        MemoryDisk {
            state: Rc::default(),
            kept_bytes_max: HEAD_BYTES,
        }
    }

    /// A disk that remembers everything.
    pub fn whole() -> MemoryDisk {
        MemoryDisk {
            state: Rc::default(),
            kept_bytes_max: usize::MAX,
        }
    }

    fn add(&self, name: String) -> u64 {
        let mut state = self.state.borrow_mut();
        let file = state.next;
        state.next += 1;
        state.names.insert(name, file);
        state.files.insert(file, File::default());
        file
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for MemoryDisk {
    type File = u64;

    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        let state = self.state.borrow();
        let prefix = match dir {
            "" => String::new(),
            dir => format!("{dir}/"),
        };
        if !dir.is_empty() && !state.names.contains_key(&prefix) {
            return Err(not_found());
        }
        let inside = state.names.iter().filter_map(|(name, file)| {
            let rest = name.strip_prefix(&prefix)?;
            let is_direct = !rest.is_empty() && !rest.trim_end_matches('/').contains('/');
            is_direct.then(|| (rest.to_owned(), state.files[file].length))
        });
        Ok(inside.collect())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.add(format!("{path}/"));
        Ok(())
    }

    fn create(&self, path: &str) -> io::Result<u64> {
        if self.state.borrow().names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(self.add(path.to_owned()))
    }

    fn open(&self, path: &str) -> io::Result<u64> {
        let state = self.state.borrow();
        state.names.get(path).copied().ok_or_else(not_found)
    }

    fn len(&self, file: &u64) -> io::Result<u64> {
        Ok(self.state.borrow().files[file].length)
    }

    fn read_at(&self, file: &u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.state.borrow();
        let file = &state.files[file];
        let left = file.length.saturating_sub(offset);
        let count = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let kept = file.bytes.get(offset as usize..).unwrap_or_default();
        let kept = &kept[..kept.len().min(count)];
        copy(&mut into[..kept.len()], kept);
        into[kept.len()..count].fill(0);
        Ok(count)
    }

    fn write_at(&self, file: &u64, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.borrow_mut();
        let file = state.files.get_mut(file).expect("it was created");
        let end = offset + bytes.len() as u64;
        file.length = file.length.max(end);
        let offset = offset as usize;
        let kept_end = (end as usize).min(self.kept_bytes_max);
        // Zeroes behind everything else need no place.
        let is_zeroed_ahead = offset >= file.bytes.len() && bytes.iter().all(|octet| *octet == 0);
        if offset < kept_end && !is_zeroed_ahead {
            if file.bytes.len() < kept_end {
                file.bytes.resize(kept_end, 0);
            }
            copy(
                &mut file.bytes[offset..kept_end],
                &bytes[..kept_end - offset],
            );
        }
        Ok(bytes.len())
    }

    fn sync(&self, _: &u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let name = format!("{path}/");
        let mut state = self.state.borrow_mut();
        let mut inside = state.names.keys().filter(|other| other.starts_with(&name));
        if inside.any(|other| *other != name) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.names.remove(&name).ok_or_else(not_found)?;
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let file = state.names.remove(from).ok_or_else(not_found)?;
        if let Some(replaced) = state.names.insert(to.to_owned(), file) {
            state.files.remove(&replaced);
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let file = state.names.remove(path).ok_or_else(not_found)?;
        state.files.remove(&file);
        Ok(())
    }
}

/// The storage on it: a job is done when the log asks what is finished.
pub struct MemoryStorage {
    disk: MemoryDisk,
    jobs: VecDeque<Job<u64>>,
}

impl MemoryStorage {
    pub fn new(disk: &MemoryDisk) -> MemoryStorage {
        MemoryStorage {
            disk: disk.clone(),
            jobs: VecDeque::new(),
        }
    }
}

impl Storage for MemoryStorage {
    type Disk = MemoryDisk;

    fn disk(&self) -> &MemoryDisk {
        &self.disk
    }

    fn submit(&mut self, job: Job<u64>) {
        self.jobs.push_back(job);
    }

    fn poll(&mut self) -> Option<Done<u64>> {
        let job = self.jobs.pop_front()?;
        Some(perform(&self.disk, job))
    }
}
