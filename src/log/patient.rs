//! A disk whose operations are done again when they are interrupted, and whose reads are tried
//! again when they fail.

use std::io;

use super::disk::Disk;

/// How often something that only looks is tried. An error of a read is no proof of damage, and
/// whoever sees one may have no later chance to look.
const LOOKS_MAX: u32 = 3;

/// The same disk without `Interrupted`, which says nothing about what was done, also not of a
/// sync, and without errors of reads that are gone at once. Nothing else that fails is done again.
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

fn looked<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..LOOKS_MAX {
        match uninterrupted(&mut operation) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    uninterrupted(operation)
}

impl<D: Disk> Disk for Patient<'_, D> {
    type File = D::File;

    fn list(&self, dir: &str) -> io::Result<Vec<(String, u64)>> {
        looked(|| self.0.list(dir))
    }
    fn create_dir(&self, path: &str) -> io::Result<()> {
        uninterrupted(|| self.0.create_dir(path))
    }
    fn create(&self, path: &str) -> io::Result<D::File> {
        uninterrupted(|| self.0.create(path))
    }
    fn open(&self, path: &str) -> io::Result<D::File> {
        looked(|| self.0.open(path))
    }
    fn len(&self, file: &D::File) -> io::Result<u64> {
        looked(|| self.0.len(file))
    }
    fn read_at(&self, file: &D::File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        looked(|| self.0.read_at(file, offset, into))
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
    fn remove_dir(&self, path: &str) -> io::Result<()> {
        uninterrupted(|| self.0.remove_dir(path))
    }
}
