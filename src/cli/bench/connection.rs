//! One connection of the generator: bytes on their way out and in, and what is not answered yet.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::net::TcpStream;

use super::plan::Protocol;
use super::wire::{Replies, Said};

/// One connection, in two halves so that replies can be noted while they are read.
#[derive(Debug)]
pub struct Connection {
    /// The bytes.
    pub socket: Socket,
    /// What they are about.
    pub work: Work,
}

/// The bytes of a connection. Invariant: `sent <= output.len()`.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    /// Commands; those before `sent` have left.
    pub output: Vec<u8>,
    sent: usize,
    /// A reply that is not whole yet.
    tail: Vec<u8>,
    replies: Replies,
    /// There may be something to read.
    pub readable: bool,
    /// The socket may take something.
    pub writable: bool,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Publishes and counts receipts.
    Producer,
    /// Receives and settles.
    Consumer,
}

/// Publish commands that left together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// When they were due, nanoseconds since the part began.
    pub due_ns: u64,
    /// How many commands, at least 1.
    pub commands: u64,
    /// Messages in each of them, at least 1.
    pub messages_each: u64,
}

/// What a connection has asked for and not got yet.
#[derive(Debug)]
pub struct Work {
    /// What it is for.
    pub role: Role,
    /// Producer: publishes without a receipt, oldest first.
    pub publishes: VecDeque<Run>,
    /// Producer: their messages.
    pub unconfirmed: u64,
    /// Consumer: how many messages each open pull asked for, oldest first.
    pub pulls: VecDeque<u64>,
    /// Consumer: their sum.
    pub asked: u64,
    /// Consumer: commands that are answered by one `OK`: `SUB` and each `ACK`.
    pub unanswered: u64,
    /// Consumer: handles to settle, each with a space in front.
    handles: Vec<u8>,
    /// Consumer: where each handle ends in `handles`.
    handle_ends: Vec<usize>,
}

impl Connection {
    /// A connected, nonblocking stream.
    pub fn new(stream: TcpStream, role: Role, protocol: Protocol) -> Connection {
        Connection {
            socket: Socket {
                stream,
                output: Vec::new(),
                sent: 0,
                tail: Vec::new(),
                replies: Replies::new(protocol),
                readable: false,
                writable: true,
            },
            work: Work {
                role,
                publishes: VecDeque::new(),
                unconfirmed: 0,
                pulls: VecDeque::new(),
                asked: 0,
                unanswered: 0,
                handles: Vec::new(),
                handle_ends: Vec::new(),
            },
        }
    }
}

impl Socket {
    /// The stream, to be registered.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Bytes that have not left.
    pub fn output_left(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Reads once into `scratch` and tells the replies.
    ///
    /// # Errors
    /// What the socket said; `UnexpectedEof` when the server has closed.
    pub fn receive(&mut self, scratch: &mut [u8], tell: impl FnMut(Said<'_>)) -> io::Result<()> {
        let held = self.tail.len();
        let count = match self.stream.read(&mut scratch[held..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        scratch[..held].copy_from_slice(&self.tail);
        // A read that does not fill the space has drained the socket; the next bytes bring an
        // event of their own.
        self.readable = held + count == scratch.len();
        let input = &scratch[..held + count];
        let taken = self.replies.read(input, tell);
        self.tail.clear();
        self.tail.extend_from_slice(&input[taken..]);
        if self.tail.len() == scratch.len() {
            return Err(io::Error::other(
                "a reply is larger than the generator can read",
            ));
        }
        Ok(())
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// What the socket said.
    pub fn send(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    // What has left would otherwise pile up while the socket is behind.
                    if self.sent >= 1 << 20 {
                        self.output.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }
}

impl Work {
    /// Notes publish commands that were written.
    pub fn published(&mut self, run: Run) {
        self.unconfirmed += run.commands * run.messages_each;
        self.publishes.push_back(run);
    }

    /// Takes the oldest publish command, which was answered: when it was due, and its messages.
    #[inline]
    pub fn answered(&mut self) -> Option<(u64, u64)> {
        let run = self.publishes.front_mut()?;
        let (due_ns, messages) = (run.due_ns, run.messages_each);
        run.commands -= 1;
        if run.commands == 0 {
            self.publishes.pop_front();
        }
        self.unconfirmed -= messages;
        Some((due_ns, messages))
    }

    /// Notes a handle to settle.
    #[inline]
    pub fn settle_later(&mut self, handle: &[u8]) {
        self.handles.push(b' ');
        self.handles.extend_from_slice(handle);
        self.handle_ends.push(self.handles.len());
    }

    /// Appends `ACK`s of at most `most` handles for everything noted.
    pub fn settle(&mut self, output: &mut Vec<u8>, most: usize) {
        let mut start = 0;
        for ends in self.handle_ends.chunks(most) {
            let end = ends[ends.len() - 1];
            output.extend_from_slice(b"ACK");
            output.extend_from_slice(&self.handles[start..end]);
            output.push(b'\n');
            self.unanswered += 1;
            start = end;
        }
        self.handles.clear();
        self.handle_ends.clear();
    }

    /// Nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.unconfirmed == 0 && self.unanswered == 0 && self.asked == 0 && self.handles.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        Work {
            role: Role::Consumer,
            publishes: VecDeque::new(),
            unconfirmed: 0,
            pulls: VecDeque::new(),
            asked: 0,
            unanswered: 0,
            handles: Vec::new(),
            handle_ends: Vec::new(),
        }
    }

    #[test]
    fn handles_are_settled_in_groups() {
        let mut work = work();
        let mut output = Vec::new();
        work.settle(&mut output, 2);
        assert!(output.is_empty() && work.is_idle());
        for handle in ["1.1.1", "1.2.2", "1.3.3"] {
            work.settle_later(handle.as_bytes());
        }
        assert!(!work.is_idle());
        work.settle(&mut output, 2);
        assert_eq!(output, b"ACK 1.1.1 1.2.2\nACK 1.3.3\n");
        assert_eq!(work.unanswered, 2);
    }

    #[test]
    fn receipts_belong_to_the_oldest_command() {
        let mut work = work();
        work.published(Run {
            due_ns: 5,
            commands: 2,
            messages_each: 10,
        });
        work.published(Run {
            due_ns: 6,
            commands: 1,
            messages_each: 3,
        });
        assert_eq!(work.unconfirmed, 23);
        assert_eq!(work.answered(), Some((5, 10)));
        assert_eq!(work.answered(), Some((5, 10)));
        assert_eq!(work.answered(), Some((6, 3)));
        assert_eq!(work.answered(), None);
        assert!(work.is_idle());
    }
}
