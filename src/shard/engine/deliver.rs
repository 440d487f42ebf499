//! Handing out: the next message of a queue, and messages that must be read from the disk first.

use slab::Slab;

use super::super::Now;
use super::Engine;
use crate::broker::arena::is_request;
use crate::broker::id::{Level, MessageId};
use crate::broker::index::{Located, Slot};
use crate::broker::queue::{Queue, QueueKey};
use crate::broker::reply::Payload;
use crate::log;
use crate::log::disk::Storage;
use crate::log::{BlockSlot, Log, Position, Read};

/// The next message of a queue.
#[derive(Debug)]
pub enum Next {
    /// Nothing is ready.
    Empty,
    /// The next one is being read from the disk.
    Cold,
    /// Taken; it counts as leased.
    Taken(Taken),
}

/// A message that was taken for delivery.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Its id.
    pub id: MessageId,
    /// Where it lies.
    pub place: u64,
    /// Its priority.
    pub pri: u8,
    /// Which try this is.
    pub tries: u16,
}

/// A message as it is stored.
#[derive(Debug)]
pub struct StoredMessage<'a> {
    /// Publish time, unix milliseconds.
    pub time_ms: u64,
    /// Encoded sections.
    pub sections: &'a [u8],
    /// The body.
    pub body: Payload<'a>,
}

/// A stored body does not match its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl<S: Storage> Engine<S> {
    /// Where a message lies and how large its body is, if that is known without reading the disk;
    /// `None` when its index block must be loaded first (that has been asked for).
    pub fn locate(&mut self, key: QueueKey, id: MessageId) -> Option<(u64, Option<u32>)> {
        match self.find_place(key, id) {
            Located::At(place) => {
                let size = match self.stored(key, place) {
                    Some(Ok(message)) => Some(message.body.as_slice().len() as u32),
                    Some(Err(Damaged)) | None => None,
                };
                Some((place, size))
            }
            Located::Spilled(slot) => {
                self.load(slot);
                None
            }
            Located::Gone => panic!("only messages that are there are looked for"),
        }
    }

    /// Where a reader's message lies.
    #[inline]
    pub(super) fn find_place(&mut self, key: QueueKey, id: MessageId) -> Located {
        let queue = &mut self.queues[key.0 as usize];
        match &queue.group {
            None => queue.index.find(id),
            Some(group) => {
                let store = group.queue;
                self.find_place_of_group(store, id)
            }
        }
    }

    #[cold]
    fn find_place_of_group(&mut self, store: QueueKey, id: MessageId) -> Located {
        self.queue_mut(store).index.find(id)
    }

    pub(super) fn load(&mut self, slot: Slot) {
        self.log
            .as_mut()
            .expect("only a log has block files")
            .load(BlockSlot(slot.0 as u32));
    }

    /// Takes the message at the end of a queue that leaves last.
    #[cold]
    pub fn take_last(&mut self, key: QueueKey, now: Now) -> Next {
        self.queue_mut(key).from_tail = true;
        let next = self.take_next(key, now);
        self.queue_mut(key).from_tail = false;
        next
    }

    /// Must the next message of a queue be read from the disk before it can be taken? Then that was asked for.
    pub fn is_next_cold(&mut self, key: QueueKey, now: Now) -> bool {
        matches!(self.find_next(key, now), Err(Next::Cold))
    }

    /// Takes the next message of a queue.
    #[inline]
    pub fn take_next(&mut self, key: QueueKey, now: Now) -> Next {
        let (id, pri, place) = match self.find_next(key, now) {
            Ok(found) => found,
            Err(next) => return next,
        };
        let queue = &mut self.queues[key.0 as usize];
        queue.take();
        let tries = queue.next_try(id);
        queue.counters.delivered += 1;
        queue.counters.redelivered += u64::from(tries > 1);
        if queue.takes_turns() {
            self.charge(key, id, place);
        }
        Next::Taken(Taken {
            id,
            place,
            pri,
            tries,
        })
    }

    /// The next message of a queue: its id, priority and place.
    ///
    /// # Errors
    /// `Next::Empty` if there is none, `Next::Cold` if it is on the disk and was asked for; nothing else.
    #[inline(always)]
    fn find_next(&mut self, key: QueueKey, now: Now) -> Result<(MessageId, u8, u64), Next> {
        let queue = &mut self.queues[key.0 as usize];
        if queue.settings.pause.output {
            return Err(Next::Empty);
        }
        if !queue.expiry.is_empty()
            && queue
                .expiry
                .next_us(queue.settings.ttl_us)
                .is_some_and(|next| next <= now.us)
        {
            self.expire_due(key, now);
        }
        loop {
            let queue = &mut self.queues[key.0 as usize];
            let Some((id, pri)) = queue.peek() else {
                return Err(Next::Empty);
            };
            let level = queue.settings.durable;
            let found = match &queue.group {
                None => queue.index.find(id),
                Some(group) => {
                    let store = group.queue;
                    self.find_place_of_group(store, id)
                }
            };
            let place = match found {
                Located::At(place) => place,
                Located::Spilled(slot) => {
                    self.load(slot);
                    self.cold_queues.push(key);
                    return Err(Next::Cold);
                }
                Located::Gone => panic!("a ready message is in the index"),
            };
            if level != Level::None && !is_request(place) {
                match self
                    .log
                    .as_mut()
                    .expect("a logged queue has a log")
                    .read(Position(place))
                {
                    Read::Resident(_) => {}
                    Read::Cold => {
                        self.fetch(place);
                        self.cold_queues.push(key);
                        return Err(Next::Cold);
                    }
                    Read::Damaged => {
                        self.quarantine(key);
                        continue;
                    }
                }
            }
            return Ok((id, pri, place));
        }
    }

    /// The first message of a hand-out: notes how long it waited, and when its consumer got it. `serial` is its
    /// lease's, 0 if there is none.
    #[inline]
    pub fn measure(&mut self, time_ms: u64, tries: u16, serial: u64, now: Now) {
        if tries == 1 {
            let waited_ms = (now.us / 1000).saturating_sub(time_ms);
            self.times.dwell_ms.add(waited_ms);
        }
        if serial != 0 {
            let leases = &self.leases;
            let is_on = |serial| leases.get(serial).is_some();
            self.times.watch(serial, now.us, is_on);
        }
    }

    /// A message that was just taken has used a turn of its key.
    #[cold]
    fn charge(&mut self, key: QueueKey, id: MessageId, place: u64) {
        if let Some(Ok(message)) = self.stored(key, place) {
            let body_bytes = message.body.as_slice().len() as u32;
            self.queue_mut(key).charge(id, body_bytes);
        }
    }

    /// The next message is damaged on the disk: it is counted and never handed out.
    #[cold]
    fn quarantine(&mut self, key: QueueKey) {
        let queue = self.queue_mut(key);
        if let Some((id, _)) = queue.take() {
            queue.counters.damaged += 1;
            queue.keep_back(id);
            ::log::error!(
                "message {id} of queue {} is damaged on the disk and is kept back; `ringmq check` names the place",
                String::from_utf8_lossy(&queue.printed)
            );
        }
    }

    /// Asks for a message to be read from the disk.
    pub fn fetch(&mut self, place: u64) {
        self.log
            .as_mut()
            .expect("only a log is read from the disk")
            .fetch(Position(place));
    }

    /// A message as it is stored; `None` while it is only on the disk.
    #[inline]
    pub fn stored(
        &mut self,
        key: QueueKey,
        place: u64,
    ) -> Option<Result<StoredMessage<'_>, Damaged>> {
        let Engine { queues, log, .. } = self;
        stored_in(store_in(queues, &queues[key.0 as usize]), log, place)
    }

    /// The same, with the queue's printed name beside it.
    #[inline(always)]
    pub fn stored_beside_queue(
        &mut self,
        key: QueueKey,
        place: u64,
    ) -> Option<Result<(&[u8], StoredMessage<'_>), Damaged>> {
        let Engine { queues, log, .. } = self;
        let queue = &queues[key.0 as usize];
        let message = stored_in(store_in(queues, queue), log, place)?;
        Some(message.map(|message| (&*queue.printed, message)))
    }

    /// Where a live message lies, if that is known without reading the disk.
    pub fn place_of(&mut self, key: QueueKey, id: MessageId) -> Option<u64> {
        match self.find_place(key, id) {
            Located::At(place) => Some(place),
            Located::Spilled(_) | Located::Gone => None,
        }
    }

    /// A ready message is damaged on the disk: it is kept back.
    pub fn keep_back(&mut self, key: QueueKey, id: MessageId) {
        let queue = self.queue_mut(key);
        if queue.take_waiting(id).is_some() {
            queue.counters.damaged += 1;
            queue.keep_back(id);
            self.schedule(key);
        }
    }

    /// What was read from the disk has come: those who waited for it try again.
    pub fn handle_fetched(&mut self, now: Now) {
        for key in std::mem::take(&mut self.cold_queues) {
            if self.queues.contains(key.0 as usize) {
                self.schedule(key);
            }
        }
        self.outbox_fetched();
        self.bury_again(now);
    }

    /// Dead letters that waited for something go on.
    pub fn bury_again(&mut self, now: Now) {
        for moving in std::mem::take(&mut self.moving) {
            if self.is_same(moving.queue, moving.uid) {
                self.bury(moving.queue, moving.death, now);
            }
        }
    }

    /// A spilled index block has come back.
    pub fn handle_block(&mut self, slot: BlockSlot, column: &[u32]) {
        let slot = Slot(u64::from(slot.0));
        let indexes = self.queues.iter_mut().map(|(_, queue)| &mut queue.index);
        for index in indexes.chain(&mut self.doomed) {
            if let Some(number) = index.block_of(slot) {
                index.loaded(slot, number, column);
                return;
            }
        }
    }
}

/// The queue that holds a reader's messages.
#[inline]
fn store_in<'a>(queues: &'a Slab<Queue>, queue: &'a Queue) -> &'a Queue {
    match &queue.group {
        None => queue,
        Some(group) => store_of_group(queues, group.queue),
    }
}

#[cold]
fn store_of_group(queues: &Slab<Queue>, store: QueueKey) -> &Queue {
    &queues[store.0 as usize]
}

/// The message at a place of a queue; `None` while it is only on the disk.
#[inline]
fn stored_in<'a, S: Storage>(
    queue: &'a Queue,
    log: &'a mut Option<Log<S>>,
    place: u64,
) -> Option<Result<StoredMessage<'a>, Damaged>> {
    if queue.settings.durable == Level::None || is_request(place) {
        let stored = queue.arena.get(place);
        return Some(Ok(StoredMessage {
            time_ms: stored.time_ms,
            sections: stored.sections,
            body: stored.body,
        }));
    }
    match log
        .as_mut()
        .expect("a logged queue has a log")
        .read(Position(place))
    {
        Read::Resident(stored) => {
            let body = match stored.body {
                log::Payload::Slice(slice) => Payload::Slice(slice),
                log::Payload::Shared(bytes) => Payload::Shared(bytes),
            };
            Some(Ok(StoredMessage {
                time_ms: stored.time_ms,
                sections: stored.sections.0,
                body,
            }))
        }
        Read::Cold => None,
        Read::Damaged => Some(Err(Damaged)),
    }
}
