//! One connection of the generator: bytes on their way out and in, and what is not answered yet.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::net::TcpStream;

use super::plan::Plan;
use super::wire::{Dialect, Replies, Said};

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
    /// Consumer: its oldest pull waits for messages that may never come.
    pub is_waiting: bool,
    /// Consumer: commands that are answered by one `OK`: `SUB` and each `ACK`.
    pub unanswered: u64,
    /// Consumer: to settle.
    handles: Handles,
    /// Consumer: which one it is, from 0.
    pub index: u64,
    /// The server has asked whether somebody is there.
    pub owes_pong: bool,
}

/// Handles of messages, in the order they came.
#[derive(Debug, Default)]
pub struct Handles {
    /// Each with a space in front.
    octets: Vec<u8>,
    /// Where each ends in `octets`.
    ends: Vec<usize>,
}

impl Handles {
    /// Adds one.
    #[inline]
    pub fn push(&mut self, handle: &[u8]) {
        self.octets.push(b' ');
        self.octets.extend_from_slice(handle);
        self.ends.push(self.octets.len());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Each by itself.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        (0..self.ends.len()).map(|index| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            &self.octets[start + 1..self.ends[index]]
        })
    }

    /// Lists of at most `most`, with a space in front of each handle.
    pub fn spaced(&self, most: usize) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.chunks(most).map(move |ends| {
            let end = ends[ends.len() - 1];
            &self.octets[std::mem::replace(&mut start, end)..end]
        })
    }

    fn clear(&mut self) {
        self.octets.clear();
        self.ends.clear();
    }
}

impl Connection {
    /// A connected, nonblocking stream that was greeted; `index` counts those of its role.
    pub fn new(stream: TcpStream, role: Role, plan: &Plan, index: u64) -> Connection {
        Connection {
            socket: Socket {
                stream,
                output: Vec::new(),
                sent: 0,
                tail: Vec::new(),
                replies: Replies::new(plan, role),
                readable: false,
                writable: true,
            },
            work: Work::new(role, index),
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
    /// Nothing asked for and nothing owed; `index` counts those of its role.
    pub fn new(role: Role, index: u64) -> Work {
        Work {
            role,
            publishes: VecDeque::new(),
            unconfirmed: 0,
            pulls: VecDeque::new(),
            asked: 0,
            is_waiting: false,
            unanswered: 0,
            handles: Handles::default(),
            index,
            owes_pong: false,
        }
    }

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

    /// Takes the publish commands that left together, which were answered at once: when they were
    /// due, and their messages.
    pub fn run_answered(&mut self) -> Option<(u64, u64)> {
        let run = self.publishes.pop_front()?;
        let messages = run.commands * run.messages_each;
        self.unconfirmed -= messages;
        Some((run.due_ns, messages))
    }

    /// Notes a handle to settle.
    #[inline]
    pub fn settle_later(&mut self, handle: &[u8]) {
        self.handles.push(handle);
    }

    /// Appends what settles everything noted, at most `most` with one command; how many messages
    /// are settled by what gets no answer.
    pub fn settle(&mut self, output: &mut Vec<u8>, dialect: &dyn Dialect, most: usize) -> u64 {
        if self.handles.len() == 0 {
            return 0;
        }
        let settling = dialect.settle(output, &self.handles, most);
        self.unanswered += settling.answers;
        self.handles.clear();
        settling.unanswered
    }

    /// Notes that something was asked for.
    pub fn asked(&mut self, messages: u64) {
        self.pulls.push_back(messages);
        self.asked += messages;
    }

    /// Nothing is on its way. A pull that waits holds up the pulls behind it, so none of them need ever
    /// be answered: what they were meant for, others may have got.
    pub fn is_idle(&self) -> bool {
        self.unconfirmed == 0
            && self.unanswered == 0
            && (self.asked == 0 || self.is_waiting)
            && self.handles.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_listed() {
        let mut handles = Handles::default();
        for handle in ["1.1.1", "", "1.3.3"] {
            handles.push(handle.as_bytes());
        }
        let each: Vec<&[u8]> = handles.iter().collect();
        assert_eq!(each, [&b"1.1.1"[..], b"", b"1.3.3"]);
        let lists: Vec<&[u8]> = handles.spaced(2).collect();
        assert_eq!(lists, [&b" 1.1.1 "[..], b" 1.3.3"]);
        handles.clear();
        assert_eq!(handles.iter().chain(handles.spaced(2)).count(), 0);
    }

    #[test]
    fn receipts_belong_to_the_oldest_command() {
        let mut work = Work::new(Role::Producer, 0);
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
        assert_eq!(work.run_answered(), Some((6, 3)));
        assert_eq!((work.answered(), work.run_answered()), (None, None));
        assert!(work.is_idle());
    }

    #[test]
    fn what_stands_behind_a_pull_that_waits_holds_up_no_end() {
        let mut work = Work::new(Role::Consumer, 0);
        work.asked(1);
        assert!(!work.is_idle(), "what does not wait is answered");
        work.is_waiting = true;
        assert!(work.is_idle());
        work.asked(2);
        assert!(work.is_idle());
        work.settle_later(b"1");
        assert!(!work.is_idle());
    }
}
