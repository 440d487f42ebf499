//! The contract of the protocols, from outside: conversations with a real broker.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests watch a real process"
)]

mod amqp;
mod amqp_clients;
mod drain;
mod framing;
mod groups;
mod http;
mod http_docs;
mod keys;
mod limits;
#[path = "."]
#[expect(
    clippy::duplicate_mod,
    reason = "what clients of AMQP and of Redis see is the same with several shards: the tests are the same"
)]
mod on_several_shards {
    mod amqp;
    mod amqp_clients;
    mod resp;
    mod streams;
}
mod order;
mod publish;
mod pull;
mod queues;
mod request;
mod resp;
mod retain;
mod runs;
mod schedules;
mod script;
mod settings;
mod settle;
mod shards;
mod stats;
mod streams;
mod subscribe;
#[path = "../support/mod.rs"]
mod support;
mod time;
mod topics;
mod transactions;
mod why;
