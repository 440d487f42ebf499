//! Sockets on their way out. Everything was written to them; closing one whose input is not read
//! yet would reset the connection and could destroy the last answers on their way to the peer. So
//! our side is ended, and what the peer still sends is thrown away for a bounded time.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry};
use slab::Slab;

use super::token::Source;

/// How long a peer may take to end its side, microseconds.
pub(super) const LINGER_US_MAX: u64 = 1_000_000;
/// How much input of one socket is thrown away before it is closed all the same, bytes.
const DISCARD_BYTES_MAX: usize = 1 << 20;
#[derive(Debug)]
struct Leaving {
    stream: TcpStream,
    generation: u32,
    /// Input that may still be thrown away, bytes.
    bytes_left: usize,
}

/// All sockets of one reactor that are ended but not closed.
#[derive(Debug)]
pub(super) struct Lingering {
    /// Most sockets; beyond it the oldest is closed.
    count_max: usize,
    leaving: Slab<Leaving>,
    /// Slot, generation and deadline, the earliest first: all wait equally long.
    order: VecDeque<(usize, u32, u64)>,
    generation: u32,
}

impl Lingering {
    pub(super) fn new(count_max: usize) -> Lingering {
        Lingering {
            count_max,
            leaving: Slab::new(),
            order: VecDeque::new(),
            generation: 0,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.leaving.len()
    }

    /// Ends our side of a connection and closes it once the peer has ended its own.
    pub(super) fn add(&mut self, mut stream: TcpStream, registry: &Registry, now_us: u64) {
        let mut bytes_left = DISCARD_BYTES_MAX;
        let waiting =
            stream.shutdown(Shutdown::Write).is_ok() && discard(&mut stream, &mut bytes_left);
        if !waiting {
            close(stream, registry);
            return;
        }
        while !self.leaving.is_empty() && self.leaving.len() >= self.count_max {
            self.close_oldest(registry);
        }
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let slot = self.leaving.vacant_key();
        let token = Source::Lingering { slot, generation }.token();
        // Registering anew reports what has arrived since the read above.
        if registry
            .reregister(&mut stream, token, Interest::READABLE)
            .is_err()
        {
            return;
        }
        self.leaving.insert(Leaving {
            stream,
            generation,
            bytes_left,
        });
        self.order
            .push_back((slot, generation, now_us + LINGER_US_MAX));
    }

    /// An event of one of them.
    pub(super) fn handle_ready(&mut self, slot: usize, generation: u32, registry: &Registry) {
        let Some(leaving) = self.leaving.get_mut(slot) else {
            return;
        };
        if leaving.generation == generation
            && !discard(&mut leaving.stream, &mut leaving.bytes_left)
        {
            close(self.leaving.remove(slot).stream, registry);
        }
    }

    /// Closes those whose time is over.
    pub(super) fn expire(&mut self, registry: &Registry, now_us: u64) {
        while self
            .order
            .front()
            .is_some_and(|(_, _, deadline)| *deadline <= now_us)
        {
            self.close_oldest(registry);
        }
        if self.leaving.is_empty() {
            self.order.clear();
        }
    }

    /// When the next one's time is over, on the clock of `Now::us`.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.order.front().map(|(_, _, deadline)| *deadline)
    }

    fn close_oldest(&mut self, registry: &Registry) {
        if let Some((slot, generation, _)) = self.order.pop_front()
            && self
                .leaving
                .get(slot)
                .is_some_and(|leaving| leaving.generation == generation)
        {
            close(self.leaving.remove(slot).stream, registry);
        }
    }
}

/// Closes a socket for good.
pub(super) fn close(mut stream: TcpStream, registry: &Registry) {
    if let Err(error) = registry.deregister(&mut stream) {
        log::debug!("a socket could not be deregistered: {error}");
    }
}

/// Throws away what has arrived; false when the socket can be closed.
fn discard(stream: &mut TcpStream, bytes_left: &mut usize) -> bool {
    let mut scratch = [0; 16 << 10];
    loop {
        match stream.read(&mut scratch) {
            Ok(0) => return false,
            Ok(count) => match bytes_left.checked_sub(count) {
                Some(left) => *bytes_left = left,
                None => return false,
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
