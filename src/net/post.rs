//! Mail between the event loops of a broker with several shards: a queue to each, and what is done about one that
//! sleeps.
//!
//! Who sends mail to a loop that sleeps owes it a turn, and is the only one who does: it runs that turn, or wakes
//! the loop's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::Waker;

use super::place::Place;
use super::watch;
use crate::shard::Bag;

/// The way to one event loop.
struct Outbox<D> {
    bags: Sender<(u32, Bag)>,
    waker: Arc<Waker>,
    asleep: Arc<AtomicBool>,
    place: Arc<Place<D>>,
}

impl<D> Clone for Outbox<D> {
    fn clone(&self) -> Outbox<D> {
        Outbox {
            bags: self.bags.clone(),
            waker: Arc::clone(&self.waker),
            asleep: Arc::clone(&self.asleep),
            place: Arc::clone(&self.place),
        }
    }
}

impl<D> Outbox<D> {
    fn wake(&self) {
        watch::wake(&self.waker);
    }
}

/// One event loop's mail.
pub(super) struct Post<D> {
    me: u32,
    bags: Receiver<(u32, Bag)>,
    /// Taken from the queue to see whether there is anything.
    first: Option<(u32, Bag)>,
    asleep: Arc<AtomicBool>,
    /// By shard, this one's too.
    outboxes: Vec<Outbox<D>>,
    /// Those that slept when they were sent mail: each is owed a turn.
    owed: Vec<u32>,
}

impl<D> Post<D> {
    /// The mail of several event loops, by their wakers and places.
    pub(super) fn between(loops: &[(Arc<Waker>, Arc<Place<D>>)]) -> Vec<Post<D>> {
        let mut boxes = Vec::new();
        let mut inboxes = Vec::new();
        for (waker, place) in loops {
            let (sender, receiver) = channel();
            inboxes.push(receiver);
            boxes.push(Outbox {
                bags: sender,
                waker: Arc::clone(waker),
                asleep: Arc::default(),
                place: Arc::clone(place),
            });
        }
        let posts = inboxes.into_iter().zip(0u32..).map(|(bags, me)| Post {
            me,
            bags,
            first: None,
            asleep: Arc::clone(&boxes[me as usize].asleep),
            outboxes: boxes.clone(),
            owed: Vec::new(),
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

    /// There is mail.
    pub(super) fn has_mail(&mut self) -> bool {
        self.look();
        self.first.is_some()
    }

    /// The next bag, and whose it is.
    pub(super) fn receive(&mut self) -> Option<(u32, Bag)> {
        self.look();
        self.first.take()
    }

    /// Sends a bag. One to a loop that has ended is dropped with it.
    pub(super) fn send(&mut self, to: u32, bag: Bag) {
        let outbox = &self.outboxes[to as usize];
        if outbox.bags.send((self.me, bag)).is_err() {
            return;
        }
        fence(Ordering::SeqCst);
        if outbox.asleep.swap(false, Ordering::Relaxed) {
            self.owed.push(to);
        }
    }

    /// Turns are owed.
    pub(super) fn owes_turns(&self) -> bool {
        !self.owed.is_empty()
    }

    /// A loop that is owed a turn, which is the caller's affair from here on.
    pub(super) fn take_owed(&mut self) -> Option<u32> {
        self.owed.pop()
    }

    /// Where that loop is, and the list of those that are owed a turn.
    pub(super) fn place(&mut self, of: u32) -> (&Place<D>, &mut Vec<u32>) {
        (&self.outboxes[of as usize].place, &mut self.owed)
    }

    /// What this loop owes is owed by another from here on.
    pub(super) fn hand_over(&mut self, owed: &mut Vec<u32>) {
        owed.append(&mut self.owed);
    }

    /// The thread of that loop goes on.
    pub(super) fn wake_other(&self, to: u32) {
        self.outboxes[to as usize].wake();
    }

    /// All that are owed a turn get it by their threads.
    pub(super) fn wake_others(&mut self) {
        for to in self.owed.drain(..) {
            self.outboxes[to as usize].wake();
        }
    }
}
