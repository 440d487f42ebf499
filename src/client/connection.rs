//! One connection: commands are collected and sent, replies are read one at a time.
//!
//! Nothing is tried again here; [`Client`](super::Client) does that.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::error::Error;
use super::wire::{self, Reply, Tagged};

/// Longest wait for a connection to be made, for each address of a name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much is read at once, bytes.
const READ_BYTES: usize = 64 << 10;
/// How long a write may be held up before what the broker has sent is read. A broker whose output
/// nobody reads takes no more commands, so a client that only wrote would wait for ever.
const WRITE_STALL: Duration = Duration::from_millis(50);
/// Shortest wait that a socket can be given.
const READ_MIN: Duration = Duration::from_millis(1);

/// A connection to a broker, as the line protocol has it: replies come in the order of the
/// commands.
///
/// ```no_run
/// # fn main() -> Result<(), ringmq::client::Error> {
/// let mut connection = ringmq::client::Connection::open("127.0.0.1:7766")?;
/// connection.output().extend_from_slice(b"PUB jobs :one\nPUB jobs :two\n");
/// assert_eq!(connection.expect_ok()?, "1 disk");
/// assert_eq!(connection.expect_ok()?, "2 disk");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    addr: String,
    output: Vec<u8>,
    /// Bytes received and not yet taken: `input[start..]`.
    input: Vec<u8>,
    start: usize,
    /// What the socket was told last.
    read_limit: Option<Duration>,
    /// Longest time in which nothing moves while something is to be sent.
    stall_max: Option<Duration>,
}

impl Connection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// [`Error::Connect`] with what the last of the name's addresses met.
    pub fn open(addr: &str) -> Result<Connection, Error> {
        let failed = |source: io::Error| Error::Connect {
            addr: addr.to_owned(),
            source,
        };
        let resolved = addr.to_socket_addrs().map_err(failed)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolved {
            let opened = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).and_then(prepared);
            match opened {
                Ok(stream) => {
                    return Ok(Connection {
                        stream,
                        addr: addr.to_owned(),
                        output: Vec::new(),
                        input: Vec::new(),
                        start: 0,
                        read_limit: None,
                        stall_max: None,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Where to append commands; they leave with [`Connection::flush`].
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Makes [`Connection::flush`] fail when for so long nothing could be sent and nothing came.
    /// Without it, it waits for ever.
    pub fn stall_at_most(&mut self, limit: Duration) {
        self.stall_max = Some(limit);
    }

    /// Sends what was collected. While the broker takes nothing, what it sends is read.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection is.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.output.is_empty() {
            return Ok(());
        }
        let output = std::mem::take(&mut self.output);
        let sent = self.send(&output);
        self.output = output;
        self.output.clear();
        sent
    }

    fn send(&mut self, mut output: &[u8]) -> Result<(), Error> {
        let mut stalled = Duration::ZERO;
        while !output.is_empty() {
            match self.stream.write(output) {
                Ok(0) => return Err(self.lost(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    output = &output[count..];
                    stalled = Duration::ZERO;
                }
                Err(error) if is_timeout(&error) => {
                    stalled += WRITE_STALL;
                    if self.fill_within(READ_MIN)? {
                        stalled = Duration::ZERO;
                    }
                    if self.stall_max.is_some_and(|limit| stalled >= limit) {
                        return Err(self.lost(io::ErrorKind::TimedOut.into()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.lost(error)),
            }
        }
        Ok(())
    }

    /// Sends what was collected and waits for the next reply, whatever its tag. A limit set by
    /// [`Connection::wait_at_most`] does not end this wait.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection is; [`Error::Protocol`] when the bytes are not the line
    /// protocol.
    pub fn receive(&mut self) -> Result<Reply, Error> {
        self.flush()?;
        loop {
            if let Some(reply) = self.buffered()? {
                return Ok(reply);
            }
            self.fill()?;
        }
    }

    /// A reply that has already arrived, if it is whole.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the bytes are not the line protocol.
    pub fn buffered(&mut self) -> Result<Option<Reply>, Error> {
        Ok(self.buffered_tagged()?.map(|tagged| tagged.reply))
    }

    /// As [`Connection::buffered`], with the reply's tag.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the bytes are not the line protocol.
    pub fn buffered_tagged(&mut self) -> Result<Option<Tagged>, Error> {
        match wire::parse(&self.input[self.start..]) {
            Ok(Some((reply, taken))) => {
                self.start += taken;
                Ok(Some(reply))
            }
            Ok(None) => Ok(None),
            Err(line) => Err(Error::Protocol(format!(
                "{} is not a RingMQ broker: it said '{line}'",
                self.addr
            ))),
        }
    }

    /// Reads what there is. With a limit set by [`Connection::wait_at_most`] it returns false when
    /// nothing came in time.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection is.
    pub fn fill(&mut self) -> Result<bool, Error> {
        self.input.drain(..self.start);
        self.start = 0;
        let held = self.input.len();
        self.input.resize(held + READ_BYTES, 0);
        let read = self.stream.read(&mut self.input[held..]);
        self.input.truncate(held + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(true),
            Err(error) if is_timeout(&error) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// [`Connection::fill`] with a limit for this time and later ones.
    pub(super) fn fill_within(&mut self, limit: Duration) -> Result<bool, Error> {
        self.wait_at_most(limit)?;
        self.fill()
    }

    /// Limits each [`Connection::fill`] from now on; at least a millisecond.
    ///
    /// # Errors
    /// [`Error::Lost`] when the socket does not take it.
    pub fn wait_at_most(&mut self, limit: Duration) -> Result<(), Error> {
        let limit = limit.max(READ_MIN);
        if self.read_limit != Some(limit) {
            let set = self.stream.set_read_timeout(Some(limit));
            set.map_err(|error| self.lost(error))?;
            self.read_limit = Some(limit);
        }
        Ok(())
    }

    /// The next reply, which must be `OK`; what follows the word.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is `ERR`; those of [`Connection::receive`].
    pub fn expect_ok(&mut self) -> Result<String, Error> {
        match self.receive()? {
            Reply::Ok(rest) => Ok(rest),
            other => Err(Error::unexpected(other)),
        }
    }

    /// The next reply, which must be `DATA`.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is `ERR`; those of [`Connection::receive`].
    pub fn expect_data(&mut self) -> Result<Vec<u8>, Error> {
        match self.receive()? {
            Reply::Data(data) => Ok(data),
            other => Err(Error::unexpected(other)),
        }
    }

    /// The error of a connection that cannot be used any more.
    pub(super) fn lost(&self, source: io::Error) -> Error {
        Error::Lost {
            addr: self.addr.clone(),
            source,
        }
    }
}

/// Sets the options of a new socket. A socket that met itself is none: while nobody listens on a port
/// of the range that the system takes for outgoing connections, connecting to it can succeed so.
fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_STALL))?;
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
