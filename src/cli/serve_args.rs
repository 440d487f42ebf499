//! `ringmq serve`: arguments to a checked configuration, and from there to the broker.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::broker::id::Level;
use crate::broker::settings::SettingsPatch;
use crate::config::{Config, Door, SHARDS_MAX};
use crate::net::os;
use crate::protocol::text::settings;

use super::args::{ADDR_DEFAULT, Args, Word};
use super::error::CliError;
use super::{logger, memory, serve};

/// The data directory when nothing else is said.
pub const DATA_DEFAULT: &str = "ringmq-data";

/// What the arguments said, before it is put together.
#[derive(Debug, Default)]
struct Options {
    listen: Vec<String>,
    data: Option<PathBuf>,
    memory: bool,
    durable: Option<Level>,
    /// In the order given; later ones win.
    set: Vec<SettingsPatch>,
    log_level: Option<String>,
    pin: Option<Pin>,
}

/// Where the event loops' threads run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pin {
    /// Each on one of the cores that the process may use.
    Auto,
    /// On these.
    Cores(Vec<usize>),
}

/// Parses, checks, starts the logger, runs the broker.
pub fn run(parser: lexopt::Parser) -> Result<ExitCode, CliError> {
    let (config, log_level) = parse(parser)?;
    logger::start(log_level.as_deref());
    Ok(serve::serve(config))
}

/// The configuration that the arguments ask for, and the log level if they name one.
fn parse(parser: lexopt::Parser) -> Result<(Config, Option<String>), CliError> {
    let mut args = Args::new("serve", parser);
    let mut options = Options::default();
    let mut config = Config {
        memory_budget_bytes: memory::budget_bytes_default(),
        ..Config::default()
    };
    while let Some(word) = args.next()? {
        let name = match &word {
            Word::Option(name) => name.as_str(),
            Word::Value(_) => return Err(args.unknown(&word)),
        };
        let known = option(&mut args, name, &mut options, &mut config)?
            || limit(&mut args, name, &mut config)?;
        if !known {
            return Err(args.unknown(&word));
        }
    }
    put_together(&args, &options, &mut config)?;
    Ok((config, options.log_level))
}

/// Options about where and how; false when `name` is none of them.
fn option(
    args: &mut Args,
    name: &str,
    options: &mut Options,
    config: &mut Config,
) -> Result<bool, CliError> {
    match name {
        "-l" | "--listen" => options.listen.push(args.value()?),
        "-d" | "--data" => options.data = Some(PathBuf::from(args.value()?)),
        "-m" | "--memory" => options.memory = true,
        "--durable" => {
            let word = args.value()?;
            options.durable = Some(durable(args, &word)?);
        }
        "-s" | "--set" => {
            let text = args.value()?;
            options.set.push(setting(args, &text)?);
        }
        "--data-must-exist" => config.data_must_exist = true,
        "--resp-pop" => {
            let word = args.value()?;
            config.limits.pop_is_classic = match word.as_str() {
                "safe" => false,
                "classic" => true,
                _ => return Err(args.bad(&word, "safe or classic")),
            };
        }
        "--insecure" => config.insecure = true,
        "--spin" => config.spin = true,
        "--pin" => options.pin = Some(pin(args)?),
        "--shards" => {
            let word = args.value()?;
            config.shards = shards(args, &word)?;
        }
        "--log-level" => {
            let word = args.value()?;
            if word.parse::<::log::LevelFilter>().is_err() {
                return Err(args.bad(&word, "off, error, warn, info, debug or trace"));
            }
            options.log_level = Some(word);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Options about sizes and times; false when `name` is none of them.
fn limit(args: &mut Args, name: &str, config: &mut Config) -> Result<bool, CliError> {
    let limits = &mut config.limits;
    match name {
        "--memory-budget" => config.memory_budget_bytes = size(args)?,
        "--max-connections" => limits.connections_max = count(args)?,
        "--max-line" => limits.line_bytes_max = size(args)?,
        "--max-body" => limits.body_bytes_max = size(args)?,
        "--max-batch" => limits.batch_count_max = count(args)?,
        "--max-batch-bytes" => limits.batch_bytes_max = size(args)?,
        "--max-handles" => limits.handles_max = count(args)?,
        "--max-send" => limits.send_bytes_max = size(args)?,
        "--stall-timeout" => limits.stall_us = args.duration_us()?,
        "--segment" => config.log.segment_bytes = args.size()?,
        "--flush-interval" => config.log.flush_us = args.duration_us()?,
        "--checkpoint" => config.log.checkpoint_bytes = args.size()?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn size(args: &mut Args) -> Result<usize, CliError> {
    Ok(usize::try_from(args.size()?).unwrap_or(usize::MAX))
}

fn count(args: &mut Args) -> Result<usize, CliError> {
    Ok(usize::try_from(args.count(1)?).unwrap_or(usize::MAX))
}

/// How many event loops: a number, or one for each core.
fn shards(args: &Args, word: &str) -> Result<u32, CliError> {
    if word == "auto" {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        return Ok(u32::try_from(cores).map_or(SHARDS_MAX, |cores| cores.min(SHARDS_MAX)));
    }
    let count = word.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| args.bad(word, "a number from 1, or auto for one for each core"))
}

/// The cores of the event loops: numbers, or one each of those that there are.
fn pin(args: &mut Args) -> Result<Pin, CliError> {
    let word = args.value()?;
    if word == "auto" {
        return Ok(Pin::Auto);
    }
    let cores: Option<Vec<usize>> = word.split(',').map(|core| core.parse().ok()).collect();
    let cores = cores.ok_or_else(|| args.bad(&word, "numbers of cores like 0,1, or auto"))?;
    Ok(Pin::Cores(cores))
}

/// The core of each event loop, all of which the process may use.
fn pinned(args: &Args, pin: &Pin, shards: u32) -> Result<Vec<usize>, CliError> {
    let allowed =
        os::cores().map_err(|error| args.usage(format!("--pin cannot be done: {error}")))?;
    let cores = match pin {
        Pin::Auto => allowed.iter().copied().take(shards as usize).collect(),
        Pin::Cores(cores) => cores.clone(),
    };
    if cores.len() < shards as usize && *pin == Pin::Auto {
        return Err(args.usage(format!(
            "--pin auto needs a core for each of {shards} shards, and this process may use {}",
            allowed.len()
        )));
    }
    match cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) => Err(args.usage(format!(
            "--pin names core {core}, which this process may not use: it may use {}",
            listed(&allowed)
        ))),
        None => Ok(cores),
    }
}

/// Numbers with commas between them.
fn listed(numbers: &[usize]) -> String {
    let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
    numbers.join(",")
}

/// A level that one broker can keep.
fn durable(args: &Args, word: &str) -> Result<Level, CliError> {
    match Level::parse(word.as_bytes()) {
        Some(Level::Quorum) => Err(args.usage(
            "quorum needs a cluster, which this version does not have: use none, os or disk",
        )),
        Some(level) => Ok(level),
        None => Err(args.bad(word, "none, os or disk")),
    }
}

/// One `KEY=VALUE` of `--set`, with the keys and values of `QSET`.
fn setting(args: &Args, text: &str) -> Result<SettingsPatch, CliError> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(args.bad(text, "KEY=VALUE, as in --set lease=10s"));
    };
    let mut patch = SettingsPatch::default();
    match settings::set(&mut patch, key.as_bytes(), value.as_bytes()) {
        Ok(()) => Ok(patch),
        Err(error) => Err(args.usage(format!("--set {text}: {}", error.text))),
    }
}

/// Fills in what depends on several options, and checks the whole.
fn put_together(args: &Args, options: &Options, config: &mut Config) -> Result<(), CliError> {
    if options.memory && options.data.is_some() {
        return Err(args.usage("--memory keeps nothing in a directory: leave out it or --data"));
    }
    if options.memory && config.data_must_exist {
        return Err(args.usage("--memory has no data directory that could exist"));
    }
    config.data = match (&options.data, options.memory) {
        (_, true) => None,
        (Some(path), _) => Some(path.clone()),
        (None, _) => Some(PathBuf::from(DATA_DEFAULT)),
    };
    if let Some(level) = options.durable {
        config.queue_defaults.durable = level;
    }
    for patch in &options.set {
        config.queue_defaults.apply(patch);
    }
    if options.memory {
        let asked = options.durable.is_some() || options.set.iter().any(|p| p.durable.is_some());
        let level = config.queue_defaults.durable;
        if asked && level != Level::None {
            return Err(args.usage(format!(
                "--memory writes nothing to a disk, so {} cannot be promised: leave out one",
                level.setting()
            )));
        }
        config.queue_defaults.durable = Level::None;
    }
    if let Some(pin) = &options.pin {
        config.cores = pinned(args, pin, config.shards)?;
    }
    let listen = addresses(args, &options.listen)?;
    (config.listen, config.pinned) = listen.into_iter().unzip();
    config.check().map_err(|reason| args.usage(reason))
}

/// The addresses to listen on; a name that stands for several addresses gives them all.
fn addresses(args: &Args, listen: &[String]) -> Result<Vec<(SocketAddr, Option<Door>)>, CliError> {
    let default = [ADDR_DEFAULT.to_owned()];
    let listen = if listen.is_empty() { &default } else { listen };
    let mut addresses = Vec::new();
    for text in listen {
        let (plain, pinned) = match text.split_once("://") {
            None => (text.as_str(), None),
            Some((word, plain)) => {
                let known = Door::BUILT.iter().find(|door| door.word() == word);
                let Some(door) = known else {
                    let words: Vec<_> = Door::BUILT.iter().map(|door| door.word()).collect();
                    return Err(args.usage(format!(
                        "--listen {text}: this version speaks only {}, not {word}",
                        words.join(", ")
                    )));
                };
                (plain, Some(*door))
            }
        };
        let resolved = plain.to_socket_addrs().map_err(|error| {
            args.usage(format!(
                "--listen {text}: {error}; an address looks like 127.0.0.1:7766 or [::1]:7766"
            ))
        })?;
        for address in resolved {
            let known = addresses.iter().any(|(known, _)| *known == address);
            if !known || address.port() == 0 {
                addresses.push((address, pinned));
            }
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Config, String> {
        let parser = lexopt::Parser::from_args(line.split_whitespace());
        parse(parser)
            .map(|(config, _)| config)
            .map_err(|error| error.to_string())
    }

    fn accepts(line: &str) -> Config {
        parsed(line).expect("these arguments are good")
    }

    fn refuses(line: &str, want: &str) {
        let error = parsed(line).expect_err("these arguments are bad");
        assert!(
            error.contains(want),
            "{line:?} said {error:?}, without {want:?}"
        );
        assert!(error.ends_with("Try 'ringmq serve --help'."), "{error:?}");
    }

    #[test]
    fn the_defaults() {
        let config = accepts("");
        assert_eq!(
            config.listen,
            ["127.0.0.1:7766".parse().expect("an address")]
        );
        assert_eq!(config.data, Some(PathBuf::from("ringmq-data")));
        assert_eq!(config.queue_defaults.durable, Level::Disk);
        assert!(!config.insecure && !config.spin && !config.data_must_exist);
    }

    #[test]
    fn listening() {
        let config = accepts("--listen text://127.0.0.1:0 --listen=[::1]:9");
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.pinned, [Some(Door::Text), None]);
        refuses("--listen 0.0.0.0:7766", "--insecure");
        refuses("--listen [::]:7766", "no authentication");
        assert!(accepts("--listen 0.0.0.0:7766 --insecure").insecure);
        refuses("--listen 7766", "127.0.0.1:7766");
        let pinned = accepts("--listen resp://127.0.0.1:0 --listen http://127.0.0.1:0").pinned;
        assert_eq!(pinned, [Some(Door::Resp), Some(Door::Http)]);
        refuses("--listen ftp://127.0.0.1:21", "only text, resp, http, amqp");
    }

    #[test]
    fn levels() {
        assert_eq!(accepts("--durable os").queue_defaults.durable, Level::Os);
        assert_eq!(accepts("--memory").queue_defaults.durable, Level::None);
        assert_eq!(accepts("--memory").data, None);
        assert_eq!(
            accepts("--memory --durable none").queue_defaults.durable,
            Level::None
        );
        refuses("--memory --durable disk", "disk cannot be promised");
        refuses("--memory --data x", "leave out");
        refuses("--durable quorum", "cluster");
        refuses("--durable fsync", "none, os or disk");
        assert_eq!(
            accepts("--durable disk --set durable=os")
                .queue_defaults
                .durable,
            Level::Os
        );
        refuses("--set durable=quorum", "quorum");
        let config = accepts("--set lease=5s --set backoff=0 -s maxlen=10");
        assert_eq!(config.queue_defaults.lease_us, 5_000_000);
        assert_eq!(config.queue_defaults.backoff.most_us, 0);
        assert_eq!(config.queue_defaults.maxlen, Some(10));
        refuses("--set lease", "KEY=VALUE");
        refuses("--set nonsense=1", "nonsense");
    }

    #[test]
    fn sizes_and_limits() {
        let config = accepts("--memory-budget 512M --max-body 2M --max-connections 7");
        assert_eq!(config.memory_budget_bytes, 512 << 20);
        assert_eq!(config.limits.body_bytes_max, 2 << 20);
        assert_eq!(config.limits.connections_max, 7);
        refuses("--max-body 0", "max-body");
        refuses("--max-body 64M", "max-batch-bytes");
        refuses("--memory-budget 12", "memory-budget");
        refuses("--max-connections none", "whole number");
    }

    #[test]
    fn what_is_not_there() {
        assert!(accepts("--resp-pop classic").limits.pop_is_classic);
        refuses("--resp-pop quick", "safe or classic");
        refuses("--frob", "no option --frob");
        refuses("jobs", "one argument too many");
        refuses("--data", "missing");
        refuses("--log-level loud", "trace");
    }
}
