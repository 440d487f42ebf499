//! Which messages are ready: sets of ids that can be taken at both ends, one for each priority.
//!
//! Ids are dense, so a set is a bit for each id in blocks of 1,024, with a lower and an upper bound that make
//! taking from either end of a busy queue a look at one word. Knows ids only; never a message.

use std::collections::VecDeque;

use super::id::MessageId;

/// Words of one block.
pub const WORDS: usize = 16;
/// Ids in one block.
pub const BLOCK_IDS: u64 = 64 * WORDS as u64;

#[derive(Debug, Default)]
struct Bits {
    words: [u64; WORDS],
    count: u16,
}

/// A set of ids.
///
/// Invariant: every member is at least `low` and at most `high`; `count` is their number.
#[derive(Debug, Default)]
pub struct IdSet {
    /// Number of the block at `blocks[0]`.
    base: u64,
    /// `None` = no member in the block.
    blocks: VecDeque<Option<Box<Bits>>>,
    count: u64,
    low: MessageId,
    high: MessageId,
    /// Emptied blocks, to be used again.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Bits>>,
}

impl IdSet {
    /// How many members there are.
    #[inline]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// There are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let blocks = self.blocks.iter().flatten().count() + self.spare.len();
        blocks * size_of::<Bits>() + self.blocks.capacity() * 8
    }

    fn block_mut(&mut self, number: u64) -> &mut Box<Bits> {
        if self.count == 0 && (self.blocks.len() != 1 || self.base != number) {
            // Every block is empty: the set begins anew where it is needed.
            for block in self.blocks.drain(..).flatten() {
                if self.spare.len() < 2 {
                    self.spare.push(block);
                }
            }
            self.base = number;
        }
        while number < self.base {
            self.blocks.push_front(None);
            self.base -= 1;
        }
        let at = (number - self.base) as usize;
        if at >= self.blocks.len() {
            self.blocks.resize_with(at + 1, || None);
        }
        let spare = &mut self.spare;
        self.blocks[at].get_or_insert_with(|| spare.pop().unwrap_or_default())
    }

    fn block(&self, number: u64) -> Option<&Bits> {
        let at = number.checked_sub(self.base)?;
        self.blocks.get(at as usize)?.as_deref()
    }

    /// Adds an id; false if it was a member.
    #[inline]
    pub fn insert(&mut self, id: MessageId) -> bool {
        let block = self.block_mut(id / BLOCK_IDS);
        let word = &mut block.words[(id % BLOCK_IDS / 64) as usize];
        let bit = 1 << (id % 64);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        block.count += 1;
        if self.count == 0 {
            self.low = id;
            self.high = id;
        } else {
            self.low = self.low.min(id);
            self.high = self.high.max(id);
        }
        self.count += 1;
        true
    }

    /// Adds the ids from `first` on that are below `end`, none of which is a member.
    #[inline]
    pub fn insert_run(&mut self, first: MessageId, end: MessageId) {
        let mut id = first;
        while id < end {
            let bit = id % 64;
            let bits = (end - id).min(64 - bit);
            let block = self.block_mut(id / BLOCK_IDS);
            let word = &mut block.words[(id % BLOCK_IDS / 64) as usize];
            let run = u64::MAX >> (64 - bits) << bit;
            debug_assert_eq!(*word & run, 0, "none is a member");
            *word |= run;
            block.count += bits as u16;
            if self.count == 0 {
                (self.low, self.high) = (id, id);
            }
            self.low = self.low.min(id);
            self.high = self.high.max(id + bits - 1);
            self.count += bits;
            id += bits;
        }
    }

    /// Is it a member?
    #[inline]
    pub fn contains(&self, id: MessageId) -> bool {
        self.block(id / BLOCK_IDS).is_some_and(|block| {
            block.words[(id % BLOCK_IDS / 64) as usize] & (1 << (id % 64)) != 0
        })
    }

    /// Takes an id away; false if it was no member.
    #[inline]
    pub fn remove(&mut self, id: MessageId) -> bool {
        let number = id / BLOCK_IDS;
        let Some(at) = number.checked_sub(self.base) else {
            return false;
        };
        let Some(Some(block)) = self.blocks.get_mut(at as usize) else {
            return false;
        };
        let word = &mut block.words[(id % BLOCK_IDS / 64) as usize];
        let bit = 1 << (id % 64);
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        block.count -= 1;
        self.count -= 1;
        if block.count == 0 {
            self.drop_empty(at as usize);
        }
        true
    }

    /// Gives an empty block back, unless it is the last, which the next ids will need.
    fn drop_empty(&mut self, at: usize) {
        if at + 1 == self.blocks.len() && self.blocks.len() == 1 {
            return;
        }
        if let Some(block) = self.blocks[at].take()
            && self.spare.len() < 2
        {
            self.spare.push(block);
        }
        while let (Some(None), true) = (self.blocks.front(), self.blocks.len() > 1) {
            self.blocks.pop_front();
            self.base += 1;
        }
        while let Some(None) = self.blocks.back() {
            self.blocks.pop_back();
        }
    }

    /// The members among the 1,024 ids of a block, a bit for each.
    pub fn words(&self, number: u64) -> [u64; WORDS] {
        self.block(number).map_or([0; WORDS], |block| block.words)
    }

    /// Adds ids of one block, a bit for each.
    pub fn insert_words(&mut self, number: u64, words: &[u64; WORDS]) {
        if words.iter().all(|word| *word == 0) {
            return;
        }
        let block = self.block_mut(number);
        let mut added = 0;
        for (own, word) in block.words.iter_mut().zip(words) {
            added += (word & !*own).count_ones();
            *own |= word;
        }
        block.count += added as u16;
        let (low, high) = (number * BLOCK_IDS, (number + 1) * BLOCK_IDS - 1);
        if self.count == 0 {
            (self.low, self.high) = (low, high);
        } else {
            self.low = self.low.min(low);
            self.high = self.high.max(high);
        }
        self.count += u64::from(added);
    }

    /// The smallest member.
    #[inline]
    pub fn first(&mut self) -> Option<MessageId> {
        if self.count == 0 {
            return None;
        }
        let id = self
            .next_from(self.low)
            .expect("a set that is not empty has a member at or after its lower bound");
        self.low = id;
        Some(id)
    }

    /// The largest member.
    pub fn last(&mut self) -> Option<MessageId> {
        if self.count == 0 {
            return None;
        }
        let mut number = self.high / BLOCK_IDS;
        let mut word = (self.high % BLOCK_IDS / 64) as usize;
        let mut mask = u64::MAX >> (63 - self.high % 64);
        loop {
            if let Some(block) = self.block(number) {
                loop {
                    let found = block.words[word] & mask;
                    mask = u64::MAX;
                    if found != 0 {
                        let bit = 63 - u64::from(found.leading_zeros());
                        self.high = number * BLOCK_IDS + word as u64 * 64 + bit;
                        return Some(self.high);
                    }
                    if word == 0 {
                        break;
                    }
                    word -= 1;
                }
            }
            number = number
                .checked_sub(1)
                .expect("a set that is not empty has a member at or before its upper bound");
            word = WORDS - 1;
            mask = u64::MAX;
        }
    }

    /// The smallest member that is at least `id`.
    #[inline]
    pub fn next_from(&self, id: MessageId) -> Option<MessageId> {
        let start = (id / BLOCK_IDS).max(self.base);
        let mut word = if start == id / BLOCK_IDS {
            (id % BLOCK_IDS / 64) as usize
        } else {
            0
        };
        let mut mask = if start == id / BLOCK_IDS {
            u64::MAX << (id % 64)
        } else {
            u64::MAX
        };
        let end = self.base + self.blocks.len() as u64;
        for number in start..end {
            if let Some(block) = &self.blocks[(number - self.base) as usize]
                && block.count > 0
            {
                while word < WORDS {
                    let found = block.words[word] & mask;
                    if found != 0 {
                        let bit = u64::from(found.trailing_zeros());
                        return Some(number * BLOCK_IDS + word as u64 * 64 + bit);
                    }
                    mask = u64::MAX;
                    word += 1;
                }
            }
            word = 0;
            mask = u64::MAX;
        }
        None
    }

    /// Takes the smallest member.
    #[inline]
    pub fn pop_first(&mut self) -> Option<MessageId> {
        let id = self.first()?;
        self.remove(id);
        Some(id)
    }

    /// The smallest member and how many consecutive ones begin with it, at most `most` of them and none of
    /// another block.
    #[inline]
    pub fn first_run(&mut self, most: u64) -> Option<(MessageId, u64)> {
        let first = self.first()?;
        let block = self.block(first / BLOCK_IDS)?;
        let mut word = (first % BLOCK_IDS / 64) as usize;
        let skip = first % 64;
        let mut count = u64::from((block.words[word] >> skip).trailing_ones());
        while (skip + count).is_multiple_of(64) && count < most && word + 1 < WORDS {
            word += 1;
            let more = u64::from(block.words[word].trailing_ones());
            if more == 0 {
                break;
            }
            count += more;
        }
        Some((first, count.min(most)))
    }

    /// Takes away the first `count` members of [`IdSet::first_run`].
    #[inline]
    pub fn remove_first(&mut self, first: MessageId, count: u64) {
        debug_assert_eq!(first, self.low, "the run that was just looked for");
        let at = (first / BLOCK_IDS - self.base) as usize;
        let block = self.blocks[at].as_deref_mut().expect("it has members");
        let (mut id, end) = (first, first + count);
        while id < end {
            let bit = id % 64;
            let bits = (end - id).min(64 - bit);
            let run = u64::MAX >> (64 - bits) << bit;
            let word = &mut block.words[(id % BLOCK_IDS / 64) as usize];
            debug_assert_eq!(*word & run, run, "they are members");
            *word &= !run;
            id += bits;
        }
        block.count -= count as u16;
        self.count -= count;
        self.low = end;
        if block.count == 0 {
            self.drop_empty(at);
        }
    }

    /// The members as runs of consecutive ids, (first, count), in order. A full block is one look.
    pub fn runs(&self) -> Vec<(MessageId, u64)> {
        let mut runs: Vec<(MessageId, u64)> = Vec::new();
        let mut push = |first: MessageId, count: u64| match runs.last_mut() {
            Some((begin, length)) if *begin + *length == first => *length += count,
            _ => runs.push((first, count)),
        };
        for (at, block) in self.blocks.iter().enumerate() {
            let Some(block) = block else { continue };
            let start = (self.base + at as u64) * BLOCK_IDS;
            if u64::from(block.count) == BLOCK_IDS {
                push(start, BLOCK_IDS);
                continue;
            }
            for (nth, word) in block.words.iter().enumerate() {
                let mut rest = *word;
                while rest != 0 {
                    let skip = rest.trailing_zeros();
                    let count = (rest >> skip).trailing_ones();
                    push(start + nth as u64 * 64 + u64::from(skip), u64::from(count));
                    if skip + count == 64 {
                        break;
                    }
                    rest &= u64::MAX << (skip + count);
                }
            }
        }
        runs
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = MessageId> {
        let mut at = self.low;
        std::iter::from_fn(move || {
            let id = self.next_from(at)?;
            at = id + 1;
            Some(id)
        })
    }
}

/// The priority of messages that entered at the head of their queue, where that has a meaning.
pub const HEAD: u8 = u8::MAX;

/// The ready messages of one consumer group: a set for each priority in use, highest first.
#[derive(Debug, Default)]
pub struct Ready {
    lanes: Vec<(u8, IdSet)>,
    count: u64,
}

impl Ready {
    /// How many messages are ready.
    #[inline]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// None is ready.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.lanes.iter().map(|(_, lane)| lane.memory()).sum()
    }

    #[inline]
    fn lane(&mut self, pri: u8) -> &mut IdSet {
        let at = match self.lanes.iter().position(|(lane, _)| *lane <= pri) {
            Some(at) if self.lanes[at].0 == pri => at,
            found => {
                let at = found.unwrap_or(self.lanes.len());
                self.lanes.insert(at, (pri, IdSet::default()));
                at
            }
        };
        &mut self.lanes[at].1
    }

    /// Makes a message ready.
    #[inline]
    pub fn insert(&mut self, id: MessageId, pri: u8) {
        if self.lane(pri).insert(id) {
            self.count += 1;
        }
    }

    /// Makes the messages from `first` on ready that come before `end`; none of them is.
    #[inline]
    pub fn insert_run(&mut self, first: MessageId, end: MessageId, pri: u8) {
        if first < end {
            self.lane(pri).insert_run(first, end);
            self.count += end - first;
        }
    }

    /// Makes messages of one block of ids ready, a bit for each; none of them is.
    pub fn insert_words(&mut self, number: u64, words: &[u64; WORDS], pri: u8) {
        self.lane(pri).insert_words(number, words);
        self.count += words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum::<u64>();
    }

    /// Takes the next message: highest priority, then smallest id.
    #[inline]
    pub fn pop(&mut self) -> Option<(MessageId, u8)> {
        for (pri, lane) in &mut self.lanes {
            if let Some(id) = lane.pop_first() {
                self.count -= 1;
                return Some((id, *pri));
            }
        }
        None
    }

    /// The next message, left where it is.
    #[inline]
    pub fn peek(&mut self) -> Option<(MessageId, u8)> {
        self.lanes
            .iter_mut()
            .find_map(|(pri, lane)| lane.first().map(|id| (id, *pri)))
    }

    /// The next messages if their ids are consecutive: the first, how many (at least one, at most `most`) and
    /// their priority. Left where they are.
    #[inline]
    pub fn peek_run(&mut self, most: u64) -> Option<(MessageId, u64, u8)> {
        self.lanes.iter_mut().find_map(|(pri, lane)| {
            let (first, count) = lane.first_run(most)?;
            Some((first, count, *pri))
        })
    }

    /// Takes the first `count` messages of what [`Ready::peek_run`] has just found.
    #[inline]
    pub fn take_run(&mut self, first: MessageId, count: u64, pri: u8) {
        let lane = self.lanes.iter_mut().find(|(lane, _)| *lane == pri);
        let (_, lane) = lane.expect("a run was found in it");
        lane.remove_first(first, count);
        self.count -= count;
    }

    /// The message at one end, where the highest priority holds those that entered at the head
    /// (`has_head`): of them the largest id is in front. `from_tail` = the end that leaves last.
    pub fn peek_end(&mut self, has_head: bool, from_tail: bool) -> Option<(MessageId, u8)> {
        let end = |(pri, lane): &mut (u8, IdSet)| {
            let is_head = has_head && *pri == HEAD;
            let id = match is_head != from_tail {
                true => lane.last(),
                false => lane.first(),
            };
            id.map(|id| (id, *pri))
        };
        match from_tail {
            true => self.lanes.iter_mut().rev().find_map(end),
            false => self.lanes.iter_mut().find_map(end),
        }
    }

    /// Ready messages from the end that leaves first to the other, as [`Ready::peek_end`] sees them.
    pub fn in_order(&self, has_head: bool) -> Vec<MessageId> {
        let mut ids = Vec::with_capacity(self.count as usize);
        for (pri, lane) in &self.lanes {
            let from = ids.len();
            ids.extend(lane.iter());
            if has_head && *pri == HEAD {
                ids[from..].reverse();
            }
        }
        ids
    }

    /// Takes a given message away; its priority if it was ready.
    pub fn remove(&mut self, id: MessageId) -> Option<u8> {
        let (pri, _) = self
            .lanes
            .iter_mut()
            .find_map(|(pri, lane)| lane.remove(id).then_some((*pri, ())))?;
        self.count -= 1;
        Some(pri)
    }

    /// The priority of a ready message.
    pub fn pri(&self, id: MessageId) -> Option<u8> {
        self.lanes
            .iter()
            .find_map(|(pri, lane)| lane.contains(id).then_some(*pri))
    }

    /// The smallest ready id of all priorities.
    pub fn oldest(&mut self) -> Option<MessageId> {
        self.lanes
            .iter_mut()
            .filter_map(|(_, lane)| lane.first())
            .min()
    }

    /// Ready messages in the order they would leave, from the given id on within each priority.
    pub fn iter_from(&self, from: MessageId) -> impl Iterator<Item = (MessageId, u8)> {
        self.lanes.iter().flat_map(move |(pri, lane)| {
            lane.iter()
                .filter(move |id| *id >= from)
                .map(|id| (id, *pri))
        })
    }

    /// The sets by priority, for a checkpoint.
    pub fn lanes(&self) -> impl Iterator<Item = (u8, &IdSet)> {
        self.lanes.iter().map(|(pri, lane)| (*pri, lane))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Ready::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_run_is_what_its_ids_are_one_by_one() {
        for first in [0, 1, 63, 64, 1000, 1023, 1024, 5000] {
            for count in [0, 1, 2, 63, 64, 65, 1024, 3000] {
                for before in [None, Some(3), Some(first + count + 70)] {
                    let (mut run, mut single) = (IdSet::default(), IdSet::default());
                    for set in [&mut run, &mut single] {
                        if let Some(id) = before.filter(|id| *id < first || *id >= first + count) {
                            set.insert(id);
                        }
                    }
                    run.insert_run(first, first + count);
                    for id in first..first + count {
                        assert!(single.insert(id));
                    }
                    assert_eq!((run.len(), run.last()), (single.len(), single.last()));
                    while let Some(id) = single.pop_first() {
                        assert_eq!(run.pop_first(), Some(id), "{first} {count} {before:?}");
                    }
                    assert!(run.is_empty());
                }
            }
        }
    }

    #[test]
    fn agrees_with_a_tree_under_random_use() {
        let mut seed = 42u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for spread in [100, 5_000, 300_000] {
            let mut set = IdSet::default();
            let mut naive = BTreeSet::new();
            for step in 0..30_000u64 {
                let id = 1 + step / 3 + random() % spread;
                match random() % 6 {
                    0 | 1 => assert_eq!(set.insert(id), naive.insert(id)),
                    2 => assert_eq!(set.remove(id), naive.remove(&id)),
                    3 => assert_eq!(set.pop_first(), naive.pop_first()),
                    4 => assert_eq!(set.last(), naive.last().copied()),
                    _ => assert_eq!(set.next_from(id), naive.range(id..).next().copied()),
                }
                assert_eq!(set.len(), naive.len() as u64);
            }
            assert!(set.iter().eq(naive.iter().copied()));
            let runs = set.runs();
            assert!(
                runs.windows(2)
                    .all(|pair| pair[0].0 + pair[0].1 < pair[1].0)
            );
            assert!(
                runs.iter()
                    .flat_map(|(first, count)| *first..first + count)
                    .eq(naive.iter().copied())
            );
            while let Some(id) = set.pop_first() {
                assert_eq!(Some(id), naive.pop_first());
            }
            assert!(naive.is_empty());
            assert!(
                set.memory() < 200_000,
                "memory stays after the drain: {}",
                set.memory()
            );
        }
    }

    #[test]
    fn a_list_is_taken_at_both_ends() {
        let mut ready = Ready::default();
        // RPUSH 1 2, LPUSH 3 4, RPUSH 5: the list is 4 3 1 2 5.
        for (id, pri) in [(1, 0), (2, 0), (3, HEAD), (4, HEAD), (5, 0)] {
            ready.insert(id, pri);
        }
        assert_eq!(ready.in_order(true), [4, 3, 1, 2, 5]);
        assert_eq!(ready.in_order(false), [3, 4, 1, 2, 5]);
        let mut pop = |from_tail| {
            let (id, _) = ready.peek_end(true, from_tail).expect("there is one");
            ready.remove(id);
            id
        };
        assert_eq!([pop(false), pop(true), pop(true)], [4, 5, 2]);
        assert_eq!([pop(true), pop(true)], [1, 3]);
        assert_eq!(ready.peek_end(true, true), None);
    }

    #[test]
    fn higher_priorities_leave_first_then_smaller_ids() {
        let mut ready = Ready::default();
        for (id, pri) in [(1, 0), (2, 9), (3, 5), (4, 9), (5, 0)] {
            ready.insert(id, pri);
        }
        assert_eq!(ready.remove(3), Some(5));
        let order: Vec<_> = std::iter::from_fn(|| ready.pop()).collect();
        assert_eq!(order, [(2, 9), (4, 9), (1, 0), (5, 0)]);
        assert!(ready.is_empty());
    }
}
