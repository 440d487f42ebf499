//! The seam to the disk: single file operations, and jobs done away from the event loop.
//!
//! Everything above this file is the same code in production and in the simulator.

use std::io;

use super::job::{Done, Job};

/// File operations, each about one system call. Paths are relative to the data directory and use
/// `/`. Short reads and writes and `Interrupted` may happen: callers loop.
pub trait Disk {
    /// An open file; clones refer to the same file.
    type File: Clone + Send + 'static;

    /// Names and sizes of the files directly in `dir` ("" is the data directory itself), sorted
    /// by name. Directories are listed with a `/` behind their name and size 0.
    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>>;
    /// Creates a directory; its entry is durable only after `sync_dir` of its parent.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Creates a new, empty file for reading and writing; `AlreadyExists` if there is one.
    fn create(&self, path: &str) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &str) -> io::Result<Self::File>;
    /// Length of a file, bytes.
    fn len(&self, file: &Self::File) -> io::Result<u64>;
    /// Reads at an offset; 0 at the end of the file.
    fn read_at(&self, file: &Self::File, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes at an offset; the file grows as needed.
    fn write_at(&self, file: &Self::File, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// `fdatasync`: returns when contents and size are on stable storage.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// `fsync` of a directory: its entries are on stable storage.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Atomically takes the place of `to` if that exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file's entry.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory; `DirectoryNotEmpty` if it is not.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
}

/// What a [`super::Log`] is built on: a disk, and somebody who does slow jobs in the background.
///
/// Jobs of one [`super::job::Lane`] are done one after another in the order submitted; lanes
/// are independent of each other.
pub trait Storage {
    /// The file operations.
    type Disk: Disk;

    /// For the quick operations done on the loop itself (`write_at`), and for recovery.
    fn disk(&self) -> &Self::Disk;
    /// Hands a job over; never blocks.
    fn submit(&mut self, job: Job<<Self::Disk as Disk>::File>);
    /// The next finished job, if any. The shard is woken from its poll when there is one.
    fn poll(&mut self) -> Option<Done<<Self::Disk as Disk>::File>>;
}
