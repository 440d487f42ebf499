//! A worker with nothing but the standard library: pulls a job, works on it, settles it.
//!
//! Start a broker with `cargo run --release`, then `cargo run --example worker -- jobs`, and give it
//! work with `ringmq pub jobs 'some work'`. Work that fails is given back with `NACK`; after the
//! queue's `maxdeliver` tries it goes to `jobs.dead`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

fn main() -> io::Result<()> {
    let queue = std::env::args().nth(1).unwrap_or_else(|| "jobs".to_owned());
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut replies = BufReader::new(stream.try_clone()?);
    loop {
        // Waits up to a minute for a message; then 30 seconds to work on it before somebody else
        // gets it.
        writeln!(stream, "PULL {queue} wait=60s lease=30s")?;
        let mut line = read_line(&mut replies)?;
        while let Some(message) = line.strip_prefix("MSG ") {
            // MSG <queue> <handle> [options] $<bytes>
            let words: Vec<&str> = message.split(' ').collect();
            let handle = words.get(1).copied().unwrap_or_default().to_owned();
            let size = words
                .last()
                .and_then(|word| word.strip_prefix('$')?.parse().ok());
            let mut body = vec![0; size.ok_or_else(|| io::Error::other(message.to_owned()))?];
            replies.read_exact(&mut body)?;
            read_line(&mut replies)?;
            let settle = if work(&body) { "ACK" } else { "NACK" };
            writeln!(stream, "{settle} {handle}")?;
            line = read_line(&mut replies)?;
        }
        // `END 1`: one message came. What is next is the answer to ACK or NACK, `OK 1`, unless the
        // lease ended while we worked: then it is `OK 0 stale=…` and somebody else has the message.
        match line.as_str() {
            "END 0" => {}
            "END 1" => println!("settled: {}", read_line(&mut replies)?),
            other => return Err(io::Error::other(other.to_owned())),
        }
    }
}

/// The work itself: here, whatever contains "fail" fails.
fn work(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    println!("working on: {text}");
    !text.contains("fail")
}

/// One line without its end; an error when the broker has gone.
fn read_line(replies: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match replies.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end_matches('\n').to_owned()),
    }
}
