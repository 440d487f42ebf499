//! What one run of `ringmq bench` does: its arguments, checked.

use std::path::PathBuf;

use crate::broker::id::Level;
use crate::cli::args::{self, Args, Word};
use crate::cli::error::CliError;

/// Smallest body: the message's number and the time it was sent, 8 bytes each.
pub const BODY_BYTES_MIN: usize = 16;
/// Messages of a run that has no duration.
const COUNT_DEFAULT: u64 = 1_000_000;
const DURATION_US_DEFAULT: u64 = 5_000_000;
const WARMUP_US_DEFAULT: u64 = 1_000_000;

/// Which way the messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In only.
    Publish,
    /// Out only: the queue is filled first.
    Pull,
    /// In and out at the same time.
    EndToEnd,
    /// In, and out to every consumer.
    FanOut,
    /// Connections that do nothing.
    Idle,
    /// The server that passes fixed frames on.
    Forwarder,
    /// No broker: what the machine itself takes.
    Floor,
}

impl Mode {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Publish => "publish",
            Mode::Pull => "pull",
            Mode::EndToEnd => "e2e",
            Mode::FanOut => "fanout",
            Mode::Idle => "idle",
            Mode::Forwarder => "forwarder",
            Mode::Floor => "floor",
        }
    }
}

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The line protocol: `PUB`/`MPUB`, `SUB`/`PULL`, `ACK`.
    Text,
    /// Redis': `RPUSH`, `LPOP`.
    Redis,
    /// Redis Streams: `XADD`, `XREADGROUP`, `XACK`.
    Streams,
    /// NATS core: `PUB`, `SUB`.
    Nats,
    /// beanstalkd's: `put`, `reserve`, `delete`.
    Beanstalkd,
    /// AMQP 0-9-1, as RabbitMQ speaks it.
    Amqp,
    /// The forwarder's fixed frames.
    Frames,
}

impl Protocol {
    /// The protocol that an option names, with the address as its value.
    fn of_option(name: &str) -> Option<Protocol> {
        match name {
            "-a" | "--addr" => Some(Protocol::Text),
            "--redis" => Some(Protocol::Redis),
            "--redis-streams" => Some(Protocol::Streams),
            "--nats" => Some(Protocol::Nats),
            "--beanstalkd" => Some(Protocol::Beanstalkd),
            "--amqp" => Some(Protocol::Amqp),
            "--frames" => Some(Protocol::Frames),
            _ => None,
        }
    }

    /// The word in a result.
    pub fn word(self) -> &'static str {
        match self {
            Protocol::Text => "text",
            Protocol::Redis => "redis",
            Protocol::Streams => "redis-streams",
            Protocol::Nats => "nats",
            Protocol::Beanstalkd => "beanstalkd",
            Protocol::Amqp => "amqp",
            Protocol::Frames => "frames",
        }
    }

    /// Whether the server sends messages by itself, or has to be asked; `None` when it can do both.
    fn consume(self) -> Option<Consume> {
        match self {
            Protocol::Text => None,
            Protocol::Redis | Protocol::Streams | Protocol::Beanstalkd => Some(Consume::Pull),
            Protocol::Nats | Protocol::Amqp | Protocol::Frames => Some(Consume::Push),
        }
    }
}

/// How messages are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consume {
    /// `SUB`: the broker sends as long as there is credit.
    Push,
    /// `PULL` (`LPOP`): asked for whenever messages are known to be there.
    Pull,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which way.
    pub mode: Mode,
    /// To whom.
    pub protocol: Protocol,
    /// Where it listens, `host:port`.
    pub addr: String,
    /// The queue; one made for the run when absent.
    pub queue: Option<String>,
    /// Messages to publish; `None` = until the duration is over.
    pub count: Option<u64>,
    /// Measured time, microseconds; `None` = until the count is reached.
    pub duration_us: Option<u64>,
    /// Time before the measuring starts, microseconds.
    pub warmup_us: u64,
    /// Bytes of each body, at least [`BODY_BYTES_MIN`].
    pub body_bytes: usize,
    /// Connections that publish.
    pub producers: usize,
    /// Connections that receive.
    pub consumers: usize,
    /// Messages on the way for each connection.
    pub window: u64,
    /// End to end in a closed loop: most messages published and not received.
    pub backlog: u64,
    /// Messages of one publish command; of one synced write of `floor`.
    pub batch: u64,
    /// Most messages of one pull command.
    pub pull_batch: u64,
    /// Most handles in one `ACK`.
    pub ack_batch: usize,
    /// `ACK!`, which is answered only when it fails.
    pub quiet_acks: bool,
    /// `pull`: the queue holds what a run with the same count and queue has published.
    pub is_filled: bool,
    /// How messages are received.
    pub consume: Consume,
    /// Open loop: messages a second over all producers.
    pub rate: Option<u64>,
    /// Level of the queue; the broker's default when absent.
    pub durable: Option<Level>,
    /// Whose CPU time is told.
    pub server_pid: Option<u32>,
    /// A run in which nothing moves for so long has failed, microseconds.
    pub stall_us: u64,
    /// Where `floor` writes.
    pub data: Option<PathBuf>,
    /// The generator polls without sleeping.
    pub spin: bool,
    /// Kept in the result.
    pub label: Option<String>,
    /// The result is a JSON object.
    pub json: bool,
}

impl Plan {
    /// How often each message arrives.
    pub fn copies(&self) -> u64 {
        match self.mode {
            Mode::FanOut => self.consumers as u64,
            _ => 1,
        }
    }
}

/// Reads the arguments of `ringmq bench`.
///
/// # Errors
/// `CliError::Usage` for what cannot be used or does not fit together.
pub fn parse(parser: lexopt::Parser) -> Result<Plan, CliError> {
    let mut args = Args::new("bench", parser);
    let mut plan = Plan {
        mode: Mode::EndToEnd,
        protocol: Protocol::Text,
        addr: args::addr_from_environment(),
        queue: None,
        count: None,
        duration_us: None,
        warmup_us: u64::MAX,
        body_bytes: 100,
        producers: 1,
        consumers: 1,
        window: 1000,
        backlog: 0,
        batch: 1,
        pull_batch: 0,
        ack_batch: 100,
        quiet_acks: false,
        is_filled: false,
        consume: Consume::Push,
        rate: None,
        durable: None,
        server_pid: None,
        stall_us: 30_000_000,
        data: None,
        spin: false,
        label: None,
        json: false,
    };
    let (mut mode, mut consume) = (None, None);
    while let Some(word) = args.next()? {
        match &word {
            Word::Value(value) if mode.is_none() => mode = Some(self::mode(&args, value)?),
            Word::Value(_) => return Err(args.unknown(&word)),
            Word::Option(name) => {
                if !option(&mut args, name, &mut plan, &mut consume)? {
                    return Err(args.unknown(&word));
                }
            }
        }
    }
    plan.mode = mode.unwrap_or(Mode::EndToEnd);
    complete(&args, &mut plan, consume)?;
    Ok(plan)
}

fn mode(args: &Args, word: &str) -> Result<Mode, CliError> {
    match word {
        "publish" | "pub" => Ok(Mode::Publish),
        "pull" => Ok(Mode::Pull),
        "e2e" | "end-to-end" => Ok(Mode::EndToEnd),
        "fanout" | "fan-out" => Ok(Mode::FanOut),
        "idle" => Ok(Mode::Idle),
        "forwarder" => Ok(Mode::Forwarder),
        "floor" => Ok(Mode::Floor),
        _ => Err(args.usage(format!(
            "the modes are publish, pull, e2e, fanout, idle, floor and forwarder, not '{word}'"
        ))),
    }
}

/// Takes over one option; false when there is none of that name.
fn option(
    args: &mut Args,
    name: &str,
    plan: &mut Plan,
    consume: &mut Option<Consume>,
) -> Result<bool, CliError> {
    if let Some(protocol) = Protocol::of_option(name) {
        plan.addr = args.value()?;
        plan.protocol = protocol;
        return Ok(true);
    }
    match name {
        "--queue" => plan.queue = Some(args.value()?),
        "-n" | "--count" => plan.count = Some(args.count(1)?),
        "--duration" => plan.duration_us = Some(args.duration_us()?.max(1_000)),
        "--warmup" => plan.warmup_us = args.duration_us()?,
        "--size" => plan.body_bytes = bounded(args.size()?),
        "--producers" => plan.producers = bounded(args.count(1)?),
        "--consumers" => plan.consumers = bounded(args.count(1)?),
        "--window" => plan.window = args.count(1)?,
        "--backlog" => plan.backlog = args.count(1)?,
        "--batch" => plan.batch = args.count(1)?,
        "--pull-batch" => plan.pull_batch = args.count(1)?,
        "--ack-batch" => plan.ack_batch = bounded(args.count(1)?),
        "--quiet-acks" => plan.quiet_acks = true,
        "--filled" => plan.is_filled = true,
        "--consume" => {
            let word = args.value()?;
            *consume = match word.as_str() {
                "sub" => Some(Consume::Push),
                "pull" => Some(Consume::Pull),
                _ => return Err(args.bad(&word, "sub or pull")),
            };
        }
        "--rate" => plan.rate = Some(args.count(1)?),
        "--durable" => {
            let word = args.value()?;
            let level = Level::parse(word.as_bytes());
            plan.durable = Some(level.ok_or_else(|| args.bad(&word, "none, os or disk"))?);
        }
        "--server-pid" => {
            let pid = args.count(1)?;
            let pid = u32::try_from(pid).map_err(|_| args.bad(&pid.to_string(), "a process id"));
            plan.server_pid = Some(pid?);
        }
        "--stall" => plan.stall_us = args.duration_us()?,
        "--data" => plan.data = Some(PathBuf::from(args.value()?)),
        "--spin" => plan.spin = true,
        "--label" => plan.label = Some(args.value()?),
        "--json" => plan.json = true,
        _ => return Ok(false),
    }
    Ok(true)
}

fn bounded(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Fills in the defaults that depend on other options, and checks what must fit together.
fn complete(args: &Args, plan: &mut Plan, consume: Option<Consume>) -> Result<(), CliError> {
    if plan.count.is_none() && plan.duration_us.is_none() {
        match plan.mode {
            Mode::Pull => plan.count = Some(COUNT_DEFAULT),
            _ => plan.duration_us = Some(DURATION_US_DEFAULT),
        }
    }
    if plan.mode == Mode::Pull {
        if plan.rate.is_some() {
            return Err(args.usage("--rate sets the pace of publishes, and pull measures none"));
        }
        if plan.count.is_none() {
            plan.count = Some(COUNT_DEFAULT);
        }
        plan.consume = Consume::Pull;
    }
    if plan.is_filled && (plan.mode != Mode::Pull || plan.queue.is_none()) {
        return Err(args.usage("--filled is for pull from a --queue that another run has filled"));
    }
    plan.consume = consume.unwrap_or(plan.consume);
    if plan.warmup_us == u64::MAX {
        plan.warmup_us = if plan.count.is_some() {
            0
        } else {
            WARMUP_US_DEFAULT
        };
    }
    fits_the_protocol(args, plan)?;
    if plan.data.is_some() && plan.mode != Mode::Floor {
        return Err(args.usage("--data is where floor writes; the other modes write to the broker"));
    }
    if plan.body_bytes < BODY_BYTES_MIN {
        return Err(args.usage(format!(
            "--size is at least {BODY_BYTES_MIN}: a body carries its number and its time"
        )));
    }
    if plan.pull_batch == 0 {
        plan.pull_batch = plan.batch;
    }
    if plan.batch > plan.window {
        return Err(args.usage("--batch cannot be more than --window"));
    }
    if plan.producers.max(plan.consumers) > 100_000 || plan.window > 10_000_000 {
        return Err(args.usage("at most 100000 connections and a window of 10000000"));
    }
    if plan.backlog == 0 {
        plan.backlog = plan.window.saturating_mul(10 * plan.producers as u64);
    }
    if plan.backlog < plan.batch {
        return Err(args.usage("--batch cannot be more than --backlog"));
    }
    plan.ack_batch = plan.ack_batch.min(1000);
    Ok(())
}

/// Checks what only some protocols can do.
fn fits_the_protocol(args: &Args, plan: &mut Plan) -> Result<(), CliError> {
    let protocol = plan.protocol;
    plan.consume = protocol.consume().unwrap_or(plan.consume);
    if plan.mode == Mode::FanOut {
        if matches!(protocol, Protocol::Beanstalkd | Protocol::Streams) {
            return Err(args.usage("no fanout: here each message goes to one consumer"));
        }
        plan.consume = Consume::Push;
    }
    if plan.mode == Mode::Pull && protocol == Protocol::Nats {
        return Err(args.usage("NATS core stores nothing that could be pulled"));
    }
    if plan.durable.is_some() && !matches!(protocol, Protocol::Text | Protocol::Amqp) {
        return Err(args.usage(
            "--durable is a queue's, and this server has one setting for all: see its own options, \
             as Redis' appendfsync",
        ));
    }
    let batches = matches!(protocol, Protocol::Text | Protocol::Redis) && plan.mode != Mode::FanOut;
    let pulls = batches || protocol == Protocol::Streams;
    if plan.batch > 1 && !batches || plan.pull_batch > 1 && !pulls {
        return Err(args.usage("--batch and --pull-batch are for RingMQ and Redis"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        parse(lexopt::Parser::from_args(line.split_whitespace())).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_follow_the_mode() {
        let e2e = plan("").expect("good");
        assert_eq!(
            (e2e.mode, e2e.duration_us, e2e.count),
            (Mode::EndToEnd, Some(5_000_000), None)
        );
        assert_eq!(e2e.warmup_us, 1_000_000);
        let pull = plan("pull").expect("good");
        assert_eq!((pull.count, pull.warmup_us), (Some(1_000_000), 0));
        assert_eq!(pull.consume, Consume::Pull);
        let redis = plan("e2e --redis 127.0.0.1:6379").expect("good");
        assert_eq!(
            (redis.protocol, redis.consume),
            (Protocol::Redis, Consume::Pull)
        );
        let amqp = plan("pull --amqp 127.0.0.1:5672").expect("good");
        assert_eq!(amqp.consume, Consume::Push);
        let pushed = plan("pull --consume sub").expect("good");
        assert_eq!(pushed.consume, Consume::Push);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let cases = [
            ("publish pull", "one argument too many"),
            ("punish", "modes are"),
            ("--size 8", "at least 16"),
            ("--batch 2000", "--window"),
            ("pull --rate 5", "--rate"),
            ("--redis x:1 --durable disk", "appendfsync"),
            ("fanout --beanstalkd x:1", "one consumer"),
            ("pull --nats x:1", "stores nothing"),
            ("--nats x:1 --batch 5", "--batch"),
            ("pull --filled", "--filled"),
            ("--durable fsync", "none, os or disk"),
            ("--consume push", "sub or pull"),
        ];
        for (line, want) in cases {
            let error = plan(line).expect_err("must be refused");
            assert!(error.contains(want), "{line:?} said {error:?}");
        }
    }
}
