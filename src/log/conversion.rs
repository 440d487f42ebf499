//! Changing the number of shards of a data directory: what is made beside what, which of them counts at any
//! moment, and how an interrupted change is undone or finished.
//!
//! ```text
//!   RESHARD says 2 to 4     what is of 4 shards is being made   | what counts is of 2
//!   SHARDS says 4           -- the switch: one rename --        +--------------------
//!   what is of 2 is removed                                     | what counts is of 4
//!   RESHARD is removed
//! ```
//!
//! Of one shard is what lies in the directory itself, while there is no `SHARDS`; so the switch to one is the
//! removal of that file.

use std::io;

use super::disk::Disk;
use super::error::OpenError;
use super::layout;
use super::manifest::{self, SHARD};
use super::patient::Patient;
use super::rw::{read_file, remove_if_there, write_new_file};

/// The file that says that the number of shards is being changed.
pub const FILE: &str = "RESHARD";
const TMP: &str = "RESHARD.tmp";
const TITLE: &str = "ringmq data directory whose number of shards is being changed";
const BYTES_MAX: usize = 4096;

/// A change of the number of shards that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// How many there were.
    pub from: u32,
    /// How many there are to be.
    pub to: u32,
}

/// What was done about a change that had been interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// Which.
    pub conversion: Conversion,
    /// The switch had been made, so that what was removed is what there was before; else it is what had been
    /// made of the new.
    pub is_done: bool,
    /// Directories that hold other files too, which were left, relative to the data directory.
    pub left: Vec<String>,
}

impl std::fmt::Display for Cleared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Conversion { from, to } = self.conversion;
        match self.is_done {
            true => write!(
                f,
                "a change from {from} to {to} shards was interrupted behind its end: what there was before is removed"
            )?,
            false => write!(
                f,
                "a change from {from} to {to} shards was interrupted: nothing of it counts, and what it had made is removed"
            )?,
        }
        for directory in &self.left {
            write!(f, "; {directory} holds other files and was left")?;
        }
        Ok(())
    }
}

fn encode(conversion: Conversion) -> String {
    let Conversion { from, to } = conversion;
    let text = format!("{TITLE}\nversion 1\nfrom {from}\nto {to}\n");
    let crc = crc32c::crc32c(text.as_bytes());
    format!("{text}crc {crc:08x}\n")
}

fn decode(text: &[u8]) -> Option<Conversion> {
    let text = std::str::from_utf8(text).ok()?;
    let rest = text.strip_prefix(TITLE)?;
    let mut lines = rest.strip_prefix("\nversion 1\n")?.lines();
    let mut number = |name: &str| lines.next()?.strip_prefix(name)?.parse().ok();
    let conversion = Conversion {
        from: number("from ")?,
        to: number("to ")?,
    };
    (encode(conversion) == text).then_some(conversion)
}

/// The change that was begun and not ended, if there is one.
///
/// # Errors
/// The file is damaged, or the disk fails.
pub fn pending<D: Disk>(disk: &D) -> Result<Option<Conversion>, OpenError> {
    match read_file(&Patient(disk), FILE, BYTES_MAX) {
        Ok(text) => decode(&text).map(Some).ok_or_else(|| {
            OpenError::corrupt(FILE, 0, "it does not say which change of shards was begun")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpenError::io(FILE, "reading", error)),
    }
}

/// Undoes a change that was begun and is not to be ended, or removes what one has left behind that was ended.
/// The caller holds the locks.
///
/// # Errors
/// The disk fails, or the files contradict each other. It can be done again then.
pub fn clear<D: Disk>(disk: &D) -> Result<Option<Cleared>, OpenError> {
    let Some(conversion) = pending(disk)? else {
        // One that died before it had begun has changed nothing.
        remove(&Patient(disk), TMP)?;
        return Ok(None);
    };
    let Conversion { from, to } = conversion;
    let (is_done, stale) = match layout::shards(disk)? {
        Some(found) if found == from => (false, to),
        Some(found) if found == to => (true, from),
        found => {
            let found = found.unwrap_or(0);
            let what =
                format!("it speaks of {from} and {to} shards, and the directory has {found}");
            return Err(OpenError::corrupt(FILE, 0, what));
        }
    };
    let disk = &Patient(disk);
    // What is seen may not be on stable storage yet: the switch, above all.
    sync_dir(disk, "")?;
    remove(disk, layout::TMP)?;
    let mut left = Vec::new();
    for shard in 0..stale {
        left.extend(remove_shard(disk, &directory(shard, stale))?);
    }
    sync_dir(disk, "")?;
    end(disk)?;
    Ok(Some(Cleared {
        conversion,
        is_done,
        left,
    }))
}

/// The directory of a shard among so many, relative to the data directory; that of the only one is empty.
pub fn directory(shard: u32, shards: u32) -> String {
    match shards {
        1 => String::new(),
        _ => layout::directory(shard, shards),
    }
}

/// Notes that a change begins and makes the directories of the new shards, which are empty.
///
/// # Errors
/// The disk fails, or something is in the place of one of the new directories.
pub fn begin<D: Disk>(disk: &D, conversion: Conversion) -> Result<(), OpenError> {
    let disk = &Patient(disk);
    let root = disk
        .list("")
        .map_err(|error| OpenError::io("", "listing", error))?;
    let mut made: Vec<String> = Vec::new();
    match conversion.to {
        1 => made.extend([manifest::FILE.to_owned(), format!("{SHARD}/")]),
        to => made.extend((0..to).map(|shard| layout::directory(shard, to) + "/")),
    }
    if let Some(taken) = made
        .iter()
        .find(|made| root.iter().any(|(name, _)| name == *made))
    {
        return Err(OpenError::Taken {
            found: taken.trim_end_matches('/').to_owned(),
        });
    }
    write_new_file(disk, TMP, &[encode(conversion).as_bytes()])?;
    disk.rename(TMP, FILE)
        .map_err(|error| OpenError::io(FILE, "naming", error))?;
    sync_dir(disk, "")?;
    if conversion.to > 1 {
        for shard in 0..conversion.to {
            let name = layout::directory(shard, conversion.to);
            disk.create_dir(&name)
                .map_err(|error| OpenError::io(&name, "making", error))?;
        }
        sync_dir(disk, "")?;
    }
    Ok(())
}

/// From now on the new shards count, which are whole and on stable storage.
///
/// # Errors
/// The disk fails: either the old or the new ones count then.
pub fn switch<D: Disk>(disk: &D, to: u32) -> Result<(), OpenError> {
    match to {
        1 => {
            let disk = &Patient(disk);
            remove(disk, layout::FILE)?;
            sync_dir(disk, "")
        }
        _ => layout::store(disk, to),
    }
}

/// The change is at its end.
fn end<D: Disk>(disk: &D) -> Result<(), OpenError> {
    remove(disk, FILE)?;
    sync_dir(disk, "")
}

fn remove<D: Disk>(disk: &D, file: &str) -> Result<(), OpenError> {
    remove_if_there(disk, file).map_err(|error| OpenError::io(file, "removing", error))
}

fn sync_dir<D: Disk>(disk: &D, directory: &str) -> Result<(), OpenError> {
    disk.sync_dir(directory)
        .map_err(|error| OpenError::io(directory, "syncing", error))
}

/// Removes the files of a shard, and its directory unless that is the data directory itself. Returns the
/// directories in which somebody else's files are.
fn remove_shard<D: Disk>(disk: &D, directory: &str) -> Result<Vec<String>, OpenError> {
    let inside = |name: &str| match directory {
        "" => name.to_owned(),
        directory => format!("{directory}/{name}"),
    };
    let mut left = Vec::new();
    let segments = inside(SHARD);
    let is_segment = |name: &str| {
        [".seg", ".kept", ".ckpt", ".blk", ".tmp"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    left.extend(remove_directory(disk, &segments, &is_segment)?);
    match directory {
        "" => {
            for file in [manifest::FILE, manifest::TMP] {
                remove(disk, file)?;
            }
        }
        directory => {
            let is_ours =
                |name: &str| [manifest::FILE, manifest::TMP, manifest::LOCK].contains(&name);
            left.extend(remove_directory(disk, directory, &is_ours)?);
        }
    }
    Ok(left)
}

/// Removes a directory with those of its files that are ours; returns it if it holds others.
fn remove_directory<D: Disk>(
    disk: &D,
    directory: &str,
    is_ours: &dyn Fn(&str) -> bool,
) -> Result<Option<String>, OpenError> {
    let files = match disk.list(directory) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::io(directory, "listing", error)),
    };
    let mut is_left = false;
    for (name, _) in files {
        if is_ours(&name) {
            remove(disk, &format!("{directory}/{name}"))?;
        } else {
            is_left = true;
        }
    }
    if is_left {
        return Ok(Some(directory.to_owned()));
    }
    disk.remove_dir(directory)
        .map_err(|error| OpenError::io(directory, "removing", error))?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_which_change_or_is_refused() {
        let text = encode(Conversion { from: 3, to: 12 });
        assert_eq!(
            decode(text.as_bytes()),
            Some(Conversion { from: 3, to: 12 })
        );
        for at in 0..text.len() {
            assert_eq!(decode(&text.as_bytes()[..at]), None, "cut at {at}");
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(decode(&bytes), None, "changed at {at}");
        }
    }
}
