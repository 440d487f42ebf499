//! What is measured, once for both ways of measuring it: `benches/time.rs` takes the time,
//! `benches/instructions.rs` counts instructions. Nothing here reads a clock.

// Each way of measuring leaves out what does not suit it.
#![allow(dead_code)]

pub mod codec;
pub mod log;
pub mod memory;
pub mod recovery;
pub mod shard;
pub mod shards;
pub mod topics;

/// Most bytes that the harness copies at once. Larger copies the C library may do with `rep movsb`, depending on how
/// the two addresses lie to each other, and valgrind counts each step of that: the same code had other counts where the
/// heap lay differently.
pub const COPY_BYTES: usize = 1024;

/// Copies what a socket or a disk would.
pub fn copy(into: &mut [u8], from: &[u8]) {
    for (into, from) in into.chunks_mut(COPY_BYTES).zip(from.chunks(COPY_BYTES)) {
        into.copy_from_slice(from);
    }
}

/// One thing to measure, again and again on the same state.
pub trait Work {
    /// Brings the state to where it can be measured; not measured itself.
    fn prepare(&mut self) {}

    /// What is measured.
    fn run(&mut self);

    /// Bytes of log that one run goes through, where that is the measure of it.
    fn log_bytes(&self) -> Option<u64> {
        None
    }
}

/// Something to measure: how it is made, and how many operations one run of it does.
#[derive(Clone, Copy)]
pub struct Body {
    /// Unique among all.
    pub name: &'static str,
    /// Messages, commands or answers of one run: a figure divided by it is that of one.
    pub operations: usize,
    /// Makes the state.
    pub make: fn() -> Box<dyn Work>,
}

impl std::fmt::Display for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A body without state to prepare.
struct Simple<F>(F);

impl<F: FnMut()> Work for Simple<F> {
    fn run(&mut self) {
        (self.0)();
    }
}

fn simple(run: impl FnMut() + 'static) -> Box<dyn Work> {
    Box::new(Simple(run))
}

/// Commands or messages in most bodies.
pub const OPERATIONS: usize = 1000;

const fn body(name: &'static str, make: fn() -> Box<dyn Work>) -> Body {
    Body {
        name,
        operations: OPERATIONS,
        make,
    }
}
