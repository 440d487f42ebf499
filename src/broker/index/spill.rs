//! Columns that go to the log's block file and come back, or are written anew.

use std::sync::Arc;

use super::{BLOCK_IDS, Index, Slot};

impl Index {
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
}
