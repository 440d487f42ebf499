//! `ringmq check` and `ringmq dump`: a data directory seen without a broker.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::log::OpenError;
use crate::log::files::FileDisk;

use super::args::{Args, Word};
use super::error::CliError;

/// `ringmq check`
pub fn check(parser: lexopt::Parser) -> Result<(), CliError> {
    let dir = directory("check", parser)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let checked = crate::log::check(&FileDisk::unlocked(&dir), &mut out);
    flush(&mut out)?;
    let summary = match checked {
        Err(error) if is_unread(&error) => return Ok(()),
        checked => checked.map_err(|error| refused(&dir, &error))?,
    };
    match summary.problems {
        0 => Ok(()),
        problems => Err(CliError::Refused(format!(
            "{} has {problems} problems; nothing was changed",
            dir.display()
        ))),
    }
}

/// `ringmq dump`
pub fn dump(parser: lexopt::Parser) -> Result<(), CliError> {
    let dir = directory("dump", parser)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let dumped = crate::log::dump(&FileDisk::unlocked(&dir), &mut out);
    flush(&mut out)?;
    match dumped {
        Err(error) if is_unread(&error) => Ok(()),
        dumped => dumped.map_err(|error| refused(&dir, &error)),
    }
}

/// Whether it ended because the reader of stdout has gone away (`| head`), which is no error.
fn is_unread(error: &OpenError) -> bool {
    matches!(error, OpenError::Io { cause, .. } if cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes out what is left, if somebody reads it.
fn flush(out: &mut impl Write) -> Result<(), CliError> {
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

fn refused(dir: &Path, error: &OpenError) -> CliError {
    CliError::Refused(format!("{}: {error}", dir.display()))
}

/// The one argument: a directory that is there.
fn directory(command: &'static str, parser: lexopt::Parser) -> Result<PathBuf, CliError> {
    let mut args = Args::new(command, parser);
    let mut dir = None;
    while let Some(word) = args.next()? {
        match &word {
            Word::Value(value) if dir.is_none() => dir = Some(PathBuf::from(value)),
            _ => return Err(args.unknown(&word)),
        }
    }
    let Some(dir) = dir else {
        return Err(args.usage(format!(
            "name the directory, as in ringmq {command} ringmq-data"
        )));
    };
    if !dir.is_dir() {
        return Err(CliError::Refused(format!(
            "{} is not a directory",
            dir.display()
        )));
    }
    Ok(dir)
}
