//! One block of the index: 1,024 ids.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Slot, WORDS};
use crate::broker::arena::is_request;
use crate::broker::id::MessageId;

/// Offset of an id whose place does not fit its block's column and is in `far`.
pub(super) const FAR: u32 = u32::MAX;

/// Base of a block in which only requests were located so far: so far from all places that none of them
/// fits the column.
const NO_BASE: u64 = 1 << 61;

#[derive(Debug)]
pub(super) struct Block {
    /// Offsets count from here.
    pub base: u64,
    /// Distance of each id from `base`; empty while spilled.
    pub offsets: Vec<u32>,
    /// Where the column is in the block file, once it is there.
    pub slot: Option<Slot>,
    /// Places that do not fit: further than 4 GiB, or moved by compaction.
    pub far: BTreeMap<u16, u64>,
    pub settled: [u64; WORDS],
    /// Ids located in this block so far, settled ones included.
    pub located: u16,
    /// Unsettled ids.
    pub live: u16,
    /// Sum of the unsettled bodies, bytes.
    pub bytes: u64,
    /// Last turn of a look-up, to find the coldest.
    pub used: u64,
}

/// A block without ids.
pub(super) fn empty() -> Block {
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
    pub(super) fn begin_at(&mut self, nth: usize, place: u64) {
        if self.located == 0 {
            self.base = if is_request(place) { NO_BASE } else { place };
        }
        settle_between(&mut self.settled, usize::from(self.located), nth);
    }

    /// Adds the unsettled messages that lie in `range`; `offsets` is the block's column, `first` its first id.
    pub(super) fn find_between(
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
    pub(super) fn gather(&mut self) {
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
    pub(super) fn locate_far(&mut self, nth: usize, place: u64) {
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
pub(super) fn settle_between(settled: &mut [u64; WORDS], from: usize, to: usize) {
    let mut nth = from;
    while nth < to {
        let many = (64 - nth % 64).min(to - nth);
        settled[nth / 64] |= u64::MAX >> (64 - many) << (nth % 64);
        nth += many;
    }
}
