//! What happened in a run: always as a hash, and printed when `RINGMQ_TRACE=1` is said.

use std::fmt::Write;

/// Collects what happens.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    print: bool,
    line: String,
}

impl Trace {
    /// Prints what is noted, or only hashes it.
    pub fn new(print: bool) -> Trace {
        Trace {
            hash: 0xcbf2_9ce4_8422_2325,
            print,
            line: String::new(),
        }
    }

    /// Something happened at `now`.
    pub fn note(&mut self, now: u64, what: impl FnOnce() -> String) {
        self.note_octets(now, what, &[]);
    }

    /// Something happened at `now`, and these octets are what it is about. They are text only where a trace is printed:
    /// escaping all of them would take a good part of a run.
    pub fn note_octets(&mut self, now: u64, what: impl FnOnce() -> String, octets: &[u8]) {
        self.line.clear();
        write!(self.line, "{now} {}", what()).expect("a String takes everything");
        for part in [self.line.as_bytes(), octets] {
            for piece in part.chunks(8) {
                let mut word = [0; 8];
                word[..piece.len()].copy_from_slice(piece);
                let word = u64::from_le_bytes(word);
                self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        if self.print {
            let line = &self.line[4.min(self.line.len())..];
            match octets {
                [] => eprintln!("{line}"),
                octets => eprintln!("{line}: {:?}", String::from_utf8_lossy(octets)),
            }
        }
    }

    /// FNV-1a, by eight octets, of everything noted.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
