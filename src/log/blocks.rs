//! Index blocks on disk: fixed slots in one file, written in the background.
//!
//! A block is in memory until it is written. A slot is used again only when no kept checkpoint can
//! refer to what it held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use crate::broker::id::QueueUid;

use super::again::{ReadError, ReadErrorKind};
use super::disk::Disk;
use super::manifest::SHARD;
use super::place::BlockSlot;
use super::rw::read_up_to;

/// Most offsets of one block.
pub const BLOCK_OFFSETS_MAX: usize = 1024;
const HEAD_BYTES: usize = 64;
/// Bytes of one slot.
pub(crate) const SLOT_BYTES: usize = HEAD_BYTES + 4 * BLOCK_OFFSETS_MAX;

/// Path of the file.
pub(crate) fn path() -> String {
    format!("{SHARD}/index.blk")
}

/// Offset of a slot in the file.
pub(crate) fn start_of(slot: BlockSlot) -> u64 {
    u64::from(slot.0) * SLOT_BYTES as u64
}

/// The bytes of a block in its slot, and their checksum.
pub(crate) fn encode(
    seed: u32,
    slot: BlockSlot,
    queue: QueueUid,
    number: u64,
    offsets: &[u32],
) -> (Vec<u8>, u32) {
    assert!(
        offsets.len() <= BLOCK_OFFSETS_MAX,
        "a block has at most 1024 offsets"
    );
    let mut out = vec![0; HEAD_BYTES];
    out[4..8].copy_from_slice(&slot.0.to_le_bytes());
    out[8..16].copy_from_slice(&queue.0.to_le_bytes());
    out[16..24].copy_from_slice(&number.to_le_bytes());
    out[24..28].copy_from_slice(&(offsets.len() as u32).to_le_bytes());
    for offset in offsets {
        out.extend_from_slice(&offset.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(seed, &out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    (out, crc)
}

/// Reads a block and verifies that it is the one that was written there last.
///
/// # Errors
/// One sentence with file and offset.
pub(crate) fn load<D: Disk>(
    disk: &D,
    seed: u32,
    slot: BlockSlot,
    crc: u32,
) -> Result<Vec<u32>, ReadError> {
    let path = path();
    let offset = start_of(slot);
    let failed = |error: io::Error| ReadError::io(&path, offset, &error);
    let file = disk.open(&path).map_err(failed)?;
    let mut bytes = vec![0; SLOT_BYTES];
    let filled = read_up_to(disk, &file, offset, &mut bytes).map_err(failed)?;
    decode(&bytes[..filled], seed, slot, crc).ok_or_else(|| ReadError {
        what: format!("{path} is damaged at offset {offset}: the index block there is not the one that was written"),
        kind: ReadErrorKind::Damaged,
    })
}

fn decode(bytes: &[u8], seed: u32, slot: BlockSlot, crc: u32) -> Option<Vec<u32>> {
    let count = u32::from_le_bytes(bytes.get(24..28)?.try_into().ok()?) as usize;
    if count > BLOCK_OFFSETS_MAX || bytes.len() < HEAD_BYTES {
        return None;
    }
    let block = bytes.get(..HEAD_BYTES + 4 * count)?;
    let stored = u32::from_le_bytes(block[..4].try_into().ok()?);
    let whole = stored == crc && crc == crc32c::crc32c_append(seed, &block[4..]);
    if !whole || block[4..8] != slot.0.to_le_bytes() {
        return None;
    }
    let (offsets, _) = block[HEAD_BYTES..].as_chunks::<4>();
    Some(
        offsets
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect(),
    )
}

/// A block on its way to the file.
#[derive(Clone, Debug)]
pub(crate) struct PendingBlock {
    /// Where it goes.
    pub slot: BlockSlot,
    /// What is written.
    pub image: Arc<Vec<u8>>,
    offsets: Arc<[u32]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Nobody needs it.
    Free,
    /// The broker needs it; with the block's checksum.
    Used(u32),
    /// Only a checkpoint may need it.
    Held,
}

/// All slots.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots that were freed, each with the count of checkpoints begun by then; oldest first.
    held: VecDeque<(u64, u32)>,
    /// Blocks not written yet by the order in which they were spilled.
    pending: BTreeMap<u64, PendingBlock>,
    pending_of_slot: BTreeMap<u32, u64>,
    spilled: u64,
    /// Some are being written.
    in_flight: bool,
    /// Slots being read.
    loading: BTreeSet<u32>,
}

impl Blocks {
    /// The state that recovery found: `used` by the checkpoint that was loaded, `held` by the one
    /// before it.
    pub fn recover(used: &[(BlockSlot, u32)], held: &[(BlockSlot, u32)], begun: u64) -> Blocks {
        let mut blocks = Blocks::default();
        let count = used
            .iter()
            .chain(held)
            .map(|(slot, _)| slot.0 as usize + 1)
            .max();
        blocks.slots = vec![Slot::Free; count.unwrap_or(0)];
        for (slot, _) in held {
            blocks.slots[slot.0 as usize] = Slot::Held;
        }
        for (slot, crc) in used {
            blocks.slots[slot.0 as usize] = Slot::Used(*crc);
        }
        for (number, slot) in blocks.slots.iter().enumerate() {
            match slot {
                Slot::Free => blocks.free.push(number as u32),
                // The older checkpoint was begun one before the newest.
                Slot::Held => blocks
                    .held
                    .push_back((begun.saturating_sub(1), number as u32)),
                Slot::Used(_) => {}
            }
        }
        blocks
    }

    /// Takes a block in.
    pub fn spill(
        &mut self,
        seed: u32,
        queue: QueueUid,
        number: u64,
        offsets: Arc<[u32]>,
    ) -> BlockSlot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            u32::try_from(self.slots.len() - 1).expect("16 TiB of index blocks are out of reach")
        });
        let (image, crc) = encode(seed, BlockSlot(slot), queue, number, &offsets);
        self.slots[slot as usize] = Slot::Used(crc);
        self.spilled += 1;
        let slot = BlockSlot(slot);
        self.pending_of_slot.insert(slot.0, self.spilled);
        let image = Arc::new(image);
        self.pending.insert(
            self.spilled,
            PendingBlock {
                slot,
                image,
                offsets,
            },
        );
        slot
    }

    /// The block, while it is in memory.
    pub fn pending(&self, slot: BlockSlot) -> Option<Arc<[u32]>> {
        let number = self.pending_of_slot.get(&slot.0)?;
        Some(self.pending[number].offsets.clone())
    }

    /// The checksum to read the slot with, unless it is being read already.
    ///
    /// # Panics
    /// If the broker does not own the slot.
    pub fn begin_load(&mut self, slot: BlockSlot) -> Option<u32> {
        let Some(Slot::Used(crc)) = self.slots.get(slot.0 as usize).copied() else {
            panic!("index block slot {} is not in use", slot.0);
        };
        self.loading.insert(slot.0).then_some(crc)
    }

    /// The block is still waited for.
    pub fn is_loading(&self, slot: BlockSlot, crc: u32) -> bool {
        self.loading.contains(&slot.0) && self.slots[slot.0 as usize] == Slot::Used(crc)
    }

    /// A read has ended; false when nobody wants it any more.
    pub fn end_load(&mut self, slot: BlockSlot, crc: u32) -> bool {
        self.loading.remove(&slot.0) && self.slots[slot.0 as usize] == Slot::Used(crc)
    }

    /// The broker does not need the slot any more; `begun` checkpoints were begun so far.
    ///
    /// # Panics
    /// If the broker does not own the slot.
    pub fn free(&mut self, slot: BlockSlot, begun: u64) {
        let state = self.slots.get_mut(slot.0 as usize);
        let state = state.expect("a slot that was given out is in the table");
        assert!(
            matches!(state, Slot::Used(_)),
            "index block slot {} was freed twice",
            slot.0
        );
        *state = Slot::Held;
        self.loading.remove(&slot.0);
        self.held.push_back((begun, slot.0));
    }

    /// The oldest kept checkpoint is the `kept_oldest`th begun: what was freed before is free.
    pub fn release(&mut self, kept_oldest: u64) {
        while let Some(&(begun, slot)) = self.held.front() {
            if begun >= kept_oldest {
                return;
            }
            self.held.pop_front();
            self.slots[slot as usize] = Slot::Free;
            self.free.push(slot);
        }
    }

    /// Slots in use with their checksums: what a checkpoint made now may refer to.
    pub fn used(&self) -> Vec<(BlockSlot, u32)> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(number, slot)| match slot {
                Slot::Used(crc) => Some((BlockSlot(number as u32), *crc)),
                _ => None,
            })
            .collect()
    }

    /// How many blocks were spilled so far.
    pub fn spilled(&self) -> u64 {
        self.spilled
    }

    /// The first `spilled` blocks are written.
    pub fn is_written(&self, spilled: u64) -> bool {
        self.pending
            .first_key_value()
            .is_none_or(|(first, _)| *first > spilled)
    }

    /// Blocks to write now, with the number of the last; `None` while some are being written.
    pub fn take_writes(&mut self) -> Option<(u64, Vec<PendingBlock>)> {
        const COUNT_MAX: usize = 256;
        if self.in_flight || self.pending.is_empty() {
            return None;
        }
        self.in_flight = true;
        let writes: Vec<_> = self.pending.iter().take(COUNT_MAX).collect();
        let last = *writes.last().expect("there is one at least").0;
        Some((
            last,
            writes.into_iter().map(|(_, block)| block.clone()).collect(),
        ))
    }

    /// The blocks up to number `last` were written, or (`None`) none could be.
    pub fn wrote(&mut self, last: Option<u64>) {
        self.in_flight = false;
        let Some(last) = last else { return };
        let later = self.pending.split_off(&(last + 1));
        for (number, block) in std::mem::replace(&mut self.pending, later) {
            if self.pending_of_slot.get(&block.slot.0) == Some(&number) {
                self.pending_of_slot.remove(&block.slot.0);
            }
        }
    }

    /// Memory of blocks not written yet, bytes.
    pub fn memory(&self) -> usize {
        self.pending.len() * 2 * SLOT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets() -> Arc<[u32]> {
        (0..100).collect::<Vec<u32>>().into()
    }

    #[test]
    fn a_block_comes_back_or_is_refused() {
        let slot = BlockSlot(7);
        let (bytes, crc) = encode(1, slot, QueueUid(2), 3, &offsets());
        assert_eq!(decode(&bytes, 1, slot, crc).as_deref(), Some(&*offsets()));
        assert_eq!(decode(&bytes, 1, BlockSlot(8), crc), None);
        assert_eq!(
            decode(&bytes, 1, slot, crc ^ 1),
            None,
            "an older block of the slot"
        );
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut], 1, slot, crc), None);
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes, 1, slot, crc), None, "bit {bit}");
        }
    }

    #[test]
    fn a_slot_waits_for_the_checkpoints_that_may_refer_to_it() {
        let mut blocks = Blocks::default();
        let slot = blocks.spill(1, QueueUid(1), 0, offsets());
        assert!(blocks.pending(slot).is_some());
        let (last, writes) = blocks.take_writes().expect("one is pending");
        assert_eq!(writes.len(), 1);
        assert!(blocks.take_writes().is_none(), "one at a time");
        blocks.wrote(Some(last));
        assert!(blocks.pending(slot).is_none() && blocks.is_written(blocks.spilled()));
        assert_eq!(blocks.used().len(), 1);
        // Checkpoints 1 and 2 were begun while it was in use.
        blocks.free(slot, 2);
        blocks.release(2);
        assert_ne!(blocks.spill(1, QueueUid(1), 1, offsets()), slot);
        blocks.release(3);
        assert_eq!(blocks.spill(1, QueueUid(1), 2, offsets()), slot);
    }

    #[test]
    fn a_failed_write_is_tried_again() {
        let mut blocks = Blocks::default();
        blocks.spill(1, QueueUid(1), 0, offsets());
        let spilled = blocks.spilled();
        blocks.take_writes().expect("one is pending");
        blocks.wrote(None);
        assert!(!blocks.is_written(spilled));
        assert_eq!(blocks.take_writes().expect("it still is").1.len(), 1);
    }

    #[test]
    fn recovery_keeps_what_either_checkpoint_refers_to() {
        let used = [(BlockSlot(1), 10)];
        let held = [(BlockSlot(1), 9), (BlockSlot(3), 8)];
        let mut blocks = Blocks::recover(&used, &held, 2);
        let first = blocks.spill(1, QueueUid(1), 0, offsets());
        let second = blocks.spill(1, QueueUid(1), 1, offsets());
        let third = blocks.spill(1, QueueUid(1), 2, offsets());
        let mut taken = [first.0, second.0, third.0];
        taken.sort();
        assert_eq!(taken, [0, 2, 4]);
        blocks.release(2);
        assert_eq!(blocks.spill(1, QueueUid(1), 3, offsets()), BlockSlot(3));
    }
}
