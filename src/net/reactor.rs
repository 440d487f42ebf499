//! The reactor: one thread, one poll, one turn after another. It decides when bytes move, never
//! what they mean.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Waker};

use super::clock::Clock;
use super::connections::{Connections, ReadLimits};
use super::linger::{self, Lingering};
use super::listen::{BindError, Listeners, probe};
use super::post::Post;
use super::signal::Signals;
use super::token::Source;
use super::trim::Trim;
use super::{Driven, os};
use crate::shard::{ConnKey, Now, Stop};

/// Most events taken from the system at once.
const EVENTS_MAX: usize = 1024;
/// Connections accepted in one turn before the others get theirs.
const ACCEPTS_MAX: usize = 256;
/// Input of all connections together in one turn, bytes: what bounds a turn's length.
const TURN_BYTES_MAX: usize = 4 << 20;
/// How long the last answers may take to leave when the thread ends, microseconds.
const FLUSH_US_MAX: u64 = 300_000;
/// How long peers may take to end their side when the thread ends, microseconds.
const FAREWELL_US_MAX: u64 = 200_000;

/// What the operator can choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Poll without sleeping: the shortest latency, for a whole core.
    pub spin: bool,
    /// Input taken from one connection in one turn, bytes, at least 1.
    pub turn_bytes_max: usize,
    /// Sockets that are ended on our side and wait, at most a second, for their peers.
    pub lingering_max: usize,
}

/// One event loop. Calling order: [`Reactor::bind`], then whatever has to be recovered, then
/// [`Reactor::run`].
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    clock: Clock,
    options: Options,
    listeners: Listeners,
    connections: Connections,
    lingering: Lingering,
    signals: Option<Signals>,
    /// Between several of them.
    post: Option<Post>,
    /// One loop has the process to itself; of several, others may be busy while this one is not.
    trim: Option<Trim>,
    shutting_down: bool,
}

/// What happened while the loop slept, beyond sockets.
#[derive(Clone, Copy, Debug, Default)]
struct Happened {
    signal: bool,
}

impl Reactor {
    /// Listens on every address. Clients can connect from here on; they are accepted, and
    /// answered, by [`Reactor::run`].
    ///
    /// # Errors
    /// The first address that cannot be listened on, and why; or the system gives no poll.
    ///
    /// # Panics
    /// If `turn_bytes_max` is 0.
    pub fn bind(addresses: &[SocketAddr], options: Options) -> Result<Reactor, BindError> {
        assert!(
            options.turn_bytes_max > 0,
            "a connection's share must not be empty"
        );
        Reactor::with(Listeners::bind(addresses, false)?, options)
    }

    /// Several, which all listen on every address and can send each other mail: each connection comes to one of
    /// them, by the kernel's choice.
    ///
    /// # Errors
    /// As [`Reactor::bind`].
    ///
    /// # Panics
    /// As [`Reactor::bind`], or if `count` is 0.
    pub fn bind_several(
        addresses: &[SocketAddr],
        options: Options,
        count: u32,
    ) -> Result<Vec<Reactor>, BindError> {
        if count == 1 {
            return Ok(vec![Reactor::bind(addresses, options)?]);
        }
        // Sockets that share their port would share it with another broker too.
        probe(addresses)?;
        let first = Reactor::with(Listeners::bind(addresses, true)?, options)?;
        let known = first
            .addresses()
            .map_err(|cause| BindError::Poll { cause })?;
        let mut reactors = vec![first];
        for _ in 1..count {
            let listeners = Listeners::bind(&known, true)?;
            reactors.push(Reactor::with(listeners, options)?);
        }
        let wakers: Vec<_> = reactors
            .iter()
            .map(|reactor| Arc::clone(&reactor.waker))
            .collect();
        for (reactor, post) in reactors.iter_mut().zip(Post::between(&wakers)) {
            reactor.post = Some(post);
            reactor.trim = None;
        }
        Ok(reactors)
    }

    fn with(listeners: Listeners, options: Options) -> Result<Reactor, BindError> {
        let poll = Poll::new().map_err(|cause| BindError::Poll { cause })?;
        let waker = Waker::new(poll.registry(), Source::Waker.token());
        let waker = waker.map_err(|cause| BindError::Poll { cause })?;
        Ok(Reactor {
            waker: Arc::new(waker),
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            clock: Clock::start(),
            options,
            listeners,
            connections: Connections::default(),
            lingering: Lingering::new(options.lingering_max),
            signals: None,
            post: None,
            trim: Some(Trim::default()),
            shutting_down: false,
        })
    }

    /// Where it listens, with the ports that the system chose for port 0.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.addresses()
    }

    /// The clock that turns are stamped with.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Wakes the loop from any thread; the next turn begins at once. About one system call.
    pub fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let waker = Arc::clone(&self.waker);
        Arc::new(move || {
            if let Err(error) = waker.wake() {
                log::error!("the event loop could not be woken: {error}");
            }
        })
    }

    /// Signals become events of this loop; without it they are nobody's.
    ///
    /// # Errors
    /// If the system refuses to poll them.
    pub fn take_signals(&mut self, mut signals: Signals) -> io::Result<()> {
        let registry = self.poll.registry();
        registry.register(signals.source(), Source::Signal.token(), Interest::READABLE)?;
        signals.started();
        self.signals = Some(signals);
        Ok(())
    }

    /// Runs turns until the driven side wants the thread to end, lets the last answers leave, and
    /// says why it ended.
    ///
    /// # Errors
    /// If polling itself fails: a bug or a system out of its mind.
    pub fn run<D: Driven>(mut self, driven: &mut D) -> io::Result<Stop> {
        self.listeners.register(self.poll.registry())?;
        let mut now = self.clock.now();
        loop {
            let happened = self.wait(self.timeout(driven, now))?;
            now = self.clock.now();
            if happened.signal && !self.shutting_down {
                self.shutting_down = true;
                self.listeners.close(self.poll.registry());
                driven.handle_shutdown(now);
            }
            self.accept(driven, now);
            self.read(driven, now);
            self.receive(driven, now);
            driven.handle_turn_end(now);
            self.send(driven);
            self.write(driven, now);
            self.send(driven);
            self.close(driven, now);
            driven.handle_turn_measured(self.clock.us() - now.us);
            self.trim(now);
            if let Some(stop) = driven.poll_stopped() {
                self.finish(driven)?;
                return Ok(stop);
            }
        }
    }

    /// After traffic: gives the system what the allocator keeps. Nobody waits for this turn.
    fn trim(&mut self, now: Now) {
        let Some(trim) = &mut self.trim else { return };
        if !self.connections.ready() && trim.take_due(now.us) {
            os::trim_freed_memory();
        }
    }

    /// Hands over the mail of other loops.
    fn receive<D: Driven>(&mut self, driven: &mut D, now: Now) {
        if let Some(post) = &mut self.post {
            while let Some((from, bag)) = post.receive() {
                driven.handle_post(from, bag, now);
            }
        }
    }

    /// Sends mail to other loops.
    fn send<D: Driven>(&mut self, driven: &mut D) {
        if let Some(post) = &mut self.post {
            while let Some((to, bag)) = driven.poll_post() {
                post.send(to, bag);
            }
        }
    }

    /// How long to sleep at most; `None` = until something happens.
    fn timeout<D: Driven>(&self, driven: &D, now: Now) -> Option<Duration> {
        if self.options.spin || self.connections.ready() || self.listeners.ready() {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            driven.poll_timeout(),
            self.listeners.poll_timeout(),
            self.lingering.poll_timeout(),
            self.trim.as_ref().and_then(Trim::poll_timeout),
        ];
        let next_us = deadlines.into_iter().flatten().min()?;
        Some(Duration::from_micros(next_us.saturating_sub(now.us)))
    }

    /// Sleeps, and notes what is ready.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Happened> {
        let mut happened = Happened::default();
        let mut timeout = timeout;
        if let Some(post) = &mut self.post
            && timeout != Some(Duration::ZERO)
            && !post.sleep()
        {
            timeout = Some(Duration::ZERO);
        }
        let polled = self.poll.poll(&mut self.events, timeout);
        if let Some(post) = &mut self.post {
            post.wake();
        }
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(happened),
            Err(error) => return Err(error),
        }
        for event in &self.events {
            match Source::from(event.token()) {
                Source::Connection(key) => self.connections.handle_event(key, event),
                Source::Listener(index) => self.listeners.handle_ready(index),
                Source::Lingering { slot, generation } => {
                    self.lingering
                        .handle_ready(slot, generation, self.poll.registry());
                }
                Source::Signal => {
                    happened.signal |= self.signals.as_mut().is_some_and(Signals::take);
                }
                Source::Waker => {}
            }
        }
        Ok(happened)
    }

    fn accept<D: Driven>(&mut self, driven: &mut D, now: Now) {
        let mut left = ACCEPTS_MAX;
        while let Some((listener, stream, peer)) = self.listeners.accept(&mut left, now.us) {
            let Some(key) = driven.handle_accept(&peer.to_string(), listener, now) else {
                continue;
            };
            if let Err(error) = self.connections.add(key, stream, self.poll.registry()) {
                log::warn!("a connection of {peer} cannot be polled and is closed: {error}");
                driven.handle_reset(key, now);
            }
        }
    }

    fn read<D: Driven>(&mut self, driven: &mut D, now: Now) {
        let limits = ReadLimits {
            share: self.options.turn_bytes_max,
            total: TURN_BYTES_MAX,
        };
        let registry = self.poll.registry();
        let taken = self
            .connections
            .read(driven, limits, now, |driven, stream, key| {
                reset(driven, stream, key, registry, now);
            });
        if let Some(trim) = &mut self.trim {
            trim.received(taken, now.us);
        }
    }

    fn write<D: Driven>(&mut self, driven: &mut D, now: Now) {
        while let Some(key) = driven.poll_output() {
            self.connections.handle_output(key);
        }
        let registry = self.poll.registry();
        self.connections
            .write(driven, registry, now, |driven, stream, key| {
                reset(driven, stream, key, registry, now);
            });
        while let Some(key) = driven.poll_unacknowledged() {
            // Nobody there has taken nothing more.
            let bytes = self.connections.unacknowledged(key).unwrap_or(usize::MAX);
            driven.handle_unacknowledged(key, bytes, now);
        }
        // What has left may have made room for more; that is the next turn's.
        while let Some(key) = driven.poll_output() {
            self.connections.handle_output(key);
        }
        while let Some(key) = driven.poll_resume() {
            self.connections.handle_resume(key);
        }
    }

    fn close<D: Driven>(&mut self, driven: &mut D, now: Now) {
        let registry = self.poll.registry();
        while let Some(key) = driven.poll_close() {
            match self.connections.remove(key) {
                Some((stream, true)) => linger::close(stream, registry),
                Some((stream, false)) => self.lingering.add(stream, registry, now.us),
                None => {}
            }
        }
        self.lingering.expire(registry, now.us);
    }

    /// The end of the thread: the last answers leave as far as the peers take them, and every
    /// connection is ended such that they can be read.
    fn finish<D: Driven>(mut self, driven: &mut D) -> io::Result<()> {
        self.listeners.close(self.poll.registry());
        let mut now = self.clock.now();
        let flushed_us = now.us + FLUSH_US_MAX;
        self.connections.list_all_writable();
        loop {
            let registry = self.poll.registry();
            self.connections
                .write(driven, registry, now, |driven, stream, key| {
                    reset(driven, stream, key, registry, now);
                });
            if !self.connections.ready_to_write() && !self.connections.blocked() {
                break;
            }
            if now.us >= flushed_us {
                break;
            }
            now = self.rest(flushed_us, now)?;
        }
        for stream in self.connections.drain() {
            self.lingering.add(stream, self.poll.registry(), now.us);
        }
        let ended_us = now.us + FAREWELL_US_MAX;
        while self.lingering.count() > 0 && now.us < ended_us {
            now = self.rest(ended_us, now)?;
        }
        Ok(())
    }

    /// Sleeps until something happens, at the latest until the deadline.
    fn rest(&mut self, deadline_us: u64, now: Now) -> io::Result<Now> {
        let timeout = if self.connections.ready_to_write() {
            Duration::ZERO
        } else {
            Duration::from_micros(deadline_us.saturating_sub(now.us))
        };
        self.wait(Some(timeout))?;
        Ok(self.clock.now())
    }
}

/// A broken connection goes at once.
fn reset<D: Driven>(
    driven: &mut D,
    stream: TcpStream,
    key: ConnKey,
    registry: &mio::Registry,
    now: Now,
) {
    linger::close(stream, registry);
    driven.handle_reset(key, now);
}
