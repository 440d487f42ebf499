//! Buffers between the sockets and the protocols.

pub mod bodies;
pub mod send;
