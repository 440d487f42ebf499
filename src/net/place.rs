//! Where an event loop is when the thread that runs it sleeps.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::event_loop::EventLoop;

/// A loop that a thread holds while it runs its turns. Empty before the first, and after the end.
pub(super) type Held<'a, D> = MutexGuard<'a, Option<EventLoop<D>>>;

/// Whoever runs turns of a loop takes it from here, and puts it back before it sleeps.
pub(super) struct Place<D> {
    event_loop: Mutex<Option<EventLoop<D>>>,
    /// Threads that wait for it.
    waiting: AtomicU32,
}

impl<D> Default for Place<D> {
    fn default() -> Place<D> {
        Place {
            event_loop: Mutex::default(),
            waiting: AtomicU32::new(0),
        }
    }
}

impl<D> Place<D> {
    /// The loop, if nobody runs its turn; not after a panic in one.
    pub fn try_lock(&self) -> Option<Held<'_, D>> {
        self.event_loop.try_lock().ok()
    }

    /// The loop, once nobody runs its turn; also says whether somebody did.
    pub fn lock(&self) -> (Held<'_, D>, bool) {
        match self.event_loop.try_lock() {
            Ok(held) => return (held, false),
            Err(TryLockError::Poisoned(error)) => return (error.into_inner(), false),
            Err(TryLockError::WouldBlock) => {}
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let held = self.event_loop.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        (held.unwrap_or_else(PoisonError::into_inner), true)
    }

    /// Somebody waits for it.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}
