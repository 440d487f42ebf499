//! Segments read whole, as recovery and the check of a directory want them.

use super::disk::Disk;
use super::error::OpenError;
use super::rw::read_up_to;
use super::segment::SegmentName;

/// Reads segments whole, and keeps the two that were asked for last: recovery goes back and forth
/// between the segment in which the log ends and the one behind it.
///
/// What it keeps is what was read, not what is there: whoever changes a file is done with it.
pub(crate) struct SegmentReader<'d, D: Disk> {
    disk: &'d D,
    kept: [Kept; 2],
    /// Which of them was asked for last.
    last: usize,
}

#[derive(Default)]
struct Kept {
    name: Option<SegmentName>,
    /// How much of the file was wanted.
    wanted: usize,
    /// How much of it there was.
    filled: usize,
    buffer: Vec<u8>,
}

impl<'d, D: Disk> SegmentReader<'d, D> {
    /// Has read nothing.
    pub fn new(disk: &'d D) -> SegmentReader<'d, D> {
        SegmentReader {
            disk,
            kept: Default::default(),
            last: 0,
        }
    }

    /// The first `bytes` of a segment's file, or as many as there are.
    pub fn load(&mut self, name: SegmentName, bytes: u64) -> Result<&[u8], OpenError> {
        let bytes = usize::try_from(bytes).expect("a segment fits memory");
        let is_it = |kept: &Kept| kept.name == Some(name) && kept.wanted >= bytes;
        self.last = match self.kept.iter().position(is_it) {
            Some(at) => at,
            None => {
                let at = 1 - self.last;
                self.kept[at].fill(self.disk, name, bytes)?;
                at
            }
        };
        let kept = &self.kept[self.last];
        Ok(&kept.buffer[..kept.filled.min(bytes)])
    }
}

impl Kept {
    fn fill<D: Disk>(
        &mut self,
        disk: &D,
        name: SegmentName,
        bytes: usize,
    ) -> Result<(), OpenError> {
        let path = name.path();
        let failed = |error| OpenError::io(&path, "reading", error);
        self.name = None;
        let file = disk.open(&path).map_err(failed)?;
        if self.buffer.len() < bytes {
            // Made anew and not made longer: that costs no pass over memory which is overwritten.
            self.buffer = vec![0; bytes];
        }
        self.filled = read_up_to(disk, &file, 0, &mut self.buffer[..bytes]).map_err(failed)?;
        self.wanted = bytes;
        self.name = Some(name);
        Ok(())
    }
}
