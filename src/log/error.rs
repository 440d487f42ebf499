//! What can go wrong: with the disk while running, and with the directory at open.

use std::fmt;
use std::io;

use super::place::LogIndex;

/// The disk failed for good: nothing is written, synced or confirmed after this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogError {
    /// The system refused to put a file or directory on stable storage. What was accepted by
    /// `write` since the last good sync may be lost.
    Sync {
        /// File or directory, relative to the data directory.
        file: String,
        /// The system's words.
        cause: String,
    },
    /// The system refused a write, a rename or the making of a file for another reason than
    /// missing space.
    Write {
        /// File, relative to the data directory.
        file: String,
        /// The system's words.
        cause: String,
    },
    /// The manifest is no longer the one written at open: the directory was deleted, replaced, or
    /// taken by another process.
    Gone {
        /// What was found.
        cause: String,
    },
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Sync { file, cause } => write!(
                f,
                "syncing {file} failed: {cause}; nothing more can be confirmed, restart after checking the disk"
            ),
            LogError::Write { file, cause } => write!(
                f,
                "writing {file} failed: {cause}; nothing more can be confirmed, restart after checking the disk"
            ),
            LogError::Gone { cause } => write!(
                f,
                "the data directory is no longer ours: {cause}; nothing more can be confirmed"
            ),
        }
    }
}

impl std::error::Error for LogError {}

/// The data directory cannot be served. Nothing in it was changed.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has the directory open.
    Locked {
        /// The lock file.
        file: String,
        /// What the lock file says about its holder; empty if nothing.
        holder: String,
    },
    /// The directory holds files, but no manifest: it is not a data directory.
    Foreign {
        /// One of the files found.
        found: String,
    },
    /// Something is where a tool wants to put something else.
    Taken {
        /// What is there, relative to the data directory.
        found: String,
    },
    /// The directory is missing or empty and was required to exist.
    Missing,
    /// The directory has another number of shards.
    Shards {
        /// How many it has.
        found: u32,
        /// How many were asked for.
        wanted: u32,
    },
    /// The manifest is there and does not fit this program or this configuration.
    Mismatch {
        /// What differs, and what to do.
        what: String,
    },
    /// Bytes that were on stable storage are damaged or gone.
    Corrupt {
        /// File, relative to the data directory.
        file: String,
        /// Offset in the file, bytes.
        offset: u64,
        /// What was found there.
        what: String,
        /// First and last record that are lost, when that is known.
        lost: Option<(LogIndex, LogIndex)>,
    },
    /// A record or section that only a later version of this program understands.
    Version {
        /// File, relative to the data directory.
        file: String,
        /// Offset in the file, bytes.
        offset: u64,
        /// What was not understood.
        what: String,
    },
    /// The broker could not make sense of an entry or of the saved state.
    Replay {
        /// File, relative to the data directory.
        file: String,
        /// Offset in the file, bytes.
        offset: u64,
        /// The broker's words.
        what: String,
    },
    /// The system refused an operation.
    Io {
        /// File or directory, relative to the data directory.
        file: String,
        /// What was tried.
        doing: &'static str,
        /// The system's words.
        cause: io::Error,
    },
}

impl OpenError {
    /// An [`OpenError::Io`].
    pub(crate) fn io(file: &str, doing: &'static str, cause: io::Error) -> OpenError {
        OpenError::Io {
            file: file.to_owned(),
            doing,
            cause,
        }
    }

    /// An [`OpenError::Corrupt`] without known losses.
    pub(crate) fn corrupt(file: &str, offset: u64, what: impl Into<String>) -> OpenError {
        OpenError::Corrupt {
            file: file.to_owned(),
            offset,
            what: what.into(),
            lost: None,
        }
    }
}

impl OpenError {
    /// The same error with the directory (relative, empty for none) in front of the file that it names.
    #[must_use]
    pub fn below(mut self, directory: &str) -> OpenError {
        match &mut self {
            OpenError::Locked { file, .. }
            | OpenError::Foreign { found: file }
            | OpenError::Taken { found: file }
            | OpenError::Corrupt { file, .. }
            | OpenError::Version { file, .. }
            | OpenError::Replay { file, .. }
            | OpenError::Io { file, .. } => {
                if !directory.is_empty() {
                    *file = match file.is_empty() {
                        true => directory.to_owned(),
                        false => format!("{directory}/{file}"),
                    };
                }
            }
            OpenError::Mismatch { what } => {
                if !directory.is_empty() {
                    *what = format!("of {directory}: {what}");
                }
            }
            OpenError::Missing | OpenError::Shards { .. } => {}
        }
        self
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Locked { file, holder } if holder.is_empty() => {
                write!(f, "{file} is held by another process; stop that one first")
            }
            OpenError::Locked { file, holder } => {
                write!(f, "{file} is held by process {holder}; stop that one first")
            }
            OpenError::Foreign { found } => write!(
                f,
                "the directory holds {found} but no valid MANIFEST, so it is not a data directory; \
                 name an empty or a new one"
            ),
            OpenError::Taken { found } => write!(
                f,
                "{found} is in the way: nobody made it who left word of it; move it elsewhere"
            ),
            OpenError::Missing => write!(
                f,
                "the data directory is missing or empty and was required to exist; \
                 check the path, or leave out --data-must-exist"
            ),
            OpenError::Shards { found, wanted } => write!(
                f,
                "its queues are spread over {found} shards, and {wanted} were asked for: start it with --shards {found}"
            ),
            OpenError::Mismatch { what } => write!(f, "MANIFEST: {what}"),
            OpenError::Corrupt {
                file,
                offset,
                what,
                lost,
            } => {
                write!(f, "{file} is damaged at offset {offset}: {what}")?;
                if let Some((first, last)) = lost {
                    write!(f, "; records {first} to {last} are lost")?;
                }
                write!(
                    f,
                    "; nothing was changed: run `ringmq check` on the directory, restore the file from a \
                     copy, or start with another directory"
                )
            }
            OpenError::Version { file, offset, what } => write!(
                f,
                "{file} at offset {offset} needs a later version of ringmq: {what}; nothing was changed"
            ),
            OpenError::Replay { file, offset, what } => write!(
                f,
                "{file} at offset {offset} does not fit the state before it: {what}; nothing was changed, \
                 run `ringmq check` on the directory"
            ),
            OpenError::Io { file, doing, cause } => {
                let file = if file.is_empty() {
                    "the data directory"
                } else {
                    file
                };
                write!(f, "{doing} {file} failed: {cause}")
            }
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

/// The error means that space (or another counted resource) is missing: worth trying again later.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    ) || matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}
