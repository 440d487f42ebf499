//! Leases: who has which message until when.
//!
//! A lease lives in the table at its serial number modulo the table's size. Serials only grow; one
//! whose place is taken is skipped, so finding a lease is one look and a serial is never used
//! twice in a run. Leases are linked into two lists: those of one holder, and those of one
//! duration, which is in order of deadlines because every lease of it was begun after the last.
//! Knows serials and times; never a queue's state.

use std::collections::BTreeMap;

use super::id::MessageId;
use super::queue::QueueKey;

mod run;

pub use run::LeaseRun;

/// No lease: the end of a list.
const NIL: u32 = u32::MAX;
/// Lists of equal duration before others go to the ordered set.
const LISTS_MAX: usize = 64;
/// `Lease::list` of one that is in the ordered set.
const IN_TREE: u8 = 255;
/// `Lease::list` of one without a deadline.
const FOREVER: u8 = 254;

/// Who holds leases: a place in the holders' slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HolderKey(pub u32);

/// One delivery that is neither settled nor given back.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Its number within the run of the broker; 0 = this place is free.
    pub serial: u64,
    /// The message.
    pub id: MessageId,
    /// Where the message lies.
    pub place: u64,
    /// When it ends, microseconds.
    pub deadline_us: u64,
    /// The message's queue.
    pub queue: QueueKey,
    /// Who has it.
    pub holder: HolderKey,
    /// Size of the body, bytes.
    pub size: u32,
    /// Which try this is, from 1.
    pub tries: u16,
    /// The message's priority.
    pub pri: u8,
    list: u8,
    /// Neighbours among equal durations, then among the holder's; low 32 bits of serials.
    before: u32,
    after: u32,
    holder_before: u32,
    holder_after: u32,
}

/// What a new lease is about.
#[derive(Clone, Copy, Debug)]
pub struct NewLease {
    /// The message.
    pub id: MessageId,
    /// Where the message lies.
    pub place: u64,
    /// The message's queue.
    pub queue: QueueKey,
    /// Who gets it.
    pub holder: HolderKey,
    /// Size of the body, bytes.
    pub size: u32,
    /// Which try this is, from 1.
    pub tries: u16,
    /// The message's priority.
    pub pri: u8,
}

impl Lease {
    /// A lease that is in no table: it only says what is given back.
    pub fn detached(new: NewLease) -> Lease {
        Lease {
            id: new.id,
            place: new.place,
            queue: new.queue,
            holder: new.holder,
            size: new.size,
            tries: new.tries,
            pri: new.pri,
            ..FREE
        }
    }
}

#[derive(Debug)]
struct List {
    duration_us: u64,
    head: u32,
    tail: u32,
    count: u32,
}

/// A holder's end of its list.
#[derive(Clone, Debug)]
struct HolderList {
    head: u32,
    count: u32,
    used: bool,
}

/// Every lease of a shard.
#[derive(Debug)]
pub struct Leases {
    slots: Vec<Lease>,
    count: usize,
    next_serial: u64,
    lists: Vec<List>,
    /// By deadline and serial; the duration, microseconds.
    tree: BTreeMap<(u64, u64), u64>,
    holders: Vec<HolderList>,
    free_holders: Vec<u32>,
}

const FREE: Lease = Lease {
    serial: 0,
    id: 0,
    place: 0,
    deadline_us: 0,
    queue: QueueKey(0),
    holder: HolderKey(0),
    size: 0,
    tries: 0,
    pri: 0,
    list: FOREVER,
    before: NIL,
    after: NIL,
    holder_before: NIL,
    holder_after: NIL,
};

const SLOTS_MIN: usize = 64;
/// A table of more places is given back when the last lease ends.
const SLOTS_KEPT: usize = 1 << 16;

impl Default for Leases {
    fn default() -> Leases {
        Leases {
            slots: vec![FREE; SLOTS_MIN],
            count: 0,
            next_serial: 1,
            lists: Vec::new(),
            tree: BTreeMap::new(),
            holders: vec![HolderList {
                head: NIL,
                count: 0,
                used: true,
            }],
            free_holders: Vec::new(),
        }
    }
}

impl Leases {
    /// The holder of leases whose connection is gone but which were to outlive it.
    pub const NOBODY: HolderKey = HolderKey(0);

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.slots.capacity() * size_of::<Lease>() + self.tree.len() * 40
    }

    /// A new holder, without leases.
    pub fn add_holder(&mut self) -> HolderKey {
        let fresh = HolderList {
            head: NIL,
            count: 0,
            used: true,
        };
        match self.free_holders.pop() {
            Some(key) => {
                self.holders[key as usize] = fresh;
                HolderKey(key)
            }
            None => {
                self.holders.push(fresh);
                HolderKey(self.holders.len() as u32 - 1)
            }
        }
    }

    /// Forgets a holder.
    ///
    /// # Panics
    /// If it still has leases.
    pub fn remove_holder(&mut self, holder: HolderKey) {
        let list = &mut self.holders[holder.0 as usize];
        assert!(
            list.used && list.count == 0,
            "a holder that goes has no leases"
        );
        list.used = false;
        self.free_holders.push(holder.0);
    }

    /// How many leases a holder has.
    #[inline]
    pub fn held(&self, holder: HolderKey) -> u32 {
        self.holders[holder.0 as usize].count
    }

    /// One of the holder's leases, the youngest.
    pub fn any_of(&self, holder: HolderKey) -> Option<u64> {
        let head = self.holders[holder.0 as usize].head;
        (head != NIL).then(|| self.at(head).serial)
    }

    #[inline]
    fn mask(&self) -> u64 {
        self.slots.len() as u64 - 1
    }

    #[inline]
    fn at(&self, link: u32) -> &Lease {
        &self.slots[(u64::from(link) & self.mask()) as usize]
    }

    #[inline]
    fn at_mut(&mut self, link: u32) -> &mut Lease {
        let place = (u64::from(link) & self.mask()) as usize;
        &mut self.slots[place]
    }

    /// The lease with that serial, if it is still on.
    #[inline]
    pub fn get(&self, serial: u64) -> Option<&Lease> {
        let lease = &self.slots[(serial & self.mask()) as usize];
        (lease.serial == serial && serial != 0).then_some(lease)
    }

    /// The next serial whose place in the table is free, and whose low half is a link: [`NIL`] is none, and comes up
    /// once in 2³² leases.
    #[inline]
    fn take_serial(&mut self) -> u64 {
        let mask = self.slots.len() as u64 - 1;
        let mut serial = self.next_serial;
        while self.slots[(serial & mask) as usize].serial != 0 || serial as u32 == NIL {
            serial += 1;
        }
        self.next_serial = serial + 1;
        serial
    }

    /// Begins a lease of `lease_us`, or one without a deadline; returns its serial.
    #[inline]
    pub fn begin(&mut self, new: NewLease, now_us: u64, lease_us: Option<u64>) -> u64 {
        if (self.count + 1) * 2 > self.slots.len() {
            self.resize(self.slots.len() * 2);
        }
        let serial = self.take_serial();
        self.count += 1;
        let holder = new.holder.0 as usize;
        let head = self.holders[holder].head;
        *self.at_mut(serial as u32) = Lease {
            serial,
            id: new.id,
            place: new.place,
            deadline_us: u64::MAX,
            queue: new.queue,
            holder: new.holder,
            size: new.size,
            tries: new.tries,
            pri: new.pri,
            holder_after: head,
            ..FREE
        };
        if head != NIL {
            self.at_mut(head).holder_before = serial as u32;
        }
        self.holders[holder].head = serial as u32;
        self.holders[holder].count += 1;
        if let Some(lease_us) = lease_us {
            self.link_deadline(serial, now_us, lease_us);
        }
        serial
    }

    /// The list of leases of that duration, empty or not; `None` if there are too many.
    #[inline]
    fn list_of(&mut self, lease_us: u64) -> Option<usize> {
        let lists = &mut self.lists;
        if let Some(list) = lists.iter().position(|list| list.duration_us == lease_us) {
            return Some(list);
        }
        if let Some(list) = lists.iter().position(|list| list.count == 0) {
            lists[list].duration_us = lease_us;
            return Some(list);
        }
        if lists.len() == LISTS_MAX {
            return None;
        }
        lists.push(List {
            duration_us: lease_us,
            head: NIL,
            tail: NIL,
            count: 0,
        });
        Some(lists.len() - 1)
    }

    #[inline]
    fn link_deadline(&mut self, serial: u64, now_us: u64, lease_us: u64) {
        let deadline_us = now_us.saturating_add(lease_us);
        let Some(list) = self.list_of(lease_us) else {
            self.tree.insert((deadline_us, serial), lease_us);
            let lease = self.at_mut(serial as u32);
            lease.deadline_us = deadline_us;
            lease.list = IN_TREE;
            return;
        };
        let tail = std::mem::replace(&mut self.lists[list].tail, serial as u32);
        self.lists[list].count += 1;
        if tail == NIL {
            self.lists[list].head = serial as u32;
        } else {
            self.at_mut(tail).after = serial as u32;
        }
        let lease = self.at_mut(serial as u32);
        lease.deadline_us = deadline_us;
        lease.list = list as u8;
        lease.before = tail;
        lease.after = NIL;
    }

    #[inline(always)]
    fn unlink_deadline(&mut self, lease: &Lease) {
        match lease.list {
            FOREVER => {}
            IN_TREE => {
                self.tree.remove(&(lease.deadline_us, lease.serial));
            }
            list => {
                let list = &mut self.lists[usize::from(list)];
                list.count -= 1;
                if lease.before == NIL {
                    list.head = lease.after;
                }
                if lease.after == NIL {
                    list.tail = lease.before;
                }
                if lease.before != NIL {
                    self.at_mut(lease.before).after = lease.after;
                }
                if lease.after != NIL {
                    self.at_mut(lease.after).before = lease.before;
                }
            }
        }
    }

    #[inline(always)]
    fn unlink_holder(&mut self, lease: &Lease) {
        let holder = &mut self.holders[lease.holder.0 as usize];
        holder.count -= 1;
        if lease.holder_before == NIL {
            holder.head = lease.holder_after;
        } else {
            self.at_mut(lease.holder_before).holder_after = lease.holder_after;
        }
        if lease.holder_after != NIL {
            self.at_mut(lease.holder_after).holder_before = lease.holder_before;
        }
    }

    /// Begins a lease again that was ended, with its serial and its deadline; `duration_us` is what
    /// [`Leases::duration_us`] said of it, microseconds.
    pub fn restore(&mut self, lease: &Lease, duration_us: Option<u64>) {
        while (self.count + 1) * 2 > self.slots.len()
            || self.slots[(lease.serial & self.mask()) as usize].serial != 0
        {
            self.resize(self.slots.len() * 2);
        }
        self.count += 1;
        let holder = lease.holder.0 as usize;
        let head = std::mem::replace(&mut self.holders[holder].head, lease.serial as u32);
        self.holders[holder].count += 1;
        // It may end before others of its duration that were begun since.
        let list = match duration_us {
            Some(duration_us) => {
                let due = (lease.deadline_us, lease.serial);
                self.tree.insert(due, duration_us);
                IN_TREE
            }
            None => FOREVER,
        };
        *self.at_mut(lease.serial as u32) = Lease {
            list,
            before: NIL,
            after: NIL,
            holder_before: NIL,
            holder_after: head,
            ..*lease
        };
        if head != NIL {
            self.at_mut(head).holder_before = lease.serial as u32;
        }
    }

    /// Ends a lease and hands out what it was.
    #[inline]
    pub fn end(&mut self, serial: u64) -> Option<Lease> {
        let lease = *self.get(serial)?;
        self.unlink_deadline(&lease);
        self.unlink_holder(&lease);
        self.at_mut(serial as u32).serial = 0;
        self.count -= 1;
        self.shrink_when_empty();
        Some(lease)
    }

    #[inline]
    fn shrink_when_empty(&mut self) {
        if self.count == 0 && self.slots.len() > SLOTS_KEPT {
            self.resize(SLOTS_MIN);
        }
    }

    /// Serial of the next lease, or a little less.
    #[inline]
    pub fn next_serial(&self) -> u64 {
        self.next_serial
    }

    /// For how long a lease was begun or last touched, microseconds.
    pub fn duration_us(&self, serial: u64) -> Option<u64> {
        let lease = self.get(serial)?;
        match lease.list {
            FOREVER => None,
            IN_TREE => self.tree.get(&(lease.deadline_us, serial)).copied(),
            list => Some(self.lists[list as usize].duration_us),
        }
    }

    /// The leases of a holder, the youngest first.
    pub fn of_holder(&self, holder: HolderKey) -> impl Iterator<Item = u64> {
        let mut next = self.holders[holder.0 as usize].head;
        std::iter::from_fn(move || {
            let lease = (next != NIL).then(|| self.at(next))?;
            next = lease.holder_after;
            Some(lease.serial)
        })
    }

    /// Gives a lease a new deadline; false if it has ended.
    pub fn touch(&mut self, serial: u64, now_us: u64, lease_us: u64) -> bool {
        let Some(lease) = self.get(serial).copied() else {
            return false;
        };
        self.unlink_deadline(&lease);
        self.link_deadline(serial, now_us, lease_us);
        true
    }

    /// Gives a lease to another holder.
    pub fn hand_over(&mut self, serial: u64, to: HolderKey) {
        let Some(lease) = self.get(serial).copied() else {
            return;
        };
        self.unlink_holder(&lease);
        let head = std::mem::replace(&mut self.holders[to.0 as usize].head, serial as u32);
        self.holders[to.0 as usize].count += 1;
        if head != NIL {
            self.at_mut(head).holder_before = serial as u32;
        }
        let lease = self.at_mut(serial as u32);
        lease.holder = to;
        lease.holder_before = NIL;
        lease.holder_after = head;
    }

    /// The earliest deadline, microseconds, and whose it is.
    pub fn first_deadline(&self) -> Option<(u64, u64)> {
        let lists = self
            .lists
            .iter()
            .filter(|list| list.head != NIL)
            .map(|list| {
                let lease = self.at(list.head);
                (lease.deadline_us, lease.serial)
            });
        lists
            .chain(self.tree.first_key_value().map(|(first, _)| *first))
            .min()
    }

    /// Notes the size of a lease's body, bytes.
    #[inline]
    pub fn set_size(&mut self, serial: u64, size: u32) {
        if self.get(serial).is_some() {
            self.at_mut(serial as u32).size = size;
        }
    }

    /// A message of a queue was copied to another place; its lease follows.
    pub fn relocate(&mut self, queue: QueueKey, id: MessageId, place: u64) {
        let found = self
            .slots
            .iter_mut()
            .find(|lease| lease.serial != 0 && lease.queue == queue && lease.id == id);
        if let Some(lease) = found {
            lease.place = place;
        }
    }

    /// Every lease, in no particular but reproducible order.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.slots.iter().filter(|lease| lease.serial != 0)
    }

    fn resize(&mut self, size: usize) {
        let mask = size as u64 - 1;
        let mut slots = vec![FREE; size];
        for lease in self.slots.drain(..).filter(|lease| lease.serial != 0) {
            let place = &mut slots[(lease.serial & mask) as usize];
            assert!(
                place.serial == 0,
                "serials that differ below the old size differ below the new one"
            );
            *place = lease;
        }
        self.slots = slots;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn new(id: u64, holder: HolderKey) -> NewLease {
        NewLease {
            id,
            place: 0,
            queue: QueueKey(0),
            holder,
            size: 1,
            tries: 1,
            pri: 0,
        }
    }

    #[test]
    fn serials_begin_at_one_and_are_never_used_again() {
        let mut leases = Leases::default();
        let holder = leases.add_holder();
        let mut last = 0;
        for id in 1..100_000u64 {
            let serial = leases.begin(new(id, holder), id, Some(10));
            assert!(serial > last);
            assert_eq!(last == 0, serial == 1);
            last = serial;
            if !id.is_multiple_of(7) {
                assert_eq!(leases.end(serial).map(|lease| lease.id), Some(id));
                assert!(leases.end(serial).is_none());
            }
        }
        assert_eq!(leases.held(holder) as usize, leases.len());
    }

    #[test]
    fn no_serial_looks_like_the_end_of_a_list() {
        for in_run in [false, true] {
            let mut leases = Leases::default();
            let holder = leases.add_holder();
            leases.next_serial = u64::from(u32::MAX) - 5;
            for first in (1..=20).step_by(5) {
                if in_run {
                    let run = leases.begin_run(QueueKey(0), holder, 0, first, 10, 5);
                    let mut run = run.expect("few durations");
                    (first..first + 5).for_each(|id| _ = run.begin(id, 0, 1));
                } else {
                    (first..first + 5)
                        .for_each(|id| _ = leases.begin(new(id, holder), id, Some(10)));
                }
            }
            let held = leases.of_holder(holder).count();
            assert_eq!((leases.len(), held), (20, 20));
            for id in 1..=20 {
                let (_, serial) = leases.first_deadline().expect("some are left");
                assert_eq!(leases.end(serial).map(|lease| lease.id), Some(id));
            }
            assert_eq!((leases.len(), leases.held(holder)), (0, 0));
        }
    }

    #[test]
    fn deadlines_come_in_order_for_any_mix_of_durations() {
        let mut leases = Leases::default();
        let holder = leases.add_holder();
        let mut naive = BTreeSet::new();
        let mut random = 7u64;
        for now in 0..20_000u64 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let lease_us = if now.is_multiple_of(2) {
                30
            } else {
                random >> 33 & 1023
            };
            let serial = leases.begin(new(now, holder), now, Some(lease_us));
            naive.insert((now + lease_us, serial));
            if random.is_multiple_of(3) {
                leases.touch(serial, now, 5);
                naive.remove(&(now + lease_us, serial));
                naive.insert((now + 5, serial));
            }
            while let Some((deadline, serial)) = leases.first_deadline()
                && deadline <= now
            {
                assert_eq!(naive.first().map(|(deadline, _)| *deadline), Some(deadline));
                assert!(naive.remove(&(deadline, serial)));
                leases.end(serial);
            }
            assert_eq!(naive.len(), leases.len());
        }
    }

    #[test]
    fn a_holder_finds_its_own_leases() {
        let mut leases = Leases::default();
        let (one, two) = (leases.add_holder(), leases.add_holder());
        for id in 0..1000 {
            leases.begin(
                new(id, if id.is_multiple_of(3) { one } else { two }),
                0,
                None,
            );
        }
        let moved = leases.any_of(two).expect("there are some");
        leases.hand_over(moved, Leases::NOBODY);
        while let Some(serial) = leases.any_of(two) {
            leases.end(serial);
        }
        leases.remove_holder(two);
        assert_eq!(leases.len(), 334 + 1);
        assert_eq!(leases.held(one), 334);
        assert_eq!(leases.held(Leases::NOBODY), 1);
    }

    #[test]
    fn the_table_shrinks_after_a_flood() {
        let mut leases = Leases::default();
        let holder = leases.add_holder();
        for id in 0..300_000 {
            leases.begin(new(id, holder), 0, Some(1));
        }
        while let Some((_, serial)) = leases.first_deadline() {
            leases.end(serial);
        }
        assert!(leases.memory() < 12 << 20, "{}", leases.memory());
    }
}
