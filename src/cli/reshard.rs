//! `ringmq reshard`: gives a data directory another number of shards while no broker runs on it.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::config::SHARDS_MAX;
use crate::log::conversion::{self, Conversion};
use crate::log::files::{DirectoryLock, FileDisk, lock_directory};
use crate::log::{OpenError, layout};
use crate::net::os;
use crate::shard::reshard::{self, Outcome, Plan, ReshardError, Share, Watch};

use super::args::{Args, Word};
use super::error::CliError;

/// What the arguments asked for.
struct Options {
    data: PathBuf,
    shards: u32,
    dry_run: bool,
}

/// Converts the directory, or tells what that would do.
pub fn run(parser: lexopt::Parser) -> Result<(), CliError> {
    let options = parse(parser)?;
    let data = options.data.as_path();
    if !data.is_dir() {
        let data = data.display();
        return Err(CliError::Refused(format!("{data} is not a directory")));
    }
    let failed = |error: ReshardError| told(data, &error);
    let disk = FileDisk::unlocked(data);
    let _locks = lock(data, &disk).map_err(|error| failed(error.into()))?;
    if options.dry_run {
        if let Some(pending) = conversion::pending(&disk).map_err(|error| failed(error.into()))? {
            let Conversion { from, to } = pending;
            say(&format!(
                "a change from {from} to {to} shards was interrupted: what it has left would be removed first"
            ));
        }
        return match reshard::plan(&disk, options.shards).map_err(failed)? {
            None => already(&options),
            Some(plan) => {
                tell(data, &plan)?;
                say("nothing was changed: this was a dry run");
                Ok(())
            }
        };
    }
    let random = os::random_seed();
    let random = random.map_err(|error| CliError::failed(format!("no random numbers: {error}")))?;
    let mut console = Console { data, bar: None };
    let done = reshard::reshard(&disk, options.shards, random, &mut console);
    if let Some(bar) = console.bar.take() {
        bar.finish_and_clear();
    }
    let (cleared, outcome) = done.map_err(failed)?;
    if let Some(cleared) = cleared {
        eprintln!("ringmq: {cleared}");
    }
    match outcome {
        Outcome::Already => already(&options),
        Outcome::Done(plan, left) => {
            for directory in left {
                eprintln!("ringmq: {directory} holds other files too and was left");
            }
            let messages: u64 = plan.new.iter().map(|share| share.messages).sum();
            let to = options.shards;
            say(&format!(
                "done: {messages} messages; start it with ringmq serve --data {} --shards {to}",
                data.display()
            ));
            Ok(())
        }
    }
}

fn parse(parser: lexopt::Parser) -> Result<Options, CliError> {
    let mut args = Args::new("reshard", parser);
    let (mut data, mut shards, mut dry_run) = (None, None, false);
    while let Some(word) = args.next()? {
        match &word {
            Word::Option(name) => match name.as_str() {
                "-d" | "--data" => data = Some(PathBuf::from(args.value()?)),
                "--shards" => {
                    let count = u32::try_from(args.count(1)?).unwrap_or(u32::MAX);
                    if count > SHARDS_MAX {
                        return Err(args.usage(format!("--shards can be 1 to {SHARDS_MAX}")));
                    }
                    shards = Some(count);
                }
                "--dry-run" => dry_run = true,
                _ => return Err(args.unknown(&word)),
            },
            Word::Value(_) => return Err(args.unknown(&word)),
        }
    }
    let Some(shards) = shards else {
        return Err(args.usage("say how many shards it is to have, as in --shards 4"));
    };
    Ok(Options {
        data: data.unwrap_or_else(|| PathBuf::from(super::serve_args::DATA_DEFAULT)),
        shards,
        dry_run,
    })
}

/// Locks the directory and those of its shards: nobody serves it, nor begins to.
fn lock(data: &Path, disk: &FileDisk) -> Result<Vec<DirectoryLock>, OpenError> {
    let Some(shards) = layout::shards(disk)? else {
        // Nothing to convert, as is told later, and no directory to leave a lock in.
        return Ok(Vec::new());
    };
    let mut locks = vec![lock_directory(data)?];
    if shards > 1 {
        let directories = (0..shards).map(|shard| data.join(layout::directory(shard, shards)));
        for directory in directories.filter(|directory| directory.is_dir()) {
            locks.push(lock_directory(&directory)?);
        }
    }
    Ok(locks)
}

fn told(data: &Path, error: &ReshardError) -> CliError {
    let text = format!("{}: {error}", data.display());
    match error {
        ReshardError::Open(OpenError::Io { .. }) | ReshardError::Failed(_) => {
            CliError::Failed(text)
        }
        ReshardError::Open(_) | ReshardError::Refused(_) => CliError::Refused(text),
    }
}

fn already(options: &Options) -> Result<(), CliError> {
    say(&format!(
        "{} has {} already: nothing to do",
        options.data.display(),
        counted(u64::from(options.shards), "shard")
    ));
    Ok(())
}

/// Prints a line; that nobody reads it is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// `1 message`, `2 messages`.
fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// Prints what is to be done. Returns the free space, bytes.
fn tell(data: &Path, plan: &Plan) -> Result<u64, CliError> {
    let Conversion { from, to } = plan.conversion;
    let free = os::free_bytes(data);
    let free =
        free.map_err(|error| CliError::failed(format!("the free space is unknown: {error}")))?;
    say(&format!("{}: {from} to {to} shards", data.display()));
    let share = |share: &Share| {
        format!(
            "{}, {}, {}",
            counted(share.queues, "queue"),
            counted(share.messages, "message"),
            HumanBytes(share.bytes)
        )
    };
    for (shard, old) in plan.old.iter().enumerate() {
        say(&format!(
            "  has     shard {shard} of {from}: {}",
            share(old)
        ));
    }
    for (shard, new) in plan.new.iter().enumerate() {
        say(&format!("  becomes shard {shard} of {to}: {}", share(new)));
    }
    say(&format!(
        "  about {} to copy; about {} of space until the old shards are removed, {} free",
        HumanBytes(plan.copy_bytes),
        HumanBytes(plan.needed_bytes),
        HumanBytes(free)
    ));
    Ok(free)
}

/// Tells a person how it goes.
struct Console<'a> {
    data: &'a Path,
    bar: Option<ProgressBar>,
}

impl Watch for Console<'_> {
    fn planned(&mut self, plan: &Plan) -> Result<(), String> {
        let free = tell(self.data, plan).map_err(|error| error.to_string())?;
        if free < plan.needed_bytes {
            return Err(format!(
                "the new shards need about {} until the old ones are removed, and {} are free: nothing was \
                 changed",
                HumanBytes(plan.needed_bytes),
                HumanBytes(free)
            ));
        }
        if io::stderr().is_terminal() {
            let bar = ProgressBar::new(plan.copy_bytes);
            let style = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
        Ok(())
    }

    fn copied(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }
}
