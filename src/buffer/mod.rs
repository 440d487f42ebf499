//! Buffers between the sockets and the protocols.

pub mod ahead;
pub mod bodies;
pub mod send;
