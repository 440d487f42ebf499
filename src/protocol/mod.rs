//! The protocols: bytes in, commands out; replies in, bytes out. No sockets, no clock.

pub mod amqp;
pub mod detect;
pub mod text;
