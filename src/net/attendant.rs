//! A second thread that runs a loop's turns: the one that syncs its log.
//!
//! A publisher that waits for its receipt before it sends more, or a few of them, leaves the loop nothing to do while
//! the log is synced. Two threads would only wake each other then, for the sync and for the receipts. So the thread
//! that has done a sync runs the loop's turn itself if the loop sleeps, and stays: both threads watch the sockets, the
//! one that an event comes to runs the turn, and if that leaves something to sync and nothing else, it does the sync
//! as well, while the other one goes on watching. Under load, when both are awake at once, the thread goes back to
//! its lane. (Leader/followers: Schmidt, O'Ryan, Kircher, Pyarali, "Leader/Followers: A Design Pattern for Efficient
//! Multi-threaded Event Demultiplexing and Dispatching", 2000.)

use std::sync::{Arc, Mutex, PoisonError};

use mio::Waker;

use super::Driven;
use super::abort::AbortOnPanic;
use super::event_loop::EventLoop;
use super::place::Place;
use super::watch::{self, Watch};
use crate::log::files::{Notify, Pending};

/// What the attendant may leave the sockets to its loop's own thread for, and the other way round.
pub(super) struct Attendance {
    /// What keeps either of them from watching.
    jobs: Arc<dyn Pending>,
    /// The attendant sleeps until then at the latest, microseconds.
    pub sleeps_until_us: u64,
    /// The own thread is at one of the jobs: only the attendant watches.
    pub is_alone: bool,
    /// The attendant is to go.
    pub is_dismissed: bool,
}

impl Attendance {
    /// Of a thread that begins to watch.
    pub fn new(jobs: &Arc<dyn Pending>) -> Attendance {
        Attendance {
            jobs: Arc::clone(jobs),
            sleeps_until_us: 0,
            is_alone: false,
            is_dismissed: false,
        }
    }

    /// A job waits.
    pub fn is_job_left(&self) -> bool {
        self.jobs.is_any()
    }

    /// The jobs.
    pub fn jobs(&self) -> Arc<dyn Pending> {
        Arc::clone(&self.jobs)
    }
}

/// What a storage's threads tell a loop through; that of the sync lane attends to it.
pub(super) struct Attendant<D> {
    place: Arc<Place<D>>,
    waker: Arc<Waker>,
    /// Only the attending thread uses it. `None` where nobody may attend.
    watch: Option<Mutex<Watch>>,
}

impl<D> Attendant<D> {
    /// Of the loop at that place. Without a `watch` nobody attends.
    pub fn new(place: Arc<Place<D>>, waker: Arc<Waker>, watch: Option<Watch>) -> Attendant<D> {
        Attendant {
            place,
            waker,
            watch: watch.map(Mutex::new),
        }
    }
}

impl<D: Driven + Send> Notify for Attendant<D> {
    fn wake(&self) {
        watch::wake(&self.waker);
    }

    fn attend(&self, jobs: &Arc<dyn Pending>) {
        let _guard = AbortOnPanic;
        if !self.run_turns(jobs) {
            self.wake();
        }
    }
}

impl<D: Driven> Attendant<D> {
    /// Runs turns as long as this thread is not needed elsewhere. False if the loop's own thread must be woken.
    fn run_turns(&self, jobs: &Arc<dyn Pending>) -> bool {
        let Some(watch) = &self.watch else {
            return false;
        };
        let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut held) = self.place.try_lock() else {
            return false;
        };
        let Some(event_loop) = held.as_mut() else {
            return false;
        };
        event_loop.admit(Attendance::new(jobs));
        let mut has_waited = false;
        loop {
            let Some(event_loop) = held.as_mut() else {
                return true;
            };
            event_loop.wake_up();
            event_loop.take_events(&mut watch);
            if event_loop.has_dismissed() {
                return event_loop.leave();
            }
            event_loop.turn();
            if event_loop.is_busy() {
                event_loop.wake_others();
            } else {
                event_loop.run_others();
            }
            if event_loop.attendant_is_to_go(self.place.is_wanted(), has_waited) {
                return event_loop.leave();
            }
            let timeout = event_loop.fall_asleep_attended();
            drop(held);
            let slept = watch.sleep(timeout);
            (held, has_waited) = self.place.lock();
            if let Err(error) = slept {
                log::error!("a thread cannot watch the event loop's sockets: {error}");
                return held.as_mut().is_none_or(EventLoop::leave);
            }
        }
    }
}
