//! The storage of a broker without a data directory: there is no value of it.

use std::io;

use super::disk::{Disk, Storage};
use super::job::{Done, Job};

/// A storage that never exists, so that a shard without a log has a type.
#[derive(Clone, Copy, Debug)]
pub enum NoStorage {}

impl Storage for NoStorage {
    type Disk = NoStorage;

    fn disk(&self) -> &NoStorage {
        self
    }

    fn submit(&mut self, _: Job<NoStorage>) {
        match *self {}
    }

    fn poll(&mut self) -> Option<Done<NoStorage>> {
        match *self {}
    }
}

impl Disk for NoStorage {
    type File = NoStorage;

    fn list(&self, _: &str) -> io::Result<Vec<(String, u64)>> {
        match *self {}
    }
    fn create_dir(&self, _: &str) -> io::Result<()> {
        match *self {}
    }
    fn create(&self, _: &str) -> io::Result<NoStorage> {
        match *self {}
    }
    fn open(&self, _: &str) -> io::Result<NoStorage> {
        match *self {}
    }
    fn len(&self, _: &NoStorage) -> io::Result<u64> {
        match *self {}
    }
    fn read_at(&self, _: &NoStorage, _: u64, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }
    fn write_at(&self, _: &NoStorage, _: u64, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }
    fn sync(&self, _: &NoStorage) -> io::Result<()> {
        match *self {}
    }
    fn sync_dir(&self, _: &str) -> io::Result<()> {
        match *self {}
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        match *self {}
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        match *self {}
    }
    fn remove_dir(&self, _: &str) -> io::Result<()> {
        match *self {}
    }
}
