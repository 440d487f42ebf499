//! A producer that loses nothing and doubles nothing, with nothing but the standard library.
//!
//! `cargo run --example producer -- jobs 1000` publishes a thousand messages, a hundred on the way at
//! once. A message counts as published when its receipt was read. When the connection breaks, what has
//! no receipt is sent again over a new one: each message carries an id of ours (`once=`), so the
//! broker stores it once even if the first attempt had arrived.
#![allow(clippy::disallowed_methods, reason = "a client may read clocks")]

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Messages without a receipt at any time.
const WINDOW: usize = 100;

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let queue = args.next().unwrap_or_else(|| "jobs".to_owned());
    let count = args.next().map_or(Ok(1000), |text| text.parse());
    let count: u64 = count.map_err(io::Error::other)?;
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    // Ids must differ between runs and stay the same within one.
    let run = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros();

    let mut waiting: VecDeque<u64> = VecDeque::new();
    let mut next = 0;
    let mut failures = 0;
    while next < count || !waiting.is_empty() {
        match publish(&addr, &queue, run, count, &mut waiting, &mut next) {
            Ok(()) => {}
            // A refusal will be refused again; everything else may be better in a moment.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(error) if failures < 20 => {
                failures += 1;
                eprintln!("{error}: trying again, {} without a receipt", waiting.len());
                std::thread::sleep(Duration::from_millis(500));
            }
            Err(error) => return Err(error),
        }
    }
    println!("{count} published");
    Ok(())
}

/// Publishes over one connection until everything has a receipt or the connection breaks.
/// `waiting` are the messages that were sent and have none, oldest first.
fn publish(
    addr: &str,
    queue: &str,
    run: u128,
    count: u64,
    waiting: &mut VecDeque<u64>,
    next: &mut u64,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut replies = BufReader::new(stream.try_clone()?);
    let mut commands = Vec::new();
    for number in waiting.iter() {
        write_command(&mut commands, queue, run, *number)?;
    }
    while *next < count || !waiting.is_empty() {
        while *next < count && waiting.len() < WINDOW {
            write_command(&mut commands, queue, run, *next)?;
            waiting.push_back(*next);
            *next += 1;
        }
        // One write for all of them.
        stream.write_all(&commands)?;
        commands.clear();
        // Receipts come in the order of the commands: `OK <id> <level>`, with `dup=1` for a message
        // that had arrived before.
        let mut receipt = String::new();
        if replies.read_line(&mut receipt)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !receipt.starts_with("OK ") {
            let text = receipt.trim_end().to_owned();
            // A broker that is full or going down says when to come again.
            let kind = match text.contains(" retry=") || text.starts_with("ERR UNKNOWNRESULT") {
                true => io::ErrorKind::Other,
                false => io::ErrorKind::InvalidData,
            };
            return Err(io::Error::new(kind, text));
        }
        waiting.pop_front();
    }
    Ok(())
}

/// `PUB <queue> once=<id> $<bytes>`, the body, a line end.
fn write_command(commands: &mut Vec<u8>, queue: &str, run: u128, number: u64) -> io::Result<()> {
    let body = format!("message {number}");
    writeln!(
        commands,
        "PUB {queue} once={run}-{number} ${}\n{body}",
        body.len()
    )
}
