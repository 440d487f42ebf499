//! The event loop: mio, listeners, sockets, signals, and the only clock of the data path.
//!
//! Moves bytes between sockets and whatever is [`Driven`] (a [`Shard`](crate::shard::Shard)), one
//! turn at a time, on one thread at a time. It never looks into the bytes: no protocol, no queue, no log.
//!
//! ```text
//!   poll -> clock -> signals -> accept -> read -> mail -> turn end -> mail -> write -> close -> (stop?)
//! ```
//!
//! One that sleeps may get its turn from the thread of another loop that has mail for it, or from the one that syncs
//! its log.
#![allow(clippy::disallowed_methods)]

mod abort;
mod attendant;
pub mod clock;
mod connections;
mod driven;
mod event_loop;
mod linger;
mod listen;
pub mod os;
mod place;
mod post;
mod reactor;
pub mod signal;
mod token;
mod trim;
mod watch;

#[cfg(test)]
mod tests;

pub use abort::AbortOnPanic;
pub use driven::Driven;
pub use listen::BindError;
pub use reactor::{Options, Reactor};
