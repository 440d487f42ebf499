//! `ringmq serve`: from a checked configuration to a running broker and back to an exit code.
//!
//! Puts the rooms together (sockets, data directory, shard, signals) and tells the person what it
//! found. It never looks into any of them.
#![allow(clippy::disallowed_methods)]

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::broker::id::Level;
use crate::config::Config;
use crate::log::files::{
    DirectoryLock, FileDisk, FileStorage, Notify, create_durably, lock_directory,
};
use crate::log::{NoStorage, OpenError, conversion, layout};
use crate::net::signal::Signals;
use crate::net::{AbortOnPanic, Driven, Options, Reactor, os};
use crate::shard::{Now, Shard, Stop};

/// Exit code when the broker ended for a reason that is not one of the others.
const EXIT_FAILED: u8 = 1;
/// Exit code when the data directory is refused; nothing in it was changed.
const EXIT_DIRECTORY_REFUSED: u8 = 3;

/// File descriptors that connections leave for the log and for what ends.
const FILES_RESERVED: usize = 64;

/// Most sockets that linger after their end.
const LINGERING_MAX: usize = 1024;

/// What a shard is built from besides the configuration.
pub struct Start {
    /// For the storage's threads: something is finished.
    pub notify: Arc<dyn Notify>,
    /// What the clocks say.
    pub now: Now,
    /// A number that nobody can guess.
    pub seed: u64,
}

/// What recovery found in the data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The directory was missing or empty and is new.
    pub new: bool,
    /// Messages that are there to be delivered.
    pub messages: u64,
    /// Records that were replayed.
    pub records: u64,
    /// Bytes cut off behind the last whole record.
    pub torn_bytes: u64,
}

impl Found {
    /// Another shard's is added.
    fn add(&mut self, other: Found) {
        self.new &= other.new;
        self.messages += other.messages;
        self.records += other.records;
        self.torn_bytes += other.torn_bytes;
    }
}

/// Why the broker does not start.
#[derive(Debug)]
pub enum StartError {
    /// The data directory is refused; the text says which file and what to do.
    Directory(String),
    /// Anything else: a taken port, a system that refuses.
    Other(String),
}

impl StartError {
    fn exit_code(&self) -> u8 {
        match self {
            StartError::Directory(_) => EXIT_DIRECTORY_REFUSED,
            StartError::Other(_) => EXIT_FAILED,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Directory(text) | StartError::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StartError {}

/// Runs the broker until it is told to end or cannot go on.
///
/// Exit codes: 0 after SIGTERM or SIGINT, 3 when the data directory is refused, 1 otherwise.
pub fn serve(config: Config) -> ExitCode {
    match config.data.clone() {
        None => serve_with(config, build_in_memory),
        Some(path) => match directories(&config, &path) {
            // Held until the end.
            Ok((directories, _lock)) => serve_with(config, move |config, start| {
                build_on_disk(config, &directories[config.shard as usize], start)
            }),
            Err(error) => refuse(&error),
        },
    }
}

fn refuse(error: &StartError) -> ExitCode {
    eprintln!("ringmq: {error}");
    ExitCode::from(error.exit_code())
}

/// Where each shard has its data, and the lock of the directory around them if there are several. What a change
/// of the number of shards has left behind is cleared away first.
fn directories(
    config: &Config,
    path: &Path,
) -> Result<(Vec<PathBuf>, Option<DirectoryLock>), StartError> {
    let refused = |error: OpenError| refused(path, &error);
    let is_there = |file: &str| path.join(file).exists();
    if config.shards == 1 && !is_there(layout::FILE) && !is_there(conversion::FILE) {
        return Ok((vec![path.to_owned()], None));
    }
    if config.data_must_exist && !path.is_dir() {
        return Err(refused(OpenError::Missing));
    }
    create_durably(path).map_err(refused)?;
    let disk = FileDisk::unlocked(path);
    match layout::shards(&disk).map_err(refused)? {
        // A directory that is refused is left as it is, without even a lock.
        Some(found) if found != config.shards => {
            let wanted = config.shards;
            return Err(refused(OpenError::Shards { found, wanted }));
        }
        None if config.data_must_exist => return Err(refused(OpenError::Missing)),
        _ => {}
    }
    let lock = lock_directory(path).map_err(refused)?;
    if let Some(cleared) = conversion::clear(&disk).map_err(refused)? {
        eprintln!("ringmq: {}: {cleared}", path.display());
    }
    let found = layout::prepare(&disk, config.shards, config.data_must_exist).map_err(refused)?;
    let found = found.iter().map(|directory| path.join(directory)).collect();
    // The only shard locks the directory itself.
    Ok((found, (config.shards > 1).then_some(lock)))
}

/// One event loop with its shard, made and run on a thread of its own.
struct Loop {
    /// What was found, when it is ready to serve.
    ready: Receiver<Result<Found, StartError>>,
    /// It serves when this says so.
    go: Sender<()>,
    thread: JoinHandle<Result<Stop, StartError>>,
}

fn serve_with<D: Driven + Send + 'static>(
    mut config: Config,
    build: impl Fn(&Config, Start) -> Result<(D, Found), StartError> + Send + Sync + 'static,
) -> ExitCode {
    os::return_freed_memory();
    os::ignore_file_size_signal();
    let lingering_max = limit_connections(&mut config);
    match run(&config, lingering_max, Arc::new(build)) {
        Ok(Stop::Finished) => ExitCode::SUCCESS,
        Ok(Stop::Failed(text)) => {
            eprintln!("ringmq: stopped: {text}");
            ExitCode::from(EXIT_FAILED)
        }
        Err(error) => refuse(&error),
    }
}

/// Everything up to the first turn: ports before recovery, so that a taken one is told at once;
/// the banner after it, so that it says only what is true. Then the first shard on this thread, until it ends.
fn run<D, B>(config: &Config, lingering_max: usize, build: Arc<B>) -> Result<Stop, StartError>
where
    D: Driven + Send + 'static,
    B: Fn(&Config, Start) -> Result<(D, Found), StartError> + Send + Sync + 'static,
{
    let failed = |what: &str, error: io::Error| StartError::Other(format!("{what}: {error}"));
    let signals = Signals::install().map_err(|e| failed("signals cannot be handled", e))?;
    let options = Options {
        spin: config.spin,
        pinned: !config.cores.is_empty(),
        turn_bytes_max: config.limits.turn_bytes_max.max(1),
        lingering_max,
    };
    let bound = Reactor::bind_several(&config.listen, options, config.shards);
    let mut reactors = bound.map_err(|error| StartError::Other(error.to_string()))?;
    let addresses = reactors[0]
        .addresses()
        .map_err(|e| failed("the ports are unknown", e))?;
    let mut loops = Vec::new();
    for (shard, reactor) in reactors.drain(1..).enumerate() {
        let own = config.of_shard(shard as u32 + 1);
        loops.push(start_loop(own, reactor, Arc::clone(&build))?);
    }
    let mut first = reactors.remove(0);
    let (driven, mut found) = build(&config.of_shard(0), start_of(&mut first)?)?;
    pin(config)?;
    for other in &loops {
        let ready = other.ready.recv();
        found.add(ready.map_err(|_| StartError::Other("a shard's thread ended".to_owned()))??);
    }
    first
        .take_signals(signals)
        .map_err(|e| failed("signals cannot be polled", e))?;
    tell(config, &addresses, found);
    for other in &loops {
        // One that has ended meanwhile is found out below.
        let _ = other.go.send(());
    }
    let mut stop = ended(first.run(driven))?;
    for other in loops {
        let other = other.thread.join();
        let other =
            other.map_err(|_| StartError::Other("a shard's thread panicked".to_owned()))??;
        if stop == Stop::Finished {
            stop = other;
        }
    }
    Ok(stop)
}

/// Keeps this thread on the core that was named for its event loop, if one was. The threads of its log were
/// started before and run wherever they can.
fn pin(config: &Config) -> Result<(), StartError> {
    match config.cores.get(config.shard as usize) {
        Some(core) => os::pin_thread(*core).map_err(|error| {
            StartError::Other(format!("a thread cannot be pinned to core {core}: {error}"))
        }),
        None => Ok(()),
    }
}

fn ended(stop: io::Result<Stop>) -> Result<Stop, StartError> {
    stop.map_err(|error| StartError::Other(format!("the event loop failed: {error}")))
}

/// What a shard is built from beside the configuration.
fn start_of<D: Driven + Send + 'static>(reactor: &mut Reactor<D>) -> Result<Start, StartError> {
    let seed = os::random_seed();
    Ok(Start {
        notify: reactor
            .attendant()
            .map_err(|e| StartError::Other(format!("no second view of the poll: {e}")))?,
        now: reactor.clock().now(),
        seed: seed.map_err(|e| StartError::Other(format!("no random numbers: {e}")))?,
    })
}

/// Starts a thread that builds a shard, says so, and runs it when it may.
fn start_loop<D, B>(
    config: Config,
    mut reactor: Reactor<D>,
    build: Arc<B>,
) -> Result<Loop, StartError>
where
    D: Driven + Send + 'static,
    B: Fn(&Config, Start) -> Result<(D, Found), StartError> + Send + Sync + 'static,
{
    let (built, ready) = channel();
    let (go, may_go) = channel::<()>();
    let thread = std::thread::Builder::new()
        .name(format!("shard-{}", config.shard))
        .spawn(move || {
            let _guard = AbortOnPanic;
            let made = start_of(&mut reactor).and_then(|start| build(&config, start));
            let made = made.and_then(|made| pin(&config).map(|()| made));
            let driven = match made {
                Ok((driven, found)) => {
                    let _ = built.send(Ok(found));
                    driven
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                    return Ok(Stop::Finished);
                }
            };
            match may_go.recv() {
                Ok(()) => ended(reactor.run(driven)),
                // Another shard cannot be served.
                Err(_) => Ok(Stop::Finished),
            }
        });
    let thread = thread.map_err(|e| StartError::Other(format!("a thread cannot start: {e}")))?;
    Ok(Loop { ready, go, thread })
}

/// Prints the banner.
fn tell(config: &Config, addresses: &[SocketAddr], found: Found) {
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "ringmq".to_owned());
    let mut stdout = io::stdout().lock();
    let banner = Banner {
        addresses,
        config,
        found,
        program: &program,
    };
    // Nobody may be reading; the broker serves all the same.
    if let Err(error) = write!(stdout, "{banner}").and_then(|()| stdout.flush()) {
        log::warn!("the banner could not be written: {error}");
    }
}

/// Keeps some file descriptors for the log, however many clients come; returns how many sockets
/// may linger after their end.
fn limit_connections(config: &mut Config) -> usize {
    let files = os::raise_open_files_limit().unwrap_or_else(|error| {
        log::warn!("the limit of open files is unknown: {error}");
        1024
    });
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let reserved = FILES_RESERVED.min(files / 4);
    let lingering = LINGERING_MAX.min(files / 8);
    let connections = files - reserved - lingering;
    if connections < config.limits.connections_max {
        log::debug!("{files} open files are allowed: at most {connections} connections");
        config.limits.connections_max = connections;
    }
    lingering
}

/// What is printed once the broker serves. Scripts read the first line.
struct Banner<'a> {
    addresses: &'a [SocketAddr],
    config: &'a Config,
    found: Found,
    /// How the program was called.
    program: &'a str,
}

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pinned = self.config.pinned.iter().copied();
        let pinned = pinned.chain(std::iter::repeat(None));
        for (address, pinned) in self.addresses.iter().zip(pinned) {
            match pinned {
                None => writeln!(f, "listening on {address}")?,
                Some(door) => writeln!(f, "listening on {address} ({} only)", door.word())?,
            }
        }
        if self.config.shards > 1 {
            writeln!(f, "shards {}", self.config.shards)?;
        }
        if !self.config.cores.is_empty() {
            let cores: Vec<String> = self.config.cores.iter().map(usize::to_string).collect();
            writeln!(f, "pinned to cores {}", cores.join(","))?;
        }
        match &self.config.data {
            Some(path) => self.directory(f, path)?,
            None => writeln!(
                f,
                "memory only: nothing survives a restart; receipts say mem"
            )?,
        }
        self.to_try(f)
    }
}

impl Banner<'_> {
    fn directory(&self, f: &mut fmt::Formatter<'_>, path: &Path) -> fmt::Result {
        let promise = match self.config.queue_defaults.durable {
            Level::None => "none: new queues live in memory; receipts say mem",
            Level::Os => {
                "os: OK is sent when the system has the message; a power loss may cost 50 ms"
            }
            Level::Disk | Level::Quorum => "disk: OK is sent when the message is on stable storage",
        };
        writeln!(f, "durability {promise}")?;
        // The person may have typed a relative path; a whole one can be found again.
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let Found {
            new,
            messages,
            records,
            torn_bytes,
        } = self.found;
        if new {
            return writeln!(f, "data in {}: NEW, empty", whole.display());
        }
        write!(f, "data in {}: ", whole.display())?;
        let (message, record) = (counted(messages, "message"), counted(records, "record"));
        write!(f, "recovered {message} from {record}")?;
        match torn_bytes {
            0 => writeln!(f, ", nothing torn"),
            bytes => writeln!(f, ", cut {bytes} torn bytes that were never confirmed"),
        }
    }

    fn to_try(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(address) = self.addresses.first() else {
            return Ok(());
        };
        let (ip, port, program) = (address.ip(), address.port(), self.program);
        let addr = match port {
            7766 if ip.is_loopback() && ip.is_ipv4() => String::new(),
            _ => format!(" --addr {address}"),
        };
        writeln!(f, "try:")?;
        writeln!(
            f,
            "  printf 'PUB jobs :hello\\nPULL jobs\\n' | nc -N {ip} {port}"
        )?;
        writeln!(f, "  {program} pub{addr} jobs hello")?;
        writeln!(f, "  {program} sub{addr} jobs")
    }
}

/// `1 message`, `2 messages`.
fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// Builds a shard without a data directory.
fn build_in_memory(config: &Config, start: Start) -> Result<(Shard<NoStorage>, Found), StartError> {
    let opened = Shard::open(config, None, start.now, start.seed);
    let (shard, _) = opened.map_err(|error| StartError::Other(error.to_string()))?;
    Ok((shard, Found::default()))
}

fn refused(path: &Path, error: &OpenError) -> StartError {
    let path = path.display();
    let text = format!("the data directory {path} is refused: {error}");
    StartError::Directory(match error {
        OpenError::Shards { wanted, .. } => {
            format!("{text}, or convert it: ringmq reshard --data {path} --shards {wanted}")
        }
        _ => text,
    })
}

/// Opens the data directory, recovers it, and builds the shard on it.
///
/// # Errors
/// [`StartError::Directory`] for a directory that cannot be served, with the file and what to do.
fn build_on_disk(
    config: &Config,
    path: &Path,
    start: Start,
) -> Result<(Shard<FileStorage>, Found), StartError> {
    let refused = |error: OpenError| refused(path, &error);
    let storage = if config.data_must_exist {
        FileStorage::open_existing(path, start.notify)
    } else {
        FileStorage::open(path, start.notify)
    };
    let storage = storage.map_err(refused)?;
    let (shard, recovered) =
        Shard::open(config, Some(storage), start.now, start.seed).map_err(refused)?;
    let found = Found {
        new: recovered.fresh,
        messages: shard.messages(),
        records: recovered.records,
        torn_bytes: recovered.torn_bytes,
    };
    Ok((shard, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner(data: Option<&str>, durable: Level, found: Found, address: &str) -> String {
        let mut config = config(data.map(Into::into));
        config.queue_defaults.durable = durable;
        let addresses = [address.parse().expect("an address")];
        let banner = Banner {
            addresses: &addresses,
            config: &config,
            found,
            program: "target/release/ringmq",
        };
        banner.to_string()
    }

    fn config(data: Option<std::path::PathBuf>) -> Config {
        Config {
            pinned: Vec::new(),
            listen: vec!["127.0.0.1:0".parse().expect("an address")],
            insecure: false,
            data,
            data_must_exist: false,
            queue_defaults: crate::broker::settings::Settings::default(),
            memory_budget_bytes: 1 << 30,
            shards: 1,
            shard: 0,
            cores: Vec::new(),
            spin: false,
            limits: crate::config::Limits::default(),
            log: crate::config::LogConfig::default(),
        }
    }

    #[test]
    fn the_banner_says_what_is_true() {
        let new = Found {
            new: true,
            ..Found::default()
        };
        let text = banner(Some("/tmp/q"), Level::Disk, new, "127.0.0.1:7766");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "listening on 127.0.0.1:7766");
        assert!(lines[1].starts_with("durability disk"), "{text}");
        assert_eq!(lines[2], "data in /tmp/q: NEW, empty");
        assert_eq!(
            lines[4],
            "  printf 'PUB jobs :hello\\nPULL jobs\\n' | nc -N 127.0.0.1 7766"
        );
        assert_eq!(lines[5], "  target/release/ringmq pub jobs hello");
        assert_eq!(lines.len(), 7);

        let found = Found {
            new: false,
            messages: 7,
            records: 3,
            torn_bytes: 0,
        };
        let text = banner(Some("/tmp/q"), Level::Os, found, "127.0.0.1:1");
        assert!(
            text.contains("recovered 7 messages from 3 records, nothing torn"),
            "{text}"
        );
        assert!(text.contains("pub --addr 127.0.0.1:1 jobs"), "{text}");
        let torn = Found {
            torn_bytes: 512,
            ..found
        };
        let text = banner(Some("/tmp/q"), Level::Os, torn, "127.0.0.1:1");
        assert!(text.contains("cut 512 torn bytes"), "{text}");

        let text = banner(None, Level::None, Found::default(), "127.0.0.1:1");
        assert!(
            text.contains("nothing survives a restart; receipts say mem"),
            "{text}"
        );
        assert!(!text.contains("data in"), "{text}");
    }

    #[test]
    fn a_refused_directory_and_other_failures_have_their_exit_codes() {
        assert_eq!(StartError::Directory(String::new()).exit_code(), 3);
        assert_eq!(StartError::Other(String::new()).exit_code(), 1);
    }
}
