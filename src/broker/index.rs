//! Where a queue's messages lie: the place of every unsettled id.
//!
//! Ids are consecutive, so the index is a column of 4-byte offsets in blocks of 1,024 ids, with a
//! bit for each settled one. A block whose messages are all settled is gone. Full blocks that
//! nobody needs are *spilled*: their column lies in the log's block file under a slot number and
//! only the bits stay. Knows ids and places; never a body.

mod block;
mod image;
mod spill;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::arena::is_request;
use super::id::MessageId;
use block::{Block, FAR, empty, settle_between};
pub use image::BlockImage;

/// Ids in one block.
pub const BLOCK_IDS: usize = 1024;
const WORDS: usize = BLOCK_IDS / 64;

/// Where a column lies in the block file, as the log numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u64);

/// What the index says of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// It lies here.
    At(u64),
    /// Its column must be loaded from this slot first.
    Spilled(Slot),
    /// It is settled, or was never published.
    Gone,
}

/// The index of one queue.
#[derive(Debug, Default)]
pub struct Index {
    /// Number of the block at `blocks[0]`.
    base: u64,
    /// `None` = every id of the block is settled.
    #[allow(clippy::vec_box)]
    blocks: VecDeque<Option<Box<Block>>>,
    live: u64,
    bytes: u64,
    /// Columns in memory, bytes.
    column_bytes: usize,
    /// A block to use again.
    spare: Option<Box<Block>>,
    /// Slots whose blocks are gone; the owner takes them to give them back.
    freed_slots: Vec<Slot>,
    /// Counts look-ups' turns; set by the owner.
    pub turn: u64,
}

impl Index {
    /// Unsettled messages.
    #[inline]
    pub fn live(&self) -> u64 {
        self.live
    }

    /// Sum of the unsettled bodies, bytes.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.column_bytes + self.blocks.len() * (size_of::<Block>() + 8)
    }

    fn fresh(&mut self) -> Box<Block> {
        if let Some(mut block) = self.spare.take() {
            block.offsets.clear();
            self.column_bytes += block.offsets.capacity() * 4;
            *block = Block {
                offsets: std::mem::take(&mut block.offsets),
                ..empty()
            };
            return block;
        }
        Box::new(empty())
    }

    #[inline]
    fn block_mut(&mut self, id: MessageId) -> Option<&mut Block> {
        let at = (id / BLOCK_IDS as u64).checked_sub(self.base)?;
        self.blocks.get_mut(at as usize)?.as_deref_mut()
    }

    #[inline]
    fn block(&self, id: MessageId) -> Option<&Block> {
        let at = (id / BLOCK_IDS as u64).checked_sub(self.base)?;
        self.blocks.get(at as usize)?.as_deref()
    }

    /// How many ids from this one on are of its block.
    #[inline]
    pub fn left_in_block(id: MessageId) -> usize {
        BLOCK_IDS - (id % BLOCK_IDS as u64) as usize
    }

    /// Notes where a new message lies. Ids come in order; those left out count as settled.
    ///
    /// # Panics
    /// If the id is older than one located before.
    #[inline]
    pub fn locate(&mut self, id: MessageId, place: u64, size: u32) {
        let number = id / BLOCK_IDS as u64;
        if self.blocks.is_empty() {
            self.base = number;
        }
        let mut at = number
            .checked_sub(self.base)
            .expect("ids are located in order") as usize;
        if at >= self.blocks.len() {
            self.close_last();
            if self.blocks.is_empty() {
                self.base = number;
            }
            at = (number - self.base) as usize;
            let block = self.fresh();
            self.blocks.resize_with(at, || None);
            self.blocks.push_back(Some(block));
        }
        let nth = (id % BLOCK_IDS as u64) as usize;
        let block = self.blocks[at]
            .as_deref_mut()
            .expect("the newest block is kept until it is full");
        if nth == 0 || usize::from(block.located) != nth {
            block.begin_at(nth, place);
        }
        assert!(nth >= block.offsets.len(), "ids are located in order");
        let before = block.offsets.capacity();
        block.offsets.resize(nth, 0);
        let offset = place.wrapping_sub(block.base);
        if offset < u64::from(FAR) {
            block.offsets.push(offset as u32);
        } else {
            block.locate_far(nth, place);
        }
        self.column_bytes += (block.offsets.capacity() - before) * 4;
        block.located = nth as u16 + 1;
        block.live += 1;
        block.bytes += u64::from(size);
        self.live += 1;
        self.bytes += u64::from(size);
    }

    /// [`Index::locate`] of messages of one block with consecutive ids from `first` on, which lie at ascending
    /// distances from `base` and whose bodies are `bytes` together.
    ///
    /// # Panics
    /// As [`Index::locate`], and if there are none or they are of several blocks.
    #[inline]
    pub fn locate_run(&mut self, first: MessageId, base: u64, offsets: &[u32], bytes: u64) {
        let (front, rest) = offsets.split_first().expect("there is one");
        self.locate(first, base + u64::from(*front), 0);
        let at = (first / BLOCK_IDS as u64 - self.base) as usize;
        let block = self.blocks[at].as_deref_mut();
        let block = block.expect("one was just located in it");
        let farthest = base
            .wrapping_sub(block.base)
            .wrapping_add(offsets.last().copied().unwrap_or(0).into());
        if *block.offsets.last().expect("one was just located") != FAR && farthest < u64::from(FAR)
        {
            let shift = base.wrapping_sub(block.base) as u32;
            let before = block.offsets.capacity();
            block
                .offsets
                .extend(rest.iter().map(|offset| offset.wrapping_add(shift)));
            self.column_bytes += (block.offsets.capacity() - before) * 4;
            assert!(block.offsets.len() <= BLOCK_IDS, "they are of one block");
            block.located += rest.len() as u16;
            block.live += rest.len() as u16;
            self.live += rest.len() as u64;
        } else {
            for (id, offset) in (first + 1..).zip(rest) {
                self.locate(id, base + u64::from(*offset), 0);
            }
        }
        let block = self.block_mut(first).expect("it was there");
        block.bytes += bytes;
        self.bytes += bytes;
    }

    /// Where a message lies.
    #[inline]
    pub fn find(&mut self, id: MessageId) -> Located {
        let turn = self.turn;
        let Some(block) = self.block_mut(id) else {
            return Located::Gone;
        };
        let nth = (id % BLOCK_IDS as u64) as usize;
        if nth >= block.located as usize || block.settled[nth / 64] & 1 << (nth % 64) != 0 {
            return Located::Gone;
        }
        block.used = turn;
        if !block.far.is_empty()
            && let Some(place) = block.far.get(&(nth as u16))
        {
            return Located::At(*place);
        }
        match block.offsets.get(nth) {
            Some(offset) => Located::At(block.base + u64::from(*offset)),
            None => Located::Spilled(block.slot.expect("a column is in memory or has a slot")),
        }
    }

    /// Where unsettled messages of consecutive ids of one block lie: distances from a base; `None` if that is
    /// not to be had in one piece.
    #[inline]
    pub fn find_run(&mut self, first: MessageId, count: usize) -> Option<(u64, &[u32])> {
        let turn = self.turn;
        let block = self.block_mut(first)?;
        let nth = (first % BLOCK_IDS as u64) as usize;
        if !block.far.is_empty() {
            return None;
        }
        block.used = turn;
        Some((block.base, block.offsets.get(nth..nth + count)?))
    }

    /// Is it published and not settled?
    #[inline]
    pub fn is_live(&self, id: MessageId) -> bool {
        let nth = (id % BLOCK_IDS as u64) as usize;
        self.block(id).is_some_and(|block| {
            nth < block.located as usize && block.settled[nth / 64] & 1 << (nth % 64) == 0
        })
    }

    /// Settles a message; false if it was before. `size` of its body in bytes, or `None` when that is not
    /// known: then the average of its block is taken off, and what is left when the block is settled.
    #[inline]
    pub fn settle(&mut self, id: MessageId, size: Option<u32>) -> bool {
        let nth = (id % BLOCK_IDS as u64) as usize;
        let Some(block) = self.block_mut(id) else {
            return false;
        };
        let bit = 1 << (nth % 64);
        if nth >= block.located as usize || block.settled[nth / 64] & bit != 0 {
            return false;
        }
        block.settled[nth / 64] |= bit;
        if !block.far.is_empty() {
            block.far.remove(&(nth as u16));
        }
        let bytes = if block.live == 1 {
            block.bytes
        } else {
            let size = size.map_or(block.bytes / u64::from(block.live), u64::from);
            size.min(block.bytes)
        };
        block.live -= 1;
        block.bytes -= bytes;
        let done = block.live == 0 && block.located as usize == BLOCK_IDS;
        self.live -= 1;
        self.bytes -= bytes;
        if done {
            self.drop_block(id / BLOCK_IDS as u64);
        }
        true
    }

    /// How many ids from `first` on [`Index::settle_run`] can settle at once.
    #[inline]
    pub fn runs(&self, first: MessageId) -> u64 {
        let nth = first % BLOCK_IDS as u64;
        match self.block(first) {
            Some(block) if block.far.is_empty() => u64::from(block.located).saturating_sub(nth),
            _ => 0,
        }
    }

    /// Settles unsettled messages of consecutive ids, as many as [`Index::runs`] said at most, whose bodies are
    /// `bytes` together.
    #[inline]
    pub fn settle_run(&mut self, first: MessageId, count: usize, bytes: u64) {
        let Some(block) = self.block_mut(first) else {
            return;
        };
        let nth = (first % BLOCK_IDS as u64) as usize;
        settle_between(&mut block.settled, nth, nth + count);
        block.live -= count as u16;
        let bytes = match block.live {
            0 => block.bytes,
            _ => bytes.min(block.bytes),
        };
        block.bytes -= bytes;
        let done = block.live == 0 && block.located as usize == BLOCK_IDS;
        self.live -= count as u64;
        self.bytes -= bytes;
        if done {
            self.drop_block(first / BLOCK_IDS as u64);
        }
    }

    /// A new block follows the last one: ids of that which were left out count as settled.
    fn close_last(&mut self) {
        let Some(Some(block)) = self.blocks.back_mut() else {
            return;
        };
        let located = usize::from(block.located);
        if located == BLOCK_IDS {
            return;
        }
        settle_between(&mut block.settled, located, BLOCK_IDS);
        let before = block.offsets.capacity();
        block.offsets.resize(BLOCK_IDS, 0);
        block.located = BLOCK_IDS as u16;
        self.column_bytes += (block.offsets.capacity() - before) * 4;
        if block.live == 0 {
            self.drop_block(self.base + self.blocks.len() as u64 - 1);
        }
    }

    /// The requests among the unsettled messages.
    pub fn requests(&self) -> impl Iterator<Item = MessageId> {
        let blocks = self.blocks.iter().enumerate();
        blocks.flat_map(|(at, block)| {
            let first = (self.base + at as u64) * BLOCK_IDS as u64;
            let far = block.iter().flat_map(|block| &block.far);
            far.filter(|(_, place)| is_request(**place))
                .map(move |(nth, _)| first + u64::from(*nth))
        })
    }

    fn drop_block(&mut self, number: u64) {
        let at = (number - self.base) as usize;
        let block = self.blocks[at]
            .take()
            .expect("the caller has just settled its last id");
        self.column_bytes -= block.offsets.capacity() * 4;
        self.freed_slots.extend(block.slot);
        if self.spare.is_none() {
            self.spare = Some(block);
        }
        while let Some(None) = self.blocks.front() {
            self.blocks.pop_front();
            self.base += 1;
        }
    }

    /// The smallest unsettled id that is at least `id`.
    pub fn next_live(&self, id: MessageId) -> Option<MessageId> {
        let first = (id / BLOCK_IDS as u64).max(self.base);
        for number in first..self.base + self.blocks.len() as u64 {
            let Some(block) = &self.blocks[(number - self.base) as usize] else {
                continue;
            };
            if block.live == 0 {
                continue;
            }
            let start = number * BLOCK_IDS as u64;
            let mut nth = id.saturating_sub(start) as usize;
            while nth < block.located as usize {
                let open = !block.settled[nth / 64] & u64::MAX << (nth % 64);
                if open != 0 {
                    let found = nth / 64 * 64 + open.trailing_zeros() as usize;
                    if found < block.located as usize {
                        return Some(start + found as u64);
                    }
                    break;
                }
                nth = (nth / 64 + 1) * 64;
            }
        }
        None
    }

    /// The unsettled ids from `from` on: by number of the block, a bit for each.
    pub fn live_words(&self, from: MessageId) -> impl Iterator<Item = (u64, [u64; WORDS])> {
        let first = from / BLOCK_IDS as u64;
        self.blocks
            .iter()
            .enumerate()
            .filter_map(move |(at, block)| {
                let (number, block) = (self.base + at as u64, block.as_deref()?);
                if number < first || block.live == 0 {
                    return None;
                }
                // Ids that are not located yet count as settled.
                let mut gone = block.settled;
                settle_between(&mut gone, usize::from(block.located), BLOCK_IDS);
                if number == first {
                    settle_between(&mut gone, 0, (from % BLOCK_IDS as u64) as usize);
                }
                Some((number, gone.map(|word| !word)))
            })
    }

    /// Settles any unsettled message and says where it lay; `Spilled` when its column must be loaded
    /// first; `None` when there is none left.
    pub fn take_any(&mut self) -> Option<Located> {
        let id = self.next_live(0)?;
        let found = self.find(id);
        if let Located::At(_) = found {
            self.settle(id, None);
        }
        Some(found)
    }

    /// The message was copied to another place.
    pub fn relocate(&mut self, id: MessageId, place: u64) {
        let nth = (id % BLOCK_IDS as u64) as u16;
        if let Some(block) = self.block_mut(id) {
            block.far.insert(nth, place);
        }
    }

    /// Unsettled messages that lie in `from..to`, oldest first. Spilled columns are reported instead of searched.
    pub fn live_between(&self, from: u64, to: u64) -> Result<Vec<(MessageId, u64)>, Slot> {
        let mut found = Vec::new();
        for (first, block) in self.blocks_reaching(from, to) {
            if block.offsets.is_empty() && block.live > 0 {
                return Err(block.slot.expect("a column is in memory or has a slot"));
            }
            block.find_between(first, &block.offsets, from..to, &mut found);
        }
        Ok(found)
    }

    /// The same, with spilled columns read by `load` and not kept.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn live_between_with<E>(
        &self,
        from: u64,
        to: u64,
        mut load: impl FnMut(Slot) -> Result<Vec<u32>, E>,
    ) -> Result<Vec<(MessageId, u64)>, E> {
        let mut found = Vec::new();
        for (first, block) in self.blocks_reaching(from, to) {
            match block.slot {
                Some(slot) if block.offsets.is_empty() && block.live > 0 => {
                    let column = load(slot)?;
                    block.find_between(first, &column, from..to, &mut found);
                }
                _ => block.find_between(first, &block.offsets, from..to, &mut found),
            }
        }
        Ok(found)
    }

    /// Blocks that may have messages in `from..to`, each with its first id.
    fn blocks_reaching(&self, from: u64, to: u64) -> impl Iterator<Item = (MessageId, &Block)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.filter_map(move |(at, block)| {
            let block = block.as_deref()?;
            // Places grow with the ids, so that most blocks are passed by one look.
            let is_far =
                block.far.is_empty() && (block.base >= to || block.base + u64::from(FAR) < from);
            (!is_far).then_some(((self.base + at as u64) * BLOCK_IDS as u64, block))
        })
    }
}
