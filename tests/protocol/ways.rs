//! Drives a decoder as a connection does, in pieces of any size, and writes its steps down in one
//! line each.

#![allow(clippy::unwrap_used)]

use ringmq::broker::command::{
    Command, From, PublishOptions, PullOptions, Request, Source, StatsScope, TimeSpec, Tokens,
    Typed,
};
use ringmq::config::Limits;
use ringmq::protocol::text::batch;
use ringmq::protocol::text::decode::{Decoder, Step};

/// How the bytes get to the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Always through `decode`.
    Decode,
    /// Straight into a large body where the decoder offers it.
    Space,
    /// Through the general path only.
    General,
}

/// Decodes the pieces one after another; the steps, one line each, `Incomplete` left out.
pub fn run(pieces: &[&[u8]], limits: &Limits, way: Way) -> Vec<String> {
    let mut decoder = Decoder::default();
    let mut pending = Vec::new();
    let mut steps = Vec::new();
    for piece in pieces {
        let mut piece = *piece;
        while way == Way::Space && pending.is_empty() && !piece.is_empty() {
            let Some(space) = decoder.body_space() else {
                break;
            };
            assert!(!space.is_empty(), "the space is never empty");
            let count = space.len().min(piece.len());
            space[..count].copy_from_slice(&piece[..count]);
            decoder.body_filled(count);
            piece = &piece[count..];
            drain(&mut decoder, &mut pending, limits, way, &mut steps);
        }
        pending.extend_from_slice(piece);
        drain(&mut decoder, &mut pending, limits, way, &mut steps);
        check_memory(&decoder, &pending, limits);
    }
    let rest = decoder.in_frame() || !pending.is_empty();
    assert_eq!(
        decoder.in_frame(),
        rest,
        "unconsumed input is a frame that has begun"
    );
    assert_eq!(decoder.in_frame(), decoder.unfinished().is_some());
    if decoder.in_frame() {
        steps.push("...".into());
    }
    steps
}

fn drain(
    decoder: &mut Decoder,
    pending: &mut Vec<u8>,
    limits: &Limits,
    way: Way,
    steps: &mut Vec<String>,
) {
    loop {
        let (consumed, step) = match way {
            Way::General => decoder.decode_any(pending, limits),
            _ => decoder.decode(pending, limits),
        };
        assert!(consumed <= pending.len());
        let (more, shown) = show(step);
        steps.extend(shown);
        pending.drain(..consumed);
        if !more {
            return;
        }
    }
}

/// Between commands nothing is kept; inside one no more than has been received, and a little.
fn check_memory(decoder: &Decoder, pending: &[u8], limits: &Limits) {
    if !decoder.in_frame() {
        assert!(decoder.memory() <= limits.line_bytes_max, "{decoder:?}");
        assert!(pending.is_empty());
    }
    let body_bytes_max = limits.batch_bytes_max.max(limits.body_bytes_max);
    assert!(decoder.memory() <= 2 * body_bytes_max + limits.line_bytes_max + (32 << 10));
}

fn show(step: Step<'_>) -> (bool, Option<String>) {
    let tagged = |tag: Option<&[u8]>| match tag {
        Some(tag) => format!("@{} ", text(tag)),
        None => String::new(),
    };
    match step {
        Step::Incomplete => (false, None),
        Step::Empty => (true, Some("empty".into())),
        Step::Refused { tag, error } => {
            let shown = format!("{}ERR {} :{}", tagged(tag), error.code.word(), error.text);
            (true, Some(shown))
        }
        Step::Fatal { tag, error } => {
            let shown = format!("{}FATAL {} :{}", tagged(tag), error.code.word(), error.text);
            (true, Some(shown))
        }
        Step::Request(request) => (true, Some(show_request(request, &tagged))),
    }
}

fn show_request(request: Request<'_>, tagged: &dyn Fn(Option<&[u8]>) -> String) -> String {
    let quiet = if request.quiet { "!" } else { "" };
    let (verb, rest) = show_command(request.command);
    let separator = if rest.is_empty() { "" } else { " " };
    format!("{}{verb}{quiet}{separator}{rest}", tagged(request.tag))
}

/// Octets as text; what is not printable as `\xNN`.
pub fn text(octets: &[u8]) -> String {
    octets.escape_ascii().to_string()
}

fn typed(name: Typed<'_>) -> String {
    text(name.0)
}

fn source(source: Source<'_>) -> String {
    match source.group {
        Some(group) => format!("{}/{}", typed(source.queue), typed(group)),
        None => typed(source.queue),
    }
}

fn tokens(tokens: Tokens<'_>) -> String {
    tokens.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Joins what is there with spaces.
fn joined(parts: Vec<Option<String>>) -> String {
    let parts: Vec<_> = parts
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(" ")
}

fn option<T: std::fmt::Display>(key: &str, value: Option<T>) -> Option<String> {
    value.map(|value| format!("{key}={value}"))
}

fn us(key: &str, value: Option<u64>) -> Option<String> {
    value.map(|value| format!("{key}={value}us"))
}

fn flag(word: &str, is: bool) -> Option<String> {
    is.then(|| word.to_owned())
}

fn from(from: Option<From>) -> Option<String> {
    from.map(|from| match from {
        From::First => "from=first".to_owned(),
        From::New => "from=new".to_owned(),
        From::At(TimeSpec::Id(id)) => format!("from={id}"),
        From::At(other) => format!("from={other:?}"),
    })
}

fn publish_options(options: PublishOptions<'_>) -> String {
    let headers: Vec<_> = options
        .headers()
        .map(|(name, value)| format!("h.{}={}", text(name), typed(value)))
        .collect();
    joined(vec![
        us("delay", options.delay_us),
        us("at", options.at_us),
        us("ttl", options.ttl_us),
        option("pri", options.pri),
        option("key", options.key.map(typed)),
        option("once", options.once.map(typed)),
        option("sync", options.sync.map(|level| level.setting())),
        option("reply", options.reply.map(typed)),
        Some(headers.join(" ")),
    ])
}

fn pull_options(options: PullOptions) -> String {
    joined(vec![
        (options.count != 1).then(|| options.count.to_string()),
        us("wait", Some(options.wait_us).filter(|wait_us| *wait_us > 0)),
        us("lease", options.lease_us),
        from(options.from),
        flag("ack=auto", options.ack_auto),
        flag("hold=1", options.hold),
        option("bytes", options.bytes_max),
        flag("ts=1", options.timestamps),
    ])
}

fn show_command(command: Command<'_>) -> (&'static str, String) {
    match command {
        Command::Hello {
            version,
            name,
            expired,
        } => {
            let name = option("name", name.map(typed));
            (
                "HELLO",
                joined(vec![
                    Some(version.to_string()),
                    name,
                    flag("expired=1", expired),
                ]),
            )
        }
        Command::Ping { body } => (
            "PING",
            body.map_or(String::new(), |body| format!(":{}", text(body.as_slice()))),
        ),
        Command::Quit => ("QUIT", String::new()),
        Command::Help { verb } => ("HELP", verb.map_or(String::new(), text)),
        Command::Publish {
            queue,
            options,
            body,
        } => {
            let body = format!(":{}", text(body.as_slice()));
            (
                "PUB",
                joined(vec![
                    Some(typed(queue)),
                    Some(publish_options(options)),
                    Some(body),
                ]),
            )
        }
        Command::PublishBatch {
            queue,
            options,
            framing,
            count,
            body_bytes,
            data,
        } => {
            let messages: Vec<_> = batch::messages(framing, data.as_slice()).collect();
            assert_eq!(messages.len(), count as usize);
            let sum: usize = messages.iter().map(|message| message.len()).sum();
            assert_eq!(sum as u64, body_bytes);
            let messages: Vec<_> = messages.into_iter().map(text).collect();
            let messages = format!("{framing:?}[{}]", messages.join("|"));
            let options = publish_options(options);
            (
                "MPUB",
                joined(vec![Some(typed(queue)), Some(options), Some(messages)]),
            )
        }
        Command::Pull { sources, options } => {
            let sources: Vec<_> = sources.iter().map(source).collect();
            (
                "PULL",
                joined(vec![Some(sources.join(",")), Some(pull_options(options))]),
            )
        }
        Command::Ack { handles } => ("ACK", tokens(handles)),
        Command::Nack {
            handles,
            delay_us,
            dead,
            why,
        } => {
            let why = option("why", why.map(typed));
            let delay = us("delay", delay_us);
            (
                "NACK",
                joined(vec![
                    Some(tokens(handles)),
                    delay,
                    flag("dead=1", dead),
                    why,
                ]),
            )
        }
        Command::Touch { handles, lease_us } => (
            "TOUCH",
            joined(vec![Some(tokens(handles)), us("lease", lease_us)]),
        ),
        Command::Subscribe {
            source: src,
            credit,
            lease_us,
            from: start,
            ack_auto,
            timestamps,
        } => (
            "SUB",
            joined(vec![
                Some(source(src)),
                option("credit", credit),
                us("lease", lease_us),
                from(start),
                flag("ack=auto", ack_auto),
                flag("ts=1", timestamps),
            ]),
        ),
        other => show_rest(other),
    }
}

fn show_rest(command: Command<'_>) -> (&'static str, String) {
    match command {
        Command::Credit {
            source: src,
            credit,
        } => ("CREDIT", format!("{} {credit}", source(src))),
        Command::Unsubscribe { source: src } => ("UNSUB", source(src)),
        Command::QueueSet { queue, settings } => {
            let settings = format!("{settings:?}");
            let said: Vec<_> = settings
                .trim_start_matches("SettingsPatch { ")
                .trim_end_matches(" }")
                .split(", ")
                .filter(|field| !field.ends_with(": None"))
                .collect();
            (
                "QSET",
                joined(vec![Some(typed(queue)), Some(said.join(", "))]),
            )
        }
        Command::QueueGet { source: src } => ("QGET", source(src)),
        Command::Seek { source: src, to } => (
            "SEEK",
            joined(vec![Some(source(src)), Some(format!("to={to:?}"))]),
        ),
        Command::QueueList { pattern } => ("QLS", pattern.map_or(String::new(), text)),
        Command::QueueDelete { source: src } => ("QDEL", source(src)),
        Command::Delete { queue, ids } => ("DEL", format!("{} {}", typed(queue), tokens(ids))),
        Command::Purge { source: src, state } => {
            let state = option("state", state.map(|state| format!("{state:?}")));
            ("PURGE", joined(vec![Some(source(src)), state]))
        }
        Command::Peek {
            source: src,
            count,
            state,
            from,
        } => (
            "PEEK",
            format!("{} {count} state={state:?} from={from}", source(src)),
        ),
        Command::Move {
            source: src,
            target,
            count,
        } => {
            let count = count.map(|count| count.to_string());
            (
                "MOVE",
                joined(vec![Some(source(src)), Some(typed(target)), count]),
            )
        }
        Command::Sync { level } => (
            "SYNC",
            level.map_or(String::new(), |level| level.setting().to_owned()),
        ),
        Command::Stats(StatsScope::Broker) => ("STATS", String::new()),
        Command::Stats(StatsScope::Queue(src)) => ("STATS", format!("q {}", source(src))),
        Command::Stats(StatsScope::Connections) => ("STATS", "conns".into()),
        Command::Request {
            queue,
            timeout_us,
            options,
            body,
        } => (
            "REQ",
            joined(vec![
                Some(typed(queue)),
                us("timeout", Some(timeout_us)),
                Some(publish_options(options)),
                Some(format!(":{}", text(body.as_slice()))),
            ]),
        ),
        Command::Cast {
            topic,
            options,
            body,
        } => (
            "CAST",
            joined(vec![
                Some(typed(topic)),
                Some(publish_options(options)),
                Some(format!(":{}", text(body.as_slice()))),
            ]),
        ),
        Command::SubscribeLive {
            pattern,
            timestamps,
        } => (
            "SUB",
            joined(vec![
                Some(text(pattern)),
                Some("mode=live".into()),
                flag("ts=1", timestamps),
            ]),
        ),
        Command::UnsubscribeLive { pattern } => ("UNSUB", text(pattern)),
        Command::Bind { pattern, queue } => ("BIND", format!("{} {}", text(pattern), typed(queue))),
        Command::Unbind { pattern, queue } => {
            ("UNBIND", format!("{} {}", text(pattern), typed(queue)))
        }
        Command::Answer { token, body } => (
            "REP",
            format!("{} :{}", typed(token), text(body.as_slice())),
        ),
        Command::Schedule {
            queue,
            name,
            every_us,
            options,
            body,
        } => (
            "PUB",
            format!(
                "{} every={every_us}us name={} {} :{}",
                typed(queue),
                typed(name),
                joined(vec![
                    options.delay_us.map(|us| format!("delay={us}us")),
                    options.pri.map(|pri| format!("pri={pri}")),
                ]),
                text(body.as_slice())
            ),
        ),
        Command::Begin => ("BEGIN", String::new()),
        Command::Commit => ("COMMIT", String::new()),
        Command::Abort => ("ABORT", String::new()),
        Command::Drain { most_us: None } => ("DRAIN", String::new()),
        Command::Drain {
            most_us: Some(most_us),
        } => ("DRAIN", format!("{most_us}us")),
        Command::Cancel { tag } => ("CANCEL", format!("@{}", text(tag))),
        _ => unreachable!("shown above"),
    }
}
