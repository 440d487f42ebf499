//! The parsers and encoders of the text protocol, without a broker but for the transcripts of its page.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests watch a real process"
)]

mod ahead;
mod decode;
mod doors;
mod encode;
mod invariants;
#[path = "../support/mod.rs"]
mod support;
mod transcripts;
mod ways;
