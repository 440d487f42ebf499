//! beanstalkd: `put`, `reserve`, `delete`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::cli::args::count;
use crate::cli::bench::connection::{Handles, Role};
use crate::cli::error::CliError;
use crate::protocol::text::value::decimal;

use super::{Dialect, Said, Settling, ask_line, connect, unexpected};

/// A tube.
#[derive(Debug)]
pub struct Beanstalkd {
    addr: SocketAddr,
    tube: String,
}

impl Beanstalkd {
    /// The tube of that name.
    pub fn new(tube: &str, addr: SocketAddr) -> Beanstalkd {
        Beanstalkd {
            addr,
            tube: tube.to_owned(),
        }
    }

    /// One command whose answer is `OK <bytes>` and a text; empty when there is no such tube.
    fn text(&self, command: &str) -> Result<String, CliError> {
        let exchange = || -> io::Result<String> {
            let mut stream = connect(self.addr)?;
            let answer = ask_line(&mut stream, command.as_bytes())?;
            if answer == "NOT_FOUND" {
                return Ok(String::new());
            }
            let size = answer.strip_prefix("OK ").and_then(count);
            let size = size.ok_or_else(|| unexpected(&answer))?;
            let mut text = vec![0; size as usize];
            stream.read_exact(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        exchange().map_err(|error| super::unreachable("beanstalkd", self.addr, &error))
    }
}

/// The value of a line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Reads until `counted` has counted `wanted` answers.
fn answers(
    stream: &mut TcpStream,
    wanted: u64,
    mut counted: impl FnMut(Said<'_>) -> u64,
) -> io::Result<()> {
    let (mut input, mut scratch, mut got) = (Vec::new(), vec![0; 1 << 20], 0);
    while got < wanted {
        let count = stream.read(&mut scratch)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.extend_from_slice(&scratch[..count]);
        let taken = read(&input, |said| got += counted(said));
        input.drain(..taken);
    }
    Ok(())
}

impl Dialect for Beanstalkd {
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize) {
        let head = format!("put 0 0 3600 {}\r\n", body.len());
        ([head.as_bytes(), body, b"\r\n"].concat(), head.len())
    }

    /// None of these waits, as commands behind one that does are held up.
    fn pull(&self, out: &mut Vec<u8>, messages: u64) {
        for _ in 0..messages {
            out.extend_from_slice(b"reserve-with-timeout 0\r\n");
        }
    }

    fn wait(&self, out: &mut Vec<u8>, _messages: u64) -> u64 {
        out.extend_from_slice(b"reserve\r\n");
        1
    }

    fn settle(&self, out: &mut Vec<u8>, handles: &Handles, _most: usize) -> Settling {
        for handle in handles.iter() {
            out.extend_from_slice(b"delete ");
            out.extend_from_slice(handle);
            out.extend_from_slice(b"\r\n");
        }
        Settling {
            answers: handles.len() as u64,
            unanswered: 0,
        }
    }

    fn greet(&self, stream: &mut TcpStream, role: Role) -> io::Result<()> {
        if role == Role::Producer {
            let answer = ask_line(stream, format!("use {}\r\n", self.tube).as_bytes())?;
            return match answer.starts_with("USING ") {
                true => Ok(()),
                false => Err(unexpected(answer)),
            };
        }
        for command in [
            format!("watch {}\r\n", self.tube),
            "ignore default\r\n".into(),
        ] {
            let answer = ask_line(stream, command.as_bytes())?;
            if !answer.starts_with("WATCHING ") {
                return Err(unexpected(answer));
            }
        }
        Ok(())
    }

    fn prepare(&mut self, _own: bool) -> Result<String, CliError> {
        let stats = self.text("stats\r\n")?;
        let version = field(&stats, "version").unwrap_or("unknown");
        Ok(format!("beanstalkd/{}", version.trim_matches('"')))
    }

    fn held(&self) -> Result<Option<u64>, CliError> {
        let stats = self.text(&format!("stats-tube {}\r\n", self.tube))?;
        let told = |name: &str| field(&stats, name).and_then(count).unwrap_or(0);
        Ok(Some(
            told("current-jobs-ready") + told("current-jobs-reserved"),
        ))
    }

    /// Takes and deletes what is left, since a tube cannot be deleted.
    fn clean_up(&self) -> Result<(), CliError> {
        const TOGETHER: u64 = 1000;
        let empty = || -> io::Result<()> {
            let mut stream = connect(self.addr)?;
            self.greet(&mut stream, Role::Consumer)?;
            loop {
                let mut handles = Handles::default();
                stream.write_all(&b"reserve-with-timeout 0\r\n".repeat(TOGETHER as usize))?;
                answers(&mut stream, TOGETHER, |said| match said {
                    Said::Message { handle, .. } => {
                        handles.push(handle);
                        0
                    }
                    _ => 1,
                })?;
                let is_empty = (handles.len() as u64) < TOGETHER;
                let mut out = Vec::new();
                let deletes = self.settle(&mut out, &handles, 1).answers;
                stream.write_all(&out)?;
                answers(&mut stream, deletes, |_| 1)?;
                if is_empty {
                    return Ok(());
                }
            }
        };
        empty().map_err(|error| CliError::failed(format!("cannot empty the tube: {error}")))
    }
}

/// Tells the whole replies; they have no state.
#[inline]
pub fn read(input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
    let mut at = 0;
    while let Some(length) = memchr::memchr(b'\n', &input[at..]) {
        let line = &input[at..at + length.saturating_sub(1)];
        let next = at + length + 1;
        if line.starts_with(b"INSERTED ") {
            tell(Said::Receipts(1));
        } else if line == b"TIMED_OUT" {
            tell(Said::End);
        } else if line == b"DELETED" {
            tell(Said::Settled(1));
        } else if let Some(rest) = line.strip_prefix(b"RESERVED ") {
            let space = memchr::memchr(b' ', rest).unwrap_or(0);
            let Some(size) = decimal(&rest[(space + 1).min(rest.len())..]) else {
                tell(Said::Refused(line));
                at = next;
                continue;
            };
            let size = size as usize;
            let Some(body) = input.get(next..next + size + 2) else {
                return at;
            };
            tell(Said::Message {
                handle: &rest[..space],
                again: false,
                body: &body[..size],
            });
            tell(Said::End);
            at = next + size + 2;
            continue;
        } else {
            tell(Said::Refused(line));
        }
        at = next;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::super::Replies;
    use super::super::testing::{handles, nowhere, published, said, written};
    use super::*;

    #[test]
    fn replies() {
        let input = b"INSERTED 7\r\nRESERVED 12 3\r\na\nb\r\nDELETED\r\nRESERVED 13 0\r\n\r\n\
            TIMED_OUT\r\nNOT_FOUND\r\nRESERVED\r\nRESERVED 4\r\n";
        assert_eq!(
            said(|| Replies::Beanstalkd, input),
            [
                "Receipts(1)",
                "12 a\nb",
                "end",
                "Settled(1)",
                "13 ",
                "end",
                "end",
                "refused NOT_FOUND",
                "refused RESERVED",
                "refused RESERVED 4"
            ]
        );
    }

    #[test]
    fn commands() {
        let tube = Beanstalkd::new("q", nowhere());
        assert_eq!(
            published(&tube, 18, 1),
            "put 0 0 3600 18\r\n0000000000000000qr\r\n"
        );
        assert_eq!(
            written(|out| tube.pull(out, 2)),
            "reserve-with-timeout 0\r\n".repeat(2)
        );
        let settled = written(|out| {
            let settling = tube.settle(out, &handles(&[b"1", b"22"]), 100);
            assert_eq!((settling.answers, settling.unanswered), (2, 0));
        });
        assert_eq!(settled, "delete 1\r\ndelete 22\r\n");
    }

    #[test]
    fn fields_of_a_text() {
        let text = "---\nname: q\ncurrent-jobs-ready: 12\n";
        assert_eq!(field(text, "current-jobs-ready"), Some("12"));
        assert_eq!(field(text, "current-jobs"), None);
    }
}
