//! Where in a data directory each shard has its own: the directory itself for the only one, else a directory for
//! each, and a file that says how many there are.

use std::io;

use super::disk::Disk;
use super::error::OpenError;
use super::manifest;
use super::patient::Patient;
use super::rw::{read_file, write_new_file};

/// The file that says how many shards a directory has; without it, it is one.
pub const FILE: &str = "SHARDS";
pub(crate) const TMP: &str = "SHARDS.tmp";
const TITLE: &str = "ringmq data directory of several shards";
const VERSION: u64 = 1;
const BYTES_MAX: usize = 4096;

/// The directory of a shard among several, relative to the data directory.
pub fn directory(shard: u32, shards: u32) -> String {
    format!("shard-{shard}-of-{shards}")
}

fn encode(shards: u32) -> String {
    let text = format!("{TITLE}\nversion {VERSION}\nshards {shards}\n");
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text}crc {crc:08x}\n")
}

fn decode(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    let rest = text
        .strip_prefix(TITLE)?
        .strip_prefix("\nversion 1\nshards ")?;
    let shards = rest.lines().next()?.parse().ok()?;
    (encode(shards) == text).then_some(shards)
}

/// How many shards a directory has: 1 without the file, `None` if it is new.
///
/// # Errors
/// The file is damaged, what is there is not a data directory, or the disk fails.
pub fn shards<D: Disk>(disk: &D) -> Result<Option<u32>, OpenError> {
    let disk = &Patient(disk);
    match read_file(disk, FILE, BYTES_MAX) {
        Ok(text) => decode(&text).map(Some).ok_or_else(|| {
            OpenError::corrupt(FILE, 0, "it does not say how many shards there are")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let root = disk
                .list("")
                .map_err(|error| OpenError::io("", "listing", error))?;
            if root.iter().any(|(name, _)| name == manifest::FILE) {
                return Ok(Some(1));
            }
            let others: Vec<_> = root.into_iter().filter(|(name, _)| name != TMP).collect();
            manifest::expect_empty(&others)?;
            Ok(None)
        }
        Err(error) => Err(OpenError::io(FILE, "reading", error)),
    }
}

/// Says, durably and in place of what was said before, how many shards there are.
///
/// # Errors
/// The disk fails: then what was said before may stand, or the new.
pub(crate) fn store<D: Disk>(disk: &D, shards: u32) -> Result<(), OpenError> {
    let disk = &Patient(disk);
    write_new_file(disk, TMP, &[encode(shards).as_bytes()])?;
    disk.rename(TMP, FILE)
        .map_err(|error| OpenError::io(FILE, "naming", error))?;
    disk.sync_dir("")
        .map_err(|error| OpenError::io("", "syncing", error))
}

/// The directories of so many shards, relative to the data directory; a new one is made one of these. The only
/// shard of a directory has all of it.
///
/// # Errors
/// [`OpenError::Shards`] if there is another number of them, [`OpenError::Missing`] for a new directory that
/// must exist, and those of [`shards`].
pub fn prepare<D: Disk>(disk: &D, count: u32, must_exist: bool) -> Result<Vec<String>, OpenError> {
    let was_there = match shards(disk)? {
        Some(found) if found != count => {
            return Err(OpenError::Shards {
                found,
                wanted: count,
            });
        }
        Some(1) => return Ok(vec![String::new()]),
        Some(_) => true,
        None if must_exist => return Err(OpenError::Missing),
        None if count == 1 => return Ok(vec![String::new()]),
        None => {
            store(disk, count)?;
            false
        }
    };
    let disk = &Patient(disk);
    let root = disk
        .list("")
        .map_err(|error| OpenError::io("", "listing", error))?;
    let directories: Vec<_> = (0..count).map(|shard| directory(shard, count)).collect();
    let is_there = |name: &String| root.iter().any(|(known, _)| *known == format!("{name}/"));
    let missing: Vec<_> = directories.iter().filter(|name| !is_there(name)).collect();
    if was_there && !missing.is_empty() {
        // An interrupted start has left the file, perhaps without its name on the disk: without that nobody
        // would know whose the directories are.
        disk.sync_dir("")
            .map_err(|error| OpenError::io("", "syncing", error))?;
    }
    for name in missing {
        disk.create_dir(name)
            .map_err(|error| OpenError::io(name, "making", error))?;
    }
    // Also those that are there: nobody may have lived to do this.
    disk.sync_dir("")
        .map_err(|error| OpenError::io("", "syncing", error))?;
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_how_many_or_is_refused() {
        let text = encode(3);
        assert_eq!(decode(text.as_bytes()), Some(3));
        for at in 0..text.len() {
            assert_eq!(decode(&text.as_bytes()[..at]), None, "cut at {at}");
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(decode(&bytes), None, "changed at {at}");
        }
    }
}
