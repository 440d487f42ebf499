//! A storage without threads: a job is done when its result is asked for. For tools, which have nothing else to
//! do meanwhile.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use super::disk::{Disk, Storage};
use super::job::{Done, Job, perform};

/// Does jobs one after another on the thread that asks for their results.
pub struct Foreground<D: Disk> {
    disk: D,
    jobs: VecDeque<Job<D::File>>,
    /// Jobs done so far.
    done: Rc<Cell<u64>>,
}

impl<D: Disk> Foreground<D> {
    /// On that disk. Nothing is locked.
    pub fn new(disk: D) -> Foreground<D> {
        Foreground {
            disk,
            jobs: VecDeque::new(),
            done: Rc::default(),
        }
    }

    /// How many jobs were done so far, also when the storage is out of sight.
    pub fn done(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.done)
    }
}

impl<D: Disk> fmt::Debug for Foreground<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Foreground")
            .field("jobs", &self.jobs)
            .finish_non_exhaustive()
    }
}

impl<D: Disk> Storage for Foreground<D> {
    type Disk = D;

    fn disk(&self) -> &D {
        &self.disk
    }

    fn submit(&mut self, job: Job<D::File>) {
        self.jobs.push_back(job);
    }

    fn poll(&mut self) -> Option<Done<D::File>> {
        let job = self.jobs.pop_front()?;
        self.done.set(self.done.get() + 1);
        Some(perform(&self.disk, job))
    }
}
