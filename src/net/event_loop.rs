//! One event loop without its poll: its sockets, its mail, and what it drives.
//!
//! Its thread has it while that is awake. One that sleeps is left in its [`Place`](super::place::Place), and whoever has
//! something for it and nothing else to do runs its turn there, on the spot: another loop that has mail for it, and the
//! thread that syncs the log ([`super::attendant`]). Waking a thread on another core, and being woken by it for the
//! answer, would cost more than a hundred messages do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::Registry;
use mio::net::TcpStream;

use super::Driven;
use super::attendant::Attendance;
use super::clock::Clock;
use super::connections::{Connections, ReadLimits};
use super::linger::{self, Lingering};
use super::listen::Listeners;
use super::post::Post;
use super::reactor::Options;
use super::signal::Signals;
use super::token::Source;
use super::trim::{self, Trim};
use super::watch::{Ready, Watch};
use crate::log::files::Pending;
use crate::shard::{ConnKey, Now, Stop};

/// Connections accepted in one turn before the others get theirs.
const ACCEPTS_MAX: usize = 256;
/// Input of all connections together in one turn, bytes: what bounds a turn's length.
const TURN_BYTES_MAX: usize = 4 << 20;
/// Turns that are run for others, or for one of them, one after another, before their threads are woken for the rest.
const TURNS_MAX: u32 = 4;

/// See the module.
pub(super) struct EventLoop<D> {
    driven: D,
    registry: Registry,
    clock: Clock,
    options: Options,
    pub listeners: Listeners,
    pub connections: Connections,
    pub lingering: Lingering,
    /// Between several of them.
    pub post: Option<Post<D>>,
    /// One loop has the process to itself; of several, others may be busy while this one is not.
    trim: Option<Trim>,
    /// When the last turn began.
    now: Now,
    /// Its thread sleeps until then at the latest, microseconds; `u64::MAX` = until something happens.
    sleeps_until_us: u64,
    attendance: Option<Attendance>,
    pub signals: Option<Signals>,
    is_shutting_down: bool,
    stop: Option<Stop>,
}

/// What its thread does between two turns.
pub(super) enum Rest {
    /// Sleeps at most that long; `None` = until something happens.
    Sleep(Option<Duration>),
    /// Does one of these jobs; the attendant watches the sockets meanwhile, and is woken first if it is to run a turn.
    Work { jobs: Arc<dyn Pending>, calls: bool },
}

impl<D: Driven> EventLoop<D> {
    /// A loop whose sockets are polled by that registry.
    pub fn new(
        driven: D,
        registry: Registry,
        clock: Clock,
        options: Options,
        listeners: Listeners,
        post: Option<Post<D>>,
    ) -> EventLoop<D> {
        EventLoop {
            driven,
            registry,
            clock,
            options,
            listeners,
            connections: Connections::default(),
            lingering: Lingering::new(options.lingering_max),
            trim: post.is_none().then(Trim::default),
            post,
            now: clock.now(),
            sleeps_until_us: u64::MAX,
            attendance: None,
            signals: None,
            is_shutting_down: false,
            stop: None,
        }
    }

    /// Why its thread is to end, if it is.
    pub fn take_stop(&mut self) -> Option<Stop> {
        self.stop.take()
    }

    /// Takes notice of what has happened; false if nothing has.
    pub fn take_events(&mut self, watch: &mut Watch) -> bool {
        let mut is_any = false;
        for ready in watch.events() {
            self.handle_ready(&ready);
            is_any = true;
        }
        watch.clear();
        is_any
    }

    fn handle_ready(&mut self, ready: &Ready) {
        match ready.source {
            Source::Connection(key) => self.connections.handle_ready(key, ready),
            Source::Listener(index) => self.listeners.handle_ready(index),
            Source::Lingering { slot, generation } => {
                self.lingering
                    .handle_ready(slot, generation, &self.registry);
            }
            Source::Signal => self.handle_signal(),
            Source::Waker => {}
        }
    }

    /// The process is asked to end.
    fn handle_signal(&mut self) {
        if self.signals.as_mut().is_some_and(Signals::take) && !self.is_shutting_down {
            self.is_shutting_down = true;
            self.now = self.clock.now();
            self.close_listeners();
            self.driven.handle_shutdown(self.now);
        }
    }

    /// Nobody is accepted any more.
    pub fn close_listeners(&mut self) {
        self.listeners.close(&self.registry);
    }

    /// One turn.
    pub fn turn(&mut self) {
        let now = self.clock.now();
        self.now = now;
        self.accept();
        self.read();
        self.receive();
        self.driven.handle_turn_end(now);
        self.send();
        self.write();
        self.send();
        self.close();
        self.driven.handle_turn_measured(self.clock.us() - now.us);
        self.trim();
        if self.stop.is_none() {
            self.stop = self.driven.poll_stopped();
        }
    }

    /// After traffic: gives the system what the allocator keeps.
    fn trim(&mut self) {
        let Some(trim) = &mut self.trim else { return };
        if !self.connections.ready() && trim.take_due(self.now.us) {
            trim::spawn();
        }
    }

    fn accept(&mut self) {
        let mut left = ACCEPTS_MAX;
        let now = self.now;
        while let Some((listener, stream, peer)) = self.listeners.accept(&mut left, now.us) {
            self.add(listener, stream, peer);
        }
    }

    fn add(&mut self, listener: usize, stream: TcpStream, peer: SocketAddr) {
        let now = self.now;
        let Some(key) = self.driven.handle_accept(&peer.to_string(), listener, now) else {
            return;
        };
        if let Err(error) = self.connections.add(key, stream, &self.registry) {
            log::warn!("a connection of {peer} cannot be polled and is closed: {error}");
            self.driven.handle_reset(key, now);
        }
    }

    fn read(&mut self) {
        let limits = ReadLimits {
            share: self.options.turn_bytes_max,
            total: TURN_BYTES_MAX,
        };
        let (registry, now) = (&self.registry, self.now);
        let taken = self
            .connections
            .read(&mut self.driven, limits, now, |driven, stream, key| {
                reset(driven, stream, key, registry, now);
            });
        if let Some(trim) = &mut self.trim {
            trim.received(taken, now.us);
        }
    }

    /// Hands over the mail of other loops.
    fn receive(&mut self) {
        if let Some(post) = &mut self.post {
            while let Some((from, bag)) = post.receive() {
                self.driven.handle_post(from, bag, self.now);
            }
        }
    }

    /// Sends mail to other loops.
    fn send(&mut self) {
        if let Some(post) = &mut self.post {
            while let Some((to, bag)) = self.driven.poll_post() {
                post.send(to, bag);
            }
        }
    }

    fn write(&mut self) {
        while let Some(key) = self.driven.poll_output() {
            self.connections.handle_output(key);
        }
        self.write_listed();
        while let Some(key) = self.driven.poll_unacknowledged() {
            // Nobody there has taken nothing more.
            let bytes = self.connections.unacknowledged(key).unwrap_or(usize::MAX);
            self.driven.handle_unacknowledged(key, bytes, self.now);
        }
        // What has left may have made room for more; that is the next turn's.
        while let Some(key) = self.driven.poll_output() {
            self.connections.handle_output(key);
        }
        while let Some(key) = self.driven.poll_resume() {
            self.connections.handle_resume(key);
        }
    }

    /// Writes to the connections that are listed.
    pub fn write_listed(&mut self) {
        let (registry, now) = (&self.registry, self.now);
        self.connections
            .write(&mut self.driven, registry, now, |driven, stream, key| {
                reset(driven, stream, key, registry, now);
            });
    }

    fn close(&mut self) {
        let now = self.now;
        while let Some(key) = self.driven.poll_close() {
            match self.connections.remove(key) {
                Some((stream, true)) => linger::close(stream, &self.registry),
                Some((stream, false)) => self.lingering.add(stream, &self.registry, now.us),
                None => {}
            }
        }
        self.lingering.expire(&self.registry, now.us);
    }

    /// Every connection is ended such that its peer can read the last answers.
    pub fn end_connections(&mut self) {
        for stream in self.connections.drain() {
            self.lingering.add(stream, &self.registry, self.now.us);
        }
    }

    /// When its next turn is due at the latest, microseconds: 0 = at once, `u64::MAX` = when something happens.
    fn due_us(&self) -> u64 {
        if self.options.spin || self.connections.ready() || self.listeners.ready() {
            return 0;
        }
        let deadlines = [
            self.driven.poll_timeout(),
            self.listeners.poll_timeout(),
            self.lingering.poll_timeout(),
            self.trim.as_ref().and_then(Trim::poll_timeout),
        ];
        deadlines.into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// The next turn is due.
    pub fn is_busy(&self) -> bool {
        self.due_us() <= self.now.us
    }

    /// Its thread has run a turn. Others may run the next ones from here on until [`EventLoop::wake_up`], unless it
    /// does not even sleep.
    pub fn fall_asleep(&mut self) -> Rest {
        let (due_us, timeout) = self.lie_down();
        self.sleeps_until_us = due_us;
        let Some(attendance) = &mut self.attendance else {
            return Rest::Sleep(timeout);
        };
        if !attendance.is_job_left() {
            return Rest::Sleep(timeout);
        }
        let jobs = attendance.jobs();
        attendance.is_alone = true;
        self.sleeps_until_us = u64::MAX;
        let calls = timeout == Some(Duration::ZERO) || due_us < attendance.sleeps_until_us;
        Rest::Work { jobs, calls }
    }

    /// The attendant has run a turn; how long it is to sleep at most.
    pub fn fall_asleep_attended(&mut self) -> Option<Duration> {
        let (due_us, timeout) = self.lie_down();
        if let Some(attendance) = &mut self.attendance {
            attendance.sleeps_until_us = due_us;
        }
        timeout
    }

    /// When the next turn is due, and how long whoever ran the last one is to sleep at most.
    fn lie_down(&mut self) -> (u64, Option<Duration>) {
        let due_us = self.due_us();
        let wait_us = due_us.saturating_sub(self.now.us);
        let is_woken = wait_us > 0 && self.post.as_mut().is_some_and(|post| !post.sleep());
        let timeout = match due_us {
            _ if is_woken => Some(Duration::ZERO),
            u64::MAX => None,
            _ => Some(Duration::from_micros(wait_us)),
        };
        (due_us, timeout)
    }

    /// Those who sleep look again by themselves when the next turn is due, or something happens, and no job waits
    /// for one of them.
    fn is_looked_after(&mut self) -> bool {
        if self.is_job_left() {
            return false;
        }
        let attended_us = self.attendance.as_ref().map(|on| on.sleeps_until_us);
        let until_us = self.sleeps_until_us.min(attended_us.unwrap_or(u64::MAX));
        self.due_us() >= until_us && self.post.as_mut().is_none_or(Post::sleep)
    }

    /// A job waits, and its lane's thread is here.
    pub fn is_job_left(&self) -> bool {
        let attendance = self.attendance.as_ref();
        attendance.is_some_and(Attendance::is_job_left)
    }

    /// Another thread runs its turns too, from here on until [`EventLoop::leave`].
    ///
    /// # Panics
    /// If one does already.
    pub fn admit(&mut self, attendance: Attendance) {
        let before = self.attendance.replace(attendance);
        assert!(before.is_none(), "one attendant is enough");
    }

    /// The attendant has run a turn, and is needed elsewhere: a job waits, the loop has ended, or the own thread is
    /// awake too, which waits for this turn's end or was waited for. It stays while it is the only one who watches.
    pub fn attendant_is_to_go(&self, is_waited_for: bool, has_waited: bool) -> bool {
        let is_free = !self.is_own_away() && (has_waited || self.is_job_left());
        is_waited_for || is_free || self.stop.is_some()
    }

    /// The attendant goes. False if the own thread must be woken.
    pub fn leave(&mut self) -> bool {
        let attendance = self.attendance.take();
        if attendance.is_some_and(|on| on.is_alone) {
            // It comes back soon, and runs a turn then.
            return true;
        }
        self.stop.is_none() && !self.is_busy() && self.is_looked_after()
    }

    /// The attendant is asked to go; false if there is none.
    pub fn dismiss(&mut self) -> bool {
        let attendance = self.attendance.as_mut();
        attendance.is_some_and(|on| {
            on.is_dismissed = true;
            true
        })
    }

    /// The attendant was asked to go.
    pub fn has_dismissed(&self) -> bool {
        self.attendance.as_ref().is_some_and(|on| on.is_dismissed)
    }

    /// The own thread is at a job, or on its way there or back, and watches no sockets.
    pub fn is_own_away(&self) -> bool {
        self.attendance.as_ref().is_some_and(|on| on.is_alone)
    }

    /// The own thread is back from sleep or work.
    pub fn come_back(&mut self) {
        if let Some(attendance) = &mut self.attendance {
            attendance.is_alone = false;
        }
        self.wake_up();
    }

    /// Its thread is awake, or another runs its turn.
    pub fn wake_up(&mut self) {
        if let Some(post) = &mut self.post {
            post.wake();
        }
    }

    /// Others that sleep were sent mail, and are to get their turn.
    pub fn owes_turns(&self) -> bool {
        self.post.as_ref().is_some_and(Post::owes_turns)
    }

    /// There is mail.
    pub fn has_mail(&mut self) -> bool {
        self.post.as_mut().is_some_and(Post::has_mail)
    }

    /// Those that sleep and were sent mail get their turns by their own threads.
    pub fn wake_others(&mut self) {
        if let Some(post) = &mut self.post {
            post.wake_others();
        }
    }

    /// Those that sleep and were sent mail get their turns here and now; whose thread is awake meanwhile, or has to be,
    /// by that.
    pub fn run_others(&mut self) {
        let Some(post) = &mut self.post else { return };
        for _ in 0..TURNS_MAX {
            let Some(to) = post.take_owed() else { return };
            let (place, owed) = post.place(to);
            let is_served = match place.try_lock() {
                Some(mut other) => match other.as_mut() {
                    Some(other) => {
                        let is_served = other.run_for_another();
                        if let Some(post) = &mut other.post {
                            post.hand_over(owed);
                        }
                        is_served
                    }
                    // Nobody reads that mail any more.
                    None => true,
                },
                None => false,
            };
            if !is_served {
                post.wake_other(to);
            }
        }
        post.wake_others();
    }

    /// Turns on the thread of another loop, until the mail is done; false if its own thread must go on.
    pub fn run_for_another(&mut self) -> bool {
        self.wake_up();
        for _ in 0..TURNS_MAX {
            if self.stop.is_some() {
                return false;
            }
            self.turn();
            if !self.is_busy() && self.stop.is_none() {
                return self.is_looked_after();
            }
        }
        false
    }
}

/// A broken connection goes at once.
fn reset<D: Driven>(
    driven: &mut D,
    stream: TcpStream,
    key: ConnKey,
    registry: &Registry,
    now: Now,
) {
    linger::close(stream, registry);
    driven.handle_reset(key, now);
}
