//! The thread of one lane, and its queue.
//!
//! The queue can be worked off by another thread as well, one job at a time all the same: the thread of the event loop
//! does so while the lane's own thread looks after the loop (see [`Notify::attend`]).

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::FileDisk;
use crate::log::job::{Done, Job, Lane, perform};

/// Told by the threads of a storage that a job is done.
pub trait Notify: Send + Sync {
    /// A job is done: the event loop must look for it. From any thread; returns at once.
    fn wake(&self);

    /// The same from a thread that has nothing else to do than the lane's next jobs. Where waking another thread costs
    /// more than its turn does, this one may look after the event loop itself, and return when a job waits that it is
    /// to do, or when it is not needed.
    fn attend(&self, _lane: &Arc<dyn Pending>) {
        self.wake();
    }
}

impl<F: Fn() + Send + Sync> Notify for F {
    fn wake(&self) {
        self();
    }
}

/// The jobs of a lane that wait.
pub trait Pending: Send + Sync {
    /// A job waits, and nobody is at one.
    fn is_any(&self) -> bool;
    /// Does the next job on this thread, however long the disk takes. False if none waits or somebody is at one.
    fn perform_next(&self) -> bool;
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job<Arc<File>>>,
    /// Somebody is at a job.
    is_busy: bool,
    /// The lane's thread waits for one.
    is_waited_for: bool,
    /// Nothing is added any more.
    is_closed: bool,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    disk: FileDisk,
    done: Sender<Done<Arc<File>>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic is done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes the lane's thread if that waits.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        if state.is_waited_for {
            self.changed.notify_one();
        }
    }

    /// Waits until a job can be done; false when there will be none any more.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        loop {
            if !state.is_busy && !state.jobs.is_empty() {
                return true;
            }
            if state.is_closed && state.jobs.is_empty() {
                return false;
            }
            state.is_waited_for = true;
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.is_waited_for = false;
        }
    }
}

impl Pending for Queue {
    fn is_any(&self) -> bool {
        let state = self.lock();
        !state.is_busy && !state.jobs.is_empty()
    }

    fn perform_next(&self) -> bool {
        let job = {
            let mut state = self.lock();
            if state.is_busy {
                return false;
            }
            let Some(job) = state.jobs.pop_front() else {
                return false;
            };
            state.is_busy = true;
            job
        };
        // Nobody takes it any more when the storage is being dropped.
        let _ = self.done.send(perform(&self.disk, job));
        self.change(|state| state.is_busy = false);
        true
    }
}

/// A lane's thread. Dropping it waits for the jobs handed over.
pub(super) struct Worker {
    pub lane: Lane,
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. Only that of the sync lane attends: others' jobs are long and rare.
    pub fn start(
        lane: Lane,
        disk: FileDisk,
        done: Sender<Done<Arc<File>>>,
        notify: Arc<dyn Notify>,
    ) -> io::Result<Worker> {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            changed: Condvar::new(),
            disk,
            done,
        });
        let own = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name(format!("log-{lane:?}").to_lowercase());
        let thread = thread.spawn(move || {
            let pending: Arc<dyn Pending> = own.clone();
            while own.wait() {
                if !own.perform_next() {
                    continue;
                }
                // What waits already is done first; the loop sees to what has been done meanwhile.
                if lane == Lane::Sync && !own.is_any() {
                    notify.attend(&pending);
                } else {
                    notify.wake();
                }
            }
        })?;
        Ok(Worker {
            lane,
            queue,
            thread: Some(thread),
        })
    }

    /// Hands a job over.
    ///
    /// # Panics
    /// If the thread has: what it was at will never be done.
    pub fn submit(&self, job: Job<Arc<File>>) {
        let is_alive = self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished());
        assert!(is_alive, "a lane's thread lives as long as its storage");
        self.queue.change(|state| state.jobs.push_back(job));
    }

    /// No job comes any more.
    pub fn close(&self) {
        self.queue.change(|state| state.is_closed = true);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}
