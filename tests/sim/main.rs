//! Whole brokers with a fake clock, network and disk, and an oracle that knows only what clients
//! saw. Nothing here reads a clock, opens a socket or touches a file.

mod amqp_tx;
mod broker;
mod client;
mod command;
mod dialect;
mod disk;
mod groups;
mod oracle;
mod pipeline;
mod plan;
#[cfg(debug_assertions)]
mod planted;
mod rng;
mod runs;
mod schedules;
mod single;
mod storage;
mod streams;
mod trace;
mod wire;
mod world;
