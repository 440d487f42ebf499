//! A number for some messages of a queue, by id: which key a message has.
//!
//! Ids are dense, so a number is four bytes in a block of 1,024 ids; a block in which no message has one
//! takes no memory. Knows ids and numbers; never a message.

use std::collections::VecDeque;

use super::id::MessageId;

/// Ids in one block.
const BLOCK_IDS: u64 = 1024;

#[derive(Debug)]
struct Block {
    /// The number plus one; 0 = none.
    cells: [u32; BLOCK_IDS as usize],
    count: u16,
}

/// Numbers by id.
#[derive(Debug, Default)]
pub struct Column {
    /// Number of the block at `blocks[0]`.
    base: u64,
    /// `None` = no id of the block has a number.
    blocks: VecDeque<Option<Box<Block>>>,
    held: usize,
}

impl Column {
    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        self.held * size_of::<Block>() + self.blocks.capacity() * 8
    }

    /// The number of an id.
    #[inline]
    pub fn get(&self, id: MessageId) -> Option<u32> {
        let at = (id / BLOCK_IDS).checked_sub(self.base)?;
        let block = self.blocks.get(at as usize)?.as_deref()?;
        block.cells[(id % BLOCK_IDS) as usize].checked_sub(1)
    }

    /// Gives an id a number. No smaller id ever had one that is still there when the first is given.
    ///
    /// # Panics
    /// If the id has one, or is older than the oldest block.
    pub fn set(&mut self, id: MessageId, number: u32) {
        let block = id / BLOCK_IDS;
        if self.blocks.is_empty() {
            self.base = block;
        }
        let at = block
            .checked_sub(self.base)
            .expect("ids are given numbers in order") as usize;
        if at >= self.blocks.len() {
            self.blocks.resize_with(at + 1, || None);
        }
        let held = &mut self.held;
        let block = self.blocks[at].get_or_insert_with(|| {
            *held += 1;
            Box::new(Block {
                cells: [0; BLOCK_IDS as usize],
                count: 0,
            })
        });
        let cell = &mut block.cells[(id % BLOCK_IDS) as usize];
        assert_eq!(*cell, 0, "an id is given its number once");
        *cell = number + 1;
        block.count += 1;
    }

    /// Takes an id's number away and returns it.
    pub fn clear(&mut self, id: MessageId) -> Option<u32> {
        let at = (id / BLOCK_IDS).checked_sub(self.base)? as usize;
        let block = self.blocks.get_mut(at)?.as_deref_mut()?;
        let cell = &mut block.cells[(id % BLOCK_IDS) as usize];
        let number = cell.checked_sub(1)?;
        *cell = 0;
        block.count -= 1;
        if block.count == 0 {
            self.blocks[at] = None;
            self.held -= 1;
            while let Some(None) = self.blocks.front() {
                self.blocks.pop_front();
                self.base += 1;
            }
            while let Some(None) = self.blocks.back() {
                self.blocks.pop_back();
            }
        }
        Some(number)
    }

    /// Ids with their numbers in order, from an id on.
    pub fn iter_from(&self, from: MessageId) -> impl Iterator<Item = (MessageId, u32)> {
        let skipped = (from / BLOCK_IDS).saturating_sub(self.base) as usize;
        let blocks = self.blocks.iter().enumerate().skip(skipped);
        blocks
            .filter_map(|(at, block)| Some((self.base + at as u64, block.as_deref()?)))
            .flat_map(move |(number, block)| {
                let cells = block.cells.iter().enumerate();
                cells.filter_map(move |(nth, cell)| {
                    Some((number * BLOCK_IDS + nth as u64, cell.checked_sub(1)?))
                })
            })
            .filter(move |(id, _)| *id >= from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn agrees_with_a_map_and_gives_memory_back() {
        let mut seed = 7u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut column = Column::default();
        let mut naive = BTreeMap::new();
        let mut next = 5_000;
        for _ in 0..40_000 {
            match random() % 3 {
                0 => {
                    next += 1 + random() % 9 / 8 * (random() % 3000);
                    let number = (random() % 100) as u32;
                    column.set(next, number);
                    naive.insert(next, number);
                }
                _ => {
                    let id = next.saturating_sub(random() % 4000);
                    assert_eq!(column.get(id), naive.get(&id).copied());
                    assert_eq!(column.clear(id), naive.remove(&id));
                }
            }
        }
        let from = next - 2_000;
        let listed: Vec<_> = column.iter_from(from).collect();
        let wanted: Vec<_> = naive.range(from..).map(|(id, n)| (*id, *n)).collect();
        assert_eq!(listed, wanted);
        for id in naive.into_keys() {
            column.clear(id);
        }
        assert_eq!((column.held, column.blocks.len()), (0, 0));
    }
}
