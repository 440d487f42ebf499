//! What a command costs to decode and an answer to encode.
//!
//! Every body works through one buffer of commands, as a connection that is never short of input
//! does.

use std::hint::black_box;

use ringmq::broker::id::{Handle, Level};
use ringmq::broker::reply::{Delivery, Payload, Reply};
use ringmq::buffer::send::{Pool, SendRing};
use ringmq::config::Limits;
use ringmq::protocol::text::decode::{Decoder, Step};
use ringmq::protocol::text::encode;

use super::{Body, OPERATIONS, Work, body, simple};

/// Decoding.
pub const DECODE: &[Body] = &[
    body("decode_publish_16_bytes", || {
        decode("PUB q $16\n0123456789abcdef\n")
    }),
    body("decode_publish_100_bytes", || {
        decode(&format!("PUB jobs $100\n{}\n", "x".repeat(100)))
    }),
    body("decode_publish_inline", || {
        decode("PUB jobs :0123456789abcdef\n")
    }),
    body("decode_publish_with_options", || {
        decode("PUB jobs key=user7 pri=3 $16\n0123456789abcdef\n")
    }),
    body("decode_publish_with_tag", || {
        decode("@17 PUB jobs $16\n0123456789abcdef\n")
    }),
    body("decode_batch_of_100_lines", || {
        decode(&format!(
            "MPUB jobs *100\n{}",
            "0123456789abcdef\n".repeat(100)
        ))
    }),
    body("decode_pull", || decode("PULL jobs\n")),
    body("decode_pull_with_options", || {
        decode("PULL jobs 100 wait=10s\n")
    }),
    body("decode_ack", || decode("ACK 1.1234567.7654321\n")),
    body("decode_ack_of_10", || {
        decode(&format!("ACK{}\n", " 1.1234567.7654321".repeat(10)))
    }),
    body("decode_refusal", refusal),
];

/// Encoding.
pub const ENCODE: &[Body] = &[
    body("encode_receipt", receipt),
    body("encode_settled", settled),
    body("encode_message_16_bytes", || message(16)),
    body("encode_message_100_bytes", || message(100)),
    body("encode_message_1024_bytes", || message(1024)),
];

/// Decodes the same command again and again.
fn decode(command: &str) -> Box<dyn Work> {
    let input = command.repeat(OPERATIONS).into_bytes();
    let limits = Limits::default();
    simple(move || {
        let mut decoder = Decoder::default();
        let mut rest = black_box(&input[..]);
        let mut count = 0;
        loop {
            let decoded = decoder.decode(rest, &limits);
            match &decoded.1 {
                Step::Request(request) => {
                    black_box(request);
                    count += 1;
                }
                Step::Incomplete => break,
                other => panic!("{other:?}"),
            }
            rest = &rest[decoded.0..];
        }
        assert_eq!(count, OPERATIONS);
    })
}

fn refusal() -> Box<dyn Work> {
    let input = "PUB jobs hello\n".repeat(OPERATIONS).into_bytes();
    let limits = Limits::default();
    simple(move || {
        let mut decoder = Decoder::default();
        let mut rest = black_box(&input[..]);
        while let (consumed @ 1.., step) = decoder.decode(rest, &limits) {
            black_box(step);
            rest = &rest[consumed..];
        }
        assert!(rest.is_empty(), "every line is refused and passed over");
    })
}

fn receipt() -> Box<dyn Work> {
    let mut out = Vec::with_capacity(64 * OPERATIONS);
    simple(move || {
        out.clear();
        for id in 0..OPERATIONS as u64 {
            encode::receipt(&mut out, black_box(1_000_000 + id), Level::Disk);
        }
        black_box(out.len());
    })
}

fn settled() -> Box<dyn Work> {
    let mut out = Vec::with_capacity(64 * OPERATIONS);
    simple(move || {
        out.clear();
        for _ in 0..OPERATIONS {
            let reply = Reply::Count {
                count: black_box(1),
                stale: b"",
            };
            encode::reply(&mut out, None, &reply);
        }
        black_box(out.len());
    })
}

fn message(size: usize) -> Box<dyn Work> {
    let body = vec![b'x'; size];
    let mut pool = Pool::new(1, 4 << 20, 4 << 20);
    simple(move || {
        let mut ring = SendRing::default();
        for serial in 0..OPERATIONS as u64 {
            let delivery = Delivery {
                source: b"jobs",
                handle: Some(Handle {
                    incarnation: 1,
                    id: 1_000_000 + serial,
                    serial,
                }),
                id: 1_000_000 + serial,
                tries: 1,
                timestamp_ms: None,
                key: None,
                reply: None,
                headers: b"",
                body: Payload::Slice(black_box(&body)),
            };
            encode::message(&mut ring, &mut pool, None, &delivery);
        }
        black_box(ring.len());
        ring.clear(&mut pool);
    })
}
