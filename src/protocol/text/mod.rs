//! The line protocol, version 1: a person can type it, a program can stream it.
//!
//! [`decode::Decoder`] turns bytes into [`crate::broker::command::Request`]s, [`encode`] turns
//! replies into bytes. Framing (where a command ends) is decided by [`mod@line`] alone and never
//! depends on the verb; what a line means is decided by `parse` afterwards.

pub mod batch;
pub mod decode;
mod digits;
pub mod encode;
pub mod fast;
pub mod handles;
pub mod help;
pub mod line;
mod parse;
mod pieces;
pub mod repeated;
pub mod settings;
pub mod value;
pub mod verb;
mod words;

/// Longest line that the server sends, bytes, its line end included.
pub const SENT_LINE_BYTES_MAX: usize = 64 << 10;

/// What of [`SENT_LINE_BYTES_MAX`] is kept free for everything in a `MSG` line that is not an
/// option of its publish: source, handle, try, times, and the trace of a dead letter.
pub const SENT_LINE_RESERVE_BYTES: usize = 4 << 10;

/// A counted body shorter than this is parsed where it was received, bytes; others may get memory
/// of their own.
pub const IN_PLACE_BYTES_MAX: usize = 16 << 10;

/// A body over so many times its limit closes the connection instead of being read past.
pub const OVERSIZE_FACTOR: u64 = 64;
