//! The index in a checkpoint.

use super::block::{empty, settle_between};
use super::{BLOCK_IDS, Index, Slot, WORDS};
use crate::broker::arena::is_request;

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
