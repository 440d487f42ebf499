//! The reactor: one thread, one poll, one turn after another. It decides when bytes move, never
//! what they mean.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::{Interest, Poll, Registry, Waker};

use super::Driven;
use super::attendant::Attendant;
use super::clock::Clock;
use super::event_loop::{EventLoop, Rest};
use super::listen::{BindError, Listeners, probe};
use super::place::{Held, Place};
use super::post::Post;
use super::signal::Signals;
use super::token::Source;
use super::watch::{self, Watch};
use crate::log::files::Notify;
use crate::shard::Stop;

/// How often it is looked whether the attendant has gone, when the thread ends.
const DISMISSAL: Duration = Duration::from_micros(50);
/// How long the last answers may take to leave when the thread ends, microseconds.
const FLUSH_US_MAX: u64 = 300_000;
/// How long peers may take to end their side when the thread ends, microseconds.
const FAREWELL_US_MAX: u64 = 200_000;

/// What the operator can choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Poll without sleeping: the shortest latency, for a whole core.
    pub spin: bool,
    /// Its thread has a core of its own: no other one runs its turns for the log's sake.
    pub pinned: bool,
    /// Input taken from one connection in one turn, bytes, at least 1.
    pub turn_bytes_max: usize,
    /// Sockets that are ended on our side and wait, at most a second, for their peers.
    pub lingering_max: usize,
}

/// One event loop and its thread. Calling order: [`Reactor::bind`], then whatever has to be recovered, then
/// [`Reactor::run`].
pub struct Reactor<D> {
    poll: Poll,
    waker: Arc<Waker>,
    registry: Registry,
    clock: Clock,
    options: Options,
    listeners: Listeners,
    signals: Option<Signals>,
    /// Between several of them.
    post: Option<Post<D>>,
    place: Arc<Place<D>>,
    /// Others may run turns while it sleeps.
    is_shared: bool,
}

/// What the thread of a loop does beside its turns: it sleeps, and finds out what has happened.
struct Poller {
    watch: Watch,
    waker: Arc<Waker>,
    /// Others may run turns while it sleeps.
    is_shared: bool,
    /// Turns that are owed to others wait for a turn of this loop.
    is_postponed: bool,
}

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
            reactor.is_shared = true;
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
            registry,
            clock: Clock::start(),
            options,
            listeners,
            signals: None,
            post: None,
            place: Arc::default(),
            is_shared: false,
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
        Arc::new(move || watch::wake(&waker))
    }

    /// What the storage of this loop's broker tells it through. The thread that syncs the log may run turns of the
    /// loop when nothing else is to be done, unless the loop never sleeps or has a core of its own.
    ///
    /// # Errors
    /// If the system has no file descriptor left.
    pub fn attendant(&mut self) -> io::Result<Arc<dyn Notify>>
    where
        D: Send + 'static,
    {
        let (place, waker) = (Arc::clone(&self.place), Arc::clone(&self.waker));
        let may_attend = !self.options.spin && !self.options.pinned;
        self.is_shared |= may_attend;
        let watch = match may_attend {
            true => Watch::another(&self.registry)?,
            false => None,
        };
        Ok(Arc::new(Attendant::new(place, waker, watch)))
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
        let mut event_loop = EventLoop::new(
            driven,
            self.registry,
            self.clock,
            self.options,
            self.listeners,
            self.post,
        );
        event_loop.signals = self.signals;
        let mut poller = Poller {
            watch: Watch::new(self.poll)?,
            waker: self.waker,
            is_shared: self.is_shared,
            is_postponed: false,
        };
        let (mut held, _) = self.place.lock();
        *held = Some(event_loop);
        let stop = loop {
            let waited = poller.wait(&self.place, held);
            held = waited?;
            let event_loop = own(&mut held);
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
        while own(&mut held).dismiss() {
            drop(held);
            watch::wake(&poller.waker);
            std::thread::sleep(DISMISSAL);
            (held, _) = self.place.lock();
        }
        own(&mut held).wake_others();
        let ended = held.take();
        drop(held);
        if let Some(event_loop) = ended {
            poller.finish(event_loop, self.clock)?;
        }
        Ok(stop.expect("the loop above ends with one"))
    }
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
        if event_loop.owes_turns() && event_loop.is_job_left() {
            event_loop.wake_others();
        } else if event_loop.owes_turns() {
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
            Rest::Sleep(timeout) if !self.is_shared || timeout == Some(Duration::ZERO) => {
                self.watch.sleep(timeout)?;
            }
            Rest::Sleep(timeout) => {
                drop(held);
                let slept = self.watch.sleep(timeout);
                (held, _) = place.lock();
                slept?;
            }
            Rest::Work { jobs, calls } => {
                drop(held);
                if calls {
                    watch::wake(&self.waker);
                }
                jobs.perform_next();
                (held, _) = place.lock();
            }
        }
        let event_loop = own(&mut held);
        event_loop.come_back();
        event_loop.take_events(&mut self.watch);
        Ok(held)
    }

    /// Notes what is ready now; false if nothing is.
    fn look<D: Driven>(&mut self, event_loop: &mut EventLoop<D>) -> io::Result<bool> {
        self.watch.sleep(Some(Duration::ZERO))?;
        Ok(event_loop.take_events(&mut self.watch))
    }

    /// The end of the thread: the last answers leave as far as the peers take them, and every
    /// connection is ended such that they can be read.
    fn finish<D: Driven>(mut self, mut ended: EventLoop<D>, clock: Clock) -> io::Result<()> {
        ended.close_listeners();
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
        self.watch.sleep(Some(timeout))?;
        ended.take_events(&mut self.watch);
        Ok(())
    }
}
