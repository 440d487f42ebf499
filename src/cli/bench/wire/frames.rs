//! Fixed frames, as the forwarder passes them on: what is left of a broker without protocol and
//! state.
//!
//! A connection begins with 16 bytes: `RQFRAMES`, its role, 3 zeroes, the bytes of a frame as a
//! 32-bit number, little-endian; the answer is `RQFRAMES`. A producer then sends frames and gets
//! 8 bytes for each. A consumer gets frames and sends 8 bytes for each settlement, which come back
//! unchanged. A frame is 8 bytes that begin with `M`, then the body; a settlement is `A`, 3 zeroes,
//! and how many messages it is about, 32 bits, little-endian.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::cli::bench::connection::{Handles, Role};
use crate::cli::bench::plan::{Mode, Plan};
use crate::cli::error::CliError;

use super::{Dialect, Said, Settling, connect, unexpected};

/// What a connection begins with.
pub const MAGIC: &[u8; 8] = b"RQFRAMES";
/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 16;
/// Bytes of a receipt and of a settlement, and in front of a body.
pub const HEAD_BYTES: usize = 8;

/// What a connection of the forwarder is for, as its greeting says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Sends frames to one of the consumers; they are dropped when there is none.
    Produce = b'p' as isize,
    /// Sends frames that are kept until there is a consumer.
    Keep = b'k' as isize,
    /// Gets frames in turn with other consumers.
    Consume = b'c' as isize,
    /// Gets every frame.
    FanOut = b'f' as isize,
}

impl Purpose {
    /// The purpose that a greeting names.
    pub fn parse(octet: u8) -> Option<Purpose> {
        let all = [
            Purpose::Produce,
            Purpose::Keep,
            Purpose::Consume,
            Purpose::FanOut,
        ];
        all.into_iter().find(|purpose| *purpose as u8 == octet)
    }
}

/// One size of frames.
#[derive(Debug)]
pub struct Frames {
    addr: SocketAddr,
    mode: Mode,
    body_bytes: usize,
}

impl Frames {
    /// Frames as a plan uses them.
    pub fn new(plan: &Plan, addr: SocketAddr) -> Frames {
        Frames {
            addr,
            mode: plan.mode,
            body_bytes: plan.body_bytes,
        }
    }
}

/// The greeting of a connection.
pub fn greeting(purpose: Purpose, frame_bytes: usize) -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[..8].copy_from_slice(MAGIC);
    greeting[8] = purpose as u8;
    greeting[12..].copy_from_slice(&(frame_bytes as u32).to_le_bytes());
    greeting
}

impl Dialect for Frames {
    fn record(&self, body: &[u8]) -> (Vec<u8>, usize) {
        ([b"M\0\0\0\0\0\0\0", body].concat(), HEAD_BYTES)
    }

    fn settle(&self, out: &mut Vec<u8>, handles: &Handles, most: usize) -> Settling {
        let mut left = handles.len();
        let answers = left.div_ceil(most) as u64;
        while left > 0 {
            let some = left.min(most);
            out.extend_from_slice(b"A\0\0\0");
            out.extend_from_slice(&(some as u32).to_le_bytes());
            left -= some;
        }
        Settling {
            answers,
            unanswered: 0,
        }
    }

    fn greet(&self, stream: &mut TcpStream, role: Role) -> io::Result<()> {
        let purpose = match (role, self.mode) {
            (Role::Consumer, Mode::FanOut) => Purpose::FanOut,
            (Role::Consumer, _) => Purpose::Consume,
            (Role::Producer, Mode::Pull) => Purpose::Keep,
            (Role::Producer, _) => Purpose::Produce,
        };
        stream.write_all(&greeting(purpose, HEAD_BYTES + self.body_bytes))?;
        let mut answer = [0; MAGIC.len()];
        stream.read_exact(&mut answer)?;
        match &answer == MAGIC {
            true => Ok(()),
            false => Err(unexpected(answer)),
        }
    }

    fn prepare(&mut self, _own: bool) -> Result<String, CliError> {
        connect(self.addr)
            .and_then(|mut stream| self.greet(&mut stream, Role::Consumer))
            .map_err(|error| super::unreachable("forwarder", self.addr, &error))?;
        Ok(concat!("forwarder/", env!("CARGO_PKG_VERSION")).to_owned())
    }

    fn held(&self) -> Result<Option<u64>, CliError> {
        Ok(None)
    }

    fn clean_up(&self) -> Result<(), CliError> {
        Ok(())
    }
}

/// Reads what the forwarder sends.
#[derive(Debug)]
pub struct Replies {
    /// Receipts come to a producer, frames and settlements to a consumer.
    pub role: Role,
    /// Of every frame.
    pub body_bytes: usize,
}

impl Replies {
    /// Tells what is whole.
    #[inline]
    pub fn read(&self, input: &[u8], mut tell: impl FnMut(Said<'_>)) -> usize {
        if self.role == Role::Producer {
            let receipts = input.len() / HEAD_BYTES;
            if receipts > 0 {
                tell(Said::Receipts(receipts as u64));
            }
            return receipts * HEAD_BYTES;
        }
        let mut at = 0;
        while let Some(head) = input.get(at..at + HEAD_BYTES) {
            if head[0] == b'A' {
                let messages = u32::from_le_bytes(head[4..].try_into().expect("4 of 8 bytes"));
                tell(Said::Settled(u64::from(messages)));
                at += HEAD_BYTES;
                continue;
            }
            if head[0] != b'M' {
                tell(Said::Refused(
                    b"the forwarder has lost the beginning of a frame",
                ));
            }
            let body_at = at + HEAD_BYTES;
            let Some(body) = input.get(body_at..body_at + self.body_bytes) else {
                return at;
            };
            tell(Said::Message {
                handle: b"-",
                again: false,
                body,
            });
            at = body_at + self.body_bytes;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{handles, nowhere, plan, published, said, written};
    use super::*;

    #[test]
    fn replies() {
        let read = |role, input: &[u8]| {
            let replies = || Replies {
                role,
                body_bytes: 3,
            };
            said(|| super::super::Replies::Frames(replies()), input)
        };
        assert_eq!(
            read(
                Role::Consumer,
                b"M.......abcA...\x02\x00\x00\x00M.......def"
            ),
            ["- abc", "Settled(2)", "- def"]
        );
        let replies = Replies {
            role: Role::Producer,
            body_bytes: 3,
        };
        let mut told = Vec::new();
        let taken = replies.read(&[0; 20], |said| told.push(format!("{said:?}")));
        assert_eq!((taken, told), (16, vec!["Receipts(2)".to_owned()]));
    }

    #[test]
    fn commands() {
        let frames = Frames::new(&plan("e2e --frames x:1"), nowhere());
        assert_eq!(published(&frames, 18, 1), "M00000000000000000000000qr");
        let three = handles(&[b"-", b"-", b"-"]);
        let settled = written(|out| assert_eq!(frames.settle(out, &three, 2).answers, 2));
        assert_eq!(settled, "A\0\0\0\x02\0\0\0A\0\0\0\x01\0\0\0");
    }

    #[test]
    fn a_greeting_names_its_purpose() {
        let greeting = greeting(Purpose::FanOut, 0x0102);
        assert_eq!(&greeting, b"RQFRAMESf\0\0\0\x02\x01\0\0");
        assert_eq!(Purpose::parse(greeting[8]), Some(Purpose::FanOut));
        assert_eq!(Purpose::parse(b'x'), None);
    }
}
