//! The queue engine: pure state, no sockets, no files, no clock, no randomness.

pub mod arena;
pub mod column;
pub mod command;
pub mod dedup;
pub mod delayed;
pub mod exchanges;
pub mod expiry;
pub mod headers;
pub mod id;
pub mod index;
pub mod keys;
pub mod lease;
pub mod name;
pub mod pattern;
pub mod queue;
pub mod ready;
pub mod region;
pub mod reply;
pub mod schedule;
pub mod settings;
pub mod topics;
pub mod varint;
