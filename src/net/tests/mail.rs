//! Several loops that send each other mail: who runs their turns, and that none is left out.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use super::super::{Driven, Options, Reactor};
use super::attend::Lane;
use crate::shard::{Bag, ConnKey, Now, Room, Stop};

/// What a test and all loops see.
#[derive(Default)]
struct Shared {
    /// Bags that loop 0 is to send to loop 1 when it is woken.
    kicks: AtomicU64,
    /// Bags that a loop that got one passes on in all.
    hops: AtomicU64,
    /// Bags that came, by loop.
    came: [AtomicU64; 3],
    /// Who ran the turns in which mail came to loop 1, and those after a deadline of it.
    ran: Mutex<Vec<ThreadId>>,
    fired: Mutex<Vec<ThreadId>>,
}

/// What a loop does with a bag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// It passes it on to the next loop as long as there are hops.
    Passes,
    /// The same, after a job of its lane.
    Works,
    /// It wants a turn so much later, microseconds.
    Waits(u64),
    /// It ends.
    Stops,
}

struct Node {
    me: u32,
    count: u32,
    does: Does,
    shared: Arc<Shared>,
    out: VecDeque<u32>,
    deadline_us: Option<u64>,
    stop: Option<Stop>,
    lane: Arc<Lane>,
    /// Bags that wait for a job, those that the job under way is for, and jobs.
    unworked: u32,
    worked: u32,
    jobs: u64,
}

impl Node {
    fn pass(&mut self) {
        let one_less = |left: u64| left.checked_sub(1);
        let order = Ordering::SeqCst;
        let hops = &self.shared.hops;
        if hops.fetch_update(order, order, one_less).is_ok() {
            self.out.push_back((self.me + 1) % self.count);
        }
    }

    fn work(&mut self) {
        if self.lane.done.load(Ordering::SeqCst) < self.jobs {
            return;
        }
        for _ in 0..std::mem::take(&mut self.worked) {
            self.pass();
        }
        if self.unworked > 0 {
            self.worked = std::mem::take(&mut self.unworked);
            self.jobs += 1;
            self.lane.submit();
        }
    }
}

impl Driven for Node {
    fn handle_accept(&mut self, _: &str, _: usize, _: Now) -> Option<ConnKey> {
        None
    }
    fn receive_room(&mut self, _: ConnKey) -> Option<Room<'_>> {
        None
    }
    fn handle_received(&mut self, _: ConnKey, _: usize, _: Now) {}
    fn handle_half_close(&mut self, _: ConnKey, _: Now) {}
    fn handle_reset(&mut self, _: ConnKey, _: Now) {}
    fn handle_turn_end(&mut self, now: Now) {
        self.work();
        if self.me == 0 {
            for _ in 0..self.shared.kicks.swap(0, Ordering::SeqCst) {
                self.out.push_back(1);
            }
        }
        if self.deadline_us.is_some_and(|due_us| due_us <= now.us) {
            self.deadline_us = None;
            let mut fired = self.shared.fired.lock().expect("no test panics");
            fired.push(std::thread::current().id());
        }
    }
    fn poll_resume(&mut self) -> Option<ConnKey> {
        None
    }
    fn poll_output(&mut self) -> Option<ConnKey> {
        None
    }
    fn output<'a>(&'a self, _: ConnKey, _: &mut [IoSlice<'a>]) -> usize {
        0
    }
    fn handle_sent(&mut self, _: ConnKey, _: usize, _: Now) -> bool {
        false
    }
    fn poll_close(&mut self) -> Option<ConnKey> {
        None
    }
    fn poll_timeout(&self) -> Option<u64> {
        self.deadline_us
    }
    fn handle_shutdown(&mut self, _: Now) {}
    fn poll_stopped(&mut self) -> Option<Stop> {
        self.stop.take()
    }
    fn handle_post(&mut self, from: u32, _: Bag, now: Now) {
        assert_ne!(from, self.me);
        if self.me == 1 {
            let mut ran = self.shared.ran.lock().expect("no test panics");
            ran.push(std::thread::current().id());
        }
        match self.does {
            Does::Passes => self.pass(),
            Does::Works => self.unworked += 1,
            Does::Waits(us) => self.deadline_us = Some(now.us + us),
            Does::Stops => self.stop = Some(Stop::Finished),
        }
        self.shared.came[self.me as usize].fetch_add(1, Ordering::SeqCst);
    }
    fn poll_post(&mut self) -> Option<(u32, Bag)> {
        Some((self.out.pop_front()?, Bag::default()))
    }
}

type Wake = Arc<dyn Fn() + Send + Sync>;

/// Loops on threads of their own, and what wakes them. They are left running: nothing of them is in the way.
struct Loops {
    shared: Arc<Shared>,
    wakers: Vec<Wake>,
    threads: Vec<JoinHandle<Stop>>,
}

impl Loops {
    fn start(count: u32, does: Does) -> Loops {
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let options = Options {
            spin: false,
            pinned: false,
            turn_bytes_max: 8 << 10,
            lingering_max: 10,
        };
        let shared = Arc::new(Shared::default());
        let reactors = Reactor::bind_several(&[loopback], options, count);
        let (mut wakers, mut threads): (Vec<Wake>, _) = (Vec::new(), Vec::new());
        for (mut reactor, me) in reactors.expect("port 0 is free").into_iter().zip(0..) {
            let lane = Arc::new(Lane::default());
            if does == Does::Works {
                lane.start(reactor.attendant().expect("there are file descriptors"));
            }
            let node = Node {
                me,
                count,
                does,
                shared: Arc::clone(&shared),
                out: VecDeque::new(),
                deadline_us: None,
                stop: None,
                lane,
                unworked: 0,
                worked: 0,
                jobs: 0,
            };
            wakers.push(reactor.waker());
            threads.push(std::thread::spawn(move || {
                reactor.run(node).expect("polling works")
            }));
        }
        Loops {
            shared,
            wakers,
            threads,
        }
    }

    /// Loop 0 sends a bag to loop 1.
    fn kick(&self) {
        self.shared.kicks.fetch_add(1, Ordering::SeqCst);
        (self.wakers[0])();
    }

    fn came(&self, to: usize) -> u64 {
        self.shared.came[to].load(Ordering::SeqCst)
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn one_who_has_mail_for_a_loop_that_sleeps_runs_its_turn() {
    let loops = Loops::start(2, Does::Passes);
    for n in 1..=200 {
        loops.shared.hops.store(1, Ordering::SeqCst);
        loops.kick();
        until("it is answered", || loops.came(0) == n);
    }
    let ran = loops.shared.ran.lock().expect("no test panics");
    let sender = loops.threads[0].thread().id();
    let by_sender = ran.iter().filter(|thread| **thread == sender).count();
    // At the beginning the other one may not sleep yet.
    assert!(by_sender > 150, "{by_sender} of {}", ran.len());
}

/// Bags go round among three loops until there are no hops left.
fn pass_round(loops: &Loops, rounds: u64, bags: u64, hops: u64) {
    let all = || (0..3).map(|to| loops.came(to)).sum::<u64>();
    for round in 1..=rounds {
        loops.shared.hops.store(hops, Ordering::SeqCst);
        for _ in 0..bags {
            loops.kick();
        }
        let end = round * (bags + hops);
        until("every bag comes", || {
            // At first threads that wake up by themselves meet those who run their turns; then nobody helps.
            let left = end - all();
            if left > hops / 2 {
                (loops.wakers[left as usize % 3])();
            }
            left == 0
        });
    }
}

#[test]
fn no_mail_is_left_lying_whoever_sleeps() {
    pass_round(&Loops::start(3, Does::Passes), 50, 4, 500);
}

#[test]
fn no_mail_and_no_job_is_left_lying_whoever_sleeps() {
    let loops = Loops::start(3, Does::Works);
    pass_round(&loops, 30, 4, 300);
    // One at a time: each loop sleeps when it comes to it.
    pass_round(&Loops::start(3, Does::Works), 10, 1, 300);
}

#[test]
fn a_deadline_that_begins_in_a_turn_run_by_another_is_kept() {
    let loops = Loops::start(2, Does::Waits(30_000));
    let fired = || loops.shared.fired.lock().expect("no test panics").clone();
    for n in 1..=5 {
        loops.kick();
        until("the deadline passes", || fired().len() == n);
    }
    let own = loops.threads[1].thread().id();
    assert!(fired().iter().all(|thread| *thread == own));
}

#[test]
fn a_loop_that_ends_in_a_turn_run_by_another_ends_its_thread() {
    let mut loops = Loops::start(2, Does::Stops);
    loops.kick();
    let last = loops.threads.pop().expect("two were started");
    until("its thread ends", || last.is_finished());
    assert_eq!(last.join().expect("it does not panic"), Stop::Finished);
    // What is sent to it from now on is nobody's.
    loops.kick();
    loops.kick();
    assert_eq!(loops.came(1), 1);
}
