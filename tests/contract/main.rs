//! The contract of the protocols, from outside: conversations with a real broker.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests watch a real process"
)]

/// How a module whose tests run on one shard and on several starts its brokers.
macro_rules! launches {
    () => {
        /// Does this module stand for brokers of several shards?
        pub(crate) fn are_several() -> bool {
            module_path!().contains("several")
        }

        fn shards() -> &'static str {
            match are_several() {
                true => "--shards 4",
                false => "--shards 1",
            }
        }

        pub(crate) fn launch() -> Launch {
            Launch::memory().arg(shards())
        }

        pub(crate) fn launch_at(dir: &TempDir) -> Launch {
            Launch::data(&dir.data()).arg(shards())
        }
    };
}

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
