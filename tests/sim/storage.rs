//! Background jobs on simulated time: each lane does one job after another, each takes as long as
//! chance says, and what it does to the disk happens at its start or at its end.
//!
//! A sync whose effect is at the end leaves everything at risk until it is reported; one whose
//! effect is at the start doesn't cover what is written while it lasts. A broker must be right
//! with both.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ringmq::log::disk::Storage;
use ringmq::log::job::{Done, Job, Lane, perform};

use crate::disk::{SimDisk, SimFile};
use crate::rng::Rng;

/// How long jobs take, microseconds: shortest, longest.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// Of `Lane::Sync`.
    pub sync_us: (u64, u64),
    /// Of the other lanes.
    pub other_us: (u64, u64),
}

struct Running {
    job: Option<Job<SimFile>>,
    done: Option<Done<SimFile>>,
    end: u64,
}

#[derive(Default)]
struct LaneState {
    queue: VecDeque<Job<SimFile>>,
    running: Option<Running>,
}

struct Jobs {
    rng: Rng,
    delays: Delays,
    now: u64,
    lanes: [LaneState; 3],
    done: VecDeque<Done<SimFile>>,
    /// The longest that a job of the sync lane took since [`JobsHandle::take_longest_sync`].
    longest_sync: u64,
}

/// The harness' end of the background.
#[derive(Clone)]
pub struct JobsHandle {
    disk: SimDisk,
    jobs: Rc<RefCell<Jobs>>,
}

/// The broker's end.
pub struct SimStorage {
    disk: SimDisk,
    jobs: Rc<RefCell<Jobs>>,
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Sync => 0,
        Lane::Read => 1,
        Lane::Background => 2,
    }
}

impl SimStorage {
    /// Storage for one run of a broker on this disk.
    pub fn new(disk: &SimDisk, delays: Delays, now: u64, seed: u64) -> (SimStorage, JobsHandle) {
        let jobs = Rc::new(RefCell::new(Jobs {
            rng: Rng::new(seed),
            delays,
            now,
            lanes: Default::default(),
            done: VecDeque::new(),
            longest_sync: 0,
        }));
        let handle = JobsHandle {
            disk: disk.clone(),
            jobs: jobs.clone(),
        };
        (
            SimStorage {
                disk: disk.clone(),
                jobs,
            },
            handle,
        )
    }
}

impl Jobs {
    fn start(&mut self, disk: &SimDisk, lane: usize, at: u64) {
        if self.lanes[lane].running.is_some() {
            return;
        }
        let Some(job) = self.lanes[lane].queue.pop_front() else {
            return;
        };
        let (least, most) = match lane {
            0 => self.delays.sync_us,
            _ => self.delays.other_us,
        };
        let takes = self.rng.spread(least, most);
        if lane == 0 {
            self.longest_sync = self.longest_sync.max(takes);
        }
        let mut running = Running {
            job: Some(job),
            done: None,
            end: at + takes,
        };
        if self.rng.chance(500) {
            running.done = running.job.take().map(|job| perform(disk, job));
        }
        self.lanes[lane].running = Some(running);
    }
}

impl JobsHandle {
    /// When the next job ends.
    pub fn next_time(&self) -> Option<u64> {
        let jobs = self.jobs.borrow();
        let ends = jobs.lanes.iter().filter_map(|lane| lane.running.as_ref());
        ends.map(|running| running.end).min()
    }

    /// Lets the jobs run until `now`. True when one has finished.
    pub fn advance(&self, now: u64) -> bool {
        let mut finished = false;
        let jobs = &mut *self.jobs.borrow_mut();
        loop {
            let ended = (0..3).filter_map(|lane| {
                let running = jobs.lanes[lane].running.as_ref()?;
                (running.end <= now).then_some((running.end, lane))
            });
            let Some((end, lane)) = ended.min() else {
                break;
            };
            let running = jobs.lanes[lane].running.take().expect("found above");
            let done = match (running.done, running.job) {
                (Some(done), _) => done,
                (None, Some(job)) => perform(&self.disk, job),
                (None, None) => unreachable!("a job is done or to be done"),
            };
            jobs.done.push_back(done);
            finished = true;
            jobs.start(&self.disk, lane, end);
        }
        jobs.now = jobs.now.max(now);
        finished
    }

    /// Changes how long later jobs take.
    pub fn set_delays(&self, delays: Delays) {
        self.jobs.borrow_mut().delays = delays;
    }

    /// The longest sync that was begun since the last call, microseconds.
    pub fn take_longest_sync(&self) -> u64 {
        std::mem::take(&mut self.jobs.borrow_mut().longest_sync)
    }
}

impl Storage for SimStorage {
    type Disk = SimDisk;

    fn disk(&self) -> &SimDisk {
        &self.disk
    }

    fn submit(&mut self, job: Job<SimFile>) {
        let jobs = &mut *self.jobs.borrow_mut();
        let lane = index(job.lane());
        jobs.lanes[lane].queue.push_back(job);
        let now = jobs.now;
        jobs.start(&self.disk, lane, now);
    }

    fn poll(&mut self) -> Option<Done<SimFile>> {
        self.jobs.borrow_mut().done.pop_front()
    }
}
