//! What the targets do with an input, and what must be true of it whatever it is.
//!
//! The decoders' targets take the input apart twice: as one piece, and in pieces whose sizes its first octets say. Both
//! must give the same, within bounds of memory that follow from what has arrived; what a decoder accepts is encoded again
//! and must be what came. The log's target damages a directory that a broker has written, and whatever is recovered from
//! it must be what was published.

pub mod amqp;
pub mod corpus;
#[path = "../../tests/sim/disk/mod.rs"]
#[allow(dead_code)]
mod disk;
pub mod http;
pub mod log;
pub mod resp;
#[path = "../../tests/sim/rng.rs"]
#[allow(dead_code)]
mod rng;
#[path = "../../tests/sim/storage.rs"]
#[allow(dead_code)]
mod storage;
pub mod text;
#[path = "../../tests/protocol/ways.rs"]
#[allow(dead_code)]
mod ways;

use ringmq::config::Limits;

/// Limits that a short input can reach.
fn limits() -> Limits {
    Limits {
        line_bytes_max: 300,
        body_bytes_max: 1000,
        batch_bytes_max: 2000,
        batch_count_max: 20,
        handles_max: 5,
        ..Limits::default()
    }
}

/// The input without the octet that says how it is cut, and the pieces.
fn pieces(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (&how, input) = data.split_first()?;
    let mut pieces = Vec::new();
    let mut rest = input;
    let mut size = usize::from(how);
    while !rest.is_empty() {
        // Sizes that differ from piece to piece, the first one as it is said.
        let (piece, left) = rest.split_at(size.clamp(1, rest.len()));
        pieces.push(piece);
        rest = left;
        size = match how {
            0 => 1,
            _ => (size * 7 + 3) % 61,
        };
    }
    Some((input, pieces))
}
