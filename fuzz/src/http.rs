//! The decoder of HTTP.

use ringmq::protocol::http::decode::{Decoder, Step};
use ringmq::protocol::http::{CHUNK_LINE_BYTES_MAX, HEAD_BYTES_MAX, target::Target};
use ringmq::protocol::text::IN_PLACE_BYTES_MAX;

use crate::{limits, pieces};

fn decoded(pieces: &[&[u8]], is_in_place: bool) -> Vec<String> {
    let limits = limits();
    let mut decoder = Decoder::default();
    let (mut found, mut kept) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut piece = *piece;
        while is_in_place && kept.is_empty() && !piece.is_empty() {
            let Some(space) = decoder.body_space() else {
                break;
            };
            let count = space.len().min(piece.len());
            space[..count].copy_from_slice(&piece[..count]);
            decoder.body_filled(count);
            piece = &piece[count..];
        }
        kept.extend_from_slice(piece);
        loop {
            let (used, step) = decoder.decode(&kept, &limits);
            let told = match step {
                Step::Incomplete => None,
                Step::Continue => Some("continue".to_owned()),
                Step::Request(head, body) => {
                    assert!(body.as_slice().len() <= limits.body_bytes_max);
                    let target = Target::new(&head.target);
                    let segments: Vec<&[u8]> = target.segments().collect();
                    let pairs: Vec<_> = target.pairs().collect();
                    let body = body.as_slice().escape_ascii().to_string();
                    Some(format!("{head:?} {segments:?} {pairs:?} {body}"))
                }
                Step::Refused(refusal) => Some(format!("refused {}", refusal.status)),
            };
            kept.drain(..used);
            let Some(told) = told else { break };
            if told != "continue" {
                decoder.done();
                found.push(told);
            }
        }
        assert!(kept.len() <= HEAD_BYTES_MAX + IN_PLACE_BYTES_MAX + CHUNK_LINE_BYTES_MAX);
        assert!(decoder.memory() <= 2 * limits.body_bytes_max + HEAD_BYTES_MAX + 1024);
    }
    found
}

/// See [`crate`].
pub fn run(data: &[u8]) {
    let Some((input, pieces)) = pieces(data) else {
        return;
    };
    let whole = decoded(&[input], false);
    for is_in_place in [false, true] {
        assert_eq!(decoded(&pieces, is_in_place), whole);
    }
}
