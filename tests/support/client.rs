//! A line client for tests: blocking, with a timeout on every read, strict about what it reads.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing in these tests may take longer to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub source: String,
    pub handle: String,
    pub tries: u32,
    pub body: Vec<u8>,
}

impl Message {
    /// The message's id: the middle number of its handle.
    pub fn id(&self) -> u64 {
        let middle = self.handle.split('.').nth(1);
        middle
            .and_then(|id| id.parse().ok())
            .expect("a handle is n.id.n")
    }
}

pub struct Client {
    reader: BufReader<TcpStream>,
    stream: TcpStream,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).expect("the broker listens")
    }

    pub fn try_connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        Ok(Client {
            reader: BufReader::with_capacity(64 << 10, stream.try_clone()?),
            stream,
        })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// One line without its end. The end of the stream is an error.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8(line).map_err(|_| bad("a line that is not text"))?;
        let known = ["OK", "ER", "MS", "EN", "PO", "DA", "LA", "EX"];
        match line.get(..2) {
            Some(kind) if known.contains(&kind) => Ok(line),
            _ => Err(bad(&format!("a line of no known kind: {line:?}"))),
        }
    }

    /// Sends a command and reads its one line.
    pub fn try_ask(&mut self, command: &str) -> io::Result<String> {
        self.send(format!("{command}\n").as_bytes())?;
        self.line()
    }

    /// Sends a command and reads its one line; the connection must be well.
    pub fn ask(&mut self, command: &str) -> String {
        let answer = self.try_ask(command);
        answer.unwrap_or_else(|error| panic!("{command:?} got {error}"))
    }

    /// The counted bytes that a line ended in `$n` announced, and their line end.
    pub fn counted(&mut self, line: &str) -> io::Result<Vec<u8>> {
        let count = line
            .rsplit(" $")
            .next()
            .and_then(|n| n.parse::<usize>().ok());
        let count = count.ok_or_else(|| bad(&format!("no length in {line:?}")))?;
        let mut body = vec![0; count + 1];
        self.reader.read_exact(&mut body)?;
        match body.pop() {
            Some(b'\n') => Ok(body),
            _ => Err(bad("no line end behind counted bytes")),
        }
    }

    /// The text of a `DATA` answer.
    pub fn data(&mut self, command: &str) -> String {
        let line = self.ask(command);
        assert!(line.starts_with("DATA "), "{command:?} got {line:?}");
        let body = self.counted(&line).expect("the bytes follow");
        String::from_utf8(body).expect("it is text")
    }

    /// Most bytes that the broker keeps for one of its connections that does not read.
    pub fn unsent_bytes_max(&mut self) -> u64 {
        let stats = self.data("STATS conns");
        let unsent = stats
            .split("unsent_bytes=")
            .skip(1)
            .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok())
            .max();
        unsent.unwrap_or_else(|| panic!("no connection tells it: {stats}"))
    }

    /// Bytes of a `PUB` in its counted form.
    pub fn publish_bytes(queue: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = format!("PUB {queue} ${}\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        bytes.push(b'\n');
        bytes
    }

    /// Publishes one message and reads its receipt or error.
    pub fn publish(&mut self, queue: &str, body: &[u8]) -> io::Result<String> {
        self.send(&Client::publish_bytes(queue, body))?;
        self.line()
    }

    /// Reads the messages of one `PULL` up to its `END`.
    pub fn pulled(&mut self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let line = self.line()?;
            if let Some(rest) = line.strip_prefix("MSG ") {
                let words: Vec<&str> = rest.split(' ').collect();
                let tries = words.iter().find_map(|word| word.strip_prefix("try="));
                messages.push(Message {
                    source: words[0].to_owned(),
                    handle: words.get(1).copied().unwrap_or_default().to_owned(),
                    tries: tries.map_or(Ok(1), str::parse).map_err(|_| bad(&line))?,
                    body: self.counted(&line)?,
                });
            } else if line == format!("END {}", messages.len()) {
                return Ok(messages);
            } else {
                return Err(bad(&format!("{line:?} after {} messages", messages.len())));
            }
        }
    }

    /// `PULL` with its options, all of its messages.
    pub fn pull(&mut self, arguments: &str) -> io::Result<Vec<Message>> {
        self.send(format!("PULL {arguments}\n").as_bytes())?;
        self.pulled()
    }

    /// Ends our side.
    pub fn half_close(&self) {
        // The broker may have closed it already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Everything up to the end of the stream; a reset counts as the end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => rest,
            Err(error) => panic!("the connection was not closed: {error}"),
        }
    }

    /// Resets the connection instead of ending it.
    pub fn reset(self) {
        let Client { reader, stream } = self;
        let socket = socket2::Socket::from(stream);
        socket
            .set_linger(Some(Duration::ZERO))
            .expect("a socket takes it");
        drop(reader);
        drop(socket);
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A command of RESP.
pub fn resp_command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}
