//! Buffers between the sockets and the protocols.

pub mod send;
