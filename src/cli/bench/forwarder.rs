//! `ringmq bench forwarder`: one thread that passes fixed frames from producers to consumers, and
//! nothing else. It parses nothing and keeps no state of a message, so what it takes is what
//! sockets and copying alone take: the ceiling that brokers are compared with.
//!
//! The frames are described where the generator writes them, in `wire::frames`.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::cli::error::CliError;

use super::plan::Plan;
use super::wire::frames::{GREETING_BYTES, HEAD_BYTES, MAGIC, Purpose};

const LISTENER: Token = Token(usize::MAX);
/// Bytes read at once from who sends small frames.
const READ_BYTES: usize = 256 << 10;
/// Frames of so many bytes and more are read one at a time.
const LARGE_FRAME_BYTES: usize = 64 << 10;
/// Receipts written with one copy.
const RECEIPTS: [u8; 1024 * HEAD_BYTES] = [b'R'; 1024 * HEAD_BYTES];

/// Serves on the plan's address until the process is ended.
///
/// # Errors
/// `CliError::Failed` when the address cannot be listened on, or polling fails.
pub fn run(plan: &Plan) -> Result<String, CliError> {
    let listener = plan
        .addr
        .parse::<SocketAddr>()
        .map_err(io::Error::other)
        .and_then(TcpListener::bind)
        .map_err(|error| CliError::failed(format!("cannot listen on {}: {error}", plan.addr)))?;
    Forwarder::new(listener)
        .and_then(Forwarder::serve)
        .map_err(|error| CliError::failed(format!("the forwarder: {error}")))?;
    Ok(String::new())
}

/// One connection.
struct Peer {
    stream: TcpStream,
    /// Unknown until the greeting is whole.
    purpose: Option<Purpose>,
    frame_bytes: usize,
    /// Read and not passed on: the first `held` bytes of a greeting or a frame.
    input: Vec<u8>,
    held: usize,
    output: Vec<u8>,
    /// Bytes of `output` that have left.
    sent: usize,
    /// It is in the list of those with output.
    is_listed: bool,
}

struct Forwarder {
    poll: Poll,
    listener: TcpListener,
    /// By token; a place stays empty when its connection has gone.
    peers: Vec<Option<Peer>>,
    /// Tokens of consumers that take turns.
    consumers: Vec<usize>,
    /// Tokens of consumers that get everything.
    fan_out: Vec<usize>,
    /// The consumer whose turn it is.
    turn_of: usize,
    /// Frames for the first consumer that comes.
    kept: Vec<u8>,
    /// Tokens with output.
    listed: Vec<usize>,
}

impl Forwarder {
    fn new(mut listener: TcpListener) -> io::Result<Forwarder> {
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Forwarder {
            poll,
            listener,
            peers: Vec::new(),
            consumers: Vec::new(),
            fan_out: Vec::new(),
            turn_of: 0,
            kept: Vec::new(),
            listed: Vec::new(),
        })
    }

    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; READ_BYTES];
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept()?;
                    continue;
                }
                let token = event.token().0;
                if event.is_writable() {
                    self.list(token);
                }
                if event.is_readable() || event.is_read_closed() {
                    self.receive(token, &mut scratch);
                }
            }
            for token in std::mem::take(&mut self.listed) {
                self.send(token);
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let token = Token(self.peers.len());
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, token, interest)?;
            self.peers.push(Some(Peer {
                stream,
                purpose: None,
                frame_bytes: GREETING_BYTES,
                input: Vec::new(),
                held: 0,
                output: Vec::new(),
                sent: 0,
                is_listed: false,
            }));
        }
    }

    /// Reads until the socket is empty and passes on every whole frame.
    fn receive(&mut self, token: usize, scratch: &mut [u8]) {
        loop {
            let Some(peer) = &mut self.peers[token] else {
                return;
            };
            let (held, frame_bytes) = (peer.held, peer.frame_bytes);
            let mut own = std::mem::take(&mut peer.input);
            // A large frame is received into memory of its own, and nothing beyond its end.
            let is_large = frame_bytes >= LARGE_FRAME_BYTES;
            let buffer = if is_large {
                own.resize(frame_bytes, 0);
                &mut own[..]
            } else {
                scratch[..held].copy_from_slice(&own);
                &mut scratch[..]
            };
            let count = match peer.stream.read(&mut buffer[held..]) {
                Ok(count) if count > 0 => Some(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    peer.input = own;
                    continue;
                }
                Ok(_) | Err(_) => return self.close(token),
            };
            let Some(count) = count else {
                peer.input = own;
                return;
            };
            let (filled, room) = (held + count, buffer.len());
            let whole = filled - filled % frame_bytes;
            if whole > 0 && !self.take(token, &buffer[..whole]) {
                return self.close(token);
            }
            if !is_large {
                own.clear();
                own.extend_from_slice(&scratch[whole..filled]);
            }
            if let Some(peer) = &mut self.peers[token] {
                peer.input = own;
                peer.held = filled - whole;
            }
            // A read that did not fill the space has emptied the socket.
            if filled < room {
                return;
            }
        }
    }

    /// Does what whole frames are for; false when they are no greeting and should be.
    fn take(&mut self, token: usize, whole: &[u8]) -> bool {
        let Some(peer) = &self.peers[token] else {
            return true;
        };
        match peer.purpose {
            // The greeting is alone: its answer is awaited.
            None => return self.greeted(token, whole),
            Some(Purpose::Consume | Purpose::FanOut) => self.write(token, whole),
            Some(purpose) => self.pass_on(token, purpose, whole, whole.len() / peer.frame_bytes),
        }
        true
    }

    /// Takes a greeting over; false when it is none.
    fn greeted(&mut self, token: usize, greeting: &[u8]) -> bool {
        let frame_bytes = greeting
            .last_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes));
        let purpose = Purpose::parse(greeting[8]);
        let (Some(purpose), Some(frame_bytes @ 1..)) = (purpose, frame_bytes) else {
            return false;
        };
        if greeting.len() != GREETING_BYTES || !greeting.starts_with(MAGIC) {
            return false;
        }
        let peer = self.peers[token].as_mut().expect("it has just been read");
        peer.purpose = Some(purpose);
        peer.frame_bytes = match purpose {
            Purpose::Produce | Purpose::Keep => frame_bytes as usize,
            Purpose::Consume | Purpose::FanOut => HEAD_BYTES,
        };
        self.write(token, MAGIC);
        match purpose {
            Purpose::Consume => {
                self.consumers.push(token);
                let kept = std::mem::take(&mut self.kept);
                self.write(token, &kept);
            }
            Purpose::FanOut => self.fan_out.push(token),
            Purpose::Produce | Purpose::Keep => {}
        }
        true
    }

    fn pass_on(&mut self, token: usize, purpose: Purpose, bytes: &[u8], frames: usize) {
        let mut left = frames;
        while left > 0 {
            let some = left.min(RECEIPTS.len() / HEAD_BYTES);
            self.write(token, &RECEIPTS[..some * HEAD_BYTES]);
            left -= some;
        }
        for index in 0..self.fan_out.len() {
            self.write(self.fan_out[index], bytes);
        }
        if !self.consumers.is_empty() {
            self.turn_of = (self.turn_of + 1) % self.consumers.len();
            self.write(self.consumers[self.turn_of], bytes);
        } else if purpose == Purpose::Keep {
            self.kept.extend_from_slice(bytes);
        }
    }

    /// Sends at the turn's end; what is large is sent at once instead of being copied.
    fn write(&mut self, token: usize, mut bytes: &[u8]) {
        const LARGE: usize = 16 << 10;
        let Some(peer) = &mut self.peers[token] else {
            return;
        };
        while bytes.len() >= LARGE && peer.output.is_empty() {
            match peer.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What is broken is seen when it is read.
                Err(_) => break,
            }
        }
        if !bytes.is_empty() {
            peer.output.extend_from_slice(bytes);
            self.list(token);
        }
    }

    fn list(&mut self, token: usize) {
        if let Some(peer) = &mut self.peers[token]
            && !peer.is_listed
            && !peer.output.is_empty()
        {
            peer.is_listed = true;
            self.listed.push(token);
        }
    }

    fn send(&mut self, token: usize) {
        let Some(peer) = &mut self.peers[token] else {
            return;
        };
        peer.is_listed = false;
        while peer.sent < peer.output.len() {
            match peer.stream.write(&peer.output[peer.sent..]) {
                Ok(count) => peer.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if peer.sent >= peer.output.len() / 2 {
                        peer.output.drain(..peer.sent);
                        peer.sent = 0;
                    }
                    return;
                }
                Err(_) => return self.close(token),
            }
        }
        peer.output.clear();
        peer.sent = 0;
    }

    fn close(&mut self, token: usize) {
        self.peers[token] = None;
        self.consumers.retain(|other| *other != token);
        self.fan_out.retain(|other| *other != token);
    }
}

/// Begins a forwarder on a free port, on a thread that ends with the process.
#[cfg(test)]
pub fn start() -> SocketAddr {
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = TcpListener::bind(any).expect("loopback has free ports");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        Forwarder::new(listener)
            .and_then(Forwarder::serve)
            .expect("it serves");
    });
    addr
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::super::wire::frames::greeting;
    use super::*;

    fn connected(addr: SocketAddr, purpose: Purpose) -> TcpStream {
        let mut stream = TcpStream::connect(addr).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a limit above 0");
        stream
            .write_all(&greeting(purpose, 10))
            .expect("it is read");
        assert_eq!(read(&mut stream, 8), MAGIC);
        stream
    }

    fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
        let mut input = vec![0; bytes];
        stream.read_exact(&mut input).expect("it comes");
        input
    }

    #[test]
    fn whole_frames_take_turns() {
        let addr = start();
        let mut first = connected(addr, Purpose::Consume);
        let mut second = connected(addr, Purpose::Consume);
        let mut all = connected(addr, Purpose::FanOut);
        let mut producer = connected(addr, Purpose::Produce);
        producer.write_all(b"Maaaaaaaaa").expect("it is read");
        assert_eq!(read(&mut second, 10), b"Maaaaaaaaa");
        producer.write_all(b"Mbbb").expect("it is read");
        assert_eq!(read(&mut producer, 8), b"RRRRRRRR");
        producer.write_all(b"bbbbbbMc").expect("it is read");
        assert_eq!(read(&mut first, 10), b"Mbbbbbbbbb");
        assert_eq!(read(&mut all, 20), b"MaaaaaaaaaMbbbbbbbbb");
        first.write_all(b"A1234567").expect("it is read");
        assert_eq!(read(&mut first, 8), b"A1234567");
    }

    #[test]
    fn large_frames_are_whole_as_well() {
        const BYTES: usize = LARGE_FRAME_BYTES + 1;
        let addr = start();
        let connected = |purpose| {
            let mut stream = TcpStream::connect(addr).expect("it listens");
            stream
                .write_all(&greeting(purpose, BYTES))
                .expect("it is read");
            assert_eq!(read(&mut stream, 8), MAGIC);
            stream
        };
        let mut consumer = connected(Purpose::Consume);
        let mut producer = connected(Purpose::Produce);
        let frames: Vec<u8> = (0..3 * BYTES).map(|at| (at / 7) as u8).collect();
        let mut reader = consumer.try_clone().expect("it can be cloned");
        let got = std::thread::spawn(move || read(&mut reader, 3 * BYTES));
        producer.write_all(&frames).expect("it is read");
        assert_eq!(read(&mut producer, 24), b"RRRRRRRR".repeat(3));
        assert!(got.join().expect("it was read") == frames);
        consumer.write_all(b"A1234567").expect("it is read");
        assert_eq!(read(&mut consumer, 8), b"A1234567");
    }

    #[test]
    fn kept_frames_go_to_the_first_consumer() {
        let addr = start();
        let mut producer = connected(addr, Purpose::Keep);
        producer.write_all(b"Maaaaaaaaa").expect("it is read");
        assert_eq!(read(&mut producer, 8), b"RRRRRRRR");
        let mut consumer = connected(addr, Purpose::Consume);
        assert_eq!(read(&mut consumer, 10), b"Maaaaaaaaa");
    }

    #[test]
    fn what_is_no_greeting_is_closed() {
        let mut stream = TcpStream::connect(start()).expect("it listens");
        stream.write_all(&[b'x'; 16]).expect("it is read");
        assert_eq!(stream.read(&mut [0; 1]).expect("it is closed"), 0);
    }
}
