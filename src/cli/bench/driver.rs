//! The generator: one thread that publishes, receives and settles over many connections.
//!
//! A turn: wait for sockets; read and note what was said; settle, pull and publish as far as the
//! windows allow; write each connection once. The clock is read a few times a turn, not for each
//! message.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::cli::error::CliError;

use super::connection::{Connection, Role, Run};
use super::machine;
use super::plan::{Consume, Plan};
use super::seen::Seen;
use super::tally::{Counts, Latencies, Tally};
use super::wire::Wire;

/// Most bytes read at once, and the largest reply.
const SCRATCH_BYTES: usize = 4 << 20;
/// Output a producer collects before it waits for the socket, bytes.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// How long answers are awaited after a refusal.
const REFUSED_NS: u64 = 1_000_000_000;
/// How often the progress is told.
const PROGRESS_NS: u64 = 100_000_000;

/// Which part of a run this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Producers are at work.
    pub publish: bool,
    /// Consumers are at work.
    pub consume: bool,
    /// Warm-up, duration and rate apply; false for filling a queue.
    pub measured: bool,
    /// Messages, numbered from 0, that are in the queue already.
    pub backlog: u64,
}

/// What a part has measured.
#[derive(Debug)]
pub struct Outcome {
    /// Measured time, nanoseconds.
    pub measured_ns: u64,
    /// Counted while measuring.
    pub measured: Counts,
    /// Counted in the whole part.
    pub total: Counts,
    /// From the time a message was due to its receipt.
    pub receipts: Latencies,
    /// From the time a message was due to its arrival.
    pub arrivals: Latencies,
    /// CPU time of the server while measuring, nanoseconds.
    pub server_cpu_ns: Option<u64>,
    /// CPU time of this process while measuring, nanoseconds.
    pub generator_cpu_ns: u64,
    /// The first receipt's level; empty if there was none.
    pub level: String,
    /// The first refusal, which ended the part.
    pub refused: Option<String>,
    /// Nothing moved for too long.
    pub stalled: bool,
}

/// Told about ten times a second: counts so far, and nanoseconds since the part began.
pub type Progress<'a> = &'a mut dyn FnMut(&Counts, u64);

/// The state of things when the measured time begins or ends.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at_ns: u64,
    counts: Counts,
    server_cpu_ns: Option<u64>,
    generator_cpu_ns: u64,
}

/// One part of a run.
pub struct Driver<'a> {
    plan: &'a Plan,
    part: Part,
    wire: Wire,
    poll: Poll,
    /// Producers first.
    connections: Vec<Connection>,
    tally: Tally<'a>,
    /// The producer that publishes next in an open loop.
    turn_of: usize,
    opened: Option<Mark>,
    closed: Option<Mark>,
    started: Instant,
}

impl<'a> Driver<'a> {
    /// Connects everything that the part needs.
    ///
    /// # Errors
    /// `CliError::Failed` when a connection cannot be made.
    pub fn connect(
        plan: &'a Plan,
        part: Part,
        addr: SocketAddr,
        queue: &str,
        seen: &'a mut Seen,
    ) -> Result<Driver<'a>, CliError> {
        let failed = |error: io::Error| CliError::failed(format!("the generator: {error}"));
        let poll = Poll::new().map_err(failed)?;
        let producers = if part.publish { plan.producers } else { 0 };
        let consumers = if part.consume { plan.consumers } else { 0 };
        let mut connections = Vec::new();
        for index in 0..producers + consumers {
            let stream = connect(addr).map_err(|error| {
                CliError::failed(format!("connection {index} to {addr}: {error}"))
            })?;
            let role = if index < producers {
                Role::Producer
            } else {
                Role::Consumer
            };
            let mut connection = Connection::new(stream, role, plan.protocol);
            let interest = Interest::READABLE | Interest::WRITABLE;
            let stream = connection.socket.stream();
            poll.registry()
                .register(stream, Token(index), interest)
                .map_err(failed)?;
            connections.push(connection);
        }
        Ok(Driver {
            plan,
            part,
            wire: Wire::new(plan.protocol, queue, plan.body_bytes, plan.batch == 1),
            poll,
            connections,
            tally: Tally::new(seen, part.backlog),
            turn_of: 0,
            opened: None,
            closed: None,
            started: Instant::now(),
        })
    }

    /// Runs the part to its end.
    ///
    /// # Errors
    /// `CliError::Failed` when a connection breaks.
    pub fn run(mut self, progress: Progress<'_>) -> Result<Outcome, CliError> {
        self.started = Instant::now();
        let began = self.mark(0);
        self.subscribe();
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut events = Events::with_capacity(1024);
        let (mut told_at, mut moved_at, mut before) = (0, 0, Counts::default());
        let stalled = loop {
            let now_ns = self.now_ns();
            let sending = self.is_sending(now_ns);
            self.measure(now_ns, sending);
            if !sending && self.is_over() {
                break false;
            }
            if now_ns - told_at >= PROGRESS_NS {
                told_at = now_ns;
                progress(&self.tally.counts, now_ns);
            }
            if self.tally.counts != before {
                (moved_at, before) = (now_ns, self.tally.counts);
            }
            let still_ns = now_ns - moved_at;
            if self.tally.refused.is_some() && still_ns > REFUSED_NS {
                break false;
            }
            if still_ns > self.plan.stall_us * 1000 {
                break true;
            }
            self.turn(&mut events, &mut scratch, sending)
                .map_err(|error| broken(&error))?;
        };
        Ok(self.outcome(began, stalled))
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Messages that may still be published.
    fn left(&self) -> u64 {
        let count = self.plan.count.unwrap_or(u64::MAX);
        count.saturating_sub(self.tally.published)
    }

    /// Whether there is still something to publish.
    fn is_sending(&self, now_ns: u64) -> bool {
        let plan = self.plan;
        let over = plan
            .duration_us
            .is_some_and(|duration_us| now_ns >= (plan.warmup_us + duration_us) * 1000);
        self.part.publish
            && self.tally.refused.is_none()
            && self.left() > 0
            && !(self.part.measured && over)
    }

    /// Begins the measured time behind the warm-up, and ends it when the publishing was ended by
    /// the clock; otherwise it ends with the part.
    fn measure(&mut self, now_ns: u64, sending: bool) {
        if self.opened.is_none() && now_ns >= self.plan.warmup_us * 1000 {
            self.opened = Some(self.mark(now_ns));
            self.tally.measuring = true;
        }
        let ended = self.part.publish && !sending && self.left() > 0;
        if ended && self.closed.is_none() {
            self.closed = Some(self.mark(now_ns));
            self.tally.measuring = false;
        }
    }

    fn mark(&self, at_ns: u64) -> Mark {
        Mark {
            at_ns,
            counts: self.tally.counts,
            server_cpu_ns: self.plan.server_pid.and_then(machine::cpu_ns),
            generator_cpu_ns: machine::cpu_ns(std::process::id()).unwrap_or(0),
        }
    }

    /// Everything that was sent is answered, and everything that must arrive has arrived.
    fn is_over(&self) -> bool {
        let expected = self.part.backlog + self.tally.counts.confirmed;
        let arrived = !self.part.consume || self.tally.seen.count() >= expected;
        arrived
            && self
                .connections
                .iter()
                .all(|connection| connection.work.is_idle())
    }

    fn subscribe(&mut self) {
        for Connection { socket, work } in &mut self.connections {
            if work.role == Role::Consumer && self.plan.consume == Consume::Push {
                self.wire.subscribe(&mut socket.output, self.plan.window);
                work.unanswered += 1;
            }
        }
    }

    /// One turn of the generator.
    fn turn(&mut self, events: &mut Events, scratch: &mut [u8], sending: bool) -> io::Result<()> {
        match self.poll.poll(events, Some(self.timeout(sending))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            polled => polled?,
        }
        for event in events.iter() {
            let socket = &mut self.connections[event.token().0].socket;
            socket.readable |= event.is_readable() || event.is_read_closed();
            socket.writable |= event.is_writable();
        }
        let (tally, wire) = (&mut self.tally, &self.wire);
        let now_ns = self.started.elapsed().as_nanos() as u64;
        for Connection { socket, work } in &mut self.connections {
            if socket.readable {
                socket.receive(scratch, |said| tally.note(said, work, wire, now_ns))?;
            }
        }
        tally.settle(now_ns);
        if self.part.consume {
            self.consume();
        }
        if sending {
            match self.plan.rate {
                Some(rate) if self.part.measured => self.publish_due(rate),
                _ => self.publish_all(),
            }
        }
        for Connection { socket, .. } in &mut self.connections {
            if socket.writable && socket.output_left() > 0 {
                socket.send()?;
            }
        }
        Ok(())
    }

    /// How long the poll may sleep: not at all while something is left to read, or due to be sent
    /// within the poll's own resolution.
    fn timeout(&self, sending: bool) -> Duration {
        const LONGEST: Duration = Duration::from_millis(20);
        const RESOLUTION: Duration = Duration::from_millis(2);
        if self.plan.spin || self.connections.iter().any(|it| it.socket.readable) {
            return Duration::ZERO;
        }
        match self.plan.rate {
            Some(rate) if sending && self.part.measured => {
                let due = Duration::from_nanos(due_ns(self.tally.published, rate));
                let left = due.saturating_sub(self.started.elapsed());
                left.saturating_sub(RESOLUTION).min(LONGEST)
            }
            _ => LONGEST,
        }
    }

    /// Settles what has arrived, and asks for what is known to be there.
    fn consume(&mut self) {
        let plan = self.plan;
        let there = self.part.backlog + self.tally.counts.confirmed;
        let mut available = there.saturating_sub(self.tally.counts.delivered + self.tally.asked);
        for Connection { socket, work } in &mut self.connections {
            if work.role != Role::Consumer {
                continue;
            }
            work.settle(&mut socket.output, plan.ack_batch);
            if plan.consume == Consume::Push {
                continue;
            }
            while work.asked < plan.window && available > 0 {
                let wanted = plan.batch.min(available).min(plan.window - work.asked);
                self.wire.pull(&mut socket.output, wanted);
                work.pulls.push_back(wanted);
                work.asked += wanted;
                self.tally.asked += wanted;
                available -= wanted;
            }
        }
    }

    /// Closed loop: every producer publishes until its window is full.
    fn publish_all(&mut self) {
        let now_ns = self.now_ns();
        for index in 0..self.plan.producers {
            let batch = self.plan.batch;
            let wanted = self.left().min(self.backlog_left()) / batch;
            self.publish(index, self.room(index, batch).min(wanted), batch, |_| {
                now_ns
            });
            let rest = self.left();
            if rest > 0 && rest < batch && self.room(index, rest) > 0 {
                self.publish(index, 1, rest, |_| now_ns);
            }
        }
    }

    /// Open loop: what is due is published, each message with the time it was due, and whoever
    /// has room takes it. What finds no room waits, and its latency grows meanwhile.
    fn publish_due(&mut self, rate: u64) {
        let now_ns = self.now_ns();
        let mut full = 0;
        while full < self.plan.producers && self.left() > 0 {
            let messages = self.plan.batch.min(self.left());
            if due_ns(self.tally.published + messages - 1, rate) > now_ns {
                break;
            }
            let index = self.turn_of % self.plan.producers;
            self.turn_of += 1;
            if self.room(index, messages) == 0 {
                full += 1;
                continue;
            }
            full = 0;
            self.publish(index, 1, messages, |number| due_ns(number, rate));
        }
    }

    /// How many more messages may be published before some are received: a queue that grows
    /// without end would measure the memory, not the way through.
    fn backlog_left(&self) -> u64 {
        if !(self.part.publish && self.part.consume) {
            return u64::MAX;
        }
        let inside = self
            .tally
            .published
            .saturating_sub(self.tally.counts.delivered);
        self.plan.backlog.saturating_sub(inside)
    }

    /// How many commands of `messages` each a producer's window and output can take.
    fn room(&self, index: usize, messages: u64) -> u64 {
        let Connection { socket, work } = &self.connections[index];
        let window = self.plan.window.saturating_sub(work.unconfirmed) / messages;
        let bytes = OUTPUT_BYTES_MAX.saturating_sub(socket.output_left()) as u64;
        window.min(bytes.div_ceil(messages * self.plan.body_bytes as u64))
    }

    /// Writes publish commands; `due` tells when a message was due.
    fn publish(
        &mut self,
        index: usize,
        commands: u64,
        messages_each: u64,
        due: impl Fn(u64) -> u64,
    ) {
        if commands == 0 {
            return;
        }
        let Connection { socket, work } = &mut self.connections[index];
        let run = Run {
            due_ns: due(self.tally.published),
            commands,
            messages_each,
        };
        let mut next = self.tally.published;
        for _ in 0..commands {
            if self.plan.batch > 1 {
                self.wire.batch_head(&mut socket.output, messages_each);
            }
            for _ in 0..messages_each {
                self.wire.record(&mut socket.output, next, due(next));
                next += 1;
            }
            if self.plan.batch > 1 {
                self.wire.batch_tail(&mut socket.output);
            }
        }
        self.tally.published = next;
        work.published(run);
    }

    fn outcome(self, began: Mark, stalled: bool) -> Outcome {
        let end = self.mark(self.now_ns());
        // A part that ended within its warm-up is told as a whole.
        let opened = self.opened.unwrap_or(began);
        let closed = self.closed.unwrap_or(end);
        let tally = self.tally;
        Outcome {
            measured_ns: closed.at_ns.saturating_sub(opened.at_ns).max(1),
            measured: closed.counts.since(&opened.counts),
            total: tally.counts,
            receipts: tally.receipts,
            arrivals: tally.arrivals,
            server_cpu_ns: closed
                .server_cpu_ns
                .zip(opened.server_cpu_ns)
                .map(|(closed, opened)| closed.saturating_sub(opened)),
            generator_cpu_ns: closed
                .generator_cpu_ns
                .saturating_sub(opened.generator_cpu_ns),
            level: String::from_utf8_lossy(&tally.level).into_owned(),
            refused: tally.refused,
            stalled,
        }
    }
}

/// When a message of an open loop is due, nanoseconds since the part began.
fn due_ns(number: u64, rate: u64) -> u64 {
    (u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64
}

/// A connected, nonblocking stream without Nagle's delay.
fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = std::net::TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream))
}

/// The sentence for a connection that broke.
fn broken(error: &io::Error) -> CliError {
    CliError::failed(match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            "the server has closed a connection in the middle of the run".to_owned()
        }
        _ => format!("a connection broke in the middle of the run: {error}"),
    })
}
