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
use super::control::Server;
use super::machine;
use super::plan::{Consume, Plan};
use super::seen::Seen;
use super::tally::{Counts, Latencies, Tally};
use super::wire::{Dialect, Receipts, Wire};

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
    /// How long the first tenth of a backlog took to arrive, nanoseconds.
    pub first_tenth_ns: Option<u64>,
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
    wire: Wire<'a>,
    receipts: Receipts,
    poll: Poll,
    /// Producers first.
    connections: Vec<Connection>,
    tally: Tally<'a>,
    /// The producer that publishes next in an open loop.
    turn_of: usize,
    opened: Option<Mark>,
    closed: Option<Mark>,
    first_tenth_ns: Option<u64>,
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
        server: &'a Server,
        seen: &'a mut Seen,
    ) -> Result<Driver<'a>, CliError> {
        let failed = |error: io::Error| CliError::failed(format!("the generator: {error}"));
        let poll = Poll::new().map_err(failed)?;
        let producers = if part.publish { plan.producers } else { 0 };
        let consumers = if part.consume { plan.consumers } else { 0 };
        let dialect = &*server.dialect;
        let mut connections = Vec::new();
        for index in 0..producers + consumers {
            let (role, of_role) = match index.checked_sub(producers) {
                None => (Role::Producer, index),
                Some(consumer) => (Role::Consumer, consumer),
            };
            let stream = connect(server.addr, dialect, role).map_err(|error| {
                let addr = server.addr;
                CliError::failed(format!("connection {index} to {addr}: {error}"))
            })?;
            let mut connection = Connection::new(stream, role, plan, of_role as u64);
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
            wire: Wire::new(dialect, plan.body_bytes),
            receipts: dialect.receipts(),
            poll,
            connections,
            tally: Tally::new(seen, part.backlog, plan.copies()),
            turn_of: 0,
            opened: None,
            closed: None,
            first_tenth_ns: None,
            started: Instant::now(),
        })
    }

    /// Runs the part to its end.
    ///
    /// # Errors
    /// `CliError::Failed` when a connection breaks.
    pub fn run(mut self, progress: Progress<'_>) -> Result<Outcome, CliError> {
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut events = Events::with_capacity(1024);
        self.subscribe();
        if self.part.publish {
            self.await_answers(&mut events, &mut scratch)?;
        }
        self.started = Instant::now();
        let began = self.mark(0);
        let (mut told_at, mut moved_at, mut before) = (0, 0, Counts::default());
        let stalled = loop {
            let now_ns = self.now_ns();
            let sending = self.is_sending(now_ns);
            self.measure(now_ns, sending);
            self.note_first_tenth(now_ns);
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
        let end = self.mark(self.now_ns());
        if !stalled && self.tally.refused.is_none() {
            self.finish(&mut events, &mut scratch)?;
        }
        Ok(self.outcome(began, end, stalled))
    }

    /// Ends the consumers' connections as their server wants it.
    fn finish(&mut self, events: &mut Events, scratch: &mut [u8]) -> Result<(), CliError> {
        for Connection { socket, work } in &mut self.connections {
            if work.role == Role::Consumer {
                work.unanswered += self.wire.dialect.finish(&mut socket.output);
            }
        }
        self.await_answers(events, scratch)
    }

    /// Turns until the consumers' commands are answered. At the beginning, since what is published
    /// before a subscription has begun is lost where nothing is stored; and at the end.
    fn await_answers(&mut self, events: &mut Events, scratch: &mut [u8]) -> Result<(), CliError> {
        let began = Instant::now();
        let is_open = |connection: &Connection| connection.work.unanswered > 0;
        while self.connections.iter().any(is_open) {
            if let Some(line) = &self.tally.refused {
                return Err(CliError::failed(format!("the server refused: {line}")));
            }
            if began.elapsed() > Duration::from_micros(self.plan.stall_us) {
                return Err(CliError::failed("the server does not answer the consumers"));
            }
            self.turn(events, scratch, false)
                .map_err(|error| broken(&error))?;
        }
        Ok(())
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
        let is_early = self.opened.is_none() && self.closed.is_none();
        if is_early && now_ns >= self.plan.warmup_us * 1000 {
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
        let expected = (self.part.backlog + self.tally.counts.confirmed) * self.tally.copies;
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
                let dialect = self.wire.dialect;
                work.unanswered += dialect.subscribe(&mut socket.output, self.plan.window);
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
        // Where messages are asked for, whoever has asked for nothing waits for what is to come.
        let waits = self.part.publish;
        let dialect = self.wire.dialect;
        for Connection { socket, work } in &mut self.connections {
            if std::mem::take(&mut work.owes_pong) {
                dialect.pong(&mut socket.output);
            }
            if work.role != Role::Consumer {
                continue;
            }
            self.tally.counts.acked += work.settle(&mut socket.output, dialect, plan.ack_batch);
            if plan.consume == Consume::Push {
                continue;
            }
            while work.asked < plan.window && available > 0 {
                let wanted = plan.pull_batch.min(available).min(plan.window - work.asked);
                dialect.pull(&mut socket.output, wanted);
                work.asked(wanted);
                self.tally.asked += wanted;
                available -= wanted;
            }
            if waits && work.asked == 0 {
                let wanted = plan.pull_batch.min(plan.window);
                let wanted = dialect.wait(&mut socket.output, wanted);
                if wanted > 0 {
                    work.asked(wanted);
                    work.is_waiting = true;
                    self.tally.asked += wanted;
                }
            }
        }
    }

    /// Closed loop: every producer publishes until its window is full.
    fn publish_all(&mut self) {
        let now_ns = self.now_ns();
        let producers = self.plan.producers;
        // Without receipts a producer's window cannot say whose turn it is: all get the same.
        let share = match self.receipts {
            Receipts::Never => self.backlog_left().div_ceil(producers as u64),
            Receipts::Each | Receipts::Run => u64::MAX,
        };
        self.turn_of = (self.turn_of + 1) % producers;
        for offset in 0..producers {
            let index = (self.turn_of + offset) % producers;
            let batch = self.plan.batch;
            let wanted = self.left().min(self.backlog_left()).min(share) / batch;
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
        let delivered = self.tally.counts.delivered / self.tally.copies;
        let inside = self.tally.published.saturating_sub(delivered);
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
                self.wire.dialect.batch_tail(&mut socket.output);
            }
        }
        self.tally.published = next;
        match self.receipts {
            Receipts::Never => self.tally.counts.confirmed += commands * messages_each,
            Receipts::Each => work.published(run),
            Receipts::Run => {
                self.wire.dialect.flush(&mut socket.output);
                work.published(run);
            }
        }
    }

    fn outcome(self, began: Mark, end: Mark, stalled: bool) -> Outcome {
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
            first_tenth_ns: self.first_tenth_ns,
        }
    }

    fn note_first_tenth(&mut self, now_ns: u64) {
        let tenth = self.part.backlog / 10;
        if self.first_tenth_ns.is_none() && tenth > 0 && self.tally.counts.delivered >= tenth {
            // What arrived beyond it came in the same read.
            let part = tenth as f64 / self.tally.counts.delivered as f64;
            self.first_tenth_ns = Some((now_ns as f64 * part) as u64);
        }
    }
}

/// When a message of an open loop is due, nanoseconds since the part began.
fn due_ns(number: u64, rate: u64) -> u64 {
    (u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64
}

/// A connected, greeted, nonblocking stream without Nagle's delay.
pub fn connect(addr: SocketAddr, dialect: &dyn Dialect, role: Role) -> io::Result<TcpStream> {
    const GREETED_WITHIN: Duration = Duration::from_secs(20);
    let mut stream = std::net::TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETED_WITHIN))?;
    dialect.greet(&mut stream, role)?;
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
