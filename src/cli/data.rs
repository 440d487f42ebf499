//! `ringmq check` and `ringmq dump`: a data directory seen without a broker.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::log::conversion::{self, Conversion};
use crate::log::files::FileDisk;
use crate::log::{Below, CheckSummary, OpenError, layout};

use super::args::{Args, Word};
use super::error::CliError;

/// `ringmq check`
pub fn check(parser: lexopt::Parser) -> Result<(), CliError> {
    let dir = directory("check", parser)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let checked = check_all(&FileDisk::unlocked(&dir), &mut out);
    flush(&mut out)?;
    let problems = match checked {
        Err(error) if is_unread(&error) => return Ok(()),
        checked => checked.map_err(|error| refused(&dir, &error))?,
    };
    match problems {
        0 => Ok(()),
        problems => Err(CliError::Refused(format!(
            "{} has {problems} problems; nothing was changed",
            dir.display()
        ))),
    }
}

/// Checks each shard; returns how many problems there are.
fn check_all(disk: &FileDisk, out: &mut dyn Write) -> Result<usize, OpenError> {
    let mut sum = CheckSummary::default();
    let shards = each_shard(disk, out, |disk, out| {
        let summary = crate::log::check(disk, out)?;
        sum.segments += summary.segments;
        sum.records += summary.records;
        sum.entries += summary.entries;
        sum.messages += summary.messages;
        sum.torn_bytes += summary.torn_bytes;
        sum.checkpoints += summary.checkpoints;
        sum.problems += summary.problems;
        Ok(())
    })?;
    if shards > 1 {
        let printed = writeln!(
            out,
            "{shards} shards: {} segments, {} records, {} entries, {} messages verified, {} checkpoints, \
             {} bytes torn off, {} problems",
            sum.segments,
            sum.records,
            sum.entries,
            sum.messages,
            sum.checkpoints,
            sum.torn_bytes,
            sum.problems
        );
        printed.map_err(unprinted)?;
    }
    Ok(sum.problems)
}

/// `ringmq dump`
pub fn dump(parser: lexopt::Parser) -> Result<(), CliError> {
    let dir = directory("dump", parser)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let dumped = each_shard(&FileDisk::unlocked(&dir), &mut out, |disk, out| {
        crate::log::dump(disk, out)
    });
    flush(&mut out)?;
    match dumped {
        Err(error) if is_unread(&error) => Ok(()),
        dumped => dumped.map(|_| ()).map_err(|error| refused(&dir, &error)),
    }
}

/// Looks at the directory of each shard under a line that names it; the only one needs none. Returns how many
/// shards there are. A change of their number that is not at its end is told first.
fn each_shard(
    disk: &FileDisk,
    out: &mut dyn Write,
    mut look: impl FnMut(&Below<'_, FileDisk>, &mut dyn Write) -> Result<(), OpenError>,
) -> Result<u32, OpenError> {
    let shards = layout::shards(disk)?.ok_or(OpenError::Missing)?;
    if let Some(Conversion { from, to }) = conversion::pending(disk)? {
        let printed = match shards == to {
            true => writeln!(
                out,
                "RESHARD: a change from {from} to {to} shards has switched to {to}, and what there was before \
                 is not all removed: ringmq serve --shards {to} or ringmq reshard removes it"
            ),
            false => writeln!(
                out,
                "RESHARD: a change from {from} to {to} shards was begun and has not switched, so the directory \
                 is of {from} as before: ringmq reshard --shards {to} begins it anew, ringmq serve --shards \
                 {from} removes what it has made"
            ),
        };
        printed.map_err(unprinted)?;
    }
    for shard in 0..shards {
        let directory = conversion::directory(shard, shards);
        if shards > 1 {
            writeln!(out, "{directory}:").map_err(unprinted)?;
        }
        look(&Below::new(disk, &directory), out).map_err(|error| error.below(&directory))?;
    }
    Ok(shards)
}

fn unprinted(cause: io::Error) -> OpenError {
    OpenError::Io {
        file: "the output".to_owned(),
        doing: "writing to",
        cause,
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
