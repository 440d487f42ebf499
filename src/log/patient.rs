//! A disk whose operations are done again when they are interrupted.

use std::io;

use super::disk::Disk;

/// The same disk without `Interrupted`: it says nothing about what was done, also not of a sync.
#[derive(Debug)]
pub(crate) struct Patient<'d, D>(pub &'d D);

fn uninterrupted<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl<D: Disk> Disk for Patient<'_, D> {
    type File = D::File;

    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        uninterrupted(|| self.0.list(dir))
    }
    fn create_dir(&self, path: &str) -> io::Result<()> {
        uninterrupted(|| self.0.create_dir(path))
    }
    fn create(&self, path: &str) -> io::Result<D::File> {
        uninterrupted(|| self.0.create(path))
    }
    fn open(&self, path: &str) -> io::Result<D::File> {
        uninterrupted(|| self.0.open(path))
    }
    fn len(&self, file: &D::File) -> io::Result<u64> {
        uninterrupted(|| self.0.len(file))
    }
    fn read_at(&self, file: &D::File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| self.0.read_at(file, offset, into))
    }
    fn write_at(&self, file: &D::File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| self.0.write_at(file, offset, bytes))
    }
    fn sync(&self, file: &D::File) -> io::Result<()> {
        uninterrupted(|| self.0.sync(file))
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        uninterrupted(|| self.0.sync_dir(dir))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        uninterrupted(|| self.0.rename(from, to))
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        uninterrupted(|| self.0.remove(path))
    }
}
