//! Messages that are handed out one after another: what is the same for all of them is looked at once.

use super::super::Now;
use super::Engine;
use crate::broker::arena::Cursor;
use crate::broker::id::{Level, MessageId};
use crate::broker::lease::HolderKey;
use crate::broker::queue::QueueKey;
use crate::log::disk::Storage;
use crate::log::{Log, Payload, Position, Read};

/// Most messages of one run.
const RUN_MAX: u64 = 512;

/// Where the bodies of a queue lie.
enum Bodies<'e, S: Storage> {
    Memory(Cursor<'e>),
    Log(&'e mut Log<S>),
}

impl<S: Storage> Bodies<'_, S> {
    /// When the message at a place, which is in memory, was published, unix milliseconds.
    fn time_ms(&mut self, place: u64) -> u64 {
        match self {
            Bodies::Memory(messages) => messages.time_ms(place),
            Bodies::Log(log) => match log.read(Position(place)) {
                Read::Resident(stored) => stored.time_ms,
                Read::Cold | Read::Damaged => panic!("it was read before"),
            },
        }
    }

    /// The body at a place, if it is in memory and nothing but that lies there.
    #[inline]
    fn plain(&mut self, place: u64) -> Option<&[u8]> {
        match self {
            Bodies::Memory(messages) => messages.plain(place),
            Bodies::Log(log) => match log.read(Position(place)) {
                Read::Resident(stored) if stored.sections.is_empty() => match stored.body {
                    Payload::Slice(body) => Some(body),
                    Payload::Shared(_) => None,
                },
                Read::Resident(_) | Read::Cold | Read::Damaged => None,
            },
        }
    }
}

impl<S: Storage> Engine<S> {
    /// Leases the next messages of a queue that [gives plainly](crate::broker::queue::Queue::gives_plainly) to a holder as long as their ids are consecutive, it is the first try of
    /// each, and they lie in memory as nothing but a body, and as `write` (id, lease's serial, body) says that
    /// one more may follow. The first of them is measured if it is the hand-out's. Returns how many there were; the next one, if there is one, is for the general
    /// path.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub fn hand_out_run(
        &mut self,
        key: QueueKey,
        holder: HolderKey,
        lease_us: u64,
        most: u32,
        is_first: bool,
        now: Now,
        mut write: impl FnMut(MessageId, u64, &[u8]) -> bool,
    ) -> u32 {
        let Engine {
            queues,
            leases,
            log,
            ..
        } = self;
        let queue = &mut queues[key.0 as usize];
        let next_us = queue.expiry.next_us(queue.settings.ttl_us);
        if queue.settings.pause.output || next_us.is_some_and(|next_us| next_us <= now.us) {
            return 0;
        }
        let Some((first, most, pri)) = queue.peek_run(u64::from(most).min(RUN_MAX)) else {
            return 0;
        };
        let Some((base, offsets)) = queue.index.find_run(first, most as usize) else {
            return 0;
        };
        let count = offsets.len();
        let Some(mut run) = leases.begin_run(key, holder, pri, now.us, lease_us, count) else {
            return 0;
        };
        let mut bodies = match (queue.settings.durable, log) {
            (Level::None, _) => Bodies::Memory(queue.arena.cursor()),
            (_, Some(log)) => Bodies::Log(log),
            (_, None) => return 0,
        };
        let (mut id, mut serial) = (first, 0);
        for offset in offsets {
            let place = base + u64::from(*offset);
            let Some(body) = bodies.plain(place) else {
                break;
            };
            serial = run.begin(id, place, body.len() as u32);
            id += 1;
            if !write(id - 1, serial, body) {
                break;
            }
        }
        let count = id - first;
        if count == 0 {
            return 0;
        }
        let time_ms = is_first.then(|| bodies.time_ms(base + u64::from(offsets[0])));
        drop(run);
        queue.take_run(first, count, pri);
        if let Some(time_ms) = time_ms {
            // How long it is worked on is as well known of the last as of the first.
            self.measure(time_ms, 1, serial, now);
        }
        count as u32
    }
}
