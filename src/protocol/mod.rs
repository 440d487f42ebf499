//! The protocols: bytes in, commands out; replies in, bytes out. No sockets, no clock.

pub mod amqp;
pub mod collect;
pub mod detect;
pub mod http;
pub mod resp;
pub mod text;
