//! The real process: killed, starved of space and files, flooded, shut down, and driven by its own clients.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests watch a real process"
)]

#[cfg(target_os = "linux")]
mod bad_bytes;
mod cli;
mod client;
mod directory;
#[cfg(target_os = "linux")]
mod disk_full;
#[cfg(target_os = "linux")]
mod doors;
mod exactly_once;
#[cfg(target_os = "linux")]
mod flood;
#[cfg(target_os = "linux")]
mod http;
mod kill;
#[cfg(target_os = "linux")]
mod pin;
mod python_client;
mod reshard;
mod shards;
mod shards_resp;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
