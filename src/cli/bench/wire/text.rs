//! The line protocol: `PUB`, `MPUB`, `CAST`; `SUB`, `PULL`; `ACK`.

use std::io;
use std::net::TcpStream;

use crate::broker::id::Level;
use crate::cli::args::count;
use crate::cli::bench::connection::{Handles, Role};
use crate::cli::bench::plan::{Mode, Plan};
use crate::cli::error::CliError;
use crate::client::{Connection, typed_name};
use crate::protocol::text::value::decimal;

use super::{Dialect, Said, Settling, ask_line, push_decimal, unexpected};

/// Lease of a queue made for a run: long enough that nothing comes back during it.
const LEASE: &str = "1h";

/// A queue, or a topic for a fan-out.
#[derive(Debug)]
pub struct Text {
    addr: String,
    /// As typed.
    queue: String,
    fan_out: bool,
    single: bool,
    quiet_acks: bool,
    durable: Option<Level>,
}

impl Text {
    /// The queue of that name as a plan uses it.
    pub fn new(plan: &Plan, queue: &str) -> Text {
        Text {
            addr: plan.addr.clone(),
            queue: typed_name(queue),
            fan_out: plan.mode == Mode::FanOut,
            single: plan.batch == 1,
            quiet_acks: plan.quiet_acks,
            durable: plan.durable,
        }
    }

    fn open(&self) -> Result<Connection, CliError> {
        Ok(Connection::open(&self.addr)?)
    }
}

impl Dialect for Text {
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize) {
        let verb = if self.fan_out { "CAST" } else { "PUB" };
        let head = match self.single {
            true => format!("{verb} {} ${}\n", self.queue, body.len()),
            false => format!("{}\n", body.len()),
        };
        ([head.as_bytes(), body, b"\n"].concat(), head.len())
    }

    fn batch_head(&self, out: &mut Vec<u8>, _messages: u64, bytes: u64) {
        out.extend_from_slice(b"MPUB ");
        out.extend_from_slice(self.queue.as_bytes());
        out.extend_from_slice(b" $");
        push_decimal(out, bytes);
        out.push(b'\n');
    }

    fn batch_tail(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
    }

    fn subscribe(&self, out: &mut Vec<u8>, credit: u64) -> u64 {
        out.extend_from_slice(b"SUB ");
        out.extend_from_slice(self.queue.as_bytes());
        if self.fan_out {
            out.extend_from_slice(b" mode=live\n");
            return 1;
        }
        out.extend_from_slice(b" credit=");
        push_decimal(out, credit);
        out.push(b'\n');
        1
    }

    fn pull(&self, out: &mut Vec<u8>, messages: u64) {
        out.extend_from_slice(b"PULL ");
        out.extend_from_slice(self.queue.as_bytes());
        out.push(b' ');
        push_decimal(out, messages);
        out.push(b'\n');
    }

    fn wait(&self, out: &mut Vec<u8>, messages: u64) -> u64 {
        out.extend_from_slice(b"PULL ");
        out.extend_from_slice(self.queue.as_bytes());
        out.push(b' ');
        push_decimal(out, messages);
        out.extend_from_slice(b" wait=1h\n");
        messages
    }

    fn settle(&self, out: &mut Vec<u8>, handles: &Handles, most: usize) -> Settling {
        let mut settling = Settling::default();
        for list in handles.spaced(most) {
            let verb: &[u8] = if self.quiet_acks { b"ACK!" } else { b"ACK" };
            out.extend_from_slice(verb);
            out.extend_from_slice(list);
            out.push(b'\n');
            settling.answers += 1;
        }
        if self.quiet_acks {
            settling = Settling {
                answers: 0,
                unanswered: handles.len() as u64,
            };
        }
        settling
    }

    fn greet(&self, stream: &mut TcpStream, _role: Role) -> io::Result<()> {
        let answer = ask_line(stream, b"PING\n")?;
        if answer == "PONG" {
            Ok(())
        } else {
            Err(unexpected(answer))
        }
    }

    fn prepare(&mut self, own: bool) -> Result<String, CliError> {
        let mut client = self.open()?;
        client.output().extend_from_slice(b"HELLO 1 name=bench\n");
        let hello = client.expect_ok()?;
        let version = hello
            .split(' ')
            .find_map(|word| word.strip_prefix("server="));
        let mut settings = String::new();
        if own && !self.fan_out {
            settings = format!(" lease={LEASE}");
        }
        if let Some(level) = self.durable {
            settings += &format!(" durable={}", level.setting());
        }
        if !settings.is_empty() {
            let command = format!("QSET {}{settings}\n", self.queue);
            client.output().extend_from_slice(command.as_bytes());
            client.expect_ok()?;
        }
        Ok(version.unwrap_or("unknown").to_owned())
    }

    fn held(&self) -> Result<Option<u64>, CliError> {
        if self.fan_out {
            return Ok(None);
        }
        let mut client = self.open()?;
        let command = format!("QGET {}\n", self.queue);
        client.output().extend_from_slice(command.as_bytes());
        let data = client.expect_data()?;
        let text = String::from_utf8_lossy(&data).into_owned();
        let told = |name: &str| {
            let mut words = text.split_whitespace();
            words.find_map(|word| count(word.strip_prefix(name)?.strip_prefix('=')?))
        };
        Ok(told("ready").and_then(|ready| Some(ready + told("leased")?)))
    }

    fn clean_up(&self) -> Result<(), CliError> {
        if self.fan_out {
            return Ok(());
        }
        let mut client = self.open()?;
        let command = format!("QDEL {}\n", self.queue);
        client.output().extend_from_slice(command.as_bytes());
        client.expect_ok()?;
        Ok(())
    }
}

/// Tells the whole replies; they have no state.
#[inline]
pub fn read(input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
    let mut at = 0;
    while let Some(length) = memchr::memchr(b'\n', &input[at..]) {
        let line = &input[at..at + length];
        let next = at + length + 1;
        match line {
            [b'O', b'K', b' ', rest @ ..] => tell(Said::Done(rest)),
            [b'O', b'K'] => tell(Said::Done(&[])),
            [b'M', b'S', b'G', b' ', rest @ ..] => {
                let Some((handle, again, size)) = message_line(rest) else {
                    tell(Said::Refused(line));
                    at = next;
                    continue;
                };
                let Some(body) = input.get(next..next + size + 1) else {
                    return at;
                };
                tell(Said::Message {
                    handle,
                    again,
                    body: &body[..size],
                });
                at = next + size + 1;
                continue;
            }
            [b'E', b'N', b'D', ..] => tell(Said::End),
            _ => tell(Said::Refused(line)),
        }
        at = next;
    }
    at
}

/// Handle, whether it was delivered before, and body size of what follows `MSG `.
#[inline]
fn message_line(rest: &[u8]) -> Option<(&[u8], bool, usize)> {
    let source_end = memchr::memchr(b' ', rest)?;
    let rest = &rest[source_end + 1..];
    let handle_end = memchr::memchr(b' ', rest)?;
    let options = &rest[handle_end + 1..];
    let dollar = memchr::memrchr(b'$', options)?;
    let size = decimal(&options[dollar + 1..])?;
    let handle = match &rest[..handle_end] {
        b"-" => &[],
        handle => handle,
    };
    let again = options
        .split(|octet| *octet == b' ')
        .any(|word| word.starts_with(b"try="));
    Some((handle, again, usize::try_from(size).ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::Replies;
    use super::super::testing::{handles, plan, published, said, written};
    use super::*;

    #[test]
    fn replies() {
        let input = b"OK 7 mem\nMSG q 1.2.3 $3\na\nb\nMSG q 1.2.4 key=a try=2 $0\n\nEND 2\nOK 1\n\
            MSG q - id=4 $1\nx\nERR FULL retry=5 :it is full\n";
        assert_eq!(
            said(|| Replies::Text, input),
            [
                "done 7 mem",
                "1.2.3 a\nb",
                "1.2.4 again ",
                "end",
                "done 1",
                " x",
                "refused ERR FULL retry=5 :it is full"
            ]
        );
    }

    #[test]
    fn commands() {
        let body = "0000000000000000qr";
        let text = |line: &str| Text::new(&plan(line), "q");
        let one = text("e2e");
        assert_eq!(published(&one, 18, 1), format!("PUB q $18\n{body}\n"));
        assert_eq!(
            published(&text("e2e --batch 2"), 18, 2),
            format!("MPUB q $44\n18\n{body}\n18\n{body}\n\n")
        );
        let cast = text("fanout");
        assert_eq!(published(&cast, 18, 1), format!("CAST q $18\n{body}\n"));
        assert_eq!(written(|out| one.pull(out, 12)), "PULL q 12\n");
        assert_eq!(
            written(|out| assert_eq!(one.wait(out, 12), 12)),
            "PULL q 12 wait=1h\n"
        );
        let subscribe = |text: &Text| written(|out| assert_eq!(text.subscribe(out, 5), 1));
        assert_eq!(subscribe(&one), "SUB q credit=5\n");
        assert_eq!(subscribe(&cast), "SUB q mode=live\n");
    }

    #[test]
    fn handles_are_settled_in_groups() {
        let three = handles(&[b"1.1.1", b"1.2.2", b"1.3.3"]);
        let settle = |line: &str, handles: &Handles| {
            let mut out = Vec::new();
            let settling = Text::new(&plan(line), "q").settle(&mut out, handles, 2);
            let text = String::from_utf8(out).expect("ASCII");
            (text, settling.answers, settling.unanswered)
        };
        let acks = "ACK 1.1.1 1.2.2\nACK 1.3.3\n".to_owned();
        assert_eq!(settle("e2e", &three), (acks.clone(), 2, 0));
        let quiet = acks.replace("ACK", "ACK!");
        assert_eq!(settle("e2e --quiet-acks", &three), (quiet, 0, 3));
        assert_eq!(settle("e2e", &handles(&[])), (String::new(), 0, 0));
    }
}
