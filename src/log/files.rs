//! The real disk: a locked directory, and a worker for each lane.

mod worker;

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use std::os::unix::fs::FileExt;

use super::disk::{Disk, Storage};
use super::error::OpenError;
use super::job::{Done, Job, Lane};
use super::manifest;
use worker::Worker;

pub use worker::{Notify, Pending};

/// File operations below one directory.
#[derive(Clone, Debug)]
pub struct FileDisk {
    dir: Arc<PathBuf>,
}

impl FileDisk {
    /// Operates below `dir`, without locking it: for looking only.
    pub fn unlocked(dir: &Path) -> FileDisk {
        FileDisk {
            dir: Arc::new(dir.to_owned()),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() {
            self.dir.as_ref().clone()
        } else {
            self.dir.join(path)
        }
    }
}

impl Disk for FileDisk {
    type File = Arc<File>;

    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.path(dir))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                found.push((name + "/", 0));
            } else {
                found.push((name, metadata.len()));
            }
        }
        found.sort();
        Ok(found)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        std::fs::create_dir(self.path(path))
    }

    fn create(&self, path: &str) -> io::Result<Arc<File>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(path))?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &str) -> io::Result<Arc<File>> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.path(path))?;
        Ok(Arc::new(file))
    }

    fn len(&self, file: &Arc<File>) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &Arc<File>, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        file.as_ref().read_at(into, offset)
    }

    fn write_at(&self, file: &Arc<File>, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        file.as_ref().write_at(bytes, offset)
    }

    fn sync(&self, file: &Arc<File>) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(path))
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        std::fs::remove_dir(self.path(path))
    }
}

/// A locked data directory with a thread for each [`Lane`]. Dropping it waits for the jobs handed
/// over, and then unlocks.
pub struct FileStorage {
    disk: FileDisk,
    workers: Vec<Worker>,
    done: Receiver<Done<Arc<File>>>,
    /// Locked as long as it is open; declared last, so that it is closed last.
    _lock: File,
}

impl std::fmt::Debug for FileStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStorage")
            .field("dir", &self.disk.dir)
            .finish_non_exhaustive()
    }
}

impl FileStorage {
    /// Locks the directory, which is created if it is missing, and starts the threads, which tell
    /// `notify` of each finished job.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another process has it, [`OpenError::Foreign`] when it is
    /// somebody else's directory (nothing is written to it then), [`OpenError::Io`].
    pub fn open(dir: &Path, notify: Arc<dyn Notify>) -> Result<FileStorage, OpenError> {
        create_durably(dir)?;
        let disk = FileDisk::unlocked(dir);
        let root = disk
            .list("")
            .map_err(|error| OpenError::io("", "listing", error))?;
        if !root.iter().any(|(name, _)| name == manifest::FILE) {
            manifest::expect_empty(&root)?;
        }
        let lock = lock(&dir.join(manifest::LOCK))?;
        let (done_in, done) = channel();
        let lanes = [Lane::Sync, Lane::Read, Lane::Background];
        let workers =
            lanes.map(|lane| Worker::start(lane, disk.clone(), done_in.clone(), notify.clone()));
        let workers = workers.into_iter().collect::<io::Result<_>>();
        Ok(FileStorage {
            disk,
            workers: workers.map_err(|error| OpenError::io("", "starting a thread for", error))?,
            done,
            _lock: lock,
        })
    }

    /// The same for a directory that must have been in use. A refused one is left as it was, without
    /// even a lock.
    ///
    /// # Errors
    /// As [`FileStorage::open`], and [`OpenError::Missing`].
    pub fn open_existing(dir: &Path, notify: Arc<dyn Notify>) -> Result<FileStorage, OpenError> {
        if !dir.is_dir() {
            return Err(OpenError::Missing);
        }
        let root = FileDisk::unlocked(dir).list("");
        let root = root.map_err(|error| OpenError::io("", "listing", error))?;
        if !root.iter().any(|(name, _)| name == manifest::FILE) {
            manifest::expect_empty(&root)?;
            return Err(OpenError::Missing);
        }
        Self::open(dir, notify)
    }
}

/// Creates a directory with its parents; the entry of each is on stable storage.
///
/// # Errors
/// [`OpenError::Io`].
pub fn create_durably(dir: &Path) -> Result<(), OpenError> {
    create_with_parents(dir).map_err(|error| OpenError::io("", "making", error))
}

fn create_with_parents(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_with_parents(parent)?;
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// A directory that no other process has locked, nor will while this lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Locks a directory that is there.
///
/// # Errors
/// [`OpenError::Locked`] when another process has it, [`OpenError::Io`].
pub fn lock_directory(dir: &Path) -> Result<DirectoryLock, OpenError> {
    let file = lock(&dir.join(manifest::LOCK))?;
    Ok(DirectoryLock { _file: file })
}

/// Takes the lock of a directory and says who has it.
fn lock(path: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::io(manifest::LOCK, "locking", error);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // What the file says is only a help to the reader.
            let _ = (&mut file).take(20).read_to_string(&mut holder);
            return Err(OpenError::Locked {
                file: path.display().to_string(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let text = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.write_all(text.as_bytes()))
        .map_err(failed)?;
    Ok(file)
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // All at once; each is waited for when it is dropped.
        for worker in &self.workers {
            worker.close();
        }
    }
}

impl Storage for FileStorage {
    type Disk = FileDisk;

    fn disk(&self) -> &FileDisk {
        &self.disk
    }

    fn submit(&mut self, job: Job<Arc<File>>) {
        let lane = job.lane();
        let worker = self.workers.iter().find(|worker| worker.lane == lane);
        worker.expect("there is a worker for each lane").submit(job);
    }

    fn poll(&mut self) -> Option<Done<Arc<File>>> {
        self.done.try_recv().ok()
    }
}
