//! The reactor: one thread, one poll, one turn after another. It decides when bytes move, never
//! what they mean.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use mio::{Events, Interest, Poll, Registry, Waker};

use super::Driven;
use super::clock::Clock;
use super::event_loop::{EventLoop, Place};
use super::listen::{BindError, Listeners, probe};
use super::post::Post;
use super::signal::Signals;
use super::token::Source;
use crate::shard::Stop;

/// Most events taken from the system at once.
const EVENTS_MAX: usize = 1024;
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

/// One event loop and its thread. Calling order: [`Reactor::bind`], then whatever has to be recovered, then
/// [`Reactor::run`].
pub struct Reactor<D> {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    registry: Registry,
    clock: Clock,
    options: Options,
    listeners: Listeners,
    signals: Option<Signals>,
    /// Between several of them.
    post: Option<Post<D>>,
    place: Arc<Place<D>>,
}

/// What the thread of a loop does beside its turns: it sleeps, and finds out what has happened.
struct Poller {
    poll: Poll,
    events: Events,
    signals: Option<Signals>,
    /// A signal asks for the end.
    is_signalled: bool,
    /// Turns that are owed to others wait for a turn of this loop.
    is_postponed: bool,
}

/// A loop that its thread holds.
type Held<'a, D> = MutexGuard<'a, Option<EventLoop<D>>>;

impl<D: Driven> Reactor<D> {
    /// Listens on every address. Clients can connect from here on; they are accepted, and
    /// answered, by [`Reactor::run`].
    ///
    /// # Errors
    /// The first address that cannot be listened on, and why; or the system gives no poll.
    ///
    /// # Panics
    /// If `turn_bytes_max` is 0.
    pub fn bind(addresses: &[SocketAddr], options: Options) -> Result<Reactor<D>, BindError> {
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
    ) -> Result<Vec<Reactor<D>>, BindError> {
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
        let loops: Vec<_> = reactors
            .iter()
            .map(|reactor| (Arc::clone(&reactor.waker), Arc::clone(&reactor.place)))
            .collect();
        for (reactor, post) in reactors.iter_mut().zip(Post::between(&loops)) {
            reactor.post = Some(post);
        }
        Ok(reactors)
    }

    fn with(listeners: Listeners, options: Options) -> Result<Reactor<D>, BindError> {
        let poll = Poll::new().map_err(|cause| BindError::Poll { cause })?;
        let waker = Waker::new(poll.registry(), Source::Waker.token());
        let waker = waker.map_err(|cause| BindError::Poll { cause })?;
        let registry = poll.registry().try_clone();
        let registry = registry.map_err(|cause| BindError::Poll { cause })?;
        Ok(Reactor {
            waker: Arc::new(waker),
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            registry,
            clock: Clock::start(),
            options,
            listeners,
            signals: None,
            post: None,
            place: Arc::default(),
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
    pub fn run(mut self, driven: D) -> io::Result<Stop> {
        self.listeners.register(&self.registry)?;
        let event_loop = EventLoop::new(
            driven,
            self.registry,
            self.clock,
            self.options,
            self.listeners,
            self.post,
        );
        let mut poller = Poller {
            poll: self.poll,
            events: self.events,
            signals: self.signals,
            is_signalled: false,
            is_postponed: false,
        };
        let mut held = lock(&self.place);
        *held = Some(event_loop);
        let mut shutting_down = false;
        let stop = loop {
            let waited = poller.wait(&self.place, held);
            held = waited?;
            let event_loop = own(&mut held);
            if poller.is_signalled && !shutting_down {
                shutting_down = true;
                event_loop.handle_shutdown();
            }
            let stop = event_loop.take_stop();
            if stop.is_some() {
                break stop;
            }
            event_loop.turn();
            let stop = event_loop.take_stop();
            if stop.is_some() {
                break stop;
            }
        };
        own(&mut held).wake_others();
        let ended = held.take();
        drop(held);
        if let Some(event_loop) = ended {
            poller.finish(event_loop, self.clock)?;
        }
        Ok(stop.expect("the loop above ends with one"))
    }
}

fn lock<D>(place: &Place<D>) -> Held<'_, D> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

fn own<'a, D>(held: &'a mut Held<'_, D>) -> &'a mut EventLoop<D> {
    held.as_mut().expect("only its own thread takes it out")
}

impl Poller {
    /// Sleeps until the next turn is due, and notes what is ready.
    fn wait<'a, D: Driven>(
        &mut self,
        place: &'a Place<D>,
        mut held: Held<'a, D>,
    ) -> io::Result<Held<'a, D>> {
        let event_loop = own(&mut held);
        if event_loop.owes_turns() {
            if event_loop.is_busy() | self.look(event_loop)? {
                // Often what is ready is for the same others. But they do not wait for long.
                if std::mem::replace(&mut self.is_postponed, true) {
                    self.is_postponed = false;
                    event_loop.wake_others();
                }
                return Ok(held);
            }
            self.is_postponed = false;
            event_loop.run_others();
            if event_loop.has_mail() {
                return Ok(held);
            }
        }
        match event_loop.fall_asleep() {
            timeout if event_loop.post.is_none() || timeout == Some(Duration::ZERO) => {
                self.sleep(timeout)?;
            }
            timeout => {
                drop(held);
                let slept = self.sleep(timeout);
                held = lock(place);
                slept?;
            }
        }
        let event_loop = own(&mut held);
        event_loop.wake_up();
        self.take_events(event_loop);
        Ok(held)
    }

    /// Notes what is ready now; false if nothing is.
    fn look<D: Driven>(&mut self, event_loop: &mut EventLoop<D>) -> io::Result<bool> {
        self.sleep(Some(Duration::ZERO))?;
        self.take_events(event_loop);
        Ok(!self.events.is_empty())
    }

    fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            polled => polled,
        }
    }

    fn take_events<D: Driven>(&mut self, event_loop: &mut EventLoop<D>) {
        for event in &self.events {
            if Source::from(event.token()) == Source::Signal {
                self.is_signalled |= self.signals.as_mut().is_some_and(Signals::take);
            } else {
                event_loop.handle_event(event);
            }
        }
    }

    /// The end of the thread: the last answers leave as far as the peers take them, and every
    /// connection is ended such that they can be read.
    fn finish<D: Driven>(mut self, mut ended: EventLoop<D>, clock: Clock) -> io::Result<()> {
        ended.listeners.close(self.poll.registry());
        let flushed_us = clock.us() + FLUSH_US_MAX;
        ended.connections.list_all_writable();
        loop {
            ended.write_listed();
            if !ended.connections.ready_to_write() && !ended.connections.blocked() {
                break;
            }
            if clock.us() >= flushed_us {
                break;
            }
            self.rest(&mut ended, flushed_us, clock)?;
        }
        ended.end_connections();
        let ended_us = clock.us() + FAREWELL_US_MAX;
        while ended.lingering.count() > 0 && clock.us() < ended_us {
            self.rest(&mut ended, ended_us, clock)?;
        }
        Ok(())
    }

    /// Sleeps until something happens, at the latest until the deadline.
    fn rest<D: Driven>(
        &mut self,
        ended: &mut EventLoop<D>,
        deadline_us: u64,
        clock: Clock,
    ) -> io::Result<()> {
        let timeout = if ended.connections.ready_to_write() {
            Duration::ZERO
        } else {
            Duration::from_micros(deadline_us.saturating_sub(clock.us()))
        };
        self.sleep(Some(timeout))?;
        self.take_events(ended);
        Ok(())
    }
}
