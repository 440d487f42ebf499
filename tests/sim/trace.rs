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
        self.line.clear();
        write!(self.line, "{now} {}", what()).expect("a String takes everything");
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.print {
            eprintln!("{}", &self.line[4.min(self.line.len())..]);
        }
    }

    /// FNV-1a of everything noted.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
