//! The manifest: what kind of directory this is and how often it was opened.
//!
//! Text with a checksum, always replaced as a whole.

use std::fmt::Write;
use std::io;

use super::disk::Disk;
use super::error::OpenError;
use super::rw::{StoreError, read_file, write_new_file};

/// Its name.
pub(crate) const FILE: &str = "MANIFEST";
pub(crate) const TMP: &str = "MANIFEST.tmp";
/// The lock's name.
pub(crate) const LOCK: &str = "LOCK";
/// The directory of the only shard.
pub(crate) const SHARD: &str = "shard-0";
/// The format version of the directory.
pub(crate) const VERSION: u64 = 1;
const TITLE: &str = "ringmq data directory";
/// More than any manifest has.
pub(crate) const BYTES_MAX: usize = 1 << 20;

/// The manifest's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The directory's identity, random.
    pub directory_id: u64,
    /// How many shards its queues are spread over.
    pub shards: u64,
    /// Bytes of positions that a segment covers.
    pub segment_bytes: u64,
    /// How often the directory was opened.
    pub incarnation: u64,
    /// Segments of the log that were made ready for use and that the older checkpoint does not
    /// cover, as runs of numbers, first and last: their files must be there.
    pub segments: Vec<(u64, u64)>,
}

/// Rising numbers as runs, first and last.
pub(crate) fn runs(numbers: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

impl Manifest {
    /// What every checksum in the directory starts from.
    pub fn seed(&self) -> u32 {
        crc32c::crc32c(&self.directory_id.to_le_bytes())
    }

    /// The file's text.
    pub fn encode(&self) -> String {
        let mut text = format!(
            "{TITLE}\nversion {VERSION}\nid {:016x}\nshards {}\nsegment_bytes {}\nincarnation {}\nsegments",
            self.directory_id, self.shards, self.segment_bytes, self.incarnation
        );
        for (first, last) in &self.segments {
            let _ = write!(text, " {first}-{last}");
        }
        text.push('\n');
        let crc = crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "crc {crc:08x}");
        text
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// One sentence on what is wrong and what to do.
    pub fn decode(text: &[u8]) -> Result<Manifest, String> {
        let damaged = || {
            "it is damaged; restore it from a copy of the directory, or start with another directory"
                .to_owned()
        };
        let text = std::str::from_utf8(text).map_err(|_| damaged())?;
        let crc_at = text.rfind("crc ").ok_or_else(damaged)?;
        let crc = text[crc_at + 4..].strip_suffix('\n').ok_or_else(damaged)?;
        if crc.len() != 8
            || u32::from_str_radix(crc, 16) != Ok(crc32c::crc32c(&text.as_bytes()[..crc_at]))
        {
            return Err(damaged());
        }
        let mut lines = text[..crc_at].lines();
        if lines.next() != Some(TITLE) {
            return Err(damaged());
        }
        let mut line = |name: &str| -> Result<&str, String> {
            let line = lines.next().ok_or_else(damaged)?;
            line.strip_prefix(name).ok_or_else(damaged)
        };
        let mut field = |name: &str, radix: u32| -> Result<u64, String> {
            let value = line(name)?.strip_prefix(' ');
            u64::from_str_radix(value.ok_or_else(damaged)?, radix).map_err(|_| damaged())
        };
        let version = field("version", 10)?;
        if version != VERSION {
            return Err(format!(
                "the directory has format version {version} and this program reads version {VERSION}; \
                 use the program version that wrote it"
            ));
        }
        let mut manifest = Manifest {
            directory_id: field("id", 16)?,
            shards: field("shards", 10)?,
            segment_bytes: field("segment_bytes", 10)?,
            incarnation: field("incarnation", 10)?,
            segments: Vec::new(),
        };
        for run in line("segments")?.split_ascii_whitespace() {
            let (first, last) = run.split_once('-').ok_or_else(damaged)?;
            let number = |digits: &str| digits.parse().map_err(|_| damaged());
            manifest.segments.push((number(first)?, number(last)?));
        }
        Ok(manifest)
    }

    /// The shard's directory may be missing: the start that made the manifest may have ended before it made that.
    /// Before a segment is used, the manifest lists it, so nothing was ever written to the log.
    pub fn may_lack_shard(&self) -> bool {
        self.incarnation == 0 || (self.incarnation == 1 && self.segments.is_empty())
    }

    /// Reads the manifest of a directory; `None` when there is none.
    pub fn load<D: Disk>(disk: &D) -> Result<Option<Manifest>, OpenError> {
        let text = match read_file(disk, FILE, BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io(FILE, "reading", error)),
        };
        match Manifest::decode(&text) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(what) => Err(OpenError::Mismatch { what }),
        }
    }

    /// Takes the place of the manifest, durably. The error says whether it came from a sync.
    pub fn store<D: Disk>(&self, disk: &D) -> Result<(), StoreError> {
        write_new_file(disk, TMP, &[self.encode().as_bytes()])?;
        disk.rename(TMP, FILE)
            .map_err(|error| StoreError::write(FILE, error))?;
        disk.sync_dir("")
            .map_err(|error| StoreError::sync("", error))
    }

    /// Refuses a directory that this program or configuration does not fit.
    pub fn check(&self, segment_bytes: u64) -> Result<(), OpenError> {
        if self.shards != 1 {
            let shards = self.shards;
            return Err(OpenError::Mismatch {
                what: format!(
                    "the directory was made with {shards} shards and this program runs 1; \
                     start it with the same number of shards, or reshard the directory"
                ),
            });
        }
        if self.segment_bytes != segment_bytes {
            return Err(OpenError::Mismatch {
                what: format!(
                    "the directory has segments of {} bytes and the configuration says {segment_bytes}; \
                     configure the directory's size",
                    self.segment_bytes
                ),
            });
        }
        Ok(())
    }
}

/// A directory without a manifest may be made a data directory: it holds nothing but what an
/// interrupted creation leaves.
///
/// # Errors
/// [`OpenError::Foreign`] with the first thing found.
pub(crate) fn expect_empty(root: &[(String, u64)]) -> Result<(), OpenError> {
    let ours = |name: &str| matches!(name, LOCK | TMP | "lost+found/");
    match root.iter().find(|(name, _)| !ours(name)) {
        Some((found, _)) => Err(OpenError::Foreign {
            found: found.clone(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            directory_id: 0x1234,
            shards: 1,
            segment_bytes: 4096,
            incarnation: 3,
            segments: runs([3, 4, 5, 9].into_iter()),
        }
    }

    #[test]
    fn the_manifest_comes_back_or_is_refused() {
        assert_eq!(sample().segments, [(3, 5), (9, 9)]);
        let text = sample().encode();
        assert_eq!(Manifest::decode(text.as_bytes()), Ok(sample()));
        for cut in 0..text.len() {
            assert!(Manifest::decode(&text.as_bytes()[..cut]).is_err());
        }
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // Only the case of the checksum's digits may differ.
            if let Ok(manifest) = Manifest::decode(&bytes) {
                assert_eq!(manifest, sample());
            }
        }
    }

    #[test]
    fn another_shard_count_or_segment_size_is_refused_in_words() {
        assert!(sample().check(4096).is_ok());
        let other =
            |manifest: Manifest, bytes| manifest.check(bytes).expect_err("differs").to_string();
        assert!(other(sample(), 8192).contains("4096"));
        let manifest = Manifest {
            shards: 2,
            ..sample()
        };
        assert!(other(manifest, 4096).contains("2 shards"));
    }

    #[test]
    fn only_leftovers_of_a_creation_count_as_empty() {
        let names = |names: &[&str]| names.iter().map(|n| (n.to_string(), 0)).collect::<Vec<_>>();
        assert!(expect_empty(&names(&["LOCK", "MANIFEST.tmp", "lost+found/"])).is_ok());
        assert!(expect_empty(&names(&["LOCK", "notes.txt"])).is_err());
        assert!(expect_empty(&names(&["shard-0/"])).is_err());
    }
}
