//! RingMQ: an event-driven message broker in one binary.
//!
//! The whole server without its sockets is one ordinary struct, `shard::Shard`: connections,
//! protocol sessions, broker state and log. Inputs are called `handle_*`, outputs `poll_*`;
//! time and randomness are arguments. `net` drives one on a thread with mio; the simulator
//! under `tests/sim` drives it with a fake network, clock and disk.

pub mod broker;
pub mod buffer;
pub mod cli;
pub mod client;
pub mod config;
pub mod fault;
pub mod log;
pub mod net;
pub mod protocol;
pub mod shard;
