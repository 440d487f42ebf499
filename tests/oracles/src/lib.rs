//! Our encoders against decoders of others, and the other way round: random values, every type, every method.

#![cfg(test)]

mod amqp;
mod resp;
#[path = "../../sim/rng.rs"]
#[allow(dead_code)]
mod rng;
mod server;
