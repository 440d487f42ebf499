//! The thread that does a loop's jobs runs its turns too: who does what, and that nothing is left lying.

use std::collections::VecDeque;
use std::io::{IoSlice, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use mio::Poll;

use super::super::attendant::Attendance;
use super::super::clock::Clock;
use super::super::event_loop::{EventLoop, Rest};
use super::super::listen::Listeners;
use super::super::{Driven, Options, Reactor};
use super::{Counters, Echo, Running, ping};
use crate::log::files::{Notify, Pending};
use crate::shard::{ConnKey, Now, Room, Stop};

const OPTIONS: Options = Options {
    spin: false,
    pinned: false,
    turn_bytes_max: 8 << 10,
    lingering_max: 100,
};

#[derive(Default)]
struct State {
    waiting: u64,
    is_busy: bool,
    is_closed: bool,
}

/// A lane whose jobs take a while and do nothing.
#[derive(Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    changed: Condvar,
    pub done: AtomicU64,
    /// Time of a job, microseconds.
    takes_us: AtomicU64,
    /// Jobs do not end while it is set.
    is_stuck: AtomicBool,
    /// Who did them.
    by: Mutex<Vec<ThreadId>>,
}

impl Lane {
    pub fn submit(&self) {
        self.state.lock().expect("no test panics").waiting += 1;
        self.changed.notify_one();
    }

    fn close(&self) {
        self.state.lock().expect("no test panics").is_closed = true;
        self.changed.notify_one();
    }

    fn is_busy(&self) -> bool {
        self.state.lock().expect("no test panics").is_busy
    }

    /// The lane's own thread.
    pub fn start(self: &Arc<Lane>, notify: Arc<dyn Notify>) -> JoinHandle<()> {
        let lane = Arc::clone(self);
        std::thread::spawn(move || {
            let pending: Arc<dyn Pending> = lane.clone();
            loop {
                let state = lane.state.lock().expect("no test panics");
                let idle =
                    |state: &mut State| (state.waiting == 0 || state.is_busy) && !state.is_closed;
                let state = lane.changed.wait_while(state, idle);
                if state.expect("no test panics").is_closed {
                    return;
                }
                if lane.perform_next() {
                    if lane.is_any() {
                        notify.wake();
                    } else {
                        notify.attend(&pending);
                    }
                }
            }
        })
    }
}

impl Pending for Lane {
    fn is_any(&self) -> bool {
        let state = self.state.lock().expect("no test panics");
        state.waiting > 0 && !state.is_busy
    }

    fn perform_next(&self) -> bool {
        {
            let mut state = self.state.lock().expect("no test panics");
            if state.is_busy || state.waiting == 0 {
                return false;
            }
            state.waiting -= 1;
            state.is_busy = true;
        }
        std::thread::sleep(Duration::from_micros(self.takes_us.load(Ordering::SeqCst)));
        while self.is_stuck.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let mut by = self.by.lock().expect("no test panics");
        by.push(std::thread::current().id());
        self.done.fetch_add(1, Ordering::SeqCst);
        self.state.lock().expect("no test panics").is_busy = false;
        self.changed.notify_one();
        true
    }
}

/// Answers like [`Echo`], but only after a job that was begun when the input was there.
struct Synced {
    echo: Echo,
    lane: Arc<Lane>,
    submitted: u64,
    /// Answers for the job under way, and for the next one.
    covered: VecDeque<ConnKey>,
    uncovered: VecDeque<ConnKey>,
    /// Who ran turns in which input came.
    ran: Arc<Mutex<Vec<ThreadId>>>,
    /// Turns wait while it is set.
    is_held: Arc<AtomicBool>,
}

impl Driven for Synced {
    fn handle_accept(&mut self, peer: &str, listener: usize, now: Now) -> Option<ConnKey> {
        self.echo.handle_accept(peer, listener, now)
    }
    fn receive_room(&mut self, conn: ConnKey) -> Option<Room<'_>> {
        self.echo.receive_room(conn)
    }
    fn handle_received(&mut self, conn: ConnKey, count: usize, now: Now) {
        self.echo.handle_received(conn, count, now);
        self.uncovered.append(&mut self.echo.dirty);
        let mut ran = self.ran.lock().expect("no test panics");
        ran.push(std::thread::current().id());
    }
    fn handle_half_close(&mut self, conn: ConnKey, now: Now) {
        self.echo.handle_half_close(conn, now);
    }
    fn handle_reset(&mut self, conn: ConnKey, now: Now) {
        self.echo.handle_reset(conn, now);
    }
    fn handle_turn_end(&mut self, now: Now) {
        self.echo.handle_turn_end(now);
        if self.lane.done.load(Ordering::SeqCst) == self.submitted {
            self.echo.dirty.append(&mut self.covered);
            if !self.uncovered.is_empty() {
                std::mem::swap(&mut self.covered, &mut self.uncovered);
                self.submitted += 1;
                self.lane.submit();
            }
        }
        while self.is_held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }
    fn poll_resume(&mut self) -> Option<ConnKey> {
        self.echo.poll_resume()
    }
    fn poll_output(&mut self) -> Option<ConnKey> {
        self.echo.poll_output()
    }
    fn output<'a>(&'a self, conn: ConnKey, slices: &mut [IoSlice<'a>]) -> usize {
        self.echo.output(conn, slices)
    }
    fn handle_sent(&mut self, conn: ConnKey, count: usize, now: Now) -> bool {
        self.echo.handle_sent(conn, count, now)
    }
    fn poll_close(&mut self) -> Option<ConnKey> {
        self.echo.poll_close()
    }
    fn poll_timeout(&self) -> Option<u64> {
        self.echo.poll_timeout()
    }
    fn handle_shutdown(&mut self, now: Now) {
        self.echo.handle_shutdown(now);
    }
    fn poll_stopped(&mut self) -> Option<Stop> {
        self.echo.poll_stopped()
    }
}

/// A loop, its lane, and their threads.
struct Attended {
    running: Running,
    lane: Arc<Lane>,
    worker: Option<JoinHandle<()>>,
    ran: Arc<Mutex<Vec<ThreadId>>>,
    is_held: Arc<AtomicBool>,
}

impl Attended {
    fn start(takes_us: u64) -> Attended {
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let mut reactor = Reactor::bind(&[loopback], OPTIONS).expect("port 0 is always free");
        let address = reactor.addresses().expect("a bound socket has an address")[0];
        let (wake, notify) = (reactor.waker(), reactor.attendant());
        let lane = Arc::new(Lane::default());
        lane.takes_us.store(takes_us, Ordering::SeqCst);
        let (counters, ran) = (Arc::new(Counters::default()), Arc::default());
        let is_held = Arc::default();
        let driven = Synced {
            echo: Echo::new(&counters, 100_000),
            lane: Arc::clone(&lane),
            submitted: 0,
            covered: VecDeque::new(),
            uncovered: VecDeque::new(),
            ran: Arc::clone(&ran),
            is_held: Arc::clone(&is_held),
        };
        let worker = lane.start(notify.expect("there are file descriptors"));
        let thread = std::thread::spawn(move || reactor.run(driven).expect("polling works"));
        Attended {
            running: Running {
                address,
                counters,
                wake,
                thread: Some(thread),
            },
            lane,
            worker: Some(worker),
            ran,
            is_held,
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // The loop first: its end needs the attendant to go.
        self.running.stop(1);
        self.lane.close();
        let worker = self.worker.take().expect("dropped only once");
        worker.join().expect("it does not panic");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn who_runs_the_turn_of_a_request_that_is_alone_does_its_job_too() {
    let attended = Attended::start(50);
    let mut client = attended.running.connect();
    for n in 0..200 {
        ping(&mut client, format!("request {n}\n").as_bytes());
    }
    let ran = attended.ran.lock().expect("no test panics");
    let by = attended.lane.by.lock().expect("no test panics");
    let same = ran.iter().zip(by.iter()).filter(|(ran, by)| ran == by);
    // On a busy machine the threads meet now and then.
    let same = same.count();
    assert!(same > 120, "{same} of {}", ran.len());
}

#[test]
fn nothing_is_left_lying_however_the_two_threads_meet() {
    for takes_us in [0, 30, 300] {
        let attended = Attended::start(takes_us);
        let wake = attended.running.wake.clone();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Others wake it for no reason.
                while !is_over.load(Ordering::SeqCst) {
                    wake();
                    std::thread::sleep(Duration::from_micros(170));
                }
            });
            let clients = [1, 40, 3000].map(|bytes| {
                let mut client = attended.running.connect();
                scope.spawn(move || {
                    for n in 0..400_u64 {
                        ping(&mut client, &vec![n as u8; bytes]);
                        if n % 16 == 0 {
                            // Now and then the others have it to themselves.
                            std::thread::sleep(Duration::from_micros(500));
                        }
                    }
                })
            });
            for client in clients {
                client.join().expect("every request is answered");
            }
            is_over.store(true, Ordering::SeqCst);
        });
        let done = attended.lane.done.load(Ordering::SeqCst);
        assert!(done > 0 && attended.lane.by.lock().expect("no test panics").len() as u64 == done);
    }
}

#[test]
fn a_job_that_takes_long_holds_up_nobody_whichever_thread_is_at_it() {
    let attended = Attended::start(0);
    let running = &attended.running;
    let began = Instant::now();
    let mut clients: Vec<_> = (0..4).map(|_| running.connect()).collect();
    for n in 0..40_u64 {
        for client in &mut clients {
            ping(client, b"quick");
        }
        attended.lane.is_stuck.store(true, Ordering::SeqCst);
        let (slow, other) = clients.split_at_mut(1);
        slow[0].write_all(b"slow").expect("the peer reads");
        running.wait_for("the job is begun", |_| attended.lane.is_busy());
        // Whoever is left accepts, reads, and keeps deadlines.
        let order = Ordering::SeqCst;
        let counters = &running.counters;
        let (accepted, received) = (counters.accepted.load(order), counters.received.load(order));
        let _more = running.connect();
        other[0].write_all(b"x").expect("the peer reads");
        running.wait_for("others are served", |c| {
            c.accepted.load(order) == accepted + 1 && c.received.load(order) == received + 1
        });
        let due = began.elapsed() + Duration::from_millis(n % 5);
        counters.deadline.store(due.as_micros() as u64, order);
        (running.wake)();
        running.wait_for("the deadline is kept", |c| c.deadline.load(order) == 0);
        assert!(attended.lane.is_busy());
        attended.lane.is_stuck.store(false, order);
        slow[0].read_exact(&mut [0; 4]).expect("the peer answers");
        other[0].read_exact(&mut [0]).expect("the peer answers");
    }
}

#[test]
fn a_turn_that_is_long_is_waited_for_and_both_threads_know() {
    let attended = Attended::start(30);
    let mut first = attended.running.connect();
    let mut second = attended.running.connect();
    for _ in 0..50 {
        ping(&mut first, b"alone");
        // Both threads are woken while a turn cannot end.
        attended.is_held.store(true, Ordering::SeqCst);
        first.write_all(b"1").expect("the peer reads");
        std::thread::sleep(Duration::from_micros(300));
        second.write_all(b"2").expect("the peer reads");
        std::thread::sleep(Duration::from_micros(300));
        attended.is_held.store(false, Ordering::SeqCst);
        for client in [&mut first, &mut second] {
            client.read_exact(&mut [0]).expect("the peer answers");
        }
    }
}

#[test]
fn the_end_comes_while_another_thread_watches() {
    for round in 0..20 {
        let mut attended = Attended::start(20);
        let mut client = attended.running.connect();
        for _ in 0..round {
            ping(&mut client, b"so that the lane's thread attends");
        }
        let how = 1 + round % 2;
        attended.running.stop(how);
        attended.running.thread = Some(std::thread::spawn(|| Stop::Finished));
    }
}

/// A loop without its thread, to see what it decides.
fn idle_loop(counters: &Arc<Counters>) -> (EventLoop<Echo>, Poll, Clock) {
    let poll = Poll::new().expect("the system gives one");
    let registry = poll.registry().try_clone().expect("there are descriptors");
    let clock = Clock::start();
    let listeners = Listeners::bind(&[], false).expect("none");
    let mut event_loop = EventLoop::new(
        Echo::new(counters, 10),
        registry,
        clock,
        OPTIONS,
        listeners,
        None,
    );
    event_loop.turn();
    (event_loop, poll, clock)
}

fn attendance(lane: &Arc<Lane>) -> Attendance {
    let jobs: Arc<dyn Pending> = lane.clone();
    Attendance::new(&jobs)
}

#[test]
fn only_while_another_thread_watches_may_the_own_one_do_a_job() {
    let (counters, lane) = (Arc::default(), Arc::new(Lane::default()));
    let (mut event_loop, _poll, _clock) = idle_loop(&counters);
    lane.submit();
    assert!(matches!(event_loop.fall_asleep(), Rest::Sleep(None)));
    event_loop.admit(attendance(&lane));
    assert!(event_loop.fall_asleep_attended().is_none());
    let Rest::Work { jobs, calls } = event_loop.fall_asleep() else {
        panic!("a job waits");
    };
    assert!(!calls && event_loop.is_own_away());
    // Not even for that job, which the own thread may be about to begin.
    assert!(
        !event_loop.attendant_is_to_go(false, true),
        "nobody would watch"
    );
    assert!(
        event_loop.attendant_is_to_go(true, false),
        "the own thread is back"
    );
    assert!(jobs.perform_next() && !jobs.perform_next());
    event_loop.come_back();
    assert!(!event_loop.is_own_away());
    assert!(!event_loop.attendant_is_to_go(false, false));
    assert!(event_loop.attendant_is_to_go(false, true), "one is enough");
    lane.submit();
    assert!(event_loop.attendant_is_to_go(false, false), "a job waits");
    lane.perform_next();
    assert!(matches!(event_loop.fall_asleep(), Rest::Sleep(None)));
    assert!(event_loop.leave(), "the own thread watches");
}

#[test]
fn who_goes_wakes_the_other_one_for_a_deadline_that_it_does_not_know() {
    let (counters, lane) = (Arc::<Counters>::default(), Arc::new(Lane::default()));
    let (mut event_loop, _poll, _clock) = idle_loop(&counters);
    event_loop.admit(attendance(&lane));
    // Both sleep for ever.
    assert!(matches!(event_loop.fall_asleep(), Rest::Sleep(None)));
    assert!(event_loop.fall_asleep_attended().is_none());
    // A turn of the own thread sets a deadline, and a job waits.
    counters.deadline.store(1_000_000, Ordering::SeqCst);
    lane.submit();
    let rest = event_loop.fall_asleep();
    assert!(matches!(rest, Rest::Work { calls: true, .. }));
    event_loop.come_back();
    // It sleeps, knowing the deadline; a turn of the attendant sets an earlier one.
    lane.perform_next();
    assert!(matches!(event_loop.fall_asleep(), Rest::Sleep(Some(_))));
    counters.deadline.store(500_000, Ordering::SeqCst);
    assert!(event_loop.fall_asleep_attended().is_some());
    assert!(!event_loop.leave(), "the own thread sleeps too long");
    event_loop.admit(attendance(&lane));
    counters.deadline.store(2_000_000, Ordering::SeqCst);
    assert!(event_loop.leave(), "it wakes up early enough");
}

#[test]
fn a_job_that_a_turn_run_by_another_loop_leaves_is_not_left_lying() {
    let (counters, lane) = (Arc::default(), Arc::new(Lane::default()));
    let (mut event_loop, _poll, _clock) = idle_loop(&counters);
    event_loop.admit(attendance(&lane));
    assert!(event_loop.fall_asleep_attended().is_none());
    assert!(matches!(event_loop.fall_asleep(), Rest::Sleep(None)));
    assert!(
        event_loop.run_for_another(),
        "both watch, and nothing is due"
    );
    lane.submit();
    assert!(
        !event_loop.run_for_another(),
        "both sleep, and somebody must do it"
    );
    lane.perform_next();
    assert!(event_loop.run_for_another());
}

#[test]
fn an_attendant_that_is_asked_to_go_knows() {
    let (counters, lane) = (Arc::default(), Arc::new(Lane::default()));
    let (mut event_loop, _poll, _clock) = idle_loop(&counters);
    assert!(!event_loop.dismiss() && !event_loop.has_dismissed());
    event_loop.admit(attendance(&lane));
    assert!(!event_loop.has_dismissed());
    assert!(event_loop.dismiss() && event_loop.has_dismissed());
    event_loop.leave();
    assert!(!event_loop.dismiss());
}
