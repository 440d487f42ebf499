//! A directory of a disk as a disk of its own: how the directories of several shards are seen from the one
//! around them.

use std::io;

use super::disk::Disk;

/// The part of a disk below one of its directories.
#[derive(Debug)]
pub struct Below<'d, D> {
    disk: &'d D,
    /// Relative to the disk; empty = all of it.
    directory: String,
}

impl<D> Clone for Below<'_, D> {
    fn clone(&self) -> Self {
        Below {
            disk: self.disk,
            directory: self.directory.clone(),
        }
    }
}

impl<'d, D: Disk> Below<'d, D> {
    /// Paths of this disk begin in `directory`, which is relative to `disk`; empty means all of that.
    pub fn new(disk: &'d D, directory: &str) -> Below<'d, D> {
        Below {
            disk,
            directory: directory.to_owned(),
        }
    }

    fn path(&self, path: &str) -> String {
        match (self.directory.as_str(), path) {
            ("", path) => path.to_owned(),
            (directory, "") => directory.to_owned(),
            (directory, path) => format!("{directory}/{path}"),
        }
    }
}

impl<D: Disk> Disk for Below<'_, D> {
    type File = D::File;

    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        self.disk.list(&self.path(dir))
    }
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.disk.create_dir(&self.path(path))
    }
    fn create(&self, path: &str) -> io::Result<D::File> {
        self.disk.create(&self.path(path))
    }
    fn open(&self, path: &str) -> io::Result<D::File> {
        self.disk.open(&self.path(path))
    }
    fn len(&self, file: &D::File) -> io::Result<u64> {
        self.disk.len(file)
    }
    fn read_at(&self, file: &D::File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(file, offset, into)
    }
    fn write_at(&self, file: &D::File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write_at(file, offset, bytes)
    }
    fn sync(&self, file: &D::File) -> io::Result<()> {
        self.disk.sync(file)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(&self.path(dir))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(&self.path(from), &self.path(to))
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(&self.path(path))
    }
    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.disk.remove_dir(&self.path(path))
    }
}
