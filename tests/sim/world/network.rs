//! The clients' acts, and the sockets between them and the broker.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::{Event, Socket, World};
use crate::broker::Key;
use crate::client::Act;
use crate::command::{Command, Kind};
use crate::dialect::Dialect;

impl World {
    pub(super) fn act(&mut self, client: usize) {
        if self.draining || self.resting {
            return;
        }
        let pause = self.rng.spread(200, self.plan.think_us);
        let at = self.now + pause;
        self.schedule(at, Event::Act(client));
        if self.broker.is_none() || self.stopping.is_some() {
            return;
        }
        let Some(socket) = self.current[client] else {
            self.connect(client);
            return;
        };
        if self.sockets[socket].paused {
            // What it has popped and not read must come back.
            if self.sockets[socket].dialect == Dialect::Resp && self.rng.chance(300) {
                self.perform(client, socket, Act::Reset);
            }
            return;
        }
        let theme = self.plan.theme.clone();
        let wall_us = self.wall_us();
        let acts = self.clients[client].act(&theme, &mut self.oracle, wall_us);
        for act in acts {
            self.perform(client, socket, act);
        }
    }

    pub(super) fn connect(&mut self, client: usize) -> Option<usize> {
        let now = self.clock();
        let shard = self.broker.as_mut()?;
        let key = shard.handle_accept("127.0.0.1:1", now)?;
        let client_of = self.clients.get(client);
        let dialect = client_of.map_or(Dialect::Text, |client| client.dialect);
        let socket = self.oracle.connected(dialect);
        assert_eq!(
            socket,
            self.sockets.len(),
            "the oracle numbers connections as the world does"
        );
        self.sockets.push(Socket {
            key,
            client,
            dialect,
            open: true,
            flying: VecDeque::new(),
            inbound: VecDeque::new(),
            ends: VecDeque::new(),
            typed: 0,
            fed: 0,
            fin_typed: false,
            fin_arrived: false,
            fin_told: false,
            readable: true,
            last_arrival: self.now,
            paused: false,
            room: usize::MAX,
            blocked: false,
        });
        self.trace
            .note(self.now, || format!("client {client} connects as {socket}"));
        if let Some(current) = self.current.get_mut(client) {
            *current = Some(socket);
            self.clients[client].connected();
        }
        Some(socket)
    }

    fn perform(&mut self, client: usize, socket: usize, act: Act) {
        match act {
            Act::Type(command) => {
                self.type_command(socket, command);
            }
            Act::HalfClose => {
                self.trace
                    .note(self.now, || format!("{socket} half-closes"));
                self.sockets[socket].fin_typed = true;
                let at = self.sockets[socket].last_arrival + 1;
                self.schedule(at, Event::Fin(socket));
            }
            Act::Reset => {
                self.trace.note(self.now, || format!("{socket} resets"));
                self.reset(socket);
                self.current[client] = None;
            }
            Act::Pause(us) => {
                let room = self.rng.spread(1, 20_000) as usize;
                self.sockets[socket].paused = true;
                self.sockets[socket].room = room;
                let at = self.now + us;
                self.schedule(at, Event::Unpause(socket));
            }
        }
    }

    pub(super) fn reset(&mut self, socket: usize) {
        if !self.sockets[socket].open {
            return;
        }
        self.sockets[socket].open = false;
        let now = self.clock();
        if let Some(shard) = &mut self.broker {
            shard.handle_reset(self.sockets[socket].key, now);
        }
        self.oracle.closed(socket, false, self.now);
    }

    /// Sends a command on its way, in pieces. Gives its number.
    pub(super) fn type_command(&mut self, socket: usize, command: Command) -> usize {
        let octets = self.sockets[socket].dialect.typed(&command, &mut self.rng);
        // What closes the connection may do so as soon as enough of it is there.
        let early = matches!(command.kind, Kind::Bad { closes: true, .. });
        let number = self.oracle.typed(socket, command);
        let shown = &octets[..octets.len().min(300)];
        self.trace
            .note_octets(self.now, || format!("{socket} types {number}"), shown);
        self.sockets[socket].typed += octets.len() as u64;
        let begin = self.sockets[socket].typed - octets.len() as u64;
        let end = if early {
            begin + 1
        } else {
            self.sockets[socket].typed
        };
        self.sockets[socket].ends.push_back((end, number));
        self.sockets[socket].flying.extend(octets.iter().copied());
        let mut left = octets.len();
        let mut together = (0, 0);
        while left > 0 {
            let piece = match self.plan.chunk_bytes_max {
                1 => 1,
                most => self.rng.spread(1, most as u64) as usize,
            };
            let piece = match self.rng.chance(self.plan.whole_per_mille) {
                true => left,
                false => piece.min(left),
            };
            let delay = match self.rng.chance(300) {
                true => self.rng.spread(1, self.plan.network_us),
                false => 0,
            };
            let at = self.sockets[socket].last_arrival.max(self.now) + delay;
            self.sockets[socket].last_arrival = at;
            // What arrives at one moment is one arrival.
            if at > together.0 && together.1 > 0 {
                self.schedule(together.0, Event::Arrive(socket, together.1));
                together.1 = 0;
            }
            together = (at, together.1 + piece);
            left -= piece;
        }
        self.schedule(together.0, Event::Arrive(socket, together.1));
        number
    }

    pub(super) fn find(&self, key: Key) -> Option<usize> {
        let mut sockets = self.sockets.iter().enumerate().rev();
        sockets
            .find(|(_, socket)| socket.open && socket.key == key)
            .map(|found| found.0)
    }

    pub(super) fn feed(&mut self, socket: usize) {
        let now = self.clock();
        while !self.sockets[socket].inbound.is_empty() {
            let Some(shard) = &mut self.broker else {
                return;
            };
            let end = &mut self.sockets[socket];
            let Some(mut room) = shard.receive_room(end.key) else {
                end.readable = false;
                return;
            };
            assert!(room.bytes() > 0, "no room is None");
            let count = room.fill(end.inbound.make_contiguous());
            end.inbound.drain(..count);
            end.fed += count as u64;
            while let Some((at, command)) = end.ends.front().copied() {
                if at > end.fed {
                    break;
                }
                end.ends.pop_front();
                self.trace.note(self.now, || format!("{command} arrives"));
                self.oracle.arrived(command, self.now);
                if matches!(self.oracle.command(command).kind, Kind::Commit)
                    && let Some(mode) = self.crash_in_commit.take()
                {
                    self.crash_mode = mode;
                    let at = self.disk.ops() + self.rng.below(3);
                    self.disk.set_faults(|faults| faults.crash_at = Some(at));
                }
            }
            shard.handle_received(self.sockets[socket].key, count, now);
            if self.disk.crashed() {
                return;
            }
        }
        let end = &mut self.sockets[socket];
        if end.fin_arrived && !end.fin_told && end.flying.is_empty() {
            end.fin_told = true;
            self.oracle.half_closed(socket, self.now);
            if let Some(shard) = &mut self.broker {
                shard.handle_half_close(self.sockets[socket].key, now);
            }
        }
    }

    /// Offers a connection's output to its socket.
    pub(super) fn write(&mut self, socket: usize) {
        let now = self.clock();
        let key = self.sockets[socket].key;
        loop {
            let Some(shard) = &mut self.broker else {
                return;
            };
            let mut slices = [IoSlice::new(&[]); 64];
            let filled = shard.output(key, &mut slices);
            let offered: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
            if offered == 0 {
                break;
            }
            let room = self.sockets[socket].room;
            let count = offered.min(room);
            if count > 0 {
                let mut octets = Vec::with_capacity(offered);
                slices[..filled]
                    .iter()
                    .for_each(|slice| octets.extend_from_slice(slice));
                octets.truncate(count);
                if room != usize::MAX {
                    self.sockets[socket].room -= count;
                }
                if count < offered {
                    self.oracle.blocked(socket, self.now);
                }
                self.received(socket, &octets);
                let Some(shard) = &mut self.broker else {
                    return;
                };
                let more = shard.handle_sent(key, count, now);
                if count == offered {
                    match more {
                        true => continue,
                        false => break,
                    }
                }
            }
            self.sockets[socket].blocked = true;
            self.oracle.blocked(socket, self.now);
            return;
        }
        self.sockets[socket].blocked = false;
        self.oracle.unblocked(socket, self.now);
    }

    /// Tells the broker how much of its output the client's TCP has not acknowledged: all that the client
    /// was sent it has read, but an acknowledgement may be late.
    pub(super) fn acknowledge(&mut self, socket: usize) {
        let now = self.clock();
        let bytes = usize::from(self.rng.chance(300));
        let key = self.sockets[socket].key;
        self.trace.note(self.now, || {
            format!("{socket} has not acknowledged {bytes} octets")
        });
        if let Some(shard) = &mut self.broker {
            shard.handle_unacknowledged(key, bytes, now);
        }
        if bytes == 0 {
            self.oracle.acknowledged(socket, self.now);
        }
    }

    fn received(&mut self, socket: usize, octets: &[u8]) {
        let shown = &octets[..octets.len().min(60_000)];
        self.trace
            .note_octets(self.now, || format!("{socket} is sent"), shown);
        let client = self.sockets[socket].client;
        for (command, line) in self.oracle.received(socket, octets, self.now) {
            if let Some(client) = self.clients.get_mut(client) {
                let command = command.map(|command| self.oracle.command(command));
                client.line(command, &line);
            }
        }
    }

    pub(super) fn close(&mut self, socket: usize) {
        self.trace.note(self.now, || format!("{socket} is closed"));
        self.sockets[socket].open = false;
        if self.disk_failures() > 0 {
            // It may be giving up: every connection is told what is known, and closed.
            self.oracle.giving_up(socket);
        }
        self.oracle.closed(socket, true, self.now);
        let client = self.sockets[socket].client;
        if let Some(current) = self.current.get_mut(client)
            && *current == Some(socket)
        {
            *current = None;
        }
    }
}
