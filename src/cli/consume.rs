//! `ringmq pull`, `ringmq sub` and `ringmq ack`: messages to stdout, and what settles them.
//!
//! A message is settled only after stdout has taken it: a crash in between prints it again later
//! and never loses it.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client::{Connection, Error, Message, Reply, typed_sources, typed_value};

use super::args::{self, Args, Word};
use super::error::CliError;
use super::json::Object;

/// Most handles in one `ACK`.
const HANDLES_MAX: usize = 1000;
/// Most messages asked for in one `PULL`.
const PULL_MAX: u64 = 1000;
/// The protocol's credit of a subscription that names none.
const CREDIT_DEFAULT: u64 = 100;
/// How often a subscription looks whether it was interrupted.
const INTERRUPT_CHECK: Duration = Duration::from_millis(100);

/// What the arguments of `pull` and `sub` asked for.
struct Options {
    addr: String,
    source: String,
    /// Most messages; `None` = no end (`sub`).
    count: Option<u64>,
    wait_us: u64,
    lease_us: Option<u64>,
    /// Where a group begins.
    from: Option<String>,
    credit: Option<u64>,
    ack: bool,
    print: Print,
}

/// How a message is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Print {
    Body,
    HandleAndBody,
    Json,
}

/// `ringmq pull`
pub fn pull(parser: lexopt::Parser) -> Result<(), CliError> {
    let options = parse("pull", parser)?;
    let mut client = Connection::open(&options.addr)?;
    let mut out = io::stdout().lock();
    let mut left = options.count.unwrap_or(1);
    let mut wait_us = options.wait_us;
    while left > 0 {
        let wanted = left.min(PULL_MAX);
        write!(client.output(), "PULL {} {wanted}", options.source).expect("a Vec takes all");
        if wait_us > 0 {
            write!(client.output(), " wait={wait_us}us").expect("a Vec takes all");
        }
        if let Some(lease_us) = options.lease_us {
            write!(client.output(), " lease={lease_us}us").expect("a Vec takes all");
        }
        if let Some(from) = &options.from {
            write!(client.output(), " from={from}").expect("a Vec takes all");
        }
        let hold: &[u8] = if options.ack { b"\n" } else { b" hold=1\n" };
        client.output().extend_from_slice(hold);
        let got = pulled(&mut client, &mut out, &options)?;
        if got == 0 {
            break;
        }
        left -= got.min(left);
        // Only the first message is waited for.
        wait_us = 0;
    }
    Ok(())
}

/// Prints the messages of one `PULL` and settles or tells what was leased; how many came.
fn pulled(
    client: &mut Connection,
    out: &mut impl Write,
    options: &Options,
) -> Result<u64, CliError> {
    let mut handles = Vec::new();
    let mut printed = Ok(());
    let count = loop {
        match client.receive()? {
            Reply::Message(message) => {
                printed = printed.and_then(|()| print(out, &message, options.print));
                handles.extend(message.handle);
            }
            Reply::End(count) => break count,
            other => return Err(Error::unexpected(other).into()),
        }
    };
    if let Err(error) = printed.and_then(|()| out.flush()) {
        return Err(CliError::failed(format!(
            "cannot write to stdout: {error}; nothing of this batch is settled"
        )));
    }
    if options.ack {
        settle(client, &handles)?;
    } else if options.print == Print::Body {
        for handle in &handles {
            eprintln!("leased {handle}: 'ringmq ack {handle}' settles it");
        }
    }
    Ok(count)
}

/// `ringmq sub`
pub fn subscribe(parser: lexopt::Parser) -> Result<(), CliError> {
    let options = parse("sub", parser)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|error| CliError::failed(format!("cannot catch signals: {error}")))?;
    }
    let mut client = Connection::open(&options.addr)?;
    write!(client.output(), "SUB {}", options.source).expect("a Vec takes all");
    // Leases that would only be given back at the end are not asked for.
    let credit = match (options.credit, options.count) {
        (None, Some(count)) if count < CREDIT_DEFAULT => Some(count),
        (credit, _) => credit,
    };
    if let Some(credit) = credit {
        write!(client.output(), " credit={credit}").expect("a Vec takes all");
    }
    if let Some(lease_us) = options.lease_us {
        write!(client.output(), " lease={lease_us}us").expect("a Vec takes all");
    }
    if let Some(from) = &options.from {
        write!(client.output(), " from={from}").expect("a Vec takes all");
    }
    client.output().push(b'\n');
    client.expect_ok()?;
    client.wait_at_most(INTERRUPT_CHECK)?;
    let mut subscription = Subscription {
        left: options.count.unwrap_or(u64::MAX),
        handles: Vec::new(),
        acks: 0,
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    while !interrupted.load(Ordering::Relaxed) {
        if !subscription.turn(&mut client, &mut out, &options)? {
            return Ok(());
        }
        if subscription.left == 0 {
            break;
        }
        client.fill()?;
    }
    subscription.finish(&mut client)
}

/// The state of `ringmq sub` between two reads.
struct Subscription {
    /// Messages still to print.
    left: u64,
    /// Printed and not settled.
    handles: Vec<String>,
    /// `ACK` lines sent and not answered.
    acks: u64,
}

impl Subscription {
    /// Prints what has arrived, then settles it; false when nobody reads stdout any more.
    fn turn(
        &mut self,
        client: &mut Connection,
        out: &mut impl Write,
        options: &Options,
    ) -> Result<bool, CliError> {
        let mut printed = Ok(());
        while let Some(reply) = client.buffered()? {
            match reply {
                Reply::Message(message) if self.left > 0 && printed.is_ok() => {
                    self.left -= 1;
                    printed = print(out, &message, options.print);
                    if options.ack {
                        self.handles.extend(message.handle);
                    }
                }
                // Beyond what was asked for: not printed, not settled, so it goes back.
                Reply::Message(_) | Reply::Other(_) => {}
                Reply::Ok(_) => self.acks -= 1,
                Reply::Gone(what) => {
                    let text = format!("the subscription has ended: {what}");
                    return Err(CliError::failed(text));
                }
                other => return Err(Error::unexpected(other).into()),
            }
        }
        if let Err(error) = printed.and_then(|()| out.flush()) {
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ok(false),
                _ => Err(CliError::failed(format!("cannot write to stdout: {error}"))),
            };
        }
        self.settle(client)?;
        Ok(true)
    }

    fn settle(&mut self, client: &mut Connection) -> Result<(), CliError> {
        for chunk in self.handles.chunks(HANDLES_MAX) {
            self.acks += 1;
            append_ack(client.output(), chunk);
        }
        self.handles.clear();
        Ok(client.flush()?)
    }

    /// Waits for the answers of the last `ACK`s.
    fn finish(&mut self, client: &mut Connection) -> Result<(), CliError> {
        while self.acks > 0 {
            match client.buffered()? {
                Some(Reply::Ok(_)) => self.acks -= 1,
                Some(refused @ Reply::Error(_)) => return Err(Error::unexpected(refused).into()),
                Some(_) => {}
                None => {
                    client.fill()?;
                }
            }
        }
        Ok(())
    }
}

/// `ringmq ack`
pub fn ack(parser: lexopt::Parser) -> Result<(), CliError> {
    let mut args = Args::new("ack", parser);
    let mut addr = args::addr_from_environment();
    let mut handles = Vec::new();
    while let Some(word) = args.next()? {
        match &word {
            Word::Value(value) => {
                let plain = |octet: u8| octet.is_ascii_graphic();
                if value.is_empty() || !value.bytes().all(plain) {
                    return Err(
                        args.usage(format!("'{value}' is no handle: one looks like 1.42.7"))
                    );
                }
                handles.push(value.clone());
            }
            Word::Option(name) if name == "-a" || name == "--addr" => addr = args.value()?,
            Word::Option(_) => return Err(args.unknown(&word)),
        }
    }
    if handles.is_empty() {
        return Err(args.usage("name the handles, as in ringmq ack 1.42.7"));
    }
    let mut client = Connection::open(&addr)?;
    let settled = settle(&mut client, &handles)?;
    writeln!(io::stdout(), "OK {settled}")
        .map_err(|error| CliError::failed(format!("cannot write to stdout: {error}")))
}

/// Settles handles and waits until that is confirmed; how many were settled.
///
/// # Errors
/// `CliError::Failed` naming the stale ones, when there are any; the others are settled.
fn settle(client: &mut Connection, handles: &[String]) -> Result<u64, CliError> {
    let (mut settled, mut stale) = (0, Vec::new());
    for chunk in handles.chunks(HANDLES_MAX) {
        append_ack(client.output(), chunk);
        let rest = client.expect_ok()?;
        for word in rest.split(' ') {
            match word.strip_prefix("stale=") {
                Some(list) => stale.extend(list.split(',').map(str::to_owned)),
                None => settled += args::count(word).unwrap_or(0),
            }
        }
    }
    if stale.is_empty() {
        return Ok(settled);
    }
    Err(CliError::failed(format!(
        "{settled} settled; no longer leased, so without effect: {}",
        stale.join(" ")
    )))
}

/// Appends one `ACK`.
fn append_ack(output: &mut Vec<u8>, handles: &[String]) {
    output.extend_from_slice(b"ACK ");
    output.extend_from_slice(handles.join(" ").as_bytes());
    output.push(b'\n');
}

/// Prints one message and a line end.
fn print(out: &mut impl Write, message: &Message, how: Print) -> io::Result<()> {
    match how {
        Print::Body => {}
        Print::HandleAndBody => {
            write!(out, "{}\t", message.handle.as_deref().unwrap_or("-"))?;
        }
        Print::Json => return writeln!(out, "{}", json(message)),
    }
    out.write_all(&message.body)?;
    out.write_all(b"\n")
}

/// One message as a JSON object.
fn json(message: &Message) -> String {
    let mut object = Object::default();
    object.string("source", &message.source);
    if let Some(handle) = &message.handle {
        object.string("handle", handle);
    }
    for (key, value) in &message.fields {
        let number = std::str::from_utf8(value).ok().and_then(args::count);
        match number {
            Some(number) if matches!(key.as_str(), "id" | "try" | "ts") => {
                object.count(key, number)
            }
            _ => object.octets(key, value),
        };
    }
    object.octets("body", &message.body);
    object.finish()
}

fn parse(command: &'static str, parser: lexopt::Parser) -> Result<Options, CliError> {
    let is_pull = command == "pull";
    let mut args = Args::new(command, parser);
    let mut source = None;
    let mut options = Options {
        addr: args::addr_from_environment(),
        source: String::new(),
        count: is_pull.then_some(1),
        wait_us: 0,
        lease_us: None,
        from: None,
        credit: None,
        ack: !is_pull,
        print: Print::Body,
    };
    while let Some(word) = args.next()? {
        let name = match &word {
            Word::Option(name) => name.as_str(),
            Word::Value(value) if source.is_none() => {
                source = Some(typed_sources(value));
                continue;
            }
            Word::Value(_) => return Err(args.unknown(&word)),
        };
        match name {
            "-a" | "--addr" => options.addr = args.value()?,
            "-n" | "--count" => options.count = Some(args.count(1)?),
            "-w" | "--wait" if is_pull => options.wait_us = args.duration_us()?,
            "--ack" if is_pull => options.ack = true,
            "--no-ack" if !is_pull => options.ack = false,
            "--credit" if !is_pull => options.credit = Some(args.count(1)?),
            "--lease" => options.lease_us = Some(args.duration_us()?),
            "--from" => options.from = Some(typed_value(&args.value()?)),
            "--handles" => options.print = Print::HandleAndBody,
            "--json" => options.print = Print::Json,
            _ => return Err(args.unknown(&word)),
        }
    }
    let example = format!("name the queue, as in ringmq {command} jobs");
    options.source = source.ok_or_else(|| args.usage(example))?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing() {
        let message = Message {
            source: "jobs".to_owned(),
            handle: Some("1.2.3".to_owned()),
            fields: vec![
                ("try".to_owned(), b"2".to_vec()),
                ("key".to_owned(), b"7".to_vec()),
            ],
            body: b"a \"b\"".to_vec(),
        };
        let printed = |how: Print| {
            let mut out = Vec::new();
            print(&mut out, &message, how).expect("a Vec takes all");
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(printed(Print::Body), "a \"b\"\n");
        assert_eq!(printed(Print::HandleAndBody), "1.2.3\ta \"b\"\n");
        assert_eq!(
            printed(Print::Json),
            "{\"source\":\"jobs\",\"handle\":\"1.2.3\",\"try\":2,\"key\":\"7\",\"body\":\"a \\\"b\\\"\"}\n"
        );
    }

    #[test]
    fn options_belong_to_their_command() {
        let refused = |command: &'static str, words: &[&str]| {
            parse(command, lexopt::Parser::from_args(words)).is_err()
        };
        assert!(!refused(
            "pull",
            &["jobs", "-n", "10", "--wait", "5s", "--ack"]
        ));
        assert!(refused("pull", &["jobs", "--credit", "1"]));
        assert!(!refused("sub", &["jobs", "--credit", "1", "--no-ack"]));
        assert!(refused("sub", &["jobs", "--wait", "1s"]));
        assert!(refused("sub", &["jobs", "more"]));
        assert!(refused("pull", &[]));
    }
}
