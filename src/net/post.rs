//! Mail between the event loops of a broker with several shards: a queue to each, and a wake-up for one that
//! sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::Waker;

use crate::shard::Bag;

/// The way to one event loop.
#[derive(Clone, Debug)]
struct Outbox {
    bags: Sender<(u32, Bag)>,
    waker: Arc<Waker>,
    asleep: Arc<AtomicBool>,
}

/// One event loop's mail.
#[derive(Debug)]
pub(super) struct Post {
    me: u32,
    bags: Receiver<(u32, Bag)>,
    /// Taken from the queue to see whether there is anything.
    first: Option<(u32, Bag)>,
    asleep: Arc<AtomicBool>,
    /// By shard, this one's too.
    outboxes: Vec<Outbox>,
}

impl Post {
    /// The mail of several event loops, by their wakers.
    pub(super) fn between(wakers: &[Arc<Waker>]) -> Vec<Post> {
        let mut boxes = Vec::new();
        let mut inboxes = Vec::new();
        for waker in wakers {
            let (sender, receiver) = channel();
            inboxes.push(receiver);
            boxes.push(Outbox {
                bags: sender,
                waker: Arc::clone(waker),
                asleep: Arc::default(),
            });
        }
        let posts = inboxes.into_iter().zip(0u32..).map(|(bags, me)| Post {
            me,
            bags,
            first: None,
            asleep: Arc::clone(&boxes[me as usize].asleep),
            outboxes: boxes.clone(),
        });
        posts.collect()
    }

    /// The loop is going to sleep; false if there is mail, so that it must not.
    pub(super) fn sleep(&mut self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Either the sender sees that this loop sleeps, or this loop sees what was sent.
        fence(Ordering::SeqCst);
        self.look();
        self.first.is_none()
    }

    /// The loop is awake.
    pub(super) fn wake(&mut self) {
        self.asleep.store(false, Ordering::Relaxed);
        self.look();
    }

    fn look(&mut self) {
        if self.first.is_none() {
            self.first = self.bags.try_recv().ok();
        }
    }

    /// The next bag, and whose it is.
    pub(super) fn receive(&mut self) -> Option<(u32, Bag)> {
        self.look();
        self.first.take()
    }

    /// Sends a bag. One to a loop that has ended is dropped with it.
    pub(super) fn send(&self, to: u32, bag: Bag) {
        let outbox = &self.outboxes[to as usize];
        if outbox.bags.send((self.me, bag)).is_err() {
            return;
        }
        fence(Ordering::SeqCst);
        if outbox.asleep.swap(false, Ordering::Relaxed)
            && let Err(error) = outbox.waker.wake()
        {
            log::error!("an event loop could not be woken: {error}");
        }
    }
}
