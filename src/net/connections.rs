//! The sockets of the connections that the driven side knows, and the reads and writes on them.
//!
//! A table indexed by the slot of the connection's key; the generation tells a slot's users apart,
//! so that an event or a list entry of a connection that is gone finds nobody.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};

use mio::net::TcpStream;
use mio::{Interest, Registry};

use super::Driven;
use super::token::Source;
use super::watch::Ready;
use crate::shard::{ConnKey, Now, Room};

/// Most pieces handed to one write.
const SLICES_MAX: usize = 64;
/// Output written to one connection in one turn before the others get theirs, bytes.
const WRITE_BYTES_MAX: usize = 4 << 20;

/// One socket and what is known about it.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    generation: u32,
    /// There may be input that was not read yet.
    readable: bool,
    /// An event said that the peer's side has ended: a short read does not mean drained.
    read_closed: bool,
    /// An event said that the connection is broken; what has arrived may still be read.
    hung_up: bool,
    /// The end of the input was handed over: nothing is read any more.
    ended: bool,
    /// Stands in `readable`.
    in_readable: bool,
    /// Stands in `writable`.
    in_writable: bool,
    /// The last write fell short; the loop waits for an event to go on.
    blocked: bool,
}

/// How a round of reads ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadEnd {
    /// Nothing is left for now; an event will say when there is.
    Drained,
    /// The connection had its share; there may be more.
    Share,
    /// The driven side does not want more now.
    Paused,
    /// The peer has ended its side.
    Ended,
    /// The connection is broken.
    Broken,
}

/// How a round of writes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteEnd {
    /// All that could be written was.
    Flushed,
    /// The socket takes no more now.
    Full,
    /// The connection had its share; there is more.
    Share,
    /// The connection is broken.
    Broken,
}

/// All connections of one reactor.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Option<Connection>>,
    /// To be read, in this order.
    readable: VecDeque<ConnKey>,
    /// To be written, in this order.
    writable: VecDeque<ConnKey>,
}

impl Connections {
    /// Some socket can be read or written now, without waiting for an event.
    pub(super) fn ready(&self) -> bool {
        !self.readable.is_empty() || !self.writable.is_empty()
    }

    /// Some socket can be written now, without waiting for an event.
    pub(super) fn ready_to_write(&self) -> bool {
        !self.writable.is_empty()
    }

    /// A new connection under the key that the driven side gave it.
    ///
    /// # Errors
    /// If it cannot be polled; the socket is closed then, and the key must be reset.
    pub(super) fn add(
        &mut self,
        key: ConnKey,
        mut stream: TcpStream,
        registry: &Registry,
    ) -> io::Result<()> {
        let token = Source::Connection(key).token();
        registry.register(&mut stream, token, Interest::READABLE)?;
        let slot = key.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        assert!(
            self.slots[slot].is_none(),
            "a slot is given out again only after its close"
        );
        self.slots[slot] = Some(Connection {
            stream,
            generation: key.generation,
            readable: false,
            read_closed: false,
            hung_up: false,
            ended: false,
            in_readable: false,
            in_writable: false,
            blocked: false,
        });
        Ok(())
    }

    /// Takes a connection out; also says whether its input had ended.
    pub(super) fn remove(&mut self, key: ConnKey) -> Option<(TcpStream, bool)> {
        find(&mut self.slots, key)?;
        let connection = self.slots[key.slot as usize].take()?;
        Some((connection.stream, connection.ended))
    }

    /// Takes every connection out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = TcpStream> {
        self.readable.clear();
        self.writable.clear();
        self.slots
            .drain(..)
            .flatten()
            .map(|connection| connection.stream)
    }

    /// An event of one connection.
    pub(super) fn handle_ready(&mut self, key: ConnKey, ready: &Ready) {
        let Some(connection) = find(&mut self.slots, key) else {
            return;
        };
        connection.read_closed |= ready.read_closed;
        // Our side is never ended here, so a closed write half means that the peer reset it.
        connection.hung_up |= ready.hung_up;
        if ready.readable || connection.read_closed || connection.hung_up {
            connection.readable = true;
            list(&mut self.readable, &mut connection.in_readable, key);
        }
        if connection.blocked && (ready.writable || connection.hung_up) {
            list(&mut self.writable, &mut connection.in_writable, key);
        }
    }

    /// The driven side takes input of this connection again.
    pub(super) fn handle_resume(&mut self, key: ConnKey) {
        if let Some(connection) = find(&mut self.slots, key)
            && connection.readable
        {
            list(&mut self.readable, &mut connection.in_readable, key);
        }
    }

    /// Bytes that were written to a connection and that its peer has not acknowledged; `None` if it is not
    /// there, or the system does not tell.
    pub(super) fn unacknowledged(&mut self, key: ConnKey) -> Option<usize> {
        let connection = find(&mut self.slots, key)?;
        super::os::unacknowledged(&connection.stream).ok()
    }

    /// The driven side has output for this connection.
    pub(super) fn handle_output(&mut self, key: ConnKey) {
        if let Some(connection) = find(&mut self.slots, key)
            && !connection.blocked
        {
            list(&mut self.writable, &mut connection.in_writable, key);
        }
    }

    /// Reads those that are listed, each at most `share` bytes, together at most `total` bytes;
    /// the others keep their place in line. `broken` is called for each that must be reset. Returns how many bytes
    /// were read.
    pub(super) fn read<D: Driven>(
        &mut self,
        driven: &mut D,
        limits: ReadLimits,
        now: Now,
        mut broken: impl FnMut(&mut D, TcpStream, ConnKey),
    ) -> usize {
        let mut taken = 0;
        for _ in 0..self.readable.len() {
            if taken >= limits.total {
                break;
            }
            let Some(key) = self.readable.pop_front() else {
                break;
            };
            let Some(connection) = find(&mut self.slots, key) else {
                continue;
            };
            connection.in_readable = false;
            let (count, end) = connection.read(driven, key, limits.share, now);
            taken += count;
            match end {
                ReadEnd::Drained => connection.readable = false,
                ReadEnd::Share => list(&mut self.readable, &mut connection.in_readable, key),
                ReadEnd::Paused => {}
                ReadEnd::Ended => {
                    connection.readable = false;
                    connection.ended = true;
                    driven.handle_half_close(key, now);
                }
                ReadEnd::Broken => {
                    if let Some((stream, _)) = self.remove(key) {
                        broken(driven, stream, key);
                    }
                }
            }
        }
        taken
    }

    /// Writes those that are listed, each once. `broken` is called for each that must be reset.
    pub(super) fn write<D: Driven>(
        &mut self,
        driven: &mut D,
        registry: &Registry,
        now: Now,
        mut broken: impl FnMut(&mut D, TcpStream, ConnKey),
    ) {
        for _ in 0..self.writable.len() {
            let Some(key) = self.writable.pop_front() else {
                return;
            };
            let Some(connection) = find(&mut self.slots, key) else {
                continue;
            };
            connection.in_writable = false;
            let kept = match connection.write(driven, key, now) {
                WriteEnd::Flushed => connection.set_blocked(false, key, registry),
                WriteEnd::Full => connection.set_blocked(true, key, registry),
                WriteEnd::Share => {
                    list(&mut self.writable, &mut connection.in_writable, key);
                    Ok(())
                }
                WriteEnd::Broken => Err(io::ErrorKind::BrokenPipe.into()),
            };
            if kept.is_err()
                && let Some((stream, _)) = self.remove(key)
            {
                broken(driven, stream, key);
            }
        }
    }

    /// Lists every connection to be written, blocked or not.
    pub(super) fn list_all_writable(&mut self) {
        for (slot, connection) in self.slots.iter_mut().enumerate() {
            if let Some(connection) = connection {
                let key = ConnKey {
                    slot: slot as u32,
                    generation: connection.generation,
                };
                list(&mut self.writable, &mut connection.in_writable, key);
            }
        }
    }

    /// Some connection waits for its peer to take output.
    pub(super) fn blocked(&self) -> bool {
        self.slots
            .iter()
            .flatten()
            .any(|connection| connection.blocked)
    }
}

/// How much is read in one turn, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadLimits {
    /// From one connection.
    pub(super) share: usize,
    /// From all together; the last one may take a share more.
    pub(super) total: usize,
}

impl Connection {
    /// Reads until the socket is drained, the share is used up, or the driven side has enough.
    fn read<D: Driven>(
        &mut self,
        driven: &mut D,
        key: ConnKey,
        share: usize,
        now: Now,
    ) -> (usize, ReadEnd) {
        if self.ended {
            // Only a broken connection still has something to say after its end.
            let end = if self.hung_up {
                ReadEnd::Broken
            } else {
                ReadEnd::Drained
            };
            return (0, end);
        }
        let mut taken = 0;
        loop {
            let left = share - taken;
            if left == 0 {
                return (taken, ReadEnd::Share);
            }
            let Some(mut room) = driven.receive_room(key) else {
                let end = if self.hung_up {
                    ReadEnd::Broken
                } else {
                    ReadEnd::Paused
                };
                return (taken, end);
            };
            let wanted = room.bytes().min(left);
            match read_into(&mut self.stream, &mut room, wanted) {
                Ok(0) => {
                    let end = if self.hung_up {
                        ReadEnd::Broken
                    } else {
                        ReadEnd::Ended
                    };
                    return (taken, end);
                }
                Ok(count) => {
                    driven.handle_received(key, count, now);
                    taken += count;
                    if count < wanted && !self.read_closed && !self.hung_up {
                        return (taken, ReadEnd::Drained);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let end = if self.hung_up {
                        ReadEnd::Broken
                    } else {
                        ReadEnd::Drained
                    };
                    return (taken, end);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return (taken, ReadEnd::Broken),
            }
        }
    }

    /// Writes what there is: one call, and further ones only while the socket takes everything.
    fn write<D: Driven>(&mut self, driven: &mut D, key: ConnKey, now: Now) -> WriteEnd {
        let mut written = 0;
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = driven.output(key, &mut slices);
            let slices = &slices[..filled];
            let offered = slices.iter().map(|slice| slice.len()).sum::<usize>();
            if offered == 0 {
                return WriteEnd::Flushed;
            }
            let result = match slices {
                [slice] => self.stream.write(slice),
                slices => self.stream.write_vectored(slices),
            };
            match result {
                Ok(count) => {
                    written += count;
                    let more = driven.handle_sent(key, count, now);
                    if count < offered {
                        return WriteEnd::Full;
                    }
                    if !more {
                        return WriteEnd::Flushed;
                    }
                    if written >= WRITE_BYTES_MAX {
                        return WriteEnd::Share;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return WriteEnd::Full,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return WriteEnd::Broken,
            }
        }
    }

    /// Writable interest is registered only while a write is short, so that a connection in
    /// steady state costs no call for it.
    fn set_blocked(&mut self, blocked: bool, key: ConnKey, registry: &Registry) -> io::Result<()> {
        if self.blocked == blocked {
            return Ok(());
        }
        let interest = if blocked {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        registry.reregister(&mut self.stream, Source::Connection(key).token(), interest)?;
        self.blocked = blocked;
        Ok(())
    }
}

/// Reads up to `wanted` bytes.
fn read_into(stream: &mut TcpStream, room: &mut Room<'_>, wanted: usize) -> io::Result<usize> {
    if let Room::One(space) = room {
        return stream.read(&mut space[..wanted]);
    }
    let mut slices = Room::places();
    let count = room.slices(wanted, &mut slices);
    stream.read_vectored(&mut slices[..count])
}

fn find(slots: &mut [Option<Connection>], key: ConnKey) -> Option<&mut Connection> {
    let connection = slots.get_mut(key.slot as usize)?.as_mut()?;
    (connection.generation == key.generation).then_some(connection)
}

/// Appends a key to a list unless it stands there already.
fn list(keys: &mut VecDeque<ConnKey>, listed: &mut bool, key: ConnKey) {
    if !*listed {
        *listed = true;
        keys.push_back(key);
    }
}
