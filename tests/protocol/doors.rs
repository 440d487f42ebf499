//! The decoders of RESP, AMQP and HTTP: whatever comes, valid or not, gives the same wherever it is cut.

use proptest::prelude::*;
use ringmq::config::Limits;
use ringmq::protocol::amqp::frame;
use ringmq::protocol::{http, resp};

/// What a decoder found, one piece of text each. Taking nothing more is the end of it.
type Found = Vec<String>;

fn resp_found(pieces: &[&[u8]]) -> Found {
    use resp::decode::{Decoder, Step};
    let limits = Limits::default();
    let mut decoder = Decoder::new(false);
    let (mut found, mut kept) = (Found::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let (used, step) = decoder.decode(&kept, &limits);
            match step {
                Step::Incomplete => break,
                Step::Command => found.push(format!("{:?}", decoder.words(&kept))),
                Step::Broken(why) => {
                    found.push(format!("{why:?}"));
                    return found;
                }
            }
            kept.drain(..used);
        }
    }
    found
}

fn amqp_found(pieces: &[&[u8]]) -> Found {
    let (mut found, mut kept) = (Found::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let used = match frame::decode(&kept, 4096) {
                frame::Step::Incomplete => break,
                frame::Step::Bad(why) => {
                    found.push(why.to_string());
                    return found;
                }
                frame::Step::Frame(frame, used) => {
                    found.push(format!("{frame:?}"));
                    used
                }
            };
            kept.drain(..used);
        }
    }
    found
}

fn http_found(pieces: &[&[u8]]) -> Found {
    use http::decode::{Decoder, Step};
    let limits = Limits::default();
    let mut decoder = Decoder::default();
    let (mut found, mut kept) = (Found::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let (used, step) = decoder.decode(&kept, &limits);
            let told = match step {
                Step::Incomplete => None,
                // Whoever sends the body without waiting is not asked for it.
                Step::Continue => Some(None),
                Step::Request(head, body) => Some(Some(format!("{head:?} {:?}", body.as_slice()))),
                Step::Refused(refusal) => Some(Some(format!("{refusal:?}"))),
            };
            kept.drain(..used);
            match told {
                None => break,
                Some(None) => {}
                Some(Some(told)) => {
                    decoder.done();
                    found.push(told);
                }
            }
        }
    }
    found
}

/// Cut in two at every place, and octet by octet, an input gives what it gives whole.
fn check(input: &[u8], decoded: fn(&[&[u8]]) -> Found) -> Result<Found, TestCaseError> {
    let whole = decoded(&[input]);
    for cut in 1..input.len() {
        let (front, back) = input.split_at(cut);
        prop_assert_eq!(decoded(&[front, back]), whole.clone(), "cut at {}", cut);
    }
    let octets: Vec<&[u8]> = input.chunks(1).collect();
    prop_assert_eq!(decoded(&octets), whole.clone(), "octet by octet");
    Ok(whole)
}

fn octets(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

fn resp_stream() -> impl Strategy<Value = (Vec<u8>, Found)> {
    let command = prop::collection::vec(octets(12), 1..5);
    prop::collection::vec(command, 1..4).prop_map(|commands| {
        let mut stream = Vec::new();
        for words in &commands {
            resp::encode::array(&mut stream, words.len());
            for word in words {
                resp::encode::bulk(&mut stream, word);
            }
        }
        let found = commands.iter().map(|words| format!("{words:?}"));
        (stream, found.collect())
    })
}

fn amqp_stream() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let kind = prop::sample::select(vec![1u8, 2, 3, 8]);
    let frame = (kind, any::<u16>(), octets(20));
    prop::collection::vec(frame, 1..5).prop_map(|frames| {
        let mut stream = Vec::new();
        for (kind, channel, payload) in &frames {
            stream.push(*kind);
            stream.extend_from_slice(&channel.to_be_bytes());
            stream.extend_from_slice(&(payload.len() as u32).to_be_bytes());
            stream.extend_from_slice(payload);
            stream.push(0xce);
        }
        (stream, frames.len())
    })
}

fn http_stream() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let request = ("[a-z]{1,5}", octets(20), any::<bool>(), 1usize..8);
    prop::collection::vec(request, 1..3).prop_map(|requests| {
        let mut stream = Vec::new();
        for (name, body, is_chunked, chunk) in &requests {
            let head = format!("POST /queue/{name}?key=a HTTP/1.1\r\nHost: x\r\n");
            stream.extend_from_slice(head.as_bytes());
            if *is_chunked {
                stream.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for piece in body.chunks(*chunk) {
                    stream.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    stream.extend_from_slice(piece);
                    stream.extend_from_slice(b"\r\n");
                }
                stream.extend_from_slice(b"0\r\n\r\n");
            } else {
                let length = format!("Content-Length: {}\r\n\r\n", body.len());
                stream.extend_from_slice(length.as_bytes());
                stream.extend_from_slice(body);
            }
        }
        (stream, requests.len())
    })
}

/// Some octets of a stream are others, and it may end early.
fn spoilt(mut stream: Vec<u8>, changes: &[(usize, u8)], end: usize) -> Vec<u8> {
    for (at, octet) in changes {
        let at = at % stream.len();
        stream[at] = *octet;
    }
    stream.truncate(stream.len() - end % stream.len() / 4);
    stream
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0usize..500, any::<u8>()), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn commands_of_resp_are_cut_anywhere((stream, want) in resp_stream(), changes in changes(), end in 0usize..500) {
        prop_assert_eq!(check(&stream, resp_found)?, want);
        check(&spoilt(stream, &changes, end), resp_found)?;
    }

    #[test]
    fn frames_of_amqp_are_cut_anywhere((stream, count) in amqp_stream(), changes in changes(), end in 0usize..500) {
        prop_assert_eq!(check(&stream, amqp_found)?.len(), count);
        check(&spoilt(stream, &changes, end), amqp_found)?;
    }

    #[test]
    fn requests_of_http_are_cut_anywhere((stream, count) in http_stream(), changes in changes(), end in 0usize..500) {
        prop_assert_eq!(check(&stream, http_found)?.len(), count);
        check(&spoilt(stream, &changes, end), http_found)?;
    }

    #[test]
    fn anything_is_cut_anywhere(input in octets(60)) {
        for decoded in [resp_found, amqp_found, http_found] {
            check(&input, decoded)?;
        }
    }
}
