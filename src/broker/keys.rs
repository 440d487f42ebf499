//! Order by key: of the messages of one key, one is out at a time, and the next leaves when it is settled.
//!
//! Of each key one message at most stands at the *front*, where it can be taken; the others are *parked* in the
//! key's own line, out of everybody's way, so that finding the next message never passes over any that may
//! not leave. A message that is taken *holds* its key until it is settled, wherever it waits meanwhile: no
//! other of the key comes to the front before.
//!
//! ```text
//!     wait --> front --take--> (leased, delayed) --forget--> the first of the line comes to the front
//!         \                        |
//!          \--> the key's line     '--wait--> front again: it holds its key
//! ```
//!
//! With `fair=key` the keys have their turns, by deficit round robin (M. Shreedhar and G. Varghese, "Efficient
//! Fair Queueing using Deficit Round Robin", SIGCOMM 1995), in the form that takes a message's cost off
//! when it has left, since the size of one on the disk is not known before. The quantum is
//! [`TURN_BYTES`]; as the lock lets one message of a key out at a time, a turn is one message, and a
//! key whose message was larger passes its next turns by until it has paid. Messages without a key share the
//! turns of one key, and have no lock.
//!
//! Knows ids, priorities and hashes of keys; never a message, and not the messages that have no key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;

use slab::Slab;

use super::column::Column;
use super::id::MessageId;

/// What stands for a key's octets: a keyed hash of them, too long for two keys to share one.
pub type KeyHash = u128;

/// Body bytes that one turn pays for.
pub const TURN_BYTES: u32 = 64 << 10;

/// Tables of more places than this are given back when the last message with a key is settled.
const KEYS_KEPT: usize = 1024;

/// Where a message stands in the order: priority, highest first, then id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(NonZeroU64);

/// Bits of an id in a [`Place`].
const ID_BITS: u32 = 56;

impl Place {
    fn new(pri: u8, id: MessageId) -> Place {
        assert!(id < 1 << ID_BITS, "no queue gets that many messages");
        let bits = u64::from(!pri) << ID_BITS | id;
        Place(NonZeroU64::new(bits).expect("ids begin with 1"))
    }

    fn id(self) -> MessageId {
        self.0.get() & ((1 << ID_BITS) - 1)
    }

    fn pri(self) -> u8 {
        !((self.0.get() >> ID_BITS) as u8)
    }
}

/// What is known of one key that has messages.
#[derive(Debug)]
struct Key {
    hash: KeyHash,
    /// The message that holds it; 0 = none.
    holder: MessageId,
    /// The message that can be taken.
    front: Option<Place>,
    /// Where that one stands among the fronts of its priority.
    rank: u64,
    /// Messages that wait behind it or behind the holder.
    line: BTreeSet<Place>,
    /// Unsettled messages, in whatever state.
    live: u32,
    /// Turns it must still pass by.
    debt: u32,
}

/// The messages without a key, as far as turns go.
#[derive(Debug, Default)]
struct Keyless {
    rank: u64,
    debt: u32,
    /// There was none when it was last looked at.
    idle: bool,
}

/// Every message of one queue that has a key.
///
/// Invariants: a key without a holder has its first waiting message at the front; of a key with a
/// holder only the holder can be there.
#[derive(Debug, Default)]
pub struct Keys {
    column: Column,
    keys: Slab<Key>,
    by_hash: HashMap<KeyHash, u32, foldhash::fast::FixedState>,
    /// The messages that can be taken: by priority, highest first, and rank; the key of each. The rank is the id,
    /// or with turns the number of the turn.
    fronts: BTreeMap<(u8, u64), u32>,
    /// Messages in lines.
    parked: u64,
    fair: bool,
    next_turn: u64,
    keyless: Keyless,
}

/// What a checkpoint keeps of a queue's keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeysImage {
    /// Every key.
    pub hashes: Vec<KeyHash>,
    /// Consecutive ids of one key: (first, count, which of the keys).
    pub runs: Vec<(MessageId, u64, u64)>,
}

impl Keys {
    /// Messages that can be taken.
    #[inline]
    pub fn ready(&self) -> u64 {
        self.fronts.len() as u64
    }

    /// Messages that wait for others of their key.
    #[inline]
    pub fn parked(&self) -> u64 {
        self.parked
    }

    /// Memory held, bytes; lines are counted by what a tree takes at worst.
    pub fn memory(&self) -> usize {
        self.column.memory()
            + self.keys.capacity() * size_of::<Key>()
            + self.by_hash.capacity() * (size_of::<(KeyHash, u32)>() + 1)
            + self.fronts.len() * 48
            + self.parked as usize * 24
    }

    /// Has the message a key?
    #[inline]
    pub fn has(&self, id: MessageId) -> bool {
        self.column.get(id).is_some()
    }

    /// A new message has that key.
    pub fn note(&mut self, id: MessageId, hash: KeyHash) {
        let keys = &mut self.keys;
        let slot = *self.by_hash.entry(hash).or_insert_with(|| {
            keys.insert(Key {
                hash,
                holder: 0,
                front: None,
                rank: 0,
                line: BTreeSet::new(),
                live: 0,
                debt: 0,
            }) as u32
        });
        self.keys[slot as usize].live += 1;
        self.column.set(id, slot);
    }

    fn slot(&self, id: MessageId) -> u32 {
        self.column.get(id).expect("it was noted with its key")
    }

    /// A message waits: at the front if it may leave, else in its key's line.
    pub fn wait(&mut self, id: MessageId, pri: u8) {
        let (slot, place) = (self.slot(id), Place::new(pri, id));
        let key = &mut self.keys[slot as usize];
        if key.holder == id || (key.holder == 0 && key.front.is_none()) {
            self.step_up(slot, place);
            return;
        }
        key.line.insert(place);
        self.parked += 1;
        self.arrange(slot);
    }

    /// Sees to it that the right message is at the front.
    fn arrange(&mut self, slot: u32) {
        let key = &mut self.keys[slot as usize];
        if key.holder != 0 {
            if key.front.is_some_and(|front| front.id() != key.holder) {
                self.step_down(slot);
            }
            return;
        }
        let Some(first) = key.line.first().copied() else {
            return;
        };
        let before = key.front;
        if before.is_some_and(|before| before < first) {
            return;
        }
        key.line.pop_first();
        self.parked -= 1;
        if before.is_some() && self.fair {
            // The key keeps its turn, though another of its messages takes it.
            let turn = key.rank;
            self.step_down(slot);
            self.stand(slot, first, turn);
        } else {
            self.step_down(slot);
            self.step_up(slot, first);
        }
    }

    fn step_up(&mut self, slot: u32, place: Place) {
        let rank = match self.fair {
            true => self.turn(),
            false => place.id(),
        };
        self.stand(slot, place, rank);
    }

    fn stand(&mut self, slot: u32, place: Place, rank: u64) {
        let key = &mut self.keys[slot as usize];
        key.front = Some(place);
        key.rank = rank;
        let before = self.fronts.insert((!place.pri(), rank), slot);
        assert_eq!(before, None, "a rank is given once");
    }

    /// Takes a key's message away from the front.
    fn step_back(&mut self, slot: u32) -> Option<Place> {
        let key = &mut self.keys[slot as usize];
        let place = key.front.take()?;
        self.fronts.remove(&(!place.pri(), key.rank));
        Some(place)
    }

    /// Puts the message at the front into the line.
    fn step_down(&mut self, slot: u32) {
        if let Some(place) = self.step_back(slot) {
            self.keys[slot as usize].line.insert(place);
            self.parked += 1;
        }
    }

    /// The next turn's number.
    fn turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }

    /// The place of a message in its key's line.
    fn parked_at(&self, slot: u32, id: MessageId) -> Option<Place> {
        let line = &self.keys[slot as usize].line;
        let mut pri = line.first()?.pri();
        loop {
            let place = Place::new(pri, id);
            if line.contains(&place) {
                return Some(place);
            }
            let lower = Place::new(pri.checked_sub(1)?, 1);
            pri = line.range(lower..).next()?.pri();
        }
    }

    /// The priority of a message that waits, and whether it can be taken.
    pub fn waiting(&self, id: MessageId) -> Option<(u8, bool)> {
        let slot = self.column.get(id)?;
        match self.keys[slot as usize].front {
            Some(front) if front.id() == id => Some((front.pri(), true)),
            _ => Some((self.parked_at(slot, id)?.pri(), false)),
        }
    }

    /// A message waits no more; its priority if it did.
    pub fn remove(&mut self, id: MessageId) -> Option<u8> {
        let slot = self.column.get(id)?;
        let key = &self.keys[slot as usize];
        if key.front.is_some_and(|front| front.id() == id) {
            let place = self.step_back(slot)?;
            self.arrange(slot);
            return Some(place.pri());
        }
        let place = self.parked_at(slot, id)?;
        self.keys[slot as usize].line.remove(&place);
        self.parked -= 1;
        Some(place.pri())
    }

    /// Takes the message at the front of its key, which it holds from now on.
    pub fn take(&mut self, id: MessageId) {
        let slot = self.slot(id);
        let place = self.step_back(slot);
        assert!(
            place.is_some_and(|place| place.id() == id),
            "only what is at the front is taken"
        );
        self.keys[slot as usize].holder = id;
    }

    /// A message holds its key, unless another does.
    pub fn hold(&mut self, id: MessageId) {
        let Some(slot) = self.column.get(id) else {
            return;
        };
        if self.keys[slot as usize].holder != 0 {
            return;
        }
        self.keys[slot as usize].holder = id;
        self.arrange(slot);
        if let Some(place) = self.parked_at(slot, id) {
            self.keys[slot as usize].line.remove(&place);
            self.parked -= 1;
            self.step_up(slot, place);
        }
    }

    /// A message holds its key no longer.
    pub fn release(&mut self, id: MessageId) {
        if let Some(slot) = self.column.get(id) {
            self.release_slot(slot, id);
        }
    }

    fn release_slot(&mut self, slot: u32, id: MessageId) {
        let key = &mut self.keys[slot as usize];
        if key.holder == id {
            key.holder = 0;
            self.arrange(slot);
        }
    }

    /// A message that does not wait is settled.
    pub fn forget(&mut self, id: MessageId) {
        let Some(slot) = self.column.clear(id) else {
            return;
        };
        self.release_slot(slot, id);
        let key = &mut self.keys[slot as usize];
        key.live -= 1;
        if key.live > 0 {
            return;
        }
        assert!(
            key.front.is_none() && key.line.is_empty(),
            "a settled message does not wait"
        );
        let key = self.keys.remove(slot as usize);
        self.by_hash.remove(&key.hash);
        if self.keys.is_empty() && self.keys.capacity() > KEYS_KEPT {
            self.keys = Slab::new();
            self.by_hash = HashMap::default();
        }
    }

    /// Which message leaves next, and its priority; `keyless` is the first of those that have no key.
    pub fn next(&mut self, keyless: Option<(MessageId, u8)>) -> Option<(MessageId, u8)> {
        if self.fair {
            return self.next_in_turn(keyless);
        }
        let front = self
            .fronts
            .first_key_value()
            .map(|((pri, id), _)| Place::new(!pri, *id));
        let keyless = keyless.map(|(id, pri)| Place::new(pri, id));
        let next = front.into_iter().chain(keyless).min()?;
        Some((next.id(), next.pri()))
    }

    /// The same, by turns.
    fn next_in_turn(&mut self, keyless: Option<(MessageId, u8)>) -> Option<(MessageId, u8)> {
        if keyless.is_some() && self.keyless.idle {
            self.keyless.rank = self.turn();
        }
        self.keyless.idle = keyless.is_none();
        let mut passed = 0;
        loop {
            let front = self.fronts.first_key_value();
            let front = front.map(|(rank, slot)| (*rank, *slot));
            let others = keyless.map(|(_, pri)| (!pri, self.keyless.rank));
            let pri = match (front, others) {
                (None, None) => return None,
                (Some((rank, slot)), others) if others.is_none_or(|others| rank < others) => {
                    let key = &mut self.keys[slot as usize];
                    if key.debt == 0 {
                        return key.front.map(|front| (front.id(), front.pri()));
                    }
                    key.debt -= 1;
                    if let Some(place) = self.step_back(slot) {
                        self.step_up(slot, place);
                    }
                    rank.0
                }
                (_, Some((pri, _))) => {
                    if self.keyless.debt == 0 {
                        return keyless;
                    }
                    self.keyless.debt -= 1;
                    self.keyless.rank = self.turn();
                    pri
                }
                (Some(_), None) => unreachable!("the arm above takes this"),
            };
            passed += 1;
            if passed > self.fronts.len() {
                // Nobody of that priority had a turn to spend: the rounds until one has are skipped.
                self.skip_rounds(pri, keyless.is_some_and(|(_, own)| !own == pri));
                passed = 0;
            }
        }
    }

    /// Takes off every debt of one priority what all have.
    fn skip_rounds(&mut self, pri: u8, with_keyless: bool) {
        let slots: Vec<u32> = self
            .fronts
            .range((pri, 0)..=(pri, u64::MAX))
            .map(|(_, slot)| *slot)
            .collect();
        let debts = slots.iter().map(|slot| self.keys[*slot as usize].debt);
        let keyless = with_keyless.then_some(self.keyless.debt);
        let least = debts.chain(keyless).min().unwrap_or(0);
        for slot in slots {
            self.keys[slot as usize].debt -= least;
        }
        if with_keyless {
            self.keyless.debt -= least;
        }
    }

    /// Turns are taken between keys.
    #[inline]
    pub fn is_fair(&self) -> bool {
        self.fair
    }

    /// A message that was just taken has a body of that size: its key pays for it.
    pub fn charge(&mut self, id: MessageId, body_bytes: u32) {
        let turns = body_bytes.div_ceil(TURN_BYTES).saturating_sub(1);
        match self.column.get(id) {
            Some(slot) => {
                let debt = &mut self.keys[slot as usize].debt;
                *debt = debt.saturating_add(turns);
            }
            None => {
                self.keyless.debt = self.keyless.debt.saturating_add(turns);
                self.keyless.rank = self.turn();
            }
        }
    }

    /// Begins or ends taking turns.
    pub fn set_fair(&mut self, fair: bool) {
        if self.fair == fair {
            return;
        }
        self.fair = fair;
        self.keyless = Keyless::default();
        for slot in std::mem::take(&mut self.fronts).into_values() {
            let key = &mut self.keys[slot as usize];
            key.debt = 0;
            if let Some(place) = key.front {
                self.step_up(slot, place);
            }
        }
    }

    /// Messages that can be taken, from an id on, in the order in which they would leave: priority and rank of each,
    /// and the id.
    pub fn iter_ready(&self, from: MessageId) -> impl Iterator<Item = ((u8, u64), MessageId)> {
        self.fronts.iter().filter_map(move |(rank, slot)| {
            let front = self.keys[*slot as usize].front?;
            (front.id() >= from).then_some((*rank, front.id()))
        })
    }

    /// Where the first message without a key stands among them.
    pub fn rank_of_keyless(&self, id: MessageId, pri: u8) -> (u8, u64) {
        (!pri, if self.fair { self.keyless.rank } else { id })
    }

    /// Messages that wait, by id, from an id on; with whether each can be taken.
    pub fn iter_waiting(&self, from: MessageId) -> impl Iterator<Item = (MessageId, bool)> {
        let ids = self.column.iter_from(from).map(|(id, _)| id);
        ids.filter_map(|id| Some((id, self.waiting(id)?.1)))
    }

    /// Every message with its key, for a checkpoint.
    pub fn image(&self) -> KeysImage {
        let mut image = KeysImage::default();
        let mut ordinals: Vec<Option<u64>> = vec![None; self.keys.capacity()];
        for (id, slot) in self.column.iter_from(0) {
            let ordinal = *ordinals[slot as usize].get_or_insert_with(|| {
                image.hashes.push(self.keys[slot as usize].hash);
                image.hashes.len() as u64 - 1
            });
            match image.runs.last_mut() {
                Some((first, count, same)) if *first + *count == id && *same == ordinal => {
                    *count += 1;
                }
                _ => image.runs.push((id, 1, ordinal)),
            }
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a message of the naive model is.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Naive {
        Waits,
        Out,
    }

    /// Every message in one list that is searched from end to end.
    #[derive(Default)]
    struct Model {
        messages: BTreeMap<MessageId, (u8, KeyHash, Naive)>,
        holders: BTreeMap<KeyHash, MessageId>,
    }

    impl Model {
        fn can_leave(&self, id: MessageId) -> bool {
            let (pri, key, state) = self.messages[&id];
            let holder = self.holders.get(&key);
            let first = || {
                let mut of_key = self
                    .messages
                    .iter()
                    .filter(|(_, (_, other, state))| *other == key && *state == Naive::Waits);
                of_key.all(|(other, (other_pri, ..))| (!pri, id) <= (!*other_pri, *other))
            };
            state == Naive::Waits && holder.map_or_else(first, |holder| *holder == id)
        }

        fn next(&self) -> Option<(MessageId, u8)> {
            let can = self.messages.iter().filter(|(id, _)| self.can_leave(**id));
            let first = can.min_by_key(|(id, (pri, ..))| (!*pri, **id))?;
            Some((*first.0, first.1.0))
        }
    }

    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    fn compare(keys: &mut Keys, model: &Model) {
        let can: Vec<_> = model
            .messages
            .keys()
            .map(|id| (*id, model.can_leave(*id)))
            .collect();
        let waits = model
            .messages
            .values()
            .filter(|message| message.2 == Naive::Waits)
            .count() as u64;
        let ready = can.iter().filter(|(_, can)| *can).count() as u64;
        assert_eq!((keys.ready(), keys.parked()), (ready, waits - ready));
        for (id, can) in can {
            let (pri, _, state) = model.messages[&id];
            let wanted = (state == Naive::Waits).then_some((pri, can));
            assert_eq!(keys.waiting(id), wanted, "message {id}");
        }
        match keys.is_fair() {
            false => assert_eq!(keys.next(None), model.next()),
            true => {
                let next = keys.next(None);
                assert_eq!(
                    next.map(|(_, pri)| pri),
                    model.next().map(|(_, pri)| pri),
                    "priorities come first"
                );
                assert!(next.is_none_or(|(id, _)| model.can_leave(id)));
            }
        }
    }

    #[test]
    fn agrees_with_a_list_that_is_searched_from_end_to_end() {
        for start in 1..=60u64 {
            let mut seed = start.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut keys = Keys::default();
            let mut model = Model::default();
            let of_keys = 1 + random(&mut seed) % 5;
            let priorities = 1 + random(&mut seed) % 3;
            let mut next_id = 0;
            for _ in 0..400 {
                let pick = |model: &Model, state, dice: u64| {
                    let mut ids: Vec<_> = model.messages.keys().copied().collect();
                    ids.retain(|id| model.messages[id].2 == state);
                    let at = dice % ids.len().max(1) as u64;
                    ids.get(at as usize).copied()
                };
                let dice = random(&mut seed);
                match random(&mut seed) % 9 {
                    0..=2 => {
                        next_id += 1 + dice % 2;
                        let key = KeyHash::from(dice / 7 % of_keys);
                        let pri = (dice / 64 % priorities) as u8 * 127;
                        keys.note(next_id, key);
                        // Some are delayed at first, or not visible yet.
                        let state = match dice / 4096 % 4 {
                            0 => Naive::Out,
                            _ => Naive::Waits,
                        };
                        if state == Naive::Waits {
                            keys.wait(next_id, pri);
                        }
                        model.messages.insert(next_id, (pri, key, state));
                    }
                    3 | 4 => {
                        if let Some((id, _)) = keys.next(None) {
                            keys.take(id);
                            keys.charge(id, (dice % 300_000) as u32);
                            let message = model.messages.get_mut(&id).expect("it is there");
                            message.2 = Naive::Out;
                            model.holders.insert(message.1, id);
                        }
                    }
                    5 => {
                        if let Some(id) = pick(&model, Naive::Out, dice) {
                            keys.wait(id, model.messages[&id].0);
                            model.messages.get_mut(&id).expect("it is there").2 = Naive::Waits;
                        }
                    }
                    6 => {
                        let state = [Naive::Out, Naive::Waits][(dice / 3 % 2) as usize];
                        if let Some(id) = pick(&model, state, dice) {
                            let (pri, key, _) = model.messages[&id];
                            let waited = keys.remove(id);
                            assert_eq!(waited, (state == Naive::Waits).then_some(pri));
                            keys.forget(id);
                            model.messages.remove(&id);
                            model
                                .holders
                                .retain(|of, holder| *of != key || *holder != id);
                        }
                    }
                    7 => {
                        if let Some(id) = pick(&model, Naive::Waits, dice) {
                            let key = model.messages[&id].1;
                            keys.hold(id);
                            model.holders.entry(key).or_insert(id);
                        }
                    }
                    _ => {
                        if dice.is_multiple_of(5) {
                            keys.set_fair(!keys.is_fair());
                        }
                        if let Some(id) = pick(&model, Naive::Out, dice) {
                            keys.release(id);
                            model.holders.retain(|_, holder| *holder != id);
                        }
                    }
                }
                compare(&mut keys, &model);
            }
            for id in model.messages.into_keys() {
                keys.remove(id);
                keys.forget(id);
            }
            assert_eq!((keys.ready(), keys.parked()), (0, 0));
            assert!(keys.keys.is_empty() && keys.by_hash.is_empty());
        }
    }

    /// Publishes messages of one key that wait.
    fn publish(keys: &mut Keys, ids: std::ops::Range<MessageId>, key: KeyHash, pri: u8) {
        for id in ids {
            keys.note(id, key);
            keys.wait(id, pri);
        }
    }

    /// Takes and settles what leaves next, of a body of so many bytes.
    fn serve(keys: &mut Keys, keyless: Option<MessageId>, body_bytes: u32) -> Option<MessageId> {
        let (id, _) = keys.next(keyless.map(|id| (id, 0)))?;
        if keys.has(id) {
            keys.take(id);
            keys.charge(id, body_bytes);
            keys.forget(id);
        } else {
            keys.charge(id, body_bytes);
        }
        Some(id)
    }

    #[test]
    fn keys_take_turns_however_much_waits_of_one() {
        let mut keys = Keys::default();
        keys.set_fair(true);
        publish(&mut keys, 1..100_001, 1, 0);
        publish(&mut keys, 100_001..100_011, 2, 0);
        publish(&mut keys, 100_011..100_021, 3, 0);
        let served: Vec<_> = (0..30).map_while(|_| serve(&mut keys, None, 10)).collect();
        for key in [1..100_001, 100_001..100_011, 100_011..100_021] {
            let of_key: Vec<_> = served.iter().filter(|id| key.contains(*id)).collect();
            assert_eq!(of_key.len(), 10, "{key:?}");
            assert!(of_key.is_sorted(), "a key's own order stays");
        }
        // One that comes later waits for one message at most.
        publish(&mut keys, 200_000..200_001, 9, 0);
        let next = [serve(&mut keys, None, 10), serve(&mut keys, None, 10)];
        assert!(next.contains(&Some(200_000)), "{next:?}");
        // Priorities come first.
        publish(&mut keys, 200_001..200_002, 1, 7);
        assert_eq!(serve(&mut keys, None, 10), Some(200_001));
    }

    #[test]
    fn large_messages_cost_turns() {
        let mut keys = Keys::default();
        keys.set_fair(true);
        publish(&mut keys, 1..1_001, 1, 0);
        publish(&mut keys, 1_001..2_001, 2, 0);
        let (mut large, mut small) = (0, 0);
        for _ in 0..200 {
            let (id, _) = keys.next(None).expect("there are many");
            let body_bytes = if id <= 1_000 { 3 * TURN_BYTES } else { 10 };
            assert_eq!(serve(&mut keys, None, body_bytes), Some(id));
            *(if id <= 1_000 { &mut large } else { &mut small }) += 1;
        }
        assert!(
            (145..=155).contains(&small) && large == 200 - small,
            "{large} {small}"
        );
        // When all owe, nobody is waited for.
        let mut keys = Keys::default();
        keys.set_fair(true);
        publish(&mut keys, 1..101, 1, 0);
        publish(&mut keys, 101..201, 2, 0);
        for _ in 0..50 {
            assert!(serve(&mut keys, None, u32::MAX).is_some());
        }
    }

    #[test]
    fn messages_without_a_key_share_the_turns_of_one_key() {
        let mut keys = Keys::default();
        keys.set_fair(true);
        publish(&mut keys, 1_000..1_100, 1, 0);
        let mut keyless = 1..100;
        let mut next = keyless.next();
        let mut counts = [0, 0];
        for _ in 0..100 {
            let served = serve(&mut keys, next, 10).expect("there are many");
            if Some(served) == next {
                next = keyless.next();
            }
            counts[usize::from(served >= 1_000)] += 1;
        }
        assert_eq!(counts, [50, 50]);
    }

    #[test]
    fn an_image_has_every_message_with_its_key() {
        let mut keys = Keys::default();
        publish(&mut keys, 1..5, 77, 0);
        publish(&mut keys, 9..10, 78, 0);
        publish(&mut keys, 10..12, 77, 0);
        let image = keys.image();
        assert_eq!(image.hashes, [77, 78]);
        assert_eq!(image.runs, [(1, 4, 0), (9, 1, 1), (10, 2, 0)]);
    }

    #[test]
    fn memory_follows_what_is_there() {
        let mut keys = Keys::default();
        for id in 1..=100_000 {
            keys.note(id, KeyHash::from(id % 50_000));
            keys.wait(id, 0);
        }
        assert!(keys.memory() > 100_000 * 30, "{}", keys.memory());
        assert!(keys.memory() < 100_000 * 200, "{}", keys.memory());
        for id in 1..=100_000 {
            keys.remove(id);
            keys.forget(id);
        }
        assert!(keys.memory() < 10_000, "{}", keys.memory());
    }
}
