//! Where a queue's messages lie: the place of every unsettled id.
//!
//! Ids are consecutive, so the index is a column of 4-byte offsets in blocks of 1,024 ids, with a
//! bit for each settled one. A block whose messages are all settled is gone. Full blocks that
//! nobody needs are *spilled*: their column lies in the log's block file under a slot number and
//! only the bits stay. Knows ids and places; never a body.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::arena::is_request;
use super::id::MessageId;

/// Ids in one block.
pub const BLOCK_IDS: usize = 1024;
const WORDS: usize = BLOCK_IDS / 64;

/// Offset of an id whose place does not fit its block's column and is in `far`.
const FAR: u32 = u32::MAX;

/// Base of a block in which only requests were located so far: so far from all places that none of them
/// fits the column.
const NO_BASE: u64 = 1 << 61;

/// Where a column lies in the block file, as the log numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u64);

#[derive(Debug)]
struct Block {
    /// Offsets count from here.
    base: u64,
    /// Distance of each id from `base`; empty while spilled.
    offsets: Vec<u32>,
    /// Where the column is in the block file, once it is there.
    slot: Option<Slot>,
    /// Places that do not fit: further than 4 GiB, or moved by compaction.
    far: BTreeMap<u16, u64>,
    settled: [u64; WORDS],
    /// Ids located in this block so far, settled ones included.
    located: u16,
    /// Unsettled ids.
    live: u16,
    /// Sum of the unsettled bodies, bytes.
    bytes: u64,
    /// Last turn of a look-up, to find the coldest.
    used: u64,
}

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

/// What a checkpoint says of one block.
#[derive(Debug)]
pub struct BlockImage<'a> {
    /// The block's number: its first id is 1,024 times that.
    pub number: u64,
    /// Offsets count from here.
    pub base: u64,
    /// Ids located so far.
    pub located: u16,
    /// Sum of the unsettled bodies, bytes.
    pub bytes: u64,
    /// One bit for each id.
    pub settled: [u64; WORDS],
    /// The column, if it is in memory.
    pub offsets: &'a [u32],
    /// Where the column is, if it was spilled.
    pub slot: Option<Slot>,
    /// Places that do not fit.
    pub far: Vec<(u16, u64)>,
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

    /// Writes the columns anew of blocks whose unsettled messages have all been relocated to places from `from`
    /// on, which no other place reaches: their old slots are forgotten, not given back. Returns the number and
    /// the column of those that are full and can be spilled again.
    pub fn gather(&mut self, from: u64) -> Vec<(u64, Arc<[u32]>)> {
        let mut gathered = Vec::new();
        for (at, block) in self.blocks.iter_mut().enumerate() {
            let Some(block) = block.as_deref_mut() else {
                continue;
            };
            let is_complete = !block.far.is_empty() && block.far.len() == usize::from(block.live);
            if !is_complete || block.far.values().any(|place| *place < from) {
                continue;
            }
            let before = block.offsets.capacity();
            block.gather();
            self.column_bytes = self.column_bytes + block.offsets.capacity() * 4 - before * 4;
            if usize::from(block.located) == BLOCK_IDS && block.far.is_empty() {
                let column = Arc::from(block.offsets.as_slice());
                gathered.push((self.base + at as u64, column));
            }
        }
        gathered
    }

    /// Every unsettled message lies at `from` or behind.
    pub fn lies_behind(&self, from: u64) -> bool {
        let mut blocks = self.blocks.iter().flatten();
        blocks.all(|block| {
            let far = block.far.len() == usize::from(block.live);
            (block.live == 0 || far || block.base >= from)
                && block.far.values().all(|place| *place >= from)
        })
    }

    /// Slots that are no longer used since the last call.
    pub fn take_freed_slots(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.freed_slots)
    }

    /// Has any slot become free?
    #[inline]
    pub fn has_freed_slots(&self) -> bool {
        !self.freed_slots.is_empty()
    }

    /// Full blocks in memory that have no slot yet: number and column.
    pub fn unsaved(&self) -> impl Iterator<Item = (u64, Arc<[u32]>)> {
        self.blocks.iter().enumerate().filter_map(|(at, block)| {
            let block = block.as_deref()?;
            let full = block.located as usize == BLOCK_IDS && block.slot.is_none();
            full.then(|| (self.base + at as u64, Arc::from(block.offsets.as_slice())))
        })
    }

    /// The block's column is kept under this slot now.
    pub fn saved(&mut self, number: u64, slot: Slot) {
        if let Some(block) = self.block_mut(number * BLOCK_IDS as u64) {
            block.slot = Some(slot);
        }
    }

    /// Drops columns from memory whose block was not used for `idle` turns, saved ones only;
    /// returns the bytes given back.
    pub fn evict(&mut self, idle: u64) -> usize {
        let mut given = 0;
        for block in self.blocks.iter_mut().flatten() {
            if block.slot.is_some()
                && block.used + idle <= self.turn
                && block.offsets.capacity() > 0
            {
                given += block.offsets.capacity() * 4;
                block.offsets = Vec::new();
            }
        }
        self.column_bytes -= given;
        given
    }

    /// A spilled column has been read back. Ignored if its block is gone or has it already.
    pub fn loaded(&mut self, slot: Slot, number: u64, column: &[u32]) {
        let turn = self.turn;
        let Some(block) = self.block_mut(number * BLOCK_IDS as u64) else {
            return;
        };
        if block.slot == Some(slot) && block.offsets.is_empty() {
            block.offsets = column.to_vec();
            block.used = turn;
            self.column_bytes += column.len() * 4;
        }
    }

    /// The number of the block that has this slot.
    pub fn block_of(&self, slot: Slot) -> Option<u64> {
        let at = self
            .blocks
            .iter()
            .position(|block| block.as_ref().is_some_and(|block| block.slot == Some(slot)))?;
        Some(self.base + at as u64)
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

    /// The blocks, for a checkpoint, in which requests count as settled; `size_of` says how large the
    /// body of the one at a place is, bytes.
    pub fn images(&self, size_of: impl Fn(u64) -> u32) -> impl Iterator<Item = BlockImage<'_>> {
        self.blocks
            .iter()
            .enumerate()
            .filter_map(move |(at, block)| {
                let block = block.as_deref()?;
                let (mut settled, mut bytes) = (block.settled, block.bytes);
                let requests = block.far.iter().filter(|(_, place)| is_request(**place));
                for (nth, place) in requests {
                    settle_between(&mut settled, usize::from(*nth), usize::from(*nth) + 1);
                    bytes = bytes.saturating_sub(u64::from(size_of(*place)));
                }
                Some(BlockImage {
                    number: self.base + at as u64,
                    base: block.base,
                    located: block.located,
                    bytes,
                    settled,
                    offsets: if block.slot.is_some() {
                        &[]
                    } else {
                        &block.offsets
                    },
                    slot: block.slot,
                    far: block
                        .far
                        .iter()
                        .filter(|(_, place)| !is_request(**place))
                        .map(|(nth, place)| (*nth, *place))
                        .collect(),
                })
            })
    }

    /// Takes a block over from a checkpoint; blocks come in order.
    ///
    /// # Errors
    /// A sentence when the image contradicts itself.
    pub fn restore(&mut self, image: BlockImage<'_>) -> Result<(), String> {
        let located = image.located as usize;
        if located > BLOCK_IDS || (image.slot.is_none() && image.offsets.len() != located) {
            return Err(format!(
                "index block {} has {located} ids but {} offsets",
                image.number,
                image.offsets.len()
            ));
        }
        if self.blocks.is_empty() {
            self.base = image.number;
        }
        let at = image
            .number
            .checked_sub(self.base)
            .ok_or("index blocks are out of order")? as usize;
        let mut block = Box::new(empty());
        block.base = image.base;
        block.offsets = image.offsets.to_vec();
        block.slot = image.slot;
        block.settled = image.settled;
        block.located = image.located;
        block.bytes = image.bytes;
        block.far = image.far.into_iter().collect();
        let settled: u32 = (0..located)
            .map(|nth| (block.settled[nth / 64] >> (nth % 64) & 1) as u32)
            .sum();
        block.live = (located as u32 - settled) as u16;
        if block.live == 0 && located == BLOCK_IDS {
            // Its last messages were requests, which are gone.
            self.blocks.resize_with(at, || None);
            self.blocks.push_back(None);
            self.freed_slots.extend(block.slot);
            return Ok(());
        }
        self.column_bytes += block.offsets.capacity() * 4;
        self.live += u64::from(block.live);
        self.bytes += block.bytes;
        self.blocks.resize_with(at, || None);
        self.blocks.push_back(Some(block));
        Ok(())
    }
}

fn empty() -> Block {
    Block {
        base: 0,
        offsets: Vec::new(),
        slot: None,
        far: BTreeMap::new(),
        settled: [0; WORDS],
        located: 0,
        live: 0,
        bytes: 0,
        used: 0,
    }
}

impl Block {
    /// The message to be located next begins the block, or ids before it were left out: those were never
    /// published, or are settled.
    #[cold]
    fn begin_at(&mut self, nth: usize, place: u64) {
        if self.located == 0 {
            self.base = if is_request(place) { NO_BASE } else { place };
        }
        settle_between(&mut self.settled, usize::from(self.located), nth);
    }

    /// Adds the unsettled messages that lie in `range`; `offsets` is the block's column, `first` its first id.
    fn find_between(
        &self,
        first: MessageId,
        offsets: &[u32],
        range: Range<u64>,
        found: &mut Vec<(MessageId, u64)>,
    ) {
        for nth in 0..self.located as usize {
            if self.settled[nth / 64] & 1 << (nth % 64) != 0 {
                continue;
            }
            let far = self.far.get(&(nth as u16)).copied();
            let near = || Some(self.base + u64::from(*offsets.get(nth)?));
            if let Some(place) = far.or_else(near).filter(|place| range.contains(place)) {
                found.push((first + nth as u64, place));
            }
        }
    }

    /// Makes the column of the places kept aside.
    fn gather(&mut self) {
        self.base = self.far.values().copied().min().unwrap_or_default();
        self.slot = None;
        self.offsets.clear();
        self.offsets.resize(usize::from(self.located), 0);
        let base = self.base;
        let offsets = &mut self.offsets;
        self.far.retain(|nth, place| {
            let offset = *place - base;
            let is_near = offset < u64::from(FAR);
            offsets[usize::from(*nth)] = if is_near { offset as u32 } else { FAR };
            !is_near
        });
    }

    /// Notes a place that is too far from the base for the column.
    #[cold]
    fn locate_far(&mut self, nth: usize, place: u64) {
        if self.base == NO_BASE && !is_request(place) {
            self.base = place;
            self.offsets.push(0);
            return;
        }
        self.offsets.push(FAR);
        self.far.insert(nth as u16, place);
    }
}

/// Marks ids `from..to` of a block as settled.
fn settle_between(settled: &mut [u64; WORDS], from: usize, to: usize) {
    let mut nth = from;
    while nth < to {
        let many = (64 - nth % 64).min(to - nth);
        settled[nth / 64] |= u64::MAX >> (64 - many) << (nth % 64);
        nth += many;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::arena::REQUEST;

    #[test]
    fn finds_what_was_located_until_it_is_settled() {
        let mut index = Index::default();
        for id in 1..=5000u64 {
            index.locate(id, id * 100, 60);
        }
        assert_eq!((index.live(), index.bytes()), (5000, 300_000));
        assert_eq!(index.find(4097), Located::At(409_700));
        assert_eq!(index.find(5001), Located::Gone);
        for id in (1..=5000).step_by(2) {
            assert!(index.settle(id, Some(60)));
            assert!(!index.settle(id, Some(60)));
        }
        assert_eq!(index.next_live(1), Some(2));
        assert_eq!(index.next_live(2001), Some(2002));
        for id in (2..=5000).step_by(2) {
            assert!(index.settle(id, None));
        }
        assert_eq!((index.live(), index.bytes()), (0, 0));
        assert_eq!(index.next_live(1), None);
        assert!(index.memory() < 10_000, "{}", index.memory());
    }

    #[test]
    fn a_run_is_located_as_its_messages_would_be_one_by_one() {
        // From the first id of a block, within one, after a gap, and where the column does not reach.
        let mut places = 7u64;
        let mut indexes = [Index::default(), Index::default()];
        for (first, count, jump) in [
            (1, 100, 0),
            (101, 1, 3),
            (102, 922, 0),
            (1024, 500, 9),
            (1600, 448, 1 << 20),
            (2048, 10, 1 << 33),
            (2058, 10, 1 << 33),
            (2068, 10, (1 << 32) - 2000),
            (5000, 10, 0),
        ] {
            places += jump;
            let offsets: Vec<u32> = (0..count).map(|nth| 50 + nth * 100).collect();
            let [one, all] = &mut indexes;
            for (id, offset) in (first..).zip(&offsets) {
                one.locate(id, places + u64::from(*offset), 60);
            }
            all.locate_run(first, places, &offsets, 60 * u64::from(count));
            for id in first..first + u64::from(count) {
                assert_eq!(all.find(id), one.find(id), "{id}");
            }
            assert_eq!((all.live(), all.bytes()), (one.live(), one.bytes()));
        }
        let [mut one, mut all] = indexes;
        for id in 1..=5010 {
            assert_eq!(all.settle(id, Some(60)), one.settle(id, Some(60)), "{id}");
        }
        assert_eq!((all.live(), all.bytes()), (0, 0));
    }

    /// What a restart makes of an index: its checkpoint read back.
    fn restarted(index: &Index) -> Index {
        let mut twin = Index::default();
        for image in index.images(|_| 7) {
            twin.restore(image).expect("it is whole");
        }
        twin
    }

    #[test]
    fn requests_are_found_and_left_out_of_a_checkpoint() {
        // A request may be first, last, in between, or all there is in a block.
        for of in [1, 2, 3, 700] {
            let mut index = Index::default();
            let is_request = |id: u64| id.is_multiple_of(of) || (1024..2048).contains(&id);
            for id in 1..=3000u64 {
                let (place, size) = match is_request(id) {
                    true => (REQUEST | id, 7),
                    false => ((5 << 26) + id * 100, 60),
                };
                index.locate(id, place, size);
            }
            let requests: Vec<_> = (1..=3000).filter(|id| is_request(*id)).collect();
            assert!(index.requests().eq(requests.iter().copied()));
            let mut twin = restarted(&index);
            for id in 1..=3000u64 {
                let found = index.find(id);
                let logged = Located::At((5 << 26) + id * 100);
                if is_request(id) {
                    assert_eq!(
                        (found, twin.find(id)),
                        (Located::At(REQUEST | id), Located::Gone)
                    );
                } else {
                    assert_eq!((found, twin.find(id)), (logged, logged));
                }
            }
            let left = 3000 - requests.len() as u64;
            assert_eq!((twin.live(), twin.bytes()), (left, left * 60));
            for id in 1..=3000 {
                assert!(index.settle(id, None));
                assert_eq!(twin.settle(id, None), !is_request(id));
            }
            assert_eq!((twin.live(), index.requests().count()), (0, 0));
            twin.locate(3001, 9, 1);
            assert_eq!(twin.find(3001), Located::At(9));
        }
    }

    #[test]
    fn ids_left_out_count_as_settled() {
        let mut index = Index::default();
        let ids = [1, 2, 5, 1000, 1030, 1031, 5000, 5001];
        for id in ids {
            index.locate(id, id * 10, 1);
        }
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(id) = index.next_live(from) {
            found.push(id);
            from = id + 1;
        }
        assert_eq!(found, ids);
        assert_eq!(index.live(), 8);
        let live = index.live_between(0, u64::MAX).expect("nothing is spilled");
        assert!(live.into_iter().eq(ids.map(|id| (id, id * 10))));
        for id in ids {
            assert_eq!(
                index.find(id + 1) == Located::Gone,
                !ids.contains(&(id + 1))
            );
            assert_eq!(index.find(id), Located::At(id * 10));
        }
        for id in ids {
            assert!(index.settle(id, None));
        }
        assert_eq!(index.next_live(0), None);
        assert!(index.blocks.len() <= 1, "what is settled is given back");
    }

    #[test]
    fn places_further_than_the_column_reaches_are_kept_aside() {
        let mut index = Index::default();
        index.locate(1, 10, 1);
        index.locate(2, 10 + (1 << 40), 1);
        index.locate(3, 12, 1);
        assert_eq!(index.find(2), Located::At(10 + (1 << 40)));
        assert_eq!(index.find(3), Located::At(12));
        index.relocate(1, 1 << 63);
        assert_eq!(index.find(1), Located::At(1 << 63));
    }

    #[test]
    fn a_spilled_column_comes_back() {
        let mut index = Index::default();
        for id in 0..3000u64 {
            index.locate(id, id * 7, 1);
        }
        let unsaved: Vec<_> = index.unsaved().collect();
        assert_eq!(
            unsaved
                .iter()
                .map(|(number, _)| *number)
                .collect::<Vec<_>>(),
            [0, 1]
        );
        for (number, _) in &unsaved {
            index.saved(*number, Slot(*number + 50));
        }
        index.turn = 10;
        assert!(index.evict(5) >= 8192);
        assert_eq!(index.find(1500), Located::Spilled(Slot(51)));
        assert_eq!(
            index.find(2500),
            Located::At(17_500),
            "the newest block stays"
        );
        assert_eq!(index.block_of(Slot(51)), Some(1));
        index.loaded(Slot(51), 1, &unsaved[1].1);
        assert_eq!(index.find(1500), Located::At(10_500));
        for id in 1024..2048 {
            index.settle(id, None);
        }
        assert_eq!(index.take_freed_slots(), [Slot(51)]);
    }

    #[test]
    fn blocks_are_gathered_when_all_of_them_was_relocated() {
        const NEW: u64 = 1 << 63;
        let mut index = Index::default();
        for id in 0..2500u64 {
            index.locate(id, id * 7, 1);
        }
        for (number, _) in index.unsaved().collect::<Vec<_>>() {
            index.saved(number, Slot(number));
        }
        for id in 500..600 {
            index.settle(id, None);
        }
        // One was moved before, by a compaction: that does not count.
        index.relocate(3, NEW - 1);
        let places = |id: u64| NEW + if id == 9 { 1 << 40 } else { (5000 - id) * 8 };
        for id in (0..2500).filter(|id| *id != 3 && !(500..600).contains(id)) {
            index.relocate(id, places(id));
        }
        let gathered: Vec<u64> = index.gather(NEW).into_iter().map(|(at, _)| at).collect();
        assert_eq!(
            gathered,
            [1],
            "the first has an old place, the last is not full"
        );
        index.relocate(3, places(3));
        // Now the first is whole too, but one of its messages is too far away for the column.
        assert!(index.gather(NEW).is_empty() && index.gather(NEW).is_empty());
        let mut twin = restarted(&index);
        for id in 0..2500 {
            let found = match (500..600).contains(&id) {
                true => Located::Gone,
                false => Located::At(places(id)),
            };
            assert_eq!((index.find(id), twin.find(id)), (found, found), "{id}");
        }
        assert_eq!((twin.live(), twin.bytes()), (index.live(), index.bytes()));
        twin.locate(2500, 8, 1);
        assert_eq!(twin.find(2500), Located::At(8));
    }

    #[test]
    fn a_checkpoint_says_it_all() {
        let mut index = Index::default();
        for id in 1..3000u64 {
            index.locate(id, id << 22, 5);
        }
        for id in 900..2100 {
            index.settle(id, Some(5));
        }
        let mut twin = Index::default();
        for image in index.images(|_| 0) {
            twin.restore(image).expect("it is whole");
        }
        assert_eq!((twin.live(), twin.bytes()), (index.live(), index.bytes()));
        for id in 0..3001 {
            assert_eq!(twin.find(id), index.find(id), "{id}");
        }
        twin.locate(3000, 3000 << 22, 5);
        assert_eq!(twin.find(3000), Located::At(3000 << 22));
    }
}
