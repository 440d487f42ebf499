//! Leases in runs: begun together by a hand-out of many messages, ended together by the acks of them.

use super::super::id::MessageId;
use super::super::queue::QueueKey;
use super::{FOREVER, FREE, HolderKey, IN_TREE, Lease, Leases, NIL};

/// Begins leases that differ in their messages only. They count when it is dropped.
#[derive(Debug)]
pub struct LeaseRun<'a> {
    leases: &'a mut Leases,
    like: Lease,
    /// The last of the list, and the first of the holder's.
    before: u32,
    holder_after: u32,
    /// The serial that the last one says is next.
    following: u64,
    count: u32,
}

impl LeaseRun<'_> {
    /// Begins the next one, on a message of that id, place and size; returns its serial. To be called no more
    /// often than was said.
    #[inline]
    pub fn begin(&mut self, id: MessageId, place: u64, size: u32) -> u64 {
        let leases = &mut *self.leases;
        let serial = leases.take_serial();
        let link = serial as u32;
        // Each says that the next serial follows, which is mostly so.
        let next = (serial + 1) as u32;
        *leases.at_mut(link) = Lease {
            serial,
            id,
            place,
            size,
            before: self.before,
            after: next,
            holder_before: next,
            holder_after: self.holder_after,
            ..self.like
        };
        if serial != self.following {
            self.lead_to(link);
        }
        self.before = link;
        self.holder_after = link;
        self.following = serial + 1;
        self.count += 1;
        serial
    }

    /// The lease in front of this one does not say that it follows.
    #[cold]
    fn lead_to(&mut self, link: u32) {
        match self.before {
            NIL => self.leases.lists[usize::from(self.like.list)].head = link,
            before => self.leases.at_mut(before).after = link,
        }
        if self.holder_after != NIL {
            self.leases.at_mut(self.holder_after).holder_before = link;
        }
    }
}

impl Drop for LeaseRun<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            let last = self.leases.at_mut(self.before);
            (last.after, last.holder_before) = (NIL, NIL);
        }
        let list = &mut self.leases.lists[usize::from(self.like.list)];
        list.tail = self.before;
        list.count += self.count;
        let holder = &mut self.leases.holders[self.like.holder.0 as usize];
        holder.head = self.holder_after;
        holder.count += self.count;
        self.leases.count += self.count as usize;
    }
}

impl Leases {
    /// Begins leases of one queue's messages, of the same holder, duration and priority, each the first try.
    #[inline]
    pub fn begin_run(
        &mut self,
        queue: QueueKey,
        holder: HolderKey,
        pri: u8,
        now_us: u64,
        lease_us: u64,
        most: usize,
    ) -> Option<LeaseRun<'_>> {
        let list = self.list_of(lease_us)?;
        while (self.count + most) * 2 > self.slots.len() {
            self.resize(self.slots.len() * 2);
        }
        let like = Lease {
            deadline_us: now_us.saturating_add(lease_us),
            queue,
            holder,
            tries: 1,
            pri,
            list: list as u8,
            ..FREE
        };
        let (before, holder_after) = (self.lists[list].tail, self.holders[holder.0 as usize].head);
        Some(LeaseRun {
            leases: self,
            like,
            before,
            holder_after,
            following: 0,
            count: 0,
        })
    }

    /// Ends the leases from serial `first` on that were begun one after another on the messages from `id` on, as long as
    /// `wanted` says so of the nth, from 0; `each` is told every message's place and size. They must have the same
    /// queue, holder and duration and be neighbours still: what is not so ends the run, which may be empty.
    #[inline]
    pub fn end_run(
        &mut self,
        first: u64,
        id: MessageId,
        mut wanted: impl FnMut(u64) -> bool,
        mut each: impl FnMut(u64, u32),
    ) -> usize {
        let mask = self.mask();
        let Some(oldest) = self.get(first).copied() else {
            return 0;
        };
        if oldest.id != id || matches!(oldest.list, FOREVER | IN_TREE) {
            return 0;
        }
        let mut count = 0;
        // Those next to the run: the one behind it in the list, and the younger one of the holder.
        let (mut after, mut younger) = (NIL, NIL);
        while wanted(count) {
            let lease = &mut self.slots[((first + count) & mask) as usize];
            let link = (first + count) as u32;
            let follows = lease.serial == first + count
                && lease.id == id + count
                && lease.queue == oldest.queue
                && lease.holder == oldest.holder
                && lease.list == oldest.list;
            let is_neighbour = count == 0 || (after == link && younger == link);
            if !(follows && is_neighbour) {
                break;
            }
            lease.serial = 0;
            (after, younger) = (lease.after, lease.holder_before);
            each(lease.place, lease.size);
            count += 1;
        }
        let list = &mut self.lists[usize::from(oldest.list)];
        list.count -= count as u32;
        if oldest.before == NIL {
            list.head = after;
        }
        if after == NIL {
            list.tail = oldest.before;
        }
        if oldest.before != NIL {
            self.at_mut(oldest.before).after = after;
        }
        if after != NIL {
            self.at_mut(after).before = oldest.before;
        }
        let holder = &mut self.holders[oldest.holder.0 as usize];
        holder.count -= count as u32;
        if younger == NIL {
            holder.head = oldest.holder_after;
        } else {
            self.at_mut(younger).holder_after = oldest.holder_after;
        }
        if oldest.holder_after != NIL {
            self.at_mut(oldest.holder_after).holder_before = younger;
        }
        self.count -= count as usize;
        self.shrink_when_empty();
        count as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::broker::lease::NewLease;

    proptest! {
        /// Two tables, in one of which leases end in runs: the same is left, in the same orders.
        #[test]
        fn a_run_ends_what_ends_one_by_one(
            steps in prop::collection::vec((0u8..6, 0u64..400, 1usize..40), 1..300),
        ) {
            let mut tables = [Leases::default(), Leases::default()];
            let mut holders = Vec::new();
            for leases in &mut tables {
                holders = vec![leases.add_holder(), leases.add_holder()];
            }
            let mut next_id = 1;
            for (now, (kind, pick, many)) in (0u64..).zip(steps) {
                let serial = 1 + pick % tables[0].next_serial();
                let ended: Vec<_> = tables
                    .iter_mut()
                    .enumerate()
                    .map(|(nth, leases)| {
                        let mut ended = Vec::new();
                        match kind {
                            0 | 1 => for id in next_id..next_id + many as u64 {
                                let new = NewLease {
                                    id,
                                    place: id * 3,
                                    queue: QueueKey(pick as u32 % 7 / 6),
                                    holder: holders[pick as usize % 2],
                                    size: id as u32 % 100,
                                    tries: 1,
                                    pri: 0,
                                };
                                let lease_us = [Some(100), Some(2000), None][pick as usize % 3];
                                leases.begin(new, now, lease_us);
                            },
                            2 => _ = leases.touch(serial, now, 2000),
                            3 => leases.hand_over(serial, holders[0]),
                            _ => {
                                let Some(lease) = leases.get(serial).copied() else { return ended };
                                if nth == 0 {
                                    let note = |place, size| ended.push((place, size));
                                    let count = leases.end_run(serial, lease.id, |nth| nth < many as u64, note);
                                    assert_eq!(count, ended.len());
                                } else {
                                    // What the first table ended, as far as it is a run.
                                    for further in 0..many as u64 {
                                        match leases.get(serial + further) {
                                            Some(found) if found.id == lease.id + further => {
                                                ended.push((found.place, found.size));
                                            }
                                            _ => break,
                                        }
                                    }
                                }
                            }
                        }
                        ended
                    })
                    .collect();
                next_id += many as u64;
                prop_assert!(ended[1].starts_with(&ended[0]));
                for further in 0..ended[0].len() as u64 {
                    prop_assert!(tables[1].end(serial + further).is_some());
                }
                let [runs, each] = &tables;
                prop_assert_eq!(runs.len(), each.len());
                prop_assert_eq!(runs.first_deadline(), each.first_deadline());
                for holder in &holders {
                    prop_assert_eq!(runs.held(*holder), each.held(*holder));
                    let left = each.of_holder(*holder).collect::<Vec<_>>();
                    prop_assert_eq!(runs.of_holder(*holder).collect::<Vec<_>>(), left);
                }
            }
        }

        #[test]
        fn leases_begun_together_end_together(count in 1usize..300) {
            let mut leases = Leases::default();
            let holder = leases.add_holder();
            let run = leases.begin_run(QueueKey(0), holder, 0, 5, 100, count);
            let mut run = run.expect("few durations");
            for id in 0..count as u64 {
                run.begin(7 + id, id, 1);
            }
            drop(run);
            let mut sum = 0;
            prop_assert_eq!(leases.end_run(1, 8, |_| true, |_, _| ()), 0, "another message");
            prop_assert_eq!(leases.end_run(1, 7, |_| true, |_, size| sum += size), count);
            prop_assert_eq!((leases.len(), sum as usize), (0, count));
            prop_assert_eq!(leases.first_deadline(), None);
        }
    }
}
