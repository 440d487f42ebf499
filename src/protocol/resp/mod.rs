//! RESP, the protocol of Redis, versions 2 and 3: [`decode`] turns bytes into the words of commands,
//! [`encode`] writes replies. Nothing here knows what a command means.

pub mod decode;
pub mod encode;
pub mod glob;

/// Longest line inside a command, bytes: a count or a length, or a command typed by hand on a listener that
/// takes only this protocol.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// Most words of one command.
pub const WORDS_MAX: usize = 1 << 20;
